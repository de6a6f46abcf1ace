"""Images of one series: slices in order, frames of one file, or single images that only share a number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bolus.scanning.dicom.stacks import FEWEST, SMALL, numbers_of, stack
from bolus.scanning.files import LeftOut

TOMOGRAPHIC = frozenset({"CT", "MR", "PT"})  # whose files are slices, or several of them
_WHOLE = ("date", "modality", "laterality", "region", "phase", "sex", "age", "scanner", "site")  # one value a series


def order_series(
    rows: pd.DataFrame, facts: pd.DataFrame, left_out: LeftOut
) -> tuple[pd.DataFrame, pd.Series[Any], list[str]]:
    """The facts with series, order and frames, of images that are worth training on.

    Args:
        rows: fields of headers.
        facts: of the same rows.
        left_out: takes localizers, series of a few slices, and those without an order.

    Returns:
        The facts, where `series` and `order` are missing of single images, and `frames` is the number in the file; of
        each row `still`, `slice` or `clip`; and sentences.
    """
    made, notes = facts.copy(), list[str]()
    frames = pd.to_numeric(rows["frames"], errors="coerce").fillna(1).clip(lower=1).to_numpy(np.int64)
    modality = rows["modality"].fillna("").str.upper()
    several = frames > 1
    sliced = modality.isin(TOMOGRAPHIC).to_numpy() | (several & (modality == "OPT").to_numpy())
    sliced |= several & rows["image_type"].fillna("").str.contains("TOMO", case=False).to_numpy(bool)
    kinds = pd.Series(np.where(sliced, "slice", np.where(several, "clip", "still")), index=made.index, dtype=object)
    series, order, reasons = (np.full(len(made), None, dtype=object) for _ in range(3))
    reasons[sliced & several & (frames < FEWEST)] = SMALL
    places, directions = numbers_of(rows["place"], 3), numbers_of(rows["orientation"], 6)
    single = np.flatnonzero(sliced & ~several)
    by_number = torn_apart = 0
    groups = rows.iloc[single].groupby(["patient", "series"], sort=False, dropna=False)
    few = (groups["image"].transform("size") < FEWEST).to_numpy()
    reasons[single[few]] = SMALL
    for inside in groups.indices.values():
        if few[inside[0]]:
            continue
        here = single[inside]
        found = stack(rows.iloc[here], places[here], directions[here])
        if found.reason:
            reasons[here] = found.reason
            continue
        name, apart = str(rows["series"].iloc[here[0]] or made["image"].iloc[here[0]]), bool(found.part.any())
        order[here] = found.order
        series[here] = [f"{name}/{part}" if apart else name for part in found.part.tolist()]
        by_number += not found.by_position
        torn_apart += apart
    made = made.assign(frames=frames, series=series, order=pd.to_numeric(pd.Series(order, index=made.index)))
    made.loc[sliced, "view_position"] = None
    for reason in sorted(set(reasons) - {None}):
        left_out[reason] += [Path(path) for path in made.loc[reasons == reason, "image"]]
    kept = reasons == None  # noqa: E711 - of each element
    made, kinds = made[kept].reset_index(drop=True), kinds[kept].reset_index(drop=True)
    if by_number:
        notes.append(
            f"order: of {by_number:,} series by InstanceNumber, since positions are missing or not of one stack."
        )
    if torn_apart:
        notes.append(
            f"series: {torn_apart:,} hold several volumes (times, echoes or acquisitions), each a series here."
        )
    if mixed := _agree(made):
        notes.append(f"{mixed:,} series disagree with themselves on a fact such as the region; it is missing there.")
    return made, kinds, notes


def _agree(made: pd.DataFrame) -> int:
    """Give the slices of a series one value of each fact, in place; how many series had several, missing from now on.

    Of dates, ages and modalities the first one stands.
    """
    there = made["series"].notna()
    if not there.any():
        return 0
    codes = made[there].groupby(["patient", "series"], sort=False).ngroup()
    odd = set[int]()
    for name in _WHOLE:
        groups = made.loc[there, name].groupby(codes)
        number, filled = groups.transform("nunique"), groups.transform("count")
        size = groups.transform("size")
        if not ((number > 1) | ((filled < size) & (number == 1))).any():
            continue
        if name in ("date", "age", "modality"):
            made.loc[there, name] = groups.transform("min")
        else:
            made.loc[there, name] = groups.transform("first").where(number == 1, None)
            odd |= set(codes[number > 1]) if name != "phase" else set()
    return len(odd)
