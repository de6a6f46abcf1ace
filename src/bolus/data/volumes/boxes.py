"""Boxes of voxels: cut from a volume, filled with black outside it; and the box that the body, or the head, is in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from bolus.data.pixels.range_rules import HAS_AIR, rule_of
from bolus.data.volumes.volume import Volume
from bolus.errors import UsageError

BODY = -500.0  # HU: half way between air and water
MOST = 128  # voxels along an axis in which the body is looked for; of more, some at even steps
BINS = 256  # of the histogram that a threshold is found in

Box = tuple[int, int, int]


def take_box(volume: Volume, start: Box, size: Box) -> Volume:
    """A box of voxels, as they are; what lies outside the volume is black, and padding.

    Args:
        volume: to cut from.
        start: (D, H, W) of its first voxel, which may lie before that of the volume.
        size: (D, H, W), in voxels.

    Raises:
        UsageError: a size that is not positive.

    Example:
        >>> from bolus.data.pixels.image import Range
        >>> voxels = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
        >>> volume = Volume(voxels, (5.0, 1.0, 1.0), np.diag([1.0, 1, 5, 1]), Range(0, 7, "cohort"), 16, False)
        >>> box = take_box(volume, (1, 0, -1), (1, 2, 2))
        >>> box.array.tolist(), box.affine[:3, 3].tolist(), box.padding.tolist()
        ([[[[0.0, 4.0], [0.0, 6.0]]]], [-1.0, 0.0, 5.0], [[[True, False], [True, False]]])
    """
    if min(size) < 1:
        raise UsageError(f"expected a box of a voxel or more along each axis, found {size}")
    shape = volume.array.shape[1:]
    inside = tuple(
        slice(max(at, 0), max(min(at + n, whole), 0)) for at, n, whole in zip(start, size, shape, strict=True)
    )
    within = tuple(
        slice(max(-at, 0), max(-at, 0) + max(part.stop - part.start, 0)) for at, part in zip(start, inside, strict=True)
    )
    padding = volume.padding
    if all(part.stop - part.start == n for part, n in zip(inside, size, strict=True)):
        array = np.ascontiguousarray(volume.array[:, *inside])
        padding = None if padding is None else np.ascontiguousarray(padding[inside])
    else:
        array = np.full((len(volume.array), *size), volume.black, np.float32)
        outside = np.ones(size, np.bool_)
        array[:, *within] = volume.array[:, *inside]
        outside[within] = False if padding is None else padding[inside]
        padding = outside
    affine = volume.affine
    if affine is not None:
        moved = np.eye(4)
        moved[:3, 3] = start[::-1]
        affine = affine @ moved
    return replace(
        volume, array=array, affine=affine, padding=padding if padding is not None and padding.any() else None
    )


def center_box(volume: Volume, size: Box) -> Volume:
    """The box of a size in the middle of a volume, cut where the volume is larger and filled where it is smaller.

    An odd voxel is left over, or filled, at the end.

    >>> from bolus.data.pixels.image import Range
    >>> volume = Volume(np.ones((1, 2, 5, 4), np.float32), (5.0, 1.0, 1.0), None, Range(0, 7, "cohort"), 16, False)
    >>> center_box(volume, (4, 4, 4)).array[0, :, 0, 0].tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    depth, height, width = (
        (whole - wanted) // 2 if whole >= wanted else -((wanted - whole) // 2)
        for whole, wanted in zip(volume.array.shape[1:], size, strict=True)
    )
    return take_box(volume, (depth, height, width), size)


def crop_foreground(volume: Volume, *, modality: str = "") -> Volume:
    """Cut a volume to the box of its body (or its head), found by a threshold; a note says by which.

    In CT in HU, voxels above -500, half way between air and water, are the body; else those above the threshold that
    parts the values of the volume best in two (Otsu), or below it where bright is low. The box holds the largest
    connected part, so that a table or a tube that does not touch it is left out. In a volume of more than 128 voxels
    along an axis it is looked for in some at even steps, and the box is a step larger on either side.

    Args:
        volume: whole.
        modality: as the table says it, for files that do not; CT of values below -100 is in HU.

    Returns:
        A part of it, with its affine; all of it, with a note, where no voxel stands out.

    Example:
        >>> from bolus.data.pixels.image import Range
        >>> voxels = np.full((1, 4, 6, 6), -1000, np.float32)
        >>> voxels[0, 1:3, 2:5, 1:4] = 40
        >>> voxels[0, 0, 0, 0] = 900
        >>> volume = Volume(voxels, (5.0, 1.0, 1.0), None, Range(-1000, 1000, "clinical"), 12, False)
        >>> found = crop_foreground(volume)
        >>> found.array.shape, found.notes
        ((1, 2, 3, 3), ('cut to the body, the largest part above -500 HU',))
    """
    from scipy import ndimage

    values = volume.array.mean(axis=0) if len(volume.array) > 1 else volume.array[0]
    steps = [-(-length // MOST) for length in values.shape]
    every = tuple(slice(None, None, step) for step in steps)
    some = values[every]
    counted = np.ones(some.shape, np.bool_) if volume.padding is None else ~volume.padding[every]
    in_hu = rule_of(modality, volume.modality) == "clinical" and float(some.min()) < HAS_AIR
    if volume.range.rule == "clinical" or in_hu:
        threshold, how = BODY, f"the largest part above {BODY:g} HU"
    else:
        threshold = find_threshold(
            some[counted],
        )
        how = f"the largest part {'below' if volume.inverted else 'above'} {threshold:.4g} (Otsu)"
    body = ((some < threshold) if volume.inverted else (some > threshold)) & counted
    parts, number = ndimage.label(body)
    if not number:
        return volume.note("no body stands out by a threshold: not cut")
    largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
    start, size = list[int](), list[int]()
    for along, step, whole in zip(ndimage.find_objects(parts)[largest - 1], steps, values.shape, strict=True):
        first = max(along.start * step - (step - 1), 0)
        last = min((along.stop - 1) * step + step - 1, whole - 1)
        start.append(first)
        size.append(last + 1 - first)
    return take_box(volume, (start[0], start[1], start[2]), (size[0], size[1], size[2])).note(f"cut to the body, {how}")


def find_threshold(values: npt.NDArray[np.float32]) -> float:
    """Otsu's threshold: it parts values into two groups whose means lie furthest apart, weighted by their sizes.

    Of 256 equal steps between the 0.1 and 99.9 percentiles, so that some bright voxels do not decide.

    Args:
        values: of any shape.

    Returns:
        The value above which the second group begins; the largest where all are one.

    Example:
        >>> round(find_threshold(np.repeat(np.float32([0, 100]), [900, 100])))
        0
    """
    if not values.size:
        return 0.0
    low, high = (float(end) for end in np.percentile(values, (0.1, 99.9)))
    if not high > low:
        low, high = float(values.min()), float(values.max())
    if not high > low:
        return high
    counts, edges = np.histogram(np.clip(values, low, high), BINS, (low, high))
    middles, below = (edges[:-1] + edges[1:]) / 2, counts.cumsum()
    above = below[-1] - below
    sums = (counts * middles).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(edges[1:][np.nanargmax(between[:-1])])
