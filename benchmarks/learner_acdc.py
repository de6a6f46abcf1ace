"""LEARNER where change within a patient is known exactly: the left ventricle from end-diastole to end-systole.

    python benchmarks/learner_acdc.py                 # r18w32 at 64 pixels, for a CPU
    python benchmarks/learner_acdc.py --tier full     # ResNet-18 at 128 pixels, for a GPU
    python benchmarks/learner_acdc.py --tier rehearsal

The paper (arXiv:2411.01144) claims that contrast weighted by differences of a score between patients teaches change
within a patient. So each training patient has slices of one phase only, drawn at random, with the area of the blood
pool in % of the slice as the score: nobody's change is ever seen. For test patients, the same slice at both phases is a
pair: by how much the pool changes is the difference of two readings of a ridge regression on frozen embeddings, fitted
to the scores of training patients; whether it shrinks, stays or grows follows from that difference and a tolerance of
`TOLERANCE`, with a threshold that validation patients choose. Pairs stand in both orders. Cohort and split are those of
supremix_acdc.py. Arms are those of the paper, and two weightings of ours. Keys that validation patients choose stand in
`AXES`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

import gcl
import supremix_acdc
from bolus.data.cohort.cohort import Cohort
from bolus.embedding.opening import open_encoder
from bolus.evaluation.statistics.metrics import METRICS
from judging import Array, Question, compare_cells, embed_cohort, measure, parts_of, probe
from study import RANDOM, Arm, Cell, Finished, Grid, Lines, Study, main
from tuning import Axes

TOLERANCE = 0.25  # % of the slice: less is no change
STAYS = "no change"

_SLICES = ("images.unit=slice", "encoder.temporal_shift=null")
_SCORE = ("objectives.score.targets=[score:lv]", "objectives.contrast.target=score:lv")


def _weighted(weighting: str) -> Arm:
    return "learner", (*_SLICES, *_SCORE, f"objectives.contrast.weighting={weighting}")


ARMS: dict[str, Arm] = {
    "mse": ("learner", (*_SLICES, _SCORE[0], "objectives.contrast=null")),
    "mse + unweighted": _weighted("none"),
    "mse + linear": _weighted("linear"),
    "mse + quantile": _weighted("quantile"),
    "mse + learned": _weighted("learned"),
}
RATES = {"optimizer.lr": (0.001, 0.003, 0.0003, 0.01)}
_CONTRAST = RATES | {
    "objectives.contrast.weight": (1.0, 0.3),
    "objectives.contrast.temperature": (0.1, 0.5),
}
AXES: dict[str, Axes] = {arm: RATES if arm == "mse" else _CONTRAST for arm in ARMS}
TIERS: dict[str, dict[str, Any]] = {
    "small": {"keys": ("encoder.backbone=r18w32", "images.size=64"), "steps": 500},
    "full": {
        "keys": ("encoder.backbone=resnet18", "images.size=128", "training.precision=bf16"),
        "steps": 5000,
        "minutes": 3.0,
    },
    "rehearsal": {"keys": ("encoder.backbone=r18w32", "images.size=32"), "steps": 2},
}


class Pairs(NamedTuple):
    """The same slice at two times, in both orders."""

    earlier: Array  # rows
    later: Array
    change: Array  # of the score
    patients: Array


def prepare(work: Path, cell: Cell) -> Path:
    """The slices of supremix_acdc.py, without one phase of each training patient."""
    path = work / "phases.yaml"
    if path.is_file():
        return path
    whole = Cohort.open(supremix_acdc.prepare(work, cell))
    table, split = pd.read_csv(work / "scores.csv"), whole.split
    people = np.unique(table["patient"])
    kept = dict(zip(people, np.random.default_rng(0).choice(["ED", "ES"], len(people)), strict=True))
    seen = (split != "train") | (table["phase"] == table["patient"].map(kept)).to_numpy()
    table[seen].to_csv(work / "phases.csv", index=False)
    roles = {**gcl.ROLES, "score:lv": "lv"}
    Cohort.open(work / "phases.csv", roles=roles, split={"val": 0.15, "test": 0.4}).save(path)
    return path


def pairs_of(cohort: Cohort, side: str) -> Pairs:
    """Slices of one place in one patient, at both phases."""
    table = pd.DataFrame(
        {
            "row": np.arange(len(cohort)),
            "patient": cohort.encoded("patient"),
            "slice": cohort.encoded("order"),
            "phase": cohort.table["phase"].to_numpy(),
        }
    )[cohort.split == side]
    both = table[table["phase"] == "ED"].merge(table[table["phase"] == "ES"], on=["patient", "slice"])
    first, second, y = both["row_x"].to_numpy(), both["row_y"].to_numpy(), cohort.encoded("score:lv")
    earlier, later = np.r_[first, second], np.r_[second, first]
    return Pairs(earlier, later, y[later] - y[earlier], np.tile(both["patient"].to_numpy(), 2))


def direction(change: Array, tolerance: float = TOLERANCE) -> Array:
    """0 shrinks, 1 stays, 2 grows.

    >>> direction(np.array([-1.0, 0.1, 0.3])).tolist()
    [0, 1, 2]
    """
    return 1 + (change > tolerance).astype(np.int64) - (change < -tolerance)


def read(x: Array, cohort: Cohort) -> dict[str, Array]:
    """What embeddings say of validation and test pairs, by a ridge regression of the score of single slices."""
    y, patients = cohort.encoded("score:lv"), cohort.encoded("patient")
    train, val, _ = parts_of(np.isfinite(y), cohort.split)
    said = probe(x, y, patients, (train, val, np.arange(len(y))), "regress")
    return {
        side: said[pairs.later] - said[pairs.earlier] for side in ("val", "test") for pairs in [pairs_of(cohort, side)]
    }


def threshold_of(said: Array, change: Array) -> float:
    """The tolerance of what is read that tells the three classes of validation pairs apart best."""
    truth = direction(change)
    tried = np.unique(np.abs(said))
    scores = [
        np.mean([(direction(said, at) == each)[truth == each].mean() for each in np.unique(truth)]) for at in tried
    ]
    return float(tried[int(np.argmax(scores))])


def validated(work: Path, folder: Path) -> float:
    """The error of the change of validation pairs."""
    cohort = Cohort.open(prepare(work, {}))
    said = read(embed_cohort(open_encoder(folder), cohort, work / "cache"), cohort)["val"]
    return float(METRICS["regress"]["mae"](pairs_of(cohort, "val").change, said))


def judge(work: Path, cell: Cell) -> dict[str, Any]:
    """The frozen encoder on the pairs of test patients."""
    cohort = Cohort.open(prepare(work, cell))
    val, test = (pairs_of(cohort, side) for side in ("val", "test"))
    if cell["arm"] == STAYS:
        said = {"val": np.zeros(len(val.change)), "test": np.zeros(len(test.change))}
    else:
        arm = {**cell, "arm": "mse"} if cell["arm"] == RANDOM else cell
        judged = open_encoder(work / STUDY.folder(arm))
        seed = cell["seed"] if cell["arm"] == RANDOM else None
        said = read(embed_cohort(judged, cohort, work / "cache", seed), cohort)
    told = direction(said["test"], threshold_of(said["val"], val.change))
    answers = {"mae": said["test"], "r2": said["test"], "spearman": said["test"], "balanced_accuracy": np.eye(3)[told]}
    return measure(questions(cohort), answers)


def ranked(y: Array, p: Array, weights: Any = None) -> Any:
    """The rank correlation; 0 of answers that are all the same."""
    return np.nan_to_num(METRICS["regress"]["spearman"](y, p, weights))


def questions(cohort: Cohort) -> dict[str, Question]:
    """What is asked of the pairs of the test patients."""
    pairs = pairs_of(cohort, "test")
    found = {}
    for metric in ("mae", "r2", "spearman"):
        about = {"task": "change", "target": "lv, ED to ES", "metric": metric}
        measured = ranked if metric == "spearman" else METRICS["regress"][metric]
        found[metric] = Question(about, measured, pairs.change, pairs.patients)
    truth = direction(pairs.change)
    about = {
        "task": "change",
        "target": "lv, ED to ES",
        "metric": "balanced_accuracy",
        "classes": np.bincount(truth, minlength=3).tolist(),
    }
    found["balanced_accuracy"] = Question(about, METRICS["multiclass"]["balanced_accuracy"], truth, pairs.patients)
    return found


def compare(finished: Finished) -> Lines:
    """Every arm less the paper's ancestors, random weights and no change."""
    cohort = Cohort.open(prepare(finished.work, {}))
    return compare_cells(
        questions(cohort),
        finished.lines(JUDGED),
        order=JUDGED.arms,
        others=("mse", "mse + unweighted", "mse + linear", RANDOM, STAYS),
        seeds=STUDY.seeds,
        facts={"cohort": "acdc", "tier": finished.tier, "split_hash": cohort.split_hash},
    )


JUDGED = Grid("learner-acdc-judged{tier}.jsonl", judge, (*ARMS, RANDOM, STAYS), looks=True)
STUDY = Study(
    name="learner on acdc",
    cells="learner-acdc-cells{tier}.jsonl",
    result="learner-acdc{tier}.json",
    arms=ARMS,
    keys=(
        "images.augment={preset: mri}",
        "sampling={batch_size: 64, partners: 1}",
        "schedule={kind: cosine, warmup_epochs: 1, final: 0.001}",
        "training.epochs=100000",
        "training.health_epochs=null",
    ),
    tiers=TIERS,
    prepare=prepare,
    compare=compare,
    further=lambda recipe, work, cell: [f"training.max_steps={TIERS[cell['tier']]['steps']}"],
    then=(JUDGED,),
    axes=AXES,
    validate=validated,
)

if __name__ == "__main__":
    main(__doc__, STUDY, work="runs/learner-acdc")
