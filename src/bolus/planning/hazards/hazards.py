"""Columns that must not be learnt, or not without care: leaks of the split, shortcuts, identifiers, copies.

Only the table is read. What can be said of a column by its values alone is said of the training samples, as they are
what is learnt; how columns hang together is asked of patients, each of whom counts once, and in large tables of some.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bolus.data.batches.columns import TrainingColumns
from bolus.data.checks.doubtful import doubtful_values
from bolus.data.cohort.cohort import Samples
from bolus.data.cohort.roles import NUMBERS
from bolus.data.cohort.split import SPLIT
from bolus.data.text.spelling import missing_option
from bolus.planning.hazards.alone import nothing_to_learn
from bolus.planning.hazards.association import (
    CHANCE,
    ENOUGH,
    STRONG,
    IntArray,
    associate,
    on_both_sides,
    one_of_each,
    separate,
)
from bolus.planning.hazards.copies import find_copies
from bolus.planning.hazards.hazard import Hazard
from bolus.planning.hazards.shortcuts import find_followers, find_shortcut
from bolus.planning.hazards.supervision import Column, read_columns, says_how_made

WORDS = {"train": "training", "val": "validation", "test": "test"}
LOOKED = 2**19
"""Samples of patients drawn at random by which it is told how columns hang together, where there are more."""


def some_patients(samples: Samples) -> Samples:
    """The samples that `find_hazards` looks at: all, or of more than `LOOKED` about so many, of some patients all.

    Who is drawn is random, but always the same.
    """
    if len(samples) <= LOOKED:
        return samples
    patients = samples.first_of(samples.cohort.coded("patient").codes)
    drawn = np.random.default_rng(0).random(int(patients.max()) + 1) < LOOKED / len(samples)
    return samples.take(np.flatnonzero(drawn[patients]))


def find_hazards(samples: Samples, looked: Samples | None = None) -> list[Hazard]:
    """The hazards of learning each column, in the order of the roles; none where no patient is in training.

    With fewer than `ENOUGH` patients, leaks, copies and shortcuts by value are not looked for. Where a site is left out
    for the test, only validation is held against training: the test is meant to be another place.

    Args:
        samples: in the unit of the recipe.
        looked: those of `some_patients`; None: all. Copies, shortcuts and leaks are told by them alone.

    Example:
        >>> import pandas as pd
        >>> from bolus.data.cohort.cohort import Cohort
        >>> from bolus.data.cohort.spec import CohortSpec
        >>> columns = {"image": list("abcd"), "patient": list("pqrs"), "sex": ["F", "M", "F", "M"], "site": ["x"] * 4}
        >>> frame = pd.DataFrame({**columns, "split": ["train"] * 3 + ["test"]})
        >>> [(found.role, found.kind) for found in find_hazards(Cohort(frame, CohortSpec(table="t")).samples("image"))]
        [('site', 'constant')]
    """
    cohort, looked = samples.cohort, samples if looked is None else looked
    taught = TrainingColumns(samples)
    if not taught.taught.any():
        return []
    patients = pd.factorize(looked.first_of(cohort.coded("patient").codes))[0].astype(np.int64)
    side = np.empty(int(patients.max()) + 1, np.int8)
    side[patients] = looked.first_of(cohort.split_codes)
    enough = len(side) >= ENOUGH
    drawn = one_of_each(patients)
    pairs = _pairs(side, left_out=cohort.spec.split.leave_out_site is not None) if enough else []
    found, sound = [], []
    for column in read_columns(looked, patients):
        alone = nothing_to_learn(column, taught)
        teaches = column.role not in NUMBERS
        leaks = _leaks(column, pairs) if teaches and (alone is None or alone.kind == "constant") else []
        found += leaks
        if alone is None and teaches:
            sound.append(column)
        elif alone is not None and not leaks and column.role != "modality":
            found.append(alone)
    for column in sound:
        found += find_shortcut(column, sound if enough else (), drawn)
    if enough:
        made = [column for column in sound if says_how_made(column.role)]
        found += [hazard for column in sound for hazard in find_followers(column, made, looked)]
    refused = {hazard.role for hazard in found if hazard.refuses}
    learnable = [column for column in sound if column.role not in refused]
    found += [hazard for column in learnable for hazard in _doubtful(column.role, taught)]
    for column, kept, same in find_copies(learnable, drawn if enough else None):
        found.append(Hazard(column.role, "copy", _copied(column, kept, same), False))
    order = list(cohort.roles)
    return sorted(found, key=lambda hazard: order.index(hazard.role))


def _pairs(side: NDArray[np.int8], *, left_out: bool) -> list[tuple[str, str, IntArray]]:
    """Two sides of the split, and int64 `[patients]`: 0 on the first, 1 on the second, -1 on neither."""
    sides = ("train", "val") if left_out else ("train", "test", "val")
    is_on = {name: side == SPLIT.index(name) for name in sides}
    codes = ((a, b, np.where(is_on[a], 0, np.where(is_on[b], 1, -1))) for a, b in combinations(sides, 2))
    return [(a, b, each) for a, b, each in codes if on_both_sides(each)]


def _leaks(column: Column, pairs: Sequence[tuple[str, str, IntArray]]) -> list[Hazard]:
    """Whether the values, or whether there is one at all, tell on which side of the split a patient is."""
    role, refuses, known = column.role, column.role != "modality", column.patient_known
    if column.exclusive:
        categories = {} if column.patient_codes is None else {role: column.patient_codes}
    else:
        categories = {name: answer.patient_codes for name, answer in column.answers.items()}
    for first, second, side in pairs:
        here, told = np.where(known, side, -1), []
        if not on_both_sides(here):
            continue
        sides = f"{WORDS[first]} from {WORDS[second]} patients"
        for name, codes in categories.items():
            found = associate(codes, here)
            told.append((found.cramers_v, found.p, f"{name} tells {sides} (Cramer's V {found.cramers_v:.2f})"))
        if column.patient_numbers is not None:
            area, p = separate(column.patient_numbers, here)
            told.append((abs(2 * area - 1), p, f"{role} tells {sides} (AUROC {max(area, 1 - area):.2f})"))
        told = [each for each in told if each[0] >= STRONG and each[1] < CHANCE]
        if told:
            why = "it leaks the split, and what is learnt from it is not medicine"
            return [Hazard(role, "leak", f"{max(told)[2]}: {why}", refuses)]
    for first, second, side in pairs:
        found = associate(known.astype(np.int64), side)
        if found.cramers_v >= STRONG and found.p < CHANCE:
            shares = [f"{known[side == code].mean():.0%} of the {WORDS[of]}" for code, of in enumerate((first, second))]
            sentence = f"{role} is known for {' and '.join(shares)} patients (Cramer's V {found.cramers_v:.2f})"
            why = (
                "whether there is a value leaks the split, and what is learnt from the values can hardly be judged here"
            )
            return [Hazard(role, "leak", f"{sentence}: {why}", False)]
    return []


def _doubtful(role: str, taught: TrainingColumns) -> list[Hazard]:
    """Values that are taken like any other and may mean missing."""
    cohort, values = taught.cohort, doubtful_values(taught.cohort, role)
    if not values:
        return []
    here = np.zeros(len(cohort), np.bool_)
    here[taught.rows] = True
    counts = {value: int(here[rows].sum()) for value, rows in values.items()}
    counts = {value: number for value, number in counts.items() if number}
    if not counts:
        return []
    texts = ", ".join(f"{value!r} ({number} training sample{'s' * (number > 1)})" for value, number in counts.items())
    option = missing_option(cohort.roles[role], *counts)
    sentence = f"{role} takes {texts} for a value like any other: if it means missing, add {option}"
    return [Hazard(role, "doubtful", sentence, False)]


def _copied(column: Column, kept: Column, same: str) -> str:
    """The sentence on a copy; without `same` it is the same column of the table."""
    how = f"{column.role} holds the same as {kept.role} ({same})"
    if not same:
        how = f"{column.role} and {kept.role} are one column of the table under two roles"
    return f"{how}: learn one of them; {kept.role} is kept"
