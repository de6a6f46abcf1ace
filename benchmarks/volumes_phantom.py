"""The recipes of volumes on a phantom whose truth is known: does a score that drives the voxels come out?

    python benchmarks/volumes_phantom.py                 # r18w16_3d at 32 voxels, for a CPU
    python benchmarks/volumes_phantom.py --tier gpu      # resnet18_3d at 64 voxels, for a GPU
    python benchmarks/volumes_phantom.py --tier rehearsal

Heads in MR by three scanners, two visits a patient, a severity that grows (`bolus.make_volume_phantom`); 30 % of the
patients for testing. Every arm takes the same steps of the same number of views, with AdamW; keys that validation
patients choose stand in `AXES`. A ridge regression on frozen embeddings reads the severity, and the difference of two
readings how much it grew between the visits of a test patient.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bolus.data.cohort.cohort import Cohort
from bolus.embedding.opening import open_encoder
from bolus.evaluation.probing.fitting import fit_majority
from bolus.evaluation.statistics.metrics import METRICS
from bolus.phantom.volumes import make_volume_phantom
from bolus.recipe import Recipe
from judging import Array, Question, compare_cells, embed_cohort, measure, parts_of, probe, validation_error
from study import RANDOM, Arm, Cell, Finished, Grid, Lines, Study, main
from tuning import Axes

MEDIAN = "median"
DRAWN = 2  # seed of the phantom; on the first two it was found how long SupReMix takes, and what helps it
ARMS: dict[str, Arm] = {
    "supremix_3d": ("supremix_3d", ("objectives.supremix.label_tolerance=0.2",)),
    "learner_3d": ("learner_3d", ("images.views=2", "encoder.neck=null")),
    "regression": ("learner_3d", ("images.views=2", "encoder.neck=null", "objectives.contrast=null")),
    "simclr_3d": ("simclr_3d", ()),
}
RATES = {"optimizer.lr": (0.001, 0.003)}
AXES: dict[str, Axes] = {
    "supremix_3d": {
        "optimizer.lr": (0.003, 0.001),
        "objectives.supremix.window": (3.0, 1.0),
        "objectives.supremix.temperature": (0.1, 0.5),
        "sampling.partners": (2, 0),
    },
    "learner_3d": RATES | {"objectives.contrast.weight": (1.0, 0.3)},
    "regression": RATES,
    "simclr_3d": RATES,
}
TIERS: dict[str, dict[str, Any]] = {
    "small": {"keys": ("encoder.backbone=r18w16_3d",), "patients": 240, "size": 32, "batch": 32, "steps": 300},
    "gpu": {
        "keys": ("encoder.backbone=resnet18_3d", "training.precision=bf16"),
        "patients": 600,
        "size": 64,
        "batch": 32,
        "steps": 1500,
        "minutes": 4.0,
    },
    "rehearsal": {"keys": ("encoder.backbone=r18w16_3d",), "patients": 16, "size": 16, "batch": 4, "steps": 2},
}


def prepare(work: Path, cell: Cell) -> Path:
    """The phantom."""
    path = work / "phantom" / "cohort.yaml"
    if not path.is_file():
        tier = TIERS[cell.get("tier") or work.name]
        make_volume_phantom(path.parent, num_patients=tier["patients"], size=tier["size"], seed=DRAWN)
    return path


def size_of(recipe: Recipe, work: Path, cell: Cell) -> list[str]:
    """Boxes, batches and steps of a tier."""
    tier = TIERS[cell["tier"]]
    return [
        f"images.size={tier['size']}",
        f"images.spacing={192 / tier['size']}",  # mm: the scanners differ in theirs
        f"sampling.batch_size={tier['batch']}",
        f"training.max_steps={tier['steps']}",
    ]


def validated(work: Path, folder: Path) -> float:
    """What validation patients choose keys by."""
    return validation_error(folder, Cohort.open(prepare(work, {})), "severity", work / "cache")


def judge(work: Path, cell: Cell) -> dict[str, Any]:
    """The frozen encoder: the severity, and how much it grew."""
    cohort = Cohort.open(prepare(work, cell))
    y, patients = cohort.encoded("score:severity"), cohort.encoded("patient")
    train, val, test = parts_of(np.isfinite(y), cohort.split)
    if cell["arm"] == MEDIAN:
        said = fit_majority(y[train], "regress", 0).predict(np.empty((len(y), 0)))
    else:
        arm = {**cell, "arm": "simclr_3d"} if cell["arm"] == RANDOM else cell
        judged = open_encoder(work / STUDY.folder(arm))
        x = embed_cohort(judged, cohort, work / "cache", cell["seed"] if cell["arm"] == RANDOM else None)
        said = probe(x, y, patients, (train, val, np.arange(len(y))), "regress")
    first, second = visits_of(cohort)
    grown = said[second] - said[first]
    return measure(questions(cohort), {"severity": said[test], "severity, r2": said[test], "growth": grown})


def visits_of(cohort: Cohort) -> tuple[Array, Array]:
    """The rows of both visits of each test patient with a known severity at both."""
    y, patients, visit = cohort.encoded("score:severity"), cohort.encoded("patient"), cohort.encoded("visit")
    here = np.flatnonzero(np.isfinite(y) & (cohort.split == "test"))
    pairs = [here[patients[here] == each] for each in np.unique(patients[here])]
    both = np.array([rows[np.argsort(visit[rows])] for rows in pairs if len(rows) == 2])
    return both[:, 0], both[:, 1]


def questions(cohort: Cohort) -> dict[str, Question]:
    """What is asked of the test patients."""
    y, patients = cohort.encoded("score:severity"), cohort.encoded("patient")
    test = parts_of(np.isfinite(y), cohort.split)[2]
    first, second = visits_of(cohort)
    found = {}
    for metric in ("mae", "r2"):
        about = {"task": "regress", "target": "severity", "metric": metric}
        key = "severity" if metric == "mae" else "severity, r2"
        found[key] = Question(about, METRICS["regress"][metric], y[test], patients[test])
    about = {"task": "change", "target": "growth of the severity", "metric": "mae"}
    found["growth"] = Question(about, METRICS["regress"]["mae"], y[second] - y[first], patients[first])
    return found


def compare(finished: Finished) -> Lines:
    """Every arm less SimCLR, plain regression, random weights and the median."""
    cohort = Cohort.open(prepare(finished.work, {"tier": finished.tier}))
    return compare_cells(
        questions(cohort),
        finished.lines(JUDGED),
        order=JUDGED.arms,
        others=("simclr_3d", "regression", RANDOM, MEDIAN),
        seeds=STUDY.seeds,
        facts={"cohort": "phantom of volumes", "tier": finished.tier, "split_hash": cohort.split_hash},
    )


JUDGED = Grid("volumes-phantom-judged{tier}.jsonl", judge, (*ARMS, RANDOM, MEDIAN), looks=True)
STUDY = Study(
    name="phantom of volumes",
    cells="volumes-phantom-cells{tier}.jsonl",
    result="volumes-phantom{tier}.json",
    arms=ARMS,
    keys=(
        "optimizer={kind: adamw, lr: 0.001, weight_decay: 0.0001}",
        "schedule={kind: cosine, warmup_epochs: 1, final: 0.001}",
        "images.augment={preset: brain_mri}",
        "sampling.chunk=null",
        "training.epochs=100000",
        "training.health_epochs=null",
    ),
    tiers=TIERS,
    prepare=prepare,
    compare=compare,
    further=size_of,
    then=(JUDGED,),
    unit="volume",
    axes=AXES,
    validate=validated,
)

if __name__ == "__main__":
    main(__doc__, STUDY, work="runs/volumes-phantom")
