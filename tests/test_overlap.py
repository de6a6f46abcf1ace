"""Dice and surface distance against loops over sets of voxels, on shapes whose answer one can picture."""

from __future__ import annotations

import math
import warnings
from itertools import product

import numpy as np
import pytest

from bolus.errors import UsageError
from bolus.evaluation.segmentation.overlap import count_misses, pooled_dice, volume_diagonal, volume_dice, volume_hd95

Voxel = tuple[int, ...]


def members(labels: np.ndarray, label: int) -> set[Voxel]:
    return {place for place in product(*map(range, labels.shape)) if labels[place] == label}


def naive_dice(predicted: np.ndarray, truth: np.ndarray, label: int) -> float:
    one, other = members(predicted, label), members(truth, label)
    return 2 * len(one & other) / (len(one) + len(other)) if other else math.nan


def surface(voxels: set[Voxel]) -> list[Voxel]:
    """Voxels with a neighbour across a face that is not of the set."""
    found = []
    for place in sorted(voxels):
        steps = [tuple(p + s * (a == axis) for a, p in enumerate(place)) for axis in range(len(place)) for s in (-1, 1)]
        if any(neighbour not in voxels for neighbour in steps):
            found.append(place)
    return found


def percentile(values: list[float], q: float) -> float:
    """With linear interpolation between the two closest ranks."""
    values = sorted(values)
    rank = q / 100 * (len(values) - 1)
    low, share = math.floor(rank), rank - math.floor(rank)
    return values[low] + share * (values[min(low + 1, len(values) - 1)] - values[low])


def naive_hd95(predicted: np.ndarray, truth: np.ndarray, label: int, spacing: tuple[float, ...] | None) -> float:
    if predicted.shape[0] == 1 and predicted.ndim == 3:
        predicted, truth, spacing = predicted[0], truth[0], None if spacing is None else spacing[1:]
    steps = spacing or (1.0,) * predicted.ndim
    one, other = surface(members(predicted, label)), surface(members(truth, label))
    if not one or not other:
        return math.nan

    def apart(a: Voxel, b: Voxel) -> float:
        return math.sqrt(sum(((p - q) * step) ** 2 for p, q, step in zip(a, b, steps, strict=True)))

    directed = [[min(apart(a, b) for b in there) for a in here] for here, there in ((one, other), (other, one))]
    return max(percentile(distances, 95) for distances in directed)


def clumps(shape: tuple[int, ...], seed: int, num_classes: int = 4) -> np.ndarray:
    """Boxes of several classes at random places, some of them at the border; sometimes a class is missing."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int64)
    for label in range(1, num_classes):
        if rng.random() < 0.15:
            continue
        start = [int(rng.integers(0, max(1, length - 1))) for length in shape]
        labels[tuple(slice(s, s + int(rng.integers(1, 5))) for s in start)] = label
    return labels


SHAPES = [(5, 9, 8), (1, 9, 8), (9, 8), (2, 6, 7), (3, 1, 9)]
shaped = pytest.mark.parametrize("shape", SHAPES, ids=["x".join(map(str, shape)) for shape in SHAPES])
SPACING = [None, (1.0, 1.0, 1.0), (8.0, 1.5, 0.7)]
spaced = pytest.mark.parametrize("spacing", SPACING, ids=["voxels", "unit", "anisotropic"])


def equal(found: np.ndarray | float, expected: object) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=0, equal_nan=True)


@shaped
def test_dice_is_that_of_sets(shape: tuple[int, ...]) -> None:
    for seed in range(12):
        predicted, truth = clumps(shape, seed), clumps(shape, seed + 100)
        found = volume_dice(predicted, truth, 4)
        assert found.dtype == np.float64
        equal(found, [naive_dice(predicted, truth, label) for label in (1, 2, 3)])
        both = [bool((each == label).any()) for label in (1, 2, 3) for each in (predicted, truth)]
        shared = np.array(both).reshape(3, 2).all(1)
        equal(volume_dice(truth, predicted, 4)[shared], found[shared])


@shaped
@spaced
def test_hd95_is_that_of_sets_of_surface_voxels(shape: tuple[int, ...], spacing: tuple[float, ...] | None) -> None:
    finite = 0
    for seed in range(6):
        predicted, truth = clumps(shape, seed), clumps(shape, seed + 100)
        found = volume_hd95(predicted, truth, 4, spacing)  # type: ignore[arg-type]
        steps = spacing[-len(shape) :] if spacing else None
        assert found.dtype == np.float64
        equal(found, [naive_hd95(predicted, truth, label, steps) for label in (1, 2, 3)])
        equal(volume_hd95(truth, predicted, 4, spacing), found)  # type: ignore[arg-type]
        finite += int(np.isfinite(found).sum())
    assert finite > 3


def cube(shape: tuple[int, int, int], start: tuple[int, int, int], side: int, label: int = 1) -> np.ndarray:
    labels = np.zeros(shape, np.int64)
    labels[tuple(slice(s, s + side) for s in start)] = label
    return labels


def test_cubes_beside_each_other() -> None:
    truth, predicted = cube((12, 12, 20), (3, 3, 3), 4), cube((12, 12, 20), (3, 3, 5), 4)
    equal(volume_dice(predicted, truth, 2), [0.5])
    equal(volume_hd95(predicted, truth, 2), [2.0])
    equal(volume_hd95(predicted, truth, 2, (5.0, 1.0, 0.5)), [1.0])
    along_slices = cube((12, 12, 20), (5, 3, 3), 4)
    equal(volume_hd95(along_slices, truth, 2, (5.0, 1.0, 0.5)), [10.0])
    along_rows = cube((12, 12, 20), (3, 5, 3), 4)
    equal(volume_hd95(along_rows, truth, 2, (5.0, 1.5, 0.5)), [3.0])


def test_identical_volumes() -> None:
    truth = clumps((4, 9, 9), 3)
    found = [volume_dice(truth, truth, 4), 1 - volume_hd95(truth, truth, 4, (3.0, 1.0, 1.0))]
    present = [bool((truth == label).any()) for label in (1, 2, 3)]
    assert any(present)
    for values in found:
        equal(values, [1.0 if there else math.nan for there in present])


def test_distance_is_symmetric_and_not_that_of_one_direction() -> None:
    truth, predicted = cube((3, 9, 30), (0, 2, 2), 3), cube((3, 9, 30), (0, 2, 2), 3)
    predicted[:, 2:5, 15:18] = 1  # which truth does not have: close from truth, far from the prediction
    equal(volume_hd95(predicted, truth, 2), volume_hd95(truth, predicted, 2))
    assert volume_hd95(predicted, truth, 2)[0] > 10


def test_outliers_below_five_percent_do_not_count() -> None:
    truth = cube((30, 30, 30), (2, 2, 2), 20)
    predicted = truth.copy()
    predicted[28, 28, 28] = 1
    equal(volume_hd95(predicted, truth, 2), [0.0])


def test_empty_classes() -> None:
    empty, full = np.zeros((3, 5, 5), np.int64), cube((3, 5, 5), (0, 1, 1), 2, label=2)
    equal(volume_dice(empty, empty, 4), [math.nan] * 3)
    equal(volume_dice(empty, full, 4), [math.nan, 0.0, math.nan])
    equal(volume_dice(full, empty, 4), [math.nan] * 3)  # as if nothing had been predicted
    equal(volume_dice(full, np.where(full == 2, 3, 0), 4), [math.nan, math.nan, 0.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for one, other in ((empty, empty), (empty, full), (full, empty)):
            equal(volume_hd95(one, other, 4), [math.nan] * 3)
        equal(volume_hd95(full, full, 4), [math.nan, 0.0, math.nan])  # without a warning of MONAI's
    equal(volume_dice(empty, empty, 1), [])
    equal(volume_hd95(empty, empty, 1), [])


def test_what_is_scored_by_dice_is_decided_by_the_truth() -> None:
    for seed in range(12):
        truth = clumps((3, 7, 8), seed + 100)
        absent = [not (truth == label).any() for label in (1, 2, 3)]
        for predicted in (clumps((3, 7, 8), seed), np.zeros_like(truth), np.full_like(truth, 3)):
            assert np.isnan(volume_dice(predicted, truth, 4)).tolist() == absent


def test_one_slice_is_measured_in_its_plane() -> None:
    truth, predicted = np.zeros((1, 20, 20), np.int64), np.zeros((1, 20, 20), np.int64)
    truth[0, 3:13, 3:13] = 1
    predicted[0, 5:11, 5:11] = 1
    # As a volume every voxel of a single slice would be on the surface, and the distance that of a filled square.
    expected = naive_hd95(predicted[0], truth[0], 1, None)
    assert expected > 2
    for one, other in ((predicted, truth), (predicted[0], truth[0])):
        equal(volume_hd95(one, other, 2), [expected])
        equal(volume_hd95(one, other, 2, (8.0, 2.0, 2.0)), [2 * expected])
        equal(volume_hd95(one, other, 2, (math.nan, 2.0, 2.0)), [2 * expected])  # a slice has no slice spacing
        equal(volume_dice(one, other, 2), [2 * 36 / 136])


def naive_diagonal(shape: tuple[int, ...], spacing: tuple[float, ...] | None) -> float:
    """From one corner of the box to the opposite one; of one slice, of its rectangle."""
    steps = spacing or (1.0, 1.0, 1.0)
    total = 0.0
    for axis in (-1, -2, -3):
        if axis >= -len(shape) and not (axis == -3 and shape[0] == 1):
            total += (shape[axis] * steps[axis]) ** 2
    return math.sqrt(total)


@shaped
@spaced
def test_a_missed_class_counts_as_the_diagonal(shape: tuple[int, ...], spacing: tuple[float, ...] | None) -> None:
    steps = spacing[-len(shape) :] if spacing else None
    kinds = {"found": 0, "missed": 0, "absent": 0}
    for seed in range(12):
        predicted, truth = clumps(shape, seed), clumps(shape, seed + 100)
        predicted[predicted == seed % 3 + 1] = 0
        truth[truth == seed % 4] = 0
        expected = []
        for label in (1, 2, 3):
            if not members(truth, label):
                kinds["absent"] += 1
                expected.append(math.nan)
            elif not members(predicted, label):
                kinds["missed"] += 1
                expected.append(naive_diagonal(shape, spacing))
            else:
                kinds["found"] += 1
                expected.append(naive_hd95(predicted, truth, label, steps))
        plain = volume_hd95(predicted, truth, 4, spacing)  # type: ignore[arg-type]
        before = plain.copy()
        found = count_misses(plain, truth, spacing)  # type: ignore[arg-type]
        assert found.dtype == np.float64
        equal(found, expected)
        equal(plain, before)  # what is given stays as it is
    assert min(kinds.values()) > 2


def test_what_is_scored_with_misses_is_decided_by_the_truth() -> None:
    for seed in range(12):
        truth = clumps((3, 7, 8), seed + 100)
        absent = [not (truth == label).any() for label in (1, 2, 3)]
        for predicted in (clumps((3, 7, 8), seed), np.zeros_like(truth), np.full_like(truth, 3), truth):
            assert np.isnan(count_misses(volume_hd95(predicted, truth, 4), truth)).tolist() == absent


@shaped
@spaced
def test_no_distance_that_is_found_reaches_the_diagonal(
    shape: tuple[int, ...], spacing: tuple[float, ...] | None
) -> None:
    one, other = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    one.flat[0], other.flat[-1] = 1, 1
    farthest = volume_hd95(one, other, 2, spacing)[0]  # type: ignore[arg-type]
    assert 0.5 * farthest < farthest < volume_diagonal(shape, spacing)  # type: ignore[arg-type]


def test_the_diagonal_of_anisotropic_volumes_and_single_slices() -> None:
    truth, nothing = np.ones((2, 30, 40), np.int64), np.full(1, math.nan)
    equal(count_misses(nothing, truth), [math.sqrt(4 + 900 + 1600)])
    equal(count_misses(nothing, truth, (60.0, 1.0, 1.0)), [130.0])
    equal(count_misses(nothing, truth, (5.0, 4.0, 0.0125)), [math.sqrt(100 + 14400 + 0.25)])
    for slice_ in (truth[:1], truth[0]):
        equal(count_misses(nothing, slice_), [50.0])
        equal(count_misses(nothing, slice_, (60.0, 0.1, 0.1)), [5.0])
        equal(count_misses(nothing, slice_, (math.nan, 4.0, 4.0)), [200.0])  # a slice has no slice spacing


def test_misses_of_what_cannot_be_are_refused() -> None:
    truth, nothing = np.ones((2, 3, 4), np.int64), np.full(1, math.nan)
    with pytest.raises(UsageError, match="spacing: expected positive mm"):
        count_misses(nothing, truth, (0.0, 1.0, 1.0))
    with pytest.raises(UsageError, match="spacing: expected positive mm"):
        volume_diagonal((2, 3, 4), (1.0, 1.0))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="expected labels 0 to 1, found 2 to 2"):
        count_misses(nothing, 2 * truth)
    with pytest.raises(UsageError, match=r"found \[4\]"):
        volume_diagonal((4,))
    with pytest.raises(UsageError, match="expected two volumes"):
        count_misses(nothing, truth[0, 0])
    equal(count_misses(np.zeros(0), 0 * truth), [])


def test_pooled_dice_counts_voxels_of_all_volumes_together() -> None:
    for seed in range(8):
        shapes = [(4, 7, 6), (1, 9, 9), (8, 5), (2, 3, 3)]
        predicted = [clumps(shape, seed * 10 + i) for i, shape in enumerate(shapes)]
        truth = [clumps(shape, seed * 10 + i + 500) for i, shape in enumerate(shapes)]
        dices = []
        for label in (1, 2, 3):
            one = {(i, *place) for i, labels in enumerate(predicted) for place in members(labels, label)}
            other = {(i, *place) for i, labels in enumerate(truth) for place in members(labels, label)}
            if one or other:
                dices.append(2 * len(one & other) / (len(one) + len(other)))
        equal(pooled_dice(predicted, truth, 4), sum(dices) / len(dices))


def test_pooled_dice_is_not_the_mean_over_volumes() -> None:
    truth = [cube((9, 9, 9), (1, 1, 1), 6), cube((9, 9, 9), (1, 1, 1), 1)]
    predicted = [truth[0], np.zeros_like(truth[1])]
    mean = np.mean([volume_dice(one, other, 2)[0] for one, other in zip(predicted, truth, strict=True)])
    equal(mean, 0.5)
    equal(pooled_dice(predicted, truth, 2), 2 * 216 / (216 + 217))


def test_pooled_dice_of_nothing() -> None:
    empty = np.zeros((2, 3, 3), np.int64)
    assert math.isnan(pooled_dice([empty], [empty], 3))
    assert math.isnan(pooled_dice([], [], 3))
    equal(pooled_dice([empty], [cube((2, 3, 3), (0, 0, 0), 2)], 3), 0.0)
    one = cube((2, 3, 3), (0, 0, 0), 2)
    equal(pooled_dice([one, empty], [one, empty], 4), 1.0)  # classes 2 and 3 are nowhere: not zeros


def test_integer_types_do_not_overflow() -> None:
    truth = np.full((2, 40, 40), 19, np.uint8)
    equal(volume_dice(truth, truth, 20), [math.nan] * 18 + [1.0])
    equal(volume_dice(truth, truth.astype(np.int64), 20), [math.nan] * 18 + [1.0])


@pytest.mark.parametrize("score", [volume_dice, volume_hd95], ids=["dice", "hd95"])
def test_wrong_volumes(score: object) -> None:
    assert callable(score)
    good = np.zeros((2, 4, 4), np.int64)
    for bad in (np.zeros((2, 4, 5), np.int64), np.zeros((4, 4), np.int64)):
        with pytest.raises(UsageError, match="of one shape"):
            score(bad, good, 2)
    with pytest.raises(UsageError, match=r"predicted: expected labels 0 to 1, found 0 to 2"):
        score(cube((2, 4, 4), (0, 0, 0), 1, label=2), good, 2)
    with pytest.raises(UsageError, match=r"truth: expected labels 0 to 1, found -1 to -1"):
        score(good, good - 1, 2)


def test_wrong_spacing_and_number_of_volumes() -> None:
    good = cube((2, 4, 4), (0, 0, 0), 1)
    for spacing in ((math.nan, 1.0, 1.0), (0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0)):
        with pytest.raises(UsageError, match="spacing: expected positive mm"):
            volume_hd95(good, good, 2, spacing)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="expected as many"):
        pooled_dice([good], [], 2)
