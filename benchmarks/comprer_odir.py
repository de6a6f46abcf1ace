"""COMPRER's losses on fundus photographs of both eyes, and their subsets, at equal encoder passes.

    python benchmarks/comprer_odir.py                 # r18w32 at 64 pixels, for a CPU
    python benchmarks/comprer_odir.py --tier full     # DINOv2 ViT-B/14 at 224 pixels, for a GPU and the hub

Cohort: odir by `group`, 40 % of the patients for testing; age (1 is a missing code) and sex are the measures. Cells are
trainings; finished ones are skipped. Every arm sees 128 images a step: comprer's arms both eyes of 64 patients once,
SimCLR 64 images in two views, the supervised arm 128 images with their labels. Arms are judged on the same test
patients by the AUROC of a linear probe on frozen embeddings, its strength chosen on validation patients, with the
labels of 1, 10 and 100 % of the training patients, and by how well an eye finds its fellow. (The supervised arm's
encoder has seen all training labels at every share, and strengths are chosen with the labels of all validation
patients.) The draw of labelled patients changes with the seed of the training. Estimates are means over seeds;
intervals are over patients, differences on the same draws, decided where the interval excludes 0 and every seed points
the same way. Keys were fixed beforehand and are the same for every arm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bolus.data.cohort.cohort import Cohort
from bolus.evaluation.statistics.arms import compare_arms
from bolus.evaluation.statistics.metrics import auroc
from bolus.evaluation.targets import find_targets
from grid import DATA
from judging import Vectors, draw_labels, embed_runs, parts_of, probe, retrieve, twin
from study import RANDOM, Arm, Cell, Finished, Lines, Study, main, without

CLASSES = ("N", "D", "G", "C", "A", "M")  # every class but hypertension and "other"
FRACTIONS = (0.01, 0.1, 1.0)
LOSSES = ("bilateral", "measures", "reconstruction")


def only(*losses: str) -> tuple[str, ...]:
    """Keys that leave these losses of comprer's."""
    return without(*(name for name in LOSSES if name not in losses))


MEASURES = "objectives.measures.targets=[score:age, attribute:sex]"
ARMS: dict[str, Arm] = {
    "comprer": ("comprer_bilateral", (MEASURES,)),
    "bilateral": ("comprer_bilateral", only("bilateral")),
    "measures": ("comprer_bilateral", (MEASURES, *only("measures"))),
    "simclr": ("simclr", ("sampling={batch_size: 64, partners: 0}",)),
    "supervised": (
        "supervised",
        ("images.views=1", "sampling={batch_size: 128, partners: 0}", "objectives.predict.targets=[label:eye]"),
    ),
}
ABLATIONS: dict[str, Arm] = {
    "reconstruction": ("comprer_bilateral", only("reconstruction")),
    "bilateral + measures": ("comprer_bilateral", (MEASURES, *only("bilateral", "measures"))),
    "bilateral + reconstruction": ("comprer_bilateral", only("bilateral", "reconstruction")),
    "measures + reconstruction": ("comprer_bilateral", (MEASURES, *only("measures", "reconstruction"))),
    "bilateral, mirrored": ("comprer_bilateral", (*only("bilateral"), "images.mirror=left")),
}
PAIRS = (
    ("comprer", RANDOM),
    ("comprer", "simclr"),
    ("comprer", "supervised"),
    ("comprer", "bilateral"),
    ("comprer", "measures"),
    ("bilateral", RANDOM),
    ("bilateral", "simclr"),
    ("measures", RANDOM),
    ("simclr", RANDOM),
    ("supervised", RANDOM),
)


def prepare(work: Path, cell: Cell) -> Path:
    """Odir by group: age as the score, sex, side, and one label of each eye, as a file that a run can point to."""
    work.mkdir(parents=True, exist_ok=True)
    table = pd.read_csv(DATA / "odir" / "meta.csv", dtype=str)
    table["label"] = table["eye_label"].str.partition("|")[0]  # of diabetes with hypertension, diabetes
    table[["image", "group", "eye", "age", "sex", "label"]].to_csv(work / "odir.csv", index=False)
    roles = {"image": "image", "patient": "group", "laterality": "eye", "score:age": "age", "attribute:sex": "sex"}
    roles |= {"label:eye": "label"}
    split = {"val": 0.1, "test": 0.4}
    cohort = Cohort.open(work / "odir.csv", root=str(DATA / "odir"), roles=roles, missing={"age": ["1"]}, split=split)
    cohort.save(work / "cohort.yaml")
    return work / "cohort.yaml"


def fellows(cohort: Cohort, rows: NDArray[np.int64], part: str = "test") -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the left and right eyes of test patients with both, one pair a patient, the first of each side."""
    patient, side = cohort.encoded("patient")[rows], cohort.encoded("laterality")[rows]
    test = cohort.split[rows] == part
    first = [dict(reversed([*zip(patient[at], at, strict=True)])) for at in
             (np.flatnonzero(test & (side == code)) for code in (0, 1))]  # fmt: skip
    both = sorted(set(first[0]) & set(first[1]))
    return np.array([first[0][each] for each in both]), np.array([first[1][each] for each in both])


def compare(finished: Finished) -> Lines:
    """Every arm by probe and retrieval, on the seeds that all main arms have finished."""
    if not finished.seeds():
        return []
    arms = finished.comparable()
    runs = {(arm, seed): finished.run(arm, seed) for arm, seeds in arms.items() for seed in seeds}
    cache, cohort = finished.work / "cache", prepare(finished.work, {})
    found = embed_runs(runs, cohort, cache=cache, besides={"simclr": {RANDOM: twin}})
    patients = found.patients
    facts = {"cohort": "odir", "tier": finished.tier, "split_hash": found.cohort.split_hash}
    compared: dict[str, Any] = {"pairs": PAIRS, "same_seed": [("comprer", arm) for arm in ABLATIONS if arm in arms]}
    targets, _ = find_targets(found.cohort, "classify", "eye", min_patients=1)
    y_of = {each.name.partition("=")[2]: each.y[found.rows] for each in targets}
    train, val, test = parts_of(y_of["N"] >= 0, found.split)
    y_test = np.stack([y_of[name][test] for name in CLASSES], axis=1)
    lines = []
    for fraction in FRACTIONS:
        scores: Vectors = {}
        for arm, by_seed in found.vectors.items():
            for seed, x in zip(arms.get(arm, arms["simclr"]), by_seed, strict=True):
                parts = train[draw_labels(patients[train], y_of["N"][train], fraction, seed)], val, test
                columns = [probe(x, y_of[name], patients, parts, "classify", num_classes=2) for name in CLASSES]
                scores.setdefault(arm, []).append(np.stack(columns, axis=1))
        for target, which in (("N", [0]), ("D", [1]), ("macro", list(range(len(CLASSES))))):
            positive = len(np.unique(patients[test][(y_test[:, which] == 1).any(1)]))

            def metric(y: Any, p: Any, weights: Any = None, columns: list[int] = which) -> Any:
                return np.mean([auroc(y[:, each], p[:, each], weights) for each in columns], axis=0)

            lines += compare_arms(
                {**facts, "task": "classify", "target": target, "fraction": fraction, "metric": "auroc"}
                | {"num_positive_patients": positive},
                metric,
                y_test,
                patients[test],
                scores,
                **compared,
            )
    eyes = fellows(found.cohort, found.rows)
    return lines + retrieve({**facts, "target": "fellow eye"}, found.vectors, eyes, patients[eyes[0]], **compared)


STUDY = Study(
    name="odir",
    cells="comprer-odir-cells.jsonl",
    result="comprer-odir{tier}.json",
    arms=ARMS | ABLATIONS,
    ablations=tuple(ABLATIONS),
    # The paper's weight decay of 0.5 is for a pretrained transformer.
    keys=(
        "encoder.in_channels=3",
        "images.augment={preset: fundus}",
        "optimizer={kind: adamw, lr: 0.001, weight_decay: 0.0001}",
        "schedule={kind: cosine, warmup_epochs: 1, final: 0.001}",
        "training.health_epochs=null",
        "training.epochs=1000",
    ),
    tiers={
        "small": {
            "keys": ("encoder.backbone=r18w32", "images.size=64", "training.max_steps=400"),
            "recipes": {"comprer_bilateral": ("objectives.reconstruction.channels=128",)},
        },
        "full": {
            "keys": (
                "encoder.backbone=dinov2_base",
                "encoder.pretrained=true",
                "images.size=224",
                "optimizer.lr=0.00003",
                "training.precision=bf16",
                "training.max_steps=10000",
            ),
        },
    },
    prepare=prepare,
    compare=compare,
)

if __name__ == "__main__":
    main(__doc__, STUDY, work="runs/comprer_odir")
