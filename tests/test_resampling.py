"""Affine views: the evaluation view at full crop, bilinear where enlarged, as sharp when turned, never displaced."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bolus.data.views import augment as module
from bolus.data.views.augment import augment, augment_labels, plain
from bolus.data.views.draws import Draws
from bolus.data.views.presets import resolve
from bolus.data.views.resampling import resample
from bolus.recipe import AugmentSpec

SIZES = [(40, 32), (80, 64), (280, 224), (41, 32), (35, 28), (48, 32), (64, 32), (70, 32), (33, 32), (7, 5)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def still(**given: object) -> AugmentSpec:
    return AugmentSpec.model_validate({"preset": "none", **given})


def maps(width: float, height: float, x: float = 0, y: float = 0, degrees: float = 0) -> Tensor:
    return module._theta(*(torch.tensor([float(value)]) for value in (width, height, x, y, degrees)))


def pictures(num: int, side: int) -> Tensor:
    """Ellipses over a slow ramp with grain: `[num, 1, side, side]`, antialiased from four times the side."""
    big = 4 * side
    r = np.random.default_rng(0)
    row, column = np.mgrid[-1 : 1 : big * 1j, -1 : 1 : big * 1j]
    found = np.empty((num, 1, big, big), np.float32)
    for picture in found[:, 0]:
        picture[:] = 0.4 + 0.1 * row + 0.02 * r.standard_normal((big, big))
        for _ in range(12):
            (cx, cy), (rx, ry) = r.uniform(-0.7, 0.7, 2), r.uniform(0.03, 0.3, 2)
            picture += r.uniform(-0.3, 0.3) * ((((column - cx) / rx) ** 2 + ((row - cy) / ry) ** 2) < 1)
    return plain(torch.from_numpy(found).clamp(0, 1), size=side)


def edge_energy(views: Tensor) -> Tensor:
    """Squared differences of neighbours in the disc that every turned view shows."""
    size = views.shape[-1]
    at = torch.linspace(-1, 1, size)
    disc = (at[:, None] ** 2 + at**2 < 0.8)[1:, 1:]
    energy = views.diff(dim=-1)[..., 1:, :] ** 2 + views.diff(dim=-2)[..., :, 1:] ** 2
    return energy[..., disc].mean()


# --- the whole image


@pytest.mark.parametrize(("side", "size"), SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_of_the_whole_image_is_the_evaluation_view(side: int, size: int, channels: int) -> None:
    images = noise(2, channels, side, side)  # nothing is sharper than noise
    expected = plain(images, size=size)
    found = resample(images, maps(1, 1).repeat(2, 1, 1), size=size)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    bilinear = F.interpolate(images, (size, size), mode="bilinear", align_corners=False)
    assert (bilinear - expected).abs().max() > 0.01


@pytest.mark.parametrize(("side", "size"), SIZES)
def test_flips_of_the_whole_image_are_flips_of_the_evaluation_view(side: int, size: int) -> None:
    images = noise(3, 1, side, side)
    whole = plain(images, size=size)
    views = augment(images, still(flip_horizontal=0.5), size=size, views=8, seed=1)
    mirrored = 0
    for view in views:
        for ours, theirs in zip(view, whole, strict=True):
            straight, across = ((ours - each).abs().max() < 1e-4 for each in (theirs, theirs.flip(2)))
            assert straight != across
            mirrored += bool(across)
    assert 0 < mirrored < 24
    down = augment(images, still(flip_vertical=1.0), size=size, views=1, seed=1)[0]
    torch.testing.assert_close(down, whole.flip(2), atol=1e-4, rtol=0)


def test_an_image_at_the_size_of_the_view_stays_as_it_is() -> None:
    images = noise(2, 1, 32, 32)
    torch.testing.assert_close(resample(images, maps(1, 1).repeat(2, 1, 1), size=32), images, atol=1e-5, rtol=0)


# --- crops


def naive_crop(image: Tensor, width: float, height: float, x: float, y: float, size: int) -> Tensor:
    """Triangles about every place, pixel by pixel, in float64."""
    side = image.shape[-1]
    out = torch.zeros(size, size, dtype=torch.float64)

    def weights(place: float, scale: float) -> list[float]:
        found = [max(0.0, max(scale, 1.0) - abs(pixel - place)) for pixel in range(side)]
        return [weight / sum(found) for weight in found]

    for i in range(size):
        down = weights(((y + height * ((2 * i + 1) / size - 1)) * side + side - 1) / 2, height * side / size)
        for j in range(size):
            along = weights(((x + width * ((2 * j + 1) / size - 1)) * side + side - 1) / 2, width * side / size)
            out[i, j] = sum(
                down[k] * along[m] * image[k, m] for k in range(side) if down[k] for m in range(side) if along[m]
            )
    return out


@pytest.mark.parametrize(
    ("width", "height", "x", "y"),
    [(1, 1, 0, 0), (0.95, 0.9, 0.03, -0.07), (0.9, 0.7, 0.1, 0.3), (0.6, 0.95, -0.4, 0.05), (-0.9, 0.85, 0.05, 0.1)],
)
def test_a_crop_that_is_reduced_equals_loops(width: float, height: float, x: float, y: float) -> None:
    images = noise(1, 1, 20, 20)
    found = resample(images, maps(width, height, x, y), size=16)[0, 0]
    size = found.shape[-1]
    expected = naive_crop(images[0, 0].double(), abs(width), height, x, y, size)
    expected = expected.flip(1) if width < 0 else expected
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("degrees", [0, 20])
@pytest.mark.parametrize(("width", "height"), [(0.8, 0.8), (0.79, 0.5), (-0.3, 0.4)])
def test_a_crop_that_is_enlarged_is_sampled_bilinearly_bit_for_bit(width: float, height: float, degrees: float) -> None:
    images, theta = noise(2, 3, 40, 40), maps(width, height, 0.1, -0.2, degrees).repeat(2, 1, 1)
    grid = F.affine_grid(theta, [2, 3, 32, 32], align_corners=False)
    assert torch.equal(resample(images, theta, size=32), F.grid_sample(images, grid, align_corners=False))


def test_each_view_is_of_its_image_whatever_the_others_are() -> None:
    images = noise(3, 2, 20, 20)
    given = [(1, 1, 0, 0, 0), (0.5, 0.5, 0.2, 0, 0), (1, 1, 0, 0, 12), (0.9, 0.95, 0.02, 0, 0), (0.6, 0.6, 0, 0, 5)]
    theta = torch.cat([maps(*each) for each in [*given, given[0]]])
    together = resample(images, theta, size=16)
    assert together.shape == (6, 2, 16, 16)
    for place, view in enumerate(together):
        alone = resample(images[place % 3][None], theta[place][None], size=16)[0]
        torch.testing.assert_close(view, alone, atol=1e-6, rtol=0)


# --- turned views


def naive_filter(image: Tensor, width: float) -> Tensor:
    a = ((width**2 - 1) / 12 + 3 / 8 * (1 - math.sqrt(1 - 16 / 9 * (1 - 1 / width)))) / 2
    side = image.shape[-1]
    for _ in range(2):  # the columns, and turned over, the rows
        out = torch.zeros_like(image)
        for i in range(side):
            for j in range(side):
                before, after = image[i, max(j - 1, 0)], image[i, min(j + 1, side - 1)]
                out[i, j] = (1 - 2 * a) * image[i, j] + a * (before + after)
        image = out.T
    return image


@pytest.mark.parametrize(("side", "width"), [(20, 1.25), (32, 2.0), (40, 2.0)])
def test_a_turned_view_equals_loops(side: int, width: float) -> None:
    images, theta = noise(1, 1, side, side), maps(1, 1, 0, 0, 17)
    soft = naive_filter(images[0, 0].double(), width)[None, None].float()
    grid = F.affine_grid(theta, [1, 1, 16, 16], align_corners=False)
    expected = F.grid_sample(soft, grid, align_corners=False)
    torch.testing.assert_close(resample(images, theta, size=16), expected, atol=1e-5, rtol=0)


def test_only_the_axis_that_is_reduced_is_softened() -> None:
    stripes = torch.tensor([0.0, 1.0]).repeat(10).expand(1, 1, 20, 20)
    theta = maps(0.5, 1, 0, 0, 1e-4)  # the columns are enlarged, the rows reduced
    across, down = resample(stripes, theta, size=16), resample(stripes.transpose(2, 3), theta, size=16)
    grid = F.affine_grid(theta, [1, 1, 16, 16], align_corners=False)
    torch.testing.assert_close(across, F.grid_sample(stripes, grid, align_corners=False), atol=1e-3, rtol=0)
    assert down.std() < 0.9 * F.grid_sample(stripes.transpose(2, 3), grid, align_corners=False).std()


@pytest.mark.parametrize("spec", [still(rotation=10.0), still(flip_horizontal=0.5), still(crop_scale=(0.98, 1.0))])
@pytest.mark.parametrize(("side", "size"), [(80, 64), (160, 128), (120, 64)])
def test_views_of_the_whole_image_have_the_edges_of_the_evaluation_view(
    spec: AugmentSpec, side: int, size: int
) -> None:
    images = pictures(8, side)
    views = augment(images, spec, size=size, views=3, seed=0)
    assert 0.98 < edge_energy(views) / edge_energy(plain(images, size=size)) < 1.02
    bilinear = F.interpolate(images, (size, size), mode="bilinear", align_corners=False)
    assert edge_energy(bilinear) / edge_energy(plain(images, size=size)) > 1.08


# --- geometry


@pytest.mark.parametrize(
    "spec",
    [
        still(crop_scale=(0.7, 1.0), rotation=15.0),
        still(crop_scale=(0.5, 1.0), flip_horizontal=0.5),
        still(flip_vertical=0.5),
    ],
)
@pytest.mark.parametrize(("side", "size"), [(80, 64), (100, 64)])
def test_nothing_moves_against_its_label_map(spec: AugmentSpec, side: int, size: int) -> None:
    """Discs: their middles where the map of the view puts them, and their edges where the labels change."""
    at = torch.arange(side) - (side - 1) / 2
    centres = (noise(40, 2, seed=1) - 0.5) * side * 0.3
    far = ((at[:, None] - centres[:, :1, None]) ** 2 + (at - centres[:, 1:, None]) ** 2).sqrt()
    images = (side / 8 + 0.5 - far).clamp(0, 1)[:, None]  # an antialiased edge
    labels = (images[:, 0] > 0.5).long()
    views = augment(images, spec, size=size, views=1, seed=3)[0, :, 0]
    targets = augment_labels(labels, spec, size=size, seed=3)

    def middles(weights: Tensor) -> Tensor:
        place = torch.arange(size, dtype=torch.float32)
        total = weights.sum((1, 2))
        rows, columns = (weights.sum(axis) @ place / total for axis in (2, 1))
        return torch.stack([rows, columns], dim=1)

    theta = module._draw_theta(resolve(spec), Draws(3, 1, len(images)))
    assert theta is not None
    middle = centres.flip(1) * 2 / side  # column and row, from -1 to 1
    place = torch.linalg.solve(theta[:, :, :2], (middle - theta[:, :, 2])[..., None])[..., 0]
    moved = middles(views) - (place.flip(1) * size + size - 1) / 2
    assert moved.abs().max() < 0.03  # of a pixel
    apart = middles(views) - middles(targets.float())  # the label map itself is coarse
    assert apart.mean(dim=0).abs().max() < 0.05
    assert ((views > 0.5) != (targets > 0)).float().mean() < 0.01


def test_a_ramp_keeps_its_place_in_the_middle() -> None:
    """The view of a picture whose value is its place says where each pixel was taken from, on average exactly."""
    side, size = 80, 64
    ramp = torch.arange(side, dtype=torch.float32).expand(1, 1, side, side)
    for degrees in (0.0, 9.0):
        view = resample(ramp, maps(0.9, 0.9, 0.05, 0, degrees), size=size)[0, 0]
        grid = F.affine_grid(maps(0.9, 0.9, 0.05, 0, degrees), [1, 1, size, size], align_corners=False)[0, ..., 0]
        place = (grid * side + side - 1) / 2
        away = (view - place)[8:-8, 8:-8]
        assert away.abs().max() < 0.1
        assert abs(float(away.mean())) < 0.005


@pytest.mark.parametrize("given", [{"rotation": 20.0}, {"flip_horizontal": 0.5}, {"crop_scale": (0.5, 1.0)}])
def test_frames_of_a_clip_are_resampled_alike(given: dict[str, object]) -> None:
    frame = noise(3, 1, 20, 20)
    frames = frame.repeat_interleave(4, 0)  # three clips that stand still
    views = augment(frames, still(**given), size=16, views=2, seed=0, frames=4)
    assert views.shape == (2, 3, 1, 4, 16, 16)
    torch.testing.assert_close(views, views[:, :, :, :1].expand_as(views), atol=1e-6, rtol=0)
    alone = augment(frame, still(**given), size=16, views=2, seed=0)
    torch.testing.assert_close(views[:, :, :, 0], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("given", [{"rotation": 20.0}, {"flip_horizontal": 0.5}, {"crop_scale": (0.5, 1.0)}])
def test_views_are_a_function_of_the_seed(given: dict[str, object]) -> None:
    images = noise(4, 1, 80, 80)
    first, again, other = (augment(images, still(**given), size=64, views=2, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_views_of_the_cpu() -> None:
    images = noise(4, 3, 80, 80)
    for given in ({"rotation": 20.0}, {"flip_horizontal": 0.5}, {"crop_scale": (0.5, 1.0)}):
        expected = augment(images, still(**given), size=64, views=2, seed=0)
        found = augment(images.cuda(), still(**given), size=64, views=2, seed=0)
        torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=0)
