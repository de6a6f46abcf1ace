"""The headers of many files: read by several processes, in parts that a scan which was stopped finds again."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bolus.apart import ApartPool, CrashError, call_apart, count_cores
from bolus.files import replacing
from bolus.progress import Meter
from bolus.scanning.dicom.headers import FIELDS, read_headers

PART = 256  # files
FEW = 2 * PART  # files up to which no process is started, which takes half a second
Columns = dict[str, list[Any]]


def read_parts(
    paths: Sequence[str], *, processes: int | None = None, state: Path | None = None, quiet: bool = True
) -> Generator[Columns]:
    """The fields of all files, a part at a time and in order; the headers of a part are held, and no others.

    Args:
        paths: absolute.
        processes: how many read; None: as many as there are processors, and 8 at most.
        state: folder that keeps each part that has been read, so that a later call reads only what is new. A file that
            has another size or time is new. Its files hold identifiers.
        quiet: no progress.
    """
    parts = [paths[start : start + PART] for start in range(0, len(paths), PART)]
    keys = ["" if state is None else _key(part) for part in parts]
    kept = [state is not None and (state / key).is_file() for key in keys]
    todo = [part for part, there in zip(parts, kept, strict=True) if not there]
    done = sum(len(part) for part, there in zip(parts, kept, strict=True) if there)
    if state is not None:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with Meter("reading headers", len(paths), done=done, quiet=quiet) as meter:
        fresh = _read(todo, processes)
        for key, there in zip(keys, kept, strict=True):
            if there and state is not None:
                yield json.loads(zlib.decompress((state / key).read_bytes()))
                continue
            columns = next(fresh)
            if state is not None:
                with replacing(state / key) as temporary:
                    temporary.write_bytes(zlib.compress(json.dumps(columns).encode("ascii"), 1))
            done += len(columns["found"])
            meter.update(done)
            yield columns


def read_columns(parts: Generator[Columns]) -> Columns:
    """All parts as one, in which equal texts are one object."""
    whole: Columns = {field: [] for field in FIELDS}
    known: dict[Any, Any] = {}
    for part in parts:
        for field, values in part.items():
            whole[field] += [known.setdefault(value, value) for value in values]
    return whole


def _key(paths: Sequence[str]) -> str:
    """Names these files as they are now."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        try:
            stat = os.stat(path)  # noqa: PTH116 - Path takes five times as long
            digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        except OSError:
            digest.update(f"{path}\0\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _read(parts: Sequence[Sequence[str]], processes: int | None) -> Generator[Columns]:
    number = processes if processes is not None else min(8, count_cores())
    if number <= 1 or sum(map(len, parts)) <= FEW:
        yield from map(read_headers, parts)
        return
    threads = min(number, len(parts))
    with ApartPool(alone=0) as apart, ThreadPoolExecutor(threads, initializer=apart.enter) as pool:
        try:
            yield from pool.map(_read_apart, parts)
        finally:
            pool.shutdown(cancel_futures=True)


def _read_apart(part: Sequence[str]) -> Columns:
    """The fields of these files by another process; by this one where that ends."""
    try:
        return call_apart(read_headers, part)
    except CrashError:
        return read_headers(part)
