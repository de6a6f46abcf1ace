"""Dates as days of the calendar, and names of visits as their order."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.text.dates import read_times
from bolus.data.text.identifiers import identifier_text

_NUMBERED = re.compile(r"(?P<prefix>\D*?)(?P<number>\d{1,5})")
_FIRST = frozenset({"baseline", "base", "bl", "screening", "initial", "pre"})  # visits before the first number


def to_dates(series: pd.Series[Any]) -> tuple[pd.Series[Any], npt.NDArray[np.bool_], str]:
    """A column of dates, in the one way of reading it that fits: `bolus.data.text.dates`.

    Returns:
        datetime64[s] `[rows]`, at midnight, NaT where there is no date; bool `[rows]`, which rows hold something that
        is no date; and why, in words.

    Example:
        >>> dates, bad, why = to_dates(pd.Series(["2180-03-01T08:30:00", "n/a", "2180-03-02"]))
        >>> dates.dt.strftime("%Y-%m-%d").tolist(), bad.any(), why
        (['2180-03-01', nan, '2180-03-02'], np.False_, '')
    """
    times = read_times(series)
    known = ~np.isnan(times.days)
    if np.isnan(times.first):
        nothing = np.full(len(series), np.datetime64("NaT", "s"))
        why = times.why or ("they are numbers, not dates" if known.any() else "")
        return pd.Series(nothing, index=series.index), known | times.bad, why
    days = np.where(known, np.floor(np.nan_to_num(times.days) + times.first) - 1, 0).astype("timedelta64[D]")
    dates = (np.datetime64("0001-01-01", "D") + days).astype("datetime64[s]")
    dates[~known] = np.datetime64("NaT", "s")
    return pd.Series(dates, index=series.index), times.bad, times.why


def day_numbers(dates: pd.Series[Any]) -> npt.NDArray[np.float64]:
    """Dates as whole days since 1970, float64 `[rows]`; NaN where there is none.

    >>> day_numbers(pd.Series(np.array(["1970-01-03T05", "NaT"], "datetime64[s]")))
    array([ 2., nan])
    """
    values = dates.to_numpy(dtype="datetime64[s]").astype("datetime64[D]")
    return np.where(np.isnat(values), np.nan, values.astype(np.int64).astype(np.float64))


def number_visits(names: pd.Series[Any]) -> tuple[npt.NDArray[np.float64], str]:
    """Names of visits as ordinal numbers; and how they were read, in words.

    Numbers stay what they are, also behind one prefix (`01`, `V2`, `m06`); `baseline` and the like are 0 beside them.
    Other names are numbered in alphabetical order, over the whole column.

    Returns:
        float64 `[rows]`, NaN where there is no name.

    Example:
        >>> number_visits(pd.Series(["baseline", "m06", "m12", None]))
        (array([ 0.,  6., 12., nan]), 'by their numbers')
        >>> number_visits(pd.Series(["pre", "post"]))
        (array([2., 1.]), 'in alphabetical order')
    """
    codes, found = pd.factorize(names.map(identifier_text).replace("", None))
    texts = [str(name) for name in found]
    matches = [_NUMBERED.fullmatch(text) for text in texts]
    numbered = {match["prefix"].lower() for match in matches if match is not None}
    rest = [text.lower() for text, match in zip(texts, matches, strict=True) if match is None]
    if len(numbered) == 1 and len(rest) <= 1 and all(text in _FIRST for text in rest):
        values = [0.0 if match is None else float(match["number"]) for match in matches]
        if len(set(values)) == len(values):
            return np.array([*values, np.nan])[codes], "by their numbers"
    order = {text: float(place) for place, text in enumerate(sorted(texts), 1)}
    return np.array([*(order[text] for text in texts), np.nan])[codes], "in alphabetical order" if texts else ""
