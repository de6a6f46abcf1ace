"""What a part of many paths looks like: sides, dates, visits, modalities, sides of a split, identifiers or words."""

from __future__ import annotations

import re
from collections.abc import Collection

import pandas as pd

from bolus.data.cohort.split import SIDES as SPLIT_SIDES
from bolus.data.pixels.range_rules import RULES
from bolus.data.text.laterality import NAMES
from bolus.scanning.days import to_dates

MODALITIES = frozenset(
    (*("cr", "dx", "mg", "us", "ct", "mr", "mri", "pt", "pet", "nm", "xa", "rf", "op", "opt", "oct", "cfp", "fundus"),
     *("faf", "slo", "xray", "cxr", "t1", "t2", "t1c", "t1ce", "t1gd", "pd", "adc", "swi"),
     *(name.lower() for name in RULES))
)  # fmt: skip
POSITIONS = frozenset({"ap", "pa", "cc", "mlo", "lat", "ll", "rl"})
_SITE = re.compile(r"(?:site|center|centre|hospital|clinic)[-_ ]?[a-z0-9]+")
_VISIT = re.compile(
    r"(?:v|visit|ses|session|fu|follow-?up|tp|timepoint|month|m|week|w|day|d)[-_]?\d{1,4}|baseline|bl|screening"
    r"|follow-?up|initial|pre|post|\d{1,4}[-_ ]?(?:mo|months?|weeks?|days?|years?)"
)
_BATCH = re.compile(r"(?:images?|batch|part|set|subset|fold|dis[ck]|vol|chunk|shard)[-_ ]?\d+")
_YEAR = re.compile(r"(?:19|2[01])\d\d(?:[-_.](?:0[1-9]|1[0-2]))?|2200")  # or a month of one
_DIGIT = re.compile(r"\d")
IDENTIFIERS = 0.95  # of the names of a part that have a digit, where they are identifiers


def looks_like(names: Collection[str]) -> str:
    """The role that the different names of a part suggest, or `identifier`, `batch`, `word` or `constant`.

    A role is split, laterality, date, visit, modality, view_position or site. Identifiers have digits, words have not
    or not all of them; batches are numbered, or are years, and hold many patients; one name that suggests nothing is
    constant.

    >>> looks_like({"OD", "OS"}), looks_like({"V1", "baseline"}), looks_like({"p01", "p02"}), looks_like({"a", "b"})
    ('laterality', 'visit', 'identifier', 'word')
    >>> looks_like({"20240105", "20240212"}), looks_like({"00000181", "00000182"}), looks_like({"images"})
    ('date', 'identifier', 'constant')
    >>> looks_like({"images_001", "images_002"}), looks_like({"2019", "2020"}), looks_like({"1001", "1002"})
    ('batch', 'batch', 'identifier')
    """
    low = {name.lower() for name in names}
    if low <= set(SPLIT_SIDES) and len(low) > 1:
        return "split"
    if low <= set(NAMES) and any(NAMES[name] >= 0 for name in low):
        return "laterality"
    if all(_VISIT.fullmatch(name) for name in low):
        return "visit"
    if low <= MODALITIES:
        return "modality"
    if low <= POSITIONS:
        return "view_position"
    if all(_SITE.fullmatch(name) for name in low):
        return "site"
    if len(low) == 1:
        return "constant"
    if all(map(_BATCH.fullmatch, low)) or all(map(_YEAR.fullmatch, low)):
        return "batch"
    if all(len(name) >= 8 for name in low):
        dates, bad, _ = to_dates(pd.Series(sorted(low), dtype="str"))
        if not bad.any() and dates.notna().all():
            return "date"
    digits = sum(_DIGIT.search(name) is not None for name in low)
    return "identifier" if digits >= IDENTIFIERS * len(low) else "word"
