"""The plain vision transformer (ViT, arXiv:2010.11929; MAE, arXiv:2111.06377) as a transformers backbone.

transformers has models of the types `vit` and `vit_mae`, but no backbones. This one is made of their own layers, and
masks nothing. Names of dimensions: B images, C channels, H and W pixels, D the width, h and w patches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, ViTConfig, ViTMAEModel, ViTModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.models.vit.modeling_vit import ViTEmbeddings, ViTLayer, ViTPreTrainedModel

from bolus.errors import EncoderError

MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "vit": (ViTModel, {"add_pooling_layer": False}),
    "vit_mae": (ViTMAEModel, {}),
}
"""By transformers model type: what reads a file of weights, and how; its modules have the names of those here."""

SHARED = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps", "num_channels",
    "qkv_bias",
)  # fmt: skip
"""Keys of ViTConfig that `vit`, `vit_mae` and PlainViTConfig have in common, but the two sides."""


class PlainViTConfig(BackboneConfigMixin, ViTConfig):  # type: ignore[misc]
    """What a plain vision transformer is made of: the keys of transformers' ViTConfig, and one.

    Args:
        pooled: what the pooled feature is: `token`, the CLS token; or `mean`, the mean of the patches, which takes the
            CLS token's place before the last norm (`fc_norm` of timm).

    Raises:
        EncoderError: another `pooled`, images or patches that are no squares.

    Example:
        >>> PlainViTConfig(hidden_size=64, image_size=32, patch_size=8).out_features
        ['last']
    """

    model_type = "bolus_vit"

    image_size: int = 224
    patch_size: int = 16
    pooled: str = "token"

    def __post_init__(self, **kwargs: Any) -> None:
        if self.pooled not in ("token", "mean"):
            raise EncoderError(f"{self.model_type}: expected pooled token or mean, found {self.pooled!r}")
        self.image_size, self.patch_size = _side(self.image_size), _side(self.patch_size)
        self.stage_names = ["last"]
        kwargs.pop("out_indices", None)
        self.set_output_features_output_indices(out_indices=None, out_features=kwargs.pop("out_features", None))
        super().__post_init__(**kwargs)


class PlainViTBackbone(BackboneMixin, ViTPreTrainedModel):  # type: ignore[misc]
    """A vision transformer up to its last norm, over all patches of an image of any multiple of the patch.

    Positions are interpolated as transformers does with `interpolate_pos_encoding`. Nothing is masked or shuffled.

    Args:
        config: PlainViTConfig.

    Attributes:
        layers: the L blocks.
        layernorm: the last norm; its output `[B, 1 + h * w, D]` starts with what is pooled.

    Example:
        >>> config = PlainViTConfig(
        ...     hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32,
        ...     patch_size=8)
        >>> backbone = PlainViTBackbone(config).eval()
        >>> backbone(torch.rand(1, 3, 32, 48)).feature_maps[-1].shape
        torch.Size([1, 16, 4, 6])
    """

    config_class = PlainViTConfig

    def __init__(self, config: PlainViTConfig) -> None:
        super().__init__(config)
        self.num_features = [config.hidden_size]
        self.embeddings = ViTEmbeddings(config)
        self.layers = nn.ModuleList([ViTLayer(config) for _ in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        """The map of patches after the last norm.

        Args:
            pixel_values: `[B, C, H, W]` float, normalised; H and W are multiples of the patch.
            kwargs: of them, `return_dict: false` gives a tuple; the rest changes nothing.

        Returns:
            BackboneOutput with one map `[B, D, h, w]`.
        """
        x_BND = self.embeddings(pixel_values, interpolate_pos_encoding=True)
        for layer in self.layers:
            x_BND = layer(x_BND)
        if self.config.pooled == "mean":
            patches = x_BND[:, 1:]
            x_BND = torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1)
        x_BND = self.layernorm(x_BND)
        sides = [pixels // self.config.patch_size for pixels in pixel_values.shape[-2:]]
        grid = x_BND[:, 1:].transpose(1, 2).unflatten(2, sides).contiguous()
        output = BackboneOutput(feature_maps=(grid,))
        return output if kwargs.get("return_dict") is not False else output.to_tuple()

    def positions_at(self, size: int) -> torch.Tensor:
        """The positions `[1, 1 + h * w, D]` that are added to images of a side of so many pixels, without gradients.

        >>> config = PlainViTConfig(hidden_size=16, num_attention_heads=2, image_size=32, patch_size=8)
        >>> PlainViTBackbone(config).positions_at(48).shape
        torch.Size([1, 37, 16])
        """
        places = torch.empty(1, 1 + (size // self.config.patch_size) ** 2, self.config.hidden_size)
        with torch.no_grad():
            found: torch.Tensor = self.embeddings.interpolate_pos_encoding(places, size, size)
        return found


def plain_config(theirs: PreTrainedConfig) -> PlainViTConfig:
    """The configuration of a backbone for a model of type `vit` or `vit_mae`; what only MAE's decoder needs is gone.

    Raises:
        EncoderError: images or patches that are no squares.

    >>> plain_config(ViTConfig(hidden_size=384, num_attention_heads=6)).num_attention_heads
    6
    """
    shared = {key: getattr(theirs, key) for key in SHARED}
    return PlainViTConfig(**shared, image_size=_side(theirs.image_size), patch_size=_side(theirs.patch_size))


def read_plain(name: str, model_type: str, config: PlainViTConfig) -> tuple[PlainViTBackbone, list[str]]:
    """A backbone with the weights of a `vit` or `vit_mae` file, and the names of weights that the file lacks.

    transformers' own model reads the file, so that heads and decoders may be in it, and older names are known.

    Args:
        name: a folder or a hub name, as of `from_pretrained`.
        model_type: of the file, a key of MODELS.
        config: as `plain_config` makes it of the file's.
    """
    model, keywords = MODELS[model_type]
    found, report = model.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **keywords)
    backbone = PlainViTBackbone(config)
    backbone.load_state_dict(found.state_dict())
    return backbone, sorted(str(key) for key in report["missing_keys"])


def _side(pixels: Any) -> int:
    sides = list(pixels) if isinstance(pixels, (list, tuple)) else [pixels]
    if len(set(sides)) != 1:
        raise EncoderError(f"{PlainViTConfig.model_type}: expected square images and patches, found sides {sides}")
    return int(sides[0])


AutoConfig.register(PlainViTConfig.model_type, PlainViTConfig)
AutoBackbone.register(PlainViTConfig, PlainViTBackbone)
