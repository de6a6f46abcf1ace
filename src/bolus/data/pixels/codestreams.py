"""What a compressed picture says of itself before it is decoded, and whether its decoder complains."""

from __future__ import annotations

import io
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL.Image

from bolus.errors import ImageError

UNVERIFIED = "the codes of the JPEG were not verified: pip install simplejpeg"

_FRAMES = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}  # start of a frame, in JPEG and JPEG-LS
_ALONE = frozenset({0x01, *range(0xD0, 0xDA)})  # markers without a length
_J2K = b"\xff\x4f\xff\x51"  # start of codestream, and the size of the image


class Size(NamedTuple):
    """Rows, columns and samples of a pixel, as a codestream has them."""

    rows: int
    columns: int
    samples: int


def find_size(data: bytes) -> Size | None:
    r"""The size that a JPEG, JPEG-LS or JPEG 2000 codestream will be decoded to; None where it says none.

    >>> find_size(b"\xff\xd8\xff\xc0\0\x0b\x08\0\x10\0\x20\x01\x01\x11\0")
    Size(rows=16, columns=32, samples=1)
    """
    if data.startswith(b"\xff\xd8"):
        return _of_jpeg(data)
    at = data[:4096].find(_J2K)
    if at < 0 or len(data) < at + 42:
        return None
    right, bottom, left, top = (int.from_bytes(data[at + k : at + k + 4], "big") for k in (8, 12, 16, 20))
    return Size(bottom - top, right - left, int.from_bytes(data[at + 40 : at + 42], "big"))


def check_jpeg(data: bytes) -> str:
    """Raise ImageError where libjpeg warns of the codes of a JPEG, which Pillow keeps to itself.

    That is most damage that shifts what comes after it, and no other: a flipped bit may stand for another grey.

    Args:
        data: from start to end of one image.

    Returns:
        What a person should know where nothing could be verified; else empty.
    """
    try:
        import simplejpeg
    except ImportError:
        return UNVERIFIED
    try:
        _decode(simplejpeg, data, strict=True)
    except ValueError as complaint:
        try:
            _decode(simplejpeg, data, strict=False)
        except ValueError:  # a kind that this decoder does not know, such as one of 12 bits
            return ""
        raise ImageError(f"damaged: {complaint}") from None
    return ""


def decode_checked(data: bytes, mode: str) -> npt.NDArray[np.uint8] | None:
    """Check and decode a JPEG at once: its pixels as Pillow gives them, where `check_jpeg` has nothing to say of it.

    Args:
        data: from start to end of one image.
        mode: `L` or `RGB`.

    Returns:
        `[H, W]` or `[H, W, 3]`; None where the decoder warns, is not there, or is none that gives what Pillow gives.
    """
    if not _is_like_pillow():
        return None
    import simplejpeg

    try:
        return _pixels(simplejpeg, data, mode)
    except ValueError:
        return None


def _pixels(simplejpeg: Any, data: bytes, mode: str) -> npt.NDArray[np.uint8]:
    colours = {"L": "GRAY", "RGB": "RGB"}[mode]
    found = simplejpeg.decode_jpeg(data, colours, fastdct=False, fastupsample=False, strict=True)
    return np.asarray(found[..., 0] if mode == "L" else found)


@cache
def _is_like_pillow() -> bool:
    """Whether simplejpeg and Pillow decode some pictures to the same bits, as two builds of libjpeg-turbo do."""
    try:
        import simplejpeg
    except ImportError:
        return False
    noise = np.random.default_rng(0).integers(0, 256, (45, 83, 3), np.uint8)
    for mode, options in (("L", {}), ("RGB", {"subsampling": 2}), ("RGB", {"subsampling": 1, "progressive": True})):
        file = io.BytesIO()
        PIL.Image.fromarray(noise[..., 0] if mode == "L" else noise).save(file, "JPEG", quality=60, **options)
        with PIL.Image.open(file) as opened:
            if not np.array_equal(np.asarray(opened), _pixels(simplejpeg, file.getvalue(), mode)):
                return False
    return True


def _decode(simplejpeg: Any, data: bytes, *, strict: bool) -> None:
    """All codes, to an eighth of the size."""
    colours = simplejpeg.decode_jpeg_header(data, strict=False)[2]
    wanted = "CMYK" if colours in ("CMYK", "YCCK") else "GRAY"
    simplejpeg.decode_jpeg(data, wanted, min_height=1, min_width=1, min_factor=8, strict=strict)


def _of_jpeg(data: bytes) -> Size | None:
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _ALONE:
            at += 2
        elif marker in _FRAMES:
            if len(data) < at + 10:
                return None
            return Size(
                int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big"), data[at + 9]
            )
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
