"""COMPRER whole and every part of it, on a synthetic cohort of two modalities, visits and eyes with a hidden disease.

    python benchmarks/comprer_phantom.py                 # r18w32 at 48 pixels, for a CPU
    python benchmarks/comprer_phantom.py --tier full     # ResNet-18 at 128 pixels, for a GPU

The phantom has 300 patients with one to three visits of two sides in two modalities, 40 % of them for testing; what is
measured are age and lesion load (`score:severity`), which the hidden disease drives with errors. Cells are trainings;
finished ones are skipped. Every arm sees 128 images a step: comprer and its subsets up to 8 images of 16 patients,
SimCLR 64 images in two views. Comprer and its subsets have an encoder for each modality, SimCLR one for both, and so
has `one encoder`, the bridge between them; each kind has random weights of its own beside it. Arms are judged on test
patients by how well a ridge regression on frozen embeddings recovers the hidden disease (R2, strength chosen on
validation patients) and by Top-K retrieval of the same participant across modality, side and visit; both images of a
pair share what else structures a patient, of which an embedding may know without knowing who it is. Estimates are means
over seeds; intervals are over patients, differences on the same draws, decided where the interval excludes 0 and every
seed points the same way. The phantom is one draw.
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
import torch
import yaml
from numpy.typing import NDArray

from bolus.data.cohort.cohort import Cohort
from bolus.embedding import embed_samples, open_encoder, open_store, samples_of
from bolus.evaluation.probing.fitting import fit_linear
from bolus.evaluation.retrieval.ranking import ranks
from bolus.evaluation.retrieval.sides import find_sides
from bolus.evaluation.statistics.arms import compare_arms
from bolus.evaluation.statistics.metrics import METRICS
from bolus.phantom import make_phantom
from bolus.provenance import machine, versions
from bolus.training.loop import pretrain
from grid import RESULTS, condense, read_cells, run_grid, sides

SEEDS = (0, 1, 2)
RANDOM, SHARED = "random init", "random init, one encoder"
LOSSES = ("modality", "temporal", "bilateral", "measures", "reconstruction")


def _drop(*losses: str) -> tuple[str, ...]:
    return tuple(f"objectives.{name}=null" for name in losses)


ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "comprer": ("comprer", ()),
    "one encoder": ("comprer", ("encoders=shared",)),
    "simclr": ("simclr", ("sampling={batch_size: 64, partners: 0}",)),
    **{f"without {name}": ("comprer", _drop(name)) for name in LOSSES},
    **{f"{name} only": ("comprer", _drop(*(other for other in LOSSES if other != name))) for name in LOSSES},
}
PAIRS = (
    *(("comprer", arm) for arm in [RANDOM, *list(ARMS)[1:]]),
    ("one encoder", "simclr"),
    ("one encoder", SHARED),
    ("simclr", SHARED),
)

# The same for every arm.
COMMON = (
    "images.augment={preset: mri}",
    "optimizer={kind: adamw, lr: 0.001, weight_decay: 0.0001}",
    "schedule={kind: cosine, warmup_epochs: 1, final: 0.001}",
    "training={epochs: 1000, health_epochs: null}",
)
TIERS: dict[str, dict[str, Any]] = {
    "small": {"keys": ("encoder={backbone: r18w32}", "images.size=48"), "pixels": 64, "steps": 200, "channels": 64},
    "full": {
        "keys": ("encoder={backbone: resnet18}", "images.size=128"),
        "pixels": 128,
        "steps": 2000,
        "channels": 512,
    },
}


def prepared(work: Path, tier: str) -> Path:
    """The phantom as a file that a run can point to."""
    path = work / "phantom" / "cohort.yaml"
    if not path.is_file():
        make_phantom(path.parent, num_patients=300, size=TIERS[tier]["pixels"], seed=0)
        spec = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(spec | {"split": {"seed": 0, "val": 0.1, "test": 0.4}}, sort_keys=False))
    return path


def run_folder(work: Path, arm: str, seed: int) -> Path:
    """Where a cell's run lies."""
    return work / f"{arm.replace(' ', '-')}-{seed}"


def train(work: Path, tier: str, arm: str, seed: int) -> dict[str, Any]:
    """One cell."""
    recipe, changes = ARMS[arm]
    spec = TIERS[tier]
    keys = [*COMMON, *spec["keys"], f"training.max_steps={spec['steps']}", f"training.seed={seed}"]
    if recipe == "comprer":
        keys += ["sampling={participants: 16, batch_size: 128}"]
        keys += [] if "objectives.reconstruction=null" in changes else [
            f"objectives.reconstruction.channels={spec['channels']}"
        ]  # fmt: skip
    folder = run_folder(work, arm, seed)
    return condense(
        pretrain(
            prepared(work, tier),
            recipe=recipe,
            out=folder,
            overrides=[*keys, *changes],
            resume=folder.exists(),
            cache=work / "cache",
            quiet=True,
        )
    )


def compare(work: Path, tier: str, done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every arm, on the seeds that all main arms have finished."""
    have = {(cell["arm"], cell["seed"]) for cell in done if cell["tier"] == tier}
    seeds = [seed for seed in SEEDS if all((arm, seed) in have for arm in ARMS)]
    if not seeds:
        return []
    found: dict[str, list[NDArray[Any]]] = {}
    for arm in ARMS:
        for seed in seeds:
            judged = open_encoder(run_folder(work, arm, seed))
            samples = samples_of(judged, Cohort.open(prepared(work, tier)))
            store = open_store(judged, samples.cohort, cache=work / "cache")
            positions = np.flatnonzero(samples.readable(store.readable))
            encoders = {arm: judged.encoder}
            if arm in ("comprer", "simclr"):
                encoders[RANDOM if arm == "comprer" else SHARED] = judged.random_twin(seed)
            for name, encoder in encoders.items():
                found.setdefault(name, []).append(embed_samples(encoder, store, samples, positions))
    cohort, rows = samples.cohort, samples.first_row[positions]
    truth = pd.read_csv(work / "phantom" / "truth.csv")["disease_latent"].to_numpy()[rows]
    patients, split = cohort.encoded("patient")[rows], cohort.split[rows]
    train, val, test = (np.flatnonzero(split == side) for side in ("train", "val", "test"))
    facts = {"cohort": "phantom", "tier": tier, "split_hash": cohort.split_hash}
    predictions = {
        arm: [fit_linear(*sides(x, truth, patients, train, val), "regress").predict(x[test]) for x in by_seed]
        for arm, by_seed in found.items()
    }
    lines = compare_arms(
        {**facts, "task": "regress", "target": "hidden disease", "metric": "r2"},
        METRICS["regress"]["r2"],
        truth[test],
        patients[test],
        predictions,
        pairs=PAIRS,
    )
    for across in ("modality", "laterality", "visit"):
        (sides,), _ = find_sides(samples, positions, across, seed=0)
        u, v = sides.pairs.T
        found_ranks = {
            arm: [
                np.stack([ranks(*(torch.from_numpy(x[at]) for at in way)).numpy() for way in ((u, v), (v, u))], axis=1)
                for x in by_seed
            ]
            for arm, by_seed in found.items()
        }
        for k in (1, 5, 10):

            def hits(y: Any, p: Any, weights: Any = None, k: int = k) -> Any:
                hit = (p <= k).mean(1)
                return hit.mean() if weights is None else (weights @ hit) / weights.sum(1)

            lines += compare_arms(
                {**facts, "task": "retrieve", "target": across, "metric": f"top_{k}", "chance": k / len(u)},
                hits,
                np.zeros(len(u)),
                patients[u],
                found_ranks,
                pairs=PAIRS,
            )
    return lines


def main() -> None:
    """Train what is missing, then compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tier", choices=sorted(TIERS), default="small")
    parser.add_argument("--work", type=Path, default=Path("runs/comprer_phantom"))
    parser.add_argument("--compare-only", action="store_true")
    arguments = parser.parse_args()
    tier, work = arguments.tier, arguments.work / arguments.tier
    cells = [{"tier": tier, "arm": arm, "seed": seed} for seed in SEEDS for arm in ARMS]
    path = RESULTS / "comprer-phantom-cells.jsonl"
    if not arguments.compare_only:
        run_grid(path, cells, lambda **cell: train(work, **cell))
    record = {"command": f"python {shlex.join(sys.argv)}", "machine": machine(), "versions": versions()}
    done = [line["cell"] for line in read_cells(path)]
    text = json.dumps({**record, "results": compare(work, tier, done)}, indent=1)
    (RESULTS / f"comprer-phantom{'' if tier == 'small' else f'-{tier}'}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
