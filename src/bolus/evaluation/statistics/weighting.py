"""Metrics of many resamples of the rows at once: multiplicities in, one value for each resample out."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol, cast, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bolus.errors import EvaluationError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
AnyArray = NDArray[Any]


class Metric(Protocol):
    """A metric of targets `y [n]` and predictions `p [n]` or `[n, K]`: a float, or `[B]` under weights `[B, n]`."""

    @overload
    def __call__(self, y: ArrayLike, p: ArrayLike, weights: None = None, **options: float) -> float: ...
    @overload
    def __call__(self, y: ArrayLike, p: ArrayLike, weights: ArrayLike, **options: float) -> FloatArray: ...


def over_draws(core: Callable[..., FloatArray]) -> Metric:
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


def mean(values: FloatArray, w_bn: FloatArray) -> FloatArray:
    """Mean of `values [n]` in each draw."""
    return np.asarray(w_bn @ values / w_bn.sum(1))


def tie_starts(sorted_values: FloatArray) -> IntArray:
    """First position of each run of equal values."""
    return np.flatnonzero(np.concatenate(([True], np.diff(sorted_values) != 0)))


def is_constant(x: FloatArray, w_bn: FloatArray) -> NDArray[np.bool_]:
    """Whether all drawn values of `x` `[B or 1, n]` are one; true of an empty draw."""
    drawn = w_bn > 0
    return cast("NDArray[np.bool_]", np.where(drawn, x, -np.inf).max(1) <= np.where(drawn, x, np.inf).min(1))


def mean_of_defined(values: FloatArray, axis: int = -1) -> FloatArray:
    """The mean over an axis of what is not NaN; NaN where nothing is.

    >>> mean_of_defined(np.array([[1.0, np.nan], [np.nan, np.nan]])).tolist()
    [1.0, nan]
    """
    given = np.isfinite(values)
    counts = given.sum(axis)
    found = np.full(counts.shape, np.nan)
    np.divide(np.where(given, values, 0.0).sum(axis), counts, out=found, where=counts > 0)
    return found
