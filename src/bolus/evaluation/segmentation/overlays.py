"""Pictures of what a segmenter drew: the outlines of truth and prediction over the image, for a person to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from bolus.data.images.cache import Store
from bolus.data.readers.masks import to_square
from bolus.evaluation.segmentation.stacks import Volume

# Blue and orange are told apart by the colour-blind too; class after class takes the next tone, then the first again.
TRUTH = ((86, 180, 233), (0, 114, 178), (190, 225, 255), (60, 90, 220))
PREDICTED = ((230, 159, 0), (213, 94, 0), (255, 220, 150), (160, 80, 20))
BOTH = (255, 255, 255)  # of one class
ENLARGED = 4  # screen pixels for one of the image, so that an outline does not hide what it is about


def draw_middle(store: Store, volume: Volume, predicted: NDArray[Any]) -> NDArray[np.uint8]:
    """`draw_overlay` of the middle slice of a volume, in the square that the encoder sees; `predicted`: `[T, H, W]`."""
    middle = len(volume.rows) // 2
    image = store.gather(volume.rows[middle : middle + 1]).unit()[0].numpy()
    both, aspect = (volume.truth[middle], predicted[middle]), volume.aspect_of(middle)
    fit, size = store.preprocessing.fit, image.shape[-1]
    truth, guess = (to_square(each, fit=fit, size=size, aspect=aspect) for each in both)
    return draw_overlay(image, truth, guess)


def save_picture(picture: NDArray[np.uint8], path: Path) -> None:
    """As PNG, whatever the path ends in."""
    PIL.Image.fromarray(picture).save(path, format="PNG")


def draw_overlay(image: NDArray[Any], truth: NDArray[Any], predicted: NDArray[Any]) -> NDArray[np.uint8]:
    """The image in grey with the outlines of every class: truth in blue, prediction in orange, white where they agree.

    Each class has a tone of its own of either; they come again after four.

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
    grey = enlarged(np.asarray(image).mean(0))
    picture = np.repeat((255 * grey.clip(0, 1)).round().astype(np.uint8)[..., None], 3, axis=2)
    of_truth, of_prediction = outline(truth), outline(predicted)
    for labels, here, tones in ((truth, of_truth, TRUTH), (predicted, of_prediction, PREDICTED)):
        large = enlarged(labels)
        for label in np.unique(labels[labels > 0]):
            picture[here & (large == label)] = tones[(int(label) - 1) % len(tones)]
    picture[of_truth & of_prediction & (enlarged(truth) == enlarged(predicted))] = BOTH
    return picture


def enlarged(pixels: NDArray[Any]) -> NDArray[Any]:
    """Each pixel as a square of pixels, `[4 H, 4 W]`."""
    return np.repeat(np.repeat(pixels, ENLARGED, 0), ENLARGED, 1)


def outline(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Where the enlarged label map has a foreground pixel next to another class, bool `[4 H, 4 W]`."""
    large = enlarged(labels)
    framed = np.pad(large, 1)
    height, width = large.shape
    differs = np.zeros(large.shape, np.bool_)
    for down, right in ((0, 1), (2, 1), (1, 0), (1, 2)):
        differs |= framed[down : down + height, right : right + width] != large
    return differs & (large > 0)
