"""Runs against each other, on the same test samples, wherever they were asked the same question."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from bolus.ablation.comparison import Comparison, compare_cells
from bolus.ablation.wording import verdict
from bolus.evaluation.probing.answers import answers_of_probes
from bolus.evaluation.segmentation.answers import answers_of_volumes
from bolus.evaluation.statistics.answers import Answer
from bolus.evaluation.statistics.metrics import IntArray, higher_is_better, in_words, unit_of
from bolus.evaluation.statistics.results import decimals
from bolus.evaluation.statistics.verdict import after_holm
from bolus.reporting.blocks import Block, Figure, Missing, Sentences, sentence, standing_of
from bolus.reporting.charts.forest import Interval, draw_forest
from bolus.reporting.evidence import Evidence, Question
from bolus.reporting.sections.predictions.predicted import is_joined, patients_of
from bolus.reporting.wording import counted, plain

TASKS = ("classify", "regress", "change", "segment")
READING = (
    "Each run less the first, on the same test patients and by the same draws of them; right of 0 is better. Every "
    "run is one training: a difference between two runs may be one of seeds, which bolus ablate tells apart."
)


def against_each_other(evidence: list[Evidence]) -> list[Block]:
    """What the runs have been asked alike, compared pair by pair with the first; nothing of a single run."""
    if len(evidence) < 2:
        return []
    asked: dict[tuple[str, ...], dict[str, tuple[Evidence, Question]]] = {}
    for each in evidence:
        for question in each.asked(*TASKS) if each.cohort is not None else []:
            first = question.results[0]
            if all(is_joined(each, question, target) for target in question.targets):
                about = (first.task, first.target, first.split_hash, question.rows_hash)
                asked.setdefault(about, {}).setdefault(each.name, (each, question))
    alike = [found for found in asked.values() if len(found) > 1]
    if not alike:
        text = "No two of these runs were asked the same question on the same split, so they are not compared."
        return [Missing(text, evidence[0].question_to(evidence[1].place))]
    blocks: list[Block] = []
    for found in alike:
        blocks += _compared(found)
    return blocks


def _compared(found: dict[str, tuple[Evidence, Question]]) -> list[Block]:
    cells = {(name, 0): _answers(each, question) for name, (each, question) in found.items()}
    shared = min((len(answers) for answers in cells.values()), default=0)
    if not shared:
        return []
    (first, *_), names = compare_cells(cells, list(found)), list(found)
    corrected = first.corrected(names[1:])
    rows, said = [], []
    for series, name in enumerate(names):
        line = first.of(name)
        if line is None or line.difference is None:
            continue
        gap, sign = line.difference, 1.0 if higher_is_better(first.metric) else -1.0
        if None in (gap["estimate"], gap["ci_low"], gap["ci_high"]):
            continue
        low, high = sorted((sign * gap["ci_low"], sign * gap["ci_high"]))
        gain = sign * gap["estimate"]
        shown = f"{decimals(gain, '+')} [{decimals(low, '+')}, {decimals(high, '+')}]"
        tip = f"{name}: {_value(first, name)}"
        rows.append(Interval(f"{name} − {names[0]}", gain, low, high, tip, series, gap["detectable"], shown))
        text = verdict(line, after_holm(line.verdict, corrected[name], len(names) - 1))
        said.append(sentence(f"{plain(first.target, 60)}: {name} against {names[0]}: {text}", standing_of(text)))
    if not rows:
        return []
    unit = unit_of(first.metric)
    metric = in_words(first.metric) + (f" in {unit}" if unit else "")
    values = [
        Interval(name, *_numbers(first, name), f"{name}: {_value(first, name)}", series)
        for series, name in enumerate(names)
        if first.of(name) is not None
    ]
    patients = counted(first.lines[0].value["num_patients"], "test patient")
    title = f"{plain(first.target, 40)}: {metric}"
    panels = [
        draw_forest(values, title=title, x_name=metric),
        draw_forest(rows, title=f"Gain over {plain(names[0], 30)}", x_name=f"gain in {metric}", level=0.0,
                    sides=("worse", "better")),
    ]  # fmt: skip
    return [Sentences(said), Figure(f"Runs against each other, {patients}", panels, READING)]


def _answers(evidence: Evidence, question: Question) -> list[Answer]:
    first, codes = question.results[0], patients_of(evidence)

    def patient(rows: pd.Series[Any]) -> IntArray:
        return np.asarray(codes[rows.to_numpy(np.int64) - 1])

    if first.task == "segment":
        volumes = question.table("volumes.parquet")
        return [] if volumes is None else answers_of_volumes(volumes, patient, question.encoder)
    frame = question.predictions
    if frame is None or not (frame["fraction"] == 1.0).any():
        return []
    return answers_of_probes(frame, patient, question.encoder, task=first.task, target=first.target)


def _numbers(found: Comparison, name: str) -> tuple[float, float, float]:
    line = found.of(name)
    assert line is not None
    value, low, high = (line.value[key] for key in ("estimate", "ci_low", "ci_high"))
    return tuple(np.nan if each is None else float(each) for each in (value, low, high))  # type: ignore[return-value]


def _value(found: Comparison, name: str) -> str:
    value, low, high = _numbers(found, name)
    return f"{in_words(found.metric)} {decimals(value)} [{decimals(low)}, {decimals(high)}]"
