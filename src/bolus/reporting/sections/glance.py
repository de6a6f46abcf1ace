"""At a glance: for each run whom it was trained on, whether it is healthy, whether it helps, and for whom."""

from __future__ import annotations

from bolus.reporting.blocks import (
    CONCERN,
    GOOD,
    OPEN,
    PLAIN,
    Block,
    Section,
    Sentence,
    Sentences,
    sentence,
    standing_of,
)
from bolus.reporting.evidence import Evidence
from bolus.reporting.sections.groups import gap_state, worst_gap
from bolus.reporting.sections.health import concerns, status_of
from bolus.reporting.sections.verdicts import AUDIT, verdicts
from bolus.reporting.wording import counted

MOST = 4  # verdicts that are said of a run here


def glance(evidence: list[Evidence]) -> Section:
    """The section of all runs."""
    lead = "What a reader should take away; every sentence is explained below."
    return Section("glance", "At a glance", lead, by_run={each.name: _of_run(each) for each in evidence})


def _of_run(evidence: Evidence) -> list[Block]:
    run, record = evidence.run, evidence.run.record
    unit = run.recipe.images.unit
    who = (
        f"Recipe {run.recipe.name}, {status_of(record)}: trained on {counted(record['num_training_samples'], unit)} of "
    )
    who += f"{counted(len(record['training_patients']), 'patient')}."
    if record["num_quarantined"]:
        who += f" {counted(record['num_quarantined'], 'row')} could not be read."
    return [Sentences([sentence(who), _health(evidence), *_benefit(evidence), _groups(evidence)])]


def _health(evidence: Evidence) -> Sentence:
    if not evidence.looks:
        return sentence("Healthy? The run has not looked at itself yet.", PLAIN)
    found = concerns(evidence)
    if not found:
        return sentence("Healthy: the last look found no cause for concern.", GOOD)
    causes = f"{len(found)} causes for concern, the first: " if len(found) > 1 else ""
    return sentence(f"Healthy? {causes}{found[0]}", CONCERN)


def _benefit(evidence: Evidence) -> list[Sentence]:
    asked = [each for question in evidence.questions if question.task != AUDIT for each in verdicts(question)]
    said = list(
        {(each.target, each.difference.task, each.difference.baseline): each for each in reversed(asked)}.values()
    )
    said.reverse()
    if not said:
        return [sentence("Does it help? Nothing has been asked of it yet.", OPEN)]
    shown = [sentence(f"{each.target}: {each.text}", standing_of(each.text)) for each in said[:MOST]]
    more = len(said) - MOST
    return [*shown, sentence(f"{counted(more, 'more verdict')} below.")] if more > 0 else shown


def _groups(evidence: Evidence) -> Sentence:
    worst = worst_gap(evidence)
    if worst is None:
        return sentence("For whom? The groups of patients have not been audited.", OPEN)
    return sentence(f"For whom? {worst.target}: {worst.text}", gap_state(worst.text))
