"""Which rows of a table belong to which images, by keys that are equal and days that are near."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.text.identifiers import fold_identifier

NAMES = {
    "patient": ("patient", "a patient"),
    "accession": ("accession number", "an accession number"),
    "instance": ("SOPInstanceUID", "a SOPInstanceUID"),
    "image": ("file", "the name of exactly one image"),
}
"""What a key is called, alone and with an article."""


@dataclass(frozen=True)
class Matches:
    """Pairs of rows of a table and of groups of images that have the same keys and day.

    Args:
        group: int64 `[pairs]`.
        row: int64 `[pairs]`, position in the table.
        days: float64 `[pairs]`, the row's day less the images'; 0 where days are no key.
        image: int64 `[images]`, the group of each image; -1 where a key is lacking.
        images: why an image has no row, empty where it has one, `[images]`.
        rows: why a row has no image, empty where it has one, `[rows]`.
        alike: how many rows without an image would have one if case, separators and leading zeros did not count.
    """

    group: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    days: npt.NDArray[np.float64]
    image: npt.NDArray[np.int64]
    images: pd.Series[Any]
    rows: pd.Series[Any]
    alike: int


def match_rows(images: pd.DataFrame, rows: pd.DataFrame, *, within: int = 0) -> Matches:
    """All pairs with equal keys whose days lie at most `within` days apart.

    Args:
        images: a column of text for each key, empty where it is missing; `day` as float64, NaN where it is missing, if
            days are a key.
        rows: of the table, likewise.
        within: days.

    Example:
        >>> images = pd.DataFrame({"patient": ["p", "p", "q"], "day": [10.0, 40.0, 10.0]})
        >>> found = match_rows(images, pd.DataFrame({"patient": ["p", "r"], "day": [12.0, 0.0]}), within=5)
        >>> found.group.tolist(), found.row.tolist(), found.days.tolist(), found.image.tolist()
        ([0], [0], [2.0], [0, 1, 2])
        >>> found.images.tolist(), found.rows.tolist()
        (['', 'without one within 5 days', 'of no patient in the table'], ['', 'of no patient with images'])
    """
    names = [name for name in images.columns if name != "day"]
    what = " and ".join(NAMES[name][0] for name in names)
    why_image, why_row = _lacking(images, names), _lacking(rows, names)
    whole = images[why_image == ""]
    groups = whole.groupby(list(images.columns), sort=False).ngroup()
    image = np.full(len(images), -1, np.int64)
    image[(why_image == "").to_numpy()] = groups.to_numpy()
    kinds = whole.drop_duplicates().assign(group=np.arange(groups.max() + 1 if len(groups) else 0))
    usable = rows.assign(row=np.arange(len(rows)))[why_row == ""]
    both = kinds.merge(usable, on=names, suffixes=("", "_row"))
    both["apart"] = both["day_row"] - both["day"] if "day" in images else 0.0
    near = both[both["apart"].abs() <= within]
    far = f"without one {f'within {within:,} days' if within else 'of the same day'}"
    for why, own, column, partner in (
        (why_image, image, "group", f"of no {what} in the table"),
        (why_row, np.arange(len(rows)), "row", f"of no {what} with images"),
    ):
        free = (why == "").to_numpy()
        why[free & ~np.isin(own, both[column].to_numpy())] = partner
        why[free & np.isin(own, both[column].to_numpy()) & ~np.isin(own, near[column].to_numpy())] = far
    alone = rows.loc[(why_row == f"of no {what} with images").to_numpy(), names]
    alike = 0 if "image" in names else _count_alike(whole[names], alone)
    pairs = near[["group", "row"]].to_numpy(np.int64)
    return Matches(pairs[:, 0], pairs[:, 1], near["apart"].to_numpy(np.float64), image, why_image, why_row, alike)


def _lacking(frame: pd.DataFrame, names: list[str]) -> pd.Series[Any]:
    """Which key each row lacks, in words; empty where it has all."""
    why = pd.Series("", index=frame.index, dtype=object)
    for name in names:
        why[(frame[name] == "") & (why == "")] = f"without {NAMES[name][1]}"
    if "day" in frame:
        why[frame["day"].isna() & (why == "")] = "without a date that can be read"
    return why


def _count_alike(images: pd.DataFrame, rows: pd.DataFrame) -> int:
    there = {tuple(map(fold_identifier, key)) for key in images.drop_duplicates().to_numpy().tolist()}
    return sum(tuple(map(fold_identifier, key)) in there for key in rows.to_numpy().tolist())
