"""Checkpoints: what is damaged is never trained on, and the one before takes its place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bolus.errors import TrainingError
from bolus.training.checkpoint import restore, save_checkpoint
from damage import flip_bit, zero

FILES = ("tensors.safetensors", "state.json")


def trained(steps: int) -> tuple[dict[str, nn.Module], torch.optim.AdamW]:
    """A model after some steps, and its optimiser."""
    torch.manual_seed(0)
    net = nn.Linear(8, 4).double()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.ones(2, 8, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    return {"net": net}, optimizer


def saved(folder: Path, *steps: int) -> list[Path]:
    return [save_checkpoint(folder, step, *trained(step), {"seconds": 1.5, "best": float("nan")}) for step in steps]


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    saved(tmp_path, 3)
    modules, optimizer = trained(0)
    restored = restore(tmp_path, modules, optimizer)
    assert restored is not None
    assert (restored.step, restored.remarks, restored.extra["seconds"]) == (3, [], 1.5)
    expected, as_it_was = trained(3)
    assert all(
        torch.equal(a, b) for a, b in zip(modules["net"].parameters(), expected["net"].parameters(), strict=True)
    )
    for mine, theirs in zip(optimizer.state.values(), as_it_was.state.values(), strict=True):
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert restore(tmp_path / "none", modules, optimizer) is None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("seed", range(20))
def test_any_flipped_bit_is_found_and_the_checkpoint_before_is_taken(tmp_path: Path, name: str, seed: int) -> None:
    _, newest = saved(tmp_path, 2, 3)
    before = json.loads((newest / "state.json").read_text()), load_file(newest / "tensors.safetensors")
    at = flip_bit(newest / name, np.random.default_rng(seed))
    modules, optimizer = trained(0)
    restored = restore(tmp_path, modules, optimizer)
    assert restored is not None
    if restored.step == 3:  # a flip that changes nothing: white space of JSON or of a header
        after = json.loads((tmp_path / "step-000000003" / "state.json").read_text())
        tensors = load_file(tmp_path / "step-000000003" / "tensors.safetensors")
        assert after == before[0], at
        assert all(torch.equal(tensors[key], value) for key, value in before[1].items()), at
        return
    expected, _ = trained(2)
    assert torch.equal(modules["net"].weight, expected["net"].weight)
    assert restored.step == 2
    assert "step-000000003 is damaged" in restored.remarks[0]
    assert "going on from step 2" in restored.remarks[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged-step-000000003", "step-000000002"]


def test_a_stretch_of_zeros_is_found_in_any_tensor(tmp_path: Path) -> None:
    _, newest = saved(tmp_path, 2, 3)
    path = newest / "tensors.safetensors"
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    zero(path, np.random.default_rng(0), 16, start=header)
    modules, optimizer = trained(0)
    restored = restore(tmp_path, modules, optimizer)
    assert restored is not None
    assert restored.step == 2
    assert "checksum differs" in restored.remarks[0]


def test_without_a_whole_checkpoint_the_run_does_not_begin_again_by_itself(tmp_path: Path) -> None:
    for path in saved(tmp_path, 2, 3):
        (path / "tensors.safetensors").write_bytes(b"torn")
    with pytest.raises(TrainingError, match=r"no checkpoint .* is whole: .*step-000000002 is damaged"):
        restore(tmp_path, *trained(0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000002", "step-000000003"]


def test_the_next_checkpoints_replace_what_was_set_aside_and_keep_the_whole_ones(tmp_path: Path) -> None:
    _, newest = saved(tmp_path, 2, 4)
    flip_bit(newest / "tensors.safetensors", np.random.default_rng(0), start=-1 + (newest / FILES[0]).stat().st_size)
    restore(tmp_path, *trained(0))
    saved(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-000000002", "step-000000003"]


def test_a_checkpoint_of_an_earlier_version_is_taken_as_it_is(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 3)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({key: state[key] for key in ("step", "optimizer", "extra")}))
    restored = restore(tmp_path, *trained(0))
    assert restored is not None
    assert restored.step == 3


def test_weights_of_another_recipe_are_no_damage(tmp_path: Path) -> None:
    saved(tmp_path, 3)
    other = nn.Linear(9, 4)
    with pytest.raises(TrainingError, match="of another recipe"):
        restore(tmp_path, {"net": other}, torch.optim.AdamW(other.parameters()))


def test_a_full_disk_leaves_the_last_checkpoint_and_no_half_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 2)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bolus.training.checkpoint.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        saved(tmp_path, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000002"]
