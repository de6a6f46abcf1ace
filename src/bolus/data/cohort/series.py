"""Which rows of a table make clips or volumes, and what keeps them from it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.cohort.values import Values

Rows = npt.NDArray[np.int64]

# What may differ between the rows of one clip or volume: which frame it is, not what is known of the whole. A time may
# within a day, since clocks run while frames are taken.
VARYING = frozenset({"image", "mask", "order", "slice_position"})
IF_FRAMES = (
    "if it belongs to a frame and not to the clip, leave it without a role (rename it where its name gives it one)"
)
IF_SLICES = IF_FRAMES.replace("frame", "slice").replace("clip", "volume")
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
    return found + _varying(table, series, ranked, "series", IF_FRAMES)


def place_of_slices(table: Values) -> str:
    """The role that puts the slices of a volume in order, empty where no column has one."""
    return next((role for role in ("order", "slice_position") if role in table.roles), "")


def volume_problems(table: Values, volumes: Rows, ranked: Rows) -> list[tuple[Rows, str]]:
    """Why rows are no volumes, in the same way: slices without an order, or two at one place; a column that varies.

    Args:
        table: with rows that are slices of volumes, or whole ones.
        volumes: `[rows]`, which each is of, as of `bolus.data.cohort.volumes.volume_codes`.
        ranked: the rows, volume by volume, in their order.
    """
    found: list[tuple[Rows, str]] = []
    several = np.bincount(volumes)[volumes] > 1
    role = place_of_slices(table)
    if several.any() and not role:
        rows = np.unique(table.origin[several])
        found.append((rows, "slices of a volume need a column with the role order or slice_position"))
    elif several.any():
        place = table.encoded(role)
        same = (np.diff(volumes[ranked]) == 0) & (np.diff(place[ranked]) == 0)
        twice = np.zeros(len(place), np.bool_)
        twice[ranked] = np.r_[same, False] | np.r_[False, same]
        for wrong, what in ((np.isnan(place), "is missing"), (twice, "has one value twice")):
            if (wrong & several).any():
                rows = np.unique(table.origin[wrong & several])
                found.append((rows, f"{role} ({table.roles[role]!r}) {what} within a volume"))
    return found + _varying(table, volumes, ranked, "volume", IF_SLICES)


def _varying(table: Values, codes: Rows, ranked: Rows, whole: str, advice: str) -> list[tuple[Rows, str]]:
    """Columns with a role that have several values within one clip or volume; codes of -1 belong to none."""
    found: list[tuple[Rows, str]] = []
    known, again = codes >= 0, np.diff(codes[ranked]) == 0
    start = np.empty(len(codes), np.int64)  # the row that speaks for the whole that each row is of
    start[ranked] = ranked[np.maximum.accumulate(np.where(np.r_[False, again], 0, np.arange(len(ranked))))]
    for role in sorted(set(table.roles) - VARYING):
        values = table.encoded(role)
        if role == "time":
            earliest = np.full(int(codes.max()) + 2, np.inf)  # the last one is that of rows without a code
            np.minimum.at(earliest, codes, np.where(np.isnan(values), np.inf, values))
            differs = known & (values - earliest[codes] >= 1)
            how = f"differs by a day or more from the earliest of its {whole}"
        else:
            absent = pd.isna(values)
            differs = known & (values != values[start]) & ~(absent & absent[start])
            how = f"differs from the start of its {whole}"
        if differs.any():
            found.append((np.unique(table.origin[differs]), f"{role} ({table.roles[role]!r}) {how}; {advice}"))
    return found
