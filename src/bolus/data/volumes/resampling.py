"""Volumes on a grid of a stated spacing: antialiased where they are reduced, and with an affine that follows."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from bolus.data.volumes.volume import SHEAR, Affine, Spacing, Volume, slant_of, spacing_of
from bolus.errors import ImageError, UsageError

Floats = npt.NDArray[np.float64]

ALIKE = 1e-5  # of a spacing: one that differs by less is the same


def resample_volume(volume: Volume, spacing: Spacing) -> Volume:
    """A volume on voxels of a stated size, with the middle where it was.

    Trilinear where it is enlarged. Where it is reduced, it is averaged along each axis by a triangle as wide as the new
    voxels, so that nothing finer than these is left to make stripes, and what is a line stays one, in its place. A grid
    whose axes are not at right angles, as of a tilted gantry, becomes upright first. Padding becomes black, and values
    beyond a window are clipped, before anything is averaged: as `bolus.data.images.preprocessing.shrink` does.

    Args:
        volume: its spacing must be known.
        spacing: mm between voxels along (D, H, W).

    Returns:
        A volume of exactly this spacing; it has as many voxels as cover the volume, rounded, at least one.

    Raises:
        ImageError: a spacing that is not known.
        UsageError: a spacing that is not a positive number.

    Example:
        >>> from bolus.data.pixels.image import Range
        >>> voxels = np.arange(4, dtype=np.float32).reshape(1, 1, 1, 4)
        >>> volume = Volume(voxels, (5.0, 1.0, 1.0), np.diag([1.0, 1, 5, 1]), Range(0, 7, "cohort"), 16, False)
        >>> small = resample_volume(volume, (5.0, 1.0, 2.0))
        >>> small.array.shape, small.affine[0].tolist()
        ((1, 1, 1, 2), [2.0, 0.0, 0.0, 0.5])
    """
    if len(spacing) != 3 or not all(math.isfinite(each) and each > 0 for each in spacing):
        raise UsageError(f"spacing: expected three positive numbers (D, H, W) in mm, found {spacing}")
    known = volume.spacing
    if not all(math.isfinite(each) and each > 0 for each in known):
        raise ImageError(
            "expected voxels of a known size to resample, found none stated: images.spacing=null takes them as they are"
        )
    shown = volume.range
    if shown.rule in ("window", "voi_lut") and shown.high > shown.low:
        volume = replace(volume, array=np.clip(volume.array, shown.low, shown.high))
    if volume.affine is not None and slant_of(volume.affine) >= SHEAR:
        volume = make_upright(volume)
    ratios = [
        1.0 if abs(new / old - 1) < ALIKE else new / old for old, new in zip(volume.spacing, spacing, strict=True)
    ]
    shape = volume.array.shape[1:]
    size = [max(1, round(n / ratio)) for n, ratio in zip(shape, ratios, strict=True)]
    array, padding = volume.array, volume.padding
    covered = None
    if padding is not None:
        array = np.where(padding, np.float32(volume.black), array)
        covered = padding.astype(np.float32)[None]
    bounds = float(array.min()), float(array.max())
    for axis in np.argsort([after / before for after, before in zip(size, shape, strict=True)]).tolist():
        if ratios[axis] != 1:
            weights = axis_weights(shape[axis], size[axis], ratios[axis])
            array = _along(array, weights, axis)
            covered = None if covered is None else _along(covered, weights, axis)
    if array is not volume.array:  # rounding leads no value beyond those there were
        array = np.clip(array, *bounds)
    affine = None if volume.affine is None else _scaled(volume.affine, shape, size, ratios)
    padding = None if covered is None else covered[0] > 0.5
    return replace(
        volume, array=np.ascontiguousarray(array), spacing=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        affine=affine, padding=padding if padding is not None and padding.any() else None,
    )  # fmt: skip


def axis_weights(length: int, size: int, ratio: float) -> npt.NDArray[np.float32]:
    """How much each voxel of an axis counts for each of the new ones: float32 `[size, length]`, rows of sum 1.

    Old voxels are joined by straight lines. Those lines are averaged by a triangle, whose width makes the two together
    spread as one triangle of `ratio` voxels to either side would: none where `ratio` is 1 or less. At the ends, where
    part of it lies outside, the rest counts for all.

    Args:
        length: voxels before.
        size: voxels after, in the middle of these.
        ratio: of a new voxel to an old one.

    Example:
        >>> axis_weights(4, 3, 0.5).tolist()
        [[0.0, 1.0, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 1.0, 0.0]]
        >>> [round(float(each), 3) for each in axis_weights(6, 2, 2.0)[0]]
        [0.103, 0.397, 0.397, 0.103, 0.001, 0.0]
    """
    places = (length - 1) / 2 + (np.arange(size, dtype=np.float64) - (size - 1) / 2) * ratio
    away: Floats = places[:, None] - np.arange(length)
    if ratio <= 1:
        weights = np.maximum(0.0, 1 - np.abs(away))
    else:
        half = math.sqrt(ratio**2 - 1)
        weights = np.maximum(_averaged(away, half), 0.0) * (np.abs(away) < 1 + half)
    shares: npt.NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares


def _averaged(places: Floats, half: float) -> Floats:
    """A triangle of half width 1 about 0, averaged by one of half width `half`: second differences of its integral."""
    found = np.zeros(places.shape)
    for step, factor in ((half, 1.0), (0.0, -2.0), (-half, 1.0)):
        for corner, slope in ((1.0, 1.0), (0.0, -2.0), (-1.0, 1.0)):
            found += factor * slope / (6 * half**2) * np.maximum(places + step + corner, 0.0) ** 3
    return found


def make_upright(volume: Volume) -> Volume:
    """A volume whose axes are not at right angles on a grid whose axes are, of the same in-plane spacing.

    The axis of the largest spacing is the one that was slanted; along the others voxels stay as large as they are.
    The new grid covers all of the old one; outside of that it is black, and padding.

    Args:
        volume: with an affine.

    Example:
        >>> from bolus.data.pixels.image import Range
        >>> slanted = np.diag([1.0, 1, 4, 1])
        >>> slanted[1, 2] = 1
        >>> ones = np.ones((1, 3, 4, 4), np.float32)
        >>> volume = Volume(ones, (17**0.5, 1.0, 1.0), slanted, Range(0, 1, "unit"), 8, False)
        >>> upright = make_upright(volume)
        >>> upright.array.shape, [round(each, 6) for each in upright.spacing]
        ((1, 3, 6, 4), [4.0, 1.0, 1.0])
    """
    from scipy import ndimage

    affine = volume.affine
    assert affine is not None
    shape = np.array(volume.array.shape[:0:-1])  # (i, j, k)
    straight = _straight(affine)
    corners = np.array(np.meshgrid(*((0, n - 1) for n in shape), indexing="ij")).reshape(3, -1)
    inside = np.linalg.solve(straight[:3, :3], affine[:3, :3] @ corners)
    first = np.floor(inside.min(axis=1) + 1e-6)
    size = np.ceil(inside.max(axis=1) - 1e-6) - first + 1
    straight[:3, 3] = affine[:3, 3] + straight[:3, :3] @ first
    back = np.linalg.inv(affine) @ straight  # from new voxels to old ones
    matrix, offset = back[2::-1, 2::-1], back[2::-1, 3]
    wanted = tuple(int(each) for each in size[::-1])
    black, padding = volume.black, volume.padding
    filled = volume.array if padding is None else np.where(padding, np.float32(black), volume.array)
    array = np.stack([ndimage.affine_transform(each, matrix, offset, wanted, order=1, cval=black) for each in filled])
    unseen = np.zeros(volume.array.shape[1:], np.float32) if padding is None else padding.astype(np.float32)
    outside = ndimage.affine_transform(unseen, matrix, offset, wanted, order=1, cval=1.0) > 0.5
    return replace(
        volume, array=array, affine=straight, spacing=spacing_of(straight), padding=outside if outside.any() else None
    )


def _straight(affine: Affine) -> Affine:
    """The affine with axes at right angles: two stay, and that of the largest spacing becomes their normal."""
    axes = affine[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    slanted = int(np.argmax(lengths))
    one, other = (axis for axis in range(3) if axis != slanted)
    found = np.eye(4)
    first = axes[:, one] / lengths[one]
    second = axes[:, other] - (axes[:, other] @ first) * first
    second /= np.linalg.norm(second)
    normal = np.cross(first, second)
    away = float(axes[:, slanted] @ normal)
    found[:3, one], found[:3, other] = first * lengths[one], second * float(axes[:, other] @ second)
    found[:3, slanted], found[:3, 3] = normal * away, affine[:3, 3]
    return found


def _along(array: npt.NDArray[np.float32], weights: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.float32]:
    """`[C, D, H, W]` with one of D, H, W (0, 1, 2) weighed."""
    if axis == 2:
        return array @ weights.T
    if axis == 1:
        return weights @ array
    channels, depth, height, width = array.shape
    return (weights @ array.reshape(channels, depth, -1)).reshape(channels, len(weights), height, width)


def _scaled(affine: Affine, shape: tuple[int, ...], size: list[int], ratios: list[float]) -> Affine:
    """The affine of new voxels, in the middle of the old ones."""
    to_old = np.eye(4)
    for axis, (before, after, ratio) in enumerate(zip(shape[::-1], size[::-1], ratios[::-1], strict=True)):
        to_old[axis, axis], to_old[axis, 3] = ratio, (before - 1) / 2 - (after - 1) / 2 * ratio
    found: Affine = affine @ to_old
    return found
