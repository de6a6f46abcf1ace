"""Near copies among the images of different patients, and from which likeness on two images are copies.

Whoever is most like an image among the other patients is looked for in the whole image, mirrored, and cropped to 95 %.
How alike strangers are in this very cohort decides from where on a pair is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bolus.data.copies.search import IntArray, Pairs, nearest_strangers
from bolus.data.copies.signatures import COARSE, CROPPED, FINE, MIRRORED, WHOLE, Signer, View, around, learn_signer
from bolus.data.copies.thumbnails import FloatArray

VIEWS = ((WHOLE, *MIRRORED), CROPPED)  # each searched by itself: a whole copy is alike in a crop as well
PROMISING = 0.5  # likeness from which on a crop is moved about
LEAST, MOST = 0.75, 0.93  # likeness from which on, at the lowest and at the highest, images are copies
FEW, MOST_OF_FEW = 100, 0.99  # images below which strangers say little of one another, and the highest for so few
EXPECTED = 0.1  # strangers in the whole cohort that may look like copies


@dataclass(frozen=True)
class NearCopies:
    """What was found among images of different patients.

    Args:
        pairs: int64 `[pairs, 2]`, positions, the lower one first, the most alike first.
        likeness: float32 `[pairs]`, cosine of their signatures, 1 at most.
        threshold: from which on they are copies.
        strangers: likeness of the pair below that is most alike; NaN where there is no other.
        signer: what the signatures were made by.
    """

    pairs: IntArray
    likeness: FloatArray
    threshold: float
    strangers: float
    signer: Signer


def find_near_copies(
    thumbnails: FloatArray, patients: npt.ArrayLike, *, signer: Signer | None = None, cells: int | None = None
) -> NearCopies:
    """Pairs of images of different patients that show the same, but for size, coding, mirror, crop and grey.

    Args:
        thumbnails: `[n, 32, 32]`, of `thumbnail_of`; one that is NaN has no copies.
        patients: int `[n]`.
        signer: to decide by; one learned from these images where None.
        cells: as of `nearest_strangers`.

    Returns:
        Of each image the two strangers most like it are looked at, so that of a group of copies not every pair need be
        there, but each of its images is.

    Example:
        >>> images = np.random.default_rng(0).normal(size=(120, 32, 32)).astype(np.float32)
        >>> images[7] = images[3][:, ::-1]
        >>> find_near_copies(images, np.arange(120)).pairs.tolist()
        [[3, 7]]
    """
    codes = np.asarray(patients, np.int64)
    visible = np.flatnonzero(np.isfinite(thumbnails).all(axis=(1, 2)))
    images, whose = thumbnails[visible], codes[visible]
    few = len(images) < FEW or signer is not None
    signer = signer or learn_signer(images, FINE)
    if len(np.unique(whose)) < 2:
        return NearCopies(np.zeros((0, 2), np.int64), np.zeros(0, np.float32), MOST, np.nan, signer)
    coarse = learn_signer(images, COARSE)
    base, whole = coarse.sign(images), signer.sign(images)
    both = []
    for views in VIEWS:
        seen = (coarse.sign(images, view) for view in views)
        both.append(_looked_at(nearest_strangers(base, seen, whose, cells=cells), views, images, whole, signer))
    found = Pairs(*(np.concatenate(parts) for parts in zip(*both, strict=True)))
    nearest = np.full(len(images), -1.0, np.float32)
    np.maximum.at(nearest, found.image, found.likeness)
    threshold = learn_threshold(nearest[np.unique(found.image)], few=few)
    alike = found.likeness >= threshold
    strangers = float(found.likeness[~alike].max()) if (~alike).any() else np.nan
    pairs = np.sort(np.stack([visible[found.image[alike]], visible[found.stranger[alike]]], axis=1), axis=1)
    order = np.argsort(-found.likeness[alike], kind="stable")
    _, once = np.unique(pairs[order], axis=0, return_index=True)
    kept = order[np.sort(once)]
    return NearCopies(pairs[kept], found.likeness[alike][kept], threshold, strangers, signer)


def learn_threshold(nearest: FloatArray, *, few: bool) -> float:
    """From which likeness on two images are copies, by how alike strangers are.

    The likeness of each image to the stranger most like it, as atanh, is taken for a Gumbel distribution, of which the
    middle and the upper tenth (of few the upper quarter) are seen; copies among them, if not many, do not matter. The
    threshold is where chance would let .1 image of them all pass, within .75 and .93; of few within .93 and .99.

    Args:
        nearest: `[n]`, of each image.
        few: fewer than 100 images, or signatures that were not learned from them, which tell strangers less well apart.

    Returns:
        .93 of none.

    >>> strangers = np.random.default_rng(0).uniform(0.3, 0.5, 1000).astype(np.float32)
    >>> learn_threshold(strangers, few=False), learn_threshold(strangers[:30], few=True)
    (0.75, 0.93)
    """
    number = len(nearest)
    if not number:
        return MOST
    upper = 0.75 if few else 0.9
    middle, high = np.quantile(np.arctanh(np.clip(nearest, -0.9999, 0.9999).astype(np.float64)), (0.5, upper))
    scale = (high - middle) / (-np.log(-np.log(upper)) + np.log(np.log(2)))
    reached = np.tanh(middle + scale * (np.log(np.log(2)) + np.log(number / EXPECTED)))
    low, high = (MOST, MOST_OF_FEW) if few else (LEAST, MOST)
    return float(np.clip(reached, low, high))


def _looked_at(found: Pairs, views: Sequence[View], images: FloatArray, whole: FloatArray, signer: Signer) -> Pairs:
    """The same pairs with the likeness of their fine signatures, the best of the views around the one found."""
    likeness = np.full(len(found.image), -1.0, np.float32)
    for code, named in enumerate(views):
        here = np.flatnonzero(found.view == code)
        for view in [named, *(each for each in around(named) if each != named)]:
            for start in range(0, len(here), 8192):
                some = here[start : start + 8192]
                seen = signer.sign(images[found.image[some]], view)
                alike = np.einsum("nd,nd->n", seen, whole[found.stranger[some]])
                likeness[some] = np.maximum(likeness[some], alike)
            here = here[likeness[here] >= PROMISING]
    return found._replace(likeness=likeness)
