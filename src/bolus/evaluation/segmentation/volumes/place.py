"""Where the voxels of a volume lie, as its files have them, and as the cache keeps them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from bolus.data.images.preprocessing import Preprocessing
from bolus.data.pixels.image import Range
from bolus.data.volumes.boxes import crop_foreground
from bolus.data.volumes.cache.fitting import fit_grid
from bolus.data.volumes.fit import Box
from bolus.data.volumes.volume import Affine, Spacing, Volume

BEYOND = 0.75  # of a cached voxel past the middle of the last one: what rounding the number of voxels may leave out
TIE = 1e-6  # of a voxel: so much nearer a place half way is to the lower voxel
SLAB = 2**22  # voxels whose classes are found at once


@dataclass(frozen=True, eq=False)
class Place:
    """The grid of a volume as its files have it, in the axes of `bolus.data.volumes.volume.Volume`.

    Args:
        shape: voxels (D, H, W).
        spacing: mm (D, H, W), NaN where not known.
        affine: float64 `[4, 4]`, None where the files do not say where they lie.
    """

    shape: Box
    spacing: Spacing
    affine: Affine | None


@dataclass(frozen=True, eq=False)
class Grid:
    """The grid of a cached volume, beside that of its files.

    Args:
        shape: voxels (d, h, w) of the cached one.
        native: voxels (D, H, W) of the files.
        to_native: float64 `[4, 4]`, from (i, j, k, 1) of the cached voxels to those of the files.
    """

    shape: Box
    native: Box
    to_native: Affine

    @property
    def is_native(self) -> bool:
        """Whether both are one."""
        return self.shape == self.native and np.allclose(self.to_native, np.eye(4), atol=1e-6)

    @property
    def to_stored(self) -> Affine:
        """From voxels of the files to the cached ones."""
        found: Affine = np.linalg.inv(self.to_native).astype(np.float64)
        return found


def grid_of(place: Place, contract: Preprocessing, read: Callable[[], Volume], modality: str = "") -> Grid:
    """The grid that the cache keeps a volume on.

    Args:
        place: of the volume.
        contract: of an encoder of volumes.
        read: the volume again, for a contract that cuts to the body, which only its voxels tell.
        modality: as the table says it, for files that do not.

    Raises:
        ImageError, TooLargeError: as `bolus.data.volumes.cache.fitting.fit_volume`.

    Example:
        >>> from bolus.data.volumes.fit import VolumeFit
        >>> place = Place((4, 8, 8), (3.0, 1.0, 1.0), np.diag([1.0, 1, 3, 1]))
        >>> grid = grid_of(place, Preprocessing(8, volume=VolumeFit((8, 8, 8), (3, 2, 2))), lambda: None)
        >>> grid.shape, grid.to_native[0].tolist()
        ((4, 4, 4), [2.0, 0.0, 0.0, 0.5])
    """
    assert contract.volume is not None
    start = np.eye(4) if place.affine is None else place.affine
    if contract.volume.foreground:
        volume = crop_foreground(replace(read(), affine=start), modality=modality)
    else:
        blank = np.zeros((1, *place.shape), np.float32)
        volume = Volume(blank, place.spacing, start, Range(0.0, 1.0, "unit"), 8, False)
    kept = fit_grid(replace(volume, padding=None), contract)
    assert kept.affine is not None
    depth, height, width = kept.array.shape[1:]
    return Grid((depth, height, width), place.shape, np.linalg.inv(start).astype(np.float64) @ kept.affine)


def to_stored(labels: NDArray[Any], grid: Grid) -> NDArray[Any]:
    """Labels of the files' voxels on the cached ones: that of the nearest voxel, 0 beyond the volume.

    Args:
        labels: `[D, H, W]`, at the files' own voxels.
        grid: of the volume.

    Returns:
        `[d, h, w]`, of the same dtype.
    """
    assert labels.shape == grid.native, f"labels {labels.shape} of voxels {grid.native}"
    if grid.is_native:
        return labels
    found = np.zeros(grid.shape, labels.dtype)
    for some, places in _places(grid.to_native, grid.shape):
        nearest = np.floor(places + 0.5 - TIE).astype(np.int64)  # (i, j, k)
        inside = ((nearest >= 0) & (nearest < np.array(labels.shape[::-1]))).all(axis=-1)
        i, j, k = nearest[inside].T
        found[some][inside] = labels[k, j, i]
    return found


def from_stored(scores: Tensor, grid: Grid) -> NDArray[np.int64]:
    """The class of every voxel of the files, from class scores of the cached ones.

    The scores are interpolated (trilinear), the class is taken after that; of equal scores the lower class wins. What
    the cache does not hold was not seen and is 0.

    Args:
        scores: float32 `[K, d, h, w]` on the CPU; the higher the likelier.
        grid: of the volume.

    Returns:
        int64 `[D, H, W]` in 0..K-1.
    """
    assert scores.shape[1:] == grid.shape, f"scores {list(scores.shape)} of voxels {grid.shape}"
    if grid.is_native:
        return scores.argmax(0).numpy()
    found, sides = np.zeros(grid.native, np.int64), np.array(grid.shape[::-1])
    for some, places in _places(grid.to_stored, grid.native):
        unit = torch.from_numpy((2 * places + 1) / sides - 1).float()
        sampled = F.grid_sample(scores[None], unit[None], mode="bilinear", padding_mode="border", align_corners=False)
        found[some] = np.where(_seen(places, sides), sampled[0].argmax(0).numpy(), 0)
    return found


def seen_part(grid: Grid) -> NDArray[np.bool_]:
    """Which voxels of the files the cache holds, `[D, H, W]`; the others are never found."""
    found, sides = np.ones(grid.native, np.bool_), np.array(grid.shape[::-1])
    if not grid.is_native:
        for some, places in _places(grid.to_stored, grid.native):
            found[some] = _seen(places, sides)
    return found


def _seen(places: NDArray[np.float64], sides: NDArray[np.int64]) -> NDArray[np.bool_]:
    inside = (places >= -BEYOND - TIE) & (places <= sides - 1 + BEYOND + TIE)
    return np.asarray(inside.all(axis=-1), np.bool_)


def _places(affine: Affine, shape: Box) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Some slices of a grid at a time, and where an affine puts their voxels: (i, j, k), `[d, h, w, 3]`."""
    depth, height, width = shape
    step = max(1, SLAB // (height * width))
    for first in range(0, depth, step):
        some = slice(first, min(first + step, depth))
        k, j, i = np.ogrid[some, :height, :width]
        yield some, np.stack([row[0] * i + row[1] * j + row[2] * k + row[3] for row in affine[:3]], axis=-1)
