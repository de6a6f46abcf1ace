"""Optimisers and the learning-rate schedule that recipes name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.sgd import sgd

from bolus.device import is_shared_out
from bolus.encoders.backbone import Encoder
from bolus.errors import EncoderError, RecipeError
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
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                update = parameter.grad  # changed in place: large heads make every copy dear
                if group["weight_decay"]:
                    update.add_(parameter, alpha=group["weight_decay"])
                if group["adapt"]:
                    norm, length = parameter.norm(), update.norm()
                    ratio = group["trust"] * norm / length.clamp_min(torch.finfo(length.dtype).tiny)
                    # A zero weight or gradient has no ratio: step plainly.
                    update.mul_(torch.where((norm > 0) & (length > 0), ratio, torch.ones_like(ratio)))
                if "momentum" not in self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            sgd(
                parameters,
                [parameter.grad for parameter in parameters],
                [self.state[parameter]["momentum"] for parameter in parameters],
                weight_decay=0.0,
                momentum=group["momentum"],
                lr=group["lr"],
                dampening=0.0,
                nesterov=False,
                maximize=False,
                fused=_can_fuse(parameters),
            )
        return loss


def match_layouts(optimizer: Optimizer, *_: Any) -> None:
    """Lay gradients and the optimiser's state out in memory as their parameters are.

    A fused update of torch goes through memory in one pass and, on a CPU, does not look at strides; gradients of
    convolutions and what a checkpoint held may have others than the parameter.
    """
    for parameter in (each for group in optimizer.param_groups for each in group["params"]):
        if parameter.grad is not None:
            parameter.grad = _laid_out(parameter.grad, parameter)
        state = optimizer.state.get(parameter, {})
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = _laid_out(value, parameter)


def _can_fuse(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether torch's fused kernels take these parameters: not those that are shared out over processes."""
    return not any(map(is_shared_out, parameters))


def _laid_out(tensor: Tensor, parameter: Tensor) -> Tensor:
    if tensor.stride() == parameter.stride():
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)


def peak_lr(spec: OptimizerSpec, batch_size: int) -> float:
    """The learning rate after warm-up, scaled linearly to the samples of a step.

    >>> peak_lr(OptimizerSpec(lr=0.2, reference_batch=256), 64)
    0.05
    """
    return spec.lr if spec.reference_batch is None else spec.lr * batch_size / spec.reference_batch


def build_optimizer(modules: Mapping[str, nn.Module], spec: OptimizerSpec, lr: float) -> Optimizer:
    """The optimiser over every trained parameter; biases and norm scales (1-D) are neither decayed nor adapted.

    Every group says by `lr_scale` what share of a step's learning rate is its own: `lr_scales`. The order of groups and
    parameters is a function of modules and spec, as checkpoints need it.

    Args:
        modules: what is trained, by name; they may share parameters.
        spec: kind and parameters.
        lr: of a group with `lr_scale` 1; a loop that has a schedule sets `lr_scale` times its rate at every step.

    Raises:
        RecipeError: nothing is trained, or layer_decay below 1 for an encoder whose blocks are not known.
    """
    every = (p for module in modules.values() for p in module.parameters() if p.requires_grad)
    parameters = list(dict.fromkeys(every))  # modules may share a head
    if not parameters:
        raise RecipeError(
            "nothing is trained: encoder.unfrozen leaves the encoder as it is, and no objective has a head of its own"
        )
    scales = lr_scales(modules, spec.layer_decay)
    found: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in parameters:
        found.setdefault((scales.get(parameter, 1.0), parameter.ndim > 1), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {
            "params": found[key],
            "weight_decay": spec.weight_decay if key[1] else 0.0,
            "lr": lr * key[0],
            "lr_scale": key[0],
        }
        for key in sorted(found, reverse=True)
    ]
    optimizer: Optimizer
    if spec.kind == "adamw":
        optimizer = AdamW(groups, lr=lr, betas=spec.betas, fused=_can_fuse(parameters))
    elif spec.kind == "sgd":
        optimizer = SGD(groups, lr=lr, momentum=spec.momentum, fused=_can_fuse(parameters))
    else:
        for group in groups:
            group["adapt"] = group["params"][0].ndim > 1
        optimizer = Lars(groups, lr=lr, momentum=spec.momentum, trust=spec.trust)
    optimizer.register_step_pre_hook(match_layouts)
    return optimizer


def lr_scales(modules: Mapping[str, nn.Module], layer_decay: float) -> dict[nn.Parameter, float]:
    """What share of the learning rate each parameter of the encoders in these modules has, by its depth.

    Layer-wise decay as in ELECTRA (arXiv:2003.10555) and, for vision transformers, BEiT (arXiv:2106.08254): of L blocks
    counted from 0, block b has `layer_decay ** (L - b)`, the embeddings or the stem `layer_decay ** (L + 1)`, and what
    follows the blocks 1: see `Encoder.depth_of`. Parameters that belong to no encoder are not in the answer; they
    have 1.

    Raises:
        RecipeError: a factor below 1, and no encoder, or one whose blocks are not known.

    Example:
        >>> from bolus.encoders.building import build_encoder
        >>> from bolus.recipe import EncoderSpec
        >>> encoder = build_encoder(EncoderSpec(backbone="vit_tiny"), seed=0)
        >>> scales = lr_scales({"encoder": encoder}, 0.5)
        >>> [scales[p] for p in (encoder.backbone.embeddings.cls_token, encoder.backbone.layernorm.weight)]
        [0.125, 1.0]
    """
    if layer_decay == 1:
        return {}
    encoders = [part for module in modules.values() for part in module.modules() if isinstance(part, Encoder)]
    if not encoders:
        raise RecipeError(f"optimizer.layer_decay: {layer_decay} decays along an encoder, and there is none")
    scales: dict[nn.Parameter, float] = {}
    for encoder in encoders:
        try:
            depths = {parameter: encoder.depth_of(name) for name, parameter in encoder.named_parameters()}
        except EncoderError as error:
            raise RecipeError(f"optimizer.layer_decay: {error}; set it to 1") from None
        assert encoder.num_blocks is not None
        scales |= {parameter: layer_decay ** (encoder.num_blocks + 1 - depth) for parameter, depth in depths.items()}
    return scales


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
