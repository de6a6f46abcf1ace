"""A NIfTI file as a volume: its voxels turned to the closest anatomical axes, as nibabel's `as_closest_canonical`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bolus.data.readers.nifti import orientation_notes, read_affine, read_header, read_nifti
from bolus.data.readers.readers import naming
from bolus.data.readers.room import Claim
from bolus.data.volumes.joining import range_again
from bolus.data.volumes.volume import Volume, shear_notes, spacing_of
from bolus.errors import ImageError


def read_canonical(path: Path, frames: Sequence[int | None], claim: Claim) -> Volume:
    """The volume in a NIfTI-1 or NIfTI-2 file, packed by gzip or not.

    Where it lies is what nibabel takes: the sform, if its code says that it is set; else the qform; else the voxels'
    sizes alone, with a note.

    Args:
        path: the file.
        frames: axial slices from 0 as `bolus.data.readers.nifti.read_nifti` counts them, from inferior to superior, in
            any order and without a gap; None is all of them.
        claim: room in memory.

    Raises:
        ImageError: as `read_nifti`: several time points, no number a voxel, a degenerate affine, a damaged file; slices
            that are there twice, or between which one is missing.
    """
    with naming(path):
        image = read_nifti(path, claim=claim)
        header, _ = read_header(path)
        affine = read_affine(path)
        if image.array.ndim == 3:
            image = replace(image, array=image.array[:, None])
        depth = image.array.shape[1]
        run = find_run(frames, depth)
        if len(run) < depth:
            image = range_again(replace(image, array=image.array[:, run[0] : run[-1] + 1]))
            affine = affine @ moved_up(run[0])
        spacing = spacing_of(affine)
        notes = [*orientation_notes(header), *shear_notes(affine)]
    array = np.ascontiguousarray(image.array)
    for number in range(len(run)):  # one at a time: a volume is not held twice
        array[0, number] = array[0, number, ::-1, ::-1].copy()
    return Volume(array, spacing, affine, image.range, image.bits, False, tuple(notes))


def find_run(frames: Sequence[int | None], depth: int) -> list[int]:
    """The slices from the lowest to the highest of those that are asked for, once none is missing or there twice.

    >>> find_run([3, 1, 2], 9), find_run([None], 3)
    ([1, 2, 3], [0, 1, 2])
    """
    found = sorted(each for each in frames if each is not None)
    if None in frames or not found:
        return list(range(depth))
    first, last = found[0], found[-1]
    if first < 0 or last >= depth:
        raise ImageError(f"expected slices from 0 to {depth - 1}, found {first if first < 0 else last}")
    twice = len(found) - len(set(found))
    if twice:
        raise ImageError(f"expected each slice once, found {twice} again")
    if last - first + 1 > len(found):
        missing = last - first + 1 - len(found)
        raise ImageError(f"expected slices that follow each other, found {missing} missing from {first} to {last}")
    return found


def moved_up(slices: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """What an affine is multiplied by for a volume that begins so many slices higher, `[4, 4]`."""
    moved = np.eye(4)
    moved[2, 3] = slices
    return moved
