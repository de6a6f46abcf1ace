"""Which rows of a table make clips, and what keeps them from it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.cohort.values import Values

Rows = npt.NDArray[np.int64]

# What may differ between the rows of one series: which frame it is, not what is known of the clip. A time may within
# a day, since clocks run while frames are taken.
VARYING = frozenset({"image", "mask", "order", "slice_position"})
IF_FRAMES = (
    "if it belongs to a frame and not to the clip, leave it without a role (rename it where its name gives it one)"
)
IF_FILES = "if each row is a clip file, give the column with the role series another one, such as attribute:series"


def series_problems(table: Values) -> list[tuple[Rows, str]]:
    """Why rows are no clips: a role that is lacking, an order missing or twice within a series, a column that varies.

    Returns:
        Rows of the table as given, int64, empty where all of it is meant; and what is wrong with them.

    Example:
        >>> from bolus.data.cohort.cohort import Cohort
        >>> from bolus.data.cohort.spec import CohortSpec
        >>> frame = pd.DataFrame({"image": ["a", "b"], "patient": ["p", "p"], "series": ["s", "s"], "order": [3, 3]})
        >>> series_problems(Cohort(frame, CohortSpec(table="t.csv")))
        [(array([0, 1]), "order ('order') has one value twice within a series")]
    """
    lacking = [role for role in ("series", "order") if role not in table.roles]
    if lacking:
        what = f"unit 'clip' needs columns with the roles series and order; missing: {', '.join(lacking)}"
        advice = f" (series is {table.roles['series']!r}; {IF_FILES})" if "series" in table.roles else ""
        return [(np.empty(0, np.int64), what + advice)]
    found: list[tuple[Rows, str]] = []

    def add(wrong: npt.NDArray[np.bool_], what: str) -> None:
        if wrong.any():
            found.append((np.unique(table.origin[wrong]), what))

    series, order = table.encoded("series"), table.encoded("order")
    ranked = np.lexsort((order, series)).astype(np.int64)
    known, again = series >= 0, np.diff(series[ranked]) == 0
    add(~known, f"no series (column {table.roles['series']!r}); {IF_FILES}")
    add(np.isnan(order), "no order within the series")
    same = again & (np.diff(order[ranked]) == 0)
    twice = np.zeros(len(series), np.bool_)
    twice[ranked] = np.r_[same, False] | np.r_[False, same]
    add(twice & known, f"order ({table.roles['order']!r}) has one value twice within a series")
    start = np.empty(len(series), np.int64)  # the row that speaks for the series of each row
    start[ranked] = ranked[np.maximum.accumulate(np.where(np.r_[False, again], 0, np.arange(len(ranked))))]
    for role in sorted(set(table.roles) - VARYING):
        values = table.encoded(role)
        if role == "time":
            earliest = np.full(int(series.max()) + 2, np.inf)  # the last one is that of rows without a series
            np.minimum.at(earliest, series, np.where(np.isnan(values), np.inf, values))
            differs = known & (values - earliest[series] >= 1)
            how = "differs by a day or more from the earliest of its series"
        else:
            absent = pd.isna(values)
            differs = known & (values != values[start]) & ~(absent & absent[start])
            how = "differs from the start of its series"
        add(differs, f"{role} ({table.roles[role]!r}) {how}; {IF_FRAMES}")
    return found
