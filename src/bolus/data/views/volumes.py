"""Views of volumes: batched augmentation on the volumes' device, a pure function of volumes, spec and seed.

Crop, stretch, rotation, tilt and flips are one affine resampling, as sharp as the evaluation view; blur and low
resolution are one matrix an axis; colours are those of images. Every parameter is drawn on the CPU from the seed.

Dimension letters: V views, N volumes, M = V N, C channels, D H W voxels of a volume, from inferior to superior,
posterior to anterior and left to right, and d h w of a view.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bolus.data.views.augment import to_unit
from bolus.data.views.draws import Draws
from bolus.data.views.intensities import blur_matrix, draw_blur, draw_colours, low_resolution_matrix, recolour
from bolus.data.views.own import apply_own
from bolus.data.views.presets import resolve
from bolus.data.views.resampling import along_axes, resample
from bolus.errors import UsageError
from bolus.recipe import AugmentSpec

Size = tuple[int, int, int]
Spacing = Sequence[float] | Tensor


def plain_volumes(volumes: Tensor, *, size: Size) -> Tensor:
    """The evaluation view: the box about the middle, voxels as they are; nothing is drawn.

    Args:
        volumes: `[N, C, D, H, W]`, a dtype that `to_unit` takes.
        size: d, h and w, in voxels. Along an axis that has fewer, black is added on both sides; where the number to
            cut or to add is odd, the higher end has one more.

    Returns:
        Float32 `[N, C, d, h, w]` in [0, 1], apart from the volumes' memory.

    Raises:
        UsageError: volumes of another shape or dtype, or a size that is not three numbers.

    Example:
        >>> plain_volumes(torch.arange(5.0).expand(1, 1, 3, 3, 5) / 4, size=(1, 5, 2))[0, 0, 0]
        tensor([[0.0000, 0.0000],
                [0.2500, 0.5000],
                [0.2500, 0.5000],
                [0.2500, 0.5000],
                [0.0000, 0.0000]])
    """
    return _filled(to_unit(_cut(_check(volumes, size), size)), size).clone()


def augment_volumes(
    volumes: Tensor,
    spec: AugmentSpec,
    *,
    size: Size,
    views: int,
    seed: int,
    spacing: Spacing | None = None,
    of: tuple[int, Tensor] | None = None,
) -> Tensor:
    """Random views of the box about the middle; every view of every volume has parameters of its own.

    The same arguments give the same views; the global random state is neither read nor changed. Voxels of a view are
    those of the volume, enlarged by the crop: a spec that changes nothing gives the view of `plain_volumes`. What a
    turn or a stretch shows of the volume beyond the box is seen; beyond the volume it is black. Turns are rigid in mm
    where the spacing is known; else voxels are taken for cubes. Blur and low resolution are drawn for each axis. With
    noise, the same seed gives other noise on another kind of device; all else agrees.

    Functions of `spec.own` come last; they see the views as `apply_own` says, `[B, C, d, h, w]`.

    Args:
        volumes: `[N, C, D, H, W]`, a dtype that `to_unit` takes.
        spec: what varies and how much; keys that are not given take the preset's value. Saturation and hue act on three
            channels only.
        size: d, h and w of a view, in voxels.
        views: V, how many views of each volume.
        seed: of this batch, 0 <= seed < 2**63.
        spacing: of the voxels along D, H and W, in mm: three numbers for all, or `[N, 3]`; not finite where unknown.
        of: as of `augment`.

    Returns:
        Float32 `[V, N, C, d, h, w]` in [0, 1], on the device of `volumes`.

    Raises:
        RecipeError: see `resolve`.
        UsageError: see `plain_volumes`; a spacing that is not above 0, or not one for all or one a volume.

    Example:
        >>> volume = torch.rand(2, 1, 6, 12, 12)
        >>> spec = AugmentSpec(preset="ct")
        >>> first = augment_volumes(volume, spec, size=(6, 10, 10), views=2, seed=1, spacing=(3.0, 1.0, 1.0))
        >>> first.shape
        torch.Size([2, 2, 1, 6, 10, 10])
        >>> torch.equal(first, augment_volumes(volume, spec, size=(6, 10, 10), views=2, seed=1, spacing=(3, 1, 1)))
        True
    """
    full = resolve(spec, volumes=True)
    num, channels = _check(volumes, size).shape[:2]
    millimetres = _millimetres(spacing, num)
    count = views * num
    if not count:
        return volumes.new_zeros((views, num, channels, *size), dtype=torch.float32)
    draws = Draws(seed, views, num if of is None else of[0], None if of is None else of[1])
    with torch.autocast(volumes.device.type, enabled=False):  # half precision would move the sampling grid
        volumes = _filled(to_unit(volumes), size)
        theta = draw_theta(full, volumes.shape[2:], size, millimetres.repeat(views, 1), draws)  # the first of all
        colours = draw_colours(full, draws)
        matrices, softened = draw_softness(full, size, draws)
        if theta is None:
            out = _cut(volumes, size).repeat(views, 1, 1, 1, 1)
        else:
            out = resample(volumes, theta, size=size)
        out = recolour(out.flatten(2, 3), *colours, 1).view(out.shape)
        if len(softened):
            where = softened.to(out.device)
            out[where] = along_axes(out[where], [each.to(out) for each in matrices])
        assert full.noise is not None
        if full.noise > 0:
            alone = out.device.type == "cpu" and of is None
            source = draws.generator if alone else torch.Generator(out.device).manual_seed(draws.own_seed())
            out += full.noise * torch.randn(out.shape, generator=source, device=out.device)
        out = out.clamp_(0.0, 1.0)
        if full.own:
            out = apply_own(out, full.own, seed=draws.own_seed())
    return out.view(views, num, channels, *size)


def augment_volume_labels(
    labels: Tensor, spec: AugmentSpec, *, size: Size, seed: int, spacing: Spacing | None = None
) -> Tensor:
    """The label maps of the one view that `augment_volumes` gives of each volume: the same crop, turns and mirrors.

    A voxel has the label of the nearest one; what lies beyond the volume is 0.

    Args:
        labels: `[N, D, H, W]` integers of the volumes given to `augment_volumes`, at their size, from 0 to 2**24.
        spec: as given to `augment_volumes`, with `views=1`.
        size: d, h and w of a view, in voxels.
        seed: as given to `augment_volumes`.
        spacing: as given to `augment_volumes`.

    Returns:
        `[N, d, h, w]`, dtype and device of `labels`.

    Raises:
        RecipeError: see `resolve`.
        UsageError: label maps that are not `[N, D, H, W]` integers; else as `augment_volumes`.

    Example:
        >>> labels = torch.eye(4, dtype=torch.int64).expand(1, 4, 4, 4)
        >>> spec = AugmentSpec(preset="none", flip_horizontal=1)
        >>> augment_volume_labels(labels, spec, size=(4, 4, 4), seed=0)[0, 0, 0]
        tensor([0, 0, 0, 1])
    """
    if labels.ndim != 4 or labels.is_floating_point():
        raise UsageError(f"labels: expected integers [N, D, H, W], found {labels.dtype} {list(labels.shape)}")
    full = resolve(spec, volumes=True)
    _check_size(size)
    millimetres = _millimetres(spacing, len(labels))
    if not len(labels):
        return labels.new_zeros((0, *size))
    values = _filled(labels[:, None].long(), size)  # a padding of 16 bits without sign is not to be had
    with torch.autocast(labels.device.type, enabled=False):
        theta = draw_theta(full, values.shape[2:], size, millimetres, Draws(seed, 1, len(labels)))
        if theta is None:
            return _cut(values, size)[:, 0].to(labels.dtype, copy=True)
        grid = F.affine_grid(theta.to(values.device), [len(labels), 1, *size], align_corners=False)
        out = F.grid_sample(values.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return out[:, 0].to(labels.dtype)


def draw_theta(spec: AugmentSpec, sides: Sequence[int], size: Size, spacing: Tensor, draws: Draws) -> Tensor | None:
    """Affine maps `[M, 3, 4]` from places in the view to places in the volume; None where every one is the box.

    A view is a box of voxels as they are, cut to the crop's share of it, stretched, turned about its own middle, and
    moved so that what it shows stays within the box if it is not turned. A positive rotation turns the content of a
    slice, its first row at the top, with the clock.

    Args:
        spec: resolved for volumes.
        sides: voxels of the volume along D, H and W, no fewer than the view's.
        size: voxels of the view along D, H and W.
        spacing: `[M, 3]` in mm, along D, H and W; only their ratios matter.
        draws: of these M views.
    """
    assert spec.crop_scale is not None
    assert spec.crop_ratio is not None
    assert spec.rotation is not None
    assert spec.tilt is not None
    assert spec.stretch is not None
    assert spec.flip_horizontal is not None
    assert spec.flip_vertical is not None
    assert spec.flip_depth is not None
    share = draws.uniform(*spec.crop_scale).log() / 3  # of each axis, if the crop is a cube
    ratio = draws.uniform(math.log(spec.crop_ratio[0]), math.log(spec.crop_ratio[1])) / 2
    ratio = torch.maximum(torch.minimum(ratio, -share), share)  # so that a crop of this share fits
    stretch = draws.uniform(1 - spec.stretch, 1 + spec.stretch, 3)
    extent = torch.stack([share + ratio, share - ratio, share], dim=1).exp() * stretch  # x, y, z; 1: the whole box
    away = draws.uniform(-1, 1, 3) * (1 - extent).clamp(min=0)
    about_z = draws.uniform(-spec.rotation, spec.rotation)
    about_x, about_y = (draws.uniform(-spec.tilt, spec.tilt) for _ in range(2))
    flips = (spec.flip_horizontal, spec.flip_vertical, spec.flip_depth)
    mirror = torch.stack([1.0 - 2.0 * draws.chosen(flip).float() for flip in flips], dim=1)
    if spec.crop_scale[0] == 1 and spec.rotation == spec.tilt == spec.stretch == 0 and not any(flips):
        return None

    voxels, view, steps = torch.tensor(sides[::-1]), torch.tensor(size[::-1]), spacing.flip(1)
    turn = _turn(about_z, 0, 1) @ _turn(about_x, 1, 2) @ _turn(about_y, 2, 0)
    linear = turn * (steps * extent * mirror)[:, None, :] / steps[:, :, None]  # view voxels to volume voxels
    middle = (voxels - view) // 2 + (view - voxels) / 2  # of the box, in voxels from the volume's
    shift = (middle + away * view / 2) * 2 / voxels
    return torch.cat([linear * (view / voxels[:, None]), shift[:, :, None]], dim=2)


def _turn(degrees: Tensor, one: int, other: int) -> Tensor:
    """Rotations `[M, 3, 3]` in the plane of two axes."""
    cos, sin = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
    turn = torch.eye(3).repeat(len(degrees), 1, 1)
    turn[:, one, one] = turn[:, other, other] = cos
    turn[:, one, other], turn[:, other, one] = sin, -sin
    return turn


def draw_softness(spec: AugmentSpec, size: Size, draws: Draws) -> tuple[list[Tensor], Tensor]:
    """What blurs views or lowers their resolution: a matrix for x, y and z, each `[m, s, s]`, and the m views' places.

    Args:
        spec: resolved for volumes.
        size: voxels of a view along D, H and W.
        draws: of these views.
    """
    assert spec.low_resolution is not None
    assert spec.low_resolution_factor is not None
    sigma, blurred = draw_blur(spec, draws, axes=3)
    lowered = draws.chosen(spec.low_resolution).nonzero().flatten()
    factor = draws.uniform(*spec.low_resolution_factor, 3)[lowered]
    softened = torch.unique(torch.cat([blurred, lowered]))
    matrices = []
    for axis, side in enumerate(size[::-1]):
        matrix = torch.eye(side).repeat(len(softened), 1, 1)
        matrix[torch.searchsorted(softened, blurred)] = blur_matrix(sigma[:, axis], side)
        lower = torch.searchsorted(softened, lowered)
        matrix[lower] = low_resolution_matrix(factor[:, axis], side) @ matrix[lower]
        matrices.append(matrix)
    return matrices, softened


def _check(volumes: Tensor, size: Size) -> Tensor:
    if volumes.ndim != 5:
        raise UsageError(f"volumes: expected [N, C, D, H, W], found {list(volumes.shape)}")
    _check_size(size)
    return volumes


def _check_size(size: Size) -> None:
    if len(size) != 3 or min(size) < 1:
        raise UsageError(f"size: expected three numbers of voxels, at least 1, found {size}")


def _millimetres(spacing: Spacing | None, num: int) -> Tensor:
    """`[N, 3]`; 1 along every axis of a volume where one is unknown."""
    if spacing is None:
        return torch.ones(num, 3)
    given = torch.as_tensor(spacing, dtype=torch.float32).cpu()
    if given.shape not in {(3,), (num, 3)}:
        raise UsageError(f"spacing: expected 3 numbers, or {num} times 3, found {list(given.shape)}")
    if (given <= 0).any():
        raise UsageError(f"spacing: expected mm above 0, found {float(given.min()):g}")
    known = given.isfinite().all(dim=-1, keepdim=True)
    return torch.where(known, given, 1.0).expand(num, 3)


def _filled(volumes: Tensor, size: Size) -> Tensor:
    """Volumes with black about them where they are smaller than the view."""
    missing = [max(0, wanted - side) for wanted, side in zip(size[::-1], volumes.shape[:1:-1], strict=True)]
    if not any(missing):
        return volumes
    return F.pad(volumes, [part for each in missing for part in (each // 2, each - each // 2)])


def _cut(volumes: Tensor, size: Size) -> Tensor:
    """The middle of the volumes along each axis where they are larger than the view."""
    for axis, wanted in enumerate(size, start=2):
        side = volumes.shape[axis]
        volumes = volumes.narrow(axis, max(0, side - wanted) // 2, min(side, wanted))
    return volumes
