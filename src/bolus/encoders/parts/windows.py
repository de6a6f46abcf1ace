"""Swin's shifted windows (arXiv:2103.14030) where a map is no larger than a window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.models.swin.modeling_swin import SwinLayer


def shift_between(module: nn.Module) -> None:
    """Let Swin's blocks shift their windows only where a map has several, as Swin's own code does.

    transformers' SwinBackbone always shifts. A map that is one window, such as the last of 224 pixels, is then cut into
    parts that do not see each other, and its features are not those that the published weights were trained to give.
    Other modules, weights and their names stay as they are.

    Args:
        module: whose blocks get a hook, in place; nothing happens where none is Swin's.

    Example:
        >>> from transformers import AutoBackbone, SwinConfig
        >>> config = SwinConfig(image_size=28, embed_dim=8, depths=[2], num_heads=[2])
        >>> backbone = AutoBackbone.from_config(config).eval()
        >>> shift_between(backbone)
        >>> block = backbone.swin.encoder.layers[0].blocks[1]
        >>> import torch
        >>> for side in (56, 28):
        ...     _ = backbone(torch.rand(1, 3, side, side))
        ...     print(block.shift_size)
        3
        0
    """
    for block in module.modules():
        if isinstance(block, SwinLayer):
            block.register_forward_pre_hook(_Between(block.shift_size))


@dataclass(eq=False)
class _Between:
    """A forward pre-hook that sets a block's shift by its map's size; an object, so that a deep copy takes it along."""

    shift: int

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        block: Any = module
        block.shift_size = 0 if min(inputs[1]) <= block.window_size else self.shift
