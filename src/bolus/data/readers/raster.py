"""PNG, JPEG, TIFF and BMP images, decoded by Pillow: 16 bits stay 16 bits, and the camera's orientation is honoured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL.Image
from PIL import ImageOps

from bolus.data.pixels.codestreams import decode_checked
from bolus.data.pixels.image import Image, Range, check_frame, own_range
from bolus.data.pixels.square import find_aspect, oblong_notes
from bolus.data.readers.intact import check_intact
from bolus.data.readers.room import Claim, check_size
from bolus.errors import ImageError

_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # of EXIF: rows and columns change places
_NO_DEEP_COLOUR = (
    "colour (or grey with alpha) at more than 8 bits, of which the decoder would keep 8: "
    "save it as 8-bit colour, or as grey without alpha at 16 bits"
)
_IN_PILLOW = {"1": 1, "L": 1, "P": 1}  # bytes of a pixel, as Pillow holds it; 4 in all other modes but those of 16 bits


def read_raster(path: Path, kind: str, *, frame: int | None = None, claim: Claim = check_size) -> Image:
    """One PNG, JPEG, TIFF or BMP file; `bolus.data.readers.readers.read_image` adds its name to errors.

    Palettes, CMYK and YCbCr become RGB and alpha is dropped, each with a note. Pages of a TIFF are frames, without
    those that are smaller copies or masks.

    Args:
        path: the file.
        kind: its format: `PNG`, `JPEG`, `TIFF` or `BMP`.
        frame: which page, from 0; only this one is decoded.
        claim: room in memory, before anything is decoded.

    Returns:
        Image with float32 `[C, H, W]`, or `[C, T, H, W]` of several pages; the range is what the bits of the file
        hold, or that of `covering_range` for signed, 32-bit and float values. No spacing, since a density is mostly
        that of a screen; but where it is another one across than down, pixels are oblong (not in BMP).

    Raises:
        ImageError: damage as far as `bolus.data.readers.intact` sees it, colour at more than 8 bits, pages of several
            sizes, values that are not finite; TooLargeError: more memory than there is room for.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     PIL.Image.fromarray(np.array([[0, 255]], np.uint8)).save(Path(folder) / "a.png")
        ...     read_raster(Path(folder) / "a.png", "PNG").range
        Range(low=0.0, high=255.0, rule='container')
    """
    with path.open("rb") as stream, PIL.Image.open(stream, formats=(kind,)) as opened:
        if opened.format == "PNG":
            position = stream.tell()
            stream.seek(24)  # in IHDR; Pillow does not keep it
            depth, colour = stream.read(2)
            stream.seek(position)
            if depth == 16 and colour != 0:
                raise ImageError(_NO_DEEP_COLOUR)
        pages = find_pages(opened)
        if frame is not None:
            pages = [pages[check_frame(frame, len(pages))]]
        claim(*decoded_size(opened, pages))
        pixels = _decode_jpeg(stream, opened)
        notes = dict.fromkeys(check_intact(stream, opened, pages, decoding=True) if pixels is None else ())
        decoded = [_decode_page(opened, page, notes, pixels) for page in pages]
    if len({(page.array.shape, page.array.dtype, page.aspect) for page in decoded}) > 1:
        raise ImageError(
            f"expected pages of one size and type, found several among {len(decoded)}: read them by `frame`"
        )
    array, bits, inverted, aspect = decoded[0]
    if len(pages) > 1:
        array = np.stack([page.array for page in decoded], axis=1)
    if array.dtype in (np.uint8, np.uint16):
        value_range = Range(0.0, float(2**bits - 1), "container")
    else:
        value_range = own_range(array)
    said = (*notes, *oblong_notes(aspect))
    values = np.empty(array.shape, np.float32)
    for channel, plane in zip(values, array, strict=True):  # one after another, which is faster where they alternate
        channel[:] = plane
    return Image(values, None, value_range, bits, inverted, said, aspect=aspect)


def find_pages(opened: PIL.Image.Image) -> list[int]:
    """The pages of a TIFF that are neither a smaller copy nor a mask (tag NewSubfileType); one page of all others."""
    if opened.format != "TIFF":
        return [0]
    number, pages = getattr(opened, "n_frames", 1), []
    for page in range(number):
        opened.seek(page)
        if not int(_tag(opened, 254, 0)) & 0b101:
            pages.append(page)
    return pages or list(range(number))


def decoded_size(opened: PIL.Image.Image, pages: list[int], *, wide: int = 4) -> tuple[int, str]:
    """Bytes that decoding these pages holds at most, as their headers say, and of what; for a `Claim`.

    Args:
        opened: the file; of a TIFF, on whichever page.
        pages: those that will be decoded.
        wide: bytes of a value in the end.

    >>> decoded_size(PIL.Image.new("L", (100, 10)), [0])
    (6000, '100 x 10 pixels')
    """
    size, what = 0, ""
    for page in pages:
        if opened.format == "TIFF":
            opened.seek(page)
        mode, (width, height) = opened.mode, opened.size
        held = 2 if mode.startswith("I;16") else _IN_PILLOW.get(mode, 4)
        turns = opened.format != "PNG" and opened.getexif().get(_ORIENTATION, 1) != 1  # a PNG would be decoded for it
        turned = held if turns else 0
        palette = mode in ("P", "PA")
        samples = 3 if palette else len(opened.getbands())
        array = held if samples == 1 else samples
        tile = math.prod(int(_tag(opened, each, 0)) for each in (322, 323)) * samples * held
        strip = width * min(int(_tag(opened, 278, 0)), height) * samples * held
        size += width * height * (held + turned + array + wide * samples + (4 if palette else 0)) + max(tile, strip)
        what = f"{width} x {height} pixels"
    return size, what if len(pages) == 1 else f"{len(pages)} pages of {what}"


def _tag(opened: PIL.Image.Image, number: int, default: Any) -> Any:
    """A tag of the current page of a TIFF."""
    return getattr(opened, "tag_v2", {}).get(number, default)


class _Page(NamedTuple):
    """One page: `[C, H, W]` in the type it is stored in, its significant bits, whether bright is low, its aspect."""

    array: npt.NDArray[Any]
    bits: int
    inverted: bool
    aspect: float


def _decode_jpeg(stream: BinaryIO, opened: PIL.Image.Image) -> npt.NDArray[np.uint8] | None:
    """The pixels of a JPEG, `[H, W]` or `[H, W, 3]`, if it lies as it is shown and nothing is to be said of it."""
    if opened.format != "JPEG" or opened.mode not in ("L", "RGB") or opened.getexif().get(_ORIENTATION, 1) != 1:
        return None
    position = stream.tell()
    stream.seek(0)
    pixels = decode_checked(stream.read(), opened.mode)
    stream.seek(position)
    return pixels if pixels is not None and pixels.shape[:2] == opened.size[::-1] else None


def _decode_page(
    opened: PIL.Image.Image, page: int, notes: dict[str, None], pixels: npt.NDArray[np.uint8] | None
) -> _Page:
    """A page of a file, whose pixels may have been decoded already."""
    tiff = opened.format == "TIFF"
    if tiff:
        opened.seek(page)
    depths = np.atleast_1d(_tag(opened, 258, 8))
    if tiff and len(depths) > 1 and max(depths) > 8:
        raise ImageError(_NO_DEEP_COLOUR)
    white_is_zero, unsigned = _tag(opened, 262, 1) == 0, int(np.atleast_1d(_tag(opened, 339, 1))[0]) == 1
    if pixels is not None:
        array = pixels[..., None] if pixels.ndim == 2 else pixels
        return _Page(np.moveaxis(array, -1, 0), 8, False, _aspect(opened))
    aspect, turned = _aspect(opened), opened.getexif().get(_ORIENTATION, 1) != 1
    picture = ImageOps.exif_transpose(opened) if turned else opened
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
    return _Page(np.moveaxis(array, -1, 0), bits, inverted, aspect)


def _aspect(opened: PIL.Image.Image) -> float:
    """Height over width of a pixel of the current page as it is shown, from its density along either axis."""
    if opened.format == "TIFF":
        density = (_tag(opened, 282, 1), _tag(opened, 283, 1))
    elif opened.format == "PNG":
        density = opened.info.get("aspect", opened.info.get("dpi", (1, 1)))
    else:
        density = opened.info.get("jfif_density", (1, 1))
    try:
        across, down = (float(each) for each in density)
    except (TypeError, ValueError, ZeroDivisionError):
        return 1.0
    turned = opened.getexif().get(_ORIENTATION, 1) in _TURNED
    return find_aspect(down, across) if turned else find_aspect(across, down)
