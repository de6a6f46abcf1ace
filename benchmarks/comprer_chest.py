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

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bolus.data.cohort.cohort import Cohort
from bolus.embedding import embed_samples, open_encoder, open_store, samples_of
from bolus.evaluation.probing.elsewhere import Side, tell_apart
from bolus.evaluation.probing.fitting import fit_linear
from bolus.evaluation.probing.future import next_values, present_columns
from bolus.evaluation.statistics.arms import compare_arms
from bolus.evaluation.statistics.metrics import auroc
from bolus.provenance import machine, versions
from bolus.training.loop import pretrain
from grid import DATA, RESULTS, condense, read_cells, run_grid, sides

SEEDS = (0, 1, 2)
RANDOM, PRESENT = "random init", "present label"
VIEWS = "objectives.views={kind: contrast, relation: views, temperature: 0.1, dim: 128}"
ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "temporal": ("comprer_temporal", ("images.views=1", "sampling={batch_size: 128, partners: 1}")),
    "simclr": ("simclr", ("images.views=2", "sampling={batch_size: 64, partners: 0}")),
    "both": ("comprer_temporal", ("images.views=2", "sampling={batch_size: 64, partners: 1}", VIEWS)),
}
# Cohort -> where its table lies, its roles, missing codes, and the role that says when an image was taken.
COHORTS: dict[str, dict[str, Any]] = {
    "nih1000": {
        "roles": {"patient": "patient", "visit": "followup", "label:abnormal": "abnormal"},
        "missing": {},
        "when": "visit",
    },
    "cxr": {
        "roles": {"patient": "group", "time": "offset", "label:covid": "covid"},
        "missing": {"offset": ["?"]},
        "when": "time",
    },
}

# The same for every arm.
COMMON = (
    "optimizer={kind: adamw, lr: 0.001, weight_decay: 0.0001}",
    "schedule={kind: cosine, warmup_epochs: 1, final: 0.001}",
    "training={epochs: 1000, health_epochs: null}",
)
TIERS: dict[str, dict[str, Any]] = {
    "small": {"keys": ("encoder.backbone=r18w32", "images.size=64"), "steps": 150},
    "full": {"keys": ("encoder.backbone=resnet18", "images.size=224", "training.precision=bf16"), "steps": 2000},
}


def prepared(work: Path, name: str) -> Path:
    """A cohort as a file that a run can point to, without the columns that play no part."""
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


def run_folder(work: Path, cohort: str, arm: str, seed: int) -> Path:
    """Where a cell's run lies."""
    return work / f"{cohort}-{arm}-{seed}"


def train(work: Path, tier: str, cohort: str, arm: str, seed: int) -> dict[str, Any]:
    """One cell."""
    recipe, changes = ARMS[arm]
    spec = TIERS[tier]
    keys = [*COMMON, *spec["keys"], *changes, f"training.max_steps={spec['steps']}", f"training.seed={seed}"]
    if arm != "simclr":
        keys.append(f"objectives.temporal.relation={{same: patient, differ: {COHORTS[cohort]['when']}}}")
    folder = run_folder(work, cohort, arm, seed)
    return condense(
        pretrain(
            prepared(work, cohort),
            recipe=recipe,
            out=folder,
            overrides=keys,
            resume=folder.exists(),
            cache=work / "cache",
            quiet=True,
        )
    )


def embed_cohort(work: Path, name: str, seeds: list[int]) -> tuple[Cohort, NDArray[np.int64], dict[str, list[Any]]]:
    """The cohort, rows that can be read, and the embeddings of every arm of either cohort and of random-init twins."""
    found: dict[str, list[NDArray[Any]]] = {}
    for home in COHORTS:
        for arm in ARMS:
            for seed in seeds:
                judged = open_encoder(run_folder(work, home, arm, seed))
                samples = samples_of(judged, Cohort.open(prepared(work, name)))
                store = open_store(judged, samples.cohort, cache=work / "cache")
                rows = np.flatnonzero(store.readable)  # an image is a row
                encoders = {f"{arm} of {home}": judged.encoder}
                if arm == "simclr" and home == name:
                    encoders[RANDOM] = judged.random_twin(seed)
                for encoder, weights in encoders.items():
                    found.setdefault(encoder, []).append(embed_samples(weights, store, samples, rows))
    return samples.cohort, rows, found


def compare(work: Path, tier: str, done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every arm on both cohorts, on the seeds that all have finished."""
    have = {(cell["cohort"], cell["arm"], cell["seed"]) for cell in done if cell["tier"] == tier}
    seeds = [seed for seed in SEEDS if all((cohort, arm, seed) in have for cohort in COHORTS for arm in ARMS)]
    if not seeds:
        return []
    both = {name: embed_cohort(work, name, seeds) for name in COHORTS}
    lines = []
    for name, (cohort, rows, embeddings) in both.items():
        role = next(role for role in COHORTS[name]["roles"] if role.startswith("label:"))
        now = np.where(cohort.encoded(role) < 0, np.nan, cohort.encoded(role))[rows]
        patients, split = cohort.encoded("patient")[rows], cohort.split[rows]
        later = next_values(now, patients, cohort.encoded(COHORTS[name]["when"])[rows], several="any")
        for question, y in ((role.removeprefix("label:"), now), (f"next {role.removeprefix('label:')}", later)):
            known = np.isfinite(y)
            train, val, test = (np.flatnonzero(known & (split == side)) for side in ("train", "val", "test"))
            columns = {arm: list(by_seed) for arm, by_seed in embeddings.items()}
            if question.startswith("next"):
                columns[PRESENT] = [present_columns(now, split == "train", num_classes=2)] * len(seeds)
            predictions = {
                arm: [fit_linear(*sides(x, y, patients, train, val), "classify").predict(x[test]) for x in by_seed]
                for arm, by_seed in columns.items()
            }
            sides = [len(np.unique(patients[test][y[test] == side])) for side in (0, 1)]
            others = [arm for arm in columns if arm not in (RANDOM, PRESENT)]
            pairs = [(arm, RANDOM) for arm in others]
            pairs += [(f"{arm} of {home}", f"simclr of {home}") for home in COHORTS for arm in ("temporal", "both")]
            pairs += [(arm, PRESENT) for arm in others if PRESENT in columns]
            lines += compare_arms(
                {"cohort": name, "tier": tier, "task": "classify", "target": question, "metric": "auroc"}
                | {"prevalence": round(float(y[test].mean()), 3), "num_positive_patients": sides[1]}
                | {"split_hash": cohort.split_hash},
                auroc,
                y[test],
                patients[test],
                predictions,
                pairs=pairs,
                enough=min(sides),
            )
    return lines + sites(both)


def sites(both: dict[str, tuple[Cohort, NDArray[np.int64], dict[str, list[Any]]]]) -> list[dict[str, Any]]:
    """How well each encoder of the first seed tells the cohorts apart."""
    lines = []
    here, there = (
        Side(name, {arm: x[0] for arm, x in found.items()}, cohort.patients.to_numpy()[rows], cohort.split[rows])
        for name, (cohort, rows, found) in both.items()
    )
    for result in tell_apart(here, there).results:
        if result.metric == "auroc" and not result.baseline:
            facts = {"task": "site", "target": "nih1000 or cxr", "metric": "auroc", "arm": result.encoder, "seeds": 1}
            lines.append(
                {**facts, "estimate": result.estimate, "ci_low": result.ci_low, "ci_high": result.ci_high}
                | {"num_samples": result.num_samples, "num_patients": result.num_patients}
            )
    return lines


def main() -> None:
    """Train what is missing, then compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tier", choices=sorted(TIERS), default="small")
    parser.add_argument("--work", type=Path, default=Path("runs/comprer_chest"))
    parser.add_argument("--compare-only", action="store_true")
    arguments = parser.parse_args()
    tier, work = arguments.tier, arguments.work / arguments.tier
    cells = [
        {"tier": tier, "cohort": name, "arm": arm, "seed": seed} for seed in SEEDS for name in COHORTS for arm in ARMS
    ]
    path = RESULTS / "comprer-chest-cells.jsonl"
    if not arguments.compare_only:
        run_grid(path, cells, lambda **cell: train(work, **cell))
    record = {"command": f"python {shlex.join(sys.argv)}", "machine": machine(), "versions": versions()}
    done = [line["cell"] for line in read_cells(path)]
    text = json.dumps({**record, "results": compare(work, tier, done)}, indent=1)
    (RESULTS / f"comprer-chest{'' if tier == 'small' else f'-{tier}'}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
