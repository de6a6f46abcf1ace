"""Columns that must not be learnt, or not without care: leaks of the split, shortcuts, identifiers, copies.

Only the table is read. What can be said of a column by its values alone is said of the training samples, as they are
what is learnt; how columns hang together is asked of patients, each of whom counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bolus.data.checks.doubtful import doubtful_values
from bolus.data.cohort.cohort import Samples
from bolus.data.cohort.roles import NUMBERS
from bolus.data.text.spelling import missing_option
from bolus.planning.hazards.association import (
    CHANCE,
    ENOUGH,
    MIN_KNOWN,
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
from bolus.planning.hazards.supervision import IDENTIFYING, Column, read_columns, says_how_made, words_of

WORDS = {"train": "training", "val": "validation", "test": "test"}


def find_hazards(samples: Samples) -> list[Hazard]:
    """The hazards of learning each column, in the order of the roles; none where no patient is in training.

    With fewer than `ENOUGH` patients, leaks, copies and shortcuts by value are not looked for. Where a site is left out
    for the test, only validation is held against training: the test is meant to be another place.

    Args:
        samples: in the unit of the recipe.

    Example:
        >>> import pandas as pd
        >>> from bolus.data.cohort.cohort import Cohort
        >>> from bolus.data.cohort.spec import CohortSpec
        >>> columns = {"image": list("abcd"), "patient": list("pqrs"), "sex": ["F", "M", "F", "M"], "site": ["x"] * 4}
        >>> frame = pd.DataFrame({**columns, "split": ["train"] * 3 + ["test"]})
        >>> [(found.role, found.kind) for found in find_hazards(Cohort(frame, CohortSpec(table="t")).samples("image"))]
        [('site', 'constant')]
    """
    cohort, first = samples.cohort, samples.first_row
    split = cohort.split[first]
    train = split == "train"
    if not train.any():
        return []
    patients = pd.factorize(cohort.encoded_at("patient", first))[0].astype(np.int64)
    side = np.empty(int(patients.max()) + 1, dtype=split.dtype)
    side[patients] = split
    enough = len(side) >= ENOUGH
    drawn = one_of_each(patients)
    pairs = _pairs(side, left_out=cohort.spec.split.leave_out_site is not None) if enough else []
    found, sound = [], []
    for column in read_columns(samples, patients):
        alone = _nothing_to_learn(column, patients, train)
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
        found += [hazard for column in sound for hazard in find_followers(column, made, samples)]
    refused = {hazard.role for hazard in found if hazard.refuses}
    learnable = [column for column in sound if column.role not in refused]
    found += [hazard for column in learnable for hazard in _doubtful(column.role, samples, train)]
    for column, kept, same in find_copies(learnable, drawn if enough else None):
        found.append(Hazard(column.role, "copy", _copied(column, kept, same), False))
    order = list(cohort.roles)
    return sorted(found, key=lambda hazard: order.index(hazard.role))


def _nothing_to_learn(column: Column, patients: IntArray, train: NDArray[np.bool_]) -> Hazard | None:
    """A column without a value, with one only, or with another for every sample or patient."""
    role, known = column.role, column.known & train
    num, values = int(known.sum()), column.codes if column.numbers is None else column.numbers
    assert values is not None
    if not num:
        return Hazard(role, "missing", f"{role} has no value in any of {train.sum()} training samples", True)
    taught = values[known]
    if (taught == taught[0]).all():
        sentence = f"{role} is the same in all {num} training samples that have it: there is nothing to tell apart"
        return Hazard(role, "constant", sentence, True)
    if column.numbers is not None:
        whole = bool((taught % 1 == 0).all())
        if not (role.startswith("attribute:") and whole and words_of(role) & IDENTIFYING):
            return None
    (codes, kinds), (who, people) = pd.factorize(taught), pd.factorize(patients[known])
    distinct, num_patients = len(kinds), len(people)
    pairs = pd.unique(who * distinct + codes)
    of_one_value = (np.bincount(pairs // distinct) == 1).mean()
    of_one_patient = (np.bincount(pairs % distinct) == 1).mean()
    names_patients = min(of_one_value, of_one_patient) >= 0.95 and distinct > num_patients / 2 and column.exclusive
    if names_patients and num_patients >= MIN_KNOWN and num > num_patients:
        sentence = (
            f"{role} has one value for each patient and hardly two patients with the same ({distinct} values, "
            f"{num_patients} training patients): it names the patient, as the role patient does already"
        )
        return Hazard(role, "identifier", sentence, True)
    distinct = distinct if column.exclusive else min(distinct, column.num_classes)
    if num >= MIN_KNOWN and distinct > num / 2:
        sentence = (
            f"{role} differs in nearly every sample ({distinct} values in {num} training samples): an identifier or "
            "free text, not a category"
        )
        return Hazard(role, "unique", sentence, True)
    return None


def _pairs(side: NDArray[np.str_], *, left_out: bool) -> list[tuple[str, str, IntArray]]:
    """Two sides of the split, and int64 `[patients]`: 0 on the first, 1 on the second, -1 on neither."""
    sides = ("train", "val") if left_out else ("train", "test", "val")
    codes = ((a, b, np.where(side == a, 0, np.where(side == b, 1, -1))) for a, b in combinations(sides, 2))
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


def _doubtful(role: str, samples: Samples, train: NDArray[np.bool_]) -> list[Hazard]:
    """Values that are taken like any other and may mean missing."""
    cohort, taught = samples.cohort, samples.first_row[train]
    counts = {value: int(np.isin(taught, rows).sum()) for value, rows in doubtful_values(cohort, role).items()}
    counts = {value: number for value, number in counts.items() if number}
    if not counts:
        return []
    values = ", ".join(f"{value!r} ({number} training sample{'s' * (number > 1)})" for value, number in counts.items())
    option = missing_option(cohort.roles[role], *counts)
    sentence = f"{role} takes {values} for a value like any other: if it means missing, add {option}"
    return [Hazard(role, "doubtful", sentence, False)]


def _copied(column: Column, kept: Column, same: str) -> str:
    """The sentence on a copy; without `same` it is the same column of the table."""
    how = f"{column.role} holds the same as {kept.role} ({same})"
    if not same:
        how = f"{column.role} and {kept.role} are one column of the table under two roles"
    return f"{how}: learn one of them; {kept.role} is kept"
