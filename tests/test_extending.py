"""The module that docs/extending.md shows piece by piece, and its command, on a small phantom."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image as PillowImage

from bolus import make_phantom
from bolus.data.cohort.cohort import Cohort
from bolus.encoders.building import build_encoder
from bolus.evaluation.segmentation.annotation import read_annotations
from bolus.recipe import EncoderSpec, Recipe
from bolus.run import Run
from test_docs import PAGES, blocks, commands

PAGE = PAGES["docs/extending.md"]
SMALL = ("images.size=16", "sampling.batch_size=8", "training.max_steps=2", "encoder.stem_pool=true")


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `mine.py` as the page shows it, which can be imported, and nothing of an earlier test in memory."""
    folder = tmp_path / "shown"
    folder.mkdir()
    (folder / "mine.py").write_text("\n\n".join(blocks(PAGE, "python")), encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("BOLUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return folder


@pytest.fixture
def stacked(tmp_path: Path) -> Path:
    """A phantom whose images and masks are NumPy files of 16 bits, with a cohort.yaml as the page shows it."""
    table = make_phantom(tmp_path / "phantom", num_patients=16, size=16)
    frame = pd.read_csv(table, dtype=str, keep_default_na=False).groupby("patient").head(3)
    for column in ("image", "mask"):
        for name in frame[column]:
            if name:
                pixels = np.asarray(PillowImage.open(table.parent / name))
                np.save(table.parent / name.replace(".png", ".npy"), pixels.astype(np.uint16))
                (table.parent / name).unlink()
        frame[column] = frame[column].str.replace(".png", ".npy")
    frame.to_csv(table, index=False)
    stated = yaml.safe_load((table.parent / "cohort.yaml").read_text(encoding="utf-8"))
    (added,) = (yaml.safe_load(block) for block in blocks(PAGE, "yaml"))
    assert added.pop("table") == stated["table"]
    path = table.parent / "cohort.yaml"
    path.write_text(yaml.safe_dump({**stated, **added}), encoding="utf-8")
    return path


def test_the_command_of_the_page_trains_all_four_parts(
    shown: Path, stacked: Path, monkeypatch: pytest.MonkeyPatch, call_bolus: Callable[..., tuple[int, str]]
) -> None:
    monkeypatch.chdir(stacked.parent)
    (words,) = [words for verb, words in commands(PAGE) if verb == "pretrain" and "runs/a" in words]
    code, said = call_bolus("pretrain", *shlex.split(" ".join(words)), *SMALL)
    assert code == 0, said
    run = Run.open(Path("runs/a"))
    assert run.recipe.encoder.backbone == "mine:net"
    assert run.recipe.images.augment.own[0].model_dump() == {"kind": "mine:speckle", "strength": 0.2}
    assert run.recipe.objectives["mine"].model_dump() == {
        "kind": "mine:Shrink", "weight": 0.1, "head": None, "length": 1.0,
    }  # fmt: skip
    assert all(line["losses"]["mine"] > 0 for line in run.metrics() if line["kind"] == "train")
    code, said = call_bolus("check", "cohort.yaml", "-o", "checked.yaml")
    assert code == 0, said
    assert yaml.safe_load(Path("checked.yaml").read_text())["readers"] == {".npy": "mine:read"}
    masks = read_annotations(Cohort.open("checked.yaml"))
    assert (masks.names, len(masks.codes) > 10) == (("1", "2"), True)


def test_nets_of_other_libraries_that_the_page_names(shown: Path) -> None:
    (command,) = re.findall(r"`encoder.backbone=(monai\S+) encoder.arguments=\"(.*)\"`", PAGE)
    spec = Recipe.load("simclr").override([f"encoder.backbone={command[0]}", f"encoder.arguments={command[1]}"]).encoder
    encoder = build_encoder(spec, seed=0).eval()
    with torch.no_grad():
        assert encoder(torch.rand(2, 1, 64, 64)).pooled.shape == (2, 64)


def test_timm_as_the_page_shows_it(shown: Path) -> None:
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError) as error:  # torchvision beside a torch it was not built for
        pytest.skip(f"timm cannot be imported: {error}")
    encoder = build_encoder(EncoderSpec(backbone="mine:timm_net"), seed=0).eval()
    with torch.no_grad():
        features = encoder(torch.rand(2, 1, 64, 64))
    assert features.pooled.shape == (2, 512)
    assert [level.stride for level in encoder.shape.levels] == [2, 4, 8, 16, 32]
