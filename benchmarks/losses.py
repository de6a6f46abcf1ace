"""Time and memory of one forward and backward pass of `supremix_loss`, beside a plain dense implementation.

    python benchmarks/losses.py                       # every cell; stop and continue at will
    python benchmarks/losses.py --rows 64,128 --labels ages

Labels, each for two views of N / 2 samples: `ages` (normal, 54 +- 12, rounded, window 5), `continuous` (uniform on a
range of 80, all distinct, window 5), `all` (ages, a window that covers everything), `four` (4 classes, likewise), and
`continuous-all` (continuous, likewise: the most distinct labels and the most mixtures at once, so the worst window).
The dense form is what one would write first: an explicit [N, M, D] tensor of the M mixtures of every row, padded; it is
left out, "does not fit", where its largest tensor would exceed 6 GiB.

Every measurement runs in a process of its own, on 2 threads, in float32; the two implementations take turns, in an
order that is drawn anew in each of 3 rounds. Time is the median of a round's repeats and then of the rounds; the ratio
dense / ours is taken round by round. Memory is the process's peak resident size (VmHWM of Linux, reset through
/proc/self/clear_refs) during the first pass at full size, less the resident size just before it. Both get the same
Beta draws once, untimed, and the relative difference of the two values is recorded.

Goals: N = 1024 in the worst window in at most 1 s and at most 200 MB above the process; at N = 256 at least 50 times
faster than the dense form.
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

from bolus.objectives.scores.supremix import supremix_loss
from grid import RESULTS, run_grid

LABELS = ("ages", "continuous", "all", "four", "continuous-all")
ROWS = (64, 128, 256, 512, 1024, 2048)
DIM = 128
THREADS = 2
LARGEST = 6 * 2**30
TEMPERATURE = 0.5
COVERS_ALL = 1000.0


def make_labels(labels: str, num_rows: int) -> tuple[Tensor, float]:
    """Labels `[N]` float32, view-major, and the window."""
    rng, num = np.random.default_rng(0), num_rows // 2
    if labels == "four":
        y = rng.integers(0, 4, num).astype(np.float64)
    elif labels.startswith("continuous"):
        y = rng.uniform(0, 80, num)
    else:
        y = rng.normal(54, 12, num).round()
    return torch.tensor(np.tile(y, 2), dtype=torch.float32), 5.0 if labels in ("ages", "continuous") else COVERS_ALL


def draw_shares(num_rows: int, generator: torch.Generator) -> Tensor:
    """Beta(2, 8) from two gamma variables, `[N, N]`: the anchor's share of a mixed negative."""
    gammas = [torch._standard_gamma(torch.full((num_rows, num_rows), shape), generator) for shape in (2.0, 8.0)]
    return gammas[0] / (gammas[0] + gammas[1])


def dense_loss(z: Tensor, y: Tensor, window: float, shares: Tensor) -> Tensor:
    """SupReMix with both kinds of mixture and distance weights as explicit vectors: `[N, M, D]`, nothing clever."""
    num = len(y)
    z = F.normalize(z, dim=1)
    fixed = z.detach()
    dy = y[None, :] - y[:, None]
    itself = torch.eye(num, dtype=torch.bool)
    positive, negative = (dy == 0) & ~itself, dy != 0
    real = z @ z.T / TEMPERATURE
    real_weight = torch.where(negative, dy.abs() + 1, 1.0)

    hard = shares[..., None] * fixed[:, None] + (1 - shares[..., None]) * fixed[None, :]  # [N, N, D]
    hard_weight = (1 - shares) * dy.abs() + 1

    below, above = (dy < 0) & (dy > -window), (dy > 0) & (dy < window)
    anchor, j, k = (below[:, :, None] & above[:, None, :]).nonzero(as_tuple=True)
    counts = torch.bincount(anchor, minlength=num)
    place = torch.arange(len(anchor)) - (counts.cumsum(0) - counts)[anchor]
    size = (num, max(int(counts.max()), 1))
    first, second, alpha = torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.long), torch.zeros(size)
    first[anchor, place], second[anchor, place] = j, k
    alpha[anchor, place] = dy[anchor, k] / (dy[anchor, k] - dy[anchor, j])
    present = torch.arange(size[1]) < counts[:, None]
    soft = fixed[first].mul_(alpha[..., None])  # [N, M, D]
    soft += fixed[second].mul_(1 - alpha[..., None])

    hard_logits = torch.einsum("nd,nmd->nm", z, hard) / TEMPERATURE
    soft_logits = torch.einsum("nd,nmd->nm", z, soft) / TEMPERATURE
    logits = torch.cat([real + real_weight.log(), hard_logits + hard_weight.log(), soft_logits], dim=1)
    absent = torch.cat([itself, ~negative, ~present], dim=1)
    log_d = logits.masked_fill(absent, -torch.inf).logsumexp(dim=1)
    total = torch.where(positive, real, 0).sum(dim=1) + torch.where(present, soft_logits, 0).sum(dim=1)
    num_positives = positive.sum(dim=1) + counts
    counted = num_positives > 0
    return (log_d - total / num_positives.clamp(min=1))[counted].mean()


def largest_dense_bytes(y: Tensor, window: float) -> int:
    """The largest tensor of the dense form: mixtures `[N, M, D]` in float32, or the triple mask `[N, N, N]`."""
    dy = y[None, :] - y[:, None]
    below, above = ((dy < 0) & (dy > -window)).sum(dim=1), ((dy > 0) & (dy < window)).sum(dim=1)
    widest = max(int((below * above).max()), len(y))
    return max(len(y) * widest * DIM * 4, len(y) ** 3)


def resident(key: str) -> float:
    """VmRSS or VmHWM of this process in MB (10^6 bytes)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024 / 1e6
    raise LookupError(key)


def measure_alone(implementation: str, labels: str, num_rows: int, seconds: float) -> dict[str, float]:
    """In a fresh process: peak memory of the first pass, then the median time of as many as `seconds` allow."""
    torch.set_num_threads(THREADS)
    generator = torch.Generator().manual_seed(0)

    def loss(z: Tensor, y: Tensor, window: float, shares: Tensor | None = None) -> Tensor:
        if implementation == "dense":
            return dense_loss(z, y, window, draw_shares(len(y), generator) if shares is None else shares)
        options: dict[str, Any] = {"generator": generator} if shares is None else {"mix_weights": shares}
        return supremix_loss(z, y, temperature=TEMPERATURE, window=window, **options)

    def inputs(rows: int) -> tuple[Tensor, Tensor, float]:
        z = torch.randn(rows, DIM, generator=torch.Generator().manual_seed(1)).requires_grad_()
        return (z, *make_labels(labels, rows))

    z, y, window = inputs(16)
    torch.autograd.backward(loss(z, y, window))  # loads whatever is loaded at the first use
    z, y, window = inputs(num_rows)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    began = time.perf_counter()
    torch.autograd.backward(loss(z, y, window))
    first = time.perf_counter() - began
    peak = resident("VmHWM") - before
    times: list[float] = []
    while len(times) < 3 or (sum(times) < seconds and len(times) < 200):
        if first > seconds and times:
            break
        z.grad = None
        began = time.perf_counter()
        torch.autograd.backward(loss(z, y, window))
        times.append(time.perf_counter() - began)
    with torch.no_grad():
        value = loss(z, y, window, draw_shares(num_rows, torch.Generator().manual_seed(2))).item()
    return {"seconds": float(np.median(times)), "repeats": len(times), "peak_mb": peak, "value": value}


def run_alone(implementation: str, cell: dict[str, Any], seconds: float) -> dict[str, float]:
    """`measure_alone` in a process of its own."""
    request = json.dumps([implementation, cell["labels"], cell["num_rows"], seconds])
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}
    command = [sys.executable, __file__, "--alone", request]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(loss: str, labels: str, num_rows: int, dim: int, rounds: int = 3, seconds: float = 1.0) -> dict[str, Any]:
    """One cell: both implementations in turn, in an order drawn anew in each round."""
    cell = {"labels": labels, "num_rows": num_rows}
    y, window = make_labels(labels, num_rows)
    largest = largest_dense_bytes(y, window)
    names = ["ours", "dense"] if largest <= LARGEST else ["ours"]
    order = random.Random(f"{loss} {labels} {num_rows} {dim}")
    lines: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    load = os.getloadavg()[0]  # two threads on a busy machine wait for each other: read the times beside it
    for _ in range(rounds):
        for name in order.sample(names, len(names)):
            lines[name].append(run_alone(name, cell, seconds))

    def median(name: str, key: str) -> float:
        return float(np.median([line[key] for line in lines[name]]))

    result: dict[str, Any] = {
        "seconds": round(median("ours", "seconds"), 5),
        "seconds_all": [round(line["seconds"], 5) for line in lines["ours"]],
        "peak_mb": round(max(line["peak_mb"] for line in lines["ours"]), 1),
        "repeats": [line["repeats"] for line in lines["ours"]],
    }
    if "dense" in lines:
        ratios = [b["seconds"] / a["seconds"] for a, b in zip(lines["ours"], lines["dense"], strict=True)]
        values = median("ours", "value"), median("dense", "value")
        result |= {
            "dense_seconds": round(median("dense", "seconds"), 5),
            "dense_seconds_all": [round(line["seconds"], 5) for line in lines["dense"]],
            "dense_peak_mb": round(max(line["peak_mb"] for line in lines["dense"]), 1),
            "ratio": round(float(np.median(ratios)), 2),
            "ratio_min": round(min(ratios), 2),
            "ratio_max": round(max(ratios), 2),
            "relative_difference": float(f"{abs(values[0] / values[1] - 1):.2g}"),
        }
    else:
        result["dense"] = "does not fit"
    return result | {
        "dense_largest_tensor_gib": round(largest / 2**30, 2),
        "distinct_labels": len(set(y.tolist())),
        "window": window,
        "memory": "VmHWM after /proc/self/clear_refs, less VmRSS before; 10^6 bytes; the largest of the rounds",
        "threads": THREADS,
        "rounds": rounds,
        "load_before": round(load, 2),
    }


def judge(lines: list[dict[str, Any]]) -> list[str]:
    """The goals beside what was found, as far as it was measured."""

    def pick(num_rows: int, key: str) -> list[tuple[float, str]]:
        cells = [line for line in lines if line["cell"]["num_rows"] == num_rows and key in line["result"]]
        return [(line["result"][key], line["cell"]["labels"]) for line in cells]

    goals: list[tuple[str, int, str, Callable[..., tuple[float, str]], float]] = [
        ("seconds at N = 1024, worst: goal <= 1", 1024, "seconds", max, 1.0),
        ("MB at N = 1024, worst: goal <= 200", 1024, "peak_mb", max, 200.0),
        ("times faster than dense at N = 256, least: goal >= 50", 256, "ratio", min, 50.0),
    ]
    said = []
    for text, num_rows, key, worst, goal in goals:
        if found := pick(num_rows, key):
            value, labels = worst(found)
            met = value <= goal if worst is max else value >= goal
            said.append(f"{text}; found {value:g} ({labels}, {len(found)} cells): {'met' if met else 'missed'}")
    return said


def main() -> None:
    """Measure every cell that is not done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    parser.add_argument("--labels", default=",".join(LABELS))
    parser.add_argument("--out", type=Path, default=RESULTS / "losses.jsonl")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(measure_alone(*json.loads(arguments.alone))))
        return
    cells = [
        {"loss": "supremix", "labels": labels, "num_rows": int(rows), "dim": DIM}
        for rows in arguments.rows.split(",")
        for labels in arguments.labels.split(",")
    ]
    lines = run_grid(arguments.out, cells, measure)
    for line in lines:
        print(line["cell"]["labels"], line["cell"]["num_rows"], line["result"])
    print(*judge(lines), sep="\n")


if __name__ == "__main__":
    main()
