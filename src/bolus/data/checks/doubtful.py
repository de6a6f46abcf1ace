"""Values that may well mean missing, though nobody has declared it: words such as unknown, codes such as -1 or 999."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bolus.data.cohort.roles import NAMED
from bolus.data.text.classes import DOUBTFUL_WORDS
from bolus.data.text.spelling import as_number

if TYPE_CHECKING:
    from bolus.data.cohort.cohort import Cohort

Rows = npt.NDArray[np.int64]

NEGATIVE_CODES = (-1.0, -9.0, -99.0, -999.0)  # asked about where every other number is 0 or more
HIGH_CODES = (99.0, 999.0)  # asked about where they are above so many times the largest other number
APART = 1.5
# Roles whose numbers may be codes: categories, measures and labels, but not counts, places and identifiers.
MEASURED = ("modality", "view_position", "region", "phase", "site")


def doubtful_values(cohort: Cohort, role: str) -> dict[str, Rows]:
    """The values of a role that may mean missing, as its values spell them, each with its rows.

    Words (`data.text.classes.DOUBTFUL_WORDS`) in any case, alone or as one of several classes. Numbers only where they
    stand apart from at least two other values of the column. What is declared missing is missing already.

    Args:
        cohort: whose column.
        role: of the column, but for images.

    Returns:
        Value -> int64 rows, from 0; commonest first.

    Example:
        >>> import pandas as pd
        >>> from bolus.data.cohort.cohort import Cohort
        >>> from bolus.data.cohort.spec import CohortSpec
        >>> columns = {"image": list("abc"), "patient": list("pqr"), "sex": ["F", "Unknown", "M"], "age": [61, 70, -1]}
        >>> cohort = Cohort(pd.DataFrame(columns), CohortSpec(table="t.csv"))
        >>> [doubtful_values(cohort, f"attribute:{name}") for name in ("sex", "age")]
        [{'Unknown': array([1])}, {'-1': array([2])}]
    """
    if role == "image":
        return {}
    column = cohort.coded(role)
    codes, values = column.codes, column.values
    cells = [_parts(value, several=role.startswith("label:")) for value in values.tolist()]
    present = {part for parts in cells for part in parts}
    asked = {part for part in present if part.lower() in DOUBTFUL_WORDS}
    if role.startswith(NAMED) or role in MEASURED:
        asked |= _codes(present - asked)
    found = {}
    for value in sorted(asked):
        holds = np.array([*(value in parts for parts in cells), False], np.bool_)
        found[value] = np.flatnonzero(holds[codes])
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def third_value(cohort: Cohort, role: str) -> tuple[str, Rows] | None:
    """The lone third value of a label whose other classes are 0 and 1, and its rows; None where there is no such value.

    A 2 is a grade, and words such as unknown are those of `doubtful_values`.

    Args:
        cohort: whose column.
        role: a label.
    """
    column = cohort.coded(role)
    codes, values = column.codes, column.values
    others = set(values.tolist()) - {"0", "1"}
    if len(values) != 3 or len(others) != 1:
        return None
    other = str(others.pop())
    if other == "2" or "|" in other or other.lower() in DOUBTFUL_WORDS:
        return None
    return other, np.flatnonzero(codes == values.tolist().index(other))


def _parts(value: object, *, several: bool) -> list[str]:
    """The classes of a cell, or its value as text."""
    if isinstance(value, str):
        return value.split("|") if several else [value]
    return [f"{value:.15g}" if isinstance(value, float) else str(value)]


def _codes(present: set[str]) -> set[str]:
    """Those of the values that are codes and stand apart from all others."""
    numbers = {text: as_number(text) for text in present}
    codes = {text: number for text, number in numbers.items() if number in (*NEGATIVE_CODES, *HIGH_CODES)}
    if not codes or len(numbers) - len(codes) < 2:
        return set()
    others = [number for text, number in numbers.items() if text not in codes and number is not None]
    negative, positive = min(others, default=0) >= 0, max(others, default=0) * APART
    return {
        text for text, number in codes.items() if number is not None and (negative if number < 0 else number > positive)
    }
