"""How a volume is brought to the box that an encoder sees: part of the contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Box = tuple[int, int, int]
"""Voxels along D (inferior to superior), H (posterior to anterior) and W (left to right)."""


@dataclass(frozen=True)
class VolumeFit:
    """What an encoder sees of a volume.

    Args:
        size: voxels (D, H, W) of the box.
        spacing: mm (D, H, W) that volumes are resampled to; None leaves the voxels as they are.
        foreground: cut to the body (or the brain) by a threshold, before anything else.

    Example:
        >>> VolumeFit((32, 64, 64), [3, 1, 1]).spacing
        (3.0, 1.0, 1.0)
    """

    size: Box
    spacing: tuple[float, float, float] | None = None
    foreground: bool = False

    def __post_init__(self) -> None:
        depth, height, width = (int(side) for side in self.size)
        object.__setattr__(self, "size", (depth, height, width))
        if self.spacing is not None:
            object.__setattr__(self, "spacing", tuple(float(step) for step in self.spacing))


def in_words(size: Sequence[int], unit: str) -> str:
    """A size as a person reads it.

    >>> in_words((224, 224), "pixels"), in_words((32, 64, 64), "voxels")
    ('224 x 224 pixels', '32 x 64 x 64 voxels')
    """
    return f"{' x '.join(map(str, size))} {unit}"
