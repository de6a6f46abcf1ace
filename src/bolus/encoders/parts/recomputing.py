"""Activations of a backbone's blocks computed again on the way back, in place of being kept.

For backbones that transformers cannot do so for. BatchNorm's running statistics are changed by the first forward alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bolus.encoders.families.depth import Blocks
from bolus.encoders.parts.norms import norms_of


def recompute(backbone: nn.Module, blocks: Blocks) -> None:
    """From now on, keep only what goes into each part of a backbone in training.

    Gradients and running statistics are the same, and so are the weights and their names. Hooks stay outside: they run
    once. Never reentrant, so that several objectives may go back through one forward.

    Args:
        backbone: in place; calling it twice is calling it once.
        blocks: of it. The parts are what lies in its blocks, where these are lists of residual blocks, or the blocks
            themselves; and what has weights and is run before them.
    """
    parts = [backbone.get_submodule(name) for name in blocks.before]
    for block in backbone.get_submodule(blocks.path).children():
        inner = list(block.children())
        residual = isinstance(block, nn.Sequential) and all(list(each.children()) for each in inner)
        parts += inner if residual else [block]
    for part in parts:
        trained = any(True for _ in part.parameters())
        if trained and not isinstance(part.forward, _Again):
            part.forward = _Again(part, part.forward)


@dataclass(eq=False)
class _Again:
    """A module's forward that is run again on the way back; an object, so that a deep copy takes it along."""

    module: nn.Module
    forward: Callable[..., Any]

    def __call__(self, x: Tensor) -> Tensor:
        if not (self.module.training and torch.is_grad_enabled()):
            found: Tensor = self.forward(x)
            return found
        again: Tensor = checkpoint(self.forward, x, use_reentrant=False, context_fn=self._contexts)
        return again

    def _contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), _statistics_kept(self.module)


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Within it, norms in training use the statistics of what they see and leave the running ones alone."""
    norms = [norm for norm in norms_of(module) if norm.training]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:  # not without running statistics: then other tensors would be kept than in the first forward
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked
