"""A volume in the units it was stored in, in anatomical axes, with where it lies; what `read_volume` returns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from bolus.data.pixels.image import Image, Range
from bolus.errors import MissingDecoderError, require

Array = npt.NDArray[np.float32]
Affine = npt.NDArray[np.float64]
Spacing = tuple[float, float, float]

SHEAR = 0.1  # degrees off the right angle from which axes count as slanted


@dataclass
class Volume:
    """One volume, with what is needed to understand its numbers and its place.

    Args:
        array: float32 `[C, D, H, W]`, in modality units (HU, stored value ...). Where the file says how it lies, W runs
            from left to right, H from posterior to anterior and D from inferior to superior, as close as its own axes
            come to these: the voxel (i, j, k) of nibabel's `as_closest_canonical` is `array[:, k, j, i]`.
        spacing: mm between voxels along (D, H, W); NaN where it is not known.
        affine: float64 `[4, 4]`, from (i, j, k, 1) to mm to the right, to anterior and to superior (RAS+); None where
            the files do not say where they lie.
        range: the rule that maps `array` to [0, 1], and its bounds: of the whole volume, as of
            `bolus.data.pixels.image.Image`.
        bits: significant bits of the source.
        inverted: bright is low (MONOCHROME1); `array` stays as stored.
        notes: what a person should know about how the files were read.
        modality: DICOM's Modality (0008,0060) in upper case, else empty.
        series: DICOM's SeriesInstanceUID (0020,000E), else empty.
        padding: bool `[D, H, W]`, True where nothing was imaged; None where there is no such voxel.
    """

    array: Array
    spacing: Spacing
    affine: Affine | None
    range: Range
    bits: int
    inverted: bool
    notes: tuple[str, ...] = ()
    modality: str = ""
    series: str = ""
    padding: npt.NDArray[np.bool_] | None = None

    @property
    def image(self) -> Image:
        """The same voxels as an image of D frames, as `bolus.data.pixels.greys.measure` and `sketch_of` take it.

        >>> ones = np.ones((1, 2, 3, 4), np.float32)
        >>> Volume(ones, (5.0, 1.0, 1.0), None, Range(0, 1, "unit"), 8, False).image.extremes
        (1.0, 1.0)
        """
        return Image(
            self.array, self.spacing, self.range, self.bits, self.inverted, self.notes, self.modality, self.series,
            padding=self.padding,
        )  # fmt: skip

    @property
    def black(self) -> float:
        """The value that is shown black outside the volume: the darkest of those that were imaged, or of its window.

        >>> ones = np.ones((1, 2, 3, 4), np.float32)
        >>> Volume(ones, (5.0, 1.0, 1.0), None, Range(0, 9, "window"), 12, True).black
        9.0
        """
        shown = self.range.rule in ("window", "voi_lut") and self.range.high > self.range.low
        low, high = (self.range.low, self.range.high) if shown else self.image.extremes
        return float(high if self.inverted else low)

    def note(self, *notes: str) -> Self:
        """The same volume with more notes; each is there once."""
        return replace(self, notes=tuple(dict.fromkeys((*self.notes, *notes))))


def turn_to_canonical(
    array: npt.NDArray[Any], affine: Affine, *, of_what: str = "volumes"
) -> tuple[npt.NDArray[Any], Affine]:
    """Turn a stack to the closest of the anatomical axes, by flips and exchanges alone, as nibabel does.

    Args:
        array: `[..., T, H, W]`.
        affine: float64 `[4, 4]`, from (column, row, slice, 1) to mm in RAS+, with three directions.
        of_what: for the message where nibabel is not installed.

    Returns:
        The array `[..., D, H, W]`, a view; and its own affine.

    Example:
        >>> stack = np.arange(24).reshape(2, 3, 4)
        >>> turned, affine = turn_to_canonical(stack, np.diag([-1.0, -1.0, 5.0, 1.0]))
        >>> turned[0, 0].tolist(), affine[:3, 3].tolist()
        ([11, 10, 9, 8], [-3.0, -2.0, 0.0])
    """
    require("nibabel", of_what, MissingDecoderError)
    from nibabel import orientations

    shape, leading = array.shape[:-4:-1], array.ndim - 3  # (i, j, k)
    found = orientations.io_orientation(affine)
    turned = orientations.apply_orientation(array.T, found).T
    assert turned.ndim == leading + 3
    return turned, affine @ orientations.inv_ornt_aff(found, shape)


def axes_of(affine: Affine) -> tuple[int, int, int]:
    """For each of D, H and W, the axis of a stack (0 slice, 1 row, 2 column) that `turn_to_canonical` makes it.

    >>> sagittal = np.array([[0.0, 0, 5, 0], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    >>> axes_of(sagittal)
    (1, 2, 0)
    """
    from nibabel import orientations

    right, anterior, superior = (int(axis) for axis in np.argsort(orientations.io_orientation(affine)[:, 0]))
    return 2 - superior, 2 - anterior, 2 - right


def spacing_of(affine: Affine) -> Spacing:
    """Mm between voxels along (D, H, W) of an affine.

    >>> spacing_of(np.diag([0.7, 0.8, -5.0, 1.0]))
    (5.0, 0.8, 0.7)
    """
    across, down, along = (float(each) for each in np.linalg.norm(affine[:3, :3], axis=0))
    return along, down, across


def shear_notes(affine: Affine) -> list[str]:
    """A note where the axes of a grid are not at right angles, as of a gantry that was tilted; else nothing.

    >>> shear_notes(np.diag([1.0, 1, 5, 1]))
    []
    >>> slanted = np.diag([1.0, 1, 5, 1])
    >>> slanted[1, 2] = 5 * np.tan(np.radians(12))
    >>> shear_notes(slanted)
    ['axes of the voxels are 12 degrees off the right angle (a tilted gantry): voxels and affine are as scanned; a
    stated spacing makes them upright']
    """
    slant = slant_of(affine)
    if slant < SHEAR:
        return []
    off = f"axes of the voxels are {slant:.3g} degrees off the right angle (a tilted gantry)"
    return [f"{off}: voxels and affine are as scanned; a stated spacing makes them upright"]


def slant_of(affine: Affine) -> float:
    """Degrees by which the axes of a grid are off the right angle, at most.

    >>> slant_of(np.diag([1.0, 1, 5, 1]))
    0.0
    """
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs((axes.T @ axes)[np.triu_indices(3, 1)])
    return float(np.degrees(np.arcsin(np.clip(cosines.max(), 0, 1))))
