"""Gradients averaged over processes while the backward pass still runs, bucket after bucket as they are ready."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bolus.training.processes import world_size

BUCKET = 25 * 2**20  # bytes: what is sent at once, as in DistributedDataParallel


def averaged_gradients(
    loss: Tensor, parameters: Sequence[nn.Parameter], held: Sequence[Tensor], *, bucket: int = BUCKET
) -> list[Tensor]:
    """Gradients of a loss, and what is held of earlier batches, averaged over processes; the graph is then gone.

    Buckets are sent in one order in every process, the last parameters first, whichever of them a process has ready,
    or has no gradient for. DistributedDataParallel does the same for losses that are reduced inside its own backward
    pass, and for nothing else: see `training.processes`.

    Args:
        loss: of this process, a scalar; the last of a step.
        parameters: each once.
        held: their gradients so far, changed in place, or none.
        bucket: bytes that are sent at once, or one parameter where that is larger.

    >>> weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> averaged_gradients(weight.square().sum(), [weight], [torch.ones(2)])
    [tensor([3., 5.])]
    """
    buckets = _divide(parameters, bucket) if world_size() > 1 else []
    place = {parameter: number for number, group in enumerate(buckets) for parameter in group}
    missing = [len(group) for group in buckets]
    sent: list[tuple[Tensor, dist.Work]] = []

    def send() -> None:
        flat = torch.cat([_gradient(parameter).reshape(-1) for parameter in buckets[len(sent)]])
        work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        sent.append((flat, work))

    def ready(parameter: Tensor) -> None:
        missing[place[parameter]] -= 1  # type: ignore[index]
        while len(sent) < len(buckets) and not missing[len(sent)]:
            send()

    assert not held or len(held) == len(parameters)
    for parameter in parameters:
        parameter.grad = None
    for parameter, grad in zip(parameters, held, strict=False):
        parameter.grad = grad
    hooks = [parameter.register_post_accumulate_grad_hook(ready) for parameter in place]  # type: ignore[no-untyped-call]
    try:
        if loss.requires_grad:
            torch.autograd.backward(loss, inputs=list(parameters))
    finally:
        for hook in hooks:
            hook.remove()
    while len(sent) < len(buckets):
        send()
    for group, (flat, work) in zip(buckets, sent, strict=True):
        work.wait()
        flat /= world_size()
        for parameter, part in zip(group, torch.split(flat, [each.numel() for each in group]), strict=True):
            _gradient(parameter).copy_(part.view_as(parameter))
    found = [_gradient(parameter) for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return found


def _gradient(parameter: nn.Parameter) -> Tensor:
    """A parameter's gradient, zero where it has none."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _divide(parameters: Sequence[nn.Parameter], most: int) -> list[list[nn.Parameter]]:
    """Parameters from the last to the first, in groups of one dtype and of so many bytes at most."""
    groups: list[list[nn.Parameter]] = []
    size = 0
    for parameter in reversed(parameters):
        own = parameter.numel() * parameter.element_size()
        if not groups or groups[-1][0].dtype != parameter.dtype or size + own > most:
            groups.append([])
            size = 0
        groups[-1].append(parameter)
        size += own
    return groups
