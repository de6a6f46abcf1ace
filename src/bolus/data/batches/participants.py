"""Batches by participant: so many patients, and of each several images that differ in what the objectives compare."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from bolus.data.batches.batch import fill_at_random, without_missing
from bolus.data.batches.partners import Positions
from bolus.errors import RecipeError
from bolus.seeds import seed_for


class ParticipantSampler:
    """Which samples make up a batch: so many patients, each with at most an equal share of the images.

    Of a patient come first images of different strata, then second ones of the strata, and so on; which one of a
    stratum, and which stratum first, is random. What the patients of a batch leave free is filled first with further
    images of these patients, then with random images of others. Batch b of epoch e is a pure function of (seed, e, b).
    An epoch is every patient once; its last batch, if it has too few, takes random patients of the epoch again.

    Args:
        num_samples: how many samples there are to draw from.
        patients: int64 `[num_samples]` codes, -1 missing; a sample without a patient is a patient of its own.
        batch_size: samples a batch, exactly.
        participants: patients a batch; each has at most `batch_size // participants` images before anything is filled.
        seed: of the run.
        strata: int64 `[num_samples]`, what a sample is among those of its patient, such as its modality, visit and eye
            (`combine_codes`); all codes are values, -1 too. None: all samples are alike.

    Raises:
        RecipeError: fewer samples than a batch holds, more participants than there are patients, or batches in which
            nobody could have a second image.

    Example:
        >>> patients, modality = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 0, 1, 1])
        >>> sampler = ParticipantSampler(6, patients=patients, batch_size=4, participants=2, seed=0, strata=modality)
        >>> batch = sampler.batch(0, 0)
        >>> sampler.batches_per_epoch, sorted(zip(patients[batch].tolist(), modality[batch].tolist()))
        (1, [(0, 0), (0, 1), (1, 0), (1, 1)])
    """

    def __init__(
        self,
        num_samples: int,
        *,
        patients: Positions,
        batch_size: int,
        participants: int,
        seed: int,
        strata: Positions | None = None,
    ) -> None:
        assert participants >= 1
        assert patients.shape == (num_samples,)
        assert strata is None or strata.shape == (num_samples,)
        if num_samples < batch_size:
            raise RecipeError(
                f"sampling.batch_size is {batch_size}, but there are only {num_samples} samples to train on; "
                f"set sampling.batch_size to at most {num_samples}"
            )
        if batch_size < 2 * participants:
            raise RecipeError(
                f"sampling.participants is {participants} and sampling.batch_size {batch_size}, so that nobody has two "
                f"images in a batch; set sampling.batch_size to at least {2 * participants}"
            )
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.participants = participants
        self.seed = seed
        self.patients = without_missing(patients)
        self.strata = np.zeros(num_samples, np.int64) if strata is None else strata
        self.num_patients = int(self.patients.max()) + 1
        if participants > self.num_patients:
            raise RecipeError(
                f"sampling.participants is {participants}, but there are only {self.num_patients} patients to train "
                f"on; set sampling.participants to at most {self.num_patients}"
            )
        self._order = np.argsort(self.patients, kind="stable")  # samples, patient by patient
        self._sizes = np.bincount(self.patients, minlength=self.num_patients)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._cached: tuple[int, Positions] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Batches in which every patient is once."""
        return -(-self.num_patients // self.participants)

    def drawn_patients(self, epoch: int, index: int) -> Positions:
        """The patients of a batch, all distinct: int64 `[participants]`, codes without gaps (`patients`)."""
        assert 0 <= index < self.batches_per_epoch, f"batch {index} of {self.batches_per_epoch}"
        if self._cached is None or self._cached[0] != epoch:
            rng = np.random.default_rng(seed_for(self.seed, "epoch", epoch))
            self._cached = (epoch, rng.permutation(self.num_patients))
        order = self._cached[1]
        drawn = order[index * self.participants : (index + 1) * self.participants]
        again = order[: self.participants - len(drawn)]  # the epoch's first, a random choice like any other
        return np.concatenate([drawn, again])

    def batch(self, epoch: int, index: int) -> Positions:
        """The samples of a batch, in random order: int64 `[batch_size]` positions, all distinct."""
        rng = np.random.default_rng(seed_for(self.seed, "batch", epoch, index))
        drawn = self.drawn_patients(epoch, index)
        sizes = self._sizes[drawn]
        rows = self._order[np.repeat(self._starts[drawn], sizes) + _counted(sizes)]
        # The turn of a row is its place within its patient's stratum, its place that within its patient by turn.
        patient, stratum = self.patients[rows], self.strata[rows]
        shuffled = np.lexsort((rng.random(len(rows)), stratum, patient))
        rows, patient, stratum = rows[shuffled], patient[shuffled], stratum[shuffled]
        turn = _places(patient, stratum)
        by_turn = np.lexsort((rng.random(len(rows)), turn, patient))
        place = _places(patient[by_turn])
        first = np.lexsort((rng.random(len(rows)), place))[: self.batch_size]
        chosen = rows[by_turn][first]
        return rng.permutation(fill_at_random(chosen, self.batch_size, self.num_samples, rng))


def combine_codes(columns: Iterable[npt.NDArray[Any]], num_samples: int) -> Positions:
    """One code for each combination of values, missing being a value like any other.

    Args:
        columns: each `[num_samples]`, codes or numbers.
        num_samples: how long the columns are; without columns all codes are 0.

    Returns:
        int64 `[num_samples]`, from 0, without gaps.

    Example:
        >>> eye, days = np.array([0, 1, 0, -1]), np.array([0.0, 0.0, np.nan, np.nan])
        >>> combine_codes([eye, days], 4).tolist()
        [1, 3, 2, 0]
    """
    combined = np.zeros(num_samples, np.int64)
    for column in columns:
        assert column.shape == (num_samples,)
        values, codes = np.unique(column, return_inverse=True)  # equal_nan: all missing numbers are one value
        combined = np.unique(combined * len(values) + codes, return_inverse=True)[1].astype(np.int64)
    return combined


def _counted(sizes: Positions) -> Positions:
    """0, 1, ... up to each size, one after the other."""
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def _places(*keys: Positions) -> Positions:
    """The place of each element within its run of equal keys; the keys are sorted."""
    new = np.ones(len(keys[0]), dtype=bool)
    new[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    at = np.arange(len(new))
    return at - np.maximum.accumulate(np.where(new, at, 0))
