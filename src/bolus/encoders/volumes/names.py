"""Backbones of volumes by name, and their published weights, which have MONAI's names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from bolus.encoders.families.repository import find_file
from bolus.encoders.volumes.resnet3d import ResNet3dConfig
from bolus.encoders.volumes.swin_unetr import SwinUnetrConfig
from bolus.encoders.volumes.unet3d import UNet3dConfig
from bolus.errors import EncoderError

FILE = "model.safetensors"
EXAMPLES = ("resnet10_3d", "resnet18_3d", "resnet50_3d", "unet3d32", "swin_unetr24")
VOLUME_TYPES = (ResNet3dConfig, UNet3dConfig, SwinUnetrConfig)

_RESNET = re.compile(r"resnet(10|18|50)_3d|r(10|18|50)w([1-9]\d*)_3d")
_UNET = re.compile(r"unet3d([1-9]\d*)")
_SWIN = re.compile(r"swin_unetr([1-9]\d*)")
_PREFIXES = re.compile(r"^(module\.|backbone\.|swinViT\.|encoder\.)+")
_RENAMED = (  # of MONAI's modules, to those of our backbones
    (re.compile(r"^conv1\."), "stem.0."),
    (re.compile(r"^bn1\."), "stem.1."),
    (re.compile(r"^layer([1-4])\."), lambda found: f"stages.{int(found[1]) - 1}."),
    (re.compile(r"^patch_embed\."), "embed."),
    (re.compile(r"^layers([1-4])\.0\."), lambda found: f"stages.{int(found[1]) - 1}."),
    (re.compile(r"\.mlp\.fc([12])\."), r".mlp.linear\1."),
)
_HEADS = re.compile(r"^(fc|conv_seg|decoder\w*|encoder\d+|out|norm|rotation_head|contrastive_head|conv)\.")


def volume_config(name: str) -> Any:
    """The architecture of a named backbone of volumes; None where the name is none of them.

    `resnet10_3d`, `resnet18_3d`, `resnet50_3d`, or `r18w16_3d` of 16 channels in the first stage for 64; `unet3dN` of
    N filters at full size; `swin_unetrN` of N features, a multiple of 12.

    Raises:
        EncoderError: a Swin-UNETR of another number of features.

    >>> volume_config("unet3d8").hidden_sizes, volume_config("r10w8_3d").hidden_sizes, volume_config("unet8")
    ([8, 16, 32, 64, 128], [8, 16, 32, 64], None)
    """
    if found := _RESNET.fullmatch(name):
        return ResNet3dConfig(architecture=f"resnet{found[1] or found[2]}", width=int(found[3] or 64))
    if found := _UNET.fullmatch(name):
        return UNet3dConfig(base_filters=int(found[1]))
    if found := _SWIN.fullmatch(name):
        return SwinUnetrConfig(feature_size=int(found[1]))
    return None


def is_volume_name(name: str) -> bool:
    """Whether a name is one of those of `volume_config`.

    >>> is_volume_name("swin_unetr24"), is_volume_name("resnet18")
    (True, False)
    """
    return any(pattern.fullmatch(name) for pattern in (_RESNET, _UNET, _SWIN))


def fill_volume_net(backbone: nn.Module, name: str) -> list[str]:
    """Load the weights of a folder or hub name into a backbone of volumes; the names of those that its file lacks.

    The file is `model.safetensors`, with bolus's names or those of MONAI's ResNet, SwinTransformer or SwinUNETR, also
    as MedicalNet's files have them. Heads and decoders in it are left out.

    Args:
        backbone: of the architecture that the folder's config.json states.
        name: of the folder, or on the hub.

    Raises:
        EncoderError: no such file, weights of other shapes, or weights that are no part of this network.
    """
    path = find_file(name, FILE)
    if path is None:
        pickles = sorted(each.name for each in Path(name).glob("*") if each.suffix in (".pth", ".pt", ".bin", ".ckpt"))
        advice = f"; {pickles[0]} is a pickle, which is not opened: docs/volumes.md converts it" if pickles else ""
        raise EncoderError(f"{name}: expected {FILE} beside config.json, found none{advice}")
    own = backbone.state_dict()
    given: dict[str, Tensor] = {}
    strange = []
    for key, value in load_file(path).items():
        renamed = _renamed(key)
        if renamed in own:
            given[renamed] = value
        elif not _HEADS.match(_PREFIXES.sub("", key)):
            strange.append(key)
    kind = getattr(backbone.config, "model_type", "")
    if strange:
        raise EncoderError(
            f"{name}: {len(strange)} weights of {FILE} are no part of the {kind} that config.json states, the first "
            f"{strange[0]}"
        )
    for key, value in given.items():
        if value.shape != own[key].shape:
            raise EncoderError(
                f"{name}: weights of other shapes than the {kind} that config.json states: {key} expected "
                f"{list(own[key].shape)}, found {list(value.shape)}"
            )
    backbone.load_state_dict(given, strict=False)
    return [key for key in own if key not in given and not key.endswith("num_batches_tracked")]


def _renamed(key: str) -> str:
    key = _PREFIXES.sub("", key)
    for pattern, by in _RENAMED:
        key = pattern.sub(by, key)
    return key
