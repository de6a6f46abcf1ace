"""Probes: patient-level draws, what may influence a choice, both sources of chance, degenerate targets."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from bolus.errors import EvaluationError, LeakageError, UsageError
from bolus.evaluation.probing.fitting import fit_linear
from bolus.evaluation.probing.probe import draw_patients, probe
from bolus.evaluation.statistics.bootstrap import patient_bootstrap
from bolus.evaluation.statistics.intervals import Estimate, detectable_difference, estimate, paired_difference
from bolus.evaluation.statistics.metrics import auroc, mae, metrics_of
from bolus.evaluation.statistics.results import read_results, write_results
from bolus.evaluation.statistics.shots import shot_ranges
from bolus.evaluation.statistics.verdict import summarise, verdict_of
from settings import settings


def planted(seed=0, num_patients=160, images=2, dim=12, signal=1.0, task="classify", num_classes=2):
    """Embeddings of patients with a target along some directions, and a baseline that knows nothing."""
    r = np.random.default_rng(seed)
    patients = np.repeat(np.arange(num_patients), images)
    n = len(patients)
    if task == "classify":
        y = (np.arange(num_patients) % num_classes)[r.permutation(num_patients)][patients].astype(float)
        push = np.eye(num_classes, dim)[y.astype(int)]
    else:
        y = r.normal(50, 10, num_patients)[patients]
        push = ((y - 50) / 10)[:, None] * np.eye(1, dim)
    x = r.normal(size=(n, dim)) + signal * push
    split = np.array(["train", "val", "test", "test"])[patients % 4]
    return {"run": x, "random-init": r.normal(size=(n, dim))}, y, patients, split


def arguments(**changes):
    return settings(**{"task": "classify", "target": "sick", "draws": 100, **changes})


def by(report, **wanted):
    wanted = {"baseline": "", "subset": ""} | wanted
    return [r for r in report.results if all(getattr(r, key) == value for key, value in wanted.items())]


def the(report, **wanted):
    (found,) = by(report, **wanted)
    return found


def test_fractions_are_of_patients_and_nested():
    r = np.random.default_rng(0)
    patients = np.repeat(np.arange(50), r.integers(1, 9, 50))
    y = (patients % 10 == 0).astype(float)  # five positive patients
    fractions = (0.01, 0.1, 0.5, 1.0)
    rows = draw_patients(patients, y, "classify", fractions=fractions, repeats=4, seed=0)
    assert set(rows) == {(f, k) for f in (0.01, 0.1, 0.5) for k in range(4)} | {(1.0, 0)}
    for repeat in range(4):
        for fraction, size in ((0.01, 2), (0.1, 5), (0.5, 25)):
            mask = rows[fraction, repeat]
            chosen = np.unique(patients[mask])
            assert len(chosen) == size
            assert np.array_equal(mask, np.isin(patients, chosen))  # whole patients
            assert len(np.unique(y[mask])) == 2  # both classes, even with two patients of fifty
        assert (rows[0.01, repeat] <= rows[0.1, repeat]).all()
        assert (rows[0.1, repeat] <= rows[0.5, repeat]).all()
    assert rows[1.0, 0].all()
    assert not np.array_equal(rows[0.5, 0], rows[0.5, 1])
    again = draw_patients(patients, y, "classify", fractions=(0.1,), repeats=1, seed=0)
    assert np.array_equal(again[0.1, 0], rows[0.1, 0])  # a draw does not depend on the other fractions or repeats


def test_draws_of_one_class_and_of_numbers():
    patients = np.arange(10)
    for y, task in ((np.zeros(10), "classify"), (np.linspace(0, 1, 10), "regress")):
        assert draw_patients(patients, y, task, fractions=(0.3,), repeats=1, seed=1)[0.3, 0].sum() == 3
    assert draw_patients([4], [0.0], "classify", fractions=(0.1,), repeats=1, seed=1)[0.1, 0].sum() == 1


def test_planted_signal_is_found_and_noise_is_not():
    report = probe(*planted(num_patients=240), **arguments(draws=400))
    for kind in ("linear", "knn"):
        run = the(report, metric="auroc", encoder="run", probe=kind)
        noise = the(report, metric="auroc", encoder="random-init", probe=kind)
        assert run.ci_low > 0.65
        assert noise.ci_low < 0.5 < noise.ci_high
        difference = the(report, metric="auroc", encoder="run", baseline="random-init", probe=kind)
        assert difference.ci_low > 0
        assert difference.estimate == pytest.approx(run.estimate - noise.estimate)
        assert difference.detectable == pytest.approx(detectable_difference(difference.se, 120 - 2))
        assert difference.p_value is not None and difference.p_value < 0.05
        assert run.p_value is None
        assert run.detectable is None
        assert (run.num_samples, run.num_patients) == (240, 120)
        over_prior = the(report, metric="auroc", encoder="run", baseline="majority", probe=kind)
        assert over_prior.estimate == pytest.approx(run.estimate - 0.5)
    assert the(report, metric="auroc", encoder="majority").estimate == 0.5
    assert "sick, linear: decided for this training: better by " in report.summary()
    assert "in AUROC than random-init" in report.summary()


def test_noise_is_undecided_and_says_what_could_be_shown():
    report = probe(*planted(signal=0.0), **arguments())
    assert "undecided" in report.summary()
    assert "this test set can show 0." in report.summary()


def test_regression():
    report = probe(*planted(task="regress", num_patients=240), **arguments(task="regress", target="age"))
    run = the(report, metric="mae", encoder="run", probe="linear")
    assert run.estimate < 8 < the(report, metric="mae", encoder="majority").estimate
    assert the(report, metric="mae", encoder="run", baseline="random-init", probe="linear").ci_high < 0
    assert math.isnan(the(report, metric="pearson", encoder="majority").estimate)
    assert the(report, metric="spearman", encoder="run", probe="knn").ci_low > 0.3
    assert run.num_positive is None
    assert "age, linear: decided for this training: better by " in report.summary()
    assert " in MAE than random-init" in report.summary()
    assert "worse" not in report.summary()
    assert {"score"} <= set(report.predictions)


def test_several_classes():
    names = ["DCM", "HCM", "NOR"]
    report = probe(*planted(num_classes=3, num_patients=240), **arguments(classes=names))
    run = the(report, metric="balanced_accuracy", encoder="run", probe="linear")
    assert run.ci_low > 1 / 3 == pytest.approx(the(report, metric="balanced_accuracy", encoder="majority").estimate)
    scores = report.predictions[[f"score:{name}" for name in names]]
    np.testing.assert_allclose(scores.sum(axis=1), 1)
    assert report.heads["linear"].class_names == ("DCM", "HCM", "NOR")


def test_results_are_the_estimates_of_the_predictions():
    embeddings, y, patients, split = planted()
    report = probe(embeddings, y, patients, split, **arguments(seed=5))
    frame = report.predictions
    ours, theirs = (
        frame[(frame.encoder == name) & (frame.probe == "knn") & (frame.split == "test")]
        for name in ("run", "random-init")
    )
    assert np.array_equal(ours.position, np.flatnonzero(split == "test"))
    assert np.array_equal(ours.y, y[ours.position])
    own = estimate(auroc, ours.y, ours.score, patients[ours.position], name="auroc", draws=100, seed=5)
    found = the(report, metric="auroc", encoder="run", probe="knn")
    assert (found.estimate, found.ci_low, found.ci_high) == pytest.approx((own.value, own.low, own.high))
    both = ours.y, ours.score, theirs.score, patients[ours.position]
    pair = paired_difference(auroc, *both, name="auroc", draws=100, seed=5)
    found = the(report, metric="auroc", encoder="run", baseline="random-init", probe="knn")
    assert (found.estimate, found.ci_low, found.se) == pytest.approx((pair.value, pair.low, pair.se))


def test_same_encoder_twice_differs_by_exactly_nothing():
    embeddings, y, patients, split = planted()
    report = probe(
        {"run": embeddings["run"], "copy": embeddings["run"].copy()},
        y,
        patients,
        split,
        **arguments(fractions=(0.2, 1)),
    )
    pairs = [r for r in report.results if r.baseline == "copy"]
    assert len(pairs) == 2 * 2 * 5
    assert all((r.estimate, r.ci_low, r.ci_high, r.se, r.detectable) == (0, 0, 0, 0, None) for r in pairs)


def test_test_targets_and_embeddings_choose_nothing():
    embeddings, y, patients, split = planted()
    r = np.random.default_rng(9)
    test = np.flatnonzero(split == "test")
    shuffled = y.copy()
    shuffled[test] = r.permutation(shuffled[test])
    moved = {name: x.copy() for name, x in embeddings.items()}
    moved["run"][test] += 100
    reports = [
        probe(embeddings, y, patients, split, **arguments()),
        probe(embeddings, shuffled, patients, split, **arguments()),
        probe(moved, y, patients, split, **arguments()),
    ]
    for report in reports[1:]:
        for name, head in reports[0].heads.items():
            for key, value in vars(head).items():
                other = getattr(report.heads[name], key)
                assert np.array_equal(other, value) if isinstance(value, np.ndarray) else other == value
    assert {"linear", "knn"} == set(reports[0].heads)
    estimates = [the(report, metric="auroc", encoder="run", probe="linear").estimate for report in reports]
    assert estimates[0] != estimates[1]


def test_validation_does_choose():
    embeddings, y, patients, split = planted(signal=0.3, dim=60)
    strengths = set()
    for seed in range(6):
        turned = y.copy()
        val = np.flatnonzero(split == "val")
        turned[val] = np.random.default_rng(seed).permutation(turned[val])
        report = probe(embeddings, turned, patients, split, **arguments(draws=10))
        strengths.add(report.heads["linear"].strength)
    assert len(strengths) > 1


def test_repeats_enter_estimate_and_interval():
    data = planted(signal=0.7, num_patients=240)
    report = probe(*data, **arguments(fractions=(0.05, 1.0), repeats=4, probes=("linear",), draws=2000))
    frame = report.predictions
    few = frame[(frame.encoder == "run") & (frame.fraction == 0.05) & (frame.split == "test")]
    each = [auroc(group.y, group.score) for _, group in few.groupby("repeat")]
    found = the(report, metric="auroc", encoder="run", fraction=0.05)
    assert len(each) == 4
    assert found.estimate == pytest.approx(np.mean(each))
    assert found.sd_repeats == pytest.approx(np.std(each, ddof=1))
    weights = patient_bootstrap(data[2][data[3] == "test"], draws=2000, seed=0)
    drawn = np.stack([auroc(g.y, g.score, weights) for _, g in few.groupby("repeat")])
    rows = data[3] == "test"
    expected = Estimate.from_draws(each, drawn, data[2][rows], metric="auroc", y=data[1][rows])
    assert (found.ci_low, found.ci_high, found.se) == pytest.approx((expected.low, expected.high, expected.se))
    alone = Estimate.from_draws(np.mean(each), drawn.mean(0), data[2][rows], metric="auroc", y=data[1][rows])
    assert found.ci_high - found.ci_low > 1.01 * (alone.high - alone.low), "the draws of labelled patients enter"
    assert the(report, metric="auroc", encoder="run", fraction=1.0).sd_repeats is None
    assert the(report, metric="auroc", encoder="run", fraction=1.0).estimate > found.estimate
    assert set(report.heads) == {"linear"}
    assert set(frame[frame.fraction == 1.0].repeat) == {0}
    partial = probe(*data, **arguments(fractions=(0.5,), draws=10))
    assert partial.heads == {}
    assert any("no head" in note for note in partial.notes)


def test_missing_targets_are_left_out_and_counted():
    embeddings, y, patients, split = planted()
    missing = y.copy()
    test = np.flatnonzero(split == "test")
    missing[test[:7]] = np.nan
    missing[np.flatnonzero(split == "train")[:3]] = -1
    report = probe(embeddings, missing, patients, split, **arguments())
    assert "sick is missing in 3 train rows, left out" in report.notes
    assert "sick is missing in 7 test rows, left out" in report.notes
    assert the(report, metric="auroc", encoder="run", probe="knn").num_samples == len(test) - 7
    assert not set(test[:7]) & set(report.predictions.position)
    kept = np.isfinite(missing) & (missing >= 0)
    alone = probe({k: x[kept] for k, x in embeddings.items()}, y[kept], patients[kept], split[kept], **arguments())
    assert [r.estimate for r in alone.results] == pytest.approx([r.estimate for r in report.results])
    below = probe(embeddings, -np.abs(y) - 1 + embeddings["run"][:, 0], patients, split, **arguments(task="regress"))
    assert below.results[0].num_samples == len(test)  # a number may be negative


def test_one_class_in_test_or_train_is_said_not_raised(tmp_path):
    embeddings, y, patients, split = planted()
    healthy = y.copy()
    healthy[split == "test"] = 0
    report = probe(embeddings, healthy, patients, split, **arguments())
    assert any("one class of sick only" in note for note in report.notes)
    assert math.isnan(the(report, metric="auroc", encoder="run", probe="linear").estimate)
    assert math.isfinite(the(report, metric="brier", encoder="run", probe="linear").estimate)
    assert "undecided: the difference in AUROC from random-init is undefined" in report.summary()
    write_results(tmp_path / "r.jsonl", report.results)
    assert math.isnan(read_results(tmp_path / "r.jsonl")[0].estimate)
    single = y.copy()
    single[split == "train"] = 1
    report = probe(embeddings, single, patients, split, **arguments())
    assert report.heads["linear"].kind == "constant"
    assert the(report, metric="auroc", encoder="run", probe="linear").estimate == 0.5
    assert any("training has one class" in note for note in report.notes)
    assert the(report, metric="auroc", encoder="run", probe="linear").notes


def test_few_positive_patients_decide_nothing():
    embeddings, y, patients, split = planted(signal=6.0)
    rare = y.copy()
    positives = np.unique(patients[(split == "test") & (y == 1)])[5:]
    rare[np.isin(patients, positives)] = -1
    report = probe(embeddings, rare, patients, split, **arguments())
    difference = the(report, metric="auroc", encoder="run", baseline="random-init", probe="linear")
    assert difference.ci_low > 0
    assert (difference.num_positive, difference.num_positive_patients) == (10, 5)
    assert report.summary().endswith("but only 5 positive test patients where a finding needs 20")


def test_everything_is_a_function_of_the_seed():
    data = planted(signal=0.5)
    first, again, other = (probe(*data, **arguments(fractions=(0.3, 1.0), seed=seed)) for seed in (1, 1, 2))
    assert first.results == again.results
    pd.testing.assert_frame_equal(first.predictions, again.predictions)
    assert [r.ci_low for r in first.results] != [r.ci_low for r in other.results]


def test_only_the_judged_encoder_carries_the_recipe():
    report = probe(*planted(), **arguments(split_hash="s", recipe_hash="r", draws=10))
    assert {r.split_hash for r in report.results} == {"s"}
    assert {(r.encoder, r.baseline) for r in report.results if r.recipe_hash == "r"} == {
        ("run", ""), ("run", "random-init"), ("run", "majority")
    }  # fmt: skip


def test_an_encoder_may_be_named_like_a_difference():
    embeddings, y, patients, split = planted()
    report = probe({"a - b": embeddings["run"], "b": embeddings["random-init"]}, y, patients, split, **arguments())
    assert the(report, metric="auroc", encoder="a - b", baseline="b", probe="linear").detectable is not None
    assert report.summary().endswith("in AUROC than b")


@pytest.mark.parametrize("task", ["classify", "regress"])
def test_validation_is_carved_out_of_the_training_patients_where_there_is_none(task):
    embeddings, y, patients, split = planted(task=task, signal=0.3, dim=60)
    split = np.where(split == "val", "train", split)
    report = probe(embeddings, y, patients, split, **arguments(task=task, seed=4))
    frame = report.predictions
    carved = np.unique(frame[frame.split == "val"].position)
    assert (split[carved] == "train").all()
    assert np.array_equal(carved, np.flatnonzero(np.isin(patients, patients[carved]))), "whole patients"
    assert 5 < len(np.unique(patients[carved])) < 30  # of 80, about a fifth
    given = split.copy()
    given[carved] = "val"
    expected = probe(embeddings, y, patients, given, **arguments(task=task, seed=4))
    assert [r.estimate for r in report.results] == pytest.approx([r.estimate for r in expected.results], nan_ok=True)
    assert report.heads["linear"].strength == expected.heads["linear"].strength
    (note,) = [note for note in report.notes if "of the 80 training patients" in note]
    assert note.startswith("no validation row has a value of sick: strengths were chosen on")
    assert all(note in r.notes for r in report.results), "the note stands with every number, and so with the verdict"
    assert not any("middle of its grid" in note for note in report.notes)
    other = probe(embeddings, y, patients, split, **arguments(task=task, seed=5)).predictions
    assert not np.array_equal(np.unique(other[other.split == "val"].position), carved)


def test_one_training_patient_is_not_divided():
    embeddings, y, patients, split = planted(task="regress")
    split, patients = np.where(split == "val", "train", split), np.where(split == "test", patients + 1, 0)
    report = probe(embeddings, y, patients, split, **arguments(task="regress"))
    assert any("middle of its grid" in note for note in report.notes)


# --- ranges of a continuous target


def test_ranges_carry_every_metric_on_the_same_draws():
    embeddings, y, patients, split = planted(task="regress", num_patients=400)
    options = arguments(task="regress", target="age", shots=(3, 7), probes=("linear",), seed=3)
    report = probe(embeddings, y, patients, split, **options)
    test = np.flatnonzero(split == "test")
    ranges = shot_ranges(y[test], y[split == "train"], shots=(3, 7))
    assert set(ranges) == {"many", "medium", "few"}
    names = set(metrics_of("regress", 0))
    for subset in ("", "many", "medium", "few"):
        rows = test if not subset else test[ranges == subset]
        for metric in names:
            found = the(report, metric=metric, encoder="run", probe="linear", subset=subset)
            assert (found.num_samples, found.num_patients) == (len(rows), len(np.unique(patients[rows])))
            pair = the(report, metric=metric, encoder="run", baseline="random-init", probe="linear", subset=subset)
            assert pair.detectable is not None
    frame = report.predictions.query("split == 'test'").set_index("position")
    few = test[ranges == "few"]
    ours, theirs = (frame[frame.encoder == name].loc[few, "score"].to_numpy() for name in ("run", "random-init"))
    weights = patient_bootstrap(patients[test], draws=100, seed=3)[:, ranges == "few"]
    drawn = mae(y[few], ours, weights) - mae(y[few], theirs, weights)
    found = the(report, metric="mae", encoder="run", baseline="random-init", probe="linear", subset="few")
    assert found.estimate == pytest.approx(mae(y[few], ours) - mae(y[few], theirs))
    expected = Estimate.from_draws(found.estimate, drawn, patients[few], difference=True)
    assert (found.ci_low, found.ci_high) == pytest.approx((expected.low, expected.high))
    assert [r.subset for r in report.results] == sorted((r.subset for r in report.results),
                                                        key=["", "many", "medium", "few"].index)  # fmt: skip


def test_the_summary_is_of_all_samples_and_an_empty_range_is_noted():
    data = planted(task="regress", num_patients=240)
    report = probe(*data, **arguments(task="regress", target="age"))
    assert {r.subset for r in report.results} == {"", "few"}
    assert report.summary() == summarise([r for r in report.results if not r.subset])
    assert any("no test row is of the range many or medium" in note for note in report.notes)
    classes = probe(*planted(), **arguments(draws=10))
    assert {r.subset for r in classes.results} == {""}


def test_the_ranges_are_of_all_training_rows_at_every_fraction():
    data = planted(task="regress", num_patients=240)
    report = probe(*data, **arguments(task="regress", fractions=(0.2, 1.0), shots=(2, 4), draws=20))
    for subset in ("many", "medium", "few"):
        counts = {r.num_samples for r in report.results if r.subset == subset}
        assert len(counts) == 1


def test_few_patients_of_a_range_decide_nothing():
    embeddings, y, patients, split = planted(task="regress", num_patients=240, signal=20.0)
    report = probe(embeddings, y, patients, split, **arguments(task="regress", shots=(1, 6), probes=("linear",)))
    rare = the(report, metric="mae", encoder="run", baseline="random-init", probe="linear", subset="many")
    assert rare.num_patients < 20
    assert rare.ci_high < 0
    assert verdict_of(rare).endswith(f"but only {rare.num_patients} many-shot test patients where a finding needs 20")


def test_a_constant_number_is_said_not_raised():
    embeddings, y, patients, split = planted(task="regress")
    same = y.copy()
    same[split == "test"] = 40.0
    report = probe(embeddings, same, patients, split, **arguments(task="regress", target="age"))
    assert "the test rows hold one value of age: only errors are defined" in report.notes
    for metric in ("r2", "pearson", "spearman", "ccc"):
        assert math.isnan(the(report, metric=metric, encoder="run", probe="linear").estimate)
    assert math.isfinite(the(report, metric="mae", encoder="run", probe="linear").ci_low)
    same = y.copy()
    same[split == "train"] = 40.0
    report = probe(embeddings, same, patients, split, **arguments(task="regress", target="age"))
    assert report.heads["linear"].kind == "constant"
    assert the(report, metric="ccc", encoder="run", probe="linear").estimate == pytest.approx(0.0)
    assert any("training has one value" in note for note in the(report, metric="mae", encoder="run", probe="knn").notes)


def test_one_test_patient_has_no_interval():
    embeddings, y, patients, split = planted(task="regress")
    patients = np.where(split == "test", patients.max() + 1, patients)
    found = the(probe(embeddings, y, patients, split, **arguments(task="regress")), metric="mae", encoder="run",
                probe="linear")  # fmt: skip
    assert math.isfinite(found.estimate)
    assert math.isnan(found.ci_low)
    assert math.isnan(found.ci_high)


# --- probes that are trained on more than embeddings


def test_a_trained_probe_is_called_for_every_encoder_and_draw_and_paired():
    embeddings, y, patients, split = planted(num_patients=240)
    calls = []

    def linear(name, question, train, val, held, repeat):
        calls.append((name, len(train), repeat))
        head = fit_linear(question.samples(embeddings[name], train), question.samples(embeddings[name], val),
                          question.task, num_classes=question.num_classes)  # fmt: skip
        return head.predict(embeddings[name][held]), ["trained"]

    options = arguments(probes=("mine", "linear"), trained={"mine": linear}, fractions=(0.3, 1.0), repeats=2)
    report = probe(embeddings, y, patients, split, **options)
    for reading in ("", "random-init", "majority"):
        for fraction in (0.3, 1.0):
            wanted = {"metric": "auroc", "encoder": "run", "baseline": reading, "fraction": fraction}
            mine, own = the(report, probe="mine", **wanted), the(report, probe="linear", **wanted)
            assert (mine.estimate, mine.ci_low, mine.se) == (own.estimate, own.ci_low, own.se)
            assert "trained" in mine.notes
            assert "trained" not in own.notes
    assert [call[::2] for call in calls] == [(name, repeat) for repeat in (0, 1, 0) for name in ("run", "random-init")]
    assert "sick, mine: decided" in report.summary()
    assert set(report.heads) == {"linear"}
    assert not any("no head was kept" in note for note in report.notes)
    with pytest.raises(UsageError, match="did you mean 'mine'"):
        probe(embeddings, y, patients, split, **arguments(probes=("min",), trained={"mine": linear}))


def broken(what):
    embeddings, y, patients, split = planted(num_patients=16)
    changes = {}
    if what == "leak":
        split = split.copy()
        split[0] = "test"
    elif what == "split":
        split = np.where(np.arange(len(y)) == 4, "dev", split.astype("U5"))
    elif what == "nan":
        embeddings["run"][3, 0] = np.nan
    elif what == "short":
        embeddings["run"] = embeddings["run"][:-1]
    elif what == "length":
        patients = patients[:-1]
    elif what == "code":
        y[6], changes = 2, {"classes": ["no", "yes"]}
    elif what == "half":
        y[6] = 0.5
    elif what == "test":
        y[split == "test"] = -1
    elif what == "train":
        y[split == "train"] = np.nan
    elif what == "name":
        embeddings["majority"] = embeddings["run"]
    elif what == "probe":
        changes = {"probes": ("liner",)}
    elif what == "task":
        changes = {"task": "regression"}
    elif what == "fraction":
        changes = {"fractions": (0.0, 1.0)}
    return (embeddings, y, patients, split), arguments(**changes)


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("leak", LeakageError, "1 patients stand in more than one split, in rows 1, 2"),
        ("split", EvaluationError, "found 'dev' in row 5"),
        ("nan", EvaluationError, "'run': embeddings are not finite in row 4"),
        ("short", EvaluationError, "expected embeddings"),
        ("length", EvaluationError, "one length"),
        ("code", EvaluationError, "expected codes 0 to 1, found 2 in row 7"),
        ("half", EvaluationError, "expected integer codes, found 0.5 in row 7"),
        ("test", EvaluationError, "no test row has a value of 'sick'"),
        ("train", EvaluationError, "no train row has a value of 'sick'"),
        ("name", EvaluationError, "none of them 'majority'"),
        ("probe", UsageError, "did you mean 'linear'"),
        ("task", UsageError, "did you mean 'regress'"),
        ("fraction", UsageError, "fractions above 0"),
    ],
)
def test_what_is_wrong_is_named(what, error, message):
    with pytest.raises(error, match=message):
        data, options = broken(what)
        probe(*data, **options)


def test_arguments_are_left_alone():
    embeddings, y, patients, split = planted()
    copies = [x.copy() for x in (*embeddings.values(), y, patients, split)]
    probe(embeddings, y, patients, split, **arguments(draws=10))
    for before, after in zip(copies, (*embeddings.values(), y, patients, split), strict=True):
        assert np.array_equal(before, after)
