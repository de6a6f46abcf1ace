"""A grid of cells, one JSON line a cell: cells that are done are skipped, so a grid can be stopped and continued.

Public cohorts are read from the folder that the environment variable BOLUS_BENCH_DATA names. It holds `acdc`, `cxr`,
`lus_blues`, `nih1000` and `odir`, each a folder with a table `meta.csv`, whose columns `image` and, of acdc, `mask`
name files relative to it. None of these images are distributed with bolus.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bolus.provenance import machine, versions

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("BOLUS_BENCH_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data").absolute()


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
            **record(),
        }
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
    return read_cells(path)
