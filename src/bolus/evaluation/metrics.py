"""What a prediction is worth: metrics that can be computed on many resamples of the rows at once.

Every metric is a function `metric(y, p, weights=None)`: a float without weights, `[B]` with multiplicities `weights
[B, n]` (row i counted `weights[b, i]` times in draw b), at the cost of one sort. A metric that is undefined (one class
only, constant values, no rows, a prediction that is not finite) is NaN, never an exception.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol, cast, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bolus.errors import EvaluationError, suggest

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
AnyArray = NDArray[Any]


class Metric(Protocol):
    """A metric of targets `y [n]` and predictions `p [n]` or `[n, K]`: a float, or `[B]` under weights `[B, n]`."""

    @overload
    def __call__(self, y: ArrayLike, p: ArrayLike, weights: None = None, **options: float) -> float: ...
    @overload
    def __call__(self, y: ArrayLike, p: ArrayLike, weights: ArrayLike, **options: float) -> FloatArray: ...


def _over_draws(core: Callable[..., FloatArray]) -> Metric:
    """Turn `core(y [n], p, weights [B, n]) -> [B]` into a public metric with checks and an optional `weights`."""

    @wraps(core)
    def metric(y: ArrayLike, p: ArrayLike, weights: ArrayLike | None = None, **options: float) -> float | FloatArray:
        y_n, p_n = np.asarray(y), np.asarray(p)
        w_bn = np.ones((1, len(y_n))) if weights is None else np.asarray(weights, dtype=np.float64)
        if y_n.ndim != 1 or len(p_n) != len(y_n) or w_bn.ndim != 2 or w_bn.shape[1] != len(y_n):
            raise EvaluationError(
                "a metric needs y [n], predictions of the same n rows and weights [B, n]; "
                f"found y {y_n.shape}, predictions {p_n.shape}, weights {w_bn.shape}"
            )
        if len(y_n) == 0 or not (np.isfinite(y_n).all() and np.isfinite(p_n).all()):
            values = np.full(len(w_bn), np.nan)
        else:
            with np.errstate(divide="ignore", invalid="ignore"):
                values = core(y_n, p_n, w_bn, **options)
        return float(values[0]) if weights is None else values

    return cast(Metric, metric)


def _mean(values: FloatArray, w_bn: FloatArray) -> FloatArray:
    """Mean of `values [n]` in each draw."""
    return np.asarray(w_bn @ values / w_bn.sum(1))


def _tie_starts(sorted_values: FloatArray) -> IntArray:
    """First position of each run of equal values."""
    return np.flatnonzero(np.concatenate(([True], np.diff(sorted_values) != 0)))


def _count_by_score(y: AnyArray, p: AnyArray, w_bn: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Positives and negatives at each distinct score, ascending: two `[B, G]`."""
    if not np.isin(y, (0, 1)).all():
        raise EvaluationError(f"a binary metric needs targets 0 and 1, found {np.unique(y)[:6].tolist()}")
    if p.ndim != 1:
        raise EvaluationError(f"a binary metric needs one score a row, found predictions {p.shape}")
    scores = p.astype(np.float64)
    order = np.argsort(scores, kind="stable")
    starts = _tie_starts(scores[order])
    w_sorted = w_bn[:, order]
    positives = np.add.reduceat(w_sorted * y[order], starts, axis=1)
    return positives, np.add.reduceat(w_sorted, starts, axis=1) - positives


def _area(y: AnyArray, p: AnyArray, w_bn: FloatArray) -> FloatArray:
    """Share of pairs of a positive and a negative that are in order, ties half, in each draw."""
    positives, negatives = _count_by_score(y, p, w_bn)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    return np.asarray((positives * below).sum(1) / (positives.sum(1) * negatives.sum(1)))


@_over_draws
def auroc(y: AnyArray, p: AnyArray, w_bn: FloatArray) -> FloatArray:
    """Area under the receiver operating characteristic: how often a positive outscores a negative, ties counting half.

    Args:
        y: `[n]` 0 or 1.
        p: `[n]` score, higher is more positive; any unit.
        w_bn: `weights [B, n]` multiplicities, optional.

    Returns:
        A float, or float64 `[B]` under weights; NaN where only one class is drawn.

    >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75
    >>> auroc([0, 1, 1], [0.1, 0.2, 0.0], weights=[[1, 1, 1], [1, 2, 0], [1, 0, 0]])
    array([0.5, 1. , nan])
    """
    return _area(y, p, w_bn)


@_over_draws
def average_precision(y: AnyArray, p: AnyArray, w_bn: FloatArray) -> FloatArray:
    """Average precision: the mean over positives of the precision at their score, without interpolation.

    Args and Returns as `auroc`; NaN where only one class is drawn.

    >>> round(average_precision([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]), 4)
    0.8333
    """
    positives, negatives = (counts[:, ::-1] for counts in _count_by_score(y, p, w_bn))
    hits = np.cumsum(positives, axis=1)
    chosen = hits + np.cumsum(negatives, axis=1)
    precision = np.divide(hits, chosen, out=np.zeros_like(hits), where=chosen > 0)
    return np.where(negatives.sum(1) > 0, (positives * precision).sum(1) / positives.sum(1), np.nan)


@_over_draws
def sensitivity_at_specificity(y: AnyArray, p: AnyArray, w_bn: FloatArray, *, specificity: float = 0.9) -> FloatArray:
    """The highest sensitivity among thresholds whose specificity is at least `specificity`.

    The threshold is read off the same rows, so this is a property of the ranking, not of a deployed threshold.

    Args and Returns as `auroc`, with `specificity` in 0..1; NaN where only one class is drawn.

    >>> sensitivity_at_specificity([0, 0, 0, 0, 1, 1], [0.1, 0.2, 0.3, 0.6, 0.5, 0.7], specificity=0.75)
    1.0
    """
    positives, negatives = (counts[:, ::-1] for counts in _count_by_score(y, p, w_bn))
    hits, alarms = np.cumsum(positives, axis=1), np.cumsum(negatives, axis=1)
    total = alarms[:, -1:]
    best = np.where(alarms <= (1 - specificity) * total + 1e-9 * total, hits, 0.0).max(1)
    return np.where(total[:, 0] > 0, best / hits[:, -1], np.nan)


@_over_draws
def brier(y: AnyArray, p: AnyArray, w_bn: FloatArray) -> FloatArray:
    """Brier score: the mean squared distance of a probability to the outcome 0 or 1; lower is better.

    Args and Returns as `auroc`, with `p` a probability; defined with one class as well.

    >>> round(brier([0, 1], [0.1, 0.8]), 3)
    0.025
    """
    return _mean((p - y).astype(np.float64) ** 2, w_bn)


@_over_draws
def balanced_accuracy(y: AnyArray, p: AnyArray, w_bn: FloatArray) -> FloatArray:
    """Balanced accuracy: the mean over classes of the share of their rows that were recognised.

    Args:
        y: `[n]` codes.
        p: `[n, K]` class probabilities, `[n]` integer codes, or `[n]` float probabilities of class 1 (above 0.5 wins).
        w_bn: `weights [B, n]` multiplicities, optional.

    Returns:
        A float, or float64 `[B]`; the mean runs over the classes that are drawn, NaN where that is one only.

    Raises:
        EvaluationError: float `p [n]` with targets other than 0 and 1.

    >>> balanced_accuracy([0, 0, 0, 1], [0.2, 0.1, 0.6, 0.9])
    0.8333333333333333
    >>> balanced_accuracy([0, 1, 2], [0, 1, 1]) == 2 / 3
    True
    """
    if p.ndim == 2:
        predicted = p.argmax(1)
    elif p.dtype.kind in "iub":
        predicted = p.astype(np.int64)
    elif np.isin(y, (0, 1)).all():
        predicted = (p > 0.5).astype(np.int64)
    else:
        raise EvaluationError("balanced accuracy of several classes needs class probabilities [n, K] or integer codes")
    is_class = (y[:, None] == np.unique(y)).astype(np.float64)
    counts = w_bn @ is_class
    recall = w_bn @ (is_class * (predicted == y)[:, None]) / counts
    present = (counts > 0).sum(1)
    return np.where(present > 1, np.where(counts > 0, recall, 0.0).sum(1) / present, np.nan)


@_over_draws
def macro_auroc(y: AnyArray, p: AnyArray, w_bn: FloatArray) -> FloatArray:
    """Area under the curve of each class against the rest, averaged over classes with equal weight.

    Args and Returns as `balanced_accuracy`, with `y` codes 0..K-1 and `p [n, K]` only.

    >>> macro_auroc([0, 1, 2], [[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.1, 0.6, 0.3]])
    0.75
    """
    if p.ndim != 2:
        raise EvaluationError(f"macro_auroc needs class probabilities [n, K], found {p.shape}")
    areas = np.stack([_area((y == k).astype(np.int64), p[:, k], w_bn) for k in range(p.shape[1])])
    defined = np.isfinite(areas)
    return np.asarray(np.where(defined, areas, 0.0).sum(0) / defined.sum(0))


@_over_draws
def mae(y: AnyArray, p: AnyArray, w_bn: FloatArray) -> FloatArray:
    """Mean absolute error, in the target's unit; lower is better. `y` and `p` are `[n]` in that unit.

    >>> mae([1.0, 2.0], [1.0, 4.0])
    1.0
    """
    return _mean(np.abs(p - y).astype(np.float64), w_bn)


@_over_draws
def mse(y: AnyArray, p: AnyArray, w_bn: FloatArray) -> FloatArray:
    """Mean squared error, in the target's unit squared; lower is better.

    >>> mse([1.0, 2.0], [1.0, 4.0])
    2.0
    """
    return _mean((p - y).astype(np.float64) ** 2, w_bn)


@_over_draws
def r2(y: AnyArray, p: AnyArray, w_bn: FloatArray) -> FloatArray:
    """Coefficient of determination: 1 is perfect, 0 is as good as the mean of these very rows.

    NaN where the drawn targets are constant.

    >>> r2([1.0, 2.0, 3.0], [1.0, 2.0, 2.0])
    0.5
    """
    total = w_bn.sum(1, keepdims=True)
    spread = (w_bn * (y - w_bn @ y[:, None] / total) ** 2).sum(1)
    values = 1 - w_bn @ (p - y).astype(np.float64) ** 2 / spread
    return np.where(_is_constant(y[None].astype(np.float64), w_bn), np.nan, values)


@_over_draws
def pearson(y: AnyArray, p: AnyArray, w_bn: FloatArray) -> FloatArray:
    """Pearson correlation of target and prediction; NaN where either is constant.

    >>> pearson([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    1.0
    """
    return _correlation(y[None].astype(np.float64), p[None].astype(np.float64), w_bn)


@_over_draws
def spearman(y: AnyArray, p: AnyArray, w_bn: FloatArray) -> FloatArray:
    """Spearman rank correlation, ties at their mean rank; NaN where either is constant.

    >>> spearman([1.0, 2.0, 3.0], [1.0, 10.0, 100.0])
    1.0
    """
    return _correlation(_ranks(y, w_bn), _ranks(p, w_bn), w_bn)


def _ranks(values: AnyArray, w_bn: FloatArray) -> FloatArray:
    """Mean rank of each value among the drawn rows, `[B, n]`; the sort is shared by all draws."""
    order = np.argsort(values, kind="stable")
    starts = _tie_starts(values[order].astype(np.float64))
    group = np.add.reduceat(w_bn[:, order], starts, axis=1)
    rank = np.cumsum(group, axis=1) - group + (group + 1) / 2
    ranks = np.empty_like(w_bn)
    ranks[:, order] = np.repeat(rank, np.diff(starts, append=len(values)), axis=1)
    return ranks


def _is_constant(x: FloatArray, w_bn: FloatArray) -> NDArray[np.bool_]:
    """Whether all drawn values of `x` `[B or 1, n]` are one; true of an empty draw."""
    drawn = w_bn > 0
    return cast("NDArray[np.bool_]", np.where(drawn, x, -np.inf).max(1) <= np.where(drawn, x, np.inf).min(1))


def _correlation(x: FloatArray, y: FloatArray, w_bn: FloatArray) -> FloatArray:
    """Weighted Pearson correlation of `x` and `y`, each `[B or 1, n]`."""
    total = w_bn.sum(1, keepdims=True)
    dx = x - (w_bn * x).sum(1, keepdims=True) / total
    dy = y - (w_bn * y).sum(1, keepdims=True) / total
    norm = np.sqrt((w_bn * dx**2).sum(1) * (w_bn * dy**2).sum(1))
    constant = _is_constant(x, w_bn) | _is_constant(y, w_bn)
    return np.where(constant, np.nan, np.clip((w_bn * dx * dy).sum(1) / norm, -1.0, 1.0))


METRICS: dict[str, dict[str, Metric]] = {
    "binary": {
        "auroc": auroc,
        "average_precision": average_precision,
        "balanced_accuracy": balanced_accuracy,
        "sensitivity_at_specificity": sensitivity_at_specificity,
        "brier": brier,
    },
    "multiclass": {"balanced_accuracy": balanced_accuracy, "macro_auroc": macro_auroc},
    "regress": {"mae": mae, "mse": mse, "r2": r2, "spearman": spearman, "pearson": pearson},
}
"""Metrics by task; the first of each is the one that choices and verdicts are made by."""

_LOWER_IS_BETTER = ("brier", "mae", "mse")


def metrics_of(task: str, num_classes: int) -> dict[str, Metric]:
    """The metrics of a question: `classify` with two or more classes, or `regress`.

    >>> next(iter(metrics_of("classify", 5)))
    'balanced_accuracy'
    """
    return METRICS["regress" if task == "regress" else "binary" if num_classes == 2 else "multiclass"]


def higher_is_better(metric: str) -> bool:
    """Whether more of a metric is better.

    Raises:
        EvaluationError: an unknown name.

    >>> higher_is_better("auroc"), higher_is_better("mae")
    (True, False)
    """
    known = {name for group in METRICS.values() for name in group}
    if metric not in known:
        raise EvaluationError(f"unknown metric {metric!r}; {suggest(metric, known)}")
    return metric not in _LOWER_IS_BETTER
