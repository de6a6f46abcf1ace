"""The sentences that evaluations write, found again from their results: one verdict for each thing that was asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bolus.evaluation.segmentation.task import TARGET as MASK
from bolus.evaluation.statistics.intervals import holm
from bolus.evaluation.statistics.metrics import higher_is_better, in_words, unit_of
from bolus.evaluation.statistics.results import MAJORITY, RANDOM, START, Result
from bolus.evaluation.statistics.verdict import after_holm, asked_of, verdicts_of
from bolus.reporting.evidence import Question
from bolus.reporting.wording import plain

AUDIT = "audit"
DECODE = "decode:"
SERIES = {START: 1, RANDOM: 2, MAJORITY: 3}
"""Colour and shape of what stands beside an encoder; the judged one is 0, and other baselines come after these."""


@dataclass(frozen=True)
class Verdict:
    """A sentence on one difference.

    Args:
        target: what was asked, with how it was read off.
        text: as the evaluation wrote it.
        difference: what it is of.
    """

    target: str
    text: str
    difference: Result


def verdicts(question: Question) -> list[Verdict]:
    """The verdicts of an evaluation that is no audit, as it printed them; Holm's correction is over its targets."""
    asked = [each for target in _judged_targets(question) for each in asked_of(question.of(target))]
    return [Verdict(named(each), text, each) for text, each in zip(verdicts_of(asked), asked, strict=True)]


def _judged_targets(question: Question) -> list[str]:
    return [MASK] if question.task == "segment" else question.targets


def named(result: Result) -> str:
    """What a result is of: target, probe and, of few labels, how many."""
    name = plain(result.target, 60) + (f", {result.probe}" if result.probe not in ("", "none") else "")
    many = result.labelled_patients
    return name if many is None else f"{name}, {many} labelled patient{'s' * (many != 1)}"


def gaps(question: Question) -> list[Verdict]:
    """The gaps between groups of an audit, by the first metric of each target, as it printed them."""
    first = {r.target: r.metric for r in reversed(question.results)}
    shown = [r for r in question.results if is_gap(r) and r.encoder == question.encoder and r.metric == first[r.target]]
    corrected = holm([math.nan if r.p_value is None else r.p_value for r in shown])
    return [
        Verdict(f"{plain(r.target, 60)}, {plain(r.subset.partition(': ')[0], 40)}",
                f"{r.notes[0]}{after_holm(r.notes[0], p, len(shown))}", r)
        for r, p in zip(shown, corrected.tolist(), strict=True)
        if r.notes
    ]  # fmt: skip


def is_gap(result: Result) -> bool:
    """Whether a result of an audit is a gap between two groups."""
    return result.task == AUDIT and not result.baseline and " against " in result.subset and result.p_value is not None


def values_of(results: Sequence[Result]) -> list[Result]:
    """The first metric of each encoder, on all test samples, by the first probe and those that need none."""
    main = [r for r in results if r.metric == results[0].metric and not r.subset and not r.baseline]
    return [r for r in main if r.probe in (results[0].probe, "none")]


def as_gain(result: Result) -> tuple[float, float, float]:
    """A difference with its interval, turned so that more is better."""
    if higher_is_better(result.metric):
        return result.estimate, result.ci_low, result.ci_high
    return -result.estimate, -result.ci_high, -result.ci_low


def measure(result: Result) -> str:
    """The metric with its unit."""
    unit = result.unit or unit_of(result.metric)
    return in_words(result.metric) + (f" in {plain(unit, 20)}" if unit else "")


def series_of(name: str, others: Sequence[str]) -> int:
    """Whose colour an encoder has, beside the judged one: `others` are the further baselines, in their order."""
    return SERIES.get(name, 4 + others.index(name) % 4 if name in others else 0)
