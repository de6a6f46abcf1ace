"""Slices of one series in order: by their position along the normal, or by their numbers, never by both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

FloatArray = npt.NDArray[np.float64]

FEWEST = 3  # slices of a series; fewer are scouts and single pictures
APART = 1e-3  # mm between two positions
PARALLEL = 1e-2  # between the normals of slices of one direction
CROSSING = 0.2  # cosine below which directions cross, as in localizers of three planes
# What tells apart slices of one position: times, echoes, runs of the scanner and kinds of image, in this order.
_TELLING = ("temporal", "cardiac_percent", "cardiac_position", "echo", "acquisition", "image_type")

SMALL = f"series of fewer than {FEWEST} slices"
CROSSED = "localizers (scouts)"
UNORDERED = "series whose slices have neither positions nor numbers that tell them apart"


@dataclass(frozen=True)
class Stack:
    """The order of the slices of one series.

    Args:
        part: which volume of the series each slice is of, `[slices]`, from 0.
        order: float64 `[slices]`, from 0 within each volume.
        by_position: whether the order is that of space, not of numbers.
        reason: why the series is left out; empty where it is not.
    """

    part: npt.NDArray[np.int64]
    order: FloatArray
    by_position: bool
    reason: str = ""


def numbers_of(texts: pd.Series[Any], length: int) -> FloatArray:
    r"""The numbers of values such as `1\0\0\0\1\0`, float64 `[rows, length]`; NaN where there are not so many.

    >>> numbers_of(pd.Series(["1\\2", None, "x\\1"]), 2).tolist()
    [[1.0, 2.0], [nan, nan], [nan, nan]]
    """
    codes, kinds = pd.factorize(texts)
    found = np.full((len(kinds) + 1, length), np.nan)
    for place, text in enumerate(kinds):
        parts = str(text).split("\\")
        if len(parts) == length:
            try:
                found[place] = [float(part) for part in parts]
            except ValueError:
                continue
    found[~np.isfinite(found).all(axis=1)] = np.nan
    return found[codes]


def stack(rows: pd.DataFrame, place: FloatArray, orientation: FloatArray) -> Stack:
    """The slices of one series in order.

    Along the normal of the first slice's plane where all have positions that differ, or where what tells the slices of
    one position apart (a phase, an echo, an acquisition) makes volumes of them. Else by InstanceNumber.

    Args:
        rows: fields of headers, of one series.
        place: ImagePositionPatient in mm, `[slices, 3]`, NaN where it is missing.
        orientation: ImageOrientationPatient, `[slices, 6]`, likewise.

    Example:
        >>> rows = pd.DataFrame({"number": ["1", "2", "3"]})
        >>> place = np.array([[0, 0, 9.0], [0, 0, 3], [0, 0, 6]])
        >>> stack(rows, place, np.tile([1.0, 0, 0, 0, 1, 0], (3, 1))).order.tolist()
        [2.0, 0.0, 1.0]
    """
    one, number = np.zeros(len(rows), np.int64), _numbers(rows["number"])
    if len(rows) < FEWEST:
        return Stack(one, number, False, SMALL)
    normals = np.cross(orientation[:, :3], orientation[:, 3:])
    cosines = np.abs(normals @ normals[0])
    if (cosines < CROSSING).any():
        return Stack(one, number, False, CROSSED)
    if not np.isnan(place).any() and (cosines > 1 - PARALLEL).all():
        along = place @ normals[0]
        if len(np.unique(np.round(along / APART))) > 1:
            for part in _parts(rows):
                order = _rank(part, along)
                if order is not None and np.bincount(part).min() >= FEWEST:
                    return Stack(part, order, True)
    order = _rank(one, number)
    return Stack(one, number, False, UNORDERED) if order is None else Stack(one, order, False)


def _parts(rows: pd.DataFrame) -> list[npt.NDArray[np.int64]]:
    """Ways of taking a series apart, from none to all that tells slices apart."""
    found, keys = [np.zeros(len(rows), np.int64)], []
    known = [name for name in _TELLING if name in rows and rows[name].nunique(dropna=False) > 1]
    for name in known:
        found.append(pd.factorize(rows[name], use_na_sentinel=False)[0].astype(np.int64))
        keys.append(name)
    if len(keys) > 1:
        found.append(np.asarray(rows.groupby(keys, sort=False, dropna=False).ngroup(), np.int64))
    return found


def _rank(part: npt.NDArray[np.int64], values: FloatArray) -> FloatArray | None:
    """The place of each value within its part, from 0; None where one is missing or stands twice."""
    if np.isnan(values).any():
        return None
    ranked = np.lexsort((values, part))
    same = np.diff(part[ranked]) == 0
    if (np.diff(values[ranked])[same] < APART).any():
        return None
    starts = np.flatnonzero(np.r_[True, ~same])
    order = np.empty(len(values))
    order[ranked] = np.arange(len(values)) - np.repeat(starts, np.diff(np.r_[starts, len(values)]))
    return order


def _numbers(texts: pd.Series[Any]) -> FloatArray:
    return pd.to_numeric(texts, errors="coerce").to_numpy(np.float64, na_value=np.nan)
