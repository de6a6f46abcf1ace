"""How often a verdict is wrong: false findings, findings missed, and coverage, by simulation of patients and trainings.

python benchmarks/verdicts.py [null power fractions coverage]
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bolus.evaluation.statistics.bootstrap import patient_bootstrap
from bolus.evaluation.statistics.intervals import Estimate
from bolus.evaluation.statistics.metrics import METRICS, auroc
from grid import RESULTS, run_grid

Array = NDArray[Any]

STUDIES = 1000
NULL_STUDIES = 4000  # so that .08 is told from .07
DRAWS = 500
D_PRIME = 1.0  # of the mean encoder: an AUROC of .76
SHARED = 0.5  # share of the variance of a score, within a class, that all encoders have in common
WITHIN = 0.25  # share that the trainings of one arm have in common besides


def study(
    rng: np.random.Generator, patients: int, seeds: int, spread: float, gap: float = 0.0, prevalence: float = 0.3
) -> tuple[Array, dict[str, list[Array]]]:
    """Labels of patients, one image each, and their scores by two arms of so many trainings.

    A training's encoder has a d' (how far the classes lie apart, in standard deviations) of its own, normal about 1
    with the standard deviation `spread`; the first arm's mean is higher by `gap`.
    """
    y = (np.arange(patients) < round(prevalence * patients)).astype(np.int64)
    common = np.sqrt(SHARED) * rng.normal(size=patients)
    arms: dict[str, list[Array]] = {}
    for arm, mean in (("a", D_PRIME + gap), ("b", D_PRIME)):
        own = np.sqrt(WITHIN) * rng.normal(size=patients)
        noise = np.sqrt(1 - SHARED - WITHIN) * rng.normal(size=(seeds, patients))
        arms[arm] = [common + own + each + (mean + spread * rng.normal()) * y for each in noise]
    return y, arms


def areas(y: Array, scores: Array, weights: Array) -> Array:
    """AUROC of scores `[R, n]` in every draw `[R, B]`: as `metrics.auroc` has it, faster where n is small."""
    positive, negative = weights[:, y == 1], weights[:, y == 0]
    pairs = positive.sum(1) * negative.sum(1)
    above = [(score[y == 1][:, None] > score[y == 0]).astype(np.float64) for score in scores]
    with np.errstate(invalid="ignore"):
        return np.stack([((positive @ each) * negative).sum(1) / pairs for each in above])


def differences(y: Array, arms: dict[str, list[Array]], weights: Array) -> tuple[Array, Array]:
    """AUROC of the first arm less that of the second: `[R]`, and `[R, B]` in the draws."""
    every = np.concatenate([np.ones((1, len(y))), weights])
    found = areas(y, np.stack(arms["a"]), every) - areas(y, np.stack(arms["b"]), every)
    return found[:, 0], found[:, 1:]


def judge(y: Array, arms: dict[str, list[Array]], weights: Array) -> dict[str, float]:
    """What the rule says of a study, and what the rule before it said: percentiles, and seeds that point one way."""
    values, draws = differences(y, arms, weights)
    found = Estimate.from_draws(values, draws, np.arange(len(y)), metric="auroc", y=y, difference=True)
    low, high = np.percentile(draws.mean(0), [2.5, 97.5])
    before = (low > 0 and values.min() > 0) or (high < 0 and values.max() < 0)
    sign = np.sign(found.value)
    return {
        "difference": found.value,
        "now": float(found.low > 0 or found.high < 0),
        "before": float(before),
        "right": float((found.low > 0 or found.high < 0) and sign > 0),
        "right_before": float(before and sign > 0),
    }


def _weights(patients: int, seed: int) -> Array:
    """Multiplicities of the patients in every draw."""
    return patient_bootstrap(np.arange(patients), draws=DRAWS, seed=seed).astype(np.float64)


def over_studies(
    patients: int, seeds: int, spread: float, gap: float = 0.0, studies: int = STUDIES
) -> dict[str, Array]:
    """Every number of `judge`, over studies."""
    rng = np.random.default_rng([patients, seeds, round(100 * spread), round(1e6 * gap)])
    found = []
    for number in range(studies):
        y, arms = study(rng, patients, seeds, spread, gap)
        found.append(judge(y, arms, _weights(patients, number)))
    return {name: np.array([each[name] for each in found]) for name in found[0]}


def measure_null(patients: int, seeds: int, spread: float) -> dict[str, Any]:
    """How often two arms with one distribution of encoders are told apart, and their difference's standard error."""
    found = over_studies(patients, seeds, spread, studies=NULL_STUDIES)
    return {
        "studies": NULL_STUDIES,
        "decided": round(float(found["now"].mean()), 4),
        "decided_before": round(float(found["before"].mean()), 4),
        "se": round(float(found["difference"].std(ddof=1)), 5),
    }


def measure_power(patients: int, seeds: int, spread: float, se: float) -> dict[str, Any]:
    """How often a true difference of three standard errors is decided, and decided for the better arm.

    `best` is what a t test with the degrees of freedom of paired seeds alone would find where training is all the
    chance there is, and a normal one where patients are.
    """
    at = np.linspace(-4, 4, 801) * spread
    weight = stats.norm.pdf(np.linspace(-4, 4, 801))

    def area(mean: float) -> float:
        return float((stats.norm.cdf((mean + at) / np.sqrt(2)) * weight).sum() / weight.sum())

    gaps = np.linspace(0, 3, 3001)
    areas = np.array([area(D_PRIME + gap) for gap in gaps[::50]])
    gap = float(np.interp(area(D_PRIME) + 3 * se, areas, gaps[::50]))
    found = over_studies(patients, seeds, spread, gap)
    critical = stats.t.ppf(0.975, max(1, seeds - 1))
    return {
        "studies": STUDIES,
        "gap": round(3 * se, 4),
        "mean_difference": round(float(found["difference"].mean()), 4),
        "found": round(float(found["right"].mean()), 4),
        "found_before": round(float(found["right_before"].mean()), 4),
        "se": round(float(found["difference"].std(ddof=1)), 5),
        "best_if_only_seeds": round(float(stats.nct.sf(critical, max(1, seeds - 1), 3)), 3) if seeds > 1 else None,
        "best_if_only_patients": round(float(stats.norm.sf(stats.norm.ppf(0.975) - 3)), 3),
    }


def measure_fractions(patients: int, repeats: int, spread: float) -> dict[str, Any]:
    """How often two equal encoders are told apart at a label fraction, the mean over so many draws of labels.

    A draw of labelled patients moves both encoders' heads, in part together: `spread` is the standard deviation of d'
    over draws, half of its variance common to both.
    """
    rng = np.random.default_rng([patients, repeats, round(100 * spread), 7])
    now = before = 0
    for number in range(STUDIES):
        y, arms = study(rng, patients, repeats, spread * np.sqrt(0.5))
        shift = spread * np.sqrt(0.5) * rng.normal(size=repeats)
        arms = {arm: [p + s * y for p, s in zip(ps, shift, strict=True)] for arm, ps in arms.items()}
        weights = _weights(patients, number)
        values, draws = differences(y, arms, weights)
        found = Estimate.from_draws(values, draws, np.arange(patients), metric="auroc", y=y, difference=True)
        now += int(found.low > 0 or found.high < 0)
        chosen = np.random.default_rng([number, repeats]).integers(repeats, size=(DRAWS, max(1, repeats - 1)))
        share = np.stack([(chosen == repeat).mean(1) for repeat in range(repeats)])
        low, high = np.percentile((draws * share).sum(0), [2.5, 97.5])
        before += int(low > 0 or high < 0)
    return {"studies": STUDIES, "decided": round(now / STUDIES, 4), "decided_before": round(before / STUDIES, 4)}


def measure_coverage(task: str, patients: int, strength: float, prevalence: float = 0.0) -> dict[str, Any]:
    """How often the interval of each metric holds the true value, now and by percentiles.

    Args:
        task: `binary`, normal scores whose AUROC is `strength`, turned into probabilities by Bayes' rule; `regress`,
            the best prediction of a normal target, whose correlation with it is `strength`.
        patients: one image each.
        strength: of the prediction.
        prevalence: share of positives, of `binary`.
    """
    rng = np.random.default_rng([patients, round(1000 * strength), round(1000 * prevalence)])
    metrics = METRICS["binary" if task == "binary" else "regress"]
    far = np.sqrt(2) * stats.norm.ppf(strength)

    def sample(num: int) -> tuple[Array, Array]:
        if task == "regress":
            y = rng.normal(size=num)
            return y, strength**2 * y + strength * np.sqrt(1 - strength**2) * rng.normal(size=num)
        y = (np.arange(num) < round(num * prevalence)).astype(np.int64)
        logits = far * (rng.normal(size=num) + far * y) - far**2 / 2 + np.log(prevalence / (1 - prevalence))
        return y, 1 / (1 + np.exp(-logits))

    large = sample(1_000_000)
    truth = {name: metric(*large) for name, metric in metrics.items()}
    inside = dict.fromkeys(metrics, 0)
    before = dict.fromkeys(metrics, 0)
    for number in range(STUDIES):
        y, p = sample(patients)
        weights = _weights(patients, number)
        for name, metric in metrics.items():
            value, drawn = metric(y, p), metric(y, p, weights)
            found = Estimate.from_draws(value, drawn, np.arange(patients), metric=name, y=y)
            inside[name] += int(found.low <= truth[name] <= found.high)
            low, high = np.nanpercentile(drawn, [2.5, 97.5])
            before[name] += int(low <= truth[name] <= high)
    return {
        "studies": STUDIES,
        "positives": round(patients * prevalence),
        "covered": {name: round(count / STUDIES, 4) for name, count in inside.items()},
        "covered_before": {name: round(count / STUDIES, 4) for name, count in before.items()},
    }


GRID = [
    {"patients": patients, "seeds": seeds, "spread": spread}
    for spread in (0.0, 0.15, 0.3)
    for patients in (150, 600)
    for seeds in (1, 3, 5)
]
SHARES = [
    {"patients": patients, "repeats": repeats, "spread": spread}
    for spread in (0.0, 0.15, 0.3)
    for patients in (150, 600)
    for repeats in (3, 5)
]
EDGES = [
    {"task": "binary", "patients": patients, "strength": strength, "prevalence": prevalence}
    for patients in (40, 100, 400)
    for prevalence in (0.05, 0.1, 0.25, 0.5)
    for strength in (0.75, 0.9, 0.95, 0.99)
] + [
    {"task": "regress", "patients": patients, "strength": strength}
    for patients in (40, 100, 400)
    for strength in (0.3, 0.6, 0.9)
]

if __name__ == "__main__":
    y_small, arms_small = study(np.random.default_rng(0), 60, 1, 0.0)
    w_small = _weights(60, 0)
    assert np.allclose(
        areas(y_small, np.stack(arms_small["a"]), w_small)[0], auroc(y_small, arms_small["a"][0], w_small)
    )
    chosen = sys.argv[1:] or ["null", "power", "fractions", "coverage"]
    if "null" in chosen:
        run_grid(RESULTS / "verdicts-null.jsonl", GRID, measure_null)
    if "power" in chosen:
        null = {str(line["cell"]): line["result"]["se"] for line in run_grid(RESULTS / "verdicts-null.jsonl", [], dict)}
        run_grid(RESULTS / "verdicts-power.jsonl", [{**cell, "se": null[str(cell)]} for cell in GRID], measure_power)
    if "fractions" in chosen:
        run_grid(RESULTS / "verdicts-fractions.jsonl", SHARES, measure_fractions)
    if "coverage" in chosen:
        run_grid(RESULTS / "verdicts-coverage.jsonl", EDGES, measure_coverage)
