"""Where it fails: the test rows that a prediction missed by most, and what the encoder takes for their like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bolus.embedding.nearest import neighbours, normalise
from bolus.evaluation.statistics.results import decimals
from bolus.reporting.blocks import Block, Drawing, Heading, Missing, Section, Sentences, Table, sentence
from bolus.reporting.charts.marks import tag
from bolus.reporting.evidence import Evidence, Question
from bolus.reporting.sections.predictions.predicted import Predicted, each_predicted
from bolus.reporting.wording import plain

if TYPE_CHECKING:
    from markupsafe import Markup

HARDEST = 10  # of each target
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
    return Section(
        "failures",
        "Where it fails",
        "The test images whose prediction was farthest from the truth, by their row in the table.",
        by_run={each.name: _of_run(each, pictures) for each in evidence},
    )


def _of_run(evidence: Evidence, pictures: Pictures | None) -> list[Block]:
    blocks: list[Block] = []
    for each in each_predicted(evidence):
        blocks += _of_target(each, _Neighbours(evidence) if each.joined else None, evidence, pictures)
    for question in evidence.asked("segment"):
        blocks += _of_volumes(question)
    if not blocks:
        command = (
            f"bolus evaluate classify {evidence.place} {evidence.cohort_place} --target {evidence.target_example()}"
        )
        return [Missing("No evaluation of this run has written predictions, so that no case can be named.", command)]
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
    rows = found.rows[order].tolist()
    alike = {} if near is None else near.of(rows)
    truth = dict(zip(found.rows.tolist(), found.y.tolist(), strict=True))
    lines = []
    for at, row in zip(order, rows, strict=True):
        said = [f"{other}{_truth(truth.get(other), task)}" for other in alike.get(row, [])]
        shown = f"{found.scores[at]:.2f}" if task == "classify" else f"{found.scores[at]:.4g}"
        lines.append([f"{row}", f"{found.y[at]:.4g}", shown, *([", ".join(said)] if alike else [])])
    other = "" if found.joined else ", of another table than the run's"
    head = ["Row", "Truth", "Probability of 1" if task == "classify" else "Prediction"]
    head += ["Nearest rows of other patients (truth, of test rows)"] if alike else []
    blocks: list[Block] = [
        Heading(plain(found.target, 60)),
        Table(head, lines, f"The {len(lines)} hardest test rows{other}"),
    ]
    if pictures is not None and found.joined:
        wanted = rows[:PICTURED]
        shown_of = pictures(evidence, [*wanted, *(other for row in wanted for other in alike.get(row, [])[:3])])
        if shown_of:
            blocks.append(Drawing(_sheet(wanted, alike, shown_of)))
    return blocks


def _of_volumes(question: Question) -> list[Block]:
    """The test volumes of the lowest Dice, at the most labelled patients."""
    frame = question.table("volumes.parquet")
    if frame is None:
        return []
    frame = frame[
        (frame["encoder"] == question.encoder) & (frame["labelled_patients"] == frame["labelled_patients"].max())
    ]
    by_class = frame.pivot_table(index="row", columns="class", values="dice", aggfunc="mean", sort=False)
    hardest = by_class.loc[by_class.mean(axis=1).sort_values(kind="stable").index[:HARDEST]]
    lines = [[f"{row}", *(decimals(float(each)) for each in values)] for row, values in zip(
        hardest.index, hardest.to_numpy(), strict=True)]  # fmt: skip
    head = ["Row of the first slice", *(f"Dice of {plain(name, 30)}" for name in by_class.columns)]
    return [Heading("Masks"), Table(head, lines, f"The {len(lines)} hardest test volumes")]


def _errors(found: Predicted, task: str) -> npt.NDArray[np.float64]:
    """How far off each prediction is: of a number its distance, of a class minus the log of what it was given."""
    if task == "regress":
        return np.asarray(np.abs(found.scores - found.y))
    given = np.where(found.y == 1, found.scores, 1 - found.scores)
    return np.asarray(-np.log(np.clip(given, 1e-12, 1)))


def _truth(value: float | None, task: str) -> str:
    return "" if value is None else f" ({value:.0f})" if task == "classify" else f" ({value:.4g})"


def _sheet(rows: Sequence[int], alike: dict[int, list[int]], pictures: dict[int, str]) -> Markup:
    """A line for each hard row: its picture, then those of its nearest rows."""

    def picture(row: int, name: str) -> Markup | None:
        if row not in pictures:
            return None
        image = tag("img", src=pictures[row], alt=f"{name} {row}", width=96, height=96)
        return tag("figure", image, tag("figcaption", f"{name} {row}"))

    lines = [
        tag("li", picture(row, "row"), *(picture(other, "near: row") for other in alike.get(row, [])[:3]))
        for row in rows
    ]
    return tag("ul", *lines, class_="pictures")
