"""Which slice of a table lies where in a volume: masks of slices laid as the voxels are, and masks of voxels back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bolus.data.readers.nifti import count_slices
from bolus.data.readers.own import NONE, Readers
from bolus.data.readers.readers import count_frames, naming, quiet
from bolus.data.volumes.dicom import lay_files
from bolus.data.volumes.nifti import find_run
from bolus.data.volumes.reading import kind_of
from bolus.data.volumes.stack import by_file
from bolus.data.volumes.volume import Turn, find_turn
from bolus.errors import UsageError

AS_SHOWN = Turn((0, 1, 2), (False, True, True))  # NIfTI slices are read as they are shown: from the patient's right


@dataclass(frozen=True)
class Layout:
    """How the slices of one volume lie among its voxels.

    Args:
        places: int64 `[number]`, where in the stack each of the slices given lies, from 0; -1 where it is left out.
            Copies lie at one place.
        turn: of the stack to the axes of the volume.
    """

    places: npt.NDArray[np.int64]
    turn: Turn

    def lay(self, slices: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Something of every slice, such as its mask, as the voxels of `read_volume` lie.

        Args:
            slices: `[number, H, W]`, in the order in which paths and frames were given, each as `read_image` reads it.

        Returns:
            `[D, H, W]`, of the same dtype.

        Raises:
            UsageError: another number of slices.
        """
        if slices.ndim != 3 or len(slices) != len(self.places):
            raise UsageError(f"expected slices [{len(self.places)}, H, W], found {list(slices.shape)}")
        stack = np.zeros((int(self.places.max()) + 1, *slices.shape[1:]), slices.dtype)
        for number in np.flatnonzero(self.places >= 0)[::-1].tolist():  # of copies, the first is taken
            stack[self.places[number]] = slices[number]
        return np.ascontiguousarray(self.turn.apply(stack))

    def take(self, voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Something of every voxel `[D, H, W]`, such as its class, by slices `[number, H, W]`; 0 of those left out."""
        stack = self.turn.undo(voxels)
        found = np.zeros((len(self.places), *stack.shape[1:]), voxels.dtype)
        known = self.places >= 0
        found[known] = stack[self.places[known]]
        return found


def find_layout(
    paths: Sequence[Path], frames: Sequence[int | None] | None = None, *, readers: Readers = NONE
) -> Layout:
    """How the slices of a volume lie among the voxels that `read_volume` gives for the same paths and frames.

    Only headers are read, but for DICOM slices that are there twice.

    Args:
        paths: the files of one volume.
        frames: of each path, from 0; None is all of the file.
        readers: of one's own.

    Raises:
        ImageError: as `read_volume`.

    Example:
        >>> import tempfile, nibabel
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.nii"
        ...     nibabel.save(nibabel.Nifti1Image(np.zeros((4, 3, 2), np.int16), np.diag([1, 1, 5, 1])), path)
        ...     layout = find_layout([path, path], [1, 0])
        >>> masks = np.zeros((2, 3, 4), np.uint8)
        >>> masks[0, 0, 0] = 1
        >>> layout.lay(masks)[1, 2].tolist(), bool((layout.take(layout.lay(masks)) == masks).all())
        ([0, 0, 0, 1], True)
    """
    paths = [Path(each) for each in paths]
    asked = [None] * len(paths) if frames is None else list(frames)
    with quiet():
        kind = kind_of(paths, readers)
        if kind == "DICOM":
            slices, grid, original = lay_files(paths, asked, "file")
            places = np.full(len(slices), -1)
            places[grid.order] = np.arange(len(grid.order))
            return Layout(places[original], Turn() if grid.affine is None else find_turn(grid.affine))
        if kind == "NIfTI":
            with naming(paths[0]):
                run = find_run(asked, count_slices(paths[0]))
            given = np.array(run if None in asked else asked, np.int64)
            return Layout(given - run[0], AS_SHOWN)
        number = sum(
            count_frames(path, readers) if frame is None else 1
            for path, each in by_file(paths, asked)
            for frame in each
        )
        return Layout(np.arange(number), Turn())
