"""Fitted heads against scikit-learn and naive loops, what chooses the strength, and training with nothing to learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from bolus.errors import EvaluationError
from bolus.evaluation.probing.fitting import NEIGHBOURS, STRENGTHS, Labelled, fit_knn, fit_linear
from bolus.evaluation.statistics.metrics import auroc, balanced_accuracy, higher_is_better, metrics_of

TASKS = [("classify", 2), ("classify", 4), ("regress", 2)]


def made_up(task="classify", num_classes=2, dim=12, shift=0.0, scale=1.0):
    """Training and validation samples of two images a patient, and test embeddings; a target along some directions."""
    r = np.random.default_rng(0)
    patients = np.repeat(np.arange(160), 2)
    if task == "classify":
        y = (np.arange(160) % num_classes)[r.permutation(160)][patients].astype(float)
        push = np.eye(num_classes, dim)[y.astype(int)]
    else:
        y = r.normal(50, 10, 160)[patients]
        push = ((y - 50) / 10)[:, None] * np.eye(1, dim)
    x = scale * (r.normal(size=(320, dim)) + push) + shift
    train, val, test = (np.isin(patients % 4, part) for part in (0, 1, (2, 3)))
    return Labelled(x[train], y[train], patients[train]), Labelled(x[val], y[val], patients[val]), x[test]


@pytest.mark.parametrize("num_classes", [2, 4])
def test_logistic_head_is_sklearns_at_the_best_validation_strength(num_classes):
    train, val, x_test = made_up(num_classes=num_classes, shift=5, scale=3)
    head = fit_linear(train, val, "classify")
    mean, scale = train.x.mean(0), train.x.std(0)
    best = None
    for strength in STRENGTHS:
        model = LogisticRegression(C=1 / strength, tol=1e-8, max_iter=5000)
        model.fit((train.x - mean) / scale, train.y.astype(int))
        p = model.predict_proba((val.x - mean) / scale)
        value = auroc(val.y, p[:, 1]) if num_classes == 2 else balanced_accuracy(val.y, p)
        if best is None or value > best[0]:
            best = (value, strength, model)
    assert head.strength == best[1]
    assert head.validation == pytest.approx(best[0], abs=1e-3)
    expected = best[2].predict_proba((x_test - mean) / scale)
    np.testing.assert_allclose(head.predict(x_test), expected[:, 1] if num_classes == 2 else expected, atol=2e-3)


@pytest.mark.parametrize("dim", [12, 200])
def test_ridge_head_is_sklearns(dim):
    train, val, x_test = made_up("regress", dim=dim)
    head = fit_linear(train, val, "regress")
    mean, scale = train.x.mean(0), train.x.std(0)
    errors = []
    for strength in STRENGTHS:
        model = Ridge(alpha=strength).fit((train.x - mean) / scale, (train.y - train.y.mean()) / train.y.std())
        on_val, on_test = (model.predict((x - mean) / scale) * train.y.std() + train.y.mean() for x in (val.x, x_test))
        errors.append(np.abs(on_val - val.y).mean())
        if strength == head.strength:
            np.testing.assert_allclose(head.predict(x_test), on_test, rtol=1e-8)
    assert head.strength == STRENGTHS[int(np.argmin(errors))]
    assert head.validation == pytest.approx(min(errors))


@pytest.mark.parametrize(("task", "num_classes"), TASKS)
def test_knn_is_a_naive_loop(task, num_classes):
    train, val, x_test = made_up(task, num_classes)

    def naive(query, k):
        unit = train.x / np.linalg.norm(train.x, axis=1, keepdims=True)
        out = []
        for row in query:
            distance = 1 - unit @ (row / np.linalg.norm(row))
            near = sorted(range(len(unit)), key=lambda i: distance[i])[:k]
            weight = np.array([1 / max(distance[i], 1e-6) for i in near])
            if task == "regress":
                out.append((weight * train.y[near]).sum() / weight.sum())
            else:
                shares = [weight[train.y[near] == c].sum() / weight.sum() for c in range(num_classes)]
                out.append(shares[1] if num_classes == 2 else shares)
        return np.array(out)

    head = fit_knn(train, val, task)
    name, metric = next(iter(metrics_of(task, num_classes).items()))
    sizes = [min(k, len(train.x)) for k in NEIGHBOURS]
    values = [metric(val.y, naive(val.x, k)) for k in sizes]
    best = max(values) if higher_is_better(name) else min(values)
    assert head.validation == pytest.approx(best)
    assert head.strength == sizes[int(np.argmin(np.abs(np.array(values) - best)))]
    np.testing.assert_allclose(head.predict(x_test), naive(x_test, int(head.strength)), rtol=1e-9)
    sklearn_class = KNeighborsRegressor if task == "regress" else KNeighborsClassifier
    model = sklearn_class(int(head.strength), weights="distance", metric="cosine").fit(train.x, train.y)
    expected = model.predict(x_test) if task == "regress" else model.predict_proba(x_test)
    np.testing.assert_allclose(head.predict(x_test), expected[:, 1] if name == "auroc" else expected, rtol=1e-7)


def test_an_exact_copy_decides_its_own_neighbourhood():
    train, _, _ = made_up()
    head = fit_knn(train, train, "classify")
    assert np.array_equal(head.predict(train.x) > 0.5, train.y == 1)


@pytest.mark.parametrize("fit", [fit_linear, fit_knn])
def test_degenerate_training(fit):
    r = np.random.default_rng(0)
    x, x_val, patients = r.normal(size=(6, 3)), r.normal(size=(4, 3)), np.arange(6)
    val = Labelled(x_val, [0, 1, 0, 1], patients[:4])
    one = fit(Labelled(x, [0, 0, 0, -1, 0, np.nan], patients), val, "classify", num_classes=3)
    assert one.kind == "constant"
    assert "one class" in one.notes[0]
    assert one.predict(x_val).tolist() == [[1.0, 0.0, 0.0]] * 4
    same = fit(Labelled(x, np.full(6, 7.0), patients), val._replace(y=[1.0, 2.0, 3.0, 4.0]), "regress")
    assert same.kind == "constant"
    assert same.predict(x_val).tolist() == [7.0] * 4
    unseen = fit(Labelled(x, [0, 2, 0, 2, 0, 2], patients), val._replace(y=[0, 1, 2, 0]), "classify", num_classes=4)
    probabilities = unseen.predict(x_val)
    assert probabilities.shape == (4, 4)
    assert (probabilities[:, [1, 3]] == 0).all()
    np.testing.assert_allclose(probabilities.sum(1), 1)
    with pytest.raises(EvaluationError, match="at least one training row"):
        fit(Labelled(x, np.full(6, -1), patients), val, "classify")
    with pytest.raises(EvaluationError, match="did you mean 'classify'"):
        fit(Labelled(x, np.zeros(6), patients), val, "clasify")


def test_without_positives_in_validation_the_strength_is_the_middle():
    train, val, _ = made_up()
    linear = fit_linear(train, val._replace(y=np.zeros_like(val.y)), "classify")
    assert linear.strength == STRENGTHS[len(STRENGTHS) // 2]
    assert math.isnan(linear.validation)
    assert "middle of its grid" in linear.notes[0]
    nobody = Labelled(val.x[:0], val.y[:0], val.patients[:0])
    knn = fit_knn(train, nobody, "classify")
    sizes = sorted({min(k, len(train.x)) for k in NEIGHBOURS})
    assert knn.strength == sizes[(len(sizes) - 1) // 2]
    few = np.zeros_like(val.y)
    few[0] = 1
    assert "1 validation patients" in fit_linear(train, val._replace(y=few), "classify").notes[0]
    regression = fit_linear(train._replace(y=train.y + train.x[:, 0]), nobody, "regress")
    assert "middle of its grid" in regression.notes[0]


def test_constant_features_do_not_break_standardising():
    train, val, x_test = made_up()

    def padded(x):
        return np.hstack([x, np.full((len(x), 1), 0.1), np.zeros((len(x), 1))])

    head = fit_linear(train._replace(x=padded(train.x)), val._replace(x=padded(val.x)), "classify")
    plain = fit_linear(train, val, "classify")
    np.testing.assert_allclose(head.predict(padded(x_test)), plain.predict(x_test), atol=1e-6)


def test_binary_probability_is_a_sigmoid_of_the_linear_score():
    train, val, x_test = made_up()
    head = fit_linear(train, val, "classify")
    score = ((x_test - head.mean) / head.scale) @ head.coef[0] + head.intercept[0]
    np.testing.assert_allclose(head.predict(x_test), expit(score))
