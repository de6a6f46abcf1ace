"""An encoder, and a head on it, as a folder of transformers, where that library has the very model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_BACKBONE_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    ViTConfig,
)
from transformers.utils import logging

from bolus.data.images.preprocessing import Preprocessing
from bolus.encoders.backbone import Encoder
from bolus.encoders.families.vit import SHARED, PlainViTConfig
from bolus.errors import EncoderError
from bolus.evaluation.probing.heads import Head
from bolus.exporting.programs import Outputs, Runner
from bolus.exporting.transformers_heads import LAYERS, config_of, layer_of
from bolus.files import save_tensors, tensors_of, write_json

BILINEAR = 2  # of Pillow


def refuse_wrapped(encoder: Encoder, contract: Preprocessing) -> None:
    """Raise EncoderError for an encoder that is more than a model of transformers, with what it is."""
    spec, kind = encoder.spec, encoder.config.model_type
    plain = isinstance(encoder.config, PlainViTConfig)
    if not plain and (type(encoder.config) not in MODEL_MAPPING or kind.startswith("bolus")):
        what = f"{kind} is not an architecture of transformers"
    elif plain and encoder.config.pooled != "token":
        what = "it norms the mean of the patches, as timm's fc_norm does"
    elif spec.context:
        what = "it has context blocks; --no-keep-context exports the plain backbone, another network to judge anew"
    elif encoder.dimensions == 3:
        what = "it sees volumes"
    elif spec.temporal_shift is not None or contract.frames is not None:
        what = "it sees clips"
    elif spec.neck is not None:
        what = "it has a neck"
    elif not spec.stem_pool:
        what = "it has no pooling in its stem"
    elif kind == "swin" and (side := -(-contract.size // encoder.shape.grid_stride)) < encoder.config.window_size:
        what = f"its last map of {side} pixels is smaller than a window of {encoder.config.window_size}"
    else:
        return
    raise EncoderError(f"transformers cannot open this encoder: {what}; export it to onnx or torch")


def save_transformers(encoder: Encoder, contract: Preprocessing, folder: Path, head: Head | None = None) -> None:
    """Write `config.json`, `model.safetensors` and `preprocessor_config.json`.

    Args:
        encoder: a plain model, of which `refuse_wrapped` has nothing to say.
        contract: of its images, of which a processor of transformers does what it can: the size, the scale of eight
            bits, and the normalisation.
        folder: that exists.
        head: that goes along, of which `refuse_reader` has nothing to say.
    """
    config, state = _config_of(encoder, contract), _state_of(encoder, contract)
    model = _class_of(encoder, head)
    if head is not None:
        state = {f"{model.base_model_prefix}.{name}": value for name, value in state.items()} | layer_of(encoder, head)
    save_tensors(folder / "model.safetensors", tensors_of(state), {"format": "pt"})
    stated = json.loads(config.to_json_string())
    stated.pop("_name_or_path", None)
    stated |= {} if head is None else config_of(head)
    write_json(folder / "config.json", {**stated, "architectures": [model.__name__]})
    mean, std = ([float(value) for value in part.flatten().expand(encoder.num_channels)]
                 for part in (encoder.mean, encoder.std))  # fmt: skip
    side = {"height": contract.size, "width": contract.size}
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "ViTImageProcessor",
            "do_convert_rgb": encoder.num_channels == 3,
            "do_resize": True,
            "size": side,
            "resample": BILINEAR,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": mean,
            "image_std": std,
        },
    )


def open_transformers(folder: Path, encoder: Encoder, head: Head | None = None) -> tuple[Runner, str]:
    """What transformers opens in the folder, to run as bolus's images come in; and how it is read, in code.

    Args:
        folder: of `save_transformers`.
        encoder: that was saved.
        head: that went along.

    Returns:
        What gives embeddings and, with a head, predictions as `Head.predict`; and the code for a card.
    """
    opening = {"add_pooling_layer": False} if isinstance(encoder.config, PlainViTConfig) and head is None else {}
    kind = _class_of(encoder, head)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model: Any = kind.from_pretrained(str(folder), **opening).eval()
    finally:
        if shown:
            logging.enable_progress_bar()
    arguments = {} if encoder.family is None else dict(encoder.family.arguments)
    base = model if head is None else model.base_model
    read, code = _reading(encoder)

    def run(inputs: tuple[Tensor, ...]) -> Outputs:
        pixels = (inputs[0].expand(-1, encoder.num_channels, -1, -1) - encoder.mean) / encoder.std
        with torch.no_grad():
            vector = read(base(pixels, **arguments))
            if head is None:
                return [np.asarray(vector.numpy())]
            logits = model(pixels, **arguments).logits
        said = logits[:, 0] if head.task == "regress" else logits.softmax(1)
        return [np.asarray(vector.numpy()), np.asarray((said[:, 1] if head.num_classes == 2 else said).numpy())]

    given = ", ".join(["pixel_values", *(f"{name}={value}" for name, value in arguments.items())])
    if head is not None:
        logits = ".logits[:, 0]" if head.task == "regress" else ".logits.softmax(1)"
        return run, f"AutoModelForImageClassification.from_pretrained(FOLDER)({given}){logits}"
    auto = "AutoModel" if _is_model(encoder) else f"transformers.{kind.__name__}"
    opened = "".join(f", {name}={value}" for name, value in opening.items())
    return run, f"{auto}.from_pretrained(FOLDER{opened})({given}){code}"


def _is_model(encoder: Encoder) -> bool:
    """Whether transformers' model gives what bolus pools; else the backbone does."""
    return encoder.config.model_type in LAYERS or (encoder.family is not None and encoder.family.tokens is not None)


def _class_of(encoder: Encoder, head: Head | None) -> Any:
    """The class of transformers that the folder is for."""
    config = ViTConfig if isinstance(encoder.config, PlainViTConfig) else type(encoder.config)
    if head is not None:
        return MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[config]
    return (MODEL_MAPPING if _is_model(encoder) else MODEL_FOR_BACKBONE_MAPPING)[config]


def _reading(encoder: Encoder) -> tuple[Callable[[Any], Tensor], str]:
    """What takes the embedding out of a model's output, as a function and in code."""
    if not _is_model(encoder):
        return lambda found: found.feature_maps[-1].mean(dim=(2, 3)), ".feature_maps[-1].mean((2, 3))"
    if isinstance(encoder.config, PlainViTConfig):
        return lambda found: found.last_hidden_state[:, 0], ".last_hidden_state[:, 0]"
    if encoder.config.model_type == "resnet":
        return lambda found: found.pooler_output.flatten(1), ".pooler_output.flatten(1)"
    return lambda found: found.pooler_output, ".pooler_output"


def _config_of(encoder: Encoder, contract: Preprocessing) -> Any:
    """The configuration that transformers knows."""
    if not isinstance(encoder.config, PlainViTConfig):
        return encoder.config
    stated = encoder.config.to_dict()
    return ViTConfig(**{key: stated[key] for key in SHARED}, image_size=contract.size, patch_size=stated["patch_size"])


def _state_of(encoder: Encoder, contract: Preprocessing) -> dict[str, Tensor]:
    """The weights under the names of transformers' model, or of its backbone where that is what is read."""
    backbone: Any = encoder.backbone
    state = dict(backbone.state_dict())
    if encoder.config.model_type == "swin":  # the model's last norm is the backbone's norm of the last map
        norm = f"hidden_states_norms.{encoder.config.stage_names[-1]}."
        inside = {name.removeprefix("swin."): value for name, value in state.items() if name.startswith("swin.")}
        return inside | {f"layernorm.{part}": state[norm + part] for part in ("weight", "bias")}
    if isinstance(encoder.config, PlainViTConfig):  # for the size that is seen, which no pipeline would ask for
        return state | {"embeddings.position_embeddings": backbone.positions_at(contract.size)}
    return state
