"""A tree of PNG, JPEG, TIFF, NIfTI or video files as rows: what their folders and names say, by a pattern."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bolus.data.cohort.roles import NAMED
from bolus.data.images.sources import in_threads
from bolus.data.readers.frames import all_frames
from bolus.data.text.ages import spell_age
from bolus.data.text.laterality import NAMES
from bolus.data.text.spelling import as_number, text_of
from bolus.errors import BolusError, CohortError
from bolus.scanning.days import about_visits, number_visits, to_dates
from bolus.scanning.files import DAMAGED, SYSTEM, LeftOut, is_system, kinds_of, leave_folders, walk
from bolus.scanning.found import Found
from bolus.scanning.same_files import drop_same
from bolus.scanning.tree.guess import guess_pattern
from bolus.scanning.tree.masks import find_masks
from bolus.scanning.tree.pattern import EXAMPLE, Pattern, compile_pattern, relative
from bolus.scanning.volumes import Volume, read_volume, take_frames

TEXTS = frozenset(
    [
        ".csv",
        ".tsv",
        ".txt",
        ".json",
        ".yaml",
        ".yml",
        ".xml",
        ".md",
        ".pdf",
        ".xls",
        ".xlsx",
        ".html",
        ".log",
        ".parquet",
        ".py",
        ".zip",
    ]
)
TABLE = "tables, texts and archives beside the images"
DICOM = "DICOM files, which are found by their headers and not by their paths"
SERIES_4D = "several volumes in a file (4-D NIfTI), which are not read yet"
UNFITTING = "paths that do not fit the pattern"

ROLES = {
    **{name: name for name in ("image", "mask", "patient", "visit", "modality", "laterality", "view_position", "site")},
    **{name: name for name in ("region", "series", "order", "slice_position", "phase", "split")},
    **{name: f"attribute:{name}" for name in ("sex", "age", "scanner")},
}


def find_tree(
    root: Path, files: Sequence[Path] | None = None, *, pattern: str | None = None, unit: str | None = None
) -> Found:
    """The images of a tree as rows, with what their paths say of them.

    Names of visits become ordinal numbers, and dates among them dates. Masks lie beside their images:
    `bolus.scanning.tree.masks`. Where a pattern has an order but no series, the rest of the path is the series. A file
    that is there twice is one row, with the classes of both where they are of one patient.

    Args:
        root: of the tree.
        files: those of the tree, absolute; all files below the root where None.
        pattern: `bolus.scanning.tree.pattern.compile_pattern`; guessed from the paths where None.
        unit: `slice` or `image` for a row a frame, `clip` or `volume` for a row a file. None: frames where
            volumes have masks, which are learnt slice by slice; files where not.

    Returns:
        Rows sorted by file; none where no file is an image, of which `left_out` says why.

    Raises:
        CohortError: no pattern that can be guessed or that fits a path, or a part that is not what its role
            says.
        UsageError: a pattern with an unknown role.
    """
    root = root.absolute()
    files = walk(root) if files is None else sorted(path.absolute() for path in files)
    given = compile_pattern(pattern) if pattern is not None else None
    left_out = LeftOut(list)
    kinds, volumes = _open(leave_folders(files, left_out), left_out)
    if not kinds:
        empty = pd.DataFrame({"image": [], "patient": []}, dtype="str")
        return Found("tree", empty, {name: ROLES[name] for name in ("image", "patient")}, ("patient",), dict(left_out))
    images, masks, notes = find_masks(sorted(kinds), root, kinds, volumes, left_out)
    if given is None:
        guess = guess_pattern([relative(path, root) for path in images])
        given = compile_pattern(guess.text, strict=True)
        notes = [*guess.notes, *notes]
    table = _rows(images, root, given, left_out)
    table["mask"] = [str(masks[Path(path)]) if Path(path) in masks else None for path in table["image"]]
    fitting = set(table["image"])
    left_out[UNFITTING] += [masks[path] for path in images if path in masks and str(path) not in fitting]
    if not left_out[UNFITTING]:
        del left_out[UNFITTING]
    notes += _make_values(table)
    table, of_copies = drop_same(table, left_out)
    notes += of_copies
    for name, axis in (("spacing_row", 1), ("spacing_column", 0)):
        table[name] = [
            volumes[Path(path)].spacing[axis] if Path(path) in volumes else np.nan for path in table["image"]
        ]
    by_frame = unit in {"slice", "image"} or (
        unit is None and any(Path(path) in volumes and Path(path) in masks for path in table["image"])
    )
    if by_frame:
        numbers = list(in_threads(lambda path: len(all_frames(Path(path))), table["image"].tolist()))
        if max(numbers) > 1:
            table = take_frames(table, numbers)
            notes.append("A row is a frame or an axial slice, its number is the order.")
    table = table.drop(columns=[name for name in table.columns if table[name].isna().all()])
    named = {column: column for column in table.columns if column.startswith(NAMED)}
    roles = {column: role for column, role in {**ROLES, **named}.items() if column in table}
    identifying = tuple(name for name in ("patient", "series", "site") if name in table)
    return Found("tree", table, roles, identifying, dict(left_out), tuple(notes))


def _open(files: Sequence[Path], left_out: LeftOut) -> tuple[dict[Path, str], dict[Path, Volume]]:
    """What each image is, and the headers of those that are NIfTI; the rest is left out."""
    tried = []
    for path in files:
        if is_system(path):
            left_out[SYSTEM].append(path)
        elif path.suffix.lower() in TEXTS:
            left_out[TABLE].append(path)
        else:
            tried.append(path)
    kinds = kinds_of(tried, left_out)

    def header(path: Path) -> Volume | str:
        try:
            volume = read_volume(path)
        except (BolusError, OSError):
            return DAMAGED
        return volume if volume.times == 1 else SERIES_4D

    packed = [path for path, kind in kinds.items() if kind == "NIfTI"]
    volumes: dict[Path, Volume] = {}
    reasons = {path: DICOM for path, kind in kinds.items() if kind == "DICOM"}
    for path, volume in zip(packed, in_threads(header, packed), strict=True):
        if isinstance(volume, str):
            reasons[path] = volume
        else:
            volumes[path] = volume
    for path, reason in reasons.items():
        left_out[reason].append(path)
    return {path: kind for path, kind in kinds.items() if path not in reasons}, volumes


def _rows(images: Sequence[Path], root: Path, pattern: Pattern, left_out: LeftOut) -> pd.DataFrame:
    """A row for each image whose path fits, with its parts as they are."""
    rows: list[dict[str, str]] = []
    columns = set(pattern.columns.values())
    for path in images:
        name = relative(path, root)
        parts = pattern.match(name)
        if parts is None:
            left_out[UNFITTING].append(path)
            continue
        if "series" in columns:  # one name may stand below several patients or visits
            parts["series"] = "/".join(parts[each] for each in ("patient", "visit", "date", "series") if each in parts)
        elif "order" in columns:
            parts["series"] = pattern.without(name, "order")
        rows.append({"image": str(path), **parts})
    if not rows:
        raise CohortError(
            f"--pattern {pattern.text}: none of {len(images):,} paths fits; expected one such as {EXAMPLE}"
        )
    return pd.DataFrame(rows)


def _make_values(table: pd.DataFrame) -> list[str]:
    """Turn parts of paths into what their roles hold, in place; and how.

    Raises:
        CohortError: a part that is no date, side or number.
    """
    notes = []
    if "date" in table:
        table["date"] = _dates(table["date"])
    if "visit" in table:
        dates, bad, _ = to_dates(table["visit"])
        if "date" not in table and dates.notna().all() and not bad.any():
            table["date"], table["visit"] = dates, np.nan
            notes.append("visit: the names are dates, and were read as such.")
        else:
            table["visit"], how = number_visits(table["visit"])
            notes.append(about_visits("the names", table["visit"], how))
    if "laterality" in table:
        odd = ~table["laterality"].str.strip().str.lower().str.removesuffix(".").isin(NAMES)
        if odd.any():
            raise CohortError(
                f"{{laterality}}: expected left or right (L, R, OS, OD) in each path, found something else in "
                f"{int(odd.sum()):,} of {len(table):,}; name this part otherwise, or {{*}} to leave it out"
            )
    if "age" in table:
        table["age"] = table["age"].map(spell_age)
    for column in table.columns:
        if column in {"order", "slice_position", "age"} or column.startswith("score:"):
            table[column] = _numbers(table[column])
    return notes


def _dates(parts: pd.Series[Any]) -> pd.Series[Any]:
    dates, bad, why = to_dates(parts)
    if bad.any():
        raise CohortError(
            f"{{date}}: expected a date such as 20240131 or 2024-01-31 in each path, found something else in "
            f"{int(bad.sum()):,} of {len(parts):,}{f' ({why})' if why else ''}"
        )
    return dates


def _numbers(parts: pd.Series[Any]) -> pd.Series[Any]:
    texts = [text_of(part) for part in parts]
    numbers = [as_number(text) for text in texts]
    bad = sum(number is None and bool(text) for number, text in zip(numbers, texts, strict=True))
    if bad:
        raise CohortError(
            f"{{{parts.name}}}: expected a number in each path, found something else in {bad:,} of {len(parts):,}"
        )
    return pd.Series([np.nan if number is None else number for number in numbers], index=parts.index)
