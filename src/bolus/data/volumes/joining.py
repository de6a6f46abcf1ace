"""Slices of one volume as one array, with one range for all of them: the modality's rule over the whole series."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from bolus.data.pixels.image import Image, Range, own_range
from bolus.data.pixels.range_rules import PERCENTILES
from bolus.errors import ImageError

_OF_SQUARES = "pixels are not square"  # the start of a note on what single images are resampled to


def join_slices(images: Iterable[Image], places: npt.NDArray[np.int64]) -> Image:
    """Single images as one stack; each is asked for once, in order, and let go.

    The range is that of the rule of the slices: percentiles (`series`) and covering ranges (`cohort`) are found over
    all of them, bounds of what may be stored cover all, and of windows that differ the first one holds, with a note.

    Args:
        images: each `[C, H, W]`, all of one size; at least one.
        places: int64 `[n]`, where each goes in the stack, 0 to n - 1.

    Returns:
        An image `[C, D, H, W]`, whose spacing along the stack is NaN.

    Raises:
        ImageError: slices of several sizes, modalities, rules or polarities, or that cannot be told to have one range.

    Example:
        >>> planes = [np.full((1, 2, 2), value, np.float32) for value in (3, 8)]
        >>> slices = [Image(plane, None, Range(0, 9, "cohort"), 16, False) for plane in planes]
        >>> joined = join_slices(slices, np.array([1, 0]))
        >>> joined.array[0, :, 0, 0].tolist(), joined.range.high
        ([8.0, 3.0], 15.0)
    """
    array: npt.NDArray[np.float32] = np.empty(0, np.float32)
    padding: npt.NDArray[np.bool_] | None = None
    seen = list[Image]()
    for image, place in zip(images, places.tolist(), strict=True):
        if not seen:
            array = np.empty((image.array.shape[0], len(places), *image.array.shape[1:]), np.float32)
        if image.array.shape != (array.shape[0], *array.shape[2:]):
            first = (array.shape[0], *array.shape[2:])
            raise ImageError(
                f"expected slices of one size, found channels, rows and columns {first} and {image.array.shape}"
            )
        array[:, place] = image.array
        if image.padding is not None:
            padding = np.zeros(array.shape[1:], np.bool_) if padding is None else padding
            padding[place] = image.padding
        seen.append(replace(image, array=image.array[:, :0], padding=None))
    notes = [note for each in seen for note in each.notes if not note.startswith(_OF_SQUARES)]
    for name, values in (
        ("modality", {each.modality for each in seen}),
        ("polarity", {each.inverted for each in seen}),
        ("rule of black and white", {each.range.rule for each in seen}),
    ):
        if len(values) > 1:
            raise ImageError(f"expected slices of one {name}, found {' and '.join(sorted(map(str, values)))}")
    series = {each.series for each in seen}
    if len(series) > 1:
        notes.append(f"slices of {len(series)} DICOM series, taken as one volume")
    joined = replace(
        seen[0],
        array=array,
        padding=padding,
        bits=max(each.bits for each in seen),
        aspect=1.0,
        spacing=(float("nan"), *(seen[0].spacing or (float("nan"),) * 2)),
    )
    found, more = _common_range([each.range for each in seen], joined)
    return replace(joined, range=found, notes=tuple(dict.fromkeys((*notes, *more))))


def range_again(image: Image) -> Image:
    """An image of which slices were left out or joined, with the range that its own values have by its rule."""
    counted = image.counted
    if image.range.rule == "cohort":
        return replace(image, range=own_range(counted))
    if image.range.rule == "series" and counted.size:
        low, high = (float(end) for end in np.percentile(counted, PERCENTILES))
        return replace(image, range=Range(low, high, "series"))
    return image


def _common_range(ranges: list[Range], joined: Image) -> tuple[Range, list[str]]:
    """The range of all slices, and notes."""
    rule = ranges[0].rule
    if rule in ("cohort", "series"):
        return range_again(joined).range, []
    bounds = {(each.low, each.high) for each in ranges}
    if len(bounds) == 1:
        return ranges[0], []
    if rule == "window":
        return ranges[0], ["windows differ between slices, the first slice's used"]
    if rule == "bits_stored":
        return Range(min(each.low for each in ranges), max(each.high for each in ranges), rule), []
    raise ImageError(f"expected slices of one range, found {len(bounds)} (rule {rule})")
