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

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec, SplitSpec
from bolus.embedding.opening import Judged, open_encoder
from bolus.evaluation.statistics.arms import compare_arms
from bolus.evaluation.statistics.metrics import auroc
from bolus.evaluation.targets import find_targets
from grid import DATA
from judging import embed_runs, parts_of, patients_of_each, probe_all, twin
from study import RANDOM, Arm, Cell, Finished, Lines, Study, main

DROPPED = "mlvicx, context dropped"
ARMS: dict[str, Arm] = {"mlvicx": ("mlvicx", ()), "vicreg": ("vicreg", ()), "simclr": ("simclr", ())}
ABLATIONS: dict[str, Arm] = {
    "mlvicx, no context": ("mlvicx", ("encoder.context=false",)),
    "mlvicx, no levels": ("mlvicx", ("objectives.levels=null",)),
}

# What is compared, fixed beforehand; an ablation of one seed is compared with the same seed of mlvicx besides.
PAIRS = (
    ("mlvicx", RANDOM),
    ("vicreg", RANDOM),
    ("simclr", RANDOM),
    ("mlvicx", "vicreg"),
    ("mlvicx", "simclr"),
    (DROPPED, RANDOM),
    (DROPPED, "mlvicx"),
)
SAME_AS_ABNORMAL = ("findings=No Finding",)


def chest() -> Cohort:
    """nih1000 with its labels and cxr without, 40 % of the patients for testing."""
    nih = pd.read_csv(DATA / "nih1000" / "meta.csv", dtype=str)
    nih["image"], nih["patient"] = str(DATA / "nih1000") + "/" + nih["image"], "nih1000/" + nih["patient"]
    cxr = pd.read_csv(DATA / "cxr" / "meta.csv", dtype=str)
    cxr["image"], cxr["patient"] = str(DATA / "cxr") + "/" + cxr["image"], "cxr/" + cxr["group"]
    table = pd.concat([nih[["image", "patient", "findings", "abnormal"]], cxr[["image", "patient"]]], ignore_index=True)
    roles = {"image": "image", "patient": "patient", "label:abnormal": "abnormal", "label:findings": "findings"}
    return Cohort(table, CohortSpec(table="chest.csv", roles=roles, split=SplitSpec(val=0.1, test=0.4)))


def prepare_chest(work: Path, cell: Cell) -> Path:
    """`chest` as a file that a run can point to."""
    folder = work / "chest"
    folder.mkdir(parents=True, exist_ok=True)
    cohort = chest()
    cohort.table.to_csv(folder / "chest.csv", index=False)
    Cohort(cohort.table, cohort.spec, folder).save(folder / "cohort.yaml")
    return folder / "cohort.yaml"


def prepare_odir(work: Path, cell: Cell) -> Path:
    """Odir by group, 40 % of the patients for testing."""
    folder = work / "odir"
    folder.mkdir(parents=True, exist_ok=True)
    roles = {"image": "image", "patient": "group", "label:eye_label": "eye_label", "laterality": "eye"}
    cohort = Cohort.open(DATA / "odir" / "meta.csv", roles=roles, split={"val": 0.1, "test": 0.4})
    cohort.save(folder / "cohort.yaml")
    return folder / "cohort.yaml"


def context_dropped(judged: Judged, seed: int) -> Any:
    """The encoder without its context blocks."""
    assert judged.run is not None
    return open_encoder(judged.run.folder, keep_context=False).encoder


def compare(finished: Finished, questions: tuple[str, ...]) -> Lines:
    """Judge every arm on the cohort's questions, on the seeds that all main arms have finished."""
    study, lines = finished.study, []
    if 0 not in finished.seeds():
        return []
    runs = {(arm, seed): finished.run(arm, seed) for arm, seeds in finished.comparable().items() for seed in seeds}
    # VICReg and SimCLR share the plain architecture.
    besides = {"mlvicx": {DROPPED: context_dropped}, "vicreg": {RANDOM: twin}}
    cohort = study.prepare(finished.work, {})
    found = embed_runs(runs, cohort, cache=finished.work / "cache", besides=besides)
    targets = [target for each in questions for target in find_targets(found.cohort, "classify", each)[0]]
    for question in [target for target in targets if target.name not in SAME_AS_ABNORMAL]:
        y, patients = question.y[found.rows], found.patients
        parts = parts_of(y >= 0, found.split)
        test = parts[2]
        _, positive = patients_of_each(y[test], patients[test])
        facts = {"cohort": study.name, "tier": finished.tier, "target": question.name, "metric": "auroc"}
        lines += compare_arms(
            {**facts, "num_positive_patients": positive, "split_hash": found.cohort.split_hash},
            auroc,
            y[test],
            patients[test],
            probe_all(found.vectors, y, patients, parts, "classify"),
            pairs=PAIRS,
            same_seed=[(arm, "mlvicx") for arm in ABLATIONS],
            enough=positive,
        )
    return lines


def tiers(small_epochs: int, full_epochs: int) -> dict[str, dict[str, Any]]:
    """Sizes. Heads of 4096 cost twice the backbone at 64 pixels: 1024 there."""
    sizes = {
        "small": (1024, small_epochs, ("encoder.backbone=r18w32", "images.size=64", "sampling.batch_size=64")),
        "full": (4096, full_epochs, ("encoder.backbone=resnet18", "images.size=224", "sampling.batch_size=128")),
    }
    more = {"small": "encoder.stem_pool=false", "full": "training.precision=bf16"}
    found = {}
    for tier, (width, epochs, keys) in sizes.items():
        wide = f"objectives.global.width={width}"
        recipes = {"vicreg": (wide,), "mlvicx": (wide, f"objectives.levels.width={width}")}
        found[tier] = {"keys": (*keys, more[tier], f"training.epochs={epochs}"), "recipes": recipes}
    return found


# The same for every arm.
COMMON = (
    "optimizer={kind: adamw, lr: 0.001, weight_decay: 0.0001}",
    "schedule={warmup_epochs: 2, final: 0.001}",
    "training.health_epochs=null",
)
STUDIES = (
    Study(
        name="chest",
        cells="mlvicx-cells.jsonl",
        result="mlvicx-chest{tier}.json",
        arms=ARMS | ABLATIONS,
        ablations=tuple(ABLATIONS),
        keys=COMMON,
        tiers=tiers(30, 300),
        parts=({"cohort": "chest"},),
        prepare=prepare_chest,
        compare=partial(compare, questions=("abnormal", "findings")),
    ),
    Study(
        name="odir",
        cells="mlvicx-cells.jsonl",
        result="mlvicx-odir{tier}.json",
        arms=ARMS,
        keys=(*COMMON, "encoder.in_channels=3", "images.augment.preset=fundus"),
        tiers=tiers(6, 100),
        parts=({"cohort": "odir"},),
        prepare=prepare_odir,
        compare=partial(compare, questions=("eye_label=N",)),
    ),
)

if __name__ == "__main__":
    main(__doc__, *STUDIES, work="runs/mlvicx")
