"""The small square that the cache keeps of an image.

A stored image keeps the unit of its values: it carries a gain and a bias, so that a range that is only known after the
whole series or cohort was read, or that somebody states later, costs no second decoding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from bolus.data.cohort.series import IF_FILES
from bolus.data.images.preprocessing import Preprocessing
from bolus.data.pixels.greys import GREY, is_final, measure, sketch_of
from bolus.data.pixels.image import Image
from bolus.data.pixels.quantiles import LEVELS
from bolus.data.pixels.square import canvas
from bolus.errors import ImageError

ONE_FRAME = "give each frame a row, and its number a column with the role order"
SINGLE_IMAGES = "this encoder or recipe sees single images: images.unit=clip takes clip files"


@dataclass(frozen=True)
class Shrunk:
    """One image as it is stored: its values are `array * gain + bias`, in the unit of the file.

    Args:
        array: `[C, S, S]` uint8 or uint16.
        gain: of a stored step.
        bias: the value of a stored 0.
        grey: what the image says of its numbers, in the order of `bolus.data.pixels.greys.GREY`.
        quantiles: of its values, float32 `[len(LEVELS)]`; zeros where all is stored in eight bits, whose range is
            their own.
    """

    array: npt.NDArray[Any]
    gain: float
    bias: float
    grey: tuple[Any, ...]
    quantiles: npt.NDArray[np.float32]


def shrink(image: Image, preprocessing: Preprocessing) -> Shrunk:
    """Square, antialiased, quantised to eight bits, or to sixteen where the source has more.

    Values beyond a window or VOI LUT are clipped before they are resampled, as on a display.

    Raises:
        ImageError: a clip, or values that are not finite or more than the bits of the file hold.

    Example:
        >>> from bolus.data.pixels.image import Range
        >>> deep = Image(np.full((1, 4, 4), 4095, np.float32), None, Range(0, 65535, "container"), 16, False)
        >>> small = shrink(deep, Preprocessing(4))
        >>> small.array.shape, small.array.dtype, float(small.array.max() * small.gain + small.bias)
        ((1, 5, 5), dtype('uint16'), 4095.0)
    """
    if image.array.ndim != 3:
        advice = SINGLE_IMAGES if preprocessing.frames is None else IF_FILES
        raise ImageError(f"expected one frame, found {image.array.shape[1]}: {ONE_FRAME}; {advice}")
    channels = preprocessing.channels

    def square(array: Tensor, black: float) -> Tensor:
        return _square(to_channels(array, channels), preprocessing, pad=black, aspect=image.aspect)

    return quantise(image, square)


def quantise(image: Image, fit: Callable[[Tensor, float], Tensor]) -> Shrunk:
    """An image in eight bits, or in sixteen where the source has more, after it was fitted to what the cache keeps.

    Args:
        image: with an array of any axes behind its channels.
        fit: the values, float32, and the one that is black -> the values to store, of any shape; it resamples.

    Raises:
        ImageError: values that are not finite, or more than the bits of the file hold.
    """
    grey, values = measure(image), image.array
    facts = np.array([grey], GREY)
    low, high, shown = float(facts["low"][0]), float(facts["high"][0]), image.range
    final, stored = bool(is_final(facts)[0]), shown.rule in ("container", "bits_stored")
    if final and shown.high <= shown.low:  # a window of width 1 is a threshold
        values, facts["shown_low"], facts["shown_high"] = (values > shown.low).astype(np.float32), 0.0, 1.0
        span = (0.0, 1.0)
    elif final or stored:
        span = (shown.low, shown.high)
        if final and (image.padding is not None or low < span[0] or high > span[1]):
            values = np.clip(values, *span)
    else:
        span = (low, high if high > low else low + 1.0)
    dark, bright = span if final else (low, high)
    black = bright if image.inverted else dark
    if image.padding is not None:
        values = np.where(image.padding, np.float32(black), values)
    array = fit(torch.from_numpy(np.require(values, np.float32, "W")), black)
    levels = 255 if image.bits <= 8 and final else 65535
    scaled = (array - span[0]) / (span[1] - span[0]) * levels
    small = scaled.round_().clamp_(0, levels).numpy().astype(np.uint8 if levels == 255 else np.uint16)
    quantiles = np.zeros(len(LEVELS), np.float32) if levels == 255 else sketch_of(image)
    return Shrunk(small, (span[1] - span[0]) / levels, span[0], tuple(facts[0].item()), quantiles)


def to_unit(image: Shrunk, low: float, high: float) -> npt.NDArray[np.float32]:
    """A stored image in [0, 1], bright is high: float32 `[C, S, S]`.

    Args:
        image: as it is stored.
        low: the value that becomes 0 (1 where the image is inverted).
        high: the value that becomes 1; above `low`.
    """
    unit = np.clip((image.array * image.gain + image.bias - low) / (high - low), 0, 1).astype(np.float32)
    return np.subtract(np.float32(1), unit) if np.array([image.grey], GREY)["inverted"][0] else unit


def to_channels(array: Tensor, channels: int) -> Tensor:
    """Grey repeated, or colour as luminance, where an encoder wants another number: `[C, ...]`."""
    if array.shape[0] == channels:
        return array
    if channels == 3:
        return array[:1].expand(3, *array.shape[1:])
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, *(1 for _ in array.shape[1:]))  # luma of ITU-R BT.601
    return (array[:3] * weights).sum(0, keepdim=True)


def _square(array: Tensor, preprocessing: Preprocessing, *, pad: float, aspect: float) -> Tensor:
    """The rectangle of native pixels that covers a square on the body, as `size` x `size` pixels."""
    size = preprocessing.cached_size
    height, width = array.shape[1:]
    sides = canvas((height, width), preprocessing.fit, aspect)
    for axis, length, side in zip((1, 2), (height, width), sides, strict=True):
        if side < length:
            array = array.narrow(axis, (length - side) // 2, side)
        elif side > length:
            before = (side - length) // 2
            border = (before, side - length - before)
            array = F.pad(array, (0, 0, *border) if axis == 1 else border, value=pad)
    return F.interpolate(array[None], (size, size), mode="bilinear", antialias=True, align_corners=False)[0]
