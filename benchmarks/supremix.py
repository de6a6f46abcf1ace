"""SupReMix against SupCon, SimCLR and plain regression on the age of fundus photographs, at equal encoder passes.

    python benchmarks/supremix.py                 # r18w32 at 64 pixels, for a CPU
    python benchmarks/supremix.py --tier full     # ResNet-50 at 224 pixels, for a GPU

Cohort: odir by `group`, age 1 (a missing code) left out, 40 % of the patients for testing. Cells are trainings, then
fine-tunings of what they gave; finished ones are skipped. Every arm sees every training image twice an epoch, whichever
views and partners it has. Arms are judged on the same test patients by the MAE in years of a ridge regression on frozen
embeddings, its strength chosen on validation patients, and of the whole encoder fine-tuned, its best epoch chosen on
validation patients. Estimates are means over seeds; intervals are over patients, differences on the same draws, decided
where the interval excludes 0 and every seed points the same way. Keys were fixed beforehand and are the same for every
arm. The modes of SupReMix are ablated on one seed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bolus.data.cohort.cohort import Cohort
from bolus.embedding import embed_samples, open_encoder, open_store, samples_of
from bolus.evaluation.probing.finetune import FinetuneSpec, fit_finetuned, mild
from bolus.evaluation.probing.fitting import Samples, fit_linear, fit_majority
from bolus.evaluation.statistics.arms import compare_arms
from bolus.evaluation.statistics.metrics import METRICS
from bolus.provenance import machine, versions
from bolus.training.loop import pretrain
from grid import DATA, RESULTS, condense, read_cells, run_grid

SEEDS = (0, 1, 2)
RANDOM = "random init"
OFF = {name: f"objectives.supremix.{name}=false" for name in ("mix_negatives", "mix_positives", "distance_weight")}

ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "supremix": ("supremix", ()),
    "supcon": ("supremix", tuple(OFF.values())),
    "simclr": ("simclr", ()),
    "regression": ("supervised", ("images.views=2",)),
}
ABLATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "supcon + mixed negatives": ("supremix", (OFF["mix_positives"], OFF["distance_weight"])),
    "supcon + mixed positives": ("supremix", (OFF["mix_negatives"], OFF["distance_weight"])),
    "supremix, no weight": ("supremix", (OFF["distance_weight"],)),
    "supremix, near partners": ("supremix", ("sampling.partners=2",)),
}

PAIRS = (
    ("supremix", "supcon"),
    ("supremix", "simclr"),
    ("supremix", "regression"),
    ("regression", "simclr"),
    *((arm, RANDOM) for arm in ARMS),
)

# The same for every arm.
COMMON = (
    "encoder.in_channels=3",
    "images.augment={preset: fundus}",
    "sampling={batch_size: 64, partners: 0}",
    "optimizer={kind: adamw, lr: 0.001, weight_decay: 0.0001}",
    "schedule={kind: cosine, warmup_epochs: 1, final: 0.001}",
    "training.health_epochs=null",
)
TIERS: dict[str, dict[str, Any]] = {
    "small": {"keys": ("encoder.backbone=r18w32", "images.size=64"), "epochs": 15, "finetune": 10},
    "full": {
        "keys": ("encoder.backbone=resnet50", "images.size=224", "training.precision=bf16"),
        "epochs": 100,
        "finetune": 30,
    },
}


def odir() -> Cohort:
    """Odir by group with the age as the score."""
    roles = {"image": "image", "patient": "group", "laterality": "eye", "score:age": "age"}
    missing = {"age": ["1"]}
    return Cohort.open(DATA / "odir" / "meta.csv", roles=roles, missing=missing, split={"val": 0.1, "test": 0.4})


def prepared(work: Path) -> Path:
    """The cohort as a file that a run can point to."""
    work.mkdir(parents=True, exist_ok=True)
    odir().save(work / "cohort.yaml")
    return work / "cohort.yaml"


def run_folder(work: Path, arm: str, seed: int) -> Path:
    """Where a cell's run lies."""
    return work / f"{arm.replace(', ', '-').replace(' + ', '-').replace(' ', '-')}-{seed}"


def train(work: Path, tier: str, arm: str, seed: int) -> dict[str, Any]:
    """One cell."""
    recipe, changes = (ARMS | ABLATIONS)[arm]
    spec = TIERS[tier]
    cohort = Cohort.open(prepared(work))
    steps = spec["epochs"] * -(-int((cohort.split == "train").sum()) // 64)
    keys = [*COMMON, *spec["keys"], *changes]
    keys += [f"training.epochs={spec['epochs']}", f"training.max_steps={steps}", f"training.seed={seed}"]
    folder = run_folder(work, arm, seed)
    run = pretrain(
        work / "cohort.yaml", recipe=recipe, out=folder, overrides=keys, resume=folder.exists(), cache=work / "cache"
    )
    return condense(run)


def finetune(work: Path, tier: str, arm: str, seed: int) -> dict[str, Any]:
    """One cell: the whole encoder trained on for the age; predictions of the test images stay in the work folder."""
    scratch = arm == RANDOM
    judged, samples, store, part, y, _ = opened(work, "regression" if scratch else arm, seed)
    encoder = judged.random_twin(seed) if scratch else judged.encoder
    assert judged.run is not None
    spec = FinetuneSpec(
        epochs=TIERS[tier]["finetune"], seed=seed, augment=mild(judged.run.recipe.images.augment), lr=0.001
    )
    found = fit_finetuned(
        encoder,
        store,
        samples,
        y,
        train=part["train"],
        val=part["val"],
        held=part["test"],
        task="regress",
        spec=spec,
    )
    folder = work / "finetuned"
    folder.mkdir(exist_ok=True)
    np.save(folder / f"{run_folder(work, arm, seed).name}.npy", found.predictions)
    return {"mae": round(METRICS["regress"]["mae"](y[part["test"]], found.predictions), 4), "notes": list(found.notes)}


def opened(work: Path, arm: str, seed: int) -> tuple[Any, Any, Any, dict[str, NDArray[np.int64]], NDArray[Any], Any]:
    """A run with the cohort it is judged on: positions with an age by split, ages, patients."""
    judged = open_encoder(run_folder(work, arm, seed))
    samples = samples_of(judged, Cohort.open(prepared(work)))
    store = open_store(judged, samples.cohort, cache=work / "cache")
    columns, split = samples.columns(["patient", "score:age"]), samples.cohort.split[samples.first_row]
    usable = np.isfinite(columns["score:age"]) & samples.readable(store.readable)
    part = {side: np.flatnonzero(usable & (split == side)) for side in ("train", "val", "test")}
    return judged, samples, store, part, columns["score:age"], columns["patient"]


def compare(work: Path, tier: str, done: list[dict[str, Any]], tuned: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every arm by the probe and fine-tuned, on the seeds that all main arms have finished."""
    have = {(cell["arm"], cell["seed"]) for cell in done if cell["tier"] == tier}
    seeds = [seed for seed in SEEDS if all((arm, seed) in have for arm in ARMS)]
    if not seeds:
        return []
    probed: dict[str, list[NDArray[Any]]] = {}
    for arm in [*ARMS, *ABLATIONS]:
        for seed in seeds if arm in ARMS else [0] * ((arm, 0) in have):
            judged, samples, store, part, y, patients = opened(work, arm, seed)
            encoders = {arm: judged.encoder}
            if arm == "regression":
                encoders[RANDOM] = judged.random_twin(seed)
            for name, encoder in encoders.items():
                u = {side: embed_samples(encoder, store, samples, rows) for side, rows in part.items()}
                train, val = (Samples(u[side], y[part[side]], patients[part[side]]) for side in ("train", "val"))
                probed.setdefault(name, []).append(fit_linear(train, val, "regress").predict(u["test"]))
    test = part["test"]
    median = fit_majority(y[part["train"]], "regress", 0).predict(np.empty((len(test), 0)))
    probed["median"] = [median] * len(seeds)
    finished = {(cell["arm"], cell["seed"]) for cell in tuned if cell["tier"] == tier}
    tuned_seeds = [seed for seed in seeds if all((arm, seed) in finished for arm in (*ARMS, RANDOM))]
    whole = {
        arm: [np.load(work / "finetuned" / f"{run_folder(work, arm, seed).name}.npy") for seed in tuned_seeds]
        for arm in (*ARMS, RANDOM)
        if tuned_seeds
    }
    facts = {"cohort": "odir", "tier": tier, "target": "age", "split_hash": samples.cohort.split_hash}
    lines = []
    for how, predictions in (("probe", probed), ("fine-tuned", whole)):
        for metric in ("mae", "r2", "gm", "pearson"):
            if predictions:
                lines += compare_arms(
                    {**facts, "how": how, "metric": metric},
                    METRICS["regress"][metric],
                    y[test],
                    patients[test],
                    predictions,
                    pairs=PAIRS if metric == "mae" else (),
                    same_seed=[("supremix", arm) for arm in ABLATIONS] if metric == "mae" else (),
                )
    return lines


def main() -> None:
    """Train what is missing, then compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tier", choices=sorted(TIERS), default="small")
    parser.add_argument("--work", type=Path, default=Path("runs/supremix"))
    parser.add_argument("--compare-only", action="store_true")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="which to train")
    arguments = parser.parse_args()
    tier, work = arguments.tier, arguments.work / arguments.tier
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    cells = [{"tier": tier, "arm": arm, "seed": seed} for seed in seeds for arm in ARMS]
    cells[8:8] = [{"tier": tier, "arm": arm, "seed": 0} for arm in ABLATIONS]
    path, tuned = RESULTS / "supremix-cells.jsonl", RESULTS / "supremix-finetuned.jsonl"
    if not arguments.compare_only:
        run_grid(path, cells, lambda **cell: train(work, **cell))
        cells = [{"tier": tier, "arm": arm, "seed": seed} for seed in seeds for arm in (*ARMS, RANDOM)]
        run_grid(tuned, cells, lambda **cell: finetune(work, **cell))
    record = {"command": f"python {shlex.join(sys.argv)}", "machine": machine(), "versions": versions()}
    done, more = ([line["cell"] for line in read_cells(each)] for each in (path, tuned))
    text = json.dumps({**record, "results": compare(work, tier, done, more)}, indent=1)
    (RESULTS / f"supremix{'' if tier == 'small' else f'-{tier}'}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
