"""Test predictions of an evaluation, sample by sample, with draws of whole patients for intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bolus.evaluation.statistics.bootstrap import patient_bootstrap
from bolus.evaluation.statistics.results import RANDOM, TOLD_APART
from bolus.reporting.evidence import Evidence, Question

MOST = 6  # targets, or classes of one, that are shown
DRAWS = 400


@dataclass(frozen=True)
class Predicted:
    """The test predictions of one target by the judged encoder, and by its random-init twin.

    Args:
        task: `classify` or `regress`.
        target: its name, with the class where there are several.
        rows: int64 `[n]`, from 1.
        y: `[n]` targets: 0 and 1, or numbers.
        scores: `[n]` probabilities of 1, or numbers.
        twin: likewise, of random weights; None where there are none.
        weights: int32 `[B, n]`, how often each sample is drawn; of samples where patients are not known.
        joined: whether the rows are those of the run's table.
        later: int64 `[n]`, from 1, of pairs, whose earlier ones `rows` are; None where each sample is one row.
        unit: of numbers, where known.
    """

    task: str
    target: str
    rows: npt.NDArray[np.int64]
    y: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    twin: npt.NDArray[np.float64] | None
    weights: npt.NDArray[np.int32]
    joined: bool
    later: npt.NDArray[np.int64] | None = None
    unit: str = ""


def each_predicted(evidence: Evidence) -> list[Predicted]:
    """The predictions of every target of labels and numbers; what was asked twice comes once."""
    found: dict[tuple[str, str, bytes], Predicted] = {}
    for question in evidence.asked("classify", "regress"):
        for each in predicted(evidence, question):
            found.setdefault((each.task, each.target, each.scores.tobytes()), each)
    return list(found.values())


def predicted(evidence: Evidence, question: Question) -> list[Predicted]:
    """The test predictions of the first probe with the labels of all training patients, target by target."""
    frame = question.predictions
    if frame is None:
        return []
    frame = frame[(frame["split"] == "test") & (frame["fraction"] == 1.0) & (frame["repeat"] == 0)]
    order = ["row", "later_row"] if "later_row" in frame else ["row"]
    found: list[Predicted] = []
    for target, lines in frame.groupby("target", sort=False):
        own, results = lines[lines["encoder"] == question.encoder], question.of(str(target))
        if not len(own) or not results or results[0].task not in ("classify", "regress"):
            continue
        own = own[own["probe"] == own["probe"].iloc[0]].sort_values(order, kind="stable")
        twin = lines[(lines["encoder"] == RANDOM) & (lines["probe"] == own["probe"].iloc[0])]
        twin = twin.sort_values(order, kind="stable")
        same = len(twin) == len(own) and bool((twin[order].to_numpy() == own[order].to_numpy()).all())
        columns = [name for name in map(str, lines) if name.startswith("score") and own[name].notna().any()]
        rows = own["row"].to_numpy(np.int64)
        later = own["later_row"].to_numpy(np.int64) if "later_row" in own else None
        joined = is_joined(evidence, question, str(target))
        patients = np.asarray(patients_of(evidence)[rows - 1]) if joined else np.full(len(rows), -1)
        weights = patient_bootstrap(patients, draws=DRAWS, seed=0)
        for number, column in enumerate(columns):
            y, name = own["y"].to_numpy(np.float64), str(target)
            if len(columns) > 1:  # a probability for each class
                y, name = (y == number).astype(np.float64), f"{target}={column.partition(':')[2]}"
            scores, other = own[column].to_numpy(np.float64), twin[column].to_numpy(np.float64) if same else None
            found.append(
                Predicted(results[0].task, name, rows, y, scores, other, weights, joined, later, results[0].unit)
            )
    return found[:MOST]


def is_joined(evidence: Evidence, question: Question, target: str) -> bool:
    """Whether rows of a target's predictions are rows of the run's table, and that is at hand."""
    foreign = " elsewhere (" in target or target.startswith(TOLD_APART)
    if evidence.cohort is None or foreign or question.results[0].split_hash != evidence.run.record["split_hash"]:
        return False
    return question.rows_hash in ("", evidence.cohort.rows_hash)


def patients_of(evidence: Evidence) -> npt.NDArray[Any]:
    """Codes of the patients of the run's table `[rows]`."""
    assert evidence.cohort is not None
    return np.asarray(evidence.cohort.encoded("patient"))
