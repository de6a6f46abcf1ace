"""Volumes resampled, made upright, cut and boxed: against SimpleITK, PyTorch and fields that are known everywhere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from bolus.data.pixels.image import Range, Rule
from bolus.data.volumes.boxes import center_box, crop_foreground, find_threshold, take_box
from bolus.data.volumes.resampling import axis_weights, make_upright, resample_volume
from bolus.data.volumes.volume import Volume, find_turn, slant_of, spacing_of, turn_affine
from bolus.errors import ImageError, UsageError
from volume_files import CORONAL, affine_of, turned

OBLIQUE = affine_of(turned(CORONAL, (10, -20, 15)), (3.0, 0.9, 0.6), (-30.0, 12.0, 40.0))


def places(volume: Volume) -> npt.NDArray[np.float64]:
    """The mm of every voxel, `[D, H, W, 3]`."""
    assert volume.affine is not None
    index = np.indices(volume.array.shape[1:])[::-1]
    return np.moveaxis(np.tensordot(volume.affine[:3, :3], index, 1), 0, -1) + volume.affine[:3, 3]


def smooth(mm: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A field that is known everywhere, with waves of 60 mm and longer."""
    x, y, z = np.moveaxis(mm, -1, 0)
    return 100 * np.sin(2 * np.pi * x / 60) + 80 * np.cos(2 * np.pi * y / 75) + 3 * z


def volume_of(
    array: npt.NDArray[Any], affine: npt.NDArray[np.float64] | None, *, rule: Rule = "cohort", **more: Any
) -> Volume:
    spacing = (1.0, 1.0, 1.0) if affine is None else spacing_of(affine)
    return Volume(np.asarray(array, np.float32), spacing, affine, Range(-500, 500, rule), 16, False, **more)


def field(shape: tuple[int, int, int] = (24, 30, 36), affine: npt.NDArray[np.float64] = OBLIQUE) -> Volume:
    turn = find_turn(affine)
    volume = volume_of(turn.apply(np.zeros((1, *shape), np.float32)), turn_affine(affine, turn, shape))
    volume.array = smooth(places(volume))[None].astype(np.float32)
    return volume


def inner(volume: Volume, margin: int) -> tuple[slice, ...]:
    return tuple(slice(margin, length - margin) for length in volume.array.shape[1:])


# Resampling ------------------------------------------------------------


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.5, 3.0), (0.5, 0.4, 0.7), (3.0, 6.0, 3.0)])
def test_a_field_stays_where_it_is(spacing: tuple[float, float, float]) -> None:
    before = field()
    after = resample_volume(before, spacing)
    assert after.spacing == spacing
    assert after.affine is not None
    np.testing.assert_allclose(spacing_of(after.affine), spacing, rtol=0, atol=1e-9)
    error = np.abs(after.array[0] - smooth(places(after)))[inner(after, 2)]
    assert error.max() < 6  # of 180: what a triangle of 6 mm does to waves of 60 mm
    assert error.mean() < 2


@pytest.mark.parametrize("spacing", [(1.0, 3.3, 0.8), (2.0, 3.5, 1.3), (0.5, 0.4, 0.7)])
def test_a_line_stays_a_line(spacing: tuple[float, float, float]) -> None:
    before = field()
    before.array = (places(before) @ (0.5, -0.25, 2.0))[None].astype(np.float32)
    after = resample_volume(before, spacing)
    found, expected = after.array[0], places(after) @ (0.5, -0.25, 2.0)
    edge = max(math.ceil(old / new) for old, new in zip(before.spacing, spacing, strict=True)) + 1
    np.testing.assert_allclose(found[inner(after, edge)], expected[inner(after, edge)], rtol=0, atol=2e-3)


def test_enlarged_it_is_what_simpleitk_makes_of_it() -> None:
    sitk = pytest.importorskip("SimpleITK", reason="the package SimpleITK is not installed")
    before = volume_of(np.random.default_rng(5).normal(size=(1, 8, 9, 10)), field((8, 9, 10)).affine)
    after = resample_volume(before, (0.4, 0.5, 0.45))
    assert before.affine is not None
    assert after.affine is not None

    def placed(array: npt.NDArray[Any], affine: npt.NDArray[np.float64]) -> Any:
        image = sitk.GetImageFromArray(array)
        lps = np.diag([-1.0, -1, 1, 1]) @ affine
        steps = np.linalg.norm(lps[:3, :3], axis=0)
        image.SetSpacing(steps.tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        image.SetDirection((lps[:3, :3] / steps).ravel().tolist())
        return image

    grid = placed(after.array[0], after.affine)
    theirs = sitk.GetArrayFromImage(
        sitk.Resample(placed(before.array[0], before.affine), grid, sitk.Transform(), sitk.sitkLinear)
    )
    edge = inner(after, 4)
    np.testing.assert_allclose(after.array[0][edge], theirs[edge], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("length", "ratio"), [(12, 1.02), (12, 1.5), (30, 2.0), (31, 3.7), (50, 7.0)])
def test_weights_are_the_integral_of_a_triangle_over_straight_lines(length: int, ratio: float) -> None:
    size, half = round(length / ratio), np.sqrt(ratio**2 - 1)
    middles = (length - 1) / 2 + (np.arange(size) - (size - 1) / 2) * ratio
    fine = np.linspace(-half, half, 4001)
    triangle = np.maximum(0, 1 - np.abs(fine) / half)
    for row, middle in zip(axis_weights(length, size, ratio), middles, strict=True):
        lines = np.maximum(0, 1 - np.abs(middle + fine[:, None] - np.arange(length)))
        expected = (triangle[:, None] * lines).sum(axis=0)
        np.testing.assert_allclose(row, expected / expected.sum(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("length", "size"), [(5, 11), (40, 60), (60, 40), (60, 20), (60, 9)])
def test_weights_are_about_those_of_pytorchs_antialiased_bilinear(length: int, size: int) -> None:
    values = torch.randn(1, 1, length, 2, generator=torch.Generator().manual_seed(1)).cumsum(2)
    theirs = F.interpolate(values, (size, 2), mode="bilinear", antialias=True, align_corners=False)[0, 0].numpy()
    ours = axis_weights(length, size, length / size) @ values[0, 0].numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 if size > length else 0.5)
    assert np.corrcoef(ours[:, 0], theirs[:, 0])[0, 1] > 0.99


def test_reduced_it_has_no_stripes() -> None:
    fine = np.broadcast_to(np.arange(64) % 2, (1, 8, 8, 64)) * 100
    after = resample_volume(volume_of(fine, np.eye(4)), (1.0, 1.0, 2.9))
    assert np.ptp(after.array[0, :, :, 1:-1]) < 20  # taking every third voxel has 100


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.tuples(*[st.integers(1, 12)] * 3),
    st.tuples(*[st.floats(0.3, 6.0)] * 3),
    st.tuples(*[st.floats(0.3, 6.0)] * 3),
)
def test_the_middle_stays_and_values_stay_within_their_bounds(
    shape: tuple[int, int, int], old: tuple[float, float, float], new: tuple[float, float, float]
) -> None:
    affine = affine_of(np.eye(3), old, (1.0, 2.0, 3.0))
    values = np.random.default_rng(0).uniform(-1, 1, (1, *shape))
    before = volume_of(values, turn_affine(affine, find_turn(affine), shape))
    after = resample_volume(before, new)
    middles = [places(each)[[0, -1], [0, -1], [0, -1]].mean(axis=0) for each in (before, after)]
    np.testing.assert_allclose(*middles, rtol=0, atol=1e-6)
    assert after.array.min() >= before.array.min() - 1e-6
    assert after.array.max() <= before.array.max() + 1e-6
    for length, size, was, now in zip(shape, after.array.shape[1:], old, new, strict=True):
        assert size == max(1, round(length * was / now)) or abs(was / now - 1) < 1e-4


def test_the_same_spacing_changes_nothing() -> None:
    before = field()
    after = resample_volume(before, before.spacing)
    np.testing.assert_array_equal(after.array, before.array)
    np.testing.assert_allclose(after.affine, before.affine, rtol=0, atol=1e-12)


def test_colours_are_resampled_apart() -> None:
    values = np.random.default_rng(6).normal(size=(3, 5, 6, 7))
    together = resample_volume(volume_of(values, np.eye(4)), (2.0, 0.5, 1.5)).array
    for number in range(3):
        alone = resample_volume(volume_of(values[number : number + 1], np.eye(4)), (2.0, 0.5, 1.5)).array
        np.testing.assert_array_equal(together[number], alone[0])


def test_padding_becomes_black_and_stays_padding() -> None:
    values = np.full((1, 4, 4, 8), 100.0)
    padding = np.zeros((4, 4, 8), np.bool_)
    padding[..., :4] = True
    values[0, padding] = -3000
    values[0, 0, 0, 7] = 20
    after = resample_volume(volume_of(values, np.eye(4), padding=padding), (1.0, 1.0, 2.0))
    assert after.padding is not None
    np.testing.assert_array_equal(after.padding, np.broadcast_to([True, True, False, False], (4, 4, 4)))
    assert after.array.min() == pytest.approx(20)
    assert resample_volume(volume_of(values, np.eye(4), padding=padding), (1.0, 1.0, 1.0)).array.min() == 20


def test_values_beyond_a_window_are_clipped_before() -> None:
    values = np.array([0, 10_000.0] * 4).reshape(1, 1, 1, 8)
    after = resample_volume(volume_of(values, np.eye(4), rule="window"), (1.0, 1.0, 8.0))
    assert after.array.max() <= 500


def test_spacings_that_are_none_are_refused() -> None:
    unknown = Volume(np.zeros((1, 2, 2, 2), np.float32), (math.nan, 1.0, 1.0), None, Range(0, 1, "unit"), 8, False)
    with pytest.raises(ImageError, match="expected voxels of a known size to resample, found none stated"):
        resample_volume(unknown, (1.0, 1.0, 1.0))
    for spacing in ((1.0, 0.0, 1.0), (1.0, math.nan, 1.0), (-1.0, 1.0, 1.0), (1.0, 1.0)):
        with pytest.raises(UsageError, match=r"spacing: expected three positive numbers \(D, H, W\) in mm"):
            resample_volume(field(), spacing)  # type: ignore[arg-type]


# Tilted gantries ------------------------------------------------------------


@pytest.mark.parametrize("tilt", [-25, 15])
def test_a_tilted_scan_is_made_upright(tilt: float) -> None:
    affine = affine_of(np.eye(3), (5.0, 0.8, 0.8), (-10.0, 5.0, 20.0))
    affine[1, 2] = 5 * np.tan(np.radians(tilt))
    tilted = field((12, 60, 50), affine)
    upright = make_upright(tilted)
    assert upright.affine is not None
    assert slant_of(upright.affine) < 1e-6
    assert upright.spacing == pytest.approx((5.0, 0.8, 0.8))
    assert upright.padding is not None
    error = np.abs(upright.array[0] - smooth(places(upright)))[~upright.padding]
    assert error.max() < 1
    assert 0.6 < (~upright.padding).sum() / tilted.array.size <= 1.01
    reduced = resample_volume(tilted, (5.0, 2.0, 2.0))
    assert reduced.affine is not None
    assert slant_of(reduced.affine) < 1e-6
    np.testing.assert_allclose(spacing_of(reduced.affine), (5.0, 2.0, 2.0), atol=1e-9)


# Boxes ------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.tuples(*[st.integers(1, 6)] * 3),
    st.tuples(*[st.integers(-8, 8)] * 3),
    st.tuples(*[st.integers(1, 9)] * 3),
)
def test_a_box_is_the_volume_where_they_overlap_and_black_padding_elsewhere(
    shape: tuple[int, int, int], start: tuple[int, int, int], size: tuple[int, int, int]
) -> None:
    volume = volume_of(np.random.default_rng(1).uniform(1, 2, (1, *shape)), OBLIQUE)
    box = take_box(volume, start, size)
    assert box.array.shape == (1, *size)
    assert box.affine is not None
    for at in np.ndindex(size):
        there = tuple(np.add(at, start))
        inside = all(0 <= n < length for n, length in zip(there, shape, strict=True))
        assert box.array[0][at] == (volume.array[0][there] if inside else volume.array.min())
        assert inside != (box.padding is not None and bool(box.padding[at]))
    np.testing.assert_allclose(box.affine @ (0, 0, 0, 1), OBLIQUE @ (*start[::-1], 1), rtol=0, atol=1e-9)


def test_the_box_in_the_middle() -> None:
    volume = volume_of(np.arange(5 * 4 * 3).reshape(1, 5, 4, 3), np.eye(4))
    box = center_box(volume, (3, 4, 6))
    np.testing.assert_array_equal(box.array[0, :, :, 1:4], volume.array[0, 1:4])
    assert box.padding is not None
    assert box.padding[:, :, [0, 4, 5]].all()
    assert not box.padding[:, :, 1:4].any()
    with pytest.raises(UsageError, match="expected a box of a voxel or more along each axis"):
        center_box(volume, (3, 0, 6))


# The body ------------------------------------------------------------


def body(shape: tuple[int, int, int], start: tuple[int, int, int], size: tuple[int, int, int]) -> npt.NDArray[Any]:
    """Air with a block of water, and a table below it that is larger along one axis but smaller in all."""
    rng = np.random.default_rng(2)
    voxels = rng.normal(-1000, 10, shape)
    where = tuple(slice(at, at + n) for at, n in zip(start, size, strict=True))
    voxels[where] = rng.normal(30, 20, size)
    voxels[:, 1, 2:-2] = 200
    return voxels[None]


@pytest.mark.parametrize("rule", ["clinical", "cohort"])
def test_a_volume_is_cut_to_its_body(rule: Rule) -> None:
    volume = volume_of(body((20, 30, 40), (3, 5, 7), (12, 20, 25)), OBLIQUE, rule=rule)
    cut = crop_foreground(volume)
    np.testing.assert_array_equal(cut.array, volume.array[:, 3:15, 5:25, 7:32])
    assert cut.affine is not None
    np.testing.assert_allclose(cut.affine[:3, 3], (OBLIQUE @ (7, 5, 3, 1))[:3], atol=1e-9)
    [said] = cut.notes
    if rule == "clinical":
        assert said == "cut to the body, the largest part above -500 HU"
    else:
        assert said.startswith("cut to the body, the largest part above -")
        assert said.endswith(" (Otsu)")


def test_ct_of_a_table_is_in_hu_where_it_reaches_below_fat() -> None:
    volume = volume_of(body((8, 12, 12), (1, 4, 3), (6, 6, 6)), None)
    assert crop_foreground(volume, modality="CT").notes[-1].endswith("above -500 HU")
    assert crop_foreground(volume, modality="MR").notes[-1].endswith("(Otsu)")
    lifted = volume_of(volume.array + 1024, None)
    assert crop_foreground(lifted, modality="CT").notes[-1].endswith("(Otsu)")


def test_a_large_volume_is_cut_a_step_wider() -> None:
    volume = volume_of(body((10, 300, 20), (3, 97, 7), (5, 131, 10)), None)
    cut = crop_foreground(volume)
    height = cut.array.shape[2]
    assert (cut.array.shape[1], cut.array.shape[3]) == (5, 10)
    assert 131 <= height <= 131 + 2 * 3


def test_where_bright_is_low_the_body_is_below() -> None:
    volume = volume_of(-body((8, 12, 12), (1, 4, 3), (6, 6, 6)), None)
    volume.inverted = True
    assert crop_foreground(volume).array.shape == (1, 6, 6, 6)


def test_padding_is_no_body_and_an_empty_volume_stays() -> None:
    voxels = body((8, 12, 12), (1, 4, 3), (6, 6, 6))
    padding = np.zeros((8, 12, 12), np.bool_)
    padding[:, 8:] = True
    cut = crop_foreground(volume_of(voxels, None, padding=padding))
    assert cut.array.shape == (1, 6, 4, 6)
    flat = volume_of(np.full((1, 4, 4, 4), 7.0), None)
    assert crop_foreground(flat).array.shape == flat.array.shape
    assert crop_foreground(flat).notes == ("no body stands out by a threshold: not cut",)


def test_otsus_threshold_is_the_best_of_all() -> None:
    values = np.random.default_rng(7).permutation(np.r_[np.full(700, 10.0), np.full(200, 60.0), np.full(100, 80.0)])

    def between(threshold: float) -> float:
        low, high = values[values <= threshold], values[values > threshold]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    found = find_threshold(values.astype(np.float32))
    assert between(found) == max(between(each) for each in (10, 35, 60, 70))
