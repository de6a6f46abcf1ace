"""Verdicts on differences: decided, worse, undecided, undefined, or resting on too few patients."""

from __future__ import annotations

import math
from dataclasses import replace

from bolus.evaluation.statistics.results import Result, decimals
from bolus.evaluation.statistics.verdict import (
    asked_of,
    main_difference,
    standing,
    summarise,
    too_few,
    verdict_of,
    verdicts_of,
)


def difference(**changes):
    values = {
        "task": "classify",
        "target": "t",
        "metric": "auroc",
        "estimate": 0.05,
        "ci_low": 0.01,
        "ci_high": 0.09,
        "num_samples": 90,
        "num_patients": 40,
        "encoder": "run",
        "baseline": "other",
        "detectable": 0.06,
    }
    return Result(**(values | changes))


def test_verdicts():
    assert verdict_of(difference(seeds=3)) == "decided: better by 0.050 [0.010, 0.090] in AUROC than other"
    assert verdict_of(difference()).startswith("decided for this training: better by 0.050")
    worse = verdict_of(difference(estimate=-0.05, ci_low=-0.09, ci_high=-0.01, seeds=2))
    assert worse == "decided: worse by 0.050 [0.010, 0.090] in AUROC than other"
    assert verdict_of(difference(metric="mae", unit="years")).endswith(
        "worse by 0.050 years [0.010, 0.090] in MAE than other"
    )
    undecided = verdict_of(difference(metric="mae", ci_low=-0.02))
    assert undecided.startswith("undecided: worse by 0.050 [0.090 worse to 0.020 better] in MAE than other; this")
    assert "by 0.050 mm [" in verdict_of(difference(metric="hd95_mm"))
    assert verdict_of(difference(ci_low=-0.01)).endswith("; this test set can show 0.060 or more")
    assert verdict_of(difference(ci_low=0.0)).startswith("undecided")
    assert "undefined" in verdict_of(difference(ci_high=math.nan))


def test_one_training_is_said_to_be_one():
    for low, high in ((0.01, 0.02), (-0.02, -0.01)):
        assert standing(low, high, seeds=1) == "decided for this training"
        assert standing(low, high, seeds=2) == "decided"
        assert standing(low, high, seeds=5, few="only 3 patients") == "undecided"
    for low, high in ((-0.01, 0.02), (0.0, 0.1), (math.nan, 0.1)):
        assert standing(low, high, seeds=5) == "undecided"


def test_holm_stands_beside_several_verdicts_and_a_lone_one_has_none():
    lone = difference(p_value=0.01)
    assert verdicts_of([lone]) == [verdict_of(lone)]
    several = [difference(p_value=p) for p in (0.04, 0.001)] + [difference(ci_low=-0.01, p_value=0.2)]
    said = verdicts_of(several)
    assert said[0].endswith("; Holm over 3 verdicts: p = 0.08, so only a hint")
    assert said[1].endswith("than other; Holm over 3 verdicts: p = 0.003")
    assert said[2].endswith("or more; Holm over 3 verdicts: p = 0.2")
    undefined = verdicts_of([difference(p_value=None, ci_low=math.nan), lone])[0]
    assert undefined.endswith("is undefined on this test set")


def test_the_other_targets_of_a_call_enter_the_verdict():
    one = [difference(baseline=""), difference(p_value=0.03), difference(baseline="majority", p_value=1e-9)]
    assert main_difference(one) is one[1], "an encoder before the majority"
    assert main_difference([one[0], one[2]]) is one[2]
    assert main_difference(one[:1]) is None
    assert summarise(one, [difference(p_value=0.5)]).endswith("Holm over 2 verdicts: p = 0.06, so only a hint")
    assert "Holm" not in summarise(one)


def test_random_weights_are_asked_for_after_the_start_and_both_enter_the_correction():
    start, random = difference(baseline="start", p_value=0.03), difference(baseline="random-init", p_value=0.001)
    knn, few = replace(random, probe="knn"), replace(random, fraction=0.1)
    assert asked_of([difference(baseline=""), start, random, knn, few]) == [start, random]
    assert asked_of([random, start]) == [random], "random weights come first where that is how they stand"
    said = summarise([start, random], [difference(p_value=0.5)]).splitlines()
    assert ["Holm over 3 verdicts: p = 0.06, so only a hint" in said[-2], "p = 0.003" in said[-1]] == [True, True]


def test_of_labelled_patients_the_most_are_asked():
    some, most = (difference(labelled_patients=number) for number in (1, 6))
    assert asked_of([some, most, difference(labelled_patients=2)]) == [most]


def test_that_cohorts_are_told_apart_is_no_gain():
    told = [difference(target="cohort:a-or-b", baseline=baseline, p_value=0.001) for baseline in ("", "random-init")]
    assert asked_of(told) == []
    assert summarise(told).endswith("cohort:a-or-b: a difference between cohorts is no gain")


def test_no_draw_with_a_difference_says_nothing_of_what_could_be_shown():
    equal = difference(estimate=0.0, ci_low=0.0, ci_high=0.0, se=0.0, detectable=None)
    said = "undecided: no difference [0.000 worse to 0.000 better] in AUROC from other; no draw of the test patients "
    said += "showed a difference"
    assert verdict_of(equal) == verdict_of(replace(equal, detectable=0.0)) == said


def test_an_encoder_alone_is_compared_with_nothing():
    assert summarise([difference(baseline="", detectable=None)]).endswith("t: there is nothing to compare with")


def test_too_few_patients_decide_nothing():
    note = too_few(19, "test patients")
    assert (
        verdict_of(difference(notes=(note,)))
        == f"undecided: better by 0.050 [0.010, 0.090] in AUROC than other, but {note}"
    )
    for other in ("another note", "only pairs of consecutive times"):
        assert verdict_of(difference(notes=(other,))).startswith("decided")


def test_numbers_in_small_units_keep_what_counts():
    assert verdict_of(difference(metric="mae", estimate=-0.00012, ci_low=-0.0002, ci_high=-0.00004)).startswith(
        "decided for this training: better by 0.00012 [4e-05, 0.0002] in MAE"
    )
    assert [decimals(value) for value in (0.0123, 0.0, 1e-17, 9.9996, 12.34, math.nan, None)] == [
        "0.012", "0.000", "0.000", "10.000", "12.3", "-", "-",
    ]  # fmt: skip
