"""Dates as days of the calendar, and names of visits as their order."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.text.dates import DAYS_OF, read_times
from bolus.data.text.identifiers import identifier_text

BY_NAME = "of their names (baseline and the like first, follow-ups last)"
_NUMBERED = re.compile(r"(?P<prefix>\D*?)(?P<number>\d{1,5})")
_FIRST = frozenset({"baseline", "base", "bl", "screening", "initial", "pre"})  # visits before the first number
_LATER = re.compile(r"(?:fu|follow[-_ ]?up).*")
_UNIT = r"d|days?|w|wks?|weeks?|m|mo|mos|mths?|months?|y|yrs?|years?"
_LENGTH = re.compile(rf"(?:(?P<before>{_UNIT})[-_ ]?)?(?P<number>\d{{1,4}})(?:[-_ ]?(?P<after>{_UNIT}))?")
_DAYS = {unit[0]: DAYS_OF[unit] for unit in ("days", "weeks", "months", "years")}


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

    Numbers stay what they are, also behind one prefix (`01`, `V2`, `m06`), and so do lengths of time in one unit
    (`6months`); those in several units become days. `baseline` and the like are 0 beside them. Other names are numbered
    over the whole column as they sort, `baseline` and the like first and follow-ups last: `about_visits` warns of it.

    Returns:
        float64 `[rows]`, NaN where there is no name.

    Example:
        >>> number_visits(pd.Series(["baseline", "m06", "m12", None]))
        (array([ 0.,  6., 12., nan]), 'by their numbers')
        >>> number_visits(pd.Series(["pre", "post"]))
        (array([1., 2.]), 'of time, by the word for the first one')
        >>> number_visits(pd.Series(["6weeks", "12months", "baseline"]))
        (array([ 42., 365.,   0.]), 'by the lengths of time that they name')
    """
    codes, found = pd.factorize(names.map(identifier_text).replace("", None))
    texts = [str(name).lower() for name in found]
    values, how = _read_numbers(texts), "by their numbers"
    if values is None:
        values, how = _read_lengths(texts), "by the lengths of time that they name"
    if values is None:
        ranked = sorted(range(len(texts)), key=lambda place: (_sort_key(texts[place]), str(found[place])))
        values = [float(ranked.index(place) + 1) for place in range(len(texts))]
        how = BY_NAME if texts else ""
        if len(texts) == 2 and sum(text in _FIRST for text in texts) == 1:
            how = "of time, by the word for the first one"
    return np.array([*values, np.nan])[codes], how


def about_visits(what: str, numbers: pd.Series[Any], how: str) -> str:
    """A sentence on how visits were numbered, which is a warning where their names do not say their order.

    >>> about_visits("the names", pd.Series([1.0, 2.0, 1.0]), "by their numbers")
    'visit: the names in order by their numbers, 2 different.'
    """
    count = numbers.nunique()
    said = f"visit: {what} in order {how}, {count:,} different"
    if how != BY_NAME or count < 2:
        return f"{said}."
    return (
        f"warning: {said}. This may not be their order in time; where it is not, name visits by numbers, by lengths of "
        "time such as 6months, or by dates."
    )


def _read_numbers(names: Sequence[str]) -> list[float] | None:
    """The numbers of names behind one prefix, 0 of a word for the first visit; None where they are not all that."""
    matches = [_NUMBERED.fullmatch(name) for name in names]
    if len({match["prefix"] for match in matches if match is not None}) != 1:
        return None
    return _apart(names, [None if match is None else float(match["number"]) for match in matches])


def _read_lengths(names: Sequence[str]) -> list[float] | None:
    """Lengths of time in their unit, in days where there are several; see `_read_numbers` for the rest."""
    matches = [_LENGTH.fullmatch(name) for name in names]
    units = [None if match is None else match["before"] or match["after"] for match in matches]
    if not any(units) or any(match is not None and bool(match["before"]) == bool(match["after"]) for match in matches):
        return None
    one = len({unit[0] for unit in units if unit is not None}) == 1
    per = [1.0 if one or unit is None else _DAYS[unit[0]] for unit in units]
    lengths = [
        None if match is None else float(round(float(match["number"]) * each))
        for match, each in zip(matches, per, strict=True)
    ]
    return _apart(names, lengths)


def _apart(names: Sequence[str], numbers: Sequence[float | None]) -> list[float] | None:
    """The numbers, 0 where one name has none and means the first visit; None where another has none, or two agree."""
    rest = [name for name, number in zip(names, numbers, strict=True) if number is None]
    values = [0.0 if number is None else number for number in numbers]
    return values if len(rest) <= 1 and set(rest) <= _FIRST and len(set(values)) == len(values) else None


def _sort_key(name: str) -> tuple[int, list[tuple[float, str]]]:
    """Words for the first visit, other names, follow-ups; within each by letters, and numbers by their size."""
    place = 0 if name in _FIRST else 2 if _LATER.fullmatch(name) else 1
    parts = re.split(r"(\d+)", name)
    return place, [(float(part), "") if part.isdecimal() else (math.inf, part) for part in parts]
