"""Signatures: what is peculiar to an image among those of its kind, so that copies are alike and strangers are not.

The cosine transform of a thumbnail, up to a frequency, is weighted by frequency (greys of images fall off with it) and
whitened by the images of the cohort itself: what all of them show, such as the disc of a fundus or the fan of an
ultrasound probe, counts for nothing. The cosine between two signatures is their likeness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from bolus.data.copies.thumbnails import SIDE, FloatArray

FINE, COARSE = 16, 8  # highest frequencies, in half periods over the side: to decide by, and to search by
CROP = 0.95  # of each side: what is left of a copy that was cropped
STEP = (1 - CROP) / 2  # between the places of crops that are searched, as a share of the side
FINER = STEP / 3  # between those that are looked at once a pair is found
ENOUGH = 5_000  # images that the whitening is learned from
PRIOR = 100  # images that weigh as much as what is assumed without any
NOISE = 0.1  # of the mean variance: what JPEG and scaling change, which must not be blown up
MOST = 1.5  # standard deviations that one coefficient counts for at most


class View(NamedTuple):
    """A window of an image, as shares of its sides, which may be mirrored."""

    top: float = 0.0
    left: float = 0.0
    share: float = 1.0
    upside_down: bool = False
    mirrored: bool = False


WHOLE = View()
MIRRORED = (View(mirrored=True), View(upside_down=True), View(upside_down=True, mirrored=True))
CROPPED = tuple(View(STEP * row, STEP * column, CROP) for row in range(3) for column in range(3))
WIDENED = tuple(View(-view.top / CROP, -view.left / CROP, 1 / CROP) for view in CROPPED)  # as if uncropped


def around(view: View) -> Sequence[View]:
    """Views beside this one that a found pair is compared in as well: a crop moved a little; else only itself.

    >>> len(around(WHOLE)), len(around(CROPPED[0])), len(around(CROPPED[4]))
    (1, 4, 9)
    """
    if view.share == 1:
        return [view]
    moved = [(view.top + FINER * row, view.left + FINER * column) for row in (-1, 0, 1) for column in (-1, 0, 1)]
    low, high = sorted((0.0, 1 - view.share))
    return [
        view._replace(top=top, left=left)
        for top, left in moved
        if low - 1e-9 <= min(top, left) and max(top, left) <= high + 1e-9
    ]


@dataclass(frozen=True)
class Signer:
    """Makes signatures of one kind of images.

    Args:
        reach: the highest frequency.
        mean: float32 `[D]`, of the coefficients.
        whitening: float32 `[D, D]`.
    """

    reach: int
    mean: FloatArray
    whitening: FloatArray

    def sign(self, thumbnails: FloatArray, view: View = WHOLE) -> FloatArray:
        """Signatures of length 1, float32 `[n, D]`; of thumbnails `[n, 32, 32]`, with something to see in each."""
        white = (coefficients(thumbnails, self.reach, view) - self.mean) @ self.whitening
        white /= np.maximum(np.sqrt((white**2).mean(axis=1, keepdims=True)), 1e-9)
        return _of_length_one(white.clip(-MOST, MOST))


def learn_signer(thumbnails: FloatArray, reach: int) -> Signer:
    """A signer for the kind of images that these are.

    Args:
        thumbnails: float32 `[n, 32, 32]`, with something to see in each; of more than 5,000, so many are drawn.
        reach: the highest frequency.

    Returns:
        Learned the less, the fewer images there are; without any, nothing is: see `plain_signer`.

    Example:
        >>> disc = np.hypot(*np.mgrid[-1:1:32j, -1:1:32j]) < 0.8
        >>> noise = np.random.default_rng(0).normal(size=(400, 32, 32))
        >>> images = (disc + 0.2 * noise).astype(np.float32)
        >>> alike, told = (signer.sign(images[:2]) for signer in (plain_signer(16), learn_signer(images, 16)))
        >>> bool(alike[0] @ alike[1] > 0.3), bool(abs(told[0] @ told[1]) < 0.2)
        (True, True)
    """
    if not len(thumbnails):
        return plain_signer(reach)
    if len(thumbnails) > ENOUGH:
        thumbnails = thumbnails[np.sort(np.random.default_rng(0).choice(len(thumbnails), ENOUGH, replace=False))]
    found = coefficients(thumbnails, reach).astype(np.float64)
    mean = found.sum(axis=0) / (len(found) + 10)
    variance, axes = np.linalg.eigh((found - mean).T @ (found - mean) / len(found))
    floor = (NOISE + PRIOR / len(found)) * max(float(variance.mean()), 1e-12)
    whitening = axes / np.sqrt(variance.clip(0) + floor)
    return Signer(reach, mean.astype(np.float32), whitening.astype(np.float32))


def plain_signer(reach: int) -> Signer:
    """A signer that knows of no kind of images, and so tells those that are alike as a whole less well apart."""
    dim = int(_taken(reach).sum())
    return Signer(reach, np.zeros(dim, np.float32), np.eye(dim, dtype=np.float32))


def coefficients(thumbnails: FloatArray, reach: int, view: View = WHOLE) -> FloatArray:
    """Weighted coefficients of the cosine transform up to a frequency, float32 `[n, D]`, each row of length 1."""
    down = _transform(reach, view.top, view.share, view.upside_down)
    across = _transform(reach, view.left, view.share, view.mirrored)
    rows, columns = np.mgrid[: reach + 1, : reach + 1]
    taken = _taken(reach)
    found = down @ thumbnails.astype(np.float32, copy=False) @ across.T
    return _of_length_one(found[:, taken] * np.hypot(rows, columns)[taken].astype(np.float32))


@lru_cache(maxsize=512)
def _transform(reach: int, start: float, share: float, reverse: bool) -> FloatArray:
    """One side of the transform of a window, float32 `[reach + 1, 32]`; beyond the edges, these go on."""
    place = np.arange(SIDE) + 0.5
    seen = ((place / SIDE * share + start) * SIDE - 0.5).clip(0, SIDE - 1)
    below = np.floor(seen).astype(int).clip(0, SIDE - 2)
    window = np.zeros((SIDE, SIDE))
    window[np.arange(SIDE), below] = 1 - (seen - below)
    window[np.arange(SIDE), below + 1] = seen - below
    waves = np.cos(np.pi / SIDE * np.arange(reach + 1)[:, None] * place) * np.sqrt(2 / SIDE)
    waves[0] /= np.sqrt(2)
    found: FloatArray = (waves @ (window[::-1] if reverse else window)).astype(np.float32)
    return found


@lru_cache(maxsize=8)
def _taken(reach: int) -> np.ndarray:
    """Which of the `[reach + 1, reach + 1]` coefficients are within reach; not the mean."""
    frequency = np.hypot(*np.mgrid[: reach + 1, : reach + 1])
    taken: np.ndarray = (frequency > 0) & (frequency <= reach)
    return taken


def _of_length_one(rows: FloatArray) -> FloatArray:
    found: FloatArray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return found
