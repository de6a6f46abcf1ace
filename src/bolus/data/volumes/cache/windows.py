"""Where an encoder looks into a volume that is larger than its box: corners of windows, in voxels of the volume."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from bolus.data.images.preprocessing import ENLARGE

Corners = npt.NDArray[np.int64]
Voxels: TypeAlias = Sequence[int] | npt.NDArray[np.int64]
"""Numbers of voxels along D, H and W."""


def centred(shape: Voxels, size: Voxels) -> Corners:
    """The corner of the window in the middle, int64 `[3]`; negative along an axis where the window is longer.

    Args:
        shape: of the volume (D, H, W).
        size: of the window.

    >>> centred((10, 4, 7), (4, 8, 7)).tolist()
    [3, -2, 0]
    """
    return (np.asarray(shape, np.int64) - np.asarray(size, np.int64)) // 2


def covering(shape: Voxels, size: Voxels) -> Corners:
    """Corners of windows that cover the volume, int64 `[n, 3]`: as few as can be, evenly set, W changing first.

    Along an axis where the volume is no longer than the window there is one, in the middle.

    Args:
        shape: of the volume (D, H, W).
        size: of the window.

    >>> covering((10, 4, 4), (4, 8, 4)).tolist()
    [[0, -2, 0], [3, -2, 0], [6, -2, 0]]
    """
    starts = []
    for length, side in zip(shape, size, strict=True):
        number = -(-int(length) // int(side))
        if number == 1:
            starts.append([(int(length) - int(side)) // 2])
        else:
            starts.append(np.rint(np.linspace(0, length - side, number)).astype(int).tolist())
    return np.array(list(product(*starts)), np.int64)


def margin_of(size: Voxels, largest: Voxels) -> Corners:
    """Voxels that a window of training has more on either side, int64 `[3]`: an eighth, where some volume goes on.

    Views that are turned or stretched see them. They do not depend on which volumes are drawn together.

    Args:
        size: of the window (D, H, W).
        largest: the most voxels of a volume, along each axis.

    >>> margin_of((16, 16, 16), (64, 17, 8)).tolist()
    [2, 1, 0]
    """
    sides = np.asarray(size, np.int64)
    spare = np.maximum(np.asarray(largest, np.int64) - sides, 0)
    found: Corners = np.minimum(np.rint(sides * (ENLARGE - 1) / 2).astype(np.int64), (spare + 1) // 2)
    return found


def drawn(shape: Voxels, size: Voxels, rng: np.random.Generator) -> Corners:
    """The corner of a window that lies anywhere within the volume, all places alike, int64 `[3]`.

    Args:
        shape: of the volume (D, H, W); along an axis where it is no longer than the window, that lies in the middle.
        size: of the window.
        rng: draws three numbers, whatever the sizes.

    >>> drawn((10, 4, 7), (4, 8, 7), np.random.default_rng(0)).tolist()
    [4, -2, 0]
    """
    spare = np.asarray(shape, np.int64) - np.asarray(size, np.int64)
    anywhere = (rng.random(3) * (np.maximum(spare, 0) + 1)).astype(np.int64)
    return np.where(spare > 0, anywhere, spare // 2)
