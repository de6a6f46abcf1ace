"""Which rows are slices of one volume or images of one series, and where in a volume each slice lies."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.cohort.coding import rank_numbers
from bolus.data.cohort.values import Values

# What two volumes of one patient may differ in, where no column says which volume a row belongs to.
TELLING = ("visit", "time", "phase", "modality", "laterality", "region")


def slice_positions(series_codes: npt.NDArray[np.int64], order: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Each row's place within its series, from 0 to 1: the middle of one of as many equal parts as there are rows.

    The row with the r-th smallest order, counted from 0, of n lies at (r + 1/2) / n, whatever the steps between orders
    are. Rows of one order have one place, the mean of theirs.

    Args:
        series_codes: int64 `[rows]`, -1 missing.
        order: float64 `[rows]`, NaN missing; rows without it count for nothing.

    Returns:
        float64 `[rows]` in (0, 1); NaN where series or order is missing, and in a series of one row.

    Example:
        >>> slice_positions(np.array([0, 0, 1, 0, 0]), np.array([7.0, 1, 5, 3, 9])).tolist()
        [0.625, 0.125, nan, 0.375, 0.875]
    """
    assert series_codes.shape == order.shape
    known = (series_codes >= 0) & np.isfinite(order)
    found = np.full(len(order), np.nan)
    number = int(series_codes.max(initial=-1)) + 2  # the last is that of rows without a series
    counts = np.bincount(series_codes[known], minlength=number)[series_codes]
    several = known & (counts > 1)
    if several.any():
        ranks = pd.Series(order[several]).groupby(series_codes[several]).rank(method="average").to_numpy(np.float64)
        found[several] = (ranks - 0.5) / counts[several]
    return found


def volume_codes(table: Values) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """The volume that each row is a slice of.

    A volume is a `series` of a patient. Without such a column, it is what a patient's rows share of the visit, time,
    phase, modality, laterality and region that the cohort has, and frames of different files are of different volumes;
    rows without a series in a cohort that has some are told apart in the same way. A missing value is a value of its
    own. Times are compared as they are: where each slice has the time of its own acquisition, a series is needed.

    Returns:
        int64 `[rows]`, codes 0, 1, ... with none missing; and the roles that were used, `patient` first. `image` is one
        of them where several rows are frames of one file.

    Example:
        >>> from bolus.data.cohort.cohort import Cohort
        >>> from bolus.data.cohort.spec import CohortSpec
        >>> columns = {"image": list("abcd"), "patient": list("ppqq"), "visit": ["1", "2", "", ""]}
        >>> volume_codes(Cohort(pd.DataFrame(columns), CohortSpec(table="t.csv")))
        (array([0, 1, 2, 2]), ('patient', 'visit'))
    """
    keys: dict[str, npt.NDArray[np.int64]] = {"patient": table.encoded("patient")}
    untold = np.ones(len(table), np.bool_)  # rows of which no series is known
    if "series" in table.roles:
        keys["series"] = table.encoded("series")
        untold = keys["series"] < 0
    if untold.any():
        for role in TELLING:
            if role in table.roles:  # codes from 1; all NaN are one value
                keys[role] = np.where(untold, table.kinds(role) + 1, 0)
        if (untold & table.shared_file).any():
            files = table.files + 1
            keys["image"] = np.where(untold & table.shared_file, files, 0)
    found, width = np.zeros(len(table), np.int64), 1
    for codes in keys.values():
        lowest, number = int(codes.min(initial=0)), int(codes.max(initial=0)) - int(codes.min(initial=0)) + 1
        if width * number > 2**62:  # else the products of their numbers cannot overflow
            found = np.unique(found, return_inverse=True)[1].astype(np.int64)
            width = int(found.max(initial=0)) + 1
        found, width = found * number + (codes - lowest), width * number
    return rank_numbers(found, width), tuple(keys)


def series_codes(
    table: Values,
    rows: npt.NDArray[np.int64],
    uids: npt.NDArray[np.uint64],
    files: npt.NDArray[np.uint64],
) -> npt.NDArray[np.int64]:
    """Which images are of one series, so that one range holds for all of them.

    The role `series`, within a patient; where a row has none, the SeriesInstanceUID of its file; else the file itself.

    Args:
        table: whose rows.
        rows: int64 `[n]`.
        uids: `[n]`, a number for each SeriesInstanceUID, 0 where there is none.
        files: `[n]`, a number for each file.

    Returns:
        int64 `[n]`, codes from 0.
    """
    kind = np.where(uids > 0, 1, 0)
    first, second = np.where(uids > 0, uids, files).view(np.int64), np.zeros(len(rows), np.int64)
    if "series" in table.roles:
        series = table.encoded("series")[rows]
        told = series >= 0
        kind, first = np.where(told, 2, kind), np.where(told, series, first)
        second = np.where(told, table.encoded("patient")[rows], second)
    keys = pd.DataFrame({"kind": kind, "first": first, "second": second})
    codes = keys.groupby(["kind", "first", "second"], sort=False).ngroup()
    return np.asarray(codes, np.int64)
