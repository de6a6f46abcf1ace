"""How an encoder sees samples: the whole image or evenly cut clip, or a random view of it."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from bolus.data.batches.augment import augment
from bolus.data.batches.presets import NOTHING, resolve
from bolus.data.cohort.cohort import Samples
from bolus.data.images.cache import ImageStore
from bolus.data.images.clips import pick_frames
from bolus.embedding.vectors import embed_samples
from bolus.encoders.backbone import Encoder
from bolus.evaluation.statistics.metrics import IntArray
from bolus.recipe import AugmentSpec


class Sight:
    """An encoder's features of samples, in evaluation and in training.

    Args:
        encoder: on the device that is used; its mode is set by each call.
        store: images in the encoder's preprocessing; clips where it has `frames`.
        samples: of the store's cohort.
        augment: of training views; None: none.
        whole: whether the encoder is trained. If not, it stays in evaluation mode and its features have no gradients.
    """

    def __init__(
        self, encoder: Encoder, store: ImageStore, samples: Samples, *, augment: AugmentSpec | None, whole: bool
    ) -> None:
        self.encoder, self.store, self.samples, self.whole = encoder, store, samples, whole
        self.device = next(encoder.parameters()).device
        self.augment = None if augment is None or resolve(augment) == NOTHING else augment
        self.known: Tensor | None = None

    def remember(self, positions: IntArray) -> None:
        """Keep the evaluation features of these samples: of an encoder that does not change."""
        found = self.plain(positions)
        self.known = torch.zeros(len(self.samples), found.shape[1], device=self.device)
        self.known[torch.from_numpy(positions)] = found

    def plain(self, positions: IntArray) -> Tensor:
        """Features `[n, D]` float32 of the evaluation view, in evaluation mode."""
        if self.known is not None:
            return self.known[torch.from_numpy(positions)]
        return torch.from_numpy(embed_samples(self.encoder, self.store, self.samples, positions)).to(self.device)

    def random(self, positions: IntArray, seed: int) -> Tensor:
        """Features `[n, D]` float32 of a training view, a function of the seed (but for dropout)."""
        if not self.whole and self.augment is None:
            return self.plain(positions)
        self.encoder.train(self.whole)
        with torch.set_grad_enabled(self.whole):
            return self._features(positions, seed)

    def _features(self, positions: IntArray, seed: int) -> Tensor:
        """Features `[n, D]` of a random view."""
        size, frames, mask = self.store.preprocessing.size, self.store.preprocessing.frames, None
        rows = self.samples.first_row[positions]
        if frames is not None:
            draw = partial(_generator, seed)
            rows, real = pick_frames(self.samples, positions, self.store.readable, frames, draw=draw)
            mask = torch.from_numpy(real).to(self.device)
        stored = self.store.gather(rows.ravel()).unit(self.device)
        images = augment(stored, self.augment or NOTHING, size=size, views=1, seed=seed, frames=frames)[0]
        pooled: Tensor = self.encoder(images, frame_mask=mask).pooled
        return pooled.float()


def _generator(seed: int, position: int) -> np.random.Generator:
    """What draws the frames of one clip."""
    return np.random.default_rng([seed, position])
