"""What the test patients of a cohort can decide: the smallest difference between two encoders that would be found.

The numbers are for planning, from the table alone. An evaluation states what it could really have shown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from scipy import stats

from bolus.data.cohort.coding import Held, count_codes
from bolus.data.cohort.cohort import Cohort, Samples
from bolus.evaluation.statistics.intervals import detectable_difference
from bolus.evaluation.statistics.metrics import FloatArray, IntArray
from bolus.evaluation.statistics.verdict import ENOUGH_PATIENTS, too_few
from bolus.planning.patient_counts import PatientCounts, count_sides, effective_patients

ALIKE = 0.8  # correlation of predictions (errors) of two encoders alike: a recipe with and without an objective
UNLIKE = 0.5  # of two that have little in common
AREA = 0.75  # AUROC around which encoders are compared; the nearer to 1, the smaller the differences that are found
DICE_SD = 0.08  # of Dice between patients: an assumption, as seen on ACDC with few labelled patients
UNEVEN = 0.8  # share of its patients that a side is worth, below which few of them hold many samples
MOST_CLASSES = 5  # of one label that are named

_PLAIN = frozenset({"1", "1.0", "yes", "true", "positive"})  # classes whose name adds nothing to "positive"


@dataclass(frozen=True)
class Resolution:
    """What the test patients can decide of one target.

    Args:
        target: a role, such as `label:abnormal`, `score:age` or `mask`, or one class of it (`label:findings=Mass`).
        task: that it is judged by.
        metric: `auroc`, `mae` or `dice`.
        num_patients: test patients that have a value.
        num_positive_patients: those with a positive sample; None unless the target is one class.
        alike: the smallest difference found with 80 % power at two-sided 5 % between encoders that err alike, in the
            metric's unit; None where it cannot be decided.
        unlike: likewise between encoders that do not.
        sentence: all of it, for a reader; of the line on the classes that are not named it is all there is.
    """

    target: str
    task: Literal["classify", "regress", "segment"]
    metric: str
    num_patients: int
    num_positive_patients: int | None
    alike: float | None
    unlike: float | None
    sentence: str


def find_resolutions(cohort: Cohort, samples: Samples | None = None) -> list[Resolution]:
    """What the test patients can decide of every label, score, numeric attribute and mask.

    What counts as enough patients is what a verdict asks for, `ENOUGH_PATIENTS` of the rarer side, a patient with
    samples of both sides counting on either. For standard errors, patients count less where few of them hold most
    samples: see `effective_patients`. Missing values are left out.

    - A label: AUROC at 0.75 by `hanley_mcneil`. Of one with several classes, each class against the rest: the five that
      most test patients have, and one line on the others. The question of all classes at once is not reckoned.
    - A score or numeric attribute: MAE, from the spread over patients of the errors of a guess that is always the
      median; a column with two such roles is named once.
    - Masks: Dice, with the spread over patients of `DICE_SD`, an assumption. No mask is read.

    Args:
        cohort: whose columns.
        samples: of the cohort; where None, or of a cohort with a row for each frame, each row is one. A volume has a
            mask where each of its rows has one.

    Example:
        >>> import pandas as pd
        >>> columns = {"image": [str(i) for i in range(80)], "patient": range(80), "ill": [0, 1] * 40}
        >>> frame = pd.DataFrame({**columns, "split": "test"})
        >>> from bolus.data.cohort.spec import CohortSpec
        >>> print(find_resolutions(Cohort(frame, CohortSpec(table="t.csv", roles={"label:ill": "ill"})))[0].sentence)
        label:ill: 80 test patients, 40 of them positive: a difference of 0.10 AUROC can be found between encoders that
        err alike, 0.16 between unlike ones; less is undecided
    """
    samples = samples if samples is not None and samples.cohort is cohort else None
    taken = np.arange(len(cohort)) if samples is None else samples.first_row
    test = taken[cohort.on_side("test")[taken]]
    found: list[Resolution] = []
    for role in cohort.roles:
        if role.startswith("label:"):
            found += _of_label(cohort, role, test)
    columns = set[str]()
    numbers = [role for kind in ("score:", "attribute:") for role in cohort.roles if role.startswith(kind)]
    for role in numbers:
        held = cohort.held(role)
        if role.startswith("attribute:") and _num_values(Held.of(held)) < 3:
            continue  # classes written as numbers, such as sex as 0 and 1
        values = held[test]
        if values.dtype == np.float64 and cohort.roles[role] not in columns:
            columns.add(cohort.roles[role])
            found.append(_of_number(role, values, cohort.encoded_at("patient", test), cohort.spec.units.get(role)))
    if "mask" in cohort.roles:
        absent = cohort.absent("mask")
        without = absent[taken] if samples is None or samples.unit != "volume" else samples.readable(absent)
        found.append(_of_masks(cohort, taken[cohort.on_side("test")[taken] & ~without]))
    return found


def _num_values(held: Held) -> int:
    return int((held.counts()[held.known] > 0).sum())


def hanley_mcneil(area: float, num_positive: float, num_negative: float) -> float:
    """The standard error of an AUROC (Hanley and McNeil, Radiology 143, 1982), with the mean of their Q1 and Q2.

    Their exponential model takes one side to spread more than the other, so that with one positive to ten negatives its
    error is a third larger than the other way round. Which side does so is not known beforehand: hence the mean.

    Args:
        area: the true AUROC A; Q1 = A / (2 - A), Q2 = 2 A^2 / (1 + A).
        num_positive: independent positives, more than 0.
        num_negative: independent negatives, more than 0.

    >>> round(hanley_mcneil(0.75, 56, 59), 4)
    0.0455
    """
    shared = (area / (2 - area) + 2 * area**2 / (1 + area)) / 2 - area**2
    spread = area * (1 - area) + (num_positive + num_negative - 2) * shared
    return math.sqrt(spread / (num_positive * num_negative))


@cache
def auroc_correlation(area: float, correlation: float) -> float:
    """How two AUROCs correlate whose predictions correlate within each class, for normal predictions and many patients.

    Of two positives against a negative each, the chance that both are ranked rightly is a bivariate normal
    probability; the correlation is its excess over A^2, as a share of that of equal predictions.

    Args:
        area: of both, above 0.5.
        correlation: of the predictions, 0 to 1.

    >>> round(auroc_correlation(0.75, 0.8), 3), round(auroc_correlation(0.75, 0.5), 3)
    (0.774, 0.464)
    """
    at = [stats.norm.ppf(area)] * 2
    excess = [stats.multivariate_normal.cdf(at, cov=[[1, r / 2], [r / 2, 1]]) - area**2 for r in (correlation, 1.0)]
    return float(excess[0] / excess[1])


def _detectable(se: float, alike: float = ALIKE, unlike: float = UNLIKE) -> tuple[float, float]:
    """The detectable paired differences, from one encoder's standard error and the correlations of two."""
    first, second = (detectable_difference(math.sqrt(2 * (1 - each)) * se) for each in (alike, unlike))
    return first, second


def _of_number(role: str, values: FloatArray, patients: IntArray, unit: str | None) -> Resolution:
    """MAE of a score or attribute on the test rows."""
    known = np.isfinite(values)
    _, codes, counts = np.unique(patients[known], return_inverse=True, return_counts=True)
    n = len(counts)
    if n < ENOUGH_PATIENTS:
        return _undecided(role, "regress", "mae", n, None, _few(n, "test patients") if n else _NOBODY)
    away = np.abs(values[known] - np.quantile(values[known], 0.5, method="lower"))
    spread = float((np.bincount(codes, away) / counts).std(ddof=1))
    if spread == 0:
        why = f"a constant guess errs by {_number(float(away.mean()))} on each of {n} test patients"
        return _undecided(role, "regress", "mae", n, None, why)
    alike, unlike = _detectable(spread / math.sqrt(effective_patients(counts)))
    whole, name = float(away.mean()), f"{unit} of MAE" if unit else "MAE"
    shares = [f"{_number(100 * each / whole)} %" for each in (alike, unlike)]
    sentence = (
        f"{role}: {n} test patients: a difference of {_number(alike)} {name} ({shares[0]} of the {_number(whole)} by "
        f"which the median errs) can be found between encoders that err alike, {_number(unlike)} ({shares[1]}) between "
        "unlike ones; less is undecided"
    )
    return Resolution(role, "regress", "mae", n, None, alike, unlike, sentence)


def _of_masks(cohort: Cohort, rows: IntArray) -> Resolution:
    """Dice of the test patients that have a mask: those of these rows."""
    n = count_codes(cohort.encoded_at("patient", rows))
    if n < ENOUGH_PATIENTS:
        return _undecided("mask", "segment", "dice", n, None, _few(n, "test patients with a mask"))
    alike, unlike = _detectable(DICE_SD / math.sqrt(n))
    sentence = _sentence("mask", f"{n} test patients with a mask", "Dice", alike, unlike)
    sentence += f" (if Dice varies by {DICE_SD} between patients)"
    return Resolution("mask", "segment", "dice", n, None, alike, unlike, sentence)


def _of_label(cohort: Cohort, role: str, test: IntArray) -> list[Resolution]:
    """AUROC of a label's classes; of a two-class column one, as `bolus evaluate` asks of it."""
    column = cohort.coded(role)
    parts = [dict.fromkeys(part.strip() for part in str(value).split("|") if part.strip()) for value in column.values]
    classes = sorted({part for value in parts for part in value})
    known = test[column.codes[test] >= 0]
    patients = cohort.encoded_at("patient", known)
    n = count_codes(patients)
    if n == 0:
        return [_undecided(role, "classify", "auroc", 0, None, _NOBODY)]
    sides = count_sides(patients, column.codes[known], parts, classes)
    if len(classes) == 2 and all(len(value) == 1 for value in parts):
        return [_of_class(role, sides, 1, n, classes[1])]
    rarer = np.minimum(sides.positive, sides.negative)
    ranked = np.argsort(-sides.positive, kind="stable")
    enough = [int(index) for index in ranked if rarer[index] >= ENOUGH_PATIENTS]
    named = [_of_class(f"{role}={classes[index]}", sides, index, n) for index in enough[:MOST_CLASSES]]
    few, more = len(classes) - len(enough), len(enough) - len(named)
    needed = f"{ENOUGH_PATIENTS} positive and {ENOUGH_PATIENTS} negative test patients"
    if not named:
        most = f"the commonest has {sides.positive[ranked[0]]:.0f} and {sides.negative[ranked[0]]:.0f}"
        why = f"none of its classes ({len(classes)}) has {needed}; {most}"
        return [_undecided(role, "classify", "auroc", n, None, why)]
    if few or more:
        left = [f"{more} can be decided too"] * (more > 0) + [f"{few} cannot be decided, for want of {needed}"] * (
            few > 0
        )
        sentence = f"{role}: of the other classes {' and '.join(left)}"
        named.append(Resolution(role, "classify", "auroc", n, None, None, None, sentence))
    return named


def _of_class(target: str, sides: PatientCounts, index: int, n: int, name: str = "") -> Resolution:
    """AUROC of one class against the rest; `name` is said where it tells what positive means."""
    positive, negative = int(sides.positive[index]), int(sides.negative[index])
    if min(positive, negative) < ENOUGH_PATIENTS:
        rarer = "positive" if positive <= negative else "negative"
        few = _few(min(positive, negative), f"{rarer} test patients")
        return _undecided(target, "classify", "auroc", n, positive, few)
    worth = float(sides.worth_positive[index]), float(sides.worth_negative[index])
    correlations = (auroc_correlation(AREA, each) for each in (ALIKE, UNLIKE))
    alike, unlike = _detectable(hanley_mcneil(AREA, *worth), *correlations)
    uneven = worth[0] < UNEVEN * positive or worth[1] < UNEVEN * negative
    meaning = f" ({name})" if name and name.lower() not in _PLAIN else ""
    sentence = _sentence(target, f"{n} test patients, {positive} of them positive{meaning}", "AUROC", alike, unlike)
    sentence += "; a few patients hold many of the samples, which makes it coarser" if uneven else ""
    return Resolution(target, "classify", "auroc", n, positive, alike, unlike, sentence)


_NOBODY = "no test patient has a value"


def _few(patients: int, of_what: str) -> str:
    """What is lacking, in the words of a verdict.

    >>> _few(7, "positive test patients")
    '7 positive test patients where a finding needs 20'
    """
    return too_few(patients, of_what).removeprefix("only ")


def _undecided(
    target: str, task: Literal["classify", "regress", "segment"], metric: str, n: int, positive: int | None, why: str
) -> Resolution:
    return Resolution(target, task, metric, n, positive, None, None, f"{target}: cannot be decided: {why}")


def _sentence(target: str, who: str, metric: str, alike: float, unlike: float) -> str:
    return (
        f"{target}: {who}: a difference of {_number(alike)} {metric} can be found between encoders that err alike, "
        f"{_number(unlike)} between unlike ones; less is undecided"
    )


def _number(value: float) -> str:
    """Two digits that count, or all before the point.

    >>> _number(0.0814), _number(0.1), _number(1.94), _number(123.4), _number(0)
    ('0.081', '0.10', '1.9', '123', '0')
    """
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}" if value > 0 else "0"
