"""Times of a table as days: numbers of days, or dates in one of a few ways of writing that fits the whole column.

Dates are never guessed row by row. A column is read in one way, and where another way fits it as well and gives other
days, no row is known. Years from 1 to 9999 are dates, so that dates shifted to the years after 2100 are.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from bolus.data.text.identifiers import identifier_text
from bolus.data.text.spelling import shape_of

FloatArray = npt.NDArray[np.float64]
YEARS = (1900, 2200)  # whole numbers that all lie within are taken for years, which are no days
FIRST_DATE = 10_000_000  # 10000101 is the first date of eight digits, and fewer days than these are a number of days
_A_MONTH, _A_YEAR = 30.436875, 365.2425  # days
DAYS_OF = {
    **dict.fromkeys(("day", "days"), 1.0),
    **dict.fromkeys(("week", "weeks"), 7.0),
    **dict.fromkeys(("month", "months"), _A_MONTH),
    **dict.fromkeys(("year", "years"), _A_YEAR),
    **dict.fromkeys(("hour", "hours"), 1 / 24),
    **dict.fromkeys(("minute", "minutes"), 1 / 1440),
    **dict.fromkeys(("second", "seconds"), 1 / 86400),
}
"""What one of each unit of a number is in days."""

MONTHS = ("january", "february", "march", "april", "may", "june", "july",
          "august", "september", "october", "november", "december")  # fmt: skip
_MONTH = {name[:length]: number for number, name in enumerate(MONTHS, 1) for length in (3, len(name))} | {"sept": 9}

_AFTER = r"(?:[T ,] ?(?P<clock>.+))?"  # the time of day after a date
_ZONE = r"(?: ?(?P<zone>Z|UTC|GMT|[+-]\d{2}(?::?\d{2})?))?"
_CLOCKS = (
    re.compile(r"(?P<h>\d{1,2}):(?P<m>\d{2})(?::(?P<s>\d{2})(?:[.,](?P<f>\d+))?)?(?: ?(?P<half>[AP])M)?" + _ZONE, re.I),
    re.compile(r"(?P<h>\d{2})(?:(?P<m>\d{2})(?:(?P<s>\d{2})(?:\.(?P<f>\d+))?)?)?" + _ZONE, re.I),  # as DICOM writes it
)


_YEAR, _OF_YEAR, _OF_MONTH = "(?:19|20|21)[0-9]{2}", "(?:0[1-9]|1[0-2])", "(?:0[1-9]|[12][0-9]|3[01])"
_DIGITS = (
    (re.compile(_YEAR + _OF_YEAR), "months (YYYYMM)"),
    (re.compile("[0-9]{2}" + _OF_YEAR + _OF_MONTH), "dates of two-digit years (YYMMDD)"),
    (re.compile(f"(?:{_OF_MONTH}{_OF_YEAR}|{_OF_YEAR}{_OF_MONTH}){_YEAR}"), "dates with the year last"),
)
"""What a column of digits may mean beside days; dates of eight digits with the year first are read."""


@dataclass(frozen=True)
class Reading:
    """A way of writing dates: what it is called, and patterns with the groups y, m, mostly d, and the clock."""

    name: str
    patterns: tuple[str, ...]


def _with_each_separator(pattern: str) -> tuple[str, ...]:
    """The pattern with each of `-`, `/` and `.` for its underscores."""
    return tuple(pattern.replace("_", re.escape(separator)) for separator in "-/.")


YEAR_FIRST = Reading(
    "dates with the year first",
    (
        r"(?P<y>\d{4})(?P<m>\d{2})(?P<d>\d{2})(?:[T ]?(?P<clock>.+))?",
        *_with_each_separator(r"(?P<y>\d{4})_(?P<m>\d{1,2})_(?P<d>\d{1,2})" + _AFTER),
    ),
)
DAY_FIRST = Reading(
    "dates with the day first",
    _with_each_separator(r"(?P<d>\d{1,2})_(?P<m>\d{1,2})_(?P<y>\d{4})" + _AFTER),
)
MONTH_FIRST = Reading(
    "dates with the month first",
    _with_each_separator(r"(?P<m>\d{1,2})_(?P<d>\d{1,2})_(?P<y>\d{4})" + _AFTER),
)
NAMED = Reading(
    "dates with the name of the month",
    (
        r"(?P<d>\d{1,2})(?:st|nd|rd|th)?[-. ]{0,2}(?P<m>[a-z]{3,9})\.?[-, ]{0,2}(?P<y>\d{4})(?:[T ,:] ?(?P<clock>.+))?",
        r"(?P<m>[a-z]{3,9})[-. ]{1,2}(?P<d>\d{1,2})(?:st|nd|rd|th)?[-, ]{1,2}(?P<y>\d{4})(?:[T ,:] ?(?P<clock>.+))?",
    ),
)
MONTHLY = Reading("months of a year", (r"(?P<y>\d{4})-(?P<m>\d{2})", r"(?P<m>[a-z]{3,9})\.?,? (?P<y>\d{4})"))
_NUMBERS = "numbers of days"
_TWO_DIGITS = re.compile(r"\d{1,2}([-/.])\d{1,2}\1\d{2}(?!\d)")


@dataclass(frozen=True)
class Times:
    """A column of times.

    Args:
        days: float64 `[rows]`: numbers as days, dates as days since the earliest one; NaN missing or unknown.
        bad: bool `[rows]`, which rows hold something that is neither.
        why: what is wrong with these rows, in words; empty where nothing more can be said.
        first: the day that 0 stands for, in days since the first day of year 1, which is day 1; NaN where the column
            holds numbers of days, or nothing.
    """

    days: FloatArray
    bad: npt.NDArray[np.bool_]
    why: str = ""
    first: float = np.nan


def to_days(series: pd.Series[Any], unit: str | None = None) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Days, and which rows hold neither a number nor a date: see `read_times`.

    >>> to_days(pd.Series(["21801231", None, "21810101"]))[0].tolist()
    [0.0, nan, 1.0]
    """
    found = read_times(series, unit)
    return found.days, found.bad


def read_times(
    series: pd.Series[Any], unit: str | None = None, *, weights: npt.NDArray[np.int64] | None = None
) -> Times:
    """A column as days, in the one way of reading it that fits all of its values.

    Args:
        series: `[rows]` text, numbers or times; what means missing is missing.
        unit: of numbers, one of `DAYS_OF`; None: days, unless they are dates such as 20240131. Bare years are refused
            without a unit. Dates need none.
        weights: int64 `[rows]`, how many rows of a table each of these stands for, 0 of none; one each where None.

    Returns:
        The days. Where no reading fits all values, rows outside the one that fits most are bad; where two fit and give
        different days, all rows are.

    Example:
        >>> read_times(pd.Series(["01/02/2024", "03/04/2024"])).why
        'day and month of each can change places; write them as 2024-01-31'
    """
    if pd.api.types.is_datetime64_any_dtype(series):
        earliest = series.min()
        since = (series - earliest).dt.total_seconds().to_numpy(np.float64)
        first = np.nan if pd.isna(earliest) else earliest.toordinal() + _part_of_day(earliest)
        return Times(np.asarray(since / 86400, np.float64), np.zeros(len(series), np.bool_), "", first)
    codes, values = pd.factorize(series)
    texts = [identifier_text(value) for value in values.tolist()]
    blank = np.array([*(not text for text in texts), True], np.bool_)[codes]
    rows = None if weights is None else weights[~blank]
    counts = np.bincount(codes[~blank], rows, minlength=len(texts)).astype(np.float64)
    found, why, first = _read([text if count else "" for text, count in zip(texts, counts, strict=True)], counts, unit)
    days = np.append(found, np.nan)[codes]
    return Times(days, np.isnan(days) & ~blank, why, first)


def _read(texts: Sequence[str], weights: FloatArray, unit: str | None) -> tuple[FloatArray, str, float]:
    """The days of each different text, NaN where it cannot be read; why; and the first day, of dates.

    Weights count rows, 0 of no text.
    """
    there = weights > 0
    nothing = np.full(len(texts), np.nan)
    if not there.any():
        return nothing, "", np.nan
    numbers = pd.to_numeric(pd.Series(texts, dtype="str"), errors="coerce").to_numpy(np.float64, na_value=np.nan)
    numbers = np.where(np.isfinite(numbers) & there, numbers, np.nan)
    given = numbers[~np.isnan(numbers)]
    plain = len(given) == there.sum()
    years = unit is None and len(given) and bool(((given % 1 == 0) & (given >= YEARS[0]) & (given <= YEARS[1])).all())
    if plain and years:
        why = "they look like years, which are no days; say in cohort.yaml what they are"
        return nothing, f"{why}, units: {{time: years}} or units: {{time: days}}", np.nan
    per = DAYS_OF.get((unit or "days").strip().lower(), np.nan)
    if len(given) and np.isnan(per):
        known = ", ".join(name for name in DAYS_OF if name.endswith("s"))
        return nothing, f"the unit of time is {unit!r}, and known are {known}", np.nan
    mistaken = _short_dates([texts[at] for at in np.flatnonzero(there).tolist()]) if plain and unit is None else ""
    if mistaken:
        return nothing, mistaken, np.nan
    if plain and (per != 1 or (np.abs(given) < FIRST_DATE).all()):
        return numbers * per, "", np.nan
    dates = _dates(YEAR_FIRST, texts, there & ~(np.abs(numbers) < FIRST_DATE))
    digits = np.array([len(text) in (8, 14) and text.isdecimal() for text in texts], np.bool_)
    fits = {
        YEAR_FIRST.name: dates,
        "years" if years else _NUMBERS: np.where(digits & ~np.isnan(dates), np.nan, numbers * per),
    }
    left = there & np.isnan(numbers) & np.isnan(dates)
    fits |= {each.name: _dates(each, texts, left) for each in (NAMED, DAY_FIRST, MONTH_FIRST, MONTHLY)}
    return _choose(fits, texts, weights)


def _short_dates(texts: Sequence[str]) -> str:
    """Why digits are no days that can all be read as months, as short dates, or as dates with the year last.

    >>> _short_dates(["202312", "202401"])
    'they look like months (YYYYMM), which are no days; write dates as 2024-01-31, or say units: {time: days}'
    >>> _short_dates(["20240131"]), _short_dates(["151200"])
    ('', '')
    """
    for pattern, like in _DIGITS:
        if all(pattern.fullmatch(text) for text in texts):
            return f"they look like {like}, which are no days; write dates as 2024-01-31, or say units: {{time: days}}"
    return ""


def _choose(fits: dict[str, FloatArray], texts: Sequence[str], weights: FloatArray) -> tuple[FloatArray, str, float]:
    """The reading that fits most rows, why it does not fit the others, and its first day."""
    there = weights > 0
    rows = {name: float(weights[~np.isnan(days)].sum()) for name, days in fits.items()}
    name = max(rows, key=lambda each: rows[each])  # the first of them
    if not rows[name]:
        short = any(_TWO_DIGITS.match(text) for text in texts)
        return np.full(len(texts), np.nan), "years need four digits" if short else "", np.nan
    days = fits[name]
    bad = there & np.isnan(days)
    apart = fits[MONTH_FIRST.name][there] - days[there]
    if name == DAY_FIRST.name and not np.isnan(apart).any() and apart.any():
        return np.full(len(texts), np.nan), "day and month of each can change places; write them as 2024-01-31", np.nan
    first = np.nan if name == _NUMBERS else float(np.nanmin(days))
    days = days if name == _NUMBERS else days - first
    if not bad.any():
        return days, "", first
    shapes = {shape_of(text) for text, known in zip(texts, ~np.isnan(days), strict=True) if known}
    if name != _NUMBERS and all(shape_of(text) in shapes for text, odd in zip(texts, bad, strict=True) if odd):
        return days, f"there is no such day or time; most rows are {name}", first
    return days, f"most rows are {name}, and a column is read in one way", first


def _dates(reading: Reading, texts: Sequence[str], where: npt.NDArray[np.bool_]) -> FloatArray:
    """Days since the first day of year 1, `[texts]`; NaN where a text is not a date of this reading."""
    found, left = np.full(len(texts), np.nan), where
    for pattern in reading.patterns:
        places = np.flatnonzero(left)
        if not len(places):
            break
        matches = pc.extract_regex(
            pa.array([texts[place] for place in places.tolist()], pa.string()), f"(?i)^{pattern}$"
        )
        hits = matches.is_valid().to_numpy(zero_copy_only=False)
        parts = {field.name: matches.filter(matches.is_valid()).field(field.name) for field in matches.type}
        days = pc.binary_join_element_wise(parts["y"], parts["m"], parts.get("d", "1"), "-")
        clocks = _each(parts["clock"], _clock) if "clock" in parts else 0.0
        found[places[hits]] = _each(days, lambda text: _day(*text.split("-"))) + clocks
        left = left & np.isnan(found)
    return found


def _each(texts: pa.StringArray, change: Callable[[str], float]) -> FloatArray:
    """The number of each text, worked out once for each different one."""
    kinds = texts.dictionary_encode()
    numbers = np.array([change(text) for text in kinds.dictionary.to_pylist()], np.float64)
    return np.asarray(numbers[kinds.indices.to_numpy()], np.float64)


def _day(year: str, month: str, day: str) -> float:
    number = int(month) if month.isdecimal() else _MONTH.get(month.lower(), 0)
    try:
        return float(datetime.date(int(year), number, int(day)).toordinal())
    except ValueError:
        return np.nan


def _part_of_day(moment: pd.Timestamp) -> float:
    return float((moment - moment.normalize()).total_seconds()) / 86400


def _clock(text: str) -> float:
    """The time of day as a part of it, NaN where it is none; a zone takes it to that of Greenwich.

    >>> _clock("18:00"), _clock("060000.000+0600"), _clock("6:00 pm"), _clock("25:00")
    (0.75, 0.0, 0.75, nan)
    """
    if not text:
        return 0.0
    found = next(filter(None, (pattern.fullmatch(text) for pattern in _CLOCKS)), None)
    if found is None:
        return np.nan
    parts = found.groupdict()
    hour, minute, second = (int(parts[each] or 0) for each in "hms")
    if parts.get("half"):
        if not 1 <= hour <= 12:
            return np.nan
        hour = hour % 12 + (12 if parts["half"].lower() == "p" else 0)
    if hour > 23 or minute > 59 or second > 60:  # 60 is a leap second
        return np.nan
    seconds = hour * 3600 + minute * 60 + second + float(f"0.{parts['f'] or 0}")
    return (seconds - _offset(parts["zone"])) / 86400


def _offset(zone: str | None) -> float:
    """Seconds east of Greenwich."""
    if zone is None or zone[0] not in "+-":
        return 0.0
    digits = zone[1:].replace(":", "")
    seconds = int(digits[:2]) * 3600 + int(digits[2:] or 0) * 60
    return float(-seconds if zone[0] == "-" else seconds)
