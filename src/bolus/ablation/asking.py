"""What an ablation asks of every encoder: checked before anything is trained, put to `bolus.evaluation`, and kept."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bolus.data.cohort.cohort import Cohort
from bolus.data.images.clips import open_samples
from bolus.errors import EvaluationError
from bolus.evaluation import tasks
from bolus.evaluation.contract import Task
from bolus.evaluation.preparation import refuse_views
from bolus.evaluation.settings import Judging
from bolus.evaluation.statistics.answers import Answer
from bolus.evaluation.statistics.metrics import IntArray
from bolus.evaluation.targets import file_name
from bolus.files import write_json
from bolus.recipe import Recipe
from bolus.run import Run


def folder_name(task: Task, cohort: Cohort) -> str:
    """A folder of its own for a task with these options, asked of this table, these roles and this split."""
    columns = cohort.columns.frame(sorted(set(cohort.roles.values()))).astype("string")
    held = hashlib.blake2b(pd.util.hash_pandas_object(columns, index=False).to_numpy().tobytes(), digest_size=8)
    known = [cohort.spec.model_dump(mode="json", exclude={"table", "root"}), held.hexdigest()]
    settings = json.dumps([task.name, asdict(task), cohort.split_hash, *known], sort_keys=True, default=str)
    digest = hashlib.blake2b(settings.encode(), digest_size=3).hexdigest()
    return file_name(f"{task.question.replace(' ', '-')}-{digest}")


def check_task(task: Task, cohort: Cohort, recipe: Recipe) -> None:
    """Raise where the encoder or the cohort cannot answer, which is known before anything is trained.

    Args:
        task: what is asked.
        cohort: whose test patients are judged on.
        recipe: of the encoder, for what it sees.

    Raises:
        EvaluationError, CohortError, UsageError: as the evaluation itself.
    """
    if task.wants.images:
        mirrored = recipe.images.mirror is not None
        refuse_views(task.wants.one, unit=recipe.images.unit, mirrored=mirrored, volumes=task.wants.volumes)
    if task.wants.one and recipe.encoders == "per_modality":
        raise EvaluationError(f"{task.wants.one} needs one encoder for all modalities, not encoders=per_modality")
    tasks.check(task, open_samples(cohort, {"slice": "image"}.get(recipe.images.unit, recipe.images.unit)))


def judge(task: Task, run: Run, cohort: Cohort, folder: Path, judging: Judging) -> None:
    """Put the task to the encoder of a run, and write the evaluation's own files; not where that is done.

    Args:
        task: what is asked.
        run: finished.
        cohort: whose test patients are judged on.
        folder: for the files.
        judging: how; its `out` is the folder.

    Raises:
        EvaluationError: this encoder cannot be judged, as where its embeddings are not finite.
    """
    done = folder / "judged.json"
    facts = {"weights": run.record["weights"], "split_hash": cohort.split_hash, "seed": judging.seed}
    if done.is_file() and json.loads(done.read_text(encoding="utf-8")) == facts:
        return
    done.unlink(missing_ok=True)
    tasks.judge(task, run.folder, cohort, judging)
    write_json(done, facts)


def read_answers(task: Task, folder: Path, cohort: Cohort, encoder: str) -> list[Answer]:
    """The answers in the files of one evaluation; the first is what an ablation is decided by.

    Args:
        task: what was asked.
        folder: of the evaluation.
        cohort: the table as given, to which the rows in the files point.
        encoder: the judged encoder's name in the files.
    """
    codes: IntArray = cohort.encoded("patient")

    def patient(rows: pd.Series[Any]) -> IntArray:
        return np.asarray(codes[np.searchsorted(cohort.origin, rows.to_numpy(np.int64) - 1)])

    return tasks.answers(task, folder, patient, encoder)
