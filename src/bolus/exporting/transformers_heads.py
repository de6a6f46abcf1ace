"""A head as the last layer of transformers' own image classifiers, where that layer reads the very features it reads.

Dimension letters: D the pooled width, K classes, L outputs of the layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

from bolus.encoders.backbone import Encoder
from bolus.errors import EncoderError, UsageError
from bolus.evaluation.probing.heads import Head
from bolus.evaluation.segmentation.saved import SavedSegmenter
from bolus.evaluation.statistics.metrics import FloatArray
from bolus.exporting.models import Reader

LAYERS = {
    "resnet": "classifier.1",
    "dinov2": "classifier",
    "dinov2_with_registers": "classifier",
    "swin": "classifier",
    "bolus_vit": "classifier",
}
"""Model type -> the linear layer of its classifier, where it reads what bolus pools."""

_WITH_MEAN = ("dinov2", "dinov2_with_registers")  # whose layer reads the CLS token and then the mean of the patches
_NEVER = float(np.finfo(np.float32).min)  # the logit of a class of probability 0


def refuse_reader(encoder: Encoder, reader: Reader) -> None:
    """Raise for what transformers' classifiers cannot say.

    Args:
        encoder: that is a plain model of transformers.
        reader: a linear or constant head, or a segmenter.

    Raises:
        UsageError: a segmenter.
        EncoderError: a family of which transformers has no classifier, or one that reads another feature.
    """
    if isinstance(reader, SavedSegmenter):
        raise UsageError("transformers has no model of a segmenter; export it to onnx or torch, or leave --head out")
    if encoder.config.model_type in LAYERS:
        return
    if type(encoder.config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        why = f"transformers has no classifier of a {encoder.config.model_type}"
    elif encoder.config.model_type.startswith("convnext"):
        named = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(encoder.config)].__name__
        why = f"{named} norms the mean of the last map, and the head reads the mean of the normed map"
    else:
        named = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(encoder.config)].__name__
        why = f"{named} is not known to read the feature that the head reads"
    raise EncoderError(f"the head does not go to transformers: {why}; export it to onnx or torch, or leave --head out")


def fold_head(head: Head) -> tuple[FloatArray, FloatArray]:
    """Weight `[L, D]` and bias `[L]`, float64, of a linear layer on embeddings that are not standardised.

    Of classes L is K, and the softmax of what the layer gives is what `Head.predict` gives: the first of two classes
    has the logit 0, and a class that training lacked, or of probability 0, one that no other comes near. Of a number L
    is 1, and the layer gives the number in the target's unit.

    Args:
        head: linear or constant.

    Example:
        >>> head = Head("linear", "classify", coef=np.array([[2.0]]), intercept=np.array([1.0]), mean=np.array([3.0]),
        ...             scale=np.array([4.0]), classes=np.arange(2), num_classes=2)
        >>> [part.tolist() for part in fold_head(head)]
        [[[0.0], [0.5]], [0.0, -0.5]]
    """
    width = len(head.mean)
    if head.kind == "linear":
        weight = head.coef / head.scale
        bias = head.intercept - weight @ head.mean
        if head.task == "classify" and len(head.classes) <= 2:
            weight, bias = np.vstack([np.zeros(width), weight]), np.append(0.0, bias)
    else:
        weight, bias = np.zeros((len(head.intercept), width)), head.intercept
        if head.task == "classify":
            with np.errstate(divide="ignore"):
                bias = np.maximum(np.log(bias), _NEVER)
    if head.task == "regress":
        return weight * head.target_scale, bias * head.target_scale + head.target_mean
    full, full_bias = np.zeros((head.num_classes, width)), np.full(head.num_classes, _NEVER)
    full[head.classes], full_bias[head.classes] = weight, bias
    return full, full_bias


def layer_of(encoder: Encoder, head: Head) -> dict[str, Tensor]:
    """The last layer of transformers' classifier under its names, float32; zeros where it reads more than the head."""
    kind = encoder.config.model_type
    weight, bias = fold_head(head)
    if kind in _WITH_MEAN:
        weight = np.hstack([weight, np.zeros_like(weight)])
    named = {"weight": weight, "bias": bias}
    return {f"{LAYERS[kind]}.{name}": torch.from_numpy(values).float() for name, values in named.items()}


def config_of(head: Head) -> dict[str, Any]:
    """What `config.json` says of the layer: what its outputs are called, and what they are."""
    names: tuple[str, ...]
    if head.task == "regress":
        names, problem = (head.target or "prediction",), "regression"
    else:
        names = head.class_names or tuple(str(code) for code in range(head.num_classes))
        problem = "single_label_classification"
    return {
        "id2label": {str(code): name for code, name in enumerate(names)},
        "label2id": {name: code for code, name in enumerate(names)},
        "problem_type": problem,
    }
