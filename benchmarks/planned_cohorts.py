"""The cohorts of planned.py: how each is prepared, and what is asked of encoders that were trained on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

import comprer_odir
import learner
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.split import fold_patients
from bolus.evaluation.change.pairs import classify_change, difference, find_pairs
from bolus.evaluation.probing.fitting import fit_majority
from bolus.evaluation.statistics.arms import compare_arms
from bolus.evaluation.statistics.metrics import METRICS, Metric, auroc, mae
from bolus.evaluation.statistics.results import MAJORITY
from bolus.evaluation.targets import find_targets
from grid import DATA
from judging import Array, Embedded, Vectors, draw_labels, embed_runs, parts_of, patients_of_each, probe, retrieve, twin
from study import RANDOM, Cell, Finished, Lines

PLANNED = "planned"
FEW = 0.05  # share of the labelled training patients, beside all of them


@dataclass(frozen=True)
class Judged:
    """Trainings to be judged, on which patients, and what is compared with what."""

    finished: Finished
    arms: Sequence[str]
    seeds: Sequence[int]
    on: str
    pairs: Sequence[tuple[str, str]]


def embed_fold(judged: Judged, fold: int) -> Embedded:
    """Embeddings of every arm and seed of a fold, and of random-init twins."""
    finished = judged.finished
    runs = {(arm, seed): finished.run(arm, seed, fold=fold) for arm in judged.arms for seed in judged.seeds}
    cohort = finished.study.prepare(finished.work, {"fold": fold})
    return embed_runs(runs, cohort, cache=finished.work / "cache", besides={PLANNED: {RANDOM: twin}})


def parts_on(known: Array, split: Array, patients: Array, on: str) -> tuple[Array, Array, Array]:
    """Positions that heads are fitted on, their strength is chosen on, and that are judged."""
    if on == "test":
        return parts_of(known, split)
    chosen = fold_patients(patients, seed=0, folds=5) == 0  # of training patients: validation is what is judged
    train = known & (split == "train")
    fit, held, judged = (np.flatnonzero(at) for at in (train & ~chosen, train & chosen, known & (split == "val")))
    return fit, held, judged


def probe_on(found: Embedded, y: Array, judged: Judged, task: str, share: float = 1.0) -> tuple[Array, Vectors]:
    """Positions of the judged samples, and each arm's predictions of them by a linear probe."""
    patients = found.patients
    fit, held, test = parts_on(np.isfinite(y), found.split, patients, judged.on)
    predictions: Vectors = {}
    for arm, by_seed in found.vectors.items():
        for seed, x in zip(judged.seeds, by_seed, strict=True):
            mine = fit[draw_labels(patients[fit], y[fit], share, seed)] if share < 1 else fit
            predictions.setdefault(arm, []).append(probe(x, y, patients, (mine, held, test), task))
    majority = fit_majority(y[fit], task, 2 if task == "classify" else 0)
    predictions[MAJORITY] = [majority.predict(np.empty((len(test), 0)))] * len(judged.seeds)
    return test, predictions


def question(
    found: Embedded, judged: Judged, name: str, y: Array, *, task: str = "classify", share: float = 1.0
) -> Lines:
    """Every arm on one label (AUROC) or score (MAE); `y` is float `[n]`, NaN where missing."""
    test, predictions = probe_on(found, y, judged, task, share)
    patients = found.patients[test]
    metric: tuple[str, Metric] = ("auroc", auroc) if task == "classify" else ("mae", mae)
    facts = {"task": task, "target": name, "metric": metric[0], "fraction": share}
    enough = None
    if task == "classify":
        numbers = patients_of_each(y[test], patients)
        enough, facts["num_positive_patients"] = min(numbers), numbers[1]
    facts["split_hash"] = found.cohort.split_hash
    return compare_arms(facts, metric[1], y[test], patients, predictions, pairs=judged.pairs, enough=enough)


def _labels(found: Embedded, name: str) -> Array:
    """A class of a label as 0 and 1, NaN where missing."""
    y = find_targets(found.cohort, "classify", name, min_patients=1)[0][0].y[found.rows].astype(float)
    return np.where(y < 0, np.nan, y)


def prepare_odir(work: Path, cell: Cell) -> Path:
    """Odir as comprer_odir.py has it."""
    return comprer_odir.prepare(work / "odir", cell)


def judge_odir(judged: Judged) -> Lines:
    """Normal eyes and diabetes from few and all labels, age, and the fellow eye."""
    found, lines = embed_fold(judged, 0), []
    for share in (FEW, 1.0):
        for name in ("N", "D"):
            lines += question(found, judged, name, _labels(found, f"eye={name}"), share=share)
    lines += question(found, judged, "age", found.cohort.encoded("score:age")[found.rows], task="regress")
    eyes = comprer_odir.fellows(found.cohort, found.rows, "test" if judged.on == "test" else "val")
    facts = {"target": "fellow eye", "chance": round(5 / len(eyes[0]), 4)}
    return lines + retrieve(facts, found.vectors, eyes, found.patients[eyes[0]], among=(5,), pairs=judged.pairs)


def prepare_chest(work: Path, cell: Cell) -> Path:
    """nih1000 and cxr as one cohort of two sites: age, visits in order, labels of nih1000 alone."""
    folder = work / "chest"
    folder.mkdir(parents=True, exist_ok=True)
    nih = pd.read_csv(DATA / "nih1000" / "meta.csv", dtype=str)
    nih = nih.assign(
        image="nih1000/" + nih["image"], patient="nih1000/" + nih["patient"], visit=nih["followup"], site="nih1000"
    )
    cxr = pd.read_csv(DATA / "cxr" / "meta.csv", dtype=str)
    days = pd.to_numeric(cxr["offset"], errors="coerce")
    cxr = cxr.assign(
        image="cxr/" + cxr["image"],
        patient="cxr/" + cxr["group"],
        visit=days.groupby(cxr["group"]).rank(method="dense"),
        site="cxr",
    )
    columns = ["image", "patient", "visit", "age", "sex", "view", "site", "abnormal", "findings"]
    table = pd.concat([nih, cxr], ignore_index=True).reindex(columns=columns)
    table.to_csv(folder / "chest.csv", index=False)
    roles = {"score:age": "age", "attribute:sex": "sex", "view_position": "view", "visit": "visit"}
    roles |= {"label:abnormal": "abnormal", "label:findings": "findings", "site": "site"}
    cohort = Cohort.open(folder / "chest.csv", roles=roles, root=str(DATA), split={"val": 0.15, "test": 0.4})
    cohort.save(folder / "cohort.yaml")
    return folder / "cohort.yaml"


def judge_chest(judged: Judged) -> Lines:
    """Abnormal or not and effusion on nih1000, age on both."""
    found = embed_fold(judged, 0)
    lines = question(found, judged, "abnormal", _labels(found, "abnormal"))
    lines += question(found, judged, "abnormal", _labels(found, "abnormal"), share=0.2)
    lines += question(found, judged, "effusion", _labels(found, "findings=Effusion"))
    return lines + question(found, judged, "age", found.cohort.encoded("score:age")[found.rows], task="regress")


def prepare_lus(work: Path, cell: Cell) -> Path:
    """lus_blues as clips with severity, zone and patient; a fold of the patients for testing."""
    folder = work / "lus" / f"fold-{cell['fold']}"
    folder.mkdir(parents=True, exist_ok=True)
    cohort = learner.lus(cell["fold"])
    meta = pd.read_csv(DATA / "lus_blues" / "meta.csv", dtype=str)
    table = cohort.table.assign(zone=meta["zone"].to_numpy())
    table.to_csv(folder / "lus.csv", index=False)
    roles = {**cohort.spec.roles, "region": "zone"}
    Cohort.open(folder / "lus.csv", roles=roles).save(folder / "cohort.yaml")
    return folder / "cohort.yaml"


def judge_lus(judged: Judged) -> Lines:
    """Which of two clips of a held-out patient is worse, and how bad a clip is, over the pooled folds."""
    pooled: dict[str, list[Array]] = {}
    change: dict[str, list[list[Array]]] = {}
    severity: dict[str, list[list[Array]]] = {}
    for fold in range(learner.FOLDS):
        found = embed_fold(judged, fold)
        score, patients = found.cohort.encoded("score:severity")[found.rows], found.patients
        names = found.cohort.patients.to_numpy()[found.rows]
        test, predicted = probe_on(found, score, judged, "regress")
        for arm, scores in predicted.items():
            severity.setdefault(arm, []).append(scores)
        pairs = find_pairs(patients, score, seed=0)
        y, owners = classify_change(pairs.delta), patients[pairs.earlier]
        parts = parts_on(np.ones(len(y), bool), found.split[pairs.earlier], owners, judged.on)
        fit, _, there = parts
        for arm, by_seed in found.vectors.items():
            here = [probe(difference(u, pairs), y, owners, parts, "classify", num_classes=3) for u in by_seed]
            change.setdefault(arm, []).append(here)
        majority = fit_majority(y[fit].astype(float), "classify", 3).predict(np.empty((len(there), 0)))
        change.setdefault(MAJORITY, []).append([majority] * len(judged.seeds))
        for name, values in (
            ("y", y[there]),
            ("pair patients", names[pairs.earlier][there]),
            ("severity", score[test]),
            ("clip patients", names[test]),
        ):
            pooled.setdefault(name, []).append(values)
    joined = {name: np.concatenate(each) for name, each in pooled.items()}
    codes = {name: np.unique(joined[name], return_inverse=True)[1] for name in ("pair patients", "clip patients")}
    lines = []
    for metric in ("accuracy", "balanced_accuracy"):
        facts = {"task": "change", "target": "difference between zones", "metric": metric}
        lines += compare_arms(
            facts, METRICS["multiclass"][metric], joined["y"], codes["pair patients"], _pool(change), pairs=judged.pairs
        )
    for metric in ("mae", "spearman"):
        facts = {"task": "regress", "target": "severity", "metric": metric}
        lines += compare_arms(
            facts,
            METRICS["regress"][metric],
            joined["severity"],
            codes["clip patients"],
            _pool(severity),
            pairs=judged.pairs,
        )
    return lines


def _pool(by_fold: Mapping[str, list[list[Array]]]) -> Vectors:
    """Predictions of the folds one after another, for each arm and seed."""
    return {arm: [np.concatenate(parts) for parts in zip(*folds, strict=True)] for arm, folds in by_fold.items()}
