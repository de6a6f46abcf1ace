"""What a recipe says of images: which samples, at what size, in which views."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from bolus.recipes.spec import Spec

_Side = Annotated[int, Field(ge=8, le=2**14)]
_Step = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# One number, or one for each axis of a volume: depth, height, width. Tags in brackets are no part of a key.
_ONE_OR_THREE = Discriminator(lambda value: "(three)" if isinstance(value, list | tuple) else "(one)")
Size = Annotated[Annotated[_Side, Tag("(one)")] | Annotated[tuple[_Side, _Side, _Side], Tag("(three)")], _ONE_OR_THREE]
Steps = Annotated[Annotated[_Step, Tag("(one)")] | Annotated[tuple[_Step, _Step, _Step], Tag("(three)")], _ONE_OR_THREE]


class OwnAugmentSpec(BaseModel):
    """An augmentation of your own: a function by `package.module:name` or a registered name, and its parameters."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str

    @property
    def parameters(self) -> dict[str, Any]:
        """What is passed to the function, after the images and the generator."""
        return dict(self.model_extra or {})


class AugmentSpec(Spec):
    """One view of an image; a key that is not given takes the preset's value (bolus.data.views.presets.PRESETS).

    Of volumes, horizontal is left to right, vertical posterior to anterior and depth inferior to superior, and the
    rotation is about the axis of depth.
    """

    preset: Literal["none", "xray", "fundus", "ultrasound", "mri", "ct", "brain_mri"] = "xray"
    crop_scale: tuple[float, float] | None = None  # share of the area, or of the volume, kept
    crop_ratio: tuple[float, float] | None = None  # width to height
    flip_horizontal: float | None = Field(None, ge=0, le=1)  # probabilities
    flip_vertical: float | None = Field(None, ge=0, le=1)
    rotation: float | None = Field(None, ge=0, le=180)  # degrees, uniform in +-
    brightness: float | None = Field(None, ge=0)  # uniform in +- this share
    contrast: float | None = Field(None, ge=0)
    saturation: float | None = Field(None, ge=0)  # colour images only
    hue: float | None = Field(None, ge=0, le=0.5)
    jitter: float | None = Field(None, ge=0, le=1)  # probability of the four above
    blur: float | None = Field(None, ge=0, le=1)  # probability
    blur_sigma: tuple[float, float] | None = None  # pixels
    noise: float | None = Field(None, ge=0)  # standard deviation, in units of the [0, 1] range
    flip_depth: float | None = Field(None, ge=0, le=1)  # volumes only, as the four below; probability
    tilt: float | None = Field(None, ge=0, le=180)  # degrees about the two other axes, uniform in +-
    stretch: float | None = Field(None, ge=0, lt=1)  # each axis by a factor of its own, uniform in 1 +- this share
    low_resolution: float | None = Field(None, ge=0, le=1)  # probability of fewer voxels, brought back to as many
    low_resolution_factor: tuple[float, float] | None = None  # how many fewer, drawn for each axis
    own: tuple[OwnAugmentSpec, ...] = ()  # functions that change intensities, in order, after all of the above


VOLUME_AUGMENTS = ("flip_depth", "tilt", "stretch", "low_resolution", "low_resolution_factor")
"""Keys of `AugmentSpec` that only volumes have."""


class ImagesSpec(Spec):
    """Which samples are drawn, at what size, in how many views.

    All `views` of a batch go through the encoder together (those of each modality), so that in training the statistics
    of its BatchNorm layers, and of those of heads, are over all views and not view by view.
    """

    unit: Literal["image", "slice", "clip", "volume"] = "image"
    frames: int = Field(8, ge=1)  # of a clip, one from each of so many equal parts of it
    size: Size = 224  # pixels, square; of volumes voxels, a cube or (depth, height, width)
    # How an image that is not square becomes so. Of volumes, stretch squeezes all of it into the box; pad and crop keep
    # voxels and show windows of it, of all or of its middle.
    fit: Literal["pad", "stretch", "crop"] = "pad"
    spacing: Steps | None = None  # of volumes: mm between voxels, one or (depth, height, width); null: as it is
    foreground: bool = False  # of volumes: cut to the body, or the brain, first
    mirror: Literal["left", "right"] | None = None  # images of this side, so that both sides look alike (laterality)
    views: int = Field(2, ge=1)
    augment: AugmentSpec = AugmentSpec()

    @model_validator(mode="after")
    def _volumes_alone_have_a_third_axis(self) -> ImagesSpec:
        if self.unit != "volume":
            given = [name for name in ("spacing", "foreground") if getattr(self, name)]
            given += ["a size of three numbers"] if not isinstance(self.size, int) else []
            if given:
                raise ValueError(f"{' and '.join(given)}: only for volumes, and unit is {self.unit}")
        elif self.fit == "stretch" and self.spacing is not None:
            raise ValueError(
                "fit stretch squeezes a volume whatever its spacing is: leave out spacing, or take fit pad or crop"
            )
        return self

    @property
    def sides(self) -> tuple[int, ...]:
        """What an encoder sees: pixels (height, width), or of a volume voxels (depth, height, width).

        >>> ImagesSpec(size=64).sides, ImagesSpec(unit="volume", size=[16, 32, 32]).sides
        ((64, 64), (16, 32, 32))
        """
        axes = 3 if self.unit == "volume" else 2
        return (self.size,) * axes if isinstance(self.size, int) else self.size

    @property
    def side(self) -> int:
        """The longest of its sides."""
        return max(self.sides)

    @property
    def steps(self) -> tuple[float, float, float] | None:
        """Millimetres between voxels (depth, height, width), where they are stated."""
        return (self.spacing,) * 3 if isinstance(self.spacing, float) else self.spacing

    @property
    def extent(self) -> str:
        """What an encoder sees, in words, such as `224 x 224 pixels`."""
        return f"{' x '.join(map(str, self.sides))} {'voxels' if self.unit == 'volume' else 'pixels'}"
