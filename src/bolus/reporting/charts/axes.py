"""Scales from values to places, the ticks on them, and the frame of a chart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bolus.reporting.charts.marks import label_text, tag

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH, HEIGHT = 340.0, 220.0  # of a chart, in units of its own: what a phone shows without shrinking
LEFT, RIGHT, TOP, BOTTOM = 44.0, 10.0, 10.0, 36.0


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` at places from `start` to `end`.

    Args:
        low: below `high`.
        high: a value.
        start: a place, of `low`.
        end: a place, of `high`.
        logarithmic: equal steps are equal factors; then both values are above 0.

    >>> Scale(0, 10, 100, 200)(5), Scale(1, 100, 0, 10, logarithmic=True)(10)
    (150.0, 5.0)
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value; one beyond the ends is at the end."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(max(value, 1e-12))
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About so many round numbers from `low` to `high`.

    >>> ticks(0.0, 1.0), ticks(3, 97, 4)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [25.0, 50.0, 75.0])
    """
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(each for each in (1, 2, 2.5, 5, 10) if power * each >= 0.999 * rough)
    first = math.ceil(low / step - 1e-9)
    return [round(step * number, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def factors(low: float, high: float, count: int = 5) -> list[float]:
    """So many round numbers at most from `low`, which is above 0, to `high`, at steps of about equal factors.

    >>> factors(3, 80), factors(0.5, 2000)
    ([5.0, 10.0, 20.0, 50.0], [1.0, 10.0, 100.0, 1000.0])
    """
    powers = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    found = [step * power for power in powers for step in (1, 2, 5) if low <= step * power <= high]
    return found if len(found) <= count else [each for each in powers if low <= each <= high]


def spread(values: Iterable[float], *, include: Sequence[float] = (), margin: float = 0.06) -> tuple[float, float]:
    """The range of the finite values, a little wider than they are; 0 to 1 where there is none.

    >>> spread([1.0, float("nan"), 3.0], margin=0.5)
    (0.0, 4.0)
    """
    finite = [each for each in [*values, *include] if math.isfinite(each)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    gap = (high - low) * margin or abs(high) * margin or margin
    return low - gap, high + gap


def x_scale(low: float, high: float, *, logarithmic: bool = False, width: float = WIDTH) -> Scale:
    """Across a chart."""
    return Scale(low, high, LEFT, width - RIGHT, logarithmic)


def y_scale(low: float, high: float, *, height: float = HEIGHT) -> Scale:
    """Up a chart."""
    return Scale(low, high, height - BOTTOM, TOP)


def frame(
    x: Scale,
    y: Scale,
    *,
    x_name: str,
    x_ticks: Sequence[tuple[float, str]] | None = None,
    y_ticks: Sequence[tuple[float, str]] | None = None,
) -> list[Markup]:
    """Lines at the ticks, their numbers, and the name of what goes across; that of what goes up is the title's.

    Args:
        x: across.
        y: up.
        x_name: what goes across, with its unit.
        x_ticks: places and what stands there; round numbers where None.
        y_ticks: likewise.
    """
    parts = []
    for value, text in y_ticks if y_ticks is not None else [(each, short(each)) for each in ticks(y.low, y.high)]:
        parts.append(tag("line", x1=x.start, x2=x.end, y1=y(value), y2=y(value), class_="grid"))
        parts.append(label_text(text, x.start - 5, y(value) + 3.5, "tick", "end"))
    if x_ticks is None:
        x_ticks = [(each, short(each)) for each in (factors if x.logarithmic else ticks)(x.low, x.high, 4)]
    for value, text in x_ticks:
        parts.append(tag("line", x1=x(value), x2=x(value), y1=y.start, y2=y.start + 4, class_="axis"))
        parts.append(label_text(text, x(value), y.start + 15, "tick", "middle"))
    parts.append(tag("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="axis"))
    parts.append(label_text(x_name, (x.start + x.end) / 2, y.start + 30, "name", "middle"))
    return parts


def short(value: float) -> str:
    """A number at a tick.

    >>> short(0.25), short(1500.0), short(2e6), short(-0.0)
    ('0.25', '1,500', '2e+06', '0')
    """
    value = value or 0.0
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 and value == round(value) else f"{value:.3g}"
