"""What the studies ask of frozen encoders alike: embeddings of runs, linear probes, retrieval both ways, conflicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bolus.data.cohort.cohort import Cohort, Samples
from bolus.embedding import Judged, embed_samples, open_encoder, open_store, samples_of
from bolus.evaluation.probing.fitting import Labelled, fit_linear
from bolus.evaluation.probing.probe import draw_patients
from bolus.evaluation.retrieval.ranking import ranks
from bolus.evaluation.statistics.arms import compare_arms
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


def twin(judged: Judged, seed: int) -> Any:
    """The same architecture with fresh weights."""
    return judged.random_twin(seed)


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
            vectors.setdefault(name, []).append(embed_samples(encoder, store, samples, positions))
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
    places = {arm: [_both_ways(x[u], x[v]) for x in by_seed] for arm, by_seed in vectors.items()}
    lines = []
    for k in among:

        def hits(_: Any, p: Any, weights: Any = None, k: int = k) -> Any:
            hit = (p <= k).mean(1)
            return hit.mean() if weights is None else (weights @ hit) / weights.sum(1)

        about = {"task": "retrieve", "metric": f"top_{k}", "chance": k / len(u), **facts}
        lines += compare_arms(about, hits, np.zeros(len(u)), patients, places, **compared)
    return lines


def _both_ways(u: Array, v: Array) -> Array:
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
