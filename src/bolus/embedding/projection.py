"""Maps of embeddings: two coordinates for each, and its nearest others, for looking at."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bolus.embedding.nearest import find_nearest, normalise

FEWEST, MOST = 10, 20_000  # embeddings that t-SNE maps; more take it many minutes on two cores
NEIGHBOURS = 15
STEPS = 500


def find_maps(vectors: npt.NDArray[np.float32]) -> tuple[dict[str, npt.NDArray[np.float64]], float]:
    """Coordinates in the plane by PCA and, of 10 to 20,000 vectors, by t-SNE on the cosine (scikit-learn's).

    t-SNE (van der Maaten and Hinton 2008) starts from the first two principal components, so that the maps are a
    function of the vectors; distances between groups, and sizes of groups, mean nothing in it.

    Args:
        vectors: float32 `[n, D]`; not normalised.

    Returns:
        `PCA` and perhaps `t-SNE` -> float64 `[n, 2]`; and the share of the variance that the two axes of the PCA hold.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> near, far = rng.normal(size=(20, 8)) + 9, rng.normal(size=(20, 8)) - 9
        >>> maps, held = find_maps(np.concatenate([near, far]).astype(np.float32))
        >>> {name: places.shape for name, places in maps.items()}, held > 0.9
        ({'PCA': (40, 2), 't-SNE': (40, 2)}, True)
        >>> bool(np.ptp(maps["t-SNE"], axis=0).max() > 2 * np.ptp(maps["t-SNE"][:20], axis=0).max())
        True
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    unit = normalise(vectors.astype(np.float64))
    number = len(unit)
    if min(unit.shape) < 2 or not np.ptp(unit, axis=0).any():
        return {"PCA": np.zeros((number, 2))}, 0.0
    solver = "full" if number <= MOST else "randomized"
    pca = PCA(min(50, *unit.shape), svd_solver=solver, random_state=0).fit(unit)
    reduced = pca.transform(unit)
    maps, held = {"PCA": reduced[:, :2]}, float(pca.explained_variance_ratio_[:2].sum())
    if FEWEST <= number <= MOST:
        perplexity = min(30.0, (number - 1) / 3)
        tsne = TSNE(2, perplexity=perplexity, init="pca", max_iter=STEPS, random_state=0)
        maps["t-SNE"] = tsne.fit_transform(reduced).astype(np.float64)
    return maps, held


def find_others(
    vectors: npt.NDArray[np.float32], number: int = NEIGHBOURS
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The others with the largest cosine of each vector, nearest first.

    Args:
        vectors: float32 `[n, D]`; not normalised.
        number: how many, at most all others.

    Returns:
        Positions int64 `[n, k]`, and distances, 1 less the cosine, float64 `[n, k]`.

    >>> find_others(np.array([[1, 0], [2, 0.1], [0, 1]], np.float32), 1)[0].tolist()
    [[1], [0], [1]]
    """
    unit, own = normalise(vectors.astype(np.float64)), np.arange(len(vectors))
    number = min(number, len(unit) - 1)
    if number < 1:
        return np.zeros((len(unit), 0), np.int64), np.zeros((len(unit), 0))
    return find_nearest(unit, unit, number, differ=(own, own))
