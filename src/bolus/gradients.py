"""Named losses and shared parameters become gradients: the one place where objectives meet in the encoder.

Nothing is wrapped in DistributedDataParallel, which silently does not reduce gradients taken by `autograd.grad`: every
process computes the loss of the global batch from gathered embeddings, and the gradients are averaged here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Gather(torch.autograd.Function):
    """All-gather along a dimension whose backward is exact when every process computes the same loss of the result.

    Each process then holds the whole gradient of the gathered tensor and keeps its own slice, times the number of
    processes, because parameters' gradients are averaged afterwards. Parameters used after gathering (a temperature)
    have the same full gradient everywhere, which the average leaves as it is.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tensor: Tensor, dim: int) -> Tensor:
        ctx.dim, ctx.size = dim, tensor.shape[dim]  # type: ignore[attr-defined]
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts, dim)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,), dim, size = grads, ctx.dim, ctx.size  # type: ignore[attr-defined]
        return grad.narrow(dim, dist.get_rank() * size, size) * dist.get_world_size(), None


def world_size() -> int:
    """Processes that train together; 1 where none were launched."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(tensor: Tensor, dim: int = 1) -> Tensor:
    """The global batch of an embedding `[V, N, ...]`, in the order of the processes; as it is in one process.

    >>> gather(torch.zeros(2, 3, 4)).shape
    torch.Size([2, 3, 4])
    """
    return tensor if world_size() == 1 else _Gather.apply(tensor, dim)  # type: ignore[no-untyped-call]


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process; the same answer in all, so that they stop together.

    >>> any_process(True, torch.device("cpu"))
    True
    """
    if world_size() == 1:
        return flag
    count = torch.tensor(int(flag), device=device)
    dist.all_reduce(count)
    return bool(count.item())


def same_everywhere(value: int, device: torch.device) -> bool:
    """Whether every process has the same value.

    >>> same_everywhere(3, torch.device("cpu"))
    True
    """
    if world_size() == 1:
        return True
    ends = torch.tensor([value, -value], device=device)
    dist.all_reduce(ends, op=dist.ReduceOp.MAX)
    return bool(ends.sum() == 0)


def broadcast_parameters(module: nn.Module) -> None:
    """Give every process the parameters and buffers of the first one, once, before training."""
    if world_size() > 1:
        for tensor in [*module.parameters(), *module.buffers()]:
            dist.broadcast(tensor.data, 0)


def all_reduce_mean(tensors: Sequence[Tensor]) -> None:
    """Average tensors over processes in place, as one flat buffer for each dtype."""
    if world_size() == 1:
        return
    for dtype in {tensor.dtype for tensor in tensors}:
        group = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        dist.all_reduce(flat)
        flat /= world_size()
        for tensor, part in zip(group, torch.split(flat, [tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(part.view_as(tensor))


def _own(parameters: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Tensor]:
    """Gradients that may be changed in place: zeros for none, a copy of what is expanded or given out twice.

    Large heads make copies dear, so whatever autograd made for one parameter alone is kept as it is.
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


class Sum:
    """Adds weighted objectives: the plain multi-task gradient.

    Args:
        parameters: everything that is trained, encoder and heads.

    Example:
        >>> weight = nn.Parameter(torch.tensor([2.0]))
        >>> combiner = Sum([weight])
        >>> combiner.accumulate({"a": (weight**2).sum(), "b": weight.sum()})
        >>> combiner.reconcile()
        >>> weight.grad
        tensor([5.])
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._buffers: list[Tensor] | None = None

    def accumulate(self, losses: Mapping[str, Tensor]) -> None:
        """Add the gradients of one batch's weighted losses to the buffers.

        Args:
            losses: objective -> scalar, already times its weight and divided by the batches of a step.
        """
        total = torch.stack(list(losses.values())).sum()
        if not total.requires_grad:
            found: Sequence[Tensor | None] = [None] * len(self.parameters)
        else:
            found = torch.autograd.grad(total, self.parameters, allow_unused=True)
        if self._buffers is None:
            self._buffers = _own(self.parameters, found)
        else:
            for buffer, grad in zip(self._buffers, found, strict=True):
                if grad is not None:
                    buffer += grad

    def reconcile(self) -> None:
        """Average over processes, write the gradients to the parameters, and empty the buffers."""
        assert self._buffers is not None, "reconcile before accumulate"
        all_reduce_mean(self._buffers)
        for parameter, buffer in zip(self.parameters, self._buffers, strict=True):
            parameter.grad = buffer
        self._buffers = None
