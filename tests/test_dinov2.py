"""Vision transformers, DINOv2 above all: published sizes, folders, other image sizes, frozen blocks, checkpointing."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoBackbone,
    ConvNextConfig,
    ConvNextV2Config,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ConvNextConfig,
    DINOv3ViTConfig,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    VitDetConfig,
)

from bolus.encoders.backbone import Encoder
from bolus.encoders.building import build_encoder, external_encoder
from bolus.encoders.families.efficientnet import EfficientNetLiteConfig
from bolus.encoders.families.hub import NAMED, PUBLISHED, config_side, find_config
from bolus.encoders.families.known import FAMILIES
from bolus.encoders.families.vit import PlainViTConfig
from bolus.encoders.folders.folder import load_encoder, save_encoder
from bolus.encoders.volumes.resnet3d import ResNet3dConfig
from bolus.encoders.volumes.swin_unetr import SwinUnetrConfig
from bolus.encoders.volumes.unet3d import UNet3dConfig
from bolus.errors import EncoderError, OutOfMemoryError, RecipeError
from bolus.recipe import CombinerSpec, EncoderSpec, Recipe
from bolus.training.gradients.combiner import Combiner
from bolus.training.loop import pretrain
from bolus.training.memory import explain_memory

VIT = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_ratio": 2, "initializer_range": 0.5}
PROCESSOR = {
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "size": {"shortest_edge": 40},
    "crop_size": {"height": 28, "width": 28},
    "do_center_crop": True,
}


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def config_of(kind: str = "dinov2", **keys: Any) -> Any:
    """A transformer of three blocks, patches of 7 pixels and positions of 28."""
    keys = VIT | {"patch_size": 7, "image_size": 28} | keys
    if kind == "dinov2_with_registers":
        return Dinov2WithRegistersConfig(num_register_tokens=2, **keys)
    return Dinov2Config(**keys)


def save_model(folder: Path, kind: str = "dinov2", road: str = "model", **keys: Any) -> nn.Module:
    """A model with random weights, saved by transformers with its processor; what it was saved from."""
    config = config_of(kind, **keys)
    torch.manual_seed(0)
    if road == "backbone":
        model = AutoBackbone.from_config(config)
    elif road == "classifier":
        model = Dinov2ForImageClassification(config)
    else:
        model = (Dinov2WithRegistersModel if kind == "dinov2_with_registers" else Dinov2Model)(config)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    saved: nn.Module = model.eval()
    return saved


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """The name of a folder with a small DINOv2, random weights."""
    save_model(tmp_path / "tiny")
    return str(tmp_path / "tiny")


def build(**keys: Any) -> Encoder:
    return build_encoder(EncoderSpec(**keys), seed=3)


# --- names and folders


@pytest.mark.parametrize(
    ("name", "width", "blocks", "heads", "millions"),
    [("small", 384, 12, 6, 22.06), ("base", 768, 12, 12, 86.58), ("large", 1024, 24, 16, 304.37)],
)
def test_named_configurations_are_the_published_ones(
    name: str, width: int, blocks: int, heads: int, millions: float
) -> None:
    config = find_config(f"dinov2_{name}")
    found = config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.patch_size
    assert (*found, config_side(config)) == (width, blocks, heads, 14, 518)
    with torch.device("meta"):
        model = AutoBackbone.from_config(config)
    assert model.embeddings.position_embeddings.shape == (1, 37 * 37 + 1, width)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    assert PUBLISHED[f"dinov2_{name}"] == f"facebook/dinov2-{name}"


def test_published_weights_are_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = tmp_path / "models--facebook--dinov2-small"
    save_model(cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    by_name = build(backbone="dinov2_small", pretrained=True, in_channels=3).eval()
    by_folder = build(backbone=str(cached / "snapshots" / ("0" * 40)), pretrained=True, in_channels=3).eval()
    assert torch.equal(by_name(pixels(1, 3, 28, 28)).pooled, by_folder(pixels(1, 3, 28, 28)).pooled)
    by_hub, _ = external_encoder("facebook/dinov2-small")
    for key, tensor in by_hub.backbone.state_dict().items():
        assert torch.equal(by_name.backbone.state_dict()[key], tensor), key
    with pytest.raises(EncoderError, match="tried hub name facebook/dinov2-large"):
        build(backbone="dinov2_large", pretrained=True)
    assert set(PUBLISHED) <= set(NAMED)


@pytest.mark.parametrize(
    ("kind", "road"),
    [("dinov2", "model"), ("dinov2", "backbone"), ("dinov2", "classifier"), ("dinov2_with_registers", "model")],
)
def test_a_saved_folder_opens_like_a_hub_name(tmp_path: Path, kind: str, road: str) -> None:
    model = save_model(tmp_path, kind, road)
    images = pixels(2, 3, 28, 42)
    mean, std = (torch.tensor(PROCESSOR[f"image_{key}"]).view(3, 1, 1) for key in ("mean", "std"))
    external, contract = external_encoder(tmp_path)
    assert contract == {"size": 28}
    assert external.spec.mean == PROCESSOR["image_mean"]
    keys = {"mean": PROCESSOR["image_mean"], "std": PROCESSOR["image_std"], "in_channels": 3}
    started = build(backbone=str(tmp_path), pretrained=True, **keys).eval()
    with torch.no_grad():
        found = [encoder(images) for encoder in (external, started)]
        if road == "backbone":
            expected_grid = model((images - mean) / std).feature_maps[-1]
        else:
            tokens = getattr(model, "dinov2", model)((images - mean) / std).last_hidden_state
            expected_grid = tokens[:, -4 * 6 :].transpose(1, 2).unflatten(2, (4, 6))
            torch.testing.assert_close(found[0].pooled, tokens[:, 0])
    for maps in found:
        torch.testing.assert_close(maps.grid, expected_grid)
        torch.testing.assert_close(maps.pooled, found[0].pooled)
    fresh = build(backbone=str(tmp_path), **keys).eval()
    assert not torch.allclose(fresh(images).pooled, found[0].pooled), "the architecture alone"


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers"])
def test_missing_weights_are_refused(tmp_path: Path, kind: str) -> None:
    save_model(tmp_path, kind)
    config_of(kind, num_hidden_layers=4).save_pretrained(tmp_path)
    for call in (external_encoder, lambda name: build(backbone=name, pretrained=True)):
        with pytest.raises(EncoderError, match=rf"lacks \d+ weights of a {kind} backbone.*encoder.layer.3"):
            call(str(tmp_path))


def test_another_normalisation_than_the_weights_had_is_said(tiny: str, caplog: pytest.LogCaptureFixture) -> None:
    mean, std = PROCESSOR["image_mean"], PROCESSOR["image_std"]
    build(backbone=tiny, pretrained=True, mean=mean, std=std)
    build(backbone=tiny, pretrained=True, mean=[0.45], std=[0.225])  # grey
    build(backbone=tiny)
    assert not caplog.records
    build(backbone=tiny, pretrained=True, std=std, mean=[0.5, 0.5, 0.5])
    assert "was trained with mean [0.485, 0.456, 0.406] and goes on with [0.5, 0.5, 0.5]" in caplog.text
    assert "std" not in caplog.text


# --- other sizes


@pytest.mark.parametrize("size", [(28, 28), (7, 7), (14, 63), (224, 224), (56, 28)])
def test_positions_are_interpolated_to_any_multiple_of_the_patch(tiny: str, size: tuple[int, int]) -> None:
    encoder = build(backbone=tiny, pretrained=True, in_channels=3, mean=[0.0], std=[1.0]).eval()
    model = Dinov2Model.from_pretrained(tiny).eval()
    images = pixels(2, 3, *size)
    with torch.no_grad():
        maps, tokens = encoder(images), model(images).last_hidden_state
    torch.testing.assert_close(maps.pooled, tokens[:, 0])
    assert maps.grid.shape == (2, 16, size[0] // 7, size[1] // 7)
    torch.testing.assert_close(maps.grid.flatten(2), tokens[:, 1:].transpose(1, 2))


def test_a_constant_image_is_constant_at_every_size_where_positions_are(tiny: str) -> None:
    """Interpolation leaves equal positions equal, so that the size itself tells the encoder nothing."""
    encoder = build(backbone=tiny, pretrained=True).eval()
    positions = encoder.backbone.embeddings.position_embeddings
    with torch.no_grad():
        positions[:, 1:] = positions[:, 1:2].clone()
        expected = encoder(torch.full((1, 1, 28, 28), 0.3)).grid[:, :, :1, :1]
        for side in (14, 49, 98):
            grid = encoder(torch.full((1, 1, side, side), 0.3)).grid
            torch.testing.assert_close(grid, grid[:, :, :1, :1].expand_as(grid))
        torch.testing.assert_close(encoder(torch.full((1, 1, 28, 28), 0.3)).grid, expected.expand(-1, -1, 4, 4))


@pytest.mark.parametrize(
    ("size", "near"), [((28, 30), "near 30 there are 28 and 35"), ((5, 28), "near 5 there is 7"), ((29, 28), "28 and")]
)
def test_images_that_patches_do_not_cover_are_refused(tiny: str, size: tuple[int, int], near: str) -> None:
    encoder = build(backbone=tiny).eval()
    with pytest.raises(EncoderError, match=rf"multiples of 7 pixels.*found {size[0]} x {size[1]}.*{near}"):
        encoder(pixels(1, 1, *size))


def test_a_run_at_such_a_size_is_refused_before_it_begins(
    tiny_cohort: Path, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    keys = ["encoder={backbone: vit_tiny}", "objectives={v: {kind: contrast}}", "images.size=20"]
    with pytest.raises(EncoderError, match=r"multiples of 8 pixels.*16 and 24"):
        pretrain(tiny_cohort, recipe=small_recipe, overrides=keys, out=tmp_path / "run", cache=tmp_path, quiet=True)
    assert not (tmp_path / "run").exists()


# --- depth


CONVOLUTIONAL = ("resnet", "convnext", "dinov3_convnext", "bolus_efficientnet_lite")
OF_FOUR = ("bolus_efficientnet_lite", "bolus_resnet3d", "bolus_swin_unetr")  # blocks; the others have three


def backbones(tmp_path: Path) -> dict[str, str]:
    """One folder for each family whose blocks are known."""
    made = {
        "dinov2": config_of(),
        "dinov2_with_registers": config_of("dinov2_with_registers"),
        "dinov3_vit": DINOv3ViTConfig(
            hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, patch_size=7,
            image_size=28, pos_embed_rescale=None,  # its positions are drawn anew at each training step otherwise
        ),
        "vitdet": VitDetConfig(
            hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=7, image_size=28,
            pretrain_image_size=28,
        ),
        "bolus_efficientnet_lite": EfficientNetLiteConfig(width=0.1, depth=0.3),
        "resnet": ResNetConfig(layer_type="basic", embedding_size=4, hidden_sizes=[4, 8, 8], depths=[1, 1, 1]),
        "convnext": ConvNextConfig(hidden_sizes=[4, 8, 8], depths=[1, 1, 1], num_stages=3),
        "dinov3_convnext": DINOv3ConvNextConfig(hidden_sizes=[4, 8, 8], depths=[1, 1, 1]),
        "swin": SwinConfig(
            image_size=28, embed_dim=8, depths=[1, 1, 1], num_heads=[1, 1, 1], window_size=3, drop_path_rate=0,
        ),
        "bolus_vit": PlainViTConfig(
            hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, patch_size=7,
            image_size=28,
        ),
        "bolus_resnet3d": ResNet3dConfig(architecture="resnet10", width=8),
        "bolus_unet3d": UNet3dConfig(base_filters=2, depth=2),
        "bolus_swin_unetr": SwinUnetrConfig(feature_size=12, depths=(1, 1, 1, 1), window=2),
    }  # fmt: skip
    for name, config in made.items():
        config.save_pretrained(tmp_path / name)
    return {name: str(tmp_path / name) for name in made}


def test_every_family_with_blocks_is_tested_here(tmp_path: Path) -> None:
    assert set(backbones(tmp_path)) == {name for name, family in FAMILIES.items() if family.blocks}


@pytest.mark.parametrize("kind", sorted(name for name, family in FAMILIES.items() if family.blocks))
def test_depth_follows_the_order_in_which_modules_run(tmp_path: Path, kind: str) -> None:
    encoder = build(backbone=backbones(tmp_path)[kind], neck=5, context=kind in CONVOLUTIONAL).eval()
    ran: list[str] = []
    for name, module in encoder.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    encoder(pixels(1, 1, *[32] * 3) if encoder.shape.dimensions == 3 else pixels(1, 1, 28, 28))
    depths = [encoder.depth_of(name) for name in ran]
    assert depths == sorted(depths)
    number = 4 if kind in OF_FOUR else 3
    assert set(depths) == set(range(kind == "bolus_unet3d", number + 2)), "a U-Net has nothing before its levels"
    assert encoder.num_blocks == number
    for name, _ in encoder.named_parameters():  # no parameter hangs between the blocks and what is around them
        owner = name.rpartition(".")[0]
        within = ("layer_scale", "attention", "attn")
        assert owner in ran or owner.endswith("embeddings") or any(part in owner for part in within), name


def test_depth_where_blocks_are_not_known(tmp_path: Path) -> None:
    ConvNextV2Config(hidden_sizes=[4, 8], depths=[1, 1], num_stages=2).save_pretrained(tmp_path)
    encoder = build(backbone=str(tmp_path))
    assert encoder.num_blocks is None
    with pytest.raises(
        EncoderError,
        match="where a convnextv2 backbone keeps its blocks; it does for bolus_efficientnet_lite, bolus_resnet3d,",
    ):
        encoder.depth_of("backbone.encoder")
    with pytest.raises(EncoderError, match=r"encoder.unfrozen: bolus does not know where a convnext.*set it to null"):
        build(backbone=str(tmp_path), unfrozen=1)
    with pytest.raises(EncoderError, match=r"encoder.unfrozen.*bolus_unet"):
        build(backbone="unet4", unfrozen=1)


# --- only the last blocks are trained


def loss_of(encoder: Encoder, images: Tensor) -> Tensor:
    maps = encoder(images)
    return maps.pooled.square().sum() + maps.grid.sin().sum()


@pytest.mark.parametrize("unfrozen", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["dinov2", "dinov3_vit", "resnet"])
def test_only_the_last_blocks_and_what_follows_them_are_trained(tmp_path: Path, kind: str, unfrozen: int) -> None:
    keys = {"backbone": backbones(tmp_path)[kind], "neck": 5, "context": kind == "resnet"}
    encoder, whole = build(unfrozen=unfrozen, **keys).double(), build(**keys).double()
    images = pixels(4, 1, 28, 28)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    trained = set()
    for name, parameter in encoder.named_parameters():
        depth = encoder.depth_of(name)
        expected = name.startswith("neck") or (unfrozen > 0 and depth > 3 - unfrozen)
        assert parameter.requires_grad == expected, name
        trained |= {name} if expected else set()
    assert encoder.train().training
    for name, module in encoder.named_modules():
        if list(module.parameters()) and not any(p.requires_grad for p in module.parameters()):
            assert not module.training, name
    for name in ("backbone.embedder.pooler", "backbone.embeddings.dropout"):
        if name in dict(encoder.named_modules()):
            assert not encoder.get_submodule(name).training, "what has no parameters is as still as what has"
    loss_of(encoder, images).backward()
    if kind != "resnet":  # whose statistics are another matter: see below
        loss_of(whole, images).backward()
        theirs = dict(whole.named_parameters())
        for name, parameter in encoder.named_parameters():
            if name not in trained:
                assert parameter.grad is None, name
            elif theirs[name].grad is not None:  # DINOv2's mask token is used by nobody
                torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-10, atol=1e-10)
    moved = [
        name for name, tensor in encoder.state_dict().items() if not torch.equal(tensor, before[name])
    ]  # running statistics
    assert all("running" in name or "num_batches" in name for name in moved)
    assert all(unfrozen > 0 and encoder.depth_of(name) > 3 - unfrozen for name in moved)
    assert bool(moved) == (kind == "resnet" and unfrozen > 0)


def test_no_graph_is_kept_of_what_is_frozen(tiny: str) -> None:
    def kept(encoder: Encoder) -> int:
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss_of(encoder, pixels(4, 1, 28, 28))
        return total

    sizes = [kept(build(backbone=tiny, unfrozen=unfrozen, neck=4)) for unfrozen in (0, 1, 2, 3)]
    steps = np.diff(sizes)
    assert sizes[0] < 0.1 * steps[1], "next to nothing but the neck"
    assert steps[1] == steps[2], "a block more each time, and nothing before it"
    assert sizes[3] < kept(build(backbone=tiny, neck=4))


def test_dropped_paths_and_dropout_leave_frozen_blocks_alone(tmp_path: Path) -> None:
    config_of(drop_path_rate=0.5, hidden_dropout_prob=0.5).save_pretrained(tmp_path)
    images = pixels(8, 1, 28, 28)
    still = build(backbone=str(tmp_path), unfrozen=0).train()
    assert torch.equal(still(images).pooled, still(images).pooled)
    moving = build(backbone=str(tmp_path)).train()
    assert not torch.equal(moving(images).pooled, moving(images).pooled)


@pytest.mark.parametrize("kind", ["dinov2", "resnet"])
def test_the_spec_survives_folders_copies_and_twins(tmp_path: Path, kind: str) -> None:
    name = backbones(tmp_path)[kind]
    encoder = build(backbone=name, unfrozen=1)
    save_encoder(encoder, tmp_path / "saved", preprocessing={})
    loaded, _ = load_encoder(tmp_path / "saved")
    flags = [parameter.requires_grad for parameter in encoder.parameters()]
    modes = [module.training for module in encoder.modules()]
    for other in (loaded, copy.deepcopy(encoder), encoder.twin(seed=5)):
        assert other.spec == encoder.spec
        assert [parameter.requires_grad for parameter in other.parameters()] == flags
        assert [module.training for module in other.train().modules()] == modes
        assert not any(module.training for module in other.eval().modules())
    again = build(backbone=str(tmp_path / "saved"), pretrained=True)
    assert all(parameter.requires_grad for parameter in again.parameters()), "the spec that goes on decides"
    free = copy.deepcopy(encoder).unfreeze()
    assert free.spec.unfrozen is None
    assert all(parameter.requires_grad for parameter in free.parameters())
    assert all(module.training for module in free.train().modules())
    assert encoder.spec.unfrozen == 1


def test_more_blocks_than_there_are_are_refused(tiny: str) -> None:
    with pytest.raises(EncoderError, match=r"encoder.unfrozen: expected at most 3, the blocks of .*tiny, found 4"):
        build(backbone=tiny, unfrozen=4)
    with pytest.raises(RecipeError, match=r"encoder.unfrozen"):
        Recipe.load("simclr").override(["encoder.unfrozen=-1"])


# --- activations computed again


def losses_of(encoder: Encoder, combiner: Combiner, heads: dict[str, nn.Module], images: Tensor) -> None:
    features = encoder.encode({"XR": images}, {"XR": torch.arange(images.shape[1])}, grid=True)
    features = combiner.open(features, observe=True)
    losses = {
        "a": heads["a"](features.pooled).square().mean(),
        "b": heads["b"](features.pooled).sin().mean() + features.grid["XR"].cos().mean(),
        "c": features.grid["XR"].square().mean(),
    }
    combiner.accumulate(losses, seed=1, observe=True)
    combiner.reconcile()


@pytest.mark.parametrize("scope", ["encoder", "features"])
@pytest.mark.parametrize("kind", ["sum", "pcgrad"])
@pytest.mark.parametrize("family", ["dinov2", "dinov2_with_registers", "dinov3_vit", "vitdet", "swin", "bolus_vit"])
def test_gradients_are_the_same_with_several_objectives(tmp_path: Path, family: str, kind: str, scope: str) -> None:
    found = []
    for checkpointing in (False, True):
        encoder = build(backbone=backbones(tmp_path)[family]).double().train()
        if checkpointing:
            encoder.checkpoint_activations()
        heads = {name: nn.Linear(encoder.shape.dim, 3, dtype=torch.float64) for name in "ab"}
        for number, head in enumerate(heads.values()):
            nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(number))
            nn.init.zeros_(head.bias)
        own = {"a": list(heads["a"].parameters()), "b": list(heads["b"].parameters()), "c": []}
        combiner = Combiner(CombinerSpec(kind=kind, scope=scope), list(encoder.parameters()), own)  # type: ignore[arg-type]
        losses_of(encoder, combiner, heads, pixels(2, 3, 1, 28, 28))
        assert combiner.conflicts is not None
        found.append([parameter.grad for parameter in combiner.parameters] + [combiner.conflicts.gram])
    assert sum(float(grad.abs().sum()) for grad in found[0]) > 0
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("unfrozen", [None, 2])
def test_less_is_kept_and_dropped_paths_are_the_same_again(tmp_path: Path, unfrozen: int | None) -> None:
    config_of(drop_path_rate=0.3).save_pretrained(tmp_path)
    images, kept, grads = pixels(8, 1, 28, 28), [], []
    for checkpointing in (False, True):
        encoder, total = build(backbone=str(tmp_path), unfrozen=unfrozen).double().train(), [0]
        if checkpointing:
            encoder.checkpoint_activations()

        def pack(tensor: Tensor, total: list[int] = total) -> Tensor:
            total[0] += tensor.numel()
            return tensor

        torch.manual_seed(7)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = loss_of(encoder, images)
        kept.append(total[0])
        loss.backward()
        grads.append({name: p.grad for name, p in encoder.named_parameters() if p.grad is not None})
        assert "gradient_checkpointing" not in json.loads(encoder.config.to_json_string(use_diff=False))
    assert kept[1] < 0.4 * kept[0]
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("name", ["r18w32", "unet4"])
def test_a_backbone_that_cannot_says_so(name: str) -> None:
    with pytest.raises(EncoderError, match=r"training.activation_checkpointing: a .* backbone cannot compute"):
        build(backbone=name).checkpoint_activations()


def test_memory_advice_names_the_key_where_it_helps() -> None:
    def advice(*keys: str) -> str:
        recipe = Recipe.load("simclr").override(keys)
        with pytest.raises(OutOfMemoryError) as caught, explain_memory(recipe):
            raise MemoryError
        return str(caught.value)

    key = "training.activation_checkpointing=true"
    assert key in advice("encoder.backbone=dinov2_base")
    assert key not in advice("encoder.backbone=dinov2_base", key)
    assert key not in advice("encoder.backbone=resnet18")
    assert key in advice("encoder.backbone=facebook/dinov2-base"), "which no network is asked about"


# --- whole runs

KEYS = [
    "encoder={backbone: vit_tiny, unfrozen: 1, neck: 8}",
    "objectives={v: {kind: contrast}, w: {kind: varcov, width: 16}}",
    "combiner={kind: pcgrad, conflict_steps: 2}",
    "optimizer={kind: adamw, lr: 0.01, layer_decay: 0.5}",
]


def test_a_run_with_all_of_it_resumes_exactly(tiny_cohort: Path, small_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = Recipe.load(small_recipe).override([*KEYS, "training.activation_checkpointing=true"])
    whole = pretrain(tiny_cohort, recipe=recipe, out=tmp_path / "whole", cache=tmp_path / "cache", quiet=True)
    part = pretrain(
        tiny_cohort, recipe=recipe, out=tmp_path / "part", cache=tmp_path / "cache", quiet=True,
        overrides=["training.max_hours=1e-9"],
    )  # fmt: skip
    assert part.status == "stopped"
    for _ in range(whole.record["steps"]):
        if part.status == "finished":
            break
        part = pretrain(
            tiny_cohort, recipe=recipe, out=tmp_path / "part", cache=tmp_path / "cache", quiet=True, resume=True,
            overrides=["training.max_hours=1e-9"],
        )  # fmt: skip
    assert (part.status, part.record["weights"]) == ("finished", whole.record["weights"])
    start = build_encoder(recipe.encoder, seed=recipe.training.seed).state_dict()
    ended, _ = load_encoder(whole.encoder)
    for name, tensor in ended.state_dict().items():
        trained = name.startswith(("neck", "backbone.encoder.layer.1", "backbone.layernorm"))
        assert torch.equal(tensor, start[name]) != trained, name
    plain = pretrain(
        tiny_cohort, recipe=recipe, out=tmp_path / "plain", cache=tmp_path / "cache", quiet=True,
        overrides=["training.activation_checkpointing=false"],
    )  # fmt: skip
    for name, tensor in load_encoder(plain.encoder)[0].state_dict().items():
        torch.testing.assert_close(tensor, ended.state_dict()[name], msg=name)


@pytest.mark.parametrize("combiner", ["sum", "pcgrad, scope: features", "grad_mitigator"])
def test_an_encoder_that_stays_as_it_is_trains_heads_only(
    tiny_cohort: Path, small_recipe: dict[str, Any], tmp_path: Path, combiner: str
) -> None:
    keys = [*KEYS, "encoder={backbone: vit_tiny, unfrozen: 0}", f"combiner={{kind: {combiner}}}", "training.epochs=1"]
    recipe = Recipe.load(small_recipe).override([*keys, "optimizer.layer_decay=1"])
    run = pretrain(tiny_cohort, recipe=recipe, out=tmp_path / "run", cache=tmp_path / "cache", quiet=True)
    start = build_encoder(recipe.encoder, seed=recipe.training.seed).state_dict()
    for name, tensor in load_encoder(run.encoder)[0].state_dict().items():
        assert torch.equal(tensor, start[name]), name
    lines = [line for line in run.metrics() if line["kind"] == "train"]
    assert lines[0]["gradient_norm"] > 0


def test_pretrained_weights_that_are_left_alone_embed_as_published(tmp_path: Path) -> None:
    """Frozen DINOv2 under a fresh neck: what the neck sees is what the published model gives."""
    model = save_model(tmp_path)
    encoder = build(backbone=str(tmp_path), pretrained=True, in_channels=3, unfrozen=0, neck=4, mean=[0.0], std=[1.0])
    images = pixels(2, 3, 28, 28)
    with torch.no_grad():
        expected = model(images).last_hidden_state[:, 0]
    torch.testing.assert_close(encoder.train()(images).pooled, encoder.neck(expected))


def test_a_folder_of_another_architecture_is_refused_as_before(tmp_path: Path) -> None:
    ResNetModel(ResNetConfig(hidden_sizes=[4, 8], depths=[1, 1], embedding_size=4)).save_pretrained(tmp_path)
    config_of().save_pretrained(tmp_path)
    with pytest.raises(EncoderError, match=r"lacks \d+ weights of a dinov2 backbone"):
        build(backbone=str(tmp_path), pretrained=True)
