"""Aggregators of the library torchjd, by name; the only file that imports it.

They are an extra: `pip install bolus[torchjd]`. A few need a package more, which their error names (UPGrad and
DualProj: quadprog, under the GPL, so that it is not part of the extra).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bolus.encoders.backbone import seeded
from bolus.errors import RecipeError, suggest
from bolus.recipe import CombinerSpec


class Aggregate:
    """One aggregator: weights from a Gram matrix, or, where it needs the gradients themselves, their combination.

    Whatever it draws is drawn from the seed; the global random state stays as it was.

    Args:
        aggregator: torchjd's.
        by_matrix: whether it needs the gradients themselves.
        fixed: whether its parameters hold for a certain number of objectives.
    """

    def __init__(self, aggregator: Any, by_matrix: bool, fixed: bool = False) -> None:
        self._aggregator, self.by_matrix, self._fixed = aggregator, by_matrix, fixed

    def weigh(self, gram: Tensor, seed: int) -> Tensor:
        """How much of each gradient goes into the sum: float64 `[M]` of a Gram matrix `[M, M]`.

        An objective without a gradient, as of a batch that has nothing for it, has no say, unless the aggregator's
        parameters are one for each objective: MGDA would take it for an optimum, and the encoder would stand still.
        """
        moving = gram.diagonal() > 0
        if self._fixed or not moving.any():
            moving = torch.ones_like(moving)
        weights = torch.ones(len(gram), dtype=torch.float64, device=gram.device)
        with seeded(seed):
            weights[moving] = self._aggregator.gramian_weighting(gram[moving][:, moving]).double()
        return weights

    def combine(self, by_objective: Sequence[Sequence[Tensor]], seed: int) -> list[Tensor]:
        """The combined gradient, from those of M objectives as lists of tensors; worked out on the CPU."""
        matrix = torch.stack([torch.cat([part.reshape(-1) for part in grads]) for grads in by_objective]).cpu()
        with seeded(seed):
            vector: Tensor = self._aggregator(matrix.float() if matrix.dtype != torch.float64 else matrix)
        parts = torch.split(vector, [part.numel() for part in by_objective[0]])
        return [part.view_as(like).to(like) for part, like in zip(parts, by_objective[0], strict=True)]

    def check(self, num_objectives: int) -> None:
        """Try it on gradients at right angles, so that what it cannot take shows before the first step.

        Raises:
            RecipeError: parameters that do not go with so many objectives.
        """
        try:
            if self.by_matrix:
                self.combine([[row] for row in torch.eye(num_objectives)], 0)
            else:
                self.weigh(torch.eye(num_objectives, dtype=torch.float64), 0)
        except (ValueError, RuntimeError, TypeError) as error:
            name = type(self._aggregator).__name__
            raise RecipeError(
                f"combiner.aggregator {name}: {num_objectives} objectives in a branch: {error}"
            ) from error


def find_aggregator(spec: CombinerSpec) -> Aggregate:
    """The aggregator that a recipe names, with its own parameters.

    Raises:
        RecipeError: torchjd is not installed, no such aggregator, parameters that it does not take, one that keeps
            state between steps, which a checkpoint would lose, or one that needs the whole gradients, with scope
            `features`.

    Example:
        >>> find_aggregator(CombinerSpec(kind="torchjd", aggregator="MGDA")).by_matrix
        False
    """
    try:
        from torchjd import Stateful, aggregation
    except ImportError as error:
        raise RecipeError("combiner.kind torchjd needs the package torchjd: pip install bolus[torchjd]") from error
    names = [
        name
        for name in aggregation.__all__
        if isinstance(getattr(aggregation, name), type)
        and issubclass(getattr(aggregation, name), aggregation.Aggregator)
        and name not in ("Aggregator", "WeightedAggregator", "GramianWeightedAggregator")
    ]
    stateful = [name for name in names if issubclass(getattr(aggregation, name), Stateful)]
    if spec.aggregator in stateful:
        instead = "use kind grad_mitigator" if spec.aggregator == "GradVac" else "use another aggregator"
        raise RecipeError(
            f"combiner.aggregator: {spec.aggregator} keeps a state that a checkpoint would lose; {instead}"
        )
    names = [name for name in names if name not in stateful]
    if spec.aggregator not in names:
        found = "no name" if spec.aggregator is None else repr(spec.aggregator)
        raise RecipeError(f"combiner.aggregator: found {found}; {suggest(spec.aggregator or '', names)}")
    kind = getattr(aggregation, spec.aggregator)
    dtype = torch.float64 if issubclass(kind, aggregation.GramianWeightedAggregator) else torch.float32
    lists = {key: value for key, value in spec.parameters.items() if isinstance(value, list)}
    try:
        vectors = {key: torch.tensor(value, dtype=dtype) for key, value in lists.items()}  # such as pref_vector
        aggregator = kind(**{**spec.parameters, **vectors})
    except (TypeError, ValueError, ImportError) as error:
        raise RecipeError(f"combiner.aggregator {spec.aggregator}: {error}") from error
    by_matrix = not isinstance(aggregator, aggregation.GramianWeightedAggregator)
    if by_matrix and spec.scope == "features":
        raise RecipeError(f"combiner.aggregator: {spec.aggregator} needs whole gradients, so scope encoder")
    return Aggregate(aggregator, by_matrix, fixed=bool(lists) or spec.aggregator == "Krum")
