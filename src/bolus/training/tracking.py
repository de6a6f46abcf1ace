"""The lines of metrics.jsonl, to a tracker as well where the recipe names one: TensorBoard, MLflow, W&B or Trackio.

The trackers are accelerate's. They get numbers and the recipe's name and hashes; no row, path or patient.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations
from typing import Any

from bolus.errors import require
from bolus.run import Run

PROJECT = "bolus"
PURPOSE = "runs with training.tracker={}"

Record = Callable[[dict[str, Any]], None]


def check_tracker(name: str | None) -> None:
    """Raise MissingPackageError where the package of a tracker is not installed, before anything is read."""
    if name is not None:
        require(name, PURPOSE.format(name))


@contextmanager
def recording(run: Run, name: str | None) -> Iterator[Record]:
    """What adds a line to the run's metrics, and its numbers to the tracker.

    TensorBoard's files lie in the run's `tensorboard/`; MLflow, W&B and Trackio go where their own settings say, under
    the project or experiment `bolus` and the name of the run's folder. A resumed run tells the steps since its last
    checkpoint again; the look at pretrained weights before the first step stands in metrics.jsonl alone.

    Args:
        run: whose folder is there when the first line is added.
        name: `tensorboard`, `mlflow`, `wandb`, `trackio`, or None for metrics.jsonl alone.
    """
    tracker: Any = None

    def record(line: dict[str, Any]) -> None:
        nonlocal tracker
        run.append(line)
        if name is None:
            return
        if tracker is None:
            tracker = _open(run, name)
        values = numbers_of(line)
        if values:
            tracker.log(values, step=line["step"])

    try:
        yield record
    finally:
        if tracker is not None:
            tracker.finish()


def numbers_of(line: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line of metrics, by names that every tracker takes.

    >>> numbers_of({"kind": "train", "step": 3, "loss": 0.5, "losses": {"views": 0.5}, "lr": None})
    {'train/loss': 0.5, 'train/losses/views': 0.5}
    """
    kind, found = line["kind"], dict[str, Any]()
    if kind == "train":
        for key, value in line.items():
            inner = value.items() if isinstance(value, Mapping) else [("", value)]
            found |= {f"{kind}/{key}{f'/{name}' if name else ''}": each for name, each in inner if key != "step"}
    elif kind == "health":
        found = {f"{kind}/{each['name']}": each["value"] for each in line["findings"]}
    elif kind == "conflicts":
        names = line["objectives"]
        for a, b in combinations(range(len(names)), 2):
            found[f"{kind}/cosine {names[a]} {names[b]}"] = line["cosines"][a][b]
        found |= {f"{kind}/norm {name}": norm for name, norm in zip(names, line["norms"], strict=True)}
    numbers = {re.sub(r"[^\w\-./ ]", ".", key): value for key, value in found.items()}
    return {
        key: float(value)
        for key, value in numbers.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _open(run: Run, name: str) -> Any:
    """The tracker, begun; it knows the recipe by name and hashes."""
    from accelerate import tracking

    folder = run.folder.resolve().name
    if name == "tensorboard":
        tracker: Any = tracking.TensorBoardTracker("tensorboard", logging_dir=str(run.folder))
    elif name == "mlflow":
        tracker = tracking.MLflowTracker(experiment_name=PROJECT, run_name=folder)
    else:
        kind = tracking.WandBTracker if name == "wandb" else tracking.TrackioTracker
        tracker = kind(PROJECT, name=folder)
    if hasattr(tracker, "start"):  # earlier versions of accelerate begin when they are made
        tracker.start()
    recipe, record = run.recipe, run.record
    tracker.store_init_configuration(
        {
            "recipe": recipe.name,
            "recipe_hash": record["recipe_hash"],
            "split_hash": record["split_hash"],
            "seed": recipe.training.seed,
            "backbone": recipe.encoder.backbone.replace("\\", "/").rpartition("/")[2],
            "batch_size": recipe.sampling.batch_size,
            "bolus": record["versions"]["bolus"],
        }
    )
    return tracker
