"""What stands on the two sides of a retrieval: images of two eyes, two modalities, two visits of the same participants.

Beside the role that differs, everything else that structures a participant is the same in both images of a pair, so
that a pair is two views of one thing. The other partners that are searched need not share it, so that an embedding may
find a pair by that alone: see what `bolus.evaluation.retrieval.retrieve` notes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bolus.data.cohort.cohort import Cohort, Samples
from bolus.data.cohort.roles import CATEGORIES
from bolus.errors import EvaluationError, suggest
from bolus.evaluation.statistics.metrics import IntArray

TIMED = ("visit", "time")
STRUCTURE = ("modality", "laterality", "region", "view_position", "phase")
"""Roles that both images of a pair share, beside visit or time."""

NO_SIDES = ("patient", "series", "split")
DAY = 1.0  # times less than this apart are of one visit, since clocks run while images are taken


@dataclass(frozen=True, eq=False)
class Sides:
    """Two groups of test samples of which one is searched with the other.

    Args:
        names: of the two sides, such as `left` and `right`.
        pairs: int64 `[N, 2]` positions of samples, one pair a participant, in the order of the participants' codes.
        members: int64 positions of all test samples of either side, ascending.
    """

    names: tuple[str, str]
    pairs: IntArray
    members: tuple[IntArray, IntArray]


def find_sides(samples: Samples, positions: IntArray, across: str, *, seed: int = 0) -> tuple[list[Sides], list[str]]:
    """The sides of a retrieval across a role, and one pair of each test participant that has any.

    A side is a value of the role, and every two values that two participants or more have a pair of are searched; what
    has no value is on no side. Of visit and time the sides are `earlier` and `later`: a pair is any two different times
    of a participant, and the members are the images of a participant's first time and those of all later ones.

    Both images of a pair agree in the roles of `shared_roles`; what is missing counts as a value of its own. Only where
    the modalities differ may one image lack a laterality, region, view position or phase that the other has, since not
    every modality knows them (a carotid artery is of no eye).

    Args:
        samples: images or clips of a cohort.
        positions: int64 `[n]`, the samples that may be used; those of training and validation patients are not.
        across: the role that differs: a category such as modality, laterality, view_position, phase or site, an
            attribute of categories, or visit or time.
        seed: of the choice of a pair, which for one participant depends on its own samples and code only.

    Returns:
        Sides, whose positions count within `positions`, and what was left out, in sentences.

    Raises:
        EvaluationError: no such role, one that gives no sides, or fewer than two test participants with a pair; it
            names the values found.

    Example:
        >>> import pandas as pd
        >>> from bolus.data.cohort.spec import CohortSpec
        >>> columns = {"image": list("abcde"), "patient": list("ppqqr"), "eye": list("LRLRL"), "split": ["test"] * 5}
        >>> samples = Cohort(pd.DataFrame(columns), CohortSpec(table="t.csv")).samples("image")
        >>> (sides,), _ = find_sides(samples, np.arange(5), "laterality")
        >>> sides.names, sides.pairs.tolist(), [members.tolist() for members in sides.members]
        (('left', 'right'), [[0, 1], [2, 3]], [[0, 2, 4], [1, 3]])
    """
    cohort = samples.cohort
    _check_role(cohort, across)
    rows = samples.first_row[positions]
    test = np.flatnonzero(cohort.split[rows] == "test").astype(np.int64)
    patients, values = cohort.encoded("patient")[rows], cohort.encoded(across)[rows]
    alike = _agreement(cohort, rows, across)
    if across in TIMED:
        timed = test[np.isfinite(values[test])]
        pairs = _choose(patients, timed, timed, _later(values, alike, DAY if across == "time" else 0.0), seed)
        if len(pairs) < 2:
            several = sum(len(np.unique(values[timed][patients[timed] == each])) > 1 for each in set(patients[timed]))
            raise EvaluationError(
                f"retrieval across {across}: expected 2 test patients or more with images of two times"
                f"{_same(cohort, across)}, found {len(pairs)}; of {len(set(patients[test]))} test patients "
                f"{several} have several values of {across}"
            )
        start = np.full(int(patients.max(initial=0)) + 1, np.inf)
        np.minimum.at(start, patients[timed], values[timed])
        first = values[timed] - start[patients[timed]] < (DAY if across == "time" else np.finfo(float).tiny)
        missing = len(test) - len(timed)
        notes = [f"{missing} test images have no {across} and are on neither side"] if missing else []
        return [Sides(("earlier", "later"), pairs, (timed[first], timed[~first]))], notes
    names = _names(cohort, across)
    members = {code: test[values[test] == code] for code in range(len(names)) if (values[test] == code).any()}
    found, notes, most = [], list[str](), 0
    for one, other in combinations(members, 2):
        pairs = _choose(patients, members[one], members[other], alike, seed)
        most = max(most, len(pairs))
        if len(pairs) < 2:
            notes.append(f"{names[one]} and {names[other]}: {len(pairs)} test patients have a pair, left out")
        else:
            found.append(Sides((names[one], names[other]), pairs, (members[one], members[other])))
    if not found:
        counted = ", ".join(f"{names[code]} ({len(set(patients[at]))} test patients)" for code, at in members.items())
        raise EvaluationError(
            f"retrieval across {across}: expected 2 test patients or more with images of two values"
            f"{_same(cohort, across)}, found {most}; "
            f"values found: {counted or 'none'}"
        )
    missing = int((values[test] == -1).sum())
    notes += [f"{missing} test images have no {across} and are on neither side"] if missing else []
    return found, notes


def shared_roles(cohort: Cohort, across: str) -> list[str]:
    """Roles in which both images of a pair agree: those of STRUCTURE that the cohort has, and visit, or else time.

    Visit and time are free where one of them differs, and across sites or attributes (of a scanner, say): nobody is at
    two sites in one visit.
    """
    free = across in ("site", *TIMED) or across.startswith("attribute:")
    timed = [] if free else [role for role in TIMED if role in cohort.roles][:1]
    return [role for role in (*STRUCTURE, *timed) if role in cohort.roles and role != across]


Alike = Callable[[IntArray, IntArray], NDArray[np.bool_]]
"""Positions `[a]` and `[b]` of samples -> bool `[a, b]`, whether each two may be a pair."""


def _agreement(cohort: Cohort, rows: IntArray, across: str) -> Alike:
    """Whether samples agree in all of `shared_roles`."""
    columns: Mapping[str, NDArray[Any]] = {role: cohort.encoded(role)[rows] for role in shared_roles(cohort, across)}

    def alike(one: IntArray, other: IntArray) -> NDArray[np.bool_]:
        agree = np.ones((len(one), len(other)), dtype=bool)
        for role, values in columns.items():
            a, b = values[one][:, None], values[other][None, :]
            absent_a, absent_b = (np.isnan(each) if each.dtype.kind == "f" else each == -1 for each in (a, b))
            if role == "time":
                same = np.abs(a - b) < DAY
            else:
                same = a == b
            lenient = across == "modality" and role in STRUCTURE
            agree &= same | ((absent_a | absent_b) if lenient else (absent_a & absent_b))
        return agree

    return alike


def _later(values: NDArray[Any], alike: Alike, gap: float) -> Alike:
    """Samples that agree, the second later by more than nothing and by at least `gap`."""

    def later(one: IntArray, other: IntArray) -> NDArray[np.bool_]:
        apart = values[other][None, :] - values[one][:, None]
        return np.asarray((apart > 0) & (apart >= gap) & alike(one, other))

    return later


def _choose(patients: IntArray, one: IntArray, other: IntArray, alike: Alike, seed: int) -> IntArray:
    """A pair of each patient who has any, drawn among all of them, int64 `[N, 2]`."""
    grouped = [_by_patient(patients, side) for side in (one, other)]
    chosen = []
    for patient in sorted(set(grouped[0]) & set(grouped[1])):
        a, b = (side[patient] for side in grouped)
        possible = np.flatnonzero(alike(a, b))
        if len(possible):
            drawn = possible[np.random.default_rng([seed, patient]).integers(len(possible))]
            chosen.append((a[drawn // len(b)], b[drawn % len(b)]))
    return np.array(chosen, dtype=np.int64).reshape(-1, 2)


def _by_patient(patients: IntArray, positions: IntArray) -> dict[int, IntArray]:
    """Patient code -> its positions, in their order."""
    ordered = positions[np.argsort(patients[positions], kind="stable")]
    parts = np.split(ordered, np.flatnonzero(np.diff(patients[ordered])) + 1) if len(ordered) else []
    return {int(patients[part[0]]): part for part in parts}


def _check_role(cohort: Cohort, across: str) -> None:
    """Raise where the role is absent or gives no sides."""
    if across not in cohort.roles:
        raise EvaluationError(f"retrieval across {across}: no column has this role; {suggest(across, cohort.roles)}")
    kind = "attribute" if across.startswith("attribute:") else across
    categories = (*(role for role in CATEGORIES if role not in NO_SIDES), "attribute")
    if across not in TIMED and (kind not in categories or cohort.encoded(across).dtype.kind == "f"):
        found = "numbers" if cohort.encoded(across).dtype.kind == "f" else "another kind of values"
        raise EvaluationError(
            f"retrieval across {across}: expected a role whose values are sides, such as modality, laterality, visit "
            f"or time; this one holds {found}"
        )


def _names(cohort: Cohort, role: str) -> list[str]:
    """The values of a role of categories, in the order of its codes."""
    codes, values = cohort.encoded(role), cohort.values(role).astype("string").to_numpy(dtype=object)
    known, first = np.unique(codes, return_index=True)
    return [str(values[at]) for code, at in zip(known, first, strict=True) if code >= 0]


def _same(cohort: Cohort, across: str) -> str:
    shared = shared_roles(cohort, across)
    return f" of one {' and '.join(shared)}" if shared else ""
