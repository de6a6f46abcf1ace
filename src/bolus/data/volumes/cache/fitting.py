"""A volume as the cache keeps it: cut, resampled and brought to its contract's fit, in eight or sixteen bits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from bolus.data.images.preprocessing import ENLARGE, Preprocessing
from bolus.data.images.shrinking import Shrunk, quantise, to_channels
from bolus.data.readers.room import check_size
from bolus.data.volumes.boxes import center_box, crop_foreground
from bolus.data.volumes.fit import in_words
from bolus.data.volumes.resampling import resample_volume
from bolus.data.volumes.volume import Spacing, Volume


def fit_volume(volume: Volume, contract: Preprocessing, modality: str = "") -> tuple[Shrunk, Spacing]:
    """The voxels that the cache keeps of a volume, and mm between them.

    First it is cut to the body, if the contract says so; then it is resampled to the stated spacing; then `stretch`
    squeezes all of it into the box, `crop` keeps its middle, 1.25 boxes long at most, and `pad` keeps all voxels.

    Args:
        volume: as it was read.
        contract: of an encoder of volumes.
        modality: as the table says it, for files that do not.

    Returns:
        Its array is `[C, D, H, W]`; of `stretch`, the box of the contract. The quantiles are those before resampling.

    Raises:
        ImageError: a stated spacing, and a volume of unknown spacing; values that are not finite.
        TooLargeError: more voxels at the stated spacing than memory may take.

    Example:
        >>> from bolus.data.pixels.image import Range
        >>> from bolus.data.volumes.fit import VolumeFit
        >>> tall = Volume(np.ones((1, 16, 8, 8), np.float32), (1.0, 1.0, 1.0), None, Range(0, 1, "unit"), 8, False)
        >>> contract = Preprocessing(8, fit="stretch", volume=VolumeFit((8, 8, 8)))
        >>> kept, spacing = fit_volume(tall, contract)
        >>> kept.array.shape, spacing
        ((1, 8, 8, 8), (2.0, 1.0, 1.0))
    """
    wanted = contract.volume
    assert wanted is not None
    if wanted.foreground:
        volume = crop_foreground(volume, modality=modality)
    made: list[Volume] = []

    def fit(array: Tensor, black: float) -> Tensor:
        plain = replace(volume, array=to_channels(array, contract.channels).numpy(), padding=None)
        if wanted.spacing is not None:
            _check_room(plain, wanted.spacing)
            plain = resample_volume(plain, wanted.spacing)
        if contract.fit == "stretch":
            plain = squeeze(plain, wanted.size)
        elif contract.fit == "crop":
            depth, height, width = (
                min(length, round(ENLARGE * side))
                for length, side in zip(plain.array.shape[1:], wanted.size, strict=True)
            )
            plain = center_box(plain, (depth, height, width))
        made.append(plain)
        return torch.from_numpy(np.ascontiguousarray(plain.array))

    kept = quantise(volume.image, fit)
    return kept, made[0].spacing


def squeeze(volume: Volume, size: tuple[int, int, int]) -> Volume:
    """All of a volume on a box of voxels, whatever its spacing, antialiased; it has no affine any more."""
    ratios = [length / side for length, side in zip(volume.array.shape[1:], size, strict=True)]
    as_steps = replace(volume, spacing=(1.0, 1.0, 1.0), affine=None)
    squeezed = resample_volume(as_steps, (ratios[0], ratios[1], ratios[2]))
    depth, height, width = (step * ratio for step, ratio in zip(volume.spacing, ratios, strict=True))
    return replace(squeezed, spacing=(depth, height, width))


def _check_room(volume: Volume, spacing: Spacing) -> None:
    """Raise TooLargeError where a volume has too many voxels at a spacing."""
    sides = [
        length * old / new for length, old, new in zip(volume.array.shape[1:], volume.spacing, spacing, strict=True)
    ]
    if all(math.isfinite(side) for side in sides):
        shape = [math.ceil(side) for side in sides]
        check_size(2 * 4 * len(volume.array) * math.prod(shape), in_words(shape, "voxels"))
