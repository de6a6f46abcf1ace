"""The verbs of `bolus`, but for those that ask questions of an encoder."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from bolus.cli.ablate import ablate
from bolus.cli.bench import bench as measure_machine
from bolus.cli.commands import Verbs, grouped
from bolus.cli.evaluate import app as evaluate
from bolus.cli.export import export, strip
from bolus.cli.options import (
    CacheOption,
    CohortArgument,
    ColumnsOption,
    EncoderArgument,
    NoTableOption,
    OverridesArgument,
    PrecisionOption,
    SizeOption,
    TableOptions,
    names,
    refuse_swapped,
)
from bolus.cli.report import report as report_runs
from bolus.cli.scan import scan
from bolus.cli.speaking import say, say_left_out, show, spare_letters, talkative, tell
from bolus.errors import BolusError, UsageError
from bolus.files import NO_ROOM, check_ending
from bolus.terminal import Terminal, VisibleFormatter

if TYPE_CHECKING:
    from bolus.data.cohort.cohort import Cohort
    from bolus.recipe import Recipe

PLANNED = "plan"  # in place of the name of a recipe

VERBS = (
    "scan", "check", "plan", "pretrain", "evaluate", "embed", "predict", "export", "strip",
    "ablate", "report", "recipes", "bench", "demo",
)  # fmt: skip
"""In the order of the help: that of the work."""


class _InOrder(Verbs):
    """Verbs in the order of the work."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=VERBS.index)


app = typer.Typer(
    name="bolus",
    cls=_InOrder,
    help="Pretrain medical-image encoders from the supervision a hospital's tables already hold.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        from bolus import __version__

        say(f"bolus {__version__}")
        raise typer.Exit


@app.callback()
def bolus(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Pretrain medical-image encoders from the supervision a hospital's tables already hold."""


@app.command()
@grouped
def demo(
    out: Annotated[Path, typer.Option(help="folder to make")] = Path("bolus-demo"),
    recipe: Annotated[
        str | None, typer.Option(help="mlvicx (where none is named), or comprer; of volumes supremix_3d")
    ] = None,
    volumes: Annotated[bool, typer.Option("--volumes", help="heads in MR, each seen as a volume")] = False,
    seed: Annotated[int, typer.Option(help="of the phantom and the training")] = 0,
) -> None:
    """Make a synthetic cohort, check it, pretrain on it, and judge the encoder: a few minutes on a laptop."""
    from bolus.cli.demo import demonstrate

    run = demonstrate(out, recipe=recipe, volumes=volumes, seed=seed, quiet=not talkative(), say=say)
    tell({"folder": str(out), "run": str(run.folder)})


@app.command()
@grouped
def check(
    cohort: CohortArgument,
    *,
    table: TableOptions,
    out: Annotated[Path, typer.Option("-o", "--out", help="cohort.yaml to write")] = Path("cohort.yaml"),
    report: Annotated[Path | None, typer.Option(help="JSON to write (default: beside cohort.yaml)")] = None,
    thumbnails: Annotated[
        Path | None, typer.Option(help="folder for sheets of pictures, as the encoder will see them")
    ] = None,
) -> None:
    """Look at every image and row before training; write what was taken for what; exit 1 on errors."""
    written = report or out.with_name(f"{out.stem}-check.json")
    check_ending(out, "-o", ".yaml", ".yml")
    check_ending(written, "--report", ".json")
    opened = table.open(cohort)

    from bolus.data.checks.checking import check as run_check

    found = run_check(opened, thumbnails=thumbnails)
    found.write(written)
    found.cohort.save(out)
    sheets = [] if thumbnails is None else [f"wrote sheets of pictures to {thumbnails}: they show patients' images"]
    show(found.render())
    tell(json.loads(written.read_text(encoding="utf-8")), f"wrote {out} and {written}", *sheets)
    if found.errors:
        raise typer.Exit(1)


@app.command()
@grouped
def plan(
    cohort: CohortArgument,
    overrides: OverridesArgument = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="recipe to write")] = Path("recipe.yaml"),
    unit: Annotated[str | None, typer.Option(help="image, slice, clip or volume (default: by the columns)")] = None,
    force: Annotated[bool, typer.Option("--force", help="write over another recipe")] = False,
    *,
    table: TableOptions,
) -> None:
    """Say which objectives a cohort's columns allow, and what it can decide; write the recipe, with every reason."""
    if not out.is_dir():  # of which there is more to say
        check_ending(out, "-o", ".yaml", ".yml")
    opened = table.open(cohort)

    from bolus.planning.advice import render
    from bolus.planning.planner import plan as make_plan
    from bolus.planning.writing import save_recipe

    found = make_plan(opened, unit=unit, overrides=overrides or [])
    save_recipe(found, out, force=force)
    facts: dict[str, Any] = {"recipe": str(out), "facts": found.facts}
    for name, listed in (("offers", found.offers), ("hazards", found.hazards), ("resolutions", found.resolutions)):
        facts[name] = [asdict(each) for each in listed]
    facts |= {"choices": dict(found.choices), "cost": found.cost}
    tell(facts, render(found, cohort=table.words(cohort), recipe=str(out)), "", f"wrote {out}")


@app.command()
@grouped
def pretrain(
    cohort: CohortArgument,
    overrides: OverridesArgument = None,
    recipe: Annotated[
        str,
        typer.Option(help="a shipped name (bolus recipes), a YAML file, or plan: what bolus plan makes of the cohort"),
    ] = "",
    out: Annotated[Path, typer.Option("-o", "--out", help="run folder")] = Path("runs/a"),
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint")] = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="two steps: memory, images/s, time to finish")] = False,
    *,
    table: TableOptions,
    cache: CacheOption = None,
) -> None:
    """Pretrain an encoder on the training patients of a cohort."""
    from bolus.recipe import Recipe, recipe_names

    if not recipe:
        raise UsageError(
            f"--recipe is needed: one of {', '.join(recipe_names())}, or a YAML file; "
            f"bolus plan {cohort} -o recipe.yaml writes one for this cohort, and --recipe plan trains with it at once"
        )
    given = overrides or []
    stated = None if recipe == PLANNED else Recipe.load(recipe).override(given)
    opened = table.open(cohort)  # what is slow comes after what a person may have mistyped

    from bolus.training.loop import pretrain as run_pretrain
    from bolus.training.rehearsal import dry_run

    with _planned(opened, out, given, resume) if stated is None else nullcontext(stated) as made:
        if dry:
            found = dry_run(opened, recipe=made, cache=cache)
            peak = "unknown memory" if math.isnan(found.memory_gib) else f"{found.memory_gib:.2f} GiB"
            lost = f"; {found.unreadable} of the first images cannot be read: bolus check" if found.unreadable else ""
            images = made.images
            what = f"boxes of {images.extent}/s" if images.unit == "volume" else "images/s"
            of_step = f" of {3600 * found.hours / found.steps:.2g} s" if images.unit == "volume" else ""
            tell(
                asdict(found),
                f"{found.images_per_second:.3g} {what}, {peak} at the peak, {found.steps} steps{of_step}, "
                f"about {found.hours:.2f} h once images are cached{lost}",
            )
            return
        run = run_pretrain(opened, recipe=made, out=out, resume=resume, cache=cache, quiet=not talkative())
    said = (
        f"stopped at training.max_hours; go on with the same command and --resume ({run.folder})"
        if run.status == "stopped"
        else f"finished: {run.folder}; judge it with bolus evaluate classify {run.folder} COHORT --target ..."
    )
    tell({"run": str(run.folder), "status": run.status}, said)


def _planned(opened: Cohort, out: Path, overrides: list[str], resume: bool) -> AbstractContextManager[Recipe]:
    from bolus.planning.planned import planned_recipe

    return planned_recipe(opened, out, overrides=overrides, resume=resume, say=say)


@app.command()
@grouped
def embed(
    encoder: EncoderArgument,
    cohort: CohortArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="Parquet file to write")] = Path("embeddings.parquet"),
    keep_context: Annotated[bool, typer.Option(help="apply the run's context blocks")] = True,
    with_map: Annotated[bool, typer.Option("--map", help="add x, y and nearest neighbours, for an explorer")] = False,
    size: SizeOption = None,
    precision: PrecisionOption = "fp32",
    columns: ColumnsOption = None,
    bare: NoTableOption = False,
    *,
    table: TableOptions,
    cache: CacheOption = None,
) -> None:
    """Embed every image or clip, beside its row of the table without what names a person or a file."""
    refuse_swapped(encoder, cohort)
    opened = table.open(cohort)

    from bolus.embedding.sharing import is_first
    from bolus.embedding.table import write_embeddings

    asked: dict[str, Any] = {"size": size, "cache": cache, "precision": precision, "quiet": not talkative()}
    asked |= {"columns": names(columns) or (), "with_table": not bare}
    written = write_embeddings(encoder, opened, out, keep_context=keep_context, with_map=with_map, **asked)
    if not is_first():
        return
    facts = {"out": str(out), "rows": written.rows, "width": written.width, "notes": written.remarks}
    facts |= {"left_out": written.left_out}
    said = [*say_left_out(written.left_out), *(f"note: {remark}" for remark in written.remarks)]
    tell(facts, f"{written.rows} embeddings of width {written.width} in {out}", *said)


app.add_typer(evaluate)
app.command()(ablate)
app.command("bench")(measure_machine)
app.command()(export)
app.command()(strip)
app.command()(scan)
app.command("report")(report_runs)


@app.command()
@grouped
def predict(
    encoder: EncoderArgument,
    cohort: CohortArgument,
    head: Annotated[str, typer.Option(help="a target of the run's evaluations, or a head file or folder")] = "",
    out: Annotated[Path, typer.Option("-o", "--out", help="CSV or Parquet file to write; of masks, a folder")] = Path(
        "predictions.csv"
    ),
    size: SizeOption = None,
    precision: PrecisionOption = "fp32",
    written_as: Annotated[str, typer.Option("--format", help="masks of DICOM images: nifti or dicom-seg")] = "nifti",
    columns: ColumnsOption = None,
    bare: NoTableOption = False,
    *,
    table: TableOptions,
    cache: CacheOption = None,
) -> None:
    """Apply a saved head, one line for each row of the table, or for each clip; a segmenter draws masks."""
    if not head:
        raise UsageError("--head is needed: a target that was evaluated, or a head file")
    refuse_swapped(encoder, cohort)

    from bolus.prediction.prediction import predict as run_predict

    asked: dict[str, Any] = {"size": size, "cache": cache, "precision": precision, "written_as": written_as}
    asked |= {"columns": names(columns) or (), "with_table": not bare}
    frame = run_predict(encoder, table.open(cohort), head=head, out=out, **asked)
    predicted, remarks = int(frame["reason"].isna().sum()), frame.attrs["remarks"]
    facts = {"out": str(out), "rows": len(frame), "predictions": predicted, "notes": remarks}
    facts |= {"left_out": frame.attrs["left_out"]}
    said = [*say_left_out(frame.attrs["left_out"]), *(f"note: {remark}" for remark in remarks)]
    tell(facts, f"{predicted} predictions for {len(frame)} rows in {out}", *said)


@app.command()
@grouped
def recipes(
    name: Annotated[str | None, typer.Argument(help="print this recipe as YAML, every default filled in")] = None,
) -> None:
    """List the shipped recipes, or print one."""
    from bolus.recipe import Recipe, recipe_names
    from bolus.terminal import columns, fold

    if name is not None:
        from bolus.training.assembly import resolve

        whole = resolve(Recipe.load(name))
        tell(whole.model_dump(mode="json"), whole.to_yaml())
        return
    found = {each: Recipe.load(each) for each in recipe_names()}
    width = max(map(len, found))
    beside = " " * (width + 2 if columns() > 3 * width else 4)  # in a narrow terminal there is no room for two columns
    lines = [
        line
        for each, recipe in found.items()
        for line in fold(f"{each:<{width}}  {recipe.summary} {recipe.source}".strip(), "", beside)
    ]
    tell({each: {"summary": recipe.summary, "source": recipe.source} for each, recipe in found.items()}, *lines)


def main() -> None:
    """Entry point: errors a person can mend are one message and an exit code, not a traceback."""
    logging.captureWarnings(True)
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(VisibleFormatter())
    spare_letters()
    try:
        app()
    except BolusError as error:
        _end(str(error), error.exit_code)
    except OSError as error:
        _end(_without_names(error, sys.argv[1:]), BolusError.exit_code)


def _end(said: str, code: int) -> NoReturn:
    Terminal(stderr=True).print(f"error: {said}", soft_wrap=True)
    sys.exit(code)


def _without_names(error: OSError, words: Sequence[str]) -> str:
    """What the system refused, naming no file but one of the command line: others may be called after a patient.

    >>> _without_names(PermissionError(13, "Permission denied", "runs/a/Surname.png"), ["embed", "runs/a"])
    'runs/a cannot be read or written: Permission denied; choose another path'
    """
    given = [word.rpartition("=")[2] if word.startswith("--") else word for word in words]
    path = Path(os.fsdecode(error.filename)).absolute() if isinstance(error.filename, str | bytes) else None
    held = [each for each in given if each and path is not None and path.is_relative_to(Path(each).absolute())]
    beside = [each for each in given if each and path is not None and path.parent == Path(each).absolute().parent]
    named = max(held or beside, key=len, default="a file")
    why = type(error).__name__ if error.errno is None else os.strerror(error.errno)
    then = "make room, or choose another disk" if error.errno in NO_ROOM else "choose another path"
    return f"{named} cannot be read or written: {why}; {then}"


if __name__ == "__main__":
    main()
