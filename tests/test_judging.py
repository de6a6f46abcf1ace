"""From a run to results: targets, overlap refused, baselines beside every number, files that can be read back."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image as Pillow
from PIL import Image as PillowImage

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.data.cohort.split import patient_keys, seen_rows
from bolus.embedding.opening import open_encoder, open_store, remarks_on
from bolus.embedding.table import embed
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import lineage_of, save_encoder
from bolus.errors import EncoderError, EvaluationError, LeakageError, UsageError
from bolus.evaluation.probing.heads import Head
from bolus.evaluation.probing.options import FinetuneSpec
from bolus.evaluation.probing.reading import evaluate
from bolus.evaluation.statistics.results import read_results
from bolus.evaluation.targets import find_targets
from bolus.recipe import AugmentSpec, EncoderSpec
from bolus.run import Run
from bolus.training.loop import pretrain


@pytest.fixture
def run(trained_copy: Run) -> Run:
    return trained_copy


def test_evaluate_writes_results_predictions_and_heads(run: Run, tiny_cohort: Path, tmp_path: Path) -> None:
    found = evaluate(run.folder, tiny_cohort, target="sick", fractions=(0.5, 1.0), draws=100, cache=tmp_path / "cache")
    results = read_results(found.folder / "results.jsonl")
    assert {result.metric for result in results} >= {"auroc", "average_precision", "balanced_accuracy", "brier"}
    encoders = {result.encoder for result in results}
    assert encoders == {"run", "random-init", "run without context", "majority"}
    baselines = {result.baseline for result in results if result.encoder == "run"}
    assert baselines == {"", "random-init", "run without context", "majority"}
    assert {result.fraction for result in results} == {0.5, 1.0}
    cohort = Cohort.open(tiny_cohort)
    assert {result.split_hash for result in results} == {cohort.split_hash}
    assert all((result.detectable is None) == (result.se == 0) for result in results if result.baseline)
    assert any(result.detectable for result in results if result.baseline)
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
    assert notes.pop("rows_hash"), "which table the rows are of"
    assert notes == {"general": found.notes, "targets": {"severity": found.reports["severity"].notes}}
    assert any("severity is missing in" in note for note in notes["targets"]["severity"])


def test_a_folder_may_be_named_like_a_difference_or_a_baseline(run: Run, tiny_cohort: Path, tmp_path: Path) -> None:
    names = {"a - b": "a - b", "majority": "majority (encoder)", "random-init": "random-init (encoder)"}
    for name, shown in names.items():
        folder = shutil.copytree(run.folder, tmp_path / name)
        found = evaluate(folder, tiny_cohort, target="sick", probes=("linear",), draws=20, cache=tmp_path / "cache")
        encoders = {result.encoder for result in found.results}
        assert encoders == {shown, f"{shown} without context", "random-init", "majority"}
        assert (shown, "random-init") in {(result.encoder, result.baseline) for result in found.results}


def test_the_planted_label_is_found(tiny_cohort: Path, small_recipe: dict[str, Any], tmp_path: Path) -> None:
    # In steps as small as these the run ends at nearly the same weights on every processor.
    run = pretrain(tiny_cohort, recipe=small_recipe, out=tmp_path / "run", cache=tmp_path / "cache", quiet=True,
                   overrides=["optimizer={kind: adamw, lr: 0.001}"])  # fmt: skip
    found = evaluate(run.folder, tiny_cohort, target="sick", probes=("linear",), draws=100, cache=tmp_path / "cache")
    auroc = next(r for r in found.results if (r.encoder, r.baseline, r.metric) == ("run", "", "auroc"))
    assert auroc.estimate > 0.9


def test_regress_uses_the_score_and_its_missing_rows_are_left_out(run: Run, tiny_cohort: Path, tmp_path: Path) -> None:
    found = evaluate(run.folder, tiny_cohort, task="regress", target="severity", draws=50, cache=tmp_path / "cache")
    cohort = Cohort.open(tiny_cohort)
    known = ~np.isnan(cohort.encoded("score:severity")) & (cohort.split == "test")
    assert {result.num_samples for result in found.results} == {int(known.sum())}
    assert {"mae", "r2", "spearman"} <= {result.metric for result in found.results}


def test_every_metric_of_a_number_stands_on_its_ranges_too(run: Run, tiny_cohort: Path, tmp_path: Path) -> None:
    found = evaluate(run.folder, tiny_cohort, task="regress", target="severity", draws=20, shots=(7, 9),
                     cache=tmp_path / "cache")  # fmt: skip
    results = read_results(found.folder / "results.jsonl")
    assert {r.metric for r in results} == {"mae", "mse", "gm", "r2", "pearson", "spearman", "ccc"}
    assert "" in {r.subset for r in results}
    assert len({r.subset for r in results}) > 1
    whole = {r.num_samples for r in results if not r.subset}
    parts = {r.subset: r.num_samples for r in results if r.subset}
    assert whole == {sum(parts.values())}


# --- trained on images


def test_trained_probes_stand_beside_the_twin_and_the_tuned_encoder_is_kept(
    run: Run, tiny_cohort: Path, tmp_path: Path
) -> None:
    options = {"draws": 20, "cache": tmp_path / "cache", "finetune": FinetuneSpec(epochs=2, batch_size=16)}
    found = evaluate(run.folder, tiny_cohort, target="sick", probes=("linear", "frozen", "finetune"), **options)
    results = read_results(found.folder / "results.jsonl")
    for kind in ("linear", "frozen", "finetune"):
        read = {(r.encoder, r.baseline) for r in results if r.probe == kind}
        names = {"run", "random-init", "run without context"}
        assert {encoder for encoder, baseline in read if not baseline} == names
        assert {baseline for _, baseline in read} == {"", *names - {"run"}, "majority"}
    assert any("was best on validation" in note for r in results if r.probe == "finetune" for note in r.notes)

    folder = found.folder / "finetuned-sick"
    cohort = Cohort.open(tiny_cohort)
    lineage = lineage_of(folder)
    assert seen_rows(lineage[0], cohort.patients).tolist() == (cohort.split == "train").tolist()
    assert lineage[1:] == lineage_of(run.encoder)
    head = Head.load(folder / "head.safetensors")
    assert (head.kind, head.target, head.class_names) == ("linear", "sick", ("0", "1"))
    scores = head.predict(np.stack(list(embed(folder, cohort, cache=tmp_path / "cache")["embedding"])))
    predictions = pd.read_parquet(found.folder / "predictions.parquet")
    kept = predictions.query("encoder == 'run' and probe == 'finetune'").set_index("row")["score"]
    np.testing.assert_allclose(scores[kept.index - 1], kept, rtol=1e-4, atol=1e-5)
    with pytest.raises(LeakageError):
        evaluate(folder, changed(tiny_cohort, "turned", **ANOTHER_SPLIT), target="sick", cache=tmp_path / "cache")

    assert head.fits(open_encoder(folder).encoder) is True
    assert head.fits(open_encoder(run.folder).encoder) is False
    assert (head.knows(cohort.patients) == (cohort.split != "test")).all()

    evaluate(run.folder, tiny_cohort, target="sick", probes=("linear",), **options)
    assert folder.exists(), "other probes have another folder"
    evaluate(run.folder, tiny_cohort, target="sick", probes=("linear",), out=found.folder, **options)
    assert not folder.exists(), "it would stand beside results that do not speak of it"


def test_wrong_calls_are_refused_before_images_are_read(run: Run, tiny_cohort: Path, tmp_path: Path) -> None:
    for wrong, said in (
        ({"probes": ("finetun",)}, "did you mean 'finetune'"),
        ({"fractions": (0.0,)}, "fractions above 0"),
        ({"repeats": 0}, "repeats from 1 on"),
        ({"shots": (3, 2)}, "few <= many"),
        ({"task": "chnge"}, "unknown task 'chnge'; a target is read by classify or regress"),
        ({"task": "change"}, "evaluate_change"),
        ({"task": "regress", "finetune": FinetuneSpec(class_weights="balanced")}, "class weights"),
        ({"target": "score:severity"}, "is about a label"),
    ):
        with pytest.raises(UsageError, match=said):
            evaluate(run.folder, tiny_cohort, **{"target": "sick", "cache": tmp_path / "unopened", **wrong})
    assert not (tmp_path / "unopened").exists()


def test_a_head_says_whose_embeddings_it_reads_and_on_whom_it_was_fitted(
    run: Run, tiny_cohort: Path, tmp_path: Path
) -> None:
    found = evaluate(run.folder, tiny_cohort, task="regress", target="severity", draws=20, cache=tmp_path / "cache")
    assert found.folder.name.startswith("regress-severity-") and "linear" not in found.folder.name
    head = Head.load(found.folder / "head-severity-linear.safetensors")
    assert head.fits(open_encoder(run.folder).encoder) is True
    assert head.fits(open_encoder(run.folder, keep_context=False).encoder) is False
    assert head.fits(open_encoder(run.folder).random_twin(0)) is False
    assert replace(head, encoder="").fits(open_encoder(run.folder).encoder) is None
    cohort = Cohort.open(tiny_cohort)
    assert (head.knows(cohort.patients) == (cohort.split != "test")).all()
    assert not any("P0" in key for key in head.patients)


def test_half_of_the_patients_keep_no_encoder(run: Run, tiny_cohort: Path, tmp_path: Path) -> None:
    found = evaluate(run.encoder, tiny_cohort, task="regress", target="severity", probes=("finetune",), repeats=2,
                     fractions=(0.5,), draws=20, cache=tmp_path / "cache", out=tmp_path / "out",
                     finetune=FinetuneSpec(epochs=1, augment=AugmentSpec(preset="mri")))  # fmt: skip
    assert {r.probe for r in found.results} == {"finetune", "none"}
    assert not list((tmp_path / "out").glob("finetuned-*"))
    assert "no head was kept: fractions do not include 1.0" in found.reports["severity"].notes


def test_clips_are_judged_and_rows_are_of_the_table_as_given(tiny_cohort: Path, tmp_path: Path) -> None:
    table = pd.read_csv(tiny_cohort.with_name("table.csv"))
    for patient in range(20):
        frames = [PillowImage.open(tiny_cohort.parent / "img" / f"p{patient}_{visit}.png") for visit in range(3)]
        frames[0].save(tiny_cohort.parent / f"{patient}.tif", save_all=True, append_images=frames[1:])
    clips = table[table["visit"] == 2].assign(image=[f"{patient}.tif" for patient in range(20)])
    clips.to_csv(tiny_cohort.with_name("clips.csv"), index=False)
    path = changed(tiny_cohort, "clips", table="clips.csv")
    spec = EncoderSpec(backbone="r18w32", stem_pool=False, temporal_shift=8)
    encoder = build_encoder(spec, seed=0)
    save_encoder(encoder, tmp_path / "e", preprocessing={"size": 24, "frames": 2})
    found = evaluate(tmp_path / "e", path, target="sick", probes=("linear", "finetune"), draws=20, out=tmp_path / "out",
                     cache=tmp_path / "cache", finetune=FinetuneSpec(epochs=1))  # fmt: skip
    given = Cohort.open(path)
    predictions = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert set(predictions["row"]) <= set(range(1, 21))
    assert (given.split[predictions["row"] - 1] == predictions["split"]).all()
    sick = (given.values("label:sick")[predictions["row"] - 1] == "1").astype(float)
    assert np.array_equal(predictions["y"], sick)
    assert {r.num_samples for r in found.results} == {int((given.split == "test").sum())}


def changed(cohort: Path, name: str, **changes: Any) -> Path:
    """The cohort with other keys, in a file beside it."""
    path = cohort.with_name(f"{name}.yaml")
    path.write_text(yaml.safe_dump(yaml.safe_load(cohort.read_text()) | changes))
    return path


ANOTHER_SPLIT = {"split": {"seed": 5, "val": 0.2, "test": 0.3}}


def other_people(cohort: Path) -> Path:
    """Another hospital's cohort, of the same identifiers, labels and columns, and other pictures."""
    folder, rng = cohort.parent.with_name("others"), np.random.default_rng(7)
    table = pd.read_csv(cohort.with_name("table.csv"), dtype=str, keep_default_na=False)
    (folder / "img").mkdir(parents=True, exist_ok=True)
    for name, sick in zip(table["image"], table["sick"], strict=True):
        pixels = rng.integers(40, 115, (24, 24))
        pixels[6:14, 6:14] += 90 * (sick == "yes")
        Pillow.fromarray(pixels.astype(np.uint8)).save(folder / name)
    table.to_csv(folder / "table.csv", index=False)
    keys = yaml.safe_load(cohort.read_text()) | ANOTHER_SPLIT | {"namespace": "another hospital"}
    (folder / "cohort.yaml").write_text(yaml.safe_dump(keys))
    return folder / "cohort.yaml"


def test_patients_of_the_training_are_refused_on_any_later_cohort(run: Run, tiny_cohort: Path, tmp_path: Path) -> None:
    turned = changed(tiny_cohort, "turned", **ANOTHER_SPLIT)
    for source in (run.folder, run.encoder, shutil.copytree(run.encoder, tmp_path / "copied")):
        with pytest.raises(LeakageError) as caught:
            evaluate(source, turned, target="sick", cache=tmp_path / "cache", out=tmp_path / "never")
        assert "P0" not in str(caught.value)
    assert not (tmp_path / "never").exists()
    others = other_people(tiny_cohort)
    for source in (run.folder, run.encoder):
        found = evaluate(source, others, target="sick", draws=20, cache=tmp_path / "cache", out=tmp_path / "out")
        assert not any("overlap was not checked" in note for note in found.notes)


def test_a_run_whose_encoder_has_no_lineage_still_knows_its_patients(
    run: Run, tiny_cohort: Path, tmp_path: Path
) -> None:
    path = run.encoder / "encoder.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "lineage"}))
    turned = changed(tiny_cohort, "turned", **ANOTHER_SPLIT)
    with pytest.raises(LeakageError):
        evaluate(run.folder, turned, target="sick", cache=tmp_path / "cache")
    found = evaluate(run.encoder, turned, target="sick", draws=20, cache=tmp_path / "cache", out=tmp_path / "out")
    assert any("overlap was not checked" in note for note in found.notes)


def test_patients_of_an_ancestor_are_refused_too(
    run: Run, tiny_cohort: Path, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    others = other_people(tiny_cohort)
    keys = [f"encoder.backbone={run.encoder}", "encoder.pretrained=true", "training.epochs=1"]
    child = pretrain(others, recipe=small_recipe, overrides=keys, out=tmp_path / "child", cache=tmp_path / "cache",
                     quiet=True)  # fmt: skip
    assert lineage_of(child.encoder)[1:] == lineage_of(run.encoder)
    for source in (child.folder, child.encoder):
        with pytest.raises(LeakageError, match="initialised from"):
            evaluate(source, changed(tiny_cohort, "turned", **ANOTHER_SPLIT), target="sick", cache=tmp_path / "cache")
    evaluate(child.folder, tiny_cohort, target="sick", draws=20, cache=tmp_path / "cache")


def test_every_set_of_a_lineage_is_looked_at(tiny_cohort: Path, tmp_path: Path) -> None:
    cohort = Cohort.open(tiny_cohort)
    held_out = patient_keys(cohort.patients[cohort.split == "test"], "c")
    lineage = [{"salt": "a", "keys": ["0"]}, {"salt": "b", "keys": []}, {"salt": "c", "keys": held_out}]
    encoder = build_encoder(EncoderSpec(backbone="r18w32"), seed=0)
    save_encoder(encoder, tmp_path / "e", preprocessing={"size": 24}, lineage=lineage)
    with pytest.raises(LeakageError):
        evaluate(tmp_path / "e", cohort, target="sick", cache=tmp_path / "cache", out=tmp_path / "out")


def test_another_split_has_another_folder(run: Run, tiny_cohort: Path, tmp_path: Path) -> None:
    others = other_people(tiny_cohort)
    found = [
        evaluate(run.folder, cohort, target="sick", probes=("linear",), draws=20, cache=tmp_path / "cache")
        for cohort in (tiny_cohort, others, tiny_cohort)
    ]
    assert found[0].folder == found[2].folder != found[1].folder
    for each, cohort in zip(found, (tiny_cohort, others, tiny_cohort), strict=True):
        split_hash = Cohort.open(cohort).split_hash
        assert each.folder == run.folder / "evaluations" / f"classify-sick-linear-{split_hash[:6]}"
        assert {r.split_hash for r in read_results(each.folder / "results.jsonl")} == {split_hash}


def test_nothing_of_an_earlier_evaluation_stays(run: Run, tiny_cohort: Path, tmp_path: Path) -> None:
    again = {"probes": ("linear",), "draws": 20, "cache": tmp_path / "cache", "out": tmp_path / "out"}
    evaluate(run.folder, tiny_cohort, target="sick", **again)
    assert (tmp_path / "out" / "head-sick-linear.safetensors").is_file()
    (tmp_path / "out" / "head-sick=no-linear.safetensors").touch()  # of a class that is left out now
    (tmp_path / "out" / "head-sickness-linear.safetensors").touch()  # of another question
    evaluate(run.folder, tiny_cohort, target="label:sick", fractions=(0.5,), **again)  # keeps no head
    assert [path.name for path in (tmp_path / "out").glob("head-*")] == ["head-sickness-linear.safetensors"]
    assert {r.fraction for r in read_results(tmp_path / "out" / "results.jsonl")} == {0.5}


def test_a_size_is_refused_where_the_encoder_states_its_own(run: Run, tiny_cohort: Path) -> None:
    for source in (run.folder, run.encoder):
        with pytest.raises(UsageError, match="24 pixels"):
            open_encoder(source, size=32)
    with pytest.raises(UsageError):
        evaluate(run.folder, tiny_cohort, target="sick", size=32)


def test_a_cohort_without_validation_patients_is_judged_and_says_how(
    run: Run, tiny_cohort: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(tiny_cohort.with_name("table.csv"))
    cohort = Cohort.open(tiny_cohort)
    table["part"] = np.where(cohort.split == "test", "test", "train")
    table.to_csv(tiny_cohort.with_name("fixed.csv"), index=False)
    roles = {**cohort.roles, "split": "part"}
    fixed = changed(tiny_cohort, "fixed", table="fixed.csv", roles=roles, namespace="another hospital")
    found = evaluate(run.folder, fixed, target="sick", draws=20, cache=tmp_path / "cache")
    assert any("training patients, on whom nothing was fitted" in note for note in found.reports["sick"].notes)
    predictions = pd.read_parquet(found.folder / "predictions.parquet")
    opened = Cohort.open(fixed)
    assert set(opened.split[predictions.query("split == 'val'")["row"] - 1]) == {"train"}


# --- ranges


def deep_cohort(folder: Path, modality: list[str] | None, highest: int = 1000) -> Cohort:
    """Four patients, each with an image of 16 bits whose file does not say what is white."""
    folder.mkdir()
    for number in range(4):
        pixels = np.full((24, 24), highest, np.uint16)
        pixels[:4] = 0
        PillowImage.fromarray(pixels).save(folder / f"{number}.png")
    columns = {"image": [f"{n}.png" for n in range(4)], "patient": list("abcd")}
    pd.DataFrame(columns | ({"modality": modality} if modality else {})).to_csv(folder / "t.csv", index=False)
    return Cohort.open(folder / "t.csv")


def encoder_that_knows(folder: Path, ranges: dict[str, list[float]]) -> Path:
    encoder = build_encoder(EncoderSpec(backbone="r18w32"), seed=0)
    save_encoder(encoder, folder, preprocessing={"size": 24, "ranges": ranges})
    return folder


def brightness(source: Path, cohort: Cohort, cache: Path) -> tuple[float, list[str]]:
    judged = open_encoder(source)
    store = open_store(judged, cohort, cache=cache)
    unit = store.gather(np.array([0])).unit(torch.device("cpu"))
    return float(unit.max()), remarks_on(judged, store)


def test_the_only_range_of_an_encoder_holds_whatever_the_modality_is_called(tmp_path: Path) -> None:
    folder, cache = encoder_that_knows(tmp_path / "e", {"image": [0, 4095]}), tmp_path / "cache"
    plain = brightness(folder, deep_cohort(tmp_path / "a", None), cache)
    assert plain == (pytest.approx(1000 / 4095, abs=1e-4), [])
    cohort = deep_cohort(tmp_path / "b", ["DX"] * 4)
    named, remarks = brightness(folder, cohort, cache)
    assert named == plain[0]
    assert len(remarks) == 1
    assert "modality 'DX': values 0 to 4095 are used, the range it knows for image" in remarks[0]
    assert embed(folder, cohort, cache=cache).attrs["remarks"] == remarks
    stated = Cohort(cohort.table, cohort.spec.model_copy(update={"ranges": {"DX": (0.0, 1023.0)}}), cohort.folder)
    value, remarks = brightness(folder, stated, cache)
    assert value == pytest.approx(1000 / 1023, abs=1e-4), "what a person states wins over the encoder's range"
    assert "'DX': values 0 to 1023 are used, not a range it was trained with" in remarks[0]
    found = Cohort(cohort.table, cohort.spec.model_copy(update={"cohort_ranges": {"DX": (0.0, 1023.0)}}), cohort.folder)
    assert brightness(folder, found, cache)[0] == named, "the encoder's range goes before one that a check found"


def test_a_range_that_the_encoder_does_not_know_is_remarked_on(tmp_path: Path) -> None:
    folder, cache = encoder_that_knows(tmp_path / "e", {"CT": [0, 4095], "MR": [0, 511]}), tmp_path / "cache"
    cohort = deep_cohort(tmp_path / "a", ["DX", "CT", "CT", "CT"])
    value, remarks = brightness(folder, cohort, cache)
    assert value == pytest.approx(1000 / 1023, abs=1e-4)
    assert len(remarks) == 1
    assert "'DX': values 0 to 1023 are used, not a range it was trained with" in remarks[0]
    stated = Cohort(cohort.table, cohort.spec.model_copy(update={"ranges": {"DX": (0.0, 2047.0)}}), cohort.folder)
    value, remarks = brightness(folder, stated, cache)
    assert value == pytest.approx(1000 / 2047, abs=1e-4)
    assert "values 0 to 2047" in remarks[0]


def test_no_remark_where_the_files_say_their_range(tmp_path: Path, tiny_cohort: Path) -> None:
    folder = encoder_that_knows(tmp_path / "e", {"CT": [0, 4095], "MR": [0, 511]})
    assert brightness(folder, Cohort.open(tiny_cohort), tmp_path / "cache")[1] == []


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
    assert {"visit", "sick", "split"} <= set(frame.columns)
    assert not {"image", "patient"} & set(frame.columns)
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


def test_the_kind_of_a_target_is_honoured() -> None:
    frame = pd.DataFrame({"image": ["a.png", "b.png"], "patient": ["a", "b"], "s": [1, 2], "t": [3, 4], "u": [5, 6]})
    roles = {"score:age": "s", "attribute:age": "t", "attribute:only": "u"}
    cohort = Cohort(frame, CohortSpec(table="t.csv", roles=roles))
    for target, y in {"age": [1, 2], "score:age": [1, 2], "attribute:age": [3, 4], "only": [5, 6]}.items():
        (found,), _ = find_targets(cohort, "regress", target)
        assert (found.name, found.y.tolist()) == (target.split(":")[-1], y)
    with pytest.raises(EvaluationError, match="no score named 'only'"):
        find_targets(cohort, "regress", "score:only")


def test_targets_of_each_kind_of_label() -> None:
    two = find_targets(cohort_of(["no", "yes", None, "yes"]), "classify", "y")[0]
    assert [(t.name, t.y.tolist(), t.classes) for t in two] == [("y", [0, 1, -1, 1], ("0", "1"))]
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
    with pytest.raises(UsageError, match="is about a label"):
        find_targets(cohort_of(["a", "b"]), "classify", "score:y")
    with pytest.raises(UsageError, match="a number has none"):
        find_targets(cohort_of(["a", "b"]), "regress", "y=b")
    with pytest.raises(EvaluationError, match="categories, not numbers"):
        find_targets(cohort_of(["a", "b"]), "regress", "label:y")
    with pytest.raises(EvaluationError, match="no score"):
        find_targets(cohort_of(["a", "b"]), "regress", "z")
