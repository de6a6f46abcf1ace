"""Numbers drawn for the views of a batch: the same for a view, whoever makes it."""

from __future__ import annotations

import torch
from torch import Tensor

from bolus.seeds import seed_for


class Draws:
    """Random numbers for every view of a batch, on the CPU, of which those of some samples are kept.

    Several processes each make the views of some samples. Numbers are drawn for the whole batch in each, so that a
    view does not depend on how many processes there are.

    Args:
        seed: of this batch, 0 <= seed < 2**63.
        views: V.
        samples: of the whole batch.
        places: int64 `[n]`, the samples among them whose views are made; None: all.

    Attributes:
        count: views that are made, V * n, view-major.

    Example:
        >>> every, some = Draws(1, 2, 3), Draws(1, 2, 3, torch.tensor([2]))
        >>> torch.equal(every.uniform(0, 1).view(2, 3)[:, 2], some.uniform(0, 1))
        True
    """

    def __init__(self, seed: int, views: int, samples: int, places: Tensor | None = None) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self._seed, self._views, self._samples, self._places = seed, views, samples, places
        self.count = views * (samples if places is None else len(places))

    def uniform(self, low: float, high: float, columns: int | None = None) -> Tensor:
        """Numbers between two bounds, `[count]`, or so many for each view, `[count, columns]`."""
        each = columns or 1
        found = torch.rand(self._views * self._samples * each, generator=self.generator)
        if self._places is not None:
            found = found.view(self._views, self._samples, each)[:, self._places].reshape(-1)
        found = found * (high - low) + low
        return found if columns is None else found.view(self.count, each)

    def chosen(self, probability: float) -> Tensor:
        """Which views something happens to, bool `[count]`."""
        return self.uniform(0, 1) < probability

    def own_seed(self) -> int:
        """A seed for what cannot be drawn for all views by one process: that of the batch where all are made by one.

        Others depend on which samples are made together.
        """
        if self._places is None or not len(self._places):
            return self._seed
        return seed_for(self._seed, "of some", int(self._places[0]))
