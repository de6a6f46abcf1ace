"""Linear, nearest-neighbour and majority heads, fitted on training samples.

The strength of a head is chosen on validation patients, never on test ones, and the head is not refitted on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple
from warnings import catch_warnings, simplefilter

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from bolus.embedding.nearest import neighbours, normalise
from bolus.errors import EvaluationError, suggest
from bolus.evaluation.probing.heads import Head
from bolus.evaluation.statistics.bootstrap import cluster_codes
from bolus.evaluation.statistics.metrics import FloatArray, higher_is_better, metrics_of

STRENGTHS = tuple(float(10.0**power) for power in range(5, -2, -1))
"""Penalties on the squared coefficients, strong to weak; of equally good ones the strongest is kept."""

NEIGHBOURS = (100, 50, 20, 10, 5, 1)
"""Numbers of neighbours, smooth to rough; of equally good ones the smoothest is kept."""


class Labelled(NamedTuple):
    """Embeddings with their targets.

    Args:
        x: `[n, D]` float.
        y: `[n]` codes (-1 or NaN missing) or numbers (NaN missing).
        patients: `[n]` codes; -1 is a patient of its own.
    """

    x: NDArray[Any]
    y: NDArray[Any]
    patients: NDArray[Any]


Candidates = list[tuple[Head, FloatArray]]  # heads, each with its validation predictions, from the smoothest


def fit_linear(train: Labelled, val: Labelled, task: str, *, num_classes: int = 2) -> Head:
    """Logistic or ridge regression on standardised embeddings, its penalty chosen on validation from `STRENGTHS`.

    The penalty s enters as `sum of losses + s / 2 |w|^2` (logistic) and `sum of squared errors + s |w|^2` (ridge, on
    the standardised target). The choice is by AUROC, balanced accuracy (several classes) or MAE; where validation does
    not define it the middle of the grid is taken, with a note. Classes are not reweighted.

    Args:
        train: what is fitted; samples without a target are left out.
        val: what chooses, likewise; its patients say on how few the choice rests.
        task: `classify` or `regress`.
        num_classes: K, raised to one more than the largest code.

    Returns:
        The head; constant, with a note, where training has one class or value.

    Raises:
        EvaluationError: no training sample with a target, or an unknown task.

    >>> train = Labelled([[0.0], [1.0], [2.0]], [0.0, 2.0, 4.0], [0, 1, 2])
    >>> head = fit_linear(train, Labelled([[1.5]], [3.0], [3]), "regress")
    >>> head.strength, head.predict([[1.5]]).round(1).tolist()
    (0.1, [3.0])
    """
    return _fit(_linear, train, val, task, num_classes)


def fit_knn(train: Labelled, val: Labelled, task: str, *, num_classes: int = 2) -> Head:
    """Nearest neighbours by cosine, their number chosen on validation from `NEIGHBOURS`.

    Neighbours vote with weight 1 / (1 - cosine), at most 1e6, for class probabilities or the mean target. Embeddings
    are not centred. Args, Returns and Raises as `fit_linear`; numbers above the training samples are cut to them.

    >>> head = fit_knn(Labelled(np.eye(2), [0, 1], [0, 1]), Labelled(np.eye(2) + 0.1, [0, 1], [2, 3]), "classify")
    >>> head.predict([[1.0, 0.0]]).round(3).tolist()
    [0.0]
    """
    return _fit(_knn, train, val, task, num_classes)


PROBES = {"linear": fit_linear, "knn": fit_knn}


def fit_majority(y: FloatArray, task: str, num_classes: int) -> Head:
    """The prediction that looks at no image (embeddings `[n, 0]`): class shares, or the median, best for the MAE.

    >>> fit_majority(np.array([0.0, 0.0, 0.0, 1.0]), "classify", 2).predict(np.empty((2, 0))).tolist()
    [0.25, 0.25]
    """
    classes, counts = np.unique(y, return_counts=True) if task == "classify" else (np.empty(0), np.ones(1))
    intercept = counts / counts.sum() if task == "classify" else np.array([np.median(y)])
    nothing = np.empty(0)
    return Head("constant", task, np.empty((0, 0)), intercept, nothing, nothing, classes.astype(np.int64), num_classes)


def has_target(y: ArrayLike, task: str) -> NDArray[np.bool_]:
    """Labelled with a target: neither NaN nor, for classes, negative.

    >>> has_target([0, -1, 1], "classify").tolist(), has_target([0.0, -1.0, np.nan], "regress").tolist()
    ([True, False, True], [True, True, False])
    """
    values = np.asarray(y, dtype=np.float64)
    return np.asarray(np.isfinite(values) & ((values >= 0) if task == "classify" else True))


def _fit(
    candidates: Callable[[Labelled, Labelled, Head], Candidates],
    train: Labelled,
    val: Labelled,
    task: str,
    num_classes: int,
) -> Head:
    """The candidate that is best on validation, or a constant."""
    if task not in ("classify", "regress"):
        raise EvaluationError(f"unknown task {task!r}; {suggest(task, ('classify', 'regress'))}")
    train, val = _with_target(train, task), _with_target(val, task)
    if len(train.y) == 0:
        raise EvaluationError("a probe needs at least one training row with a target, found none")
    blank = _blank(train, val, task, num_classes)
    if np.ptp(train.y) == 0:
        what, value = ("class", 1.0) if task == "classify" else ("value", train.y[0])
        notes = (f"training has one {what}: the prediction is constant",)
        return replace(blank, intercept=np.array([value]), notes=notes)
    name, metric = next(iter(metrics_of(task, blank.num_classes).items()))
    sign = 1.0 if higher_is_better(name) else -1.0
    heads = candidates(train, val, blank)
    values = [metric(val.y, predictions) for _, predictions in heads]
    defined = [i for i, value in enumerate(values) if math.isfinite(value)]
    best = max(defined, key=lambda i: sign * values[i]) if defined else len(heads) // 2  # the first of equals
    return replace(heads[best][0], validation=values[best])


def _with_target(samples: Labelled, task: str) -> Labelled:
    given = has_target(samples.y, task)
    x_nd, y_n = (np.asarray(values, dtype=np.float64)[given] for values in (samples.x, samples.y))
    return Labelled(x_nd, y_n, cluster_codes(np.asarray(samples.patients)[given]))


def _blank(train: Labelled, val: Labelled, task: str, num_classes: int) -> Head:
    """A head without coefficients, and what there is to say about its validation samples."""
    notes, classes = [], np.empty(0, dtype=np.int64)
    if task == "regress":
        num_classes = 0
        if len(val.y) == 0:
            notes.append("no validation row has a target: the strength is the middle of its grid")
    else:
        classes = np.unique(train.y).astype(np.int64)
        num_classes = max(2, num_classes, int(max(train.y.max(), val.y.max(initial=0))) + 1)
        patients = [len(np.unique(val.patients[val.y == k])) for k in np.unique(val.y)]
        if len(patients) < 2:
            notes.append("validation has fewer than two classes: the strength is the middle of its grid")
        elif min(patients) < 5:
            notes.append(f"the strength was chosen on {min(patients)} validation patients of the rarest class")
    width = train.x.shape[1]
    nothing = (np.empty((0, width)), np.empty(0), np.zeros(width), np.ones(width))
    return Head("constant", task, *nothing, classes=classes, num_classes=num_classes, notes=tuple(notes))


def _linear(train: Labelled, val: Labelled, blank: Head) -> Candidates:
    mean, scale = train.x.mean(0), train.x.std(0)
    scale = np.where(scale > 1e-9 * np.abs(mean), scale, 1.0)
    blank = replace(blank, kind="linear", mean=mean, scale=scale)
    fit = _logistic if blank.task == "classify" else _ridge
    return [(head, head.predict(val.x)) for head in fit((train.x - mean) / scale, train.y, blank)]


def _logistic(z_nd: FloatArray, y: FloatArray, blank: Head) -> list[Head]:
    """A head for each strength; each starts where the stronger one ended."""
    model = LogisticRegression(max_iter=1000, tol=1e-5, warm_start=True)
    heads = []
    for strength in STRENGTHS:
        with catch_warnings():
            simplefilter("ignore", ConvergenceWarning)  # said in the head's notes instead
            model.set_params(C=1 / strength).fit(z_nd, y.astype(np.int64))
        head = replace(blank, coef=model.coef_.copy(), intercept=model.intercept_.copy(), strength=strength)
        if np.max(model.n_iter_) >= model.max_iter:
            head = replace(head, notes=(*blank.notes, "the logistic regression stopped before it converged"))
        heads.append(head)
    return heads


def _ridge(z_nd: FloatArray, y: FloatArray, blank: Head) -> list[Head]:
    """A head for each strength, from one eigendecomposition of the smaller Gram matrix."""
    blank = replace(blank, intercept=np.zeros(1), target_mean=float(y.mean()), target_scale=float(y.std()))
    t_n = (y - blank.target_mean) / blank.target_scale
    wide = z_nd.shape[1] > z_nd.shape[0]
    values, vectors = np.linalg.eigh(z_nd @ z_nd.T if wide else z_nd.T @ z_nd)
    projected = vectors.T @ (t_n if wide else z_nd.T @ t_n)
    heads = []
    for strength in STRENGTHS:
        solution = vectors @ (projected / (np.maximum(values, 0.0) + strength))
        heads.append(replace(blank, coef=(z_nd.T @ solution if wide else solution)[None], strength=strength))
    return heads


def _knn(train: Labelled, val: Labelled, blank: Head) -> Candidates:
    targets = np.searchsorted(blank.classes, train.y).astype(np.float64) if blank.task == "classify" else train.y
    blank = replace(blank, kind="knn", coef=normalise(train.x), intercept=targets)
    sizes = sorted({min(k, len(targets)) for k in NEIGHBOURS}, reverse=True)
    index, weight = neighbours(val.x, blank.coef, sizes[0])
    return [(replace(blank, strength=float(k)), blank.vote(index[:, :k], weight[:, :k])) for k in sizes]
