"""What training adds to a pretrained start: EfficientNet-lite0 of ImageNet, trained on fundus photographs.

    python benchmarks/starts.py                             # 128 pixels, 24,000 encoder passes a training, for a CPU
    python benchmarks/starts.py --tier gpu --minutes 10     # 640,000 passes, 256 images a step, bf16, for a GPU
    python benchmarks/starts.py --tier rehearsal            # the same in seconds, to see that every cell runs

Cohort: odir by `group`, as comprer_odir.py has it; 40 % of the patients for testing. Every arm starts from the same
weights and sees 64 images a step: comprer both eyes of 32 patients, the others 32 images in two views; `planned` is
what `bolus plan` composes. Beside them stand the start itself, frozen, and random weights. A linear probe reads each
class of the eye from the labels of 5, 10 and 100 % of the training patients, and age; an eye looks for its fellow.
One arm of one seed sees four times as many passes.
Whole fine-tuning is what a user does in the end: 8 epochs with the labels of 10 % of the patients, and with all.
Keys were fixed beforehand and are the same for every arm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import comprer_odir
from bolus.data.cohort.cohort import Cohort
from bolus.device import device
from bolus.embedding.opening import Judged, open_encoder, open_store, samples_of
from bolus.embedding.vectors import embed_samples
from bolus.encoders.backbone import Encoder
from bolus.evaluation.probing.finetune import fit_finetuned, mild
from bolus.evaluation.probing.options import FinetuneSpec
from bolus.evaluation.statistics.metrics import auroc, mae
from bolus.evaluation.targets import find_targets
from bolus.recipe import AugmentSpec, Recipe
from comprer_odir import CLASSES
from judging import Array, Question, both_ways, compare_cells, draw_labels, measure, parts_of, probe
from study import RANDOM, Arm, Cell, Finished, Grid, Lines, Study, folder_name, main, without

START = "start"
FRACTIONS = (0.05, 0.1, 1.0)
PASSES = 24_000
TARGETS: dict[str, tuple[int, ...]] = {"D": (1,), "N": (0,), "macro": tuple(range(len(CLASSES)))}

KEYS = (
    "encoder={backbone: efficientnet_lite0, pretrained: true}",
    "optimizer={kind: adamw, lr: 0.0003, weight_decay: 0.0001}",
    "schedule={kind: cosine, warmup_epochs: 1, final: 0.001}",
    "training.health_epochs=null",
    "training.epochs=1000",
)
TWO_VIEWS = "sampling={batch_size: 32, partners: 0}"
LONGER, TIMES = "comprer, four times as long", 4
COMPRER: Arm = (
    "comprer_bilateral",
    (
        *without("reconstruction"),
        "objectives.measures.targets=[score:age, attribute:sex]",
        "sampling={participants: 32, batch_size: 64}",
    ),
)
ARMS: dict[str, Arm] = {
    "comprer": COMPRER,
    "simclr": ("simclr", (TWO_VIEWS,)),
    "supremix": ("supremix", ("objectives.supremix.targets=[score:age]", TWO_VIEWS)),
    "planned": ("", ()),
    LONGER: COMPRER,
}


def steps_for(recipe: Recipe, work: Path, cell: Cell) -> list[str]:
    """As many steps as the passes of the tier allow, in batches so many times as large as the recipe's."""
    tier = STUDY.tiers[cell["tier"]]
    passes = tier.get("passes", PASSES) * (TIMES if cell["arm"] == LONGER else 1)
    return steps_of(recipe, passes, tier.get("batches", 1))


def steps_of(recipe: Recipe, passes: int, times: float = 1) -> list[str]:
    """The steps of so many encoder passes, in batches so many times as large as the recipe's."""
    sampling = recipe.sampling
    batch, people = int(times * sampling.batch_size), sampling.participants
    larger = [f"sampling.participants={int(times * people)}"] if people is not None else []
    steps = passes // (batch * recipe.images.views)
    return [f"sampling.batch_size={batch}", *larger, f"training.max_steps={steps}"]


def opened(work: Path, cell: Cell) -> Judged:
    """The encoder of a training; for the start and for random weights, the start."""
    if cell["arm"] in (START, RANDOM):
        return open_encoder("efficientnet_lite0", size=128)
    return open_encoder(work / folder_name({"arm": cell["arm"], "seed": cell["seed"]}))


def judge(work: Path, cell: Cell) -> dict[str, Any]:
    """The frozen encoder: a linear probe of each class on shares of the labels, of age, and the fellow eye."""
    judged = opened(work, cell)
    samples = samples_of(judged, Cohort.open(comprer_odir.prepare(work, cell)))
    store, cohort = open_store(judged, samples.cohort, cache=work / "cache"), samples.cohort
    encoder = judged.random_twin(cell["seed"]) if cell["arm"] == RANDOM else judged.encoder
    x = embed_samples(encoder.to(device()), store, samples, np.arange(len(samples)), keep=True)
    patients, split, y_of = cohort.encoded("patient"), cohort.split, classes_of(cohort)
    train, val, test = parts_of(y_of["N"] >= 0, split)
    said: dict[str, Array] = {}
    for fraction in FRACTIONS:
        parts = train[draw_labels(patients[train], y_of["N"][train], fraction, cell["seed"])], val, test
        columns = [probe(x, y_of[name], patients, parts, "classify", num_classes=2) for name in CLASSES]
        said |= {f"{target} {fraction}": np.stack(columns, axis=1) for target in TARGETS}
    age = cohort.encoded("score:age")
    said["age"] = probe(x, age, patients, parts_of(np.isfinite(age), split), "regress")
    left, right = comprer_odir.fellows(cohort, np.arange(len(cohort)))
    said["fellow eye"] = both_ways(x[left], x[right])
    return measure(questions(cohort), said)


def finetune(work: Path, cell: Cell) -> dict[str, Any]:
    """The whole encoder, trained for 8 epochs to tell the classes apart."""
    judged = opened(work, cell)
    encoder = judged.encoder.to(device())
    assert isinstance(encoder, Encoder)
    samples = samples_of(judged, Cohort.open(comprer_odir.prepare(work, cell)))
    store, cohort = open_store(judged, samples.cohort, cache=work / "cache"), samples.cohort
    patients, y, fraction = cohort.encoded("patient"), cohort.encoded("label:eye"), cell["labelled"]
    train, val, test = parts_of(y >= 0, cohort.split)
    normal = classes_of(cohort)["N"][train]
    train = train[draw_labels(patients[train], normal, fraction, cell["seed"])]
    names = cohort.labels("eye").classes
    spec = FinetuneSpec(epochs=8, patience=8, augment=mild(AugmentSpec(preset="fundus")), seed=cell["seed"])
    trained = fit_finetuned(
        encoder, store, samples, y, train=train, val=val, held=test, task="classify", num_classes=len(names),
        spec=spec,
    )  # fmt: skip
    columns = trained.predictions[:, [names.index(name) for name in CLASSES]]
    asked = {name: each for name, each in questions(cohort).items() if each.facts.get("fraction") == fraction}
    return measure(asked, dict.fromkeys(asked, columns)) | {"notes": list(trained.notes)}


def classes_of(cohort: Cohort) -> dict[str, Array]:
    """Each class of the eye as 0 and 1, -1 where missing."""
    targets, _ = find_targets(cohort, "classify", "eye", min_patients=1)
    return {each.name.partition("=")[2]: each.y for each in targets}


def questions(cohort: Cohort) -> dict[str, Question]:
    """What is asked of the test patients; every image of this cohort can be read."""
    patients, split, y_of = cohort.encoded("patient"), cohort.split, classes_of(cohort)
    test = parts_of(y_of["N"] >= 0, split)[2]
    y_test, found = np.stack([y_of[name][test] for name in CLASSES], axis=1), {}
    for fraction in FRACTIONS:
        for target, which in TARGETS.items():

            def metric(y: Any, p: Any, weights: Any = None, columns: tuple[int, ...] = which) -> Any:
                return np.mean([auroc(y[:, each], p[:, each], weights) for each in columns], axis=0)

            about = {"task": "classify", "target": target, "fraction": fraction, "metric": "auroc"}
            found[f"{target} {fraction}"] = Question(about, metric, y_test, patients[test])
    age = cohort.encoded("score:age")
    aged = parts_of(np.isfinite(age), split)[2]
    found["age"] = Question({"task": "regress", "target": "age", "metric": "mae"}, mae, age[aged], patients[aged])
    left, _ = comprer_odir.fellows(cohort, np.arange(len(cohort)))
    about = {"task": "retrieve", "target": "fellow eye", "metric": "top_5", "chance": 5 / len(left)}
    found["fellow eye"] = Question(about, hits, np.zeros(len(left)), patients[left])
    return found


def hits(_: Any, p: Any, weights: Any = None) -> Any:
    """How often a partner is among the first five, from its place in both directions."""
    hit = (p <= 5).mean(1)
    return hit.mean() if weights is None else (weights @ hit) / weights.sum(1)


def compare(finished: Finished) -> Lines:
    """Every arm less the start, less random weights and less each single recipe, frozen and fine-tuned."""
    cohort, lines = Cohort.open(comprer_odir.prepare(finished.work, {})), Lines()
    facts = {"cohort": "odir", "tier": finished.tier, "split_hash": cohort.split_hash}
    others = (START, RANDOM, "simclr", "comprer", "supremix")
    compared: dict[str, Any] = {"others": others, "seeds": STUDY.seeds, "order": (*JUDGED.arms, LONGER)}
    lines += compare_cells(questions(cohort), finished.lines(JUDGED), **compared, facts=facts | {"probe": "linear"})
    for grid in (FEW_TUNED, ALL_TUNED):
        fraction = grid.parts[0]["labelled"]
        asked = {name: each for name, each in questions(cohort).items() if each.facts.get("fraction") == fraction}
        lines += compare_cells(asked, finished.lines(grid), **compared, facts=facts | {"probe": "finetune"})
    return lines


USUAL = tuple(arm for arm in ARMS if arm != LONGER)
JUDGED = Grid("starts-judged{tier}.jsonl", judge, (*USUAL, START, RANDOM), ablations=(LONGER,))
TUNED = "starts-finetuned{tier}.jsonl"
FEW_TUNED = Grid(TUNED, finetune, (START, "comprer", "planned"), parts=({"labelled": 0.1},))
ALL_TUNED = Grid(TUNED, finetune, (), ablations=FEW_TUNED.arms, parts=({"labelled": 1.0},))
GPU: dict[str, Any] = {
    "keys": ("training.precision=bf16", "optimizer.lr=0.0006"),  # times 2, the root of how much larger batches are
    "batches": 4,
    "passes": 640_000,  # each of about 3,000 training images 200 times
    "order": (START, RANDOM, "comprer", "planned", "simclr", "supremix"),
    "minutes": 2.0,
}
REHEARSAL = GPU | {
    "keys": (*GPU["keys"], "images.size=32", "training.log_steps=1"),
    "batches": 0.25,
    "passes": 96,
    "minutes": 0.1,
}
STUDY = Study(
    name="starts",
    cells="starts-cells{tier}.jsonl",
    result="starts{tier}.json",
    arms=ARMS,
    keys=(*KEYS, "encoder.in_channels=3", "images.size=128", "images.augment={preset: fundus}"),
    tiers={"small": {"keys": ()}, "gpu": GPU, "rehearsal": REHEARSAL},
    prepare=comprer_odir.prepare,
    compare=compare,
    further=steps_for,
    ablations=(LONGER,),
    then=(JUDGED, FEW_TUNED, ALL_TUNED),
)

if __name__ == "__main__":
    main(__doc__, STUDY, work="runs/starts")
