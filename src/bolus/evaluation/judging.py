"""An encoder, a cohort and a question become result files: embed, find the targets, probe, compare, write."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.cache import ImageStore
from bolus.data.cohort import Cohort
from bolus.data.samples import Samples
from bolus.data.split import patient_keys, refuse_overlap
from bolus.embedding import (
    Judged,
    device_for_inference,
    embed_samples,
    open_encoder,
    open_store,
    remarks_on,
    samples_of,
)
from bolus.encoders.backbone import Encoder
from bolus.evaluation.finetune import Finetuned, FinetuneSpec
from bolus.evaluation.probe import ProbeReport, probe
from bolus.evaluation.results import MAJORITY, Result, write_results
from bolus.evaluation.targets import file_name, find_targets, shown
from bolus.evaluation.trainers import trainers_of

__all__ = [
    "RANDOM",
    "Evaluation",
    "embed_all",
    "encoders_of",
    "evaluate",
    "evaluation_folder",
    "find_targets",
    "refuse_seen_patients",
    "write_evaluation",
]

RANDOM = "random-init"


@dataclass
class Evaluation:
    """What `evaluate` found.

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


def evaluate(
    source: str | Path,
    cohort: str | Path | Cohort,
    *,
    task: str = "classify",
    target: str,
    out: str | Path | None = None,
    probes: Sequence[str] = ("linear", "knn"),
    fractions: Sequence[float] = (1.0,),
    repeats: int = 3,
    seed: int = 0,
    draws: int = 1000,
    min_patients: int = 20,
    size: int | None = None,
    cache: Path | None = None,
    finetune: FinetuneSpec | None = None,
    shots: tuple[int, int] = (20, 100),
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
            and encoders, which replace those of an earlier evaluation; where None a folder of this question and this
            split in the run's `evaluations/`.
        fractions: shares of the training patients whose labels are used.
        repeats: draws of each fraction below 1.
        seed: of the draws, of the random-init twin, and of fine-tuning.
        draws: bootstrap resamples of the test patients.
        min_patients: positive patients that a class of a many-class label needs.
        finetune: how `frozen` and `finetune` train; `whole` is what the probe's name says. Without an augmentation,
            `finetune` takes a milder form of the run's own, where there is a run.
        shots: see `probe`.

    Raises:
        LeakageError: the encoder, or one that it was initialised from, was trained on validation or test patients of
            the cohort.
        EvaluationError, UsageError: a question that the cohort cannot answer, or a size for an encoder that states it.
        EncoderError, CohortError: encoder or cohort cannot be opened.
    """
    judged = open_encoder(source, size=size)
    samples = samples_of(judged, Cohort.open(cohort))
    cohort = samples.cohort
    targets, notes = find_targets(cohort, task, target, min_patients=min_patients)
    refuse_seen_patients(judged, cohort)
    if not judged.lineage:
        notes.append(f"{judged.name}: which patients it was trained on is not known here, so overlap was not checked.")
    store = open_store(judged, cohort, cache=cache)
    notes += remarks_on(judged, store)
    positions = np.flatnonzero(samples.readable(store.readable))
    rows = samples.first_row[positions]
    encoders = encoders_of(judged, source, seed)
    embeddings = {name: embed_samples(encoder, store, samples, positions) for name, encoder in encoders.items()}
    folder = evaluation_folder(out, judged, cohort, f"{task}-{shown(target)}")

    kept: list[Path] = []

    def keep(name: str, trained: Finetuned) -> None:
        lineage = [_training_of(cohort), *judged.lineage]
        kept.append(folder / f"finetuned-{file_name(name)}")
        trained.save(kept[-1], preprocessing=store.preprocessing.to_json(), lineage=lineage)

    trainers = trainers_of(
        encoders,
        store,
        samples,
        positions,
        finetune or FinetuneSpec(),
        seed=seed,
        pretrained_with=judged.run.recipe.images.augment if judged.run else None,
        keep=keep,
        class_names={question.name: question.classes or () for question in targets},
    )
    reports = {}
    for question in targets:
        reports[question.name] = probe(
            embeddings,
            question.y[rows],
            cohort.encoded("patient")[rows],
            cohort.split[rows],
            task=task,
            target=question.name,
            classes=question.classes,
            probes=probes,
            fractions=fractions,
            repeats=repeats,
            seed=seed,
            draws=draws,
            split_hash=cohort.split_hash,
            recipe_hash=judged.run.recipe.digest if judged.run else "",
            trained=trainers,
            shots=shots,
        )
    _remove_finetuned(folder, target, kept)
    found = Evaluation(reports, folder, notes)
    write_evaluation(found, cohort.origin[rows], target)
    return found


def embed_all(
    judged: Judged,
    source: str | Path,
    store: ImageStore,
    samples: Samples,
    positions: npt.NDArray[np.int64],
    seed: int,
) -> dict[str, npt.NDArray[np.float32]]:
    """Embeddings `[n, D]` of samples by every encoder that `encoders_of` names, the judged one first.

    Args:
        judged: what was opened.
        source: where from; needed to open it once more without its context blocks.
        store: the images of the samples' cohort.
        samples: as `samples_of` gives them.
        positions: int64 `[n]`, samples with something to see.
        seed: of the random-init twin.
    """
    encoders = encoders_of(judged, source, seed)
    return {name: embed_samples(encoder, store, samples, positions) for name, encoder in encoders.items()}


def encoders_of(judged: Judged, source: str | Path, seed: int) -> dict[str, Encoder]:
    """The judged encoder, its random-init twin, and itself without context blocks, ready for inference."""
    device = device_for_inference()
    name = f"{judged.name} (encoder)" if judged.name in (MAJORITY, RANDOM) else judged.name  # apart from the baselines
    encoders = {name: judged.encoder.to(device), RANDOM: judged.random_twin(seed).to(device)}
    if judged.encoder.spec.context:
        encoders[f"{name} without context"] = open_encoder(source, keep_context=False).encoder.to(device)
    return encoders


def refuse_seen_patients(judged: Judged, cohort: Cohort) -> None:
    """Raise LeakageError where the encoder, or one it was initialised from, was trained on held-out patients."""
    for depth, training in enumerate(judged.lineage):
        where = judged.name if depth == 0 else f"{judged.name}, initialised from an encoder that was trained before"
        refuse_overlap(
            set(training["keys"]), training["salt"], cohort.patients, cohort.split != "train", where=f"encoder {where}"
        )


def evaluation_folder(out: str | Path | None, judged: Judged, cohort: Cohort, question: str) -> Path:
    """Where an evaluation is written: `out`, or a folder of this question and this split.

    Args:
        out: what the person asked for, if anything.
        judged: the encoder; that of a run has its folders in the run's `evaluations/`, any other in `./evaluations/`.
        cohort: whose split the folder is of.
        question: task and target, such as `regress-age`; what a file name cannot hold is quoted.
    """
    if out is not None:
        return Path(out)
    name = f"{file_name(question)}-{cohort.split_hash[:6]}"
    if judged.run is not None:
        return judged.run.folder / "evaluations" / name
    return Path("evaluations") / f"{file_name(judged.name)}-{name}"


def write_evaluation(found: Evaluation, rows: npt.NDArray[np.int64], target: str) -> None:
    """Write every file of an evaluation in place of an earlier one's; the results come last.

    Args:
        found: reports, notes, and the folder, which is made.
        rows: int64 `[n]`, the row (from 0) of the table as given for each position of the reports' predictions.
        target: what was asked; heads of an earlier evaluation of it are removed.
    """
    folder, name = found.folder, file_name(shown(target))
    folder.mkdir(parents=True, exist_ok=True)
    stale = [folder / file for file in ("results.jsonl", "predictions.parquet", "notes.json")]
    stale += [folder / f"head-{file_name(report)}-linear.safetensors" for report in found.reports]
    for path in [*stale, *folder.glob(f"head-{name}-linear.safetensors"), *folder.glob(f"head-{name}=*.safetensors")]:
        path.unlink(missing_ok=True)
    predictions = []
    for name, report in found.reports.items():
        frame = report.predictions.copy()
        frame.insert(0, "row", rows[frame["position"]] + 1)
        predictions.append(frame.drop(columns="position"))
        if "linear" in report.heads:
            report.heads["linear"].save(folder / f"head-{file_name(name)}-linear.safetensors")
    pd.concat(predictions, ignore_index=True).to_parquet(folder / "predictions.parquet")
    said = {"general": found.notes, "targets": {name: report.notes for name, report in found.reports.items()}}
    (folder / "notes.json").write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_results(folder / "results.jsonl", found.results)


def _remove_finetuned(folder: Path, target: str, kept: Sequence[Path]) -> None:
    """Remove the encoders that an earlier evaluation of this target trained, and this one did not."""
    name = file_name(shown(target))
    for place in {*folder.glob(f"finetuned-{name}"), *folder.glob(f"finetuned-{name}=*")} - set(kept):
        for file in ("encoder.json", "model.safetensors", "head.safetensors"):  # what `Finetuned.save` writes
            (place / file).unlink(missing_ok=True)
        if not any(place.iterdir()):
            place.rmdir()


def _training_of(cohort: Cohort) -> dict[str, Any]:
    """Whom a fine-tuned encoder was trained on, for its lineage."""
    salt = secrets.token_hex(16)
    return {"salt": salt, "keys": sorted(patient_keys(cohort.patients[cohort.split == "train"], salt))}
