"""Parts of one's own, by import path or entry point: trained, resumed, judged, used in a new process; and refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bolus import evaluate, predict, pretrain
from bolus.data.readers.own import open_readers
from bolus.data.views.presets import resolve
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import load_encoder, save_encoder
from bolus.errors import EncoderError, RecipeError
from bolus.objectives import OBJECTIVES
from bolus.recipe import AugmentSpec, EncoderSpec, OwnAugmentSpec, Recipe
from bolus.recipes.own import find_own

MODULE = '''
from shutil import rmtree

import numpy as np
import PIL.Image
import torch
from torch import nn

from bolus.data.batches.relation import Needs
from bolus.data.pixels.image import Image, own_range
from bolus.objectives.base import Loss, Objective


class Vectors(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x):
        return self.layers(x)


class Maps(nn.Module):
    def __init__(self, in_channels, width):
        super().__init__()
        self.first, self.second = nn.Conv2d(in_channels, width, 3, 2, 1), nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.drop = nn.Dropout(0.3)

    def forward(self, x):
        first = self.drop(self.first(x).relu())
        return [first, self.second(first).relu()]


def vectors(width=8):
    return Vectors(width)


def maps(in_channels=3, width=4):
    return Maps(in_channels, width)


def text():
    return "no module"


def words():
    class Words(nn.Module):
        def forward(self, x):
            return {"a": x}

    return Words()


def gain(images, generator, *, most: float = 0.5):
    shape = (len(images),) + (1,) * (images.ndim - 1)
    return images * (1 - most * torch.rand(shape, generator=generator, device=images.device))


def read(path):
    array = np.asarray(PIL.Image.open(path), np.float32)[None] * 3
    return Image(array, spacing=None, range=own_range(array), bits=16, inverted=False)


class Shrink(Objective):
    """Features of length one."""

    needs = Needs(views=1)

    def __init__(self, shape, *, length=1.0):
        super().__init__()
        self.length = length

    def embed(self, features, batch):
        return {"z": features.pooled}

    def loss(self, embedded, batch):
        z = embedded["z"].flatten(0, 1)
        return Loss((z.norm(dim=1) - self.length).square().mean(), len(z))
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of one's own, on the path of this process and of those it starts."""
    name = f"mine_{abs(hash(str(tmp_path)))}"
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / f"{name}.py").write_text(MODULE)
    (tmp_path / "parts" / f"{name}_broken.py").write_text("import torch\n\nnet = no_such_name\n")
    monkeypatch.syspath_prepend(str(tmp_path / "parts"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "parts"), os.environ.get("PYTHONPATH", "")]))
    return name


def test_what_a_factory_gives_becomes_features(mine: str, tmp_path: Path) -> None:
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    flat = build_encoder(EncoderSpec(backbone=f"{mine}:vectors", arguments={"width": 6}), seed=0).eval()
    assert (flat.shape.dim, flat.num_channels) == (6, 3), "grey is repeated: the module takes three channels"
    deep = build_encoder(EncoderSpec(backbone=f"{mine}:maps"), seed=0).eval()
    assert (deep.shape.dim, deep.num_channels) == (8, 1), "in_channels is passed where the factory takes it"
    assert [(level.channels, level.stride) for level in deep.shape.levels] == [(4, 2), (8, 4)]
    for number, encoder in enumerate((flat, deep)):
        save_encoder(encoder, tmp_path / str(number), preprocessing={"size": 32})
        again, _ = load_encoder(tmp_path / str(number))
        with torch.no_grad():
            assert torch.equal(again(images).pooled, encoder(images).pooled)
        twin = encoder.twin(seed=1)
        assert not torch.equal(next(twin.parameters()), next(encoder.parameters()))
        same = build_encoder(encoder.spec, seed=0)
        assert torch.equal(next(same.parameters()), next(encoder.parameters()))
    loaded = build_encoder(EncoderSpec(backbone=f"{mine}:vectors", pretrained=True), seed=0)
    assert not torch.equal(next(loaded.twin(seed=0).parameters()), next(loaded.parameters())), "a twin is drawn anew"


@pytest.mark.parametrize(
    ("keys", "error", "said"),
    [
        ({"backbone": "no_such_module_at_all:net"}, RecipeError, "cannot be imported .*PYTHONPATH"),
        ({"backbone": "MINE_broken:net"}, RecipeError, r"cannot be imported \(NameError: .*see what it does"),
        ({"backbone": "MINE:vector"}, RecipeError, "did you mean 'vectors'"),
        ({"backbone": "MINE:text"}, EncoderError, "expected a torch module, found str"),
        ({"backbone": "MINE:words"}, EncoderError, r"expected \[B, C, h, w\], \[B, D\] or a list of maps"),
        ({"backbone": "MINE:vectors", "arguments": {"depth": 3}}, EncoderError, "do not fit"),
        ({"backbone": "resnet18", "arguments": {"depth": 3}}, EncoderError, "for a factory of your own"),
    ],
)
def test_what_is_wrong_is_told(mine: str, keys: dict[str, Any], error: type[Exception], said: str) -> None:
    keys = {**keys, "backbone": keys["backbone"].replace("MINE", mine)}
    with pytest.raises(error, match=said):
        build_encoder(EncoderSpec(**keys), seed=0)


def test_own_parts_are_trained_resumed_judged_and_used_in_a_new_process(
    mine: str, tiny_cohort: Path, tmp_path: Path
) -> None:
    tiny_cohort.write_text(f"{tiny_cohort.read_text()}readers: {{.png: '{mine}:read'}}\n")
    recipe = Recipe.load(
        {
            "name": "mine",
            "encoder": {"backbone": f"{mine}:maps", "arguments": {"width": 4}},
            "images": {"size": 24, "views": 2, "augment": {"own": [{"kind": f"{mine}:gain"}]}},
            "sampling": {"batch_size": 8},
            "objectives": {"views": {"kind": "contrast", "relation": "views"}, "short": {"kind": f"{mine}:Shrink"}},
            "training": {"max_steps": 4, "log_steps": 1, "precision": "fp32"},
        }
    )
    options: dict[str, Any] = {"cache": tmp_path / "cache", "quiet": True}
    whole = pretrain(tiny_cohort, recipe=recipe, out=tmp_path / "whole", **options)
    part = pretrain(
        tiny_cohort, recipe=recipe, out=tmp_path / "part", overrides={"training.max_hours": 1e-9}, **options
    )
    assert part.status == "stopped"
    part = pretrain(tiny_cohort, recipe=recipe, out=tmp_path / "part", resume=True, **options)
    assert part.record["weights"] == whole.record["weights"]
    assert all("short" in line["losses"] for line in whole.metrics() if line["kind"] == "train")
    evaluate(whole.folder, tiny_cohort, target="sick", probes=("linear",), draws=20, cache=tmp_path / "cache")
    here = predict(whole.folder, tiny_cohort, head="sick", cache=tmp_path / "cache")
    code = (
        "import sys, bolus; from pathlib import Path\n"
        "run, cohort, cache = sys.argv[1:]\n"
        "frame = bolus.predict(run, cohort, head='sick', cache=Path(cache))\n"
        "print(frame.select_dtypes('float64').iloc[:, -1].sum())"
    )
    command = [sys.executable, "-c", code, str(whole.folder), str(tiny_cohort), str(tmp_path / "other")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert float(printed) == pytest.approx(here.select_dtypes("float64").iloc[:, -1].sum(), rel=1e-4)
    assert json.loads((whole.encoder / "encoder.json").read_text())["preprocessing"]["ranges"]["image"] == [0.0, 1023.0]
    assert whole.recipe.images.augment.own == (OwnAugmentSpec.model_validate({"kind": f"{mine}:gain", "most": 0.5}),)
    written = json.loads((whole.encoder / "encoder.json").read_text())["backbone_config"]
    assert (written["path"], written["arguments"]) == (f"{mine}:maps", {"width": 4})


def test_an_objective_of_another_kind_is_refused(mine: str) -> None:
    assert OBJECTIVES[f"{mine}:Shrink"].__name__ == "Shrink"
    with pytest.raises(RecipeError, match="expected a class derived from"):
        OBJECTIVES[f"{mine}:vectors"]
    assert "no such kind" not in OBJECTIVES


def test_no_name_in_a_file_calls_what_is_not_ones_own(mine: str, tmp_path: Path) -> None:
    made = tmp_path / "made"
    spec = EncoderSpec(backbone="os:mkdir", arguments={"path": str(made)})
    with pytest.raises(RecipeError, match=r"expected an entry point of the group bolus\.encoders, or a function in"):
        build_encoder(spec, seed=0)
    folder = tmp_path / "from_elsewhere"
    folder.mkdir()
    config = {"model_type": "bolus_own", "path": "os:mkdir", "arguments": {"path": str(made)}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match="os:mkdir: expected an entry point"):
        build_encoder(EncoderSpec(backbone=str(folder)), seed=0)
    assert not made.exists()
    for name in ("pandas:read_pickle", "subprocess:Popen", "bolus.files:write_text", f"{mine}:rmtree"):
        with pytest.raises(RecipeError, match="call it from a function of your own"):
            find_own(name, "bolus.encoders", torch.nn.Module)
    assert find_own("torch.nn:Flatten", "bolus.encoders", torch.nn.Module) is torch.nn.Flatten
    assert find_own(f"{mine}:vectors", "bolus.encoders").__name__ == "vectors"


def test_names_that_a_package_registers(mine: str, tmp_path: Path) -> None:
    info = tmp_path / "parts" / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    parts = {"encoders": "maps", "objectives": "Shrink", "augmentations": "gain", "readers": "vectors"}
    lines = [f"[bolus.{group}]\ntheir_{part} = {mine}:{part}\n" for group, part in parts.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    assert build_encoder(EncoderSpec(backbone="their_maps"), seed=0).shape.dim == 8
    assert OBJECTIVES["their_Shrink"].__name__ == "Shrink"
    assert "their_Shrink" in list(OBJECTIVES)
    (own,) = resolve(AugmentSpec.model_validate({"own": [{"kind": "their_gain"}]})).own
    assert own.model_dump() == {"kind": "their_gain", "most": 0.5}
    reader = open_readers({".x": "their_vectors"})[".x"]
    assert (reader.name, reader.function.__name__) == ("their_vectors", "vectors")
