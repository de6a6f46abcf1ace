"""Does it help: the metric by share of the labels, differences from what stands beside it, runs against each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bolus.evaluation.statistics.metrics import higher_is_better
from bolus.evaluation.statistics.results import Result, decimals
from bolus.evaluation.statistics.verdict import leading
from bolus.reporting.blocks import Block, Figure, Heading, Missing, Section, Sentences, Table, sentence, standing_of
from bolus.reporting.charts.forest import Interval, draw_forest
from bolus.reporting.charts.lines import Curve, draw_curves
from bolus.reporting.charts.marks import legend
from bolus.reporting.evidence import Evidence, Question
from bolus.reporting.sections.against import against_each_other
from bolus.reporting.sections.verdicts import AUDIT, SERIES, as_gain, measure, named, series_of, values_of, verdicts
from bolus.reporting.wording import counted, joined, plain

if TYPE_CHECKING:
    from markupsafe import Markup

MOST_TARGETS = 8  # of one evaluation that have a chart of their own
VALUES = (
    "Every estimate is on test patients, with a 95 % interval over patients (and over draws of labels where there are"
    " several). Random-init is the same architecture untrained: what pixels alone give away. Do not compare two "
    "encoders by whether their intervals overlap; the differences below are paired and say more."
)
FOREST = (
    "Gains are the run less each of the others, on the same test patients; right of 0 is better. The shaded band is "
    "the smallest difference that this test set would find with 80 % power: an interval within it decides nothing, "
    "and is no proof of equality either. One training was judged; another seed may differ."
)


def benefit(evidence: list[Evidence]) -> Section:
    """The section of all runs."""
    return Section(
        "benefit",
        "Does it help",
        "Whether what is read off the encoder beats what it began with, untrained weights, and no image at all.",
        against_each_other(evidence),
        {each.name: _of_run(each) for each in evidence},
        together_first=True,
    )


def _of_run(evidence: Evidence) -> list[Block]:
    asked = [each for each in evidence.questions if each.task != AUDIT]
    if not asked:
        return [Missing("No question has been asked of this encoder yet.", evidence.first_question)]
    blocks: list[Block] = []
    for question in asked:
        blocks += _of_question(question)
    return blocks


def _of_question(question: Question) -> list[Block]:
    others = baselines_of(question.results)
    said = verdicts(question)
    first = question.results[0]
    about = f"{counted(first.num_patients, 'test patient')}, {counted(first.num_samples, 'sample')}"
    if first.num_positive_patients is not None:
        about += f", {counted(first.num_positive_patients, 'positive patient')}"
    shares = sorted({each.fraction for each in question.results})
    about += f"; {_shares(shares)} of the labels" if shares != [1.0] and first.labelled_patients is None else ""
    blocks: list[Block] = [
        Heading(f"{first.task.capitalize()}: {plain(question.targets[0], 60)}{_more(question)}{_probes(question)}"),
        Sentences([sentence(f"{about}."), *(sentence(f"{v.target}: {v.text}", standing_of(v.text)) for v in said)]),
    ]
    panels = [_values(question.of(target), others) for target in question.targets[:MOST_TARGETS]]
    forests = _forests(question, others)
    title, reading = ("Estimates and differences", f"{VALUES} {FOREST}") if forests else ("Estimates", VALUES)
    blocks.append(Figure(title, [*panels, *forests], reading, _legend(question, others), _table(question)))
    if question.notes:
        notes = [[note] for note in (plain(each, 400) for each in question.notes)]
        blocks.append(Table(["What a reader must know"], notes, counted(len(notes), "note"), folded=True))
    return blocks


def baselines_of(results: Sequence[Result]) -> list[str]:
    """Encoders beside the judged one that are neither start, random weights nor majority, in their order."""
    named = dict.fromkeys(each.encoder for each in results)
    return [name for name in named if name not in SERIES and name != results[0].encoder]


def _more(question: Question) -> str:
    more = len(question.targets) - 1
    return f" and {counted(more, 'more target')}" if more else ""


def _probes(question: Question) -> str:
    probes = [name for name in dict.fromkeys(each.probe for each in question.results) if name not in ("", "none")]
    return f", by {joined(probes)}" if probes else ""


def _shares(shares: Sequence[float]) -> str:
    return ", ".join(f"{100 * each:.3g} %" for each in shares)


def _legend(question: Question, others: Sequence[str]) -> Markup:
    shown = dict.fromkeys(each.encoder for target in question.targets for each in values_of(question.of(target)))
    return legend([(name, series_of(name, others)) for name in shown])


def _values(results: Sequence[Result], others: Sequence[str]) -> Markup:
    """The estimates of one target: curves over shares of the labels, or one below the other."""
    found = values_of(results)
    by_encoder: dict[str, list[Result]] = {}
    for each in found:
        by_encoder.setdefault(each.encoder, []).append(each)
    better = "" if higher_is_better(found[0].metric) else ", lower is better"
    title = f"{plain(found[0].target, 40)}: {measure(found[0])}{better}"
    if max(map(len, by_encoder.values())) == 1:
        rows = [
            Interval(name, each.estimate, each.ci_low, each.ci_high, tip(each), series_of(name, others))
            for name, (each, *_) in by_encoder.items()
        ]
        return draw_forest(rows, title=title, x_name=measure(found[0]))
    few = found[0].labelled_patients is not None
    curves = []
    for name, lines in by_encoder.items():
        lines = sorted(lines, key=lambda each: each.fraction)
        places = [float(each.labelled_patients or 0) if few else 100 * each.fraction for each in lines]
        points = [(place, each.estimate) for place, each in zip(places, lines, strict=True)]
        ends = [(each.ci_low, each.ci_high) for each in lines]
        curves.append(Curve(name, series_of(name, others), points, ends, [tip(each) for each in lines]))
    marks = sorted({place for curve in curves for place, _ in curve.points})
    x_name = "labelled training patients" if few else "labels of training patients, %"
    return draw_curves(
        curves, title=title, x_name=x_name, logarithmic=True, x_ticks=[(each, f"{each:.3g}") for each in marks]
    )


def tip(result: Result) -> str:
    """What is said of an estimate or difference where a pointer rests on it."""
    beside = f" less {result.baseline}" if result.baseline else ""
    few = result.labelled_patients
    labels = (
        f", {counted(few, 'labelled patient')}" if few is not None else f", {100 * result.fraction:.3g} % of labels"
    )
    patients = counted(result.num_patients, "patient")
    return f"{result.encoder}{beside}: {measure(result)} {result.interval}; {patients}{labels}"


def _forests(question: Question, others: Sequence[str]) -> list[Markup]:
    """Differences by metric, as units differ: of one target, or of several from each baseline by itself."""
    shown = [
        each
        for target in question.targets
        for each in leading(question.of(target))
        if each.baseline and each.probe == question.of(target)[0].probe
    ]
    by_metric: dict[str, list[Result]] = {}
    for each in shown:
        by_metric.setdefault(measure(each), []).append(each)
    panels = []
    for metric, results in by_metric.items():
        several = len({each.target for each in results}) > 1
        for other in dict.fromkeys(each.baseline for each in results) if several else [""]:
            rows = [_gain(each, others, several) for each in results if other in ("", each.baseline)]
            of = "" if several or len(by_metric) == 1 else f" for {plain(results[0].target, 40)}"
            over = f" over {plain(other, 40)}" if other else ""
            panels.append(
                draw_forest(rows, title=f"Gain in {metric}{over}{of}", x_name=f"gain in {metric}", level=0.0,
                            sides=("worse", "better"))
            )  # fmt: skip
    return panels


def _gain(result: Result, others: Sequence[str], several: bool) -> Interval:
    value, low, high = as_gain(result)
    name = plain(result.target, 40) if several else f"− {result.baseline}"
    shown = f"{decimals(value, '+')} [{decimals(low, '+')}, {decimals(high, '+')}]"
    series = series_of(result.baseline, others)
    return Interval(name, value, low, high, tip(result), series, result.detectable, shown)


def _table(question: Question) -> Table:
    """Every metric on all test samples."""
    rows = []
    for each in question.results:
        if not each.subset:
            less = f"{each.encoder} − {each.baseline}" if each.baseline else each.encoder
            rows.append([named(each), plain(less, 60), measure(each), f"{100 * each.fraction:.3g} %", each.interval,
                         decimals(each.detectable), f"{each.num_patients:,}"])  # fmt: skip
    head = ["Target", "Encoder", "Metric", "Labels", "Estimate [95 % interval]", "Detectable", "Patients"]
    return Table(head, rows, "All metrics and differences in numbers", folded=True)
