"""A grid of cells, one JSON line a cell: cells that are done are skipped, so a grid can be stopped and continued.

Public cohorts are read from the folder that the environment variable BOLUS_BENCH_DATA names. It holds `acdc`, `cxr`,
`lus_blues`, `nih1000` and `odir`, each a folder with a table `meta.csv`, whose columns `image` and, of acdc, `mask`
name files relative to it. None of these images are distributed with bolus. Cells and comparisons stand in
benchmarks/results, or in the folder that BOLUS_BENCH_RESULTS names.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bolus.provenance import machine, versions

SMALL = "small"
BEGAN = time.monotonic()
RESULTS = Path(os.environ.get("BOLUS_BENCH_RESULTS") or Path(__file__).parent / "results").absolute()
DATA = Path(os.environ.get("BOLUS_BENCH_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data").absolute()


class OutOfTimeError(Exception):
    """The time of this call is over; what is done is kept, and the same call goes on from there."""


@dataclass(frozen=True)
class Clock:
    """The time that a call may take, from the start of the program.

    Args:
        minutes: None where it may take any time.
        stated: minutes of a cell, where none like it is finished.
        kept: minutes for what follows the last cell.
    """

    minutes: float | None = None
    stated: float = 0.0
    kept: float = 0.25

    def left(self) -> float:
        """Seconds for cells; infinite where the call may take any time."""
        return math.inf if self.minutes is None else 60 * (self.minutes - self.kept) - (time.monotonic() - BEGAN)

    def require(self, cell: dict[str, Any], lines: Iterable[dict[str, Any]]) -> None:
        """Raise OutOfTimeError where less is left than the longest cell took that differs in arm and seed alone.

        Args:
            cell: that is to begin.
            lines: finished cells of its grid; those of other accelerators tell nothing.
        """
        if self.minutes is None:
            return
        here, kind = machine()["accelerator"], _alike(cell)
        took = [
            line["seconds"] for line in lines if line["machine"]["accelerator"] == here and _alike(line["cell"]) == kind
        ]
        expected = max(took, default=60 * self.stated)
        if self.left() < max(expected, 1.0):
            raise OutOfTimeError(f"{json.dumps(cell)} takes about {expected:.0f} s, and {self.left():.0f} s are left")


NO_END = Clock()


def _alike(cell: dict[str, Any]) -> dict[str, Any]:
    """What cells that should take as long have alike."""
    return {name: value for name, value in cell.items() if name not in ("arm", "seed")}


def results_file(name: str, tier: str) -> Path:
    """A file of results at a size."""
    return RESULTS / name.format(tier="" if tier == SMALL else f"-{tier}")


def record() -> dict[str, Any]:
    """What stands beside everything that was measured: how, on what, and with what."""
    return {"command": f"python {shlex.join(sys.argv)}", "machine": machine(), "versions": versions()}


def write_results(path: Path, lines: list[dict[str, Any]], **more: Any) -> None:
    """Write a comparison: its lines, and what else belongs to it."""
    path.write_text(json.dumps({**record(), "results": lines, **more}, indent=1) + "\n")


def read_cells(path: Path) -> list[dict[str, Any]]:
    """Every finished cell."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def run_grid(
    path: Path, cells: Iterable[dict[str, Any]], measure: Callable[..., dict[str, Any]], clock: Clock | None = None
) -> list[dict[str, Any]]:
    """Measure every cell that the file does not hold yet; a cell is done when its keys and values stand there.

    Args:
        path: JSON lines, one a cell: `cell`, `result`, `seconds`, `command`, `machine`, `versions`.
        cells: keyword arguments of `measure`.
        measure: cell -> JSON values.
        clock: of this call.

    Raises:
        OutOfTimeError: of the clock, before a cell, or of `measure`; the cell is not written.
    """
    done = [line["cell"] for line in read_cells(path)]
    path.parent.mkdir(parents=True, exist_ok=True)
    for cell in cells:
        if cell in done:
            continue
        if clock is not None:
            clock.require(cell, read_cells(path))
        print(f"cell {json.dumps(cell)}", file=sys.stderr, flush=True)
        began = time.monotonic()
        result = measure(**cell)
        line = {
            "cell": cell,
            "result": result,
            "seconds": round(time.monotonic() - began, 1),
            **record(),
        }
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
    return read_cells(path)
