"""What the studies ask of frozen encoders alike: embeddings of runs, linear probes, retrieval both ways, conflicts.

A `Question` is asked of one encoder at a time: its cell keeps the metric, also in bootstrap draws of the test patients,
and nothing of any image. As the draws are the same for every encoder, cells that were measured on different days, or on
different machines, are compared in pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bolus.data.cohort.cohort import Cohort, Samples
from bolus.device import device
from bolus.embedding.opening import Judged, open_encoder, open_store, samples_of
from bolus.embedding.vectors import embed_samples
from bolus.evaluation.probing.fitting import Labelled, fit_linear
from bolus.evaluation.probing.probe import draw_patients
from bolus.evaluation.retrieval.ranking import ranks
from bolus.evaluation.statistics.arms import Measured, compare_arms, compare_measured, measure_arms
from bolus.evaluation.statistics.metrics import METRICS
from bolus.run import Run

Array = NDArray[Any]
Vectors = dict[str, list[Array]]
"""Arm -> one array a seed."""
Besides = Mapping[str, Mapping[str, Callable[[Judged, int], Any]]]
"""Arm -> further encoders that its run gives: name -> (opened run, seed) -> encoder."""


class Embedded(NamedTuple):
    """A cohort's samples that can be read, and their embeddings."""

    cohort: Cohort
    samples: Samples
    positions: Array  # of these samples
    rows: Array  # the first of each
    vectors: Vectors

    @property
    def patients(self) -> Array:
        """Codes."""
        return self.cohort.encoded("patient")[self.rows]

    @property
    def split(self) -> Array:
        """train, val or test."""
        return self.cohort.split[self.rows]


KEPT_DRAWS = 400
UNIT = 1e-5  # in which cells keep draws, as whole numbers


@dataclass(frozen=True)
class Question:
    """What is asked of predictions of the test samples.

    Args:
        facts: of its lines; `metric` among them.
        metric: of (y, p, weights).
        y: `[n]` or `[n, C]` targets of the test samples.
        patients: `[n]` codes.
    """

    facts: Mapping[str, Any]
    metric: Callable[..., Any]
    y: Array
    patients: Array


def measure(questions: Mapping[str, Question], said: Mapping[str, Array]) -> dict[str, Any]:
    """What a cell keeps of one encoder: each metric, and what it is in every draw, as multiples of `UNIT`."""
    values, draws = {}, {}
    for name, asked in questions.items():
        found = measure_arms(asked.metric, asked.y, asked.patients, {"": [said[name]]}, draws=KEPT_DRAWS)[""]
        values[name] = round(float(found.values[0]), 6)
        draws[name] = [int(each) for each in np.round(found.draws[0] / UNIT)]
    return {"values": values, "draws": draws}


def compare_cells(
    questions: Mapping[str, Question],
    cells: Sequence[Mapping[str, Any]],
    *,
    order: Sequence[str],
    others: Sequence[str],
    seeds: Sequence[int],
    facts: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Arms compared in pairs by what their cells kept, on the first seeds that both have.

    Args:
        questions: as they were measured.
        cells: lines of a grid whose results `measure` gave.
        order: arms, as they shall stand.
        others: arms with which each is compared.
        seeds: of the study; of an arm those count that no earlier one is missing before.
        facts: copied into every line.
    """
    kept = {(line["cell"]["arm"], line["cell"]["seed"]): line["result"] for line in cells}
    own = {arm: seeds[: [*((arm, seed) in kept for seed in seeds), False].index(False)] for arm in order}
    own = {arm: found for arm, found in own.items() if found}
    most = max(map(len, own.values()), default=0)
    place = {other: number for number, other in enumerate(others)}  # of two of these, the later is compared
    both = [
        (arm, other) for other in others for arm in own if other in own and place.get(arm, len(others)) > place[other]
    ]
    pairs = [(arm, other) for arm, other in both if len(own[arm]) == len(own[other]) == most]
    lines = []
    for name, asked in questions.items():
        measured = {
            arm: Measured(
                [kept[arm, seed]["values"][name] for seed in found],
                np.array([kept[arm, seed]["draws"][name] for seed in found]) * UNIT,
            )
            for arm, found in own.items()
        }
        about = {**facts, **asked.facts}
        rest = [pair for pair in both if pair not in pairs]
        lines += compare_measured(about, asked.y, asked.patients, measured, pairs=pairs, same_seed=rest)
    return lines


def twin(judged: Judged, seed: int) -> Any:
    """The same architecture with fresh weights."""
    return judged.random_twin(seed)


def embed_cohort(judged: Judged, cohort: Cohort, cache: Path, seed: int | None = None) -> Array:
    """Embeddings of every image or volume of a cohort that can be read whole; with a seed, by random weights."""
    samples = samples_of(judged, cohort)
    store = open_store(judged, samples.cohort, cache=cache)
    encoder = judged.encoder if seed is None else judged.random_twin(seed)
    return embed_samples(encoder.to(device()), store, samples, np.arange(len(samples)))


def validation_error(folder: Path, cohort: Cohort, score: str, cache: Path) -> float:
    """MAE of a ridge regression of a score on a run's embeddings; validation patients choose its strength too."""
    x, y = embed_cohort(open_encoder(folder), cohort, cache), cohort.encoded(f"score:{score}")
    train, val, _ = parts_of(np.isfinite(y), cohort.split)
    said = probe(x, y, cohort.encoded("patient"), (train, val, val), "regress")
    return float(METRICS["regress"]["mae"](y[val], said))


def embed_runs(
    runs: Mapping[tuple[str, int], Path], cohort: Path, *, cache: Path, besides: Besides | None = None
) -> Embedded:
    """Embeddings of runs by (arm, seed), and of the encoders that stand beside some of them."""
    vectors: Vectors = {}
    for (arm, seed), folder in runs.items():
        judged = open_encoder(folder)
        samples = samples_of(judged, Cohort.open(cohort))
        store = open_store(judged, samples.cohort, cache=cache)
        positions = np.flatnonzero(samples.readable(store.readable))
        encoders = {arm: judged.encoder}
        encoders |= {name: find(judged, seed) for name, find in (besides or {}).get(arm, {}).items()}
        for name, encoder in encoders.items():
            vectors.setdefault(name, []).append(embed_samples(encoder.to(device()), store, samples, positions))
    return Embedded(samples.cohort, samples, positions, samples.first_row[positions], vectors)


def parts_of(known: Array, split: Array) -> tuple[Array, Array, Array]:
    """Positions of the training, validation and test samples that are known."""
    train, val, test = (np.flatnonzero(known & (split == side)) for side in ("train", "val", "test"))
    return train, val, test


def probe(
    x: Array,
    y: Array,
    patients: Array,
    parts: tuple[Array, Array, Array],
    task: str,
    **more: Any,
) -> Array:
    """Predictions of the test samples by a linear head, fitted and its strength chosen on the other parts."""
    train, val, test = parts
    fit, held = (Labelled(x[at], y[at], patients[at]) for at in (train, val))
    return fit_linear(fit, held, task, **more).predict(x[test])


def probe_all(vectors: Vectors, y: Array, patients: Array, parts: tuple[Array, Array, Array], task: str) -> Vectors:
    """Every arm's predictions."""
    return {arm: [probe(x, y, patients, parts, task) for x in by_seed] for arm, by_seed in vectors.items()}


def draw_labels(patients: Array, y: Array, fraction: float, seed: int) -> Array:
    """Which training samples have their labels in the draw of a seed."""
    return draw_patients(patients, y, "classify", fractions=(fraction,), repeats=1, seed=seed)[fraction, 0]


def patients_of_each(y: Array, patients: Array) -> tuple[int, int]:
    """How many patients have a sample without, and with."""
    without, having = (len(np.unique(patients[y == side])) for side in (0, 1))
    return without, having


def retrieve(
    facts: Mapping[str, Any],
    vectors: Vectors,
    partners: tuple[Array, Array],
    patients: Array,
    *,
    among: Sequence[int] = (1, 5, 10),
    **compared: Any,
) -> list[dict[str, Any]]:
    """How often a sample finds its partner among the first k, the mean of both directions, for every arm.

    Args:
        facts: copied into every line.
        vectors: embeddings.
        partners: positions of the samples, and of those that they should find.
        patients: a code for each pair.
        among: numbers k.
        compared: `pairs` and `same_seed` of `compare_arms`.
    """
    u, v = partners
    places = {arm: [both_ways(x[u], x[v]) for x in by_seed] for arm, by_seed in vectors.items()}
    lines = []
    for k in among:

        def hits(_: Any, p: Any, weights: Any = None, k: int = k) -> Any:
            hit = (p <= k).mean(1)
            return hit.mean() if weights is None else (weights @ hit) / weights.sum(1)

        about = {"task": "retrieve", "metric": f"top_{k}", "chance": k / len(u), **facts}
        lines += compare_arms(about, hits, np.zeros(len(u)), patients, places, **compared)
    return lines


def both_ways(u: Array, v: Array) -> Array:
    """The rank of the partner, `[n, 2]`."""
    one, other = torch.from_numpy(u), torch.from_numpy(v)
    return np.stack([ranks(one, other).numpy(), ranks(other, one).numpy()], axis=1)


def conflicts_of(run: Run) -> dict[str, Any]:
    """How the objectives' gradients stood to each other, where that was looked at.

    For each pair the mean cosine over the training, over its first and last third, and the share of looks below 0; the
    mean norm of each objective's gradient; the last goals.
    """
    lines = [line for line in run.metrics() if line["kind"] == "conflicts"]
    if not lines:
        return {}
    names, cosines = lines[0]["objectives"], np.array([line["cosines"] for line in lines], float)
    third, found = -(-len(lines) // 3), {}
    for a, b in combinations(range(len(names)), 2):
        met = cosines[:, a, b]
        known = np.isfinite(met)
        parts = {
            "cosine": met[known],
            "first third": met[:third][known[:third]],
            "last third": met[-third:][known[-third:]],
            "below 0": (met[known] < 0).astype(float),
        }
        found[f"{names[a]} ~ {names[b]}"] = {
            name: round(float(part.mean()), 3) if len(part) else None for name, part in parts.items()
        }
    norms = np.array([line["norms"] for line in lines], float).mean(0)
    return {
        "looks": len(lines),
        "norms": dict(zip(names, np.round(norms, 4).tolist(), strict=True)),
        "pairs": found,
        "goals": {branch: np.round(values, 3).tolist() for branch, values in lines[-1]["goals"].items()},
    }
