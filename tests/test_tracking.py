"""Trackers get the numbers of metrics.jsonl, and nothing else depends on them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

import bolus
from bolus.errors import MissingPackageError
from bolus.recipe import Recipe
from bolus.training.tracking import numbers_of

SHORT = ["training.max_steps=2", "training.log_steps=1"]


def test_a_line_becomes_numbers_by_names_that_trackers_take() -> None:
    looked = {"kind": "health", "step": 4, "findings": [{"name": "knn label:sick", "value": 0.5, "good": True},
                                                        {"name": "spread", "value": None, "good": True}]}  # fmt: skip
    assert numbers_of(looked) == {"health/knn label.sick": 0.5}
    met = {"kind": "conflicts", "step": 4, "objectives": ["a", "b"], "cosines": [[1, -0.5], [-0.5, 1]], "norms": [1, 2]}
    assert numbers_of(met) == {"conflicts/cosine a b": -0.5, "conflicts/norm a": 1.0, "conflicts/norm b": 2.0}


def test_a_tracker_is_no_part_of_what_a_recipe_is(small_recipe: dict[str, Any]) -> None:
    plain = Recipe.load(small_recipe)
    assert plain.override(["training.tracker=mlflow"]).digest == plain.digest
    with pytest.raises(bolus.BolusError, match="tracker"):
        plain.override(["training.tracker=paper"])


def test_a_package_that_is_absent_is_told_before_anything_is_read(
    tiny_cohort: Path, small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    keys = [*SHORT, "training.tracker=wandb"]
    with pytest.raises(MissingPackageError, match=r"training\.tracker=wandb need the package wandb"):
        bolus.pretrain(tiny_cohort, recipe=small_recipe, out=tmp_path / "run", overrides=keys, quiet=True)
    assert not (tmp_path / "run").exists()


def test_tensorboard_shows_what_metrics_hold(tiny_cohort: Path, small_recipe: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    keys = [*SHORT, "training.tracker=tensorboard"]
    place: dict[str, Any] = {"recipe": small_recipe, "cache": tmp_path / "cache", "quiet": True}
    run = bolus.pretrain(tiny_cohort, out=tmp_path / "run", overrides=keys, **place)
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("train/loss")]
    lines = [line for line in run.metrics() if line["kind"] == "train"]
    assert shown == [(line["step"], pytest.approx(line["loss"], rel=1e-5)) for line in lines]
    assert "health/spread" in events.Tags()["scalars"]
    plain = bolus.pretrain(tiny_cohort, out=tmp_path / "plain", overrides=SHORT, **place)
    assert plain.record["weights"] == run.record["weights"]
    held = b"".join(path.read_bytes() for path in (run.folder / "tensorboard").rglob("*") if path.is_file())
    assert b"P001" not in held
    assert os.fsencode(tmp_path) not in held


def test_mlflow_holds_what_metrics_hold(
    tiny_cohort: Path, small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the package mlflow is not installed")
    monkeypatch.chdir(tmp_path)
    store = (tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # later versions want a database
    mlflow.set_tracking_uri(store)
    keys = [*SHORT, "training.tracker=mlflow"]
    run = bolus.pretrain(
        tiny_cohort, recipe=small_recipe, out=tmp_path / "run", overrides=keys, cache=tmp_path / "cache", quiet=True
    )
    client = mlflow.MlflowClient(tracking_uri=store)
    (experiment,) = client.search_experiments(filter_string="name = 'bolus'")
    (found,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(found.info.run_id, "train/loss")
    lines = [line for line in run.metrics() if line["kind"] == "train"]
    assert [(each.step, each.value) for each in history] == [(line["step"], line["loss"]) for line in lines]
    assert found.data.params["recipe"] == "small"
    assert found.info.run_name == "run"
    assert found.info.status == "FINISHED"
