"""ChronoCon against a triple loop, its properties, degenerate batches, its objective, the plan's offer and a run."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bolus import chronocon_loss, plan
from bolus.data.batches.batch import Batch
from bolus.data.batches.relation import Relation
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.encoders.features import Features, FeatureShape
from bolus.errors import RecipeError, UsageError
from bolus.objectives import build_objectives
from bolus.objectives.scores.chronocon import ChronoCon
from bolus.recipe import Recipe
from bolus.training.loop import pretrain

NAN = math.nan
SHAPE = FeatureShape(dim=6, grid_channels=6, grid_stride=32)
VISITS = {"visit": np.array([0.0, 1.0, 2.0])}


def rows(num: int, dim: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, dim, generator=generator, dtype=torch.float64).requires_grad_()


def times(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def codes(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def by_loops(z: Tensor, t: Tensor, group: Tensor, *, temperature: float = 1.0, similarity: str = "cosine") -> Tensor:
    """The formula as it is written: both directions, every i, every j, every k of one group."""

    def s(i: int, j: int) -> Tensor:
        if similarity == "cosine":
            return z[i] @ z[j] / (z[i].norm() * z[j].norm()) / temperature
        return -(z[i] - z[j]).norm() / temperature

    whole, indices = z[:0].sum(), range(len(z))
    for direction in (1, -1):
        terms = []
        for i, j in itertools.permutations(indices, 2):
            within = [int(group[i]), int(group[j])]
            if within[0] == -1 or within[0] != within[1] or not direction * (t[j] - t[i]) >= 0:
                continue
            beyond = [k for k in indices if k != i and group[k] == group[i] and direction * (t[k] - t[j]) >= 0]
            if len(beyond) > 1:
                terms.append(torch.stack([s(i, k) for k in beyond]).logsumexp(0) - s(i, j))
        if terms:
            whole = whole + torch.stack(terms).mean()
    return whole


BATCHES: dict[str, tuple[list[float], list[int]]] = {
    "one patient": ([0, 1, 2, 3], [4, 4, 4, 4]),
    "three patients, rows mixed": ([2, 0, 5, 1, 1, 9, 0, 7], [0, 1, 0, 1, 2, 0, 1, 2]),
    "two views": ([0, 1, 2, 0, 1, 0, 1, 2, 0, 1], [0, 0, 0, 1, 1, 0, 0, 0, 1, 1]),
    "visits of one day": ([3, 3, 3, 4, 4, 1], [0, 0, 0, 0, 0, 0]),
    "days": ([-12.5, 400.25, 399.75, 0, 8000], [1, 1, 1, 1, 1]),
    "missing visits": ([0, NAN, 2, 3, NAN, 1], [0, 0, 0, 0, 1, 1]),
    "missing patients": ([0, 1, 2, 3, 1, 2], [-1, -1, -1, 0, 0, 0]),
    "low temperature": ([0, 1, 2, 3, 4], [0, 0, 0, 0, 0]),
}


@pytest.mark.parametrize("similarity", ["cosine", "l2"])
@pytest.mark.parametrize("name", BATCHES)
def test_equals_the_loops(name: str, similarity: Any) -> None:
    t, group = times(BATCHES[name][0]), codes(BATCHES[name][1])
    z, options = rows(len(t)), {"temperature": 0.02 if name == "low temperature" else 1.0, "similarity": similarity}
    found, expected = chronocon_loss(z, t, group, **options), by_loops(z, t, group, **options)
    assert expected.item() > 0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    gradients = [torch.autograd.grad(value, z, retain_graph=True)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-9)


def test_only_the_order_within_a_patient_counts() -> None:
    z, group = rows(8), codes([0, 0, 0, 0, 1, 1, 1, 1])
    expected = chronocon_loss(z, times([0, 1, 2, 3, 0, 1, 2, 3]), group)
    for t in ([0, 1, 2, 3, 50, 60, 61, 900], [-9, 4, 4.5, 700, 0, 1e-3, 5, 6]):
        torch.testing.assert_close(chronocon_loss(z, times(t), group), expected)
    backwards = chronocon_loss(z, -times([0, 1, 2, 3, 0, 1, 2, 3]), group)
    torch.testing.assert_close(backwards, expected)  # both directions are the same rule
    assert chronocon_loss(z, times([0, 2, 1, 3, 0, 1, 2, 3]), group) != expected


def test_visits_on_either_side_of_one_are_not_compared() -> None:
    """Of three visits the middle one has one visit on each side, so it is no anchor of anything."""
    z = rows(3)
    (gradient,) = torch.autograd.grad(chronocon_loss(z, times([0, 1, 2]), codes([0, 0, 0])), z)
    s = torch.nn.functional.cosine_similarity(z[:, None], z[None], dim=2)
    ends = [torch.stack([s[i, 1], s[i, k]]).logsumexp(0) - s[i, 1] for i, k in ((0, 2), (2, 0))]
    expected = torch.autograd.grad(ends[0] + ends[1], z)[0]
    torch.testing.assert_close(gradient, expected)


def test_other_patients_change_nothing() -> None:
    z, t = rows(9), times([0, 1, 2, 0, 1, 2, 3, 0, 1])
    alone = chronocon_loss(z[:3], t[:3], codes([0, 0, 0]))
    single = codes([0, 0, 0, 1, 2, 3, 4, -1, -1])
    torch.testing.assert_close(chronocon_loss(z, t, single), alone)
    gradient = torch.autograd.grad(chronocon_loss(z, t, single), z)[0]
    assert (gradient[3:] == 0).all()


def test_descent_puts_visits_in_order() -> None:
    t, group = times([0, 1, 2, 3, 4, 5]), codes([0] * 6)
    z = rows(6, dim=2, seed=3).detach().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        chronocon_loss(z, t, group, temperature=0.1).backward()
        optimizer.step()
    s = torch.nn.functional.cosine_similarity(z[:, None], z[None], dim=2)
    assert all(s[i, j] > s[i, k] for i in range(6) for j, k in itertools.pairwise(range(i + 1, 6)))
    assert all(s[i, j] > s[i, k] for i in range(6) for j, k in itertools.pairwise(range(i - 1, -1, -1)))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_degenerate_batches_have_finite_values_and_gradients(data: st.DataObject) -> None:
    num = data.draw(st.integers(0, 6))
    t = times(data.draw(st.lists(st.sampled_from([NAN, 0.0, 1.0, math.inf, -3.5]), min_size=num, max_size=num)))
    group = codes(data.draw(st.lists(st.integers(-1, 1), min_size=num, max_size=num)))
    directions = st.sampled_from([[0.0, 0.0], [1.0, 0.0], [-2.0, 0.0], [3e4, 4e4], [0.5, 1.0]])
    z = torch.tensor(data.draw(st.lists(directions, min_size=num, max_size=num)), dtype=torch.float32).view(num, 2)
    z.requires_grad_()
    with torch.autograd.set_detect_anomaly(True):
        loss = chronocon_loss(z, t, group, similarity=data.draw(st.sampled_from(["l2", "cosine"])))
        loss.backward()
    assert loss.isfinite() and loss.item() >= 0
    assert z.grad is not None and z.grad.isfinite().all()
    known = [(int(code), float(at)) for code, at in zip(group, t, strict=True) if code != -1 and math.isfinite(at)]
    if all(sum(code == other for code, _ in known) < 3 for other in (0, 1)):
        assert loss.item() == 0
        assert (z.grad == 0).all()


def test_excluded_rows_may_hold_anything() -> None:
    z = torch.cat([rows(3).detach(), torch.full((2, 4), NAN, dtype=torch.float64)]).requires_grad_()
    loss = chronocon_loss(z, times([0, 1, 2, NAN, 1]), codes([0, 0, 0, 0, -1]))
    torch.testing.assert_close(loss, chronocon_loss(z[:3], times([0, 1, 2]), codes([0, 0, 0])))
    gradient = torch.autograd.grad(loss, z)[0]
    assert gradient[:3].isfinite().all() and (gradient[3:] == 0).all()


def test_wrong_arguments() -> None:
    z, t, group = rows(3), times([0, 1, 2]), codes([0, 0, 0])
    for arguments, options, message in (
        ((z, t[:2], group), {}, r"y: expected \[3\]"),
        ((z, t[:, None], group), {}, "t and group: expected"),
        ((z, t, group[:2]), {}, "t and group: expected"),
        ((z, t, group), {"temperature": 0.0}, "temperature: expected a positive number"),
        ((z, t, group), {"similarity": "cosin"}, "did you mean 'cosine'"),
    ):
        with pytest.raises(UsageError, match=message):
            chronocon_loss(*arguments, **options)


# The objective


def batch(num: int, **columns: Any) -> Batch:
    return Batch({}, {}, {"sample": torch.arange(num), **{name: torch.as_tensor(v) for name, v in columns.items()}})


def features(num: int, views: int = 2) -> Features:
    generator = torch.Generator().manual_seed(0)
    return Features(torch.randn(views, num, 6, generator=generator).requires_grad_())


def test_it_is_its_loss_over_the_encoders_own_features_of_all_views() -> None:
    objective = ChronoCon(SHAPE, VISITS)
    assert list(objective.parameters()) == []
    assert objective.needs.relations == (Relation(same=("patient",), differ=("visit",)),)
    seen, found = batch(4, patient=[0, 0, 1, -1], visit=[0.0, 1.0, 0.0, 1.0]), features(4)
    loss = objective.loss(objective.embed(found, seen), seen)
    z = found.pooled.detach().double().flatten(0, 1)
    expected = by_loops(z, times([0, 1, 0, 1] * 2), codes([0, 0, 1, -1] * 2))
    assert loss.value.item() == pytest.approx(expected.item(), rel=1e-6)
    # Patient 0 alone has two visits. Each of its 4 rows has 3 others towards the other visit: its own view, beyond
    # which are three rows, and two of the other visit, with two beyond each. The other way there is its view alone.
    assert (loss.num_anchors, loss.counts["terms"]) == (4, 12)
    loss.value.backward()
    assert found.pooled.grad is not None
    assert (found.pooled.grad[:, 2:] == 0).all() and found.pooled.grad[:, :2].abs().sum(2).min() > 0


def test_rows_are_compared_within_all_of_same() -> None:
    objective = ChronoCon(SHAPE, VISITS, same=["patient", "laterality"])
    columns = {"patient": [0] * 6, "laterality": [0, 0, 0, 1, 1, -1], "visit": [0.0, 1.0, 2.0, 0.0, 1.0, 5.0]}
    seen, found = batch(6, **columns), features(6, views=1)
    loss = objective.loss(objective.embed(found, seen), seen)
    z = found.pooled.detach().double()[0]
    expected = by_loops(z[:3], times([0, 1, 2]), codes([0, 0, 0]))
    assert loss.value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (loss.num_anchors, loss.counts["terms"]) == (2, 2)


def test_time_orders_where_there_is_no_visit() -> None:
    assert ChronoCon(SHAPE, {"time": np.array([0.0, 90.0])}).by == "time"
    assert ChronoCon(SHAPE, VISITS | {"time": np.array([0.0, 90.0])}).by == "visit"
    assert ChronoCon(SHAPE, VISITS | {"time": np.array([0.0, 90.0])}, by="time").by == "time"


@pytest.mark.parametrize(
    ("columns", "keys", "message"),
    [
        ({}, {}, "needs a column of the role visit or time, found none"),
        (VISITS, {"same": ["laterality"]}, "same: expected the patient among the roles, found laterality"),
        (VISITS, {"same": ["patient", "visit"]}, "visit cannot be both same and different"),
        (VISITS, {"temperature": 0.0}, "temperature: expected a positive number"),
        (VISITS, {"similarity": "dot"}, "unknown similarity 'dot'"),
        (VISITS, {"hidden": 8}, "without dim there is none"),
    ],
)
def test_wrong_parameters_are_named(columns: dict[str, Any], keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ChronoCon(SHAPE, columns, **keys)


def test_a_recipe_names_it() -> None:
    (objective,) = build_objectives(Recipe.load("chronocon"), SHAPE, VISITS, seed=0).values()
    assert isinstance(objective, ChronoCon)
    assert (objective.temperature, objective.similarity, objective.head) == (1.0, "cosine", None)


def test_the_plan_offers_it_and_does_not_recommend_it(tiny_cohort: Path) -> None:
    (offer,) = [each for each in plan(tiny_cohort).offers if each.name == "chronocon"]
    assert offer.verdict == "possible"
    assert "only progresses" in " ".join(offer.reasons)
    assert offer.entry is not None and offer.entry["kind"] == "chronocon"


def test_the_plan_keeps_modalities_apart() -> None:
    columns = {"image": [f"{n}.png" for n in range(120)], "patient": [str(n // 4) for n in range(120)]}
    columns |= {"visit": [n // 2 % 2 for n in range(120)], "modality": ["fundus", "OCT"] * 60, "split": ["train"] * 120}
    offers = {each.name: each for each in plan(Cohort(pd.DataFrame(columns), CohortSpec(table="t.csv"))).offers}
    entry = offers["chronocon"].entry
    assert entry is not None and entry["same"] == ["patient", "modality"]


@pytest.mark.parametrize("keys", [[], ["objectives.chronocon.dim=8", "objectives.chronocon.by=time"]])
def test_the_recipe_trains(tiny_cohort: Path, tmp_path: Path, keys: list[str]) -> None:
    found = pretrain(
        tiny_cohort, recipe="chronocon", out=tmp_path / "run", cache=tmp_path / "cache", quiet=True,
        overrides=["encoder.backbone=r18w32", "images.size=24", "sampling={batch_size: 12, partners: 2}",
                   "training.max_steps=3", "training.log_steps=1", *keys],
    )  # fmt: skip
    lines = [line for line in found.metrics() if line["kind"] == "train"]
    assert len(lines) == 3
    assert all(line["losses"]["chronocon"] > 0 for line in lines)
    assert all(line["counts"]["chronocon"]["terms"] > 2 for line in lines)
