"""The sides of the split: who is on which, sides with too few patients to judge by, and another seed or a column."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from bolus.data.checks.report import Finding, Severity
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.split import split_patients
from bolus.data.text.identifiers import identifier_text

SIDES = ("train", "val", "test")
FEWEST = 2  # patients of a side: an interval is drawn over patients, and of one there is none
SEEDS = 100  # that are tried, from 0
HASHES = 1_000_000  # that are made at most while seeds are tried

Record = dict[str, Any]


def count_sides(cohort: Cohort) -> list[Record]:
    """One record a side, `all` last: rows, patients, and with_two_visits where visit or time is known.

    >>> from bolus.data.cohort.spec import CohortSpec
    >>> frame = pd.DataFrame({"image": list("abc"), "patient": list("ppq"), "split": ["train", "train", "test"]})
    >>> count_sides(Cohort(frame, CohortSpec(table="t.csv")))[0]
    {'side': 'train', 'rows': 2, 'patients': 1}
    """
    frame = pd.DataFrame({"side": cohort.split, "patient": cohort.encoded("patient")})
    follow_up = next((role for role in ("visit", "time") if role in cohort.roles), None)
    if follow_up is not None:
        when = pd.Series(cohort.encoded(follow_up)).groupby(frame["patient"])
        twice = when.nunique() > 1 if follow_up == "visit" else when.max() - when.min() >= 1  # times of a day are one
        frame["twice"] = frame["patient"].map(twice)
    records = []
    for side in (*SIDES, "all"):
        part = frame if side == "all" else frame[frame["side"] == side]
        record: Record = {"side": side, "rows": len(part), "patients": int(part["patient"].nunique())}
        if follow_up is not None:
            record["with_two_visits"] = int(part.loc[part["twice"], "patient"].nunique())
        records.append(record)
    return records


def look_at_sides(cohort: Cohort, records: list[Record]) -> list[Finding]:
    """Sides without a patient, sides of a hash that are too small, and what a site left out entails.

    A hash gives a side the share of the patients that was asked for only on the average. It is too small with fewer
    than half of that many patients, and with fewer than two.

    Args:
        cohort: whose split.
        records: of `count_sides`.

    Returns:
        Findings `empty_side`, `small_side`, `site_left_out` and `site_unknown`.

    Example:
        >>> from bolus.data.cohort.spec import CohortSpec
        >>> names = [f"p{number}" for number in range(12)]
        >>> cohort = Cohort(pd.DataFrame({"image": names, "patient": names}), CohortSpec(table="t.csv"))
        >>> [found.message.partition("; ")[2] for found in look_at_sides(cohort, count_sides(cohort))]
        ['add --split seed=25: 8 in train, 2 in val, 2 in test']
    """
    counts = {each["side"]: int(each["patients"]) for each in records if each["side"] in SIDES}
    spec = cohort.spec.split
    if "split" not in cohort.roles and spec.leave_out_site is None:
        return _small_sides(cohort, counts)
    found = []
    for side in SIDES:
        if not counts[side] and (side == "train" or "split" in cohort.roles or getattr(spec, side) > 0):
            severity: Severity = "error" if side == "train" else "warning"
            found.append(Finding(severity, "empty_side", f"no patient in {side}"))
    return found + _left_out_site(cohort)


def _small_sides(cohort: Cohort, counts: dict[str, int]) -> list[Finding]:
    """Sides of a hash that have fewer patients than `_least`, in one finding with the way out."""
    spec, number = cohort.spec.split, cohort.num_patients
    shares = {"train": 1 - spec.val - spec.test, "val": spec.val, "test": spec.test}
    least = {side: _least(share, number) for side, share in shares.items()}
    small = [side for side in SIDES if counts[side] < least[side]]
    if not small:
        return []
    have = [f"{side} ({counts[side] or 'none'}, {100 * shares[side]:.3g}% asked for)" for side in small]
    which = " and ".join(filter(None, (", ".join(have[:-1]), have[-1])))
    of_all = f"of {number} patient{'' if number == 1 else 's'}"
    message = f"{of_all} too few are in {which}; {_way_out(cohort, shares, least)}"
    if all(counts[side] for side in small):
        return [Finding("warning", "small_side", message)]
    return [Finding("warning" if counts["train"] else "error", "empty_side", message)]


def _least(share: float, number: int) -> int:
    """Patients with which a side is not too small: half of what its share asks for, two at the least; 0 of no share.

    >>> _least(0.1, 20), _least(0.1, 200), _least(0, 200)
    (2, 10, 0)
    """
    return max(FEWEST, math.ceil(share * number / 2 - 1e-9)) if share > 0 else 0


def _way_out(cohort: Cohort, shares: dict[str, float], least: dict[str, int]) -> str:
    """Of the seeds with which no side is too small the one that comes closest to the shares; else a column."""
    spec, patients = cohort.spec.split, cohort.patients.drop_duplicates()
    best, closest, shown = -1, np.inf, ""
    for seed in range(min(SEEDS, max(1, HASHES // len(patients)))):
        sides = split_patients(patients, seed=seed, val=spec.val, test=spec.test)
        counts = {side: int((sides == side).sum()) for side in SIDES}
        apart = sum(abs(counts[side] - shares[side] * len(patients)) for side in SIDES)
        if apart < closest - 1e-9 and all(counts[side] >= least[side] for side in SIDES):
            best, closest = seed, apart
            shown = ", ".join(f"{counts[side]} in {side}" for side in SIDES if least[side])
    if best < 0:
        return "write train, val or test for each patient into a column, and add --role split=COLUMN"
    return f"add --split seed={best}: {shown}"


def _left_out_site(cohort: Cohort) -> list[Finding]:
    """Who is in the test because one site is left out, and what of it a person may not expect."""
    site = cohort.spec.split.leave_out_site
    if site is None:
        return []
    sites = cohort.values("site").to_numpy(dtype=object)
    patients, test = cohort.encoded("patient"), cohort.split == "test"
    known = ~pd.isna(sites)
    there, elsewhere = test & (sites == identifier_text(site)), test & known & (sites != identifier_text(site))
    message = f"site {site!r} is left out of training: {len(np.unique(patients[test]))} patients are the test"
    if elsewhere.any():
        message += (
            f"; {len(np.unique(patients[elsewhere]))} of them have {elsewhere.sum()} rows at other sites, which are in "
            f"the test as well, beside {there.sum()} rows at {site!r}"
        )
    found = [Finding("note", "site_left_out", message, tuple((np.flatnonzero(elsewhere) + 1).tolist()))]
    unknown = np.setdiff1d(patients[~known], patients[known])
    if len(unknown):
        rows = np.flatnonzero(np.isin(patients, unknown))
        message = f"{len(unknown)} patients have no site at all and are not in the test, though they may be of {site!r}"
        found.append(Finding("warning", "site_unknown", message, tuple((rows + 1).tolist())))
    return found
