"""Probabilities: how often what was predicted came true, and whether acting on it would do more good than harm."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bolus.evaluation.statistics.results import decimals
from bolus.reporting.blocks import Block, Figure, Missing, Sentences, Table, sentence
from bolus.reporting.charts.lines import Curve, draw_curves
from bolus.reporting.charts.marks import legend
from bolus.reporting.sections.predictions.predicted import Predicted
from bolus.reporting.wording import counted

FEWEST_EVENTS = 10  # test samples of the rarer class
FEWEST = 20  # samples in a bin, about
MOST_BINS = 10
THRESHOLDS = np.linspace(0.02, 0.98, 49)
READING = (
    "First: samples in groups of equal size by predicted probability; on the dotted line, predictions come true as "
    "often as they say. The band is a 95 % interval over patients. Second: net benefit of acting on everyone above a "
    "threshold (Vickers and Elkin, 2006), beside acting on all and on none; the threshold is the risk at which "
    "treating and not treating are equally bad, which a clinician states, not the data. A curve is only good where it"
    " lies above both. Both hold for the prevalence of these test patients; elsewhere probabilities must be "
    "calibrated again."
)


def calibration(found: Predicted) -> list[Block]:
    """The calibration and the decision curve of a class."""
    y, p = found.y, found.scores
    rarer = int(min(y.sum(), len(y) - y.sum()))
    if rarer < FEWEST_EVENTS:
        of = counted(rarer, "test sample")
        return [
            Missing(f"Nothing is said of calibration: only {of} of the rarer class, where {FEWEST_EVENTS} are needed.")
        ]
    if p.min() < 0 or p.max() > 1:
        return [Missing("Nothing is said of calibration: the scores are no probabilities.")]
    groups = _bins(p)
    points, ends, tips, rows = [], [], [], []
    for members in groups:
        rate, mean = float(y[members].mean()), float(p[members].mean())
        low, high = _interval(y[members], found.weights[:, members])
        points.append((mean, rate))
        ends.append((low, high))
        tips.append(
            f"predicted {mean:.2f}, came true {rate:.2f} [{low:.2f}, {high:.2f}]; {counted(len(members), 'sample')}"
        )
        span, came = f"{p[members].min():.2f} to {p[members].max():.2f}", f"{rate:.3f} [{low:.3f}, {high:.3f}]"
        rows.append([span, f"{mean:.3f}", came, f"{len(members):,}"])
    reliability = draw_curves(
        [Curve("run", 0, points, ends, tips)], title="Calibration: share that came true",
        x_name="predicted probability", x_range=(0.0, 1.0), y_range=(0.0, 1.0), diagonal=True,
    )  # fmt: skip
    prevalence = float(y.mean())
    curves = [Curve("run", 0, _benefit(y, p), dots=False)]
    if found.twin is not None:
        curves.append(Curve("random-init", 2, _benefit(y, found.twin), dots=False))
    everyone = [(float(t), prevalence - (1 - prevalence) * float(t / (1 - t))) for t in THRESHOLDS]
    bottom = -0.15 * prevalence
    curves.append(Curve("act on all", 3, [(t, value) for t, value in everyone if value >= bottom], dots=False))
    top = 1.1 * prevalence  # that of a prediction without a mistake, and a little more
    decision = draw_curves(
        curves, title="Decision curve: net benefit", x_name="threshold", x_range=(0.0, 1.0), y_range=(bottom, top),
        level=(0.0, "act on none"),
    )  # fmt: skip
    said = f"On average {100 * p.mean():.1f} % was predicted and {100 * prevalence:.1f} % came true"
    slope, low, high = _slope(y, p, found.weights)
    if np.isfinite(slope):
        said += f"; the calibration slope is {decimals(slope)} [{decimals(low)}, {decimals(high)}] (1 is right, "
        said += "below 1 predictions are too extreme, above 1 too timid)"
    said += "." if found.joined else ". Intervals are over samples here: whose they are is not known."
    head = ["Predicted", "Mean", "Came true [95 % interval]", "Samples"]
    table = Table(head, rows, "Calibration in numbers", folded=True)
    key = legend([(curve.name, curve.series) for curve in curves])
    return [
        Sentences([sentence(said)]),
        Figure("Calibration and decision curve", [reliability, decision], READING, key, table),
    ]


def _bins(p: npt.NDArray[np.float64]) -> list[npt.NDArray[np.int64]]:
    """Samples in groups of about equal size by what was predicted; equal predictions stay together."""
    number = int(np.clip(len(p) // FEWEST, 1, MOST_BINS))
    edges = np.unique(np.quantile(p, np.linspace(0, 1, number + 1)[1:-1]))
    codes = np.searchsorted(edges, p, side="right")
    return [np.flatnonzero(codes == code) for code in np.unique(codes)]


def _interval(y: npt.NDArray[np.float64], weights: npt.NDArray[np.int32]) -> tuple[float, float]:
    """Of a share, over draws of patients (percentiles), and no narrower than that of as many independent samples."""
    total = weights.sum(1)
    drawn = (weights @ y)[total > 0] / total[total > 0]
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
    # Where all came true, or none, no draw differs: Wilson's interval does.
    n, rate, z = len(y), float(y.mean()), 1.96
    middle, half = rate + z**2 / (2 * n), z * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    wilson = (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)
    return max(0.0, min(float(low), wilson[0])), min(1.0, max(float(high), wilson[1]))


def _benefit(y: npt.NDArray[np.float64], p: npt.NDArray[np.float64]) -> list[tuple[float, float]]:
    """Net benefit at each threshold: true positives less false ones times the odds of the threshold, a sample."""
    found = []
    for threshold in THRESHOLDS.tolist():
        acted = p >= threshold
        gain = float((y[acted] == 1).sum() - (y[acted] == 0).sum() * threshold / (1 - threshold)) / len(y)
        found.append((threshold, gain))
    return found


def _slope(y: npt.NDArray[Any], p: npt.NDArray[Any], weights: npt.NDArray[np.int32]) -> tuple[float, float, float]:
    """The slope of a logistic regression of what came true on the log odds of what was predicted, with its interval."""
    x = np.log(np.clip(p, 1e-6, 1 - 1e-6) / np.clip(1 - p, 1e-6, 1))
    drawn = np.array([_fit(x, y, each.astype(np.float64)) for each in weights[:100]])
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) >= 50 else (np.nan, np.nan)
    return _fit(x, y, np.ones(len(y))), float(low), float(high)


def _fit(x: npt.NDArray[Any], y: npt.NDArray[Any], weights: npt.NDArray[np.float64]) -> float:
    """Newton's steps; NaN where they lead nowhere, as where classes are separable."""
    design, beta = np.stack([np.ones_like(x), x], axis=1), np.array([0.0, 1.0])
    for _ in range(25):
        q = 1 / (1 + np.exp(-np.clip(design @ beta, -30, 30)))
        curvature = design.T @ (design * (weights * q * (1 - q))[:, None])
        if np.linalg.cond(curvature) > 1e12:
            return float("nan")
        step = np.linalg.solve(curvature, design.T @ (weights * (y - q)))
        beta = beta + step
        if np.abs(step).max() < 1e-8:
            return float(beta[1])
    return float("nan")
