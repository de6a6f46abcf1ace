"""Estimates with their intervals, one below the other, each under its own name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bolus.evaluation.statistics.results import decimals
from bolus.reporting.charts.axes import WIDTH, Scale, short, spread, ticks
from bolus.reporting.charts.marks import NUM_SERIES, chart, dot, label_text, tag
from bolus.reporting.wording import plain

if TYPE_CHECKING:
    from markupsafe import Markup

ROW, FOOT = 36.0, 34.0


@dataclass(frozen=True)
class Interval:
    """One line of a forest plot.

    Args:
        name: what it is of.
        value: the estimate; NaN where undefined.
        low: lower end of its interval.
        high: upper end.
        tip: what is said of it.
        series: whose colour and shape it has.
        detectable: the smallest difference that could have been shown, shaded to both sides of 0; None for a value.
        remark: what stands at the right; the estimate with its interval where empty.
    """

    name: str
    value: float
    low: float
    high: float
    tip: str
    series: int = 0
    detectable: float | None = None
    remark: str = ""


def draw_forest(
    intervals: Sequence[Interval],
    *,
    title: str,
    x_name: str,
    level: float | None = None,
    level_name: str = "",
    label: str = "",
    sides: tuple[str, str] | None = None,
) -> Markup:
    """A forest plot below its title.

    Args:
        intervals: from above to below.
        title: what is shown.
        x_name: what goes across, with its unit.
        level: where a line stands: 0 of differences, all patients of groups.
        level_name: what it is, said at its foot.
        label: for a screen reader; the title where empty.
        sides: what left and right of the level mean.
    """
    shaded = [sign * each.detectable for each in intervals if each.detectable for sign in (-1, 1)]
    ends = [end for each in intervals for end in (each.value, each.low, each.high)]
    low, high = spread([*ends, *shaded], include=[] if level is None else [level], margin=0.04)
    x = Scale(low, high, 8, WIDTH - 8)
    head = 14.0 if sides else 0.0
    bottom = head + ROW * len(intervals) + 4
    parts: list[Markup] = []
    if sides and level is not None:
        parts.append(label_text(f"← {sides[0]}", 8, 10, "name"))
        parts.append(label_text(f"{sides[1]} →", WIDTH - 8, 10, "name", "end"))
    for value in ticks(low, high, 4):
        parts.append(tag("line", x1=x(value), x2=x(value), y1=head, y2=bottom, class_="grid"))
        parts.append(label_text(short(value), x(value), bottom + 13, "tick", "middle"))
    for at, each in enumerate(intervals):
        y = head + ROW * at + 25
        if each.detectable:
            left, right = x(-each.detectable), x(each.detectable)
            parts.append(tag("rect", x=left, y=y - 7, width=right - left, height=14, class_="detectable"))
    if level is not None:
        parts.append(tag("line", x1=x(level), x2=x(level), y1=head, y2=bottom, class_="level"))
    for at, each in enumerate(intervals):
        y, kind = head + ROW * at + 25, f"s{each.series % NUM_SERIES}"
        remark = each.remark or f"{decimals(each.value)} [{decimals(each.low)}, {decimals(each.high)}]"
        room = max(12, 50 - len(remark))
        parts.append(label_text(plain(each.name, room), 8, y - 13, "row"))
        parts.append(label_text(remark, WIDTH - 8, y - 13, "value", "end"))
        if math.isfinite(each.low) and math.isfinite(each.high):
            parts.append(tag("line", x1=x(each.low), x2=x(each.high), y1=y, y2=y, class_=f"whisker {kind}"))
        if math.isfinite(each.value):
            parts.append(dot(x(each.value), y, each.series, each.tip, radius=4))
    foot = x_name + (f"; line: {level_name}" if level_name else "")
    parts.append(label_text(foot, WIDTH / 2, bottom + 28, "name", "middle"))
    drawn = chart(parts, width=WIDTH, height=bottom + FOOT, label=label or title)
    return tag("div", tag("p", title, class_="chart-title"), drawn, class_="panel")
