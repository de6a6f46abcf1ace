"""What lies between a file's pixels and an encoder's input: the contract; `data.images.shrinking` carries it out."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bolus.data.cohort.coding import distinct
from bolus.data.pixels.range_rules import Bounds, RangeRule
from bolus.data.pixels.square import Fit
from bolus.data.text.laterality import Side
from bolus.data.volumes.fit import VolumeFit, in_words

FORMAT = 4  # part of every key: raise it when the stored values or the files of the cache change
VOLUME_FORMAT = 1  # likewise, of volumes
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
        volume: of an encoder of volumes, their box; `size` is then its longest side, and `fit` says how a volume comes
            into the box: `stretch` squeezes all of it, whatever its spacing; `pad` and `crop` keep voxels, and the
            encoder sees windows of the volume (of its middle, 1.25 boxes long, for `crop`), padded with black where it
            is smaller. None: images or clips.

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
    volume: VolumeFit | None = None

    def __post_init__(self) -> None:
        read = {
            name: each if isinstance(each, Preprocessing) else Preprocessing(**each)
            for name, each in self.modalities.items()
        }
        object.__setattr__(self, "modalities", read)
        given: Any = self.volume  # plain data, where it was read from a file
        if isinstance(given, Mapping):
            object.__setattr__(self, "volume", VolumeFit(**given))
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
    def kept_of_volume(self) -> tuple[Any, ...]:
        """What decides the voxels that the cache keeps: whole volumes are kept alike, whatever windows are seen."""
        assert self.volume is not None
        size = None if self.fit == "pad" else self.volume.size
        return self.fit, size, self.volume.spacing, self.volume.foreground

    @property
    def unit(self) -> str:
        """What a sample is: `image`, `clip` or `volume`."""
        return "volume" if self.volume is not None else "clip" if self.frames is not None else "image"

    @property
    def sides(self) -> tuple[int, ...]:
        """What the encoder sees, pixels (H, W), or of a volume voxels (D, H, W)."""
        return (self.size, self.size) if self.volume is None else self.volume.size

    @property
    def images_per_view(self) -> int:
        """How many images a view weighs as: the frames of a clip, the slices of a volume's box."""
        return self.frames or (1 if self.volume is None else self.volume.size[0])

    @property
    def extent(self) -> str:
        """What the encoder sees of a sample, in words, such as `224 x 224 pixels` or `32 x 64 x 64 voxels`."""
        return in_words(self.sides, "pixels" if self.volume is None else "voxels")

    @property
    def key(self) -> str:
        """Name of the cache folder: everything that decides the stored values of a file but how it is read."""
        if self.volume is not None:
            text = f"{FORMAT}-volume-{VOLUME_FORMAT}-{self.channels}-{self.kept_of_volume}"
        else:
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
        absent |= {"rules": self.rules is None, "volume": self.volume is None}
        for name in [name for name, empty in absent.items() if empty]:
            del data[name]  # as contracts were written before there were such keys
        return data


def join_contracts(contracts: Mapping[str, Preprocessing]) -> Preprocessing:
    """One contract from those of several modalities; what is not named is read as the first says.

    >>> join_contracts({"MR": Preprocessing(64), "CFP": Preprocessing(96, 3), "XR": Preprocessing(64)}).modalities
    {'CFP': Preprocessing(size=96, channels=3, fit='pad', ranges={}, frames=None, mirror=None, modalities={}, stated=(),
    rules=None, volume=None)}
    """
    ranges = {name: values for each in contracts.values() for name, values in each.ranges.items()}
    stated = tuple({name for each in contracts.values() for name in each.stated})
    known = [each.rules for each in contracts.values() if each.rules is not None]
    rules = {name: rule for each in known for name, rule in each.items()} if known else None
    alone = {name: replace(each, ranges={}, stated=(), rules=None, modalities={}) for name, each in contracts.items()}
    first = next(iter(alone.values()))
    others = {name: each for name, each in alone.items() if each != first}
    return replace(first, ranges=ranges, stated=stated, rules=rules, modalities=others)
