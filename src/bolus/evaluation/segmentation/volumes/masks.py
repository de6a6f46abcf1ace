"""The masks of volumes: read on the voxels of their volume, from one file or from a file for each slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bolus.data.cohort.cohort import Samples
from bolus.data.images.mask_rows import RowMask, why_apart
from bolus.data.images.sources import find_sources, in_threads
from bolus.data.readers.frames import reason_without_names
from bolus.data.readers.masks import read_labels
from bolus.data.readers.nifti import read_affine
from bolus.data.readers.own import Readers, open_readers
from bolus.data.readers.readers import naming, quiet
from bolus.data.volumes.layout import find_layout
from bolus.data.volumes.nifti import moved_up
from bolus.data.volumes.reading import read_volume
from bolus.data.volumes.volume import Affine, Volume
from bolus.errors import BolusError, ImageError, name_rows
from bolus.evaluation.segmentation.annotation import Annotations, annotate, refuse_without_masks
from bolus.evaluation.segmentation.volumes.place import Place

READERS = 4  # volumes that are in memory at the same time, at most

Frames = Sequence[int | None]


def read_volume_masks(samples: Samples, classes: Mapping[int, str] | None = None) -> Annotations:
    """Read the masks of all training and test volumes, and where their volumes lie.

    A mask is one label map of the volume, or one for each row of its slices; label 0 is the background. It lies on its
    volume voxel for voxel: a NIfTI mask of a NIfTI or DICOM volume by its affine, every other by the order of its
    slices.

    Args:
        samples: volumes of a cohort with a column of the role mask.
        classes: as of `bolus.evaluation.segmentation.annotation.read_annotations`.

    Returns:
        Of each volume at its first row. A volume of which some slices have no mask counts as one without.

    Raises:
        EvaluationError, CohortError, UsageError: as `read_annotations`, also for masks that lie on other voxels than
            their volume, or are several files, but not one for each slice.
    """
    cohort = samples.cohort
    refuse_without_masks(cohort)
    side, absent = cohort.split[samples.first_row], cohort.absent("mask")
    asked = np.isin(side, ("train", "test"))
    whole, some = ~samples.readable(absent), samples.readable(~absent)
    positions = np.flatnonzero(whole & asked).tolist()
    read = partial(_read, samples, open_readers(cohort.spec.readers))
    found, places = dict[int, RowMask](), dict[int, Place]()
    for position, (mask, place) in zip(positions, in_threads(read, positions, workers=READERS), strict=True):
        row = int(samples.first_row[position])
        found[row] = mask
        if place is not None:
            places[row] = place
    partly = samples.first_row[some & ~whole & asked]
    notes = []
    if len(partly):
        named = name_rows(cohort.origin[partly])
        notes.append(f"volumes of which only some slices have a mask: {len(partly)}, left out (begin in {named})")
    return annotate(samples, found, classes, places=places, notes=notes)


def volume_again(samples: Samples, position: int, reading: str = "file") -> Volume:
    """A volume of the samples, from its files."""
    paths, frames = files_of(samples, position)
    return read_volume(paths, frames, reading=reading, readers=open_readers(samples.cohort.spec.readers))


def labels_on(
    volume: Volume, paths: Sequence[Path], frames: Frames, masks: Sequence[Path], readers: Readers
) -> tuple[NDArray[np.int64], bool]:
    """The labels of a volume on its own voxels, and whether affines say that they lie there.

    Args:
        volume: what `read_volume` makes of these files.
        paths: of the volume.
        frames: of each.
        masks: the mask file of each row of the volume.
        readers: of one's own.

    Returns:
        int64 `[D, H, W]`; False where nothing says that mask and volume lie on each other, as the one is NIfTI and the
        other a picture.

    Raises:
        ImageError: what `read_labels` raises; several masks that are not one for each slice; a mask of other voxels.
    """
    files = list(dict.fromkeys(masks))
    if len(files) == 1:
        labels = read_labels(files[0], readers=readers)
        labels = labels if labels.ndim == 3 else labels[None]
        if _kind(files[0], readers) == "NIfTI":
            return _on_affine(labels, read_affine(files[0]), volume, frames)
    elif len(files) == len(paths):
        slices = [read_labels(file, readers=readers) for file in files]
        if {each.ndim for each in slices} != {2} or len({each.shape for each in slices}) > 1:
            raise ImageError("expected a mask of one slice for each row, of one size, found masks of several")
        labels = np.stack(slices)
    else:
        raise ImageError(
            f"expected one mask for the volume, or one for each of its {len(paths)} rows, found {len(files)}"
        )
    layout = find_layout(paths, frames, readers=readers)
    if len(labels) != len(layout.places):
        raise ImageError(f"expected {len(layout.places)} slices, as its image has, found {len(labels)}")
    labels = layout.lay(labels)
    _check_size(labels, volume)
    return labels, _kind(paths[0], readers) != "NIfTI"


def _read(samples: Samples, readers: Readers, position: int) -> tuple[RowMask, Place | None]:
    """The mask of a volume, and where the volume lies; None where it cannot be read, which its evaluation says."""
    paths, frames = files_of(samples, position)
    try:
        volume = read_volume(paths, frames, readers=readers)
    except BolusError:
        return RowMask(None), None
    names = samples.cohort.values("mask").iloc[samples.rows_of(position)]
    masks = [samples.cohort.root / str(name) for name in names]
    try:
        labels, placed = labels_on(volume, paths, frames, masks, readers)
    except BolusError as error:
        return RowMask(None, f"the mask: {reason_without_names(error, (*masks, *paths))}"), None
    depth, height, width = volume.array.shape[1:]
    known = all(np.isfinite(step) and step > 0 for step in volume.spacing)
    span = (np.min_scalar_type(int(labels.min(initial=0))), np.min_scalar_type(int(labels.max(initial=0))))
    labels = labels.astype(np.result_type(*span))
    place = Place((depth, height, width), volume.spacing, volume.affine)
    return RowMask(labels, "", volume.spacing if known else None, placed), place


def files_of(samples: Samples, position: int) -> tuple[list[Path], list[int | None]]:
    """The files of a volume, one for each of its rows, and which frame of it."""
    sources = find_sources(samples.cohort, samples.rows_of(position))
    paths = [Path(sources.paths[file]) for file in sources.file.tolist()]
    return paths, [int(frame) if frame >= 0 else None for frame in sources.frame.tolist()]


def _kind(path: Path, readers: Readers) -> str:
    with quiet(), naming(path, readers) as kind:
        return "own" if kind in readers else kind


def _on_affine(
    labels: NDArray[np.int64], affine: Affine, volume: Volume, frames: Frames
) -> tuple[NDArray[np.int64], bool]:
    """Axial slices of a NIfTI mask on the voxels of a volume."""
    numbers = sorted(frame for frame in frames if frame is not None)
    if volume.affine is None:  # pictures, which lie as the slices of the mask do
        labels = labels[numbers] if numbers and numbers[-1] < len(labels) else labels
        _check_size(labels, volume)
        return labels, False
    if numbers and numbers[-1] < len(labels):
        labels, affine = labels[numbers], affine @ moved_up(numbers[0])
    labels = labels[:, ::-1, ::-1]  # as `bolus.data.volumes.nifti.read_canonical`
    _check_size(labels, volume)
    if apart := why_apart(volume.affine, affine):
        raise ImageError(apart)
    return np.ascontiguousarray(labels), True


def _check_size(labels: NDArray[Any], volume: Volume) -> None:
    found, expected = (" x ".join(map(str, shape)) for shape in (labels.shape, volume.array.shape[1:]))
    if found != expected:
        raise ImageError(f"expected {expected} voxels, as its image has, found {found}")
