"""Columns that hold what another one holds, under another name or another role."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.stats import spearmanr

from bolus.planning.hazards.association import CHANCE, IntArray, associate
from bolus.planning.hazards.supervision import Column

SAME, SAME_RANKS = 0.95, 0.98
"""Cramer's V (both ways) and |Spearman| from which two columns hold the same."""
FEWEST_KNOWN = 20
"""Samples that both columns must know."""
AT_MOST = 20_000
"""Samples that are compared, evenly spaced where there are more."""


def find_copies(columns: Iterable[Column], drawn: IntArray | None) -> list[tuple[Column, Column, str]]:
    """Labels, scores and attributes that hold the same as one that is kept.

    Of two, a label is kept, which a copy that is learnt would give away; else the one that more samples know; of equals
    a score rather than an attribute, then the first.

    Args:
        columns: that could be learnt, in any order.
        drawn: int64 `[patients]`, a sample of each, on which agreement by chance is excluded; None: only one column of
            the table under two roles is found.

    Returns:
        For each copy: itself, the column that is kept, and how they agree (`Spearman -0.99`); nothing where they are
        one column of the table.
    """
    ranked = sorted(
        (column for column in columns if ":" in column.role),
        key=lambda column: (
            not column.role.startswith("label:"),
            -int(column.known.sum()),
            column.role.startswith("attribute:"),
        ),
    )
    kept: list[Column] = []
    found: list[tuple[Column, Column, str]] = []
    for column in ranked:
        for other in kept:
            same = "" if drawn is None or column.source == other.source else _same(column, other, drawn)
            if same or column.source == other.source:
                found.append((column, other, same))
                break
        else:
            kept.append(column)
    return found


def _same(column: Column, other: Column, drawn: IntArray) -> str:
    """How far two columns agree where they hold the same; else nothing."""
    step = -(-len(column.known) // AT_MOST)
    both = (column.known & other.known)[::step]
    if both.sum() < max(FEWEST_KNOWN, column.known[::step].sum() / 2):
        return ""
    if column.numbers is not None and other.numbers is not None:
        x, y = (each.numbers[::step][both] for each in (column, other) if each.numbers is not None)
        if np.ptp(x) > 0 and np.ptp(y) > 0:
            rho = float(spearmanr(x, y).statistic)
            if abs(rho) >= SAME_RANKS:
                return f"Spearman {rho:.2f}"
    if column.codes is not None and other.codes is not None:
        found = associate(column.codes[::step][both], other.codes[::step][both])
        if found.both_ways >= SAME and associate(column.codes[drawn], other.codes[drawn]).p < CHANCE:
            return f"Cramer's V {found.both_ways:.2f}"
    return ""
