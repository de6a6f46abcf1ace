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

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from bolus.data.cohort.cohort import Cohort
from bolus.embedding import embed_samples, open_encoder, open_store, samples_of
from bolus.evaluation.probing.fitting import Samples, fit_linear
from bolus.evaluation.probing.probe import draw_patients
from bolus.evaluation.retrieval.ranking import ranks
from bolus.evaluation.statistics.arms import compare_arms
from bolus.evaluation.statistics.metrics import auroc
from bolus.evaluation.targets import find_targets
from bolus.provenance import machine, versions
from bolus.training.loop import pretrain
from grid import DATA, RESULTS, condense, read_cells, run_grid

SEEDS = (0, 1, 2)
RANDOM = "random init"
CLASSES = ("N", "D", "G", "C", "A", "M")  # every class but hypertension and "other"
FRACTIONS = (0.01, 0.1, 1.0)
LOSSES = ("bilateral", "measures", "reconstruction")


def _only(*losses: str) -> tuple[str, ...]:
    return tuple(f"objectives.{name}=null" for name in LOSSES if name not in losses)


MEASURES = "objectives.measures.targets=[score:age, attribute:sex]"
ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "comprer": ("comprer_bilateral", (MEASURES,)),
    "bilateral": ("comprer_bilateral", _only("bilateral")),
    "measures": ("comprer_bilateral", (MEASURES, *_only("measures"))),
    "simclr": ("simclr", ("sampling={batch_size: 64, partners: 0}",)),
    "supervised": (
        "supervised",
        ("images.views=1", "sampling={batch_size: 128, partners: 0}", "objectives.predict.targets=[label:eye]"),
    ),
}
ABLATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "reconstruction": ("comprer_bilateral", _only("reconstruction")),
    "bilateral + measures": ("comprer_bilateral", (MEASURES, *_only("bilateral", "measures"))),
    "bilateral + reconstruction": ("comprer_bilateral", _only("bilateral", "reconstruction")),
    "measures + reconstruction": ("comprer_bilateral", (MEASURES, *_only("measures", "reconstruction"))),
    "bilateral, mirrored": ("comprer_bilateral", (*_only("bilateral"), "images.mirror=left")),
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

# The same for every arm. The paper's weight decay of 0.5 is for a pretrained transformer.
COMMON = (
    "encoder.in_channels=3",
    "images.augment={preset: fundus}",
    "optimizer={kind: adamw, lr: 0.001, weight_decay: 0.0001}",
    "schedule={kind: cosine, warmup_epochs: 1, final: 0.001}",
    "training.health_epochs=null",
    "training.epochs=1000",
)
TIERS: dict[str, dict[str, Any]] = {
    "small": {
        "keys": ("encoder.backbone=r18w32", "images.size=64"),
        "steps": 400,
        "comprer": ("objectives.reconstruction.channels=128",),
    },
    "full": {
        "keys": (
            "encoder.backbone=dinov2_base",
            "encoder.pretrained=true",
            "images.size=224",
            "optimizer.lr=0.00003",
            "training.precision=bf16",
        ),
        "steps": 10000,
        "comprer": (),
    },
}


def prepared(work: Path) -> Path:
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


def run_folder(work: Path, arm: str, seed: int) -> Path:
    """Where a cell's run lies."""
    return work / f"{arm.replace(', ', '-').replace(' + ', '-').replace(' ', '-')}-{seed}"


def train(work: Path, tier: str, arm: str, seed: int) -> dict[str, Any]:
    """One cell."""
    recipe, changes = (ARMS | ABLATIONS)[arm]
    spec = TIERS[tier]
    dropped = [key.removesuffix("=null") for key in changes if key.endswith("=null")]
    keys = [*COMMON, *spec["keys"], f"training.max_steps={spec['steps']}", f"training.seed={seed}"]
    if recipe.startswith("comprer"):
        keys += [key for key in spec["comprer"] if not any(key.startswith(f"{name}.") for name in dropped)]
    folder = run_folder(work, arm, seed)
    return condense(
        pretrain(
            prepared(work),
            recipe=recipe,
            out=folder,
            overrides=[*keys, *changes],
            resume=folder.exists(),
            cache=work / "cache",
            quiet=True,
        )
    )


def embed_arms(work: Path, arms: dict[str, list[int]]) -> dict[str, Any]:
    """Embeddings of every arm and seed, of random-init twins, and what stands in the table beside them."""
    found: dict[str, list[NDArray[Any]]] = {}
    for arm, seeds in arms.items():
        for seed in seeds:
            judged = open_encoder(run_folder(work, arm, seed))
            samples = samples_of(judged, Cohort.open(prepared(work)))
            store = open_store(judged, samples.cohort, cache=work / "cache")
            rows = np.flatnonzero(store.readable)  # an image is a row
            found.setdefault(arm, []).append(embed_samples(judged.encoder, store, samples, rows))
            if arm == "simclr":
                twin = judged.random_twin(seed)
                found.setdefault(RANDOM, []).append(embed_samples(twin, store, samples, rows))
    return {"cohort": samples.cohort, "rows": rows, "embeddings": found}


def fellows(cohort: Cohort, rows: NDArray[np.int64], part: str = "test") -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the left and right eyes of test patients with both, one pair a patient, the first of each side."""
    patient, side = cohort.encoded("patient")[rows], cohort.encoded("laterality")[rows]
    test = cohort.split[rows] == part
    first = [dict(reversed([*zip(patient[at], at, strict=True)])) for at in
             (np.flatnonzero(test & (side == code)) for code in (0, 1))]  # fmt: skip
    both = sorted(set(first[0]) & set(first[1]))
    return np.array([first[0][each] for each in both]), np.array([first[1][each] for each in both])


def _draw(patients: NDArray[Any], y: NDArray[Any], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Which training rows have their labels in the draw of a seed."""
    return draw_patients(patients, y, "classify", fractions=(fraction,), repeats=1, seed=seed)[fraction, 0]


def compare(work: Path, tier: str, done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every arm by probe and retrieval, on the seeds that all main arms have finished."""
    have = {(cell["arm"], cell["seed"]) for cell in done if cell["tier"] == tier}
    seeds = [seed for seed in SEEDS if all((arm, seed) in have for arm in ARMS)]
    if not seeds:
        return []
    arms = dict.fromkeys(ARMS, seeds) | {arm: [0] for arm in ABLATIONS if (arm, 0) in have}
    found = embed_arms(work, arms)
    cohort, rows = found["cohort"], found["rows"]
    patients, split = cohort.encoded("patient")[rows], cohort.split[rows]
    facts = {"cohort": "odir", "tier": tier, "split_hash": cohort.split_hash}
    targets = {each.name.partition("=")[2]: each for each in find_targets(cohort, "classify", "eye", min_patients=1)[0]}
    y_of = {name: targets[name].y[rows] for name in CLASSES}
    known = next(iter(y_of.values())) >= 0
    train, val, test = (np.flatnonzero(known & (split == side)) for side in ("train", "val", "test"))
    y_test = np.stack([y_of[name][test] for name in CLASSES], axis=1)
    pairs, same_seed = PAIRS, [("comprer", arm) for arm in ABLATIONS if arm in found["embeddings"]]
    lines = []
    for fraction in FRACTIONS:
        labelled = {seed: train[_draw(patients[train], y_of["N"][train], fraction, seed)] for seed in SEEDS}
        scores: dict[str, list[NDArray[Any]]] = {}
        for arm, by_seed in found["embeddings"].items():
            for seed, x in zip(arms.get(arm, seeds), by_seed, strict=True):
                columns = []
                for name in CLASSES:
                    fit, held = (Samples(x[at], y_of[name][at], patients[at]) for at in (labelled[seed], val))
                    head = fit_linear(fit, held, "classify", num_classes=2)
                    columns.append(head.predict(x[test]))
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
                pairs=pairs,
                same_seed=same_seed,
            )
    left, right = fellows(cohort, rows)
    found_ranks = {
        arm: [
            np.stack([ranks(torch.from_numpy(a), torch.from_numpy(b)).numpy() for a, b in
                      ((x[left], x[right]), (x[right], x[left]))], axis=1)
            for x in by_seed
        ]
        for arm, by_seed in found["embeddings"].items()
    }  # fmt: skip
    for k in (1, 5, 10):

        def hits(y: Any, p: Any, weights: Any = None, k: int = k) -> Any:
            hit = (p <= k).mean(1)
            return hit.mean() if weights is None else (weights @ hit) / weights.sum(1)

        lines += compare_arms(
            {**facts, "task": "retrieve", "target": "fellow eye", "metric": f"top_{k}", "chance": k / len(left)},
            hits,
            np.zeros(len(left)),
            patients[left],
            found_ranks,
            pairs=pairs,
            same_seed=same_seed,
        )
    return lines


def main() -> None:
    """Train what is missing, then compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tier", choices=sorted(TIERS), default="small")
    parser.add_argument("--work", type=Path, default=Path("runs/comprer_odir"))
    parser.add_argument("--compare-only", action="store_true")
    arguments = parser.parse_args()
    tier, work = arguments.tier, arguments.work / arguments.tier
    cells = [{"tier": tier, "arm": arm, "seed": seed} for seed in SEEDS for arm in ARMS]
    cells[len(ARMS) : len(ARMS)] = [{"tier": tier, "arm": arm, "seed": 0} for arm in ABLATIONS]
    path = RESULTS / "comprer-odir-cells.jsonl"
    if not arguments.compare_only:
        run_grid(path, cells, lambda **cell: train(work, **cell))
    record = {"command": f"python {shlex.join(sys.argv)}", "machine": machine(), "versions": versions()}
    done = [line["cell"] for line in read_cells(path)]
    text = json.dumps({**record, "results": compare(work, tier, done)}, indent=1)
    (RESULTS / f"comprer-odir{'' if tier == 'small' else f'-{tier}'}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
