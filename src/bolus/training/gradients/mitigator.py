"""Gradients that pull in different directions, reconciled on their Gram matrix, and how they stand to each other.

The matrix is M x M whatever the size of the encoder; `combiner` applies what is found here to lists of parameter
tensors. Dimension letters: M objectives, P shared parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

LIMIT = 0.99  # goals and cosines beyond it leave nothing to divide by
NOTHING = 1e-12  # a gradient shorter than this share of the longest has no direction
CANCELLED = 1e-3  # likewise one of which injections have left less than this share, the rounding of float32 included


def mitigation_weights(
    gram: Tensor, goals: Tensor, *, rate: float = 0.01, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """How much of each gradient goes into each mitigated one: GradMitigator of GCL (arXiv:2309.08888).

    The formula is that of Gradient Vaccine (arXiv:2010.05874), which GCL's description fits (inferred: its code is not
    public). Gradient m meets the others in turn; where the cosine of what it has become and g_n is below the goal of
    the pair, so much of g_n is added that the cosine equals the goal. Goals follow the cosines met as a moving average,
    whether or not there was a conflict. With zero goals and rate 0 this is PCGrad (arXiv:2001.06782).

    A gradient of (nearly) no length is left out, and its pairs keep their goals; a Gram matrix that is not finite
    changes nothing.

    Args:
        gram: `[M, M]`, inner products of the gradients.
        goals: `[M, M]`, the cosines aimed at, row m for what becomes of gradient m; clamped to [-0.99, 0.99].
        rate: of the moving average (beta, which GCL leaves open).
        generator: of the order of partners, drawn anew for each m; in their own order where None.

    Returns:
        C float64 `[M, M]` on the CPU, whose rows make the mitigated gradients `C @ g`; new goals, likewise.

    Example:
        >>> weights, goals = mitigation_weights(torch.tensor([[1.0, -0.5], [-0.5, 1.0]]), torch.zeros(2, 2), rate=0.5)
        >>> weights.tolist(), goals[0].tolist()
        ([[1.0, 0.5], [0.5, 1.0]], [0.0, -0.25])
    """
    inner, aims = gram.detach().double().cpu().numpy(), goals.detach().double().cpu().numpy().copy()
    num_objectives = len(inner)
    weights = np.eye(num_objectives)
    if not np.isfinite(inner).all():
        return torch.from_numpy(weights), torch.from_numpy(aims)
    norms = np.sqrt(inner.diagonal().clip(min=0))
    directed = norms > NOTHING * norms.max(initial=0.0)
    for m in range(num_objectives):
        order = range(num_objectives) if generator is None else torch.randperm(num_objectives, generator=generator)
        products = inner[m].copy()  # of what gradient m has become with every original gradient
        for n in map(int, order):
            length = math.sqrt(max(weights[m] @ products, 0.0))
            if n == m or not (directed[m] and directed[n]) or length <= CANCELLED * norms[m]:
                continue
            cosine = min(max(products[n] / (length * norms[n]), -1.0), 1.0)
            goal = min(max(aims[m, n], -LIMIT), LIMIT)
            if cosine < goal:
                rest = math.sqrt(1 - goal**2)
                share = length * (goal * math.sqrt(1 - cosine**2) - cosine * rest) / (norms[n] * rest)
                weights[m, n] += share
                products += share * inner[n]
            aims[m, n] = min(max((1 - rate) * goal + rate * cosine, -LIMIT), LIMIT)
    return torch.from_numpy(weights), torch.from_numpy(aims)


def grad_mitigator(
    gradients: Tensor, goals: Tensor, *, rate: float = 0.01, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Mitigated gradients, `mitigation_weights` on vectors.

    Args:
        gradients: `[M, P]` float.
        goals: `[M, M]`, see `mitigation_weights`.
        rate: see there.
        generator: see there.

    Returns:
        Mitigated gradients `[M, P]`, whose sum is what the encoder gets, and the new goals `[M, M]`, float64.

    Example:
        >>> mitigated, _ = grad_mitigator(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]), torch.zeros(2, 2))
        >>> mitigated.tolist()
        [[0.5, 0.5], [0.0, 1.0]]
    """
    exact = gradients.double()
    weights, goals = mitigation_weights(exact @ exact.T, goals, rate=rate, generator=generator)
    return (weights.to(gradients.device) @ exact).to(gradients.dtype), goals


@dataclass(frozen=True)
class Conflicts:
    """How the objectives of one step stand to each other in what they share.

    Args:
        names: of the objectives.
        branches: of each; only objectives of one branch are reconciled with each other.
        gram: float64 `[M, M]`, inner products of their weighted gradients.
        goals: branch -> goals before the step, for GradMitigator.
    """

    names: tuple[str, ...]
    branches: tuple[str, ...]
    gram: Tensor
    goals: Mapping[str, Tensor]

    def to_json(self) -> dict[str, Any]:
        """As plain data: norms, cosines (null without a direction), and the share of pairs of a branch below 0.

        >>> gram = torch.tensor([[4.0, -1.0], [-1.0, 1.0]])
        >>> Conflicts(("a", "b"), ("image", "image"), gram, {}).to_json()["share"]
        1.0
        """
        norms = self.gram.diagonal().clamp_min(0).sqrt()
        cosines = (self.gram / (norms[:, None] * norms[None, :])).clamp(-1, 1)
        pairs = [(a, b) for a, b in combinations(range(len(self.names)), 2) if self.branches[a] == self.branches[b]]
        met = [float(cosines[a, b]) for a, b in pairs if cosines[a, b].isfinite()]
        return {
            "objectives": self.names,
            "branches": self.branches,
            "norms": [float(f"{value:.9g}") if math.isfinite(value) else None for value in norms.tolist()],
            "cosines": [[_plain(value) for value in row] for row in cosines.tolist()],
            "share": sum(cosine < 0 for cosine in met) / len(met) if met else None,
            "goals": {branch: goals.tolist() for branch, goals in self.goals.items()},
        }


def _plain(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
