"""`bolus embed --map`: neighbours as a loop finds them, and a file that an explorer opens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from bolus.embedding.projection import find_maps, find_others
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import save_encoder
from bolus.recipe import EncoderSpec


@pytest.mark.parametrize("number", [1, 2, 7, 1030])
def test_neighbours_are_those_of_a_loop(number: int) -> None:
    vectors = np.random.default_rng(number).normal(size=(number, 5)).astype(np.float32)
    found, away = find_others(vectors, 3)
    assert found.shape == away.shape == (number, min(3, number - 1))
    for row in (0, number // 2, number - 1):
        one = vectors[row].astype(np.float64)
        cosines = [
            -np.inf if other == row else float(one @ each / np.linalg.norm(one) / np.linalg.norm(each))
            for other, each in enumerate(vectors.astype(np.float64))
        ]
        nearest = np.argsort(-np.array(cosines), kind="stable")[: found.shape[1]]
        assert found[row].tolist() == nearest.tolist()
        assert away[row] == pytest.approx(1 - np.array(cosines)[nearest], abs=1e-6)


@pytest.mark.parametrize(("number", "width"), [(1, 4), (3, 4), (9, 1), (12, 3), (40, 60)])
def test_a_map_is_finite_and_a_function_of_the_vectors(number: int, width: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(number, width)).astype(np.float32)
    vectors[0] = 0
    maps, held = find_maps(vectors)
    assert [*maps] == (["PCA", "t-SNE"] if number >= 10 else ["PCA"])
    again = find_maps(vectors)[0]
    for method, places in maps.items():
        assert places.shape == (number, 2)
        assert np.isfinite(places).all()
        assert np.array_equal(places, again[method])
    assert 0 <= held <= 1 + 1e-9


def test_equal_vectors_have_a_map() -> None:
    maps, held = find_maps(np.ones((20, 4), np.float32))
    assert ([*maps], held) == (["PCA"], 0.0)
    assert np.isfinite(maps["PCA"]).all()


def test_the_file_has_what_an_explorer_reads(
    tiny_cohort: Path, tmp_path: Path, call_bolus: Callable[..., tuple[int, str]]
) -> None:
    encoder = tmp_path / "encoder"
    save_encoder(build_encoder(EncoderSpec(backbone="unet4"), seed=0), encoder, preprocessing={"size": 32})
    out = tmp_path / "e.parquet"
    code, said = call_bolus("embed", encoder, tiny_cohort, "-o", out, "--map")
    assert code == 0, said
    assert "The map is by t-SNE; sizes of groups and distances between them mean nothing." in said
    found = pq.read_table(out)
    assert {"x", "y", "neighbors", "embedding"} <= set(found.column_names)
    assert {field.name for field in found.schema.field("neighbors").type} == {"ids", "distances"}
    frame = found.to_pandas()
    vectors = np.stack(frame["embedding"])
    assert [each["ids"].tolist() for each in frame["neighbors"]] == find_others(vectors)[0].tolist()
