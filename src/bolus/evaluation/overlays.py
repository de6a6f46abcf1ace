"""Pictures of what a segmenter drew: the outlines of truth and prediction over the image, for a person to look at."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

TRUTH = (0, 200, 80)  # green
PREDICTED = (255, 60, 200)  # pink
BOTH = (255, 255, 255)
ENLARGED = 4  # screen pixels for one of the image, so that an outline does not hide what it is about


def draw_overlay(image: NDArray[Any], truth: NDArray[Any], predicted: NDArray[Any]) -> NDArray[np.uint8]:
    """The image in grey with the outlines of every class: truth green, prediction pink, both white.

    Args:
        image: `[C, H, W]` in [0, 1]; channels are averaged.
        truth: classes `[H, W]`.
        predicted: likewise.

    Returns:
        uint8 `[4 H, 4 W, 3]`.

    >>> square = np.zeros((4, 4), int)
    >>> square[1:3, 1:3] = 1
    >>> picture = draw_overlay(np.zeros((1, 4, 4)), square, square)
    >>> picture.shape, picture[4, 4].tolist(), picture[8, 8].tolist()
    ((16, 16, 3), [255, 255, 255], [0, 0, 0])
    """
    grey = np.repeat(np.repeat(np.asarray(image).mean(0), ENLARGED, 0), ENLARGED, 1)
    picture = np.repeat((255 * grey.clip(0, 1)).round().astype(np.uint8)[..., None], 3, axis=2)
    of_truth, of_prediction = outline(truth), outline(predicted)
    picture[of_truth] = TRUTH
    picture[of_prediction] = PREDICTED
    picture[of_truth & of_prediction] = BOTH
    return picture


def outline(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Where the enlarged label map has a foreground pixel next to another class, bool `[4 H, 4 W]`."""
    large = np.repeat(np.repeat(labels, ENLARGED, 0), ENLARGED, 1)
    framed = np.pad(large, 1)
    height, width = large.shape
    differs = np.zeros(large.shape, np.bool_)
    for down, right in ((0, 1), (2, 1), (1, 0), (1, 2)):
        differs |= framed[down : down + height, right : right + width] != large
    return differs & (large > 0)
