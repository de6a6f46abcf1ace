"""The command `bolus ablate`: which arms, which question, which budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bolus.cli.options import CacheOption, CohortArgument, TableOptions, grouped, names, say, whole_numbers
from bolus.errors import UsageError


@grouped
def ablate(
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
    task: Annotated[str, typer.Option(help="classify, regress, change, retrieve or segment")] = "classify",
    target: Annotated[str, typer.Option(help="a label or score, or LABEL=CLASS; segment: mask; not for retrieve")] = "",
    across: Annotated[
        str | None, typer.Option(help="retrieve: the role that differs, such as laterality, modality or visit")
    ] = None,
    labelled_patients: Annotated[
        str | None, typer.Option(help="segment: numbers of training patients, by commas (default: 1,2,6,10)")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="segment: steps of each training (default: 1000)")] = None,
    min_patients: Annotated[
        int | None, typer.Option(help="classify: positive patients that each class needs (default: 20)")
    ] = None,
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
) -> None:
    """Train with and without each objective for the same number of encoder passes, and say what each is worth."""
    from bolus.ablation.running import ablate as run_ablate

    if len(over) > 1:
        raise UsageError(f"--over: one at a time, so that arms differ in one thing; found {' and '.join(over)}")
    if recipe and recipes:
        raise UsageError("give --recipe or --recipes, not both")
    labelled = None if labelled_patients is None else whole_numbers(labelled_patients, "--labelled-patients")
    run_ablate(
        table.open(cohort),
        recipe=recipe,
        over=over[0] if over else "objectives",
        recipes=names(recipes) or (),
        task=task,
        target=target,
        across=across,
        labelled=labelled,
        steps=steps,
        min_patients=min_patients,
        seeds=seeds,
        passes=passes,
        on=on,
        dry=dry,
        out=out,
        overrides=overrides or [],
        cache=cache,
        say=say,
    )
    if not dry:
        say("", f"wrote {out}/table.txt, results.jsonl and ablation.json; runs are in {out}/runs")
