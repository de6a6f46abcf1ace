"""How much a frozen encoder knows: linear and nearest-neighbour probes on its embeddings, judged over patients.

A label fraction is a fraction of training *patients*, drawn several times and nested; strengths are chosen on all
validation patients. Every encoder meets the same draws and the same test patients, so that differences are paired, and
beside each stands the smallest difference that this test set could have shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from bolus.evaluation.probing.comparison import HeadKey, Predicted, compare, notes_of_fits, tabulate
from bolus.evaluation.probing.fitting import PROBES, fit_majority
from bolus.evaluation.probing.heads import Head
from bolus.evaluation.probing.options import Probing
from bolus.evaluation.probing.question import Question, ask
from bolus.evaluation.probing.twins import note_on_twins
from bolus.evaluation.settings import Judging, Origin
from bolus.evaluation.statistics.bootstrap import cluster_codes
from bolus.evaluation.statistics.metrics import FloatArray, IntArray
from bolus.evaluation.statistics.results import MAJORITY, RANDOM, Result
from bolus.evaluation.statistics.verdict import summarise

Trainer: TypeAlias = Callable[[str, Question, IntArray, IntArray, IntArray, int], tuple[FloatArray, Sequence[str]]]
"""A probe that needs more than embeddings: (encoder name, question, training, validation and held rows, repeat) ->
predictions of the held rows `[n]` or `[n, K]`, as `Head.predict` gives them, and notes. Rows are positions in the
embeddings; only targets of training and validation rows may be looked at."""


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
    orders = []
    for repeat in range(repeats):
        order = np.random.default_rng([seed, repeat]).permutation(everyone)
        first = y_n[clusters == order[:1]]
        if task == "classify" and len(np.unique(first)) == 1:
            other = np.flatnonzero(np.isin(order, clusters[y_n != first[0]]))
            if len(other):
                order = np.concatenate([order[:1], order[other[:1]], np.delete(order[1:], other[0] - 1)])
        orders.append(order)
    rows = {}
    for fraction in sorted(set(fractions)):
        size = len(everyone) if fraction == 1 else max(2, int(fraction * len(everyone) + 0.5))
        for repeat in range(1 if fraction == 1 else repeats):
            rows[fraction, repeat] = np.isin(clusters, orders[repeat][:size])
    return rows


@dataclass
class ProbeReport:
    """What a probe found.

    Args:
        results: every metric of every encoder, probe and fraction, and every paired difference against a baseline.
        predictions: a row for each validation and test sample of every fit: position (in the embeddings), split,
            encoder, probe, target, fraction, repeat, y, and `score` (probability of class 1, or the predicted number)
            or, with more classes, one `score:NAME` for each.
        heads: probe -> head of the judged encoder at fraction 1.0.
        notes: what a reader must know, in sentences.
    """

    results: list[Result]
    predictions: pd.DataFrame
    heads: dict[str, Head]
    notes: list[str]

    def summary(self, others: Sequence[Result] = ()) -> str:
        """A small table and a verdict; `others` as of `verdict.summarise`."""
        return summarise(self.results, others)


def probe(
    embeddings: Mapping[str, NDArray[Any]],
    y: NDArray[Any],
    patients: NDArray[Any],
    split: NDArray[Any],
    *,
    task: str,
    target: str,
    classes: Sequence[str] | None = None,
    unit: str = "",
    probing: Probing | None = None,
    judging: Judging | None = None,
    origin: Origin | None = None,
    trained: Mapping[str, Trainer] | None = None,
    twins: Callable[[], Sequence[NDArray[Any]]] = tuple,
) -> ProbeReport:
    """Probe the first encoder for a target, and compare it with the others and with the majority on the same patients.

    At a fraction below 1 the estimate is the mean of the metric over the repeats, and its interval has both sources of
    chance, that of the test patients and that of the draws of labelled patients (`intervals`). The encoder is one: what
    is decided is decided for its training.

    Args:
        embeddings: encoder name -> `[n, D]` finite floats; the first is judged, the others are baselines.
        y: `[n]` codes (-1 or NaN missing) or numbers (NaN missing); rows without a target are left out and counted.
        patients: `[n]` codes; -1 is a patient of its own.
        split: `[n]` of `train`, `val` and `test`; where no `val` row has a target, a fifth of the training patients
            takes their place, with a note in every result.
        task: `classify` or `regress`.
        target: its name.
        classes: names of the codes 0..K-1; with two classes, code 1 is the positive.
        unit: of a number, where it is known.
        probing: which probes, of `linear`, `knn` and the names in `trained`, and on which labels. For `regress`, every
            metric also stands for each of the ranges that its `shots` make (`shot_ranges`, on all training rows at
            every fraction); an empty range is left out, with a note.
        judging: its seed is of the draws of patients, and of the validation patients where the split has none.
        origin: copied into the results.
        trained: probe name -> what fits and predicts, called for every encoder on the same draws.
        twins: gives embeddings `[n, D]` of other draws of the random-init column, for a note only (`note_on_twins`).

    Returns:
        The report: results on all test samples, then on each range. Metrics that the test set cannot define (one class
        only) are NaN, with a note.

    Raises:
        EvaluationError: arrays that do not go together, embeddings that are not finite, codes outside the classes, no
            training or test row with a target, or an unknown split.
        UsageError: an unknown task or probe, or fractions, repeats or shots that are out of range.
        LeakageError: a patient in two splits.

    >>> r = np.random.default_rng(0)
    >>> y = np.arange(300) % 2
    >>> parts = np.repeat(["train", "val", "test"], 100)
    >>> found = probe({"run": r.normal(size=(300, 4)) + y[:, None], "random-init": r.normal(size=(300, 4))},
    ...               y, np.arange(300), parts, task="classify", target="sick",
    ...               probing=Probing(("linear",)), judging=Judging(draws=200))
    >>> print(found.summary().splitlines()[-1])
    sick, linear: decided for this training: better by ... in AUROC than random-init
    """
    trained = trained or {}
    probing, judging, origin = probing or Probing(), judging or Judging(), origin or Origin()
    probing.check((*PROBES, *trained))
    seed, fractions = judging.seed, probing.fractions
    question = ask(embeddings, y, patients, split, task=task, target=target, classes=classes, unit=unit, seed=seed,
                   shots=probing.shots)  # fmt: skip
    judged = next(iter(embeddings))
    train, val = question.rows["train"], question.rows["val"]
    held = np.concatenate([val, question.rows["test"]])
    fits: dict[HeadKey, Predicted] = {}
    heads: dict[str, Head] = {}
    frames: list[pd.DataFrame] = []

    def keep(key: HeadKey, repeat: int, scores: FloatArray, notes: Sequence[str]) -> None:
        fits.setdefault(key, Predicted()).add(scores[len(val) :], notes)
        frames.append(tabulate(question, held, key, repeat, scores))

    labelled = draw_patients(
        question.patients[train], question.y[train], task, fractions=fractions, repeats=probing.repeats, seed=seed
    )
    for (fraction, repeat), mask in labelled.items():
        rows = train[mask]
        for name, x in embeddings.items():
            samples, validation = question.samples(x, rows), question.samples(x, val)
            for kind in probing.probes:
                if kind in trained:
                    keep(HeadKey(name, kind, fraction), repeat, *trained[kind](name, question, rows, val, held, repeat))
                    continue
                head = PROBES[kind](samples, validation, task, num_classes=question.num_classes)
                keep(HeadKey(name, kind, fraction), repeat, head.predict(x[held]), head.notes)
                if fraction == 1 and name == judged:
                    heads[kind] = replace(head, target=target, class_names=tuple(classes or ()))
        majority = fit_majority(question.y[rows], task, question.num_classes)
        keep(HeadKey(MAJORITY, "none", fraction), repeat, majority.predict(np.empty((len(held), 0))), majority.notes)

    notes = [*question.notes, *([] if 1.0 in fractions else ["no head was kept: fractions do not include 1.0"])]
    notes += notes_of_fits(fits)
    results = compare(question, fits, judged, [*list(embeddings)[1:], MAJORITY], probing.probes, judging=judging)
    column = {key.probe: fit.scores[0] for key, fit in fits.items() if key.encoder == RANDOM and key.fraction == 1}
    notes += note_on_twins(question, twins, results, column, judging=judging)
    return ProbeReport(
        [origin.sign(each, judged) for each in results], pd.concat(frames, ignore_index=True), heads, notes
    )
