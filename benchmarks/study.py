"""A study: arms that are trained alike, in cells that can be stopped and continued, and then compared.

A study's file states its data: cohort, arms, recipe keys, sizes, and what is asked of the encoders. Its options:

    --tier small|full     sizes of encoder, images and training; or another name that the study states
    --minutes M           begin no cell that would end later, counted from the start; trainings are stopped in time
    --work FOLDER         where prepared cohorts, caches and runs lie
    --seeds 0 1           train these alone
    --arms NAME ...       train these alone, be they ablations
    --cohorts NAME ...    train and compare these alone, where the file has several
    --train-only          compare nothing
    --compare-only        train nothing, compare what is done
    --tune-only           choose the keys that the study leaves to validation patients, and end there
    --look-again WHY      judge on test patients again although a recipe changed after its first look; it is noted

The file of cells and that of the comparison stand in benchmarks/results; `{tier}` in their names is empty for the small
tier and `-full` for the full one. Where the cohorts come from: grid.py. A call goes on where the last one ended; a
training whose run is not here any more, as on another machine, is repeated if something is still measured on it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bolus.data.cohort.cohort import Cohort
from bolus.planning.planner import plan
from bolus.recipe import Recipe
from bolus.run import Run
from bolus.training.loop import pretrain
from grid import NO_END, RESULTS, SMALL, Clock, OutOfTimeError, read_cells, results_file, run_grid, write_results
from looks import look
from tuning import SEED, Axes, chosen, search, written

RANDOM = "random init"
Cell = dict[str, Any]
Lines = list[dict[str, Any]]
Arm = tuple[str, tuple[str, ...]]
"""A recipe and its changes; a recipe without a name is what `bolus plan` composes for the cohort."""

ORDER = ("tier", "cohort", "study", "arm", "seed", "fold", "settings", "keys", "labelled", "lr")  # of a cell's keys
NAMED = ("cohort", "study", "arm", "seed", "fold")  # those that name a run


def without(*objectives: str) -> tuple[str, ...]:
    """Keys that drop objectives of a recipe."""
    return tuple(f"objectives.{name}=null" for name in objectives)


def folder_name(cell: Mapping[str, Any]) -> str:
    """What the run of a cell is called."""
    return "-".join(re.sub(r", K = | \+ |, | ", "-", str(cell[key])) for key in NAMED if key in cell)


@dataclass(frozen=True)
class Grid:
    """What is measured on finished trainings, before anything is compared.

    Args:
        file: of its cells.
        measure: (work, cell) -> JSON values.
        arms: on every seed; those that are no ablation of the study.
        ablations: on seed 0.
        parts: what else tells the cells of an arm and seed apart.
        looks: whether it judges on test patients, so that each look is noted.
    """

    file: str
    measure: Callable[[Path, Cell], dict[str, Any]]
    arms: tuple[str, ...]
    ablations: tuple[str, ...] = ()
    parts: tuple[Mapping[str, Any], ...] = ({},)
    looks: bool = False


@dataclass(frozen=True)
class Study:
    """Arms that are trained alike on one cohort, and their comparison.

    Args:
        name: among the studies of a file.
        cells: the file of its trainings.
        result: the file of its comparison.
        arms: every arm.
        tiers: for each size `keys` of every arm, `recipes` with keys of every arm of a recipe, `order` of arms that are
            finished one after another, the minutes of a cell as `minutes`, and what else the study reads there.
        prepare: (work, cell) -> the cohort.yaml to train on.
        compare: lines of results; none where too little is done.
        keys: of every arm, first of all.
        further: (recipe, work, cell) -> keys that only the cell tells, last of all.
        ablations: arms of seed 0 alone.
        asked: arms that are trained only when `--arms` names them.
        seeds: of the trainings.
        parts: what else tells the cells of an arm and seed apart: cohort, fold.
        stamp: (tier, arm) -> what else a cell must say to count as this study's.
        noted: what a cell keeps of its run beside `condense`.
        then: what is measured on the trainings.
        more: what else stands in the file of the comparison.
        unit: of a recipe that `bolus plan` composes.
        folder: of a cell's run.
        axes: arm -> the keys that validation patients choose, with the values that are tried.
        validate: (work, folder of a run) -> what `benchmarks/tuning.py` chooses by, on validation patients; less is
            better.
    """

    name: str
    cells: str
    result: str
    arms: Mapping[str, Arm]
    tiers: Mapping[str, Mapping[str, Any]]
    prepare: Callable[[Path, Cell], Path]
    compare: Callable[[Finished], Lines]
    keys: tuple[str, ...] = ()
    further: Callable[[Recipe, Path, Cell], Sequence[str]] = lambda recipe, work, cell: ()
    ablations: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    parts: tuple[Mapping[str, Any], ...] = ({},)
    stamp: Callable[[str, str], dict[str, Any]] = lambda tier, arm: {}
    noted: Callable[[Run], dict[str, Any]] = lambda run: {}
    then: tuple[Grid, ...] = ()
    more: Callable[[Finished], dict[str, Any]] = lambda finished: {}
    unit: str | None = None
    folder: Callable[[Mapping[str, Any]], str] = folder_name
    axes: Mapping[str, Axes] = field(default_factory=dict)
    validate: Callable[[Path, Path], float] | None = None

    def stamps(self, tier: str, arm: str) -> dict[str, Any]:
        """What a cell must say beside its arm, seed and part, to count as this study's."""
        stamp = self.stamp(tier, arm)
        if arm in self.axes:
            stamp["keys"] = chosen(self.tuning(tier), {"tier": tier, "arm": arm}, self.axes[arm])
        return stamp

    def tuning(self, tier: str) -> Path:
        """The file of what validation patients say of keys."""
        return results_file(self.cells.replace("cells", "tuning"), tier)

    @property
    def main(self) -> list[str]:
        """Arms of every seed."""
        return [arm for arm in self.arms if arm not in (*self.ablations, *self.asked)]

    @property
    def grids(self) -> list[Grid]:
        """Its trainings, and what is measured on them."""
        return [Grid(self.cells, partial(train, self), tuple(self.main), self.ablations, self.parts), *self.then]


@dataclass(frozen=True)
class Finished:
    """What a study has done at one size.

    Args:
        study: whose.
        tier: which size.
        work: where its runs lie.
    """

    study: Study
    tier: str
    work: Path

    def lines(self, grid: Grid) -> Lines:
        """Finished cells of a grid, without those of other settings."""

        def mine(cell: Cell) -> bool:
            said = {"tier": self.tier, **self.study.stamps(self.tier, cell["arm"])}
            return any((said | {**part}).items() <= cell.items() for part in grid.parts)

        return [line for line in read_cells(results_file(grid.file, self.tier)) if mine(line["cell"])]

    def has(self, arm: str, seed: int) -> bool:
        """Whether an arm has finished a seed, in every part."""
        return sum(
            (line["cell"]["arm"], line["cell"]["seed"]) == (arm, seed) for line in self.lines(self.study.grids[0])
        ) >= len(self.study.parts)

    def seeds(self, arms: Sequence[str] | None = None) -> list[int]:
        """Seeds that all main arms, or these, have finished."""
        return [seed for seed in self.study.seeds if all(self.has(arm, seed) for arm in arms or self.study.main)]

    def comparable(self) -> dict[str, list[int]]:
        """Seeds of every arm: of main arms those that all have finished, of finished ablations the first; or none."""
        seeds = self.seeds()
        return dict.fromkeys(self.study.main, seeds) | {arm: [0] for arm in self.study.ablations if self.has(arm, 0)}

    def run(self, arm: str, seed: int, **part: Any) -> Path:
        """Where a run lies."""
        return self.work / self.study.folder({**self.study.parts[0], **part, "arm": arm, "seed": seed})


def cells_of(study: Study, grid: Grid, tier: str, seed: int, arms: Sequence[str] | None = None) -> list[Cell]:
    """The cells of a seed: those that the grid has, or of these arms alone; any arm can be trained on any seed."""
    usual = [*grid.arms, *(grid.ablations if seed == 0 else ())]
    known = study.arms if grid.file == study.cells else usual
    chosen = [arm for arm in arms if arm in known] if arms else usual
    cells = [
        {"tier": tier, **part, "arm": arm, "seed": seed, **study.stamps(tier, arm)}
        for part in grid.parts
        for arm in chosen
    ]
    return [{key: cell[key] for key in ORDER if key in cell} for cell in cells]


def jobs(study: Study, tier: str, seed: int, arms: Sequence[str] | None, clock: Clock) -> list[tuple[Grid, Cell]]:
    """What a seed asks for: all trainings first, or, where the tier states an `order`, arm by arm."""
    trainings = replace(study.grids[0], measure=partial(train, study, clock=clock))
    found = [(grid, cell) for grid in (trainings, *study.then) for cell in cells_of(study, grid, tier, seed, arms)]
    order = [*study.tiers[tier].get("order", ())]
    return sorted(found, key=lambda job: order.index(job[1]["arm"]) if job[1]["arm"] in order else len(order))


def run_job(study: Study, grid: Grid, work: Path, cell: Cell, clock: Clock, why: str | None = None) -> None:
    """Measure a cell unless it is done, and train anew what it is measured on and is not here."""
    file, training = results_file(grid.file, cell["tier"]), study.grids[0]
    if any(line["cell"] == cell for line in read_cells(file)):
        return
    if grid.looks and cell["arm"] in study.arms:
        about = {"study": study.name, "tier": cell["tier"], "arm": cell["arm"]}
        look(RESULTS / "looks.jsonl", about, recipe_of(study, work, {**cell, "seed": 0}).digest, why)
    arms = [cell["arm"]] if grid.file != training.file and cell["arm"] in study.arms else []
    for each in cells_of(study, training, cell["tier"], cell["seed"], arms) if arms else ():
        if Run(work / study.folder(each)).status != "finished":
            clock.require(each, read_cells(results_file(training.file, cell["tier"])))
            train(study, work, each, clock)
    run_grid(file, [cell], lambda **cell: grid.measure(work, cell), clock)


def recipe_of(study: Study, work: Path, cell: Cell) -> Recipe:
    """The recipe of a training."""
    name, changes = study.arms[cell["arm"]]
    tier = study.tiers[cell["tier"]]
    start = Recipe.load(name) if name else plan(Cohort.open(study.prepare(work, cell)), unit=study.unit).recipe
    assert start is not None
    own = (*tier.get("recipes", {}).get(name, ()), *changes, *written(cell.get("keys") or {}))
    recipe = start.override([*study.keys, *tier["keys"], *own])
    return recipe.override([*study.further(recipe, work, cell), f"training.seed={cell['seed']}"])


def train(study: Study, work: Path, cell: Cell, clock: Clock = NO_END) -> dict[str, Any]:
    """One cell of trainings; OutOfTimeError where the run was stopped, and can be resumed."""
    folder, hours = work / study.folder(cell), clock.left() / 3600
    run = pretrain(
        study.prepare(work, cell),
        recipe=recipe_of(study, work, cell),
        overrides={} if math.isinf(hours) else {"training.max_hours": max(hours, 1e-4)},
        out=folder,
        resume=folder.exists(),
        cache=work / "cache",
        quiet=True,
    )
    if run.status != "finished":
        raise OutOfTimeError(f"{folder.name} was stopped at step {run.record['steps']}")
    return {**condense(run), **study.noted(run)}


def condense(run: Run) -> dict[str, Any]:
    """What a cell keeps of a training: its length, speed, first and last losses, and health at the end."""
    lines = [line for line in run.metrics() if line["kind"] == "train"]
    health = [line for line in run.metrics() if line["kind"] == "health"][-1]["findings"]
    return {
        "steps": run.record["steps"],
        "hours": round(run.record["hours"], 4),
        "images_per_second": round(float(np.median([line["images_per_second"] for line in lines])), 1),
        "loss_first": lines[0]["loss"],
        "loss_last": lines[-1]["loss"],
        "counts": lines[-1]["counts"],
        "health": {finding["name"]: finding["value"] for finding in health},
    }


def tune(study: Study, work: Path, tier: str, arm: str, clock: Clock) -> None:
    """Have validation patients choose the keys of an arm that the study leaves to them."""
    about = {"tier": tier, "arm": arm}
    search(
        study.tuning(tier), about, study.axes[arm], lambda **cell: try_out(study, work, cell | {"seed": SEED}), clock
    )


def try_out(study: Study, work: Path, cell: Cell, *changes: str) -> dict[str, Any]:
    """One training, and what validation patients say of it as `figure`; its run is not kept."""
    assert study.validate is not None
    name = hashlib.blake2b(json.dumps([cell, changes]).encode(), digest_size=8).hexdigest()
    folder = work / f"tried-{name}"
    run = pretrain(
        study.prepare(work, cell),
        recipe=recipe_of(study, work, cell).override(changes),
        out=folder,
        resume=folder.exists(),
        cache=work / "cache",
        quiet=True,
    )
    found = {"figure": round(study.validate(work, folder), 6), **condense(run)}
    shutil.rmtree(folder)
    return found


def command_line(about: str | None, studies: Sequence[Study], work: str) -> argparse.ArgumentParser:
    """The options of a study's file."""
    names, tiers = [study.name for study in studies], dict.fromkeys(tier for study in studies for tier in study.tiers)
    arms = dict.fromkeys(arm for study in studies for grid in study.grids for arm in (*study.arms, *grid.arms))
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=[*tiers], default=SMALL, help="sizes of encoder, images and training")
    parser.add_argument("--minutes", type=float, help="begin no cell that would end later")
    parser.add_argument("--work", type=Path, default=Path(work), help="where runs lie")
    parser.add_argument("--seeds", nargs="+", help="train these alone")
    parser.add_argument("--arms", nargs="+", choices=[*arms], metavar="NAME", help="train these alone")
    if len(names) > 1:
        parser.add_argument("--cohorts", nargs="+", choices=names, default=names, help="these alone")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--train-only", action="store_true")
    what.add_argument("--compare-only", action="store_true")
    what.add_argument("--tune-only", action="store_true")
    parser.add_argument("--look-again", metavar="WHY", help="judge again although a recipe changed after its look")
    return parser


def run_study(study: Study, arguments: argparse.Namespace) -> None:
    """Train what is missing, then compare."""
    tier, work, left_out = arguments.tier, arguments.work / arguments.tier, []
    clock = Clock(arguments.minutes, stated=study.tiers[tier].get("minutes", 0.0))
    asked = [int(seed) for word in arguments.seeds or () for seed in word.split(",")]
    for arm in () if arguments.compare_only else study.axes:
        try:
            tune(study, work, tier, arm, clock)
        except OutOfTimeError as error:
            left_out.append(str(error))
    for seed in () if arguments.compare_only or arguments.tune_only or left_out else asked or study.seeds:
        for grid, cell in jobs(study, tier, seed, arguments.arms, clock):
            try:
                run_job(study, grid, work, cell, clock, arguments.look_again)
            except OutOfTimeError as error:
                left_out.append(str(error))
    if left_out:
        print(f"{study.name}: {len(left_out)} cells did not fit: {left_out[0]}", file=sys.stderr)
    if arguments.train_only or arguments.tune_only:
        return
    finished = Finished(study, tier, work)
    if lines := study.compare(finished):
        write_results(results_file(study.result, tier), lines, **study.more(finished))
    else:
        print(f"{study.name}: nothing to compare yet", file=sys.stderr)


def main(about: str | None, *studies: Study, work: str) -> None:
    """Train what is missing of the studies of a file, then compare."""
    arguments = command_line(about, studies, work).parse_args()
    for study in studies:
        if study.name in getattr(arguments, "cohorts", [study.name]) and arguments.tier in study.tiers:
            run_study(study, arguments)
