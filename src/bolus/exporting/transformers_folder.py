"""An encoder as a folder of transformers, where it is a plain model of that library and nothing more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import MODEL_FOR_BACKBONE_MAPPING, MODEL_MAPPING, AutoModel
from transformers.utils import logging

from bolus.data.images.preprocessing import Preprocessing
from bolus.encoders.backbone import Encoder
from bolus.errors import EncoderError
from bolus.exporting.programs import Outputs, Runner
from bolus.files import write_json

BILINEAR = 2  # of Pillow


def refuse_wrapped(encoder: Encoder, contract: Preprocessing) -> None:
    """Raise EncoderError for an encoder that is more than a model of transformers, with what it is."""
    spec, kind = encoder.spec, encoder.config.model_type
    if type(encoder.config) not in MODEL_MAPPING or kind.startswith("bolus"):
        what = f"{kind} is not an architecture of transformers"
    elif spec.context:
        what = "it has context blocks; --no-keep-context exports the plain backbone"
    elif spec.temporal_shift is not None or contract.frames is not None:
        what = "it sees clips"
    elif spec.neck is not None:
        what = "it has a neck"
    elif not spec.stem_pool:
        what = "it has no pooling in its stem"
    else:
        return
    raise EncoderError(f"transformers cannot open this encoder: {what}; export it to onnx or torch")


def save_transformers(encoder: Encoder, contract: Preprocessing, folder: Path) -> None:
    """Write `config.json`, `model.safetensors` and `preprocessor_config.json`.

    Args:
        encoder: a plain model, of which `refuse_wrapped` has nothing to say.
        contract: of its images, of which a processor of transformers does what it can: the size, the scale of eight
            bits, and the normalisation.
        folder: that exists.
    """
    backbone: Any = encoder.backbone
    state = {name: value.detach().cpu().contiguous().clone() for name, value in backbone.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads(encoder.config.to_json_string())
    config.pop("_name_or_path", None)
    write_json(folder / "config.json", {**config, "architectures": [type(backbone).__name__]})
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


def open_transformers(folder: Path, encoder: Encoder) -> tuple[Runner, str]:
    """What transformers opens in the folder, to run as bolus's images come in; and how its features are read.

    The pooled output of the model where that is what bolus pools, else the mean of the backbone's last map.

    Args:
        folder: of `save_transformers`.
        encoder: that was saved.
    """
    kind: Any = MODEL_FOR_BACKBONE_MAPPING[type(encoder.config)]
    cls = encoder.family is not None and encoder.family.tokens is not None
    pooled = cls or encoder.config.model_type == "resnet"
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model: Any = (AutoModel if pooled else kind).from_pretrained(str(folder)).eval()
    finally:
        if shown:
            logging.enable_progress_bar()
    arguments = {} if pooled or encoder.family is None else dict(encoder.family.arguments)

    def run(inputs: tuple[Tensor, ...]) -> Outputs:
        pixels = (inputs[0].expand(-1, encoder.num_channels, -1, -1) - encoder.mean) / encoder.std
        with torch.no_grad():
            found = model(pixels, **arguments)
            vector: Tensor = found.pooler_output.flatten(1) if pooled else found.feature_maps[-1].mean(dim=(2, 3))
        return [np.asarray(vector.numpy())]

    if pooled:
        return run, f"AutoModel.from_pretrained(FOLDER)(pixel_values).pooler_output{'' if cls else '.flatten(1)'}"
    return run, f"transformers.{kind.__name__}.from_pretrained(FOLDER)(pixel_values).feature_maps[-1].mean((2, 3))"
