"""The square of an image whose pixels may be oblong: how much of it, in its own pixels, becomes the square.

A square of equal sides in mm is found first, and resampled to as many rows as columns after that. Images and masks
share this, so that they lie on each other.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

from bolus.errors import UsageError

Fit: TypeAlias = Literal["pad", "stretch", "crop"]

NEAR_SQUARE = 0.01  # pixels that are oblong by less count as square
MOST_OBLONG = 100.0  # a distance that says more than this is no distance


def canvas(shape: tuple[int, int], fit: Fit, aspect: float = 1.0) -> tuple[int, int]:
    """Rows and columns, in native pixels, of the rectangle that covers the square in which an image is shown.

    `pad` takes the longer side of the image, as long as it is in the world, `crop` the shorter one, and `stretch` the
    image as it is. The image lies in the middle; an odd pixel of padding or margin is the last one.

    Args:
        shape: `(H, W)` of the image.
        fit: `Preprocessing.fit` of the image.
        aspect: `Image.aspect`, height of a pixel over its width.

    Raises:
        UsageError: an unknown fit.

    Example:
        >>> canvas((40, 80), "pad"), canvas((40, 80), "crop"), canvas((40, 80), "stretch")
        ((80, 80), (40, 40), (40, 80))
        >>> canvas((40, 80), "pad", aspect=2.0), canvas((40, 40), "pad", aspect=2.0), canvas((40, 40), "crop", 2.0)
        ((40, 80), (40, 80), (20, 40))
    """
    height, width = shape
    if fit == "stretch":
        return height, width
    if fit not in ("pad", "crop"):
        raise UsageError(f"fit: expected pad, stretch or crop, found {fit!r}")
    side = (max if fit == "pad" else min)(height * aspect, width)
    return max(1, round(side / aspect)), max(1, round(side))


def find_aspect(height: float, width: float) -> float:
    """Height over width of a pixel; 1 where either is no distance, or they differ by no more than 1 %.

    >>> find_aspect(0.6, 0.3), find_aspect(1.005, 1.0), find_aspect(float("nan"), 1.0), find_aspect(1.0, 0.0)
    (2.0, 1.0, 1.0, 1.0)
    """
    if not (math.isfinite(height) and math.isfinite(width) and height > 0 and width > 0):
        return 1.0
    aspect = height / width
    if abs(aspect - 1) <= NEAR_SQUARE or not 1 / MOST_OBLONG <= aspect <= MOST_OBLONG:
        return 1.0
    return aspect


def oblong_notes(aspect: float) -> list[str]:
    """What a person should know of an image with such pixels; nothing where they are square.

    >>> oblong_notes(2.0), oblong_notes(1.0)
    (['pixels are not square (height/width 2): resampled to square'], [])
    """
    return [f"pixels are not square (height/width {aspect:.3g}): resampled to square"] if aspect != 1 else []
