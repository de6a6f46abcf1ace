"""New images as an encoder sees them: the same bits that `bolus embed` shows it, without a table or a cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bolus.data.images.called import Called
from bolus.data.images.given import Given
from bolus.data.views.samples import count_views, whole_views
from bolus.embedding.opening import Judged, open_encoder
from bolus.encoders.modalities import parts_of
from bolus.errors import EncoderError


def preprocess(
    images: Given | Sequence[Any],
    encoder: Judged | str | Path,
    *,
    modality: str | Sequence[str] | None = None,
    series: Sequence[Any] | None = None,
    laterality: str | Sequence[str | None] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    readers: Mapping[str, str] | None = None,
) -> Tensor:
    """Images as an encoder expects them, bit for bit what `bolus embed` shows it of the same rows; nothing is written.

    Percentiles of a series are those of the images given: give all slices of a series at once.

    Args:
        images: one image or several, each a path, a pair (path, frame), an array `[H, W]` or `[C, H, W]`, or a
            `bolus.Image`. For an encoder of clips each is a clip file, an array `[C, T, H, W]`, or a list of frames; of
            volumes each a file, a list of those of its slices, or an array `[D, H, W]` or `[C, D, H, W]`.
        encoder: what `bolus.open_encoder` opened, or what it opens: a run or encoder folder, a hub name.
        modality: one for all or one for each, as the contract spells it; where None, what the file says.
        series: a name for each image, of the volume or series it is a slice of.
        laterality: left or right, for all or for each; needed where the contract mirrors a side.
        ranges: modality -> (black, white), in place of what file and contract say.
        readers: suffix -> a reader of your own, as in cohort.yaml.

    Returns:
        Float32 in [0, 1], `[n, C, size, size]`, or `[n, C, T, size, size]` of clips, on the CPU. A clip of fewer frames
        than the encoder sees repeats its last one; `embed` of the opened encoder leaves those out. Of volumes
        `[m, C, d, h, w]`, the windows that cover the first, then those of the second, and so on.

    Raises:
        ImageError: an image cannot be read, with its number from 1 and without its path.
        EncoderError: no such encoder; values whose range is the cohort's, of a modality that the contract does not
            know; or images of modalities that are seen at different sizes.
        UsageError: no image, or facts that do not go with them.

    Example:
        >>> from bolus.data.images.preprocessing import Preprocessing
        >>> from bolus.encoders.building import build_encoder
        >>> from bolus.recipe import EncoderSpec
        >>> opened = Judged("tiny", build_encoder(EncoderSpec(backbone="r18w32"), seed=0), Preprocessing(32), None)
        >>> preprocess(np.full((40, 30), 255, np.uint8), opened)[0, 0, 16, [0, 16]].tolist()
        [0.0, 1.0]
    """
    judged = encoder if isinstance(encoder, Judged) else open_encoder(encoder)
    store, samples = judged.read(images, Called(modality, series, laterality, ranges, readers))
    groups = parts_of(judged.encoder, store.preprocessing, samples.cohort.modality[samples.first_row])
    shapes = {(contract.channels, contract.sides) for _, contract, _ in groups}
    if len(shapes) > 1:
        raise EncoderError(
            f"these images are of modalities that are seen at {len(shapes)} sizes: preprocess each modality by itself"
        )
    found: list[tuple[np.ndarray[Any, Any], Tensor]] = []
    for _, contract, places in groups:
        views = whole_views(contract, store, samples, places, step=max(1, len(places)), device=torch.device("cpu"))
        counts = count_views(contract, store, samples, places)
        found.append((np.repeat(places, counts), torch.cat([view for view, _ in views])))
    order = np.argsort(np.concatenate([places for places, _ in found]), kind="stable")
    return torch.cat([view for _, view in found])[torch.from_numpy(order)]
