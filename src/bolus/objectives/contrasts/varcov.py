"""Variance-invariance-covariance: views agree, no dimension collapses, no two dimensions repeat each other.

The global form (VICReg) reads the pooled feature; the multi-level form (MLVICX) reads every level of the encoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bolus.data.batches.batch import Batch
from bolus.data.batches.relation import Needs
from bolus.encoders.features import Features, FeatureShape, in_batch_order
from bolus.errors import RecipeError, UsageError
from bolus.objectives.base import Loss, Objective
from bolus.objectives.heads import ProjectionHead, at_least_float32


def varcov_loss(
    z_a: Tensor,
    z_b: Tensor,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
) -> Tensor:
    """The VICReg loss of two views (arXiv:2105.04906, equation 6; as weighted in MLVICX, arXiv:2403.11504).

    `invariance * mean (z_a - z_b)^2 + variance * 1/2 sum_views mean_d relu(1 - sqrt(Var_d + 1e-4))
    + covariance * sum_views 1/D sum_{c != d} Cov_cd^2`, with unbiased variance and covariance. Nothing is normalised.

    Args:
        z_a: `[N, D]` float, the first view; computed in at least float32, inside autocast too.
        z_b: `[N, D]` float, the second view, row i of the same sample as row i of `z_a`.
        invariance: weight of the squared distance between views.
        variance: weight of the hinge that keeps each dimension's standard deviation at 1 or above.
        covariance: weight of the squared covariances between dimensions.

    Returns:
        A scalar, float32 (float64 if an input is). With fewer than two rows, which have no variance: exactly 0, part of
        the graph with zero gradients.

    Raises:
        UsageError: the views are not two `[N, D]` tensors of one shape.

    Example:
        >>> z = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
        >>> varcov_loss(z, z).item()  # equal views, deviations above 1, uncorrelated
        0.0
        >>> round(varcov_loss(0 * z, 0 * z).item(), 4)  # collapsed: 25 (1 - sqrt(1e-4))
        24.75
    """
    if z_a.ndim != 2 or z_a.shape != z_b.shape:
        raise UsageError(f"expected two views [N, D] of one shape, found {list(z_a.shape)} and {list(z_b.shape)}")
    with torch.autocast(device_type=z_a.device.type, enabled=False):
        z_a, z_b = at_least_float32(z_a), at_least_float32(z_b)
        num_rows, dim = z_a.shape
        if num_rows < 2 or dim == 0:
            return z_a[:0].sum() + z_b[:0].sum()
        distance = (z_a - z_b).square().mean()
        hinge_a, overlap_a = _hinge_and_overlap(z_a)
        hinge_b, overlap_b = _hinge_and_overlap(z_b)
        return invariance * distance + variance * (hinge_a + hinge_b) / 2 + covariance * (overlap_a + overlap_b)


def _hinge_and_overlap(z_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Mean hinge on the deviations, and squared covariances off the diagonal over D.

    The sum of all squared covariances is the squared norm of Z^T Z and so of Z Z^T: the smaller of the two is formed.
    """
    num_rows, dim = z_ND.shape
    centred = z_ND - z_ND.mean(dim=0)
    variances = centred.square().sum(dim=0) / (num_rows - 1)
    hinge = F.relu(1 - (variances + 1e-4).sqrt()).mean()
    if dim > num_rows:
        gram_NN = centred @ centred.T / (num_rows - 1)
        overlap = gram_NN.square().sum() - variances.square().sum()
    else:
        covariance_DD = centred.T @ centred / (num_rows - 1)
        # Without its last element, a flat D x D matrix has its diagonal in the first column of D - 1 rows of D + 1.
        overlap = covariance_DD.flatten()[:-1].view(dim - 1, dim + 1)[:, 1:].square().sum()
    return hinge, overlap / dim


class VarCov(Objective):
    """VICReg on the pooled feature, or MLVICX's multi-level branch on all levels of the encoder.

    Source "levels" is the head of MLVICX (arXiv:2403.11504): each level's map is resized bilinearly to S x S, sent
    through its own 1 x 1 convolution to `level_channels`, summed over levels, average-pooled to `grid` x `grid`,
    flattened and projected. Resizing and pooling are one fixed linear map per axis and commute with the convolution, so
    each map is pooled first, as A X A^T, which is the same number at a fraction of the cost. S is 64 for inputs of 224
    pixels and scales with them: `max(grid, round(64 * input / 224))`, per axis, where the input is the level's map size
    times its stride. Levels of volumes, of which the paper says nothing, are pooled so along three axes, to `grid` x
    `grid` x `grid` cells (inferred).

    Needs two views; with more, the loss is the mean over pairs of views. Modalities share one head.

    Args:
        shape: the encoder's shapes.
        source: "pooled" or "levels".
        width: of each layer of the head; D of the loss.
        depth: layers of the head.
        level_channels: channels to which each level is convolved.
        level_size: S in pixels, whatever the input; by default it scales with the input.
        grid: cells per axis after pooling.
        last_norm: whether the head ends in batch normalisation: as in MLVICX, not in VICReg.
        invariance: weight in `varcov_loss`.
        variance: weight in `varcov_loss`.
        covariance: weight in `varcov_loss`.

    Raises:
        RecipeError: source "levels" for an encoder without levels, or a size below 1.

    Example:
        >>> objective = VarCov(FeatureShape(dim=6, grid_channels=6, grid_stride=32), width=4, depth=2)
        >>> batch = Batch({}, {}, {"sample": torch.arange(3)})
        >>> embedded = objective.embed(Features(torch.randn(2, 3, 6)), batch)
        >>> embedded["z"].shape, objective.loss(embedded, batch).num_anchors
        (torch.Size([2, 3, 4]), 6)
    """

    memory_keys = ("width",)

    def __init__(
        self,
        shape: FeatureShape,
        *,
        source: Literal["pooled", "levels"] = "pooled",
        width: int = 4096,
        depth: int = 3,
        level_channels: int = 512,
        level_size: int | None = None,
        grid: int = 4,
        last_norm: bool = True,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
    ) -> None:
        super().__init__()
        if source not in ("pooled", "levels"):
            raise RecipeError(f"source: expected 'pooled' or 'levels', found {source!r}")
        if source == "levels" and not shape.levels:
            raise RecipeError(
                "source: 'levels' needs an encoder with levels; this one has none, or those of several differ; "
                "use 'pooled'"
            )
        sizes = {"width": width, "depth": depth, "level_channels": level_channels, "grid": grid}
        for name, size in {**sizes, "level_size": 1 if level_size is None else level_size}.items():
            if size < 1:
                raise RecipeError(f"{name}: expected 1 or more, found {size}")
        self.needs = Needs(views=2, levels=source == "levels", samples=2)
        self.source = source
        self.level_size = level_size
        self.grid = grid
        self.strides = tuple(level.strides for level in shape.levels)
        self.weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
        levels = shape.levels if source == "levels" else ()
        convolution = nn.Conv2d if shape.dimensions == 2 else nn.Conv3d
        self.convolutions = nn.ModuleList(convolution(level.channels, level_channels, 1) for level in levels)
        in_dim = level_channels * grid**shape.dimensions if levels else shape.dim
        self.head = ProjectionHead(in_dim, [width] * depth, last_norm=last_norm)

    def embed(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """`z` `[V, N, width]`, not normalised."""
        x = features.pooled if self.source == "pooled" else self._pool_levels(features, batch)
        return {"z": self.head(x)}

    def loss(self, embedded: dict[str, Tensor], batch: Batch) -> Loss:
        """The mean of `varcov_loss` over pairs of views; 0 with no anchors where N < 2.

        Raises:
            UsageError: fewer than two views.
        """
        z_VND = embedded["z"]
        num_views, num_rows = z_VND.shape[:2]
        if num_views < 2:
            raise UsageError(f"varcov compares views: expected at least 2, found {num_views}; set images.views=2")
        losses = [varcov_loss(z_VND[a], z_VND[b], **self.weights) for a, b in combinations(range(num_views), 2)]
        return Loss(torch.stack(losses).mean(), num_views * num_rows if num_rows >= 2 else 0)

    def _pool_levels(self, features: Features, batch: Batch) -> Tensor:
        """Every level pooled, convolved and summed, flat: `[V, N, level_channels * grid ** axes]`."""
        parts: dict[str, Tensor] = {}
        for modality, maps in features.levels.items():
            assert len(maps) == len(self.convolutions), "one map for each level that the encoder announced"
            cells: list[Tensor] = []
            for convolution, strides, x in zip(self.convolutions, self.strides, maps, strict=True):
                pooled = convolution(pool_resized(x.flatten(0, 1), self.grid, stride=strides, size=self.level_size))
                cells.append(pooled.flatten(1).unflatten(0, x.shape[:2]))
            parts[modality] = torch.stack(cells).sum(dim=0)
        return in_batch_order(parts, batch.rows)


def pool_resized(x: Tensor, grid: int, *, stride: int | Sequence[int], size: int | None = None) -> Tensor:
    """What bilinear resizing to S x S and adaptive average pooling to `grid` x `grid` give, as A X A^T.

    S is `size`, or `max(grid, round(64 * h * stride / 224))` for each axis; `align_corners=False`, no antialiasing. Of
    volumes, trilinear resizing to S x S x S and pooling to `grid` x `grid` x `grid`.

    Args:
        x: `[B, C, h, w]` or `[B, C, d, h, w]` float.
        grid: cells per axis of the result.
        stride: input pixels for one pixel of `x`, of all axes or of each.
        size: S in pixels; by default scaled with the input.

    Returns:
        `[B, C, grid, grid]` or `[B, C, grid, grid, grid]`, in the dtype of `x` (under autocast, of a matrix product).

    Example:
        >>> pool_resized(torch.ones(1, 2, 7, 7), 4, stride=32).shape
        torch.Size([1, 2, 4, 4])
    """
    strides = [stride] * (x.ndim - 2) if isinstance(stride, int) else stride
    *depth, height, width = (
        torch.tensor(_pooling_matrix(length, size or _resized(length * each, grid), grid), dtype=x.dtype).to(x.device)
        for length, each in zip(x.shape[2:], strides, strict=True)
    )
    pooled = height @ (x @ width.T)
    return (depth[0] @ pooled.flatten(3)).view(*x.shape[:2], grid, grid, grid) if depth else pooled


def _resized(input_size: int, grid: int) -> int:
    return max(grid, round(64 * input_size / 224))


@lru_cache(maxsize=256)
def _pooling_matrix(length: int, resized: int, grid: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A `[grid, length]`: bilinear resizing of an axis to `resized` points, then means over adaptive cells."""
    points = np.arange(resized)
    source = np.maximum((points + 0.5) * length / resized - 0.5, 0.0)
    left = np.minimum(np.floor(source).astype(np.int64), length - 1)
    right = np.minimum(left + 1, length - 1)
    share = source - left
    resize = np.zeros((resized, length))
    np.add.at(resize, (points, left), 1 - share)
    np.add.at(resize, (points, right), share)
    cells = [
        resize[cell * resized // grid : math.ceil((cell + 1) * resized / grid)].mean(axis=0) for cell in range(grid)
    ]
    matrix = np.stack(cells)
    matrix.setflags(write=False)
    return matrix
