"""A run that goes on with another number of processes: the same training but for the order of sums, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bolus.data.batches.columns import TrainingColumns
from bolus.data.cohort.cohort import Cohort
from bolus.errors import TrainingError
from bolus.recipe import Recipe
from bolus.run import Run
from bolus.training.assembly import bound_to_processes, build_model
from bolus.training.loop import pretrain
from launching import launch

RECIPE: dict[str, Any] = {
    "name": "processes",
    "encoder": {"backbone": "vit_tiny"},
    "images": {"size": 16, "views": 2, "augment": {"preset": "xray", "blur": 0.5}},
    "sampling": {"batch_size": 8},
    "objectives": {
        "v": {"kind": "contrast", "dim": 8, "hidden": 16, "hidden_norm": False},
        "p": {"kind": "predict", "targets": ["score:severity"]},
    },
    "optimizer": {"kind": "sgd", "lr": 0.01},
    "training": {"epochs": 100, "max_steps": 6, "log_steps": 2, "health_epochs": None},
}


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "encoder" / "model.safetensors")


def begin_with_two(cohort: Path, recipe: dict[str, Any], tmp_path: Path) -> Path:
    """A run of two processes that was stopped after its first steps."""
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    words = ("-m", "bolus.cli", "pretrain", cohort, "--recipe", tmp_path / "recipe.yaml", "--out", tmp_path / "two")
    launch(*words, "training.max_hours=1e-9", BOLUS_CACHE=str(tmp_path / "cache"))
    assert Run(tmp_path / "two").status == "stopped"
    return tmp_path / "two"


@pytest.mark.slow
def test_two_processes_begin_what_one_ends(tiny_cohort: Path, tmp_path: Path) -> None:
    folder = begin_with_two(tiny_cohort, RECIPE, tmp_path)
    begun = [line for line in Run(folder).metrics() if line["kind"] == "train"]
    named: dict[str, Any] = {"recipe": RECIPE, "quiet": True, "cache": tmp_path / "cache"}
    run = pretrain(tiny_cohort, out=folder, resume=True, **named)
    whole = pretrain(tiny_cohort, out=tmp_path / "one", **named)
    assert run.record["steps"] == whole.record["steps"] == 6
    first = next(line for line in whole.metrics() if line["kind"] == "train")
    assert begun[0]["loss"] == pytest.approx(first["loss"], rel=1e-5), "the views of both are the same"
    one, two = weights_of(tmp_path / "one"), weights_of(folder)
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_what_a_process_computes_for_itself_is_refused(tiny_cohort: Path, tmp_path: Path) -> None:
    normed = {**RECIPE, "encoder": {"backbone": "r18w32"}}
    folder = begin_with_two(tiny_cohort, normed, tmp_path)
    with pytest.raises(TrainingError, match=r"another number of processes, 2, and BatchNorm's statistics in encoder"):
        pretrain(tiny_cohort, recipe=normed, out=folder, resume=True, quiet=True, cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ((), ""),
        (("encoder.backbone=r18w32",), "BatchNorm's statistics in encoder"),
        (("objectives.v.hidden_norm=true",), "BatchNorm's statistics in objective.v"),
        (("images.augment.noise=0.1",), "noise is drawn by each process"),
    ],
)
def test_why_a_training_is_bound_to_its_processes(tiny_cohort: Path, keys: tuple[str, ...], why: str) -> None:
    recipe = Recipe.load(RECIPE).override(list(keys))
    cohort = Cohort.open(tiny_cohort)
    model = build_model(recipe, torch.device("cpu"), TrainingColumns(cohort.samples("image")))
    found = bound_to_processes(model, recipe)
    assert found.startswith(why) if why else not found
