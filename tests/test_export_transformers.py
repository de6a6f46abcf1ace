"""Heads in transformers' own classifiers: the same predictions, or a refusal with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import softmax
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    SwinConfig,
    ViTConfig,
    ViTModel,
    pipeline,
)

import bolus
from bolus.data.images.preprocessing import Preprocessing
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import save_encoder
from bolus.errors import EncoderError
from bolus.evaluation.probing.heads import Head
from bolus.exporting.transformers_heads import fold_head
from bolus.recipe import EncoderSpec
from test_export import HEADS

SIZE = 32
BLOCKS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS: dict[str, Any] = {
    "dinov2_with_registers": Dinov2WithRegistersConfig(
        mlp_ratio=2, patch_size=8, image_size=24, num_register_tokens=2, **BLOCKS
    ),
    "swin": SwinConfig(image_size=SIZE, embed_dim=8, depths=[2, 2], num_heads=[1, 2], window_size=4),
    "swin, one window": SwinConfig(image_size=SIZE, embed_dim=8, depths=[2, 2, 2], num_heads=[1, 2, 2], window_size=2),
    "dinov3": DINOv3ViTConfig(intermediate_size=32, patch_size=8, image_size=24, **BLOCKS),
    "vit": ViTConfig(patch_size=8, image_size=24, intermediate_size=64, **BLOCKS),
}
FAMILIES = ["r18w32", "vit_tiny", *(name for name in CONFIGS if name != "dinov3")]


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOLUS_CACHE", str(tmp_path / "cache"))


def saved(folder: Path, family: str, *, size: int = SIZE) -> Path:
    """An encoder of a family, whose weights are not what they start with and whose statistics are of images."""
    backbone = family
    if family in CONFIGS:
        CONFIGS[family].save_pretrained(folder / "config")
        backbone = str(folder / "config")
    encoder = build_encoder(EncoderSpec(backbone=backbone, in_channels=3), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in encoder.parameters():
            value.add_(torch.rand(value.shape, generator=generator) * (0.2 if value.ndim < 2 else 0.02))
        for _ in range(20):
            encoder(torch.rand(8, 3, size, size, generator=generator))
    save_encoder(encoder.eval(), folder / "encoder", preprocessing=Preprocessing(size, 3).to_json())
    return folder / "encoder"


def head_of(source: Path, facts: dict[str, Any]) -> tuple[Head, Path]:
    """A head on standardised features of this encoder."""
    encoder, _ = bolus.load_encoder(source)
    dim, rng = encoder.shape.dim, np.random.default_rng(0)
    facts = {"kind": "linear", **facts, "classes": np.array(facts["classes"], np.int64)}
    outputs = len(facts["classes"]) if len(facts["classes"]) > 2 else 1
    coef, intercept = rng.normal(size=(outputs, dim)) / dim**0.5, rng.normal(size=outputs)
    if facts["kind"] == "constant":
        coef, intercept = np.zeros((0, dim)), np.array([0.25, 0.75])
    head = Head(coef=coef, intercept=intercept, mean=rng.normal(size=dim), scale=rng.uniform(0.5, 2, dim), target="x",
                **facts)  # fmt: skip
    head.save(source.parent / "head.safetensors")
    return head, source.parent / "head.safetensors"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("facts", [HEADS["two classes"], HEADS["a number"]], ids=["two classes", "a number"])
def test_transformers_classifier_predicts_as_bolus_does(family: str, facts: dict[str, Any], tmp_path: Path) -> None:
    source = saved(tmp_path, family)
    head, path = head_of(source, facts)
    found = bolus.export(source, to="hf", out=tmp_path / "out", head=path)
    assert found.differences["all"] < 1e-5
    encoder, _ = bolus.load_encoder(source)
    images = torch.rand(5, 3, SIZE, SIZE)
    model = AutoModelForImageClassification.from_pretrained(str(tmp_path / "out")).eval()
    with torch.no_grad():
        expected = head.predict(encoder(images).pooled.numpy())
        logits = model((images - encoder.mean) / encoder.std).logits
    said = logits[:, 0] if head.task == "regress" else logits.softmax(1)[:, 1]
    assert np.ptp(expected) > 1e-3 * np.abs(expected).max()
    np.testing.assert_allclose(said.numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("facts", HEADS.values(), ids=HEADS)
def test_a_folded_head_is_the_head(facts: dict[str, Any], tmp_path: Path) -> None:
    head, _ = head_of(saved(tmp_path, "vit_tiny"), facts)
    x = np.random.default_rng(5).normal(size=(7, len(head.mean)))
    weight, bias = fold_head(head)
    logits = x @ weight.T + bias
    said = logits[:, 0] if head.task == "regress" else softmax(logits, axis=1)
    expected = head.predict(x)
    np.testing.assert_allclose(said[:, 1] if head.num_classes == 2 else said, expected, rtol=1e-9, atol=1e-12)
    assert np.isfinite(weight).all()
    assert np.isfinite(bias.astype(np.float32)).all()


def test_its_configuration_names_the_classes_and_a_pipeline_says_them(tmp_path: Path) -> None:
    source = saved(tmp_path, "vit_tiny")
    head, path = head_of(source, {**HEADS["three classes"], "class_names": ("none", "some", "much")})
    bolus.export(source, to="hf", out=tmp_path / "out", head=path)
    stated = json.loads((tmp_path / "out" / "config.json").read_text())
    assert stated["architectures"] == ["Dinov2ForImageClassification"]
    assert stated["problem_type"] == "single_label_classification"
    assert stated["id2label"] == {"0": "none", "1": "some", "2": "much"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "AutoModelForImageClassification.from_pretrained(FOLDER)(pixel_values).logits.softmax(1)" in card
    picture = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    said = pipeline("image-classification", model=str(tmp_path / "out"))(Image.fromarray(picture))
    encoder, _ = bolus.load_encoder(source)
    with torch.no_grad():
        vector = encoder(torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255).pooled.numpy()
    (expected,) = head.predict(vector)
    for each in said:
        assert abs(each["score"] - expected[head.class_names.index(each["label"])]) < 1e-5


def test_a_finetuned_head_goes_with_its_own_encoder(tmp_path: Path) -> None:
    other, source = saved(tmp_path / "other", "r18w32"), saved(tmp_path, "vit_tiny")
    head, path = head_of(source, HEADS["two classes"])
    path.rename(source / "head.safetensors")
    found = bolus.export(other, to="hf", out=tmp_path / "out", head=source)
    assert found.notes == (f"The head goes with its own encoder, {source}, not with {other}.",)
    encoder, images = bolus.load_encoder(source)[0], torch.rand(4, 3, SIZE, SIZE)
    model = AutoModelForImageClassification.from_pretrained(str(tmp_path / "out")).eval()
    with torch.no_grad():
        said = model((images - encoder.mean) / encoder.std).logits.softmax(1)[:, 1].numpy()
        np.testing.assert_allclose(said, head.predict(encoder(images).pooled.numpy()), rtol=0, atol=1e-5)


def test_a_number_is_called_one(tmp_path: Path) -> None:
    source = saved(tmp_path, "vit_tiny")
    _, path = head_of(source, HEADS["a number"])
    bolus.export(source, to="hf", out=tmp_path / "out", head=path)
    model = AutoModelForImageClassification.from_pretrained(str(tmp_path / "out"))
    assert (model.config.num_labels, model.config.problem_type, model.config.id2label) == (1, "regression", {0: "x"})


@pytest.mark.parametrize("family", ["vit", "swin, one window"])
def test_transformers_model_embeds_as_bolus_does(family: str, tmp_path: Path) -> None:
    """A plain ViT at another size than its own, and a Swin whose last map is one window, which is not shifted."""
    source = saved(tmp_path, family)
    found = bolus.export(source, to="hf", out=tmp_path / "out")
    assert found.differences["all"] < 1e-5
    encoder, contract = bolus.load_encoder(source)
    images = torch.rand(2, 3, int(contract["size"]), int(contract["size"]))
    opener = ViTModel if family == "vit" else AutoModel
    model = opener.from_pretrained(str(tmp_path / "out"), **({"add_pooling_layer": False} if family == "vit" else {}))
    with torch.no_grad():
        given = model.eval()((images - encoder.mean) / encoder.std)
        vector = given.last_hidden_state[:, 0] if family == "vit" else given.pooler_output
        torch.testing.assert_close(vector, encoder(images).pooled, rtol=0, atol=1e-5)
    again = bolus.open_encoder(tmp_path / "out", size=int(contract["size"])).encoder
    with torch.no_grad():
        torch.testing.assert_close(again(images).pooled, encoder(images).pooled, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("convnext_atto", "ConvNextForImageClassification norms the mean of the last map"),
        ("dinov3", "transformers has no classifier of a dinov3_vit"),
    ],
)
def test_a_head_that_transformers_cannot_say_is_refused(family: str, why: str, tmp_path: Path) -> None:
    source = saved(tmp_path, family)
    _, path = head_of(source, HEADS["two classes"])
    with pytest.raises(EncoderError, match=f"{why}.*export it to onnx or torch, or leave --head out"):
        bolus.export(source, to="hf", out=tmp_path / "out", head=path)
    assert not (tmp_path / "out").exists()


def test_windows_that_are_larger_than_the_last_map_are_refused(tmp_path: Path) -> None:
    source = saved(tmp_path, "swin", size=24)
    with pytest.raises(EncoderError, match="its last map of 3 pixels is smaller than a window of 4"):
        bolus.export(source, to="hf", out=tmp_path / "out")
