"""DICOM as a volume: files of one series, one file of many frames, or several of these, by where each slice lies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bolus.data.pixels.greys import wants_values
from bolus.data.pixels.image import Image, take_frame
from bolus.data.readers.dicom_header import count_dicom_frames, group_of, numbers_of, open_dataset
from bolus.data.readers.readers import naming, read_image
from bolus.data.volumes.placing import Grid, Plane, lay
from bolus.data.volumes.stack import by_file
from bolus.errors import ImageError

# What may tell two slices of one place apart; only the names are ever shown.
_TELLING = (
    "SeriesInstanceUID", "AcquisitionNumber", "TemporalPositionIdentifier", "TemporalPositionIndex", "EchoTime",
    "EffectiveEchoTime", "EchoNumbers", "DiffusionBValue", "FlipAngle", "TriggerTime",
    "NominalPercentageOfCardiacPhase", "StackID", "KVP", "ImageType",
)  # fmt: skip
_GROUPS = (
    "FrameContentSequence", "MREchoSequence", "MRDiffusionSequence", "CardiacSynchronizationSequence",
    "MRImageFrameTypeSequence", "CTImageFrameTypeSequence",
)  # fmt: skip
FURTHEST = 1e6  # mm from anything: a kilometre
_TIMES = ("FrameTime", "FrameTimeVector", "CineRate", "RecommendedDisplayFrameRate")


@dataclass(frozen=True)
class Slice:
    """One slice of a volume: a frame of a file, and where it lies.

    Args:
        path: the file.
        frame: from 0; None for a file of one frame.
        plane: where it lies.
    """

    path: Path
    frame: int | None
    plane: Plane


def find_slices(path: Path, frames: Sequence[int | None]) -> list[Slice]:
    """The slices of one file, from its header; no pixel is decoded.

    Args:
        path: a DICOM file.
        frames: which frames, from 0; None for all of the file.

    Raises:
        ImageError: no such frame; a mosaic of many slices in one image; frames that are moments and lie nowhere; what
            `open_dataset` raises.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> [found] = find_slices(Path(get_testdata_file("CT_small.dcm", download=False)), [None])
        >>> found.frame, found.plane.spacing, found.plane.thickness
        (None, (0.661468, 0.661468), 5.0)
    """
    with naming(path):
        header = open_dataset(path, stop_before_pixels=True)
        kinds = [str(each).upper() for each in np.atleast_1d(header.get("ImageType") or [])]
        if "MOSAIC" in kinds:
            raise ImageError("expected one slice an image, found a mosaic of slices: convert the series to NIfTI")
        number = count_dicom_frames(path)
        wanted = list(range(number)) if None in frames else [int(each or 0) for each in frames]
        for frame in wanted:
            if not 0 <= frame < number:
                raise ImageError(f"expected a frame from 0 to {number - 1}, found {frame}")
        localizer = bool({"LOCALIZER", "SCOUT"} & set(kinds))
        found = [
            Slice(path, frame if number > 1 else None, _plane(header, frame, localizer=localizer)) for frame in wanted
        ]
        if len(found) > 1 and found[0].plane.position is None and any(header.get(name) for name in _TIMES):
            raise ImageError("expected slices, found a clip, of which depth is time: images.unit=clip")
        return found


def lay_files(
    paths: Sequence[Path], frames: Sequence[int | None], reading: str
) -> tuple[list[Slice], Grid, npt.NDArray[np.int64]]:
    """The slices of files and the grid that they make; pixels are decoded only where two lie at one place.

    Args:
        paths: DICOM files, in any order.
        frames: of each, from 0; None is all of the file.
        reading: as of `bolus.data.pixels.greys.reading_of`.

    Returns:
        All slices, in the order given; the grid, whose order is among them; and int64 `[slices]`, which of them each is
        a copy of, else itself. Copies are not in the grid.

    Raises:
        ImageError: as `bolus.data.volumes.placing.lay`.
    """
    slices = [each for path, asked in by_file(paths, frames) for each in find_slices(path, asked)]
    original = find_copies(slices, reading)
    kept = np.flatnonzero(original == np.arange(len(slices)))
    grid, copies = lay([slices[number].plane for number in kept.tolist()]), len(slices) - len(kept)
    said = (f"slices that are there twice: {copies}, each taken once",) if copies else ()
    return slices, replace(grid, order=kept[grid.order], notes=(*said, *grid.notes)), original


def read_slices(slices: Sequence[Slice], reading: str) -> Iterator[Image]:
    """The pixels of slices one after another; a file of which several follow each other is decoded once, whole.

    Args:
        slices: in the order wanted.
        reading: as of `bolus.data.pixels.greys.reading_of`.
    """
    held: tuple[Path, Image] | None = None
    for each in slices:
        if held is None or held[0] != each.path:
            held = None  # let go before the next is decoded
            held = (each.path, _read(each.path, reading))
        yield take_frame(held[1], each.frame if held[1].array.ndim == 4 else None)


def find_copies(slices: Sequence[Slice], reading: str) -> npt.NDArray[np.int64]:
    """Which slice each is a copy of: the first that lies where it does and has its pixels; itself if there is none.

    Only files of one frame are compared; frames that lie at one place are for `bolus.data.volumes.placing.lay`.
    """
    first, original = dict[object, int](), np.arange(len(slices))
    for number, each in enumerate(slices):
        place = (each.plane.position, each.plane.orientation, each.plane.shape, each.plane.localizer)
        other = slices[first.setdefault(place, number)]
        if other is not each and each.plane.position is not None and each.frame is None and other.frame is None:
            one, two = read_slices([other, each], reading)
            if np.array_equal(one.array, two.array):
                original[number] = first[place]
    return original


def _read(path: Path, reading: str) -> Image:
    image = read_image(path)
    return read_image(path, voi=False) if wants_values(image, reading) else image


def _plane(header: Any, frame: int, *, localizer: bool) -> Plane:
    """Where a frame lies: by its functional groups, by the grid of a dose, by its detector, or by the header itself."""
    orientation = _from(header, frame, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    position = _from(header, frame, "PlanePositionSequence", "ImagePositionPatient", 3)
    measures = group_of(header, frame, "PixelMeasuresSequence") or header
    spacing = _numbers(measures, "PixelSpacing", 2)
    several = int(header.get("NumberOfFrames") or 1) > 1
    grouped = group_of(header, frame, "PlanePositionSequence") is not None
    if several and not grouped and position is not None:
        position = _moved(header, frame, position, orientation)
    thickness = (_numbers(measures, "SpacingBetweenSlices", 1) or _numbers(measures, "SliceThickness", 1) or (0.0,))[0]
    if spacing is not None and min(spacing) <= 0:
        spacing = None
    return Plane(
        (int(header.get("Rows") or 0), int(header.get("Columns") or 0)),
        orientation,
        position,
        spacing,
        abs(thickness) or float("nan"),
        localizer,
        str(header.get("FrameOfReferenceUID") or ""),
        _telling(header, frame),
    )


def _moved(
    header: Any, frame: int, position: tuple[float, ...], orientation: tuple[float, ...] | None
) -> tuple[float, ...] | None:
    """The position of a frame of a file that states that of the first; None where nothing says how far they lie apart.

    By the offsets of a dose, along the normal or, where the first is not 0, as places along z (PS3.3, C.8.8.3.2); or by
    the steps of nuclear medicine, of which a negative one lies before the first slice (C.8.4.15).
    """
    if orientation is None:
        return None
    normal = np.cross(orientation[:3], orientation[3:])
    offsets, steps = numbers_of(header, "GridFrameOffsetVector"), numbers_of(header, "SpacingBetweenSlices")
    if len(offsets) > frame:
        if offsets[0] != 0:
            return (*position[:2], offsets[frame])
        away = offsets[frame]
    elif str(header.get("Modality")) == "NM" and steps and steps[0]:
        numbers = numbers_of(header, "SliceVector")
        away = steps[0] * (numbers[frame] - 1 if len(numbers) > frame else frame)
    else:
        return None
    return tuple(float(each) for each in np.asarray(position) + away * normal)


def _from(header: Any, frame: int, group: str, name: str, count: int) -> tuple[float, ...] | None:
    item = group_of(header, frame, group)
    if item is None:
        detector = header.get("DetectorInformationSequence") or []
        item = detector[0] if name not in header and len(detector) else header
    return _numbers(item, name, count)


def _numbers(item: Any, name: str, count: int) -> tuple[float, ...] | None:
    """Numbers of an element; None where it has not so many, or some that are no distance."""
    try:
        found = tuple(numbers_of(item, name))
    except (TypeError, ValueError):
        return None
    return found if len(found) == count and all(abs(each) < FURTHEST for each in found) else None


def _telling(header: Any, frame: int) -> dict[str, str]:
    items = [header, *(group for name in _GROUPS if (group := group_of(header, frame, name)) is not None)]
    return {name: str(value) for name in _TELLING for item in items if (value := item.get(name)) not in (None, "")}
