"""What earlier versions wrote still opens: runs, encoders, heads, results and cohorts of `tests/kept`."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bolus
from bolus.data.cohort.cohort import Cohort
from bolus.embedding import open_encoder
from bolus.encoders.folders.folder import load_encoder
from bolus.errors import BolusError, EncoderError, TrainingError
from bolus.evaluation.probing.heads import Head
from bolus.evaluation.statistics.results import read_results
from bolus.run import Run

KEPT = Path(__file__).parent / "kept"
VERSIONS = ("8aa6ec3", "06c8476")
COHORT = KEPT / "cohort" / "cohort.yaml"
TARGETS = {"disease": "probability:1", "age": "prediction"}


@pytest.fixture(params=VERSIONS)
def kept(request: pytest.FixtureRequest) -> Path:
    return KEPT / request.param


@pytest.fixture
def expected(kept: Path) -> dict[str, Any]:
    """What the version itself computed, the embeddings in float64."""
    return dict(json.loads((kept / "expected.json").read_text(encoding="utf-8")))


@pytest.fixture
def finished(kept: Path, tmp_path: Path) -> Path:
    """A copy, because evaluations are written into a run."""
    return Path(shutil.copytree(kept / "finished", tmp_path / "finished"))


@pytest.fixture
def stopped(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(KEPT)  # a recipe names its backbone's folder from there
    return Path(shutil.copytree(kept / "stopped", tmp_path / "stopped"))


def pixels() -> torch.Tensor:
    """The images of which `expected.json` has the embeddings."""
    where = importlib.util.spec_from_file_location("make_kept", KEPT / "make.py")
    assert where is not None and where.loader is not None
    module = importlib.util.module_from_spec(where)
    where.loader.exec_module(module)
    return module.pixels()


def head_of(run: Path, target: str) -> Path:
    (path,) = run.glob(f"evaluations/*/head-{target}-linear.safetensors")
    return path


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None takes one away."""
    data = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}), encoding="utf-8")


def test_a_run_opens_with_recipe_cohort_and_metrics(kept: Path) -> None:
    run = Run.open(kept / "finished")
    assert run.status == "finished"
    assert (run.recipe.name, list(run.recipe.objectives)) == ("kept", ["views", "age"])
    assert run.record["recipe_hash"] == run.recipe.digest
    assert [line["step"] for line in run.metrics() if line["kind"] == "train"] == [1, 2, 3]
    assert "Encoder pretrained with bolus 0.1.0" in run.card()
    assert Run.open(kept / "stopped").status == "stopped"
    for folder in (kept / "finished", kept / "stopped"):
        cohort = Cohort.open(folder / "cohort.yaml")
        assert (len(cohort), cohort.split_hash) == (48, run.record["split_hash"])


def test_an_encoder_embeds_as_it_did(kept: Path, expected: dict[str, Any]) -> None:
    for folder in (kept / "finished", kept / "finished" / "encoder"):
        encoder, preprocessing = bolus.load_encoder(folder)
        assert preprocessing["size"] == 16
        with torch.no_grad():
            pooled = encoder.double()(pixels().double()).pooled.reshape(3, -1)
        np.testing.assert_allclose(pooled, expected["pooled"], rtol=1e-4, atol=1e-5)
    assert open_encoder(kept / "finished").lineage[0]["keys"] == Run.open(kept / "finished").record["training_patients"]


def test_encoders_of_modalities_open_together_and_alone(kept: Path) -> None:
    folder = kept / "modalities" / "encoder"
    judged = open_encoder(folder)
    assert judged.encoder.names == ("MR", "XR")
    assert judged.lineage
    for part in ("0-MR", "1-XR"):
        assert load_encoder(folder / part)[0].shape.dim == 12
    with pytest.raises(EncoderError, match="holds an encoder for each of 2 modalities: load one of them, such as"):
        bolus.load_encoder(kept / "modalities")


@pytest.mark.parametrize("target", TARGETS)
def test_a_head_predicts_as_it_did(kept: Path, expected: dict[str, Any], target: str) -> None:
    head = Head.load(head_of(kept / "finished", target))
    assert head.target == target
    assert head.fits(load_encoder(kept / "finished" / "encoder")[0])
    assert head.knows(Cohort.open(COHORT).patients).any()
    np.testing.assert_allclose(head.predict(expected["pooled"]), expected[target]["of_pooled"], rtol=1e-6)


def test_results_are_read(kept: Path) -> None:
    for target, metric in {"disease": "auroc", "age": "mae"}.items():
        results = read_results(head_of(kept / "finished", target).parent / "results.jsonl")
        assert {result.target for result in results} == {target}
        assert "finished" in {result.encoder for result in results if result.metric == metric}
        assert {(result.p_value, result.seeds, result.unit) for result in results} == {(None, 1, "")}


@pytest.mark.parametrize("target", TARGETS)
def test_images_are_predicted_as_they_were(
    kept: Path, expected: dict[str, Any], target: str, tmp_path: Path
) -> None:
    frame = bolus.predict(kept / "finished", COHORT, head=target, cache=tmp_path / "cache")
    np.testing.assert_allclose(frame[TARGETS[target]], expected[target]["of_cohort"], rtol=1e-3)
    new = bolus.make_phantom(tmp_path / "new", num_patients=3, size=24, seed=5)
    frame = bolus.predict(kept / "finished", new, head=head_of(kept / "finished", target), cache=tmp_path / "cache")
    assert frame[TARGETS[target]].notna().all()
    assert not any("not checked" in remark for remark in frame.attrs["remarks"])


def test_a_run_is_evaluated_again(finished: Path, tmp_path: Path) -> None:
    before = [path.parent for path in finished.glob("evaluations/*/results.jsonl")]
    for task, target in (("classify", "disease"), ("regress", "age")):
        found = bolus.evaluate(finished, COHORT, task=task, target=target, probes=("linear",), draws=20,
                               cache=tmp_path / "cache")  # fmt: skip
        assert found.folder in before  # where the version itself had put it
        assert read_results(found.folder / "results.jsonl")


def test_a_stopped_run_goes_on(stopped: Path, kept: Path, tmp_path: Path) -> None:
    recipe = stopped / "recipe.yaml"
    run = bolus.pretrain(COHORT, recipe=recipe, out=stopped, overrides=["training.max_hours=null"], resume=True,
                         cache=tmp_path / "cache", quiet=True)  # fmt: skip
    assert (run.status, run.record["steps"]) == ("finished", 3)
    theirs = Run.open(kept / "finished").metrics()
    for line, other in zip(run.metrics(), theirs, strict=True):
        assert (line["kind"], line["step"]) == (other["kind"], other["step"])
    ours, other = (load_encoder(folder)[0].state_dict() for folder in (stopped, kept / "finished"))
    for name, tensor in ours.items():
        print(name, (tensor-other[name]).abs().max())
