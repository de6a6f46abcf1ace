"""What can be said of a column by its values alone: none, one only, or another for every sample or patient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bolus.data.batches.columns import TrainingColumns
from bolus.data.cohort.coding import Held, count_codes
from bolus.planning.hazards.association import MIN_KNOWN
from bolus.planning.hazards.hazard import Hazard
from bolus.planning.hazards.supervision import IDENTIFYING, Column, words_of


def nothing_to_learn(column: Column, taught: TrainingColumns) -> Hazard | None:
    """A column that has no value, the same one in all training samples, or one that names the sample or its patient.

    Args:
        column: of whatever samples; what its classes are is read from it.
        taught: every training sample, by whose values it is told.
    """
    role, held = column.role, Held.of(_read(column, taught))
    counts, known = held.counts(), held.known
    num = int(counts[known].sum())
    if not num:
        return Hazard(role, "missing", f"{role} has no value in any of {len(held)} training samples", True)
    used = known & (counts > 0)
    distinct = int(used.sum())
    if distinct == 1:
        sentence = f"{role} is the same in all {num} training samples that have it: there is nothing to tell apart"
        return Hazard(role, "constant", sentence, True)
    if column.numbers is not None:
        whole = bool((held.values[used] % 1 == 0).all())
        if not (role.startswith("attribute:") and whole and words_of(role) & IDENTIFYING):
            return None
    patients, codes = Held.of(taught.held("patient")).codes, held.codes
    if num < len(held):
        here = known[codes]
        patients, codes = patients[here], codes[here]
    num_patients = count_codes(patients)
    several = column.exclusive and distinct > num_patients / 2 and num > num_patients >= MIN_KNOWN
    if several and _name_each_other(patients, codes):
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


def _read(column: Column, taught: TrainingColumns) -> Held | NDArray[Any]:
    """The training samples' values, also of a label of several classes a sample."""
    found = taught.samples.held(column.role)
    return found.at(taught.taught) if isinstance(found, Held) else found[taught.taught]


def _name_each_other(patients: NDArray[Any], codes: NDArray[Any]) -> bool:
    """Whether nearly every patient has one value, and nearly every value one patient."""
    width = int(codes.max(initial=0)) + 1
    pairs = pd.unique(patients.astype(np.int64) * width + codes)
    sides = np.bincount(pairs // width), np.bincount(pairs % width)
    return bool(min((sizes == 1).sum() / (sizes > 0).sum() for sizes in sides) >= 0.95)
