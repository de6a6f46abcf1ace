"""Lines of a table with what is said of them, and whose patients encoder and head have seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.split import seen_rows
from bolus.embedding.opening import Judged
from bolus.embedding.rows import LEFT_OUT, chosen_columns, describe_rows, left_out
from bolus.evaluation.probing.heads import Head
from bolus.evaluation.segmentation.saved import SavedSegmenter
from bolus.site_key import say_absent


@dataclass(frozen=True)
class Beside:
    """What of the table stands beside predictions.

    Args:
        columns: that are written whatever they hold, such as the patient's.
        with_table: also what names no person and no file: `bolus.embedding.rows.chosen_columns`.
    """

    columns: Sequence[str] = ()
    with_table: bool = True

    def check(self, cohort: Cohort) -> None:
        """Raise UsageError where the table does not have a column."""
        chosen_columns(cohort, self.columns)


def beside_table(
    cohort: Cohort, first: npt.NDArray[np.int64], said: pd.DataFrame, beside: Beside, remarks: list[str]
) -> pd.DataFrame:
    """`row` (from 1), `split` and columns of the table, then what is said, in the order of the table.

    Args:
        cohort: whose table it is.
        first: the row that each line stands for, from 0, int64 `[n]`.
        said: `[n]` lines; where the table has a column of the same name, its own gets `table_` before it.
        beside: what is taken of the table.
        remarks: for the `attrs` of the result, which also list the columns that were left out.
    """
    asked: dict[str, Any] = {"columns": beside.columns, "with_table": beside.with_table}
    table = describe_rows(cohort, first, **asked, taken=map(str, said.columns))
    frame = pd.concat([table, said], axis=1).iloc[np.argsort(first, kind="stable")].reset_index(drop=True)
    frame.attrs |= {"remarks": remarks, LEFT_OUT: left_out(cohort, **asked)}
    return frame


def note_seen(judged: Judged, fitted: Head | SavedSegmenter, patients: pd.Series) -> list[str]:
    """How many rows are of patients that encoder and head, or segmenter, were trained on, as counts in sentences."""
    who = "the head" if isinstance(fitted, Head) else "the segmenter"
    what = "was fitted on, validation included" if isinstance(fitted, Head) else "learnt the masks of"
    own = [{"keys": fitted.patients, "salt": fitted.salt, "key": fitted.key}] if fitted.patients else []
    said = []
    for lineage, name, seen in (
        (judged.lineage, judged.name, "the encoder was trained on"),
        (own, who, f"{who} {what}"),
    ):
        rows, absent = np.zeros(len(patients), dtype=bool), dict[str, None]()
        for training in lineage:
            found = seen_rows(training, patients)
            if found is None:
                absent[str(training["key"])] = None
            else:
                rows |= found
        counted = f"{int(rows.sum())} of {len(rows)} rows belong to patients that {seen}"
        worse = "; on new patients it may do worse." if rows.any() else "."
        if len(absent) < len(lineage):
            said.append(f"{counted}{worse}")
        elif not lineage:
            said.append(f"Which patients {name} has seen is not known here.")
        said += [f"Whether {name} has seen these patients is not known: those it saw were {say_absent(key)}."
                 for key in absent]  # fmt: skip
    return said
