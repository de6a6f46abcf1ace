"""The masks of a cohort: read and checked all at once before anything is trained, and put together to test volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bolus.data.cohort import Cohort
from bolus.data.frames import read_frames, reason_without_name
from bolus.data.image import Image
from bolus.data.masks import read_labels
from bolus.data.readers import read_image
from bolus.data.sources import in_threads
from bolus.data.volumes import volume_codes
from bolus.errors import BolusError, CohortError, EvaluationError, UsageError, name_rows
from bolus.evaluation.metrics import IntArray

MOST_CLASSES = 64  # more labels than this, not asked for by name, are those of a picture

Spacing = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Annotations:
    """What the masks of the training and test rows say; those of validation rows are not read.

    Args:
        names: of the foreground classes 1..K-1, in the order of their labels.
        codes: row -> class 0..K-1 of every pixel, `[H, W]` of the image's own size; only rows whose image can be read.
        spacing: row -> mm (slice, row, column), where its file says them; of a file with one slice the first is NaN.
        unread: rows that have a mask, but no image that can be read.
    """

    names: tuple[str, ...]
    codes: Mapping[int, NDArray[Any]]
    spacing: Mapping[int, Spacing]
    unread: frozenset[int]

    @property
    def num_classes(self) -> int:
        """K, with the background."""
        return len(self.names) + 1


@dataclass(frozen=True, eq=False)
class Volume:
    """The slices of one volume, in order, with what is true of them.

    Args:
        rows: int64 `[T]`, of the cohort.
        patient: its code.
        truth: classes `[T, H, W]`.
        spacing: mm (slice, row, column); None where the files do not say all of it. Of one slice the first is 1.
    """

    rows: IntArray
    patient: int
    truth: NDArray[Any]
    spacing: Spacing | None


def read_annotations(cohort: Cohort, classes: Mapping[int, str] | None = None) -> Annotations:
    """Read the masks of all training and test rows, and the size and spacing of their images.

    A mask lies beside its image as a label map of the same size, or, where several rows share one image file, they may
    share one mask file with as many slices. Label 0 is the background.

    Args:
        cohort: with a column of the role mask, of files relative to the cohort's root.
        classes: label -> name of the classes that are meant; None: the labels of the training patients' masks, named by
            their numbers.

    Raises:
        EvaluationError: no role mask; no class; more than 64 labels that were not asked for.
        CohortError: masks that cannot be read, or are not of their image's size; labels that are not among the classes;
            all of them, with their rows.
        UsageError: a class without a name, or two of one name.
    """
    if "mask" not in cohort.roles:
        raise EvaluationError("no column has the role mask: name the column of the mask files (--role mask=COLUMN)")
    wanted = _check_classes(classes)
    files = cohort.values("mask")
    rows = np.flatnonzero(files.notna().to_numpy() & np.isin(cohort.split, ("train", "test")))
    images = cohort.table[cohort.roles["image"]]
    groups: dict[tuple[str, str], list[int]] = {}
    for row in rows.tolist():
        groups.setdefault((str(images.iloc[row]), str(files.iloc[row])), []).append(row)

    def read(group: tuple[tuple[str, str], list[int]]) -> list[_Slice]:
        (image, mask), of_group = group
        return _read_group(cohort.root / image, cohort.root / mask, [cohort.frame(row) for row in of_group])

    found: dict[int, _Slice] = {}
    for of_group, slices in zip(groups.values(), in_threads(read, list(groups.items())), strict=True):
        found.update(zip(of_group, slices, strict=True))
    _refuse_wrong(cohort, {row: found[row].wrong for row in rows.tolist()}, "masks cannot be used")
    labels = {row: np.unique(item.labels) for row, item in found.items() if item.labels is not None}
    if not wanted:
        training = [labels[row] for row in labels if cohort.split[row] == "train"]
        seen = np.unique(np.concatenate([np.zeros(0, np.int64), *training]))
        wanted = {int(label): str(label) for label in seen if label != 0}
        if len(wanted) > MOST_CLASSES:
            raise EvaluationError(
                f"the masks of the training patients hold {len(wanted)} labels from {min(wanted)} to {max(wanted)}: "
                "expected label maps; if they are, name the classes that are meant"
            )
        if not wanted:
            raise EvaluationError("no training patient has a mask with anything but label 0, the background")
    known = np.array(sorted({0, *wanted}), dtype=np.int64)
    strange = {row: values[~np.isin(values, known)] for row, values in labels.items()}
    asked = ", ".join(map(str, known.tolist()))
    whose = "the classes that were named" if classes else "those of the training patients"
    of_row = {
        row: f"label {other[0]} is not among {asked}, {whose}" if len(other) else "" for row, other in strange.items()
    }
    _refuse_wrong(cohort, of_row, "masks have labels that are no class")
    order = np.argsort(known != 0, kind="stable")  # the background first, then by label
    code = np.empty(len(known), dtype=np.min_scalar_type(len(known) - 1))
    code[order] = np.arange(len(known))
    codes = {row: code[np.searchsorted(known, item.labels)] for row, item in found.items() if item.labels is not None}
    names = tuple(wanted[label] for label in known[order][1:].tolist())
    spacing = {row: item.spacing for row, item in found.items() if item.spacing is not None}
    return Annotations(names, codes, spacing, frozenset(found) - frozenset(codes))


def find_volumes(
    cohort: Cohort, annotations: Annotations, readable: NDArray[np.bool_] | None = None
) -> tuple[list[Volume], list[str]]:
    """The test volumes of which every slice has a mask and an image.

    Rows are put together as `bolus.data.volumes.volume_codes` says; where no column tells series, order or slice
    position, each row is a volume of its own. Slices are in the order of `order`, else of `slice_position`, else of the
    table.

    Args:
        cohort: whose rows.
        annotations: of these rows.
        readable: bool `[rows]`, images that are there; None: all.

    Returns:
        The volumes, in the order of their first rows in the table, and what a reader must know, in sentences.

    Raises:
        EvaluationError: no test volume.
        CohortError: slices of one volume that differ in size.
    """
    seen = np.isin(np.arange(len(cohort)), list(annotations.codes))
    masked = seen | np.isin(np.arange(len(cohort)), list(annotations.unread))
    seen &= np.ones(len(cohort), np.bool_) if readable is None else readable
    test = np.flatnonzero(cohort.split == "test")
    told = [role for role in ("order", "slice_position") if role in cohort.roles]
    if told or "series" in cohort.roles:
        codes, roles = volume_codes(cohort)
        notes = [f"a volume is the test images of one {' and '.join(roles)}"]
    else:
        codes = np.arange(len(cohort), dtype=np.int64)
        notes = ["no column has the role series, order or slice_position: each image is a volume of its own"]
    order = cohort.encoded(told[0]) if told else np.zeros(len(cohort))
    patients, volumes, lost, wrong = cohort.encoded("patient"), [], [], {}
    for code in dict.fromkeys(codes[test].tolist()):
        rows = test[codes[test] == code]
        rows = rows[np.argsort(order[rows], kind="stable")]
        if not seen[rows].all():
            lost.append(rows)
            continue
        shapes = {annotations.codes[row].shape for row in rows.tolist()}
        if len(shapes) > 1:
            wrong[int(rows.min())] = f"slices of one volume have sizes {sorted(shapes)}"
            continue
        truth = np.stack([annotations.codes[row] for row in rows.tolist()])
        volumes.append(Volume(rows, int(patients[rows[0]]), truth, _spacing_of(cohort, annotations, rows, order)))
    _refuse_wrong(cohort, wrong, "volumes are no stack of slices")
    if lost:
        among = np.concatenate(lost)
        without, unreadable = int((~masked[among]).sum()), int((masked[among] & ~seen[among]).sum())
        why = f"{without} of their {len(among)} slices have no mask, {unreadable} have an image that cannot be read"
        first = cohort.origin[[rows[0] for rows in lost]]
        notes.append(f"{len(lost)} test volumes are left out ({why}; those that begin in {name_rows(first)})")
    if not volumes:
        raise EvaluationError(f"no test volume has a mask and an image on every slice; {notes[-1]}")
    single = sum(len(volume.rows) == 1 for volume in volumes)
    if single:
        notes.append(f"{single} of {len(volumes)} test volumes are one slice: their numbers are those of one image")
    return volumes, notes


class _Slice(NamedTuple):
    """Labels `[H, W]`, or None where there is no image; what is wrong, or nothing; spacing in mm."""

    labels: NDArray[Any] | None
    wrong: str = ""
    spacing: Spacing | None = None


class _Native(NamedTuple):
    """An image's size in pixels, how many slices its file has, and its spacing in mm."""

    shape: tuple[int, int]
    slices: int
    spacing: Spacing | None


def _check_classes(classes: Mapping[int, str] | None) -> dict[int, str]:
    """The foreground classes that were named."""
    named = {int(label): str(name).strip() for label, name in (classes or {}).items()}
    named.pop(0, None)
    if classes and not named:
        raise UsageError("classes: expected a label beside 0, which is the background")
    if not all(named.values()) or len(set(named.values())) < len(named):
        raise UsageError(f"classes: expected a name of its own for each label, found {list(named.values())}")
    return named


def _read_group(image: Path, mask: Path, frames: Sequence[int | None]) -> list[_Slice]:
    """The slices that rows of one image file and one mask file stand for."""
    try:
        labels = read_labels(mask)
    except BolusError as error:
        return [_Slice(None, f"the mask: {reason_without_name(error, mask)}")] * len(frames)
    span = (np.min_scalar_type(int(labels.min(initial=0))), np.min_scalar_type(int(labels.max(initial=0))))
    labels = labels.astype(np.result_type(*span))
    return [
        _match(labels, frame, native, len(frames))
        for frame, native in zip(frames, _natives(image, frames), strict=True)
    ]


def _match(labels: NDArray[Any], frame: int | None, native: _Native | None, num_rows: int) -> _Slice:
    """The labels of one row."""
    if native is None:
        return _Slice(None)
    slices = len(labels) if labels.ndim == 3 else 1
    whole = labels.ndim == 3 or num_rows > 1
    if whole and slices != native.slices:
        return _Slice(None, f"the mask has {slices} slices, its image {native.slices}")
    if labels.ndim == 3:
        assert frame is not None, "an image of several slices has a row for each"
        labels = labels[frame]
    if labels.shape != native.shape:
        return _Slice(None, f"the mask is {_size(labels.shape)} pixels, its image {_size(native.shape)}")
    return _Slice(np.ascontiguousarray(labels), "", native.spacing)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _natives(path: Path, frames: Sequence[int | None]) -> list[_Native | None]:
    """What is known of the images of one file; None where one cannot be read."""
    if frames != [None]:
        try:
            whole = read_image(path)
        except BolusError:
            several = read_frames(path, frames)
            return [None if isinstance(each, BolusError) else _native(each, len(frames)) for each in several]
        found = _native(whole, whole.array.shape[1] if whole.array.ndim == 4 else 1)
        return [found if frame is not None and 0 <= frame < found.slices else None for frame in frames]
    try:
        image = read_image(path)
    except BolusError:
        return [None]
    return [_native(image, 1) if image.array.ndim == 3 else None]


def _native(image: Image, slices: int) -> _Native:
    height, width = image.array.shape[-2:]
    steps = (np.nan, np.nan, np.nan, *(image.spacing or ()))[-3:]
    stated = all(np.isfinite(step) and step > 0 for step in steps[1:])
    return _Native((height, width), slices, (float(steps[0]), float(steps[1]), float(steps[2])) if stated else None)


def _spacing_of(cohort: Cohort, annotations: Annotations, rows: IntArray, order: NDArray[Any]) -> Spacing | None:
    """The spacing of a volume, where its files say all of it."""
    stated = {annotations.spacing.get(row) for row in rows.tolist()}
    first = annotations.spacing.get(int(rows[0]))
    if first is None:
        return None
    if len(rows) == 1:
        return (1.0, first[1], first[2])
    one_file = cohort.table[cohort.roles["image"]].iloc[rows].nunique() == 1
    in_turn = bool((np.diff(order[rows]) == 1).all())
    return first if len(stated) == 1 and one_file and in_turn and np.isfinite(first[0]) else None


def _refuse_wrong(cohort: Cohort, wrong: Mapping[int, str], what: str) -> None:
    """A CohortError that lists what is wrong with which rows, if anything is."""
    reasons: dict[str, list[int]] = {}
    for row, reason in wrong.items():
        if reason:
            reasons.setdefault(reason, []).append(int(cohort.origin[row]))
    if reasons:
        total = sum(map(len, reasons.values()))
        raise CohortError(f"{total} {what}", [f"{name_rows(rows)}: {reason}" for reason, rows in reasons.items()])
