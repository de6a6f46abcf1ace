"""The encoder of Swin-UNETR (arXiv:2201.01266), MONAI's Swin transformer of volumes, as a transformers backbone.

The convolutions that Swin-UNETR lays between this encoder and its decoder belong to the decoder: published weights of
self-supervised training (arXiv:2111.14791) do not have them. MONAI is imported when one is made. Dimension letters: B
volumes, C channels, D, H and W voxels.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from bolus.errors import EncoderError, require


class SwinUnetrConfig(BackboneConfigMixin, PreTrainedConfig):  # type: ignore[misc]
    """What the encoder of a Swin-UNETR is made of; the defaults are MONAI's.

    Args:
        num_channels: of the volumes.
        feature_size: channels at half the volume's size, a multiple of 12; they double with every stage.
        depths: transformer blocks of the four stages.
        num_heads: of the four stages; each divides the stage's channels.
        window: voxels of a window's side.
        patch: voxels of a patch's side.
        drop_path_rate: how often the last block is left out in training; earlier ones in proportion.
        out_features, out_indices: the maps that the backbone gives, as in any of transformers; here all by default.

    Raises:
        EncoderError: a number out of range.

    Example:
        >>> SwinUnetrConfig(feature_size=12).hidden_sizes
        [12, 24, 48, 96, 192]
    """

    model_type = "bolus_swin_unetr"

    num_channels: int = 1
    feature_size: int = 24
    depths: list[int] | tuple[int, ...] = (2, 2, 2, 2)
    num_heads: list[int] | tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    patch: int = 2
    drop_path_rate: float = 0.0
    dimensions: int = 3

    def __post_init__(self, **kwargs: Any) -> None:
        if self.feature_size < 1 or self.feature_size % 12:
            raise EncoderError(f"{self.model_type}: expected a multiple of 12 features, found {self.feature_size}")
        least = min(self.num_channels, self.window, self.patch, *self.depths, *self.num_heads)
        if least < 1 or not len(self.depths) == len(self.num_heads) == 4 or not 0 <= self.drop_path_rate < 1:
            raise EncoderError(
                f"{self.model_type}: expected four depths and num_heads, these, num_channels, window and patch of at "
                f"least 1, drop_path_rate in [0, 1); found {list(self.depths)}, {list(self.num_heads)}, "
                f"{self.num_channels}, {self.window}, {self.patch}, {self.drop_path_rate}"
            )
        self.stage_names = ["patches", *(f"stage{number}" for number in range(1, 5))]
        indices, names = kwargs.pop("out_indices", None), kwargs.pop("out_features", None)
        if indices is None and names is None:
            names = list(self.stage_names)
        self.set_output_features_output_indices(out_indices=indices, out_features=names)
        super().__post_init__(**kwargs)

    @property
    def hidden_sizes(self) -> list[int]:
        """Channels of the patches and of the four stages."""
        return [self.feature_size * 2**stage for stage in range(5)]


class SwinUnetrBackbone(BackboneMixin, PreTrainedModel):  # type: ignore[misc]
    """The transformer of a Swin-UNETR, up to its last map, at a 32nd of the volume's size.

    As in Swin-UNETR, each map is normalised over its channels, without weights, where it leaves the encoder.

    Args:
        config: SwinUnetrConfig.

    Attributes:
        embed: volumes to patches.
        stages: four, each with the merging of patches at its end.

    Example:
        >>> import torch
        >>> backbone = SwinUnetrBackbone(SwinUnetrConfig(feature_size=12)).eval()
        >>> [tuple(level.shape[1:]) for level in backbone(torch.rand(1, 1, 32, 32, 64)).feature_maps]
        [(12, 16, 16, 32), (24, 8, 8, 16), (48, 4, 4, 8), (96, 2, 2, 4), (192, 1, 1, 2)]
    """

    config_class = SwinUnetrConfig
    base_model_prefix = "swin_unetr"
    main_input_name = "pixel_values"
    has_attentions = False

    def __init__(self, config: SwinUnetrConfig) -> None:
        super().__init__(config)
        net: Any = require("monai.networks.nets.swin_unetr", "encoders of Swin-UNETR").SwinTransformer(
            in_chans=config.num_channels,
            embed_dim=config.feature_size,
            window_size=(config.window,) * 3,
            patch_size=(config.patch,) * 3,
            depths=list(config.depths),
            num_heads=list(config.num_heads),
            drop_path_rate=config.drop_path_rate,
            spatial_dims=3,
        )
        self.embed = net.patch_embed
        layers = (net.layers1[0], net.layers2[0], net.layers3[0], net.layers4[0])
        self.stages = nn.ModuleList(_Stage(layer, config.window) for layer in layers)
        self.num_features = config.hidden_sizes
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
        x = self.embed(pixel_values)
        states = [_normalised(x)]
        for stage in self.stages:
            x = stage(x)
            states.append(_normalised(x))
        maps = tuple(state for name, state in zip(self.stage_names, states, strict=True) if name in self.out_features)
        output = BackboneOutput(
            feature_maps=maps, hidden_states=tuple(states) if kwargs.get("output_hidden_states") else None
        )
        return output if kwargs.get("return_dict") is not False else output.to_tuple()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):  # MONAI's: truncated at two deviations of 0.02, biases 0
            init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


class _Stage(nn.Module):
    """The blocks of a stage of MONAI's and its merging of patches, without the package einops, which theirs needs."""

    def __init__(self, layer: Any, window: int) -> None:
        super().__init__()
        self.blocks, self.downsample, self.window = layer.blocks, layer.downsample, window

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """`[B, C, D, H, W]` to `[B, 2 C, D / 2, H / 2, W / 2]`, rounded up."""
        nets: Any = require("monai.networks.nets.swin_unetr", "encoders of Swin-UNETR")
        x = x_BCDHW.movedim(1, -1).contiguous()
        sides = tuple(x.shape[1:4])
        window, shift = nets.get_window_size(sides, (self.window,) * 3, (self.window // 2,) * 3)
        whole = [-(-side // length) * length for side, length in zip(sides, window, strict=True)]
        mask = nets.compute_mask(whole, window, shift, x.device) if any(shift) else None
        for block in self.blocks:
            x = block(x, mask)
        merged: Tensor = self.downsample(x)
        return merged.movedim(-1, 1)


def _normalised(x_BCDHW: Tensor) -> Tensor:
    x = x_BCDHW.movedim(1, -1)
    return F.layer_norm(x, [x.shape[-1]]).movedim(-1, 1)


AutoConfig.register(SwinUnetrConfig.model_type, SwinUnetrConfig)
AutoBackbone.register(SwinUnetrConfig, SwinUnetrBackbone)
