"""The elements of a DICOM header that a scan needs, as bytes; all others are stepped over (PS3.5, 7.1).

pydicom makes an object of each element; of a header of 250 elements a scan needs 40, and those as text. This module
and `headers` import nothing of bolus but each other, since they run in processes of their own.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO, NamedTuple

PER_FRAME = 0x52009230  # an item a frame: of thousands of frames many megabytes, which say nothing of the file
_SYNTAX = 0x00020010
_DEFLATED = "1.2.840.10008.1.2.1.99"
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_SNIFFED = 4096  # bytes of a file that may be none
_HEAD = 1 << 16  # bytes read at once: longer than nearly all headers
_UNDEFINED = 0xFFFFFFFF
_UNPACKED = 1 << 29  # bytes of deflated elements at most
_DEEPEST = 64  # sequences within sequences
_SAMPLES, _SAMPLE = 3, 4096  # pieces of the pixels that make their fingerprint, and bytes of each
_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})


class NotDicomError(Exception):
    """The first bytes are of something else."""


class EmptyError(Exception):
    """A file of no byte."""


class TornError(Exception):
    """The file ends before what its header announces, or its bytes are no elements."""


class Elements(NamedTuple):
    """What was read of one file.

    Args:
        values: tag -> bytes, of those that were asked for and are there; a sequence without its own tag and length.
        implicit: whether elements do not state their value representation.
        little: whether numbers are little endian.
        has_pixels: whether pixels were seen, or may follow behind the groups of frames, which were not read.
        fingerprint: of a few pieces of the pixels and their length; empty where there are none.
        span: where the pixels begin and end in the file; 0 and 0 where that was not seen.
    """

    values: dict[int, bytes]
    implicit: bool
    little: bool
    has_pixels: bool
    fingerprint: str
    span: tuple[int, int] = (0, 0)


def read_elements(path: str | os.PathLike[str], tags: Collection[int]) -> Elements:
    """The elements of the top level with these tags.

    Raises:
        EmptyError: of no byte.
        NotDicomError: neither the prefix DICM nor, at the very start, an element of the groups 2 or 8.
        TornError: the file ends within its header or its pixels.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> found = read_elements(get_testdata_file("CT_small.dcm", download=False), [0x00100020])
        >>> found.values[0x00100020], found.has_pixels
        (b'1CT1', True)
    """
    with open(path, "rb", buffering=0, opener=_without_waiting) as stream:
        state = os.fstat(stream.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise NotDicomError
        size = state.st_size
        if not size:
            raise EmptyError
        data = stream.read(_SNIFFED) or b""
        at = _start(data)
        if size > len(data):
            data += stream.read(_HEAD) or b""
        while True:
            try:
                return _read(stream, data, at, size, tags)
            except (_Short, struct.error) as error:
                if len(data) >= size:
                    raise TornError from error
                stream.seek(0)
                more = stream.read(min(size, 16 * len(data))) or b""
                if len(more) <= len(data):
                    raise TornError from error
                data = more


def _without_waiting(path: str, flags: int) -> int:
    """A file as `open` opens it; a pipe that nobody writes to is opened too."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def digest_pixels(path: str | os.PathLike[str]) -> str:
    """Of all bytes of the pixels as they are stored; empty where they were not seen.

    Raises:
        NotDicomError, TornError: as `read_elements`.
    """
    begin, end = read_elements(path, ()).span
    digest = hashlib.blake2b(digest_size=16)
    with Path(path).open("rb") as stream:
        stream.seek(begin)
        while begin < end and (piece := stream.read(min(1 << 20, end - begin))):
            digest.update(piece)
            begin += len(piece)
    return digest.hexdigest() if end else ""


class _Short(Exception):  # noqa: N818
    """What was read of the file ends within its header."""


class _Walk:
    """Steps from element to element through bytes."""

    def __init__(self, data: bytes, at: int, *, implicit: bool, little: bool) -> None:
        self.data, self.at, self.implicit = data, at, implicit
        self.order = "<" if little else ">"
        self.tag_and_length = struct.Struct(f"{self.order}HHL").unpack_from
        self.tag_and_representation = struct.Struct(f"{self.order}HH2sH").unpack_from
        self.long = struct.Struct(f"{self.order}L").unpack_from

    def next(self) -> tuple[int, bytes, int]:
        """Tag, value representation (empty where not stated) and length of the element here; then `at` is its value."""
        at = self.at
        if len(self.data) < at + 8:
            raise _Short
        if self.implicit:
            group, element, length = self.tag_and_length(self.data, at)
            self.at = at + 8
            return group << 16 | element, b"", length
        group, element, kind, length = self.tag_and_representation(self.data, at)
        if kind in _LONG:
            length = self.long(self.data, at + 8)[0]
            self.at = at + 12
        elif not (kind.isalpha() and kind.isupper()):  # delimiters, and writers that forget themselves
            group, element, length = self.tag_and_length(self.data, at)
            self.at, kind = at + 8, b""
        else:
            self.at = at + 8
        return group << 16 | element, kind, length

    def skip_items(self, *, implicit: bool, depth: int = 0) -> None:
        """Step over the items of a sequence of undefined length, with its end."""
        if depth > _DEEPEST:
            raise TornError
        stated, self.implicit = self.implicit, implicit
        while True:
            tag, _, length = self._item()
            if tag == _SEQUENCE_END:
                break
            if tag != _ITEM:
                raise TornError
            if length != _UNDEFINED:
                self.at += length
                continue
            while True:
                tag, kind, length = self.next()
                if tag == _ITEM_END:
                    break
                if length != _UNDEFINED:
                    self.at += length
                else:
                    self.skip_items(implicit=implicit or kind == b"UN", depth=depth + 1)
        self.implicit = stated

    def _item(self) -> tuple[int, bytes, int]:
        if len(self.data) < self.at + 8:
            raise _Short
        group, element, length = self.tag_and_length(self.data, self.at)
        self.at += 8
        return group << 16 | element, b"", length


def _start(head: bytes) -> int:
    """Where the first element is."""
    if head[128:132] == b"DICM":
        return 132
    if len(head) >= 8:
        for order in "<>":
            group, element = struct.unpack(f"{order}HH", head[:4])
            if group in (2, 8) and element <= 0x0070:
                return 0
    raise NotDicomError


def _read(stream: BinaryIO, data: bytes, at: int, size: int, tags: Collection[int]) -> Elements:
    """The elements of a file whose first bytes, or all, are given."""
    syntax, of_meta = "", dict[int, bytes]()
    meta = _Walk(data, at, implicit=False, little=True)
    while data[meta.at : meta.at + 2] == b"\2\0":
        tag, _, length = meta.next()
        if tag == _SYNTAX:
            syntax = data[meta.at : meta.at + length].rstrip(b"\0 ").decode("ascii", "replace")
        elif tag in tags:
            of_meta[tag] = data[meta.at : meta.at + length]
        meta.at += length
    at = meta.at
    if deflated := syntax == _DEFLATED:
        if len(data) < size:
            raise _Short
        try:
            unpacking = zlib.decompressobj(-zlib.MAX_WBITS)
            data, at = unpacking.decompress(data[at:], _UNPACKED), 0
        except zlib.error as error:
            raise TornError from error
        if unpacking.unconsumed_tail:
            raise TornError
        size = len(data)
    first = data[at : at + 8]
    little = not (len(first) >= 2 and first[0] == 0 and first[1] != 0)
    walk = _Walk(data, at, implicit=not (first[4:6].isalpha() and first[4:6].isupper()), little=little)
    values = of_meta
    made = (values, walk.implicit, little)
    while walk.at < size:
        tag, kind, length = walk.next()
        begin = walk.at
        if tag in _PIXELS:
            fragments = length == _UNDEFINED
            if not fragments and begin + length > size:
                raise TornError
            end = size if fragments else begin + length
            if deflated or end == begin:
                return Elements(*made, end > begin, "")
            return Elements(*made, True, _fingerprint(stream, data, begin, end), (begin, end))
        if length == _UNDEFINED:
            if tag == PER_FRAME:
                return Elements(*made, True, "")
            walk.skip_items(implicit=walk.implicit or kind == b"UN")
        else:
            walk.at += length
        if tag in tags:
            if walk.at > len(data):
                raise _Short
            values[tag] = data[begin : walk.at]
    if walk.at > size:
        raise TornError
    return Elements(*made, False, "")


def _fingerprint(stream: BinaryIO, head: bytes, begin: int, end: int) -> str:
    """Of pieces of the pixels at equal distances, and their length."""
    digest = hashlib.blake2b(str(end - begin).encode(), digest_size=12)
    step, wanted = (end - begin) // (_SAMPLES + 1), _SAMPLE
    places = [begin + step * number for number in range(1, _SAMPLES + 1)]
    if end - begin <= _SAMPLES * _SAMPLE:
        places, wanted = [begin], end - begin
    for place in places:
        if place + wanted <= len(head):
            digest.update(head[place : place + wanted])
        else:
            stream.seek(place)
            digest.update(stream.read(wanted))
    return digest.hexdigest()
