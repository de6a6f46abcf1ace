"""Keys of a study's arms, chosen on validation patients: one key after the other, the others as chosen so far.

Every figure is a cell of a file in benchmarks/results: an arm, the keys it was trained with, and what the study
measures on its validation patients, where less is better. The first value of a key is where the search begins. One
training each, of a seed that no arm is compared on, so a figure holds the chance of training too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from grid import Clock, read_cells, run_grid

SEED = 100
Keys = dict[str, Any]
Axes = Mapping[str, tuple[Any, ...]]
"""Key -> the values that are tried."""


def written(keys: Mapping[str, Any]) -> list[str]:
    """Keys as a recipe takes them."""
    return [f"{key}={'null' if value is None else value}" for key, value in keys.items()]


def search(
    file: Path, about: Mapping[str, Any], axes: Axes, measure: Callable[..., dict[str, Any]], clock: Clock
) -> Keys:
    """Measure what is missing; the chosen keys.

    Args:
        file: of the cells.
        about: tier and arm, of every cell.
        axes: in the order in which they are chosen.
        measure: of a cell, `figure` among what it gives.
        clock: of this call.

    Raises:
        OutOfTimeError: of the clock.
    """
    found = chosen(file, about, axes, lambda tried: run_grid(file, tried, measure, clock))
    assert found is not None
    return found


def chosen(
    file: Path, about: Mapping[str, Any], axes: Axes, measure: Callable[[list[dict[str, Any]]], object] | None = None
) -> Keys | None:
    """What `search` chooses; without what measures the cells that are missing, None where it has not come to its end.

    >>> chosen(Path("no such file"), {}, {}), chosen(Path("no such file"), {}, {"optimizer.lr": (1.0,)})
    ({}, None)
    """
    keys = {key: values[0] for key, values in axes.items()}
    for key, values in axes.items():
        tried = [{**about, "keys": {**keys, key: value}} for value in values]
        if measure is not None:
            measure(tried)
        figures = [
            (line["result"]["figure"], line["cell"]["keys"]) for line in read_cells(file) if line["cell"] in tried
        ]
        if len(figures) < len(tried):
            return None
        keys = dict(min(figures, key=lambda each: each[0])[1])
    return keys
