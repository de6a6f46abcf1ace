"""A run's encoder without its MLVICX context blocks, a column beside it, with BatchNorm statistics of its own.

Without the blocks' gates the maps are larger, and the statistics of the gated network would blow features up. So they
are estimated anew, on training images of the cohort that is judged on, and on no others.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from bolus.data.cohort.cohort import Samples
from bolus.data.images.cache import Preprocessing, Store
from bolus.data.views.samples import whole_views
from bolus.embedding.opening import Judged, open_encoder
from bolus.encoders.backbone import Encoder
from bolus.encoders.modalities import ModalityEncoders, each_encoder, parts_of
from bolus.encoders.parts.norms import estimate_norms, norms_of
from bolus.seeds import seed_for

NUM_IMAGES: Final = 512  # at most, frames of clips counted, that statistics are estimated on
BATCH: Final = 64


def show_training(
    judged: Judged, store: Store, samples: Samples, kept: npt.NDArray[np.int64], *, name: str
) -> tuple[Judged, str]:
    """Let an encoder that is also judged without its context blocks see the cohort's training images for that.

    Args:
        judged: the encoder, with its blocks.
        store: the images, as it expects them.
        samples: of the cohort on whose training samples heads are fitted.
        kept: int64 `[n]`, the samples that are judged.
        name: of the column, for the note.

    Returns:
        The encoder and a note. It is as it was, and the note empty, where it has no context blocks or no BatchNorm; it
        is as it was where fewer than two training images can be read that one of its encoders would need, and the note
        says that the column is left out.
    """
    if not judged.encoder.has_context or not norms_of(judged.encoder):
        return judged, ""
    training = samples.readable(store.readable) & (samples.cohort.split[samples.first_row] == "train")
    positions = np.flatnonzero(training)
    seen, shown = (_by_encoder(judged.encoder, store, samples, each) for each in (kept, positions))
    for encoder, needed, groups in zip(each_encoder(judged.encoder), seen, shown, strict=True):
        if encoder.has_context and needed and max((len(group) for _, group in groups), default=0) < 2:
            return judged, (
                f"{name} is left out: its BatchNorm statistics are to be estimated on training images of the cohort, "
                "and fewer than two can be read."
            )
    note = (
        f"{name}: BatchNorm statistics are estimated anew on training images of the cohort (at most {NUM_IMAGES}), "
        "because those of the run hold for the network with its context blocks."
    )
    return replace(judged, training=(store, samples, positions)), note


def open_ungated(
    judged: Judged, source: str | Path, *, seed: int, device: torch.device
) -> Encoder | ModalityEncoders | None:
    """The encoder without its context blocks, in evaluation mode; None where it has none, or is to be left out.

    Args:
        judged: as `show_training` gives it.
        source: where it was opened from.
        seed: of which training images are taken.
        device: where it is put.
    """
    if not judged.encoder.has_context:
        return None
    if not norms_of(judged.encoder):
        return open_encoder(source, keep_context=False).encoder.to(device)
    if judged.training is None:
        return None
    bare = open_encoder(source, keep_context=False).encoder.to(device)
    store, samples, positions = judged.training
    order = np.random.default_rng(seed_for(seed, "norms")).permutation(positions)
    most = max(2, NUM_IMAGES // store.preprocessing.images_per_view)
    groups_of = _by_encoder(bare, store, samples, order)
    for encoder, gated, groups in zip(each_encoder(bare), each_encoder(judged.encoder), groups_of, strict=True):
        total = sum(len(group) for _, group in groups)
        if not gated.has_context or not total:
            continue
        taken = [(contract, group[: math.ceil(most * len(group) / total)]) for contract, group in groups]
        batches = (
            whole_views(contract, store, samples, some, step=_step(len(some), contract), device=device)
            for contract, some in taken
        )
        estimate_norms(encoder, chain.from_iterable(batches))
    return bare


def _by_encoder(
    encoder: Encoder | ModalityEncoders, store: Store, samples: Samples, positions: npt.NDArray[np.int64]
) -> list[list[tuple[Preprocessing, npt.NDArray[np.int64]]]]:
    """Of each encoder, as `each_encoder` orders them, contracts with the positions that it sees so; none is empty."""
    modality = samples.cohort.modality[samples.first_row[positions]]
    parts = parts_of(encoder, store.preprocessing, modality)
    return [
        [(contract, positions[places]) for part, contract, places in parts if part is each and len(places)]
        for each in each_encoder(encoder)
    ]


def _step(count: int, contract: Preprocessing) -> int:
    """Samples of a batch, so that all batches are about as large."""
    return math.ceil(count / math.ceil(count * contract.images_per_view / BATCH))
