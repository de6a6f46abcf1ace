"""An image in the units it was stored in, with the range that maps it to [0, 1]; what every reader returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bolus.errors import ImageError

Array = npt.NDArray[np.float32]
Rule = Literal[
    "stated", "window", "voi_lut", "clinical", "series", "bits_stored", "container", "cohort", "image", "unit"
]
CLIPPED: tuple[Rule, ...] = ("stated", "window", "voi_lut", "clinical", "series")  # values beyond are black or white


@dataclass(frozen=True)
class Range:
    """How stored or modality values map to [0, 1]: `low` becomes 0 and `high` becomes 1.

    Args:
        low: in the unit of the array.
        high: likewise; equal to `low` for a window of width 1, which is a threshold.
        rule: where the bounds come from. `stated`: a person gave it; `window`: one that the file states or the caller
            gave; `voi_lut`: the output of a lookup table or sigmoid that has been applied; `clinical`: that of a
            modality whose numbers have a unit, and `series`: percentiles of what was read (`data.pixels.range_rules`);
            `bits_stored`: what the DICOM header allows, rescaled; `container`: what the file format holds; `cohort`:
            the next power of two, see `covering_range`; `image`: this image's own extremes; `unit`: already in [0, 1].

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
        modality: DICOM's Modality (0008,0060) in upper case, else empty.
        series: DICOM's SeriesInstanceUID (0020,000E), else empty.
        aspect: height of a pixel over its width; 1 where it is unknown, or within 1 % of it.
        padding: bool `[H, W]` or `[T, H, W]`, True where DICOM's Pixel Padding Value (0028,0120), or a value between it
            and the Pixel Padding Range Limit (0028,0121), says that nothing was imaged; None where there is no such
            pixel. `array` keeps what is stored there.
    """

    array: Array
    spacing: tuple[float, ...] | None
    range: Range
    bits: int
    inverted: bool
    notes: tuple[str, ...] = ()
    modality: str = ""
    series: str = ""
    aspect: float = 1.0
    padding: npt.NDArray[np.bool_] | None = None

    @property
    def counted(self) -> Array:
        """The values of the pixels that were imaged: all of `array`, or `[C, n]` without padding; n may be 0.

        >>> corner = np.array([[True, False]])
        >>> pixels = np.array([[[-2000.0, 7.0]]], np.float32)
        >>> Image(pixels, None, Range(0, 9, "unit"), 16, False, padding=corner).counted
        array([[7.]], dtype=float32)
        """
        return self.array if self.padding is None else self.array[:, ~self.padding]

    @property
    def extremes(self) -> tuple[float, float]:
        """The least and the largest value of those that count; 0 and 0 where none does."""
        counted = self.counted
        return (float(counted.min()), float(counted.max())) if counted.size else (0.0, 0.0)

    def unit(self, value_range: Range | None = None) -> Array:
        """The image in [0, 1], bright is high.

        Values beyond a range of the rules `stated`, `window`, `voi_lut`, `clinical` and `series` are clipped: that is
        what a window means. Beyond a range of any other rule they are an error, never clipped. Padding is 0 (black) in
        either polarity, and its values are not checked.

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
        low, high = self.extremes
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ImageError("expected finite values, found NaN or infinite ones")
        slack = 1e-6 * max(abs(chosen.low), abs(chosen.high))  # the rounding of float32
        if chosen.rule not in CLIPPED and (low < chosen.low - slack or high > chosen.high + slack):
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
        if self.inverted:
            unit = np.subtract(np.float32(1.0), unit)
        if self.padding is not None:
            unit[:, self.padding] = 0.0
        return unit


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


def take_frame(whole: Image, frame: int | None) -> Image:
    """One frame of a clip or volume; all of it where `frame` is None; an ImageError if there is no such frame.

    >>> take_frame(Image(np.zeros((1, 3, 4, 4), np.float32), None, Range(0, 1, "unit"), 8, False), 2).array.shape
    (1, 4, 4)
    """
    if frame is None:
        return whole
    clip = whole.array.ndim == 4
    check_frame(frame, whole.array.shape[1] if clip else 1)
    if not clip:
        return whole
    spacing = None if whole.spacing is None else whole.spacing[1:]
    padding = None if whole.padding is None or not whole.padding[frame].any() else whole.padding[frame]
    return replace(whole, array=np.ascontiguousarray(whole.array[:, frame]), spacing=spacing, padding=padding)


def own_range(values: npt.NDArray[Any]) -> Range:
    """The covering range of some values, where their cohort's begins; an ImageError if one is not finite.

    >>> own_range(np.array([3.0, 900.0])).high, own_range(np.zeros(0)).high
    (1023.0, 1.0)
    """
    finite = np.isfinite(values)
    if not finite.all():
        raise ImageError(f"expected finite values, found {int((~finite).sum())} that are NaN or infinite")
    return covering_range(float(values.max(initial=0.0)), float(values.min(initial=0.0)))
