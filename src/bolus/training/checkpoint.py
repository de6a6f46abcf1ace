"""Checkpoints: saved whole or not at all, resumed exactly, readable without unpickling anything.

A checkpoint is a folder with `tensors.safetensors` and `state.json`. It holds no random state: batches, augmentation
and losses are functions of the seed and the step, so weights, optimiser and step are all there is.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from bolus.errors import TrainingError
from bolus.files import flush, write_json

KEPT = 2  # the newest checkpoint, and the one before it should the newest prove damaged


def save_checkpoint(
    folder: Path, step: int, modules: Mapping[str, nn.Module], optimizer: Optimizer, extra: Mapping[str, Any]
) -> Path:
    """Save weights, optimiser and step under `folder/step-...`; all but one older go once the new one is on the disk.

    Args:
        folder: of all checkpoints of a run; made if absent.
        step: steps taken so far.
        optimizer: its state is saved, its groups are not.
        modules: name -> module; every parameter and buffer is saved.
        extra: JSON values that come back from `load_checkpoint`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target, temporary = folder / f"step-{step:09d}", folder / f".step-{step:09d}.{os.getpid()}.tmp"
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors |= {f"{name}/{key}": value for key, value in module.state_dict().items()}
    scalars: dict[str, Any] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{key}"] = value
            else:
                scalars[f"{index}/{key}"] = value
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    # Clones, because safetensors refuses tensors that share memory.
    save_file(
        {key: value.detach().clone().contiguous() for key, value in tensors.items()}, temporary / "tensors.safetensors"
    )
    flush(temporary / "tensors.safetensors")
    write_json(temporary / "state.json", {"step": step, "optimizer": scalars, "extra": dict(extra)})
    shutil.rmtree(target, ignore_errors=True)
    temporary.replace(target)
    flush(folder)
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    for torn in folder.glob(".step-*.tmp"):
        shutil.rmtree(torn, ignore_errors=True)
    return target


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None."""
    found = sorted(path for path in folder.glob("step-*") if (path / "state.json").is_file())
    return found[-1] if found else None


def load_checkpoint(path: Path, modules: Mapping[str, nn.Module], optimizer: Optimizer) -> tuple[int, dict[str, Any]]:
    """Restore weights and optimiser in place; returns the step and what was saved as extra.

    Raises:
        TrainingError: the checkpoint belongs to other modules or is damaged.
    """
    try:
        tensors = load_file(path / "tensors.safetensors")
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        for name, module in modules.items():
            prefix = f"{name}/"
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    except Exception as error:  # safetensors, json and torch each raise their own kinds
        raise TrainingError(
            f"{path.name}: damaged, or of another recipe ({error}); delete {path} to go on from the one before"
        ) from error
    entries: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, index, name = key.split("/", 2)
            entries.setdefault(int(index), {})[name] = value
    for key, value in state["optimizer"].items():
        index, name = key.split("/", 1)
        entries.setdefault(int(index), {})[name] = value
    # Learning rates are set anew at every step, so the groups come from the recipe.
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(state["step"]), dict(state["extra"])
