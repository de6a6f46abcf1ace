"""An ablation from recipe to table: arms, an equal budget, cells that can be stopped and gone on with."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bolus.ablation.arms import find_arms
from bolus.ablation.asking import check_task, folder_name, judge, read_answers
from bolus.ablation.comparison import Cell, compare_cells, results_of
from bolus.ablation.outline import Ablation
from bolus.ablation.schedule import plan_ablation, runs_of
from bolus.data.cohort.cohort import Cohort, CohortLike
from bolus.data.cohort.holdout import validation_cohort
from bolus.errors import EvaluationError, NonFiniteLossError, OutOfMemoryError, UsageError
from bolus.evaluation.settings import Judging, check_whole
from bolus.evaluation.statistics.answers import Answer
from bolus.evaluation.statistics.results import write_results
from bolus.evaluation.tasks import task_of
from bolus.files import write_json, write_text
from bolus.provenance import versions
from bolus.recipe import Recipe
from bolus.recipes.keys import Overrides
from bolus.training.loop import pretrain
from bolus.training.processes import launched


def ablate(
    cohort: CohortLike,
    *,
    recipe: str | Path | Recipe | None = None,
    task: str,
    target: str = "",
    out: str | Path,
    over: str = "objectives",
    recipes: Sequence[str | Path | Recipe] = (),
    seeds: int = 3,
    passes: int | None = None,
    on: str = "test",
    overrides: Overrides = (),
    dry: bool = False,
    cache: Path | None = None,
    quiet: bool = False,
    say: Callable[[str], None] = print,
    **options: Any,
) -> Ablation:
    """Train recipes that differ in one thing for the same number of encoder passes, and judge them together.

    Every arm is pretrained on the training patients with every seed, and asked the same question; random weights and
    the majority stand beside the arms. The metric is averaged over seeds. A difference from the first arm is decided
    where its 95 % interval, which counts the chance of patients and of training, leaves out 0 and there are enough
    patients; with one seed it is decided for these trainings only. Beside it stands what Holm's correction over the
    arms leaves of it.

    An ablation can be stopped at any time and gone on with by the same call: trained cells are not trained again, one
    that was stopped within goes on from its checkpoint, and one that failed is tried again. Another question in the
    same folder judges the trained encoders anew.

    Args:
        cohort: cohort.yaml, a table with conventional column names, or an open cohort.
        recipe: a shipped name, a YAML file, or a Recipe; its objectives, combiner or a key are varied.
        task: a key of `bolus.evaluation.tasks.TASKS`.
        target: as the task takes it: a label or score; nothing where it takes none.
        out: the folder.
        over: `objectives`, `combiners`, or `KEY=V1,V2`: see `find_arms`.
        recipes: in place of `recipe`: an arm each, compared with the first.
        seeds: how many, from 0 on.
        passes: encoder passes of a cell: see `bolus.ablation.budget`. Where None those of the first arm as its recipe
            is given. An arm takes as many steps as fit, at least one, and its schedule is stretched with it.
        on: `validation`: on validation patients, of a cohort without the test patients. Encoders are the same.
        overrides: `key=value` assignments, or a mapping of keys, into every recipe.
        dry: two steps of each arm for an estimate of the time, and nothing else.
        cache: cache folder; the user's where None.
        quiet: show no progress of the trainings.
        say: how to print a line.
        **options: of the task, such as `across` of `retrieve`, `labelled` of `segment` (differences are judged at the
            most labelled patients) or `min_patients` of `classify`.

    Returns:
        The ablation; `summary()` is the table.

    Raises:
        UsageError: arguments that do not go together, or nothing to compare.
        RecipeError, CohortError, EvaluationError: a recipe or question that cannot be, before anything is trained; or
            no cell could be trained and judged.
        TrainingError: the folder holds runs of other recipes or another split.
    """
    if "fractions" in options:
        raise UsageError("fractions: arms are compared on the labels of all training patients; leave it out")
    given = {name: value for name, value in {"target": target or None, **options}.items() if value is not None}
    question = task_of(task, given)
    check_whole("seeds", seeds, 1)
    if passes is not None:
        check_whole("passes", passes, 1)
    if on not in ("test", "validation"):
        raise UsageError(f"on: expected test or validation, found {on!r}")
    if launched().num_processes > 1:
        raise UsageError("an ablation runs in one process; launch it without accelerate or torchrun")
    whole = Cohort.open(cohort)
    held = validation_cohort(whole) if on == "validation" else whole
    arms = find_arms(recipe, over=over, recipes=recipes, overrides=overrides)
    try:
        for arm in arms.arms:
            check_task(question, held, arm.recipe)
    except EvaluationError as error:
        stands = "; here the validation patients are the test patients" if on == "validation" else ""
        raise EvaluationError(f"{error}{stands}") from error
    found = plan_ablation(whole, arms, question, tuple(range(seeds)), passes, on, Path(out), cache, not dry)
    say(found.plan())
    if dry:
        return found
    answers = _fill(found, whole, held, cache, quiet, say)
    if not answers:
        why = "; ".join(f"{arm}: {reason}" for arm, reason in found.failed.items())
        raise EvaluationError(f"no cell could be trained and judged: {why}")
    found.comparisons = compare_cells(answers, [arm.name for arm in arms.arms])
    _write(found, held)
    say("\n" + found.summary())
    return found


def _fill(
    found: Ablation, whole: Cohort, held: Cohort, cache: Path | None, quiet: bool, say: Callable[[str], None]
) -> dict[Cell, list[Answer]]:
    """Train and judge what is not done yet; the answers of every cell that did not fail."""
    runs, answers, broken = runs_of(found), dict[Cell, list[Answer]](), dict[str, list[str]]()
    judged = found.folder / "judged" / folder_name(found.task, held)
    for number, ((arm, seed), run) in enumerate(runs.items(), start=1):
        planned = found.planned[arm]
        recipe, was = planned.recipe(seed), run.status
        if was != "finished":
            say(f"cell {number} of {len(runs)}: {arm}, seed {seed}, {planned.steps:,} steps")
        cell = {
            "arm": arm, "seed": seed, "recipe_hash": recipe.digest, "split_hash": whole.split_hash,
            "passes": planned.passes, "steps": planned.steps,
        }  # fmt: skip
        began, stage = time.monotonic(), "training"
        try:
            run = pretrain(whole, recipe=recipe, out=run.folder, resume=True, cache=cache, quiet=quiet)
            _record(found.folder, {**cell, "seconds": round(3600 * run.record["hours"], 1)})
            stage = "judging"
            folder = judged / run.folder.name
            judge(found.task, run, held, folder, Judging(seed, cache=cache, out=folder, quiet=quiet))
            answers[arm, seed] = read_answers(found.task, folder, whole, run.folder.name)
        except (NonFiniteLossError, OutOfMemoryError, EvaluationError) as error:
            seconds = round(time.monotonic() - began, 1)
            _record(found.folder, {**cell, "seconds": seconds, "failed": f"{stage}: {error}"})
            broken.setdefault(arm, []).append(f"seed {seed}, {stage}: {error}")
            say(f"cell {number} of {len(runs)} failed: {arm}, seed {seed}, {stage}: {error}")
    found.failed |= {arm: f"failed: {'; '.join(reasons)}" for arm, reasons in broken.items()}
    return answers


def _record(folder: Path, cell: Mapping[str, Any]) -> None:
    """Add a cell to cells.jsonl, unless it stands there as it is, but for its seconds."""
    path = folder / "cells.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    done = [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]
    if {key: value for key, value in cell.items() if key != "seconds"} not in done:
        write_text(path, "".join(f"{line}\n" for line in [*lines, json.dumps(cell)]))


def _write(found: Ablation, held: Cohort) -> None:
    """results.jsonl, ablation.json and table.txt, in place of those of an earlier question."""
    hashes = {name: planned.arm.recipe.digest for name, planned in found.planned.items()}
    results = results_of(found.comparisons, split_hash=held.split_hash, recipe_hashes=hashes)
    whole = {
        "over": found.arms.over,
        "question": found.task.question,
        "on": found.on,
        "seeds": found.seeds,
        "passes": found.budget,
        "split_hash": held.split_hash,
        "arms": {
            name: {"steps": each.steps, "passes": each.passes, "recipe": each.arm.recipe.model_dump(mode="json")}
            for name, each in found.planned.items()
        },
        "failed": found.failed,
        "notes": found.notes,
        "lines": [
            part
            for each in found.comparisons
            for line in each.lines
            for part in (line.value, *([] if line.difference is None else [line.difference]))
        ],
        "versions": versions(),
    }
    write_json(found.folder / "ablation.json", whole)
    write_text(found.folder / "table.txt", found.summary() + "\n")
    write_results(found.folder / "results.jsonl", results)
