"""Cells that keep a metric in bootstrap draws say the same, compared later, as predictions compared at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bolus.evaluation.statistics.arms import compare_measured, measure_arms
from bolus.evaluation.statistics.metrics import auroc

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import judging

SEEDS = (0, 1, 2)


@pytest.fixture
def predictions() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], dict[str, list[np.ndarray[Any, Any]]]]:
    """300 samples of 200 patients, two arms with three seeds and one with two."""
    rng = np.random.default_rng(0)
    patients, y = rng.integers(200, size=300), rng.integers(2, size=300)
    quality = {"start": 0.5, "comprer": 0.9, "longer": 1.2}
    said = {arm: [y * gain + rng.normal(size=300) for _ in SEEDS] for arm, gain in quality.items()}
    said["longer"] = said["longer"][:2]
    return y, patients, said


def test_cells_compared_later_agree_with_predictions_compared_at_once(predictions: Any) -> None:
    y, patients, said = predictions
    facts = {"task": "classify", "target": "D", "metric": "auroc"}
    questions = {"D": judging.Question(facts, auroc, y, patients)}
    cells = [
        {"cell": {"arm": arm, "seed": seed}, "result": json.loads(json.dumps(judging.measure(questions, {"D": p})))}
        for arm, seeds in said.items()
        for seed, p in zip(SEEDS, seeds, strict=False)
    ]
    later = judging.compare_cells(questions, cells, order=[*said], others=["start"], seeds=SEEDS, facts={"cohort": "x"})
    measured = measure_arms(auroc, y, patients, said, draws=judging.KEPT_DRAWS)
    pairs: dict[str, Any] = {"pairs": [("comprer", "start")], "same_seed": [("longer", "start")]}
    at_once = compare_measured({"cohort": "x", **facts}, y, patients, measured, **pairs)
    assert [line.get("difference", line.get("arm")) for line in later] == [
        "start", "comprer", "longer", "comprer - start", "longer - start (seed 0, 1)"
    ]  # fmt: skip
    for line, other in zip(later, at_once, strict=True):
        assert line.keys() == other.keys() and line.get("verdict") == other.get("verdict")
        for key in ("estimate", "ci_low", "ci_high"):
            assert line[key] == pytest.approx(other[key], abs=2e-4)


def test_an_arm_counts_the_seeds_before_the_first_that_is_missing(predictions: Any) -> None:
    y, patients, said = predictions
    questions = {"D": judging.Question({"metric": "auroc"}, auroc, y, patients)}
    cells = [
        {"cell": {"arm": "start", "seed": seed}, "result": judging.measure(questions, {"D": said["start"][0]})}
        for seed in (0, 2)
    ]
    (line,) = judging.compare_cells(
        questions, cells, order=["start", "comprer"], others=["start"], seeds=SEEDS, facts={}
    )
    assert line["arm"] == "start" and line["seeds"] == 1
    assert judging.compare_cells(questions, [], order=["start"], others=["start"], seeds=SEEDS, facts={}) == []
