"""Is the random-init column one of a kind? Two more twins, judged for a note only.

How much an untrained network tells depends on its draw, which no interval over patients holds. The column stays one
twin; where three of them differ by more than chance over patients, a note says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bolus.device import device
from bolus.embedding.vectors import embed_samples
from bolus.encoders.modalities import parts_of
from bolus.evaluation.preparation import Prepared
from bolus.evaluation.probing.fitting import PROBES
from bolus.evaluation.probing.question import Question
from bolus.evaluation.settings import Judging
from bolus.evaluation.statistics.intervals import holm, paired_difference
from bolus.evaluation.statistics.metrics import FloatArray, metrics_of
from bolus.evaluation.statistics.results import RANDOM, Result, decimals

MORE: Final = 2  # twins beside the one that has the column
BUDGET: Final = 3e15
"""Parameters times pixels above which no more twins are embedded.

A convolution or a patch's block spends about .0035 multiplications on each (ResNet-50 and ViT-B/16 at 224 pixels), so
this is 10^13 of them: one or two minutes on a few CPU cores; 1200 images for ResNet-50, 350 for ViT-B/16."""


def embed_twins(prepared: Prepared[Any]) -> list[NDArray[np.float32]]:
    """Embeddings `[n, D]` of twins with the next seeds, of the samples kept, remembered as all are.

    Empty where they would take more than `BUDGET`. The order is that of the seeds.
    """
    encoder, modality = prepared.judged.encoder, prepared.cohort.modality[prepared.rows]
    work = 0.0
    for part, contract, places in parts_of(encoder, prepared.store.preprocessing, modality):
        num_parameters = sum(parameter.numel() for parameter in part.parameters())
        work += float(num_parameters) * len(places) * prod(contract.sides) * (contract.frames or 1)
    if MORE * work > BUDGET:
        return []
    found = []
    for seed in range(prepared.judging.seed + 1, prepared.judging.seed + 1 + MORE):
        twin = prepared.judged.random_twin(seed).to(device())
        precision = prepared.judging.precision
        found.append(
            embed_samples(twin, prepared.store, prepared.samples, prepared.kept, precision=precision, keep=True)
        )
    return found


def note_on_twins(
    question: Question,
    twins: Callable[[], Sequence[NDArray[Any]]],
    results: Sequence[Result],
    scores: Mapping[str, FloatArray],
    *,
    judging: Judging,
) -> list[str]:
    """A note where twins differ by more than chance over patients, else nothing.

    That is where one lies outside the interval of the random-init column and two of them differ on the same patients,
    after Holm's correction over all pairs. It is of one probe with all labels, in the task's first metric. Twins are
    not asked for where the column has no such result, or too few patients were judged for any finding.

    Args:
        question: as it was put to the column.
        twins: gives embeddings `[n, D]` of other twins; none where they would take too long.
        results: with those of the column.
        scores: probe -> test predictions of the column with all labels; the first of `PROBES` among them is taken.
        judging: with the bootstrap's draws and seed.
    """
    kind = next((each for each in scores if each in PROBES), None)
    name, measure = next(iter(metrics_of(question.task, question.num_classes).items()))
    wanted = (RANDOM, "", kind, name, 1.0, "")
    column = next(
        (r for r in results if (r.encoder, r.baseline, r.probe, r.metric, r.fraction, r.subset) == wanted), None
    )
    if kind is None or column is None or question.few or not np.isfinite([column.ci_low, column.ci_high]).all():
        return []
    train, val, test = (question.rows[part] for part in ("train", "val", "test"))
    y, patients = question.y[test], question.patients[test]
    predicted = [scores[kind]]
    for x in twins():
        samples, validation = question.samples(x, train), question.samples(x, val)
        head = PROBES[kind](samples, validation, question.task, num_classes=question.num_classes)
        predicted.append(head.predict(x[test]))
    values = [float(measure(y, p)) for p in predicted]
    low, high = min(values), max(values)
    if not np.isfinite(values).all() or (column.ci_low <= low and high <= column.ci_high):
        return []
    options: dict[str, Any] = {"name": name, "draws": judging.draws, "seed": judging.seed}
    pairs = (paired_difference(measure, y, a, b, patients, **options) for a, b in combinations(predicted, 2))
    if not (holm([pair.p_value for pair in pairs]) < 0.05).any():
        return []
    interval = f"{decimals(column.ci_low)} to {decimals(column.ci_high)}"
    note = (
        f"random-init encoders of {len(values)} seeds give {name} {decimals(low)} to {decimals(high)} ({kind}), where "
        f"the interval of the one in the column is {interval}: they differ by more than chance over patients, and a "
        "difference from random-init is one from that draw of weights"
    )
    return [note]
