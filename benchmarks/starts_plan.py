"""What `bolus plan` should write for a pretrained start: its variants on odir, judged on validation patients alone.

    python benchmarks/starts_plan.py             # 128 pixels, 12,000 encoder passes a training, for a CPU

The cohort and the encoder of starts.py. A variant is the recipe that `bolus plan` writes, with other weights, batches
or learning rates, or with its objectives weighed against each other in another way: by learnt weights (uncertainty),
by equal norms of their gradients, or by gradients without conflict (UPGrad). Heads are fitted on four fifths of the
training patients, their strength is chosen on the rest, and the validation patients are judged: no test patient is
read. As they are few, only the two common classes, age and the fellow eye are asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import comprer_odir
from bolus.data.cohort.cohort import Cohort
from bolus.device import device
from bolus.embedding.opening import open_store, samples_of
from bolus.embedding.vectors import embed_samples
from bolus.evaluation.statistics.metrics import auroc, mae
from comprer_odir import CLASSES
from judging import Array, Question, both_ways, compare_cells, draw_labels, measure, probe
from planned_cohorts import parts_on
from starts import KEYS, START, classes_of, hits, opened, steps_of
from study import Arm, Cell, Finished, Grid, Lines, Study, main

PASSES = 12_000
FRACTIONS = (0.1, 1.0)
PLANNED = "planned"
SMALLER = "sampling={batch_size: 32, partners: 1}"
ONES = ("objectives.views.weight=1", "objectives.bilateral.weight=1")
ARMS: dict[str, Arm] = {
    PLANNED: ("", ()),
    "lr 1e-4": ("", ("optimizer.lr=0.0001",)),
    "lr 1e-3": ("", ("optimizer.lr=0.001",)),
    "weights 1": ("", ONES),
    "batches of 32": ("", (SMALLER,)),
    "no views": ("", ("objectives.views=null", "objectives.bilateral.weight=1", "images.views=1")),
    "no views, participants": (
        "",
        (
            "objectives.views=null",
            "objectives.bilateral.weight=1",
            "images.views=1",
            "sampling={participants: 32, batch_size: 64}",
        ),
    ),
    "learnt weights": ("", ("combiner.weighting=uncertainty",)),
    "equal norms": ("", ("combiner.kind=balanced",)),
    "UPGrad": ("", ("combiner={kind: torchjd, aggregator: UPGrad}",)),
}


def steps_for(recipe: Any, work: Path, cell: Cell) -> list[str]:
    """As many steps as the passes allow."""
    return steps_of(recipe, PASSES)


def parts(cohort: Cohort, known: Array) -> tuple[Array, Array, Array]:
    """Positions that heads are fitted on, their strength is chosen on, and that are judged."""
    return parts_on(known, cohort.split, cohort.encoded("patient"), "validation")


def judge(work: Path, cell: Cell) -> dict[str, Any]:
    """The frozen encoder on the validation patients."""
    judged = opened(work, cell)
    samples = samples_of(judged, Cohort.open(comprer_odir.prepare(work, cell)))
    store, cohort = open_store(judged, samples.cohort, cache=work / "cache"), samples.cohort
    x = embed_samples(judged.encoder.to(device()), store, samples, np.arange(len(samples)), keep=True)
    patients, y_of = cohort.encoded("patient"), classes_of(cohort)
    fit, held, val = parts(cohort, y_of["N"] >= 0)
    said: dict[str, Array] = {}
    for fraction in FRACTIONS:
        mine = fit[draw_labels(patients[fit], y_of["N"][fit], fraction, cell["seed"])]
        for name in CLASSES[:2]:
            said[f"{name} {fraction}"] = probe(x, y_of[name], patients, (mine, held, val), "classify", num_classes=2)
    age = cohort.encoded("score:age")
    said["age"] = probe(x, age, patients, parts(cohort, np.isfinite(age)), "regress")
    left, right = comprer_odir.fellows(cohort, np.arange(len(cohort)), "val")
    said["fellow eye"] = both_ways(x[left], x[right])
    return measure(questions(cohort), said)


def questions(cohort: Cohort) -> dict[str, Question]:
    """What is asked of the validation patients."""
    patients, y_of, found = cohort.encoded("patient"), classes_of(cohort), {}
    val = parts(cohort, y_of["N"] >= 0)[2]
    for fraction in FRACTIONS:
        for name in CLASSES[:2]:
            about = {"task": "classify", "target": name, "fraction": fraction, "metric": "auroc"}
            found[f"{name} {fraction}"] = Question(about, auroc, y_of[name][val], patients[val])
    age = cohort.encoded("score:age")
    aged = parts(cohort, np.isfinite(age))[2]
    found["age"] = Question({"task": "regress", "target": "age", "metric": "mae"}, mae, age[aged], patients[aged])
    left, _ = comprer_odir.fellows(cohort, np.arange(len(cohort)), "val")
    about = {"task": "retrieve", "target": "fellow eye", "metric": "top_5", "chance": 5 / len(left)}
    found["fellow eye"] = Question(about, hits, np.zeros(len(left)), patients[left])
    return found


def compare(finished: Finished) -> Lines:
    """Every variant less the plan as it is, and less the start."""
    cohort = Cohort.open(comprer_odir.prepare(finished.work, {}))
    facts = {"cohort": "odir", "tier": finished.tier, "split_hash": cohort.split_hash, "on": "validation"}
    compared: dict[str, Any] = {"others": (PLANNED, START), "seeds": STUDY.seeds, "order": JUDGED.arms}
    return compare_cells(questions(cohort), finished.lines(JUDGED), **compared, facts=facts)


JUDGED = Grid("starts-plan-judged{tier}.jsonl", judge, (*ARMS, START))
STUDY = Study(
    name="starts-plan",
    cells="starts-plan-cells{tier}.jsonl",
    result="starts-plan{tier}.json",
    arms=ARMS,
    keys=(*KEYS, "encoder.in_channels=3", "images.size=128", "images.augment={preset: fundus}"),
    tiers={"small": {"keys": ()}},
    seeds=(0,),
    prepare=comprer_odir.prepare,
    compare=compare,
    further=steps_for,
    then=(JUDGED,),
)

if __name__ == "__main__":
    main(__doc__, STUDY, work="runs/starts_plan")
