"""All arms and seeds on the same test samples: one line an arm, and its difference from the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from bolus.evaluation.statistics.answers import ARM, Answer
from bolus.evaluation.statistics.arms import compare_arms
from bolus.evaluation.statistics.intervals import holm
from bolus.evaluation.statistics.metrics import higher_is_better
from bolus.evaluation.statistics.results import MAJORITY, RANDOM, Result
from bolus.evaluation.statistics.verdict import DECIDED, THIS_TRAINING, too_few

RANDOM_INIT = "random init"

Cell = tuple[str, int]
"""An arm's name and a seed."""


@dataclass(frozen=True)
class Line:
    """One arm in one comparison.

    Args:
        arm: its name, `random init` or `majority`.
        value: as `compare_arms` gives it for an arm.
        difference: as it gives one for a pair, from the reference; None for the reference, and where there is none.
    """

    arm: str
    value: Mapping[str, Any]
    difference: Mapping[str, Any] | None = None

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `undecided` or `too few patients`; empty without a difference.

        Of one seed better and worse are said of this training.
        """
        if self.difference is None:
            return ""
        found = str(self.difference["verdict"])
        if found not in (DECIDED, THIS_TRAINING):
            return found
        up = self.difference["estimate"] > 0
        return "better" if up == higher_is_better(self.difference["metric"]) else "worse"


@dataclass(frozen=True)
class Comparison:
    """All arms by one metric of one target.

    Args:
        task: of the evaluation.
        target: what was predicted.
        metric: its name.
        probe: how it was read off the encoders.
        enough: test patients that decide whether anything can be decided.
        lines: of the arms in their order, then `random init` and the majority.
        facts: more that a reader must know, such as chance.
        notes: in sentences.
    """

    task: str
    target: str
    metric: str
    probe: str
    enough: int
    lines: tuple[Line, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def corrected(self, arms: Sequence[str]) -> dict[str, float]:
        """Arm -> the p value of its difference from the reference, by Holm over these arms; NaN where undefined."""
        gaps = {line.arm: line.difference for line in self.lines if line.arm in arms and line.difference}
        p_values = [math.nan if gap["p_value"] is None else float(gap["p_value"]) for gap in gaps.values()]
        return dict(zip(gaps, holm(p_values).tolist(), strict=True))

    @property
    def few(self) -> str:
        """Why nothing can be decided on these patients, or nothing."""
        rarer = " of the rarer class" if self.metric == "auroc" else ""
        return too_few(self.enough, f"test patients{rarer}")

    def of(self, arm: str) -> Line | None:
        """The line of an arm; None where none of its seeds was judged."""
        return next((line for line in self.lines if line.arm == arm), None)


def compare_cells(cells: Mapping[Cell, Sequence[Answer]], arms: Sequence[str]) -> list[Comparison]:
    """Compare the arms in everything that was asked of them, the metric averaged over seeds: see `compare_arms`.

    Differences are from the first arm, on the seeds that both have. `random init` is the twin of the first arm that has
    the seed, and so is the majority, which knows the labels of its seed's training patients only.

    Args:
        cells: (arm, seed) -> its answers; a cell that failed is absent.
        arms: in their order.

    Example:
        >>> import numpy as np
        >>> import pandas as pd
        >>> from bolus.evaluation.statistics.metrics import mae
        >>> y, keys = np.arange(40.0), pd.RangeIndex(40)
        >>> def cell(error: float) -> list[Answer]:
        ...     p = {"arm": y + error, "random-init": y + 9.0}
        ...     return [Answer("regress", "age", "mae", "linear", keys, y, np.arange(40), p, mae, 40)]
        >>> (found,) = compare_cells({("all", 0): cell(1.0), ("only a", 0): cell(2.0)}, ["all", "only a"])
        >>> [(line.arm, line.value["estimate"], line.verdict) for line in found.lines]
        [('all', 1.0, ''), ('only a', 2.0, 'worse'), ('random init', 9.0, 'worse')]
    """
    asked: dict[tuple[str, str, str, str], dict[Cell, Answer]] = {}
    for cell, answers in cells.items():
        for answer in answers:
            key = (answer.task, answer.target, answer.metric, answer.probe)
            asked.setdefault(key, {})[cell] = answer
    return [_compare(found, arms) for found in asked.values()]


def _compare(found: Mapping[Cell, Answer], arms: Sequence[str]) -> Comparison:
    """One comparison, from the answers of all cells to one question."""
    first = next(iter(found.values()))
    keys, notes = first.keys, []
    for answer in found.values():
        if not answer.keys.equals(keys):
            keys = keys[keys.isin(answer.keys)]
    lost = max(len(answer.keys) for answer in found.values()) - len(keys)
    if lost:
        notes.append(f"{lost} test samples were not judged in every arm and seed, and are left out")
    aligned = {cell: answer.on(keys) for cell, answer in found.items()}
    predictions: dict[str, dict[int, NDArray[Any]]] = {}
    for arm in arms:
        for (name, seed), answer in aligned.items():
            if name == arm:
                predictions.setdefault(arm, {})[seed] = answer.predictions[ARM]
    for shown, name in ((RANDOM_INIT, RANDOM), (MAJORITY, MAJORITY)):
        for arm in arms:  # of the first arm that has the seed
            for (other, seed), answer in aligned.items():
                if other == arm and name in answer.predictions:
                    predictions.setdefault(shown, {}).setdefault(seed, answer.predictions[name])
    about = next(iter(aligned.values()))
    facts = {"task": about.task, "target": about.target, "metric": about.metric, "probe": about.probe, **about.facts}
    values, differences = _lines(about, predictions, arms[0], facts)
    lines = [Line(arm, value, differences.get(arm)) for arm, value in values.items()]
    return Comparison(about.task, about.target, about.metric, about.probe, about.enough, tuple(lines), about.facts,
                      tuple(notes))  # fmt: skip


def _lines(
    about: Answer, predictions: Mapping[str, Mapping[int, NDArray[Any]]], reference: str, facts: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Arm -> its value, and arm -> its difference from the reference."""
    base = predictions.get(reference, {})
    paired = [arm for arm in predictions if arm not in (reference, MAJORITY) and base]
    values: dict[str, dict[str, Any]] = {}
    differences: dict[str, dict[str, Any]] = {}

    def run(of: Mapping[str, Sequence[int]], pairs: Sequence[str], whole: bool) -> None:
        chosen = {arm: [predictions[arm][seed] for seed in seeds] for arm, seeds in of.items()}
        lines = compare_arms(
            facts, about.measure, about.y, about.patients, chosen, pairs=[(arm, reference) for arm in pairs],
            enough=about.enough,
        )  # fmt: skip
        for line in lines:
            if "arm" in line and whole:
                values[line["arm"]] = line
        for arm, line in zip(pairs, [line for line in lines if "difference" in line], strict=True):
            differences[arm] = {**line, "arm": arm, "reference": reference, "of_seeds": list(of[arm])}

    same = [arm for arm in paired if sorted(predictions[arm]) == sorted(base)]
    run({arm: sorted(by_seed) for arm, by_seed in predictions.items()}, same, True)
    for arm in paired:
        common = sorted(set(predictions[arm]) & set(base))
        if arm not in same and common:
            run({arm: common, reference: common}, [arm], False)
    return values, differences


def results_of(comparisons: Sequence[Comparison], *, split_hash: str, recipe_hashes: Mapping[str, str]) -> list[Result]:
    """The lines as results, as every other evaluation writes them; `seed` is 0 where there are several.

    A difference that a sentence must not call decided says why in its notes, as `verdict.verdict_of` expects.

    Args:
        comparisons: as of `compare_cells`.
        split_hash: of the cohort that was judged on.
        recipe_hashes: arm -> its recipe's, whatever the seed.
    """
    found = []
    for each in comparisons:
        for line in each.lines:
            blank = Result(
                each.task, each.target, each.metric, math.nan, math.nan, math.nan, 0, 0,
                encoder=line.arm,
                split_hash=split_hash,
                recipe_hash=recipe_hashes.get(line.arm, ""),
                probe="none" if line.arm == MAJORITY else each.probe,
                labelled_patients=each.facts.get("labelled_patients"),
            )  # fmt: skip
            notes = (*each.notes, f"mean of {_seeds(line.value)}: {_by_seed(line.value)}")
            chance = each.facts.get("chance")
            found.append(replace(blank, **_numbers(line.value), notes=notes, chance=chance))
            gap = line.difference
            if gap is None:
                continue
            notes = (*each.notes, f"mean of {_seeds(gap)}: {_by_seed(gap)}")
            few = (each.few,) if each.few else ()
            given = {"baseline": gap["reference"], "detectable": gap["detectable"], "p_value": gap["p_value"]}
            found.append(replace(blank, **_numbers(gap), **given, notes=(*few, *notes)))
    return found


def _numbers(line: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: math.nan if line[key] is None else line[key] for key in ("estimate", "ci_low", "ci_high", "se")}
    return {**values, **{key: line[key] for key in ("num_samples", "num_patients", "seeds")}}


def _seeds(line: Mapping[str, Any]) -> str:
    return f"{line['seeds']} seed{'s' * (line['seeds'] != 1)}"


def _by_seed(line: Mapping[str, Any]) -> str:
    return ", ".join("-" if value is None else f"{value:g}" for value in line["by_seed"])
