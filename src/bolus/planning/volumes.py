"""What a planned encoder sees of volumes: how many voxels, how far apart, and how many volumes at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from bolus.data.cohort.cohort import Samples
from bolus.data.volumes.depth import look_at_volumes
from bolus.data.volumes.geometry import Geometry
from bolus.device import device
from bolus.encoders.building import build_encoder
from bolus.errors import EncoderError
from bolus.recipe import EncoderSpec, ImagesSpec

Choice = tuple[Any, str]

LOOKED = 16  # volumes whose headers are read
VOXELS, ON_CPU = 96**3, 64**3  # of the box, with an accelerator and without one
COARSEST = 4.0  # mm to which voxels are made larger so that the box holds a whole volume
FEWEST = 16  # voxels of the box along an axis at least
STEP = 8  # of which its sides are multiples
SHARE = 0.5  # of the memory, that the encoder of a step may hold


@dataclass(frozen=True)
class Seen:
    """What a few volumes of a cohort are.

    Args:
        number: of those that could be laid.
        shape: voxels along depth, height and width, in the median.
        spacing: mm between them, in the median; None where one of them does not say.
    """

    number: int
    shape: tuple[float, ...]
    spacing: tuple[float, ...] | None


def see_volumes(samples: Samples) -> Seen:
    """The medians of a few volumes, by the headers of their files.

    Args:
        samples: volumes; 16 of them at most are looked at.
    """
    found = [each for each in look_at_volumes(samples, LOOKED) if isinstance(each, Geometry)]
    if not found:
        return Seen(0, (0.0,) * 3, None)
    shape, spacing = (np.median([getattr(each, name) for each in found], axis=0) for name in ("shape", "spacing"))
    known = all(each.known for each in found)
    return Seen(len(found), tuple(shape.tolist()), tuple(spacing.tolist()) if known else None)


def choose_box(seen: Seen, *, accelerated: bool) -> dict[str, Choice]:
    """Size and spacing of what an encoder sees, and why: all of the median volume if voxels of 4 mm or less allow it.

    The box has at most 96 x 96 x 96 voxels with an accelerator, and 64 x 64 x 64 without one, but for sides that are
    rounded up to multiples of 8. Voxels stay as fine as those of the median volume where it fits; else they become
    larger, the finest axes first, up to 4 mm. Where that is not enough the box is a window of the volume.

    Args:
        seen: what the volumes are.
        accelerated: whether a GPU trains.

    Example:
        >>> found = choose_box(Seen(16, (300.0, 512.0, 512.0), (1.0, 0.7, 0.7)), accelerated=True)
        >>> found["images.size"][0], found["images.spacing"][0]
        ([88, 104, 104], [3.6, 3.6, 3.6])
    """
    most = VOXELS if accelerated else ON_CPU
    room = f"{round(most ** (1 / 3))} x {round(most ** (1 / 3))} x {round(most ** (1 / 3))} voxels"
    where = f"a box of {room} is what {'a GPU' if accelerated else 'a CPU'} is planned for"
    if not seen.number:
        side = round(most ** (1 / 3))
        return {
            "images.size": (
                side,
                f"A guess, as none of the first volumes could be laid: bolus check says why; {where}.",
            )
        }
    voxels = _text(seen.shape)
    if seen.spacing is None:
        return _unspaced(seen, most, f"Of {seen.number} volumes the median has {voxels} voxels; {where}.")
    extent = [length * step for length, step in zip(seen.shape, seen.spacing, strict=True)]
    steps, whole = _steps(seen.shape, seen.spacing, most)
    sides = [_side(length / step) for length, step in zip(extent, steps, strict=True)]
    if not whole:
        sides = _window(sides, most)
    median = f"Of {seen.number} volumes the median is {_text(extent)} mm of {_text(seen.spacing, 2)} mm a voxel"
    how = (
        "all of it is in the box"
        if whole
        else f"the box is a window of it: {where}, and voxels stay below {COARSEST:g} mm"
    )
    coarser = any(one > 1.01 * other for one, other in zip(steps, seen.spacing, strict=True))
    why_steps = f"Larger than the median's, so that the box holds {'all' if whole else 'more'} of it." if coarser else (
        "As in the median volume, so that voxels are of one size in all of them."
    )  # fmt: skip
    return {"images.size": (sides, f"{median}; {how}."), "images.spacing": (steps, why_steps)}


def _steps(shape: Sequence[float], spacing: Sequence[float], most: int) -> tuple[list[float], bool]:
    """Mm between voxels at which a volume has so many at most, and whether it then has."""
    extent = [length * step for length, step in zip(shape, spacing, strict=True)]

    def number(finest: float) -> float:
        return math.prod(length / max(step, finest) for length, step in zip(extent, spacing, strict=True))

    low, high = min(spacing), COARSEST
    if number(low) <= most:
        return [_rounded(step) for step in spacing], True
    if number(high) > most:
        return [_rounded(max(step, high)) for step in spacing], False
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if number(middle) > most else (low, middle)
    return [_rounded(max(step, high)) for step in spacing], True


def _unspaced(seen: Seen, most: int, why: str) -> dict[str, Choice]:
    """Volumes that do not say how far their voxels lie apart: in the box as they are, or squeezed into it."""
    if math.prod(seen.shape) <= most:
        return {
            "images.size": ([_side(length) for length in seen.shape], why),
            "images.spacing": (None, "Not all files say it: voxels stay as they are."),
        }
    less = (most / math.prod(seen.shape)) ** (1 / 3)
    return {
        "images.size": ([_side(length * less) for length in seen.shape], why),
        "images.spacing": (None, "Not all files say it."),
        "images.fit": ("stretch", "Volumes are squeezed into the box, as their millimetres are not known."),
    }


def choose_chunk(encoder: EncoderSpec, images: ImagesSpec, batch: int) -> dict[str, Choice]:
    """How many volumes the encoder forwards at once, so that what it holds takes half of the memory at most, and why.

    What it holds for the backward pass is counted on a device without memory, in float32. Heads, and the parts of the
    features that objectives keep, come on top.

    Args:
        encoder: of the recipe.
        images: of the recipe; each volume is seen in `views` boxes.
        batch: volumes.

    Returns:
        Recipe keys; empty where the encoder cannot be counted, as of a name on the hub that is not here.
    """
    try:
        held = held_bytes(encoder, images.sides) * images.views
    except (EncoderError, RuntimeError, OSError):
        return {}
    there, what = _memory()
    if not math.isfinite(there):
        return {}
    told = f"A volume's {images.views} boxes hold {_size(held)} for the backward pass"
    fit = int(SHARE * there // held)
    least = 2 if images.views == 1 else 1  # BatchNorm wants more than one
    if fit >= batch:
        return {"sampling.chunk": (None, f"{told}: a whole batch stays below half of the {_size(there)} {what}.")}
    chunk = max(least, 2 ** int(math.log2(max(1, fit))))
    chunk = min(chunk, batch)
    found: dict[str, Choice] = {
        "sampling.chunk": (chunk, f"{told}: so many volumes at a time stay below half of the {_size(there)} {what}.")
    }
    if fit < least:
        found["training.activation_checkpointing"] = True, f"{told}, more than half of the {_size(there)} {what}."
    return found


def held_bytes(encoder: EncoderSpec, sides: Sequence[int]) -> int:
    """What an encoder keeps of one box for its backward pass, in bytes of float32; nothing is computed.

    Args:
        encoder: of volumes.
        sides: of the box, `(D, H, W)`.

    Raises:
        EncoderError: an encoder that is not there.

    Example:
        >>> held_bytes(EncoderSpec(backbone="r18w16_3d"), (48, 48, 48)) // 2**20
        3
    """
    made = build_encoder(encoder.model_copy(update={"pretrained": False}), seed=0)
    state = {**dict(made.named_parameters()), **dict(made.named_buffers())}
    empty = {name: torch.empty_like(each, device="meta") for name, each in state.items()}
    for name, parameter in made.named_parameters():
        empty[name].requires_grad_(parameter.requires_grad)
    own = {_storage(each) for each in empty.values()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[_storage(tensor)] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        boxes = torch.empty(2, encoder.in_channels, *sides, device="meta")  # BatchNorm wants more than one
        maps = torch.func.functional_call(made, empty, (boxes,))
    assert maps.pooled.requires_grad
    return sum(each.untyped_storage().nbytes() for key, each in kept.items() if key not in own) // 2


def _storage(tensor: Tensor) -> int:
    """Which memory a tensor would lie in."""
    return int(tensor.untyped_storage()._cdata)


def _memory() -> tuple[float, str]:
    """Bytes of the accelerator, or else of the machine, NaN where it does not say; and what they are."""
    if device().type == "cuda":
        return float(torch.cuda.get_device_properties(device()).total_memory), "of this GPU"
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")), "of this machine"
    except (AttributeError, ValueError, OSError):
        return math.nan, ""


def _side(voxels: float) -> int:
    """Rounded up to a multiple of 8, but for a hundredth; 16 at least.

    >>> _side(24.1), _side(25), _side(5)
    (24, 32, 16)
    """
    return max(FEWEST, STEP * math.ceil(0.99 * voxels / STEP))


def _window(sides: Sequence[int], most: int) -> list[int]:
    """The sides of a window of a volume: the longest are cut until it has so many voxels at most.

    >>> _window([200, 64, 64], 96**3)
    [200, 64, 64]
    >>> _window([400, 160, 160], 96**3)
    [96, 96, 96]
    """
    found = list(sides)
    while math.prod(found) > most and max(found) > FEWEST:
        found[found.index(max(found))] -= STEP
    return found


def _rounded(step: float) -> float:
    """Up to two digits, so that a box that holds a volume still does.

    >>> _rounded(3.51), _rounded(0.7), _rounded(1.0)
    (3.6, 0.7, 1.0)
    """
    tens = 10.0 ** (1 - math.floor(math.log10(step)))
    return round(math.ceil(round(step * tens, 3)) / tens, 6)


def _text(numbers: Sequence[float], digits: int = 0) -> str:
    return " x ".join(f"{number:.{digits}f}" if digits == 0 else f"{number:.{digits}g}" for number in numbers)


def _size(held: float) -> str:
    """Bytes in words.

    >>> _size(3 * 2**30), _size(50 * 2**20)
    ('3.0 GiB', '50 MiB')
    """
    return f"{held / 2**30:.1f} GiB" if held >= 2**30 else f"{held / 2**20:.0f} MiB"
