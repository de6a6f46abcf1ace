"""DICOM images: stored values through the modality LUT, the range of the modality, palettes and functional groups.

What lies between the stored value and the display (PS3.3 C.11.1 and C.11.2) is done here and in `data.pixels.lookup`,
not by pydicom, since it must also hold for the functional groups of enhanced multi-frame images, for tables in
big-endian files, for values beyond the ends of a table and for signs that a writer got wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bolus.data.pixels.dicom_pixels import decode, find_padding, take_bits
from bolus.data.pixels.image import Image, Range, Rule, check_frame, own_range
from bolus.data.pixels.lookup import expand_palette, look_up
from bolus.data.pixels.range_rules import CLINICAL_RANGE, PERCENTILES, RangeRule, rule_of
from bolus.data.pixels.square import find_aspect, oblong_notes
from bolus.data.readers.dicom_header import decoded_size, group_of, numbers_of, open_dataset, samples_of
from bolus.data.readers.room import Claim, check_size
from bolus.errors import ImageError, UsageError

Values = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

_LARGEST = 1e30  # that a window may reach to; float32 holds no more than 3e38
_IN_HU = {"", "HU"}  # Rescale Type (0028,1054) may be absent where it is HU (PS3.3 C.8.2.1)


@dataclass
class _Scaled:
    """Grey values on their way to an Image: where they lie, by which rule, of how many bits, and in which units."""

    values: Values
    low: float
    high: float
    rule: Rule
    bits: int
    notes: list[str] = field(default_factory=list)
    units: frozenset[str] = frozenset()
    rescaled: bool = True


def read_dicom(
    path: Path,
    *,
    window: tuple[float, float] | None = None,
    frame: int | None = None,
    voi: bool | None = None,
    claim: Claim = check_size,
) -> Image:
    """One DICOM file; see `bolus.data.readers.readers.read_image`, which adds the file's name to errors.

    Grey values are after the Modality LUT Sequence or rescale slope and intercept (of the frame, in enhanced
    multi-frame files), or the Dose Grid Scaling of a dose. Their range is that of the modality
    (`data.pixels.range_rules.rule_of`): CT numbers in HU have the `clinical` one, PET and dose that of `covering_range`
    (`cohort`), MR percentiles of what was read (`series`). CT not in HU (another Rescale Type, no negative values,
    eight bits), MR of eight bits, PET of eight bits that is not rescaled, and everything else, have the one that the
    file states: a linear window is recorded (rule `window`; the first frame's first one); a VOI LUT Sequence, which
    comes before windows, or a SIGMOID is applied (rule `voi_lut`); else it is what Bits Stored allows, rescaled
    (`bits_stored`), or `cohort` of float pixels. Colour is RGB, palettes expanded (`voi_lut`).

    Args:
        path: the file.
        window: (center, width), in place of any range.
        frame: which frame, from 0.
        voi: True: as the file states, whatever the modality; False: as if it stated no window and no VOI LUT, and no
            range of the modality but that of `cohort`.
        claim: room in memory, before anything is decoded.

    Returns:
        Image with float32 `[C, H, W]`, or `[C, T, H, W]` of a file with several frames; spacing in mm.

    Raises:
        ImageError: no pixels, damaged, values that are not finite as float32, or a photometric interpretation or
            transfer syntax that is not read; TooLargeError: more memory than there is room for.
        MissingDecoderError: the message says what to install.
        UsageError: `window` narrower than 1 in a file whose windows are LINEAR.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> path = Path(get_testdata_file("MR_small.dcm", download=False))
        >>> image = read_dicom(path)
        >>> image.array.shape, image.range.rule, image.modality, image.spacing
        ((1, 64, 64), 'series', 'MR', (0.3125, 0.3125))
        >>> read_dicom(path, voi=True).range
        Range(low=-200.0, high=1399.0, rule='window')
    """
    header = open_dataset(path, stop_before_pixels=True)
    implicit = getattr(header.get_item("Rows"), "is_implicit_VR", None)  # known of an element not yet looked at
    photometric = str(header.get("PhotometricInterpretation", "")).upper()
    needed = ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation")
    missing = [name for name in needed if header.get(name) in (None, "")]
    if missing:
        raise ImageError(f"a DICOM file without an image, or no DICOM file: it has no {', '.join(missing)}")
    number = int(header.get("NumberOfFrames") or 1)
    if frame is not None:
        check_frame(frame, number)
    claim(*decoded_size(path, header, 1 if frame is not None else number))
    words, unverified = decode(path, header, frame if number > 1 else None, implicit)
    stored, of_bits = take_bits(words, header)
    samples = samples_of(header)
    notes = ["FOR PROCESSING"] if header.get("PresentationIntentType") == "FOR PROCESSING" else []
    notes += [*unverified, *of_bits]
    clip, padding = number > 1 and frame is None, None
    if samples == 1 and photometric in ("MONOCHROME1", "MONOCHROME2"):
        padding, of_padding = find_padding(header, words, stored)
        notes += of_padding
        grey = _rescale(header, stored, number, list(range(number)) if clip else [frame or 0])
        if stored.dtype.kind == "f":
            grey = _of_modality(replace(grey, bits=8 * stored.dtype.itemsize), "cohort", padding, voi=voi)
        rule = "display" if voi or window is not None else _rule(header, grey)
        if window is not None or (rule == "display" and voi is not False):
            scaled = _value_of_interest(header, grey, number, window)
        else:
            scaled = _of_modality(grey, rule, padding, voi=voi)
        array = scaled.values[None]
    elif samples == 1 and photometric == "PALETTE COLOR":
        array, bits, of_table = expand_palette(header, stored)
        scaled = _Scaled(array, 0.0, float(2**bits - 1), "voi_lut", bits, of_table)
    elif samples == 3 and photometric in ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"):
        array, bits = np.moveaxis(stored, -1, 0), int(header.get("BitsStored") or header.BitsAllocated)
        scaled = _Scaled(array, 0.0, float(2**bits - 1), "bits_stored", bits)
    else:
        raise ImageError(f"expected grey, palette or RGB, found {photometric} with {samples} samples a pixel")
    notes += scaled.notes
    if scaled.bits > 24 and scaled.values.dtype.kind in "iu":
        notes.append(f"{scaled.bits}-bit values rounded to the 24 bits of float32")
    spacing, aspect = _spacing(header, clip, notes)
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    if scaled.values.dtype.kind == "f":
        _check_finite(array if padding is None else array[:, ~padding], scaled)
    return Image(
        array,
        spacing,
        Range(scaled.low, scaled.high, scaled.rule),
        scaled.bits,
        photometric == "MONOCHROME1",
        (*notes, *oblong_notes(aspect)),
        _modality(header),
        str(header.get("SeriesInstanceUID") or ""),
        aspect,
        padding,
    )


def _check_finite(counted: Values, scaled: _Scaled) -> None:
    """An ImageError where float32 does not hold the values, or not what lies between black and white."""
    if not np.isfinite(counted).all():
        raise ImageError("expected values that are finite as float32, found NaN or infinite ones")
    with np.errstate(over="ignore", under="ignore"):
        span = np.float32(scaled.high - scaled.low)
    if not np.isfinite(span) or (span == 0 and scaled.high > scaled.low):
        raise ImageError(f"expected a range that float32 holds, found {scaled.low:g} to {scaled.high:g}")


def _modality(header: Any) -> str:
    return str(header.get("Modality") or "").strip().upper()


def _rescale(header: Any, stored: Values, number: int, frames: list[int]) -> _Scaled:
    """PS3.3 C.11.1: the modality LUT, or slope and intercept; with the bounds that Bits Stored allows."""
    bits = int(header.get("BitsStored") or header.BitsAllocated)
    half = 2.0 ** (bits - 1) if header.get("PixelRepresentation") else 0.0
    span = (-half, 2.0**bits - 1 - half)
    if header.get("ModalityLUTSequence"):
        item = header.ModalityLUTSequence[0]
        values, bits, notes = look_up(header, item, stored, span)
        return _Scaled(values, 0.0, float(2**bits - 1), "bits_stored", bits, notes)
    scaling = (numbers_of(header, "DoseGridScaling") if _modality(header) == "RTDOSE" else [])[:1] or [1.0]
    lines, units = [], set()
    for frame in range(number):
        item = group_of(header, frame, "PixelValueTransformationSequence") or header
        slope, intercept = numbers_of(item, "RescaleSlope"), numbers_of(item, "RescaleIntercept")
        slope, intercept = (slope, intercept) if slope and intercept else ([1.0], [0.0])
        lines.append((slope[0] * scaling[0], intercept[0] * scaling[0]))
        units.add(str(item.get("RescaleType") or "").strip().upper())
        if lines[-1][0] == 0 or not math.isfinite(sum(lines[-1])):
            raise ImageError(f"expected a rescale slope and intercept, found slope {slope} and intercept {intercept}")
    values, rescaled = stored, {lines[frame] for frame in frames} != {(1.0, 0.0)}
    if rescaled:
        slopes, intercepts = (np.array(part) for part in zip(*(lines[frame] for frame in frames), strict=True))
        shape = (-1, 1, 1) if stored.ndim == 3 else (1, 1)
        values = stored.astype(np.float64)
        values *= slopes.reshape(shape)
        values += intercepts.reshape(shape)
    ends = [slope * end + intercept for slope, intercept in set(lines) for end in span]
    return _Scaled(values, min(ends), max(ends), "bits_stored", bits, [], frozenset(units), rescaled)


def _rule(header: Any, grey: _Scaled) -> RangeRule:
    """The rule of the modality, where the numbers are such as it is about."""
    rule = rule_of(_modality(header))
    if rule == "clinical" and not (grey.bits > 8 and grey.low < 0 and grey.units <= _IN_HU):
        return "display"
    if grey.bits <= 8 and (rule == "series" or (rule == "cohort" and not grey.rescaled)):
        return "display"
    return rule


def _of_modality(grey: _Scaled, rule: RangeRule, padding: Mask | None, *, voi: bool | None) -> _Scaled:
    """The range of a modality, of the values that count; only that of the cohort where no rule is wanted."""
    counted = grey.values if padding is None else grey.values[~padding]
    if rule == "cohort":
        found = own_range(counted)
    elif voi is False or rule == "display":
        return grey
    elif rule == "clinical":
        found = Range(*CLINICAL_RANGE, "clinical")
    else:
        ends = np.percentile(counted, PERCENTILES) if counted.size else (0.0, 1.0)
        found = Range(float(ends[0]), float(ends[1]), "series")
    return replace(grey, low=found.low, high=found.high, rule=found.rule)


def _value_of_interest(header: Any, grey: _Scaled, number: int, window: tuple[float, float] | None) -> _Scaled:
    """PS3.3 C.11.2: the VOI LUT or SIGMOID applied, or a linear window recorded; the first, and the first frame's."""
    tables = [item for item in header.get("VOILUTSequence") or [] if "LUTData" in item and "LUTDescriptor" in item]
    item = group_of(header, 0, "FrameVOILUTSequence") or header
    function = str(item.get("VOILUTFunction") or "LINEAR").upper()
    if window is not None:
        function, shape = ("LINEAR_EXACT" if function == "LINEAR_EXACT" else "LINEAR"), [window]
        if function == "LINEAR" and window[1] < 1:
            raise UsageError(f"window: expected a width of at least 1 (LINEAR), found {window[1]:g}")
    elif tables:
        values, bits, notes = look_up(header, tables[0], grey.values, (grey.low, grey.high))
        notes = [*grey.notes, *notes, *([f"VOI LUTs: {len(tables)}, first used"] if len(tables) > 1 else [])]
        return _Scaled(values, 0.0, float(2**bits - 1), "voi_lut", bits, notes)
    else:
        shape = list(zip(numbers_of(item, "WindowCenter"), numbers_of(item, "WindowWidth"), strict=False))
        if len(shape) > 1:
            grey.notes.append(f"windows: {len(shape)}, first used")
        others = [group_of(header, frame, "FrameVOILUTSequence") for frame in range(1, number)]
        if any(o is not None and numbers_of(o, "WindowCenter")[:1] != [c for c, _ in shape[:1]] for o in others):
            grey.notes.append("windows differ between frames, the first frame's used")
    if not shape:
        return grey
    center, width = shape[0]
    if not (abs(center) + width < _LARGEST and width >= (1 if function == "LINEAR" else 0) and width > 0):
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


def _spacing(header: Any, clip: bool, notes: list[str]) -> tuple[tuple[float, ...] | None, float]:
    """Distances in mm, NaN for those not stated, and a pixel's height over its width (also by C.7.6.3.1.7).

    At the detector, with a note, where only these distances are stated.
    """
    measures = group_of(header, 0, "PixelMeasuresSequence") or header
    plane: tuple[float, ...] = ()
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        numbers = _pair(measures if name == "PixelSpacing" else header, name)
        if numbers:
            plane = numbers
            if name == "ImagerPixelSpacing":
                notes.append("spacing is that at the detector")
            break
    aspect = find_aspect(*(plane or _pair(header, "PixelAspectRatio") or (1.0, 1.0)))
    try:
        between = abs(numbers_of(measures, "SpacingBetweenSlices")[0]) or math.nan
    except (IndexError, TypeError, ValueError):
        between = math.nan
    if not clip:
        return plane or None, aspect
    return (between, *(plane or (math.nan, math.nan))) if plane or not math.isnan(between) else None, aspect


def _pair(item: Any, name: str) -> tuple[float, ...]:
    """Two positive numbers, vertical and horizontal; empty where these are not stated."""
    try:
        numbers = tuple(numbers_of(item, name))
    except (TypeError, ValueError):
        return ()
    return numbers if len(numbers) == 2 and all(math.isfinite(each) and each > 0 for each in numbers) else ()
