"""Within-patient change: which pairs there are, what is made of them, and that a planted change is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image as PillowImage

from bolus.data.cohort.cohort import Cohort
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import save_encoder
from bolus.errors import EvaluationError, UsageError
from bolus.evaluation.change.change import evaluate_change, judge_change
from bolus.evaluation.change.distance import cosine_distance
from bolus.evaluation.change.pairs import CHANGES, classify_change, concatenate, difference, find_pairs
from bolus.evaluation.probing.heads import Head
from bolus.evaluation.probing.options import Probing
from bolus.evaluation.settings import Judging
from bolus.evaluation.statistics.results import MAJORITY, Result, read_results
from bolus.recipe import EncoderSpec

# --- pairs


def naive_pairs(patients, scores, time, kinds) -> set[tuple[int, int, float, bool]]:
    """By three loops: earlier, later, delta, adjacent."""
    n, found = len(patients), set()
    placed = [patients[i] >= 0 and time[i] == time[i] for i in range(n)]
    known = [placed[i] and scores[i] == scores[i] for i in range(n)]
    for i in range(n):
        for j in range(n):
            alike = known[i] and known[j] and patients[i] == patients[j] and kinds[i] == kinds[j]
            if not alike or not time[i] < time[j]:
                continue
            between = [
                k
                for k in range(n)
                if placed[k] and patients[k] == patients[i] and kinds[k] == kinds[i] and time[i] < time[k] < time[j]
            ]
            found.add((i, j, scores[j] - scores[i], not between))
    return found


def messy(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    r = np.random.default_rng(seed)
    scores, time = r.integers(0, 4, 40).astype(float), r.integers(0, 5, 40).astype(float)
    scores[r.random(40) < 0.15] = np.nan
    time[r.random(40) < 0.1] = np.nan
    return r.integers(-1, 6, 40), scores, time, r.integers(0, 2, 40)


@pytest.mark.parametrize("seed", range(8))
def test_pairs_are_those_of_three_loops(seed: int) -> None:
    patients, scores, time, kinds = messy(seed)
    pairs = find_pairs(patients, scores, time=time, kinds=kinds, seed=seed)
    assert pairs.adjacent is not None
    found = list(zip(pairs.earlier, pairs.later, pairs.delta, pairs.adjacent, strict=True))
    expected = naive_pairs(patients, scores, time, kinds)
    assert len(found) == len(expected) > 5
    assert set(found) == expected
    for adjacent in (True, False):
        some = find_pairs(patients, scores, time=time, kinds=kinds, adjacent=adjacent)
        assert set(zip(some.earlier, some.later, strict=True)) == {(i, j) for i, j, _, a in expected if a is adjacent}


def test_a_time_without_a_score_or_an_image_comes_between() -> None:
    time = [0.0, 1.0, 2.0]
    for scores, usable in (([1.0, np.nan, 2.0], None), ([1.0, 5.0, 2.0], [True, False, True])):
        pairs = find_pairs([0, 0, 0], scores, time=time, usable=usable)
        assert (pairs.earlier.tolist(), pairs.later.tolist()) == ([0], [2])
        assert pairs.adjacent is not None and not pairs.adjacent.any()
        assert len(find_pairs([0, 0, 0], scores, time=time, usable=usable, adjacent=True)) == 0


def test_without_a_time_both_orders_of_every_pair() -> None:
    patients, scores = np.array([0, 1, 0, 0, -1, -1]), np.array([1.0, 5.0, 3.0, np.nan, 1.0, 2.0])
    pairs = find_pairs(patients, scores)
    assert set(zip(pairs.earlier, pairs.later, pairs.delta, strict=True)) == {(0, 2, 2.0), (2, 0, -2.0)}
    assert pairs.adjacent is None
    assert pairs.notes == ("1 samples have no score, left out",)
    once = find_pairs(patients, scores, both_orders=False)
    assert (once.earlier.tolist(), once.later.tolist()) == ([0], [2])
    with pytest.raises(UsageError, match="time or visit"):
        find_pairs(patients, scores, adjacent=True)


def test_equal_times_make_no_pair_and_are_counted() -> None:
    pairs = find_pairs([0, 0, 0], [1.0, 2.0, 3.0], visit=[1.0, 1.0, 2.0])
    assert (pairs.earlier.tolist(), pairs.later.tolist()) == ([0, 1], [2, 2])
    assert pairs.notes == ("1 pairs of samples of equal time are left out",)
    assert pairs.adjacent is not None and pairs.adjacent.all()
    gap = find_pairs([0, 0, 0], [1.0, 2.0, 3.0], time=[0.0, np.nan, 2.0], visit=[0.0, 1.0, 2.0])
    assert len(gap) == 1, "time goes before visit"
    assert "1 samples with a score have no time or visit, left out" in gap.notes


@pytest.mark.parametrize("time", [None, np.arange(60.0)])
def test_a_patient_with_many_samples_is_capped_whoever_else_is_there(time: np.ndarray | None) -> None:
    patients, scores = np.repeat([3, 4, 5], [40, 10, 10]), np.random.default_rng(0).normal(size=60)
    pairs = find_pairs(patients, scores, time=time, max_pairs=90, seed=1)
    counts = np.bincount(patients[pairs.earlier], minlength=6)
    assert counts[3] == 90
    assert counts[4] == counts[5] == (90 if time is None else 45)
    assert pairs.notes == ("1 patients have more than 90 pairs, of which 90 were drawn",)
    assert len(set(zip(pairs.earlier, pairs.later, strict=True))) == len(pairs)
    if time is None:  # an order of a pair never comes without the other
        assert set(zip(pairs.earlier, pairs.later, strict=True)) == set(zip(pairs.later, pairs.earlier, strict=True))
    alone = find_pairs(patients[:40], scores[:40], time=None if time is None else time[:40], max_pairs=90, seed=1)
    assert np.array_equal(alone.earlier, pairs.earlier[:90])
    again = find_pairs(patients, scores, time=time, max_pairs=90, seed=2)
    assert not np.array_equal(again.earlier, pairs.earlier)
    with pytest.raises(UsageError, match="max_pairs"):
        find_pairs(patients, scores, max_pairs=1)


def test_no_pairs_where_nobody_has_two() -> None:
    for patients in ([0, 1, 2], []):
        pairs = find_pairs(patients, np.arange(len(patients)))
        assert len(pairs) == 0
        assert difference(np.zeros((len(patients), 4)), pairs).shape == (0, 4)
    with pytest.raises(EvaluationError, match="one length"):
        find_pairs([0, 1], [1.0])


def test_difference_and_concatenation_by_loops() -> None:
    u = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    pairs = find_pairs(np.repeat(np.arange(4), 3), np.arange(12.0))
    d, both, distance = difference(u, pairs), concatenate(u, pairs), cosine_distance(u, pairs)
    assert d.dtype == both.dtype == np.float32
    for p, (i, j) in enumerate(zip(pairs.earlier, pairs.later, strict=True)):
        assert np.array_equal(d[p], u[j] - u[i])
        assert np.array_equal(both[p], [*u[i], *u[j]])
        cosine = u[i] @ u[j] / np.linalg.norm(u[i]) / np.linalg.norm(u[j])
        assert distance[p] == pytest.approx(1 - cosine, abs=1e-6)


def test_classes_of_a_change() -> None:
    delta = np.array([-2.0, -0.5, 0.0, 0.5, 0.6, np.nan])
    assert classify_change(delta, 0.5).tolist() == [0, 1, 1, 1, 2, -1]
    assert classify_change(delta).tolist() == [0, 0, 1, 2, 2, -1]
    assert classify_change(delta, higher_is_worse=False).tolist() == [2, 2, 1, 0, 0, -1]
    assert classify_change([0.4 - 0.3, 80.2 - 80.1], 0.1).tolist() == [1, 1], "rounding is no change"
    assert CHANGES[classify_change([3.0])[0]] == "worsen"
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="tolerance"):
            classify_change(delta, wrong)


# --- judging


def planted(num_patients: int = 120, visits: int = 4, noise: float = 0.5, **names: float) -> dict[str, Any]:
    """Embeddings that hold the score along one axis, on top of a much larger offset of the patient."""
    r = np.random.default_rng(0)
    patients = np.repeat(np.arange(num_patients), visits)
    scores = r.integers(0, 4, len(patients)).astype(float)
    offset = 10 * r.normal(size=(num_patients, 6))[patients]
    u = offset + noise * r.normal(size=(len(patients), 6))
    u[:, 0] += scores
    twin = r.normal(size=(len(patients), 6)) + offset
    split = np.array(["train", "val", "test"])[np.digitize(patients / num_patients, [0.5, 0.7])]
    time = np.tile(np.arange(float(visits)), num_patients)
    return {"u": u, "twin": twin, "patients": patients, "scores": scores, "split": split, "time": time}


def pick(results: list[Result], **wanted: Any) -> Result:
    (found,) = (r for r in results if all(getattr(r, key) == value for key, value in wanted.items()))
    return found


def test_a_planted_change_is_found_by_the_difference_better_than_by_the_concatenation() -> None:
    data = planted()
    pairs = find_pairs(data["patients"], data["scores"], time=data["time"])
    embeddings = {"run": data["u"], "random-init": data["twin"]}
    reports = judge_change(
        embeddings, pairs, data["patients"], data["split"], target="severity", judging=Judging(draws=200, seed=0)
    )
    assert list(reports) == ["change:severity", "amount_of_change:severity", "distance:severity"]
    classes = reports["change:severity"]
    assert {r.encoder for r in classes.results} == {"run", "random-init", "run concatenated", MAJORITY}
    assert {r.probe for r in classes.results} == {"linear", "knn", "none"}
    main = {"metric": "balanced_accuracy", "probe": "linear", "encoder": "run", "subset": ""}
    assert pick(classes.results, baseline="", **main).estimate > 0.7
    assert pick(classes.results, baseline="random-init", **main).ci_low > 0.2
    near = {**main, "probe": "knn"}  # near in the concatenation are samples of patients who look alike
    assert pick(classes.results, baseline="run concatenated", **near).ci_low > 0.1
    assert pick(classes.results, baseline=MAJORITY, **main).ci_low > 0.3
    amount = reports["amount_of_change:severity"].results
    assert pick(amount, metric="pearson", probe="linear", encoder="run", baseline="", subset="").estimate > 0.8
    assert reports["change:severity"].heads["linear"].class_names == CHANGES
    test_patients = len(np.unique(data["patients"][data["split"] == "test"]))
    assert {r.num_patients for r in classes.results} == {test_patients}
    assert all("change of at most 0 (tolerance, in its unit) is stable, higher is worse" in r.notes[0]
               for report in reports.values() for r in report.results)  # fmt: skip
    assert all(report.summary() for report in reports.values())


def test_distance_follows_the_change_where_it_should_and_visits_are_told_apart() -> None:
    data = planted(noise=0.05)
    u = np.concatenate([data["scores"][:, None], np.ones((len(data["scores"]), 1))], axis=1)
    pairs = find_pairs(data["patients"], data["scores"], time=data["time"])
    embeddings = {"run": u, "random-init": data["twin"]}
    report = judge_change(embeddings, pairs, data["patients"], data["split"], target="s", judging=Judging(draws=200))[
        "distance:s"
    ]
    results = report.results
    assert {(r.task, r.probe, r.target) for r in results} == {("change", "none", "distance:s")}
    assert {r.subset for r in results} == {"", "adjacent", "non-adjacent"}
    assert pick(results, metric="spearman", encoder="run", baseline="", subset="").estimate > 0.5
    gain = pick(results, metric="spearman", encoder="run", baseline="random-init", subset="")
    single = [pick(results, metric="spearman", encoder=e, baseline="", subset="") for e in embeddings]
    assert gain.estimate == pytest.approx(single[0].estimate - single[1].estimate)
    assert gain.ci_low > 0.2 and gain.detectable is not None
    assert pairs.adjacent is not None
    test = data["split"][pairs.earlier] == "test"
    for subset, near in {
        "": True | pairs.adjacent,
        "adjacent": pairs.adjacent,
        "non-adjacent": ~pairs.adjacent,
    }.items():
        mean = pick(results, metric="mean_change", subset=subset)
        assert mean.estimate == pytest.approx(np.abs(pairs.delta[test & near]).mean())
        assert mean.num_samples == (test & near).sum()
    assert all(pairs.adjacent) or "decided for this training: better" in report.summary()
    assert set(report.predictions["position"]) == set(np.flatnonzero(test))


def test_a_tolerance_stands_in_the_target_and_both_orders_are_called_a_difference() -> None:
    data = planted(num_patients=60)
    pairs = find_pairs(data["patients"], data["scores"])
    reports = judge_change({"run": data["u"], "random-init": data["twin"]}, pairs, data["patients"], data["split"],
                           target="s", tolerance=1.5, probing=Probing(("linear",)),
                           judging=Judging(draws=20))  # fmt: skip
    assert next(iter(reports)) == "change:s tolerance 1.5"
    for report in reports.values():
        assert any("difference between samples, not change over time" in note for note in report.notes)
        assert all("at most 1.5" in r.notes[0] for r in report.results)
    assert {r.subset for r in reports["distance:s"].results} == {""}
    predictions = reports["change:s tolerance 1.5"].predictions
    assert sorted(predictions["y"].unique()) == [0, 1, 2]
    y = predictions.drop_duplicates("position").set_index("position")["y"]
    turned = {(i, j): p for p, (i, j) in enumerate(zip(pairs.earlier, pairs.later, strict=True))}
    assert all(y[p] == 2 - y[turned[pairs.later[p], pairs.earlier[p]]] for p in y.index)


def test_constant_scores_are_all_stable_and_undefined() -> None:
    data = planted(num_patients=60)
    pairs = find_pairs(data["patients"], np.ones(len(data["patients"])), time=data["time"])
    reports = judge_change({"run": data["u"], "random-init": data["twin"]}, pairs, data["patients"], data["split"],
                           target="s", judging=Judging(draws=20))  # fmt: skip
    assert np.isnan(pick(reports["change:s"].results, metric="balanced_accuracy", probe="knn", encoder="run",
                         baseline="", subset="").estimate)  # fmt: skip
    assert np.isnan(pick(reports["distance:s"].results, metric="spearman", encoder="run", baseline="",
                         subset="").estimate)  # fmt: skip
    assert any("same size of change" in note for note in reports["distance:s"].notes)
    assert "undecided" in reports["distance:s"].summary()


def test_few_test_patients_are_said() -> None:
    data = planted(num_patients=40)
    pairs = find_pairs(data["patients"], data["scores"], time=data["time"])
    reports = judge_change({"run": data["u"], "random-init": data["twin"]}, pairs, data["patients"], data["split"],
                           target="s", probing=Probing(probes=("linear",)), judging=Judging(draws=20))  # fmt: skip
    for report in reports.values():
        assert any(r.baseline for r in report.results)
        assert "only 12 test patients where a finding needs 20" in report.notes
        assert all(any(n.startswith("only ") for n in r.notes) for r in report.results if r.baseline)
        whole = [r for r in report.results if r.baseline and not r.subset]
        assert all(any(n.startswith("only 12 test patients") for n in r.notes) for r in whole)


# --- from an encoder and a table to files

MakeCohort = Callable[..., Cohort]


@pytest.fixture
def make_cohort(tmp_path: Path) -> MakeCohort:
    """Forty patients, three visits; a square grows with the score."""

    def make(change: Callable[[pd.DataFrame], Any] | None = None, num_patients: int = 40, **roles: str) -> Cohort:
        r = np.random.default_rng(0)
        folder = tmp_path / "cohort"
        folder.mkdir(exist_ok=True)
        lines = []
        for patient in range(num_patients):
            base = r.integers(40, 90, (24, 24))
            for visit in range(3):
                score = int(r.integers(0, 4))
                pixels = base.copy()
                pixels[2 : 4 + 4 * score, 2:20] += 120
                PillowImage.fromarray(pixels.astype(np.uint8)).save(folder / f"{patient}_{visit}.png")
                lines.append([f"{patient}_{visit}.png", f"p{patient}", 30.0 * visit, score])
        frame = pd.DataFrame(lines, columns=["image", "patient", "days", "severity"])
        if change is not None:
            change(frame)
        frame.to_csv(folder / "t.csv", index=False)
        split = {"seed": 1, "val": 0.2, "test": 0.4}
        return Cohort.open(folder / "t.csv", roles={"score:severity": "severity", **roles}, split=split)

    return make


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    save_encoder(build_encoder(EncoderSpec(backbone="r18w32", stem_pool=False), seed=0), tmp_path / "enc",
                 preprocessing={"size": 24})  # fmt: skip
    return tmp_path / "enc"


def test_an_evaluation_of_change_writes_its_files(encoder: Path, make_cohort: MakeCohort, tmp_path: Path) -> None:
    def spoil(frame: pd.DataFrame) -> None:
        frame.loc[[0, 1], "severity"] = None

    cohort = make_cohort(spoil, time="days")
    (cohort.root / "3_1.png").write_bytes(b"not an image")
    out = tmp_path / "out"
    out.mkdir()
    (out / "head-change%3Aolder-linear.safetensors").touch()
    found = evaluate_change(encoder, cohort, target="score:severity", tolerance=1, draws=50, probes=("linear",),
                            out=out, cache=tmp_path / "cache")  # fmt: skip
    results = read_results(out / "results.jsonl")
    assert {r.target for r in results} == {"change:severity tolerance 1", "amount_of_change:severity",
                                           "distance:severity"}  # fmt: skip
    assert {r.encoder for r in results} == {"enc", "random-init", "enc concatenated", MAJORITY, ""}
    assert {r.split_hash for r in results} == {cohort.split_hash}
    assert len(list(out.glob("head-*change*"))) == 2
    assert "2 samples have no score, left out" in found.notes
    assert any("1 images cannot be read" in note for note in found.notes)
    assert any("test pairs of" in note for note in found.notes)
    assert json.loads((out / "notes.json").read_text())["general"] == found.notes
    predictions = pd.read_parquet(out / "predictions.parquet").query("target == 'amount_of_change:severity'")
    table = cohort.table
    for one in predictions.head(20).itertuples():
        earlier, later = table.iloc[one.row - 1], table.iloc[one.later_row - 1]
        assert earlier["patient"] == later["patient"]
        assert float(earlier["days"]) < float(later["days"])
        assert one.y == float(later["severity"]) - float(earlier["severity"])
    assert not {1, 2, 11} & {*predictions["row"], *predictions["later_row"]}
    assert (cohort.split[predictions["row"] - 1] == predictions["split"]).all()
    drawn = []
    for seed in (0, 1):
        place: dict[str, Any] = {"out": tmp_path / f"{seed}", "cache": tmp_path / "cache"}
        asked = {"target": "score:severity", "max_pairs": 2, "seed": seed, "draws": 5, "probes": ("linear",)}
        some = evaluate_change(encoder, cohort, **asked, **place)  # type: ignore[arg-type]
        drawn.append(pd.read_parquet(tmp_path / f"{seed}" / "predictions.parquet")[["row", "later_row"]])
        assert any("more than 2 pairs, of which 2 were drawn" in note for note in some.notes)
    assert drawn[0].equals(drawn[1]), "encoders of several seeds are judged on the same pairs"


def test_an_unreadable_visit_still_comes_between(encoder: Path, make_cohort: MakeCohort, tmp_path: Path) -> None:
    kept = {"draws": 20, "probes": ("linear",), "out": tmp_path / "out", "cache": tmp_path / "cache"}
    cohort = make_cohort(time="days")
    patient = int(np.flatnonzero(cohort.split == "test")[0]) // 3
    (cohort.root / f"{patient}_1.png").write_bytes(b"not an image")
    found = evaluate_change(encoder, cohort, target="severity", **kept)
    predictions = pd.read_parquet(tmp_path / "out" / "predictions.parquet").query("target == 'distance:severity'")
    mine = predictions.query("encoder == 'enc' and row == @patient * 3 + 1")
    assert mine["later_row"].tolist() == [patient * 3 + 3]
    near = [pick(found.results, metric="mean_change", subset=s).num_samples for s in ("adjacent", "non-adjacent")]
    test_patients = len(np.unique(cohort.encoded("patient")[cohort.split == "test"]))
    assert near == [2 * (test_patients - 1), test_patients]
    assert not any("have no score" in note for note in found.notes)


def test_what_is_held_constant(encoder: Path, make_cohort: MakeCohort, tmp_path: Path) -> None:
    def two_views(frame: pd.DataFrame) -> None:
        frame["view"] = np.where(np.arange(len(frame)) % 3 == 2, "AP", "PA")
        frame["eye"] = np.where(np.arange(len(frame)) % 3 == 2, None, "left")

    kept = {"draws": 20, "probes": ("linear",), "out": tmp_path / "out", "cache": tmp_path / "cache"}
    cohort = make_cohort(two_views, time="days")
    test_patients = len(np.unique(cohort.encoded("patient")[cohort.split == "test"]))
    found = evaluate_change(encoder, cohort, target="severity", **kept)
    assert pick(found.results, metric="mean_change").num_samples == test_patients
    assert "both samples of a pair have the same laterality and view_position" in found.notes
    head = Head.load(tmp_path / "out" / "head-change%3Aseverity-linear.safetensors")
    assert head.encoder
    assert (head.knows(cohort.patients) == (cohort.split != "test")).all()

    def no_time(frame: pd.DataFrame) -> None:
        two_views(frame)
        frame.pop("days")

    found = evaluate_change(encoder, make_cohort(no_time), target="severity", **kept)
    assert pick(found.results, metric="mean_change").num_samples == 6 * test_patients
    assert any("nothing but the patient is the same" in note for note in found.notes)


def test_only_adjacent_visits(encoder: Path, make_cohort: MakeCohort, tmp_path: Path) -> None:
    kept = {"draws": 20, "probes": ("linear",), "out": tmp_path / "out", "cache": tmp_path / "cache"}
    cohort = make_cohort(time="days")
    every = evaluate_change(encoder, cohort, target="severity", **kept)
    near = evaluate_change(encoder, cohort, target="severity", adjacent_only=True, **kept)
    pairs = [pick(e.results, metric="mean_change", subset="").num_samples for e in (every, near)]
    assert pairs[0] == 3 * pairs[1] / 2
    assert any("only pairs of consecutive times" in r.notes for r in near.results)


def test_a_cohort_without_time_has_differences_between_samples(
    encoder: Path, make_cohort: MakeCohort, tmp_path: Path
) -> None:
    def two_modalities(frame: pd.DataFrame) -> None:
        frame.pop("days")
        frame["modality"] = np.where(np.arange(len(frame)) % 3 == 2, "MR", "US")

    cohort = make_cohort(two_modalities)
    kept = {"draws": 20, "probes": ("linear",), "out": tmp_path / "out", "cache": tmp_path / "cache"}
    found = evaluate_change(encoder, cohort, target="severity", **kept)
    test_patients = len(np.unique(cohort.encoded("patient")[cohort.split == "test"]))
    assert pick(found.results, metric="mean_change").num_samples == 2 * test_patients  # of one modality only
    assert all("difference between samples, not change over time" in r.notes[1] for r in found.results)
    with pytest.raises(UsageError, match="time or visit"):
        evaluate_change(encoder, cohort, target="severity", adjacent_only=True, **kept)


def test_what_cannot_be_asked_is_refused(encoder: Path, make_cohort: MakeCohort, tmp_path: Path) -> None:
    kept = {"draws": 20, "out": tmp_path / "never", "cache": tmp_path / "cache"}

    def same_day(frame: pd.DataFrame) -> None:
        frame["days"] = 5

    with pytest.raises(EvaluationError, match=r"no train patient has a value of 'severity' at two times.*equal time"):
        evaluate_change(encoder, make_cohort(same_day, time="days"), target="severity", **kept)

    def one_each(frame: pd.DataFrame) -> None:
        frame.loc[np.arange(len(frame)) % 3 > 0, "severity"] = None

    with pytest.raises(EvaluationError, match=r"two times.*80 samples have no score"):
        evaluate_change(encoder, make_cohort(one_each, time="days"), target="severity", **kept)
    with pytest.raises(EvaluationError, match=r"no (train|test) patient"):
        evaluate_change(encoder, make_cohort(num_patients=1, time="days"), target="severity", **kept)
    cohort = make_cohort(time="days")
    with pytest.raises(EvaluationError, match="did you mean 'score:severity'"):
        evaluate_change(encoder, cohort, target="severty", **kept)
    with pytest.raises(UsageError, match="tolerance"):
        evaluate_change(encoder, cohort, target="severity", tolerance=-1, **kept)
    for wrong, said in (
        ({"probes": ("finetune",)}, "not available for change"),
        ({"probes": ("liner",)}, "did you mean 'linear'"),
        ({"fractions": (2.0,)}, "fractions above 0"),
        ({"max_pairs": 1}, "max_pairs"),
        ({"target": "severity=3"}, "a number has none"),
    ):
        with pytest.raises(UsageError, match=said):
            evaluate_change(encoder, cohort, **{"target": "severity", **kept, "cache": tmp_path / "unopened", **wrong})
    with pytest.raises(UsageError, match="time or visit"):
        evaluate_change(encoder, make_cohort(lambda frame: frame.pop("days")), target="severity", adjacent_only=True,
                        **{**kept, "cache": tmp_path / "unopened"})  # fmt: skip
    assert not (tmp_path / "unopened").exists(), "images were read before the call was looked at"
    assert not (tmp_path / "never").exists()


def test_an_encoder_that_stands_alone_has_a_summary() -> None:
    data = planted(num_patients=60)
    pairs = find_pairs(data["patients"], data["scores"], time=data["time"])
    reports = judge_change({"run": data["u"]}, pairs, data["patients"], data["split"], target="s",
                           judging=Judging(draws=20), probing=Probing(("linear",)))  # fmt: skip
    assert reports["distance:s"].summary().endswith("distance:s: there is nothing to compare with")


def test_equal_encoders_show_no_difference() -> None:
    data = planted(num_patients=60)
    pairs = find_pairs(data["patients"], data["scores"], time=data["time"])
    reports = judge_change({"run": data["u"], "same": data["u"]}, pairs, data["patients"], data["split"], target="s",
                           judging=Judging(draws=20), probing=Probing(probes=("linear", "linear")))  # fmt: skip
    for report in reports.values():
        equal = [r for r in report.results if r.baseline == "same"]
        assert equal and all(r.se == 0 and r.detectable is None for r in equal)
        assert "no draw of the test patients showed a difference" in report.summary()
    estimates = [(r.encoder, r.metric, r.subset) for r in reports["change:s"].results if not r.baseline]
    assert len(estimates) == len(set(estimates)), "a probe that is named twice counts once"


def test_constant_scores_are_judged_and_said(encoder: Path, make_cohort: MakeCohort, tmp_path: Path) -> None:
    def constant(frame: pd.DataFrame) -> None:
        frame["severity"] = 2

    found = evaluate_change(encoder, make_cohort(constant, time="days"), target="severity", draws=20,
                            out=tmp_path / "out", cache=tmp_path / "cache")  # fmt: skip
    assert "severity is the same in every pair: all are stable, and most metrics undefined" in found.notes
    assert len(read_results(tmp_path / "out" / "results.jsonl")) == len(found.results)
