"""How fast images or volumes get into the cache, beside one thread that only decodes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bolus.apart import count_cores
from bolus.data.cohort.cohort import Cohort, Samples
from bolus.data.images.cache import build_store
from bolus.data.images.preprocessing import Preprocessing
from bolus.data.images.shrinking import shrink
from bolus.data.images.sources import find_sources
from bolus.data.pixels.greys import reading_of
from bolus.data.readers.frames import read_as
from bolus.data.readers.own import open_readers
from bolus.data.volumes.cache.building import decode_row
from bolus.errors import BolusError

MOST = 2_000
"""Images, or volumes, that are decoded at most."""


@dataclass(frozen=True)
class DecodingCost:
    """What it takes to fill the cache.

    Args:
        images: that were decoded, or volumes.
        images_per_second: into a cache: found, hashed, decoded by all cores, made square or resampled, and written.
        images_per_second_of_a_thread: decoded and made square or resampled, and nothing else.
        cores: of the machine.
        unreadable: images among them that cannot be read.
    """

    images: int
    images_per_second: float
    images_per_second_of_a_thread: float
    cores: int
    unreadable: int = 0

    @property
    def efficiency(self) -> float:
        """The rate of the cache over that of one thread on every core."""
        return self.images_per_second / (self.images_per_second_of_a_thread * self.cores)


def measure_decoding(samples: Samples, contract: Preprocessing, *, seconds: float = 8.0, seed: int = 0) -> DecodingCost:
    """Decode some images of a cohort twice, by one thread and into a cache that is thrown away.

    Files are read once beforehand, so that it is the decoder that is measured and not the disk.

    Args:
        samples: images, slices, clips of frames, or volumes.
        contract: what the encoder will see.
        seconds: that one thread may take; the second time takes about as long, or less.
        seed: which images.

    Raises:
        CohortError: as `build_store`.
    """
    took, rows, unreadable = 0.0, list[int](), 0
    order = np.random.default_rng(seed)
    for item in (_volumes if samples.unit == "volume" else _files)(samples, contract, order):
        for path in item.paths:
            _read_through(path)
        began = time.perf_counter()
        unreadable += item.decode()
        took += time.perf_counter() - began
        rows += item.rows
        if took > seconds or len(rows) >= MOST:
            break
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        build_store(samples.cohort, contract, folder=Path(folder), rows=np.sort(rows))
        whole = time.perf_counter() - began
    return DecodingCost(len(rows), len(rows) / whole, len(rows) / took, count_cores(), unreadable)


@dataclass(frozen=True)
class _Item:
    """What is decoded at once: the rows that say so, its files, and what decodes it and counts what cannot be read."""

    rows: list[int]
    paths: list[Path]
    decode: Callable[[], int]


def _files(samples: Samples, contract: Preprocessing, order: np.random.Generator) -> Iterator[_Item]:
    """The files of images, with the rows of each."""
    cohort = samples.cohort
    sources = find_sources(cohort, np.arange(len(cohort)))
    rows_of: dict[int, list[int]] = {}
    for row, file in enumerate(sources.file.tolist()):
        rows_of.setdefault(file, []).append(row)
    for file in order.permutation(len(sources.paths)).tolist():
        path = Path(sources.paths[file])
        yield _Item(rows_of[file], [path], partial(_decode, cohort, contract, path, rows_of[file], sources.frame))


def _volumes(samples: Samples, contract: Preprocessing, order: np.random.Generator) -> Iterator[_Item]:
    """The volumes, by their first rows."""
    for position in order.permutation(len(samples)).tolist():
        paths = find_sources(samples.cohort, samples.rows_of(position)).paths
        row = int(samples.first_row[position])
        yield _Item([row], list(map(Path, paths)), partial(_decode_volume, samples, contract, row))


def _read_through(path: Path) -> None:
    try:
        path.read_bytes()
    except OSError:
        return


def _decode(cohort: Cohort, contract: Preprocessing, path: Path, rows: list[int], frames: npt.NDArray[np.int64]) -> int:
    """Make the images of a file pixels as the cache would store them; how many cannot be read."""
    modality, stated = str(cohort.modality[rows[0]]), {*contract.stated, *cohort.spec.ranges}
    asked = [int(frame) if frame >= 0 else None for frame in frames[rows]]
    unreadable, alone = 0, contract.of(modality)
    for image in read_as(path, asked, reading_of(modality, stated), open_readers(cohort.spec.readers)):
        try:
            if isinstance(image, BolusError):
                raise image
            shrink(image, alone)
        except BolusError:
            unreadable += 1
    return unreadable


def _decode_volume(samples: Samples, contract: Preprocessing, row: int) -> int:
    """Make a volume voxels as the cache would store them; 1 where it cannot be read."""
    try:
        decode_row(samples, contract, open_readers(samples.cohort.spec.readers), row)
    except BolusError:
        return 1
    return 0
