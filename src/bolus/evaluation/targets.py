"""Which questions a target names: the classes of a label, or a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.roles import NAMED
from bolus.data.text.classes import same_class
from bolus.errors import EvaluationError, UsageError, suggest

READ = ("classify", "regress")
"""Tasks that read a target off an encoder."""


@dataclass(frozen=True)
class Target:
    """One question: its name, `[rows]` codes (-1 missing) or numbers (NaN missing), and the names of the codes.

    Numbers have a unit where the cohort states one.
    """

    name: str
    y: npt.NDArray[Any]
    classes: tuple[str, ...] | None
    unit: str = ""


def check_task(task: str) -> None:
    """Raise UsageError for a task that does not read a target.

    >>> check_task("segment")
    Traceback (most recent call last):
    bolus.errors.UsageError: unknown task 'segment' for a target; known: classify, regress
    """
    if task not in READ:
        raise UsageError(f"unknown task {task!r} for a target; {suggest(task, READ)}")


def find_targets(cohort: Cohort, task: str, target: str, *, min_patients: int = 20) -> tuple[list[Target], list[str]]:
    """The questions that `target` names, and which were left out, in sentences.

    `NAME` is a label column: every class against the rest, or the one question of a two-class column, or, for more
    classes of which each row has one, also the multi-class question. `NAME=CLASS` is one class against the rest; where
    the classes are 0 and 1, `NAME=yes` is the class 1 (`data.text.classes.same_class`). For `regress`, `NAME` is a
    score, else a numeric attribute, else a number role. With its kind, as in `attribute:NAME`, only that column is
    meant.

    Args:
        cohort: whose columns.
        task: `classify` or `regress`.
        target: a name, or `NAME=CLASS`.
        min_patients: a class with fewer positive patients is left out, and named, unless it was asked for by itself.

    Raises:
        EvaluationError: no such column or class.
        UsageError: a task that is not `classify` or `regress`, or a target of another kind than the task is about.
    """
    check_task(task)
    kind, name, wanted = _parse(target)
    if task == "regress":
        if "=" in target:
            raise UsageError(f"target {target!r}: a class is asked for with classify; a number has none")
        candidates = [f"{kind}{name}"] if kind else [f"score:{name}", f"attribute:{name}", name]
        role = next((role for role in candidates if role in cohort.roles), None)
        if role is None:
            classes = f"label:{name} holds classes, which classify reads" if f"label:{name}" in cohort.roles else ""
            near = classes or suggest(candidates[0], cohort.roles)
            raise EvaluationError(f"no {kind[:-1] or 'score'} named {name!r}; {near}")
        values = cohort.encoded(role)
        if values.dtype != np.float64:
            raise EvaluationError(f"{role} holds categories, not numbers; use classify with a label")
        return [Target(name, values, None, cohort.spec.units.get(role, ""))], []
    if kind not in ("", "label:"):
        raise UsageError(f"target {target!r}: classify is about a label; numbers are for regress")
    if f"label:{name}" not in cohort.roles:
        raise EvaluationError(f"no label named {name!r}; {_instead_of_label(cohort, name)}")
    labels = cohort.labels(name)
    codes = np.where(np.isnan(labels.matrix), -1, labels.matrix).astype(np.int64)
    if wanted:
        meant = same_class(wanted, labels.classes)
        if meant is None:
            raise EvaluationError(f"label {name!r} has no class {wanted!r}; {suggest(wanted, labels.classes)}")
        wanted = meant
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


def check_classes_told(targets: Sequence[Target], split: npt.NDArray[np.str_]) -> None:
    """Raise where no target can be told apart, before an image is read.

    Args:
        targets: whose values are `[n]`, of samples.
        split: `[n]` of `train`, `val` and `test`.

    Raises:
        EvaluationError: no training or no test patient has a value; or of every target the training patients, or the
            test patients, hold one class or one number only.

    >>> one = Target("sick", np.array([0, 1, 1, 1]), ("no", "yes"))
    >>> check_classes_told([one], np.array(["train", "train", "test", "test"]))
    Traceback (most recent call last):
    bolus.errors.EvaluationError: nothing can be told apart: all test patients have the class 'yes' of 'sick'
    """
    constant = []
    for target in targets:
        y = np.asarray(target.y, dtype=np.float64)
        known = np.isfinite(y) if target.classes is None else y >= 0
        for part in ("train", "test"):
            values = np.unique(y[known & (split == part)])
            if not len(values):
                raise EvaluationError(f"no {part} patient has a value of {target.name!r}")
            if len(values) == 1:
                what = f"{values[0]:g}" if target.classes is None else f"the class {target.classes[int(values[0])]!r}"
                of = " as" if target.classes is None else " of"
                constant.append(f"all {part} patients have {what}{of} {target.name!r}")
                break
    if targets and len(constant) == len(targets):
        raise EvaluationError(f"nothing can be told apart: {'; '.join(constant)}")


def _instead_of_label(cohort: Cohort, name: str) -> str:
    """What a person may have meant who asked for a label that is not there."""
    if f"score:{name}" in cohort.roles:
        return f"score:{name} is a number, which regress reads"
    if f"attribute:{name}" in cohort.roles:
        return f"to predict it, give its column the role label:{name} in place of attribute:{name}"
    return suggest(f"label:{name}", cohort.roles)


def _parse(target: str) -> tuple[str, str, str]:
    """The kind with its colon, if it is given, the name without it, and a class, if one is asked for."""
    name, _, wanted = target.partition("=")
    kind = next((kind for kind in NAMED if name.startswith(kind)), "")
    return kind, name.removeprefix(kind), wanted


def shown(target: str) -> str:
    """The target without its kind: `sick` for `label:sick`."""
    _, name, wanted = _parse(target)
    return f"{name}={wanted}" if wanted else name


def file_name(name: str) -> str:
    """A file name, different for different names."""
    return quote(name, safe="=+ ")
