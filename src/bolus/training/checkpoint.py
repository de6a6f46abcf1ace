"""Checkpoints: saved whole or not at all, resumed exactly, readable without unpickling anything.

A checkpoint is a folder with `tensors.safetensors` and `state.json`, which holds checksums of both. It holds no random
state: batches, augmentation and losses are functions of the seed and the step, so weights, optimiser and step are all
there is.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from bolus.checksums import find_damage, with_checksums
from bolus.errors import TrainingError
from bolus.files import flush, save_tensors, tensors_of, write_json
from bolus.training.sharding import share_out, whole

KEPT = 2  # the newest checkpoint, and the one before it should the newest prove damaged


def save_checkpoint(
    folder: Path,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizer: Optimizer,
    extra: Mapping[str, Any],
    *,
    writes: bool = True,
) -> Path:
    """Save weights, optimiser and step under `folder/step-...`; all but one older go once the new one is on the disk.

    What is shared out over processes is saved whole, for which all of them have to call.

    Args:
        folder: of all checkpoints of a run; made if absent.
        step: steps taken so far.
        optimizer: its state is saved, its groups are not.
        modules: name -> module; every parameter and buffer is saved.
        extra: JSON values that come back from `load_checkpoint`.
        writes: whether this process does; the others only give their parts.
    """
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
    saved: dict[str, Tensor] = {}
    for name, value in tensors.items():  # one after the other, so that no device ever holds all of them whole
        full = whole(value)
        if writes:
            saved |= tensors_of({name: full})
    if not writes:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    state = with_checksums({"step": step, "optimizer": scalars, "extra": dict(extra)}, saved)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        save_tensors(temporary / "tensors.safetensors", saved, {})
        flush(temporary / "tensors.safetensors")
        write_json(temporary / "state.json", state)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
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


class Restored(NamedTuple):
    """What a run goes on from: the step, what was saved as extra, and what a person must know, in sentences."""

    step: int
    extra: dict[str, Any]
    remarks: list[str]


def restore(folder: Path, modules: Mapping[str, nn.Module], optimizer: Optimizer) -> Restored | None:
    """Restore weights and optimiser in place from the newest checkpoint that is whole; None where there is none.

    A damaged one is set aside under another name, if one before it is whole.

    Args:
        folder: of all checkpoints of a run.
        modules: name -> module, as they were saved.
        optimizer: as it was saved; its groups stay as they are.

    Raises:
        TrainingError: every checkpoint is damaged, or the whole one belongs to other modules.
    """
    found = sorted((path for path in folder.glob("step-*") if (path / "state.json").is_file()), reverse=True)
    damaged: dict[Path, str] = {}
    for path in found:
        try:
            tensors, state = _read(path)
        except _DamageError as error:
            damaged[path] = str(error)
            continue
        step = _fill(path, tensors, state, modules, optimizer)
        remarks = [f"checkpoint {each.name} {why}: going on from step {step}" for each, why in damaged.items()]
        for each in damaged:
            with suppress(OSError):  # another process of this run was faster
                each.rename(each.with_name(f"damaged-{each.name}"))
        return Restored(step, dict(state["extra"]), remarks)
    if damaged:
        said = "; ".join(f"{each.name} {why}" for each, why in damaged.items())
        raise TrainingError(f"no checkpoint in {folder} is whole: {said}; delete {folder} to begin again at step 0")
    return None


class _DamageError(Exception):
    """Why a checkpoint cannot be read, as the end of a sentence."""


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the state of a checkpoint, if they are what was written."""
    try:
        tensors = load_file(path / "tensors.safetensors")
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        found = find_damage(state, tensors)
    except Exception as error:  # safetensors and json each raise their own kinds
        raise _DamageError(f"is damaged ({error})") from error
    if found:
        more = f" and {len(found) - 2} more" if len(found) > 2 else ""
        raise _DamageError(f"is damaged (its checksum differs: {', '.join(found[:2])}{more})")
    return tensors, state


def _fill(
    path: Path,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    modules: Mapping[str, nn.Module],
    optimizer: Optimizer,
) -> int:
    """Load a whole checkpoint in place; returns its step."""
    try:
        for name, module in modules.items():
            prefix = f"{name}/"
            found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            own = module.state_dict()
            module.load_state_dict({k: share_out(v, own[k]) if k in own else v for k, v in found.items()})
    except Exception as error:
        raise TrainingError(f"{path.name} is of another recipe ({error}); train in another folder") from error
    entries: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, index, name = key.split("/", 2)
            entries.setdefault(int(index), {})[name] = value
    for key, value in state["optimizer"].items():
        index, name = key.split("/", 1)
        entries.setdefault(int(index), {})[name] = value
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for place, entry in entries.items():
        for name, value in entry.items():
            if isinstance(value, Tensor) and place < len(parameters) and value.shape == parameters[place].shape:
                entry[name] = share_out(value, parameters[place])
    # Learning rates are set anew at every step, so the groups come from the recipe.
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(state["step"])
