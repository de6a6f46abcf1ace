"""What test patients can decide is what simulated comparisons find; patients are counted, missing values are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.evaluation.statistics.metrics import auroc
from bolus.evaluation.targets import find_targets
from bolus.planning.patient_counts import effective_patients
from bolus.planning.resolution import Resolution, auroc_correlation, find_resolutions, hanley_mcneil

Z = 1.959964


def cohort_of(roles: dict[str, str], patient: Any, *, split: Any = "test", **columns: Any) -> Cohort:
    frame = pd.DataFrame({"patient": patient, **columns}).assign(split=split)
    frame["image"] = [f"{row}.png" for row in range(len(frame))]
    return Cohort(frame, CohortSpec(table="t.csv", roles=roles))


def one(cohort: Cohort, target: str, **given: Any) -> Resolution:
    return next(found for found in find_resolutions(cohort, **given) if found.target == target)


def placements(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each draw the share of negatives below each positive, and of positives above each negative."""
    wins = positive[:, :, None] > negative[:, None, :]
    return wins.mean(2), wins.mean(1)


@pytest.mark.parametrize(
    ("area", "positive", "negative"), [(0.75, 56, 59), (0.75, 20, 200), (0.75, 150, 25), (0.65, 80, 30)]
)
def test_hanley_and_mcneil_agree_with_a_simulation(area, positive, negative):
    r = np.random.default_rng(0)
    shift = np.sqrt(2) * stats.norm.ppf(area)
    y = np.repeat([1, 0], [positive, negative])
    areas = [auroc(y, shift * y + r.normal(size=len(y))) for _ in range(3000)]
    assert np.mean(areas) == pytest.approx(area, abs=0.005)
    assert hanley_mcneil(area, positive, negative) == pytest.approx(np.std(areas), rel=0.1)


@pytest.mark.parametrize(("area", "correlation"), [(0.75, 0.8), (0.75, 0.5), (0.9, 0.5)])
def test_the_correlation_of_two_aurocs_agrees_with_a_simulation(area, correlation):
    r = np.random.default_rng(5)
    y = np.repeat([1, 0], [60, 60])
    shift = np.sqrt(2) * stats.norm.ppf(area)
    both = r.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], (3000, 120)) + shift * y[:, None]
    areas = [[auroc(y, draw[:, k]) for draw in both] for k in (0, 1)]
    assert auroc_correlation(area, correlation) == pytest.approx(np.corrcoef(areas)[0, 1], abs=0.04)


@pytest.mark.parametrize(("kind", "correlation"), [("alike", 0.8), ("unlike", 0.5)])
def test_a_difference_in_auroc_is_found_with_80_percent_power(kind, correlation):
    positive, negative, draws = 56, 59, 1500
    cohort = cohort_of({"label:ill": "ill"}, range(115), ill=[1] * positive + [0] * negative)
    difference = getattr(one(cohort, "label:ill"), kind)
    r = np.random.default_rng(1)
    cov = [[1, correlation], [correlation, 1]]
    shifts = np.sqrt(2) * stats.norm.ppf([0.75 + difference / 2, 0.75 - difference / 2])
    sick = r.multivariate_normal(shifts, cov, (draws, positive))
    well = r.multivariate_normal([0, 0], cov, (draws, negative))
    (up_a, down_a), (up_b, down_b) = (placements(sick[..., k], well[..., k]) for k in (0, 1))
    up, down = up_a - up_b, down_a - down_b
    se = np.sqrt(up.var(1, ddof=1) / positive + down.var(1, ddof=1) / negative)  # DeLong et al., 1988
    found = np.abs(up.mean(1)) > Z * se
    assert np.mean(up.mean(1)) == pytest.approx(difference, abs=0.005)
    assert found.mean() == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize(("kind", "correlation"), [("alike", 0.8), ("unlike", 0.5)])
def test_a_difference_in_mae_is_found_with_80_percent_power(kind, correlation):
    draws, n = 4000, 90
    r = np.random.default_rng(2)
    y = r.gamma(4.0, 3.0, n)
    cohort = cohort_of({"score:mmse": "mmse"}, range(n), mmse=y)
    difference = getattr(one(cohort, "score:mmse"), kind)
    away = np.abs(y - np.median(y))
    common, *own = (r.choice(away, (draws, n)) for _ in range(3))
    better, worse = (np.sqrt(correlation) * common + np.sqrt(1 - correlation) * each for each in own)
    assert np.corrcoef(better.ravel(), worse.ravel())[0, 1] == pytest.approx(correlation, abs=0.02)
    gap = worse + difference - better
    found = np.abs(gap.mean(1)) > Z * gap.std(1, ddof=1) / np.sqrt(n)
    assert found.mean() == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize(
    ("sizes", "alike"),
    [("three each", 0.5), ("geometric", 0.5), ("geometric", 0.8), ("a few hold most", 0.5), ("a few hold most", 0.8)],
)
def test_with_several_samples_a_patient_the_reckoning_stays_near_a_simulation(sizes, alike):
    """Samples of a patient share much of their outcome and score, and errors of the two encoders correlate by 0.8."""
    r = np.random.default_rng(3)
    patients = 150
    counts = {
        "three each": np.full(patients, 3),
        "geometric": r.geometric(0.25, patients),
        "a few hold most": np.minimum(1 + (2 * r.pareto(1.2, patients)).astype(int), 60),
    }[sizes]
    who = np.repeat(np.arange(patients), counts)

    def noise() -> np.ndarray:
        return np.sqrt(alike) * r.normal(size=patients)[who] + np.sqrt(1 - alike) * r.normal(size=len(who))

    ill = (noise() > 0.3).astype(int)
    shift = np.sqrt(2) * stats.norm.ppf(0.75)
    gaps = []
    for _ in range(400):
        common = shift * ill + np.sqrt(0.8) * noise()
        gaps.append(auroc(ill, common + np.sqrt(0.2) * noise()) - auroc(ill, common + np.sqrt(0.2) * noise()))
    reckoned = one(cohort_of({"label:ill": "ill"}, who, ill=ill), "label:ill").alike
    assert reckoned is not None
    assert 0.85 < reckoned / (2.801585218 * np.std(gaps)) < 1.5


@settings(max_examples=200, deadline=None)
@given(counts=st.lists(st.integers(1, 50), min_size=1, max_size=30), times=st.integers(1, 3))
def test_effective_patients_are_never_more_than_patients(counts, times):
    found = effective_patients(counts)
    assert 1 <= found <= len(counts)
    assert effective_patients([1] * len(counts)) == len(counts)
    assert effective_patients(counts * times) == pytest.approx(times * found)
    assert effective_patients([]) == 0


def test_patients_are_counted_and_not_samples():
    ill = np.arange(60) % 2
    single = one(cohort_of({"label:ill": "ill"}, range(60), ill=ill), "label:ill")
    tripled = one(cohort_of({"label:ill": "ill"}, np.repeat(range(60), 3), ill=np.repeat(ill, 3)), "label:ill")
    assert single == tripled
    assert (single.num_patients, single.num_positive_patients) == (60, 30)
    assert single.alike == pytest.approx(
        2.801585218 * np.sqrt(2 * (1 - auroc_correlation(0.75, 0.8))) * hanley_mcneil(0.75, 30, 30)
    )
    assert single.unlike == pytest.approx(
        2.801585218 * np.sqrt(2 * (1 - auroc_correlation(0.75, 0.5))) * hanley_mcneil(0.75, 30, 30)
    )
    y = np.random.default_rng(0).normal(size=60)
    scores = [cohort_of({"score:s": "s"}, np.repeat(range(60), k), s=np.repeat(y, k)) for k in (1, 4)]
    assert one(scores[0], "score:s") == one(scores[1], "score:s")


def test_only_test_patients_count_and_only_the_samples_given():
    split = np.repeat(["train", "val", "test"], [100, 50, 80])
    columns = {"ill": np.arange(230) % 2, "s": np.arange(230.0)}
    cohort = cohort_of({"label:ill": "ill", "score:s": "s"}, range(230), split=split, **columns)
    assert [found.num_patients for found in find_resolutions(cohort)] == [80, 80]
    given = cohort.samples("image").take(np.arange(0, 230, 2))  # none of them ill
    assert "0 positive test patients where a finding needs 20" in one(cohort, "label:ill", samples=given).sentence
    assert one(cohort, "score:s", samples=given).num_patients == 40
    untested = cohort_of({"label:ill": "ill"}, range(230), split="train", ill=columns["ill"])
    assert one(untested, "label:ill").sentence == "label:ill: cannot be decided: no test patient has a value"


def test_missing_values_are_left_out():
    ill = np.array(["yes", "no", ""] * 30)
    s = [str(k) if k % 2 else "" for k in range(90)]
    cohort = cohort_of({"label:ill": "ill", "score:s": "s"}, range(90), ill=ill, s=s)
    found = one(cohort, "label:ill")
    assert (found.num_patients, found.num_positive_patients) == (60, 30)
    less = cohort_of({"label:ill": "ill"}, range(60), ill=["yes", "no"] * 30)
    assert found == one(less, "label:ill")
    assert one(cohort, "score:s").num_patients == 45


def test_too_few_of_the_rarer_side_cannot_be_decided():
    few, enough = (cohort_of({"label:ill": "ill"}, range(60), ill=[0] * k + [1] * (60 - k)) for k in (19, 20))
    assert one(few, "label:ill").sentence == (
        "label:ill: cannot be decided: 19 negative test patients where a finding needs 20"
    )
    assert one(few, "label:ill").alike is one(few, "label:ill").unlike is None
    assert one(few, "label:ill").num_positive_patients == 41
    assert one(enough, "label:ill").alike is not None
    scores = cohort_of({"score:s": "s"}, range(19), s=np.arange(19.0))
    assert one(scores, "score:s").sentence.endswith("19 test patients where a finding needs 20")


def test_a_patient_with_samples_of_both_sides_counts_on_either_as_a_verdict_has_it():
    cohort = cohort_of({"label:ill": "ill"}, np.repeat(range(25), 2), ill=[0, 1] * 25)
    found = one(cohort, "label:ill")
    assert (found.num_patients, found.num_positive_patients) == (25, 25)
    assert found.alike == pytest.approx(
        2.801585218 * np.sqrt(2 * (1 - auroc_correlation(0.75, 0.8))) * hanley_mcneil(0.75, 25, 25)
    )


def test_counts_of_many_class_labels_equal_a_loop():
    r = np.random.default_rng(4)
    names = np.array(["Mass", "Effusion", "Edema", "Hernia", "Fibrosis", "Nodule", "Pneumonia"])
    chance = np.array([0.3, 0.4, 0.2, 0.01, 0.25, 0.35, 0.15])
    who = np.sort(r.integers(0, 150, 500))
    drawn = r.random((500, 7)) < chance
    values = ["|".join(names[row]) or "none" for row in drawn]
    values[3] = ""
    cohort = cohort_of({"label:findings": "findings"}, who, findings=values)
    found = {each.target: each for each in find_resolutions(cohort)}
    targets, _ = find_targets(cohort, "classify", "findings", min_patients=1)
    expected = {}
    for target in targets:
        sides = [{int(p) for p, y in zip(who, target.y, strict=True) if y == k} for k in (0, 1)]
        counts = [
            [sum((who == p) & (target.y == k)) for p in sorted(side)] for k, side in zip((0, 1), sides, strict=True)
        ]
        worth = [effective_patients(each) for each in counts]
        if min(map(len, sides)) >= 20:
            expected[f"label:{target.name}"] = len(sides[1]), hanley_mcneil(0.75, worth[1], worth[0])
    commonest = sorted(expected, key=lambda name: -expected[name][0])[:5]
    assert list(found) == [*commonest, "label:findings"]
    for name in commonest:
        positive, se = expected[name]
        assert found[name].num_positive_patients == positive
        assert found[name].unlike == pytest.approx(2.801585218 * np.sqrt(2 * (1 - auroc_correlation(0.75, 0.5))) * se)
    rest = found["label:findings"]
    assert rest.alike is None
    cannot = len(names) + 1 - len(expected)
    assert rest.sentence == (
        f"label:findings: of the other classes {len(expected) - 5} can be decided too and {cannot} cannot be decided, "
        "for want of 20 positive and 20 negative test patients"
    )


def test_of_a_label_without_a_class_of_enough_patients_no_class_is_named():
    cohort = cohort_of({"label:who": "who"}, range(60), who=[f"name{k}" for k in range(60)])
    found = find_resolutions(cohort)
    assert [each.alike for each in found] == [None]
    assert "name" not in found[0].sentence.replace("names", "")
    assert found[0].sentence == (
        "label:who: cannot be decided: none of its classes (60) has 20 positive and 20 negative test patients; the "
        "commonest has 1 and 59"
    )
    constant = cohort_of({"label:who": "who"}, range(60), who=["all"] * 60)
    assert "the commonest has 60 and 0" in find_resolutions(constant)[0].sentence
    empty = cohort_of({"label:who": "who"}, range(60), who=["|"] * 60)
    assert "no test patient has a value" in find_resolutions(empty)[0].sentence
    missing = cohort_of({"label:who": "who"}, range(60), who=[""] * 60)
    assert "no test patient has a value" in find_resolutions(missing)[0].sentence


def test_numbers_are_told_in_their_unit_and_a_column_once():
    y = np.random.default_rng(0).normal(60, 10, 100)
    frame = pd.DataFrame({"image": [f"{k}" for k in range(100)], "patient": range(100), "age": y, "split": "test"})
    roles = {"score:years": "age", "attribute:age": "age", "attribute:sex": "sex"}
    spec = CohortSpec(table="t.csv", roles=roles, units={"score:years": "years"})
    found = find_resolutions(Cohort(frame.assign(sex=["F", "M"] * 50), spec))
    assert [each.target for each in found] == ["score:years"]
    away = np.abs(y - np.median(y))
    assert found[0].unlike == pytest.approx(2.801585218 * away.std(ddof=1) / 10, rel=0.03)
    assert "years of MAE" in found[0].sentence
    assert f"of the {away.mean():.1f} by which the median errs" in found[0].sentence


def test_a_score_without_spread_cannot_be_decided():
    cohort = cohort_of({"score:s": "s"}, range(40), s=[3.0] * 40)
    assert one(cohort, "score:s").sentence == (
        "score:s: cannot be decided: a constant guess errs by 0 on each of 40 test patients"
    )
    balanced = cohort_of({"score:s": "s"}, range(40), s=[0.0, 1.0] * 20)  # the median between them errs by 0.5 on all
    assert one(balanced, "score:s").alike is not None


def test_masks_are_counted_by_patients_that_have_one():
    masks = [f"m{k}.png" if k % 3 else "" for k in range(90)]
    found = one(cohort_of({"mask": "mask"}, np.repeat(range(45), 2), mask=masks), "mask")
    assert (found.task, found.metric, found.num_patients, found.num_positive_patients) == ("segment", "dice", 45, None)
    assert found.unlike == pytest.approx(2.801585218 * 0.08 / np.sqrt(45))
    assert "if Dice varies by 0.08 between patients" in found.sentence
    few = one(cohort_of({"mask": "mask"}, range(30), mask=["m.png"] * 12 + [""] * 18), "mask")
    assert few.sentence == "mask: cannot be decided: 12 test patients with a mask where a finding needs 20"


def test_a_volume_has_a_mask_where_each_of_its_slices_has_one():
    patients = np.repeat(range(45), 2)
    masks = [f"m{k}.png" if k % 6 else "" for k in range(90)]  # the first slices of 15 patients have none
    cohort = cohort_of({"mask": "mask", "series": "s", "order": "z"}, patients, mask=masks, s=patients, z=[0, 1] * 45)
    assert one(cohort, "mask", samples=cohort.samples("volume")).num_patients == 30
    assert one(cohort, "mask").num_patients == 45


def test_what_positive_means_is_told_unless_it_is_plain():
    sex = cohort_of({"label:sex": "sex"}, range(60), sex=["F", "M"] * 30)
    assert "60 test patients, 30 of them positive (M): a difference of" in one(sex, "label:sex").sentence
    ill = cohort_of({"label:ill": "ill"}, range(60), ill=["0", "1"] * 30)
    assert "60 test patients, 30 of them positive: a difference of" in one(ill, "label:ill").sentence


def test_four_times_the_patients_halve_the_difference():
    found = [one(cohort_of({"label:ill": "ill"}, range(n), ill=[0, 1] * (n // 2)), "label:ill") for n in (100, 400)]
    assert found[0].alike == pytest.approx(2 * found[1].alike, rel=0.02)


@pytest.mark.data
def test_real_cohorts(shared_data: Path):
    roles = {"visit": "followup", "label:abnormal": "abnormal", "label:findings": "findings"}
    chest = Cohort.open(shared_data / "nih1000" / "meta.csv", roles=roles)
    found = {each.target: each for each in find_resolutions(chest)}
    abnormal = found["label:abnormal"]
    test = chest.split == "test"
    ill = chest.encoded("patient")[test & (chest.encoded("label:abnormal") == 1)]
    assert abnormal.num_patients == len(np.unique(chest.encoded("patient")[test]))
    assert abnormal.num_positive_patients == len(np.unique(ill))
    assert 0.05 < abnormal.alike < abnormal.unlike < 0.25
    assert found["attribute:age"].alike < 5
    assert "label:findings" in found
    eyes = Cohort.open(shared_data / "odir" / "meta.csv", roles={"laterality": "eye", "label:cataract": "C"})
    cataract, age = find_resolutions(eyes)
    assert cataract.num_patients > 500
    assert 0.05 < cataract.alike < cataract.unlike < 0.2
    assert age.target == "attribute:age"
    assert age.alike < 1


def test_classes_written_as_numbers_are_no_numbers_to_regress() -> None:
    number = np.arange(60)
    columns = {"sex": np.where(number == 3, "", (number % 2).astype(str)), "weight": 50 + number}
    found = find_resolutions(cohort_of({"attribute:sex": "sex", "attribute:weight": "weight"}, number, **columns))
    assert [each.target for each in found] == ["attribute:weight"]
