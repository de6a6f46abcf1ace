"""The nearest of many vectors by cosine."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def normalise(x_nd: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Rows of length one; a row of zeros stays."""
    return np.asarray(x_nd / np.maximum(np.linalg.norm(x_nd, axis=1, keepdims=True), 1e-12))


def find_nearest(
    x_nd: FloatArray, train_md: FloatArray, k: int, *, differ: tuple[IntArray, IntArray] | None = None
) -> tuple[IntArray, FloatArray]:
    """The k nearest of normalised training rows by cosine, nearest first, and their distances 1 - cosine: two `[n, k]`.

    Args:
        x_nd: `[n, D]` rows.
        train_md: `[m, D]`, each of length 1.
        k: how many; all where there are fewer.
        differ: codes of the rows `[n]` and of the training rows `[m]`, such as patients: a training row of one's own
            code is no neighbour, and is infinitely far.

    >>> index, distance = find_nearest(np.array([[1.0, 1.0]]), np.eye(2), k=1)
    >>> index.tolist(), distance.round(2).tolist()
    ([[0]], [[0.29]])
    """
    k = min(k, len(train_md))
    indices, distances = [np.empty((0, k), dtype=np.int64)], [np.empty((0, k))]
    step = max(1, (1 << 22) // max(1, len(train_md)))
    for first in range(0, len(x_nd), step):
        distance = 1 - normalise(x_nd[first : first + step]) @ train_md.T
        if differ is not None:
            distance[differ[0][first : first + step, None] == differ[1]] = np.inf
        near = np.sort(np.argpartition(distance, k - 1, axis=1)[:, :k], axis=1)  # by row, so that ties are stable
        order = np.argsort(np.take_along_axis(distance, near, 1), axis=1, kind="stable")
        near = np.take_along_axis(near, order, 1)
        indices.append(near)
        distances.append(np.take_along_axis(distance, near, 1))
    return np.concatenate(indices), np.concatenate(distances)


def neighbours(
    x_nd: FloatArray, train_md: FloatArray, k: int, *, differ: tuple[IntArray, IntArray] | None = None
) -> tuple[IntArray, FloatArray]:
    """`find_nearest`, with weights 1 / distance in place of distances; of a row of one's own code it is 0.

    >>> index, weight = neighbours(np.array([[1.0, 1.0]]), np.eye(2), k=1)
    >>> index.tolist(), weight.round(1).tolist()
    ([[0]], [[3.4]])
    """
    index, distance = find_nearest(x_nd, train_md, k, differ=differ)
    return index, 1 / np.maximum(distance, 1e-6)
