"""What augmentation varies for each kind of image, and how much.

The presets leave alone what carries meaning: no picture is mirrored unless a recipe says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from bolus.errors import RecipeError
from bolus.recipe import VOLUME_AUGMENTS, AugmentSpec, OwnAugmentSpec
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
    # Hounsfield units mean something and so does the side: intensities vary little; slices differ in thickness.
    "ct": _preset(
        "ct",
        crop_scale=(0.5, 1.0),
        rotation=10.0,
        brightness=0.1,
        contrast=0.1,
        jitter=0.5,
        blur=0.2,
        noise=0.02,
        flip_depth=0.0,
        tilt=5.0,
        stretch=0.1,
        low_resolution=0.2,
        low_resolution_factor=(1.0, 2.0),
    ),
    # The scale of intensities is arbitrary, the side is not; heads are turned and nod.
    "brain_mri": _preset(
        "brain_mri",
        crop_scale=(0.6, 1.0),
        rotation=15.0,
        brightness=0.3,
        contrast=0.3,
        jitter=0.8,
        blur=0.2,
        noise=0.02,
        flip_depth=0.0,
        tilt=10.0,
        stretch=0.1,
        low_resolution=0.2,
        low_resolution_factor=(1.0, 2.0),
    ),
}

FOR_VOLUMES: Final = frozenset({"ct", "brain_mri"})
"""Presets of volumes alone; the others hold for volumes too, and change nothing there that images do not have."""

STILL: Final[dict[str, Any]] = dict(zip(VOLUME_AUGMENTS, (0.0, 0.0, 0.0, 0.0, (1.0, 2.0)), strict=True))
"""What the keys of volumes are where neither the recipe nor the preset says."""


def resolve(spec: AugmentSpec, key: str = "images.augment", *, volumes: bool | None = None) -> AugmentSpec:
    """The spec with every key that was not given taken from its preset; `key` is where it stands in the recipe.

    Keys that only volumes have stay None with a preset of images, unless it is said that the spec is for `volumes`.

    Raises:
        RecipeError: a range whose ends are exchanged or out of bounds, or an augmentation of one's own that cannot be
            found or does not take its parameters; where it is not for volumes, a key or preset that is.

    Example:
        >>> full = resolve(AugmentSpec(preset="fundus", rotation=5))
        >>> full.rotation, full.hue, full.flip_horizontal
        (5.0, 0.02, 0.0)
    """
    given = {name: value for name, value in spec if value is not None}
    if volumes is False:
        _refuse_volumes(spec, key)
    if spec.own:
        given["own"] = tuple(_resolve_own(each, f"{key}.own.{place}") for place, each in enumerate(spec.own))
    preset = PRESETS[spec.preset]
    rest = {name: value for name, value in STILL.items() if volumes and getattr(preset, name) is None}
    full = preset.model_copy(update={**rest, **given})
    assert full.crop_scale is not None
    assert full.crop_ratio is not None
    assert full.blur_sigma is not None
    for name, (low, high), least, most in (
        ("crop_scale", full.crop_scale, "0 <", 1.0),
        ("crop_ratio", full.crop_ratio, "0 <", math.inf),
        ("blur_sigma", full.blur_sigma, "0 <", math.inf),
        ("low_resolution_factor", full.low_resolution_factor or (1.0, 1.0), "1 <=", math.inf),
    ):
        enough = low > 0 if least == "0 <" else low >= 1
        if not (enough and low <= high <= most and math.isfinite(high)):
            bound = f" <= {most:g}" if math.isfinite(most) else ""
            raise RecipeError(f"{key}.{name}: expected {least} low <= high{bound}, found [{low:g}, {high:g}]")
    return full


def _refuse_volumes(spec: AugmentSpec, key: str) -> None:
    """Raise where a spec of images asks for what only volumes have."""
    if spec.preset in FOR_VOLUMES:
        fine = ", ".join(name for name in PRESETS if name not in FOR_VOLUMES)
        raise RecipeError(f"{key}.preset: {spec.preset} is for volumes (images.unit=volume); images have {fine}")
    for name in VOLUME_AUGMENTS:
        value = getattr(spec, name)
        if value is not None and value not in (0, STILL[name]):
            raise RecipeError(f"{key}.{name}: is for volumes (images.unit=volume), and these are images")


def find_own_augmentation(spec: OwnAugmentSpec, key: str) -> Callable[..., Any]:
    """The function of one's own that a recipe names; what it must do, `bolus.data.views.own` says.

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
