"""What a prediction is worth: metrics that can be computed on many resamples of the rows at once.

Every metric is a function `metric(y, p, weights=None)`: a float without weights, `[B]` with multiplicities `weights
[B, n]` (row i counted `weights[b, i]` times in draw b), at the cost of one sort. A metric that is undefined (one class
only, constant values, no rows, a prediction that is not finite) is NaN, never an exception.
"""

from __future__ import annotations

import math

from bolus.errors import EvaluationError, suggest
from bolus.evaluation.statistics.classification import (
    accuracy,
    auroc,
    average_precision,
    balanced_accuracy,
    brier,
    macro_auroc,
    macro_f1,
    sensitivity_at_specificity,
)
from bolus.evaluation.statistics.regression import ccc, gm, mae, mse, pearson, r2, spearman
from bolus.evaluation.statistics.weighting import AnyArray, FloatArray, IntArray, Metric

__all__ = [
    "METRICS",
    "RETRIEVAL",
    "SEGMENTATION",
    "AnyArray",
    "FloatArray",
    "IntArray",
    "Metric",
    "accuracy",
    "auroc",
    "average_precision",
    "averages_classes",
    "balanced_accuracy",
    "brier",
    "ccc",
    "edges_of",
    "gm",
    "higher_is_better",
    "in_words",
    "macro_auroc",
    "macro_f1",
    "mae",
    "metrics_of",
    "mse",
    "pearson",
    "r2",
    "sensitivity_at_specificity",
    "spearman",
]

METRICS: dict[str, dict[str, Metric]] = {
    "binary": {
        "auroc": auroc,
        "average_precision": average_precision,
        "balanced_accuracy": balanced_accuracy,
        "sensitivity_at_specificity": sensitivity_at_specificity,
        "brier": brier,
    },
    "multiclass": {
        "balanced_accuracy": balanced_accuracy,
        "macro_auroc": macro_auroc,
        "accuracy": accuracy,
        "macro_f1": macro_f1,
    },
    "regress": {"mae": mae, "mse": mse, "gm": gm, "r2": r2, "pearson": pearson, "spearman": spearman, "ccc": ccc},
}
"""Metrics by task; the first of each is the one that choices and verdicts are made by."""

SEGMENTATION = (
    "dice",
    "hd95_mm",
    "hd95_voxels",
    "hd95_mm_misses",
    "hd95_voxels_misses",
    "surface_dice",
    "dice_pcl",
)
"""Metrics of volumes, which `bolus.evaluation.segmentation.volume_scores` computes."""

RETRIEVAL = (
    "top_1",
    "top_5",
    "top_10",
    "top_1_percent",
    "median_rank",
    "recall_1",
    "recall_5",
    "recall_10",
    "ndcg_10",
)
"""Metrics of finding a participant again, which `bolus.evaluation.retrieval.retrieve` computes."""

_LOWER_IS_BETTER = (
    "brier",
    "mae",
    "mse",
    "gm",
    "hd95_mm",
    "hd95_voxels",
    "hd95_mm_misses",
    "hd95_voxels_misses",
    "median_rank",
)


def metrics_of(task: str, num_classes: int) -> dict[str, Metric]:
    """The metrics of a question: `classify` with two or more classes, or `regress`.

    >>> next(iter(metrics_of("classify", 5)))
    'balanced_accuracy'
    """
    return METRICS["regress" if task == "regress" else "binary" if num_classes == 2 else "multiclass"]


IN_UNIT_OF_TARGET = ("mae", "gm", "mean_change")
"""Metrics of numbers that have the unit of the number."""


def unit_of(metric: str) -> str:
    """The unit that a metric has by itself, whatever was predicted; most have none.

    >>> unit_of("hd95_mm"), unit_of("auroc")
    ('mm', '')
    """
    found = next((unit for unit in ("mm", "voxels") if f"_{unit}" in metric), "")
    return found if metric in SEGMENTATION else ""


_LETTERS = frozenset({"auroc", "mae", "mse", "gm", "r2", "ccc", "f1", "ndcg", "hd95", "pcl"})
"""Words of metrics that are letters or abbreviations, and written in capitals."""
_NAMES = frozenset({"dice", "brier", "pearson", "spearman"})
"""Words of metrics that are names of people."""


def in_words(metric: str) -> str:
    """A metric as a person writes it: abbreviations in capitals, names as names, and without its unit.

    A metric that is not known is only spaced.

    >>> [in_words(each) for each in ("auroc", "dice", "macro_auroc", "hd95_mm_misses", "balanced_accuracy")]
    ['AUROC', 'Dice', 'macro AUROC', 'HD95 misses', 'balanced accuracy']
    """
    words = [word for word in metric.split("_") if word != unit_of(metric)]
    return " ".join(
        word.upper() if word in _LETTERS else word.capitalize() if word in _NAMES else word for word in words
    )


def higher_is_better(metric: str) -> bool:
    """Whether more of a metric is better.

    Raises:
        EvaluationError: an unknown name.

    >>> higher_is_better("auroc"), higher_is_better("mae")
    (True, False)
    """
    known = {name for group in METRICS.values() for name in group} | {*SEGMENTATION, *RETRIEVAL}
    if metric not in known:
        raise EvaluationError(f"unknown metric {metric!r}; {suggest(metric, known)}")
    return metric not in _LOWER_IS_BETTER


_AVERAGES_CLASSES = frozenset(
    {
        "auroc",
        "average_precision",
        "balanced_accuracy",
        "sensitivity_at_specificity",
        "macro_auroc",
        "macro_f1",
    }
)

_OPEN_ABOVE = (0.0, math.inf)
_EDGES = dict.fromkeys((*METRICS["regress"], *SEGMENTATION, *RETRIEVAL), (0.0, 1.0)) | {
    **dict.fromkeys(("mae", "mse", "gm", "median_rank", "mean_change"), _OPEN_ABOVE),
    **dict.fromkeys((name for name in SEGMENTATION if name.startswith("hd95")), _OPEN_ABOVE),
    **dict.fromkeys(("pearson", "spearman", "ccc"), (-1.0, 1.0)),
    **dict.fromkeys((*METRICS["binary"], *METRICS["multiclass"]), (0.0, 1.0)),
    "r2": (-math.inf, 1.0),
}


def averages_classes(metric: str) -> bool:
    """Whether every class weighs alike in a metric, however few its patients are.

    >>> averages_classes("balanced_accuracy"), averages_classes("accuracy")
    (True, False)
    """
    return metric in _AVERAGES_CLASSES


def edges_of(metric: str) -> tuple[float, float]:
    """What a metric cannot fall below or rise above; infinite where there is no such edge, or no such metric.

    >>> edges_of("auroc"), edges_of("r2"), edges_of("mae")
    ((0.0, 1.0), (-inf, 1.0), (0.0, inf))
    """
    return _EDGES.get(metric, (-math.inf, math.inf))
