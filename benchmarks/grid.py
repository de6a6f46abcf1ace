"""A grid of cells, one JSON line a cell: cells that are done are skipped, so a grid can be stopped and continued."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from bolus.evaluation.probing.fitting import Samples
from bolus.provenance import machine, versions
from bolus.run import Run

RESULTS = Path(__file__).parent / "results"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def condense(run: Run) -> dict[str, Any]:
    """What a cell keeps of a training: its length, speed, first and last losses, and health at the end."""
    lines = [line for line in run.metrics() if line["kind"] == "train"]
    health = [line for line in run.metrics() if line["kind"] == "health"][-1]["findings"]
    return {
        "steps": run.record["steps"],
        "hours": round(run.record["hours"], 4),
        "images_per_second": round(float(np.median([line["images_per_second"] for line in lines])), 1),
        "loss_first": lines[0]["loss"],
        "loss_last": lines[-1]["loss"],
        "counts": lines[-1]["counts"],
        "health": {finding["name"]: finding["value"] for finding in health},
    }


def sides(x: Any, y: Any, patients: Any, train: Any, val: Any) -> tuple[Samples, Samples]:
    """What a head is fitted on, and what its strength is chosen on."""
    return Samples(x[train], y[train], patients[train]), Samples(x[val], y[val], patients[val])


def read_cells(path: Path) -> list[dict[str, Any]]:
    """Every finished cell."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def run_grid(
    path: Path, cells: Iterable[dict[str, Any]], measure: Callable[..., dict[str, Any]]
) -> list[dict[str, Any]]:
    """Measure every cell that the file does not hold yet; a cell is done when its keys and values stand there.

    Args:
        path: JSON lines, one a cell: `cell`, `result`, `seconds`, `command`, `machine`, `versions`.
        cells: keyword arguments of `measure`.
        measure: cell -> JSON values.
    """
    done = [line["cell"] for line in read_cells(path)]
    path.parent.mkdir(parents=True, exist_ok=True)
    for cell in cells:
        if cell in done:
            continue
        print(f"cell {json.dumps(cell)}", file=sys.stderr, flush=True)
        began = time.monotonic()
        result = measure(**cell)
        line = {
            "cell": cell,
            "result": result,
            "seconds": round(time.monotonic() - began, 1),
            "command": f"python {shlex.join(sys.argv)}",
            "machine": machine(),
            "versions": versions(),
        }
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
    return read_cells(path)
