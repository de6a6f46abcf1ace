"""Temporal contrast on chest radiographs of repeat visits, at home and on the other cohort, at equal encoder passes.

    python benchmarks/comprer_chest.py                 # r18w32 at 64 pixels, for a CPU
    python benchmarks/comprer_chest.py --tier full     # ResNet-18 at 224 pixels, for a GPU

Two cohorts, 40 % of the patients of each for testing: nih1000 (abnormal or not) and cxr (COVID-19 or not, 13 images
without any finding among the others; the 84 images of unknown finding are trained on, not judged on). Encoders are
trained on one of them and judged on both by the AUROC of a linear probe on frozen embeddings, fitted on the training
patients of the cohort that is judged on, its strength chosen on validation patients: `of nih1000` and `of cxr` say
where an encoder was trained. Questions are the label of the image and that of the patient's next visit, beside which
stands what the present label alone predicts; and how well an encoder tells the cohorts apart. Cells are trainings of
128 images a step; finished ones are skipped. Estimates are means over seeds; intervals are over patients, differences
on the same draws, decided where the interval excludes 0 and every seed points the same way. Keys were fixed beforehand
and are the same for every arm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bolus.data.cohort.cohort import Cohort
from bolus.evaluation.elsewhere.elsewhere import CohortSide, tell_apart
from bolus.evaluation.probing.future import next_values, present_columns
from bolus.evaluation.statistics.arms import compare_arms
from bolus.evaluation.statistics.metrics import auroc
from bolus.recipe import Recipe
from grid import DATA
from judging import Embedded, embed_runs, parts_of, patients_of_each, probe_all, twin
from study import RANDOM, Arm, Cell, Finished, Lines, Study, main

PRESENT = "present label"
VIEWS = "objectives.views={kind: contrast, relation: views, temperature: 0.1, dim: 128}"
ARMS: dict[str, Arm] = {
    "temporal": ("comprer_temporal", ("images.views=1", "sampling={batch_size: 128, partners: 1}")),
    "simclr": ("simclr", ("images.views=2", "sampling={batch_size: 64, partners: 0}")),
    "both": ("comprer_temporal", ("images.views=2", "sampling={batch_size: 64, partners: 1}", VIEWS)),
}
# Cohort -> its roles, missing codes, the role that says when an image was taken, and its label.
COHORTS: dict[str, dict[str, Any]] = {
    "nih1000": {
        "roles": {"patient": "patient", "visit": "followup", "label:abnormal": "abnormal"},
        "missing": {},
        "when": "visit",
        "label": "abnormal",
    },
    "cxr": {
        "roles": {"patient": "group", "time": "offset", "label:covid": "covid"},
        "missing": {"offset": ["?"]},
        "when": "time",
        "label": "covid",
    },
}


def prepare(work: Path, cell: Cell) -> Path:
    """A cohort as a file that a run can point to, without the columns that play no part."""
    name = str(cell["cohort"])
    spec, folder = COHORTS[name], work / name
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.read_csv(DATA / name / "meta.csv", dtype=str)
    if name == "cxr":
        known = table["finding"].notna() & (table["finding"] != "todo")
        covid = table["finding"].fillna("").str.startswith("COVID-19")
        table["covid"] = np.where(known, np.where(covid, "1", "0"), "")
    table[["image", *spec["roles"].values()]].to_csv(folder / f"{name}.csv", index=False)
    cohort = Cohort.open(
        folder / f"{name}.csv",
        roles=spec["roles"],
        missing=spec["missing"],
        root=str(DATA / name),
        split={"val": 0.1, "test": 0.4},
        namespace=name,
    )
    cohort.save(folder / "cohort.yaml")
    return folder / "cohort.yaml"


def relation(recipe: Recipe, work: Path, cell: Cell) -> list[str]:
    """Another visit of the same patient, by the column that tells visits apart."""
    when = COHORTS[cell["cohort"]]["when"]
    keys = [f"objectives.temporal.relation={{same: patient, differ: {when}}}"]
    return keys if "temporal" in recipe.objectives else []


def compare(finished: Finished) -> Lines:
    """Every arm on both cohorts, on the seeds that all have finished, and the cohorts by every encoder."""
    seeds = finished.seeds()
    if not seeds:
        return []
    runs = {
        (f"{arm} of {home}", seed): finished.run(arm, seed, cohort=home)
        for home in COHORTS
        for arm in ARMS
        for seed in seeds
    }
    both = {
        name: embed_runs(
            runs,
            prepare(finished.work, {"cohort": name}),
            cache=finished.work / "cache",
            besides={f"simclr of {name}": {RANDOM: twin}},
        )
        for name in COHORTS
    }
    facts = {"tier": finished.tier}
    lines = [line for name, found in both.items() for line in judge({**facts, "cohort": name}, found, len(seeds))]
    return lines + sites(both)


def judge(facts: dict[str, Any], found: Embedded, num_seeds: int) -> Lines:
    """Every arm on the present label of a cohort, and on that of the next visit."""
    spec, lines = COHORTS[facts["cohort"]], []
    label, patients = spec["label"], found.patients
    codes = found.cohort.encoded(f"label:{label}")[found.rows]
    now = np.where(codes < 0, np.nan, codes)
    later = next_values(now, patients, found.cohort.encoded(spec["when"])[found.rows], several="any")
    for question, y in ((label, now), (f"next {label}", later)):
        parts = parts_of(np.isfinite(y), found.split)
        test, vectors = parts[2], dict(found.vectors)
        if question.startswith("next"):
            vectors[PRESENT] = [present_columns(now, found.split == "train", num_classes=2)] * num_seeds
        numbers = patients_of_each(y[test], patients[test])
        others = [arm for arm in vectors if arm not in (RANDOM, PRESENT)]
        pairs = [(arm, RANDOM) for arm in others]
        pairs += [(f"{arm} of {home}", f"simclr of {home}") for home in COHORTS for arm in ("temporal", "both")]
        lines += compare_arms(
            {**facts, "task": "classify", "target": question, "metric": "auroc"}
            | {"prevalence": round(float(y[test].mean()), 3), "num_positive_patients": numbers[1]}
            | {"split_hash": found.cohort.split_hash},
            auroc,
            y[test],
            patients[test],
            probe_all(vectors, y, patients, parts, "classify"),
            pairs=[*pairs, *((arm, PRESENT) for arm in others)],
            enough=min(numbers),
        )
    return lines


def sites(both: dict[str, Embedded]) -> Lines:
    """How well each encoder of the first seed tells the cohorts apart."""
    here, there = (
        CohortSide(name, {arm: x[0] for arm, x in found.vectors.items()}, found.cohort.patients.to_numpy()[found.rows],
             found.split)
        for name, found in both.items()
    )  # fmt: skip
    facts = {"task": "site", "target": "nih1000 or cxr", "metric": "auroc", "seeds": 1}
    return [
        {
            **facts,
            "arm": result.encoder,
            "estimate": result.estimate,
            "ci_low": result.ci_low,
            "ci_high": result.ci_high,
        }
        | {"num_samples": result.num_samples, "num_patients": result.num_patients}
        for result in tell_apart(here, there).results
        if result.metric == "auroc" and not result.baseline
    ]


STUDY = Study(
    name="chest",
    cells="comprer-chest-cells.jsonl",
    result="comprer-chest{tier}.json",
    arms=ARMS,
    keys=(
        "optimizer={kind: adamw, lr: 0.001, weight_decay: 0.0001}",
        "schedule={kind: cosine, warmup_epochs: 1, final: 0.001}",
        "training={epochs: 1000, health_epochs: null}",
    ),
    further=relation,
    tiers={
        "small": {"keys": ("encoder.backbone=r18w32", "images.size=64", "training.max_steps=150")},
        "full": {
            "keys": (
                "encoder.backbone=resnet18",
                "images.size=224",
                "training.precision=bf16",
                "training.max_steps=2000",
            )
        },
    },
    parts=tuple({"cohort": name} for name in COHORTS),
    prepare=prepare,
    compare=compare,
)

if __name__ == "__main__":
    main(__doc__, STUDY, work="runs/comprer_chest")
