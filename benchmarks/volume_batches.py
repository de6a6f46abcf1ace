"""Memory, and boxes a second, of a step of simclr_3d by batch, with and without chunks, each in a process of its own.

    python benchmarks/volume_batches.py                    # 32 voxels by batch, and 32 volumes of 96 voxels, for a CPU
    python benchmarks/volume_batches.py --cells 96         # the latter alone: the larger of two nets takes half an hour
    python benchmarks/volume_batches.py --size 96 --net resnet18_3d      # all by batch, for a GPU

A step of two views of each volume of the phantom, as `bolus pretrain ... --dry-run` takes two; the second is timed.
Memory is the peak of the process, imports included, or of the accelerator. With chunks, `sampling.chunk` volumes go
through the encoder at once, twice, and the whole batch is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bolus.phantom.volumes import make_volume_phantom
from bolus.training.rehearsal import dry_run
from grid import RESULTS, run_grid

BATCHES, CHUNK, PATIENTS = (2, 4, 8, 16, 32), 2, 40  # two volumes of each patient, 60 % of whom are trained on
LARGE: list[dict[str, Any]] = [
    {"net": net, "size": 96, "batch": 32, "chunk": CHUNK} for net in ("r18w16_3d", "resnet18_3d")
]


def step(net: str, size: int, batch: int, chunk: int | None, **_: Any) -> dict[str, float]:
    """What a dry run says, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_volume_phantom(work / "phantom", num_patients=PATIENTS, size=max(size // 2, 16))
        keys = [
            f"encoder.backbone={net}",
            f"images.size={size}",
            f"images.spacing={192 / size}",
            f"sampling.batch_size={batch}",
            f"sampling.chunk={chunk or 'null'}",
        ]
        found = dry_run(work / "phantom" / "cohort.yaml", recipe="simclr_3d", overrides=keys, cache=work / "cache")
    return {"boxes_per_second": round(found.images_per_second, 2), "memory_gib": round(found.memory_gib, 3)}


def measure(**cell: Any) -> dict[str, Any]:
    """The same in a process of its own, so that the peak is its own."""
    words = [sys.executable, __file__, "--cell", json.dumps(cell)]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(ended.stderr)
    return {**json.loads(ended.stdout.splitlines()[-1]), "cores": os.cpu_count()}


def main() -> None:
    """Every cell, or one in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="r18w16_3d")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--cells", choices=["batch", "96", "all"], default="all")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cell:
        print(json.dumps(step(**json.loads(given.cell))))
        return
    by_batch: list[dict[str, Any]] = [
        {"net": given.net, "size": given.size, "batch": batch, "chunk": chunk}
        for chunk in (None, CHUNK)
        for batch in BATCHES
        if chunk != batch
    ]
    cells = {"batch": by_batch, "96": LARGE, "all": [*by_batch, *(cell for cell in LARGE if cell not in by_batch)]}[
        given.cells
    ]
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    for line in run_grid(RESULTS / "volume_batches.jsonl", [{**cell, "device": device} for cell in cells], measure):
        print(line["cell"], line["result"])


if __name__ == "__main__":
    main()
