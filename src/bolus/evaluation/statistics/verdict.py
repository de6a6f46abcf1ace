"""What may be said of a difference: decided or undecided, in one sentence, beside a small table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bolus.evaluation.statistics.intervals import holm
from bolus.evaluation.statistics.metrics import higher_is_better, in_words, unit_of
from bolus.evaluation.statistics.results import MAJORITY, RANDOM, START, TOLD_APART, Result, decimals

ENOUGH_PATIENTS = 20
"""Test patients of either class (of any target: test patients) below which no difference counts as decided."""

DECIDED, THIS_TRAINING, UNDECIDED = "decided", "decided for this training", "undecided"

_FEW = f" where a finding needs {ENOUGH_PATIENTS}"


def too_few(patients: int, of_what: str) -> str:
    """The note that keeps a difference from being decided, or nothing.

    >>> too_few(5, "positive test patients"), too_few(20, "test patients")
    ('only 5 positive test patients where a finding needs 20', '')
    """
    return f"only {patients} {of_what}{_FEW}" if patients < ENOUGH_PATIENTS else ""


def standing(low: float, high: float, *, seeds: int, few: str = "") -> str:
    """Whether a difference is decided: its 95 % interval leaves out zero, and enough patients were judged.

    With one training the interval does not hold the chance of training: another seed may say otherwise, so that it is
    decided for this training only.

    Args:
        low: lower end of the interval, NaN where undefined.
        high: upper end, likewise.
        seeds: trainings that the difference is the mean of.
        few: the note of `too_few`, if there is one.

    Returns:
        `decided`, `decided for this training` or `undecided`.

    >>> standing(0.01, 0.05, seeds=3), standing(0.01, 0.05, seeds=1), standing(-0.01, 0.05, seeds=3)
    ('decided', 'decided for this training', 'undecided')
    """
    if few or not math.isfinite(low + high) or low <= 0 <= high:
        return UNDECIDED
    return DECIDED if seeds > 1 else THIS_TRAINING


def verdict_of(difference: Result) -> str:
    """One honest sentence on a paired difference: its `standing`, and what this test could have shown.

    >>> verdict_of(Result("regress", "age", "mae", 2.714, 1.93, 3.5, 900, 300, encoder="run",
    ...     baseline="random-init", se=0.4, detectable=1.1, unit="years"))
    'decided for this training: worse by 2.714 years [1.930, 3.500] in MAE than random-init'
    >>> verdict_of(Result("classify", "edema", "auroc", -0.008, -0.05, 0.03, 900, 300, encoder="run",
    ...     baseline="random-init", se=0.02, detectable=0.056))
    'undecided: worse by 0.008 [0.050 worse to 0.030 better] in AUROC than random-init; this test set can show 0.056 or
    more'
    """
    name = in_words(difference.metric)
    low, high, other = difference.ci_low, difference.ci_high, difference.baseline
    if not math.isfinite(difference.estimate + low + high):
        return f"undecided: the difference in {name} from {other} is undefined on this test set"
    span = f"{_span(difference)} in {name} {'than' if difference.estimate else 'from'} {other}"
    few = next((note for note in difference.notes if note.endswith(_FEW)), "")
    found = standing(low, high, seeds=difference.seeds, few=few)
    if found != UNDECIDED:
        return f"{found}: {span}"
    if few and not low <= 0 <= high:
        return f"undecided: {span}, but {few}"
    detectable = difference.detectable
    shown = "" if detectable is None else f"; this test set can show {decimals(detectable)} or more"
    if difference.se == 0:
        shown = "; no draw of the test patients showed a difference"
    return f"undecided: {span}{shown}"


def _span(difference: Result) -> str:
    """By how much better or worse, with the interval: in one direction, or from how much worse to how much better."""
    sign = 1.0 if higher_is_better(difference.metric) else -1.0
    value = sign * difference.estimate
    low, high = sorted((sign * difference.ci_low, sign * difference.ci_high))
    unit = difference.unit or unit_of(difference.metric)
    if not value:
        return f"no difference [{decimals(abs(low))} worse to {decimals(abs(high))} better]"
    way = "worse" if value < 0 else "better"
    if low * high > 0:
        near, far = sorted((abs(low), abs(high)))
        span = f"{decimals(near)}, {decimals(far)}"
    else:
        span = f"{decimals(abs(low))} worse to {decimals(abs(high))} better"
    return f"{way} by {decimals(abs(value))}{f' {unit}' if unit else ''} [{span}]"


def verdicts_of(differences: Sequence[Result]) -> list[str]:
    """`verdict_of` each of several differences that one call answers, with what Holm's correction leaves of it.

    Of one difference there is nothing to correct.

    >>> blank = Result("classify", "edema", "auroc", 0.04, 0.01, 0.07, 900, 300, encoder="run", baseline="other")
    >>> from dataclasses import replace
    >>> verdicts_of([replace(blank, p_value=0.03), replace(blank, p_value=0.02)])[1]
    'decided for this training: better by 0.040 [0.010, 0.070] in AUROC than other; Holm over 2 verdicts: p = 0.04'
    """
    corrected = holm([math.nan if each.p_value is None else each.p_value for each in differences])
    said = [verdict_of(each) for each in differences]
    return [f"{each}{after_holm(each, p, len(said))}" for each, p in zip(said, corrected.tolist(), strict=True)]


def after_holm(verdict: str, p_value: float, count: int) -> str:
    """What is added to one of so many verdicts, from its corrected p value; nothing to a lone one.

    >>> after_holm("decided", 0.2, 6), after_holm("undecided", 0.2, 6), after_holm("decided", 0.2, 1)
    ('; Holm over 6 verdicts: p = 0.2, so only a hint', '; Holm over 6 verdicts: p = 0.2', '')
    """
    if count < 2 or math.isnan(p_value):
        return ""
    hint = ", so only a hint" if p_value > 0.05 and not verdict.startswith(UNDECIDED) else ""
    return f"; Holm over {count} verdicts: p = {p_value:.2g}{hint}"


def leading(results: Sequence[Result]) -> list[Result]:
    """Those by the first metric, on all test samples, at the largest fraction and the most labelled patients."""
    main = [r for r in results if r.metric == results[0].metric and not r.subset]
    most = max(((r.fraction, r.labelled_patients or 0) for r in main), default=(1.0, 0))
    return [r for r in main if (r.fraction, r.labelled_patients or 0) == most]


def main_difference(results: Sequence[Result]) -> Result | None:
    """The difference that a verdict is given on: fixed beforehand, so that nothing was picked after looking.

    By the first metric and probe, at the largest fraction, on all test samples, from the first baseline that is an
    encoder, or the majority where none is; None of an encoder that stands alone. That cohorts can be told apart is no
    gain, so of that there is none either.
    """
    differences = [r for r in leading(results) if r.baseline and not r.target.startswith(TOLD_APART)]
    return next((r for r in differences if r.baseline != MAJORITY), differences[0] if differences else None)


def asked_of(results: Sequence[Result]) -> list[Result]:
    """The differences that verdicts are given on: `main_difference` and, where that is from the start, random weights.

    Args:
        results: of one target.
    """
    chosen = main_difference(results)
    if chosen is None or chosen.baseline != START:
        return [] if chosen is None else [chosen]
    return [chosen, *(r for r in leading(results) if r.baseline == RANDOM and r.probe == chosen.probe)]


def summarise(results: Sequence[Result], others: Sequence[Result] = ()) -> str:
    """A small table of the main metric, and verdicts on the judged encoder: see `asked_of`.

    Args:
        results: of one target.
        others: what is `asked_of` the other targets of this call, for Holm's correction.
    """
    main = [r for r in results if r.metric == results[0].metric and not r.subset]
    lines = [f"{'probe':<9}{'fraction':>9}  {'encoder':<28}{main[0].metric} [95 % interval over patients]"]
    lines += [
        f"{each.probe:<9}{each.fraction:>9.3g}  {each.encoder:<28}{each.interval}" for each in main if not each.baseline
    ]
    asked = asked_of(results)
    if not asked:
        told = results[0].target.startswith(TOLD_APART)
        nothing = "a difference between cohorts is no gain" if told else "there is nothing to compare with"
        return "\n".join([*lines, f"{results[0].target}: {nothing}"])
    said = verdicts_of([*asked, *others])[: len(asked)]
    return "\n".join([*lines, *(f"{each.target}, {each.probe}: {one}" for each, one in zip(asked, said, strict=True))])
