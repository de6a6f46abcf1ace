"""What an ablation asks of every encoder: checked before anything is trained, put to `bolus.evaluation`, and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bolus.data.cohort.cohort import Cohort
from bolus.data.images.clips import open_samples
from bolus.errors import EvaluationError, UsageError
from bolus.evaluation.change.change import evaluate_change
from bolus.evaluation.change.pairs import pairs_of
from bolus.evaluation.probing.judging import evaluate
from bolus.evaluation.retrieval.retrieve import evaluate_retrieve
from bolus.evaluation.retrieval.sides import find_sides
from bolus.evaluation.segmentation.annotation import read_annotations
from bolus.evaluation.segmentation.segment import TARGET as MASK
from bolus.evaluation.segmentation.segment import evaluate_segment
from bolus.evaluation.segmentation.segmenter import SegmentSpec
from bolus.evaluation.segmentation.stacks import find_volumes
from bolus.evaluation.targets import OTHERS, TASKS, check_task, file_name, find_targets
from bolus.files import write_json
from bolus.recipe import Recipe
from bolus.run import Run

LABELLED = (1, 2, 6, 10)


@dataclass(frozen=True)
class Question:
    """A task and what belongs to it; everything else is as the evaluation has it by default.

    Args:
        task: `classify`, `regress`, `change`, `retrieve` or `segment`.
        target: as the evaluation of the task takes it; of segmentation `mask`, of a retrieval nothing.
        across: of a retrieval, the role that differs.
        labelled: of a segmentation, numbers of labelled patients; differences are judged at the most.
        steps: of a segmentation's trainings; its default where None.
        min_patients: of `classify`, positive patients that each class needs.

    Raises:
        UsageError: an unknown task, something that belongs to another one, or a number out of range.

    Example:
        >>> Question("segment").target, Question("segment").labelled
        ('mask', (1, 2, 6, 10))
    """

    task: str
    target: str = ""
    across: str | None = None
    labelled: tuple[int, ...] | None = None
    steps: int | None = None
    min_patients: int | None = None

    def __post_init__(self) -> None:
        if self.task not in (*TASKS, *OTHERS):
            check_task(self.task)
        own = {"across": "retrieve", "labelled": "segment", "steps": "segment", "min_patients": "classify"}
        for name, task in own.items():
            if getattr(self, name) is not None and self.task != task:
                raise UsageError(f"{name} is for the task {task}, not for {self.task}")
        if self.task == "retrieve" and (self.across is None or self.target):
            raise UsageError("retrieve needs the role that differs (--across, such as laterality), and no target")
        if self.task == "segment":
            object.__setattr__(self, "target", self.target or MASK)
            object.__setattr__(self, "labelled", tuple(self.labelled or LABELLED))
            if self.target != MASK or min(self.labelled or (0,)) < 1:
                raise UsageError(f"segment is about the target {MASK!r}, from 1 labelled patient or more")
            self.spec.__post_init__()
        elif self.task != "retrieve" and not self.target:
            raise UsageError("a target is needed (--target): a label or score of the cohort, or LABEL=CLASS")

    @property
    def spec(self) -> SegmentSpec:
        """How a segmentation is trained."""
        return SegmentSpec() if self.steps is None else SegmentSpec(steps=self.steps)

    @property
    def name(self) -> str:
        """In words, such as `classify sick`."""
        return f"{self.task} {self.target or f'across {self.across}'}"

    def folder_name(self, cohort: Cohort) -> str:
        """A folder of its own for this question, asked of this table, these roles and this split."""
        columns = cohort.table[sorted(set(cohort.roles.values()))].astype("string")
        held = hashlib.blake2b(pd.util.hash_pandas_object(columns, index=False).to_numpy().tobytes(), digest_size=8)
        known = [cohort.spec.model_dump(mode="json", exclude={"table", "root"}), held.hexdigest()]
        settings = json.dumps([asdict(self), cohort.split_hash, *known], sort_keys=True)
        digest = hashlib.blake2b(settings.encode(), digest_size=3).hexdigest()
        return file_name(f"{self.name.replace(' ', '-')}-{digest}")


def check_question(question: Question, cohort: Cohort, recipe: Recipe) -> None:
    """Raise where the cohort cannot answer, which is known before anything is trained.

    Args:
        question: what is asked.
        cohort: whose test patients are judged on.
        recipe: of the encoder, for what it sees.

    Raises:
        EvaluationError, CohortError, UsageError: as the evaluation itself.
    """
    samples = open_samples(cohort, "clip" if recipe.images.unit == "clip" else "image")
    cohort = samples.cohort
    if question.task == "segment":
        _check_masks(question, cohort, recipe)
        return
    if question.across is not None:
        find_sides(samples, np.arange(len(samples)), question.across)
        return
    task = "regress" if question.task == "change" else question.task
    least = {} if question.min_patients is None else {"min_patients": question.min_patients}
    targets, _ = find_targets(cohort, task, question.target, **least)
    side, one_sided = cohort.split[samples.first_row], list[str]()
    for target in targets:
        y = target.y[samples.first_row].astype(np.float64)
        known = np.isfinite(y) if target.classes is None else y >= 0
        if question.task == "change":
            pairs = pairs_of(samples, target.y)
            known = np.isin(np.arange(len(samples)), pairs.earlier)
        for part in ("train", "test"):
            here = known & (side == part)
            if not here.any():
                what = "two samples of different times with" if question.task == "change" else "a value of"
                raise EvaluationError(f"no {part} patient has {what} {target.name!r}")
            if target.classes is not None and len(np.unique(y[here])) == 1:
                one_sided.append(f"the {part} patients hold one class of {target.name!r} only")
                break
    if len(one_sided) == len(targets):
        raise EvaluationError(f"nothing can be told apart: {'; '.join(one_sided)}")


def _check_masks(question: Question, cohort: Cohort, recipe: Recipe) -> None:
    if recipe.images.unit == "clip" or recipe.images.mirror is not None or recipe.encoders == "per_modality":
        raise EvaluationError(
            "masks are of single images as they are, seen by one encoder: segmentation does not go with "
            "images.unit=clip, images.mirror or encoders=per_modality"
        )
    annotations = read_annotations(cohort)
    find_volumes(cohort, annotations)
    rows = np.array(sorted(annotations.codes), dtype=np.int64)
    patients = cohort.encoded("patient")[rows[cohort.split[rows] == "train"]]
    found, most = len(np.unique(patients)), max(question.labelled or LABELLED)
    if found < most:
        raise EvaluationError(
            f"labelled patients (--labelled-patients): {most} asked for, and {found} training patients have a mask"
        )


def judge(
    question: Question, run: Run, cohort: Cohort, folder: Path, *, seed: int, cache: Path | None, quiet: bool
) -> None:
    """Put the question to the encoder of a run, and write the evaluation's own files; not where that is done.

    Args:
        question: what is asked.
        run: finished.
        cohort: whose test patients are judged on.
        folder: for the files.
        seed: of everything drawn, the random-init twin included.
        cache: cache folder; the user's where None.
        quiet: show no progress.

    Raises:
        EvaluationError: this encoder cannot be judged, as where its embeddings are not finite.
    """
    done = folder / "judged.json"
    facts = {"weights": run.record["weights"], "split_hash": cohort.split_hash, "seed": seed}
    if done.is_file() and json.loads(done.read_text(encoding="utf-8")) == facts:
        return
    done.unlink(missing_ok=True)
    common: dict[str, Any] = {"out": folder, "seed": seed, "cache": cache}
    if question.task == "segment":
        numbers: Sequence[int] = question.labelled or LABELLED
        evaluate_segment(run.folder, cohort, labelled=numbers, spec=question.spec, quiet=quiet, **common)
    elif question.across is not None:
        evaluate_retrieve(run.folder, cohort, across=question.across, **common)
    elif question.task == "change":
        evaluate_change(run.folder, cohort, target=question.target, **common)
    else:
        if question.min_patients is not None:
            common["min_patients"] = question.min_patients
        evaluate(run.folder, cohort, task=question.task, target=question.target, **common)
    write_json(done, facts)
