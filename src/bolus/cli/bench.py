"""`bolus bench`: what this machine makes of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bolus.cli.commands import grouped
from bolus.cli.options import CacheOption, OverridesArgument, TableOptions, names
from bolus.cli.speaking import tell
from bolus.errors import UsageError
from bolus.files import check_ending, write_json


@grouped
def bench(
    cohort: Annotated[
        Path | None, typer.Argument(metavar="[COHORT]", help="cohort.yaml or a table (default: a phantom, thrown away)")
    ] = None,
    overrides: OverridesArgument = None,
    recipe: Annotated[str, typer.Option(help="a shipped name (bolus recipes), or a YAML file")] = "simclr",
    grow: Annotated[
        str | None, typer.Option(help="also how costs grow, by commas: batch, size, objectives, processes, rows")
    ] = None,
    seconds: Annotated[float, typer.Option(help="to measure in")] = 40.0,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="JSON file to write")] = None,
    *,
    table: TableOptions,
    cache: CacheOption = None,
) -> None:
    """Measure decoding, steps and memory on this machine, and say how long a recipe will take: about a minute."""
    if out is not None:
        check_ending(out, "-o", ".json")

    from bolus.measuring.growth import AXES

    growing = names(grow) or []
    for axis in growing:
        if axis not in AXES:
            raise UsageError(f"--grow: expected {', '.join(AXES)}, found {axis!r}")

    from bolus.measuring.bench import bench as measure

    given = overrides or []
    if cohort is not None and "=" in str(cohort) and not cohort.exists():  # a key, and no cohort
        cohort, given = None, [str(cohort), *given]
    opened = None if cohort is None else table.open(cohort)
    found = measure(opened, recipe=recipe, overrides=given, growing=growing, seconds=seconds, cache=cache)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, found.to_json())
    tell(found.to_json(), *found.lines(), *([] if out is None else [f"wrote {out}"]))
