"""Who is most like whom among many images, without comparing all with all.

Signatures are put into cells around about 2 sqrt(n) of them, and each is compared with those of the cells that are
nearest to it, so that the work grows as n sqrt(n). A small cohort is one cell, and the search is exact.
"""

from __future__ import annotations

from collections.abc import Iterable
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
        Pairs in the order of `image`, the most alike first; up to two strangers for each view and cell, fewer where
        there is none.

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
    best = _none()
    for view, queries in enumerate(seen):
        found = [best]
        for start in range(0, number, BLOCK * 4):
            found += _of_view(queries[start : start + BLOCK * 4], start, view, signatures, centres, members, patients)
        best = _best(found)
    return best


def _none() -> Pairs:
    return Pairs(*(np.zeros(0, np.int64) for _ in range(3)), np.zeros(0, np.float32))


def _members(signatures: FloatArray, centres: FloatArray) -> list[IntArray]:
    """Which signatures are nearest to each centre."""
    own = [np.argmax(signatures[at : at + BLOCK] @ centres.T, axis=1) for at in range(0, len(signatures), BLOCK)]
    cell = np.concatenate(own) if own else np.zeros(0, np.int64)
    order = np.argsort(cell, kind="stable")
    return np.split(order, np.searchsorted(cell[order], np.arange(1, len(centres))))


def _of_view(
    queries: FloatArray,
    first: int,
    view: int,
    signatures: FloatArray,
    centres: FloatArray,
    members: list[IntArray],
    patients: IntArray,
) -> list[Pairs]:
    """What a block of queries, the images from `first` on, finds cell by cell."""
    probes = min(PROBES, len(centres))
    if probes == len(centres):
        into = np.repeat(np.arange(probes)[None], len(queries), axis=0)
    else:
        into = np.argpartition(queries @ centres.T, -probes, axis=1)[:, -probes:]
    asked, cell = np.repeat(np.arange(len(queries)), probes), into.ravel()
    order = np.argsort(cell, kind="stable")
    groups = np.split(asked[order], np.searchsorted(cell[order], np.arange(1, len(centres))))
    found = []
    for those, there in zip(groups, members, strict=True):
        for start in range(0, len(those) if len(there) else 0, BLOCK):
            here = those[start : start + BLOCK]
            likeness = queries[here] @ signatures[there].T
            likeness[patients[first + here][:, None] == patients[there]] = -np.inf
            for _ in range(min(KEPT, len(there))):
                at = np.argmax(likeness, axis=1)
                alike = likeness[np.arange(len(here)), at]
                ok = np.isfinite(alike)
                found.append(Pairs(first + here[ok], there[at[ok]], np.full(int(ok.sum()), view), alike[ok]))
                likeness[np.arange(len(here)), at] = -np.inf
    return found


def _best(found: list[Pairs]) -> Pairs:
    """Each pair once, in its best view; of an image's strangers the most alike."""
    image, stranger, view, likeness = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((-likeness, stranger, image))
    image, stranger, view, likeness = image[order], stranger[order], view[order], likeness[order]
    first = np.ones(len(image), bool)
    first[1:] = (image[1:] != image[:-1]) | (stranger[1:] != stranger[:-1])
    image, stranger, view, likeness = image[first], stranger[first], view[first], likeness[first]
    order = np.lexsort((-likeness, image))
    image, stranger, view, likeness = image[order], stranger[order], view[order], likeness[order]
    place = np.arange(len(image)) - np.searchsorted(image, image)
    kept = place < KEPT
    return Pairs(image[kept], stranger[kept], view[kept], likeness[kept])
