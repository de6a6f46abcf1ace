"""Where it fails: the test rows that a prediction missed by most, and what the encoder takes for their like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bolus.embedding.nearest import neighbours, normalise
from bolus.evaluation.statistics.results import RANDOM, decimals
from bolus.reporting.blocks import Block, Drawing, Heading, Missing, Section, Sentences, Table, sentence
from bolus.reporting.charts.axes import short
from bolus.reporting.charts.marks import tag
from bolus.reporting.evidence import Evidence, Question
from bolus.reporting.sections.predictions.overlap import volumes_of
from bolus.reporting.sections.predictions.predicted import MOST, Predicted, each_predicted, is_joined
from bolus.reporting.wording import counted, plain

if TYPE_CHECKING:
    from markupsafe import Markup

HARDEST = 10  # of each target or direction
NEAREST = 5
PICTURED = 8  # hardest rows with a picture
ADVICE = (
    "Numbers are rows of the table, the first below its head being 1. A label that was entered wrongly looks the same"
    " here as a wrong prediction: open these images first."
)

Pictures = Callable[[Evidence, Sequence[int]], dict[int, str]]
"""Rows (from 1) of a run's table -> the picture of each as a data URI; rows that cannot be read are absent."""


def failures(evidence: list[Evidence], pictures: Pictures | None = None) -> Section:
    """The section of all runs; without `pictures` there is none."""
    lead = "The test images that were predicted worst, or found last, by their row in the table."
    if pictures is not None and any(each.run.recipe.images.unit == "volume" for each in evidence):
        lead += " A picture of a volume shows its middle slice."
    return Section(
        "failures",
        "Where it fails",
        lead,
        by_run={each.name: _of_run(each, pictures) for each in evidence},
    )


def _of_run(evidence: Evidence, pictures: Pictures | None) -> list[Block]:
    blocks: list[Block] = []
    for each in each_predicted(evidence):
        blocks += _of_target(each, _Neighbours(evidence) if each.joined else None, evidence, pictures)
    for question in evidence.asked("segment"):
        blocks += _of_volumes(question)
    for question in evidence.asked("retrieve"):
        blocks += _of_ranks(evidence, question, pictures)
    if not blocks:
        said = "No evaluation of this run has written predictions, so that no case can be named."
        return [Missing(said, evidence.first_question)]
    if evidence.embedded is None:
        command = f"bolus embed {evidence.place} {evidence.cohort_place} -o {evidence.place}/embeddings.parquet"
        blocks.append(
            Missing("Which images the encoder takes for alike is not shown: there are no embeddings.", command)
        )
    return [Sentences([sentence(ADVICE)]), *blocks]


class _Neighbours:
    """The nearest images of other patients among those that are embedded."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.place = (
            {} if evidence.embedded is None else {row: at for at, row in enumerate(evidence.embedded.rows.tolist())}
        )

    def of(self, rows: Sequence[int]) -> dict[int, list[int]]:
        """Row -> its nearest rows; empty where embeddings or patients are not at hand."""
        embedded, cohort = self.evidence.embedded, self.evidence.cohort
        if embedded is None or cohort is None:
            return {}
        known = [row for row in rows if row in self.place]
        if not known or int(embedded.rows.max()) > len(cohort):
            return {}
        patients = np.asarray(cohort.encoded("patient"))[embedded.rows - 1]
        z = normalise(embedded.vectors.astype(np.float64))
        at = np.array([self.place[row] for row in known])
        index, weight = neighbours(z[at], z, NEAREST, differ=(patients[at], patients))
        return {
            row: embedded.rows[found[voted > 0]].tolist()
            for row, found, voted in zip(known, index, weight, strict=True)
        }


def _of_target(
    found: Predicted, near: _Neighbours | None, evidence: Evidence, pictures: Pictures | None
) -> list[Block]:
    task = found.task
    errors = _errors(found, task)
    order = np.argsort(-errors, kind="stable")[:HARDEST].tolist()
    rows, pairs = found.rows[order].tolist(), found.later is not None
    alike = {} if near is None or pairs else near.of(rows)
    truth = dict(zip(found.rows.tolist(), found.y.tolist(), strict=True))
    lines = []
    for at, row in zip(order, rows, strict=True):
        said = [f"{other}{_truth(truth.get(other), task)}" for other in alike.get(row, [])]
        shown = f"{found.scores[at]:.2f}" if task == "classify" else f"{found.scores[at]:.4g}"
        named = f"{row}" if found.later is None else f"{row} and {found.later[at]}"
        lines.append([named, f"{found.y[at]:.4g}", shown, *([", ".join(said)] if alike else [])])
    other = "" if found.joined else ", of another table than the run's"
    head = [
        "Earlier and later row" if pairs else "Row",
        "Truth",
        "Probability of 1" if task == "classify" else "Prediction",
    ]
    head += ["Nearest rows of other patients (truth, of test rows)"] if alike else []
    blocks: list[Block] = [
        Heading(plain(found.target, 60)),
        Table(head, lines, f"The {len(lines)} hardest test {'pairs of rows' if pairs else 'rows'}{other}"),
    ]
    if pictures is not None and found.joined and not pairs:
        wanted = rows[:PICTURED]
        shown_of = pictures(evidence, [*wanted, *(other for row in wanted for other in alike.get(row, [])[:3])])
        if shown_of:
            beside = {row: alike.get(row, [])[:3] for row in wanted}
            blocks.append(Drawing(_sheet(beside, "near", shown_of)))
    return blocks


def _of_volumes(question: Question) -> list[Block]:
    """The test volumes of the lowest Dice, at the most labelled patients."""
    found = volumes_of(question)
    if found is None:
        return []
    cells = [decimals(each) for each in found.frame["dice"]]
    if found.unit:
        sizes = found.frame["size"]
        cells = [f"{cell} ({short(size)})" for cell, size in zip(cells, sizes, strict=True)]
    by_class = found.frame.assign(cell=cells).pivot(index="row", columns="class", values="cell").fillna("-")
    hardest = found.frame.groupby("row")["dice"].mean().sort_values(kind="stable").index[:HARDEST]
    lines = [[f"{row}", *by_class.loc[row, found.classes]] for row in hardest]
    size = f" (size, {found.unit})" if found.unit else ""
    head = ["Row of the first slice", *(f"Dice of class {plain(name, 30)}{size}" for name in found.classes)]
    return [Heading("Masks"), Table(head, lines, f"The {len(lines)} hardest test volumes")]


def _of_ranks(evidence: Evidence, question: Question, pictures: Pictures | None) -> list[Block]:
    """The images whose partner, the same patient's on the other side, was found last, direction by direction."""
    frame = question.table("ranks.parquet")
    blocks: list[Block] = []
    for direction, lines in [] if frame is None else list(frame.groupby("direction", sort=False))[:MOST]:
        own = lines[lines["encoder"] == question.encoder].sort_values("rank", ascending=False, kind="stable")
        twin = lines[lines["encoder"] == RANDOM].set_index("row")["rank"]
        number, first = len(own), int((own["rank"] == 1).sum())
        said = (
            f"Each of {counted(number, 'image')} is searched for its partner, the same patient's image on the other "
            f"side, which is the nearest for {first:,} of them. Its median rank is {own['rank'].median():g}, in a "
            f"random order {(number + 1) / 2:g}."
        )
        blocks += [Heading(plain(str(direction), 60)), Sentences([sentence(said)])]
        last = own[own["rank"] > 1].head(HARDEST)
        partners = dict(zip(last["row"].tolist(), last["partner_row"].tolist(), strict=True))
        if not partners:
            continue
        joined = is_joined(evidence, question, str(direction))
        rows = [
            [f"{row}", f"{partner}", f"{rank:g}", f"{twin[row]:g}" if row in twin.index else "-"]
            for (row, partner), rank in zip(partners.items(), last["rank"].tolist(), strict=True)
        ]
        other = "" if joined else ", of another table than the run's"
        head = ["Row", "Row of its partner", f"Rank of the partner among {number:,}", "Random-init"]
        blocks.append(Table(head, rows, f"The {len(rows)} images whose partner is found last{other}"))
        if pictures is not None and joined:
            wanted = list(partners)[:PICTURED]
            shown = pictures(evidence, [*wanted, *(partners[row] for row in wanted)])
            blocks += [Drawing(_sheet({row: [partners[row]] for row in wanted}, "partner", shown))] if shown else []
    return blocks


def _errors(found: Predicted, task: str) -> npt.NDArray[np.float64]:
    """How far off each prediction is: of a number its distance, of a class minus the log of what it was given."""
    if task == "regress":
        return np.asarray(np.abs(found.scores - found.y))
    given = np.where(found.y == 1, found.scores, 1 - found.scores)
    return np.asarray(-np.log(np.clip(given, 1e-12, 1)))


def _truth(value: float | None, task: str) -> str:
    return "" if value is None else f" ({value:.0f})" if task == "classify" else f" ({value:.4g})"


def _sheet(beside: dict[int, list[int]], name: str, pictures: dict[int, str]) -> Markup:
    """A line for each hard row: its picture, then those of the rows beside it, which `name` says what they are."""

    def picture(row: int, said: str) -> Markup | None:
        if row not in pictures:
            return None
        image = tag("img", src=pictures[row], alt=f"{said} {row}", width=96, height=96)
        return tag("figure", image, tag("figcaption", f"{said} {row}"))

    lines = [
        tag("li", picture(row, "row"), *(picture(other, f"{name}: row") for other in others))
        for row, others in beside.items()
    ]
    return tag("ul", *lines, class_="pictures")
