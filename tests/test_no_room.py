"""A full disk or a used quota: one sentence, nothing half written, and the way on."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from bolus.run import Run

KB = 1024
Call = Callable[..., tuple[int, str]]


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: the system then refuses as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def words(
    tiny_cohort: Path, small_recipe: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[object, ...]:
    """The command that trains on a cohort."""
    monkeypatch.setenv("BOLUS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(small_recipe))
    return "pretrain", tiny_cohort, "--recipe", tmp_path / "recipe.yaml", "--quiet", "--out"


def left_behind(folder: Path) -> list[str]:
    """Files that should not be there once a command has ended."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if ".tmp" in path.name]


def test_a_training_without_room_ends_in_a_sentence_and_goes_on_to_the_same_weights(
    call_bolus: Call, words: tuple[object, ...], tiny_cohort: Path, tmp_path: Path
) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert call_bolus(*words, whole) == (0, "")
    keys = ("training.checkpoint_steps=1", "training.log_steps=3")
    assert call_bolus(*words, part, *keys, "training.max_hours=1e-9")[0] == 0
    before = sorted((part / "checkpoints").iterdir())
    with files_up_to(500 * KB):
        code, said = call_bolus(*words, part, *keys, "--resume")
    assert code == 1
    assert said.startswith("error: no room to write: File too large; the last checkpoint of ")
    assert "--resume" in said
    assert sorted((part / "checkpoints").iterdir()) == before
    assert left_behind(tmp_path) == []
    assert call_bolus(*words, part, *keys, "--resume") == (0, "")
    assert Run.open(part).record["weights"] == Run.open(whole).record["weights"]

    with files_up_to(40 * KB):
        code, said = call_bolus("embed", whole, tiny_cohort, "-o", tmp_path / "vectors.parquet", "--quiet")
    assert code == 1
    assert "File too large; make room, or choose another disk" in said
    assert not (tmp_path / "vectors.parquet").exists()
    assert left_behind(tmp_path) == []


def test_a_cache_without_room_leaves_nothing_half_written(
    call_bolus: Call, words: tuple[object, ...], tmp_path: Path
) -> None:
    with files_up_to(20 * KB):
        code, said = call_bolus(*words, tmp_path / "run")
    assert code == 1
    assert "no room to write: File too large; no checkpoint was written yet" in said
    assert left_behind(tmp_path) == []
    assert not list((tmp_path / "cache").rglob("*.records"))
    assert not (tmp_path / "run").exists()
