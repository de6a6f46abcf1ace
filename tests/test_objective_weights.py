"""Weights of objectives beyond the recipe's: learnt from the losses, or such that gradients have equal norms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bolus.errors import RecipeError
from bolus.recipe import Recipe
from bolus.run import Run
from bolus.training.gradients.weighting import Uncertainty, balanced_weights
from bolus.training.loop import pretrain

RECIPE: dict[str, Any] = {
    "name": "weights",
    "encoder": {"backbone": "r18w32"},
    "images": {"size": 24, "views": 2},
    "sampling": {"batch_size": 8},
    "objectives": {
        "v": {"kind": "contrast", "dim": 8, "hidden": 16},
        "p": {"kind": "predict", "targets": ["score:severity"], "weight": 0.5},
    },
    "combiner": {"weighting": "uncertainty"},
    "training": {"epochs": 2, "log_steps": 1, "health_epochs": None},
}


def test_the_loss_is_that_of_the_paper_and_settles_at_its_minimum() -> None:
    weights = Uncertainty(["a"]).double()
    with torch.no_grad():
        weights.log_variance("a").fill_(0.7)
    loss = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    found = weights.weigh("a", loss)
    assert found.item() == pytest.approx(math.exp(-0.7) * 3.0 + 0.35, rel=1e-12)
    found.backward()
    assert loss.grad is not None
    assert loss.grad.item() == pytest.approx(math.exp(-0.7), rel=1e-12)
    optimizer = torch.optim.SGD(weights.parameters(), lr=0.2)
    for _ in range(400):
        optimizer.zero_grad()
        weights.weigh("a", loss.detach()).backward()
        optimizer.step()
    assert float(weights.weight("a")) == pytest.approx(1 / 6, rel=1e-6), "half of the inverse of the loss"


def test_a_batch_with_nothing_to_do_teaches_nothing() -> None:
    weights = Uncertainty(["a"])
    loss = torch.zeros((), requires_grad=True)
    found = weights.weigh("a", loss)
    found.backward()
    assert found.item() == 0
    learnt = weights.log_variance("a").grad
    assert learnt is None or learnt.item() == 0
    assert loss.grad is not None and loss.grad.isfinite()


def test_an_objective_may_have_any_name() -> None:
    names = ["values", "type", "train", "copy", "items", "a.b", "0", ""]
    weights = Uncertainty(names)
    with torch.no_grad():
        for place, name in enumerate(names):
            weights.log_variance(name).fill_(place)
    assert [float(weights.weight(name)) for name in names] == pytest.approx([math.exp(-each) for each in range(8)])
    again = Uncertainty(names)
    again.load_state_dict(weights.state_dict())
    assert again.log_variance("a.b").item() == 5


def test_weights_that_an_earlier_version_saved_are_loaded() -> None:
    weights = Uncertainty(["views", "patient"])
    weights.load_state_dict({"log_variance.views": torch.tensor(0.5), "log_variance.patient": torch.tensor(-1.0)})
    assert [weights.log_variance(name).item() for name in ("views", "patient")] == [0.5, -1.0]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(1e-4, 1e4), st.floats(0.1, 10)), min_size=1, max_size=5), st.integers(0, 2**16))
def test_balanced_gradients_have_the_norms_of_their_shares(parts: list[tuple[float, float]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(len(parts), 7, dtype=torch.float64, generator=generator)
    rows = rows / rows.norm(dim=1, keepdim=True) * torch.tensor([[length] for length, _ in parts], dtype=torch.float64)
    shares = [share for _, share in parts]
    weights = balanced_weights(rows @ rows.T, shares)
    norms = (weights[:, None] * rows).norm(dim=1)
    assert torch.allclose(norms / norms.sum(), torch.tensor(shares, dtype=torch.float64) / sum(shares), rtol=1e-9)
    assert float(norms.sum()) == pytest.approx(float(rows.norm(dim=1).sum()), rel=1e-9)


def test_a_gradient_without_length_takes_no_share() -> None:
    gram = torch.diag(torch.tensor([4.0, 0.0, 16.0]))
    assert balanced_weights(gram, [1.0, 5.0, 1.0]).tolist() == pytest.approx([1.5, 1.0, 0.75])
    assert balanced_weights(torch.zeros(2, 2), [1.0, 1.0]).tolist() == [1.0, 1.0]


def test_a_run_learns_logs_and_resumes_its_weights(tiny_cohort: Path, tmp_path: Path) -> None:
    pretrain(tiny_cohort, recipe=RECIPE, out=tmp_path / "whole", quiet=True, cache=tmp_path / "cache")
    stopped = {"training.max_hours": 1e-9}
    pretrain(
        tiny_cohort, recipe=RECIPE, out=tmp_path / "parts", quiet=True, cache=tmp_path / "cache", overrides=stopped
    )
    pretrain(tiny_cohort, recipe=RECIPE, out=tmp_path / "parts", quiet=True, cache=tmp_path / "cache", resume=True)
    found = {}
    for name in ("whole", "parts"):
        lines = [line for line in Run.open(tmp_path / name).metrics() if line["kind"] == "train"]
        found[name] = [line["counts"]["p"]["learnt_weight"] for line in lines]
        assert found[name][0] == 1.0
        assert len(set(found[name])) > 1, "it moves"
    assert found["whole"][-1] == pytest.approx(found["parts"][-1], rel=1e-6)


def test_the_default_leaves_a_recipe_what_it_was() -> None:
    plain = Recipe.load({**RECIPE, "combiner": {}})
    assert plain.digest == Recipe.load({**RECIPE, "combiner": {"weighting": "fixed"}}).digest
    assert plain.digest != Recipe.load(RECIPE).digest


def test_equal_norms_and_learnt_weights_contradict_each_other() -> None:
    with pytest.raises(RecipeError, match="whatever losses weigh"):
        Recipe.load(RECIPE).override(["combiner.kind=balanced"])
