"""From a run to results: targets, overlap refused, baselines beside every number, files that can be read back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from bolus.data.cohort import Cohort, CohortSpec
from bolus.embedding import embed, open_encoder
from bolus.errors import EncoderError, EvaluationError, LeakageError
from bolus.evaluation.heads import Head
from bolus.evaluation.judging import evaluate, find_targets
from bolus.evaluation.results import read_results
from bolus.run import Run
from bolus.training import pretrain


@pytest.fixture
def run(tiny_cohort: Path, small_recipe: dict[str, Any], tmp_path: Path) -> Run:
    return pretrain(tiny_cohort, recipe=small_recipe, out=tmp_path / "run", cache=tmp_path / "cache", quiet=True)


def test_evaluate_writes_results_predictions_and_heads(run: Run, tiny_cohort: Path, tmp_path: Path) -> None:
    found = evaluate(run.folder, tiny_cohort, target="sick", fractions=(0.5, 1.0), draws=100, cache=tmp_path / "cache")
    results = read_results(found.folder / "results.jsonl")
    assert {result.metric for result in results} >= {"auroc", "average_precision", "balanced_accuracy", "brier"}
    encoders = {result.encoder for result in results}
    assert {"run", "random-init", "run without context", "majority", "run - random-init", "run - majority"} <= encoders
    assert {result.fraction for result in results} == {0.5, 1.0}
    cohort = Cohort.open(tiny_cohort)
    assert {result.split_hash for result in results} == {cohort.split_hash}
    assert all(result.detectable is not None for result in results if " - " in result.encoder)
    predictions = pd.read_parquet(found.folder / "predictions.parquet")
    assert (cohort.split[predictions["row"] - 1] == predictions["split"]).all()
    assert not (predictions["split"] == "train").any()
    head = Head.load(found.folder / "head-sick-linear.safetensors")
    frame = embed(run.folder, tiny_cohort, cache=tmp_path / "cache")
    scores = head.predict(np.stack(list(frame["embedding"])))
    kept = predictions.query("encoder == 'run' and probe == 'linear' and fraction == 1.0").set_index("row")["score"]
    np.testing.assert_allclose(scores[kept.index - 1], kept, rtol=1e-5)


def test_no_embedding_of_a_training_patient_is_written(run: Run, tiny_cohort: Path, tmp_path: Path) -> None:
    found = evaluate(run.folder, tiny_cohort, target="sick", draws=20, cache=tmp_path / "cache")
    assert {result.probe for result in found.results} == {"linear", "knn", "none"}
    assert [path.name for path in found.folder.glob("head-*")] == ["head-sick-linear.safetensors"]


def test_notes_are_kept_for_each_target(run: Run, tiny_cohort: Path, tmp_path: Path) -> None:
    found = evaluate(run.folder, tiny_cohort, task="regress", target="severity", draws=20, cache=tmp_path / "cache")
    notes = json.loads((found.folder / "notes.json").read_text(encoding="utf-8"))
    assert notes == {"general": found.notes, "targets": {"severity": found.reports["severity"].notes}}
    assert any("severity is missing in" in note for note in notes["targets"]["severity"])


def test_a_folder_may_be_named_like_a_difference_or_a_baseline(run: Run, tiny_cohort: Path, tmp_path: Path) -> None:
    names = {"a - b": "a-b", "majority": "majority (encoder)", "random-init": "random-init (encoder)"}
    for name, shown in names.items():
        folder = shutil.copytree(run.folder, tmp_path / name)
        found = evaluate(folder, tiny_cohort, target="sick", probes=("linear",), draws=20, cache=tmp_path / "cache")
        encoders = {result.encoder for result in found.results if " - " not in result.encoder}
        assert encoders == {shown, f"{shown} without context", "random-init", "majority"}
        assert f"{shown} - random-init" in {result.encoder for result in found.results}


def test_the_planted_label_is_found(run: Run, tiny_cohort: Path, tmp_path: Path) -> None:
    found = evaluate(run.folder, tiny_cohort, target="sick", probes=("linear",), draws=100, cache=tmp_path / "cache")
    auroc = next(r for r in found.results if r.encoder == "run" and r.metric == "auroc")
    assert auroc.estimate > 0.9


def test_regress_uses_the_score_and_its_missing_rows_are_left_out(run: Run, tiny_cohort: Path, tmp_path: Path) -> None:
    found = evaluate(run.folder, tiny_cohort, task="regress", target="severity", draws=50, cache=tmp_path / "cache")
    cohort = Cohort.open(tiny_cohort)
    known = ~np.isnan(cohort.encoded("score:severity")) & (cohort.split == "test")
    assert {result.num_samples for result in found.results} == {int(known.sum())}
    assert {"mae", "r2", "spearman"} <= {result.metric for result in found.results}


def test_patients_of_the_training_are_refused_on_any_later_cohort(run: Run, tiny_cohort: Path, tmp_path: Path) -> None:
    data = yaml.safe_load(tiny_cohort.read_text())
    data["split"]["seed"] = 5
    other = tiny_cohort.with_name("other.yaml")
    other.write_text(yaml.safe_dump(data))
    with pytest.raises(LeakageError) as caught:
        evaluate(run.folder, other, target="sick", cache=tmp_path / "cache")
    assert "P0" not in str(caught.value)
    data["namespace"] = "another hospital"  # the same identifiers, other people
    other.write_text(yaml.safe_dump(data))
    evaluate(run.folder, other, target="sick", draws=20, cache=tmp_path / "cache", out=tmp_path / "out")


def test_any_encoder_can_be_judged_and_says_what_is_not_known(tiny_cohort: Path, tmp_path: Path) -> None:
    from transformers import AutoBackbone, ResNetConfig

    torch.manual_seed(0)
    config = ResNetConfig(num_channels=3, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    AutoBackbone.from_config(config).save_pretrained(tmp_path / "external")
    found = evaluate(str(tmp_path / "external"), tiny_cohort, target="sick", draws=50, size=24,
                     cache=tmp_path / "cache", out=tmp_path / "out")  # fmt: skip
    assert {"external", "random-init", "majority"} <= {result.encoder for result in found.results}
    assert any("overlap was not checked" in note for note in found.notes)


def test_embeddings_are_joined_to_the_table(run: Run, tiny_cohort: Path, tmp_path: Path) -> None:
    (tiny_cohort.parent / "img" / "p0_0.png").write_bytes(b"not an image")
    embed(run.folder, tiny_cohort, out=tmp_path / "e.parquet", cache=tmp_path / "cache")
    frame = pd.read_parquet(tmp_path / "e.parquet")
    assert len(frame) == 59
    assert frame["row"].tolist() == list(range(2, 61))
    assert {"image", "patient", "visit", "sick", "split"} <= set(frame.columns)
    assert np.stack(list(frame["embedding"])).shape == (59, 256)


def test_context_can_be_kept_or_dropped(run: Run, tiny_cohort: Path, tmp_path: Path) -> None:
    with_blocks = embed(run.folder, tiny_cohort, cache=tmp_path / "cache")["embedding"]
    without = embed(run.folder, tiny_cohort, cache=tmp_path / "cache", keep_context=False)["embedding"]
    assert not np.allclose(np.stack(list(with_blocks)), np.stack(list(without)))


def test_a_random_twin_has_the_architecture_and_other_weights(run: Run) -> None:
    judged = open_encoder(run.folder)
    twin = judged.random_twin(3)
    assert sum(p.numel() for p in twin.parameters()) == sum(p.numel() for p in judged.encoder.parameters())
    image = torch.rand(1, 1, 24, 24)
    assert not torch.allclose(twin.eval()(image).pooled, judged.encoder(image).pooled)


def test_an_unfinished_run_has_no_encoder(tiny_cohort: Path, small_recipe: dict[str, Any], tmp_path: Path) -> None:
    pretrain(tiny_cohort, recipe=small_recipe, out=tmp_path / "part", cache=tmp_path / "cache", quiet=True,
             overrides=["training.max_hours=1e-9"])  # fmt: skip
    with pytest.raises(EncoderError, match="--resume"):
        open_encoder(tmp_path / "part")


def cohort_of(labels: list[str | None]) -> Cohort:
    frame = pd.DataFrame(
        {"image": [f"{i}.png" for i in range(len(labels))], "patient": range(len(labels)), "y": labels}
    )
    return Cohort(frame.astype({"patient": str}), CohortSpec(table="t.csv", roles={"label:y": "y"}))


def test_targets_of_each_kind_of_label() -> None:
    two = find_targets(cohort_of(["no", "yes", None, "yes"]), "classify", "y")[0]
    assert [(t.name, t.y.tolist(), t.classes) for t in two] == [("y", [0, 1, -1, 1], ("no", "yes"))]
    many, notes = find_targets(cohort_of(["a", "b", "c", "c"]), "classify", "y", min_patients=2)
    assert [t.name for t in many] == ["y", "y=c"]
    assert many[0].y.tolist() == [0, 1, 2, 2]
    assert len(notes) == 2
    joined = find_targets(cohort_of(["a|b", "b", "c", None]), "classify", "y=b")[0]
    assert joined[0].y.tolist() == [1, 1, 0, -1]
    with pytest.raises(EvaluationError, match="no class 'bb'; did you mean 'b'"):
        find_targets(cohort_of(["a", "b"]), "classify", "y=bb")
    with pytest.raises(EvaluationError, match="no label named 'z'"):
        find_targets(cohort_of(["a", "b"]), "classify", "z")
    with pytest.raises(EvaluationError, match="no score"):
        find_targets(cohort_of(["a", "b"]), "regress", "z")
