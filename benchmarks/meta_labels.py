"""What M meta labels cost, and what GradFilter's K costs (two open questions of GCL, arXiv:2309.08888).

    python benchmarks/meta_labels.py                                        # for a CPU
    python benchmarks/meta_labels.py --backbone unet48 --size 352           # for a GPU

Cells `labels`: a step of the encoder with M contrastive objectives, each on a meta label of four classes drawn at
random, with one shared head; with `pixels` also M pixel objectives. `encoder` is the step with GradMitigator in the
encoder's parameters over one forward and its M (2 M) backward passes alone; `features` is the step with GradMitigator
at the features over the same step with a single meta label. `sum` is the plain sum over that single step.
Cells `filter`: forward and backward of one pixel objective for each K, over the same without a filter.

Everything of a cell is measured in turn, round by round, in one process, and ratios are taken round by round.
Augmentation and optimiser, which are the same everywhere, are left out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bolus.data.batches.batch import Batch
from bolus.encoders.features import Features, FeatureShape
from bolus.objectives.dense.pixel import PixelContrast
from bolus.recipe import Recipe
from bolus.training.assembly import Model, build_model
from grid import RESULTS, run_grid

NUMBERS, SHARES = (1, 2, 3, 5, 10, 20), (None, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def recipe_of(backbone: str, size: int, num_labels: int, pixels: bool, kind: str, scope: str) -> Recipe:
    """M contrastive objectives, and M of pixels, reconciled in one way."""
    objectives: dict[str, Any] = {}
    for number in range(num_labels):
        label = {"relation": f"label:m{number}"}
        objectives[f"image{number}"] = {"kind": "contrast", "head": "image", **label}
        if pixels:
            objectives[f"pixel{number}"] = {"kind": "pixel_contrast", "head": "pixel", "image_head": "image", **label}
    return Recipe.load(
        {
            "name": "cost",
            "encoder": {"backbone": backbone, "stem_pool": backbone.startswith("unet")},
            "images": {"size": size},
            "objectives": objectives,
            "combiner": {"kind": kind, "scope": scope, "conflict_steps": None},
        }
    )


def losses_of(model: Model, features: Features, given: Batch) -> dict[str, torch.Tensor]:
    """The losses of a step, objectives that embed alike embedding once."""
    embedded = {one.embeds_with: one for one in model.objectives.values()}
    found = {alike: one.embed(features, given) for alike, one in embedded.items()}
    return {name: one.loss(found[one.embeds_with], given).value for name, one in model.objectives.items()}


def labels_cell(what: str, backbone: str, size: int, batch: int, num_labels: int, pixels: bool, device: str) -> Any:
    """Medians over rounds of one M."""
    rng = torch.Generator().manual_seed(0)
    columns = {f"label:m{number}": torch.randint(4, (batch,), generator=rng) for number in range(num_labels)}
    columns |= {"sample": torch.arange(batch), "patient": torch.arange(batch)}
    columns = {role: values.to(device) for role, values in columns.items()}
    images = torch.rand(2, batch, 1, size, size, generator=rng).to(device)
    given = Batch({"image": images}, {"image": torch.arange(batch, device=device)}, columns, progress=1.0)

    def model_of(count: int, kind: str, scope: str) -> Model:
        return build_model(recipe_of(backbone, size, count, pixels, kind, scope), torch.device(device), {})

    def step(model: Model) -> None:
        features = model.encoder.encode(given.views, given.rows, grid=model.needs.grid)
        features = model.combiner.open(features)
        losses = losses_of(model, features, given)
        model.combiner.accumulate(losses)
        model.combiner.reconcile()
        model.combiner.commit()

    def passes(model: Model) -> None:
        features = model.encoder.encode(given.views, given.rows, grid=model.needs.grid)
        losses = losses_of(model, features, given)
        for name, loss in losses.items():
            inputs = [*model.combiner.shared, *model.combiner.heads[name]]
            torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)

    mitigated = model_of(num_labels, "grad_mitigator", "encoder")
    at_features = model_of(num_labels, "grad_mitigator", "features")
    plain, single = model_of(num_labels, "sum", "encoder"), model_of(1, "sum", "encoder")
    runs: dict[str, Callable[[], None]] = {
        "passes": lambda: passes(mitigated),
        "encoder": lambda: step(mitigated),
        "features": lambda: step(at_features),
        "sum": lambda: step(plain),
        "single": lambda: step(single),
    }
    seconds = timed(runs, rounds=9, device=device)
    over = {"encoder": "passes", "features": "single", "sum": "single", "passes": "single"}
    return {
        "seconds": {name: round(float(np.median(values)), 4) for name, values in seconds.items()},
        "ratios": {f"{name} / {other}": ratio(seconds[name], seconds[other]) for name, other in over.items()},
        "threads": torch.get_num_threads(),
    }


def filter_cell(what: str, side: int, batch: int, channels: int, device: str) -> Any:
    """Medians over rounds of the pixel objective for every K, on maps of side x side."""
    rng = torch.Generator().manual_seed(0)
    grid = torch.randn(2, batch, channels, side, side, generator=rng).to(device).requires_grad_()
    columns = {"sample": torch.arange(batch), "region": torch.randint(4, (batch,), generator=rng)}
    columns = {role: values.to(device) for role, values in columns.items()}
    given = Batch({}, {"image": torch.arange(batch, device=device)}, columns, progress=1.0)
    features = Features(torch.zeros(2, batch, channels, device=device), grid={"image": grid})
    shape = FeatureShape(dim=channels, grid_channels=channels, grid_stride=16)

    def run_of(keep: float | None) -> Callable[[], None]:
        objective = PixelContrast(shape, relation="region", keep=keep).to(device)
        objective.name = "pixel"

        def run() -> None:
            torch.autograd.grad(objective.loss(objective.embed(features, given), given).value, [grid])

        return run

    seconds = timed({str(keep): run_of(keep) for keep in SHARES}, rounds=9, device=device)
    return {
        "seconds": {name: round(float(np.median(values)), 5) for name, values in seconds.items()},
        "ratios": {name: ratio(values, seconds["None"]) for name, values in seconds.items()},
        "threads": torch.get_num_threads(),
    }


def timed(runs: dict[str, Callable[[], None]], *, rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each, round by round, after one round that warms up."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if number:
                found[name].append(time.perf_counter() - began)
    return found


def ratio(seconds: list[float], others: list[float]) -> list[float]:
    """Median, least and most of the ratios of the rounds."""
    found = np.array(seconds) / np.array(others)
    return [round(float(value), 4) for value in (np.median(found), found.min(), found.max())]


def main() -> None:
    """Measure every M and every K."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", nargs="+", default=["unet8", "r18w32"])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--numbers", type=int, nargs="+", default=NUMBERS)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    common = {"batch": arguments.batch, "device": device}
    labels = [
        {
            "what": "labels",
            "backbone": backbone,
            "size": arguments.size,
            "num_labels": number,
            "pixels": pixels,
            **common,
        }
        for backbone in arguments.backbone
        for pixels in (False, True)
        for number in arguments.numbers
        if not pixels or (backbone.startswith("unet") and number <= 5)  # 2 M passes take long
    ]
    run_grid(RESULTS / "meta_labels.jsonl", labels, labels_cell)
    filters = [{"what": "filter", "side": side, "channels": 128, **common} for side in (4, 8, 22)]
    run_grid(RESULTS / "meta_labels.jsonl", filters, filter_cell)


if __name__ == "__main__":
    main()
