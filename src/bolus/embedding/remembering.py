"""Embeddings that were computed once: kept beside the pixels, by the encoder's weights, its input and each image.

A folder for each encoder and input holds parts that are only ever added: `NAME.npy` with vectors float32 `[n, D]`, and
`NAME.keys.npy` with the keys of their images, uint64 `[n, 2]`, which is written last. A damaged part is as if absent.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bolus.checksums import load_array, save_array

FOLDER = "embeddings"
PART, PART_SECONDS = 2048, 60.0  # vectors, and time, after which a part is written: what is lost at most where it ends
VERSION = 2  # of what an encoder makes of the same pixels, and of the files


def embedder_key(weights: str, facts: Any) -> str:
    """A name for an encoder and how it is fed.

    Args:
        weights: digest of all parameters and buffers.
        facts: plain data: architecture, normalisation, size, frames, precision, device.

    >>> embedder_key("ab", {"size": 64}) == embedder_key("ab", {"size": 64}) != embedder_key("ab", {"size": 65})
    True
    """
    text = json.dumps([VERSION, weights, facts], sort_keys=True)
    return blake2b(text.encode(), digest_size=12).hexdigest()


def remember(
    folder: Path,
    keys: npt.NDArray[np.uint64],
    dim: int,
    compute: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]],
) -> npt.NDArray[np.float32]:
    """Vectors of these images: those known from the folder, the others computed, and kept there for the next time.

    Args:
        folder: of one encoder and input; made where it is not there.
        keys: uint64 `[n, 2]`, of the images.
        dim: D.
        compute: positions among the images, int64 `[m]` -> their vectors, float32 `[m, D]`.

    Returns:
        float32 `[n, D]`.

    >>> import tempfile
    >>> keys, asked = np.arange(6, dtype=np.uint64).reshape(3, 2), []
    >>> def compute(places):
    ...     asked.append(places.tolist())
    ...     return places[:, None].astype(np.float32)
    >>> with tempfile.TemporaryDirectory() as place:
    ...     first = remember(Path(place), keys[:2], 1, compute)
    ...     remember(Path(place), keys, 1, compute).ravel().tolist(), asked
    ([0.0, 1.0, 2.0], [[0, 1], [2]])
    """
    return next(remember_in_pieces(folder, keys, dim, lambda places: [compute(places)], [len(keys)]))


def remember_in_pieces(
    folder: Path,
    keys: npt.NDArray[np.uint64],
    dim: int,
    compute: Callable[[npt.NDArray[np.int64]], Iterable[npt.NDArray[np.float32]]],
    stops: Sequence[int],
) -> Generator[npt.NDArray[np.float32]]:
    """The same, piece by piece, in the memory of one piece; what was computed is kept as it comes.

    Args:
        folder: as of `remember`, and so is `dim`.
        keys: uint64 `[n, 2]`; equal ones are computed once.
        dim: D.
        compute: positions among the images, int64 `[m]`, rising -> their vectors in order, some at a time. It is called
            once, and not where all are known.
        stops: where pieces end, not falling; the last is n.

    Yields:
        float32 `[m, D]` for each stop, from the one before to it.
    """
    kind, first = _kinds(keys)
    part, place = np.full(len(first), -1, np.int32), np.zeros(len(first), np.int32)
    paths = _known(folder, keys[first], part, place)
    missing = np.flatnonzero(part < 0)
    missing = missing[np.argsort(first[missing])]  # in the order in which they are asked for
    rises, done, kept, began = first[missing], 0, 0, time.monotonic()
    waiting: list[npt.NDArray[np.float32]] = []  # computed, and not in a file yet: kinds missing[kept:done]
    computed = iter(compute(rises) if len(missing) else ())
    for start, stop in zip([0, *stops], stops, strict=False):
        while done < np.searchsorted(rises, stop):
            waiting.append(next(computed))
            place[missing[done : done + len(waiting[-1])]] = np.arange(len(waiting[-1])) + done - kept
            done += len(waiting[-1])
            if done - kept >= PART or done == len(missing) or time.monotonic() - began > PART_SECONDS:
                new = missing[kept:done]
                paths.append(_write_part(folder, keys[first[new]], np.concatenate(waiting)))
                part[new] = len(paths) - 1
                waiting, kept, began = [], done, time.monotonic()
        asked, found = kind[start:stop], np.zeros((stop - start, dim), np.float32)
        for number in np.unique(part[asked]).tolist():
            vectors = np.load(paths[number], mmap_mode="r") if number >= 0 else np.concatenate(waiting)
            here = np.flatnonzero(part[asked] == number)
            found[here] = vectors[place[asked[here]]]
        yield found


def _kinds(keys: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which of the different keys each is, `[n]`, and where each of these stands first; in the order of the keys."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: of equal ones the first comes first
    ordered = keys[order]
    begins = np.ones(len(keys), bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    kind = np.empty(len(keys), np.int64)
    kind[order] = np.cumsum(begins) - 1
    return kind, order[begins]


def _known(
    folder: Path, keys: npt.NDArray[np.uint64], part: npt.NDArray[np.int32], place: npt.NDArray[np.int32]
) -> list[Path]:
    """Files of vectors that are whole; which of them holds each of these keys, which rise, and where, is filled in."""
    paths: list[Path] = []
    for path in sorted(folder.glob("*.keys.npy")) if len(keys) else []:
        listed, vectors = load_array(path), path.with_name(path.name.replace(".keys.npy", ".npy"))
        if listed is None or not len(listed):
            continue
        at = np.searchsorted(keys[:, 0], listed[:, 0]).clip(max=len(keys) - 1)
        here = np.flatnonzero((keys[at] == listed).all(axis=1))
        here = here[part[at[here]] < 0]
        if len(here) and load_array(vectors, mapped=True) is not None:
            part[at[here]], place[at[here]] = len(paths), here
            paths.append(vectors)
    return paths


def _write_part(folder: Path, keys: npt.NDArray[np.uint64], vectors: npt.NDArray[np.float32]) -> Path:
    """Keep vectors and the keys of their images; the file of the vectors."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{uuid.uuid4().hex[:12]}.npy"
    save_array(path, vectors)
    save_array(path.with_suffix(".keys.npy"), keys)
    return path
