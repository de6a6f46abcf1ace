"""Image files as arrays in the units they were stored in, with the rule that maps them to [0, 1].

`read_image` reads DICOM (`bolus.data.dicom`), NIfTI, PNG, JPEG, TIFF and BMP; what a file is, its first bytes say. The
pixels are right by default: 16 bits stay 16 bits, rescale slopes and lookup tables are applied, orientation is
honoured, and what cannot be read rightly is an `ImageError` that names the file without its folders.
"""

from __future__ import annotations

import gzip
import logging
import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
import numpy.typing as npt
import PIL.Image
from PIL import ImageOps

from bolus.errors import ImageError, UsageError

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


def read_image(path: str | Path, *, window: tuple[float, float] | None = None, frame: int | None = None) -> Image:
    """Reads one image file; safe to call from many threads.

    A single frame gives `[C, H, W]`; several frames, the pages of a TIFF or the slices of a volume give
    `[C, T, H, W]`, and `frame` picks one of them.

    *NIfTI* volumes are turned to the closest of the anatomical axes, whatever the order in the file, and read as axial
    slices that look like axial DICOM slices: slice 0 is the lowest (inferior) and the index runs to superior; row 0 is
    anterior and the index runs to posterior; column 0 is the patient's right and the index runs to the left. Spacing
    is (slice, row, column). In the array of the closest canonical (RAS) image `ras[x, y, z]` that is
    `array[0, s, r, c] = ras[X - 1 - c, Y - 1 - r, s]`. The recorded range is that of `covering_range` over what was
    read, the starting point for the cohort's rule: a slice may have a smaller one than its volume.

    *DICOM* values are after the modality LUT or rescale; of a multi-frame file all frames have one range.

    Args:
        path: the file.
        window: (center, width) in modality units, in place of any the file states. In a DICOM file as its own window
            would be read (PS3.3 C.11.2.1.2: LINEAR, 1 shorter than its width, unless the file says LINEAR_EXACT); in
            other files exactly center - width/2 to center + width/2.
        frame: which frame, page or slice, from 0; only this one is decoded where the format allows.

    Raises:
        ImageError: no such file, no image, damaged, or of a kind that cannot be read rightly (16-bit colour PNG and
            TIFF, 4-D NIfTI). The message has the file's name without its folders.
        MissingDecoderError: the message says what to install.
        UsageError: a window whose width is not positive.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     PIL.Image.fromarray(np.array([[0, 65535]], np.uint16)).save(Path(folder) / "a.png")
        ...     image = read_image(Path(folder) / "a.png")
        >>> image.array.tolist(), image.range.rule, image.bits
        ([[[0.0, 65535.0]]], 'container', 16)
    """
    path = Path(path)
    if window is not None and not (math.isfinite(window[0]) and math.isfinite(window[1]) and window[1] > 0):
        raise UsageError(f"window: expected (center, width) with width > 0, found {window}")
    kind = "image"
    try:
        with _quiet():
            kind = _kind(path)
            if kind == "DICOM":
                from bolus.data.dicom import read_dicom  # needs Image from here

                image = read_dicom(path, window=window, frame=frame)
            elif kind == "NIfTI":
                image = _read_nifti(path, frame)
            else:
                image = _read_raster(path, kind, frame)
    except ImageError as error:
        raise type(error)(f"{path.name}: {error}") from error
    except UsageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path.name}: no such file") from None
    except Exception as error:  # whatever a decoder throws at a damaged file
        reason = str(error).strip() or type(error).__name__
        for spelling in {str(path), repr(str(path))[1:-1], str(path.resolve())}:
            reason = reason.replace(spelling, path.name)
        reason = reason.splitlines()[0][:200]
        raise ImageError(f"{path.name}: damaged, or not a {kind} file that can be read: {reason}") from error
    if window is not None and image.range.rule != "window":
        image.range = Range(window[0] - window[1] / 2, window[0] + window[1] / 2, "window")
    return image


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


def _kind(path: Path) -> str:
    """What a file is, from its first bytes."""
    with path.open("rb") as stream:
        head = stream.read(352)
    if not head:
        raise ImageError("the file is empty")
    packed = head[:2] == b"\x1f\x8b"
    if packed:
        with gzip.open(path) as stream:
            head = stream.read(352)
    if _is_nifti(head):
        return "NIfTI"
    if packed:
        raise ImageError("a gzip file that holds no NIfTI: unpack it first")
    if head[128:132] == b"DICM":
        return "DICOM"
    starts = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP"}
    starts |= dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF")
    for start, kind in starts.items():
        if head.startswith(start):
            return kind
    # An old DICOM file begins with no mark; an instance UID as the name leaves a number where a suffix would be.
    if path.suffix.lower() in ("", ".dcm", ".dicom") or path.suffix[1:].isdigit():
        return "DICOM"
    raise ImageError("expected a DICOM, NIfTI, PNG, JPEG, TIFF or BMP file, found none of these")


def _is_nifti(head: bytes) -> bool:
    """Whether a header of 352 bytes is one of NIfTI-1 or 2, in either byte order."""
    size = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")}
    if (348 in size and head[344:348] == b"ni1\0") or (540 in size and head[4:8] == b"ni2\0"):
        raise ImageError("a NIfTI header apart from its voxels: convert the pair of files to one .nii")
    return (348 in size and head[344:348] == b"n+1\0") or (540 in size and head[4:8] == b"n+2\0")


# Pillow: PNG, JPEG, TIFF, BMP ------------------------------------------------------------


def _read_raster(path: Path, kind: str, frame: int | None) -> Image:
    with path.open("rb") as stream, PIL.Image.open(stream, formats=(kind,)) as opened:
        if opened.format == "PNG":
            position = stream.tell()
            stream.seek(24)  # in IHDR; Pillow does not keep it
            depth, colour = stream.read(2)
            stream.seek(position)
            if depth == 16 and colour != 0:
                raise ImageError(_NO_DEEP_COLOUR)
        pages = _pages(opened)
        if frame is not None:
            pages = [pages[check_frame(frame, len(pages))]]
        notes: dict[str, None] = {}
        decoded = [_decode_page(opened, page, notes) for page in pages]
    arrays = [array for array, _, _ in decoded]
    if len({(array.shape, array.dtype) for array in arrays}) > 1:
        raise ImageError(
            f"expected pages of one size and type, found several among {len(arrays)}: read them by `frame`"
        )
    array, (_, bits, inverted) = np.stack(arrays, axis=1), decoded[0]
    array = array[:, 0] if len(pages) == 1 else array
    if array.dtype in (np.uint8, np.uint16):
        value_range = Range(0.0, float(2**bits - 1), "container")
    else:
        value_range = own_range(array)
    return Image(array.astype(np.float32), None, value_range, bits, inverted, tuple(notes))


_NO_DEEP_COLOUR = (
    "colour (or grey with alpha) at more than 8 bits, of which the decoder would keep 8: "
    "save it as 8-bit colour, or as grey without alpha at 16 bits"
)


def _pages(opened: PIL.Image.Image) -> list[int]:
    """The pages of a TIFF that are neither a smaller copy nor a mask (tag NewSubfileType); one page of all others."""
    if opened.format != "TIFF":
        return [0]
    number, pages = getattr(opened, "n_frames", 1), []
    for page in range(number):
        opened.seek(page)
        if not int(_tag(opened, 254, 0)) & 0b101:
            pages.append(page)
    return pages or list(range(number))


def _tag(opened: PIL.Image.Image, number: int, default: Any) -> Any:
    """A tag of the current page of a TIFF."""
    return getattr(opened, "tag_v2", {}).get(number, default)


def _decode_page(opened: PIL.Image.Image, page: int, notes: dict[str, None]) -> tuple[npt.NDArray[Any], int, bool]:
    """One page as `[C, H, W]` in the type it is stored in, its significant bits, and whether bright is low."""
    tiff = opened.format == "TIFF"
    if tiff:
        opened.seek(page)
    depths = np.atleast_1d(_tag(opened, 258, 8))
    if tiff and len(depths) > 1 and max(depths) > 8:
        raise ImageError(_NO_DEEP_COLOUR)
    white_is_zero, unsigned = _tag(opened, 262, 1) == 0, int(np.atleast_1d(_tag(opened, 339, 1))[0]) == 1
    picture = ImageOps.exif_transpose(opened)
    if picture.mode in ("P", "PA"):
        notes["palette expanded to RGB"] = None
        picture = picture.convert("RGBA" if picture.mode == "PA" or "transparency" in picture.info else "RGB")
    elif picture.mode in ("CMYK", "YCbCr"):
        notes[f"{picture.mode} converted to RGB"] = None
        picture = picture.convert("RGB")
    elif picture.mode in ("La", "RGBa"):
        picture = picture.convert(picture.mode.upper())
    array, bits, inverted = np.asarray(picture), 8, False
    if picture.mode in ("LA", "RGBA"):
        if (array[..., -1] < 255).any():
            notes["alpha channel dropped; it is not opaque everywhere"] = None
        array = array[..., :-1]
    elif picture.mode == "1":
        array, bits = array.astype(np.uint8), 1
    elif picture.mode.startswith("I;16"):
        array, bits = array.astype(np.uint16), int(depths[0]) if tiff else 16
        inverted = white_is_zero  # Pillow turns 8 bits itself, not 16
    elif picture.mode == "I":
        bits = int(depths[0]) if tiff else 32
        array = array.view(np.uint32) if tiff and unsigned and bits == 32 else array
    elif picture.mode == "F":
        bits, inverted = 32, white_is_zero
    elif picture.mode not in ("L", "RGB"):
        raise ImageError(f"expected grey or RGB pixels, found mode {picture.mode}")
    array = array[..., None] if array.ndim == 2 else array
    return np.moveaxis(array, -1, 0), bits, inverted


# NIfTI ------------------------------------------------------------


def _read_nifti(path: Path, frame: int | None) -> Image:
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as stream:
        second = stream.read(8)[4:] == b"n+2\0"
        stream.seek(0)
        version = nibabel.Nifti2Image if second else nibabel.Nifti1Image
        volume = version.from_file_map({"image": nibabel.FileHolder(fileobj=stream)}, mmap=False)
        return _axial(volume, frame)


def _axial(volume: Any, frame: int | None) -> Image:
    """The axial slices of a NIfTI image; see `read_image` for where the indices run."""
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
    voxels = np.asanyarray(volume.dataobj[tuple(window)])
    ras = nibabel.apply_orientation(voxels.reshape((*voxels.shape, 1, 1)[:3]), orientation)
    array = np.ascontiguousarray(ras[::-1, ::-1].transpose(2, 1, 0), dtype=np.float32)[None]
    header = volume.header
    factor = {"meter": 1000.0, "micron": 0.001}.get(header.get_xyzt_units()[0], 1.0)
    zooms = (*(float(zoom) * factor for zoom in header.get_zooms()[:3]), math.nan, math.nan)[:3]
    spacing: tuple[float, ...] = tuple(zooms[stored[axis]] or math.nan for axis in (2, 1, 0))
    notes = []
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        notes.append("no orientation in the header: axes assumed to run left, anterior, superior")
    if max(spacing) > 2 * spacing[0]:
        notes.append("the axial slices are not the acquired ones, which lie along the axis of the largest spacing")
    if array.shape[1] == 1:
        array, spacing = array[:, 0], spacing[1:]
    value_range = own_range(array)
    return Image(array, spacing, value_range, 8 * kind.itemsize, False, tuple(notes))


# Silence ------------------------------------------------------------

_LIBRARIES = r"(pydicom|PIL|nibabel|pylibjpeg|openjpeg)(\.|$)"
_lock = threading.Lock()
_num_inside = 0
_restore: Any = None


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings or logs of the libraries that decode, and of those only; from the first thread in to the last out.

    `warnings.catch_warnings` changes the process, so threads that each entered it on their own would undo one another.
    """
    global _num_inside, _restore  # noqa: PLW0603
    printing, passing_on = logging.getLogger("nibabel.global"), logging.getLogger("pydicom")
    with _lock:
        if _num_inside == 0:
            caught = warnings.catch_warnings()
            _restore = (caught, printing.disabled, passing_on.propagate)
            caught.__enter__()
            warnings.filterwarnings("ignore", module=_LIBRARIES)
            printing.disabled, passing_on.propagate = True, False  # their messages hold whole paths
        _num_inside += 1
    try:
        yield
    finally:
        with _lock:
            _num_inside -= 1
            if _num_inside == 0:
                caught, printing.disabled, passing_on.propagate = _restore
                caught.__exit__(None, None, None)
