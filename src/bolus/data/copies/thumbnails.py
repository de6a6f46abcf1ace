"""An image as 32 x 32 greys, from which its signatures are made."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = "npt.NDArray[np.float32]"
SIDE = 32
PEAKED = 100.0  # kurtosis of the 1,024 greys from which on all but about ten of them are alike


def thumbnail_of(array: npt.NDArray[Any]) -> FloatArray:
    """The mean grey of 32 x 32 equal parts, brought to mean 0 and variance 1: brightness and contrast are gone.

    Args:
        array: `[C, H, W]`, any numbers; channels are averaged, and H and W may differ.

    Returns:
        float32 `[32, 32]`; NaN where there is nothing to see: one value, or all but a few parts alike, as of a black
        frame with a letter in its corner.

    Example:
        >>> tall = np.random.default_rng(0).random((3, 96, 64), np.float32)
        >>> np.allclose(thumbnail_of(tall), thumbnail_of(40 + 2 * tall), atol=1e-3)
        True
        >>> bool(np.isnan(thumbnail_of(np.zeros((1, 64, 64)))).all())
        True
    """
    grey = array[0] if len(array) == 1 else array.mean(axis=0, dtype=np.float32)
    height, width = grey.shape
    parts = _areas(height) @ grey.astype(np.float32, copy=False) @ _areas(width).T
    found: FloatArray = standardised(parts[None])[0]
    return found


def standardised(greys: FloatArray) -> FloatArray:
    """Each of `[n, 32, 32]` with mean 0 and variance 1, float32; NaN where there is nothing to see."""
    centred = greys.astype(np.float64) - greys.mean(axis=(1, 2), dtype=np.float64, keepdims=True)
    largest = np.abs(greys).max(axis=(1, 2), keepdims=True)
    spread = np.sqrt((centred**2).mean(axis=(1, 2), keepdims=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = centred / np.where(spread > 1e-5 * largest, spread, np.nan)
    found[(found**4).mean(axis=(1, 2)) > PEAKED] = np.nan
    small: FloatArray = found.astype(np.float32)
    return small


@lru_cache(maxsize=64)
def _areas(length: int) -> FloatArray:
    """How much of each of `length` pixels lies in each of 32 equal parts, `[32, length]`; rows sum to 1."""
    edges = np.arange(SIDE + 1) * length / SIDE
    pixel = np.arange(length)
    inside = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return (inside.clip(0) / (length / SIDE)).astype(np.float32)
