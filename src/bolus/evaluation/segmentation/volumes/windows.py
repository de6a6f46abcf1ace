"""Windows of labelled volumes to learn from: some about a labelled voxel, the others anywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bolus.data.views.volumes import augment_volume_labels, augment_volumes
from bolus.data.volumes.cache.store import VolumeStore
from bolus.data.volumes.cache.windows import Corners, Voxels, centred, drawn, margin_of
from bolus.data.volumes.fit import Box
from bolus.evaluation.statistics.metrics import IntArray
from bolus.recipe import AugmentSpec
from bolus.seeds import seed_for

SHARE = 0.5  # of windows that are about a labelled voxel, where nobody says
KEPT = 10_000  # voxels of a class that a window may be about, evenly among all of them

Labelled = list[NDArray[np.int32]]
"""Voxels (D, H, W) of each class that a volume has, `[n, 3]`."""


def labelled_voxels(labels: NDArray[Any]) -> Labelled:
    """Voxels of each foreground class that is there, 10,000 of a class at most.

    Args:
        labels: classes `[d, h, w]`.

    >>> [places.tolist() for places in labelled_voxels(np.array([[[0, 2, 1]], [[0, 2, 0]]]))]
    [[[0, 0, 2]], [[0, 0, 1], [1, 0, 1]]]
    """
    found = list[NDArray[np.int32]]()
    for label in np.unique(labels[labels > 0]):
        places = np.flatnonzero(labels == label)
        places = places[np.linspace(0, len(places) - 1, min(len(places), KEPT)).astype(np.int64)]
        found.append(np.stack(np.unravel_index(places, labels.shape), axis=1).astype(np.int32))
    return found


def draw_corner(shape: Voxels, box: Box, labelled: Labelled, share: float, rng: np.random.Generator) -> Corners:
    """The corner of a window, int64 `[3]`: with a chance of `share` about a voxel of a class, each class alike.

    A window about a voxel near the edge of the volume ends there. Where nothing is labelled it lies anywhere.

    Args:
        shape: voxels of the volume (D, H, W).
        box: of the window.
        labelled: of the volume.
        share: from 0 to 1.
        rng: of this window.

    >>> lesion = labelled_voxels(np.pad([[[1]]], ((0, 0), (0, 0), (8, 1))))
    >>> draw_corner((1, 1, 10), (1, 1, 4), lesion, 1.0, np.random.default_rng(0)).tolist()
    [0, 0, 6]
    """
    about, anywhere = rng.random() < share, drawn(shape, box, rng)
    if not about or not labelled:
        return anywhere
    voxels = labelled[int(rng.integers(len(labelled)))]
    middle = voxels[int(rng.integers(len(voxels)))].astype(np.int64)
    spare = np.asarray(shape, np.int64) - np.asarray(box, np.int64)
    return np.where(spare > 0, np.clip(middle - np.asarray(box) // 2, 0, np.maximum(spare, 0)), centred(shape, box))


def labelled_windows(
    store: VolumeStore,
    rows: IntArray,
    labels: list[NDArray[Any]],
    voxels: list[Labelled],
    *,
    box: Box,
    augment: AugmentSpec,
    share: float,
    seed: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """A random view of a window of each volume, and its labels in the same view.

    Windows are taken with an eighth more on either side, where a volume goes on, so that turned views see it.

    Args:
        store: of the volumes.
        rows: int64 `[n]`, which; a row may come several times.
        labels: classes `[d, h, w]` of each volume, at its cached voxels.
        voxels: those that are labelled.
        box: voxels of a view.
        augment: of the views.
        share: of windows that are about a labelled voxel.
        seed: of windows and views.
        device: where the views are made.

    Returns:
        Float32 `[n, C, d, h, w]` in [0, 1] and int64 `[n, d, h, w]`, on the device.
    """
    shapes, sides = store.shape[rows, 1:], np.array(box)
    rngs = [np.random.default_rng([seed_for(seed, "windows"), place]) for place in range(len(rows))]
    corners = np.stack([draw_corner(shapes[place], box, voxels[place], share, rng) for place, rng in enumerate(rngs)])
    margin = margin_of(box, store.largest)
    corners, size = corners - margin, sides + 2 * margin
    stored = store.gather(rows, corners, size.tolist())
    given: dict[str, Any] = {"size": box, "seed": seed, "spacing": stored.spacing}
    images = augment_volumes(stored.unit(device), augment, views=1, **given)[0]
    masks = torch.from_numpy(np.stack([cut(each, at, size) for each, at in zip(labels, corners, strict=True)]))
    return images, augment_volume_labels(masks.to(device), augment, **given)


def cut(labels: NDArray[Any], corner: Corners, size: Corners) -> NDArray[np.int64]:
    """A window of labels, 0 beyond the volume.

    >>> cut(np.array([[[3, 4]]]), np.array([0, 0, 1]), np.array([1, 1, 2])).tolist()
    [[[4, 0]]]
    """
    window = np.zeros(size, np.int64)
    start, stop = np.maximum(corner, 0), np.minimum(corner + size, labels.shape)
    if (stop > start).all():
        inside = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
        window[tuple(slice(int(a), int(b)) for a, b in zip(start - corner, stop - corner, strict=True))] = labels[
            inside
        ]
    return window
