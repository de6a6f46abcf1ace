"""How many partners the rows of a table have under a relation, by counting values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from bolus.data.batches.relation import Relation
from bolus.data.cohort.coding import rank_numbers

Array = npt.NDArray[Any]
Counts = npt.NDArray[np.int64]
DENSE = 4  # combinations of values for each row up to which they are counted in a table of all of them


def count_partners(relation: Relation, columns: Mapping[str, Array]) -> Counts:
    """What `PartnerIndex.counts` says, where the relation has no range.

    Args:
        relation: without `within`, `near` and `far`.
        columns: role -> `[rows]`, codes with -1 missing or floats with NaN missing, of every role of the relation.

    Returns:
        int64 `[rows]`.

    Example:
        >>> columns = {"patient": np.array([0, 0, 0, 1]), "visit": np.array([1, 1, 2, 1])}
        >>> count_partners(Relation(same=("patient",), differ=("visit",)), columns).tolist()
        [1, 1, 2, 0]
    """
    assert relation.range is None
    table = {role: columns[role] for role in relation.roles}
    num_rows = len(next(iter(table.values())))
    known = known_rows(table.values(), num_rows)
    table = table if known.all() else {role: column[known] for role, column in table.items()}
    number = int(known.sum())
    found = less_equal(relation, lambda same: count_alike([table[role] for role in same], number), holds_self=True)
    if number == num_rows:
        return found
    counts = np.zeros(num_rows, np.int64)
    counts[known] = found
    return counts


def less_equal(relation: Relation, alike: Callable[[Sequence[str]], Counts], *, holds_self: bool) -> Counts:
    """Partners of each row: those that are alike in `same`, less those that are equal in a role of `differ`.

    Args:
        relation: whose roles.
        alike: roles -> how many rows are alike in them to each, int64 `[rows]`.
        holds_self: whether a row is alike to itself.
    """
    found = alike(relation.same)
    if not relation.differ:
        return found - holds_self
    for size in range(1, len(relation.differ) + 1):
        for equal in combinations(relation.differ, size):
            found = found + (-1) ** size * alike((*relation.same, *equal))
    return found


def count_alike(columns: Sequence[Array], num_rows: int) -> Counts:
    """How many rows have the values of each row, itself among them: int64 `[rows]`; all rows where there is no column.

    >>> count_alike([np.array([7, 0, 7]), np.array([0.5, 0.5, 0.5])], 3).tolist()
    [2, 1, 2]
    """
    combined = combine(columns, num_rows, most=2**62)
    if combined is None:
        codes, width = np.zeros(num_rows, np.int64), 1
        for column in columns:
            values, places = np.unique(column, return_inverse=True)
            codes = np.unique(codes * len(values) + places, return_inverse=True)[1].astype(np.int64)
    else:
        codes, width = combined
    if width > DENSE * num_rows + 1024:
        codes = rank_numbers(codes, width)
    return np.asarray(np.bincount(codes)[codes])


def combine(columns: Sequence[Array], num_rows: int, *, most: int) -> tuple[npt.NDArray[np.int64], int] | None:
    """A number from 0 for each row's values, in the order of the first column, then of the second; and their span.

    Args:
        columns: integers or floats `[rows]`, none missing.
        num_rows: how long they are.
        most: span, at most 2^62.

    Returns:
        None where the span would be more, or a column holds fractions.

    >>> combine([np.array([2, 1]), np.array([0.0, 3.0])], 2, most=100)
    (array([8, 7]), 12)
    """
    found, width = np.zeros(num_rows, np.int64), 1
    for column in columns:
        lowest = column.min(initial=0)
        span = float(column.max(initial=0)) - float(lowest) + 1
        if width * span > most or (column.dtype.kind == "f" and (column % 1 != 0).any()):
            return None
        found *= int(span)
        found += column.astype(np.int64, copy=False)
        found -= int(lowest)
        width *= int(span)
    return found, width


def known_rows(columns: Iterable[Array], num_rows: int) -> npt.NDArray[np.bool_]:
    """Rows without a missing value, bool `[rows]`."""
    known = np.ones(num_rows, dtype=bool)
    for column in columns:
        known &= np.isfinite(column) if column.dtype.kind == "f" else column != -1
    return known
