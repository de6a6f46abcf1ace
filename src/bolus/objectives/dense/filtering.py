"""GradFilter: which pairs of pixels to believe, and which of them come first (GCL, arXiv:2309.08888).

Dimension letters: A anchor pixels, J pixels of the batch.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from bolus.errors import UsageError


def grad_filter(
    p_image: Tensor,
    p_pixel: Tensor,
    *,
    candidates: Tensor | None = None,
    keep: float = 0.3,
    pace: float = 1.0,
    order: Literal["easy", "hard"] = "easy",
) -> Tensor:
    """The candidates of every anchor that are certain enough, and of those the ones whose turn it is.

    GradFilter of GCL (arXiv:2309.08888), which measures both by the size of the contrastive gradient: a pair's
    uncertainty is `(1 - p_image) / temperature`, its hardness `(1 - p_pixel) / temperature`. The paper gives no formula
    for either; these are our reading, the derivative for a single positive. Of n candidates the `ceil(keep * n)` least
    uncertain are pooled, and of those the `ceil(pace * pool)` least hard are kept, or, with order "hard", the hardest.
    Ties go to the lower column. A product within n * 1e-9 above a whole number counts as that number.

    Only the order within a row matters, so that whatever rises with the probabilities, such as similarities, selects
    the same pairs, and neither temperature changes anything.

    Args:
        p_image: float `[A, J]`, probabilities of the pairs in the image branch; may be anything where no candidate is.
        p_pixel: float `[A, J]`, probabilities of the pairs in the pixel branch.
        candidates: bool `[A, J]`; by default every pair is one.
        keep: share of the candidates that is pooled, in (0, 1].
        pace: share of the pool that is kept, in (0, 1]; grows over a training.
        order: "easy" or "hard", which end of the pool is kept first.

    Returns:
        bool `[A, J]`, true at the kept pairs, without a gradient; no true in a row without candidates.

    Raises:
        UsageError: shapes or dtypes that do not fit, shares outside (0, 1], or an unknown order.

    Example:
        >>> p_image = torch.tensor([[0.4, 0.1, 0.3, 0.2]])
        >>> p_pixel = torch.tensor([[0.1, 0.6, 0.2, 0.1]])
        >>> grad_filter(p_image, p_pixel, keep=0.5).int().tolist()  # the two most certain
        [[1, 0, 1, 0]]
        >>> grad_filter(p_image, p_pixel, keep=0.5, pace=0.5).int().tolist()  # and of those the easier
        [[0, 0, 1, 0]]
    """
    if p_image.ndim != 2 or p_image.shape != p_pixel.shape:
        raise UsageError(f"expected p_image and p_pixel [A, J], found {list(p_image.shape)} and {list(p_pixel.shape)}")
    if candidates is None:
        candidates = torch.ones_like(p_image, dtype=torch.bool)
    if candidates.dtype != torch.bool or candidates.shape != p_image.shape:
        found = f"{candidates.dtype} {list(candidates.shape)}"
        raise UsageError(f"candidates: expected a bool mask {list(p_image.shape)}, found {found}")
    for name, share in (("keep", keep), ("pace", pace)):
        if not 0 < share <= 1:
            raise UsageError(f"{name}: expected a share above 0 and at most 1, found {share}")
    if order not in ("easy", "hard"):
        raise UsageError(f"order: expected 'easy' or 'hard', found {order!r}")
    with torch.no_grad():
        pool = _largest(p_image, candidates, keep)
        return _largest(p_pixel if order == "easy" else -p_pixel, pool, pace)


def _largest(scores_AJ: Tensor, among_AJ: Tensor, share: float) -> Tensor:
    """Of the true entries of each row, the `ceil(share * count)` with the largest scores, ties to the lower column."""
    if share == 1 or not among_AJ.any():
        return among_AJ
    billionths = max(1, math.ceil(share * 1e9) - 1)  # just below the share, so that 0.07 of 100 is 7 and not 8
    wanted = (_count(among_AJ) * billionths + 10**9 - 1) // 10**9
    # Rows want different numbers. One more column of +inf for each that a row wants less than the most makes its last
    # wanted score the same place in all, which is found without sorting.
    most = int(wanted.max())
    scores_AJ = scores_AJ.masked_fill(~among_AJ, -torch.inf)
    filling = torch.where(torch.arange(most, device=wanted.device) < most - wanted[:, None], torch.inf, -torch.inf)
    widened = torch.cat([scores_AJ, filling.to(scores_AJ)], dim=1)
    last = widened.topk(most, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    chosen, level = scores_AJ > last, (scores_AJ == last) & among_AJ
    room = wanted - _count(chosen)
    tied = (_count(level) > room).nonzero().flatten()
    level[tied] &= level[tied].cumsum(dim=1) <= room[tied, None]
    return chosen | level


def _count(pairs_AJ: Tensor) -> Tensor:
    """True entries of each row; as int32, which is half the work of the usual int64."""
    return pairs_AJ.sum(dim=1, dtype=torch.int32).long()
