"""What augmentation varies for each kind of image, and how much.

The presets leave alone what carries meaning: no picture is mirrored unless a recipe says so.
"""

from __future__ import annotations

import math
from typing import Any, Final

from bolus.errors import RecipeError
from bolus.recipe import AugmentSpec

NOTHING: Final = AugmentSpec(
    preset="none",
    crop_scale=(1.0, 1.0),
    crop_ratio=(1.0, 1.0),
    flip_horizontal=0.0,
    flip_vertical=0.0,
    rotation=0.0,
    brightness=0.0,
    contrast=0.0,
    saturation=0.0,
    hue=0.0,
    jitter=0.0,
    blur=0.0,
    blur_sigma=(0.1, 1.0),
    noise=0.0,
)


def _preset(name: str, **given: Any) -> AugmentSpec:
    return AugmentSpec.model_validate({**NOTHING.model_dump(), "preset": name, **given})


PRESETS: Final[dict[str, AugmentSpec]] = {
    "none": NOTHING,
    # A mirrored chest is another situs, and devices and letters sit on a side.
    "xray": _preset(
        "xray",
        crop_scale=(0.3, 1.0),
        crop_ratio=(0.75, 4 / 3),
        rotation=10.0,
        brightness=0.3,
        contrast=0.3,
        jitter=0.8,
        blur=0.3,
    ),
    # Either flip turns a right eye into a left one; hue is kept almost whole because haemorrhage is a colour.
    "fundus": _preset(
        "fundus",
        crop_scale=(0.3, 1.0),
        crop_ratio=(0.75, 4 / 3),
        rotation=30.0,
        brightness=0.2,
        contrast=0.2,
        saturation=0.1,
        hue=0.02,
        jitter=0.8,
        blur=0.3,
    ),
    # Depth runs downwards from the probe: no vertical flip, little rotation, a crop that keeps most of the depth.
    "ultrasound": _preset(
        "ultrasound",
        crop_scale=(0.6, 1.0),
        crop_ratio=(0.85, 1.2),
        rotation=10.0,
        brightness=0.3,
        contrast=0.3,
        jitter=0.8,
        blur=0.2,
        noise=0.02,
    ),
    # The scale of intensities is arbitrary, the side is not.
    "mri": _preset(
        "mri",
        crop_scale=(0.4, 1.0),
        crop_ratio=(0.75, 4 / 3),
        rotation=20.0,
        brightness=0.3,
        contrast=0.3,
        jitter=0.8,
        blur=0.2,
        noise=0.02,
    ),
}


def resolve(spec: AugmentSpec, key: str = "images.augment") -> AugmentSpec:
    """The spec with every key that was not given taken from its preset; `key` is where it stands in the recipe.

    Raises:
        RecipeError: a range whose ends are exchanged or out of bounds.

    Example:
        >>> full = resolve(AugmentSpec(preset="fundus", rotation=5))
        >>> full.rotation, full.hue, full.flip_horizontal
        (5.0, 0.02, 0.0)
    """
    given = {name: value for name, value in spec.model_dump().items() if value is not None}
    full = PRESETS[spec.preset].model_copy(update=given)
    assert full.crop_scale is not None
    assert full.crop_ratio is not None
    assert full.blur_sigma is not None
    for name, (low, high), most in (
        ("crop_scale", full.crop_scale, 1.0),
        ("crop_ratio", full.crop_ratio, math.inf),
        ("blur_sigma", full.blur_sigma, math.inf),
    ):
        if not (0 < low <= high <= most and math.isfinite(high)):
            bound = f" <= {most:g}" if math.isfinite(most) else ""
            raise RecipeError(f"{key}.{name}: expected 0 < low <= high{bound}, found [{low:g}, {high:g}]")
    return full
