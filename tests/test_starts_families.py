"""Starts from folders that transformers wrote: each family gives what transformers' own model gives, and trains."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bolus import pretrain
from bolus.encoders.backbone import Encoder
from bolus.encoders.building import build_encoder, external_encoder
from bolus.encoders.families.hub import find_config, make_backbone
from bolus.encoders.folders.folder import load_encoder, save_encoder
from bolus.errors import EncoderError
from bolus.optimization import lr_scales
from bolus.recipe import EncoderSpec, Recipe
from bolus.run import Run

VIT = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8, "image_size": 24}
PLAIN = VIT | {"intermediate_size": 32, "layer_norm_eps": 1e-6}
MAE = PLAIN | {
    "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16,
}  # fmt: skip
SWIN = {"image_size": 24, "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "window_size": 3}
STAGES = {"hidden_sizes": [8, 12, 16], "depths": [1, 2, 1]}
PROCESSOR = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "size": {"height": 24, "width": 24}}


def tokens(model: Any, x: Tensor, prefix: int = 1, **keywords: Any) -> tuple[Tensor, Tensor]:
    """The CLS token and the map of patches of 8 pixels."""
    found = model(x, **keywords).last_hidden_state
    return found[:, 0], found[:, prefix:].transpose(1, 2).unflatten(2, (x.shape[2] // 8, x.shape[3] // 8))


def unmasked(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """MAE that keeps every patch, where it stands."""
    model.config.mask_ratio = 0.0
    order = torch.arange(x.shape[2] * x.shape[3] // 64, dtype=x.dtype).expand(len(x), -1)
    return tokens(model, x, noise=order, interpolate_pos_encoding=True)


def windows(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    found = model(x, output_hidden_states=True, interpolate_pos_encoding=True)
    grid = found.last_hidden_state.transpose(1, 2).unflatten(2, (x.shape[2] // 8, x.shape[3] // 8))
    return found.pooler_output, grid


def maps(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    grid = model(x).last_hidden_state
    return grid.mean((2, 3)), grid


def normed(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """ConvNeXt's last map under the norm of its backbone, of scale 1 and shift 0."""
    grid = maps(model, x)[1].movedim(1, -1)
    grid = nn.functional.layer_norm(grid, grid.shape[-1:], eps=1e-6).movedim(-1, 1)
    return grid.mean((2, 3)), grid


class Family(NamedTuple):
    model: Callable[[Any], Any]
    config: Any
    reference: Callable[[Any, Tensor], tuple[Tensor, Tensor]]
    headed: Callable[[Any], Any] | None = None


FAMILIES = {
    "dinov2": Family(
        tf.Dinov2Model, tf.Dinov2Config(mlp_ratio=2, **VIT), tokens, tf.Dinov2ForImageClassification
    ),
    "dinov3_vit": Family(
        tf.DINOv3ViTModel,
        tf.DINOv3ViTConfig(intermediate_size=32, num_register_tokens=4, **VIT),
        lambda model, x: tokens(model, x, prefix=5),
    ),
    "dinov3_convnext": Family(
        tf.DINOv3ConvNextModel,
        tf.DINOv3ConvNextConfig(layer_scale_init_value=1.0, **STAGES),
        lambda model, x: maps(model.model, x),
    ),
    "vit": Family(
        tf.ViTModel,
        tf.ViTConfig(**PLAIN),
        lambda model, x: tokens(model, x, interpolate_pos_encoding=True),
        tf.ViTForImageClassification,
    ),
    "vit_mae": Family(tf.ViTMAEModel, tf.ViTMAEConfig(**MAE), unmasked, tf.ViTMAEForPreTraining),
    "swin": Family(tf.SwinModel, tf.SwinConfig(**SWIN), windows, tf.SwinForImageClassification),
    "swin_absolute": Family(
        tf.SwinModel, tf.SwinConfig(use_absolute_embeddings=True, **SWIN), windows, tf.SwinForMaskedImageModeling
    ),
    "resnet": Family(
        tf.ResNetModel,
        tf.ResNetConfig(layer_type="basic", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2]),
        maps,
        tf.ResNetForImageClassification,
    ),
    "convnext": Family(
        tf.ConvNextModel,
        tf.ConvNextConfig(num_stages=3, layer_scale_init_value=1.0, **STAGES),
        normed,
        tf.ConvNextForImageClassification,
    ),
}  # fmt: skip


def pixels(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def save(folder: Path, model: nn.Module) -> None:
    """Write a model with weights none of which is what it starts with, and its processor."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model.save_pretrained(folder)  # type: ignore[operator]
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))


def start(folder: Path, **keys: Any) -> Encoder:
    return build_encoder(EncoderSpec(backbone=str(folder), pretrained=True, in_channels=3, **keys), seed=3)


def reference(name: str, folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled feature and map of transformers' own model, read anew, of images in [0, 1]."""
    family = FAMILIES[name]
    model = family.model.from_pretrained(folder).eval()  # type: ignore[attr-defined]
    mean, std = (torch.tensor(PROCESSOR[f"image_{key}"]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        return family.reference(model, (x - mean) / std)


# --- the weights, and what they give


@pytest.mark.parametrize("size", [(24, 24), (48, 64), pytest.param((64, 64), marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_start_gives_what_transformers_model_gives(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    """At the size of the configuration, and where positions are interpolated; normalised as the processor says."""
    family = FAMILIES[name]
    save(tmp_path, family.model(family.config))
    encoder, x = start(tmp_path).eval(), pixels(2, 3, *size)
    assert (encoder.spec.mean, encoder.spec.std) == (PROCESSOR["image_mean"], PROCESSOR["image_std"])
    pooled, grid = reference(name, tmp_path, x)
    with torch.no_grad():
        found = encoder(x)
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.grid, grid, rtol=1e-5, atol=1e-5)
    assert (encoder.shape.dim, encoder.shape.grid_channels) == (pooled.shape[1], grid.shape[1])
    assert encoder.shape.grid_stride == 64 // reference(name, tmp_path, pixels(1, 3, 64, 64))[1].shape[-1]


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.headed])
def test_heads_and_decoders_are_left_out(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    assert family.headed is not None
    save(tmp_path, family.headed(family.config))
    x = pixels(2, 3, 48, 48)
    pooled, grid = reference(name, tmp_path, x)
    external, contract = external_encoder(tmp_path)
    with torch.no_grad():
        for encoder in (start(tmp_path).eval(), external):
            found = encoder(x)
            torch.testing.assert_close(found.pooled, pooled, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(found.grid, grid, rtol=1e-5, atol=1e-5)
    assert contract == {"size": 24}


@pytest.mark.parametrize("name", ["vit", "vit_mae", "swin", "dinov3_vit", "dinov3_convnext"])
def test_the_names_of_published_files_and_those_of_modules_are_known(name: str, tmp_path: Path) -> None:
    """transformers writes the names that published files have, and calls its modules otherwise."""
    family = FAMILIES[name]
    model = (family.headed or family.model)(family.config)
    save(tmp_path, model)
    x, file = pixels(1, 3, 24, 24), tmp_path / "model.safetensors"
    published, modules = load_file(file), model.state_dict()
    assert set(published) != set(modules)
    with torch.no_grad():
        pooled = start(tmp_path).eval()(x).pooled
        save_file(modules, file, metadata={"format": "pt"})
        assert torch.equal(start(tmp_path).eval()(x).pooled, pooled)


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("vit", "layernorm.bias"),
        ("vit_mae", "embeddings.cls_token"),
        ("swin", "encoder.layers.1.blocks.0.layernorm_after.bias"),
        ("dinov3_vit", "embeddings.register_tokens"),
        ("dinov3_convnext", "stages.1.layers.0.gamma"),
    ],
)
def test_a_file_that_lacks_a_weight_is_refused(name: str, gone: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    save(tmp_path, family.model(family.config))
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights[gone]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(EncoderError, match=rf"lacks 1 weights of a \w+ backbone.*{gone}"):
        start(tmp_path)


def test_transformers_report_is_said_only_where_reading_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It calls the norm of Swin's last map newly initialised, which is then the model's own."""
    save(tmp_path, tf.SwinForImageClassification(tf.SwinConfig(**SWIN)))
    start(tmp_path)
    assert not caplog.records
    tf.SwinConfig(**{**SWIN, "embed_dim": 16}).save_pretrained(tmp_path)
    with pytest.raises(EncoderError, match="no encoder loaded"):
        start(tmp_path)
    assert "MISMATCH" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("swin_absolute", "resnet", "convnext", "dinov2") else ())
        for name in FAMILIES
    ],
)
def test_the_encoders_folder_opens_to_the_same_outputs(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    save(tmp_path / "from", family.model(family.config))
    encoder, x = start(tmp_path / "from", neck=4).eval(), pixels(2, 3, 48, 48)
    save_encoder(encoder, tmp_path / "to", preprocessing={})
    again, _ = load_encoder(tmp_path / "to")
    onward = start(tmp_path / "to", neck=4).eval()
    with torch.no_grad():
        for other in (again, onward):
            assert torch.equal(other(x).pooled, encoder(x).pooled)
            assert torch.equal(other(x).grid, encoder(x).grid)
        assert not torch.equal(encoder.twin(seed=1).eval()(x).grid, encoder(x).grid)


# --- nothing masked, nothing drawn


def test_an_encoder_from_mae_masks_nothing(tmp_path: Path) -> None:
    """In training, too; and it is the ViT of the same weights."""
    model = tf.ViTMAEForPreTraining(tf.ViTMAEConfig(**MAE))
    save(tmp_path, model)
    encoder, x = start(tmp_path, mean=[0.0], std=[1.0]).train(), pixels(2, 3, 24, 24)
    before = torch.get_rng_state()
    assert torch.equal(encoder(x).grid, encoder(x).grid)
    assert torch.equal(torch.get_rng_state(), before)
    vit = tf.ViTModel(tf.ViTConfig(**PLAIN), add_pooling_layer=False)
    vit.load_state_dict(model.vit.state_dict())
    torch.testing.assert_close(encoder(x).pooled, vit(x).last_hidden_state[:, 0], rtol=1e-5, atol=1e-5)
    assert "mask" not in find_config(str(tmp_path)).to_json_string()


def test_dinov3_sees_positions_anew_in_training_only_where_they_are_trained(tmp_path: Path) -> None:
    """Its positions are rescaled at random in training; of a given seed they are the same."""
    family = FAMILIES["dinov3_vit"]
    assert family.config.pos_embed_rescale == 2.0
    save(tmp_path, family.model(family.config))
    x = pixels(2, 3, 24, 24)

    def seeded(encoder: Encoder, seed: int) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found: Tensor = encoder(x).pooled
            return found

    whole, last = start(tmp_path).train(), start(tmp_path, unfrozen=1).train()
    assert torch.equal(seeded(whole, 0), seeded(whole, 0))
    assert not torch.equal(seeded(whole, 0), seeded(whole, 1))
    assert torch.equal(seeded(last, 0), seeded(last, 1))
    assert torch.equal(last(x).pooled, whole.eval()(x).pooled)


def test_swin_gives_the_same_whatever_size_it_saw_before(tmp_path: Path) -> None:
    save(tmp_path, tf.SwinModel(tf.SwinConfig(**SWIN)))
    encoder = start(tmp_path).eval()
    with torch.no_grad():
        first = [encoder(pixels(1, 3, side, side)).grid for side in (24, 64)]
        again = [encoder(pixels(1, 3, side, side)).grid for side in (8, 64, 24)]
    assert torch.equal(first[0], again[2])
    assert torch.equal(first[1], again[1])
    assert again[0].shape == (1, 16, 1, 1)
    assert [(level.channels, level.stride) for level in encoder.shape.levels] == [(16, 8)]


# --- training


def names_of(encoder: Encoder) -> set[str]:
    return {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("swin", r"backbone\.(swin\.encoder\.layers\.1|swin\.layernorm|hidden_states_norms)\."),
        ("vit_mae", r"backbone\.(layers\.2|layernorm)\."),
        ("dinov3_vit", r"backbone\.(model\.layer\.2|norm)\."),
        ("dinov3_convnext", r"backbone\.model\.stages\.2\."),
    ],
)
def test_the_last_block_alone_is_trained(name: str, pattern: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    family.config.save_pretrained(tmp_path)
    encoder = build_encoder(EncoderSpec(backbone=str(tmp_path), unfrozen=1, in_channels=3), seed=0)
    every = {name for name, _ in encoder.named_parameters()}
    assert names_of(encoder) == {name for name in every if re.match(pattern, name)}
    assert encoder.num_blocks is not None
    blocks = [name for name in every if encoder.depth_of(name) == encoder.num_blocks]
    assert blocks
    assert set(blocks) <= names_of(encoder)
    assert any(encoder.depth_of(name) == 0 for name in every)


@pytest.mark.parametrize(
    ("name", "blocks", "last"),
    [
        ("swin", "swin.encoder.layers.", ("swin.layernorm", "hidden_states_norms")),
        ("vit_mae", "layers.", ("layernorm",)),
        ("dinov3_vit", "model.layer.", ("norm.",)),
        ("dinov3_convnext", "model.stages.", ()),
    ],
)
def test_the_rate_falls_from_block_to_block(name: str, blocks: str, last: tuple[str, ...], tmp_path: Path) -> None:
    FAMILIES[name].config.save_pretrained(tmp_path)
    encoder = build_encoder(EncoderSpec(backbone=str(tmp_path), in_channels=3), seed=0)
    number = 2 if name == "swin" else 3
    scales = lr_scales({"encoder": encoder}, 0.5)
    for key, parameter in encoder.named_parameters():
        path = key.removeprefix("backbone.")
        power = number + 1
        if path.startswith(last):
            power = 0
        elif path.startswith(blocks) and not path.startswith("model.stages.0.downsample_layers"):
            power = number - int(path.removeprefix(blocks).partition(".")[0])
        assert scales[parameter] == 0.5**power, key


def test_the_stem_of_dinov3_convnext_lies_before_its_first_stage(tmp_path: Path) -> None:
    FAMILIES["dinov3_convnext"].config.save_pretrained(tmp_path)
    encoder = build_encoder(EncoderSpec(backbone=str(tmp_path), unfrozen=3, context=True, in_channels=3), seed=0)
    assert [(level.channels, level.stride) for level in encoder.shape.levels] == [(8, 4), (8, 4), (12, 8), (16, 16)]
    stem = {name for name, _ in encoder.named_parameters() if "stages.0.downsample_layers" in name}
    assert {encoder.depth_of(name) for name in stem} == {0}
    assert len(stem) == 4
    left = {name for name, _ in encoder.named_parameters()} - names_of(encoder)
    assert left == stem | {name for name, _ in encoder.named_parameters() if name.startswith("context.0.")}
    clips = pixels(1, 3, 4, 32, 32)
    shifted = build_encoder(EncoderSpec(backbone=str(tmp_path), temporal_shift=4, in_channels=3), seed=0).eval()
    with torch.no_grad():
        assert not torch.allclose(shifted(clips).pooled, shifted(clips.flip(2)).pooled, atol=1e-7)


@pytest.mark.parametrize("name", ["swin", "vit", "dinov3_vit"])
def test_activations_computed_again_drop_the_same_paths(name: str, tmp_path: Path) -> None:
    keys = {"swin": "drop_path_rate", "vit": "hidden_dropout_prob", "dinov3_vit": "drop_path_rate"}
    config = type(FAMILIES[name].config).from_dict({**FAMILIES[name].config.to_dict(), keys[name]: 0.5})
    save(tmp_path, FAMILIES[name].model(config))
    grads, kept = [], []
    for again in (False, True):
        encoder = start(tmp_path).double().train()
        sizes: list[int] = []
        if again:
            encoder.checkpoint_activations()
        with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):  # fmt: skip
            torch.manual_seed(5)
            maps = encoder(pixels(4, 3, 48, 48).double())
        (maps.pooled.square().sum() + maps.grid.sin().sum()).backward()
        grads.append({name: each.grad for name, each in encoder.named_parameters() if each.grad is not None})
        kept.append(sum(sizes))
    assert kept[1] < 0.5 * kept[0]
    assert grads[0].keys() == grads[1].keys()
    for key, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][key], rtol=1e-10, atol=1e-10, msg=key)


@pytest.mark.parametrize(
    "name", ["swin", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dinov3_vit", "vit_mae", "convnext"))]
)
def test_a_run_from_it_repeats_and_resumes_exactly(name: str, tiny_cohort: Path, tmp_path: Path) -> None:
    """With dropped paths, a rate that falls with depth, and blocks that stay as they are."""
    dropped = {"vit_mae": {"hidden_dropout_prob": 0.4}}.get(name, {"drop_path_rate": 0.4})
    config = type(FAMILIES[name].config).from_dict({**FAMILIES[name].config.to_dict(), **dropped})
    with torch.random.fork_rng():
        FAMILIES[name].model(config).save_pretrained(tmp_path / "start")
    keys = {
        "encoder.backbone": str(tmp_path / "start"), "encoder.pretrained": True, "images.size": 24,
        "encoder.unfrozen": 2, "optimizer.layer_decay": 0.5, "sampling.batch_size": 6, "training.max_steps": 3,
        "training.log_steps": 1, "training.precision": "fp32",
    }  # fmt: skip
    recipe = Recipe.load("simclr").override(keys)
    options = {"cache": tmp_path / "cache", "quiet": True}
    whole = pretrain(tiny_cohort, recipe=recipe, out=tmp_path / "whole", **options)
    torch.rand(7)  # whatever a person does in between
    folder = tmp_path / "part"
    stopped = pretrain(tiny_cohort, recipe=recipe, out=folder, overrides={"training.max_hours": 1e-9}, **options)
    assert stopped.status == "stopped"
    part = pretrain(tiny_cohort, recipe=recipe, out=folder, resume=True, **options)
    assert part.record["weights"] == whole.record["weights"]
    before, after = start(tmp_path / "start").state_dict(), load_encoder(Run.open(folder).encoder)[0]
    for key, tensor in after.state_dict().items():
        if key.startswith("backbone.") and after.depth_of(key) <= (after.num_blocks or 0) - 2:
            assert torch.equal(tensor, before[key]), key
    assert any(not torch.equal(tensor, before[key]) for key, tensor in after.state_dict().items() if key in before)


def test_a_saved_plain_backbone_opens_again(tmp_path: Path) -> None:
    tf.ViTConfig(**PLAIN).save_pretrained(tmp_path / "from")
    backbone = make_backbone(find_config(str(tmp_path / "from")), "vit")
    save(tmp_path / "to", backbone)
    for name, tensor in start(tmp_path / "to").backbone.state_dict().items():
        assert torch.equal(tensor, backbone.state_dict()[name]), name
    with pytest.raises(EncoderError, match="square images and patches"):
        tf.ViTConfig(**{**PLAIN, "image_size": [24, 48]}).save_pretrained(tmp_path / "wide")
        find_config(str(tmp_path / "wide"))
