"""How well a predicted segmentation of a volume lies on the true one: Dice and the distance between surfaces.

Classes are numbered from 0, which is the background and never scored. Where the truth of a volume lacks a class, the
class has no value (NaN) there, whatever was predicted: every prediction is scored on the same volumes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bolus.errors import UsageError, require

FloatArray = npt.NDArray[np.float64]
Labels = npt.NDArray[Any]


def volume_dice(predicted: Labels, truth: Labels, num_classes: int) -> FloatArray:
    """Dice of each foreground class over a whole volume, `2 |P and T| / (|P| + |T|)` in voxels.

    Where the truth lacks a class, Dice would be 0 or undefined by a single voxel of the prediction, so it is undefined
    there; whoever reports it should count the volumes in which such a class was predicted.

    Args:
        predicted: integers 0..K-1, `[T, H, W]` or `[H, W]`.
        truth: likewise, of the same shape.
        num_classes: K, with the background.

    Returns:
        float64 `[K - 1]` of classes 1..K-1: NaN where the truth lacks the class, 0 where only the truth has it.

    Raises:
        UsageError: two shapes, or labels outside 0..K-1.

    Example:
        >>> volume_dice(np.array([[[2, 1, 1]]]), np.array([[[0, 0, 1]]]), 3)
        array([0.66666667,        nan])
    """
    both, sizes = _count(predicted, truth, num_classes)
    there = np.bincount(truth.astype(np.int64).ravel(), minlength=num_classes)[1:] > 0
    return np.where(there, _ratio(both, sizes), np.nan)


def pooled_dice(predicted: Sequence[Labels], truth: Sequence[Labels], num_classes: int) -> float:
    """Dice over all voxels of all volumes together, class by class, then the mean over the foreground classes.

    The evaluation of PCL's published code; large organs and long volumes weigh more than in `volume_dice`, and voxels
    of a class that the truth of a volume lacks count against it. The mean passes over classes that no volume has, true
    or predicted.

    Args:
        predicted: volumes of integers 0..K-1, `[T, H, W]` or `[H, W]` each, of any sizes.
        truth: as many, of the same shapes.
        num_classes: K, with the background.

    Returns:
        0..1; NaN where there is no foreground at all.

    Raises:
        UsageError: unequal numbers of volumes, two shapes, or labels outside 0..K-1.

    Example:
        >>> pooled_dice([np.array([[1, 1]]), np.array([[0]])], [np.array([[1, 0]]), np.array([[1]])], 2)
        0.5
    """
    if len(predicted) != len(truth):
        raise UsageError(f"expected as many predicted volumes as true ones, found {len(predicted)} and {len(truth)}")
    both, sizes = np.zeros(num_classes - 1), np.zeros(num_classes - 1)
    for one, other in zip(predicted, truth, strict=True):
        counted = _count(one, other, num_classes)
        both, sizes = both + counted[0], sizes + counted[1]
    dice = _ratio(both, sizes)
    present = dice[~np.isnan(dice)]
    return float(present.mean()) if len(present) else math.nan


def volume_hd95(
    predicted: Labels, truth: Labels, num_classes: int, spacing: tuple[float, float, float] | None = None
) -> FloatArray:
    """Symmetric 95th percentile Hausdorff distance of each foreground class: the larger of the two directed ones.

    A directed distance is the 95th percentile, over the surface voxels of one, of the distance to the closest surface
    voxel of the other (MONAI's `compute_hausdorff_distance`). Surface voxels are those with a neighbour across a face
    that is not of the class or beyond the volume. A single slice is measured in its plane, where its outline is the
    surface.

    Args:
        predicted: integers 0..K-1, `[T, H, W]` or `[H, W]`.
        truth: likewise, of the same shape.
        num_classes: K, with the background.
        spacing: mm, (slice, row, column); None measures in voxels. The first is not used for a single slice.

    Returns:
        float64 `[K - 1]` of classes 1..K-1, in mm or voxels: NaN where either has no voxel of the class.

    Raises:
        UsageError: two shapes, labels outside 0..K-1, or a spacing that is not positive.

    Example:
        >>> truth, predicted = np.zeros((1, 8, 8), int), np.zeros((1, 8, 8), int)
        >>> truth[0, 2:4, 2:4], predicted[0, 2:4, 5:7] = 1, 1
        >>> volume_hd95(predicted, truth, 3, spacing=(8.0, 1.0, 0.5))
        array([1.5, nan])
    """
    _check(predicted, truth, num_classes)
    shape, used = _measured(predicted.shape, spacing)
    predicted, truth = predicted.reshape(shape), truth.reshape(shape)

    import torch

    hausdorff = require("monai.metrics.hausdorff_distance", "surface distances")
    distances = np.full(num_classes - 1, np.nan)
    for label in range(1, num_classes):
        one, other = predicted == label, truth == label
        if one.any() and other.any():
            region, target = torch.from_numpy(one)[None, None], torch.from_numpy(other)[None, None]
            with warnings.catch_warnings():  # MONAI warns of an argument that MONAI itself passes
                warnings.filterwarnings("ignore", "(?s).*always_return_as_numpy", FutureWarning)
                found = hausdorff.compute_hausdorff_distance(region, target, True, percentile=95, spacing=used)
            distances[label - 1] = float(found)
    return distances


def volume_surface_dice(
    predicted: Labels,
    truth: Labels,
    num_classes: int,
    spacing: tuple[float, float, float] | None = None,
    *,
    tolerance: float,
) -> FloatArray:
    """Which share of the surfaces of prediction and truth lies no further from the other than a tolerance.

    The normalised surface Dice of arXiv:1809.04430, with the surface voxels of `volume_hd95` in place of its surface
    elements (MONAI's `compute_surface_dice` without subvoxels).

    Args:
        predicted: integers 0..K-1, `[T, H, W]` or `[H, W]`.
        truth: likewise, of the same shape.
        num_classes: K, with the background.
        spacing: mm, (slice, row, column); None measures in voxels. The first is not used for a single slice.
        tolerance: mm, or voxels.

    Returns:
        float64 `[K - 1]` of classes 1..K-1: NaN where the truth lacks the class, 0 where only the truth has it.

    Raises:
        UsageError: two shapes, labels outside 0..K-1, or a spacing or tolerance that is not positive.

    Example:
        >>> truth, predicted = np.zeros((1, 8, 8), int), np.zeros((1, 8, 8), int)
        >>> truth[0, 2:4, 2:4], predicted[0, 2:4, 3:5] = 1, 1
        >>> [volume_surface_dice(predicted, truth, 2, tolerance=each).tolist() for each in (0.5, 1)]
        [[0.5], [1.0]]
    """
    _check(predicted, truth, num_classes)
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise UsageError(f"tolerance: expected a positive number, found {tolerance}")
    shape, used = _measured(predicted.shape, spacing)
    predicted, truth = predicted.reshape(shape), truth.reshape(shape)

    import torch

    surface = require("monai.metrics.surface_dice", "surface distances")
    found = np.full(num_classes - 1, np.nan)
    for label in range(1, num_classes):
        one, other = predicted == label, truth == label
        if other.any() and one.any():
            region, target = torch.from_numpy(one)[None, None], torch.from_numpy(other)[None, None]
            with warnings.catch_warnings():  # as above
                warnings.filterwarnings("ignore", "(?s).*always_return_as_numpy", FutureWarning)
                found[label - 1] = float(surface.compute_surface_dice(region, target, [tolerance], True, spacing=used))
        elif other.any():
            found[label - 1] = 0.0
    return found


def volume_diagonal(shape: Sequence[int], spacing: tuple[float, float, float] | None = None) -> float:
    """The length of a volume from corner to corner, more than any distance between two of its voxels.

    Args:
        shape: `[T, H, W]` or `[H, W]` of a volume; a single slice is measured in its plane.
        spacing: mm, (slice, row, column); None measures in voxels. The first is not used for a single slice.

    Returns:
        Its number of mm or voxels.

    Raises:
        UsageError: another number of axes, or a spacing that is not positive.

    Example:
        >>> volume_diagonal((3, 4, 12)), volume_diagonal((3, 4, 12), (4.0, 1.0, 0.25)), volume_diagonal((1, 3, 4))
        (13.0, 13.0, 5.0)
    """
    lengths, steps = _measured(shape, spacing)
    return math.hypot(*lengths) if steps is None else math.hypot(*(n * s for n, s in zip(lengths, steps, strict=True)))


def count_misses(distances: FloatArray, truth: Labels, spacing: tuple[float, float, float] | None = None) -> FloatArray:
    """Distances in which a class that the truth has and the prediction lacks counts as the diagonal of the volume.

    Which classes have a value is then decided by the truth alone, so that every prediction is judged on the same
    volumes. A miss weighs more in a volume with more room around what is to be found.

    Args:
        distances: float64 `[K - 1]` of classes 1..K-1, what `volume_hd95` found; NaN where it found none.
        truth: integers 0..K-1, `[T, H, W]` or `[H, W]`.
        spacing: mm, (slice, row, column), as given to `volume_hd95`; None where that measured in voxels.

    Returns:
        float64 `[K - 1]`, in mm or voxels: NaN where the truth lacks the class.

    Raises:
        UsageError: another number of axes, labels outside 0..K-1, or a spacing that is not positive.

    Example:
        >>> truth = np.zeros((1, 6, 8), int)
        >>> truth[0, 2, 2], truth[0, 3, 3] = 1, 2  # of three classes
        >>> count_misses(np.array([1.5, np.nan, np.nan]), truth)
        array([ 1.5, 10. , nan])
    """
    _check(truth, truth, len(distances) + 1)
    missed = np.isnan(distances) & np.isin(np.arange(1, len(distances) + 1), truth)
    return np.where(missed, volume_diagonal(truth.shape, spacing), distances)


def _measured(
    shape: Sequence[int], spacing: tuple[float, float, float] | None
) -> tuple[tuple[int, ...], list[float] | None]:
    """The axes that distances are measured along, two of a single slice, and the spacing of these."""
    if len(shape) not in (2, 3):
        raise UsageError(f"expected a volume [T, H, W] or a slice [H, W], found {list(shape)}")
    axes = tuple(shape[-2:]) if len(shape) == 2 or shape[0] == 1 else tuple(shape)
    if spacing is None:
        return axes, None
    used = [float(step) for step in spacing[3 - len(axes) :]]
    if len(used) != len(axes) or not all(math.isfinite(step) and step > 0 for step in used):
        raise UsageError(f"spacing: expected positive mm (slice, row, column), found {spacing}")
    return axes, used


def _check(predicted: Labels, truth: Labels, num_classes: int) -> None:
    if predicted.shape != truth.shape or predicted.ndim not in (2, 3):
        raise UsageError(
            f"expected two volumes [T, H, W] of one shape, found {list(predicted.shape)} and {list(truth.shape)}"
        )
    for name, labels in (("predicted", predicted), ("truth", truth)):
        if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
            raise UsageError(f"{name}: expected labels 0 to {num_classes - 1}, found {labels.min()} to {labels.max()}")


def _count(predicted: Labels, truth: Labels, num_classes: int) -> tuple[FloatArray, FloatArray]:
    """Voxels that both give to a class, and the sum of those that either gives; float64 `[K - 1]` each."""
    _check(predicted, truth, num_classes)
    pairs = predicted.astype(np.int64).ravel() * num_classes + truth.astype(np.int64).ravel()
    table = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.float64)
    return np.diag(table)[1:], (table.sum(0) + table.sum(1))[1:]


def _ratio(both: FloatArray, sizes: FloatArray) -> FloatArray:
    dice = np.full(len(both), np.nan)
    np.divide(2 * both, sizes, out=dice, where=sizes > 0)
    return dice
