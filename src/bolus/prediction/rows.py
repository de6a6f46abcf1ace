"""Lines of a table with what is said of them, and whose patients encoder and head have seen."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.cohort.split import seen_rows
from bolus.embedding.opening import Judged
from bolus.embedding.table import free_names
from bolus.evaluation.probing.heads import Head
from bolus.evaluation.segmentation.saved import SavedSegmenter
from bolus.site_key import say_absent


def beside_table(table: pd.DataFrame, first: npt.NDArray[np.int64], said: pd.DataFrame) -> pd.DataFrame:
    """`row` (from 1), the table's own columns, then what is said, in the order of the table.

    Args:
        table: `[n]` lines, of any index.
        first: the row that each stands for, from 0, int64 `[n]`.
        said: `[n]` lines; where the table has a column of the same name, its own gets `table_` before it.
    """
    table = table.reset_index(drop=True)
    table.columns = pd.Index(free_names(list(map(str, table.columns)), {"row", *said.columns}))
    frame = pd.concat([pd.Series(first + 1, name="row"), table, said], axis=1)
    return frame.iloc[np.argsort(first, kind="stable")].reset_index(drop=True)


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
                absent[training["key"]] = None
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
