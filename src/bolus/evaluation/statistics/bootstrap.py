"""Test patients resampled with replacement: images of one patient resemble each other, so whole patients are drawn.

What is compared is compared on the same draws.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bolus.errors import EvaluationError
from bolus.evaluation.statistics.weighting import IntArray


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
