"""The distribution of an image's values in some sixty numbers, which pool to that of its series or cohort.

Percentiles of a series are those of all of its pixels, and no slice knows them. So each image keeps its quantiles at
fixed levels, dense in the tails, and the distribution of many images is the mean of theirs, weighted by their pixels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_TAIL = (0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08)
LEVELS = np.array([0, *_TAIL, *np.linspace(0.1, 0.9, 33).round(4), *(1 - level for level in _TAIL[::-1]), 1])
MOST = 2**18  # values that are sorted; of more, as many at equal steps
HALVINGS = 50  # of an interval in which a quantile lies

Floats = npt.NDArray[np.float64]


def sketch(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """The quantiles of values at `LEVELS`, linear between order statistics; both ends are exact.

    Args:
        values: finite floats of any shape, at least one.

    Returns:
        float32 `[len(LEVELS)]`, rising.

    Example:
        >>> found = sketch(np.arange(1001, dtype=np.float32))
        >>> found[[0, 4, -1]].tolist()
        [0.0, 5.0, 1000.0]
    """
    flat = values.ravel()
    some = flat
    if flat.size > MOST:
        step = -(-flat.size // MOST)
        width = values.shape[-1]
        while width > 1 and np.gcd(step, width) > 1:  # else only some columns would be looked at
            step += 1
        some = flat[::step]
    found: npt.NDArray[np.float32] = np.quantile(some, LEVELS).astype(np.float32)
    found[0], found[-1] = flat.min(), flat.max()
    return found


def share_up_to(values: Floats, quantiles: npt.NDArray[np.float32]) -> Floats:
    """The share of each image's pixels at or below a value.

    Args:
        values: float `[n]`, one for each image.
        quantiles: `[n, len(LEVELS)]` as of `sketch`.

    Returns:
        float64 `[n]` in 0..1, linear between levels.

    Example:
        >>> image = sketch(np.array([0.0, 0, 0, 10]))
        >>> share_up_to(np.array([-1.0, 0, 10]), np.stack([image] * 3)).round(2).tolist()
        [0.0, 0.65, 1.0]
    """
    after = (quantiles <= values[:, None]).sum(1)  # how many levels lie at or below
    upper = np.clip(after, 1, len(LEVELS) - 1)
    images = np.arange(len(values))
    low, high = quantiles[images, upper - 1].astype(np.float64), quantiles[images, upper].astype(np.float64)
    within = np.divide(values - low, high - low, out=np.zeros(len(values)), where=high > low)
    share = LEVELS[upper - 1] + np.clip(within, 0, 1) * (LEVELS[upper] - LEVELS[upper - 1])
    return np.where(after == 0, 0.0, np.where(after == len(LEVELS), 1.0, share))


def pooled(
    quantiles: npt.NDArray[np.float32],
    pixels: npt.NDArray[np.integer] | Floats,
    groups: npt.NDArray[np.int64],
    levels: npt.ArrayLike,
) -> Floats:
    """The quantiles of groups of images: the smallest value that so large a share of a group's pixels reaches at most.

    Args:
        quantiles: `[n, len(LEVELS)]` as of `sketch`.
        pixels: `[n]`, how many pixels each image stands for.
        groups: int64 `[n]`, 0 to g - 1, each with an image.
        levels: `[k]` shares in 0..1.

    Returns:
        float64 `[g, k]`.

    Example:
        >>> dark, bright = sketch(np.arange(101.0)), sketch(np.arange(101.0) + 100)
        >>> pooled(np.stack([dark, bright]), np.array([101, 101]), np.array([0, 0]), [0.25, 1]).round(1).tolist()
        [[50.0, 200.0]]
    """
    number = int(groups.max(initial=-1)) + 1
    total = np.bincount(groups, pixels, number)
    lowest, highest = np.full(number, np.inf), np.full(number, -np.inf)
    np.minimum.at(lowest, groups, quantiles[:, 0])
    np.maximum.at(highest, groups, quantiles[:, -1])
    found = np.empty((number, np.size(levels)))
    for place, level in enumerate(np.atleast_1d(np.asarray(levels, np.float64))):
        low, high = lowest.copy(), highest.copy()
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            share = np.bincount(groups, share_up_to(middle[groups], quantiles) * pixels, number) / total
            enough = share >= level
            high, low = np.where(enough, middle, high), np.where(enough, low, middle)
        at_once = np.bincount(groups, share_up_to(lowest[groups], quantiles) * pixels, number) / total >= level
        found[:, place] = np.where(at_once, lowest, high)
    return found
