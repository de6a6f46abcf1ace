"""The files of a cache folder: shards of images, what they hold, and which files on disk were seen with which content.

`ID.npy` is a memory-mapped array `[n, C, S, S]`; `ID.quantiles`, of shards of 16 bits, says how the values of its n
images are distributed; `ID.records`, written after both, says what they are, each with a checksum of its image;
`ID.seen` maps paths with their size and time of change to the digest of their content, so that a file is hashed once.
Each is written under a temporary name and renamed when whole, none is ever changed, and what is torn or damaged is as
if it were absent. `ID.damaged` names images of a shard whose checksum was found to differ: the next time they are
decoded again.
"""

from __future__ import annotations

import threading
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.checksums import load_array, save_array
from bolus.data.images.shrinking import Shrunk
from bolus.data.pixels.greys import GREY
from bolus.data.pixels.quantiles import LEVELS
from bolus.files import put_in_place

PART_BYTES = 256 * 2**20  # of a shard at most
PART_IMAGES = 4096  # likewise: a killed build loses no more than these
ORPHANED = 86400.0  # seconds after which a file that no build finished is removed

READ = 2**18  # images whose records are looked at together
DENSE = 4  # places for each image up to which a table of all files and frames is kept

# What a shard holds; a frame of -1 stands for a file that is one image. Values are `stored * gain + bias`.
# The CRC-32 is that of the image's bytes.
RECORD = np.dtype(
    [("digest", "u8", (2,)), ("frame", "i8"), ("gain", "f8"), ("bias", "f8"), ("grey", GREY), ("crc", "u4")]
)
SIGHTING = np.dtype([("path", "u8"), ("size", "i8"), ("mtime", "i8"), ("digest", "u8", (2,))])
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # odd, so that what differs by little lies far apart

Integers = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Manifest:
    """All images and sightings of one cache folder.

    Args:
        arrays: the shards, memory-mapped.
        records: of each shard, the file of its records.
        digest: of the content of each image's file, `[images, 2]`.
        frame: of that file, `[images]`; -1 for a file that is one image.
        shard: which of `arrays`, int32 `[images]`; these rise.
        offset: where in it, int32 `[images]`.
        sightings: `[files]` of dtype `SIGHTING`.
        quantiles: of each shard, float32 `[its images, len(LEVELS)]`, memory-mapped; None of a shard of eight bits.
    """

    arrays: list[npt.NDArray[Any]]
    records: list[Path]
    digest: Keys
    frame: npt.NDArray[np.int32]
    shard: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int32]
    sightings: npt.NDArray[np.void]
    quantiles: list[npt.NDArray[np.float32] | None]

    def quantiles_of(self, entries: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """How the values of these images are distributed, `[n, len(LEVELS)]`; zeros where all is of eight bits."""
        found = np.zeros((len(entries), len(LEVELS)), np.float32)
        for shard, here in by_group(self.shard[entries]):
            known = self.quantiles[shard]
            if known is not None:
                found[here] = known[self.offset[entries[here]]]
        return found

    def read(self, entries: npt.NDArray[np.int32]) -> Iterator[tuple[Integers, npt.NDArray[np.void]]]:
        """What is known of these images: places among them, and there of dtype `RECORD`; some shards at a time."""
        places, records = list[Integers](), list[npt.NDArray[np.void]]()
        for shard, here in by_group(self.shard[entries]):
            part: npt.NDArray[np.void] = np.load(self.records[shard])
            places.append(here)
            records.append(_pick(part, self.offset[entries[here]]))
            if sum(map(len, places)) >= READ:
                yield np.concatenate(places), np.concatenate(records)
                places, records = [], []
        if places:
            yield np.concatenate(places), np.concatenate(records)

    def find_images(self, digests: Keys, file: Integers, frame: Integers) -> npt.NDArray[np.int32]:
        """The images of some files' frames: positions, int32 `[N]`; of several the last, -1 where there is none.

        Args:
            digests: of the content of each file, `[files, 2]`.
            file: which of them, `[N]`.
            frame: `[N]`.
        """
        contents = pd.Index(digests[:, 0]).unique()
        held = contents.get_indexer(pd.Index(self.digest[:, 0]))
        wide = int(max(self.frame.max(initial=-1), frame.max(initial=-1))) + 2
        wanted = contents.get_indexer(pd.Index(digests[:, 0]))[file] * wide + frame + 1
        known = np.flatnonzero(held >= 0)
        keys = held[known] * wide + self.frame[known] + 1
        if len(contents) * wide <= DENSE * (len(file) + len(known)) + READ:
            table = np.full(len(contents) * wide, -1, np.int32)
            table[keys] = known  # of several the last
            found = table[wanted]
        else:
            found = np.append(known, -1)[_find(keys.view(np.uint64), wanted.view(np.uint64))]
        there = np.flatnonzero(found >= 0)
        at = found[there]
        other = (self.digest[at, 1] != digests[file[there], 1]) | (self.frame[at] != frame[there])
        found[there[other]] = -1
        return np.asarray(found, np.int32)

    def find_digests(self, wanted: npt.NDArray[np.void]) -> tuple[Keys, npt.NDArray[np.bool_]]:
        """The digest `[N, 2]` of files as they are now, and whether it is known, `[N]`."""
        found = _find(_sighting_address(self.sightings), _sighting_address(wanted))
        if not len(self.sightings):
            return wanted["digest"].copy(), np.zeros(len(wanted), np.bool_)
        seen = self.sightings[found]
        known = found >= 0
        for name in ("path", "size", "mtime"):
            known &= seen[name] == wanted[name]
        return seen["digest"].copy(), known


NOTHING = Manifest(
    [],
    [],
    np.empty((0, 2), np.uint64),
    np.empty(0, np.int32),
    np.empty(0, np.int32),
    np.empty(0, np.int32),
    np.empty(0, SIGHTING),
    [],
)
"""Of a cache folder that nobody looks into."""


def by_group(codes: npt.NDArray[Any]) -> Iterator[tuple[int, Integers]]:
    """Each different code, and where it stands, in the order of the codes.

    >>> [(code, places.tolist()) for code, places in by_group(np.array([3, 1, 3]))]
    [(1, [1]), (3, [0, 2])]
    """
    if not len(codes):
        return
    rising = (np.diff(codes) >= 0).all()
    order = np.arange(len(codes)) if rising else np.argsort(codes, kind="stable")
    for places in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        yield int(codes[places[0]]), places


def _pick(values: npt.NDArray[Any], places: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """These places of an array; the array itself where that is all of it, in order."""
    whole = len(places) == len(values) and bool((places == np.arange(len(values))).all())
    return values if whole else np.asarray(values[places])


def are_alike(records: npt.NDArray[np.void]) -> bool:
    """Whether images differ in nothing but their content, as those of eight bits without a window do."""
    first, last = RECORD.fields["gain"][1], RECORD.fields["crc"][1]  # type: ignore[index]
    told = np.ascontiguousarray(records).view(np.uint8).reshape(len(records), -1)[:, first:last]
    return bool((told[-1:] == told[:1]).all() and (told == told[:1]).all())


def read_manifest(folder: Path, shape: tuple[int, int, int]) -> Manifest:
    """Everything in a cache folder that is whole; shards whose images are missing or cut off are left out."""
    arrays: list[npt.NDArray[Any]] = []
    quantiles: list[npt.NDArray[np.float32] | None] = []
    records: list[Path] = []
    digests, frames = [np.empty((0, 2), np.uint64)], [np.empty(0, np.int32)]
    offsets: list[Integers] = [np.empty(0, np.int64)]
    for path in sorted(folder.glob("*.records")):
        part, images = load_array(path), _map(path.with_suffix(".npy"))
        if part is None or images is None or images.shape != (len(part), *shape):
            continue
        wide = images.dtype == np.uint16
        spread = load_array(path.with_suffix(".quantiles"), mapped=True) if wide else None
        if wide and (spread is None or len(spread) != len(part)):
            continue
        whole, damaged = np.arange(len(part)), _damaged(path.with_suffix(".damaged"))
        whole = np.setdiff1d(whole, damaged) if len(damaged) else whole
        arrays.append(images)
        quantiles.append(spread)
        records.append(path)
        digests.append(_pick(part["digest"], whole).copy())  # else all of the part would be kept
        frames.append(_pick(part["frame"], whole).astype(np.int32))
        offsets.append(whole)
    return Manifest(
        arrays,
        records,
        np.concatenate(digests),
        np.concatenate(frames),
        np.repeat(np.arange(len(arrays), dtype=np.int32), np.array([len(each) for each in offsets[1:]], np.int64)),
        np.concatenate(offsets).astype(np.int32),
        read_sightings(folder),
        quantiles,
    )


def read_sightings(folder: Path) -> npt.NDArray[np.void]:
    """Which files were seen with which content, `[files]` of dtype `SIGHTING`."""
    sightings = [seen for path in sorted(folder.glob("*.seen")) if (seen := load_array(path)) is not None]
    return np.concatenate([np.empty(0, SIGHTING), *sightings])


def write_sightings(folder: Path, sightings: npt.NDArray[np.void]) -> None:
    """Keep what was learnt by hashing files, in a file of its own; a cache that may only be read stays as it is."""
    with suppress(OSError):
        save_array(folder / f"{uuid.uuid4().hex}.seen", sightings)


def mark_damaged(array: npt.NDArray[Any], offset: int) -> None:
    """Note that an image of a shard is not what was written; a cache that may only be read stays as it is.

    Args:
        array: the shard, as a manifest has it.
        offset: where in it.
    """
    assert isinstance(array, np.memmap)
    assert array.filename is not None
    with suppress(OSError), Path(array.filename).with_suffix(".damaged").open("ab") as file:
        file.write(np.int64(offset).tobytes())


def remove_orphans(folder: Path) -> None:
    """Delete what builds left that were killed more than a day ago."""
    for path in [*folder.glob("*.tmp"), *folder.glob("*.npy"), *folder.glob("*.quantiles"), *folder.glob("*.b2nd")]:
        if path.suffix != ".tmp" and path.with_suffix(".records").exists():
            continue
        try:
            if time.time() - path.stat().st_mtime > ORPHANED:
                path.unlink()
        except OSError:  # another build was faster, or the folder may only be read
            continue


class ShardWriter:
    """Appends images to shards from any thread; leaving the context keeps also a part that is not full.

    Args:
        folder: of the cache.
        shape: `(C, S, S)` of each image.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int]) -> None:
        self._folder, self._shape = folder, shape
        self._parts: dict[np.dtype[Any], _Part] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            while self._parts:
                self._parts.popitem()[1].close()

    def add(self, digest: Keys, frame: int, image: Shrunk) -> None:
        """Store one image under the content `[2]` of its file, and its frame or -1."""
        kind, content = image.array.dtype, image.array.tobytes()
        crc = zlib.crc32(content)
        with self._lock:
            if kind not in self._parts:
                self._parts[kind] = _Part(self._folder, kind, self._shape)
            part = self._parts[kind]
            part.file.write(content)
            part.records.append((tuple(digest), frame, image.gain, image.bias, image.grey, crc))
            part.quantiles.append(image.quantiles)
            if len(part.records) >= min(PART_IMAGES, PART_BYTES // image.array.nbytes):
                self._parts.pop(kind).close()


class _Part:
    """A shard being written: plain appends, so that a full disk is an error and not a crash of the mapping."""

    def __init__(self, folder: Path, kind: np.dtype[Any], shape: tuple[int, int, int]) -> None:
        self.path, self.kind, self.shape = folder / f"{uuid.uuid4().hex}.npy", kind, shape
        self.records: list[tuple[Any, ...]] = []
        self.quantiles: list[npt.NDArray[np.float32]] = []
        self.temporary = self.path.with_suffix(".npy.tmp")
        self.file = self.temporary.open("wb")
        self._write_header(PART_IMAGES)  # the number is not known yet; the header has room for any

    def _write_header(self, number: int) -> None:
        fields = {"descr": self.kind.str, "fortran_order": False, "shape": (number, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, fields)

    def close(self) -> None:
        try:
            with self.file as file:
                file.seek(0)
                self._write_header(len(self.records))
            put_in_place(self.temporary, self.path)
        except OSError:
            self.temporary.unlink(missing_ok=True)
            raise
        if self.kind == np.uint16:
            save_array(self.path.with_suffix(".quantiles"), np.stack(self.quantiles))
        save_array(self.path.with_suffix(".records"), np.array(self.records, RECORD))


def _map(path: Path) -> npt.NDArray[Any] | None:
    """A shard's images in their file, or None where it is absent or short; whether they are whole, records tell."""
    try:
        mapped: npt.NDArray[Any] = np.load(path, mmap_mode="r")
        return mapped if mapped.dtype in (np.uint8, np.uint16) else None
    except (OSError, ValueError, EOFError):
        return None


def _damaged(path: Path) -> Integers:
    """Offsets of images that were found damaged."""
    try:
        content = path.read_bytes()
        return np.frombuffer(content[: len(content) // 8 * 8], np.int64)
    except OSError:
        return np.empty(0, np.int64)


def _sighting_address(sightings: npt.NDArray[np.void]) -> Keys:
    """One number for a path as it was at one time; a file that changes back is found again."""
    address = sightings["path"] + sightings["size"].astype(np.uint64) * _SPREAD
    address ^= sightings["mtime"].astype(np.uint64) * _SPREAD
    return address  # type: ignore[no-any-return]


def _find(known: Keys, wanted: Keys) -> Integers:
    """Position of each wanted key, of equal ones the last; -1 where absent.

    >>> _find(np.array([7, 5, 7], np.uint64), np.array([7, 6, 5], np.uint64)).tolist()
    [2, -1, 1]
    """
    if not len(known):
        return np.full(len(wanted), -1, np.int64)
    last = np.flatnonzero(~pd.Index(known).duplicated(keep="last"))
    at = pd.Index(known[last]).get_indexer(pd.Index(wanted))
    return np.where(at >= 0, last[at], -1)
