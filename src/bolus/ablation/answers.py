"""What evaluations say of single test samples, read from their own files, so that arms can be compared on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bolus.ablation.question import Question
from bolus.data.cohort.cohort import Cohort
from bolus.evaluation.preparation import RANDOM
from bolus.evaluation.statistics.metrics import FloatArray, IntArray, auroc, metrics_of
from bolus.evaluation.statistics.results import MAJORITY

ARM = "arm"
TOP = (1, 5, 10)


@dataclass(frozen=True, eq=False)
class Answer:
    """One encoder's answer to one question, sample by sample.

    Args:
        task: of the evaluation.
        target: what was predicted.
        metric: its name.
        probe: how it was read off the encoder.
        keys: `[n]`, which test samples (or pairs, volumes), the same for every encoder.
        y: `[n]` or `[n, K]`, their targets.
        patients: int64 `[n]`.
        predictions: of the encoder (`ARM`), its random-init twin and the majority, where there is one.
        measure: the metric, of (y, p, weights).
        enough: patients that decide whether anything can be decided: of the rarer class, where there are two.
        facts: more that a reader must know.
    """

    task: str
    target: str
    metric: str
    probe: str
    keys: pd.Index[Any]
    y: NDArray[Any]
    patients: IntArray
    predictions: Mapping[str, NDArray[Any]]
    measure: Callable[..., Any]
    enough: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    def on(self, keys: pd.Index[Any]) -> Answer:
        """The same on some of the samples, in the order of `keys`."""
        at = self.keys.get_indexer(keys)
        assert (at >= 0).all(), "keys of other samples"
        predictions = {name: p[at] for name, p in self.predictions.items()}
        return Answer(self.task, self.target, self.metric, self.probe, keys, self.y[at], self.patients[at],
                      predictions, self.measure, self.enough, self.facts)  # fmt: skip


def read_answers(question: Question, folder: Path, cohort: Cohort, encoder: str) -> list[Answer]:
    """The answers in the files of one evaluation; the first is what an ablation is decided by.

    Args:
        question: what was asked.
        folder: of the evaluation.
        cohort: the table as given, to which the rows in the files point.
        encoder: the judged encoder's name in the files.
    """
    codes: IntArray = cohort.encoded("patient")

    def patient(rows: pd.Series[Any]) -> IntArray:
        return np.asarray(codes[np.searchsorted(cohort.origin, rows.to_numpy(np.int64) - 1)])

    if question.task == "segment":
        return _of_volumes(pd.read_parquet(folder / "volumes.parquet"), patient, encoder)
    if question.across is not None:
        return _of_ranks(pd.read_parquet(folder / "ranks.parquet"), patient, encoder, question.across)
    return _of_probes(pd.read_parquet(folder / "predictions.parquet"), patient, encoder, question)


Patient = Callable[["pd.Series[Any]"], IntArray]


def _of_probes(frame: pd.DataFrame, patient: Patient, encoder: str, question: Question) -> list[Answer]:
    """Each target, by the first probe; of several findings a sample their mean comes first."""
    frame = frame[(frame["split"] == "test") & (frame["fraction"] == 1.0)]
    frame = frame[~frame["target"].str.startswith("distance:")]
    probe = next(name for name in frame["probe"] if name != "none")
    rows = ["row", "later_row"] if "later_row" in frame else ["row"]
    answers = []
    for target, lines in frame[frame["probe"].isin([probe, "none"])].groupby("target", sort=False):
        scores = [name for name in map(str, lines) if name.startswith("score") and lines[name].notna().any()]
        tables = {name: part.set_index(rows) for name, part in lines.groupby("encoder", sort=False)}
        own = tables[encoder]
        task = "regress" if question.task == "regress" or str(target).startswith("amount_of_change:") else "classify"
        metric, measure = next(iter(metrics_of(task, max(2, len(scores))).items()))
        named = {ARM: own, RANDOM: tables[RANDOM], MAJORITY: tables[MAJORITY]}
        predictions = {name: _values(table.loc[own.index], scores) for name, table in named.items()}
        y, patients = own["y"].to_numpy(), patient(own.index.get_level_values(0).to_series())
        enough = len(np.unique(patients))
        if metric == "auroc":
            enough = min(len(np.unique(patients[y == value])) for value in (0, 1))
        answers.append(
            Answer(task, str(target), metric, str(probe), own.index, y, patients, predictions, measure, enough)
        )
    return [*_mean_of_classes(answers, question.target), *answers]


def _values(table: pd.DataFrame, columns: list[str]) -> FloatArray:
    values = table[columns].to_numpy(np.float64)
    return np.asarray(values[:, 0] if len(columns) == 1 else values)


def _mean_of_classes(answers: list[Answer], target: str) -> list[Answer]:
    """The mean AUROC of the classes that some test samples have and others lack; none where one question is of all."""
    first = answers[0]
    if not all(each.metric == "auroc" and each.keys.equals(first.keys) for each in answers):
        return []
    answers = [each for each in answers if each.enough]  # of one class alone there is no curve
    if len(answers) < 2:
        return []
    y = np.stack([each.y for each in answers], axis=1)
    predictions = {name: np.stack([each.predictions[name] for each in answers], axis=1) for name in first.predictions}
    enough = len(np.unique(first.patients[(y == 1).any(1)]))
    name = f"{target} (mean of {len(answers)} classes)"
    return [Answer("classify", name, "auroc", first.probe, first.keys, y, first.patients, predictions,
                   mean_auroc, enough)]  # fmt: skip


def mean_auroc(y: Any, p: Any, weights: Any = None) -> Any:
    """The mean over columns of the area under the ROC curve; a metric as of `bolus.evaluation.statistics.metrics`.

    A column that a draw leaves with one class is left out of that draw.

    >>> float(mean_auroc(np.array([[0, 1], [1, 0]]), np.array([[0.1, 0.9], [0.8, 0.9]])))
    0.75
    """
    times = np.ones(len(y)) if weights is None else np.asarray(weights, dtype=np.float64)
    known = (times @ (y == 1) > 0) & (times @ (y == 0) > 0)
    areas = np.stack([auroc(y[:, column], p[:, column], weights) for column in range(y.shape[1])], axis=-1)
    count = known.sum(-1)
    return np.where(count > 0, np.where(known, areas, 0.0).sum(-1) / np.maximum(count, 1), np.nan)[()]


def mean_of_known(y: Any, p: Any, weights: Any = None) -> Any:
    """The mean of what is known of each sample; the truth has gone into it already.

    >>> float(mean_of_known(None, np.array([0.5, np.nan, 0.7])))
    0.6
    """
    known = np.isfinite(p)
    if not known.any():
        return np.nan if weights is None else np.full(len(weights), np.nan)
    if weights is None:
        return p[known].mean()
    total = weights[:, known].sum(1).astype(np.float64)
    return np.divide(weights[:, known] @ p[known], total, out=np.full(len(weights), np.nan), where=total > 0)


def _of_ranks(frame: pd.DataFrame, patient: Patient, encoder: str, across: str) -> list[Answer]:
    """Top-K over all directions together, one pair a participant in each."""
    frame = frame.assign(patient=patient(frame["row"]))
    tables = {name: part.set_index(["direction", "patient"]) for name, part in frame.groupby("encoder")}
    own = tables[encoder]
    patients = own.index.get_level_values("patient").to_numpy(np.int64)
    named = {ARM: own, RANDOM: tables[RANDOM]}
    ranks = {name: table.loc[own.index, "rank"].to_numpy() for name, table in named.items()}
    galleries = own.groupby(level="direction").size()
    found = []
    for k in TOP:
        hits = {name: (rank <= k).astype(np.float64) for name, rank in ranks.items()}
        chance = float(np.minimum(k, galleries).sum() / len(own))
        found.append(
            Answer("retrieve", f"across {across}, all directions", f"top_{k}", "none", own.index, np.zeros(len(own)),
                   patients, hits, mean_of_known, len(np.unique(patients)), {"chance": chance})
        )  # fmt: skip
    return found


def _of_volumes(frame: pd.DataFrame, patient: Patient, encoder: str) -> list[Answer]:
    """Dice of each test volume, the mean of its classes and of the draws; the most labelled patients first."""
    found = []
    for number, lines in sorted(frame.groupby("labelled_patients"), reverse=True, key=lambda each: int(str(each[0]))):
        by_draw = lines.groupby(["encoder", "row", "repeat"])["dice"].mean()
        dice = by_draw.groupby(level=["encoder", "row"]).mean()
        own = dice.loc[encoder]
        patients = patient(own.index.to_series())
        predictions = {ARM: own.to_numpy(), RANDOM: dice.loc[RANDOM].loc[own.index].to_numpy()}
        enough = len(np.unique(patients[np.isfinite(own.to_numpy())]))
        found.append(
            Answer("segment", f"mask, {number} labelled patient{'s' * (number != 1)}", "dice", "finetune", own.index,
                   np.zeros(len(own)), patients, predictions, mean_of_known, enough,
                   {"labelled_patients": int(str(number))})
        )  # fmt: skip
    return found
