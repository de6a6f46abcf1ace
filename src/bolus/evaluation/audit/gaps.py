"""Whether a prediction serves every group of patients: its metrics in each, and how far the worst group falls behind.

The largest of several differences lies above 0 by chance alone, so a gap is held against the gaps of random groups:
the same patients and predictions, with the groups dealt out anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bolus.evaluation.audit.chance import outcome_strata, random_groups
from bolus.evaluation.audit.subgroups import FEWEST, Grouping, Part, few_patients, parts_of
from bolus.evaluation.statistics.bootstrap import bootstrap_blocks, cluster_codes
from bolus.evaluation.statistics.intervals import Estimate
from bolus.evaluation.statistics.metrics import (
    AnyArray,
    FloatArray,
    IntArray,
    Metric,
    higher_is_better,
    in_words,
    metrics_of,
)
from bolus.evaluation.statistics.results import Result, decimals, filled
from bolus.evaluation.statistics.verdict import standing
from bolus.seeds import seed_for

ALL = "all"
ALIKE = 25
"""Gaps that one share of random groupings serves: of 1,000 the least p is .001, which Holm over 25 leaves at .025."""


@dataclass
class GroupReport:
    """What was found of the groups.

    Args:
        groups: every metric of every encoder on all samples and in each group (`subset` is `sex=F`), and the paired
            differences of the judged encoder from the others there.
        gaps: every metric of every encoder, worst group against best (`subset` is `sex: M against F`) and against all
            samples (`sex: M against all`). The estimate is by how much the worst is worse, in the metric's unit;
            `chance` is the mean of that in random groups; the first note is the verdict.
        notes: what a reader must know, in sentences.
    """

    groups: list[Result]
    gaps: list[Result]
    notes: list[str] = field(default_factory=list)


def judge_groups(
    y: ArrayLike,
    scores: Mapping[str, NDArray[np.float64]],
    patients: ArrayLike,
    groupings: Sequence[Grouping],
    *,
    blank: Result,
    task: str = "classify",
    num_classes: int = 2,
    draws: int = 1000,
    seed: int = 0,
    together: int = 1,
) -> GroupReport:
    """The metrics of predictions in each group of test patients, and the gaps between groups beside those of chance.

    Intervals and gaps are of the same patient-bootstrap draws; which group is worst and which best is fixed by the
    estimates. Groups with fewer than `FEWEST` patients are left out. Where at least two groups have enough patients
    for a finding (`too_few`), gaps are between those alone; else between all, and undecided. A gap is decided where it
    exceeds that of 95 % of random groups (`random_groups`) and its interval lies above 0. `detectable` is the true gap
    that exceeds them with 80 % power: their 95th percentile + 0.84 standard errors.

    Args:
        y: `[n]` codes 0..K-1 or numbers, none missing.
        scores: encoder name -> `[n]` or `[n, K]` predictions, as the metrics of the task take them; the first is
            judged.
        patients: `[n]` codes; -1 is a patient of its own.
        groupings: of the `n` samples; those of unknown group count among all samples only.
        blank: what every result has in common, such as task and target.
        task: `classify` or `regress`.
        num_classes: K; 0 for regression.
        draws: bootstrap resamples, and random groupings.
        seed: of both.
        together: how many gaps Holm's correction will be over. The p value of a gap is a share of the random groupings,
            of which there are as many more for each further `ALIKE` gaps, so that one can be decided among many.

    Returns:
        The report; a metric that a group does not define is NaN, with a note, and enters no gap.

    >>> r = np.random.default_rng(0)
    >>> y, sex = np.arange(400) % 2, Grouping.of_labels("sex", np.repeat(["F", "M"], 200))
    >>> score = r.normal(size=400) + 3 * y * (sex.codes == 0)
    >>> blank = Result("audit", "sick", "", 0.0, 0.0, 0.0, 0, 0, versions={})
    >>> found = judge_groups(y, {"run": score}, np.arange(400), [sex], blank=blank, draws=200)
    >>> found.gaps[0].subset, found.gaps[0].notes[0][:7]
    ('sex: M against F', 'decided')
    """
    y_n, clusters = np.asarray(y), cluster_codes(patients)
    metrics = metrics_of(task, num_classes)
    everyone = Part("", ALL, np.arange(len(y_n)), few_patients(y_n, clusters, task, num_classes))
    parts, notes = [everyone], []
    by_grouping: list[tuple[Grouping, list[Part]]] = []
    for grouping in groupings:
        kept, said = parts_of(grouping, y_n, clusters, task, num_classes)
        by_grouping.append((grouping, kept))
        parts += kept
        notes += said
    table = _Bootstrap(y_n, scores, clusters, metrics, parts, draws, seed, dealt=draws * -(-together // ALIKE))
    blank = replace(blank, seed=seed)
    groups = [result for part in parts for result in _results_in(part, table, blank, task, num_classes)]
    strata = outcome_strata(y_n, clusters, task)
    gaps = []
    for grouping, kept in by_grouping:
        enough = [part for part in kept if not part.few]
        compared = enough if len(enough) > 1 else kept
        if len(compared) < 2:
            notes.append(f"{grouping.name}: fewer than two groups of {FEWEST} test patients, so there is no gap")
            continue
        small = [part.name for part in kept if part not in compared]
        if small:
            notes.append(
                f"{grouping.name}: gaps are between the other groups than {', '.join(small)}: too few patients"
            )
        gaps += _gaps_of(grouping, compared, everyone, table, strata, blank)
    return GroupReport(groups, gaps, notes)


class _Bootstrap:
    """Metrics of all parts and encoders, as they are and in every draw of the patients."""

    def __init__(
        self,
        y: AnyArray,
        scores: Mapping[str, FloatArray],
        clusters: IntArray,
        metrics: Mapping[str, Metric],
        parts: Sequence[Part],
        draws: int,
        seed: int,
        *,
        dealt: int,
    ) -> None:
        self.y, self.scores, self.clusters, self.metrics = y, scores, clusters, metrics
        self.seed, self.dealt = seed, dealt  # random groupings
        keys = list(product(parts, metrics, scores))
        found: dict[tuple[str, str, str], list[FloatArray]] = {(p.subset, m, e): [] for p, m, e in keys}
        for block in bootstrap_blocks(clusters, draws=draws, seed=seed):
            for part in parts:
                w_bn = block[:, part.rows].astype(np.float64)
                for metric, encoder in product(metrics, scores):
                    p = scores[encoder][part.rows]
                    found[part.subset, metric, encoder].append(metrics[metric](y[part.rows], p, w_bn))
        self.drawn = {key: np.concatenate(blocks) for key, blocks in found.items()}
        self.value = {
            (part.subset, metric, encoder): metrics[metric](y[part.rows], scores[encoder][part.rows])
            for part, metric, encoder in keys
        }


def _results_in(part: Part, table: _Bootstrap, blank: Result, task: str, num_classes: int) -> list[Result]:
    """Every metric of every encoder on a part, and the judged encoder's differences from the others."""
    y, clusters = table.y[part.rows], table.clusters[part.rows]
    binary = task == "classify" and num_classes == 2
    blank = replace(
        blank,
        subset=part.subset,
        num_positive=int((y == 1).sum()) if binary else None,
        num_positive_patients=len(np.unique(clusters[y == 1])) if binary else None,
        notes=(part.few,) if part.few else (),
    )
    judged = next(iter(table.scores))
    results = []
    for metric in table.metrics:
        for encoder in table.scores:
            key = (part.subset, metric, encoder)
            found = Estimate.from_draws(table.value[key], table.drawn[key], clusters, metric=metric, y=y)
            results.append(filled(blank, found, metric=metric, encoder=encoder))
        for other in list(table.scores)[1:]:
            key, less = (part.subset, metric, judged), (part.subset, metric, other)
            value, drawn = table.value[key] - table.value[less], table.drawn[key] - table.drawn[less]
            found = Estimate.from_draws(value, drawn, clusters, metric=metric, y=y, difference=True)
            results.append(filled(blank, found, metric=metric, encoder=judged, baseline=other))
    return results


def _gaps_of(
    grouping: Grouping,
    compared: Sequence[Part],
    everyone: Part,
    table: _Bootstrap,
    strata: IntArray,
    blank: Result,
) -> list[Result]:
    """Worst group against best and against all, for every metric and encoder that two groups define."""
    results = []
    for (metric, encoder), dealt in _dealt(grouping, compared, table, strata).items():
        sign = 1.0 if higher_is_better(metric) else -1.0
        merit = np.array([sign * table.value[part.subset, metric, encoder] for part in compared])
        defined = np.flatnonzero(np.isfinite(merit))
        if len(defined) < 2:
            continue
        order = defined[np.argsort(merit[defined], kind="stable")]
        worst, best = compared[order[0]], compared[order[-1]]
        random, whole = sign * dealt[defined], sign * table.value["", metric, encoder]
        this = replace(blank, metric=metric, encoder=encoder)
        for other, chance in ((best, random.max(0) - random.min(0)), (everyone, whole - random.min(0))):
            less, more = (worst.subset, metric, encoder), (other.subset, metric, encoder)
            rows = np.union1d(worst.rows, other.rows)
            found = Estimate.from_draws(
                sign * (table.value[more] - table.value[less]),
                sign * (table.drawn[more] - table.drawn[less]),
                table.clusters[rows],
                metric=metric,
                y=2 * table.y[rows] + np.isin(rows, worst.rows),  # each class in each group is a mean of its own
                difference=True,
            )
            results.append(_gap(filled(this, found), grouping.name, worst, other, chance))
    return results


def _dealt(
    grouping: Grouping, compared: Sequence[Part], table: _Bootstrap, strata: IntArray
) -> dict[tuple[str, str], FloatArray]:
    """(metric, encoder) -> its value in each of the groups compared, where these are random: `[G, draws]`."""
    rows = np.sort(np.concatenate([part.rows for part in compared]))
    found: dict[tuple[str, str], list[FloatArray]] = {key: [] for key in product(table.metrics, table.scores)}
    seed = seed_for(table.seed, "random groups", grouping.name)
    for block in random_groups(grouping.codes[rows], table.clusters[rows], strata[rows], draws=table.dealt, seed=seed):
        masks = [(block == part.code).astype(np.float64) for part in compared]
        for (metric, encoder), values in found.items():
            y, p = table.y[rows], table.scores[encoder][rows]
            values.append(np.stack([table.metrics[metric](y, p, mask) for mask in masks]))
    return {key: np.concatenate(values, axis=1) for key, values in found.items()}


def _gap(found: Result, attribute: str, worst: Part, other: Part, chance: FloatArray) -> Result:
    """A gap beside those of random groups `[draws]`, with its verdict."""
    defined = chance[np.isfinite(chance)]
    mean = high = float("nan")
    if 2 * len(defined) >= len(chance) and len(defined):
        mean, high = float(defined.mean()), float(np.percentile(defined, 95))
    few = tuple(dict.fromkeys(f"{each.few} ({each.name})" for each in (worst, other) if each.few))
    detectable = high + 0.842 * found.se
    as_large = (1 + int((defined >= found.estimate).sum())) / (1 + len(defined))
    found = replace(
        found,
        subset=f"{attribute}: {worst.name} against {other.name}",
        chance=mean if np.isfinite(mean) else None,
        detectable=detectable if np.isfinite(detectable) else None,
        p_value=as_large if np.isfinite(mean) else None,
    )
    return replace(found, notes=(_verdict(found, worst.name, other.name, high, few), *few))


def _verdict(gap: Result, worst: str, other: str, high: float, few: Sequence[str]) -> str:
    """Its standing, and what random groups show."""
    metric = in_words(gap.metric)
    value, low, higher = (decimals(each) for each in (gap.estimate, gap.ci_low, gap.ci_high))
    span = f"{worst} is worse than {other} by {value} [{low}, {higher}] {metric}"
    if not np.isfinite(high):
        return f"undecided: {span}; most random groups of these sizes do not define it"
    if abs(gap.estimate - high) <= 1e-9 * max(1.0, abs(high)):
        return f"undecided: {span}; groups follow the target so closely that random ones are the same"
    random = f"random groups reach {decimals(high)} in 1 of 20 ({decimals(gap.chance)} on average)"
    if gap.estimate <= high:
        shown = "" if gap.detectable is None else f"; this test set can show {decimals(gap.detectable)} or more"
        return f"undecided: {span}; {random}{shown}"
    if not gap.ci_low > 0:
        return f"undecided: {span}, an interval that holds 0; {random}"
    if few:
        return f"undecided: {span}, but {few[0]}"
    return f"{standing(gap.ci_low, gap.ci_high, seeds=gap.seeds)}: {span}; {random}"
