"""Pairs of samples of one patient, the change of a score between them, and what an encoder says of the two.

With a time, a pair runs from the earlier sample to the later one. Without one, two samples are not a course: both
orders of them are taken, and what comes of it is a difference between samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bolus.data.cohort.cohort import Cohort, Samples
from bolus.errors import EvaluationError, UsageError
from bolus.evaluation.statistics.metrics import FloatArray, IntArray

CHANGES = ("improve", "stable", "worsen")
"""Names of the codes of `classify_change`."""

CONSTANT = ("modality", "laterality", "region", "view_position", "phase")
"""Roles that both samples of a pair share, where the cohort has them and a time or visit."""

Number = TypeVar("Number", np.float32, np.float64)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Ordered pairs of samples of one patient.

    Args:
        earlier: int64 `[P]` positions of the samples that a change starts from.
        later: int64 `[P]` positions of those it leads to.
        delta: float64 `[P]`, later score less earlier score, in the score's unit.
        adjacent: bool `[P]`, no other time of the patient lies between, be its sample scored or not; None where there
            is no time.
        notes: what was left out, in sentences.
    """

    earlier: IntArray
    later: IntArray
    delta: FloatArray
    adjacent: NDArray[np.bool_] | None
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.earlier)


def find_pairs(
    patients: ArrayLike,
    scores: ArrayLike,
    *,
    time: ArrayLike | None = None,
    visit: ArrayLike | None = None,
    kinds: ArrayLike | None = None,
    adjacent: bool | None = None,
    both_orders: bool | None = None,
    max_pairs: int = 200,
    seed: int = 0,
    usable: ArrayLike | None = None,
) -> Pairs:
    """All ordered pairs of samples of one patient with both scores known, at most `max_pairs` of each patient.

    Args:
        patients: int64 `[n]` codes; -1 is a patient of its own.
        scores: float `[n]`, NaN missing.
        time: float `[n]` in days, NaN missing; samples of equal time make no pair.
        visit: float `[n]` ordinal, NaN missing; speaks where there is no time.
        kinds: int64 `[n]` codes, such as the modality; pairs are of one kind, and so are adjacent times. Give all
            samples, those without a score too: their times come between others.
        adjacent: with a time, only pairs of consecutive distinct times of the patient (true), or only the others
            (false).
        both_orders: every pair also from the later to the earlier sample; None: exactly where there is no time.
            False without a time keeps the order of the samples.
        max_pairs: of each patient, so that one with many samples does not drown the rest; two orders count as two.
        seed: of the draw, which for one patient depends on that patient's pairs and code, not on the other patients;
            codes that move when patients are added draw anew.
        usable: bool `[n]`, samples that may make a pair; the others, such as unreadable images, only have their times
            come between. None: all.

    Returns:
        The pairs, sorted by patient; none where no patient has two samples that fit.

    Raises:
        EvaluationError: arrays of different lengths.
        UsageError: adjacency without a time, or `max_pairs` below 2.

    >>> pairs = find_pairs([7, 7, 7, 8], [3.0, 1.0, 2.0, 5.0], time=[0.0, 30.0, 90.0, 0.0])
    >>> pairs.earlier.tolist(), pairs.later.tolist(), pairs.delta.tolist(), pairs.adjacent.tolist()
    ([0, 0, 1], [1, 2, 2], [-2.0, -1.0, 1.0], [True, False, True])
    """
    when = visit if time is None else time
    if adjacent is not None and when is None:
        raise UsageError("adjacent pairs need a time or visit, found neither")
    if max_pairs < 2:
        raise UsageError(f"max_pairs: expected at least 2, found {max_pairs}")
    patients_n, scores_n = np.asarray(patients), np.asarray(scores, dtype=np.float64)
    kinds_n = np.zeros(len(patients_n), dtype=np.int64) if kinds is None else np.asarray(kinds)
    when_n = np.zeros(len(patients_n)) if when is None else np.asarray(when, dtype=np.float64)
    usable_n = np.ones(len(patients_n), dtype=bool) if usable is None else np.asarray(usable, dtype=bool)
    lengths = {len(each) for each in (patients_n, scores_n, kinds_n, when_n, usable_n)}
    if len(lengths) > 1:
        raise EvaluationError(
            f"patients, scores, times, kinds and usable must have one length, found {sorted(lengths)}"
        )
    scored, timed = np.isfinite(scores_n), np.isfinite(when_n)
    placed = np.flatnonzero(timed & (patients_n >= 0))
    placed = placed[np.argsort(patients_n[placed], kind="stable")]
    twice = bool(when is None if both_orders is None else both_orders)
    room, found, same_time, capped = max_pairs // (1 + twice), [np.empty((3, 0), dtype=np.int64)], 0, 0
    for samples in np.split(placed, np.flatnonzero(np.diff(patients_n[placed])) + 1):
        if len(samples) < 2:
            continue
        first, second, near, equal = _pairs_of(samples, when_n, kinds_n, scored & usable_n, timed=when is not None)
        same_time += equal
        kept = np.arange(len(first)) if adjacent is None else np.flatnonzero(near == adjacent)
        if len(kept) > room:
            capped += 1
            generator = np.random.default_rng([seed, int(patients_n[samples[0]])])
            kept = np.sort(generator.choice(kept, room, replace=False))
        chosen = np.stack([first[kept], second[kept], near[kept]])
        found += [chosen, chosen[[1, 0, 2]]] if twice else [chosen]
    earlier, later, near = np.concatenate(found, axis=1)
    left_out = {
        "samples have no score, left out": int((usable_n & ~scored).sum()),
        "samples with a score have no time or visit, left out": int((usable_n & scored & ~timed).sum()),
        "pairs of samples of equal time are left out": same_time,
        f"patients have more than {max_pairs} pairs, of which {room * (1 + twice)} were drawn": capped,
    }
    notes = tuple(f"{count} {what}" for what, count in left_out.items() if count)
    delta = scores_n[later] - scores_n[earlier]
    return Pairs(earlier, later, delta, None if when is None else near.astype(bool), notes)


def constant_roles(cohort: Cohort) -> list[str]:
    """Roles that both samples of a pair share: all of CONSTANT that there are; without time and visit only modality."""
    timed = {"time", "visit"} & set(cohort.roles)
    return [role for role in (CONSTANT if timed else CONSTANT[:1]) if role in cohort.roles]


def pairs_of(
    samples: Samples,
    scores: NDArray[Any],
    usable: NDArray[np.bool_] | None = None,
    *,
    adjacent_only: bool = False,
    max_pairs: int = 200,
    seed: int = 0,
) -> Pairs:
    """The pairs among the samples of a cohort, by its own time, or else visit.

    Args:
        samples: images or clips.
        scores: float `[rows]` of the cohort, NaN missing.
        usable: bool `[n]`, as of `find_pairs`.
        adjacent_only: this and the rest as `evaluate_change`.
        max_pairs: of each patient.
        seed: of the draw.
    """
    cohort, first = samples.cohort, samples.first_row
    times = {role: cohort.encoded(role)[first] for role in ("time", "visit") if role in cohort.roles}
    values = [cohort.modality[first] if role == "modality" else cohort.encoded(role)[first]
              for role in constant_roles(cohort)]  # fmt: skip
    codes = np.stack([np.zeros(len(samples), np.int64), *(np.unique(v, return_inverse=True)[1] for v in values)])
    return find_pairs(
        cohort.encoded("patient")[first],
        scores[first],
        time=times.get("time"),
        visit=times.get("visit"),
        kinds=np.unique(codes, axis=1, return_inverse=True)[1].ravel(),
        adjacent=True if adjacent_only else None,
        max_pairs=max_pairs,
        seed=seed,
        usable=usable,
    )


def _pairs_of(
    samples: IntArray, when: FloatArray, kinds: NDArray[Any], may: NDArray[np.bool_], *, timed: bool
) -> tuple[IntArray, IntArray, IntArray, int]:
    """A patient's pairs of samples that may, in time: earlier, later, 1 where adjacent; how many are of equal time."""
    _, kind = np.unique(kinds[samples], return_inverse=True)
    samples = samples[np.lexsort((samples, when[samples], kind))]
    order, kind = when[samples], np.sort(kind)
    new = np.r_[True, (np.diff(order) != 0) | (np.diff(kind) != 0)]
    rank = np.cumsum(new)  # of the distinct times, kind after kind
    samples, rank, kind = (each[may[samples]] for each in (samples, rank, kind))
    first, second = np.triu_indices(len(samples), k=1)
    alike = kind[first] == kind[second]
    apart = rank[first] != rank[second] if timed else np.ones(len(first), dtype=bool)
    near = (rank[second] - rank[first] == 1).astype(np.int64)
    kept = alike & apart
    return samples[first[kept]], samples[second[kept]], near[kept], int((alike & ~apart).sum())


def difference(u: NDArray[Number], pairs: Pairs) -> NDArray[Number]:
    """The change of an embedding, LEARNER's d = u_later - u_earlier: `[n, D]` -> `[P, D]` of the same type.

    >>> pairs = find_pairs([0, 0], [1.0, 2.0], time=[0.0, 1.0])
    >>> difference(np.array([[1.0, 2.0], [1.0, 5.0]]), pairs).tolist()
    [[0.0, 3.0]]
    """
    return u[pairs.later] - u[pairs.earlier]


def concatenate(u: NDArray[Number], pairs: Pairs) -> NDArray[Number]:
    """Both embeddings side by side, the ablation of `difference`: `[n, D]` -> `[P, 2 D]`, the earlier one first.

    >>> pairs = find_pairs([0, 0], [1.0, 2.0], time=[0.0, 1.0])
    >>> concatenate(np.array([[1.0, 2.0], [1.0, 5.0]]), pairs).tolist()
    [[1.0, 2.0, 1.0, 5.0]]
    """
    return np.concatenate([u[pairs.earlier], u[pairs.later]], axis=1)


def classify_change(delta: ArrayLike, tolerance: float = 0.0, higher_is_worse: bool = True) -> IntArray:
    """A change as one of `CHANGES`: int64 `[P]`, 0 improve, 1 stable, 2 worsen, -1 where it is missing.

    Args:
        delta: `[P]` later score less earlier score; NaN missing.
        tolerance: a change of this size, up to rounding, or less is stable; in the score's unit.
        higher_is_worse: a severity; false for a score of health.

    Raises:
        UsageError: a tolerance that is negative or not finite.

    >>> classify_change([-1.0, 0.0, 0.5, 2.0, float("nan")], tolerance=0.5).tolist()
    [0, 1, 1, 2, -1]
    >>> classify_change([-1.0, 0.0], higher_is_worse=False).tolist()
    [2, 1]
    """
    if not 0 <= tolerance < np.inf:
        raise UsageError(f"tolerance: expected a number of at least 0 in the score's unit, found {tolerance}")
    delta_p = np.asarray(delta, dtype=np.float64)
    missing = np.isnan(delta_p)
    worse = np.where(missing, 0.0, delta_p if higher_is_worse else -delta_p)
    code = np.where(np.abs(worse) <= tolerance * (1 + 1e-9), 1, np.where(worse > 0, 2, 0))
    return np.where(missing, -1, code).astype(np.int64)
