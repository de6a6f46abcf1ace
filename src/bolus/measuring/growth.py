"""How the cost of a step grows with the batch, the size, the objectives, the processes, and a table with its rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bolus.apart import count_cores
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.table import IN_MEMORY
from bolus.errors import BolusError, UsageError, suggest
from bolus.recipe import Recipe

ROWS = (10_000, 100_000, 1_000_000)
_FEWEST = {"size": 16, "batch": 4}


def _of_batch(recipe: Recipe) -> dict[int, list[str]]:
    sampling = recipe.sampling
    each = sampling.batch_size // sampling.participants if sampling.participants else None
    found = {}
    for times in (0.5, 1, 2, 4):
        batch = int(sampling.batch_size * times)
        people = [] if each is None else [f"sampling.participants={batch // each}"]
        found[batch] = [f"sampling.batch_size={batch}", *people]
    return found


def _of_size(recipe: Recipe) -> dict[int, list[str]]:
    found = {}
    for times in (0.5, 1, 2):
        size = recipe.images.size
        grown = int(size * times) if isinstance(size, int) else [int(side * times) for side in size]
        found[int(recipe.images.side * times)] = [f"images.size={grown}"]
    return found


def _of_objectives(recipe: Recipe) -> dict[int, list[str]]:
    names = list(recipe.objectives)
    return {count: [f"objectives.{name}=null" for name in names[count:]] for count in range(1, len(names) + 1)}


def _of_processes(recipe: Recipe) -> dict[int, list[str]]:
    return {count: [] for count in (1, 2, 4) if recipe.sampling.batch_size % count == 0}


def _of_rows(recipe: Recipe) -> dict[int, list[str]]:
    return {rows: [] for rows in ROWS}


AXES: Mapping[str, Callable[[Recipe], dict[int, list[str]]]] = {
    "batch": _of_batch,
    "size": _of_size,
    "objectives": _of_objectives,
    "processes": _of_processes,
    "rows": _of_rows,
}
"""What can grow -> recipe -> how large -> the keys that make it so."""


def grow(
    cohort: Cohort, recipe: Recipe, axis: str, *, seconds: float = 5.0, cache: Path | None = None
) -> list[dict[str, Any]]:
    """The cost at several sizes of one thing, each in a process of its own, so that peaks of memory are its own.

    Args:
        cohort: of a file.
        recipe: of which one thing is changed at a time.
        axis: `batch`, `size`, `objectives` (the first of them, then one more each time), `processes`, or `rows`: the
            table itself, repeated until it has so many, with patients of their own, opened and split.
        seconds: of a measurement.
        cache: cache folder; the user's where None.

    Returns:
        A mapping a size: the axis -> the size, and `images_per_second`, `memory_gib`, `efficiency`; for rows `open_s`,
        `split_s`, `memory_gib`. Where a size cannot be, `refused` says why.

    Raises:
        UsageError: an unknown axis, or a cohort that is no file.
    """
    if axis not in AXES:
        raise UsageError(f"unknown axis {axis!r}; {suggest(axis, AXES)}")
    if cohort.spec.table == IN_MEMORY:
        raise UsageError("growing: expected a cohort of a file, which other processes can open, found a DataFrame")
    points = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        cohort.save(work / "cohort.yaml")
        for size, keys in AXES[axis](recipe).items():
            if size >= _FEWEST.get(axis, 1):
                asked = {"axis": axis, "size": size, "seconds": seconds, "cache": None if cache is None else str(cache)}
                points.append({axis: size, **_measure(work, recipe, keys, asked)})
    return points


def _measure(work: Path, recipe: Recipe, keys: Sequence[str], asked: Mapping[str, Any]) -> dict[str, Any]:
    try:
        whole = recipe.override(list(keys))
    except BolusError as error:
        return {"refused": str(error)}
    (work / "recipe.yaml").write_text(whole.to_yaml(), encoding="utf-8")
    if asked["axis"] == "rows":
        write_table(Cohort.open(work / "cohort.yaml"), asked["size"], work / "table.csv")
    (work / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    found = work / "found.json"
    found.unlink(missing_ok=True)
    child = ["-m", "bolus.measuring.child", str(work)]
    processes = asked["size"] if asked["axis"] == "processes" else 1
    if processes > 1:
        child = ["-m", "torch.distributed.run", *child]
    ended = subprocess.run(
        [sys.executable, *child], capture_output=True, text=True, env=_environment(processes), check=False
    )
    if not found.exists():
        said = ended.stderr.strip().splitlines()
        return {
            "refused": f"the measurement ended with exit code {ended.returncode}: {said[-1] if said else 'no word'}"
        }
    told: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
    return told


def write_table(cohort: Cohort, rows: int, path: Path) -> None:
    """A table of so many rows: copies of a cohort's own, each with images, patients and series of its own."""
    table, own = cohort.table, [cohort.roles[role] for role in ("image", "patient", "series") if role in cohort.roles]
    for number, start in enumerate(range(0, rows, len(cohort))):
        copy = table.iloc[: rows - start].copy()
        copy[own] = copy[own].astype(str) + f"-{number}"
        copy.to_csv(path, index=False, header=number == 0, mode="a" if number else "w")


def _environment(processes: int) -> dict[str, str]:
    """This process's, with the cores shared out among so many, and the options of `torch.distributed.run`."""
    threads = max(1, count_cores() // processes)
    launched = {"PET_STANDALONE": "1", "PET_NPROC_PER_NODE": str(processes)} if processes > 1 else {}
    return {**os.environ, "OMP_NUM_THREADS": str(threads), **launched}
