"""Metrics against scikit-learn and scipy, and weights against repeated rows."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from bolus.errors import EvaluationError
from bolus.evaluation.statistics import metrics as m


def sensitivity_by_curve(y, p, specificity=0.9):
    false_alarms, sensitivity, _ = sk.roc_curve(y, p, drop_intermediate=False)
    return sensitivity[false_alarms <= 1 - specificity + 1e-12].max()


def geometric_mean_by_loop(y, p):
    product = 1.0
    for a, b in zip(y, p, strict=True):
        product *= max(abs(a - b), 1e-6) ** (1 / len(y))
    return product


def concordance_by_loop(y, p):
    n, mean_y, mean_p = len(y), sum(y) / len(y), sum(p) / len(y)
    spread_y = sum((a - mean_y) ** 2 for a in y) / n
    spread_p = sum((b - mean_p) ** 2 for b in p) / n
    together = sum((a - mean_y) * (b - mean_p) for a, b in zip(y, p, strict=True)) / n
    return 2 * together / (spread_y + spread_p + (mean_y - mean_p) ** 2)


BINARY = {
    "auroc": sk.roc_auc_score,
    "average_precision": sk.average_precision_score,
    "balanced_accuracy": lambda y, p: sk.balanced_accuracy_score(y, p > 0.5),
    "sensitivity_at_specificity": sensitivity_by_curve,
    "brier": sk.brier_score_loss,
}
MULTICLASS = {
    "balanced_accuracy": lambda y, p: sk.balanced_accuracy_score(y, p.argmax(1)),
    "macro_auroc": lambda y, p: sk.roc_auc_score(y, p, multi_class="ovr", average="macro"),
    "accuracy": lambda y, p: sk.accuracy_score(y, p.argmax(1)),
    "macro_f1": lambda y, p: sk.f1_score(y, p.argmax(1), average="macro", zero_division=0),
}
REGRESS = {
    "mae": sk.mean_absolute_error,
    "mse": sk.mean_squared_error,
    "r2": sk.r2_score,
    "spearman": lambda y, p: stats.spearmanr(y, p).statistic,
    "pearson": lambda y, p: stats.pearsonr(y, p).statistic,
    "gm": geometric_mean_by_loop,
    "ccc": concordance_by_loop,
}
ORACLES = {"binary": BINARY, "multiclass": MULTICLASS, "regress": REGRESS}
CASES = [(group, name) for group, oracles in ORACLES.items() for name in oracles]


def made_up(group: str, seed: int, n: int = 60):
    """Targets and predictions with ties."""
    r = np.random.default_rng(seed)
    if group == "binary":
        y = r.integers(0, 2, n)
        return y, np.clip(np.round(0.3 * y + r.random(n) * 0.7, 1), 0, 1)
    if group == "multiclass":
        y = np.arange(n) % 4
        p = np.round(r.random((n, 4)) + 0.4 * np.eye(4)[y], 1) + 0.05
        return y, p / p.sum(1, keepdims=True)
    y = np.round(r.normal(50, 10, n))
    return y, np.round(y + r.normal(0, 8, n))


def test_every_metric_has_an_oracle_and_a_direction():
    assert {group: set(table) for group, table in m.METRICS.items()} == {g: set(o) for g, o in ORACLES.items()}
    worse_when_larger = {"brier", "mae", "mse", "gm"}
    for table in m.METRICS.values():
        for name in table:
            assert m.higher_is_better(name) == (name not in worse_when_larger)
    with pytest.raises(EvaluationError, match="did you mean 'auroc'"):
        m.higher_is_better("aurocc")


@pytest.mark.parametrize(("group", "name"), CASES)
def test_values_equal_the_oracle(group, name):
    for seed in range(5):
        y, p = made_up(group, seed)
        assert m.METRICS[group][name](y, p) == pytest.approx(ORACLES[group][name](y, p), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize(("group", "name"), CASES)
def test_weights_equal_repeated_rows(group, name):
    y, p = made_up(group, 7)
    weights = np.random.default_rng(1).integers(0, 4, size=(12, len(y)))
    found = m.METRICS[group][name](y, p, weights)
    assert found.shape == (12,)
    for value, counts in zip(found, weights, strict=True):
        rows = np.repeat(np.arange(len(y)), counts)
        assert value == pytest.approx(ORACLES[group][name](y[rows], p[rows]), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("specificity", [0.5, 0.8, 0.9, 0.95, 1.0])
def test_sensitivity_at_other_specificities(specificity):
    for seed in range(5):
        y, p = made_up("binary", seed)
        expected = sensitivity_by_curve(y, p, specificity)
        assert m.sensitivity_at_specificity(y, p, specificity=specificity) == pytest.approx(expected)


def test_auroc_counts_pairs():
    y, p = made_up("binary", 3)
    pairs = [(a > b) + 0.5 * (a == b) for a in p[y == 1] for b in p[y == 0]]
    assert m.auroc(y, p) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize(("group", "name"), CASES)
def test_undefined_is_nan_and_never_an_exception(group, name):
    metric = m.METRICS[group][name]
    y, p = made_up(group, 0)
    empty = metric(y[:0], p[:0])
    assert np.isnan(empty)
    broken = p.copy()
    broken[3] = np.nan
    assert np.isnan(metric(y, broken))
    one = np.zeros_like(y) + y[0]
    if name in {"brier", "mae", "mse", "gm", "accuracy"}:
        assert np.isfinite(metric(one, p))
    else:
        assert np.isnan(metric(one, p))
    draws = np.stack([np.zeros(len(y)), np.ones(len(y))]).astype(int)
    values = metric(y, p, draws)
    assert np.isnan(values[0])
    assert values[1] == pytest.approx(metric(y, p))


@pytest.mark.parametrize("name", ["spearman", "pearson"])
def test_constant_prediction_has_no_correlation(name):
    y, _ = made_up("regress", 0)
    assert np.isnan(m.METRICS["regress"][name](y, np.full(len(y), 0.1)))
    assert m.METRICS["binary"]["auroc"](y > 50, np.full(len(y), 0.1)) == 0.5


def test_one_exact_hit_is_floored_and_not_the_whole_mean():
    y, p = np.array([1.0, 2.0, 3.0]), np.array([1.0, 4.0, 5.0])
    assert m.gm(y, p) == pytest.approx((1e-6 * 2 * 2) ** (1 / 3))
    assert m.gm(y, p, floor=0.5) == pytest.approx((0.5 * 2 * 2) ** (1 / 3))
    assert m.gm(y, y) == pytest.approx(1e-6)


def test_concordance_is_below_the_correlation_and_one_only_for_the_target_itself():
    y, p = made_up("regress", 2)
    assert m.ccc(y, y) == pytest.approx(1.0)
    assert m.ccc(y, -y + 2 * y.mean()) == pytest.approx(-1.0)
    assert m.pearson(y, 2 * y + 3) == pytest.approx(1.0)
    assert m.ccc(y, 2 * y + 3) < 0.2
    assert abs(m.ccc(y, p)) <= abs(m.pearson(y, p))
    assert m.ccc(y, np.full(len(y), 40.0)) == pytest.approx(0.0)
    assert np.isnan(m.pearson(y, np.full(len(y), 40.0)))


def test_a_class_that_is_only_predicted_costs_macro_f1():
    y, p = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2])
    assert m.macro_f1(y, p) == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert m.macro_f1(y, p, [[1, 1, 1, 0]])[0] == 1.0, "it is not there where its row is not drawn"


def test_the_first_metric_of_each_task_is_the_one_that_chooses():
    assert [next(iter(table)) for table in m.METRICS.values()] == ["auroc", "balanced_accuracy", "mae"]


def test_draw_without_positives_is_nan_only_there():
    weights = [[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]]
    for name in ("auroc", "average_precision", "sensitivity_at_specificity", "balanced_accuracy"):
        values = m.METRICS["binary"][name]([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], weights)
        assert np.isfinite(values).tolist() == [False, True, False]


def test_multiclass_averages_over_the_classes_drawn():
    y, p = made_up("multiclass", 1)
    without = (y != 3).astype(int)[None]
    kept = y != 3
    expected = np.mean([sk.roc_auc_score(y[kept] == k, p[kept, k]) for k in range(3)])
    assert m.macro_auroc(y, p, without)[0] == pytest.approx(expected)
    recall = [(p[y == k].argmax(1) == k).mean() for k in range(3)]
    assert m.balanced_accuracy(y, p, without)[0] == pytest.approx(np.mean(recall))


def test_arrays_that_do_not_go_together():
    with pytest.raises(EvaluationError, match="same n rows"):
        m.mae([1.0, 2.0], [1.0])
    with pytest.raises(EvaluationError, match="same n rows"):
        m.mae([1.0, 2.0], [1.0, 2.0], weights=[1, 1])
    with pytest.raises(EvaluationError, match="targets 0 and 1"):
        m.auroc([0, 2], [0.1, 0.2])
    with pytest.raises(EvaluationError, match="one score a row"):
        m.auroc([0, 1], [[0.1], [0.2]])
    with pytest.raises(EvaluationError, match="integer codes"):
        m.balanced_accuracy([0, 2], [0.1, 0.2])
    with pytest.raises(EvaluationError, match=r"\[n, K\]"):
        m.macro_auroc([0, 1], [0.1, 0.2])


def test_metrics_of_a_question():
    assert m.metrics_of("regress", 0) is m.METRICS["regress"]
    assert m.metrics_of("classify", 2) is m.METRICS["binary"]
    assert m.metrics_of("classify", 3) is m.METRICS["multiclass"]


def test_a_thousand_draws_are_fast():
    y, p = made_up("binary", 0, n=2500)
    weights = np.random.default_rng(0).poisson(size=(1000, 2500))
    start = time.process_time()
    m.auroc(y, p, weights)
    m.average_precision(y, p, weights)
    assert time.process_time() - start < 2.0


def test_every_metric_has_words_without_capitals_where_it_is_a_name_and_with_them_where_it_is_letters():
    known = {name for group in m.METRICS.values() for name in group} | {*m.SEGMENTATION, *m.RETRIEVAL}
    said = {name: m.in_words(name) for name in known}
    assert len(set(said.values())) == len(known) - 2, "hd95 in mm and in voxels differ by their unit alone"
    expected = {"dice": "Dice", "dice_pcl": "Dice PCL", "brier": "Brier", "pearson": "Pearson", "auroc": "AUROC",
                "mae": "MAE", "r2": "R2", "macro_f1": "macro F1", "hd95_voxels": "HD95", "ndcg_10": "NDCG 10",
                "top_1": "top 1", "average_precision": "average precision"}  # fmt: skip
    assert {name: said[name] for name in expected} == expected
    assert m.in_words("mean_change") == "mean change"
