"""Whether two cohorts can be asked one question: the same target, the same classes and units, and other people."""

from __future__ import annotations

import numpy as np

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.split import overlap, patient_keys
from bolus.errors import EvaluationError, LeakageError, name_rows
from bolus.evaluation.probing.fitting import has_target
from bolus.evaluation.targets import Target, find_targets, shown


def match_targets(
    here: Cohort,
    there: Cohort,
    task: str,
    target: str,
    elsewhere_target: str | None = None,
    *,
    names: tuple[str, str] = ("here", "elsewhere"),
    min_patients: int = 20,
) -> tuple[list[tuple[Target, Target]], list[str]]:
    """The questions that both cohorts answer, each with its values in both, and notes.

    Args:
        here: where heads are fitted.
        there: the other cohort.
        task: this and the rest as `evaluate_elsewhere`.
        target: a name, or `NAME=CLASS`.
        elsewhere_target: the same there; as here where None.
        names: of the cohorts, for messages.
        min_patients: positive patients that a class of a many-class label needs here.

    Raises:
        EvaluationError: a target that either cohort lacks, a label with other classes, or a number in another unit.
    """
    theirs = elsewhere_target or target
    found, notes = find_targets(here, task, target, min_patients=min_patients)
    try:
        others = find_targets(there, task, theirs, min_patients=0)[0]
    except EvaluationError as error:
        hint = "" if elsewhere_target else "; where it has another name there, say so (elsewhere_target)"
        raise EvaluationError(f"{names[1]}: {error}{hint}") from error
    one_class = "=" in target or "=" in theirs
    if task == "regress":
        units = [_unit(cohort, name) for cohort, name in ((here, target), (there, theirs))]
        if None not in units and units[0] != units[1]:
            raise EvaluationError(f"{target} is in {units[0]} in {names[0]}, but in {units[1]} in {names[1]}")
        pairs = [(found[0], others[0])]
    elif (
        one_class
        and len(found) == len(others) == 1
        and all(len(each[0].classes or ()) == 2 for each in (found, others))
    ):
        pairs = [(found[0], others[0])]
        positive = [(each[0].classes or ("", ""))[1] for each in (found, others)]
        if (found[0].name, positive[0]) != (others[0].name, positive[1]):
            notes.append(f"{found[0].name} ({positive[0]!r}) in {names[0]} is {others[0].name} ({positive[1]!r}) "
                         f"in {names[1]}")  # fmt: skip
    else:
        classes = [set(cohort.labels(shown(name).partition("=")[0]).classes)
                   for cohort, name in ((here, target), (there, theirs))]  # fmt: skip
        if one_class or classes[0] != classes[1]:
            only = [f"only in {name}: {', '.join(sorted(mine - other)) or 'none'}"
                    for name, mine, other in zip(names, classes, classes[::-1], strict=True)]  # fmt: skip
            raise EvaluationError(
                f"{shown(target)} must have the same classes in both cohorts; found {'; '.join(only)}; ask about one "
                "class on both sides, as NAME=CLASS"
            )
        by_class = {each.name.partition("=")[2]: each for each in others}
        matched = [(each, by_class.get(each.name.partition("=")[2])) for each in found]
        pairs = [(each, other) for each, other in matched if other is not None]
        notes += [f"{each.name} is left out: rows of {names[1]} have several classes" for each, other in matched
                  if other is None]  # fmt: skip
    for _, other in pairs:
        if not has_target(other.y.astype(np.float64), task).any():
            raise EvaluationError(f"{names[1]}: no row has a value of {other.name!r}")
    if not pairs:
        raise EvaluationError(f"{shown(target)}: no question is left ({'; '.join(notes)})")
    return pairs, notes


def name_cohorts(here: Cohort, there: Cohort) -> tuple[str, str]:
    """Their tables' names, without ending; where these are one, their folders', and where those are, with a number."""
    tables = [(each.folder / each.spec.table).resolve() for each in (here, there)]
    for first, second in ([table.stem for table in tables], [table.parent.name for table in tables]):
        if first != second:
            return first, second
    return tables[0].stem, f"{tables[1].stem} (2)"


def refuse_same_patients(here: Cohort, there: Cohort, names: tuple[str, str]) -> None:
    """Raise LeakageError where somebody whom heads are fitted on here is judged on there."""
    fitted = patient_keys(here.patients[here.split != "test"], "")
    shared = np.flatnonzero(overlap(fitted, there.patients, ""))
    if len(shared):
        raise LeakageError(
            f"{names[1]}: expected no training or validation patient of {names[0]}, found "
            f"{there.patients.iloc[shared].nunique()} ({name_rows(np.unique(there.origin[shared]))}); "
            "if equal identifiers are different people, give one cohort a namespace"
        )


def _unit(cohort: Cohort, target: str) -> str | None:
    """The unit that the cohort states for a number."""
    roles = (target, f"score:{target}", f"attribute:{target}")
    role = next((role for role in roles if role in cohort.roles), None)
    return None if role is None else cohort.spec.units.get(role)
