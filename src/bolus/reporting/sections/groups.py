"""For whom: the metric in each group of test patients, and the gaps beside those of random groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bolus.evaluation.statistics.results import RANDOM, Result, decimals
from bolus.evaluation.statistics.verdict import verdicts_of
from bolus.reporting.blocks import (
    CONCERN,
    HINT,
    OPEN,
    PLAIN,
    Block,
    Figure,
    Heading,
    Missing,
    Section,
    Sentences,
    Table,
    sentence,
)
from bolus.reporting.charts.forest import Interval, draw_forest
from bolus.reporting.evidence import Evidence, Question
from bolus.reporting.sections.verdicts import AUDIT, DECODE, Verdict, gaps, is_gap, measure
from bolus.reporting.wording import counted, plain

if TYPE_CHECKING:
    from markupsafe import Markup

READING = (
    "The same predictions, judged in each group of test patients; the line is all of them. Groups differ by chance "
    "alone, the more so the smaller they are: a gap counts where it exceeds that of random groups of the same sizes, "
    "which the sentences say. A group with a better metric need not be served better where its patients are easier "
    "cases."
)


def groups(evidence: list[Evidence]) -> Section:
    """The section of all runs."""
    return Section(
        "groups",
        "For whom",
        "Whether the predictions are as good in every group of patients, and which group they serve worst.",
        by_run={each.name: _of_run(each) for each in evidence},
    )


def worst_gap(evidence: Evidence) -> Verdict | None:
    """The gap to all patients that is least like one of random groups; None without an audit."""
    found = [gap for question in evidence.asked(AUDIT) for gap in gaps(question)]
    return min(found, key=lambda each: (each.difference.p_value or 0.0, -each.difference.estimate), default=None)


def _of_run(evidence: Evidence) -> list[Block]:
    asked = evidence.asked(AUDIT)
    if not asked:
        return [Missing("The groups of patients have not been audited.", f"{evidence.first_question} --audit")]
    blocks: list[Block] = []
    for question in asked:
        blocks += _of_audit(question)
    return blocks


def _of_audit(question: Question) -> list[Block]:
    found = gaps(question)
    read = [r for r in question.results if r.target.startswith(DECODE) and r.baseline == RANDOM and not r.subset]
    first = {r.target: r.metric for r in reversed(read)}
    read = [r for r in read if r.metric == first[r.target]]
    said = [sentence(f"{gap.target}: {gap.text}", gap_state(gap.text)) for gap in found]
    said += [
        sentence(f"{plain(r.target.removeprefix(DECODE), 60)}, read off the embedding: {text}")
        for r, text in zip(read, verdicts_of(read), strict=True)
    ]
    targets = [target for target in question.targets if not target.startswith(DECODE)]
    panels = [panel for target in targets for panel in [_forest(question, target)] if panel is not None]
    return [
        Heading(f"Audit: {plain(targets[0], 60)}"),
        Sentences(said),
        Figure("The metric by group", panels, READING, table=_table(question)),
    ]


def gap_state(text: str) -> str:
    """A gap that is decided is a cause for concern; one that is undecided or a hint is open."""
    if HINT in text or text.startswith("undecided"):
        return OPEN
    return CONCERN if text.startswith("decided") else PLAIN


def _in_groups(question: Question, target: str) -> list[Result]:
    """The judged encoder in every group, all samples first, by the first metric and probe."""
    own = [r for r in question.of(target) if r.encoder == question.encoder and not r.baseline and not is_gap(r)]
    own = [r for r in own if " against " not in r.subset]
    return [r for r in own if (r.metric, r.probe) == (own[0].metric, own[0].probe)]


def _forest(question: Question, target: str) -> Markup | None:
    found = _in_groups(question, target)
    if len(found) < 2:
        return None
    whole = next((r for r in found if not r.subset), None)
    rows = [
        Interval(
            f"{r.subset or 'all'} ({counted(r.num_patients, 'patient')})",
            r.estimate, r.ci_low, r.ci_high,
            f"{r.subset or 'all'}: {measure(r)} {r.interval}; {counted(r.num_patients, 'patient')}",
            0 if r.subset else 2,
        )
        for r in found
    ]  # fmt: skip
    level = None if whole is None else whole.estimate
    title = f"{plain(target, 40)}: {measure(found[0])}"
    return draw_forest(rows, title=title, x_name=measure(found[0]), level=level, level_name="all patients")


def _table(question: Question) -> Table:
    rows = []
    for r in question.results:
        if not r.baseline:
            chance = "" if r.chance is None else decimals(r.chance)
            positive = "" if r.num_positive_patients is None else f"{r.num_positive_patients:,}"
            what = [plain(r.target, 40), plain(r.subset or "all", 60), plain(r.encoder, 40)]
            rows.append([*what, measure(r), r.interval, f"{r.num_patients:,}", positive, chance])
    head = ["Target", "Group or gap", "Encoder", "Metric", "Estimate [95 % interval]", "Patients", "Positive", "Chance"]
    return Table(head, rows, "Groups and gaps in numbers", folded=True)
