"""Masks of whole volumes by a saved segmenter, on the voxels of their files.

`bolus.prediction.masks.predict_masks` calls this where the segmenter is of volumes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bolus.data.readers.nifti import write_label_stack, write_labels_like
from bolus.data.readers.own import open_readers
from bolus.data.readers.readers import naming, quiet
from bolus.data.volumes.cache.store import VolumeStore
from bolus.data.volumes.layout import find_layout
from bolus.data.volumes.volume import Affine, Spacing
from bolus.errors import ImageError
from bolus.evaluation.segmentation.segmenter import Segmenter
from bolus.evaluation.segmentation.volumes.masks import files_of
from bolus.evaluation.segmentation.volumes.place import Place, from_stored
from bolus.evaluation.segmentation.volumes.sliding import slide, stored_grid, volume_as_cached
from bolus.prediction.mask_files import Group, write_masks

Classes = NDArray[np.int64]
LEFT_OUT = "this slice is left out of its volume, as bolus check says"


@dataclass(frozen=True, eq=False)
class Drawn:
    """The classes of one volume, 0..K-1, at the voxels of its files.

    Args:
        group: its rows.
        codes: row -> `[H, W]` of a row that is one slice, or `[D, H, W]` of the only row of a volume that is one file;
            both as the slices of that file are read one by one.
        left_out: rows of slices that are no part of the volume, such as localizers, with why.
        classes: `[D, H, W]` in the axes of `bolus.data.volumes.volume.Volume`.
        affine: of these axes, None where the files do not say where they lie.
        spacing: mm (D, H, W), NaN where not known.
    """

    group: Group
    codes: dict[int, Classes]
    left_out: dict[int, str]
    classes: Classes
    affine: Affine | None
    spacing: Spacing

    @property
    def whole(self) -> bool:
        """Whether one row stands for all of its slices."""
        return next(iter(self.codes.values())).ndim == 3


def draw_volume(segmenter: Segmenter, position: int) -> Drawn:
    """The classes of a volume, by windows that slide.

    Args:
        segmenter: of volumes, on its device.
        position: of the volume among the samples; it must be readable.

    Raises:
        ImageError: files that cannot be read any more, or have another shape than the cached volume; several files of
            several slices each.
    """
    samples, store = segmenter.samples, segmenter.store
    assert isinstance(store, VolumeStore)
    row, readers = int(samples.first_row[position]), open_readers(samples.cohort.spec.readers)
    volume = volume_as_cached(samples, store, position)
    depth, height, width = volume.array.shape[1:]
    place = Place((depth, height, width), volume.spacing, volume.affine)
    grid = stored_grid(samples, store, row, place, lambda: volume)
    contract = store.preprocessing.seen_by(samples.cohort.modality)
    assert contract.volume is not None
    classes = from_stored(slide(segmenter, row, box=contract.volume.size), grid)
    paths, frames = files_of(samples, position)
    layout = find_layout(paths, frames, readers=readers)
    slices, rows = layout.take(classes), tuple(samples.rows_of(position).tolist())
    if len(rows) not in (1, len(slices)):
        raise ImageError(f"{len(rows)} files of {len(slices)} slices: a mask is written of one file, or of one a slice")
    with quiet(), naming(paths[0], readers) as kind:
        group = Group(kind, rows, tuple(paths), tuple(frames))
    codes, left_out = {rows[0]: slices}, dict[int, str]()
    if len(rows) == len(slices):
        there = layout.places >= 0
        codes = {row: each for row, each, known in zip(rows, slices, there, strict=True) if known}
        left_out = {row: LEFT_OUT for row, known in zip(rows, there, strict=True) if not known}
    return Drawn(group, codes, left_out, classes, volume.affine, volume.spacing)


def write_volume(drawn: Drawn, labels: Classes, name: Callable[[int, str], Path]) -> dict[int, Path]:
    """Write the mask of a volume: NIfTI in the geometry of its files, or a PNG for each picture.

    A volume in one file that does not say where it lies has a NIfTI mask of its spacing, in which the slices lie as in
    that file.

    Args:
        drawn: the volume.
        labels: int64 `[K]`, what stands for each class in the files.
        name: row and suffix -> the file to write.

    Returns:
        Row -> the file that its mask is in.
    """
    first = next(iter(drawn.codes))
    out = name(first, ".nii.gz")
    if drawn.group.kind == "NIfTI" and drawn.whole:
        write_labels_like(drawn.group.paths[0], dict(enumerate(labels[drawn.codes[first]])), out)
    elif drawn.group.kind != "NIfTI" and drawn.affine is not None:
        write_label_stack(labels[drawn.classes], drawn.affine, out)
    elif drawn.whole:
        steps = [step if np.isfinite(step) else 1.0 for step in drawn.spacing[::-1]]
        slices = labels[drawn.codes[first]][:, ::-1, ::-1]  # read slice by slice, the file gives them as they were
        write_label_stack(slices, np.diag([*steps, 1.0]), out, code="aligned")
    else:
        return write_masks(
            drawn.group.among(drawn.codes), {row: labels[each] for row, each in drawn.codes.items()}, name
        )
    return dict.fromkeys(drawn.codes, out)
