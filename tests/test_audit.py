"""Groups of patients: metrics in each, gaps beside those of random groups, and what an embedding tells of them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import save_encoder
from bolus.errors import EvaluationError, UsageError
from bolus.evaluation.audit.audit import Audit, evaluate_audit, summarise_audit
from bolus.evaluation.audit.chance import outcome_strata, random_groups
from bolus.evaluation.audit.decoding import decode
from bolus.evaluation.audit.gaps import GroupReport, judge_groups
from bolus.evaluation.audit.subgroups import Grouping, cut_bands, find_groupings
from bolus.evaluation.settings import Judging
from bolus.evaluation.statistics.bootstrap import patient_bootstrap
from bolus.evaluation.statistics.intervals import Estimate
from bolus.evaluation.statistics.metrics import METRICS
from bolus.evaluation.statistics.results import Result, read_results
from bolus.phantom.images import make_phantom
from bolus.recipe import EncoderSpec
from bolus.seeds import seed_for

BLANK = Result("audit", "sick", "", math.nan, math.nan, math.nan, 0, 0, versions={}, probe="linear")


def judged(y: Any, scores: Any, patients: Any, *groupings: Grouping, **options: Any) -> GroupReport:
    """`judge_groups` of one encoder, with few draws."""
    given = scores if isinstance(scores, dict) else {"run": scores}
    return judge_groups(y, given, patients, groupings, **{"blank": BLANK, "draws": 200, **options})


def pick(results: list[Result], **wanted: Any) -> Result:
    """The one result with these fields."""
    found = [r for r in results if all(getattr(r, key) == value for key, value in wanted.items())]
    assert len(found) == 1, f"{wanted}: {len(found)}"
    return found[0]


def cohort_of(
    seed: int, sizes: tuple[int, ...], rates: tuple[float, ...], effect: tuple[float, ...]
) -> tuple[Any, ...]:
    """Targets, scores, patients and groups: two images a patient, the effect of a positive by group."""
    r = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(sizes)), sizes)
    sick = r.random(len(group)) < np.asarray(rates)[group]
    score = np.asarray(effect)[group] * sick + r.normal(size=len(group))
    patients = np.repeat(np.arange(len(group)), 2)
    return np.repeat(sick, 2).astype(int), np.repeat(score, 2) + 0.3 * r.normal(size=len(patients)), patients, Grouping(
        "site", np.repeat(group, 2), tuple("ABCD"[: len(sizes)])
    )  # fmt: skip


# --- gaps


@pytest.mark.parametrize("seed", range(3))
def test_a_group_that_is_worse_by_construction_is_found_and_decided(seed: int) -> None:
    found = judged(*cohort_of(seed, (120, 120, 120), (0.5, 0.5, 0.5), (2.5, 2.5, 0.2)))
    gap = next(r for r in found.gaps if r.metric == "auroc")
    assert gap.subset.startswith("site: C against ")
    assert gap.notes[0].startswith("decided for this training: C is worse than ")
    assert gap.ci_low > 0.1
    assert gap.chance is not None and gap.chance < gap.estimate / 2
    all_of_them = pick(found.gaps, metric="auroc", subset="site: C against all")
    assert all_of_them.notes[0].startswith("decided")
    assert 0 < all_of_them.estimate < gap.estimate


def test_a_gap_among_many_is_held_against_more_random_groups() -> None:
    data = cohort_of(0, (120, 120, 120), (0.5, 0.5, 0.5), (2.5, 2.5, 0.2))
    alone, among = (
        next(r for r in judged(*data, draws=100, together=number).gaps if r.metric == "auroc") for number in (25, 90)
    )
    assert (alone.p_value, among.p_value) == (1 / 101, 1 / 401), "none of the random groups is as far apart"
    assert (alone.estimate, alone.ci_low) == (among.estimate, among.ci_low)


@pytest.mark.parametrize("rates", [(0.5, 0.5, 0.5, 0.5), (0.85, 0.5, 0.15, 0.5)])
def test_without_a_difference_about_one_gap_in_twenty_is_decided(rates: tuple[float, ...]) -> None:
    decided, above, low = 0, 0, 0
    for seed in range(40):
        data = cohort_of(seed, (150, 150, 150, 60), rates, (1.0,) * 4)
        gap = next(r for r in judged(*data, draws=120, seed=seed).gaps if r.metric == "auroc")
        assert gap.chance is not None
        decided += gap.notes[0].startswith("decided")
        above += gap.estimate > gap.chance
        low += gap.ci_low > 0
    assert decided <= 6
    assert 10 <= above <= 30, "chance lies in the middle of what is found"
    assert low > 6, "the interval of the worst against the best alone would be no evidence"


def test_groups_and_gaps_are_those_of_loops() -> None:
    y, score, patients, grouping = cohort_of(1, (30, 25, 40), (0.5, 0.4, 0.6), (2.0, 1.0, 0.5))
    patients[5] = -1
    found = judged(y, score, patients, grouping, seed=4)
    weights = patient_bootstrap(patients, draws=200, seed=4)
    strata = outcome_strata(y, patients, "classify")
    dealt = np.concatenate(
        list(random_groups(grouping.codes, patients, strata, draws=200, seed=seed_for(4, "random groups", "site")))
    )
    for name, metric in METRICS["binary"].items():
        sign = -1 if name == "brier" else 1
        values, drawn, random = [], [], []
        for code in range(3):
            rows = np.flatnonzero(grouping.codes == code)
            values.append(metric(y[rows], score[rows]))
            drawn.append([metric(np.repeat(y[rows], w[rows]), np.repeat(score[rows], w[rows])) for w in weights])
            random.append([metric(y[g == code], score[g == code]) for g in dealt])
            this = pick(found.groups, metric=name, subset=f"site={'ABC'[code]}")
            assert this.estimate == pytest.approx(values[code])
            expected = Estimate.from_draws(values[code], drawn[code], patients[rows], metric=name, y=y[rows])
            assert (this.ci_low, this.ci_high) == pytest.approx((expected.low, expected.high))
            assert this.num_positive_patients == len({*patients[rows][y[rows] == 1]})
        worst, best = int(np.argmin(sign * np.array(values))), int(np.argmax(sign * np.array(values)))
        gap = pick(found.gaps, metric=name, subset=f"site: {'ABC'[worst]} against {'ABC'[best]}")
        differences = sign * (np.array(drawn[best]) - np.array(drawn[worst]))
        assert gap.estimate == pytest.approx(sign * (values[best] - values[worst]))
        rows = np.flatnonzero(np.isin(grouping.codes, (worst, best)))
        sides = y[rows] + 2 * grouping.codes[rows]
        expected = Estimate.from_draws(gap.estimate, differences, patients[rows], metric=name, y=sides, difference=True)
        assert (gap.ci_low, gap.ci_high) == pytest.approx((expected.low, expected.high))
        spread = np.ptp(np.array(random), axis=0)
        assert gap.chance == pytest.approx(spread.mean())
        high = float(np.percentile(spread, 95))
        assert gap.notes[0].startswith("decided") == (gap.estimate > high and gap.ci_low > 0 and not gap.notes[1:])
        assert gap.detectable == pytest.approx(high + 0.842 * expected.se)
        assert gap.p_value == pytest.approx((1 + sum(spread >= gap.estimate)) / 201)
        whole = pick(found.gaps, metric=name, subset=f"site: {'ABC'[worst]} against all")
        below = sign * metric(y, score) - (sign * np.array(random)).min(0)
        assert whole.chance == pytest.approx(below.mean())
        assert whole.estimate == pytest.approx(sign * (metric(y, score) - values[worst]))


def test_of_an_error_the_higher_is_worse() -> None:
    r = np.random.default_rng(0)
    y, group = r.normal(size=200), np.repeat(["F", "M"], 100)
    score = y + r.normal(size=200) * np.where(group == "M", 2.0, 0.2)
    found = judged(y, score, np.arange(200), Grouping.of_labels("sex", group), task="regress", num_classes=0)
    for metric in ("mae", "r2"):
        gap = pick(found.gaps, metric=metric, subset="sex: M against F")
        assert gap.ci_low > 0 and gap.notes[0].startswith("decided for this training: M is worse than F by ")


def test_several_classes_are_judged_too() -> None:
    r = np.random.default_rng(0)
    y, group = r.integers(3, size=300), np.repeat(["F", "M"], 150)
    p = np.eye(3)[np.where((group == "M") & (r.random(300) < 0.7), r.integers(3, size=300), y)]
    found = judged(y, p, np.arange(300), Grouping.of_labels("sex", group), num_classes=3)
    assert pick(found.gaps, metric="balanced_accuracy", subset="sex: M against F").notes[0].startswith("decided")
    assert pick(found.groups, metric="balanced_accuracy", subset="sex=F").estimate == 1.0


def test_encoders_are_compared_in_every_group_on_the_same_draws() -> None:
    y, score, patients, grouping = cohort_of(0, (60, 60), (0.5, 0.5), (2.0, 2.0))
    other = np.random.default_rng(9).normal(size=len(y))
    found = judged(y, {"run": score, "random-init": other, "copy": score}, patients, grouping)
    for subset in ("", "site=A", "site=B"):
        both = [pick(found.groups, metric="auroc", subset=subset, encoder=name, baseline="").estimate
                for name in ("run", "random-init")]  # fmt: skip
        difference = pick(found.groups, metric="auroc", subset=subset, baseline="random-init")
        assert difference.estimate == pytest.approx(both[0] - both[1])
        assert difference.ci_low > 0 and difference.detectable is not None
        same = pick(found.groups, metric="auroc", subset=subset, baseline="copy")
        assert (same.estimate, same.ci_low, same.ci_high, same.detectable) == (0.0, 0.0, 0.0, None)
    assert {r.encoder for r in found.gaps} == {"run", "random-init", "copy"}


def test_groups_without_a_finding_in_reach_are_said_to_be_small_and_enter_no_gap_between_large_ones() -> None:
    y, score, patients, grouping = cohort_of(0, (90, 90, 12), (0.5, 0.5, 0.5), (2.0, 2.0, -2.0))
    found = judged(y, score, patients, grouping)
    small = pick(found.groups, metric="auroc", subset="site=C")
    assert small.num_patients == 12 and small.notes[0].startswith("only ")
    assert {r.subset for r in found.gaps} <= {f"site: {a} against {b}" for a in "AB" for b in ("A", "B", "all")}
    assert any("other groups than C: too few patients" in note for note in found.notes)
    rows = np.flatnonzero(grouping.codes > 0)
    alone = judged(y[rows], score[rows], patients[rows], grouping.take(rows))
    gap = pick(alone.gaps, metric="auroc", subset="site: C against B")
    assert gap.notes[0].startswith("undecided: C is worse") and "but only" in gap.notes[0]


def test_a_metric_that_a_group_does_not_define_is_nan_and_said() -> None:
    y, score, patients, grouping = cohort_of(0, (50, 50, 50), (0.5, 0.5, 0.0), (2.0, 2.0, 2.0))
    found = judged(y, score, patients, grouping)
    result = pick(found.groups, metric="auroc", subset="site=C")
    assert math.isnan(result.estimate) and math.isnan(result.ci_low)
    assert any("site=C: one class only" in note for note in found.notes)
    assert not any("C" in r.subset.removeprefix("site: ") for r in found.gaps if r.metric == "auroc")
    one = judged(np.zeros(100, int), score[:100], patients[:100], grouping.take(np.arange(100)))
    assert {r.metric for r in one.gaps} <= {"brier"}
    assert not any(r.notes[0].startswith("decided") for r in one.gaps)


def test_what_is_missing_small_or_in_two_groups_is_counted() -> None:
    y, score, patients, grouping = cohort_of(0, (40, 40, 4), (0.5, 0.5, 0.5), (2.0, 2.0, 2.0))
    codes = grouping.codes.copy()
    codes[[0, 1, 2]], codes[[10, 12]] = -1, 1
    found = judged(y, score, patients, replace(grouping, codes=codes))
    assert "site is missing in 3 test samples of 2 patients, in no group" in found.notes
    assert "site: 2 test patients have samples in more than one group" in found.notes
    assert "site: left out with fewer than 5 test patients: C (4)" in found.notes
    subsets = {r.subset: r for r in found.groups if r.metric == "auroc"}
    assert set(subsets) == {"", "site=A", "site=B"}
    assert subsets[""].num_samples == 168 and subsets["site=A"].num_samples == 80 - 3 - 2
    assert subsets["site=B"].num_patients == 42
    two = judged(y[160:], score[160:], patients[160:], grouping.take(np.arange(160, 168)))
    assert not two.gaps and any("there is no gap" in note for note in two.notes)


# --- random groups


def test_random_groups_keep_patients_sizes_and_outcomes() -> None:
    r = np.random.default_rng(0)
    patients, y = r.integers(-1, 30, 200), r.integers(2, size=200)
    single = r.integers(3, size=31)[patients]
    codes = np.where(patients % 4 == 0, r.integers(3, size=200), single)
    strata = outcome_strata(y, patients, "classify")
    blocks = list(random_groups(codes, patients, strata, draws=25, seed=1, block_size=2000))
    assert [len(block) for block in blocks] == [10, 10, 5]
    whole = {p: set(codes[patients == p]) for p in range(30)}
    for drawn in np.concatenate(blocks):
        for p, groups in whole.items():
            mine = drawn[patients == p]
            if len(groups) > 1:
                assert sorted(mine) == sorted(codes[patients == p])
            else:
                assert len(set(mine)) == 1
        for stratum in np.unique(strata):
            alone = [p for p, groups in whole.items() if len(groups) == 1 and strata[patients == p][0] == stratum]
            first = [np.flatnonzero(patients == p)[0] for p in alone]
            rows = [*first, *np.flatnonzero((patients == -1) & (strata == stratum))]
            assert sorted(drawn[rows]) == sorted(codes[rows])


def test_every_random_grouping_is_as_likely() -> None:
    codes, patients = np.array([0, 0, 1, 2, 1]), np.array([0, 0, 1, 2, 2])
    drawn = np.concatenate(list(random_groups(codes, patients, np.zeros(5, int), draws=4000, seed=0)))
    seen, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(seen) == 4 and (seen[:, 0] == seen[:, 1]).all()
    assert np.abs(counts - 1000).max() < 5 * math.sqrt(4000 * 0.25 * 0.75)


def test_strata_are_by_the_rarest_class_and_by_fifths_of_a_number() -> None:
    assert outcome_strata([0, 1, 0, 2, 1, 2, 2], [0, 0, 1, 1, 2, 3, -1], "classify").tolist() == [0, 0, 0, 0, 1, 2, 2]
    strata = outcome_strata(np.arange(20.0), np.arange(20) // 2, "regress")
    assert np.array_equal(strata, np.repeat(np.arange(5), 4))
    assert outcome_strata([3.0, 3.0], [0, 1], "regress").tolist() == [4, 4]


# --- which groups


def table(**columns: Any) -> Cohort:
    """A cohort of 120 patients, a row each, half of them in the test."""
    frame = pd.DataFrame({"image": [f"{i}.png" for i in range(120)], "patient": [f"P{i:03d}" for i in range(120)],
                          "split": ["train", "test"] * 60, **columns})  # fmt: skip
    roles = {f"label:{name}": name for name in columns if name.startswith("finding")}
    roles |= {f"score:{name}": name for name in columns if name.startswith("score")}
    return Cohort(frame, CohortSpec(table="t.csv", roles=roles))


def test_the_usual_roles_are_taken_where_test_patients_differ() -> None:
    cohort = table(sex=["F", "F", "M", "M"] * 30, site=["A"] * 120, age=list(range(20, 80)) * 2, view=["AP", "PA"] * 60)
    found, notes = find_groupings(cohort)
    bands = ("below 40", "40 to 60", "60 to 75", "75 and above")
    assert [(g.name, g.names) for g in found] == [("sex", ("F", "M")), ("age", bands)]
    assert notes == [
        "site is left out: it has 1 value(s) among the test patients",
        "view_position is left out: it has 1 value(s) among the test patients",
    ]
    assert not found[1].notes and found[1].values is not None and found[1].values[0] == 20
    with pytest.raises(EvaluationError, match="two values among the test patients, found 1"):
        find_groupings(cohort, ["site"])
    with pytest.raises(EvaluationError, match="nothing to compare groups by"):
        find_groupings(table())


def test_numbers_are_cut_at_the_edges_given_or_at_quartiles_of_the_training_patients() -> None:
    ages = np.tile(np.arange(41.0, 47.0, 0.1), 2)
    cohort = table(age=ages, score_few=[1, 2, 5] * 40, score_many=np.arange(120))
    by_age, few, many = find_groupings(cohort, ["age", "score_few", "score:score_many"])[0]
    edges = np.quantile(ages[::2], [0.25, 0.5, 0.75])
    assert by_age.notes[0].startswith("age: fewer than two of the bands below 40, 40 to 60")
    assert by_age.names[0] == f"below {edges[0]:.3g}"
    assert (few.names, few.values) == (("1", "2", "5"), None)
    assert many.names == ("below 29.5", "29.5 to 59", "59 to 88.5", "88.5 and above")
    assert many.notes == ("score_many: the bands are quartiles of the training patients",)
    asked = find_groupings(cohort, ["age"], age_bands=[42, 43.5])[0][0]
    assert asked.names == ("below 42", "42 to 43.5", "43.5 and above") and not asked.notes
    assert np.array_equal(asked.codes, (ages >= 42).astype(int) + (ages >= 43.5))


def test_bands_and_roles_that_cannot_be_are_refused() -> None:
    cohort = table(sex=["F", "F", "M", "M"] * 30)
    for edges in ([], [3, 2], [1, 1], [math.nan]):
        with pytest.raises(UsageError, match="ascending order"):
            cut_bands([1.0], edges)
    with pytest.raises(UsageError, match="ascending order"):
        find_groupings(cohort, age_bands=(60, 40))
    with pytest.raises(UsageError, match="at least one role"):
        find_groupings(cohort, [])
    with pytest.raises(UsageError, match="name files or people"):
        find_groupings(cohort, ["patient"])
    with pytest.raises(EvaluationError, match="did you mean"):
        find_groupings(cohort, ["attribute:sx"])


def test_two_roles_of_one_name_are_told_apart() -> None:
    frame = pd.DataFrame({"image": list("abcd"), "patient": list("abcd"), "split": "test", "x": [1, 1, 2, 2],
                          "y": list("stst")})  # fmt: skip
    cohort = Cohort(frame, CohortSpec(table="t.csv", roles={"score:kind": "x", "attribute:kind": "y"}))
    assert [g.name for g in find_groupings(cohort, ["score:kind", "attribute:kind"])[0]] == [
        "score:kind",
        "attribute:kind",
    ]
    assert [g.name for g in find_groupings(cohort, ["kind"])[0]] == ["kind"]


# --- decoding


def test_attributes_that_an_embedding_holds_are_read_and_others_not() -> None:
    r, n = np.random.default_rng(0), 400
    split = np.repeat(["train", "val", "test"], [200, 50, 150])
    codes, age = r.integers(3, size=n), r.normal(60, 10, size=n)
    x = np.column_stack([np.eye(3)[codes] * 3 + r.normal(size=(n, 3)), age + r.normal(size=n)])
    encoders = {"run": x, "random-init": r.normal(size=(n, 4))}
    site = Grouping("site", codes, ("A", "B", "C"))
    bands = Grouping("age", *cut_bands(age, (40, 60)), values=age)
    for grouping, metrics in ((site, {"macro_auroc", "balanced_accuracy"}), (bands, {"r2", "mae"})):
        results, notes = decode(encoders, grouping, np.arange(n), split, judging=Judging(draws=100))
        assert {r.metric for r in results} == metrics
        assert {(r.task, r.target, r.subset) for r in results} == {("audit", f"decode:{grouping.name}", "")}
        assert {r.encoder for r in results} == {"run", "random-init", "majority"}
        values = {r.encoder: r.estimate for r in results if r.metric == results[0].metric and not r.baseline}
        assert values["run"] > 0.9 and values["random-init"] < 0.65
        assert pick(results, metric=results[0].metric, baseline="random-init").ci_low > 0
        assert "random-init encoder reads as well" in notes[-1]


def test_an_attribute_of_one_value_is_not_read() -> None:
    split = np.repeat(["train", "test"], 20)
    x = {"run": np.random.default_rng(0).normal(size=(40, 2))}
    only = Grouping("site", np.r_[np.zeros(20, int), np.arange(20) % 2], ("A", "B"))
    results, notes = decode(x, only, np.arange(40), split)
    assert not results and notes == ["decode:site: fewer than two values among the train patients, so it was not read"]


# --- from an encoder to files


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("phantom"), num_patients=60, size=32).with_name("cohort.yaml")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders") / "e"
    save_encoder(build_encoder(EncoderSpec(backbone="r18w32", stem_pool=False), seed=5), folder,
                 preprocessing={"size": 32, "channels": 1})  # fmt: skip
    return folder


@pytest.mark.slow
def test_the_phantom_is_audited_by_all_that_its_table_knows(encoder: Path, phantom: Path, tmp_path: Path) -> None:
    found = evaluate_audit(encoder, phantom, target="disease", draws=50, cache=tmp_path / "c", out=tmp_path / "out")
    assert isinstance(found, Audit)
    read = read_results(tmp_path / "out" / "results.jsonl")
    assert [r.to_json() for r in read] == [r.to_json() for r in found.results]
    assert all(r.num_positive is None for r in found.gaps)
    assert {r.task for r in found.results} == {"audit"}
    attributes = {r.subset.partition("=")[0] for r in found.groups if r.subset}
    assert attributes == {"sex", "age", "site", "modality", "laterality"}
    assert {r.encoder for r in found.groups} == {"e", "random-init", "majority"}
    assert {r.target for r in found.decoding} == {f"decode:{name}" for name in attributes}
    cohort = Cohort.open(phantom)
    rows = (cohort.split == "test") & (cohort.encoded("label:disease") >= 0)
    everyone = pick(found.groups, metric="auroc", subset="", encoder="e", baseline="")
    assert everyone.num_samples == rows.sum()
    women = pick(found.groups, metric="auroc", subset="sex=F", encoder="e", baseline="")
    assert women.num_samples == (rows & (cohort.values("attribute:sex") == "F").to_numpy(bool, na_value=False)).sum()
    assert all(r.chance is not None for r in found.gaps if r.metric == "auroc")
    notes = json.loads((tmp_path / "out" / "notes.json").read_text(encoding="utf-8"))
    assert notes == {"general": found.notes, "targets": found.target_notes}
    assert any("laterality: " in note and "more than one group" in note for note in notes["targets"]["disease"])
    text = found.summary()
    for said in (
        "sex=F",
        "all",
        "random-init",
        "sex: ",
        "decode:sex: auroc",
        "Holm over 10 verdicts",
        "Holm over 5 verdicts",
    ):
        assert said in text
    written = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "out").iterdir())
    assert not any(f'"{name}"' in written or f" {name} " in written for name in cohort.table["patient"].unique())


@pytest.mark.slow
def test_numbers_several_probes_and_baselines_are_audited(encoder: Path, phantom: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"task": "regress", "target": "severity", "by": ["sex", "age"], "age_bands": (50, 65)}
    found = evaluate_audit(encoder, phantom, **options, probes=("linear", "knn"), baselines=[encoder], draws=30,
                           cache=tmp_path / "c", out=tmp_path / "out")  # fmt: skip
    assert {r.subset for r in found.groups} == {
        "",
        "sex=F",
        "sex=M",
        "age=below 50",
        "age=50 to 65",
        "age=65 and above",
    }
    main = [r for r in found.groups if r.metric == "mae" and not r.subset and not r.baseline]
    assert [(r.encoder, r.probe) for r in main] == [
        *[(name, "linear") for name in ("e", "random-init", "e (2)")], ("majority", "none"),
        *[(name, "knn") for name in ("e", "random-init", "e (2)")],
    ]  # fmt: skip
    same = pick(found.groups, metric="mae", subset="sex=F", probe="linear", baseline="e (2)")
    assert (same.estimate, same.ci_low, same.ci_high) == (0.0, 0.0, 0.0)
    assert {r.metric for r in found.decoding if r.target == "decode:age"} == {"r2", "mae"}
    assert summarise_audit(found.groups, found.gaps, found.decoding) == found.summary().splitlines()
    assert found.summary().count("severity, ") == 2


def test_a_question_that_cannot_be_is_refused_before_images_are_read(
    encoder: Path, phantom: Path, tmp_path: Path
) -> None:
    wrongs: tuple[tuple[dict[str, Any], type[Exception]], ...] = (
        ({"by": ["scanner"]}, EvaluationError),
        ({"by": ["patient"]}, UsageError),
        ({"probes": ("finetune",)}, UsageError),
        ({"task": "segment"}, UsageError),
        ({"age_bands": (2, 1)}, UsageError),
        ({"target": "no such"}, EvaluationError),
    )
    for wrong, error in wrongs:
        with pytest.raises(error):
            evaluate_audit(encoder, phantom, **{"target": "disease", "cache": tmp_path / "unopened", **wrong})
    assert not (tmp_path / "unopened").exists()
