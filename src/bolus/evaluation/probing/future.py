"""What comes later: the label or score of a patient's next visit, asked of the image of an earlier one.

COMPRER (arXiv:2403.09672) judges an encoder by present and by future conditions. A future label is easy where it is the
present one over again, so that the present label stands beside the encoders as a column of its own, or only patients
who do not have the condition yet are asked about (`incident`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bolus.data.cohort.cohort import Cohort, Samples
from bolus.errors import EvaluationError, UsageError, suggest
from bolus.evaluation.preparation import PRESENT
from bolus.evaluation.probing.fitting import fit_linear
from bolus.evaluation.probing.probe import Trainer
from bolus.evaluation.probing.question import Question
from bolus.evaluation.statistics.metrics import FloatArray, IntArray
from bolus.evaluation.targets import Target

SAME: Final = ("modality", "laterality")
"""Roles in which the later row is like the present one, where the cohort has them."""

Several = Literal["any", "mean", "same"]


@dataclass(frozen=True)
class Ahead:
    """Questions about the future.

    Args:
        targets: named `next:NAME` or `incident:NAME`, `[rows]` as those they were made of.
        present: target -> float64 `[rows]`, the value now, NaN missing; empty for `incident`, where all are alike.
        notes: what was left out, and how far the future is away, in sentences.
    """

    targets: list[Target]
    present: dict[str, FloatArray] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def next_values(
    y: ArrayLike,
    patients: ArrayLike,
    times: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    gap: float = 0.0,
    several: Several = "mean",
) -> FloatArray:
    """The next value that a patient has, after the time of each row.

    The next time is the earliest later one at which a row of the same patient and group has a value; times at which
    none has one are passed over.

    Args:
        y: float `[n]`, NaN missing.
        patients: int64 `[n]` codes; -1 equals nobody.
        times: float `[n]`, NaN missing.
        groups: int64 `[n]` codes, such as those of the laterality; None: all rows are alike.
        gap: later means by this much or more, and rows within less of the next time belong to it; with 0, by any
            amount, and only rows of exactly the next time. In the unit of the times.
        several: of several rows at the next time: `any` the largest (any positive), `mean`, or `same`, which is NaN
            where they differ.

    Returns:
        float64 `[n]`, NaN where there is no later value.

    Raises:
        EvaluationError: arrays of different lengths.
        UsageError: a negative gap, or an unknown way with several.

    >>> next_values([0.0, 1.0, np.nan, 3.0], [7, 7, 7, 8], [0.0, 90.0, 30.0, 0.0]).tolist()
    [1.0, nan, 1.0, nan]
    """
    if not gap >= 0:
        raise UsageError(f"gap: expected a number of at least 0, found {gap}")
    if several not in ("any", "mean", "same"):
        raise UsageError(f"several: {suggest(str(several), ('any', 'mean', 'same'))}; found {several!r}")
    y_n, times_n = np.asarray(y, dtype=np.float64), np.asarray(times, dtype=np.float64)
    patients_n = np.asarray(patients)
    groups_n = np.zeros(len(y_n), dtype=np.int64) if groups is None else np.asarray(groups)
    lengths = [len(each) for each in (y_n, patients_n, times_n, groups_n)]
    if len(set(lengths)) > 1:
        raise EvaluationError(f"y, patients, times and groups must have one length, found {lengths}")
    found = np.full(len(y_n), np.nan)
    placed = np.flatnonzero(np.isfinite(times_n) & (patients_n >= 0))
    placed = placed[np.lexsort((times_n[placed], groups_n[placed], patients_n[placed]))]
    new = (np.diff(patients_n[placed]) != 0) | (np.diff(groups_n[placed]) != 0)
    for rows in np.split(placed, np.flatnonzero(new) + 1):
        known = rows[np.isfinite(y_n[rows])]
        when, values = times_n[known], y_n[known]
        first = np.searchsorted(when, times_n[rows] + gap, side="left" if gap else "right")
        for row, start in zip(rows.tolist(), first.tolist(), strict=True):
            if start < len(known):
                end = np.searchsorted(when, when[start] + gap, side="left" if gap else "right")
                found[row] = _one_of(values[start:end], several)
    return found


def look_ahead(
    samples: Samples,
    targets: Sequence[Target],
    horizon: str,
    *,
    task: str,
    min_patients: int = 20,
    alone: bool = False,
) -> Ahead:
    """Questions about the present become questions about the patient's next visit.

    Of `time` and `visit` the first that the cohort has says what is later; times less than a day apart are one visit.
    The later row has the same modality and laterality where the cohort has these roles; missing is a value of its own.
    Where the later visit has several rows, any positive counts for a question of two classes, the mean for a number,
    and a question of more classes leaves out samples whose later rows differ. `incident` also leaves out samples whose
    present label is missing or positive.

    Args:
        samples: images or clips; later labels count whether or not their images can be read.
        targets: `[rows]` of the samples' cohort, as `find_targets` gives them.
        horizon: `next` or `incident`.
        task: `classify` or `regress`.
        min_patients: a class of a label with fewer patients who will be positive is left out, and named.
        alone: only one class was asked for: it is never left out.

    Raises:
        UsageError: an unknown horizon, or `incident` for a number.
        EvaluationError: no time and no visit, or no training or test patient with a later value.
    """
    cohort, first = samples.cohort, samples.first_row
    role = next((role for role in ("time", "visit") if role in cohort.roles), None)
    if role is None:
        raise EvaluationError(f"horizon {horizon} needs a column with the role time or visit; found neither")
    times, gap = cohort.encoded(role)[first], 1.0 if role == "time" else 0.0
    patients, groups, split = cohort.encoded("patient")[first], _groups(cohort, first), cohort.split[first]
    ahead = Ahead([])
    lost = int(np.isnan(times).sum())
    if lost:
        ahead.notes.append(f"{lost} samples have no {role}, left out")
    for target in targets:
        many = target.classes is not None and len(target.classes) > 2
        if horizon == "incident" and many:
            ahead.notes.append(f"{target.name} is left out: of several classes none is the negative one")
            continue
        name = f"{horizon}:{target.name}"
        now = np.asarray(target.y[first], dtype=np.float64)
        if task == "classify":
            now = np.where(now < 0, np.nan, now)
        several: Several = "mean" if task == "regress" else "same" if many else "any"
        later = next_values(now, patients, times, groups, gap=gap, several=several)
        away = next_values(np.where(np.isnan(now), np.nan, times), patients, times, groups, gap=gap) - times
        notes = [f"{name}: {int(np.isnan(later).sum())} of {len(later)} samples have no later value, left out"]
        if horizon == "incident":
            assert target.classes is not None
            asked = now == 0
            out = int((~asked & ~np.isnan(later)).sum())
            notes.append(f"{name}: {out} more are not {target.classes[0]!r} now, or not known to be, left out")
            later = np.where(asked, later, np.nan)
        known = ~np.isnan(later)
        positive = len(np.unique(patients[later == 1]))
        if "=" in target.name and not alone and positive < min_patients:
            ahead.notes.append(f"{name} is left out: {positive} patients become so, fewer than {min_patients}.")
            continue
        for part in ("train", "test"):
            if not (known & (split == part)).any():
                same = " and ".join(each for each in SAME if each in cohort.roles)
                of = f" of the same {same}" if same else ""
                whom = f", having been {target.classes[0]!r}" if horizon == "incident" and target.classes else ""
                raise EvaluationError(f"{name}: no {part} patient has a value at a later {role}{of}{whom}")
        near, middle, far = np.percentile(away[known], [5, 50, 95])
        unit = "days" if role == "time" else "visits"
        notes.append(f"{name}: {unit} to the later value: median {middle:.3g}, 5 to 95 % {near:.3g} to {far:.3g}")
        ahead.notes.extend([*notes, f"{name}: {_HOW[several]}"])
        y = np.full(len(cohort), -1 if task == "classify" else np.nan)
        y[first] = np.where(known, later, -1) if task == "classify" else later
        ahead.targets.append(Target(name, y.astype(np.int64) if task == "classify" else y, target.classes))
        if horizon == "next":
            ahead.present[name] = np.full(len(cohort), np.nan)
            ahead.present[name][first] = now
    if not ahead.targets:
        raise EvaluationError(f"horizon {horizon}: no question is left ({'; '.join(ahead.notes)})")
    return ahead


def present_columns(now: FloatArray, train: NDArray[np.bool_], *, num_classes: int | None) -> FloatArray:
    """What is known without the image, as columns that a probe reads like an embedding.

    Args:
        now: float `[n]` codes or numbers, NaN missing.
        train: bool `[n]`, the training rows: numbers are standardised by theirs.
        num_classes: K; None for a number.

    Returns:
        float64 `[n, K + 1]`, one-hot, the last one for missing; or `[n, 3]`, the number (0 where missing), 1 where it
        is known, and 1 where it is missing, so that by cosine, too, like numbers are near each other.

    >>> present_columns(np.array([1.0, np.nan]), np.array([True, True]), num_classes=2).tolist()
    [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    missing = np.isnan(now)
    if num_classes is not None:
        return np.eye(num_classes + 1)[np.where(missing, num_classes, now).astype(np.int64)]
    known = now[train & ~missing]
    mean, scale = (float(known.mean()), float(known.std())) if len(known) else (0.0, 1.0)
    z_n = np.where(missing, 0.0, (now - mean) / (scale or 1.0))
    return np.stack([z_n, ~missing, missing], axis=1).astype(np.float64)


def beside_present(trainers: Mapping[str, Trainer], columns: FloatArray) -> dict[str, Trainer]:
    """The trainers, which for the column PRESENT, that has no image to train on, fit a linear head.

    Args:
        trainers: probe name -> what trains on images.
        columns: `[n, C]` of `present_columns`.
    """

    def beside(trainer: Trainer) -> Trainer:
        def fit(
            name: str, question: Question, train: IntArray, val: IntArray, held: IntArray, repeat: int
        ) -> tuple[FloatArray, Sequence[str]]:
            if name != PRESENT:
                return trainer(name, question, train, val, held, repeat)
            both = question.samples(columns, train), question.samples(columns, val)
            head = fit_linear(*both, question.task, num_classes=question.num_classes)
            return head.predict(columns[held]), head.notes

        return fit

    return {name: beside(trainer) for name, trainer in trainers.items()}


_HOW = {
    "any": "where the later visit has several rows, any positive counts",
    "mean": "where the later visit has several rows, their mean counts",
    "same": "where the rows of the later visit differ, the sample is left out",
}


def _one_of(values: FloatArray, several: Several) -> float:
    if several == "mean":
        return float(values.mean())
    if several == "any":
        return float(values.max())
    return float(values[0]) if (values == values[0]).all() else float("nan")


def _groups(cohort: Cohort, rows: IntArray) -> IntArray:
    """One code for each combination of the roles SAME that the cohort has; missing is a value of its own."""
    values = [cohort.modality[rows] if role == "modality" else cohort.encoded(role)[rows]
              for role in SAME if role in cohort.roles]  # fmt: skip
    codes = np.stack([np.zeros(len(rows), np.int64), *(np.unique(v, return_inverse=True)[1] for v in values)])
    return np.asarray(np.unique(codes, axis=1, return_inverse=True)[1].ravel(), dtype=np.int64)
