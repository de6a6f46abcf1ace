"""The contract of an objective: features and a batch in, one named, unweighted loss out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from bolus.data.batch import Batch
from bolus.data.relation import Needs
from bolus.encoders.features import Features


@dataclass
class Loss:
    """One objective's loss on the global batch.

    Args:
        value: scalar, unweighted; exactly 0 with zero gradients where there is nothing to do.
        num_anchors: rows that contributed.
    """

    value: Tensor
    num_anchors: int


class Objective(nn.Module, ABC):
    """Turns features and a batch into one loss; owns its heads, knows nothing of processes or steps.

    A concrete objective is never subclassed. Its constructor takes `shape: FeatureShape` and then its own keyword
    parameters, whose defaults are the recipe's defaults; every parameter of its heads is born there.
    """

    needs: Needs

    @abstractmethod
    def embed(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """Per row, local to a process, through the heads: tensors `[V, N, ...]`, or `[1, N, ...]` without views."""

    @abstractmethod
    def loss(self, embedded: dict[str, Tensor], batch: Batch) -> Loss:
        """Across rows of the global batch, after gathering; holds for one process and for many."""
