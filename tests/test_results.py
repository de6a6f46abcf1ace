"""Results on disk: what was written is what is read, and a line that is no result is named."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from bolus.errors import EvaluationError
from bolus.evaluation.statistics.results import Result, read_results, write_results


def result(**changes):
    values = {
        "task": "classify",
        "target": "t",
        "metric": "auroc",
        "estimate": 0.05,
        "ci_low": 0.01,
        "ci_high": 0.09,
        "num_samples": 90,
        "num_patients": 40,
        "encoder": "run",
        "baseline": "other",
        "detectable": 0.06,
    }
    return Result(**(values | changes))


def test_results_survive_the_file(tmp_path):
    path = tmp_path / "deep" / "results.jsonl"
    first = result(notes=("ä note",), sd_repeats=0.1, se=0.02)
    undefined = result(estimate=math.nan, ci_low=math.nan, ci_high=math.inf, detectable=math.nan)
    write_results(path, [first])
    write_results(path, [undefined], append=True)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert "NaN" not in lines[1]
    assert json.loads(lines[1])["estimate"] is None
    loaded = read_results(path)
    assert loaded[0] == first
    assert math.isnan(loaded[1].estimate)
    assert math.isnan(loaded[1].ci_high)
    assert loaded[1].sd_repeats is None
    write_results(path, [first])
    assert read_results(path) == [first]
    assert [p.name for p in path.parent.iterdir()] == ["results.jsonl"]


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", "line 2 is not JSON"), ("[1]", "expected an object"), ('{"task": "x"}', "lacks target, metric")],
)
def test_a_line_that_is_no_result_is_named(tmp_path, line, message):
    path = tmp_path / "results.jsonl"
    path.write_text(result().to_json() + "\n" + line + "\n")
    with pytest.raises(EvaluationError, match=message):
        read_results(path)
    path.write_text(result().to_json().replace("num_samples", "num_sample"))
    with pytest.raises(EvaluationError, match="did you mean 'num_samples'"):
        read_results(path)


def test_a_result_says_what_software_made_it():
    assert result().versions["numpy"] == np.__version__


def test_a_file_from_before_there_were_subsets_still_reads(tmp_path):
    line = json.loads(result().to_json())
    del line["subset"]
    (tmp_path / "results.jsonl").write_text(json.dumps(line) + "\n")
    write_results(tmp_path / "results.jsonl", [result(subset="few")], append=True)
    assert [each.subset for each in read_results(tmp_path / "results.jsonl")] == ["", "few"]
