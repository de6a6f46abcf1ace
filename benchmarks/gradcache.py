"""Memory and time of a training step in chunks (`sampling.chunk`), over those of one chunk, and of the batch at once.

    python benchmarks/gradcache.py                          # ResNet-18, 64 pixels, 16 chunks of 8: a minute or two
    python benchmarks/gradcache.py --backbone resnet50 --size 224 --recipes simclr,supcon,supremix

Every cell is measured in a fresh process, on the CPU of a Linux machine: two whole steps from the cache, augmentation
and optimiser included. `mib` is how much the resident set grew beyond what it was before the first of them, at most,
and `graph_mib` the most that graphs kept beside parameters; `cpu_seconds` are those of the second step. Memory that is
freed goes back to the system at once (MALLOC_MMAP_THRESHOLD_), so that what an allocator leaves lying does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn

from bolus.data.batches.columns import TrainingColumns
from bolus.data.cohort.cohort import Cohort
from bolus.phantom.images import make_phantom
from bolus.recipe import Recipe
from bolus.training.assembly import build_model
from bolus.training.loaders import build_loader, open_images
from bolus.training.step import apply_gradients, training_step
from grid import RESULTS, run_grid

MARK = "RESULT "
THRESHOLD = str(1 << 16)
MALLOC = {"MALLOC_MMAP_THRESHOLD_": THRESHOLD, "MALLOC_TRIM_THRESHOLD_": THRESHOLD, "MALLOC_ARENA_MAX": "1"}
KEYS = {"supremix": ["objectives.supremix.targets=[score:age]"], "supcon": ["objectives.supcon.relation=label:disease"]}
LIVE = {"now": 0, "most": 0}


class Kept:
    """A tensor that a graph keeps, counted while it does."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.size = tensor, 0 if isinstance(tensor, nn.Parameter) else tensor.nbytes
        LIVE["now"] += self.size
        LIVE["most"] = max(LIVE.values())

    def __del__(self) -> None:
        LIVE["now"] -= self.size


def resident(what: str) -> float:
    """MiB that are resident, VmRSS, or were at most, VmHWM."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what)]
    return int(line.split()[1]) / 1024


def steps_here(recipe: str, backbone: str, size: int, batch: int, chunk: int | None) -> dict[str, Any]:
    """One cell, in this process."""
    state = PartialState(cpu=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        table = make_phantom(work / "cohort", num_patients=max(20, batch // 3), size=size)
        cohort = Cohort.open(table.parent / "cohort.yaml")
        keys = [f"encoder.backbone={backbone}", f"images.size={size}", *KEYS.get(recipe, [])]
        keys += [f"sampling.batch_size={batch}", f"sampling.chunk={json.dumps(chunk)}"]
        resolved = Recipe.load(recipe).override(keys)
        samples = cohort.samples("image")
        store = open_images(cohort, resolved, work / "cache", True)
        model = build_model(resolved, state.device, TrainingColumns(samples))
        loader = build_loader(cohort, samples, store, resolved, model.needs, state)
        fetched = [loader.fetch(number) for number in range(2)]
        before, seconds = resident("VmRSS"), []
        Path("/proc/self/clear_refs").write_text("5")  # the most so far is now what it is
        for each in fetched:
            began = time.process_time()
            training_step(model, loader, each, resolved, 0.0)
            apply_gradients(model, resolved.training.clip)
            seconds.append(time.process_time() - began)
        grown = resident("VmHWM") - before
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            training_step(model, loader, fetched[0], resolved, 0.0)
    return {
        "mib": round(grown, 1),
        "graph_mib": round(LIVE["most"] / 2**20, 1),
        "cpu_seconds": round(seconds[-1], 3),
        "million_trained": round(sum(p.numel() for p in model.combiner.parameters) / 1e6, 2),
        "threads": torch.get_num_threads(),
    }


def measure(**cell: Any) -> dict[str, Any]:
    """One cell, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--cell", json.dumps(cell)],
        env={**os.environ, **MALLOC}, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    (found,) = [line.removeprefix(MARK) for line in done.stdout.splitlines() if line.startswith(MARK)]
    result: dict[str, Any] = json.loads(found)
    return result


def main() -> None:
    """Measure one chunk, chunks and the batch at once, of each recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default="simclr")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=8)
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        print(MARK + json.dumps(steps_here(**json.loads(arguments.cell))))
        return
    chunk, batch = arguments.chunk, arguments.chunk * arguments.chunks
    cells = [
        {"recipe": recipe, "backbone": arguments.backbone, "size": arguments.size, "batch": size, "chunk": split}
        for recipe in arguments.recipes.split(",")
        for size, split in ((chunk, None), (batch, chunk), (batch, None))
    ]
    for line in run_grid(RESULTS / "gradcache.jsonl", cells, measure):
        print(line["cell"]["recipe"], line["cell"]["batch"], line["cell"]["chunk"], line["result"])


if __name__ == "__main__":
    main()
