"""Volumes that are given by path or array and stand in no table: made as the cache makes them, in memory only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.cohort.cohort import Samples
from bolus.data.cohort.volumes import series_codes
from bolus.data.images.called import Called, resolve_given, stated_contract, table_of
from bolus.data.images.preprocessing import Preprocessing
from bolus.data.images.shrinking import Shrunk
from bolus.data.images.sources import in_threads
from bolus.data.pixels.greys import GREY, reading_of
from bolus.data.pixels.image import Range, own_range
from bolus.data.readers.frames import reason_without_name
from bolus.data.readers.own import open_readers
from bolus.data.text.laterality import SIDES
from bolus.data.volumes.cache.fitting import fit_volume
from bolus.data.volumes.cache.store import VolumeStore
from bolus.data.volumes.reading import read_volume
from bolus.data.volumes.volume import Spacing, Volume
from bolus.errors import BolusError, ImageError, UsageError

WORKERS = 4  # volumes that are read at the same time
UNKNOWN = (float("nan"),) * 3


def read_given_volumes(
    volumes: Sequence[Any], preprocessing: Preprocessing, called: Called | None = None
) -> tuple[VolumeStore, Samples]:
    """The volumes as an encoder's contract wants them, and the samples that they are; nothing is written.

    Args:
        volumes: each a file, a sequence of the files of its slices, an array `[D, H, W]` or `[C, D, H, W]` with D from
            inferior to superior, H from posterior to anterior and W from left to right, or a `Volume`. Numbers of
            arrays count as `bolus.data.images.given.read_given` says.
        preprocessing: the contract, whose ranges and rules hold.
        called: what is known of them.

    Raises:
        ImageError: one cannot be read; which, counted from 1, and why, without its path.
        EncoderError: as `read_given`.
        UsageError: as `read_given`; several files of one slice each, which are probably the slices of one volume.

    Example:
        >>> from bolus.data.volumes.fit import VolumeFit
        >>> contract = Preprocessing(8, volume=VolumeFit((8, 8, 8)))
        >>> store, samples = read_given_volumes([np.full((12, 8, 8), 255, np.uint8)], contract)
        >>> store.gather(samples.first_row).unit().shape, samples.unit
        (torch.Size([1, 1, 12, 8, 8]), 'volume')
    """
    called = called or Called()
    if not len(volumes):
        raise UsageError("expected at least one volume, found none")
    preprocessing = stated_contract(preprocessing, called)
    readers = open_readers(called.readers or {})
    rows = np.arange(len(volumes), dtype=np.int64)
    table = table_of(rows, len(volumes), called, clips=False)
    contracts = {row: each for each, places in preprocessing.groups(table.modality) for row in places.tolist()}

    def make(row: int) -> tuple[Shrunk, Spacing]:
        given, modality = volumes[row], str(table.modality[row])
        paths = (
            [Path(each) for each in ([given] if isinstance(given, str | Path) else given)] if _is_path(given) else []
        )
        try:
            reading = reading_of(modality, preprocessing.stated)
            volume = read_volume(paths, reading=reading, readers=readers) if paths else _as_volume(given)
            flat[row] = len(paths) == 1 and volume.array.shape[1] == 1
            return fit_volume(volume, contracts[row], modality)
        except BolusError as error:
            for path in paths:
                error = ImageError(reason_without_name(error, path))
            raise type(error)(f"volume {row + 1} of {len(volumes)}: {error}") from error

    flat = np.zeros(len(volumes), bool)
    made = list(in_threads(make, rows.tolist(), workers=WORKERS))
    if len(flat) > 1 and flat.all():
        raise UsageError(
            f"expected volumes, found {len(flat)} files of one slice each: the slices of one volume are a list of "
            "their own, as in [[slice1, slice2]]"
        )
    grey = np.array([each.grey for each, _ in made], GREY)
    codes = series_codes(table, rows, grey["series"], pd.factorize(rows)[0].astype(np.uint64))
    quantiles = np.stack([each.quantiles for each, _ in made])
    resolved = resolve_given(grey, quantiles, table, codes, preprocessing, rows.tolist())
    gain, bias = resolved.lines(
        np.array([each.gain for each, _ in made]), np.array([each.bias for each, _ in made]), grey["inverted"]
    )
    store = VolumeStore(
        preprocessing=replace(preprocessing, ranges=resolved.ranges, rules=resolved.rules),
        quarantined=[],
        out_of_range=np.flatnonzero(resolved.beyond).tolist(),
        shape=np.array([each.array.shape for each, _ in made], np.int64),
        spacing=np.array([spacing for _, spacing in made], np.float64),
        _gain=gain,
        _bias=bias,
        _first=rows,
        _paths={},
        _bits=np.array([8 * each.array.itemsize for each, _ in made], np.uint8),
        _crc=np.zeros(len(rows), np.uint32),
        _file=np.zeros(len(rows), np.uint32),
        _kept={row: each.array for row, (each, _) in enumerate(made)},
    )
    if preprocessing.mirror is not None and table.sides is not None:
        store.mirrored = table.sides == SIDES.index(preprocessing.mirror)
    return store, Samples("volume", table, rows, np.arange(len(rows) + 1))


def _is_path(given: Any) -> bool:
    """Whether a volume is given by its file, or by those of its slices."""
    several = isinstance(given, Sequence) and len(given) > 0 and all(isinstance(each, str | Path) for each in given)
    return isinstance(given, str | Path) or several


def _as_volume(given: Any) -> Volume:
    """An array with the range that a file of such numbers has."""
    if isinstance(given, Volume):
        return given
    kinds = "a path, the paths of its slices, an array [D, H, W] or [C, D, H, W] with C 1 or 3, or a Volume"
    if not isinstance(given, np.ndarray):
        raise UsageError(f"expected {kinds}, found {type(given).__name__}")
    array: npt.NDArray[Any] = given[None] if given.ndim == 3 else given
    if array.dtype.kind not in "fiub" or array.ndim != 4 or array.shape[0] not in (1, 3) or not array.size:
        raise UsageError(f"expected {kinds}, found {given.dtype} {list(given.shape)}")
    values = array.astype(np.float32)
    if array.dtype.kind == "b" or array.dtype in (np.uint8, np.uint16):
        bits = 1 if array.dtype.kind == "b" else 8 * array.dtype.itemsize
        return Volume(values, UNKNOWN, None, Range(0.0, float(2**bits - 1), "container"), bits, False)
    return Volume(values, UNKNOWN, None, own_range(values), 8 * array.dtype.itemsize, False)
