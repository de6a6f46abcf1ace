"""What earlier versions wrote opens, or is refused by a sentence: runs, encoders, heads, results and cohorts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import bolus
from bolus.data.cohort.cohort import Cohort
from bolus.embedding.opening import open_encoder
from bolus.errors import BolusError, EncoderError, TrainingError
from bolus.evaluation.probing.heads import Head
from bolus.evaluation.statistics.results import read_results
from bolus.run import Run
from kept.make import pixels

KEPT = Path(__file__).parent / "kept"
VERSIONS = ("8aa6ec3", "06c8476")
COHORT = KEPT / "cohort" / "cohort.yaml"
TARGETS = {"disease": "probability:1", "age": "prediction"}
BEFORE_RULES = "8aa6ec3"  # it showed MR of more than eight bits by the cohort's range, not by that of a series


@pytest.fixture(params=VERSIONS)
def kept(request: pytest.FixtureRequest) -> Path:
    return KEPT / request.param


@pytest.fixture
def expected(kept: Path) -> dict[str, Any]:
    """What the version itself computed, the embeddings in float64."""
    return dict(json.loads((kept / "expected.json").read_text(encoding="utf-8")))


@pytest.fixture
def stopped(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of an unfinished run."""
    monkeypatch.chdir(KEPT)  # where the folder is that a recipe names as its backbone
    return Path(shutil.copytree(kept / "stopped", tmp_path / "stopped"))


def head_of(run: Path, target: str) -> Path:
    (path,) = run.glob(f"evaluations/*/head-{target}-linear.safetensors")
    return path


def go_on(run: Path, cache: Path) -> Run:
    return bolus.pretrain(COHORT, recipe=run / "recipe.yaml", overrides=["training.max_hours=null"], out=run,
                          resume=True, cache=cache, quiet=True)  # fmt: skip


def record_of(run: Path, **changes: Any) -> None:
    """Change keys of run.json; None takes one away."""
    path = run / "run.json"
    data = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}), encoding="utf-8")


def test_a_run_opens_with_recipe_cohort_and_metrics(kept: Path) -> None:
    run = Run.open(kept / "finished")
    assert run.status == "finished"
    assert (run.recipe.name, list(run.recipe.objectives)) == ("kept", ["views", "age"])
    assert [line["step"] for line in run.metrics() if line["kind"] == "train"] == [1, 2, 3]
    assert "Trained on 18 images of 6 patients" in run.card()
    assert Run.open(kept / "stopped").status == "stopped"
    for path in (COHORT, kept / "finished" / "cohort.yaml", kept / "stopped" / "cohort.yaml"):
        cohort = Cohort.open(path)
        assert (len(cohort), cohort.split_hash) == (48, run.record["split_hash"])


def test_an_encoder_embeds_as_it_did(kept: Path, expected: dict[str, Any]) -> None:
    for folder in (kept / "finished", kept / "finished" / "encoder"):
        encoder, preprocessing = bolus.load_encoder(folder)
        assert (preprocessing["size"], preprocessing["channels"]) == (16, 1)
        with torch.no_grad():
            pooled = encoder.double()(pixels().double()).pooled
        np.testing.assert_allclose(pooled, expected["pooled"], rtol=1e-4, atol=1e-5)
    own = Run.open(kept / "finished").record
    assert open_encoder(kept / "finished" / "encoder").lineage == [
        {"salt": own["salt"], "keys": own["training_patients"]}
    ]


def test_encoders_of_modalities_open_together_and_alone(kept: Path) -> None:
    folder = kept / "modalities" / "encoder"
    judged = open_encoder(folder)
    assert [part.name for part in sorted(folder.glob("*-*"))] == ["0-MR", "1-XR"]
    assert (judged.encoder.shape.dim, len(judged.lineage)) == (12, 1)
    assert bolus.load_encoder(folder / "1-XR")[0].shape.dim == 12
    with pytest.raises(EncoderError, match=r"an encoder for each of 2 modalities: load one of them, such as .*0-MR"):
        bolus.load_encoder(kept / "modalities")


@pytest.mark.parametrize("target", TARGETS)
def test_a_head_predicts_as_it_did(kept: Path, expected: dict[str, Any], target: str) -> None:
    head = Head.load(head_of(kept / "finished", target))
    assert head.target == target
    assert head.fits(bolus.load_encoder(kept / "finished")[0])
    assert head.knows(Cohort.open(COHORT).patients).any()
    np.testing.assert_allclose(head.predict(expected["pooled"]), expected[target]["of_pooled"], rtol=1e-6)


@pytest.mark.parametrize(("target", "metric"), [("disease", "auroc"), ("age", "mae")])
def test_results_are_read(kept: Path, target: str, metric: str) -> None:
    results = read_results(head_of(kept / "finished", target).parent / "results.jsonl")
    assert {result.target for result in results} == {target}
    assert {"finished", "random-init"} <= {result.encoder for result in results if result.metric == metric}
    assert {(result.p_value, result.seeds, result.unit) for result in results} == {(None, 1, "")}  # told since


@pytest.mark.parametrize("target", TARGETS)
def test_images_are_predicted_as_they_were_where_they_are_read_alike(
    kept: Path, expected: dict[str, Any], target: str, tmp_path: Path
) -> None:
    frame = bolus.predict(kept / "finished", COHORT, head=target, cache=tmp_path)
    said = [remark for remark in frame.attrs["remarks"] if "how MR of more than eight bits becomes grey" in remark]
    assert len(said) == (kept.name == BEFORE_RULES)
    alike = np.array(frame["modality"] == "XR") if said else np.ones(len(frame), bool)
    assert alike.sum() == (16 if said else 48)
    then = np.array(expected[target]["of_cohort"])
    np.testing.assert_allclose(frame[TARGETS[target]][alike], then[alike], rtol=5e-3)  # eight bits, rounded otherwise


@pytest.mark.parametrize("target", TARGETS)
def test_new_images_are_predicted_and_judged(kept: Path, target: str, tmp_path: Path) -> None:
    new = bolus.make_phantom(tmp_path / "new", num_patients=12, size=24, seed=5)
    run = Path(shutil.copytree(kept / "finished", tmp_path / "finished"))
    frame = bolus.predict(run, new.with_name("cohort.yaml"), head=head_of(run, target), cache=tmp_path / "cache")
    assert len(frame) == len(pd.read_csv(new))
    assert frame[TARGETS[target]].notna().all()
    assert not any("not checked" in remark for remark in frame.attrs["remarks"])  # the head knows its encoder
    task = "classify" if target == "disease" else "regress"
    before = head_of(run, target).parent
    found = bolus.evaluate(run, COHORT, task=task, target=target, probes=("linear",), draws=20,
                           cache=tmp_path / "cache")  # fmt: skip
    assert found.folder == before  # in the place of what the version had written itself
    assert read_results(before / "results.jsonl")[0].target == target
    assert Head.load(head_of(run, target)).target == target


def test_a_finished_run_stays_as_it_is(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(KEPT)
    run = Path(shutil.copytree(kept / "finished", tmp_path / "finished"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert go_on(run, tmp_path / "cache").status == "finished"
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_stopped_run_goes_on_unless_its_images_are_read_otherwise_now(
    stopped: Path, kept: Path, tmp_path: Path
) -> None:
    if kept.name == BEFORE_RULES:
        said = "or by a version that reads them otherwise; resuming would mix two runs: train anew in another folder"
        with pytest.raises(TrainingError, match=said):
            go_on(stopped, tmp_path / "cache")
        # Nothing else is in the way: checkpoint, recipe and record are read.
        record_of(stopped, data_hash=Run.open(KEPT / "06c8476" / "stopped").record["data_hash"])
    run = go_on(stopped, tmp_path / "cache")
    assert (run.status, run.record["steps"]) == ("finished", 3)
    ours, theirs = run.metrics(), Run.open(kept / "finished").metrics()  # of the version, without a stop
    assert [(line["kind"], line["step"]) for line in ours] == [(line["kind"], line["step"]) for line in theirs]
    for one, other in zip(ours, theirs, strict=True):
        if one["kind"] == "train" and kept.name != BEFORE_RULES:
            assert one["losses"] == pytest.approx(other["losses"], rel=0.05)  # views have become a little sharper
    assert bolus.load_encoder(stopped)[0].shape.dim == 12


@pytest.mark.parametrize("key", ["status", "split_hash", "data_hash", "num_training_samples", "ancestors"])
def test_what_a_still_earlier_version_did_not_record_is_named(stopped: Path, tmp_path: Path, key: str) -> None:
    record_of(stopped, **{key: None})
    with pytest.raises(BolusError, match=rf"run\.json has no '{key}': an earlier version wrote it, .*; train anew in"):
        go_on(stopped, tmp_path / "cache")
    (stopped / "run.json").write_text("[1, 2]")
    with pytest.raises(BolusError, match=r"run\.json: damaged"):
        go_on(stopped, tmp_path / "cache")


def test_no_path_of_the_machine_that_wrote_them_is_kept() -> None:
    for path in KEPT.rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".png", ".pyc"):
            found = path.read_bytes()
            assert not [place for place in (b"/home", b"/tmp", b"/root", b"/work", b"/Users") if place in found], path
    assert sum(path.stat().st_size for path in KEPT.rglob("*") if path.is_file()) < 1_200_000
