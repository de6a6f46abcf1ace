"""Arms on the same test patients: a metric averaged over seeds, its interval over patients, paired differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bolus.evaluation.statistics.bootstrap import bootstrap_blocks
from bolus.evaluation.statistics.intervals import Estimate
from bolus.evaluation.statistics.verdict import standing, too_few

DRAWS = 2000

Metric = Callable[..., Any]


@dataclass(frozen=True)
class Measured:
    """A metric of one arm on the test patients.

    Args:
        values: of each seed.
        draws: `[seeds, B]` of each seed in each bootstrap draw of the patients; NaN where a draw does not define it.
    """

    values: Sequence[float]
    draws: NDArray[Any]


def measure_arms(
    metric: Metric,
    y: NDArray[Any],
    patients: NDArray[Any],
    predictions: Mapping[str, Sequence[NDArray[Any]]],
    *,
    draws: int = DRAWS,
) -> dict[str, Measured]:
    """A metric of every arm, and what it is in draws of the test patients, the same draws for every arm.

    Arms that are measured apart, with the same test samples in the same order and as many draws, can be compared.

    Args:
        metric: of (y, p, weights).
        y: `[n]` targets of the test samples.
        patients: `[n]` codes.
        predictions: arm -> predictions of the test samples, `[n]` or `[n, K]`, one a seed.
        draws: B.
    """
    blocks: dict[str, list[NDArray[Any]]] = {arm: [] for arm in predictions}
    for weights in bootstrap_blocks(patients, draws=draws, seed=0):
        for arm, seeds in predictions.items():
            blocks[arm].append(np.stack([metric(y, p, weights) for p in seeds]))
    return {
        arm: Measured([metric(y, p) for p in seeds], np.concatenate(blocks[arm], axis=1))
        for arm, seeds in predictions.items()
    }


def compare_arms(
    facts: Mapping[str, Any],
    metric: Metric,
    y: NDArray[Any],
    patients: NDArray[Any],
    predictions: Mapping[str, Sequence[NDArray[Any]]],
    **compared: Any,
) -> list[dict[str, Any]]:
    """What `compare_measured` says of predictions; see `measure_arms` for the arguments."""
    return compare_measured(facts, y, patients, measure_arms(metric, y, patients, predictions), **compared)


def compare_measured(
    facts: Mapping[str, Any],
    y: NDArray[Any],
    patients: NDArray[Any],
    measured: Mapping[str, Measured],
    *,
    pairs: Sequence[tuple[str, str]],
    same_seed: Sequence[tuple[str, str]] = (),
    enough: int | None = None,
) -> list[dict[str, Any]]:
    """One line for every arm, and one for every pair of arms.

    The metric is averaged over seeds; intervals count the chance of the test patients and, with several seeds, that of
    training (`intervals`), and `verdict` is `verdict.standing`, or `too few patients`. `relative` is a difference as a
    share of the other arm's value, with its interval.

    Args:
        facts: copied into every line; `metric` is the name by which intervals know the metric's edges.
        y: `[n]` targets of the test samples.
        patients: `[n]` codes.
        measured: arm -> the metric, of all arms on the same draws.
        pairs: (arm, other) with the same seeds; those with an absent arm are left out.
        same_seed: the same for an arm with fewer seeds than the other, compared on its own ones.
        enough: patients that decide whether anything can be decided; all of the test patients where None.
    """
    facts = {**facts, "num_samples": len(y), "num_patients": len(np.unique(patients))}
    few = too_few(facts["num_patients"] if enough is None else enough, "test patients")
    named: dict[str, Any] = {"metric": facts.get("metric", ""), "y": y}
    lines = []
    for arm, own in measured.items():
        found = Estimate.from_draws(own.values, own.draws, patients, **named)
        by_seed = rounded(own.values)
        lines.append({**facts, "arm": arm, **numbers(found), "seeds": len(by_seed), "by_seed": by_seed})
    for arm, other in [*pairs, *same_seed]:
        if arm not in measured or other not in measured:
            continue
        one, another = measured[arm], measured[other]
        count = min(len(one.values), len(another.values))
        name = f"{arm} - {other}" + (
            f" (seed {', '.join(map(str, range(count)))})" if (arm, other) in same_seed else ""
        )
        gaps = [u - v for u, v in zip(one.values[:count], another.values[:count], strict=True)]
        draws = one.draws[:count] - another.draws[:count]
        gap = Estimate.from_draws(gaps, draws, patients, difference=True, **named)
        with np.errstate(divide="ignore", invalid="ignore"):  # of nothing there is no share
            shares = np.array(gaps) / np.mean(another.values[:count])
            drawn_shares = draws / np.mean(another.draws[:count], axis=0)
        relative = Estimate.from_draws(shares, drawn_shares, patients, difference=True, **named)
        lines.append(
            {
                **facts,
                "difference": name,
                **numbers(gap),
                "relative": rounded([relative.value, relative.low, relative.high]),
                "detectable": None if gap.detectable is None else _short(gap.detectable),
                "p_value": rounded([gap.p_value])[0],
                "verdict": "too few patients" if few else standing(gap.low, gap.high, seeds=count),
                "seeds": count,
                "by_seed": rounded(gaps),
            }
        )
    return lines


def numbers(estimate: Estimate) -> dict[str, float | None]:
    """An estimate as it is written down; None where it is undefined."""
    values = {"estimate": estimate.value, "ci_low": estimate.low, "ci_high": estimate.high, "se": estimate.se}
    return {name: _short(value) if math.isfinite(value) else None for name, value in values.items()}


def rounded(values: Sequence[float]) -> list[float | None]:
    """Values as they are written down; None where undefined."""
    return [_short(value) if math.isfinite(value) else None for value in values]


def _short(value: float) -> float:
    """Six significant digits, so that errors in any unit keep their sign; what rounding alone leaves is 0.

    >>> _short(0.12345678), _short(-0.0000123456789), _short(5.6e-17)
    (0.123457, -1.23457e-05, 0.0)
    """
    return 0.0 if abs(value) < 1e-12 else float(f"{value:.6g}")
