"""One run from everything that a table knows, against each paper's own recipe, at equal encoder passes.

    python benchmarks/planned.py                       # r18w32 (acdc: U-Net of 8 filters) at 64 pixels, for a CPU
    python benchmarks/planned.py --tier full           # ResNet-18 (U-Net of 48 filters) at 224 pixels, for a GPU
    python benchmarks/planned.py --on validation       # variants of the plan, judged on validation patients alone

Four cohorts of planned_cohorts.py. An arm is the recipe that `bolus plan` writes, or a shipped recipe of one paper that
the cohort's columns allow, with the same encoder, images, augmentation, optimiser and schedule, and as many steps as
take the same number of encoder passes (`bolus.ablation.budget`). Cells are trainings; finished ones are
skipped. Encoders are judged on the same patients, frozen, by linear probes whose strength is chosen on validation
patients; acdc by a U-Net that is trained whole on few labelled patients. Estimates are means over seeds; intervals are
over patients, differences on the same draws, decided where the interval excludes 0 and every seed points the same way;
nothing is corrected for their number. What `plan` weighs was chosen with --on validation: no test patient is read then.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from bolus.ablation.budget import passes_of_run, steps_within
from bolus.data.cohort.cohort import Cohort
from bolus.evaluation.statistics.results import MAJORITY
from bolus.planning.planner import plan
from bolus.provenance import machine, versions
from bolus.recipe import Recipe
from bolus.training.assembly import resolve
from bolus.training.loop import pretrain
from grid import RESULTS, condense, read_cells, run_grid
from planned_cohorts import STUDIES, Judged, Study, conflicts_of

PLANNED = "planned"
# The same for every arm.
COMMON = (
    "optimizer={kind: adamw, lr: 0.001, weight_decay: 0.0001}",
    "schedule={kind: cosine, warmup_epochs: 1, final: 0.001}",
    "training={epochs: 100000, health_epochs: null}",
    "combiner.conflict_steps=null",
)


def recipe_of(study: Study, cohort: Path, tier: str, arm: str) -> Recipe:
    """An arm's recipe, with what all arms share and its number of steps."""
    shared = [*COMMON, *study.keys, *study.tiers[tier].keys]
    if arm in study.arms:
        name, changes = study.arms[arm]
        recipe = Recipe.load(name).override([*shared, *changes])
    else:
        found = plan(Cohort.open(cohort), unit=study.unit).recipe
        assert found is not None
        changes = (*study.plan, *study.variants.get(arm, ()))
        recipe = found.override([*shared, "combiner.conflict_steps=25", *changes])
    steps = steps_within(resolve(recipe), study.tiers[tier].passes)
    return recipe.override([f"training.max_steps={steps}"])


def run_folder(work: Path, study: str, arm: str, seed: int, fold: int) -> Path:
    """Where a cell's run lies."""
    return work / f"{study}-{arm.replace(' ', '-')}-{seed}-{fold}"


def train(work: Path, tier: str, study: str, arm: str, seed: int, fold: int) -> dict[str, Any]:
    """One cell."""
    cohort = STUDIES[study].prepare(work / study, fold)
    recipe = recipe_of(STUDIES[study], cohort, tier, arm).override([f"training.seed={seed}"])
    folder = run_folder(work, study, arm, seed, fold)
    run = pretrain(cohort, recipe=recipe, out=folder, resume=folder.exists(), cache=work / "cache", quiet=True)
    return {
        **condense(run),
        "passes": passes_of_run(resolve(recipe), run.record["steps"]),
        "conflicts": conflicts_of(run),
        "recipe_hash": run.record["recipe_hash"],
    }


def main() -> None:
    """Train what is missing, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=("small", "full"), default="small")
    parser.add_argument("--work", type=Path, default=Path("runs/planned"))
    parser.add_argument("--cohorts", nargs="+", choices=sorted(STUDIES), default=list(STUDIES))
    parser.add_argument("--arms", nargs="+", default=None, help="train these alone")
    parser.add_argument("--on", choices=("test", "validation"), default="test")
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--compare-only", action="store_true")
    arguments = parser.parse_args()
    tier, work, on = arguments.tier, arguments.work / arguments.tier, arguments.on
    path = RESULTS / f"planned-cells{'' if tier == 'small' else f'-{tier}'}.jsonl"
    for name in arguments.cohorts:
        study = STUDIES[name]
        arms = [*study.arms, PLANNED] if on == "test" else [PLANNED, *study.variants]
        chosen = [arm for arm in arguments.arms or arms if arm in {*study.arms, PLANNED, *study.variants}]
        seeds = study.seeds if on == "test" else study.seeds[:2]
        cells = [
            {"tier": tier, "study": name, "arm": arm, "seed": seed, "fold": fold}
            for seed in seeds
            for fold in range(study.folds)
            for arm in chosen
        ]
        if not arguments.compare_only:
            run_grid(path, cells, lambda **cell: train(work, **cell))
        if arguments.train_only:
            continue
        have = [line["cell"] for line in read_cells(path)]
        done = {
            (cell["arm"], cell["seed"], cell["fold"]) for cell in have if (cell["tier"], cell["study"]) == (tier, name)
        }
        compared = arms if on == "test" else [*arms, *study.arms]
        compared = [arm for arm in compared if all((arm, seeds[0], fold) in done for fold in range(study.folds))]
        full = [s for s in seeds if all((arm, s, fold) in done for arm in compared for fold in range(study.folds))]
        if not full or PLANNED not in compared:
            print(f"{name}: nothing to compare yet", file=sys.stderr)
            continue
        judged = Judged(
            folders={
                (arm, seed, fold): run_folder(work, name, arm, seed, fold)
                for arm in compared
                for seed in full
                for fold in range(study.folds)
            },
            cohorts={fold: study.prepare(work / name, fold) for fold in range(study.folds)},
            arms=compared,
            seeds=full,
            cache=work / "cache",
            on=on,
            pairs=[(PLANNED, arm) for arm in ("random init", MAJORITY, *compared) if arm != PLANNED]
            + [(arm, "random init") for arm in compared if arm != PLANNED]
            + [(arm, first) for first in list(study.variants)[:1] for arm in list(study.variants)[1:]],
        )
        record = {"command": f"python {shlex.join(sys.argv)}", "machine": machine(), "versions": versions()}
        lines = [{"cohort": name, "tier": tier, "on": on, **line} for line in study.judge(judged)]
        suffix = ("" if tier == "small" else f"-{tier}") + ("" if on == "test" else "-validation")
        (RESULTS / f"planned-{name}{suffix}.json").write_text(json.dumps({**record, "results": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
