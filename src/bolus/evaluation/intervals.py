"""How sure a test set can be of a metric: intervals, paired differences and what could have been shown.

Images of one patient resemble each other, so whole patients are resampled, and what is compared is compared on the same
resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bolus.errors import EvaluationError
from bolus.evaluation.metrics import IntArray, Metric


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval over patients.

    Args:
        value: on all rows.
        low: 2.5th percentile of the bootstrap draws; NaN where the value itself or more than half the draws are
            undefined, or where there are fewer than two patients.
        high: 97.5th percentile, NaN likewise.
        se: standard deviation of the draws, NaN likewise.
        num_samples: rows.
        num_patients: patients among them.
    """

    value: float
    low: float
    high: float
    se: float
    num_samples: int
    num_patients: int

    @classmethod
    def from_draws(cls, value: float, draws: ArrayLike, patients: ArrayLike) -> Estimate:
        """Summarise the bootstrap draws `[B]` of a value on the rows of `patients [n]`; undefined draws are dropped.

        >>> Estimate.from_draws(0.5, [0.4, 0.6, float("nan")], [0, 0, 1]).num_patients
        2
        """
        values = np.asarray(draws, dtype=np.float64)
        defined = values[np.isfinite(values)]
        clusters = cluster_codes(patients)
        num_patients = len(np.unique(clusters))
        low = high = se = float("nan")
        if np.isfinite(value) and num_patients > 1 and len(defined) > 1 and 2 * len(defined) >= len(values):
            low, high = (float(q) for q in np.percentile(defined, [2.5, 97.5]))
            se = float(defined.std(ddof=1))
        return cls(float(value), low, high, se, len(clusters), num_patients)


def cluster_codes(patients: ArrayLike) -> IntArray:
    """Patients as 0..P-1; a missing patient (-1 or NaN) equals nothing and is a cluster of its own.

    >>> cluster_codes([7, 7, -1, -1, 3])
    array([1, 1, 2, 3, 0])
    """
    given = np.asarray(patients)
    if given.ndim != 1:
        raise EvaluationError(f"patients must be one code a row, found an array of shape {given.shape}")
    missing = np.isnan(given) | (given == -1) if given.dtype.kind in "if" else np.zeros(len(given), dtype=bool)
    known, codes = np.unique(given[~missing], return_inverse=True)
    clusters = np.empty(len(given), dtype=np.int64)
    clusters[~missing] = codes
    clusters[missing] = len(known) + np.arange(missing.sum())
    return clusters


def bootstrap_blocks(
    patients: ArrayLike, *, draws: int, seed: int, block_size: int = 1 << 20
) -> Iterator[NDArray[np.int32]]:
    """The rows of `patient_bootstrap` in blocks of about `block_size` numbers, to fit in memory.

    >>> [block.shape for block in bootstrap_blocks([0, 0, 1], draws=5, seed=0, block_size=6)]
    [(2, 3), (2, 3), (1, 3)]
    """
    clusters = cluster_codes(patients)
    num_patients = len(np.unique(clusters))
    generator = np.random.default_rng(seed)
    step = max(1, block_size // max(1, len(clusters)))
    for first in range(0, max(1, draws), step):
        size = min(step, draws - first)
        drawn = generator.integers(max(1, num_patients), size=(size, num_patients))
        offset = drawn + num_patients * np.arange(size)[:, None]
        counts = np.bincount(offset.ravel(), minlength=size * num_patients).reshape(size, num_patients)
        yield counts.astype(np.int32)[:, clusters]


def patient_bootstrap(patients: ArrayLike, *, draws: int = 1000, seed: int) -> NDArray[np.int32]:
    """Multiplicities of the rows when whole patients are resampled with replacement.

    Args:
        patients: `[n]` codes; -1 is a patient of its own.
        draws: number of resamples B.
        seed: the draws are a function of it and of the patients.

    Returns:
        int32 `[B, n]`; rows of one patient carry the same multiplicity; those of the patients sum to their number.

    >>> weights = patient_bootstrap([0, 0, 1, 2], draws=3, seed=0)
    >>> bool((weights[:, 0] == weights[:, 1]).all()), weights[:, 1:].sum(1).tolist()
    (True, [3, 3, 3])
    """
    return np.concatenate(list(bootstrap_blocks(patients, draws=draws, seed=seed)))


def estimate(
    metric: Metric, y: ArrayLike, p: ArrayLike, patients: ArrayLike, *, draws: int = 1000, seed: int = 0
) -> Estimate:
    """A metric with its 95 % percentile interval from the patient bootstrap.

    Args:
        metric: a function of (y, p, weights), such as those of `METRICS`.
        y: `[n]` targets, none missing.
        p: `[n]` or `[n, K]` predictions.
        patients: `[n]` codes.
        draws: bootstrap resamples.
        seed: of the resamples.

    Returns:
        The estimate; NaN parts where undefined (see `Estimate`).

    >>> from bolus.evaluation.metrics import auroc
    >>> found = estimate(auroc, [0, 1] * 20, [0.0, 1.0] * 20, list(range(40)), seed=0)
    >>> found.value, found.low, found.num_patients
    (1.0, 1.0, 40)
    """
    return _bootstrap(lambda weights: metric(y, p, weights), patients, draws, seed)


def paired_difference(
    metric: Metric,
    y: ArrayLike,
    p_a: ArrayLike,
    p_b: ArrayLike,
    patients: ArrayLike,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """The metric of `p_a` less that of `p_b`, on the same rows and the same draws of patients.

    Args as `estimate`. The sign is the metric's own: for an error, negative means that `p_a` is better.

    >>> from bolus.evaluation.metrics import mae
    >>> paired_difference(mae, [1.0, 2.0, 3.0], [1.0, 2.0, 4.0], [1.0, 2.0, 4.0], [0, 1, 2], seed=0).high
    0.0
    """
    return _bootstrap(lambda weights: metric(y, p_a, weights) - metric(y, p_b, weights), patients, draws, seed)


def _bootstrap(statistic: Callable[[Any], Any], patients: ArrayLike, draws: int, seed: int) -> Estimate:
    """An estimate of `statistic(weights [B, n]) -> [B]`, whose value on the rows as they are is `statistic(None)`."""
    blocks = bootstrap_blocks(patients, draws=draws, seed=seed)
    return Estimate.from_draws(statistic(None), np.concatenate([statistic(block) for block in blocks]), patients)


def detectable_difference(se: float) -> float:
    """The smallest true difference that a comparison with standard error `se` finds with 80 % power at two-sided 5 %.

    >>> round(detectable_difference(0.02), 4)
    0.056
    """
    return (1.960 + 0.842) * se
