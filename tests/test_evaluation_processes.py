"""Evaluations by two gloo processes: each decodes and embeds a share, the first one judges."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import bolus
from bolus.data.images.preprocessing import Preprocessing
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import save_encoder
from bolus.recipe import EncoderSpec
from launching import launch


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A small encoder that was never trained."""
    made = build_encoder(EncoderSpec(backbone="r18w32"), seed=7).eval()
    save_encoder(made, tmp_path / "encoder", preprocessing=Preprocessing(24).to_json())
    return tmp_path / "encoder"


def results(folder: Path) -> list[dict[str, object]]:
    [path] = folder.rglob("results.jsonl")
    left_out = {"versions", "seconds"}
    return [
        {key: value for key, value in json.loads(line).items() if key not in left_out}
        for line in path.read_text().splitlines()
    ]


def test_two_processes_embed_a_share_each_and_the_first_judges(
    encoder: Path, tiny_cohort: Path, tmp_path: Path
) -> None:
    words = ("--target", "sick", "--probes", "linear", "--out", tmp_path / "two")
    launch(
        "-m", "bolus.cli", "evaluate", "classify", "--encoder", encoder, tiny_cohort, *words,
        BOLUS_CACHE=str(tmp_path / "cache"),
    )  # fmt: skip
    bolus.evaluate(
        encoder, tiny_cohort, task="classify", target="sick", probes=("linear",), out=tmp_path / "one",
        cache=tmp_path / "other",
    )  # fmt: skip
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    assert len(one) == len(two) > 0
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        for key, value in first.items():
            if isinstance(value, float):
                assert second[key] == pytest.approx(value, abs=1e-4), key
            else:
                assert second[key] == value, key
    parts = sorted(len(np.load(path)) for path in (tmp_path / "cache").rglob("*.keys.npy"))
    assert parts[:4] == [30] * 4, "each image by one of them, of the encoder and of its twin"
