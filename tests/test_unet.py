"""The U-Net: levels and strides, what any encoder must do, and the decoder over every kind of encoder."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, ConvNextV2Config

from bolus.encoders.backbone import Encoder, seeded
from bolus.encoders.building import build_encoder, external_encoder
from bolus.encoders.families.hub import find_config
from bolus.encoders.families.unet import MaskDecoder, UNetConfig, _fit
from bolus.encoders.features import FeatureShape, LevelShape
from bolus.encoders.folders.folder import is_encoder_folder, load_encoder, save_encoder
from bolus.errors import EncoderError, UsageError
from bolus.recipe import EncoderSpec


def build(backbone: str = "unet4", seed: int = 3, **keys: Any) -> Encoder:
    return build_encoder(EncoderSpec(backbone=backbone, **keys), seed=seed)


EXACT = {"rtol": 1e-10, "atol": 1e-10}  # in float64


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def make_decoder(shape: FeatureShape, num_classes: int = 3) -> MaskDecoder:
    with seeded(5):
        return MaskDecoder(shape, num_classes)


def scores(encoder: Encoder, decoder: MaskDecoder, images: Tensor) -> Tensor:
    maps = encoder(images, levels=bool(encoder.shape.levels))
    found: Tensor = decoder(maps.levels, maps.grid, (images.shape[-2], images.shape[-1]))
    return found


# --- the encoder


@pytest.mark.parametrize("filters", [1, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_levels_double_while_maps_halve(filters: int, channels: int) -> None:
    encoder = build(f"unet{filters}", in_channels=channels)
    assert encoder.shape == FeatureShape(
        dim=16 * filters,
        grid_channels=16 * filters,
        grid_stride=16,
        levels=tuple(
            LevelShape(filters * 2**level, 2**level, name)
            for level, name in enumerate(["level1", "level2", "level3", "level4", "centre"])
        ),
    )
    for height, width in [(64, 64), (50, 50), (96, 50)]:
        maps = encoder(pixels(2, channels, height, width), levels=True)
        assert [tuple(level.shape) for level in maps.levels] == [
            (2, filters * 2**level, height // 2**level, width // 2**level) for level in range(5)
        ]
        assert torch.equal(maps.levels[-1], maps.grid)
        torch.testing.assert_close(maps.pooled, maps.grid.mean(dim=(2, 3)))


@pytest.mark.parametrize(("filters", "channels"), [(4, 1), (8, 3)])
def test_parameter_count(filters: int, channels: int) -> None:
    total, before = 0, channels
    for level in range(4):
        width = filters * 2**level
        for taken in (before, width):
            total += 9 * taken * width  # 3 x 3 convolution
            total += 2 * width  # scale and shift of the norm
        before = width
    width = filters * 16
    for taken in (before, width):
        total += 9 * taken * width + width  # the centre: no norm, but a bias
    encoder = build(f"unet{filters}", in_channels=channels)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == total


def test_forward_equals_layers_by_hand() -> None:
    encoder = build().eval()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics that a norm cannot pass by
            module.running_mean = pixels(module.num_features, seed=1)
            module.running_var = pixels(module.num_features, seed=2) + 0.5
    images = pixels(2, 1, 38, 48)
    x = (images - 0.5) / 0.25
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    convolutions = [module for module in encoder.modules() if isinstance(module, nn.Conv2d)]
    assert len(norms) == 8
    assert len(convolutions) == 10
    expected = []
    for place, convolution in enumerate(convolutions):
        if place in (2, 4, 6, 8):
            x = F.max_pool2d(x, 2)
        x = F.conv2d(x, convolution.weight, convolution.bias, padding=1)
        if place < 8:
            norm = norms[place]
            mean, var = norm.running_mean, norm.running_var
            assert mean is not None
            assert var is not None
            x = (x - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + norm.eps).sqrt()  # scale 1 and shift 0 at the start
            x = torch.where(x > 0, x, 0.01 * x)
        else:
            x = x.clamp_min(0)
        if place % 2:
            expected.append(x)
    for found, wanted in zip(encoder(images, levels=True).levels, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_weights_are_he() -> None:
    encoder = build("unet16")
    for name, parameter in encoder.named_parameters():
        if parameter.ndim == 4 and parameter.numel() > 5000:
            fan_in = parameter[0].numel()
            assert float(parameter.detach().std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.05), name
        elif name.endswith("conv.bias"):
            assert not parameter.any()


def test_seed_decides_the_weights_and_the_global_state_stays() -> None:
    before = torch.get_rng_state()
    one, same, other = build(seed=1), build(seed=1), build(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    images = pixels(2, 1, 32, 32)
    assert torch.equal(one(images).pooled, same(images).pooled)
    assert not torch.equal(one(images).pooled, other(images).pooled)
    twin, again = one.twin(seed=2), one.twin(seed=2)
    assert torch.equal(twin(images).pooled, again(images).pooled)
    assert twin.shape == one.shape
    assert not torch.equal(twin(images).pooled, one(images).pooled)


def test_folder_round_trip(tmp_path: Path) -> None:
    encoder = build(in_channels=3, neck=5)
    images = pixels(3, 3, 50, 34)
    encoder(images)  # moves the running statistics, which must come back too
    encoder.eval()
    save_encoder(encoder, tmp_path, preprocessing={"size": 50})
    loaded, preprocessing = load_encoder(tmp_path)
    assert preprocessing == {"size": 50}
    assert loaded.shape == encoder.shape
    before, after = encoder(images, levels=True), loaded(images, levels=True)
    assert torch.equal(before.pooled, after.pooled)
    assert all(torch.equal(*pair) for pair in zip(before.levels, after.levels, strict=True))
    went_on = build(str(tmp_path), in_channels=3, neck=5, pretrained=True).eval()
    assert torch.equal(went_on(images).pooled, before.pooled)
    afresh = build(str(tmp_path)).eval()  # the architecture alone, for grey images
    assert afresh(pixels(1, 1, 32, 32)).pooled.shape == (1, 64)
    copied = copy.deepcopy(encoder)
    assert torch.equal(copied(images).pooled, before.pooled)


def test_a_folder_of_transformers_is_read_too(tmp_path: Path) -> None:
    encoder = build().eval()
    backbone: Any = encoder.backbone
    backbone.save_pretrained(tmp_path)
    external, _ = external_encoder(tmp_path)
    assert external.shape == encoder.shape
    images = pixels(2, 1, 32, 32)
    assert torch.equal(external(images).grid, encoder(images).grid)


def test_encode_gives_levels_and_grid_by_modality() -> None:
    encoder = build().double().eval()
    views = {"MR": pixels(2, 3, 1, 32, 32), "CT": pixels(2, 1, 1, 48, 48)}
    rows = {"MR": torch.tensor([0, 3, 1]), "CT": torch.tensor([2])}
    features = encoder.encode(views, rows, levels=True, grid=True)
    assert features.pooled.shape == (2, 4, 64)
    assert [tuple(level.shape) for level in features.levels["CT"]] == [
        (2, 1, 4 * 2**level, 48 // 2**level, 48 // 2**level) for level in range(5)
    ]
    torch.testing.assert_close(features.pooled[:, 2], features.grid["CT"][:, 0].mean(dim=(2, 3)), **EXACT)
    torch.testing.assert_close(features.pooled[1, 3], encoder(views["MR"][1, 1:2]).pooled[0], **EXACT)


def test_clips_are_averaged() -> None:
    encoder = build().double().eval()
    clip = pixels(1, 1, 3, 32, 32)
    frames = torch.stack([encoder(clip[:, :, t]).pooled for t in range(3)])
    torch.testing.assert_close(encoder(clip).pooled, frames.mean(0), **EXACT)


def test_outputs_as_transformers_backbones_give_them() -> None:
    with seeded(0):
        backbone = AutoBackbone.from_config(UNetConfig(base_filters=2, depth=2, out_features=["level2"])).eval()
    images = pixels(1, 1, 16, 16)
    output = backbone(images, output_hidden_states=True)
    assert [tuple(state.shape[1:]) for state in output.hidden_states] == [(2, 16, 16), (4, 8, 8), (8, 4, 4)]
    assert len(output.feature_maps) == 1
    assert torch.equal(output.feature_maps[0], output.hidden_states[1])
    assert torch.equal(backbone(images, return_dict=False)[0][0], output.feature_maps[0])
    assert backbone.channels == [4]


# --- names


def test_names() -> None:
    assert find_config("unet48").hidden_sizes == [48, 96, 192, 384, 768]
    assert find_config("unet32").base_filters == 32
    config = UNetConfig(num_channels=3, base_filters=5, depth=2)
    again = AutoConfig.for_model(**config.to_dict())
    assert isinstance(again, UNetConfig)
    assert again.to_dict() == config.to_dict()
    for name in ("unet0", "unet", "unet-48", "unet4x", "unnet48"):
        with pytest.raises(EncoderError, match=rf"no encoder '{name}'.*unet48"):
            find_config(name)
    with pytest.raises(EncoderError, match="'unet48' has no published weights"):
        build("unet48", pretrained=True)


def test_a_folder_of_such_a_name_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_encoder(build("unet4"), tmp_path / "unet2", preprocessing={})
    monkeypatch.chdir(tmp_path)
    assert is_encoder_folder("./unet2")
    assert not is_encoder_folder("unet2")


@pytest.mark.slow
def test_monai_waits_for_a_unet() -> None:
    code = (
        "import sys, bolus.encoders.building as building, bolus.encoders.folders.folder;"
        "assert 'monai' not in sys.modules;"
        "building.find_config('unet48'); assert 'monai' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_refusals() -> None:
    for key in ("num_channels", "base_filters", "depth"):
        with pytest.raises(EncoderError, match=f"expected {key} of at least 1, found 0"):
            UNetConfig(**{key: 0})
    with pytest.raises(EncoderError, match=r"at least 16 x 16 pixels for a U-Net of 4 poolings, found 64 x 15"):
        build()(pixels(1, 1, 64, 15))
    for keys in ({"context": True}, {"stem_pool": False}, {"temporal_shift": 8}):
        with pytest.raises(EncoderError, match="needs a ResNet, found bolus_unet"):
            build(**keys)
    with pytest.raises(UsageError, match="at least 2 classes"):
        MaskDecoder(build().shape, 1)


# --- the decoder

SIZES = [(64, 64), (50, 50), (96, 72), (33, 47)]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("name", ["unet8", "r18w32", "vit_tiny"])
def test_decoder_scores_every_pixel(name: str, size: tuple[int, int]) -> None:
    encoder = build(name)
    if name == "vit_tiny":  # whose images are whole patches
        size = (size[0] // 8 * 8, size[1] // 8 * 8)
    found = scores(encoder, make_decoder(encoder.shape), pixels(2, 1, *size))
    assert found.shape == (2, 3, *size)
    assert found.isfinite().all()


@pytest.mark.parametrize("name", ["unet4", "r18w32", "vit_tiny"])
def test_gradients_reach_every_parameter(name: str) -> None:
    encoder = build(name)
    decoder = make_decoder(encoder.shape)
    found = scores(encoder, decoder, pixels(3, 1, 64, 64))
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    torch.autograd.backward((found * weights).sum())
    unused = {"mask_token"} if name == "vit_tiny" else set()
    for module in (encoder, decoder):
        for key, parameter in module.named_parameters():
            if key.rpartition(".")[2] in unused:
                continue
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.any(), key


@pytest.mark.parametrize("name", ["unet4", "r18w32"])
def test_every_level_is_used(name: str) -> None:
    encoder = build(name).eval()
    decoder = make_decoder(encoder.shape).eval()
    maps = encoder(pixels(1, 1, 64, 64), levels=True)
    before = decoder(maps.levels, maps.grid, (64, 64))
    for place in range(len(maps.levels) - 1):
        changed = list(maps.levels)
        changed[place] = changed[place] + 1
        assert not torch.allclose(decoder(changed, maps.grid, (64, 64)), before), place
    assert not torch.allclose(decoder(maps.levels, maps.grid + 1, (64, 64)), before)
    *skips, deepest = maps.levels  # the grid itself, which counts once
    assert torch.equal(decoder([*skips, deepest + 1], maps.grid, (64, 64)), before)


def test_without_levels_the_grid_alone_is_upsampled() -> None:
    shape = build("unet4").shape
    bare = FeatureShape(shape.dim, shape.grid_channels, shape.grid_stride)
    decoder = make_decoder(bare).eval()
    assert len(decoder.steps) == 3  # strides 8, 4, 2
    grid = pixels(1, 64, 4, 4)
    assert decoder([], grid, (64, 64)).shape == (1, 3, 64, 64)
    skipped = make_decoder(shape).eval()
    levels = [torch.zeros(1, level.channels, 64 // level.stride, 64 // level.stride) for level in shape.levels]
    assert not torch.allclose(skipped(levels, grid, (64, 64)), decoder([], grid, (64, 64)))


def test_finest_level_of_a_unet_is_not_resized() -> None:
    """A change of one pixel of the first level stays within the two 3 x 3 convolutions."""
    encoder = build().eval()
    decoder = make_decoder(encoder.shape).eval()
    maps = encoder(pixels(1, 1, 32, 32), levels=True)
    changed = [maps.levels[0].clone(), *maps.levels[1:]]
    changed[0][0, :, 10, 20] += 1
    moved = (decoder(changed, maps.grid, (32, 32)) - decoder(maps.levels, maps.grid, (32, 32))).abs().sum(
        dim=(0, 1)
    ) > 0
    rows, columns = moved.nonzero().T
    assert moved[10, 20]
    assert (int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())) == (8, 12, 18, 22)


def test_other_strides(tmp_path: Path) -> None:
    """Levels of one stride, and a stride of four to the first: a ResNet without its pooling, and a ConvNext."""
    resnet = build("r18w32", stem_pool=False)
    assert [level.stride for level in resnet.shape.levels][:2] == [2, 2]
    ConvNextV2Config(
        hidden_sizes=[4, 8, 8], depths=[1, 1, 1], num_stages=3, out_features=["stage1", "stage3"]
    ).save_pretrained(tmp_path)
    convnext = build(str(tmp_path))
    assert [level.stride for level in convnext.shape.levels] == [4, 16]
    for encoder in (resnet, convnext):
        for size in ((64, 64), (50, 70)):
            assert scores(encoder, make_decoder(encoder.shape), pixels(2, 1, *size)).shape == (2, 3, *size)


def test_maps_that_were_rounded_stay_in_place() -> None:
    x = torch.arange(6.0).view(1, 1, 2, 3)
    assert _fit(x, 2, 3).equal(x)
    assert _fit(x, 1, 2).tolist() == [[[[0, 1]]]]
    assert _fit(x, 3, 4).tolist() == [[[[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5]]]]
    assert _fit(x, 1, 4).tolist() == [[[[0, 1, 2, 2]]]]


def test_decoder_is_fresh_and_a_function_of_the_seed() -> None:
    encoder = build()
    decoder, same = make_decoder(encoder.shape), make_decoder(encoder.shape)
    state, other = decoder.state_dict(), same.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in state.items())
    another = MaskDecoder(encoder.shape, 3)
    assert any(not torch.equal(tensor, another.state_dict()[name]) for name, tensor in state.items())
    assert not any(name.startswith("decoder") for name in encoder.state_dict())


def test_decoder_refuses_other_levels() -> None:
    encoder = build()
    maps = encoder(pixels(1, 1, 32, 32), levels=True)
    decoder = make_decoder(encoder.shape)
    with pytest.raises(
        EncoderError, match=r"expected the encoder's levels, of \[4, 8, 16, 32, 64\] channels, found \[\]"
    ):
        decoder([], maps.grid, (32, 32))


def test_decoder_learns_a_mask_that_stands_in_the_image() -> None:
    """Thirty steps on one image separate a bright square from the rest, pixel by pixel."""
    encoder = build()
    decoder = make_decoder(encoder.shape, num_classes=2)
    mask = torch.zeros(1, 32, 32, dtype=torch.int64)
    mask[0, 9:20, 4:15] = 1
    images = 0.2 + 0.6 * mask.unsqueeze(1).float() + 0.1 * pixels(1, 1, 32, 32)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(scores(encoder, decoder, images), mask)
        torch.autograd.backward(loss)
        optimizer.step()
    assert (scores(encoder, decoder, images).argmax(1) == mask).float().mean() > 0.99
