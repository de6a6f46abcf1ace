"""One measurement in a process of its own: `python -m bolus.measuring.child FOLDER`, as `growth` starts it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from bolus.data.cohort.cohort import Cohort
from bolus.errors import BolusError
from bolus.files import replacing
from bolus.measuring.step import measure_step
from bolus.recipe import Recipe
from bolus.training.memory import peak_memory
from bolus.training.processes import launched


def measure(folder: Path) -> dict[str, Any]:
    """What `asked.json` asks of cohort.yaml and recipe.yaml."""
    asked = json.loads((folder / "asked.json").read_text(encoding="utf-8"))
    cohort = Cohort.open(folder / "cohort.yaml")
    if asked["axis"] == "rows":
        return measure_table(folder / "table.csv", dict(cohort.spec.roles))
    cache = None if asked["cache"] is None else Path(asked["cache"])
    cost = measure_step(cohort, Recipe.load(folder / "recipe.yaml"), seconds=asked["seconds"], rounds=5, cache=cache)
    everyone = launched().num_processes
    return {
        "images_per_second": cost.images_per_second * everyone,
        "memory_gib": cost.memory_gib,
        "efficiency": cost.efficiency,
    }


def measure_table(table: Path, roles: dict[str, str]) -> dict[str, Any]:
    """Seconds to open and to split a table; no image is looked for."""
    began = time.perf_counter()
    opened = Cohort.open(table, roles=roles)
    opening = time.perf_counter() - began
    began = time.perf_counter()
    opened.split  # noqa: B018
    return {"open_s": opening, "split_s": time.perf_counter() - began, "memory_gib": peak_memory()}


def main() -> None:
    """Write found.json, from the first process."""
    folder = Path(sys.argv[1])
    try:
        found = measure(folder)
    except BolusError as error:
        found = {"refused": str(error)}
    if launched().is_main_process:
        with replacing(folder / "found.json") as path:
            path.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
