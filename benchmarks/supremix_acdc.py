"""SupReMix against its ancestors where pixels hold the score: the blood pool of the left ventricle on cardiac MRI.

    python benchmarks/supremix_acdc.py                 # r18w32 at 64 pixels, for a CPU
    python benchmarks/supremix_acdc.py --tier full     # ResNet-50 at 128 pixels, for a GPU
    python benchmarks/supremix_acdc.py --tier rehearsal

The paper (arXiv:2309.16633) claims a lower error than regression and than supervised contrast. Cohort: acdc as gcl.py
has it, 40 % of the patients for testing and 15 % for validation; the score is the area of the pool, from the masks, in
% of the slice. Every arm takes the same steps of 64 slices in two views. Keys that validation patients choose stand in
`AXES`: the arms differ in how many, and SupReMix has the most. Frozen embeddings are read by
a ridge regression, whose strength validation patients choose; the whole encoder is fine-tuned as well. What the paper
says happens is measured too: whether distances between embeddings are in the order of those between scores, and how far
embeddings of neighbours in score lie from a line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

import gcl
from bolus.data.cohort.cohort import Cohort
from bolus.device import device
from bolus.embedding.opening import Judged, open_encoder, open_store, samples_of
from bolus.evaluation.probing.finetune import fit_finetuned, mild
from bolus.evaluation.probing.fitting import fit_majority
from bolus.evaluation.probing.options import FinetuneSpec
from bolus.evaluation.statistics.metrics import METRICS
from bolus.recipe import AugmentSpec, Recipe
from judging import Array, Question, compare_cells, embed_cohort, measure, parts_of, probe, validation_error
from study import RANDOM, Arm, Cell, Finished, Grid, Lines, Study, main
from supremix import OFF
from tuning import Axes

MEDIAN = "median"
NEIGHBOURS = 10  # in score, through which a line is laid
LV = "targets=[score:lv]"

ARMS: dict[str, Arm] = {
    "supremix": ("supremix", (f"objectives.supremix.{LV}",)),
    "supcon": ("supremix", (f"objectives.supremix.{LV}", *OFF.values())),
    "rank_n_contrast": ("rank_n_contrast", (f"objectives.rank_n_contrast.{LV}",)),
    "regression": ("supervised", (f"objectives.predict.{LV}", "images.views=2")),
    "simclr": ("simclr", ("objectives.views.hidden_norm=false",)),
}
RATES = {"optimizer.lr": (0.001, 0.003, 0.01)}
AXES: dict[str, Axes] = {
    "supremix": RATES
    | {
        "objectives.supremix.temperature": (0.5, 0.1),
        "objectives.supremix.label_tolerance": (0.1, 0.3),
        "objectives.supremix.window": (0.5, 2.0),
        "objectives.supremix.beta": ([2.0, 8.0], [8.0, 2.0]),
    },
    "supcon": RATES
    | {"objectives.supremix.temperature": (0.5, 0.1), "objectives.supremix.label_tolerance": (0.1, 0.3)},
    "rank_n_contrast": RATES | {"objectives.rank_n_contrast.temperature": (2.0, 0.5)},
    "regression": RATES,
    "simclr": RATES | {"objectives.views.temperature": (0.1, 0.5)},
}
TIERS: dict[str, dict[str, Any]] = {
    "small": {"keys": ("encoder.backbone=r18w32", "images.size=64"), "steps": 300, "finetune": 10},
    "full": {
        "keys": ("encoder.backbone=resnet50", "images.size=128", "training.precision=bf16"),
        "steps": 5000,
        "finetune": 30,
        "minutes": 4.0,
    },
    "rehearsal": {"keys": ("encoder.backbone=r18w32", "images.size=32"), "steps": 2, "finetune": 1},
}


def prepare(work: Path, cell: Cell) -> Path:
    """The crops of gcl.py with the areas of two structures as scores, in % of the slice."""
    path = work / "scores.yaml"
    if path.is_file():
        return path
    gcl.prepare(work, cell)
    table = pd.read_csv(work / "acdc.csv")
    pixels = table["h"] * table["w"]
    table = table.assign(lv=100 * table["lv"] / pixels, myo=100 * table["myo"] / pixels)
    table.to_csv(work / "scores.csv", index=False)
    roles = {**gcl.ROLES, "score:lv": "lv", "score:myo": "myo"}
    Cohort.open(work / "scores.csv", roles=roles, split={"val": 0.15, "test": 0.4}).save(path)
    return path


def opened(work: Path, cell: Cell) -> Judged:
    """The encoder of a training; for random weights, one of whose architecture they are."""
    return open_encoder(work / STUDY.folder({**cell, "arm": "regression"} if cell["arm"] == RANDOM else cell))


def validated(work: Path, folder: Path) -> float:
    """What validation patients choose keys by."""
    return validation_error(folder, Cohort.open(prepare(work, {})), "lv", work / "cache")


def judge(work: Path, cell: Cell) -> dict[str, Any]:
    """The frozen encoder: both scores by a ridge regression, and how embeddings lie along the score."""
    cohort = Cohort.open(prepare(work, cell))
    patients, said = cohort.encoded("patient"), dict[str, Array]()
    parts = parts_of(np.isfinite(cohort.encoded("score:lv")), cohort.split)
    train, _, test = parts
    if cell["arm"] == MEDIAN:
        for name in ("lv", "myo"):
            y = cohort.encoded(f"score:{name}")
            said[name] = fit_majority(y[train], "regress", 0).predict(np.empty((len(test), 0)))
        said["order"], said["line"] = np.zeros(len(test)), np.ones(len(test))
    else:
        seed = cell["seed"] if cell["arm"] == RANDOM else None
        x = embed_cohort(opened(work, cell), cohort, work / "cache", seed)
        said = {name: probe(x, cohort.encoded(f"score:{name}"), patients, parts, "regress") for name in ("lv", "myo")}
        said["order"], said["line"] = along(x[test], cohort.encoded("score:lv")[test], patients[test])
    said |= {f"{name}, r2": said[name] for name in ("lv", "myo")}
    return measure(questions(cohort), said)


def finetune(work: Path, cell: Cell) -> dict[str, Any]:
    """The whole encoder, trained on for the score."""
    judged, seed = opened(work, cell), cell["seed"]
    cohort = Cohort.open(prepare(work, cell))
    samples = samples_of(judged, cohort)
    store = open_store(judged, samples.cohort, cache=work / "cache")
    y = cohort.encoded("score:lv")
    train, val, test = parts_of(np.isfinite(y), cohort.split)
    spec = FinetuneSpec(
        epochs=TIERS[cell["tier"]]["finetune"], seed=seed, augment=mild(AugmentSpec(preset="mri")), lr=0.001
    )
    encoder: Any = judged.random_twin(seed) if cell["arm"] == RANDOM else judged.encoder
    found = fit_finetuned(
        encoder.to(device()), store, samples, y, train=train, val=val, held=test, task="regress", spec=spec
    )
    asked = {name: each for name, each in questions(cohort).items() if name == "lv"}
    return measure(asked, {"lv": found.predictions}) | {"notes": list(found.notes)}


def along(x: Array, score: Array, patients: Array) -> tuple[Array, Array]:
    """For each sample, against those of other patients: how embeddings lie along the score.

    Returns:
        The rank correlation of distances between embeddings with those between scores; and of its `NEIGHBOURS` nearest
        in score, the share of their variance that is not on the line of embeddings over scores.
    """
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    order, line = np.empty(len(x)), np.empty(len(x))
    for place in range(len(x)):
        others = np.flatnonzero(patients != patients[place])
        gap = np.abs(score[others] - score[place])
        order[place] = np.corrcoef(rankdata(gap), rankdata(np.linalg.norm(unit[others] - unit[place], axis=1)))[0, 1]
        near = others[np.argsort(gap, kind="stable")[:NEIGHBOURS]]
        centred, moved = unit[near] - unit[near].mean(0), score[near] - score[near].mean()
        slope = moved @ centred / max(float(moved @ moved), 1e-12)
        whole = float((centred**2).sum())
        line[place] = float(((centred - np.outer(moved, slope)) ** 2).sum()) / whole if whole > 0 else 1.0
    return np.nan_to_num(order), line


def mean_of(y: Array, p: Array, weights: Any = None) -> Any:
    """The mean of what stands for each test sample."""
    return p.mean() if weights is None else (weights @ p) / weights.sum(-1)


def questions(cohort: Cohort) -> dict[str, Question]:
    """What is asked of the test patients."""
    patients = cohort.encoded("patient")
    test = parts_of(np.isfinite(cohort.encoded("score:lv")), cohort.split)[2]
    found = {}
    for name in ("lv", "myo"):
        y = cohort.encoded(f"score:{name}")[test]
        for metric in ("mae", "r2"):
            about = {"task": "regress", "target": name, "metric": metric}
            key = name if metric == "mae" else f"{name}, {metric}"
            found[key] = Question(about, METRICS["regress"][metric], y, patients[test])
    for name, metric in (("order", "spearman"), ("line", "residual_share")):
        about = {"task": "geometry", "target": "lv", "metric": metric}
        found[name] = Question(about, mean_of, np.zeros(len(test)), patients[test])
    return found


def compare(finished: Finished) -> Lines:
    """Every arm less each of its ancestors, less random weights, frozen and fine-tuned."""
    cohort = Cohort.open(prepare(finished.work, {}))
    facts = {"cohort": "acdc", "tier": finished.tier, "split_hash": cohort.split_hash}
    asked, lines = questions(cohort), Lines()
    others = ("regression", "supcon", "rank_n_contrast", "simclr", RANDOM, MEDIAN)
    for grid, how, names in ((JUDGED, "probe", list(asked)), (TUNED, "fine-tuned", ["lv"])):
        lines += compare_cells(
            {name: asked[name] for name in names},
            finished.lines(grid),
            order=grid.arms,
            others=others,
            seeds=STUDY.seeds,
            facts=facts | {"how": how},
        )
    return lines


def length(recipe: Recipe, work: Path, cell: Cell) -> list[str]:
    """Every arm takes as many steps."""
    return [f"training.max_steps={TIERS[cell['tier']]['steps']}"]


JUDGED = Grid("supremix-acdc-judged{tier}.jsonl", judge, (*ARMS, RANDOM, MEDIAN), looks=True)
TUNED = Grid("supremix-acdc-finetuned{tier}.jsonl", finetune, (*ARMS, RANDOM), looks=True)
STUDY = Study(
    name="supremix on acdc",
    cells="supremix-acdc-cells{tier}.jsonl",
    result="supremix-acdc{tier}.json",
    arms=ARMS,
    keys=(
        "images.unit=slice",
        "images.augment={preset: mri}",
        "sampling={batch_size: 64, partners: 0}",
        "optimizer={kind: adamw, lr: 0.001, weight_decay: 0.0001}",
        "schedule={kind: cosine, warmup_epochs: 1, final: 0.001}",
        "training.epochs=100000",
        "training.health_epochs=null",
    ),
    tiers=TIERS,
    prepare=prepare,
    compare=compare,
    further=length,
    then=(JUDGED, TUNED),
    axes=AXES,
    validate=validated,
)

if __name__ == "__main__":
    main(__doc__, STUDY, work="runs/supremix-acdc")
