"""Comparisons that were written before verdicts counted the chance of training, judged by the rule of today.

python benchmarks/rejudged.py writes how many of them are still decided.

Their files keep a standard error over patients and the value of every seed, but not how far seeds and patients go
together; that part is counted twice, so that these intervals err on the wide side.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from bolus.evaluation.statistics.intervals import Estimate
from bolus.evaluation.statistics.verdict import standing
from grid import RESULTS, write_results

_QUANTILES = stats.norm.ppf((np.arange(1000) + 0.5) / 1000)
STANDARD = _QUANTILES / _QUANTILES.std(ddof=1)


def rejudged(line: dict[str, Any]) -> dict[str, Any]:
    """A line of `compare_arms` with the interval, detectable difference and verdict of today.

    One that was written by today's rule, or that says nothing of seeds or has none defined, is as it was.
    """
    values = line.get("by_seed")
    if "p_value" in line or not values or None in values or line.get("se") is None:
        return line
    gap = "difference" in line
    if not gap and "arm" not in line:
        return line
    draws = np.tile(float(np.mean(values)) + line["se"] * STANDARD, (len(values), 1))
    positive = line.get("num_positive_patients")
    y = None if positive is None else (np.arange(line["num_patients"]) < positive).astype(np.int64)
    if y is not None and len(np.unique(y)) < 2:
        y = None
    patients = np.arange(line["num_patients"])
    found = Estimate.from_draws(values, draws, patients, metric=line.get("metric", ""), y=y, difference=gap)
    new = {**line, "ci_low": found.low, "ci_high": found.high, "se": found.se}
    if not gap:
        return new
    share = line.get("relative")
    if share and None not in share and line["estimate"]:
        ends = sorted(end * share[0] / line["estimate"] for end in (found.low, found.high))
        new["relative"] = [share[0], *ends]
    few = line["verdict"] == "too few patients"
    new["verdict"] = line["verdict"] if few else standing(found.low, found.high, seeds=line["seeds"])
    return {**new, "detectable": found.detectable or 0.0, "p_value": found.p_value}


@lru_cache(maxsize=64)
def read_results(path: Path) -> Sequence[dict[str, Any]]:
    """The lines of a comparison, as they are judged today, found once; none where it was not made."""
    if not path.is_file():
        return []
    return [rejudged(line) for line in json.loads(path.read_text())["results"]]


def recount() -> list[dict[str, Any]]:
    """How many differences of each file were decided on several seeds, and how many are."""
    lines = []
    for path in sorted(RESULTS.glob("*.json")):
        if "results" not in json.loads(path.read_text()):
            continue
        before = [line for line in json.loads(path.read_text())["results"] if "difference" in line]
        if all("p_value" in line for line in before):  # written by today's rule
            continue
        after = [rejudged(line) for line in before]
        several = [(one, other) for one, other in zip(before, after, strict=True) if one["seeds"] > 1]
        was = [other for one, other in several if one["verdict"] == "decided"]
        stays = [line for line in was if line["verdict"] == "decided"]
        new = [1 for one, other in several if one["verdict"] == "undecided" and other["verdict"] == "decided"]
        lone = [line for line in before if line["seeds"] == 1 and line["verdict"] == "decided"]
        counts = {"differences": len(several), "decided_before": len(was), "decided": len(stays)}
        more = {"newly_decided": len(new), "decided_on_one_seed_before": len(lone)}
        lines.append({"file": path.name, **counts, **more})
    return lines


if __name__ == "__main__":
    found = recount()
    total = {key: sum(line[key] for line in found) for key in found[0] if key != "file"}
    lines = [*found, {"file": "all", **total}]
    write_results(RESULTS / "recount.json", lines)
    for line in lines:
        print(line)
