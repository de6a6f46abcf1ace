"""Gradients: sum over named losses, accumulation, and two gloo processes against one process on the same chunks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from torch import nn

from bolus.assembly import build_loader, build_model, open_images
from bolus.data.cohort import Cohort
from bolus.data.columns import TrainingColumns
from bolus.gradients import Sum, all_reduce_mean, gather
from bolus.recipe import Recipe


def test_sum_equals_backward_of_the_weighted_sum() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    unused = nn.Parameter(torch.ones(2))
    x = torch.randn(5, 4)
    combiner = Sum([*net.parameters(), unused])
    combiner.accumulate({"a": 2.0 * net(x).pow(2).mean(), "b": -net(x).sum()})
    combiner.reconcile()
    found = [parameter.grad for parameter in net.parameters()]
    net.zero_grad()
    (2.0 * net(x).pow(2).mean() - net(x).sum()).backward()
    for one, parameter in zip(found, net.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad)
    assert unused.grad is not None
    assert not unused.grad.any(), "a parameter that no loss reads has a zero gradient, not none"


def test_accumulation_adds_batches_and_empties_its_buffers() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    combiner = Sum([weight])
    for _ in range(2):
        combiner.accumulate({"a": (weight**2).sum() / 2})
        combiner.accumulate({"a": weight.sum() / 2})
        combiner.reconcile()
        torch.testing.assert_close(weight.grad, torch.tensor([1.5, 2.5]))


def test_expanded_gradients_can_be_accumulated_and_clipped() -> None:
    weight = nn.Parameter(torch.ones(3))
    combiner = Sum([weight])
    for _ in range(2):
        combiner.accumulate({"a": weight.sum()})  # autograd hands out one number, expanded to three
    combiner.reconcile()
    nn.utils.clip_grad_norm_([weight], 1.0)
    torch.testing.assert_close(weight.grad, torch.full((3,), 3**-0.5))


def test_a_gradient_given_out_twice_is_owned_by_each_parameter() -> None:
    first, second = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    combiner = Sum([first, second])
    combiner.accumulate({"a": ((first + second) * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum()})
    combiner.reconcile()
    assert first.grad is not None
    assert second.grad is not None
    first.grad.mul_(0.0)
    assert second.grad.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_losses_without_any_gradient_leave_zeros() -> None:
    weight = nn.Parameter(torch.ones(2))
    combiner = Sum([weight])
    combiner.accumulate({"a": torch.tensor(0.0)})
    combiner.reconcile()
    assert weight.grad is not None
    assert not weight.grad.any()


def test_in_one_process_gathering_and_averaging_change_nothing() -> None:
    tensor = torch.randn(2, 3, requires_grad=True)
    assert gather(tensor) is tensor
    kept = [torch.ones(2), torch.zeros(1, dtype=torch.float64)]
    all_reduce_mean(kept)
    assert kept[0].tolist() == [1.0, 1.0]


WORKER = """
import sys, torch
from pathlib import Path
from accelerate import PartialState
from bolus.assembly import build_loader, build_model, open_images
from bolus.data.cohort import Cohort
from bolus.data.columns import TrainingColumns
from bolus.gradients import broadcast_parameters
from bolus.recipe import Recipe
from bolus.training import training_step
torch.set_num_threads(1)
cohort, recipe, cache, out = sys.argv[1:]
state = PartialState(cpu=True)
assert state.num_processes == 2
cohort, recipe = Cohort.open(cohort), Recipe.load(recipe)
model = build_model(recipe, state.device, TrainingColumns(cohort.samples("image")))
if state.process_index == 1:
    with torch.no_grad():
        for parameter in model.combiner.parameters:
            parameter.add_(1.0)  # the broadcast must mend this
for module in model.modules.values():
    broadcast_parameters(module)
store = open_images(cohort, recipe, Path(cache), True)
loader = build_loader(cohort, cohort.samples("image"), store, recipe, model.needs, state)
losses, counts = training_step(model, loader, loader.fetch(0), recipe, 0.0)
model.combiner.reconcile()
torch.save([[p.grad for p in model.combiner.parameters], losses, counts], f"{out}-{state.process_index}.pt")
state.destroy_process_group()
"""


@pytest.mark.parametrize(
    "objectives",
    [
        "{g: {kind: varcov, width: 16}, l: {kind: varcov, source: levels, width: 16, level_channels: 8, grid: 2}}",
        "{v: {kind: contrast, dim: 8}, p: {kind: contrast, relation: patient, negatives: other_patients, dim: 8}}",
        "{m: {kind: supremix, dim: 8}, s: {kind: score_contrast}, r: {kind: predict, targets: ['label:sick']}}",
    ],
)
def test_two_gloo_processes_equal_one_that_forwards_the_same_chunks(
    tiny_cohort: Path, small_recipe: dict[str, Any], tmp_path: Path, objectives: str
) -> None:
    recipe = Recipe.load(small_recipe).override([f"objectives={objectives}"])
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    (tmp_path / "worker.py").write_text(WORKER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    arguments = [tiny_cohort, tmp_path / "recipe.yaml", tmp_path / "cache", tmp_path / "out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*launch, str(tmp_path / "worker.py"), *map(str, arguments)],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    (grads_a, losses_a, counts_a), (grads_b, losses_b, _) = (
        torch.load(tmp_path / f"out-{rank}.pt", weights_only=True) for rank in (0, 1)
    )

    # One process: each chunk goes through the encoder by itself, as its BatchNorm statistics are per chunk.
    cohort, device = Cohort.open(tiny_cohort), torch.device("cpu")
    model = build_model(recipe, device, TrainingColumns(cohort.samples("image")))
    store = open_images(cohort, recipe, tmp_path / "cache", True)
    embedded: dict[str, list[dict[str, torch.Tensor]]] = {name: [] for name in model.objectives}
    for rank in (0, 1):
        loader = build_loader(cohort, cohort.samples("image"), store, recipe, model.needs, PartialState())
        loader.rank, loader.processes = rank, 2
        local, whole = loader.batch(loader.fetch(0), device=device, progress=0.0)
        features = model.encoder.encode(local.views, local.rows, levels=model.needs.levels)
        for name, objective in model.objectives.items():
            embedded[name].append(objective.embed(features, local))
    losses = {}
    for name, objective in model.objectives.items():
        joined = {key: torch.cat([part[key] for part in embedded[name]], 1) for key in embedded[name][0]}
        losses[name] = objective.loss(joined, whole)
    model.combiner.accumulate({name: loss.value for name, loss in losses.items()})
    model.combiner.reconcile()

    for name, loss in losses.items():
        torch.testing.assert_close(losses_a[name], loss.value.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(losses_b[name], losses_a[name], rtol=0, atol=0)
        assert counts_a[name] == {"anchors": loss.num_anchors, **loss.counts}
    for one, other, parameter in zip(grads_a, grads_b, model.combiner.parameters, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(one, other, rtol=0, atol=0)
        scale = parameter.grad.abs().max().clamp_min(1e-3)
        torch.testing.assert_close(one / scale, parameter.grad / scale, rtol=1e-4, atol=2e-5)


def test_the_command_trains_in_two_processes(small_recipe: dict[str, Any], tiny_cohort: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(small_recipe).override(["training.epochs=1", "training.max_steps=2"])
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    words = [
        "-m",
        "bolus.cli",
        "pretrain",
        tiny_cohort,
        "--recipe",
        tmp_path / "recipe.yaml",
        "--out",
        tmp_path / "run",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "BOLUS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [*launch, *map(str, words)],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["processes"], record["steps"]) == ("finished", 2, 2)
