"""Is it healthy: losses, geometry of the embeddings, conflicts, the online probe against the start."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bolus.reporting.blocks import CONCERN, GOOD, Block, Figure, Heading, Missing, Section, Sentences, Table, sentence
from bolus.reporting.charts.grid import draw_grid
from bolus.reporting.charts.lines import Curve, draw_curves
from bolus.reporting.charts.marks import legend
from bolus.reporting.evidence import Evidence
from bolus.reporting.wording import counted, plain

if TYPE_CHECKING:
    from markupsafe import Markup

MOST_POINTS = 160  # of a curve; more are averaged
LOSSES = (
    "Losses of different objectives have different scales and cannot be compared with each other. A falling loss "
    "shows that the objective is learnt, not that the encoder is useful: that is what the tests below say. Curves are"
    " means between two lines of metrics.jsonl."
)
GEOMETRY = (
    "Measured on validation patients. Spread near 0 means that all images look alike to the encoder (collapse); the "
    "effective rank is the number of directions that embeddings use, and more is not always better. The online probe "
    "asks neighbours among other validation patients; its few patients make it jump, so read its trend, not a step."
)
CONFLICTS = (
    "Mean cosine between the gradients of two objectives: below 0 they pull the encoder apart, near 1 they ask for "
    "the same. A little below 0 is common and harmless."
)
NAMES = {"spread": "Spread of embeddings, 0 to 1", "effective_rank": "Effective rank, directions",
         "uniformity": "Uniformity, lower is more even", "alignment": "Alignment of two views, 0 is equal"}  # fmt: skip


def health(evidence: list[Evidence]) -> Section:
    """The section of all runs, whose curves share their charts."""
    section = Section("health", "Is it healthy", "Whether the training did what it should, in words and in curves.")
    words: dict[str, Sequence[Block]] = {each.name: _words(each) for each in evidence}
    return Section(section.key, section.title, section.lead, _curves(evidence), words)


def concerns(evidence: Evidence) -> list[str]:
    """The sentences of the last look that give cause for concern."""
    last = evidence.looks[-1]["findings"] if evidence.looks else []
    return [each["sentence"] for each in last if not each["good"]]


def _words(evidence: Evidence) -> list[Block]:
    record = evidence.run.record
    status = {
        "finished": "finished",
        "stopped": "stopped before its end",
        "interrupted": "was interrupted",
        "running": "has not ended",
    }
    trained = [line for line in evidence.metrics if line["kind"] == "train"]
    said = f"The training {status.get(evidence.run.status, evidence.run.status)}"
    said += (
        f" at step {trained[-1]['step']:,} (epoch {trained[-1]['epoch']:g})"
        if trained
        else " without a line of metrics"
    )
    said += f" after {_time(record['hours'])}." if "hours" in record else "."
    items = [sentence(said)]
    if trained:
        speed = float(np.median([line["images_per_second"] for line in trained]))
        wait = 100 * float(np.median([line["data_wait"] for line in trained]))
        items.append(
            sentence(f"It saw {speed:,.0f} images a second (median) and waited for data {wait:.1f} % of the time.")
        )
    if not evidence.looks:
        return [
            Sentences(items),
            Missing("The run has not looked at its health yet.", f"bolus pretrain {evidence.cohort_place} --recipe "
                    f"{evidence.place}/recipe.yaml --out {evidence.place} --resume"),
        ]  # fmt: skip
    last = evidence.looks[-1]
    found = sorted(last["findings"], key=lambda each: bool(each["good"]))
    items += [sentence(each["sentence"], GOOD if each["good"] else CONCERN) for each in found]
    return [Heading(f"Last look, at step {last['step']:,}"), Sentences(items)]


def _time(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min" if hours >= 1 / 60 else f"{3600 * hours:.0f} s"


def _curves(evidence: list[Evidence]) -> list[Block]:
    key = legend([(each.name, at) for at, each in enumerate(evidence)]) if len(evidence) > 1 else None
    blocks: list[Block] = []
    losses = _losses(evidence)
    if losses:
        table = Table(
            ["Run and objective", "First line", "Last line"], _ends(evidence), "Losses in numbers", folded=True
        )
        blocks.append(Figure("Losses, by step", losses, LOSSES, key, table))
    looks = _looks(evidence) if max(len(each.looks) for each in evidence) > 1 else []  # the words say all of one look
    if looks:
        blocks.append(Figure("What the embeddings do, by step", looks, GEOMETRY, key, _looks_table(evidence)))
    grids = [grid for each in evidence for grid in _conflicts(each, len(evidence) > 1)]
    if grids:
        blocks.append(Figure("How the objectives stand to each other", grids, CONFLICTS))
    return blocks


def _losses(evidence: list[Evidence]) -> list[Markup]:
    names = list(dict.fromkeys(name for each in evidence for name in _objectives(each)))
    panels = []
    for name in names:
        curves = []
        for series, each in enumerate(evidence):
            lines = [line for line in each.metrics if line["kind"] == "train" and name in line["losses"]]
            points = _thinned([(line["step"], _number(line["losses"][name])) for line in lines])
            if points:
                curves.append(Curve(each.name, series, points))
        panels.append(draw_curves(curves, title=f"Loss of {plain(name, 30)}", x_name="step"))
    return panels


def _objectives(evidence: Evidence) -> list[str]:
    return next((list(line["losses"]) for line in evidence.metrics if line["kind"] == "train"), [])


def _ends(evidence: list[Evidence]) -> list[list[str]]:
    rows = []
    for each in evidence:
        lines = [line for line in each.metrics if line["kind"] == "train"]
        for name in _objectives(each):
            ends = [f"{_number(line['losses'][name]):.4g}" for line in (lines[0], lines[-1])]
            rows.append([f"{each.name}: {plain(name, 30)}", *ends])
    return rows


def _measures(evidence: Evidence) -> dict[str, list[tuple[float, float]]]:
    """Measure -> (step, value) of every look; of conflicts and idle objectives the sentences say all."""
    found: dict[str, list[tuple[float, float]]] = {}
    for look in evidence.looks:
        for each in look["findings"]:
            if each["name"] in NAMES or each["name"].startswith("knn "):
                found.setdefault(each["name"], []).append((look["step"], _number(each["value"])))
    return found


def _looks(evidence: list[Evidence]) -> list[Markup]:
    measured = [_measures(each) for each in evidence]
    panels = []
    for name in dict.fromkeys(name for each in measured for name in each):
        curves = [
            Curve(each.name, series, found[name])
            for series, (each, found) in enumerate(zip(evidence, measured, strict=True))
            if name in found
        ]
        probe = name.startswith("knn ")
        title = f"Online probe of {plain(name.removeprefix('knn '), 30)}" if probe else NAMES[name]
        chance = (0.5, "chance") if probe and "label:" in name else (0.0, "chance") if probe else None
        panels.append(draw_curves(curves, title=title, x_name="step", level=chance))
    gains = []
    for series, each in enumerate(evidence):
        lines = [look for look in each.looks if "difference" in look.get("start", {})]
        if lines:
            points = [(look["step"], _number(look["start"]["difference"])) for look in lines]
            ends = [(_number(look["start"]["low"]), _number(look["start"]["high"])) for look in lines]
            gains.append(Curve(each.name, series, points, ends))
    if gains:
        panels.append(
            draw_curves(gains, title="Online probe, gain over the start", x_name="step", level=(0.0, "the start"))
        )
    return panels


def _looks_table(evidence: list[Evidence]) -> Table:
    rows = [
        [f"{each.name}: {plain(name, 30)}", f"{step:,}", f"{value:.4g}"]
        for each in evidence
        for name, points in _measures(each).items()
        for step, value in points
    ]
    return Table(["Run and measure", "Step", "Value"], rows, "Looks in numbers", folded=True)


def _conflicts(evidence: Evidence, named: bool) -> list[Markup]:
    lines = [line for line in evidence.metrics if line["kind"] == "conflicts"]
    if not lines or len(lines[0]["objectives"]) < 2:
        return []
    names = lines[0]["objectives"]
    cosines = np.array([line["cosines"] for line in lines if line["objectives"] == names], np.float64)
    known = np.isfinite(cosines)
    mean = np.divide(np.where(known, cosines, 0).sum(0), known.sum(0), out=np.full(cosines.shape[1:], np.nan),
                     where=known.sum(0) > 0)  # fmt: skip
    title = f"{evidence.name}, " if named else ""
    title += f"mean cosine of {counted(len(lines), 'look')}"
    return [draw_grid(mean, [plain(name, 18) for name in names], title=title)]


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """So many points at most, each the mean of its neighbours."""
    finite = [point for point in points if math.isfinite(point[1])]
    if len(finite) <= MOST_POINTS:
        return finite
    parts = np.array_split(np.array(finite), MOST_POINTS)
    return [(float(round(part[:, 0].mean())), float(part[:, 1].mean())) for part in parts]


def _number(value: Any) -> float:
    """A number of a line of JSON, NaN for null."""
    return math.nan if value is None else float(value)


def status_of(record: Mapping[str, Any]) -> str:
    """How a run stands, in a word or two."""
    return {"finished": "finished", "stopped": "stopped early", "interrupted": "interrupted"}.get(
        str(record["status"]), "training"
    )
