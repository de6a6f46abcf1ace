"""What an encoder returns, and the shapes it announces before it has seen an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class LevelShape:
    """One level of an encoder.

    Args:
        channels: feature channels.
        stride: input pixels for one pixel of the map.
        name: the module it is read from.
    """

    channels: int
    stride: int
    name: str


@dataclass(frozen=True)
class FeatureShape:
    """What objectives need to know to build their heads.

    Args:
        dim: width D of the pooled feature: the neck's where there is one.
        grid_channels: channels of the last map.
        grid_stride: input pixels for one pixel of the last map.
        levels: the encoder's levels, shallow to deep; empty where it has none.
    """

    dim: int
    grid_channels: int
    grid_stride: int
    levels: tuple[LevelShape, ...] = ()


@dataclass
class Maps:
    """What one forward gives for B images or clips; of clips everything is the mean over their real frames.

    Args:
        pooled: `[B, D]`: the CLS token where there is one, else the mean of the grid; through the neck, if any.
        levels: maps `[B, C, h, w]`, shallow to deep; empty unless asked for.
        grid: the last map, `[B, C, h, w]`.
    """

    pooled: Tensor
    levels: list[Tensor]
    grid: Tensor


@dataclass
class Features:
    """Features of a batch, in the batch's order, view-major; of clips, the means over their real frames.

    Args:
        pooled: `[V, N, D]` float, one D for all modalities.
        levels: modality -> maps `[V, N_m, C, h, w]`, shallow to deep; filled only if an objective needs it.
        grid: modality -> the last map `[V, N_m, C, h, w]`; filled only if an objective needs it.
    """

    pooled: Tensor
    levels: dict[str, list[Tensor]] = field(default_factory=dict)
    grid: dict[str, Tensor] = field(default_factory=dict)


def in_batch_order(by_modality: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> Tensor:
    """What stands modality by modality, as one tensor in the batch's order.

    Args:
        by_modality: modality -> `[V, N_m, ...]`, alike but for N_m.
        rows: modality -> int64 `[N_m]`, positions among the N samples; together each of 0 .. N-1 once.

    Returns:
        `[V, N, ...]`.

    >>> parts = {"XR": torch.tensor([[7.0, 9.0]]), "CT": torch.tensor([[8.0]])}
    >>> in_batch_order(parts, {"XR": torch.tensor([0, 2]), "CT": torch.tensor([1])}).tolist()
    [[7.0, 8.0, 9.0]]
    """
    together = torch.cat(list(by_modality.values()), dim=1)
    order = torch.cat([rows[modality] for modality in by_modality]).argsort()
    return together[:, order.to(together.device)]
