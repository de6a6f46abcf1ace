"""The elements that batches, embeddings and evaluations index: images, slices or clips, with the way back to rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.errors import CohortError, UsageError, name_rows

if TYPE_CHECKING:
    from bolus.data.cohort import Cohort

Rows = npt.NDArray[np.int64]

# What may differ between the rows of one series: which frame it is, not what is known of the clip.
VARYING = frozenset({"image", "mask", "order", "slice_position", "time"})


@dataclass(frozen=True)
class Samples:
    """The elements that batches, embeddings and evaluations index, with the way back to rows.

    Args:
        unit: `image`, `slice` or `clip`.
        cohort: the table whose rows these are; for clip files, the one with a row a frame.
        rows: int64 `[rows]`, those of sample 0 in order, then those of sample 1, and so on.
        starts: int64 `[n + 1]`, where in `rows` a sample begins, and the end; every sample has a row.
    """

    unit: str
    cohort: Cohort = field(repr=False)
    rows: Rows = field(repr=False)
    starts: Rows = field(repr=False)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def first_row(self) -> Rows:
        """The row that speaks for a sample's columns, int64 `[n]`."""
        return self.rows[self.starts[:-1]]

    @property
    def num_rows(self) -> Rows:
        """How many rows each sample has, int64 `[n]`."""
        return np.diff(self.starts)

    def rows_of(self, position: int) -> Rows:
        """The rows of one sample, in order."""
        return self.rows[self.starts[position] : self.starts[position + 1]]

    def readable(self, rows_readable: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Samples with at least one row that can be read, bool `[n]`.

        Args:
            rows_readable: bool, one for each row of the cohort.
        """
        if not len(self):
            return np.zeros(0, np.bool_)
        return np.logical_or.reduceat(rows_readable[self.rows], self.starts[:-1])

    def columns(self, roles: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
        """Role -> `[n]`: int64 codes with -1 missing, or float64 with NaN missing; always with `sample`.

        A clip has its first row's values.
        """
        found: dict[str, npt.NDArray[Any]] = {"sample": np.arange(len(self), dtype=np.int64)}
        for role in roles:
            if role != "sample":
                found[role] = self.cohort.encoded(role)[self.first_row]
        return found


def take_samples(cohort: Cohort, unit: str) -> Samples:
    """The cohort as images, slices or clips.

    An image or slice is one row. A clip is the rows of one `series`, in their `order`; its first row speaks for its
    columns, so they must be constant within the series. `bolus.data.clips.open_samples` takes clip files as well.

    Args:
        cohort: a validated table.
        unit: `image`, `slice` or `clip`.

    Raises:
        CohortError: clips or slices without the roles they need, a column that varies within a series, or two rows of
            a series with one order; column and rows are named.
        UsageError: an unknown unit.
    """
    if unit in {"image", "slice"}:
        if unit == "slice" and not {"order", "slice_position"} & set(cohort.roles):
            raise CohortError("unit 'slice' needs a column with the role order or slice_position")
        return Samples(unit, cohort, np.arange(len(cohort)), np.arange(len(cohort) + 1))
    if unit != "clip":
        raise UsageError(f"unknown unit {unit!r}; known: clip, image, slice")
    lacking = [role for role in ("series", "order") if role not in cohort.roles]
    if lacking:
        raise CohortError(f"unit 'clip' needs columns with the roles series and order; missing: {', '.join(lacking)}")
    series, order = cohort.encoded("series"), cohort.encoded("order")
    ranked = np.lexsort((order, series)).astype(np.int64)
    problems = _problems(cohort, series, order, ranked)
    if problems:
        raise CohortError("a clip is a series of rows in order, whose columns are the same throughout", problems)
    starts = np.flatnonzero(np.r_[True, np.diff(series[ranked]) != 0])
    return Samples(unit, cohort, ranked, np.r_[starts, len(ranked)].astype(np.int64))


def _problems(cohort: Cohort, series: Rows, order: npt.NDArray[np.float64], ranked: Rows) -> list[str]:
    """Why the rows are no clips, with columns and rows of the table as given."""
    found = []

    def name(rows: Rows) -> str:
        return name_rows(np.unique(cohort.origin[rows]))

    if (series < 0).any():
        found.append(f"{name(np.flatnonzero(series < 0))}: no series (column {cohort.roles['series']!r})")
    if np.isnan(order).any():
        found.append(f"{name(np.flatnonzero(np.isnan(order)))}: no order within the series")
    same = (np.diff(series[ranked]) == 0) & (np.diff(order[ranked]) == 0) & (series[ranked[1:]] >= 0)
    if same.any():
        twice = ranked[np.flatnonzero(np.r_[same, False] | np.r_[False, same])]
        found.append(f"{name(twice)}: order ({cohort.roles['order']!r}) has one value twice within a series")
    for role in sorted(set(cohort.roles) - VARYING):
        codes = pd.factorize(cohort.values(role), use_na_sentinel=False)[0]
        first = pd.Series(codes).groupby(series).transform("first").to_numpy()
        rows = np.flatnonzero((codes != first) & (series >= 0))
        if len(rows):
            found.append(f"{name(rows)}: {role} ({cohort.roles[role]!r}) differs from the start of its series")
    return found
