"""Samples as an encoder sees them: the evaluation view, where nothing is drawn, and random views; of any unit."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bolus.data.cohort.cohort import Samples
from bolus.data.images.cache import Store, Stored
from bolus.data.images.clips import Draw, pick_frames
from bolus.data.images.preprocessing import Preprocessing
from bolus.data.views.augment import augment, plain
from bolus.data.views.volumes import augment_volumes
from bolus.data.volumes.cache.store import VolumeStore
from bolus.data.volumes.cache.windows import Corners, centred, covering, drawn, margin_of
from bolus.recipe import AugmentSpec

Item = TypeVar("Item")
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def one_ahead(items: Iterator[Item]) -> Generator[Item]:
    """The items, each made by a thread while the one before is used.

    >>> list(one_ahead(iter([1, 2, 3])))
    [1, 2, 3]
    """
    end = object()
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending = pool.submit(next, items, end)
        while (item := pending.result()) is not end:
            pending = pool.submit(next, items, end)
            yield item  # type: ignore[misc]


def whole_views(
    contract: Preprocessing,
    store: Store,
    samples: Samples,
    positions: Rows,
    *,
    step: int,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The evaluation view of samples that are seen at one size, batch by batch.

    Args:
        contract: of these samples: their size, and of clips how many frames are seen.
        store: the pixels of `samples.cohort`.
        samples: images, slices, clips if the contract has frames, or volumes if it has their box.
        positions: int64 `[n]`, which samples; each has a readable row.
        step: samples of a batch, or windows of volumes; the last may have fewer.
        device: where the views are made.

    Yields:
        Images float32 `[B, C, size, size]` in [0, 1] and None; or clips `[B, C, T, size, size]` and which of their
        frames are real, bool `[B, T]`; or windows of volumes `[B, C, d, h, w]` and None, those of one volume one after
        the other, as many as `count_views` says.
    """
    if contract.volume is not None:
        assert isinstance(store, VolumeStore)
        yield from _windows(contract, store, samples.first_row[positions], step, device)
        return
    frames, size = contract.frames, contract.size
    for start in range(0, len(positions), step):
        some = positions[start : start + step]
        stored, real = stored_views(contract, store, samples, some, readable=store.readable)
        images = plain(stored.unit(device), size=size)
        if frames is None or real is None:
            yield images, None
            continue
        clips = images.view(len(some), frames, *images.shape[1:]).transpose(1, 2)
        yield clips, torch.from_numpy(real).to(device)


def count_views(contract: Preprocessing, store: Store, samples: Samples, positions: Rows) -> Rows:
    """How many views `whole_views` gives of each sample, int64 `[n]`: one, and of a volume the windows that cover it.

    Args:
        contract: as of `whole_views`, and so are the others.
        store: their pixels.
        samples: of the cohort.
        positions: int64 `[n]`.
    """
    if contract.volume is None:
        return np.ones(len(positions), np.int64)
    assert isinstance(store, VolumeStore)
    rows = samples.first_row[positions]
    return np.array([len(_seen(contract, store, row)) for row in rows.tolist()], np.int64)


def stored_views(
    contract: Preprocessing,
    store: Store,
    samples: Samples,
    positions: Rows,
    *,
    readable: Mask,
    draw: Draw | None = None,
) -> tuple[Stored, Mask | None]:
    """The stored pixels of which one view of each sample is made.

    Args:
        contract: of these samples.
        store: the pixels of `samples.cohort`.
        samples: of the contract's unit.
        positions: int64 `[n]`; each has a readable row.
        readable: bool, one for each row of the cohort.
        draw: position -> what draws the frames of a clip, or the window of a volume; None takes those in the middle.

    Returns:
        An image, T frames, or a window each; the windows with what lies about them, as `random_views` likes them. And
        which frames of clips are real, bool `[n, T]`; None of the others.
    """
    rows = samples.first_row[positions]
    if isinstance(store, VolumeStore):
        assert contract.volume is not None
        box = np.array(contract.volume.size)
        shapes = store.shape[rows, 1:]
        margin = margin_of(box, store.largest)
        corners = [
            centred(shape, box) if draw is None else drawn(shape, box, draw(position))
            for shape, position in zip(shapes, positions.tolist(), strict=True)
        ]
        return store.gather(rows, np.stack(corners) - margin, (box + 2 * margin).tolist()), None
    if contract.frames is None:
        return store.gather(rows), None
    rows, real = pick_frames(samples, positions, readable, contract.frames, draw=draw)
    return store.gather(rows.ravel()), real


def random_views(
    stored: Stored,
    spec: AugmentSpec,
    *,
    sides: Sequence[int],
    views: int,
    seed: int,
    device: torch.device | str,
    frames: int | None = None,
    of: tuple[int, Tensor] | None = None,
) -> Tensor:
    """Random views of what `stored_views` gave, made on the device.

    Args:
        stored: images, frames of clips, or windows of volumes.
        spec: what varies and how much.
        sides: of a view, pixels (height, width) or voxels (depth, height, width).
        views: V.
        seed: of this batch.
        device: where.
        frames: T, of clips.
        of: as of `augment`, where these are some samples of a batch.

    Returns:
        Float32 in [0, 1], `[V, N, C, size, size]`; `[V, N, C, T, size, size]` of clips, `[V, N, C, d, h, w]` of
        volumes.
    """
    unit = stored.unit(device)
    if unit.ndim == 5:
        depth, height, width = sides
        box = (depth, height, width)
        return augment_volumes(unit, spec, size=box, views=views, seed=seed, spacing=stored.spacing, of=of)
    return augment(unit, spec, size=sides[-1], views=views, seed=seed, frames=frames, of=of)


def _windows(
    contract: Preprocessing, store: VolumeStore, rows: Rows, step: int, device: torch.device
) -> Iterator[tuple[Tensor, None]]:
    """Windows of volumes `[B, C, d, h, w]`, a volume after the other."""
    assert contract.volume is not None
    places = ((row, corner) for row in rows.tolist() for corner in _seen(contract, store, row))
    while some := list(islice(places, step)):
        corners = np.stack([corner for _, corner in some])
        stored = store.gather(np.array([row for row, _ in some], np.int64), corners, contract.volume.size)
        yield stored.unit(device), None


def _seen(contract: Preprocessing, store: VolumeStore, row: int) -> Corners:
    """Corners of the windows that an evaluation sees, `[k, 3]`: they cover the volume, or are its middle for `crop`."""
    assert contract.volume is not None
    shape, box = store.shape[row, 1:], contract.volume.size
    return centred(shape, box)[None] if contract.fit == "crop" else covering(shape, box)
