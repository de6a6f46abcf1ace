"""What may be said of a difference: decided or undecided, in one sentence, beside a small table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bolus.evaluation.metrics import higher_is_better
from bolus.evaluation.results import MAJORITY, Result

ENOUGH_PATIENTS = 20
"""Test patients of either class (of any target: test patients) below which no difference counts as decided."""

_FEW = "only "


def too_few(patients: int, of_what: str) -> str:
    """The note that keeps a difference from being decided, or nothing.

    >>> too_few(5, "positive test patients"), too_few(20, "test patients")
    ('only 5 positive test patients where a finding needs 20', '')
    """
    return f"{_FEW}{patients} {of_what} where a finding needs {ENOUGH_PATIENTS}" if patients < ENOUGH_PATIENTS else ""


def verdict_of(difference: Result) -> str:
    """One honest sentence on a paired difference: decided or undecided, and what this test set could have shown.

    Decided means that the 95 % interval leaves out zero and that there is no `too_few` note.

    >>> verdict_of(Result("classify", "edema", "auroc", 0.041, 0.012, 0.07, 900, 300, encoder="run",
    ...     baseline="random-init", se=0.015, detectable=0.042))
    'decided: +0.041 [+0.012, +0.070] AUROC over random-init'
    >>> verdict_of(Result("classify", "edema", "auroc", -0.008, -0.05, 0.03, 900, 300, encoder="run",
    ...     baseline="random-init", se=0.02, detectable=0.056))
    'undecided: -0.008 [-0.050, +0.030] AUROC over random-init; this test set can show 0.056 or more'
    """
    name = difference.metric.replace("_", " ")
    name = name.upper() if len(name) < 6 and name.isalnum() else name
    low, high, other = difference.ci_low, difference.ci_high, difference.baseline
    if not math.isfinite(difference.estimate + low + high):
        return f"undecided: the difference in {name} from {other} is undefined on this test set"
    unit = "" if higher_is_better(difference.metric) else " (lower is better)"
    span = (
        f"{decimals(difference.estimate, '+')} [{decimals(low, '+')}, {decimals(high, '+')}] {name}{unit} over {other}"
    )
    if low <= 0 <= high:
        detectable = difference.detectable
        shown = "" if detectable is None else f"; this test set can show {decimals(detectable)} or more"
        if difference.se == 0:
            shown = "; no draw of the test patients showed a difference"
        return f"undecided: {span}{shown}"
    few = next((note for note in difference.notes if note.startswith(_FEW)), None)
    if few:
        return f"undecided: {span}, but {few}"
    better = (low > 0) == higher_is_better(difference.metric)
    return f"decided: {span}{'' if better else ', which is worse'}"


def summarise(results: Sequence[Result]) -> str:
    """A small table of the main metric, and a verdict on the judged encoder at the largest fraction.

    The verdict is on the first probe, against the first baseline that is an encoder, or the majority where none is: one
    comparison fixed beforehand, so that nothing was picked after looking. Only results on all test samples count. Of an
    encoder that stands alone it says so.
    """
    main = [r for r in results if r.metric == results[0].metric and not r.subset]
    lines = [f"{'probe':<9}{'fraction':>9}  {'encoder':<28}{main[0].metric} [95 % interval over patients]"]
    for result in main:
        if not result.baseline:
            span = f"{decimals(result.estimate)} [{decimals(result.ci_low)}, {decimals(result.ci_high)}]"
            lines.append(f"{result.probe:<9}{result.fraction:>9.3g}  {result.encoder:<28}{span}")
    differences = [r for r in main if r.baseline and r.fraction == max(s.fraction for s in main)]
    if not differences:
        return "\n".join([*lines, f"{results[0].target}: there is nothing to compare with"])
    chosen = next((r for r in differences if r.baseline != MAJORITY), differences[0])
    return "\n".join([*lines, f"{chosen.target}, {chosen.probe}: {verdict_of(chosen)}"])


def decimals(value: float | None, sign: str = "") -> str:
    """Three decimals below ten, one above; below a hundredth two digits that count, since units may be small.

    >>> decimals(0.0714), decimals(31.42), decimals(-0.00083, "+"), decimals(0.0), decimals(None)
    ('0.071', '31.4', '-0.00083', '0.000', '-')
    """
    if value is None or not math.isfinite(value):
        return "-"
    if 1e-9 < abs(value) < 0.01:  # below is rounding
        return f"{value:{sign}.2g}"
    return f"{value:{sign}.{3 if abs(value) < 10 else 1}f}"
