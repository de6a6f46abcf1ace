"""Curves: what changes with a step, a share of the labels or a threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bolus.reporting.charts.axes import HEIGHT, WIDTH, frame, spread, x_scale, y_scale
from bolus.reporting.charts.marks import band, chart, dot, label_text, line, tag

if TYPE_CHECKING:
    from markupsafe import Markup


@dataclass(frozen=True)
class Curve:
    """One line.

    Args:
        name: of the series.
        series: whose colour, dashes and shape it has.
        points: (x, y); a y that is not finite is left out.
        ends: (low, high) of each point's interval, drawn as a band; none where empty.
        tips: what is said of each point; made of name and numbers where empty.
        dots: whether the points are marked.
    """

    name: str
    series: int
    points: Sequence[tuple[float, float]]
    ends: Sequence[tuple[float, float]] = field(default=())
    tips: Sequence[str] = field(default=())
    dots: bool = True


def draw_curves(
    curves: Sequence[Curve],
    *,
    title: str,
    x_name: str,
    y_range: tuple[float, float] | None = None,
    x_range: tuple[float, float] | None = None,
    x_ticks: Sequence[tuple[float, str]] | None = None,
    logarithmic: bool = False,
    level: tuple[float, str] | None = None,
    diagonal: bool = False,
    label: str = "",
) -> Markup:
    """Curves in one frame, below their title.

    Args:
        curves: of one measure.
        title: what goes up, with its unit.
        x_name: what goes across, with its unit.
        y_range: from and to; that of the points where None.
        x_range: likewise.
        x_ticks: places and what stands there.
        logarithmic: across.
        level: a value, such as that of chance, with its name.
        diagonal: draw where y equals x.
        label: for a screen reader; the title where empty.
    """
    xs = [x for curve in curves for x, _ in curve.points]
    if x_range is None:
        low, high = (min(xs), max(xs)) if xs else (0.0, 1.0)
        x_range = (low / 1.3, high * 1.3) if logarithmic else (low, high) if high > low else (low - 1, high + 1)
    if y_range is None:
        ys = [y for curve in curves for _, y in curve.points]
        ys += [end for curve in curves for ends in curve.ends for end in ends]
        y_range = _not_blown_up(spread(ys, include=[] if level is None else [level[0]]))
    x, y = x_scale(*x_range, logarithmic=logarithmic), y_scale(*y_range)
    parts = frame(x, y, x_name=x_name, x_ticks=x_ticks)
    if diagonal:
        low, high = max(x.low, y.low), min(x.high, y.high)
        parts.append(tag("line", x1=x(low), y1=y(low), x2=x(high), y2=y(high), class_="level"))
    if level is not None:
        parts.append(tag("line", x1=x.start, x2=x.end, y1=y(level[0]), y2=y(level[0]), class_="level"))
    for curve in curves:
        kept = [at for at, (_, value) in enumerate(curve.points) if math.isfinite(value)]
        if curve.ends:
            between = [(curve.points[at][0], *curve.ends[at]) for at in kept if all(map(math.isfinite, curve.ends[at]))]
            parts.append(band([(x(at), y(low), y(high)) for at, low, high in between], curve.series))
        places = [(x(curve.points[at][0]), y(curve.points[at][1])) for at in kept]
        parts.append(line(places, curve.series))
        if not curve.dots:
            continue
        for at, (across, up) in zip(kept, places, strict=True):
            tip = (
                curve.tips[at] if curve.tips else f"{curve.name}: {curve.points[at][1]:.4g} at {curve.points[at][0]:g}"
            )
            parts.append(dot(across, up, curve.series, tip, radius=2.6 if len(kept) > 12 else 3.4))
    if level is not None:
        parts.append(label_text(level[1], x.end, y(level[0]) - 4, "tick", "end"))
    drawn = chart(parts, width=WIDTH, height=HEIGHT, label=label or f"{title}, by {x_name}")
    return tag("div", tag("p", title, class_="chart-title"), drawn, class_="panel")


def _not_blown_up(ends: tuple[float, float]) -> tuple[float, float]:
    """The range, at least a tenth of its size wide, so that what hardly changes looks so."""
    low, high = ends
    lacking = 0.1 * max(abs(low), abs(high)) - (high - low)
    return (low - lacking / 2, high + lacking / 2) if lacking > 0 else ends
