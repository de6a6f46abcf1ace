"""Numbers and masks: how far predictions are off (Bland-Altman), and Dice volume by volume."""

from __future__ import annotations

import numpy as np

from bolus.evaluation.statistics.results import RANDOM, decimals
from bolus.reporting.blocks import Block, Figure, Heading, Sentences, Table, sentence
from bolus.reporting.charts.marks import legend
from bolus.reporting.charts.points import Point, draw_points
from bolus.reporting.evidence import Question
from bolus.reporting.sections.predictions.predicted import Predicted
from bolus.reporting.wording import counted, plain

MOST_POINTS = 600
BLAND_ALTMAN = (
    "Each point is a test sample: prediction less truth, by the mean of the two (Bland and Altman, 1986). About 95 % "
    "lie between the outer lines where differences are normal and equally wide everywhere. A slope means that high "
    "values are predicted too low and low ones too high, as of any predictor that is unsure; it is no bias that one "
    "could subtract."
)
DICE = (
    "Each point is the Dice of a test volume, mean of classes and draws of labelled patients, sorted by that of the "
    "run; below it the same volume by the untrained network. A mean hides the volumes at the left: look at those "
    "first. Small structures have a low Dice at the same error of the edge."
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
    chosen = np.arange(len(difference))
    if len(chosen) > MOST_POINTS:
        chosen = np.sort(np.random.default_rng(0).permutation(chosen)[:MOST_POINTS])
        said += f" {MOST_POINTS} of {counted(len(difference), 'sample')} are drawn."
    points = [
        Point((found.scores[at] + found.y[at]) / 2, difference[at],
              f"row {found.rows[at]}: truth {found.y[at]:.4g}, prediction {found.scores[at]:.4g}")
        for at in chosen.tolist()
    ]  # fmt: skip
    levels = [(middle, "mean"), (below, "−1.96 sd"), (above, "+1.96 sd")]
    panel = draw_points(
        points, title=f"Prediction less truth{f', {unit.strip()}' if unit else ''}",
        x_name=f"mean of prediction and truth{f', {unit.strip()}' if unit else ''}", levels=levels,
    )  # fmt: skip
    return [Sentences([sentence(said)]), Figure("Bland-Altman", [panel], BLAND_ALTMAN)]


def volumes(question: Question) -> list[Block]:
    """Dice of each test volume, at the most labelled patients."""
    frame = question.table("volumes.parquet")
    if frame is None:
        return []
    most = int(frame["labelled_patients"].max())
    frame = frame[frame["labelled_patients"] == most]
    dice = frame.groupby(["encoder", "row"])["dice"].mean()
    own = dice.loc[question.encoder].dropna().sort_values(kind="stable")
    if not len(own):
        return []
    twin = dice.loc[RANDOM] if RANDOM in dice.index.get_level_values(0) else own.iloc[:0]
    points, rows = [], []
    for place, (row, value) in enumerate(own.items(), start=1):
        other = float(twin.get(row, np.nan))
        points.append(Point(place, float(value), f"volume of row {row}: Dice {value:.3f}"))
        if np.isfinite(other):
            points.append(Point(place, other, f"volume of row {row}, random-init: Dice {other:.3f}", 2))
        rows.append([f"{row}", f"{value:.3f}", decimals(other)])
    said = f"Dice is {own.median():.3f} in the median volume and {own.iloc[0]:.3f} in the worst, row {own.index[0]}."
    panel = draw_points(points, title="Dice", x_name="test volumes, the worst first", y_range=(-0.02, 1.02))
    table = Table(["Row of the first slice", "Run", "Random-init"], rows, "Dice by volume in numbers", folded=True)
    key = legend([(question.encoder, 0), (RANDOM, 2)])
    return [
        Heading(f"Masks, {counted(most, 'labelled patient')}, {counted(len(own), 'test volume')}"),
        Sentences([sentence(said)]),
        Figure("Dice by volume", [panel], DICE, key, table),
    ]
