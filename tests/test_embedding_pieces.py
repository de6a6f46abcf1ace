"""Embeddings are written as they come: the same file in any number of pieces, and what was computed is kept."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import bolus
from bolus.data.cohort.cohort import Cohort
from bolus.data.images.preprocessing import Preprocessing
from bolus.embedding import remembering, table
from bolus.embedding.remembering import remember, remember_in_pieces
from bolus.encoders.backbone import Encoder
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import save_encoder
from bolus.recipe import EncoderSpec
from test_processes import launch

Floats = npt.NDArray[np.float32]


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    save_encoder(build_encoder(EncoderSpec(backbone="unet4"), seed=5).eval(), tmp_path / "enc",
                 preprocessing=Preprocessing(24).to_json())  # fmt: skip
    return tmp_path / "enc"


@pytest.mark.parametrize("piece", [1, 7, 60])
def test_a_file_in_pieces_holds_what_the_whole_does(
    piece: int, encoder: Path, tiny_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"columns": ("patient",), "cache": tmp_path / "cache"}
    frame = bolus.embed(encoder, tiny_cohort, out=tmp_path / "whole.parquet", **given)
    monkeypatch.setattr(table, "PIECE", piece)
    monkeypatch.setattr(remembering, "PART", 8)
    written = bolus.write_embeddings(encoder, tiny_cohort, tmp_path / "pieces.parquet", **given)
    fresh = bolus.write_embeddings(encoder, tiny_cohort, tmp_path / "f.parquet", **given | {"cache": tmp_path / "two"})
    whole, pieces = pq.read_table(tmp_path / "whole.parquet"), pq.read_table(tmp_path / "pieces.parquet")
    assert pieces.equals(whole, check_metadata=True)
    assert pq.read_table(tmp_path / "f.parquet").equals(whole, check_metadata=True)
    assert pq.ParquetFile(tmp_path / "pieces.parquet").num_row_groups == -(-60 // piece)
    assert written == fresh
    assert (written.rows, written.width) == (60, len(frame["embedding"][0]))
    assert (written.remarks, written.left_out) == (frame.attrs["remarks"], frame.attrs["left_out"])
    assert np.array_equal(np.stack(whole["embedding"].to_pylist()), np.stack(frame["embedding"].tolist()))


def test_columns_that_a_piece_does_not_show_keep_their_type(
    encoder: Path, tiny_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = pd.read_csv(tiny_cohort.with_name("table.csv"))
    frame["flag"] = pd.Series([None] * 59 + [True], dtype=object)
    frame.to_parquet(tiny_cohort.with_name("t.parquet"))
    cohort = Cohort.open(tiny_cohort.with_name("t.parquet"), roles={"attribute:flag": "flag"})
    monkeypatch.setattr(table, "PIECE", 20)
    bolus.write_embeddings(encoder, cohort, tmp_path / "e.parquet", cache=tmp_path / "cache")
    found = pq.read_table(tmp_path / "e.parquet")
    assert found.schema.field("flag").type == pa.bool_()
    assert found["flag"].to_pylist() == [None] * 59 + [True]


def test_what_was_embedded_before_an_interruption_is_found_again(
    encoder: Path, tiny_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, forward = list[int](), Encoder.forward
    monkeypatch.setattr(remembering, "PART", 16)
    monkeypatch.setattr(table, "embed_in_pieces", partial(table.embed_in_pieces, batch_size=8))

    def counted(self: Encoder, images: torch.Tensor, **options: Any) -> Any:
        if images.device.type != "meta":
            seen.append(len(images))
            if sum(seen) == 48:
                raise KeyboardInterrupt
        return forward(self, images, **options)

    monkeypatch.setattr(Encoder, "forward", counted)
    options: dict[str, Any] = {"cache": tmp_path / "cache"}
    with pytest.raises(KeyboardInterrupt):
        bolus.write_embeddings(encoder, tiny_cohort, tmp_path / "e.parquet", **options)
    assert not [path for path in tmp_path.iterdir() if "parquet" in path.name]
    seen[:] = [0]
    assert bolus.write_embeddings(encoder, tiny_cohort, tmp_path / "e.parquet", **options).rows == 60
    assert sum(seen) == 60 - 32, "two parts of 16 were kept"
    monkeypatch.setattr(Encoder, "forward", forward)
    frame = bolus.embed(encoder, tiny_cohort, cache=tmp_path / "other")
    found = np.stack(pq.read_table(tmp_path / "e.parquet")["embedding"].to_pylist())
    np.testing.assert_allclose(found, np.stack(frame["embedding"].tolist()), atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_pieces_of_the_remembered_are_the_whole(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembering, "PART", 5)
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 30, 50)  # many twice
    keys = np.stack([values // 4, values], axis=1).astype(np.uint64)  # of which first halves are equal, too
    asked: list[int] = []

    def compute(places: npt.NDArray[np.int64]) -> Iterator[Floats]:
        assert (np.diff(places) > 0).all()
        for batch in np.array_split(places, max(1, len(places) // 3)):
            asked.extend(values[batch].tolist())
            yield np.stack([values[batch], -values[batch]], axis=1).astype(np.float32)

    stops = sorted({*rng.integers(0, 50, 4).tolist(), 50})
    expected = np.stack([values, -values], axis=1)
    for _ in range(2):
        pieces = list(remember_in_pieces(tmp_path, keys, 2, compute, stops))
        assert [len(each) for each in pieces] == np.diff([0, *stops]).tolist()
        np.testing.assert_array_equal(np.concatenate(pieces), expected)
    damaged = sorted(tmp_path.glob("*[0-9a-f].npy"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-9] + b"123456789")
    np.testing.assert_array_equal(remember(tmp_path, keys, 2, lambda at: np.concatenate([*compute(at)])), expected)


def test_parts_are_written_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembering, "PART", 4)
    keys = np.arange(20, dtype=np.uint64).reshape(10, 2)
    pieces = remember_in_pieces(
        tmp_path, keys, 1, lambda places: (np.full((1, 1), place, np.float32) for place in places), [5, 9, 10]
    )
    assert next(pieces).ravel().tolist() == [0, 1, 2, 3, 4]
    assert len(list(tmp_path.glob("*.keys.npy"))) == 1
    pieces.close()
    asked: list[int] = []

    def compute(places: npt.NDArray[np.int64]) -> Floats:
        asked.extend(places.tolist())
        return places[:, None].astype(np.float32)

    assert remember(tmp_path, keys, 1, compute).ravel().tolist() == [*range(10)]
    assert asked == [*range(4, 10)], "the part of four was kept"


def test_two_processes_each_embed_a_share_and_the_first_writes(
    encoder: Path, tiny_cohort: Path, tmp_path: Path
) -> None:
    (tiny_cohort.parent / "img" / "p0_0.png").write_bytes(b"torn")
    words = ("-m", "bolus.cli", "embed", encoder, tiny_cohort, "-o", tmp_path / "two.parquet")
    launch(*words, BOLUS_CACHE=str(tmp_path / "cache"))
    frame = bolus.embed(encoder, tiny_cohort, cache=tmp_path / "other", out=tmp_path / "one.parquet")
    one, two = pq.read_table(tmp_path / "one.parquet"), pq.read_table(tmp_path / "two.parquet")
    assert two.drop_columns("embedding").equals(one.drop_columns("embedding"), check_metadata=True)
    found = np.stack(two["embedding"].to_pylist())
    np.testing.assert_allclose(found, np.stack(frame["embedding"].tolist()), atol=1e-6)
    parts = sorted((tmp_path / "cache").rglob("*.keys.npy"))
    assert sorted(len(np.load(path)) for path in parts) == [29, 30], "each image by one of them"
