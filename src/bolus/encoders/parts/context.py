"""MLVICX's context-bottleneck block: a channel gate, then a spatial gate, on one map of a convolutional encoder.

Dimension letters: B images, C channels, H and W the map's pixels; of volumes `[B, C, D, H, W]`, D is the map's depth.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bolus.errors import EncoderError


class ContextBlock(nn.Module):
    """Reweigh a map's channels, then its pixels, from the map's own averages and maxima.

    MLVICX (arXiv:2403.11504), after CBAM: `x * sigmoid(f(avgpool x) + f(maxpool x))` with a shared two-layer `f`
    without biases, then `x * sigmoid(conv7x7([mean over C, max over C]))`. The map keeps its shape, so a block may
    stand between any two stages. On maps of volumes, of which the paper says nothing, averages and maxima are over
    three axes and the convolution is 7 x 7 x 7.

    Args:
        channels: C of the map.
        reduction: the hidden width of `f` is C / reduction, at least 1.
        dimensions: 2 of maps of images, 3 of volumes.

    Raises:
        EncoderError: fewer than one channel, or a reduction below 1.

    Example:
        >>> block = ContextBlock(8, reduction=2)
        >>> block(torch.ones(2, 8, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
        >>> sum(parameter.numel() for parameter in block.parameters()) == 8 * 4 + 4 * 8 + 2 * 7 * 7
        True
    """

    def __init__(self, channels: int, reduction: int = 2, *, dimensions: int = 2) -> None:
        super().__init__()
        if channels < 1 or reduction < 1:
            raise EncoderError(
                f"expected channels and reduction of at least 1, found channels={channels} and reduction={reduction}"
            )
        hidden = max(1, channels // reduction)
        convolution = nn.Conv2d if dimensions == 2 else nn.Conv3d
        self.squeeze = convolution(channels, hidden, kernel_size=1, bias=False)
        self.excite = convolution(hidden, channels, kernel_size=1, bias=False)
        self.spatial = convolution(2, 1, kernel_size=7, padding=3, bias=False)
        self._places = tuple(range(2, 2 + dimensions))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The refined map.

        Args:
            x_BCHW: `[B, C, H, W]` float; of volumes, `[B, C, D, H, W]`.

        Returns:
            The same shape, the dtype of the input (of autocast where that is on).
        """
        x_BCHW = x_BCHW * self.channel_gate(x_BCHW)
        return x_BCHW * self.spatial_gate(x_BCHW)

    def channel_gate(self, x_BCHW: Tensor) -> Tensor:
        """How much each channel counts, `[B, C, 1, 1]` in (0, 1), from `[B, C, H, W]`."""
        average = x_BCHW.mean(dim=self._places, keepdim=True)
        maximum = x_BCHW.amax(dim=self._places, keepdim=True)
        return torch.sigmoid(self._bottleneck(average) + self._bottleneck(maximum))

    def spatial_gate(self, x_BCHW: Tensor) -> Tensor:
        """How much each pixel counts, `[B, 1, H, W]` in (0, 1), from `[B, C, H, W]`."""
        summary = torch.cat([x_BCHW.mean(dim=1, keepdim=True), x_BCHW.amax(dim=1, keepdim=True)], dim=1)
        gate: Tensor = torch.sigmoid(self.spatial(summary))
        return gate

    def _bottleneck(self, pooled: Tensor) -> Tensor:
        weighed: Tensor = self.excite(torch.relu(self.squeeze(pooled)))
        return weighed
