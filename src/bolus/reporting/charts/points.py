"""Points: single samples or volumes by two numbers, with lines across."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bolus.reporting.charts.axes import HEIGHT, WIDTH, frame, spread, x_scale, y_scale
from bolus.reporting.charts.marks import chart, dot, label_text, tag

if TYPE_CHECKING:
    from markupsafe import Markup


MOST_POINTS = 600  # of a chart


@dataclass(frozen=True)
class Point:
    """One sample.

    Args:
        x: across.
        y: up.
        tip: what is said of it.
        series: whose colour and shape it has.
    """

    x: float
    y: float
    tip: str
    series: int = 0


def drawn(number: int, most: int = MOST_POINTS) -> npt.NDArray[np.int64]:
    """Which of so many points are drawn: all, or at most so many at random, the same ones each time.

    >>> drawn(3).tolist(), len(drawn(10, 4))
    ([0, 1, 2], 4)
    """
    chosen = np.random.default_rng(0).permutation(number)[:most] if number > most else np.arange(number)
    return np.sort(chosen)


def draw_points(
    points: Sequence[Point],
    *,
    title: str,
    x_name: str,
    levels: Sequence[tuple[float, str]] = (),
    y_range: tuple[float, float] | None = None,
    logarithmic: bool = False,
    label: str = "",
) -> Markup:
    """Points in one frame, below their title.

    Args:
        points: all finite.
        title: what goes up, with its unit.
        x_name: what goes across, with its unit.
        levels: values with their names, each a line across.
        y_range: from and to; that of points and levels where None.
        logarithmic: across, where all x are above 0.
        label: for a screen reader; the title where empty.
    """
    xs = [math.log(each.x) if logarithmic else each.x for each in points]
    low, high = (math.exp(end) if logarithmic else end for end in spread(xs))
    x = x_scale(low, high, logarithmic=logarithmic)
    y = y_scale(*(y_range or spread([each.y for each in points], include=[value for value, _ in levels], margin=0.1)))
    parts = frame(x, y, x_name=x_name)
    for value, _ in levels:
        parts.append(tag("line", x1=x.start, x2=x.end, y1=y(value), y2=y(value), class_="level"))
    parts += [dot(x(each.x), y(each.y), each.series, each.tip, radius=2.6) for each in points]
    parts += [label_text(name, x.end, y(value) - 4, "tick", "end") for value, name in levels]
    drawn = chart(parts, width=WIDTH, height=HEIGHT, label=label or f"{title}, by {x_name}")
    return tag("div", tag("p", title, class_="chart-title"), drawn, class_="panel")
