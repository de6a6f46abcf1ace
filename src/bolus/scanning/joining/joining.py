"""A table beside the images: which of its rows belongs to which image, and the columns that are taken from it.

Keys are compared before anything is made private, so that the same keyed hash then holds for what was joined. Nothing
of the table is kept but the columns that a person names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bolus.data.cohort.cleaning import clean_values
from bolus.data.cohort.table import read_table
from bolus.data.text.spelling import text_of
from bolus.errors import CohortError, UsageError
from bolus.scanning.days import day_numbers, to_dates
from bolus.scanning.found import Found
from bolus.scanning.joining.keys import find_keys, image_keys, key_texts
from bolus.scanning.joining.matching import Matches, match_rows
from bolus.scanning.joining.taken import check_take, check_taken


def join(
    found: Found,
    table: str | Path,
    *,
    on: Sequence[str] = ("patient", "date"),
    within: int | None = None,
    take: Mapping[str, str],
) -> Found:
    r"""Columns of a table for the images that its rows belong to.

    A row belongs to all images with its keys. Where one of them is the date, the days must be the same, or lie at most
    `within` days apart: then an image takes the value of the nearest day that has one, and of two as near the earlier.
    Rows of one day that disagree leave the value missing, and are counted.

    Args:
        found: images, before they are made private.
        table: CSV, TSV or Parquet.
        on: keys: `patient`, `date` (of the study), `accession` (AccessionNumber), `instance` (SOPInstanceUID) or
            `image` (the file's name or path). `KEY=COLUMN` where the table calls it otherwise.
        within: days; None is 0.
        take: role -> column of the table, such as `label:finding` -> `Finding`. Where the images have the role already,
            the table wins.

    Returns:
        The images with the columns that were taken, and sentences on rows and images without a partner.

    Raises:
        CohortError: no such column, no image with such a key, dates that cannot be read, no row that belongs to an
            image, or a column of dates, identifiers or free text. No value is shown.
        UsageError: an unknown key or role, nothing to take, or `within` without a date.

    Example:
        >>> import tempfile
        >>> images = pd.DataFrame({"image": ["/a.png", "/b.png"], "patient": ["7", "8"]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "labels.csv").write_text("MRN,Finding\n7.0,edema\n9,none\n")
        ...     made = join(Found("tree", images, {}, ("patient",)), Path(folder, "labels.csv"),
        ...                 on=["patient=MRN"], take={"label:finding": "Finding"})
        >>> made.table["label:finding"].tolist(), made.notes[0]
        (['edema', None], 'labels.csv: 1 of 2 rows belong to an image, by patient; 1 is of no patient with images.')
    """
    path = Path(table)
    labels = read_table(path)
    if not take:
        raise UsageError("--join without --take: expected a column to take, such as --take label:finding=Finding")
    check_take(take, [str(name) for name in labels.columns], path.name)
    keys = find_keys(on, labels, found.table, path.name)
    if within is not None and ("date" not in keys or within < 0):
        wrong = "it is negative" if within < 0 else "the rows are not joined by date; say --on patient,date"
        raise UsageError(f"--within {within}: {wrong}")
    images, rows = _spell(found, labels, keys, path.name)
    matches = match_rows(images, rows, within=within or 0)
    if not len(matches.row):
        alike = f"; {matches.alike:,} {_ALIKE}" if matches.alike else ""
        found_none = f"none of {len(labels):,} rows belongs to an image, by {' and '.join(keys)}"
        raise CohortError(f"{path.name}: {found_none}: {_list(matches.rows)}{alike}")
    made, roles, notes = found.table.copy(), dict(found.roles), _count(matches, keys, within, path.name)
    for role, column in take.items():
        values, apart = _nearest(matches, labels[column])
        values.index = made.index
        check_taken(values, role, column, made["patient"])
        name = next((each for each, known in roles.items() if known == role), role)
        if apart:
            notes.append(f"{path.name}: {role} is missing in {apart:,} images, of which rows of one day disagree.")
        if name in made:
            notes += _replace(made, name, role, values, path.name)
        else:
            made[name] = values
        roles[name] = role
    return replace(found, table=made, roles=roles, notes=(*found.notes, *notes))


_ALIKE = (
    "more would belong to one if case, separators and leading zeros did not count; spell both alike if they are one"
)


def _spell(
    found: Found, labels: pd.DataFrame, keys: Mapping[str, str], where: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The keys of images and of rows in one spelling, and their `day` where dates are among the keys."""
    images, rows = pd.DataFrame(index=found.table.index), pd.DataFrame(index=labels.index)
    for key, column in keys.items():
        if key == "date":
            dates, bad, why = to_dates(labels[column])
            if bad.any() and dates.isna().all():
                raise CohortError(f"{where}: column {column!r}: expected dates, found none that can be read: {why}")
            images["day"], rows["day"] = day_numbers(found.table["date"]), day_numbers(dates)
        elif key == "image":
            images[key], rows[key] = image_keys(found.table["image"], labels[column])
        else:
            bids = found.kind in ("bids", "mixed") and key == "patient"
            images[key], rows[key] = (key_texts(each, bids=bids) for each in (found.table[key], labels[column]))
    return images, rows


def _nearest(matches: Matches, column: pd.Series[Any]) -> tuple[pd.Series[Any], int]:
    """The value of each image: of the nearest row that has one; and in how many images rows of that day disagree."""
    texts = column.map(text_of).to_numpy(dtype=object)[matches.row]
    held = pd.DataFrame({"group": matches.group, "text": texts, "apart": matches.days})
    held = held[held["text"] != ""]
    held["far"] = held["apart"].abs()
    held = held.sort_values(["group", "far", "apart"], kind="stable")
    first = held.groupby("group")[["far", "apart"]].transform("first")
    held = held[(held["far"] == first["far"]) & (held["apart"] == first["apart"])]
    kinds = held.groupby("group")["text"].agg(["first", "nunique"])
    values = np.full(max(matches.image.max(initial=-1), 0) + 2, None, dtype=object)  # the last one is of no group
    agreed = kinds[kinds["nunique"] == 1]
    values[agreed.index.to_numpy(np.int64)] = agreed["first"].to_numpy(dtype=object)
    disagreeing = kinds.index[kinds["nunique"] > 1].to_numpy()
    return pd.Series(values[matches.image], dtype=object), int(np.isin(matches.image, disagreeing).sum())


def _replace(made: pd.DataFrame, name: str, role: str, values: pd.Series[Any], where: str) -> list[str]:
    """Put the values in the place of those that the images have, in place; and how many differed."""
    known = values.notna()
    old, new = made[name].astype(object), values.where(known, made[name])
    spelled = [clean_values(pd.Series(each.to_numpy(dtype=object), name=name), role) for each in (old, new)]
    both = known.to_numpy() & spelled[0].notna().to_numpy()
    differ = int((both & (spelled[0].astype(str) != spelled[1].astype(str)).to_numpy()).sum())
    made[name] = new
    return [f"{where}: {role} was another one in {differ:,} images; the table was taken."] if differ else []


def _count(matches: Matches, keys: Mapping[str, str], within: int | None, where: str) -> list[str]:
    """Rows with and without an image, and images with and without a row."""
    by = " and ".join(keys) + (f" within {within:,} days" if within else "")
    notes = []
    for reasons, text in (
        (matches.rows, f"{where}: {{}} rows belong to an image, by {by}"),
        (matches.images, f"{{}} images have a row of {where}"),
    ):
        said = text.format(f"{int((reasons == '').sum()):,} of {len(reasons):,}")
        notes.append(f"{said}; {_list(reasons)}." if (reasons != "").any() else f"{said}.")
    if matches.alike:
        notes.append(f"{where}: {matches.alike:,} {_ALIKE}.")
    return notes


def _list(reasons: pd.Series[Any]) -> str:
    """How many have no partner, and why."""
    counts = reasons[reasons != ""].value_counts()
    return ", ".join(f"{count:,} {'is' if count == 1 else 'are'} {reason}" for reason, count in counts.items())
