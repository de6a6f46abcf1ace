"""What a check looks at in images: whether they can be read, what they show, which are copies, what range they need."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sized
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.check_masks import look_at_masks
from bolus.data.check_pixels import look_at_pixels
from bolus.data.check_report import Finding, Severity, frames_in_words
from bolus.data.cohort import Cohort
from bolus.data.image import covering_range

SATURATED_BRIGHT = 0.5  # share of the pixels at the bright end of the range, above which an image is saturated
SATURATED_EITHER = 0.95  # likewise at either end; much black is common, so the dark end alone is allowed more
NEAR_CONSTANT = 0.01  # standard deviation of values in [0, 1], below which an image shows nothing
SMELLS = 0.5  # share of a modality's images above which the range is suspected, not the images
# What a reader notes and what changes the picture; its other notes are for information.
GRAVE_NOTES = ("FOR PROCESSING", "alpha channel dropped", "pixels outside the field of view have a padding value")


def look_at_images(
    cohort: Cohort,
    findings: list[Finding],
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, tuple[float, float]]]:
    """Read every image once, see `look_at_pixels`, and the masks beside them, and append to `findings`.

    Returns:
        The record of each modality (see `CheckReport`), and the cohort's ranges with those that it lacked.
    """
    looks = look_at_pixels(cohort, workers=workers, on_progress=on_progress)
    findings += _unreadable(looks) + _clip_files(looks) + look_at_masks(cohort, looks)
    seen = pd.DataFrame([look for look in looks if not look["reason"]])
    ranges, modalities = dict(cohort.spec.ranges), []
    if len(seen):
        seen["modality"] = cohort.modality[seen["row"]]
        for modality, images in seen.groupby("modality", sort=True):
            modalities.append(_modality(str(modality), images, ranges, findings))
        findings += _duplicates(cohort, seen) + _reader_notes(seen)
    return modalities, ranges


def _unreadable(looks: list[dict[str, Any]]) -> list[Finding]:
    """Missing files together; damaged ones by reason, whatever numbers the reason quotes."""
    findings = []
    for rows, reason in _by_reason(looks, "reason"):
        if reason == "missing":
            message = f"{_count(rows, 'image file does', 'image files do')} not exist"
            findings.append(Finding("error", "missing_file", message, rows))
        else:
            message = f"{_count(rows, 'image', 'images')} cannot be read: {reason}"
            findings.append(Finding("error", "unreadable", message, rows))
    return findings


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
        found.append((_numbers(look["row"] for look in group), reason))
    return found


def _clip_files(looks: list[dict[str, Any]]) -> list[Finding]:
    """Rows that are files with several frames, and which of them lost some."""
    clips = [look for look in looks if look["frames"] > 1]
    if not clips:
        return []
    rows = _numbers(look["row"] for look in clips)
    which = f"{len(rows)} of {len(looks)} rows {'is a clip file' if len(rows) == 1 else 'are clip files'}"
    message = (
        f"{which} of {frames_in_words([look['frames'] for look in clips])}: recipes with images.unit=clip take them, "
        "those of single images do not"
    )
    findings = [Finding("note", "clip_files", message, () if len(rows) == len(looks) else rows)]
    for torn, reason in _by_reason(looks, "lost"):
        message = f"{_count(torn, 'clip file has', 'clip files have')} frames that cannot be read, {reason}"
        findings.append(Finding("warning", "lost_frames", message, torn))
    return findings


def _modality(
    name: str, images: pd.DataFrame, ranges: dict[str, tuple[float, float]], findings: list[Finding]
) -> dict[str, Any]:
    """The record of one modality; its range is put into `ranges` where the files leave it open."""
    waiting = images[images["waits"]]
    span = np.ones(len(images))
    if len(waiting):
        minimum, maximum = float(waiting["minimum"].min()), float(waiting["maximum"].max())
        if name not in ranges:
            covering = covering_range(maximum, min(0.0, minimum))
            ranges[name] = (covering.low, covering.high)
            deep = int(waiting["bits"].max())
            if covering.high <= 255 and covering.low == 0 and (waiting["rule"] == "container").all():
                message = f"{name}: no value above 255 in files of {deep} bits, as if 8-bit images had been saved anew"
                findings.append(Finding("note", "shallow", f"{message}; their range is 0 to {covering.high:g}"))
        low, high = ranges[name]
        beyond = waiting[(waiting["maximum"] > high) | (waiting["minimum"] < low)]
        if len(beyond):
            # A range of this form came from looking at the images; any other is a window that somebody chose.
            covers = low in (0.0, -high) and float(np.log2(high + 1)).is_integer()
            message = f"{name}: values beyond the cohort's range of {low:g} to {high:g}, which are clipped"
            severity: Severity = "warning" if covers else "note"
            findings.append(Finding(severity, "beyond_range", message, _numbers(beyond["row"])))
        span[images["waits"].to_numpy()] = high - low
    if images["waits"].nunique() > 1:
        fewer = images[images["waits"] == (images["waits"].mean() < 0.5)]
        message = f"{name}: some files state their range and some do not, so that equal tissue may differ in brightness"
        findings.append(Finding("warning", "mixed_ranges", message, _numbers(fewer["row"])))
    findings += _exposure(name, images, span) + _channels(name, images)
    own = images[["low", "high"]].drop_duplicates()
    shown = ranges[name] if len(waiting) else (tuple(own.iloc[0]) if len(own) == 1 else (None, None))
    return {
        "modality": name,
        "images": len(images),
        "minimum": float(images["minimum"].min()),
        "maximum": float(images["maximum"].max()),
        "bits": sorted(int(bits) for bits in images["bits"].unique()),
        "rule": sorted(
            {"cohort" if wait else rule for wait, rule in zip(images["waits"], images["rule"], strict=True)}
        ),
        "low": None if shown[0] is None else float(shown[0]),
        "high": None if shown[1] is None else float(shown[1]),
        "channels": sorted(int(channels) for channels in images["channels"].unique()),
    }


def _exposure(name: str, images: pd.DataFrame, span: npt.NDArray[np.float64]) -> list[Finding]:
    """Images that show nothing, and images with most pixels at an end of the range."""
    flat = (images["spread"] / span < NEAR_CONSTANT).to_numpy()
    ends = np.maximum(images["at_dark"], images["at_bright"]) > SATURATED_EITHER
    saturated = ((images["at_bright"] > SATURATED_BRIGHT) | ends).to_numpy() & ~flat
    smells = (flat | saturated).mean() > SMELLS
    findings = []
    for kind, here, what in (
        ("near_constant", flat, f"nearly constant (standard deviation below {NEAR_CONSTANT:g} of the range)"),
        (
            "saturated",
            saturated,
            f"saturated (over {SATURATED_BRIGHT:.0%} of the pixels at the bright end, {SATURATED_EITHER:.0%} at one)",
        ),
    ):
        if here.any():
            rows = _numbers(images["row"][here])
            message = (
                f"{name}: {_count(rows, 'image', 'images')} of {len(images)} {'is' if len(rows) == 1 else 'are'} {what}"
            )
            message += "; so many suggest a wrong range (see the intensities)" if smells else ""
            findings.append(Finding("error" if smells else "warning", kind, message, rows))
    return findings


def _channels(name: str, images: pd.DataFrame) -> list[Finding]:
    findings = []
    grey = images[images["grey"]]
    if len(grey):
        message = f"{name}: {_count(grey, 'image', 'images')} of 3 equal channels: grey stored as colour"
        findings.append(Finding("warning", "grey_as_color", message, _numbers(grey["row"])))
    channels = images["channels"].where(~images["grey"], 1)
    usual = int(channels.mode().iloc[0])
    odd = images[(channels != usual) & ~images["grey"]]
    if len(odd):
        found = ", ".join(str(number) for number in sorted(odd["channels"].unique()))
        message = f"{name}: expected {usual} channel(s) as in most images, found {found} in {len(odd)} of {len(images)}"
        findings.append(Finding("warning", "channels", message, _numbers(odd["row"])))
    return findings


def _duplicates(cohort: Cohort, seen: pd.DataFrame) -> list[Finding]:
    """Images of equal pixels; those of one value are not copies of one another but empty."""
    frame = seen.loc[seen["minimum"] < seen["maximum"], ["row", "digest"]]
    frame = frame[frame["digest"].duplicated(keep=False)]
    frame = frame.assign(patient=cohort.encoded("patient")[frame["row"]], side=cohort.split[frame["row"]])
    counts = frame.groupby("digest")[["patient", "side"]].transform("nunique")
    across, torn = (counts["patient"] > 1).to_numpy(), (counts["side"] > 1).to_numpy()
    kinds: list[tuple[Severity, str, npt.NDArray[np.bool_], str]] = [
        (
            "error",
            "duplicate_across_splits",
            across & torn,
            "different patients on different sides of the split: leakage",
        ),
        ("warning", "duplicate_across_patients", across & ~torn, "different patients"),
        ("warning", "duplicate_within_patient", ~across, "one patient"),
    ]
    findings = []
    for severity, kind, here, whose in kinds:
        if here.any():
            groups, rows = frame["digest"][here].nunique(), _numbers(frame["row"][here])
            message = f"{len(rows)} images are exact copies in {_count(groups, 'group', 'groups')}, of {whose}"
            findings.append(Finding(severity, kind, message, rows))
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
        message = f"{_count(rows, 'image', 'images')}: {note}"
        findings.append(Finding("warning" if grave else "note", kind, message, _numbers(rows)))
    return findings


def _numbers(rows: Iterable[int]) -> tuple[int, ...]:
    """Rows as a person counts them."""
    return tuple(sorted(int(row) + 1 for row in rows))


def _count(things: int | Sized, one: str, many: str) -> str:
    number = things if isinstance(things, int) else len(things)
    return f"{number} {one if number == 1 else many}"
