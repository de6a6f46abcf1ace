"""NIfTI volumes as axial slices that look like those of DICOM, whatever the order of axes in the file."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bolus.data.pixels.image import Image, check_frame, own_range
from bolus.data.pixels.packed import check_plausible, read_to_end
from bolus.data.pixels.square import find_aspect, oblong_notes
from bolus.data.readers.room import Claim, check_size
from bolus.errors import ImageError, MissingDecoderError, require

_OF_FORM = ("magic", "regular")  # text of a header that says no more than that it is one


def read_nifti(path: Path, *, frame: int | None = None, claim: Claim = check_size) -> Image:
    """One NIfTI-1 or NIfTI-2 file, packed by gzip or not; `data.readers.readers.read_image` adds its name to errors.

    The volume is turned to the closest of the anatomical axes and read as axial slices: slice 0 is the lowest
    (inferior) and the index runs to superior; row 0 is anterior and runs to posterior; column 0 is the patient's right
    and runs to the left. In the array of the closest canonical (RAS) image that is
    `array[0, s, r, c] = ras[X - 1 - c, Y - 1 - r, s]`.

    Args:
        path: the file.
        frame: which axial slice, from 0; only this one is decoded.
        claim: room in memory, before anything is decoded.

    Returns:
        Image with float32 `[1, T, H, W]`, or `[1, H, W]` of a single slice; spacing in mm, (slice, row, column). Its
        range is that of `covering_range` over what was read: a slice may have a smaller one than its volume.

    Raises:
        ImageError: more than three axes, voxels that are not one finite number each, a degenerate affine, fewer bytes
            than the header says, or a wrong checksum of gzip; TooLargeError: more memory than there is room for.

    Example:
        >>> import tempfile, nibabel
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     volume = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(4, 3, 2), np.diag([1, 1, 5, 1]))
        ...     nibabel.save(volume, Path(folder) / "a.nii")
        ...     image = read_nifti(Path(folder) / "a.nii")
        >>> image.array.shape, image.spacing, image.array[0, 0, 0, 0]
        ((1, 2, 3, 4), (5.0, 1.0, 1.0), np.float32(22.0))
    """
    with _unpacked(path) as (nibabel, stream, version, packed):
        volume = _volume(nibabel, stream, version)
        last = _check_length(path, volume.header, packed)
        image = _axial(volume, frame, claim, packed)
        if packed:
            read_to_end(stream, last)
        return image


def count_slices(path: Path) -> int:
    """How many axial slices `read_nifti` finds, from the header.

    Raises:
        ImageError: the file cannot hold as many as it says.
    """
    nibabel = require("nibabel", "NIfTI files", MissingDecoderError)
    header, packed = read_header(path)
    _check_length(path, header, packed)
    axes = nibabel.io_orientation(header.get_best_affine())[:, 0]
    shape = (*header.get_data_shape(), 1, 1, 1)[:3]
    return max([int(length) for length, axis in zip(shape, axes, strict=True) if axis == 2], default=1)


def read_affine(path: Path) -> npt.NDArray[np.float64]:
    """Where the voxels of a NIfTI file lie, once turned to the closest anatomical axes; only the header is read.

    Two files with one such affine, and voxels of one number along each axis, lie on each other as `read_nifti` reads
    them, whatever the order of axes in either file. Without an orientation in the header it is the assumed one.

    Args:
        path: a NIfTI file.

    Returns:
        float64 `[4, 4]`, from (x, y, z, 1) of the closest canonical (RAS) image to mm.

    Raises:
        ValueError: a damaged header; a degenerate affine gives NaN.

    Example:
        >>> import tempfile, nibabel
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     volume = nibabel.Nifti1Image(np.zeros((4, 3, 2), np.int16), np.diag([-1, 1, 5, 1]))
        ...     nibabel.save(volume, Path(folder) / "a.nii")
        ...     read_affine(Path(folder) / "a.nii")[0].tolist()
        [1.0, 0.0, 0.0, -3.0]
    """
    with _opened(path) as volume:
        import nibabel

        shape = (*volume.shape, 1, 1)[:3]
        affine = np.asarray(volume.affine, np.float64)
        orientation = nibabel.io_orientation(affine)
        if np.isnan(orientation).any():
            return np.full((4, 4), np.nan)
        found: npt.NDArray[np.float64] = affine @ nibabel.orientations.inv_ornt_aff(orientation, shape)
        found[:3] *= _to_mm(volume.header)
        return found


def read_header(path: Path) -> tuple[Any, bool]:
    """The header of a NIfTI-1 or NIfTI-2 file as nibabel has it, and whether the file is packed by gzip.

    Raises:
        ValueError: a damaged header; other errors of nibabel and gzip likewise.
    """
    with _unpacked(path) as (nibabel, stream, version, packed):
        return getattr(nibabel, f"Nifti{version}Header").from_fileobj(stream), packed


def write_labels_like(image: Path, labels: Mapping[int, npt.NDArray[np.int64]], out: Path) -> None:
    """Write a label map with the voxels, axes and affines of a NIfTI file: what `read_nifti` reads, put back.

    Text of its header and extensions, which may name a person, is left out.

    Args:
        image: the file whose geometry is taken; only its header is read.
        labels: axial slice, as `read_nifti` counts them -> whole numbers from 0, `[H, W]`; other slices are 0.
        out: .nii or .nii.gz.

    Raises:
        ImageError: slices of another size than the image's, or that it does not have.

    Example:
        >>> import tempfile, nibabel
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     image, mask = Path(folder) / "a.nii", Path(folder) / "m.nii.gz"
        ...     nibabel.save(nibabel.Nifti1Image(np.zeros((4, 3, 2), np.int16), np.diag([-1, 1, 5, 1])), image)
        ...     write_labels_like(image, {1: np.eye(3, 4, dtype=np.int64)}, mask)
        ...     read_nifti(mask).array[0, 1].tolist(), read_affine(mask).tolist() == read_affine(image).tolist()
        ([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]], True)
    """
    with _opened(image) as volume:
        import nibabel

        shape = (*volume.shape, 1, 1)[:3]
        orientation = nibabel.io_orientation(volume.affine)
        axial = tuple(shape[int(np.flatnonzero(orientation[:, 0] == axis)[0])] for axis in (2, 1, 0))
        highest = max((int(each.max()) for each in labels.values()), default=0)
        array = np.zeros(axial, np.min_scalar_type(highest))
        for number, each in labels.items():
            if each.shape != axial[1:] or not 0 <= number < axial[0]:
                raise ImageError(f"slice {number}: expected one of {axial[0]}, {list(axial[1:])}, found {each.shape}")
            array[number] = each
        ras = array.transpose(2, 1, 0)[::-1, ::-1]
        back = nibabel.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], orientation)
        header = volume.header.copy()
        header.set_data_dtype(array.dtype)
        header.set_slope_inter(1, 0)
        for name in ("cal_min", "cal_max", "intent_code"):
            header[name] = 0
        for name in (each for each in header if each not in _OF_FORM and header[each].dtype.kind == "S"):
            header[name] = b""
        header.extensions = type(header.extensions)()
        header["vox_offset"] = 0  # the smallest there can be
        voxels = np.ascontiguousarray(nibabel.apply_orientation(ras, back)).reshape(volume.shape)
        made = type(volume)(voxels, None, header)
    made.to_filename(out)


def write_label_stack(
    labels: npt.NDArray[Any], affine: npt.NDArray[np.float64], out: Path, *, code: str = "scanner"
) -> None:
    """A label map `[T, H, W]`, whole numbers from 0 in the order of its slices, as a NIfTI file with its affine.

    Args:
        labels: the map.
        affine: float64 `[4, 4]`, from (column, row, slice, 1) to mm.
        out: .nii or .nii.gz.
        code: what NIfTI calls the space of the affine; `aligned` where the sides of the body are not known.
    """
    nibabel = require("nibabel", "NIfTI files", MissingDecoderError)
    voxels = labels.transpose(2, 1, 0).astype(np.min_scalar_type(int(labels.max(initial=0))))
    made = nibabel.Nifti1Image(np.ascontiguousarray(voxels), affine)
    made.set_sform(affine, code=code)
    made.set_qform(affine, code=code)
    made.header.set_xyzt_units("mm")
    made.to_filename(out)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The volume in a file, whose voxels are not read yet."""
    with _unpacked(path) as (nibabel, stream, version, _):
        yield _volume(nibabel, stream, version)


def _volume(nibabel: Any, stream: Any, version: int) -> Any:
    image = getattr(nibabel, f"Nifti{version}Image")
    return image.from_file_map({"image": nibabel.FileHolder(fileobj=stream)}, mmap=False)


@contextmanager
def _unpacked(path: Path) -> Iterator[tuple[Any, Any, int, bool]]:
    """Nibabel, the unpacked bytes of a file, the version of NIfTI, and whether the file is packed."""
    nibabel = require("nibabel", "NIfTI files", MissingDecoderError)
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as stream:
        second = stream.read(8)[4:] == b"n+2\0"
        stream.seek(0)
        yield nibabel, stream, 2 if second else 1, packed


def _check_length(path: Path, header: Any, packed: bool) -> int:
    """Where the last voxel ends, once all of them can be in a file, as long as it is."""
    shape = [int(length) for length in header.get_data_shape()]
    if min(shape, default=1) < 1:
        raise ImageError(f"expected a volume, found shape {tuple(shape)}")
    needed = int(header["vox_offset"]) + math.prod(shape) * header.get_data_dtype().itemsize
    check_plausible(path, needed, f"{' x '.join(map(str, shape))} voxels", packed=packed)
    return int(needed)


def _to_mm(header: Any) -> float:
    return {"meter": 1000.0, "micron": 0.001}.get(header.get_xyzt_units()[0], 1.0)


def _axial(volume: Any, frame: int | None, claim: Claim, packed: bool) -> Image:
    import nibabel
    from nibabel.volumeutils import apply_read_scaling

    shape = (*volume.shape, 1, 1)[: max(3, len(volume.shape))]
    if any(length != 1 for length in shape[3:]):
        raise ImageError(f"expected a volume of three axes, found shape {volume.shape}: split it into one file each")
    kind = volume.get_data_dtype()
    if kind.kind not in "iuf":
        raise ImageError(f"expected one number a voxel, found {kind}")
    orientation = nibabel.io_orientation(volume.affine)
    if np.isnan(orientation).any():
        raise ImageError("expected an affine with three directions, found a degenerate one")
    stored = {int(axis): position for position, axis in enumerate(orientation[:, 0])}  # of R, A, S in the file
    window: list[slice] = [slice(None)] * len(volume.shape)
    if frame is not None:
        check_frame(frame, shape[stored[2]])
        index = frame if orientation[stored[2], 1] > 0 else shape[stored[2]] - 1 - frame
        if stored[2] < len(window):
            window[stored[2]] = slice(index, index + 1)
    whole = math.prod(shape)
    pixels = whole if frame is None or packed else whole // shape[stored[2]]  # to a slice, all before it is unpacked
    apart = frame is not None and stored[2] < len(volume.shape) - 1  # slices that do not lie one after another
    claim(pixels * (kind.itemsize + 5) + apart * whole * kind.itemsize, f"{' x '.join(map(str, shape[:3]))} voxels")
    voxels = volume.dataobj.get_unscaled() if frame is None else np.asanyarray(volume.dataobj[tuple(window)])
    ras = nibabel.apply_orientation(voxels.reshape((*voxels.shape, 1, 1)[:3]), orientation)
    slices = ras[::-1, ::-1].transpose(2, 1, 0)
    array = np.empty((1, *slices.shape), np.float32)
    slope, inter = (volume.dataobj.slope, volume.dataobj.inter) if frame is None else (1.0, 0.0)
    with np.errstate(over="ignore"):
        for number, each in enumerate(slices):  # one at a time, since scaling is in float64
            array[0, number] = apply_read_scaling(each, slope, inter)
    header = volume.header
    factor = _to_mm(header)
    zooms = (*(float(zoom) * factor for zoom in header.get_zooms()[:3]), math.nan, math.nan)[:3]
    spacing: tuple[float, ...] = tuple(zooms[stored[axis]] or math.nan for axis in (2, 1, 0))
    notes = orientation_notes(header)
    if max(spacing) > 2 * spacing[0]:
        notes.append("the axial slices are not the acquired ones, which lie along the axis of the largest spacing")
    if array.shape[1] == 1:
        array, spacing = array[:, 0], spacing[1:]
    aspect = find_aspect(*spacing[-2:])
    notes += oblong_notes(aspect)
    return Image(array, spacing, own_range(array), 8 * kind.itemsize, False, tuple(notes), aspect=aspect)


def orientation_notes(header: Any) -> list[str]:
    """What a person should know of how a header says that its voxels lie."""
    notes = []
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        notes.append("no orientation in the header: axes assumed to run left, anterior, superior")
    if _sides_disagree(header):
        notes.append("sform and qform disagree on left and right: the sform was taken")
    return notes


def _sides_disagree(header: Any) -> bool:
    """Whether both affines of a header are set, and one is the mirror image of the other, or runs right to left."""
    import nibabel

    try:
        affines = [header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]]
    except ValueError:  # a quaternion that is none
        return False
    if any(affine is None for affine in affines):
        return False
    sform, qform = (nibabel.io_orientation(affine) for affine in affines)  # [3, 2]: anatomical axis, and its direction
    turned = ((sform[:, 0] == 0) & (qform[:, 0] == 0) & (sform[:, 1] != qform[:, 1])).any()
    mirrored = np.linalg.det(affines[0][:3, :3]) * np.linalg.det(affines[1][:3, :3]) < 0
    return bool(turned or mirrored)
