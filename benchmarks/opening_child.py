"""The processes of one cell of benchmarks/opening.py: `cache FOLDER` fills a cache, `measure FOLDER` is what counts."""

from __future__ import annotations

import json
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

BEGAN = time.perf_counter()
ROLES = {"label:finding": "finding", "score:age": "age", "order": "frame"}
MISSING = {"finding": ["todo"]}
SHARD = 10_000  # images
STAGES = (
    "check_probe", "open_samples", "build_model", "unread_loader", "open_images", "build_loader", "data_hash",
)  # fmt: skip
"""What `bolus.training.loop` calls before its first step, in this order."""
STEP = "training_step"


class FirstStepError(Exception):
    """The first step is done, which is all that is measured."""


class Stopwatch:
    """Stage -> its seconds of wall and of the CPU, and the most and the present memory in GiB at its end."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}

    def lap(self, name: str, began: tuple[float, float]) -> None:
        """The end of a stage."""
        wall, cpu = now()
        self.found[name] = {
            "seconds": round(wall - began[0], 2),
            "cpu_seconds": round(cpu - began[1], 2),
            "peak_gib": round(memory("VmHWM"), 3),
            "held_gib": round(memory("VmRSS"), 3),
        }

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, measured."""

        def measured(*arguments: Any, **named: Any) -> Any:
            began = now()
            try:
                return function(*arguments, **named)
            finally:
                self.lap(name, began)

        return measured


def now() -> tuple[float, float]:
    """Seconds of wall, and of the CPU."""
    return time.perf_counter(), time.process_time()


def memory(name: str) -> float:
    """A line of /proc/self/status, in GiB; of memory in files (mapped shards) only what is held counts."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 2**20


def fill_cache(folder: Path, asked: dict[str, Any]) -> None:
    """Shards, records and sightings as a build would have left them; the images are black, in files with holes."""
    import numpy as np

    from bolus.checksums import save_array
    from bolus.data.images.preprocessing import Preprocessing
    from bolus.data.images.shards import RECORD, SIGHTING
    from bolus.data.images.sources import _digest, _stat

    contract = Preprocessing(8)
    cache = folder / "cache" / contract.folder("file")
    cache.mkdir(parents=True)
    paths = [str(path.resolve()) for path in sorted((folder / "pixels").iterdir())]
    seen, _ = _stat(paths, {})
    seen["digest"] = [np.frombuffer(_digest(Path(path)), np.uint64) for path in paths]
    save_array(cache / "files.seen", seen.astype(SIGHTING))
    black = zlib.crc32(bytes(int(np.prod(contract.stored_shape))))
    for start in range(0, asked["rows"], SHARD):
        rows = np.arange(start, min(start + SHARD, asked["rows"]))
        records = np.zeros(len(rows), RECORD)
        records["digest"] = seen["digest"][rows // asked["frames"]]
        records["frame"], records["gain"], records["crc"] = rows % asked["frames"], 1 / 255, black
        grey = records["grey"]
        grey["high"], grey["shown_high"], grey["rule"], grey["bits"], grey["pixels"] = 1, 1, b"container", 8, 64
        name = cache / f"{start:08d}.npy"
        np.lib.format.open_memmap(name, mode="w+", dtype=np.uint8, shape=(len(rows), *contract.stored_shape)).flush()
        save_array(name.with_suffix(".records"), records)


def measure(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """The stages, in order."""
    watch, began = Stopwatch(), (BEGAN, 0.0)
    from bolus.data.cohort.cohort import Cohort
    from bolus.planning.planner import plan
    from bolus.run import Run
    from bolus.training import loop

    watch.lap("import", began)
    options: Any = {"roles": ROLES, "missing": MISSING, "unit": "image", "root": str(folder)}
    cohort = watch.wrap("open", Cohort.open)(folder / asked["table"], **options)
    held_out = watch.wrap("split", cohort.on_side)("test")
    planned = watch.wrap("plan", plan)(cohort, overrides=asked["overrides"])
    for name in STAGES:
        setattr(loop, name, watch.wrap(name, getattr(loop, name)))
    Run.create = watch.wrap("create_run", Run.create)  # type: ignore[method-assign]
    step = watch.wrap("step", getattr(loop, STEP))

    def first_step(*arguments: Any, **named: Any) -> Any:
        step(*arguments, **named)
        raise FirstStepError

    setattr(loop, STEP, first_step)
    began = now()
    try:
        loop.pretrain(cohort, recipe=planned.recipe, out=folder / "run", quiet=True)
    except FirstStepError:
        watch.lap("pretrain", began)
    return {
        "seconds": round(time.perf_counter() - BEGAN, 2),
        "cpu_seconds": round(time.process_time(), 2),
        "peak_gib": round(memory("VmHWM"), 3),
        "bytes_a_row": round((memory("VmHWM") - watch.found["import"]["held_gib"]) * 2**30 / len(cohort)),
        "patients": cohort.num_patients,
        "test_share": round(float(held_out.mean()), 4),
        "objectives": list(planned.recipe.objectives),
        "data_hash": json.loads((folder / "run/run.json").read_text(encoding="utf-8"))["data_hash"],
        "stages": watch.found,
    }


if __name__ == "__main__":
    where = Path(sys.argv[2])
    told = json.loads((where / "asked.json").read_text(encoding="utf-8"))
    if sys.argv[1] == "cache":
        fill_cache(where, told)
    else:
        print(json.dumps(measure(where, told)))
