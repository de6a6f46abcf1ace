"""Identifiers: when two of them are one, which only look alike, and which a spreadsheet has cut."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

import numpy as np
import pandas as pd

from bolus.data.text.spelling import clean_text, is_clean, respell, text_of

_WHOLE = re.compile(r"[+-]?[0-9]+")
_FRACTION = re.compile(r"[+-]?[0-9]+\.0+")
_CUT = re.compile(r"[0-9]([.,][0-9]+)?[eE]\+[0-9]+")
_SEPARATORS = re.compile("[\\s_\u2010-\u2015\u2212-]+")
_ZEROS = re.compile(r"(^|-)([^\W\d_]*)0+(?=[0-9])")
EXACT = 2**53  # from here on a float64 no longer holds every whole number


def identifier_text(label: object) -> str:
    r"""An identifier in the one spelling that splits, lineage and heads compare; empty where there is none.

    A fraction of zeros goes, so that 7, 7.0 and "7.00" are one. Leading zeros and case stay, since they may tell people
    apart. See `bolus.data.text.spelling` for what becomes of white space, of Unicode and of what means missing.

    >>> identifier_text(7.0), identifier_text(" 007.0 "), identifier_text("a\u00a0 b"), identifier_text("1.2.840.0")
    ('7', '007', 'a b', '1.2.840.0')
    >>> identifier_text(None), identifier_text("n/a")
    ('', '')
    """
    text = text_of(label)
    return text.partition(".")[0] if text.endswith("0") and _FRACTION.fullmatch(text) else text


def spell_identifiers(series: pd.Series[Any]) -> pd.Series[Any]:
    """Identifiers, all different, as `identifier_text` spells them; missing where there is none.

    >>> spell_identifiers(pd.Series(["p1", "7.00", " a  b", "n/a"])).tolist()
    ['p1', '7', 'a b', nan]
    """
    if not isinstance(series.dtype, pd.StringDtype):
        return respell(series, lambda values: [identifier_text(value) for value in values])
    odd = ~(is_clean(series) & ~series.str.fullmatch(_FRACTION.pattern).to_numpy(np.bool_, na_value=False))
    if not odd.any():
        return series
    spelled = series.copy()
    spelled[odd] = respell(series[odd], lambda values: [identifier_text(value) for value in values])
    return spelled


def earlier_spellings(label: object) -> tuple[str, ...]:
    """The texts that runs of earlier versions may have hashed for this identifier, beside the one of today.

    They left a fraction of zeros and decomposed letters as the table had them. A namespace may stand before the
    identifier, with a slash.

    >>> earlier_spellings("clinic/7"), earlier_spellings("7.00"), earlier_spellings("p7")
    (('clinic/7.0',), ('7.00', '7.0'), ())
    """
    today = identifier_text(label)
    if not today:
        return ()
    found = [str(label).strip(), unicodedata.normalize("NFD", today)]
    if _WHOLE.fullmatch(today.rpartition("/")[2]):
        found.append(f"{today}.0")
    return tuple(text for text in dict.fromkeys(found) if text and text != today)


def fold_identifier(text: str) -> str:
    """What identifiers have in common that look alike: case, separators, leading zeros and BIDS's `sub-` do not count.

    >>> fold_identifier("sub-P01_02"), fold_identifier("p1 2"), fold_identifier("1.05")
    ('p1-2', 'p1-2', '1.05')
    """
    return fold(text).removeprefix("sub-")


def fold(text: str) -> str:
    """Text without case, in Unicode NFKC, each run of separators a hyphen, numbers without leading zeros.

    >>> fold("No  Finding"), fold("no_finding"), fold("Stage 02")
    ('no-finding', 'no-finding', 'stage-2')
    """
    plain = _SEPARATORS.sub("-", unicodedata.normalize("NFKC", clean_text(text)).casefold())
    return _ZEROS.sub(r"\1\2", plain)


def is_cut(value: object) -> bool:
    """Whether digits of the identifier are lost: scientific notation, or a float too large to hold all whole numbers.

    The plus sign is needed: `12e5` may well be hexadecimal.

    >>> [is_cut(value) for value in ("1.23457E+11", 2.0**53, "12e5", "123457000000", 1234.0)]
    [True, True, False, False, False]
    """
    if isinstance(value, float):
        return abs(value) >= EXACT
    text = clean_text(str(value))
    if _FRACTION.fullmatch(text):  # of a float that a program wrote as text
        return abs(int(text.partition(".")[0])) >= EXACT
    return _CUT.fullmatch(text) is not None
