"""How much a difference of scores weighs in LEARNER's contrast: functions of the difference, of ranks, or learnt."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHTINGS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "none": None,
    "linear": lambda d: d,
    "exponential": lambda d: d.expm1() / math.expm1(1),
    "logarithmic": lambda d: d.log1p() / math.log(2),
}
"""Functions from [0, 1] to [0, 1] of the difference of scores as a share of their range."""

QUANTILE, LEARNED = "quantile", "learned"
PIECES = 10  # of the learnt weighting, of equal width
MOST = 0.99  # of the learnt weighting at first, whose logarithm must be finite


def quantiles_of(scores: Tensor, among: Tensor) -> Tensor:
    """The share of known scores that lie below each score, equal ones counted half.

    Args:
        scores: `[N]` float; of a NaN the answer means nothing.
        among: `[n]` float, sorted, without NaN; at least one.

    Returns:
        `[N]` float64 in [0, 1].

    Example:
        >>> quantiles_of(torch.tensor([0.0, 1.0, 5.0]), torch.tensor([0.0, 1.0, 1.0, 9.0])).tolist()
        [0.125, 0.5, 0.75]
    """
    among = among.to(scores.device, torch.float64)
    scores = scores.to(torch.float64).nan_to_num().contiguous()
    below, upto = (torch.searchsorted(among, scores, right=right) for right in (False, True))
    return (below + upto).double() / 2 / max(1, len(among))


class LearnedWeighting(nn.Module):
    """A weight that grows with the difference of scores as fast as images tell such differences apart.

    Inferred, an answer to an open question of LEARNER (arXiv:2411.01144). A direction v orders embeddings, by a
    logistic loss on pairs; of two rows whose scores differ by d, the weight w(d) is fitted, by squared error, to 1
    where v has them in the order of their scores and -1 where not, so to 2 P(right order | d) - 1. It is 0 at 0 and
    never falls: 1 - exp(-sum of pieces up to d), each piece 0 or more. Both are fitted to rows of training patients
    while the encoder is trained, and neither moves the encoder.

    Args:
        dim: D, of the embeddings.

    Example:
        >>> curve = LearnedWeighting(4).curve(2)
        >>> [round(weight, 2) for weight in weigh(curve, torch.tensor([[0.0, 0.25], [0.5, 1.0]])).flatten().tolist()]
        [0.0, 0.25, 0.5, 0.99]
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.direction = nn.Linear(dim, 1, bias=False)
        knots = torch.linspace(0, 1, PIECES + 1, dtype=torch.float64).clamp(max=MOST)
        steps = (-torch.log1p(-knots)).diff()
        self.pieces = nn.Parameter(torch.log(torch.expm1(steps)).float())  # softplus of which is the steps: w = d

    def place(self, u: Tensor) -> Tensor:
        """Where each row lies along the direction, `[..., 1]`; the embeddings `[..., D]` are not moved by it."""
        found: Tensor = self.direction(F.normalize(u.detach(), dim=-1))
        return found

    def curve(self, rows: int) -> Tensor:
        """The sum of pieces up to each knot, `[rows, PIECES + 1]`, the same for every row."""
        sums = F.pad(F.softplus(self.pieces).cumsum(0), (1, 0))
        return sums.expand(rows, -1)


def weigh(curve: Tensor, d: Tensor) -> Tensor:
    """The weights of pairs by the learnt curve of their anchors.

    Args:
        curve: `[N, PIECES + 1]` as `LearnedWeighting.curve`.
        d: `[N, M]` in [0, 1].

    Returns:
        `[N, M]` in [0, 1), dtype of the curve.
    """
    place = d.to(curve.dtype) * PIECES
    below = place.detach().floor().clamp(max=PIECES - 1).long()
    low, high = curve.gather(1, below), curve.gather(1, below + 1)
    # Between knots the weight itself is a line, so that it begins as d.
    low, high = -torch.expm1(-low), -torch.expm1(-high)
    return low + (high - low) * (place - below)


def fit_to_order(curve: Tensor, place: Tensor, scores: Tensor, d: Tensor, pairs: Tensor) -> Tensor:
    """What the direction and the curve are fitted by; see `LearnedWeighting`.

    Args:
        curve: `[N, PIECES + 1]`.
        place: `[N]` along the direction.
        scores: `[N]` float, finite where a pair takes part.
        d: `[N, N]` differences of scores in [0, 1].
        pairs: bool `[N, N]`, those that may take part; pairs of equal scores have no order and do not.

    Returns:
        A scalar, 0 without a pair.
    """
    pairs = pairs & (d > 0)
    sign = torch.sign(scores[:, None] - scores).to(place)
    margin = (place[:, None] - place) * sign
    logistic = F.softplus(-margin)
    right = torch.sign(margin.detach())
    squared = (weigh(curve, d) - right).square()
    return torch.where(pairs, logistic + squared, 0.0).sum() / pairs.sum().clamp(min=1)
