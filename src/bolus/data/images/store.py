"""The images of a cohort's rows as they lie in the cache, each compared with its checksum when it is first read.

A `Store` is what the rest of bolus asks: an `ImageStore` of images and frames, or the `VolumeStore` of
`data.volumes.cache`.
"""

from __future__ import annotations

import logging
import mmap
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bolus.data.images.preprocessing import Preprocessing
from bolus.data.images.shards import mark_damaged
from bolus.errors import BolusError, CohortError, name_rows

_log = logging.getLogger(__name__)

Decode = Callable[[int], npt.NDArray[Any]]
"""Row -> its image decoded anew, `[C, S, S]`; a BolusError where it cannot be."""


@dataclass(frozen=True)
class Quarantined:
    """A row of the table as given of which something was left out; a row is here once.

    Args:
        row: from 0.
        reason: why; several reasons for frames of one file are joined by `; `, each with how many it holds for.
        partial: a clip file of which other frames are there.
    """

    row: int
    reason: str
    partial: bool = False


@dataclass
class Stored:
    """Images as they lie in the cache: `unit = clip(values * gain + bias, 0, 1)`.

    Args:
        values: `[N, C, S, S]` uint8 or uint16; `[N, C, D, H, W]` of volumes.
        gain: float32 `[N, 1, 1, 1]`, or with as many axes as the values.
        bias: likewise.
        spacing: of volumes, mm (D, H, W) between voxels, float32 `[N, 3]`, NaN where it is not known; else None.
    """

    values: Tensor
    gain: Tensor
    bias: Tensor
    spacing: Tensor | None = None

    def pinned(self) -> Stored:
        """In memory from which a CUDA device copies while the program goes on; as they are without one."""
        if not torch.cuda.is_available():
            return self
        return replace(self, values=self.values.pin_memory(), gain=self.gain.pin_memory(), bias=self.bias.pin_memory())

    def unit(self, device: torch.device | str = "cpu") -> Tensor:
        """Float32 in [0, 1] on the device; the narrow integers are what travels."""
        values = self.values.to(device, non_blocking=True)
        gain, bias = self.gain.to(device, non_blocking=True), self.bias.to(device, non_blocking=True)
        return values.float().mul_(gain).add_(bias).clamp_(0.0, 1.0)


@dataclass(frozen=True)
class Content:
    """Where the images of rows come from.

    Args:
        digests: of the content of each file, uint64 `[files, 2]`.
        folders: 64 bits of what each cache folder is for, uint64 `[folders]`.
        file: which of them, integers `[rows]`; those of rows without an image mean nothing.
        frame: integers `[rows]`, -1 for a file that is one image.
        folder: integers `[rows]`.
    """

    digests: npt.NDArray[np.uint64]
    folders: npt.NDArray[np.uint64]
    file: npt.NDArray[Any]
    frame: npt.NDArray[Any]
    folder: npt.NDArray[Any]

    def of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        """Content, frame and folder of these rows, `[n, 4]`."""
        frame = self.frame[rows].astype(np.int64).view(np.uint64)
        return np.column_stack([self.digests[self.file[rows]], frame, self.folders[self.folder[rows]]])


@dataclass(kw_only=True)
class Store(ABC):
    """The cached pixels of a cohort's rows.

    Args:
        preprocessing: the contract, with the range of every modality that needed one.
        quarantined: rows of the table as given that could not be read, with reasons.
        out_of_range: likewise rows with values outside a range that was given, which are shown as black or white there.
        mirrored: bool `[rows]`, which images are mirrored as they are handed out; None where the contract mirrors no
            side, or the cohort has no sides.
        sideless: where a side is mirrored, rows of the table as given that have none and stay as they are.
        folder: of all caches, that of the images' among them.

    Raises:
        CohortError: from `gather`, where a cached image is damaged and cannot be decoded again.
    """

    preprocessing: Preprocessing
    quarantined: list[Quarantined]
    out_of_range: list[int]
    mirrored: npt.NDArray[np.bool_] | None = field(default=None, repr=False)
    sideless: list[int] = field(default_factory=list)
    folder: Path = field(default_factory=Path, repr=False)
    _gain: npt.NDArray[np.float32] = field(repr=False)
    _bias: npt.NDArray[np.float32] = field(repr=False)
    _content: Content | None = field(default=None, repr=False)
    _decode: Decode | None = field(default=None, repr=False)

    noun: ClassVar[str]
    """What is kept, in the plural."""

    @property
    @abstractmethod
    def readable(self) -> npt.NDArray[np.bool_]:
        """Rows that have an image, or are part of a volume that can be read, `[rows]`."""

    @property
    def held(self) -> npt.NDArray[np.bool_]:
        """Rows at which an image or a volume is held, each once, `[rows]`."""
        return self.readable

    @abstractmethod
    def gather(self, rows: npt.NDArray[np.int64]) -> Stored:
        """The images of these rows, in order; every row must be readable, and have the contract of the others."""

    def pictures(self, rows: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.float32]]:
        """A picture in [0, 1] of what each row holds, `[C, H, W]`: the image, or the middle slice of a volume."""
        yield from self.gather(rows).unit().numpy()

    @abstractmethod
    def let_go(self) -> None:
        """Give back the memory that the cache's files take in this process; they are read again when asked for."""

    @property
    def remarks(self) -> list[str]:
        """What a person must know of these images, in sentences; empty where all is well."""
        said = []
        left_out = [item.row for item in self.quarantined if not item.partial]
        if left_out:
            said.append(f"{len(left_out)} {self.noun} cannot be read and are left out ({name_rows(left_out)}).")
        partial = [item.row for item in self.quarantined if item.partial]
        if partial:
            clips = f"{len(partial)} clip{'' if len(partial) == 1 else 's'}"
            said.append(f"{clips} lost some frames, which cannot be read ({name_rows(partial)}).")
        if self.out_of_range:
            ranges = ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in self.preprocessing.ranges.items())
            rows = name_rows(self.out_of_range)
            said.append(f"{len(self.out_of_range)} {self.noun} have values outside {ranges}, clipped there ({rows}).")
        if self.sideless:
            what = f"{len(self.sideless)} {self.noun} have neither side and stay as they are"
            said.append(f"{what}, while those of the {self.preprocessing.mirror} are mirrored.")
        return said

    def content_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        """128 bits of the files' content behind these rows, with their frame and how it is read, uint64 `[n, 2]`."""
        assert self._content is not None
        return self._content.of(rows)

    def keys(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        """128 bits of each of these rows, uint64 `[n, 2]`: equal where their pixels, as `gather` gives them, are.

        Of the file's content and frame, how it was read and made square, how its values become grey, and the mirror.
        """
        found = np.empty((len(rows), 2), np.uint64)
        mirrored = np.zeros(len(rows), bool) if self.mirrored is None else self.mirrored[rows]
        content = self.content_of(rows)
        for place, row in enumerate(rows.tolist()):
            parts = (content[place], self._gain[row], self._bias[row], mirrored[place])
            digest = blake2b(b"".join(each.tobytes() for each in parts), digest_size=16)
            found[place] = np.frombuffer(digest.digest(), np.uint64)
        return found


@dataclass(kw_only=True)
class ImageStore(Store):
    """The cached images of a cohort's rows, each one image or frame.

    Args:
        preprocessing: as of `Store`, and so are the next five.
        quarantined: rows without an image.
        out_of_range: rows beyond a given range.
        mirrored: which are mirrored.
        sideless: without a side.
        folder: of all caches.
    """

    noun = "images"
    _shards: list[npt.NDArray[Any]] = field(repr=False)
    _shard: npt.NDArray[Any] = field(repr=False)  # integers [rows], -1 where quarantined
    _offset: npt.NDArray[Any] = field(repr=False)
    _crc: npt.NDArray[np.uint32] | None = field(default=None, repr=False)  # [rows]; None where nothing was on a disk
    _again: dict[int, npt.NDArray[Any]] = field(default_factory=dict, repr=False)  # rows whose cached image is damaged

    def __post_init__(self) -> None:
        self._whole = np.zeros(len(self._shard), bool)  # rows whose image was found as it was written

    @property
    def readable(self) -> npt.NDArray[np.bool_]:
        """Rows that have an image, `[rows]`."""
        return self._shard >= 0

    def gather(self, rows: npt.NDArray[np.int64]) -> Stored:
        """The images of these rows, in order; every row must be readable, and have the contract of the others."""
        assert (self._shard[rows] >= 0).all(), "a quarantined row was asked for"
        shards = [self._shards[shard] for shard in np.unique(self._shard[rows])]
        assert len({shard.shape[1:] for shard in shards}) == 1, "rows of modalities that differ in size were asked for"
        wide = any(shard.dtype == np.uint16 for shard in shards)
        values = np.empty((len(rows), *shards[0].shape[1:]), np.uint16 if wide else np.uint8)
        for shard in np.unique(self._shard[rows]):
            here = np.flatnonzero(self._shard[rows] == shard)
            values[here] = self._checked(rows[here], self._shards[shard][self._offset[rows[here]]])
        if self.mirrored is not None:
            turned = self.mirrored[rows]
            values[turned] = values[turned][..., ::-1]
        return Stored(
            torch.from_numpy(values),
            torch.from_numpy(self._gain[rows]).view(-1, 1, 1, 1),
            torch.from_numpy(self._bias[rows]).view(-1, 1, 1, 1),
        )

    def _checked(self, rows: npt.NDArray[np.int64], images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The images `[n, C, S, S]` of these rows, those that are damaged in the cache replaced."""
        if self._crc is not None:
            for place in np.flatnonzero(~self._whole[rows]).tolist():
                row = int(rows[place])
                if zlib.crc32(images[place].data) == self._crc[row]:
                    self._whole[row] = True
                else:
                    images[place] = self._decoded_again(row)
        return images

    def _decoded_again(self, row: int) -> npt.NDArray[Any]:
        """The image of a row whose cached copy is damaged: exactly what had been cached, from its file."""
        if row not in self._again:
            assert self._crc is not None
            assert self._decode is not None
            mark_damaged(self._shards[self._shard[row]], int(self._offset[row]))
            try:
                image = self._decode(row)
                if zlib.crc32(image.tobytes()) != self._crc[row]:
                    raise CohortError("its file is not what it was, or is decoded otherwise")
            except BolusError as error:
                raise CohortError(
                    "an image in the cache is damaged, and cannot be decoded again as it was",
                    [f"row {row + 1}: {error}"],
                ) from error
            _log.warning("a damaged image in the cache was decoded again (row %s); is the disk sound?", row + 1)
            self._again[row] = image
        return self._again[row]

    def let_go(self) -> None:
        """Give back the memory that pages of the shards take in this process; they are read again when asked for."""
        if not hasattr(mmap, "MADV_DONTNEED"):  # a system that has no such thing
            return
        for shard in self._shards:
            pages = getattr(shard, "_mmap", None)  # of an array in a file
            if pages is not None:
                pages.madvise(mmap.MADV_DONTNEED)
