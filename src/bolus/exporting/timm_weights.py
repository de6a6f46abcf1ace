"""ResNets and plain vision transformers under timm's names: a folder that timm opens, and ResNets that it trained.

No timm is needed here. `bolus.encoders.families.timm_names` reads plain vision transformers of timm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ResNetConfig

from bolus.encoders.backbone import Encoder
from bolus.encoders.families.hub import make_backbone
from bolus.encoders.families.vit import PlainViTConfig
from bolus.errors import EncoderError
from bolus.files import check_new, making, save_tensors, tensors_of, write_json
from bolus.recipe import EncoderSpec

STEM = 64  # channels of the stem of timm's ResNets
EPS = 1e-6  # of the norms of timm's vision transformers
EXPANSION = {"basic": 1, "bottleneck": 4}  # widths of the maps over those that timm states

_QKV = re.compile(r"layers\.(\d+)\.attention\.q_proj\.(weight|bias)")
_VIT = (
    (re.compile(r"embeddings\.cls_token"), "cls_token"),
    (re.compile(r"embeddings\.position_embeddings"), "pos_embed"),
    (re.compile(r"embeddings\.patch_embeddings\.projection\.(.+)"), r"patch_embed.proj.\1"),
    (re.compile(r"layers\.(\d+)\.layernorm_before\.(.+)"), r"blocks.\1.norm1.\2"),
    (re.compile(r"layers\.(\d+)\.layernorm_after\.(.+)"), r"blocks.\1.norm2.\2"),
    (re.compile(r"layers\.(\d+)\.attention\.o_proj\.(.+)"), r"blocks.\1.attn.proj.\2"),
    (re.compile(r"layers\.(\d+)\.mlp\.(.+)"), r"blocks.\1.mlp.\2"),
)
_PARTS = {"convolution": "conv", "normalization": "bn"}
_HEAD = re.compile(r"fc\..*")


def write_timm(encoder: Encoder, folder: str | Path, *, size: int) -> None:
    """Write `model.safetensors` and `config.json`, which timm opens as the encoder without its normalisation.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` takes pixels normalised by mean and std of `config.json`
    and gives the pooled features. Positions of a vision transformer are written as bolus interpolates them.

    Args:
        encoder: a ResNet or a plain vision transformer, and nothing more.
        folder: to make.
        size: pixels of the side of its images.

    Raises:
        EncoderError: another architecture, or what timm's classes cannot say, with what it is.
        UsageError: a folder that is not empty.

    Example:
        >>> import tempfile
        >>> from bolus.encoders.building import build_encoder
        >>> encoder = build_encoder(EncoderSpec(backbone="resnet18"), seed=0)
        >>> with tempfile.TemporaryDirectory() as made:
        ...     write_timm(encoder, Path(made) / "timm", size=64)
        ...     sorted(path.name for path in (Path(made) / "timm").iterdir())
        ['config.json', 'model.safetensors']
    """
    folder = Path(folder)
    _refuse(encoder)
    vit = isinstance(encoder.config, PlainViTConfig)
    architecture, arguments = _describe_vit(encoder, size) if vit else _describe_resnet(encoder)
    state = _vit_names(encoder, size) if vit else _resnet_names(encoder)
    channels = encoder.num_channels
    mean, std = (part.flatten().expand(channels).tolist() for part in (encoder.mean, encoder.std))
    stated = {
        "input_size": [channels, size, size],
        "fixed_input_size": vit,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "mean": mean,
        "std": std,
        "num_classes": 0,
        "first_conv": "patch_embed.proj" if vit else "conv1",
        "classifier": "head" if vit else "fc",
    }
    check_new(folder)
    with making(folder) as temporary:
        save_tensors(temporary / "model.safetensors", tensors_of(state), {"format": "pt"})
        found = {"architecture": architecture, "num_classes": 0, "model_args": {**arguments, "in_chans": channels}}
        write_json(temporary / "config.json", {**found, "pretrained_cfg": stated})


def from_timm(weights: Mapping[str, Tensor], *, mean: Sequence[float], std: Sequence[float]) -> Encoder:
    """An encoder in evaluation mode that gives what a ResNet of timm gives before its classifier.

    Args:
        weights: the state of a `timm.models.resnet.ResNet` with a plain stem, as `resnet18`, `34`, `50`, `101` and
            `152`; the classifier is left out.
        mean: that its pixels were normalised by; one value, or one a channel.
        std: likewise.

    Raises:
        EncoderError: weights that have no place, or other shapes, with the first of them.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import load_file
        >>> from bolus.encoders.building import build_encoder
        >>> encoder = build_encoder(EncoderSpec(backbone="resnet18"), seed=0).eval()
        >>> with tempfile.TemporaryDirectory() as made:
        ...     write_timm(encoder, Path(made) / "timm", size=64)
        ...     back = from_timm(load_file(Path(made) / "timm" / "model.safetensors"), mean=[0.5], std=[0.25])
        >>> image = torch.rand(1, 1, 64, 64)
        >>> torch.equal(back(image).pooled, encoder(image).pooled)
        True
    """
    theirs = {name: value for name, value in weights.items() if not _HEAD.fullmatch(name)}
    config = _resnet_config(theirs)
    channels = config.num_channels
    if channels not in (1, 3):
        raise EncoderError(f"expected a ResNet of 1 or 3 channels, found one of {channels}")
    spec = EncoderSpec(backbone="timm", in_channels=channels, mean=list(mean), std=list(std))
    encoder = Encoder(spec, make_backbone(config, "a ResNet of timm")).eval()
    names = {_resnet_name(name): name for name in encoder.backbone.state_dict()}
    wrong = sorted(set(names) ^ set(theirs))
    if wrong:
        raise EncoderError(
            f"expected the weights of a plain ResNet in timm's names, found {len(wrong)} more or fewer, the first "
            f"{wrong[0]}"
        )
    try:
        encoder.backbone.load_state_dict({names[name]: value for name, value in theirs.items()})
    except RuntimeError as error:
        raise EncoderError(f"weights of other shapes than a plain ResNet's: {str(error).splitlines()[-1]}") from error
    return encoder


def _refuse(encoder: Encoder) -> None:
    """Raise EncoderError for an encoder that is no model of timm."""
    spec, config = encoder.spec, encoder.config
    if spec.context or spec.neck is not None or spec.temporal_shift is not None or not spec.stem_pool:
        why = "it has context blocks, a neck, a temporal shift or no pooling in its stem"
    elif encoder.dimensions == 3:
        why = "it sees volumes"
    elif isinstance(config, PlainViTConfig):
        if config.layer_norm_eps == EPS and config.hidden_act == "gelu":
            return
        why = f"its norms have an epsilon of {config.layer_norm_eps:g} (timm: {EPS:g}) and its activation is "
        why += f"{config.hidden_act} (timm: gelu)"
    elif not isinstance(config, ResNetConfig):
        why = f"{config.model_type} is neither a ResNet nor a plain vision transformer"
    elif config.embedding_size != STEM:
        why = f"its stem has {config.embedding_size} channels (timm: {STEM})"
    elif config.downsample_in_bottleneck or config.downsample_in_first_stage or config.hidden_act != "relu":
        why = "its strides or activations are not those of timm's ResNets"
    else:
        return
    raise EncoderError(f"timm cannot open this encoder: {why}")


def _describe_resnet(encoder: Encoder) -> tuple[str, dict[str, Any]]:
    """Architecture and arguments of timm."""
    config = encoder.config
    widths = [width // EXPANSION[config.layer_type] for width in config.hidden_sizes]
    name = "resnet18" if config.layer_type == "basic" else "resnet50"
    return name, {"layers": list(config.depths), "channels": widths}


def _describe_vit(encoder: Encoder, size: int) -> tuple[str, dict[str, Any]]:
    config = encoder.config
    return "vit_base_patch16_224", {
        "img_size": size,
        "patch_size": config.patch_size,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
        "qkv_bias": config.qkv_bias,
        "global_pool": "token" if config.pooled == "token" else "avg",
    }


def _resnet_names(encoder: Encoder) -> dict[str, Tensor]:
    return {_resnet_name(name): value for name, value in encoder.backbone.state_dict().items()}


def _resnet_name(name: str) -> str:
    """What timm calls a weight.

    >>> _resnet_name("encoder.stages.1.layers.0.layer.2.convolution.weight")
    'layer2.0.conv3.weight'
    """
    *place, part, kind = name.split(".")
    if place == ["embedder", "embedder"]:
        return f"{_PARTS[part]}1.{kind}"
    _, _, stage, _, block, *inner = place
    at = f"layer{int(stage) + 1}.{block}"
    if inner == ["shortcut"]:
        return f"{at}.downsample.{list(_PARTS).index(part)}.{kind}"
    return f"{at}.{_PARTS[part]}{int(inner[1]) + 1}.{kind}"


def _resnet_config(theirs: Mapping[str, Tensor]) -> Any:
    """The architecture, from names and shapes."""
    blocks = {found.groups() for name in theirs if (found := re.match(r"layer(\d)\.(\d+)\.", name))}
    stages = sorted({stage for stage, _ in blocks})
    depths = [sum(stage == each for each, _ in blocks) for stage in stages]
    kind = "bottleneck" if "layer1.0.conv3.weight" in theirs else "basic"
    last = "conv3" if kind == "bottleneck" else "conv2"
    try:
        widths = [len(theirs[f"layer{stage + 1}.0.{last}.weight"]) for stage in range(len(depths))]
        stem, channels = theirs["conv1.weight"].shape[:2]
    except KeyError as error:
        raise EncoderError(f"expected the weights of a plain ResNet in timm's names, {error} is missing") from error
    return ResNetConfig(num_channels=channels, embedding_size=stem, hidden_sizes=widths, depths=depths, layer_type=kind)


def _vit_names(encoder: Encoder, size: int) -> dict[str, Tensor]:
    backbone: Any = encoder.backbone
    state: dict[str, Tensor] = {**backbone.state_dict(), "embeddings.position_embeddings": backbone.positions_at(size)}
    last = "norm" if encoder.config.pooled == "token" else "fc_norm"
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if part := _QKV.fullmatch(name):
            parts = [state[name.replace("q_proj", f"{each}_proj")] for each in "qkv"]
            found[f"blocks.{part[1]}.attn.qkv.{part[2]}"] = torch.cat(parts)
            continue
        for pattern, replacement in (*_VIT, (re.compile(r"layernorm\.(.+)"), rf"{last}.\1")):
            if part := pattern.fullmatch(name):
                found[part.expand(replacement)] = value
    return found
