"""The recipe of `bolus pretrain --recipe plan`: made for the cohort, or that of the run which is gone on with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bolus.data.cohort.cohort import Cohort
from bolus.errors import CohortError
from bolus.files import write_text
from bolus.planning.advice import NOTHING, recommended, render
from bolus.planning.planner import plan
from bolus.planning.writing import recipe_text
from bolus.recipe import Recipe
from bolus.recipes.keys import Overrides, written
from bolus.run import Run


@contextmanager
def planned_recipe(
    cohort: Cohort,
    folder: Path,
    *,
    overrides: Overrides = (),
    resume: bool = False,
    say: Callable[..., None] = print,
) -> Iterator[Recipe]:
    """The recipe to train with inside; the commented recipe is kept as plan.txt in a run that is begun there.

    A run that is resumed keeps its recipe: another version of the planner would make another run of it.

    Args:
        cohort: to plan for.
        folder: of the run.
        overrides: `key=value` assignments, or a mapping of keys,, applied after planning.
        resume: a run may be there.
        say: how to print lines.

    Raises:
        CohortError: nothing can be recommended; the advice has been said.
        RecipeError: an assignment that the planned recipe does not take.
    """
    begun = Run(folder).status != "new"
    if begun and resume:
        run = Run(folder)
        yield run.recipe.override(each for each in written(overrides) if not _removed(each, run.recipe))
        return
    found = plan(cohort, overrides=overrides)
    if found.recipe is None:
        say(render(found))
        raise CohortError(NOTHING)
    say(*recommended(found))
    try:
        yield found.recipe
    finally:
        if not begun and Run(folder).record_path.is_file():
            write_text(folder / "plan.txt", recipe_text(found))


def _removed(assignment: str, recipe: Recipe) -> bool:
    """Whether it removes an objective that was removed when the run was begun."""
    key, _, value = assignment.partition("=")
    section, _, name = key.partition(".")
    removes = section == "objectives" and "." not in name and value.strip() in ("null", "~", "")
    return removes and name not in recipe.objectives
