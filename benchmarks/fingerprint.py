"""What must not change when files move: recipe hashes, weights of short runs, and one evaluation of each task.

python benchmarks/fingerprint.py > before.json   # and again after the move; equal files mean an equal program
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import bolus
from bolus.recipe import Recipe, recipe_names

SMALL = ["encoder.backbone=r18w32", "images.size=32", "sampling.batch_size=8", "training.max_steps=3"]
RUNS: dict[str, list[str]] = {
    "simclr": [],
    "supremix": ["objectives.supremix.targets=[score:severity]"],
    "mlvicx": ["objectives.global.width=64"],
}  # recipe -> further keys
DRAWS: dict[str, Any] = {"draws": 100, "seed": 0}


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """The results of an evaluation, without what names the software."""
    found = [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "versions"} for line in found]


def fingerprint(work: Path) -> dict[str, Any]:
    """All of it, from a phantom that is made in a folder."""
    bolus.make_phantom(work / "cohort", num_patients=40, size=32, seed=0)
    cohort, cache = work / "cohort" / "cohort.yaml", work / "cache"
    runs = {}
    for name, keys in RUNS.items():
        recipe = Recipe.load(name).override([*SMALL, *keys])
        runs[name] = bolus.pretrain(cohort, recipe=recipe, out=work / name, cache=cache)
    run = runs["simclr"].folder
    common: dict[str, Any] = {"cache": cache, **DRAWS}
    probed: dict[str, Any] = {"probes": ("linear",), **common}
    bolus.evaluate(run, cohort, target="disease", min_patients=1, out=work / "classify", **probed)
    bolus.evaluate(run, cohort, task="regress", target="severity", out=work / "regress", **probed)
    bolus.evaluate_change(run, cohort, target="severity", out=work / "change", **probed)
    bolus.evaluate_audit(run, cohort, target="disease", min_patients=1, by=["sex"], out=work / "audit", **common)
    bolus.evaluate_retrieve(run, cohort, across="laterality", out=work / "retrieve", **common)
    spec = bolus.SegmentSpec(steps=2)
    bolus.evaluate_segment(run, cohort, labelled=[1], repeats=1, spec=spec, out=work / "segment", quiet=True, **common)
    tasks = ("classify", "regress", "change", "audit", "retrieve", "segment")
    return {
        "recipes": {name: Recipe.load(name).digest for name in recipe_names()},
        "weights": {name: found.record["weights"] for name, found in runs.items()},
        "results": {task: lines_of(work / task) for task in tasks},
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        json.dump(fingerprint(Path(place)), sys.stdout, indent=1, sort_keys=True)
        print()
