"""Optimisers: groups, layer-wise learning-rate decay, and what the training loop makes of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from transformers import ConvNextV2Config

from bolus.encoders.backbone import Encoder
from bolus.encoders.building import build_encoder
from bolus.errors import RecipeError
from bolus.optimization import Lars, build_optimizer, lr_scales, peak_lr
from bolus.recipe import EncoderSpec, OptimizerSpec, Recipe
from bolus.training.loop import pretrain

Array = npt.NDArray[np.float64]
KINDS = ["adamw", "sgd", "lars"]


def build(**keys: Any) -> Encoder:
    return build_encoder(EncoderSpec(**{"backbone": "vit_tiny", **keys}), seed=0)


def naive_scale(name: str, decay: float, blocks: str, num_blocks: int) -> float:
    """From the papers' rule: the power counts the blocks from this parameter to the head."""
    if name.startswith("neck."):
        return 1.0
    if name.startswith("context."):
        level = int(name.split(".")[1])  # 0 is the stem's, which comes before all blocks
        return decay ** (num_blocks + 1) if level == 0 else decay ** (num_blocks - (level - 1))
    name = name.removeprefix("backbone.")
    if name.startswith(blocks):
        return decay ** (num_blocks - int(name.removeprefix(blocks).split(".")[0]))
    return decay ** (num_blocks + 1) if name.startswith("embed") else 1.0


@pytest.mark.parametrize("decay", [0.9, 0.5])
@pytest.mark.parametrize(
    ("keys", "blocks", "num_blocks"),
    [
        ({"backbone": "vit_tiny", "neck": 4}, "encoder.layer.", 2),
        ({"backbone": "r18w32", "context": True, "neck": 4}, "encoder.stages.", 4),
    ],
    ids=["vit", "resnet"],
)
def test_scales_follow_the_rule(keys: dict[str, Any], blocks: str, num_blocks: int, decay: float) -> None:
    encoder, head = build(**keys), nn.Linear(4, 2)
    scales = lr_scales({"encoder": encoder, "objective.a": head}, decay)
    for name, parameter in encoder.named_parameters():
        assert scales[parameter] == pytest.approx(naive_scale(name, decay, blocks, num_blocks)), name
    assert len(scales) == len(list(encoder.parameters())), "heads have 1"
    assert min(scales.values()) == pytest.approx(decay ** (num_blocks + 1))
    assert scales[encoder.neck.weight] == 1


def test_every_encoder_within_a_module_counts_its_own_blocks() -> None:
    both = nn.ModuleDict({"a": build(), "b": build(backbone="r18w32")})
    scales = lr_scales({"encoder": both}, 0.5)
    assert scales[both["a"].backbone.embeddings.cls_token] == 0.5**3
    assert scales[both["b"].backbone.embedder.embedder.convolution.weight] == 0.5**5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_groups_hold_each_trained_parameter_once_in_a_fixed_order(kind: str, decay: float) -> None:
    def groups() -> tuple[list[dict[str, Any]], dict[nn.Parameter, str]]:
        encoder, head = build(neck=4, unfrozen=1), nn.Linear(4, 2)
        modules = {"encoder": encoder, "objective.a": head, "objective.b": nn.Sequential(head, nn.Linear(2, 2))}
        spec = OptimizerSpec(kind=kind, weight_decay=0.3, layer_decay=decay)  # type: ignore[arg-type]
        names = {p: f"{key}.{name}" for key, module in modules.items() for name, p in module.named_parameters()}
        return build_optimizer(modules, spec, lr=0.2).param_groups, names

    found, names = groups()
    listed = [names[p] for group in found for p in group["params"]]
    trained = {name for p, name in names.items() if p.requires_grad}
    assert len(listed) == len(set(listed))
    assert set(listed) == trained
    for group in found:
        dimensions = {p.ndim > 1 for p in group["params"]}
        assert len(dimensions) == 1
        assert group["weight_decay"] == (0.3 if dimensions.pop() else 0.0)
        assert group["lr"] == pytest.approx(0.2 * group["lr_scale"])
        if kind == "lars":
            assert group["adapt"] == (group["params"][0].ndim > 1)
    scales = [(group["lr_scale"], group["weight_decay"]) for group in found]
    assert scales == ([(1, 0.3), (1, 0)] if decay == 1 else [(1, 0.3), (1, 0), (0.5, 0.3), (0.5, 0)])
    again, others = groups()
    assert [[others[p] for p in group["params"]] for group in again] == [
        [names[p] for p in group["params"]] for group in found
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_moves_each_depth_by_its_share(kind: str) -> None:
    """From the same weights and gradients, the decayed step is the plain one times the scale."""
    moves = []
    for decay in (1.0, 0.5):
        encoder = build()
        spec = OptimizerSpec(kind=kind, layer_decay=decay, weight_decay=0.1)  # type: ignore[arg-type]
        optimizer = build_optimizer({"encoder": encoder}, spec, lr=0.1)
        before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
        for number, parameter in enumerate(encoder.parameters()):
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        optimizer.step()
        moves.append({name: p.detach() - before[name] for name, p in encoder.named_parameters()})
    for name, plain in moves[0].items():
        assert plain.abs().max() > 0 or not plain.numel()
        expected = plain * naive_scale(name, 0.5, "encoder.layer.", 2)
        torch.testing.assert_close(moves[1][name], expected, rtol=1e-4, atol=1e-6, msg=name)


def test_what_cannot_be_decayed_or_trained_is_refused(tmp_path: Path) -> None:
    ConvNextV2Config(hidden_sizes=[4, 8], depths=[1, 1], num_stages=2).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match=r"optimizer.layer_decay: bolus does not know where a convnext.*set it to 1"):
        build_optimizer({"encoder": build(backbone=str(tmp_path))}, OptimizerSpec(layer_decay=0.9), lr=0.1)
    build_optimizer({"encoder": build(backbone=str(tmp_path))}, OptimizerSpec(), lr=0.1)
    with pytest.raises(RecipeError, match="along an encoder, and there is none"):
        build_optimizer({"a": nn.Linear(2, 2)}, OptimizerSpec(layer_decay=0.9), lr=0.1)
    with pytest.raises(RecipeError, match=r"nothing is trained: encoder.unfrozen"):
        build_optimizer({"encoder": build(unfrozen=0)}, OptimizerSpec(), lr=0.1)
    for value in ("0", "1.1"):
        with pytest.raises(RecipeError, match="layer_decay"):
            Recipe.load("simclr").override([f"optimizer.layer_decay={value}"])


def test_the_loop_sets_each_groups_own_rate(
    tiny_cohort: Path, small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[tuple[float, float]]] = []
    step = Lars.step

    def spy(self: Lars, closure: None = None) -> float | None:
        seen.append([(group["lr"], group["lr_scale"]) for group in self.param_groups])
        return step(self, closure)

    monkeypatch.setattr(Lars, "step", spy)
    keys = ["optimizer.layer_decay=0.7", "optimizer.reference_batch=32", "schedule={kind: cosine, warmup_epochs: 0.5}"]
    recipe = Recipe.load(small_recipe).override([*keys, "training.epochs=2"])
    run = pretrain(tiny_cohort, recipe=recipe, out=tmp_path / "run", cache=tmp_path / "cache", quiet=True)
    logged = [line["lr"] for line in run.metrics() if line["kind"] == "train"]
    assert len(set(logged)) > 2
    assert max(logged) <= peak_lr(recipe.optimizer, 8)
    assert len(seen) == len(logged)
    for rates, lr in zip(seen, logged, strict=True):
        assert sorted({scale for _, scale in rates}) == pytest.approx([0.7**5, 0.7**4, 0.7**3, 0.7**2, 0.7, 1])
        for rate, scale in rates:
            assert rate == pytest.approx(lr * scale)


def naive_update(kind: str, weight: Array, grad: Array, state: dict[str, Any], lr: float, decay: float) -> Array:
    """One update of a matrix or a stack of them, as the papers write it, in NumPy."""
    state["count"] = state.get("count", 0) + 1
    if kind == "adamw":
        state["mean"] = 0.9 * state.get("mean", 0) + 0.1 * grad
        state["square"] = 0.999 * state.get("square", 0) + 0.001 * grad**2
        mean, square = state["mean"] / (1 - 0.9 ** state["count"]), state["square"] / (1 - 0.999 ** state["count"])
        return weight - lr * decay * weight - lr * mean / (np.sqrt(square) + 1e-8)
    grad = grad + decay * weight
    if kind == "lars":
        grad = grad * 0.001 * np.linalg.norm(weight.ravel()) / np.linalg.norm(grad.ravel())
    state["momentum"] = 0.9 * state.get("momentum", 0) + grad
    return np.asarray(weight - lr * state["momentum"])


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_does_not_depend_on_how_tensors_lie_in_memory(kind: str) -> None:
    """Weights with channels last, gradients in either order, and a state that came from a file."""
    conv = nn.Conv2d(3, 4, 3, bias=False, dtype=torch.float64).to(memory_format=torch.channels_last)
    spec = OptimizerSpec(kind=kind, weight_decay=0.1)  # type: ignore[arg-type]
    optimizer = build_optimizer({"conv": conv}, spec, lr=0.3)
    expected, state = conv.weight.detach().numpy().copy(), dict[str, Any]()
    for number in range(4):
        grad = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        conv.weight.grad = grad if number % 2 else grad.to(memory_format=torch.channels_last)
        expected = naive_update(kind, expected, grad.numpy(), state, 0.3, 0.1)
        optimizer.step()
        np.testing.assert_allclose(conv.weight.detach().numpy(), expected, rtol=1e-9, atol=1e-12)
        held = optimizer.state_dict()
        for each in held["state"].values():
            each.update({k: v.contiguous() for k, v in each.items() if isinstance(v, torch.Tensor)})
        optimizer.load_state_dict(held)
