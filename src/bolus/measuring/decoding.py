"""How fast images become pixels in the cache, beside one thread that only decodes."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bolus.data.cohort.cohort import Cohort
from bolus.data.images.cache import build_store
from bolus.data.images.preprocessing import Preprocessing
from bolus.data.images.shrinking import shrink
from bolus.data.images.sources import find_sources
from bolus.data.pixels.greys import reading_of
from bolus.data.readers.frames import read_as
from bolus.data.readers.own import open_readers
from bolus.errors import BolusError

MOST = 2_000
"""Images that are decoded at most."""


@dataclass(frozen=True)
class DecodingCost:
    """What it takes to fill the cache.

    Args:
        images: that were decoded.
        images_per_second: into a cache: found, hashed, decoded by all cores, made square and written.
        images_per_second_of_a_thread: decoded and made square, and nothing else.
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


def measure_decoding(cohort: Cohort, contract: Preprocessing, *, seconds: float = 8.0, seed: int = 0) -> DecodingCost:
    """Decode some images of a cohort twice, by one thread and into a cache that is thrown away.

    Files are read once beforehand, so that it is the decoder that is measured and not the disk.

    Args:
        cohort: of images, slices or frames.
        contract: what the encoder will see.
        seconds: that one thread may take; the second time takes about as long, or less.
        seed: which images.

    Raises:
        CohortError: as `build_store`.
    """
    sources = find_sources(cohort, np.arange(len(cohort)))
    rows_of: dict[int, list[int]] = {}
    for row, file in enumerate(sources.file.tolist()):
        rows_of.setdefault(file, []).append(row)
    took, rows, unreadable = 0.0, list[int](), 0
    for file in np.random.default_rng(seed).permutation(len(sources.paths)).tolist():
        path = Path(sources.paths[file])
        _read_through(path)
        began = time.perf_counter()
        unreadable += _decode(cohort, contract, path, rows_of[file], sources.frame)
        took += time.perf_counter() - began
        rows += rows_of[file]
        if took > seconds or len(rows) >= MOST:
            break
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        build_store(cohort, contract, folder=Path(folder), rows=np.sort(rows))
        whole = time.perf_counter() - began
    return DecodingCost(len(rows), len(rows) / whole, len(rows) / took, os.cpu_count() or 1, unreadable)


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
