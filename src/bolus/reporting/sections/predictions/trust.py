"""How far a single prediction can be trusted: calibration and decision curves, Bland-Altman, Dice by volume."""

from __future__ import annotations

from bolus.reporting.blocks import Block, Heading, Missing, Section
from bolus.reporting.evidence import Evidence
from bolus.reporting.sections.predictions.agreement import agreement
from bolus.reporting.sections.predictions.calibration import calibration
from bolus.reporting.sections.predictions.overlap import overlap
from bolus.reporting.sections.predictions.predicted import each_predicted
from bolus.reporting.wording import counted, plain


def trust(evidence: list[Evidence]) -> Section:
    """The section of all runs."""
    return Section(
        "trust",
        "How far to trust a prediction",
        "Whether 30 % means 3 patients in 10, how far a predicted number is off, and how masks overlap.",
        by_run={each.name: _of_run(each) for each in evidence},
    )


def _of_run(evidence: Evidence) -> list[Block]:
    blocks: list[Block] = []
    for each in each_predicted(evidence):
        blocks.append(Heading(f"{plain(each.target, 60)}, {counted(len(each.y), 'test sample')}"))
        blocks += agreement(each) if each.task == "regress" else calibration(each)
    for question in evidence.asked("segment"):
        blocks += overlap(question)
    if not blocks:
        blocks.append(Missing("No evaluation of this run has written predictions.", evidence.first_question))
    return blocks
