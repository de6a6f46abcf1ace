"""bolus bench: what is measured, what grows, and what cannot be measured is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

import bolus
from bolus.data.cohort.cohort import Cohort
from bolus.data.images.clips import open_samples
from bolus.errors import UsageError
from bolus.measuring import child, decoding
from bolus.measuring import step as measuring
from bolus.measuring.decoding import measure_decoding
from bolus.measuring.growth import AXES, grow, write_table
from bolus.measuring.step import measure_step
from bolus.recipe import Recipe
from bolus.training.loaders import contract_of

Call = Callable[..., tuple[int, str]]


@pytest.fixture
def small(small_recipe: dict[str, Any]) -> Recipe:
    return Recipe.load(small_recipe)


def test_decoding_counts_images_and_what_cannot_be_read(tiny_cohort: Path, small: Recipe) -> None:
    (tiny_cohort.parent / "img" / "p003_1.png").write_bytes(b"no image")
    (tiny_cohort.parent / "img" / "p3_1.png").write_bytes(b"no image")
    cohort = Cohort.open(tiny_cohort)
    found = measure_decoding(open_samples(cohort, small.images.unit), contract_of(cohort, small), seconds=60)
    assert (found.images, found.unreadable) == (60, 1)
    assert found.efficiency == found.images_per_second / (found.images_per_second_of_a_thread * found.cores)
    one = measure_decoding(open_samples(cohort, small.images.unit), contract_of(cohort, small), seconds=0)
    assert one.images == 1, "the time is up after the first file"


def test_decoding_takes_a_file_of_many_slices_once(
    tmp_path: Path, small: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = np.random.default_rng(0).integers(0, 255, (20, 20, 3)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii.gz")
    (tmp_path / "t.csv").write_text("image,patient,series,order\n" + "".join(f"a.nii.gz,p,s,{n}\n" for n in range(3)))
    reads, read = [], decoding.read_as
    monkeypatch.setattr(decoding, "read_as", lambda *words: reads.append(words[1]) or read(*words))
    cohort = Cohort.open(tmp_path / "t.csv")
    found = measure_decoding(open_samples(cohort, small.images.unit), contract_of(cohort, small))
    assert (found.images, found.unreadable, reads) == (3, 0, [[0, 1, 2]])


@pytest.mark.parametrize(("combiner", "passes"), [("sum", 1), ("pcgrad", 3)])
def test_a_step_is_measured_against_the_networks_alone(
    tiny_cohort: Path, small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, combiner: str, passes: int
) -> None:
    backwards, real = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *words, **rest: backwards.append(1) or real(*words, **rest))
    updates, apply = [], measuring.apply_gradients
    monkeypatch.setattr(measuring, "apply_gradients", lambda *words: updates.append(1) or apply(*words))
    recipe = small.override([f"combiner.kind={combiner}", "objectives.views={kind: contrast, relation: views}"])
    found = measure_step(Cohort.open(tiny_cohort), recipe, seconds=0, cache=tmp_path / "cache")
    assert (found.backwards, found.rounds) == (passes, 3)
    assert len(updates) == 2 * 4, "a round warms up"
    assert len(backwards) == 2 * (2 * 4 * passes), "the bare steps and the whole ones"
    assert found.efficiency is not None
    median, lowest, highest = found.efficiency
    assert 0 < lowest <= median <= highest
    assert found.images_per_second == pytest.approx(8 * 2 / found.seconds)
    assert 0 < found.augmentation < 1
    assert 0 <= found.data_wait < 1


def test_chunks_have_no_bare_step_and_accumulation_counts(tiny_cohort: Path, small: Recipe, tmp_path: Path) -> None:
    cohort = Cohort.open(tiny_cohort)
    chunked = measure_step(cohort, small.override(["sampling.chunk=4"]), seconds=0, cache=tmp_path / "cache")
    assert chunked.efficiency is None
    joined = measure_step(cohort, small.override(["training.accumulate=2"]), seconds=0, cache=tmp_path / "cache")
    assert joined.images_per_second == pytest.approx(2 * 8 * 2 / joined.seconds)


def test_sizes_of_each_axis(small: Recipe) -> None:
    people = Recipe.load("comprer_bilateral").override(["sampling={participants: 4, batch_size: 16}"])
    assert AXES["batch"](people)[32] == ["sampling.batch_size=32", "sampling.participants=8"]
    assert AXES["batch"](small) == {n: [f"sampling.batch_size={n}"] for n in (4, 8, 16, 32)}
    assert [*AXES["size"](small)] == [12, 24, 48]
    assert AXES["objectives"](small) == {1: ["objectives.levels=null"], 2: []}
    assert [*AXES["processes"](small.override(["sampling.batch_size=6"]))] == [1, 2]


@pytest.mark.slow
def test_growth_is_measured_in_processes_of_their_own(tiny_cohort: Path, small: Recipe, tmp_path: Path) -> None:
    points = grow(Cohort.open(tiny_cohort), small, "objectives", seconds=0, cache=tmp_path / "cache")
    assert [point["objectives"] for point in points] == [1, 2]
    assert all(point["images_per_second"] > 0 and point["memory_gib"] > 0 for point in points)


@pytest.mark.slow
def test_processes_grow_and_what_cannot_be_is_said(tiny_cohort: Path, small: Recipe, tmp_path: Path) -> None:
    points = grow(Cohort.open(tiny_cohort), small, "processes", seconds=0, cache=tmp_path / "cache")
    assert [point["processes"] for point in points] == [1, 2, 4]
    assert all(point["images_per_second"] > 0 for point in points)
    points = grow(Cohort.open(tiny_cohort), small, "batch", seconds=0, cache=tmp_path / "cache")
    assert "sampling.batch_size" in points[-1]["refused"], "more samples than the cohort has to train on"


def test_a_table_is_opened_with_so_many_rows(tiny_cohort: Path, tmp_path: Path) -> None:
    cohort, table = Cohort.open(tiny_cohort), tmp_path / "table.csv"
    roles = dict(cohort.spec.roles)
    write_table(cohort, 1_000, table)
    found = child.measure_table(table, roles)
    assert found["open_s"] > 0
    assert found["split_s"] > 0
    written = Cohort.open(table, roles=roles)
    assert (len(written), written.num_patients) == (1_000, 16 * 20 + 14)


def test_a_cohort_in_memory_cannot_grow(tiny_cohort: Path, small: Recipe) -> None:
    frame = Cohort.open(tiny_cohort).table
    cohort = Cohort.open(frame, root=str(tiny_cohort.parent))
    with pytest.raises(UsageError, match=r"a cohort of a file, .* found a DataFrame"):
        grow(cohort, small, "batch")


def test_an_unknown_axis(tiny_cohort: Path, small: Recipe, call_bolus: Call) -> None:
    with pytest.raises(UsageError, match="unknown axis 'batches'; did you mean 'batch'"):
        grow(Cohort.open(tiny_cohort), small, "batches")
    code, said = call_bolus("bench", "--grow", "batch,colour")
    assert (code, "found 'colour'" in said) == (2, True)


def test_the_command_says_and_writes_it(
    tiny_cohort: Path, tmp_path: Path, call_bolus: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOLUS_CACHE", str(tmp_path / "cache"))
    keys = ["encoder.backbone=r18w32", "images.size=16", "sampling.batch_size=8"]
    code, said = call_bolus("bench", tiny_cohort, *keys, "--seconds", "0.1", "-o", tmp_path / "b.json")
    assert code == 0, said
    for words in ("simclr on 60 images of 20 patients", "into the cache", "s a step of", "GiB at the peak", "estimate"):
        assert words in said
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["decoding"]["efficiency"] > 0
    assert found["training_hours"] == pytest.approx(found["step"]["seconds"] * found["step"]["steps"] / 3600)
    code, said = call_bolus("bench", *keys, "--seconds", "0.1", "--json")
    assert code == 0, said
    assert json.loads(said)["rows"] > 60, "a phantom"


def test_nothing_is_left_of_a_phantom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("BOLUS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    keys = ["encoder.backbone=r18w32", "images.size=16", "sampling.batch_size=8"]
    found = bolus.bench(overrides=keys, seconds=0.1)
    assert found.step.rounds == 3
    assert [*(tmp_path / "tmp").iterdir()] == []
    assert not (tmp_path / "cache").exists()


def test_volumes_are_measured_as_images_are(tmp_path: Path, call_bolus: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("blosc2", reason="the package blosc2 is not installed")
    monkeypatch.setenv("BOLUS_CACHE", str(tmp_path / "cache"))
    keys = ["encoder.backbone=r10w8_3d", "images.size=16", "sampling.batch_size=4", "sampling.chunk=null"]
    words = ["--recipe", "simclr_3d", *keys, "--seconds", "0.1", "-o", tmp_path / "b.json"]
    bolus.make_volume_phantom(tmp_path / "phantom", num_patients=8, size=16)
    (tmp_path / "phantom" / "images" / "P0001_v1.nii.gz").write_bytes(b"no volume")
    code, said = call_bolus("bench", tmp_path / "phantom" / "cohort.yaml", *words)
    assert code == 0, said
    assert "simclr_3d on 16 volumes of 8 patients" in said
    assert "volumes/s into the cache" in said
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["step"]["images_per_second"] == pytest.approx(4 * 2 / found["step"]["seconds"])
    cohort = Cohort.open(tmp_path / "phantom" / "cohort.yaml")
    recipe = Recipe.load("simclr_3d").override(keys)
    assert AXES["size"](recipe) == {size: [f"images.size={size}"] for size in (8, 16, 32)}
    decoded = measure_decoding(open_samples(cohort, "volume"), contract_of(cohort, recipe), seconds=60)
    assert (decoded.images, decoded.unreadable) == (16, 1)
