"""A map of embeddings: two coordinates for each, and its nearest others, for looking at in an explorer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

MOST = 20_000  # embeddings of which t-SNE takes minutes on two cores; more are mapped by PCA
NEIGHBOURS = 15


def find_map(vectors: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], str]:
    """Coordinates in the plane by t-SNE on the cosine (van der Maaten and Hinton 2008, scikit-learn's), or by PCA.

    t-SNE starts from the first two principal components, so that the map is a function of the vectors; distances
    between groups, and sizes of groups, mean nothing in it. PCA is taken above 20,000 vectors, and below 10.

    Args:
        vectors: float32 `[n, D]`; not normalised.

    Returns:
        float32 `[n, 2]`, and the method, `t-SNE` or `PCA`.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> near, far = rng.normal(size=(20, 8)) + 9, rng.normal(size=(20, 8)) - 9
        >>> places, method = find_map(np.concatenate([near, far]).astype(np.float32))
        >>> places.shape, method
        ((40, 2), 't-SNE')
        >>> bool(np.ptp(places, axis=0).max() > 2 * np.ptp(places[:20], axis=0).max())
        True
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    unit = _normalise(vectors)
    number = len(unit)
    if min(unit.shape) < 2 or not np.ptp(unit, axis=0).any():
        return np.zeros((number, 2), np.float32), "PCA"
    width = 2 if not 10 <= number <= MOST else min(50, *unit.shape)
    reduced = PCA(width, svd_solver="full" if number <= MOST else "randomized", random_state=0).fit_transform(unit)
    if not 10 <= number <= MOST:
        return reduced.astype(np.float32), "PCA"
    start = reduced[:, :2] / max(float(reduced[:, 0].std()), 1e-12) * 1e-4  # scikit-learn's scale
    perplexity = min(30.0, (number - 1) / 3)
    found = TSNE(2, perplexity=perplexity, init=start, random_state=0).fit_transform(reduced)
    return found.astype(np.float32), "t-SNE"


def find_neighbours(
    vectors: npt.NDArray[np.float32], number: int = NEIGHBOURS
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The others with the largest cosine of each vector, nearest first.

    Args:
        vectors: float32 `[n, D]`; not normalised.
        number: how many, at most all others.

    Returns:
        Positions int64 `[n, k]`, and distances, 1 less the cosine, float32 `[n, k]`.

    >>> find_neighbours(np.array([[1, 0], [2, 0.1], [0, 1]], np.float32), 1)[0].tolist()
    [[1], [0], [1]]
    """
    unit = _normalise(vectors)
    number = min(number, max(len(unit) - 1, 0))
    found, away = np.zeros((len(unit), number), np.int64), np.zeros((len(unit), number), np.float32)
    for start in range(0, len(unit) if number else 0, 1024):
        rows = np.arange(start, min(start + 1024, len(unit)))
        cosine = unit[rows] @ unit.T
        cosine[np.arange(len(rows)), rows] = -np.inf
        order = np.argsort(-cosine, axis=1, kind="stable")[:, :number]
        found[rows], away[rows] = order, 1 - np.take_along_axis(cosine, order, axis=1)
    return found, away


def _normalise(vectors: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """Vectors of length 1, float64; a vector of length 0 stays."""
    exact = vectors.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    return exact / np.where(lengths > 0, lengths, 1)
