"""Reading a volume: from one file that holds all of it, or from a file for each slice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bolus.data.readers.own import NONE, Readers
from bolus.data.readers.readers import naming, quiet
from bolus.data.readers.room import Room
from bolus.data.volumes.dicom import lay_files, read_slices
from bolus.data.volumes.joining import join_slices
from bolus.data.volumes.nifti import read_canonical
from bolus.data.volumes.stack import read_stack
from bolus.data.volumes.volume import Volume, find_turn, shear_notes, turn_affine
from bolus.errors import ImageError, UsageError

HELD = 13  # bytes of a voxel while slices are joined and turned: float32 twice, its padding, and one slice's own


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
        kind = kind_of(paths, readers)
        if kind == "NIfTI":
            if len(set(paths)) > 1:
                raise ImageError(f"expected one NIfTI file a volume, found {len(set(paths))}")
            return read_canonical(paths[0], asked, room.claim)
        if kind == "DICOM":
            return _read_dicom(paths, asked, reading, room)
        return read_stack(paths, asked, reading, readers, room.claim)


def kind_of(paths: Sequence[Path], readers: Readers) -> str:
    """What the files of one volume are: `own`, `NIfTI`, `DICOM` or `image`; an ImageError where they are several."""
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
    slices, grid, _ = lay_files(paths, asked, reading)
    rows, columns = slices[int(grid.order[0])].plane.shape
    depth = len(grid.order)
    room.claim(rows * columns * depth * HELD, f"{depth} slices of {columns} x {rows} pixels")
    places = np.full(len(slices), -1)
    places[grid.order] = np.arange(depth)
    kept = np.flatnonzero(places >= 0)
    image = join_slices(read_slices([slices[number] for number in kept.tolist()], reading), places[kept])
    array, padding, affine, spacing = image.array, image.padding, grid.affine, grid.spacing
    said = [*grid.notes, *image.notes]
    if affine is not None:
        turn = find_turn(affine)
        affine = turn_affine(affine, turn, array.shape[1:])
        array = turn.apply(array)
        padding = None if padding is None else np.ascontiguousarray(turn.apply(padding))
        depth_step, height_step, width_step = (spacing[axis] for axis in turn.axes)
        spacing = (depth_step, height_step, width_step)
        said += shear_notes(affine)
    return Volume(
        np.ascontiguousarray(array), spacing, affine, image.range, image.bits, image.inverted,
        tuple(dict.fromkeys(said)), image.modality, image.series, padding,
    )  # fmt: skip
