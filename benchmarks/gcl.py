"""GCL on cine cardiac MRI: few-shot Dice after pretraining from patient, slice position and phase.

    python benchmarks/gcl.py                 # U-Net of 8 base filters at 64 pixels, for a CPU
    python benchmarks/gcl.py --tier full     # U-Net of 48 base filters at 128 pixels (of the crop), for a GPU

Cohort: acdc, 99 patients (patient076 has the images of patient074 and is left out), their central 128 x 128 of 192
pixels, where the heart lies in every image; 40 % of the patients for testing. The arms are those of the paper
(arXiv:2309.08888): every meta label alone, their sum, PCGrad, GradMitigator, and pixel contrast without and with
GradFilter, beside SimCLR and the encoder as it was drawn. Every arm is pretrained for the same number of steps of 32
slices in two views, which are as many forward passes; the arms that reconcile take a backward pass for each objective,
but for `planned`, which reconciles at the features.

Then a U-Net on each encoder is trained whole on the slices of M labelled patients, for the same number of steps for
every M. Seed s pretrains, draws the labelled patients and trains: three seeds are three encoders and three draws.
Dice is of volumes, in 3-D, at the pixels of the crop, averaged over the classes; nothing is chosen on the test patients
(the learning rate of this training was chosen on validation patients, with the encoder as it was drawn).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from bolus import SegmentSpec
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.volumes import volume_codes
from bolus.data.readers.masks import from_square, read_labels, to_square
from bolus.device import device
from bolus.embedding.opening import Judged, open_encoder, open_store, samples_of
from bolus.encoders.modalities import one_encoder
from bolus.evaluation.segmentation.overlap import pooled_dice, volume_dice, volume_hd95
from bolus.evaluation.segmentation.segmenter import draw_labelled, fit_segmenter
from bolus.evaluation.statistics.arms import compare_arms
from bolus.recipe import Recipe
from grid import DATA
from judging import Array, conflicts_of, twin
from study import RANDOM, Arm, Cell, Finished, Grid, Lines, Study, main, without

LABELLED, CLASSES = (1, 2, 6, 10), ("RV", "myocardium", "LV")
PIXELS = ("patient_pixel", "position_pixel", "phase_pixel")
NO_PIXELS = without(*PIXELS)


def _keep(share: float | None) -> tuple[str, ...]:
    return tuple(f"objectives.{name}.keep={'null' if share is None else share}" for name in PIXELS)


ARMS: dict[str, Arm] = {
    "simclr": ("simclr", ("encoder.backbone=unet8", "objectives.views.hidden_norm=false")),
    "pcl": ("pcl", ()),
    "patient": ("gcl_patient", ()),
    "phase": ("gcl_phase", ()),
    "sum": ("gcl", (*NO_PIXELS, "combiner.kind=sum")),
    "PCGrad": ("gcl", (*NO_PIXELS, "combiner.kind=pcgrad")),
    "GradMitigator": ("gcl", NO_PIXELS),
    "GradMitigator + pixels": ("gcl", _keep(None)),
    "GCL": ("gcl", ()),
    "planned": ("", ()),  # what `bolus plan` composes: two views, patient, position and phase
}
ABLATIONS: dict[str, Arm] = {
    "GCL, K = 0.1": ("gcl", _keep(0.1)),
    "GCL, K = 0.6": ("gcl", _keep(0.6)),
    "position": ("gcl_position", ()),
    "GradMitigator at the features": ("gcl", (*NO_PIXELS, "combiner.scope=features")),
}
PAIRS = (
    *((arm, RANDOM) for arm in ARMS),
    ("GCL", "simclr"),
    ("GCL", "pcl"),
    ("GradMitigator", "sum"),
    ("GradMitigator", "PCGrad"),
    ("PCGrad", "sum"),
    ("sum", "pcl"),
    ("sum", "patient"),
    ("sum", "phase"),
    ("GradMitigator", "pcl"),
    ("GradMitigator + pixels", "GradMitigator"),
    ("GCL", "GradMitigator + pixels"),
    ("GCL", "GradMitigator"),
    *(("planned", arm) for arm in ("simclr", "pcl", "patient", "phase", "sum", "GradMitigator", "GCL")),
)
SAME_SEED = (
    ("GCL, K = 0.1", "GCL"),
    ("GCL, K = 0.6", "GCL"),
    ("position", "pcl"),
    ("GradMitigator at the features", "GradMitigator"),
)

# The same for every arm, fixed beforehand.
COMMON = (
    "optimizer={kind: adamw, lr: 0.001, weight_decay: 0.0001}",
    "schedule={kind: cosine, warmup_epochs: 1, final: 0.001}",
    "images.unit=slice",
    "images.augment={preset: mri}",
    "sampling.batch_size=32",
    "sampling.partners=1",
    "training.epochs=100000",
    "training.health_epochs=null",
    "combiner.conflict_steps=10",
)
TIERS: dict[str, dict[str, Any]] = {
    "small": {"keys": ("images.size=64",), "backbone": "unet8", "dim": 128, "steps": 450, "segment": 300, "lr": 0.005},
    "full": {
        "keys": ("images.size=128", "training.precision=bf16"),
        "backbone": "unet48",
        "dim": 512,
        "steps": 9000,
        "segment": 3000,
        "lr": 0.001,
    },
}
ROLES = {name: name for name in ("image", "mask", "patient", "phase")} | {"order": "slice", "slice_position": "pos"}


def prepare(work: Path, cell: Cell) -> Path:
    """The crops and their table, made once, as a cohort that a run can point to."""
    path = work / "cohort.yaml"
    if path.is_file():
        return path
    table = pd.read_csv(DATA / "acdc" / "meta.csv")
    table = table[table["patient"] != "patient076"]  # the images of patient074 under another name
    for column in ("image", "mask"):
        for name in table[column]:
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            Image.open(DATA / "acdc" / name).crop((32, 32, 160, 160)).save(work / name)
    table.to_csv(work / "acdc.csv", index=False)
    Cohort.open(work / "acdc.csv", roles=ROLES, split={"val": 0.1, "test": 0.4}).save(path)
    return path


def settings(tier: str, arm: str) -> dict[str, Any]:
    """A hash of what a cell was made with, so that cells of other settings are not taken for these."""
    made = [COMMON, TIERS[tier], (ARMS | ABLATIONS).get(arm)]
    return {"settings": hashlib.blake2b(json.dumps(made).encode(), digest_size=4).hexdigest()}


def sizes(recipe: Recipe, work: Path, cell: Cell) -> list[str]:
    """The encoder, heads and steps of a tier."""
    return sizes_of(recipe, TIERS[cell["tier"]])


def sizes_of(recipe: Recipe, spec: Mapping[str, Any]) -> list[str]:
    """The same of a tier's `backbone`, `dim` and `steps`."""
    heads = [name for name, each in recipe.objectives.items() if each.kind == "contrast"]
    dims = [f"objectives.{name}.dim={spec['dim']}" for name in heads]
    return [f"encoder.backbone={spec['backbone']}", *dims, f"training.max_steps={spec['steps']}"]


def segment(work: Path, cell: Cell) -> dict[str, Any]:
    """One cell of few-shot segmentation: the overlap of every test volume, in the order of their codes."""
    arm, seed = cell["arm"], cell["seed"]
    judged = open_encoder(work / STUDY.folder({**cell, "arm": "simclr"} if arm == RANDOM else cell))
    encoder = twin(judged, seed) if arm == RANDOM else judged.encoder
    tier = TIERS[cell["tier"]]
    spec = SegmentSpec(steps=tier["segment"], lr=tier["lr"])
    return few_shot(judged, encoder, Cohort.open(prepare(work, cell)), work / "cache", cell["labelled"], seed, spec)


def few_shot(
    judged: Judged,
    encoder: Any,
    cohort: Cohort,
    cache: Path,
    labelled: int,
    draw: int,
    spec: SegmentSpec,
    side: str = "test",
) -> dict[str, Any]:
    """Train on the slices of so many patients of a draw, and say how the masks of a side's volumes overlap.

    Args:
        judged: what states the preprocessing.
        encoder: to train on.
        cohort: slices with masks.
        cache: of pixels.
        labelled: training patients with masks.
        draw: which, and the seed of the training.
        spec: how it is trained.
        side: whose volumes are judged.
    """
    samples = samples_of(judged, cohort)
    store = open_store(judged, cohort, cache=cache)
    encoder = one_encoder(encoder, wanted_by="a mask")
    volumes, patients = volume_codes(cohort)[0], cohort.encoded("patient")
    drawn = draw_labelled(patients[cohort.split == "train"], labelled, seed=0, repeat=draw)
    positions = np.flatnonzero(np.isin(patients, drawn))
    masks = [read_labels(cohort.root / name) for name in cohort.table["mask"]]
    contract = store.preprocessing
    labels = {int(row): to_square(masks[row], fit=contract.fit, size=contract.cached_size) for row in positions}
    found = fit_segmenter(
        encoder.to(device()), store, samples, labels, positions, num_classes=len(CLASSES) + 1, spec=spec, seed=draw
    )
    held = np.flatnonzero(cohort.split == side)
    guessed = from_square(found.predict(held), masks[0].shape, fit=contract.fit)
    dice, distance, pairs, order = [], [], [], cohort.encoded("slice_position")
    for volume in np.unique(volumes[held]):
        here = np.flatnonzero(volumes[held] == volume)
        here = here[np.argsort(order[held[here]])]
        one, truth = guessed[here], np.stack([masks[row] for row in held[here]])
        pairs.append((one, truth))
        dice.append(volume_dice(one, truth, len(CLASSES) + 1))
        distance.append(volume_hd95(one, truth, len(CLASSES) + 1))
    return {
        "dice": np.round(dice, 4).tolist(),
        "hd95": [[None if np.isnan(value) else round(float(value), 2) for value in row] for row in distance],
        "dice_pcl": round(pooled_dice([one for one, _ in pairs], [truth for _, truth in pairs], len(CLASSES) + 1), 4),
        "slices": len(positions),
    }


def test_patients(work: Path) -> Array:
    """The patient of every test volume, as a code, in the order of the volumes."""
    cohort = Cohort.open(prepare(work, {}))
    volumes, test = volume_codes(cohort)[0], cohort.split == "test"
    _, first = np.unique(volumes[test], return_index=True)
    return np.unique(cohort.encoded("patient")[test][first], return_inverse=True)[1]


def mean_over_classes(table: Array) -> Array:
    """Volumes x classes: the mean over the classes that have a value; NaN where none has."""
    known = np.isfinite(table)
    means: Array = np.full(len(table), np.nan)
    np.divide(np.where(known, table, 0).sum(1), known.sum(1), out=means, where=known.any(1))
    return means


def mean_of(y: Array, p: Array, weights: Any = None) -> Any:
    """The mean of what stands for each volume, where it is known; the truth has already gone into it."""
    known = np.isfinite(p)
    if not known.any():
        return np.nan
    weights = np.ones(len(p)) if weights is None else weights
    return (weights[..., known] * p[known]).sum(-1) / weights[..., known].sum(-1)


def compare(finished: Finished) -> Lines:
    """Every arm on the same test volumes at every M, on the seeds of which all main arms are done."""
    found = {
        (line["cell"]["arm"], line["cell"]["seed"], line["cell"]["labelled"]): line["result"]
        for line in finished.lines(SEGMENTED)
    }
    patients, lines = test_patients(finished.work), []
    main_arms = SEGMENTED.arms
    for labelled in LABELLED:
        seeds = [s for s in finished.study.seeds if all((arm, s, labelled) in found for arm in main_arms)]
        if not seeds:
            continue
        every = {arm: [found[arm, s, labelled] for s in seeds] for arm in main_arms}
        every |= {arm: [found[arm, 0, labelled]] for arm in ABLATIONS if (arm, 0, labelled) in found and 0 in seeds}
        for metric, of in (("dice", "dice"), *((f"dice, {name}", "dice") for name in CLASSES), ("hd95_voxels", "hd95")):
            column = CLASSES.index(metric.removeprefix("dice, ")) if ", " in metric else None
            values = {}
            for arm, results in every.items():
                tables = [np.array(result[of], float) for result in results]
                values[arm] = [mean_over_classes(t) if column is None else t[:, column] for t in tables]
            facts = {"target": f"{labelled} patients", "labelled": labelled, "metric": metric}
            compared = compare_arms(
                facts,
                mean_of,
                np.zeros(len(patients)),
                patients,
                values,
                pairs=PAIRS if metric == "dice" else (),
                same_seed=SAME_SEED if metric == "dice" else (),
            )
            if metric == "dice":
                for line in compared:
                    if "arm" in line:
                        line["dice_pcl"] = round(float(np.mean([r["dice_pcl"] for r in every[line["arm"]]])), 4)
            if metric == "hd95_voxels":
                for line in compared:  # a class that is not predicted at all has no distance
                    line["undefined"] = round(
                        float(np.mean([np.isnan(np.array(r[of], float)) for r in every[line["arm"]]])), 4
                    )
            lines += compared
    return lines


def looked(finished: Finished) -> dict[str, Any]:
    """How the objectives of every training stood to each other."""
    lines = finished.lines(finished.study.grids[0])
    return {
        "conflicts": {
            f"{line['cell']['arm']}, seed {line['cell']['seed']}": line["result"]["conflicts"]
            for line in lines
            if line["result"]["conflicts"]
        }
    }


SEGMENTED = Grid(
    "gcl-segment-cells{tier}.jsonl",
    segment,
    arms=(RANDOM, *ARMS),
    ablations=tuple(ABLATIONS),
    parts=tuple({"labelled": labelled} for labelled in LABELLED),
)
STUDY = Study(
    name="acdc",
    cells="gcl-cells{tier}.jsonl",
    result="gcl{tier}.json",
    arms=ARMS | ABLATIONS,
    ablations=tuple(ABLATIONS),
    keys=COMMON,
    tiers=TIERS,
    prepare=prepare,
    further=sizes,
    stamp=settings,
    noted=lambda run: {"conflicts": conflicts_of(run)},
    then=(SEGMENTED,),
    compare=compare,
    more=looked,
)

if __name__ == "__main__":
    main(__doc__, STUDY, work="runs/benchmark-gcl")
