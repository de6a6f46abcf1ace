"""An encoder, a cohort and a question become result files: embed, find the targets, probe, compare, write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.cache import ImageStore
from bolus.data.cohort import Cohort
from bolus.data.split import refuse_overlap
from bolus.embedding import Judged, device_for_inference, embed_rows, open_encoder, open_store, remarks_on
from bolus.errors import EvaluationError, UsageError, suggest
from bolus.evaluation.probe import ProbeReport, probe
from bolus.evaluation.results import MAJORITY, Result, write_results

RANDOM = "random-init"


@dataclass(frozen=True)
class Target:
    """One question: its name, `[rows]` codes (-1 missing) or numbers (NaN missing), and the names of the codes."""

    name: str
    y: npt.NDArray[Any]
    classes: tuple[str, ...] | None


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


def find_targets(cohort: Cohort, task: str, target: str, *, min_patients: int = 20) -> tuple[list[Target], list[str]]:
    """The questions that `target` names, and which were left out, in sentences.

    `NAME` is a label column: every class against the rest, or the one question of a two-class column, or, for more
    classes of which each row has one, also the multi-class question. `NAME=CLASS` is one class against the rest. For
    `regress`, `NAME` is a score, a numeric attribute or a number role.

    Args:
        cohort: whose columns.
        task: `classify` or `regress`.
        target: a name, or `NAME=CLASS`.
        min_patients: a class with fewer positive patients is left out, and named, unless it was asked for by itself.

    Raises:
        EvaluationError: no such column or class.
        UsageError: a task that is not `classify` or `regress`.
    """
    name, wanted = _parse(target)
    if task == "regress":
        candidates = [f"score:{name}", f"attribute:{name}", name]
        role = next((role for role in candidates if role in cohort.roles), None)
        if role is None:
            raise EvaluationError(f"no score named {name!r}; {suggest(f'score:{name}', cohort.roles)}")
        values = cohort.encoded(role)
        if values.dtype != np.float64:
            raise EvaluationError(f"{role} holds categories, not numbers; use --task classify with a label")
        return [Target(name, values, None)], []
    if task != "classify":
        raise UsageError(f"unknown task {task!r}; {suggest(task, ['classify', 'regress'])}")
    if f"label:{name}" not in cohort.roles:
        raise EvaluationError(f"no label named {name!r}; {suggest(f'label:{name}', cohort.roles)}")
    labels = cohort.labels(name)
    codes = np.where(np.isnan(labels.matrix), -1, labels.matrix).astype(np.int64)
    if wanted:
        if wanted not in labels.classes:
            raise EvaluationError(f"label {name!r} has no class {wanted!r}; {suggest(wanted, labels.classes)}")
        return [Target(f"{name}={wanted}", codes[:, labels.classes.index(wanted)], ("rest", wanted))], []
    if labels.exclusive and len(labels.classes) == 2:
        return [Target(name, codes[:, 1], labels.classes)], []
    targets, notes = [], []
    if labels.exclusive:
        one = np.where(codes[:, 0] < 0, -1, codes.argmax(1))
        targets.append(Target(name, one, labels.classes))
    patients = cohort.encoded("patient")
    for position, label in enumerate(labels.classes):
        positive = len(np.unique(patients[codes[:, position] == 1]))
        if positive < min_patients:
            notes.append(f"{name}={label} is left out: {positive} positive patients, fewer than {min_patients}.")
        else:
            targets.append(Target(f"{name}={label}", codes[:, position], ("rest", label)))
    if not targets:
        raise EvaluationError(f"label {name!r}: no class has {min_patients} positive patients")
    return targets, notes


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
) -> Evaluation:
    """Judge frozen embeddings by a linear probe and nearest neighbours, beside a random-init twin and the majority.

    A run with MLVICX context blocks is judged with them, and once more without, as its own baseline. Of the heads only
    linear ones are kept on disk: a nearest-neighbour head is the embeddings of its training patients.

    Args:
        source: run folder, encoder folder or hub name.
        cohort: cohort.yaml, a table with conventional column names, or an open cohort.
        probes: of `linear` and `knn`.
        size: input pixels of an encoder that does not state them.
        cache: cache folder; the user's where None.
        task: `classify` or `regress`.
        target: see `find_targets`.
        out: folder for results.jsonl, predictions.parquet, notes.json (general ones, and those of each target) and
            heads, which replace those of an earlier evaluation; where None a folder of this question and this split in
            the run's `evaluations/`.
        fractions: shares of the training patients whose labels are used.
        repeats: draws of each fraction below 1.
        seed: of the draws and of the random-init twin.
        draws: bootstrap resamples of the test patients.
        min_patients: positive patients that a class of a many-class label needs.

    Raises:
        LeakageError: the encoder, or one that it was initialised from, was trained on validation or test patients of
            the cohort.
        EvaluationError, UsageError: a question that the cohort cannot answer, or a size for an encoder that states it.
        EncoderError, CohortError: encoder or cohort cannot be opened.
    """
    cohort = Cohort.open(cohort)
    judged = open_encoder(source, size=size)
    targets, notes = find_targets(cohort, task, target, min_patients=min_patients)
    refuse_seen_patients(judged, cohort)
    if not judged.lineage:
        notes.append(f"{judged.name}: which patients it was trained on is not known here, so overlap was not checked.")
    store = open_store(judged, cohort, cache=cache)
    notes += remarks_on(judged, store)
    rows = np.flatnonzero(store.readable)
    embeddings = embed_all(judged, source, store, rows, seed)

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
        )
    found = Evaluation(reports, _folder(out, judged, cohort, task, target), notes)
    _write(found, rows, target)
    return found


def embed_all(
    judged: Judged, source: str | Path, store: ImageStore, rows: npt.NDArray[np.int64], seed: int
) -> dict[str, npt.NDArray[np.float32]]:
    """Embeddings of the judged encoder, of itself without context blocks, and of its random-init twin."""
    device = device_for_inference()
    name = f"{judged.name} (encoder)" if judged.name in (MAJORITY, RANDOM) else judged.name  # apart from the baselines
    embeddings = {name: embed_rows(judged.encoder.to(device), store, rows)}
    embeddings[RANDOM] = embed_rows(judged.random_twin(seed).to(device), store, rows)
    if judged.encoder.spec.context:
        plain = open_encoder(source, keep_context=False).encoder
        embeddings[f"{name} without context"] = embed_rows(plain.to(device), store, rows)
    return embeddings


def refuse_seen_patients(judged: Judged, cohort: Cohort) -> None:
    """Raise LeakageError where the encoder, or one it was initialised from, was trained on held-out patients."""
    for depth, training in enumerate(judged.lineage):
        where = judged.name if depth == 0 else f"{judged.name}, initialised from an encoder that was trained before"
        refuse_overlap(
            set(training["keys"]), training["salt"], cohort.patients, cohort.split != "train", where=f"encoder {where}"
        )


def _folder(out: str | Path | None, judged: Judged, cohort: Cohort, task: str, target: str) -> Path:
    if out is not None:
        return Path(out)
    question = f"{task}-{_file_name(target)}-{cohort.split_hash[:6]}"
    if judged.run is not None:
        return judged.run.folder / "evaluations" / question
    return Path("evaluations") / f"{_plain(judged.name)}-{question}"


def _write(found: Evaluation, rows: npt.NDArray[np.int64], target: str) -> None:
    """Every file of an evaluation in place of an earlier one's; the results come last."""
    folder, name = found.folder, _file_name(target)
    folder.mkdir(parents=True, exist_ok=True)
    stale = [folder / file for file in ("results.jsonl", "predictions.parquet", "notes.json")]
    for path in [*stale, *folder.glob(f"head-{name}-linear.safetensors"), *folder.glob(f"head-{name}=*.safetensors")]:
        path.unlink(missing_ok=True)
    predictions = []
    for name, report in found.reports.items():
        frame = report.predictions.copy()
        frame.insert(0, "row", rows[frame["position"]] + 1)
        predictions.append(frame.drop(columns="position"))
        if "linear" in report.heads:
            report.heads["linear"].save(folder / f"head-{_plain(name)}-linear.safetensors")
    pd.concat(predictions, ignore_index=True).to_parquet(folder / "predictions.parquet")
    said = {"general": found.notes, "targets": {name: report.notes for name, report in found.reports.items()}}
    (folder / "notes.json").write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_results(folder / "results.jsonl", found.results)


def _parse(target: str) -> tuple[str, str]:
    """A name without its kind, and a class, if one is asked for."""
    name, _, wanted = target.partition("=")
    return name.split(":", 1)[-1], wanted


def _file_name(target: str) -> str:
    name, wanted = _parse(target)
    return _plain(f"{name}={wanted}" if wanted else name)


def _plain(name: str) -> str:
    """A file name, different for different names."""
    return quote(name, safe="=+ ")
