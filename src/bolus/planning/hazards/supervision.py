"""The columns that could become supervision, once a sample and once a patient."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bolus.data.cohort.coding import narrow
from bolus.data.cohort.cohort import Cohort, Samples
from bolus.data.cohort.series import VARYING
from bolus.planning.hazards.association import FloatArray, IntArray, commonest, mean_of

FEW_VALUES = 20
"""A number with at most so many different values is also looked at as categories."""

MAX_CLASSES = 100
"""Classes of a label above which it is looked at as a whole, not class by class."""

NOT_TAUGHT = ("image", "mask", "patient", "series", "split")
PLACES = ("site", "view_position")
# fmt: off
ACQUISITION = frozenset({
    "acquisition", "camera", "center", "centre", "clinic", "coil", "department", "detector", "device", "equipment",
    "exposure", "hospital", "institution", "kernel", "kv", "kvp", "machine", "manufacturer", "mas", "marker", "model",
    "portable", "probe", "projection", "protocol", "room", "scanner", "site", "software", "station", "tesla",
    "transducer", "vendor", "view", "ward",
})
# fmt: on
"""Words in an attribute's name that say how or where the image was made."""
JOINED = ("manufacturer", "scanner", "hospital")  # as in `manufacturermodelname`
OF_THE_BODY = frozenset({"blood", "serum", "tumor", "tumour"})  # their markers are no marks on a film
IDENTIFYING = frozenset({"accession", "id", "identifier", "mrn", "uid"})
"""Words in an attribute's name that make its numbers identifiers."""
PLAIN = frozenset({"1", "1.0", "true", "yes", "y", "positive", "pos"})  # classes whose label's name says enough


@dataclass(frozen=True)
class TargetCodes:
    """What could be asked of a label or an ordinal score: one class against the rest (0 or 1), or its categories.

    Args:
        codes: narrow integers `[n]`, of each sample, -1 missing.
        patient_codes: int64 `[patients]`; of one class 1 for a patient most of whose samples have it.
    """

    codes: NDArray[Any]
    patient_codes: IntArray

    @property
    def binary(self) -> bool:
        """Whether it is asked with yes or no."""
        return bool(self.codes.max(initial=0) == 1)


@dataclass(frozen=True)
class Column:
    """One role of the samples.

    Args:
        role: of the column.
        source: its name in the table.
        codes: narrow integers `[n]`, -1 missing, categories of the samples; None for numbers of many different values.
        numbers: float64 `[n]`, NaN missing; None for categories.
        patient_codes: int64 `[patients]`, each one's commonest category, -1 missing.
        patient_numbers: float64 `[patients]`, each one's mean, NaN missing.
        answers: name -> what could be asked of a label, class by class, or of an ordinal score; none of other columns.
        num_classes: of a label's parts, where rows have several; else of its values; 0 for numbers.
        exclusive: no sample has several classes.
    """

    role: str
    source: str
    codes: NDArray[Any] | None
    numbers: FloatArray | None
    patient_codes: IntArray | None
    patient_numbers: FloatArray | None
    answers: Mapping[str, TargetCodes] = field(default_factory=dict)
    num_classes: int = 0
    exclusive: bool = True

    @property
    def known(self) -> NDArray[np.bool_]:
        """Samples that have a value, bool `[n]`."""
        return np.isfinite(self.numbers) if self.numbers is not None else np.asarray(self.codes) >= 0

    @property
    def patient_known(self) -> NDArray[np.bool_]:
        """Patients with such a sample, bool `[patients]`."""
        if self.patient_numbers is not None:
            return np.isfinite(self.patient_numbers)
        return np.asarray(self.patient_codes) >= 0


def says_how_made(role: str) -> bool:
    """Whether a column tells, by its role or name, where or how the image was made.

    >>> [says_how_made(role) for role in ("site", "attribute:StationName", "attribute:gestation", "label:model")]
    [True, True, False, False]
    """
    if not role.startswith("attribute:"):
        return role in PLACES
    words, joined = words_of(role), any(part in role.lower() for part in JOINED)
    return (joined or bool(words & ACQUISITION)) and not words & OF_THE_BODY


def words_of(role: str) -> set[str]:
    """The words of a role's name, in lower case.

    >>> sorted(words_of("attribute:kVp_StationName2"))
    ['k', 'kvp', 'name', 'station', 'stationname', 'vp']
    """
    name = role.rpartition(":")[2]
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name) + re.findall("[A-Za-z]+", name)}


def read_columns(samples: Samples, patients: IntArray) -> list[Column]:
    """Every column that is known once a sample and is no path, patient, series or split, in the order of the roles.

    Args:
        samples: whose columns; those that vary within a clip are left out of clips and volumes.
        patients: int64 `[n]`, the patient of each sample, from 0.
    """
    left_out = {*NOT_TAUGHT, *(VARYING if samples.unit in ("clip", "volume") else ())}
    return [_read(samples, role, patients) for role in samples.cohort.roles if role not in left_out]


def _read(samples: Samples, role: str, patients: IntArray) -> Column:
    cohort, first = samples.cohort, samples.first_row
    source, num_patients = cohort.roles[role], int(patients.max(initial=-1)) + 1
    values = cohort.encoded_at(role, first)
    if values.dtype != np.float64:
        values = narrow(values, int(values.max(initial=-1)) + 1)
        by_patient = commonest(patients, values, num_patients)
        if not role.startswith("label:"):
            return Column(role, source, values, None, by_patient, None, num_classes=len(pd.unique(values[values >= 0])))
        answers, num_classes, exclusive = _classes(cohort, role, first, patients, num_patients)
        answers = answers or {role: TargetCodes(values, by_patient)}
        return Column(role, source, values, None, by_patient, None, answers, num_classes, exclusive)
    numbers = np.where(np.isfinite(values), values, np.nan)
    means = mean_of(patients, numbers, num_patients)
    different = np.sort(pd.unique(numbers[np.isfinite(numbers)]))
    if len(different) > FEW_VALUES:
        return Column(role, source, None, numbers, None, means)
    codes = narrow(np.where(np.isnan(numbers), -1, np.searchsorted(different, numbers)), len(different))
    by_patient = commonest(patients, codes, num_patients)
    answers = {role: TargetCodes(codes, by_patient)} if role.startswith("score:") else {}
    return Column(role, source, codes, numbers, by_patient, means, answers)


def _classes(
    cohort: Cohort, role: str, first: IntArray, patients: IntArray, num_patients: int
) -> tuple[dict[str, TargetCodes], int, bool]:
    """The answers of a label, how many classes it has, and whether each sample has one at most."""
    texts = {str(text) for text in cohort.coded(role).values}
    several = {text: [part.strip() for part in text.split("|") if part.strip()] for text in texts if "|" in text}
    num_classes = len((texts - set(several)).union(*several.values()))
    exclusive = all(len(parts) == 1 for parts in several.values())
    if not 0 < num_classes <= MAX_CLASSES:
        return {}, num_classes, exclusive
    labels = cohort.labels(role.removeprefix("label:"), first)
    asked = labels.classes[1:] if labels.exclusive and len(labels.classes) == 2 else labels.classes
    answers = {}
    for name in asked:
        has = labels.matrix[:, labels.classes.index(name)]
        codes, share = np.where(np.isnan(has), -1, has).astype(np.int8), mean_of(patients, has, num_patients)
        shown = role if len(asked) == 1 and name.lower() in PLAIN else f"{role}={name}"
        answers[shown] = TargetCodes(codes, np.where(np.isnan(share), -1, share > 0.5).astype(np.int64))
    return answers, num_classes, exclusive
