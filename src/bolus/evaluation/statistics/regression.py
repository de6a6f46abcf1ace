"""How well a number is predicted: errors, agreement and correlations, as `weighting` makes them."""

from __future__ import annotations

import numpy as np

from bolus.evaluation.statistics.weighting import AnyArray, FloatArray, is_constant, mean, over_draws, tie_starts


@over_draws
def mae(y: AnyArray, p: AnyArray, w_bn: FloatArray) -> FloatArray:
    """Mean absolute error, in the target's unit; lower is better. `y` and `p` are `[n]` in that unit.

    >>> mae([1.0, 2.0], [1.0, 4.0])
    1.0
    """
    return mean(np.abs(p - y).astype(np.float64), w_bn)


@over_draws
def mse(y: AnyArray, p: AnyArray, w_bn: FloatArray) -> FloatArray:
    """Mean squared error, in the target's unit squared; lower is better.

    >>> mse([1.0, 2.0], [1.0, 4.0])
    2.0
    """
    return mean((p - y).astype(np.float64) ** 2, w_bn)


@over_draws
def gm(y: AnyArray, p: AnyArray, w_bn: FloatArray, *, floor: float = 1e-6) -> FloatArray:
    """Geometric mean of the absolute errors, in the target's unit; lower is better, and the many small errors count.

    "GM" of Yang et al. (arXiv:2102.09554), with errors below `floor` taken as `floor`, so that one exact
    hit does not make it 0.

    >>> round(gm([1.0, 2.0], [2.0, 6.0]), 6), round(gm([1.0, 2.0], [1.0, 3.0]), 6)
    (2.0, 0.001)
    """
    return np.asarray(np.exp(mean(np.log(np.maximum(np.abs(p - y), floor)), w_bn)))


@over_draws
def r2(y: AnyArray, p: AnyArray, w_bn: FloatArray) -> FloatArray:
    """Coefficient of determination: 1 is perfect, 0 is as good as the mean of these very rows.

    NaN where the drawn targets are constant.

    >>> r2([1.0, 2.0, 3.0], [1.0, 2.0, 2.0])
    0.5
    """
    total = w_bn.sum(1, keepdims=True)
    spread = (w_bn * (y - w_bn @ y[:, None] / total) ** 2).sum(1)
    values = 1 - w_bn @ (p - y).astype(np.float64) ** 2 / spread
    return np.where(is_constant(y[None].astype(np.float64), w_bn), np.nan, values)


@over_draws
def pearson(y: AnyArray, p: AnyArray, w_bn: FloatArray) -> FloatArray:
    """Pearson correlation of target and prediction; NaN where either is constant.

    >>> pearson([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    1.0
    """
    return _correlation(y[None].astype(np.float64), p[None].astype(np.float64), w_bn)


@over_draws
def spearman(y: AnyArray, p: AnyArray, w_bn: FloatArray) -> FloatArray:
    """Spearman rank correlation, ties at their mean rank; NaN where either is constant.

    >>> spearman([1.0, 2.0, 3.0], [1.0, 10.0, 100.0])
    1.0
    """
    return _correlation(_ranks(y, w_bn), _ranks(p, w_bn), w_bn)


@over_draws
def ccc(y: AnyArray, p: AnyArray, w_bn: FloatArray) -> FloatArray:
    """Concordance correlation coefficient: Pearson's r less what shift and scale cost; 1 only where p equals y.

    2 cov(y, p) / (var(y) + var(p) + (mean(y) - mean(p))^2) with moments over n (Lin, 1989, Biometrics 45). A constant
    prediction has 0; NaN where the drawn targets are constant.

    >>> round(ccc([1.0, 2.0, 3.0], [2.0, 3.0, 4.0]), 4), ccc([1.0, 2.0, 3.0], [2.0, 2.0, 2.0])
    (0.5714, 0.0)
    """
    y_1n, p_1n = y[None].astype(np.float64), p[None].astype(np.float64)
    total = w_bn.sum(1, keepdims=True)
    mean_y, mean_p = w_bn @ y_1n.T / total, w_bn @ p_1n.T / total
    dy, dp = y_1n - mean_y, p_1n - mean_p
    spread = (w_bn * (dy**2 + dp**2)).sum(1) + total[:, 0] * (mean_y - mean_p)[:, 0] ** 2
    return np.where(is_constant(y_1n, w_bn), np.nan, 2 * (w_bn * dy * dp).sum(1) / spread)


def _ranks(values: AnyArray, w_bn: FloatArray) -> FloatArray:
    """Mean rank of each value among the drawn rows, `[B, n]`; the sort is shared by all draws."""
    order = np.argsort(values, kind="stable")
    starts = tie_starts(values[order].astype(np.float64))
    group = np.add.reduceat(w_bn[:, order], starts, axis=1)
    rank = np.cumsum(group, axis=1) - group + (group + 1) / 2
    ranks = np.empty_like(w_bn)
    ranks[:, order] = np.repeat(rank, np.diff(starts, append=len(values)), axis=1)
    return ranks


def _correlation(x: FloatArray, y: FloatArray, w_bn: FloatArray) -> FloatArray:
    """Weighted Pearson correlation of `x` and `y`, each `[B or 1, n]`."""
    total = w_bn.sum(1, keepdims=True)
    dx = x - (w_bn * x).sum(1, keepdims=True) / total
    dy = y - (w_bn * y).sum(1, keepdims=True) / total
    norm = np.sqrt((w_bn * dx**2).sum(1) * (w_bn * dy**2).sum(1))
    constant = is_constant(x, w_bn) | is_constant(y, w_bn)
    return np.where(constant, np.nan, np.clip((w_bn * dx * dy).sum(1) / norm, -1.0, 1.0))
