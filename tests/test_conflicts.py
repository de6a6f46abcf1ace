"""Objectives in words: each finding on looks whose answer is known."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from bolus.training.gradients.mitigator import Conflicts
from bolus.training.health.conflicts import weigh_conflicts
from bolus.training.health.health import HealthFinding


def look(vectors: dict[str, list[float]], *, pixel: str = "", goals: bool = False) -> dict[str, Any]:
    """What a run logs of objectives with these gradients; those named in `pixel` are of that branch."""
    gradients = torch.tensor(list(vectors.values()), dtype=torch.float64)
    branches = tuple("pixel" if name in pixel else "image" for name in vectors)
    aims = {branch: torch.zeros(1, 1) for branch in branches} if goals else {}
    found = Conflicts(tuple(vectors), branches, gradients @ gradients.T, aims).to_json()
    return dict(json.loads(json.dumps(found, allow_nan=False)))


def at(cosine: float, length: float = 1.0) -> list[float]:
    """A gradient of this cosine with [1, 0, 0]."""
    return [length * cosine, length * math.sqrt(1 - cosine**2), 0.0]


def named(findings: list[HealthFinding]) -> dict[str, HealthFinding]:
    found = {finding.name: finding for finding in findings}
    assert len(found) == len(findings), "names are told apart"
    assert all(finding.sentence.endswith(".") for finding in findings)
    assert all(json.dumps(finding.to_json(), allow_nan=False) for finding in findings)
    return found


ONE = [1.0, 0.0, 0.0]


def test_a_pair_that_pulls_apart_is_named_with_what_to_do() -> None:
    (finding,) = weigh_conflicts([look({"patient": ONE, "phase": at(cosine)}) for cosine in (-0.6, 0.2)])
    assert finding.name == "conflict patient phase"
    assert finding.value == pytest.approx(-0.2)
    assert not finding.good
    start = "patient and phase pull apart in 50 % of 2 looks at their gradients (mean cosine -0.20): "
    assert finding.sentence.startswith(start)
    for cure in ("combiner.kind=grad_mitigator", "combiner.scope=features", "objectives.patient.weight",
                 "objectives.phase.weight", "objectives.phase=null"):  # fmt: skip
        assert cure in finding.sentence


def test_one_look_is_one_look() -> None:
    assert "in the only look at" in weigh_conflicts([look({"a": ONE, "b": at(-0.5)})])[0].sentence
    assert weigh_conflicts([look({"a": ONE, "b": at(0.5)})])[0].sentence.endswith("in 1 look.")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("grad_mitigator", "grad_mitigator reconciles them already, so lower objectives.a.weight"),
        ("pcgrad", "pcgrad reconciles them already, so lower objectives.a.weight"),
        ("torchjd", "combiner.aggregator decides what becomes of them already; try another, or lower objectives.a"),
    ],
)
def test_who_is_reconciled_already_is_not_told_to_be(kind: str, said: str) -> None:
    (finding,) = weigh_conflicts([look({"a": ONE, "b": at(-0.5)}, goals=kind == "grad_mitigator")], kind)
    assert said in finding.sentence
    assert "combiner.kind" not in finding.sentence


def test_where_norms_are_balanced_nobody_is_told_to_balance_them() -> None:
    looks = [look({"a": [97.0, 0.0, 0.0], "b": [0.0, 3.0, 0.0], "c": [0.0, 0.0, 0.1], "mute": [0.0, 0.0, 0.0]})]
    assert {"dominant a", "silent c"} <= set(named(weigh_conflicts(looks)))
    assert set(named(weigh_conflicts(looks, "balanced"))) == {"no conflict", "silent mute"}
    (finding,) = weigh_conflicts([look({"a": ONE, "b": at(-0.5)})], "balanced")
    assert "combiner.kind=grad_mitigator reconciles them" in finding.sentence


def test_whoever_has_a_gradient_only_where_no_other_has_is_not_silent() -> None:
    together = look({"a": ONE, "b": at(0.2), "c": [0.0, 0.0, 0.0]})
    alone = look({"a": [0.0, 0.0, 0.0], "b": [0.0, 0.0, 0.0], "c": ONE})
    assert set(named(weigh_conflicts([together, alone]))) == {"no conflict"}


@pytest.mark.parametrize(
    ("cosines", "apart"),
    [
        ([-0.1001], True),
        ([-0.0999], False),
        ([-0.05, -0.05, -0.05], False),
        ([-0.05, -0.05, -0.05, -0.05], True),
        ([-0.05, -0.05, -0.05, 0.01], False),
        ([-0.05, -0.05, -0.05, -0.05, 0.5], True),
        ([-0.4, 0.6], False),
    ],
    ids=["mean", "not quite", "too few looks", "opposed in all", "in 3 of 4", "in 4 of 5", "on average not"],
)
def test_a_pair_fights_by_its_mean_or_by_how_often(cosines: list[float], apart: bool) -> None:
    found = named(weigh_conflicts([look({"a": ONE, "b": at(cosine)}) for cosine in cosines]))
    assert set(found) == ({"conflict a b"} if apart else {"no conflict"})


def test_peace_is_said_once_with_the_nearest_to_a_conflict() -> None:
    (finding,) = weigh_conflicts([look({"a": ONE, "b": at(0.3), "c": [0.0, 0.0, 1.0]})] * 2)
    assert finding.good
    assert finding.value == pytest.approx(0.0)
    assert finding.sentence == (
        "No two objectives pull apart: the lowest mean cosine of their gradients is 0.00, of a and c in 2 looks."
    )


def test_the_five_worst_are_named_and_the_rest_counted() -> None:
    vectors = {"first": ONE, **{f"o{place}": at(-0.9 + 0.1 * place) for place in range(8)}}
    found = named(weigh_conflicts([look(vectors)]))
    pairs = [name for name in found if name.startswith("conflict ")]
    assert pairs == [f"conflict first o{place}" for place in range(5)], "the worst first"
    assert found["more conflicts"].value == 3.0  # -0.4, -0.3 and -0.2
    assert found["more conflicts"].sentence.startswith("3 more pairs of objectives pull apart")
    assert "no conflict" not in found
    six = {name: vector for name, vector in vectors.items() if name not in ("o6", "o7")}
    assert named(weigh_conflicts([look(six)]))["more conflicts"].sentence.startswith("1 more pair of objectives pulls")


def test_pairs_of_other_branches_are_not_compared() -> None:
    assert weigh_conflicts([look({"a": ONE, "dense": at(-0.9)}, pixel="dense")]) == []
    found = named(weigh_conflicts([look({"a": ONE, "b": at(-0.4), "dense": at(-0.9)}, pixel="dense")]))
    assert set(found) == {"conflict a b"}


def test_every_pair_that_all_but_coincides_is_told() -> None:
    found = named(weigh_conflicts([look({"a": ONE, "b": at(0.95), "c": at(0.93), "d": [0.0, 0.0, 1.0]})]))
    assert set(found) == {"no conflict", "alike a b", "alike a c", "alike b c"}
    assert found["alike a b"].good
    assert found["alike a b"].sentence.startswith("a and b pull alike (mean cosine 0.95): one of them may do")
    assert "objectives.b=null" in found["alike a b"].sentence


def test_who_dominates_its_branch_is_told_with_the_weight_that_makes_it_even() -> None:
    vectors = {"loud": [18.0, 0.0, 0.0], "b": [0.0, 1.0, 0.0], "c": [0.0, 0.0, 1.0], "dense": [0.0, 400.0, 0.0]}
    found = named(weigh_conflicts([look(vectors, pixel="dense")] * 3))
    assert set(found) == {"no conflict", "dominant loud"}
    finding = found["dominant loud"]
    assert finding.value == pytest.approx(0.9)
    assert not finding.good
    assert "loud has 90 % of the gradient of the image branch" in finding.sentence
    assert "lower objectives.loud.weight to 0.056 times what it is" in finding.sentence
    even = look({**vectors, "loud": [1.0, 0.0, 0.0]}, pixel="dense")
    assert set(named(weigh_conflicts([even]))) == {"no conflict"}, "of 18, 1/18 is as much as the others"


def test_the_silent_are_told_apart_from_those_without_a_gradient() -> None:
    vectors = {"a": [0.0, 1.0, 1.0], "b": [0.0, 1.0, -1.0], "quiet": [0.01, 0.0, 0.0], "mute": [0.0, 0.0, 0.0]}
    found = named(weigh_conflicts([look(vectors), look(vectors), look({**vectors, "mute": [2.0, 0.0, 0.0]})]))
    assert set(found) == {"no conflict", "silent quiet", "silent mute", "alike quiet mute"}
    assert found["silent quiet"].value == pytest.approx((2 * 0.01 / 2.8384 + 0.01 / 4.8384) / 3, rel=1e-3)
    assert not found["silent quiet"].good
    assert "raise objectives.quiet.weight" in found["silent quiet"].sentence
    assert "mute has no gradient in 67 % of 3 looks" in found["silent mute"].sentence
    for name in ("quiet", "mute"):
        assert f"objectives.{name}=null" in found[f"silent {name}"].sentence
    seldom = [look(vectors), look({**vectors, "mute": [2.0, 0.0, 0.0]})]
    assert "silent mute" not in named(weigh_conflicts(seldom)), "in half of the looks is not in most"


def test_nobody_dominates_those_who_say_nothing() -> None:
    found = named(weigh_conflicts([look({"a": ONE, "b": [0.0, 0.0, 0.0]})]))
    assert set(found) == {"silent b"}
    assert found["silent b"].value == 0.0
    alone = named(weigh_conflicts([look({"a": ONE, "b": at(0.2), "dense": ONE}, pixel="dense")]))
    assert set(alone) == {"no conflict"}, "the only one of its branch has all of it"


def test_small_gradients_are_no_silence() -> None:
    tiny = {"a": [1e-8, 0.0, 0.0], "b": [0.0, 1e-8, 0.0]}
    assert set(named(weigh_conflicts([look(tiny)]))) == {"no conflict"}


def test_looks_that_are_not_finite_say_nothing() -> None:
    good = look({"a": ONE, "b": at(0.5)})
    broken = look({"a": ONE, "b": [math.inf, 0.0, 0.0]})
    assert weigh_conflicts([]) == []
    assert weigh_conflicts([broken]) == []
    assert weigh_conflicts([good, broken]) == weigh_conflicts([good])
