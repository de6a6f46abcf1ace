"""Slices behind each other: their order along the normal, the grid that they make, and what keeps them from one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bolus.data.volumes.volume import Affine
from bolus.errors import ImageError

Floats = npt.NDArray[np.float64]

EVEN = 0.01  # of a step: places that differ by less lie evenly
UNEVEN = 0.1  # of a step: places that differ by more make no grid
SAME = 1e-4  # mm between the places of two slices that lie at one
PARALLEL = 1e-3  # between the directions of rows and columns
STEEPEST = 45.0  # degrees between the steps and the normal; beyond it slices lie beside each other


@dataclass(frozen=True)
class Plane:
    """Where one slice lies (PS3.3, C.7.6.2.1.1); all in mm, and in DICOM's directions (left, posterior, superior).

    Args:
        shape: rows and columns.
        orientation: the directions along a row and along a column; None where not stated.
        position: the middle of the first voxel; None where not stated.
        spacing: between rows and between columns; None where not stated.
        thickness: from slice to slice if there is nothing else to tell; NaN where not stated.
        localizer: whether it calls itself one.
        frame_of_reference: an identifier of the space that positions are in; empty where not stated.
        telling: what may tell two slices of one place apart, by name.
    """

    shape: tuple[int, int]
    orientation: tuple[float, ...] | None = None
    position: tuple[float, ...] | None = None
    spacing: tuple[float, ...] | None = None
    thickness: float = float("nan")
    localizer: bool = False
    frame_of_reference: str = ""
    telling: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """The grid that slices make.

    Args:
        order: int64 `[D]`, which of the slices given lies at each place; those left out are absent.
        affine: float64 `[4, 4]`, from (column, row, place, 1) to mm in RAS+; None where the slices do not say.
        spacing: mm from place to place, between rows and between columns; NaN where not known.
        notes: what a person should know.
    """

    order: npt.NDArray[np.int64]
    affine: Affine | None
    spacing: tuple[float, float, float]
    notes: tuple[str, ...] = ()


def lay(planes: Sequence[Plane]) -> Grid:
    """The grid of slices that lie behind each other, in whatever order they are given.

    Localizers among others are left out, with a note. Slices that say nothing of their places stay in the order given.

    Args:
        planes: at least one.

    Raises:
        ImageError: slices of several sizes, spacings, directions or spaces; several at one place; slices that are
            missing; steps that differ. The message counts them along the normal, from 1.

    Example:
        >>> upright = (1.0, 0, 0, 0, 1, 0)
        >>> grid = lay([Plane((4, 4), upright, (0, 0, place), (0.5, 0.5)) for place in (9.0, 0.0, 6.0, 3.0)])
        >>> grid.order.tolist(), grid.spacing, grid.affine[:3, 3].tolist()
        ([1, 3, 2, 0], (3.0, 0.5, 0.5), [-0.0, -0.0, 0.0])
    """
    kept = np.array([number for number, plane in enumerate(planes) if not plane.localizer], np.int64)
    notes = []
    if 0 < len(kept) < len(planes):
        notes.append(f"localizers among the slices: {len(planes) - len(kept)}, left out")
    else:
        kept = np.arange(len(planes))
    chosen = [planes[number] for number in kept.tolist()]
    _agree([plane.shape for plane in chosen], "sizes (rows, columns)")
    _agree([plane.frame_of_reference for plane in chosen], "frames of reference", shown=False)
    placed = [plane for plane in chosen if plane.position is not None and plane.orientation is not None]
    if len(placed) < len(chosen):
        return _unplaced(chosen, len(placed), kept, notes)
    order, affine, thickness = _stack(chosen, notes)
    across, down, _ = (float(each) for each in np.linalg.norm(affine[:3, :3], axis=0))
    if np.isnan(thickness):
        notes.append("one slice, of unknown thickness; 1 mm in the affine")
    return Grid(kept[order], affine, (thickness, down, across), tuple(notes))


def _unplaced(chosen: Sequence[Plane], placed: int, kept: npt.NDArray[np.int64], notes: list[str]) -> Grid:
    """Slices without places, in the order given; an ImageError where some of them have one."""
    if placed:
        raise ImageError(f"expected all slices to say where they lie, found {len(chosen) - placed} that do not")
    _agree([plane.spacing for plane in chosen], "spacings of their pixels")
    down, across = chosen[0].spacing or (float("nan"), float("nan"))
    if len(chosen) > 1:
        notes.append("the slices do not say where they lie: stacked in the order given, sides unknown")
    return Grid(kept, None, (float("nan"), down, across), tuple(notes))


def _stack(chosen: Sequence[Plane], notes: list[str]) -> tuple[npt.NDArray[np.int64], Affine, float]:
    """Order, affine and the step from slice to slice, NaN where it is not known."""
    turns = np.array([plane.orientation for plane in chosen], np.float64)
    places = np.array([plane.position for plane in chosen], np.float64)
    along_row, along_column = _directions(turns)
    _agree([plane.spacing for plane in chosen], "spacings of their pixels", closeness=1e-4)
    if chosen[0].spacing is None:
        raise ImageError("expected slices that say how large their pixels are (PixelSpacing), found none")
    normal = np.cross(along_row, along_column)
    order = np.argsort(places @ normal, kind="stable").astype(np.int64)
    ordered = places[order]
    if len(chosen) > 1:
        _check_apart(ordered @ normal, [chosen[number] for number in order.tolist()])
        step = (ordered[-1] - ordered[0]) / (len(order) - 1)
        _check_even(ordered, step, normal, notes)
        thickness = float(np.linalg.norm(step))
    else:
        thickness = chosen[0].thickness if chosen[0].thickness > 0 else float("nan")
        step = normal * (1.0 if np.isnan(thickness) else thickness)
    down, across = chosen[0].spacing
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along_row * across, along_column * down
    affine[:3, 2], affine[:3, 3] = step, ordered[0]
    affine[:2] *= -1  # DICOM runs to the left and to posterior
    return order, affine, thickness


def _directions(turns: Floats) -> tuple[Floats, Floats]:
    """The directions along rows and columns of all slices, of length 1."""
    apart = np.abs(turns - turns[0]).max(axis=1) > PARALLEL
    if apart.any():
        many = len({tuple(np.round(turn / PARALLEL / 10)) for turn in turns})
        raise ImageError(
            f"expected slices of one direction, found {many} among {len(turns)}: localizers, or several series in one"
        )
    along_row, along_column = turns[0, :3], turns[0, 3:]
    lengths = np.linalg.norm(along_row), np.linalg.norm(along_column)
    if not np.allclose(lengths, 1, atol=0.01) or abs(float(along_row @ along_column)) > 0.01:
        raise ImageError("expected directions of rows and columns of length 1 at right angles, found others")
    return along_row / lengths[0], along_column / lengths[1]


def _check_apart(along: Floats, planes: Sequence[Plane]) -> None:
    """Raise ImageError where slices lie at one place, with what tells them apart."""
    steps = np.diff(along)
    apart = steps[steps > SAME]
    twice = steps <= max(SAME, EVEN * float(np.median(apart))) if len(apart) else np.ones(len(steps), np.bool_)
    if not twice.any():
        return
    groups = np.split(np.arange(len(along)), np.flatnonzero(~twice) + 1)
    shared = [group for group in groups if len(group) > 1]
    differ = [
        name
        for name in planes[0].telling
        if any(len({planes[at].telling.get(name) for at in group.tolist()}) > 1 for group in shared)
    ]
    advice = f"they differ in {', '.join(differ)}: give each its own series" if differ else "nothing tells them apart"
    most = max(len(group) for group in shared)
    raise ImageError(
        f"expected one slice at each place, found up to {most} at {len(shared)} of {len(groups)} places; {advice}"
    )


def _check_even(places: Floats, step: Floats, normal: Floats, notes: list[str]) -> None:
    """Raise ImageError where slices in order make no grid; a note where they nearly do."""
    length = float(np.linalg.norm(step))
    tilt = float(np.degrees(np.arccos(np.clip(step @ normal / length, -1, 1))))
    if tilt > STEEPEST:
        raise ImageError(
            f"expected slices behind each other, found steps {tilt:.3g} degrees off their normal: they lie beside "
            "each other"
        )
    ideal = places[0] + np.arange(len(places))[:, None] * step
    off = float(np.linalg.norm(places - ideal, axis=1).max())
    if off <= EVEN * length:
        return
    if off <= UNEVEN * length:
        notes.append(f"slices lie up to {off:.2g} mm from even steps of {length:.3g} mm")
        return
    steps = np.diff(places @ normal)
    usual = float(np.median(steps))
    times = steps / usual
    gaps = np.flatnonzero(times > 1.5)
    if len(gaps) and np.abs(times - np.round(times)).max() <= UNEVEN and np.round(times).min() >= 1:
        missing = int(np.round(times[gaps]).sum()) - len(gaps)
        raise ImageError(
            f"expected a slice every {usual:.3g} mm, found {missing} missing, the first after slice {gaps[0] + 1} of "
            f"{len(places)}"
        )
    if steps.max() - steps.min() > UNEVEN * usual:
        raise ImageError(
            f"expected slices at even steps, found steps from {steps.min():.3g} to {steps.max():.3g} mm among "
            f"{len(places)} slices"
        )
    raise ImageError(f"expected slices behind each other, found them shifted in their plane by up to {off:.3g} mm")


def _agree(values: Sequence[object], what: str, *, shown: bool = True, closeness: float = 0.0) -> None:
    """Raise ImageError where slices differ in something."""
    counts = Counter(values)
    if closeness and all(isinstance(each, tuple) for each in counts):
        numbers = np.array(list(counts), np.float64)
        if np.abs(numbers - numbers[0]).max() <= closeness * np.abs(numbers).max():
            return
    if len(counts) > 1:
        listed = [f"{_text(value)} ({number})" for value, number in counts.most_common(3)]
        said = f": {', '.join(listed)}" if shown else ""
        raise ImageError(f"expected slices of one of the {what}, found {len(counts)}{said}")


def _text(value: object) -> str:
    if value is None:
        return "none"
    return " x ".join(f"{each:.4g}" for each in value) if isinstance(value, tuple) else str(value)
