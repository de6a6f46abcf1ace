"""Relation contrast against an independent library and naive loops; building objectives from a recipe."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss
from torch import Tensor

from bolus.data.batches.batch import Batch
from bolus.data.batches.relation import Relation
from bolus.encoders.features import Features, FeatureShape, LevelShape
from bolus.errors import RecipeError
from bolus.objectives import OBJECTIVES, build_objectives
from bolus.objectives.base import Objective
from bolus.objectives.contrasts.contrast import Contrast, pairs_of
from bolus.recipe import Recipe, recipe_names

SHAPE = FeatureShape(dim=6, grid_channels=6, grid_stride=32, levels=(LevelShape(6, 32, "last"),))


def make_batch(rows: int, **columns: Any) -> Batch:
    given = {name.replace("__", ":"): torch.as_tensor(values) for name, values in columns.items()}
    return Batch({}, {"XR": torch.arange(rows)}, {"sample": torch.arange(rows) + 10, **given})


def embedded(rows: int, num_views: int = 2, dim: int = 5, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(num_views, rows, dim, generator=g, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("num_views", [2, 3])
def test_views_are_simclr(num_views: int) -> None:
    z = embedded(6, num_views)
    loss = Contrast(SHAPE, temperature=0.2).loss({"z": z}, make_batch(6))
    samples = torch.arange(6).repeat(num_views)
    oracle = NTXentLoss(0.2) if num_views == 2 else SupConLoss(0.2)  # with one positive a row they are the same
    assert loss.value.item() == pytest.approx(oracle(z.flatten(0, 1), samples).item(), rel=1e-9)
    assert loss.num_anchors == 6 * num_views


def test_meta_label_is_supcon_with_the_other_view_as_positive() -> None:
    z = embedded(6)
    label = [0, 0, 1, 1, 2, 3]
    loss = Contrast(SHAPE, relation={"same": "label:organ"}).loss({"z": z}, make_batch(6, label__organ=label))
    expected = SupConLoss(0.1)(z.flatten(0, 1), torch.tensor(label).repeat(2))
    assert loss.value.item() == pytest.approx(expected.item(), rel=1e-9)
    assert loss.num_anchors == 12


def naive_pairs(batch: Batch, num_views: int, role: str, other_patients: bool) -> tuple[Tensor, Tensor]:
    """Positives and negatives for equality in a role, pair by pair."""
    values, patient = batch.columns[role].tolist(), batch.columns["patient"].tolist()
    rows = [(view, sample) for view in range(num_views) for sample in range(len(values))]
    positives = torch.zeros(len(rows), len(rows), dtype=torch.bool)
    negatives = torch.zeros(len(rows), len(rows), dtype=torch.bool)
    for a, (_, i) in enumerate(rows):
        for b, (_, j) in enumerate(rows):
            if a == b:
                continue
            if values[i] != -1 and values[i] == values[j]:
                positives[a, b] = True
            elif i != j and not (other_patients and patient[i] != -1 and patient[i] == patient[j]):
                negatives[a, b] = True
    return positives, negatives


@pytest.mark.parametrize("other_patients", [False, True])
@pytest.mark.parametrize("num_views", [1, 2, 3])
def test_pairs_are_exactly_the_right_ones(num_views: int, other_patients: bool) -> None:
    """Rows 0-2 share a patient; rows 5 and 6 have no known patient and are two different people; row 4 has no label."""
    batch = make_batch(7, patient=[3, 3, 3, 5, 5, -1, -1], region=[0, 1, 0, 1, -1, 2, 1])
    objective = Contrast(SHAPE, relation="region", negatives="other_patients" if other_patients else "all")
    positives, negatives = pairs_of(objective.relation, objective.negatives, batch, num_views)
    expected = naive_pairs(batch, num_views, "region", other_patients)
    assert torch.equal(positives, expected[0])
    assert torch.equal(negatives, expected[1])
    assert negatives[5, 6]
    assert negatives[0, 1] == (not other_patients)
    assert not positives[4].any()


@pytest.mark.parametrize("form", ["out", "in"])
def test_loss_equals_naive_loops_with_missing_values(form: Any) -> None:
    batch = make_batch(6, patient=[0, 0, 1, 1, 2, -1], region=[0, 0, 0, 1, -1, 1])
    z = embedded(6).requires_grad_()
    loss = Contrast(SHAPE, relation="region", negatives="other_patients", form=form, temperature=0.3).loss(
        {"z": z}, batch
    )
    positives, negatives = naive_pairs(batch, 2, "region", True)
    rows = z.flatten(0, 1)
    losses = []
    for i in range(12):
        exponentials = [(rows[i] @ rows[j] / 0.3).exp() for j in range(12)]
        near = [exponentials[j] for j in range(12) if positives[i, j]]
        everything = sum(near) + sum(exponentials[j] for j in range(12) if negatives[i, j])
        if near:
            ratios = [sum(near) / everything] if form == "in" else [term / everything for term in near]
            losses.append(-sum(ratio.log() for ratio in ratios) / len(ratios))
    assert loss.num_anchors == len(losses) == 10
    expected = sum(losses) / 10
    torch.testing.assert_close(loss.value, expected, rtol=1e-12, atol=1e-12)
    ours, reference = (torch.autograd.grad(value, z)[0] for value in (loss.value, expected))
    torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-12)


def test_other_views_of_a_sample_are_absent_where_the_relation_excludes_them() -> None:
    """Different visits of one patient attract; an augmentation of the same visit is no partner but no enemy either."""
    batch = make_batch(4, patient=[0, 0, 1, 1], visit=[0, 1, 0, 1])
    positives, negatives = pairs_of(Relation(same=("patient",), differ=("visit",)), "all", batch, 2)
    assert positives[0].nonzero().flatten().tolist() == [1, 5]
    assert negatives[0].nonzero().flatten().tolist() == [2, 3, 6, 7]


def test_weighted_relation_weights_the_positives() -> None:
    batch = make_batch(4, score__age=torch.tensor([40.0, 45.0, 60.0, torch.nan]))
    relation = {"near": {"score:age": 10}, "weighting": "linear"}
    z = embedded(4)
    loss = Contrast(SHAPE, relation=relation).loss({"z": z}, batch)
    rows = z.flatten(0, 1)
    logits = rows @ rows.T / 0.1
    losses = []
    weight = {(0, 0): 1.0, (1, 1): 1.0, (2, 2): 1.0, (0, 1): 0.5, (1, 0): 0.5}
    for i in range(8):
        partners = {j: weight[i % 4, j % 4] for j in range(8) if j != i and (i % 4, j % 4) in weight}
        if partners:
            others = [j for j in range(8) if j in partners or j % 4 != i % 4]
            log_all = logits[i, others].logsumexp(0)
            losses.append(sum(w * (log_all - logits[i, j]) for j, w in partners.items()) / sum(partners.values()))
    assert loss.num_anchors == len(losses) == 6
    torch.testing.assert_close(loss.value, sum(losses) / 6)


@pytest.mark.parametrize(("rows", "region"), [(4, [-1] * 4), (4, [0, 1, 2, 3]), (1, [0])])
def test_nothing_to_do_is_exactly_zero_with_zero_gradients(rows: int, region: list[int]) -> None:
    z = embedded(rows, num_views=1).requires_grad_()
    loss = Contrast(SHAPE, relation="region").loss({"z": z}, make_batch(rows, region=region))
    assert (loss.value.item(), loss.num_anchors) == (0, 0)
    loss.value.backward()
    assert z.grad is not None
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_embeddings_have_unit_length_and_train_the_head() -> None:
    objective = Contrast(SHAPE, dim=4, hidden=9)
    pooled = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = objective.embed(Features(pooled), make_batch(5))
        loss = objective.loss(z, make_batch(5))
    assert z["z"].shape == (2, 5, 4)
    assert z["z"].dtype == loss.value.dtype == torch.float32
    torch.testing.assert_close(z["z"].norm(dim=-1), torch.ones(2, 5))
    assert loss.value.item() == pytest.approx(
        objective.loss({"z": z["z"].double()}, make_batch(5)).value.item(), rel=1e-5
    )
    loss.value.backward()
    weights = dict(objective.named_parameters())
    assert weights["head.linears.0.weight"].shape == (9, 6)
    for name in ("head.linears.0.weight", "head.linears.1.weight"):
        gradient = weights[name].grad
        assert gradient is not None
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


def test_needs_come_from_the_relation() -> None:
    views = Contrast(SHAPE)
    assert (views.needs.views, views.needs.roles, views.needs.relations) == (2, frozenset(), (views.relation,))
    assert Contrast(SHAPE, negatives="other_patients").needs.roles == {"patient"}
    bilateral = Contrast(SHAPE, relation={"same": "patient", "differ": "laterality"})
    assert (bilateral.needs.views, bilateral.needs.roles) == (1, {"patient", "laterality"})
    wrong: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"form": "no"},
        {"negatives": "some"},
        {"relation": "patientt"},
    ]
    for parameters in wrong:
        with pytest.raises(RecipeError):
            Contrast(SHAPE, **parameters)


# Building from a recipe


def build(objectives: dict[str, Any], seed: int = 0) -> dict[str, Objective]:
    return build_objectives(Recipe.load({"name": "mine", "objectives": objectives}), SHAPE, {}, seed=seed)


def parameters(objective: Objective) -> Tensor:
    return torch.cat([parameter.flatten() for parameter in objective.parameters()])


def test_building_is_a_function_of_seed_and_name() -> None:
    one = {"kind": "contrast", "dim": 4}
    before = torch.get_rng_state()
    first = build({"a": one, "b": one})
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    second = build({"c": {"kind": "varcov", "width": 3}, "b": one, "a": one})
    assert list(second) == ["c", "b", "a"]
    assert torch.equal(parameters(first["a"]), parameters(second["a"]))
    assert torch.equal(parameters(first["b"]), parameters(second["b"]))
    assert not torch.equal(parameters(first["a"]), parameters(first["b"]))
    assert not torch.equal(parameters(first["a"]), parameters(build({"a": one}, seed=1)["a"]))


def test_parameters_reach_the_constructor() -> None:
    built = build(
        {
            "near": {"kind": "contrast", "relation": {"same": ["patient"]}, "temperature": "2e-1", "weight": 3},
            "levels": {"kind": "varcov", "source": "levels", "width": 5, "level_channels": 2, "level_size": None},
        }
    )
    near, levels = built["near"], built["levels"]
    assert isinstance(near, Contrast)
    assert (near.temperature, near.relation.same) == (0.2, ("patient",))
    assert isinstance(levels, OBJECTIVES["varcov"])
    assert levels.needs.levels


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kind": "contrats"}, "objectives.x.kind: unknown kind 'contrats'; did you mean 'contrast'"),
        ({"kind": "contrast", "temprature": 0.1}, "objectives.x.temprature'; did you mean 'temperature'"),
        ({"kind": "contrast", "shape": 3}, "objectives.x.shape"),
        ({"kind": "contrast", "dim": "wide"}, "objectives.x.dim: .*integer.*found 'wide'"),
        ({"kind": "contrast", "form": "sideways"}, "objectives.x.form: .*'out' or 'in'.*found 'sideways'"),
        ({"kind": "contrast", "temperature": -1}, "objectives.x: temperature: expected a positive"),
        ({"kind": "varcov", "width": 0}, "objectives.x: width: expected 1 or more"),
    ],
)
def test_wrong_parameters_are_named(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build({"x": spec})


def test_shipped_recipes_build() -> None:
    for name in recipe_names():
        recipe = Recipe.load(name)
        small = [f"objectives.{key}.width=8" for key, spec in recipe.objectives.items() if spec.kind == "varcov"]
        table = {"score:any": np.arange(5.0), "visit": np.arange(5.0)}
        shape = replace(SHAPE, inputs={"XR": (1, 32)})
        assert list(build_objectives(recipe.override(small), shape, table, seed=0)) == list(recipe.objectives)
