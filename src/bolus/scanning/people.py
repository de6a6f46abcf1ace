"""Identifiers become keyed hashes, dates become days since each patient's first study, paths become links."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bolus.data.images.file_names import EXTENSIONS
from bolus.data.text.ages import in_years, spell_age
from bolus.data.text.formulas import guard
from bolus.data.text.identifiers import fold_identifier, identifier_text
from bolus.errors import UsageError
from bolus.scanning.days import day_numbers
from bolus.scanning.found import Found
from bolus.scanning.privacy import Key, as_text, private_folder, write_private

OLDEST = 89  # years; above, an age alone can tell who someone is (45 CFR 164.514)
KEPT = ("spacing_row", "spacing_column", "burned_in")
"""Columns without a role that stay."""


def make_private(
    found: Found, key: Key, *, keep_ids: bool = False, plain_paths: bool = False, known: Iterable[str] = ()
) -> tuple[pd.DataFrame, list[str]]:
    """The rows as they can be given away, and sentences.

    Patients, series and whatever else is `identifying` become keyed hashes. Two spellings of a patient are one person
    where they differ only by case, separators and leading zeros and have one birth date. `time` is in days since the
    first study that any scan with this key saw. Images and masks become names of links.

    Args:
        found: raw rows.
        key: of the hashes; its ledger is brought up to date, not saved.
        keep_ids: identifiers stay as they are, and so do ages.
        plain_paths: paths stay as they are.
        known: identifiers of a table that rows are added to, in whose spelling kept ones are written.

    Returns:
        Columns with a role, time, and `KEPT`.

    Example:
        >>> table = pd.DataFrame({"image": ["/x/Doe/a.png"], "patient": ["Doe"]})
        >>> found = Found("tree", table, {"image": "image", "patient": "patient"}, ("patient",))
        >>> made, _ = make_private(found, Key(Path("k"), b"0" * 32), plain_paths=True)
        >>> made["patient"].str.startswith("pa-").all()
        np.True_
    """
    table, notes = found.table.copy(), list[str]()
    table["patient"], of_people = _name_patients(table, key, known if keep_ids else None)
    notes += of_people
    of_places = (column for column, role in found.roles.items() if role in ("site", "series"))
    for column in dict.fromkeys((*found.identifying, *of_places)):
        if column != "patient" and not keep_ids:
            what = found.roles.get(column, column)
            table[column] = _each(table[column], partial(key.name, what))
    if "date" in table:
        table["time"] = _days(table["patient"], day_numbers(table["date"]), key)
    for column, role in found.roles.items():
        if in_years(role, column) and not keep_ids:
            old = pd.to_numeric(_each(table[column], spell_age), errors="coerce") > OLDEST
            if number := int(old.sum()):
                capped = OLDEST + 1 if table[column].dtype.kind in "fi" else str(OLDEST + 1)
                table[column] = table[column].mask(old, capped)
                notes.append(f"{role}: above {OLDEST} years in {number:,} rows, written {OLDEST + 1}.")
    if not plain_paths:
        for column in ("image", "mask"):
            if column in table:
                table[column] = _link(table[column], key)
    named = {column for column in found.roles if column in table}
    kept = [column for column in table.columns if column in named or column in KEPT or column == "time"]
    return table[kept], notes


def _each(series: pd.Series[Any], change: Any) -> pd.Series[Any]:
    codes, kinds = pd.factorize(series)
    made = np.array([*(change(as_text(kind)) for kind in kinds), None], dtype=object)
    return pd.Series(made[codes], index=series.index)


def _name_patients(table: pd.DataFrame, key: Key, kept: Iterable[str] | None) -> tuple[pd.Series[Any], list[str]]:
    """A name for each person; see `make_private` for which spellings are one.

    Where identifiers are kept, a person goes by the spelling in `kept`, else by the first one.
    """
    spelled = _each(table["patient"], identifier_text)
    births: dict[str, str] = {}
    if "birth" in table:
        known = pd.DataFrame({"id": spelled, "birth": table["birth"]}).dropna().drop_duplicates("id")
        births = dict(zip(known["id"], known["birth"].dt.strftime("%Y%m%d"), strict=True))
    ledger, names, merged = key.ledger, dict[str, str](), 0
    folded: dict[str, set[str]] = {}
    own_name = partial(key.name, "patient")
    spelling = {ledger.alias.get(key.digest("alias", text)) or own_name(text): text for text in kept or ()}
    for text in sorted(spelled.dropna().unique()):
        own = own_name(text)
        digest, person = key.digest("alias", text), None
        if text in births:
            person = key.digest("person", f"{fold_identifier(text)}\0{births[text]}")
        name = ledger.alias.get(digest) or (ledger.person.get(person) if person else None) or own
        if name != own:
            ledger.alias[digest] = name
            merged += 1
        if person:
            ledger.person.setdefault(person, name)
        names[text] = name if kept is None else spelling.setdefault(name, text)
        folded.setdefault(fold_identifier(text), set()).add(name)
    notes = []
    if merged:
        notes.append(f"patient: {merged:,} identifiers are other spellings of a patient with the same birth date.")
    if apart := sum(len(each) > 1 for each in folded.values()):
        notes.append(
            f"patient: {apart:,} groups of identifiers differ only by case, separators or leading zeros, without one "
            "birth date that would say they are one; they stay apart. If they are one person, a split can separate "
            "what belongs together: correct the source."
        )
    return spelled.map(names), notes


def _days(patients: pd.Series[Any], days: np.ndarray[Any, Any], key: Key) -> pd.Series[Any]:
    """Days since the first day of each patient, which the ledger learns where it does not know it."""
    firsts = pd.Series(days, index=patients.index).groupby(patients).min().dropna()
    for name, day in firsts.items():
        key.ledger.first_day.setdefault(key.digest("first day", str(name)), int(day))
    first = _each(patients, lambda name: key.ledger.first_day.get(key.digest("first day", name)))
    return pd.Series(days, index=patients.index) - pd.to_numeric(first).astype(np.float64)


def links_of(key: Key) -> Path:
    """The folder of links to images."""
    return key.beside("links")


def _link(paths: pd.Series[Any], key: Key) -> pd.Series[Any]:
    """Names of links to these files, made in the private folder."""
    folder = private_folder(links_of(key))

    def link(path: str) -> str | None:
        if not path:
            return None
        ending = next((each for each in EXTENSIONS if path.lower().endswith(each)), "")
        digest = key.digest("path", path)
        name = f"{digest[:2]}/{digest}{ending}"
        place = folder / name
        try:
            if not place.is_symlink() or str(place.readlink()) != path:
                place.parent.mkdir(mode=0o700, exist_ok=True)
                place.unlink(missing_ok=True)
                place.symlink_to(path)
        except (OSError, NotImplementedError):
            raise UsageError(
                "links to the images cannot be made in the folder of the key; --paths plain writes the paths of the "
                "images into the table as they are, where they may hold identifiers"
            ) from None
        return name

    return _each(paths, link)


def write_left_out(left_out: Mapping[str, Sequence[Path]], key: Key) -> Path:
    """The files that were left out, each with its reason, for their owner only."""
    lines = ["reason,path"]
    for reason, paths in sorted(left_out.items()):
        for path in paths:
            quoted = guard(os.fspath(path)).replace('"', '""')
            lines.append(f'"{reason}","{quoted}"')
    place = key.beside("left-out.csv")
    write_private(place, "\n".join(lines) + "\n")
    return place
