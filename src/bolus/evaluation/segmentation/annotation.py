"""The masks of a cohort: all read and checked at once, before anything is trained, and their labels made classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bolus.data.cohort.cohort import Cohort, Samples
from bolus.data.images.mask_rows import MOST_LABELS, UNPLACED, Native, RowMask, Spacing, mask_files, read_masks
from bolus.data.images.sources import in_threads
from bolus.data.pixels.image import Image
from bolus.data.readers.frames import read_frames
from bolus.data.readers.own import Readers, open_readers
from bolus.data.readers.readers import read_image
from bolus.errors import BolusError, CohortError, EvaluationError, UsageError, name_rows
from bolus.evaluation.segmentation.volumes.place import Place
from bolus.evaluation.statistics.metrics import IntArray


@dataclass(frozen=True, eq=False)
class Annotations:
    """What the masks of the training and test rows say; those of validation rows are not read.

    Of volumes a row is the first of its volume, and a size is that of all its voxels, `[D, H, W]`.

    Args:
        names: of the foreground classes 1..K-1, in the order of their labels.
        codes: row -> class 0..K-1 of every pixel, `[H, W]` of the image's own size; only rows whose image can be read.
        spacing: row -> mm (slice, row, column), where its file says them; of a file with one slice the first is NaN.
        unread: rows that have a mask, but no image that can be read.
        notes: what a reader must know, in sentences.
        aspect: row -> `Image.aspect`, of the same rows as `codes`.
        labels: of the foreground classes, what the masks hold for them.
        places: of volumes, row -> where its voxels lie, of the same rows as `codes`.
    """

    names: tuple[str, ...]
    codes: Mapping[int, NDArray[Any]]
    spacing: Mapping[int, Spacing]
    unread: frozenset[int]
    notes: tuple[str, ...] = ()
    aspect: Mapping[int, float] = field(default_factory=dict)
    labels: tuple[int, ...] = ()
    places: Mapping[int, Place] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """K, with the background."""
        return len(self.names) + 1


def read_annotations(cohort: Cohort, classes: Mapping[int, str] | None = None) -> Annotations:
    """Read the masks of all training and test rows, and the size and spacing of their images.

    A mask lies beside its image as a label map of the same size, or, where several rows share one image file, they may
    share one mask file with as many slices. Label 0 is the background.

    Args:
        cohort: with a column of the role mask, of files relative to the cohort's root.
        classes: label -> name of the classes that are meant; None: the labels of the training patients' masks, named by
            their numbers.

    Raises:
        EvaluationError: no role mask; no training mask with a class; more than 64 labels that were not asked for.
        CohortError: masks that cannot be read, are not of their image's size, or lie elsewhere by the affines of two
            NIfTI files; labels that are not among the classes; all of them, with their rows. A class that was named
            and is in no training mask.
        UsageError: as `check_classes`.
    """
    refuse_without_masks(cohort)
    check_classes(classes)
    given = ~cohort.absent("mask")
    rows = np.flatnonzero(given & np.isin(cohort.split, ("train", "test"))).tolist()
    files, readers = mask_files(cohort, rows), open_readers(cohort.spec.readers)

    def read(item: tuple[tuple[Path, Path], list[int]]) -> list[RowMask]:
        (image, mask), of_file = item
        frames = [cohort.frame(row) for row in of_file]
        return read_masks(image, mask, frames, find_natives(image, frames, readers), readers)

    found: dict[int, RowMask] = {}
    for of_file, masks in zip(files.values(), in_threads(read, list(files.items())), strict=True):
        found.update(zip(of_file, masks, strict=True))
    return annotate(cohort, {row: found[row] for row in rows}, classes)


def refuse_without_masks(cohort: Cohort) -> None:
    """An EvaluationError where no column has the role mask."""
    if "mask" not in cohort.roles:
        raise EvaluationError("no column has the role mask: name the column of the mask files (--role mask=COLUMN)")


def annotate(
    samples: Cohort | Samples,
    found: Mapping[int, RowMask],
    classes: Mapping[int, str] | None,
    places: Mapping[int, Place] | None = None,
    notes: Sequence[str] = (),
) -> Annotations:
    """The classes of masks that were read; Args and Raises else as `read_annotations`.

    Args:
        samples: of volumes; or the cohort, of which each row is an image.
        found: row -> its mask, of all training and test rows that have one.
        classes: label -> name.
        places: of volumes, row -> where its voxels lie.
        notes: what the reader of the masks has to say.
    """
    cohort = samples.cohort if isinstance(samples, Samples) else samples
    refuse_wrong(cohort, {row: each.wrong for row, each in found.items()}, "masks cannot be used")
    labels = {row: np.unique(item.labels) for row, item in found.items() if item.labels is not None}
    wanted = _classes_of(samples, labels, check_classes(classes))
    known = np.array(sorted({0, *wanted}), dtype=np.int64)
    strange = {row: values[~np.isin(values, known)] for row, values in labels.items()}
    asked = ", ".join(map(str, known.tolist()))
    whose = "the classes that were named" if classes else "those of the training patients"
    of_row = {
        row: f"label {other[0]} is not among {asked}, {whose}" if len(other) else "" for row, other in strange.items()
    }
    refuse_wrong(cohort, of_row, "masks have labels that are no class")
    order = np.argsort(known != 0, kind="stable")  # the background first, then by label
    code = np.empty(len(known), dtype=np.min_scalar_type(len(known) - 1))
    code[order] = np.arange(len(known))
    codes = {row: code[np.searchsorted(known, item.labels)] for row, item in found.items() if item.labels is not None}
    meant = tuple(known[order][1:].tolist())
    names = tuple(wanted[label] for label in meant)
    spacing = {row: item.spacing for row, item in found.items() if item.spacing is not None}
    unplaced = [int(cohort.origin[row]) for row, item in found.items() if not item.placed]
    said = [f"masks of {name_rows(sorted(unplaced))} are {UNPLACED}"] if unplaced else []
    aspect = {row: found[row].aspect for row in codes}
    unread = frozenset(found) - frozenset(codes)
    return Annotations(names, codes, spacing, unread, (*notes, *said), aspect, meant, places or {})


def check_classes(classes: Mapping[int, str] | None) -> dict[int, str]:
    """The foreground classes that were named.

    Raises:
        UsageError: a label that is no whole number, no label beside 0, a class without a name, or two of one name.

    >>> check_classes({0: "background", 3: " heart"})
    {3: 'heart'}
    """
    named: dict[int, str] = {}
    for label, name in (classes or {}).items():
        try:
            number = int(label)
        except (TypeError, ValueError):
            number = None
        if number is None or (isinstance(label, float) and label != number):
            raise UsageError(f"classes: expected whole-number labels, found {label!r}")
        named[number] = str(name).strip()
    named.pop(0, None)
    if classes and not named:
        raise UsageError("classes: expected a label beside 0, which is the background")
    if not all(named.values()) or len(set(named.values())) < len(named):
        raise UsageError(f"classes: expected a name of its own for each label, found {list(named.values())}")
    return named


def _classes_of(samples: Cohort | Samples, labels: Mapping[int, IntArray], named: Mapping[int, str]) -> dict[int, str]:
    """The classes that were named, or those of the training masks; an error where there is nothing to learn one of."""
    split = samples.cohort.split if isinstance(samples, Samples) else samples.split
    training = [labels[row] for row in labels if split[row] == "train"]
    if not training:
        raise EvaluationError(f"there is no mask to train on: {why_without(samples, 'train', labels)}")
    seen = [int(label) for label in np.unique(np.concatenate(training)) if label != 0]
    if not seen:
        raise EvaluationError(f"the {len(training)} training masks hold nothing but label 0, the background")
    if named:
        ghosts = [f"label {label} ({name})" for label, name in sorted(named.items()) if label not in seen]
        if ghosts:
            which = f"{', '.join(ghosts)} {'is' if len(ghosts) == 1 else 'are'} in no training mask"
            raise CohortError(f"{which}; found {', '.join(map(str, seen))}")
        return dict(named)
    if len(seen) > MOST_LABELS:
        raise EvaluationError(
            f"the masks of the training patients hold {len(seen)} labels from {seen[0]} to {seen[-1]}: "
            "expected label maps; if they are, name the classes that are meant"
        )
    return {label: str(label) for label in seen}


def why_without(samples: Cohort | Samples, side: str, usable: Iterable[int]) -> str:
    """How many images of one side of the split have no mask, or cannot be read, or are not there at all.

    Args:
        samples: of a cohort with masks; or the cohort, of which each row is an image.
        side: train or test.
        usable: rows with a mask and an image; of volumes, the first rows.
    """
    samples = samples if isinstance(samples, Samples) else samples.samples("image")
    cohort = samples.cohort
    positions = np.flatnonzero(cohort.split[samples.first_row] == side)
    rows = samples.first_row[positions]
    thing = "volume" if samples.unit == "volume" else "image"
    whose = {"train": "training", "val": "validation"}.get(side, side)
    if not len(rows):
        return f"the cohort has no {whose} patient"
    masked = ~samples.readable(cohort.absent("mask"))[positions]  # every row has one
    without, unread = int((~masked).sum()), int((masked & ~np.isin(rows, list(usable))).sum())
    return (
        f"of {len(rows)} {whose} {thing}{'' if len(rows) == 1 else 's'} {without} {'has' if without == 1 else 'have'} "
        f"no mask, and {unread} with a mask cannot be read{' (bolus check says why)' if unread else ''}"
    )


def find_natives(path: Path, frames: Sequence[int | None], readers: Readers) -> list[Native | None]:
    """What is known of the images of one file; None where one cannot be read."""
    if frames != [None]:
        try:
            whole = read_image(path, readers=readers)
        except BolusError:
            several = read_frames(path, frames, readers=readers)
            return [None if isinstance(each, BolusError) else _native(each, len(frames)) for each in several]
        found = _native(whole, whole.array.shape[1] if whole.array.ndim == 4 else 1)
        return [found if frame is not None and 0 <= frame < found.slices else None for frame in frames]
    try:
        image = read_image(path, readers=readers)
    except BolusError:
        return [None]
    return [_native(image, 1) if image.array.ndim == 3 else None]


def _native(image: Image, slices: int) -> Native:
    height, width = image.array.shape[-2:]
    steps = (np.nan, np.nan, np.nan, *(image.spacing or ()))[-3:]
    stated = all(np.isfinite(step) and step > 0 for step in steps[1:])
    spacing = (float(steps[0]), float(steps[1]), float(steps[2])) if stated else None
    return Native((height, width), slices, spacing, image.aspect)


def refuse_wrong(cohort: Cohort, wrong: Mapping[int, str], what: str) -> None:
    """A CohortError that lists what is wrong with which rows, if anything is."""
    reasons: dict[str, list[int]] = {}
    for row, reason in wrong.items():
        if reason:
            reasons.setdefault(reason, []).append(int(cohort.origin[row]))
    if reasons:
        total = sum(map(len, reasons.values()))
        raise CohortError(f"{total} {what}", [f"{name_rows(rows)}: {reason}" for reason, rows in reasons.items()])
