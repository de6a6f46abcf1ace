"""The U-Net's contracting side of volumes: PCL's, with three axes for two. No paper of bolus states one: inferred."""

from __future__ import annotations

from transformers import AutoBackbone, AutoConfig

from bolus.encoders.families.unet import UNetBackbone, UNetConfig


class UNet3dConfig(UNetConfig):
    """What a U-Net's contracting side is made of, as UNetConfig says; it halves the depth with height and width.

    >>> UNet3dConfig(base_filters=8).hidden_sizes, UNet3dConfig().dimensions
    ([8, 16, 32, 64, 128], 3)
    """

    model_type = "bolus_unet3d"
    dimensions: int = 3


class UNet3dBackbone(UNetBackbone):
    """UNetBackbone of volumes `[B, C, D, H, W]`: convolutions of 3 x 3 x 3, max-pools of 2 x 2 x 2, all else alike.

    Example:
        >>> import torch
        >>> backbone = UNet3dBackbone(UNet3dConfig(base_filters=2, depth=2))
        >>> [tuple(level.shape[1:]) for level in backbone(torch.rand(1, 1, 8, 12, 16)).feature_maps]
        [(2, 8, 12, 16), (4, 4, 6, 8), (8, 2, 3, 4)]
    """

    config_class = UNet3dConfig
    base_model_prefix = "unet3d"
    dimensions = 3


AutoConfig.register(UNet3dConfig.model_type, UNet3dConfig)
AutoBackbone.register(UNet3dConfig, UNet3dBackbone)
