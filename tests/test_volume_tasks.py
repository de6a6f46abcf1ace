"""Every question that is asked of images is asked of volumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import bolus
from bolus.data.images.preprocessing import Preprocessing
from bolus.data.volumes.fit import VolumeFit
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import save_encoder
from bolus.recipe import EncoderSpec

pytest.importorskip("blosc2", reason="the package blosc2 is not installed")

Call = Callable[..., tuple[int, str]]
SEVERE = ("classify", "--target", "severe", "--role", "label:severe=severe", "--min-patients", "2")


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 24 patients at two visits, with a label, and an encoder that was not trained."""
    folder = tmp_path_factory.mktemp("tasks")
    bolus.make_volume_phantom(folder / "heads", num_patients=24, size=16)
    table = pd.read_csv(folder / "heads" / "table.csv")
    severe = (table["severity"] > table["severity"].median()).astype(int)
    table.assign(severe=severe).to_csv(folder / "heads" / "table.csv", index=False)
    encoder = build_encoder(EncoderSpec(backbone="r10w8_3d"), seed=0)
    contract = Preprocessing(16, volume=VolumeFit((16, 16, 16), (12.0, 12.0, 12.0)))
    save_encoder(encoder, folder / "encoder", preprocessing=contract.to_json())
    return folder


@pytest.mark.parametrize(
    ("words", "metric"),
    [
        (SEVERE, "auroc"),
        ((*SEVERE, "--probes", "frozen,finetune", "--epochs", "1"), "auroc"),
        (("regress", "--target", "severity", "--audit", "--by", "sex"), "mae"),
        (("change", "--target", "severity", "--tolerance", "0.5"), "macro_auroc"),
        (("retrieve", "--across", "visit"), "top_1"),
    ],
)
def test_a_question_is_asked_of_volumes(
    judged: Path, tmp_path: Path, call_bolus: Call, words: tuple[str, ...], metric: str
) -> None:
    task, *rest = words
    paths = ("--encoder", judged / "encoder", judged / "heads" / "cohort.yaml")
    code, said = call_bolus("evaluate", task, *paths, *rest, "--cache", judged / "cache", "-o", tmp_path / "out")
    assert code == 0, said
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    found = {(each["encoder"], each["metric"]) for each in lines if not each.get("baseline")}
    assert {("encoder", metric), ("random-init", metric)} <= found
