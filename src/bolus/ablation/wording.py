"""What an ablation found, as a table and in sentences; nothing is decided here that the numbers do not decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bolus.ablation.arms import Arm, Arms
from bolus.ablation.comparison import RANDOM_INIT, Comparison, Line
from bolus.evaluation.statistics.metrics import higher_is_better, in_words
from bolus.evaluation.statistics.results import MAJORITY, decimals
from bolus.evaluation.statistics.verdict import DECIDED, after_holm

FEW_SEEDS = 2  # with which t has one degree of freedom, unless the seeds hardly differ


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
    more = "" if chance is None else f"; chance {decimals(chance)}"
    seeds = max((line.value["seeds"] for line in found.lines), default=1)
    what = f"{found.metric}{better} [95 % over patients{' and seeds' if seeds > 1 else ''}]"
    lines = [f"{found.target}{by}: {what}, and the difference from {reference}{more}"]
    spans = [
        f"{decimals(line.value['estimate'])} [{decimals(line.value['ci_low'])}, {decimals(line.value['ci_high'])}]"
        for line in found.lines
    ]
    span_width = max(24, *(len(span) + 2 for span in spans))
    for line, span in zip(found.lines, spans, strict=True):
        said = [each for each in (verdict(line, *_after_holm(line, found)), failed.get(line.arm, "")) if each]
        lines.append(f"  {line.arm:<{width}}{span:<{span_width}}{'; '.join(said)}".rstrip())
    lines += [f"  {arm:<{width}}{why}" for arm, why in failed.items() if found.of(arm) is None]
    return "\n".join(lines)


def verdict(line: Line, corrected: str = "") -> str:
    """The difference of an arm from the reference, such as `+0.021 [+0.004, +0.038] better`.

    Args:
        line: of the arm.
        corrected: what Holm's correction leaves of a finding, as `verdict.after_holm` says it.

    >>> gap = {"metric": "dice", "estimate": -0.012, "ci_low": -0.03, "ci_high": 0.004, "detectable": 0.0249,
    ...     "verdict": "undecided", "by_seed": [-0.01, -0.014], "seeds": 2}
    >>> verdict(Line("without patient", {}, gap))
    '-0.012 [-0.030, +0.004] undecided; this test set can show 0.025'
    """
    gap = line.difference
    if gap is None:
        return ""
    if _undefined(line):
        return "undecided: the difference is undefined on these patients"
    low, high = gap["ci_low"], gap["ci_high"]
    shown = f"{decimals(gap['estimate'], '+')} [{decimals(low, '+')}, {decimals(high, '+')}]"
    if line.verdict in ("better", "worse"):
        for_this = " for this training" if gap["seeds"] == 1 else ""
        return f"{shown} {line.verdict}{for_this}{corrected}"
    if line.verdict == "too few patients":
        return f"{shown} undecided: too few patients"
    return f"{shown} undecided; {_could_show(line)}"


def sentences(found: Comparison, arms: Arms, *, on: str) -> list[str]:
    """What the comparison says of the objectives, the combiners, the key or the recipes; and what it does not say.

    Args:
        found: by which the arms are decided.
        arms: what was compared.
        on: `test` or `validation`.
    """
    compared = _compared(found)
    said = []
    if not compared:
        said.append(f"no arm can be compared with {arms.reference.name}")
    elif found.few:
        said.append(f"nothing can be decided here: {found.few.replace('test patients', f'{on} patients')}")
    else:
        said += _of_objectives(found, arms) if arms.over == "objectives" else _of_choices(found, arms, compared)
        twin = found.of(RANDOM_INIT)
        if twin is not None and twin.difference is not None and twin.verdict != "worse":
            said.append(f"{arms.reference.name} is not shown to beat random weights: see first that it learns at all")
        seeds = min(line.difference["seeds"] for line in compared if line.difference)
        if seeds == 1:
            said.append(
                "one seed says nothing of the chance of training: intervals are over patients alone, and what is "
                "decided is decided for these trainings; --seeds 3 or more count it"
            )
        elif seeds <= FEW_SEEDS:
            said.append(
                f"with {seeds} seeds the chance of training is hardly known, so that intervals are wide where seeds "
                "differ: --seeds 3 or more narrow them"
            )
        if any(_seen_by(arm) != _seen_by(arms.reference) for arm in arms.arms):
            said.append(f"random init is the encoder of {arms.reference.name}, untrained")
    if on == "test":
        said.append(
            "whoever chooses an arm by this table has used the test patients up: choose with --on validation, and "
            "judge the choice on the test once"
        )
    else:
        said.append("judged on validation patients; no test patient was judged")
    return said


def _compared(found: Comparison) -> list[Line]:
    """The lines of arms with a difference from the reference."""
    return [line for line in found.lines if line.difference and line.arm not in (RANDOM_INIT, MAJORITY)]


def _after_holm(line: Line, found: Comparison) -> tuple[str, ...]:
    """What Holm's correction over the arms leaves of the finding on one of them; nothing of a line that is no arm."""
    arms = [each.arm for each in _compared(found)]
    return (after_holm(DECIDED, found.corrected(arms)[line.arm], len(arms)),) if line.arm in arms else ()


def _of_objectives(found: Comparison, arms: Arms) -> list[str]:
    """Which objective earns its place, which harms, which could go, and which does as well alone."""
    whole, said = set(arms.reference.recipe.objectives), dict[str, list[str]]()
    alone: list[str] = []
    for arm in arms.arms[1:]:
        line, kept = found.of(arm.name), set(arm.recipe.objectives)
        if line is None or line.difference is None:
            continue
        if _undefined(line):
            said.setdefault("undefined", []).append(f"{arm.name} cannot be judged: {_change(line, found)}")
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
    lines = [
        line for what in ("earns its place", "harms", "could go", "alone", "undefined") for line in said.get(what, [])
    ]
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
    if _undefined(line):
        return f"the change of {in_words(found.metric)} is undefined"
    way = "rises" if gap["estimate"] > 0 else "falls"
    span = f"[{decimals(gap['ci_low'], '+')}, {decimals(gap['ci_high'], '+')}]"
    decided = line.verdict in ("better", "worse")
    rest = "".join(_after_holm(line, found)) if decided else f", which is undecided; {_could_show(line)}"
    return f"{in_words(found.metric)} {way} by {decimals(abs(gap['estimate']))} {span}{rest}"


def _undefined(line: Line) -> bool:
    return line.difference is not None and None in (line.difference["estimate"], line.difference["ci_low"])


def _seen_by(arm: Arm) -> tuple[Any, ...]:
    """What an untrained encoder depends on, but for its seed."""
    recipe = arm.recipe
    return recipe.encoder, recipe.encoders, recipe.modalities, recipe.images.size, recipe.images.frames


def _could_show(line: Line) -> str:
    assert line.difference is not None
    detectable = line.difference["detectable"]
    if not detectable:
        return "no draw of the patients showed a difference"
    return f"this test set can show {decimals(detectable)}"


def beside(comparisons: Sequence[Comparison]) -> str:
    """What else was compared, and how much of it was decided, in a sentence; empty for a single comparison."""
    others = comparisons[1:]
    if not others:
        return ""
    decided = [
        f"{line.arm} ({each.target}, {in_words(each.metric)}: {line.verdict})"
        for each in others
        for line in each.lines
        if line.verdict in ("better", "worse") and line.arm != RANDOM_INIT
    ]
    names = ", ".join(dict.fromkeys(f"{each.target} ({in_words(each.metric)})" for each in others))
    found = f"decided there: {', '.join(decided)}" if decided else "no difference between arms is decided there"
    return f"also in results.jsonl: {names}; {found}"
