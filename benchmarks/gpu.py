"""Everything to be measured on a GPU that is lent for minutes, in order of value, until the time is up.

    python benchmarks/gpu.py --minutes 10 --out gpu              # speed, then evidence; again: goes on
    python benchmarks/gpu.py --minutes 4 --out gpu --only speed
    python benchmarks/gpu.py --rehearsal --out gpu               # the same at tiny sizes, on any machine

Speed: whole steps beside the networks' own work, as `bolus.measuring.step` defines both, on a phantom; and how often
the device made the program wait in a step. Evidence: the studies of `EVIDENCE` in turn, of cohorts that the folder
named by BOLUS_BENCH_DATA holds. Results are JSON lines in the folder of `--out`, with device and versions; runs and
caches lie beside them. Nothing is needed but bolus itself: no network, no video, no packages for developers.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from bolus.data.cohort.cohort import Cohort
from bolus.measuring.step import measure_step
from bolus.phantom.images import make_phantom
from bolus.recipe import Recipe
from bolus.training.memory import explain_memory
from bolus.training.processes import launched
from bolus.training.rehearsal import rehearse
from bolus.training.step import apply_gradients, training_step
from grid import DATA, Clock, OutOfTimeError, run_grid

EVIDENCE = (
    ("starts", "odir", "gpu"),
    ("supremix_acdc", "acdc", "full"),
    ("learner_acdc", "acdc", "full"),
    ("mlvicx_lesions", "ham10000", "gpu"),
    ("gcl_fewshot", "acdc", "full"),
    ("volumes_phantom", None, "gpu"),
    ("volumes_acdc", "acdc", "gpu"),
)
"""In order of value: a study, its cohort where it is not made, and its tier."""
MINUTES = 0.7
"""Of a cell of speed, before one is finished."""
PAIR = "sampling={batch_size: %d, participants: %d}"
SPEED: dict[str, tuple[str, tuple[str, ...]]] = {
    "simclr, ResNet-18": ("simclr", ("encoder.backbone=resnet18", "sampling.batch_size=256")),
    "simclr, ResNet-50": ("simclr", ("encoder.backbone=resnet50", "sampling.batch_size=256")),
    "simclr, ViT-S/14": ("simclr", ("encoder.backbone=dinov2_small", "sampling.batch_size=256")),
    "comprer, ViT-B/14": (
        "comprer_bilateral",
        (
            "encoder={backbone: dinov2_base, in_channels: 3, pretrained: false}",
            "objectives.reconstruction=null",
            PAIR % (144, 72),
        ),
    ),
    "mlvicx, ResNet-50": ("mlvicx", ("encoder.backbone=resnet50", "sampling.batch_size=128")),
    "gcl, U-Net 48": ("gcl", ("encoder.backbone=unet48", "sampling.batch_size=32")),
    "simclr, ResNet-18, chunks": (
        "simclr",
        ("encoder.backbone=resnet18", "sampling={batch_size: 2048, chunk: 256}"),
    ),
}
"""In order of value: a recipe and keys, beside those of `SIZE`."""
SIZE = ("images.size=224", "training.precision=bf16")
TINY = ("images.size=32", "training.precision=fp32")
FEWER = {"participants": "sampling={batch_size: 8, participants: 4}", "chunk": "sampling={batch_size: 8, chunk: 4}"}


def keys_of(name: str, rehearsal: bool) -> list[str]:
    """The recipe keys of a cell of speed."""
    backbone, *_, batch = keys = SPEED[name][1]
    if not rehearsal:
        return [*SIZE, *keys]
    small = next((fewer for what, fewer in FEWER.items() if what in batch), "sampling.batch_size=8")
    backbone = "unet8" if "unet" in backbone else "r18w32"
    return [*keys, *TINY, f"encoder={{backbone: {backbone}, in_channels: 1, pretrained: false}}", small]


def speed(name: str, rehearsal: bool, work: Path) -> dict[str, Any]:
    """One cell: whole and bare steps, and what waits for the device in two of them."""
    recipe = Recipe.load(SPEED[name][0]).override(keys_of(name, rehearsal))
    cohort = phantom(work, recipe)
    cost = measure_step(cohort, recipe, seconds=15.0, rounds=5, cache=work / "cache")
    found = {
        "images_per_second": round(cost.images_per_second, 1),
        "seconds": round(cost.seconds, 4),
        "efficiency": None if cost.efficiency is None else [round(share, 4) for share in cost.efficiency],
        "augmentation": round(cost.augmentation, 4),
        "data_wait": round(cost.data_wait, 5),
        "memory_gib": round(cost.memory_gib, 2),
        "rounds": cost.rounds,
        "waits": waits(cohort, recipe, work / "cache"),
    }
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return found


def phantom(work: Path, recipe: Recipe) -> Cohort:
    """A cohort with masks, eyes and visits, of enough patients; made once, its images a little over 128 pixels."""
    patients = max(60, recipe.sampling.batch_size // 3)
    folder = work / f"phantom-{patients}"
    if not (folder / "cohort.yaml").exists():
        make_phantom(folder, num_patients=patients, size=min(160, 2 * recipe.images.side))
    return Cohort.open(folder / "cohort.yaml")


def waits(cohort: Cohort, recipe: Recipe, cache: Path) -> int | None:
    """How often a step makes the program wait for the device, as CUDA warns of it; None without CUDA."""
    if launched().device.type != "cuda":
        return None
    begun = rehearse(cohort, recipe, batches=2, cache=cache)
    with explain_memory(recipe), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(2):
            fetched = begun.loader.fetch(number)
            if number:  # the first one is full of what happens once
                caught.clear()
                torch.cuda.set_sync_debug_mode("warn")
            training_step(begun.model, begun.loader, fetched, begun.recipe, 0.0)
            apply_gradients(begun.model, recipe.training.clip)
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in caught)


def evidence(name: str, tier: str, out: Path, clock: Clock, rehearsal: bool) -> int:
    """A study, in a process of its own, in the time that is left."""
    tier = "rehearsal" if rehearsal else tier
    script = Path(__file__).with_name(f"{name}.py")
    words = [sys.executable, str(script), "--tier", tier, "--work", str(out / name)]
    words += [] if clock.minutes is None else ["--minutes", f"{clock.left() / 60:.2f}"]
    words += ["--seeds", "0"] if rehearsal else []
    return subprocess.run(words, env={**os.environ, "BOLUS_BENCH_RESULTS": str(out)}, check=False).returncode


def main() -> None:
    """Speed, then evidence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="begin no cell that would end later")
    parser.add_argument("--out", type=Path, required=True, help="folder of results, runs and caches")
    parser.add_argument("--only", default="speed,evidence", help="speed, evidence, or both by a comma")
    parser.add_argument("--rehearsal", action="store_true", help="tiny sizes")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    if unknown := [part for part in parts if part not in ("speed", "evidence")]:
        parser.error(f"--only: expected speed, evidence or both, found {unknown[0]!r}")
    out, clock = arguments.out.absolute(), Clock(arguments.minutes, stated=MINUTES)
    (out / "speed").mkdir(parents=True, exist_ok=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    failed = 0
    for name in SPEED if "speed" in parts else ():
        cell = {"name": name, "rehearsal": arguments.rehearsal, "device": device}
        try:
            run_grid(out / "speed.jsonl", [cell], lambda device, **cell: speed(**cell, work=out / "speed"), clock)
        except OutOfTimeError as error:
            print(f"speed: {error}", file=sys.stderr)
            break
        except Exception as error:  # a fault of one cell must not cost the others their minutes
            failed += 1
            print(f"speed: {name} failed: {error!r}", file=sys.stderr)
    for name, cohort, tier in EVIDENCE if "evidence" in parts else ():
        if cohort and not (DATA / cohort).is_dir():
            print(f"evidence: {name} is left out, since {cohort} is not in {DATA.name}", file=sys.stderr)
        elif clock.minutes is None or clock.left() > 30:
            failed += evidence(name, tier, out, clock, arguments.rehearsal) != 0
    sys.exit(min(failed, 1))


if __name__ == "__main__":
    main()
