"""Augmentations of one's own: functions of a batch of views, named in a recipe under `images.augment.own`.

They come last, after everything that bolus varies. A function changes intensities and moves nothing, because masks,
sides and pairs of pixels stay where they are; it draws from the generator that it is given and from nothing else, so
that a view stays a function of the seed. `try_own` looks for both before a run begins.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bolus.data.views.presets import find_own_augmentation
from bolus.errors import RecipeError
from bolus.recipe import OwnAugmentSpec
from bolus.seeds import seed_for

VIEWS, CLIPS = 32, 16  # on which a function is tried
FAR = 0.05  # of the side: a spot that goes further has been moved
_FAINT = 0.1  # of a spot's energy: what leaves less has erased it, and says nothing of where it is


def apply_own(views: Tensor, specs: Sequence[OwnAugmentSpec], *, seed: int) -> Tensor:
    """Views after the functions of the specs, one after the other, each clipped to [0, 1].

    Args:
        views: float32 `[B, C, S, S]` in [0, 1], or `[B, C, T, S, S]` of clips; may be changed in place.
        specs: resolved.
        seed: of this batch; each function has a generator of its own from it, on the device of the views.

    Returns:
        Shape, dtype and device of `views`.

    Raises:
        RecipeError: a function that returns anything else than finite numbers of that shape, dtype and device.
    """
    for place, spec in enumerate(specs):
        key = f"images.augment.own.{place}"
        generator = torch.Generator(views.device).manual_seed(seed_for(seed, key, spec.kind))
        with torch.no_grad():
            found = find_own_augmentation(spec, key)(views, generator, **spec.parameters)
        views = _checked(found, views, f"{key}: {spec.kind}").clamp(0.0, 1.0)
    return views


def _checked(found: Tensor, views: Tensor, name: str) -> Tensor:
    expected = f"{name}: expected {_shown(views)}"
    if not isinstance(found, Tensor):
        raise RecipeError(f"{expected}, found {type(found).__name__}")
    if (found.shape, found.dtype, found.device) != (views.shape, views.dtype, views.device):
        raise RecipeError(f"{expected}, found {_shown(found)}")
    if not found.isfinite().all():
        raise RecipeError(f"{expected}, found values that are NaN or infinite")
    return found


def _shown(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}"


def try_own(
    specs: Sequence[OwnAugmentSpec], *, size: int, channels: int, frames: int | None = None, key: str = "images.augment"
) -> None:
    """Try the functions on made-up views, each by itself, before a run begins.

    Args:
        specs: resolved.
        size: side of a view, in pixels.
        channels: of a view.
        frames: of a clip; None for images.
        key: where the specs stand in the recipe.

    Raises:
        RecipeError: a function that fails, returns another shape, gives other views for the same generator, or moves
            pixels. A small spot of the views is changed, and what then differs must be strongest within 5 % of the
            side of it: crops, turns, mirrorings and shifts are seen, fine deformations are not.

    Example:
        >>> try_own((), size=16, channels=1)
    """
    shape = (VIEWS, channels, size, size) if frames is None else (CLIPS, channels, frames, size, size)
    views = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    width = max(2, size // 16)
    row, column = size // 8, 5 * size // 16  # moved by every mirroring and quarter turn
    spot = (..., slice(row, row + width), slice(column, column + width))
    changed = views.clone()
    changed[spot] = 1 - changed[spot]
    for place, spec in enumerate(specs):
        name = f"{key}.own.{place}: {spec.kind}"
        try:
            first, second, other = (apply_own(each.clone(), [spec], seed=0) for each in (views, views, changed))
        except RecipeError:
            raise
        except Exception as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RecipeError(f"{name}: failed on views {list(shape)}: {type(error).__name__}: {said}") from error
        if not torch.equal(first, second):
            raise RecipeError(
                f"{name}: expected the same views for the same generator, found others; draw every random number from "
                "the generator that is given, so that a resumed run is the same"
            )
        energy = (other - first).square().flatten(1, -3).sum(1)
        whole = (changed - views).square().flatten(1, -3).sum(1).sum((1, 2))
        local = F.avg_pool2d(energy[:, None], width, stride=1)[:, 0]
        peak = local.flatten(1).argmax(1)
        away = torch.maximum((peak // local.shape[2] - row).abs(), (peak % local.shape[2] - column).abs())
        if ((away > max(2, FAR * size)) & (energy.sum((1, 2)) > _FAINT * whole)).any():
            raise RecipeError(
                f"{name}: expected a function that changes intensities, found one that moves pixels: masks, sides and "
                f"pairs of pixels would not move with it; crop, rotation and flips are keys of {key}"
            )
