"""Images a second of the whole training step, over those of the same network alone on a batch in memory.

    python benchmarks/step.py                       # ResNet-18, grey, 64 pixels: for a CPU
    python benchmarks/step.py --size 224 --batch 256 --precision bf16     # for a GPU

The numerator does everything that a step of `bolus pretrain` does: read from the cache, augment, forward, objectives,
gradients, clipping norm, optimiser, the look at the loss. The denominator is forward and backward of encoder, heads and
loss on one augmented batch that is already on the device. Both are measured in turn, round by round, in one process;
the ratio is taken round by round. Augmentation and data wait are shares of the whole step.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from bolus.data.cohort.cohort import Cohort
from bolus.phantom import make_phantom
from bolus.recipe import Recipe
from bolus.training.assembly import build_model
from bolus.training.loaders import build_loader, open_images
from bolus.training.step import apply_gradients, training_step
from bolus.training.window import Window
from grid import RESULTS, run_grid


def wait(device: torch.device) -> float:
    """The time, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(
    recipe: str, backbone: str, size: int, batch: int, precision: str, device: str, rounds: int = 9, steps: int = 2
) -> dict[str, Any]:
    """One cell: medians over rounds."""
    state = PartialState()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        # A phantom of chest-radiograph-like grey images, larger than the encoder's input.
        table = make_phantom(work / "cohort", num_patients=max(60, batch // 2), size=max(96, size))
        cohort = Cohort.open(table.parent / "cohort.yaml")
        keys = [f"encoder.backbone={backbone}", f"images.size={size}", f"sampling.batch_size={batch}"]
        resolved = Recipe.load(recipe).override([*keys, f"training.precision={precision}"])
        store = open_images(cohort, resolved, work / "cache", True)
        model = build_model(resolved, state.device, {})
        loader = build_loader(cohort, cohort.samples("image"), store, resolved, model.needs, state)
        local, whole = loader.batch(loader.fetch(0), device=state.device, progress=0.0)
        parameters = model.combiner.parameters

        def bare() -> None:
            with model.autocast:
                features = model.encoder.encode(local.views, local.rows, levels=model.needs.levels)
                losses = [one.loss(one.embed(features, local), whole).value for one in model.objectives.values()]
            torch.autograd.grad(torch.stack(losses).sum(), parameters, allow_unused=True)

        seconds: dict[str, list[float]] = {"whole": [], "bare": [], "augment": [], "wait": []}
        batches = loader.iterate(0, (rounds + 1) * steps)
        for number in range(rounds + 1):  # the first round warms up
            began = wait(state.device)
            for _ in range(steps):
                bare()
            middle = wait(state.device)
            window, waited = Window(), 0.0
            for _ in range(steps):
                fetched = next(batches)
                waited += fetched.wait
                window.add(fetched, *training_step(model, loader, fetched, resolved, 0.0))
                norm = apply_gradients(model, resolved.training.clip)
            window.line(1, 1.0, 1.0, norm, 1, resolved.images.views)
            ended = wait(state.device)
            loader.batch(fetched, device=state.device, progress=0.0)
            augmented = wait(state.device) - ended
            if number:
                seconds["bare"].append((middle - began) / steps)
                seconds["whole"].append((ended - middle) / steps)
                seconds["augment"].append(augmented)
                seconds["wait"].append(waited / steps)
    images = batch * resolved.images.views
    bare_s, whole_s = np.array(seconds["bare"]), np.array(seconds["whole"])
    ratio = bare_s / whole_s
    return {
        "images_per_second_whole": round(images / float(np.median(whole_s)), 1),
        "images_per_second_bare": round(images / float(np.median(bare_s)), 1),
        "ratio": round(float(np.median(ratio)), 4),
        "ratio_min": round(float(ratio.min()), 4),
        "ratio_max": round(float(ratio.max()), 4),
        "augmentation_share": round(float(np.median(np.array(seconds["augment"]) / whole_s)), 4),
        "data_wait_share": round(float(np.median(np.array(seconds["wait"]) / whole_s)), 5),
        "rounds": rounds,
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
