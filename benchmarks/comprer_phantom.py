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

from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from bolus.evaluation.retrieval.sides import find_sides
from bolus.evaluation.statistics.arms import compare_arms
from bolus.evaluation.statistics.metrics import METRICS
from bolus.phantom.images import make_phantom
from judging import embed_runs, parts_of, probe_all, retrieve, twin
from study import RANDOM, Arm, Cell, Finished, Lines, Study, main, without

SHARED = "random init, one encoder"
LOSSES = ("modality", "temporal", "bilateral", "measures", "reconstruction")
ARMS: dict[str, Arm] = {
    "comprer": ("comprer", ()),
    "one encoder": ("comprer", ("encoders=shared",)),
    "simclr": ("simclr", ("sampling={batch_size: 64, partners: 0}",)),
    **{f"without {name}": ("comprer", without(name)) for name in LOSSES},
    **{f"{name} only": ("comprer", without(*(other for other in LOSSES if other != name))) for name in LOSSES},
}
PAIRS = (
    *(("comprer", arm) for arm in [RANDOM, *list(ARMS)[1:]]),
    ("one encoder", "simclr"),
    ("one encoder", SHARED),
    ("simclr", SHARED),
)
SAMPLING = "sampling={participants: 16, batch_size: 128}"
PIXELS = {"small": 64, "full": 128}  # of the images of the phantom


def prepare(work: Path, cell: Cell) -> Path:
    """The phantom as a file that a run can point to."""
    path = work / "phantom" / "cohort.yaml"
    if not path.is_file():
        make_phantom(path.parent, num_patients=300, size=PIXELS[cell["tier"]], seed=0)
        spec = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(spec | {"split": {"seed": 0, "val": 0.1, "test": 0.4}}, sort_keys=False))
    return path


def compare(finished: Finished) -> Lines:
    """Every arm, on the seeds that all main arms have finished."""
    seeds = finished.seeds()
    if not seeds:
        return []
    runs = {(arm, seed): finished.run(arm, seed) for arm in ARMS for seed in seeds}
    besides = {"comprer": {RANDOM: twin}, "simclr": {SHARED: twin}}
    cohort = prepare(finished.work, {"tier": finished.tier})
    found = embed_runs(runs, cohort, cache=finished.work / "cache", besides=besides)
    truth = pd.read_csv(cohort.parent / "truth.csv")["disease_latent"].to_numpy()[found.rows]
    patients = found.patients
    parts = parts_of(np.isfinite(truth), found.split)
    facts = {"cohort": "phantom", "tier": finished.tier, "split_hash": found.cohort.split_hash}
    lines = compare_arms(
        {**facts, "task": "regress", "target": "hidden disease", "metric": "r2"},
        METRICS["regress"]["r2"],
        truth[parts[2]],
        patients[parts[2]],
        probe_all(found.vectors, truth, patients, parts, "regress"),
        pairs=PAIRS,
    )
    for across in ("modality", "laterality", "visit"):
        (sides,), _ = find_sides(found.samples, found.positions, across, seed=0)
        u, v = sides.pairs.T
        lines += retrieve({**facts, "target": across}, found.vectors, (u, v), patients[u], pairs=PAIRS)
    return lines


STUDY = Study(
    name="phantom",
    cells="comprer-phantom-cells.jsonl",
    result="comprer-phantom{tier}.json",
    arms=ARMS,
    keys=(
        "images.augment={preset: mri}",
        "optimizer={kind: adamw, lr: 0.001, weight_decay: 0.0001}",
        "schedule={kind: cosine, warmup_epochs: 1, final: 0.001}",
        "training={epochs: 1000, health_epochs: null}",
    ),
    tiers={
        "small": {
            "keys": ("encoder={backbone: r18w32}", "images.size=48", "training.max_steps=200"),
            "recipes": {"comprer": (SAMPLING, "objectives.reconstruction.channels=64")},
        },
        "full": {
            "keys": ("encoder={backbone: resnet18}", "images.size=128", "training.max_steps=2000"),
            "recipes": {"comprer": (SAMPLING, "objectives.reconstruction.channels=512")},
        },
    },
    prepare=prepare,
    compare=compare,
)

if __name__ == "__main__":
    main(__doc__, STUDY, work="runs/comprer_phantom")
