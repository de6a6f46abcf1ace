"""Heads: what turns frozen embeddings into predictions, as plain arrays, and how linear and neighbour heads are fitted.

The strength of a head is chosen on validation patients, never on test ones, and the head is not refitted on them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy.special import expit, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from bolus.errors import EvaluationError, suggest
from bolus.evaluation.intervals import cluster_codes
from bolus.evaluation.metrics import FloatArray, IntArray, higher_is_better, metrics_of

STRENGTHS = tuple(float(10.0**power) for power in range(5, -2, -1))
"""Penalties on the squared coefficients, strong to weak; of equally good ones the strongest is kept."""

NEIGHBOURS = (100, 50, 20, 10, 5, 1)
"""Numbers of neighbours, smooth to rough; of equally good ones the smoothest is kept."""

_ARRAYS = ("coef", "intercept", "mean", "scale", "classes")


@dataclass(frozen=True, eq=False)
class Head:
    """What turns embeddings into predictions of one target; all floats are float64.

    Args:
        kind: `linear`, `knn`, or `constant` where training had fewer than two classes or values.
        task: `classify` or `regress`.
        coef: linear: `[K', D]` coefficients on standardised features, one row for two classes; knn: `[m, D]` normalised
            training embeddings, which are data of the training patients; constant: `[0, D]`.
        intercept: linear: `[K']`; knn: `[m]` training targets (positions in `classes`, or numbers); constant: the class
            probabilities `[K']` or the value `[1]`.
        mean: `[D]`, subtracted from embeddings.
        scale: `[D]`, divides embeddings after that.
        classes: int64 `[K']`, the codes seen in training; empty for regression.
        num_classes: K, width of the predictions; 0 for regression.
        target_mean: added to a linear regression, in the target's unit, after
        target_scale: has multiplied it.
        strength: the penalty or number of neighbours chosen; NaN for a constant.
        validation: the choosing metric's value on validation; NaN where undefined.
        target: name of the target.
        class_names: names of the K codes, if any.
        notes: what a reader must know, in sentences.
    """

    kind: str
    task: str
    coef: FloatArray
    intercept: FloatArray
    mean: FloatArray
    scale: FloatArray
    classes: IntArray
    num_classes: int
    target_mean: float = 0.0
    target_scale: float = 1.0
    strength: float = math.nan
    validation: float = math.nan
    target: str = ""
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def predict(self, x: ArrayLike) -> FloatArray:
        """Predictions for embeddings `[n, D]`.

        Returns:
            float64: `[n]` probability of class 1 (two classes), `[n, K]` (more classes), `[n]` target (regression).

        Raises:
            EvaluationError: another width than the head was fitted on.

        >>> head = fit_linear([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1], "classify", [[0.0], [3.0]], [0, 1], [0, 1])
        >>> bool(head.predict([[3.0]])[0] > 0.5)
        True
        """
        x_nd = np.asarray(x, dtype=np.float64)
        if x_nd.ndim != 2 or x_nd.shape[1] != len(self.mean):
            raise EvaluationError(f"this head needs embeddings [n, {len(self.mean)}], found {x_nd.shape}")
        z_nd = (x_nd - self.mean) / self.scale
        if self.kind == "constant":
            raw = np.repeat(self.intercept[None], len(x_nd), axis=0)
        elif self.kind == "knn":
            raw = self._vote(*_neighbours(z_nd, self.coef, int(self.strength)))
        else:
            raw = z_nd @ self.coef.T + self.intercept
            if self.task == "classify":
                raw = softmax(raw, axis=1) if len(self.classes) > 2 else expit(np.hstack([-raw, raw]))
        return self._scores(raw)

    def _vote(self, index: IntArray, weight: FloatArray) -> FloatArray:
        """Weighted mean over neighbours `[n, k]`: `[n, K']` class shares, or `[n, 1]` targets."""
        targets, total = self.intercept[index], weight.sum(1)
        if self.task == "regress":
            return np.asarray((weight * targets).sum(1) / total)[:, None]
        return np.stack([(weight * (targets == c)).sum(1) / total for c in range(len(self.classes))], axis=1)

    def _scores(self, raw: FloatArray) -> FloatArray:
        """What `predict` returns, from `[n, K']` probabilities of the classes seen, or `[n, 1]`."""
        if self.task == "regress":
            return np.asarray(raw[:, 0] * self.target_scale + self.target_mean)
        full = np.zeros((len(raw), self.num_classes))
        full[:, self.classes] = raw
        return full[:, 1] if self.num_classes == 2 else full

    def save(self, path: str | Path) -> None:
        """Write the arrays as safetensors, the rest as JSON in its header; folders are made.

        >>> import tempfile
        >>> head = fit_linear([[0.0], [1.0], [2.0]], [0.0, 2.0, 4.0], "regress", [[1.5]], [3.0], [0])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     head.save(Path(folder, "age.safetensors"))
        ...     Head.load(Path(folder, "age.safetensors")).predict([[1.5]]).round(1).tolist()
        [3.0]
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        values = asdict(self)
        arrays = {key: np.ascontiguousarray(values.pop(key)) for key in _ARRAYS}
        for key in ("strength", "validation"):
            values[key] = values[key] if math.isfinite(values[key]) else None
        save_file(arrays, path, metadata={"bolus_head": json.dumps(values, allow_nan=False)})

    @classmethod
    def load(cls, path: str | Path) -> Head:
        """Read what `save` wrote.

        Raises:
            EvaluationError: no such file, or not a head.
        """
        path = Path(path)
        if not path.is_file():
            raise EvaluationError(f"no head {path}")
        try:
            with safe_open(path, framework="numpy") as file:
                values: dict[str, Any] = json.loads((file.metadata() or {})["bolus_head"])
                values |= {key: file.get_tensor(key) for key in _ARRAYS}
        except Exception as error:
            raise EvaluationError(f"{path} is not a head that `Head.save` wrote") from error
        for key in ("strength", "validation"):
            values[key] = math.nan if values[key] is None else values[key]
        for key in ("class_names", "notes"):
            values[key] = tuple(values[key])
        return cls(**values)


def fit_linear(
    x: ArrayLike,
    y: ArrayLike,
    task: str,
    x_val: ArrayLike,
    y_val: ArrayLike,
    patients_val: ArrayLike,
    *,
    num_classes: int = 2,
) -> Head:
    """Logistic or ridge regression on standardised embeddings, its penalty chosen on validation from `STRENGTHS`.

    The penalty s enters as `sum of losses + s / 2 |w|^2` (logistic) and `sum of squared errors + s |w|^2` (ridge, on
    the standardised target). The choice is by AUROC, balanced accuracy (several classes) or MAE; without two classes in
    validation the middle of the grid is taken and noted. Classes are not reweighted.

    Args:
        x: `[n, D]` training embeddings.
        y: `[n]` codes (-1 or NaN missing) or numbers (NaN missing).
        task: `classify` or `regress`.
        x_val: `[m, D]` validation embeddings.
        y_val: `[m]` validation targets.
        patients_val: `[m]` codes, to say on how few patients the choice rests.
        num_classes: K, raised to one more than the largest code.

    Returns:
        The head; constant, with a note, where training has one class or value.

    Raises:
        EvaluationError: no training row with a target, or an unknown task.

    >>> head = fit_linear([[0.0], [1.0], [2.0]], [0.0, 2.0, 4.0], "regress", [[1.5]], [3.0], [0])
    >>> head.strength, head.predict([[1.5]]).round(1).tolist()
    (0.1, [3.0])
    """
    return _fit(_linear, x, y, task, x_val, y_val, patients_val, num_classes)


def fit_knn(
    x: ArrayLike,
    y: ArrayLike,
    task: str,
    x_val: ArrayLike,
    y_val: ArrayLike,
    patients_val: ArrayLike,
    *,
    num_classes: int = 2,
) -> Head:
    """Nearest neighbours by cosine, their number chosen on validation from `NEIGHBOURS`.

    Neighbours vote with weight 1 / (1 - cosine), at most 1e6, for class probabilities or the mean target. Embeddings
    are not centred. Args, Returns and Raises as `fit_linear`; numbers above the training rows are cut to them.

    >>> head = fit_knn([[1.0, 0.0], [0.0, 1.0]], [0, 1], "classify", [[1.0, 0.2], [0.2, 1.0]], [0, 1], [0, 1])
    >>> head.predict([[1.0, 0.0]]).round(3).tolist()
    [0.0]
    """
    return _fit(_knn, x, y, task, x_val, y_val, patients_val, num_classes)


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
    """Rows with a target: neither NaN nor, for classes, negative.

    >>> has_target([0, -1, 1], "classify").tolist(), has_target([0.0, -1.0, np.nan], "regress").tolist()
    ([True, False, True], [True, True, False])
    """
    values = np.asarray(y, dtype=np.float64)
    return np.asarray(np.isfinite(values) & ((values >= 0) if task == "classify" else True))


@dataclass(frozen=True)
class _Data:
    """Labelled training and validation rows, and a head without coefficients to fill in."""

    x: FloatArray
    y: FloatArray
    x_val: FloatArray
    y_val: FloatArray
    blank: Head


def _fit(
    candidates: Callable[[_Data], list[tuple[Head, FloatArray]]],
    x: ArrayLike,
    y: ArrayLike,
    task: str,
    x_val: ArrayLike,
    y_val: ArrayLike,
    patients_val: ArrayLike,
    num_classes: int,
) -> Head:
    """The best on validation of candidates (head, its validation predictions), ordered from the smoothest."""
    data = _prepare(x, y, task, x_val, y_val, patients_val, num_classes)
    if np.ptp(data.y) == 0:
        what, value = ("class", 1.0) if task == "classify" else ("value", data.y[0])
        notes = (f"training has one {what}: the prediction is constant",)
        return replace(data.blank, intercept=np.array([value]), notes=notes)
    name, metric = next(iter(metrics_of(task, data.blank.num_classes).items()))
    sign = 1.0 if higher_is_better(name) else -1.0
    heads = candidates(data)
    values = [metric(data.y_val, predictions) for _, predictions in heads]
    defined = [i for i, value in enumerate(values) if math.isfinite(value)]
    best = max(defined, key=lambda i: sign * values[i]) if defined else len(heads) // 2  # the first of equals
    return replace(heads[best][0], validation=values[best])


def _prepare(
    x: ArrayLike,
    y: ArrayLike,
    task: str,
    x_val: ArrayLike,
    y_val: ArrayLike,
    patients_val: ArrayLike,
    num_classes: int,
) -> _Data:
    """Drop rows without a target, find the classes, and judge whether validation can choose anything."""
    if task not in ("classify", "regress"):
        raise EvaluationError(f"unknown task {task!r}; {suggest(task, ('classify', 'regress'))}")
    given, given_val = has_target(y, task), has_target(y_val, task)
    x_nd, x_val_nd = np.asarray(x, dtype=np.float64)[given], np.asarray(x_val, dtype=np.float64)[given_val]
    y_n, y_val_n = np.asarray(y, dtype=np.float64)[given], np.asarray(y_val, dtype=np.float64)[given_val]
    if len(y_n) == 0:
        raise EvaluationError("a probe needs at least one training row with a target, found none")
    notes, classes = (), np.empty(0, dtype=np.int64)
    ...
