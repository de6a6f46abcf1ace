"""Encoders of volumes as ONNX and as programs of torch: any number of volumes, the same numbers, and boxes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch

import bolus
from bolus.data.cohort.cohort import Cohort
from bolus.data.images.preprocessing import Preprocessing
from bolus.data.volumes.fit import VolumeFit
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import save_encoder
from bolus.errors import EncoderError
from bolus.exporting import programs
from bolus.exporting.models import Deployed
from bolus.exporting.rows import rows_of
from bolus.recipe import EncoderSpec

BOX = (16, 32, 16)
SMALL: dict[str, dict[str, Any]] = {
    "a ResNet": {"backbone": "r18w4_3d"},
    "a U-Net with a neck": {"backbone": "unet3d2", "neck": 3},
    "an inflated network": {"backbone": "unet2", "inflated": True},
    "context blocks": {"backbone": "r10w4_3d", "context": True},
}


def saved(folder: Path, keys: dict[str, Any]) -> Path:
    encoder = build_encoder(EncoderSpec(**keys), seed=0).eval()
    contract = Preprocessing(32, fit="pad", volume=VolumeFit(BOX, (3.0, 1.0, 1.0)))
    save_encoder(encoder, folder, preprocessing=contract.to_json())
    return folder


@pytest.mark.parametrize(
    "keys",
    [pytest.param(keys, id=name, marks=[] if name == "a ResNet" else pytest.mark.slow) for name, keys in SMALL.items()],
)
def test_one_program_for_any_number_of_volumes(keys: dict[str, Any], tmp_path: Path) -> None:
    encoder = build_encoder(EncoderSpec(**keys), seed=0).eval()
    model = Deployed(encoder)
    program = programs.trace(model, (torch.rand(2, 1, *BOX),))
    programs.save_onnx(program, tmp_path / "model.onnx", model.outputs, {})
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for number in (1, 3):
        volumes = torch.rand(number, 1, *BOX, generator=torch.Generator().manual_seed(number))
        with torch.no_grad():
            wanted = encoder(volumes).pooled.numpy()
        (found,) = session.run(None, {"images": volumes.numpy()})
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("to", ["onnx", "torch"])
def test_an_encoder_of_volumes_goes_out_with_its_contract(to: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path / "e", SMALL["a U-Net with a neck"])
    found = bolus.export(folder, to=to, out=tmp_path / "out")
    assert found.differences["all"] <= 1e-4
    assert found.rows["all"].startswith("8 made volumes")
    contract = json.loads((tmp_path / "out/contract.json").read_text())
    assert contract["inputs"]["images"]["shape"] == ["batch", 1, *BOX]
    assert contract["preprocessing"]["volume"] == {"size": list(BOX), "spacing": [3.0, 1.0, 1.0], "foreground": False}
    assert contract["outputs"] == {"embedding": ["batch", 3]}
    card = (tmp_path / "out/README.md").read_text()
    assert "batch x 1 x 16 x 32 x 16" in card
    if to == "torch":
        return
    assert "boxes of voxels" in card
    script = [sys.executable, str(tmp_path / "out/embed_without_bolus.py")]
    tested = subprocess.run([*script, "--test"], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stderr
    assert "volumes-tensor.npy: embedding differs by" in tested.stdout
    refused = subprocess.run([*script, str(tmp_path / "a.nii.gz")], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "this encoder is of volumes, which this script does not read" in refused.stderr


def test_scans_of_one_patient_without_visit_or_order_are_volumes_each(tmp_path: Path) -> None:
    judged, rows = bolus.open_encoder(saved(tmp_path / "e", SMALL["a ResNet"])), []
    for number in range(3):
        voxels = np.random.default_rng(number).integers(0, 200, (20, 36, 10)).astype(np.int16)
        nibabel.Nifti1Image(voxels, np.diag([1.0, 1.0, 3.0, 1.0])).to_filename(tmp_path / f"{number}.nii.gz")
        rows.append([f"{number}.nii.gz", "p", 50 + number])
    table = pd.DataFrame(rows, columns=["image", "patient", "age"])
    (tmp_path / "cohort.yaml").write_text("table: t.csv\nranges: {image: [0, 200]}\n")
    for more, origin in (
        ({}, "8 windows of volumes of the cohort"),
        ({"order": 1, "series": "s"}, "8 made volumes (the cohort holds no volumes: rows 1, 2, 3: order ('order') has"),
    ):
        table.assign(**more).to_csv(tmp_path / "t.csv", index=False)
        shown = rows_of(judged, Cohort.open(tmp_path / "cohort.yaml"), None, judged.preprocessing, "")
        assert shown.origin.startswith(origin)
        assert shown.images.shape == (8, 1, *BOX)


def test_transformers_cannot_open_an_inflated_network(tmp_path: Path) -> None:
    folder = saved(tmp_path / "e", {"backbone": "r18w32", "inflated": True})
    with pytest.raises(EncoderError, match="it sees volumes; export it to onnx or torch"):
        bolus.export(folder, to="hf", out=tmp_path / "out")
