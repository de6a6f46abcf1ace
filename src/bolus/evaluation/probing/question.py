"""What is asked of embeddings: a target, its patients and their split, found sound before anything is fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bolus.data.cohort.split import fold_patients
from bolus.errors import EvaluationError, LeakageError, name_rows
from bolus.evaluation.probing.fitting import Labelled, has_target
from bolus.evaluation.statistics.bootstrap import cluster_codes
from bolus.evaluation.statistics.metrics import FloatArray, IntArray
from bolus.evaluation.statistics.results import MAJORITY
from bolus.evaluation.statistics.shots import RANGES, shot_ranges
from bolus.evaluation.statistics.verdict import too_few
from bolus.evaluation.targets import check_task

SPLITS = ("train", "val", "test")
FOLDS = 5  # of the training patients, one of which validates where the split has no validation


@dataclass
class Question:
    """A target over the rows of some embeddings.

    Args:
        task: `classify` or `regress`.
        target: its name.
        y: `[n]` float64.
        patients: `[n]` clusters.
        rows: split -> positions with a target.
        unit: of a number, where it is known.
        num_classes: K; 0 for regression.
        columns: names of the K class probabilities in a table of predictions.
        num_positive: positive test samples; None unless there are two classes.
        num_positive_patients: patients with one, likewise.
        few: why no difference counts as decided, or nothing.
        subsets: name -> positions among the test rows: the shot ranges of a regression that hold any.
        carved: that validation was taken out of the training patients, or nothing.
        notes: what a reader must know, in sentences.
    """

    task: str
    target: str
    y: FloatArray
    patients: IntArray
    rows: dict[str, IntArray]
    unit: str = ""
    num_classes: int = 0
    columns: tuple[str, ...] = ()
    num_positive: int | None = None
    num_positive_patients: int | None = None
    few: str = ""
    carved: str = ""
    subsets: dict[str, IntArray] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def samples(self, x: NDArray[Any], rows: IntArray) -> Labelled:
        """Those rows of the embeddings `x`."""
        return Labelled(x[rows], self.y[rows], self.patients[rows])


def ask(
    embeddings: Mapping[str, NDArray[Any]],
    y: NDArray[Any],
    patients: NDArray[Any],
    split: NDArray[Any],
    *,
    task: str,
    target: str,
    classes: Sequence[str] | None = None,
    unit: str = "",
    seed: int = 0,
    shots: tuple[int, int] = (20, 100),
) -> Question:
    """The question, or an error that says where it is wrong; Args and Raises as `probe.probe`.

    >>> split = ["train", "test", "test"]
    >>> question = ask({"run": np.eye(3)}, [7.0, 3.0, np.nan], [0, 1, 2], split, task="regress", target="age")
    >>> question.notes[:2], question.subsets
    (['age is missing in 1 test rows, left out', 'only 1 test patients where a finding needs 20'], {'few': array([0])})
    """
    check_task(task)
    y_n, split_n, clusters = np.asarray(y, dtype=np.float64), np.asarray(split).astype(str), cluster_codes(patients)
    if not len(y_n) == len(split_n) == len(clusters):
        raise EvaluationError(
            f"y, patients and split must have one length, found {len(y_n)}, {len(clusters)} and {len(split_n)}"
        )
    _check_embeddings(embeddings, len(y_n))
    _check_split(split_n, clusters)
    given = has_target(y_n, task)
    question = Question(task, target, y_n, clusters, {s: np.flatnonzero(given & (split_n == s)) for s in SPLITS}, unit)
    for part in ("train", "test"):
        if len(question.rows[part]) == 0:
            raise EvaluationError(f"no {part} row has a value of {target!r}")
    lost = {part: int((~given & (split_n == part)).sum()) for part in SPLITS}
    question.notes += [f"{target} is missing in {n} {part} rows, left out" for part, n in lost.items() if n]
    if task == "classify":
        _find_classes(question, np.flatnonzero(given), classes)
    else:
        question.few = too_few(len(np.unique(clusters[question.rows["test"]])), "test patients")
    question.notes += [question.few] if question.few else []
    _carve_validation(question, seed)
    question.notes += [question.carved] if question.carved else []
    if task == "regress":
        _find_ranges(question, shots)
    return question


def _find_ranges(question: Question, shots: tuple[int, int]) -> None:
    """The subsets by how common a target is in training, and what a reader must know of them."""
    y_train, y_test = (question.y[question.rows[part]] for part in ("train", "test"))
    ranges = shot_ranges(y_test, y_train, shots=shots)
    question.subsets = {name: np.flatnonzero(ranges == name) for name in RANGES if (ranges == name).any()}
    absent = [name for name in RANGES if name not in question.subsets]
    if absent:
        question.notes.append(
            f"no test row is of the range {' or '.join(absent)} (few: a target with fewer than {shots[0]} training "
            f"rows, many: with more than {shots[1]})"
        )
    if np.ptp(y_test) == 0:
        question.notes.append(f"the test rows hold one value of {question.target}: only errors are defined")


def _carve_validation(question: Question, seed: int) -> None:
    """Take one fold of the training patients for validation, where no validation row has a target."""
    train = question.rows["train"]
    if len(question.rows["val"]):
        return
    fold = fold_patients(question.patients[train], seed=seed, folds=FOLDS)
    if (fold == fold[0]).all():
        return  # a single fold: nobody can be spared
    chosen = fold == fold.min()
    question.rows["train"], question.rows["val"] = train[~chosen], train[chosen]
    question.carved = (
        f"no validation row has a value of {question.target}: strengths were chosen on "
        f"{len(np.unique(question.patients[train[chosen]]))} of the {len(np.unique(question.patients[train]))} "
        "training patients, on whom nothing was fitted"
    )


def _check_embeddings(embeddings: Mapping[str, NDArray[Any]], num_rows: int) -> None:
    if not embeddings or MAJORITY in embeddings or "" in embeddings:
        raise EvaluationError(f"encoders need names, none of them {MAJORITY!r}; found {list(embeddings)}")
    for name, x in embeddings.items():
        if x.ndim != 2 or len(x) != num_rows:
            raise EvaluationError(f"encoder {name!r}: expected embeddings [{num_rows}, D], found {x.shape}")
        broken = np.flatnonzero(~np.isfinite(x).all(1))
        if len(broken):
            raise EvaluationError(f"encoder {name!r}: embeddings are not finite in {name_rows(broken)}")


def _check_split(split: NDArray[np.str_], clusters: IntArray) -> None:
    strange = np.flatnonzero(~np.isin(split, SPLITS))
    if len(strange):
        raise EvaluationError(
            f"split must be train, val or test; found {str(split[strange[0]])!r} in {name_rows(strange)}"
        )
    pairs = np.unique(np.stack([clusters, np.unique(split, return_inverse=True)[1]]), axis=1)
    shared = pairs[0][1:][np.diff(pairs[0]) == 0]
    if len(shared):
        rows = np.flatnonzero(np.isin(clusters, shared))
        raise LeakageError(f"{len(np.unique(shared))} patients stand in more than one split, in {name_rows(rows)}")


def _find_classes(question: Question, given: IntArray, classes: Sequence[str] | None) -> None:
    """Fill in what only a question about classes has, from the rows with a target."""
    y_given = question.y[given]
    wrong = given[(y_given != np.floor(y_given)) | (y_given >= (len(classes) if classes else np.inf))]
    if len(wrong):
        expected = f"codes 0 to {len(classes) - 1}" if classes else "integer codes"
        found = f"found {question.y[wrong[0]]:g} in {name_rows(wrong)}"
        raise EvaluationError(f"{question.target!r}: expected {expected}, {found}")
    num_classes = max(2, len(classes) if classes else int(y_given.max()) + 1)
    question.num_classes = num_classes
    question.columns = tuple(f"score:{name}" for name in classes or range(num_classes))
    y, patients = question.y[question.rows["test"]], question.patients[question.rows["test"]]
    held = len(np.unique(y))
    if held < 2:
        question.notes.append(f"the test rows hold one class of {question.target} only: most metrics are undefined")
    elif held < num_classes:
        question.notes.append(f"the test rows lack {num_classes - held} classes of {question.target}")
    if num_classes > 2:
        question.few = too_few(len(np.unique(patients)), "test patients")
        return
    negative, positive = (len(np.unique(patients[y == k])) for k in (0, 1))
    question.num_positive, question.num_positive_patients = int((y == 1).sum()), positive
    rarer = "positive" if positive <= negative else "negative"
    question.few = too_few(min(negative, positive), f"{rarer} test patients")
