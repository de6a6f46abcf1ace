"""What of the table stands beside embeddings and predictions: by default nothing that names a person or a file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.roles import IDENTIFYING, is_number_role
from bolus.data.text.dates import FIRST_DATE, MONTHS, read_times
from bolus.errors import UsageError, suggest

_YEAR = r"(?:19|2[01])\d\d"  # as YEARS of data.text.dates
_DATE = re.compile(
    rf"(?<!\d)(?:{_YEAR}([-./]?)(?:0?[1-9]|1[0-2])\1(?:0?[1-9]|[12]\d|3[01])|\d{{1,2}}([-./])\d{{1,2}}\2{_YEAR})(?!\d)"
)
_MONTH = "(?:{})".format("|".join(f"{name[:3]}(?:{name[3:]})?" for name in [*MONTHS, "sept"]))
_NAMED_DATE = re.compile(
    rf"(?<![a-z0-9])(?:\d{{1,2}}(?:st|nd|rd|th)?[-./ ]{{0,2}}{_MONTH}\.?[-./, ]{{0,2}}|"
    rf"{_MONTH}\.?[-./ ]{{1,2}}(?:\d{{1,2}}(?:st|nd|rd|th)?[-./, ]{{1,2}})?)(?:\d{{4}}|\d{{2}})(?!\d)",
    re.IGNORECASE,
)
_SHORT_DATE = re.compile(r"(?:0?[1-9]|[12]\d|3[01])([-./])(?:0?[1-9]|[12]\d|3[01])\1\d{2}")
LEFT_OUT = "left_out"
"""The key of a frame's `attrs` that lists the columns of the table that it does not have."""


def chosen_columns(cohort: Cohort, columns: Sequence[str] = (), *, with_table: bool = True) -> list[str]:
    """The columns of the table that are written, in its order.

    By default those with a role, for a role says that a column holds categories or numbers, and free text has none; but
    not those of `IDENTIFYING` roles, not dates, and not the role split, which is written anyway. Whoever has the table
    finds the rest by `row`.

    Args:
        cohort: whose table it is.
        columns: that are written besides, whatever they hold.
        with_table: take the default ones at all.

    Raises:
        UsageError: a column that the table does not have.

    >>> from bolus.data.cohort.spec import CohortSpec
    >>> frame = pd.DataFrame({"image": ["a.png"], "patient": ["Doe"], "sex": ["F"], "note": ["well"]})
    >>> cohort = Cohort(frame, CohortSpec(table="t.csv"))
    >>> chosen_columns(cohort), chosen_columns(cohort, ["patient"]), chosen_columns(cohort, ["note"], with_table=False)
    (['sex'], ['patient', 'sex'], ['note'])
    """
    names, columns = list(map(str, cohort.columns)), [columns] if isinstance(columns, str) else columns
    for column in columns:
        if column not in names:
            raise UsageError(f"columns: the table has no column {column!r}; {suggest(column, names)}")
    roles = dict[str, list[str]]()
    for role, column in cohort.roles.items():
        roles.setdefault(column, []).append(role)
    plain = {name for name, given in roles.items() if with_table and not any(_identifies(cohort, r) for r in given)}
    return [name for name in names if name in plain or name in columns]


def describe_rows(
    cohort: Cohort,
    rows: npt.NDArray[np.int64],
    *,
    columns: Sequence[str] = (),
    with_table: bool = True,
    facts: Mapping[str, Any] | None = None,
    taken: Iterable[str] = (),
) -> pd.DataFrame:
    """`row` (from 1), `split`, further facts, and the columns of the table that are written; its index is 0..n-1.

    Args:
        cohort: whose table it is.
        rows: int64 `[n]`, from 0, of the table.
        columns: as of `chosen_columns`.
        with_table: likewise; without, there is no `split` either.
        facts: name -> `[n]` values, which come after `split`.
        taken: names of columns that others will add; a column of the table that is called so gets `table_` before it.
    """
    chosen = chosen_columns(cohort, columns, with_table=with_table)
    first: dict[str, Any] = {"row": rows + 1, **({"split": cohort.split[rows]} if with_table else {}), **(facts or {})}
    frame = cohort.columns.frame(chosen, rows)
    frame.columns = pd.Index(free_names(chosen, {*first, *taken}))
    for place, (name, values) in enumerate(first.items()):
        frame.insert(place, name, values)
    return frame


def left_out(cohort: Cohort, columns: Sequence[str] = (), *, with_table: bool = True) -> list[str]:
    """The columns that `chosen_columns` does not choose; none where the table was not asked for."""
    kept = {*chosen_columns(cohort, columns, with_table=with_table), cohort.roles.get("split")}
    return [name for name in map(str, cohort.columns) if name not in kept] if with_table else []


def free_names(names: list[str], taken: set[str]) -> list[str]:
    """The names, those that are taken with `table_` before them until they are free.

    >>> free_names(["row", "table_row", "age"], {"row"})
    ['table_table_row', 'table_row', 'age']
    """
    used, found = taken | set(names), []
    for name in names:
        free = name
        while free in taken or (free != name and free in used):
            free = f"table_{free}"
        used.add(free)
        found.append(free)
    return found


def _identifies(cohort: Cohort, role: str) -> bool:
    """Whether values of the role may say who somebody is, or when they came; the role split is written anyway."""
    if role in IDENTIFYING or role == "split":
        return True
    values = cohort.values(role).dropna()
    if role == "time":
        days = pd.to_numeric(values, errors="coerce")
        return bool((days.isna() | (days.abs() >= FIRST_DATE)).any())
    if is_number_role(role):
        return role == "visit" and bool((pd.to_numeric(values, errors="coerce").abs() >= FIRST_DATE).any())
    if pd.api.types.is_datetime64_any_dtype(values):
        return True
    found = pd.Series(values.unique())
    return any(map(_has_date, found.astype(str))) or bool(np.isfinite(read_times(found).first))


def _has_date(text: str) -> bool:
    """Whether a text has a date in it, or is one with a year of two digits.

    >>> [_has_date(text) for text in ("born 12-MAR-1950", "Jan 5, 2020", "31/01/50", "1950-03-12")]
    [True, True, True, True]
    >>> [_has_date(text) for text in ("3 T", "12.5", "2020", "1.5.2")]
    [False, False, False, False]
    """
    return any(each.search(text) for each in (_DATE, _NAMED_DATE)) or _SHORT_DATE.fullmatch(text.strip()) is not None
