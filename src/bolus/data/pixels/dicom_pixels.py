"""The stored values of DICOM files: decoded by pydicom, taken from the bits they lie in, and told from padding."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bolus.apart import CrashError, call_apart
from bolus.data.pixels.codestreams import check_jpeg, find_size
from bolus.errors import ImageError, MissingDecoderError

Values = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

FEW = 0.001  # of the values that are not padding: so many may lie beyond the padding by chance
_NO_PADDING_THERE = "the padding value {:g} lies among the values of the image: not taken as padding"


def decode(path: Path, header: Any, frame: int | None, implicit: bool | None) -> tuple[Values, list[str]]:
    """Words as they are stored, `[H, W]`, `[T, H, W]` or these with `[..., 3]` RGB; only the frame that is asked for.

    Unused bits of grey and RGB words are kept, for `take_bits`. Notes say what could not be verified.

    Args:
        path: the file.
        header: its elements before the pixels.
        frame: from 0; None for all.
        implicit: whether the header is encoded with implicit VR; None if that is not known.

    Raises:
        ImageError: no pixels, damaged, or in a transfer syntax that is not read.
        MissingDecoderError: the message says what to install.
    """
    from pydicom.pixels import get_decoder
    from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit

    syntax = getattr(header, "file_meta", {}).get("TransferSyntaxUID")
    if syntax is not None:
        try:
            decoder = get_decoder(syntax)
        except NotImplementedError:
            raise ImageError(f"pixels in transfer syntax {syntax.name} are not read") from None
        if not decoder.is_available:
            raise MissingDecoderError(advice(syntax))
    notes = _check_codestreams(path, header, frame) if syntax is not None and syntax.is_encapsulated else []
    # Of these pydicom takes the lowest bits itself, before it converts them to RGB.
    whole_words = {} if _is_ybr(header) else {"correct_unused_bits": False}
    # One of many frames straight from the file, if the header is encoded as it declares: that route trusts it.
    straight = frame is not None and syntax is not None and not syntax.is_deflated and implicit == syntax.is_implicit_VR
    keeps_lock = syntax is not None and syntax.is_encapsulated and syntax not in (JPEGBaseline8Bit, JPEGExtended12Bit)
    try:
        if keeps_lock:
            return call_apart(_read_words, path, frame, straight, whole_words), notes
        return _read_words(path, frame, straight, whole_words), notes
    except AttributeError as error:
        raise ImageError(f"a DICOM file without pixels, or with an incomplete header: {error}") from error
    except CrashError as error:
        raise ImageError("damaged pixels: the decoder crashed") from error
    except RuntimeError as error:
        if syntax == JPEGExtended12Bit and "12-bit" in str(error):
            raise MissingDecoderError(advice(syntax)) from error
        raise ImageError(f"damaged pixels: {str(error).splitlines()[-1].strip()[:200]}") from error


def _check_codestreams(path: Path, header: Any, frame: int | None) -> list[str]:
    """An ImageError where a compressed frame has another size than the header says, or where libjpeg warns of codes.

    OpenJPEG, CharLS and pydicom's RLE say nothing of codes that they can decode.
    """
    import pydicom
    from pydicom.encaps import generate_frames, get_frame
    from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, RLELossless

    syntax = header.file_meta.TransferSyntaxUID
    if syntax == RLELossless:
        return []
    samples, notes = int(header.get("SamplesPerPixel") or 1), dict[str, None]()
    offsets = (header.get("ExtendedOffsetTable"), header.get("ExtendedOffsetTableLengths"))
    asked = {
        "number_of_frames": int(header.get("NumberOfFrames") or 1),
        "extended_offsets": offsets if all(offsets) else None,
    }
    with path.open("rb") as stream:
        pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=[])
        element = stream.read(8)
        if element[:4] != b"\xe0\x7f\x10\0":
            return []
        stream.seek(4 if element[4:6].isalpha() else 0, os.SEEK_CUR)  # the length, after an explicit VR
        frames = generate_frames(stream, **asked) if frame is None else [get_frame(stream, frame, **asked)]
        for data in frames:
            size = find_size(data)
            if size is not None and math.prod(size) != header.Rows * header.Columns * samples:
                raise ImageError(
                    f"damaged: expected {header.Rows} x {header.Columns} pixels of {samples} samples in a compressed "
                    f"frame, found {size.rows} x {size.columns} of {size.samples}"
                )
            if syntax in (JPEGBaseline8Bit, JPEGExtended12Bit):
                notes[check_jpeg(data)] = None
    return [note for note in notes if note]


def _read_words(path: Path, frame: int | None, straight: bool, options: dict[str, Any]) -> Values:
    """What `decode` gives, straight from the file, or with the whole file in memory.

    Where no transfer syntax is declared, the encoding shows it.
    """
    import pydicom
    from pydicom.pixels import pixel_array
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if straight:
        with path.open("rb") as stream:
            return np.asarray(pixel_array(stream, index=frame, **options))
    dataset = pydicom.dcmread(path, force=True)
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ImageError("a DICOM file without pixels, or cut off before them")
    if "TransferSyntaxUID" not in dataset.file_meta:
        if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
            raise ImageError("compressed pixels without a transfer syntax")
        implicit, little = dataset.original_encoding
        plain = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else plain
    return np.asarray(pixel_array(dataset, index=frame, **options))


def advice(syntax: Any) -> str:
    """What to install for a transfer syntax, and what is read without."""
    name = syntax.name
    if "2000" in name:
        return f"{name} needs a decoder: pip install pylibjpeg pylibjpeg-openjpeg"
    other = "pip install pyjpegls, or python-gdcm" if "JPEG-LS" in name else "pip install python-gdcm"
    return (
        f"{name} needs a decoder: {other} (or pylibjpeg with pylibjpeg-libjpeg, whose licence is the GPL). "
        "Read without: uncompressed, RLE, 8-bit baseline JPEG, and JPEG 2000 by pylibjpeg-openjpeg"
    )


def take_bits(words: Values, header: Any) -> tuple[Values, list[str]]:
    """The stored values in words whose other bits mean something else (PS3.5 8.1.1), such as an overlay.

    The Bits Stored up to High Bit are taken, and the sign is that of their highest. A High Bit that cannot be is noted,
    and the lowest bits are taken. JPEG 2000 and JPEG-LS know their own depth, and stay as they are decoded.

    Args:
        words: of `decode`, integers or floats.
        header: its elements before the pixels.

    Returns:
        Values of the type and shape of `words`, and notes.

    Raises:
        ImageError: a High Bit above the lowest bits in compressed pixels, or in YBR.

    Example:
        >>> import pydicom
        >>> header = pydicom.Dataset()
        >>> header.BitsAllocated, header.BitsStored, header.HighBit = 16, 12, 15
        >>> take_bits(np.array([0x1230, 0xFFFF], np.uint16), header)[0].tolist() == [0x123, 0xFFF]
        True
        >>> take_bits(np.array([0x1230, -16], np.int16), header)[0].tolist() == [0x123, -1]
        True
    """
    from pydicom.uid import JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, RLELossless

    syntax = getattr(header, "file_meta", {}).get("TransferSyntaxUID")
    stored, allocated = int(header.get("BitsStored") or 0), int(header.get("BitsAllocated") or 0)
    high = header.get("HighBit")
    if not 0 < stored <= allocated or words.dtype.kind not in "iu":
        return words, []
    notes = []
    high = stored - 1 if high is None else int(high)
    if not stored - 1 <= high < allocated:
        notes.append(f"High Bit {high} does not go with {stored} bits stored; the lowest bits were taken")
        high = stored - 1
    if high != stored - 1:
        if syntax is not None and syntax.is_encapsulated and syntax != RLELossless:
            raise ImageError(f"compressed pixels with High Bit {high} and {stored} bits stored are not read")
        if _is_ybr(header):
            raise ImageError(f"YBR pixels with High Bit {high} and {stored} bits stored are not read")
    size = 8 * words.dtype.itemsize
    if allocated == stored or _is_ybr(header) or syntax in (*JPEG2000TransferSyntaxes, *JPEGLSTransferSyntaxes):
        return words, notes
    return np.right_shift(np.left_shift(words, size - 1 - high), size - stored), notes


def _is_ybr(header: Any) -> bool:
    return str(header.get("PhotometricInterpretation", "")).upper().startswith("YBR")


def find_padding(header: Any, words: Values, values: Values) -> tuple[Mask | None, list[str]]:
    """Where grey pixels were not imaged: a Pixel Padding Value, up to its Range Limit (PS3.3 C.7.5.1.1.2).

    A value of more bits than are stored is looked for in whole words. By the standard no pixel that was imaged lies at
    it, or on both sides of it; where many do, it is no padding.

    Args:
        header: the elements before the pixels.
        words: as they are stored.
        values: of the same shape, as `take_bits` gives them.

    Returns:
        Bool of the same shape, or None where there is no such pixel; and notes.

    Example:
        >>> import pydicom
        >>> header = pydicom.Dataset()
        >>> header.BitsStored, header.PixelRepresentation, header.PixelPaddingValue = 16, 1, -2000
        >>> values = np.array([-2000, -1000, 40], np.int16)
        >>> find_padding(header, values, values)[0].tolist()
        [True, False, False]
    """
    limits = _limits(header, values.dtype)
    if not limits:
        return None, []
    low, high = min(limits), max(limits)
    if values.dtype.kind in "iu":
        bits, signed = int(header.get("BitsStored") or 16), bool(header.get("PixelRepresentation"))
        least = -(2 ** (bits - 1)) if signed else 0
        within = least <= low and high < least + 2**bits
        values = values if within else words
    padding = np.isnan(values) if math.isnan(low + high) else (values >= low) & (values <= high)
    if not padding.any():
        return None, []
    rest = values[~padding]
    if len(rest) and min((rest < low).mean(), (rest > high).mean()) > FEW:
        return None, [_NO_PADDING_THERE.format(limits[0])]
    return padding, ["pixels outside the field of view have a padding value"]


def _limits(header: Any, kind: np.dtype[Any]) -> list[float]:
    """The padding value, and the limit of its range if there is one; empty where none is stated."""
    prefix = {"f4": "Float", "f8": "DoubleFloat"}.get(kind.str[1:], "")
    found = []
    for name in (f"{prefix}PixelPaddingValue", f"{prefix}PixelPaddingRangeLimit"):
        try:
            value = float(header.get(name))
        except (TypeError, ValueError):  # absent, empty, several, or of an unknown VR
            break
        if kind.kind in "iu":  # whatever VR it was written in
            whole = int(value) & 0xFFFF
            value = float(whole - 0x10000 if header.get("PixelRepresentation") and whole > 0x7FFF else whole)
        found.append(value)
    return found
