"""What a check says of volumes: how many, on what grid, and which cannot be laid; by the headers of their files."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from bolus.data.checks.report import Finding
from bolus.data.cohort.cohort import Cohort, Samples
from bolus.data.images.clips import open_samples
from bolus.data.images.sources import in_threads
from bolus.data.readers.own import open_readers
from bolus.data.volumes.geometry import Geometry, sample_geometry
from bolus.errors import BolusError, CohortError, ImageError

# Notes of a grid that a person should see before training; others say what was found and is well.
GRAVE = ("axes of the voxels", "slices lie up to", "the slices do not say", "no orientation", "sform and qform")


def look_at_volumes(cohort: Cohort, looks: list[dict[str, Any]]) -> list[Finding]:
    """The grid of every volume, where cohort.yaml says that samples are volumes; else nothing.

    Args:
        cohort: whose rows.
        looks: of every row, in order, as `bolus.data.checks.pixels.look_at_pixels` gives them.
    """
    if cohort.spec.unit != "volume":
        return []
    try:
        samples = open_samples(cohort, "volume")
    except CohortError as error:
        problems = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        return [Finding("error", "volumes", f"no volumes (images.unit=volume): {each}") for each in problems]
    readers = open_readers(cohort.spec.readers)

    def look(place: int) -> Geometry | BolusError:
        unread = [each["reason"] or each["lost"] for each in (looks[row] for row in samples.rows_of(place).tolist())]
        if any(unread):
            return ImageError("a slice of it cannot be read" if len(unread) > 1 else next(filter(None, unread)))
        try:
            return sample_geometry(samples, place, readers)
        except BolusError as error:
            return error

    found = list(in_threads(look, list(range(len(samples)))))
    return [*_grids(samples, found), *_unlaid(samples, found), *_notes(samples, found), *_spacings(samples, found)]


Found = list[Geometry | BolusError]


def _grids(samples: Samples, found: Found) -> list[Finding]:
    """How many there are, and their medians."""
    laid = [each for each in found if isinstance(each, Geometry)]
    if not laid:
        return []
    several = int(np.median(samples.num_rows))
    rows = f", {several} rows each in the median" if several > 1 else ""
    shape = " x ".join(f"{each:.0f}" for each in np.median([each.shape for each in laid], axis=0))
    known = [each.spacing for each in laid if each.known]
    steps = " x ".join(f"{each:.3g}" for each in np.median(known, axis=0)) if known else ""
    apart = f", {steps} mm apart" if known else ", how far apart is not known"
    message = f"{len(samples)} volumes{rows}: {shape} voxels (depth, height, width) in the median{apart}"
    return [Finding("note", "volumes", message)]


def _unlaid(samples: Samples, found: Found) -> list[Finding]:
    """The volumes whose files make no grid, by reason; training leaves them out."""
    reasons: dict[str, list[int]] = {}
    for place, each in enumerate(found):
        if isinstance(each, BolusError):
            reasons.setdefault(str(each), []).append(place)
    return [
        Finding("error", "volume_grid", f"{_volumes(places)} cannot be laid, and will be left out: {reason}",
                _first_rows(samples, places))
        for reason, places in sorted(reasons.items(), key=lambda item: -len(item[1]))
    ]  # fmt: skip


def _notes(samples: Samples, found: Found) -> list[Finding]:
    """What is told of the grids of volumes that can be laid, such as a gantry that was tilted."""
    notes: dict[str, list[int]] = {}
    for place, each in enumerate(found):
        for note in each.notes if isinstance(each, Geometry) else ():
            notes.setdefault(note, []).append(place)
    return [
        Finding("warning" if note.startswith(GRAVE) else "note", "volume_grid", f"{_volumes(places)}: {note}",
                _first_rows(samples, places))
        for note, places in sorted(notes.items(), key=lambda item: -len(item[1]))
    ]  # fmt: skip


def _spacings(samples: Samples, found: Found) -> list[Finding]:
    """That volumes differ in their spacing, or that some do not say it."""
    laid = {place: each for place, each in enumerate(found) if isinstance(each, Geometry)}
    known = {place: each.spacing for place, each in laid.items() if each.known}
    unknown = [place for place in laid if place not in known]
    findings = []
    if unknown and known:
        message = f"{_volumes(unknown)} of {len(laid)} do not say how far their voxels lie apart: with images.spacing "
        message += "they are left out"
        findings.append(Finding("warning", "volume_spacing", message, _first_rows(samples, unknown)))
    counts = Counter(tuple(float(f"{step:.2g}") for step in each) for each in known.values())
    if len(counts) > 1:
        steps = np.array(list(known.values()))
        ranges = " x ".join(
            f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
            for low, high in zip(steps.min(axis=0), steps.max(axis=0), strict=True)
        )
        message = (
            f"voxels lie {ranges} mm apart (depth, height, width), in {len(counts)} ways: images.spacing brings all "
            "volumes to one"
        )
        findings.append(Finding("note", "volume_spacing", message))
    return findings


def _volumes(places: list[int]) -> str:
    return f"{len(places)} volume{'' if len(places) == 1 else 's'}"


def _first_rows(samples: Samples, places: list[int]) -> tuple[int, ...]:
    """The first row of each volume, as a person counts the rows of the table."""
    return tuple(sorted({int(samples.cohort.origin[samples.first_row[place]]) + 1 for place in places}))
