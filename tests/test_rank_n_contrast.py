"""Rank-N-Contrast against a triple loop, its properties, degenerate batches, its objective and a run of its recipe."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bolus.data.batches.batch import Batch
from bolus.encoders.features import Features, FeatureShape
from bolus.errors import RecipeError, UsageError
from bolus.objectives import build_objectives
from bolus.objectives.scores.rank_n_contrast import RankNContrast, rank_n_contrast_loss
from bolus.recipe import Recipe
from bolus.training.loop import pretrain

NAN = math.nan
SHAPE = FeatureShape(dim=6, grid_channels=6, grid_stride=32)
AGES = {"score:age": np.array([40.0, 44.0, 52.0, 70.0, np.nan])}


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(num: int, dim: int = 4, seed: int = 0) -> Tensor:
    """Vectors of unequal length; a gradient can be asked for."""
    lengths = 0.2 + 3 * torch.rand(num, 1, generator=rng(seed), dtype=torch.float64)
    return (lengths * torch.randn(num, dim, generator=rng(seed + 1), dtype=torch.float64)).requires_grad_()


def labels(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def by_loops(
    z: Tensor, y: Tensor, *, temperature: float = 2.0, similarity: str = "l2", valid: Tensor | None = None
) -> Tensor:
    """The formula as it is written: for every row i, every j, every k. Distances of labels are exact."""
    known = (y[:, None] if y.ndim == 1 else y).tolist()

    def usable(i: int, j: int) -> bool:
        if i == j or any(math.isnan(value) for value in known[i] + known[j]):
            return False
        return valid is None or bool(valid[i] & valid[j] if valid.ndim == 1 else valid[i, j])

    def far(i: int, j: int) -> Fraction:
        """The square of the distance, which has the same order; decimals are taken as written."""
        pairs = zip(known[i], known[j], strict=True)
        return sum(((Fraction(str(a)) - Fraction(str(b))) ** 2 for a, b in pairs), Fraction(0))

    def alike(i: int, j: int) -> Tensor:
        if similarity == "cosine":
            return z[i] @ z[j] / (z[i].norm() * z[j].norm()) / temperature
        return -(z[i] - z[j]).norm() / temperature

    of_rows = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if usable(i, j)]
        terms = [
            torch.stack([alike(i, k) for k in others if far(i, k) >= far(i, j)]).logsumexp(0) - alike(i, j)
            for j in others
        ]
        if terms:
            of_rows.append(torch.stack(terms).mean())
    return torch.stack(of_rows).mean() if of_rows else z.sum() * 0.0


YEARS = labels([54, 50, 61, 54, 57, 50, 53, 70, 57, 54, 49, 58])
REAL = torch.rand(6, generator=rng(3), dtype=torch.float64).mul(20).sub(7)
HOLES = torch.where(torch.arange(12) % 5 == 2, NAN, YEARS)
TWO = torch.randint(0, 5, (6, 2), generator=rng(5)).double().repeat(2, 1)
TWO_HOLES = torch.where(torch.arange(24).view(12, 2) % 9 == 4, NAN, TWO)
SOME = torch.arange(12) % 4 != 1
PAIRS = torch.rand(12, 12, generator=rng(2)) < 0.6

BATCHES: dict[str, dict[str, Any]] = {
    "years, with ties": {"y": YEARS},
    "distinct": {"y": REAL},
    "two views": {"y": REAL.repeat(2)},
    "three views": {"y": REAL[:4].repeat(3)},
    "decimals": {"y": labels([0.1, 0.3, 0.5, 0.7, 1.1, 0.2, 0.4, 0.3])},
    "decimals far from 0": {"y": labels([1960.1, 1960.3, 1960.5, 1960.7, 1961.1, 1960.2])},
    "binary": {"y": (YEARS > 54).double()},
    "all equal": {"y": torch.full((5,), 3.0, dtype=torch.float64)},
    "a pair": {"y": labels([1, 2])},
    "missing": {"y": HOLES},
    "two targets, two views": {"y": TWO},
    "two targets, missing": {"y": TWO_HOLES},
    "one target as a column": {"y": YEARS[:, None]},
    "valid rows": {"y": YEARS, "valid": SOME},
    "valid rows, missing": {"y": HOLES, "valid": SOME},
    "valid pairs, one way": {"y": YEARS, "valid": PAIRS},
    "valid pairs, missing": {"y": HOLES, "valid": PAIRS & PAIRS.T},
    "low temperature": {"y": YEARS, "temperature": 0.01},
}


def both(z: Tensor, found: Tensor, expected: Tensor) -> None:
    """Equal in value and gradient."""
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    gradients = [torch.autograd.grad(value, z, retain_graph=True)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("similarity", ["l2", "cosine"])
@pytest.mark.parametrize("batch", BATCHES)
def test_equals_the_loops(batch: str, similarity: Any) -> None:
    options = {**BATCHES[batch], "similarity": similarity}
    y = options.pop("y")
    z = rows(len(y))
    both(z, rank_n_contrast_loss(z, y, **options), by_loops(z, y, **options))


@pytest.mark.parametrize("similarity", ["l2", "cosine"])
def test_gradients_are_those_of_difference_quotients(similarity: Any) -> None:
    def loss(z: Tensor) -> Tensor:
        return rank_n_contrast_loss(z, labels([1, 1, 2, NAN, 4, 3]), similarity=similarity, temperature=0.5)

    assert torch.autograd.gradcheck(loss, rows(6, dim=3))


@pytest.mark.parametrize("batch", BATCHES)
def test_order_of_rows_does_not_matter(batch: str) -> None:
    options = dict(BATCHES[batch])
    y = options.pop("y")
    z, order = rows(len(y)), torch.randperm(len(y), generator=rng(0))
    moved = dict(options)
    if "valid" in options:
        valid = options["valid"]
        moved["valid"] = valid[order] if valid.ndim == 1 else valid[order][:, order]
    both(z, rank_n_contrast_loss(z[order], y[order], **moved), rank_n_contrast_loss(z, y, **options))


def test_only_the_order_of_distances_counts() -> None:
    z = rows(12)
    expected = rank_n_contrast_loss(z, YEARS)
    for y in (YEARS - 1000, -YEARS, 12 * YEARS, YEARS / 365.25, YEARS.float(), YEARS.long()):
        both(z, rank_n_contrast_loss(z, y), expected)
    distinct = labels([0, 1, 3, 7, 15, 31])
    stretched = labels([0, 1, 4, 13, 40, 121])  # other distances, in the same order from every row
    both(z, rank_n_contrast_loss(z[:6], stretched), rank_n_contrast_loss(z[:6], distinct))


def test_decimals_tie_as_whole_numbers_do_in_either_precision() -> None:
    whole, z = torch.randint(0, 30, (12,), generator=rng(4)), rows(12)
    expected = rank_n_contrast_loss(z, whole)
    assert len({abs(a - b) for a in (whole / 10).tolist() for b in (whole / 10).tolist()}) > 30  # rounding breaks ties
    for y in (whole.double() / 10, whole.float() / 10, whole.double() / 10 + 1e5, torch.stack([whole / 7] * 2, 1)):
        both(z, rank_n_contrast_loss(z, y), expected)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 40), min_size=3, max_size=9), st.floats(0.05, 5), st.integers(0, 1000))
def test_the_loss_is_least_where_features_lie_in_the_order_of_labels(
    values: list[int], scale: float, seed: int
) -> None:
    """On a line: positions that are the labels, against the same positions handed to other rows."""
    y = labels(values)
    z = scale * y[:, None]
    other = z[torch.randperm(len(y), generator=rng(seed))]
    assert rank_n_contrast_loss(z, y) <= rank_n_contrast_loss(other, y) + 1e-12


def test_the_least_loss_is_that_of_the_ties() -> None:
    """Rows of equal distance cannot be told apart: of n such, each costs log n, however far the features are drawn."""
    y = labels([3, 3, 4, 7, 7, 12])
    costs = []
    for i in range(6):
        groups = Counter(abs(float(y[i] - y[j])) for j in range(6) if j != i)
        costs.append(sum(n * math.log(n) for n in groups.values()) / 5)
    least = float(np.mean(costs))
    assert rank_n_contrast_loss(1e3 * y[:, None], y).item() == pytest.approx(least, rel=1e-12)
    for seed in range(20):
        assert rank_n_contrast_loss(rows(6, seed=seed), y).item() > least


def test_descent_puts_rows_in_order() -> None:
    y, z = labels([5, 1, 4, 2, 3, 0]), rows(6, dim=2, seed=5)
    moved = z.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([moved], lr=0.3)
    for _ in range(300):
        optimizer.zero_grad()
        rank_n_contrast_loss(moved, y).backward()
        optimizer.step()
    away = (y[:, None] - y).abs()
    wrong = [
        sum(
            bool(away[i, j] < away[i, k]) and bool((at[i] - at[j]).norm() >= (at[i] - at[k]).norm())
            for i in range(6)
            for j in range(6)
            for k in range(6)
        )
        for at in (z.detach(), moved.detach())
    ]
    assert wrong[0] > 10
    assert wrong[1] == 0


def test_excluded_and_missing_rows_are_absent_and_may_hold_anything() -> None:
    z, keep = rows(12), SOME & ~HOLES.isnan()
    alone = rank_n_contrast_loss(z[keep], YEARS[keep])
    for y, valid in ((HOLES, SOME), (YEARS, keep), (YEARS, keep[:, None] & keep)):
        both(z, rank_n_contrast_loss(z, y, valid=valid), alone)
    spoiled = torch.where(keep[:, None], z.detach(), NAN).requires_grad_()
    loss = rank_n_contrast_loss(spoiled, HOLES, valid=SOME)
    torch.testing.assert_close(loss, alone)
    gradient = torch.autograd.grad(loss, spoiled)[0]
    assert (gradient[~keep] == 0).all()
    assert gradient.isfinite().all()


def test_a_row_that_is_no_anchor_is_still_one_to_tell_from() -> None:
    z, y = rows(5), labels([50, 51, 53, 56, 60])
    only_first = torch.zeros(5, 5, dtype=torch.bool)
    only_first[0, 1:] = True
    both(z, rank_n_contrast_loss(z, y, valid=only_first), by_loops(z, y, valid=only_first))
    assert torch.autograd.grad(rank_n_contrast_loss(z, y, valid=only_first), z)[0].abs().sum(1).min() > 0


def test_rows_that_coincide_have_finite_gradients() -> None:
    """Two views may be the same to the bit; the distance 0 has no direction, the others pull as ever."""
    z = rows(6, dim=64).detach()
    z[3:] = z[:3]
    z.requires_grad_()
    y = labels([40, 44, 52]).repeat(2)
    loss = rank_n_contrast_loss(z, y)
    gradient = torch.autograd.grad(loss, z)[0]
    assert gradient.isfinite().all()
    assert gradient.abs().sum(1).min() > 0
    torch.testing.assert_close(gradient[:3], gradient[3:], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(loss, by_loops(z, y), rtol=1e-12, atol=0)


def test_rows_that_all_but_coincide_keep_their_precision() -> None:
    """Views a ten-thousandth of the rows' length apart, in float32: products in that precision would lose them."""
    near = (rows(6, dim=16).detach().repeat(2, 1) + 1e-4 * rows(12, dim=16, seed=3).detach()).float()
    z = near.double().requires_grad_()
    expected = by_loops(z, REAL.repeat(2), temperature=1e-4)
    single = near.requires_grad_()
    loss = rank_n_contrast_loss(single, REAL.repeat(2), temperature=1e-4)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    ours, gradient = torch.autograd.grad(loss, single)[0].double(), torch.autograd.grad(expected, z)[0]
    assert (ours - gradient).norm() < 1e-6 * gradient.norm()


def test_half_precision_is_computed_in_more() -> None:
    z = rows(12).detach()
    for dtype in (torch.bfloat16, torch.float16):
        half = z.to(dtype).requires_grad_()
        loss = rank_n_contrast_loss(half, YEARS)
        assert loss.dtype == torch.float32
        exact = half.detach().double()
        torch.testing.assert_close(loss.double(), by_loops(exact, YEARS), rtol=1e-6, atol=0)
        assert torch.autograd.grad(loss, half)[0].dtype == dtype
    single = rank_n_contrast_loss(z.float(), YEARS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = rank_n_contrast_loss(z.float(), YEARS)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, single, rtol=0, atol=0)
    assert rank_n_contrast_loss(z, YEARS).dtype == torch.float64


class Largest(TorchDispatchMode):
    """The largest storage, in elements, behind anything that an operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.untyped_storage().nbytes() // value.element_size())
        return result


@pytest.mark.parametrize("similarity", ["l2", "cosine"])
@pytest.mark.parametrize("targets", [1, 3])
def test_no_tensor_is_larger_than_rows_by_rows(similarity: Any, targets: int) -> None:
    for num, dim in ((64, 16), (128, 100)):
        y = torch.randint(0, 20, (num, targets), generator=rng(0)).double()
        z = rows(num, dim)
        with Largest() as seen:
            rank_n_contrast_loss(z, y, similarity=similarity).backward()
        assert seen.numel == num * num


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_degenerate_batches_have_finite_values_and_gradients(data: st.DataObject) -> None:
    num, num_targets = data.draw(st.integers(0, 6)), data.draw(st.sampled_from([0, 0, 1, 2]))
    shape = (num, num_targets) if num_targets else (num,)
    values, size = st.sampled_from([NAN, 0.0, 0.0, 1.0, 1.0, 2.5, math.inf, -1e6, 1e6]), math.prod(shape)
    y = torch.tensor(data.draw(st.lists(values, min_size=size, max_size=size))).view(shape)
    directions = st.sampled_from([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-2.0, 0.0], [0.0, 1e-20], [3e4, 4e4], [0.5, 1]])
    z = torch.tensor(data.draw(st.lists(directions, min_size=num, max_size=num)), dtype=torch.float32).view(num, 2)
    z.requires_grad_()
    kind = data.draw(st.sampled_from([None, "rows", "pairs"]))
    valid = None
    if kind:
        size = num if kind == "rows" else num * num
        valid = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)), dtype=torch.bool)
        valid = valid if kind == "rows" else valid.view(num, num)
    options: dict[str, Any] = {
        "valid": valid,
        "similarity": data.draw(st.sampled_from(["l2", "cosine"])),
        "temperature": data.draw(st.sampled_from([0.01, 2.0])),
    }
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way back either
        loss = rank_n_contrast_loss(z, y, **options)
        loss.backward()
    assert loss.isfinite()
    assert loss.item() >= 0
    assert z.grad is not None
    assert z.grad.isfinite().all()
    known = y.isfinite() if y.ndim == 1 else y.isfinite().all(1)
    pairs = known[:, None] & known & ~torch.eye(num, dtype=torch.bool)
    if valid is not None:
        pairs &= valid if valid.ndim == 2 else valid[:, None] & valid
    if not pairs.any():
        assert loss.item() == 0
        assert (z.grad == 0).all()


@pytest.mark.parametrize("y", [[NAN] * 4, [NAN, 3.0, NAN, NAN], [math.inf, 3.0, NAN, NAN]])
def test_fewer_than_two_rows_are_exactly_zero_with_zero_gradients(y: list[float]) -> None:
    z = rows(4)
    loss = rank_n_contrast_loss(z, labels(y))
    assert loss.item() == 0
    assert torch.equal(torch.autograd.grad(loss, z)[0], torch.zeros_like(z))


def test_arguments_that_do_not_go_together() -> None:
    z, y = rows(6), YEARS[:6]
    wrong: list[tuple[Any, Any, dict[str, Any], str]] = [
        (z[0], y, {}, "z: expected float"),
        (z.long(), y, {}, "z: expected float"),
        (z, y[:4], {}, r"y: expected \[6\]"),
        (z, y[:, None, None], {}, "y: expected"),
        (z, y[:, None][:, :0], {}, "y: expected"),
        (z, y, {"valid": torch.ones(5, dtype=torch.bool)}, "valid: expected bool"),
        (z, y, {"valid": torch.ones(6)}, "valid: expected bool"),
        (z, y, {"temperature": 0.0}, "temperature: expected a positive number, found 0.0"),
        (z, y, {"temperature": NAN}, "temperature"),
        (z, y, {"similarity": "cosin"}, "unknown similarity 'cosin'; did you mean 'cosine'"),
    ]
    for vectors, targets, options, message in wrong:
        with pytest.raises(UsageError, match=message):
            rank_n_contrast_loss(vectors, targets, **options)


# The objective


def batch(num: int, **columns: Any) -> Batch:
    found = {name.replace("__", ":"): torch.as_tensor(values) for name, values in columns.items()}
    return Batch({}, {}, {"sample": torch.arange(num), **found}, seed=7)


def features(num: int, views: int = 2) -> Features:
    return Features(torch.randn(views, num, 6, generator=rng(0), dtype=torch.float32).requires_grad_())


def test_it_is_its_loss_over_the_encoders_own_features_of_all_views() -> None:
    objective = RankNContrast(SHAPE, AGES)
    assert list(objective.parameters()) == []
    seen, found = batch(4, score__age=[40.0, 44.0, NAN, 52.0]), features(4, views=3)
    loss = objective.loss(objective.embed(found, seen), seen)
    expected = by_loops(found.pooled.detach().double().flatten(0, 1), seen.columns["score:age"].repeat(3))
    assert loss.value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.num_anchors == 9
    loss.value.backward()
    assert found.pooled.grad is not None
    assert found.pooled.grad[:, 2].abs().max() == 0
    assert found.pooled.grad[:, [0, 1, 3]].abs().sum(2).min() > 0


def test_several_targets_weigh_alike() -> None:
    columns = {"score:a": np.array([0.0, 2.0]), "score:b": np.array([100.0, 300.0, np.nan])}
    objective = RankNContrast(SHAPE, columns, targets=["score:a", "score:b"])
    assert objective.needs.roles == {"score:a", "score:b"}
    seen, found = batch(4, score__a=[0.0, 2.0, 1.0, 1.0], score__b=[100.0, 110.0, 160.0, NAN]), features(4)
    y = labels([[-1, -1], [1, -0.9], [0, -0.4], [0, NAN]]).repeat(2, 1)
    expected = by_loops(found.pooled.detach().double().flatten(0, 1), y)
    loss = objective.loss(objective.embed(found, seen), seen)
    assert loss.value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.num_anchors == 6


def test_a_projection_head_is_there_where_it_is_asked_for() -> None:
    objective = RankNContrast(SHAPE, AGES, dim=3, hidden=5, similarity="cosine", temperature=0.5)
    seen, found = batch(3, score__age=[40.0, 44.0, 52.0]), features(3)
    z = objective.embed(found, seen)["z"]
    assert z.shape == (2, 3, 3)
    expected = by_loops(
        z.detach().double().flatten(0, 1), labels([40, 44, 52]).repeat(2), similarity="cosine", temperature=0.5
    )
    value = objective.loss({"z": z}, seen).value
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    value.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())


def test_a_batch_without_scores_is_exactly_zero() -> None:
    objective, found = RankNContrast(SHAPE, AGES), features(3)
    seen = batch(3, score__age=[NAN] * 3)
    loss = objective.loss(objective.embed(found, seen), seen)
    loss.value.backward()
    assert (loss.value.item(), loss.num_anchors) == (0.0, 0)
    assert found.pooled.grad is not None
    assert torch.equal(found.pooled.grad, torch.zeros_like(found.pooled))


@pytest.mark.parametrize(
    ("columns", "keys", "message"),
    [
        ({}, {}, "name the score, as targets=score:NAME"),
        ({"score:a": np.full(3, 2.0)}, {}, "score:a is 2 in every training sample"),
        (AGES, {"targets": "score:agee"}, "did you mean 'score:age'"),
        (AGES, {"temperature": 0.0}, "temperature: expected a positive number"),
        (AGES, {"similarity": "dot"}, "unknown similarity 'dot'"),
        (AGES, {"hidden": 8}, "hidden: 8 is the width of a layer in a head, and without dim there is none"),
        (AGES, {"dim": 0}, "width 1 or more"),
    ],
)
def test_wrong_parameters_are_named(columns: dict[str, Any], keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        RankNContrast(SHAPE, columns, **keys)


def test_a_recipe_names_it() -> None:
    recipe = Recipe.load("rank_n_contrast")
    (objective,) = build_objectives(recipe, SHAPE, AGES, seed=0).values()
    assert isinstance(objective, RankNContrast)
    assert (objective.temperature, objective.similarity, objective.head) == (2.0, "l2", None)
    with pytest.raises(RecipeError, match=r"objectives\.rank_n_contrast\.similarity"):
        build_objectives(recipe.override(["objectives.rank_n_contrast.similarity=l1"]), SHAPE, AGES, seed=0)


@pytest.mark.parametrize("keys", [[], ["objectives.rank_n_contrast.dim=8", "training.precision=bf16"]])
def test_the_recipe_trains(tiny_cohort: Path, tmp_path: Path, keys: list[str]) -> None:
    found = pretrain(
        tiny_cohort, recipe="rank_n_contrast", out=tmp_path / "run", cache=tmp_path / "cache", quiet=True,
        overrides=["encoder.backbone=r18w32", "images.size=24", "sampling.batch_size=8", "training.max_steps=3",
                   "training.log_steps=1", *keys],
    )  # fmt: skip
    lines = [line for line in found.metrics() if line["kind"] == "train"]
    assert len(lines) == 3
    assert all(line["losses"]["rank_n_contrast"] > 0 for line in lines)
    assert all(line["counts"]["rank_n_contrast"]["anchors"] > 2 for line in lines)
    assert all(np.isfinite(line["losses"]["rank_n_contrast"]) for line in lines)
    assert found.status == "finished"
