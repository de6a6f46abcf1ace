"""What an ablation found, as a table and in sentences; nothing is decided here that the numbers do not decide."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from bolus.ablation.arms import Arms
from bolus.ablation.comparison import RANDOM_INIT, Comparison, Line, torn
from bolus.evaluation.metrics import higher_is_better
from bolus.evaluation.results import MAJORITY

MANY = 2  # differences from which on the reader is warned of their number


def table(found: Comparison, reference: str, failed: Mapping[str, str]) -> str:
    """One line an arm: its value, its difference from the reference, and a verdict.

    Args:
        found: the comparison.
        reference: the arm that differences are from.
        failed: arm -> why it is not there, or not with all its seeds.
    """
    names = [*(line.arm for line in found.lines), *(arm for arm in failed if found.of(arm) is None)]
    width = max(len(name) for name in names) + 2
    by = "" if found.probe == "none" else f", {found.probe}"
    better = "" if higher_is_better(found.metric) else ", lower is better"
    chance = found.facts.get("chance")
    more = "" if chance is None else f"; chance {_number(chance)}"
    what = f"{found.metric}{better} [95 % over patients]"
    lines = [f"{found.target}{by}: {what}, and the difference from {reference}{more}"]
    for line in found.lines:
        value = line.value
        shown = f"{_number(value['estimate'])} [{_number(value['ci_low'])}, {_number(value['ci_high'])}]"
        said = [each for each in (verdict(line), failed.get(line.arm, "")) if each]
        lines.append(f"  {line.arm:<{width}}{shown:<24}{'; '.join(said)}".rstrip())
    lines += [f"  {arm:<{width}}{why}" for arm, why in failed.items() if found.of(arm) is None]
    return "\n".join(lines)


def verdict(line: Line) -> str:
    """The difference of an arm from the reference, such as `+0.021 [+0.004, +0.038] better`.

    >>> gap = {"metric": "dice", "estimate": -0.012, "ci_low": -0.03, "ci_high": 0.004, "detectable": 0.0249,
    ...     "verdict": "undecided", "by_seed": [-0.01, -0.014], "seeds": 2}
    >>> verdict(Line("without patient", {}, gap))
    '-0.012 [-0.030, +0.004] undecided; this test set can show 0.025'
    """
    gap = line.difference
    if gap is None:
        return ""
    if gap["estimate"] is None or gap["ci_low"] is None:
        return "undecided: the difference is undefined on these patients"
    low, high = gap["ci_low"], gap["ci_high"]
    shown = f"{_number(gap['estimate'], '+')} [{_number(low, '+')}, {_number(high, '+')}]"
    if line.verdict in ("better", "worse"):
        return f"{shown} {line.verdict}"
    if line.verdict == "too few patients":
        return f"{shown} undecided: too few patients"
    if low > 0 or high < 0:
        return f"{shown} undecided: {torn(gap)}"
    return f"{shown} undecided; {_could_show(line)}"


def sentences(found: Comparison, arms: Arms, *, on: str) -> list[str]:
    """What the comparison says of the objectives, the combiners, the key or the recipes; and what it does not say.

    Args:
        found: by which the arms are decided.
        arms: what was compared.
        on: `test` or `validation`.
    """
    compared = [line for line in found.lines if line.difference and line.arm not in (RANDOM_INIT, MAJORITY)]
    said = []
    if not compared:
        said.append(f"no arm can be compared with {arms.reference.name}")
    elif found.few:
        said.append(f"nothing can be decided here: {found.few}")
    else:
        said += _of_objectives(found, arms) if arms.over == "objectives" else _of_choices(found, arms, compared)
        twin = found.of(RANDOM_INIT)
        if twin is not None and twin.difference is not None and twin.verdict != "worse":
            said.append(f"{arms.reference.name} is not shown to beat random weights: see first that it learns at all")
        if len(compared) >= MANY:
            share = 100 * (1 - 0.95 ** len(compared))
            said.append(
                f"{len(compared)} differences were looked at: if there were none, one or more would still seem decided "
                f"in about {share:.0f} of 100 such ablations, so that a lone finding is a hint"
            )
        if found.lines[0].value["seeds"] == 1:
            said.append("one seed says nothing of the chance of training: intervals are over patients alone")
    if on == "test":
        said.append(
            "whoever chooses an arm by this table has used the test patients up: choose with --on validation, and "
            "judge the choice on the test once"
        )
    else:
        said.append("judged on validation patients; no test patient was judged")
    return said


def _of_objectives(found: Comparison, arms: Arms) -> list[str]:
    """Which objective earns its place, which harms, which could go, and which does as well alone."""
    whole, said = set(arms.reference.recipe.objectives), dict[str, list[str]]()
    alone: list[str] = []
    for arm in arms.arms[1:]:
        line, kept = found.of(arm.name), set(arm.recipe.objectives)
        if line is None or line.difference is None:
            continue
        if len(kept) == 1 and line.verdict == "better":
            said.setdefault("alone", []).append(f"{arm.name} is better than all together: {_change(line, found)}")
        elif len(kept) == 1 and line.verdict != "worse":
            alone += kept
        if len(whole - kept) != 1:
            continue
        (gone,) = whole - kept
        what = {"worse": "earns its place", "better": "harms"}.get(line.verdict, "could go")
        said.setdefault(what, []).append(f"{gone} {what}: without it {_change(line, found)}")
    lines = [line for what in ("earns its place", "harms", "could go", "alone") for line in said.get(what, [])]
    if alone:
        lines.append(f"not shown to be worse alone than all together: {', '.join(alone)}")
    return lines


def _of_choices(found: Comparison, arms: Arms, compared: Sequence[Line]) -> list[str]:
    """Which arm is better or worse than the reference, and which is neither."""
    said = [
        f"{line.arm} is {line.verdict} than {arms.reference.name}: {_change(line, found)}"
        for line in compared
        if line.verdict in ("better", "worse")
    ]
    left = ", ".join(line.arm for line in compared if line.verdict not in ("better", "worse"))
    if left:
        said.append(f"undecided against {arms.reference.name}: {left}; take the simplest, or judge on more patients")
    return said


def _change(line: Line, found: Comparison) -> str:
    gap = line.difference
    assert gap is not None
    if gap["estimate"] is None or gap["ci_low"] is None:
        return f"the change of {found.metric} is undefined"
    way = "rises" if gap["estimate"] > 0 else "falls"
    span = f"[{_number(gap['ci_low'], '+')}, {_number(gap['ci_high'], '+')}]"
    decided = line.verdict in ("better", "worse")
    rest = "" if decided else f", which is undecided; {torn(gap) or _could_show(line)}"
    return f"{found.metric} {way} by {_number(abs(gap['estimate']))} {span}{rest}"


def _could_show(line: Line) -> str:
    assert line.difference is not None
    detectable = line.difference["detectable"]
    if not detectable or not math.isfinite(detectable):
        return "no draw of the patients showed a difference"
    return f"this test set can show {_number(detectable)}"


def _number(value: float | None, sign: str = "") -> str:
    """Three decimals below ten, one above."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:{sign}.{3 if abs(value) < 10 else 1}f}"


def beside(comparisons: Sequence[Comparison]) -> str:
    """What else was compared, and how much of it was decided, in a sentence; empty for a single comparison."""
    others = comparisons[1:]
    if not others:
        return ""
    decided = [
        f"{line.arm} ({each.target}, {each.metric}: {line.verdict})"
        for each in others
        for line in each.lines
        if line.verdict in ("better", "worse") and line.arm != RANDOM_INIT
    ]
    names = ", ".join(dict.fromkeys(f"{each.target} ({each.metric})" for each in others))
    found = f"decided there: {', '.join(decided)}" if decided else "no difference between arms is decided there"
    return f"also in results.jsonl: {names}; {found}"
