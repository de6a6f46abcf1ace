"""What is exported: an encoder, alone, with a head on it or under a mask decoder, as one module of plain tensors.

Dimension letters: B images or clips, C channels, T frames, D the pooled width, K classes, S the side of the input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bolus.encoders.backbone import Encoder
from bolus.errors import UsageError
from bolus.evaluation.probing.heads import Head
from bolus.evaluation.segmentation.saved import SavedSegmenter
from bolus.evaluation.segmentation.segmenter import mask_logits

Reader: TypeAlias = Head | SavedSegmenter
"""What reads an encoder and may go along with it."""

Values: TypeAlias = np.ndarray[Any, Any]


class Deployed(nn.Module):
    """Images in [0, 1] to embeddings, and to what a head says of them; a copy of nothing, in evaluation mode.

    Args:
        encoder: with its normalisation, context blocks, shifts and neck.
        head: linear or constant; None: embeddings only.

    Attributes:
        outputs: the names of what `forward` gives, in order.

    Raises:
        UsageError: a head of nearest neighbours, which holds embeddings of the training patients.

    Example:
        >>> from bolus.encoders.building import build_encoder
        >>> from bolus.recipe import EncoderSpec
        >>> model = Deployed(build_encoder(EncoderSpec(backbone="r18w32"), seed=0))
        >>> [tuple(found.shape) for found in model(torch.rand(2, 1, 32, 32))]
        [(2, 256)]
    """

    def __init__(self, encoder: Encoder, head: Head | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = None if head is None else _Reading(head)
        self.outputs = ["embedding", *([] if head is None else ["prediction"])]
        self.eval()

    def forward(self, images: Tensor, frame_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Embeddings, then predictions where there is a head.

        Args:
            images: `[B, C, S, S]`, clips `[B, C, T, S, S]`, or volumes `[B, C, D, H, W]`, float32 in [0, 1].
            frame_mask: of clips, bool `[B, T]`, true at real frames.

        Returns:
            `[B, D]`; with a head also what `Head.predict` gives, float32: `[B]` of a number or of the second of two
            classes, `[B, K]` of more.
        """
        pooled = self.encoder(images, frame_mask=frame_mask).pooled
        return (pooled,) if self.head is None else (pooled, self.head(pooled))


class Drawing(nn.Module):
    """Images, or boxes, in [0, 1] to class probabilities of their pixels, as `bolus predict` draws; a copy of nothing.

    Args:
        encoder: of the segmenter.
        segmenter: that was saved.

    Attributes:
        outputs: the name of what `forward` gives.
    """

    def __init__(self, encoder: Encoder, segmenter: SavedSegmenter) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, segmenter.decoder
        self.outputs = ["mask"]
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Probabilities `[B, K, S, S]` that sum to 1 over the classes, of images `[B, C, S, S]`, both float32.

        Of volumes `[B, K, D, H, W]`, of boxes `[B, C, D, H, W]`.
        """
        return (mask_logits(self.encoder, self.decoder, images).softmax(dim=1),)


def model_of(encoder: Encoder, reader: Reader | None) -> Deployed | Drawing:
    """The module that an encoder and what reads it become.

    Raises:
        UsageError: as `Deployed`.
    """
    return Drawing(encoder, reader) if isinstance(reader, SavedSegmenter) else Deployed(encoder, reader)


def answers_of(
    encoder: Encoder, reader: Reader | None, images: Tensor, frame_mask: Tensor | None = None
) -> dict[str, Values]:
    """What bolus itself makes of images: what an export is compared with.

    Args:
        encoder: in evaluation mode, on the CPU.
        reader: of it, if any.
        images: as `Deployed.forward`.
        frame_mask: likewise.

    Returns:
        Name of the output -> values, in the order of `outputs`.
    """
    with torch.inference_mode():
        if isinstance(reader, SavedSegmenter):
            return {"mask": mask_logits(encoder, reader.decoder, images).float().softmax(1).numpy()}
        pooled = encoder(images, frame_mask=frame_mask).pooled.float().numpy()
    return {"embedding": pooled} if reader is None else {"embedding": pooled, "prediction": reader.predict(pooled)}


def describe_reader(reader: Reader) -> Mapping[str, Any]:
    """What a contract says of it, as JSON values."""
    if isinstance(reader, SavedSegmenter):
        classes = ["background", *reader.names]
        return {"target": "mask", "task": "segment", "classes": classes, "labels": [0, *reader.labels], "notes": []}
    return {
        "target": reader.target,
        "task": reader.task,
        "classes": list(reader.class_names) or [str(code) for code in range(reader.num_classes)],
        "notes": list(reader.notes),
    }


class _Reading(nn.Module):
    """A head as tensors: what `Head.predict` does in float64, in float32."""

    mean: Tensor
    scale: Tensor
    coef: Tensor
    intercept: Tensor
    places: Tensor

    def __init__(self, head: Head) -> None:
        super().__init__()
        if head.kind not in ("linear", "constant"):
            raise UsageError(
                f"the head of {head.target!r} is of kind {head.kind}, which holds embeddings of training patients: "
                "export a linear or finetuned one"
            )
        self.constant, self.regress = head.kind == "constant", head.task == "regress"
        self.num_classes = head.num_classes
        self.target_mean, self.target_scale = head.target_mean, head.target_scale
        self.two = len(head.classes) <= 2
        places = np.eye(max(1, head.num_classes))[head.classes] if not self.regress else np.ones((1, 1))
        arrays = {"mean": head.mean, "scale": head.scale, "coef": head.coef, "intercept": head.intercept}
        for name, values in {**arrays, "places": places}.items():
            self.register_buffer(name, torch.from_numpy(np.asarray(values, np.float64)).float())

    def forward(self, pooled: Tensor) -> Tensor:
        """Predictions of embeddings `[B, D]`."""
        if self.constant:
            raw = self.intercept.expand(pooled.shape[0], -1)
        else:
            raw = F.linear((pooled - self.mean) / self.scale, self.coef, self.intercept)
            if not self.regress:
                raw = torch.cat([torch.sigmoid(-raw), torch.sigmoid(raw)], dim=1) if self.two else raw.softmax(dim=1)
        if self.regress:
            return raw[:, 0] * self.target_scale + self.target_mean
        full = raw @ self.places
        return full[:, 1] if self.num_classes == 2 else full
