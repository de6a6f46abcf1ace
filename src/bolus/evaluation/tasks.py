"""The list of tasks: what can be asked of an encoder.

A task is one folder, one entry here and one test. The folder has a dataclass of the task's options, in a module that
imports nothing heavy, and a module with three functions:

- `ask(task, samples)` finds the question in a cohort, or raises, before an image is read;
- `judge(task, source, cohort, judging)` answers it, writes the files of the evaluation and returns a `Outcome`;
- `answers(task, folder, patient, encoder)` reads those files sample by sample, so that encoders can be compared.

`bolus evaluate NAME`, `bolus ablate --task NAME` and `bolus.ablate` go by the list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bolus.errors import UsageError, suggest
from bolus.evaluation.change.task import Change
from bolus.evaluation.contract import Outcome, Task
from bolus.evaluation.probing.task import Classify, Regress
from bolus.evaluation.retrieval.task import Retrieve
from bolus.evaluation.segmentation.task import Segment
from bolus.evaluation.settings import Judging, options_of

if TYPE_CHECKING:
    import pandas as pd

    from bolus.data.cohort.cohort import CohortLike, Samples
    from bolus.evaluation.statistics.answers import Answer
    from bolus.evaluation.statistics.metrics import IntArray


@dataclass(frozen=True)
class Entry:
    """A task in the list.

    Args:
        options: the dataclass of the task, whose `name` it goes by.
        module: with the functions `ask`, `judge` and `answers`; imported when one of them is needed.
    """

    options: type[Task]
    module: str


_LIST = (
    Entry(Classify, "bolus.evaluation.probing.reading"),
    Entry(Regress, "bolus.evaluation.probing.reading"),
    Entry(Change, "bolus.evaluation.change.change"),
    Entry(Retrieve, "bolus.evaluation.retrieval.retrieve"),
    Entry(Segment, "bolus.evaluation.segmentation.segment"),
)
TASKS: Mapping[str, Entry] = {each.options.name: each for each in _LIST}


def task_of(name: str, options: Mapping[str, Any] | None = None) -> Task:
    """A task by its name.

    Args:
        name: a key of `TASKS`.
        options: as on the command line, by the names of the fields.

    Raises:
        UsageError: an unknown task or option, or what the task itself refuses.

    >>> task_of("classify", {"target": "sick", "probes": ["knn"]}).question
    'classify sick'
    >>> task_of("regress", {"target": "age", "across": "visit"})
    Traceback (most recent call last):
    bolus.errors.UsageError: the task regress has no option across; retrieve has
    """
    if name not in TASKS:
        near = suggest(name, TASKS)
        known = "" if near.startswith("known") else f"; tasks: {', '.join(TASKS)}"
        raise UsageError(f"unknown task {name!r}; {near}{known}")
    kind: Any = TASKS[name].options
    own, given = options_of(kind), dict[str, dict[str, Any]]()
    for key, value in (options or {}).items():
        if key not in own:
            having = [other for other, entry in TASKS.items() if key in options_of(entry.options)]
            hint = f"{' and '.join(having)} {'has' if len(having) == 1 else 'have'}" if having else suggest(key, own)
            raise UsageError(f"the task {name} has no option {key}; {hint}")
        given.setdefault(own[key][0], {})[key] = value
    nested: dict[str, Any] = {each.name: each.default_factory for each in fields(kind)}
    found: Task = kind(**given.pop("", {}), **{name: nested[name](**values) for name, values in given.items()})
    return found


def check(task: Task, samples: Samples) -> None:
    """Raise where the samples' cohort cannot answer, before an encoder is there.

    Raises:
        EvaluationError, CohortError: as the task's `ask`.
    """
    _function(task, "ask")(task, samples)


def judge(task: Task, source: str | Path, cohort: CohortLike, judging: Judging) -> Outcome:
    """Put a task to an encoder, and write the files of the evaluation.

    Args:
        task: with its options.
        source: run folder, encoder folder or hub name.
        cohort: cohort.yaml, a table with conventional column names, or an open cohort.
        judging: how.

    Raises:
        As `bolus.evaluation.preparation.prepare`, and what the task says.
    """
    found: Outcome = _function(task, "judge")(task, source, cohort, judging)
    return found


def answers(task: Task, folder: Path, patient: Callable[[pd.Series[Any]], IntArray], encoder: str) -> list[Answer]:
    """What the files of an evaluation say sample by sample; the first is what an ablation is decided by.

    Args:
        task: what was asked.
        folder: of the evaluation.
        patient: rows of the table (from 1) -> their patients.
        encoder: the judged encoder's name in the files.
    """
    found: list[Answer] = _function(task, "answers")(task, folder, patient, encoder)
    return found


def _function(task: Task, name: str) -> Any:
    return getattr(import_module(TASKS[task.name].module), name)
