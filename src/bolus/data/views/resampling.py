"""Affine views of images and volumes, as sharp as the evaluation view: linear between pixels, antialiased if reduced.

Dimension letters: N images, M views, C channels, S the images' side and s the views' side in pixels; A axes, 2 of
images and 3 of volumes, counted as x, y, z: from the last of a tensor to the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

AT_ONCE: Final = 2**24
"""Voxels of views that are sampled at once: their grid takes 12 bytes a voxel."""


def resample(images: Tensor, theta: Tensor, *, size: int | Sequence[int]) -> Tensor:
    """Affine views of images or volumes, antialiased along each axis of the image where its pixels are reduced.

    A pixel of a view takes what the evaluation view would: the triangle about its place in the image whose half-width
    is the number of image pixels to one view pixel, at least 1. So a view that shows the whole image is the evaluation
    view, and one that enlarges along every axis is sampled linearly. In a turned view, whose places lie anywhere
    between pixels, a short filter before linear sampling stands for the triangle; it is made for reductions of up to
    2, and stays as it is beyond. It also does for a view that shows more than the image.

    Args:
        images: `[N, C, S, S]`, or volumes `[N, C, D, H, W]`; floating.
        theta: `[M, A, A + 1]` on the CPU, M a multiple of N, views of image 0 at 0, N, 2 N and so on: maps from places
            in the view to places in the image, both from -1 to 1 between outer edges, as of `torch.nn.functional`'s
            `affine_grid` with `align_corners=False`; rows and columns are x, y and z.
        size: of a view, in pixels: its side, or one number an axis in the tensor's order.

    Returns:
        `[M, C, size, size]` or `[M, C, *size]`, dtype and device of the images; black where a view shows what is
        outside the image.

    Example:
        >>> image = torch.arange(16.0).view(1, 1, 4, 4)
        >>> resample(image, torch.eye(2, 3)[None], size=2)[0, 0]
        tensor([[ 3.5714,  5.1429],
                [ 9.8571, 11.4286]])
        >>> resample(image[:, :, None].expand(1, 1, 4, 4, 4), torch.eye(3, 4)[None], size=2)[0, 0, 1]
        tensor([[ 3.5714,  5.1429],
                [ 9.8571, 11.4286]])
    """
    axes = images.ndim - 2
    wanted = (size,) * axes if isinstance(size, int) else tuple(size)
    scale = _scale(theta, images.shape[2:], wanted)
    reduced = (scale > 1.001).any(dim=1)  # beyond rounding
    linear, diagonal = theta[:, :, :axes], torch.diagonal(theta[:, :, :axes], dim1=1, dim2=2)
    turned = (linear - torch.diag_embed(diagonal) != 0).any(dim=2).any(dim=1)
    beyond = (diagonal.abs() + theta[:, :, axes].abs() > 1.0001).any(dim=1)  # the triangles know nothing of the outside
    straight = ~(turned | beyond)
    views = images.new_empty((len(theta), images.shape[1], *wanted))
    few = len(theta) if axes == 2 else max(1, AT_ONCE // max(1, views[0].numel()))
    ways: tuple[tuple[Tensor, Callable[[Tensor, Tensor, Tensor, tuple[int, ...]], Tensor]], ...] = (
        (~reduced, _sample),
        (reduced & straight, _stretch),
        (reduced & ~straight, _soften_and_sample),
    )
    for chosen, take in ways:
        for places in torch.split(chosen.nonzero().flatten(), few):
            if len(places):
                shown = images[(places % len(images)).to(images.device)]
                found = take(shown, theta[places].to(shown), scale[places].to(shown), wanted)
                views[places.to(images.device)] = found
    return views


def _scale(theta: Tensor, sides: Sequence[int], size: Sequence[int]) -> Tensor:
    """Image pixels to a view pixel, `[M, A]`, along x, y and z of the image."""
    axes = len(size)
    unit = size[-1]  # 1 / unit is taken out, so that views with equal sides need no division of their own
    relative = torch.tensor([unit / each for each in size[::-1]])
    steps = torch.tensor([side / unit for side in sides[::-1]])
    length: Tensor = (theta[:, :, :axes] * relative.to(theta)).norm(dim=2)
    return length * steps.to(theta)


def along_axes(images: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Images with each axis multiplied by a matrix: for x, y and z, `[M, s, S]` of an axis of S pixels.

    >>> swap = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    >>> along_axes(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), (swap, swap))
    tensor([[[[4., 3.],
              [2., 1.]]]])
    """
    between = (1,) * (images.ndim - 3)
    x, y = (each.view(len(each), *between, *each.shape[1:]) for each in matrices[:2])
    found = y @ images @ x.transpose(-2, -1)
    for z in matrices[2:]:
        found = (z[:, None] @ found.flatten(3)).view(*found.shape[:2], -1, *found.shape[3:])
    return found


def _sample(images: Tensor, theta: Tensor, scale: Tensor, size: tuple[int, ...]) -> Tensor:
    """Linearly, whatever the scale."""
    grid = F.affine_grid(theta, [len(images), images.shape[1], *size], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _stretch(images: Tensor, theta: Tensor, scale: Tensor, size: tuple[int, ...]) -> Tensor:
    """Views that are not turned, by their triangles: a matrix for each axis."""
    weights = []
    for axis, (side, wanted) in enumerate(zip(images.shape[:1:-1], size[::-1], strict=True)):
        at = (torch.arange(wanted, device=images.device) * 2 + 1) / wanted - 1  # pixel centres of the view
        pixel = torch.arange(side, device=images.device)
        place = ((theta[:, axis, axis, None] * at + theta[:, axis, -1, None] + 1) * side - 1) / 2  # [M, s]
        away = (pixel - place[..., None]).abs_()  # [M, s, S]
        triangle = torch.sub(scale[:, axis, None, None].clamp(min=1), away, out=away).clamp_(min=0)
        weights.append(triangle / triangle.sum(dim=2, keepdim=True))
    return along_axes(images, weights)


def _soften_and_sample(images: Tensor, theta: Tensor, scale: Tensor, size: tuple[int, ...]) -> Tensor:
    """Turned views: each axis of the image is filtered by [a, 1 - 2 a, a], then sampled linearly.

    With places spread evenly between pixels, a triangle of half-width w has the variance (w^2 - 1) / 6 more than that
    of linear sampling, so that a = (w^2 - 1) / 12, and passes the share 2 / (3 w) of white noise, so that
    8/3 a^2 - 2 a + 2/3 = 2 / (3 w). Smooth pictures need the first and fine grain the second; we take the mean of the
    two, with which the edges of pictures keep the evaluation view's energy. They agree at w = 1 and at w = 2, where
    linear sampling of what is so filtered is the triangle.
    """
    width = scale.clamp(1, 2)
    by_variance = (width**2 - 1) / 12
    by_noise = 3 / 8 * (1 - (1 - 16 / 9 * (1 - 1 / width)).sqrt())
    shares = (by_variance + by_noise) / 2
    for x_y_z in range(images.ndim - 2):
        axis, a = images.ndim - 1 - x_y_z, shares[:, x_y_z].view(-1, *(1,) * (images.ndim - 1))
        last = images.shape[axis] - 1
        soft = images * (1 - 2 * a)
        soft.narrow(axis, 1, last).addcmul_(images.narrow(axis, 0, last), a)
        soft.narrow(axis, 0, last).addcmul_(images.narrow(axis, 1, last), a)
        for end in (0, last):  # beyond an edge is what is at the edge
            soft.narrow(axis, end, 1).addcmul_(images.narrow(axis, end, 1), a)
        images = soft
    return _sample(images, theta, scale, size)
