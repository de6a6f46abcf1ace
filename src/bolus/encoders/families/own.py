"""An encoder of your own: any factory that returns a module which turns images into maps or vectors.

It is kept as its import path, its arguments and its weights, and opened again by the same path; nothing is unpickled.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from bolus.errors import BolusError, EncoderError
from bolus.recipes.own import find_own

GROUP = "bolus.encoders"
_SIDE = 64  # of the images, and then volumes, that a module is tried on


class OwnConfig(BackboneConfigMixin, PreTrainedConfig):  # type: ignore[misc]
    """Where an own encoder comes from.

    Args:
        path: `package.module:name`, or the name of an entry point in the group `bolus.encoders`.
        arguments: of the factory; plain data.
        num_channels: of the images that the module takes.
        num_maps: how many maps it gives, shallow to deep.
        dimensions: 3 of a module of volumes.
    """

    model_type = "bolus_own"

    path: str = ""
    arguments: dict[str, Any] | None = None
    num_channels: int = 3
    num_maps: int = 1
    dimensions: int = 2

    def __post_init__(self, **kwargs: Any) -> None:
        self.stage_names = [f"map{number}" for number in range(1, self.num_maps + 1)]
        kwargs.pop("out_indices", None)
        names = kwargs.pop("out_features", None) or list(self.stage_names)
        self.set_output_features_output_indices(out_indices=None, out_features=names)
        super().__post_init__(**kwargs)


class OwnBackbone(BackboneMixin, PreTrainedModel):  # type: ignore[misc]
    """The module of an own encoder, behind the call of a transformers backbone; vectors are maps of one pixel."""

    config_class = OwnConfig
    base_model_prefix = "own"
    main_input_name = "pixel_values"
    has_attentions = False

    def __init__(self, config: OwnConfig) -> None:
        super().__init__(config)
        self.net = make_net(config.path, config.arguments or {}, config.num_channels)
        self.num_features = [1] * config.num_maps
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        """The maps of images `[B, C, H, W]`, each `[B, C', h, w]`; of volumes `[B, C, D, H, W]`, `[B, C', d, h, w]`."""
        maps = maps_of(self.net(pixel_values), self.config.path, self.config.dimensions)
        chosen = tuple(each for name, each in zip(self.stage_names, maps, strict=True) if name in self.out_features)
        output = BackboneOutput(feature_maps=chosen)
        return output if kwargs.get("return_dict") is not False else output.to_tuple()

    def _init_weights(self, module: nn.Module) -> None:
        """The factory has drawn, or loaded, every weight."""


def make_net(path: str, arguments: Mapping[str, Any], in_channels: int) -> nn.Module:
    """What the factory returns; `in_channels` is passed where it takes it.

    Raises:
        EncoderError: no such factory, arguments that it does not take, or something that is no module.
        RecipeError: a path that cannot be imported.
    """
    factory = find_own(path, GROUP, nn.Module)
    if factory is None or not callable(factory):
        raise EncoderError(f"{path}: expected a factory that returns a torch module, found {type(factory).__name__}")
    given = dict(arguments)
    if "in_channels" in inspect.signature(factory).parameters:
        given.setdefault("in_channels", in_channels)
    try:
        net = factory(**given)
    except TypeError as error:
        raise EncoderError(f"{path}: encoder.arguments {sorted(given)} do not fit: {error}") from error
    if not isinstance(net, nn.Module):
        raise EncoderError(f"{path}: expected a torch module, found {type(net).__name__}")
    return net


def maps_of(found: Any, path: str, dimensions: int = 2) -> list[Tensor]:
    """What a module returned, as maps `[B, C, h, w]`: one map, vectors `[B, D]`, or a list of maps.

    Args:
        found: what it returned.
        path: of its factory, for the message.
        dimensions: 3 of a module of volumes, whose maps are `[B, C, d, h, w]`.

    Raises:
        EncoderError: anything else.
    """
    listed = list(found) if isinstance(found, list | tuple) else [found]
    if listed and all(isinstance(each, Tensor) and each.ndim == 2 + dimensions for each in listed):
        return listed
    if len(listed) == 1 and isinstance(listed[0], Tensor) and listed[0].ndim == 2:
        return [listed[0][(..., *[None] * dimensions)]]
    shapes = [tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__ for each in listed]
    wanted = "[B, C, h, w]" if dimensions == 2 else "[B, C, d, h, w]"
    raise EncoderError(f"{path}: expected {wanted}, [B, D] or a list of maps, found {shapes}")


def own_config(path: str, arguments: Mapping[str, Any], in_channels: int) -> OwnConfig:
    """The configuration of an own encoder, found by trying it on an empty batch: of these channels, or of three.

    A module that takes no images is tried on volumes.

    Raises:
        EncoderError: a module that takes neither, or gives something else than maps or vectors.
    """
    tried: list[str] = []
    for dimensions in (2, 3):
        for channels in dict.fromkeys((in_channels, 3)):
            net = make_net(path, arguments, channels).eval()
            try:
                with torch.no_grad():
                    made = net(torch.zeros(2, channels, *[_SIDE] * dimensions))
            except BolusError:
                raise
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                of = "" if dimensions == 2 else " of volumes"
                tried.append(f"{channels} channels{of}: {str(error).partition(chr(10))[0]}")
                continue
            stated: dict[str, Any] = {"num_channels": channels, "dimensions": dimensions}
            num_maps = len(maps_of(made, path, dimensions))
            return OwnConfig(path=path, arguments=dict(arguments), num_maps=num_maps, **stated)
    raise EncoderError(f"{path}: expected a module for images of {_SIDE} pixels, or volumes; {'; '.join(tried)}")


def redraw(net: nn.Module) -> None:
    """Fresh weights, drawn from the global random state, in every part that knows how to draw its own."""
    for module in net.modules():
        reset: Any = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()


AutoConfig.register(OwnConfig.model_type, OwnConfig)
AutoBackbone.register(OwnConfig, OwnBackbone)
