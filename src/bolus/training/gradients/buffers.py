"""Gradients as lists of parameter tensors, which are added up in place: no vector as long as an encoder is ever made.

Dimension letters: M objectives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gradients_of(loss: Tensor, inputs: Sequence[Tensor], keep: bool = False) -> list[Tensor]:
    """Gradients that may be changed in place; zeros where the loss does not depend on an input.

    Args:
        loss: a scalar.
        inputs: with respect to which.
        keep: the graph, for a further loss.

    >>> weight = torch.ones(2, requires_grad=True)
    >>> gradients_of(weight[0] * 3, [weight, torch.ones(1, requires_grad=True)])
    [tensor([3., 0.]), tensor([0.])]
    """
    if not loss.requires_grad:
        return [torch.zeros_like(each) for each in inputs]
    return changeable(inputs, torch.autograd.grad(loss, inputs, retain_graph=keep, allow_unused=True))


def changeable(parameters: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Tensor]:
    """Gradients that may be changed in place: zeros for none, a copy of what is expanded or given out twice.

    Large heads make copies dear, so whatever autograd made for one parameter alone is kept as it is.

    Args:
        parameters: whose gradients they are.
        grads: as autograd gives them.

    >>> changeable([torch.ones(2)], [torch.ones(1).expand(2)])[0].stride()
    (1,)
    """
    owned, seen = [], set()
    for parameter, grad in zip(parameters, grads, strict=True):
        if grad is None:
            owned.append(torch.zeros_like(parameter))
            continue
        expanded = any(stride == 0 and size > 1 for stride, size in zip(grad.stride(), grad.shape, strict=True))
        shared = expanded or grad.data_ptr() in seen
        seen.add(grad.data_ptr())
        owned.append(torch.empty_like(parameter).copy_(grad) if shared else grad.detach())
    return owned


def add_up(buffers: list[Tensor], found: Sequence[Tensor]) -> None:
    """Add gradients to buffers in place; buffers that are empty take them over.

    >>> buffers = []
    >>> for _ in range(2):
    ...     add_up(buffers, [torch.ones(2)])
    >>> buffers
    [tensor([2., 2.])]
    """
    if not buffers:
        buffers.extend(found)
        return
    for buffer, grad in zip(buffers, found, strict=True):
        buffer += grad


def gram_of(parts: Sequence[Tensor]) -> Tensor:
    """Inner products `[M, M]` of one parameter's gradients, at least float32; summed over parameters in float64.

    >>> gram_of([torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])]).tolist()
    [[5.0, 2.0], [2.0, 1.0]]
    """
    rows = torch.stack([part.reshape(-1) for part in parts])
    rows = rows if rows.dtype == torch.float64 else rows.float()
    return (rows @ rows.T).double()


def weighted_sum(parts: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The weighted sum of one parameter's gradients.

    >>> weighted_sum([torch.ones(2), torch.ones(2)], torch.tensor([1.0, 0.5]))
    tensor([1.5000, 1.5000])
    """
    total = parts[0] * float(weights[0])
    for part, weight in zip(parts[1:], weights[1:].tolist(), strict=True):
        total.add_(part, alpha=weight)
    return total
