"""SVG and HTML elements, escaped, and what every mark has in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bolus.reporting.wording import plain, straight

if TYPE_CHECKING:
    from markupsafe import Markup

SHAPES = {
    1: ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    2: ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
    3: ((0, -1.2), (1.2, 1), (-1.2, 1)),
    4: ((0, 1.2), (1.2, -1), (-1.2, -1)),
    5: ((-0.4, -1.3), (0.4, -1.3), (0.4, -0.4), (1.3, -0.4), (1.3, 0.4), (0.4, 0.4), (0.4, 1.3), (-0.4, 1.3),
        (-0.4, 0.4), (-1.3, 0.4), (-1.3, -0.4), (-0.4, -0.4)),
    6: ((-1.3, -0.6), (1.3, -0.6), (1.3, 0.6), (-1.3, 0.6)),
    7: ((-0.6, -1.3), (0.6, -1.3), (0.6, 1.3), (-0.6, 1.3)),
}  # fmt: skip
"""Of the series after the first, which has circles: corners around the middle, of a mark of radius 1."""
TIP = 240  # characters of what is said of a mark
NUM_SERIES = 1 + len(SHAPES)
"""Shapes, and colours that the stylesheet has."""


def tag(name: str, *children: Markup | str | None, **attributes: object) -> Markup:
    """An element; text and values are escaped, and what is None is left out.

    Args:
        name: of the element.
        *children: markup as it is, anything else as text.
        **attributes: `_` stands for `-`, and one at the end is dropped, so that `class_` can be said. A float has at
            most two decimals.

    >>> str(tag("text", "<b>", x=1.23456, class_="tick", data_tip='"'))
    '<text x="1.23" class="tick" data-tip="&#34;">&lt;b&gt;</text>'
    """
    from markupsafe import Markup, escape

    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    shown = "".join(f' {key}="{escape(_value(value))}"' for key, value in given.items())
    inside = "".join(
        str(child if isinstance(child, Markup) else escape(straight(child))) for child in children if child is not None
    )
    return Markup(f"<{name}{shown}>{inside}</{name}>")


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)


def chart(children: Sequence[Markup], *, width: float, height: float, label: str) -> Markup:
    """An SVG that fills the width it is given; its marks are reached by arrow keys.

    Args:
        children: what is drawn.
        width: of the drawing, in its own units.
        height: likewise.
        label: what a screen reader says in place of it.
    """
    box = f"0 0 {width:g} {height:g}"
    return tag("svg", *children, viewBox=box, class_="chart", role="img", aria_label=plain(label, 300), tabindex=0)


def label_text(text: object, x: float, y: float, kind: str = "tick", anchor: str | None = None) -> Markup:
    """Text in a chart; `kind` is its class."""
    return tag("text", plain(text), x=x, y=y, class_=kind, text_anchor=anchor)


def dot(x: float, y: float, series: int, tip: str, *, radius: float = 3.5) -> Markup:
    """A mark of a series, told apart by shape as well as by colour.

    Args:
        x: of its middle.
        y: likewise.
        series: whose colour and shape it has.
        tip: what is said of it.
        radius: of the circle; the others are as large.
    """
    kind, tip = f"mark f{series % NUM_SERIES}", plain(tip, TIP)
    if series % NUM_SERIES == 0:
        return tag("circle", cx=x, cy=y, r=radius, class_=kind, data_tip=tip)
    points = " ".join(f"{x + radius * dx:.1f},{y + radius * dy:.1f}" for dx, dy in SHAPES[series % NUM_SERIES])
    return tag("polygon", points=points, class_=kind, data_tip=tip)


def line(points: Sequence[tuple[float, float]], series: int) -> Markup:
    """A line of a series, told apart by its dashes as well as by its colour."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return tag("polyline", points=path, class_=f"line s{series % NUM_SERIES}")


def band(points: Sequence[tuple[float, float, float]], series: int) -> Markup:
    """The area between the two ends of intervals: (x, low, high)."""
    around = [(x, low) for x, low, _ in points] + [(x, high) for x, _, high in reversed(points)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in around)
    return tag("polygon", points=path, class_=f"band f{series % NUM_SERIES}")


def legend(names: Sequence[tuple[str, int]]) -> Markup:
    """Names of series beside their marks, as a list above a chart."""
    items = [
        tag("li", tag("svg", dot(6, 6, series, "", radius=4), viewBox="0 0 12 12", aria_hidden="true"),
            tag("bdi", plain(name)))
        for name, series in names
    ]  # fmt: skip
    return tag("ul", *items, class_="legend")
