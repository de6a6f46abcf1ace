"""Do samples of a patient that lie far apart have scores that lie far apart? LEARNER's figure 1 as a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bolus.embedding.nearest import normalise
from bolus.evaluation.change.pairs import Pairs
from bolus.evaluation.probing.probe import ProbeReport
from bolus.evaluation.statistics.intervals import Estimate, estimate, paired_difference
from bolus.evaluation.statistics.metrics import FloatArray, mae, spearman
from bolus.evaluation.statistics.results import Result, filled
from bolus.evaluation.statistics.verdict import too_few


def cosine_distance(u: NDArray[Any], pairs: Pairs) -> FloatArray:
    """1 - cosine of the two embeddings of a pair, float64 `[P]` in 0..2; 1 where one of them is zero.

    >>> from bolus.evaluation.change.pairs import find_pairs
    >>> pairs = find_pairs([0, 0], [1.0, 2.0], time=[0.0, 1.0])
    >>> cosine_distance(np.array([[1.0, 0.0], [0.0, 5.0]]), pairs).tolist()
    [1.0]
    """
    unit_nd = normalise(np.asarray(u, dtype=np.float64))
    return np.asarray(1 - (unit_nd[pairs.earlier] * unit_nd[pairs.later]).sum(1))


def judge_distances(
    embeddings: Mapping[str, NDArray[Any]],
    pairs: Pairs,
    patients: NDArray[Any],
    split: NDArray[Any],
    blank: Result,
    *,
    draws: int = 1000,
) -> ProbeReport:
    """Correlate the distance of test pairs with the size of their change, and compare the encoders in that.

    Args:
        embeddings: encoder name -> `[n, D]` floats of the samples; the first is judged, the others are baselines.
        pairs: of those samples; where there is a time, those of `subset` `adjacent` and `non-adjacent` are
            also judged alone.
        patients: `[P]` codes of the pairs.
        split: `[P]` of `train`, `val` and `test`.
        blank: a result with what all have in common: task, target, seed, hashes and notes.
        draws: bootstrap resamples of the patients.

    Returns:
        A report without heads: `spearman` of cosine distance and |change| for each encoder and for the judged one less
        each other, and `mean_change`, the mean |change| in the score's unit, of no encoder. NaN where every test pair
        has one size of change, with a note. Its predictions hold |change| as `y` and the distance as `score`.

    >>> from bolus.evaluation.change.pairs import find_pairs
    >>> u, score = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]] * 30), np.array([0.0, 1.0, 3.0] * 30)
    >>> pairs = find_pairs(np.repeat(np.arange(30), 3), score, time=np.tile([0.0, 1.0, 2.0], 30))
    >>> blank = Result("change", "distance:severity", "spearman", np.nan, np.nan, np.nan, 0, 0)
    >>> who, part = pairs.earlier // 3, np.repeat("test", len(pairs))
    >>> found = judge_distances({"run": u, "other": -u}, pairs, who, part, blank, draws=20).results
    >>> [(r.metric, r.encoder, r.baseline, round(r.estimate, 2)) for r in found][:3]
    [('spearman', 'run', '', 1.0), ('spearman', 'other', '', 1.0), ('spearman', 'run', 'other', 0.0)]
    """
    test, size, near = np.flatnonzero(split == "test"), np.abs(pairs.delta), pairs.adjacent
    distance = {encoder: cosine_distance(u, pairs) for encoder, u in embeddings.items()}
    subsets, notes = {"": test}, []
    if near is not None and near[test].any() and not near[test].all():
        subsets |= {"adjacent": test[near[test]], "non-adjacent": test[~near[test]]}
    elif near is not None:
        notes.append("the test pairs are all adjacent, or none of them is: there are no others to compare them with")
    if np.ptp(size[test]) == 0:
        notes.append("every test pair has the same size of change: its correlation with distance is undefined")
    few = too_few(len(np.unique(patients[test])), "test patients")
    notes += [few] if few else []
    results = []
    for subset, chosen in subsets.items():
        apart = {encoder: d[chosen] for encoder, d in distance.items()}
        results += _compare(apart, size[chosen], patients[chosen], replace(blank, subset=subset), draws)
    columns = {"position": test, "split": "test", "probe": "none", "target": blank.target, "fraction": 1.0, "repeat": 0}
    frames = [
        pd.DataFrame({**columns, "encoder": encoder, "y": size[test], "score": d[test]})
        for encoder, d in distance.items()
    ]
    return ProbeReport(results, pd.concat(frames, ignore_index=True), {}, [*blank.notes, *notes])


def _compare(
    distance: Mapping[str, FloatArray], size: FloatArray, patients: NDArray[Any], blank: Result, draws: int
) -> list[Result]:
    """Estimates and paired differences on some pairs, whose arrays are `[c]`."""
    judged, few = next(iter(distance)), too_few(len(np.unique(patients)), "test patients")

    def result(metric: str, found: Estimate, encoder: str, baseline: str = "") -> Result:
        return filled(
            blank,
            found,
            metric=metric,
            encoder=encoder,
            baseline=baseline,
            recipe_hash=blank.recipe_hash if encoder == judged else "",
            notes=(*blank.notes, *([few] if few and baseline else [])),
        )

    common: dict[str, Any] = {"draws": draws, "seed": blank.seed}
    found = []
    for encoder, d in distance.items():
        found.append(result("spearman", estimate(spearman, size, d, patients, name="spearman", **common), encoder))
    for other in list(distance)[1:]:
        less = paired_difference(spearman, size, distance[judged], distance[other], patients, **common)
        found.append(result("spearman", less, judged, other))
    mean = estimate(mae, size, np.zeros(len(size)), patients, name="mean_change", **common)
    return [*found, result("mean_change", mean, "")]
