"""participants.tsv, sessions.tsv, scans.tsv and the tables of phenotype/: what they say of an image.

The most specific table that says something wins: scans, then sessions, then participants and phenotype. `n/a` says
nothing.
"""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bolus.data.text.dates import DAYS_OF
from bolus.data.text.spelling import as_number, text_of

# Of columns that this module reads itself; none of them is offered to be taken.
OWN = frozenset({"participant_id", "session_id", "filename", "acq_time", "age", "sex"})
_SEXES = {"m": "M", "male": "M", "f": "F", "female": "F", "o": "O", "other": "O"}
_AT_LEAST = re.compile(r"(\d+(?:\.\d+)?)\+")  # ages above 89 are often written 89+

Row = Mapping[str, str]


@dataclass
class Tables:
    """Rows of all tables, by what they are about.

    Args:
        participants: label of the subject -> its row.
        sessions: labels of subject and session -> its row.
        scans: file -> its row.
        columns: of any table, but those that are read for themselves.
        age_in_years: what an age of participants.tsv or sessions.tsv is multiplied by.
        unreadable: tables that could not be read.
        repeated: how many rows are of a participant, session or scan that an earlier row of the same table is of.
    """

    participants: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    sessions: dict[tuple[str, str], dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    scans: dict[Path, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    columns: list[str] = field(default_factory=list)
    age_in_years: float = 1.0
    unreadable: list[Path] = field(default_factory=list)
    repeated: int = 0

    def say(self, column: str, path: Path, subject: str, session: str) -> str:
        """What the most specific table says of an image; empty where none does."""
        rows: tuple[Row, ...] = (
            self.scans.get(path, {}),
            self.sessions.get((subject, session), {}),
            self.participants.get(subject, {}),
        )
        return next(filter(None, (row.get(column, "") for row in rows)), "")

    def age(self, path: Path, subject: str, session: str) -> float:
        """In years, NaN where no table says it."""
        text = self.say("age", path, subject, session)
        above = _AT_LEAST.fullmatch(text)
        number = as_number(above[1] if above else text)
        return float("nan") if number is None else number * self.age_in_years

    def sex(self, path: Path, subject: str, session: str) -> str:
        """`M`, `F` or `O` as DICOM writes it; any other text as it is."""
        text = self.say("sex", path, subject, session)
        return _SEXES.get(text.lower(), text)


def read_tables(root: Path, files: Iterable[Path]) -> Tables:
    """The tables among the files of a data set; one that cannot be read is left out, and listed."""
    found = Tables()
    for path in files:
        if path.suffix != ".tsv":
            continue
        place = path.relative_to(root).parts
        whole = path.name == "participants.tsv" or (place[0] == "phenotype" and len(place) == 2)
        if not (whole and len(place) <= 2) and not path.name.endswith(("_sessions.tsv", "_scans.tsv")):
            continue
        rows = _read(path)
        if rows is None:
            found.unreadable.append(path)
            continue
        _file(found, path, place, rows)
    if (root / "participants.json").is_file():
        found.age_in_years = _years(root / "participants.json")
    return found


def _read(path: Path) -> list[dict[str, str]] | None:
    """The rows of a small table, empty where a cell is missing; None of one that cannot be read."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *lines = [line for line in csv.reader(file, delimiter="\t") if line]
    except (OSError, ValueError, csv.Error):  # also without a header, or not UTF-8
        return None
    if len(set(header)) < len(header) or any(len(line) != len(header) for line in lines):
        return None
    return [{name.strip(): text_of(cell) for name, cell in zip(header, line, strict=True)} for line in lines]


def _file(found: Tables, path: Path, place: tuple[str, ...], rows: list[dict[str, str]]) -> None:
    """Put the rows of a table where they belong."""
    seen: set[Any] = set()
    for row in rows:
        if path.name.endswith("_scans.tsv"):
            key: Any = path.parent / row.get("filename", "")
            target = found.scans[key]
        elif path.name.endswith("_sessions.tsv") or row.get("session_id"):
            subject = row.get("participant_id") or place[0]
            key = (_label(subject, "sub"), _label(row.get("session_id", ""), "ses"))
            target = found.sessions[key]
        else:
            key = _label(row.get("participant_id", ""), "sub")
            target = found.participants[key]
        if key in seen:
            found.repeated += 1
        seen.add(key)
        for column, text in row.items():
            if text:
                target.setdefault(column, text)
            if column not in OWN and column not in found.columns:
                found.columns.append(column)


def _label(text: str, key: str) -> str:
    return text.removeprefix(f"{key}-")


def _years(path: Path) -> float:
    """How many years the unit of age in participants.json is; 1 where it says none that is known."""
    try:
        about = json.loads(path.read_text(encoding="utf-8-sig"))["age"]
        unit = str(about.get("Units", "years")).strip().lower()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 1.0
    unit = unit if unit in DAYS_OF else f"{unit}s"
    return 1.0 if unit == "years" else DAYS_OF.get(unit, DAYS_OF["years"]) / DAYS_OF["years"]
