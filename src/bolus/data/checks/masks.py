"""What a check looks at in masks: whether they can be read, lie on their images, and which labels they hold."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bolus.data.checks.report import Finding
from bolus.data.cohort.cohort import Cohort
from bolus.data.images.mask_rows import MOST_LABELS, UNPLACED, Native, mask_files, read_masks
from bolus.data.images.sources import in_threads
from bolus.data.readers.own import open_readers
from bolus.data.readers.readers import count_frames
from bolus.errors import BolusError

Labels: TypeAlias = npt.NDArray[Any]


def look_at_masks(cohort: Cohort, looks: list[dict[str, Any]]) -> list[Finding]:
    """Read every mask once, hold it against its image, and count the labels; nothing where no column is the mask.

    Args:
        cohort: whose rows.
        looks: of every row, in order, as `bolus.data.checks.pixels.look_at_pixels` gives them.
    """
    if "mask" not in cohort.roles:
        return []
    rows = np.flatnonzero(~cohort.absent("mask")).tolist()
    files, readers = mask_files(cohort, rows), open_readers(cohort.spec.readers)

    def look(item: tuple[tuple[Path, Path], list[int]]) -> list[tuple[str, bool, Labels]]:
        (image, mask), of_file = item
        frames, slices = [cohort.frame(row) for row in of_file], 0
        if frames != [None]:
            with suppress(BolusError):  # which is said of the image
                slices = count_frames(image, readers)
        natives = [
            None if each["reason"] else Native((each["height"], each["width"]), slices or each["frames"])
            for each in (looks[row] for row in of_file)
        ]
        nothing = np.zeros(0, np.int64)
        return [
            (each.wrong, each.placed, nothing if each.labels is None else np.unique(each.labels))
            for each in read_masks(image, mask, frames, natives, readers)
        ]

    wrong: dict[str, list[int]] = {}
    unplaced: list[int] = []
    counts: Counter[int] = Counter()
    for of_file, found in zip(files.values(), in_threads(look, list(files.items())), strict=True):
        for row, (reason, placed, labels) in zip(of_file, found, strict=True):
            counts.update(labels.tolist())
            if reason:
                wrong.setdefault(reason, []).append(row + 1)
            elif not placed:
                unplaced.append(row + 1)
    findings = [
        Finding("error", "mask", f"{_masks(len(which))} cannot be used: {reason}", tuple(sorted(which)))
        for reason, which in sorted(wrong.items(), key=lambda item: -len(item[1]))
    ]
    if unplaced:
        message = f"{_masks(len(unplaced))}: {UNPLACED}"
        findings.append(Finding("note", "mask_place", message, tuple(sorted(unplaced))))
    return findings + _labels(counts)


def _labels(counts: Counter[int]) -> list[Finding]:
    """Which labels there are, or that they are too many to be labels."""
    found = sorted(label for label in counts if label != 0)
    if len(found) > MOST_LABELS:
        message = f"masks hold {len(found)} labels from {found[0]} to {found[-1]}: are they label maps?"
        return [Finding("warning", "mask_labels", message)]
    if not counts:
        return []
    if not found:
        return [Finding("warning", "mask_labels", "masks hold nothing but label 0, the background")]
    shown = ", ".join(f"{label} in {counts[label]} row{'' if counts[label] == 1 else 's'}" for label in found)
    return [Finding("note", "mask_labels", f"labels of the masks: {shown}")]


def _masks(number: int) -> str:
    return f"{number} mask{'' if number == 1 else 's'}"
