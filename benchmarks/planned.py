"""One run from everything that a table knows, against each paper's own recipe, at equal encoder passes.

    python benchmarks/planned.py                       # r18w32 (acdc: U-Net of 8 filters) at 64 pixels, for a CPU
    python benchmarks/planned.py --tier full           # ResNet-18 (U-Net of 48 filters) at 224 pixels, for a GPU
    python benchmarks/planned.py --on validation       # variants of the plan, judged on validation patients alone

Four cohorts of planned_cohorts.py. An arm is the recipe that `bolus plan` writes, or a shipped recipe of one paper that
the cohort's columns allow, with the same encoder from random weights, images, augmentation, optimiser and schedule, and
as many steps as take the same number of encoder passes (`bolus.ablation.budget`). Cells are trainings; finished ones
are skipped. Encoders are judged on the same patients, frozen, by linear probes whose strength is chosen on validation
patients; acdc by a U-Net that is trained whole on few labelled patients. Estimates are means over seeds; intervals are
over patients, differences on the same draws, decided where the interval excludes 0 and every seed points the same way;
nothing is corrected for their number. What `plan` weighs was chosen with --on validation: no test patient is read then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bolus.ablation.budget import passes_of_run, steps_within
from bolus.evaluation.statistics.results import MAJORITY
from bolus.recipe import Recipe
from bolus.run import Run
from bolus.training.assembly import resolve
from judging import conflicts_of
from learner import FOLDS
from planned_cohorts import (
    PLANNED,
    Judged,
    judge_chest,
    judge_lus,
    judge_odir,
    prepare_chest,
    prepare_lus,
    prepare_odir,
)
from study import RANDOM, Arm, Cell, Finished, Lines, Study, command_line, run_study, without

# The same for every arm.
COMMON = (
    "optimizer={kind: adamw, lr: 0.001, weight_decay: 0.0001}",
    "schedule={kind: cosine, warmup_epochs: 1, final: 0.001}",
    "training={epochs: 100000, health_epochs: null}",
    "combiner.conflict_steps=null",
)
SCRATCH = ("encoder.pretrained=false", "encoder.unfrozen=null")  # every arm, whatever the plan would start from
SMALL = (*SCRATCH, "encoder.backbone=r18w32", "encoder.stem_pool=true", "images.size=64")
FULL = (*SCRATCH, "encoder.backbone=resnet18", "images.size=224", "training.precision=bf16")
ONE_VIEW = ("images.views=1", "sampling={batch_size: 128, partners: 1}")
TWO_VIEWS = ("images.views=2", "sampling={batch_size: 64, partners: 0}")
WIDTHS = ("objectives.global.width=512", "objectives.levels.width=512")
AGE = "objectives.{}=[score:age]"
ONES = {
    name: ("objectives.views.weight=1", f"objectives.{name}.weight=1") for name in ("bilateral", "temporal")
}  # the first form of the plan
MITIGATED = "combiner={kind: grad_mitigator, scope: features}"
REGION = "{kind: contrast, head: image, relation: region, temperature: 0.1, dim: 128, hidden_norm: false}"
STILL = ("images.unit=image", "encoder.temporal_shift=null")


def steps(tiers: Mapping[str, Mapping[str, Any]], recipe: Recipe, work: Path, cell: Cell) -> list[str]:
    """As many as take the encoder passes of the tier."""
    return [f"training.max_steps={steps_within(resolve(recipe), tiers[cell['tier']]['passes'])}"]


def noted(run: Run) -> dict[str, Any]:
    """Encoder passes, cosines of the gradients, and which recipe it was."""
    found = conflicts_of(run)
    cosines = {pair: each["cosine"] for pair, each in found.get("pairs", {}).items()}
    return {
        "passes": passes_of_run(resolve(run.recipe), run.record["steps"]),
        "conflicts": {"looks": found["looks"], "norms": found["norms"], "cosines": cosines} if found else {},
        "recipe_hash": run.record["recipe_hash"],
    }


def compare(finished: Finished, judge: Callable[[Judged], Lines], on: str = "test") -> Lines:
    """Every arm that has begun, on the seeds that all of these have finished."""
    study = finished.study
    variants = [arm for arm, (recipe, _) in study.arms.items() if not recipe and arm != PLANNED]
    arms = [arm for arm in study.arms if on == "validation" or arm not in variants]
    arms = [arm for arm in arms if finished.has(arm, study.seeds[0])]
    seeds = finished.seeds(arms)
    if PLANNED not in arms or not seeds:
        return []
    pairs = [(PLANNED, arm) for arm in (RANDOM, MAJORITY, *arms) if arm != PLANNED]
    pairs += [(arm, RANDOM) for arm in arms if arm != PLANNED]
    pairs += [(arm, first) for first in variants[:1] for arm in variants[1:]]
    lines = judge(Judged(finished, arms, seeds, on, pairs))
    return [{"cohort": study.name, "tier": finished.tier, "on": on, **line} for line in lines]


def planned(
    name: str,
    judge: Callable[[Judged], Lines],
    *,
    papers: Mapping[str, Arm],
    plan: tuple[str, ...],
    variants: Mapping[str, tuple[str, ...]],
    keys: tuple[str, ...],
    tiers: Mapping[str, Mapping[str, Any]],
    folds: int = 1,
    unit: str = "image",
    **more: Any,
) -> Study:
    """A study of papers' recipes and of the planned one, which has keys of its own, its batches.

    `variants` of the plan are for the validation patients.
    """
    own = ("combiner.conflict_steps=25", *plan)
    return Study(
        name=name,
        cells="planned-cells{tier}.jsonl",
        result=f"planned-{name}{{tier}}.json",
        arms={**papers, PLANNED: ("", own), **{arm: ("", (*own, *changes)) for arm, changes in variants.items()}},
        asked=tuple(variants),
        keys=(*COMMON, *keys),
        tiers=tiers,
        further=partial(steps, tiers),
        parts=tuple({"study": name, "fold": fold} for fold in range(folds)),
        noted=noted,
        compare=partial(compare, judge=judge),
        unit=unit,
        folder=lambda cell: "-".join(str(cell[key]).replace(" ", "-") for key in ("study", "arm", "seed", "fold")),
        **more,
    )


def validated(study: Study) -> Study:
    """Variants of the plan on the validation patients, two seeds each; papers' recipes stand beside them where done."""
    papers = {arm: spec for arm, spec in study.arms.items() if spec[0]}
    assert isinstance(study.compare, partial)
    return replace(
        study,
        result=f"planned-{study.name}{{tier}}-validation.json",
        arms={arm: spec for arm, spec in study.arms.items() if not spec[0]} | papers,
        asked=tuple(papers),
        seeds=study.seeds[:2],
        compare=partial(study.compare, on="validation"),
    )


STUDIES = (
    planned(
        "odir",
        judge_odir,
        prepare=prepare_odir,
        keys=("encoder.in_channels=3", "images.augment={preset: fundus}"),
        papers={
            "simclr": ("simclr", TWO_VIEWS),
            "mlvicx": ("mlvicx", (*TWO_VIEWS, *WIDTHS)),
            "comprer": (
                "comprer_bilateral",
                (
                    "objectives.measures.targets=[score:age, attribute:sex]",
                    "objectives.reconstruction.channels=128",
                    *ONE_VIEW,
                ),
            ),
            "supremix": ("supremix", (*TWO_VIEWS, AGE.format("supremix.targets"))),
            "learner": ("learner", (*ONE_VIEW, *STILL)),
        },
        plan=("sampling={batch_size: 64, partners: 1}",),
        variants={
            "weights 1": ONES["bilateral"],
            "weights 1, mitigated": (*ONES["bilateral"], MITIGATED),
            "weights 1, no views": ("objectives.views=null", "objectives.bilateral.weight=1"),
        },
        tiers={"small": {"keys": SMALL, "passes": 2 * 128 * 300}, "full": {"keys": FULL, "passes": 2 * 128 * 10000}},
        seeds=(0, 1),
    ),
    planned(
        "chest",
        judge_chest,
        prepare=prepare_chest,
        keys=("images.augment={preset: xray}",),
        papers={
            "simclr": ("simclr", TWO_VIEWS),
            "mlvicx": ("mlvicx", (*TWO_VIEWS, *WIDTHS)),
            "comprer": ("comprer_temporal", (*ONE_VIEW, "objectives.temporal.relation={same: patient, differ: visit}")),
            "supremix": ("supremix", (*TWO_VIEWS, AGE.format("supremix.targets"))),
            "learner": ("learner", (*ONE_VIEW, *STILL)),
        },
        plan=("sampling={batch_size: 64, partners: 1}",),
        variants={
            "weights 1": ONES["temporal"],
            "weights 1, mitigated": (*ONES["temporal"], MITIGATED),
            "weights 1, no views": ("objectives.views=null", "objectives.temporal.weight=1"),
        },
        tiers={"small": {"keys": SMALL, "passes": 2 * 128 * 150}, "full": {"keys": FULL, "passes": 2 * 128 * 2000}},
    ),
    planned(
        "lus",
        judge_lus,
        prepare=prepare_lus,
        keys=("images.augment={preset: ultrasound}", "encoder.temporal_shift=8", "images.unit=clip"),
        papers={
            "simclr": ("simclr", ("images.views=2", "sampling={batch_size: 16, partners: 0}")),
            "learner": (
                "learner",
                ("images.views=1", "sampling={batch_size: 32, partners: 1}", "objectives.contrast.threshold=0.0"),
            ),
            "supremix": (
                "supremix",
                ("images.views=2", "sampling={batch_size: 16, partners: 0}", "objectives.supremix.window=1.5"),
            ),
            "gcl": (
                "gcl",
                (
                    "images.views=2",
                    "sampling={batch_size: 16, partners: 1}",
                    *without("position", "phase", "patient_pixel", "position_pixel", "phase_pixel"),
                    "objectives.patient.dim=128",
                    f"objectives.region={REGION}",
                    "combiner.scope=features",
                    "combiner.conflict_steps=null",
                    "bins={}",
                ),
            ),
        },
        plan=("sampling={batch_size: 16, partners: 1}",),
        variants={"mitigated": (MITIGATED,)},
        tiers={
            "small": {"keys": (*SMALL, "images.frames=4"), "passes": 2 * 4 * 32 * 225},
            "full": {"keys": (*FULL, "images.frames=8"), "passes": 2 * 8 * 32 * 2000},
        },
        folds=FOLDS,
        unit="clip",
    ),
)


def main() -> None:
    """Train what is missing, then compare."""
    parser = command_line(__doc__, STUDIES, work="runs/planned")
    parser.add_argument("--on", choices=("test", "validation"), default="test", help="which patients are judged")
    arguments = parser.parse_args()
    for study in STUDIES:
        if study.name in arguments.cohorts:
            run_study(study if arguments.on == "test" else validated(study), arguments)


if __name__ == "__main__":
    main()
