"""Where the families of backbones that are known keep what is read from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """Where a family of backbones keeps what is read from it, as dotted module paths; None where it has no such thing.

    Args:
        stem: the first convolution with its norm and activation; its output is the first level.
        stem_pool: the max-pool after it.
        stages: a list of modules; each output is a level and feeds the next stage.
        tokens: the last norm, whose output `[B, tokens, D]` starts with the CLS token.
        blocks: the list of modules that the backbone runs one after the other: transformer blocks, stages of a
            convolutional network. What is registered before it is run before it, and what is registered after it,
            after it.
        maps: whether its levels are the maps of its own `out_features`, as of a backbone that is not here, although it
            has blocks.
        arguments: that every forward is given.
    """

    stem: str | None = None
    stem_pool: str | None = None
    stages: str | None = None
    tokens: str | None = None
    blocks: str | None = None
    maps: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)


def family_of(config: Any) -> Family | None:
    """The family of a transformers configuration, an inflated U-Net's being that of volumes; None: not known here."""
    inflated_unet = config.model_type == "bolus_unet" and getattr(config, "dimensions", 2) == 3
    return FAMILIES.get("bolus_unet3d" if inflated_unet else config.model_type)


# By transformers model type. A backbone that is not here, or has neither stages nor tokens here, gives the maps of its
# own `out_features` as levels.
FAMILIES: dict[str, Family] = {
    "resnet": Family(
        stem="embedder.embedder", stem_pool="embedder.pooler", stages="encoder.stages", blocks="encoder.stages"
    ),
    "bolus_efficientnet_lite": Family(stem="stem", stages="stages", blocks="stages"),
    "convnext": Family(stem="embeddings", stages="encoder.stages", blocks="encoder.stages"),
    "dinov3_convnext": Family(stem="model.stages.0.downsample_layers.1", stages="model.stages", blocks="model.stages"),
    "swin": Family(blocks="swin.encoder.layers", arguments={"interpolate_pos_encoding": True}),
    "bolus_vit": Family(tokens="layernorm", blocks="layers"),
    "dinov2": Family(tokens="layernorm", blocks="encoder.layer"),
    "dinov2_with_registers": Family(tokens="layernorm", blocks="encoder.layer"),
    "dinov3_vit": Family(tokens="norm", blocks="model.layer"),
    "vitdet": Family(blocks="encoder.layer"),
    "bolus_resnet3d": Family(stem="stem", stem_pool="pool", stages="stages", blocks="stages"),
    "bolus_unet3d": Family(blocks="stages", maps=True),
    "bolus_swin_unetr": Family(blocks="stages", maps=True),
}
