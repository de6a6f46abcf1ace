"""How a decoder of masks is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from bolus.data.views.presets import resolve
from bolus.errors import RecipeError, UsageError
from bolus.evaluation.settings import option
from bolus.recipe import AugmentSpec


@dataclass(frozen=True)
class SegmentSpec:
    """How a decoder and, if wanted, the encoder under it are trained; AdamW, a short warm-up, a cosine to 0.

    The number of steps is the same however many patients are labelled, so that those with few are not also trained
    for less, and nothing is chosen: the last weights are taken.

    Args:
        steps: of training.
        batch_size: slices of a step, or windows of volumes, at least 2; where fewer are labelled, some are seen twice,
            in other views.
        lr: the highest learning rate, of encoder and decoder.
        weight_decay: of weights; biases and norm scales are not decayed.
        whole: whether the encoder is trained with the decoder; if not it stays in evaluation mode, as it is.
        augment: of training slices and their masks.
        warmup: share of the steps in which the learning rate rises linearly.
        foreground: of volumes, the share of windows that are about a labelled voxel, of a class drawn among those that
            the volume has; the others lie anywhere. None: half of them.
        tolerance: of volumes, how far surfaces may lie apart and count as one in `surface_dice`, in mm, or in voxels
            where the spacing is not known. None: 2.

    Raises:
        UsageError: a number that is out of range or not whole where it must be, or an augmentation that cannot be.

    >>> SegmentSpec(steps=0)
    Traceback (most recent call last):
    bolus.errors.UsageError: segmentation: steps must be at least 1, found 0
    """

    steps: int = option(1000, "steps of each training")
    batch_size: int = 10
    lr: float = 1e-3
    weight_decay: float = 1e-5
    whole: bool = True
    augment: AugmentSpec = field(
        default_factory=lambda: AugmentSpec(preset="none", crop_scale=(0.7, 1.0), rotation=15.0)
    )
    warmup: float = 0.05
    foreground: float | None = option(None, "of volumes: share of windows about a labelled voxel")
    tolerance: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise UsageError(f"segmentation: {name} must be a whole number, found {value!r}")
        for name in ("lr", "weight_decay", "warmup"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
                raise UsageError(f"segmentation: {name} must be a number, found {value!r}")
        if not isinstance(self.augment, AugmentSpec):
            raise UsageError(f"segmentation: augment must be an AugmentSpec, found {type(self.augment).__name__}")
        least = {"steps": 1, "batch_size": 2, "weight_decay": 0.0, "warmup": 0.0}
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise UsageError(f"segmentation: {name} must be at least {low:g}, found {getattr(self, name)}")
        if not self.lr > 0:
            raise UsageError(f"segmentation: lr must be above 0, found {self.lr}")
        for name, (low, high) in {"foreground": (0.0, 1.0), "tolerance": (1e-6, math.inf)}.items():
            value = getattr(self, name)
            number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
            if value is not None and not (number and low <= value <= high and math.isfinite(value)):
                known = "a share from 0 to 1" if name == "foreground" else "a number above 0"
                raise UsageError(f"segmentation: {name} must be {known}, found {value!r}")
        if not self.warmup < 1:
            raise UsageError(f"segmentation: warmup is a share of the steps, below 1; found {self.warmup}")
        try:
            resolve(self.augment)
        except RecipeError as error:
            raise UsageError(f"segmentation: {str(error).removeprefix('images.')}") from error

    def check_unit(self, unit: str) -> None:
        """Refuse what images or volumes do not have.

        Args:
            unit: of the samples.

        Raises:
            UsageError: of images, a key that is for volumes.
        """
        if unit == "volume":
            return
        for name in ("foreground", "tolerance"):
            if getattr(self, name) is not None:
                raise UsageError(f"segmentation: {name} is for volumes, and this encoder sees {unit}s")
        try:
            resolve(self.augment, volumes=False)
        except RecipeError as error:
            raise UsageError(f"segmentation: {str(error).removeprefix('images.')}") from error
