"""Projection heads: the small networks between an encoder's features and a loss, thrown away after pretraining."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bolus.errors import RecipeError


class ProjectionHead(nn.Module):
    """Linear layers, each followed by batch normalisation and ReLU, the last by normalisation only or by nothing.

    SimCLR (arXiv:2002.05709) has two layers and no last normalisation; VICReg (arXiv:2105.04906) and MLVICX
    (arXiv:2403.11504) have three, MLVICX with a last normalisation. A linear layer before a normalisation has no bias,
    which the normalisation would subtract again.

    Statistics are over all leading dimensions together, views included. A single row has no statistics: in training,
    too, it is normalised by the running ones.

    Args:
        in_dim: width of the input.
        widths: output width of each layer, at least one.
        last_norm: whether the last linear layer is normalised.
        hidden_norm: whether the others are.

    Raises:
        RecipeError: no layer, or a width below 1.

    Example:
        >>> ProjectionHead(8, [16, 4], last_norm=False)(torch.ones(2, 5, 8)).shape
        torch.Size([2, 5, 4])
    """

    def __init__(self, in_dim: int, widths: Sequence[int], *, last_norm: bool, hidden_norm: bool = True) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise RecipeError(f"a projection head needs at least one layer of width 1 or more, found {list(widths)}")
        normed = [hidden_norm] * (len(widths) - 1) + [last_norm]
        self.linears = nn.ModuleList(
            nn.Linear(before, width, bias=not norm)
            for before, width, norm in zip([in_dim, *widths[:-1]], widths, normed, strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width, norm in zip(widths, normed, strict=True) if norm)
        self.normed, self.out_dim = tuple(normed), widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_dim]` float to `[..., widths[-1]]`."""
        leading = x.shape[:-1]
        x = x.flatten(0, -2)
        norms = iter(self.norms)
        for position, (linear, norm) in enumerate(zip(self.linears, self.normed, strict=True)):
            x = linear(x)
            if norm:
                x = _normalise(next(norms), x)
            if position < len(self.linears) - 1:
                x = F.relu(x)
        return x.reshape(*leading, self.out_dim)


def optional_head(in_dim: int, dim: int | None, hidden: int | None) -> ProjectionHead | None:
    """A head of two layers, or None where an objective works on the encoder's own feature.

    Args:
        in_dim: width of the encoder's feature.
        dim: width of the embedding; None for no head.
        hidden: width of the layer between; None for that of the feature.

    Raises:
        RecipeError: `hidden` without `dim`, or a width below 1.

    >>> optional_head(8, None, None) is None, optional_head(8, 4, None).out_dim
    (True, 4)
    """
    if dim is None:
        if hidden is not None:
            raise RecipeError(f"hidden: {hidden} is the width of a layer in a head, and without dim there is none")
        return None
    return ProjectionHead(in_dim, [in_dim if hidden is None else hidden, dim], last_norm=False)


def _normalise(norm: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(norm, nn.BatchNorm1d)
    if norm.training and len(x) < 2:
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    normalised: Tensor = norm(x)
    return normalised


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision and bfloat16 to float32; float32 and float64 as they are.

    Example:
        >>> at_least_float32(torch.ones(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return x if x.dtype == torch.float64 else x.float()
