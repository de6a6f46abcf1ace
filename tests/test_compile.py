"""An encoder that torch compiles: the same weights, names and files, the same steps within rounding."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState

from bolus.data.batches.columns import TrainingColumns
from bolus.data.cohort.cohort import Cohort
from bolus.encoders.building import build_encoder
from bolus.errors import RecipeError, TrainingError
from bolus.recipe import EncoderSpec, Recipe
from bolus.training import compiling
from bolus.training.assembly import build_model
from bolus.training.compiling import compile_encoder, eager, explain_compiling
from bolus.training.loaders import build_loader, open_images
from bolus.training.step import training_step
from test_matrix import SMALL

CPU = torch.device("cpu")
COMPILED = Recipe.load(SMALL).override(["training.compile=true"])


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    torch.compiler.reset()


def gradients(cohort: Cohort, cache: Path, recipe: Recipe) -> list[torch.Tensor]:
    model = build_model(recipe, CPU, TrainingColumns(cohort.samples("image")))
    store = open_images(cohort, recipe, cache, True)
    loader = build_loader(cohort, cohort.samples("image"), store, recipe, model.needs, PartialState())
    training_step(model, loader, loader.fetch(0), recipe, 0.0)
    model.combiner.reconcile()
    return [parameter.grad for parameter in model.combiner.parameters if parameter.grad is not None]


ENCODERS = {
    "a vision transformer": ["encoder.backbone=vit_tiny"],
    "a ResNet with context": ["encoder={backbone: r18w32, stem_pool: false, context: true}"],
    "a U-Net": ["encoder.backbone=unet4"],
}


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("a vision transformer", "aot_eager"),
        *(pytest.param(name, "aot_eager", marks=pytest.mark.slow) for name in list(ENCODERS)[1:]),
        pytest.param("a vision transformer", "inductor", marks=pytest.mark.slow),
    ],
)
def test_a_step_is_that_without_the_compiler(
    name: str, backend: str, tiny_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "BACKEND", backend)
    cohort, keys = Cohort.open(tiny_cohort), ENCODERS[name]
    plain = gradients(cohort, tmp_path, Recipe.load(SMALL).override(keys))
    compiled = gradients(cohort, tmp_path, COMPILED.override(keys))
    largest = max(float(grad.abs().max()) for grad in plain)
    for one, other in zip(compiled, plain, strict=True):
        torch.testing.assert_close(one / largest, other / largest, rtol=1e-4, atol=1e-5)


def counted(graphs: list[Any]) -> Any:
    def backend(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(module)
        return module.forward

    return backend


def test_weights_keep_their_names_and_a_copy_is_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[Any] = []
    monkeypatch.setattr(compiling, "BACKEND", counted(graphs))
    spec = EncoderSpec(backbone="vit_tiny")
    encoder, plain = build_encoder(spec, seed=0), build_encoder(spec, seed=0)
    compile_encoder(encoder, CPU)
    assert list(encoder.state_dict()) == list(plain.state_dict())
    images = torch.rand(2, 1, 16, 16)
    expected = plain(images).pooled
    with eager(COMPILED):
        torch.testing.assert_close(encoder(images).pooled, expected)
    assert not graphs
    torch.testing.assert_close(encoder(images).pooled, expected)
    compiled = len(graphs)
    assert compiled
    encoder(images)
    assert len(graphs) == compiled
    with torch.no_grad():
        next(encoder.parameters()).add_(1.0)
    other = copy.deepcopy(plain)
    other.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(copy.deepcopy(encoder)(images).pooled, other(images).pooled)


def test_what_cannot_be_compiled_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        raise ValueError("no such thing")

    monkeypatch.setattr(compiling, "BACKEND", broken)
    encoder = build_encoder(EncoderSpec(backbone="vit_tiny"), seed=0)
    compile_encoder(encoder, CPU)
    said = r"cannot compile vit_tiny here \(.*no such thing.*set it to false"
    with pytest.raises(TrainingError, match=said), explain_compiling(COMPILED):
        encoder(torch.rand(1, 1, 16, 16))


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    with pytest.raises(RecipeError, match=r"neither g\+\+ nor clang\+\+"):
        compile_encoder(build_encoder(EncoderSpec(backbone="vit_tiny"), seed=0), CPU)
    monkeypatch.setattr(compiling, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="triton"):
        compile_encoder(build_encoder(EncoderSpec(backbone="vit_tiny"), seed=0), torch.device("cuda"))
