"""What is exported is opened again by the other program and gives what bolus gives."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from transformers import AutoImageProcessor, AutoModel

import absent
import bolus
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.split import patient_keys
from bolus.data.images.preprocessing import Preprocessing
from bolus.embedding.opening import Judged
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import CONTRACT, lineage_of, save_encoder
from bolus.encoders.folders.modality_folder import save_encoders
from bolus.encoders.modalities import build_encoders
from bolus.errors import BolusError, EncoderError, EvaluationError, LeakageError, UsageError
from bolus.evaluation.probing.heads import Head
from bolus.evaluation.statistics.results import Result
from bolus.exporting import deploying, embed_without_bolus, models, programs
from bolus.exporting.card import STALE_NORMS, write_card
from bolus.exporting.contract import describe, write_contract
from bolus.exporting.rows import rows_of
from bolus.recipe import EncoderSpec, Recipe
from bolus.run import Run
from test_prediction import make_head
from test_preprocess import KINDS, given, opened

SMALL: dict[str, dict[str, Any]] = {
    "a ResNet": {"backbone": "r18w32"},
    "context blocks, a neck and no pooling": {"backbone": "r18w32", "context": True, "neck": 8, "stem_pool": False},
    "a vision transformer": {"backbone": "vit_tiny"},
    "a U-Net": {"backbone": "unet4"},
}
LONG = {("context blocks, a neck and no pooling", "onnx"), ("a ResNet", "onnx")}  # the head's test exports a ResNet too

NET = """
from torch import nn


def net(in_channels):
    return nn.Sequential(nn.Conv2d(in_channels, 8, 3, stride=4, padding=1), nn.BatchNorm2d(8), nn.ReLU())
"""


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOLUS_CACHE", str(tmp_path / "cache"))


def saved(folder: Path, spec: dict[str, Any], **contract: Any) -> Path:
    """An encoder folder with weights of a seed, its norms' statistics moved from those of a start."""
    encoder = build_encoder(EncoderSpec(**spec), seed=0)
    with torch.no_grad():
        shape = (4, encoder.spec.in_channels, 32, 32)
        for _ in range(3):
            encoder(torch.rand(shape))
    asked = Preprocessing(32, encoder.spec.in_channels, **contract)
    save_encoder(encoder.eval(), folder, preprocessing=asked.to_json(), lineage=[{"salt": "00", "keys": ["ab"]}])
    return folder


def run_onnx(folder: Path, **inputs: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return list(session.run(None, inputs))


@pytest.mark.parametrize(
    ("spec", "to"),
    [
        pytest.param(spec, to, id=f"{name}-{to}", marks=[pytest.mark.slow] if (name, to) in LONG else [])
        for name, spec in SMALL.items()
        for to in ("onnx", "torch")
    ],
)
def test_an_encoder_goes_there_and_answers_alike(spec: dict[str, Any], to: Any, tmp_path: Path) -> None:
    source = saved(tmp_path / "e", spec)
    found = bolus.export(source, to=to, out=tmp_path / "out")
    assert found.differences["all"] < 1e-5
    assert found.rows == {"all": "8 made images (no cohort was given)"}
    images = torch.rand(3, 1, 32, 32)
    with torch.no_grad():
        expected = bolus.load_encoder(source)[0](images).pooled.numpy()
    if to == "onnx":
        (vectors,) = run_onnx(tmp_path / "out", images=images.numpy())
    else:
        (answer,) = torch.export.load(tmp_path / "out" / "model.pt2").module()(images)
        vectors = answer.detach().numpy()
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("to", [pytest.param("onnx", marks=pytest.mark.slow), "torch"])
def test_clips_go_with_their_mask(to: Any, tmp_path: Path) -> None:
    spec = {"backbone": "r18w32", "stem_pool": False, "temporal_shift": 8}
    source = saved(tmp_path / "e", spec, frames=3)
    bolus.export(source, to=to, out=tmp_path / "out")
    clips, mask = torch.rand(2, 1, 3, 32, 32), torch.tensor([[True, True, True], [True, False, False]])
    with torch.no_grad():
        expected = bolus.load_encoder(source)[0](clips, frame_mask=mask).pooled.numpy()
    if to == "onnx":
        (vectors,) = run_onnx(tmp_path / "out", images=clips.numpy(), frame_mask=mask.numpy())
    else:
        (answer,) = torch.export.load(tmp_path / "out" / "model.pt2").module()(clips, mask)
        vectors = answer.detach().numpy()
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_one_onnx_file_knows_its_contract_and_no_path(tmp_path: Path) -> None:
    bolus.export(saved(tmp_path / "e", SMALL["a U-Net"]), to="onnx", out=tmp_path / "out")
    proto = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    assert {each.version for each in proto.opset_import if not each.domain} == {18}
    assert [each.name for each in proto.graph.output] == ["embedding"]
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    (kept,) = [json.loads(each.value) for each in proto.metadata_props if each.key == "bolus"]
    assert kept["preprocessing"]["size"] == 32
    here = str(Path(bolus.__file__).parent).encode()
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or (here not in path.read_bytes() and str(tmp_path).encode() not in path.read_bytes())


def test_lineage_is_left_out_unless_asked_for(tmp_path: Path) -> None:
    source = saved(tmp_path / "e", SMALL["a U-Net"])
    for asked in (False, True):
        out = tmp_path / f"out{asked}"
        bolus.export(source, to="torch", out=out, lineage=asked)
        described = json.loads((out / CONTRACT).read_text())
        assert ("lineage" in described) is asked
        assert ("left out; the run folder" in (out / "README.md").read_text()) is not asked


def test_an_export_that_is_opened_again_is_refused_test_patients_that_it_was_trained_on(
    tiny_cohort: Path, tmp_path: Path
) -> None:
    cohort = Cohort.open(tiny_cohort)
    lineage = [{"salt": "5a17", "keys": sorted(patient_keys(cohort.patients[cohort.split == "test"], "5a17"))}]
    encoder = build_encoder(EncoderSpec(backbone="vit_tiny", in_channels=3), seed=0).eval()
    save_encoder(encoder, tmp_path / "e", preprocessing=Preprocessing(32, 3).to_json(), lineage=lineage)
    for asked in (False, True):
        out = tmp_path / f"out{asked}"
        bolus.export(tmp_path / "e", to="hf", out=out, lineage=asked)
        assert lineage_of(out) == bolus.open_encoder(out).lineage == (lineage if asked else [])
    with pytest.raises(LeakageError):
        bolus.evaluate(out, tiny_cohort, target="sick", probes=("linear",), draws=20, out=tmp_path / "judged")
    (out / CONTRACT).write_text('{"lineage": [{"keys": 3}]}')
    with pytest.raises(EncoderError, match=r"contract\.json: a lineage needs salt and keys"):
        bolus.open_encoder(out)


@pytest.mark.slow
def test_each_modality_has_a_folder(tmp_path: Path) -> None:
    specs = {"CFP": EncoderSpec(backbone="r18w32", in_channels=3), "OCT": EncoderSpec(backbone="vit_tiny")}
    contract = Preprocessing(32, ranges={"OCT": (0, 4095)}, modalities={"CFP": Preprocessing(24, 3)})
    save_encoders(build_encoders(specs, seed=0).eval(), tmp_path / "e", contract, card=lambda name: "", lineage=[])
    found = bolus.export(tmp_path / "e", to="onnx", out=tmp_path / "out")
    assert set(found.differences) == {"CFP", "OCT"}
    for folder, name in (("0-CFP", "CFP"), ("1-OCT", "OCT")):
        assert json.loads((tmp_path / "out" / folder / CONTRACT).read_text())["modality"] == name
        assert script(tmp_path / "out" / folder, "--test").returncode == 0


def test_one_encoder_that_sees_several_sizes_is_a_model_for_each(tiny_cohort: Path, tmp_path: Path) -> None:
    source = saved(tmp_path / "e", SMALL["a U-Net"], modalities={"MR": Preprocessing(48).to_json()})
    table = pd.read_csv(tiny_cohort.with_name("table.csv"))[["image", "patient"]].iloc[:6]
    table.assign(modality=["MR", "CT", *["XR"] * 4]).to_csv(tiny_cohort.with_name("t.csv"), index=False)
    found = bolus.export(source, to="torch", out=tmp_path / "out", cohort=tiny_cohort.with_name("t.csv"))
    shapes = {}
    for folder in found.folder.iterdir():
        if folder.is_dir():
            shapes[folder.name] = json.loads((folder / CONTRACT).read_text())["inputs"]["images"]["shape"]
    assert shapes == {"0-MR": ["batch", 1, 48, 48], "1-others": ["batch", 1, 32, 32]}
    assert found.rows == {"MR": "1 images of the cohort", "others": "5 images of the cohort"}
    judged, (contract, known) = bolus.open_encoder(source), (Preprocessing(32), ["MR", "CT", "XR"])
    shown = rows_of(judged, Cohort.open(tiny_cohort.with_name("t.csv")), None, contract, "", but=known)
    assert shown.origin == "8 made images (no row of another modality of the cohort was read)"


@pytest.mark.parametrize("to", ["onnx", "torch"])
def test_a_net_of_ones_own_goes_too(to: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "exported_net.py").write_text(NET)
    monkeypatch.syspath_prepend(str(tmp_path))
    source = saved(tmp_path / "e", {"backbone": "exported_net:net"})
    assert bolus.export(source, to=to, out=tmp_path / "out").differences["all"] < 1e-5
    with pytest.raises(EncoderError, match="is not an architecture of transformers"):
        bolus.export(source, to="hf", out=tmp_path / "hf")


@pytest.mark.parametrize("backbone", ["r18w32", "vit_tiny", "convnext_atto"])
def test_transformers_opens_a_plain_encoder(backbone: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "e", {"backbone": backbone, "in_channels": 3})
    found = bolus.export(source, to="hf", out=tmp_path / "out")
    assert found.differences["all"] < 1e-5
    processor = AutoImageProcessor.from_pretrained(str(tmp_path / "out"))
    square = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    pixels = processor(images=square, return_tensors="pt")["pixel_values"]
    encoder, _ = bolus.load_encoder(source)
    image = torch.from_numpy(square).permute(2, 0, 1)[None].float() / 255
    torch.testing.assert_close(pixels, (image - encoder.mean) / encoder.std, rtol=0, atol=1e-5)
    if backbone != "convnext_atto":  # whose model has a norm that its backbone lacks
        with torch.no_grad():
            pooled = AutoModel.from_pretrained(str(tmp_path / "out")).eval()(pixels).pooler_output.flatten(1)
            torch.testing.assert_close(pooled, encoder(image).pooled, rtol=0, atol=1e-4)
    bolus.export(tmp_path / "out", to="torch", out=tmp_path / "again")  # bolus opens it as an external encoder


@pytest.mark.parametrize(
    ("spec", "contract", "why"),
    [
        ({"backbone": "r18w32", "context": True}, {}, "context blocks; --no-keep-context"),
        ({"backbone": "r18w32", "neck": 8}, {}, "a neck"),
        ({"backbone": "r18w32", "stem_pool": False}, {}, "no pooling in its stem"),
        ({"backbone": "r18w32"}, {"frames": 2}, "it sees clips"),
        ({"backbone": "unet4"}, {}, "bolus_unet is not an architecture of transformers"),
    ],
)
def test_transformers_is_refused_what_it_cannot_open(
    spec: dict[str, Any], contract: dict[str, Any], why: str, tmp_path: Path
) -> None:
    with pytest.raises(EncoderError, match=f"{why}.*export it to onnx or torch"):
        bolus.export(saved(tmp_path / "e", spec, **contract), to="hf", out=tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_an_export_that_differs_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(tmp_path / "e", SMALL["a U-Net"])
    honest = models.Deployed.forward
    monkeypatch.setattr(models.Deployed, "forward", lambda self, images: tuple(1.001 * u for u in honest(self, images)))
    with pytest.raises(EncoderError, match=r"differs from bolus by 1.0e-03 of the largest value on 8 made"):
        bolus.export(source, to="torch", out=tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="choose a folder that is empty or new"):
        bolus.export(saved(tmp_path / "e", SMALL["a U-Net"]), to="torch", out=tmp_path / "out")
    with pytest.raises(UsageError, match="expected one of hf, onnx, torch, found 'onx'; did you mean 'onnx'"):
        bolus.export(tmp_path / "e", to="onx", out=tmp_path / "new")  # type: ignore[arg-type]
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


HEADS: dict[str, dict[str, Any]] = {
    "two classes": {"task": "classify", "classes": [0, 1], "num_classes": 2},
    "three classes": {"task": "classify", "classes": [0, 1, 2], "num_classes": 3},
    "a class that training lacked": {"task": "classify", "classes": [0, 2], "num_classes": 3},
    "a number": {"task": "regress", "classes": [], "num_classes": 0, "target_mean": 50.0, "target_scale": 9.0},
    "nothing to learn": {"kind": "constant", "task": "classify", "classes": [0, 1], "num_classes": 2},
}


@pytest.mark.parametrize("facts", HEADS.values(), ids=HEADS)
def test_a_head_goes_along(facts: dict[str, Any], tmp_path: Path) -> None:
    source, rng = saved(tmp_path / "e", SMALL["a U-Net"]), np.random.default_rng(0)
    facts = {"kind": "linear", **facts, "classes": np.array(facts["classes"], np.int64)}
    outputs = len(facts["classes"]) if len(facts["classes"]) > 2 else 1
    coef, intercept = rng.normal(size=(outputs, 64)) / 8, rng.normal(size=outputs)
    if facts["kind"] == "constant":
        coef, intercept = np.zeros((0, 64)), np.array([0.25, 0.75])
    head = Head(coef=coef, intercept=intercept, mean=rng.normal(size=64), scale=np.full(64, 0.5), target="x", **facts)
    head.save(tmp_path / "head.safetensors")
    found = bolus.export(source, to="onnx", out=tmp_path / "out", head=tmp_path / "head.safetensors")
    assert found.differences["all"] < 1e-5
    vectors, said = run_onnx(tmp_path / "out", images=np.random.default_rng(1).random((5, 1, 32, 32), np.float32))
    np.testing.assert_allclose(said, head.predict(vectors), rtol=1e-4, atol=1e-5)
    assert script(tmp_path / "out", "--test").returncode == 0


def test_a_head_of_other_weights_or_of_neighbours_is_refused(tmp_path: Path) -> None:
    source, zero, one = saved(tmp_path / "e", SMALL["a U-Net"]), np.zeros(64), np.ones(64)
    blank = {"intercept": np.zeros(1), "mean": zero, "scale": one, "classes": np.arange(2), "num_classes": 2}
    head = Head("linear", "classify", coef=np.zeros((1, 64)), **blank)
    head.signed("other weights", pd.Series(["p"])).save(tmp_path / "other.safetensors")
    Head("knn", "classify", coef=np.zeros((1, 64)), **blank, strength=1.0).save(tmp_path / "knn.safetensors")
    with pytest.raises(EvaluationError, match="fitted on embeddings of other weights"):
        bolus.export(source, to="torch", out=tmp_path / "out", head=tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="of kind knn, which holds embeddings of training patients"):
        bolus.export(source, to="torch", out=tmp_path / "out", head=tmp_path / "knn.safetensors")
    with pytest.raises(UsageError, match="of kind knn"):
        bolus.export(source, to="hf", out=tmp_path / "out", head=tmp_path / "knn.safetensors")
    assert not (tmp_path / "out").exists()


# Without bolus --------------------------------------------------------------------------

_NEITHER = ("torch", "bolus", "transformers", "pandas", "scipy", "kornia")


def script(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """The script of an export, in a process that has neither torch nor bolus."""
    hidden = folder.parent / "hidden"
    hidden.mkdir(exist_ok=True)
    (hidden / "sitecustomize.py").write_text(absent._HIDE.format(absent=_NEITHER))
    words = ("embed_without_bolus.py", *words)
    environment = {**absent.environment(folder.parent / "unused"), "PYTHONPATH": f"{hidden}:{':'.join(sys.path[1:])}"}
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


FILES = ["PNG of 8 bits", "PNG in colour", "PNG of 16 bits", "JPEG, turned", "TIFF, oblong", "radiographs", "CT",
         "MR by DICOM's series", "a stated range"]  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_the_script_sees_what_bolus_sees(kind: str, tmp_path: Path) -> None:
    make, contract = KINDS[kind]
    judged, cohort = opened(make(tmp_path), tmp_path, **contract)
    encoder: Any = judged.encoder
    write_contract(tmp_path, describe(encoder, judged.preprocessing, to="onnx", modality=None, reader=None, outputs=[]))
    embed_without_bolus.load(tmp_path)
    images, called = given(cohort, None)
    name = called["modality"][0] if "modality" in called else None
    found = embed_without_bolus.preprocess(embed_without_bolus.read_all(images, name), name)
    expected = bolus.preprocess(images, judged, **called).numpy()
    # A step of the cache is 1/255, and a value between two of them may go to the other on another processor.
    away = np.abs(found - expected)
    assert away.max() <= 1 / 255
    assert (away > 1e-5).mean() <= 0.001


@pytest.mark.parametrize("kind", ["PNG of 16 bits", "radiographs"])
def test_the_script_embeds_fresh_images_as_bolus_does(kind: str, tmp_path: Path) -> None:
    make, contract = KINDS[kind]
    judged, cohort = opened(make(tmp_path), tmp_path, **contract)
    source = tmp_path / "encoder"
    save_encoder(judged.encoder, source, preprocessing=judged.preprocessing.to_json())  # type: ignore[arg-type]
    bolus.export(source, to="onnx", out=tmp_path / "out", cohort=cohort)
    assert f"{len(cohort)} images of the cohort" in (tmp_path / "out" / "README.md").read_text()
    images, called = given(cohort, None)
    name = ["--modality", called["modality"][0]] if "modality" in called else []
    shown = script(tmp_path / "out", *images, "-o", tmp_path / "v.csv", *name)
    assert shown.returncode == 0, shown.stderr
    vectors = pd.read_csv(tmp_path / "v.csv").iloc[:, 1:].to_numpy()
    expected = np.stack(bolus.embed(source, cohort)["embedding"].tolist())
    assert np.abs(vectors - expected).max() <= 1e-4 * np.abs(expected).max()


def test_the_script_proves_itself_on_the_test_vectors(tmp_path: Path) -> None:
    source = saved(tmp_path / "e", SMALL["a U-Net"], ranges={"image": (0.0, 4095.0)}, mirror="left")
    bolus.export(source, to="onnx", out=tmp_path / "out")
    shown = script(tmp_path / "out", "--test")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("embedding differs by") == 2
    path = tmp_path / "out" / "test_vectors" / "eight-embedding.npy"
    np.save(path, 1.01 * np.load(path))
    assert script(tmp_path / "out", "--test").returncode == 1


def test_the_script_refuses_what_it_does_not_read(tmp_path: Path) -> None:
    bolus.export(saved(tmp_path / "e", SMALL["a U-Net"]), to="onnx", out=tmp_path / "out")
    make, _ = KINDS["PNG of 16 bits"]
    path = tmp_path / make(tmp_path)["image"][0]
    shown = script(tmp_path / "out", path, "-o", tmp_path / "v.csv")
    assert shown.returncode == 1
    assert "error: image 1: values of modality 'image', whose range is not in the contract" in shown.stderr
    assert not (tmp_path / "v.csv").exists()


def test_the_script_imports_nothing_of_bolus() -> None:
    text = Path(embed_without_bolus.__file__).read_text()
    assert "import bolus" not in text
    assert "from bolus" not in text
    assert "import torch" not in text


# From a run, and on the command line -----------------------------------------------------


def test_a_run_goes_out_with_its_head_checked_on_its_own_rows(
    tiny_cohort: Path, small_recipe: dict[str, Any], tmp_path: Path, call_bolus: Callable[..., tuple[int, str]]
) -> None:
    run = bolus.pretrain(tiny_cohort, recipe=small_recipe, out=tmp_path / "run", quiet=True)
    bolus.evaluate(run.folder, tiny_cohort, target="sick", probes=("linear",), draws=20)
    code, said = call_bolus("export", run.folder, "--to", "onnx", "-o", tmp_path / "out", "--head", "sick")
    assert code == 0, said
    assert "(8 images of the cohort)" in said
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"split {run.record['split_hash']}" in card.lower()
    assert "| classify | sick | linear | auroc |" in card
    assert f"images of {len(run.record['training_patients'])} patients" in card
    everything = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert not any(key.encode() in everything for key in run.record["training_patients"])
    assert b"P001" not in everything
    frame = bolus.predict(run.folder, tiny_cohort, head="sick", columns=["image"])
    paths = [tiny_cohort.parent / name for name in frame["image"][:5]]
    assert script(tmp_path / "out", *paths, "-o", tmp_path / "v.csv").returncode == 0
    found = pd.read_csv(tmp_path / "v.csv")["prediction_0"]
    np.testing.assert_allclose(found, frame.filter(like="probability:").iloc[:5, 0], atol=1e-4)
    code, said = call_bolus("export", run.folder, "--to", "hf", "-o", tmp_path / "hf")
    assert (code, "transformers cannot open this encoder: it has context blocks" in said) == (1, True)
    assert call_bolus("export", run.folder)[0] == 2


def result(encoder: str, estimate: float, probe: str = "linear", **more: Any) -> str:
    return Result(
        "classify", "sick", "auroc", estimate, 0.1, 0.9, 12, 6, encoder=encoder, probe=probe, **more
    ).to_json()


def test_a_card_quotes_results_of_what_goes_out_and_of_nothing_else(
    trained_copy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run was called otherwise when it was judged; its encoder has context blocks and BatchNorm."""
    folder = trained_copy.folder / "evaluations" / "classify-sick"
    (folder / "finetuned-sick").mkdir(parents=True)
    names = {"earlier": 0.511, "start": 0.522, "earlier without context": 0.533}
    lines = [*(result(name, value) for name, value in names.items()), result("earlier", 0.544, "finetune")]
    lines.append(result("earlier", 0.555, baseline="start"))
    (folder / "results.jsonl").write_text("\n".join(lines) + "\n")
    tuned, size = build_encoder(EncoderSpec(backbone="unet4"), seed=0).eval(), Preprocessing(24)
    save_encoder(tuned, folder / "finetuned-sick", preprocessing=size.to_json())
    make_head(folder / "finetuned-sick" / "head.safetensors", 64, 2, target="sick")

    cards: list[str] = []

    def keep_card(*positional: Any, **named: Any) -> str:
        cards.append(write_card(*positional, **named))
        return cards[-1]

    monkeypatch.setattr(deploying, "write_card", keep_card)
    for name in ("trace", "save_program", "open_program"):  # which take seconds, and are not asked here
        monkeypatch.setattr(programs, name, lambda *_: None)
    monkeypatch.setattr(deploying, "_compare", lambda *_: 0.0)
    asked: list[tuple[dict[str, Any], set[str]]] = [
        ({}, {"0.511", "0.544"}),
        ({"keep_context": False}, {"0.533"}),
        ({"head": "finetuned-sick"}, {"0.544"}),
    ]
    for number, (keys, values) in enumerate(asked):
        found = bolus.export(trained_copy.folder, to="torch", out=tmp_path / f"out{number}", **keys)
        assert set(re.findall(r"0\.5\d\d", cards[-1])) == values
        assert (STALE_NORMS in cards[-1]) == (STALE_NORMS in found.notes) == ("keep_context" in keys)
    with pytest.raises(UsageError, match="leave --no-keep-context out"):
        bolus.export(trained_copy.folder, to="torch", out=tmp_path / "x", head="finetuned-sick", keep_context=False)


def test_a_card_names_the_start_of_its_modality_and_no_folder(trained_copy: Run, tmp_path: Path) -> None:
    path = trained_copy.folder / "recipe.yaml"
    keys = ["encoder.backbone=runs/doe/encoder", "encoders=per_modality", "modalities.OCT.encoder.backbone=unet4"]
    recipe = Recipe.load(path).override(keys)
    path.write_text(recipe.to_yaml())
    run = Run(trained_copy.folder)
    encoder, contract = build_encoder(EncoderSpec(backbone="unet4"), seed=0), Preprocessing(24)
    judged = Judged("a", encoder, contract, run)
    for modality, start in ((None, "an encoder of a folder"), ("OCT", "unet4")):
        described = describe(encoder, contract, to="torch", modality=modality, reader=None, outputs=["embedding"])
        check = {"rows": "8 made images", "largest_difference": 0.0}
        card = write_card(judged, {**described, "check": check})
        assert f"- Start: {start}, random weights" in card
        assert "doe" not in card
    path.write_text(recipe.override(["encoder.backbone=doe/encoder"]).to_yaml())
    run.record["ancestors"] = [{"salt": "5a17", "keys": []}]  # so that it is no name on the hub
    card = write_card(replace(judged, run=run), {**described, "modality": None, "check": check})
    assert "doe" not in card
    path.write_text(recipe.override(["encoder.inflated=true", "encoder.pretrained=true"]).to_yaml())
    card = Run(trained_copy.folder).card()
    assert "- Inflated: the encoder of a folder is a network of images; its pretrained weights" in card
    assert "doe" not in card


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(BolusError, match=r"ONNX exports need the package onnxscript.*pip install onnxscript"):
        bolus.export(saved(tmp_path / "e", SMALL["a U-Net"]), to="onnx", out=tmp_path / "out")
    assert deploying.FORMATS == ("hf", "onnx", "torch")
