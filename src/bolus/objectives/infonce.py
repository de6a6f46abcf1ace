"""The contrastive primitive: a weighted, masked log-ratio of positives to positives and negatives, row by row."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from bolus.errors import UsageError
from bolus.objectives.heads import at_least_float32


@overload
def infonce(
    logits: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    form: Literal["out", "in"] = "out",
    positive_weights: Tensor | None = None,
    negative_weights: Tensor | None = None,
    reduction: Literal["mean"] = "mean",
) -> Tensor: ...


@overload
def infonce(
    logits: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    form: Literal["out", "in"] = "out",
    positive_weights: Tensor | None = None,
    negative_weights: Tensor | None = None,
    reduction: Literal["none"],
) -> tuple[Tensor, Tensor]: ...


def infonce(
    logits: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    form: Literal["out", "in"] = "out",
    positive_weights: Tensor | None = None,
    negative_weights: Tensor | None = None,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor | tuple[Tensor, Tensor]:
    """InfoNCE of every row of a logit matrix, for any sets of positives and negatives and any weights.

    With P and N the positives and negatives of a row, v and w their weights (1 where not given), s its logits:

    - form "out" (SupCon's L_out, arXiv:2004.11362, equation 2; one positive: SimCLR, CLIP):
      `sum_P v (log(sum_P e^s + sum_N w e^s) - s) / sum_P v`;
    - form "in" (LEARNER, arXiv:2411.01144): `log(sum_P v e^s + sum_N w e^s) - log(sum_P v e^s)`.

    So negatives' weights multiply e^s in both forms; positives' weights average in "out", where the denominator does
    not see them, and multiply e^s in "in". A pair that is neither positive nor negative is absent, one that is both is
    a positive; a term multiplied by weight 0 is absent.

    A row without a positive (or whose positives all weigh 0) has the value 0 and zero gradients and does not count. A
    row with positives and no negatives counts: the ratio is then over its positives alone, which is exactly 0 in "in",
    and in "out" for a single positive.

    Args:
        logits: `[N, M]` float, similarities divided by the temperature; computed in at least float32, inside autocast
            too. Values at absent pairs and in rows without a positive may be anything, NaN included.
        positives: bool `[N, M]`.
        negatives: bool `[N, M]`.
        form: "out" or "in".
        positive_weights: float `[N, M]`, at least 0; only read at positives.
        negative_weights: float `[N, M]`, at least 0; only read at negatives.
        reduction: "mean" over the rows that have a positive, or "none".

    Returns:
        A scalar, float32 (float64 for float64 logits): exactly 0 and still part of the graph where no row has a
        positive. With reduction "none": values `[N]`, 0 in rows without a positive, and bool `[N]`, true where a row
        has one.

    Raises:
        UsageError: shapes differ, masks are not bool, or an unknown form or reduction.

    Example:
        >>> logits = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
        >>> pairs = torch.eye(2, dtype=torch.bool)
        >>> round(infonce(logits, pairs, ~pairs).item(), 4)  # the cross-entropy of picking one's partner
        0.1809
        >>> infonce(logits, torch.zeros_like(pairs), ~pairs).item()
        0.0
    """
    _check(logits, positives, negatives, form, positive_weights, negative_weights, reduction)
    with torch.autocast(device_type=logits.device.type, enabled=False):
        s = at_least_float32(logits)
        has = positives if positive_weights is None else positives & (positive_weights > 0)
        valid = has.any(dim=1)
        counted = positives if form == "out" else has
        opposed = negatives & ~positives
        opposed = opposed if negative_weights is None else opposed & (negative_weights > 0)
        # What the denominator does not read is -inf, and 0 throughout in rows with nothing to do: after a logarithm of
        # nothing their gradients would be NaN.
        read, unread = (counted | opposed) & valid[:, None], torch.where(valid, -torch.inf, 0.0).to(s)[:, None]
        v = None if positive_weights is None else torch.where(has, positive_weights.to(s.dtype), 0.0)
        weighted = s
        if form == "in" and v is not None:
            weighted = weighted + _log(v)
        if negative_weights is not None:
            weighted = weighted + _log(torch.where(opposed, negative_weights.to(s.dtype), 0.0))
        log_all = torch.logsumexp(torch.where(read, weighted, unread), dim=1)
        if form == "in":
            values = log_all - torch.logsumexp(torch.where(has, weighted, unread), dim=1)
        else:
            s = torch.where(has, s, 0.0)
            sums, total = (s, has.sum(dim=1, dtype=s.dtype)) if v is None else (v * s, v.sum(dim=1))
            values = log_all - sums.sum(dim=1) / torch.where(valid, total, 1.0)
        values = torch.where(valid, values, 0.0)
        if reduction == "none":
            return values, valid
        return values.sum() / valid.sum().clamp(min=1)


def _log(weights: Tensor) -> Tensor:
    """The logarithm where a weight is positive, else 0: such terms are masked, and log 0 has no gradient to mask."""
    return torch.where(weights > 0, weights, 1.0).log()


def _check(
    logits: Tensor,
    positives: Tensor,
    negatives: Tensor,
    form: str,
    positive_weights: Tensor | None,
    negative_weights: Tensor | None,
    reduction: str,
) -> None:
    if logits.ndim != 2 or not logits.is_floating_point():
        raise UsageError(f"logits: expected float [N, M], found {logits.dtype} {list(logits.shape)}")
    masks = {"positives": positives, "negatives": negatives}
    weights = {"positive_weights": positive_weights, "negative_weights": negative_weights}
    for name, tensor in {**masks, **weights}.items():
        if tensor is not None and tensor.shape != logits.shape:
            raise UsageError(f"{name}: expected the logits' shape {list(logits.shape)}, found {list(tensor.shape)}")
    for name, mask in masks.items():
        if mask.dtype != torch.bool:
            raise UsageError(f"{name}: expected a bool mask, found {mask.dtype}")
    if form not in ("out", "in"):
        raise UsageError(f"form: expected 'out' or 'in', found {form!r}")
    if reduction not in ("mean", "none"):
        raise UsageError(f"reduction: expected 'mean' or 'none', found {reduction!r}")
