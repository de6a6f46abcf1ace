"""What predictions of probes say of single test samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from bolus.evaluation.statistics.answers import ARM, Answer, mean_auroc
from bolus.evaluation.statistics.metrics import FloatArray, IntArray, metrics_of
from bolus.evaluation.statistics.results import MAJORITY, RANDOM
from bolus.evaluation.statistics.verdict import ENOUGH_PATIENTS


def answers_of_probes(
    frame: pd.DataFrame, patient: Callable[[pd.Series[Any]], IntArray], encoder: str, *, task: str, target: str
) -> list[Answer]:
    """Each target, by the first probe; of several findings a sample their mean comes first.

    Args:
        frame: predictions.parquet of an evaluation.
        patient: rows of the table (from 1) -> their patients.
        encoder: the judged encoder's name.
        task: `classify` or `regress`; the amount of a change is always a number.
        target: what was asked.
    """
    frame = frame[(frame["split"] == "test") & (frame["fraction"] == 1.0)]
    frame = frame[~frame["target"].str.startswith("distance:")]
    probe = next(name for name in frame["probe"] if name != "none")
    rows = ["row", "later_row"] if "later_row" in frame else ["row"]
    answers = []
    for name, lines in frame[frame["probe"].isin([probe, "none"])].groupby("target", sort=False):
        scores = [each for each in map(str, lines) if each.startswith("score") and lines[each].notna().any()]
        tables = {each: part.set_index(rows) for each, part in lines.groupby("encoder", sort=False)}
        own = tables[encoder]
        kind = "regress" if task == "regress" or str(name).startswith("amount_of_change:") else "classify"
        metric, measure = next(iter(metrics_of(kind, max(2, len(scores))).items()))
        named = {ARM: own, RANDOM: tables[RANDOM], MAJORITY: tables[MAJORITY]}
        predictions = {each: _values(table.loc[own.index], scores) for each, table in named.items()}
        y, patients = own["y"].to_numpy(), patient(own.index.get_level_values(0).to_series())
        enough = len(np.unique(patients))
        if metric == "auroc":
            enough = min(len(np.unique(patients[y == value])) for value in (0, 1))
        answers.append(
            Answer(kind, str(name), metric, str(probe), own.index, y, patients, predictions, measure, enough)
        )
    return [*_mean_of_classes(answers, target), *answers]


def _values(table: pd.DataFrame, columns: list[str]) -> FloatArray:
    values = table[columns].to_numpy(np.float64)
    return np.asarray(values[:, 0] if len(columns) == 1 else values)


def _mean_of_classes(answers: list[Answer], target: str) -> list[Answer]:
    """The mean AUROC of the classes that enough patients have and lack, or of all if not two are so; none of one class.

    Where fewer have it than a finding needs, the mean rests on as few as the rarest of its classes.
    """
    first = answers[0]
    if not all(each.metric == "auroc" and each.keys.equals(first.keys) for each in answers):
        return []
    answers = [each for each in answers if each.enough]  # of one class alone there is no curve
    common = [each for each in answers if each.enough >= ENOUGH_PATIENTS]
    answers = common if len(common) > 1 else answers
    if len(answers) < 2:
        return []
    y = np.stack([each.y for each in answers], axis=1)
    predictions = {name: np.stack([each.predictions[name] for each in answers], axis=1) for name in first.predictions}
    enough = min(each.enough for each in answers)
    name = f"{target} (mean of {len(answers)} classes)"
    return [Answer("classify", name, "auroc", first.probe, first.keys, y, first.patients, predictions,
                   mean_auroc, enough)]  # fmt: skip
