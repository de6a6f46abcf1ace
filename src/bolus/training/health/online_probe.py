"""The online probe: what neighbours among other validation patients say of a role, and the gain over an earlier look.

Letters: N samples, K classes or 1, B bootstrap draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from bolus.data.cohort.cohort import Cohort
from bolus.embedding.nearest import neighbours, normalise
from bolus.errors import RecipeError, suggest
from bolus.evaluation.statistics.bootstrap import bootstrap_blocks
from bolus.evaluation.statistics.intervals import Estimate
from bolus.evaluation.statistics.metrics import FloatArray, Metric, auroc, spearman
from bolus.evaluation.statistics.weighting import mean_of_defined
from bolus.recipe import Recipe

NEIGHBOURS = 10
FEWEST = 3  # patients, on either side of a class, below which nothing is said
DRAWS = 400  # of the patients, for the interval of a difference
MEASURES: dict[str, tuple[Metric, float]] = {"AUROC": (auroc, 0.5), "Spearman correlation": (spearman, 0.0)}
"""Measure -> its function, and its value by chance."""


@dataclass(frozen=True)
class Probed:
    """What the online probe said of each validation sample.

    Args:
        role: what was probed.
        measure: a name in `MEASURES`.
        y: float64 `[N, K]`, targets; NaN where missing.
        scores: float64 `[N, K]`, as of `knn_scores`.
        patients: int64 `[N]` codes.
        samples: digest of the role, the samples, their targets and patients: two looks with the same are comparable.
    """

    role: str
    measure: str
    y: FloatArray
    scores: FloatArray
    patients: npt.NDArray[np.int64]
    samples: str

    @property
    def chance(self) -> float:
        """The measure where nothing is seen."""
        return MEASURES[self.measure][1]

    @property
    def value(self) -> float:
        """The measure, mean over the classes that enough patients have and lack; NaN where there is none."""
        return float(self.values_of(self.scores))

    def values_of(self, scores: FloatArray, weights: npt.NDArray[Any] | None = None) -> Any:
        """As `value`, of these scores `[N, K]`; with multiplicities `[B, N]` of the samples, `[B]`."""
        metric, found = MEASURES[self.measure][0], []
        for target, score in zip(self.y.T, scores.T, strict=True):
            known = ~np.isnan(target)
            sides = [known & (target == side) for side in (0, 1)] if metric is auroc else [known]
            if min(len(set(self.patients[side])) for side in sides) >= FEWEST:
                drawn = None if weights is None else weights[:, known].astype(np.float64)
                found.append(np.atleast_1d(metric(target[known], score[known], drawn)))
        if not found:
            return np.nan if weights is None else np.full(len(weights), np.nan)
        mean = mean_of_defined(np.stack(found), axis=0)
        return mean[0] if weights is None else mean

    def gain_over(self, scores: FloatArray, *, seed: int) -> Estimate:
        """The measure less that of other scores `[N, K]` of the same samples, with its 95 % interval over patients.

        Paired, draw by draw of the patients; who is whose neighbour stays as it is. NaN where nothing is defined.

        >>> y = np.arange(60)[:, None] % 2.0
        >>> found = Probed("label:sick", "AUROC", y, y, np.arange(60), "").gain_over(1 - y, seed=0)
        >>> found.value, found.low > 0
        (1.0, True)
        """
        known = ~np.isnan(self.y).all(1)
        one = Probed(self.role, self.measure, self.y[known], self.scores[known], self.patients[known], self.samples)
        other = scores[known]

        def differ(weights: npt.NDArray[Any] | None) -> Any:
            return one.values_of(one.scores, weights) - one.values_of(other, weights)

        drawn = np.concatenate([differ(block) for block in bootstrap_blocks(one.patients, draws=DRAWS, seed=seed)])
        alone = self.measure == "AUROC" and one.y.shape[1] == 1
        y = one.y[:, 0] if alone else None
        return Estimate.from_draws(
            float(differ(None)), drawn, one.patients, metric="auroc" if alone else "", y=y, difference=True
        )


def knn_scores(
    z_ND: npt.NDArray[np.float32], y_NK: npt.NDArray[np.float64], patients: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Mean target of the nearest neighbours by cosine among *other* patients, `[N, K]`; NaN targets do not vote.

    >>> z = np.array([[1, 0], [1, 0.1], [0, 1]], np.float32)
    >>> knn_scores(z, np.array([[1.0], [0.0], [np.nan]]), np.array([0, 1, 2])).ravel().tolist()
    [0.0, 1.0, 0.5]
    """
    z = normalise(np.asarray(z_ND, dtype=np.float64))
    scores = np.full(y_NK.shape, np.nan)
    for column in range(y_NK.shape[1]):
        known = np.flatnonzero(~np.isnan(y_NK[:, column]))
        if not len(known):
            continue
        nearest, weight = neighbours(z, z[known], NEIGHBOURS, differ=(patients, patients[known]))
        voted, votes = weight > 0, y_NK[known, column][nearest]
        scores[:, column] = np.where(voted, votes, 0).sum(1) / np.maximum(voted.sum(1), 1)
    return scores


def check_probe(cohort: Cohort, recipe: Recipe) -> str | None:
    """The role that the online probe will watch: the recipe's `training.probe`, else the first label; None for neither.

    Raises:
        RecipeError: `training.probe` is no role of the cohort, or its values are neither labels nor numbers.
    """
    role = recipe.training.probe
    if role is None:
        return next((role for role in cohort.roles if role.startswith("label:")), None)
    if role not in cohort.roles:
        raise RecipeError(f"training.probe: no column has the role {role!r}; {suggest(role, cohort.roles)}")
    has_values = not cohort.absent(role).all()
    if has_values and not role.startswith("label:") and cohort.encoded(role).dtype != np.float64:
        raise RecipeError(f"training.probe: {role} holds categories; expected a label:NAME, or a role with numbers")
    return role


def probe_vectors(
    vectors: npt.NDArray[np.float32], cohort: Cohort, rows: npt.NDArray[np.int64], recipe: Recipe
) -> Probed | None:
    """The online probe on embeddings `[N, D]` of the samples in these rows int64 `[N]`; None where no role is watched.

    Raises:
        RecipeError: as `check_probe`.
    """
    role = check_probe(cohort, recipe)
    if role is None:
        return None
    patients = np.asarray(cohort.encoded("patient")[rows], dtype=np.int64)
    measure = "AUROC" if role.startswith("label:") else "Spearman correlation"
    if cohort.absent(role)[rows].all():
        y = np.full((len(rows), 1), np.nan)
    elif role.startswith("label:"):
        labels = cohort.labels(role.removeprefix("label:"))
        y = labels.matrix[rows].astype(np.float64)
        if labels.exclusive and len(labels.classes) == 2:
            y = y[:, 1:]
    else:
        y = cohort.encoded(role)[rows][:, None]
    parts = (np.asarray(rows, dtype=np.int64), patients, np.ascontiguousarray(y))
    digest = blake2b(role.encode() + b"".join(part.tobytes() for part in parts), digest_size=8).hexdigest()
    return Probed(role, measure, y, knn_scores(vectors, y, patients), patients, digest)
