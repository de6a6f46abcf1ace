"""How a step grows with the batch, the size, the objectives and the processes, and a table with its rows.

    python benchmarks/growth.py     # every cell that is not there yet, then docs/growth.svg

`bolus bench --grow` on a phantom: SimCLR with `r18w32` at 64 pixels, and for the objectives those of GCL with a small
U-Net, once summed and once reconciled. Every point is a process of its own. Two cores can show what several processes
cost, not what they gain.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from bolus.data.cohort.cohort import Cohort
from bolus.measuring.growth import grow
from bolus.phantom.images import make_phantom
from bolus.recipe import Recipe
from figures import DOCS, is_stale, pyplot, save_figure
from grid import RESULTS, read_cells, run_grid

FIGURE = DOCS / "growth.svg"
CONTRAST = ("simclr", ("encoder.backbone=r18w32", "images.size=64", "sampling.batch_size=64"))
LABELS = (
    "gcl",
    ("encoder.backbone=unet8", "images={size: 64, unit: image}", "sampling.batch_size=32"),
)
RECIPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "simclr": CONTRAST,
    "gcl": LABELS,
    "gcl, summed": ("gcl", (*LABELS[1], "combiner={kind: sum}")),
}
CELLS: list[dict[str, Any]] = [
    {"axis": "batch", "recipe": "simclr"},
    {"axis": "size", "recipe": "simclr"},
    {"axis": "objectives", "recipe": "gcl"},
    {"axis": "objectives", "recipe": "gcl, summed"},
    {"axis": "processes", "recipe": "simclr"},
    {"axis": "rows", "recipe": "simclr"},
]


def measure(axis: str, recipe: str) -> dict[str, Any]:
    """One curve."""
    name, keys = RECIPES[recipe]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        table = make_phantom(work / "cohort", num_patients=100, size=96)
        cohort = Cohort.open(table.parent / "cohort.yaml")
        points = grow(cohort, Recipe.load(name).override(list(keys)), axis, seconds=6.0, cache=work / "cache")
    return {"points": [{key: _rounded(value) for key, value in point.items()} for point in points]}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    return [round(each, 4) for each in value] if isinstance(value, list | tuple) else value


def curves() -> list[dict[str, Any]]:
    """The measured curves: `axis`, `recipe`, `points`."""
    return [line["cell"] | line["result"] for line in read_cells(RESULTS / "growth.jsonl")]


def draw(found: list[dict[str, Any]]) -> None:
    """A panel an axis: time above, memory below."""
    plt = pyplot("growth")
    axes = list(dict.fromkeys(each["axis"] for each in found))
    figure, panels = plt.subplots(2, len(axes), figsize=(2.6 * len(axes), 5), layout="constrained", squeeze=False)
    for place, axis in enumerate(axes):
        for each in (one for one in found if one["axis"] == axis):
            points = [point for point in each["points"] if "refused" not in point]
            x = [point[axis] for point in points]
            times = [point["open_s"] + point["split_s"] if axis == "rows" else 1000 / point["images_per_second"]
                     for point in points]  # fmt: skip
            panels[0, place].plot(x, times, marker="o", label=each["recipe"])
            panels[1, place].plot(x, [point["memory_gib"] for point in points], marker="o")
        panels[0, place].set(title=axis, ylabel="s to open and split" if axis == "rows" else "ms an image")
        panels[1, place].set(xlabel=axis, ylabel="peak memory, GiB")
        for panel in panels[:, place]:
            panel.set_ylim(bottom=0)
            panel.grid(alpha=0.3)
            if axis in ("batch", "rows", "size", "processes"):
                panel.set_xscale("log", base=10 if axis == "rows" else 2)
                if axis != "rows":
                    panel.set_xticks(x, [str(value) for value in x])
        if len({each["recipe"] for each in found if each["axis"] == axis}) > 1:
            panels[0, place].legend(fontsize="small")
    save_figure(figure, FIGURE, found)
    plt.close(figure)


def stale() -> bool:
    """Whether the figure shows other numbers than the results."""
    return is_stale(FIGURE, curves())


if __name__ == "__main__":
    run_grid(RESULTS / "growth.jsonl", CELLS, measure)
    draw(curves())
