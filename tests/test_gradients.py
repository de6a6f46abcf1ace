"""Gradients by plain sum: what accumulates, who owns it, and that nothing is left out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bolus.recipe import CombinerSpec
from bolus.training.gradients.combiner import Combiner

SUM = CombinerSpec(kind="sum")
KINDS = ["sum", "pcgrad"]  # one backward pass, and one for each objective


def test_sum_equals_backward_of_the_weighted_sum() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    unused = nn.Parameter(torch.ones(2))
    x = torch.randn(5, 4, dtype=torch.float64)
    combiner = Combiner(SUM, list(net.parameters()), {"a": [unused], "b": []})
    combiner.accumulate({"a": 2.0 * net(x).pow(2).mean(), "b": -net(x).sum()})
    combiner.reconcile()
    found = [parameter.grad for parameter in net.parameters()]
    net.zero_grad()
    (2.0 * net(x).pow(2).mean() - net(x).sum()).backward()
    for one, parameter in zip(found, net.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-10, atol=1e-10)
    assert unused.grad is not None
    assert not unused.grad.any(), "a parameter that no loss reads has a zero gradient, not none"


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_adds_batches_and_empties_its_buffers(kind: str) -> None:
    weight, head = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor(3.0))
    combiner = Combiner(CombinerSpec(kind=kind), [weight], {"a": [head], "b": []})  # type: ignore[arg-type]
    for _ in range(2):
        combiner.accumulate({"a": (weight**2).sum() / 2 + head, "b": 0 * weight.sum()})
        combiner.accumulate({"a": weight.sum() / 2 + head, "b": 0 * weight.sum()})
        combiner.reconcile()
        torch.testing.assert_close(weight.grad, torch.tensor([1.5, 2.5]))
        torch.testing.assert_close(head.grad, torch.tensor(2.0))


@pytest.mark.parametrize("kind", KINDS)
def test_expanded_gradients_can_be_accumulated_and_clipped(kind: str) -> None:
    weight, head = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(2))
    combiner = Combiner(CombinerSpec(kind=kind), [weight], {"a": [head], "b": []})  # type: ignore[arg-type]
    for _ in range(2):  # autograd hands out one number, expanded to three
        combiner.accumulate({"a": weight.sum(), "b": 0 * head.sum() + weight.sum()})
    combiner.reconcile()
    nn.utils.clip_grad_norm_([weight], 1.0)
    torch.testing.assert_close(weight.grad, torch.full((3,), 3**-0.5))


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_given_out_twice_is_owned_by_each_parameter(kind: str) -> None:
    first, second = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    combiner = Combiner(CombinerSpec(kind=kind), [first, second], {"a": [], "b": []})  # type: ignore[arg-type]
    zero = 0 * first.sum()
    combiner.accumulate({"a": ((first + second) * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum(), "b": zero})
    combiner.reconcile()
    assert first.grad is not None
    assert second.grad is not None
    first.grad.mul_(0.0)
    assert second.grad.tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", ["a", "ab"])
def test_losses_without_any_gradient_leave_zeros(kind: str, names: str) -> None:
    weight, head = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1))
    combiner = Combiner(CombinerSpec(kind=kind), [weight], {name: [head] for name in names})  # type: ignore[arg-type]
    combiner.accumulate({name: torch.tensor(0.0) for name in names})
    combiner.reconcile()
    assert weight.grad is not None
    assert head.grad is not None
    assert not weight.grad.any()
    assert not head.grad.any()


def test_frozen_parameters_get_nothing() -> None:
    weight, frozen = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2), requires_grad=False)
    combiner = Combiner(SUM, [weight, frozen], {"a": [frozen]})
    assert [parameter is weight for parameter in combiner.parameters] == [True]
    combiner.accumulate({"a": (weight * frozen).sum()})
    combiner.reconcile()
    assert frozen.grad is None


def test_reconcile_before_accumulate_is_a_mistake_of_the_caller() -> None:
    combiner = Combiner(SUM, [nn.Parameter(torch.ones(2))], {"a": []})
    with pytest.raises(AssertionError, match="before accumulate"):
        combiner.reconcile()
    with pytest.raises(AssertionError, match=r"losses of \['b'\], heads of \['a'\]"):
        combiner.accumulate({"b": torch.tensor(0.0)})
