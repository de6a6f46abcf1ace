"""How sure one can be of a metric: the one rule by which every interval is made and every difference decided.

A value is the mean of R repeats (trainings with other seeds, or draws of the labelled patients) on one set of test
patients. Two kinds of chance are in it. With V(x) the variance over bootstrap draws of the test patients and f a
correction for their number (`_narrowness`):

    patients  P = f V(mean of the repeats)
    repeats   S = max(0, s^2 - I) / R,  s^2 the variance of the R values,  I = (mean of f V(repeat) - P) R / (R - 1)

I is what a repeat and a patient have in common, which P holds already. The standard error is sqrt(P + S), and t has
Satterthwaite's degrees of freedom (Biometrics Bulletin 2, 1946): P with as many as there are patients less classes, s^2
with R - 1. With one repeat only the patients are counted. A difference is paired, repeat by repeat and draw by draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from bolus.evaluation.statistics.bootstrap import bootstrap_blocks, cluster_codes
from bolus.evaluation.statistics.metrics import FloatArray, Metric, averages_classes, edges_of
from bolus.evaluation.statistics.weighting import mean_of_defined

NEAREST = 1 / 8
"""Draws nearer to an edge of the metric than this share of the estimate's distance count as that near.

An AUROC of exactly 1 is infinitely far from .95 on the scale of log odds. An eighth is the largest power of 1/2 with
which intervals cover 93 % wherever simulated (`benchmarks/coverage.py`)."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval over patients and repeats; all but the value NaN where that cannot be said.

    Args:
        value: the mean over the repeats, on all rows.
        low: lower end of the interval.
        high: upper end.
        se: standard error, in the metric's unit.
        num_samples: rows.
        num_patients: patients among them.
        df: degrees of freedom of t.
        p_value: of a difference, two-sided, of there being none; NaN of a value.
    """

    value: float
    low: float
    high: float
    se: float
    num_samples: int
    num_patients: int
    df: float = math.nan
    p_value: float = math.nan

    @classmethod
    def from_draws(
        cls,
        values: ArrayLike,
        draws: ArrayLike,
        patients: ArrayLike,
        *,
        metric: str = "",
        y: ArrayLike | None = None,
        difference: bool = False,
    ) -> Estimate:
        """An estimate from what bootstrap draws of the patients give.

        The interval of a metric with edges (`metrics.edges_of`) is made on the scale of log odds, or of the log of the
        distance to the only edge, so that it stays within them; that of a difference on the metric's own. A value of
        exactly 0 or 1, where no draw differs, has the exact (Clopper and Pearson) bound of as many successes as there
        are patients, of the rarest class where the metric is an average over classes.

        Args:
            values: `[R]` the value in each repeat, or one.
            draws: `[R, B]` likewise in each draw of the patients, or `[B]`; NaN where a draw does not define it. The
                mean is over the repeats that a draw defines.
            patients: `[n]` codes of the rows.
            metric: its name; one without edges where empty or unknown.
            y: `[n]` codes or `[n, C]` columns of codes, the classes of the rows, where there are any.
            difference: values are differences of two encoders.

        Returns:
            The estimate; without an interval where a value is undefined, more than half the draws are, or there are
            fewer than two patients.

        >>> draws = np.random.default_rng(0).normal(0.7, 0.02, (3, 1000))
        >>> both = ((0.7, draws[0]), ([0.6, 0.7, 0.8], draws))
        >>> one, three = (Estimate.from_draws(value, drawn, np.arange(90)) for value, drawn in both)
        >>> round(one.high - one.low, 2), round(three.high - three.low, 2), round(three.df, 1)
        (0.08, 0.5, 2.0)
        """
        values_r = np.atleast_1d(np.asarray(values, dtype=np.float64))
        draws_rb = np.atleast_2d(np.asarray(draws, dtype=np.float64))
        clusters = cluster_codes(patients)
        num_patients = len(np.unique(clusters))
        value = float(values_r.mean())
        nothing = cls(value, math.nan, math.nan, math.nan, len(clusters), num_patients)
        mean_b = mean_of_defined(draws_rb, axis=0)
        defined = np.isfinite(mean_b)
        if not math.isfinite(value) or num_patients < 2 or defined.sum() < 2 or 2 * defined.sum() < len(defined):
            return nothing
        classes = np.asarray(y) if y is not None and averages_classes(metric) else None
        factor, patients_df, fewest = _narrowness(clusters, num_patients, classes)
        mean_b = mean_b[defined]
        of_patients = factor * _spread(mean_b)
        se, df = _with_repeats(values_r, draws_rb[:, defined], of_patients, factor, patients_df)
        edges = (-math.inf, math.inf) if difference else edges_of(metric)
        low, high = _interval(value, mean_b, se, df, of_patients, factor, edges, fewest)
        p_value = _p_value(value, se, df) if difference else math.nan
        return cls(value, low, high, se, len(clusters), num_patients, df, p_value)

    @property
    def detectable(self) -> float | None:
        """Of a difference, the smallest true one that would be found: see `detectable_difference`.

        None where no draw and no repeat shows any, and where there is no interval.
        """
        return detectable_difference(self.se, self.df) if self.se > 0 else None


def _spread(draws_b: FloatArray) -> float:
    """The variance of what is defined; what rounding alone leaves is 0."""
    given = draws_b[np.isfinite(draws_b)]
    variance = float(given.var(ddof=1)) if len(given) > 1 else 0.0
    return 0.0 if variance <= (1e-12 * max(1.0, float(np.abs(given).max(initial=0.0)))) ** 2 else variance


def _narrowness(
    clusters: NDArray[np.int64], num_patients: int, classes: NDArray[Any] | None
) -> tuple[float, float, int]:
    """By how much bootstrap variances are too small, the degrees of freedom of patients, and the fewest of a class.

    The variance of a mean of n is n / (n - 1) times what resampling shows. A metric that averages over classes is such
    a mean in each: their variances go as 1 / n, which become 1 / (n - 1).
    """
    if classes is None:
        return num_patients / (num_patients - 1), num_patients - 1.0, num_patients
    counts = np.array(
        [
            len(np.unique(clusters[column == code]))
            for column in classes.reshape(len(classes), -1).T
            for code in np.unique(column)
        ],
        dtype=np.float64,
    )
    columns = 1 if classes.ndim == 1 else classes.shape[1]
    factor = (1 / np.maximum(counts - 1, 0.5)).sum() / (1 / counts).sum()  # of a single patient nothing can be known
    return float(factor), max(1.0, num_patients - len(counts) / columns), int(counts.min())


def _with_repeats(
    values_r: FloatArray, draws_rb: FloatArray, of_patients: float, factor: float, patients_df: float
) -> tuple[float, float]:
    """The standard error of the mean of the repeats over patients and repeats, and its degrees of freedom."""
    num = len(values_r)
    if num == 1:
        return math.sqrt(of_patients), patients_df
    each = float(np.mean([factor * _spread(draws_b) for draws_b in draws_rb]))
    common = max(0.0, each - of_patients) * num / (num - 1)
    between = _spread(values_r)
    variance = of_patients + max(0.0, between - common) / num
    pieces = of_patients**2 / patients_df + (between / num) ** 2 / (num - 1)
    fewest = min(patients_df, num - 1.0)  # below which no sum of both falls, were s^2 - I not cut at 0
    return math.sqrt(variance), max(fewest, variance**2 / pieces) if pieces > 0 else patients_df


def _interval(
    value: float,
    draws_b: FloatArray,
    se: float,
    df: float,
    of_patients: float,
    factor: float,
    edges: tuple[float, float],
    fewest: int,
) -> tuple[float, float]:
    """Both ends, on the scale that the edges ask for."""
    low, high = edges
    if se == 0 and edges == (0.0, 1.0) and value in edges:
        bound = 0.025 ** (1 / fewest)
        return (bound, 1.0) if value == 1 else (0.0, 1 - bound)
    t = float(stats.t.ppf(0.975, df))
    if se == 0 or not low < value < high or edges == (-math.inf, math.inf):
        return max(low, value - t * se), min(high, value + t * se)

    def forth(x: Any) -> Any:
        below = np.log(x - low) if math.isfinite(low) else 0.0
        return below - (np.log(high - x) if math.isfinite(high) else 0.0)

    def back(z: float) -> float:
        with np.errstate(over="ignore"):  # beyond every number: that far nothing is known
            if math.isinf(high):
                return low + float(np.exp(z))
            if math.isinf(low):
                return high - float(np.exp(-z))
        return low + (high - low) * float(special.expit(z))

    slope = (1 / (value - low) if math.isfinite(low) else 0.0) + (1 / (high - value) if math.isfinite(high) else 0.0)
    half = t * slope * se
    if of_patients > 0:
        least = low + NEAREST * (value - low) if math.isfinite(low) else low
        most = high - NEAREST * (high - value) if math.isfinite(high) else high
        kept = np.clip(draws_b, least, most)
        half = t * math.sqrt(factor * _spread(forth(kept)) / of_patients) * se
    centre = float(forth(value))
    return back(centre - half), back(centre + half)


def _p_value(value: float, se: float, df: float) -> float:
    """Two-sided, of a difference; where nothing varies, whether there is any."""
    if se == 0:
        return 1.0 if value == 0 else 0.0
    return float(2 * stats.t.sf(abs(value) / se, df))


def estimate(
    metric: Metric,
    y: ArrayLike,
    p: ArrayLike,
    patients: ArrayLike,
    *,
    name: str = "",
    draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """A metric with its 95 % interval over patients.

    Args:
        metric: a function of (y, p, weights), such as those of `METRICS`.
        y: `[n]` targets, none missing.
        p: `[n]` or `[n, K]` predictions.
        patients: `[n]` codes.
        name: of the metric, which says its edges; see `Estimate.from_draws`.
        draws: bootstrap resamples.
        seed: of the resamples.

    Returns:
        The estimate; NaN parts where undefined (see `Estimate`).

    >>> from bolus.evaluation.statistics.metrics import auroc
    >>> found = estimate(auroc, [0, 1] * 20, [0.0, 1.0] * 20, list(range(40)), name="auroc", seed=0)
    >>> found.value, round(found.low, 3), found.high, found.num_patients
    (1.0, 0.832, 1.0, 40)
    """
    values, drawn = _bootstrap(lambda weights: metric(y, p, weights), patients, draws, seed)
    return Estimate.from_draws(values, drawn, patients, metric=name, y=y)


def paired_difference(
    metric: Metric,
    y: ArrayLike,
    p_a: ArrayLike,
    p_b: ArrayLike,
    patients: ArrayLike,
    *,
    name: str = "",
    draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """The metric of `p_a` less that of `p_b`, on the same rows and the same draws of patients.

    Args as `estimate`. The sign is the metric's own: for an error, negative means that `p_a` is better.

    >>> from bolus.evaluation.statistics.metrics import mae
    >>> paired_difference(mae, [1.0, 2.0, 3.0], [1.0, 2.0, 4.0], [1.0, 2.0, 4.0], [0, 1, 2], seed=0).high
    0.0
    """
    values, drawn = _bootstrap(lambda weights: metric(y, p_a, weights) - metric(y, p_b, weights), patients, draws, seed)
    return Estimate.from_draws(values, drawn, patients, metric=name, y=y, difference=True)


def _bootstrap(statistic: Callable[[Any], Any], patients: ArrayLike, draws: int, seed: int) -> tuple[float, FloatArray]:
    """A statistic of `weights [B, n]` on the rows as they are (`statistic(None)`), and in every draw `[B]`."""
    blocks = bootstrap_blocks(patients, draws=draws, seed=seed)
    return statistic(None), np.concatenate([statistic(block) for block in blocks])


def detectable_difference(se: float, df: float = math.inf) -> float:
    """The smallest true difference that a comparison with standard error `se` finds with 80 % power at two-sided 5 %.

    Args:
        se: in the metric's unit.
        df: degrees of freedom of t.

    >>> round(detectable_difference(0.02), 4), round(detectable_difference(0.02, 2), 4)
    (0.056, 0.1073)
    """
    return float(stats.t.ppf(0.975, df) + stats.t.ppf(0.8, df)) * se


def holm(p_values: ArrayLike) -> FloatArray:
    """P values of several hypotheses, adjusted so that the chance of any false finding is kept (Holm, 1979).

    Scandinavian Journal of Statistics 6. NaN stays NaN and is not counted.

    Args:
        p_values: `[H]`, 0 to 1.

    >>> holm([0.01, 0.04, 0.03, float("nan")]).round(3).tolist()
    [0.03, 0.06, 0.06, nan]
    """
    found = np.array(p_values, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(found))
    order = known[np.argsort(found[known], kind="stable")]
    found[order] = np.minimum(1.0, np.maximum.accumulate(found[order] * np.arange(len(order), 0, -1)))
    return found
