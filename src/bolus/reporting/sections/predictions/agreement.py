"""Numbers: how far predictions are off (Bland-Altman)."""

from __future__ import annotations

import numpy as np

from bolus.evaluation.statistics.results import decimals
from bolus.reporting.blocks import Block, Figure, Sentences, sentence
from bolus.reporting.charts.points import MOST_POINTS, Point, draw_points, drawn
from bolus.reporting.sections.predictions.predicted import Predicted
from bolus.reporting.wording import counted, plain

BLAND_ALTMAN = (
    "Each point is a test sample: prediction less truth, by the mean of the two (Bland and Altman, 1986). About 95 % "
    "lie between the outer lines where differences are normal and equally wide everywhere. A slope means that high "
    "values are predicted too low and low ones too high, as of any predictor that is unsure; it is no bias that one "
    "could subtract."
)


def agreement(found: Predicted) -> list[Block]:
    """Bland-Altman of a number."""
    difference = found.scores - found.y
    middle, spread = float(difference.mean()), float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    total = np.maximum(found.weights.sum(1), 1)
    low, high = np.percentile(found.weights @ difference / total, [2.5, 97.5])
    unit = f" {plain(found.unit, 20)}" if found.unit else ""
    below, above = middle - 1.96 * spread, middle + 1.96 * spread
    said = (
        f"Predictions are off by {decimals(middle, '+')}{unit} on average [{decimals(float(low), '+')}, "
        f"{decimals(float(high), '+')}]; 95 % of differences lie between {decimals(below, '+')} and "
        f"{decimals(above, '+')}{unit}."
    )
    if len(difference) > MOST_POINTS:
        said += f" {MOST_POINTS} of {counted(len(difference), 'sample')} are drawn."
    points = [
        Point((found.scores[at] + found.y[at]) / 2, difference[at],
              f"row {found.rows[at]}: truth {found.y[at]:.4g}, prediction {found.scores[at]:.4g}")
        for at in drawn(len(difference)).tolist()
    ]  # fmt: skip
    levels = [(middle, "mean"), (below, "−1.96 sd"), (above, "+1.96 sd")]
    panel = draw_points(
        points, title=f"Prediction less truth{f', {unit.strip()}' if unit else ''}",
        x_name=f"mean of prediction and truth{f', {unit.strip()}' if unit else ''}", levels=levels,
    )  # fmt: skip
    return [Sentences([sentence(said)]), Figure("Bland-Altman", [panel], BLAND_ALTMAN)]
