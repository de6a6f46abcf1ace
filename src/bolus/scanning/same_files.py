"""Files that are there twice, byte for byte, whatever they are called."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path

import pandas as pd

from bolus.data.cohort.roles import NAMED
from bolus.data.images.sources import in_threads
from bolus.scanning.files import LeftOut

COPIES = "copies of another file (the same bytes)"
_PIECE = 16384  # bytes of the beginning and of the end that are compared before whole files are


def find_same(paths: Sequence[Path]) -> dict[Path, Path]:
    """Copy -> the first of the paths with the same bytes. Only files of one size are opened.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     paths = [Path(folder, name) for name in "abc"]
    ...     for path, text in zip(paths, ("x", "y", "x")): _ = path.write_text(text)
    ...     {copy.name: first.name for copy, first in find_same(paths).items()}
    {'c': 'a'}
    """
    groups: list[list[Path]] = [list(paths)]
    for digest in (_size, _ends, _whole):
        split: list[list[Path]] = []
        for group in groups:
            apart: dict[Hashable, list[Path]] = defaultdict(list)
            for path, value in zip(group, in_threads(digest, group), strict=True):
                apart[value].append(path)
            split += [each for value, each in apart.items() if len(each) > 1 and value is not None]
        groups = split
    return {copy: first for first, *copies in groups for copy in copies}


def drop_same(table: pd.DataFrame, left_out: LeftOut) -> tuple[pd.DataFrame, list[str]]:
    """Each file once, the first by path; the classes of copies of one patient are joined by `|`.

    Frames of a series stay as they are: two of them may well be equally black.

    Args:
        table: rows of files, with image and patient.
        left_out: takes the copies.

    Returns:
        The rows that stay, and sentences.
    """
    if "order" in table:
        return table, []
    same = find_same([Path(path) for path in table["image"]])
    if not same:
        return table, []
    left_out[COPIES] += sorted(same)
    first = table["image"].map({str(copy): str(kept) for copy, kept in same.items()}).fillna(table["image"])
    notes = []
    people = table["patient"].groupby(first).nunique()
    if (people > 1).any():
        notes.append(f"{int((people > 1).sum()):,} files stand under several patients; each was taken once.")
    own = table["patient"] == first.map(table.set_index("image")["patient"])
    for column in (name for name in table.columns if str(name).startswith(NAMED[1])):
        classes = table.loc[own, column].dropna().groupby(first[own]).agg(lambda texts: "|".join(dict.fromkeys(texts)))
        several = int(classes.str.contains("|", regex=False).sum())
        if several:
            table = table.assign(**{str(column): table["image"].map(classes)})
            notes.append(
                f"{column}: {several:,} images have several classes, since copies of them lie in several folders."
            )
    return table[~table["image"].isin({str(copy) for copy in same})].reset_index(drop=True), notes


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _ends(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            begin = file.read(_PIECE)
            file.seek(max(path.stat().st_size - _PIECE, 0))
            return hashlib.blake2b(begin + file.read(_PIECE), digest_size=16).digest()
    except OSError:
        return None


def _whole(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError:
        return None
