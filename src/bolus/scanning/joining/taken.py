"""Columns that a person asks for by name: the roles they may have, and what is refused as free text or identifiers."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd

from bolus.data.cohort.roles import NAMED, PATHS, is_number_role, is_role
from bolus.data.text.dates import FIRST_DATE, read_times
from bolus.data.text.identifiers import identifier_text
from bolus.data.text.spelling import as_number, text_of
from bolus.errors import CohortError, UsageError, suggest

_NEVER = frozenset({*PATHS, "patient", "series", "order", "time"})
MOST_TEXTS = 50  # different texts up to which a column is one of classes
FEW = 3  # different texts up to which it means nothing that each patient has another one
_SHARE = 0.5  # of texts, each counted once for a patient, above which as many different ones are no classes
_DAY = re.compile(r"\d{1,2}([-/.])\d{1,2}\1(?:\d{4}|\d\d)(?!\d).*")  # also where day and month can change places


def check_take(take: Mapping[str, str], columns: Collection[str], where: str) -> None:
    """Stop where a column is asked for that is not there, or as something that is not taken from a table.

    Args:
        take: role -> column.
        columns: that there are.
        where: the table, for the message.

    Raises:
        UsageError: a role that does not exist, or one that images and identifiers have.
        CohortError: no such column.

    Example:
        >>> check_take({"label:sick": "sick"}, ["Sick"], "t.csv")
        Traceback (most recent call last):
        bolus.errors.CohortError: t.csv: no column 'sick' to take as label:sick; did you mean 'Sick'?
    """
    for role, column in take.items():
        if role in _NEVER or not is_role(role) or role.startswith("bin:"):
            named = ", ".join(f"{prefix}NAME" for prefix in NAMED)
            raise UsageError(
                f"--take {role}={column}: expected a role such as {named}, laterality, region or site, found {role!r}"
            )
        if column not in columns:
            raise CohortError(f"{where}: no column {column!r} to take as {role}; {suggest(column, columns)}")


def check_taken(values: pd.Series[Any], role: str, column: str, patients: pd.Series[Any]) -> None:
    """Stop where the values that would go into the table are dates, identifiers or free text.

    Args:
        values: `[rows]`, missing where there is none.
        role: that they get.
        column: that they come from, for the message; none of its values is shown.
        patients: `[rows]`, their identifiers.

    Raises:
        CohortError: what was expected, and what was found, with numbers of values.

    Example:
        >>> patients = pd.Series(["p1", "p2", "p1"])
        >>> check_taken(patients, "label:x", "MRN", patients)
        Traceback (most recent call last):
        bolus.errors.CohortError: column 'MRN': expected classes or numbers for label:x, found identifiers of patients
    """
    spelled = values.map(text_of)
    there = spelled != ""
    texts, people = spelled[there], patients[there].map(identifier_text)
    kinds = texts.drop_duplicates().tolist()
    if not kinds:
        return
    expected = f"column {column!r}: expected {'numbers' if is_number_role(role) else 'classes or numbers'} for {role}"
    unread = {text for text in kinds if as_number(text) is None}
    if sum(_are_dates(kinds)) > _SHARE * len(kinds):
        raise CohortError(f"{expected}, found dates, which a scan does not keep")
    pairs = pd.DataFrame({"text": texts, "patient": people}).drop_duplicates()  # however many images share a text
    own = len(kinds) > FEW and len(kinds) == people.nunique() == len(pairs)  # each patient another text of their own
    same = len(kinds) > 1 and (texts.map(identifier_text) == people).mean() > _SHARE
    if same or (own and len(unread) > len(kinds) / 2 and "age" not in role):
        raise CohortError(f"{expected}, found identifiers of patients")
    if is_number_role(role) and unread and "age" not in role:
        raise CohortError(f"{expected}, found something else in {texts.isin(unread).sum():,} of {len(texts):,} rows")
    if len(unread) > MOST_TEXTS and len(unread) > _SHARE * pairs["text"].isin(unread).sum():
        raise CohortError(
            f"{expected}, found {len(kinds):,} different texts of {people.nunique():,} patients: free text or "
            "identifiers, which a scan does not keep"
        )


def _are_dates(texts: list[str]) -> list[bool]:
    """Which texts are dates, whatever stands beside them; years and numbers of days are none."""
    times = read_times(pd.Series(texts, dtype="str"))
    numbers = [as_number(text) for text in texts]
    read = [
        not math.isnan(times.first + day) and (number is None or abs(number) >= FIRST_DATE)
        for day, number in zip(times.days.tolist(), numbers, strict=True)
    ]
    return [known or _DAY.fullmatch(text) is not None for known, text in zip(read, texts, strict=True)]
