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

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.data.cohort.split import fold_patients
from bolus.embedding import embed_samples, open_encoder, open_store, samples_of
from bolus.evaluation.change.distance import cosine_distance
from bolus.evaluation.change.pairs import classify_change, concatenate, difference, find_pairs
from bolus.evaluation.probing.fitting import Samples, fit_linear, fit_majority
from bolus.evaluation.statistics.arms import compare_arms
from bolus.evaluation.statistics.metrics import METRICS
from bolus.provenance import machine, versions
from bolus.training.loop import pretrain
from grid import DATA, RESULTS, condense, read_cells, run_grid

SEEDS, FOLDS = (0, 1, 2), 3

ARMS: dict[str, tuple[str, ...]] = {
    "mse": ("objectives.contrast=null",),
    "mse + unweighted": ("objectives.contrast.weighting=none",),
    "mse + weighted": ("objectives.contrast.weighting=linear",),
}
PAIRS = (
    ("mse + weighted", "mse"),
    ("mse + weighted", "mse + unweighted"),
    ("mse + unweighted", "mse"),
    *((arm, baseline) for arm in ARMS for baseline in ("random init", "majority")),
    *((arm, f"{arm}, concatenated") for arm in ARMS),
)

# The same for every arm, fixed beforehand. No partners are drawn, so that arms see the same batches.
COMMON = (
    "sampling={batch_size: 16, partners: 0}",
    "schedule={kind: cosine, warmup_epochs: 1, final: 0.001}",
    "training.health_epochs=null",
)
TIERS: dict[str, dict[str, Any]] = {
    "small": {
        "keys": ("encoder.backbone=r18w32", "images.size=64", "images.frames=4", "optimizer.lr=0.001"),
        "epochs": 30,
    },
    "full": {"keys": ("images.size=224", "images.frames=8", "training.precision=bf16"), "epochs": 50},
}


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


def prepared(work: Path, fold: int) -> Path:
    """The cohort as a file that a run can point to."""
    folder = work / f"fold-{fold}"
    folder.mkdir(parents=True, exist_ok=True)
    cohort = lus(fold)
    cohort.table.to_csv(folder / "lus.csv", index=False)
    Cohort(cohort.table, cohort.spec, folder).save(folder / "cohort.yaml")
    return folder / "cohort.yaml"


def run_folder(work: Path, arm: str, seed: int, fold: int) -> Path:
    """Where a cell's run lies."""
    return work / f"{arm.replace(' + ', '-')}-{seed}-{fold}"


def train(work: Path, tier: str, arm: str, seed: int, fold: int) -> dict[str, Any]:
    """One cell."""
    spec = TIERS[tier]
    # The score is ordinal: only equal severities are positives (the paper leaves the threshold open).
    keys = ["objectives.contrast.threshold=0.0", *COMMON, *spec["keys"], *ARMS[arm]]
    keys += [f"training.epochs={spec['epochs']}", f"training.seed={seed}"]
    folder = run_folder(work, arm, seed, fold)
    path = prepared(work, fold)
    run = pretrain(path, recipe="learner", out=folder, overrides=keys, resume=folder.exists(), cache=work / "cache")
    return condense(run)


def held_out(work: Path, arm: str, seed: int) -> dict[str, Any]:
    """Predictions of every pair of every patient, by the model of the fold that held the patient out."""
    parts: dict[str, list[Any]] = {}
    for fold in range(FOLDS):
        judged = open_encoder(run_folder(work, arm, seed, fold))
        samples = samples_of(judged, Cohort.open(prepared(work, fold)))
        store = open_store(judged, samples.cohort, cache=work / "cache")
        everything = np.arange(len(samples))
        columns, split = samples.columns(["patient", "score:severity"]), samples.cohort.split[samples.first_row]
        pairs = find_pairs(columns["patient"], columns["score:severity"], seed=0)
        y, patients, side = classify_change(pairs.delta), columns["patient"][pairs.earlier], split[pairs.earlier]
        embeddings = {arm: embed_samples(judged.encoder, store, samples, everything)}
        if arm == "mse":
            embeddings["random init"] = embed_samples(judged.random_twin(seed), store, samples, everything)
        features = {name: difference(u, pairs) for name, u in embeddings.items()}
        features[f"{arm}, concatenated"] = concatenate(embeddings[arm], pairs)
        test = side == "test"
        for name, x in features.items():
            train, val = (Samples(x[side == one], y[side == one], patients[side == one]) for one in ("train", "val"))
            parts.setdefault(name, []).append(fit_linear(train, val, "classify", num_classes=3).predict(x[test]))
        majority = fit_majority(y[side == "train"].astype(float), "classify", 3)
        parts.setdefault("majority", []).append(majority.predict(np.empty((int(test.sum()), 0))))
        for name, u in embeddings.items():
            # Folds have models of their own, whose distances have scales of their own: their ranks are pooled.
            ranks = rankdata(cosine_distance(u, pairs)[test]) / test.sum()
            parts.setdefault(f"distance {name}", []).append(ranks)
        parts.setdefault("y", []).append(y[test])
        parts.setdefault("delta", []).append(np.abs(pairs.delta[test]))
        parts.setdefault("patients", []).append(samples.cohort.patients.iloc[samples.first_row[pairs.earlier[test]]])
    return {name: np.concatenate(each) for name, each in parts.items()}


def compare(work: Path, tier: str, done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every arm on the pooled pairs, on the seeds of which all folds of all arms are done."""
    have = {(cell["arm"], cell["seed"], cell["fold"]) for cell in done if cell["tier"] == tier}
    seeds = [s for s in SEEDS if all((arm, s, fold) in have for arm in ARMS for fold in range(FOLDS))]
    if not seeds:
        return []
    found = {(arm, seed): held_out(work, arm, seed) for arm in ARMS for seed in seeds}
    first = found["mse", seeds[0]]
    patients = np.unique(first["patients"], return_inverse=True)[1]
    predictions: dict[str, list[Any]] = {}
    distances: dict[str, list[Any]] = {}
    for arm in ARMS:
        for name in found[arm, seeds[0]]:
            kept = distances if name.startswith("distance ") else predictions
            if name not in ("y", "delta", "patients"):
                kept[name.removeprefix("distance ")] = [found[arm, seed][name] for seed in seeds]
    counts = np.bincount(first["y"], minlength=3).tolist()
    facts = {"cohort": "lus_blues", "tier": tier, "target": "difference between zones", "classes": counts}
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
    lines += compare_arms(
        {**facts, "target": "distance and size of the difference", "metric": "spearman"},
        METRICS["regress"]["spearman"],
        first["delta"],
        patients,
        distances,
        pairs=[pair for pair in PAIRS if set(pair) <= set(distances)],
    )
    return lines


def main() -> None:
    """Train what is missing, then compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tier", choices=sorted(TIERS), default="small")
    parser.add_argument("--work", type=Path, default=Path("runs/learner"))
    parser.add_argument("--compare-only", action="store_true")
    arguments = parser.parse_args()
    cells = [
        {"tier": arguments.tier, "arm": arm, "seed": seed, "fold": fold}
        for seed in SEEDS
        for fold in range(FOLDS)
        for arm in ARMS
    ]
    path, work = RESULTS / "learner-cells.jsonl", arguments.work / arguments.tier
    if not arguments.compare_only:
        run_grid(path, cells, lambda **cell: train(work, **cell))
    record = {"command": f"python {shlex.join(sys.argv)}", "machine": machine(), "versions": versions()}
    lines = compare(work, arguments.tier, [line["cell"] for line in read_cells(path)])
    suffix = "" if arguments.tier == "small" else f"-{arguments.tier}"
    (RESULTS / f"learner{suffix}.json").write_text(json.dumps({**record, "results": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
