"""The elements that batches, embeddings and evaluations index: images, slices or clips, with the way back to rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.errors import CohortError, UsageError, name_rows

if TYPE_CHECKING:
    from bolus.data.cohort import Cohort


@dataclass(frozen=True)
class Samples:
    """The elements that batches, embeddings and evaluations index, with the way back to rows.

    Args:
        unit: `image`, `slice` or `clip`.
        first_row: int64 `[n]`, the row that speaks for a sample's columns.
        rows_of: sample position -> its rows, ordered.
    """

    unit: str
    cohort: Cohort = field(repr=False)
    first_row: npt.NDArray[np.int64] = field(repr=False)
    rows_of: Callable[[int], npt.NDArray[np.int64]] = field(repr=False)

    def __len__(self) -> int:
        return len(self.first_row)

    def columns(self, roles: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
        """Role -> `[n]`: int64 codes with -1 missing, or float64 with NaN missing; always with `sample`."""
        found: dict[str, npt.NDArray[Any]] = {"sample": np.arange(len(self), dtype=np.int64)}
        for role in roles:
            if role != "sample":
                found[role] = self.cohort.encoded(role)[self.first_row]
        return found


def take_samples(cohort: Cohort, unit: str) -> Samples:
    """The cohort as images, slices or clips.

    An image or slice is one row. A clip is the rows of one `series`, in their `order`; its first row speaks for its
    columns, so they must be constant within the series.

    Args:
        cohort: a validated table.
        unit: `image`, `slice` or `clip`.

    Raises:
        CohortError: clips or slices without the roles they need, or a column that varies within a series (rows
            are named).
        UsageError: an unknown unit.
    """
    everything = np.arange(len(cohort), dtype=np.int64)
    if unit in {"image", "slice"}:
        if unit == "slice" and not {"order", "slice_position"} & set(cohort.roles):
            raise CohortError("unit 'slice' needs a column with the role order or slice_position")
        return Samples(unit, cohort, everything, lambda position: everything[position : position + 1])
    if unit != "clip":
        raise UsageError(f"unknown unit {unit!r}; known: clip, image, slice")
    lacking = [role for role in ("series", "order") if role not in cohort.roles]
    if lacking:
        raise CohortError(f"unit 'clip' needs columns with the roles series and order; missing: {', '.join(lacking)}")
    series, order = cohort.encoded("series"), cohort.encoded("order")
    problems = [f"{name_rows(np.flatnonzero(series < 0))}: no series"] if (series < 0).any() else []
    varying = {"image", "mask", "order", "slice_position", "time"}
    if np.isnan(order).any():
        problems.append(f"{name_rows(np.flatnonzero(np.isnan(order)))}: no order within the series")
    for role in sorted(set(cohort.roles) - varying):
        codes = pd.factorize(cohort.values(role), use_na_sentinel=False)[0]
        first = pd.Series(codes).groupby(series).transform("first").to_numpy()
        if (codes != first).any():
            rows = np.flatnonzero(codes != first)
            problems.append(f"{name_rows(rows)}: {role} ({cohort.roles[role]!r}) differs from the start of its series")
    if problems:
        raise CohortError("a column must be constant within a series", problems)
    ranked = np.lexsort((order, series))
    starts = np.flatnonzero(np.r_[True, np.diff(series[ranked]) != 0])
    ends = np.r_[starts[1:], len(ranked)]
    return Samples(unit, cohort, ranked[starts], lambda position: ranked[starts[position] : ends[position]])
