"""Segmenters of volumes: trained on windows of a few labelled patients, and drawn with by windows that slide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bolus.data.cohort.cohort import Samples
from bolus.data.images.sources import readings_of
from bolus.data.readers.own import open_readers
from bolus.data.volumes.cache.store import VolumeStore
from bolus.data.volumes.fit import Box
from bolus.data.volumes.volume import Volume
from bolus.encoders.backbone import Encoder
from bolus.errors import EvaluationError, ImageError, UsageError, require
from bolus.evaluation.segmentation.options import SegmentSpec
from bolus.evaluation.segmentation.segmenter import Segmenter, start_decoder, train_segmenter
from bolus.evaluation.segmentation.volumes.masks import volume_again
from bolus.evaluation.segmentation.volumes.place import Grid, Place, grid_of
from bolus.evaluation.segmentation.volumes.windows import SHARE, labelled_voxels, labelled_windows
from bolus.evaluation.statistics.metrics import IntArray

OVERLAP = 0.5  # of two windows that follow each other
TOGETHER = 4  # windows at a time


def fit_windows(
    encoder: Encoder,
    store: VolumeStore,
    samples: Samples,
    labels: Mapping[int, NDArray[Any]],
    rows: ArrayLike,
    *,
    box: Box,
    num_classes: int,
    spec: SegmentSpec | None = None,
    seed: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> Segmenter:
    """As `bolus.evaluation.segmentation.segmenter.fit_segmenter`, of volumes: each step sees a batch of windows.

    A share of the windows is about labelled voxels (`SegmentSpec.foreground`), since most of a volume is background
    where masks are small. Windows and views depend on the seed and the rows alone.

    Args:
        encoder: of volumes, on the device that is trained on.
        store: volumes in the encoder's preprocessing.
        samples: of the store's cohort, unit `volume`.
        labels: first row of a volume -> `[d, h, w]` integers 0..K-1 at the cached voxels.
        rows: int `[n]`, first rows of the volumes trained on, readable, with labels; their order is ignored.
        box: voxels that the encoder sees.
        num_classes: K, with the background, at least 2.
        spec: how; the defaults where None.
        seed: of the decoder's weights, batches, windows, views and dropout.
        on_step: called with the number of steps done.

    Raises:
        EvaluationError: no volume to train on; else as `fit_segmenter`.
        UsageError: fewer than two classes.
    """
    spec = spec or SegmentSpec()
    if num_classes < 2:
        raise UsageError(f"segmentation: expected the background and at least one class, found {num_classes} in all")
    chosen: IntArray = np.unique(np.asarray(rows, dtype=np.int64))
    if not len(chosen):
        raise EvaluationError("segmentation: no labelled volume to train on")
    device = next(encoder.parameters()).device
    masks = [labels[int(row)] for row in chosen]
    for row, mask in zip(chosen.tolist(), masks, strict=True):
        assert mask.shape == tuple(store.shape[row, 1:]), f"labels {mask.shape} of other voxels {store.shape[row]}"
    voxels = [labelled_voxels(mask) for mask in masks]

    def batch_of(places: IntArray, view: int) -> tuple[Tensor, Tensor]:
        return labelled_windows(
            store, chosen[places], [masks[place] for place in places], [voxels[place] for place in places],
            box=box, augment=spec.augment, share=SHARE if spec.foreground is None else spec.foreground,
            seed=view, device=device,
        )  # fmt: skip

    untrained = Segmenter(encoder, start_decoder(encoder, num_classes, seed), store, samples, num_classes)
    return train_segmenter(untrained, batch_of, len(chosen), spec=spec, seed=seed, on_step=on_step)


def volume_as_cached(samples: Samples, store: VolumeStore, position: int) -> Volume:
    """A volume of the samples from its files, read as it was for the cache."""
    cohort, row = samples.cohort, samples.first_row[position : position + 1]
    reading = readings_of(cohort, row, store.preprocessing.stated, open_readers(cohort.spec.readers))[0][0]
    return volume_again(samples, position, reading)


def stored_grid(samples: Samples, store: VolumeStore, row: int, place: Place, read: Callable[[], Volume]) -> Grid:
    """The grid that the cache keeps a volume on.

    Args:
        samples: of the store's cohort.
        store: volumes in an encoder's preprocessing.
        row: the first of the volume.
        place: where its files say that it lies.
        read: the volume again, as `grid_of` asks for it.

    Raises:
        ImageError: of another shape than the cached one.
    """
    contract = store.preprocessing.seen_by(samples.cohort.modality)
    grid = grid_of(place, contract, read, str(samples.cohort.modality[row]))
    if grid.shape != tuple(store.shape[row, 1:].tolist()):
        raise ImageError("the volume was changed since it was cached")
    return grid


def slide(segmenter: Segmenter, row: int, *, box: Box) -> Tensor:
    """Class probabilities of every cached voxel of a volume, averaged over the windows that hold it.

    Windows overlap by half, and count by a Gaussian about their middle (MONAI's `sliding_window_inference`); what a
    window has beyond the volume is black. Probabilities are averaged, not scores before the softmax.

    Args:
        segmenter: of volumes, trained.
        row: of the volume.
        box: voxels that the encoder sees.

    Returns:
        float32 `[K, d, h, w]` on the CPU.
    """
    inferers = require("monai.inferers.utils", "sliding windows")
    device = next(segmenter.encoder.parameters()).device
    segmenter.encoder.eval()
    segmenter.decoder.eval()
    whole = segmenter.store.gather(np.array([row], np.int64)).unit()
    with torch.inference_mode():
        found: Tensor = inferers.sliding_window_inference(
            whole, box, TOGETHER, lambda windows: segmenter.logits(windows).float().softmax(1),
            overlap=OVERLAP, mode="gaussian", sw_device=device, device="cpu",
        )  # fmt: skip
    return found[0]
