"""MLVICX against its ancestors where there is power: melanoma or not, on dermatoscopy, from a pretrained start.

    python benchmarks/mlvicx_lesions.py                 # EfficientNet-lite0 at 64 pixels, for a CPU
    python benchmarks/mlvicx_lesions.py --tier gpu      # at 96 pixels, 640,000 passes, for a GPU
    python benchmarks/mlvicx_lesions.py --tier rehearsal

The paper (arXiv:2403.11504) claims more than three points of AUC over methods of one level. Cohort: ham10000, by lesion
(no person is stated, so two lesions of one person may fall on two sides), 40 % of the lesions for testing and 10 % for
validation. Every arm starts from the weights of ImageNet and takes the same encoder passes; heads are 1024 wide. The
learning rate of each is chosen on validation lesions. A linear probe reads melanoma from frozen embeddings with the
labels of 1, 10 and 100 % of the training lesions. Beside the arms stand the start and random weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bolus.data.cohort.cohort import Cohort
from bolus.embedding.opening import open_encoder
from bolus.evaluation.statistics.metrics import auroc
from bolus.evaluation.targets import find_targets
from grid import DATA
from judging import Array, Question, compare_cells, draw_labels, embed_cohort, measure, parts_of, probe
from starts import START, steps_of
from study import RANDOM, Arm, Cell, Finished, Grid, Lines, Study, main
from tuning import Axes

FRACTIONS = (0.01, 0.1, 1.0)
DRAWS = 5  # of the labels of a share of the lesions
TARGET = "dx=mel"
ARMS: dict[str, Arm] = {
    "mlvicx": ("mlvicx", ("objectives.global.width=1024", "objectives.levels.width=1024")),
    "mlvicx, no context": (
        "mlvicx",
        ("objectives.global.width=1024", "objectives.levels.width=1024", "encoder.context=false"),
    ),
    "vicreg": ("vicreg", ("objectives.global.width=1024",)),
    "simclr": ("simclr", ()),
}
AXES: dict[str, Axes] = {arm: {"optimizer.lr": (0.0003, 0.001, 0.0001)} for arm in ARMS}
TIERS: dict[str, dict[str, Any]] = {
    "small": {"keys": ("images.size=64",), "passes": 12_000},
    "gpu": {"keys": ("images.size=96", "training.precision=bf16"), "passes": 640_000, "minutes": 3.0},
    "rehearsal": {"keys": ("images.size=32",), "passes": 256},
}


def prepare(work: Path, cell: Cell) -> Path:
    """The lesions, their kind as a label."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / "lesions.yaml"
    if not path.is_file():
        roles = {"image": "image", "patient": "lesion_id", "label:dx": "dx"}
        table = DATA / "ham10000" / "meta.csv"
        Cohort.open(table, roles=roles, split={"val": 0.1, "test": 0.4}).save(path)
    return path


def melanoma(cohort: Cohort) -> Array:
    """1 for melanoma, 0 for the rest."""
    targets, _ = find_targets(cohort, "classify", "dx", min_patients=1)
    return next(each.y for each in targets if each.name == TARGET)


def read(x: Array, cohort: Cohort, fraction: float, seed: int, side: str) -> list[Array]:
    """Probabilities of melanoma for the lesions of a side, for each draw of the labels."""
    y, patients = melanoma(cohort), cohort.encoded("patient")
    train, val, test = parts_of(y >= 0, cohort.split)
    said = []
    for draw in range(DRAWS if fraction < 1 else 1):
        some = train[draw_labels(patients[train], y[train], fraction, DRAWS * seed + draw)]
        parts = some, val, test if side == "test" else val
        said.append(probe(x, y, patients, parts, "classify", num_classes=2))
    return said


def validated(work: Path, folder: Path) -> float:
    """One less the AUROC of validation lesions, with the labels of a tenth, the mean of the draws."""
    cohort = Cohort.open(prepare(work, {}))
    y, val = melanoma(cohort), parts_of(melanoma(cohort) >= 0, cohort.split)[1]
    said = read(embed_cohort(open_encoder(folder), cohort, work / "cache"), cohort, 0.1, 0, "val")
    return 1.0 - float(np.mean([auroc(y[val], _positive(each)) for each in said]))


def _positive(probabilities: Array) -> Array:
    return probabilities[:, 1] if probabilities.ndim == 2 else probabilities


def judge(work: Path, cell: Cell) -> dict[str, Any]:
    """The frozen encoder at every share of the labels."""
    cohort = Cohort.open(prepare(work, cell))
    if cell["arm"] in (START, RANDOM):
        judged = open_encoder("efficientnet_lite0", size=int(TIERS[cell["tier"]]["keys"][0].partition("=")[2]))
    else:
        judged = open_encoder(work / STUDY.folder(cell))
    x = embed_cohort(judged, cohort, work / "cache", cell["seed"] if cell["arm"] == RANDOM else None)
    said = {}
    for fraction in FRACTIONS:
        found = read(x, cohort, fraction, cell["seed"], "test")
        said[f"{fraction}"] = np.stack([_positive(each) for each in found], axis=1)
    return measure(questions(cohort), said)


def mean_auroc(y: Array, p: Array, weights: Any = None) -> Any:
    """The mean over the draws of the labels."""
    return np.mean([auroc(y, each, weights) for each in p.T], axis=0)


def questions(cohort: Cohort) -> dict[str, Question]:
    """What is asked of the test lesions."""
    y, patients = melanoma(cohort), cohort.encoded("patient")
    test = parts_of(y >= 0, cohort.split)[2]
    about: dict[str, Any] = {"task": "classify", "target": "melanoma", "metric": "auroc"}
    return {
        f"{fraction}": Question({**about, "fraction": fraction}, mean_auroc, y[test], patients[test])
        for fraction in FRACTIONS
    }


def compare(finished: Finished) -> Lines:
    """Every arm less its ancestors, the start and random weights."""
    cohort = Cohort.open(prepare(finished.work, {}))
    return compare_cells(
        questions(cohort),
        finished.lines(JUDGED),
        order=JUDGED.arms,
        others=(START, "vicreg", "simclr", "mlvicx, no context", RANDOM),
        seeds=STUDY.seeds,
        facts={"cohort": "ham10000", "tier": finished.tier, "split_hash": cohort.split_hash},
    )


JUDGED = Grid("mlvicx-lesions-judged{tier}.jsonl", judge, (*ARMS, START, RANDOM), looks=True)
STUDY = Study(
    name="mlvicx on lesions",
    cells="mlvicx-lesions-cells{tier}.jsonl",
    result="mlvicx-lesions{tier}.json",
    arms=ARMS,
    keys=(
        "encoder.backbone=efficientnet_lite0",
        "encoder.pretrained=true",
        "encoder.in_channels=3",
        "images.augment={preset: fundus}",
        "sampling={batch_size: 32, partners: 0}",
        "optimizer={kind: adamw, lr: 0.0003, weight_decay: 0.0001}",
        "schedule={kind: cosine, warmup_epochs: 1, final: 0.001}",
        "training.epochs=1000",
        "training.health_epochs=null",
    ),
    tiers=TIERS,
    prepare=prepare,
    compare=compare,
    further=lambda recipe, work, cell: steps_of(recipe, TIERS[cell["tier"]]["passes"]),
    then=(JUDGED,),
    axes=AXES,
    validate=validated,
)

if __name__ == "__main__":
    main(__doc__, STUDY, work="runs/mlvicx-lesions")
