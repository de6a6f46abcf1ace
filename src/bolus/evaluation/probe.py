"""How much a frozen encoder knows: linear and nearest-neighbour probes on its embeddings, judged over patients.

The strength of a probe is chosen on validation patients, never on test ones, and the head is not refitted on them. A
label fraction is a fraction of training *patients*, drawn several times and nested. Every encoder meets the same draws
and the same test patients, so that differences are paired; beside each stands the smallest difference that this test
set could have shown. Few labels are simulated in training only: the strength is chosen on all validation patients.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy.special import expit, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from bolus.errors import EvaluationError, LeakageError, name_rows, suggest
from bolus.evaluation.metrics import (
    METRICS,
    Estimate,
    FloatArray,
    IntArray,
    Metric,
    bootstrap_blocks,
    cluster_codes,
    detectable_difference,
    higher_is_better,
)
from bolus.evaluation.results import Result, versions

STRENGTHS = tuple(float(10.0**power) for power in range(5, -2, -1))
"""Penalties on the squared coefficients, strong to weak; of equally good ones the strongest is kept."""

NEIGHBOURS = (100, 50, 20, 10, 5, 1)
"""Numbers of neighbours, smooth to rough; of equally good ones the smoothest is kept."""

ENOUGH_PATIENTS = 20
"""Test patients of either class (of any target: test patients) below which no difference counts as decided."""


@dataclass(frozen=True, eq=False)
class Head:
    """What turns embeddings into predictions of one target; plain arrays.

    Args:
        kind: `linear`, `knn`, or `constant` where training had fewer than two classes or values.
        task: `classify` or `regress`.
        coef: float64; linear: `[K', D]` coefficients on standardised features, one row for two classes; knn: `[m, D]`
            normalised training embeddings (so a saved head holds data of the training patients); constant: `[0, D]`.
        intercept: float64; linear: `[K']`; knn: `[m]` training targets (positions in `classes`, or numbers); constant:
            the class probabilities `[K']` or the value `[1]`.
        mean: float64 `[D]`, subtracted from embeddings.
        scale: float64 `[D]`, divides embeddings after that.
        classes: int64 `[K']`, the codes seen in training; empty for regression.
        num_classes: K, width of the predictions; 0 for regression.
        target_mean: added to a linear regression, after
        target_scale: has multiplied it; the target's unit.
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
        """Predictions for embeddings.

        Args:
            x: `[n, D]` float.

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
            index, weight = _neighbours(z_nd, self.coef, int(self.strength))
            raw = _vote(self, index, weight, int(self.strength))
        else:
            raw = z_nd @ self.coef.T + self.intercept
            if self.task == "classify":
                raw = softmax(raw, axis=1) if len(self.classes) > 2 else expit(np.hstack([-raw, raw]))
        if self.task == "regress":
            return np.asarray(raw[:, 0] * self.target_scale + self.target_mean)
        return _all_classes(raw, self.classes, self.num_classes)

    def save(self, path: str | Path) -> None:
        """Write the arrays as safetensors, the rest as JSON in its header; folders are made.

        >>> import tempfile
        >>> head = fit_knn([[1.0, 0.0], [0.0, 1.0]], [3.0, 5.0], "regress", [[1.0, 0.1]], [3.0], [0])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     head.save(Path(folder, "age.safetensors"))
        ...     Head.load(Path(folder, "age.safetensors")).predict([[1.0, 0.0]]).round(2).tolist()
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


_ARRAYS = ("coef", "intercept", "mean", "scale", "classes")


def _all_classes(raw: FloatArray, classes: IntArray, num_classes: int) -> FloatArray:
    """Probabilities `[n, K']` of the classes seen -> `[n]` of class 1, or `[n, K]` with zero for the unseen."""
    full = np.zeros((len(raw), num_classes))
    full[:, classes] = raw
    return full[:, 1] if num_classes == 2 else full


def _neighbours(x_nd: FloatArray, train_md: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
    """The k nearest training rows by cosine, nearest first, and their weights 1 / distance: two `[n, k]`."""
    k = min(k, len(train_md))
    indices, weights = [np.empty((0, k), dtype=np.int64)], [np.empty((0, k))]
    step = max(1, (1 << 22) // len(train_md))
    for first in range(0, len(x_nd), step):
        distance = 1 - _normalise(x_nd[first : first + step]) @ train_md.T
        near = np.sort(
            np.argpartition(distance, k - 1, axis=1)[:, :k], axis=1
        )  # ascending rows, so that ties are stable
        order = np.argsort(np.take_along_axis(distance, near, 1), axis=1, kind="stable")
        near = np.take_along_axis(near, order, 1)
        indices.append(near)
        weights.append(1 / np.maximum(np.take_along_axis(distance, near, 1), 1e-6))
    return np.concatenate(indices), np.concatenate(weights)


def _normalise(x_nd: FloatArray) -> FloatArray:
    """Rows of length one; a row of zeros stays."""
    return np.asarray(x_nd / np.maximum(np.linalg.norm(x_nd, axis=1, keepdims=True), 1e-12))


def _vote(head: Head, index: IntArray, weight: FloatArray, k: int) -> FloatArray:
    """Weighted mean of the first k neighbours: `[n, K']` class shares, or `[n, 1]` targets."""
    weight, targets = weight[:, :k], head.intercept[index[:, :k]]
    total = weight.sum(1)
    if head.task == "regress":
        return np.asarray((weight * targets).sum(1) / total)[:, None]
    return np.stack([(weight * (targets == c)).sum(1) / total for c in range(len(head.classes))], axis=1)


def _labelled(y: NDArray[Any], task: str) -> NDArray[np.bool_]:
    """Rows with a target: neither NaN nor, for classes, negative."""
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


def _prepare(
    x: ArrayLike,
    y: ArrayLike,
    task: str,
    x_val: ArrayLike,
    y_val: ArrayLike,
    patients_val: ArrayLike,
    num_classes: int | None,
) -> _Data:
    """Drop rows without a target, find the classes, and judge whether validation can choose anything."""
    if task not in ("classify", "regress"):
        raise EvaluationError(f"unknown task {task!r}; {suggest(task, ('classify', 'regress'))}")
    x_nd, x_val_nd = np.asarray(x, dtype=np.float64), np.asarray(x_val, dtype=np.float64)
    y_n, y_val_n = np.asarray(y, dtype=np.float64), np.asarray(y_val, dtype=np.float64)
    given, given_val = _labelled(y_n, task), _labelled(y_val_n, task)
    x_nd, y_n, x_val_nd, y_val_n = x_nd[given], y_n[given], x_val_nd[given_val], y_val_n[given_val]
    if len(y_n) == 0:
        raise EvaluationError("a probe needs at least one training row with a target, found none")
    notes: list[str] = []
    if task == "regress":
        num_classes, classes = 0, np.empty(0, dtype=np.int64)
        if len(y_val_n) == 0:
            notes.append("no validation row has a target: the strength is the middle of its grid")
    else:
        classes = np.unique(y_n).astype(np.int64)
        num_classes = max(num_classes or 2, int(max(y_n.max(), y_val_n.max(initial=0))) + 1)
        fewest, held = _fewest_patients(y_val_n, cluster_codes(np.asarray(patients_val)[given_val]))
        if held < 2:
            notes.append("validation has fewer than two classes: the strength is the middle of its grid")
        elif fewest < 5:
            notes.append(f"the strength was chosen on {fewest} validation patients of the rarest class")
    width = x_nd.shape[1]
    blank = Head(
        kind="constant",
        task=task,
        coef=np.empty((0, width)),
        intercept=np.empty(0),
        mean=np.zeros(width),
        scale=np.ones(width),
        classes=classes,
        num_classes=num_classes,
        notes=tuple(notes),
    )
    return _Data(x_nd, y_n, x_val_nd, y_val_n, blank)


def _fewest_patients(y: FloatArray, clusters: IntArray) -> tuple[int, int]:
    """Patients of the rarest class, and the number of classes."""
    held = [len(np.unique(clusters[y == k])) for k in np.unique(y)]
    return min(held, default=0), len(held)


def _constant(data: _Data) -> Head | None:
    """The head of a training set with one class or one value, which has nothing to learn from."""
    if data.blank.task == "classify":
        if len(data.blank.classes) > 1:
            return None
        note, value = "training has one class: the prediction is constant", 1.0
    else:
        if np.ptp(data.y) > 0:
            return None
        note, value = "training has one value: the prediction is constant", float(data.y[0])
    return replace(data.blank, intercept=np.array([value]), notes=(note,))


def _choose(data: _Data, heads: Iterable[tuple[Head, FloatArray]]) -> Head:
    """The head with the best validation metric of (head, its validation predictions), ordered from the smoothest."""
    group = _group(data.blank.task, data.blank.num_classes)
    name, metric = next(iter(METRICS[group].items()))
    sign = 1.0 if higher_is_better(name) else -1.0
    candidates = list(heads)
    values = [metric(data.y_val, predictions) for _, predictions in candidates]
    defined = [i for i, value in enumerate(values) if math.isfinite(value)]
    best = max(defined, key=lambda i: sign * values[i]) if defined else len(candidates) // 2  # the first of equals
    return replace(candidates[best][0], validation=values[best])


def _group(task: str, num_classes: int) -> str:
    """Key of `METRICS`."""
    return "regress" if task == "regress" else "binary" if num_classes == 2 else "multiclass"


def fit_linear(
    x: ArrayLike,
    y: ArrayLike,
    task: str,
    x_val: ArrayLike,
    y_val: ArrayLike,
    patients_val: ArrayLike,
    *,
    num_classes: int | None = None,
) -> Head:
    """Logistic or ridge regression on standardised embeddings, its penalty chosen on validation from `STRENGTHS`.

    The penalty s enters as `sum of losses + s / 2 |w|^2` (logistic) and `sum of squared errors + s |w|^2` (ridge, on
    the standardised target). The choice is by AUROC, balanced accuracy (several classes) or MAE; without two classes in
    validation the middle of the grid is taken and noted. Classes are not reweighted; validation is not refitted on.

    Args:
        x: `[n, D]` training embeddings.
        y: `[n]` codes (-1 or NaN missing) or numbers (NaN missing).
        task: `classify` or `regress`.
        x_val: `[m, D]` validation embeddings.
        y_val: `[m]` validation targets.
        patients_val: `[m]` codes, to say on how few patients the choice rests.
        num_classes: K; by default one more than the largest code, at least 2.

    Returns:
        The head; constant, with a note, where training has one class or value.

    Raises:
        EvaluationError: no training row with a target, or an unknown task.

    >>> head = fit_linear([[0.0], [1.0], [2.0]], [0.0, 2.0, 4.0], "regress", [[1.5]], [3.0], [0])
    >>> head.strength, head.predict([[1.5]]).round(1).tolist()
    (0.1, [3.0])
    """
    data = _prepare(x, y, task, x_val, y_val, patients_val, num_classes)
    constant = _constant(data)
    if constant is not None:
        return constant
    mean, scale = data.x.mean(0), data.x.std(0)
    scale = np.where(scale > 1e-9 * np.abs(mean), scale, 1.0)
    blank = replace(data.blank, kind="linear", mean=mean, scale=scale)
    z_nd = (data.x - mean) / scale
    heads = _fit_logistic(z_nd, data.y, blank) if task == "classify" else _fit_ridge(z_nd, data.y, blank)
    return _choose(data, [(head, head.predict(data.x_val)) for head in heads])


def _fit_logistic(z_nd: FloatArray, y: FloatArray, blank: Head) -> list[Head]:
    """A head for each strength; each starts where the stronger one ended."""
    model = LogisticRegression(max_iter=1000, tol=1e-5, warm_start=True)
    heads = []
    for strength in STRENGTHS:
        with catch_warnings():
            simplefilter("ignore", ConvergenceWarning)  # said in the head's notes instead
            model.set_params(C=1 / strength).fit(z_nd, y.astype(np.int64))
        unfinished = int(np.max(model.n_iter_)) >= 1000
        notes = (*blank.notes, *(("the logistic regression stopped before it converged",) if unfinished else ()))
        heads.append(
            replace(blank, coef=model.coef_.copy(), intercept=model.intercept_.copy(), strength=strength, notes=notes)
        )
    return heads


def _fit_ridge(z_nd: FloatArray, y: FloatArray, blank: Head) -> list[Head]:
    """A head for each strength, from one eigendecomposition of the smaller Gram matrix."""
    target_mean, target_scale = float(y.mean()), float(y.std())
    t_n = (y - target_mean) / target_scale
    wide = z_nd.shape[1] > z_nd.shape[0]
    values, vectors = np.linalg.eigh(z_nd @ z_nd.T if wide else z_nd.T @ z_nd)
    projected = vectors.T @ (t_n if wide else z_nd.T @ t_n)
    heads = []
    for strength in STRENGTHS:
        solution = vectors @ (projected / (np.maximum(values, 0.0) + strength))
        coef = (z_nd.T @ solution if wide else solution)[None]
        heads.append(
            replace(
                blank,
                coef=coef,
                intercept=np.zeros(1),
                strength=strength,
                target_mean=target_mean,
                target_scale=target_scale,
            )
        )
    return heads


def fit_knn(
    x: ArrayLike,
    y: ArrayLike,
    task: str,
    x_val: ArrayLike,
    y_val: ArrayLike,
    patients_val: ArrayLike,
    *,
    num_classes: int | None = None,
) -> Head:
    """Nearest neighbours by cosine, their number chosen on validation from `NEIGHBOURS`.

    Neighbours vote with weight 1 / (1 - cosine), at most 1e6, for class probabilities or the mean target. Embeddings
    are not centred. Args, Returns and Raises as `fit_linear`; numbers above the training rows are cut to them.

    >>> head = fit_knn([[1.0, 0.0], [0.0, 1.0]], [0, 1], "classify", [[1.0, 0.2], [0.2, 1.0]], [0, 1], [0, 1])
    >>> head.predict([[1.0, 0.0]]).round(3).tolist()
    [0.0]
    """
    data = _prepare(x, y, task, x_val, y_val, patients_val, num_classes)
    constant = _constant(data)
    if constant is not None:
        return constant
    targets = np.searchsorted(data.blank.classes, data.y).astype(np.float64) if task == "classify" else data.y
    blank = replace(data.blank, kind="knn", coef=_normalise(data.x), intercept=targets)
    sizes = sorted({min(k, len(targets)) for k in NEIGHBOURS}, reverse=True)
    index, weight = _neighbours(data.x_val, blank.coef, sizes[0])
    heads = []
    for k in sizes:
        votes = _vote(blank, index, weight, k)
        predictions = votes[:, 0] if task == "regress" else _all_classes(votes, blank.classes, blank.num_classes)
        heads.append((replace(blank, strength=float(k)), predictions))
    return _choose(data, heads)


PROBES: dict[str, Callable[..., Head]] = {"linear": fit_linear, "knn": fit_knn}


def _fit_majority(y: FloatArray, task: str, num_classes: int) -> Head:
    """The prediction that looks at no image: class shares, or the median (best for the absolute error)."""
    classes, counts = np.unique(y, return_counts=True) if task == "classify" else (np.empty(0), np.ones(1))
    intercept = counts / counts.sum() if task == "classify" else np.array([np.median(y)])
    nothing = np.empty(0)
    return Head("constant", task, np.empty((0, 0)), intercept, nothing, nothing, classes.astype(np.int64), num_classes)


def draw_patients(
    patients: ArrayLike, y: ArrayLike, task: str, *, fractions: Sequence[float], repeats: int = 3, seed: int = 0
) -> dict[tuple[float, int], NDArray[np.bool_]]:
    """Which training rows keep their target when only a fraction of the patients is labelled.

    Within a repeat the draws are nested: a smaller fraction's patients are among a larger one's. At least two patients
    are drawn, and the first two hold two classes wherever there are two, so that rare classes are a little
    over-represented in tiny draws.

    Args:
        patients: `[n]` codes of the training rows with a target; -1 is a patient of its own.
        y: `[n]` their targets.
        task: `classify` or `regress`.
        fractions: shares of the patients, above 0 and at most 1; a share of 1 has a single draw.
        repeats: draws of each other fraction.
        seed: of the draws.

    Returns:
        (fraction, repeat) -> bool `[n]`.

    >>> rows = draw_patients([0, 0, 1, 2, 3], [0, 0, 0, 0, 1], "classify", fractions=(0.5, 1.0), repeats=2, seed=0)
    >>> {key: int(mask[-1]) for key, mask in rows.items()}
    {(0.5, 0): 1, (0.5, 1): 1, (1.0, 0): 1}
    """
    clusters, y_n = cluster_codes(patients), np.asarray(y)
    everyone = np.unique(clusters)
    rows: dict[tuple[float, int], NDArray[np.bool_]] = {}
    orders = []
    for repeat in range(repeats):
        order = np.random.default_rng([seed, repeat]).permutation(everyone)
        if task == "classify" and len(order) > 2:
            first = y_n[clusters == order[0]]
            if len(np.unique(first)) == 1:
                other = np.flatnonzero(np.isin(order, clusters[y_n != first[0]]))
                if len(other):
                    order = np.concatenate([order[:1], order[other[:1]], np.delete(order[1:], other[0] - 1)])
        orders.append(order)
    for fraction in sorted(set(fractions)):
        size = max(2, int(fraction * len(everyone) + 0.5))
        for repeat in range(1 if fraction == 1 else repeats):
            everything = np.ones(len(clusters), dtype=np.bool_)
            rows[fraction, repeat] = everything if fraction == 1 else np.isin(clusters, orders[repeat][:size])
    return rows


@dataclass
class ProbeReport:
    """What a probe found.

    Args:
        results: every metric of every encoder, probe and fraction, and every paired difference against a baseline.
        predictions: a row for each validation and test sample of every fit: position (in the embeddings), split,
            encoder, probe, target, fraction, repeat, y, and `score` (probability of class 1, or the predicted number)
            or, with more classes, one `score:NAME` for each.
        heads: `TARGET-PROBE` -> head of the judged encoder at fraction 1.0.
        notes: what a reader must know, in sentences.
    """

    results: list[Result]
    predictions: pd.DataFrame
    heads: dict[str, Head]
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """A small table of the main metric, and a verdict on the judged encoder at the largest fraction.

        The verdict is on the first probe, against the first baseline that is an encoder, or the majority where none is:
        one comparison fixed beforehand, so that nothing was picked after looking.
        """
        main = [r for r in self.results if r.metric == self.results[0].metric]
        lines = [f"{'probe':<9}{'fraction':>9}  {'encoder':<28}{main[0].metric} [95 % interval over patients]"]
        for result in main:
            if _SEPARATOR not in result.encoder:
                span = f"{_number(result.estimate)} [{_number(result.ci_low)}, {_number(result.ci_high)}]"
                lines.append(f"{result.probe:<9}{result.fraction:>9.3g}  {result.encoder:<28}{span}")
        differences = [r for r in main if _SEPARATOR in r.encoder and r.fraction == max(s.fraction for s in main)]
        verdict = next((r for r in differences if r.encoder.split(_SEPARATOR)[1] != MAJORITY), differences[0])
        return "\n".join([*lines, f"{verdict.target}, {verdict.probe}: {verdict_of(verdict)}"])


MAJORITY = "majority"
_SEPARATOR = " - "  # between the two encoders of a difference


def verdict_of(difference: Result) -> str:
    """One honest sentence on a paired difference: decided or undecided, and what this test set could have shown.

    Decided means that the 95 % interval leaves out zero and that each of two classes (or the test, for other targets)
    has at least `ENOUGH_PATIENTS` patients.

    >>> verdict_of(Result("classify", "edema", "auroc", 0.041, 0.012, 0.07, 900, 300, encoder="run - random-init",
    ...     se=0.015, detectable=0.042))
    'decided: +0.041 [+0.012, +0.070] AUROC over random-init'
    >>> verdict_of(Result("classify", "edema", "auroc", -0.008, -0.05, 0.03, 900, 300, encoder="run - random-init",
    ...     se=0.02, detectable=0.056))
    'undecided: -0.008 [-0.050, +0.030] AUROC over random-init; this test set can show 0.056 or more'
    """
    name = difference.metric.upper() if len(difference.metric) < 6 else difference.metric.replace("_", " ")
    low, high, other = difference.ci_low, difference.ci_high, difference.encoder.split(_SEPARATOR)[1]
    if not math.isfinite(difference.estimate + low + high):
        return f"undecided: the difference in {name} from {other} is undefined on this test set"
    unit = "" if higher_is_better(difference.metric) else " (lower is better)"
    span = f"{_number(difference.estimate, '+')} [{_number(low, '+')}, {_number(high, '+')}] {name}{unit} over {other}"
    if low <= 0 <= high:
        shown = (
            ""
            if difference.detectable is None
            else f"; this test set can show {_number(difference.detectable)} or more"
        )
        return f"undecided: {span}{shown}"
    few = [note for note in difference.notes if note.startswith(_FEW)]
    if few:
        return f"undecided: {span}, but {few[0]}"
    better = (low > 0) == higher_is_better(difference.metric)
    return f"decided: {span}{'' if better else ', which is worse'}"


_FEW = "only "


def _number(value: float, sign: str = "") -> str:
    """Three decimals below ten, one above."""
    return "-" if not math.isfinite(value) else f"{value:{sign}.{3 if abs(value) < 10 else 1}f}"


def probe(
    embeddings: dict[str, NDArray[Any]],
    y: NDArray[Any],
    patients: NDArray[Any],
    split: NDArray[Any],
    *,
    task: str,
    target: str,
    classes: Sequence[str] | None = None,
    probes: Sequence[str] = ("linear", "knn"),
    fractions: Sequence[float] = (1.0,),
    repeats: int = 3,
    seed: int = 0,
    draws: int = 1000,
    split_hash: str = "",
    recipe_hash: str = "",
) -> ProbeReport:
    """Probe the first encoder for a target, and compare it with the others and with the majority on the same patients.

    At a fraction below 1 the estimate is the mean of the metric over the repeats. Its interval has both sources of
    chance: each bootstrap draw resamples the test patients, and takes R - 1 of the R repeats with replacement (Rao and
    Wu, 1988, J. Am. Stat. Assoc. 83: with one fewer the bootstrap variance of a mean of few is unbiased). What is
    peculiar to a repeat and a patient together enters more than once, so such an interval errs on the wide side.

    Args:
        embeddings: encoder name -> `[n, D]` finite floats; the first is judged, the others are baselines.
        y: `[n]` codes (-1 or NaN missing) or numbers (NaN missing); rows without a target are left out and counted.
        patients: `[n]` codes; -1 is a patient of its own.
        split: `[n]` of `train`, `val` and `test`.
        task: `classify` or `regress`.
        target: its name.
        classes: names of the codes 0..K-1; with two classes, code 1 is the positive.
        probes: of `linear` and `knn`.
        fractions: shares of the training patients whose targets are used.
        repeats: draws of each fraction below 1.
        seed: of the draws of patients.
        draws: bootstrap resamples.
        split_hash: copied into the results.
        recipe_hash: copied into the results of the judged encoder.

    Returns:
        The report. Metrics that the test set cannot define (one class only) are NaN, with a note.

    Raises:
        EvaluationError: arrays that do not go together, embeddings that are not finite, codes outside the classes, no
            training or test row with a target, or an unknown task, probe, split or fraction.
        LeakageError: a patient in two splits.

    >>> r = np.random.default_rng(0)
    >>> y = np.arange(300) % 2
    >>> parts = np.repeat(["train", "val", "test"], 100)
    >>> found = probe({"run": r.normal(size=(300, 4)) + y[:, None], "random-init": r.normal(size=(300, 4))},
    ...               y, np.arange(300), parts, task="classify", target="sick", probes=("linear",), draws=200)
    >>> print(found.summary().splitlines()[-1])
    sick, linear: decided: ... AUROC over random-init
    """
    data = _check(embeddings, y, patients, split, task, target, classes, probes, fractions, repeats)
    notes = list(data.notes)
    fits: dict[tuple[str, str, float], list[FloatArray]] = {}  # encoder, probe, fraction -> test predictions by repeat
    remarks: dict[tuple[str, str, float], list[str]] = {}
    heads: dict[str, Head] = {}
    frames: list[pd.DataFrame] = []
    train, val, held = data.rows["train"], data.rows["val"], np.concatenate([data.rows["val"], data.rows["test"]])
    labelled = draw_patients(data.patients[train], data.y[train], task, fractions=fractions, repeats=repeats, seed=seed)

    def keep(name: str, kind: str, fraction: float, repeat: int, scores: FloatArray, head: Head) -> None:
        fits.setdefault((name, kind, fraction), []).append(scores[len(val) :])
        remarks.setdefault((name, kind, fraction), []).extend(head.notes)
        frame = {
            "position": held,
            "split": np.repeat(["val", "test"], [len(val), len(held) - len(val)]),
            "encoder": name,
            "probe": kind,
            "target": target,
            "fraction": fraction,
            "repeat": repeat,
            "y": data.y[held],
        }
        columns = {"score": scores} if scores.ndim == 1 else dict(zip(data.columns, scores.T, strict=True))
        frames.append(pd.DataFrame({**frame, **columns}))

    for (fraction, repeat), mask in labelled.items():
        rows = train[mask]
        for name, x in embeddings.items():
            for kind in probes:
                head = PROBES[kind](
                    x[rows],
                    data.y[rows],
                    task,
                    x[val],
                    data.y[val],
                    data.patients[val],
                    num_classes=data.num_classes or None,
                )
                keep(name, kind, fraction, repeat, head.predict(x[held]), head)
                if fraction == 1 and name == next(iter(embeddings)):
                    heads[f"{target}-{kind}"] = replace(head, target=target, class_names=tuple(classes or ()))
        majority = _fit_majority(data.y[rows], task, data.num_classes)
        keep(MAJORITY, "none", fraction, repeat, majority.predict(np.empty((len(held), 0))), majority)

    if not heads:
        notes.append("no head was kept: fractions do not include 1.0")
    for (name, kind, fraction), said in remarks.items():
        notes.extend(f"{name}, {kind}, fraction {fraction:g}: {note}" for note in dict.fromkeys(said))

    shared: dict[str, Any] = {
        "task": task,
        "target": target,
        "seed": seed,
        "split_hash": split_hash,
        "versions": versions(),
        "num_positive": data.num_positive,
        "num_positive_patients": data.num_positive_patients,
    }
    run = next(iter(embeddings))
    results = _judge(fits, remarks, data, run, [*list(embeddings)[1:], MAJORITY], probes, draws, seed, shared)
    results = [replace(r, recipe_hash=recipe_hash if r.encoder.split(_SEPARATOR)[0] == run else "") for r in results]
    return ProbeReport(results, pd.concat(frames, ignore_index=True), heads, notes)


@dataclass(frozen=True)
class _Checked:
    """The arguments of `probe`, found sound."""

    y: FloatArray
    patients: IntArray
    rows: dict[str, IntArray]
    num_classes: int
    columns: list[str]
    num_positive: int | None
    num_positive_patients: int | None
    few: str
    notes: list[str]


def _check(
    embeddings: dict[str, NDArray[Any]],
    y: NDArray[Any],
    patients: NDArray[Any],
    split: NDArray[Any],
    task: str,
    target: str,
    classes: Sequence[str] | None,
    probes: Sequence[str],
    fractions: Sequence[float],
    repeats: int,
) -> _Checked:
    """Everything that can be wrong with the arguments of `probe`, said where it is found."""
    if task not in ("classify", "regress"):
        raise EvaluationError(f"unknown task {task!r}; {suggest(task, ('classify', 'regress'))}")
    for kind in probes:
        if kind not in PROBES:
            raise EvaluationError(f"unknown probe {kind!r}; {suggest(kind, PROBES)}")
    if not probes or not fractions or not all(0 < fraction <= 1 for fraction in fractions) or repeats < 1:
        raise EvaluationError(
            "a probe needs probes, fractions above 0 and at most 1, and at least one repeat; "
            f"found {tuple(probes)}, {tuple(fractions)} and {repeats}"
        )
    if not embeddings or MAJORITY in embeddings or any(_SEPARATOR in name for name in embeddings):
        raise EvaluationError(f"encoders need names, none of them {MAJORITY!r} or with ' - '; found {list(embeddings)}")
    y_n, split_n, clusters = np.asarray(y, dtype=np.float64), np.asarray(split).astype(str), cluster_codes(patients)
    if not len(y_n) == len(split_n) == len(clusters):
        raise EvaluationError(
            f"y, patients and split must have one length, found {len(y_n)}, {len(clusters)} and {len(split_n)}"
        )
    for name, x in embeddings.items():
        if x.ndim != 2 or len(x) != len(y_n):
            raise EvaluationError(f"encoder {name!r}: expected embeddings [{len(y_n)}, D], found {x.shape}")
        broken = np.flatnonzero(~np.isfinite(x).all(1))
        if len(broken):
            raise EvaluationError(f"encoder {name!r}: embeddings are not finite in {name_rows(broken)}")
    strange = np.flatnonzero(~np.isin(split_n, ("train", "val", "test")))
    if len(strange):
        raise EvaluationError(
            f"split must be train, val or test; found {str(split_n[strange[0]])!r} in {name_rows(strange)}"
        )
    pairs = np.unique(np.stack([clusters, np.unique(split_n, return_inverse=True)[1]]), axis=1)
    shared = pairs[0][1:][np.diff(pairs[0]) == 0]
    if len(shared):
        rows = np.flatnonzero(np.isin(clusters, shared))
        raise LeakageError(f"{len(np.unique(shared))} patients stand in more than one split, in {name_rows(rows)}")

    given = _labelled(y_n, task)
    rows_of = {part: np.flatnonzero(given & (split_n == part)) for part in ("train", "val", "test")}
    for part in ("train", "test"):
        if len(rows_of[part]) == 0:
            raise EvaluationError(f"no {part} row has a value of {target!r}")
    lost = {part: int((~given & (split_n == part)).sum()) for part in rows_of}
    notes = [f"{target} is missing in {n} {part} rows, left out" for part, n in lost.items() if n]

    y_test, patients_test = y_n[rows_of["test"]], clusters[rows_of["test"]]
    num_classes, columns, positive, positive_patients = 0, [], None, None
    enough, of_what = len(np.unique(patients_test)), "test patients"
    if task == "classify":
        wrong = np.flatnonzero(given & ((y_n != np.floor(y_n)) | (y_n >= (len(classes) if classes else np.inf))))
        if len(wrong):
            expected = f"codes 0 to {len(classes) - 1}" if classes else "integer codes"
            raise EvaluationError(f"{target!r}: expected {expected}, found {y_n[wrong[0]]:g} in {name_rows(wrong)}")
        num_classes = max(2, len(classes) if classes else int(y_n[given].max()) + 1)
        names = list(classes) if classes else [str(k) for k in range(num_classes)]
        columns = [f"score:{name}" for name in names]
        if len(np.unique(y_test)) < 2:
            notes.append(f"the test rows hold one class of {target} only: most metrics are undefined")
        elif len(np.unique(y_test)) < num_classes:
            notes.append(f"the test rows lack {num_classes - len(np.unique(y_test))} classes of {target}")
        if num_classes == 2:
            positive = int((y_test == 1).sum())
            of_class = [len(np.unique(patients_test[y_test == k])) for k in (0, 1)]
            positive_patients, enough = of_class[1], min(of_class)
            of_what = "positive test patients" if of_class[1] <= of_class[0] else "negative test patients"
    few = f"{_FEW}{enough} {of_what} where a finding needs {ENOUGH_PATIENTS}" if enough < ENOUGH_PATIENTS else ""
    if few:
        notes.append(few)
    return _Checked(y_n, clusters, rows_of, num_classes, columns, positive, positive_patients, few, notes)


def _judge(
    fits: dict[tuple[str, str, float], list[FloatArray]],
    remarks: dict[tuple[str, str, float], list[str]],
    data: _Checked,
    run: str,
    baselines: Sequence[str],
    probes: Sequence[str],
    draws: int,
    seed: int,
    shared: dict[str, Any],
) -> list[Result]:
    """Estimates and paired differences of all fits, all on the same draws of test patients and repeats."""
    metrics: dict[str, Metric] = METRICS[_group(shared["task"], data.num_classes)]
    test = data.rows["test"]
    y, patients = data.y[test], data.patients[test]
    drawn: dict[tuple[str, str, str, float], list[FloatArray]] = {
        (metric, *key): [np.empty((len(scores), 0))] for metric in metrics for key, scores in fits.items()
    }
    for block in bootstrap_blocks(patients, draws=draws, seed=seed):
        weights = block.astype(np.float64)
        for metric, function in metrics.items():
            for key, scores in fits.items():
                drawn[metric, *key].append(np.stack([function(y, p, weights) for p in scores]))
    sampled = {label: np.concatenate(blocks, axis=1) for label, blocks in drawn.items()}

    picks: dict[int, FloatArray] = {}  # number of repeats R -> share of each repeat in each draw [R, draws]
    for num in {len(scores) for scores in fits.values()}:
        chosen = np.random.default_rng([seed, num]).integers(num, size=(draws, max(1, num - 1)))
        picks[num] = np.stack([(chosen == repeat).mean(1) for repeat in range(num)])

    def result(metric: str, kind: str, fraction: float, encoder: str, values: FloatArray, sample: FloatArray) -> Result:
        found = Estimate.from_draws(float(values.mean()), (sample * picks[len(values)]).sum(0), patients)
        difference = _SEPARATOR in encoder
        said = [note for name in encoder.split(_SEPARATOR) for note in remarks.get((name, kind, fraction), [])]
        return Result(
            **shared,
            metric=metric,
            estimate=found.value,
            ci_low=found.low,
            ci_high=found.high,
            num_samples=found.num_samples,
            num_patients=found.num_patients,
            fraction=fraction,
            encoder=encoder,
            probe=kind,
            se=found.se,
            sd_repeats=float(values.std(ddof=1)) if len(values) > 1 else None,
            detectable=detectable_difference(found.se) if difference else None,
            notes=tuple(dict.fromkeys([*([data.few] if data.few and difference else []), *said])),
        )

    results = []
    for metric, function in metrics.items():
        for fraction in sorted({fraction for _, _, fraction in fits}):
            for name, kind, held in fits:
                if held == fraction:
                    values = np.array([function(y, scores) for scores in fits[name, kind, fraction]])
                    results.append(result(metric, kind, fraction, name, values, sampled[metric, name, kind, fraction]))
            for kind in probes:
                for baseline in baselines:
                    other = (baseline, "none" if baseline == MAJORITY else kind, fraction)
                    ours, theirs = fits[run, kind, fraction], fits[other]
                    values = np.array([function(y, a) - function(y, b) for a, b in zip(ours, theirs, strict=True)])
                    sample = sampled[metric, run, kind, fraction] - sampled[metric, *other]
                    results.append(result(metric, kind, fraction, f"{run}{_SEPARATOR}{baseline}", values, sample))
    return results
