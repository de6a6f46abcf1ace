"""What lies between a file's pixels and an encoder's input: the contract, and the small square that the cache keeps.

A stored image is affine in [0, 1]: it carries a gain and a bias, so that a range that is only known after the whole
cohort was read (the next power of two above a modality's maximum) costs no second decoding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from bolus.data.image import Image
from bolus.data.laterality import Side
from bolus.data.samples import IF_FILES
from bolus.errors import ImageError

FORMAT = 2  # part of every key: raise it when the stored values or the files of the cache change
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
        ranges: modality -> the values that become 0 and 1, for images whose file does not say it (no window, no
            BitsStored, more than eight bits).
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
    fit: Literal["pad", "stretch", "crop"] = "pad"
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    frames: int | None = None
    mirror: Side | None = None
    modalities: Mapping[str, Preprocessing] = field(default_factory=dict)

    def __post_init__(self) -> None:
        read = {
            name: each if isinstance(each, Preprocessing) else Preprocessing(**each)
            for name, each in self.modalities.items()
        }
        object.__setattr__(self, "modalities", read)
        object.__setattr__(self, "ranges", {name: (low, high) for name, (low, high) in self.ranges.items()})

    def of(self, modality: str) -> Preprocessing:
        """The contract for a modality alone, with all ranges; a side is mirrored in all or none."""
        return replace(self.modalities.get(modality, self), ranges=self.ranges, mirror=self.mirror, modalities={})

    def groups(self, modality: npt.NDArray[np.str_]) -> list[tuple[Preprocessing, npt.NDArray[np.int64]]]:
        """Each contract that holds for some of these modalities `[n]`, and where it does; together each place once.

        >>> mixed = Preprocessing(64, modalities={"CFP": Preprocessing(96, 3)})
        >>> [(each.size, places.tolist()) for each, places in mixed.groups(np.array(["MR", "CFP", "XR"]))]
        [(96, [1]), (64, [0, 2])]
        """
        found: dict[str, tuple[Preprocessing, list[str]]] = {}
        for name in np.unique(modality).tolist() if self.modalities else []:
            contract = self.of(name)
            found.setdefault(repr(contract), (contract, []))[1].append(name)
        if not found:
            return [(replace(self, modalities={}), np.arange(len(modality)))]
        return [(contract, np.flatnonzero(np.isin(modality, names))) for contract, names in found.values()]

    def seen_by(self, modality: npt.NDArray[np.str_]) -> Preprocessing:
        """The one contract of these modalities, or this whole one where they have several."""
        groups = self.groups(modality)
        return groups[0][0] if len(groups) == 1 else self

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
        """Name of the cache folder: everything that decides the stored values."""
        text = f"{FORMAT}-{self.cached_size}-{self.channels}-{self.fit}"
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """As plain data; `Preprocessing(**data)` reads it back."""
        data = asdict(self)
        data["ranges"] = {name: [float(low), float(high)] for name, (low, high) in self.ranges.items()}
        data["modalities"] = {name: each.to_json() for name, each in sorted(self.modalities.items())}
        if not self.modalities:  # likewise
            del data["modalities"]
        if self.mirror is None:  # as contracts were written before there was such a key
            del data["mirror"]
        return data


def join_contracts(contracts: Mapping[str, Preprocessing]) -> Preprocessing:
    """One contract from those of several modalities; what is not named is read as the first says.

    >>> join_contracts({"MR": Preprocessing(64), "CFP": Preprocessing(96, 3), "XR": Preprocessing(64)}).modalities
    {'CFP': Preprocessing(size=96, channels=3, fit='pad', ranges={}, frames=None, mirror=None, modalities={})}
    """
    ranges = {name: values for each in contracts.values() for name, values in each.ranges.items()}
    alone = {name: replace(each, ranges={}, modalities={}) for name, each in contracts.items()}
    first = next(iter(alone.values()))
    return replace(first, ranges=ranges, modalities={name: each for name, each in alone.items() if each != first})


@dataclass(frozen=True)
class Shrunk:
    """One image as it is stored: its values are `array * gain + bias`.

    Args:
        array: `[C, S, S]` uint8 or uint16.
        gain: of a stored step.
        bias: the value of a stored 0.
        low: smallest value of the source; 0 where the range does not wait.
        high: likewise the largest; 1 where the range does not wait.
        waits: whether values are in modality units until the cohort's range is known; else they are in [0, 1].
        inverted: whether they must then be turned, since bright is low.
    """

    array: npt.NDArray[Any]
    gain: float
    bias: float
    low: float
    high: float
    waits: bool
    inverted: bool


def range_waits(image: Image) -> bool:
    """Whether the file leaves open which values are black and white, so that its cohort must say it."""
    return image.range.rule == "cohort" or (image.range.rule == "container" and image.bits > 8)


def shrink(image: Image, preprocessing: Preprocessing) -> Shrunk:
    """Square, antialiased, quantised to eight bits, or to sixteen where the source has more.

    Raises:
        ImageError: a clip, or values outside the range that the file states.

    Example:
        >>> from bolus.data.image import Range
        >>> deep = Image(np.full((1, 4, 4), 4095, np.float32), None, Range(0, 65535, "container"), 16, False)
        >>> small = shrink(deep, Preprocessing(4))
        >>> small.array.shape, small.array.dtype, small.waits, float(small.array.max() * small.gain + small.bias)
        ((1, 5, 5), dtype('uint16'), True, 4095.0)
    """
    if image.array.ndim != 3:
        advice = SINGLE_IMAGES if preprocessing.frames is None else IF_FILES
        raise ImageError(f"expected one frame, found {image.array.shape[1]}: {ONE_FRAME}; {advice}")
    # A range that the file itself states is applied now; one that belongs to the cohort waits until all are read.
    waits = range_waits(image)
    if waits:
        low, high = float(image.array.min()), float(image.array.max())
        integers = image.range.rule == "container"
        span = (0.0, image.range.high) if integers else (low, high if high > low else low + 1.0)
    else:
        low, high, span = 0.0, 1.0, (0.0, 1.0)
    array = torch.from_numpy(np.require(image.array if waits else image.unit(), np.float32, "W"))
    array = _to_channels(array, preprocessing.channels)
    array = _square(array, preprocessing, pad=low if waits and not image.inverted else (high if waits else 0.0))
    levels = 255 if image.bits <= 8 and not waits else 65535
    scaled = (array - span[0]) / (span[1] - span[0]) * levels
    stored = scaled.round_().clamp_(0, levels).numpy().astype(np.uint8 if levels == 255 else np.uint16)
    return Shrunk(stored, (span[1] - span[0]) / levels, span[0], low, high, waits, waits and image.inverted)


def _to_channels(array: Tensor, channels: int) -> Tensor:
    if array.shape[0] == channels:
        return array
    if channels == 3:
        return array[:1].expand(3, -1, -1)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)  # luma of ITU-R BT.601
    return (array[:3] * weights).sum(0, keepdim=True)


def _square(array: Tensor, preprocessing: Preprocessing, pad: float) -> Tensor:
    size, (height, width) = preprocessing.cached_size, array.shape[1:]
    if preprocessing.fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        array = array[:, top : top + side, left : left + side]
    elif preprocessing.fit == "pad" and height != width:
        longer = max(height, width)
        rows, columns = longer - height, longer - width
        sides = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        array = F.pad(array, sides, value=pad)
    return F.interpolate(array[None], (size, size), mode="bilinear", antialias=True, align_corners=False)[0]
