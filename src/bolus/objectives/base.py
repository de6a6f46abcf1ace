"""The contract of an objective: features and a batch in, one named, unweighted loss out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bolus.data.batches.batch import Batch
from bolus.data.batches.relation import Needs
from bolus.encoders.features import Features
from bolus.errors import RecipeError, UsageError, suggest
from bolus.recipe import Recipe

TrainingTable = Mapping[str, npt.NDArray[Any]]
"""Role -> values of the training samples, `[n]`: int64 codes with -1 missing, or float64 numbers with NaN missing."""


@dataclass
class Loss:
    """One objective's loss on the global batch.

    Args:
        value: scalar, unweighted; exactly 0 with zero gradients where there is nothing to do.
        num_anchors: rows that contributed; a scalar tensor where it is the device that counts, so that nobody waits for
            it before the line of metrics is written.
        counts: whatever else a person may want to see counted, by name; logged as means over batches.
    """

    value: Tensor
    num_anchors: int | Tensor
    counts: dict[str, int | Tensor] = field(default_factory=dict)


class Objective(nn.Module, ABC):
    """Turns features and a batch into one loss; owns its heads, knows nothing of processes or steps.

    A concrete objective is never subclassed. Its constructor takes `shape: FeatureShape`, then `table: TrainingTable`
    if scales or heads depend on what the training samples hold, and then its own keyword parameters, whose defaults are
    the recipe's defaults; every parameter of its heads is born there. What others must know of a kind stands in the
    attributes of its class and in `needs`.
    """

    needs: Needs
    branch: str = "image"  # only objectives of one branch are reconciled with each other (GCL: image and pixel level)
    shares_head: bool = False  # whether objectives of its kind may share its `head`
    memory_keys: tuple[str, ...] = ()  # its parameters that a person lowers where a step does not fit into memory
    # Its parameter that names a head of the image branch, which it reads and does not train; `lend` brings that head.
    borrows: str | None = None
    name: str = ""  # in the recipe; whatever is drawn at random depends on it and on the seed of the step
    lent: tuple[nn.Module, ...] = ()  # the borrowed head, in a tuple, so that it is no part of this module

    def lend(self, head: nn.Module) -> None:
        """Take the head that `borrows` asks for, to read from; it stays its owner's."""
        self.lent = (head,)

    @property
    def embeds_with(self) -> Hashable:
        """Equal for objectives whose `embed` gives the same: for them the loop embeds, and gathers, once."""
        return id(self)

    @abstractmethod
    def embed(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """Per row, local to a process, through the heads: tensors `[V, N, ...]`, or `[1, N, ...]` without views."""

    @abstractmethod
    def loss(self, embedded: dict[str, Tensor], batch: Batch) -> Loss:
        """Across rows of the global batch, after gathering; holds for one process and for many."""


def check_batch(objectives: Mapping[str, Objective], recipe: Recipe, processes: int = 1) -> None:
    """Refuse batches that leave an objective nothing to compare, so that a collapsed encoder is as good as any.

    A loss sees the samples of all processes, so that their whole batch counts, but a normalisation in a head those of
    one process: of a single sample it keeps only what sets its views apart. Accumulated batches do not see each other.

    Args:
        objectives: by name.
        recipe: for its sampling and accumulation.
        processes: that share a batch evenly.

    Raises:
        RecipeError: fewer samples than an objective needs.

    >>> from bolus.encoders.features import FeatureShape
    >>> from bolus.objectives.contrasts.contrast import Contrast
    >>> recipe = Recipe.load("simclr").override(["sampling.batch_size=1"])
    >>> check_batch({"views": Contrast(FeatureShape(dim=6, grid_channels=6, grid_stride=32))}, recipe)
    Traceback (most recent call last):
    bolus.errors.RecipeError: sampling.batch_size: objectives.views compares samples with each other and needs a batch
    of at least 2, found 1; set sampling.batch_size=2 or more
    """
    batch_size = recipe.sampling.batch_size
    alone = " (the batches that training.accumulate joins are compared one by one)"
    for name, objective in objectives.items():
        least = objective.needs.samples
        if batch_size < least:
            raise RecipeError(
                f"sampling.batch_size: objectives.{name} compares samples with each other and needs a batch of at "
                f"least {least}, found {batch_size}; set sampling.batch_size={least} or more"
                f"{alone if recipe.training.accumulate > 1 else ''}"
            )
        normalises = any(isinstance(module, nn.BatchNorm1d) for module in objective.modules())
        if least > 1 and normalises and batch_size == processes:
            raise RecipeError(
                f"sampling.batch_size: {batch_size} for {processes} processes is one sample each, and the head of "
                f"objectives.{name} normalises over the samples of a process; set sampling.batch_size={2 * processes} "
                "or more, or launch fewer processes"
            )


def scores_among(table: TrainingTable, targets: str | Sequence[str] | None, key: str = "targets") -> tuple[str, ...]:
    """The scores that an objective works on: those named, or the only one that the table has.

    Args:
        table: of the training samples.
        targets: roles, of scores, numbers or numeric attributes; or one.
        key: what the recipe calls them.

    Raises:
        RecipeError: nothing named where the table has no score, or several; a role that holds categories or that no
            column has; a score that is missing or constant throughout.

    >>> scores_among({"score:age": np.array([40.0, 62.0])}, None)
    ('score:age',)
    """
    if targets is None:
        found = [role for role in table if role.startswith("score:")]
        if len(found) != 1:
            there = f"the cohort has {', '.join(sorted(found))}" if found else "the cohort has no role score:NAME"
            raise RecipeError(f"{key}: name the score, as {key}=score:NAME; {there}")
        targets = found
    targets = (targets,) if isinstance(targets, str) else tuple(targets)
    if not targets:
        raise RecipeError(f"{key}: expected at least one role, found none")
    for role in targets:
        if role not in table:
            raise RecipeError(f"{key}: no column has the role {role!r}; {suggest(role, table)}")
        values = table[role]
        if values.dtype.kind != "f":
            raise RecipeError(f"{key}: {role} holds categories, where a score is a number")
        known = values[np.isfinite(values)]
        if not len(known):
            raise RecipeError(f"{key}: {role} is missing in every training sample")
        if np.ptp(known) == 0:
            raise RecipeError(f"{key}: {role} is {known[0]:g} in every training sample, which leaves nothing to learn")
    return targets


def standardisation(table: TrainingTable, role: str) -> tuple[float, float]:
    """Mean and standard deviation of a column over the training samples that have it.

    >>> standardisation({"score:age": np.array([40.0, 60.0, np.nan])}, "score:age")
    (50.0, 10.0)
    """
    values = table[role]
    values = values[np.isfinite(values)]
    return float(values.mean()), float(values.std())


def check_rows(z: Tensor, y: Tensor, valid: Tensor | None, temperature: float) -> None:
    """Refuse what no contrast of rows by their scores takes.

    Args:
        z: float `[N, D]`.
        y: `[N]` or `[N, T]`.
        valid: bool `[N]` or `[N, N]`, or None.
        temperature: above 0.

    Raises:
        UsageError: other shapes, dtypes or temperature.

    >>> check_rows(torch.zeros(2, 3), torch.zeros(3), None, 1.0)
    Traceback (most recent call last):
    bolus.errors.UsageError: y: expected [2] or [2, T], found [3]
    """
    if z.ndim != 2 or not z.is_floating_point():
        raise UsageError(f"z: expected float [N, D], found {z.dtype} {list(z.shape)}")
    num_rows = len(z)
    if y.ndim not in (1, 2) or len(y) != num_rows or (y.ndim == 2 and y.shape[1] == 0):
        raise UsageError(f"y: expected [{num_rows}] or [{num_rows}, T], found {list(y.shape)}")
    if valid is not None and (valid.dtype != torch.bool or valid.shape not in ((num_rows,), (num_rows, num_rows))):
        raise UsageError(
            f"valid: expected bool [{num_rows}] or [{num_rows}, {num_rows}], found {valid.dtype} {list(valid.shape)}"
        )
    if not temperature > 0:
        raise UsageError(f"temperature: expected a positive number, found {temperature}")
