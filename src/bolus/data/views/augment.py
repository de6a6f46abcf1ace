"""Views of images: batched augmentation on the images' device, a pure function of images, spec and seed.

Crop, rotation and flip are one affine resampling, as sharp as the evaluation view; brightness, contrast, saturation and
hue are one affine map of the colours; every parameter is drawn on the CPU from the seed, so that a view is the same
picture on any device.
"""

from __future__ import annotations

import math

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor
from torch.nn import functional as F

from bolus.data.views.draws import Draws
from bolus.data.views.intensities import draw_blur, draw_colours, recolour
from bolus.data.views.own import apply_own
from bolus.data.views.presets import resolve
from bolus.data.views.resampling import resample
from bolus.errors import UsageError
from bolus.recipe import AugmentSpec


def to_unit(images: Tensor) -> Tensor:
    """Stored images as float32 in [0, 1].

    Args:
        images: any shape; uint8 (0..255), uint16 or int32 (0..65535), or floating in [0, 1] already.

    Raises:
        UsageError: any other dtype.

    Example:
        >>> to_unit(torch.tensor([0, 255], dtype=torch.uint8))
        tensor([0., 1.])
    """
    if images.dtype == torch.uint8:
        return images.float().div_(255)
    if images.dtype in {torch.uint16, torch.int32}:
        return images.float().div_(65535)
    if images.is_floating_point():
        return images.float()
    raise UsageError(f"images: expected uint8, uint16, int32 or a floating dtype, found {images.dtype}")


def plain(images: Tensor, *, size: int) -> Tensor:
    """The evaluation view: the whole image, resized bilinearly with antialiasing; nothing is drawn.

    Args:
        images: `[N, C, S, S]`, a dtype that `to_unit` takes.
        size: side of the view, in pixels.

    Returns:
        Float32 `[N, C, size, size]` in [0, 1].

    Example:
        >>> plain(torch.full((1, 1, 10, 10), 0.5), size=8).shape
        torch.Size([1, 1, 8, 8])
    """
    unit = to_unit(_checked(images))
    if unit.shape[-1] == size or not len(unit):
        return unit.clone() if len(unit) else unit.new_zeros((0, unit.shape[1], size, size))
    resized = F.interpolate(unit, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized.clamp_(0.0, 1.0)


def augment(
    images: Tensor,
    spec: AugmentSpec,
    *,
    size: int,
    views: int,
    seed: int,
    frames: int | None = None,
    of: tuple[int, Tensor] | None = None,
) -> Tensor:
    """Random views; every view of every sample has parameters of its own, which hold for all frames of a clip.

    The same arguments give the same views; the global random state is neither read nor changed. What a rotation brings
    in from outside the picture is black. A crop is as sharp as the evaluation view: antialiased where it is reduced, as
    `resample` says, so that one of the whole image, neither turned nor recoloured, is the view that `plain` gives.
    Images should be about 1.25 times `size`, as the cache holds them, and at most twice. Saturation and hue act on
    three channels only. With noise, the same seed gives other noise on another kind of device; all else agrees.

    Frames of a clip share crop, turn, colours (by the mean luma of the whole view) and blur; noise differs by frame.
    Functions of `spec.own` come last; they see the views as `apply_own` says.

    Args:
        images: `[N, C, S, S]`, a dtype that `to_unit` takes; of clips `[N * T, C, S, S]`, a clip after the other.
        spec: what varies and how much; keys that are not given take the preset's value.
        size: side of a view, in pixels.
        views: V, how many views of each sample.
        seed: of this batch, 0 <= seed < 2**63.
        frames: T, where the images are frames of clips; None for single images.
        of: where these are some samples of a batch: how many that has, and their places in it, int64 `[N]`; their views
            are those that the whole batch would get, but for noise and functions of one's own.

    Returns:
        Float32 `[V, N, C, size, size]` in [0, 1], on the device of `images`; `[V, N, C, T, size, size]` of clips.

    Raises:
        RecipeError: see `resolve`.
        UsageError: images that are not square, of another dtype, or no whole number of clips.

    Example:
        >>> image = torch.rand(2, 1, 20, 20)
        >>> first = augment(image, AugmentSpec(preset="xray"), size=16, views=2, seed=1)
        >>> first.shape, torch.equal(first, augment(image, AugmentSpec(preset="xray"), size=16, views=2, seed=1))
        (torch.Size([2, 2, 1, 16, 16]), True)
    """
    full = resolve(spec, volumes=False)
    num_images, channels = _checked(images).shape[:2]
    length = 1 if frames is None else frames
    if num_images % length:
        raise UsageError(f"images: expected a multiple of {length} frames, found {num_images}")
    count = views * (num_images // length)  # each has parameters of its own
    if not count:
        shape = (channels, size, size) if frames is None else (channels, frames, size, size)
        return images.new_zeros((views, num_images // length, *shape), dtype=torch.float32)
    draws = Draws(seed, views, num_images // length if of is None else of[0], None if of is None else of[1])
    theta = _draw_theta(full, draws)  # each step draws its parameters whether or not they are used
    gain, offset, colour = draw_colours(full, draws)
    sigma, blurred = draw_blur(full, draws)

    with torch.autocast(images.device.type, enabled=False):  # half precision would move the sampling grid
        if theta is None:
            out = plain(images, size=size).repeat(views, 1, 1, 1)
        else:
            out = resample(to_unit(images), theta.repeat_interleave(length, 0), size=size)
        out = recolour(out, gain, offset, colour, length)
        if len(blurred):
            chosen = (blurred[:, None] * length + torch.arange(length)).flatten().to(out.device)
            assert full.blur_sigma is not None
            width = 2 * math.ceil(2.5 * full.blur_sigma[1]) + 1
            width = min(width, size - 1 + size % 2)  # odd, and no wider than the view, so that reflection has pixels
            sigmas = sigma.repeat_interleave(length).to(out.device)[:, None].expand(-1, 2)
            out[chosen] = gaussian_blur2d(out[chosen], (width, width), sigmas)
        assert full.noise is not None
        if full.noise > 0:
            alone = out.device.type == "cpu" and of is None
            source = draws.generator if alone else torch.Generator(out.device).manual_seed(draws.own_seed())
            out += full.noise * torch.randn(out.shape, generator=source, device=out.device)
        out = out.clamp_(0.0, 1.0)
        if frames is None:
            out = out.view(views, num_images, channels, size, size)
        else:
            out = out.view(views, -1, frames, channels, size, size).transpose(2, 3)
        if full.own:
            out = apply_own(out.flatten(0, 1), full.own, seed=draws.own_seed()).view(out.shape)
    return out


def augment_labels(labels: Tensor, spec: AugmentSpec, *, size: int, seed: int) -> Tensor:
    """The label maps of the one view that `augment` gives of each image: the same crop, turn and mirror.

    A pixel has the label of the nearest one; what a rotation brings in from outside the picture is 0. Nothing but the
    geometry of the spec matters, so labels are never mixed.

    Args:
        labels: `[N, S, S]` integers of the images given to `augment`, at their size, from 0 to 2**24.
        spec: as given to `augment`.
        size: side of the view, in pixels.
        seed: as given to `augment`.

    Returns:
        `[N, size, size]`, dtype and device of `labels`.

    Raises:
        RecipeError: see `resolve`.
        UsageError: label maps that are not square, or not of integers.

    Example:
        >>> labels = torch.eye(8, dtype=torch.int64)[None]
        >>> torch.equal(augment_labels(labels, AugmentSpec(preset="none"), size=8, seed=0), labels)
        True
        >>> augment_labels(labels, AugmentSpec(preset="none", flip_horizontal=1), size=8, seed=0)[0, 0].tolist()
        [0, 0, 0, 0, 0, 0, 0, 1]
    """
    if labels.ndim != 3 or labels.shape[1] != labels.shape[2] or labels.is_floating_point():
        raise UsageError(f"labels: expected integers [N, S, S], found {labels.dtype} {list(labels.shape)}")
    if not len(labels):
        return labels.new_zeros((0, size, size))
    theta = _draw_theta(resolve(spec, volumes=False), Draws(seed, 1, len(labels)))  # the first that is drawn
    values = labels[:, None].float()
    with torch.autocast(labels.device.type, enabled=False):
        if theta is None:
            out = F.interpolate(values, (size, size), mode="nearest-exact")
        else:
            grid = F.affine_grid(theta.to(values.device), [len(labels), 1, size, size], align_corners=False)
            out = F.grid_sample(values, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return out[:, 0].to(labels.dtype)


def _checked(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[-1] != images.shape[-2]:
        raise UsageError(f"images: expected square images [N, C, S, S], found {list(images.shape)}")
    return images


def _draw_theta(spec: AugmentSpec, draws: Draws) -> Tensor | None:
    """Affine maps `[count, 2, 3]` from places in the view to places in the image; None where every one is identity."""
    assert spec.crop_scale is not None
    assert spec.crop_ratio is not None
    assert spec.rotation is not None
    assert spec.flip_horizontal is not None
    assert spec.flip_vertical is not None
    area = draws.uniform(*spec.crop_scale)
    ratio = draws.uniform(math.log(spec.crop_ratio[0]), math.log(spec.crop_ratio[1]))
    ratio = torch.maximum(torch.minimum(ratio, -area.log()), area.log())  # so that a crop of this area fits
    width, height = (area * ratio.exp()).sqrt(), (area / ratio.exp()).sqrt()
    x = draws.uniform(-1, 1) * (1 - width)
    y = draws.uniform(-1, 1) * (1 - height)
    angle = draws.uniform(-spec.rotation, spec.rotation)
    mirror_x = 1.0 - 2.0 * draws.chosen(spec.flip_horizontal).float()
    mirror_y = 1.0 - 2.0 * draws.chosen(spec.flip_vertical).float()
    if spec.crop_scale[0] == 1 and spec.rotation == spec.flip_horizontal == spec.flip_vertical == 0:
        return None
    return _theta(width * mirror_x, height * mirror_y, x, y, angle)


def _theta(width: Tensor, height: Tensor, x: Tensor, y: Tensor, degrees: Tensor) -> Tensor:
    """Maps for crops of signed width and height (1: the whole image) about (x, y).

    The crop is turned against the clock by the angle about its own centre, so its content turns with the clock.
    """
    cos, sin = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
    rows = (cos * width, sin * height, x, -sin * width, cos * height, y)
    return torch.stack(rows, dim=1).view(-1, 2, 3)
