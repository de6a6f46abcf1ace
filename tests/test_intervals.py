"""What the patient bootstrap promises: whole patients, paired draws, coverage, NaN where nothing can be said."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.random import mtrand
from scipy import stats

from bolus.errors import EvaluationError
from bolus.evaluation.intervals import (
    Estimate,
    bootstrap_blocks,
    cluster_codes,
    detectable_difference,
    estimate,
    paired_difference,
    patient_bootstrap,
)
from bolus.evaluation.metrics import METRICS, auroc, mae


def test_patients_must_be_one_code_a_row():
    with pytest.raises(EvaluationError, match="one code a row"):
        cluster_codes([[1, 2]])


def test_whole_patients_are_resampled():
    patients = np.array([5, 5, 5, 9, -1, -1, 2, 2])
    weights = patient_bootstrap(patients, draws=200, seed=3)
    assert weights.shape == (200, 8)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 1] == weights[:, 2]).all()
    assert (weights[:, 6] == weights[:, 7]).all()
    assert (weights[:, 4] != weights[:, 5]).any()  # a missing patient equals nothing
    assert (weights[:, [0, 3, 4, 5, 6]].sum(1) == 5).all()
    assert weights.mean() == pytest.approx(1.0, abs=0.1)
    assert np.array_equal(weights, patient_bootstrap(patients, draws=200, seed=3))
    assert not np.array_equal(weights, patient_bootstrap(patients, draws=200, seed=4))


@pytest.mark.parametrize("block_size", [1, 7, 100, 10_000])
def test_blocks_do_not_change_the_draws(block_size):
    patients = np.repeat(np.arange(9), 3)
    blocks = bootstrap_blocks(patients, draws=50, seed=1, block_size=block_size)
    assert np.array_equal(np.concatenate(list(blocks)), patient_bootstrap(patients, draws=50, seed=1))


def test_bootstrap_leaves_the_global_generator_alone():
    before = mtrand.get_state()[1].copy()
    patient_bootstrap([0, 1, 2], draws=10, seed=0)
    assert np.array_equal(before, mtrand.get_state()[1])


def clustered(seed: int, num_patients: int = 60, images: int = 8):
    """A target and a score that are both patient-level but for a little noise."""
    r = np.random.default_rng(seed)
    patients = np.repeat(np.arange(num_patients), images)
    sick = r.integers(0, 2, num_patients)
    score = 1.0 * sick + r.normal(size=num_patients)
    return sick[patients], score[patients] + 0.2 * r.normal(size=len(patients)), patients


def test_patient_interval_is_wider_than_the_independent_one_and_covers():
    truth = stats.norm.cdf(1 / np.sqrt(2 * 1.04))
    covered, covered_iid = 0, 0
    for seed in range(60):
        y, p, patients = clustered(seed)
        found = estimate(auroc, y, p, patients, draws=300, seed=seed)
        naive = estimate(auroc, y, p, np.arange(len(y)), draws=300, seed=seed)
        assert found.value == naive.value
        assert found.se > 1.8 * naive.se  # sqrt(8) = 2.8 for perfectly dependent images
        assert (found.num_samples, found.num_patients) == (480, 60)
        covered += found.low <= truth <= found.high
        covered_iid += naive.low <= truth <= naive.high
    assert covered >= 51  # 95 % of 60 is 57
    assert covered_iid <= 45


def test_standard_error_of_a_mean():
    r = np.random.default_rng(0)
    y = r.normal(size=400)
    found = estimate(mae, y, np.zeros(400), np.arange(400), draws=4000, seed=0)
    assert found.se == pytest.approx(np.abs(y).std() / 20, rel=0.06)
    assert found.high - found.low == pytest.approx(2 * 1.96 * found.se, rel=0.06)


@pytest.mark.parametrize(("group", "name"), [(group, name) for group, table in METRICS.items() for name in table])
def test_difference_of_identical_predictions_is_exactly_zero(group, name):
    r = np.random.default_rng(2)
    y = r.normal(size=60) if group == "regress" else np.arange(60) % (2 if group == "binary" else 3)
    p = r.dirichlet(np.ones(3), size=60) if group == "multiclass" else r.random(60)
    found = paired_difference(METRICS[group][name], y, p, p.copy(), np.arange(60) // 2, draws=100, seed=0)
    assert (found.value, found.low, found.high, found.se) == (0.0, 0.0, 0.0, 0.0)


def test_paired_difference_is_on_the_same_draws():
    r = np.random.default_rng(0)
    y, p, patients = clustered(1)
    near = p + 0.01 * r.normal(size=len(p))
    paired = paired_difference(auroc, y, p, near, patients, draws=300, seed=0)
    weights = patient_bootstrap(patients, draws=300, seed=0)
    by_hand = auroc(y, p, weights) - auroc(y, near, weights)
    assert paired.se == pytest.approx(by_hand.std(ddof=1))
    assert paired.low == pytest.approx(np.percentile(by_hand, 2.5))
    assert paired.value == pytest.approx(auroc(y, p) - auroc(y, near))
    assert paired.se < 0.1 * estimate(auroc, y, p, patients, draws=300, seed=0).se


def test_interval_is_nan_when_most_draws_are_undefined():
    y = np.array([1] + [0] * 30)
    p = np.linspace(1, 0, 31)
    rare = estimate(auroc, y, p, np.arange(31), draws=400, seed=0)  # a draw misses the only positive in 36 %
    assert np.isfinite([rare.low, rare.high, rare.se]).all()
    three = Estimate.from_draws(0.5, [0.4, np.nan, np.nan], [0, 1])
    assert np.isnan([three.low, three.high, three.se]).all()
    assert three.value == 0.5
    half = Estimate.from_draws(0.5, [0.4, 0.6, np.nan, np.nan], [0, 1])
    assert np.isfinite([half.low, half.high]).all()
    lone = estimate(mae, [1.0, 2.0], [1.0, 1.0], [4, 4], draws=50, seed=0)
    assert lone.value == 0.5
    assert np.isnan(lone.low)  # one patient says nothing about others
    never = estimate(auroc, [0, 0], [0.1, 0.2], [0, 1], draws=50, seed=0)
    assert np.isnan([never.value, never.low, never.se]).all()


def test_detectable_difference_is_found_in_80_percent_of_studies():
    r = np.random.default_rng(0)
    truth = detectable_difference(1.0)
    found = np.abs(truth + r.normal(size=100_000)) > 1.96
    assert found.mean() == pytest.approx(0.80, abs=0.005)
