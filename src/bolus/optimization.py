"""Optimisers and the learning-rate schedule that recipes name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from bolus.recipe import OptimizerSpec, ScheduleSpec


class Lars(Optimizer):
    """Layer-wise adaptive rate scaling (You, Gitman and Ginsburg, arXiv:1708.03888, eq. 6).

    Groups with `adapt` false (biases and norm scales) are plain SGD with momentum. A step uses up the gradients: they
    hold the scaled update afterwards.

    Args:
        params: parameters or groups.
        lr: learning rate.
        momentum: of the scaled gradient.
        weight_decay: added to the gradient, and to the norm it is compared with.
        trust: share of the weight norm that a step of lr 1 may move.

    Example:
        >>> weight = nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> weight.grad = torch.tensor([0.0, 10.0])
        >>> Lars([weight], lr=1.0, momentum=0.0, trust=0.1).step()
        >>> weight.data
        tensor([3.0000, 3.5000])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update from the gradients in place."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = parameter.grad  # changed in place: large heads make every copy dear
                if group["weight_decay"]:
                    update.add_(parameter, alpha=group["weight_decay"])
                if group["adapt"]:
                    norm, length = parameter.norm(), update.norm()
                    ratio = group["trust"] * norm / length.clamp_min(torch.finfo(length.dtype).tiny)
                    # A zero weight or gradient has no ratio: step plainly.
                    update.mul_(torch.where((norm > 0) & (length > 0), ratio, torch.ones_like(ratio)))
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].mul_(group["momentum"]).add_(update)
                parameter.add_(state["momentum"], alpha=-group["lr"])
        return loss


def peak_lr(spec: OptimizerSpec, batch_size: int) -> float:
    """The learning rate after warm-up, scaled linearly to the samples of a step.

    >>> peak_lr(OptimizerSpec(lr=0.2, reference_batch=256), 64)
    0.05
    """
    return spec.lr if spec.reference_batch is None else spec.lr * batch_size / spec.reference_batch


def build_optimizer(modules: Mapping[str, nn.Module], spec: OptimizerSpec, lr: float) -> Optimizer:
    """The optimiser over every trained parameter; biases and norm scales (1-D) are neither decayed nor adapted."""
    every = (p for module in modules.values() for p in module.parameters() if p.requires_grad)
    parameters = list(dict.fromkeys(every))  # modules may share a head
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": spec.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if spec.kind == "adamw":
        return AdamW(groups, lr=lr, betas=spec.betas)
    if spec.kind == "sgd":
        return SGD(groups, lr=lr, momentum=spec.momentum)
    for group in groups:
        group["adapt"] = group["params"][0].ndim > 1
    return Lars(groups, lr=lr, momentum=spec.momentum, trust=spec.trust)


def lr_factor(spec: ScheduleSpec, step: int, *, total_steps: int, steps_per_epoch: float) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then what `kind` says; a cosine takes the steps left.

    >>> spec = ScheduleSpec(warmup_epochs=1, final=0.1)
    >>> [round(lr_factor(spec, step, total_steps=12, steps_per_epoch=2), 3) for step in (0, 1, 2, 11)]
    [0.5, 1.0, 1.0, 0.122]
    """
    warmup = min(round(spec.warmup_epochs * steps_per_epoch), total_steps)
    if step < warmup:
        return (step + 1) / warmup
    if spec.kind == "constant":
        return 1.0
    if spec.kind == "step":
        return spec.factor ** math.floor(step / (spec.every_epochs * steps_per_epoch))
    share = (step - warmup) / max(1, total_steps - warmup)
    return spec.final + (1 - spec.final) * 0.5 * (1 + math.cos(math.pi * share))
