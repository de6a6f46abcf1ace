"""An ONNX export of bolus, used without bolus: needs numpy, Pillow, onnxruntime and, for DICOM, pydicom.

python embed_without_bolus.py IMAGE... -o embeddings.csv [--modality NAME] [--side left|right]
python embed_without_bolus.py IMAGE... -o masks     where a segmenter went along: a PNG of class numbers each
python embed_without_bolus.py --test

Reads contract.json and model.onnx beside itself. Images are PNG, JPEG, TIFF, BMP, or grey DICOM of one frame; what it
does not read as bolus does, it refuses, volumes among it: of an encoder of volumes it only does the test. Of an encoder
of clips, all IMAGEs together are the frames of one clip. Slices of one MR series are given together, since they share a
range. It is written to be read: docs/deploying.md explains it.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
HERE = Path(__file__).resolve().parent
STORED, SHOWN = ("container", "bits_stored"), ("window", "voi_lut")
RASTER = ("PNG", "JPEG", "TIFF", "BMP")
BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM")


class Refused(Exception):  # noqa: N818 - a sentence for a person
    """An image that this script does not read as bolus does."""


@dataclass
class Picture:
    """Values [C, H, W] in the unit of the file, what they suggest as black and white, and by which rule."""

    values: Array
    low: float
    high: float
    rule: str
    bits: int
    inverted: bool = False
    modality: str = ""
    series: str = ""
    aspect: float = 1.0
    padding: Array | None = None

    @property
    def counted(self) -> Array:
        """The values that are no padding."""
        return self.values.ravel() if self.padding is None else self.values[:, ~self.padding].ravel()


# 1. A file becomes values -----------------------------------------------------------------------------------


def read(path: Path, use_window: bool) -> Picture:
    """One file; without its window or VOI LUT where a range is stated for its modality."""
    with path.open("rb") as file:
        head = file.read(132)
    if head[128:132] == b"DICM" or not head.startswith(BEGINNINGS):
        return read_dicom(path, use_window)
    return read_raster(path)


def read_raster(path: Path) -> Picture:
    """Pillow's pixels: palettes as RGB, alpha dropped, turned as the camera says, 16 bits kept."""
    from PIL import Image, ImageOps

    with path.open("rb") as stream, Image.open(stream, formats=RASTER) as opened:
        tags = getattr(opened, "tag_v2", {})
        if getattr(opened, "n_frames", 1) > 1 and opened.format == "TIFF":
            raise Refused("several pages")
        if opened.format == "PNG":
            depth, colour = path.read_bytes()[24:26]
            if depth == 16 and colour != 0:
                raise Refused("colour of more than 8 bits")
        depths = np.atleast_1d(tags.get(258, 8))
        if len(depths) > 1 and max(depths) > 8:
            raise Refused("colour of more than 8 bits")
        if opened.format == "TIFF":
            density = (tags.get(282, 1), tags.get(283, 1))
        elif opened.format == "PNG":
            density = opened.info.get("aspect", opened.info.get("dpi", (1, 1)))
        else:
            density = opened.info.get("jfif_density", (1, 1))
        across, down = (float(each) for each in density)
        turned = opened.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        aspect = aspect_of(down, across) if turned else aspect_of(across, down)
        picture = ImageOps.exif_transpose(opened)
        if picture.mode in ("P", "PA"):
            see_through = picture.mode == "PA" or "transparency" in picture.info
            picture = picture.convert("RGBA" if see_through else "RGB")
        elif picture.mode in ("CMYK", "YCbCr"):
            picture = picture.convert("RGB")
        array, bits, inverted = np.asarray(picture), 8, False
        if picture.mode in ("LA", "RGBA"):
            array = array[..., :-1]
        elif picture.mode == "1":
            array, bits = array.astype(np.uint8), 1
        elif picture.mode.startswith("I;16"):
            bits = int(depths[0]) if opened.format == "TIFF" else 16
            inverted = tags.get(262, 1) == 0
        elif picture.mode not in ("L", "RGB"):
            raise Refused(f"pixels of mode {picture.mode}")
    values = np.moveaxis(array if array.ndim == 3 else array[..., None], -1, 0).astype(np.float32)
    return Picture(values, 0.0, float(2**bits - 1), "container", bits, inverted, aspect=aspect)


def read_dicom(path: Path, use_window: bool) -> Picture:
    """Grey of one frame: rescaled, padding found, and the range of the modality, the window or the VOI LUT."""
    import pydicom
    from pydicom.pixels import pixel_array

    header = pydicom.dcmread(path, force=True)
    photometric = str(header.get("PhotometricInterpretation", "")).upper()
    for tag in ("ModalityLUTSequence", "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        if header.get(tag):
            raise Refused(f"a DICOM file with {tag}")
    if int(header.get("NumberOfFrames") or 1) > 1:
        raise Refused("several frames")
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or "PixelData" not in header:
        raise Refused(f"DICOM pixels of {photometric or 'no'} photometric interpretation")
    bits, allocated = int(header.get("BitsStored") or header.BitsAllocated), int(header.BitsAllocated)
    if int(header.get("HighBit", bits - 1)) != bits - 1:
        raise Refused("a High Bit above the lowest bits")
    modality = str(header.get("Modality") or "").strip().upper()
    if modality == "RTDOSE":
        raise Refused("doses")
    stored = np.asarray(pixel_array(header))
    signed = bool(header.get("PixelRepresentation"))
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    line = (1.0, 0.0) if slope in (None, "") or intercept in (None, "") else (float(slope), float(intercept))
    values = stored if line == (1.0, 0.0) else stored.astype(np.float64) * line[0] + line[1]
    half = 2.0 ** (bits - 1) if signed else 0.0
    ends = sorted(end * line[0] + line[1] for end in (-half, 2.0**bits - 1 - half))
    padding = find_padding(header, stored, allocated)
    counted = values if padding is None else values[~padding]
    found = Picture(values[None].astype(np.float32), ends[0], ends[1], "bits_stored", bits,
                    photometric == "MONOCHROME1", modality, str(header.get("SeriesInstanceUID") or ""),
                    dicom_aspect(header), padding)  # fmt: skip
    rule = RULES.get(modality, "display")
    units = str(header.get("RescaleType") or "").strip().upper()
    if rule == "clinical" and not (bits > 8 and ends[0] < 0 and units in ("", "HU")):
        rule = "display"
    if bits <= 8 and (rule == "series" or (rule == "cohort" and line == (1.0, 0.0))):
        rule = "display"
    if rule == "cohort":
        found.rule, found.low, found.high = "cohort", float(counted.min(initial=0)), float(counted.max(initial=0))
    elif rule == "display":
        if use_window:
            show(header, found, values)
    else:
        found.rule = rule
    return found


def show(header: Any, found: Picture, values: Array) -> None:
    """The VOI LUT or SIGMOID applied, or the first linear window kept as the range (PS3.3 C.11.2)."""
    if header.get("VOILUTSequence"):
        raise Refused("a VOI LUT")
    centers, widths = (np.atleast_1d(header.get(name, [])) for name in ("WindowCenter", "WindowWidth"))
    if not len(centers) or not len(widths) or centers[0] in (None, "") or widths[0] in (None, ""):
        return
    center, width = float(centers[0]), float(widths[0])
    function = str(header.get("VOILUTFunction") or "LINEAR").upper()
    if not (math.isfinite(center) and width > 0 and width >= (1 if function == "LINEAR" else 0)):
        return
    if function == "SIGMOID":
        curve = (found.high - found.low) / (1 + np.exp(-4 * (values.astype(np.float64) - center) / width))
        found.values, found.rule = (curve + found.low)[None].astype(np.float32), "voi_lut"
        return
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    elif function != "LINEAR_EXACT":
        raise Refused(f"the VOI LUT function {function}")
    found.low, found.high, found.rule = center - width / 2, center + width / 2, "window"


def find_padding(header: Any, stored: Array, allocated: int) -> Array | None:
    """Pixels at the padding value, or between it and its range limit; none where many lie on both sides of it."""
    limits = []
    for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        value = header.get(name)
        if value in (None, ""):
            break
        whole = int(value) & 0xFFFF
        limits.append(whole - 0x10000 if header.get("PixelRepresentation") and whole > 0x7FFF else whole)
    if not limits:
        return None
    low, high = min(limits), max(limits)
    bits = int(header.get("BitsStored") or 16)
    least = -(2 ** (bits - 1)) if header.get("PixelRepresentation") else 0
    if not (least <= low and high < least + 2**bits) and bits < allocated:
        raise Refused("a padding value of more bits than are stored")
    padding: Array = (stored >= low) & (stored <= high)
    rest = stored[~padding]
    if not padding.any() or (len(rest) and min((rest < low).mean(), (rest > high).mean()) > 0.001):
        return None
    return padding


def dicom_aspect(header: Any) -> float:
    """Height of a pixel over its width."""
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
        value = header.get(name)
        if value is not None and value != "" and len(value) == 2 and min(float(each) for each in value) > 0:
            return aspect_of(float(value[0]), float(value[1]))
    return 1.0


def aspect_of(height: float, width: float) -> float:
    """1 where either is no distance, or they differ by no more than 1 %, or by more than 100 times."""
    if not (math.isfinite(height) and math.isfinite(width) and height > 0 and width > 0):
        return 1.0
    aspect = height / width
    return 1.0 if abs(aspect - 1) <= 0.01 or not 0.01 <= aspect <= 100 else aspect


# 2. Values become a small square, in the steps that the training kept --------------------------------------


def is_final(picture: Picture) -> bool:
    """Whether the file's own range holds where nobody states one."""
    return picture.rule in SHOWN or (picture.rule in STORED and picture.bits <= 8)


def shrink(picture: Picture, contract: dict[str, Any]) -> tuple[Array, Array]:
    """Channels, square, antialiased, rounded to 8 or 16 bits: float32 [C, S, S]; and the quantiles of the values."""
    values, counted, final = picture.values, picture.counted, is_final(picture)
    if not counted.size:
        counted = np.zeros(1, np.float32)
    low, high = float(counted.min()), float(counted.max())
    quantiles = sketch(counted, picture.values.shape[-1] if picture.padding is None else counted.size)
    if final and picture.high <= picture.low:  # a window of width 1 is a threshold
        values, picture.low, picture.high = (values > picture.low).astype(np.float32), 0.0, 1.0
    if final or picture.rule in STORED:
        span = (picture.low, picture.high)
        values = np.clip(values, *span) if final else values
    else:
        span = (low, high if high > low else low + 1.0)
    dark, bright = span if final else (low, high)
    black = bright if picture.inverted else dark
    if picture.padding is not None:
        values = np.where(picture.padding, np.float32(black), values)
    channels, size = int(contract["channels"]), int(contract["cached_size"])
    if values.shape[0] != channels:
        luma = np.array([0.299, 0.587, 0.114], np.float32)[:, None, None]
        values = np.repeat(values[:1], 3, 0) if channels == 3 else (values[:3] * luma).sum(0, keepdims=True)
    for axis, side in zip((1, 2), canvas(values.shape[1:], contract["fit"], picture.aspect), strict=True):
        length = values.shape[axis]
        if side < length:
            values = np.take(values, np.arange(side) + (length - side) // 2, axis)
        elif side > length:
            border = [(0, 0)] * 3
            border[axis] = ((side - length) // 2, side - length - (side - length) // 2)
            values = np.pad(values, border, constant_values=np.float32(black))
    small = resize(values.astype(np.float32), (size, size))
    levels = 255 if picture.bits <= 8 and final else 65535
    scaled = (small - np.float32(span[0])) / np.float32(span[1] - span[0]) * np.float32(levels)
    steps = np.clip(np.rint(scaled), 0, levels).astype(np.float64)
    return steps * ((span[1] - span[0]) / levels) + span[0], quantiles


def canvas(shape: tuple[int, ...], fit: str, aspect: float) -> tuple[int, int]:
    """Rows and columns of the part that is shown as a square: pad to the longer side, crop to the shorter, or all."""
    height, width = shape
    if fit == "stretch":
        return height, width
    side = (max if fit == "pad" else min)(height * aspect, width)
    return max(1, round(side / aspect)), max(1, round(side))


def resize(images: Array, shape: tuple[int, int]) -> Array:
    """Bilinear, antialiased where pixels become fewer, pixel centres at halves: [C, H, W] to [C, *shape]."""
    if images.shape[1:] == shape:
        return images
    return along(along(images, shape[1]).swapaxes(1, 2), shape[0]).swapaxes(1, 2)


def along(images: Array, size: int) -> Array:
    """The last axis to so many pixels, in float32 and in the order in which torch adds on a processor with FMA.

    The plain weighted sum differs in the last bits, so that a value between two steps may be rounded to the other one.
    """
    made, exact = [], images.astype(np.float64)
    for first, weights in triangles(images.shape[-1], size):
        total = images[..., first] * weights[0]
        whole = (len(weights) - 1) // 4 * 4  # of these torch rounds each product, of the rest only the sum
        for at in range(1, len(weights)):
            if at <= whole:
                total = total + images[..., first + at] * weights[at]
            else:
                total = (total + exact[..., first + at] * np.float64(weights[at])).astype(np.float32)
        made.append(total)
    return np.stack(made, axis=-1)


def triangles(length: int, size: int) -> list[tuple[int, Array]]:
    """Of each new pixel the first old one it takes from, and weights: a triangle as wide as its step, at least one."""
    one, half = np.float32(1), np.float32(0.5)
    step = np.float32(length) / np.float32(size)
    reach, found = max(step, one), []
    for number in range(size):
        center = step * (np.float32(number) + half)
        first = max(int(center - reach + half), 0)
        count = min(int(center + reach + half), length) - first
        away = np.abs((np.arange(count, dtype=np.float32) + np.float32(first) - center + half) * (one / reach))
        weights, total = np.where(away < 1, one - away, np.float32(0)).astype(np.float32), np.float32(0)
        for weight in weights:
            total = total + weight
        found.append((first, weights / total))
    return found


def sketch(values: Array, width: int) -> Array:
    """Quantiles at the contract's levels; of more than 2^18 values, of as many at equal steps."""
    flat = values.ravel()
    some = flat
    if flat.size > 2**18:
        step = -(-flat.size // 2**18)
        while width > 1 and math.gcd(step, width) > 1:
            step += 1
        some = flat[::step]
    found = np.quantile(some, LEVELS).astype(np.float32)
    found[0], found[-1] = flat.min(), flat.max()
    return np.asarray(found)


# 3. Black and white --------------------------------------------------------------------------------------------


def range_of(picture: Picture, modality: str | None, contract: dict[str, Any]) -> tuple[float, float] | None:
    """The values that become 0 and 1; None where they are percentiles of the series."""
    name = modality or picture.modality or "image"
    stated, ranges, known = contract.get("stated", []), contract["ranges"], contract.get("rules") or {}
    for each in (name, "image" if modality is None else name):
        if each in stated:
            return float(ranges[each][0]), float(ranges[each][1])
    ruled = next((each.strip().upper() for each in (modality or "image", picture.modality)
                  if each.strip().upper() in RULES), "")  # fmt: skip
    rule = RULES.get(ruled, "display")
    if is_final(picture):
        return picture.low, picture.high
    if rule == "clinical" and picture.rule != "clinical":
        signed = picture.rule != "container"
        low = name not in ranges and float(picture.counted.min(initial=0)) < HU_IF_BELOW
        if not (signed and (ruled in known or low)):
            rule = "cohort"
    if rule == "series":
        return None
    if rule == "clinical":
        low, high = known[ruled][1:] if ruled in known else CONTRACT["grey"]["numbers_of_rules"]["clinical"]
        return float(low), float(high)
    for each in (name, *(["image"] if modality is None else [])):
        if each in ranges:
            return float(ranges[each][0]), float(ranges[each][1])
    if len(ranges) == 1:
        low, high = next(iter(ranges.values()))
        return float(low), float(high)
    known = ", ".join(ranges) or "it has none"
    raise Refused(f"values of modality {name!r}, whose range is not in the contract ({known})")


def percentiles(quantiles: list[Array], pixels: list[int], levels: tuple[float, float]) -> tuple[float, float]:
    """The least values that so large a share of all pixels of a series reaches at most."""
    tables, counts = np.stack(quantiles).astype(np.float64), np.maximum(pixels, 1)
    ends = []
    for level in levels:
        low, high = float(tables[:, 0].min()), float(tables[:, -1].max())
        if (share_up_to(low, tables) * counts).sum() / counts.sum() >= level / 100:
            ends.append(low)
            continue
        for _ in range(50):
            middle = (low + high) / 2
            enough = (share_up_to(middle, tables) * counts).sum() / counts.sum() >= level / 100
            low, high = (low, middle) if enough else (middle, high)
        ends.append(high)
    return ends[0], ends[1]


def share_up_to(value: float, tables: Array) -> Array:
    """The share of each image's pixels at or below a value, linear between levels."""
    after = (tables <= value).sum(1)
    upper = np.clip(after, 1, len(LEVELS) - 1)
    rows = np.arange(len(tables))
    low, high = tables[rows, upper - 1], tables[rows, upper]
    within = np.divide(value - low, high - low, out=np.zeros(len(tables)), where=high > low)
    share = LEVELS[upper - 1] + np.clip(within, 0, 1) * (LEVELS[upper] - LEVELS[upper - 1])
    return np.where(after == 0, 0.0, np.where(after == len(LEVELS), 1.0, share))


# 4. All of it ------------------------------------------------------------------------------------------------


def read_all(paths: list[Path], modality: str | None) -> list[Picture]:
    """The files, each of which has a range."""
    shown: list[Picture] = []
    for number, path in enumerate(paths):
        try:
            shown.append(read_for(path, modality, CONTRACT["preprocessing"]))
            range_of(shown[-1], modality, CONTRACT["preprocessing"])
        except Refused as refused:
            raise Refused(f"image {number + 1}: {refused}; use bolus.preprocess for it") from None
    return shown


def preprocess(shown: list[Picture], modality: str | None = None, side: str | None = None) -> Array:
    """Pictures as the encoder sees them: float32 [n, C, S, S] in [0, 1]."""
    contract = CONTRACT["preprocessing"]
    if contract.get("mirror") and side is None:
        raise Refused(f"this encoder expects images of the {contract['mirror']} mirrored: give --side left or right")
    clip = bool(contract.get("frames"))
    small = [shrink(picture, contract) for picture in shown]
    ranges = [range_of(picture, modality, contract) for picture in shown]
    made = []
    for number, (picture, (values, _), found) in enumerate(zip(shown, small, ranges, strict=True)):
        if found is None:
            key = "clip" if clip else picture.series or number
            alike = [at for at, each in enumerate(shown) if ("clip" if clip else each.series or at) == key]
            numbers = (contract.get("rules") or {}).get(series_name(picture, modality))
            numbers = numbers[1:] if numbers else CONTRACT["grey"]["numbers_of_rules"]["series"]
            counts = [shown[at].counted.size // shown[at].values.shape[0] for at in alike]
            found = percentiles([small[at][1] for at in alike], counts, (numbers[0], numbers[1]))
        low, high = found
        unit = np.clip((values - low) / ((high - low) if high > low else 1.0), 0, 1)
        unit = 1 - unit if picture.inverted else unit
        unit = unit[..., ::-1] if contract.get("mirror") == side and side is not None else unit
        made.append(np.clip(resize(unit.astype(np.float32), (int(contract["size"]),) * 2), 0, 1))
    return np.stack(made).astype(np.float32)


def read_for(path: Path, modality: str | None, contract: dict[str, Any]) -> Picture:
    """The file, without its window where a range is stated for it or its modality has a rule."""
    picture, stated = read(path, use_window=True), contract.get("stated", [])
    if modality is None:
        unwanted = "image" in stated or picture.modality in stated
    else:
        unwanted = modality in stated or modality.strip().upper() in RULES
    return read(path, use_window=False) if unwanted and picture.rule in SHOWN else picture


def series_name(picture: Picture, modality: str | None) -> str:
    """The modality whose percentiles hold."""
    names = [each.strip().upper() for each in (modality or "", picture.modality)]
    return next((each for each in names if each in RULES), "")


def inputs_of(shown: list[Picture], modality: str | None, side: str | None) -> dict[str, Array]:
    """What the model takes: images, or all of them as the frames of one clip, from equal parts of it."""
    images = preprocess(shown, modality, side)
    wanted = CONTRACT["preprocessing"].get("frames")
    if not wanted:
        return {"images": images}
    count = len(images)
    ends = np.arange(wanted + 1) * count // wanted
    chosen = np.minimum(np.arange(wanted), count - 1) if count < wanted else (ends[:-1] + ends[1:]) // 2
    return {"images": images[chosen].swapaxes(0, 1)[None].copy(), "frame_mask": (np.arange(wanted) < count)[None]}


def run_model(given: dict[str, Array]) -> Iterator[dict[str, Array]]:
    """What the model gives of 64 images or clips at a time, by name."""
    import onnxruntime

    session = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    for start in range(0, len(given["images"]), 64):
        found = session.run(None, {name: values[start : start + 64] for name, values in given.items()})
        yield dict(zip(names, found, strict=True))


def gather(parts: Iterator[dict[str, Array]]) -> dict[str, Array]:
    """All of it at once: embeddings float32 [n, D], and predictions where a head went along; a clip is one line."""
    found = list(parts)
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


# 5. A mask goes back to its image ------------------------------------------------------------------------------


def labels_of(scores: Array, picture: Picture) -> Array:
    """The number of the likeliest class at every pixel of the image, [H, W], from class probabilities [K, S, S].

    The probabilities become as large as the square that the image was shown as; what was padded is dropped, and what
    was cropped off was not seen and is 0.
    """
    height, width = picture.values.shape[1:]
    sides = canvas((height, width), CONTRACT["preprocessing"]["fit"], picture.aspect)
    classes = resize(scores, sides).argmax(axis=0)
    found = np.zeros((height, width), np.int64)
    (rows, from_rows), (columns, from_columns) = shared(height, sides[0]), shared(width, sides[1])
    found[rows, columns] = np.array(CONTRACT["head"]["labels"])[classes[from_rows, from_columns]]
    return found


def shared(length: int, side: int) -> tuple[slice, slice]:
    """What an axis of the image and that of its square have in common, in each."""
    both, cut, padded = min(length, side), max(length - side, 0) // 2, max(side - length, 0) // 2
    return slice(cut, cut + both), slice(padded, padded + both)


def write_masks(shown: list[Picture], parts: Iterator[dict[str, Array]], folder: Path) -> None:
    """A PNG of class numbers in the size of each image, called by its place among those given."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    masks = (mask for part in parts for mask in part["mask"])
    for number, (picture, scores) in enumerate(zip(shown, masks, strict=True)):
        found = labels_of(scores, picture)
        kind = np.uint8 if found.max(initial=0) < 256 else np.uint16
        Image.fromarray(found.astype(kind)).save(folder / f"mask-{number + 1}.png")


# The command line ----------------------------------------------------------------------------------------------


def test() -> bool:
    """Compare with the test vectors of this export."""
    well = True
    for vector in CONTRACT["test_vectors"]:
        paths, facts = [HERE / name for name in vector["inputs"]], (vector["modality"], vector["laterality"])
        given = inputs_of(read_all(paths, facts[0]), *facts) if paths else {"images": np.load(HERE / vector["tensor"])}
        for kind, values in {"tensor": given["images"], **gather(run_model(given))}.items():
            expected = np.load(HERE / vector[kind])
            away = float(np.abs(values - expected).max() / max(np.abs(expected).max(), 1e-30))
            well = well and away <= 1e-4
            print(f"{[*vector['inputs'], vector['tensor']][0]}: {kind} differs by {away:.1e} of the largest value")
    return well


def write_table(found: dict[str, Array], path: Path) -> None:
    """A line an image: its number, its embedding, and its prediction where there is one."""
    columns = [values.reshape(len(values), -1) for values in found.values()]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *(f"{name}_{at}" for name, part in zip(found, columns, strict=True)
                                    for at in range(part.shape[1]))])  # fmt: skip
        for number, line in enumerate(np.concatenate(columns, axis=1)):
            writer.writerow([number + 1, *(repr(float(value)) for value in line)])


def main() -> int:
    """Embed, draw masks, or test."""
    draws = "mask" in CONTRACT["outputs"]
    parser = argparse.ArgumentParser(description="Images through model.onnx and contract.json beside this.")
    parser.add_argument("images", nargs="*", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=Path("masks" if draws else "embeddings.csv"))
    parser.add_argument("--modality", default=CONTRACT["modality"])
    parser.add_argument("--side", choices=["left", "right"])
    parser.add_argument("--test", action="store_true", help="compare with the test vectors")
    given = parser.parse_args()
    if given.test:
        return 0 if test() else 1
    if not given.images:
        parser.error("give images, or --test")
    try:
        if CONTRACT["preprocessing"].get("volume"):
            raise Refused(
                "this encoder is of volumes, which this script does not read: give model.onnx boxes of voxels "
                "as contract.json says, or use bolus embed"
            )
        shown = read_all(given.images, given.modality)
        answers = run_model(inputs_of(shown, given.modality, given.side))
    except Refused as refused:
        print(f"error: {refused}", file=sys.stderr)
        return 1
    if draws:
        write_masks(shown, answers, given.out)
    else:
        write_table(gather(answers), given.out)
    return 0


CONTRACT: dict[str, Any] = {}
RULES: dict[str, str] = {}
LEVELS: Array = np.zeros(0)
HU_IF_BELOW = -100.0


def load(folder: Path) -> None:
    """Take contract and model from a folder."""
    global HERE, LEVELS, HU_IF_BELOW  # noqa: PLW0603
    HERE = folder
    CONTRACT.clear()
    CONTRACT.update(json.loads((folder / "contract.json").read_text(encoding="utf-8")))
    RULES.clear()
    RULES.update(CONTRACT["grey"]["rules_of_modalities"])
    LEVELS, HU_IF_BELOW = np.array(CONTRACT["grey"]["quantile_levels"]), float(CONTRACT["grey"]["hu_if_below"])


if __name__ == "__main__":
    load(HERE)
    sys.exit(main())
