"""Test predictions of an evaluation, sample by sample, with draws of whole patients for intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.evaluation.statistics.bootstrap import patient_bootstrap
from bolus.evaluation.statistics.results import RANDOM
from bolus.reporting.evidence import Evidence, Question

MOST = 6  # targets, or classes of one, that are shown
DRAWS = 400


@dataclass(frozen=True)
class Predicted:
    """The test predictions of one target by the judged encoder, and by its random-init twin.

    Args:
        target: its name, with the class where there are several.
        rows: int64 `[n]`, from 1.
        y: `[n]` targets: 0 and 1, or numbers.
        scores: `[n]` probabilities of 1, or numbers.
        twin: likewise, of random weights; None where there are none.
        weights: int32 `[B, n]`, how often each sample is drawn; of samples where patients are not known.
        unit: of numbers, where known.
    """

    target: str
    rows: npt.NDArray[np.int64]
    y: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    twin: npt.NDArray[np.float64] | None
    weights: npt.NDArray[np.int32]
    unit: str = ""


def each_predicted(evidence: Evidence) -> list[tuple[str, Question, Predicted]]:
    """The task, evaluation and predictions of every target of labels and numbers; what was asked twice comes once."""
    found: dict[tuple[str, str, bytes], tuple[str, Question, Predicted]] = {}
    for question in evidence.asked("classify", "regress"):
        for each in predicted(evidence, question):
            found.setdefault((question.task, each.target, each.scores.tobytes()), (question.task, question, each))
    return list(found.values())


def predicted(evidence: Evidence, question: Question) -> list[Predicted]:
    """The test predictions of the first probe with the labels of all training patients, target by target."""
    frame = question.predictions
    if frame is None:
        return []
    frame = frame[(frame["split"] == "test") & (frame["fraction"] == 1.0) & (frame["repeat"] == 0)]
    units = {each.target: each.unit for each in question.results if each.unit}
    found: list[Predicted] = []
    for target, lines in frame.groupby("target", sort=False):
        own = lines[lines["encoder"] == question.encoder]
        if not len(own):
            continue
        own = own[own["probe"] == own["probe"].iloc[0]].sort_values("row")
        twin = lines[(lines["encoder"] == RANDOM) & (lines["probe"] == own["probe"].iloc[0])].sort_values("row")
        same = len(twin) == len(own) and bool((twin["row"].to_numpy() == own["row"].to_numpy()).all())
        columns = [name for name in map(str, lines) if name.startswith("score") and own[name].notna().any()]
        rows, weights = own["row"].to_numpy(np.int64), _weights(evidence, question, own)
        for number, column in enumerate(columns):
            y = own["y"].to_numpy(np.float64)
            name = str(target)
            if len(columns) > 1:  # a probability for each class
                y, name = (y == number).astype(np.float64), f"{target}={column.partition(':')[2]}"
            other = twin[column].to_numpy(np.float64) if same else None
            found.append(Predicted(name, rows, y, own[column].to_numpy(np.float64), other, weights,
                                   units.get(str(target), "")))  # fmt: skip
    return found[:MOST]


def _weights(evidence: Evidence, question: Question, own: pd.DataFrame) -> npt.NDArray[np.int32]:
    """Draws of whole patients."""
    return patient_bootstrap(patients_of(evidence, question, own["row"].to_numpy(np.int64)), draws=DRAWS, seed=0)


def patients_of(evidence: Evidence, question: Question, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Codes of the patients of rows (from 1); each row a patient of its own where the table is not at hand."""
    same = question.results[0].split_hash == evidence.run.record["split_hash"]
    if evidence.cohort is None or not same or (len(rows) and rows.max() > len(evidence.cohort)):
        return np.full(len(rows), -1)
    return np.asarray(evidence.cohort.encoded("patient"))[rows - 1]
