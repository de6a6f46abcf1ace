"""`bolus report`: runs as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bolus.cli.commands import grouped
from bolus.cli.options import CacheOption
from bolus.cli.speaking import say, tell
from bolus.errors import UsageError
from bolus.files import check_ending


@grouped
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folders, shown side by side")],
    *,
    out: Annotated[Path, typer.Option("-o", "--out", help="HTML file to write")] = Path("report.html"),
    ablation: Annotated[Path | None, typer.Option(help="folder of an ablation, for a section of its own")] = None,
    embeddings: Annotated[
        list[Path] | None,
        typer.Option(help="Parquet of bolus embed, one a run in their order (default: RUN/embeddings.parquet)"),
    ] = None,
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails", help="draw the hardest images: the file then shows patients' images")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="write again as metrics come, until the training ends; stop with Ctrl-C")
    ] = False,
    cache: CacheOption = None,
) -> None:
    """Write what is known of runs to one HTML file that opens without a network; no patient is named in it."""
    check_ending(out, "-o", ".html", ".htm")
    if watch and (thumbnails or embeddings):
        raise UsageError("--watch shows a training; give --thumbnails and --embeddings once it has ended")
    asked: dict[str, Any] = {"out": out, "ablation": ablation}
    if watch:
        from bolus.reporting.watching import watch as run_watch

        written = run_watch(runs, **asked, say=say)
    else:
        from bolus.reporting.writing import report as run_report

        written = run_report(runs, **asked, embeddings=embeddings or [], thumbnails=thumbnails, cache=cache)
    shown = ["it shows patients' images"] if thumbnails else []
    tell({"out": str(written), "bytes": written.stat().st_size}, f"wrote {written}: open it in a browser", *shown)
