"""Prediction of what the table measures: masked regression and classification, any number of targets at once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bolus.data.batches.batch import Batch
from bolus.data.batches.relation import Needs
from bolus.encoders.features import Features, FeatureShape
from bolus.errors import RecipeError, suggest
from bolus.objectives.base import Loss, Objective, TrainingTable, scores_among, standardisation
from bolus.objectives.heads import at_least_float32

_log = logging.getLogger(__name__)


class Predict(Objective):
    """Mean squared error on numbers, cross-entropy on categories, each over the rows that have the value.

    The plain supervised objective; LEARNER's regression of a score (arXiv:2411.01144, section 3) and COMPRER's of
    medical measures (arXiv:2403.09672). Numbers are standardised on the training samples, so that a loss of 1 is what
    their mean reaches. Every target has its own mean over the rows that have it; the loss is the mean over the targets
    of which the batch holds any.

    Args:
        shape: the encoder's shapes.
        table: role -> values of the training samples: scales, and how many classes there are.
        targets: roles; scores, numeric attributes and other numbers are regressed, labels and other categories
            classified. `score:*` stands for all roles that begin so, in alphabetical order. By default the table's only
            score.
        hidden: width of a hidden layer with ReLU, one for all targets; by default the predictions are linear.

    Raises:
        RecipeError: a role that no column has, a pattern of which nothing can be predicted, a target that is constant
            or missing in all training samples, or nothing named where the table has no score or several.

    Example:
        >>> table = {"score:age": np.array([40.0, 60.0]), "attribute:sex": np.array([0, 1])}
        >>> objective = Predict(FeatureShape(6, 6, 32), table, targets=["score:age", "attribute:sex"])
        >>> columns = {"score:age": torch.tensor([50.0, torch.nan]), "attribute:sex": torch.tensor([-1, 1])}
        >>> batch = Batch({}, {}, {"sample": torch.arange(2), **columns})
        >>> int(objective.loss(objective.embed(Features(torch.randn(1, 2, 6)), batch), batch).num_anchors)
        2
    """

    def __init__(
        self,
        shape: FeatureShape,
        table: TrainingTable,
        *,
        targets: str | Sequence[str] | None = None,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        if hidden is not None and hidden < 1:
            raise RecipeError(f"hidden: expected a width of 1 or more, found {hidden}")
        named = (targets,) if isinstance(targets, str) else targets
        self.targets = scores_among(table, None) if named is None else tuple(_expand(named, table))
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise RecipeError(f"targets: expected different roles, found {list(self.targets)}")
        self.widths, self.numeric, scales = [], list[bool](), []
        for role in self.targets:
            if role not in table:
                raise RecipeError(f"targets: no column has the role {role!r}; {suggest(role, table)}")
            values = table[role]
            self.numeric.append(values.dtype.kind == "f")
            if self.numeric[-1]:
                scores_among(table, [role])
                self.widths.append(1)
                scales.append(standardisation(table, role))
            else:
                known = values[values >= 0]
                if not len(known) or known.min() == known.max():
                    raise RecipeError(f"targets: {role} has fewer than two classes among the training samples")
                self.widths.append(int(values.max()) + 1)
                scales.append((0.0, 1.0))
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.tensor([mean for mean, _ in scales], dtype=torch.float64))
        self.register_buffer("scale", torch.tensor([scale for _, scale in scales], dtype=torch.float64))
        self.needs = Needs(roles=frozenset(self.targets))
        self.trunk = nn.Sequential(nn.Linear(shape.dim, hidden), nn.ReLU()) if hidden else nn.Identity()
        self.head = nn.Linear(hidden or shape.dim, sum(self.widths))

    def embed(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """`losses` and `known`, `[V, N, targets]`: the loss of each row and target, 0 where the value is missing."""
        outputs = self.head(self.trunk(features.pooled))
        num_views = len(outputs)
        losses, known = [], []
        with torch.autocast(device_type=outputs.device.type, enabled=False):
            parts = torch.split(at_least_float32(outputs), self.widths, dim=-1)
            for number, (role, part) in enumerate(zip(self.targets, parts, strict=True)):
                value = batch.columns[role].to(part.device)
                if self.numeric[number]:
                    given = value.isfinite()
                    wanted = ((value - self.mean[number]) / self.scale[number]).to(part)
                    loss = (part.squeeze(-1) - torch.where(given, wanted, 0.0)) ** 2
                else:
                    # A class that no training sample has cannot be predicted: such a row counts as missing.
                    given = (value >= 0) & (value < part.shape[-1])
                    codes = torch.where(given, value, 0).expand(num_views, -1)
                    loss = F.cross_entropy(part.flatten(0, 1), codes.reshape(-1), reduction="none").view(num_views, -1)
                losses.append(torch.where(given, loss, 0.0))
                known.append(given.to(part).expand(num_views, -1))
        return {"losses": torch.stack(losses, dim=-1), "known": torch.stack(known, dim=-1)}

    def loss(self, embedded: dict[str, Tensor], batch: Batch) -> Loss:
        """The mean over targets of the mean over their rows; anchors are rows with any target."""
        losses, known = embedded["losses"], embedded["known"]
        rows = known.sum((0, 1))
        by_target = losses.sum((0, 1)) / rows.clamp(min=1)
        return Loss(by_target.sum() / (rows > 0).sum().clamp(min=1), (known.sum(2) > 0).sum())


def _expand(named: Sequence[str], table: TrainingTable) -> list[str]:
    """The roles, a pattern such as `score:*` replaced by those of the table that match it and can be predicted."""
    found = []
    for role in named:
        if "*" not in role:
            found.append(role)
            continue
        matching = sorted(each for each in table if fnmatchcase(each, role))
        useful = [each for each in matching if _varies(table[each])]
        for each in sorted(set(matching) - set(useful)):
            _log.warning("%s is missing or the same in every training sample, and is left out of %s", each, role)
        if not useful:
            there = "no column has a role like" if not matching else "nothing can be learnt of"
            raise RecipeError(
                f"targets: {there} {role!r}; give one with --role score:NAME=COLUMN, or leave the objective out with "
                "objectives.NAME=null"
            )
        found += useful
    return found


def _varies(values: npt.NDArray[Any]) -> bool:
    known = values[np.isfinite(values)] if values.dtype.kind == "f" else values[values != -1]
    return len(np.unique(known)) > 1
