"""What an encoder returns, and the shapes it announces before it has seen an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bolus.errors import EncoderError


@dataclass(frozen=True)
class LevelShape:
    """One level of an encoder.

    Args:
        channels: feature channels.
        stride: input pixels for one pixel of the map; 0 where its axes differ.
        name: the module it is read from.
        strides: of each axis, H and W, or D, H and W of volumes; where not given they are `stride`, of images.
    """

    channels: int
    stride: int
    name: str
    strides: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.strides:
            object.__setattr__(self, "strides", (self.stride,) * 2)


@dataclass(frozen=True)
class FeatureShape:
    """What objectives need to know to build their heads.

    Args:
        dim: width D of the pooled feature: the neck's where there is one.
        grid_channels: channels of the last map.
        grid_stride: input pixels for one pixel of the last map; 0 where its axes, or modalities, differ.
        levels: the encoder's levels, shallow to deep; empty where it has none.
        inputs: modality -> channels and side in pixels of the images that are trained on, or the three sides of a
            volume; empty where not known.
        grid_strides: `grid_stride` of each axis; where not given they are it.
        dimensions: 3 of an encoder of volumes, whose maps are `[B, C, d, h, w]`; else 2.
    """

    dim: int
    grid_channels: int
    grid_stride: int
    levels: tuple[LevelShape, ...] = ()
    inputs: Mapping[str, tuple[int, int | tuple[int, int, int]]] = field(default_factory=dict)
    grid_strides: tuple[int, ...] = ()
    dimensions: int = 2

    def __post_init__(self) -> None:
        if not self.grid_strides:
            object.__setattr__(self, "grid_strides", (self.grid_stride,) * self.dimensions)


def one_stride(strides: tuple[int, ...]) -> int:
    """The stride of all axes, or 0 where they differ.

    >>> one_stride((4, 4, 4)), one_stride((2, 4, 4))
    (4, 0)
    """
    return strides[0] if len(set(strides)) == 1 else 0


@dataclass
class Maps:
    """What one forward gives for B images, clips or volumes; of clips all is the mean over their real frames.

    Args:
        pooled: `[B, D]`: the CLS token where there is one, else the mean of the grid; through the neck, if any.
        levels: maps `[B, C, h, w]`, shallow to deep; empty unless asked for. Of volumes, `[B, C, d, h, w]`.
        grid: the last map, `[B, C, h, w]`; of volumes, `[B, C, d, h, w]`.
    """

    pooled: Tensor
    levels: list[Tensor]
    grid: Tensor


@dataclass
class Features:
    """Features of a batch, in the batch's order, view-major; of clips, the means over their real frames.

    Args:
        pooled: `[V, N, D]` float, one D for all modalities.
        levels: modality -> maps `[V, N_m, C, h, w]`, shallow to deep; filled only if an objective needs it. Of
            volumes, `[V, N_m, C, d, h, w]`.
        grid: modality -> the last map `[V, N_m, C, h, w]`, likewise.
    """

    pooled: Tensor
    levels: dict[str, list[Tensor]] = field(default_factory=dict)
    grid: dict[str, Tensor] = field(default_factory=dict)


def encode_views(
    encoder_of: Callable[[str], Callable[..., Maps]],
    views: Mapping[str, Tensor],
    rows: Mapping[str, Tensor],
    *,
    frame_mask: Tensor | None = None,
    levels: bool = False,
    grid: bool = False,
) -> Features:
    """Features of a batch, one forward for each modality over all its views, through the encoder that sees it.

    So in training the statistics of BatchNorm are over all views of a modality's samples together, not view by view.

    Args:
        encoder_of: modality -> its encoder, called as `Encoder.forward` is; all give pooled features of one width.
        views: modality -> `[V, N_m, C, H, W]`, clips `[V, N_m, C, T, H, W]`, or volumes `[V, N_m, C, D, H, W]` for an
            encoder of volumes, float32 in [0, 1]; V is the same for all, C and the sides need not be.
        rows: modality -> int64 `[N_m]`, positions among the N samples; together they are each of 0 .. N-1 once.
        frame_mask: of clips, bool `[N, T]`, true at real frames; None: all are.
        levels: also give every level.
        grid: also give the last map.

    Returns:
        Features with pooled `[V, N, D]` in the batch's order.

    Raises:
        EncoderError: views, rows and mask that do not fit each other, or no images.

    >>> def mean(images, **kw):
    ...     return Maps(images.mean((2, 3)), [], images)
    >>> views, rows = {"XR": torch.ones(1, 2, 1, 4, 4), "CT": torch.zeros(1, 1, 1, 6, 6)}, {"XR": [0, 2], "CT": [1]}
    >>> rows = {modality: torch.tensor(places) for modality, places in rows.items()}
    >>> encode_views(lambda modality: mean, views, rows).pooled.tolist()
    [[[1.0], [0.0], [1.0]]]
    """
    if not views or set(views) != set(rows):
        raise EncoderError(f"expected views and rows of the same modalities, found {sorted(views)}, {sorted(rows)}")
    num_views, num_rows = next(iter(views.values())).shape[0], sum(map(len, rows.values()))
    if frame_mask is not None and (frame_mask.ndim != 2 or len(frame_mask) != num_rows):
        raise EncoderError(f"expected a frame_mask [{num_rows}, T] as the rows say, found {list(frame_mask.shape)}")
    pooled: list[Tensor] = []
    features = Features(pooled=torch.empty(0))
    for modality, images in views.items():
        if images.ndim not in (5, 6) or images.shape[0] != num_views or images.shape[1] != len(rows[modality]):
            raise EncoderError(
                f"{modality}: expected views [{num_views}, {len(rows[modality])}, C, H, W] as V and the rows say "
                f"(C, T, H, W for clips, C, D, H, W for volumes), found {list(images.shape)}"
            )
        by_view = (num_views, len(rows[modality]))
        mask = None if frame_mask is None else frame_mask[rows[modality].to(frame_mask.device)].repeat(num_views, 1)
        maps = encoder_of(modality)(images.flatten(0, 1), frame_mask=mask, levels=levels)
        pooled.append(maps.pooled.view(*by_view, *maps.pooled.shape[1:]))
        if levels:
            features.levels[modality] = [level.view(*by_view, *level.shape[1:]) for level in maps.levels]
        if grid:
            features.grid[modality] = maps.grid.view(*by_view, *maps.grid.shape[1:])
    together = torch.cat(pooled, dim=1)
    order = torch.cat([rows[modality].to(together.device) for modality in views])
    features.pooled = torch.zeros_like(together).index_copy(1, order, together)
    return features


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
