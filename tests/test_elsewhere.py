"""Heads fitted on one cohort and judged on another, and other encoders as columns beside the judged one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image as PillowImage
from sklearn.metrics import roc_auc_score

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.data.cohort.split import patient_keys
from bolus.embedding.table import embed
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import save_encoder
from bolus.errors import EvaluationError, LeakageError, UsageError
from bolus.evaluation.change.change import evaluate_change
from bolus.evaluation.elsewhere.elsewhere import CohortSide, evaluate_elsewhere, judge_elsewhere, tell_apart
from bolus.evaluation.elsewhere.matching import match_targets, name_cohorts
from bolus.evaluation.probing.heads import Head
from bolus.evaluation.probing.reading import evaluate
from bolus.evaluation.settings import Judging
from bolus.evaluation.statistics.results import Result, read_results
from bolus.phantom.images import make_phantom
from bolus.recipe import EncoderSpec
from settings import settings

SPLITS = np.array(["train", "val", "test"])


def side(name: str, *, patients: int = 90, shift: float = 0.0, seed: int = 0, people: str | None = None) -> CohortSide:
    """Two rows a patient, whose sign is readable off the first column of `run` and off nothing of `random-init`."""
    rng = np.random.default_rng(seed)
    identifiers = np.repeat([f"{people or name}{number}" for number in range(patients)], 2).astype(object)
    y = np.repeat(np.arange(patients) % 2, 2)
    x = rng.normal(size=(2 * patients, 3)) + shift
    x[:, 0] += 2 * y
    split = np.repeat(SPLITS[np.arange(patients) * 3 // patients], 2)
    return CohortSide(name, {"run": x, "random-init": rng.normal(size=(2 * patients, 3))}, identifiers, split)


def labels(of: CohortSide) -> Any:
    """The codes of `side`."""
    return np.repeat(np.arange(len(of.split) // 2) % 2, 2)


def one(results: list[Result], **wanted: Any) -> Result:
    found = [r for r in results if all(getattr(r, key) == value for key, value in wanted.items())]
    assert len(found) == 1, found
    return found[0]


# --- from embeddings


@pytest.mark.parametrize("with_val", [True, False])
def test_the_same_heads_are_judged_on_both_sides(with_val: bool) -> None:
    here, there = side("hill"), side("valley", patients=40, seed=1)
    if not with_val:  # then some training patients choose the strengths: the same ones for both reports
        here = CohortSide(here.name, here.embeddings, here.patients, np.where(here.split == "val", "train", here.split))
    options = {"task": "classify", "target": "sick", "classes": ("no", "yes"), "fractions": (0.5, 1.0), "draws": 20}
    reports = judge_elsewhere(here, there, (labels(here), labels(there)), **settings(**options))
    home, away = reports["sick"], reports["sick elsewhere (valley)"]
    keys = ["position", "encoder", "probe", "fraction", "repeat"]
    val = [each.predictions.query("split == 'val'").set_index(keys)["score"].sort_index() for each in (home, away)]
    assert len(val[0])
    pd.testing.assert_series_equal(*val)
    assert set(home.heads) == {"linear", "knn"}
    assert not away.heads
    test = away.predictions.query("split == 'test'")
    assert set(test["position"]) == set(range(180, 260))
    assert set(test["cohort"]) == {"valley"}
    kept = test.query("encoder == 'run' and probe == 'linear' and fraction == 1.0").set_index("position")["score"]
    np.testing.assert_allclose(home.heads["linear"].predict(there.embeddings["run"]), kept.sort_index())
    result = one(away.results, encoder="run", probe="linear", fraction=1.0, metric="auroc", baseline="")
    assert result.estimate == pytest.approx(roc_auc_score(labels(there), kept.sort_index()))
    assert (result.num_samples, result.num_patients, result.target) == (80, 40, "sick elsewhere (valley)")
    assert one(away.results, encoder="run", probe="linear", fraction=1.0, metric="auroc", baseline="random-init")


def test_missing_targets_are_counted_on_their_own_side() -> None:
    here, there = side("hill"), side("valley", patients=40, seed=1)
    y_there = labels(there).astype(float)
    y_there[:7] = np.nan
    options = {"task": "classify", "target": "sick", "classes": ("no", "yes"), "probes": ("linear",), "draws": 20}
    notes = judge_elsewhere(here, there, (labels(here), y_there), **settings(**options))[
        "sick elsewhere (valley)"
    ].notes
    assert "sick is missing in 7 of 80 samples of valley, left out" in notes
    assert not any("test rows, left out" in note for note in notes)
    assert any("50.0% of the test samples of hill" in note for note in notes)


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.3, 0.7), (4.0, 0.99, 1.0)])
def test_cohorts_are_told_apart_where_they_differ(shift: float, low: float, high: float) -> None:
    here, there = side("hill"), side("valley", shift=shift, seed=1)
    report = tell_apart(here, there, judging=Judging(draws=50))
    found = one(report.results, encoder="run", metric="auroc", baseline="")
    assert found.target == "cohort:hill-or-valley"
    assert low <= found.estimate <= high
    assert found.ci_low <= found.estimate <= found.ci_high
    judged = set(report.predictions.query("split == 'test'")["position"])
    fitted = set(range(360)) - judged
    people = np.concatenate([here.patients, there.patients])
    assert not set(people[list(judged)]) & set(people[list(fitted)])
    assert 0.25 < found.num_patients / 180 < 0.55
    assert 0.3 < one(report.results, encoder="random-init", metric="auroc", baseline="").estimate < 0.7


def test_somebody_in_both_cohorts_is_on_one_side() -> None:
    here, there = side("hill", people="p"), side("valley", people="p", seed=1)
    report = tell_apart(here, there, judging=Judging(draws=20))
    assert {r.num_samples / r.num_patients for r in report.results} == {4.0}


# --- targets


def cohort_of(table: str = "t.csv", units: dict[str, str] | None = None, **columns: list[object]) -> Cohort:
    size = len(next(iter(columns.values())))
    frame = pd.DataFrame(
        {"image": [f"{row}.png" for row in range(size)], "patient": [f"p{row}" for row in range(size)]}
    )
    roles = {f"{'score' if isinstance(values[0], float) else 'label'}:{name}": name for name, values in columns.items()}
    return Cohort(frame.assign(**columns), CohortSpec(table=table, roles=roles, units=units or {}))


def test_targets_are_matched_by_class() -> None:
    here, there = cohort_of(y=["no", "yes"]), cohort_of(y=["yes", "no", "no"])
    ((first, second),), notes = match_targets(here, there, "classify", "y")
    assert (first.y.tolist(), second.y.tolist(), notes) == ([0, 1], [1, 0, 0], [])
    here, there = cohort_of(y=["a", "b", "c"]), cohort_of(z=["c", "b", "a", "a"])
    pairs, _ = match_targets(here, there, "classify", "y", "z", min_patients=1)
    assert [(a.name, b.name) for a, b in pairs] == [("y", "z"), ("y=a", "z=a"), ("y=b", "z=b"), ("y=c", "z=c")]
    there = cohort_of(y=["c|b", "b", "a", "a"])
    pairs, notes = match_targets(here, there, "classify", "y", min_patients=1)
    assert [a.name for a, _ in pairs] == ["y=a", "y=b", "y=c"]
    assert any("y is left out" in note for note in notes)


def test_one_class_on_both_sides_is_one_question() -> None:
    here, there = cohort_of(y=["a", "b", "c"]), cohort_of(sick=["no", "yes"])
    ((first, second),), notes = match_targets(here, there, "classify", "y=b", "sick")
    assert (first.y.tolist(), second.y.tolist()) == ([0, 1, 0], [0, 1])
    assert notes == ["y=b ('b') in here is sick ('1') in elsewhere"]
    assert match_targets(here, here, "classify", "y=b")[1] == []


def test_what_does_not_match_is_refused() -> None:
    here, there = cohort_of(y=["a", "b", "c"]), cohort_of(y=["a", "b", "d"])
    with pytest.raises(EvaluationError, match="only in here: c; only in elsewhere: d"):
        match_targets(here, there, "classify", "y", min_patients=1)
    with pytest.raises(EvaluationError, match=r"elsewhere: no label named 'y'.*elsewhere_target"):
        match_targets(here, cohort_of(z=["a", "b"]), "classify", "y", min_patients=1)
    with pytest.raises(EvaluationError, match="elsewhere: label 'y' has no class 'c'"):
        match_targets(here, there, "classify", "y=c")
    with pytest.raises(EvaluationError, match="is in mm in here, but in cm in elsewhere"):
        here, there = (cohort_of(size=[1.0], units={"score:size": unit}) for unit in ("mm", "cm"))
        match_targets(here, there, "regress", "size")
    with pytest.raises(EvaluationError, match="elsewhere: no row has a value of 'size'"):
        match_targets(cohort_of(size=[1.0]), cohort_of(size=[float("nan")]), "regress", "size")


def test_cohorts_are_named_by_table_or_folder() -> None:
    def at(folder: str, table: str) -> Cohort:
        return Cohort(cohort_of(y=["a"]).table, CohortSpec(table=table), Path(folder))

    assert name_cohorts(at("/x", "cxr.csv"), at("/x", "nih.csv")) == ("cxr", "nih")
    assert name_cohorts(at("/x/hill", "table.csv"), at("/x/valley", "table.csv")) == ("hill", "valley")
    assert name_cohorts(at("/a/x", "table.csv"), at("/b/x", "table.csv")) == ("table", "table (2)")


# --- from encoder to files


def phantom(folder: Path, *, seed: int, brighter: int = 0) -> Path:
    """A cohort of 30 patients in a namespace of its own, whose X-rays may be brighter."""
    make_phantom(folder, num_patients=30, size=24, seed=seed)
    spec = yaml.safe_load((folder / "cohort.yaml").read_text())
    (folder / "cohort.yaml").write_text(yaml.safe_dump({**spec, "namespace": folder.name}))
    for path in (folder / "images").glob("*_XR.png"):
        pixels = np.asarray(PillowImage.open(path)).astype(int) + brighter
        PillowImage.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return folder / "cohort.yaml"


def tiny_encoder(
    folder: Path, *, seed: int = 0, size: int = 24, lineage: list[dict[str, Any]] | None = None, **spec: Any
) -> Path:
    encoder = build_encoder(EncoderSpec(backbone="r18w32", **spec), seed=seed)
    contract = {"size": size, "channels": spec.get("in_channels", 1)}
    save_encoder(encoder, folder, preprocessing=contract, lineage=lineage or [])
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Two phantoms and a folder for the cache."""
    folder = tmp_path_factory.mktemp("two")
    hill, valley = phantom(folder / "hill", seed=0), phantom(folder / "valley", seed=1, brighter=60)
    return hill, valley, folder / "cache"


@pytest.mark.slow
def test_two_phantoms_from_encoder_to_files(two: tuple[Path, Path, Path], tmp_path: Path) -> None:
    hill, valley, cache = two
    encoder = tiny_encoder(tmp_path / "e")
    other = tiny_encoder(tmp_path / "public", seed=3, size=32, in_channels=3)
    found = evaluate_elsewhere(encoder, hill, valley, target="disease", draws=50, cache=cache, out=tmp_path / "out",
                               baselines=[other])  # fmt: skip
    assert list(found.reports) == ["disease", "disease elsewhere (valley)", "cohort:hill-or-valley"]
    results = read_results(found.folder / "results.jsonl")
    assert {r.target for r in results} == set(found.reports)
    for name in found.reports:
        assert {r.encoder for r in results if r.target == name} == {"e", "random-init", "public", "majority"}
    apart = one(results, encoder="e", target="cohort:hill-or-valley", metric="auroc", baseline="")
    assert apart.estimate > 0.6
    assert np.isfinite(apart.ci_low)
    cohorts = {"hill": Cohort.open(hill), "valley": Cohort.open(valley)}
    predictions = pd.read_parquet(found.folder / "predictions.parquet")
    for (name, target, split), part in predictions.groupby(["cohort", "target", "split"]):
        rows = part["row"].to_numpy() - 1
        if target.startswith("disease"):
            truth = cohorts[name].values("label:disease").to_numpy()[rows]
            assert (truth.astype(int) == part["y"]).all()
            if name == "hill":
                assert (cohorts[name].split[rows] == split).all()
        else:
            assert set(part["y"]) == {("hill", "valley").index(name)}
    away = predictions.query("target == 'disease elsewhere (valley)' and split == 'test'")
    known = cohorts["valley"].values("label:disease").notna().to_numpy()
    assert set(away["row"] - 1) == set(np.flatnonzero(known)), "all rows of the other cohort, whatever its split"
    assert len(list(found.folder.glob("head-*"))) == 1
    head = Head.load(found.folder / "head-disease-linear.safetensors")
    scores = head.predict(np.stack(list(embed(encoder, valley, cache=cache)["embedding"])))
    kept = away.query("encoder == 'e' and probe == 'linear'").set_index("row")["score"]
    np.testing.assert_allclose(scores[kept.index - 1], kept, rtol=1e-5)
    assert json.loads((found.folder / "notes.json").read_text())["general"] == found.notes

    alone = evaluate(encoder, hill, target="disease", draws=50, cache=cache, out=tmp_path / "alone", baselines=[other])
    numbers = [
        repr(
            [(r.encoder, r.baseline, r.probe, r.metric, r.estimate, r.ci_low) for r in each.reports["disease"].results]
        )
        for each in (found, alone)
    ]
    assert numbers[0] == numbers[1], "the first report is that of evaluate"


def test_a_score_is_judged_elsewhere_too(two: tuple[Path, Path, Path], tmp_path: Path) -> None:
    hill, valley, cache = two
    found = evaluate_elsewhere(tiny_encoder(tmp_path / "e"), hill, valley, task="regress", target="severity",
                               probes=("linear",), draws=20, cache=cache, out=tmp_path / "out")  # fmt: skip
    assert {r.metric for r in found.reports["severity elsewhere (valley)"].results} >= {"mae", "r2"}


def test_who_was_seen_is_refused(two: tuple[Path, Path, Path], tmp_path: Path) -> None:
    hill, valley, _ = two
    there, options = Cohort.open(valley), {"target": "disease", "cache": tmp_path / "unopened"}
    seen = [{"salt": "s", "keys": sorted(patient_keys(there.patients[there.split == "train"], "s"))}]
    encoder = tiny_encoder(tmp_path / "e", lineage=seen)
    with pytest.raises(LeakageError, match="valley: encoder e: expected no patient of the pretraining"):
        evaluate_elsewhere(encoder, hill, valley, **options)
    clean = tiny_encoder(tmp_path / "clean")
    with pytest.raises(LeakageError, match="valley: baseline e"):
        evaluate_elsewhere(clean, hill, valley, baselines=[encoder], **options)
    namesakes = shutil.copytree(valley.parent, tmp_path / "namesakes") / "cohort.yaml"
    namesakes.write_text(namesakes.read_text().replace("namespace: valley", "namespace: hill"))
    with pytest.raises(LeakageError, match=r"training or validation patient of hill.*namespace"):
        evaluate_elsewhere(clean, hill, namesakes, **options)
    with pytest.raises(EvaluationError, match="valley: no label named 'illness'"):
        evaluate_elsewhere(clean, hill, valley, elsewhere_target="illness", **options)
    with pytest.raises(UsageError, match="not available elsewhere"):
        evaluate_elsewhere(clean, hill, valley, probes=("finetune",), **options)
    assert not (tmp_path / "unopened").exists()


# --- baselines


def test_baselines_are_columns_of_every_report(tiny_cohort: Path, tmp_path: Path) -> None:
    encoder, cache = tiny_encoder(tmp_path / "e"), tmp_path / "cache"
    large = tiny_encoder(tmp_path / "other" / "e", seed=1, size=40, in_channels=3)
    named = tiny_encoder(tmp_path / "random-init", seed=2)
    options = {"draws": 20, "cache": cache, "baselines": [large, named, large]}
    found = evaluate(encoder, tiny_cohort, target="sick", out=tmp_path / "out", **options)
    names = ["e", "random-init", "e (2)", "random-init (encoder)", "e (3)", "majority"]
    assert list(dict.fromkeys(r.encoder for r in found.results)) == names
    for kind in ("linear", "knn"):
        assert {r.baseline for r in found.results if r.probe == kind} == {"", *names[1:]}
    twice = [one(found.results, encoder=name, probe="knn", metric="auroc", baseline="") for name in ("e (2)", "e (3)")]
    assert twice[0].estimate == twice[1].estimate
    assert sum("overlap was not checked" in note for note in found.notes) == 4

    alone = evaluate(large, tiny_cohort, target="sick", draws=20, cache=cache, out=tmp_path / "alone")
    for probe in ("linear", "knn"):
        wanted = {"probe": probe, "metric": "auroc", "baseline": ""}
        assert one(alone.results, encoder="e", **wanted).estimate == pytest.approx(
            one(found.results, encoder="e (2)", **wanted).estimate
        ), "as it is judged by itself, at its own size and with its own channels"

    change = evaluate_change(encoder, tiny_cohort, target="severity", out=tmp_path / "change", **options)
    for report in change.reports.values():
        assert {"e (2)", "random-init (encoder)"} <= {r.encoder for r in report.results}


def test_baselines_that_cannot_stand_there_are_refused(tiny_cohort: Path, tmp_path: Path) -> None:
    cohort, encoder = Cohort.open(tiny_cohort), tiny_encoder(tmp_path / "e")
    options = {"target": "sick", "cache": tmp_path / "unopened"}
    lineage = [{"salt": "s", "keys": sorted(patient_keys(cohort.patients[cohort.split == "test"], "s"))}]
    seen = tiny_encoder(tmp_path / "seen", lineage=lineage)
    with pytest.raises(LeakageError, match="baseline seen"):
        evaluate(encoder, cohort, baselines=[seen], **options)
    with pytest.raises(UsageError, match="trained on images"):
        evaluate(encoder, cohort, baselines=[encoder], probes=("linear", "finetune"), **options)
    with pytest.raises(UsageError, match="a list of folders"):
        evaluate(encoder, cohort, baselines=str(encoder), **options)
    clips = tmp_path / "clips"
    save_encoder(build_encoder(EncoderSpec(backbone="r18w32"), seed=0), clips, preprocessing={"size": 24, "frames": 2})
    with pytest.raises(UsageError, match="baseline clips sees clips, but e single images"):
        evaluate(encoder, cohort, baselines=[clips], **options)
    assert not (tmp_path / "unopened").exists()
