"""A strided 1 x 1 convolution of few channels, computed around a fault of oneDNN, torch's convolutions on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

# In channels-last memory, oneDNN writes the gradient of such a convolution's weights past its own workspace if a group
# has fewer input channels than a vector register holds numbers: 8 with AVX2, 16 with AVX-512. The process aborts or
# the gradients are wrong (https://github.com/uxlfoundation/oneDNN/issues/6035, open with torch 2.13).
REGISTER = 16


def stride_ahead(module: nn.Module) -> None:
    """Let 1 x 1 convolutions of few channels take the pixels that their stride reaches first, and convolve only those.

    The same numbers on every device. Afterwards such a convolution has stride 1 and a hook; other modules, weights and
    their names stay as they are.

    Args:
        module: whose convolutions are changed, in place.

    Example:
        >>> import torch
        >>> module = nn.Conv2d(4, 8, kernel_size=1, stride=2)
        >>> x = torch.rand(2, 4, 7, 7)
        >>> expected = module(x)
        >>> stride_ahead(module)
        >>> module.stride, torch.allclose(module(x), expected)
        ((1, 1), True)
    """
    for convolution in module.modules():
        if not isinstance(convolution, nn.Conv2d | nn.Conv3d):
            continue
        few = convolution.in_channels // convolution.groups < REGISTER
        one = max(convolution.kernel_size) == 1 and convolution.padding in ((0,) * len(convolution.stride), "valid")
        if few and one and max(convolution.stride) > 1:
            convolution.register_forward_pre_hook(_Thin(convolution.stride))
            convolution.stride = (1,) * len(convolution.stride)


@dataclass(eq=False)
class _Thin:
    """A forward pre-hook that takes every so many rows and columns; an object, so that a deep copy takes it along."""

    strides: tuple[int, ...]

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x: Tensor = inputs[0]
        places: tuple[slice, ...] = tuple(slice(None, None, stride) for stride in self.strides)
        return x[:, :, *places], *inputs[1:]
