"""Encoders: shapes, context blocks inline, modality scatter, folders, and what must never happen in a forward."""

from __future__ import annotations

import copy
import gc
import json
import math
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    BertConfig,
    ConvNextV2Config,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
)

from bolus.encoders import backbone as backbone_module
from bolus.encoders.backbone import Encoder
from bolus.encoders.building import build_encoder, external_encoder
from bolus.encoders.folders.folder import lineage_of, load_encoder, save_encoder
from bolus.encoders.parts.context import ContextBlock
from bolus.errors import EncoderError
from bolus.recipe import EncoderSpec

TINY = {"layer_type": "basic", "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}
EXACT = {"rtol": 1e-10, "atol": 1e-10}  # in float64
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """A folder with the configuration of a ResNet of two small stages, without weights."""
    ResNetConfig(**TINY).save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def build(**keys: Any) -> Encoder:
    return build_encoder(EncoderSpec(**keys), seed=3)


def normalised(encoder: Encoder, images: Tensor) -> Tensor:
    return (images - encoder.spec.mean[0]) / encoder.spec.std[0]


def by_hand(encoder: Encoder, images: Tensor) -> list[Tensor]:
    """The levels of a ResNet encoder from its modules' own forwards, composed here; the hooks are not run."""
    blocks = list(encoder.context) or [nn.Identity()] * len(encoder.shape.levels)
    embedder = encoder.backbone.embedder
    x = blocks[0](embedder.embedder.forward(normalised(encoder, images)))
    levels = [x]
    x = embedder.pooler.forward(x)
    for stage, block in zip(encoder.backbone.encoder.stages, blocks[1:], strict=True):
        x = block(stage.forward(x))
        levels.append(x)
    return levels


# --- context blocks


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def naive_context(block: ContextBlock, x: Tensor) -> Tensor:
    """Channel gate, then spatial gate, one number at a time."""
    squeeze, excite, spatial = (
        weight.detach().double() for weight in (block.squeeze.weight, block.excite.weight, block.spatial.weight)
    )
    B, C, H, W = x.shape
    out = x.clone()
    for b in range(B):
        scores = [0.0] * C
        for pool in (torch.mean, torch.amax):
            pooled = [float(pool(x[b, c])) for c in range(C)]
            hidden = [
                max(0.0, sum(float(squeeze[h, c, 0, 0]) * pooled[c] for c in range(C))) for h in range(len(squeeze))
            ]
            for c in range(C):
                scores[c] += sum(float(excite[c, h, 0, 0]) * hidden[h] for h in range(len(squeeze)))
        for c in range(C):
            out[b, c] = x[b, c] * sigmoid(scores[c])
        summary = [out[b].mean(0), out[b].amax(0)]
        gate = torch.empty(H, W, dtype=x.dtype)
        for i in range(H):
            for j in range(W):
                total = 0.0
                for k in range(2):
                    for di in range(-3, 4):
                        for dj in range(-3, 4):
                            if 0 <= i + di < H and 0 <= j + dj < W:
                                total += float(spatial[0, k, di + 3, dj + 3]) * float(summary[k][i + di, j + dj])
                gate[i, j] = sigmoid(total)
        out[b] = out[b] * gate
    return out


@pytest.mark.parametrize("reduction", [1, 2, 4])
def test_context_block_equals_loops(reduction: int) -> None:
    torch.manual_seed(0)
    block = ContextBlock(6, reduction).double()
    x = torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(block(x), naive_context(block, x), rtol=1e-12, atol=1e-12)


def test_context_block_has_three_bias_free_convolutions() -> None:
    shapes = {name: tuple(parameter.shape) for name, parameter in ContextBlock(8, 2).named_parameters()}
    assert shapes == {"squeeze.weight": (4, 8, 1, 1), "excite.weight": (8, 4, 1, 1), "spatial.weight": (1, 2, 7, 7)}


def test_context_block_gates_only_shrink_and_are_finite_on_constant_maps() -> None:
    block = ContextBlock(4)
    for x in (torch.zeros(1, 4, 1, 1), torch.full((2, 4, 3, 3), 1e4)):
        x.requires_grad_()
        refined = block(x)
        refined.sum().backward()
        assert (refined.abs() <= x.abs()).all()
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()


def test_context_block_refuses_no_channels() -> None:
    with pytest.raises(EncoderError, match="reduction=0"):
        ContextBlock(4, 0)


def test_context_is_inline() -> None:
    """A level is what the next stage sees: the composition by hand agrees, and CBT2 moves stage 2 but not CBT1."""
    encoder = build(backbone="r18w32", context=True).eval()
    images = pixels(2, 1, 64, 64)
    seen: list[Tensor] = []
    handle = encoder.backbone.encoder.stages[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        before = encoder(images, levels=True)
        for ours, manual in zip(before.levels, by_hand(encoder, images), strict=True):
            assert torch.equal(ours, manual)
        assert torch.equal(seen[0], before.levels[1])
        encoder.context[1].squeeze.weight.mul_(-3)
        after = encoder(images, levels=True)
    handle.remove()
    assert torch.equal(seen[1], after.levels[1])
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(before.levels[0], after.levels[0])
    assert all(not torch.equal(a, b) for a, b in zip(before.levels[1:], after.levels[1:], strict=True))
    assert torch.equal(after.grid, by_hand(encoder, images)[-1])


def test_gradient_reaches_every_parameter() -> None:
    encoder = build(backbone="r18w32", context=True)
    encoder(pixels(4, 1, 64, 64)).pooled.square().sum().backward()
    assert len(encoder.context) == 5
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


# --- shapes


@pytest.mark.parametrize(("stem_pool", "strides"), [(True, [2, 4, 8, 16, 32]), (False, [2, 2, 4, 8, 16])])
def test_resnet18_shapes(stem_pool: bool, strides: list[int]) -> None:
    encoder = build(backbone="resnet18", stem_pool=stem_pool).eval()
    assert [level.channels for level in encoder.shape.levels] == [64, 64, 128, 256, 512]
    assert [level.stride for level in encoder.shape.levels] == strides
    assert encoder.shape.levels[0].name == "embedder.embedder"
    assert encoder.shape.levels[4].name == "encoder.stages.3"
    assert (encoder.shape.dim, encoder.shape.grid_channels, encoder.shape.grid_stride) == (512, 512, strides[-1])
    with torch.no_grad():
        maps = encoder(pixels(1, 1, 224, 224), levels=True)
    for level, shape in zip(maps.levels, encoder.shape.levels, strict=True):
        assert level.shape == (1, shape.channels, 224 // shape.stride, 224 // shape.stride)
    assert torch.equal(maps.levels[-1], maps.grid)
    torch.testing.assert_close(maps.pooled, maps.grid.mean(dim=(2, 3)))


def test_levels_are_the_stem_before_the_pool_and_every_stage() -> None:
    encoder = build(backbone="r18w32").eval()
    images = pixels(2, 1, 64, 64)
    maps = encoder(images, levels=True)
    for ours, manual in zip(maps.levels, by_hand(encoder, images), strict=True):
        assert torch.equal(ours, manual)
    plain = encoder(images)
    assert plain.levels == []
    assert torch.equal(plain.pooled, maps.pooled)


@pytest.mark.parametrize("name", ["resnet50", "r18w32"])
def test_named_configurations(name: str) -> None:
    encoder = build(backbone=name)
    assert encoder.shape.dim == {"resnet50": 2048, "r18w32": 256}[name]
    assert len(encoder.shape.levels) == 5


def test_vit_pools_its_cls_token() -> None:
    encoder = build(backbone="vit_tiny").eval()
    images = pixels(2, 1, 64, 48)
    with torch.no_grad():
        maps = encoder(images)
        model = Dinov2Model(encoder.config).eval()
        model.load_state_dict(encoder.backbone.state_dict())
        tokens = model(normalised(encoder, images)).last_hidden_state
    torch.testing.assert_close(maps.pooled, tokens[:, 0])
    torch.testing.assert_close(maps.grid, tokens[:, 1:].transpose(1, 2).unflatten(2, (8, 6)))
    assert encoder.shape.levels == ()
    assert (encoder.shape.dim, encoder.shape.grid_channels, encoder.shape.grid_stride) == (64, 64, 8)
    with pytest.raises(EncoderError, match="no levels"):
        encoder(images, levels=True)


def test_vit_with_registers(tmp_path: Path) -> None:
    config = Dinov2WithRegistersConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=8, image_size=32, num_register_tokens=3
    )
    config.save_pretrained(tmp_path)
    maps = build(backbone=str(tmp_path)).eval()(pixels(1, 1, 32, 32))
    assert maps.grid.shape == (1, 16, 4, 4)
    assert not torch.allclose(maps.pooled, maps.grid.mean(dim=(2, 3)))


def test_unknown_family_gives_its_own_features_as_levels(tmp_path: Path) -> None:
    config = ConvNextV2Config(hidden_sizes=[4, 8], depths=[1, 1], num_stages=2, out_features=["stage1", "stage2"])
    config.save_pretrained(tmp_path)
    encoder = build(backbone=str(tmp_path), in_channels=3).eval()
    maps = encoder(pixels(2, 3, 32, 32), levels=True)
    assert [(level.channels, level.stride, level.name) for level in encoder.shape.levels] == [
        (4, 4, "stage1"),
        (8, 8, "stage2"),
    ]
    assert [level.shape[1:] for level in maps.levels] == [(4, 8, 8), (8, 4, 4)]
    torch.testing.assert_close(maps.pooled, maps.grid.mean(dim=(2, 3)))


def test_shapes_without_a_meta_device(
    monkeypatch: pytest.MonkeyPatch, tiny: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = build(backbone=tiny, context=True)

    def refuse(*_: Any) -> None:
        raise NotImplementedError("no meta kernel")

    monkeypatch.setattr(torch.func, "functional_call", refuse)
    found = build(backbone=tiny, context=True)
    assert found.shape == expected.shape
    assert "no meta kernel" in caplog.text
    assert found.training
    for (name, one), (_, other) in zip(expected.state_dict().items(), found.state_dict().items(), strict=True):
        assert torch.equal(one, other), name  # running statistics included


@pytest.mark.parametrize("width", [4, 8])
def test_a_strided_convolution_of_few_channels_has_the_gradient_of_float64(tmp_path: Path, width: int) -> None:
    """OneDNN would write past its workspace: with AVX2 below 8 channels, with AVX-512 below 16 in maps this large."""
    ResNetConfig(**{**TINY, "embedding_size": width, "hidden_sizes": [width, 16]}).save_pretrained(tmp_path)
    encoder = build(backbone=str(tmp_path), stem_pool=False)
    convolutions = [module for module in encoder.modules() if isinstance(module, nn.Conv2d)]
    few = [each for each in convolutions if each.kernel_size == (1, 1) and each.in_channels < 16]
    assert len(few) == 1, "the shortcut into the second stage"
    assert few[0].stride == (1, 1)  # or what follows may end the process
    gradients = []
    for each in (encoder, copy.deepcopy(encoder).double()):
        each(pixels(4, 1, 112, 112)).grid.square().sum().backward()
        gradients.append(each.backbone.encoder.stages[1].layers[0].shortcut.convolution.weight.grad.double())
    assert (gradients[0] - gradients[1]).norm() < 1e-3 * gradients[1].norm()


# --- images


def test_normalises_by_mean_and_std(tiny: str) -> None:
    images = pixels(2, 1, 32, 32)
    one = build(backbone=tiny, mean=[0.2], std=[0.5]).eval()
    other = build(backbone=tiny, mean=[0.0], std=[1.0]).eval()
    torch.testing.assert_close(one(images).pooled, other((images - 0.2) / 0.5).pooled)


def test_grey_is_repeated_into_a_pretrained_colour_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ResNetModel(ResNetConfig(**TINY)).save_pretrained(tmp_path)
    keys = {"backbone": str(tmp_path), "pretrained": True, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    grey, colour = build(in_channels=1, **keys).eval(), build(in_channels=3, **keys).eval()
    images = pixels(2, 1, 32, 32)
    assert grey.num_channels == 3
    assert torch.equal(grey(images).pooled, colour(images.expand(-1, 3, -1, -1)).pooled)
    save_encoder(grey, tmp_path / "saved", preprocessing={})
    assert json.loads((tmp_path / "saved" / "encoder.json").read_text())["input"]["grey_repeated_to"] == 3


def test_one_channel_without_pretraining(tiny: str) -> None:
    assert build(backbone=tiny, in_channels=1).backbone.embedder.embedder.convolution.weight.shape[1] == 1


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, 32, 32), torch.zeros(1, 32, 32), torch.zeros(2, 1, 32, 32, dtype=torch.uint8)]
)
def test_refuses_other_images(tiny: str, images: Tensor) -> None:
    with pytest.raises(EncoderError, match=r"expected images \[B, 1, H, W\]"):
        build(backbone=tiny)(images)


# --- encode


def test_encode_scatters_modalities(tiny: str) -> None:
    encoder = build(backbone=tiny).double().eval()
    views = {"XR": pixels(2, 3, 1, 32, 32), "US": pixels(2, 2, 1, 48, 64, seed=1)}
    rows = {"XR": torch.tensor([4, 0, 2]), "US": torch.tensor([3, 1])}
    features = encoder.encode(views, rows, levels=True, grid=True)
    assert features.pooled.shape == (2, 5, encoder.shape.dim)
    for modality, images in views.items():
        for v in range(2):
            for position, row in enumerate(rows[modality].tolist()):
                alone = encoder(images[v, position][None], levels=True)
                torch.testing.assert_close(features.pooled[v, row], alone.pooled[0], **EXACT)
                torch.testing.assert_close(features.grid[modality][v, position], alone.grid[0], **EXACT)
                for together, single in zip(features.levels[modality], alone.levels, strict=True):
                    torch.testing.assert_close(together[v, position], single[0], **EXACT)
    plain = encoder.encode(views, rows)
    assert (plain.levels, plain.grid) == ({}, {})


def test_encode_runs_each_modality_once(tiny: str) -> None:
    encoder, calls = build(backbone=tiny), []
    encoder.backbone.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    encoder.encode(
        {"XR": pixels(2, 3, 1, 32, 32), "US": pixels(2, 2, 1, 32, 32)},
        {"XR": torch.tensor([4, 0, 2]), "US": torch.tensor([3, 1])},
    )
    assert calls == [6, 4]


def test_encode_refuses_what_does_not_fit(tiny: str) -> None:
    encoder = build(backbone=tiny)
    with pytest.raises(EncoderError, match="same modalities"):
        encoder.encode({"XR": pixels(1, 2, 1, 8, 8)}, {"US": torch.arange(2)})
    with pytest.raises(EncoderError, match=r"XR: expected views \[1, 3, C, H, W\]"):
        encoder.encode({"XR": pixels(1, 2, 1, 8, 8)}, {"XR": torch.arange(3)})
    with pytest.raises(EncoderError, match="same modalities"):
        encoder.encode({}, {})


# --- determinism and hooks


def test_build_is_deterministic_and_leaves_the_random_state() -> None:
    state = torch.get_rng_state()
    spec = EncoderSpec(backbone="r18w32", context=True)
    one, two, other = (build_encoder(spec, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.training
    assert one.backbone.training
    first, second, third = (encoder.state_dict() for encoder in (one, two, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)
    plain = build_encoder(EncoderSpec(backbone="r18w32"), seed=3).state_dict()
    assert all(torch.equal(first[name], plain[name]) for name in plain)  # context draws after the backbone


def test_no_parameter_is_born_in_forward() -> None:
    encoder = build(backbone="r18w32", context=True)
    before = {name: id(parameter) for name, parameter in encoder.named_parameters()}
    encoder.encode({"XR": pixels(2, 2, 1, 64, 64)}, {"XR": torch.arange(2)}, levels=True, grid=True)
    assert {name: id(parameter) for name, parameter in encoder.named_parameters()} == before
    assert not any(parameter.is_meta for parameter in encoder.parameters())


def test_deepcopy_is_independent(tiny: str) -> None:
    encoder = build(backbone=tiny, context=True).eval()
    images = pixels(2, 1, 32, 32)
    expected = encoder(images, levels=True)
    twin = copy.deepcopy(encoder)
    assert torch.equal(twin(images).pooled, expected.pooled)
    with torch.no_grad():
        for parameter in twin.context.parameters():
            parameter.mul_(-2)
    changed = twin(images, levels=True)
    assert not torch.equal(changed.levels[0], expected.levels[0])  # the copy's hooks run the copy's blocks
    assert torch.equal(changed.grid, by_hand(twin, images)[-1])
    assert torch.equal(encoder(images).pooled, expected.pooled)
    twin(images).pooled.sum().backward()
    assert all(parameter.grad is not None for parameter in twin.context.parameters())
    assert all(parameter.grad is None for parameter in encoder.parameters())


@pytest.mark.parametrize("name", ["r18w32", "vit_tiny"])
def test_nothing_is_held_between_calls(name: str) -> None:
    encoder = build(backbone=name, context=name == "r18w32")
    maps = encoder(pixels(2, 1, 64, 64), levels=name == "r18w32")
    held = [weakref.ref(tensor) for tensor in (maps.pooled, maps.grid, *maps.levels)]
    del maps
    gc.collect()
    assert [reference() for reference in held] == [None] * len(held)
    assert backbone_module._KEPT.get() is None


def test_nothing_is_held_after_a_failure(tiny: str) -> None:
    encoder = build(backbone=tiny)
    handle = encoder.backbone.encoder.stages[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encoder(pixels(2, 1, 32, 32), levels=True)
    handle.remove()
    assert backbone_module._KEPT.get() is None


def test_forwards_may_nest_and_run_in_threads(tiny: str) -> None:
    outer, inner = build(backbone=tiny, context=True).eval(), build_encoder(EncoderSpec(backbone=tiny), seed=9).eval()
    images, others = pixels(2, 1, 32, 32), pixels(3, 1, 64, 64, seed=1)
    expected, expected_inner = outer(images, levels=True).levels, inner(others, levels=True).levels
    found: list[list[Tensor]] = []
    run = lambda *_: found.append(inner(others, levels=True).levels)  # noqa: E731

    def run_apart(*_: Any) -> None:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    handles = [
        outer.backbone.encoder.stages[1].register_forward_pre_hook(hook) for hook in (lambda *_: run(), run_apart)
    ]
    levels = outer(images, levels=True).levels
    for handle in handles:
        handle.remove()
    assert len(found) == 2
    assert all(torch.equal(a, b) for a, b in zip(levels, expected, strict=True))
    for inside in found:
        assert all(torch.equal(a, b) for a, b in zip(inside, expected_inner, strict=True))


def gradients(encoder: Encoder, levels: list[Tensor]) -> list[Tensor]:
    encoder.zero_grad()
    torch.stack([level.square().mean() for level in levels]).sum().backward()
    return [parameter.grad.clone() for parameter in encoder.parameters() if parameter.grad is not None]


def test_checkpointing_gives_the_same_gradients(tiny: str) -> None:
    encoder = build(backbone=tiny, context=True).eval()
    images = pixels(2, 1, 32, 32)
    expected = gradients(encoder, encoder(images, levels=True).levels)
    whole = checkpoint(lambda x: encoder(x, levels=True), images, use_reentrant=False).levels
    found = gradients(encoder, whole)
    stage = encoder.backbone.encoder.stages[0]
    forward = stage.forward
    stage.forward = lambda x: checkpoint(forward, x, use_reentrant=False)
    by_stage = gradients(encoder, encoder(images, levels=True).levels)
    assert len(expected) == len(list(encoder.parameters()))
    for a, b, c in zip(expected, found, by_stage, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)


# --- folders


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("stem_pool", [False, True])
def test_save_and_load_are_bit_equal(tmp_path: Path, context: bool, stem_pool: bool) -> None:
    encoder = build(backbone="r18w32", context=context, stem_pool=stem_pool, mean=[0.3], std=[0.4])
    encoder(pixels(4, 1, 64, 64))  # running statistics move
    preprocessing = {"size": 64, "fit": "pad", "ranges": {"XR": [0, 4095]}}
    save_encoder(encoder, tmp_path / "encoder", preprocessing=preprocessing, card="# A card\n")
    state = torch.get_rng_state()
    loaded, contract = load_encoder(tmp_path / "encoder")
    assert torch.equal(torch.get_rng_state(), state)
    assert contract == preprocessing
    assert (loaded.spec, loaded.shape) == (encoder.spec, encoder.shape)
    assert not loaded.training
    images = pixels(2, 1, 64, 64, seed=1)
    ours, theirs = encoder.eval()(images, levels=True), loaded(images, levels=True)
    assert torch.equal(ours.pooled, theirs.pooled)
    assert all(torch.equal(a, b) for a, b in zip(ours.levels, theirs.levels, strict=True))
    assert sorted(path.name for path in (tmp_path / "encoder").iterdir()) == [
        "README.md",
        "encoder.json",
        "model.safetensors",
    ]
    description = json.loads((tmp_path / "encoder" / "encoder.json").read_text())
    assert description["backbone_config"]["model_type"] == "resnet"
    assert set(description["versions"]) == {"bolus", "torch"}


def test_vit_round_trip(tmp_path: Path) -> None:
    encoder = build(backbone="vit_tiny").eval()
    save_encoder(encoder, tmp_path, preprocessing={})
    images = pixels(2, 1, 64, 64)
    assert torch.equal(load_encoder(tmp_path)[0](images).pooled, encoder(images).pooled)


def test_context_left_out_is_the_backbone_alone(tmp_path: Path, tiny: str) -> None:
    encoder = build(backbone=tiny, context=True).eval()
    save_encoder(encoder, tmp_path, preprocessing={})
    without, _ = load_encoder(tmp_path, keep_context=False)
    plain = build(backbone=tiny).eval()
    plain.backbone.load_state_dict(encoder.backbone.state_dict())
    images = pixels(2, 1, 32, 32)
    assert len(without.context) == 0
    assert not without.spec.context
    assert torch.equal(without(images).pooled, plain(images).pooled)
    assert not torch.equal(without(images).pooled, encoder(images).pooled)


def test_saving_again_replaces_and_keeps_other_files(tmp_path: Path, tiny: str) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    save_encoder(build(backbone=tiny), tmp_path, preprocessing={"size": 1})
    second = build_encoder(EncoderSpec(backbone=tiny), seed=8).eval()
    save_encoder(second, tmp_path, preprocessing={"size": 2})
    loaded, contract = load_encoder(tmp_path)
    images = pixels(1, 1, 32, 32)
    assert contract == {"size": 2}
    assert torch.equal(loaded(images).pooled, second(images).pooled)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_damaged_folders_are_refused(tmp_path: Path, tiny: str) -> None:
    with pytest.raises(EncoderError, match="expected an encoder folder"):
        load_encoder(tmp_path)
    save_encoder(build(backbone=tiny), tmp_path, preprocessing={})
    weights, description = tmp_path / "model.safetensors", tmp_path / "encoder.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(EncoderError, match="damaged or torn"):
        load_encoder(tmp_path)
    weights.write_bytes(whole)
    values = json.loads(description.read_text())
    description.write_text(json.dumps(values | {"spec": values["spec"] | {"context": True}}))
    with pytest.raises(EncoderError, match="weights missing"):
        load_encoder(tmp_path)
    description.write_text(json.dumps(values | {"format": 99}))
    with pytest.raises(EncoderError, match="expected format 1, found 99"):
        load_encoder(tmp_path)
    with pytest.raises(EncoderError, match="JSON"):
        save_encoder(build(backbone=tiny), tmp_path, preprocessing={"size": object()})


def test_lineage_survives_the_folder(tmp_path: Path, tiny: str) -> None:
    encoder = build(backbone=tiny)
    own, parent = {"salt": "s", "keys": ["b", "a"]}, {"salt": "t", "keys": ["c"]}
    save_encoder(encoder, tmp_path / "parent", preprocessing={}, lineage=[parent])
    save_encoder(encoder, tmp_path / "child", preprocessing={}, lineage=[own, *lineage_of(tmp_path / "parent")])
    assert lineage_of(tmp_path / "child") == [{"salt": "s", "keys": ["a", "b"]}, parent]
    load_encoder(tmp_path / "child")
    save_encoder(encoder, tmp_path / "unknown", preprocessing={})
    assert lineage_of(tmp_path / "unknown") == []
    assert lineage_of(Path("resnet18")) == []
    path = tmp_path / "child" / "encoder.json"
    description = json.loads(path.read_text())
    del description["lineage"]
    path.write_text(json.dumps(description))
    assert lineage_of(tmp_path / "child") == [], "a folder from before lineages were kept"
    path.write_text(json.dumps(description | {"lineage": [{"salt": "s"}]}))
    with pytest.raises(EncoderError, match="salt and keys"):
        lineage_of(tmp_path / "child")


def test_folders_from_before_clips_and_necks_still_load(tmp_path: Path, tiny: str) -> None:
    encoder = build(backbone=tiny).eval()
    save_encoder(encoder, tmp_path, preprocessing={})
    path = tmp_path / "encoder.json"
    description = json.loads(path.read_text())
    for key in ("temporal_shift", "neck"):
        del description["spec"][key]
    path.write_text(json.dumps(description))
    loaded, _ = load_encoder(tmp_path)
    assert loaded.spec == encoder.spec
    images = pixels(2, 1, 32, 32)
    assert torch.equal(loaded(images).pooled, encoder(images).pooled)


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("saved_context", [False, True])
def test_build_goes_on_from_an_encoder_folder(tmp_path: Path, tiny: str, saved_context: bool, context: bool) -> None:
    first = build(backbone=tiny, context=saved_context)
    save_encoder(first, tmp_path, preprocessing={})
    again = build_encoder(EncoderSpec(backbone=str(tmp_path), pretrained=True, context=context), seed=11)
    fresh = build_encoder(EncoderSpec(backbone=str(tmp_path), context=context), seed=11)
    for name, tensor in again.state_dict().items():
        from_folder = not name.startswith("context.") or saved_context
        assert torch.equal(tensor, first.state_dict()[name] if from_folder else fresh.state_dict()[name]), name
    assert again.training
    assert not torch.equal(next(fresh.parameters()), next(first.parameters()))


# --- the neck


@pytest.mark.parametrize("name", ["tiny", "vit_tiny"])
def test_neck_is_a_linear_layer_after_pooling(tiny: str, name: str) -> None:
    name = tiny if name == "tiny" else name
    encoder, plain = build(backbone=name, neck=5).eval(), build(backbone=name).eval()
    images = pixels(3, 1, 32, 32)
    maps, without = encoder(images), plain(images)
    assert isinstance(encoder.neck, nn.Linear)
    assert encoder.neck.bias is not None
    assert encoder.shape == replace(plain.shape, dim=5)
    torch.testing.assert_close(maps.pooled, without.pooled @ encoder.neck.weight.T + encoder.neck.bias)
    assert torch.equal(maps.grid, without.grid)
    assert encoder.encode({"XR": images[None]}, {"XR": torch.arange(3)}).pooled.shape == (1, 3, 5)
    assert not list(plain.neck.parameters())


@pytest.mark.parametrize("context", [False, True])
def test_neck_is_drawn_after_everything_else(tiny: str, context: bool) -> None:
    state = torch.get_rng_state()
    one, two, other = (
        build_encoder(EncoderSpec(backbone=tiny, context=context, neck=5), seed=seed).state_dict() for seed in (3, 3, 4)
    )
    assert torch.equal(torch.get_rng_state(), state)
    plain = build(backbone=tiny, context=context).state_dict()
    assert all(torch.equal(one[name], plain[name]) for name in plain)
    assert sorted(set(one) - set(plain)) == ["neck.bias", "neck.weight"]
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["neck.weight"], other["neck.weight"])


def test_gradient_reaches_the_neck_and_what_is_before_it(tiny: str) -> None:
    encoder = build(backbone=tiny, neck=5)
    encoder(pixels(4, 1, 32, 32)).pooled.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_neck_in_copies_twins_and_folders(tmp_path: Path, tiny: str) -> None:
    encoder = build(backbone=tiny, context=True, neck=5).eval()
    images = pixels(2, 1, 32, 32)
    expected = encoder(images).pooled
    save_encoder(encoder, tmp_path, preprocessing={})
    loaded, _ = load_encoder(tmp_path)
    assert (loaded.spec, loaded.shape) == (encoder.spec, encoder.shape)
    assert torch.equal(loaded(images).pooled, expected)
    without, _ = load_encoder(tmp_path, keep_context=False)
    assert (len(without.context), without.shape.dim) == (0, 5)
    assert torch.equal(without.state_dict()["neck.weight"], encoder.state_dict()["neck.weight"])
    twin, same = encoder.twin(seed=5).eval(), encoder.twin(seed=5).eval()
    assert twin.shape == encoder.shape
    assert torch.equal(twin(images).pooled, same(images).pooled)
    assert not torch.equal(twin.state_dict()["neck.weight"], encoder.state_dict()["neck.weight"])
    copied = copy.deepcopy(encoder)
    assert torch.equal(copied(images).pooled, expected)
    with torch.no_grad():
        copied.neck.bias.add_(1)
    torch.testing.assert_close(copied(images).pooled, expected + 1)
    assert torch.equal(encoder(images).pooled, expected)


@pytest.mark.parametrize("neck", [None, 5])
@pytest.mark.parametrize("saved_neck", [None, 5])
@pytest.mark.parametrize("saved_context", [False, True])
def test_build_goes_on_with_or_without_a_neck(
    tmp_path: Path, tiny: str, saved_context: bool, saved_neck: int | None, neck: int | None
) -> None:
    """What the folder and the spec both have is the folder's, what only the spec has is fresh, the rest is dropped."""
    first = build(backbone=tiny, context=saved_context, neck=saved_neck).state_dict()
    save_encoder(build(backbone=tiny, context=saved_context, neck=saved_neck), tmp_path, preprocessing={})
    spec = EncoderSpec(backbone=str(tmp_path), pretrained=True, context=True, neck=neck)
    again = build_encoder(spec, seed=11)
    fresh = build_encoder(spec.model_copy(update={"pretrained": False}), seed=11).state_dict()
    assert again.shape.dim == (neck or 8)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, first[name] if name in first else fresh[name]), name
    assert ("neck.weight" in again.state_dict()) == (neck is not None)
    assert any(name.startswith("context.") for name in again.state_dict())


def test_necks_that_differ_in_width_and_folders_that_lack_one_are_refused(tmp_path: Path, tiny: str) -> None:
    save_encoder(build(backbone=tiny, neck=5), tmp_path / "five", preprocessing={})
    with pytest.raises(EncoderError, match=r"encoder\.neck: expected 5, the width of the neck in .*five; found 6"):
        build(backbone=str(tmp_path / "five"), pretrained=True, neck=6)
    save_encoder(build(backbone=tiny), tmp_path / "none", preprocessing={})
    for folder, neck, message in (("none", 5, "weights missing"), ("five", None, "weights of no use")):
        path = tmp_path / folder / "encoder.json"
        description = json.loads(path.read_text())
        description["spec"]["neck"] = neck
        path.write_text(json.dumps(description))
        with pytest.raises(EncoderError, match=message + r".*neck"):
            load_encoder(tmp_path / folder)


# --- encoders of others


@pytest.mark.parametrize("model_class", [ResNetModel, ResNetForImageClassification])
def test_external_folder(tmp_path: Path, model_class: type) -> None:
    torch.manual_seed(0)
    model = model_class(ResNetConfig(**TINY)).eval()
    model.save_pretrained(tmp_path)
    processor = IMAGENET | {
        "size": {"shortest_edge": 64},
        "crop_size": {"height": 48, "width": 48},
        "do_center_crop": True,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    state = torch.get_rng_state()
    encoder, contract = external_encoder(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert (encoder.spec.mean, encoder.spec.std) == (IMAGENET["image_mean"], IMAGENET["image_std"])
    assert (contract, encoder.spec.in_channels, encoder.training) == ({"size": 48}, 3, False)
    images = pixels(2, 3, 48, 48)
    ready = (images - torch.tensor(IMAGENET["image_mean"]).view(3, 1, 1)) / torch.tensor(IMAGENET["image_std"]).view(
        3, 1, 1
    )
    with torch.no_grad():
        expected = getattr(model, "resnet", model)(ready).pooler_output.flatten(1)
        torch.testing.assert_close(encoder(images).pooled, expected)


def test_external_hub_name_takes_the_same_road(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name in the offline hub cache and a folder load through one call to equal encoders."""
    torch.manual_seed(0)
    cached = tmp_path / "models--someone--tiny"
    snapshot = cached / "snapshots" / ("0" * 40)
    ResNetModel(ResNetConfig(**TINY)).save_pretrained(snapshot)
    (snapshot / "preprocessor_config.json").write_text(json.dumps(IMAGENET | {"size": 32}))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (by_name, contract), (by_folder, _) = external_encoder("someone/tiny"), external_encoder(snapshot)
    images = pixels(1, 3, 32, 32)
    assert torch.equal(by_name(images).pooled, by_folder(images).pooled)
    assert contract == {"size": 32}
    assert by_name.spec.mean == IMAGENET["image_mean"]


def test_external_without_processor(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=8, image_size=32)
    Dinov2Model(config).save_pretrained(tmp_path)
    encoder, contract = external_encoder(tmp_path)
    assert (contract, encoder.spec.mean, encoder.spec.std) == ({"size": 32}, [0.5], [0.25])
    assert "no preprocessor_config.json" in caplog.text


def test_pretrained_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    ResNetModel(ResNetConfig(**TINY)).save_pretrained(tmp_path)
    deeper = ResNetConfig(**TINY | {"hidden_sizes": [4, 8, 8], "depths": [1, 1, 1]})
    deeper.save_pretrained(tmp_path)
    with pytest.raises(EncoderError, match=r"lacks \d+ weights of a resnet backbone"):
        external_encoder(tmp_path)


# --- refusals


def test_unknown_name() -> None:
    with pytest.raises(EncoderError, match=r"no encoder 'resnet81'.*did you mean 'resnet18'"):
        build(backbone="resnet81")
    with pytest.raises(EncoderError, match=r"known: convnext_atto, .*, r18w32, .*resnet18, .*resnet50, .*vit_tiny"):
        external_encoder("./nowhere/at/all")


@pytest.mark.parametrize("pretrained", [False, True])
def test_failed_hub_load_says_what_was_tried(monkeypatch: pytest.MonkeyPatch, pretrained: bool) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError, match="tried hub name someone/nothing"):
        build(backbone="someone/nothing", pretrained=pretrained)


def test_refuses_what_does_not_go_together(tmp_path: Path, tiny: str) -> None:
    for keys, message in [
        ({"backbone": "vit_tiny", "context": True}, "context needs a ResNet, found dinov2"),
        ({"backbone": "vit_tiny", "stem_pool": False}, "stem_pool: false needs a ResNet"),
        ({"backbone": "r18w32", "pretrained": True}, "no published weights"),
        ({"backbone": tiny, "mean": [0.5, 0.5]}, "encoder.mean: expected one value"),
        ({"backbone": tiny, "std": [0.0]}, "encoder.std: expected one value"),
    ]:
        with pytest.raises(EncoderError, match=message):
            build(**keys)
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(EncoderError, match="no backbone for 'bert'"):
        build(backbone=str(tmp_path / "bert"))
    save_encoder(build(backbone=tiny), tmp_path / "grey", preprocessing={})
    with pytest.raises(EncoderError, match="expected a backbone for 3-channel images, found one for 1"):
        build(backbone=str(tmp_path / "grey"), pretrained=True, in_channels=3)


def test_another_temporal_shift_than_the_folder_was_trained_with_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_encoder(build_encoder(EncoderSpec(backbone="r18w32"), seed=0), tmp_path, preprocessing={"size": 32})
    build_encoder(EncoderSpec(backbone=str(tmp_path), pretrained=True), seed=0)
    assert not caplog.records
    build_encoder(EncoderSpec(backbone=str(tmp_path), pretrained=True, temporal_shift=8), seed=0)
    assert "temporal_shift None and goes on with 8" in caplog.text
