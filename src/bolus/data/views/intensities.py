"""What a view's intensities become: colours, blur and resolution, of images and volumes alike.

Every parameter is drawn on the CPU; a kind of change draws its parameters whether or not they are used, so that the
others stay what they are when it is switched off.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from bolus.data.views.draws import Draws
from bolus.recipe import AugmentSpec

LUMA: Final = (0.299, 0.587, 0.114)  # ITU-R BT.601
# From RGB to luma and the two chroma axes in whose plane a hue is an angle (YIQ).
YIQ: Final = (LUMA, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))
FAINT: Final = 1e-7
"""Of a pixel's share, what float32 does not see; shares near the smallest number make products many times slower."""


def draw_colours(spec: AugmentSpec, draws: Draws) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gain `[count]`, share of the mean `[count]`, colour matrix `[count, 3, 3]`; None where nothing changes.

    Brightness b multiplies; contrast c stretches about the view's mean luma m; so together b c x + b (1 - c) m.
    Saturation scales and hue turns the chroma. Both keep luma and grey, so the matrix may be applied at the end.
    """
    assert spec.brightness is not None
    assert spec.contrast is not None
    assert spec.saturation is not None
    assert spec.hue is not None
    assert spec.jitter is not None
    chosen = draws.chosen(spec.jitter).float()
    brightness, contrast, saturation, hue = (
        chosen * draws.uniform(-most, most) for most in (spec.brightness, spec.contrast, spec.saturation, spec.hue)
    )
    brightness, contrast, saturation = ((1 + value).clamp(min=0) for value in (brightness, contrast, saturation))
    tone = spec.jitter > 0 and (spec.brightness > 0 or spec.contrast > 0)
    chroma = spec.jitter > 0 and (spec.saturation > 0 or spec.hue > 0)
    matrix = None
    if chroma:
        yiq = torch.tensor(YIQ, dtype=torch.float64)
        turn = 2 * math.pi * hue
        change = torch.zeros(draws.count, 3, 3, dtype=torch.float64)
        change[:, 0, 0] = 1
        change[:, 1, 1] = change[:, 2, 2] = saturation * turn.cos()
        change[:, 1, 2] = -saturation * turn.sin()
        change[:, 2, 1] = saturation * turn.sin()
        matrix = (torch.linalg.inv(yiq) @ change @ yiq).float()
    if not tone:
        return None, None, matrix
    return brightness * contrast, brightness * (1 - contrast), matrix


def draw_blur(spec: AugmentSpec, draws: Draws, axes: int | None = None) -> tuple[Tensor, Tensor]:
    """Standard deviations in pixels, `[m]` or `[m, axes]`, and the positions of the views they belong to."""
    assert spec.blur is not None
    assert spec.blur_sigma is not None
    chosen = draws.chosen(spec.blur)
    return draws.uniform(*spec.blur_sigma, axes)[chosen], chosen.nonzero().flatten()


def blur_matrix(sigma: Tensor, side: int) -> Tensor:
    """Gaussian smoothing of an axis of so many pixels, `[m, side, side]`; beyond an edge there is nothing to mix in.

    Args:
        sigma: `[m]`, above 0, in pixels.
        side: pixels of the axis.

    Example:
        >>> blur_matrix(torch.tensor([1.0]), 3)
        tensor([[[0.5741, 0.3482, 0.0777],
                 [0.2741, 0.4519, 0.2741],
                 [0.0777, 0.3482, 0.5741]]])
    """
    at = torch.arange(side)
    away = (at - at[:, None]).square() / (2 * sigma.square())[:, None, None]
    share = torch.softmax(-away, dim=2)
    return torch.where(share < FAINT, 0.0, share)


def low_resolution_matrix(factor: Tensor, side: int) -> Tensor:
    """An axis seen with fewer pixels and brought back to its own number, `[m, side, side]`.

    Reduced as the evaluation view is, by triangles as wide as the new pixels, to the whole number of them that is
    nearest to `side / factor`; then enlarged linearly.

    Args:
        factor: `[m]`, at least 1.
        side: pixels of the axis.

    Example:
        >>> low_resolution_matrix(torch.tensor([1.0, 2.0]), 4)[:, 0]
        tensor([[1.0000, 0.0000, 0.0000, 0.0000],
                [0.4286, 0.4286, 0.1429, 0.0000]])
    """
    few = (side / factor).round().clamp(1, side)[:, None, None]
    wide = side / few
    at = torch.arange(side)
    place = (at[:, None] + 0.5) * wide - 0.5  # [m, side, 1]: of the few, and of places beyond them, which are left out
    triangle = (wide - (at - place).abs()).clamp(min=0) * (at[:, None] < few)
    reduced = triangle / triangle.sum(dim=2, keepdim=True).clamp(min=1e-6)
    place = torch.minimum(((at[:, None] + 0.5) / wide - 0.5).clamp(min=0), few - 1)
    return (1 - (at - place).abs()).clamp(min=0) @ reduced


def recolour(views: Tensor, gain: Tensor | None, share: Tensor | None, matrix: Tensor | None, length: int) -> Tensor:
    """One change of colours for each view of a sample, whose `length` frames share it and their mean luma."""
    channels = views.shape[1]
    if gain is not None and share is not None:
        means = views.mean((2, 3))
        luma = means @ means.new_tensor(LUMA) if channels == 3 else means.mean(1)
        offset = share.to(views.device) * luma.view(-1, length).mean(1)
        gain, offset = (each.to(views.device).repeat_interleave(length) for each in (gain, offset))
        views = views.mul_(gain.view(-1, 1, 1, 1)).add_(offset.view(-1, 1, 1, 1))
    if matrix is not None and channels == 3:
        matrix = matrix.to(views.device).repeat_interleave(length, 0)
        views = torch.bmm(matrix, views.flatten(2)).view_as(views)
    return views
