"""Lookup tables of DICOM: modality LUTs, VOI LUTs and palettes, whatever their writer thought of signs and bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bolus.errors import ImageError

Values = npt.NDArray[Any]
Table = npt.NDArray[np.int64]

_PALETTES = ("Red", "Green", "Blue")
_EXPANDED = "palette expanded to RGB"
_OF_BITS = "a lookup table of {} bits an entry, though it says {}"


def look_up(header: Any, item: Any, values: Values, span: tuple[float, float]) -> tuple[Values, int, list[str]]:
    """Values through one table; beyond its ends its first and last entries hold (PS3.3 C.11.1.1.1 and C.11.2.1.1).

    Args:
        header: of the file, for its byte order.
        item: with LUT Descriptor (0028,3002) and LUT Data (0028,3006).
        values: any numbers.
        span: the least and the largest that such values can be; they are signed if the least is below 0.

    Returns:
        int64 of the shape of `values`; the bits of an entry; and notes.

    Raises:
        ImageError: a descriptor that is not three numbers, or fewer entries than it says.

    Example:
        >>> import pydicom
        >>> item = pydicom.Dataset()
        >>> item.LUTDescriptor, item.LUTData = [4, 65534, 8], [0, 50, 100, 200]
        >>> look_up(pydicom.Dataset(), item, np.array([-2000, -1, 0, 7]), (-2048, 2047))
        (array([  0,  50, 100, 200]), 8, [])
    """
    entries, first, declared = _descriptor(item.LUTDescriptor)
    table = _entries(header, item["LUTData"], entries)
    needed, notes = int(table.max()).bit_length(), []
    bits = declared
    if needed > declared or 0 < needed < declared - 1:
        bits = needed
        notes.append(_OF_BITS.format(needed, declared))
    return table[_places(values, first_mapped(first, entries, span), entries)], bits, notes


def first_mapped(first: int, entries: int, span: tuple[float, float]) -> int:
    """The first value that a table maps, which a descriptor has in 16 bits, signed or not.

    The sign is that of the values that are mapped, whatever the VR that the descriptor was written or read in; unless
    the table then maps none of them, and does otherwise.

    Args:
        first: the second value of the descriptor.
        entries: how many.
        span: the least and the largest value that can be.

    Example:
        >>> first_mapped(65036, 1000, (-1024, 3071)), first_mapped(-500, 1000, (0, 65535))
        (-500, 65036)
        >>> first_mapped(-500, 1000, (0, 4095))
        -500
    """
    unsigned = first & 0xFFFF
    signed = unsigned - 0x10000 if unsigned > 0x7FFF else unsigned
    choices = (signed, unsigned) if span[0] < 0 else (unsigned, signed)
    return next((each for each in choices if each <= span[1] and each + entries > span[0]), choices[0])


def expand_palette(header: Any, stored: Values) -> tuple[Values, int, list[str]]:
    """Stored values as RGB, first of all axes; the bits of an entry; and notes (PS3.3 C.7.6.3.1.5).

    Raises:
        ImageError: as `look_up`.
    """
    entries, first, bits = _descriptor(header.RedPaletteColorLookupTableDescriptor)
    signed, depth = bool(header.get("PixelRepresentation")), int(header.get("BitsStored") or 16)
    least = -(2 ** (depth - 1)) if signed else 0
    index = _places(stored, first_mapped(first, entries, (least, least + 2**depth - 1)), entries)
    if "RedPaletteColorLookupTableData" not in header:
        from pydicom.pixels import apply_color_lut

        as_written = int(header.RedPaletteColorLookupTableDescriptor[1])  # which pydicom subtracts again
        array = np.moveaxis(apply_color_lut((index + as_written).astype(np.int32), header), -1, 0)[:3]
        return array, max(bits, int(array.max()).bit_length()), [_EXPANDED]
    tables = [_entries(header, header[f"{colour}PaletteColorLookupTableData"], entries) for colour in _PALETTES]
    needed = max(int(table.max()) for table in tables).bit_length()
    # A dark palette is no reason to brighten it: only a table of bytes in words is told by its entries.
    found = max(bits, needed) if bits <= 8 or needed > 8 else 8
    notes = [_EXPANDED, *([_OF_BITS.format(found, bits)] if found != bits else [])]
    return np.stack([table[index] for table in tables]), found, notes


def _places(values: Values, first: int, entries: int) -> Table:
    return np.clip(np.rint(values).astype(np.int64) - first, 0, entries - 1)


def _descriptor(numbers: Any) -> tuple[int, int, int]:
    """Entries, first value and bits of an entry; 0 entries stand for 2^16."""
    try:
        entries, first, bits = (int(number) for number in numbers)
    except (TypeError, ValueError):
        raise ImageError(f"expected a LUT descriptor of three numbers, found {numbers!r:.60}") from None
    return (entries & 0xFFFF) or 2**16, first, bits


def _entries(header: Any, element: Any, entries: int) -> Table:
    """The entries of a table, from 16 bits each or from two in each 16-bit word, the lower byte first."""
    data, little = element.value, getattr(header, "original_encoding", (None, None))[1] is not False
    words: npt.NDArray[Any]
    if isinstance(data, bytes):
        words = np.frombuffer(data[: len(data) // 2 * 2], "<u2" if little else ">u2")
        halves = np.frombuffer(data, np.uint8) if little else words.astype("<u2").view(np.uint8)
    else:
        words = (np.atleast_1d(np.asarray(data, dtype=np.int64)) & 0xFFFF).astype("<u2")
        halves = words.view(np.uint8)
    found = words if len(words) >= entries else halves
    if len(found) < entries:
        raise ImageError(f"a lookup table cut off: expected {entries} entries, found {len(words)}")
    return found[:entries].astype(np.int64)
