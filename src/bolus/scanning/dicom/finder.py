"""DICOM files as rows: what is an image, which images are one series, and what headers say of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bolus.data.cohort.volumes import slice_positions
from bolus.scanning.dicom.copies import drop_copies
from bolus.scanning.dicom.facts import make_facts
from bolus.scanning.dicom.kinds import NO_PATIENT, SEGMENTATION, sort_headers
from bolus.scanning.dicom.reading import read_columns, read_parts
from bolus.scanning.dicom.segmentations import Masks, make_masks
from bolus.scanning.dicom.series import order_series
from bolus.scanning.files import SYSTEM, LeftOut, is_system, leave_folders, walk
from bolus.scanning.found import Found
from bolus.scanning.volumes import take_frames

ROLES = {
    **{
        name: name
        for name in ("image", "mask", "patient", "modality", "laterality", "view_position", "region", "series")
    },
    **{name: name for name in ("order", "slice_position", "phase", "site")},
    **{name: f"attribute:{name}" for name in ("sex", "age", "scanner")},
}
PROCESSING = "images FOR PROCESSING of which there is one FOR PRESENTATION"
UNASKED = "images of other modalities than asked for"


def find_dicom(
    root: Path,
    files: Sequence[Path] | None = None,
    *,
    unit: str | None = None,
    modalities: Collection[str] | None = None,
    guess: bool = False,
    keep_modalities: bool = False,
    keep_captures: bool = False,
    processes: int | None = None,
    state: Path | None = None,
    masks: Path | None = None,
    quiet: bool = True,
) -> Found:
    """The images among DICOM files as rows, found by their content, whatever the files are called.

    A row is a file, or one frame of a file of several: then `order` is its number from 0 and `series` its file. Slices
    of CT, MR and PT have their series, their order along the normal, and slice_position; single images have none.
    Where nearly everything is clips, a row is a clip.

    Args:
        root: of the files.
        files: absolute; all files below the root where None.
        unit: `clip` for a row a file; `image` or `slice` for a row a frame; `volume` for a row a slice or a file of
            many; None for what the files are.
        modalities: as DICOM codes them; None for all.
        guess: sides from descriptions: `bolus.scanning.dicom.facts.make_facts`.
        keep_modalities: CR and DX stay apart.
        keep_captures: derived secondary captures are images.
        processes: that read headers.
        state: folder of what has been read: `bolus.scanning.dicom.reading.read_parts`.
        masks: folder that takes the masks of segmentations (SEG); None sets these aside.
        quiet: no progress.

    Returns:
        Rows sorted by file, with date, birth, study, accession and instance for the frame of the scan; none where no
        file is an image, of which `left_out` says why.
    """
    files = walk(root.absolute()) if files is None else sorted(path.absolute() for path in files)
    left_out = LeftOut(list)
    tried: list[Path] = []
    for path in leave_folders(files, left_out):
        (left_out[SYSTEM] if is_system(path) else tried).append(path)
    texts = [str(path) for path in tried]
    rows = pd.DataFrame(read_columns(read_parts(texts, processes=processes, state=state, quiet=quiet)), dtype=object)
    rows["image"] = texts
    reasons = sort_headers(rows, keep_captures=keep_captures)
    reasons[(reasons == "") & (rows["patient"].fillna("").str.strip() == "")] = NO_PATIENT
    if modalities is not None:
        wanted = {name.upper() for name in modalities}
        reasons[(reasons == "") & ~rows["modality"].fillna("").str.upper().isin(wanted)] = UNASKED
    rows = _set_aside(rows, reasons, left_out)
    rows, notes = drop_copies(rows, left_out)
    rows = _set_aside(rows, _processing(rows), left_out)
    facts, more = make_facts(rows, guess=guess, keep_radiographs=keep_modalities)
    made, kinds, of_series = order_series(rows, facts, left_out)
    if made.empty:
        left = {reason: sorted(paths) for reason, paths in left_out.items() if paths}
        return Found("dicom", made[["image", "patient"]], {"image": "image", "patient": "patient"}, ("patient",), left)
    notes += [*more, *of_series]
    if masks is not None and SEGMENTATION in left_out:
        sizes = rows[["image", "instance", "rows", "columns"]][
            rows["image"].isin(made.loc[made["frames"] == 1, "image"])
        ]
        of_images = {uid: (path, row, column) for path, uid, row, column in sizes.itertuples(index=False) if uid}
        found = make_masks(sorted(left_out[SEGMENTATION]), of_images, masks, left_out)
        if found.used:
            made["mask"] = made["image"].map(found.paths)
            notes.append(_about_masks(found))
    made = _as_rows(made, kinds, unit, notes)
    made = made.drop(columns=[name for name in made.columns if made[name].isna().all()])
    roles = {column: role for column, role in ROLES.items() if column in made}
    identifying = tuple(name for name in ("patient", "series", "site") if name in made)
    left = {reason: sorted(paths) for reason, paths in left_out.items() if paths}
    return Found("dicom", made.reset_index(drop=True), roles, identifying, left, tuple(notes))


def _about_masks(found: Masks) -> str:
    numbers = ", ".join(map(str, sorted(found.segments)))
    overlaps = (
        f"; {found.overlaps:,} have pixels of several segments, of which the highest stands" if found.overlaps else ""
    )
    return (
        f"mask: {found.used:,} segmentations (SEG) became masks of {len(found.paths):,} images; labels are numbers of "
        f"segments ({numbers}), which mean the same only if each segmentation counts them alike{overlaps}."
    )


def _set_aside(rows: pd.DataFrame, reasons: pd.Series[Any], left_out: LeftOut) -> pd.DataFrame:
    """The rows without a reason; the files of the others are left out."""
    for reason, paths in rows.loc[reasons != "", "image"].groupby(reasons[reasons != ""]):
        left_out[str(reason)] += [Path(path) for path in paths]
    return rows[reasons == ""].reset_index(drop=True)


def _processing(rows: pd.DataFrame) -> pd.Series[Any]:
    """Raw images of a study of which the same view is there as it is shown."""
    names = ["patient", "study", "modality", "image_laterality", "laterality", "view", "view_code", "body_part"]
    keys = rows[names].fillna("").agg("\0".join, axis=1) if len(rows) else pd.Series(dtype=object)
    intent = rows["intent"].fillna("").str.upper()
    raw = (intent == "FOR PROCESSING") & keys.isin(set(keys[intent == "FOR PRESENTATION"]))
    return pd.Series(np.where(raw, PROCESSING, ""), index=rows.index, dtype=object)


def _as_rows(made: pd.DataFrame, kinds: pd.Series[Any], unit: str | None, notes: list[str]) -> pd.DataFrame:
    """A row a file or a frame, by the unit that was asked for or by what most samples are; with slice_position."""
    made = made.assign(kind=kinds)
    frames = made.pop("frames").to_numpy(np.int64)
    clips, stacks = int((kinds == "clip").sum()), bool(made["series"].notna().any())
    by_file = unit == "clip" or (unit is None and clips > len(made) / 2)
    if by_file and not stacks:
        if clips < len(made):
            notes.append(f"A row is a file; {clips:,} of {len(made):,} are clips of several frames.")
    elif (frames > 1).any():
        several = int((frames > 1).sum())
        notes.append(f"A row is an image, also each frame of {several:,} files of several frames.")
        if clips:
            notes.append(f"{clips:,} files are clips: for these alone say --unit clip, and --modality.")
    if not by_file or stacks:
        made = take_frames(made, frames.tolist())
    if by_file and stacks:  # a single image is a clip of one frame
        alone = made["series"].isna()
        made.loc[alone, "series"], made.loc[alone, "order"] = made.loc[alone, "image"], 0.0
    sliced = (made.pop("kind") == "slice").to_numpy()
    codes = np.where(sliced, pd.factorize(made["series"])[0], -1)
    made["slice_position"] = slice_positions(codes, made["order"].to_numpy(np.float64))
    return made
