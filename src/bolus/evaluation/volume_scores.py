"""What a segmenter is worth on whole volumes, and from that the estimates and differences over patients.

Dimension letters: R repeats, N volumes, K classes with the background, B bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bolus.data.masks import from_square
from bolus.evaluation.comparison import pick_repeats
from bolus.evaluation.intervals import Estimate, detectable_difference, patient_bootstrap
from bolus.evaluation.metrics import FloatArray, IntArray
from bolus.evaluation.overlap import volume_dice, volume_hd95
from bolus.evaluation.results import Result
from bolus.evaluation.segmenter import Segmenter
from bolus.evaluation.stacks import Volume
from bolus.evaluation.verdict import too_few

Key = tuple[str, int]
"""An encoder's name and the number of labelled patients."""


@dataclass(frozen=True, eq=False)
class VolumeScores:
    """Scores of N volumes and the K - 1 foreground classes, `[N, K - 1]` each.

    Args:
        dice: NaN where the truth lacks the class.
        hd95: in mm or voxels, NaN where truth or prediction lacks the class.
        both: voxels that truth and prediction give to the class.
        either: the sum of what the truth and what the prediction give to it.
    """

    dice: FloatArray
    hd95: FloatArray
    both: FloatArray
    either: FloatArray

    @property
    def invented(self) -> NDArray[np.bool_]:
        """Where a class was predicted that the truth lacks, bool `[N, K - 1]`; Dice has no value there."""
        return np.isnan(self.dice) & (self.either > 0)


def score_volumes(
    segmenter: Segmenter,
    volumes: Sequence[Volume],
    *,
    in_mm: bool = False,
    on_volume: Callable[[int, IntArray], None] | None = None,
) -> VolumeScores:
    """Predict every slice of the volumes at its own size, and compare.

    Args:
        segmenter: trained; its samples are single images, so that a position is a row.
        volumes: whose truth has classes 0..K-1.
        in_mm: measure distances in mm, of volumes that all have a spacing; else in voxels.
        on_volume: called with the number of each volume and its predicted classes `[T, H, W]`.
    """
    num_classes = segmenter.num_classes
    found = []
    for number, volume in enumerate(volumes):
        predicted = predict_volume(segmenter, volume)
        if on_volume is not None:
            on_volume(number, predicted)
        hits = np.bincount(predicted[predicted == volume.truth], minlength=num_classes)
        sizes = np.bincount(predicted.ravel(), minlength=num_classes)
        sizes = sizes + np.bincount(volume.truth.ravel(), minlength=num_classes)
        found.append(
            (
                volume_dice(predicted, volume.truth, num_classes),
                volume_hd95(predicted, volume.truth, num_classes, volume.spacing if in_mm else None),
                hits[1:].astype(np.float64),
                sizes[1:].astype(np.float64),
            )
        )
    stacked = (np.stack(each) for each in zip(*found, strict=True))
    return VolumeScores(*stacked)


def tabulate_scores(
    scores: VolumeScores, first: IntArray, names: Sequence[str], about: Mapping[str, int | str], distance: str
) -> pd.DataFrame:
    """One trained segmenter's scores, a line for each volume and class.

    Args:
        scores: of N volumes.
        first: int `[N]`, which row each volume begins in.
        names: of the foreground classes.
        about: further columns, which are the same in every line.
        distance: name of the column of distances.
    """
    columns = {"row": np.repeat(first, len(names)), **about, "class": np.tile(np.array(names, object), len(first))}
    return pd.DataFrame({**columns, "dice": scores.dice.ravel(), distance: scores.hd95.ravel()})


def predict_volume(segmenter: Segmenter, volume: Volume) -> IntArray:
    """The predicted classes of a volume's slices at their own size, int64 `[T, H, W]`."""
    height, width = volume.truth.shape[1:]
    scores, fit = segmenter.predict(volume.rows), segmenter.store.preprocessing.fit
    each = enumerate(scores)
    return np.stack([from_square(one, (height, width), fit=fit, aspect=volume.aspect_of(t)) for t, one in each])


@dataclass(frozen=True, eq=False)
class _Ratio:
    """A statistic of volumes: sums of `top` over sums of `bottom`, `[R, N, G]` each, and their mean over the groups.

    Args:
        top: 0 where undefined.
        bottom: likewise.
        counted: bool `[N]`, the volumes that it is of in some repeat.
    """

    top: FloatArray
    bottom: FloatArray
    counted: NDArray[np.bool_]

    @classmethod
    def mean_of(cls, values: FloatArray) -> _Ratio:
        """The mean of values `[R, N, G]`: over the groups of a volume that are defined, then over such volumes."""
        means = _mean_of_defined(values)
        given = np.isfinite(means)
        top, bottom = np.where(given, means, 0.0)[..., None], given.astype(np.float64)[..., None]
        return cls(top, bottom, np.asarray(given.any(0)))

    @classmethod
    def pooled(cls, repeats: Sequence[VolumeScores]) -> _Ratio:
        """Dice of all voxels together, of every class."""
        both, either = (np.stack(each) for each in zip(*((one.both, one.either) for one in repeats), strict=True))
        return cls(2 * both, either, np.ones(both.shape[1], np.bool_))

    def over(self, weights: NDArray[np.float64]) -> FloatArray:
        """Its values `[R, B]` under multiplicities `[B, N]` of the volumes."""
        top, bottom = (np.einsum("bn,rng->rbg", weights, each) for each in (self.top, self.bottom))
        groups = np.full(top.shape, np.nan)
        np.divide(top, bottom, out=groups, where=bottom > 0)
        return _mean_of_defined(groups)


def results_of(
    scores: Mapping[Key, Sequence[VolumeScores]],
    patients: IntArray,
    names: Sequence[str],
    blank: Result,
    *,
    judged: str,
    distance: str,
    num_labelled: int,
    draws: int,
    recipe_hash: str = "",
) -> list[Result]:
    """Estimates for each encoder and number of labelled patients, and the judged encoder's differences from the others.

    The mean over the classes that are defined, then over volumes, then over the repeats in which any volume is, with an
    interval over draws of the test patients and of these repeats. A difference is taken class by class over volumes on
    which both encoders have a value. Numbers of samples and patients are those of the volumes that have a value in some
    repeat, or for a difference both values.

    Args:
        scores: (encoder, labelled patients) -> one for each repeat, of the same volumes.
        patients: `[N]` codes of the volumes.
        names: of the foreground classes.
        blank: whose other fields are copied.
        judged: name of the encoder that the others are compared with.
        distance: `hd95_mm` or `hd95_voxels`.
        num_labelled: how many training patients have masks.
        draws: bootstrap resamples.
        recipe_hash: of the judged encoder, copied into its results.
    """
    weights = patient_bootstrap(patients, draws=draws, seed=blank.seed).astype(np.float64)
    everyone = np.ones((1, len(patients)))

    def result(metric: str, target: str, key: Key, statistics: Sequence[_Ratio], notes: Sequence[str]) -> Result:
        value, sample = (statistics[0].over(each) for each in (everyone, weights))
        for other in statistics[1:]:
            value, sample = value - other.over(everyone), sample - other.over(weights)
        defined = np.isfinite(value[:, 0])
        lost = int((~defined).sum())
        if 0 < lost < len(value):
            notes = [*notes, f"{metric} is undefined on every volume in {lost} of {len(value)} repeats, left out"]
        estimate, drawn = np.nan, np.full(draws, np.nan)
        if defined.any():
            value, sample = value[defined], sample[defined]
            estimate, drawn = float(value.mean()), _mean_of_picked(sample, blank.seed)
        counted = np.all([each.counted for each in statistics], axis=0)
        found = Estimate.from_draws(estimate, drawn, patients[counted])
        paired = len(statistics) > 1
        few = too_few(found.num_patients, "test patients") if paired else ""
        return replace(
            blank,
            target=target,
            metric=metric,
            estimate=found.value,
            ci_low=found.low,
            ci_high=found.high,
            num_samples=found.num_samples,
            num_patients=found.num_patients,
            fraction=key[1] / num_labelled,
            encoder=key[0],
            recipe_hash=recipe_hash if key[0] == judged else "",
            se=found.se,
            sd_repeats=float(value[:, 0].std(ddof=1)) if len(value) > 1 and defined.any() else None,
            detectable=detectable_difference(found.se) if paired and found.se > 0 else None,
            notes=(*([few] if few else []), *blank.notes, *notes),
            labelled_patients=key[1],
        )

    results = []
    targets = {"mask": slice(None)}
    if len(names) > 1:
        targets |= {f"mask={name}": slice(number, number + 1) for number, name in enumerate(names)}
    for target, chosen in targets.items():
        for metric in ("dice", distance, "dice_pcl"):
            if metric == "dice_pcl" and target != "mask":
                continue
            for key, repeats in scores.items():
                if metric == "dice_pcl":
                    results.append(result(metric, target, key, [_Ratio.pooled(repeats)], ()))
                else:
                    values, notes = _values(repeats, metric, chosen), _invented(metric, repeats, chosen)
                    notes = (*_undefined(metric, values), *notes)
                    results.append(result(metric, target, key, [_Ratio.mean_of(values)], notes))
            for other, repeats in scores.items():
                key, notes = (judged, other[1]), tuple[str, ...]()
                if other[0] == judged:
                    continue
                if metric == "dice_pcl":
                    pair = [_Ratio.pooled(scores[key]), _Ratio.pooled(repeats)]
                else:
                    ours, theirs = (_values(each, metric, chosen) for each in (scores[key], repeats))
                    shared = np.isfinite(ours) & np.isfinite(theirs)
                    ours, theirs = np.where(shared, ours, np.nan), np.where(shared, theirs, np.nan)
                    pair, notes = [_Ratio.mean_of(ours), _Ratio.mean_of(theirs)], _undefined(metric, ours)
                results.append(replace(result(metric, target, key, pair, notes), baseline=other[0]))
    return results


def _mean_of_picked(sample: FloatArray, seed: int) -> FloatArray:
    """The mean of draws `[R, B]` over the repeats picked for each, of those that are defined in it; `[B]`."""
    picks = pick_repeats(len(sample), sample.shape[1], seed) * np.isfinite(sample)
    found = np.full(sample.shape[1], np.nan)
    np.divide((np.where(picks > 0, sample, 0.0) * picks).sum(0), picks.sum(0), out=found, where=picks.sum(0) > 0)
    return found


def _values(repeats: Sequence[VolumeScores], metric: str, chosen: slice) -> FloatArray:
    """Dice or distance of these classes, `[R, N, G]`."""
    return np.stack([each.dice if metric == "dice" else each.hd95 for each in repeats])[..., chosen]


def _mean_of_defined(values: FloatArray) -> FloatArray:
    """The mean over the last axis of what is not NaN; NaN where nothing is."""
    given = np.isfinite(values)
    counts = given.sum(-1)
    found = np.full(counts.shape, np.nan)
    np.divide(np.where(given, values, 0.0).sum(-1), counts, out=found, where=counts > 0)
    return found


def _undefined(metric: str, values: FloatArray) -> tuple[str, ...]:
    """How much of values `[R, N, G]` is not there."""
    lost = int((~np.isfinite(values)).sum())
    if not lost:
        return ()
    why = "the truth lacks the class" if metric == "dice" else "truth or prediction lacks the class"
    cases = "cases (a class of a volume in a repeat)"
    return (f"{metric} is undefined in {lost} of {values.size} {cases}, where {why}, and left out",)


def _invented(metric: str, repeats: Sequence[VolumeScores], chosen: slice) -> tuple[str, ...]:
    """How often a class was predicted that the truth lacks, which Dice does not count."""
    found = np.stack([each.invented[:, chosen] for each in repeats]).any(-1)
    if metric != "dice" or not found.any():
        return ()
    return (f"in {int(found.sum())} of {found.size} volumes and repeats a class is predicted that the truth lacks",)
