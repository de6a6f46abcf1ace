"""What a segmenter is worth on whole volumes, and from that the estimates and differences over patients.

Dimension letters: R repeats, N volumes, K classes with the background, B bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bolus.data.masks import from_square
from bolus.evaluation.annotation import Volume
from bolus.evaluation.comparison import pick_repeats
from bolus.evaluation.intervals import Estimate, detectable_difference, patient_bootstrap
from bolus.evaluation.metrics import FloatArray, IntArray
from bolus.evaluation.overlap import volume_dice, volume_hd95
from bolus.evaluation.results import Result
from bolus.evaluation.segmenter import Segmenter
from bolus.evaluation.verdict import too_few

Key = tuple[str, int]
"""An encoder's name and the number of labelled patients."""


@dataclass(frozen=True, eq=False)
class VolumeScores:
    """Scores of N volumes and the K - 1 foreground classes, `[N, K - 1]` each.

    Args:
        dice: NaN where neither truth nor prediction has the class.
        hd95: in mm or voxels, NaN where either lacks the class.
        both: voxels that truth and prediction give to the class.
        either: the sum of what the truth and what the prediction give to it.
    """

    dice: FloatArray
    hd95: FloatArray
    both: FloatArray
    either: FloatArray


def score_volumes(segmenter: Segmenter, volumes: Sequence[Volume], *, in_mm: bool = False) -> VolumeScores:
    """Predict every slice of the volumes at its own size, and compare.

    Args:
        segmenter: trained; its samples are single images, so that a position is a row.
        volumes: whose truth has classes 0..K-1.
        in_mm: measure distances in mm, of volumes that all have a spacing; else in voxels.
    """
    num_classes = segmenter.num_classes
    found = []
    for volume in volumes:
        predicted = predict_volume(segmenter, volume)
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


def predict_volume(segmenter: Segmenter, volume: Volume) -> IntArray:
    """The predicted classes of a volume's slices at their own size, int64 `[T, H, W]`."""
    height, width = volume.truth.shape[1:]
    scores = segmenter.predict(volume.rows)
    return from_square(scores, (height, width), fit=segmenter.store.preprocessing.fit)


@dataclass(frozen=True, eq=False)
class _Ratio:
    """A statistic of volumes: sums of `top` over sums of `bottom`, `[R, N, G]` each, and their mean over the groups."""

    top: FloatArray
    bottom: FloatArray

    @classmethod
    def mean_of(cls, values: FloatArray) -> _Ratio:
        """The mean of values `[R, N]` that are defined."""
        given = np.isfinite(values)
        return cls(np.where(given, values, 0.0)[..., None], given.astype(np.float64)[..., None])

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

    The mean of what is defined over volumes, then over repeats, with an interval over draws of the test patients and
    of the repeats. For a distance, a difference is taken over volumes on which both encoders have one.

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
    few = too_few(len(np.unique(patients)), "test patients")
    picks = {num: pick_repeats(num, draws, blank.seed) for num in {len(repeats) for repeats in scores.values()}}

    def result(metric: str, target: str, key: Key, statistics: Sequence[_Ratio], notes: Sequence[str]) -> Result:
        value, sample = (statistics[0].over(each) for each in (everyone, weights))
        for other in statistics[1:]:
            value, sample = value - other.over(everyone), sample - other.over(weights)
        drawn = (sample * picks[len(value)]).sum(0)
        found = Estimate.from_draws(float(value.mean()), drawn, patients)
        paired = len(statistics) > 1
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
            sd_repeats=float(value[:, 0].std(ddof=1)) if len(value) > 1 else None,
            detectable=detectable_difference(found.se) if paired and found.se != 0 else None,
            notes=(*([few] if few and paired else []), *blank.notes, *notes),
            labelled_patients=key[1],
        )

    results = []
    targets: dict[str, slice | int] = {"mask": slice(None)}
    if len(names) > 1:
        targets |= {f"mask={name}": number for number, name in enumerate(names)}
    for target, chosen in targets.items():
        for metric in ("dice", distance, "dice_pcl"):
            if metric == "dice_pcl" and target != "mask":
                continue
            for key in scores:
                if metric == "dice_pcl":
                    results.append(result(metric, target, key, [_pooled(scores[key])], ()))
                else:
                    values = _values(scores[key], metric, chosen)
                    results.append(result(metric, target, key, [_Ratio.mean_of(values)], _undefined(metric, values)))
            for other in scores:
                key, notes = (judged, other[1]), tuple[str, ...]()
                if other[0] == judged:
                    continue
                if metric == "dice_pcl":
                    pair = [_pooled(scores[key]), _pooled(scores[other])]
                else:
                    ours, theirs = (_values(scores[each], metric, chosen) for each in (key, other))
                    if metric != "dice":
                        shared = np.isfinite(ours) & np.isfinite(theirs)
                        ours, theirs = np.where(shared, ours, np.nan), np.where(shared, theirs, np.nan)
                    pair, notes = [_Ratio.mean_of(ours), _Ratio.mean_of(theirs)], _undefined(metric, ours)
                results.append(replace(result(metric, target, key, pair, notes), baseline=other[0]))
    return results


def _pooled(repeats: Sequence[VolumeScores]) -> _Ratio:
    return _Ratio(2 * np.stack([each.both for each in repeats]), np.stack([each.either for each in repeats]))


def _values(repeats: Sequence[VolumeScores], metric: str, chosen: slice | int) -> FloatArray:
    """Dice or distance of a class, or the mean over the classes that have one, `[R, N]`."""
    values = np.stack([each.dice if metric == "dice" else each.hd95 for each in repeats])
    return values[..., chosen] if isinstance(chosen, int) else _mean_of_defined(values)


def _mean_of_defined(values: FloatArray) -> FloatArray:
    """The mean over the last axis of what is not NaN; NaN where nothing is."""
    given = np.isfinite(values)
    counts = given.sum(-1)
    found = np.full(counts.shape, np.nan)
    np.divide(np.where(given, values, 0.0).sum(-1), counts, out=found, where=counts > 0)
    return found


def _undefined(metric: str, values: FloatArray) -> tuple[str, ...]:
    lost = int((~np.isfinite(values)).sum())
    if not lost:
        return ()
    why = "neither truth nor prediction has it" if metric == "dice" else "truth or prediction lacks it"
    return (f"{metric} is undefined in {lost} of {values.size} volumes and repeats, where {why}, and left out",)
