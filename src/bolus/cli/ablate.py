"""The command `bolus ablate`: which arms, which task, which budget."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from bolus.cli.commands import given_options, grouped, parameters_of, with_help
from bolus.cli.options import CacheOption, CohortArgument, TableOptions, names
from bolus.cli.speaking import say, talkative, tell
from bolus.errors import UsageError
from bolus.evaluation.tasks import TASKS
from bolus.recipe import Recipe


def _train_and_compare(
    cohort: CohortArgument,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="keys of every arm")] = None,
    recipe: Annotated[str | None, typer.Option(help="a shipped name (bolus recipes) or a YAML file")] = None,
    over: Annotated[
        list[str],
        typer.Option(
            metavar="objectives|combiners|KEY=V1,V2",
            help="in what arms differ: objectives alone, all but each, and all together (default); combiners; one key",
        ),
    ] = [],  # noqa: B006
    recipes: Annotated[
        str | None, typer.Option(help="whole recipes by commas instead, each compared with the first")
    ] = None,
    task: Annotated[str, typer.Option(help=f"one of {', '.join(TASKS)}; their options follow")] = "classify",
    seeds: Annotated[int, typer.Option(help="trainings of each arm, with seeds from 0 on")] = 3,
    passes: Annotated[
        int | None,
        typer.Option(help="encoder passes of each training (default: those of the first arm's recipe)"),
    ] = None,
    on: Annotated[str, typer.Option(help="test, or validation, which leaves the test patients alone")] = "test",
    dry: Annotated[bool, typer.Option("--dry-run", help="two steps of each arm: how long everything takes")] = False,
    out: Annotated[Path, typer.Option("-o", "--out", help="folder; the same command goes on there")] = Path(
        "runs/ablation"
    ),
    *,
    table: TableOptions,
    cache: CacheOption = None,
    **given: Any,
) -> None:
    """Train with and without each objective for the same number of encoder passes, and say what each is worth."""
    if len(over) > 1:
        raise UsageError(f"--over: one at a time, so that arms differ in one thing; found {' and '.join(over)}")
    if recipe and recipes:
        raise UsageError("give --recipe or --recipes, not both")
    for each in [recipe] if recipe else names(recipes) or []:
        Recipe.load(each).override(overrides or [])  # what is slow comes after what a person may have mistyped

    from bolus.ablation.running import ablate as run_ablate

    found = run_ablate(
        table.open(cohort),
        recipe=recipe,
        over=over[0] if over else "objectives",
        recipes=names(recipes) or (),
        task=task,
        seeds=seeds,
        passes=passes,
        on=on,
        dry=dry,
        out=out,
        overrides=overrides or [],
        cache=cache,
        quiet=not talkative(),
        say=say,
        **_options(given),
    )
    if dry:
        tell({"folder": str(out), "hours": found.hours, "failed": found.failed})
        return
    whole = json.loads((out / "ablation.json").read_text(encoding="utf-8"))
    said = f"wrote {out}/table.txt, results.jsonl and ablation.json; runs are in {out}/runs"
    tell({"folder": str(out), **whole}, "", said)


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those options of any task that were given; the ablation refuses those of another task than its own."""
    found: dict[str, Any] = {}
    for entry in TASKS.values():
        found |= given_options(entry.options, given)
    return found


def _of_tasks() -> list[inspect.Parameter]:
    """The options of all tasks, each once, with the tasks that have it."""
    having: dict[str, list[str]] = {}
    options: dict[str, inspect.Parameter] = {}
    for name, entry in TASKS.items():
        for each in parameters_of(entry.options):
            if each.name != "fractions":  # arms are compared on all labels
                having.setdefault(each.name, []).append(name)
                options.setdefault(each.name, each)
    return [with_help(each, f"{', '.join(having[name])}: ") for name, each in options.items()]


ablate = grouped(_train_and_compare, more=_of_tasks())
ablate.__name__ = "ablate"
