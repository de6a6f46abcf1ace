"""A U-Net's contracting side as a transformers backbone, and the expanding side that turns any encoder's maps to masks.

The network is that of PCL (arXiv:2106.09157), on which GCL (arXiv:2309.08888) builds; only the encoder is pretrained
and moves to other tasks, the decoder always starts fresh. MONAI, which takes seconds to import, is imported when a
U-Net or a decoder is made. Dimension letters: B images, C channels, K classes, H and W pixels of the image, h and w
of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from bolus.encoders.features import FeatureShape
from bolus.encoders.parts.layout import lay_out
from bolus.errors import EncoderError, UsageError, require

SLOPE = 0.01  # of the LeakyReLUs, in PCL's code
FINEST = 4  # an encoder without levels is upsampled by twos while a pixel of the map is at least so many of the image


class UNetConfig(BackboneConfigMixin, PreTrainedConfig):  # type: ignore[misc]
    """What a U-Net's contracting side is made of.

    Args:
        num_channels: of the images.
        base_filters: f, the channels at full size; they double with every level (48 or 32 in PCL).
        depth: levels before the centre, so many halvings of the image.
        out_features, out_indices: the levels that the backbone gives, as in any of transformers; here all by default.

    Raises:
        EncoderError: a number below 1.

    Example:
        >>> config = UNetConfig(base_filters=8)
        >>> config.hidden_sizes, config.out_features
        ([8, 16, 32, 64, 128], ['level1', 'level2', 'level3', 'level4', 'centre'])
    """

    model_type = "bolus_unet"

    num_channels: int = 1
    base_filters: int = 32
    depth: int = 4

    def __post_init__(self, **kwargs: Any) -> None:
        for name in ("num_channels", "base_filters", "depth"):
            if getattr(self, name) < 1:
                raise EncoderError(f"{self.model_type}: expected {name} of at least 1, found {getattr(self, name)}")
        self.stage_names = [*(f"level{level}" for level in range(1, self.depth + 1)), "centre"]
        indices, names = kwargs.pop("out_indices", None), kwargs.pop("out_features", None)
        if indices is None and names is None:
            names = list(self.stage_names)
        self.set_output_features_output_indices(out_indices=indices, out_features=names)
        super().__post_init__(**kwargs)

    @property
    def hidden_sizes(self) -> list[int]:
        """Channels of the levels, the centre last."""
        return [self.base_filters * 2**level for level in range(self.depth + 1)]


class UNetBackbone(BackboneMixin, PreTrainedModel):  # type: ignore[misc]
    """PCL's encoder: f, 2f, 4f, 8f channels and a centre of 16f, a 2 x 2 max-pool between them.

    As in PCL's code: a level is twice 3 x 3 convolution, BatchNorm, LeakyReLU; the centre twice 3 x 3 convolution,
    ReLU, without a norm; weights are He's, biases 0. Convolutions before a norm have no bias here, which the norm
    would take away. Odd maps lose their last row or column in the pooling.

    Args:
        config: UNetConfig.

    Attributes:
        stages: the levels, all but the first with the pooling before it; the last is the centre.

    Example:
        >>> backbone = UNetBackbone(UNetConfig(base_filters=2))
        >>> [tuple(level.shape[1:]) for level in backbone(torch.rand(1, 1, 32, 48)).feature_maps]
        [(2, 32, 48), (4, 16, 24), (8, 8, 12), (16, 4, 6), (32, 2, 3)]
    """

    config_class = UNetConfig
    base_model_prefix = "unet"
    main_input_name = "pixel_values"
    has_attentions = False
    dimensions = 2  # of the images; bolus.encoders.volumes.unet3d has three

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        widths, dimensions = config.hidden_sizes, self.dimensions
        self.num_features = widths
        self.stages = nn.ModuleList([_two_convolutions(config.num_channels, widths[0], dimensions)])
        for before, width in pairwise(widths):
            convolutions = _two_convolutions(before, width, dimensions, norm=width != widths[-1])
            pool = nn.MaxPool2d(2) if dimensions == 2 else nn.MaxPool3d(2)
            self.stages.append(nn.Sequential(pool, *convolutions))
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        """The maps of the levels in `out_features`, shallow to deep.

        Args:
            pixel_values: `[B, C, H, W]` float, normalised; of volumes, `[B, C, D, H, W]`.
            kwargs: what other transformers backbones take. `output_hidden_states` also gives all levels, and
                `return_dict: false` a tuple; the rest changes nothing.

        Returns:
            BackboneOutput; maps are `[B, f * 2^i, H / 2^i, W / 2^i]`, rounded down.

        Raises:
            EncoderError: images of which the poolings leave nothing.
        """
        smallest = 2**self.config.depth
        if min(pixel_values.shape[2:]) < smallest:
            least = " x ".join([str(smallest)] * (pixel_values.ndim - 2))
            raise EncoderError(
                f"expected images of at least {least} pixels for a U-Net of {self.config.depth} "
                f"poolings, found {' x '.join(str(side) for side in pixel_values.shape[2:])}"
            )
        states, x = [], pixel_values
        for stage in self.stages:
            x = stage(x)
            states.append(x)
        maps = tuple(state for name, state in zip(self.stage_names, states, strict=True) if name in self.out_features)
        output = BackboneOutput(
            feature_maps=maps, hidden_states=tuple(states) if kwargs.get("output_hidden_states") else None
        )
        return output if kwargs.get("return_dict") is not False else output.to_tuple()

    def _init_weights(self, module: nn.Module) -> None:
        _he(module)


class MaskDecoder(nn.Module):
    """Class scores for every pixel from an encoder's maps: the expanding side of a U-Net, for any encoder.

    For a U-Net it is PCL's decoder: up to the next level by a 2 x 2 transposed convolution of stride 2, that level
    beside it, twice 3 x 3 convolution, BatchNorm, LeakyReLU; at the end a 1 x 1 convolution. Ours is the rest: between
    levels of other strides the transposed convolution has their ratio; where maps were rounded, the upsampled map is
    cropped, or its last row or column repeated, at the far side; where the finest level is coarser than the image,
    the scores are resized bilinearly. Without levels (a ViT) the grid alone is upsampled by twos, with half the
    channels each time, to a stride below 4, then its scores bilinearly. Over an encoder of volumes all of it has
    three axes, each with its own ratio.

    Weights are drawn from the global random state; `bolus.encoders.backbone.seeded` makes them a function of a seed.

    Args:
        shape: of the encoder whose maps come in.
        num_classes: K, with the background.

    Raises:
        UsageError: fewer than two classes.

    Example:
        >>> from bolus.encoders.building import build_encoder
        >>> from bolus.recipe import EncoderSpec
        >>> encoder = build_encoder(EncoderSpec(backbone="unet4"), seed=0)
        >>> decoder = MaskDecoder(encoder.shape, num_classes=3)
        >>> maps = encoder(torch.rand(2, 1, 50, 64), levels=True)
        >>> decoder(maps.levels, maps.grid, (50, 64)).shape
        torch.Size([2, 3, 50, 64])
    """

    def __init__(self, shape: FeatureShape, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise UsageError(f"expected at least 2 classes, the background among them, found {num_classes}")
        self.shape = shape
        skips = list(shape.levels)
        if skips and (skips[-1].channels, skips[-1].strides) == (shape.grid_channels, shape.grid_strides):
            skips.pop()  # the grid itself
        self._num_skips = len(skips)
        width, strides = shape.grid_channels, shape.grid_strides
        self.steps = nn.ModuleList()
        for skip in reversed(skips):
            ratios = [max(1, round(stride / finer)) for stride, finer in zip(strides, skip.strides, strict=True)]
            self.steps.append(_Up(width, skip.channels, ratios, skip=skip.channels))
            width, strides = skip.channels, skip.strides
        while not shape.levels and max(strides) >= FINEST:
            halved = max(1, width // 2)
            self.steps.append(_Up(width, halved, [2 if stride >= FINEST else 1 for stride in strides]))
            width, strides = halved, tuple(stride // 2 if stride >= FINEST else stride for stride in strides)
        self.head = (nn.Conv2d if shape.dimensions == 2 else nn.Conv3d)(width, num_classes, kernel_size=1)
        self.apply(_he)
        lay_out(self)

    def forward(self, levels: Sequence[Tensor], grid: Tensor, size: Sequence[int]) -> Tensor:
        """Scores before the softmax.

        Args:
            levels: `[B, C, h, w]` float each, those the encoder announces, shallow to deep; empty where it has none.
                Of volumes, `[B, C, d, h, w]`.
            grid: the last map, `[B, C, h, w]` float; of volumes, `[B, C, d, h, w]`.
            size: H and W of the image, in pixels; of a volume, D, H and W.

        Returns:
            `[B, K, H, W]`, dtype of the input (of autocast where that is on); of volumes, `[B, K, D, H, W]`.

        Raises:
            EncoderError: other levels than the encoder announces.
        """
        expected = [level.channels for level in self.shape.levels]
        found = [level.shape[1] for level in levels]
        if found != expected:
            raise EncoderError(f"expected the encoder's levels, of {expected} channels, found {found}")
        x = grid
        skips: list[Tensor | None] = [*reversed(levels[: self._num_skips])]
        for step, skip in zip(self.steps, skips or [None] * len(self.steps), strict=True):
            x = step(x, skip)
        scores: Tensor = self.head(x)
        if scores.shape[2:] == torch.Size(size):
            return scores
        mode = "bilinear" if scores.ndim == 4 else "trilinear"
        return F.interpolate(scores, size=tuple(size), mode=mode, align_corners=False)


class _Up(nn.Module):
    """Upsample a map, lay a level beside it where there is one, and convolve twice."""

    def __init__(self, before: int, width: int, ratios: Sequence[int], *, skip: int = 0) -> None:
        super().__init__()
        dimensions = len(ratios)
        self.upsample = require("monai.networks.blocks.upsample", "decoders of masks").UpSample(
            dimensions, before, width, scale_factor=tuple(ratios), mode="deconv"
        )
        self.convolutions = _two_convolutions(width + skip, width, dimensions)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = self.upsample(x)
        if skip is not None:
            x = torch.cat([_fit(x, *skip.shape[2:]), skip], dim=1)
        convolved: Tensor = self.convolutions(x)
        return convolved


def _fit(x: Tensor, *sides: int) -> Tensor:
    """Crop at the far side, or repeat the last row or column; what strides begins at the near one."""
    for axis, side in enumerate(sides, start=2):
        x = x.narrow(axis, 0, min(side, x.shape[axis]))
        if missing := side - x.shape[axis]:
            last = x.narrow(axis, x.shape[axis] - 1, 1)
            x = torch.cat([x, last.expand(*(missing if at == axis else -1 for at in range(x.ndim)))], dim=axis)
    return x


def _two_convolutions(before: int, width: int, dimensions: int, *, norm: bool = True) -> nn.Sequential:
    """Twice a convolution of 3 along each axis, with BatchNorm and LeakyReLU, or with ReLU alone."""
    convolution = require("monai.networks.blocks.convolutions", "U-Nets and decoders of masks").Convolution
    act = ("leakyrelu", {"negative_slope": SLOPE}) if norm else "relu"
    return nn.Sequential(
        *(
            convolution(dimensions, channels, width, act=act, norm="batch" if norm else None, bias=not norm)
            for channels in (before, width)
        )
    )


def _he(module: nn.Module) -> None:
    """He's weights for a convolution, as in PCL's code; tensors that transformers has loaded stay."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Conv3d, nn.ConvTranspose3d)):
        init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            init.zeros_(module.bias)


# Whoever imports this module can read a configuration of this type; bolus.encoders.families.hub does.
AutoConfig.register(UNetConfig.model_type, UNetConfig)
AutoBackbone.register(UNetConfig, UNetBackbone)
