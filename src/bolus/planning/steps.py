"""What to run after a plan: commands to copy, in their order, with a line on why."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bolus.data.cohort.holdout import validation_cohort
from bolus.data.images.clips import open_samples
from bolus.planning.resolution import Resolution, find_resolutions
from bolus.terminal import columns, fold

if TYPE_CHECKING:
    from bolus.planning.planner import Plan

_ACROSS = ("laterality", "modality", "visit")


def next_steps(plan: Plan, judged: Sequence[Resolution], *, cohort: Sequence[str], recipe: str) -> list[str]:
    """Indented lines: look, rehearse, train, judge, take apart; without a recipe, say what columns are.

    Args:
        plan: what was found and chosen.
        judged: what an encoder may be judged by.
        cohort: the words of a command line that open the cohort.
        recipe: where the recipe is written.
    """
    if plan.recipe is None:
        what = "If a column above is there under another name, say which; check shows what each was taken for:"
        return [*fold(what, "  ", "  "), *_command(["bolus", "check", *cohort, "--role", "ROLE=COLUMN"])]
    lines, run = [], "runs/a"
    if Path(cohort[0]).suffix.lower() not in {".yaml", ".yml"}:
        lines += fold("Look at pixels and rows first; it writes down what each column was taken for:", "  ", "  ")
        lines += _command(["bolus", "check", *cohort, "-o", "cohort.yaml"])
        cohort = ["cohort.yaml"]
    train = ["bolus", "pretrain", *cohort, "--recipe", recipe, "--out", run]
    lines += fold(f"{plan.cost} See what it takes, memory and hours; then train:".strip(), "  ", "  ")
    lines += [*_command([*train, "--dry-run"]), *_command(train)]
    lines += _judge(plan, judged, [run, *cohort])
    targets = _targets(judged)
    if targets and len(plan.recipe.objectives) > 1:
        words = ["bolus", "ablate", *cohort, "--recipe", recipe, "--task", targets[0].task, *_question(targets[0])]
        beside = _validated(plan, targets[0])
        how = ", on validation patients, so that the test patients stay unseen:"
        how = how if beside else "; too few are in validation, so this looks at the test:"
        lines += fold(f"Ask which of the {len(plan.recipe.objectives)} objectives earns its place{how}", "  ", "  ")
        lines += _command([*words, "--on", "validation"] if beside else words)
    return lines


def is_of(target: Resolution, roles: Iterable[str]) -> bool:
    """Whether it is one of these columns, or a class of one.

    >>> is_of(Resolution("label:a=b", "classify", "auroc", 0, 0, None, None, ""), ["label:a"])
    True
    """
    return any(target.target == role or target.target.startswith(f"{role}=") for role in roles)


def _judge(plan: Plan, judged: Sequence[Resolution], words: Sequence[str]) -> list[str]:
    """The questions to ask of the encoder, and those to ask again within groups."""
    targets, lines = _targets(judged), []
    followed = [hazard.role for hazard in plan.hazards if hazard.kind == "shortcut" and not hazard.refuses]
    questions: list[tuple[str, list[str]]] = [(each.task, _question(each)) for each in targets]
    questions += [("retrieve", ["--across", role]) for role in _across(plan)]
    if questions:
        lines += fold("Judge it on patients it has not seen, beside the same encoder with random weights:", "  ", "  ")
        lines += [line for task, options in questions for line in _evaluate(task, words, options)]
    audits = [each for each in targets if is_of(each, followed)]
    if audits:
        lines += fold(
            "The target goes with how the image was made; see whether the finding holds in each group:", "  ", "  "
        )
        lines += [line for each in audits for line in _evaluate(each.task, words, [*_question(each), "--audit"])]
    return lines


def _targets(resolutions: Iterable[Resolution]) -> list[Resolution]:
    """One for each task: the label that is decided most finely, a score before an attribute, the masks."""
    best: dict[str, Resolution] = {}
    decided = [(each.alike, each) for each in resolutions if each.alike is not None]
    for _, each in sorted(decided, key=lambda pair: pair[0] if pair[1].task == "classify" else 0.0):
        best.setdefault(each.task, each)
    return [best[task] for task in ("classify", "regress", "segment") if task in best]


def _question(target: Resolution) -> list[str]:
    """The options that ask for it."""
    if target.task == "segment":
        return []
    return ["--target", target.target.removeprefix("label:").removeprefix("score:")]


def _evaluate(task: str, words: Sequence[str], options: Sequence[str]) -> list[str]:
    """A command that puts a question to the run."""
    return _command(["bolus", "evaluate", task, *words, *options])


def _across(plan: Plan) -> list[str]:
    """Roles over which the recommended objectives draw one person's images together."""
    found: set[Any] = set()
    for offer in plan.offers:
        entry = (offer.entry or {}) if offer.verdict == "recommended" else {}
        relation = entry.get("relation")
        found |= {entry.get("between")} | set(relation.get("differ", ()) if isinstance(relation, dict) else ())
    return [role for role in _ACROSS if role in found]


def _validated(plan: Plan, target: Resolution) -> bool:
    """Whether the validation patients are enough to ask for the target."""
    if not (plan.cohort.split == "val").any():
        return False
    held = validation_cohort(plan.cohort)
    found = find_resolutions(held, open_samples(held, plan.samples.unit))
    return any(each.target == target.target and each.alike is not None for each in found)


def _command(words: Sequence[str]) -> list[str]:
    """A command to copy, on further lines where it is wider than the terminal; an option stays beside its value."""
    lines = [""]
    for place, word in enumerate(words):
        value = words[place + 1] if word.startswith("-") and place + 1 < len(words) else "-"
        needed = len(shlex.quote(word)) + (0 if value.startswith("-") else len(shlex.quote(value)) + 1)
        if len(lines[-1]) + needed > columns() - 8 and lines[-1].strip():
            lines[-1] += " \\"
            lines.append(" ")
        lines[-1] += f" {shlex.quote(word)}" if lines[-1] else shlex.quote(word)
    return [f"    {each}" for each in lines]
