"""Points: single samples or volumes by two numbers, with lines across."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bolus.reporting.charts.axes import HEIGHT, WIDTH, frame, spread, x_scale, y_scale
from bolus.reporting.charts.marks import chart, dot, label_text, tag

if TYPE_CHECKING:
    from markupsafe import Markup


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


def draw_points(
    points: Sequence[Point],
    *,
    title: str,
    x_name: str,
    levels: Sequence[tuple[float, str]] = (),
    y_range: tuple[float, float] | None = None,
    label: str = "",
) -> Markup:
    """Points in one frame, below their title.

    Args:
        points: all finite.
        title: what goes up, with its unit.
        x_name: what goes across, with its unit.
        levels: values with their names, each a line across.
        y_range: from and to; that of points and levels where None.
        label: for a screen reader; the title where empty.
    """
    x = x_scale(*spread([each.x for each in points]))
    y = y_scale(*(y_range or spread([each.y for each in points], include=[value for value, _ in levels], margin=0.1)))
    parts = frame(x, y, x_name=x_name)
    for value, _ in levels:
        parts.append(tag("line", x1=x.start, x2=x.end, y1=y(value), y2=y(value), class_="level"))
    parts += [dot(x(each.x), y(each.y), each.series, each.tip, radius=2.6) for each in points]
    parts += [label_text(name, x.end, y(value) - 4, "tick", "end") for value, name in levels]
    drawn = chart(parts, width=WIDTH, height=HEIGHT, label=label or f"{title}, by {x_name}")
    return tag("div", tag("p", title, class_="chart-title"), drawn, class_="panel")
