"""Headers of NIfTI volumes: size, spacing, whether the voxels are all there, and whether a mask lies on its image."""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.images.mask_rows import why_apart
from bolus.data.readers.nifti import read_affine, read_header
from bolus.data.readers.readers import naming, quiet
from bolus.errors import ImageError, require


class Volume(NamedTuple):
    """What the header of a NIfTI file says.

    Args:
        shape: voxels along x, y and z of the closest canonical (RAS) image; z is the number of axial slices.
        spacing: in mm along the same axes, NaN where unknown.
        affine: float64 `[4, 4]`, from the closest canonical image to mm.
        times: how many volumes the file has: above 1 where it has a fourth axis.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    affine: npt.NDArray[np.float64]
    times: int


def read_volume(path: Path) -> Volume:
    """The header of a NIfTI file; no voxel is decoded unless the size of a packed file leaves a doubt.

    Raises:
        ImageError: no NIfTI, a damaged header, or fewer voxels than the header says.

    Example:
        >>> import tempfile, nibabel
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.nii.gz"
        ...     nibabel.save(nibabel.Nifti1Image(np.zeros((4, 3, 2), np.int16), np.diag([-1, 2, 5, 1])), path)
        ...     read_volume(path)[:2]
        ((4, 3, 2), (1.0, 2.0, 5.0))
    """
    nibabel = require("nibabel", "NIfTI files")
    with quiet(), naming(path) as kind:
        if kind != "NIfTI":
            raise ImageError(f"expected NIfTI, found {kind}")
        header, packed = read_header(path)
        whole = tuple(int(length) for length in header.get_data_shape())
        needed = int(header["vox_offset"]) + math.prod(whole) * header.get_data_dtype().itemsize
        if not _is_whole(path, packed, needed):
            raise ImageError("damaged: it ends before its last voxel")
        affine = read_affine(path)
        if np.isnan(affine).any():
            raise ImageError("damaged: expected an affine with three directions, found a degenerate one")
        orientation = nibabel.io_orientation(header.get_best_affine())
        places = np.argsort(orientation[:, 0])  # axes of the file in the order x, y, z
        shape = tuple((*whole, 1, 1, 1)[int(axis)] for axis in places)
        spacing = tuple(float(step) or math.nan for step in np.linalg.norm(affine[:3, :3], axis=0))
        return Volume(shape, spacing, affine, math.prod(whole[3:]))


def lies_on(mask: Volume, image: Volume) -> bool:
    """Whether both have the same voxels at the same places, whatever the order of axes in either file."""
    return mask.shape == image.shape and not why_apart(image.affine, mask.affine)


def take_frames(table: pd.DataFrame, counts: Sequence[int]) -> pd.DataFrame:
    """The table with a row for each frame or axial slice of a file of several: `order` is its number, from 0.

    `series` is the file, where the table does not say it. Files of one frame stay one row without order.

    Args:
        table: one row a file, with a column `image`.
        counts: how many frames each file has.

    Example:
        >>> take_frames(pd.DataFrame({"image": ["a", "b"]}), [2, 1])[["image", "order", "series"]].values.tolist()
        [['a', 0.0, 'a'], ['a', 1.0, 'a'], ['b', nan, None]]
    """
    numbers = np.asarray(counts, np.int64)
    here = np.repeat(np.arange(len(table)), numbers)
    frames = (np.arange(len(here)) - np.repeat(np.cumsum(numbers) - numbers, numbers)).astype(np.float64)
    several = numbers[here] > 1
    if not several.any():
        return table
    made = table.iloc[here].reset_index(drop=True)
    old: Any = made["order"].to_numpy() if "order" in made else np.full(len(made), np.nan)
    made["order"] = np.where(several, frames, old)
    named = made["series"] if "series" in made else pd.Series([None] * len(made), dtype=object)
    made["series"] = named.where(~several | named.notna(), made["image"])
    return made


def _is_whole(path: Path, packed: bool, needed: int) -> bool:
    """Whether a file has this many bytes once it is unpacked."""
    if not packed:
        return path.stat().st_size >= needed
    with path.open("rb") as stream:
        stream.seek(-4, 2)
        said = int.from_bytes(stream.read(4), "little")  # modulo 2**32, of the last member
    if said == needed % 2**32:
        return True
    length = 0
    try:
        with gzip.open(path) as stream:
            while length < needed and (part := stream.read(2**20)):
                length += len(part)
    except (OSError, EOFError):
        return False
    return length >= needed
