"""Affine views of images that are as sharp as the evaluation view, whatever the crop: bilinear, antialiased if reduced.

Dimension letters: N images, M views, C channels, S the images' side and s the views' side in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def resample(images: Tensor, theta: Tensor, *, size: int) -> Tensor:
    """Affine views of images, antialiased along each axis of the image where its pixels are reduced.

    A pixel of a view takes what the evaluation view would: the triangle about its place in the image whose half-width
    is the number of image pixels to one view pixel, at least 1. So a view that shows the whole image is the evaluation
    view, and one that enlarges along both axes is sampled bilinearly. In a turned view, whose places lie anywhere
    between pixels, a short filter before bilinear sampling stands for the triangle; it is made for reductions of up to
    2, and stays as it is beyond.

    Args:
        images: `[N, C, S, S]`, floating.
        theta: `[M, 2, 3]` on the CPU, M a multiple of N, views of image 0 at 0, N, 2 N and so on: maps from places in
            the view to places in the image, both from -1 to 1 between outer edges, as of `torch.nn.functional`'s
            `affine_grid` with `align_corners=False`.
        size: side of a view, in pixels.

    Returns:
        `[M, C, size, size]`, dtype and device of the images; black where a turn brings in what is outside the image.

    Example:
        >>> image = torch.arange(16.0).view(1, 1, 4, 4)
        >>> resample(image, torch.eye(2, 3)[None], size=2)[0, 0]
        tensor([[ 3.5714,  5.1429],
                [ 9.8571, 11.4286]])
    """
    side = images.shape[-1]
    scale = theta[:, :, :2].norm(dim=2) * (side / size)  # [M, 2]: image pixels to a view pixel, along x and y
    reduced = (scale > 1.001).any(dim=1)  # beyond rounding
    turned = (theta[:, 0, 1] != 0) | (theta[:, 1, 0] != 0)
    views = images.new_empty((len(theta), images.shape[1], size, size))
    for chosen, take in (
        (~reduced, _sample),
        (reduced & ~turned, _stretch),
        (reduced & turned, _soften_and_sample),
    ):
        places = chosen.nonzero().flatten()
        if len(places):
            shown = images[(places % len(images)).to(images.device)]
            found = take(shown, theta[places].to(shown), scale[places].to(shown), size)
            views[places.to(images.device)] = found
    return views


def _sample(images: Tensor, theta: Tensor, scale: Tensor, size: int) -> Tensor:
    """Bilinearly, whatever the scale."""
    grid = F.affine_grid(theta, [len(images), images.shape[1], size, size], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _stretch(images: Tensor, theta: Tensor, scale: Tensor, size: int) -> Tensor:
    """Views that are not turned, by their triangles: a matrix for the columns and one for the rows."""
    side = images.shape[-1]
    at = (torch.arange(size, device=images.device) * 2 + 1) / size - 1  # pixel centres of the view
    pixel = torch.arange(side, device=images.device)
    weights = []
    for axis in (0, 1):
        place = ((theta[:, axis, axis, None] * at + theta[:, axis, 2, None] + 1) * side - 1) / 2  # [M, s]
        away = (pixel - place[..., None]).abs_()  # [M, s, S]
        triangle = torch.sub(scale[:, axis, None, None].clamp(min=1), away, out=away).clamp_(min=0)
        weights.append((triangle / triangle.sum(dim=2, keepdim=True))[:, None])
    x, y = weights
    return y @ images @ x.transpose(2, 3)


def _soften_and_sample(images: Tensor, theta: Tensor, scale: Tensor, size: int) -> Tensor:
    """Turned views: each axis of the image is filtered by [a, 1 - 2 a, a], then sampled bilinearly.

    With places spread evenly between pixels, a triangle of half-width w has the variance (w^2 - 1) / 6 more than that
    of bilinear sampling, so that a = (w^2 - 1) / 12, and passes the share 2 / (3 w) of white noise, so that
    8/3 a^2 - 2 a + 2/3 = 2 / (3 w). Smooth pictures need the first and fine grain the second; we take the mean of the
    two, with which the edges of pictures keep the evaluation view's energy. They agree at w = 1 and at w = 2, where
    bilinear sampling of what is so filtered is the triangle.
    """
    width = scale.clamp(1, 2)
    by_variance = (width**2 - 1) / 12
    by_noise = 3 / 8 * (1 - (1 - 16 / 9 * (1 - 1 / width)).sqrt())
    share = ((by_variance + by_noise) / 2)[:, :, None, None, None]
    for axis, a in ((3, share[:, 0]), (2, share[:, 1])):
        last = images.shape[axis] - 1
        soft = images * (1 - 2 * a)
        soft.narrow(axis, 1, last).addcmul_(images.narrow(axis, 0, last), a)
        soft.narrow(axis, 0, last).addcmul_(images.narrow(axis, 1, last), a)
        for end in (0, last):  # beyond an edge is what is at the edge
            soft.narrow(axis, end, 1).addcmul_(images.narrow(axis, end, 1), a)
        images = soft
    return _sample(images, theta, scale, size)
