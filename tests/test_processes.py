"""Processes that train together: two gloo processes against one process that forwards the same chunks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState

from bolus.data.batches.columns import TrainingColumns
from bolus.data.cohort.cohort import Cohort
from bolus.encoders.features import Features
from bolus.recipe import Recipe
from bolus.training.assembly import build_model
from bolus.training.gradients.combiner import Combiner
from bolus.training.loaders import build_loader, open_images
from bolus.training.processes import all_reduce_mean, all_reduce_sum, any_process, gather, same_everywhere, world_size
from launching import launch

CPU = torch.device("cpu")


def test_in_one_process_gathering_and_averaging_change_nothing() -> None:
    assert world_size() == 1
    tensor = torch.randn(2, 3, requires_grad=True)
    assert gather(tensor) is tensor
    assert all_reduce_sum(tensor) is tensor
    kept = [torch.ones(2), torch.zeros(1, dtype=torch.float64)]
    all_reduce_mean(kept)
    assert kept[0].tolist() == [1.0, 1.0]
    assert [any_process(flag, CPU) for flag in (True, False)] == [True, False]
    assert same_everywhere(-7, CPU)


PIECES = """
import sys, torch
import torch.distributed as dist
from bolus.training.processes import *
from bolus.training.processes import launched, world_size
torch.set_num_threads(1)
launched()
rank, cpu = dist.get_rank(), torch.device("cpu")
assert world_size() == 2
patience = dist.distributed_c10d._get_default_group()._get_backend(cpu).options._timeout
assert patience.days >= 1, f"{patience} for the first process to decode"
assert any_process(rank == 1, cpu) and not any_process(False, cpu)
assert same_everywhere(5, cpu) and not same_everywhere(rank, cpu)

mine = torch.full((2, 3), float(rank + 1))
total = all_reduce_sum(mine)
assert total.tolist() == [[3.0] * 3] * 2
assert mine.tolist() == [[rank + 1.0] * 3] * 2, "what comes in is left as it is"

kept = [mine.clone().T, torch.tensor([4.0 * rank], dtype=torch.float64), torch.full((), 2.0 * rank)]
all_reduce_mean(kept)
assert [tensor.tolist() for tensor in kept] == [[[1.5] * 2] * 3, [2.0], 1.0]

net = torch.nn.BatchNorm1d(2)
with torch.no_grad():
    net.weight.fill_(rank)
    net.running_mean.fill_(rank)
broadcast_parameters(net)
assert not net.weight.any() and not net.running_mean.any()

# The loss of the gathered rows, averaged over processes, has the gradient of the whole in one process.
weight = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
late = torch.nn.Parameter(torch.tensor(3.0, dtype=torch.float64))  # used after gathering
rows = torch.arange(8, dtype=torch.float64).reshape(1, 4, 2)
def loss(z):
    return late * (z.square().sum() + z[0, 0] @ z[0, 3])
grads = list(torch.autograd.grad(loss(gather(rows[:, 2 * rank : 2 * rank + 2] * weight)), [weight, late]))
all_reduce_mean(grads)
whole = torch.autograd.grad(loss(rows * weight), [weight, late])
for one, other in zip(grads, whole, strict=True):
    torch.testing.assert_close(one, other)
dist.destroy_process_group()
"""


def test_what_two_processes_exchange(tmp_path: Path) -> None:
    (tmp_path / "pieces.py").write_text(PIECES)
    launch(tmp_path / "pieces.py")


WORKER = """
import sys, torch
from pathlib import Path
from accelerate import PartialState
from bolus.training.assembly import build_model
from bolus.training.loaders import build_loader, open_images
from bolus.data.cohort.cohort import Cohort
from bolus.data.batches.columns import TrainingColumns
from bolus.training.processes import broadcast_parameters
from bolus.recipe import Recipe
from bolus.training.step import training_step
torch.set_num_threads(1)
cohort, cache, *recipes = sys.argv[1:]
state = PartialState(cpu=True)
assert state.num_processes == 2
cohort = Cohort.open(cohort)
for path in map(Path, recipes):
    recipe = Recipe.load(path)
    model = build_model(recipe, state.device, TrainingColumns(cohort.samples("image")))
    for module in model.modules.values():
        module.double()
    if state.process_index == 1:
        with torch.no_grad():
            for parameter in model.combiner.parameters:
                parameter.add_(1.0)  # the broadcast must mend this
    for module in model.modules.values():
        broadcast_parameters(module)
    store = open_images(cohort, recipe, Path(cache), True)
    loader = build_loader(cohort, cohort.samples("image"), store, recipe, model.needs, state)
    found = []
    for step in range(2):
        losses, counts = training_step(model, loader, loader.fetch(step), recipe, 0.0, observe=True)
        model.combiner.reconcile()
        model.combiner.commit()
        grads = [p.grad.clone() for p in model.combiner.parameters]
        found.append((grads, losses, counts, model.combiner.conflicts.gram, dict(model.combiner.goals)))
    torch.save(found, path.with_suffix(f".{state.process_index}.pt"))
state.destroy_process_group()
"""

GCL = """{
    v: {kind: contrast, dim: 8, head: image, hidden_norm: false},
    p: {kind: contrast, relation: patient, negatives: other_patients, dim: 8, head: image, hidden_norm: false},
    s: {kind: contrast, relation: 'label:sick', dim: 8, head: image, hidden_norm: false},
    x: {kind: pixel_contrast, relation: patient, dim: 8, head: pixel, image_head: image, anchors: 32},
    y: {kind: pixel_contrast, relation: 'label:sick', dim: 8, head: pixel, image_head: image, anchors: 32}}"""


CASES: dict[str, tuple[str, str, int | None]] = {  # objectives, combiner, samples of a chunk
    "sum": (
        "{g: {kind: varcov, width: 16}, l: {kind: varcov, source: levels, width: 16, level_channels: 8, grid: 2}}",
        "{}",
        None,
    ),
    "sum at the features": (
        "{v: {kind: contrast, dim: 8}, p: {kind: contrast, relation: patient, negatives: other_patients, dim: 8}}",
        "{scope: features}",
        None,
    ),
    "torchjd": (
        "{m: {kind: supremix, dim: 8}, s: {kind: score_contrast}, r: {kind: predict, targets: ['label:sick']}}",
        "{kind: torchjd, aggregator: ConFIG}",
        None,
    ),
    "grad_mitigator": (GCL, "{kind: grad_mitigator, scope: encoder, rate: 0.5}", None),
    "grad_mitigator at the features": (GCL, "{kind: grad_mitigator, scope: features, rate: 0.5}", None),
    "sum in chunks": (
        "{g: {kind: varcov, width: 16}, l: {kind: varcov, source: levels, width: 16, level_channels: 8, grid: 2}}",
        "{}",
        2,
    ),
    "grad_mitigator in chunks": (GCL, "{kind: grad_mitigator, scope: encoder, rate: 0.5}", 3),
    "grad_mitigator at the features in chunks": (GCL, "{kind: grad_mitigator, scope: features, rate: 0.5}", 1),
}


FEW = ("grad_mitigator in chunks",)  # processes start only once, and start slowly
MORE = tuple(name for name in CASES if name not in FEW)


@pytest.mark.parametrize("names", [pytest.param(FEW, id="few"), pytest.param(MORE, id="more", marks=pytest.mark.slow)])
def test_two_gloo_processes_equal_one_that_forwards_the_same_chunks(
    tiny_cohort: Path, small_recipe: dict[str, Any], tmp_path: Path, names: tuple[str, ...]
) -> None:
    recipes = {}
    for place, name in enumerate(names):
        objectives, combiner, chunk = CASES[name]
        keys = [f"objectives={objectives}", f"combiner={combiner}", f"sampling.chunk={chunk or 'null'}"]
        recipes[name] = Recipe.load(small_recipe).override(keys)
        (tmp_path / f"{place}.yaml").write_text(recipes[name].to_yaml())
    paths = [tmp_path / f"{place}.yaml" for place in range(len(recipes))]
    (tmp_path / "worker.py").write_text(WORKER)
    launch(tmp_path / "worker.py", tiny_cohort, tmp_path / "cache", *paths)
    for path, (name, recipe) in zip(paths, recipes.items(), strict=True):
        found = [torch.load(path.with_suffix(f".{rank}.pt"), weights_only=True) for rank in (0, 1)]
        try:
            compare(Cohort.open(tiny_cohort), recipe, tmp_path / "cache", *found)
        except AssertionError as error:
            error.add_note(f"case: {name}")
            raise


def compare(cohort: Cohort, recipe: Recipe, cache: Path, first: list[Any], second: list[Any]) -> None:
    model = build_model(recipe, CPU, TrainingColumns(cohort.samples("image")))
    for module in model.modules.values():
        module.double()
    store = open_images(cohort, recipe, cache, True)
    loaders = []
    for rank in (0, 1):
        loader = build_loader(cohort, cohort.samples("image"), store, recipe, model.needs, PartialState())
        loader.rank, loader.processes = rank, 2
        loaders.append(loader)
    assert len(first) == 2, "goals of the first step are read in the second"
    for step, (grads, losses, counts, gram, goals) in enumerate(first):
        expected = forward_in_chunks(model, loaders, step, recipe.sampling.chunk)
        for name, loss in expected.items():
            assert losses[name].dtype == torch.float64
            torch.testing.assert_close(losses[name], loss.value.detach(), rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(second[step][1][name], losses[name], rtol=0, atol=0)
            assert counts[name] == {"anchors": loss.num_anchors, **loss.counts}
        largest = max(float(p.grad.abs().max()) for p in model.combiner.parameters if p.grad is not None)
        for one, other, parameter in zip(grads, second[step][0], model.combiner.parameters, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(one, other, rtol=0, atol=0)
            # What a normalisation cancels, the bias before it, has no gradient but the rounding of others'.
            scale = parameter.grad.abs().max().clamp_min(2e-3 * largest)
            torch.testing.assert_close(one / scale, parameter.grad / scale, rtol=1e-10, atol=1e-10)
        assert model.combiner.conflicts is not None
        scale = model.combiner.conflicts.gram.abs().max()
        torch.testing.assert_close(gram / scale, model.combiner.conflicts.gram / scale, rtol=1e-10, atol=1e-10)
        branches = {"image", "pixel"} if recipe.combiner.kind == "grad_mitigator" else set()
        assert set(goals) == set(model.combiner.goals) == branches
        for branch, matrix in goals.items():
            assert matrix.any()
            torch.testing.assert_close(matrix, second[step][4][branch], rtol=0, atol=0)
            torch.testing.assert_close(matrix, model.combiner.goals[branch], rtol=1e-10, atol=1e-10)


def forward_in_chunks(model: Any, loaders: list[Any], step: int, most: int | None) -> dict[str, Any]:
    """One process, and BatchNorm statistics over what goes through together: parts of both in heads, chunks before."""
    chunks, parts = [], []
    for loader in loaders:
        local, whole = loader.batch(loader.fetch(step), device=CPU, progress=0.0)
        chunks.append(local)
        (modality, views), needs = *local.views.items(), {"levels": model.needs.levels, "grid": model.needs.grid}
        for part in np.array_split(np.arange(views.shape[1]), -(-views.shape[1] // (most or views.shape[1]))):
            own = {modality: views[:, part]}
            parts.append(model.encoder.encode(own, {modality: torch.arange(len(part))}, **needs))
    joined = Features(
        torch.cat([part.pooled for part in parts], 1),
        {key: [torch.cat(maps, 1) for maps in zip(*(part.levels[key] for part in parts), strict=True)]
         for key in parts[0].levels},
        {key: torch.cat([part.grid[key] for part in parts], 1) for key in parts[0].grid},
    )  # fmt: skip
    combiner: Combiner = model.combiner
    opened = combiner.open(joined, observe=True)
    size = opened.pooled.shape[1] // 2
    losses = {}
    for name, objective in model.objectives.items():
        embedded = []
        for place, chunk in enumerate(chunks):
            own = slice(place * size, (place + 1) * size)
            features = Features(
                opened.pooled[:, own],
                {key: [level[:, own] for level in levels] for key, levels in opened.levels.items()},
                {key: grid[:, own] for key, grid in opened.grid.items()},
            )
            embedded.append(objective.embed(features, chunk))
        losses[name] = objective.loss({key: torch.cat([e[key] for e in embedded], 1) for key in embedded[0]}, whole)
    combiner.accumulate({name: loss.value for name, loss in losses.items()}, seed=whole.seed, observe=True)
    combiner.reconcile()
    combiner.commit()
    return losses


@pytest.mark.slow
def test_the_command_trains_in_two_processes(small_recipe: dict[str, Any], tiny_cohort: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(small_recipe).override(
        ["training.epochs=1", "training.max_steps=2", "combiner={kind: grad_mitigator, conflict_steps: 1}"]
    )
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    words = ["pretrain", tiny_cohort, "--recipe", tmp_path / "recipe.yaml", "--out", tmp_path / "run"]
    launch("-m", "bolus.cli", *words, BOLUS_CACHE=str(tmp_path / "cache"))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["processes"], record["steps"]) == ("finished", 2, 2)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "conflicts"] == [1, 2]


@pytest.mark.slow
def test_two_machines_are_as_two_processes_of_one(tiny_cohort: Path, tmp_path: Path) -> None:
    keys = ["encoder.backbone=r18w32", "images.size=24", "sampling.batch_size=8", "training.max_steps=3"]
    train = [
        "-m",
        "bolus.cli",
        "pretrain",
        str(tiny_cohort),
        "--recipe",
        "simclr",
        *keys,
        "training.health_epochs=null",
    ]
    launch(*train, "--out", tmp_path / "one", BOLUS_CACHE=str(tmp_path / "cache"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meet = [
        "--nnodes=2",
        "--nproc_per_node=1",
        "--rdzv_backend=c10d",
        "--rdzv_id=7",
        f"--rdzv_endpoint=localhost:{port}",
    ]
    agents = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *meet, *train, "--out", str(tmp_path / "two"), "--resume"],
            env={**os.environ, "OMP_NUM_THREADS": "1", "BOLUS_CACHE": str(tmp_path / "cache")},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for agent in agents:
        _, errors = agent.communicate(timeout=180)
        assert agent.returncode == 0, errors[-3000:]
    one, two = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (2, 2)
    assert one["weights"] == two["weights"]
