"""Write what `tests/test_kept.py` keeps of a version: run with that version's `src` first on PYTHONPATH.

    cd tests/kept && PYTHONPATH=CHECKOUT/src python make.py NAME [BACKBONE]

The folder `NAME` is made anew, and `cohort` where there is none.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SHAPE = (3, 1, 16, 16)
LEFT_OUT = ("predictions.parquet", "checkpoints")  # of a finished run


def pixels() -> Tensor:
    """The same images in [0, 1] everywhere: no random numbers, no file."""
    import torch

    count = torch.arange(SHAPE[0] * 16 * 16)
    return ((count * count // 7 + 13 * count) % 97).reshape(SHAPE) / 96


def recipe(backbone: str) -> dict[str, object]:
    """A contrast and a measure, with what a checkpoint may hold: moments, goals of a combiner, statistics of norms."""
    return {
        "name": "kept",
        "encoder": {"backbone": backbone, "neck": 12},
        "images": {"size": 16, "views": 2},
        "sampling": {"batch_size": 8},
        "objectives": {
            "views": {"kind": "contrast", "relation": "views", "dim": 8, "hidden": 8},
            "age": {"kind": "predict", "targets": ["score:age"]},
        },
        "combiner": {"kind": "grad_mitigator", "conflict_steps": 2},
        "training": {"epochs": 9, "max_steps": 3, "log_steps": 1},
    }


def make_cohort(folder: Path) -> None:
    """A phantom of 16 patients, three images each, without masks."""
    import pandas as pd

    import bolus

    with tempfile.TemporaryDirectory() as place:
        table = pd.read_csv(bolus.make_phantom(place, num_patients=16, size=16), dtype=str, keep_default_na=False)
        table = table.groupby("patient").head(3).drop(columns="mask")
        (folder / "images").mkdir(parents=True)
        for name in table["image"]:
            shutil.copyfile(Path(place, name), folder / name)
        table.to_csv(folder / "table.csv", index=False, lineterminator="\n")
        text = Path(place, "cohort.yaml").read_text(encoding="utf-8").replace("  mask: mask\n", "")
        (folder / "cohort.yaml").write_text(text.replace("val: 0.1\n  test: 0.3", "val: 0.25\n  test: 0.4"))


def make(name: str, backbone: str) -> None:
    """A finished run with an evaluation, one that was stopped, encoders of two modalities, and what they give."""
    import torch

    import bolus
    from bolus.prediction.prediction import Head

    place, cohort, cache = Path(name), Path("cohort/cohort.yaml"), Path(tempfile.mkdtemp())
    shutil.rmtree(place, ignore_errors=True)
    given = {"recipe": recipe(backbone), "cache": cache, "quiet": True}
    run = bolus.pretrain(cohort, out=place / "finished", **given)
    bolus.pretrain(cohort, out=place / "stopped", overrides=["training.max_hours=1e-9"], **given)
    own = ["encoders=per_modality", "encoder.backbone=unet1", "training.max_steps=1"]
    bolus.pretrain(cohort, out=place / "modalities", overrides=own, **given)

    encoder, _ = bolus.load_encoder(run.encoder)
    encoder = encoder.double()
    with torch.no_grad():
        pooled = encoder(pixels().double()).pooled.reshape(3, -1)
    expected: dict[str, object] = {"pooled": pooled.tolist()}
    for task, target, column in (("classify", "disease", "probability:1"), ("regress", "age", "prediction")):
        bolus.evaluate(run.folder, cohort, task=task, target=target, probes=("linear",), draws=50, cache=cache)
        (path,) = run.folder.glob(f"evaluations/*/head-{target}-linear.safetensors")
        frame = bolus.predict(run.folder, cohort, head=target, cache=cache)
        expected[target] = {
            "of_pooled": Head.load(path).predict(pooled.numpy()).tolist(),
            "of_cohort": frame[column].tolist(),
        }
    (place / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")

    for path in [each for part in LEFT_OUT for each in place.glob(f"*/**/{part}") if "stopped" not in each.parts]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (place / "modalities").iterdir():
        if path.name != "encoder":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in place.glob("*/run.json"):
        path.write_text(re.sub('"platform": ".*"', '"platform": "Linux"', path.read_text()))
    for path in place.glob("*/cohort.yaml"):  # written with the whole path of the table
        path.write_text(re.sub("(?m)^table: .*$", "table: ../../cohort/table.csv", path.read_text()))
    shutil.rmtree(cache)


if __name__ == "__main__":
    if not Path("cohort").is_dir():
        make_cohort(Path("cohort"))
    make(sys.argv[1], *(sys.argv[2:] or ["unet1"]))
