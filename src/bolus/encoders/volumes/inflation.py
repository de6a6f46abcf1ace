"""A convolutional backbone of images becomes one of volumes: each kernel is repeated over depth and divided by it.

Inflation as in I3D (Carreira and Zisserman, arXiv:1705.07750): of a volume that is constant along its depth, the
inflated network gives in its interior what the network gives of one slice; at the two ends zeros come in by padding, as
at the borders of an image. Strides, paddings and pools along depth are those along height.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bolus.errors import EncoderError

INFLATABLE = ("resnet", "bolus_efficientnet_lite", "bolus_unet")
"""Types of backbone whose layers all have a counterpart in three dimensions."""


def inflate(backbone: nn.Module, name: str) -> None:
    """Give a backbone of images a third dimension, in place; its configuration says so afterwards.

    Names of weights stay. Whatever is not a convolution, a BatchNorm or a pool stays as it is.

    Args:
        backbone: a transformers backbone.
        name: of it, for the message.

    Raises:
        EncoderError: a backbone of another type, such as a vision transformer, or one of volumes.

    Example:
        >>> from bolus.encoders.families.hub import find_config, make_backbone
        >>> backbone = make_backbone(find_config("unet2"), "unet2")
        >>> inflate(backbone, "unet2")
        >>> backbone(torch.rand(1, 1, 16, 16, 32)).feature_maps[-1].shape
        torch.Size([1, 32, 1, 1, 2])
    """
    config: Any = backbone.config
    if config.model_type not in INFLATABLE:
        if getattr(config, "dimensions", 2) == 3:
            raise EncoderError(f"encoder.inflated: {name} is of volumes already; set it to false")
        raise EncoderError(
            f"encoder.inflated: expected a convolutional backbone that bolus can inflate ({', '.join(INFLATABLE)}), "
            f"such as resnet18 or efficientnet_lite0; found {name}, a {config.model_type}, whose patches, positions or "
            "norms are of images"
        )
    config.dimensions = 3
    for path, module in list(backbone.named_modules()):
        if path and (thick := _thick(module)) is not None:
            thick.train(module.training)
            backbone.set_submodule(path, thick)


def inflate_weights(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a network of images as those of its inflated twin.

    Args:
        given: name -> weights.
        wanted: name -> weights of the twin; of each name it tells the length of the kernel along depth.

    Returns:
        name -> weights, repeated and divided where the twin has one dimension more; others as they are.

    >>> kernel = torch.ones(1, 1, 3, 3)
    >>> inflate_weights({"k": kernel}, {"k": torch.empty(1, 1, 3, 3, 3)})["k"].sum(2).allclose(kernel)
    True
    """
    return {
        name: _repeated(value, wanted[name].shape[2])
        if name in wanted and wanted[name].ndim == value.ndim + 1 and value.ndim == 4
        else value
        for name, value in given.items()
    }


def _repeated(kernel: Tensor, depth: int) -> Tensor:
    """`[O, I, h, w]` to `[O, I, depth, h, w]`, which sums to the kernel along depth."""
    return (kernel.unsqueeze(2) / depth).repeat(1, 1, depth, 1, 1)


def _thick(module: nn.Module) -> nn.Module | None:
    """The counterpart of a layer in three dimensions, with its weights; None where it needs none."""
    if isinstance(module, nn.Conv2d):
        assert module.padding_mode == "zeros", "another padding than zeros"
        assert not isinstance(module.padding, str), "a padding by name"
        convolution = nn.Conv3d(
            module.in_channels,
            module.out_channels,
            _first_again(module.kernel_size),
            _first_again(module.stride),
            _first_again(module.padding),
            _first_again(module.dilation),
            module.groups,
            bias=module.bias is not None,
        )
        with torch.no_grad():
            convolution.weight.copy_(_repeated(module.weight, convolution.kernel_size[0]))
            if module.bias is not None:
                assert convolution.bias is not None
                convolution.bias.copy_(module.bias)
        return convolution
    if isinstance(module, nn.BatchNorm2d):
        norm = nn.BatchNorm3d(module.num_features, module.eps, module.momentum, module.affine)
        norm.load_state_dict(module.state_dict())
        return norm
    if isinstance(module, nn.MaxPool2d):
        kernel, stride, padding, dilation = (
            _thrice(each) for each in (module.kernel_size, module.stride, module.padding, module.dilation)
        )
        return nn.MaxPool3d(kernel, stride, padding, dilation, ceil_mode=module.ceil_mode)
    return None


def _first_again(sizes: tuple[int, ...]) -> tuple[int, int, int]:
    height, width = sizes
    return (height, height, width)


def _thrice(size: int | tuple[int, ...]) -> tuple[int, int, int]:
    return (size, size, size) if isinstance(size, int) else _first_again(size)
