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

# What may differ between the rows of one series: which frame it is, not what is known of the clip. A time may within
# a day, since clocks run while frames are taken.
VARYING = frozenset({"image", "mask", "order", "slice_position"})
IF_FRAMES = (
    "if it belongs to a frame and not to the clip, leave it without a role (rename it where its name gives it one)"
)
IF_FILES = "if each row is a clip file, give the column with the role series another one, such as attribute:series"


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
    columns. So every column with a role must have one value within the series, or none, except for image, mask, order
    and slice_position, and for times less than a day apart. Numbers are compared as numbers: 1 is 1.0.
    `bolus.data.clips.open_samples` takes clip files as well.

    Args:
        cohort: a validated table.
        unit: `image`, `slice` or `clip`.

    Raises:
        CohortError: slices without order or slice_position; as clips, whatever `series_problems` finds, all of it,
            with column and rows.
        UsageError: an unknown unit.
    """
    if unit in {"image", "slice"}:
        if unit == "slice" and not {"order", "slice_position"} & set(cohort.roles):
            raise CohortError("unit 'slice' needs a column with the role order or slice_position")
        return Samples(unit, cohort, np.arange(len(cohort)), np.arange(len(cohort) + 1))
    if unit != "clip":
        raise UsageError(f"unknown unit {unit!r}; known: clip, image, slice")
    problems = series_problems(cohort)
    if problems:
        named = [f"{name_rows(rows)}: {what}" if len(rows) else what for rows, what in problems]
        raise CohortError("a clip is a series of rows in order, whose columns are the same throughout", named)
    series = cohort.encoded("series")
    ranked = np.lexsort((cohort.encoded("order"), series)).astype(np.int64)
    starts = np.flatnonzero(np.r_[True, np.diff(series[ranked]) != 0])
    return Samples(unit, cohort, ranked, np.r_[starts, len(ranked)].astype(np.int64))


def series_problems(cohort: Cohort) -> list[tuple[Rows, str]]:
    """Why rows are no clips: a role that is lacking, an order missing or twice within a series, a column that varies.

    Returns:
        Rows of the table as given, int64, empty where all of it is meant; and what is wrong with them.

    Example:
        >>> from bolus.data.cohort import Cohort, CohortSpec
        >>> frame = pd.DataFrame({"image": ["a", "b"], "patient": ["p", "p"], "series": ["s", "s"], "order": [3, 3]})
        >>> series_problems(Cohort(frame, CohortSpec(table="t.csv")))
        [(array([0, 1]), "order ('order') has one value twice within a series")]
    """
    lacking = [role for role in ("series", "order") if role not in cohort.roles]
    if lacking:
        what = f"unit 'clip' needs columns with the roles series and order; missing: {', '.join(lacking)}"
        advice = f" (series is {cohort.roles['series']!r}; {IF_FILES})" if "series" in cohort.roles else ""
        return [(np.empty(0, np.int64), what + advice)]
    found: list[tuple[Rows, str]] = []

    def add(wrong: npt.NDArray[np.bool_], what: str) -> None:
        if wrong.any():
            found.append((np.unique(cohort.origin[wrong]), what))

    series, order = cohort.encoded("series"), cohort.encoded("order")
    ranked = np.lexsort((order, series)).astype(np.int64)
    known, again = series >= 0, np.diff(series[ranked]) == 0
    add(~known, f"no series (column {cohort.roles['series']!r}); {IF_FILES}")
    add(np.isnan(order), "no order within the series")
    same = again & (np.diff(order[ranked]) == 0)
    twice = np.zeros(len(series), np.bool_)
    twice[ranked] = np.r_[same, False] | np.r_[False, same]
    add(twice & known, f"order ({cohort.roles['order']!r}) has one value twice within a series")
    start = np.empty(len(series), np.int64)  # the row that speaks for the series of each row
    start[ranked] = ranked[np.maximum.accumulate(np.where(np.r_[False, again], 0, np.arange(len(ranked))))]
    for role in sorted(set(cohort.roles) - VARYING):
        values = cohort.encoded(role)
        if role == "time":
            earliest = np.full(int(series.max()) + 2, np.inf)  # the last one is that of rows without a series
            np.minimum.at(earliest, series, np.where(np.isnan(values), np.inf, values))
            differs = known & (values - earliest[series] >= 1)
            how = "differs by a day or more from the earliest of its series"
        else:
            absent = pd.isna(values)
            differs = known & (values != values[start]) & ~(absent & absent[start])
            how = "differs from the start of its series"
        add(differs, f"{role} ({cohort.roles[role]!r}) {how}; {IF_FRAMES}")
    return found
