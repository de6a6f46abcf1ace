"""Views: pure functions of images, spec and seed; presets that leave the anatomy's meaning alone."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bolus.data.views import augment as module
from bolus.data.views import intensities
from bolus.data.views.augment import augment, plain, to_unit
from bolus.data.views.draws import Draws
from bolus.data.views.presets import FOR_VOLUMES, PRESETS, resolve
from bolus.errors import RecipeError, UsageError
from bolus.recipe import VOLUME_AUGMENTS, AugmentSpec

SIDE, SIZE = 40, 32


def pictures(num: int = 4, channels: int = 1, side: int = SIDE) -> torch.Tensor:
    return torch.rand(num, channels, side, side, generator=torch.Generator().manual_seed(0))


def still(**given: object) -> AugmentSpec:
    return AugmentSpec.model_validate({"preset": "none", **given})


@pytest.mark.parametrize("preset", sorted(set(PRESETS) - FOR_VOLUMES))
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_dtype_and_range(preset: str, channels: int) -> None:
    views = augment(pictures(3, channels), AugmentSpec(preset=preset), size=SIZE, views=2, seed=0)
    assert views.shape == (2, 3, channels, SIZE, SIZE)
    assert views.dtype == torch.float32
    assert views.min() >= 0
    assert views.max() <= 1
    assert views.std() > 0.05


@pytest.mark.parametrize("preset", ["fundus", "ultrasound"])
def test_same_seed_same_views_whatever_the_global_state(preset: str) -> None:
    spec = AugmentSpec(preset=preset)
    torch.manual_seed(1)
    first = augment(pictures(4, 3), spec, size=SIZE, views=2, seed=7)
    torch.manual_seed(2)
    torch.rand(5)
    assert torch.equal(first, augment(pictures(4, 3), spec, size=SIZE, views=2, seed=7))
    assert not torch.equal(first, augment(pictures(4, 3), spec, size=SIZE, views=2, seed=8))


def test_global_random_state_and_input_are_left_alone() -> None:
    images = pictures(4, 3)
    kept = images.clone()
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    spec = AugmentSpec(preset="fundus", noise=0.1, blur=1.0, flip_horizontal=0.5)
    augment(images, spec, size=SIZE, views=2, seed=2**63 - 1)
    augment(images, still(), size=SIDE, views=1, seed=0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert before[2] == random.getstate()
    assert torch.equal(images, kept)


@pytest.mark.parametrize(
    "given",
    [
        {"crop_scale": (0.3, 0.9)},
        {"rotation": 30},
        {"jitter": 1.0, "brightness": 0.3},
        {"jitter": 1.0, "contrast": 0.3},
        {"jitter": 1.0, "saturation": 0.5},
        {"jitter": 1.0, "hue": 0.2},
        {"blur": 1.0, "blur_sigma": (0.5, 1.5)},
        {"noise": 0.1},
    ],
)
def test_every_view_of_every_sample_has_its_own_parameters(given: dict[str, object]) -> None:
    images = pictures(1, 3).mul(0.5).add(0.2).repeat(3, 1, 1, 1)  # the same picture three times
    views = augment(images, still(**given), size=SIZE, views=2, seed=3).flatten(0, 1)
    for i in range(6):
        for j in range(i):
            assert (views[i] - views[j]).abs().max() > 1e-5  # shared parameters would give 0


def test_autocast_does_not_touch_the_views() -> None:
    spec = AugmentSpec(preset="fundus", blur=1.0)
    expected = augment(pictures(4, 3), spec, size=SIZE, views=2, seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augment(pictures(4, 3), spec, size=SIZE, views=2, seed=0), expected)


def test_none_is_the_plain_resize() -> None:
    images = pictures()
    views = augment(images, still(), size=SIZE, views=3, seed=5)
    for view in views:
        assert torch.equal(view, plain(images, size=SIZE))


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_give_every_key(preset: str) -> None:
    values = PRESETS[preset].model_dump()
    assert values["preset"] == preset
    absent = {key for key, value in values.items() if value is None}
    assert absent == (set() if preset in FOR_VOLUMES else set(VOLUME_AUGMENTS))


@pytest.mark.parametrize("preset", ["xray", "fundus", "ultrasound", "mri"])
def test_presets_are_safe_for_the_anatomy(preset: str) -> None:
    spec = PRESETS[preset]
    assert spec.flip_horizontal == spec.flip_vertical == 0
    assert spec.crop_scale is not None
    assert spec.crop_scale[0] >= (0.5 if preset == "ultrasound" else 0.25)
    assert spec.rotation is not None
    assert spec.rotation <= {"xray": 15, "fundus": 45, "ultrasound": 15, "mri": 30}[preset]
    if preset == "fundus":
        assert spec.hue is not None
        assert 0 < spec.hue <= 0.05
    else:
        assert spec.saturation == spec.hue == 0


def test_resolve_keeps_what_is_given() -> None:
    full = resolve(AugmentSpec(preset="xray", flip_horizontal=0.5, crop_scale=(0.5, 0.8)))
    assert full.flip_horizontal == 0.5
    assert full.crop_scale == (0.5, 0.8)
    assert full.rotation == PRESETS["xray"].rotation
    assert resolve(full) == full


@pytest.mark.parametrize(
    ("key", "value"),
    [("crop_scale", (0.8, 0.5)), ("crop_scale", (0.5, 1.5)), ("crop_ratio", (0.0, 1.0)), ("blur_sigma", (-1.0, 1.0))],
)
def test_impossible_ranges_are_refused_by_name(key: str, value: tuple[float, float]) -> None:
    with pytest.raises(RecipeError, match=key):
        resolve(AugmentSpec.model_validate({key: value}))


def test_flips_are_exact() -> None:
    images = pictures(3, side=SIZE)
    across = augment(images, still(flip_horizontal=1.0), size=SIZE, views=1, seed=0)[0]
    down = augment(images, still(flip_vertical=1.0), size=SIZE, views=1, seed=0)[0]
    torch.testing.assert_close(across, images.flip(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(down, images.flip(2), atol=1e-5, rtol=0)


def test_flip_probability() -> None:
    image = torch.linspace(0, 1, SIZE).expand(1, 1, SIZE, SIZE)
    views = augment(image, still(flip_horizontal=0.25), size=SIZE, views=400, seed=0)
    share = (views[..., 0].mean((1, 2, 3)) > 0.5).float().mean()
    assert 0.18 < share < 0.32


def warp(images: torch.Tensor, *parameters: float) -> torch.Tensor:
    theta = module._theta(*(torch.full((len(images),), float(value)) for value in parameters))
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def test_a_positive_angle_turns_the_content_with_the_clock() -> None:
    image = torch.zeros(1, 1, 33, 33)
    image[..., 4, 16] = 1.0  # at twelve
    turned = warp(image, 1, 1, 0, 0, 90)
    row, column = divmod(int(turned.argmax()), 33)
    assert (row, column) == (16, 28)  # at three
    torch.testing.assert_close(warp(pictures(2), 1, 1, 0, 0, 90), pictures(2).rot90(-1, (2, 3)), atol=1e-4, rtol=0)


def test_a_crop_shows_its_part() -> None:
    images = pictures(2, side=40)
    theta = module._theta(*(torch.full((2,), value) for value in (0.5, 0.5, -0.5, 0.5, 0.0)))
    grid = F.affine_grid(theta, [2, 1, 20, 20], align_corners=False)
    shown = F.grid_sample(images, grid, align_corners=False)
    torch.testing.assert_close(shown, images[:, :, 20:, :20], atol=1e-5, rtol=0)


def test_crops_have_the_areas_asked_for_and_stay_inside() -> None:
    spec = resolve(still(crop_scale=(0.3, 0.6), crop_ratio=(0.5, 2.0)))
    theta = module._draw_theta(spec, Draws(0, 1, 2000))
    assert theta is not None
    width, height, x, y = theta[:, 0, 0], theta[:, 1, 1], theta[:, 0, 2], theta[:, 1, 2]
    area, ratio = width * height, width / height
    assert 0.3 - 1e-5 <= area.min() < 0.31
    assert 0.59 < area.max() <= 0.6 + 1e-5
    assert 0.5 - 1e-4 <= ratio.min() < 0.55
    assert 1.8 < ratio.max() <= 2.0 + 1e-4
    assert (x.abs() + width).max() <= 1 + 1e-5
    assert (y.abs() + height).max() <= 1 + 1e-5


def test_rotation_stays_within_its_bounds_on_both_sides() -> None:
    theta = module._draw_theta(resolve(still(rotation=15)), Draws(0, 1, 1000))
    assert theta is not None
    angle = torch.rad2deg(torch.atan2(theta[:, 0, 1], theta[:, 0, 0]))
    assert -15.001 < angle.min() < -14
    assert 14 < angle.max() < 15.001


def test_what_lies_outside_the_picture_is_black() -> None:
    views = augment(torch.ones(1, 1, SIDE, SIDE), still(rotation=45), size=SIZE, views=50, seed=0)
    corners = views[..., 0, 0].flatten()
    assert (corners == 0).float().mean() > 0.8
    assert (views[..., SIZE // 2, SIZE // 2] > 0.999).all()


def test_brightness_multiplies_and_contrast_stretches_about_the_mean() -> None:
    images = pictures(3, side=SIZE).mul(0.4).add(0.2)
    lit = augment(images, still(jitter=1, brightness=0.3), size=SIZE, views=1, seed=0)[0]
    share = lit / images
    assert (share.amax((1, 2, 3)) - share.amin((1, 2, 3))).max() < 1e-4
    assert (share.mean((1, 2, 3)) - 1).abs().max() > 0.02
    stretched = augment(images, still(jitter=1, contrast=0.3), size=SIZE, views=1, seed=0)[0]
    torch.testing.assert_close(stretched.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=1e-4, rtol=0)
    ratio = stretched.std((1, 2, 3)) / images.std((1, 2, 3))
    assert ((ratio > 0.69) & (ratio < 1.31)).all()
    assert (ratio - 1).abs().max() > 0.02


def test_jitter_is_a_probability() -> None:
    images = pictures(1, side=SIZE).mul(0.4).add(0.2)
    views = augment(images, still(jitter=0.5, brightness=0.3), size=SIZE, views=300, seed=0)
    touched = ((views - images).abs().amax((1, 2, 3, 4)) > 1e-6).float().mean()
    assert 0.4 < touched < 0.6
    assert torch.equal(augment(images, still(brightness=0.3), size=SIZE, views=1, seed=0)[0], images)


def test_colour_changes_three_channels_only() -> None:
    spec = still(jitter=1, saturation=0.8, hue=0.3)
    grey = pictures(2, 1, SIZE)
    assert torch.equal(augment(grey, spec, size=SIZE, views=1, seed=0)[0], grey)
    assert torch.equal(augment(pictures(2, 2, SIZE), spec, size=SIZE, views=1, seed=0)[0], pictures(2, 2, SIZE))
    colour = pictures(2, 3, SIZE).mul(0.2).add(0.4)
    changed = augment(colour, spec, size=SIZE, views=1, seed=0)[0]
    assert (changed - colour).abs().max() > 0.02
    luma = torch.tensor(intensities.LUMA).view(1, 3, 1, 1)
    torch.testing.assert_close((changed * luma).sum(1), (colour * luma).sum(1), atol=1e-4, rtol=0)
    repeated = grey.repeat(1, 3, 1, 1)  # grey has no chroma to change
    torch.testing.assert_close(augment(repeated, spec, size=SIZE, views=1, seed=0)[0], repeated, atol=1e-4, rtol=0)


@pytest.mark.parametrize("preset", ["xray", "ultrasound", "mri"])
def test_grey_presets_keep_repeated_grey_grey(preset: str) -> None:
    views = augment(pictures(3, 1).repeat(1, 3, 1, 1), AugmentSpec(preset=preset, noise=0), size=SIZE, views=2, seed=0)
    torch.testing.assert_close(views[:, :, 0], views[:, :, 2], atol=1e-5, rtol=0)


def test_blur_smooths_and_noise_has_its_deviation() -> None:
    images = pictures(2, side=SIZE)
    blurred = augment(images, still(blur=1, blur_sigma=(1.0, 1.0)), size=SIZE, views=1, seed=0)[0]
    assert (blurred.std((1, 2, 3)) < 0.6 * images.std((1, 2, 3))).all()
    flat = torch.full((4, 1, SIZE, SIZE), 0.5)
    noisy = augment(flat, still(noise=0.05), size=SIZE, views=2, seed=0)
    assert abs(float(noisy.std()) - 0.05) < 0.003
    assert abs(float(noisy.mean()) - 0.5) < 0.003


def test_a_wide_blur_on_a_small_view_works() -> None:
    views = augment(pictures(2, side=9), still(blur=1, blur_sigma=(5.0, 5.0)), size=8, views=1, seed=0)
    assert torch.isfinite(views).all()


def test_integers_and_floats_agree() -> None:
    stored = (pictures(3) * 255).round()
    eight, unit = stored.to(torch.uint8), stored / 255
    spec = AugmentSpec(preset="mri")
    expected = augment(unit, spec, size=SIZE, views=2, seed=0)
    torch.testing.assert_close(augment(eight, spec, size=SIZE, views=2, seed=0), expected, atol=1e-6, rtol=0)
    deep = (stored * 257).to(torch.int32)  # 255 * 257 = 65535
    for images in (deep, deep.to(torch.uint16)):
        torch.testing.assert_close(to_unit(images), unit, atol=1e-6, rtol=0)
        torch.testing.assert_close(augment(images, spec, size=SIZE, views=2, seed=0), expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(plain(images, size=SIZE), plain(eight, size=SIZE), atol=1e-6, rtol=0)


def test_plain_antialiases() -> None:
    stripes = torch.tensor([0.0, 1.0]).repeat(32).expand(1, 1, 64, 64)
    small = plain(stripes, size=16)
    assert (small[..., 2:-2] - 0.5).abs().max() < 0.05
    same = pictures(side=SIZE)
    assert torch.equal(plain(same, size=SIZE), same)
    assert plain(same, size=SIZE).data_ptr() != same.data_ptr()


def test_empty_batch_and_bad_input() -> None:
    assert augment(torch.zeros(0, 1, 8, 8), still(), size=6, views=2, seed=0).shape == (2, 0, 1, 6, 6)
    assert plain(torch.zeros(0, 1, 8, 8), size=6).shape == (0, 1, 6, 6)
    with pytest.raises(UsageError, match="square"):
        augment(torch.zeros(1, 1, 8, 9), still(), size=8, views=1, seed=0)
    with pytest.raises(UsageError, match="int64"):
        plain(torch.zeros(1, 1, 8, 8, dtype=torch.int64), size=8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_views_of_the_cpu() -> None:
    before = torch.cuda.get_rng_state()
    spec = AugmentSpec(preset="fundus")
    expected = augment(pictures(4, 3), spec, size=SIZE, views=2, seed=0)
    views = augment(pictures(4, 3).cuda(), spec, size=SIZE, views=2, seed=0)
    torch.testing.assert_close(views.cpu(), expected, atol=1e-3, rtol=0)
    noisy = AugmentSpec(preset="mri")
    first = augment(pictures().cuda(), noisy, size=SIZE, views=2, seed=0)
    assert torch.equal(first, augment(pictures().cuda(), noisy, size=SIZE, views=2, seed=0))
    assert torch.equal(before, torch.cuda.get_rng_state())


@pytest.mark.parametrize("frames", [None, 3])
@pytest.mark.parametrize("preset", ["xray", "fundus"])
def test_some_samples_of_a_batch_get_the_views_of_the_whole(preset: str, frames: int | None) -> None:
    """So that several processes, each with a part of a batch, see what one process sees."""
    channels, length = (3 if preset == "fundus" else 1), frames or 1
    images = torch.rand(6 * length, channels, 40, 40, generator=torch.Generator().manual_seed(5))
    spec = AugmentSpec(preset=preset, blur=0.5, rotation=20)  # type: ignore[arg-type]
    named: dict[str, Any] = {"size": 32, "views": 2, "seed": 7, "frames": frames}
    whole = augment(images, spec, **named)
    for places in ([0, 1, 2], [3, 4, 5], [4, 1]):
        some = images.view(6, length, channels, 40, 40)[places].flatten(0, 1)
        found = augment(some, spec, of=(6, torch.tensor(places)), **named)
        torch.testing.assert_close(found, whole[:, places], atol=1e-6, rtol=0)
    noisy = [
        augment(images[:length], AugmentSpec(preset="none", noise=0.1), of=(6, torch.tensor([place])), **named)
        for place in (0, 1)
    ]
    assert not torch.equal(*noisy), "noise differs between samples that are made apart"
