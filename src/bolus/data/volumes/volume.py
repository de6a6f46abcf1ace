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


@dataclass(frozen=True)
class Turn:
    """How the axes of a stack become D, H and W: exchanged, then some of them reversed.

    Args:
        axes: for each of D, H and W, the axis of the stack (0 slice, 1 row, 2 column).
        reversed: whether it runs the other way.
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    reversed: tuple[bool, bool, bool] = (False, False, False)

    def apply(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A stack `[..., T, H, W]` as a volume `[..., D, H, W]`; a view.

        >>> Turn((1, 2, 0), (True, False, False)).apply(np.arange(6).reshape(1, 2, 3)).tolist()
        [[[3], [4], [5]], [[0], [1], [2]]]
        """
        leading = array.ndim - 3
        turned = array.transpose(*range(leading), *(leading + axis for axis in self.axes))
        return np.flip(turned, self._flipped(leading))

    def undo(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A volume `[..., D, H, W]` as the stack that it came from; a view.

        >>> turn, stack = Turn((1, 2, 0), (True, False, False)), np.arange(6).reshape(1, 2, 3)
        >>> np.array_equal(turn.undo(turn.apply(stack)), stack)
        True
        """
        leading = array.ndim - 3
        back = np.argsort(self.axes).tolist()
        straight = np.flip(array, self._flipped(leading))
        return straight.transpose(*range(leading), *(leading + axis for axis in back))

    def _flipped(self, leading: int) -> tuple[int, ...]:
        return tuple(leading + place for place, back in enumerate(self.reversed) if back)


def find_turn(affine: Affine) -> Turn:
    """The turn of a stack to the closest of the anatomical axes, by exchanges and reversals alone, as nibabel does.

    Args:
        affine: float64 `[4, 4]`, from (column, row, slice, 1) to mm in RAS+, with three directions.

    >>> find_turn(np.array([[0.0, 0, 5, 0], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]]))
    Turn(axes=(1, 2, 0), reversed=(True, False, False))
    """
    require("nibabel", "volumes", MissingDecoderError)
    from nibabel import orientations

    found = orientations.io_orientation(affine)  # of columns, rows and slices: which of R, A, S, and its direction
    right, anterior, superior = (int(axis) for axis in np.argsort(found[:, 0]))
    depth, height, width = (bool(found[axis, 1] < 0) for axis in (superior, anterior, right))
    return Turn((2 - superior, 2 - anterior, 2 - right), (depth, height, width))


def turn_affine(affine: Affine, turn: Turn, shape: tuple[int, ...]) -> Affine:
    """The affine of a stack once it is turned.

    Args:
        affine: from (column, row, slice, 1).
        turn: of the stack.
        shape: of the stack, `(T, H, W)`.

    Example:
        >>> stack = np.diag([-1.0, -1.0, 5.0, 1.0])
        >>> turn_affine(stack, find_turn(stack), (2, 3, 4))[:3, 3].tolist()
        [-3.0, -2.0, 0.0]
    """
    to_stack = np.zeros((4, 4))
    to_stack[3, 3] = 1
    for place, (axis, back) in enumerate(zip(turn.axes, turn.reversed, strict=True)):
        to_stack[2 - axis, 2 - place] = -1 if back else 1
        to_stack[2 - axis, 3] = shape[axis] - 1 if back else 0
    found: Affine = affine @ to_stack
    return found


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
