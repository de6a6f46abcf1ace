"""What a folder is: BIDS data sets, DICOM files, a tree of images, or several of them; and the rows of all parts."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from bolus.errors import CohortError, UsageError
from bolus.scanning.bids.finder import find_bids, is_bids
from bolus.scanning.dicom.finder import find_dicom
from bolus.scanning.dicom.kinds import OTHER
from bolus.scanning.files import LeftOut, walk
from bolus.scanning.found import Found
from bolus.scanning.tree.finder import find_tree

BESIDE = (
    "files beside DICOM files that are none; images among them are taken where --pattern says what their paths mean"
)
DESCRIPTION = "dataset_description.json"


@dataclass(frozen=True)
class Asked:
    """What a person asks of the finders; see `bolus.scanning.scanning.scan`."""

    unit: str | None = None
    pattern: str | None = None
    mask: str | None = None
    take: Mapping[str, str] = field(default_factory=dict)
    modalities: Collection[str] | None = None
    guess: bool = False
    keep_modalities: bool = False
    keep_captures: bool = False
    processes: int | None = None


def find_parts(folder: Path, asked: Asked, *, private: Path | None = None, quiet: bool = True) -> Found:
    """The rows of a folder, whatever it is, as one table.

    Data sets of BIDS go by their rules. Of the other files, DICOM are known by their content; the rest is a tree where
    there is no DICOM, or where a pattern says what its paths mean.

    Args:
        folder: to scan.
        asked: of the finders.
        private: path and beginning of the names of folders for headers that were read and for masks; None keeps none.
        quiet: no progress.

    Raises:
        CohortError: no such folder, no image in it, or what the finders raise.
        UsageError: an option that no part of the folder has a use for.
    """
    if not folder.is_dir():
        raise CohortError("expected a folder to scan, found a file" if folder.exists() else "no such folder to scan")
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 - without `..`, so that a folder has one name
    files = walk(folder)
    roots = _roots(folder, files)
    found, rest = [], files
    for root in roots:
        inside = [path for path in rest if path.is_relative_to(root)]
        rest = [path for path in rest if not path.is_relative_to(root)]
        found.append(find_bids(root, inside, unit=asked.unit, take=asked.take, mask=asked.mask))
    if rest:
        found += _others(folder, rest, asked, has_rows=bool(found), private=private, quiet=quiet)
    kinds = {each.kind for each in found if len(each.table)}
    if asked.take and "bids" not in kinds:
        raise UsageError("--take: there is no BIDS data set here; for a table of your own say --join TABLE")
    for option, value, kind in (("--pattern", asked.pattern, "tree"), ("--mask", asked.mask, "bids"),
                                ("--modality", asked.modalities, "dicom")):  # fmt: skip
        if value and kind not in kinds:
            raise UsageError(f"{option} is for {_WORDS[kind]}; the folder holds {_list(kinds)}")
    return _as_one(found, len(files))


_WORDS = {"bids": "BIDS data sets", "dicom": "DICOM files", "tree": "trees of images"}


def _list(kinds: Collection[str]) -> str:
    return " and ".join(_WORDS[kind] for kind in sorted(kinds)) or "no image"


def _roots(folder: Path, files: Sequence[Path]) -> list[Path]:
    """The outermost folders of BIDS data sets."""
    if is_bids(folder):
        return [folder]
    found: list[Path] = []
    for path in sorted((path.parent for path in files if path.name == DESCRIPTION), key=lambda each: len(each.parts)):
        if not any(path.is_relative_to(root) for root in found):
            found.append(path)
    return sorted(found)


def _others(
    folder: Path, files: list[Path], asked: Asked, *, has_rows: bool, private: Path | None, quiet: bool
) -> list[Found]:
    """DICOM files, and what is none."""
    dicom = find_dicom(
        folder,
        files,
        unit=asked.unit,
        modalities=asked.modalities,
        guess=asked.guess,
        keep_modalities=asked.keep_modalities,
        keep_captures=asked.keep_captures,
        processes=asked.processes,
        state=None if private is None else private.with_name(f"{private.name}.reading"),
        masks=None if private is None else private.with_name(f"{private.name}.masks"),
        quiet=quiet,
    )
    left_out = dict(dicom.left_out)
    rest = left_out.pop(OTHER, [])
    if not rest:
        return [dicom]
    beside = len(dicom.table) > 0 or has_rows
    if beside and asked.pattern is None:
        return [_with(dicom, {**left_out, BESIDE: rest})]
    if not len(dicom.table):  # what was left out is of the tree, whose finder has its own words for it
        unread = {reason for reason in left_out if reason.startswith(("empty", "damaged", "files", "links"))}
        rest = sorted([*rest, *(path for reason in unread for path in left_out.pop(reason))])
    return [_with(dicom, left_out), find_tree(folder, rest, pattern=asked.pattern, unit=asked.unit)]


def _with(found: Found, left_out: Mapping[str, list[Path]]) -> Found:
    return Found(found.kind, found.table, found.roles, found.identifying, left_out, found.notes)


def _as_one(found: Sequence[Found], number: int) -> Found:
    """All parts as one; where there are several, they are one cohort of the same patients."""
    left_out: Any = LeftOut(list)
    for each in found:
        for reason, paths in each.left_out.items():
            left_out[reason] += paths
    full = [each for each in found if len(each.table)]
    if not full:
        listed = "; ".join(f"{len(paths):,} {reason}" for reason, paths in sorted(left_out.items()))
        raise CohortError(f"no image to train on among {number:,} files: {listed or 'the folder is empty'}")
    notes = [note for each in full for note in each.notes]
    if len(full) == 1:
        one = full[0]
        return Found(one.kind, one.table, one.roles, one.identifying, left_out, tuple(notes))
    parts = ", ".join(f"{len(each.table):,} rows of {_WORDS[each.kind]}" for each in full)
    notes.insert(0, f"The folder has several parts: {parts}; one identifier in two parts is one patient.")
    roles = {column: role for each in full for column, role in each.roles.items()}
    identifying = dict.fromkeys(column for each in full for column in each.identifying)
    table = pd.concat([each.table.astype(object) for each in full], ignore_index=True)
    for column in table:
        if any(column in each.table and each.table[column].dtype.kind in "fM" for each in full):
            dated = column in ("date", "birth")
            table[column] = table[column].astype("datetime64[s]") if dated else table[column].astype("float64")
    return Found("mixed", table, roles, tuple(identifying), left_out, tuple(notes))
