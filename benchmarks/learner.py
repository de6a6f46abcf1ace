"""LEARNER on lung-ultrasound clips: does the difference of two clips of a held-out patient tell which is worse?

    python benchmarks/learner.py                 # r18w32 at 64 pixels, T = 4, for a CPU
    python benchmarks/learner.py --tier full     # ResNet-18 at 224 pixels, T = 8, for a GPU

Cohort: lus_blues, severity 0 to 3 of every clip. Three folds by patient; a fold's patients are judged by a model that
never saw them, and the predictions of all folds are pooled, so that intervals are over all patients. The arms are those
of the paper (arXiv:2411.01144): the squared error alone, with the contrast unweighted, and weighted. For two clips of a
patient, in both orders, d = u_later - u_earlier is classified as improve, stable or worsen (tolerance 0) by a logistic
regression fitted on the differences of training patients, its strength chosen on validation patients. Clips of a
patient are zones of one visit and no time course, so this is the difference between zones. Beside the arms stand the
random-init encoder, the majority class and, as the paper's ablation, the concatenation of both embeddings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.data.cohort.split import fold_patients
from bolus.evaluation.change.distance import cosine_distance
from bolus.evaluation.change.pairs import classify_change, concatenate, difference, find_pairs
from bolus.evaluation.probing.fitting import fit_majority
from bolus.evaluation.statistics.arms import compare_arms
from bolus.evaluation.statistics.metrics import METRICS
from grid import DATA
from judging import Array, embed_runs, parts_of, probe, twin
from study import RANDOM, Arm, Cell, Finished, Lines, Study, main

FOLDS, MAJORITY = 3, "majority"

ARMS: dict[str, Arm] = {
    "mse": ("learner", ("objectives.contrast=null",)),
    "mse + unweighted": ("learner", ("objectives.contrast.weighting=none",)),
    "mse + weighted": ("learner", ("objectives.contrast.weighting=linear",)),
}
PAIRS = (
    ("mse + weighted", "mse"),
    ("mse + weighted", "mse + unweighted"),
    ("mse + unweighted", "mse"),
    *((arm, baseline) for arm in ARMS for baseline in (RANDOM, MAJORITY)),
    *((arm, f"{arm}, concatenated") for arm in ARMS),
)


def lus(fold: int) -> Cohort:
    """lus_blues as clips; a fold of the patients for testing, a fifth of the others for validation."""
    roles = {"image": "image", "patient": "patient", "series": "video", "order": "frame", "score:severity": "severity"}
    found = Cohort.open(DATA / "lus_blues" / "meta.csv", roles=roles)
    patients = found.patients
    held = fold_patients(patients, seed=0, folds=FOLDS) == fold
    side = np.where(fold_patients(patients, seed=1, folds=5) == 0, "val", "train")
    table = found.table[list(roles.values())].assign(split=np.where(held, "test", side))
    table["image"] = str(DATA / "lus_blues") + "/" + table["image"].astype(str)
    return Cohort(table, CohortSpec(table="lus.csv", roles={**roles, "split": "split"}))


def prepare(work: Path, cell: Cell) -> Path:
    """The cohort as a file that a run can point to."""
    folder = work / f"fold-{cell['fold']}"
    folder.mkdir(parents=True, exist_ok=True)
    cohort = lus(cell["fold"])
    cohort.table.to_csv(folder / "lus.csv", index=False)
    Cohort(cohort.table, cohort.spec, folder).save(folder / "cohort.yaml")
    return folder / "cohort.yaml"


def held_out(finished: Finished, arm: str, seed: int) -> dict[str, Array]:
    """Predictions of every pair of every patient, by the model of the fold that held the patient out."""
    pooled: dict[str, list[Any]] = {}
    for fold in range(FOLDS):
        runs = {(arm, seed): finished.run(arm, seed, fold=fold)}
        cohort = prepare(finished.work, {"fold": fold})
        found = embed_runs(runs, cohort, cache=finished.work / "cache", besides={"mse": {RANDOM: twin}})
        embeddings = {name: u for name, (u,) in found.vectors.items()}
        pairs = find_pairs(found.patients, found.cohort.encoded("score:severity")[found.rows], seed=0)
        y, patients, split = classify_change(pairs.delta), found.patients[pairs.earlier], found.split[pairs.earlier]
        parts = parts_of(np.ones(len(y), bool), split)
        train, _, test = parts
        features = {name: difference(u, pairs) for name, u in embeddings.items()}
        features[f"{arm}, concatenated"] = concatenate(embeddings[arm], pairs)
        mine = {name: probe(x, y, patients, parts, "classify", num_classes=3) for name, x in features.items()}
        majority = fit_majority(y[train].astype(float), "classify", 3)
        mine[MAJORITY] = majority.predict(np.empty((len(test), 0)))
        for name, u in embeddings.items():
            # Folds have models of their own, whose distances have scales of their own: their ranks are pooled.
            mine[f"distance {name}"] = rankdata(cosine_distance(u, pairs)[test]) / len(test)
        mine |= {"y": y[test], "delta": np.abs(pairs.delta[test])}
        mine["patients"] = found.cohort.patients.to_numpy()[found.rows[pairs.earlier[test]]]
        for name, values in mine.items():
            pooled.setdefault(name, []).append(values)
    return {name: np.concatenate(each) for name, each in pooled.items()}


def compare(finished: Finished) -> Lines:
    """Every arm on the pooled pairs, on the seeds of which all folds of all arms are done."""
    seeds = finished.seeds()
    if not seeds:
        return []
    found = {(arm, seed): held_out(finished, arm, seed) for arm in ARMS for seed in seeds}
    first = found["mse", seeds[0]]
    patients = np.unique(first["patients"], return_inverse=True)[1]
    predictions: dict[str, list[Array]] = {}
    distances: dict[str, list[Array]] = {}
    for arm in ARMS:
        for name in found[arm, seeds[0]]:
            kept = distances if name.startswith("distance ") else predictions
            if name not in ("y", "delta", "patients"):
                kept[name.removeprefix("distance ")] = [found[arm, seed][name] for seed in seeds]
    counts = np.bincount(first["y"], minlength=3).tolist()
    facts = {"cohort": "lus_blues", "tier": finished.tier, "target": "difference between zones", "classes": counts}
    lines = []
    for metric in ("accuracy", "balanced_accuracy", "macro_f1"):
        lines += compare_arms(
            {**facts, "metric": metric},
            METRICS["multiclass"][metric],
            first["y"],
            patients,
            predictions,
            pairs=PAIRS,
        )
    return lines + compare_arms(
        {**facts, "target": "distance and size of the difference", "metric": "spearman"},
        METRICS["regress"]["spearman"],
        first["delta"],
        patients,
        distances,
        pairs=[pair for pair in PAIRS if set(pair) <= set(distances)],
    )


STUDY = Study(
    name="lus",
    cells="learner-cells.jsonl",
    result="learner{tier}.json",
    arms=ARMS,
    # Fixed beforehand. The score is ordinal: only equal severities are positives (the paper leaves the threshold open).
    # No partners are drawn, so that arms see the same batches.
    keys=(
        "objectives.contrast.threshold=0.0",
        "sampling={batch_size: 16, partners: 0}",
        "schedule={kind: cosine, warmup_epochs: 1, final: 0.001}",
        "training.health_epochs=null",
    ),
    tiers={
        "small": {
            "keys": (
                "encoder.backbone=r18w32",
                "images.size=64",
                "images.frames=4",
                "optimizer.lr=0.001",
                "training.epochs=30",
            )
        },
        "full": {"keys": ("images.size=224", "images.frames=8", "training.precision=bf16", "training.epochs=50")},
    },
    parts=tuple({"fold": fold} for fold in range(FOLDS)),
    prepare=prepare,
    compare=compare,
)

if __name__ == "__main__":
    main(__doc__, STUDY, work="runs/learner")
