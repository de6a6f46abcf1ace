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

from pathlib import Path
from typing import Any

import numpy as np

from bolus import FinetuneSpec
from bolus.data.cohort.cohort import Cohort
from bolus.device import device
from bolus.embedding.opening import open_encoder, open_store, samples_of
from bolus.evaluation.probing.finetune import fit_finetuned, mild
from bolus.evaluation.probing.fitting import fit_majority
from bolus.evaluation.statistics.arms import compare_arms
from bolus.evaluation.statistics.metrics import METRICS
from bolus.recipe import Recipe
from grid import DATA
from judging import Vectors, embed_runs, parts_of, probe_all, twin
from study import RANDOM, Arm, Cell, Finished, Grid, Lines, Study, main

OFF = {name: f"objectives.supremix.{name}=false" for name in ("mix_negatives", "mix_positives", "distance_weight")}
ARMS: dict[str, Arm] = {
    "supremix": ("supremix", ()),
    "supcon": ("supremix", tuple(OFF.values())),
    "simclr": ("simclr", ()),
    "regression": ("supervised", ("images.views=2",)),
}
ABLATIONS: dict[str, Arm] = {
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
TIERS: dict[str, dict[str, Any]] = {
    "small": {"keys": ("encoder.backbone=r18w32", "images.size=64"), "epochs": 15, "finetune": 10},
    "full": {
        "keys": ("encoder.backbone=resnet50", "images.size=224", "training.precision=bf16"),
        "epochs": 100,
        "finetune": 30,
    },
}


def prepare(work: Path, cell: Cell) -> Path:
    """Odir by group with the age as the score, as a file that a run can point to."""
    work.mkdir(parents=True, exist_ok=True)
    roles = {"image": "image", "patient": "group", "laterality": "eye", "score:age": "age"}
    split = {"val": 0.1, "test": 0.4}
    Cohort.open(DATA / "odir" / "meta.csv", roles=roles, missing={"age": ["1"]}, split=split).save(work / "cohort.yaml")
    return work / "cohort.yaml"


def length(recipe: Recipe, work: Path, cell: Cell) -> list[str]:
    """Every arm takes the steps that show every training image once an epoch."""
    epochs, split = TIERS[cell["tier"]]["epochs"], Cohort.open(prepare(work, cell)).split
    steps = epochs * -(-int((split == "train").sum()) // 64)
    return [f"training.epochs={epochs}", f"training.max_steps={steps}"]


def finetune(work: Path, cell: Cell) -> dict[str, Any]:
    """One cell: the whole encoder trained on for the age; predictions of the test images stay in the work folder."""
    scratch, seed = cell["arm"] == RANDOM, cell["seed"]
    run = STUDY.folder({**cell, "arm": "regression"} if scratch else cell)
    judged = open_encoder(work / run)
    samples = samples_of(judged, Cohort.open(prepare(work, cell)))
    store = open_store(judged, samples.cohort, cache=work / "cache")
    ages, split = samples.columns(["score:age"])["score:age"], samples.cohort.split[samples.first_row]
    train, val, test = parts_of(np.isfinite(ages) & samples.readable(store.readable), split)
    assert judged.run is not None
    augment = mild(judged.run.recipe.images.augment)
    spec = FinetuneSpec(epochs=TIERS[cell["tier"]]["finetune"], seed=seed, augment=augment, lr=0.001)
    encoder: Any = twin(judged, seed) if scratch else judged.encoder
    encoder.to(device())
    found = fit_finetuned(encoder, store, samples, ages, train=train, val=val, held=test, task="regress", spec=spec)
    path = predictions_path(work, cell)
    path.parent.mkdir(exist_ok=True)
    np.save(path, found.predictions)
    return {"mae": round(METRICS["regress"]["mae"](ages[test], found.predictions), 4), "notes": list(found.notes)}


def predictions_path(work: Path, cell: Cell) -> Path:
    """Where the predictions of a fine-tuned encoder lie."""
    return work / "finetuned" / f"{STUDY.folder(cell)}.npy"


def finetuned(finished: Finished, seeds: list[int]) -> Vectors:
    """Predictions of every fine-tuned arm, on the seeds of which all are done."""
    done = {(line["cell"]["arm"], line["cell"]["seed"]) for line in finished.lines(FINETUNED)}
    common = [seed for seed in seeds if all((arm, seed) in done for arm in FINETUNED.arms)]
    return {
        arm: [np.load(predictions_path(finished.work, {"arm": arm, "seed": seed})) for seed in common]
        for arm in (FINETUNED.arms if common else ())
    }


def compare(finished: Finished) -> Lines:
    """Every arm by the probe and fine-tuned, on the seeds that all main arms have finished."""
    seeds = finished.seeds()
    if not seeds:
        return []
    runs = {(arm, seed): finished.run(arm, seed) for arm, each in finished.comparable().items() for seed in each}
    cohort = prepare(finished.work, {})
    found = embed_runs(runs, cohort, cache=finished.work / "cache", besides={"regression": {RANDOM: twin}})
    ages, patients = found.cohort.encoded("score:age")[found.rows], found.patients
    parts = parts_of(np.isfinite(ages), found.split)
    train, _, test = parts
    probed = probe_all(found.vectors, ages, patients, parts, "regress")
    median = fit_majority(ages[train], "regress", 0).predict(np.empty((len(test), 0)))
    probed["median"] = [median] * len(seeds)
    facts = {"cohort": "odir", "tier": finished.tier, "target": "age", "split_hash": found.cohort.split_hash}
    lines = []
    for how, predictions in (("probe", probed), ("fine-tuned", finetuned(finished, seeds))):
        for metric in ("mae", "r2", "gm", "pearson"):
            if predictions:
                lines += compare_arms(
                    {**facts, "how": how, "metric": metric},
                    METRICS["regress"][metric],
                    ages[test],
                    patients[test],
                    predictions,
                    pairs=PAIRS if metric == "mae" else (),
                    same_seed=[("supremix", arm) for arm in ABLATIONS] if metric == "mae" else (),
                )
    return lines


FINETUNED = Grid("supremix-finetuned.jsonl", finetune, arms=(*ARMS, RANDOM))
STUDY = Study(
    name="odir",
    cells="supremix-cells.jsonl",
    result="supremix{tier}.json",
    arms=ARMS | ABLATIONS,
    ablations=tuple(ABLATIONS),
    keys=(
        "encoder.in_channels=3",
        "images.augment={preset: fundus}",
        "sampling={batch_size: 64, partners: 0}",
        "optimizer={kind: adamw, lr: 0.001, weight_decay: 0.0001}",
        "schedule={kind: cosine, warmup_epochs: 1, final: 0.001}",
        "training.health_epochs=null",
    ),
    tiers=TIERS,
    prepare=prepare,
    further=length,
    then=(FINETUNED,),
    compare=compare,
)

if __name__ == "__main__":
    main(__doc__, STUDY, work="runs/supremix")
