"""SupReMix against loops with explicit mixture vectors, its properties, and degenerate batches."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bolus.errors import UsageError
from bolus.objectives.scores.supremix import supremix_loss
from references import supremix, supremix_by_anchor, supremix_terms

NAN = math.nan
PLAIN = {"mix_negatives": False, "mix_positives": False, "distance_weight": False}
MODES = [
    dict(zip(("mix_negatives", "mix_positives", "distance_weight"), on, strict=True))
    for on in product([False, True], repeat=3)
]


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(num: int, dim: int = 4, seed: int = 0) -> Tensor:
    """Vectors of unequal length; a gradient can be asked for."""
    g = rng(seed)
    lengths = 0.2 + 3 * torch.rand(num, 1, generator=g, dtype=torch.float64)
    return (lengths * torch.randn(num, dim, generator=g, dtype=torch.float64)).requires_grad_()


def shares(num: int, seed: int = 1) -> Tensor:
    return torch.rand(num, num, generator=rng(seed), dtype=torch.float64)


def pairs(num: int, *, symmetric: bool, seed: int = 2) -> Tensor:
    """Some pairs excluded, among them some of every anchor's positives."""
    kept = torch.rand(num, num, generator=rng(seed)) < 0.7
    return kept & kept.T if symmetric else kept


def labels(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


AGES = labels([54, 50, 61, 54, 57, 50, 53, 70, 57, 54, 49, 53, 58, 61, 30, 52])
REAL = torch.rand(8, generator=rng(3), dtype=torch.float64).mul(20).sub(7).repeat(2)  # two views, view-major
CLASSES = torch.arange(16, dtype=torch.float64) % 3
HALVES = torch.randint(0, 13, (16,), generator=rng(4)).double() / 2
HOLES = torch.where(torch.arange(16) % 5 == 2, NAN, AGES)
TWO = torch.randint(0, 5, (8, 2), generator=rng(5)).double().repeat(2, 1)
TWO_REAL = torch.rand(14, 2, generator=rng(6), dtype=torch.float64) * 6
TWO_HOLES = torch.where(torch.arange(28).view(14, 2) % 9 == 4, NAN, TWO_REAL)
SOME = torch.arange(16) % 4 != 1

BATCHES: dict[str, dict[str, Any]] = {
    "ages": {"y": AGES},
    "ages, window small": {"y": AGES, "window": 2.0},
    "ages, window on a label": {"y": AGES, "window": 4.0},
    "ages, window empty": {"y": AGES, "window": 1.0},
    "ages, window covers all": {"y": AGES, "window": 1000.0, "temperature": 0.1},
    "window infinite": {"y": AGES, "window": math.inf},
    "two views": {"y": REAL},
    "two views, window covers all": {"y": REAL, "window": 100.0, "temperature": 0.2},
    "distinct": {"y": REAL[:8], "window": 6.0},
    "classes": {"y": CLASSES, "window": 10.0},
    "classes, window 1": {"y": CLASSES, "window": 1.0},
    "two classes": {"y": (CLASSES > 0).double()},
    "halves": {"y": HALVES},
    "tolerance": {"y": HALVES, "label_tolerance": 0.5},
    "tolerance, not on a label": {"y": REAL, "label_tolerance": 1.3},
    "tolerance, distinct": {"y": REAL[:8], "label_tolerance": 1.0},
    "tolerance, ages": {"y": AGES, "label_tolerance": 3.0, "window": 8.0},
    "tolerance beyond the window": {"y": HALVES, "label_tolerance": 2.0, "window": 1.5},
    "tolerance covers all": {"y": HALVES, "label_tolerance": 50.0},
    "missing": {"y": HOLES},
    "missing, tolerance": {"y": HOLES, "label_tolerance": 1.0},
    "valid rows": {"y": AGES, "valid": SOME},
    "valid rows, missing": {"y": HOLES, "valid": SOME},
    "valid pairs": {"y": AGES, "valid": pairs(16, symmetric=True)},
    "valid pairs, one way": {"y": AGES, "valid": pairs(16, symmetric=False)},
    "valid pairs, one way, classes": {"y": CLASSES, "valid": pairs(16, symmetric=False), "window": 9.0},
    "valid pairs, one way, missing, tolerance": {
        "y": HOLES,
        "valid": pairs(16, symmetric=False),
        "label_tolerance": 1.0,
        "window": 9.0,
    },
    "two targets": {"y": TWO, "window": 3.0},
    "two targets, window covers all": {"y": TWO_REAL, "window": 100.0},
    "two targets, tolerance": {"y": TWO_REAL, "window": 4.0, "label_tolerance": 1.5},
    "two targets, missing": {"y": TWO_HOLES, "window": 5.0},
    "two targets, valid pairs": {"y": TWO_REAL, "window": 6.0, "valid": pairs(14, symmetric=False)},
    "one target as a column": {"y": AGES[:, None]},
    "three targets": {"y": torch.rand(12, 3, generator=rng(7), dtype=torch.float64), "window": 1.0},
    "two rows": {"y": labels([3, 3])},
    "two rows apart": {"y": labels([3, 4])},
    "three rows": {"y": labels([3, 5, 4])},
    "one row": {"y": labels([3])},
    "no rows": {"y": labels([])},
}


def both(z: Tensor, ours: Tensor, reference: Tensor) -> None:
    """Values and gradients agree."""
    assert ours.dtype == torch.float64
    assert ours.shape == ()
    torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-12)
    expected = torch.autograd.grad(reference, z, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(ours, z, retain_graph=True)[0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: "".join(str(int(on)) for on in mode.values()))
def test_equals_naive_loops_in_value_and_gradient(mode: dict[str, bool], batch: str) -> None:
    options = {**BATCHES[batch], **mode}
    y = options.pop("y")
    z, mix_weights = rows(len(y)), shares(len(y))
    reference = supremix(z, y, mix_weights=mix_weights, **options)
    both(z, supremix_loss(z, y, mix_weights=mix_weights, **options), reference)


@pytest.mark.parametrize(
    ("y", "options"),
    [
        (torch.randn(400, generator=rng(8), dtype=torch.float64).mul(12).add(54).round(), {}),
        (torch.randn(400, generator=rng(8), dtype=torch.float64).mul(12).add(54).round(), {"window": 1e3}),
        (torch.rand(200, generator=rng(9), dtype=torch.float64).mul(80).repeat(2), {"window": 5.0}),
        (torch.rand(400, generator=rng(9), dtype=torch.float64).mul(80), {"window": 1e3, "temperature": 0.1}),
        (torch.randint(0, 4, (400,), generator=rng(10)).double(), {"window": 1e3}),
        (torch.randint(0, 40, (400,), generator=rng(10)).double(), {"window": 9.0, "tolerance": 2.0}),
    ],
    ids=["ages", "ages, all", "continuous", "continuous, all", "classes", "tolerance"],
)
def test_hundreds_of_rows(y: Tensor, options: dict[str, float]) -> None:
    """Sizes at which the work is cut into blocks, against one anchor at a time."""
    z, mix_weights = rows(len(y)), shares(len(y))
    ours = dict(options)
    ours["label_tolerance"] = ours.pop("tolerance", 0.0)
    both(z, supremix_loss(z, y, mix_weights=mix_weights, **ours), supremix_by_anchor(z, y, mix_weights, **options))


def test_the_two_references_agree() -> None:
    z, mix_weights = rows(16), shares(16)
    for tolerance in (0.0, 1.0):
        naive = supremix(z, AGES, mix_weights=mix_weights, label_tolerance=tolerance)
        both(z, supremix_by_anchor(z, AGES, mix_weights, tolerance=tolerance), naive)


def test_upstream_gradients_scale_and_add() -> None:
    z, mix_weights = rows(16), shares(16)
    once = torch.autograd.grad(supremix_loss(z, AGES, mix_weights=mix_weights), z)[0]
    assert once.abs().max() > 0
    loss = supremix_loss(z, AGES, mix_weights=mix_weights)
    for _ in range(2):
        (-3 * loss).backward(retain_graph=True)
    assert z.grad is not None
    torch.testing.assert_close(z.grad, -6 * once, rtol=1e-12, atol=1e-15)
    with torch.no_grad():
        assert supremix_loss(z, AGES, mix_weights=mix_weights).item() == pytest.approx(loss.item(), rel=1e-14)


def test_rows_that_do_not_lie_together_in_memory() -> None:
    z, mix_weights = rows(16), shares(16)
    spread = torch.empty(4, 16, dtype=torch.float64).T
    spread.copy_(z.detach())
    ages = torch.stack([AGES, AGES], dim=1)[:, 0]
    ours = supremix_loss(spread.requires_grad_(), ages, mix_weights=mix_weights.T.contiguous().T)
    both(spread, ours, supremix(spread, AGES, mix_weights=mix_weights))


def test_all_modes_off_is_supcon() -> None:
    z = rows(16)
    ours = supremix_loss(z, AGES, temperature=0.1, **PLAIN)  # 70, 49, 58, 30 and 52 stand alone
    both(z, ours, SupConLoss(0.1)(F.normalize(z, dim=1), AGES.long()))


def test_without_equal_labels_only_views_are_left_and_it_is_simclr() -> None:
    z, samples = rows(16), torch.arange(8).repeat(2)
    both(z, supremix_loss(z, REAL, temperature=0.2, **PLAIN), NTXentLoss(0.2)(F.normalize(z, dim=1), samples))
    one_view = supremix_loss(z[:8], REAL[:8], **PLAIN)
    assert one_view.item() == 0
    assert (torch.autograd.grad(one_view, z)[0] == 0).all()


@pytest.mark.parametrize("weigh", [False, True])
def test_modes_that_are_off_leave_nothing_behind(weigh: bool) -> None:
    z, g = rows(16), rng(0)
    before = g.get_state()
    positives_only = [
        supremix_loss(z, AGES, mix_negatives=False, distance_weight=weigh, **options).item()
        for options in ({}, {"beta": (5.0, 5.0)}, {"mix_weights": shares(16)}, {"generator": g})
    ]
    assert len(set(positives_only)) == 1
    assert torch.equal(g.get_state(), before)
    negatives_only = [
        supremix_loss(z, AGES, mix_positives=False, distance_weight=weigh, mix_weights=shares(16), window=window).item()
        for window in (0.5, 5.0, 1e3)
    ]
    assert len(set(negatives_only)) == 1
    # The window that holds no pair is the mode switched off.
    options: dict[str, Any] = {"distance_weight": weigh, "mix_weights": shares(16)}
    empty = supremix_loss(z, AGES, window=1.0, **options)
    torch.testing.assert_close(empty, supremix_loss(z, AGES, mix_positives=False, **options), rtol=1e-13, atol=0)


def test_views_of_one_label_enter_no_mixture_of_each_other() -> None:
    """Two labels hold nothing between them, however many views: no mixed positives."""
    z, y = rows(12), labels([40, 44]).repeat(6)
    options: dict[str, Any] = {"mix_weights": shares(12)}
    torch.testing.assert_close(supremix_loss(z, y, **options), supremix_loss(z, y, mix_positives=False, **options))
    third = labels([40, 42, 44]).repeat(4)
    assert supremix_loss(z, third, **options) != supremix_loss(z, third, mix_positives=False, **options)


def test_the_anchors_share_of_a_mixed_negative() -> None:
    """Share 1: the mixture is the anchor itself, at distance 0; share 0: the negative once more."""
    z, y = rows(4), labels([1, 1, 3, 7])
    s = F.normalize(z, dim=1) @ F.normalize(z, dim=1).T / 0.5
    for share in (0.0, 1.0):
        ours = supremix_loss(z, y, mix_positives=False, mix_weights=torch.full((4, 4), share, dtype=torch.float64))
        expected = []
        for i in (0, 1):
            negatives = 3 * s[i, 2].exp() + 7 * s[i, 3].exp()
            mixed = negatives if share == 0 else 2 * torch.tensor(2.0, dtype=torch.float64).exp()
            expected.append((s[0, 1].exp() + negatives + mixed).log() - s[0, 1])
        torch.testing.assert_close(ours, torch.stack(expected).mean(), rtol=1e-12, atol=0)


def test_beta_gives_the_anchors_share() -> None:
    z = rows(16)
    for a, b in ((2e6, 8e6), (8e6, 2e6)):
        ours = supremix_loss(z, AGES, beta=(a, b), generator=rng(0))
        fixed = supremix_loss(z, AGES, mix_weights=torch.full((16, 16), a / (a + b), dtype=torch.float64))
        assert ours.item() == pytest.approx(fixed.item(), rel=1e-3)
        assert ours.item() != fixed.item()


def test_shares_are_independent_beta_draws() -> None:
    """Mean and spread of the loss over draws equal those of the reference over its own draws."""
    z, y = rows(4), labels([1, 1, 3, 7])
    num, numpy_rng, g = 800, np.random.default_rng(0), rng(0)
    ours = np.array([supremix_loss(z, y, temperature=0.2, generator=g).item() for _ in range(num)])
    draws = torch.from_numpy(numpy_rng.beta(2.0, 8.0, (num, 4, 4)))
    expected = np.array([supremix(z.detach(), y, temperature=0.2, mix_weights=draw).item() for draw in draws])
    error = math.sqrt((ours.var() + expected.var()) / num)
    assert abs(ours.mean() - expected.mean()) < 4 * error
    assert 0.85 < ours.std() / expected.std() < 1.18


def test_deterministic_for_a_generator_and_global_state_is_untouched() -> None:
    z = rows(16)
    state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (supremix_loss(z, AGES, generator=rng(seed)) for seed in (1, 1, 2))
    supremix_loss(z, AGES, mix_negatives=False)
    supremix_loss(z, AGES, mix_weights=shares(16))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert first.item() == again.item()
    assert first.item() != other.item()
    gradients = [torch.autograd.grad(loss, z)[0] for loss in (first, again)]
    assert torch.equal(*gradients)
    g = rng(1)
    assert supremix_loss(z, AGES, generator=g).item() != supremix_loss(z, AGES, generator=g).item()


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: "".join(str(int(on)) for on in mode.values()))
@pytest.mark.parametrize(("near", "far", "angle"), [(1.0, 3.0, 0.4), (2.0, 30.0, 1.2), (0.25, 0.5, 2.5)])
def test_theorem_1_a_farther_negative_is_pushed_harder(
    mode: dict[str, bool], near: float, far: float, angle: float
) -> None:
    """The gradient on a negative's logit is w e^s / D: at equal similarity its ratio is (d_far + 1) / (d_near + 1)."""
    cos, sin = math.cos(angle), math.sin(angle)
    z = labels([[1, 0, 0, 0], [0.6, 0.8, 0, 0], [cos, 0, sin, 0], [cos, 0, 0, sin]]).requires_grad_()
    y = labels([50, 50, 50 - near, 50 + far])
    only_first = torch.zeros(4, 4, dtype=torch.bool)
    only_first[0] = True
    options: dict[str, Any] = {**mode, "temperature": 0.3, "valid": only_first, "mix_weights": shares(4)}
    gradient = torch.autograd.grad(supremix_loss(z, y, **options), z)[0]
    pushed = gradient[2:].norm(dim=1)
    weights = labels([near + 1, far + 1]) if mode["distance_weight"] else labels([1, 1])
    torch.testing.assert_close(pushed[1] / pushed[0], weights[1] / weights[0], rtol=1e-9, atol=0)
    # And absolutely: the softmax share over the temperature, times the anchor's part that is tangent to the negative.
    terms = supremix_terms(z.detach(), y, **options)[0][1]
    denominator = sum(weight * similarity.exp() for weight, similarity in terms)
    torch.testing.assert_close(pushed, weights * math.exp(cos / 0.3) / denominator / 0.3 * sin, rtol=1e-9, atol=0)


def test_no_gradient_flows_through_mixtures() -> None:
    """Each component moves by its real pair alone, although the value does depend on the mixtures it is part of."""
    z, y, mix_weights = rows(4), labels([50, 50, 48, 53]), shares(4)
    only_first = torch.zeros(4, 4, dtype=torch.bool)
    only_first[0] = True
    options: dict[str, Any] = {"valid": only_first, "mix_weights": mix_weights, "temperature": 0.3}
    gradient = torch.autograd.grad(supremix_loss(z, y, **options), z)[0]
    positives, terms = supremix_terms(z, y, **options)[0]
    log_d = torch.stack([weight * s.exp() for weight, s in terms]).sum().log().detach()
    unit = F.normalize(z, dim=1)
    real = (unit[0].detach() @ unit[2:].T / 0.3).exp() * labels([3, 4])
    # d log D = dD / D, of which the real pairs are this part.
    expected = torch.autograd.grad((real / log_d.exp()).sum(), z, retain_graph=True)[0][2:]
    assert len(positives) == 2
    moved = z.detach().clone()
    pieces = []
    for row in (2, 3):
        ascent = torch.autograd.grad(unit[row] @ unit[0].detach(), z, retain_graph=True)[0][row]
        numeric = []
        for step in (1e-5, -1e-5):
            shifted = moved.clone()
            shifted[row] += step * ascent
            numeric.append(supremix_loss(shifted, y, **options))
        pieces.append(((numeric[0] - numeric[1]) / 2e-5 - gradient[row] @ ascent).abs())
    assert min(pieces) > 1e-3  # a difference quotient sees the mixtures; the gradient does not
    torch.testing.assert_close(gradient[2:], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("batch", ["ages", "two views", "tolerance", "valid pairs, one way", "two targets", "missing"])
def test_order_of_rows_does_not_matter(batch: str) -> None:
    options = dict(BATCHES[batch])
    y = options.pop("y")
    z, mix_weights, order = rows(len(y)), shares(len(y)), torch.randperm(len(y), generator=rng(0))
    moved = dict(options)
    if "valid" in options:
        moved["valid"] = options["valid"][order][:, order]
    loss = supremix_loss(z, y, mix_weights=mix_weights, **options)
    other = supremix_loss(z[order], y[order], mix_weights=mix_weights[order][:, order], **moved)
    torch.testing.assert_close(other, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(value, z)[0] for value in (other, loss)), rtol=1e-9, atol=1e-13)


def test_lengths_of_rows_do_not_matter() -> None:
    z, mix_weights = rows(16), shares(16)
    loss = supremix_loss(z, AGES, mix_weights=mix_weights)
    lengths = torch.linspace(0.01, 90, 16, dtype=torch.float64)[:, None]
    torch.testing.assert_close(supremix_loss(lengths * z, AGES, mix_weights=mix_weights), loss, rtol=1e-12, atol=0)
    along = (torch.autograd.grad(loss, z)[0] * z).sum(dim=1)
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-13)


def test_labels_are_never_rescaled_and_only_differences_count() -> None:
    z, options = rows(16), {"mix_weights": shares(16)}
    loss = supremix_loss(z, HALVES, **options)
    torch.testing.assert_close(supremix_loss(z, HALVES - 64, **options), loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(supremix_loss(z, -HALVES, **options), loss, rtol=1e-12, atol=0)
    unweighted = [
        supremix_loss(z, c * HALVES, window=5.0 * c, distance_weight=False, mix_weights=shares(16)) for c in (1, 4)
    ]
    torch.testing.assert_close(*unweighted, rtol=1e-12, atol=0)
    assert supremix_loss(z, 4 * HALVES, window=20.0, **options) > loss


def test_excluded_and_missing_rows_are_absent_and_may_hold_anything() -> None:
    z, mix_weights = rows(16), shares(16)
    keep = SOME & ~HOLES.isnan()
    alone = supremix_loss(z[keep], AGES[keep], mix_weights=mix_weights[keep][:, keep])
    as_pairs = keep[:, None] & keep[None, :]
    for y, valid in ((HOLES, SOME), (AGES, keep), (AGES, as_pairs)):
        both(z, supremix_loss(z, y, mix_weights=mix_weights, valid=valid), alone)
    spoiled = torch.where(keep[:, None], z.detach(), 0.0).requires_grad_()
    loss = supremix_loss(spoiled, HOLES, mix_weights=mix_weights, valid=SOME)
    torch.testing.assert_close(loss, alone)
    gradient = torch.autograd.grad(loss, spoiled)[0]
    assert (gradient[~keep] == 0).all()


def test_an_excluded_pair_is_no_component_of_a_mixture() -> None:
    """For the first anchor alone; row and column of `valid` are anchor and other row, the diagonal is not read."""
    z, y, mix_weights = rows(5), labels([50, 50, 48, 52, 53]), shares(5)
    only_first = torch.zeros(5, 5, dtype=torch.bool)
    only_first[0] = torch.tensor([True, True, True, False, True])
    kept = torch.tensor([0, 1, 2, 4])
    rest = torch.zeros(4, 4, dtype=torch.bool)
    rest[0] = True
    without = supremix_loss(z[kept], y[kept], valid=rest, mix_weights=mix_weights[kept][:, kept])
    torch.testing.assert_close(supremix_loss(z, y, valid=only_first, mix_weights=mix_weights), without)
    off_diagonal = ~torch.eye(16, dtype=torch.bool)
    whole = supremix_loss(rows(16), AGES, mix_weights=shares(16))
    torch.testing.assert_close(supremix_loss(rows(16), AGES, valid=off_diagonal, mix_weights=shares(16)), whole)


def test_half_precision_is_computed_in_float32() -> None:
    z, y = rows(16).detach(), AGES.float()
    options: dict[str, Any] = {"temperature": 0.1, "mix_weights": shares(16).float()}
    single = supremix_loss(z.float(), y, **options)
    assert single.dtype == torch.float32
    for dtype in (torch.bfloat16, torch.float16):
        half = z.to(dtype).requires_grad_()
        loss = supremix_loss(half, y, **options)
        assert loss.dtype == torch.float32
        exact = half.detach().double().requires_grad_()
        expected = supremix(exact, y, temperature=0.1, mix_weights=options["mix_weights"])
        torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=0)
        gradient = torch.autograd.grad(loss, half)[0]
        assert gradient.dtype == dtype
        reference = torch.autograd.grad(expected, exact)[0]
        assert (gradient.double() - reference).norm() < 0.02 * reference.norm()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = z.float().requires_grad_()
        loss = supremix_loss(inside, y, **options)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, single, rtol=1e-6, atol=0)
    assert torch.autograd.grad(loss, inside)[0].dtype == torch.float32


def test_low_temperature_neither_overflows_nor_drowns() -> None:
    z, mix_weights = rows(16), shares(16)
    exact = supremix_by_anchor(z, AGES, mix_weights, temperature=0.005, window=1e3)
    both(z, supremix_loss(z, AGES, temperature=0.005, window=1e3, mix_weights=mix_weights), exact)
    exact = supremix_by_anchor(z, AGES, mix_weights, temperature=0.005, window=1e3)
    single = z.detach().float().requires_grad_()
    loss = supremix_loss(single, AGES.float(), temperature=0.005, window=1e3, mix_weights=mix_weights.float())
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=0)
    ours, expected = torch.autograd.grad(loss, single)[0], torch.autograd.grad(exact, z)[0]
    assert (ours - expected).norm() < 1e-3 * expected.norm()


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


@pytest.mark.parametrize("window", [5.0, 1e3])
@pytest.mark.parametrize("kind", ["ages", "distinct", "classes"])
def test_no_tensor_has_a_pair_and_a_feature_axis(kind: str, window: float) -> None:
    N, D = 48, 512
    y = {
        "ages": torch.randint(40, 60, (N,), generator=rng(0)).double(),
        "distinct": torch.rand(N, generator=rng(0), dtype=torch.float64) * 80,
        "classes": torch.arange(N, dtype=torch.float64) % 4,
    }[kind]
    z = rows(N, D)
    with Largest() as seen:
        supremix_loss(z, y, window=window, generator=rng(0)).backward()
    assert N * D <= seen.numel < N * N * D // 4
    with Largest() as dense:
        (z.detach()[:, None] + z.detach()[None, :]).sum()
    assert dense.numel == N * N * D


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_degenerate_batches_have_finite_values_and_gradients(data: st.DataObject) -> None:
    num, num_targets = data.draw(st.integers(0, 6)), data.draw(st.sampled_from([0, 0, 1, 2]))
    shape = (num, num_targets) if num_targets else (num,)
    values = st.sampled_from([NAN, 0.0, 0.0, 1.0, 1.0, 2.5, 4.0, -1e6, 1e6])
    size = math.prod(shape)
    y = torch.tensor(data.draw(st.lists(values, min_size=size, max_size=size))).view(shape)
    directions = st.sampled_from([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-2.0, 0.0], [0.0, 1e-20], [3e4, 4e4], [0.5, 1]])
    z = torch.tensor(data.draw(st.lists(directions, min_size=num, max_size=num)), dtype=torch.float32).view(num, 2)
    z.requires_grad_()
    valid = data.draw(st.sampled_from([None, "rows", "pairs"]))
    mask = None
    if valid:
        size = num if valid == "rows" else num * num
        mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)), dtype=torch.bool)
        mask = mask if valid == "rows" else mask.view(num, num)
    options: dict[str, Any] = {
        **data.draw(st.sampled_from(MODES)),
        "valid": mask,
        "window": data.draw(st.sampled_from([0.0, 2.0, 5.0, math.inf])),
        "label_tolerance": data.draw(st.sampled_from([0.0, 1.0, math.inf])),
        "temperature": data.draw(st.sampled_from([0.01, 0.5])),
    }
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way back either
        loss = supremix_loss(z, y, generator=rng(0), **options)
        loss.backward()
    assert loss.isfinite()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    anchors = supremix_terms(torch.ones(num, 1, dtype=torch.float64), y, mix_weights=torch.zeros(num, num), **options)
    if not any(positives for positives, _ in anchors):
        assert loss.item() == 0
        assert (z.grad == 0).all()


@pytest.mark.parametrize(
    ("y", "something"),
    [
        ([NAN] * 6, False),
        ([5.0] * 6, True),
        ([NAN, NAN, 3.0, NAN, NAN, NAN], False),
        ([1.0, 2.0, NAN, NAN, NAN, NAN], False),
        ([1.0, 2.0, 3.0, NAN, NAN, NAN], True),  # the middle one has a mixed positive
        ([1.0, 1.0, NAN, NAN, NAN, NAN], False),  # a pair and nothing to tell it from: the log of one share of one
        ([1.0, 1.0, 2.0, NAN, NAN, NAN], True),
    ],
)
def test_nothing_to_do_is_exactly_zero_with_zero_gradients(y: list[float], something: bool) -> None:
    z = rows(6)
    loss = supremix_loss(z, labels(y), generator=rng(0))
    gradient = torch.autograd.grad(loss, z)[0]
    assert gradient.isfinite().all()
    assert (loss.item() != 0) == something
    assert bool((gradient != 0).any()) == something


def test_rows_that_are_all_the_same() -> None:
    """Every similarity is 1 / temperature: the loss is the log of the sum of the weights, and nothing moves."""
    z = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
    loss = supremix_loss(z, labels([50, 50, 51, 53]), mix_positives=False, mix_weights=torch.zeros(4, 4).double())
    loss.backward()
    assert loss.item() == pytest.approx(math.log(1 + 2 * (2 + 4)), rel=1e-12)
    assert z.grad is not None
    torch.testing.assert_close(z.grad, torch.zeros_like(z), rtol=0, atol=1e-12)


def test_arguments_that_do_not_go_together() -> None:
    z, y = rows(6), AGES[:6]
    wrong: list[tuple[Any, Any, dict[str, Any], str]] = [
        (z[0], y, {}, "z"),
        (z, y[:4], {}, "y"),
        (z, y, {"valid": torch.ones(5, dtype=torch.bool)}, "valid"),
        (z, y, {"valid": torch.ones(6)}, "valid"),
        (z, y, {"mix_weights": torch.ones(6)}, "mix_weights"),
        (z, y, {"temperature": 0.0}, "temperature"),
    ]
    for vectors, targets, options, message in wrong:
        with pytest.raises(UsageError, match=message):
            supremix_loss(vectors, targets, **options)
