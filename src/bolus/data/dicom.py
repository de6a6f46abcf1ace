"""DICOM images: stored values through the modality LUT, the value of interest, palettes and functional groups.

Frames are decoded by pydicom. What lies between the stored value and the display (PS3.3 C.11.1 and C.11.2) is done
here, since it must also hold for the functional groups of enhanced multi-frame images, for tables in big-endian files
and for values beyond the ends of a table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.pixels import apply_color_lut, get_decoder, pixel_array
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGExtended12Bit

from bolus.data.image import Image, Range, Rule, check_frame, own_range
from bolus.errors import ImageError, MissingDecoderError, UsageError

Values = npt.NDArray[Any]
_PALETTES = ("Red", "Green", "Blue")


@dataclass
class _Scaled:
    """Grey values on their way to an Image: where they lie, by which rule, of how many bits."""

    values: Values
    low: float
    high: float
    rule: Rule
    bits: int
    notes: list[str] = field(default_factory=list)


def read_dicom(path: Path, *, window: tuple[float, float] | None = None, frame: int | None = None) -> Image:
    """One DICOM file; see `bolus.data.readers.read_image`, which adds the file's name to errors.

    Grey values are after the Modality LUT Sequence or rescale slope and intercept (of the frame, in enhanced
    multi-frame files). A linear window is recorded as the range (rule `window`; the first frame's first one); a VOI LUT
    Sequence, which comes before windows, or a SIGMOID is applied (rule `voi_lut`); else the range is what Bits Stored
    allows, rescaled (`bits_stored`). Colour is RGB, palettes expanded. Float pixels have the range of
    `covering_range`.

    Returns:
        Image with float32 `[C, H, W]`, or `[C, T, H, W]` of a file with several frames; spacing in mm.

    Raises:
        ImageError: no pixels, damaged, or a photometric interpretation or transfer syntax that is not read.
        MissingDecoderError: the message says what to install.
        UsageError: `window` narrower than 1 in a file whose windows are LINEAR.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> image = read_dicom(Path(get_testdata_file("MR_small.dcm", download=False)))
        >>> image.array.shape, image.range, image.spacing
        ((1, 64, 64), Range(low=-200.0, high=1399.0, rule='window'), (0.3125, 0.3125))
    """
    header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    implicit = getattr(header.get_item("Rows"), "is_implicit_VR", None)  # known of an element not yet looked at
    photometric = str(header.get("PhotometricInterpretation", "")).upper()
    needed = ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation")
    missing = [name for name in needed if header.get(name) in (None, "")]
    if missing:
        raise ImageError(f"a DICOM file without an image, or no DICOM file: it has no {', '.join(missing)}")
    number = int(header.get("NumberOfFrames") or 1)
    if frame is not None:
        check_frame(frame, number)
    stored = _decode(path, header, frame if number > 1 else None, implicit)
    samples = int(header.get("SamplesPerPixel") or 1)
    notes = ["FOR PROCESSING"] if header.get("PresentationIntentType") == "FOR PROCESSING" else []
    if header.get("PixelPaddingValue") is not None and samples == 1:
        notes.append("pixels outside the field of view have a padding value")
    stored_bits, high_bit = header.get("BitsStored"), header.get("HighBit")
    if stored_bits and high_bit is not None and int(high_bit) != int(stored_bits) - 1:
        notes.append(f"High Bit {high_bit} does not go with {stored_bits} bits stored; the lowest bits were taken")
    clip = number > 1 and frame is None
    if samples == 1 and photometric in ("MONOCHROME1", "MONOCHROME2"):
        frames = list(range(number)) if clip else [frame or 0]
        grey = _rescale(header, stored, number, frames)
        scaled = _value_of_interest(header, grey, number, window)
        array = scaled.values[None]
    elif samples == 1 and photometric == "PALETTE COLOR":
        array, bits = _expand_palette(header, stored)
        scaled = _Scaled(array, 0.0, float(2**bits - 1), "bits_stored", bits, ["palette expanded to RGB"])
    elif samples == 3 and photometric in ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"):
        array, bits = np.moveaxis(stored, -1, 0), int(header.get("BitsStored") or header.BitsAllocated)
        scaled = _Scaled(array, 0.0, float(2**bits - 1), "bits_stored", bits)
    else:
        raise ImageError(f"expected grey, palette or RGB, found {photometric} with {samples} samples a pixel")
    notes += scaled.notes
    if scaled.bits > 24 and scaled.values.dtype.kind in "iu":
        notes.append(f"{scaled.bits}-bit values rounded to the 24 bits of float32")
    return Image(
        np.ascontiguousarray(array, dtype=np.float32),
        _spacing(header, clip, notes),
        Range(scaled.low, scaled.high, scaled.rule),
        scaled.bits,
        photometric == "MONOCHROME1",
        tuple(notes),
    )


def _decode(path: Path, header: Any, frame: int | None, implicit: bool | None) -> Values:
    """Stored values `[H, W]`, `[T, H, W]` or these with `[..., 3]` RGB; only the frame that is asked for."""
    syntax = getattr(header, "file_meta", {}).get("TransferSyntaxUID")
    if syntax is not None:
        try:
            decoder = get_decoder(syntax)
        except NotImplementedError:
            raise ImageError(f"pixels in transfer syntax {syntax.name} are not read") from None
        if not decoder.is_available:
            raise MissingDecoderError(_advice(syntax))
    try:
        # One of many frames straight from the file, if the header is encoded as it declares: that route trusts it.
        if frame is not None and syntax is not None and not syntax.is_deflated and implicit == syntax.is_implicit_VR:
            with path.open("rb") as stream:
                return np.asarray(pixel_array(stream, index=frame))
        return _decode_whole(path, frame)
    except AttributeError as error:
        raise ImageError(f"a DICOM file without pixels, or with an incomplete header: {error}") from error
    except RuntimeError as error:
        if syntax == JPEGExtended12Bit and "12-bit" in str(error):
            raise MissingDecoderError(_advice(syntax)) from error
        raise ImageError(f"damaged pixels: {str(error).splitlines()[-1].strip()[:200]}") from error


def _decode_whole(path: Path, frame: int | None) -> Values:
    """The same with the whole file in memory; where no transfer syntax is declared, the encoding shows it."""
    dataset = pydicom.dcmread(path, force=True)
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ImageError("a DICOM file without pixels, or cut off before them")
    if "TransferSyntaxUID" not in dataset.file_meta:
        if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
            raise ImageError("compressed pixels without a transfer syntax")
        implicit, little = dataset.original_encoding
        plain = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else plain
    return np.asarray(pixel_array(dataset, index=frame))


def _advice(syntax: Any) -> str:
    name = syntax.name
    if "2000" in name:
        return f"{name} needs a decoder: pip install pylibjpeg pylibjpeg-openjpeg"
    other = "pip install pyjpegls, or python-gdcm" if "JPEG-LS" in name else "pip install python-gdcm"
    return (
        f"{name} needs a decoder: {other} (or pylibjpeg with pylibjpeg-libjpeg, whose licence is the GPL). "
        "Read without: uncompressed, RLE, 8-bit baseline JPEG, and JPEG 2000 by pylibjpeg-openjpeg"
    )


def _group(header: Any, frame: int, name: str) -> Any:
    """The item of a functional group that holds for a frame, or None: the frame's own before the shared one."""
    own, shared = header.get("PerFrameFunctionalGroupsSequence"), header.get("SharedFunctionalGroupsSequence")
    for groups in ([own[frame]] if own and frame < len(own) else []) + list(shared or [])[:1]:
        if groups.get(name):
            return groups.get(name)[0]
    return None


def _numbers(item: Any, name: str) -> list[float]:
    """The values of an element, empty if it is absent or empty."""
    value = item.get(name)
    if value is None or value == "":
        return []
    return [float(number) for number in np.atleast_1d(value)]


def _rescale(header: Any, stored: Values, number: int, frames: list[int]) -> _Scaled:
    """PS3.3 C.11.1: the modality LUT, or slope and intercept; with the bounds that Bits Stored allows."""
    bits = int(header.get("BitsStored") or header.BitsAllocated)
    if header.get("ModalityLUTSequence"):
        values, bits = _look_up(header, header.ModalityLUTSequence[0], stored)
        return _Scaled(values, 0.0, float(2**bits - 1), "bits_stored", bits)
    lines = []
    for frame in range(number):
        item = _group(header, frame, "PixelValueTransformationSequence") or header
        slope, intercept = _numbers(item, "RescaleSlope"), _numbers(item, "RescaleIntercept")
        lines.append((slope[0], intercept[0]) if slope and intercept else (1.0, 0.0))
        if lines[-1][0] == 0 or not math.isfinite(sum(lines[-1])):
            raise ImageError(f"expected a rescale slope and intercept, found slope {slope} and intercept {intercept}")
    values, used = stored, {lines[frame] for frame in frames}
    if used != {(1.0, 0.0)}:
        slopes, intercepts = (np.array(part) for part in zip(*(lines[frame] for frame in frames), strict=True))
        shape = (-1, 1, 1) if stored.ndim == 3 else (1, 1)
        values = stored.astype(np.float64) * slopes.reshape(shape) + intercepts.reshape(shape)
    if stored.dtype.kind == "f":
        covering = own_range(values)
        return _Scaled(values, covering.low, covering.high, "cohort", 8 * stored.dtype.itemsize)
    half = 2.0 ** (bits - 1) if header.get("PixelRepresentation") else 0.0
    ends = [slope * end + intercept for slope, intercept in set(lines) for end in (-half, 2.0**bits - 1 - half)]
    return _Scaled(values, min(ends), max(ends), "bits_stored", bits)


def _value_of_interest(header: Any, grey: _Scaled, number: int, window: tuple[float, float] | None) -> _Scaled:
    """PS3.3 C.11.2: the VOI LUT or SIGMOID applied, or a linear window recorded; the first, and the first frame's."""
    tables = [item for item in header.get("VOILUTSequence") or [] if "LUTData" in item and "LUTDescriptor" in item]
    item = _group(header, 0, "FrameVOILUTSequence") or header
    function = str(item.get("VOILUTFunction") or "LINEAR").upper()
    if window is not None:
        function, shape = ("LINEAR_EXACT" if function == "LINEAR_EXACT" else "LINEAR"), [window]
        if function == "LINEAR" and window[1] < 1:
            raise UsageError(f"window: expected a width of at least 1 (LINEAR), found {window[1]:g}")
    elif tables:
        values, bits = _look_up(header, tables[0], grey.values)
        notes = [*grey.notes, *([f"VOI LUTs: {len(tables)}, first used"] if len(tables) > 1 else [])]
        return _Scaled(values, 0.0, float(2**bits - 1), "voi_lut", bits, notes)
    else:
        shape = list(zip(_numbers(item, "WindowCenter"), _numbers(item, "WindowWidth"), strict=False))
        if len(shape) > 1:
            grey.notes.append(f"windows: {len(shape)}, first used")
        others = [_group(header, frame, "FrameVOILUTSequence") for frame in range(1, number)]
        if any(o is not None and _numbers(o, "WindowCenter")[:1] != [c for c, _ in shape[:1]] for o in others):
            grey.notes.append("windows differ between frames, the first frame's used")
    if not shape:
        return grey
    center, width = shape[0]
    if not (math.isfinite(center) and width >= (1 if function == "LINEAR" else 0) and width > 0):
        grey.notes.append(f"window of width {width:g} ignored")
        return grey
    if function == "SIGMOID":
        curve = (grey.high - grey.low) / (1 + np.exp(-4 * (grey.values.astype(np.float64) - center) / width))
        return _Scaled(curve + grey.low, grey.low, grey.high, "voi_lut", grey.bits, [*grey.notes, "sigmoid applied"])
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    elif function != "LINEAR_EXACT":
        raise ImageError(f"expected VOI LUT function LINEAR, LINEAR_EXACT or SIGMOID, found {function[:16]!r}")
    return _Scaled(grey.values, center - width / 2, center + width / 2, "window", grey.bits, grey.notes)


def _look_up(header: Any, item: Any, values: Values) -> tuple[Values, int]:
    """Values through one table, and its bits an entry; beyond the ends its first and last entries hold."""
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    table = _table(header, item.LUTData, entries)
    bits = max(bits, int(table.max()).bit_length())
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)
    return table[index], bits


def _table(header: Any, data: Any, entries: int) -> Values:
    """The entries of a lookup table from numbers or from bytes, which are 8 or 16 bits an entry; 0 stands for 2^16."""
    entries = (entries & 0xFFFF) or 2**16
    if not isinstance(data, bytes):
        return np.atleast_1d(np.asarray(data, dtype=np.int64))[:entries] & 0xFFFF
    order = "<" if header.original_encoding[1] is not False else ">"
    kind = np.dtype(f"{order}u2") if len(data) >= 2 * entries else np.dtype(np.uint8)
    return np.frombuffer(data, kind, count=entries).astype(np.int64)


def _expand_palette(header: Any, stored: Values) -> tuple[Values, int]:
    """PS3.3 C.7.6.3.1.5: RGB first of all axes, and the bits of an entry."""
    entries, first, bits = (int(number) for number in header.RedPaletteColorLookupTableDescriptor)
    length = (entries & 0xFFFF) or 2**16
    index = np.clip(stored.astype(np.int64) - first, 0, length - 1)
    if "RedPaletteColorLookupTableData" in header:
        tables = [_table(header, header[f"{colour}PaletteColorLookupTableData"].value, length) for colour in _PALETTES]
        array = np.stack([table[index] for table in tables])
    else:
        array = np.moveaxis(apply_color_lut((index + first).astype(np.int32), header), -1, 0)[:3]
    return array, max(bits, int(array.max()).bit_length())


def _spacing(header: Any, clip: bool, notes: list[str]) -> tuple[float, ...] | None:
    """Distances in mm, NaN for those not stated; at the detector, with a note, where only these are."""
    measures = _group(header, 0, "PixelMeasuresSequence") or header
    plane: tuple[float, ...] = ()
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        try:
            numbers = _numbers(measures if name == "PixelSpacing" else header, name)
        except (TypeError, ValueError):
            numbers = []
        if len(numbers) == 2 and all(math.isfinite(number) and number > 0 for number in numbers):
            plane = tuple(numbers)
            if name == "ImagerPixelSpacing":
                notes.append("spacing is that at the detector")
            break
    try:
        between = abs(_numbers(measures, "SpacingBetweenSlices")[0]) or math.nan
    except (IndexError, TypeError, ValueError):
        between = math.nan
    if not clip:
        return plane or None
    return (between, *(plane or (math.nan, math.nan))) if plane or not math.isnan(between) else None
