"""What rows of a table and images are joined by: the columns that hold it, each value in one spelling."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import pandas as pd

from bolus.data.cohort.roles import CONVENTIONAL_NAMES
from bolus.data.text.identifiers import identifier_text
from bolus.data.text.spelling import text_of
from bolus.errors import CohortError, UsageError, suggest
from bolus.scanning.tree.pattern import split_extension

# Names of columns, in lower case without spaces and punctuation; the first one that a table has is taken.
COLUMNS: dict[str, tuple[str, ...]] = {
    "patient": (*CONVENTIONAL_NAMES["patient"], "mrn", "pid"),
    "date": ("date", "studydate", "acquisitiondate", "examdate", "time"),
    "accession": ("accession", "accessionnumber", "accessionno"),
    "instance": ("instance", "sopinstanceuid", "instanceuid"),
    "image": CONVENTIONAL_NAMES["image"],
}


def find_keys(on: Sequence[str], labels: pd.DataFrame, images: pd.DataFrame, where: str) -> dict[str, str]:
    """Key -> column of the table.

    Args:
        on: keys, each alone or with `=` and its column.
        labels: the table.
        images: that it is joined to.
        where: name of the table, for messages.

    Raises:
        UsageError: an unknown key, or dates alone.
        CohortError: the table has no such column, or no image has such a key.

    Example:
        >>> images = pd.DataFrame({"image": ["a"], "patient": ["p"]})
        >>> find_keys(["patient"], pd.DataFrame({"Patient ID": ["p"]}), images, "t.csv")
        {'patient': 'Patient ID'}
    """
    plain = {"".join(c for c in str(name).lower() if c.isalnum()): str(name) for name in labels.columns}
    found: dict[str, str] = {}
    for each in on:
        key, said, column = each.strip().partition("=")
        if key not in COLUMNS:
            raise UsageError(
                f"--on {each}: expected one of {', '.join(COLUMNS)}, found {key!r}; {suggest(key, COLUMNS)}"
            )
        column = column if said else next((plain[name] for name in COLUMNS[key] if name in plain), "")
        if column not in labels.columns:
            names = [str(name) for name in labels.columns]
            near = suggest(column or key, names)
            raise CohortError(f"{where}: no column for the key {key}; say which with --on {key}=COLUMN; {near}")
        if key not in images or images[key].isna().all():
            there = ", ".join(name for name in COLUMNS if name in images and images[name].notna().any())
            raise CohortError(f"--on {key}: no image has it; keys of these images: {there}")
        found[key] = column
    if not set(found) - {"date"}:
        raise UsageError(f"--on {','.join(on)}: expected a key such as patient beside the date")
    return found


def key_texts(series: pd.Series[Any], *, bids: bool = False) -> list[str]:
    """Identifiers in one spelling, empty where there is none; of a BIDS data set without `sub-`.

    >>> key_texts(pd.Series([7.0, "sub-07", None], dtype=object), bids=True)
    ['7', '07', '']
    """
    texts = [identifier_text(value) for value in series]
    return [text.removeprefix("sub-") for text in texts] if bids else texts


def image_keys(paths: pd.Series[Any], names: pd.Series[Any]) -> tuple[list[str], list[str]]:
    """Of each image its path, and of each name in a table the path of the one image that it means, else nothing.

    A name may have folders or none, and an extension or none. One that several files have means none of them.

    Args:
        paths: of images, absolute.
        names: as the table has them.

    Example:
        >>> image_keys(pd.Series(["/r/a/1.png", "/r/b/1.png"]), pd.Series(["a/1.png", "1.png", "b/1", None]))[1]
        ['/r/a/1.png', '', '/r/b/1.png', '']
    """
    by_stem: dict[str, list[PurePosixPath]] = defaultdict(list)
    own = [str(path).replace("\\", "/") for path in paths]
    for path in dict.fromkeys(own):
        by_stem[split_extension(PurePosixPath(path).name)[0]].append(PurePosixPath(path))
    meant = []
    for name in map(text_of, names):
        asked = PurePosixPath(name.replace("\\", "/").removeprefix("./"))
        stem, extension = split_extension(asked.name)
        folders = asked.parts[:-1]
        fitting = [
            path
            for path in by_stem.get(stem, [])
            if (not folders or path.parts[:-1][-len(folders) :] == folders)
            and (not extension or path.name == asked.name)
        ]
        meant.append(str(fitting[0]) if len(fitting) == 1 and name else "")
    return own, meant
