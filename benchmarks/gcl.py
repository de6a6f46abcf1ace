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

import argparse
import hashlib
import json
import shlex
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.volumes import volume_codes
from bolus.data.readers.masks import from_square, read_labels, to_square
from bolus.embedding import open_encoder, open_store, samples_of
from bolus.encoders.modalities import one_encoder
from bolus.evaluation.segmentation.overlap import pooled_dice, volume_dice, volume_hd95
from bolus.evaluation.segmentation.segmenter import SegmentSpec, draw_labelled, fit_segmenter
from bolus.evaluation.statistics.arms import compare_arms
from bolus.planning.planner import plan
from bolus.provenance import machine, versions
from bolus.recipe import Recipe
from bolus.run import Run
from bolus.training.loop import pretrain
from grid import DATA, RESULTS, condense, read_cells, run_grid

SEEDS, LABELLED, RANDOM, CLASSES = (0, 1, 2), (1, 2, 6, 10), "random init", ("RV", "myocardium", "LV")
NO_PIXELS = ("objectives.patient_pixel=null", "objectives.position_pixel=null", "objectives.phase_pixel=null")
PIXELS = ("patient_pixel", "position_pixel", "phase_pixel")


def _keep(share: float | None) -> tuple[str, ...]:
    return tuple(f"objectives.{name}.keep={'null' if share is None else share}" for name in PIXELS)


ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
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
ABLATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
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
ROLES = {
    "image": "image",
    "mask": "mask",
    "patient": "patient",
    "phase": "phase",
    "order": "slice",
    "slice_position": "pos",
}


def prepared(work: Path) -> Path:
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


def settings(tier: str, arm: str) -> str:
    """A hash of what a cell was made with, so that cells of other settings are not taken for these."""
    made = [COMMON, TIERS[tier], (ARMS | ABLATIONS).get(arm)]
    return hashlib.blake2b(json.dumps(made).encode(), digest_size=4).hexdigest()


def run_folder(work: Path, arm: str, seed: int) -> Path:
    """Where a cell's run lies."""
    name = arm.replace(" + ", "-").replace(", K = ", "-").replace(" ", "-")
    return work / f"{name}-{seed}"


def train(work: Path, tier: str, arm: str, seed: int, settings: str) -> dict[str, Any]:
    """One cell of pretraining."""
    name, changes = (ARMS | ABLATIONS)[arm]
    spec = TIERS[tier]
    recipe = Recipe.load(name) if name else plan(Cohort.open(prepared(work))).recipe
    assert recipe is not None
    named = [name for name, each in recipe.objectives.items() if each.kind == "contrast"]
    keys = [*COMMON, *spec["keys"], *changes, f"encoder.backbone={spec['backbone']}"]
    keys += [f"objectives.{name}.dim={spec['dim']}" for name in named]
    keys += [f"training.max_steps={spec['steps']}", f"training.seed={seed}"]
    folder = run_folder(work, arm, seed)
    run = pretrain(
        prepared(work), recipe=recipe, out=folder, overrides=keys, resume=folder.exists(), cache=work / "cache"
    )
    return {**condense(run), "conflicts": conflicts(run)}


def conflicts(run: Run) -> dict[str, Any]:
    """Cosines of the objectives' gradients: mean over the training, and share of looks below 0, for each pair."""
    lines = [line for line in run.metrics() if line["kind"] == "conflicts"]
    if not lines:
        return {}
    names, cosines = lines[0]["objectives"], np.array([line["cosines"] for line in lines], float)
    third, found = -(-len(lines) // 3), {}
    for a, b in combinations(range(len(names)), 2):
        met = cosines[:, a, b]
        known = np.isfinite(met)
        parts = {
            "cosine": met[known],
            "first third": met[:third][known[:third]],
            "last third": met[-third:][known[-third:]],
        }
        parts["below 0"] = (met[known] < 0).astype(float)
        found[f"{names[a]} ~ {names[b]}"] = {
            name: round(float(part.mean()), 3) if len(part) else None for name, part in parts.items()
        }
    norms = np.array([line["norms"] for line in lines], float).mean(0)
    goals = {branch: np.round(values, 3).tolist() for branch, values in lines[-1]["goals"].items()}
    return {
        "looks": len(lines),
        "norms": dict(zip(names, np.round(norms, 4).tolist(), strict=True)),
        "pairs": found,
        "goals": goals,
    }


def segment(work: Path, tier: str, arm: str, seed: int, labelled: int, settings: str) -> dict[str, Any]:
    """One cell of few-shot segmentation: the overlap of every test volume, in the order of their codes."""
    judged = open_encoder(run_folder(work, "simclr" if arm == RANDOM else arm, seed))
    cohort = Cohort.open(prepared(work))
    samples = samples_of(judged, cohort)
    store = open_store(judged, cohort, cache=work / "cache")
    twin = judged.random_twin(seed) if arm == RANDOM else judged.encoder
    encoder = one_encoder(twin, wanted_by="a mask")
    volumes, patients = volume_codes(cohort)[0], cohort.encoded("patient")
    drawn = draw_labelled(patients[cohort.split == "train"], labelled, seed=0, repeat=seed)
    positions = np.flatnonzero(np.isin(patients, drawn))
    masks = [read_labels(work / name) for name in cohort.table["mask"]]
    contract = store.preprocessing
    labels = {int(row): to_square(masks[row], fit=contract.fit, size=contract.cached_size) for row in positions}
    spec = SegmentSpec(steps=TIERS[tier]["segment"], lr=TIERS[tier]["lr"])
    found = fit_segmenter(
        encoder, store, samples, labels, positions, num_classes=len(CLASSES) + 1, spec=spec, seed=seed
    )
    test = np.flatnonzero(cohort.split == "test")
    guessed = from_square(found.predict(test), masks[0].shape, fit=contract.fit)
    dice, distance, pairs, order = [], [], [], cohort.encoded("slice_position")
    for volume in np.unique(volumes[test]):
        here = np.flatnonzero(volumes[test] == volume)
        here = here[np.argsort(order[test[here]])]
        one, truth = guessed[here], np.stack([masks[row] for row in test[here]])
        pairs.append((one, truth))
        dice.append(volume_dice(one, truth, len(CLASSES) + 1))
        distance.append(volume_hd95(one, truth, len(CLASSES) + 1))
    return {
        "dice": np.round(dice, 4).tolist(),
        "hd95": [[None if np.isnan(value) else round(float(value), 2) for value in row] for row in distance],
        "dice_pcl": round(pooled_dice([one for one, _ in pairs], [truth for _, truth in pairs], len(CLASSES) + 1), 4),
        "slices": len(positions),
    }


def test_patients(work: Path) -> np.ndarray[Any, Any]:
    """The patient of every test volume, as a code, in the order of the volumes."""
    cohort = Cohort.open(prepared(work))
    volumes, test = volume_codes(cohort)[0], cohort.split == "test"
    _, first = np.unique(volumes[test], return_index=True)
    return np.unique(cohort.encoded("patient")[test][first], return_inverse=True)[1]


def mean_over_classes(table: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Volumes x classes: the mean over the classes that have a value; NaN where none has."""
    known = np.isfinite(table)
    means: np.ndarray[Any, Any] = np.full(len(table), np.nan)
    np.divide(np.where(known, table, 0).sum(1), known.sum(1), out=means, where=known.any(1))
    return means


def mean_of(y: np.ndarray[Any, Any], p: np.ndarray[Any, Any], weights: Any = None) -> Any:
    """The mean of what stands for each volume, where it is known; the truth has already gone into it."""
    known = np.isfinite(p)
    if not known.any():
        return np.nan
    weights = np.ones(len(p)) if weights is None else weights
    return (weights[..., known] * p[known]).sum(-1) / weights[..., known].sum(-1)


def compare(work: Path, tier: str, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every arm on the same test volumes at every M, on the seeds of which all main arms are done."""
    found = {
        (line["cell"]["arm"], line["cell"]["seed"], line["cell"]["labelled"]): line["result"]
        for line in cells
        if line["cell"]["tier"] == tier and line["cell"]["settings"] == settings(tier, line["cell"]["arm"])
    }
    patients, lines = test_patients(work), []
    for labelled in LABELLED:
        main = [RANDOM, *ARMS]
        seeds = [s for s in SEEDS if all((arm, s, labelled) in found for arm in main)]
        if not seeds:
            continue
        every = {arm: [found[arm, s, labelled] for s in seeds] for arm in main}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=TIERS, default="small")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-gcl"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--arms", nargs="+", default=None, help="these alone, ablations too")
    parser.add_argument("--compare-only", action="store_true", help="judge the cells that are done")
    args = parser.parse_args()
    work, tier = args.work / args.tier, args.tier
    suffix = "" if tier == "small" else f"-{tier}"
    trained, segmented = RESULTS / f"gcl-cells{suffix}.jsonl", RESULTS / f"gcl-segment-cells{suffix}.jsonl"
    if not args.compare_only:
        for seed in args.seeds:
            ablations = ABLATIONS if seed == 0 else {}
            arms = args.arms or [*ARMS, *ablations]
            cells = [{"tier": tier, "arm": arm, "seed": seed, "settings": settings(tier, arm)} for arm in arms]
            run_grid(trained, cells, lambda **cell: train(work, **cell))
            arms = args.arms or [RANDOM, *ARMS, *ablations]
            made = [{"tier": tier, "arm": arm, "seed": seed, "settings": settings(tier, arm)} for arm in arms]
            cells = [{**cell, "labelled": m} for cell in made for m in LABELLED]
            run_grid(segmented, cells, lambda **cell: segment(work, **cell))
    results = compare(work, tier, read_cells(segmented))
    if results:
        looked = {
            f"{line['cell']['arm']}, seed {line['cell']['seed']}": line["result"]["conflicts"]
            for line in read_cells(trained)
            if line["cell"]["tier"] == tier and line["result"]["conflicts"]
        }
        facts = {"command": f"python {shlex.join(sys.argv)}", "machine": machine(), "versions": versions()}
        text = json.dumps({**facts, "results": results, "conflicts": looked}, indent=1)
        (RESULTS / f"gcl{suffix}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
