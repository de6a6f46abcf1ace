"""InfoNCE against naive loops, an independent library, and degenerate masks."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss
from torch import Tensor

from bolus.errors import UsageError
from bolus.objectives.infonce import infonce


def naive(
    logits: Tensor,
    positives: Tensor,
    negatives: Tensor,
    form: str = "out",
    positive_weights: Tensor | None = None,
    negative_weights: Tensor | None = None,
) -> Tensor:
    """The formulas with loops and plain exponentials, over rows that have a positive of positive weight."""
    v = torch.ones_like(logits) if positive_weights is None else positive_weights
    w = torch.ones_like(logits) if negative_weights is None else negative_weights
    losses = []
    for i in range(logits.shape[0]):
        P = [j for j in range(logits.shape[1]) if positives[i, j]]
        Q = [j for j in range(logits.shape[1]) if negatives[i, j]]
        if not any(v[i, j] > 0 for j in P):
            continue
        repelled = sum((w[i, j] * logits[i, j].exp() for j in Q), torch.zeros((), dtype=logits.dtype))
        if form == "out":
            denominator = sum(logits[i, j].exp() for j in P) + repelled
            terms = [-v[i, j] * (logits[i, j].exp() / denominator).log() for j in P]
            losses.append(sum(terms) / sum(v[i, j] for j in P))
        else:
            attracted = sum(v[i, j] * logits[i, j].exp() for j in P)
            losses.append(-(attracted / (attracted + repelled)).log())
    return torch.stack([torch.as_tensor(loss) for loss in losses]).mean() if losses else 0 * logits.sum()


def problem(seed: int, rows: int = 7, columns: int = 9) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Logits, disjoint masks with absent pairs, and weights of which some are zero; the last row has no positive."""
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, columns, generator=g, dtype=torch.float64)
    kind = torch.randint(0, 3, (rows, columns), generator=g)
    kind[-1] = kind[-1].clamp(min=1)
    weights = torch.rand(2, rows, columns, generator=g, dtype=torch.float64)
    weights = torch.where(weights < 0.2, 0.0, weights)
    return logits, kind == 0, kind == 1, weights[0], weights[1]


@pytest.mark.parametrize("form", ["out", "in"])
@pytest.mark.parametrize(("weigh_positives", "weigh_negatives"), list(product([False, True], repeat=2)))
@pytest.mark.parametrize("seed", range(4))
def test_equals_naive_loops_in_value_and_gradient(
    form: Any, weigh_positives: bool, weigh_negatives: bool, seed: int
) -> None:
    logits, positives, negatives, v, w = problem(seed)
    weights = {
        "positive_weights": v.requires_grad_() if weigh_positives else None,
        "negative_weights": w.requires_grad_() if weigh_negatives else None,
    }
    inputs = [logits.requires_grad_(), *(weight for weight in weights.values() if weight is not None)]
    ours = infonce(logits, positives, negatives, form=form, **weights)
    reference = naive(logits, positives, negatives, form=form, **weights)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)
    ours_grad = torch.autograd.grad(ours, inputs)
    reference_grad = torch.autograd.grad(reference, inputs)
    torch.testing.assert_close(ours_grad[0], reference_grad[0], rtol=1e-10, atol=1e-12)
    # Where a weight is 0 its term is absent, so that it has no gradient; elsewhere the two agree.
    for weight, a, b in zip(inputs[1:], ours_grad[1:], reference_grad[1:], strict=True):
        torch.testing.assert_close(a, torch.where(weight > 0, b, 0.0), rtol=1e-10, atol=1e-12)


def test_two_views_are_simclr() -> None:
    """NT-Xent as SimCLR's algorithm 1 writes it, over 2N rows."""
    num_samples, temperature = 5, 0.2
    g = torch.Generator().manual_seed(0)
    z = F.normalize(torch.randn(2 * num_samples, 6, generator=g, dtype=torch.float64), dim=1)
    losses = []
    for i in range(2 * num_samples):
        partner = (i + num_samples) % (2 * num_samples)
        denominator = sum(math.exp(float(z[i] @ z[k]) / temperature) for k in range(2 * num_samples) if k != i)
        losses.append(-math.log(math.exp(float(z[i] @ z[partner]) / temperature) / denominator))
    diagonal = torch.eye(2 * num_samples, dtype=torch.bool)
    positives = torch.eye(num_samples, dtype=torch.bool).repeat(2, 2) & ~diagonal
    logits = z @ z.T / temperature
    ours = infonce(logits, positives, ~positives & ~diagonal)
    assert ours.item() == pytest.approx(sum(losses) / len(losses), rel=1e-12)
    samples = torch.arange(num_samples).repeat(2)
    assert ours.item() == pytest.approx(NTXentLoss(temperature)(z, samples).item(), rel=1e-9)
    in_form = infonce(logits, positives, ~positives & ~diagonal, form="in")
    torch.testing.assert_close(in_form, ours)  # one positive: both forms are one


def test_two_modalities_are_clip() -> None:
    """The two cross-entropies of CLIP, over a matrix and its transpose."""
    g = torch.Generator().manual_seed(1)
    logits = 5 * torch.randn(6, 6, generator=g, dtype=torch.float64)
    pairs = torch.eye(6, dtype=torch.bool)
    ours = (infonce(logits, pairs, ~pairs) + infonce(logits.T, pairs, ~pairs)) / 2
    target = torch.arange(6)
    torch.testing.assert_close(ours, (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2)
    loops = [
        -math.log(math.exp(matrix[i, i]) / sum(math.exp(matrix[i, j]) for j in range(6)))
        for matrix in (logits.numpy(), logits.T.numpy())
        for i in range(6)
    ]
    assert ours.item() == pytest.approx(sum(loops) / 12, rel=1e-12)


def test_labels_are_supcon() -> None:
    g = torch.Generator().manual_seed(2)
    z = F.normalize(torch.randn(12, 5, generator=g, dtype=torch.float64), dim=1)
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 2, 0, 3, 4, 4, 1])  # label 3 stands alone: a row without a positive
    diagonal = torch.eye(12, dtype=torch.bool)
    positives = (labels[:, None] == labels[None, :]) & ~diagonal
    ours = infonce(z @ z.T / 0.1, positives, ~positives & ~diagonal)
    assert ours.item() == pytest.approx(SupConLoss(0.1)(z, labels).item(), rel=1e-9)
    torch.testing.assert_close(ours, naive(z @ z.T / 0.1, positives, ~positives & ~diagonal))


@pytest.mark.parametrize("form", ["out", "in"])
def test_reduction_none_gives_rows_whose_mean_is_the_mean(form: Any) -> None:
    logits, positives, negatives, v, w = problem(5)
    weights = {"positive_weights": v, "negative_weights": w}
    values, valid = infonce(logits, positives, negatives, form=form, reduction="none", **weights)
    assert values.shape == valid.shape == (7,)
    assert valid.dtype == torch.bool
    assert not valid[-1]
    assert values[-1] == 0
    for row in range(6):
        alone = naive(*(tensor[row : row + 1] for tensor in (logits, positives, negatives)), form,
                      v[row : row + 1], w[row : row + 1])  # fmt: skip
        torch.testing.assert_close(values[row], alone)
    torch.testing.assert_close(values[valid].mean(), infonce(logits, positives, negatives, form=form, **weights))


@pytest.mark.parametrize("form", ["out", "in"])
@pytest.mark.parametrize("case", ["no positives", "all masked", "weightless positives", "no columns", "no rows"])
def test_nothing_to_do_is_exactly_zero_with_zero_gradients(form: Any, case: str) -> None:
    shape = {"no columns": (3, 0), "no rows": (0, 3)}.get(case, (3, 4))
    logits = torch.full(shape, torch.nan if case == "all masked" else 1.5, requires_grad=True)
    positives = torch.full(shape, case == "weightless positives")
    negatives = ~positives if case == "no positives" else torch.zeros(shape, dtype=torch.bool)
    weights = torch.zeros(shape, requires_grad=True)
    loss = infonce(logits, positives, negatives, form=form, positive_weights=weights, negative_weights=weights)
    assert loss.item() == 0
    loss.backward()  # still part of the graph
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros(shape))
    assert weights.grad is None or torch.equal(weights.grad, torch.zeros(shape))


@pytest.mark.parametrize("form", ["out", "in"])
def test_absent_pairs_and_rows_may_hold_anything(form: Any) -> None:
    logits, positives, negatives, _, _ = problem(3)
    read = (positives | negatives) & positives.any(dim=1)[:, None]
    spoiled = torch.where(read, logits, torch.nan).requires_grad_()
    loss = infonce(spoiled, positives, negatives, form=form)
    torch.testing.assert_close(loss, infonce(logits, positives, negatives, form=form))
    loss.backward()
    assert spoiled.grad is not None
    assert spoiled.grad.isfinite().all()
    assert (spoiled.grad[~read] == 0).all()


def test_positives_without_negatives() -> None:
    logits = torch.tensor([[1.0, 3.0, -2.0]], dtype=torch.float64, requires_grad=True)
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    assert infonce(logits, ~nothing, nothing, form="in").item() == 0
    one = torch.tensor([[False, True, False]])
    assert infonce(logits, one, nothing).item() == pytest.approx(0, abs=1e-15)
    torch.testing.assert_close(infonce(logits, ~nothing, nothing), naive(logits, ~nothing, nothing))
    assert infonce(logits, one, nothing, reduction="none")[1].item()


def test_a_pair_in_both_masks_is_a_positive() -> None:
    logits, positives, negatives, _, w = problem(4)
    both = infonce(logits, positives, negatives | positives, negative_weights=w)
    torch.testing.assert_close(both, infonce(logits, positives, negatives, negative_weights=w))


def test_weight_zero_is_absent_and_weight_two_counts_twice() -> None:
    logits, positives, negatives, _, _ = problem(6)
    without = negatives.clone()
    without[:, 2] = False
    weights = torch.ones_like(logits)
    weights[:, 2] = 0
    torch.testing.assert_close(
        infonce(logits, positives, negatives, negative_weights=weights), infonce(logits, positives, without)
    )
    weights[:, 2] = 2
    doubled = [torch.cat([tensor, tensor[:, 2:3]], dim=1) for tensor in (logits, positives, negatives)]
    for form in ("in", "out"):
        both: dict[str, Any] = {"positive_weights": weights if form == "in" else None, "negative_weights": weights}
        if form == "out":
            doubled[1][:, -1] = False  # weights of positives do not enter the denominator
        torch.testing.assert_close(
            infonce(logits, positives, negatives, form=form, **both), infonce(*doubled, form=form)
        )


@pytest.mark.parametrize("form", ["out", "in"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(form: Any, dtype: torch.dtype) -> None:
    logits, positives, negatives, v, w = problem(7)
    half = (20 * logits).to(dtype)  # e^60 is infinite in float16
    weights = {"positive_weights": v.to(dtype), "negative_weights": w.to(dtype)}
    loss = infonce(half, positives, negatives, form=form, **weights)
    assert loss.dtype == torch.float32
    exact = {name: weight.double() for name, weight in weights.items()}
    expected = infonce(half.double(), positives, negatives, form=form, **exact)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = infonce(half.float(), positives, negatives, form=form)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, infonce(half.float(), positives, negatives, form=form), rtol=0, atol=0)


@pytest.mark.parametrize("form", ["out", "in"])
def test_large_logits_do_not_overflow(form: Any) -> None:
    logits = torch.tensor([[1e4, -1e4, 5e3]], requires_grad=True)
    mask = torch.tensor([[False, True, False]])
    loss = infonce(logits, mask, ~mask, form=form)
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([[1.0, -1.0, 0.0]]))


@pytest.mark.parametrize("form", ["out", "in"])
def test_shifting_a_row_and_permuting_columns_change_nothing(form: Any) -> None:
    logits, positives, negatives, v, w = problem(8)
    loss = infonce(logits, positives, negatives, form=form, positive_weights=v, negative_weights=w)
    shift = torch.linspace(-9, 9, 7, dtype=torch.float64)[:, None]
    order = torch.tensor([3, 1, 4, 8, 5, 2, 6, 0, 7])
    moved = [tensor[:, order] for tensor in (logits + shift, positives, negatives, v, w)]
    again = infonce(*moved[:3], form=form, positive_weights=moved[3], negative_weights=moved[4])
    torch.testing.assert_close(again, loss, rtol=1e-12, atol=1e-12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), form=st.sampled_from(["out", "in"]), weighted=st.booleans())
def test_degenerate_masks_give_finite_values_and_gradients(data: st.DataObject, form: Any, weighted: bool) -> None:
    rows, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    size = rows * columns

    def draw(elements: st.SearchStrategy[Any]) -> Tensor:
        return torch.tensor(data.draw(st.lists(elements, min_size=size, max_size=size))).view(rows, columns)

    positives, negatives = draw(st.booleans()), draw(st.booleans())
    logits = draw(st.floats(-1e4, 1e4, width=32)).requires_grad_()
    weights = [draw(st.sampled_from([0.0, 1e-30, 1.0, 1e6])).requires_grad_() if weighted else None for _ in range(2)]
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way back either, where a mask might hide it
        loss = infonce(
            logits, positives, negatives, form=form, positive_weights=weights[0], negative_weights=weights[1]
        )
        loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    counted = positives if weights[0] is None else positives & (weights[0] > 0)
    if not counted.any():
        assert loss.item() == 0
    assert (logits.grad[~counted.any(dim=1)] == 0).all()


def test_arguments_that_do_not_go_together() -> None:
    logits, mask = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool)
    wrong: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((logits[0], mask, mask), {}, "logits"),
        ((logits, mask.T, mask), {}, "positives"),
        ((logits, mask, mask.int()), {}, "negatives.*bool"),
        ((logits, mask, mask), {"negative_weights": logits[:1]}, "negative_weights"),
        ((logits, mask, mask), {"form": "both"}, "form"),
        ((logits, mask, mask), {"reduction": "sum"}, "reduction"),
    ]
    for arguments, options, message in wrong:
        with pytest.raises(UsageError, match=message):
            infonce(*arguments, **options)
