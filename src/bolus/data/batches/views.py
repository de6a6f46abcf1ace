"""Samples as an encoder sees them where nothing is drawn: the evaluation view, batch by batch."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bolus.data.batches.augment import plain
from bolus.data.cohort.cohort import Samples
from bolus.data.images.cache import ImageStore
from bolus.data.images.clips import pick_frames
from bolus.data.images.preprocessing import Preprocessing

Item = TypeVar("Item")


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
    store: ImageStore,
    samples: Samples,
    positions: npt.NDArray[np.int64],
    *,
    step: int,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The evaluation view of samples that are seen at one size, batch by batch.

    Args:
        contract: of these samples: their size, and of clips how many frames are seen.
        store: the pixels of `samples.cohort`.
        samples: images, slices, or clips if the contract has frames.
        positions: int64 `[n]`, which samples; each has a readable row.
        step: samples of a batch; the last may have fewer.
        device: where the views are made.

    Yields:
        Images float32 `[B, C, size, size]` in [0, 1] and None; or clips `[B, C, T, size, size]` and which of their
        frames are real, bool `[B, T]`.
    """
    frames, size = contract.frames, contract.size
    for start in range(0, len(positions), step):
        some = positions[start : start + step]
        if frames is None:
            yield plain(store.gather(samples.first_row[some]).unit(device), size=size), None
            continue
        rows, real = pick_frames(samples, some, store.readable, frames)
        images = plain(store.gather(rows.ravel()).unit(device), size=size)
        clips = images.view(len(some), frames, *images.shape[1:]).transpose(1, 2)
        yield clips, torch.from_numpy(real).to(device)
