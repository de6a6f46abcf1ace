"""Masks: Dice of each test volume, by the size of what was to be found."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from bolus.evaluation.statistics.results import RANDOM, decimals
from bolus.reporting.blocks import Block, Figure, Heading, Sentence, Sentences, Table, sentence
from bolus.reporting.charts.axes import short
from bolus.reporting.charts.marks import legend
from bolus.reporting.charts.points import Point, draw_points, drawn
from bolus.reporting.evidence import Question
from bolus.reporting.wording import counted, plain

if TYPE_CHECKING:
    from markupsafe import Markup

MOST_CLASSES = 6  # that have a chart of their own
FEWEST = 8  # volumes of a class, of which halves are compared
WIDE = 20  # times that the largest is larger than the smallest, from which equal steps are equal factors
READING = (
    "Each point is a test volume: its Dice, the mean over draws of labelled patients, by the size of its reference "
    "mask; beside it the same volume by the untrained network. A small mask has a lower Dice than a large one at the "
    "same error of the edge, so compare points of one size. A mean hides the lowest points: look at those volumes "
    "first."
)


@dataclass(frozen=True, eq=False)
class Volumes:
    """The test volumes of an evaluation of masks, at the most labelled patients.

    Args:
        labelled: how many patients.
        unit: of sizes: `ml` where every volume has a spacing, else `voxels`; empty where an earlier version wrote none.
        frame: a line for each class and volume whose truth has it: `class`, `row` of the first slice, `size` of the
            reference mask, `dice`, the mean over draws, and `twin`, that of the untrained network, NaN where it has
            none.
    """

    labelled: int
    unit: str
    frame: pd.DataFrame

    @property
    def classes(self) -> list[str]:
        """Their names, in the order of the file."""
        return [str(each) for each in self.frame["class"].unique()]


def volumes_of(question: Question) -> Volumes | None:
    """The test volumes of an evaluation; None where it wrote none, or no truth has anything."""
    frame = question.table("volumes.parquet")
    if frame is None:
        return None
    most = int(frame["labelled_patients"].max())
    frame = frame[frame["labelled_patients"] == most]
    unit = "ml" if "true_ml" in frame and frame["true_ml"].notna().all() else "voxels" if "true_voxels" in frame else ""
    frame = frame.assign(size=frame[f"true_{unit}"] if unit else np.nan)
    mean = frame.groupby(["encoder", "class", "row"], sort=False, as_index=False)[["dice", "size"]].mean()
    twin = mean.loc[mean["encoder"] == RANDOM, ["class", "row", "dice"]].rename(columns={"dice": "twin"})
    own = mean[mean["encoder"] == question.encoder].dropna(subset=["dice"]).merge(twin, how="left")
    return Volumes(most, unit, own) if len(own) else None


def overlap(question: Question) -> list[Block]:
    """Dice by the size of the reference mask, a chart for each class."""
    found = volumes_of(question)
    if found is None:
        return []
    unit, several = found.unit, len(found.classes) > 1
    mean = found.frame.groupby("row")["dice"].mean().sort_values(kind="stable")
    worst = f"{mean.iloc[0]:.3f} in the worst, row {mean.index[0]}"
    said = [sentence(f"Dice is {mean.median():.3f} in the median volume and {worst}.")]
    panels: list[Markup] = []
    rows: list[list[str]] = []
    for name in found.classes[:MOST_CLASSES]:
        volumes = found.frame[found.frame["class"] == name].sort_values("dice", kind="stable")
        what = f" of class {plain(name, 30)}" if several else ""
        said += _halves(volumes, what, unit)
        volumes = volumes.iloc[drawn(len(volumes))]
        panels.append(_panel(volumes, f"Dice{what}", unit))
        rows += [
            [f"{each.row}", *([plain(name, 30)] if several else []), *([short(each.size)] if unit else []),
             f"{each.dice:.3f}", decimals(each.twin)]
            for each in _lines(volumes)
        ]  # fmt: skip
    head = ["Row of the first slice", *(["Class"] if several else []), *([f"Size, {unit}"] if unit else [])]
    table = Table([*head, "Run", "Random-init"], rows, "Dice by volume in numbers", folded=True)
    key = legend([(question.encoder, 0), (RANDOM, 2)])
    return [
        Heading(f"Masks, {counted(found.labelled, 'labelled patient')}, {counted(len(mean), 'test volume')}"),
        Sentences(said),
        Figure("Dice by the size of the reference mask" if unit else "Dice by volume", panels, READING, key, table),
    ]


class _Line(NamedTuple):
    """A line of `Volumes.frame` of one class."""

    row: int
    size: float
    dice: float
    twin: float


def _lines(volumes: pd.DataFrame) -> list[_Line]:
    return [_Line(*each) for each in volumes[[*_Line._fields]].itertuples(index=False)]


def _halves(volumes: pd.DataFrame, what: str, unit: str) -> list[Sentence]:
    """Median Dice in the smaller and in the larger half of the reference masks; nothing of a few."""
    middle = float(volumes["size"].median())
    small = volumes["size"] < middle
    if len(volumes) < FEWEST or not small.any():
        return []
    below, above = (float(volumes.loc[each, "dice"].median()) for each in (small, ~small))
    said = f"Of reference masks{what} below {short(middle)} {unit} the median Dice is {below:.3f}, of the others "
    return [sentence(f"{said}{above:.3f}.")]


def _panel(volumes: pd.DataFrame, title: str, unit: str) -> Markup:
    """Volumes by their size, or the worst first where sizes are not known."""
    own, twins = [], []
    for place, each in enumerate(_lines(volumes), start=1):
        x, name = float(each.size) if unit else float(place), f"volume of row {each.row}"
        name += f", {short(each.size)} {unit}" if unit else ""
        own.append(Point(x, each.dice, f"{name}: Dice {each.dice:.3f}"))
        if math.isfinite(each.twin):
            twins.append(Point(x, each.twin, f"{name}, random-init: Dice {each.twin:.3f}", 2))
    wide = bool(unit) and float(volumes["size"].max()) > WIDE * float(volumes["size"].min())
    x_name = f"size of the reference mask, {unit}" if unit else "test volumes, the worst first"
    return draw_points([*twins, *own], title=title, x_name=x_name, y_range=(-0.02, 1.02), logarithmic=wide)
