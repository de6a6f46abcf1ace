"""What processes that train together exchange: embeddings, gradients, flags.

Nothing is wrapped in DistributedDataParallel, which silently does not reduce gradients taken by `autograd.grad`: every
process computes the loss of the global batch from gathered embeddings, and the gradients are averaged by hand: of a sum
while the backward pass still runs (`gradients.overlap`), of all else after it, since objectives are reconciled apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn

from bolus.device import is_shared_out
from bolus.embedding.sharing import PATIENCE


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


def launched() -> PartialState:
    """This process among those that were launched with it; without an accelerator they meet on the CPU.

    Accelerate joins processes on a CPU only where it is told so, and otherwise counts one. Whoever waits for the first
    one, while it decodes or looks at the run, has patience.
    """
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)


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
    """Give every process the parameters and buffers of the first one, once, before training.

    Those that are shared out were given before that, see `sharding.shard_encoder`.
    """
    if world_size() > 1:
        for tensor in [*module.parameters(), *module.buffers()]:
            if not is_shared_out(tensor):
                dist.broadcast(tensor.data, 0)


def all_reduce_mean(tensors: Sequence[Tensor]) -> None:
    """Average tensors over processes in place, as one flat buffer for each dtype."""
    if world_size() == 1:
        return
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):  # in the same order everywhere, unlike a set
        group = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        dist.all_reduce(flat)
        flat /= world_size()
        for tensor, part in zip(group, torch.split(flat, [tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(part.view_as(tensor))


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of a tensor over processes; as it is in one process."""
    if world_size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor
