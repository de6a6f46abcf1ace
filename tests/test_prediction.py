"""A saved head on new images: rows in, rows out, in order, with a reason where there is no prediction."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.split import patient_keys
from bolus.embedding.table import embed
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import save_encoder
from bolus.errors import EncoderError, EvaluationError, UsageError
from bolus.evaluation.probing.heads import Head
from bolus.evaluation.probing.reading import evaluate
from bolus.evaluation.statistics.metrics import auroc
from bolus.prediction.prediction import find_head, predict
from bolus.recipe import EncoderSpec


@pytest.fixture
def encoder(tmp_path: Path, tiny_cohort: Path) -> Path:
    cohort = Cohort.open(tiny_cohort)
    lineage = [{"salt": "s", "keys": patient_keys(cohort.patients[cohort.split == "train"], "s")}]
    network = build_encoder(EncoderSpec(backbone="r18w32", stem_pool=False), seed=0)
    save_encoder(network, tmp_path / "enc", preprocessing={"size": 24}, lineage=lineage)
    return tmp_path / "enc"


def judge(encoder: Path, cohort: Path, task: str, target: str) -> Path:
    out = encoder / "evaluations" / f"{task}-{target}"
    evaluate(encoder, cohort, task=task, target=target, probes=("linear",), draws=20, out=out,
             cache=encoder.parent / "cache")  # fmt: skip
    return out


def make_head(path: Path, width: int, num_classes: int, **changes: object) -> Path:
    """A head whose predictions are known: uniform over its classes, or 7 for a regression."""
    intercept = np.full(num_classes, 1 / num_classes) if num_classes else np.array([7.0])
    task = "classify" if num_classes else "regress"
    Head("constant", task, np.empty((0, width)), intercept, np.zeros(width), np.ones(width), np.arange(num_classes),
         num_classes, **{"target": "t", **changes}).save(path)  # fmt: skip
    return path


def test_a_classifier_gives_back_every_row_with_its_probability(
    encoder: Path, tiny_cohort: Path, tmp_path: Path
) -> None:
    out = judge(encoder, tiny_cohort, "classify", "sick")
    frame = predict(encoder, tiny_cohort, head="sick", cache=tmp_path / "cache")
    table = Cohort.open(tiny_cohort).table
    own = [name for name in table.columns if name not in ("image", "patient")]
    assert frame.columns.tolist() == ["row", "split", *own, "predicted", "probability:1", "reason"]
    assert frame["row"].tolist() == list(range(1, 61))
    assert frame["visit"].tolist() == table["visit"].tolist()
    assert frame["reason"].isna().all()
    assert (frame["predicted"] == np.where(frame["probability:1"] > 0.5, "1", "0")).all()
    test = frame[Cohort.open(tiny_cohort).split == "test"]
    assert auroc((test["sick"] == "yes").to_numpy(np.int64), test["probability:1"]) > 0.8
    stated = pd.read_parquet(out / "predictions.parquet").query("encoder == 'enc' and probe == 'linear'")
    stated = stated.set_index("row")["score"]
    np.testing.assert_allclose(frame.set_index("row")["probability:1"][stated.index], stated, rtol=1e-5)


def test_a_regression_gives_numbers_without_needing_the_score(encoder: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    out = judge(encoder, tiny_cohort, "regress", "severity")
    new = tiny_cohort.with_name("new.csv")
    pd.read_csv(tiny_cohort.with_name("table.csv"))[["image", "patient"]].iloc[::-1].to_csv(new, index=False)
    frame = predict(encoder, new, head="score:severity", cache=tmp_path / "cache")
    assert frame.columns.tolist() == ["row", "split", "prediction", "reason"]
    vectors = np.stack(list(embed(encoder, new, cache=tmp_path / "cache")["embedding"]))
    head = Head.load(out / "head-severity-linear.safetensors")
    np.testing.assert_allclose(frame["prediction"], head.predict(vectors), rtol=1e-6)
    by_path = predict(encoder, new, head=out / "head-severity-linear.safetensors", cache=tmp_path / "cache")
    pd.testing.assert_frame_equal(frame, by_path)


def test_more_classes_have_a_column_each(encoder: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    names = ("a", "b", "c")
    head = make_head(tmp_path / "h.safetensors", 256, 3, class_names=names, notes=("a constant",))
    frame = predict(encoder, tiny_cohort, head=head, cache=tmp_path / "cache")
    np.testing.assert_allclose(frame[[f"probability:{name}" for name in names]], 1 / 3)
    assert set(frame["predicted"]) == {"a"}
    assert "head of t: a constant" in frame.attrs["remarks"]
    nameless = make_head(tmp_path / "n.safetensors", 256, 2)
    assert "probability:1" in predict(encoder, tiny_cohort, head=nameless, cache=tmp_path / "cache")


def test_an_unreadable_image_keeps_its_row_and_says_why(encoder: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    head = make_head(tmp_path / "h.safetensors", 256, 2, class_names=("no", "yes"))
    (tiny_cohort.parent / "img" / "p0_1.png").write_bytes(b"not an image")
    (tiny_cohort.parent / "img" / "p3_0.png").unlink()
    frame = predict(encoder, tiny_cohort, head=head, cache=tmp_path / "cache")
    assert frame["row"].tolist() == list(range(1, 61))
    broken = frame["row"].isin([2, 10])
    assert frame.loc[broken, ["predicted", "probability:yes"]].isna().all(axis=None)
    assert frame.loc[~broken, ["predicted", "probability:yes"]].notna().all(axis=None)
    assert (frame["reason"].notna() == broken).all()
    assert (frame.loc[broken, "reason"].str.len() > 5).all()
    remarks = frame.attrs["remarks"]
    assert "2 rows have no prediction, see their reason (rows 2, 10)." in remarks
    assert not any("left out" in remark for remark in remarks)


def test_the_remark_counts_rows_of_the_pretraining_and_names_nobody(
    encoder: Path, tiny_cohort: Path, tmp_path: Path
) -> None:
    head = make_head(tmp_path / "h.safetensors", 256, 0)
    frame = predict(encoder, tiny_cohort, head=head, cache=tmp_path / "cache")
    trained = int((Cohort.open(tiny_cohort).split == "train").sum())
    assert 0 < trained < 60
    assert any(f"{trained} of 60 rows belong to patients that" in remark for remark in frame.attrs["remarks"])
    assert not any("P0" in remark for remark in frame.attrs["remarks"])
    save_encoder(build_encoder(EncoderSpec(backbone="r18w32"), seed=0), tmp_path / "u", preprocessing={"size": 24})
    remarks = predict(tmp_path / "u", tiny_cohort, head=head, cache=tmp_path / "cache").attrs["remarks"]
    assert remarks == [
        "The head does not say whose embeddings it was fitted on: this was not checked.",
        "Which patients u has seen is not known here.",
        "Which patients the head has seen is not known here.",
    ]


def test_a_head_of_another_encoder_of_the_same_width_is_refused(
    encoder: Path, tiny_cohort: Path, tmp_path: Path
) -> None:
    out = judge(encoder, tiny_cohort, "regress", "severity")
    path = out / "head-severity-linear.safetensors"
    remarks = predict(encoder, tiny_cohort, head=path, cache=tmp_path / "cache").attrs["remarks"]
    assert not any("not checked" in remark for remark in remarks)
    save_encoder(build_encoder(EncoderSpec(backbone="r18w32", stem_pool=False), seed=1), tmp_path / "other",
                 preprocessing={"size": 24})  # fmt: skip
    with pytest.raises(EvaluationError, match="fitted on embeddings of other weights than those of other"):
        predict(tmp_path / "other", tiny_cohort, head=path, cache=tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_patients_of_the_head_are_counted_apart_from_those_of_the_encoder(
    encoder: Path, tiny_cohort: Path, tmp_path: Path
) -> None:
    judge(encoder, tiny_cohort, "classify", "sick")
    remarks = predict(encoder, tiny_cohort, head="sick", cache=tmp_path / "cache").attrs["remarks"]
    split = Cohort.open(tiny_cohort).split
    trained, fitted = int((split == "train").sum()), int((split != "test").sum())
    assert trained < fitted < 60
    assert any(f"{trained} of 60 rows belong to patients that the encoder was" in remark for remark in remarks)
    assert any(f"{fitted} of 60 rows belong to patients that the head was fitted on" in remark for remark in remarks)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_predictions_are_written_whole(encoder: Path, tiny_cohort: Path, tmp_path: Path, suffix: str) -> None:
    head = make_head(tmp_path / "h.safetensors", 256, 2, class_names=("no", "yes"))
    (tiny_cohort.parent / "img" / "p0_1.png").write_bytes(b"not an image")
    out = tmp_path / "new" / f"predictions.{suffix}"
    frame = predict(encoder, tiny_cohort, head=head, out=out, cache=tmp_path / "cache")
    read = pd.read_csv(out) if suffix == "csv" else pd.read_parquet(out)
    assert read.columns.tolist() == frame.columns.tolist()
    assert read["predicted"].isna().tolist() == frame["predicted"].isna().tolist()
    np.testing.assert_allclose(read["probability:yes"], frame["probability:yes"])
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_columns_of_the_table_that_are_taken_get_another_name(encoder: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    table = pd.read_csv(tiny_cohort.with_name("table.csv"))
    table.assign(prediction="old", row="r", table_row="s").to_csv(tiny_cohort.with_name("taken.csv"), index=False)
    head = make_head(tmp_path / "h.safetensors", 256, 0)
    names = ("prediction", "row", "table_row")
    frame = predict(encoder, tiny_cohort.with_name("taken.csv"), head=head, cache=tmp_path / "cache", columns=names)
    assert (frame["table_prediction"] == "old").all()
    assert (frame["table_row"] == "s").all()
    assert (frame["table_table_row"] == "r").all()
    assert (frame["prediction"] == 7).all()
    assert frame.columns.is_unique


def test_a_finetuned_head_is_used_with_its_own_encoder(
    encoder: Path, tiny_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = encoder / "evaluations" / "finetune-sick" / "finetuned-sick"
    other = build_encoder(EncoderSpec(backbone="r18w32", stem_pool=False, neck=16), seed=7)
    save_encoder(other, folder, preprocessing={"size": 24})
    r = np.random.default_rng(0)
    head = Head("linear", "regress", r.normal(size=(1, 16)), np.zeros(1), np.zeros(16), np.ones(16),
                np.empty(0, np.int64), 0, target="sick")  # fmt: skip
    head.save(folder / "head.safetensors")
    vectors = np.stack(list(embed(folder, tiny_cohort, cache=tmp_path / "cache")["embedding"]))
    for given in ("sick", "finetuned-sick", folder, folder / "head.safetensors"):
        frame = predict(encoder, tiny_cohort, head=given, cache=tmp_path / "cache")
        np.testing.assert_allclose(frame["prediction"], head.predict(vectors), rtol=1e-6)
        said = f"The head is used with its own encoder, {folder}, not with {encoder}."
        assert said in frame.attrs["remarks"]
    own = predict(folder, tiny_cohort, head=folder, cache=tmp_path / "cache")
    assert not any("its own encoder" in remark for remark in own.attrs["remarks"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EncoderError, match="no-such-run"):
        predict(tmp_path / "no-such-run", tiny_cohort, head=folder, cache=tmp_path / "cache")
    make_head(encoder / "evaluations" / "b" / "head-sick-linear.safetensors", 256, 0)
    with pytest.raises(UsageError, match="2 heads have the name"):
        find_head(encoder, "sick")
    assert find_head(encoder, "finetuned-sick") == folder / "head.safetensors"


def test_a_clip_is_one_line_and_lost_frames_are_said(tiny_cohort: Path, tmp_path: Path) -> None:
    table = pd.read_csv(tiny_cohort.with_name("table.csv"))[["image", "patient"]].assign(frame=list(range(3)) * 20)
    table["clip"] = table["patient"].str.replace("P", "c")
    table = table.iloc[np.r_[30:60, 0:30]]  # clips in another order than their names
    table.to_csv(tiny_cohort.with_name("clips.csv"), index=False)
    cohort = Cohort.open(tiny_cohort.with_name("clips.csv"), roles={"series": "clip", "order": "frame"})
    network = build_encoder(EncoderSpec(backbone="r18w32", stem_pool=False, temporal_shift=8), seed=0)
    save_encoder(network, tmp_path / "v", preprocessing={"size": 24, "frames": 2})
    head = make_head(tmp_path / "h.safetensors", 256, 0)
    for name in ("p10_0", "p10_1", "p10_2", "p11_1"):
        (tiny_cohort.parent / "img" / f"{name}.png").write_bytes(b"not an image")
    frame = predict(tmp_path / "v", cohort, head=head, cache=tmp_path / "cache", columns=["clip"])
    assert frame["row"].tolist() == list(range(1, 61, 3))
    assert frame["clip"].tolist() == table["clip"].unique().tolist()
    assert frame["prediction"].isna().tolist() == [True] + [False] * 19
    assert frame["reason"].notna().tolist() == [True] + [False] * 19
    assert "1 rows have no prediction, see their reason (row 1)." in frame.attrs["remarks"]
    assert any("1 images cannot be read and are left out (row 5)" in remark for remark in frame.attrs["remarks"])


def test_which_head_is_meant(encoder: Path, tmp_path: Path) -> None:
    first = make_head(encoder / "evaluations" / "a" / "head-sick=mild cold-linear.safetensors", 4, 2)
    assert find_head(encoder, "label:sick=mild cold") == first
    with pytest.raises(EvaluationError, match="did you mean 'sick=mild cold'"):
        find_head(encoder, "sick=mild coldness")
    second = Path(shutil.copytree(first.parent, encoder / "evaluations" / "b")) / first.name
    Head.load(second).signed("", ["P1"]).save(second)  # an evaluation elsewhere saves it again, with a salt of its own
    assert find_head(encoder, "sick=mild cold") == first
    make_head(second, 4, 3)
    with pytest.raises(UsageError, match="2 heads have the name") as caught:
        find_head(encoder, "sick=mild cold")
    assert str(first) in str(caught.value) and str(second) in str(caught.value)
    assert find_head(encoder, first.parent) == first
    make_head(first.parent / "head-other-linear.safetensors", 4, 2)
    with pytest.raises(UsageError, match="holds 2 heads"):
        find_head(encoder, first.parent)
    with pytest.raises(EvaluationError, match="no evaluations to look it up in"):
        find_head("facebook/dinov2-small", "sick")
    with pytest.raises(EvaluationError, match="known: none"):
        (tmp_path / "bare" / "evaluations").mkdir(parents=True)
        find_head(tmp_path / "bare", "sick")


def test_what_does_not_fit_is_refused_before_images_are_read(encoder: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    narrow = make_head(tmp_path / "h.safetensors", 12, 2)
    never = tmp_path / "never"
    with pytest.raises(EvaluationError, match="'t' needs embeddings of width 12, but those of enc have width 256"):
        predict(encoder, tiny_cohort, head=narrow, cache=never)
    with pytest.raises(UsageError, match=r"\.csv or \.parquet, found 'p.xlsx'"):
        predict(encoder, tiny_cohort, head=narrow, out=tmp_path / "p.xlsx", cache=never)
    for target in ("change:severity", "amount_of_change:severity"):
        pairs = make_head(tmp_path / "c.safetensors", 256, 3, target=target)
        with pytest.raises(UsageError, match="difference of two samples"):
            predict(encoder, tiny_cohort, head=pairs, cache=never)
    assert not never.exists()
