"""Segmenters that are exported: the other program gives bolus's probabilities, and the script bolus's masks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage

import bolus
from bolus.data.cohort.cohort import Cohort
from bolus.data.images.cache import Preprocessing, build_store
from bolus.data.readers.masks import from_square
from bolus.encoders.building import build_encoder
from bolus.encoders.families.unet import MaskDecoder
from bolus.encoders.folders.folder import CONTRACT
from bolus.errors import UsageError
from bolus.evaluation.segmentation.saved import load_segmenter, save_segmenter
from bolus.evaluation.segmentation.segmenter import Segmenter
from bolus.exporting import embed_without_bolus
from bolus.recipe import EncoderSpec
from test_export import run_onnx, script

SIZE = 32
SHAPES = [(40, 30), (30, 47), (32, 32), (90, 70), (21, 64)]


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOLUS_CACHE", str(tmp_path / "cache"))


def table(folder: Path) -> Path:
    """Oblong pictures of blocks, larger and smaller than what the encoder sees."""
    rng = np.random.default_rng(3)
    folder.mkdir(exist_ok=True)
    for number, shape in enumerate(SHAPES):
        blocks = np.kron(rng.random((5, 6)), np.ones((18, 18)))[: shape[0], : shape[1]]
        PillowImage.fromarray((255 * blocks).astype(np.uint8)).resize(shape[::-1]).save(folder / f"{number}.png")
    rows = [[f"{number}.png", f"P-{number}"] for number in range(len(SHAPES))]
    pd.DataFrame(rows, columns=["image", "patient"]).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def segmenter(folder: Path, backbone: str, **contract: Any) -> Path:
    """Labels 7 and 300 on random weights, whose norms have seen something."""
    cohort = Cohort.open(table(folder))
    store = build_store(cohort, Preprocessing(SIZE, 1, **contract), folder=folder / "cache")
    encoder = build_encoder(EncoderSpec(backbone=backbone), seed=0)
    torch.manual_seed(1)
    decoder = MaskDecoder(encoder.shape, 3)
    made = Segmenter(encoder, decoder, store, cohort.samples("image"), 3)
    images = torch.stack([torch.rand(1, SIZE, SIZE) ** (n + 1) for n in range(4)])
    with torch.no_grad():
        for _ in range(3):
            made.logits(images)
        spread = made.logits(images).std(dim=(0, 2, 3))
        decoder.head.weight.mul_(4 / spread[:, None, None, None])  # so that the classes are decided
    encoder.eval(), decoder.eval()
    out = folder / "segmenter-mask"
    save_segmenter(made, out, labels={7: "organ", 300: "lesion"}, patients=cohort.patients, lineage=[])
    return out


@pytest.mark.parametrize("to", [pytest.param("onnx", marks=pytest.mark.slow), "torch"])
@pytest.mark.parametrize("backbone", ["unet2", pytest.param("r18w32", marks=pytest.mark.slow), "vit_tiny"])
def test_a_segmenter_goes_there_and_gives_the_same_probabilities(backbone: str, to: Any, tmp_path: Path) -> None:
    source = segmenter(tmp_path, backbone)
    found = bolus.export(source, to=to, out=tmp_path / "out", head=source, cohort=tmp_path / "table.csv")
    assert found.differences["all"] < 1e-5
    assert found.rows == {"all": f"{len(SHAPES)} images of the cohort"}
    described = json.loads((tmp_path / "out" / CONTRACT).read_text())
    assert described["outputs"] == {"mask": ["batch", 3, SIZE, SIZE]}
    assert described["head"]["classes"] == ["background", "organ", "lesion"]
    assert described["head"]["labels"] == [0, 7, 300]
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("# Segmenter\n")
    assert "Head: segment mask (background, organ, lesion)" in card
    assert to == "torch" or "embed_without_bolus.py IMAGE... -o masks`" in card
    saved, cohort = load_segmenter(source), Cohort.open(tmp_path / "table.csv")
    store = build_store(cohort, saved.judged.preprocessing, folder=tmp_path / "cache")
    bolus_own = Segmenter(saved.judged.encoder, saved.decoder, store, cohort.samples("image"), 3)  # type: ignore[arg-type]
    expected = bolus_own.predict(np.arange(len(SHAPES))).numpy()
    images = bolus.preprocess([tmp_path / f"{n}.png" for n in range(len(SHAPES))], saved.judged)
    if to == "onnx":
        (masks,) = run_onnx(tmp_path / "out", images=images.numpy())
    else:
        (answer,) = torch.export.load(tmp_path / "out" / "model.pt2").module()(images)
        masks = answer.detach().numpy()
    assert len(np.unique(expected.argmax(1))) == 3
    np.testing.assert_allclose(masks, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(masks.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("fit", ["pad", pytest.param("crop", marks=pytest.mark.slow)])
def test_the_script_draws_what_bolus_draws(fit: Any, tmp_path: Path) -> None:
    source = segmenter(tmp_path, "unet2", fit=fit)
    bolus.export(source, to="onnx", out=tmp_path / "out", head=source)
    shown = script(tmp_path / "out", "--test")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("mask differs by") == 1  # of eight bits: the contract has no range for more
    paths = [tmp_path / f"{number}.png" for number in range(len(SHAPES))]
    shown = script(tmp_path / "out", *paths, "-o", tmp_path / "drawn")
    assert shown.returncode == 0, shown.stderr
    bolus.predict(source, tmp_path / "table.csv", head=source, out=tmp_path / "expected")
    for number, shape in enumerate(SHAPES, start=1):
        expected = np.asarray(PillowImage.open(tmp_path / "expected" / f"mask-row{number}.png"))
        found = np.asarray(PillowImage.open(tmp_path / "drawn" / f"mask-{number}.png"))
        assert found.shape == expected.shape == shape
        assert len(np.unique(expected)) > 1
        assert (found != expected).mean() <= 0.002
    assert not (tmp_path / "out" / "embeddings.csv").exists()


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("aspect", [1.0, 1.7])
@pytest.mark.parametrize("shape", [(7, 90), (50, 33)])
def test_probabilities_go_back_to_the_image_as_bolus_takes_them(
    fit: Any, aspect: float, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    contract = {"preprocessing": {"fit": fit}, "head": {"labels": [0, 7, 300]}}
    monkeypatch.setattr(embed_without_bolus, "CONTRACT", contract)
    scores = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(0)).softmax(0)
    picture = embed_without_bolus.Picture(np.zeros((1, *shape)), 0, 1, "container", 8, aspect=aspect)
    expected: NDArray[Any] = np.array([0, 7, 300])[from_square(scores, shape, fit=fit, aspect=aspect)]
    found = embed_without_bolus.labels_of(scores.numpy(), picture)
    assert len(np.unique(expected)) == 3
    assert (found != expected).mean() <= 0.002


def test_a_segmenter_of_a_run_goes_by_its_name(
    tmp_path: Path, tiny_cohort: Path, small_recipe: dict[str, Any], call_bolus: Callable[..., tuple[int, str]]
) -> None:
    run = bolus.pretrain(tiny_cohort, recipe=small_recipe, out=tmp_path / "run", quiet=True)
    folder = segmenter(tmp_path / "made", "unet2")
    (run.folder / "evaluations" / "masks").mkdir(parents=True)
    folder.rename(run.folder / "evaluations" / "masks" / "segmenter-mask")
    asked = ("export", run.folder, "--to", "torch", "--head", "mask", "-o")
    code, said = call_bolus(*asked, tmp_path / "out")
    assert code == 0, said
    assert "(8 images of the cohort)" in said
    assert "The head goes with its own encoder" in said
    assert f"images of {len(run.record['training_patients'])} patients" in (tmp_path / "out" / "README.md").read_text()
    code, said = call_bolus(*asked, tmp_path / "no", "--size", "64")
    assert (code, "states its own input size" in said) == (2, True)


def test_transformers_is_refused_a_segmenter(tmp_path: Path) -> None:
    source = segmenter(tmp_path, "r18w32")
    with pytest.raises(UsageError, match="transformers has no model of a segmenter; export it to onnx or torch"):
        bolus.export(source, to="hf", out=tmp_path / "out", head=source)
    assert not (tmp_path / "out").exists()
