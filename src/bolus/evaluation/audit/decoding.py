"""How well an attribute of a patient, such as sex or scanner, can be read off an embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bolus.evaluation.audit.subgroups import FEWEST, Grouping
from bolus.evaluation.probing.options import Probing
from bolus.evaluation.probing.probe import probe
from bolus.evaluation.settings import Judging, Origin
from bolus.evaluation.statistics.results import Result

TASK = "audit"

DECODING = ("auroc", "macro_auroc", "r2", "balanced_accuracy", "mae")
"""Metrics of how well an attribute is read; of those that a question has the first leads."""


def decode(
    embeddings: Mapping[str, NDArray[Any]],
    grouping: Grouping,
    patients: NDArray[Any],
    split: NDArray[Any],
    *,
    judging: Judging | None = None,
    origin: Origin | None = None,
) -> tuple[list[Result], list[str]]:
    """How well a linear probe reads an attribute off the embeddings, beside the baselines and the majority.

    A number that is cut into bands is read as a number, anything else as classes, of which those with fewer than
    `FEWEST` test patients are left out.

    Args:
        embeddings: encoder name -> `[n, D]` finite floats; the first is judged.
        grouping: of the `n` samples.
        patients: `[n]` codes.
        split: `[n]` of `train`, `val` and `test`.
        judging: its seed is of every draw.
        origin: copied into the results.

    Returns:
        Results of target `decode:NAME` in the metrics of `DECODING`, and notes; no result where the training patients
        or the test patients have a single value.

    >>> r, sex = np.random.default_rng(0), np.arange(200) % 2
    >>> parts = np.repeat(["train", "val", "test"], [80, 20, 100])
    >>> encoders = {"run": r.normal(size=(200, 3)) + 3 * sex[:, None], "random-init": r.normal(size=(200, 3))}
    >>> results, _ = decode(encoders, Grouping.of_labels("sex", np.array(["F", "M"])[sex]), np.arange(200), parts)
    >>> results[0].target, results[0].metric, results[0].estimate > 0.95
    ('decode:sex', 'auroc', True)
    """
    target, classes = f"decode:{grouping.name}", None
    if grouping.values is not None:
        task, y = "regress", grouping.values
        known = np.isfinite(y)
    else:
        sizes = [
            len(np.unique(patients[(split == "test") & (grouping.codes == k)])) for k in range(len(grouping.names))
        ]
        kept = [code for code, size in enumerate(sizes) if size >= FEWEST]
        task, classes = "classify", tuple(grouping.names[code] for code in kept)
        y = np.full(len(grouping.codes), -1, dtype=np.int64)
        for new, code in enumerate(kept):
            y[grouping.codes == code] = new
        known = y >= 0
    for part in ("train", "test"):
        if len(np.unique(y[known & (split == part)])) < 2:
            return [], [f"{target}: fewer than two values among the {part} patients, so it was not read"]
    report = probe(embeddings, y, patients, split, task=task, target=target, classes=classes,
                   probing=Probing(("linear",)), judging=judging, origin=origin)  # fmt: skip
    results = [replace(r, task=TASK) for r in report.results if r.metric in DECODING and not r.subset]
    results.sort(key=lambda result: DECODING.index(result.metric))
    shortcut = "what a random-init encoder reads as well (letters in the picture, its size) is no merit of the training"
    return results, [*report.notes, shortcut]
