"""Embeddings are computed once for an encoder, its input and an image, whatever asks for them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image as PillowImage

from bolus import embed, evaluate, evaluate_audit, evaluate_change, evaluate_retrieve, predict
from bolus.data.cohort.cohort import Cohort
from bolus.data.images.cache import build_store
from bolus.data.images.clips import open_samples
from bolus.data.images.preprocessing import Preprocessing
from bolus.embedding import vectors
from bolus.embedding.opening import open_encoder
from bolus.embedding.remembering import FOLDER, remember
from bolus.embedding.vectors import embed_samples, keys_of
from bolus.encoders.backbone import Encoder
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import save_encoder
from bolus.errors import EncoderError, UsageError
from bolus.recipe import EncoderSpec


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    save_encoder(build_encoder(EncoderSpec(backbone="r18w32", stem_pool=False), seed=5), tmp_path / "enc",
                 preprocessing=Preprocessing(24).to_json())  # fmt: skip
    return tmp_path / "enc"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many images every forward of an encoder was given."""
    counts: list[int] = []
    forward = Encoder.forward

    def counted(self: Encoder, images: torch.Tensor, **options: Any) -> Any:
        if images.device.type != "meta":
            counts.append(len(images))
        return forward(self, images, **options)

    monkeypatch.setattr(Encoder, "forward", counted)
    return counts


def test_a_second_question_computes_nothing(encoder: Path, tiny_cohort: Path, tmp_path: Path, seen: list[int]) -> None:
    options: dict[str, Any] = {"cache": tmp_path / "cache", "draws": 20, "probes": ("linear",)}
    first = evaluate(encoder, tiny_cohort, target="sick", out=tmp_path / "a", **options)
    assert sum(seen) == 120, "60 images, by the encoder and its twin"
    again = evaluate(encoder, tiny_cohort, target="sick", out=tmp_path / "b", **options)
    evaluate(encoder, tiny_cohort, task="regress", target="severity", out=tmp_path / "c", **options)
    evaluate_retrieve(encoder, tiny_cohort, across="visit", out=tmp_path / "d", cache=tmp_path / "cache", draws=20)
    frame = embed(encoder, tiny_cohort, cache=tmp_path / "cache")
    rows = predict(encoder, tiny_cohort, head=tmp_path / "a" / "head-sick-linear.safetensors", cache=tmp_path / "cache")
    assert sum(seen) == 120
    assert [r.estimate for r in again.results] == [r.estimate for r in first.results]
    assert rows["reason"].isna().all()
    judged = Cohort.open(tiny_cohort)
    store = build_store(judged, Preprocessing(24), folder=tmp_path / "cache")
    fresh = embed_samples(open_encoder(encoder).encoder, store, judged.samples("image"), np.arange(60))
    np.testing.assert_array_equal(np.stack(list(frame["embedding"])), fresh)
    evaluate(encoder, tiny_cohort, target="sick", out=tmp_path / "e", seed=1, **options)
    assert sum(seen) == 120 + 60 + 60, "another twin"


def test_what_changes_pixels_or_weights_is_computed_anew_and_nothing_else(
    encoder: Path, tiny_cohort: Path, tmp_path: Path, seen: list[int]
) -> None:
    cache = tmp_path / "cache"

    def asked(cohort: Any = tiny_cohort, source: Path = encoder, **options: Any) -> int:
        before = sum(seen)
        embed(source, cohort, cache=cache, **options)
        return sum(seen) - before

    assert asked() == 60
    assert asked() == 0
    moved = tmp_path / "moved"
    shutil.copytree(tiny_cohort.parent, moved)
    assert asked(moved / "cohort.yaml") == 0, "the same pictures elsewhere"
    frame = pd.read_csv(moved / "table.csv")
    (moved / frame["image"][0]).write_bytes((moved / frame["image"][1]).read_bytes())
    assert asked(moved / "cohort.yaml") == 0, "a picture that is known by another name"
    PillowImage.fromarray(np.zeros((24, 24), np.uint8)).save(moved / frame["image"][0])
    assert asked(moved / "cohort.yaml") == 1
    other = tmp_path / "other"
    save_encoder(build_encoder(EncoderSpec(backbone="r18w32", stem_pool=False), seed=1), other,
                 preprocessing=Preprocessing(24).to_json())  # fmt: skip
    assert asked(source=other) == 60
    larger = tmp_path / "larger"
    save_encoder(build_encoder(EncoderSpec(backbone="r18w32", stem_pool=False), seed=5), larger,
                 preprocessing=Preprocessing(32).to_json())  # fmt: skip
    assert asked(source=larger) == 60, "the same weights, another size"
    darker = tmp_path / "darker"
    spec = EncoderSpec(backbone="r18w32", stem_pool=False, mean=[0.1])
    save_encoder(build_encoder(spec, seed=5), darker, preprocessing=Preprocessing(24).to_json())
    assert asked(source=darker) == 60, "the same weights, normalised otherwise"
    assert asked(precision="bf16") == 60
    renamed = tmp_path / "renamed"
    shutil.copytree(encoder, renamed)
    assert asked(source=renamed) == 0, "the same encoder by another name"


def test_parts_that_were_torn_or_written_twice_do_no_harm(tmp_path: Path) -> None:
    keys = np.arange(10, dtype=np.uint64).reshape(5, 2)
    asked: list[list[int]] = []

    def compute(places: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        asked.append(places.tolist())
        return np.repeat(places[:, None].astype(np.float32), 3, axis=1)

    first = remember(tmp_path, keys[[0, 1, 1]], 3, compute)
    assert asked == [[0, 1]], "equal images once"
    assert first[:, 0].tolist() == [0.0, 1.0, 1.0]
    (tmp_path / "torn.npy").write_bytes(b"")  # vectors without their keys
    np.save(tmp_path / "lost.keys.npy", keys[4:])  # keys without their vectors
    assert remember(tmp_path, keys, 3, compute)[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert asked[1:] == [[2, 3, 4]]
    assert remember(tmp_path, keys[::-1].copy(), 3, compute)[:, 1].tolist() == [4.0, 3.0, 2.0, 1.0, 0.0]
    assert remember(tmp_path, keys[:0], 3, compute).shape == (0, 3)
    assert len(asked) == 2


def test_keys_tell_frames_and_what_is_real_apart(tiny_cohort: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(tiny_cohort.parent / "table.csv")
    frame["series"] = frame["patient"]
    frame["order"] = frame["visit"]
    frame[["image", "patient", "series", "order"]].to_csv(tiny_cohort.parent / "clips.csv", index=False)
    cohort = Cohort.open(tiny_cohort.parent / "clips.csv")
    samples = open_samples(cohort, "clip")
    every = np.arange(len(samples))
    found = {}
    for frames in (2, 3, 5):
        contract = Preprocessing(24, frames=frames)
        store = build_store(samples.cohort, contract, folder=tmp_path / "cache")
        keys = keys_of(contract, store, samples, every)
        assert len(np.unique(keys, axis=0)) == len(samples) == 20
        found[frames] = keys
    assert not (found[2] == found[3]).all(1).any()
    assert not (found[3] == found[5]).all(1).any()
    assert (tmp_path / "cache").is_dir()
    assert not (tmp_path / "cache" / FOLDER).exists(), "keys alone write nothing"


def test_every_question_is_asked_in_the_precision_that_is_asked_for(
    encoder: Path, tiny_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[str] = set()
    inner = vectors._embed_alike

    def watched(*arguments: Any) -> Any:
        asked.add(arguments[6])
        return inner(*arguments)

    monkeypatch.setattr(vectors, "_embed_alike", watched)
    common: dict[str, Any] = {"cache": tmp_path / "cache", "draws": 20, "precision": "bf16"}
    evaluate(encoder, tiny_cohort, target="sick", out=tmp_path / "a", probes=("linear",), **common)
    evaluate_audit(encoder, tiny_cohort, target="sick", by=["sex"], out=tmp_path / "b", **common)
    evaluate_change(encoder, tiny_cohort, target="severity", out=tmp_path / "c", **common)
    evaluate_retrieve(encoder, tiny_cohort, across="visit", out=tmp_path / "d", **common)
    del common["draws"]
    head = tmp_path / "a" / "head-sick-linear.safetensors"
    rounded = embed(encoder, tiny_cohort, **common)
    predict(encoder, tiny_cohort, head=head, **common)
    assert asked == {"bf16"}
    whole = embed(encoder, tiny_cohort, cache=tmp_path / "cache")
    gap = np.abs(np.stack(list(whole["embedding"])) - np.stack(list(rounded["embedding"])))
    assert 0 < gap.max() < 0.1
    for ask in (
        lambda: evaluate(encoder, tiny_cohort, target="sick", precision="int8"),  # type: ignore[arg-type]
        lambda: embed(encoder, tiny_cohort, precision="int8"),  # type: ignore[arg-type]
        lambda: predict(encoder, tiny_cohort, head=head, precision="int8"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UsageError, match="expected fp32, bf16 or fp16, found 'int8'"):
            ask()


def test_features_that_are_not_finite_are_an_error_and_not_kept(
    encoder: Path, tiny_cohort: Path, tmp_path: Path
) -> None:
    judged = open_encoder(encoder)
    with torch.no_grad():
        next(judged.encoder.parameters()).fill_(float("nan"))
    cohort = Cohort.open(tiny_cohort)
    store = build_store(cohort, Preprocessing(24), folder=tmp_path / "nan")
    with pytest.raises(EncoderError, match=r"not finite for 2 of 2 samples \(rows 1, 2\): its weights are damaged"):
        embed_samples(judged.encoder, store, open_samples(cohort, "image"), np.array([0, 1]), keep=True)
    assert not list((tmp_path / "nan" / FOLDER).rglob("*.npy"))
