"""Encoders of volumes: the same numbers as MONAI's nets, a folder for each, what is inflated, and what is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from bolus.embedding.opening import open_encoder
from bolus.encoders.backbone import Encoder, seeded
from bolus.encoders.building import build_encoder
from bolus.encoders.families.hub import find_config, is_named, make_backbone
from bolus.encoders.families.unet import MaskDecoder
from bolus.encoders.features import FeatureShape, LevelShape
from bolus.encoders.folders.folder import load_encoder, save_encoder
from bolus.encoders.modalities import ModalityEncoders, check_unit
from bolus.encoders.volumes.inflation import inflate_weights
from bolus.encoders.volumes.resnet3d import ARCHITECTURES
from bolus.errors import BolusError, EncoderError, OutOfMemoryError, RecipeError
from bolus.optimization import lr_scales
from bolus.recipe import EncoderSpec, Recipe
from bolus.training.memory import explain_memory

SMALL = {
    "a ResNet-10": {"backbone": "r10w4_3d"},
    "a ResNet-18": {"backbone": "r18w4_3d"},
    "a ResNet-50": {"backbone": "r50w2_3d"},
    "a U-Net": {"backbone": "unet3d2"},
    "a Swin-UNETR": {"backbone": "swin_unetr12"},
    "a ResNet of images": {"backbone": "r18w32", "inflated": True},
    "a U-Net of images": {"backbone": "unet2", "inflated": True},
    "context blocks and a neck": {"backbone": "r10w4_3d", "context": True, "neck": 5, "stem_pool": False},
}
EXACT = {"rtol": 1e-10, "atol": 1e-10}  # in float64


def build(seed: int = 3, **keys: Any) -> Encoder:
    return build_encoder(EncoderSpec(**keys), seed=seed)


def voxels(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def with_statistics(net: nn.Module) -> nn.Module:
    """Norms that cannot be passed by."""
    for number, module in enumerate(net.modules()):
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean = voxels(module.num_features, seed=number) - 0.5
            module.running_var = voxels(module.num_features, seed=number + 1) + 0.5
    return net


# --- every family


@pytest.mark.parametrize("keys", SMALL.values(), ids=SMALL.keys())
def test_maps_are_of_the_shapes_that_were_announced(keys: dict[str, Any]) -> None:
    encoder = build(**keys).eval()
    assert (encoder.dimensions, encoder.shape.dimensions, encoder.config.dimensions) == (3, 3, 3)
    for sides in [(16, 16, 16), (16, 32, 20)]:
        with torch.no_grad():
            maps = encoder(voxels(2, 1, *sides), levels=True)
        assert maps.pooled.shape == (2, encoder.shape.dim)
        assert maps.grid.shape[:2] == (2, encoder.shape.grid_channels)
        assert len(maps.levels) == len(encoder.shape.levels) == 5
        assert torch.equal(maps.levels[-1], maps.grid)
        for level, found in zip(encoder.shape.levels, maps.levels, strict=True):
            assert found.shape[:2] == (2, level.channels)
            for side, length, stride in zip(sides, found.shape[2:], level.strides, strict=True):
                assert length in (side // stride, -(-side // stride))
        if encoder.spec.neck is None:
            torch.testing.assert_close(maps.pooled, maps.grid.mean(dim=(2, 3, 4)))


@pytest.mark.parametrize("keys", SMALL.values(), ids=SMALL.keys())
def test_a_folder_gives_the_same_encoder_and_a_twin_a_fresh_one(keys: dict[str, Any], tmp_path: Path) -> None:
    encoder = build(**keys).eval()
    with_statistics(encoder)
    save_encoder(encoder, tmp_path / "e", preprocessing={"size": 32})
    loaded, contract = load_encoder(tmp_path / "e")
    volumes = voxels(2, 1, 16, 16, 24)
    with torch.no_grad():
        wanted = encoder(volumes)
        assert torch.equal(loaded(volumes).pooled, wanted.pooled)
        again = build(**{**keys, "backbone": str(tmp_path / "e"), "pretrained": True}, seed=9).eval()
        assert torch.equal(again(volumes).pooled, wanted.pooled)
        assert torch.equal(copy.deepcopy(loaded)(volumes).grid, wanted.grid)
        twin, same, other = (loaded.twin(seed=seed).eval() for seed in (1, 1, 2))
        assert torch.equal(twin(volumes).pooled, same(volumes).pooled)
        assert not torch.equal(twin(volumes).pooled, other(volumes).pooled)
    assert contract == {"size": 32}
    assert twin.shape == encoder.shape == loaded.shape


@pytest.mark.parametrize("keys", SMALL.values(), ids=SMALL.keys())
def test_computing_activations_again_changes_neither_gradients_nor_statistics(keys: dict[str, Any]) -> None:
    plain, again = (build(**keys).double() for _ in range(2))
    again.checkpoint_activations()
    again = copy.deepcopy(again)
    volumes = voxels(3, 1, 16, 16, 16).double()
    found = []
    for encoder in (plain, again):
        maps = encoder(volumes, levels=True)
        (maps.pooled.square().sum() + maps.levels[1].square().sum()).backward()
        found.append({name: parameter.grad for name, parameter in encoder.named_parameters()})
    for name, gradient in found[0].items():
        if gradient is None:
            assert found[1][name] is None
        else:
            torch.testing.assert_close(found[1][name], gradient, **EXACT)
    for (name, one), (_, other) in zip(plain.named_buffers(), again.named_buffers(), strict=True):
        assert torch.equal(one, other), name


def test_less_is_kept_for_the_way_back() -> None:
    def kept(encoder: Encoder) -> int:
        held: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            _ = encoder(voxels(2, 1, 32, 32, 32)).pooled
        return sum(held.values())

    plain, again = (build(backbone="unet3d8") for _ in range(2))
    again.checkpoint_activations()
    assert kept(again) < 0.5 * kept(plain)


def test_where_memory_is_short_both_ways_are_named() -> None:
    wanted = r"activation_checkpointing=true.*sampling.chunk=16"
    with pytest.raises(OutOfMemoryError, match=wanted), explain_memory(Recipe.load("simclr_3d")):
        raise MemoryError


@pytest.mark.parametrize("keys", SMALL.values(), ids=SMALL.keys())
def test_blocks_are_known_to_unfrozen_and_to_rates(keys: dict[str, Any]) -> None:
    encoder = build(**keys, unfrozen=1)
    assert encoder.num_blocks in (4, 5)
    trained = {name.split(".")[2] for name, p in encoder.named_parameters() if p.requires_grad and ".stages." in name}
    assert trained == {str(encoder.num_blocks - 1)} or keys["backbone"] == "r18w32"
    whole = build(**keys)
    scales = lr_scales({"encoder": whole}, 0.5)
    depths = {whole.depth_of(name) for name, _ in whole.named_parameters()}
    assert max(depths) <= encoder.num_blocks + 1
    assert set(scales.values()) == {0.5 ** (encoder.num_blocks + 1 - depth) for depth in depths}
    assert len(depths) >= encoder.num_blocks


@pytest.mark.parametrize("keys", SMALL.values(), ids=SMALL.keys())
def test_one_volume_alone_has_no_statistics_of_its_own(keys: dict[str, Any]) -> None:
    encoder = build(**keys)
    volume = voxels(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(encoder(volume).pooled, encoder.eval()(volume).pooled)


def test_views_of_volumes_go_through_together() -> None:
    encoder = build(backbone="unet3d2").eval()
    views = {"CT": voxels(2, 2, 1, 16, 16, 16), "MR": voxels(2, 1, 1, 16, 32, 16, seed=1)}
    rows = {"CT": torch.tensor([2, 0]), "MR": torch.tensor([1])}
    with torch.no_grad():
        features = encoder.encode(views, rows, levels=True, grid=True)
        for view in range(2):
            for name, at in rows.items():
                for place, row in enumerate(at.tolist()):
                    alone = encoder(views[name][view, place][None], levels=True)
                    torch.testing.assert_close(features.pooled[view, row], alone.pooled[0])
                    torch.testing.assert_close(features.grid[name][view, place], alone.grid[0])
                    torch.testing.assert_close(features.levels[name][1][view, place], alone.levels[1][0])


# --- the same numbers as MONAI's nets


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_resnet_is_monai_s(architecture: str, tmp_path: Path) -> None:
    from monai.networks.nets.resnet import ResNet

    block, depths, shortcut, bias = ARCHITECTURES[architecture]
    with seeded(1):
        theirs = ResNet(
            block, list(depths), [4, 8, 16, 32], n_input_channels=1, conv1_t_stride=2, shortcut_type=shortcut,
            bias_downsample=bias, num_classes=3,
        )  # fmt: skip
    with_statistics(theirs).eval()
    (tmp_path / "net").mkdir()
    save_file(
        {f"module.{key}": value for key, value in theirs.state_dict().items()}, tmp_path / "net/model.safetensors"
    )
    stated = {"model_type": "bolus_resnet3d", "architecture": architecture, "width": 4}
    (tmp_path / "net/config.json").write_text(json.dumps(stated))
    encoder = build(backbone=str(tmp_path / "net"), pretrained=True, mean=[0.0], std=[1.0]).eval()
    wanted: list[Tensor] = []
    for layer in (theirs.act, theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
        layer.register_forward_hook(lambda module, inputs, output: wanted.append(output.clone()))
    volumes = voxels(2, 1, 33, 32, 48)
    with torch.no_grad():
        theirs(volumes)
        maps = encoder(volumes, levels=True)
    for found, each in zip(maps.levels, wanted[:1] + wanted[-4:], strict=True):
        torch.testing.assert_close(found, each, rtol=1e-4, atol=1e-4)


def test_gradients_go_through_every_shortcut() -> None:
    """MONAI's shortcuts of kind A leave the gradient out."""
    encoder = build(backbone="r18w4_3d").double().eval()
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if ".stages.1.0.bn2" in name or ".stages.1.0.conv2" in name:
                weight.zero_()  # only the shortcut is left in that block
    maps = encoder(voxels(1, 1, 32, 32, 32).double(), levels=True)
    maps.grid.sum().backward()
    gradient = encoder.backbone.get_submodule("stem.0").weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0


@pytest.fixture
def without_einops(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """MONAI's `rearrange` of the two patterns that it needs, where the package einops is not installed."""
    import monai.networks.nets.swin_unetr as nets

    def rearrange(x: Tensor, pattern: str) -> Tensor:
        before, after = (each.split() for each in pattern.split("->"))
        return x.permute(*(before.index(axis) for axis in after))

    monkeypatch.setattr(nets, "rearrange", rearrange)
    return


@pytest.mark.usefixtures("without_einops")
@pytest.mark.parametrize("sides", [(16, 16, 16), (28, 18, 32)])
def test_a_swin_unetr_is_monai_s(sides: tuple[int, ...], tmp_path: Path) -> None:
    from monai.networks.nets.swin_unetr import SwinTransformer

    with seeded(1):
        theirs = SwinTransformer(1, 12, (7, 7, 7), (2, 2, 2), (2, 2, 2, 2), (3, 6, 12, 24)).eval()
    (tmp_path / "net").mkdir()
    state = {f"swinViT.{key}": value for key, value in theirs.state_dict().items()}
    save_file({**state, "encoder1.layer.conv1.conv.weight": torch.ones(1)}, tmp_path / "net/model.safetensors")
    stated = {"model_type": "bolus_swin_unetr", "feature_size": 12}
    (tmp_path / "net/config.json").write_text(json.dumps(stated))
    encoder = build(backbone=str(tmp_path / "net"), pretrained=True, mean=[0.0], std=[1.0]).eval()
    volumes = voxels(1, 1, *sides)
    with torch.no_grad():
        wanted = theirs(volumes.contiguous(), normalize=True)
        found = encoder(volumes, levels=True).levels
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_unet_is_its_layers_by_hand() -> None:
    encoder = build(backbone="unet3d2").eval()
    with_statistics(encoder)
    volumes = voxels(2, 1, 18, 16, 32)
    x = (volumes - 0.5) / 0.25
    convolutions = [module for module in encoder.modules() if isinstance(module, nn.Conv3d)]
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm3d)]
    expected = []
    for place, convolution in enumerate(convolutions):
        if place in (2, 4, 6, 8):
            x = F.max_pool3d(x, 2)
        x = F.conv3d(x, convolution.weight, convolution.bias, padding=1)
        if place < 8:
            mean, var = norms[place].running_mean, norms[place].running_var
            assert mean is not None
            assert var is not None
            x = (x - mean.view(-1, 1, 1, 1)) / (var.view(-1, 1, 1, 1) + norms[place].eps).sqrt()
            x = torch.where(x > 0, x, 0.01 * x)
        else:
            x = x.clamp_min(0)
        expected += [x] if place % 2 else []
    with torch.no_grad():
        for found, wanted in zip(encoder(volumes, levels=True).levels, expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_context_blocks_are_the_formula_over_three_axes() -> None:
    block = build(backbone="r10w4_3d", context=True).context[1].double()
    x = torch.randn(2, 4, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for n in range(2):
            squeeze, excite = block.squeeze.weight[..., 0, 0, 0], block.excite.weight[..., 0, 0, 0]
            mean = torch.stack([x[n, c].mean() for c in range(4)])
            most = torch.stack([x[n, c].max() for c in range(4)])
            gate = torch.sigmoid(excite @ (squeeze @ mean).relu() + excite @ (squeeze @ most).relu())
            y = x[n] * gate.view(4, 1, 1, 1)
            summary = F.pad(torch.stack([y.mean(0), y.amax(0)]), [3] * 6)
            spatial = torch.zeros(3, 5, 4, dtype=torch.float64)
            for d in range(3):
                for h in range(5):
                    for w in range(4):
                        seen = summary[:, d : d + 7, h : h + 7, w : w + 7]
                        spatial[d, h, w] = (seen * block.spatial.weight[0]).sum()
            torch.testing.assert_close(block(x)[n], y * spatial.sigmoid(), **EXACT)


# --- a folder of a pretrained net


def write_net(folder: Path, state: dict[str, Tensor] | None, **stated: Any) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "bolus_resnet3d", "architecture": "resnet10", **stated})
    )
    if state is not None:
        save_file(state, folder / "model.safetensors")
    return str(folder)


def test_a_net_that_states_no_box_is_not_opened_and_what_to_do_is_said(tmp_path: Path) -> None:
    folder = write_net(tmp_path / "net", make_backbone(find_config("r10w4_3d"), "r10w4_3d").state_dict(), width=4)
    with pytest.raises(EncoderError, match=r"does not state the box .* pretrain from it \(images\.unit=volume"):
        open_encoder(folder)


def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path) -> None:
    state = make_backbone(find_config("r10w4_3d"), "r10w4_3d").state_dict()
    few = {key: value for key, value in state.items() if "stages.3" not in key}
    more = {**state, "strange.weight": torch.ones(1)}
    cases = {
        "expected model.safetensors beside config.json": ("none", None, {"width": 4}),
        "lacks .* weights of a bolus_resnet3d backbone, the first stages.3": ("few", few, {"width": 4}),
        r"other shapes than the bolus_resnet3d that config.json states: .* expected \[8\], found \[4\]": (
            "wide",
            state,
            {"width": 8},
        ),
        "1 weights .* no part of the bolus_resnet3d .* strange.weight": ("more", more, {"width": 4}),
        "expected architecture one of resnet10.*found 'resnet11'": ("name", state, {"architecture": "resnet11"}),
    }
    for message, (name, weights, stated) in cases.items():
        folder = write_net(tmp_path / name, weights, **stated)
        with pytest.raises(EncoderError, match=message):
            build(backbone=folder, pretrained=True)
    (tmp_path / "none/resnet_10.pth").write_bytes(b"")
    with pytest.raises(EncoderError, match=r"resnet_10.pth is a pickle, which is not opened: docs/volumes.md"):
        build(backbone=str(tmp_path / "none"), pretrained=True)
    with pytest.raises(EncoderError, match="'r10w4_3d' has no published weights"):
        build(backbone="r10w4_3d", pretrained=True)
    with pytest.raises(EncoderError, match="multiple of 12 features, found 20"):
        build(backbone="swin_unetr20")
    assert is_named("unet3d16")
    assert not is_named("unet3d0")


# --- inflation


@pytest.mark.parametrize("backbone", ["r18w32", "efficientnet_lite0", "unet4"])
def test_a_volume_that_is_constant_in_depth_gives_what_the_net_gives_of_a_slice(backbone: str) -> None:
    """In the interior, which no zero of the padding reaches: all of the net, by a volume that is long enough."""
    flat = build(backbone=backbone).eval()
    with_statistics(flat)
    flat.double()
    state = {key: value.clone() for key, value in flat.state_dict().items()}
    thick = build(backbone=backbone, inflated=True).double().eval()
    thick.load_state_dict(inflate_weights(state, thick.state_dict()))
    image, depth = voxels(1, 1, 32, 32).double(), 1024  # EfficientNet-lite0 sees 851 pixels of an axis
    with torch.no_grad():
        wanted = flat(image, levels=True)
        found = thick(image[:, :, None].expand(-1, -1, depth, -1, -1), levels=True)
    for one, other in zip(found.levels, wanted.levels, strict=True):
        middle = one[:, :, one.shape[2] // 2]
        torch.testing.assert_close(middle, other, rtol=1e-8, atol=1e-8)


def test_inflated_weights_are_those_that_were_loaded(tmp_path: Path) -> None:
    flat = build(backbone="r18w32", context=True, neck=6).eval()
    with_statistics(flat)
    save_encoder(flat, tmp_path / "flat", preprocessing={})
    keys: dict[str, Any] = {"backbone": str(tmp_path / "flat"), "pretrained": True, "context": True, "neck": 6}
    thick = build(**keys, inflated=True)
    given = flat.state_dict()
    for name, weight in thick.state_dict().items():
        if weight.ndim == 5:
            torch.testing.assert_close(weight.sum(dim=2), given[name])
            assert torch.equal(weight[:, :, 0], weight[:, :, -1])
        else:
            assert torch.equal(weight, given[name])
    save_encoder(thick.eval(), tmp_path / "thick", preprocessing={})
    with pytest.raises(EncoderError, match=r"thick was inflated: set encoder.inflated=true"):
        build(**{**keys, "backbone": str(tmp_path / "thick")})
    assert load_encoder(tmp_path / "thick")[0].spec.inflated


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("vit_tiny", "expected a convolutional backbone that bolus can inflate .*found vit_tiny, a dinov2"),
        ("convnext_atto", "found convnext_atto, a convnext"),
        ("unet3d2", "encoder.inflated: unet3d2 is of volumes already"),
    ],
)
def test_what_cannot_be_inflated_is_refused(backbone: str, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        build(backbone=backbone, inflated=True)


# --- what does not fit


def test_other_images_than_volumes_are_refused() -> None:
    encoder = build(backbone="unet3d2")
    for wrong in (
        torch.rand(2, 1, 32, 32),
        torch.rand(2, 3, 16, 16, 16),
        torch.zeros(2, 1, 16, 16, 16, dtype=torch.int64),
    ):
        with pytest.raises(EncoderError, match=r"expected volumes \[B, 1, D, H, W\] of floats"):
            encoder(wrong)
    with pytest.raises(EncoderError, match="no frame_mask for volumes"):
        encoder(torch.rand(2, 1, 16, 16, 16), frame_mask=torch.ones(2, 16, dtype=torch.bool))
    with pytest.raises(EncoderError, match="at least 16 x 16 x 16 pixels"):
        encoder(torch.rand(2, 1, 8, 16, 16))
    with pytest.raises(EncoderError, match=r"encoder.temporal_shift: r10w4_3d sees a volume at once"):
        build(backbone="r10w4_3d", temporal_shift=8)
    with pytest.raises(EncoderError, match="images alone, or of volumes alone"):
        ModalityEncoders({"CT": build(backbone="unet3d2"), "XR": build(backbone="unet2")})


def test_units_and_encoders_fit() -> None:
    check_unit(build(backbone="unet3d2"), "volume")
    check_unit(build(backbone="unet2"), "clip")
    with pytest.raises(RecipeError, match=r"set images.unit=volume"):
        check_unit(build(backbone="unet3d2"), "clip")
    with pytest.raises(RecipeError, match=r"encoder.inflated=true where it is convolutional"):
        check_unit(build(backbone="unet2"), "volume")


def test_old_recipes_hash_as_they_did() -> None:
    recipe = Recipe.load("simclr")
    assert recipe.digest == recipe.override(["encoder.inflated=false"]).digest
    assert recipe.digest != recipe.override(["encoder.inflated=true"]).digest


# --- encoders of one's own


OWN = """
from torch import nn


def maps(in_channels, width=4):
    convolution = nn.Conv3d(in_channels, width, 3, stride=(1, 2, 2), padding=1)
    return nn.Sequential(convolution, nn.BatchNorm3d(width), nn.ReLU())


class Vectors(nn.Module):
    def __init__(self, in_channels):
        super().__init__()
        self.body = maps(in_channels)

    def forward(self, x):
        return self.body(x).mean((2, 3, 4))


def vectors(in_channels):
    return Vectors(in_channels)


def wrong(in_channels):
    return nn.Sequential(maps(in_channels), nn.Flatten(2))
"""


def test_a_factory_of_one_s_own_may_make_a_net_of_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_volumes.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    encoder = build(backbone="own_volumes:maps", arguments={"width": 6}).eval()
    assert encoder.shape.grid_strides == (1, 2, 2)
    assert encoder.shape.levels == (LevelShape(6, 0, "map1", (1, 2, 2)),)
    volumes = voxels(2, 1, 5, 8, 8)
    assert encoder(volumes).grid.shape == (2, 6, 5, 4, 4)
    save_encoder(encoder, tmp_path / "e", preprocessing={})
    assert torch.equal(load_encoder(tmp_path / "e")[0](volumes).pooled, encoder(volumes).pooled)
    assert build(backbone="own_volumes:vectors")(volumes).grid.shape == (2, 4, 1, 1, 1)
    with pytest.raises(BolusError, match=r"expected \[B, C, d, h, w\], \[B, D\] or a list of maps"):
        build(backbone="own_volumes:wrong")
    theirs = {"backbone": "monai.networks.nets:DenseNet121"}
    arguments = {"spatial_dims": 3, "out_channels": 7, "init_features": 4, "growth_rate": 2, "block_config": [1, 1]}
    assert build(**theirs, arguments=arguments)(volumes.repeat(1, 1, 4, 4, 4)).pooled.shape == (2, 7)


# --- the decoder


@pytest.mark.parametrize("keys", SMALL.values(), ids=SMALL.keys())
def test_scores_of_every_voxel(keys: dict[str, Any]) -> None:
    encoder = build(**keys).eval()
    with seeded(5):
        decoder = MaskDecoder(encoder.shape, 3)
    for sides in [(16, 16, 16), (18, 16, 29)]:
        maps = encoder(voxels(2, 1, *sides), levels=True)
        found = decoder(maps.levels, maps.grid, sides)
        assert found.shape == (2, 3, *sides)
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())


def test_each_axis_is_upsampled_by_its_own_ratio() -> None:
    levels = (LevelShape(3, 0, "fine", (1, 2, 2)), LevelShape(4, 0, "middle", (1, 4, 4)))
    shape = FeatureShape(5, 5, 0, levels, grid_strides=(2, 8, 8), dimensions=3)
    maps = [voxels(1, 3, 6, 16, 16), voxels(1, 4, 6, 8, 8), voxels(1, 5, 3, 4, 4)]
    decoder = MaskDecoder(shape, 2)
    assert [step.upsample.deconv.stride for step in decoder.steps] == [(2, 2, 2), (1, 2, 2)]
    assert decoder(maps[:2], maps[2], (6, 32, 32)).shape == (1, 2, 6, 32, 32)
    alone = MaskDecoder(FeatureShape(8, 8, 0, grid_strides=(2, 8, 8), dimensions=3), 2)
    assert alone([], voxels(1, 8, 3, 4, 4), (6, 32, 32)).shape == (1, 2, 6, 32, 32)


def test_over_constant_depth_the_decoder_of_volumes_is_that_of_images() -> None:
    """With its kernels spread over depth, in the interior."""
    flat, thick = (build(backbone="unet2", **keys).double().eval() for keys in ({}, {"inflated": True}))
    thick.load_state_dict(inflate_weights(flat.state_dict(), thick.state_dict()))
    with seeded(5):
        decoders = [MaskDecoder(encoder.shape, 3).double().eval() for encoder in (flat, thick)]
    state = {
        name: weight[:, :, None].repeat(1, 1, 2, 1, 1) if "upsample" in name and weight.ndim == 4 else weight
        for name, weight in decoders[0].state_dict().items()
    }
    decoders[1].load_state_dict(inflate_weights(state, decoders[1].state_dict()))
    image = voxels(1, 1, 16, 16).double()
    with torch.no_grad():
        maps = flat(image, levels=True)
        wanted = decoders[0](maps.levels, maps.grid, (16, 16))
        maps = thick(image[:, :, None].expand(-1, -1, 256, -1, -1), levels=True)
        found = decoders[1](maps.levels, maps.grid, (256, 16, 16))
    torch.testing.assert_close(found[:, :, 128], wanted, rtol=1e-8, atol=1e-8)
