"""Where a continuous target was common in training and where rare: the many-, medium- and few-shot ranges."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bolus.errors import EvaluationError
from bolus.evaluation.statistics.weighting import FloatArray

RANGES = ("many", "medium", "few")


def shot_ranges(
    y: ArrayLike, y_train: ArrayLike, *, shots: tuple[int, int] = (20, 100), bin_width: float | None = None
) -> NDArray[np.str_]:
    """Whether the target of each row was common among the training targets, as Yang et al. (arXiv:2102.09554) judge.

    Targets are put into bins of one width that start at 0. A bin with more training rows than the larger number of
    `shots` is of the range `many`, one with fewer than the smaller (none at all, too) of `few`, any other of `medium`.

    Args:
        y: `[n]` targets in any unit; NaN is missing.
        y_train: `[m]` targets of the training rows, the only ones that are counted; NaN is missing.
        shots: numbers of training rows, the smaller first.
        bin_width: in the target's unit; None: see `default_width`.

    Returns:
        str `[n]`: `many`, `medium`, `few`, or nothing where the target is missing.

    Raises:
        EvaluationError: shots that are exchanged or below 1, or a width that is not above 0.

    >>> shot_ranges([40.0, 41.9, 60.0, np.nan], [40.0] * 3 + [41.0] * 2, shots=(2, 2), bin_width=1).tolist()
    ['many', 'medium', 'few', '']
    """
    few, many = shots
    if not 1 <= few <= many:
        raise EvaluationError(f"shots: expected two numbers of training rows, 1 <= few <= many; found {few} and {many}")
    y_n, train = np.asarray(y, dtype=np.float64), np.asarray(y_train, dtype=np.float64)
    train = train[np.isfinite(train)]
    width = default_width(train) if bin_width is None else bin_width
    if not (width > 0 and np.isfinite(width)):
        raise EvaluationError(f"bin_width: expected a number above 0, found {bin_width}")
    bins, counts = np.unique(_bins(train, width), return_counts=True)
    wanted = _bins(np.where(np.isfinite(y_n), y_n, 0.0), width)
    place = np.searchsorted(bins, wanted)
    place[place == len(bins)] = 0
    found = np.zeros(len(y_n), dtype=np.int64)
    if len(bins):
        found = np.where(bins[place] == wanted, counts[place], 0)
    ranges = np.where(found > many, "many", np.where(found < few, "few", "medium"))
    return np.where(np.isfinite(y_n), ranges, "")


def default_width(y_train: ArrayLike) -> float:
    """Width 1, as for ages in years, where the training targets fill at least ten such bins; else 1/50 of their range.

    A fifty-fold division keeps targets of another scale, such as a fraction in 0..1, from falling into one bin. Targets
    that are all one have width 1.

    >>> default_width([20.0, 21.0, 23.5] * 5), default_width(range(20, 80)), default_width([7.0])
    (0.07, 1.0, 1.0)
    """
    train = np.asarray(y_train, dtype=np.float64)
    train = train[np.isfinite(train)]
    if len(train) == 0 or np.ptp(train) == 0 or len(np.unique(_bins(train, 1.0))) >= 10:
        return 1.0
    return float(np.ptp(train) / 50)


def _bins(y: FloatArray, width: float) -> FloatArray:
    """The number of each target's bin; a target that lies on an edge but for rounding is on it."""
    return np.asarray(np.floor(y / width + 1e-9))
