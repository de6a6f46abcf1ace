"""Damage to files as disks and transfers do it: one bit flipped, or a stretch of zeros."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def flip_bit(path: Path, rng: np.random.Generator, *, start: int = 0) -> int:
    """Flip one bit of a file, not before byte `start`; returns which byte it was in."""
    content = bytearray(path.read_bytes())
    at = int(rng.integers(start, len(content)))
    content[at] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)
    return at


def zero(path: Path, rng: np.random.Generator, length: int, *, start: int = 0) -> int:
    """Overwrite a stretch of a file with zeros, not before byte `start`; returns the first byte of it."""
    content = bytearray(path.read_bytes())
    at = int(rng.integers(start, max(start + 1, len(content) - length)))
    content[at : at + length] = bytes(len(content[at : at + length]))
    path.write_bytes(content)
    return at
