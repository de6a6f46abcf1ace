"""Rows that a later scan adds to a table."""

from __future__ import annotations

import pandas as pd


def add_rows(old: pd.DataFrame, new: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The rows of both; an image that both have stands as the new scan found it, with what only the old table says.

    A series that grew is taken only where the new scan has all of its images, since their order would not fit else.

    Args:
        old: the table as it is, also with columns that someone added.
        new: private rows of a scan with the same key.

    Example:
        >>> old = pd.DataFrame({"image": ["a"], "patient": ["p"], "label": ["x"]})
        >>> made, notes = add_rows(old, pd.DataFrame({"image": ["a", "b"], "patient": ["p", "q"]}))
        >>> made.fillna("").values.tolist(), notes
        ([['a', 'p', 'x'], ['b', 'q', '']], ['1 rows were added to 1; rows lost: 0.'])
    """
    keys = ["image", *(["order"] if "order" in new and "order" in old else [])]
    numbers = [name for name in new.columns if name in old and new[name].dtype.kind in "fi"]
    old = old.assign(**{name: pd.to_numeric(old[name], errors="coerce") for name in numbers})
    seen = old["image"].isin(set(new["image"]))
    kept, notes = old[~seen], []
    if "series" in new and "series" in old:
        partly = new["series"].notna() & new["series"].isin(set(kept["series"].dropna()))
        known = new["image"].isin(set(old["image"]))
        if grown := int((partly & ~known).sum()):
            notes.append(
                f"{grown:,} slices belong to series of which the table has others that this folder lacks; they were "
                "left out: scan all of a series together."
            )
        restored = old[seen & old["image"].isin(set(new.loc[partly & known, "image"]))]
        kept, new = pd.concat([kept, restored]), new[~partly]
    only = [name for name in old.columns if name not in new.columns]
    if only:
        new = new.merge(old[[*keys, *only]].drop_duplicates(keys), on=keys, how="left")
    whole = pd.concat([kept, new], ignore_index=True)
    whole = whole[[*old.columns, *(name for name in whole.columns if name not in old.columns)]]
    lost = len(old) - len(old[keys].merge(whole[keys].drop_duplicates(), on=keys))
    notes.append(f"{len(whole) - len(old) + lost:,} rows were added to {len(old):,}; rows lost: {lost:,}.")
    return whole, notes
