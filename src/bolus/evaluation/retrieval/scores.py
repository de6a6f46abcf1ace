"""Embeddings and pairs become results: Top-K, ranks, recall and NDCG, beside chance and on shared draws of patients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from bolus.evaluation.retrieval.ranking import ndcg, ranks, recall_at, relevance_by_chance, relevance_by_position
from bolus.evaluation.retrieval.sides import Sides
from bolus.evaluation.settings import Judging, Origin
from bolus.evaluation.statistics.bootstrap import bootstrap_blocks
from bolus.evaluation.statistics.intervals import Estimate
from bolus.evaluation.statistics.metrics import FloatArray, IntArray
from bolus.evaluation.statistics.results import Result, filled
from bolus.evaluation.statistics.verdict import too_few

TOP = (1, 5, 10)
POSITIONS = 10
MEDIAN = "median_rank"


def judge_retrieval(
    embeddings: Mapping[str, NDArray[Any]],
    sides: Sequence[Sides],
    patients: NDArray[Any],
    *,
    across: str,
    judging: Judging | None = None,
    origin: Origin | None = None,
) -> tuple[list[Result], pd.DataFrame]:
    """The results of `evaluate_retrieve`, from embeddings that are there already.

    Args:
        embeddings: encoder name -> `[n, D]` finite floats; the first is judged, the others are baselines.
        sides: whose positions are rows of the embeddings.
        patients: `[n]` codes.
        across: the role that differs.
        judging: with the bootstrap's draws and seed.
        origin: copied into the results.

    Returns:
        Results, and a table with a line for each direction, encoder and pair: `query` and `partner` (rows of the
        embeddings), `rank`, `encoder`, `direction`.

    Raises:
        EvaluationError: embeddings that are not finite.

    Example:
        >>> u = np.random.default_rng(0).normal(size=(40, 8))
        >>> pairs = np.arange(80).reshape(40, 2)
        >>> sides = Sides(("left", "right"), pairs, (pairs[:, 0], pairs[:, 1]))
        >>> both = {"run": np.repeat(u, 2, axis=0), "random-init": np.ones((80, 8))}
        >>> results, table = judge_retrieval(both, [sides], np.repeat(np.arange(40), 2), across="laterality",
        ...                                  judging=Judging(draws=20))
        >>> [(r.target, r.encoder, r.metric, r.estimate, r.chance) for r in results][0]
        ('laterality: left to right', 'run', 'top_1', 1.0, 0.025)
        >>> len(table), float(table["rank"].max())
        (160, 20.5)
    """
    judging, origin = judging or Judging(), origin or Origin()
    draws = judging.draws
    vectors = {encoder: torch.from_numpy(np.asarray(u)) for encoder, u in embeddings.items()}
    patients = np.asarray(patients)
    blank = Result("retrieve", "", "", np.nan, np.nan, np.nan, 0, 0, seed=judging.seed,
                   split_hash=origin.split_hash, recipe_hash=origin.recipe_hash, probe="none")  # fmt: skip
    results, tables = [], []
    for each in sides:
        for near, far in ((0, 1), (1, 0)):
            blank = replace(blank, target=f"{across}: {each.names[near]} to {each.names[far]}")
            query, partner = each.pairs[:, near], each.pairs[:, far]
            found = {encoder: ranks(u[query], u[partner]).numpy() for encoder, u in vectors.items()}
            results += _of_pairs(found, patients[query], blank, draws)
            results += _of_galleries(vectors, each.members[near], each.members[far], patients, blank, draws)
            tables += [
                pd.DataFrame(
                    {"query": query, "partner": partner, "rank": rank, "encoder": encoder, "direction": blank.target}
                )
                for encoder, rank in found.items()
            ]
    return results, pd.concat(tables, ignore_index=True)


def _of_pairs(found: Mapping[str, FloatArray], patients: IntArray, blank: Result, draws: int) -> list[Result]:
    """Results on one pair a participant, from its rank by each encoder, `[N]`."""
    number = len(patients)
    depths = {f"top_{k}": k for k in TOP} | {"top_1_percent": math.ceil(number / 100)}
    noted = f"{number} pairs, one a test patient: chance of Top-K is K / {number}"
    results = []
    for metric, k in depths.items():
        values = {encoder: (rank <= k).astype(np.float64) for encoder, rank in found.items()}
        said = (noted, f"K is {k}, 1 % of {number} rounded up") if metric == "top_1_percent" else (noted,)
        about = replace(blank, metric=metric, chance=min(k / number, 1.0), notes=said)
        results += _compare(values, patients, about, draws)
    about = replace(blank, metric=MEDIAN, chance=(number + 1) / 2, notes=(noted,))
    return [*results, *_compare(found, patients, about, draws)]


def _of_galleries(
    vectors: Mapping[str, torch.Tensor],
    queries: IntArray,
    gallery: IntArray,
    patients: NDArray[Any],
    blank: Result,
    draws: int,
) -> list[Result]:
    """Results on all images of both sides."""
    asked = queries[np.isin(patients[queries], patients[gallery])]
    whose = torch.from_numpy(patients[asked]), torch.from_numpy(patients[gallery])
    values: dict[str, dict[str, FloatArray]] = {}
    number = torch.zeros(0)
    for encoder, u in vectors.items():
        relevance, number = relevance_by_position(u[asked], u[gallery], *whose, positions=POSITIONS)
        for metric, value in _of_lists(relevance, number).items():
            values.setdefault(metric, {})[encoder] = value
    expected = _of_lists(relevance_by_chance(number, len(gallery), positions=POSITIONS), number)
    without = len(queries) - len(asked)
    how_many = " to ".join(dict.fromkeys(str(int(bound)) for bound in (number.min(), number.max())))
    noted = [f"{len(asked)} queries among {len(gallery)} images, {how_many} of them of the query's patient"]
    if without:
        noted.append(f"{without} images whose patient has none on the other side are no queries")
    results = []
    for metric, found in values.items():
        about = replace(blank, metric=metric, chance=float(expected[metric].mean()), notes=tuple(noted))
        results += _compare(found, patients[asked], about, draws)
    return results


def _of_lists(relevance: torch.Tensor, number: torch.Tensor) -> dict[str, FloatArray]:
    """Metric -> its value for each query, from what stands at the first positions."""
    recalls = {f"recall_{k}": recall_at(relevance, number, k).numpy() for k in TOP}
    return {**recalls, f"ndcg_{POSITIONS}": ndcg(relevance, number).numpy()}


def _compare(values: Mapping[str, FloatArray], patients: IntArray, about: Result, draws: int) -> list[Result]:
    """Estimates for all encoders and differences of the first from the others, on the same draws of patients."""
    statistic = weighted_median if about.metric == MEDIAN else weighted_mean
    stacked = np.stack(list(values.values()))  # [encoders, Q]
    blocks = bootstrap_blocks(patients, draws=draws, seed=about.seed)
    drawn = np.concatenate([statistic(stacked, block) for block in blocks], axis=1)  # [encoders, draws]
    whole = statistic(stacked, np.ones((1, len(patients)), dtype=np.int32))[:, 0]
    few = too_few(len(np.unique(patients)), "test patients")
    encoders = list(values)
    results = []
    for place, other in [
        *((place, None) for place in range(len(encoders))),
        *((0, o) for o in range(1, len(encoders))),
    ]:
        value, sample = whole[place], drawn[place]
        if other is not None:
            value, sample = value - whole[other], sample - drawn[other]
        found = Estimate.from_draws(value, sample, patients, metric=about.metric, difference=other is not None)
        results.append(
            filled(
                about,
                found,
                encoder=encoders[place],
                baseline="" if other is None else encoders[other],
                recipe_hash=about.recipe_hash if place == 0 else "",
                chance=about.chance if other is None else None,
                notes=(*([few] if few and other is not None else []), *about.notes),
            )
        )
    return results


def weighted_mean(values: NDArray[Any], weights: NDArray[Any]) -> FloatArray:
    """Means of the rows of `values [E, Q]`, query q counted `weights[b, q]` times: `[E, B]`.

    >>> weighted_mean(np.array([[1.0, 4.0]]), np.array([[1, 1], [2, 1]])).tolist()
    [[2.5, 2.0]]
    """
    totals = weights.sum(1, dtype=np.float64)
    return np.asarray(values @ weights.T.astype(np.float64) / totals)


def weighted_median(values: NDArray[Any], weights: NDArray[Any]) -> FloatArray:
    """Medians likewise; between two middle values their mean.

    >>> weighted_median(np.array([[1.0, 4.0, 9.0]]), np.array([[1, 1, 1], [1, 1, 0], [0, 1, 2]])).tolist()
    [[4.0, 2.5, 9.0]]
    """
    found = []
    for row in values:
        order = np.argsort(row, kind="stable")
        cumulated = weights[:, order].cumsum(1, dtype=np.int64)
        twice, total = 2 * cumulated, cumulated[:, -1:]
        found.append((row[order[(twice < total).sum(1)]] + row[order[(twice <= total).sum(1)]]) / 2)
    return np.stack(found)
