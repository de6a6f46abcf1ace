"""How many patients stand on either side of a class, and what they are worth where few hold most samples."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.evaluation.statistics.metrics import FloatArray, IntArray

SHARED = 0.5  # share of the variance that the samples of one patient have in common: an assumption


def effective_patients(counts: npt.ArrayLike) -> float:
    """How many patients with one sample each would say as much as these do: never more than there are.

    A mean over samples of which those of one patient share half of their variance (`SHARED`) varies as that of
    (sum m)^2 / sum (m / 2 + m^2 / 2) independent ones. Where that is more than the number of patients, as where all
    have like numbers of samples, the number of patients is taken, to be on the safe side.

    Args:
        counts: `[P]` samples m of each patient, at least 1 each.

    >>> effective_patients([1, 1, 1, 1]), effective_patients([3, 3]), round(effective_patients([37, 1, 1, 1]), 2)
    (4.0, 2.0, 2.27)
    """
    m = np.asarray(counts, dtype=np.float64)
    return float(_effective(np.float64(len(m)), m.sum(), (m**2).sum())) if len(m) else 0.0


class PatientCounts(NamedTuple):
    """Of each class `[C]`: patients with a positive and with a negative sample, and their worth as effective ones."""

    positive: FloatArray
    negative: FloatArray
    worth_positive: FloatArray
    worth_negative: FloatArray


def count_sides(
    patients: IntArray, combinations: npt.NDArray[Any], parts: list[dict[str, None]], classes: list[str]
) -> PatientCounts:
    """Patients on either side of each class, without a matrix of rows and classes, which may be large.

    Args:
        patients: `[n]` codes of labelled rows.
        combinations: int `[n]`, which of `parts` a row has.
        parts: the classes of each combination.
        classes: their names, in order.
    """
    place = {name: index for index, name in enumerate(classes)}
    pairs = [(combination, place[name]) for combination, part in enumerate(parts) for name in part]
    named = pd.DataFrame(pairs, columns=["combination", "label"])
    rows = pd.DataFrame({"patient": patients, "combination": combinations})
    held = rows.value_counts(sort=False).rename("has").reset_index().merge(named, on="combination")
    both = held.groupby(["patient", "label"], sort=False)["has"].sum().reset_index()
    who, sizes = np.unique(patients, return_counts=True)
    size = sizes[np.searchsorted(who, both["patient"].to_numpy())].astype(np.float64)
    has, label = both["has"].to_numpy(dtype=np.float64), both["label"].to_numpy(dtype=np.int64)

    def total(values: npt.NDArray[Any]) -> FloatArray:
        return np.bincount(label, values, len(classes)).astype(np.float64)

    positive, negative = total(has > 0), len(who) - total(size == has)
    lacking = sizes.sum() - total(has), (sizes.astype(np.float64) ** 2).sum() + total((size - has) ** 2 - size**2)
    return PatientCounts(
        positive, negative, _effective(positive, total(has), total(has**2)), _effective(negative, *lacking)
    )


def _effective(num_patients: Any, samples: Any, squares: Any) -> FloatArray:
    """`effective_patients` from numbers of patients, the sums of their counts and those of the squares."""
    shared = (1 - SHARED) * samples + SHARED * squares
    return np.asarray(np.minimum(num_patients, samples**2 / np.maximum(shared, SHARED)), dtype=np.float64)
