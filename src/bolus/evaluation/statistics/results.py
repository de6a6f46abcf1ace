"""One number with everything needed to trust it, as a line of JSON: the only thing that reports and tables read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from bolus.errors import EvaluationError, suggest
from bolus.evaluation.statistics.intervals import Estimate
from bolus.files import load_json, strict_json, write_text
from bolus.provenance import versions

MAJORITY = "majority"
"""The name under which stands the prediction that looks at no image."""

RANDOM = "random-init"
"""The name of the judged encoder's architecture with fresh weights."""

START = "start"
"""The name of the pretrained encoder that a run began with."""

TOLD_APART = "cohort:"
"""What the target begins with that asks which of two cohorts an image is of: a warning, and no gain."""


@dataclass(frozen=True)
class Result:
    """One estimate of one metric.

    Args:
        task: `classify`, `regress`, or another evaluation's name.
        target: what was predicted.
        metric: its name in `metrics.METRICS`, or another evaluation's own.
        estimate: the value, in the metric's unit; NaN where undefined.
        ci_low: lower end of the 95 % interval over patients, and over repeats and trainings where there are several
            (`intervals`); NaN where undefined.
        ci_high: upper end, likewise.
        num_samples: test samples with a target.
        num_patients: patients among them.
        fraction: share of the training patients whose targets were used, 0..1.
        seed: of the draws.
        encoder: its name.
        baseline: for a paired difference, what was subtracted: another encoder's name, or `MAJORITY`; else empty.
        split_hash: which split of the cohort; empty where unknown.
        recipe_hash: which recipe trained the encoder; empty where there is none.
        versions: package -> version.
        probe: how the target was read off the encoder, such as `linear`.
        se: standard error, of the same chance as the interval.
        sd_repeats: standard deviation over repeated draws of labels; None with a single draw.
        detectable: the smallest difference that this test would find with 80 % power; None unless a
            difference, and where no draw shows one (`se` is 0).
        num_positive: positive test samples; None unless the target is binary.
        num_positive_patients: patients with a positive test sample; None unless the target is binary.
        notes: what a reader must know, in sentences.
        subset: of which test samples: empty for all of them; `many`, `medium` or `few`, by how common their target is
            in training (`shots.shot_ranges`); or, of pairs, `adjacent` or `non-adjacent`, by whether another time of
            the patient lies between; or, of an audit, the group (`sex=F`) or the two whose gap it is (`sex: M against
            F`). The sample and patient numbers are the subset's.
        labelled_patients: number of training patients whose masks were used, in segmentation; None elsewhere.
        chance: what is expected where the encoder tells nothing, in the metric's unit: of a retrieval, of a random
            order; of a gap between groups, of groups drawn at random over patients. None where nothing says so.
        p_value: of a difference, two-sided, of there being none; of a gap between groups, the share of random groups
            with as large a one. None of a value.
        unit: of a metric that has the target's unit (mean absolute error), where the cohort states that; else empty.
        seeds: trainings of the encoder that the estimate is the mean of. With 1 the chance of training is not in the
            interval, and what is decided is decided for this training.
    """

    task: str
    target: str
    metric: str
    estimate: float
    ci_low: float
    ci_high: float
    num_samples: int
    num_patients: int
    fraction: float = 1.0
    seed: int = 0
    encoder: str = ""
    baseline: str = ""
    split_hash: str = ""
    recipe_hash: str = ""
    versions: dict[str, str] = field(default_factory=versions)
    probe: str = ""
    se: float = math.nan
    sd_repeats: float | None = None
    detectable: float | None = None
    num_positive: int | None = None
    num_positive_patients: int | None = None
    notes: tuple[str, ...] = ()
    subset: str = ""
    labelled_patients: int | None = None
    chance: float | None = None
    p_value: float | None = None
    seeds: int = 1
    unit: str = ""

    @property
    def interval(self) -> str:
        """The estimate with its interval, such as `0.812 [0.774, 0.850]`."""
        return f"{decimals(self.estimate)} [{decimals(self.ci_low)}, {decimals(self.ci_high)}]"

    def to_json(self) -> str:
        """One line of strict JSON; what is not finite is written as null.

        >>> Result("regress", "age", "r2", math.nan, 0.0, 1.0, 9, 3, versions={}).to_json()[:66]
        '{"task": "regress", "target": "age", "metric": "r2", "estimate": n'
        """
        return strict_json(asdict(self))


def decimals(value: float | None, sign: str = "") -> str:
    """Three decimals below ten, one above; below a hundredth two digits that count, since units may be small.

    >>> decimals(0.0714), decimals(31.42), decimals(-0.00083, "+"), decimals(0.0), decimals(None)
    ('0.071', '31.4', '-0.00083', '0.000', '-')
    """
    if value is None or not math.isfinite(value):
        return "-"
    if 1e-9 < abs(value) < 0.01:  # below is rounding
        return f"{value:{sign}.2g}"
    return f"{value:{sign}.{3 if abs(value) < 10 else 1}f}"


def filled(blank: Result, found: Estimate, **fields: Any) -> Result:
    """A result with an estimate, and other fields; where these name a baseline, with what a difference has.

    >>> found = Estimate(0.04, 0.01, 0.07, 0.015, 90, 30, 29.0, 0.012)
    >>> blank = Result("classify", "edema", "auroc", math.nan, math.nan, math.nan, 0, 0, versions={})
    >>> result = filled(blank, found, encoder="run", baseline="random-init")
    >>> result.ci_low, result.p_value, round(result.detectable, 3), filled(blank, found).detectable
    (0.01, 0.012, 0.043, None)
    """
    if fields.get("baseline"):
        p_value = found.p_value if math.isfinite(found.p_value) else None
        fields = {"detectable": found.detectable, "p_value": p_value, **fields}
    return replace(
        blank,
        estimate=found.value,
        ci_low=found.low,
        ci_high=found.high,
        se=found.se,
        num_samples=found.num_samples,
        num_patients=found.num_patients,
        **fields,
    )


_FLOATS = ("estimate", "ci_low", "ci_high", "se")
_NAMES = tuple(f.name for f in fields(Result))
_REQUIRED = tuple(f.name for f in fields(Result) if f.default is MISSING and f.default_factory is MISSING)


def write_results(path: str | Path, results: Iterable[Result], append: bool = False) -> None:
    """Write results as JSON lines, after those already there if `append`; folders are made.

    Without `append` the file appears whole or not at all.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_results(Path(folder, "results.jsonl"), [Result("regress", "age", "mae", 4.0, 3.0, 5.0, 90, 30)])
    ...     [result.metric for result in read_results(Path(folder, "results.jsonl"))]
    ['mae']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(result.to_json() + "\n" for result in results)
    if append:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    else:
        write_text(path, text)


def read_results(path: str | Path) -> list[Result]:
    """Read what `write_results` wrote; null is NaN again where a number is meant.

    Raises:
        EvaluationError: no such file, or a line that is not a result; it names the line.

    >>> read_results("/nowhere.jsonl")
    Traceback (most recent call last):
    bolus.errors.EvaluationError: no result file /nowhere.jsonl
    """
    path = Path(path)
    if not path.is_file():
        raise EvaluationError(f"no result file {path}")
    results = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            values = load_json(line)
        except ValueError as error:
            raise EvaluationError(f"{where} is not JSON ({error})") from error
        if not isinstance(values, dict):
            raise EvaluationError(f"{where}: expected an object, found {type(values).__name__}")
        for key in values:
            if key not in _NAMES:
                raise EvaluationError(f"{where}: unknown key {key!r}; {suggest(key, _NAMES)}")
        lacking = [key for key in _REQUIRED if key not in values]
        if lacking:
            raise EvaluationError(f"{where} lacks {', '.join(lacking)}")
        for key in _FLOATS:
            if values.get(key, math.nan) is None:
                values[key] = math.nan
        results.append(Result(**{**values, "notes": tuple(values.get("notes") or ())}))
    return results
