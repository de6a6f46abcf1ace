"""Whether a PNG, JPEG, TIFF or BMP file has what it says: checksums, rows and strips, and codes of which none is odd.

Pillow decodes what is there and fills up the rest, or says nothing of a checksum; so this is looked at before. Where a
format has no checksum, as uncompressed TIFF and BMP, a changed pixel cannot be told from a right one.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import PIL.Image

from bolus.data.pixels.codestreams import check_jpeg
from bolus.errors import ImageError

_PIECE, _PACKED = 2**20, 2**14  # bytes at a time, and packed ones, which unpack to 16 MiB at most
_USED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"pHYs", b"eXIf")  # chunks of a PNG from which something is taken
_SAMPLES = {2: 3, 4: 2, 6: 4}  # colour type of a PNG -> samples of a pixel; 1 of all others
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_MARKS: dict[str, Any] = {  # mode -> a colour that seldom fills a row
    "L": 91, "P": 91, "I;16": 23131, "LA": (91, 77), "RGB": (91, 142, 37), "RGBA": (91, 142, 37, 77),
}  # fmt: skip
_JPEG_IN_TIFF, _DEFLATE_IN_TIFF = 7, (8, 32946)


def check_intact(stream: BinaryIO, opened: Any, pages: list[int], *, decoding: bool = False) -> list[str]:
    """Raise ImageError where a file is damaged, or says that it has more than is there.

    Args:
        stream: the file; its position is kept.
        opened: the same, as Pillow has opened it; of a TIFF, on whichever page.
        pages: of a TIFF, those that will be decoded.
        decoding: decode a PNG as well, where that shows that its rows are there, which are else unpacked for it.

    Returns:
        What a person should know, in sentences.
    """
    position, notes = stream.tell(), list[str]()
    try:
        if opened.format == "PNG":
            _check_chunks(stream, unpacking=False)
            if not (decoding and _has_rows(stream, opened, position)):
                _check_chunks(stream, unpacking=True)
        elif opened.format == "BMP":
            _check_rows(stream)
        elif opened.format == "TIFF":
            for page in pages:
                opened.seek(page)
                notes += _check_strips(stream, opened.tag_v2)
        else:
            stream.seek(0)
            notes += [check_jpeg(stream.read())]
    finally:
        stream.seek(position)
    return [note for note in dict.fromkeys(notes) if note]


def _has_rows(stream: BinaryIO, opened: Any, position: int) -> bool:
    """Decode a PNG over one colour, and see whether its last row came to stand there; False where nobody can say.

    Pillow takes a stream that ends too early for a picture of which the last rows are what they were.
    """
    if opened.mode not in _MARKS or opened.info.get("interlace"):
        return False
    stream.seek(position)
    (width, height), mark = opened.size, _MARKS[opened.mode]
    opened.im = core = PIL.Image.new(opened.mode, opened.size, mark).im
    try:
        opened.load()
    except (OSError, SyntaxError, ValueError):
        _check_chunks(stream, unpacking=True)  # which says more exactly what is missing
        raise
    last, untouched = opened.crop((0, height - 1, width, height)), PIL.Image.new(opened.mode, (width, 1), mark)
    return opened.im is core and last.tobytes() != untouched.tobytes()


def _check_chunks(stream: BinaryIO, *, unpacking: bool) -> None:
    """The checksums of a PNG's chunks, up to its end or, where that is missing, the file's; or whether rows are there.

    Pillow takes a stream that ends too early for a picture whose last rows are black.
    """
    stream.seek(16)
    pixels = _Unpacking(_length_of_png(stream.read(13)))
    stream.seek(8)
    while len(head := stream.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind not in _USED:
            if kind == b"IEND":
                break
            stream.seek(length + 4, os.SEEK_CUR)
            continue
        checksum, left = zlib.crc32(kind), length
        while left and (piece := stream.read(min(left, _PIECE))):
            checksum, left = zlib.crc32(piece, checksum), left - len(piece)
            if unpacking and kind == b"IDAT":
                pixels.add(piece)
        stated = stream.read(4)
        if left or len(stated) < 4:
            raise ImageError("damaged: the file is cut off")
        if int.from_bytes(stated, "big") != checksum:
            raise ImageError(f"damaged: the checksum of its {kind.decode()} chunk is wrong")
    if unpacking:
        pixels.end()


class _Unpacking:
    """Counts what a zlib stream unpacks to, up to a length; what lies behind that is not looked at."""

    def __init__(self, needed: int) -> None:
        self.left, self._inside = needed, zlib.decompressobj()

    def add(self, piece: bytes) -> None:
        """The next bytes; an ImageError where they are damaged."""
        try:
            for start in range(0, len(piece), _PACKED):
                if self.left > -_PIECE and not self._inside.eof:
                    self.left -= len(self._inside.decompress(piece[start : start + _PACKED]))
        except zlib.error as error:
            raise ImageError(f"damaged: {error}") from None

    def end(self) -> None:
        """Raise ImageError where there was less than was needed."""
        if self.left > 0:
            raise ImageError(f"damaged: {self.left:,} bytes of pixels are missing")


def _length_of_png(header: bytes) -> int:
    """Bytes of all rows, each with one for its filter; of an interlaced picture, those of its seven (Adam7).

    >>> _length_of_png(bytes([0, 0, 0, 3, 0, 0, 0, 2, 1, 0, 0, 0, 0]))
    4
    """
    width, height = (int.from_bytes(header[k : k + 4], "big") for k in (0, 4))
    bits = header[8] * _SAMPLES.get(header[9], 1)
    length = 0
    for left, top, across, down in _ADAM7 if header[12] else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        length += rows * (1 + -(-columns * bits // 8)) if min(columns, rows) > 0 else 0
    return length


def _check_rows(stream: BinaryIO) -> None:
    """Whether the rows of a BMP that is not packed are there."""
    stream.seek(10)
    head = stream.read(24)
    start, size = (int.from_bytes(head[k : k + 4], "little") for k in (0, 4))
    if size < 40:
        return
    width, height = (int.from_bytes(head[k : k + 4], "little", signed=True) for k in (8, 12))
    bits, packing = int.from_bytes(head[18:20], "little"), int.from_bytes(head[20:24], "little")
    if packing in (0, 3):
        _there(stream, start, abs(height) * ((abs(width) * bits + 31) // 32 * 4), f"{abs(height)} rows")


def _check_strips(stream: BinaryIO, tags: Any) -> list[str]:
    """Whether the strips or tiles of a page are there, as many as its size asks for; their codes, where JPEG."""
    columns, rows = int(tags.get(256, 0)), int(tags.get(257, 0))
    samples, packing = int(tags.get(277, 1)), int(tags.get(259, 1))
    planes = samples if int(tags.get(284, 1)) == 2 else 1
    bits = int(np.atleast_1d(tags.get(258, 1))[0]) * (samples if planes == 1 else 1)
    if 322 in tags:
        width, height = int(tags[322]), int(tags.get(323, 0))
        places, lengths, what = tags.get(324), tags.get(325), "tiles"
    else:
        width, height = columns, min(int(tags.get(278, rows)) or rows, rows)
        places, lengths, what = tags.get(273), tags.get(279), "strips"
    if min(columns, rows, width, height, bits, planes) < 1:
        raise ImageError(f"expected a size, found {columns} x {rows} pixels in {what} of {width} x {height}")
    needed = -(-columns // width) * -(-rows // height) * planes
    starts, sizes = ([int(each) for each in np.atleast_1d(() if tag is None else tag)] for tag in (places, lengths))
    if len(starts) < needed or 0 < len(sizes) < needed:
        found = min(len(starts), len(sizes) or len(starts))
        raise ImageError(f"damaged: expected {needed} {what} for {columns} x {rows} pixels, found {found}")
    if packing == 1:
        for number, start in enumerate(starts[:needed]):
            down = number % (needed // planes)
            tall = height if 322 in tags else min(height, rows - down * height)
            _there(stream, start, -(-width * bits // 8) * tall, f"the {what}")
        return []
    for start, size in zip(starts, sizes, strict=False):
        _there(stream, start, size, f"the {what}")
    if packing in _DEFLATE_IN_TIFF:
        for number, (start, size) in enumerate(zip(starts, sizes, strict=False)):
            down = number % (needed // planes)
            tall = height if 322 in tags else min(height, rows - down * height)
            strip = _Unpacking(-(-width * bits // 8) * tall)
            stream.seek(start)
            strip.add(stream.read(size))
            strip.end()
    if packing == _JPEG_IN_TIFF:
        tables = tags.get(347, b"")
        return [check_jpeg(data) for data in _pictures(stream, tables, starts, sizes)]
    return []


def _pictures(stream: BinaryIO, tables: bytes, starts: list[int], sizes: list[int]) -> Iterator[bytes]:
    """Each strip or tile as a JPEG of its own, with the tables that all share."""
    for start, size in zip(starts, sizes, strict=False):
        stream.seek(start)
        data = stream.read(size)
        yield tables[:-2] + data[2:] if tables else data


def _there(stream: BinaryIO, start: int, size: int, what: str) -> None:
    length = stream.seek(0, os.SEEK_END)
    if start + size > length:
        raise ImageError(f"damaged: expected {start + size:,} bytes for {what}, found {length:,}: the file is cut off")
