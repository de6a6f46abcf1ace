"""Twins of three seeds: one column, and a note where they differ by more than chance over patients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bolus.data.cohort.cohort import Cohort
from bolus.data.images.cache import Preprocessing
from bolus.embedding import vectors
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import save_encoder
from bolus.evaluation.preparation import Prepared, prepare
from bolus.evaluation.probing import twins
from bolus.evaluation.probing.options import Probing
from bolus.evaluation.probing.probe import ProbeReport, probe
from bolus.evaluation.probing.reading import evaluate
from bolus.evaluation.probing.task import Classify
from bolus.evaluation.settings import Judging
from bolus.recipe import EncoderSpec

N, DIM = 240, 4


def judged(signals: tuple[float, ...], *, num_test: int = 120, probes: tuple[str, ...] = ("linear",),
           fractions: tuple[float, ...] = (1.0,)) -> tuple[ProbeReport, int]:  # fmt: skip
    """A probe whose column carries no signal and whose other twins carry these; how often they were asked for."""
    r = np.random.default_rng(0)
    y = (np.arange(N) % 2).astype(float)
    split = np.where(np.arange(N) < N - num_test, np.where(np.arange(N) % 3, "train", "val"), "test")
    draw = [r.normal(size=(N, DIM)) for _ in range(4)]
    asked = []

    def others() -> list[Any]:
        asked.append(1)
        return [x + signal * y[:, None] for x, signal in zip(draw[2:], signals, strict=True)]

    report = probe(
        {"run": draw[0] + y[:, None], "random-init": draw[1]}, y, np.arange(N), split, task="classify", target="sick",
        probing=Probing(probes, fractions, repeats=1), judging=Judging(draws=100), twins=others,
    )  # fmt: skip
    return report, len(asked)


def test_twins_that_differ_are_noted_and_rows_stay_as_they_were() -> None:
    alike, asked = judged((0.0, 0.0))
    assert asked == 1
    apart, _ = judged((0.0, 1.0))
    assert not any("seeds" in note for note in alike.notes)
    (note,) = (note for note in apart.notes if "seeds" in note)
    column = next(r for r in apart.results if r.encoder == "random-init" and r.metric == "auroc")
    assert note.startswith("random-init encoders of 3 seeds give auroc 0.")
    assert f"to {column.ci_high:.3f}: they differ" in note
    assert [r.to_json() for r in alike.results] == [r.to_json() for r in apart.results]


def test_twins_are_not_asked_for_where_nothing_could_be_decided_or_no_result_is_comparable() -> None:
    for changes in ({"num_test": 24}, {"fractions": (0.5,)}):
        report, asked = judged((3.0, 3.0), **changes)
        assert asked == 0
        assert not any("seeds" in note for note in report.notes)


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    spec = EncoderSpec(backbone="r18w32", stem_pool=False)
    save_encoder(build_encoder(spec, seed=4).eval(), tmp_path / "e", preprocessing=Preprocessing(24).to_json())
    return tmp_path / "e"


def test_twins_are_embedded_once_and_not_above_the_budget(
    encoder: Path, tiny_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judging = Judging(cache=tmp_path / "cache", quiet=True)
    prepared: Prepared[Any] = prepare(
        encoder, Cohort.open(tiny_cohort), Classify(target="sick"), lambda samples: None, judging
    )
    first, second = twins.embed_twins(prepared)
    assert first.shape == (len(prepared.kept), prepared.judged.encoder.shape.dim)
    assert not np.allclose(first, second)
    (shifted, _) = twins.embed_twins(replace(prepared, judging=replace(judging, seed=1)))
    assert np.array_equal(shifted, second), "the twin of seed 2"
    monkeypatch.setattr(vectors, "_embed_alike", lambda *_: pytest.fail("they were to be remembered"))
    assert np.array_equal(twins.embed_twins(prepared)[0], first)
    monkeypatch.setattr(twins, "BUDGET", 1.0)
    assert twins.embed_twins(prepared) == []


def test_an_evaluation_hands_its_twins_to_the_note(
    encoder: Path, tiny_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "bolus.evaluation.probing.probe.note_on_twins",
        lambda question, twins, results, scores, judging: [f"{len(twins())} more, of {twins()[0].shape[0]} samples"],
    )
    found = evaluate(
        encoder, tiny_cohort, target="sick", probes=("knn",), draws=20, out=tmp_path / "out", cache=tmp_path / "cache"
    )
    assert any(note.startswith("2 more, of ") for note in found.reports["sick"].notes)
