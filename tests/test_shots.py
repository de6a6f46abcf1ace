"""Shot ranges: counts of the training rows decide, in bins of one width."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bolus.errors import EvaluationError
from bolus.evaluation.statistics.shots import default_width, shot_ranges


def ranges_by_loop(y, y_train, few, many, width):
    found = []
    for value in y:
        if math.isnan(value):
            found.append("")
            continue
        count = sum(
            1
            for other in y_train
            if not math.isnan(other) and math.floor(other / width + 1e-9) == math.floor(value / width + 1e-9)
        )
        found.append("many" if count > many else "few" if count < few else "medium")
    return found


@pytest.mark.parametrize("width", [0.5, 1.0, 7.0])
def test_ranges_equal_a_loop(width):
    r = np.random.default_rng(0)
    y_train, y = r.normal(10, 6, 400), r.normal(10, 9, 200)
    y_train[:5] = y[:5] = np.nan
    found = shot_ranges(y, y_train, shots=(5, 15), bin_width=width)
    assert found.tolist() == ranges_by_loop(y, y_train, 5, 15, width)
    assert {"", "few", "medium", "many"} >= set(found.tolist()) > {"", "few"}


def test_the_bounds_are_those_of_the_paper():
    y_train = np.repeat([1.0, 2.0, 3.0, 4.0], [101, 100, 20, 19])
    assert shot_ranges([1.0, 2.0, 3.0, 4.0, 5.0], y_train, bin_width=1).tolist() == [
        "many", "medium", "medium", "few", "few"
    ]  # fmt: skip


def test_labels_that_are_their_own_bins():
    y_train = np.repeat(np.arange(-5, 10), 3)
    assert default_width(y_train) == 1.0
    assert set(shot_ranges(np.arange(-5, 10), y_train, shots=(3, 3)).tolist()) == {"medium"}
    tenths = np.repeat(np.arange(1, 30) / 10, 3)  # 0.3 / 0.1 is a little below 3
    assert set(shot_ranges(tenths, tenths, shots=(3, 3), bin_width=0.1).tolist()) == {"medium"}


def test_the_width_follows_the_training_targets_only():
    ages, shares = np.arange(20.0, 80.0), np.linspace(0.2, 0.8, 300)
    assert default_width(ages) == 1.0
    assert default_width(shares) == pytest.approx(0.6 / 50)
    assert default_width([3.0] * 9) == default_width([]) == default_width([math.nan]) == 1.0
    assert default_width([0.0, 4.5, 9.0]) == pytest.approx(0.18), "three bins of width 1 are not enough"
    common = shot_ranges([0.5, 30.0], shares, shots=(2, 5))
    assert common.tolist() == ["many", "few"]


def test_nothing_to_count():
    assert shot_ranges([], [1.0]).tolist() == []
    assert shot_ranges([1.0], []).tolist() == ["few"]


@pytest.mark.parametrize("shots", [(100, 20), (0, 5)])
def test_shots_out_of_order_are_refused(shots):
    with pytest.raises(EvaluationError, match="1 <= few <= many"):
        shot_ranges([1.0], [1.0], shots=shots)


@pytest.mark.parametrize("width", [0.0, -1.0, math.nan])
def test_a_width_must_be_above_zero(width):
    with pytest.raises(EvaluationError, match="bin_width"):
        shot_ranges([1.0], [1.0], bin_width=width)
