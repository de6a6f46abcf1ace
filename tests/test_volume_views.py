"""Views of volumes: pure functions of volumes, spec and seed, rigid in mm, and a mask stays on its organ in each."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from bolus.data.views import volumes as module
from bolus.data.views.augment import augment
from bolus.data.views.draws import Draws
from bolus.data.views.intensities import blur_matrix, low_resolution_matrix
from bolus.data.views.presets import FOR_VOLUMES, PRESETS, resolve
from bolus.data.views.resampling import along_axes, resample
from bolus.data.views.volumes import augment_volume_labels, augment_volumes, plain_volumes
from bolus.errors import RecipeError, UsageError
from bolus.recipe import AugmentSpec, Recipe

SIZE = (10, 16, 20)
SIMCLR = "d0e70d726500"  # before volumes
GEOMETRY = {"jitter": 0, "blur": 0, "noise": 0, "low_resolution": 0}  # off: what is left of a preset moves things


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def still(**given: object) -> AugmentSpec:
    return AugmentSpec.model_validate({"preset": "none", **given})


def thetas(spec: AugmentSpec, count: int, sides: tuple[int, int, int], size: tuple[int, int, int], seed: int,
           spacing: tuple[float, float, float] = (1, 1, 1)) -> Tensor:  # fmt: skip
    millimetres = torch.tensor(spacing).float().expand(count, 3)
    drawn = module.draw_theta(resolve(spec, volumes=True), sides, size, millimetres, Draws(seed, 1, count))
    assert drawn is not None
    return drawn


def ellipsoids(num: int, sides: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Soft-edged ellipsoids near the middle, `[num, D, H, W]`."""
    r = np.random.default_rng(seed)
    at = np.stack(np.meshgrid(*(np.arange(side) - (side - 1) / 2 for side in sides), indexing="ij"))
    found = []
    for _ in range(num):
        radius = np.array(sides) * r.uniform(0.22, 0.35, 3)
        centre = np.array(sides) * r.uniform(-0.08, 0.08, 3)
        distance = np.sqrt((((at - centre[:, None, None, None]) / radius[:, None, None, None]) ** 2).sum(0))
        found.append(np.clip((1 - distance) * radius.min() + 0.5, 0, 1))
    return torch.from_numpy(np.stack(found)).float()


def middles(weights: Tensor) -> Tensor:
    """Centres of mass, `[n, 3]` along D, H and W, in voxels."""
    places = torch.meshgrid(*(torch.arange(side).double() for side in weights.shape[1:]), indexing="ij")
    total = weights.double().sum((1, 2, 3))
    return torch.stack([(weights * place).sum((1, 2, 3)) / total for place in places], dim=1)


# --- plain


def test_plain_is_the_middle_with_black_where_there_is_nothing() -> None:
    volumes = noise(2, 1, 11, 16, 7)
    view = plain_volumes(volumes, size=SIZE)
    assert view.shape == (2, 1, *SIZE)
    assert torch.equal(view[..., 6:13], volumes[:, :, 0:10])
    assert view[..., :6].abs().max() == view[..., 13:].abs().max() == 0
    same = plain_volumes(volumes, size=(11, 16, 7))
    assert torch.equal(same, volumes)
    assert same.data_ptr() != volumes.data_ptr()


@pytest.mark.parametrize("sides", [SIZE, (12, 19, 23), (7, 16, 21), (5, 5, 5)])
def test_a_spec_that_changes_nothing_gives_the_plain_view(sides: tuple[int, int, int]) -> None:
    volumes = noise(2, 1, *sides)
    plain = plain_volumes(volumes, size=SIZE)
    for view in augment_volumes(volumes, still(), size=SIZE, views=3, seed=4):
        assert torch.equal(view, plain)
    hardly = augment_volumes(volumes, still(rotation=1e-4, tilt=1e-4, stretch=1e-6), size=SIZE, views=1, seed=4)[0]
    torch.testing.assert_close(hardly, plain, atol=2e-3, rtol=0)
    labels = (volumes[:, 0] * 9).long()
    kept = augment_volume_labels(labels, still(), size=SIZE, seed=4)
    assert torch.equal(kept, plain_volumes(labels[:, None].float(), size=SIZE)[:, 0].long())
    assert kept.data_ptr() != labels.data_ptr()
    for dtype in (torch.uint8, torch.uint16, torch.int32):
        same = augment_volume_labels(labels.to(dtype), still(), size=SIZE, seed=4)
        assert same.dtype == dtype
        assert torch.equal(same.long(), kept)


# --- geometry


@pytest.mark.parametrize(("key", "axis"), [("flip_horizontal", 4), ("flip_vertical", 3), ("flip_depth", 2)])
@pytest.mark.parametrize("sides", [SIZE, (13, 16, 24)])
def test_flips_are_exact(key: str, axis: int, sides: tuple[int, int, int]) -> None:
    volumes = noise(2, 2, *sides)
    view = augment_volumes(volumes, still(**{key: 1.0}), size=SIZE, views=1, seed=0)[0]
    torch.testing.assert_close(view, plain_volumes(volumes, size=SIZE).flip(axis), atol=1e-5, rtol=0)


def naive(volume: Tensor, theta: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Trilinear sampling by loops; what is outside is 0."""
    out = torch.zeros(size, dtype=torch.float64)
    for place in itertools.product(*(range(side) for side in size)):
        at = [1.0, *((2 * n + 1) / side - 1 for n, side in zip(place, size, strict=True))][::-1]
        found = [float(sum(t * a for t, a in zip(row, at, strict=True))) for row in theta.tolist()][::-1]
        exact = [((f + 1) * side - 1) / 2 for f, side in zip(found, volume.shape, strict=True)]
        for corner in itertools.product((0, 1), repeat=3):
            index = [math.floor(e) + c for e, c in zip(exact, corner, strict=True)]
            if all(0 <= i < side for i, side in zip(index, volume.shape, strict=True)):
                weight = math.prod(1 - abs(e - i) for e, i in zip(exact, index, strict=True))
                out[place] += weight * volume[tuple(index)]
    return out


def test_an_enlarged_view_equals_loops() -> None:
    sides, size = (6, 7, 9), (5, 6, 8)
    spec = still(crop_scale=(0.3, 0.5), crop_ratio=(0.8, 1.25), rotation=30, tilt=20, flip_depth=0.5)
    theta = thetas(spec, 3, sides, size, seed=2, spacing=(2.0, 1.0, 1.0))
    theta[:, :, :3] *= 0.6  # so that nothing is reduced
    volumes = noise(3, 1, *sides).double()
    found = resample(volumes, theta, size=size)
    for volume, view, each in zip(volumes[:, 0], found[:, 0], theta, strict=True):
        torch.testing.assert_close(view, naive(volume, each, size), atol=1e-5, rtol=0)


@pytest.mark.parametrize("chosen", [{"rotation": 10.0}, {"crop_scale": (0.5, 1.0)}, {"tilt": 8.0, "stretch": 0.1}])
def test_views_in_float32_are_those_in_float64(chosen: dict[str, object]) -> None:
    volumes = noise(2, 1, 12, 20, 24)
    theta = thetas(still(**chosen), 6, (12, 20, 24), SIZE, seed=0)
    exact = resample(volumes.double(), theta.double(), size=SIZE)
    torch.testing.assert_close(resample(volumes, theta, size=SIZE).double(), exact, atol=1e-4, rtol=0)


def test_a_rotation_turns_every_slice_as_that_of_an_image_does() -> None:
    picture = noise(1, 1, 33, 33)
    theta = thetas(still(rotation=40), 4, (5, 33, 33), (5, 33, 33), seed=1)
    flat = theta[:, :2][:, :, [0, 1, 3]]
    volumes = picture[:, :, None].expand(1, 1, 5, 33, 33)
    expected = resample(picture, flat, size=33)
    for k in range(5):
        torch.testing.assert_close(resample(volumes, theta, size=(5, 33, 33))[:, :, k], expected, atol=1e-4, rtol=0)


def test_turns_stay_within_their_bounds() -> None:
    theta = thetas(still(rotation=15, tilt=5), 2000, (8, 8, 8), (8, 8, 8), seed=0)
    turn = theta[:, :, :3]
    torch.testing.assert_close(turn @ turn.transpose(1, 2), torch.eye(3).expand(2000, 3, 3), atol=1e-5, rtol=0)
    about_z = torch.rad2deg(torch.atan2(-turn[:, 1, 0], turn[:, 1, 1]))
    away_from_z = torch.rad2deg(torch.acos(turn[:, 2, 2].clamp(-1, 1)))
    assert 14 < about_z.abs().max() < 16
    assert 6 < away_from_z.max() < 5 * math.sqrt(2) + 0.01
    only = thetas(still(tilt=20), 2000, (8, 8, 8), (8, 8, 8), seed=0)[:, :, :3]
    assert only[:, 2, 0].abs().max() > 0.3
    assert only[:, 2, 1].abs().max() > 0.3


def test_crops_have_the_share_asked_for_and_stay_inside() -> None:
    theta = thetas(still(crop_scale=(0.2, 0.6), crop_ratio=(0.5, 2.0)), 2000, SIZE, SIZE, seed=0)
    extent, away = torch.diagonal(theta[:, :, :3], dim1=1, dim2=2), theta[:, :, 3]
    share, ratio = extent.prod(1), extent[:, 0] / extent[:, 1]
    assert 0.2 - 1e-5 <= share.min() < 0.21
    assert 0.59 < share.max() <= 0.6 + 1e-5
    assert 0.5 - 1e-4 <= ratio.min() < 0.6
    assert 1.7 < ratio.max() <= 2.0 + 1e-4
    assert (extent + away.abs()).max() <= 1 + 1e-5
    assert (extent + away.abs()).min() < 0.9  # anywhere, not at the edge alone


def test_a_stretch_is_of_each_axis_and_shows_black_beyond() -> None:
    theta = thetas(still(stretch=0.3), 2000, SIZE, SIZE, seed=0)
    extent = torch.diagonal(theta[:, :, :3], dim1=1, dim2=2)
    assert 0.7 <= extent.min() < 0.71
    assert 1.29 < extent.max() <= 1.3
    assert np.abs(np.corrcoef(extent.T.numpy())[np.triu_indices(3, 1)]).max() < 0.1
    views = augment_volumes(torch.ones(1, 1, *SIZE), still(stretch=0.3), size=SIZE, views=30, seed=0)
    assert (views[..., 5, 8, 10] > 0.999).all()
    assert (views[..., 0, :, :].amax((-1, -2)) < 0.6).any()


def test_the_place_about_the_box_is_seen_where_the_volume_is_larger() -> None:
    spec = still(rotation=45.0)
    wide = augment_volumes(torch.ones(1, 1, 10, 40, 40), spec, size=(10, 16, 16), views=20, seed=0)
    assert wide.min() > 0.999
    tight = augment_volumes(torch.ones(1, 1, 10, 16, 16), spec, size=(10, 16, 16), views=20, seed=0)
    assert tight[..., 0, 0].mean() < 0.3


@pytest.mark.parametrize("sides", [(20, 33, 30), (21, 28, 40)])
def test_turns_are_rigid_in_mm(sides: tuple[int, int, int]) -> None:
    """The moments of a body, in mm, turn with it: their eigenvalues stay."""
    spacing, size = (3.0, 1.0, 1.5), (20, 28, 30)
    at = torch.meshgrid(*((torch.arange(n) - (n - 1) / 2) * mm for n, mm in zip(sides, spacing, strict=True)),
                        indexing="ij")  # fmt: skip
    squares = (at[0] / 15) ** 2 + (at[1] / 7) ** 2 + (at[2] / 10) ** 2
    body = torch.exp(-2 * squares)[None, None]

    def axes_of(weights: Tensor, counts: tuple[int, int, int]) -> Tensor:
        places = torch.meshgrid(*(torch.arange(n).double() * mm for n, mm in zip(counts, spacing, strict=True)),
                                indexing="ij")  # fmt: skip
        flat = torch.stack([place.flatten() for place in places])
        share = weights.double().flatten() / weights.double().sum()
        away = flat - (flat * share).sum(1, keepdim=True)
        return torch.linalg.eigvalsh((away * share) @ away.T).sqrt()

    expected = axes_of(body, sides)
    spec = still(rotation=60.0, tilt=30.0)
    views = augment_volumes(body, spec, size=size, views=8, seed=0, spacing=spacing)
    for view in views:
        torch.testing.assert_close(axes_of(view, size), expected, rtol=0.03, atol=0)
    cubes = augment_volumes(body, spec, size=size, views=8, seed=0)
    assert max(float((axes_of(view, size) / expected - 1).abs().max()) for view in cubes) > 0.1


def test_spacing_is_of_each_volume_and_cubes_where_it_is_unknown() -> None:
    spec, volumes = still(tilt=20.0), noise(1, 1, *SIZE).repeat(3, 1, 1, 1, 1)
    some = torch.tensor([[1.0, 1, 1], [4, 1, 1], [math.nan, 1, 1]])
    mixed = augment_volumes(volumes, spec, size=SIZE, views=2, seed=0, spacing=some)
    cubes, flat = (augment_volumes(volumes, spec, size=SIZE, views=2, seed=0, spacing=each) for each in
                   (None, (4.0, 1.0, 1.0)))  # fmt: skip
    for place, alike in enumerate((cubes, flat, cubes)):
        torch.testing.assert_close(mixed[:, place], alike[:, place], atol=1e-6, rtol=0)
    assert (cubes - flat).abs().max() > 0.1
    scaled = augment_volumes(volumes, spec, size=SIZE, views=2, seed=0, spacing=(2.0, 0.5, 0.5))
    torch.testing.assert_close(scaled, flat, atol=1e-4, rtol=0)


# --- a mask stays on its organ


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    preset=st.sampled_from(["ct", "brain_mri", "mri"]),
    sides=st.tuples(st.integers(20, 34), st.integers(20, 34), st.integers(20, 34)),
    size=st.tuples(st.integers(18, 32), st.integers(18, 32), st.integers(18, 32)),
    spacing=st.sampled_from([None, (1.0, 1.0, 1.0), (3.0, 0.8, 1.0), (0.7, 1.2, 1.2)]),
    flips=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_a_mask_stays_on_its_organ_through_every_view(
    seed: int,
    preset: str,
    sides: tuple[int, int, int],
    size: tuple[int, int, int],
    spacing: tuple[float, float, float] | None,
    flips: tuple[bool, bool, bool],
) -> None:
    organs = ellipsoids(3, sides, seed=seed % 1000)
    mirrors = dict(zip(("flip_horizontal", "flip_vertical", "flip_depth"), map(float, flips), strict=True))
    spec = AugmentSpec.model_validate({"preset": preset, **GEOMETRY, **mirrors})
    shown = augment_volumes(organs[:, None], spec, size=size, views=1, seed=seed, spacing=spacing)[0, :, 0]
    masks = augment_volume_labels((organs > 0.5).long() * 3, spec, size=size, seed=seed, spacing=spacing)
    assert masks.shape == (3, *size)
    assert set(masks.unique().tolist()) <= {0, 3}
    organ, mask = (shown > 0.5)[:, None].float(), (masks == 3)[:, None].float()
    grown = F.max_pool3d(organ, 5, 1, 2)
    shrunk = 1 - F.max_pool3d(F.pad(1 - organ, [2] * 6, value=1.0), 5, 1)  # at the edge of a view it may end anywhere
    assert ((shrunk <= mask) & (mask <= grown)).all(), "within two voxels: views enlarge up to twice"
    inside, outside = (organ * mask).sum((1, 2, 3, 4)), organ.maximum(mask).sum((1, 2, 3, 4))
    assert (inside / outside.clamp(min=1)).min() > 0.75


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    sides=st.tuples(st.integers(24, 40), st.integers(24, 40), st.integers(24, 40)),
    spacing=st.sampled_from([(1.0, 1.0, 1.0), (3.0, 0.8, 1.0)]),
)
def test_the_middle_of_an_organ_goes_where_the_map_of_the_view_puts_it(
    seed: int, sides: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    spec = still(crop_scale=(0.85, 1.0), rotation=20.0, tilt=10.0, stretch=0.1, flip_horizontal=0.5)
    size = (24, 24, 24)
    at = torch.meshgrid(*(torch.arange(side) - (side - 1) / 2 for side in sides), indexing="ij")
    shift = (noise(2, 3, seed=seed % 97) - 0.5) * 4
    balls = torch.stack([torch.exp(-sum((a - s) ** 2 for a, s in zip(at, each, strict=True)) / 8) for each in shift])
    views = augment_volumes(balls[:, None], spec, size=size, views=1, seed=seed, spacing=spacing)[0, :, 0]
    theta = thetas(spec, 2, sides, size, seed, spacing).double()
    place = (shift.double() * 2 / torch.tensor(sides)).flip(1)  # x, y, z, from -1 to 1
    moved = torch.linalg.solve(theta[:, :, :3], (place - theta[:, :, 3])[..., None])[..., 0].flip(1)
    expected = (moved * torch.tensor(size) + torch.tensor(size) - 1) / 2
    near = ((expected - (torch.tensor(size) - 1) / 2).abs() < 5).all(dim=1)  # wholly in the view
    assert ((middles(views) - expected).abs() < 0.1)[near].all()


# --- randomness


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_shape_dtype_and_range(preset: str) -> None:
    volumes = noise(3, 3 if preset == "fundus" else 1, 12, 18, 24)
    views = augment_volumes(volumes, AugmentSpec(preset=preset), size=SIZE, views=2, seed=0)
    assert views.shape == (2, 3, volumes.shape[1], *SIZE)
    assert views.dtype == torch.float32
    assert views.min() >= 0
    assert views.max() <= 1
    assert views.std() > 0.05


@pytest.mark.parametrize("preset", sorted(FOR_VOLUMES))
def test_same_seed_same_views_whatever_the_global_state(preset: str) -> None:
    spec, volumes = AugmentSpec(preset=preset), noise(4, 1, *SIZE)
    kept, before = volumes.clone(), torch.get_rng_state()
    first = augment_volumes(volumes, spec, size=SIZE, views=2, seed=2**63 - 1)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(kept, volumes)
    torch.manual_seed(2)
    assert torch.equal(first, augment_volumes(volumes, spec, size=SIZE, views=2, seed=2**63 - 1))
    assert not torch.equal(first, augment_volumes(volumes, spec, size=SIZE, views=2, seed=8))


@pytest.mark.parametrize(
    "chosen",
    [
        {"crop_scale": (0.3, 0.9)},
        {"rotation": 30},
        {"tilt": 10},
        {"stretch": 0.2},
        {"jitter": 1.0, "brightness": 0.3},
        {"jitter": 1.0, "contrast": 0.3},
        {"blur": 1.0, "blur_sigma": (0.5, 1.5)},
        {"low_resolution": 1.0, "low_resolution_factor": (1.2, 3.0)},
        {"noise": 0.1},
    ],
)
def test_every_view_of_every_volume_has_its_own_parameters(chosen: dict[str, object]) -> None:
    volumes = noise(1, 1, 20, 20, 20).mul(0.5).add(0.2).repeat(3, 1, 1, 1, 1)
    views = augment_volumes(volumes, still(**chosen), size=(20, 20, 20), views=2, seed=3).flatten(0, 1)
    for i, j in itertools.combinations(range(6), 2):
        assert (views[i] - views[j]).abs().max() > 1e-5


@pytest.mark.parametrize("preset", sorted(FOR_VOLUMES))
def test_a_view_is_of_its_volume_whatever_the_others_are(preset: str) -> None:
    spec, volumes = AugmentSpec(preset=preset, blur=0.5, low_resolution=0.5), noise(4, 1, 12, 18, 22)
    together = augment_volumes(volumes, spec, size=SIZE, views=2, seed=3)
    others = volumes.flip(0).clone()
    others[2] = volumes[2]
    again = augment_volumes(others, spec, size=SIZE, views=2, seed=3)
    torch.testing.assert_close(again[:, 2], together[:, 2], atol=1e-6, rtol=0)
    assert (again[:, 0] - together[:, 0]).abs().max() > 0.1


def test_views_that_are_sampled_a_few_at_once_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, volumes = AugmentSpec(preset="ct"), noise(3, 1, 12, 18, 22)
    whole = augment_volumes(volumes, spec, size=SIZE, views=2, seed=0)
    monkeypatch.setattr("bolus.data.views.resampling.AT_ONCE", 1)
    torch.testing.assert_close(augment_volumes(volumes, spec, size=SIZE, views=2, seed=0), whole, atol=1e-6, rtol=0)


def test_autocast_does_not_touch_the_views() -> None:
    spec, volumes = AugmentSpec(preset="brain_mri", blur=1.0, low_resolution=1.0), noise(2, 1, *SIZE)
    expected = augment_volumes(volumes, spec, size=SIZE, views=2, seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augment_volumes(volumes, spec, size=SIZE, views=2, seed=0), expected)


# --- intensities


def test_brightness_and_contrast_are_those_of_images() -> None:
    chosen = {"jitter": 1.0, "brightness": 0.3, "contrast": 0.2}
    pictures = noise(3, 1, 16, 16).mul(0.4).add(0.2)
    views = augment_volumes(pictures[:, :, None], still(**chosen), size=(1, 16, 16), views=2, seed=0)
    ratio = views[:, :, 0, 0].std((2, 3)) / pictures[:, 0].std((1, 2))
    assert ((ratio > 0.5) & (ratio < 1.6)).all()
    assert (ratio - 1).abs().max() > 0.05
    lit = augment_volumes(pictures[:, :, None], still(jitter=1.0, brightness=0.3), size=(1, 16, 16), views=1, seed=0)[0]
    share = lit[:, 0, 0] / pictures[:, 0]
    assert (share.amax((1, 2)) - share.amin((1, 2))).max() < 1e-4


def test_noise_has_its_deviation() -> None:
    views = augment_volumes(torch.full((2, 1, 20, 20, 20), 0.5), still(noise=0.05), size=(20, 20, 20), views=2, seed=0)
    assert abs(float(views.std()) - 0.05) < 0.003
    assert abs(float(views.mean()) - 0.5) < 0.003


def test_blur_is_a_gaussian_of_its_own_for_each_axis() -> None:
    from scipy.ndimage import gaussian_filter

    volume = noise(1, 1, 24, 26, 28)
    sigma = torch.tensor([[0.6, 1.0, 1.4]])  # x, y, z
    matrices = [blur_matrix(sigma[:, axis], side) for axis, side in enumerate((28, 26, 24))]
    found = along_axes(volume, matrices)[0, 0]
    expected = gaussian_filter(volume[0, 0].double().numpy(), (1.4, 1.0, 0.6), truncate=8)
    torch.testing.assert_close(found[6:-6, 6:-6, 6:-6].double(), torch.from_numpy(expected)[6:-6, 6:-6, 6:-6],
                               atol=2e-3, rtol=0)  # fmt: skip
    assert torch.allclose(matrices[0].sum(2), torch.ones(1, 28))


@pytest.mark.parametrize("side", [1, 2, 7, 24])
@pytest.mark.parametrize("factor", [1.0, 1.3, 2.0, 3.7])
def test_low_resolution_is_an_antialiased_reduction_brought_back(side: int, factor: float) -> None:
    line = noise(1, 1, 1, side)
    few = max(1, round(side / factor))
    reduced = F.interpolate(line, (1, few), mode="bilinear", antialias=True, align_corners=False)
    expected = F.interpolate(reduced, (1, side), mode="bilinear", align_corners=False)
    matrix = low_resolution_matrix(torch.tensor([factor]), side)
    torch.testing.assert_close(line @ matrix.transpose(1, 2), expected, atol=1e-4, rtol=0)


def test_low_resolution_and_blur_are_probabilities_of_their_own() -> None:
    volume = noise(1, 1, 8, 8, 8)
    views = augment_volumes(volume, still(low_resolution=0.25, low_resolution_factor=(2, 2), blur=0.25),
                            size=(8, 8, 8), views=400, seed=0)  # fmt: skip
    touched = (views - volume).abs().amax((1, 2, 3, 4, 5)) > 1e-4
    assert 0.35 < touched.float().mean() < 0.52  # 1 - 0.75^2


def test_functions_of_ones_own_see_volumes() -> None:
    own = [{"kind": "test_volume_views:darken", "share": 0.25}]
    views = augment_volumes(torch.ones(2, 1, *SIZE), still(own=own), size=SIZE, views=2, seed=0)
    assert views.shape == (2, 2, 1, *SIZE)
    assert (views == 0.25).all()


def darken(images: Tensor, generator: torch.Generator, *, share: float = 0.5) -> Tensor:
    assert images.shape == (4, 1, *SIZE)
    return images * share


# --- what is given


def test_integers_and_floats_agree() -> None:
    stored = (noise(2, 1, 7, 18, 20) * 255).round()
    spec = AugmentSpec(preset="ct")
    expected = augment_volumes(stored / 255, spec, size=SIZE, views=1, seed=0)
    for whole in (stored.to(torch.uint8), (stored * 257).to(torch.int32), (stored * 257).to(torch.uint16)):
        found = augment_volumes(whole, spec, size=SIZE, views=1, seed=0)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(plain_volumes(whole, size=SIZE), plain_volumes(stored / 255, size=SIZE))


def test_empty_batches() -> None:
    empty = torch.zeros(0, 2, 8, 8, 8)
    assert augment_volumes(empty, still(), size=SIZE, views=2, seed=0).shape == (2, 0, 2, *SIZE)
    assert plain_volumes(empty, size=SIZE).shape == (0, 2, *SIZE)
    labels = augment_volume_labels(empty[:, 0].to(torch.uint8), AugmentSpec(preset="ct"), size=SIZE, seed=0)
    assert labels.shape == (0, *SIZE)
    assert labels.dtype == torch.uint8


def test_bad_input_is_refused_by_name() -> None:
    volumes, spec = torch.zeros(2, 1, 8, 8, 8), AugmentSpec(preset="ct")
    with pytest.raises(UsageError, match=r"volumes: expected \[N, C, D, H, W\], found \[2, 8, 8, 8\]"):
        augment_volumes(volumes[:, 0], spec, size=SIZE, views=1, seed=0)
    with pytest.raises(UsageError, match="int64"):
        plain_volumes(volumes.long(), size=SIZE)
    for size in ((8, 8), (0, 8, 8)):
        with pytest.raises(UsageError, match="size: expected three numbers"):
            plain_volumes(volumes, size=size)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"labels: expected integers \[N, D, H, W\]"):
        augment_volume_labels(volumes[:, 0], spec, size=SIZE, seed=0)
    with pytest.raises(UsageError, match=r"spacing: expected 3 numbers, or 2 times 3, found \[3, 3\]"):
        augment_volumes(volumes, spec, size=SIZE, views=1, seed=0, spacing=torch.ones(3, 3))
    with pytest.raises(UsageError, match="spacing: expected mm above 0, found -1"):
        augment_volumes(volumes, spec, size=SIZE, views=1, seed=0, spacing=(1, -1, 1))


# --- recipes


@pytest.mark.parametrize("preset", sorted(FOR_VOLUMES))
def test_presets_of_volumes_are_safe_for_the_anatomy(preset: str) -> None:
    spec = PRESETS[preset]
    assert spec.flip_horizontal == spec.flip_vertical == spec.flip_depth == 0
    assert spec.crop_scale is not None
    assert spec.crop_scale[0] >= 0.5
    assert spec.rotation is not None
    assert spec.tilt is not None
    assert spec.tilt <= spec.rotation <= 15
    assert spec.saturation == spec.hue == 0


@pytest.mark.parametrize("key", ["flip_depth", "tilt", "stretch", "low_resolution", "low_resolution_factor"])
def test_images_refuse_what_only_volumes_have(key: str) -> None:
    spec = still(**{key: (2, 3) if key == "low_resolution_factor" else 0.5})
    with pytest.raises(RecipeError, match=f"{key}: is for volumes"):
        augment(noise(1, 1, 8, 8), spec, size=8, views=1, seed=0)
    with pytest.raises(RecipeError, match=r"ct is for volumes.*none, xray, fundus, ultrasound, mri"):
        augment(noise(1, 1, 8, 8), AugmentSpec(preset="ct"), size=8, views=1, seed=0)
    off = still(flip_depth=0, tilt=0, stretch=0, low_resolution=0)
    assert torch.equal(augment(noise(1, 1, 8, 8), off, size=8, views=1, seed=0)[0], noise(1, 1, 8, 8))


def test_impossible_ranges_are_refused_by_name() -> None:
    for ends in ((0.5, 2.0), (3.0, 2.0)):
        with pytest.raises(RecipeError, match="low_resolution_factor: expected 1 <= low <= high"):
            resolve(still(low_resolution_factor=ends))


def test_keys_of_volumes_leave_the_digests_of_recipes_as_they_were() -> None:
    assert Recipe.load("simclr").digest == SIMCLR
    assert Recipe.load("simclr").override(["images.augment.tilt=5"]).digest != SIMCLR
    full = Recipe.load("simclr").override({"images.augment": resolve(AugmentSpec(preset="xray")).model_dump()})
    assert full.images.augment.tilt is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_views_of_the_cpu() -> None:
    volumes = noise(3, 1, 12, 18, 22)
    for preset in sorted(FOR_VOLUMES):
        spec = AugmentSpec(preset=preset, noise=0)
        expected = augment_volumes(volumes, spec, size=SIZE, views=2, seed=0)
        found = augment_volumes(volumes.cuda(), spec, size=SIZE, views=2, seed=0)
        torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=0)
