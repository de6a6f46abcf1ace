"""Cine cardiac MRI as volumes against slices: 3-D Dice from few labelled patients.

    python benchmarks/volumes_acdc.py                # unet8 at 64 pixels, unet3d8 at 16 x 64 x 64 voxels, for a CPU
    python benchmarks/volumes_acdc.py --tier gpu     # unet32 and unet3d32, trained ten times as long, for a GPU
    python benchmarks/volumes_acdc.py --tier rehearsal

Cohort: acdc as gcl.py crops it, halved to 64 x 64 pixels; 40 % of the patients for testing. Its files do not state the
spacing, so that a volume is its slices one upon another, and distances are in voxels. Both encoders are pretrained by
SimCLR, then each and its twin with random weights learn the masks of M patients: the same patients, rates and test
volumes for both, and steps that take about as long. Validation patients choose the learning rate of this training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

import gcl
from bolus.data.cohort.cohort import Cohort
from bolus.evaluation.segmentation.options import SegmentSpec
from bolus.evaluation.segmentation.segment import Segmentation, evaluate_segment
from bolus.recipe import Recipe
from grid import read_cells, results_file
from judging import Array, Question, compare_cells, measure
from study import RANDOM, Arm, Cell, Finished, Grid, Lines, Study, main

LABELLED, RATES = (6,), (0.001, 0.005)
ROLES = {**gcl.ROLES, "series": "series"}
ARMS: dict[str, Arm] = {
    "slices": ("simclr", ("images.unit=slice", "objectives.views.hidden_norm=false", "images.augment={preset: mri}")),
    "volumes": ("simclr_3d", ("images.augment={preset: brain_mri}", "sampling.chunk=null")),
}
TIERS: dict[str, dict[str, Any]] = {
    "small": {
        "keys": (),
        "slices": {"backbone": "unet8", "size": 64, "batch": 32, "steps": 450, "segment": 1000, "together": 10},
        "volumes": {
            "backbone": "unet3d8", "size": [16, 64, 64], "batch": 8, "steps": 100, "segment": 200,
            "together": 2,
        },
    },
    "gpu": {
        "keys": ("training.precision=bf16",),
        "slices": {"backbone": "unet32", "size": 64, "batch": 128, "steps": 4500, "segment": 15000, "together": 10},
        "volumes": {
            "backbone": "unet3d32", "size": [16, 64, 64], "batch": 32, "steps": 1000, "segment": 3000, "together": 4,
        },
        "minutes": 4.0,
    },
    "rehearsal": {
        "keys": (),
        "slices": {"backbone": "unet4", "size": 64, "batch": 4, "steps": 2, "segment": 2, "together": 2},
        "volumes": {"backbone": "unet3d4", "size": [16, 64, 64], "batch": 2, "steps": 2, "segment": 2, "together": 2},
    },
}  # fmt: skip


def prepare(work: Path, cell: Cell) -> Path:
    """The crops of gcl.py at half their size, the slices of a patient's phase as one series."""
    path = work / "volumes.yaml"
    if path.is_file():
        return path
    gcl.prepare(work, cell)
    table = pd.read_csv(work / "acdc.csv")
    for column, how in (("image", Image.Resampling.BOX), ("mask", Image.Resampling.NEAREST)):
        for name in table[column]:
            (work / "half" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.open(work / name).resize((64, 64), how).save(work / "half" / name)
    table = table.assign(series=table["patient"] + table["phase"])
    for column in ("image", "mask"):
        table[column] = "half/" + table[column]
    table.to_csv(work / "volumes.csv", index=False)
    Cohort.open(work / "volumes.csv", roles=ROLES, split={"val": 0.1, "test": 0.4}).save(path)
    return path


def size_of(recipe: Recipe, work: Path, cell: Cell) -> list[str]:
    """Encoder, box and steps of a way."""
    way = TIERS[cell["tier"]][cell["arm"]]
    return [
        f"encoder.backbone={way['backbone']}",
        f"images.size={way['size']}",
        f"sampling.batch_size={way['batch']}",
        f"training.max_steps={way['steps']}",
    ]


def segmented(work: Path, cell: Cell, cohort: Cohort, labelled: int, lr: float) -> Segmentation:
    """The test volumes by a trained encoder and by random weights."""
    way = TIERS[cell["tier"]][cell["arm"]]
    return evaluate_segment(
        work / STUDY.folder(cell),
        cohort,
        labelled=[labelled],
        repeats=1,
        spec=SegmentSpec(steps=way["segment"], batch_size=way["together"], lr=lr),
        seed=cell["seed"],
        out=work / "judged",
        cache=work / "cache",
        quiet=True,
    )


def rate(work: Path, cell: Cell) -> dict[str, Any]:
    """Dice of validation patients at a rate, from the most patients; test patients are left out."""
    cohort = Cohort.open(prepare(work, cell))
    side = pd.Series(cohort.split).map({"train": "train", "val": "test"})
    table = cohort.table.assign(split=side)[side.notna().to_numpy()].reset_index(drop=True)
    held = Cohort.open(table, roles={**ROLES, "split": "split"}, root=str(cohort.root))
    found = segmented(work, cell, held, max(LABELLED), cell["lr"])
    return {str(encoder): round(float(each["dice"].mean()), 4) for encoder, each in found.volumes.groupby("encoder")}


def chosen_rate(cell: Cell) -> float:
    """The rate at which random weights do best on validation patients."""
    tried = [line for line in read_cells(results_file(RATED.file, cell["tier"])) if line["cell"]["arm"] == cell["arm"]]
    assert len(tried) == len(RATES), "rates are measured first, on seed 0"
    return float(max(tried, key=lambda line: line["result"]["random-init"])["cell"]["lr"])


def judge(work: Path, cell: Cell) -> dict[str, Any]:
    """Dice of each encoder from M patients: the mean over the classes of a volume, then over volumes."""
    cohort = Cohort.open(prepare(work, cell))
    found = segmented(work, cell, cohort, cell["labelled"], chosen_rate(cell))
    rows = rows_of(found)
    said = {}
    for encoder, table in found.volumes.groupby("encoder"):
        by_volume = table.groupby("row")["dice"].mean().reindex(rows).to_numpy()
        name = RANDOM if encoder == "random-init" else "pretrained"
        said[name] = measure({"dice": question(cohort, cell["labelled"], rows)}, {"dice": by_volume})
    return said | {"volumes": len(rows), "rows": rows.tolist()}


def rows_of(found: Segmentation) -> Array:
    """The first rows, from 1, of the test volumes."""
    return np.unique(found.volumes["row"])


def question(cohort: Cohort, labelled: int, rows: Array) -> Question:
    """What is asked of the test volumes that begin in these rows, from 1."""
    target = f"{labelled} labelled patient{'' if labelled == 1 else 's'}"
    facts = {"task": "segment", "target": target, "labelled": labelled, "metric": "dice"}
    return Question(facts, gcl.mean_of, np.zeros(len(rows)), cohort.encoded("patient")[rows - 1])


def compare(finished: Finished) -> Lines:
    """Volumes against slices, and pretrained encoders against their twins, from as many patients."""
    cohort, found = Cohort.open(prepare(finished.work, {"tier": finished.tier})), Lines()
    every = finished.lines(JUDGED)
    for labelled in LABELLED:
        lines = [line for line in every if line["cell"]["labelled"] == labelled]
        if not lines:
            continue
        rows = np.array(lines[0]["result"]["rows"])
        assert all(line["result"]["rows"] == rows.tolist() for line in lines), "arms were judged on different volumes"
        cells = [
            {"cell": {"arm": f"{line['cell']['arm']}, {name}", "seed": line["cell"]["seed"]}, "result": each}
            for line in lines
            for name, each in line["result"].items()
            if name in (RANDOM, "pretrained")
        ]
        names = [f"{arm}, {name}" for arm in ARMS for name in ("pretrained", RANDOM)]
        found += compare_cells(
            {"dice": question(cohort, labelled, rows)},
            cells,
            order=names,
            others=(f"slices, {RANDOM}", "slices, pretrained", f"volumes, {RANDOM}"),
            seeds=STUDY.seeds,
            facts={"cohort": "acdc as volumes", "tier": finished.tier, "split_hash": cohort.split_hash},
        )
    return found


RATED = Grid("volumes-acdc-rates{tier}.jsonl", rate, (), tuple(ARMS), tuple({"lr": lr} for lr in RATES))
JUDGED = Grid(
    "volumes-acdc-judged{tier}.jsonl",
    judge,
    (*ARMS,),
    parts=tuple({"labelled": labelled} for labelled in LABELLED),
    looks=True,
)
STUDY = Study(
    name="acdc as volumes",
    cells="volumes-acdc-cells{tier}.jsonl",
    result="volumes-acdc{tier}.json",
    arms=ARMS,
    keys=(
        "optimizer={kind: adamw, lr: 0.001, weight_decay: 0.0001}",
        "schedule={kind: cosine, warmup_epochs: 1, final: 0.001}",
        "training.epochs=100000",
        "training.health_epochs=null",
    ),
    tiers=TIERS,
    prepare=prepare,
    compare=compare,
    further=size_of,
    then=(RATED, JUDGED),
)

if __name__ == "__main__":
    main(__doc__, STUDY, work="runs/volumes-acdc")
