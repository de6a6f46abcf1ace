"""How strongly two columns hang together: Cramer's V of categories, AUROC of numbers, each with the odds of chance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import gammaincc
from scipy.stats import hypergeom, rankdata

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

CHANCE = 1e-4
"""p-value above which an association may be chance."""
STRONG = 0.3
"""Cramer's V, or |2 AUROC - 1|, from which an association matters."""
ENOUGH = 20
"""Patients below which nothing is said of how columns hang together."""
FEWEST = 5
"""Patients that a side of the split, or of a class, needs."""
MIN_KNOWN = 10
"""Samples, or patients, below which it means nothing that all values differ."""


@dataclass(frozen=True)
class Association:
    """How far two categories tell each other.

    Args:
        gives_first: 0..1, how far the second gives the first; near 1 where it leaves no doubt.
        gives_second: 0..1, how far the first gives the second.
        p: how often chance alone brings about as much.
        num: rows that have both.
    """

    gives_first: float
    gives_second: float
    p: float
    num: int

    @property
    def cramers_v(self) -> float:
        """Cramer's V: 1 where the one of more classes gives the other without doubt."""
        return max(self.gives_first, self.gives_second)

    @property
    def both_ways(self) -> float:
        """1 only where each gives the other: the same information under other names."""
        return min(self.gives_first, self.gives_second)


NONE = Association(0.0, 0.0, 1.0, 0)


def associate(first: IntArray, second: IntArray) -> Association:
    """Cramer's V without its bias for small tables (Bergsma, 2013), and how often chance brings about such a table.

    The p-value is exact where both have two values. Else chi-square is held against the gamma distribution with the
    mean and variance that it has where the margins are given (Haldane, 1940): the chi-square distribution in large
    tables, but of the right order where most cells are empty too.

    Args:
        first: int64 `[n]` codes, -1 missing.
        second: the same rows, likewise.

    Example:
        >>> found = associate(np.arange(60) % 3, np.arange(60) % 3 % 2)
        >>> round(found.gives_second, 2), round(found.gives_first, 2), found.p < 1e-4
        (0.99, 0.71, True)
    """
    known = (first >= 0) & (second >= 0)
    num = int(known.sum())
    if num < 4:
        return NONE
    (a, kinds_1), (b, kinds_2) = pd.factorize(first[known]), pd.factorize(second[known])
    rows, columns = len(kinds_1), len(kinds_2)
    if min(rows, columns) < 2:
        return NONE
    sizes_1, sizes_2 = np.bincount(a).astype(np.float64), np.bincount(b).astype(np.float64)
    cells, counts = _count(a * columns + b, rows * columns)
    phi_squared = float((counts**2 / (sizes_1[cells // columns] * sizes_2[cells % columns])).sum() - 1)
    excess = max(0.0, phi_squared - (rows - 1) * (columns - 1) / (num - 1))
    gives_first, gives_second = (
        min(1.0, math.sqrt(excess / freedom)) if freedom > 0 else 0.0
        for freedom in (size - 1 - (size - 1) ** 2 / (num - 1) for size in (rows, columns))
    )
    if rows == columns == 2:
        both = int(((a == 0) & (b == 0)).sum())
        return Association(gives_first, gives_second, _by_chance(both, int(sizes_1[0]), int(sizes_2[0]), num), num)
    mean = num * (rows - 1) * (columns - 1) / (num - 1)
    (even_1, odd_1), (even_2, odd_2) = (
        (
            (len(sizes) - 1) * (num - len(sizes)) / (num - 1),
            (num * (1 / sizes).sum() - len(sizes) ** 2) / (num - 2),
        )
        for sizes in (sizes_1, sizes_2)
    )
    variance = 2 * num / (num - 3) * (even_1 - odd_1) * (even_2 - odd_2) + num**2 / (num - 1) * odd_1 * odd_2
    if variance <= 1e-9:  # every table with these margins has this chi-square
        return Association(gives_first, gives_second, 1.0, num)
    p = float(gammaincc(mean**2 / variance, num * phi_squared * mean / variance))
    return Association(gives_first, gives_second, p, num)


def _by_chance(both: int, first: int, second: int, num: int) -> float:
    """Twice the exact probability of the nearer tail, of `both` rows that have the one and the other (Fisher)."""
    odds = hypergeom(num, first, second)
    return float(min(1.0, 2 * min(odds.cdf(both), odds.sf(both - 1))))


def _count(cells: IntArray, num_cells: int) -> tuple[IntArray, IntArray]:
    """Which cells of a table are filled, and how often; a table of identifiers is mostly empty."""
    if num_cells > 4 * len(cells):
        return np.unique(cells, return_counts=True)
    counts = np.bincount(cells, minlength=num_cells)
    filled = np.flatnonzero(counts)
    return filled, counts[filled]


def separate(values: FloatArray, groups: IntArray) -> tuple[float, float]:
    """The AUROC of group 1 against group 0, and the p-value of the Kruskal-Wallis test; 0.5 and 1 where undefined.

    Args:
        values: float64 `[n]`, NaN missing.
        groups: int64 `[n]`, 0 or 1; anything else is left out.

    Example:
        >>> area, p = separate(np.arange(40.0), np.arange(40) // 20)
        >>> area, p < 1e-4
        (1.0, True)
    """
    known = np.isfinite(values) & np.isin(groups, (0, 1))
    first = groups[known] == 1
    num, num_1 = len(first), int(first.sum())
    num_0 = num - num_1
    if not num_0 or not num_1:
        return 0.5, 1.0
    ranks = rankdata(values[known])
    ties = np.unique(ranks, return_counts=True)[1].astype(np.float64)
    spread = 1 - float((ties**3 - ties).sum()) / (num**3 - num)  # 0 where all values are one
    if spread <= 0:
        return 0.5, 1.0
    area = (float(ranks[first].sum()) - num_1 * (num_1 + 1) / 2) / (num_1 * num_0)
    return area, math.erfc(abs(area - 0.5) * math.sqrt(6 * num_1 * num_0 / ((num + 1) * spread)))


def commonest(patients: IntArray, codes: IntArray, num_patients: int) -> IntArray:
    """Each patient's commonest category, of equally common ones the lowest, int64 `[num_patients]`, -1 where none.

    Args:
        patients: int64 `[n]`, 0 to num_patients - 1.
        codes: int64 `[n]`, -1 missing.
        num_patients: how many.

    Example:
        >>> commonest(np.array([0, 0, 0, 1, 2]), np.array([2, 5, 5, 1, -1]), 3).tolist()
        [5, 1, -1]
    """
    known, width = codes >= 0, int(codes.max(initial=0)) + 1
    pairs, counts = np.unique(patients[known] * width + codes[known], return_counts=True)
    found = np.full(num_patients, -1, np.int64)
    if not len(pairs):
        return found
    who = pairs // width
    first = np.flatnonzero(np.r_[True, np.diff(who) > 0])
    most = np.repeat(np.maximum.reduceat(counts, first), np.diff(np.r_[first, len(who)]))
    common = np.flatnonzero(counts == most)[::-1]  # of equally common ones the lowest is set last
    found[who[common]] = pairs[common] % width
    return found


def mean_of(patients: IntArray, values: NDArray[Any], num_patients: int) -> FloatArray:
    """Each patient's mean, float64 `[num_patients]`, NaN where no sample has a value.

    Args:
        patients: int64 `[n]`, 0 to num_patients - 1.
        values: floats `[n]`, NaN missing.
        num_patients: how many.

    Example:
        >>> mean_of(np.array([0, 0, 1]), np.array([1.0, 3.0, np.nan]), 2)
        array([ 2., nan])
    """
    known = np.isfinite(values)
    counts = np.bincount(patients[known], minlength=num_patients)
    sums = np.bincount(patients[known], weights=values[known], minlength=num_patients)
    means: FloatArray = np.divide(sums, counts, out=np.full(num_patients, np.nan), where=counts > 0)
    return means


def one_of_each(patients: IntArray) -> IntArray:
    """A sample of each patient, int64 `[patients]` positions, drawn at random but always the same.

    Args:
        patients: int64 `[n]`, 0 to P - 1, each at least once.

    Example:
        >>> patients = np.array([0, 0, 2, 1, 1])
        >>> patients[one_of_each(patients)].tolist()
        [0, 1, 2]
    """
    order = np.random.default_rng(0).permutation(len(patients))
    drawn = np.empty(int(patients.max(initial=-1)) + 1, np.int64)
    drawn[patients[order[::-1]]] = order[::-1]  # the first of each is set last
    return drawn


def on_both_sides(codes: IntArray) -> bool:
    """Whether 0 and 1 have `FEWEST` patients each.

    >>> on_both_sides(np.array([0] * 5 + [1] * 4 + [-1]))
    False
    """
    return min(int((codes == 0).sum()), int((codes == 1).sum())) >= FEWEST
