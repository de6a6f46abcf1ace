"""ConvNeXt as a family: levels, context blocks, frozen stages, temporal shift and folders, as of a ResNet."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import ConvNextConfig

from bolus.encoders.backbone import Encoder
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import load_encoder, save_encoder
from bolus.errors import EncoderError
from bolus.recipe import EncoderSpec
from bolus.training.loop import pretrain


def pixels(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    ConvNextConfig(hidden_sizes=[8, 8, 16], depths=[1, 2, 1], num_stages=3, layer_scale_init_value=1.0).save_pretrained(
        tmp_path / "tiny"
    )
    return str(tmp_path / "tiny")


def build(**keys: object) -> Encoder:
    return build_encoder(EncoderSpec.model_validate(keys), seed=3)


def test_the_named_configuration_has_the_promised_shapes() -> None:
    encoder = build(backbone="convnext_atto").eval()
    assert [(level.channels, level.stride) for level in encoder.shape.levels] == [
        (40, 4), (40, 4), (80, 8), (160, 16), (320, 32),
    ]  # fmt: skip
    with torch.no_grad():
        maps = encoder(pixels(2, 1, 64, 64), levels=True)
    assert [tuple(level.shape) for level in maps.levels] == [
        (2, 40, 16, 16), (2, 40, 16, 16), (2, 80, 8, 8), (2, 160, 4, 4), (2, 320, 2, 2),
    ]  # fmt: skip
    assert (encoder.shape.dim, encoder.num_blocks, maps.pooled.shape) == (320, 4, (2, 320))
    torch.testing.assert_close(maps.pooled, maps.grid.mean(dim=(2, 3)))


@pytest.mark.parametrize("context", [False, True])
def test_levels_are_the_stem_and_every_stage_refined_inline(tiny: str, context: bool) -> None:
    encoder = build(backbone=tiny, context=context).eval()
    images = pixels(2, 1, 32, 32)
    blocks = list(encoder.context) or [torch.nn.Identity()] * 4
    x = blocks[0](encoder.backbone.embeddings.forward((images - encoder.mean) / encoder.std))
    expected = [x]
    for stage, block in zip(encoder.backbone.encoder.stages, blocks[1:], strict=True):
        expected.append(block(stage.forward(expected[-1])))
    for ours, manual in zip(encoder(images, levels=True).levels, expected, strict=True):
        torch.testing.assert_close(ours, manual)


def test_only_the_last_stages_and_what_follows_them_are_trained(tiny: str) -> None:
    encoder = build(backbone=tiny, unfrozen=1, neck=4, context=True)
    names = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    trained = {f"{name.partition('.')[0]}{encoder.depth_of(name)}" for name in names}
    assert trained == {"context3", "backbone3", "backbone4", "neck4"}
    with pytest.raises(EncoderError, match="expected at most 3"):
        build(backbone=tiny, unfrozen=4)


def test_a_folder_opens_to_the_same_outputs(tiny: str, tmp_path: Path) -> None:
    encoder = build(backbone=tiny, context=True).eval()
    save_encoder(encoder, tmp_path / "saved", preprocessing={})
    opened, _ = load_encoder(tmp_path / "saved")
    images = pixels(2, 1, 32, 32)
    for other in (opened.eval(), copy.deepcopy(encoder)):
        for ours, theirs in zip(encoder(images, levels=True).levels, other(images, levels=True).levels, strict=True):
            assert torch.equal(ours, theirs)


def test_frames_see_their_neighbours_by_temporal_shift_only(tiny: str) -> None:
    clips = pixels(2, 1, 3, 32, 32)
    frames = clips.transpose(1, 2).flatten(0, 1)
    apart, shifted = build(backbone=tiny).eval(), build(backbone=tiny, temporal_shift=2).eval()
    torch.testing.assert_close(apart(clips).pooled, apart(frames).pooled.unflatten(0, (2, 3)).mean(dim=1))
    assert torch.equal(shifted(frames).pooled, apart(frames).pooled)
    assert (shifted(clips).pooled - apart(clips).pooled).abs().max() > 1e-6


def test_activations_cannot_be_computed_again_as_in_a_resnet(tiny: str) -> None:
    with pytest.raises(EncoderError, match=r"a convnext backbone cannot compute"):
        build(backbone=tiny).checkpoint_activations()


@pytest.mark.slow
def test_objectives_of_levels_train_it(tiny_cohort: Path, tmp_path: Path) -> None:
    run = pretrain(
        tiny_cohort, recipe="mlvicx", out=tmp_path / "run", cache=tmp_path / "cache", quiet=True,
        overrides=["encoder.backbone=convnext_atto", "images.size=32", "sampling.batch_size=4", "training.max_steps=2",
                   "objectives.global.width=16", "objectives.levels.width=16"],
    )  # fmt: skip
    assert run.status == "finished"
