"""The layout in memory that convolutions are fastest with: the channels of a pixel beside each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def channels_beside(x: Tensor) -> Tensor:
    """Images `[B, C, H, W]` or volumes `[B, C, D, H, W]`, float, with the channels of each pixel side by side.

    >>> channels_beside(torch.zeros(1, 2, 3, 3)).stride(), channels_beside(torch.zeros(1, 2, 3, 3, 3)).stride()
    ((18, 1, 6, 2), (54, 1, 18, 6, 2))
    """
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


def lay_out(module: nn.Module) -> None:
    """Lay the weights of convolutions out so, in place; numbers and names stay."""
    sides = {each.ndim for each in [*module.parameters(), *module.buffers()]}
    if 5 in sides and 4 in sides:  # torch takes one format for all
        for each in module.parameters():
            if each.ndim in (4, 5):
                each.data = channels_beside(each.data)
    else:
        chosen = torch.channels_last_3d if 5 in sides else torch.channels_last
        module.to(memory_format=chosen)  # type: ignore[call-overload]
