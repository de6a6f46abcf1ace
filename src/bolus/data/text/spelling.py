"""A value of a table as text, in one spelling whatever program wrote it, and which texts mean that there is none."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

MISSING = ("", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "<NA>", "null", "NULL")
"""What means missing in every column; n/a is what BIDS writes, #N/A what a spreadsheet does."""

_MEANS_MISSING = frozenset(MISSING)
# Zero-width characters, marks of direction, byte order marks and soft hyphens.
_UNSEEN = re.compile("[\u200b-\u200f\u2060\ufeff\u00ad]")
_NUMBER = re.compile(r"([+-]?)([0-9]*)\.?([0-9]*)")
_SCIENTIFIC = re.compile(r"[+-]?[0-9](\.[0-9]+)?[eE][+-][0-9]+")


def clean_text(text: str) -> str:
    r"""Text in Unicode NFC without characters that cannot be seen; any run of white space is one plain space.

    >>> clean_text(" Ko\u0308ln\u00a0 Mitte\u200b") == "K\u00f6ln Mitte"
    True
    """
    if text.isascii():
        return " ".join(text.split())
    return " ".join(unicodedata.normalize("NFC", _UNSEEN.sub("", text)).split())


def text_of(value: object) -> str:
    """Any cell as clean text, empty where it is missing; a whole number read as a float has no fraction.

    >>> text_of(7.0), text_of(" n/a "), text_of(None), text_of(1e-5), text_of(Decimal("7.00"))
    ('7', '', '', '0.00001', '7.00')
    """
    if isinstance(value, str):
        text = clean_text(value)
        return "" if text in _MEANS_MISSING else text
    if value is None or value is pd.NA or value is pd.NaT:
        return ""
    if isinstance(value, (float, np.floating)):
        if np.isnan(value):
            return ""
        return str(int(value)) if value.is_integer() else np.format_float_positional(value, trim="-")
    if isinstance(value, Decimal):
        return format(value, "f") if value.is_finite() else ""
    return text_of(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))


def is_clean(series: pd.Series[Any]) -> npt.NDArray[np.bool_]:
    """Which texts of a column `text_of` leaves as they are, for all it takes to see at a glance, bool `[rows]`.

    >>> is_clean(pd.Series(["a1", "a b", "n/a", "\u00e9"])).tolist()
    [True, False, False, False]
    """
    plain = series.str.fullmatch("[!-~]+").to_numpy(np.bool_, na_value=False)
    return plain & ~series.isin(MISSING).to_numpy()


def spell_number(text: str) -> str:
    """A number in one spelling, without what changes nothing of it; leading zeros stay, and so does any other text.

    >>> [spell_number(text) for text in ("1.00", "+0.50", "-1.", ".5", "007.0", "1e-05", "1.2.0", "-")]
    ['1', '0.5', '-1', '0.5', '007', '0.00001', '1.2.0', '-']
    """
    if _SCIENTIFIC.fullmatch(text):
        text = np.format_float_positional(float(text), trim="-")
    found = _NUMBER.fullmatch(text)
    if found is None or not (found[2] or found[3]):
        return text
    sign, whole, fraction = found[1], found[2] or "0", found[3].rstrip("0")
    spelled = f"{whole}.{fraction}" if fraction else whole
    return f"-{spelled}" if sign == "-" and spelled.strip("0.") else spelled


def as_number(text: str) -> float | None:
    """The number that a text is, or None.

    >>> as_number("-99"), as_number("todo")
    (-99.0, None)
    """
    try:
        return float(text)
    except ValueError:
        return None


def missing_option(column: str, *values: str) -> str:
    """What is added to a command line to declare these values of a column missing, as a shell reads it.

    >>> missing_option("age", "-1", "?")
    "--missing age=-1 --missing 'age=?'"
    """
    return " ".join(f"--missing {shlex.quote(f'{column}={value}')}" for value in values)


@dataclass(frozen=True)
class MissingCodes:
    """The values that a person declared missing in a column.

    Args:
        texts: as clean text, numbers in one spelling.
        numbers: those of them that are numbers.

    Example:
        >>> codes = MissingCodes.of(["todo", -99])
        >>> "todo" in codes, "-99.0" in codes, "99" in codes
        (True, True, False)
    """

    texts: frozenset[str] = frozenset()
    numbers: frozenset[float] = frozenset()

    @classmethod
    def of(cls, codes: Iterable[Any]) -> MissingCodes:
        """The codes as a table's cells are read."""
        texts = frozenset(clean_text(str(code)) for code in codes)
        numbers = frozenset(number for number in map(as_number, texts) if number is not None)
        return cls(texts | frozenset(map(spell_number, texts)), numbers)

    def __contains__(self, text: object) -> bool:
        if not self.texts or not isinstance(text, str):
            return False
        return text in self.texts or (bool(self.numbers) and as_number(text) in self.numbers)


def respell(series: pd.Series[Any], change: Callable[[list[Any]], Sequence[str | None]]) -> pd.Series[Any]:
    """The column with each value in the spelling that `change` gives it, missing where that is None or empty.

    Args:
        series: `[rows]` of any type.
        change: of the different values, all at once, so that a million rows take no longer than what differs in them.

    Example:
        >>> respell(pd.Series([7.0, None, 7.0]), lambda values: [text_of(value) for value in values]).tolist()
        ['7', nan, '7']
    """
    codes, values = pd.factorize(series)
    texts = change(values.tolist())
    made = pd.array([*(text or None for text in texts), None], dtype="str")
    return pd.Series(made.take(codes), index=series.index, name=series.name)  # -1, missing, is the last entry


def shape_of(text: str) -> str:
    """A value's shape, which can be shown where the value itself may name a patient.

    >>> shape_of("sub-p017_ses-1")
    'aaa-a999_aaa-9'
    """
    return "".join("9" if c.isdigit() else "a" if c.isalpha() else c for c in text[:40])
