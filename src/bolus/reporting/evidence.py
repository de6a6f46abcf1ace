"""What a run folder holds, read once: metrics, quarantine, cohort, evaluations and embeddings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.cohort.cohort import Cohort
from bolus.errors import BolusError, UsageError
from bolus.evaluation.statistics.results import Result, read_results
from bolus.evaluation.writing import NOTES, RESULTS
from bolus.files import read_lines
from bolus.run import Run


@dataclass(frozen=True, eq=False)
class Question:
    """One evaluation of a run.

    Args:
        folder: its files.
        results: at least one; the first is of the judged encoder.
        notes: in sentences, general ones first.
        rows_hash: of the table that was judged on; empty where it was written before tables were told apart.
    """

    folder: Path
    results: Sequence[Result]
    notes: Sequence[str]
    rows_hash: str = ""

    @property
    def task(self) -> str:
        """Of the evaluation: `audit`, or that of its first result."""
        return self.results[0].task

    @property
    def encoder(self) -> str:
        """The judged encoder's name in the files."""
        return self.results[0].encoder

    @property
    def targets(self) -> list[str]:
        """What was asked, in the order of the file."""
        return list(dict.fromkeys(each.target for each in self.results))

    def of(self, target: str) -> list[Result]:
        """The results of a target."""
        return [each for each in self.results if each.target == target]

    def table(self, name: str) -> pd.DataFrame | None:
        """A Parquet file of the evaluation; None where it wrote none."""
        path = self.folder / name
        return pd.read_parquet(path) if path.is_file() else None

    @cached_property
    def predictions(self) -> pd.DataFrame | None:
        """Of probes, row by row; None of a task that has none."""
        return self.table("predictions.parquet")


@dataclass(frozen=True, eq=False)
class Embedded:
    """Embeddings of a run.

    Args:
        rows: int64 `[n]`, from 1.
        vectors: float32 `[n, D]`.
    """

    rows: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything a report says of one run.

    Args:
        name: of the run, told apart from the others of the report.
        place: the run folder as commands name it.
        run: its folder.
        metrics: lines of metrics.jsonl.
        quarantined: row (from 1) -> why it could not be read.
        cohort: None where its table is gone or has changed.
        without_cohort: why it is None.
        questions: evaluations, by the names of their folders.
        embedded: None where there are no embeddings.
    """

    name: str
    place: str
    run: Run
    metrics: Sequence[Mapping[str, Any]]
    quarantined: Mapping[int, str]
    cohort: Cohort | None
    without_cohort: str
    questions: Sequence[Question]
    embedded: Embedded | None = None
    remarks: Sequence[str] = field(default=())

    @property
    def cohort_place(self) -> str:
        """The run's own cohort.yaml, as commands name it."""
        return f"{self.place}/cohort.yaml"

    @property
    def looks(self) -> list[Mapping[str, Any]]:
        """Looks at the run's health."""
        return [line for line in self.metrics if line["kind"] == "health"]

    def asked(self, *tasks: str) -> list[Question]:
        """The evaluations of these tasks."""
        return [each for each in self.questions if each.task in tasks]

    @property
    def first_question(self) -> str:
        """The command that asks the run a question."""
        return self.question_to(self.place)

    def question_to(self, place: str) -> str:
        """The command that asks the run there a target that this cohort has, `TARGET` where it has none."""
        roles = [] if self.cohort is None else list(self.cohort.roles)
        known = [
            (task, role.partition(":")[2])
            for task, kind in (("classify", "label:"), ("regress", "score:"))
            for role in roles
            if role.startswith(kind)
        ]
        task, target = known[0] if known else ("classify", "TARGET")
        return f"bolus evaluate {task} {place} {self.cohort_place} --target {target}"


def gather(
    folders: Sequence[str | Path], *, embeddings: Sequence[str | Path] = (), watched: bool = False
) -> list[Evidence]:
    """Read the runs, in their order.

    Args:
        folders: run folders, each once.
        embeddings: Parquet files of `bolus embed`, one a run in their order; where there are none, `embeddings.parquet`
            in each run folder is taken if it is there.
        watched: leave embeddings alone, as while a run is training.

    Raises:
        UsageError: no run, one twice, or another number of embeddings than runs.
        BolusError: a folder without a run, a damaged file, or embeddings of another encoder or table than the run's.
    """
    if not folders:
        raise UsageError("expected a run folder")
    runs = [Run.open(each) for each in folders]
    if len({run.folder.resolve() for run in runs}) < len(runs):
        raise UsageError("a run stands twice on the command line; name each once")
    if embeddings and len(embeddings) != len(runs):
        raise UsageError(f"--embeddings: expected one file a run, {len(runs)}, found {len(embeddings)}")
    files = [Path(each) for each in embeddings] or [run.folder / "embeddings.parquet" for run in runs]
    names = _names([run.folder for run in runs])
    return [
        _read(run, name, None if watched or not (embeddings or file.is_file()) else file)
        for run, name, file in zip(runs, names, files, strict=True)
    ]


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names; where two are alike, with that of the folder around them, else with a number."""
    short = [folder.resolve().name for folder in folders]
    longer = [f"{folder.resolve().parent.name}/{name}" for folder, name in zip(folders, short, strict=True)]
    found = [name if short.count(name) == 1 else more for name, more in zip(short, longer, strict=True)]
    return [name if found.count(name) == 1 else f"{name} ({at})" for at, name in enumerate(found, start=1)]


def _place(folder: Path) -> str:
    """The folder from where the command was given; its name alone where it lies elsewhere: paths may name people."""
    try:
        return folder.resolve().relative_to(Path.cwd().resolve()).as_posix()
    except ValueError:
        return folder.resolve().name


def _read(run: Run, name: str, embeddings: Path | None) -> Evidence:
    cohort, why = _cohort_of(run)
    evaluations = sorted((run.folder / "evaluations").glob(f"*/{RESULTS}"))
    found = [_question(path.parent) for path in evaluations]
    questions = [each for each in found if each is not None]
    embedded = None if embeddings is None else _embedded(embeddings, run, cohort)
    return Evidence(
        name, _place(run.folder), run, run.metrics(), _quarantined(run), cohort, why, questions, embedded,
        _doubts(questions, run, cohort),
    )  # fmt: skip


def _cohort_of(run: Run) -> tuple[Cohort | None, str]:
    """The run's cohort as it was trained on; None, and why, where it is not there any more."""
    try:
        cohort = Cohort.open(run.folder / "cohort.yaml")
        split = cohort.split_hash
    except (BolusError, OSError):
        return None, "the run's table cannot be opened any more, so that rows are not counted by patient and split"
    if split != run.record["split_hash"]:
        return None, "the run's table or split has changed since the training, so that its rows are not counted here"
    return cohort, ""


def _quarantined(run: Run) -> dict[int, str]:
    lines, _ = read_lines(run.folder / "quarantine.jsonl")
    return {int(each["row"]): str(each["reason"]) for each in lines}


def _question(folder: Path) -> Question | None:
    results = read_results(folder / RESULTS)
    if not results:
        return None
    path = folder / NOTES
    said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    notes = [*said.get("general", []), *(note for each in said.get("targets", {}).values() for note in each)]
    return Question(folder, results, list(dict.fromkeys(notes)), said.get("rows_hash", ""))


def _embedded(path: Path, run: Run, cohort: Cohort | None) -> Embedded:
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UsageError(f"--embeddings: there is no file {path.name}")
    table = pq.read_table(path, columns=["row", "embedding"])
    facts = json.loads((table.schema.metadata or {}).get(b"bolus", b"{}"))
    made_by = facts.get("recipe")
    if made_by != run.recipe.digest:
        raise BolusError(
            f"{path.name} holds embeddings of recipe {made_by}, and the run {run.folder.name} is of recipe "
            f"{run.recipe.digest}; embed with this run: bolus embed {_place(run.folder)} COHORT"
        )
    if cohort is not None and facts.get("rows_hash", cohort.rows_hash) != cohort.rows_hash:
        raise BolusError(
            f"{path.name} holds embeddings of another table than the one that the run {run.folder.name} was trained "
            f"on; embed that: bolus embed {_place(run.folder)} {_place(run.folder)}/cohort.yaml"
        )
    vectors = np.stack(table["embedding"].to_numpy()).astype(np.float32) if len(table) else np.zeros((0, 1), np.float32)
    return Embedded(table["row"].to_numpy().astype(np.int64), vectors)


def _doubts(questions: Sequence[Question], run: Run, cohort: Cohort | None) -> list[str]:
    """What does not fit together, in sentences."""
    split = run.record["split_hash"]
    others = sum(
        each.results[0].split_hash not in ("", split)
        or (cohort is not None and each.rows_hash not in ("", cohort.rows_hash))
        for each in questions
    )
    if not others:
        return run.torn
    said = (
        f"{others} of {len(questions)} evaluations were made on another table or split than the run was trained with; "
    )
    return [said + "their rows are not joined to the run's table", *run.torn]
