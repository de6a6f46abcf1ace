"""The volumes of a cohort as they lie in the cache: read whole or in windows, checked when they are first read."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bolus.data.images.store import Store, Stored
from bolus.data.volumes.cache.files import forget, is_whole, read_part
from bolus.data.volumes.cache.windows import Corners, centred
from bolus.errors import BolusError, CohortError

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class VolumeStore(Store):
    """The cached volumes of a cohort's rows; every row of a volume stands for all of it.

    Args:
        preprocessing: as of `Store`, and so are the next five; its `volume` is the box.
        quarantined: the first rows of volumes that could not be read.
        out_of_range: first rows of volumes beyond a given range.
        mirrored: which rows are of volumes that are mirrored.
        sideless: first rows of volumes without a side.
        folder: of all caches.
        shape: int64 `[rows, 4]`, channels and voxels of the volume that each row is of; zeros where there is none.
        spacing: float64 `[rows, 3]`, mm between its voxels, NaN where it is not known.
    """

    noun = "volumes"
    shape: npt.NDArray[np.int64] = field(repr=False)
    spacing: npt.NDArray[np.float64] = field(repr=False)
    _first: npt.NDArray[np.int64] = field(repr=False)  # [rows], the row at which its volume is held; -1 without one
    _paths: dict[int, Path] = field(repr=False)  # that row -> the file
    _bits: npt.NDArray[np.uint8] = field(repr=False)  # [rows], 8 or 16
    _crc: npt.NDArray[np.uint32] = field(repr=False)  # [rows], of the voxels
    _file: npt.NDArray[np.uint32] = field(repr=False)  # [rows], of the file
    _kept: dict[int, npt.NDArray[Any]] = field(default_factory=dict, repr=False)  # volumes that are in memory

    def __post_init__(self) -> None:
        self._whole = np.zeros(len(self._first), bool)  # rows whose file was found as it was written

    @property
    def readable(self) -> npt.NDArray[np.bool_]:
        """Rows of volumes that can be read, `[rows]`."""
        return self._first >= 0

    @cached_property
    def largest(self) -> npt.NDArray[np.int64]:
        """The most voxels along each axis, int64 `[3]`."""
        found: npt.NDArray[np.int64] = self.shape[:, 1:].max(axis=0, initial=0)
        return found

    @property
    def held(self) -> npt.NDArray[np.bool_]:
        """The first rows of volumes that can be read, `[rows]`."""
        return np.asarray(self._first == np.arange(len(self._first)))

    def gather(
        self, rows: npt.NDArray[np.int64], corners: Corners | None = None, size: Sequence[int] | None = None
    ) -> Stored:
        """Windows of the volumes of these rows, in order; every row must be readable.

        What a window has beyond the volume is black: the darkest value that the volume can have.

        Args:
            rows: int64 `[n]`; a row may come several times.
            corners: int64 `[n, 3]` voxels (D, H, W) of the volume at which windows begin; where None they are in the
                middle.
            size: voxels of every window; where None they hold the largest of these volumes.

        Returns:
            Values `[n, C, d, h, w]`, with gain and bias `[n, 1, 1, 1, 1]`, and spacing.
        """
        first = self._first[rows]
        assert (first >= 0).all(), "a quarantined row was asked for"
        shapes = self.shape[first, 1:]
        box = shapes.max(axis=0, initial=1) if size is None else np.asarray(size, np.int64)
        corners = np.stack([centred(shape, box) for shape in shapes]) if corners is None else corners
        channels = np.unique(self.shape[first, 0])
        assert len(channels) == 1, "rows of modalities that differ in channels were asked for"
        kind = np.uint16 if (self._bits[first] == 16).any() else np.uint8
        values = np.empty((len(rows), int(channels[0]), *box.tolist()), kind)
        for place, row in enumerate(first.tolist()):
            self._read(row, corners[place], values[place])
        return Stored(
            torch.from_numpy(values),
            torch.from_numpy(self._gain[first]).view(-1, 1, 1, 1, 1),
            torch.from_numpy(self._bias[first]).view(-1, 1, 1, 1, 1),
            torch.from_numpy(self.spacing[first].astype(np.float32)),
        )

    def pictures(self, rows: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.float32]]:
        """As of `Store`, read slice by slice."""
        for row in rows:
            slices = self.gather(row[None], size=(1, *self.shape[self._first[row], 2:].tolist()))
            yield slices.unit().numpy()[0, :, 0]

    def let_go(self) -> None:
        """Nothing to give back: files are opened for each reading."""

    def _read(self, row: int, corner: Corners, out: npt.NDArray[Any]) -> None:
        """One window of the volume held at a row, into `[C, d, h, w]`."""
        shape, box = self.shape[row, 1:], np.array(out.shape[1:])
        turned = self.mirrored is not None and bool(self.mirrored[row])
        if turned:  # the window of the mirrored volume is a mirrored window of the volume
            corner = corner * [1, 1, 0] + [0, 0, shape[2] - corner[2] - box[2]]
        start, stop = np.maximum(corner, 0), np.minimum(corner + box, shape)
        if (start > corner).any() or (stop < corner + box).any():
            out[:] = self._black(row)
        if (stop > start).all():
            inner = tuple(slice(int(a), int(b)) for a, b in zip(start - corner, stop - corner, strict=True))
            out[(slice(None), *inner)] = self._part(row, start, stop - start)
        if turned:
            out[:] = out[..., ::-1].copy()

    def _black(self, row: int) -> int:
        """The stored value that is darkest once it is grey."""
        most = 2 ** int(self._bits[row]) - 1
        return int(np.clip(np.rint(-self._bias[row] / self._gain[row]), 0, most))

    def _part(self, row: int, start: Corners, size: Corners) -> npt.NDArray[Any]:
        if row not in self._kept and not self._whole[row]:
            self._whole[row] = is_whole(self._paths[row], int(self._file[row]))
            if not self._whole[row]:
                self._kept[row] = self._decoded_again(row)
        if row in self._kept:
            box = tuple(slice(int(first), int(first) + int(side)) for first, side in zip(start, size, strict=True))
            return self._kept[row][(slice(None), *box)]
        return read_part(self._paths[row], start, size)

    def _decoded_again(self, row: int) -> npt.NDArray[Any]:
        """The volume of a row whose cached copy is damaged: exactly what had been cached, from its files."""
        assert self._decode is not None
        forget(self._paths[row])
        try:
            volume = self._decode(row)
            if zlib.crc32(np.ascontiguousarray(volume).data) != self._crc[row]:
                raise CohortError("its files are not what they were, or are decoded otherwise")
        except BolusError as error:
            raise CohortError(
                "a volume in the cache is damaged, and cannot be decoded again as it was", [f"row {row + 1}: {error}"]
            ) from error
        _log.warning("a damaged volume in the cache was decoded again (row %s); is the disk sound?", row + 1)
        return volume
