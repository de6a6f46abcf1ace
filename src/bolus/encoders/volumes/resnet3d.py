"""MONAI's ResNets of volumes as a transformers backbone.

They are those of MedicalNet (arXiv:1904.00625), after Hara et al. (arXiv:1711.09577). MONAI, which takes seconds to
import, is imported when one is made. Dimension letters: B volumes, C channels, D, H and W voxels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from bolus.errors import EncoderError, require, suggest

# MONAI's own table: kind of block, blocks of each stage, kind of shortcut (A: every so many voxels and zeros for the
# channels that are missing, B: a strided 1 x 1 x 1 convolution), and whether that convolution has a bias.
ARCHITECTURES: dict[str, tuple[str, tuple[int, ...], str, bool]] = {
    "resnet10": ("basic", (1, 1, 1, 1), "B", False),
    "resnet18": ("basic", (2, 2, 2, 2), "A", True),
    "resnet50": ("bottleneck", (3, 4, 6, 3), "B", False),
}


class ResNet3dConfig(BackboneConfigMixin, PreTrainedConfig):  # type: ignore[misc]
    """What a ResNet of volumes is made of.

    Args:
        architecture: one of `ARCHITECTURES`, blocks and shortcuts as in MONAI and MedicalNet.
        num_channels: of the volumes.
        width: channels of the first stage; they double with every stage (64 in MONAI).
        stem_stride: of the first convolution, 7 x 7 x 7; 2 in MedicalNet, to which a max-pool adds another 2.
        out_features, out_indices: the maps that the backbone gives, as in any of transformers; here all by default.

    Raises:
        EncoderError: an unknown architecture, or a number below 1.

    Example:
        >>> config = ResNet3dConfig(architecture="resnet50")
        >>> config.embedding_size, config.hidden_sizes, config.dimensions
        (64, [256, 512, 1024, 2048], 3)
    """

    model_type = "bolus_resnet3d"

    architecture: str = "resnet18"
    num_channels: int = 1
    width: int = 64
    stem_stride: int = 2
    dimensions: int = 3

    def __post_init__(self, **kwargs: Any) -> None:
        if self.architecture not in ARCHITECTURES:
            raise EncoderError(
                f"{self.model_type}: expected architecture one of {', '.join(ARCHITECTURES)}, found "
                f"{self.architecture!r}; {suggest(str(self.architecture), ARCHITECTURES)}"
            )
        for name in ("num_channels", "width", "stem_stride"):
            if getattr(self, name) < 1:
                raise EncoderError(f"{self.model_type}: expected {name} of at least 1, found {getattr(self, name)}")
        self.stage_names = ["stem", *(f"stage{number}" for number in range(1, 5))]
        indices, names = kwargs.pop("out_indices", None), kwargs.pop("out_features", None)
        if indices is None and names is None:
            names = list(self.stage_names)
        self.set_output_features_output_indices(out_indices=indices, out_features=names)
        super().__post_init__(**kwargs)

    @property
    def embedding_size(self) -> int:
        """Channels of the stem."""
        return self.width

    @property
    def hidden_sizes(self) -> list[int]:
        """Channels of the four stages."""
        expansion = 4 if ARCHITECTURES[self.architecture][0] == "bottleneck" else 1
        return [self.width * expansion * 2**stage for stage in range(4)]


class ResNet3dBackbone(BackboneMixin, PreTrainedModel):  # type: ignore[misc]
    """MONAI's ResNet up to its last map, at a 32nd of the volume's size.

    One thing differs from MONAI's code, which leaves the gradient out of shortcuts of kind A: here it goes through
    them. What comes out is the same.

    Args:
        config: ResNet3dConfig.

    Attributes:
        stem: the first convolution with its norm and activation.
        pool: the max-pool after it.
        stages: four lists of residual blocks.

    Example:
        >>> backbone = ResNet3dBackbone(ResNet3dConfig(architecture="resnet10", width=4)).eval()
        >>> [tuple(level.shape[1:]) for level in backbone(torch.rand(1, 1, 32, 48, 64)).feature_maps]
        [(4, 16, 24, 32), (4, 8, 12, 16), (8, 4, 6, 8), (16, 2, 3, 4), (32, 1, 2, 2)]
    """

    config_class = ResNet3dConfig
    base_model_prefix = "resnet3d"
    main_input_name = "pixel_values"
    has_attentions = False

    def __init__(self, config: ResNet3dConfig) -> None:
        super().__init__(config)
        block, depths, shortcut, bias = ARCHITECTURES[config.architecture]
        net: Any = require("monai.networks.nets.resnet", "ResNets of volumes").ResNet(
            block,
            list(depths),
            [config.width * 2**stage for stage in range(4)],
            n_input_channels=config.num_channels,
            conv1_t_stride=config.stem_stride,
            shortcut_type=shortcut,
            bias_downsample=bias,
            feed_forward=False,
        )
        self.stem = nn.Sequential(net.conv1, net.bn1, net.act)
        self.pool = net.maxpool
        self.stages = nn.ModuleList([net.layer1, net.layer2, net.layer3, net.layer4])
        for first in (stage[0] for stage in (net.layer1, net.layer2, net.layer3, net.layer4)):
            if first.downsample is not None and not isinstance(first.downsample, nn.Module):
                out_channels = first.conv2.out_channels
                del first.downsample
                first.downsample = PaddedShortcut(first.stride, out_channels)
        self.num_features = [config.embedding_size, *config.hidden_sizes]
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        """The maps in `out_features`, shallow to deep.

        Args:
            pixel_values: `[B, C, D, H, W]` float, normalised.
            kwargs: what other transformers backbones take. `output_hidden_states` also gives all maps, and
                `return_dict: false` a tuple; the rest changes nothing.

        Returns:
            BackboneOutput; maps are `[B, C', D / s, H / s, W / s]`, rounded up, of s 2, 4 ... 32.
        """
        x = self.stem(pixel_values)
        states = [x]
        x = self.pool(x)
        for stage in self.stages:
            x = stage(x)
            states.append(x)
        maps = tuple(state for name, state in zip(self.stage_names, states, strict=True) if name in self.out_features)
        output = BackboneOutput(
            feature_maps=maps, hidden_states=tuple(states) if kwargs.get("output_hidden_states") else None
        )
        return output if kwargs.get("return_dict") is not False else output.to_tuple()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv3d):  # MONAI's; tensors that transformers has loaded stay
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm3d):
            init.ones_(module.weight)
            init.zeros_(module.bias)


class PaddedShortcut(nn.Module):
    """A shortcut without weights: every so many voxels along each axis, and zeros for the channels that are missing.

    Args:
        stride: of the block that it goes around.
        channels: that come out.

    Example:
        >>> PaddedShortcut(2, 3)(torch.ones(1, 2, 3, 3, 3))[0, :, 0, 0, 0].tolist()
        [1.0, 1.0, 0.0]
    """

    def __init__(self, stride: int, channels: int) -> None:
        super().__init__()
        self.stride, self.channels = stride, channels

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, D, H, W]` to `[B, channels, ceil(D / stride), ceil(H / stride), ceil(W / stride)]`."""
        x = x[:, :, :: self.stride, :: self.stride, :: self.stride]
        missing = x.new_zeros(x.shape[0], self.channels - x.shape[1], *x.shape[2:])
        return torch.cat([x, missing], dim=1)


AutoConfig.register(ResNet3dConfig.model_type, ResNet3dConfig)
AutoBackbone.register(ResNet3dConfig, ResNet3dBackbone)
