"""The command line: parses, calls, prints; no logic of its own."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bolus.errors import BolusError, UsageError
from bolus.options import (
    CacheOption,
    CohortArgument,
    MissingOption,
    RoleOption,
    RootOption,
    SplitOption,
    numbers,
    only_for,
    open_cohort,
    segment_arguments,
)

app = typer.Typer(
    name="bolus",
    help="Pretrain medical-image encoders from the supervision a hospital's tables already hold.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
console = Console()


def _say(*lines: str) -> None:
    """Lines as they are, neither coloured nor broken."""
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder to make")] = Path("bolus-demo"),
    seed: Annotated[int, typer.Option(help="of the phantom and the training")] = 0,
) -> None:
    """Make a synthetic cohort, check it, pretrain on it, and judge the encoder: a few minutes on a laptop."""
    from bolus.demonstration import demonstrate

    demonstrate(out, seed=seed, say=lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True))


@app.command()
def check(
    cohort: CohortArgument,
    role: RoleOption = [],  # noqa: B006
    missing: MissingOption = [],  # noqa: B006
    root: RootOption = None,
    split: SplitOption = [],  # noqa: B006
    out: Annotated[Path, typer.Option("-o", "--out", help="cohort.yaml to write")] = Path("cohort.yaml"),
    report: Annotated[Path | None, typer.Option(help="JSON to write (default: beside cohort.yaml)")] = None,
) -> None:
    """Look at every image and row before training; write what was taken for what; exit 1 on errors."""
    from bolus.data.checking import check as run_check

    found = run_check(open_cohort(cohort, role, missing, root, split))
    console.print(found.render(), highlight=False)
    found.write(report or out.with_name(f"{out.stem}-check.json"))
    found.cohort.save(out)
    console.print(f"wrote {out} and {report or out.with_name(f'{out.stem}-check.json')}", highlight=False)
    if found.errors:
        raise typer.Exit(1)


@app.command()
def pretrain(
    cohort: CohortArgument,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="recipe keys")] = None,
    recipe: Annotated[str, typer.Option(help="a shipped name (bolus recipes) or a YAML file")] = "",
    out: Annotated[Path, typer.Option("-o", "--out", help="run folder")] = Path("runs/a"),
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint")] = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="two steps: memory, images/s, time to finish")] = False,
    role: RoleOption = [],  # noqa: B006
    missing: MissingOption = [],  # noqa: B006
    root: RootOption = None,
    split: SplitOption = [],  # noqa: B006
    cache: CacheOption = None,
) -> None:
    """Pretrain an encoder on the training patients of a cohort."""
    from bolus.recipe import recipe_names
    from bolus.rehearsal import dry_run
    from bolus.training import pretrain as run_pretrain

    if not recipe:
        raise UsageError(f"--recipe is needed: one of {', '.join(recipe_names())}, or a YAML file")
    opened = open_cohort(cohort, role, missing, root, split)
    if dry:
        found = dry_run(opened, recipe=recipe, overrides=overrides or [], cache=cache)
        console.print(
            f"{found.images_per_second:.0f} images/s, {found.memory_gib:.2f} GiB at the peak, {found.steps} steps, "
            f"about {found.hours:.2f} h once images are cached"
            + (f"; {found.unreadable} of the first images cannot be read: bolus check" if found.unreadable else ""),
            highlight=False,
        )
        return
    run = run_pretrain(opened, recipe=recipe, out=out, overrides=overrides or [], resume=resume, cache=cache)
    if run.status == "stopped":
        console.print(f"stopped at training.max_hours; go on with the same command and --resume ({run.folder})")
    else:
        console.print(f"finished: {run.folder}; judge it with bolus evaluate {run.folder} COHORT --target ...")


@app.command()
def embed(
    encoder: Annotated[str, typer.Argument(metavar="ENCODER", help="run folder, encoder folder or hub name")],
    cohort: CohortArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="Parquet file to write")] = Path("embeddings.parquet"),
    keep_context: Annotated[bool, typer.Option(help="apply the run's context blocks")] = True,
    size: Annotated[int | None, typer.Option(help="input pixels of an encoder that does not state them")] = None,
    role: RoleOption = [],  # noqa: B006
    missing: MissingOption = [],  # noqa: B006
    root: RootOption = None,
    split: SplitOption = [],  # noqa: B006
    cache: CacheOption = None,
) -> None:
    """Embed every image or clip, joined to its row of the table, a clip to its first."""
    from bolus.embedding import embed as run_embed

    opened = open_cohort(cohort, role, missing, root, split)
    frame = run_embed(encoder, opened, out=out, keep_context=keep_context, size=size, cache=cache)
    width = len(frame["embedding"].iloc[0]) if len(frame) else 0
    console.print(f"{len(frame)} embeddings of width {width} in {out}", highlight=False)
    for remark in frame.attrs["remarks"]:
        console.print(f"note: {remark}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def evaluate(
    encoder_or_cohort: Annotated[str, typer.Argument(metavar="[RUN] COHORT", help="run folder, then the cohort")],
    cohort: Annotated[Path | None, typer.Argument(metavar="", hidden=True)] = None,
    encoder: Annotated[str | None, typer.Option(help="any encoder instead of a run: folder or hub name")] = None,
    task: Annotated[
        str,
        typer.Option(help="classify, regress, change (of a score within patients), or segment (masks from few labels)"),
    ] = "classify",
    target: Annotated[str, typer.Option(help="a label or score, or LABEL=CLASS (not needed for segment)")] = "",
    fractions: Annotated[
        str | None, typer.Option(help="shares of the training patients, by commas (default: 1)")
    ] = None,
    repeats: Annotated[int, typer.Option(help="draws of each fraction below 1, or of labelled patients")] = 3,
    probes: Annotated[
        str | None, typer.Option(help="of linear, knn (default: both), frozen and finetune, which train on images")
    ] = None,
    min_patients: Annotated[
        int | None, typer.Option(help="classify: positive patients that each class needs (default: 20)")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="frozen, finetune: at most (default: 30)")] = None,
    class_weights: Annotated[str | None, typer.Option(help="frozen, finetune: none (default) or balanced")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="change: differences up to this are stable, in the score's unit (default: 0)")
    ] = None,
    higher_is_worse: Annotated[
        bool | None, typer.Option("--higher-is-worse/--higher-is-better", help="change (default: worse)")
    ] = None,
    adjacent_only: Annotated[
        bool | None, typer.Option("--adjacent-only", help="change: pairs of consecutive visits only")
    ] = None,
    labelled_patients: Annotated[
        str | None,
        typer.Option(help="segment: numbers of training patients to learn from, by commas (default: 1,2,6,10)"),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="segment: steps of each training (default: 1000)")] = None,
    overlays: Annotated[
        int | None,
        typer.Option(help="segment: pictures of so many test volumes, truth blue, prediction orange (default: 0)"),
    ] = None,
    class_: Annotated[
        list[str], typer.Option("--class", metavar="LABEL=NAME", help="segment: name a class of the masks; repeatable")
    ] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(help="of draws, fine-tuning and the random-init twin")] = 0,
    size: Annotated[int | None, typer.Option(help="input pixels of an encoder that does not state them")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="folder (default: in the run)")] = None,
    role: RoleOption = [],  # noqa: B006
    missing: MissingOption = [],  # noqa: B006
    root: RootOption = None,
    split: SplitOption = [],  # noqa: B006
    cache: CacheOption = None,
) -> None:
    """Judge an encoder on patients it has not seen, beside its random-init twin and the majority class."""
    from bolus.evaluation.change import evaluate_change
    from bolus.evaluation.finetune import FinetuneSpec
    from bolus.evaluation.judging import evaluate as run_evaluate
    from bolus.evaluation.segment import evaluate_segment

    if encoder is None and cohort is None:
        raise UsageError("expected a run folder and a cohort, or --encoder NAME and a cohort")
    if encoder is not None and cohort is not None:
        raise UsageError("give a run folder or --encoder, not both")
    if not target and task != "segment":
        raise UsageError("--target is needed: a label or score of the cohort, or LABEL=CLASS")
    read_off: dict[str, Any] = {"fractions": fractions, "probes": probes}
    read_off = only_for("--task classify, regress or change", task != "segment", read_off)
    shares = numbers(read_off.get("fractions", "1"), "--fractions", float)
    kinds = [part.strip() for part in read_off.get("probes", "linear,knn").split(",")]
    training: dict[str, Any] = {"epochs": epochs, "class_weights": class_weights}
    training = only_for("--task classify or regress", task not in ("segment", "change"), training)
    change: dict[str, Any] = {"tolerance": tolerance, "higher_is_worse": higher_is_worse}
    change = only_for("--task change", task == "change", change | {"adjacent_only": adjacent_only})
    classes = only_for("--task classify", task == "classify", {"min_patients": min_patients})
    training = only_for("--probes frozen or finetune", bool({"frozen", "finetune"} & set(kinds)), training)
    segment: dict[str, Any] = {"labelled_patients": labelled_patients, "steps": steps, "overlays": overlays}
    segment = only_for("--task segment", task == "segment", segment | {"class": class_ or None})
    segmenting = segment_arguments(segment)
    table = Path(encoder_or_cohort) if cohort is None else cohort
    source, opened = encoder or encoder_or_cohort, open_cohort(table, role, missing, root, split)
    common: dict[str, Any] = {"out": out, "repeats": repeats, "seed": seed, "size": size, "cache": cache}
    if task == "segment":
        segmented = evaluate_segment(source, opened, target=target or "mask", **segmenting, **common)
        _say(segmented.summary(), "", *(f"note: {note}" for note in segmented.notes))
        drawn = ", volumes and overlays" if overlays else " and volumes"
        _say(f"wrote results{drawn} to {segmented.folder}")
        return
    common |= {"target": target, "probes": kinds, "fractions": shares}
    if task == "change":
        found = evaluate_change(source, opened, **change, **common)
    else:
        spec = FinetuneSpec(seed=seed, **training)
        found = run_evaluate(source, opened, task=task, finetune=spec, **classes, **common)
    for report in found.reports.values():
        _say(report.summary(), *(f"note: {note}" for note in report.notes), "")
    _say(*(f"note: {note}" for note in found.notes), f"wrote results, predictions and heads to {found.folder}")


@app.command()
def predict(
    encoder: Annotated[str, typer.Argument(metavar="ENCODER", help="run folder, encoder folder or hub name")],
    cohort: CohortArgument,
    head: Annotated[str, typer.Option(help="a target of the run's evaluations, or a head file or folder")] = "",
    out: Annotated[Path, typer.Option("-o", "--out", help="CSV or Parquet file to write")] = Path("predictions.csv"),
    size: Annotated[int | None, typer.Option(help="input pixels of an encoder that does not state them")] = None,
    role: RoleOption = [],  # noqa: B006
    missing: MissingOption = [],  # noqa: B006
    root: RootOption = None,
    cache: CacheOption = None,
) -> None:
    """Apply a saved head, one line for each row of the table, or for each clip; labels are not needed."""
    from bolus.prediction import predict as run_predict

    if not head:
        raise UsageError("--head is needed: a target that was evaluated, or a head file")
    frame = run_predict(
        encoder, open_cohort(cohort, role, missing, root, []), head=head, out=out, size=size, cache=cache
    )
    _say(f"{int(frame['reason'].isna().sum())} predictions for {len(frame)} rows in {out}")
    _say(*(f"note: {remark}" for remark in frame.attrs["remarks"]))


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="print this recipe as YAML, every default filled in")] = None,
) -> None:
    """List the shipped recipes, or print one."""
    from bolus.recipe import Recipe, recipe_names

    if name is not None:
        from bolus.assembly import resolve

        typer.echo(resolve(Recipe.load(name)).to_yaml())
        return
    table = Table("recipe", "what it does", "objectives", "source", box=None)
    for each in recipe_names():
        recipe = Recipe.load(each)
        kinds = ", ".join(f"{key} ({spec.kind})" for key, spec in recipe.objectives.items())
        table.add_row(each, recipe.summary, kinds, recipe.source)
    console.print(table)


def main() -> None:
    """Entry point: errors a person can mend are one message and an exit code, not a traceback."""
    logging.captureWarnings(True)
    try:
        app()
    except BolusError as error:
        Console(stderr=True).print(f"error: {error}", highlight=False, markup=False, soft_wrap=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
