"""LEARNER's score contrast against naive loops, its properties, and degenerate batches."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bolus.errors import UsageError
from bolus.objectives.scores.score import score_contrast_loss

NAN = math.nan
E = math.e
FORMULAS: dict[str, Callable[[float], float]] = {
    "linear": lambda d: d,
    "exponential": lambda d: (math.exp(d) - 1) / (E - 1),
    "logarithmic": lambda d: math.log(1 + d) / math.log(2),
}


def square(d: Tensor) -> Tensor:
    """A weighting of one's own."""
    return d**2


def naive(
    u: Tensor,
    s: Tensor,
    *,
    temperature: float = 0.1,
    threshold: float = 0.1,
    weighting: Any = "linear",
    score_range: float | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """METHODS' formula with loops over anchors that have a positive and a negative, itself excluded."""
    N, scores = len(s), s.tolist()
    kept = [i for i in range(N) if not math.isnan(scores[i]) and (valid is None or valid.ndim == 2 or bool(valid[i]))]
    present = [scores[i] for i in kept]
    spread = max(present) - min(present) if score_range is None else score_range
    unit = [u[i] / u[i].norm() for i in range(N)]
    losses = []
    for i in kept:
        attracted: list[Tensor] = []
        repelled: list[Tensor] = []
        for j in kept:
            if j == i or (valid is not None and valid.ndim == 2 and not valid[i, j]):
                continue
            difference = abs(scores[i] - scores[j]) / spread
            clipped = min(max(difference, 0.0), 1.0)
            if weighting == "none":
                weight = None
            elif callable(weighting):
                weight = float(weighting(torch.tensor(clipped, dtype=torch.float64)))
            else:
                weight = FORMULAS[weighting](clipped)
            term = (unit[i] @ unit[j] / temperature).exp()
            if difference <= threshold:
                attracted.append(term if weight is None else (1 - weight) * term)
            else:
                repelled.append(term if weight is None else weight * term)
        if attracted and repelled:
            near, far = torch.stack(attracted).sum(), torch.stack(repelled).sum()
            losses.append(-(near / (near + far)).log())
    return torch.stack(losses).mean() if losses else 0 * u.sum()


def rows(num: int, dim: int = 5, seed: int = 0) -> Tensor:
    """Vectors of unequal length; a gradient can be asked for."""
    g = torch.Generator().manual_seed(seed)
    lengths = 0.2 + 3 * torch.rand(num, 1, generator=g, dtype=torch.float64)
    return (lengths * torch.randn(num, dim, generator=g, dtype=torch.float64)).requires_grad_()


def scores(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def both(u: Tensor, ours: Tensor, reference: Tensor) -> None:
    """Values and gradients agree."""
    assert ours.dtype == torch.float64
    assert ours.shape == ()
    torch.testing.assert_close(ours, reference, rtol=1e-11, atol=1e-13)
    expected = torch.autograd.grad(reference, u, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(ours, u, retain_graph=True)[0], expected, rtol=1e-9, atol=1e-12)


RATIO = torch.randn(14, generator=torch.Generator().manual_seed(1), dtype=torch.float64).mul(60).add(300)
SEVERITY = torch.tensor([0, 1, 3, 2, 2, 0, 1, 1, 3, 0, 2, 0, 0, 1], dtype=torch.float64)
HOLES = torch.where(torch.arange(14) % 4 == 2, NAN, RATIO)
SOME = torch.arange(14) % 5 != 1
PAIRS = torch.rand(14, 14, generator=torch.Generator().manual_seed(2)) < 0.6

BATCHES: dict[str, dict[str, Any]] = {
    "continuous": {"s": RATIO},
    "continuous, wide threshold": {"s": RATIO, "threshold": 0.5},
    "continuous, narrow threshold": {"s": RATIO, "threshold": 0.02},
    "ordinal, threshold 0": {"s": SEVERITY, "threshold": 0.0},
    "ordinal, threshold on a step": {"s": SEVERITY, "threshold": 1 / 3},
    "a larger range": {"s": RATIO, "score_range": 1000.0},
    "a smaller range": {"s": RATIO, "score_range": 50.0},
    "ordinal, a smaller range": {"s": SEVERITY, "score_range": 2.0, "threshold": 0.5},
    "missing": {"s": HOLES},
    "valid rows": {"s": RATIO, "valid": SOME, "score_range": 300.0},
    "valid rows, missing": {"s": HOLES, "valid": SOME, "score_range": 300.0, "threshold": 0.3},
    "valid pairs": {"s": RATIO, "valid": PAIRS & PAIRS.T, "threshold": 0.2},
    "valid pairs, one way": {"s": RATIO, "valid": PAIRS, "threshold": 0.2},
    "valid pairs, one way, missing": {"s": HOLES, "valid": PAIRS, "threshold": 0.3},
    "two rows apart": {"s": scores([1, 2])},
    "three rows": {"s": scores([1, 1, 2])},
}


def name_of(weighting: Any) -> str:
    return getattr(weighting, "__name__", weighting)  # the same in every process


WEIGHTINGS: list[Any] = ["none", "linear", "exponential", "logarithmic", square]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=name_of)
@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_equals_naive_loops_in_value_and_gradient(weighting: Any, batch: str, temperature: float) -> None:
    options = {**BATCHES[batch], "weighting": weighting, "temperature": temperature}
    s = options.pop("s")
    u = rows(len(s))
    both(u, score_contrast_loss(u, s, **options), naive(u, s, **options))


def test_by_hand() -> None:
    """Three scans of scores 0, 1, 10: of range 10, so 0 and 1 are each other's positives and 10 has none."""
    u = scores([1, 0, 0, 1, 0.6, 0.8]).view(3, 2).requires_grad_()
    first = -math.log(0.9 * 1 / (0.9 * 1 + 1.0 * math.exp(0.6 / 0.5)))
    second = -math.log(0.9 * 1 / (0.9 * 1 + 0.9 * math.exp(0.8 / 0.5)))
    for s in (scores([0, 1, 10]), torch.tensor([0, 1, 10], dtype=torch.float32)):
        loss = score_contrast_loss(u, s, temperature=0.5, threshold=0.1)  # 1 / 10 is not above the threshold
        assert loss.item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_a_constant_weighting_of_one_half_is_the_unweighted_loss() -> None:
    u = rows(14)
    both(
        u,
        score_contrast_loss(u, RATIO, weighting=lambda d: torch.full_like(d, 0.5)),
        score_contrast_loss(u, RATIO, weighting="none"),
    )
    other = score_contrast_loss(u, RATIO, weighting=lambda d: torch.full_like(d, 0.3))
    shifted = score_contrast_loss(u, RATIO, weighting="none") - other
    assert shifted.abs() > 1e-3  # one half alone


def test_named_weightings_are_callables() -> None:
    u = rows(14)
    callables: dict[str, Callable[[Tensor], Tensor]] = {
        "linear": lambda d: d,
        "exponential": lambda d: torch.expm1(d) / (E - 1),
        "logarithmic": lambda d: torch.log2(1 + d),
    }
    values = []
    for name, weighting in callables.items():
        both(u, score_contrast_loss(u, RATIO, weighting=name), score_contrast_loss(u, RATIO, weighting=weighting))
        values.append(score_contrast_loss(u, RATIO, weighting=name).item())
    assert len(set(values)) == 3


def test_a_weighting_sees_differences_between_0_and_1() -> None:
    seen = []

    def look(d: Tensor) -> Tensor:
        seen.append((float(d.min()), float(d.max())))
        return d

    score_contrast_loss(rows(14), RATIO, weighting=look, score_range=20.0)
    assert seen
    assert all(low >= 0 and high == 1 for low, high in seen)
    score_contrast_loss(rows(14), HOLES, weighting=look, score_range=1000.0)
    assert max(high for _, high in seen[1:]) < 1


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=name_of)
def test_larger_differences_repel_more_and_attract_less(weighting: Any) -> None:
    """At equal similarity the gradients on two negatives, and on two positives, stand as their weights."""
    cos, sin = math.cos(1.1), math.sin(1.1)
    u = torch.zeros(5, 5, dtype=torch.float64)
    u[0, 0] = 1
    u[1:, 0] = cos
    u[1:, 1:] = sin * torch.eye(4, dtype=torch.float64)
    u.requires_grad_()
    differences = scores([0.1, 0.4, 0.6, 0.9])  # two positives, two negatives
    only_first = torch.zeros(5, 5, dtype=torch.bool)
    only_first[0] = True
    s = torch.cat([scores([0]), 20 * differences])
    loss = score_contrast_loss(
        u, s, temperature=0.4, threshold=0.5, weighting=weighting, score_range=20.0, valid=only_first
    )
    pulled = torch.autograd.grad(loss, u)[0][1:].norm(dim=1)
    if weighting == "none":
        w = torch.full((4,), 0.5, dtype=torch.float64)
    elif callable(weighting):
        w = weighting(differences)
    else:
        w = scores([FORMULAS[weighting](float(d)) for d in differences])
    torch.testing.assert_close(pulled[3] / pulled[2], w[3] / w[2], rtol=1e-9, atol=0)
    torch.testing.assert_close(pulled[1] / pulled[0], (1 - w[1]) / (1 - w[0]), rtol=1e-9, atol=0)


def test_anchors_without_a_positive_or_a_negative_are_skipped() -> None:
    """One score far from the rest has no positive; the mean is over the other anchors alone."""
    s = scores([0, 0.05, 0.02, 1])
    u = rows(4)
    loss = score_contrast_loss(u, s)
    both(u, loss, naive(u, s))
    not_the_last = torch.ones(4, 4, dtype=torch.bool)
    not_the_last[3] = False
    both(u, score_contrast_loss(u, s, valid=not_the_last), loss)
    # Without its only negative an anchor is skipped as well, though its positives are left.
    no_negative = torch.ones(4, 4, dtype=torch.bool)
    no_negative[0, 3] = False
    others = not_the_last.clone()
    others[0] = False
    both(u, score_contrast_loss(u, s, valid=no_negative), score_contrast_loss(u, s, valid=others))
    assert score_contrast_loss(u, s, valid=others) != loss


def test_order_of_rows_does_not_matter() -> None:
    u, order = rows(14), torch.randperm(14, generator=torch.Generator().manual_seed(0))
    for s, valid in ((RATIO, None), (HOLES, SOME), (RATIO, PAIRS)):
        moved = None if valid is None else valid[order] if valid.ndim == 1 else valid[order][:, order]
        loss = score_contrast_loss(u, s, valid=valid)
        both(u, score_contrast_loss(u[order], s[order], valid=moved), loss)


def test_lengths_of_rows_do_not_matter() -> None:
    u = rows(14)
    loss = score_contrast_loss(u, RATIO)
    lengths = torch.linspace(0.01, 90, 14, dtype=torch.float64)[:, None]
    torch.testing.assert_close(score_contrast_loss(lengths * u, RATIO), loss, rtol=1e-12, atol=0)
    along = (torch.autograd.grad(loss, u)[0] * u).sum(dim=1)
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-12)


def test_the_range_is_the_unit_of_scores() -> None:
    u, spread = rows(14), float(RATIO.max() - RATIO.min())
    loss = score_contrast_loss(u, RATIO)
    for again in (
        score_contrast_loss(u, RATIO, score_range=spread),
        score_contrast_loss(u, 8 * RATIO - 512),
        score_contrast_loss(u, -RATIO),
        score_contrast_loss(u, 8 * RATIO, score_range=8 * spread),
    ):
        torch.testing.assert_close(again, loss, rtol=1e-11, atol=0)
    assert score_contrast_loss(u, RATIO, score_range=2 * spread) != loss
    # The batch's range is that of the scores it has.
    kept = ~HOLES.isnan()
    torch.testing.assert_close(score_contrast_loss(u, HOLES), score_contrast_loss(u[kept], HOLES[kept]))


def test_excluded_and_missing_rows_are_absent_and_may_hold_anything() -> None:
    u = rows(14)
    keep = SOME & ~HOLES.isnan()
    alone = score_contrast_loss(u[keep], RATIO[keep], score_range=300.0, threshold=0.3)
    options: dict[str, Any] = {"score_range": 300.0, "threshold": 0.3}
    as_pairs = keep[:, None] & keep[None, :]
    for s, valid in ((HOLES, SOME), (RATIO, keep), (RATIO, as_pairs)):
        both(u, score_contrast_loss(u, s, valid=valid, **options), alone)
    spoiled = torch.where(keep[:, None], u.detach(), 0.0).requires_grad_()
    loss = score_contrast_loss(spoiled, HOLES, valid=SOME, **options)
    torch.testing.assert_close(loss, alone)
    assert (torch.autograd.grad(loss, spoiled)[0][~keep] == 0).all()
    off_diagonal = ~torch.eye(14, dtype=torch.bool)
    torch.testing.assert_close(score_contrast_loss(u, RATIO, valid=off_diagonal), score_contrast_loss(u, RATIO))


def test_half_precision_is_computed_in_float32() -> None:
    u, s = rows(14).detach(), RATIO.float()
    single = score_contrast_loss(u.float(), s)
    assert single.dtype == torch.float32
    for dtype in (torch.bfloat16, torch.float16):
        half = u.to(dtype)
        loss = score_contrast_loss(half, s, temperature=0.01)  # e^100 is infinite in float32
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.double(), naive(half.double(), RATIO, temperature=0.01), rtol=1e-4, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = score_contrast_loss(u.float(), s)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, single, rtol=1e-6, atol=0)


@pytest.mark.parametrize("s", [[3.0] * 4, [3.0, NAN, 3.0, 3.0]])
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=name_of)
def test_constant_scores_are_zero_and_a_warning(s: list[float], weighting: Any) -> None:
    u = rows(4)
    with pytest.warns(UserWarning, match="score"):
        loss = score_contrast_loss(u, scores(s), weighting=weighting)
    assert loss.item() == 0
    assert torch.equal(torch.autograd.grad(loss, u)[0], torch.zeros_like(u))


@pytest.mark.parametrize(
    ("s", "options"),
    [
        ([NAN] * 4, {}),
        ([1.0, NAN, NAN, NAN], {}),
        ([1.0, 2.0, 3.0, 4.0], {"threshold": 0.0}),
        ([1.0, 2.0, 3.0, 4.0], {"threshold": 1.0}),
        ([1.0, 1.1, 3.0, 4.0], {"valid": torch.zeros(4, dtype=torch.bool)}),
        ([1.0, 1.1, 3.0, 4.0], {"valid": torch.eye(4, dtype=torch.bool)}),
        ([3.0] * 4, {"score_range": 2.0}),
        ([], {}),
        ([3.0], {}),
        ([3.0], {"score_range": 2.0}),
    ],
)
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=name_of)
def test_nothing_to_do_is_exactly_zero_with_zero_gradients(
    s: list[float], options: dict[str, Any], weighting: Any
) -> None:
    u = rows(len(s))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = score_contrast_loss(u, scores(s), weighting=weighting, **options)
    assert loss.item() == 0
    assert torch.equal(torch.autograd.grad(loss, u)[0], torch.zeros_like(u))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_degenerate_batches_have_finite_values_and_gradients(data: st.DataObject) -> None:
    num = data.draw(st.integers(0, 6))
    values = st.sampled_from([NAN, 0.0, 0.0, 1.0, 1.0, 1.05, 3.0, -1e6, 1e6])
    s = torch.tensor(data.draw(st.lists(values, min_size=num, max_size=num)))
    directions = st.sampled_from([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-2.0, 0.0], [0.0, 1e-20], [3e4, 4e4], [0.5, 1]])
    u = torch.tensor(data.draw(st.lists(directions, min_size=num, max_size=num)), dtype=torch.float32).view(num, 2)
    u.requires_grad_()
    valid = data.draw(st.sampled_from([None, "rows", "pairs"]))
    mask = None
    if valid:
        size = num if valid == "rows" else num * num
        mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)), dtype=torch.bool)
        mask = mask if valid == "rows" else mask.view(num, num)
    constants = [torch.zeros_like, torch.ones_like]
    options: dict[str, Any] = {
        "weighting": data.draw(st.sampled_from([*WEIGHTINGS, *constants])),
        "threshold": data.draw(st.sampled_from([0.0, 0.1, 1.0])),
        "score_range": data.draw(st.sampled_from([None, 0.5, 3.0])),
        "temperature": data.draw(st.sampled_from([0.005, 0.1])),
        "valid": mask,
    }
    with torch.autograd.set_detect_anomaly(True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = score_contrast_loss(u, s, **options)
        loss.backward()
    assert loss.isfinite()
    assert u.grad is not None
    assert u.grad.isfinite().all()
    if s[~s.isnan()].unique().numel() < 2 and options["weighting"] not in constants:
        assert loss.item() == 0
        assert (u.grad == 0).all()


def test_rows_that_are_all_the_same() -> None:
    """Every similarity is equal: the loss is the ratio of weights, and nothing moves."""
    u, s = torch.ones(3, 4, dtype=torch.float64, requires_grad=True), scores([0, 1, 10])
    loss = score_contrast_loss(u, s)
    loss.backward()
    expected = (-math.log(0.9 / (0.9 + 1.0)) - math.log(0.9 / (0.9 + 0.9))) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert u.grad is not None
    torch.testing.assert_close(u.grad, torch.zeros_like(u), rtol=0, atol=1e-12)


def test_upstream_gradients_scale() -> None:
    u = rows(14)
    once = torch.autograd.grad(score_contrast_loss(u, RATIO), u)[0]
    assert once.abs().max() > 0
    torch.testing.assert_close(torch.autograd.grad(-3 * score_contrast_loss(u, RATIO), u)[0], -3 * once)
    unit = F.normalize(u, dim=1)
    torch.testing.assert_close(score_contrast_loss(unit, RATIO), score_contrast_loss(u, RATIO))


def test_arguments_that_do_not_go_together() -> None:
    u, s = rows(14), RATIO
    wrong: list[tuple[Any, Any, dict[str, Any], str]] = [
        (u[0], s, {}, "u"),
        (u, s[:4], {}, "s"),
        (u, s, {"valid": torch.ones(5, dtype=torch.bool)}, "valid"),
        (u, s, {"valid": torch.ones(14)}, "valid"),
        (u, s, {"weighting": "lineal"}, "weighting"),
        (u, s, {"temperature": 0.0}, "temperature"),
    ]
    for vectors, targets, options, message in wrong:
        with pytest.raises(UsageError, match=message):
            score_contrast_loss(vectors, targets, **options)
