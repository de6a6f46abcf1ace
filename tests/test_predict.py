"""Targets of a prediction given as patterns: which roles they mean, and that nothing else changes."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from bolus.data.batches.batch import Batch
from bolus.encoders.features import Features, FeatureShape
from bolus.errors import RecipeError
from bolus.objectives import build_objectives
from bolus.objectives.scores.predict import Predict
from bolus.recipe import Recipe

SHAPE = FeatureShape(dim=6, grid_channels=6, grid_stride=32)
TABLE: dict[str, Any] = {  # in no order
    "score:tortuosity": np.array([0.1, 0.4, np.nan, 0.2]),
    "patient": np.array([0, 1, 2, 3]),
    "label:sick": np.array([0, 1, 1, -1]),
    "score:calibre": np.array([10.0, np.nan, 30.0, 20.0]),
    "attribute:sex": np.array([0, 1, 0, 1]),
    "attribute:age": np.array([40.0, 50.0, 61.0, 70.0]),
    "label:kind": np.array([2, 0, 1, 2]),
}
SCORES = ("score:calibre", "score:tortuosity")


def predict(targets: Any) -> Predict:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Predict(SHAPE, TABLE, targets=targets)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("score:*", SCORES),
        (["score:*"], SCORES),
        (["score:c*"], ("score:calibre",)),
        ("*:*ity", ("score:tortuosity",)),
        (["label:*", "attribute:*"], ("label:kind", "label:sick", "attribute:age", "attribute:sex")),
        (["score:*", "label:sick"], (*SCORES, "label:sick")),
        (["label:sick", "score:*"], ("label:sick", *SCORES)),
        (["score:tortuosity", "score:calibre"], ("score:tortuosity", "score:calibre")),  # names stay as they are given
        ("attribute:sex", ("attribute:sex",)),
    ],
)
def test_patterns_mean_all_that_match_in_order(targets: Any, expected: tuple[str, ...]) -> None:
    objective = predict(targets)
    assert objective.targets == expected
    assert objective.needs.roles == set(expected)
    classes = {"label:kind": 3, "label:sick": 2, "attribute:sex": 2}
    assert objective.widths == [classes.get(role, 1) for role in expected]


@pytest.mark.parametrize("targets", ["bin:*", ["score:*", "view_*"], ["phase*"]])
def test_a_pattern_that_matches_nothing_is_an_error(targets: Any) -> None:
    wrong = targets if isinstance(targets, str) else targets[-1]
    with pytest.raises(RecipeError, match=f"targets.*{re.escape(wrong)}"):
        predict(targets)


def test_a_pattern_is_the_same_as_the_names_written_out() -> None:
    """Many measures, numbers and categories mixed, some missing: value, anchors and gradients are equal."""
    columns = {
        role: torch.tensor(values, dtype=torch.float64 if values.dtype.kind == "f" else torch.int64)
        for role, values in TABLE.items()
    }
    batch = Batch({}, {}, {"sample": torch.arange(4), **columns})
    found = []
    for targets in (["score:*", "label:*"], [*SCORES, "label:kind", "label:sick"]):
        pooled = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
        objective = predict(targets)
        loss = objective.loss(objective.embed(Features(pooled), batch), batch)
        (gradient,) = torch.autograd.grad(loss.value, pooled)
        found.append((loss.value, loss.num_anchors, gradient))
    assert found[0][0] > 0
    assert found[0][1] == found[1][1] == 8
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=0)
    torch.testing.assert_close(found[0][2], found[1][2], rtol=0, atol=0)


def test_what_a_pattern_finds_must_be_learnable_too(caplog: pytest.LogCaptureFixture) -> None:
    """A measure that is missing throughout is named, not passed over in silence."""
    empty = {"score:empty": np.full(4, np.nan)}
    assert Predict(SHAPE, {**TABLE, **empty}, targets="score:*").targets == predict("score:*").targets
    assert "score:empty is missing" in caplog.text
    with pytest.raises(RecipeError, match="nothing can be learnt"):
        Predict(SHAPE, empty, targets="score:*")


def test_one_role_named_twice_is_still_an_error() -> None:
    with pytest.raises(RecipeError, match="different roles"):
        predict(["score:calibre", "score:calibre"])


def test_a_recipe_takes_patterns() -> None:
    recipe = Recipe.load({"name": "mine", "objectives": {"measures": {"kind": "predict", "targets": "score:*"}}})
    built = build_objectives(recipe, SHAPE, TABLE, seed=0)["measures"]
    assert isinstance(built, Predict)
    assert built.targets == SCORES
    wrong = recipe.override(["objectives.measures.targets=scoer:*"])
    with pytest.raises(RecipeError, match=r"objectives\.measures.*scoer:\*"):
        build_objectives(wrong, SHAPE, TABLE, seed=0)
