"""Fits become results: estimates and paired differences, all on the same draws of test patients and repeats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd

from bolus.evaluation.probing.question import Question
from bolus.evaluation.settings import Judging
from bolus.evaluation.statistics.bootstrap import bootstrap_blocks
from bolus.evaluation.statistics.intervals import Estimate
from bolus.evaluation.statistics.metrics import IN_UNIT_OF_TARGET, FloatArray, IntArray, metrics_of
from bolus.evaluation.statistics.results import MAJORITY, Result, filled
from bolus.evaluation.statistics.verdict import too_few


class HeadKey(NamedTuple):
    """Which head: its encoder (or the majority), its probe, and the fraction of the training patients it saw."""

    encoder: str
    probe: str
    fraction: float


@dataclass
class Predicted:
    """Test predictions of a head in each repeat, and what was noted."""

    scores: list[FloatArray] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, scores: FloatArray, notes: Sequence[str]) -> None:
        """One more repeat."""
        self.scores.append(scores)
        self.notes.extend(note for note in notes if note not in self.notes)


def notes_of_fits(fits: Mapping[HeadKey, Predicted]) -> list[str]:
    """What was noted in fitting, each note once: by itself where it holds for all heads, else after whose it is.

    >>> keys = [HeadKey(name, "linear", 1.0) for name in ("run", "random-init")]
    >>> both = Predicted(notes=["no validation", "one class"]), Predicted(notes=["no validation"])
    >>> notes_of_fits(dict(zip(keys, both)))
    ['no validation', 'run, linear, fraction 1: one class']
    """
    heads = [key for key in fits if key.encoder != MAJORITY]
    noted: dict[str, list[HeadKey]] = {}
    for key, fit in fits.items():
        for note in fit.notes:
            noted.setdefault(note, []).append(key)
    said = []
    for note, keys in noted.items():
        if len(heads) > 1 and set(heads) <= set(keys):
            said.append(note)
        else:
            said += [f"{key.encoder}, {key.probe}, fraction {key.fraction:g}: {note}" for key in keys]
    return said


def tabulate(question: Question, held: IntArray, key: HeadKey, repeat: int, scores: FloatArray) -> pd.DataFrame:
    """A table of the predictions of one head for validation and test rows, which are `held` in this order."""
    num_val = len(question.rows["val"])
    columns = {"score": scores} if scores.ndim == 1 else dict(zip(question.columns, scores.T, strict=True))
    return pd.DataFrame(
        {
            "position": held,
            "split": np.repeat(["val", "test"], [num_val, len(held) - num_val]),
            "encoder": key.encoder,
            "probe": key.probe,
            "target": question.target,
            "fraction": key.fraction,
            "repeat": repeat,
            "y": question.y[held],
            **columns,
        }
    )


def compare(
    question: Question,
    fits: dict[HeadKey, Predicted],
    judged: str,
    baselines: Sequence[str],
    probes: Sequence[str],
    *,
    judging: Judging,
) -> list[Result]:
    """Estimates of all fits and differences of the judged encoder's, on all test rows and then on each of the subsets.

    Args:
        question: its test rows, in the order of the fits' scores, and its subsets of them.
        fits: one for each encoder, probe and fraction, and for the majority at each fraction.
        judged: the encoder whose differences from the baselines are wanted.
        baselines: encoders, or the majority.
        probes: in the order in which they are reported.
        judging: with the bootstrap's draws and seed.
    """
    metrics = metrics_of(question.task, question.num_classes)
    y, patients = question.y[question.rows["test"]], question.patients[question.rows["test"]]
    parts = {"": np.arange(len(y)), **question.subsets}
    labels = [(subset, metric, key) for subset in parts for metric in metrics for key in fits]
    blocks: dict[tuple[str, str, HeadKey], list[FloatArray]] = {label: [] for label in labels}
    for block in bootstrap_blocks(patients, draws=judging.draws, seed=judging.seed):
        weights = {subset: block[:, rows].astype(np.float64) for subset, rows in parts.items()}
        for (subset, metric, key), found in blocks.items():
            rows, w_bn = parts[subset], weights[subset]
            found.append(np.stack([metrics[metric](y[rows], p[rows], w_bn) for p in fits[key].scores]))
    sampled = {label: np.concatenate(found, axis=1) for label, found in blocks.items()}  # [R, draws]
    values = {
        (subset, m, key): np.array([metrics[m](y[parts[subset]], p[parts[subset]]) for p in fits[key].scores])
        for subset, m, key in labels
    }  # [R]
    few = {s: too_few(len(np.unique(patients[rows])), f"{s}-shot test patients") for s, rows in parts.items()}
    few[""] = question.few
    blank = Result(
        question.task, question.target, "", np.nan, np.nan, np.nan, 0, 0, seed=judging.seed,
        num_positive=question.num_positive, num_positive_patients=question.num_positive_patients,
    )  # fmt: skip

    def result(subset: str, metric: str, key: HeadKey, other: HeadKey | None = None) -> Result:
        value, sample = values[subset, metric, key], sampled[subset, metric, key]
        notes = [*([question.carved] if question.carved else []), *fits[key].notes]
        if other is not None:
            value, sample = value - values[subset, metric, other], sample - sampled[subset, metric, other]
            notes = [*([few[subset]] if few[subset] else []), *notes, *fits[other].notes]
        rows = parts[subset]
        found = Estimate.from_draws(
            value, sample, patients[rows], metric=metric, y=y[rows], difference=other is not None
        )
        return filled(
            blank,
            found,
            metric=metric,
            fraction=key.fraction,
            encoder=key.encoder,
            baseline="" if other is None else other.encoder,
            probe=key.probe,
            sd_repeats=float(value.std(ddof=1)) if len(value) > 1 else None,
            notes=tuple(dict.fromkeys(notes)),
            subset=subset,
            unit=question.unit if metric in IN_UNIT_OF_TARGET else "",
        )

    results = []
    for subset in parts:
        for metric in metrics:
            for fraction in sorted({key.fraction for key in fits}):
                results += [result(subset, metric, key) for key in fits if key.fraction == fraction]
                for kind in probes:
                    for baseline in baselines:
                        other = HeadKey(baseline, "none" if baseline == MAJORITY else kind, fraction)
                        results.append(result(subset, metric, HeadKey(judged, kind, fraction), other))
    return results
