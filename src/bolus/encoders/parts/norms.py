"""BatchNorm statistics of an encoder, estimated anew where those it was trained with are not its own."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bolus.errors import EncoderError


def norms_of(encoder: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers that use running statistics in evaluation mode; none in a vision transformer.

    >>> len(norms_of(nn.Sequential(nn.BatchNorm2d(4), nn.LayerNorm(4))))
    1
    """
    return [each for each in encoder.modules() if isinstance(each, _BatchNorm) and each.track_running_stats]


def estimate_norms(encoder: nn.Module, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
    """Replace the running statistics of every BatchNorm layer by the mean of those of these batches.

    Each batch goes through the encoder with its norms on the batch's own statistics and all else, such as dropout, in
    evaluation mode. Batches count alike, so they should be of one size. Mode and momentum are put back; weights stay.

    Args:
        encoder: called as `Encoder.forward` is; changed in place.
        batches: images `[B, C, H, W]` or clips `[B, C, T, H, W]`, float32 in [0, 1], on its device, and the frame mask
            of clips or None. A batch of one is left out: it has no statistics where a map is one pixel.

    Raises:
        EncoderError: no batch of at least two, of an encoder that has BatchNorm.

    Example:
        >>> from bolus.encoders.building import build_encoder
        >>> from bolus.recipe import EncoderSpec
        >>> encoder, grey = build_encoder(EncoderSpec(backbone="r18w32"), seed=0), torch.full((2, 1, 32, 32), 0.5)
        >>> estimate_norms(encoder, [(grey, None)])
        >>> float(norms_of(encoder)[0].running_var.max())  # nothing varies in images that are normalised to zero
        0.0
    """
    norms = norms_of(encoder)
    if not norms:
        return
    was_training, momenta = encoder.training, [norm.momentum for norm in norms]
    encoder.eval()
    seen = 0
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean of all batches, not a moving one
            norm.train()
        with torch.inference_mode():
            for images, frame_mask in batches:
                if len(images) > 1:
                    encoder(images, frame_mask=frame_mask)
                    seen += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        encoder.train(was_training)
    if not seen:
        raise EncoderError("expected a batch of at least two images to estimate BatchNorm statistics from, found none")
