"""A tree of DICOM series to an encoder that is judged, shown and given away, by the command line alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pandas as pd
import pytest

from bolus.data.cohort.cohort import Cohort
from bolus.recipe import Recipe
from bolus.run import Run
from volume_tree import NAMES, write_tree

pytest.importorskip("blosc2", reason="the package blosc2 is not installed")

Call = Callable[..., tuple[int, str]]


def test_scan_to_export_of_a_tree_of_series(tmp_path: Path, call_bolus: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOLUS_CACHE", str(tmp_path / "cache"))
    key = tmp_path / "secret" / "key"  # one that is known, as the split hashes what it hashed
    key.parent.mkdir()
    key.write_text("volumes of a test " * 4)
    key.chmod(0o600)
    monkeypatch.setenv("BOLUS_KEY", str(key))
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    said: dict[str, str] = {}

    def do(*words: object) -> str:
        code, shown = call_bolus(*words)
        assert code == 0, shown
        said[" ".join(map(str, words[:2]))] = shown
        return shown

    export = write_tree(tmp_path / "export", gap_of=3)
    do("scan", export, "-o", "cohort.yaml")
    assert Cohort.open("cohort.yaml").spec.unit == "volume"
    table = pd.read_csv("cohort.csv")
    assert (len(table), table["patient"].nunique(), table["series"].nunique()) == (255, 8, 16)
    assert {"series", "order"} <= set(table)
    split = ("--split", "test=0.3", "--split", "val=0.2", "--split", "seed=1")
    code, shown = call_bolus("check", "cohort.yaml", "-o", "cohort.yaml", *split)
    assert code in (0, 1), shown
    assert "1 volume cannot be laid" in " ".join(shown.split())
    said["check"] = shown

    do("plan", "cohort.yaml", "-o", "recipe.yaml")
    recipe = Recipe.load("recipe.yaml")
    assert (recipe.images.unit, recipe.images.sides, recipe.images.steps) == ("volume", (16, 24, 24), (3.0, 1.5, 1.5))
    few = ("training.max_steps=2", "encoder.backbone=r10w8_3d", "training.health_epochs=null")
    train = ("pretrain", "cohort.yaml", "--recipe", "recipe.yaml", "--out", "runs/a")
    dry = do(*train, "--dry-run", *few)
    assert "boxes of 16 x 24 x 24 voxels/s" in dry
    assert "GiB at the peak, 2 steps of" in dry
    do(*train, *few)
    assert Run.open(Path("runs/a")).status == "finished"

    do("embed", "runs/a", "cohort.yaml", "-o", "embeddings.parquet")
    embedded = pd.read_parquet("embeddings.parquet")
    assert sorted(embedded["rows"]) == [16] * 15, "the series that lacks a slice is left out"
    do("evaluate", "regress", "runs/a", "cohort.yaml", "--target", "age", "--probes", "linear")
    do("report", "runs/a", "-o", "report.html", "--thumbnails")
    page = Path("report.html").read_text(encoding="utf-8")
    assert "boxes of 16 x 24 x 24 voxels of 3 x 1.5 x 1.5 mm (depth, height, width: 48 x 36 x 36 mm)" in page
    assert "A picture of a volume shows its middle slice." in page
    assert "data:image/jpeg" in page

    do("predict", "runs/a", "cohort.yaml", "--head", "attribute:age", "-o", "ages.csv")
    ages = pd.read_csv("ages.csv")
    assert (len(ages), int(ages["prediction"].notna().sum())) == (16, 15)
    do("export", "runs/a", "--to", "onnx", "-o", "onnx")
    session = onnxruntime.InferenceSession("onnx/model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1:] == [1, 16, 24, 24]

    shown = " ".join(said.values())
    written = [page, *(path.read_text(encoding="utf-8") for path in work.rglob("*") if path.suffix in TEXTS)]
    for text in (shown, *written):
        assert not [name for name in NAMES if name in text.replace(str(export), "")]
    assert json.loads(Path("cohort-scan.json").read_text(encoding="utf-8"))["unit"] == "volume"


TEXTS = (".yaml", ".csv", ".json", ".jsonl", ".md", ".html")
