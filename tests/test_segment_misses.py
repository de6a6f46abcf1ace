"""Distances between surfaces where an encoder misses a class: what they are over, whom that favours, and the remedy."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bolus.errors import EvaluationError
from bolus.evaluation.segmentation import volume_scores as module
from bolus.evaluation.segmentation.notes import classes_missed
from bolus.evaluation.segmentation.stacks import Volume, true_sizes
from bolus.evaluation.segmentation.volume_scores import (
    VolumeScores,
    misses_of,
    results_of,
    score_volumes,
    tabulate_scores,
)
from bolus.evaluation.statistics.metrics import SEGMENTATION, edges_of, higher_is_better
from bolus.evaluation.statistics.results import Result

DIAGONAL = 50.0
NAN = math.nan


def scores_of(hd95: Any, absent: Any = False) -> VolumeScores:
    """From distances `[N, K - 1]`: NaN is a miss, save where `absent` says that the truth lacks the class."""
    hd95 = np.array(hd95, np.float64)
    absent = np.broadcast_to(np.array(absent, bool), hd95.shape)
    hd95[absent] = NAN
    counted = np.where(np.isnan(hd95) & ~absent, DIAGONAL, hd95)
    dice = np.where(absent, NAN, np.where(np.isnan(hd95), 0.0, 0.5))
    return VolumeScores(dice, hd95, counted, np.nan_to_num(dice), np.where(absent, 0.0, 2.0))


def judge(
    encoders: dict[str, list[VolumeScores]], names: tuple[str, ...] = ("a",), distance: str = "hd95_mm"
) -> dict[tuple[str, str, str, str], Result]:
    """Results by (target, metric, encoder, baseline)."""
    made = {(name, 1): repeats for name, repeats in encoders.items()}
    num = len(next(iter(encoders.values()))[0].dice)
    blank = Result("segment", "mask", "dice", NAN, NAN, NAN, 0, 0)
    found = results_of(made, np.arange(num), names, blank, judged="run", distance=distance, num_labelled=5, draws=200)
    return {(each.target, each.metric, each.encoder, each.baseline): each for each in found}


def note_of(result: Result, start: str) -> str:
    (found,) = [note for note in result.notes if note.startswith(start)]
    return found


@pytest.mark.parametrize("distance", ["hd95_mm", "hd95_voxels"])
def test_an_encoder_that_misses_the_hard_volumes_looks_better_until_its_misses_count(distance: str) -> None:
    r = np.random.default_rng(0)
    easy, hard = 2 + r.random((40, 1)), 8 + r.random((20, 1))
    missing = scores_of(np.concatenate([easy, np.full_like(hard, NAN)]))
    finding = scores_of(np.concatenate([easy + 1, hard]))
    for run, other, sign in ((missing, finding, 1), (finding, missing, -1)):
        found = judge({"run": [run], "random-init": [other]}, distance=distance)
        plain, counted = (found["mask", name, "run", "random-init"] for name in (distance, misses_of(distance)))
        assert plain.estimate == pytest.approx(-sign)
        assert sign * plain.ci_low < 0
        assert sign * plain.ci_high < 0
        assert sign * counted.estimate > 0, "what misses 20 of 60 volumes is worse"
        assert sign * counted.ci_low > 0
        assert sign * counted.ci_high > 0
        assert (plain.num_samples, counted.num_samples) == (40, 60)
        worse, better = ("run", "random-init") if sign > 0 else ("random-init", "run")
        alone = {name: found["mask", distance, name, ""].estimate for name in (worse, better)}
        assert alone[worse] < alone[better], "also by itself it looks better"
        said = f"{distance} is over 40 of 60 cases (a class of a volume in a repeat) whose truth has the class, "
        missed = f"missed: {20 if worse == 'run' else 0} by run, {0 if worse == 'run' else 20} by random-init"
        leans = f"leans towards {worse}, which misses it more often; see {misses_of(distance)}"
        ends = {
            "run": f"those in which run found it ({missed}); comparing such values {leans}",
            "both": f"those in which both found it ({missed}); the difference {leans}",
        }
        assert note_of(plain, f"{distance} is over") == said + ends["both"]
        alone_over = said.replace("40", "40" if worse == "run" else "60")
        assert note_of(found["mask", distance, "run", ""], f"{distance} is over") == alone_over + ends["run"]
        over = f"{misses_of(distance)} is over all 60 cases (a class of a volume in a repeat) whose truth has the class"
        for each in (counted, found["mask", misses_of(distance), "run", ""]):
            assert note_of(each, over) == (
                f"{over}; one whose prediction lacks it counts as the diagonal of its volume ({missed})"
            )


def test_estimates_over_misses_equal_loops() -> None:
    r, num = np.random.default_rng(1), 25
    absent = r.random((num, 3)) < 0.3
    encoders = {
        name: [scores_of(np.where(r.random((num, 3)) < 0.3, NAN, 9 * r.random((num, 3))), absent) for _ in range(2)]
        for name in ("run", "random-init")
    }
    found = judge(encoders, ("a", "b", "c"))
    expected = {}
    for name, repeats in encoders.items():
        means = []
        for scores in repeats:
            volumes = []
            for distances, lacking in zip(scores.hd95, absent, strict=True):
                values = [
                    DIAGONAL if math.isnan(distance) else distance
                    for distance, lacks in zip(distances, lacking, strict=True)
                    if not lacks
                ]
                volumes += [sum(values) / len(values)] if values else []
            means.append(sum(volumes) / len(volumes))
        expected[name] = sum(means) / len(means)
        assert found["mask", "hd95_mm_misses", name, ""].estimate == pytest.approx(expected[name])
    difference = found["mask", "hd95_mm_misses", "run", "random-init"]
    assert difference.estimate == pytest.approx(expected["run"] - expected["random-init"])
    judged = int((~absent.all(1)).sum())
    results = [each for (_, metric, _, _), each in found.items() if metric == "hd95_mm_misses"]
    assert {each.num_samples for each in results if each.target == "mask"} == {judged}
    for each in results:
        lost = absent if each.target == "mask" else absent[:, "abc".index(each.target[-1])]
        undefined = note_of(each, "hd95_mm_misses is undefined in ")
        assert undefined == (
            f"hd95_mm_misses is undefined in {2 * lost.sum()} of {2 * lost.size} cases (a class of a volume in a "
            "repeat), where the truth lacks the class, and left out"
        )
        number = int(sum((scores.missed & ~absent)[:, :1].sum() for scores in encoders["run"]))
        if each.target == "mask=a":
            assert f"missed: {number} by run, " in note_of(each, "hd95_mm_misses is over")


def test_numbers_of_cases_are_those_of_the_values() -> None:
    both = scores_of([[1, NAN], [NAN, 2], [3, 4], [5, 6]], [[0, 0], [0, 0], [0, 1], [0, 0]])
    one = scores_of([[1, 1], [1, 1], [1, 1], [NAN, NAN]], [[0, 0], [0, 0], [0, 1], [0, 0]])
    found = judge({"run": [both, both], "random-init": [one, both]}, ("a", "b"))
    told = {key: note_of(each, "hd95_mm is over") for key, each in found.items() if key[1] == "hd95_mm"}
    starts = {key: note.split(" cases")[0] for key, note in told.items()}
    assert starts["mask", "hd95_mm", "run", ""] == "hd95_mm is over 10 of 14"
    assert starts["mask", "hd95_mm", "random-init", ""] == "hd95_mm is over 10 of 14"
    assert starts["mask", "hd95_mm", "run", "random-init"] == "hd95_mm is over 8 of 14"
    assert starts["mask=a", "hd95_mm", "run", ""] == "hd95_mm is over 6 of 8"
    assert starts["mask=b", "hd95_mm", "run", "random-init"] == "hd95_mm is over 3 of 6"
    for note in told.values():
        assert "all miss it as often, so that by number" in note
        assert note.endswith(" leans towards none; see hd95_mm_misses")


def test_an_encoder_that_finds_nothing_has_no_distance_but_a_number_with_misses() -> None:
    nothing, some = scores_of(np.full((30, 1), NAN)), scores_of(np.full((30, 1), 4.0))
    found = judge({"run": [nothing] * 2, "random-init": [some] * 2})
    alone, counted = (found["mask", name, "run", ""] for name in ("hd95_mm", "hd95_mm_misses"))
    assert math.isnan(alone.estimate)
    assert alone.num_samples == 0
    assert "hd95_mm is over 0 of 60 cases" in note_of(alone, "hd95_mm is over")
    assert "(missed: 60 by run, 0 by random-init)" in note_of(alone, "hd95_mm is over")
    assert (counted.estimate, counted.num_samples, counted.num_patients) == (DIAGONAL, 30, 30)
    plain, difference = (found["mask", name, "run", "random-init"] for name in ("hd95_mm", "hd95_mm_misses"))
    assert math.isnan(plain.estimate)
    assert difference.estimate == DIAGONAL - 4
    assert difference.num_samples == 30
    both = judge({"run": [nothing], "random-init": [nothing]})["mask", "hd95_mm_misses", "run", "random-init"]
    assert both.estimate == 0


def test_where_nothing_is_missed_both_distances_are_the_same_and_a_note_says_so() -> None:
    r = np.random.default_rng(2)
    absent = np.arange(30)[:, None] < 4
    found = judge({name: [scores_of(9 * r.random((30, 1)), absent)] for name in ("run", "random-init")})
    for encoder, baseline in (("run", ""), ("random-init", ""), ("run", "random-init")):
        plain, counted = (found["mask", name, encoder, baseline] for name in ("hd95_mm", "hd95_mm_misses"))
        assert plain.estimate == counted.estimate
        assert plain.num_samples == counted.num_samples == 26
        assert note_of(plain, "hd95_mm is over 26 of 26").endswith("random-init); nothing was missed")
        assert not any("hd95" in note for note in found["mask", "dice", encoder, baseline].notes)


def test_whom_distances_lean_towards_with_one_encoder_and_with_several() -> None:
    missing, finding = scores_of([[NAN], [2.0]]), scores_of([[1.0], [2.0]])
    alone = judge({"run": [missing]})["mask", "hd95_mm", "run", ""]
    assert note_of(alone, "hd95_mm is over 1 of 2").endswith(
        "(missed: 1 by run); what was missed does not count; see hd95_mm_misses"
    )
    several = judge({"run": [missing], "random-init": [finding], "other": [missing]})
    assert "leans towards run and other, which miss it more often" in str(several["mask", "hd95_mm", "run", ""].notes)
    assert "leans towards run, which misses" in str(several["mask", "hd95_mm", "run", "random-init"].notes)
    assert "leans towards none" in str(several["mask", "hd95_mm", "run", "other"].notes)


def test_misses_of_other_numbers_of_labelled_patients_are_not_counted_in() -> None:
    missing, finding = scores_of([[NAN], [2.0]]), scores_of([[1.0], [2.0]])
    scores = {
        ("run", 1): [missing],
        ("run", 6): [finding],
        ("random-init", 1): [missing],
        ("random-init", 6): [finding],
    }
    blank = Result("segment", "mask", "dice", NAN, NAN, NAN, 0, 0)
    found = results_of(scores, np.arange(2), ("a",), blank, judged="run", distance="hd95_mm", num_labelled=6, draws=9)
    for each in found:
        if each.metric == "hd95_mm":
            number = 1 if each.labelled_patients == 1 else 0
            assert f"missed: {number} by run, {number} by random-init" in note_of(each, "hd95_mm is over")
    (said,) = classes_missed(scores, "hd95_mm")
    assert said == (
        "a class that the truth of a test volume has was not predicted at all by run in 1 of 4, random-init in 1 of 4 "
        "cases: hd95_mm leaves these out and leans towards an encoder that misses more; hd95_mm_misses counts each as "
        "the diagonal of its volume"
    )
    assert classes_missed({("run", 1): [finding]}, "hd95_mm") == []


@pytest.mark.parametrize("in_mm", [False, True], ids=["voxels", "mm"])
def test_volumes_are_scored_with_the_diagonal_of_their_own(in_mm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    full, half = np.zeros((4, 30, 40), np.int64), np.zeros((4, 30, 40), np.int64)
    full[:, :9, :9], full[:, 20:, 20:], half[:, :9, :9] = 1, 2, 1
    kinds = [(full, full), (full, half), (half, full), (half, 0 * half), (full[:1], half[:1])]  # truth, prediction
    spacing = (10.0, 1.0, 0.5)
    volumes = [Volume(np.arange(len(truth)), 0, truth, spacing) for truth, _ in kinds]
    guesses = {id(volume): guess for volume, (_, guess) in zip(volumes, kinds, strict=True)}
    monkeypatch.setattr(module, "predict_volume", lambda _, volume: guesses[id(volume)])
    segmenter: Any = SimpleNamespace(num_classes=3)
    scores = score_volumes(segmenter, volumes, in_mm=in_mm)
    whole = math.hypot(40, 30, 20) if in_mm else math.hypot(4, 30, 40)
    plane = math.hypot(30, 20) if in_mm else 50.0
    expected = [[0, 0], [0, whole], [0, NAN], [whole, NAN], [0, plane]]
    np.testing.assert_allclose(scores.hd95_misses, expected)
    np.testing.assert_allclose(scores.hd95, np.where(np.array(expected) > 0, NAN, expected))
    assert scores.missed.tolist() == [[False, False], [False, True], [False, False], [True, False], [False, True]]
    assert np.isnan(scores.hd95_misses).tolist() == np.isnan(scores.dice).tolist(), "both are decided by the truth"
    distance = "hd95_mm" if in_mm else "hd95_voxels"
    sizes = true_sizes(volumes, 3)
    table = tabulate_scores(scores, np.arange(1, 6), ("a", "b"), {"encoder": "run"}, distance, sizes)
    assert table["true_voxels"].tolist() == [324, 800, 324, 800, 324, 0, 324, 0, 81, 200]
    np.testing.assert_allclose(
        table["true_ml"], [1.62, 4, 1.62, 4, 1.62, 0, 1.62, 0, NAN, NAN]
    )  # a slice has no volume
    assert list(table) == ["row", "encoder", "class", "true_voxels", "true_ml", "dice", distance, f"{distance}_misses"]
    np.testing.assert_array_equal(table[f"{distance}_misses"], scores.hd95_misses.ravel())


def test_distances_with_misses_are_known_metrics() -> None:
    for name in ("hd95_mm", "hd95_voxels"):
        assert misses_of(name) in SEGMENTATION
        assert not higher_is_better(misses_of(name))
        assert edges_of(misses_of(name)) == (0.0, math.inf)
    with pytest.raises(EvaluationError, match="did you mean 'hd95_mm_misses'"):
        higher_is_better("hd95_mm_missed")
