"""The columns of a table that have no role: what their values look like, and the option that would give each one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.cohort.cleaning import clean_values
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.split import SIDES
from bolus.data.text.ages import is_age
from bolus.data.text.dates import FIRST_DATE, read_times
from bolus.data.text.laterality import NAMES
from bolus.data.text.spelling import as_number, missing_option

MIN_ROWS = 10  # below which it means nothing that every row has another value
FEW_NUMBERS = 10  # whole numbers up to which they are classes
FEW_TEXTS = 30  # different texts up to which they are classes
TRIED = 100  # different values that are read as dates, before the whole column is
MUCH = 1000  # different texts above which a column is free text or identifiers
_SEXES = frozenset({"f", "m", "female", "male", "d", "o", "x", "other", "unknown"})
_OF_PERSONS = re.compile(r"birth|born|dob(?![a-z])|death|died|dod(?![a-z])", re.IGNORECASE)
_NO_NAME = re.compile(r"[^\w.-]+")


class Unused(NamedTuple):
    """A column without a role.

    Args:
        column: its name.
        option: what is added to a command line to give it a role, as a shell reads it; empty where none is suggested.
        why: what its values look like, in a few words, without one of them that may name a patient.
    """

    column: str
    option: str
    why: str


def unused_columns(cohort: Cohort) -> list[Unused]:
    """Every column without a role, in the order of the table, with the role that its values suggest.

    Dates are a time, numbers a score, few different values a label; sexes, ages, left and right, and the sides of a
    split are what they are. A role without a name is suggested once, and not where a column has it. For what is the
    same in every row, different in every row, or of one patient alone, nothing is suggested.

    Example:
        >>> from bolus.data.cohort.spec import CohortSpec
        >>> frame = pd.DataFrame({"image": list("abc"), "patient": list("pqr"), "edema": list("yny"), "x": 1})
        >>> for each in unused_columns(Cohort(frame, CohortSpec(table="t.csv"))): print(*each, sep=" | ")
        edema | --role label:edema=edema | 2 classes
        x |  | the same in every row
    """
    taken, named = set(cohort.roles), set(cohort.roles.values())
    found = []
    for column in (name for name in cohort.columns if name not in named):
        try:
            role, why, extra = _guess(cohort, column, taken)
        except TypeError:  # of what Parquet can hold beside text and numbers
            role, why, extra = "", "neither text nor numbers nor dates", ""
        if role:
            taken.add(role)
        option = f"--role {shlex.quote(f'{role}={column}')}{extra}" if role else ""
        found.append(Unused(column, option, why))
    return found


def _guess(cohort: Cohort, column: str, taken: Collection[str]) -> tuple[str, str, str]:
    """The role that a column's values suggest, or nothing; why; and further options that it needs."""
    codes = [code for key in ("*", column) for code in cohort.spec.missing.get(key, [])]
    raw, patients = cohort.columns.plain(column), cohort.encoded("patient")
    dates = _dates(raw, codes, whole="time" not in taken)
    values = raw if dates is None and _is_much_text(raw) else clean_values(raw, "attribute:x", codes)
    kinds, different = pd.factorize(values)
    present = int((kinds >= 0).sum())
    if not present:
        return "", "no value", ""
    if len(different) == 1:
        return "", "the same in every row" + ("" if present == len(values) else " that has it"), ""
    if dates is not None:
        if _OF_PERSONS.search(column):
            return "", "dates of persons, not of images", ""
        if not dates and "time" not in taken:
            return "time", "dates", ""
        return "", dates or "dates, and another column has the role time", ""
    if is_age("attribute:x", column) and pd.api.types.is_numeric_dtype(values):
        return _named("attribute", "age" if "attribute:age" not in taken else column, taken), "ages", ""
    whole = _whole(values)
    if whole is not False and len(different) == present >= MIN_ROWS:
        what = "an identifier, unless it is measured" if whole else "an identifier or free text"
        return "", f"different in every row: {what}", ""
    if whole is not False and _of_one_patient(kinds, patients, repeated=bool(whole)):
        return "", f"each value is of one patient alone: an identifier{', unless it is measured' if whole else ''}", ""
    if whole is not None:
        few = whole and len(different) <= FEW_NUMBERS
        what = f"{len(different)} classes" if few else f"numbers, {len(different)} different"
        return _named("label" if few else "score", column, taken), what, ""
    return _guess_of_text(column, values, patients, taken)


def _guess_of_text(
    column: str, values: pd.Series[Any], patients: npt.NDArray[np.int64], taken: Collection[str]
) -> tuple[str, str, str]:
    kinds, different = pd.factorize(values)
    texts = [str(text) for text in different.tolist()]
    lower = {text.lower().removesuffix(".") for text in texts}
    if lower <= NAMES.keys() and {NAMES[text] for text in lower} >= {0, 1} and "laterality" not in taken:
        return "laterality", "left and right", ""
    if lower <= SIDES.keys() and len({SIDES[text] for text in lower}) > 1 and "split" not in taken:
        torn = pd.DataFrame({"kind": kinds, "patient": patients})[kinds >= 0].drop_duplicates()["patient"].duplicated()
        if torn.any() or (kinds < 0).any():
            return "", "sides of a split, with patients on two or none", ""
        return "split", "sides of a split, in place of the hash", ""
    if lower <= _SEXES and {text[0] for text in lower} >= {"f", "m"}:
        return _named("attribute", "sex" if "attribute:sex" not in taken else column, taken), "sexes", ""
    words = np.array([as_number(text) is None for text in texts])
    share = np.append(words, False)[kinds].sum() / (kinds >= 0).sum()
    if 0 < share < 0.5 and (~words).sum() > FEW_NUMBERS:
        return _nearly_numbers(column, kinds, texts, words, patients, taken)
    classes = len({part for text in texts for part in text.split("|")})
    if classes <= FEW_TEXTS and len(texts) <= max(MIN_ROWS, (kinds >= 0).sum() // 2):
        return _named("label", column, taken), f"{classes} classes", ""
    return "", f"text, {len(texts)} different values: too many for classes", ""


def _nearly_numbers(
    column: str,
    kinds: npt.NDArray[np.int64],
    texts: list[str],
    words: npt.NDArray[np.bool_],
    patients: npt.NDArray[np.int64],
    taken: Collection[str],
) -> tuple[str, str, str]:
    """Numbers with a little text among them, which is shown where several patients share it."""
    odd = np.append(words, False)[kinds]
    shared = pd.DataFrame({"kind": kinds[odd], "patient": patients[odd]}).groupby("kind")["patient"].nunique() > 1
    what = f"numbers, but text in {odd.sum()} row{'' if odd.sum() == 1 else 's'}"
    if words.sum() > 3 or not shared.all():
        return "", f"{what}: write numbers alone, or say with --missing which text means missing", ""
    codes = [texts[place] for place in np.flatnonzero(words).tolist()]
    return _named("score", column, taken), f"{what}, as if missing", f" {missing_option(column, *codes)}"


def _is_much_text(values: pd.Series[Any]) -> bool:
    """Whether a column has so many different texts that none of them needs to be spelled in one way to judge it."""
    if not pd.api.types.is_string_dtype(values) or values.nunique() <= MUCH:
        return False
    return sum(as_number(str(text)) is None for text in values.dropna().unique()[:TRIED]) > TRIED / 2


def _dates(raw: pd.Series[Any], codes: Iterable[Any], *, whole: bool) -> str | None:
    """None where a column holds no dates; else what keeps them from being read, or nothing.

    Where the whole of a column is not asked for, its first different values say it.
    """
    if pd.api.types.is_datetime64_any_dtype(raw):
        return ""
    sample = clean_values(pd.Series(raw.dropna().unique()[:TRIED], name=raw.name), "time", codes).dropna()
    numbers = pd.to_numeric(sample, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    if not len(sample) or (numbers < FIRST_DATE).any():
        return None  # numbers of whatever there is
    tried = read_times(sample)
    if tried.bad.all() and "change places" not in tried.why:
        return None
    values = clean_values(raw, "time", codes) if whole else sample
    times = read_times(values)
    if not times.bad.any():
        return "" if np.nanmin(times.days) == 0 else None  # days since the earliest date, which numbers are not
    some = times.bad.sum() < 0.1 * values.notna().sum()
    return f"dates, but {times.why}" if "change places" in times.why or (some and times.why) else None


def _whole(values: pd.Series[Any]) -> bool | None:
    """Whether numbers are whole; None of text."""
    if not pd.api.types.is_numeric_dtype(values):
        return None
    return bool((values.dropna() % 1 == 0).all())


def _of_one_patient(kinds: npt.NDArray[np.int64], patients: npt.NDArray[np.int64], *, repeated: bool) -> bool:
    """Whether no two patients share a value, which numbers of many may not do by chance: those must repeat as well."""
    pairs = pd.DataFrame({"kind": kinds, "patient": patients})[kinds >= 0]
    rows, pairs = len(pairs), pairs.drop_duplicates()
    alone = len(pairs) >= MIN_ROWS and bool(pairs["kind"].is_unique)
    return alone and (not repeated or rows >= 1.5 * len(pairs) or bool(pairs["patient"].is_unique))


def _named(kind: str, name: str, taken: Collection[str]) -> str:
    """A role with a name, made of a column's, that no other column has."""
    role = f"{kind}:{_NO_NAME.sub('_', name).strip('_') or 'x'}"
    while role in taken:
        role += "_"
    return role
