"""How an encoder sees samples: the whole image, evenly cut clip or volume, or a random view of it."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bolus.data.cohort.cohort import Samples
from bolus.data.images.cache import Store
from bolus.data.views.presets import NOTHING, resolve
from bolus.data.views.samples import random_views, stored_views
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
        self, encoder: Encoder, store: Store, samples: Samples, *, augment: AugmentSpec | None, whole: bool
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
        contract, draw = self.store.preprocessing, partial(_generator, seed)
        stored, real = stored_views(
            contract, self.store, self.samples, positions, readable=self.store.readable, draw=draw
        )
        options: dict[str, Any] = {"sides": contract.sides, "frames": contract.frames, "device": self.device}
        [images] = random_views(stored, self.augment or NOTHING, views=1, seed=seed, **options)
        mask = None if real is None else torch.from_numpy(real).to(self.device)
        pooled: Tensor = self.encoder(images, frame_mask=mask).pooled
        return pooled.float()


def _generator(seed: int, position: int) -> np.random.Generator:
    """What draws the frames of one clip, or the window of one volume."""
    return np.random.default_rng([seed, position])
