"""From batch numbers to batches: positions, cached pixels fetched ahead, augmented views, columns as tensors."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bolus.data.batches.batch import Batch, Sampler
from bolus.data.batches.participants import ParticipantSampler
from bolus.data.cohort.coding import Held
from bolus.data.cohort.cohort import Samples
from bolus.data.images.cache import Store, Stored
from bolus.data.images.clips import Draw, pick_frames
from bolus.data.views.samples import random_views, stored_views
from bolus.recipe import ImagesSpec
from bolus.seeds import seed_for

AHEAD = 4
"""Batches that are read or wait to be used, that which is waited for included."""


@dataclass(frozen=True)
class Fetched:
    """One batch before augmentation.

    Args:
        number: of the batch, counted over the whole run.
        positions: int64 `[N]`, the global batch's samples.
        local: int64, which of the N this process forwards.
        stored: modality -> cached pixels of the local samples; of clips the T frames of each, one clip after the other;
            of volumes a window of each.
        rows: modality -> int64, their places among the local samples.
        of: modality -> how many samples of it the global batch holds, and the places of the local ones among them;
            empty where all are local.
        wait: seconds that the consumer waited for it.
        frame_mask: bool `[len(local), T]`, true at real frames; None for images.
        patients: how many different patients the global batch holds; a sample without one counts as one of its own.
    """

    number: int
    positions: npt.NDArray[np.int64]
    local: npt.NDArray[np.int64]
    stored: dict[str, Stored]
    rows: dict[str, npt.NDArray[np.int64]]
    of: dict[str, tuple[int, torch.Tensor]] = field(default_factory=dict)
    wait: float = 0.0
    frame_mask: npt.NDArray[np.bool_] | None = None
    patients: int = 0


class Loader:
    """Batches of a cohort's training samples; batch b is a pure function of (seed, b).

    Args:
        samples: the cohort's samples.
        positions: int64, those that are trained on; the sampler's indices point into it.
        sampler: composes batches.
        columns: role -> `[len(samples)]`, what objectives read.
        images: size, views, and of clips how many frames.
        readable: bool, rows of the cohort whose pixels may be asked for; the store's where None.
        images_of: modality -> its size and augmentation; those of `images` where None.
        rank: this process.
        processes: how many there are; each forwards an equal, contiguous part of a batch.
    """

    def __init__(
        self,
        samples: Samples,
        store: Store,
        positions: npt.NDArray[np.int64],
        sampler: Sampler | ParticipantSampler,
        columns: Mapping[str, npt.NDArray[Any] | Held],
        images: ImagesSpec,
        *,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        readable: npt.NDArray[np.bool_] | None = None,
        images_of: Callable[[str], ImagesSpec] | None = None,
    ) -> None:
        self.samples, self.store, self.positions, self.sampler = samples, store, positions, sampler
        self.columns, self.images, self.seed = columns, images, seed
        self.rank, self.processes = rank, processes
        self.readable = store.readable if readable is None else readable
        self.images_of = images_of or (lambda modality: images)
        self.frames = images.frames if samples.unit == "clip" else None

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch: until every sample was an anchor once, or every patient was drawn once."""
        return self.sampler.batches_per_epoch

    def draw(self, number: int) -> npt.NDArray[np.int64]:
        """Samples of a batch of the run, `[N]`."""
        drawn = self.sampler.batch(number // self.batches_per_epoch, number % self.batches_per_epoch)
        return self.positions[drawn]

    @property
    def images_per_sample(self) -> int:
        """What the encoder sees of a sample: its views, and of a clip the frames of each."""
        return self.images.views * (self.frames or 1)

    def table_rows(self, number: int) -> npt.NDArray[np.int64]:
        """Rows of the table whose pixels a batch needs, `[N]`, or `[N, T]` of clips; of volumes, their first rows."""
        positions = self.draw(number)
        if self.frames is None:
            return self.samples.first_row[positions]
        return pick_frames(self.samples, positions, self.readable, self.frames, draw=self._drawing(number))[0]

    def _drawing(self, number: int) -> Draw:
        """What draws the frames, or the window, of a sample: a function of the seed, the batch and the sample."""
        return lambda position: np.random.default_rng(seed_for(self.seed, "frames", number, position))

    def fetch(self, number: int) -> Fetched:
        """Read one batch's pixels from the cache."""
        positions = self.draw(number)
        share = len(positions) // self.processes
        local = np.arange(self.rank * share, (self.rank + 1) * share)
        every = self.samples.cohort.modality[self.samples.first_row[positions]]
        rows = {str(name): np.flatnonzero(every[local] == name) for name in np.unique(every[local])}
        of = {}
        for name, where in rows.items() if self.processes > 1 else ():
            alike = np.flatnonzero(every == name)
            of[name] = len(alike), torch.from_numpy(np.searchsorted(alike, local[where]))
        mask = None if self.frames is None else np.empty((len(local), self.frames), np.bool_)
        stored, draw = dict[str, Stored](), self._drawing(number)
        for name, where in rows.items():
            contract, some = self.store.preprocessing.of(name), positions[local[where]]
            found, real = stored_views(contract, self.store, self.samples, some, readable=self.readable, draw=draw)
            stored[name] = found.pinned()
            if mask is not None:
                mask[where] = real
        patient = self.columns["patient"][positions]
        patients = len(np.unique(patient[patient >= 0])) + int((patient < 0).sum())
        return Fetched(number, positions, local, stored, rows, of, frame_mask=mask, patients=patients)

    def iterate(self, start: int, stop: int) -> Iterator[Fetched]:
        """Batches `start` to `stop - 1`; up to `AHEAD` of them are read while earlier ones are used."""
        pending: deque[Future[Fetched]] = deque()
        with ThreadPoolExecutor(max_workers=1) as pool:
            try:
                for number in range(start, stop):
                    asked = number + len(pending)
                    pending.extend(pool.submit(self.fetch, each) for each in range(asked, min(number + AHEAD, stop)))
                    began = time.perf_counter()
                    fetched = pending.popleft().result()
                    yield replace(fetched, wait=time.perf_counter() - began)
            finally:  # whoever stops early does not wait for what nobody will use
                pool.shutdown(wait=False, cancel_futures=True)

    def batch(self, fetched: Fetched, *, device: torch.device, progress: float) -> tuple[Batch, Batch]:
        """The local batch with its views, and the global batch, whose columns every process knows.

        The local batch has the frame mask of its samples; the global one, which losses read, has none.
        """
        seed = seed_for(self.seed, "step", fetched.number)
        views = {
            name: random_views(
                stored,
                self.images_of(name).augment,
                sides=self.images_of(name).sides,
                views=self.images.views,
                seed=seed_for(seed, "augment", name, 0),
                device=device,
                frames=self.frames,
                of=fetched.of.get(name),
            )
            for name, stored in fetched.stored.items()
        }
        rows = {name: torch.from_numpy(where).to(device) for name, where in fetched.rows.items()}
        columns = {
            role: torch.from_numpy(np.ascontiguousarray(values[fetched.positions])).to(device)
            for role, values in self.columns.items()
        }
        mask = None if fetched.frame_mask is None else torch.from_numpy(fetched.frame_mask).to(device)
        whole = Batch({}, {}, columns, progress=progress, seed=seed)
        if self.processes == 1:
            return Batch(views, rows, columns, mask, progress, seed), whole
        part = slice(int(fetched.local[0]), int(fetched.local[-1]) + 1)
        mine = {role: values[part] for role, values in columns.items()}
        return Batch(views, rows, mine, mask, progress, seed), whole
