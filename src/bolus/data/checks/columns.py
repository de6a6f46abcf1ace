"""What `bolus check` says of the values of columns: identifiers that look alike, codes that may mean missing, ages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.checks.doubtful import doubtful_values, third_value
from bolus.data.checks.report import Finding
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.roles import CATEGORIES, is_number_role
from bolus.data.text.ages import OLDEST, in_years
from bolus.data.text.identifiers import EXACT, fold, fold_identifier, is_cut
from bolus.data.text.laterality import names_no_side
from bolus.data.text.spelling import missing_option, shape_of

IDENTIFIERS = ("patient", "series", "site")
CLASSES = tuple(role for role in CATEGORIES if role not in (*IDENTIFIERS, "laterality", "split"))
LONGEST = 150.0  # years between two times of one cohort
_SHOWN = 5  # values of a column that are shown at most


def check_columns(cohort: Cohort) -> list[Finding]:
    """Everything there is to ask about the values of the columns, in the order of the roles.

    Only the table is read. Identifiers are never shown.

    Example:
        >>> from bolus.data.cohort.spec import CohortSpec
        >>> frame = pd.DataFrame({"image": list("abc"), "patient": ["7", "007", "8"], "sex": ["F", "M", "unknown"]})
        >>> [(found.kind, found.rows) for found in check_columns(Cohort(frame, CohortSpec(table="t.csv")))]
        [('look_alike_identifiers', (1, 2)), ('maybe_missing', (3,))]
    """
    found: list[Finding | None] = []
    for role in cohort.roles:
        if role in IDENTIFIERS:
            found += [_cut(cohort, role), _alike_identifiers(cohort, role)]
        if role in CLASSES or (role.startswith(("label:", "attribute:")) and not _counted(cohort, role)):
            found.append(_alike_classes(cohort, role))
        asked = _third(cohort, role) if role.startswith("label:") else None
        found += [asked] if asked is not None else [_maybe_missing(cohort, role)]
        if in_years(role, cohort.roles[role], cohort.spec.units.get(role)):
            found.append(_implausible(cohort, role))
        if role == "time":
            found.append(_long(cohort))
        if role == "laterality":
            found.append(_no_side(cohort, role))
    return [finding for finding in found if finding is not None]


def _counted(cohort: Cohort, role: str) -> bool:
    return pd.api.types.is_numeric_dtype(cohort.values(role))


def _where(cohort: Cohort, role: str) -> str:
    return f"{role} (column {cohort.roles[role]!r})"


def _numbered(rows: npt.ArrayLike) -> tuple[int, ...]:
    """Rows as a person counts them."""
    return tuple((np.asarray(rows, np.int64) + 1).tolist())


def _no_side(cohort: Cohort, role: str) -> Finding | None:
    """Values that name no side, in a column of sides, in which they count as missing."""
    odd = names_no_side(cohort.stated(role))
    if not odd.any() or cohort.values(role).notna().to_numpy()[odd].any():  # no column of sides
        return None
    message = (
        f"{_where(cohort, role)}: {int(odd.sum()):,} values name no side and count as missing; spell them left or "
        "right (L, R, OS, OD), or declare what means missing with --missing laterality=VALUE"
    )
    return Finding("warning", "no_side", message, _numbered(np.flatnonzero(odd)))


def _cut(cohort: Cohort, role: str) -> Finding | None:
    """Identifiers whose last digits a spreadsheet, or a float, has lost."""
    series = cohort.columns.plain(cohort.roles[role])
    if pd.api.types.is_float_dtype(series):
        most = 2**24 if str(series.dtype).lower() == "float32" else EXACT
        cut = (series.abs() >= most).to_numpy(np.bool_, na_value=False)
    elif pd.api.types.is_numeric_dtype(series):
        return None
    else:
        codes, values = pd.factorize(series)
        cut = np.array([*(is_cut(value) for value in values.tolist()), False], np.bool_)[codes]
    if not cut.any():
        return None
    message = (
        f"{_where(cohort, role)}: these numbers were too long for the program that wrote them (as 1.23457E+11): "
        "several identifiers may have become one; export the column again, as text"
    )
    return Finding("error", "cut_identifiers", message, _numbered(np.flatnonzero(cut)))


def _alike(values: Sequence[str], folded: Iterable[str]) -> list[list[int]]:
    """Places of the values that are one when folded, where there are several."""
    keys = pd.Series(list(folded), dtype="str")
    again = keys.index[keys.duplicated(keep=False)]
    ranked = sorted(again.tolist(), key=lambda place: (keys[place], values[place]))
    return [list(places) for _, places in groupby(ranked, key=lambda place: keys[place])]


def _alike_identifiers(cohort: Cohort, role: str) -> Finding | None:
    codes, values = pd.factorize(cohort.values(role))
    names = [str(value) for value in values.tolist()]
    groups = _alike(names, map(fold_identifier, names))
    if not groups:
        return None
    rows = np.flatnonzero(np.isin(codes, [place for places in groups for place in places]))
    number = sum(map(len, groups))
    message = (
        f"{_where(cohort, role)}: {number} identifiers differ from others only in case, leading zeros, separators or "
        "a leading sub-, and are taken as different; if they are one, spell them in one way"
    )
    return Finding("warning", "look_alike_identifiers", message, _numbered(rows))


def _alike_classes(cohort: Cohort, role: str) -> Finding | None:
    codes, values = pd.factorize(cohort.values(role))
    several = role.startswith("label:")
    cells = [str(value).split("|") if several else [str(value)] for value in values.tolist()]
    names = sorted({part for parts in cells for part in parts})
    groups = _alike(names, map(fold, names))
    if not groups:
        return None
    alike = {names[place] for places in groups for place in places}
    holds = np.array([*(not alike.isdisjoint(parts) for parts in cells), False], np.bool_)
    pairs = pd.DataFrame({"value": codes, "patient": cohort.encoded("patient")}).drop_duplicates()
    several_have = set(pairs.loc[pairs["value"].duplicated(), "value"])
    known = {part for code, parts in enumerate(cells) if code in several_have for part in parts}
    shown = "; ".join(_quoted([names[place] for place in places], known) for places in groups[:_SHOWN])
    more = f"; and {len(groups) - _SHOWN} more" if len(groups) > _SHOWN else ""
    message = (
        f"{_where(cohort, role)}: {shown}{more} differ only in case, space or form, and are taken as different; if "
        "they are one, spell them in one way"
    )
    return Finding("warning", "look_alike_classes", message, _numbered(np.flatnonzero(holds[codes])))


def _quoted(names: Sequence[str], known: set[str]) -> str:
    """The values; their shapes only where no two patients share one of them, since they may then name a patient."""
    if known.isdisjoint(names):
        return " and ".join(repr(shape_of(name)) for name in names)
    return " and ".join(map(repr, names))


def _maybe_missing(cohort: Cohort, role: str) -> Finding | None:
    found = doubtful_values(cohort, role)
    if not found:
        return None
    counts = ", ".join(f"{value!r} in {_rows(len(rows))}" for value, rows in found.items())
    message = (
        f"{_where(cohort, role)}: {counts}: taken as a value like any other; if it means missing, add "
        f"{missing_option(cohort.roles[role], *found)}"
    )
    rows = np.unique(np.concatenate(list(found.values())))
    return Finding("warning", "maybe_missing", message, _numbered(rows))


def _third(cohort: Cohort, role: str) -> Finding | None:
    """A third value beside 0 and 1, such as the -1 that means uncertain in some sets of radiographs."""
    found = third_value(cohort, role)
    if found is None:
        return None
    value, rows = found
    message = (
        f"{_where(cohort, role)}: beside 0 and 1 a third value, {value!r} in {_rows(len(rows))}: uncertain or missing, "
        "perhaps? It is a class of its own now; to leave these rows out, add "
        f"{missing_option(cohort.roles[role], value)}"
    )
    return Finding("warning", "third_value", message, _numbered(rows))


def _implausible(cohort: Cohort, role: str) -> Finding | None:
    if not (is_number_role(role) or _counted(cohort, role)):
        return None
    ages = cohort.encoded(role)
    wrong = (ages < 0) | (ages > OLDEST)  # not where NaN
    if not wrong.any():
        return None
    values = np.unique(ages[wrong])
    shown = ", ".join(f"{value:g}" for value in values[:_SHOWN]) + (" ..." if len(values) > _SHOWN else "")
    message = (
        f"{_where(cohort, role)}: implausible ages in years ({shown}); if they are in another unit, say so in "
        f"cohort.yaml (units: {{'{role}': months}}), if they mean missing, with --missing"
    )
    return Finding("warning", "implausible_age", message, _numbered(np.flatnonzero(wrong)))


def _long(cohort: Cohort) -> Finding | None:
    days = cohort.encoded("time")
    known = days[np.isfinite(days)]
    years = (known.max() - known.min()) / 365.2425 if len(known) else 0.0
    if years <= LONGEST:
        return None
    ends = np.flatnonzero((days == known.min()) | (days == known.max()))
    message = (
        f"{_where(cohort, 'time')}: read as days, its values lie {years:.0f} years apart; perhaps they are times of "
        "day, dates in a form that is not known, or in another unit (in cohort.yaml, units: {time: hours})"
    )
    return Finding("warning", "long_time_span", message, _numbered(ends))


def _rows(number: int) -> str:
    return f"{number} row{'' if number == 1 else 's'}"
