"""Runs with objectives that are reconciled: the support matrix, exact resume with goals, and lines about conflicts."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from torch import Tensor
from torchjd.aggregation import MGDA

from bolus.data.batches.columns import TrainingColumns
from bolus.data.batches.loading import Loader
from bolus.data.cohort.cohort import Cohort, Samples
from bolus.errors import RecipeError
from bolus.phantom.images import make_phantom
from bolus.recipe import Recipe
from bolus.training.assembly import Model, build_model
from bolus.training.checkpoint import last_checkpoint
from bolus.training.loaders import build_loader, open_images
from bolus.training.loop import pretrain
from bolus.training.step import apply_gradients, training_step

CPU = torch.device("cpu")
IMAGE = {"kind": "contrast", "dim": 8, "hidden": 16, "head": "image", "hidden_norm": False}
PIXEL = {"kind": "pixel_contrast", "dim": 8, "head": "pixel", "image_head": "image", "anchors": 32}
OBJECTIVES = {
    "disease": {**IMAGE, "relation": "label:disease"},
    "site": {**IMAGE, "relation": "site"},
    "disease_pixel": {**PIXEL, "relation": "label:disease"},
    "site_pixel": {**PIXEL, "relation": "site", "weight": 0.5},
}
RECIPE = {
    "name": "gcl-small",
    "encoder": {"backbone": "r18w32", "stem_pool": False},
    "images": {"size": 32, "views": 2},
    "sampling": {"batch_size": 8},
    "objectives": {name: OBJECTIVES[name] for name in ("disease", "site")},
    "combiner": {"kind": "grad_mitigator", "rate": 0.3, "conflict_steps": 2},
    "optimizer": {"kind": "adamw", "lr": 0.001},
    "training": {"epochs": 1, "max_steps": 6, "log_steps": 1, "health_epochs": None},
}


@dataclass
class Ground:
    """A small phantom, its cache, and what batches are made of."""

    cohort: Cohort
    cache: Path

    @property
    def samples(self) -> Samples:
        return self.cohort.samples("image")

    def model(self, recipe: Recipe) -> tuple[Model, Loader]:
        model = build_model(recipe, CPU, TrainingColumns(self.samples))
        store = open_images(self.cohort, recipe, self.cache, True)
        return model, build_loader(self.cohort, self.samples, store, recipe, model.needs, PartialState())


def exact(model: Model) -> Model:
    """The model in float64, where what is equal in mathematics is equal within 1e-10 on any processor."""
    for module in model.modules.values():
        module.double()
    return model


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    folder = tmp_path_factory.mktemp("phantom")
    make_phantom(folder, num_patients=16, size=32)
    return Ground(Cohort.open(folder / "cohort.yaml"), folder / "cache")


def run(ground: Ground, out: Path, *keys: str, recipe: Any = RECIPE, resume: bool = False) -> Any:
    return pretrain(
        ground.cohort, recipe=recipe, out=out, cache=ground.cache, quiet=True, overrides=keys, resume=resume
    )


def state_of(out: Path) -> Any:
    checkpoint = last_checkpoint(out / "checkpoints")
    assert checkpoint is not None
    return json.loads((checkpoint / "state.json").read_text())["extra"]["combiner"]


SPECS = {
    "sum": {"kind": "sum"},
    "mean": {"kind": "mean"},
    "balanced": {"kind": "balanced"},
    "uncertainty": {"kind": "sum", "weighting": "uncertainty"},
    "pcgrad": {"kind": "pcgrad"},
    "grad_mitigator": {"kind": "grad_mitigator", "rate": 0.3},
    "MGDA": {"kind": "torchjd", "aggregator": "MGDA"},
    "UPGrad": {"kind": "torchjd", "aggregator": "UPGrad"},
    "ConFIG": {"kind": "torchjd", "aggregator": "ConFIG"},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "training",
    [
        pytest.param({"accumulate": 2}, id="accumulate"),
        pytest.param({"precision": "bf16"}, id="bf16"),
        pytest.param({"clip": 0.01}, id="clip"),
        pytest.param({"chunk": 3}, id="chunks"),
        pytest.param({"chunk": 3, "accumulate": 2, "precision": "bf16", "clip": 0.01}, id="chunks and all"),
    ],
)
@pytest.mark.parametrize("scope", ["encoder", "features"])
@pytest.mark.parametrize("name", SPECS)
def test_a_cell_of_the_support_matrix_works_or_is_refused(
    ground: Ground, name: str, scope: str, training: dict[str, Any]
) -> None:
    sampling = {"batch_size": 8, "chunk": training.get("chunk")}
    training = {key: value for key, value in training.items() if key != "chunk"}
    data = {**RECIPE, "objectives": OBJECTIVES, "combiner": {**SPECS[name], "scope": scope}, "training": training}
    recipe = Recipe.load({**data, "sampling": sampling})
    if name == "UPGrad":
        pytest.importorskip("quadprog")
    if name == "ConFIG" and scope == "features":
        with pytest.raises(RecipeError, match="scope encoder"):
            ground.model(recipe)
        return
    ends = []
    for observe in (True, False):  # looking must not change where it leads
        model, loader = ground.model(recipe)
        if recipe.training.precision == "fp32":
            exact(model)
        before = [parameter.detach().clone() for parameter in model.combiner.parameters]
        goals = [copy.deepcopy(model.combiner.goals)]
        for step in range(2):
            for part in range(recipe.training.accumulate):
                fetched = loader.fetch(step * recipe.training.accumulate + part)
                losses, _ = training_step(model, loader, fetched, recipe, step / 2, observe=observe)
                assert all(loss.isfinite() for loss in losses.values())
            norm = apply_gradients(model, recipe.training.clip)
            assert 0 < float(norm) < float("inf")
            grads = [parameter.grad for parameter in model.combiner.parameters]
            assert all(grad is not None and grad.dtype == before[0].dtype for grad in grads)
            if recipe.training.clip is not None:
                clipped = torch.nn.utils.get_total_norm([grad for grad in grads if grad is not None])
                assert float(norm) > recipe.training.clip
                assert float(clipped) == pytest.approx(recipe.training.clip, rel=1e-3)
            assert (model.combiner.conflicts is not None) == observe
            goals.append(copy.deepcopy(model.combiner.goals))
        moved = [(now - was).abs().max() for now, was in zip(model.combiner.parameters, before, strict=True)]
        assert all(distance > 0 for distance in moved), "every parameter is trained"
        for branch in ("image", "pixel") if name == "grad_mitigator" else ():
            stages = [one[branch] for one in goals]
            assert not stages[0].any()
            assert not torch.equal(stages[1], stages[0])
            assert not torch.equal(stages[2], stages[1])
        ends.append(torch.cat([g.flatten() for g in grads if g is not None]))
    if recipe.training.precision == "fp32":
        torch.testing.assert_close(ends[0], ends[1], rtol=1e-10, atol=1e-10 * float(ends[0].abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["encoder", "features"])
@pytest.mark.parametrize("name", ["sum", "grad_mitigator", "MGDA"])
def test_half_precision_leaves_out_steps_until_its_scale_fits(ground: Ground, name: str, scope: str) -> None:
    combiner = {**SPECS[name], "scope": scope}
    recipe = Recipe.load({**RECIPE, "objectives": OBJECTIVES, "combiner": combiner, "training": {"precision": "fp16"}})
    model, loader = ground.model(recipe)
    applied = 0
    for step in range(30):
        before, goals = (
            model.encoder.state_dict()["backbone.embedder.embedder.convolution.weight"].clone(),
            model.combiner.state(),
        )
        training_step(model, loader, loader.fetch(step), recipe, 0.5, observe=True)
        norm = apply_gradients(model, None)
        after = model.encoder.state_dict()["backbone.embedder.embedder.convolution.weight"]
        assert torch.equal(before, after) == (not norm.isfinite())
        assert name != "grad_mitigator" or (goals == model.combiner.state()) == (not norm.isfinite())
        applied += int(norm.isfinite())
        if applied == 3:
            break
    assert applied == 3
    assert all(parameter.isfinite().all() for parameter in model.combiner.parameters)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_weights_multiply_and_batches_are_averaged_before_reconciliation(ground: Ground, accumulate: int) -> None:
    keys = ["objectives.disease.weight=5", "objectives.site.weight=0.2", f"training.accumulate={accumulate}",
            "combiner={kind: torchjd, aggregator: MGDA}"]  # fmt: skip
    recipe = Recipe.load(RECIPE).override(keys)
    model, loader = ground.model(recipe)
    exact(model)
    for number in range(accumulate):
        training_step(model, loader, loader.fetch(number), recipe, 0.0)
    model.combiner.reconcile()
    plain = exact(ground.model(recipe)[0])
    shared = plain.combiner.shared
    total = torch.zeros(2, sum(p.numel() for p in shared), dtype=torch.float64)
    for number in range(accumulate):
        local, whole = loader.batch(loader.fetch(number), device=CPU, progress=0.0)
        features = plain.encoder.encode(local.views, local.rows)
        for place, objective in enumerate(plain.objectives.values()):
            loss = objective.loss(objective.embed(features, local), whole).value
            total[place] += flat(torch.autograd.grad(loss, shared, retain_graph=True))
    weighted = torch.tensor([[5.0], [0.2]], dtype=torch.float64) * total / accumulate
    found = flat([p.grad for p in model.combiner.shared])
    expected = MGDA()(weighted)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))
    assert not torch.allclose(expected, MGDA()(total), rtol=0.1)


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


@pytest.mark.slow
def test_lines_about_conflicts_come_at_their_steps(ground: Ground, tmp_path: Path) -> None:
    finished = run(ground, tmp_path / "run")
    lines = [line for line in finished.metrics() if line["kind"] == "conflicts"]
    assert [line["step"] for line in lines] == [1, 3, 5], "of the steps that began after 0, 2 and 4"
    for line in lines:
        assert line["objectives"] == ["disease", "site"]
        assert line["branches"] == ["image", "image"]
        assert line["cosines"][0][1] == line["cosines"][1][0]
        assert -1 <= line["cosines"][0][1] <= 1
        assert line["cosines"][0][0] == pytest.approx(1.0)
        assert line["share"] == float(line["cosines"][0][1] < 0)
        assert all(norm > 0 for norm in line["norms"])
    assert lines[0]["goals"] == {"image": [[0.0, 0.0], [0.0, 0.0]]}
    assert lines[1]["goals"]["image"][0][1] != 0.0
    # The first step of a branch without goals: what was met, at the rate.
    first = state_of(run(ground, tmp_path / "one", "training.max_steps=1").folder)
    assert first["image"]["objectives"] == ["disease", "site"]
    assert first["image"]["goals"][0][1] == pytest.approx(0.3 * lines[0]["cosines"][0][1], abs=1e-5)

    for every, expected in (("null", []), ("4", [1, 5])):
        finished = run(ground, tmp_path / every, f"combiner.conflict_steps={every}")
        assert [line["step"] for line in finished.metrics() if line["kind"] == "conflicts"] == expected
        assert [line["step"] for line in finished.metrics() if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("keys", [
    ["combiner.scope=encoder", "training.accumulate=2", "training.clip=1"],
    ["combiner.scope=features", "training.precision=bf16"],
], ids=["encoder", "features"])  # fmt: skip
def test_stopped_at_every_step_and_resumed_gives_the_same_weights_and_goals(
    ground: Ground, tmp_path: Path, keys: list[str]
) -> None:
    recipe = Recipe.load({**RECIPE, "objectives": OBJECTIVES}).override([*keys, "training.max_steps=4"])
    whole = run(ground, tmp_path / "whole", recipe=recipe)
    part = run(ground, tmp_path / "part", "training.max_hours=1e-9", recipe=recipe)
    parts = 1
    while part.status == "stopped":
        part = run(ground, tmp_path / "part", "training.max_hours=1e-9", recipe=recipe, resume=True)
        parts += 1
    assert parts == 4
    assert part.record["weights"] == whole.record["weights"]
    assert state_of(part.folder) == state_of(whole.folder)
    assert set(state_of(whole.folder)) == {"image", "pixel"}
    assert np.any(state_of(whole.folder)["pixel"]["goals"])
    assert conflicts(part) == conflicts(whole)
    assert len(conflicts(whole)) == 2


def conflicts(finished: Any) -> list[dict[str, Any]]:
    return [line for line in finished.metrics() if line["kind"] == "conflicts"]


SCRIPT = """
import sys, torch; torch.set_num_threads(1)
from pathlib import Path; from bolus.training.loop import pretrain
cohort, recipe, out, cache, *resume = sys.argv[1:]
pretrain(cohort, recipe=recipe, out=out, cache=Path(cache), resume=bool(resume), quiet=True)
"""


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_weights_and_goals_bit_for_bit(ground: Ground, tmp_path: Path) -> None:
    recipe, folder = tmp_path / "recipe.yaml", tmp_path / "killed"
    keys = ["training.epochs=20", "training.max_steps=24", "training.checkpoint_steps=3"]
    recipe.write_text(Recipe.load(RECIPE).override(keys).to_yaml())
    whole = run(ground, tmp_path / "whole", recipe=recipe)
    cohort = ground.cache.parent / "cohort.yaml"
    command = [sys.executable, "-c", SCRIPT, *map(str, (cohort, recipe, folder, ground.cache))]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    metrics = folder / "metrics.jsonl"
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < 60:
        if metrics.is_file() and metrics.read_text().count('"train"') >= 5:
            break
        time.sleep(0.01)
    assert process.poll() is None, "the run ended before it could be killed"
    process.kill()
    process.wait()
    assert last_checkpoint(folder / "checkpoints") is not None
    last = run(ground, folder, recipe=recipe, resume=True)
    assert last.record["weights"] == whole.record["weights"]
    assert state_of(folder) == state_of(whole.folder)
    assert conflicts(last) == conflicts(whole)


def test_a_checkpoint_from_before_there_were_goals_can_be_gone_on_from(ground: Ground, tmp_path: Path) -> None:
    keys = ["combiner.kind=sum", "training.max_steps=2"]
    part = run(ground, tmp_path / "part", *keys, "training.max_hours=1e-9")
    checkpoint = last_checkpoint(part.checkpoints)
    assert checkpoint is not None
    state = json.loads((checkpoint / "state.json").read_text())
    del state["extra"]["combiner"], state["digest"], state["digests"]  # nor had it checksums
    (checkpoint / "state.json").write_text(json.dumps(state))
    assert run(ground, tmp_path / "part", *keys, resume=True).status == "finished"


def test_an_aggregator_that_cannot_be_used_stops_before_anything_is_written(ground: Ground, tmp_path: Path) -> None:
    for spec, sentence in (
        ("{kind: torchjd, aggregator: MGGDA}", "did you mean 'MGDA'"),
        ("{kind: torchjd, aggregator: NashMTL}", "state"),
        ("{kind: torchjd, aggregator: Random, scope: features}", "scope encoder"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            run(ground, tmp_path / "run", f"combiner={spec}")
    assert not (tmp_path / "run").exists()
