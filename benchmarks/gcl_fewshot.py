"""GCL's claim where it can be decided: Dice at one and at six labelled patients, after a training that is long enough.

    python benchmarks/gcl_fewshot.py                 # U-Net of 8 base filters at 96 pixels, for a CPU
    python benchmarks/gcl_fewshot.py --tier full     # U-Net of 48 base filters at 128 pixels, for a GPU
    python benchmarks/gcl_fewshot.py --tier rehearsal

The paper (arXiv:2309.08888) claims a Dice of .729 after .598 at one labelled patient. Cohort, split and arms are those
of gcl.py: meta labels patient, position and phase; reconciled by a sum, by GradMitigator, and with GradFilter's pixel
objectives (GCL); the encoder as it was drawn beside them. First, validation patients say how long and at which rate a
network of random weights is best trained on the slices of the labelled patients; every arm is then trained so. Seed s
pretrains, draws the labelled patients and trains: five seeds. Test patients are looked at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import gcl
from bolus import SegmentSpec
from bolus.data.cohort.cohort import Cohort
from bolus.embedding.opening import open_encoder
from bolus.recipe import Recipe
from grid import read_cells, results_file
from judging import Question, compare_cells, measure, twin
from study import RANDOM, Arm, Cell, Finished, Grid, Lines, Study, main

LABELLED, RATES, SEEDS = (1, 6), (0.001, 0.003, 0.01), (0, 1, 2, 3, 4)
ARMS: dict[str, Arm] = {name: gcl.ARMS[name] for name in ("sum", "GradMitigator", "GCL")}
TIERS: dict[str, dict[str, Any]] = {
    "small": {
        "keys": ("images.size=96",), "backbone": "unet8", "dim": 128, "steps": 2000, "lengths": (500, 1000, 2000),
    },
    "full": {
        "keys": ("images.size=128", "training.precision=bf16"),
        "backbone": "unet48",
        "dim": 512,
        "steps": 9000,
        "lengths": (1000, 3000, 9000),
        "minutes": 8.0,
    },
    "rehearsal": {"keys": ("images.size=32",), "backbone": "unet4", "dim": 16, "steps": 2, "lengths": (2, 3)},
}  # fmt: skip


def sizes(recipe: Recipe, work: Path, cell: Cell) -> list[str]:
    """The encoder, heads and steps of a tier."""
    return gcl.sizes_of(recipe, TIERS[cell["tier"]])


def pretrained(work: Path, cell: Cell) -> Path:
    """The run whose encoder a cell trains on; any arm's states the preprocessing."""
    arm = "sum" if cell["arm"] == RANDOM else cell["arm"]
    return work / STUDY.folder({**cell, "arm": arm})


def curve(work: Path, cell: Cell) -> dict[str, Any]:
    """Dice of validation patients by random weights at a rate, after each length of training, from the first draw."""
    judged = open_encoder(pretrained(work, cell))
    cohort, found = Cohort.open(gcl.prepare(work, cell)), {}
    for steps in TIERS[cell["tier"]]["lengths"]:
        spec = SegmentSpec(steps=steps, lr=cell["lr"])
        said = gcl.few_shot(judged, twin(judged, 0), cohort, work / "cache", cell["labelled"], 0, spec, side="val")
        found[str(steps)] = round(float(np.nanmean(gcl.mean_over_classes(np.array(said["dice"], float)))), 4)
    return {"dice": found}


def chosen(cell: Cell) -> SegmentSpec:
    """The length and rate at which random weights do best on validation patients, from as many labelled ones."""
    lines = read_cells(results_file(CURVE.file, cell["tier"]))
    mine = [line for line in lines if line["cell"]["labelled"] == cell["labelled"]]
    assert len(mine) == len(RATES), "the curve is measured first"
    _, steps, lr = max(
        (dice, int(steps), line["cell"]["lr"]) for line in mine for steps, dice in line["result"]["dice"].items()
    )
    return SegmentSpec(steps=steps, lr=lr)


def judge(work: Path, cell: Cell) -> dict[str, Any]:
    """Dice of the test volumes: the mean over the classes of a volume, then over volumes."""
    judged = open_encoder(pretrained(work, cell))
    encoder = twin(judged, cell["seed"]) if cell["arm"] == RANDOM else judged.encoder
    cohort, spec = Cohort.open(gcl.prepare(work, cell)), chosen(cell)
    said = gcl.few_shot(judged, encoder, cohort, work / "cache", cell["labelled"], cell["seed"], spec)
    dice = gcl.mean_over_classes(np.array(said["dice"], float))
    found = measure({"dice": question(work, cell["labelled"])}, {"dice": dice})
    return {**found, "steps": spec.steps, "lr": spec.lr, "dice_pcl": said["dice_pcl"], "slices": said["slices"]}


def question(work: Path, labelled: int) -> Question:
    """What is asked of the test volumes."""
    target = f"{labelled} labelled patient{'' if labelled == 1 else 's'}"
    patients = gcl.test_patients(work)
    return Question(
        {"task": "segment", "target": target, "metric": "dice"}, gcl.mean_of, np.zeros(len(patients)), patients
    )


def compare(finished: Finished) -> Lines:
    """Every arm against random weights and its simpler forms, at each number of labelled patients."""
    cohort, found = Cohort.open(gcl.prepare(finished.work, {"tier": finished.tier})), Lines()
    for labelled in LABELLED:
        found += compare_cells(
            {"dice": question(finished.work, labelled)},
            [line for line in finished.lines(JUDGED) if line["cell"]["labelled"] == labelled],
            order=JUDGED.arms,
            others=(RANDOM, "sum", "GradMitigator"),
            seeds=SEEDS,
            facts={"cohort": "acdc", "labelled": labelled, "tier": finished.tier, "split_hash": cohort.split_hash},
        )
    return found


BY_LABELLED = tuple({"labelled": labelled} for labelled in LABELLED)
CURVE = Grid(
    "gcl-fewshot-curve{tier}.jsonl",
    curve,
    (),
    (RANDOM,),
    tuple({"labelled": labelled, "lr": lr} for labelled in LABELLED for lr in RATES),
)
JUDGED = Grid("gcl-fewshot-judged{tier}.jsonl", judge, (RANDOM, *ARMS), parts=BY_LABELLED, looks=True)
STUDY = Study(
    name="gcl from few patients",
    cells="gcl-fewshot-cells{tier}.jsonl",
    result="gcl-fewshot{tier}.json",
    arms=ARMS,
    keys=gcl.COMMON,
    tiers=TIERS,
    prepare=gcl.prepare,
    further=sizes,
    seeds=SEEDS,
    then=(CURVE, JUDGED),
    compare=compare,
)

if __name__ == "__main__":
    main(__doc__, STUDY, work="runs/gcl-fewshot")
