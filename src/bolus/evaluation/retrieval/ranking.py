"""Ranks of what is looked for in a gallery, and what is made of them: Top-K, recall and NDCG.

Dimension letters: N pairs, Q queries, M images of the gallery, D features, P positions of a list. Similarities are
cosines in double precision, in blocks of queries, so that no Q x M matrix is ever in memory at once. Similarities that
agree to 1e-12 are equal: what is left of a rounding must not order duplicates.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bolus.errors import EvaluationError, name_rows

TIE = 1e-12
BLOCK = 1024  # queries at a time


def ranks(u: Tensor, v: Tensor, *, block_size: int = BLOCK) -> Tensor:
    """The rank of each row's partner among all partners: 1 + #{j: S_ij > S_ii} + 1/2 #{j != i: S_ij = S_ii}.

    S is the cosine of u_i and v_j, as retrieval of COMPRER (arXiv:2403.09672) is read here: the paper does not define
    its Top-K. A row of zeros has cosine 0 with everything. The other direction is `ranks(v, u)`.

    Args:
        u: `[N, D]` floats, the queries; of any length, they are normalised.
        v: `[N, D]` likewise, row i the partner of row i of `u`; on the same device.
        block_size: queries at a time.

    Returns:
        float64 `[N]` on the CPU, 1 to N in steps of 1/2; without any information (N + 1) / 2.

    Raises:
        EvaluationError: shapes that differ, no rows, or rows that are not finite, with their numbers.

    Example:
        >>> u = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> ranks(u, 3 * u).tolist(), ranks(u, torch.ones(3, 2)).tolist()
        ([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    """
    if u.ndim != 2 or u.shape != v.shape or not len(u):
        raise EvaluationError(
            f"ranks: expected two arrays [N, D] of one shape, found {list(u.shape)} and {list(v.shape)}"
        )
    u_ND, v_ND = _unit(u, "queries"), _unit(v, "gallery")
    found = []
    for start, s_bN in _similarities(u_ND, v_ND, block_size):
        own = (u_ND[start : start + len(s_bN)] * v_ND[start : start + len(s_bN)]).sum(1, keepdim=True)
        above = (s_bN > own + TIE).sum(1)
        equal = (s_bN >= own - TIE).sum(1) - above - 1  # the partner is equal to itself
        found.append(1 + above + equal.double() / 2)
    return torch.cat(found).cpu()


def top_k(u: Tensor, v: Tensor, k: int) -> float:
    """Share of the rows of `u` whose partner, the same row of `v`, is among the `k` nearest of all rows of `v`.

    The rank is that of `ranks`: ties count half, so that vectors without information do not seem to find anything.
    Random vectors give about k / N, which is why N belongs beside every such number.

    Args:
        u: `[N, D]` floats, normalised inside.
        v: `[N, D]` likewise.
        k: at least 1.

    Raises:
        EvaluationError: as `ranks`, or a `k` below 1.

    Example:
        >>> u = torch.eye(4)
        >>> top_k(u, u, 1), top_k(u, u.flip(0), 1), top_k(u, torch.ones(4, 4), 2)
        (1.0, 0.0, 0.0)
    """
    if k < 1:
        raise EvaluationError(f"top_k: expected k of at least 1, found {k}")
    return float((ranks(u, v) <= k).double().mean())


def relevance_by_position(
    u: Tensor, v: Tensor, whose_u: Tensor, whose_v: Tensor, *, positions: int = 10, block_size: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """How relevant what stands at each of the first positions is, when the gallery is ordered by cosine to a query.

    An image is relevant where it is of the query's participant. Images of equal similarity may stand in any order: each
    of their positions has their mean relevance, which is its expected value over those orders.

    Args:
        u: `[Q, D]` floats, the queries; normalised inside.
        v: `[M, D]` floats, the gallery, likewise; on the same device.
        whose_u: int64 `[Q]`, the participant of each query.
        whose_v: int64 `[M]`, that of each image of the gallery.
        positions: P, how many; beyond the end of the gallery nothing is relevant.
        block_size: queries at a time.

    Returns:
        float64 `[Q, P]` in 0..1, and int64 `[Q]`, how many relevant images the gallery has; both on the CPU.

    Raises:
        EvaluationError: shapes that do not fit, an empty side, or rows that are not finite.

    Example:
        >>> u, v = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]])
        >>> found, number = relevance_by_position(u, v, torch.tensor([7]), torch.tensor([7, 7, 8]), positions=4)
        >>> found.tolist(), number.tolist()
        ([[1.0, 0.0, 1.0, 0.0]], [2])
    """
    shapes = [list(each.shape) for each in (u, v, whose_u, whose_v)]
    if [len(shape) for shape in shapes] != [2, 2, 1, 1] or u.shape[1] != v.shape[1] or not (len(u) and len(v)):
        raise EvaluationError(f"galleries: expected arrays [Q, D], [M, D], [Q] and [M] that fit, found {shapes}")
    if len(u) != len(whose_u) or len(v) != len(whose_v):
        raise EvaluationError(f"galleries: expected a participant for each row, found arrays of shapes {shapes}")
    u_QD, v_MD = _unit(u, "queries"), _unit(v, "gallery")
    whose_u, whose_v = whose_u.to(u.device), whose_v.to(u.device)
    seen = min(positions, len(v))
    found, numbers = [], []
    for start, s_bM in _similarities(u_QD, v_MD, block_size):
        relevant_bM = whose_u[start : start + len(s_bM), None] == whose_v[None, :]
        top_bP, place_bP = s_bM.topk(min(seen + 1, len(v)), dim=1)
        relevance = s_bM.new_zeros(len(s_bM), positions)
        relevance[:, :seen] = relevant_bM.gather(1, place_bP[:, :seen]).double()
        tied = ((top_bP[:, :-1] - top_bP[:, 1:]) <= TIE).any(1).nonzero()[:, 0]
        for row in tied.tolist():
            equal_PM = (s_bM[row][None, :] - top_bP[row, :seen, None]).abs() <= TIE
            relevance[row, :seen] = (equal_PM & relevant_bM[row]).sum(1).double() / equal_PM.sum(1)
        found.append(relevance)
        numbers.append(relevant_bM.sum(1))
    return torch.cat(found).cpu(), torch.cat(numbers).cpu()


def recall_at(relevance: Tensor, number: Tensor, k: int) -> Tensor:
    """Share of the relevant images that stand at the first `k` positions, float64 `[Q]`; NaN where there is none.

    With more than `k` relevant images it stays below 1.

    Args:
        relevance: `[Q, P]` of `relevance_by_position`, P at least `k`.
        number: int64 `[Q]` of relevant images.
        k: how many positions.

    Example:
        >>> recall_at(torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64), torch.tensor([4]), 3).tolist()
        [0.5]
    """
    assert 1 <= k <= relevance.shape[1]
    return relevance[:, :k].sum(1) / number.double().masked_fill(number == 0, torch.nan)


def ndcg(relevance: Tensor, number: Tensor) -> Tensor:
    """Normalised discounted cumulative gain over all P positions, float64 `[Q]`; NaN where nothing is relevant.

    Position p counts 1 / log2(p + 1); what is found is divided by what the best order would give (Jarvelin and
    Kekalainen 2002, with relevance 0 or 1).

    Args:
        relevance: `[Q, P]` of `relevance_by_position`.
        number: int64 `[Q]` of relevant images.

    Example:
        >>> ndcg(torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64), torch.tensor([1, 1])).tolist()
        [1.0, 0.63...]
    """
    discount_P = 1 / torch.log2(torch.arange(2, relevance.shape[1] + 2, dtype=torch.float64))
    best = torch.cat([discount_P.new_full((1,), torch.nan), discount_P.cumsum(0)])
    return relevance @ discount_P / best[number.clamp(max=relevance.shape[1])]


def relevance_by_chance(number: Tensor, gallery: int, *, positions: int = 10) -> Tensor:
    """What `relevance_by_position` gives on average over random orders of the gallery, float64 `[Q, P]`.

    Args:
        number: int64 `[Q]` of relevant images.
        gallery: M, images in the gallery.
        positions: P.

    Example:
        >>> relevance_by_chance(torch.tensor([1]), 2, positions=3).tolist()
        [[0.5, 0.5, 0.0]]
    """
    expected = (number.double() / gallery)[:, None].repeat(1, positions)
    expected[:, gallery:] = 0
    return expected


def _unit(x: Tensor, name: str) -> Tensor:
    """Rows of unit length in double precision; those of zeros stay as they are."""
    wrong = (~torch.isfinite(x).all(1)).nonzero()[:, 0].tolist()
    if wrong:
        raise EvaluationError(f"{name}: {name_rows(wrong)} of the embeddings are not finite")
    x = x.detach().double()
    x = x / x.abs().amax(1, keepdim=True).clamp_min(
        torch.finfo(torch.float64).tiny
    )  # lengths neither over- nor underflow
    length = x.norm(dim=1, keepdim=True)
    unit: Tensor = x / length.masked_fill(length == 0, 1.0)
    return unit


def _similarities(u_QD: Tensor, v_MD: Tensor, block_size: int) -> Iterator[tuple[int, Tensor]]:
    """Cosines of unit rows, `[b, M]`, and the number of the first query of each block."""
    assert block_size >= 1
    for start in range(0, len(u_QD), block_size):
        yield start, u_QD[start : start + block_size] @ v_MD.T
