"""What docs/results-cost.md says of the races against other libraries."""

from __future__ import annotations

from typing import Any

from grid import RESULTS, read_cells

RACE_HEADER = [
    "cell", "images/s, bolus", "images/s, lightly", "from the second epoch", "first two epochs, from the start",
    "memory, GiB", "AUROC", "less lightly's",
]  # fmt: skip


def race_rows() -> list[list[str]]:
    """A row a cell of race.py: speed, memory and accuracy of both."""
    rows = []
    for line in read_cells(RESULTS / "race.jsonl"):
        cell, found = line["cell"], line["result"]
        ours, theirs, ratios = found["bolus"], found["lightly"], found["ratios"]
        rows.append(
            [
                f"{cell['method']}, {cell['backbone']}, {cell['size']} px, {cell['epochs']} x {cell['images']} images",
                f"{ours['warm']:.0f}",
                f"{theirs['warm']:.0f}",
                f"{ratios['warm']:.2f}",
                f"{ratios['cold']:.2f}",
                f"{ours['peak_gib']:.2f} / {theirs['peak_gib']:.2f}",
                " / ".join(f"{value:.3f}" for value in (_mean(ours["auroc"]), _mean(theirs["auroc"]))),
                _interval(found["auroc_ahead"][0]),
            ]
        )
    return rows


LOSS_HEADER = ["loss", "rows", "bolus", "other", "time", "other / bolus [min, max]", "memory, MB"]


def loss_rows() -> list[list[str]]:
    """A row a cell of loss_race.py and a library."""
    rows = []
    for line in read_cells(RESULTS / "loss_race.jsonl"):
        cell, found = line["cell"], line["result"]
        ours = found["bolus"]
        for name, other in found.items():
            if name in ("bolus", "relative_difference"):
                continue
            median, low, high = other["over_bolus"]
            rows.append(
                [
                    cell["loss"],
                    f"{cell['num_rows']:,}",
                    f"{1000 * ours['seconds']:.1f} ms",
                    name,
                    f"{1000 * other['seconds']:.1f} ms",
                    f"{median:.2f} [{low:.2f}, {high:.2f}]",
                    f"{ours['peak_mb']:.0f} / {other['peak_mb']:.0f}",
                ]
            )
    return rows


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _interval(found: list[Any]) -> str:
    value, low, high = found
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
