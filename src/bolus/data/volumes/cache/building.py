"""The cache of volumes: each is read once, fitted to its contract and kept compressed.

A volume is found again by the content of its files, in their order; these are hashed once, as those of images are
(`data.images.sources`). One that cannot be read is quarantined: left out, counted, reported, and tried again the next
time. What a killed build has kept is found by the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bolus.data.cohort.cohort import Cohort, Samples
from bolus.data.images.clips import open_samples
from bolus.data.images.found import joined, lines_of, list_quarantined, refuse_the_larger_part, resolve_found
from bolus.data.images.missing_files import likely_cause
from bolus.data.images.preprocessing import Preprocessing
from bolus.data.images.shards import NOTHING, read_sightings, remove_orphans
from bolus.data.images.sources import UNOPENED, Sources, find_sources, identify, in_threads, readings_of
from bolus.data.images.store import Content, Quarantined
from bolus.data.pixels.greys import refuse_unknown
from bolus.data.readers.frames import reason_without_names
from bolus.data.readers.own import Readers, open_readers
from bolus.data.volumes.cache.files import RECORD, find_volumes, name_of, write_volume
from bolus.data.volumes.cache.fitting import fit_volume
from bolus.data.volumes.cache.store import VolumeStore
from bolus.data.volumes.reading import read_volume
from bolus.errors import BolusError, CohortError, UsageError, require

Progress = Callable[[int, int], None]
NONE = np.empty(0, np.int64)
READERS = 4  # volumes that are in memory at the same time, at most


@dataclass(frozen=True)
class _Way:
    """How the volumes of one cache folder are read: the contract, the reading, the readers of one's own."""

    contract: Preprocessing
    reading: str
    readers: Readers


@dataclass(frozen=True)
class _Found:
    """What one cache folder holds of some volumes.

    Args:
        positions: int64 `[n]`, which samples.
        digest: uint64 `[n, 2]`, of the content of their files.
        paths: place -> the file, of those that are there.
        records: `[n]` of dtype `RECORD`, of those.
        unread: place -> why it is lacking.
        folder: 64 bits of what the folder is for.
    """

    positions: npt.NDArray[np.int64]
    digest: npt.NDArray[np.uint64]
    paths: dict[int, Path]
    records: npt.NDArray[np.void]
    unread: dict[int, str]
    folder: np.uint64

    @property
    def lacking(self) -> npt.NDArray[np.bool_]:
        """Which of them are not there, `[n]`."""
        return ~np.isin(np.arange(len(self.positions)), list(self.paths))

    def of(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Of values `[n, ...]`, those of the volumes that are there."""
        return values[~self.lacking]


def build_volumes(
    cohort: Cohort,
    preprocessing: Preprocessing,
    *,
    folder: Path,
    rows: npt.NDArray[np.int64],
    on_progress: Progress | None = None,
) -> VolumeStore:
    """Decode the volumes that are not cached yet and open the rest; `bolus.data.images.cache.build_store` asks this.

    Args:
        cohort: whose volumes, as of `open_samples(cohort, "volume")`.
        preprocessing: of an encoder of volumes; ranges that it lacks are found here.
        folder: of all caches.
        rows: a volume is asked for by its first row; others count as absent.
        on_progress: called with (done, total) volumes while they are decoded.

    Raises:
        CohortError: rows that make no volumes; as `build_store`.
        UsageError: a file stands where the cache folder should be.
        MissingPackageError: the package blosc2 is not installed.
    """
    require("blosc2", "volumes")
    samples, readers = open_samples(cohort, "volume"), open_readers(cohort.spec.readers)
    asked = np.flatnonzero(np.isin(samples.first_row, rows))
    first = samples.first_row[asked]
    found = [
        _find(samples, _Way(replace(contract, modalities={}), reading, readers), reader, folder, some, on_progress)
        for contract, places in preprocessing.groups(cohort.modality_of(first))
        for reading, reader, those in readings_of(cohort, first[places], preprocessing.stated, readers)
        for some in [asked[places[those]]]
    ]
    rows = samples.first_row[joined([NONE, *(each.positions for each in found)])]
    lacking = joined([NONE.astype(np.bool_), *(each.lacking for each in found)])
    starts = np.cumsum([0, *(len(each.positions) for each in found)]).tolist()
    begun = zip(starts, found, strict=False)
    unread = {start + place: reason for start, each in begun for place, reason in each.unread.items()}
    quarantined = list_quarantined(cohort.origin[rows], lacking, unread)
    absent = rows[[place for place, reason in unread.items() if reason.startswith(UNOPENED)]]
    refuse_the_larger_part(
        np.arange(len(rows)),
        lacking,
        quarantined,
        lambda: likely_cause(
            [cohort.image_path(row) for row in absent.tolist()],
            cohort.root,
            cohort.encoded("patient")[absent],
            suffixes=readers,
        ),
        "volumes",
    )
    return _open(samples, preprocessing, readers, found, quarantined, folder)


def _find(
    samples: Samples,
    way: _Way,
    reader: str,
    folder: Path,
    positions: npt.NDArray[np.int64],
    on_progress: Progress | None,
) -> _Found:
    """Volumes that are all read so, decoded where they are not in their folder yet."""
    if folder.is_file():
        raise UsageError(f"cache: expected a folder, found the file {folder.name}")
    folder = folder / way.contract.folder(way.reading, reader)
    folder.mkdir(parents=True, exist_ok=True)
    remove_orphans(folder)
    parts = [samples.rows_of(position) for position in positions.tolist()]
    modality = samples.cohort.modality_of(samples.first_row[positions])
    sources = find_sources(samples.cohort, joined([NONE, *parts]))
    seen = replace(NOTHING, sightings=read_sightings(folder))
    digests, known, unopened = identify(sources.paths, seen, folder, own=bool(reader))
    ends = np.cumsum([0, *map(len, parts)])
    items = [slice(start, stop) for start, stop in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]
    content = np.array([_content_of(digests, sources, item) for item in items], np.uint64).reshape(-1, 2)
    unread = {
        place: unopened[next(file for file in sources.file[item].tolist() if not known[file])]
        for place, item in enumerate(items)
        if not known[sources.file[item]].all()
    }
    first_of: dict[str, int] = {}
    for place in range(len(items)):
        if place not in unread:
            first_of.setdefault(name_of(content[place]), place)
    there = find_volumes(folder, first_of)
    absent = [place for name, place in first_of.items() if name not in there]

    def decode(place: int) -> str:
        item = items[place]
        try:
            volume = _read(sources, item, way)
            write_volume(folder, content[place], *fit_volume(volume, way.contract, str(modality[place])))
        except BolusError as error:
            return _reason(error, sources, item)
        return ""

    with closing(in_threads(decode, absent, workers=READERS)) as reasons:
        for done, (place, reason) in enumerate(zip(absent, reasons, strict=True), start=1):
            if reason:
                unread |= {at: reason for at in range(len(items)) if name_of(content[at]) == name_of(content[place])}
            if on_progress is not None:
                on_progress(done, len(absent))
    there |= find_volumes(folder, first_of.keys() - there.keys())
    records, paths = np.zeros(len(items), RECORD), dict[int, Path]()
    for place, name in enumerate(map(name_of, content)):
        if place not in unread and name in there:
            paths[place], [records[place]] = there[name]
    bits = np.frombuffer(blake2b(folder.name.encode(), digest_size=8).digest(), np.uint64)[0]
    return _Found(positions, content, paths, records, unread, bits)


def _content_of(digests: npt.NDArray[np.uint64], sources: Sources, item: slice) -> npt.NDArray[np.uint64]:
    """128 bits of the files and frames of a volume, in order."""
    parts = digests[sources.file[item]].tobytes() + sources.frame[item].tobytes()
    return np.frombuffer(blake2b(parts, digest_size=16).digest(), np.uint64)


def _read(sources: Sources, item: slice, way: _Way) -> Any:
    paths = [Path(sources.paths[file]) for file in sources.file[item].tolist()]
    frames = [int(frame) if frame >= 0 else None for frame in sources.frame[item].tolist()]
    return read_volume(paths, frames, reading=way.reading, readers=way.readers)


def _reason(error: BolusError, sources: Sources, item: slice) -> str:
    """Why a volume cannot be read, without the names of its files and folders."""
    return reason_without_names(error, (Path(sources.paths[file]) for file in sources.file[item].tolist()))


def _open(
    samples: Samples,
    preprocessing: Preprocessing,
    readers: Readers,
    found: list[_Found],
    quarantined: list[Quarantined],
    folder: Path,
) -> VolumeStore:
    """The store of the volumes that were found, with the black and white of each."""
    cohort, number = samples.cohort, len(samples.cohort)
    positions = joined([NONE, *(each.of(each.positions) for each in found)])
    records = joined([np.empty(0, RECORD), *(each.of(each.records) for each in found)])
    digests = joined([np.empty((0, 2), np.uint64), *(each.of(each.digest) for each in found)])
    rows = samples.first_row[positions]
    resolved = resolve_found(cohort, preprocessing, rows, records, lambda at: records["quantiles"][at])
    if sum(len(each.positions) for each in found) == len(samples):
        refuse_unknown(cohort.spec.ranges, set(resolved.names.tolist()), cohort.modalities)
    gain, bias = np.ones(number, np.float32), np.zeros(number, np.float32)
    gain[rows], bias[rows] = lines_of(resolved, records)
    first, spacing = np.full(number, -1, np.int64), np.full((number, 3), np.nan)
    shape, bits = np.zeros((number, 4), np.int64), np.zeros(number, np.uint8)
    crc, file_crc = np.zeros(number, np.uint32), np.zeros(number, np.uint32)
    file, of_folder = np.zeros(number, np.int64), np.zeros(number, np.int64)
    for place, position in enumerate(positions.tolist()):
        first[samples.rows_of(position)] = rows[place]
    for into, name in ((shape, "shape"), (bits, "bits"), (spacing, "spacing"), (crc, "crc"), (file_crc, "file")):
        into[rows] = records[name]
    file[rows] = np.arange(len(rows))
    of_folder[rows] = np.repeat(np.arange(len(found)), [len(each.paths) for each in found])
    paths = [each.paths[place] for each in found for place in sorted(each.paths)]
    folders = np.array([each.folder for each in found], np.uint64)
    return VolumeStore(
        preprocessing=replace(preprocessing, ranges=resolved.ranges, rules=resolved.rules),
        quarantined=quarantined,
        out_of_range=np.unique(cohort.origin[rows[resolved.beyond]]).tolist(),
        folder=folder,
        shape=shape,
        spacing=spacing,
        _gain=gain,
        _bias=bias,
        _content=Content(digests, folders, file, np.full(number, -1, np.int64), of_folder),
        _decode=partial(decode_row, samples, preprocessing, readers),
        _first=first,
        _paths=dict(zip(rows.tolist(), paths, strict=True)),
        _bits=bits,
        _crc=crc,
        _file=file_crc,
    )


def decode_row(samples: Samples, preprocessing: Preprocessing, readers: Readers, row: int) -> npt.NDArray[Any]:
    """The values that a cache would keep of one volume, from its files.

    Args:
        samples: of unit `volume`.
        preprocessing: of an encoder of volumes.
        readers: of one's own.
        row: the first of the volume.

    Returns:
        uint8 or uint16 `[C, D, H, W]`.

    Raises:
        CohortError: files that cannot be read, without their names.
    """
    cohort, first = samples.cohort, np.array([row])
    contract = preprocessing.groups(cohort.modality[first])[0][0]
    reading = readings_of(cohort, first, preprocessing.stated, readers)[0][0]
    here = samples.rows_of(int(np.flatnonzero(samples.first_row == row)[0]))
    sources, item = find_sources(cohort, here), slice(0, len(here))
    try:
        volume = _read(sources, item, _Way(contract, reading, readers))
        return fit_volume(volume, contract, str(cohort.modality_of(first)[0]))[0].array
    except BolusError as error:
        raise CohortError(_reason(error, sources, item)) from error
