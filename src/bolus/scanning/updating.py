"""Rows that a later scan adds to a table, and the key of the scan before it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from bolus.data.cohort.cohort import Cohort
from bolus.errors import UsageError
from bolus.scanning.privacy import Key, default_key


def add_rows(old: pd.DataFrame, new: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The rows of both; an image that both have stands as the new scan found it, with what only the old table says.

    Where the new scan left a cell empty, as of labels that are not joined again, the old one stays.

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
    before = new[keys].merge(old.drop_duplicates(keys), on=keys, how="left").set_axis(new.index)
    filled = 0
    for name in old.columns:
        if name not in new.columns:
            new = new.assign(**{name: before[name]})
        elif name not in keys and (empty := new[name].isna() & before[name].notna()).any():
            new = new.assign(**{name: new[name].astype(object).mask(empty, before[name])})
            filled += int(empty.sum())
    if filled:
        notes.append(f"{filled:,} cells that this scan found nothing for keep what the table said.")
    whole = pd.concat([kept, new], ignore_index=True)
    whole = whole[[*old.columns, *(name for name in whole.columns if name not in old.columns)]]
    lost = len(old) - len(old[keys].merge(whole[keys].drop_duplicates(), on=keys))
    notes.append(f"{len(whole) - len(old) + lost:,} rows were added to {len(old):,}; rows lost: {lost:,}.")
    return whole, notes


def report_path(out: Path) -> Path:
    """The report of the scan that wrote a cohort.yaml."""
    return out.with_name(f"{out.stem}-scan.json")


def is_of_scan(table: Path, out: Path) -> bool:
    """Whether the report of a scan names this table as its own."""
    try:
        last = json.loads(report_path(out).read_text(encoding="utf-8"))
        return Path(last["table"]).name == table.name
    except (OSError, ValueError, KeyError, TypeError):
        return False


def open_key(stated: str | Path | None, out: Path, before: Cohort | None, made_as: Mapping[str, str]) -> Key:
    """The key; where rows are added that of the last scan, which must have named patients and images as this one does.

    Raises:
        UsageError: of an update: no report of the last scan, another key or none, or other names of patients or images.
            Every patient and image would come a second time.
    """
    if before is None:
        return Key.open(Path(stated) if stated is not None else default_key(out), out)
    report = report_path(out)
    try:
        last = json.loads(report.read_text(encoding="utf-8"))
        path = Path(stated if stated is not None else last["key"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--update: expected {report.name} of the last scan beside {out.name}, which says how it named patients; "
            "found none: scan again with --force"
        ) from error
    for option, now in made_as.items():
        if last.get(option, now) != now:
            ways = {"paths": "--paths", "ids": "--keep-ids"}
            raise UsageError(
                f"--update: the last scan wrote {option} as {last[option]}, this one would write them as {now}: say "
                f"{ways[option]} as then"
            )
    if not path.expanduser().is_file():
        raise UsageError("--update: the key of the last scan is not there; with a new one every patient would be two")
    key = Key.open(path, out)
    if last.get("fingerprint", key.fingerprint) != key.fingerprint:
        raise UsageError("--update: expected the key of the last scan, found another one: every patient would be two")
    return key
