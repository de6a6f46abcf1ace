"""A BIDS data set as rows: images with what their names, tables and sidecars say of them, and their masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bolus.data.text.spelling import clean_text
from bolus.scanning.bids.masks import OTHER as OTHER_KIND
from bolus.scanning.bids.masks import Mask, choose_kind, describe_mask, list_kinds, match_masks
from bolus.scanning.bids.names import DATATYPES, NO_IMAGES, Name, modality_of, parse_name
from bolus.scanning.bids.sidecars import Sidecars, first_text
from bolus.scanning.bids.sorting import open_files, sort_files
from bolus.scanning.bids.tables import Tables, read_tables
from bolus.scanning.days import about_visits, number_visits, to_dates
from bolus.scanning.dicom.words import region_of
from bolus.scanning.files import LeftOut, leave_folders, walk
from bolus.scanning.found import Found
from bolus.scanning.joining.taken import check_take, check_taken
from bolus.scanning.same_files import drop_same
from bolus.scanning.volumes import Volume, take_frames

ROLES = {
    **{name: name for name in ("image", "mask", "patient", "visit", "modality", "laterality", "region", "series")},
    **{name: name for name in ("order", "phase", "site")},
    **{name: f"attribute:{name}" for name in ("sex", "age", "scanner")},
}


def is_bids(folder: Path) -> bool:
    """Whether a folder is a BIDS data set: by its dataset_description.json, or by names of files below `sub-*`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     place = Path(name) / "sub-01" / "ses-1" / "anat"
    ...     place.mkdir(parents=True)
    ...     (place / "IM0001").touch()
    ...     before = is_bids(Path(name))
    ...     (place / "sub-01_ses-1_T1w.nii").touch()
    ...     before, is_bids(Path(name))
    (False, True)
    """
    if (folder / "dataset_description.json").is_file():
        return True
    known = DATATYPES | NO_IMAGES
    for subject in sorted(folder.glob("sub-*"))[:20]:
        for place in (*subject.glob("*"), *subject.glob("ses-*/*")):
            names = map(parse_name, (path.name for path in place.glob("sub-*"))) if place.name in known else ()
            if any(name is not None for name in names):
                return True
    return False


def find_bids(
    root: Path,
    files: Sequence[Path] | None = None,
    *,
    unit: str | None = None,
    take: Mapping[str, str] | None = None,
    mask: str | None = None,
) -> Found:
    """The images of a BIDS data set as rows.

    Entities give patient (`sub`, without its prefix), visit (the number of `ses`), laterality (`hemi`) and phase
    (`ce`); the suffix gives the modality. scans.tsv, sessions.tsv and participants.tsv give date (`acq_time`), sex and
    age; sidecars, by inheritance, scanner, site and region. Masks come from derivatives: `bolus.scanning.bids.masks`.

    Args:
        root: folder with dataset_description.json, or with the folders `sub-*`.
        files: those of the data set, absolute; all files below the root where None.
        unit: `slice` or `image` for a row an axial slice, `clip` or `volume` for a row a volume. None: slices where
            volumes have masks, which are learnt slice by slice; volumes where not.
        take: role -> column of participants.tsv, sessions.tsv, scans.tsv or of a table of phenotype/, such as
            `label:group` -> `group`.
        mask: part of the name of the kind of mask that is taken.

    Returns:
        Rows sorted by file; none where no file is an image, of which `left_out` says why.

    Raises:
        CohortError: no such column to take, values that a scan does not keep, or no mask of that kind.
        UsageError: a role that cannot be taken.
    """
    root = root.absolute()
    files = walk(root) if files is None else sorted(path.absolute() for path in files)
    left_out = LeftOut(list)
    files = leave_folders(files, left_out)
    sidecars, tables = Sidecars(root, files), read_tables(root, files)
    take = dict(take or {})
    check_take(take, tables.columns, "the tables of the BIDS data set")

    images, candidates = sort_files(root, files, left_out)
    volumes = open_files({**images, **candidates}, left_out)
    images = {path: name for path, name in images.items() if path in volumes}
    masks = [
        describe_mask(path, root, name, sidecars.of(path, name)) for path, name in candidates.items() if path in volumes
    ]
    headers = {path: volume for path, volume in volumes.items() if volume is not None}
    if not images:
        empty = pd.DataFrame({"image": [], "patient": []}, dtype="str")
        return Found("bids", empty, {name: ROLES[name] for name in ("image", "patient")}, ("patient",), dict(left_out))
    chosen, mask_notes = _choose_masks(masks, images, headers, mask, left_out)

    table = _rows(root, images, headers, sidecars, tables)
    table["mask"] = [str(chosen[path]) if path in chosen else None for path in images]
    notes = [*_date(table), *_visits(table), *mask_notes]
    for role, column in take.items():
        said = [
            tables.say(column, path, name.entities["sub"], name.entities.get("ses", ""))
            for path, name in images.items()
        ]
        table[role] = pd.Series([text or None for text in said], dtype=object)
        check_taken(table[role], role, column, table["patient"])
    table, of_copies = drop_same(table, left_out)
    notes += of_copies
    by_slice = unit in {"slice", "image"} or (unit is None and bool(table["mask"].notna().any()))
    counts = [headers[path].shape[2] if path in headers else 1 for path in map(Path, table["image"])]
    if by_slice:
        table = take_frames(table, counts)
    if any(count > 1 for count in counts):
        what = "an axial slice, its number is the order" if by_slice else "a volume"
        notes.append(f"A row is {what}.")
    notes += _about_tables(tables, images, take, sidecars)
    table = table.drop(columns=[name for name in table.columns if table[name].isna().all()])
    roles = {column: role for column, role in {**ROLES, **{role: role for role in take}}.items() if column in table}
    identifying = tuple(name for name in ("patient", "series", "site") if name in table)
    return Found("bids", table, roles, identifying, dict(left_out), tuple(notes))


def _choose_masks(
    masks: Sequence[Mask],
    images: Mapping[Path, Name],
    headers: Mapping[Path, Volume],
    wanted: str | None,
    left_out: LeftOut,
) -> tuple[Mapping[Path, Path], list[str]]:
    """Image -> its mask, of one kind; and what is said of the others."""
    kinds = match_masks(masks, images, headers, left_out)
    kind = choose_kind(kinds, wanted)
    if kind is None:
        return {}, []
    used = set(kinds[kind].values())
    others = {path for pairs in kinds.values() for path in pairs.values()} - used
    left_out[OTHER_KIND] += sorted(others)
    if not others:
        left_out.pop(OTHER_KIND)
    note = f"Masks: {kind}, of {len(kinds[kind]):,} of {len(images):,} images"
    rest = {name: pairs for name, pairs in kinds.items() if name != kind}
    return kinds[kind], [f"{note}; also there: {list_kinds(rest)}." if rest else f"{note}."]


def _rows(
    root: Path, images: Mapping[Path, Name], headers: Mapping[Path, Volume], sidecars: Sidecars, tables: Tables
) -> pd.DataFrame:
    """A row an image, as names, tables and sidecars say it, without date, visit and mask in their final form."""
    rows = []
    for path, name in images.items():
        subject, session = name.entities["sub"], name.entities.get("ses", "")
        keys = sidecars.of(path, name)
        row: dict[str, Any] = {
            "image": str(path),
            "patient": subject,
            "visit": session,
            "date": tables.say("acq_time", path, subject, session),
            "modality": modality_of(name.suffix, path.relative_to(root).parts[-2]),
            "laterality": {"L": "left", "R": "right"}.get(name.entities.get("hemi", "")),
            "region": region_of(first_text(keys, "BodyPart", "BodyPartExamined")),
            "phase": name.entities.get("ce"),
            "sex": tables.sex(path, subject, session) or None,
            "age": tables.age(path, subject, session),
            "scanner": clean_text(first_text(keys, "ManufacturersModelName")) or None,
            "site": clean_text(first_text(keys, "InstitutionName")) or None,
        }
        if path in headers:
            row["spacing_row"], row["spacing_column"] = headers[path].spacing[1], headers[path].spacing[0]
        rows.append(row)
    return pd.DataFrame(rows)


def _date(table: pd.DataFrame) -> list[str]:
    """Turn `acq_time` into dates, in place; and what was wrong with some."""
    dates, bad, why = to_dates(table["date"].replace("", None))
    table["date"] = dates
    if not bad.any():
        return []
    return [f"acq_time: {int(bad.sum()):,} images have no date that can be read{f' ({why})' if why else ''}."]


def _visits(table: pd.DataFrame) -> list[str]:
    """Turn sessions into ordinal numbers, in place; and how."""
    numbers, how = number_visits(table["visit"])
    table["visit"] = numbers
    return [about_visits("the sessions (ses-...)", table["visit"], how)] if how else []


def _about_tables(
    tables: Tables, images: Mapping[Path, Name], take: Mapping[str, str], sidecars: Sidecars
) -> list[str]:
    """What tables hold beside what was read, and where they and the images are not of the same people."""
    notes = []
    subjects = {name.entities["sub"] for name in images.values()}
    if tables.participants:
        without, unknown = set(tables.participants) - subjects, subjects - set(tables.participants)
        if without:
            notes.append(
                f"participants.tsv: {len(without):,} of {len(tables.participants):,} participants have no image."
            )
        if unknown:
            notes.append(f"participants.tsv: {len(unknown):,} of {len(subjects):,} subjects with images are not in it.")
    if tables.repeated:
        notes.append(f"{tables.repeated:,} rows of tables repeat a participant, session or scan: the first one counts.")
    if tables.unreadable:
        notes.append(f"{len(tables.unreadable):,} tables (.tsv) could not be read; they say nothing.")
    if sidecars.unreadable:
        notes.append(f"{len(sidecars.unreadable):,} sidecars (.json) could not be read; they say nothing.")
    free = [column for column in tables.columns if column not in take.values()]
    if free:
        notes.append(
            f"Columns of the tables that were not taken: {', '.join(free[:20])}{' ...' if len(free) > 20 else ''}; "
            f"take one with --take label:{free[0]}={free[0]}, or score:NAME=COLUMN for numbers."
        )
    return notes
