"""A label or a number, read off an encoder: embed, find the targets, probe, compare, write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.cohort.cohort import Cohort, CohortLike, Samples
from bolus.device import Precision
from bolus.embedding.seen import remember_training
from bolus.encoders.folders.stripping import KNOWN
from bolus.errors import UsageError
from bolus.evaluation.notebook import as_html
from bolus.evaluation.preparation import PRESENT, Prepared, embed_all, prepare
from bolus.evaluation.probing.answers import answers_of_probes
from bolus.evaluation.probing.finetune import Finetuned
from bolus.evaluation.probing.fitting import has_target
from bolus.evaluation.probing.future import Ahead, beside_present, look_ahead, present_columns
from bolus.evaluation.probing.heads import digest_of_encoder
from bolus.evaluation.probing.options import EMBEDDED, FinetuneSpec, Probing
from bolus.evaluation.probing.probe import ProbeReport, probe
from bolus.evaluation.probing.task import Classify, Regress, TargetTask
from bolus.evaluation.probing.trainers import trainers_of
from bolus.evaluation.probing.twins import embed_twins
from bolus.evaluation.settings import Judging
from bolus.evaluation.statistics.answers import Answer
from bolus.evaluation.statistics.metrics import IntArray
from bolus.evaluation.statistics.results import Result
from bolus.evaluation.statistics.verdict import asked_of, leading
from bolus.evaluation.targets import Target, check_classes_told, file_name, find_targets, shown
from bolus.evaluation.writing import write_evaluation


@dataclass(repr=False)
class Evaluation:
    """What is read off an encoder.

    Args:
        reports: target -> its probe report.
        folder: where results, predictions, notes and linear heads were written.
        notes: what holds for all of them.
    """

    reports: dict[str, ProbeReport]
    folder: Path
    notes: list[str]

    @property
    def results(self) -> list[Result]:
        """Every result of every target."""
        return [result for report in self.reports.values() for result in report.results]

    def summaries(self) -> dict[str, str]:
        """Target -> its table and verdicts, with what Holm's correction over those of all targets leaves of them."""
        asked = {name: asked_of(report.results) for name, report in self.reports.items()}
        return {
            name: report.summary([each for other, all_of in asked.items() if other != name for each in all_of])
            for name, report in self.reports.items()
        }

    def text(self) -> str:
        """Each target with its verdict and its notes, then what holds for all of them."""
        lines = []
        for name, summary in self.summaries().items():
            lines += [summary, *(f"note: {note}" for note in self.reports[name].notes), ""]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, f"wrote results, predictions and heads to {self.folder}"])

    def __repr__(self) -> str:
        return f"Evaluation({', '.join(self.reports)}: {len(self.results)} results in {self.folder})"

    def _repr_html_(self) -> str:
        """In a notebook: a row a target, the encoder and what stands beside it, and the verdict."""
        columns = dict.fromkeys(r.encoder for r in self.results if not r.baseline)
        rows = []
        for (name, report), summary in zip(self.reports.items(), self.summaries().values(), strict=True):
            main = {r.encoder: r for r in reversed(leading(report.results)) if not r.baseline}
            cells = [f"{main[each].interval}" if each in main else "" for each in columns]
            rows.append([name, report.results[0].metric, *cells, summary.rpartition("\n")[2].partition(": ")[2]])
        notes = [*(note for report in self.reports.values() for note in report.notes), *self.notes]
        return as_html(["target", "metric", *columns, "verdict"], rows, notes)


def evaluate(
    source: str | Path,
    cohort: CohortLike,
    *,
    task: str = "classify",
    target: str,
    out: str | Path | None = None,
    probes: Sequence[str] = EMBEDDED,
    fractions: Sequence[float] = (1.0,),
    repeats: int = 3,
    seed: int = 0,
    draws: int = 1000,
    min_patients: int = 20,
    size: int | None = None,
    cache: Path | None = None,
    finetune: FinetuneSpec | None = None,
    shots: tuple[int, int] = (20, 100),
    baselines: Sequence[str | Path] = (),
    precision: Precision = "fp32",
    horizon: str | None = None,
) -> Evaluation:
    """Judge an encoder by what is read off it, beside a random-init twin and the majority.

    Images or clips are what the encoder was made for. A run with MLVICX context blocks is judged with them, and once
    more without, as its own baseline. Of the heads only linear ones are kept on disk: a nearest-neighbour head is the
    embeddings of its training patients. An encoder that was trained on with all training patients is kept with its
    head, in `finetuned-TARGET/`.

    Args:
        source: run folder, encoder folder or hub name.
        cohort: cohort.yaml, a table with conventional column names, or an open cohort.
        probes: of `linear` and `knn`, fitted on embeddings, and `frozen` and `finetune`, trained on images: a linear
            head on the frozen encoder, and encoder and head together. Verdicts are on the first.
        size: input pixels of an encoder that does not state them.
        cache: cache folder; the user's where None.
        task: `classify` or `regress`.
        target: see `find_targets`.
        out: folder for results.jsonl, predictions.parquet, notes.json (general ones, and those of each target), heads
            and encoders, which replace those of an earlier evaluation; where None a folder of this question, these
            probes (where they are not the default ones) and this split in the run's `evaluations/`.
        fractions: shares of the training patients whose labels are used.
        repeats: draws of each fraction below 1.
        seed: of the draws, of the random-init twin, and of fine-tuning.
        draws: bootstrap resamples of the test patients.
        min_patients: positive patients that a class of a many-class label needs.
        finetune: how `frozen` and `finetune` train; `whole` is what the probe's name says. Without an augmentation,
            `finetune` takes a milder form of the run's own, where there is a run.
        shots: see `probe`.
        baselines: run folders, encoder folders or hub names: each a column beside the random-init twin, embedded at its
            own size, with paired differences against it. Only `linear` and `knn` read them.
        precision: of embedding: `bf16` or `fp16` compute under autocast, which on an accelerator is faster.
        horizon: None: the target as it is. `next`: that of the patient's next visit or time; `incident`: likewise, of
            those only who are negative now (`future.look_ahead`). The target is then called `next:NAME`; beside
            `next` stands the column `present label`, which knows the target's value now and no image.

    Raises:
        LeakageError: the encoder or a baseline, or one that it was initialised from, was trained on validation or test
            patients of the cohort.
        EvaluationError: a question that the cohort cannot answer.
        UsageError: an unknown task, probe or horizon, numbers out of range, a size for an encoder that states it, or
            baselines with a probe that is trained on images.
        EncoderError, CohortError: encoder or cohort cannot be opened.
    """
    asked: dict[str, Any] = {"min_patients": min_patients} if task == "classify" else {}
    reading = reading_of(task)(
        target=target,
        horizon=horizon,
        probing=Probing(probes, fractions, repeats, shots),
        finetune=finetune or FinetuneSpec(),
        **asked,
    )
    return judge(reading, source, cohort, Judging(seed, draws, size, cache, out, baselines, precision))


def reading_of(task: str) -> type[TargetTask]:
    """`Classify` or `Regress`.

    Raises:
        UsageError: another task, or none.

    >>> reading_of("regress")(target="age").question
    'regress age'
    """
    kinds = {each.name: each for each in (Classify, Regress)}
    if task not in kinds:
        raise UsageError(
            f"unknown task {task!r}; a target is read by {' or '.join(kinds)}, and any other task has a function of "
            "its own, such as bolus.evaluate_change"
        )
    return kinds[task]


def ask(task: TargetTask, samples: Samples) -> Ahead:
    """The targets of a reading, of now or of the next visit.

    Raises:
        EvaluationError: no such target, or nothing in the samples that could be told apart.
    """
    cohort = samples.cohort
    found, left_out = find_targets(cohort, task.name, task.target, min_patients=task.fewest)
    if task.horizon is None:
        ahead = Ahead(found, notes=left_out)
    else:
        alone = "=" in task.target
        ahead = look_ahead(samples, found, task.horizon, task=task.name, min_patients=task.fewest, alone=alone)
        ahead = replace(ahead, notes=[*left_out, *ahead.notes])
    first = samples.first_row
    check_classes_told([replace(each, y=each.y[first]) for each in ahead.targets], cohort.split[first])
    return ahead


def judge(task: TargetTask, source: str | Path, cohort: CohortLike, judging: Judging) -> Evaluation:
    """Read the targets off the encoder and what stands beside it, and write the files; Raises as `evaluate`."""
    return _judge(task, prepare(source, cohort, task, partial(ask, task), judging))


def answers(
    task: TargetTask, folder: Path, patient: Callable[[pd.Series[Any]], IntArray], encoder: str
) -> list[Answer]:
    """As `bolus.evaluation.tasks.answers`."""
    frame = pd.read_parquet(folder / "predictions.parquet")
    return answers_of_probes(frame, patient, encoder, task=task.name, target=task.target)


def _judge(task: TargetTask, prepared: Prepared[Ahead]) -> Evaluation:
    judged, cohort, rows, judging = prepared.judged, prepared.cohort, prepared.rows, prepared.judging
    targets, notes = prepared.asked.targets, prepared.asked.notes
    prefix = f"{task.horizon}:" if task.horizon else ""
    encoders = prepared.encoders()
    embeddings, twins = embed_all(encoders, prepared), cache(partial(embed_twins, prepared))
    name = f"{task.name}-{prefix.replace(':', '-')}{shown(task.target)}"
    folder = prepared.folder(name, task.probing.probes)
    weights = digest_of_encoder(judged.encoder)
    fitted = {each.name: _fitted_on(cohort, rows, each, task.name) for each in targets}
    kept: list[Path] = []
    own = cohort.hash_trained()
    seen = cache(lambda: {**remember_training(cohort, prepared.store, own), **judged.seen})

    def keep(name: str, trained: Finetuned) -> None:
        lineage = [own, *judged.lineage]
        kept.append(folder / f"finetuned-{file_name(name)}")
        trained = replace(trained, head=trained.head.signed(digest_of_encoder(trained.encoder), fitted[name]))
        trained.save(kept[-1], preprocessing=prepared.store.preprocessing.to_json(), lineage=lineage, seen=seen())

    trainers = trainers_of(
        encoders,
        prepared.store,
        prepared.samples,
        prepared.kept,
        task.finetune,
        seed=judging.seed,
        pretrained_with=judged.run.recipe.images.augment if judged.run else None,
        keep=keep,
        class_names={question.name: question.classes or () for question in targets},
    )
    reports = {}
    for question in targets:
        columns: dict[str, npt.NDArray[Any]] = dict(embeddings)
        trained = trainers
        if question.name in prepared.asked.present:
            now, classes = prepared.asked.present[question.name][rows], question.classes
            known = present_columns(now, prepared.split == "train", num_classes=len(classes) if classes else None)
            columns[PRESENT], trained = known, beside_present(trainers, known)
        report = probe(
            columns,
            question.y[rows],
            prepared.patients,
            prepared.split,
            task=task.name,
            target=question.name,
            classes=question.classes,
            unit=question.unit,
            probing=task.probing,
            judging=judging,
            origin=prepared.origin,
            trained=trained,
            twins=twins,
        )
        heads = {kind: head.signed(weights, fitted[question.name]) for kind, head in report.heads.items()}
        reports[question.name] = replace(report, heads=heads)
    target = f"{prefix}{shown(task.target)}" if prefix else task.target
    _remove_finetuned(folder, target, kept)
    found = Evaluation(reports, folder, [*notes, *prepared.notes])
    write_reports(found, cohort.origin[rows], target, rows_hash=cohort.rows_hash)
    return found


def write_reports(found: Evaluation, rows: npt.NDArray[np.int64], target: str, *, rows_hash: str) -> None:
    """Write every file of an evaluation in place of an earlier one's.

    Args:
        found: reports, notes, and the folder, which is made.
        rows: int64 `[n]`, the row (from 0) of the table as given for each position of the reports' predictions.
        target: what was asked; heads of an earlier evaluation of it are removed.
        rows_hash: of that table, as `write_evaluation`.
    """
    predictions, files = [], dict[str, Callable[[Path], object]]()
    for name, report in found.reports.items():
        frame = report.predictions.copy()
        frame.insert(0, "row", rows[frame["position"]] + 1)
        predictions.append(frame.drop(columns="position"))
        if "linear" in report.heads:
            files[f"head-{file_name(name)}-linear.safetensors"] = report.heads["linear"].save
    files["predictions.parquet"] = pd.concat(predictions, ignore_index=True).to_parquet
    named = file_name(shown(target))
    stale = [f"head-{named}-linear.safetensors", f"head-{named}=*.safetensors"]
    stale += [f"head-{file_name(name)}-linear.safetensors" for name in found.reports]
    said = {name: report.notes for name, report in found.reports.items()}
    write_evaluation(found.folder, found.results, found.notes, said, rows_hash=rows_hash, files=files, stale=stale)


def _remove_finetuned(folder: Path, target: str, kept: Sequence[Path]) -> None:
    """Remove the encoders that an earlier evaluation of this target trained, and this one did not."""
    name = file_name(shown(target))
    for place in {*folder.glob(f"finetuned-{name}"), *folder.glob(f"finetuned-{name}=*")} - set(kept):
        for file in KNOWN:  # what `Finetuned.save` writes among them
            (place / file).unlink(missing_ok=True)
        if not any(place.iterdir()):
            place.rmdir()


def _fitted_on(cohort: Cohort, rows: npt.NDArray[np.int64], question: Target, task: str) -> pd.Series[Any]:
    """Patients of the rows that a head is fitted on, or whose strength or epoch is chosen on."""
    used = has_target(question.y[rows].astype(np.float64), task) & (cohort.split[rows] != "test")
    patients: pd.Series[Any] = cohort.patients.iloc[rows[used]]
    return patients
