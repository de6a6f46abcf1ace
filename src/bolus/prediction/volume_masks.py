"""Masks of whole volumes by a saved segmenter, on the voxels of their files.

`bolus.prediction.masks.predict_masks` calls this where the segmenter is of volumes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bolus.data.images.sources import readings_of
from bolus.data.readers.dicom_stack import write_label_stack
from bolus.data.readers.nifti import write_labels_like
from bolus.data.readers.own import open_readers
from bolus.data.readers.readers import naming, quiet
from bolus.data.volumes.cache.store import VolumeStore
from bolus.data.volumes.layout import find_layout
from bolus.data.volumes.volume import Affine
from bolus.errors import ImageError
from bolus.evaluation.segmentation.segmenter import Segmenter
from bolus.evaluation.segmentation.volumes.masks import files_of, volume_again
from bolus.evaluation.segmentation.volumes.place import Place, from_stored, grid_of
from bolus.evaluation.segmentation.volumes.sliding import slide
from bolus.prediction.mask_files import Group

Classes = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Drawn:
    """The classes of one volume, 0..K-1, at the voxels of its files.

    Args:
        group: its rows.
        codes: row -> `[H, W]` of a row that is one slice, or `[D, H, W]` of the only row of a volume that is one file;
            both as the slices of that file are read one by one.
        classes: `[D, H, W]` in the axes of `bolus.data.volumes.volume.Volume`.
        affine: of these axes, None where the files do not say where they lie.
    """

    group: Group
    codes: dict[int, Classes]
    classes: Classes
    affine: Affine | None

    @property
    def whole(self) -> bool:
        """Whether the volume is one file, and one row."""
        return next(iter(self.codes.values())).ndim == 3


def draw_volume(segmenter: Segmenter, position: int) -> Drawn:
    """The classes of a volume, by windows that slide.

    Args:
        segmenter: of volumes, on its device.
        position: of the volume among the samples; it must be readable.

    Raises:
        ImageError: files that cannot be read any more, or were changed since they were cached; several files of several
            slices each.
    """
    samples, store = segmenter.samples, segmenter.store
    assert isinstance(store, VolumeStore)
    cohort, row = samples.cohort, int(samples.first_row[position])
    modality, readers = str(cohort.modality[row]), open_readers(cohort.spec.readers)
    contract = store.preprocessing.seen_by(cohort.modality)
    assert contract.volume is not None
    reading = readings_of(cohort, np.array([row], np.int64), contract.stated, readers)[0][0]
    volume = volume_again(samples, position, reading)
    depth, height, width = volume.array.shape[1:]
    grid = grid_of(Place((depth, height, width), volume.spacing, volume.affine), contract, lambda: volume, modality)
    if grid.shape != tuple(store.shape[row, 1:].tolist()):
        raise ImageError("the volume was changed since it was cached")
    classes = from_stored(slide(segmenter, row, box=contract.volume.size), grid)
    paths, frames = files_of(samples, position)
    slices = find_layout(paths, frames, readers=readers).take(classes)
    rows = tuple(samples.rows_of(position).tolist())
    with quiet(), naming(paths[0], readers) as kind:
        group = Group(kind, rows, tuple(paths), tuple(frames))
    if len(rows) == len(slices):
        return Drawn(group, dict(zip(rows, slices, strict=True)), classes, volume.affine)
    if len(rows) > 1:
        raise ImageError(f"{len(rows)} files of {len(slices)} slices: a mask is written of one file, or of one a slice")
    return Drawn(group, {rows[0]: slices}, classes, volume.affine)


def write_whole(drawn: Drawn, labels: NDArray[np.int64], out: Path) -> None:
    """The mask of a volume that is one file, as NIfTI: in its geometry, or as its slices lie in it.

    Args:
        drawn: such a volume.
        labels: `[K]`, what stands for each class in the file.
        out: .nii.gz
    """
    path, slices = drawn.group.paths[0], labels[next(iter(drawn.codes.values()))]
    if drawn.group.kind == "NIfTI":
        write_labels_like(path, dict(enumerate(slices)), out)
    elif drawn.affine is not None:
        write_label_stack(labels[drawn.classes], drawn.affine, out)
    else:  # read slice by slice, this file gives the slices again
        write_label_stack(slices[:, ::-1, ::-1], np.eye(4), out)
