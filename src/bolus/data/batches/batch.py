"""What one training step sees, and which samples it consists of: `Batch` and the sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from bolus.data.batches.partners import PartnerIndex, Positions
from bolus.errors import RecipeError
from bolus.seeds import seed_for


@dataclass
class Batch:
    """N samples, each in V views, with what the table says of them.

    Args:
        views: modality -> `[V, N_m, C, H, W]`, or `[V, N_m, C, T, H, W]` for clips and `[V, N_m, C, D, H, W]` for
            volumes; float32 in [0, 1]. One entry where
            the cohort has one modality.
        rows: modality -> int64 `[N_m]`, the positions of its samples among the N of the batch.
        columns: role -> `[N]` or `[N, K]`; codes are int64 with -1 missing (equal to nothing, not even itself), numbers
            are float with NaN missing. Always holds `sample` (position among the cohort's samples), and `patient` where
            the cohort has that role.
        frame_mask: bool `[N, T]`, true at real frames; None for images.
        progress: share of the training done, 0 to 1.
        seed: of this step; a stochastic objective derives its generator from it and its own name.

    Example:
        >>> import torch
        >>> images = torch.zeros(2, 3, 1, 8, 8)
        >>> Batch({"XR": images}, {"XR": torch.arange(3)}, {"sample": torch.tensor([4, 0, 2])}).num_samples
        3
    """

    views: dict[str, Tensor]
    rows: dict[str, Tensor]
    columns: dict[str, Tensor]
    frame_mask: Tensor | None = None
    progress: float = 0.0
    seed: int = 0

    @property
    def num_samples(self) -> int:
        """N, the number of samples over all modalities."""
        return len(self.columns["sample"])


class Sampler:
    """Which samples make up a batch: seeded anchors, partners for each relation, random fill.

    Batch b of epoch e is a pure function of (seed, e, b); what is kept between calls is only a cached permutation. An
    epoch is every sample once as an anchor. With `balance="patient"` it is as many anchors, but every patient has the
    same expected number of them, spread evenly over the patient's samples; a sample without a patient counts as a
    patient of its own. An anchor that comes twice in one batch, which balancing can bring about where there are few
    patients, is taken once.

    Args:
        num_samples: how many samples there are to draw from.
        batch_size: samples a batch, exactly.
        seed: of the run.
        indexes: one for each relation, over the same samples; those without a single partner are left aside.
        partners: drawn for each anchor and each relation; what an anchor lacks is filled at random.
        patients: int64 `[num_samples]` codes, -1 missing; needed for `balance="patient"`.
        balance: `none` or `patient`.

    Raises:
        RecipeError: fewer samples than a batch holds, or balance over patients without patients.

    Example:
        >>> sampler = Sampler(10, batch_size=4, seed=0)
        >>> sampler.batches_per_epoch, len(set(sampler.batch(0, 2).tolist()))
        (3, 4)
    """

    def __init__(
        self,
        num_samples: int,
        *,
        batch_size: int,
        seed: int,
        indexes: Sequence[PartnerIndex] = (),
        partners: int = 1,
        patients: Positions | None = None,
        balance: Literal["none", "patient"] = "none",
    ) -> None:
        if num_samples < batch_size:
            raise RecipeError(
                f"sampling.batch_size is {batch_size}, but there are only {num_samples} samples to train on; "
                f"set sampling.batch_size to at most {num_samples}"
            )
        if balance == "patient" and patients is None:
            raise RecipeError("sampling.balance is patient, but the cohort has no column with the role patient")
        assert batch_size >= 1
        assert partners >= 0
        assert all(index.num_rows == num_samples for index in indexes), "an index over other samples"
        assert patients is None or patients.shape == (num_samples,)
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.partners = partners
        self.patients = without_missing(patients) if patients is not None and balance == "patient" else None
        self.indexes = tuple(index for index in indexes if partners and index.counts().any())
        self.anchors_per_batch = max(1, batch_size // (1 + partners * len(self.indexes)))
        self._cached: tuple[int, Positions] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Batches in which every sample is an anchor once; the last may hold fewer anchors and more fill."""
        return -(-self.num_samples // self.anchors_per_batch)

    def anchors(self, epoch: int, index: int) -> Positions:
        """The anchors of a batch: int64 `[at most anchors_per_batch]` positions."""
        assert 0 <= index < self.batches_per_epoch, f"batch {index} of {self.batches_per_epoch}"
        if self._cached is None or self._cached[0] != epoch:
            self._cached = (epoch, self._epoch(epoch))
        start = index * self.anchors_per_batch
        return _distinct(self._cached[1][start : start + self.anchors_per_batch])

    def batch(self, epoch: int, index: int) -> Positions:
        """The samples of a batch, in random order: int64 `[batch_size]` positions, all distinct."""
        rng = np.random.default_rng(seed_for(self.seed, "batch", epoch, index))
        anchors = self.anchors(epoch, index)
        drawn = [each.draw_each(anchors, self.partners, rng).ravel() for each in self.indexes]
        partners = rng.permutation(np.concatenate([np.empty(0, dtype=np.int64), *drawn]))
        chosen = _distinct(np.concatenate([anchors, partners[partners >= 0]]))[: self.batch_size]
        return rng.permutation(fill_at_random(chosen, self.batch_size, self.num_samples, rng))

    def _epoch(self, epoch: int) -> Positions:
        """The anchors of an epoch, in order."""
        rng = np.random.default_rng(seed_for(self.seed, "epoch", epoch))
        if self.patients is None:
            return rng.permutation(self.num_samples)
        # Patients in random order, over and over; at a patient's t-th turn the t-th of its shuffled samples.
        num_patients = int(self.patients.max()) + 1
        rounds = -(-self.num_samples // num_patients)
        turns = np.concatenate([rng.permutation(num_patients) for _ in range(rounds)])[: self.num_samples]
        order = np.lexsort([rng.random(self.num_samples), self.patients])
        sizes = np.bincount(self.patients, minlength=num_patients)
        starts = np.cumsum(sizes) - sizes
        turn = np.arange(self.num_samples) // num_patients
        anchors: Positions = order[starts[turns] + turn % sizes[turns]]
        return anchors


def _distinct(positions: Positions) -> Positions:
    """Each position once, in order of first appearance."""
    _, first = np.unique(positions, return_index=True)
    kept: Positions = positions[np.sort(first)]
    return kept


def fill_at_random(chosen: Positions, size: int, num_samples: int, rng: np.random.Generator) -> Positions:
    """The chosen samples, and after them random others until there are `size`, all distinct.

    Args:
        chosen: int64 `[n]`, distinct, n at most `size`.
        size: samples wanted, at most `num_samples`.
        num_samples: how many there are to draw from.
        rng: a seeded generator; the result is a function of its state.

    Example:
        >>> filled = fill_at_random(np.array([4, 2]), 5, 6, np.random.default_rng(0))
        >>> filled[:2].tolist(), len(set(filled.tolist()))
        ([4, 2], 5)
    """
    missing = size - len(chosen)
    if missing and 2 * size > num_samples:
        left = np.setdiff1d(np.arange(num_samples), chosen, assume_unique=True)
        chosen = np.concatenate([chosen, rng.choice(left, missing, replace=False)])
    while len(chosen) < size:  # at most half of the samples are taken, so this soon ends
        fill = rng.integers(num_samples, size=2 * (size - len(chosen)) + 8)
        chosen = _distinct(np.concatenate([chosen, fill]))[:size]
    return chosen


def without_missing(patients: Positions) -> Positions:
    """Codes 0, 1, ... without gaps, in which every missing patient (-1) is one of its own.

    >>> without_missing(np.array([7, -1, 3, -1, 7])).tolist()
    [1, 2, 0, 3, 1]
    """
    known = np.unique(patients, return_inverse=True)[1].astype(np.int64)
    missing = np.flatnonzero(patients == -1)
    known[missing] = known.max(initial=-1) + 1 + np.arange(len(missing))
    return np.unique(known, return_inverse=True)[1].astype(np.int64)
