"""A grid of numbers from -1 to 1, each in its field."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bolus.reporting.charts.axes import WIDTH
from bolus.reporting.charts.marks import chart, label_text, tag

if TYPE_CHECKING:
    from markupsafe import Markup

NAMES_WIDTH = 96.0


def draw_grid(values_NN: npt.NDArray[np.float64], names: Sequence[str], *, title: str) -> Markup:
    """Fields of a symmetric matrix, coloured by sign and size; each says its number.

    Args:
        values_NN: from -1 to 1; NaN is left empty.
        names: of rows and columns; columns are numbered, as rows are.
        title: what is shown.
    """
    side = min(44.0, (WIDTH - NAMES_WIDTH) / len(names))
    parts = []
    for row, name in enumerate(names):
        y = 16 + side * row
        parts.append(label_text(f"{row + 1} {name}", NAMES_WIDTH - 6, y + side / 2 + 4, "tick", "end"))
        parts.append(label_text(row + 1, NAMES_WIDTH + side * (row + 0.5), 11, "tick", "middle"))
        for column, other in enumerate(names):
            value, x = float(values_NN[row, column]), NAMES_WIDTH + side * column
            if not math.isfinite(value):
                continue
            level = min(4, round(4 * abs(value)))
            kind = f"mark field {'below' if value < 0 else 'above'}{level}"
            tip = f"{name} and {other}: mean cosine {value:.2f}"
            parts.append(tag("rect", x=x, y=y, width=side - 2, height=side - 2, class_=kind, data_tip=tip))
            if side >= 28:
                parts.append(label_text(f"{value:.2f}", x + side / 2 - 1, y + side / 2 + 4, f"cell l{level}", "middle"))
    drawn = chart(parts, width=WIDTH, height=20 + side * len(names), label=f"Cosines between gradients, {title}")
    return tag("div", tag("p", title, class_="chart-title"), drawn, class_="panel")
