"""A report that is written again as its runs go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bolus.reporting.writing import report
from bolus.run import Run

EVERY = 5.0  # seconds between two looks at the files
WATCHED = ("run.json", "metrics.jsonl", "evaluations/*/results.jsonl")


def watch(
    runs: Sequence[str | Path],
    *,
    out: str | Path = "report.html",
    ablation: str | Path | None = None,
    say: Callable[[str], None] = print,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Write the report whenever metrics or evaluations come, until no run is training any more.

    The page loads itself again while it is watched; the last one, with embeddings where there are any, does not. A run
    that was killed still counts as training: Ctrl-C ends the watch, and writes the last page.

    Args:
        runs: run folders.
        out: the HTML file.
        ablation: as of `report`.
        say: how to print a line.
        sleep: waits so many seconds.

    Returns:
        The file.

    Raises:
        UsageError, BolusError: as `report`.
    """
    folders, seen = [Path(each) for each in runs], None
    try:
        while any(Run.open(each).status == "running" for each in folders):
            now = _stamps(folders)
            if now != seen:
                report(folders, out=out, ablation=ablation, watched=True)
                if seen is None:
                    say(f"watching; {out} loads itself again in the browser; stop with Ctrl-C")
                seen = now
            sleep(EVERY)
    except KeyboardInterrupt:
        say("stopped watching")
    return report(folders, out=out, ablation=ablation)


def _stamps(folders: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Name, time and size of every file that a page is made of."""
    files = sorted(path for folder in folders for pattern in WATCHED for path in folder.glob(pattern))
    stats = [(path, path.stat()) for path in files]
    return [(str(path), stat.st_mtime_ns, stat.st_size) for path, stat in stats]
