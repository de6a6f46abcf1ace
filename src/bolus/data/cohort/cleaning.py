"""A column of a table as its role reads it: each value in one spelling, and missing where it means that there is none.

The table itself stays as it was given. Whatever compares values (splits, relations, classes, heads) sees these ones, so
that what two programs write differently, and CSV and Parquet keep differently, is one value.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from bolus.data.cohort.roles import CATEGORIES, PATHS, is_number_role
from bolus.data.text.ages import is_age, spell_age
from bolus.data.text.classes import spell_classes
from bolus.data.text.identifiers import identifier_text, spell_identifiers
from bolus.data.text.laterality import spell_sides
from bolus.data.text.spelling import MISSING, MissingCodes, respell, text_of


def clean_values(series: pd.Series[Any], role: str, codes: Iterable[Any] = ()) -> pd.Series[Any]:
    """The values of a role.

    Identifiers and other categories are as `bolus.data.text.identifiers` spells them, labels and attributes as
    `data.text.classes` does, sides as `data.text.laterality`. Numbers are numbers where all of them are, and text as
    it was otherwise; ages such as `058Y` are years. Times and paths stay what they are.

    Args:
        series: `[rows]` of the table; its name is the column's.
        role: of the column.
        codes: values that mean missing, beside those that do in every column (`data.text.spelling.MISSING`). They are
            compared as text in one spelling, and but for identifiers as numbers as well.

    Returns:
        `[rows]`, numbers or text, with missing values missing.

    Example:
        >>> clean_values(pd.Series(["7", "7.0", "n/a"]), "patient").tolist()
        ['7', '7', nan]
        >>> clean_values(pd.Series(["058Y", "61", "?"]), "attribute:age", ["?"]).tolist()
        [58.0, 61.0, nan]
    """
    missing = MissingCodes.of(codes)
    if role in PATHS:
        return series.mask(series.isin([*MISSING, *missing.texts]))
    if role == "laterality":
        return spell_sides(as_stated(series, codes))
    if role in CATEGORIES:
        known = frozenset(map(identifier_text, missing.texts))
        spelled = spell_identifiers(series)
        return spelled.mask(spelled.isin(known)) if known else spelled
    if pd.api.types.is_datetime64_any_dtype(series) and role == "time":
        return series.mask(_is_coded(series, missing)) if missing.texts else series
    numeric = pd.api.types.is_numeric_dtype(series) and not role.startswith("label:")
    if numeric and (is_number_role(role) or not pd.api.types.is_bool_dtype(series)):
        return series.mask(series.isin(missing.numbers)) if missing.numbers else series
    if is_number_role(role) or role.startswith("attribute:"):
        texts = respell(series, lambda values: _texts(values, missing))
        if is_age(role, str(series.name)):
            texts = respell(texts, lambda values: [spell_age(value) for value in values])
        if role == "time":
            return texts
        numbers = _numbers(texts)
        if numbers is not None or is_number_role(role):
            return texts if numbers is None else numbers
        series = texts
    several = role.startswith("label:")
    return respell(series, lambda values: spell_classes(values, missing, several=several))


def as_stated(series: pd.Series[Any], codes: Iterable[Any] = ()) -> pd.Series[Any]:
    """The column as text, with what means missing missing, before anything is made of what it says.

    >>> as_stated(pd.Series(["OS", "n/a", "macula"])).tolist()
    ['OS', nan, 'macula']
    """
    missing = MissingCodes.of(codes)
    return respell(series, lambda values: _texts(values, missing))


def _is_coded(times: pd.Series[Any], missing: MissingCodes) -> pd.Series[bool]:
    """Where a time is one of the codes, with or without its time of day and zone."""
    plain = times.dt.tz_localize(None) if times.dt.tz is not None else times
    dates = [pd.to_datetime(code, errors="coerce") for code in missing.texts if len(code) >= len("1900-01-01")]
    found: pd.Series[bool] = (
        times.astype(str).isin(missing.texts) | plain.isin(dates) | plain.dt.normalize().isin(dates)
    )
    return found & times.notna()


def _texts(values: Iterable[object], missing: MissingCodes) -> list[str | None]:
    return [_unless(text_of(value), missing) for value in values]


def _unless(text: str, missing: MissingCodes | frozenset[str]) -> str | None:
    return None if text in missing else text


def _numbers(texts: pd.Series[Any]) -> pd.Series[Any] | None:
    """The column as float64; None where it has no value, or one that is no number."""
    codes, values = pd.factorize(texts)
    numbers = pd.to_numeric(pd.Series(values, dtype="str"), errors="coerce").to_numpy(np.float64, na_value=np.nan)
    if not len(numbers) or np.isnan(numbers).any():
        return None
    return pd.Series(np.append(numbers, np.nan)[codes], index=texts.index, name=texts.name)
