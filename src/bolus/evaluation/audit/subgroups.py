"""Groups of patients by what the table says of them: sex, age band, site, scanner, or any other role."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from bolus.data.cohort.cohort import Cohort
from bolus.errors import EvaluationError, UsageError, suggest
from bolus.evaluation.statistics.bootstrap import cluster_codes
from bolus.evaluation.statistics.verdict import ENOUGH_PATIENTS, too_few
from bolus.evaluation.statistics.weighting import AnyArray, FloatArray, IntArray

AUDITED = (
    "attribute:sex",
    "attribute:age",
    "score:age",
    "site",
    "attribute:scanner",
    "modality",
    "view_position",
    "laterality",
)
"""Roles that an audit looks at where nobody says which."""

AGE_BANDS = (40.0, 60.0, 75.0)
"""Inner edges of age bands, in years."""

FEW_VALUES = 5
"""A number with at most so many different values is taken as categories, each value a group."""

FEWEST = 5
"""Test patients below which a group is left out: an interval over fewer says nothing."""

NOT_GROUPS = ("image", "mask", "patient", "series", "split")
"""Roles that name files and people, or the audit's own sides."""

_NAMED_AT_MOST = 10  # of the groups left out


@dataclass(frozen=True)
class Grouping:
    """The groups of one attribute over some samples.

    Args:
        name: of the attribute, as it is shown: `sex` for `attribute:sex`.
        codes: int64 `[n]`, the group of each sample, -1 where it is not known.
        names: of the codes 0..K-1, in the order in which they are shown.
        values: float64 `[n]`, NaN missing, where the groups are bands of a number; else None.
        notes: what a reader must know of the groups, in sentences.
    """

    name: str
    codes: IntArray
    names: tuple[str, ...]
    values: FloatArray | None = None
    notes: tuple[str, ...] = field(default=())

    @classmethod
    def of_labels(cls, name: str, labels: ArrayLike) -> Grouping:
        """Groups of equal labels, sorted; None, NaN and the empty string are missing.

        >>> found = Grouping.of_labels("sex", ["F", "M", None, "F"])
        >>> found.codes.tolist(), found.names
        ([0, 1, -1, 0], ('F', 'M'))
        """
        series = pd.Series(np.asarray(labels, dtype=object))
        codes, names = pd.factorize(series.mask(series.isna() | (series.astype(str) == "")).astype("string"), sort=True)
        return cls(name, codes.astype(np.int64), tuple(map(str, names)))

    def take(self, rows: NDArray[np.int64]) -> Grouping:
        """The groups of these samples."""
        return replace(self, codes=self.codes[rows], values=None if self.values is None else self.values[rows])


@dataclass(frozen=True)
class Part:
    """One group, or all samples: its subset and name, its samples, and why it is too small for a finding, if it is."""

    subset: str
    name: str
    rows: IntArray
    few: str
    code: int = -1


def cut_bands(values: ArrayLike, edges: Sequence[float]) -> tuple[IntArray, tuple[str, ...]]:
    """The band of each number, and the names of the bands from the lowest.

    Args:
        values: `[n]` numbers in any unit; NaN is missing.
        edges: inner edges, ascending; a value on an edge is in the upper band.

    Returns:
        int64 `[n]` codes, -1 missing, and one name more than there are edges.

    Raises:
        UsageError: edges that are none, not ascending or not finite.

    >>> cut_bands([39.9, 40.0, 80.0, np.nan], (40, 75))
    (array([ 0,  1,  2, -1]), ('below 40', '40 to 75', '75 and above'))
    """
    cuts = np.asarray(edges, dtype=np.float64)
    if cuts.ndim != 1 or not len(cuts) or not np.isfinite(cuts).all() or (np.diff(cuts) <= 0).any():
        raise UsageError(f"bands: expected edges in ascending order, such as 40, 60, 75; found {list(edges)}")
    numbers = np.asarray(values, dtype=np.float64)
    codes = np.where(np.isnan(numbers), -1, np.searchsorted(cuts, numbers, side="right")).astype(np.int64)
    middle = [f"{low:g} to {high:g}" for low, high in pairwise(cuts)]
    return codes, (f"below {cuts[0]:g}", *middle, f"{cuts[-1]:g} and above")


def find_groupings(
    cohort: Cohort, by: Sequence[str] | None = None, *, age_bands: Sequence[float] | None = None
) -> tuple[list[Grouping], list[str]]:
    """The groups that an audit compares, over all rows of a cohort, and which roles were left out, in sentences.

    Categories are groups as they are, and so are numbers with at most `FEW_VALUES` different values. Other numbers are
    cut into bands: an age at `age_bands`, the rest at the quartiles of the training patients (a patient's mean over
    rows), rounded to three digits.

    Args:
        cohort: whose columns and split.
        by: roles, with or without their kind (`sex` for `attribute:sex`); None: those of `AUDITED` that the cohort has
            and that have two values among the test patients.
        age_bands: inner edges in years; None: `AGE_BANDS`, or quartiles where fewer than two of these bands have
            `ENOUGH_PATIENTS` test patients.

    Raises:
        EvaluationError: no such role, one with a single value among the test patients, or nothing to compare.
        UsageError: edges out of order, no role, or a role that names files or people.

    >>> from bolus.data.cohort.spec import CohortSpec
    >>> frame = pd.DataFrame({"image": ["a", "b"], "patient": ["p", "q"], "sex": ["F", "M"], "split": ["test", "test"]})
    >>> [found.name for found in find_groupings(Cohort(frame, CohortSpec(table="t.csv")))[0]]
    ['sex']
    """
    if age_bands is not None:
        cut_bands([], age_bands)
    if by is not None and not by:
        raise UsageError("an audit needs at least one role to compare groups by")
    names = [role for role in AUDITED if role in cohort.roles] if by is None else by
    roles = list(dict.fromkeys(_role_of(cohort, name) for name in names))
    short = [role.partition(":")[2] or role for role in roles]
    found, notes = [], []
    for role, name in zip(roles, short, strict=True):
        grouping = _grouping_of(cohort, role, name if short.count(name) == 1 else role, age_bands)
        held = np.unique(grouping.codes[(cohort.split == "test") & (grouping.codes >= 0)])
        if len(held) > 1:
            found.append(grouping)
        elif by is None:
            notes.append(f"{role} is left out: it has {len(held)} value(s) among the test patients")
        else:
            raise EvaluationError(f"{role}: groups need two values among the test patients, found {len(held)}")
    if not found:
        raise EvaluationError(
            f"nothing to compare groups by: none of the roles {', '.join(AUDITED)} has two values among the test "
            f"patients; name another with `by`. The cohort has {', '.join(cohort.roles)}"
        )
    return found, notes


def few_patients(y: AnyArray, clusters: IntArray, task: str, num_classes: int) -> str:
    """Why no difference on these samples counts as decided, or nothing."""
    if task == "regress" or num_classes > 2:
        return too_few(len(np.unique(clusters)), "test patients")
    counts = [len(np.unique(clusters[y == code])) for code in (1, 0)]
    return too_few(min(counts), f"{('positive', 'negative')[int(np.argmin(counts))]} test patients")


def parts_of(
    grouping: Grouping, y: AnyArray, clusters: IntArray, task: str, num_classes: int
) -> tuple[list[Part], list[str]]:
    """The groups that are large enough, each with its code, and what is to be said of the others."""
    known = grouping.codes >= 0
    notes = list(grouping.notes)
    if not known.all():
        num = len(np.unique(clusters[~known]))
        notes.append(f"{grouping.name} is missing in {(~known).sum()} test samples of {num} patients, in no group")
    pairs = np.unique(np.stack([clusters[known], grouping.codes[known]]), axis=1)
    several = int((np.unique(pairs[0], return_counts=True)[1] > 1).sum())
    if several:
        notes.append(f"{grouping.name}: {several} test patients have samples in more than one group")
    kept, lost = [], []
    for code, name in enumerate(grouping.names):
        rows = np.flatnonzero(grouping.codes == code)
        num = len(np.unique(clusters[rows]))
        if num >= FEWEST:
            few = few_patients(y[rows], clusters[rows], task, num_classes)
            kept.append(Part(f"{grouping.name}={name}", name, rows, few, code))
            if task == "classify" and len(np.unique(y[rows])) < 2:
                notes.append(f"{grouping.name}={name}: one class only, so most metrics are undefined")
        elif num:
            lost.append(f"{name} ({num})")
    if lost:
        more = f" and {len(lost) - _NAMED_AT_MOST} more" if len(lost) > _NAMED_AT_MOST else ""
        named = ", ".join(lost[:_NAMED_AT_MOST])
        notes.append(f"{grouping.name}: left out with fewer than {FEWEST} test patients: {named}{more}")
    return kept, notes


def _role_of(cohort: Cohort, name: str) -> str:
    """The cohort's role of this name, with or without its kind."""
    if name in NOT_GROUPS:
        raise UsageError(f"the values of {name} name files or people, or are the sides of the audit: no groups")
    candidates = (name, *(f"{kind}:{name}" for kind in ("attribute", "score", "label")))
    role = next((role for role in candidates if role in cohort.roles), None)
    if role is None:
        raise EvaluationError(f"no role {name!r} to compare groups by; {suggest(name, cohort.roles)}")
    return role


def _grouping_of(cohort: Cohort, role: str, name: str, age_bands: Sequence[float] | None) -> Grouping:
    """The groups of one role over all rows."""
    values = cohort.encoded(role)
    if values.dtype != np.float64:
        return Grouping.of_labels(name, cohort.values(role))
    different = np.unique(values[np.isfinite(values)])
    if len(different) <= FEW_VALUES:
        codes = np.where(np.isnan(values), -1, np.searchsorted(different, values)).astype(np.int64)
        return Grouping(name, codes, tuple(f"{value:g}" for value in different))
    patients, test = cluster_codes(cohort.encoded("patient")), cohort.split == "test"
    note = ""
    if name.rpartition(":")[2].lower() == "age":
        codes, names = cut_bands(values, AGE_BANDS if age_bands is None else age_bands)
        sizes = [len(np.unique(patients[test & (codes == code)])) for code in range(len(names))]
        if age_bands is not None or sum(size >= ENOUGH_PATIENTS for size in sizes) > 1:
            return Grouping(name, codes, names, values)
        note = f"fewer than two of the bands {', '.join(names)} have {ENOUGH_PATIENTS} test patients; "
    train = (cohort.split == "train") & np.isfinite(values)
    means = pd.Series(values[train]).groupby(patients[train]).mean()
    edges = sorted({float(f"{edge:.3g}") for edge in np.quantile(means, (0.25, 0.5, 0.75))}) if len(means) else []
    if not edges:
        raise EvaluationError(f"{role}: no training patient has a value to cut bands by")
    codes, names = cut_bands(values, edges)
    return Grouping(name, codes, names, values, (f"{name}: {note}the bands are quartiles of the training patients",))
