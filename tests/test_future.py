"""Later labels and scores: found as a loop would find them, beside what is known now, and from run to files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import save_encoder
from bolus.errors import EvaluationError, UsageError
from bolus.evaluation.probing.future import Several, look_ahead, next_values, present_columns
from bolus.evaluation.probing.options import FinetuneSpec
from bolus.evaluation.probing.reading import evaluate
from bolus.evaluation.probing.task import Classify, Regress
from bolus.evaluation.statistics.results import read_results
from bolus.evaluation.targets import find_targets
from bolus.recipe import EncoderSpec

NAN = np.nan


def by_loop(
    y: list[float], patients: list[int], times: list[float], groups: list[int], gap: float, several: Several
) -> list[float]:
    """What `next_values` finds, row by row."""
    found = []
    for i in range(len(y)):
        later = []
        for j in range(len(y)):
            alike = patients[i] == patients[j] != -1 and groups[i] == groups[j]
            if alike and times[j] > times[i] and times[j] >= times[i] + gap and not np.isnan(y[j]):
                later.append((times[j], y[j]))
        if not later:
            found.append(NAN)
            continue
        next_time = min(time for time, _ in later)
        values = [value for time, value in later if time == next_time or time < next_time + gap]
        if several == "mean":
            found.append(sum(values) / len(values))
        elif several == "any":
            found.append(max(values))
        else:
            found.append(values[0] if len(set(values)) == 1 else NAN)
    return found


@pytest.mark.parametrize("several", ["any", "mean", "same"])
@pytest.mark.parametrize("gap", [0.0, 1.0])
def test_next_values_are_those_of_a_loop(several: Several, gap: float) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        n = 40
        y = np.where(rng.random(n) < 0.3, NAN, rng.integers(0, 3, n).astype(float))
        times = np.where(rng.random(n) < 0.1, NAN, rng.integers(0, 8, n) / 2)
        patients, groups = rng.integers(-1, 5, n), rng.integers(-1, 2, n)
        found = next_values(y, patients, times, groups, gap=gap, several=several)
        expected = by_loop(y.tolist(), patients.tolist(), times.tolist(), groups.tolist(), gap, several)
        np.testing.assert_array_equal(found, expected)
        assert np.isfinite(found).any()


def test_the_order_of_the_rows_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    y, patients, times = rng.normal(size=30), rng.integers(0, 6, 30), rng.integers(0, 5, 30).astype(float)
    order = rng.permutation(30)
    np.testing.assert_allclose(
        next_values(y[order], patients[order], times[order]), next_values(y, patients, times)[order]
    )


def test_a_wrong_call_is_refused() -> None:
    with pytest.raises(EvaluationError, match="one length"):
        next_values([1.0], [0, 0], [0.0])
    with pytest.raises(UsageError, match="gap"):
        next_values([1.0], [0], [0.0], gap=-1.0)
    with pytest.raises(UsageError, match="several"):
        next_values([1.0], [0], [0.0], several="most")  # type: ignore[arg-type]


def test_what_is_known_now_becomes_columns() -> None:
    codes = present_columns(np.array([0, 2, NAN]), np.array([True, True, True]), num_classes=3)
    assert codes.tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    numbers = present_columns(np.array([1.0, 3.0, NAN, 9.0]), np.array([True, True, True, False]), num_classes=None)
    assert numbers.tolist() == [[-1, 1, 0], [1, 1, 0], [0, 0, 1], [7, 1, 0]], "by the training rows' mean and spread"
    constant = present_columns(np.array([2.0, 2.0]), np.array([True, True]), num_classes=None)
    assert np.isfinite(constant).all()


# --- questions of a cohort


def cohort_of(columns: dict[str, list[object]], roles: dict[str, str]) -> Cohort:
    """A cohort whose first patients are training patients, and the last half test ones."""
    patients = columns["patient"]
    half = sorted(set(map(str, patients)))[len(set(map(str, patients))) // 2]
    table = pd.DataFrame({**columns, "part": ["test" if str(p) >= half else "train" for p in patients]})
    table.insert(0, "image", [f"{row}.png" for row in range(len(table))])
    return Cohort(table.astype(object), CohortSpec(table="t.csv", roles={**roles, "split": "part"}))


def four_patients(**more: list[object]) -> Cohort:
    """Of each patient two visits with a left and a right row; patients b and d become sick, a and c were always."""
    columns = {
        "patient": [p for p in "abcd" for _ in range(4)],
        "visit": [1, 1, 2, 2] * 4,
        "laterality": ["L", "R", "L", "R"] * 4,
        "sick": ["yes"] * 4 + ["no", "no", "yes", "no"] + ["yes"] * 4 + ["no", "no", "no", "yes"],
        "score": [float(row) for row in range(16)],
        **more,
    }
    return cohort_of(columns, {"label:sick": "sick", "score:severity": "score"})


def test_a_label_is_that_of_the_next_visit_and_the_same_side() -> None:
    cohort = four_patients()
    targets, _ = find_targets(cohort, "classify", "sick")
    ahead = look_ahead(cohort.samples("image"), targets, "next", task="classify")
    (target,) = ahead.targets
    assert (target.name, target.classes, target.y.dtype) == ("next:sick", ("0", "1"), np.int64)
    assert target.y.tolist() == [1, 1, -1, -1, 1, 0, -1, -1, 1, 1, -1, -1, 0, 1, -1, -1]
    assert ahead.present["next:sick"].tolist() == [1] * 4 + [0, 0, 1, 0] + [1] * 4 + [0, 0, 0, 1]
    assert any("8 of 16 samples have no later value" in note for note in ahead.notes)
    assert any("visits to the later value: median 1," in note for note in ahead.notes)
    (score,) = look_ahead(
        cohort.samples("image"), find_targets(cohort, "regress", "severity")[0], "next", task="regress"
    ).targets
    np.testing.assert_array_equal(score.y[:4], [2.0, 3.0, NAN, NAN])


def test_without_a_side_any_positive_row_counts() -> None:
    columns = {"patient": list("aaabbb"), "visit": [1, 2, 2] * 2, "sick": ["no", "no", "yes", "no", "no", "no"]}
    cohort = cohort_of(columns, {"label:sick": "sick"})
    targets, _ = find_targets(cohort, "classify", "sick")
    ahead = look_ahead(cohort.samples("image"), targets, "next", task="classify")
    assert ahead.targets[0].y.tolist() == [1, -1, -1, 0, -1, -1]


def test_incident_asks_only_those_who_are_negative_now() -> None:
    cohort = four_patients()
    targets, _ = find_targets(cohort, "classify", "sick")
    ahead = look_ahead(cohort.samples("image"), targets, "incident", task="classify")
    assert ahead.targets[0].name == "incident:sick"
    assert ahead.targets[0].y.tolist() == [-1] * 4 + [1, 0, -1, -1] + [-1] * 4 + [0, 1, -1, -1]
    assert not ahead.present
    assert any("4 more are not '0' now" in note for note in ahead.notes)


def test_times_of_one_day_are_one_visit() -> None:
    columns = {"patient": list("aaabbb"), "time": [0.3, 0.6, 40.0] * 2, "score": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}
    cohort = cohort_of(columns, {"score:severity": "score"})
    targets, _ = find_targets(cohort, "regress", "severity")
    ahead = look_ahead(cohort.samples("image"), targets, "next", task="regress")
    np.testing.assert_array_equal(ahead.targets[0].y, [3.0, 3.0, NAN, 6.0, 6.0, NAN])


def test_classes_of_many_are_left_out_where_few_become_so() -> None:
    columns = {"patient": [p for p in "abcdef" for _ in range(2)], "visit": [1, 2] * 6,
               "kind": ["x", "y", "y", "x", "z", "z"] * 2}  # fmt: skip
    cohort = cohort_of(columns, {"label:kind": "kind"})
    targets, _ = find_targets(cohort, "classify", "kind", min_patients=1)
    ahead = look_ahead(cohort.samples("image"), targets, "next", task="classify", min_patients=3)
    assert [target.name for target in ahead.targets] == ["next:kind"]
    assert sum("fewer than 3" in note for note in ahead.notes) == 3
    with pytest.raises(EvaluationError, match="no question is left"):
        look_ahead(cohort.samples("image"), targets[:1], "incident", task="classify")


def test_questions_without_a_future_are_refused() -> None:
    for task, horizon, said in ((Classify, "nxt", "did you mean 'next'"), (Regress, "incident", "take next")):
        with pytest.raises(UsageError, match=said):
            task(target="sick", horizon=horizon)
    timeless = cohort_of({"patient": list("ab"), "sick": ["no", "yes"]}, {"label:sick": "sick"})
    with pytest.raises(EvaluationError, match="role time or visit"):
        look_ahead(timeless.samples("image"), find_targets(timeless, "classify", "sick")[0], "next", task="classify")
    once = four_patients(visit=[1] * 16)
    with pytest.raises(EvaluationError, match="no train patient has a value at a later visit"):
        look_ahead(once.samples("image"), find_targets(once, "classify", "sick")[0], "next", task="classify")


# --- from encoder to files


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    save_encoder(build_encoder(EncoderSpec(backbone="r18w32"), seed=0), tmp_path / "e", preprocessing={"size": 24})
    return tmp_path / "e"


@pytest.fixture
def worsening(tiny_cohort: Path) -> Path:
    """The tiny cohort, where sick patients are so from the second visit on, but for those divisible by four."""
    table = pd.read_csv(tiny_cohort.with_name("table.csv"))
    number = table["patient"].str[1:].astype(int)
    sick = (number % 2 == 1) & (table["visit"] >= 1) | (number % 4 == 0) & (table["visit"] == 2)
    table.assign(sick=np.where(sick, "yes", "no")).to_csv(tiny_cohort.with_name("table.csv"), index=False)
    return tiny_cohort


def test_the_next_label_is_judged_beside_the_present_one(encoder: Path, worsening: Path, tmp_path: Path) -> None:
    options = {"target": "sick", "draws": 20, "cache": tmp_path / "cache"}
    found = evaluate(encoder, worsening, horizon="next", out=tmp_path / "next", **options)
    assert list(found.reports) == ["next:sick"]
    results = read_results(found.folder / "results.jsonl")
    assert {r.target for r in results} == {"next:sick"}
    assert {r.encoder for r in results} == {"e", "random-init", "present label", "majority"}
    assert {r.baseline for r in results if r.encoder == "e"} == {"", "random-init", "present label", "majority"}
    assert (found.folder / "head-next%3Asick-linear.safetensors").is_file()
    assert any("20 of 60 samples have no later value" in note for note in found.notes)
    cohort = Cohort.open(worsening)
    predictions = pd.read_parquet(found.folder / "predictions.parquet")
    rows = predictions["row"].to_numpy() - 1
    sick = (cohort.table["sick"] == "yes").to_numpy()
    assert (cohort.encoded("visit")[rows] < 2).all()
    assert (predictions["y"] == sick[rows + 1]).all(), "the row after it is the patient's next visit"

    found = evaluate(encoder, worsening, horizon="incident", out=tmp_path / "incident", **options)
    assert "present label" not in {r.encoder for r in found.results}
    predictions = pd.read_parquet(found.folder / "predictions.parquet")
    assert not sick[predictions["row"] - 1].any()


def test_a_perfect_present_label_predicts_what_does_not_change(
    encoder: Path, tiny_cohort: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(tiny_cohort.with_name("table.csv"))
    table["severity"] = table["patient"].str[1:].astype(int) % 7 + table["visit"] * 0.5
    table.to_csv(tiny_cohort.with_name("table.csv"), index=False)
    for task, target, metric in (("classify", "sick", "auroc"), ("regress", "severity", "r2")):
        found = evaluate(encoder, tiny_cohort, task=task, target=target, horizon="next", draws=20,
                         cache=tmp_path / "cache", out=tmp_path / task)  # fmt: skip
        known = {r.probe: r.estimate for r in found.results if (r.encoder, r.metric, r.subset, r.baseline)
                 == ("present label", metric, "", "")}  # fmt: skip
        assert set(known) == {"linear", "knn"}
        assert known["linear"] > 0.99


def test_trained_probes_stand_beside_a_linear_head_on_the_present_label(
    encoder: Path, worsening: Path, tmp_path: Path
) -> None:
    found = evaluate(encoder, worsening, target="sick", horizon="next", probes=("frozen", "linear"), draws=20,
                     cache=tmp_path / "cache", out=tmp_path / "out", finetune=FinetuneSpec(epochs=1))  # fmt: skip
    present = {r.probe: r.estimate for r in found.results
               if (r.encoder, r.metric, r.baseline) == ("present label", "auroc", "")}  # fmt: skip
    assert present["frozen"] == present["linear"]


def test_a_folder_is_named_by_the_horizon(
    encoder: Path, worsening: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = evaluate(encoder, worsening, target="label:sick", horizon="next", draws=20, cache=tmp_path / "cache")
    assert found.folder.name.startswith("e-classify-next-sick-")
    with pytest.raises(UsageError, match="unknown horizon"):
        evaluate(encoder, worsening, target="sick", horizon="later", cache=tmp_path / "unopened")
    assert not (tmp_path / "unopened").exists()
