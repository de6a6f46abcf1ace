"""Embeddings that were computed once: kept beside the pixels, by the encoder's weights, its input and each image.

A folder for each encoder and input holds parts that are only ever added: `NAME.npy` with vectors float32 `[n, D]`, and
`NAME.keys.npy` with the keys of their images, uint64 `[n, 2]`, which is written last. A damaged part is as if absent.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bolus.checksums import load_array, save_array

FOLDER = "embeddings"
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
    found = np.zeros((len(keys), dim), np.float32)
    known = np.zeros(len(keys), bool)
    wanted = _as_one(keys)
    for path in sorted(folder.glob("*.keys.npy")):
        listed, vectors = load_array(path), path.with_name(path.name.replace(".keys.npy", ".npy"))
        if listed is None or not len(listed):
            continue
        there = _as_one(listed)
        order = np.argsort(there)
        place = order[np.searchsorted(there, wanted, sorter=order).clip(max=len(there) - 1)]
        here = np.flatnonzero((there[place] == wanted) & ~known)
        stored = load_array(vectors, mapped=True) if len(here) else None
        if stored is not None:
            found[here] = stored[place[here]]
            known[here] = True
    missing = np.flatnonzero(~known)
    if not len(missing):
        return found
    _, first, again = np.unique(wanted[missing], return_index=True, return_inverse=True)
    computed = compute(missing[first])
    found[missing] = computed[again]
    folder.mkdir(parents=True, exist_ok=True)
    name = uuid.uuid4().hex[:12]
    for suffix, array in ((".npy", computed), (".keys.npy", keys[missing[first]])):
        save_array(folder / f"{name}{suffix}", array)
    return found


def _as_one(keys: npt.NDArray[np.uint64]) -> npt.NDArray[Any]:
    """Each key as one value that can be sorted, `[n]`."""
    pair = np.dtype([("first", "u8"), ("second", "u8")])
    return np.ascontiguousarray(keys).view(pair)[:, 0] if len(keys) else np.zeros(0, pair)
