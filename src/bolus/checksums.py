"""Checksums of what is kept in files, so that a flipped bit is found and never trained on.

Facts that stand as JSON beside tensors carry a digest of each tensor and one of themselves; an array in a file of its
own ends with a checksum. They find damage, not forgery: who can write the file can write the checksum.
"""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bolus.files import replacing, strict_json

if TYPE_CHECKING:
    from torch import Tensor

DIGESTS, FACTS = "digests", "digest"  # keys beside the facts
CRC_BYTES = 4
_PIECE = 2**20  # bytes of a file read at once


def with_checksums(facts: Mapping[str, Any], tensors: Mapping[str, Tensor | npt.NDArray[Any]]) -> dict[str, Any]:
    """The facts, with a digest of each tensor and one of the facts and these digests.

    Args:
        facts: JSON values; what is not finite counts as null.
        tensors: name -> tensor or array of any shape and dtype.

    >>> sorted(with_checksums({"step": 3}, {"weight": np.zeros(2)}))
    ['digest', 'digests', 'step']
    """
    sealed = {**facts, DIGESTS: {name: _digest(tensor) for name, tensor in tensors.items()}}
    return {**sealed, FACTS: _digest_of_facts(sealed)}


def find_damage(sealed: Mapping[str, Any], tensors: Mapping[str, Tensor | npt.NDArray[Any]]) -> list[str]:
    """What is not as `with_checksums` saw it: names of tensors, and `facts`; empty where all is whole.

    Args:
        sealed: what `with_checksums` gave, read again; without both kinds of digest, as an earlier version wrote it,
            nothing can be found.
        tensors: name -> tensor, as read again.

    >>> sealed = with_checksums({"step": 3}, {"a": np.zeros(2), "b": np.ones(2)})
    >>> find_damage(sealed, {"a": np.zeros(2), "b": np.array([1, 1 + 2**-52])})
    ['b']
    >>> find_damage({**sealed, "step": 4}, {"a": np.zeros(2), "b": np.ones(2)})
    ['facts']
    """
    digests, of_facts = sealed.get(DIGESTS), sealed.get(FACTS)
    if digests is None and of_facts is None:
        return []
    facts = {key: value for key, value in sealed.items() if key != FACTS}
    if not isinstance(digests, dict) or _digest_of_facts(facts) != of_facts:
        return ["facts"]
    found = sorted(digests.keys() ^ tensors.keys())
    return found + [name for name, tensor in tensors.items() if digests.get(name) not in (None, _digest(tensor))]


def without_checksums(sealed: Mapping[str, Any]) -> dict[str, Any]:
    """The facts alone."""
    return {key: value for key, value in sealed.items() if key not in (DIGESTS, FACTS)}


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array as `.npy`, whole or not at all, with the CRC-32 of all that stands before it as the last bytes.

    numpy reads such a file as any other.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_array(Path(folder, "a.npy"), np.arange(3))
    ...     np.load(Path(folder, "a.npy")).tolist(), load_array(Path(folder, "a.npy")).tolist()
    ([0, 1, 2], [0, 1, 2])
    """
    content = io.BytesIO()
    np.save(content, array)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content.getbuffer())
        file.write(zlib.crc32(content.getbuffer()).to_bytes(CRC_BYTES, "little"))


def load_array(path: Path, *, mapped: bool = False) -> npt.NDArray[Any] | None:
    """What `save_array` wrote, or None where the file is absent, torn or damaged.

    Args:
        path: of the file.
        mapped: leave the array in the file, and read it through once for its checksum.
    """
    try:
        with path.open("rb") as file:
            left, crc = os.fstat(file.fileno()).st_size - CRC_BYTES, 0
            while left > 0:
                piece = file.read(min(left, _PIECE))
                left, crc = left - len(piece), zlib.crc32(piece, crc)
                if not piece:
                    return None
            if file.read(CRC_BYTES) != crc.to_bytes(CRC_BYTES, "little"):
                return None
        loaded: npt.NDArray[Any] = np.load(path, mmap_mode="r" if mapped else None)
        return loaded
    except (OSError, ValueError, EOFError):
        return None


def _digest(tensor: Tensor | npt.NDArray[Any]) -> str:
    """Of a tensor's dtype, shape and bytes."""
    if isinstance(tensor, np.ndarray):
        kind, content = str(tensor.dtype), np.ascontiguousarray(tensor)
    else:
        import torch

        kind = str(tensor.dtype).removeprefix("torch.")  # as numpy has it
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    digest = hashlib.blake2b(f"{kind} {tuple(tensor.shape)} ".encode(), digest_size=16)
    digest.update(content.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _digest_of_facts(facts: Mapping[str, Any]) -> str:
    return hashlib.blake2b(strict_json(facts).encode(), digest_size=16).hexdigest()
