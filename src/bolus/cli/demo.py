"""The demo: a synthetic cohort with known truth, checked, pretrained on, embedded and judged in a few minutes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from bolus.data.checks.checking import check
from bolus.data.cohort.cohort import Cohort
from bolus.embedding.table import embed
from bolus.errors import UsageError, require, suggest
from bolus.evaluation.probing.options import Probing
from bolus.evaluation.probing.reading import judge as judge_target
from bolus.evaluation.probing.reading import reading_of
from bolus.evaluation.retrieval.retrieve import judge as judge_retrieval
from bolus.evaluation.retrieval.task import Retrieve
from bolus.evaluation.settings import Judging
from bolus.phantom.images import make_phantom
from bolus.phantom.volumes import make_volume_phantom
from bolus.recipe import Recipe
from bolus.reporting.writing import report
from bolus.run import Run
from bolus.training.loop import pretrain

NUM_PATIENTS, NUM_SCANNED = 200, 160  # of images, and of volumes, at two visits each
VOXELS = 40  # of a volume's side
# Small enough for two CPU cores: small encoders at 64 pixels, narrow heads, an optimiser that needs few steps.
COMMON = (
    "images.size=64",
    "images.augment.preset=mri",
    "optimizer={kind: adamw, lr: 0.001}",
    "schedule={warmup_epochs: 1}",
    "training.health_epochs=5",
)
COMMON_VOLUMES = (
    "images={unit: volume, size: 32, spacing: 6, fit: pad, views: 2}",
    "images.augment={preset: brain_mri, crop_scale: [0.8, 1.0]}",
    "encoder={backbone: r10w16_3d, stem_pool: false}",
    "optimizer={kind: adamw, lr: 0.001}",
    "schedule={kind: cosine, warmup_epochs: 2}",
    "training.health_epochs=10",
)
OVERRIDES = {
    "mlvicx": (
        "encoder.backbone=r18w32",
        "objectives.global.width=256",
        "objectives.levels.width=256",
        "objectives.levels.level_channels=64",
        "training.epochs=15",
    ),
    "comprer": (
        "encoder={backbone: vit_tiny}",
        "sampling={participants: 16, batch_size: 128}",
        "objectives.reconstruction.channels=64",
        "training.epochs=20",
        "training.precision=fp32",
        "training.activation_checkpointing=false",
    ),
    "supremix_3d": (
        "objectives.supremix.window=3.0",
        "sampling.batch_size=32",
        "training.epochs=18",
    ),
}
OF_VOLUMES = ("supremix_3d",)
USES = {
    "mlvicx": "without any label",
    "comprer": "from modality, visit, side, age and severity",
    "supremix_3d": "from the severity at each visit",
}
ACROSS = {"mlvicx": (), "comprer": ("modality", "laterality", "visit"), "supremix_3d": ()}
QUESTIONS = {
    "mlvicx": (("classify", "disease"), ("regress", "severity")),
    "comprer": (("classify", "disease"), ("regress", "severity")),
    "supremix_3d": (("regress", "severity"),),
}


def demonstrate(
    folder: Path,
    *,
    recipe: str | None = None,
    volumes: bool = False,
    seed: int = 0,
    quiet: bool = False,
    say: Callable[[str], None] = print,
) -> Run:
    """Everything a person does with bolus, once, on a phantom.

    Args:
        folder: made if absent; an unfinished demo there goes on.
        recipe: `mlvicx`, which is taken where none is named, or `comprer`, which also shows retrieval of the same
            person; of volumes `supremix_3d`.
        volumes: heads in MR, each seen as a volume.
        seed: of the phantom and the training.
        quiet: show no progress.
        say: how to print a line.

    Raises:
        UsageError: another recipe, or a file in place of the folder.
        BolusError: as its steps do.
    """
    shown = [name for name in OVERRIDES if (name in OF_VOLUMES) == volumes]
    recipe = recipe or shown[0]
    if recipe not in shown:
        of_volumes = " of volumes" if volumes else ""
        raise UsageError(f"there is no demo{of_volumes} of {recipe!r}; {suggest(recipe, shown)}")
    if folder.is_file():
        raise UsageError(f"out: expected a folder, found the file {folder.name}")
    if volumes:
        require("blosc2", "volumes")
    began, cache, unit = time.monotonic(), folder / "cache", "volume" if volumes else "image"
    maker = "make_volume_phantom" if volumes else "make_phantom"
    say(f"1. A synthetic cohort with known truth in {folder / 'cohort'} (bolus.{maker})")
    cohort_file = folder / "cohort" / "cohort.yaml"
    if not cohort_file.is_file():
        if volumes:
            make_volume_phantom(folder / "cohort", num_patients=NUM_SCANNED, size=VOXELS, seed=seed)
        else:
            make_phantom(folder / "cohort", num_patients=NUM_PATIENTS, seed=seed)
    cohort = Cohort.open(cohort_file)
    say(f"   {len(cohort)} {unit}s of {cohort.num_patients} patients")

    say("2. bolus check: pixels, patients, leakage")
    found = check(cohort)
    cohort = found.cohort  # with the intensity ranges that check found
    say(f"   {len(found.errors)} errors, {len(found.warnings)} warnings; written to {folder / 'check.json'}")
    found.write(folder / "check.json")

    common = COMMON_VOLUMES if volumes else COMMON
    plan = Recipe.load(recipe).override([*common, *OVERRIDES[recipe], f"training.seed={seed}"])
    say(f"3. bolus pretrain --recipe {recipe}, {plan.training.epochs} epochs, {USES[recipe]}")
    run = pretrain(cohort, recipe=plan, out=folder / "run", cache=cache, resume=(folder / "run").exists(),
                   quiet=quiet)  # fmt: skip

    say(f"4. bolus embed: one vector for each {unit}, joined to the table")
    embed(run.folder, cohort, out=folder / "embeddings.parquet", cache=cache)

    simple = "the median" if volumes else "the majority class"
    say(f"5. bolus evaluate: test patients that nothing was trained on, beside random weights and {simple}")
    judging, linear = Judging(draws=500, cache=cache, quiet=quiet), Probing(("linear",))
    for task, target in QUESTIONS[recipe]:
        evaluation = judge_target(reading_of(task)(target=target, probing=linear), run.folder, cohort, judging)
        for summary in evaluation.summaries().values():
            for line in summary.splitlines():
                say(f"   {line}")
    for role in ACROSS[recipe]:
        for line in judge_retrieval(Retrieve(role), run.folder, cohort, judging).summary().splitlines():
            say(f"   {line}")

    say("6. bolus report: all of it on one page, of rows and patients that are numbers")
    page = report(run.folder, out=folder / "report.html", embeddings=[folder / "embeddings.parquet"])
    say(f"\nDone in {(time.monotonic() - began) / 60:.1f} minutes. {folder} now holds:")
    say(f"   cohort/               {unit}s, table.csv, cohort.yaml, and truth.csv that nothing read")
    say("   check.json            what bolus check found")
    say("   run/                  recipe, metrics, checkpoint, encoder/, evaluations/")
    say("   embeddings.parquet    embeddings, beside their rows")
    say("   report.html           opens in a browser, without a network")
    say(f"\nLook at it: {page.resolve().as_uri()}")
    say("\nNext, with your own table:")
    say("   bolus check table.csv --role patient=PATIENT_COLUMN -o cohort.yaml")
    keys = " images.unit=volume images.size=64 encoder.backbone=resnet18_3d" if volumes else ""
    say(f"   bolus pretrain cohort.yaml --recipe {recipe} --out runs/a --dry-run{keys}")
    return run
