"""Streams that unpack, by gzip or deflate: never further than they may, and to their checksum where they have one."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, BinaryIO

from bolus.errors import ImageError

RATIO = 1032  # of deflate, at most: 258 bytes from two bits
SPARE = 2**20  # bytes that may follow the last voxel
_PIECE = 2**14  # packed bytes at a time, which unpack to 16 MiB at most


def check_plausible(path: Path, needed: int, what: str, *, packed: bool = False) -> None:
    """Raise ImageError where a header asks for more bytes than can be in a file.

    Args:
        path: the file.
        needed: bytes, unpacked.
        what: needs them, such as `512 x 512 x 100 voxels`.
        packed: by gzip or deflate.
    """
    length = path.stat().st_size
    if needed > length * (RATIO if packed else 1):
        held = f"that {length:,} packed ones cannot hold" if packed else f"found {length:,}: the file is cut off"
        raise ImageError(f"damaged: expected {needed:,} bytes for {what}, {held}")


def read_to_end(stream: Any, last: int) -> None:
    """Read the rest of an unpacked stream, so that gzip compares its checksum.

    Args:
        stream: from which voxels were read.
        last: where the last voxel ends.

    Raises:
        ImageError: more than `SPARE` bytes follow it. EOFError and zlib.error: the stream is damaged.
    """
    while stream.read(16 * _PIECE):
        if stream.tell() > last + SPARE:
            raise ImageError(f"damaged: more than {SPARE:,} bytes follow the last voxel")


def unpacked_length(stream: BinaryIO, most: int) -> int:
    """How many bytes a deflated stream without a header unpacks to; the count ends above `most`.

    Raises:
        ImageError: it is damaged or cut off.

    >>> import io
    >>> unpacked_length(io.BytesIO(zlib.compress(bytes(5000), wbits=-15)), 10**6)
    5000
    """
    length, unpacking = 0, zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        while length <= most and not unpacking.eof:
            piece = stream.read(_PIECE)
            if not piece:
                raise ImageError("damaged: the deflated elements are cut off")
            length += len(unpacking.decompress(piece))
    except zlib.error as error:
        raise ImageError(f"damaged: the deflated elements cannot be unpacked: {error}") from None
    return length
