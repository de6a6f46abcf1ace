"""What lies between a file's pixels and an encoder's input: the contract, and the small square that the cache keeps.

A stored image keeps the unit of its values: it carries a gain and a bias, so that a range that is only known after the
whole series or cohort was read, or that somebody states later, costs no second decoding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from bolus.data.cohort.coding import distinct
from bolus.data.cohort.series import IF_FILES
from bolus.data.pixels.greys import GREY, is_final, measure, sketch_of
from bolus.data.pixels.image import Image
from bolus.data.pixels.quantiles import LEVELS
from bolus.data.pixels.range_rules import Bounds, RangeRule
from bolus.data.pixels.square import Fit, canvas
from bolus.data.text.laterality import Side
from bolus.errors import ImageError

FORMAT = 4  # part of every key: raise it when the stored values or the files of the cache change
ONE_FRAME = "give each frame a row, and its number a column with the role order"
SINGLE_IMAGES = "this encoder or recipe sees single images: images.unit=clip takes clip files"
ENLARGE = 1.25  # of the training size, so that crops need little enlargement


@dataclass(frozen=True)
class Preprocessing:
    """The contract between a file and the encoder's input; saved with the encoder.

    Args:
        size: side of the square that the encoder sees, in pixels.
        channels: 1 (colour becomes luminance) or 3 (grey is repeated).
        fit: how an oblong image becomes square: `pad` with black (its own darkest value, where the range is the
            cohort's), `stretch`, or `crop` its middle.
        ranges: modality -> the values that become 0 and 1: of images whose range is the cohort's, and of those in
            `stated` whatever their files say.
        stated: the modalities whose range a person stated.
        rules: modality -> (rule, its two numbers), of those whose images become grey by a rule of
            `data.pixels.range_rules` with numbers: `clinical` (HU), `series` (percentiles). None where that is not
            known: before images were read, and in contracts of earlier versions.
        frames: T, of the clips that the encoder sees; None for single images.
        mirror: images of this side are handed out mirrored left to right, so that both sides look alike; the cache
            holds them as they are. None: none.
        modalities: modality -> its own contract, of those that are read otherwise than this says; empty where one
            holds for all. Theirs have no ranges: all are in `ranges`.

    Example:
        >>> Preprocessing(64).stored_shape
        (1, 80, 80)
        >>> Preprocessing(64, modalities={"CFP": Preprocessing(96, 3)}).of("CFP").stored_shape
        (3, 120, 120)
    """

    size: int
    channels: int = 1
    fit: Fit = "pad"
    ranges: Mapping[str, Bounds] = field(default_factory=dict)
    frames: int | None = None
    mirror: Side | None = None
    modalities: Mapping[str, Preprocessing] = field(default_factory=dict)
    stated: tuple[str, ...] = ()
    rules: Mapping[str, tuple[RangeRule, float, float]] | None = None

    def __post_init__(self) -> None:
        read = {
            name: each if isinstance(each, Preprocessing) else Preprocessing(**each)
            for name, each in self.modalities.items()
        }
        object.__setattr__(self, "modalities", read)
        object.__setattr__(self, "ranges", {name: (low, high) for name, (low, high) in self.ranges.items()})
        object.__setattr__(self, "stated", tuple(sorted(self.stated)))
        if self.rules is not None:
            object.__setattr__(self, "rules", {name: tuple(rule) for name, rule in self.rules.items()})

    def of(self, modality: str) -> Preprocessing:
        """The contract for a modality alone, with the ranges and rules of all; a side is mirrored in all or none."""
        alone = self.modalities.get(modality, self)
        return replace(
            alone, ranges=self.ranges, stated=self.stated, rules=self.rules, mirror=self.mirror, modalities={}
        )

    def groups(self, modality: npt.NDArray[np.str_]) -> list[tuple[Preprocessing, npt.NDArray[np.int64]]]:
        """Each contract that holds for some of these modalities `[n]`, and where it does; together each place once.

        >>> mixed = Preprocessing(64, modalities={"CFP": Preprocessing(96, 3)})
        >>> [(each.size, places.tolist()) for each, places in mixed.groups(np.array(["MR", "CFP", "XR"]))]
        [(96, [1]), (64, [0, 2])]
        """
        found: dict[str, tuple[Preprocessing, list[str]]] = {}
        for name in distinct(modality) if self.modalities else []:
            contract = self.of(name)
            found.setdefault(repr(contract), (contract, []))[1].append(name)
        if not found:
            return [(replace(self, modalities={}), np.arange(len(modality)))]
        return [(contract, np.flatnonzero(np.isin(modality, names))) for contract, names in found.values()]

    def seen_by(self, modality: npt.NDArray[np.str_]) -> Preprocessing:
        """The one contract of these modalities, or this whole one where they have several."""
        groups = self.groups(modality)
        return groups[0][0] if len(groups) == 1 else self

    def lend(self, unknown: Collection[str], modality: npt.NDArray[np.str_]) -> dict[str, Bounds]:
        """Ranges for modalities that have none here: the only one there is, for images of one modality; else none.

        Args:
            unknown: the modalities.
            modality: `[n]`, of all images.

        >>> only = Preprocessing(64, ranges={"XR": (0, 4095)})
        >>> only.lend(["image"], np.array(["image"])), only.lend(["DX"], np.array(["DX", "CR"]))
        ({'image': (0, 4095)}, {})
        """
        if len(self.ranges) != 1 or len(distinct(modality)) != 1:
            return {}
        return dict.fromkeys(unknown, next(iter(self.ranges.values())))

    @property
    def cached_size(self) -> int:
        """Side of the cached square, in pixels."""
        return round(self.size * ENLARGE)

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        """`(C, S, S)` of a cached image."""
        return self.channels, self.cached_size, self.cached_size

    @property
    def key(self) -> str:
        """Name of the cache folder: everything that decides the stored values of a file but how it is read."""
        text = f"{FORMAT}-{self.cached_size}-{self.channels}-{self.fit}"
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def folder(self, reading: str, reader: str = "") -> str:
        """Name of the cache folder of files that are read in this way, as `data.pixels.greys.reading_of` names it.

        Args:
            reading: as that function names it.
            reader: the identity of a reader of one's own, `data.readers.own`; empty for bolus's own.

        >>> Preprocessing(64).folder("file") == Preprocessing(64).key, Preprocessing(64).folder("values")[16:]
        (True, '-values')
        """
        if reader:
            reading = f"{reading} by {reader}"
        if reading in ("file", "values"):
            return self.key if reading == "file" else f"{self.key}-values"
        return f"{self.key}-{hashlib.blake2b(reading.encode(), digest_size=4).hexdigest()}"

    def to_json(self) -> dict[str, Any]:
        """As plain data; `Preprocessing(**data)` reads it back."""
        data = asdict(self)
        data["ranges"] = {name: [float(low), float(high)] for name, (low, high) in self.ranges.items()}
        data["modalities"] = {name: each.to_json() for name, each in sorted(self.modalities.items())}
        data["stated"] = list(self.stated)
        if self.rules is not None:
            data["rules"] = {name: list(rule) for name, rule in sorted(self.rules.items())}
        absent = {"modalities": not self.modalities, "mirror": self.mirror is None, "stated": not self.stated}
        for name in [name for name, empty in {**absent, "rules": self.rules is None}.items() if empty]:
            del data[name]  # as contracts were written before there were such keys
        return data


def join_contracts(contracts: Mapping[str, Preprocessing]) -> Preprocessing:
    """One contract from those of several modalities; what is not named is read as the first says.

    >>> join_contracts({"MR": Preprocessing(64), "CFP": Preprocessing(96, 3), "XR": Preprocessing(64)}).modalities
    {'CFP': Preprocessing(size=96, channels=3, fit='pad', ranges={}, frames=None, mirror=None, modalities={}, stated=(),
    rules=None)}
    """
    ranges = {name: values for each in contracts.values() for name, values in each.ranges.items()}
    stated = tuple({name for each in contracts.values() for name in each.stated})
    known = [each.rules for each in contracts.values() if each.rules is not None]
    rules = {name: rule for each in known for name, rule in each.items()} if known else None
    alone = {name: replace(each, ranges={}, stated=(), rules=None, modalities={}) for name, each in contracts.items()}
    first = next(iter(alone.values()))
    others = {name: each for name, each in alone.items() if each != first}
    return replace(first, ranges=ranges, stated=stated, rules=rules, modalities=others)


@dataclass(frozen=True)
class Shrunk:
    """One image as it is stored: its values are `array * gain + bias`, in the unit of the file.

    Args:
        array: `[C, S, S]` uint8 or uint16.
        gain: of a stored step.
        bias: the value of a stored 0.
        grey: what the image says of its numbers, in the order of `bolus.data.pixels.greys.GREY`.
        quantiles: of its values, float32 `[len(LEVELS)]`; zeros where all is stored in eight bits, whose range is
            their own.
    """

    array: npt.NDArray[Any]
    gain: float
    bias: float
    grey: tuple[Any, ...]
    quantiles: npt.NDArray[np.float32]


def shrink(image: Image, preprocessing: Preprocessing) -> Shrunk:
    """Square, antialiased, quantised to eight bits, or to sixteen where the source has more.

    Values beyond a window or VOI LUT are clipped before they are resampled, as on a display.

    Raises:
        ImageError: a clip, or values that are not finite or more than the bits of the file hold.

    Example:
        >>> from bolus.data.pixels.image import Range
        >>> deep = Image(np.full((1, 4, 4), 4095, np.float32), None, Range(0, 65535, "container"), 16, False)
        >>> small = shrink(deep, Preprocessing(4))
        >>> small.array.shape, small.array.dtype, float(small.array.max() * small.gain + small.bias)
        ((1, 5, 5), dtype('uint16'), 4095.0)
    """
    if image.array.ndim != 3:
        advice = SINGLE_IMAGES if preprocessing.frames is None else IF_FILES
        raise ImageError(f"expected one frame, found {image.array.shape[1]}: {ONE_FRAME}; {advice}")
    grey, values = measure(image), image.array
    facts = np.array([grey], GREY)
    low, high, shown = float(facts["low"][0]), float(facts["high"][0]), image.range
    final, stored = bool(is_final(facts)[0]), shown.rule in ("container", "bits_stored")
    if final and shown.high <= shown.low:  # a window of width 1 is a threshold
        values, facts["shown_low"], facts["shown_high"] = (values > shown.low).astype(np.float32), 0.0, 1.0
        span = (0.0, 1.0)
    elif final or stored:
        span = (shown.low, shown.high)
        if final and (image.padding is not None or low < span[0] or high > span[1]):
            values = np.clip(values, *span)
    else:
        span = (low, high if high > low else low + 1.0)
    dark, bright = span if final else (low, high)
    black = bright if image.inverted else dark
    if image.padding is not None:
        values = np.where(image.padding, np.float32(black), values)
    array = _to_channels(torch.from_numpy(np.require(values, np.float32, "W")), preprocessing.channels)
    array = _square(array, preprocessing, pad=black, aspect=image.aspect)
    levels = 255 if image.bits <= 8 and final else 65535
    scaled = (array - span[0]) / (span[1] - span[0]) * levels
    small = scaled.round_().clamp_(0, levels).numpy().astype(np.uint8 if levels == 255 else np.uint16)
    quantiles = np.zeros(len(LEVELS), np.float32) if levels == 255 else sketch_of(image)
    return Shrunk(small, (span[1] - span[0]) / levels, span[0], tuple(facts[0].item()), quantiles)


def to_unit(image: Shrunk, low: float, high: float) -> npt.NDArray[np.float32]:
    """A stored image in [0, 1], bright is high: float32 `[C, S, S]`.

    Args:
        image: as it is stored.
        low: the value that becomes 0 (1 where the image is inverted).
        high: the value that becomes 1; above `low`.
    """
    unit = np.clip((image.array * image.gain + image.bias - low) / (high - low), 0, 1).astype(np.float32)
    return np.subtract(np.float32(1), unit) if np.array([image.grey], GREY)["inverted"][0] else unit


def _to_channels(array: Tensor, channels: int) -> Tensor:
    if array.shape[0] == channels:
        return array
    if channels == 3:
        return array[:1].expand(3, -1, -1)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)  # luma of ITU-R BT.601
    return (array[:3] * weights).sum(0, keepdim=True)


def _square(array: Tensor, preprocessing: Preprocessing, *, pad: float, aspect: float) -> Tensor:
    """The rectangle of native pixels that covers a square on the body, as `size` x `size` pixels."""
    size = preprocessing.cached_size
    height, width = array.shape[1:]
    sides = canvas((height, width), preprocessing.fit, aspect)
    for axis, length, side in zip((1, 2), (height, width), sides, strict=True):
        if side < length:
            array = array.narrow(axis, (length - side) // 2, side)
        elif side > length:
            before = (side - length) // 2
            border = (before, side - length - before)
            array = F.pad(array, (0, 0, *border) if axis == 1 else border, value=pad)
    return F.interpolate(array[None], (size, size), mode="bilinear", antialias=True, align_corners=False)[0]
