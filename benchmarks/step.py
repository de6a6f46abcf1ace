"""Images a second of the whole training step, over those of the same network alone on a batch in memory.

    python benchmarks/step.py                       # ResNet-18, grey, 64 pixels: for a CPU
    python benchmarks/step.py --size 224 --batch 256 --precision bf16     # for a GPU

What either is stands at `bolus.measuring.step.measure_step`. Both are measured in turn, round by round, in one process;
the ratio is taken round by round. Augmentation and data wait are shares of the whole step.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from bolus.data.cohort.cohort import Cohort
from bolus.measuring.step import measure_step
from bolus.phantom import make_phantom
from bolus.recipe import Recipe
from grid import RESULTS, run_grid


def measure(recipe: str, backbone: str, size: int, batch: int, precision: str, device: str) -> dict[str, Any]:
    """One cell: medians over nine rounds."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        # A phantom of chest-radiograph-like grey images, larger than the encoder's input.
        table = make_phantom(work / "cohort", num_patients=max(60, batch // 2), size=max(96, size))
        cohort = Cohort.open(table.parent / "cohort.yaml")
        keys = [f"encoder.backbone={backbone}", f"images.size={size}", f"sampling.batch_size={batch}"]
        whole = Recipe.load(recipe).override([*keys, f"training.precision={precision}"])
        cost = measure_step(cohort, whole, seconds=float("inf"), cache=work / "cache")
    assert cost.efficiency is not None
    median, lowest, highest = (round(share, 4) for share in cost.efficiency)
    return {
        "images_per_second_whole": round(cost.images_per_second, 1),
        "ratio": median,
        "ratio_min": lowest,
        "ratio_max": highest,
        "augmentation_share": round(cost.augmentation, 4),
        "data_wait_share": round(cost.data_wait, 5),
        "rounds": cost.rounds,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Measure each recipe at one size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--recipes", default="simclr,vicreg,mlvicx")
    arguments = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    cells = [
        {
            "recipe": recipe,
            "backbone": arguments.backbone,
            "size": arguments.size,
            "batch": arguments.batch,
            "precision": arguments.precision,
            "device": device,
        }
        for recipe in arguments.recipes.split(",")
    ]
    for line in run_grid(RESULTS / "step.jsonl", cells, measure):
        print(line["cell"]["recipe"], line["cell"]["size"], line["result"])


if __name__ == "__main__":
    main()
