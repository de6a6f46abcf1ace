"""PCL's U-Net (`unetN`, `unet3dN`) and MONAI's BasicUNet: the same contracting side, so that weights go both ways.

BasicUNet has norms and leaky activations in its centre, where PCL has none and ReLU: there the norms are set to do
nothing and the activations are replaced, which BasicUNet's own configuration cannot say.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bolus.encoders.backbone import Encoder
from bolus.encoders.building import build_encoder
from bolus.encoders.families.unet import SLOPE, UNetConfig
from bolus.errors import EncoderError, require
from bolus.recipe import EncoderSpec

DEPTH = 4  # poolings of BasicUNet


def to_monai(encoder: Encoder, *, num_classes: int) -> nn.Module:
    """A BasicUNet in evaluation mode whose contracting side is this encoder; its expanding side has fresh weights.

    It takes pixels that are normalised: `(images - encoder.mean) / encoder.std`. Its `conv_0`, `down_1` .. `down_4`
    then give the encoder's levels.

    Args:
        encoder: a U-Net of four poolings; its neck is not taken along.
        num_classes: channels that it gives.

    Raises:
        EncoderError: another architecture, or context blocks.
        MissingPackageError: MONAI is not installed.

    Example:
        >>> encoder = build_encoder(EncoderSpec(backbone="unet4"), seed=0)
        >>> to_monai(encoder, num_classes=3)(torch.rand(1, 1, 32, 32)).shape
        torch.Size([1, 3, 32, 32])
    """
    config = encoder.config
    if not isinstance(config, UNetConfig) or config.depth != DEPTH or encoder.spec.context:
        raise EncoderError(
            f"BasicUNet is a U-Net of {DEPTH} poolings: expected an encoder unetN without context blocks, found "
            f"{encoder.spec.backbone}"
        )
    networks = require("monai.networks.nets.basic_unet", "U-Nets of MONAI")
    unet: Any = networks.BasicUNet(
        spatial_dims=encoder.dimensions,
        in_channels=config.num_channels,
        out_channels=num_classes,
        features=(*config.hidden_sizes, config.base_filters),
        act=("leakyrelu", {"negative_slope": SLOPE, "inplace": True}),
        norm="batch",
    )
    with torch.no_grad():
        for level, (ours, theirs) in enumerate(zip(_of_bolus(encoder), _of_monai(unet), strict=True)):
            for one, other in zip(ours, theirs, strict=True):
                other.conv.weight.copy_(one.conv.weight)
                if level == DEPTH:
                    other.conv.bias.copy_(one.conv.bias)
                    other.adn.N.running_var.fill_(1 - other.adn.N.eps)
                    other.adn.A = nn.ReLU()
                else:
                    other.conv.bias.zero_()
                    other.adn.N.load_state_dict(one.adn.N.state_dict())
    found: nn.Module = unet.eval()
    return found


def from_monai(unet: nn.Module, *, mean: float = 0.0, std: float = 1.0) -> Encoder:
    """An encoder in evaluation mode that gives what the contracting side of a BasicUNet gives, as one of `to_monai`.

    Biases and the centre's norms go into the neighbouring weights, as evaluation mode allows.

    Args:
        unet: of images or volumes, with BatchNorm, leaky activations of slope 0.01, and ReLU in its centre.
        mean: that its pixels were normalised by.
        std: likewise.

    Raises:
        EncoderError: another architecture, norm or activation, with the module where it was found.
        MissingPackageError: MONAI is not installed.

    Example:
        >>> encoder = build_encoder(EncoderSpec(backbone="unet4"), seed=0).eval()
        >>> back = from_monai(to_monai(encoder, num_classes=2), mean=0.5, std=0.25)
        >>> image = torch.rand(1, 1, 32, 32)
        >>> torch.allclose(back(image).pooled, encoder(image).pooled, atol=1e-5)
        True
    """
    networks = require("monai.networks.nets.basic_unet", "U-Nets of MONAI")
    if not isinstance(unet, networks.BasicUNet):
        raise EncoderError(f"expected a BasicUNet of MONAI, found {type(unet).__name__}")
    levels = _of_monai(unet)
    for level, convolutions in enumerate(levels):
        for at, each in enumerate(convolutions):
            _check(f"{'conv_0' if level == 0 else f'down_{level}.convs'}.conv_{at}", each, centre=level == DEPTH)
    filters, channels = levels[0][0].conv.out_channels, levels[0][0].conv.in_channels
    widths = [level[0].conv.out_channels for level in levels]
    if widths != [filters * 2**level for level in range(DEPTH + 1)] or channels not in (1, 3):
        raise EncoderError(f"expected 1 or 3 channels and features that double, found {channels} and {widths}")
    kind = "unet3d" if isinstance(levels[0][0].conv, nn.Conv3d) else "unet"
    spec = EncoderSpec(backbone=f"{kind}{filters}", in_channels=1 if channels == 1 else 3, mean=[mean], std=[std])
    encoder = build_encoder(spec, seed=0).eval()
    with torch.no_grad():
        for level, (ours, theirs) in enumerate(zip(_of_bolus(encoder), levels, strict=True)):
            for one, other in zip(ours, theirs, strict=True):
                norm, bias = other.adn.N, other.conv.bias
                scale = norm.weight / (norm.running_var + norm.eps).sqrt()
                if level == DEPTH:
                    one.conv.weight.copy_(other.conv.weight * scale.view(-1, *[1] * (encoder.dimensions + 1)))
                    one.conv.bias.copy_((bias - norm.running_mean) * scale + norm.bias)
                else:
                    one.conv.weight.copy_(other.conv.weight)
                    one.adn.N.load_state_dict(norm.state_dict())
                    one.adn.N.running_mean.sub_(bias)
    return encoder


def _of_bolus(encoder: Encoder) -> list[list[Any]]:
    """The two convolutions of each level, shallow to deep."""
    stages: Any = encoder.backbone.stages
    return [list(stage)[-2:] for stage in stages]


def _of_monai(unet: Any) -> list[list[Any]]:
    parts = [unet.conv_0, *(getattr(unet, f"down_{level}").convs for level in range(1, DEPTH + 1))]
    return [[part.conv_0, part.conv_1] for part in parts]


def _check(name: str, convolution: Any, *, centre: bool) -> None:
    """Raise EncoderError for a convolution that bolus's U-Net cannot say."""
    conv, norm, act = (convolution.conv, getattr(convolution.adn, "N", None), getattr(convolution.adn, "A", None))
    known = isinstance(conv, nn.Conv2d | nn.Conv3d) and isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d)
    if not known or conv.bias is None:
        found = f"{type(conv).__name__} and {type(norm).__name__}"
        raise EncoderError(f"{name}: expected a Conv2d with bias and a BatchNorm2d, found {found}")
    fits = isinstance(act, nn.ReLU) if centre else isinstance(act, nn.LeakyReLU) and act.negative_slope == SLOPE
    if not fits:
        wanted = "ReLU, as in PCL's centre" if centre else f"LeakyReLU of slope {SLOPE:g}"
        raise EncoderError(f"{name}: expected {wanted}, found {act}")
