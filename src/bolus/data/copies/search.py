"""Who is most like whom among many images, without comparing all with all.

Signatures are put into cells around about 2 sqrt(n) of them, and each is compared with those of the cells that are
nearest to it, so that the work grows as n sqrt(n). A small cohort is one cell, and the search is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bolus.data.copies.thumbnails import FloatArray

IntArray = npt.NDArray[np.int64]
ONE_CELL = 2_000  # images up to which all are compared with all
PROBES = 8  # cells that are looked into for each signature
KEPT = 2  # strangers of an image that are kept of each view
BLOCK = 4_096  # signatures compared at a time


class Pairs(NamedTuple):
    """Images that are alike: `image` seen in `view` and `stranger` seen whole, with their likeness; each `[pairs]`."""

    image: IntArray
    stranger: IntArray
    view: IntArray
    likeness: FloatArray


def nearest_strangers(
    signatures: FloatArray, seen: Iterable[FloatArray], patients: IntArray, *, cells: int | None = None
) -> Pairs:
    """The strangers that are most like each image, a pair once, in the view in which it is most alike.

    Args:
        signatures: float32 `[n, D]`, of length 1.
        seen: the same images in other views, `[n, D]` each.
        patients: int64 `[n]`; images of one patient are no strangers.
        cells: into which the signatures are put; 1 up to 2,000 images and 2 sqrt(n) above where None.

    Returns:
        Pairs in the order of `image`, the most alike first; two for each image, fewer where there are no strangers.

    Example:
        >>> circle = np.array([[1, 0], [0.6, 0.8], [0, 1]], np.float32)
        >>> found = nearest_strangers(circle, [circle], np.array([0, 0, 1]))
        >>> [(int(a), int(b), round(float(s), 1)) for a, b, s in zip(found.image, found.stranger, found.likeness)]
        [(0, 2, 0.0), (1, 2, 0.8), (2, 1, 0.8), (2, 0, 0.0)]
    """
    number = len(signatures)
    cells = cells or (1 if number <= ONE_CELL else round(2 * number**0.5))
    centres = signatures[np.random.default_rng(0).choice(number, cells, replace=False)] if number else signatures
    members = _members(signatures, centres)
    best = _Best(np.full((number, KEPT), -1), np.full((number, KEPT), -1), np.full((number, KEPT), -np.inf, np.float32))
    for view, queries in enumerate(seen):
        for image, there in _asked(queries, centres, members):
            likeness = queries[image] @ signatures[there].T
            likeness[patients[image][:, None] == patients[there]] = -np.inf
            rows = np.arange(len(image))
            for _ in range(min(KEPT, len(there))):
                at = np.argmax(likeness, axis=1)
                _enter(best, image, there[at], view, likeness[rows, at])
                likeness[rows, at] = -np.inf
    image, place = np.nonzero(np.isfinite(best.likeness))
    return Pairs(image, best.stranger[image, place], best.view[image, place], best.likeness[image, place])


class _Best(NamedTuple):
    """What was found so far of each image, the most alike first; each `[n, 2]`, likeness -inf where there is nobody."""

    stranger: IntArray
    view: IntArray
    likeness: FloatArray


def _enter(best: _Best, image: IntArray, stranger: IntArray, view: int, likeness: FloatArray) -> None:
    """Put one stranger of each of these images, no image twice, into its place; a stranger stands there once."""
    first = likeness > best.likeness[image, 0]
    again = best.stranger[image, 0] == stranger
    for each in best:  # a new first one moves the old one back
        moved = image[first & ~again]
        each[moved, 1] = each[moved, 0]
    second = ~first & ~again & (likeness > best.likeness[image, 1])
    for place, here in ((0, first), (1, second)):
        best.stranger[image[here], place] = stranger[here]
        best.view[image[here], place] = view
        best.likeness[image[here], place] = likeness[here]


def _members(signatures: FloatArray, centres: FloatArray) -> list[IntArray]:
    """Which signatures are nearest to each centre."""
    own = [np.argmax(signatures[at : at + BLOCK] @ centres.T, axis=1) for at in range(0, len(signatures), BLOCK)]
    cell = np.concatenate(own) if own else np.zeros(0, np.int64)
    order = np.argsort(cell, kind="stable")
    return np.split(order, np.searchsorted(cell[order], np.arange(1, len(centres))))


def _asked(queries: FloatArray, centres: FloatArray, members: list[IntArray]) -> Iterator[tuple[IntArray, IntArray]]:
    """Which images are compared with the members of which cell; no image twice in a block."""
    probes = min(PROBES, len(centres))
    for start in range(0, len(queries), 4 * BLOCK):
        block = queries[start : start + 4 * BLOCK]
        if probes == len(centres):
            into = np.repeat(np.arange(probes)[None], len(block), axis=0)
        else:
            into = np.argpartition(block @ centres.T, -probes, axis=1)[:, -probes:]
        order = np.argsort(into.ravel(), kind="stable")
        bounds = np.searchsorted(into.ravel()[order], np.arange(1, len(centres)))
        for those, there in zip(np.split(start + order // probes, bounds), members, strict=True):
            for at in range(0, len(those) if len(there) else 0, BLOCK):
                yield those[at : at + BLOCK], there
