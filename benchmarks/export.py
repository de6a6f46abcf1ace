"""Round trips: encoders exported and opened by the other program, and fresh images embedded without torch and bolus.

python benchmarks/export.py [--images 200]

Rows are those of `cxr`, `odir` and `lus_blues` (see grid.py). Weights are random, and norms have seen some of the rows.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydicom.data import get_testdata_file

import bolus
from bolus.data.cohort.cohort import Cohort
from bolus.data.images.cache import Preprocessing, build_store
from bolus.embedding.fresh import preprocess
from bolus.embedding.opening import Judged
from bolus.encoders.backbone import seeded
from bolus.encoders.building import build_encoder
from bolus.encoders.families.unet import MaskDecoder
from bolus.encoders.folders.folder import save_encoder
from bolus.encoders.folders.modality_folder import save_encoders
from bolus.encoders.modalities import build_encoders
from bolus.errors import EncoderError, UsageError
from bolus.evaluation.probing.heads import Head
from bolus.evaluation.segmentation.saved import save_segmenter
from bolus.evaluation.segmentation.segmenter import Segmenter
from bolus.recipe import EncoderSpec
from grid import DATA, RESULTS, run_grid

MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "r18w32": ({"backbone": "r18w32"}, 64),
    "resnet50": ({"backbone": "resnet50", "in_channels": 3}, 128),
    "vit_tiny": ({"backbone": "vit_tiny"}, 64),
    "dinov2_small": ({"backbone": "dinov2_small", "in_channels": 3}, 112),
    "efficientnet_lite0": ({"backbone": "efficientnet_lite0", "in_channels": 3}, 128),
    "unet8": ({"backbone": "unet8"}, 64),
    "mlvicx with context": ({"backbone": "r18w32", "context": True, "stem_pool": False}, 64),
    "TSM clip": ({"backbone": "r18w32", "temporal_shift": 8}, 64),
}
READ = {"resnet50 with a head": "resnet50", "dinov2_small with a head": "dinov2_small", "unet8, segmenter": "unet8",
        "resnet50, segmenter": "resnet50"}  # fmt: skip
TWO = "two modalities"
ROWS = 64  # that norms see, and that ranges come from
FRAMES = 4

HIDDEN = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "bolus", "transformers", "pandas", "scipy", "kornia"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Without())
"""


def rows_of(name: str, number: int, **columns: Any) -> pd.DataFrame:
    """The first rows of a public cohort, with paths that hold anywhere."""
    table = pd.read_csv(DATA / name / "meta.csv", dtype=str).head(number)
    found = pd.DataFrame({"image": [str(DATA / name / each) for each in table["image"]], "patient": table["patient"]})
    return found.assign(**columns, **({"series": table["video"], "order": table["frame"]} if "video" in table else {}))


def source_of(model: str, folder: Path) -> tuple[Path, Cohort]:
    """An encoder folder, and the rows that its export is compared on."""
    cache = folder / "cache"
    if model == TWO:
        specs = {"CFP": EncoderSpec(backbone="r18w32", in_channels=3), "XR": EncoderSpec(backbone="vit_tiny")}
        table = pd.concat([rows_of("odir", ROWS, modality="CFP"), rows_of("cxr", ROWS, modality="XR")])
        cohort = Cohort.open(table.reset_index(drop=True))
        asked = Preprocessing(64, modalities={"CFP": Preprocessing(96, 3)})
        contract = build_store(cohort, asked, folder=cache).preprocessing
        both = build_encoders(specs, seed=0).eval()
        save_encoders(both, folder / "encoder", contract, card=lambda name: "", lineage=[])
        return folder / "encoder", cohort
    spec, size = MODELS[model]
    clips = "temporal_shift" in spec
    cohort = Cohort.open(rows_of("lus_blues" if clips else "cxr", ROWS))
    encoder = build_encoder(EncoderSpec(**spec), seed=0)
    asked = Preprocessing(size, encoder.spec.in_channels, frames=FRAMES if clips else None)
    contract = build_store(cohort, asked, folder=cache).preprocessing
    if not clips:
        paths = [cohort.image_path(row) for row in range(16)]
        with torch.no_grad():
            for _ in range(3):
                encoder.train()(preprocess(paths, Judged("", encoder, contract, None)))
    save_encoder(encoder.eval(), folder / "encoder", preprocessing=contract.to_json())
    return folder / "encoder", cohort


def reader_of(model: str, source: Path, folder: Path, cohort: Cohort) -> Path | None:
    """A head of random weights on an encoder folder's embeddings, or a segmenter of four classes; None: neither."""
    if model not in READ:
        return None
    encoder, contract = bolus.load_encoder(source)
    if model.endswith("head"):
        x = np.stack(bolus.embed(source, cohort, cache=folder / "cache")["embedding"].tolist())
        coef = np.random.default_rng(0).normal(size=(3, x.shape[1])) / x.shape[1] ** 0.5
        facts: dict[str, Any] = {"mean": x.mean(0), "scale": x.std(0) + 1e-6, "classes": np.arange(3), "num_classes": 3}
        head = Head("linear", "classify", coef=coef, intercept=np.zeros(3), target="x", **facts)
        head.save(folder / "head.safetensors")
        return folder / "head.safetensors"
    store = build_store(cohort, Preprocessing(**contract), folder=folder / "cache")
    with seeded(0):
        decoder = MaskDecoder(encoder.shape, 4)
    made = Segmenter(encoder, decoder.eval(), store, cohort.samples("image"), 4)
    labels = {1: "a", 2: "b", 3: "c"}
    save_segmenter(made, folder / "segmenter-mask", labels=labels, patients=cohort.patients, lineage=[])
    return folder / "segmenter-mask"


def measure(model: str, to: Any) -> dict[str, Any]:
    """One round trip: the largest difference, as a share of the largest value; or why there is none."""
    if model == "fresh":
        return without_bolus(int(to))
    with tempfile.TemporaryDirectory() as name:
        source, cohort = source_of(READ.get(model, model), Path(name))
        head = reader_of(model, source, Path(name), cohort)
        try:
            found = bolus.export(source, to=to, out=Path(name) / "out", head=head, cohort=cohort)
        except (EncoderError, UsageError) as error:
            return {"refused": str(error)}
        size = sum(path.stat().st_size for path in found.folder.rglob("*") if path.is_file())
        return {"difference": max(found.differences.values()), "rows": found.rows, "mib": round(size / 2**20, 1)}


def without_bolus(number: int) -> dict[str, Any]:
    """Images through the script of an ONNX export in a process without torch and bolus, against `bolus embed`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, _ = source_of("mlvicx with context", folder)
        bolus.export(source, to="onnx", out=folder / "out")
        dicom = [str(get_testdata_file(each, download=False)) for each in ("CT_small.dcm", "MR_small.dcm")]
        paths = [*rows_of("cxr", ROWS + number - len(dicom)).image[ROWS:], *dicom]
        (folder / "without" / "x").mkdir(parents=True)
        (folder / "without" / "sitecustomize.py").write_text(HIDDEN)
        words = ["embed_without_bolus.py", *paths, "-o", str(folder / "found.csv")]
        search = os.pathsep.join([str(folder / "without"), *filter(None, [os.environ.get("PYTHONPATH")])])
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, *words], cwd=folder / "out", env={**os.environ, "PYTHONPATH": search}, check=True
        )
        seconds = time.perf_counter() - began
        found = pd.read_csv(folder / "found.csv").iloc[:, 1:].to_numpy()
        table = pd.DataFrame({"image": paths, "patient": [str(row) for row in range(len(paths))]})
        expected = np.stack(bolus.embed(source, table, cache=folder / "cache")["embedding"].tolist())
        away: Mapping[str, Any] = {"difference": float(np.abs(found - expected).max() / np.abs(expected).max())}
        return {**away, "images": len(paths), "seconds_of_script": round(seconds, 1)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    asked = parser.parse_args()
    trips = [{"model": model, "to": to} for model in (*MODELS, TWO, *READ) for to in ("onnx", "torch", "hf")]
    for line in run_grid(RESULTS / "export.jsonl", [*trips, {"model": "fresh", "to": str(asked.images)}], measure):
        print(line["cell"], line["result"])
