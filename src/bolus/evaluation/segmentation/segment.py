"""How well an encoder segments when few patients are labelled, the downstream question of GCL (arXiv:2309.08888).

A decoder is put on the encoder and both are trained on the slices of M labelled patients, M after M, several draws of
each; what is judged is whole test volumes, beside the same network with random weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bolus.data.cohort.cohort import CohortLike, Samples
from bolus.embedding.seen import remember_training
from bolus.encoders.modalities import one_encoder
from bolus.errors import EvaluationError
from bolus.evaluation.preparation import Prepared, prepare
from bolus.evaluation.segmentation.annotation import Annotations, read_annotations, why_without
from bolus.evaluation.segmentation.answers import answers_of_volumes
from bolus.evaluation.segmentation.notes import (
    classes_invented,
    classes_missed,
    classes_not_drawn,
    count,
    notes_on_data,
)
from bolus.evaluation.segmentation.options import SegmentSpec
from bolus.evaluation.segmentation.overlays import save_picture
from bolus.evaluation.segmentation.saved import save_segmenter
from bolus.evaluation.segmentation.segmenter import draw_labelled
from bolus.evaluation.segmentation.slices import Slices
from bolus.evaluation.segmentation.stacks import find_volumes, true_sizes
from bolus.evaluation.segmentation.task import TARGET, Segment
from bolus.evaluation.segmentation.volume_scores import (
    SegmenterKey,
    VolumeScores,
    results_of,
    score_volumes,
    tabulate_scores,
)
from bolus.evaluation.segmentation.volumes.masks import read_volume_masks
from bolus.evaluation.segmentation.volumes.whole import Whole, find_whole
from bolus.evaluation.settings import Judging
from bolus.evaluation.statistics.answers import Answer
from bolus.evaluation.statistics.metrics import IntArray
from bolus.evaluation.statistics.results import Result
from bolus.evaluation.statistics.verdict import asked_of, verdicts_of
from bolus.evaluation.writing import write_evaluation
from bolus.progress import Meter
from bolus.seeds import seed_for


@dataclass(repr=False)
class Segmentation:
    """What `evaluate_segment` found.

    Args:
        results: of task `segment`: target `mask` (mean over classes) and, of several classes, `mask=CLASS`.
        volumes: a line for each number of labelled patients, repeat, encoder, test volume and class: `row` of the
            table (from 1) of its first slice, how large its truth is (`true_sizes`), `dice`, and the two distances.
        folder: where results, volumes, notes and overlays were written.
        notes: what a reader must know, in sentences.
    """

    results: list[Result]
    volumes: pd.DataFrame
    folder: Path
    notes: list[str]

    def summary(self) -> str:
        """A small table of the mean Dice, and verdicts on the judged encoder at the most labelled patients.

        They are against the start, where there is one, and against the random-init twin: fixed beforehand.
        """
        main = [each for each in self.results if (each.target, each.metric) == (TARGET, "dice")]
        lines = [f"{'patients':>8}  {'encoder':<28}dice [95 % interval over patients]"]
        lines += [
            f"{each.labelled_patients:>8}  {each.encoder:<28}{each.interval}" for each in main if not each.baseline
        ]
        asked = asked_of(main)
        said = [f"{TARGET}, {count(each.labelled_patients or 0, 'labelled patient')}: {one}"
                for each, one in zip(asked, verdicts_of(asked), strict=True)]  # fmt: skip
        return "\n".join([*lines, *said])

    def __repr__(self) -> str:
        return f"Segmentation({len(self.results)} results in {self.folder})"

    def text(self) -> str:
        """The summary and the notes."""
        notes = [f"note: {note}" for note in self.notes]
        pictures = ", overlays" if any(self.folder.glob("overlay-*.png")) else ""
        what = f"results, volumes{pictures} and a segmenter"
        return "\n".join([self.summary(), "", *notes, f"wrote {what} to {self.folder}"])


def evaluate_segment(
    source: str | Path,
    cohort: CohortLike,
    *,
    target: str = TARGET,
    labelled: Sequence[int] = (1, 2, 6, 10),
    repeats: int = 3,
    spec: SegmentSpec | None = None,
    classes: Mapping[int, str] | None = None,
    seed: int = 0,
    draws: int = 1000,
    out: str | Path | None = None,
    size: int | None = None,
    cache: Path | None = None,
    overlays: int = 0,
    quiet: bool = False,
) -> Segmentation:
    """Judge an encoder by the masks that it and a decoder learn from few labelled patients.

    Training slices are those of M training patients with masks (all their slices that have one); draws are nested in M,
    and every encoder is trained on the same patients, batches and views. Test volumes are `find_volumes`'. Each
    class's 3-D Dice and 95 % Hausdorff distance (`hd95_mm` where the spacing of every test volume is known, else
    `hd95_voxels`) are averaged over the classes that the truth of a volume has (for the distance, that the prediction
    has too, so that it leans towards an encoder that misses classes), then over volumes and repeats. In
    `hd95_mm_misses` or `hd95_voxels_misses` a class that the prediction lacks counts as the diagonal of the volume
    (`overlap.count_misses`): every encoder is judged on the same volumes. `dice_pcl` pools all voxels of all volumes,
    as PCL's code does. The last weights are taken: nothing is chosen, and validation patients are not used.

    An encoder of volumes is trained on windows of them, and draws by windows that slide
    (`bolus.evaluation.segmentation.volumes`); masks are of whole volumes, and `surface_dice` is reported as well.

    Args:
        source: run folder, encoder folder or hub name; of single images, or of volumes.
        cohort: cohort.yaml, a table with conventional column names, or an open cohort; with the role mask.
        target: `mask`.
        labelled: numbers M of labelled training patients.
        repeats: draws of each.
        spec: how encoder and decoder are trained; the defaults where None.
        classes: label -> name; None: the labels in the masks of the training patients. 0 is the background.
        seed: of draws of patients, training, the random-init twin, and the bootstrap.
        draws: bootstrap resamples of the test patients.
        out: folder for results.jsonl, volumes.parquet (no patient identifiers), notes.json, overlays and, in
            `segmenter-mask/`, the segmenter (judged encoder, most labelled patients, first draw) for `bolus predict`,
            which replace those of an earlier evaluation; where None a folder of this question in the run's
            `evaluations/`.
        size: input pixels of an encoder that does not state them.
        cache: cache folder; the user's where None.
        overlays: write so many pictures at most, a test volume each: its middle slice (of an encoder of volumes, the
            one with most of the truth) with the outlines of truth and prediction (judged encoder, most labelled
            patients, first draw).
        quiet: show no progress.

    Raises:
        EvaluationError: no role mask, an encoder of clips or of mirrored sides, fewer training patients with masks than
            the largest M, no test volume, or a training whose loss is not finite, with its encoder, M, draw and step.
        CohortError: masks that cannot be used, or slices without a place in their volume, with their rows (see
            `read_annotations`, `find_volumes`, `read_volume_masks`).
        LeakageError: the encoder was trained on validation or test patients of the cohort.
        UsageError: numbers out of range, another target or classes that cannot be, before anything is read; or a size
            for an encoder that states its own.
        EncoderError: the encoder cannot be opened.
    """
    task = Segment(target, labelled, repeats, overlays, classes, spec or SegmentSpec())
    return judge(task, source, cohort, Judging(seed, draws, size, cache, out, quiet=quiet))


def ask(task: Segment, samples: Samples) -> Annotations:
    """The masks of the samples' cohort, which must be enough for the task.

    Raises:
        EvaluationError: fewer training patients with masks than the largest number of labelled patients, or no test
            volume.
        CohortError: masks that cannot be used, or slices without a place in their volume.
    """
    task.spec.check_unit(samples.unit)
    if samples.unit == "volume":
        found = read_volume_masks(samples, task.classes)
    else:
        found = read_annotations(samples.cohort, task.classes)
    _labelled_rows(samples, found, None, max(task.labelled))
    if samples.unit == "volume":
        find_whole(samples, found)
    else:
        find_volumes(samples.cohort, found)
    return found


def judge(task: Segment, source: str | Path, cohort: CohortLike, judging: Judging) -> Segmentation:
    """Train and score as `evaluate_segment`, and write the files; Args and Raises as there."""
    return _judge(task, prepare(source, cohort, task, partial(ask, task), judging))


def answers(task: Segment, folder: Path, patient: Callable[[pd.Series[Any]], IntArray], encoder: str) -> list[Answer]:
    """As `bolus.evaluation.tasks.answers`."""
    return answers_of_volumes(pd.read_parquet(folder / "volumes.parquet"), patient, encoder)


def _judge(task: Segment, prepared: Prepared[Annotations]) -> Segmentation:
    store, samples, annotations, judging = prepared.store, prepared.samples, prepared.asked, prepared.judging
    cohort, spec, numbers, seed = samples.cohort, task.spec, task.labelled, judging.seed
    known = (Whole if samples.unit == "volume" else Slices)(annotations, prepared, spec)
    training = _labelled_rows(samples, annotations, store.readable, numbers[-1])
    volumes, notes = known.find()
    in_mm = all(volume.spacing is not None for volume in volumes)
    patients = cohort.encoded("patient")
    num_labelled = len(np.unique(patients[training]))
    encoders = {name: one_encoder(each, wanted_by="segmentation") for name, each in prepared.encoders().items()}
    folder = prepared.folder(f"segment-{TARGET}")
    scores: dict[SegmenterKey, list[VolumeScores]] = {(name, number): [] for number in numbers for name in encoders}
    drawn = dict[tuple[int, int], IntArray]()
    tables, pictures = [], list[tuple[str, NDArray[np.uint8]]]()
    first = cohort.origin[[volume.rows[0] for volume in volumes]] + 1
    distance, sizes = "hd95_mm" if in_mm else "hd95_voxels", true_sizes(volumes, annotations.num_classes)

    def draw(number: int, predicted: IntArray) -> None:
        if number < task.overlays:
            picture = known.draw(volumes[number], predicted)
            pictures.append((f"overlay-row{first[number]}.png", picture))

    with Meter("training segmenters, step", len(scores) * task.repeats * spec.steps, quiet=judging.quiet) as meter:
        for number, repeat in product(numbers, range(task.repeats)):
            chosen = draw_labelled(patients[training], number, seed=seed, repeat=repeat)
            drawn[number, repeat] = rows = training[np.isin(patients[training], chosen)]
            for name, encoder in encoders.items():
                where = f"{name}, {count(number, 'labelled patient')}, draw {repeat + 1}"
                try:
                    given: Any = {"seed": seed_for(seed, "segment", repeat), "on_step": _counter(meter, where)}
                    trained = known.fit(encoder, rows, **given)
                except EvaluationError as error:
                    raise EvaluationError(f"{where}: {error}") from error
                shown = (number, repeat, name) == (numbers[-1], 0, next(iter(encoders)))
                if shown:
                    kept = trained, rows
                found = score_volumes(
                    trained,
                    volumes,
                    in_mm=in_mm,
                    on_volume=draw if shown else None,
                    predict=known.predict,
                    tolerance=known.tolerance,
                )
                scores[name, number].append(found)
                about: dict[str, int | str] = {"labelled_patients": number, "repeat": repeat, "encoder": name}
                tables.append(tabulate_scores(found, first, annotations.names, about, distance, sizes))
    blank = Result(
        "segment", TARGET, "dice", np.nan, np.nan, np.nan, 0, 0,
        seed=seed, split_hash=prepared.origin.split_hash, probe="finetune" if spec.whole else "frozen",
    )  # fmt: skip
    results = results_of(
        scores,
        np.array([volume.patient for volume in volumes]),
        annotations.names,
        blank,
        judged=next(iter(encoders)),
        distance=distance,
        num_labelled=num_labelled,
        draws=judging.draws,
        recipe_hash=prepared.origin.recipe_hash,
    )
    seen = known.notes(volumes)
    said = notes_on_data(annotations, volumes, num_labelled, numbers, spec, known.batch, seen)
    said += [*classes_not_drawn(annotations, drawn), *classes_invented(scores), *classes_missed(scores, distance)]
    notes = [*said, *notes, *prepared.notes]
    evaluation = Segmentation(results, pd.concat(tables, ignore_index=True), folder, notes)
    files: dict[str, Callable[[Path], object]] = {"volumes.parquet": evaluation.volumes.to_parquet}
    files |= {name: partial(save_picture, picture) for name, picture in pictures}
    own = cohort.hash_trained()
    save_segmenter(
        kept[0],
        folder / f"segmenter-{TARGET}",
        labels=dict(zip(annotations.labels, annotations.names, strict=True)),
        patients=cohort.patients.iloc[kept[1]],
        lineage=[own, *prepared.judged.lineage],
        seen={**remember_training(cohort, prepared.store, own), **prepared.judged.seen},
    )
    stale = ["overlay-row*.png"]
    write_evaluation(folder, results, notes, {TARGET: []}, rows_hash=cohort.rows_hash, files=files, stale=stale)
    return evaluation


def _counter(meter: Meter, note: str) -> Callable[[int], None]:
    """What is told of each step of one training."""
    before = meter.done
    return lambda done: meter.update(before + done, note)


def _labelled_rows(
    samples: Samples, annotations: Annotations, readable: NDArray[np.bool_] | None, most: int
) -> IntArray:
    """Training rows with a mask and an image, of enough patients; of volumes the first ones."""
    cohort, thing = samples.cohort, "a volume" if samples.unit == "volume" else "an image"
    rows: IntArray = np.array(sorted(annotations.codes), dtype=np.int64)
    rows = rows[cohort.split[rows] == "train"]
    if readable is not None:
        rows = rows[readable[rows]]
    found = len(np.unique(cohort.encoded("patient")[rows]))
    if found < most:
        raise EvaluationError(
            f"labelled patients (--labelled-patients): {most} asked for, and {count(found, 'training patient')} "
            f"{'has' if found == 1 else 'have'} a mask and {thing}; {why_without(samples, 'train', rows.tolist())}"
        )
    return rows
