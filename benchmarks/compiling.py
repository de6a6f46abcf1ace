"""What `training.compile` costs at the first step and saves at those after it.

    python benchmarks/compiling.py                               # vit_tiny, r18w32 and dinov2_small, 8 images: minutes
    python benchmarks/compiling.py --backbones dinov2_base --size 224 --batch 64 --precision bf16

Forward and backward of the encoder, each backbone as it is and compiled, in one process. A line of JSON each: seconds
of the first and of a later step (the median of several), by the clock and of all processors, those that g++ took
included. Nothing is read from a cache of an earlier run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time

import torch

from bolus.encoders.building import build_encoder
from bolus.recipe import EncoderSpec
from bolus.training.compiling import compile_encoder

STEPS = 7


def clocks() -> tuple[float, float]:
    """Seconds by the clock, and of all processors by this process and those that it started."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(each.ru_utime + each.ru_stime for each in used)


def measure(backbone: str, compiled: bool, images: torch.Tensor, precision: str) -> dict[str, object]:
    device = images.device
    encoder = build_encoder(EncoderSpec(backbone=backbone, in_channels=3), seed=0).to(device)
    if compiled:
        compile_encoder(encoder, device)
    parameters = list(encoder.parameters())
    took = []
    for _ in range(STEPS + 1):
        start = clocks()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            pooled = encoder(images).pooled
        torch.autograd.grad(pooled.float().square().sum(), parameters, allow_unused=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        took.append(tuple(after - before for after, before in zip(clocks(), start, strict=True)))
    first, later = took[0], [statistics.median(each[clock] for each in took[1:]) for clock in range(2)]
    return {
        "backbone": backbone, "compiled": compiled, "device": device.type, "precision": precision,
        "images": list(images.shape), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "first_seconds": round(first[0], 2), "first_cpu_seconds": round(first[1], 2),
        "later_seconds": round(later[0], 4), "later_cpu_seconds": round(later[1], 4),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--backbones", default="vit_tiny,r18w32,dinov2_small")
    parser.add_argument("--size", type=int, default=56)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    asked = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # so that the compiler's processors are counted
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        for backbone in asked.backbones.split(","):
            for compiled in (False, True):
                images = torch.rand(asked.batch, 3, asked.size, asked.size, device=device)
                print(json.dumps(measure(backbone, compiled, images, asked.precision)), flush=True)


if __name__ == "__main__":
    main()
