"""MLVICX against VICReg, SimCLR and random init at equal encoder passes, judged on held-out patients.

    python benchmarks/mlvicx.py                 # r18w32 at 64 pixels, for a CPU
    python benchmarks/mlvicx.py --tier full     # ResNet-18 at 224 pixels, for a GPU

Two cohorts: `chest` is nih1000 and cxr together (judged on nih1000's labels, cxr rows carry none), `odir` is fundus
photographs. Cells are trainings; finished ones are skipped. Afterwards every arm is judged on the same patients: linear
probe on frozen embeddings, its strength chosen on validation patients, the AUROC averaged over seeds within every
bootstrap draw of the test patients, differences between arms on the same draws, decided where the interval excludes 0
and every seed points the same way, never on fewer than 20 positive test patients; no correction for the number of
questions. Nothing was tuned on the test patients; optimiser and epochs were fixed beforehand and are the same for every
arm.
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

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec, SplitSpec
from bolus.embedding import embed_samples, open_encoder, open_store, samples_of
from bolus.evaluation.probing.fitting import Samples, fit_linear
from bolus.evaluation.statistics.arms import compare_arms
from bolus.evaluation.statistics.metrics import auroc
from bolus.evaluation.targets import find_targets
from bolus.provenance import machine, versions
from bolus.training.loop import pretrain
from grid import DATA, RESULTS, condense, read_cells, run_grid

SEEDS = (0, 1, 2)
CHEST_TARGETS = ("abnormal", "findings")

ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "mlvicx": ("mlvicx", ()),
    "vicreg": ("vicreg", ()),
    "simclr": ("simclr", ()),
    # Ablations, one seed.
    "mlvicx, no context": ("mlvicx", ("encoder.context=false",)),
    "mlvicx, no levels": ("mlvicx", ("objectives.levels=null",)),
}
ABLATIONS = ("mlvicx, no context", "mlvicx, no levels")

# What is compared, fixed beforehand; an ablation of one seed is compared with the same seed of mlvicx besides.
PAIRS = (
    ("mlvicx", "random init"),
    ("vicreg", "random init"),
    ("simclr", "random init"),
    ("mlvicx", "vicreg"),
    ("mlvicx", "simclr"),
    ("mlvicx, context dropped", "random init"),
    ("mlvicx, context dropped", "mlvicx"),
)
SAME_AS_ABNORMAL = ("findings=No Finding",)

# The same for every arm. Heads of 4096 cost twice the backbone at 64 pixels (METHODS): 1024 there.
COMMON = ("optimizer={kind: adamw, lr: 0.001, weight_decay: 0.0001}", "schedule={warmup_epochs: 2, final: 0.001}")
TIERS: dict[str, dict[str, Any]] = {
    "small": {
        "keys": ("encoder.backbone=r18w32", "encoder.stem_pool=false", "images.size=64", "sampling.batch_size=64"),
        "width": 1024,
        "epochs": {"chest": 30, "odir": 6},
    },
    "full": {
        "keys": ("encoder.backbone=resnet18", "images.size=224", "sampling.batch_size=128", "training.precision=bf16"),
        "width": 4096,
        "epochs": {"chest": 300, "odir": 100},
    },
}


def chest() -> Cohort:
    """nih1000 with its labels and cxr without, 40 % of the patients for testing."""
    nih = pd.read_csv(DATA / "nih1000" / "meta.csv", dtype=str)
    nih["image"], nih["patient"] = str(DATA / "nih1000") + "/" + nih["image"], "nih1000/" + nih["patient"]
    cxr = pd.read_csv(DATA / "cxr" / "meta.csv", dtype=str)
    cxr["image"], cxr["patient"] = str(DATA / "cxr") + "/" + cxr["image"], "cxr/" + cxr["group"]
    table = pd.concat([nih[["image", "patient", "findings", "abnormal"]], cxr[["image", "patient"]]], ignore_index=True)
    roles = {"image": "image", "patient": "patient", "label:abnormal": "abnormal", "label:findings": "findings"}
    return Cohort(table, CohortSpec(table="chest.csv", roles=roles, split=SplitSpec(val=0.1, test=0.4)))


def odir() -> Cohort:
    """Odir by group, 40 % of the patients for testing."""
    roles = {"image": "image", "patient": "group", "label:eye_label": "eye_label", "laterality": "eye"}
    return Cohort.open(DATA / "odir" / "meta.csv", roles=roles, split={"val": 0.1, "test": 0.4})


COHORTS = {"chest": chest, "odir": odir}


def prepared(name: str, work: Path) -> Path:
    """The cohort as a file that a run can point to."""
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    cohort = COHORTS[name]()
    if name == "chest":
        cohort.table.to_csv(folder / "chest.csv", index=False)
        cohort = Cohort(cohort.table, cohort.spec, folder)
    cohort.save(folder / "cohort.yaml")
    return folder / "cohort.yaml"


def run_folder(work: Path, cohort: str, arm: str, seed: int) -> Path:
    """Where a cell's run lies."""
    return work / f"{cohort}-{arm.replace(', ', '-').replace(' ', '-')}-{seed}"


def train(work: Path, tier: str, cohort: str, arm: str, seed: int) -> dict[str, Any]:
    """One cell."""
    recipe, changes = ARMS[arm]
    spec = TIERS[tier]
    keys = [*spec["keys"], *COMMON, f"training.epochs={spec['epochs'][cohort]}", f"training.seed={seed}", *changes]
    keys += ["training.health_epochs=null"]
    if recipe != "simclr":
        keys.insert(0, f"objectives.global.width={spec['width']}")
    if recipe == "mlvicx" and "objectives.levels=null" not in changes:
        keys.insert(0, f"objectives.levels.width={spec['width']}")
    if cohort == "odir":
        keys += ["encoder.in_channels=3", "images.augment.preset=fundus"]
    folder = run_folder(work, cohort, arm, seed)
    run = pretrain(
        prepared(cohort, work), recipe=recipe, out=folder, overrides=keys, resume=folder.exists(), cache=work / "cache"
    )
    return condense(run)


def scores(work: Path, name: str, arms: list[str], seeds: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Embeddings of every arm and seed, and of random-init twins; `mlvicx` also without its context blocks."""
    cohort = Cohort.open(prepared(name, work))
    found: dict[str, list[np.ndarray]] = {}
    rows = None
    for arm in arms:
        for seed in seeds[arm]:
            folder = run_folder(work, name, arm, seed)
            judged = open_encoder(folder)
            store, samples = open_store(judged, cohort, cache=work / "cache"), samples_of(judged, cohort)
            rows = np.flatnonzero(store.readable)  # an image is a row
            found.setdefault(arm, []).append(embed_samples(judged.encoder, store, samples, rows))
            if arm == "mlvicx":
                plain = open_encoder(folder, keep_context=False).encoder
                found.setdefault("mlvicx, context dropped", []).append(embed_samples(plain, store, samples, rows))
            if arm == "vicreg":  # the plain architecture that VICReg and SimCLR share
                found.setdefault("random init", []).append(
                    embed_samples(judged.random_twin(seed), store, samples, rows)
                )
    return {"cohort": cohort, "rows": rows, "embeddings": found}


def compare(work: Path, tier: str, name: str, done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Judge every arm on the cohort's questions, on the seeds that all main arms have finished."""
    have = {arm: {c["seed"] for c in done if (c["tier"], c["cohort"], c["arm"]) == (tier, name, arm)} for arm in ARMS}
    common = tuple(sorted(set.intersection(*(have[arm] for arm in ARMS if arm not in ABLATIONS))))
    if 0 not in common:
        return []
    seeds = {arm: common if arm not in ABLATIONS else (0,) for arm in ARMS}
    found = scores(work, name, [arm for arm in ARMS if arm not in ABLATIONS or 0 in have[arm]], seeds)
    cohort, rows = found["cohort"], found["rows"]
    questions = ["eye_label=N"] if name == "odir" else list(CHEST_TARGETS)
    lines = []
    targets = [target for each in questions for target in find_targets(cohort, "classify", each)[0]]
    for question in [target for target in targets if target.name not in SAME_AS_ABNORMAL]:
        y, split, patients = question.y[rows], cohort.split[rows], cohort.encoded("patient")[rows]
        known = y >= 0
        part = {side: known & (split == side) for side in ("train", "val", "test")}
        test = part["test"]
        predictions: dict[str, list[np.ndarray]] = {}
        for arm, all_vectors in found["embeddings"].items():
            for x in all_vectors:
                train, val = (Samples(x[side], y[side], patients[side]) for side in (part["train"], part["val"]))
                predictions.setdefault(arm, []).append(fit_linear(train, val, "classify").predict(x[test]))
        positive = len(np.unique(patients[test & (y == 1)]))
        facts = {
            "cohort": name,
            "tier": tier,
            "target": question.name,
            "metric": "auroc",
            "num_positive_patients": positive,
            "split_hash": cohort.split_hash,
        }
        lines += compare_arms(
            facts,
            auroc,
            y[test],
            patients[test],
            predictions,
            pairs=PAIRS,
            same_seed=[(arm, "mlvicx") for arm in ABLATIONS],
            enough=positive,
        )
    return lines


def main() -> None:
    """Train what is missing, then compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tier", choices=sorted(TIERS), default="small")
    parser.add_argument("--work", type=Path, default=Path("runs/mlvicx"))
    parser.add_argument("--compare-only", action="store_true")
    parser.add_argument("--cohorts", default=",".join(COHORTS), help="which to judge")
    arguments = parser.parse_args()
    cells = [
        {"tier": arguments.tier, "cohort": c, "arm": a, "seed": s}
        for s in SEEDS
        for c in COHORTS
        for a in ARMS
        if a not in ABLATIONS
    ]
    cells[6:6] = [{"tier": arguments.tier, "cohort": "chest", "arm": arm, "seed": 0} for arm in ABLATIONS]
    path = RESULTS / "mlvicx-cells.jsonl"
    work = arguments.work / arguments.tier
    if not arguments.compare_only:
        run_grid(path, cells, lambda **cell: train(work, **cell))
    done = [line["cell"] for line in read_cells(path)]
    suffix = "" if arguments.tier == "small" else f"-{arguments.tier}"
    for name in arguments.cohorts.split(","):
        record = {"command": f"python {shlex.join(sys.argv)}", "machine": machine(), "versions": versions()}
        lines = compare(work, arguments.tier, name, done)
        text = json.dumps({**record, "results": lines}, indent=1)
        (RESULTS / f"mlvicx-{name}{suffix}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
