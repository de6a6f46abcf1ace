"""The cohorts of planned.py: how each is prepared, which papers' recipes its columns allow, and what is asked of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

import comprer_odir
import learner
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.split import fold_patients
from bolus.embedding import embed_samples, open_encoder, open_store, samples_of
from bolus.evaluation.change.pairs import classify_change, difference, find_pairs
from bolus.evaluation.probing.fitting import Samples, fit_linear, fit_majority
from bolus.evaluation.retrieval.ranking import ranks
from bolus.evaluation.statistics.arms import compare_arms
from bolus.evaluation.statistics.metrics import METRICS, Metric, auroc, mae
from bolus.evaluation.statistics.results import MAJORITY
from bolus.evaluation.targets import find_targets
from bolus.run import Run
from grid import DATA
from grid import sides as both_sides

RANDOM = "random init"
FEW = 0.05  # share of the labelled training patients, beside all of them
Array = NDArray[Any]


class Tier(NamedTuple):
    """A size: recipe keys of every arm, and the encoder passes of a training."""

    keys: tuple[str, ...]
    passes: int


@dataclass(frozen=True)
class Judged:
    """Trainings to be judged: run folders by (arm, seed, fold), cohorts by fold, and what is compared with what."""

    folders: Mapping[tuple[str, int, int], Path]
    cohorts: Mapping[int, Path]
    arms: Sequence[str]
    seeds: Sequence[int]
    cache: Path
    on: str
    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Study:
    """One cohort: `prepare(folder, fold)` gives its cohort.yaml, `judge` the lines of results."""

    prepare: Callable[[Path, int], Path]
    judge: Callable[[Judged], list[dict[str, Any]]]
    arms: dict[str, tuple[str, tuple[str, ...]]]
    tiers: dict[str, Tier]
    keys: tuple[str, ...]
    plan: tuple[str, ...] = ()  # keys of the planned recipe alone: its batches
    variants: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of the plan, for validation
    seeds: tuple[int, ...] = (0, 1, 2)
    folds: int = 1
    unit: str = "image"


def conflicts_of(run: Run) -> dict[str, Any]:
    """Mean cosines of the objectives' gradients over the training, and each one's mean norm."""
    looks = [line for line in run.metrics() if line["kind"] == "conflicts"]
    if not looks:
        return {}
    names, cosines = looks[0]["objectives"], np.array([look["cosines"] for look in looks], float)
    norms = np.array([look["norms"] for look in looks], float).mean(0)
    pairs = combinations(range(len(names)), 2)
    return {
        "looks": len(looks),
        "norms": dict(zip(names, np.round(norms, 4).tolist(), strict=True)),
        "cosines": {f"{names[a]} ~ {names[b]}": round(float(np.nanmean(cosines[:, a, b])), 3) for a, b in pairs},
    }


class Embedded(NamedTuple):
    """A cohort's samples and their embeddings: arm -> one array `[n, D]` a seed."""

    cohort: Cohort
    rows: Array
    vectors: dict[str, list[Array]]


def embed_fold(judged: Judged, fold: int) -> Embedded:
    """Embeddings of every arm and seed of a fold, and of random-init twins."""
    vectors: dict[str, list[Array]] = {}
    for arm in judged.arms:
        for seed in judged.seeds:
            opened = open_encoder(judged.folders[arm, seed, fold])
            samples = samples_of(opened, Cohort.open(judged.cohorts[fold]))
            store = open_store(opened, samples.cohort, cache=judged.cache)
            positions = np.flatnonzero(samples.readable(store.readable))
            vectors.setdefault(arm, []).append(embed_samples(opened.encoder, store, samples, positions))
            if arm == "planned":
                twin = opened.random_twin(seed)
                vectors.setdefault(RANDOM, []).append(embed_samples(twin, store, samples, positions))
    return Embedded(samples.cohort, samples.first_row[positions], vectors)


def sides(known: Array, split: Array, patients: Array, on: str) -> tuple[Array, Array, Array]:
    """Positions that heads are fitted on, their strength is chosen on, and that are judged: bool each, disjoint."""
    if on == "test":
        return tuple(known & (split == side) for side in ("train", "val", "test"))
    chosen = fold_patients(patients, seed=0, folds=5) == 0  # of training patients: validation is what is judged
    train = known & (split == "train")
    return train & ~chosen, train & chosen, known & (split == "val")


def probe(
    found: Embedded, y: Array, judged: Judged, task: str, share: float = 1.0
) -> tuple[Array, dict[str, list[Array]]]:
    """Which samples are judged, and each arm's predictions of them by a linear probe, one array a seed."""
    patients, split = found.cohort.encoded("patient")[found.rows], found.cohort.split[found.rows]
    fit, held, test = sides(np.isfinite(y), split, patients, judged.on)
    predictions: dict[str, list[Array]] = {}
    for arm, by_seed in found.vectors.items():
        for seed, x in zip(judged.seeds, by_seed, strict=True):
            mine = np.flatnonzero(fit)
            if share < 1:
                mine = mine[comprer_odir._draw(patients[mine], y[mine], share, seed)]
            parts = both_sides(x, y, patients, mine, np.flatnonzero(held))
            predictions.setdefault(arm, []).append(fit_linear(*parts, task).predict(x[test]))
    majority = fit_majority(y[fit], task, 2 if task == "classify" else 0)
    predictions[MAJORITY] = [majority.predict(np.empty((int(test.sum()), 0)))] * len(judged.seeds)
    return test, predictions


def question(
    found: Embedded, judged: Judged, name: str, y: Array, *, task: str = "classify", share: float = 1.0
) -> list[dict[str, Any]]:
    """Every arm on one label (AUROC) or score (MAE); `y` is float `[n]`, NaN where missing."""
    test, predictions = probe(found, y, judged, task, share)
    patients = found.cohort.encoded("patient")[found.rows][test]
    metric: tuple[str, Metric] = ("auroc", auroc) if task == "classify" else ("mae", mae)
    facts = {"task": task, "target": name, "metric": metric[0], "fraction": share}
    enough = None
    if task == "classify":
        numbers = [len(np.unique(patients[y[test] == side])) for side in (0, 1)]
        enough, facts["num_positive_patients"] = min(numbers), numbers[1]
    facts["split_hash"] = found.cohort.split_hash
    return compare_arms(facts, metric[1], y[test], patients, predictions, pairs=judged.pairs, enough=enough)


def _labels(found: Embedded, name: str) -> Array:
    """A class of a label as 0 and 1, NaN where missing."""
    y = find_targets(found.cohort, "classify", name, min_patients=1)[0][0].y[found.rows].astype(float)
    return np.where(y < 0, np.nan, y)


def judge_odir(judged: Judged) -> list[dict[str, Any]]:
    """Normal eyes and diabetes from few and all labels, age, and the fellow eye."""
    found, lines = embed_fold(judged, 0), []
    for share in (FEW, 1.0):
        for name in ("N", "D"):
            lines += question(found, judged, name, _labels(found, f"eye={name}"), share=share)
    lines += question(found, judged, "age", found.cohort.encoded("score:age")[found.rows], task="regress")
    side = "test" if judged.on == "test" else "val"
    left, right = comprer_odir.fellows(found.cohort, found.rows, side)
    orders = {
        arm: [np.stack([_ranks(x[left], x[right]), _ranks(x[right], x[left])], axis=1) for x in by_seed]
        for arm, by_seed in found.vectors.items()
    }

    def top_5(_: Any, p: Any, weights: Any = None) -> Any:
        hit = (p <= 5).mean(1)
        return hit.mean() if weights is None else (weights @ hit) / weights.sum(1)

    facts = {"task": "retrieve", "target": "fellow eye", "metric": "top_5", "chance": round(5 / len(left), 4)}
    patients = found.cohort.encoded("patient")[found.rows][left]
    return lines + compare_arms(facts, top_5, np.zeros(len(left)), patients, orders, pairs=judged.pairs)


def _ranks(one: Array, other: Array) -> Array:
    return ranks(torch.from_numpy(one), torch.from_numpy(other)).numpy()


def prepare_chest(folder: Path, fold: int) -> Path:
    """nih1000 and cxr as one cohort of two sites: age, visits in order, labels of nih1000 alone."""
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


def judge_chest(judged: Judged) -> list[dict[str, Any]]:
    """Abnormal or not and effusion on nih1000, age on both."""
    found = embed_fold(judged, 0)
    lines = question(found, judged, "abnormal", _labels(found, "abnormal"))
    lines += question(found, judged, "abnormal", _labels(found, "abnormal"), share=0.2)
    lines += question(found, judged, "effusion", _labels(found, "findings=Effusion"))
    return lines + question(found, judged, "age", found.cohort.encoded("score:age")[found.rows], task="regress")


def prepare_lus(folder: Path, fold: int) -> Path:
    """lus_blues as clips with severity, zone and patient; a fold of the patients for testing."""
    folder = folder / f"fold-{fold}"
    folder.mkdir(parents=True, exist_ok=True)
    cohort = learner.lus(fold)
    meta = pd.read_csv(DATA / "lus_blues" / "meta.csv", dtype=str)
    table = cohort.table.assign(zone=meta["zone"].to_numpy())
    table.to_csv(folder / "lus.csv", index=False)
    roles = {**cohort.spec.roles, "region": "zone"}
    Cohort.open(folder / "lus.csv", roles=roles).save(folder / "cohort.yaml")
    return folder / "cohort.yaml"


def judge_lus(judged: Judged) -> list[dict[str, Any]]:
    """Which of two clips of a held-out patient is worse, and how bad a clip is, over the pooled folds."""
    parts: dict[str, list[Any]] = {}
    change: dict[str, list[list[Array]]] = {}
    severity: dict[str, list[list[Array]]] = {}
    for fold in judged.cohorts:
        found = embed_fold(judged, fold)
        patients, split = found.cohort.encoded("patient")[found.rows], found.cohort.split[found.rows]
        score = found.cohort.encoded("score:severity")[found.rows]
        test, predicted = probe(found, score, judged, "regress")
        names = found.cohort.patients.to_numpy()[found.rows]
        pairs = find_pairs(patients, score, seed=0)
        y = classify_change(pairs.delta)
        fit, held, there = sides(np.ones(len(y), bool), split[pairs.earlier], patients[pairs.earlier], judged.on)
        for arm, by_seed in found.vectors.items():
            here = []
            for u in by_seed:
                x = difference(u, pairs)
                train, val = (Samples(x[at], y[at], patients[pairs.earlier][at]) for at in (fit, held))
                here.append(fit_linear(train, val, "classify", num_classes=3).predict(x[there]))
            change.setdefault(arm, []).append(here)
        majority = fit_majority(y[fit].astype(float), "classify", 3)
        change.setdefault(MAJORITY, []).append([majority.predict(np.empty((int(there.sum()), 0)))] * len(judged.seeds))
        for arm, scores in predicted.items():
            severity.setdefault(arm, []).append(scores)
        parts.setdefault("y", []).append(y[there])
        parts.setdefault("pair patients", []).append(names[pairs.earlier][there])
        parts.setdefault("severity", []).append(score[test])
        parts.setdefault("clip patients", []).append(names[test])
    joined = {name: np.concatenate(each) for name, each in parts.items()}
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


def _pool(by_fold: Mapping[str, list[list[Array]]]) -> dict[str, list[Array]]:
    """Predictions of the folds one after another, for each arm and seed."""
    return {arm: [np.concatenate(parts) for parts in zip(*folds, strict=True)] for arm, folds in by_fold.items()}


SMALL = ("encoder.backbone=r18w32", "encoder.stem_pool=true", "images.size=64")
FULL = ("encoder.backbone=resnet18", "images.size=224", "training.precision=bf16")
ONE_VIEW = ("images.views=1", "sampling={batch_size: 128, partners: 1}")
TWO_VIEWS = ("images.views=2", "sampling={batch_size: 64, partners: 0}")
WIDTHS = ("objectives.global.width=512", "objectives.levels.width=512")
AGE = "objectives.{}=[score:age]"
ONES = {
    name: ("objectives.views.weight=1", f"objectives.{name}.weight=1") for name in ("bilateral", "temporal")
}  # the first form of the plan
MITIGATED = "combiner={kind: grad_mitigator, scope: features}"
REGION = "{kind: contrast, head: image, relation: region, temperature: 0.1, dim: 128, hidden_norm: false}"
STILL = ("images.unit=image", "encoder.temporal_shift=null")

STUDIES = {
    "odir": Study(
        prepare=lambda folder, fold: comprer_odir.prepared(folder),
        judge=judge_odir,
        keys=("encoder.in_channels=3", "images.augment={preset: fundus}"),
        arms={
            "simclr": ("simclr", TWO_VIEWS),
            "mlvicx": ("mlvicx", (*TWO_VIEWS, *WIDTHS)),
            "comprer": (
                "comprer_bilateral",
                (
                    "objectives.measures.targets=[score:age, attribute:sex]",
                    "objectives.reconstruction.channels=128",
                    *ONE_VIEW,
                ),
            ),
            "supremix": ("supremix", (*TWO_VIEWS, AGE.format("supremix.targets"))),
            "learner": ("learner", (*ONE_VIEW, *STILL)),
        },
        plan=("sampling={batch_size: 64, partners: 1}",),
        variants={
            "weights 1": ONES["bilateral"],
            "weights 1, mitigated": (*ONES["bilateral"], MITIGATED),
            "weights 1, no views": ("objectives.views=null", "objectives.bilateral.weight=1"),
        },
        tiers={"small": Tier(SMALL, 2 * 128 * 300), "full": Tier(FULL, 2 * 128 * 10000)},
        seeds=(0, 1),
    ),
    "chest": Study(
        prepare=prepare_chest,
        judge=judge_chest,
        keys=("images.augment={preset: xray}",),
        arms={
            "simclr": ("simclr", TWO_VIEWS),
            "mlvicx": ("mlvicx", (*TWO_VIEWS, *WIDTHS)),
            "comprer": ("comprer_temporal", (*ONE_VIEW, "objectives.temporal.relation={same: patient, differ: visit}")),
            "supremix": ("supremix", (*TWO_VIEWS, AGE.format("supremix.targets"))),
            "learner": ("learner", (*ONE_VIEW, *STILL)),
        },
        plan=("sampling={batch_size: 64, partners: 1}",),
        variants={
            "weights 1": ONES["temporal"],
            "weights 1, mitigated": (*ONES["temporal"], MITIGATED),
            "weights 1, no views": ("objectives.views=null", "objectives.temporal.weight=1"),
        },
        tiers={"small": Tier(SMALL, 2 * 128 * 150), "full": Tier(FULL, 2 * 128 * 2000)},
    ),
    "lus": Study(
        prepare=prepare_lus,
        judge=judge_lus,
        keys=("images.augment={preset: ultrasound}", "encoder.temporal_shift=8", "images.unit=clip"),
        arms={
            "simclr": ("simclr", ("images.views=2", "sampling={batch_size: 16, partners: 0}")),
            "learner": (
                "learner",
                ("images.views=1", "sampling={batch_size: 32, partners: 1}", "objectives.contrast.threshold=0.0"),
            ),
            "supremix": (
                "supremix",
                ("images.views=2", "sampling={batch_size: 16, partners: 0}", "objectives.supremix.window=1.5"),
            ),
            "gcl": (
                "gcl",
                (
                    "images.views=2",
                    "sampling={batch_size: 16, partners: 1}",
                    *(f"objectives.{name}=null" for name in ("position", "phase")),
                    *(f"objectives.{name}_pixel=null" for name in ("patient", "position", "phase")),
                    "objectives.patient.dim=128",
                    f"objectives.region={REGION}",
                    "combiner.scope=features",
                    "combiner.conflict_steps=null",
                    "bins={}",
                ),
            ),
        },
        plan=("sampling={batch_size: 16, partners: 1}",),
        variants={"mitigated": (MITIGATED,)},
        tiers={
            "small": Tier((*SMALL, "images.frames=4"), 2 * 4 * 32 * 225),
            "full": Tier((*FULL, "images.frames=8"), 2 * 8 * 32 * 2000),
        },
        folds=learner.FOLDS,
        unit="clip",
    ),
}
