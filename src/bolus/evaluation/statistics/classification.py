"""How well classes are told apart: metrics of probabilities and codes, as `weighting` makes them."""

from __future__ import annotations

import numpy as np

from bolus.errors import EvaluationError
from bolus.evaluation.statistics.weighting import AnyArray, FloatArray, IntArray, mean, over_draws, tie_starts


def _count_by_score(y: AnyArray, p: AnyArray, w_bn: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Positives and negatives at each distinct score, ascending: two `[B, G]`."""
    if not np.isin(y, (0, 1)).all():
        raise EvaluationError(f"a binary metric needs targets 0 and 1, found {np.unique(y)[:6].tolist()}")
    if p.ndim != 1:
        raise EvaluationError(f"a binary metric needs one score a row, found predictions {p.shape}")
    scores = p.astype(np.float64)
    order = np.argsort(scores, kind="stable")
    starts = tie_starts(scores[order])
    w_sorted = w_bn[:, order]
    positives = np.add.reduceat(w_sorted * y[order], starts, axis=1)
    return positives, np.add.reduceat(w_sorted, starts, axis=1) - positives


def _area(y: AnyArray, p: AnyArray, w_bn: FloatArray) -> FloatArray:
    """Share of pairs of a positive and a negative that are in order, ties half, in each draw."""
    positives, negatives = _count_by_score(y, p, w_bn)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    return np.asarray((positives * below).sum(1) / (positives.sum(1) * negatives.sum(1)))


@over_draws
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


@over_draws
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


@over_draws
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


@over_draws
def brier(y: AnyArray, p: AnyArray, w_bn: FloatArray) -> FloatArray:
    """Brier score: the mean squared distance of a probability to the outcome 0 or 1; lower is better.

    Args and Returns as `auroc`, with `p` a probability; defined with one class as well.

    >>> round(brier([0, 1], [0.1, 0.8]), 3)
    0.025
    """
    return mean((p - y).astype(np.float64) ** 2, w_bn)


def _predicted(y: AnyArray, p: AnyArray) -> IntArray:
    """The class of each row, from probabilities `[n, K]`, codes `[n]` or float probabilities of class 1 `[n]`."""
    if p.ndim == 2:
        return np.asarray(p.argmax(1))
    if p.dtype.kind in "iub":
        return p.astype(np.int64)
    if np.isin(y, (0, 1)).all():
        return (p > 0.5).astype(np.int64)
    raise EvaluationError("accuracy of several classes needs class probabilities [n, K] or integer codes")


@over_draws
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
    predicted = _predicted(y, p)
    is_class = (y[:, None] == np.unique(y)).astype(np.float64)
    counts = w_bn @ is_class
    recall = w_bn @ (is_class * (predicted == y)[:, None]) / counts
    present = (counts > 0).sum(1)
    return np.where(present > 1, np.where(counts > 0, recall, 0.0).sum(1) / present, np.nan)


@over_draws
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


@over_draws
def accuracy(y: AnyArray, p: AnyArray, w_bn: FloatArray) -> FloatArray:
    """Accuracy: the share of rows that were recognised, so that common classes count for more.

    Args and Raises as `balanced_accuracy`; defined with one class as well.

    >>> accuracy([0, 1, 2, 2], [0, 1, 1, 2])
    0.75
    """
    return mean((_predicted(y, p) == y).astype(np.float64), w_bn)


@over_draws
def macro_f1(y: AnyArray, p: AnyArray, w_bn: FloatArray) -> FloatArray:
    """Macro F1: the harmonic mean of precision and sensitivity of each class, averaged over classes with equal weight.

    Args and Raises as `balanced_accuracy`. The mean runs over the classes that are drawn or predicted; a class that is
    one of both only has 0. NaN where one class only is drawn.

    >>> round(macro_f1([0, 0, 1, 1], [0, 1, 1, 1]), 4)
    0.7333
    """
    predicted = _predicted(y, p)
    codes = np.union1d(y, predicted)
    is_class, is_said = (y[:, None] == codes).astype(np.float64), (predicted[:, None] == codes).astype(np.float64)
    drawn = w_bn @ is_class
    either = drawn + w_bn @ is_said
    share = np.divide(2 * (w_bn @ (is_class * is_said)), either, out=np.zeros_like(either), where=either > 0)
    return np.where((drawn > 0).sum(1) > 1, share.sum(1) / (either > 0).sum(1), np.nan)
