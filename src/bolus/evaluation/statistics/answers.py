"""What an evaluation says of single test samples, so that encoders can be compared on the same ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bolus.evaluation.statistics.metrics import IntArray, auroc

ARM = "arm"
"""The name under which stand the predictions of the judged encoder."""


@dataclass(frozen=True, eq=False)
class Answer:
    """One encoder's answer to one question, sample by sample.

    Args:
        task: of the evaluation.
        target: what was predicted.
        metric: its name.
        probe: how it was read off the encoder.
        keys: `[n]`, which test samples (or pairs, volumes), the same for every encoder.
        y: `[n]` or `[n, K]`, their targets.
        patients: int64 `[n]`.
        predictions: of the encoder (`ARM`), its random-init twin and the majority, where there is one.
        measure: the metric, of (y, p, weights).
        enough: patients that decide whether anything can be decided: of the rarer class, where there are two.
        facts: more that a reader must know.
    """

    task: str
    target: str
    metric: str
    probe: str
    keys: pd.Index[Any]
    y: NDArray[Any]
    patients: IntArray
    predictions: Mapping[str, NDArray[Any]]
    measure: Callable[..., Any]
    enough: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    def on(self, keys: pd.Index[Any]) -> Answer:
        """The same on some of the samples, in the order of `keys`."""
        at = self.keys.get_indexer(keys)
        assert (at >= 0).all(), "keys of other samples"
        predictions = {name: p[at] for name, p in self.predictions.items()}
        return replace(self, keys=keys, y=self.y[at], patients=self.patients[at], predictions=predictions)


def mean_auroc(y: Any, p: Any, weights: Any = None) -> Any:
    """The mean over columns of the area under the ROC curve; a metric as of `bolus.evaluation.statistics.metrics`.

    A column that a draw leaves with one class is left out of that draw.

    >>> float(mean_auroc(np.array([[0, 1], [1, 0]]), np.array([[0.1, 0.9], [0.8, 0.9]])))
    0.75
    """
    times = np.ones(len(y)) if weights is None else np.asarray(weights, dtype=np.float64)
    known = (times @ (y == 1) > 0) & (times @ (y == 0) > 0)
    areas = np.stack([auroc(y[:, column], p[:, column], weights) for column in range(y.shape[1])], axis=-1)
    count = known.sum(-1)
    return np.where(count > 0, np.where(known, areas, 0.0).sum(-1) / np.maximum(count, 1), np.nan)[()]


def mean_of_known(y: Any, p: Any, weights: Any = None) -> Any:
    """The mean of what is known of each sample; the truth has gone into it already.

    >>> float(mean_of_known(None, np.array([0.5, np.nan, 0.7])))
    0.6
    """
    known = np.isfinite(p)
    if not known.any():
        return np.nan if weights is None else np.full(len(weights), np.nan)
    if weights is None:
        return p[known].mean()
    total = weights[:, known].sum(1).astype(np.float64)
    return np.divide(weights[:, known] @ p[known], total, out=np.full(len(weights), np.nan), where=total > 0)
