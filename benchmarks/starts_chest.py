"""What training adds to a pretrained start on chest radiographs: EfficientNet-lite0 of ImageNet, two small cohorts.

    python benchmarks/starts_chest.py            # 64 pixels, 24,000 encoder passes a training, for a CPU

nih1000 and cxr as one cohort of two sites, as planned_cohorts.py has it; 40 % of the patients for testing. Encoders are
trained on both and judged on nih1000, abnormal or not and effusion or not, as starts.py judges, with the labels of 20 %
of the training patients and of all. Keys were fixed beforehand and are the same for every arm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bolus.data.cohort.cohort import Cohort
from bolus.device import device
from bolus.embedding.opening import open_encoder, open_store, samples_of
from bolus.embedding.vectors import embed_samples
from bolus.evaluation.statistics.metrics import auroc
from bolus.evaluation.targets import find_targets
from judging import Array, Question, compare_cells, draw_labels, measure, parts_of, patients_of_each, probe
from planned_cohorts import prepare_chest
from starts import KEYS, START, TWO_VIEWS, steps_for
from study import RANDOM, Arm, Cell, Finished, Grid, Lines, Study, folder_name, main

FRACTIONS = (0.2, 1.0)
LABELS = ("abnormal", "findings=Effusion")
ARMS: dict[str, Arm] = {"simclr": ("simclr", (TWO_VIEWS,)), "planned": ("", ())}


def asked_of(cohort: Cohort) -> dict[str, Array]:
    """Each label as 0 and 1, -1 where missing."""
    return {name: find_targets(cohort, "classify", name, min_patients=1)[0][0].y for name in LABELS}


def questions(cohort: Cohort) -> dict[str, Question]:
    """What is asked of the test patients; every image of this cohort can be read."""
    patients, found = cohort.encoded("patient"), {}
    for name, y in asked_of(cohort).items():
        test = parts_of(y >= 0, cohort.split)[2]
        positive = patients_of_each(y[test], patients[test])[1]
        for fraction in FRACTIONS:
            about = {"task": "classify", "target": name, "fraction": fraction, "metric": "auroc"}
            about |= {"num_positive_patients": positive}
            found[f"{name} {fraction}"] = Question(about, auroc, y[test], patients[test])
    return found


def judge(work: Path, cell: Cell) -> dict[str, Any]:
    """The frozen encoder: a linear probe of each label."""
    beside = cell["arm"] in (START, RANDOM)
    judged = open_encoder("efficientnet_lite0", size=64) if beside else open_encoder(work / folder_name(cell))
    samples = samples_of(judged, Cohort.open(prepare_chest(work, cell)))
    store, cohort = open_store(judged, samples.cohort, cache=work / "cache"), samples.cohort
    encoder = judged.random_twin(cell["seed"]) if cell["arm"] == RANDOM else judged.encoder
    x = embed_samples(encoder.to(device()), store, samples, np.arange(len(samples)), keep=True)
    patients, said = cohort.encoded("patient"), {}
    for name, y in asked_of(cohort).items():
        train, val, test = parts_of(y >= 0, cohort.split)
        for fraction in FRACTIONS:
            parts = train[draw_labels(patients[train], y[train], fraction, cell["seed"])], val, test
            said[f"{name} {fraction}"] = probe(x, y, patients, parts, "classify", num_classes=2)
    return measure(questions(cohort), said)


def compare(finished: Finished) -> Lines:
    """Every arm less the start, less random weights and less simclr."""
    cohort = Cohort.open(prepare_chest(finished.work, {}))
    facts = {"cohort": "nih1000 + cxr", "tier": finished.tier, "split_hash": cohort.split_hash, "probe": "linear"}
    compared: dict[str, Any] = {"others": (START, RANDOM, "simclr"), "seeds": STUDY.seeds, "order": JUDGED.arms}
    return compare_cells(questions(cohort), finished.lines(JUDGED), **compared, facts=facts)


JUDGED = Grid("starts-chest-judged{tier}.jsonl", judge, (*ARMS, START, RANDOM))
STUDY = Study(
    name="starts-chest",
    cells="starts-chest-cells{tier}.jsonl",
    result="starts-chest{tier}.json",
    arms=ARMS,
    keys=(*KEYS, "images.size=64", "images.augment={preset: xray}"),
    tiers={"small": {"keys": ()}},
    seeds=(0, 1),
    prepare=prepare_chest,
    compare=compare,
    further=steps_for,
    then=(JUDGED,),
)

if __name__ == "__main__":
    main(__doc__, STUDY, work="runs/starts_chest")
