"""What was trained on whom: the flow of rows and patients from the table to the test."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bolus.data.cohort.cohort import Cohort
from bolus.reporting.blocks import Block, Drawing, Missing, Section, Sentences, Table, sentence
from bolus.reporting.charts.marks import tag
from bolus.reporting.evidence import Evidence, Question
from bolus.reporting.sections.predictions.predicted import is_joined
from bolus.reporting.wording import counted, plain

if TYPE_CHECKING:
    from markupsafe import Markup

SPLITS = {"train": "Training", "val": "Validation", "test": "Test"}
REASONS = 6  # why rows could not be read, that are named
UNCOUNTED = ("image", "patient", "split")  # roles that every row has


def people(evidence: list[Evidence]) -> Section:
    """The section of all runs."""
    return Section(
        "people",
        "Who was trained on",
        "How many rows and patients came in, which were left out and why, and who is on which side of the split.",
        by_run={each.name: _flow(each) for each in evidence},
    )


def _flow(evidence: Evidence) -> list[Block]:
    record, cohort = evidence.run.record, evidence.cohort
    unit = evidence.run.recipe.images.unit
    trained = (
        f"The encoder was trained on {counted(record['num_training_samples'], unit)} of "
        f"{counted(len(record['training_patients']), 'patient')}."
    )
    blocks: list[Block] = [Sentences([sentence(trained), *(sentence(each) for each in evidence.remarks)])]
    if cohort is None:
        blocks.append(
            Missing(
                f"Of {counted(record['num_rows'], 'row')} in the table {record['num_quarantined']:,} could not be "
                f"read; {evidence.without_cohort}.",
                f"bolus check {evidence.cohort_place}",
            )
        )
        return blocks
    patients = np.asarray(cohort.encoded("patient"))
    readable = np.ones(len(cohort), np.bool_)
    readable[[row - 1 for row in evidence.quarantined if row <= len(cohort)]] = False
    boxes = [_box("Table", len(cohort), len(np.unique(patients)))]
    lost = ~readable
    if lost.any():
        why = Counter(_without_names(reason, cohort, row) for row, reason in evidence.quarantined.items())
        named = [f"{number:,}: {reason}" for reason, number in why.most_common(REASONS)]
        named += [f"and {len(why) - REASONS} more reasons"] if len(why) > REASONS else []
        boxes.append(_box("Could not be read", int(lost.sum()), len(np.unique(patients[lost])), named, "out"))
        boxes.append(_box("Readable", int(readable.sum()), len(np.unique(patients[readable]))))
    sides = []
    for split, name in SPLITS.items():
        here = readable & (cohort.split == split)
        said = [line for each in evidence.questions for line in _with_target(evidence, each, split, cohort)]
        sides.append(_box(name, int(here.sum()), len(np.unique(patients[here])), list(dict.fromkeys(said)), "side"))
    flow = tag("ol", *boxes, tag("li", tag("ol", *sides, class_="sides"), class_="split"), class_="flow")
    return [*blocks, Drawing(flow), _missing(cohort, readable)]


def _box(name: str, rows: int, patients: int, more: list[str] | None = None, kind: str = "") -> Markup:
    listed = [tag("li", tag("bdi", plain(each, 300))) for each in more or []]
    return tag(
        "li",
        tag("strong", name),
        tag("span", f"{counted(rows, 'row')}, {counted(patients, 'patient')}"),
        tag("ul", *listed) if listed else None,
        class_=f"box {kind}".strip(),
    )


def _with_target(evidence: Evidence, question: Question, split: str, cohort: Cohort) -> list[str]:
    """How many rows of a side have a target that was asked for; nothing where the files do not say."""
    frame = question.predictions
    if frame is None or split == "train" or "later_row" in frame:
        return []
    found = []
    for target, lines in frame[frame["split"] == split].groupby("target", sort=False):
        if not is_joined(evidence, question, str(target)):
            continue
        rows = np.unique(lines["row"].to_numpy()) - 1
        rows = rows[rows < len(cohort)]
        number = len(np.unique(cohort.encoded("patient")[rows]))
        found.append(f"{plain(target, 40)}: {counted(len(rows), 'row')}, {counted(number, 'patient')} with a value")
    return found


def _missing(cohort: Cohort, readable: npt.NDArray[np.bool_]) -> Table:
    """Rows without a value, role by role."""
    rows = []
    for role in cohort.roles:
        if role in UNCOUNTED:
            continue
        lacking = cohort.absent(role) & readable
        by_side = [f"{int((lacking & (cohort.split == split)).sum()):,}" for split in SPLITS]
        rows.append([plain(role, 40), *by_side, f"{100 * lacking.sum() / max(1, readable.sum()):.1f} %"])
    return Table(["Role", *SPLITS.values(), "Share"], rows, "Rows without a value, by role", folded=True)


def _without_names(reason: str, cohort: Cohort, row: int) -> str:
    """Why a row could not be read, without the file's name, which may be called after a person."""
    if row > len(cohort):
        return reason
    path = cohort.image_name(row - 1)
    for part in sorted({path, *re.split(r"[/\\]", path)}, key=len, reverse=True):
        if len(part) > 2:
            reason = reason.replace(part, "the file")
    return reason
