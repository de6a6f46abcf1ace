"""Groups dealt out at random over patients: what differences between groups come of chance alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from bolus.evaluation.statistics.bootstrap import cluster_codes
from bolus.evaluation.statistics.metrics import IntArray


def outcome_strata(y: ArrayLike, patients: ArrayLike, task: str) -> IntArray:
    """Samples of patients with like outcomes, int64 `[n]`, one value a patient.

    For `classify` the rarest of a patient's classes (by patients that have it), else the fifth of the patients that
    its mean target lies in.

    >>> outcome_strata([0, 1, 0, 0, 0], [0, 0, 1, 2, 3], "classify").tolist()
    [1, 1, 0, 0, 0]
    """
    y_n, clusters = np.asarray(y, dtype=np.float64), cluster_codes(patients)
    by_patient = pd.Series(y_n).groupby(clusters)
    if task == "regress":
        means = by_patient.mean().to_numpy()
        fifths = np.searchsorted(np.quantile(means, (0.2, 0.4, 0.6, 0.8)), means, side="right").astype(np.int64)
        return np.asarray(fifths[clusters])
    classes, codes = np.unique(y_n, return_inverse=True)
    has = np.zeros((int(clusters.max(initial=-1)) + 1, len(classes)), dtype=bool)
    has[clusters, codes] = True
    return np.asarray(np.where(has, has.sum(0), len(has) + 1).argmin(1)[clusters])


def random_groups(
    codes: ArrayLike, patients: ArrayLike, strata: ArrayLike, *, draws: int, seed: int, block_size: int = 1 << 20
) -> Iterator[IntArray]:
    """Groups dealt out anew over the patients, `[b, n]` in blocks, with groups as large as they were.

    Patients with one group exchange it with patients of the same stratum, so that a group keeps its number of patients
    and their outcomes. A patient whose samples are of several groups (two eyes, two visits) has them exchanged among
    its own samples.

    Args:
        codes: int64 `[n]` groups, none missing.
        patients: `[n]` codes; -1 is a patient of its own.
        strata: int64 `[n]`, one value a patient; see `outcome_strata`.
        draws: how many groupings.
        seed: of them.
        block_size: numbers in a block, about.

    >>> dealt = next(random_groups([0, 0, 1, 1], [0, 0, 1, 2], [0, 0, 0, 0], draws=5, seed=0))
    >>> (dealt[:, 0] == dealt[:, 1]).tolist()
    [True, True, True, True, True]
    """
    codes_n, clusters = np.asarray(codes, dtype=np.int64), cluster_codes(patients)
    order = np.argsort(clusters, kind="stable")
    starts = np.flatnonzero(np.diff(clusters[order], prepend=-1))
    group = np.minimum.reduceat(codes_n[order], starts)
    single = group == np.maximum.reduceat(codes_n[order], starts)
    stratum = np.where(single, np.asarray(strata, dtype=np.int64)[order[starts]], -1)
    several = order[~single[clusters[order]]]  # samples of the other patients, patient after patient
    generator = np.random.default_rng(seed)
    step = max(1, block_size // max(1, len(codes_n)))
    for first in range(0, draws, step):
        dealt = np.tile(group, (min(step, draws - first), 1))
        for value in np.unique(stratum[single]):
            who = np.flatnonzero(stratum == value)
            dealt[:, who] = generator.permuted(dealt[:, who], axis=1)
        drawn = dealt[:, clusters]
        keys = clusters[several] + generator.random((len(drawn), len(several)))
        drawn[:, several] = codes_n[several][np.argsort(keys, axis=1)]
        yield drawn
