"""What an evaluation of masks says of single test volumes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from bolus.evaluation.statistics.answers import ARM, Answer, mean_of_known
from bolus.evaluation.statistics.metrics import IntArray
from bolus.evaluation.statistics.results import RANDOM


def answers_of_volumes(
    frame: pd.DataFrame, patient: Callable[[pd.Series[Any]], IntArray], encoder: str
) -> list[Answer]:
    """Dice of each test volume, the mean of its classes and of the draws; the most labelled patients first.

    Args:
        frame: volumes.parquet of an evaluation.
        patient: rows of the table (from 1) -> their patients.
        encoder: the judged encoder's name.
    """
    found = []
    for number, lines in sorted(frame.groupby("labelled_patients"), reverse=True, key=lambda each: int(str(each[0]))):
        by_draw = lines.groupby(["encoder", "row", "repeat"])["dice"].mean()
        dice = by_draw.groupby(level=["encoder", "row"]).mean()
        own = dice.loc[encoder]
        patients = patient(own.index.to_series())
        predictions = {ARM: own.to_numpy(), RANDOM: dice.loc[RANDOM].loc[own.index].to_numpy()}
        enough = len(np.unique(patients[np.isfinite(own.to_numpy())]))
        found.append(
            Answer("segment", f"mask, {number} labelled patient{'s' * (number != 1)}", "dice", "finetune", own.index,
                   np.zeros(len(own)), patients, predictions, mean_of_known, enough,
                   {"labelled_patients": int(str(number))})
        )  # fmt: skip
    return found
