"""SupReMix's loss and its gradient in one pass over rows, without building a mixture.

A logit of a mixture is a mixture of logits, so the N x N similarities are all that is needed. Values and gradients are
exact, nothing is sampled. Dimension letters: N rows, D features, T targets, L distinct labels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bolus.errors import UsageError
from bolus.objectives.base import check_rows
from bolus.objectives.heads import at_least_float32
from bolus.objectives.scores.between import Between, FloatArray, IntArray, add_between, gaps, surroundings


class Settings(NamedTuple):
    """The numbers of `supremix_loss`, which says what they mean."""

    temperature: float = 0.5
    window: float = 5.0
    beta: tuple[float, float] = (2.0, 8.0)
    distance_weight: bool = True
    mix_negatives: bool = True
    mix_positives: bool = True
    label_tolerance: float = 0.0


class Counted(NamedTuple):
    """A loss with what it was made of.

    Args:
        value: scalar.
        anchors: rows with a positive; like the other counts an int64 scalar, on the device.
        real: real positives of all anchors together.
        mixed: mixed positives of all anchors together.
    """

    value: Tensor
    anchors: Tensor
    real: Tensor
    mixed: Tensor


def supremix(
    z: Tensor,
    y: Tensor,
    settings: Settings,
    *,
    valid: Tensor | None = None,
    mix_weights: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Counted:
    """`supremix_loss` with counts; the same arguments and errors."""
    y_NT = _check(z, y, settings, valid, mix_weights)
    kept = y_NT.isfinite().all(dim=1)
    if valid is not None and valid.ndim == 1:
        kept &= valid.cpu()
    rows = kept.nonzero().flatten()
    labels, which = torch.unique(y_NT[rows], dim=0, return_inverse=True)
    rows = rows[which.argsort(stable=True)]  # anchors of one label, and of one target their surroundings, lie together
    shares = None
    if settings.mix_negatives:
        shares = _draw_beta(len(y_NT), settings.beta, generator) if mix_weights is None else mix_weights
        shares = shares[rows.to(shares.device)][:, rows.to(shares.device)].to(z.device, at_least_float32(z).dtype)
    rows = rows.to(z.device)
    excluded = None if valid is None or valid.ndim == 1 else ~valid.to(z.device)[rows][:, rows]
    with torch.autocast(device_type=z.device.type, enabled=False):
        z = F.normalize(at_least_float32(z[rows]), dim=1)
        value, counts = _SupReMix.apply(  # type: ignore[no-untyped-call]
            z, labels.numpy(), torch.bincount(which, minlength=len(labels)).numpy(), excluded, shares, settings
        )
    return Counted(value, *counts.unbind())


class _SupReMix(torch.autograd.Function):
    """The loss of unit vectors in the order of their labels; the gradient is found beside the value."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        labels: FloatArray,
        sizes: IntArray,
        excluded: Tensor | None,
        shares: Tensor | None,
        settings: Settings,
    ) -> tuple[Tensor, Tensor]:
        s = z @ z.T / settings.temperature
        gap = torch.from_numpy(np.repeat(np.repeat(gaps(labels), sizes, axis=0), sizes, axis=1))
        near, gap = (gap <= settings.label_tolerance).to(s.device), gap.to(s)
        absent = torch.eye(len(s), dtype=torch.bool, device=s.device)
        if excluded is not None:
            absent |= excluded
        positives, negatives = near & ~absent, ~(near | absent)

        top = s.masked_fill(absent, -torch.inf).amax(1) if len(s) else s.new_zeros(0)
        mixed_s = None
        if shares is not None and len(s):
            mixed_s = torch.lerp(s, s.diagonal()[:, None], shares).masked_fill_(~negatives, -torch.inf)
            top = torch.maximum(top, mixed_s.amax(1))
        top = torch.where(top.isfinite(), top, 0.0)[:, None]  # no mixed positive lies above both of its components
        terms = (s - top).exp_()
        if settings.distance_weight:
            terms *= torch.where(near, 1.0, gap + 1)
        terms.masked_fill_(absent, 0.0)
        total = terms.sum(1)
        mixed_terms = None
        if mixed_s is not None and shares is not None:
            mixed_terms = mixed_s.sub_(top).exp_()
            if settings.distance_weight:
                mixed_terms *= (1 - shares) * gap + 1
            total += mixed_terms.sum(1)
        # Of the mixed positives of an anchor: the sum of e^s, their number, and what each component's logit has in the
        # sum of e^s (`pull`) and in the sum of s (`share`).
        between = Between(s.new_zeros(len(s)), s.new_zeros(len(s)), torch.zeros_like(s), torch.zeros_like(s))
        if settings.mix_positives:
            shifted = s - top
            for few, low, high in surroundings(
                labels, sizes, window=settings.window, tolerance=settings.label_tolerance
            ):
                add_between(between, few, sizes, low, high, shifted, excluded)
        total += between.inside
        count = positives.sum(1) + between.number
        found = count > 0
        num_anchors = found.sum()
        part = found.to(s) / num_anchors.clamp(min=1)
        total, count = (torch.where(found, each, 1.0)[:, None] for each in (total, count))
        pulled = (between.share + positives) / count
        value = part @ (total.log() + top - (pulled * s).sum(1, keepdim=True)).squeeze(1)

        part = part[:, None]
        by_pair = part * (terms / total - positives / count)
        by_mixture = part * (between.pull / total - between.share / count)
        if shares is not None and mixed_terms is not None:
            mixed_terms *= part / total
            by_mixture.diagonal().add_((shares * mixed_terms).sum(1))
            by_mixture += (1 - shares) * mixed_terms
        ctx.save_for_backward((by_pair + by_pair.T + by_mixture) @ z / settings.temperature)
        counts = torch.stack([num_anchors, positives.sum(), between.number.sum().long()])
        ctx.mark_non_differentiable(counts)
        return value, counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None, None, None, None, None


def _draw_beta(num_rows: int, beta: tuple[float, float], generator: torch.Generator | None) -> Tensor:
    """`[N, N]` draws; torch's own Beta takes no generator, numpy's gammas are seeded from it."""
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    one, other = (rng.standard_gamma(each, (num_rows, num_rows), dtype=np.float32) for each in beta)
    return torch.from_numpy(one / np.maximum(one + other, np.finfo(np.float32).tiny))


def _check(z: Tensor, y: Tensor, settings: Settings, valid: Tensor | None, mix_weights: Tensor | None) -> Tensor:
    """`y` as float64 `[N, T]` on the CPU, if everything fits together."""
    check_rows(z, y, valid, settings.temperature)
    num_rows = len(z)
    if mix_weights is not None and mix_weights.shape != (num_rows, num_rows):
        raise UsageError(f"mix_weights: expected [{num_rows}, {num_rows}], found {list(mix_weights.shape)}")
    if mix_weights is not None and not ((mix_weights >= 0) & (mix_weights <= 1)).all():
        raise UsageError("mix_weights: expected shares in [0, 1], found others")
    if not (settings.window >= 0 and settings.label_tolerance >= 0):
        found = f"{settings.window} and {settings.label_tolerance}"
        raise UsageError(f"window and label_tolerance: expected 0 or more, found {found}")
    if len(settings.beta) != 2 or not min(settings.beta) > 0:
        raise UsageError(f"beta: expected two positive numbers, found {settings.beta}")
    return y.detach().to("cpu", torch.float64).reshape(num_rows, 1 if y.ndim == 1 else y.shape[1])
