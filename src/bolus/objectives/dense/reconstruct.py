"""Reconstruction of the image from its pooled feature, by COMPRER's transposed-convolution decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bolus.data.batches.batch import Batch
from bolus.data.batches.relation import Needs
from bolus.encoders.features import Features, FeatureShape, in_batch_order
from bolus.errors import RecipeError
from bolus.objectives.base import Loss, Objective
from bolus.objectives.heads import at_least_float32

DOUBLINGS = 5  # transposed convolutions of stride 2: from 7 x 7 to 224 x 224


class Decoder(nn.Module):
    """From a feature to an image: a linear layer, then transposed convolutions that double the side, GELU between.

    The paper (COMPRER, arXiv:2403.09672) names transposed convolutions and GELU; widths and kernel are our reading. A
    side that is no multiple of 32 is made a little larger and resampled. A volume has one side more (inferred).

    Args:
        dim: D, width of the feature.
        channels: of the smallest map, halved with every doubling of the side.
        image_channels: C.
        size: S, side of the image in pixels; or depth, height and width of a volume in voxels.

    Example:
        >>> Decoder(8, 32, 1, 50)(torch.zeros(2, 8)).shape
        torch.Size([2, 1, 50, 50])
    """

    def __init__(self, dim: int, channels: int, image_channels: int, size: int | Sequence[int]) -> None:
        super().__init__()
        self.sizes = (size, size) if isinstance(size, int) else tuple(size)
        self.sides = tuple(math.ceil(length / 2**DOUBLINGS) for length in self.sizes)
        widths = [max(1, channels >> doubling) for doubling in range(DOUBLINGS)]
        self.linear = nn.Linear(dim, channels * math.prod(self.sides))
        convolution = nn.ConvTranspose2d if len(self.sides) == 2 else nn.ConvTranspose3d
        self.layers = nn.ModuleList(
            convolution(before, after, 4, stride=2, padding=1)
            for before, after in zip(widths, [*widths[1:], image_channels], strict=True)
        )

    def forward(self, features: Tensor) -> Tensor:
        """`[B, D]` to `[B, C, S, S]`, or `[B, C, D, H, W]` of a volume, unbounded."""
        x: Tensor = self.linear(features).view(len(features), -1, *self.sides)
        for layer in self.layers:
            x = layer(F.gelu(x))
        if x.shape[2:] == self.sizes:
            return x
        mode = "bilinear" if len(self.sizes) == 2 else "trilinear"
        return F.interpolate(x, self.sizes, mode=mode, align_corners=False)


class Reconstruct(Objective):
    """Mean squared error between an image and what a decoder makes of its pooled feature.

    COMPRER (arXiv:2403.09672). It is the view that the encoder saw which is to come back, in [0, 1], at its full size:
    the paper leaves both open. Each modality has a decoder of its own. Every row counts alike. Of volumes it is the
    whole box (inferred).

    Args:
        shape: the encoder's shapes; `inputs` says what images each modality has.
        channels: of the decoders' smallest map.

    Raises:
        RecipeError: a width below 1, or inputs that are not known.

    Example:
        >>> shape = FeatureShape(dim=6, grid_channels=6, grid_stride=32, inputs={"CFP": (3, 32)})
        >>> batch = Batch({"CFP": torch.rand(2, 3, 3, 32, 32)}, {"CFP": torch.arange(3)}, {"sample": torch.arange(3)})
        >>> objective = Reconstruct(shape, channels=32)
        >>> objective.loss(objective.embed(Features(torch.randn(2, 3, 6)), batch), batch).num_anchors
        6
    """

    needs = Needs(pixels=True)

    def __init__(self, shape: FeatureShape, *, channels: int = 512) -> None:
        super().__init__()
        if channels < 1:
            raise RecipeError(f"channels: expected a width of 1 or more, found {channels}")
        if not shape.inputs:
            raise RecipeError("reconstruction needs to know the channels and size of the images, which are not stated")
        self.names = tuple(sorted(shape.inputs))
        self.dimensions = shape.dimensions
        self.decoders = nn.ModuleList()
        for name in self.names:
            image_channels, size = shape.inputs[name]
            sizes = (size,) * shape.dimensions if isinstance(size, int) else size
            self.decoders.append(Decoder(shape.dim, channels, image_channels, sizes))

    def embed(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """`losses` `[V, N]`, the mean squared error of each row over its pixels, at least float32."""
        losses = {}
        for modality, views in batch.views.items():
            if modality not in self.names:
                raise RecipeError(f"no decoder for modality {modality!r}; there are decoders for {self.names}")
            if views.ndim != self.dimensions + 3:
                raise RecipeError("reconstruction is of single images, and these are clips: set images.unit=image")
            pooled = features.pooled[:, batch.rows[modality].to(features.pooled.device)]
            made = self.decoders[self.names.index(modality)](pooled.flatten(0, 1))
            wanted = views.flatten(0, 1)
            if made.shape != wanted.shape:
                raise RecipeError(f"{modality}: expected images {list(made.shape[1:])}, found {list(wanted.shape[1:])}")
            with torch.autocast(device_type=made.device.type, enabled=False):
                error = (at_least_float32(made) - wanted).square().flatten(1).mean(1)
            losses[modality] = error.view(views.shape[:2])
        return {"losses": in_batch_order(losses, batch.rows)}

    def loss(self, embedded: dict[str, Tensor], batch: Batch) -> Loss:
        """The mean over rows; every one is an anchor."""
        losses = embedded["losses"]
        return Loss(losses.mean(), losses.numel())
