"""Ages as DICOM writes them, `058Y` or `011M`, as years."""

from __future__ import annotations

import re

from bolus.data.text.spelling import text_of

OLDEST = 120.0
"""Years above which an age is hardly one."""

_AGE = re.compile(r"([0-9]{1,3}) ?([YMWD])", re.IGNORECASE)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_A_YEAR_HAS = {"Y": 1.0, "M": 12.0, "W": 365.25 / 7, "D": 365.25}
_JOINED = ("patientage", "patientsage", "subjectage", "participantage")
_OTHER_UNITS = frozenset({"month", "months", "week", "weeks", "day", "days", "gestational", "gestation", "bone"})


def is_age(role: str, column: str) -> bool:
    """Whether a score or an attribute holds ages, by its name or that of its column.

    >>> is_age("attribute:age", "x"), is_age("score:y", "PatientAge"), is_age("score:stage", "stage")
    (True, True, False)
    """
    if not role.startswith(("attribute:", "score:")):
        return False
    return any("age" in words or "".join(words) in _JOINED for words in (_words(role), _words(column)))


def in_years(role: str, column: str, unit: str | None = None) -> bool:
    """Whether ages of a column are to be judged as years: nothing says that they are in another unit.

    >>> in_years("score:age", "age_months"), in_years("score:age", "age"), in_years("score:age", "age", "weeks")
    (False, True, False)
    """
    stated = unit is None or unit.strip().lower() in {"y", "yr", "yrs", "year", "years"}
    return is_age(role, column) and stated and not (_OTHER_UNITS & {*_words(role), *_words(column)})


def spell_age(text: str) -> str:
    """An age of DICOM's kind as a number of years; any other text as it is.

    >>> spell_age("058Y"), spell_age("6m"), spell_age("58"), spell_age("411Y")
    ('58', '0.5', '58', '411')
    """
    found = _AGE.fullmatch(text)
    if found is None:
        return text
    return text_of(int(found[1]) / _A_YEAR_HAS[found[2].upper()])


def _words(name: str) -> list[str]:
    """The words of a name, in lower case, split at capitals and at whatever is no letter."""
    return [word.lower() for word in _WORD.findall(name.rpartition(":")[2])]
