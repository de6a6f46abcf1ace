"""What ranks say of single pairs of a test patient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from bolus.evaluation.retrieval.scores import TOP
from bolus.evaluation.statistics.answers import ARM, Answer, mean_of_known
from bolus.evaluation.statistics.metrics import IntArray
from bolus.evaluation.statistics.results import RANDOM


def answers_of_ranks(
    frame: pd.DataFrame, patient: Callable[[pd.Series[Any]], IntArray], encoder: str, across: str
) -> list[Answer]:
    """Top-K over all directions together, one pair a participant in each.

    Args:
        frame: ranks.parquet of an evaluation.
        patient: rows of the table (from 1) -> their patients.
        encoder: the judged encoder's name.
        across: the role that differs.
    """
    frame = frame.assign(patient=patient(frame["row"]))
    tables = {name: part.set_index(["direction", "patient"]) for name, part in frame.groupby("encoder")}
    own = tables[encoder]
    patients = own.index.get_level_values("patient").to_numpy(np.int64)
    named = {ARM: own, RANDOM: tables[RANDOM]}
    ranks = {name: table.loc[own.index, "rank"].to_numpy() for name, table in named.items()}
    galleries = own.groupby(level="direction").size()
    found = []
    for k in TOP:
        hits = {name: (rank <= k).astype(np.float64) for name, rank in ranks.items()}
        chance = float(np.minimum(k, galleries).sum() / len(own))
        found.append(
            Answer("retrieve", f"across {across}, all directions", f"top_{k}", "none", own.index, np.zeros(len(own)),
                   patients, hits, mean_of_known, len(np.unique(patients)), {"chance": chance})
        )  # fmt: skip
    return found
