"""The files that rows of a cohort stand for, and the digest of each file's content; a million of them in seconds."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.apart import ApartPool, count_cores
from bolus.data.cohort.coding import Coded
from bolus.data.cohort.cohort import Cohort
from bolus.data.images.shards import SIGHTING, Manifest, write_sightings
from bolus.data.pixels.greys import reading_of
from bolus.data.readers.own import Readers, group_by_reader
from bolus.files import check_regular

CHUNK = 1024  # items handed to the threads at a time
UNOPENED = "the file cannot be opened"
HASHED = 16384  # files after which their digests are written: what a killed build has to hash again

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Sources:
    """What rows of a cohort stand for.

    Args:
        paths: distinct files, absolute, `[files]`.
        file: which of them, `[rows]`.
        frame: the frame or slice of it, `[rows]`; -1 for a file that stands on one row only.
    """

    paths: list[str]
    file: npt.NDArray[np.int64]
    frame: npt.NDArray[np.int64]


def find_sources(cohort: Cohort, rows: npt.NDArray[np.int64]) -> Sources:
    """The files and frames of these rows, as `Cohort.image_path` and `Cohort.frame` name them one by one."""
    column = cohort.columns[cohort.roles["image"]]
    here = column.take(rows) if isinstance(column, Coded) else Coded.of(column.iloc[rows])
    root = os.path.realpath(cohort.root)
    paths = [os.path.join(root, str(name)) for name in here.values.tolist()]  # noqa: PTH118 - Path takes five times as long
    frame = np.full(len(rows), -1, np.int64)
    shared = cohort.shared_file[rows]
    if shared.any():
        frame[shared] = cohort.encoded("order")[rows[shared]].astype(np.int64)
    return Sources(paths, here.codes.astype(np.int64), frame)


def readings_of(
    cohort: Cohort, rows: npt.NDArray[np.int64], stated: Collection[str], readers: Readers
) -> list[tuple[str, str, npt.NDArray[np.int64]]]:
    """How the files of these rows are read, by which reader, and where: each place once; one where there is none."""
    modality, names = cohort.modality_of(rows), cohort.modalities
    readings = np.array([reading_of(name, stated) for name in names] or ["file"])
    files = cohort.columns.plain(cohort.roles["image"]).iloc[rows].to_numpy() if readers else rows
    found = []
    for reading in np.unique(readings):
        alike = [name for name, how in zip(names, readings, strict=False) if how == reading]
        some = np.arange(len(rows)) if len(alike) == len(names) else np.flatnonzero(np.isin(modality, alike))
        found += [(str(reading), reader, some[those]) for reader, those in group_by_reader(files[some], readers)]
    return found


def identify(
    paths: Sequence[str], manifest: Manifest, folder: Path, *, own: bool = False
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_], dict[int, str]]:
    """The digest of each file's content; only files that were not seen as they are now are read.

    Args:
        paths: of the files.
        manifest: of what was seen.
        folder: where it is kept.
        own: a reader of one's own reads them, which may read more than the file that is named, as a header's pixels
            beside it: files of the same name but for the ending count as content.

    Returns:
        Digests `[files, 2]`; whether there is one, `[files]`; file -> why there is none.
    """
    beside = _beside(paths) if own else {}
    seen, failed = _stat(paths, beside)
    seen["digest"], known = manifest.find_digests(seen)
    known[list(failed)] = False
    todo = np.setdiff1d(np.flatnonzero(~known), list(failed))

    def hash_file(file: int) -> str | None:
        try:
            seen["digest"][file] = np.frombuffer(_digest(Path(paths[file]), *beside.get(paths[file], ())), np.uint64)
        except OSError as error:
            return _unopened(error)
        return None

    for start in range(0, len(todo), HASHED):
        part = todo[start : start + HASHED]
        for file, reason in zip(part.tolist(), in_threads(hash_file, part.tolist()), strict=True):
            if reason is None:
                known[file] = True
            else:
                failed[file] = reason
        if known[part].any():
            write_sightings(folder, seen[part[known[part]]])
    return seen["digest"], known, failed


def in_threads(function: Callable[[Item], Result], items: Sequence[Item], *, workers: int = 16) -> Generator[Result]:
    """The function of each item, in order; once the iterator is closed, what has not begun never does."""
    number = min(workers, count_cores())
    with ApartPool() as apart, ThreadPoolExecutor(number, initializer=apart.enter if number > 1 else None) as pool:
        try:
            for start in range(0, len(items), CHUNK):
                yield from pool.map(function, items[start : start + CHUNK])
        finally:
            pool.shutdown(cancel_futures=True)


def _beside(paths: Sequence[str]) -> dict[str, list[str]]:
    """The other files of the same name but for the ending, of each file that has some."""
    alike: dict[tuple[str, str], list[str]] = {}
    for folder in dict.fromkeys(os.path.dirname(path) for path in paths):  # noqa: PTH120 - for many paths
        with suppress(OSError), os.scandir(folder or ".") as entries:
            for entry in entries:
                alike.setdefault((folder, _stem(entry.name)), []).append(entry.path)
    found = {}
    for path in paths:
        folder, name = os.path.split(path)
        others = sorted(each for each in alike.get((folder, _stem(name)), []) if os.path.split(each)[1] != name)
        if others:
            found[path] = others
    return found


def _stem(name: str) -> str:
    return os.path.splitext(name.removesuffix(".gz"))[0]  # noqa: PTH122 - for many names


def _stat(paths: Sequence[str], beside: Mapping[str, Sequence[str]]) -> tuple[npt.NDArray[np.void], dict[int, str]]:
    """Files as they are now, of dtype `SIGHTING` without digests; and why some are not there."""
    sizes, times, failed = [0] * len(paths), [0] * len(paths), {}
    for file, path in enumerate(paths):
        try:
            stats = [check_regular(each) for each in (path, *beside.get(path, ()))]
        except OSError as error:
            failed[file] = _unopened(error)
            continue
        sizes[file], times[file] = sum(each.st_size for each in stats), max(each.st_mtime_ns for each in stats)
    seen = np.zeros(len(paths), SIGHTING)
    names = [each.encode("utf-8", "backslashreplace").decode() for each in paths]  # bytes that are no text, as escapes
    seen["path"] = pd.util.hash_array(np.array(names, object), categorize=False)
    seen["size"], seen["mtime"] = sizes, times
    return seen, failed


def _unopened(error: OSError) -> str:
    return f"{UNOPENED}: {error.strerror or error}"


def _digest(path: Path, *beside: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for each in (path, *map(Path, beside)):
        with each.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.digest()
