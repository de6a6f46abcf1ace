"""Reading a volume: from one file that holds all of it, or from a file for each slice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bolus.data.pixels.image import Image
from bolus.data.readers.own import NONE, Readers
from bolus.data.readers.readers import naming, quiet
from bolus.data.readers.room import Room
from bolus.data.volumes.dicom import Slice, find_slices, read_slices
from bolus.data.volumes.joining import join_slices
from bolus.data.volumes.nifti import read_canonical
from bolus.data.volumes.placing import Grid, lay
from bolus.data.volumes.stack import by_file, read_stack
from bolus.data.volumes.volume import Volume, axes_of, shear_notes, turn_to_canonical
from bolus.errors import ImageError, UsageError


def read_volume(
    paths: Sequence[Path],
    frames: Sequence[int | None] | None = None,
    *,
    reading: str = "file",
    readers: Readers = NONE,
) -> Volume:
    """Read one volume; safe to call from many threads.

    One NIfTI file is a volume, and so is a DICOM file of many frames. Several DICOM files are the slices of one, in
    whatever order they are given: they are sorted by where they lie. Single images (PNG, JPEG, TIFF, BMP, and files of
    readers of one's own) are slices in the order given, and so are the pages of one TIFF.

    Args:
        paths: the files of one volume; a file may stand there once for each of its frames.
        frames: of each path, which frame, page or axial slice from 0; None is all of the file. None: all of all.
        reading: whether windows and VOI LUTs are used, as of `bolus.data.pixels.greys.reading_of`.
        readers: of one's own, see `bolus.data.readers.own`.

    Returns:
        A `Volume`, turned to the closest of the anatomical axes where its files say how they lie.

    Raises:
        ImageError: what `read_image` raises of a file, with its name; files that make no volume, see
            `bolus.data.volumes.placing.lay`; a video, of which depth is time; files of several kinds.
        TooLargeError: decoding would take more memory than one image may.
        MissingDecoderError: the message says what to install.
        UsageError: no path, or not a frame for each.

    Example:
        >>> import tempfile, nibabel
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     scan = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(4, 3, 2), np.diag([-1, 1, 5, 1]))
        ...     nibabel.save(scan, Path(folder) / "a.nii")
        ...     volume = read_volume([Path(folder) / "a.nii"])
        >>> volume.array.shape, volume.spacing, volume.array[0, 0, 0].tolist(), volume.affine[0].tolist()
        ((1, 2, 3, 4), (5.0, 1.0, 1.0), [18.0, 12.0, 6.0, 0.0], [1.0, 0.0, 0.0, -3.0])
    """
    paths = [Path(each) for each in paths]
    asked = [None] * len(paths) if frames is None else list(frames)
    if not paths or len(asked) != len(paths):
        raise UsageError(f"read_volume: expected a path or more and a frame for each, found {len(paths)}, {len(asked)}")
    with quiet(), Room() as room:
        kind = _kind_of(paths, readers)
        if kind == "NIfTI":
            if len(set(paths)) > 1:
                raise ImageError(f"expected one NIfTI file a volume, found {len(set(paths))}")
            return read_canonical(paths[0], asked, room.claim)
        if kind == "DICOM":
            return _read_dicom(paths, asked, reading, room)
        return read_stack(paths, asked, reading, readers, room.claim)


def _kind_of(paths: Sequence[Path], readers: Readers) -> str:
    """What the files of one volume are: `own`, `NIfTI`, `DICOM` or `image`."""
    found = dict[str, None]()
    for path in dict.fromkeys(paths):
        with naming(path, readers) as kind:
            if kind == "video":
                raise ImageError("a video is a clip, of which depth is time, and no volume: images.unit=clip")
            found["own" if kind in readers else kind if kind in ("NIfTI", "DICOM") else "image"] = None
    if len(found) > 1:
        raise ImageError(f"expected files of one kind, found {' and '.join(found)} together")
    return next(iter(found))


def _read_dicom(paths: Sequence[Path], asked: Sequence[int | None], reading: str, room: Room) -> Volume:
    slices = [found for path, frames in by_file(paths, asked) for found in find_slices(path, frames)]
    slices, notes = _without_copies(slices, reading)
    grid = lay([each.plane for each in slices])
    rows, columns = slices[0].plane.shape
    room.claim(rows * columns * len(grid.order) * 13, f"{len(grid.order)} slices of {columns} x {rows} pixels")
    places = np.full(len(slices), -1)
    places[grid.order] = np.arange(len(grid.order))
    kept = [number for number in range(len(slices)) if places[number] >= 0]
    image = join_slices(read_slices([slices[number] for number in kept], reading), places[kept])
    return _as_volume(image, grid, (*notes, *image.notes))


def _without_copies(slices: Sequence[Slice], reading: str) -> tuple[list[Slice], list[str]]:
    """The slices without those that are there twice, pixel for pixel; and a note of how many these are."""
    first, kept, copies = dict[str, Slice](), list[Slice](), 0
    for each in slices:
        other = first.setdefault(each.uid, each) if each.uid else each
        if other is not each and other.plane.position == each.plane.position:
            one, two = read_slices([other, each], reading)
            if np.array_equal(one.array, two.array):
                copies += 1
                continue
        kept.append(each)
    return kept, [f"slices that are there twice: {copies}, each taken once"] if copies else []


def _as_volume(image: Image, grid: Grid, notes: Sequence[str]) -> Volume:
    """A stack with its grid, turned."""
    array, padding, affine, spacing = image.array, image.padding, grid.affine, grid.spacing
    said = [*notes, *grid.notes]
    if affine is not None:
        array, turned = turn_to_canonical(array, affine)
        padding = None if padding is None else np.ascontiguousarray(turn_to_canonical(padding, affine)[0])
        depth, height, width = axes_of(affine)
        spacing = (spacing[depth], spacing[height], spacing[width])
        affine = turned
        said += shear_notes(affine)
    return Volume(
        np.ascontiguousarray(array), spacing, affine, image.range, image.bits, image.inverted,
        tuple(dict.fromkeys(said)), image.modality, image.series, padding,
    )  # fmt: skip
