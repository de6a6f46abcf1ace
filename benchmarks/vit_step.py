"""Memory and time of a training step of a large vision transformer, with and without activation checkpointing.

    python benchmarks/vit_step.py                                  # DINOv2 ViT-B/14, 224 pixels, 4 images, on the CPU
    python benchmarks/vit_step.py --images 16,32,64 --unfrozen 4
    python benchmarks/vit_step.py --device cuda --images 72,144    # in bf16

A step is that of SimCLR with AdamW: two views a sample from the cache, augmented, through the encoder and its head,
gradients, clipping norm, optimiser. The weights are random, which costs what pretrained ones do. Every cell is measured
in a fresh process: on the CPU memory is the largest resident set of that process, interpreter and libraries included
(`gib_before` is what it held before the first step); on an accelerator it is the most that tensors took there at once.
A cell that does not fit holds the error in place of numbers; on the CPU the system ends such a process.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from bolus.data.cohort.cohort import Cohort
from bolus.errors import OutOfMemoryError
from bolus.phantom.images import make_phantom
from bolus.recipe import Recipe
from bolus.training.assembly import build_model
from bolus.training.loaders import build_loader, open_images
from bolus.training.memory import explain_memory
from bolus.training.step import apply_gradients, training_step
from grid import RESULTS, run_grid

MARK = "RESULT "


def resident() -> float:
    """The largest resident set of this process so far, in GiB."""
    kibi = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kibi / 2**30


def step_here(
    backbone: str,
    size: int,
    images: int,
    precision: str,
    device: str,
    checkpointing: bool,
    unfrozen: int | None,
    steps: int,
) -> dict[str, Any]:
    """One cell, in this process: the first step by itself, then the median of the others."""
    state = PartialState(cpu=device == "cpu")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        samples = images // 2
        # Of 60 % training patients there must be enough for a batch.
        table = make_phantom(work / "cohort", num_patients=max(20, math.ceil(samples / 0.5)), size=size)
        cohort = Cohort.open(table.parent / "cohort.yaml")
        recipe = Recipe.load("simclr").override(
            [
                f"encoder={{backbone: {backbone}, in_channels: 3, unfrozen: {json.dumps(unfrozen)}}}",
                f"images.size={size}",
                f"sampling.batch_size={samples}",
                f"training.precision={precision}",
                f"training.activation_checkpointing={str(checkpointing).lower()}",
                "optimizer={kind: adamw, lr: 0.0003, weight_decay: 0.5}",
            ]
        )
        store = open_images(cohort, recipe, work / "cache", True)
        model = build_model(recipe, state.device, {})
        loader = build_loader(cohort, cohort.samples("image"), store, recipe, model.needs, state)
        before, seconds = resident(), []
        try:
            with explain_memory(recipe):
                for number in range(steps):
                    began = time.perf_counter()
                    training_step(model, loader, loader.fetch(number), recipe, 0.0)
                    norm = apply_gradients(model, recipe.training.clip).item()  # .item() waits for the device
                    seconds.append(time.perf_counter() - began)
        except OutOfMemoryError as error:
            return {"error": str(error)}
    return {
        "gib": round(torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else resident(), 2),
        "gib_before": round(before, 2),
        "seconds_first": round(seconds[0], 3),
        "seconds": round(statistics.median(seconds[1:]), 3),
        "images_per_second": round(images / statistics.median(seconds[1:]), 2),
        "million_parameters": round(sum(p.numel() for p in model.encoder.parameters()) / 1e6, 2),
        "million_trained": round(sum(p.numel() for p in model.combiner.parameters) / 1e6, 2),
        "gradient_norm_finite": math.isfinite(norm),
        "threads": torch.get_num_threads(),
    }


def measure(**cell: Any) -> dict[str, Any]:
    """One cell, in a process of its own."""
    keys = {key: value for key, value in cell.items() if key != "accelerator"}
    done = subprocess.run(
        [sys.executable, __file__, "--cell", json.dumps(keys)], stdout=subprocess.PIPE, text=True, check=False
    )
    lines = [line.removeprefix(MARK) for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        if done.returncode >= 0:
            raise SystemExit(f"the process of {keys} failed with {done.returncode}")
        return {"error": f"ended by signal {-done.returncode}"}
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def main() -> None:
    """Measure each number of images without and with checkpointing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="dinov2_base")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", default="4", help="views in a step, even numbers")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", help="fp32 on the CPU and bf16 on cuda, unless given")
    parser.add_argument("--unfrozen", type=int, help="train only the last so many blocks")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        print(MARK + json.dumps(step_here(**json.loads(arguments.cell))))
        return
    numbers = [int(number) for number in arguments.images.split(",")]
    if arguments.steps < 2 or any(number < 4 or number % 2 for number in numbers):
        parser.error("expected at least 2 steps, and even numbers of at least 4 images")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("no cuda device here")
    cells = [
        {
            "backbone": arguments.backbone,
            "size": arguments.size,
            "images": number,
            "precision": arguments.precision or ("bf16" if arguments.device == "cuda" else "fp32"),
            "device": arguments.device,
            "accelerator": torch.cuda.get_device_name() if arguments.device == "cuda" else "none",
            "checkpointing": checkpointing,
            "unfrozen": arguments.unfrozen,
            "steps": arguments.steps,
        }
        for number in numbers
        for checkpointing in (False, True)
    ]
    for line in run_grid(RESULTS / "vit_step.jsonl", cells, measure):
        print(line["cell"]["images"], line["cell"]["checkpointing"], line["result"])


if __name__ == "__main__":
    main()
