"""PCL's U-Net and MONAI's BasicUNet give the same numbers, whichever way the weights went."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks.nets.basic_unet import BasicUNet
from torch import Tensor

from bolus.encoders.building import build_encoder
from bolus.errors import EncoderError
from bolus.exporting.monai_unet import from_monai, to_monai
from bolus.recipe import EncoderSpec


def encoder_of(channels: Any = 1, backbone: str = "unet4") -> Any:
    encoder = build_encoder(EncoderSpec(backbone=backbone, in_channels=channels), seed=1)
    with torch.no_grad():
        for _ in range(5):
            encoder(torch.rand(8, channels, *[32] * encoder.dimensions))
    return encoder.eval()


def levels_of(unet: Any, pixels: Tensor) -> list[Tensor]:
    found = [unet.conv_0(pixels)]
    for level in range(1, 5):
        found.append(getattr(unet, f"down_{level}")(found[-1]))
    return found


@pytest.mark.parametrize(
    ("channels", "backbone", "sides"), [(1, "unet4", (48, 64)), (3, "unet4", (48, 64)), (1, "unet3d2", (16, 32, 48))]
)
def test_monai_gives_the_levels_of_the_encoder_and_back(channels: int, backbone: str, sides: tuple[int, ...]) -> None:
    encoder, images = encoder_of(channels, backbone), torch.rand(2, channels, *sides)
    unet = to_monai(encoder, num_classes=2)
    back = from_monai(unet, mean=0.5, std=0.25)
    with torch.no_grad():
        expected = encoder(images, levels=True).levels
        found = levels_of(unet, (images - encoder.mean) / encoder.std)
        again = back(images, levels=True).levels
    for one, other, third in zip(expected, found, again, strict=True):
        largest = float(one.abs().max())
        torch.testing.assert_close(other, one, rtol=0, atol=1e-5 * largest)
        torch.testing.assert_close(third, one, rtol=0, atol=1e-5 * largest)


def test_what_was_trained_on_in_monai_comes_back() -> None:
    unet: Any = to_monai(encoder_of(), num_classes=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in unet.named_parameters():
            if not name.startswith("up"):
                value.add_(0.1 * torch.randn(value.shape, generator=generator))
        for name, value in unet.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                value.add_(0.1 * torch.rand(value.shape, generator=generator))
        pixels = torch.randn(2, 1, 32, 32, generator=generator)
        expected, found = levels_of(unet, pixels), from_monai(unet)(pixels, levels=True).levels
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-5 * float(one.abs().max()))


def test_other_networks_are_refused() -> None:
    with pytest.raises(EncoderError, match="found r18w32"):
        to_monai(build_encoder(EncoderSpec(backbone="r18w32"), seed=0), num_classes=2)
    features = (4, 8, 16, 32, 64, 4)
    leaky = ("leakyrelu", {"negative_slope": 0.01})
    for arguments, said in (
        ({}, "conv_0.conv_0: expected a Conv2d with bias and a BatchNorm2d, found Conv2d and InstanceNorm2d"),
        ({"norm": "batch"}, "conv_0.conv_0: expected LeakyReLU of slope 0.01, found LeakyReLU"),
        ({"norm": "batch", "act": leaky}, "down_4.convs.conv_0: expected ReLU, as in PCL's centre, found LeakyReLU"),
    ):
        with pytest.raises(EncoderError, match=said):
            from_monai(BasicUNet(spatial_dims=2, features=features, **arguments))
    with pytest.raises(EncoderError, match="expected a BasicUNet of MONAI, found Linear"):
        from_monai(torch.nn.Linear(2, 2))
