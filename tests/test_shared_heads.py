"""Heads that objectives share by name, and those that they lend: one module, born once, refused where it cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bolus.data.batches.batch import Batch
from bolus.encoders.features import Features, FeatureShape, LevelShape
from bolus.errors import RecipeError
from bolus.objectives import build_objectives
from bolus.objectives.base import Objective
from bolus.recipe import OptimizerSpec, Recipe

SHAPE = FeatureShape(dim=6, grid_channels=6, grid_stride=32, levels=(LevelShape(6, 32, "last"),))
PLAIN = {"kind": "contrast", "dim": 4}
IMAGE = {**PLAIN, "head": "image"}
PIXEL = {"kind": "pixel_contrast", "relation": "patient", "dim": 4, "head": "pixel"}


def recipe(objectives: dict[str, Any]) -> Recipe:
    return Recipe.load({"name": "mine", "objectives": objectives})


def build(objectives: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    return build_objectives(recipe(objectives), SHAPE, {}, seed=seed)


def parameters(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def test_objectives_that_name_one_head_have_one() -> None:
    built = build({"a": {**IMAGE, "relation": "patient"}, "b": {**IMAGE, "relation": "site"}, "c": PLAIN,
                   "d": {**PLAIN, "head": "other"}})  # fmt: skip
    assert built["a"].head is built["b"].head
    assert len({id(built[name].head) for name in "acd"}) == 3
    assert set(built["b"].state_dict()) == set(built["a"].state_dict())


def test_a_shared_head_is_a_function_of_seed_and_its_own_name() -> None:
    before = torch.get_rng_state()
    first = build({"a": IMAGE, "b": IMAGE})
    assert torch.equal(torch.get_rng_state(), before)
    other = build({"x": PLAIN, "renamed": IMAGE})
    assert torch.equal(parameters(first["a"].head), parameters(other["renamed"].head))
    assert not torch.equal(parameters(first["a"].head), parameters(build({"a": {**PLAIN, "head": "b"}})["a"].head))
    assert not torch.equal(parameters(first["a"].head), parameters(build({"a": IMAGE}, seed=1)["a"].head))
    assert not torch.equal(parameters(first["a"].head), parameters(build({"image": PLAIN})["image"].head))


def test_heads_of_other_widths_or_layers_are_refused() -> None:
    sentence = r"objectives\.b\.head: 'image' is the head of objectives\.a, of other layers or widths"
    for change in ({"dim": 5}, {"hidden": 7}, {"last_norm": True}, {"hidden_norm": False}):
        with pytest.raises(RecipeError, match=sentence):
            build({"a": IMAGE, "b": {**IMAGE, **change}})
    with pytest.raises(RecipeError, match=r"'image' is that of objectives\.a, which is of another kind"):
        build({"a": IMAGE, "b": {**PIXEL, "head": "image"}})
    with pytest.raises(RecipeError, match=sentence):
        build({"a": IMAGE, "x": IMAGE, "b": {**IMAGE, "dim": 8}})


def test_an_objective_without_a_head_cannot_share_one() -> None:
    table = {"score:age": torch.arange(5.0).double().numpy()}
    spec = recipe({"a": {"kind": "score_contrast", "head": "image"}})
    with pytest.raises(RecipeError, match=r"objectives\.a\.head: ScoreContrast has no head that others may share"):
        build_objectives(spec, SHAPE, table, seed=0)


def test_parameters_of_a_shared_head_are_optimised_once() -> None:
    from bolus.optimization import build_optimizer

    built = build({"a": IMAGE, "b": IMAGE})
    optimizer = build_optimizer(built, OptimizerSpec(), lr=0.1)
    listed = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(listed) == len({id(parameter) for parameter in listed}) == len(list(built["a"].parameters()))


def test_no_hidden_norm_leaves_a_head_without_batch_statistics() -> None:
    head = build({"a": {**PLAIN, "hidden_norm": False}})["a"].head
    assert not list(head.buffers())
    first, last = head.linears
    x = torch.randn(2, 3, 6)
    torch.testing.assert_close(head(x), last(first(x).relu()))
    torch.testing.assert_close(head(x)[:, :1], head(x[:, :1]), msg="a row does not depend on the others")


def test_a_head_is_lent_to_whoever_names_it_and_stays_its_owners() -> None:
    built = build({"p": {**PIXEL, "image_head": "image"}, "a": IMAGE, "b": IMAGE})  # the owner may come later
    pixel: Any = built["p"]
    assert {name.split(".")[0] for name, _ in pixel.named_parameters()} == {"head"}
    assert pixel.head is not built["a"].head
    names = {id(parameter) for parameter in built["a"].head.parameters()}
    assert not names & {id(parameter) for parameter in pixel.parameters()}
    batch = Batch({}, {"XR": torch.arange(3)}, {"sample": torch.arange(3), "patient": torch.tensor([0, 0, 1])})
    grid = torch.randn(2, 3, 6, 2, 2)
    before = pixel.embed(Features(torch.empty(0), grid={"XR": grid}), batch)["c"]
    with torch.no_grad():
        for parameter in built["b"].head.parameters():
            parameter.add_(torch.randn_like(parameter))
    after = pixel.embed(Features(torch.empty(0), grid={"XR": grid}), batch)["c"]
    assert not torch.allclose(before, after), "the head that a and b share is the one that is read"


def test_a_head_that_nobody_names_cannot_be_lent() -> None:
    with pytest.raises(RecipeError, match=r"objectives\.p\.image_head: 'imagge' is the head of no.*mean 'image'"):
        build({"a": IMAGE, "p": {**PIXEL, "image_head": "imagge"}})
    with pytest.raises(RecipeError, match=r"'a' is the head of no objective"):
        build({"a": PLAIN, "p": {**PIXEL, "image_head": "a"}})


def test_a_head_of_the_pixel_branch_is_no_image_head() -> None:
    with pytest.raises(RecipeError, match=r"objectives\.p\.image_head"):
        build({"a": IMAGE, "p": {**PIXEL, "image_head": "pixel"}})


def test_gcl_shares_two_heads_and_has_two_branches() -> None:
    built: dict[str, Objective] = build_objectives(Recipe.load("gcl"), SHAPE, {}, seed=0)
    assert {name: objective.branch for name, objective in built.items()} == {
        "patient": "image", "position": "image", "phase": "image",
        "patient_pixel": "pixel", "position_pixel": "pixel", "phase_pixel": "pixel",
    }  # fmt: skip
    assert len({id(objective.head) for objective in built.values()}) == 2
