"""The masks of a cohort's rows beside their images: which slice of which file, and whether it lies on its image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bolus.data.cohort.cohort import Cohort
from bolus.data.readers.frames import reason_without_name
from bolus.data.readers.masks import read_labels
from bolus.data.readers.nifti import read_affine
from bolus.data.readers.own import NONE, Readers
from bolus.data.readers.readers import naming, quiet
from bolus.errors import BolusError

CLOSE = 1e-3  # of a voxel's size: affines that differ by less are one
MOST_LABELS = 64  # more labels than this are those of a picture, not of a label map
UNPLACED = "not NIfTI like their images, or of other slices: that mask and image lie on each other is not checked"

Spacing = tuple[float, float, float]
Affine = npt.NDArray[np.float64]


class Native(NamedTuple):
    """An image's size in pixels, how many slices its file has, its spacing in mm where it is known, and its aspect."""

    shape: tuple[int, int]
    slices: int
    spacing: Spacing | None = None
    aspect: float = 1.0


class RowMask(NamedTuple):
    """The mask of one row.

    Args:
        labels: integers `[H, W]` (`[T, H, W]` of a row that is a clip); None where there is no image, or no mask.
        wrong: why it cannot be used, else empty.
        spacing: of the image, in mm, where it is known.
        placed: False where nothing says that it lies on its image: mask or image is NIfTI and the other is not, or the
            mask is a NIfTI file of one slice of a volume.
        aspect: of the image, height of a pixel over its width.
    """

    labels: npt.NDArray[Any] | None
    wrong: str = ""
    spacing: Spacing | None = None
    placed: bool = True
    aspect: float = 1.0


def mask_files(cohort: Cohort, rows: Iterable[int]) -> dict[tuple[Path, Path], list[int]]:
    """(image file, mask file) -> those of the rows that stand for it; the rows have a mask each."""
    images, masks = cohort.columns.plain(cohort.roles["image"]), cohort.values("mask")
    found: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        found.setdefault((str(images.iloc[row]), str(masks.iloc[row])), []).append(row)
    return {(cohort.root / image, cohort.root / mask): group for (image, mask), group in found.items()}


def read_masks(
    image: Path,
    mask: Path,
    frames: Sequence[int | None],
    natives: Sequence[Native | None],
    readers: Readers = NONE,
) -> list[RowMask]:
    """The masks of the rows of one image file and one mask file, held against what is known of the images.

    A mask file has as many slices as its image file, or is of one slice of it, and pixels of the same number. Where
    both are NIfTI their affines must agree (by 1e-3 of a voxel, after the turn to anatomical axes of
    `bolus.data.readers.nifti`), since two files of one size may well lie turned to each other.

    Args:
        image: the image file; of a NIfTI file the header is read.
        mask: the mask file.
        frames: of each row, as `Cohort.frame`.
        natives: of each row's image; None where it cannot be read.
        readers: of one's own, of images and masks.
    """
    try:
        labels = read_labels(mask, readers=readers)
        affine = _affine(mask, readers)
    except BolusError as error:
        return [RowMask(None, f"the mask: {reason_without_name(error, mask)}")] * len(frames)
    try:
        beside = _affine(image, readers)
    except BolusError:  # which is said of the image
        beside = None
    span = (np.min_scalar_type(int(labels.min(initial=0))), np.min_scalar_type(int(labels.max(initial=0))))
    labels = labels.astype(np.result_type(*span))
    return [
        _match(labels, frame, native, len(frames), (beside, affine))
        for frame, native in zip(frames, natives, strict=True)
    ]


def _match(
    labels: npt.NDArray[Any],
    frame: int | None,
    native: Native | None,
    num_rows: int,
    affines: tuple[Affine | None, Affine | None],
) -> RowMask:
    """The labels of one row."""
    if native is None:
        return RowMask(None)
    slices = len(labels) if labels.ndim == 3 else 1
    whole = labels.ndim == 3 or num_rows > 1 or frame is None
    if whole and slices != native.slices:
        return RowMask(None, f"the mask has {slices} slice{'' if slices == 1 else 's'}, its image {native.slices}")
    if labels.ndim == 3 and frame is not None:
        labels = labels[frame]
    if labels.shape[-2:] != native.shape:
        return RowMask(None, f"the mask is {_size(labels.shape[-2:])} pixels, its image {_size(native.shape)}")
    image, mask = affines
    placed = image is None and mask is None
    if image is not None and mask is not None and whole:
        apart = why_apart(image, mask)
        if apart:
            return RowMask(None, apart)
        placed = True
    return RowMask(np.ascontiguousarray(labels), "", native.spacing, placed, native.aspect)


def _affine(path: Path, readers: Readers) -> Affine | None:
    """Where a NIfTI file says that its voxels lie; None of another kind of file."""
    with quiet(), naming(path, readers) as kind:
        return read_affine(path) if kind == "NIfTI" else None


def why_apart(image: Affine, mask: Affine) -> str:
    """How the affines of an image and of its mask differ, or nothing where they agree by 1e-3 of a voxel.

    >>> why_apart(np.eye(4), np.diag([1.0, 1, 2, 1]))
    'the affines of mask and image differ in the direction of their axes or the size of their voxels'
    """
    steps = np.linalg.norm(image[:3, :3], axis=0)
    if (np.abs(mask - image)[:3, :3] > CLOSE * steps).any():
        return "the affines of mask and image differ in the direction of their axes or the size of their voxels"
    away = float(np.linalg.norm((mask - image)[:3, 3]))
    if away > CLOSE * steps.max():
        return f"the affines of mask and image differ: their origins lie {away:.3g} mm apart"
    return ""


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
