"""Before anything is trained: two steps of every arm, the budget of all, and whether the folder may be used."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from bolus.ablation.arms import Arm, Arms
from bolus.ablation.budget import Pace, fit_to_budget, passes_of_run
from bolus.ablation.comparison import Cell
from bolus.ablation.outline import Ablation, Planned
from bolus.data.cohort.cohort import Cohort
from bolus.errors import OutOfMemoryError, RecipeError, UsageError
from bolus.evaluation.contract import Task
from bolus.evaluation.targets import file_name
from bolus.files import write_json
from bolus.run import Run
from bolus.training.rehearsal import dry_run

PACES = "paces.json"
LONGEST = 80  # letters of a folder's name


def plan_ablation(
    cohort: Cohort,
    arms: Arms,
    task: Task,
    seeds: tuple[int, ...],
    passes: int | None,
    on: str,
    folder: Path,
    cache: Path | None,
    keep: bool,
) -> Ablation:
    """Two steps of every arm, the budget, and whether the folder may be used."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / PACES).is_file():
        raise UsageError(f"{folder} is neither empty nor an ablation; choose another folder")
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UsageError(f"{folder} cannot be written to; choose another folder")
    paces, failed = _paces(cohort, arms, folder, cache, keep)
    if arms.reference.name not in paces:
        raise OutOfMemoryError(f"arm {arms.reference.name!r}: {failed[arms.reference.name]}")
    first = arms.reference.recipe
    budget = passes or passes_of_run(first, paces[arms.reference.name].steps)
    planned, notes = {}, list(arms.notes)
    for arm in arms.arms:
        if arm.name not in paces:
            continue
        pace = paces[arm.name]
        fitted = Arm(arm.name, fit_to_budget(arm.recipe, pace, budget))
        taken = fitted.recipe.training.max_steps or 1
        each = Planned(fitted, passes_of_run(fitted.recipe, taken), pace.seconds * taken / 3600, pace.memory_gib)
        planned[arm.name] = each
        if each.passes > budget:
            notes.append(f"{arm.name}: one step takes {each.passes:,} encoder passes, more than the budget")
    found = Ablation(arms, planned, budget, seeds, task, on, folder, failed=failed, notes=notes)
    for (arm_name, seed), run in runs_of(found).items():  # what does not go together shows before hours of training
        if keep:
            _clear(run)
        run = Run.claim(run.folder, cohort, planned[arm_name].recipe(seed), resume=True)
        found.hours += 0 if run.status == "finished" else planned[arm_name].hours
    return found


def _paces(
    cohort: Cohort, arms: Arms, folder: Path, cache: Path | None, keep: bool
) -> tuple[dict[str, Pace], dict[str, str]]:
    """Arm -> its pace, and why where it does not fit into memory; what the folder knows is not measured again."""
    path = folder / PACES
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    paces, failed = {}, {}
    for arm in arms.arms:
        key = f"{arm.recipe.digest} {cohort.split_hash}"
        if key not in known:
            try:
                seen = dry_run(cohort, recipe=arm.recipe, cache=cache)
            except RecipeError as error:
                raise RecipeError(f"arm {arm.name!r}: {error}") from error
            except OutOfMemoryError as error:
                failed[arm.name] = f"failed: {error}"
                continue
            known[key] = [seen.steps, seen.steps_per_epoch, seen.hours * 3600 / seen.steps, seen.memory_gib]
        steps, per_epoch, step_seconds, memory = known[key]  # memory is null where the system does not say
        paces[arm.name] = Pace(steps, per_epoch, step_seconds, math.nan if memory is None else memory)
    if keep and paces:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, known)
    return paces, failed


def _clear(run: Run) -> None:
    """Remove what is left of a run that was stopped while its folder was being made, before its first step."""
    if run.status == "new" and run.folder.is_dir():
        for path in run.folder.iterdir():
            if path.name.removeprefix(".").startswith(("recipe.yaml", "cohort.yaml", "quarantine.jsonl", "run.json.")):
                path.unlink()


def runs_of(found: Ablation) -> dict[Cell, Run]:
    """The run of every cell, seed after seed, so that an ablation that is stopped has whole comparisons."""
    folders: dict[str, str] = {}
    for arm in found.planned:
        name = file_name(arm.replace(" ", "-"))
        if len(name) > LONGEST or name in folders.values():
            name = f"{name[:LONGEST]}-{found.arms.arms[list(found.planned).index(arm)].recipe.digest}"
        folders[arm] = name
    return {
        (arm, seed): Run(found.folder / "runs" / f"{folders[arm]}-{seed}") for seed in found.seeds for arm in folders
    }
