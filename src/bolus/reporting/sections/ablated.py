"""What an ablation found: its sentences, and each arm beside the first."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from bolus.ablation.comparison import RANDOM_INIT
from bolus.errors import BolusError
from bolus.evaluation.statistics.results import MAJORITY, RANDOM, Result, decimals, read_results
from bolus.reporting.blocks import CONCERN, GOOD, HINT, OPEN, PLAIN, Block, Figure, Section, Sentences, Table, sentence
from bolus.reporting.charts.forest import Interval, draw_forest
from bolus.reporting.sections.verdicts import SERIES, as_gain, measure
from bolus.reporting.wording import counted, plain

READING = (
    "Each arm less the first, of as many encoder passes and the same seeds; right of 0 is better. Intervals count the"
    " chance of patients and, with several seeds, that of training. Whoever chooses an arm by its test result has "
    "used the test patients up."
)
STATES = {
    "earns its place": GOOD,
    "harms": CONCERN,
    "undecided": OPEN,
    "could go": OPEN,
    "nothing can be decided": OPEN,
}


def ablated(place: Path) -> Section:
    """The section of an ablation.

    Args:
        place: its folder, or ablation.json in it.

    Raises:
        BolusError: no ablation there, or one that is damaged.
        EvaluationError: its results cannot be read.
    """
    folder = place.parent if place.name == "ablation.json" else place
    path = folder / "ablation.json"
    if not path.is_file():
        raise BolusError(
            f"no ablation in {folder.name}: expected ablation.json there, which bolus ablate writes at its end"
        )
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        asked = plain(about["question"], 100)
        lead = f"{asked[:1].upper()}{asked[1:]}, on {about['on']}: {counted(len(about['arms']), 'arm')}, "
        lead += f"{counted(len(about['seeds']), 'seed')}, {about['passes']:,} encoder passes each."
        failed = [f"{plain(arm, 60)}: {why}" for arm, why in about["failed"].items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BolusError(f"{folder.name}/ablation.json: damaged: {type(error).__name__}") from error
    results = read_results(folder / "results.jsonl")
    said = [*_sentences(folder / "table.txt"), *failed]
    items = [sentence(each, _state(each)) for each in said]
    blocks: list[Block] = [Sentences(items), *_figures(results)]
    return Section("ablation", "What each part is worth", lead, blocks)


def _state(said: str) -> str:
    """How a sentence of an ablation stands; what Holm's correction left as a hint is open."""
    if HINT in said:
        return OPEN
    return next((state for word, state in STATES.items() if word in said), PLAIN)


def _sentences(path: Path) -> list[str]:
    """The sentences below the table that the ablation wrote."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [line.removeprefix("- ") for line in lines if line.startswith("- ")]


def _figures(results: list[Result]) -> list[Block]:
    if not results:
        return []
    first = results[0]
    alike = [r for r in results if (r.target, r.metric) == (first.target, first.metric)]
    values, gains, rows = [], [], []
    for name in dict.fromkeys(r.encoder for r in alike):
        series = {RANDOM_INIT: SERIES[RANDOM], MAJORITY: SERIES[MAJORITY]}.get(name, 0)  # arms go by their names
        for r in (r for r in alike if r.encoder == name):
            seeds = f"{measure(r)} {r.interval}; {counted(r.seeds, 'seed')}, {counted(r.num_patients, 'patient')}"
            if r.baseline and math.isfinite(r.estimate):
                value, low, high = as_gain(r)
                shown = f"{decimals(value, '+')} [{decimals(low, '+')}, {decimals(high, '+')}]"
                gains.append(
                    Interval(plain(name, 30), value, low, high, f"{name}: {seeds}", series, r.detectable, shown)
                )
            elif not r.baseline:
                values.append(Interval(plain(name, 30), r.estimate, r.ci_low, r.ci_high, f"{name}: {seeds}", series))
            less = f" − {r.baseline}" if r.baseline else ""
            rows.append([plain(name, 60) + less, measure(r), r.interval, decimals(r.detectable), f"{r.seeds}"])
    panels = [draw_forest(values, title=f"{plain(first.target, 40)}: {measure(first)}", x_name=measure(first))]
    if gains:
        reference = next(r.baseline for r in alike if r.baseline)
        panels.append(draw_forest(gains, title=f"Gain over {plain(reference, 30)}", x_name=f"gain in {measure(first)}",
                                  level=0.0, sides=("worse", "better")))  # fmt: skip
    head = ["Arm", "Metric", "Estimate [95 % interval]", "Detectable", "Seeds"]
    return [Figure("Arms", panels, READING, table=Table(head, rows, "Arms in numbers", folded=True))]
