"""Thumbnails of cached images, by which near copies are found."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bolus.data.cohort.cohort import Cohort
from bolus.data.copies.thumbnails import SIDE, thumbnail_of
from bolus.data.images.cache import Store

BLOCK = 256  # images in memory at a time


def thumbnails_in(store: Store, cohort: Cohort, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Thumbnails of cached images, float32 `[n, 32, 32]`; see `bolus.data.copies.thumbnails.thumbnail_of`.

    Args:
        store: of the cohort's images.
        cohort: whose modalities decide which images are of one size.
        rows: int64 `[n]`, all readable.
    """
    found = np.empty((len(rows), SIDE, SIDE), np.float32)
    for _, places in store.preprocessing.groups(cohort.modality[rows]):
        for start in range(0, len(places), BLOCK):
            here = places[start : start + BLOCK]
            for place, image in zip(here.tolist(), store.pictures(rows[here]), strict=True):
                found[place] = thumbnail_of(image)
    return found
