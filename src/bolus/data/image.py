"""An image in the units it was stored in, with the range that maps it to [0, 1]; what every reader returns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bolus.errors import ImageError

Array = npt.NDArray[np.float32]
Rule = Literal["window", "voi_lut", "bits_stored", "container", "cohort", "image", "unit"]


@dataclass(frozen=True)
class Range:
    """How stored or modality values map to [0, 1]: `low` becomes 0 and `high` becomes 1.

    Args:
        low: in the unit of the array.
        high: likewise; equal to `low` for a window of width 1, which is a threshold.
        rule: where the bounds come from. `window`: one that the file states or the caller gave; `voi_lut`: the output
            of a lookup table or sigmoid that has been applied; `bits_stored`: what the DICOM header allows, rescaled;
            `container`: what the file format holds; `cohort`: the next power of two, see `covering_range`; `image`:
            this image's own extremes; `unit`: already in [0, 1].

    Example:
        >>> Range(-160.0, 239.0, "window").high
        239.0
    """

    low: float
    high: float
    rule: Rule


@dataclass
class Image:
    """One image, clip or volume, with what is needed to understand its numbers.

    Args:
        array: float32 `[C, H, W]` or `[C, T, H, W]`, in modality units (HU, stored value ...).
        spacing: mm, (row, column) for `[C, H, W]` and (frame or slice, row, column) for `[C, T, H, W]`; NaN for a
            distance that the file does not state; None where it states none.
        range: the rule that maps `array` to [0, 1], and its bounds.
        bits: significant bits of the source.
        inverted: bright is low (MONOCHROME1); `array` stays as stored and `unit` turns it.
        notes: what a person should know about how the file was read.
    """

    array: Array
    spacing: tuple[float, ...] | None
    range: Range
    bits: int
    inverted: bool
    notes: tuple[str, ...] = ()

    def unit(self, value_range: Range | None = None) -> Array:
        """The image in [0, 1], bright is high.

        Values beyond a `window` (or `voi_lut`) are clipped: that is what a window means. Beyond a range of any other
        rule they are an error, never clipped.

        Args:
            value_range: instead of the image's own, such as the one of its cohort.

        Returns:
            float32 in [0, 1], of the shape of `array`.

        Raises:
            ImageError: values outside the range, or not finite.

        Example:
            >>> image = Image(np.array([[[0.0, 51.0]]], np.float32), None, Range(0, 255, "container"), 8, True)
            >>> image.unit().tolist()
            [[[1.0, 0.800000011920929]]]
        """
        chosen = value_range or self.range
        low, high = float(self.array.min()), float(self.array.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ImageError("expected finite values, found NaN or infinite ones")
        slack = 1e-6 * max(abs(chosen.low), abs(chosen.high))  # the rounding of float32
        if chosen.rule not in ("window", "voi_lut") and (low < chosen.low - slack or high > chosen.high + slack):
            raise ImageError(
                f"expected values from {chosen.low:g} to {chosen.high:g} (rule {chosen.rule}), "
                f"found {low:g} to {high:g}"
            )
        if chosen.high > chosen.low:
            unit = self.array - np.float32(chosen.low)
            unit /= np.float32(chosen.high - chosen.low)
            np.clip(unit, 0.0, 1.0, out=unit)
        else:
            unit = (self.array > chosen.low).astype(np.float32)
        return np.subtract(np.float32(1.0), unit) if self.inverted else unit


def covering_range(maximum: float, minimum: float = 0.0) -> Range:
    """The range of a cohort (rule `cohort`): 0 to the smallest 2^b - 1 that covers its largest value, b >= 1.

    So 12-bit values in a 16-bit file use the whole of [0, 1], and images that are already in [0, 1] stay as they are.
    With a negative minimum the range is symmetric about 0, -(2^b - 1) to 2^b - 1 with the smallest b that covers both
    ends: 0 maps to 0.5.

    Raises:
        ImageError: a bound that is not finite.

    Example:
        >>> covering_range(4095).high, covering_range(4096).high, covering_range(0.7).high
        (4095.0, 8191.0, 1.0)
        >>> covering_range(3071, -1024)
        Range(low=-4095.0, high=4095.0, rule='cohort')
    """
    if not (math.isfinite(maximum) and math.isfinite(minimum)):
        raise ImageError(f"expected finite extremes, found {minimum} to {maximum}")
    extent, bits = max(maximum, -minimum), 1
    while 2**bits - 1 < extent:
        bits += 1
    high = float(2**bits - 1)
    return Range(-high if minimum < 0 else 0.0, high, "cohort")


def check_frame(frame: int, number: int) -> int:
    """`frame` if there is such a one among `number`, counted from 0; else an ImageError."""
    if not 0 <= frame < number:
        raise ImageError(f"expected a frame from 0 to {number - 1}, found {frame}")
    return frame


def own_range(array: npt.NDArray[Any]) -> Range:
    """The covering range of one array, where its cohort's begins; an ImageError if it is not finite."""
    finite = np.isfinite(array)
    if not finite.all():
        raise ImageError(f"expected finite values, found {int((~finite).sum())} that are NaN or infinite")
    return covering_range(float(array.max()), float(array.min()))
