"""What a check looks at in images: whether they can be read, what they show, which are copies, what range they need."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bolus.data.checks.copies import look_at_copies
from bolus.data.checks.masks import look_at_masks
from bolus.data.checks.pixels import look_at_pixels
from bolus.data.checks.ranges import black_and_white, count, lone_series, look_at_ranges, numbers
from bolus.data.checks.report import Finding, frames_in_words
from bolus.data.checks.thumbnails import write_thumbnails
from bolus.data.checks.volumes import look_at_volumes
from bolus.data.cohort.cohort import Cohort
from bolus.data.images.clips import rows_are_files
from bolus.data.images.missing_files import likely_cause, where_sought
from bolus.data.pixels.range_rules import Bounds

# What a reader notes and what changes the picture; its other notes are for information.
GRAVE_NOTES = ("FOR PROCESSING", "alpha channel dropped", "sform and qform disagree")


def look_at_images(
    cohort: Cohort,
    findings: list[Finding],
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    thumbnails: Path | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Bounds]]:
    """Read every image once, see `look_at_pixels`, and the masks beside them, and append to `findings`.

    Returns:
        The record of each modality (see `CheckReport`), and the ranges that cover the images whose range is the
        cohort's, those that it had and those that it lacked.

    Raises:
        CohortError: a range is stated for a modality of which there is no image.
    """
    looks = look_at_pixels(cohort, workers=workers, on_progress=on_progress)
    findings += _unreadable(looks, cohort) + _frame_order(looks, cohort) + look_at_masks(cohort, looks)
    findings += look_at_volumes(cohort, looks) if cohort.spec.unit == "volume" else _clip_files(looks)
    seen = pd.DataFrame([look for look in looks if not look["reason"]])
    if not len(seen):
        return [], dict(cohort.spec.cohort_ranges)
    found = black_and_white(cohort, seen)
    modalities = look_at_ranges(seen, found, findings)
    findings += lone_series(cohort, seen, found)
    for name in np.unique(found.names).tolist():
        findings += _channels(name, seen[found.names == name])
    findings += look_at_copies(cohort, seen, found.names) + _reader_notes(seen)
    if thumbnails is not None:
        write_thumbnails(cohort, seen, found, thumbnails)
    return modalities, {name: each for name, each in found.ranges.items() if name not in cohort.spec.ranges}


def _unreadable(looks: list[dict[str, Any]], cohort: Cohort) -> list[Finding]:
    """Missing files together, with the likely cause; damaged ones by reason, whatever numbers the reason quotes."""
    findings = []
    for rows, reason in _by_reason(looks, "reason"):
        if reason == "missing":
            findings.append(_missing(rows, cohort))
        else:
            message = f"{count(rows, 'image', 'images')} cannot be read: {reason}"
            findings.append(Finding("error", "unreadable", message, rows))
    return findings


def _missing(rows: tuple[int, ...], cohort: Cohort) -> Finding:
    """Where the first file was looked for, and what to do."""
    places = np.array(rows) - 1
    first = cohort.image_name(rows[0] - 1)
    what = count(rows, "image file does", "image files do")
    paths, whose = [cohort.image_path(row) for row in places], cohort.encoded("patient")[places]
    cause = likely_cause(paths, cohort.root, whose, suffixes=cohort.spec.readers)
    message = (
        f"{what} not exist; row {rows[0]} was looked for as {where_sought(first, cohort.root)}; "
        f"{cause or 'if the paths are relative to another folder, add --root FOLDER'}"
    )
    return Finding("error", "missing_file", message, rows)


def _by_reason(looks: list[dict[str, Any]], key: str) -> list[tuple[tuple[int, ...], str]]:
    """Rows with a reason, the most frequent first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for look in looks:
        if look[key]:
            groups.setdefault(re.sub(r"\d+", "#", look[key]), []).append(look)
    found = []
    for group in sorted(groups.values(), key=lambda group: -len(group)):
        alike = len({look[key] for look in group}) == 1
        reason = group[0][key] + ("" if alike else " (the first of several such numbers)")
        found.append((numbers(look["row"] for look in group), reason))
    return found


def _clip_files(looks: list[dict[str, Any]]) -> list[Finding]:
    """Rows that are files with several frames, and which of them lost some."""
    clips = [look for look in looks if look["frames"] > 1 and not look["reason"]]
    if not clips:
        return []
    rows = numbers(look["row"] for look in clips)
    which = f"{len(rows)} of {len(looks)} rows {'is a clip file' if len(rows) == 1 else 'are clip files'}"
    message = (
        f"{which} of {frames_in_words([look['frames'] for look in clips])}: recipes with images.unit=clip take them "
        "(where frames are slices, images.unit=volume), those of single images do not"
    )
    findings = [Finding("note", "clip_files", message, () if len(rows) == len(looks) else rows)]
    for torn, reason in _by_reason(looks, "lost"):
        message = f"{count(torn, 'clip file has', 'clip files have')} frames that cannot be read, {reason}"
        findings.append(Finding("warning", "lost_frames", message, torn))
    return findings


def _frame_order(looks: list[dict[str, Any]], cohort: Cohort) -> list[Finding]:
    """Which column numbers frames and how to name another, where files of several frames stand beside single images."""
    several = {look["row"] for look in looks if look["frames"] > 1 or cohort.shared_file[look["row"]]}
    if not several or not any(look["frames"] == 1 and look["row"] not in several for look in looks):
        return []
    column, rows = cohort.roles.get("order"), numbers(several)
    why = " by its name" if "order" in cohort.inferred else ""
    taken = "no column was taken" if column is None else f"column {column!r} was taken{why}"
    message = (
        f"{len(rows)} of {len(looks)} rows {'has a file' if len(rows) == 1 else 'have files'} of several frames, the "
        f"others single images; {taken} for order, the number of a frame or slice; "
        f"to name {'one' if column is None else 'another one'}, add --role order=COLUMN"
    )
    if rows_are_files(cohort):
        message += "; within a clip file the file itself numbers the frames"
    return [Finding("note", "frame_order", message, rows)]


def _channels(name: str, images: pd.DataFrame) -> list[Finding]:
    findings = []
    grey = images[images["equal"]]
    if len(grey):
        message = f"{name}: {count(grey, 'image', 'images')} of 3 equal channels: grey stored as colour"
        findings.append(Finding("warning", "grey_as_color", message, numbers(grey["row"])))
    channels = images["channels"].where(~images["equal"], 1)
    usual = int(channels.mode().iloc[0])
    odd = images[(channels != usual) & ~images["equal"]]
    if len(odd):
        found = ", ".join(str(number) for number in sorted(odd["channels"].unique()))
        message = f"{name}: expected {usual} channel(s) as in most images, found {found} in {len(odd)} of {len(images)}"
        findings.append(Finding("warning", "channels", message, numbers(odd["row"])))
    return findings


def _reader_notes(seen: pd.DataFrame) -> list[Finding]:
    counts: dict[str, list[int]] = {}
    for row, notes in zip(seen["row"], seen["notes"], strict=True):
        for note in notes:
            counts.setdefault(note, []).append(row)
    findings = []
    for note, rows in sorted(counts.items(), key=lambda item: -len(item[1])):
        grave = note.startswith(GRAVE_NOTES)
        kind = "alpha_dropped" if note.startswith("alpha") else "reader"
        message = f"{count(rows, 'image', 'images')}: {note}"
        findings.append(Finding("warning" if grave else "note", kind, message, numbers(rows)))
    return findings
