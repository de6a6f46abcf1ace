"""The image cache: each image is decoded once and kept, antialiased to about 1.25 times the training size.

Shards are memory-mapped arrays `[n, C, S, S]` of uint8 (sources of eight bits) or uint16 (deeper ones), found again by
file content, frame and preprocessing. What is stored is affine in [0, 1]: every image carries a gain and a bias, so a
range that is only known after the whole cohort was read (the next power of two above a modality's maximum) costs no
second decoding. An image that cannot be read is quarantined: left out, counted, reported.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from bolus.data.cohort import Cohort
from bolus.data.image import Image, Range, covering_range
from bolus.data.readers import read_image
from bolus.errors import BolusError, CohortError, ImageError, name_rows

FORMAT = 1  # part of every key: raise it when the stored values change
SHARD = 4096  # images a shard at most
ONE_FRAME = "give each frame a row, and its number a column with the role order"
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
    """

    size: int
    channels: int = 1
    fit: Literal["pad", "stretch", "crop"] = "pad"
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def cached_size(self) -> int:
        """Side of the cached square, in pixels."""
        return round(self.size * ENLARGE)

    @property
    def key(self) -> str:
        """Name of the cache folder: everything that decides the stored values."""
        text = f"{FORMAT}-{self.cached_size}-{self.channels}-{self.fit}"
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """As plain data; `Preprocessing(**data)` reads it back."""
        data = asdict(self)
        data["ranges"] = {name: [float(low), float(high)] for name, (low, high) in self.ranges.items()}
        return data


@dataclass(frozen=True)
class Quarantined:
    """One image that was left out: its row (from 0) and why."""

    row: int
    reason: str


@dataclass
class Stored:
    """Images as they lie in the cache: `unit = clip(values * gain + bias, 0, 1)`.

    Args:
        values: `[N, C, S, S]` uint8 or uint16.
        gain: `[N, 1, 1, 1]` float32.
        bias: `[N, 1, 1, 1]` float32.
    """

    values: Tensor
    gain: Tensor
    bias: Tensor

    def unit(self, device: torch.device | str = "cpu") -> Tensor:
        """Float32 in [0, 1] on the device; the narrow integers are what travels."""
        values = self.values.to(device, non_blocking=True)
        gain, bias = self.gain.to(device, non_blocking=True), self.bias.to(device, non_blocking=True)
        return values.float().mul_(gain).add_(bias).clamp_(0.0, 1.0)


@dataclass
class ImageStore:
    """The cached images of a cohort's rows.

    Args:
        preprocessing: the contract, with the range of every modality that needed one.
        quarantined: rows that could not be read, with reasons.
        out_of_range: rows with values outside a range that was given, which are shown as black or white there.
    """

    preprocessing: Preprocessing
    quarantined: list[Quarantined]
    out_of_range: list[int]
    _shards: list[npt.NDArray[Any]] = field(repr=False)
    _shard: npt.NDArray[np.int64] = field(repr=False)  # [rows], -1 where quarantined
    _offset: npt.NDArray[np.int64] = field(repr=False)
    _gain: npt.NDArray[np.float32] = field(repr=False)
    _bias: npt.NDArray[np.float32] = field(repr=False)

    @property
    def readable(self) -> npt.NDArray[np.bool_]:
        """Rows that have an image, `[rows]`."""
        return self._shard >= 0

    @property
    def remarks(self) -> list[str]:
        """What a person must know of these images, in sentences; empty where all is well."""
        said = []
        if self.quarantined:
            rows = name_rows([item.row for item in self.quarantined])
            said.append(f"{len(self.quarantined)} images cannot be read and are left out ({rows}).")
        if self.out_of_range:
            ranges = ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in self.preprocessing.ranges.items())
            rows = name_rows(self.out_of_range)
            said.append(f"{len(self.out_of_range)} images have values outside {ranges}, clipped there ({rows}).")
        return said

    def gather(self, rows: npt.NDArray[np.int64]) -> Stored:
        """The images of these rows, in order; every row must be readable."""
        assert (self._shard[rows] >= 0).all(), "a quarantined row was asked for"
        shards = [self._shards[shard] for shard in np.unique(self._shard[rows])]
        wide = any(shard.dtype == np.uint16 for shard in shards)
        values = np.empty((len(rows), *shards[0].shape[1:]), np.uint16 if wide else np.uint8)
        for shard in np.unique(self._shard[rows]):
            here = np.flatnonzero(self._shard[rows] == shard)
            values[here] = self._shards[shard][self._offset[rows[here]]]
        return Stored(
            torch.from_numpy(values),
            torch.from_numpy(self._gain[rows]).view(-1, 1, 1, 1),
            torch.from_numpy(self._bias[rows]).view(-1, 1, 1, 1),
        )


def cache_folder() -> Path:
    """Where caches lie: `BOLUS_CACHE`, or the user's cache folder."""
    return Path(os.environ.get("BOLUS_CACHE", Path.home() / ".cache" / "bolus"))


def build_store(
    cohort: Cohort,
    preprocessing: Preprocessing,
    *,
    folder: Path | None = None,
    rows: npt.NDArray[np.int64] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ImageStore:
    """Decode what is not cached yet and open the rest.

    Args:
        cohort: whose images.
        preprocessing: what the encoder will see; ranges that it lacks are found here.
        folder: of all caches; `cache_folder()` where None.
        rows: which rows are needed; all where None. The others count as absent, not as quarantined.
        on_progress: called with (done, total) while images are decoded.

    Raises:
        CohortError: more than half of the images cannot be read.
    """
    folder = (folder or cache_folder()) / preprocessing.key
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.arange(len(cohort), dtype=np.int64) if rows is None else rows
    known = _Manifest(folder)
    quarantined: list[Quarantined] = []
    entries = np.full(len(cohort), -1, np.int64)
    todo: list[tuple[int, str, str]] = []
    digests: dict[Path, hashlib.blake2b] = {}  # many rows may be frames of one file
    for row in rows.tolist():
        path, frame = cohort.image_path(row), cohort.frame(row)
        try:
            stat_key = _stat_key(path, frame)
            found = known.by_stat.get(stat_key)
            if found is None and path not in digests:
                digests[path] = _digest(path)
        except OSError as error:
            quarantined.append(Quarantined(row, f"the file cannot be opened: {error.strerror}"))
            continue
        if found is None:
            content = _content_key(digests[path], frame)
            found = known.by_content.get(content)
            if found is None:
                todo.append((row, stat_key, content))
                continue
        entries[row] = found

    written: dict[str, int] = {}
    for start in range(0, len(todo), SHARD):
        part = todo[start : start + SHARD]
        quarantined += _write_shards(cohort, preprocessing, folder, part, known, written, start, len(todo), on_progress)
    for row, _, content in todo:
        entries[row] = written.get(content, -1)

    if len(rows) and len(quarantined) > len(rows) / 2:
        reasons = [f"{name_rows([item.row])}: {item.reason}" for item in sorted(quarantined, key=lambda item: item.row)]
        raise CohortError(f"{len(quarantined)} of {len(rows)} images cannot be read", reasons)
    return _open(cohort, preprocessing, known, entries, sorted(quarantined, key=lambda item: item.row))


def reason_without_name(error: BolusError, path: Path) -> str:
    """Why an image cannot be read, without the name of its file, which often holds the patient's identifier.

    >>> reason_without_name(ImageError("p17_left.png: the file is empty"), Path("images/p17_left.png"))
    'the file is empty'
    """
    reason = str(error).removeprefix(f"{path.name}: ")
    return reason.replace(str(path), "the file").replace(path.name, "the file")


class _Manifest:
    """What the shards of one cache folder hold; each shard's own JSON is written last, so none is seen torn."""

    def __init__(self, folder: Path) -> None:
        self.files: list[Path] = []
        self.records: list[dict[str, Any]] = []
        self.by_stat: dict[str, int] = {}
        self.by_content: dict[str, int] = {}
        for path in sorted(folder.glob("*.json")):
            self.add(path.with_suffix(".npy"), json.loads(path.read_text(encoding="utf-8")))

    def add(self, file: Path, records: list[dict[str, Any]]) -> None:
        for offset, record in enumerate(records):
            position = len(self.records)
            self.records.append({**record, "file": len(self.files), "offset": offset})
            self.by_stat[record["stat"]] = position
            self.by_content[record["content"]] = position
        self.files.append(file)


def _stat_key(path: Path, frame: int | None) -> str:
    stat = path.stat()
    text = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{frame}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _digest(path: Path) -> hashlib.blake2b:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest


def _content_key(digest: hashlib.blake2b, frame: int | None) -> str:
    digest = digest.copy()
    digest.update(f"|{frame}".encode())
    return digest.hexdigest()


def _write_shards(
    cohort: Cohort,
    preprocessing: Preprocessing,
    folder: Path,
    todo: list[tuple[int, str, str]],
    known: _Manifest,
    written: dict[str, int],
    done: int,
    total: int,
    on_progress: Callable[[int, int], None] | None,
) -> list[Quarantined]:
    quarantined: list[Quarantined] = []
    stored: dict[Any, list[tuple[npt.NDArray[Any], dict[str, Any]]]] = {np.uint8: [], np.uint16: []}
    queued: dict[str, tuple[int, str, str]] = {}
    for item in todo:
        queued.setdefault(item[2], item)
    by_content = {item[0]: item for item in queued.values() if item[2] not in written}
    failed: dict[str, str] = {}
    for row, result in _decode(cohort, preprocessing, list(by_content)):
        done += 1
        if on_progress is not None:
            on_progress(done, total)
        _, stat_key, content = by_content[row]
        if isinstance(result, str):
            failed[content] = result
            continue
        array, record = result
        stored[array.dtype.type].append((array, {**record, "stat": stat_key, "content": content}))
    quarantined = [Quarantined(row, failed[content]) for row, _, content in todo if content in failed]
    for items in stored.values():
        if items:
            file = folder / f"{uuid.uuid4().hex}.npy"
            temporary = file.with_suffix(".tmp")
            with temporary.open("wb") as handle:
                np.save(handle, np.stack([array for array, _ in items]))
            temporary.replace(file)
            records = [record for _, record in items]
            manifest = file.with_suffix(".json.tmp")
            manifest.write_text(json.dumps(records), encoding="utf-8")
            first = len(known.records)
            known.add(file, records)
            manifest.replace(file.with_suffix(".json"))
            written.update({record["content"]: first + offset for offset, record in enumerate(records)})
    return quarantined


def _decode(
    cohort: Cohort, preprocessing: Preprocessing, rows: list[int]
) -> Iterator[tuple[int, str | tuple[npt.NDArray[Any], dict[str, Any]]]]:
    def one(row: int) -> tuple[int, str | tuple[npt.NDArray[Any], dict[str, Any]]]:
        try:
            image = read_image(cohort.image_path(row), frame=cohort.frame(row))
            return row, _shrink(image, preprocessing)
        except BolusError as error:
            return row, reason_without_name(error, cohort.image_path(row))

    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        yield from pool.map(one, rows)


def range_waits(image: Image) -> bool:
    """Whether the file leaves open which values are black and white, so that its cohort must say it."""
    return image.range.rule == "cohort" or (image.range.rule == "container" and image.bits > 8)


def _shrink(image: Image, preprocessing: Preprocessing) -> tuple[npt.NDArray[Any], dict[str, Any]]:
    """Square, antialiased, quantised; with the record that says how stored values become values in [0, 1]."""
    if image.array.ndim != 3:
        raise ImageError(f"expected one frame, found {image.array.shape[1]}: {ONE_FRAME}")
    # A range that the file itself states is applied now; one that belongs to the cohort waits until all are read.
    waits = range_waits(image)
    if waits:
        low, high = float(image.array.min()), float(image.array.max())
        integers = image.range.rule == "container"
        span = (0.0, image.range.high) if integers else (low, high if high > low else low + 1.0)
    else:
        low, high, span = 0.0, 1.0, (0.0, 1.0)
    array = torch.from_numpy((image.array if waits else image.unit()).astype(np.float32, copy=False))
    array = _to_channels(array, preprocessing.channels)
    array = _square(array, preprocessing, pad=low if waits and not image.inverted else (high if waits else 0.0))
    levels = 255 if image.bits <= 8 and not waits else 65535
    scaled = (array - span[0]) / (span[1] - span[0]) * levels
    stored = scaled.round_().clamp_(0, levels).numpy().astype(np.uint8 if levels == 255 else np.uint16)
    record = {
        "gain": (span[1] - span[0]) / levels,
        "bias": span[0],
        "waits": waits,
        "inverted": waits and image.inverted,
        "low": low,
        "high": high,
    }
    return stored, record


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


def _open(
    cohort: Cohort,
    preprocessing: Preprocessing,
    known: _Manifest,
    entries: npt.NDArray[np.int64],
    quarantined: list[Quarantined],
) -> ImageStore:
    readable = np.flatnonzero(entries >= 0)
    records = pd.DataFrame([known.records[entries[row]] for row in readable])
    gain, bias = np.ones(len(cohort), np.float32), np.zeros(len(cohort), np.float32)
    shard, offset = np.full(len(cohort), -1, np.int64), np.zeros(len(cohort), np.int64)
    ranges = {name: (float(low), float(high)) for name, (low, high) in preprocessing.ranges.items()}
    out_of_range: list[int] = []
    if len(records):
        modality = cohort.modality[readable]
        waiting = records["waits"].to_numpy(bool)
        for name in np.unique(modality[waiting]):
            here = waiting & (modality == name)
            if name not in ranges:
                covering: Range = covering_range(
                    float(records["high"][here].max()), float(min(0.0, records["low"][here].min()))
                )
                ranges[str(name)] = (covering.low, covering.high)
        low = np.array([ranges[name][0] if wait else 0.0 for name, wait in zip(modality, waiting, strict=True)])
        high = np.array([ranges[name][1] if wait else 1.0 for name, wait in zip(modality, waiting, strict=True)])
        outside = waiting & ((records["high"] > high) | (records["low"] < low)).to_numpy()
        out_of_range = readable[outside].tolist()
        slope = records["gain"].to_numpy(float) / (high - low)
        shift = (records["bias"].to_numpy(float) - low) / (high - low)
        inverted = records["inverted"].to_numpy(bool)
        gain[readable] = np.where(inverted, -slope, slope)
        bias[readable] = np.where(inverted, 1.0 - shift, shift)
        used, shard[readable] = np.unique(records["file"], return_inverse=True)
        offset[readable] = records["offset"]
        shards = [np.load(known.files[file], mmap_mode="r") for file in used]
    else:
        shards = []
    contract = Preprocessing(preprocessing.size, preprocessing.channels, preprocessing.fit, ranges)
    return ImageStore(contract, quarantined, out_of_range, shards, shard, offset, gain, bias)
