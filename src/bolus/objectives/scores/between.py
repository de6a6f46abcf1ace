"""SupReMix's mixed positives: what all pairs of rows about an anchor's label add up to, without visiting each pair.

A mixture of two rows on either side of a label has weights that depend on their distances only, so that
e^(a s_j + (1 - a) s_k) falls into a factor for each side, which is summed over the rows of a label before the sides
meet. Rows lie in the order of their labels.

Dimension letters: N rows, T targets; L labels of B anchors; J and K rows on the two sides of them, with P and Q labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
TOGETHER = 1 << 14  # numbers up to which labels are taken together, since every round costs half a millisecond
TILE = 1 << 17  # numbers of one intermediate tensor, half a MiB in float32: what a processor's cache holds


class Between(NamedTuple):
    """What mixed positives add up to: `inside` and `number` `[N]`, `pull` and `share` `[N, N]`."""

    inside: Tensor
    number: Tensor
    pull: Tensor
    share: Tensor


class Components(NamedTuple):
    """Rows on one side of a few labels, components of the mixtures between.

    Args:
        rows: where they are.
        which: of the P labels among them, whose each row is, `[J]`.
        distances: from those P labels to the few, `[P, L]`.
        usable: whether rows of that label are components for anchors of this one, `[P, L]`.
    """

    rows: slice | IntArray
    which: IntArray
    distances: FloatArray
    usable: BoolArray


def gaps(labels: FloatArray) -> FloatArray:
    """Distances of distinct labels `[L, T]`, each to each."""
    if labels.shape[1] == 1:
        return np.abs(labels - labels.T)
    return np.asarray(np.linalg.norm(labels[:, None] - labels[None, :], axis=2))


def surroundings(
    labels: FloatArray, sizes: IntArray, *, window: float, tolerance: float
) -> Iterator[tuple[range, Components, Components]]:
    """A few labels, and two sides of rows between which they lie, until every pair of sides has been given.

    Args:
        labels: `[L, T]`, distinct; with one target ascending.
        sizes: rows of each, `[L]`.
        window: components are nearer than this,
        tolerance: and farther than this.
    """
    if not len(labels):
        return
    gap, starts = gaps(labels), np.concatenate([[0], np.cumsum(sizes)])
    near = (gap > tolerance) & (gap < window)
    of = np.repeat(np.arange(len(labels)), sizes)
    if labels.shape[1] == 1:
        low: BoolArray = np.triu(near, 1)
        high: BoolArray = np.tril(near, -1)
        for few in _together(low, high, starts):
            here = slice(few.start, few.stop)
            sides = [_window(side[:, here], gap[:, here], starts, of) for side in (low, high)]
            yield few, sides[0], sides[1]
        return
    # With T targets there are 2^(T-1) pairs of opposite corners, and rows in a corner do not lie together.
    bits, last = 2 ** np.arange(labels.shape[1]), 2 ** labels.shape[1] - 1
    for each in range(len(labels)):
        delta = labels - labels[each]
        corner = np.where(near[:, each] & (delta != 0).all(1), ((delta > 0) * bits).sum(1), -1)
        for code in range(2 ** (labels.shape[1] - 1)):
            chosen = [np.flatnonzero(corner == which) for which in (code, last - code)]
            if all(len(some) for some in chosen):
                sides = [_corner(some, gap[:, each], of) for some in chosen]
                yield range(each, each + 1), sides[0], sides[1]


def _corner(chosen: IntArray, gap: FloatArray, of: IntArray) -> Components:
    """The rows of these labels, as a side."""
    rows = np.flatnonzero(np.isin(of, chosen))
    return Components(
        rows, np.searchsorted(chosen, of[rows]), gap[chosen, None], np.ones((len(chosen), 1), dtype=np.bool_)
    )


def _together(low: BoolArray, high: BoolArray, starts: IntArray) -> Iterator[range]:
    """Runs of labels that have both sides: single ones where these are large, several where they are small."""
    count, bounds = len(low), []
    for side in (low, high):
        bounds += [side.argmax(0).tolist(), (count - side[::-1].argmax(0)).tolist()]
    both: list[bool] = np.asarray(low.any(0) & high.any(0)).tolist()
    first: list[int] = starts.tolist()
    low_start, low_stop, high_start, high_stop = bounds
    start = 0
    while start < count:
        stop = start + 1
        while both[start] and stop < count and both[stop]:
            p, q = low_stop[stop] - low_start[start], high_stop[stop] - high_start[start]
            j = first[low_stop[stop]] - first[low_start[start]]
            k = first[high_stop[stop]] - first[high_start[start]]
            if (first[stop + 1] - first[start]) * max(j * q, k * p) > TOGETHER:
                break
            stop += 1
        if both[start]:
            yield range(start, stop)
        start = stop


def _window(usable: BoolArray, gap: FloatArray, starts: IntArray, of: IntArray) -> Components:
    """The run of labels that holds all usable ones, as a side."""
    some = np.flatnonzero(usable.any(1))
    labels = slice(int(some[0]), int(some[-1]) + 1)
    rows = slice(int(starts[labels.start]), int(starts[labels.stop]))
    return Components(rows, of[rows] - labels.start, gap[labels], usable[labels])


def _sum_by_label(x: Tensor, which: Tensor, num: int) -> Tensor:
    """Sums over the rows of each label, `[J, ...]` to `[P, ...]`."""
    return x if len(x) == num else x.new_zeros(num, *x.shape[1:]).index_add_(0, which, x)


def _for_each(x: Tensor, which: Tensor) -> Tensor:
    """What stands for a label, for each of its rows, `[P, ...]` to `[J, ...]`."""
    return x if len(x) == len(which) else x[which]


def add_between(
    between: Between, few: range, sizes: IntArray, low: Components, high: Components, s: Tensor, excluded: Tensor | None
) -> None:
    """Add the mixed positives of anchors of a few labels, in place; `s` is shifted so that no logit is above 0."""
    both_PLQ = low.usable[:, :, None] & high.usable.T
    sum_PLQ = np.where(both_PLQ, low.distances[:, :, None] + high.distances.T, 1.0)
    tiny = torch.finfo(s.dtype).tiny  # a share of 0 would make NaN of a row that is not there
    a_PLQ = torch.from_numpy(high.distances.T / sum_PLQ).to(s).clamp_(tiny, 1)  # the share of the low component
    b_QLP = torch.from_numpy((low.distances[:, :, None] / sum_PLQ).transpose(2, 1, 0)).to(s).clamp_(tiny, 1)
    j, k = (rows if isinstance(rows, slice) else torch.from_numpy(rows).to(s.device) for rows in (low.rows, high.rows))
    p, q = (torch.from_numpy(side.which).to(s.device) for side in (low, high))
    usable_p, usable_q = (torch.from_numpy(side.usable).to(s.device) for side in (low, high))
    all_usable = bool(both_PLQ.all())
    num_p, num_q = (s.new_tensor(np.bincount(side.which))[:, None] for side in (low, high))
    first = int(sizes[: few.start].sum())
    label = torch.arange(len(few)).repeat_interleave(torch.from_numpy(sizes[few.start : few.stop]))
    step = max(1, TILE // max(len(p) * len(b_QLP), len(q) * len(a_PLQ)))
    for start in range(0, len(label), step):
        of = label[start : start + step].to(s.device)
        at = slice(first + start, first + start + len(of))
        s_JB, s_KB = s[at, j].T, s[at, k].T
        a_PBQ, b_QBP = (a_PLQ, b_QLP) if len(few) == 1 else (a_PLQ[:, of], b_QLP[:, of])
        num_PB, num_QB, here_JB, here_KB = num_p, num_q, None, None
        if not all_usable or excluded is not None:
            here_JB, here_KB = usable_p[p][:, of], usable_q[q][:, of]
            if excluded is not None:
                here_JB, here_KB = here_JB & ~excluded[at, j].T, here_KB & ~excluded[at, k].T
            s_JB, s_KB = s_JB.masked_fill(~here_JB, -torch.inf), s_KB.masked_fill(~here_KB, -torch.inf)
            num_PB, num_QB = _sum_by_label(here_JB.to(s), p, len(num_p)), _sum_by_label(here_KB.to(s), q, len(num_q))
        e_JBQ = (s_JB[:, :, None] * _for_each(a_PBQ, p)).exp_()
        e_KBP = (s_KB[:, :, None] * _for_each(b_QBP, q)).exp_()
        e_PBQ, e_QBP = _sum_by_label(e_JBQ, p, len(num_p)), _sum_by_label(e_KBP, q, len(num_q))
        between.inside[at] += (e_PBQ * e_QBP.permute(2, 1, 0)).sum((0, 2))
        weighed_PBQ, weighed_QBP = a_PBQ * e_QBP.permute(2, 1, 0), b_QBP * e_PBQ.permute(2, 1, 0)
        between.pull[at, j] += e_JBQ.mul_(_for_each(weighed_PBQ, p)).sum(2).T
        between.pull[at, k] += e_KBP.mul_(_for_each(weighed_QBP, q)).sum(2).T
        share_JB = _for_each((a_PBQ * num_QB.T).sum(2), p)
        share_KB = _for_each((b_QBP * num_PB.T).sum(2), q)
        between.share[at, j] += (share_JB if here_JB is None else share_JB * here_JB).T
        between.share[at, k] += (share_KB if here_KB is None else share_KB * here_KB).T
        between.number[at] += num_PB.sum(0) * num_QB.sum(0)
