"""What a reader of a segmentation must know, in sentences: of its data, its training, and what its scores leave out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from bolus.data.pixels.square import Fit
from bolus.data.readers.masks import kept_part
from bolus.evaluation.segmentation.annotation import Annotations
from bolus.evaluation.segmentation.options import SegmentSpec
from bolus.evaluation.segmentation.stacks import Volume, why_in_voxels
from bolus.evaluation.segmentation.volume_scores import SegmenterKey, VolumeScores, misses_of
from bolus.evaluation.statistics.metrics import IntArray


def count(number: int, thing: str) -> str:
    """So many things, in words.

    >>> count(1, "patient"), count(2, "patient")
    ('1 patient', '2 patients')
    """
    return f"{number} {thing}{'' if number == 1 else 's'}"


def notes_on_data(
    annotations: Annotations,
    volumes: Sequence[Volume],
    num_labelled: int,
    numbers: Sequence[int],
    spec: SegmentSpec,
    batch: str,
    seen: Sequence[str],
) -> list[str]:
    """Of patients, classes, training, and what the scores are in.

    Args:
        annotations: of all that has masks.
        volumes: the test volumes.
        num_labelled: training patients with masks.
        numbers: of labelled patients, ascending.
        spec: how segmenters are trained.
        batch: what a step sees.
        seen: what the encoder sees of the volumes, in sentences.
    """
    people = len({volume.patient for volume in volumes})
    trained = "encoder and decoder" if spec.whole else "the decoder alone"
    which = f"{count(len(volumes), 'test volume')} of {count(people, 'patient')}"
    notes = [
        f"{count(num_labelled, 'training patient')} {'has' if num_labelled == 1 else 'have'} masks; {which}",
        f"classes: {', '.join(annotations.names)}",
        f"{trained} learnt for {count(spec.steps, 'step')} of {batch}, whatever number was labelled",
        "nothing was chosen: the last weights are judged, and validation patients are not used",
        *annotations.notes,
        *seen,
    ]
    in_voxels = why_in_voxels(volumes)
    if in_voxels:
        notes.append(in_voxels)
    if numbers[-1] == num_labelled:
        notes.append(f"with {count(num_labelled, 'labelled patient')} all draws are of the same patients")
    return notes


def cropped_off(volumes: Sequence[Volume], fit: Fit) -> list[str]:
    """Where the encoder sees a crop: how much of what is to be found lies outside of it."""
    inside = total = 0
    for volume in volumes:
        shape = (volume.truth.shape[1], volume.truth.shape[2])
        for number, labels in enumerate(volume.truth):
            inside += int((labels[kept_part(shape, fit=fit, aspect=volume.aspect_of(number))] > 0).sum())
        total += int((volume.truth > 0).sum())
    if inside == total:
        return []
    share = 1 - inside / total
    return [f"{share:.1%} of the foreground of the test volumes is outside the crop that the encoder sees: never found"]


def classes_not_drawn(annotations: Annotations, drawn: Mapping[tuple[int, int], IntArray]) -> list[str]:
    """Of which draws no mask has a class, which then cannot be learnt.

    Args:
        annotations: of all rows.
        drawn: (labelled patients, repeat) -> training rows.
    """
    present = {
        row: set(np.unique(annotations.codes[row]).tolist())
        for row in np.unique(np.concatenate(list(drawn.values()))).tolist()
    }
    lacking: dict[tuple[int, int], list[int]] = {}
    for (number, repeat), rows in drawn.items():
        there = set().union(*(present[row] for row in rows.tolist()))
        for code in range(1, annotations.num_classes):
            if code not in there:
                lacking.setdefault((number, code), []).append(repeat + 1)
    return [
        f"in draw{'' if len(draws) == 1 else 's'} {_listed(draws)} of {count(number, 'patient')} no mask has class "
        f"{annotations.names[code - 1]}; it was not learnt there, and its numbers say nothing of the encoder"
        for (number, code), draws in sorted(lacking.items())
    ]


def classes_invented(scores: Mapping[SegmenterKey, Sequence[VolumeScores]]) -> list[str]:
    """How often each encoder drew a class in a test volume whose truth lacks it, which Dice does not count."""
    notes = []
    for name in dict.fromkeys(name for name, _ in scores):
        found = np.stack(
            [each.invented.any(1) for key, repeats in scores.items() if key[0] == name for each in repeats]
        )
        if found.any():
            shown = f"{int(found.sum())} of {count(found.size, 'prediction')} of test volumes"
            notes.append(f"{name}: {shown} have a class that the truth of the volume lacks; dice and hd95 leave it out")
    return notes


def classes_missed(scores: Mapping[SegmenterKey, Sequence[VolumeScores]], distance: str) -> list[str]:
    """How often each encoder missed a class, and what either distance makes of that; nothing where none did.

    Args:
        scores: (encoder, labelled patients) -> one for each repeat, of the same volumes.
        distance: name of the metric that leaves these cases out.
    """
    shown, lost = [], 0
    for name in dict.fromkeys(name for name, _ in scores):
        found = [each for key, repeats in scores.items() if key[0] == name for each in repeats]
        missed = sum(int(each.missed.sum()) for each in found)
        there = sum(int(np.isfinite(each.hd95_misses).sum()) for each in found)
        shown.append(f"{name} in {missed} of {there}")
        lost += missed
    if not lost:
        return []
    lacked = f"a class that the truth of a test volume has was not predicted at all by {', '.join(shown)} cases"
    why = f"{distance} leaves these out and leans towards an encoder that misses more"
    return [f"{lacked}: {why}; {misses_of(distance)} counts each as the diagonal of its volume"]


def _listed(numbers: Iterable[int], limit: int = 5) -> str:
    numbers = list(numbers)
    more = f" and {len(numbers) - limit} more" if len(numbers) > limit else ""
    return ", ".join(map(str, numbers[:limit])) + more
