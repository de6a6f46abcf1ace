"""What training adds to a pretrained start: EfficientNet-lite0 of ImageNet, trained on fundus photographs.

    python benchmarks/starts.py                  # 128 pixels, 24,000 encoder passes a training, for a CPU

Cohort: odir by `group`, as comprer_odir.py has it; 40 % of the patients for testing. Every arm starts from the same
weights and sees 64 images a step: comprer both eyes of 32 patients, the others 32 images in two views; `planned` is
what `bolus plan` composes. Beside them stand the start itself, frozen, and random weights. A linear probe reads each
class of the eye from the labels of 5, 10 and 100 % of the training patients, and age; an eye looks for its fellow.
Every cell keeps what it says of each test image in the work folder, where cells are compared on the same patients.
Keys were fixed beforehand and are the same for every arm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import comprer_odir
from bolus.data.cohort.cohort import Cohort
from bolus.embedding import embed_samples, open_encoder, open_store, samples_of
from bolus.evaluation.statistics.arms import compare_arms
from bolus.evaluation.statistics.metrics import auroc, mae
from bolus.evaluation.targets import find_targets
from bolus.recipe import Recipe
from comprer_odir import CLASSES
from judging import Array, Vectors, _both_ways, draw_labels, parts_of, probe
from study import RANDOM, Arm, Cell, Finished, Grid, Lines, Study, folder_name, main, without

START = "start"
FRACTIONS = (0.05, 0.1, 1.0)
PASSES, BATCH = 24_000, 64
KEPT = "said"  # folder of the work folder

TWO_VIEWS = "sampling={batch_size: 32, partners: 0}"
ARMS: dict[str, Arm] = {
    "comprer": (
        "comprer_bilateral",
        (
            *without("reconstruction"),
            "objectives.measures.targets=[score:age, attribute:sex]",
            "sampling={participants: 32, batch_size: 64}",
        ),
    ),
    "simclr": ("simclr", (TWO_VIEWS,)),
    "supremix": ("supremix", ("objectives.supremix.targets=[score:age]", TWO_VIEWS)),
    "planned": ("", ()),
}


def steps_for(recipe: Recipe, work: Path, cell: Cell) -> list[str]:
    """As many steps as the passes allow."""
    return [f"training.max_steps={PASSES // (recipe.sampling.batch_size * recipe.images.views)}"]


def judge(work: Path, cell: Cell) -> dict[str, Any]:
    """What one encoder says of every test image, kept in a file, and its plain estimates."""
    arm, seed = cell["arm"], cell["seed"]
    beside = arm in (START, RANDOM)
    judged = open_encoder("efficientnet_lite0", size=128) if beside else open_encoder(
        work / folder_name({"arm": arm, "seed": seed})
    )  # fmt: skip
    samples = samples_of(judged, Cohort.open(comprer_odir.prepare(work, cell)))
    store = open_store(judged, samples.cohort, cache=work / "cache")
    positions = np.flatnonzero(samples.readable(store.readable))
    encoder = judged.random_twin(seed) if arm == RANDOM else judged.encoder
    x = embed_samples(encoder, store, samples, positions, keep=True)
    cohort, rows = samples.cohort, samples.first_row[positions]
    patients, split = cohort.encoded("patient")[rows], cohort.split[rows]
    said: dict[str, Array] = {}
    y_of = classes_of(cohort, rows)
    train, val, test = parts_of(y_of["N"] >= 0, split)
    for fraction in FRACTIONS:
        parts = train[draw_labels(patients[train], y_of["N"][train], fraction, seed)], val, test
        columns = [probe(x, y_of[name], patients, parts, "classify", num_classes=2) for name in CLASSES]
        said[f"classes {fraction}"] = np.stack(columns, axis=1).astype(np.float32)
    age = cohort.encoded("score:age")[rows]
    said["age"] = probe(x, age, patients, parts_of(np.isfinite(age), split), "regress").astype(np.float32)
    left, right = comprer_odir.fellows(cohort, rows)
    said["fellow"] = _both_ways(x[left], x[right]).astype(np.float32)
    (work / KEPT).mkdir(exist_ok=True)
    arrays: dict[str, Any] = said
    np.savez_compressed(work / KEPT / f"{folder_name({'arm': arm, 'seed': seed})}.npz", **arrays)
    values = {f"{name} {fraction}": float(auroc(y_of[name][test], said[f"classes {fraction}"][:, place]))
              for fraction in FRACTIONS for place, name in enumerate(CLASSES)}  # fmt: skip
    return {key: round(value, 4) for key, value in values.items()} | {
        "top_5": round(float((said["fellow"] <= 5).mean()), 4)
    }


def classes_of(cohort: Cohort, rows: Array) -> dict[str, Array]:
    """Each class of the eye as 0 and 1, -1 where missing."""
    targets, _ = find_targets(cohort, "classify", "eye", min_patients=1)
    return {each.name.partition("=")[2]: each.y[rows] for each in targets}


def compare(finished: Finished) -> Lines:
    """Every arm less the start, from what the cells kept."""
    cells = [(line["cell"]["arm"], line["cell"]["seed"]) for line in finished.lines(JUDGED)]
    folder = finished.work / KEPT
    judged = {
        (arm, seed) for arm, seed in cells if (folder / f"{folder_name({'arm': arm, 'seed': seed})}.npz").is_file()
    }
    seeds = [seed for seed in STUDY.seeds if all((arm, seed) in judged for arm in (START, RANDOM))]
    arms = {arm: [seed for seed in seeds if (arm, seed) in judged] for arm in (START, RANDOM, *ARMS)}
    arms = {arm: own for arm, own in arms.items() if own}
    common = [seed for seed in seeds if all(seed in own for own in arms.values())]
    if not common:
        return []
    kept = {
        (arm, seed): dict(np.load(finished.work / KEPT / f"{folder_name({'arm': arm, 'seed': seed})}.npz"))
        for arm in arms for seed in common
    }  # fmt: skip
    cohort = Cohort.open(comprer_odir.prepare(finished.work, {}))
    rows = np.arange(len(cohort))  # every image of this cohort can be read
    patients, split, y_of = cohort.encoded("patient"), cohort.split, classes_of(cohort, rows)
    test = parts_of(y_of["N"] >= 0, split)[2]
    facts = {"cohort": "odir", "tier": finished.tier, "split_hash": cohort.split_hash}
    pairs = [*((arm, START) for arm in arms if arm != START), *((arm, "simclr") for arm in arms if "simclr" in arms)]
    compared: dict[str, Any] = {"pairs": [pair for pair in pairs if pair[0] != pair[1]]}

    def vectors(name: str) -> Vectors:
        return {arm: [kept[arm, seed][name] for seed in common] for arm in arms}

    y_test, lines = np.stack([y_of[name][test] for name in CLASSES], axis=1), Lines()
    for fraction in FRACTIONS:
        for target, which in (("D", [1]), ("N", [0]), ("macro", list(range(len(CLASSES))))):

            def metric(y: Any, p: Any, weights: Any = None, columns: list[int] = which) -> Any:
                return np.mean([auroc(y[:, each], p[:, each], weights) for each in columns], axis=0)

            about = {**facts, "task": "classify", "target": target, "fraction": fraction, "metric": "auroc"}
            said = vectors(f"classes {fraction}")
            lines += compare_arms(about, metric, y_test, patients[test], said, **compared)
    age = cohort.encoded("score:age")
    aged = parts_of(np.isfinite(age), split)[2]
    about = {**facts, "task": "regress", "target": "age", "metric": "mae"}
    lines += compare_arms(about, mae, age[aged], patients[aged], vectors("age"), **compared)
    left, _ = comprer_odir.fellows(cohort, rows)

    def hits(_: Any, p: Any, weights: Any = None) -> Any:
        hit = (p <= 5).mean(1)
        return hit.mean() if weights is None else (weights @ hit) / weights.sum(1)

    about = {**facts, "task": "retrieve", "target": "fellow eye", "metric": "top_5", "chance": 5 / len(left)}
    return lines + compare_arms(about, hits, np.zeros(len(left)), patients[left], vectors("fellow"), **compared)


JUDGED = Grid("starts-judged{tier}.jsonl", judge, (*ARMS, START, RANDOM))
STUDY = Study(
    name="starts",
    cells="starts-cells{tier}.jsonl",
    result="starts{tier}.json",
    arms=ARMS,
    keys=(
        "encoder={backbone: efficientnet_lite0, pretrained: true, in_channels: 3}",
        "images.size=128",
        "images.augment={preset: fundus}",
        "optimizer={kind: adamw, lr: 0.0003, weight_decay: 0.0001}",
        "schedule={kind: cosine, warmup_epochs: 1, final: 0.001}",
        "training.health_epochs=null",
        "training.epochs=1000",
    ),
    tiers={"small": {"keys": ()}},
    prepare=comprer_odir.prepare,
    compare=compare,
    further=steps_for,
    then=(JUDGED,),
)

if __name__ == "__main__":
    main(__doc__, STUDY, work="runs/starts")
