"""What augmentation varies for each kind of image, and how much.

The presets leave alone what carries meaning: no picture is mirrored unless a recipe says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from bolus.errors import RecipeError
from bolus.recipe import AugmentSpec, OwnAugmentSpec
from bolus.recipes.own import check_parameters, defaults_of, find_own, own_names

GROUP = "bolus.augmentations"
"""Of entry points, by which a package registers augmentations of its own."""

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
        RecipeError: a range whose ends are exchanged or out of bounds, or an augmentation of one's own that cannot be
            found or does not take its parameters.

    Example:
        >>> full = resolve(AugmentSpec(preset="fundus", rotation=5))
        >>> full.rotation, full.hue, full.flip_horizontal
        (5.0, 0.02, 0.0)
    """
    given = {name: value for name, value in spec if value is not None}
    if spec.own:
        given["own"] = tuple(_resolve_own(each, f"{key}.own.{place}") for place, each in enumerate(spec.own))
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


def find_own_augmentation(spec: OwnAugmentSpec, key: str) -> Callable[..., Any]:
    """The function of one's own that a recipe names; what it must do, `bolus.data.batches.own` says.

    Raises:
        RecipeError: no import path and no entry point of the group `bolus.augmentations`, or a path that cannot be
            imported.
    """
    found = find_own(spec.kind, GROUP)
    if not callable(found):
        registered = f"registered: {', '.join(own_names(GROUP)) or 'none'}"
        shown = repr(spec.kind) if found is None else f"{spec.kind}, which is of type {type(found).__name__}"
        expected = "expected a function, by package.module:name or a registered name"
        raise RecipeError(f"{key}.kind: {expected}, found {shown}; {registered}")
    function: Callable[..., Any] = found
    return function


def _resolve_own(spec: OwnAugmentSpec, key: str) -> OwnAugmentSpec:
    """With the parameters checked and every default written out."""
    function = find_own_augmentation(spec, key)
    checked = check_parameters(function, spec.parameters, key, given=("images", "generator"))
    return OwnAugmentSpec.model_validate({**defaults_of(function), **checked, "kind": spec.kind})
