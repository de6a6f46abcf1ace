"""Weights of a plain vision transformer under the names that timm and MAE's code give them, such as RETFound's.

Only safetensors are read: nothing is unpickled. Names of dimensions: D the width, L blocks, P positions of patches.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from bolus.encoders.families.repository import find_file, stated_config
from bolus.encoders.families.vit import MODELS, PlainViTBackbone, PlainViTConfig
from bolus.errors import EncoderError

HEAD = 64  # channels of an attention head in ViT-Ti, S, B and L
_LARGEST = 1024  # D of ViT-L; wider ones (H, g, G) have heads of other sizes
_NEEDED = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight")
_NAMES = (
    (re.compile(r"cls_token"), "embeddings.cls_token"),
    (re.compile(r"pos_embed"), "embeddings.position_embeddings"),
    (re.compile(r"patch_embed\.proj\.(weight|bias)"), r"embeddings.patch_embeddings.projection.\1"),
    (re.compile(r"blocks\.(\d+)\.norm1\.(weight|bias)"), r"layers.\1.layernorm_before.\2"),
    (re.compile(r"blocks\.(\d+)\.norm2\.(weight|bias)"), r"layers.\1.layernorm_after.\2"),
    (re.compile(r"blocks\.(\d+)\.attn\.proj\.(weight|bias)"), r"layers.\1.attention.o_proj.\2"),
    (re.compile(r"blocks\.(\d+)\.mlp\.(fc[12])\.(weight|bias)"), r"layers.\1.mlp.\2.\3"),
    (re.compile(r"(?:fc_)?norm\.(weight|bias)"), r"layernorm.\1"),
)
_QKV = re.compile(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)")
_LEFT_OUT = re.compile(r"head\..*|pre_logits\..*|decoder_.*|mask_token")  # a classifier's head, MAE's decoder
_STATED = ("hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps", "initializer_range")


def convert_names(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of PlainViTBackbone from those of timm's VisionTransformer or MAE's encoder.

    timm keeps query, key and value of a block in one matrix `[3 D, D]`, in this order; here they are three. Heads and
    MAE's decoder are left out. `fc_norm`, which timm puts after the mean of the patches, becomes the last norm.

    Args:
        theirs: name -> tensor, float; `pos_embed` is `[1, 1 + P, D]`, the CLS token's position first.

    Raises:
        EncoderError: a weight that has no place here, such as a LayerScale or register tokens, or two last norms.

    Example:
        >>> found = convert_names({"blocks.0.attn.qkv.bias": Tensor([0, 1, 2, 3, 4, 5])})
        >>> found["layers.0.attention.k_proj.bias"]
        tensor([2., 3.])
    """
    ours: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, tensor in theirs.items():
        if _LEFT_OUT.fullmatch(name):
            continue
        if found := _QKV.fullmatch(name):
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                ours[f"layers.{found[1]}.attention.{part}_proj.{found[2]}"] = third
            continue
        for pattern, replacement in _NAMES:
            if found := pattern.fullmatch(name):
                place = found.expand(replacement)
                unknown += [name] if place in ours else []
                ours[place] = tensor
                break
        else:
            unknown.append(name)
    if unknown:
        raise EncoderError(
            f"expected the weights of a plain vision transformer in timm's names, found {len(unknown)} more, the first "
            f"{min(unknown)}"
        )
    return ours


def find_timm(name: str) -> Path | None:
    """The `model.safetensors` of a folder or hub name, where its weights have timm's names; else None.

    Only names are read; on the hub, only where `config.json` is timm's own. A damaged file is left to whoever reads it.

    >>> find_timm(".") is None
    True
    """
    stated = stated_config(name)
    if stated.get("model_type") not in (None, *MODELS):
        return None
    if not Path(name).is_dir() and (not stated or "model_type" in stated):
        return None
    path = find_file(name, "model.safetensors")
    if path is None:
        return None
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
    except (OSError, SafetensorError):
        return None
    return path if names.issuperset(_NEEDED) else None


def timm_config(path: Path, stated: Mapping[str, Any]) -> PlainViTConfig:
    """The architecture of a file in timm's names, from the shapes in it.

    What shapes do not say comes from `config.json`: the number of heads, else D / 64 as in ViT-Ti, S, B and L; and
    `layer_norm_eps`, else 1e-6 as in timm.

    Args:
        path: safetensors.
        stated: `config.json`, of transformers or of timm, or empty.

    Raises:
        EncoderError: shapes that are no plain vision transformer's, a number of heads that must be stated, or a
            `config.json` of transformers that says something else than the shapes.
    """
    with safe_open(path, framework="pt") as file:
        shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    width, channels, *patch = shapes["patch_embed.proj.weight"]
    places = shapes["pos_embed"][1] - 1
    across = math.isqrt(max(places, 0))
    if len(set(patch)) != 1 or across**2 != places or not places or "blocks.0.mlp.fc1.weight" not in shapes:
        raise EncoderError(
            f"{path}: expected square patches, positions of a square of them and of the CLS token, and blocks with an "
            f"mlp; found patches {patch} and pos_embed {shapes['pos_embed']}"
        )
    depths = {int(name.split(".")[1]) for name in shapes if re.match(r"blocks\.\d+\.", name)}
    found: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": max(depths) + 1,
        "intermediate_size": shapes["blocks.0.mlp.fc1.weight"][0],
        "num_channels": channels,
        "patch_size": patch[0],
        "image_size": across * patch[0],
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
    }
    if "model_type" in stated:
        other = {key: stated[key] for key, value in found.items() if stated.get(key, value) not in (value, [value] * 2)}
        if other:
            raise EncoderError(f"{path}: its shapes say {found}, but config.json says {other}")
    return PlainViTConfig(
        **found,
        num_attention_heads=_heads(path, width, stated),
        pooled="mean" if "fc_norm.weight" in shapes else "token",
        **{"layer_norm_eps": 1e-6, **{key: stated[key] for key in _STATED if key in stated}},
    )


def read_timm(path: Path, config: PlainViTConfig) -> tuple[PlainViTBackbone, list[str]]:
    """A backbone with the weights of a file in timm's names, and the names of weights that the file lacks.

    Raises:
        EncoderError: weights that have no place, or other shapes.
    """
    try:
        ours = {name: tensor.float() for name, tensor in convert_names(load_file(path)).items()}
    except EncoderError as error:
        raise EncoderError(f"{path}: {error}") from None
    backbone = PlainViTBackbone(config)
    try:
        missing = backbone.load_state_dict(ours, strict=False).missing_keys
    except RuntimeError as error:
        raise EncoderError(f"{path}: weights of other shapes than expected: {error}") from error
    return backbone, sorted(missing)


def timm_processor(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Mean, standard deviation and side that a `config.json` of timm states, as a processor says them; else empty.

    >>> timm_processor({"pretrained_cfg": {"mean": [0.5], "std": [0.25], "input_size": [3, 224, 224]}})
    {'image_mean': [0.5], 'image_std': [0.25], 'size': 224}
    """
    stated = stated.get("pretrained_cfg", stated)
    names = {"image_mean": "mean", "image_std": "std", "size": "input_size"}
    if not isinstance(stated, Mapping) or not all(isinstance(stated.get(key), list) for key in names.values()):
        return {}
    return {ours: stated[key][-1] if ours == "size" else stated[key] for ours, key in names.items()}


def _heads(path: Path, width: int, stated: Mapping[str, Any]) -> int:
    """Attention heads: stated, as transformers or timm call them, else as in ViT-Ti, S, B and L."""
    arguments = stated.get("model_args")
    for each in (stated, arguments if isinstance(arguments, Mapping) else {}):
        for key in ("num_attention_heads", "num_heads"):
            if isinstance(heads := each.get(key), int):
                if heads < 1 or width % heads:
                    raise EncoderError(f"{path}: expected {key} that divides {width} channels, config.json has {heads}")
                return heads
    if width % HEAD or width > _LARGEST:
        raise EncoderError(
            f"{path}: how many attention heads share its {width} channels cannot be read from the weights; state it in "
            'a config.json beside them, such as {"num_attention_heads": 16}'
        )
    return width // HEAD
