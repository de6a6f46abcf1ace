"""What a segmenter is worth on whole volumes, and from that the estimates and differences over patients.

Dimension letters: R repeats, N volumes, K classes with the background, B bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bolus.data.readers.masks import from_square
from bolus.evaluation.segmentation.overlap import count_misses, volume_dice, volume_hd95, volume_surface_dice
from bolus.evaluation.segmentation.segmenter import Segmenter
from bolus.evaluation.segmentation.stacks import Volume
from bolus.evaluation.statistics.bootstrap import patient_bootstrap
from bolus.evaluation.statistics.intervals import Estimate
from bolus.evaluation.statistics.metrics import FloatArray, IntArray
from bolus.evaluation.statistics.results import Result, filled
from bolus.evaluation.statistics.verdict import too_few
from bolus.evaluation.statistics.weighting import mean_of_defined

SegmenterKey = tuple[str, int]
"""An encoder's name and the number of labelled patients."""

Predict = Callable[[Segmenter, Volume], IntArray]


@dataclass(frozen=True, eq=False)
class VolumeScores:
    """Scores of N volumes and the K - 1 foreground classes, `[N, K - 1]` each.

    Args:
        dice: NaN where the truth lacks the class.
        hd95: in mm or voxels, NaN where truth or prediction lacks the class.
        hd95_misses: likewise, the diagonal of the volume where only the prediction lacks it (`count_misses`).
        both: voxels that truth and prediction give to the class.
        either: the sum of what the truth and what the prediction give to it.
        surface: share of the surfaces within a tolerance, NaN where the truth lacks the class; None where not asked.
    """

    dice: FloatArray
    hd95: FloatArray
    hd95_misses: FloatArray
    both: FloatArray
    either: FloatArray
    surface: FloatArray | None = None

    @property
    def invented(self) -> NDArray[np.bool_]:
        """Where a class was predicted that the truth lacks, bool `[N, K - 1]`; Dice has no value there."""
        return np.isnan(self.dice) & (self.either > 0)

    @property
    def missed(self) -> NDArray[np.bool_]:
        """Where the truth has a class and the prediction lacks it, bool `[N, K - 1]`; `hd95` has no value there."""
        return np.isnan(self.hd95) & ~np.isnan(self.hd95_misses)


def misses_of(distance: str) -> str:
    """Name of the distances that count a missed class as the diagonal of the volume.

    >>> misses_of("hd95_mm")
    'hd95_mm_misses'
    """
    return f"{distance}_misses"


def score_volumes(
    segmenter: Segmenter,
    volumes: Sequence[Volume],
    *,
    in_mm: bool = False,
    on_volume: Callable[[int, IntArray], None] | None = None,
    predict: Predict | None = None,
    tolerance: float | None = None,
) -> VolumeScores:
    """Predict the volumes at their own size, and compare.

    Args:
        segmenter: trained.
        volumes: whose truth has classes 0..K-1.
        in_mm: measure distances in mm, of volumes that all have a spacing; else in voxels.
        on_volume: called with the number of each volume and its predicted classes `[T, H, W]`.
        predict: the predicted classes of a volume; None: `predict_volume`, slice by slice.
        tolerance: of surfaces, in mm or voxels; None: they are not compared.
    """
    predict = predict or predict_volume
    num_classes = segmenter.num_classes
    found = list[tuple[FloatArray, ...]]()
    for number, volume in enumerate(volumes):
        predicted = predict(segmenter, volume)
        if on_volume is not None:
            on_volume(number, predicted)
        hits = np.bincount(predicted[predicted == volume.truth], minlength=num_classes)
        sizes = np.bincount(predicted.ravel(), minlength=num_classes)
        sizes = sizes + np.bincount(volume.truth.ravel(), minlength=num_classes)
        spacing = volume.spacing if in_mm else None
        distances = volume_hd95(predicted, volume.truth, num_classes, spacing)
        found.append(
            (
                volume_dice(predicted, volume.truth, num_classes),
                distances,
                count_misses(distances, volume.truth, spacing),
                hits[1:].astype(np.float64),
                sizes[1:].astype(np.float64),
            )
        )
        if tolerance is not None:
            surface = volume_surface_dice(predicted, volume.truth, num_classes, spacing, tolerance=tolerance)
            found[-1] = (*found[-1], surface)
    stacked = (np.stack(each) for each in zip(*found, strict=True))
    return VolumeScores(*stacked)


def tabulate_scores(
    scores: VolumeScores,
    first: IntArray,
    names: Sequence[str],
    about: Mapping[str, int | str],
    distance: str,
    sizes: Mapping[str, NDArray[Any]],
) -> pd.DataFrame:
    """One trained segmenter's scores, a line for each volume and class.

    Args:
        scores: of N volumes.
        first: int `[N]`, which row each volume begins in.
        names: of the foreground classes.
        about: further columns, which are the same in every line.
        distance: name of the column of distances; beside it stands that of `misses_of` it.
        sizes: of the truth, `true_sizes`.
    """
    columns = {"row": np.repeat(first, len(names)), **about, "class": np.tile(np.array(names, object), len(first))}
    found = {**sizes, "dice": scores.dice, distance: scores.hd95, misses_of(distance): scores.hd95_misses}
    if scores.surface is not None:
        found["surface_dice"] = scores.surface
    return pd.DataFrame({**columns, **{name: values.ravel() for name, values in found.items()}})


def predict_volume(segmenter: Segmenter, volume: Volume) -> IntArray:
    """The predicted classes of a volume's slices at their own size, int64 `[T, H, W]`; a position is a row."""
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
        means = mean_of_defined(values)
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
        return mean_of_defined(groups)


def results_of(
    scores: Mapping[SegmenterKey, Sequence[VolumeScores]],
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
    which both encoders have a value: of the distance only those on which both found the class, which a note says with
    the number of misses of each; of that with misses (`misses_of`) all whose truth has it. Numbers of samples and
    patients are those of the volumes that have a value in some repeat, or for a difference both values.

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

    def result(
        metric: str,
        target: str,
        key: SegmenterKey,
        statistics: Sequence[_Ratio],
        notes: Sequence[str],
        baseline: str = "",
    ) -> Result:
        value, sample = (statistics[0].over(each) for each in (everyone, weights))
        for other in statistics[1:]:
            value, sample = value - other.over(everyone), sample - other.over(weights)
        defined = np.isfinite(value[:, 0])
        lost = int((~defined).sum())
        if 0 < lost < len(value):
            notes = [*notes, f"{metric} is undefined on every volume in {lost} of {len(value)} repeats, left out"]
        if defined.any():
            value, sample = value[defined], sample[defined]
        counted = np.all([each.counted for each in statistics], axis=0)
        found = Estimate.from_draws(value[:, 0], sample, patients[counted], metric=metric, difference=bool(baseline))
        few = too_few(found.num_patients, "test patients") if baseline else ""
        return filled(
            blank,
            found,
            target=target,
            metric=metric,
            baseline=baseline,
            fraction=key[1] / num_labelled,
            encoder=key[0],
            recipe_hash=recipe_hash if key[0] == judged else "",
            sd_repeats=float(value[:, 0].std(ddof=1)) if len(value) > 1 and defined.any() else None,
            notes=(*([few] if few else []), *blank.notes, *notes),
            labelled_patients=key[1],
        )

    results = []
    targets = {"mask": slice(None)}
    if len(names) > 1:
        targets |= {f"mask={name}": slice(number, number + 1) for number, name in enumerate(names)}
    surfaces = all(each.surface is not None for repeats in scores.values() for each in repeats)
    metrics = ("dice", distance, misses_of(distance), *(["surface_dice"] if surfaces else []), "dice_pcl")
    for target, chosen in targets.items():
        for metric in metrics:
            if metric == "dice_pcl" and target != "mask":
                continue
            for key, repeats in scores.items():
                if metric == "dice_pcl":
                    results.append(result(metric, target, key, [_Ratio.pooled(repeats)], ()))
                else:
                    values = _values(repeats, metric, chosen)
                    beside = {name: each for (name, number), each in scores.items() if number == key[1]}
                    notes = _left_out(metric, values, beside, chosen, key[0])
                    notes = (*notes, *_invented(metric, repeats, chosen))
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
                    pair = [_Ratio.mean_of(ours), _Ratio.mean_of(theirs)]
                    notes = _left_out(metric, ours, {judged: scores[key], other[0]: repeats}, chosen)
                results.append(result(metric, target, key, pair, notes, other[0]))
    return results


def _values(repeats: Sequence[VolumeScores], metric: str, chosen: slice) -> FloatArray:
    """Dice, of voxels or surfaces, or distance of these classes, `[R, N, G]`."""
    names = {"dice": "dice", "surface_dice": "surface"}
    name = names.get(metric) or ("hd95_misses" if _counts_misses(metric) else "hd95")
    return np.stack([getattr(each, name) for each in repeats])[..., chosen]


def _counts_misses(metric: str) -> bool:
    return metric.endswith(misses_of(""))


_CASES = "cases (a class of a volume in a repeat)"
_SHARES = ("dice", "surface_dice")  # which are 0 where a class is missed


def _left_out(
    metric: str, values: FloatArray, encoders: Mapping[str, Sequence[VolumeScores]], chosen: slice, of: str = ""
) -> tuple[str, ...]:
    """Which cases values `[R, N, G]` are not of, and of distances what the misses of these encoders do to them.

    Args:
        metric: Dice or distance.
        values: NaN in cases that are left out.
        encoders: name -> one for each repeat; the two of a difference, else all that stand beside each other.
        chosen: of the classes.
        of: the encoder that the values are of; empty for a difference.
    """
    defined = int(np.isfinite(values).sum())
    lost, notes = values.size - defined, list[str]()
    if lost and (metric in _SHARES or _counts_misses(metric)):
        why = "where the truth lacks the class, and left out"
        notes.append(f"{metric} is undefined in {lost} of {values.size} {_CASES}, {why}")
    if metric in _SHARES:
        return tuple(notes)
    missed = {name: int(sum(each.missed[:, chosen].sum() for each in all_)) for name, all_ in encoders.items()}
    shown = f"missed: {', '.join(f'{number} by {name}' for name, number in missed.items())}"
    if _counts_misses(metric):
        lacking = "one whose prediction lacks it counts as the diagonal of its volume"
        return (*notes, f"{metric} is over all {defined} {_CASES} whose truth has the class; {lacking} ({shown})")
    first = next(iter(encoders.values()))  # the truth is that of all
    there = int(sum(np.isfinite(each.hd95_misses[:, chosen]).sum() for each in first))
    over = f"{metric} is over {defined} of {there} {_CASES} whose truth has the class"
    return (f"{over}, those in which {of or 'both'} found it ({shown}); {_leaning(metric, missed, of)}",)


def _leaning(metric: str, missed: Mapping[str, int], of: str) -> str:
    """Whom it favours that missed cases are left out: by how many each encoder missed.

    >>> _leaning("hd95_mm", {"run": 3, "random-init": 8}, "")
    'the difference leans towards random-init, which misses it more often; see hd95_mm_misses'
    """
    most, what = max(missed.values()), "comparing such values" if of else "the difference"
    names = [name for name, number in missed.items() if number == most]
    if most == 0:
        return "nothing was missed"
    if len(missed) == 1:
        leans = "what was missed does not count"
    elif len(names) == len(missed):
        leans = f"all miss it as often, so that by number {what} leans towards none"
    else:
        leans = f"{what} leans towards {' and '.join(names)}, which miss{'es' * (len(names) == 1)} it more often"
    return f"{leans}; see {misses_of(metric)}"


def _invented(metric: str, repeats: Sequence[VolumeScores], chosen: slice) -> tuple[str, ...]:
    """How often a class was predicted that the truth lacks, which Dice does not count."""
    found = np.stack([each.invented[:, chosen] for each in repeats]).any(-1)
    if metric != "dice" or not found.any():
        return ()
    return (f"in {int(found.sum())} of {found.size} volumes and repeats a class is predicted that the truth lacks",)
