"""How large a volume is and where its voxels lie, by the headers of its files alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bolus.data.cohort.cohort import Samples
from bolus.data.readers.frames import reason_without_name
from bolus.data.readers.nifti import orientation_notes, read_affine, read_header
from bolus.data.readers.own import NONE, Readers
from bolus.data.readers.readers import naming, quiet, read_image
from bolus.data.volumes.dicom import lay_files
from bolus.data.volumes.layout import find_layout
from bolus.data.volumes.nifti import find_run
from bolus.data.volumes.reading import kind_of
from bolus.data.volumes.volume import Spacing, find_turn, shear_notes, spacing_of, turn_affine
from bolus.errors import BolusError, ImageError, require


@dataclass(frozen=True)
class Geometry:
    """The grid of a volume, along (D, H, W) of the volume that `read_volume` gives.

    Args:
        shape: voxels.
        spacing: mm between them; NaN where unknown.
        notes: what a person should know of the places of its slices.
    """

    shape: tuple[int, int, int]
    spacing: Spacing
    notes: tuple[str, ...] = ()

    @property
    def known(self) -> bool:
        """Whether the spacing is known along each axis.

        >>> Geometry((2, 4, 4), (math.nan, 1.0, 1.0)).known
        False
        """
        return all(math.isfinite(step) for step in self.spacing)


def find_geometry(
    paths: Sequence[Path], frames: Sequence[int | None] | None = None, *, readers: Readers = NONE
) -> Geometry:
    """The grid of the volume that `read_volume` gives for the same paths and frames.

    Only headers are read, but for DICOM slices that are there twice, and the first of slices that are single images.

    Args:
        paths: the files of one volume.
        frames: of each path, from 0; None is all of the file.
        readers: of one's own.

    Raises:
        ImageError: as `read_volume`, but for what only the voxels tell.

    Example:
        >>> import tempfile, nibabel
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.nii"
        ...     nibabel.save(nibabel.Nifti1Image(np.zeros((4, 3, 2), np.int16), np.diag([-1, 1, 5, 1])), path)
        ...     find_geometry([path])
        Geometry(shape=(2, 3, 4), spacing=(5.0, 1.0, 1.0), notes=())
    """
    paths = [Path(each) for each in paths]
    asked = [None] * len(paths) if frames is None else list(frames)
    with quiet():
        kind = kind_of(paths, readers)
        if kind == "NIfTI":
            if len(set(paths)) > 1:
                raise ImageError(f"expected one NIfTI file a volume, found {len(set(paths))}")
            return _of_nifti(paths[0], asked)
        if kind == "DICOM":
            return _of_dicom(paths, asked)
        depth = len(find_layout(paths, asked, readers=readers).places)
        first = read_image(paths[0], frame=asked[0], readers=readers)
        height, width = first.array.shape[-2:]
        along, down, across = (math.nan, *(first.spacing or (math.nan, math.nan))[-2:])
        return Geometry((depth, height, width), (along, down, across))


def sample_geometry(samples: Samples, position: int, readers: Readers = NONE) -> Geometry:
    """The grid of one volume of a cohort.

    Args:
        samples: volumes.
        position: which of them.
        readers: of one's own.

    Raises:
        ImageError: as `find_geometry`, without the names of files and folders.
    """
    cohort, rows = samples.cohort, samples.rows_of(position).tolist()
    paths = [cohort.image_path(row) for row in rows]
    try:
        return find_geometry(paths, [cohort.frame(row) for row in rows], readers=readers)
    except BolusError as error:
        told: BolusError = error
        for path in dict.fromkeys(paths):
            told = BolusError(reason_without_name(told, path))
        raise ImageError(str(told)) from None


def _of_nifti(path: Path, asked: Sequence[int | None]) -> Geometry:
    nibabel = require("nibabel", "NIfTI files")
    with naming(path):
        header, _ = read_header(path)
        whole = tuple(int(length) for length in header.get_data_shape())
        if math.prod(whole[3:]) > 1:
            raise ImageError(f"expected a volume of three axes, found shape {whole}: split it into one file each")
        affine = read_affine(path)
        if np.isnan(affine).any():
            raise ImageError("damaged: expected an affine with three directions, found a degenerate one")
        places = np.argsort(nibabel.io_orientation(header.get_best_affine())[:, 0])
        width, height, depth = ((*whole, 1, 1, 1)[int(axis)] for axis in places)
        depth = len(find_run(asked, depth))
        return Geometry((depth, height, width), spacing_of(affine), (*orientation_notes(header), *shear_notes(affine)))


def _of_dicom(paths: Sequence[Path], asked: Sequence[int | None]) -> Geometry:
    slices, grid, _ = lay_files(paths, asked, "file")
    rows, columns = slices[int(grid.order[0])].plane.shape
    stack = (len(grid.order), rows, columns)
    if grid.affine is None:
        return Geometry(stack, grid.spacing, grid.notes)
    turn = find_turn(grid.affine)
    depth, height, width = (stack[axis] for axis in turn.axes)
    along, down, across = (grid.spacing[axis] for axis in turn.axes)
    slanted = shear_notes(turn_affine(grid.affine, turn, stack))
    return Geometry((depth, height, width), (along, down, across), (*grid.notes, *slanted))
