"""Losses of bolus beside those of lightly and pytorch-metric-learning: time and memory of forward and backward.

    python benchmarks/loss_race.py             # needs lightly and pytorch-metric-learning in the same environment

`views`: NT-Xent of two views of N / 2 samples. `classes`: SupCon, with four classes. `varcov`: VICReg of two views
of N / 2 samples in 2,048 dimensions; the others have 128. Each measurement runs in a process of its own on two
threads, in an order drawn anew in each of three rounds; ratios are taken round by round. Memory is the peak of the
first pass less what was resident before. The values must agree to 1e-3 of their size.
pytorch-metric-learning's NT-Xent is left out where one of its tensors would exceed 1 GiB.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from grid import RESULTS, run_grid
from losses import THREADS, resident

ROWS = (256, 1024, 4096)
CLASSES, TEMPERATURE = 4, 0.1
LARGEST = 2**28  # numbers of one tensor, 1 GiB
SIDES = {
    "views": ("bolus", "lightly", "pytorch-metric-learning"),
    "classes": ("bolus", "pytorch-metric-learning"),
    "varcov": ("bolus", "lightly"),
}
Loss = Callable[[Tensor], Tensor]


def of_bolus(loss: str, num_samples: int) -> Loss:
    """The objective's loss of a batch, relation included."""
    from bolus.data.batches.batch import Batch
    from bolus.encoders.features import FeatureShape
    from bolus.objectives.contrasts.contrast import Contrast
    from bolus.objectives.contrasts.varcov import varcov_loss

    if loss == "varcov":
        return lambda z: varcov_loss(z[0], z[1])
    relation = "views" if loss == "views" else "label:region"
    shape = FeatureShape(dim=8, grid_channels=8, grid_stride=32)
    objective = Contrast(shape, relation=relation, temperature=TEMPERATURE)
    columns = {"sample": torch.arange(num_samples), "label:region": regions(num_samples)}
    batch = Batch({}, {"image": torch.arange(num_samples)}, columns)
    return lambda z: objective.loss({"z": F.normalize(z, dim=-1)}, batch).value


def of_lightly(loss: str, num_samples: int) -> Loss:
    """Lightly's criterion of two views."""
    from lightly.loss import NTXentLoss, VICRegLoss

    criterion = VICRegLoss() if loss == "varcov" else NTXentLoss(temperature=TEMPERATURE)
    return lambda z: criterion(z[0], z[1])


def of_metric_learning(loss: str, num_samples: int) -> Loss:
    """pytorch-metric-learning's loss of embeddings with labels."""
    from pytorch_metric_learning.losses import NTXentLoss, SupConLoss

    labels = (torch.arange(num_samples) if loss == "views" else regions(num_samples)).repeat(2)
    criterion = (NTXentLoss if loss == "views" else SupConLoss)(temperature=TEMPERATURE)
    return lambda z: criterion(z.flatten(0, 1), labels)


MAKERS = {"bolus": of_bolus, "lightly": of_lightly, "pytorch-metric-learning": of_metric_learning}


def regions(num_samples: int) -> Tensor:
    """A class a sample, `[N]`."""
    return torch.randint(CLASSES, (num_samples,), generator=torch.Generator().manual_seed(1))


def measure_alone(side: str, loss: str, num_rows: int, seconds: float) -> dict[str, float]:
    """In a fresh process: peak memory of the first pass, then the median time of as many as `seconds` allow."""
    torch.set_num_threads(THREADS)
    dim = 2048 if loss == "varcov" else 128

    def inputs(rows: int) -> Tensor:
        return torch.randn(2, rows // 2, dim, generator=torch.Generator().manual_seed(0)).requires_grad_()

    z = inputs(16)
    torch.autograd.backward(MAKERS[side](loss, 8)(z))  # loads whatever is loaded at the first use
    z, run = inputs(num_rows), MAKERS[side](loss, num_rows // 2)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before, times, value = resident("VmRSS"), list[float](), torch.zeros(())
    peak = 0.0
    while len(times) < 4 or (sum(times) < seconds and len(times) < 200):
        z.grad, began = None, time.perf_counter()
        value = run(z)
        torch.autograd.backward(value)
        times.append(time.perf_counter() - began)
        peak = peak or resident("VmHWM") - before
    return {"seconds": float(np.median(times[1:])), "peak_mb": peak, "value": float(value.detach())}


def run_alone(**cell: Any) -> dict[str, float]:
    """`measure_alone` in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}
    command = [sys.executable, __file__, "--alone", json.dumps(cell)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(loss: str, num_rows: int, rounds: int = 3, seconds: float = 1.0) -> dict[str, Any]:
    """One cell: all sides in turn."""
    fits = loss != "views" or num_rows**3 <= LARGEST  # its NT-Xent meets every positive with all negative pairs
    sides = [side for side in SIDES[loss] if fits or side != "pytorch-metric-learning"]
    order = random.Random(f"{loss} {num_rows}")
    lines: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in order.sample(sides, len(sides)):
            lines[side].append(run_alone(side=side, loss=loss, num_rows=num_rows, seconds=seconds))
    values = [found[0]["value"] for found in lines.values()]
    spread = (max(values) - min(values)) / max(map(abs, values))
    if spread > 1e-3:
        raise SystemExit(f"{loss}, {num_rows} rows: the libraries give {dict(zip(sides, values, strict=True))}")
    said: dict[str, Any] = {"relative_difference": float(f"{spread:.1e}")}
    for side, found in lines.items():
        ratios = [one["seconds"] / ours["seconds"] for one, ours in zip(found, lines["bolus"], strict=True)]
        said[side] = {
            "seconds": round(float(np.median([one["seconds"] for one in found])), 5),
            "peak_mb": round(float(np.median([one["peak_mb"] for one in found])), 1),
            "over_bolus": [round(float(value), 3) for value in (np.median(ratios), min(ratios), max(ratios))],
        }
    return said


def main() -> None:
    """Every cell; or, in a process of its own, one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone is not None:
        print(json.dumps(measure_alone(**json.loads(given.alone))))
        return
    cells = [{"loss": loss, "num_rows": rows} for loss in SIDES for rows in ROWS]
    for line in run_grid(RESULTS / "loss_race.jsonl", cells, measure):
        print(line["cell"], line["result"])


if __name__ == "__main__":
    main()
