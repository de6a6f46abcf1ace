"""The image cache: each image is decoded once and kept, antialiased to about 1.25 times the training size.

A file is found again by its path, size and time of change; failing that by its content, so that moved, renamed and
copied files are hashed once and never decoded again (`data.images.shards` holds the files). An image that cannot be
read is quarantined: left out, counted, reported, and tried again the next time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.cohort.cohort import Cohort
from bolus.data.images.found import Found, joined, list_quarantined, open_found, refuse_the_larger_part
from bolus.data.images.missing_files import likely_cause
from bolus.data.images.preprocessing import Preprocessing
from bolus.data.images.shards import NOTHING, ShardWriter, read_manifest, remove_orphans
from bolus.data.images.shrinking import ONE_FRAME, shrink
from bolus.data.images.sources import UNOPENED, Sources, find_sources, identify, in_threads, readings_of
from bolus.data.images.store import ImageStore, Quarantined, Store, Stored
from bolus.data.readers.frames import read_as, reason_without_name
from bolus.data.readers.own import Readers, open_readers
from bolus.data.text.laterality import SIDES
from bolus.data.volumes.cache.building import build_volumes
from bolus.errors import BolusError, CohortError, UsageError

__all__ = [
    "ONE_FRAME",
    "ImageStore",
    "Preprocessing",
    "Quarantined",
    "Store",
    "Stored",
    "build_store",
    "cache_folder",
    "reason_without_name",
]

Progress = Callable[[int, int], None]


def cache_folder() -> Path:
    """Where caches lie: `BOLUS_CACHE`, or the user's cache folder."""
    return Path(os.environ.get("BOLUS_CACHE", Path.home() / ".cache" / "bolus"))


def build_store(
    cohort: Cohort,
    preprocessing: Preprocessing,
    *,
    folder: Path | None = None,
    rows: npt.NDArray[np.int64] | None = None,
    on_progress: Progress | None = None,
) -> Store:
    """Decode what is not cached yet and open the rest; modalities with contracts of their own lie in other folders.

    Where the contract has a box of volumes it is a `VolumeStore`, of the samples of `open_samples(cohort, "volume")`.

    Args:
        cohort: whose images; the ranges that it states win over those of the contract.
        preprocessing: what the encoder will see; ranges that it lacks are found here.
        folder: of all caches; `cache_folder()` where None.
        rows: which rows are needed, of a volume its first; all where None. The others count as absent, not as
            quarantined.
        on_progress: called with (done, total) while images are decoded; where contracts are several, the total grows
            as each is begun.

    Raises:
        CohortError: more than half of the images cannot be read (a file with several frames weighs as one image), a
            side is mirrored and a row's laterality is none, the cohort states a range of a modality that none of its
            images has, or it names a reader that cannot be imported.
        UsageError: a file stands where the cache folder should be.
    """
    rows = np.arange(len(cohort), dtype=np.int64) if rows is None else rows
    stated = cohort.spec.ranges
    preprocessing = replace(
        preprocessing,
        ranges={**preprocessing.ranges, **stated},
        stated=tuple({*preprocessing.stated, *stated}),
    )
    sides = None if preprocessing.mirror is None else cohort.sides
    build = _build_images if preprocessing.volume is None else build_volumes
    store = build(cohort, preprocessing, folder=folder or cache_folder(), rows=rows, on_progress=on_progress)
    if preprocessing.mirror is not None and sides is not None:
        asked = rows[store.held[rows]] if preprocessing.volume is not None else rows
        store.mirrored = sides == SIDES.index(preprocessing.mirror)
        store.sideless = np.unique(cohort.origin[asked[sides[asked] < 0]]).tolist()
    return store


def _build_images(
    cohort: Cohort,
    preprocessing: Preprocessing,
    *,
    folder: Path,
    rows: npt.NDArray[np.int64],
    on_progress: Progress | None,
) -> ImageStore:
    """The store of images and frames, a row each."""
    readers = open_readers(cohort.spec.readers)
    found: list[Found] = []
    for contract, places in preprocessing.groups(cohort.modality_of(rows)):
        for reading, reader, some in readings_of(cohort, rows[places], preprocessing.stated, readers):
            onwards = _onwards(on_progress, sum(each.decoded for each in found))
            here, decoding = rows[places[some]], _Decoding(contract, reading, reader, readers)
            found.append(_find(cohort, decoding, folder, here, onwards))
    rows = joined(each.rows for each in found)
    lacking = np.concatenate([each.entries < 0 for each in found])
    starts = np.cumsum([0, *(len(each.rows) for each in found)]).tolist()
    begun = list(zip(starts, found, strict=False))
    unread = {start + item: reason for start, each in begun for item, reason in each.unread.items()}
    files = joined(start + each.file for start, each in begun)
    quarantined = list_quarantined(cohort.origin[rows], lacking, unread)
    absent = rows[[item for item, reason in unread.items() if reason.startswith(UNOPENED)]]
    refuse_the_larger_part(
        files,
        lacking,
        quarantined,
        lambda: likely_cause(
            [cohort.image_path(row) for row in absent.tolist()],
            cohort.root,
            cohort.encoded("patient")[absent],
            suffixes=readers,
        ),
    )
    store = open_found(cohort, preprocessing, found, quarantined)
    store._decode = partial(_decode_row, cohort, preprocessing, readers)
    store.folder = folder
    return store


def _onwards(on_progress: Progress | None, before: int) -> Progress | None:
    """Progress that goes on from what was done before."""
    return None if on_progress is None else lambda done, total: on_progress(before + done, before + total)


@dataclass(frozen=True)
class _Decoding:
    """How the files of one cache folder are read: the contract, the reading, the reader among all readers."""

    contract: Preprocessing
    reading: str
    reader: str
    readers: Readers


def _find(
    cohort: Cohort, decoding: _Decoding, folder: Path, rows: npt.NDArray[np.int64], on_progress: Progress | None
) -> Found:
    """The images of rows that are all decoded so, decoded where they are not in its folder yet."""
    preprocessing = decoding.contract
    if folder.is_file():
        raise UsageError(f"cache: expected a folder, found the file {folder.name}")
    folder = folder / preprocessing.folder(decoding.reading, decoding.reader)
    folder.mkdir(parents=True, exist_ok=True)
    remove_orphans(folder)
    sources = find_sources(cohort, rows)
    manifest = read_manifest(folder, preprocessing.stored_shape) if len(rows) else NOTHING
    digests, known, unopened = identify(sources.paths, manifest, folder, own=bool(decoding.reader))
    known = known[sources.file]  # from here on a row each
    entries = manifest.find_images(digests, sources.file, sources.frame)
    entries[~known] = -1
    absent = np.flatnonzero(known & (entries < 0))
    unread: dict[int, str] = {}
    if len(absent):
        unread = _decode(sources, digests[sources.file], absent, decoding, folder, on_progress)
        manifest = read_manifest(folder, preprocessing.stored_shape)
        entries = manifest.find_images(digests, sources.file, sources.frame)
        entries[~known] = -1
    unread |= {item: unopened[sources.file[item]] for item in np.flatnonzero(~known).tolist()}
    contract = np.frombuffer(blake2b(folder.name.encode(), digest_size=8).digest(), np.uint64)[0]
    frame = sources.frame.astype(np.int32)
    return Found(rows, sources.file, digests, frame, manifest, entries, unread, len(absent), contract)


def _decode(
    sources: Sources,
    digest: npt.NDArray[np.uint64],
    absent: npt.NDArray[np.int64],
    decoding: _Decoding,
    folder: Path,
    on_progress: Progress | None,
) -> dict[int, str]:
    """Decode and store what is absent, each content once and each file once; item -> why it cannot be read."""
    contents = pd.DataFrame(digest[absent]).assign(frame=sources.frame[absent])
    content = contents.groupby(list(contents.columns), sort=False).ngroup().to_numpy()
    first = absent[np.unique(content, return_index=True)[1]]
    files: dict[int, list[int]] = {}
    for item in first.tolist():
        files.setdefault(int(sources.file[item]), []).append(item)

    def decode_file(items: list[int]) -> dict[int, str]:
        path, failed = Path(sources.paths[sources.file[items[0]]]), {}
        frames = [int(frame) if frame >= 0 else None for frame in sources.frame[items]]
        images = read_as(path, frames, decoding.reading, decoding.readers)
        for item, image in zip(items, images, strict=True):
            try:
                if isinstance(image, BolusError):
                    raise image
                writer.add(digest[item], int(sources.frame[item]), shrink(image, decoding.contract))
            except BolusError as error:
                failed[item] = reason_without_name(error, path)
        return failed

    done, failed, groups = 0, dict[int, str](), list(files.values())
    with (
        ShardWriter(folder, decoding.contract.stored_shape) as writer,
        closing(in_threads(decode_file, groups)) as results,
    ):
        for items, reasons in zip(groups, results, strict=True):
            failed |= reasons
            done += len(items)
            if on_progress is not None:
                on_progress(done, len(first))
    firsts = first[content].tolist()  # of the items with the same content
    return {item: failed[first] for item, first in zip(absent.tolist(), firsts, strict=True) if first in failed}


def _decode_row(cohort: Cohort, preprocessing: Preprocessing, readers: Readers, row: int) -> npt.NDArray[Any]:
    """The stored values of one row's image, `[C, S, S]`, from its file."""
    rows = np.array([row])
    contract = preprocessing.groups(cohort.modality[rows])[0][0]
    readings = readings_of(cohort, rows, preprocessing.stated, readers)  # of the whole cohort; the row has one
    reading = next(reading for reading, _, some in readings if len(some))
    sources = find_sources(cohort, rows)
    path, frame = Path(sources.paths[0]), int(sources.frame[0])
    [image] = read_as(path, [frame if frame >= 0 else None], reading, readers)
    try:
        if isinstance(image, BolusError):
            raise image
        return shrink(image, contract).array
    except BolusError as error:
        raise CohortError(reason_without_name(error, path)) from error
