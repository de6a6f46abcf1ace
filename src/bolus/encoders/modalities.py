"""Encoders of several modalities, each with its own backbone, channels and image size, behind the call of one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from bolus.data.images.preprocessing import Preprocessing
from bolus.encoders.backbone import Encoder
from bolus.encoders.building import build_encoder
from bolus.encoders.features import Features, FeatureShape, encode_views, one_stride
from bolus.errors import EncoderError, RecipeError
from bolus.recipe import EncoderSpec, ModalitySpec, Recipe
from bolus.seeds import seed_for


class ModalityEncoders(nn.Module):
    """An encoder for each modality; together they are called and asked for shapes like one.

    Build one by `build_encoders` or `load_encoders`. An encoder whose modality a batch lacks has zero gradients there:
    momentum and weight decay still move it.

    Args:
        encoders: modality -> encoder, at least one; their pooled features are of one width.

    Attributes:
        names: the modalities, sorted.
        shape: FeatureShape of all. Levels are those that all have alike, channels and strides; where they differ there
            are none. Where the last maps differ, `grid_channels` and `grid_stride` are 0.

    Raises:
        EncoderError: pooled features of different widths.

    Example:
        >>> from bolus.encoders.building import build_encoder
        >>> specs = {"MR": EncoderSpec(backbone="r18w32"), "CFP": EncoderSpec(backbone="vit_tiny", in_channels=3)}
        >>> both = build_encoders(specs, seed=0)
        >>> both.names, both.shape.dim, both.of("CFP").spec.neck, both.shape.levels, both.shape.grid_channels
        (('CFP', 'MR'), 256, 256, (), 0)
    """

    def __init__(self, encoders: Mapping[str, Encoder]) -> None:
        super().__init__()
        assert encoders, "no encoder"
        self.names = tuple(sorted(encoders))
        self.encoders = nn.ModuleList(encoders[name] for name in self.names)
        widths = {name: encoders[name].shape.dim for name in self.names}
        if len(set(widths.values())) > 1:
            raise EncoderError(f"expected encoders whose features have one width, found {widths}")
        dimensions = {name: encoders[name].dimensions for name in self.names}
        if len(set(dimensions.values())) > 1:
            raise EncoderError(f"expected encoders of images alone, or of volumes alone, found dimensions {dimensions}")
        self.shape = _common([encoders[name].shape for name in self.names])

    def of(self, modality: str) -> Encoder:
        """The encoder that sees a modality.

        Raises:
            EncoderError: there is none for it.
        """
        if modality not in self.names:
            raise EncoderError(f"no encoder for modality {modality!r}: there are encoders for {', '.join(self.names)}")
        found = self.encoders[self.names.index(modality)]
        assert isinstance(found, Encoder)
        return found

    @property
    def has_context(self) -> bool:
        """Whether any of them has context blocks, without which they may be judged as well."""
        return any(self.of(name).has_context for name in self.names)

    def twin(self, *, seed: int) -> ModalityEncoders:
        """The same architectures with fresh weights, a function of the seed and of each modality's name."""
        return ModalityEncoders({name: self.of(name).twin(seed=_seed(seed, name)) for name in self.names})

    def checkpoint_activations(self) -> None:
        """As `Encoder.checkpoint_activations`, of all."""
        for name in self.names:
            self.of(name).checkpoint_activations()

    def encode(
        self,
        views: Mapping[str, Tensor],
        rows: Mapping[str, Tensor],
        *,
        frame_mask: Tensor | None = None,
        levels: bool = False,
        grid: bool = False,
    ) -> Features:
        """Features of a batch, each modality through its own encoder; arguments and errors as of `Encoder.encode`.

        Raises:
            EncoderError: also for a modality that has no encoder.
        """
        return encode_views(self.of, views, rows, frame_mask=frame_mask, levels=levels, grid=grid)


def build_encoders(specs: Mapping[str, EncoderSpec], *, seed: int) -> ModalityEncoders:
    """An encoder for each modality in training mode, weights a function of the seed and of the modality's name.

    Where widths differ, each that is narrower than the widest gets a linear layer of that width after pooling, its
    `neck`.

    Args:
        specs: modality -> what its encoder is.
        seed: of every weight that is not loaded.

    Raises:
        EncoderError: as `build_encoder`, after the modality's name; or a neck that was asked for and is narrower than
            another encoder.
    """
    built = {name: _build(name, spec, seed) for name, spec in specs.items()}
    widest = max(encoder.shape.dim for encoder in built.values())
    for name, encoder in built.items():
        if encoder.shape.dim == widest:
            continue
        if encoder.spec.neck is not None:
            raise EncoderError(
                f"{name}: encoder.neck: expected {widest}, the width of the widest encoder, since features of all "
                f"modalities have one width; found {encoder.spec.neck}"
            )
        built[name] = _build(name, encoder.spec.model_copy(update={"neck": widest}), seed)
    return ModalityEncoders(built)


def recipe_encoder(recipe: Recipe, modalities: Sequence[str]) -> Encoder | ModalityEncoders:
    """What a recipe trains: one encoder for all modalities, or one for each, on the CPU and in training mode.

    Args:
        recipe: with its seed.
        modalities: of the training samples; may be empty where one encoder is for all.

    Raises:
        RecipeError: a temporal shift without clips, or an encoder for each modality where none is known.
        EncoderError: an encoder that cannot be built, that images of its size do not fit, or whose activations cannot
            be computed again where that is asked for.
    """
    if recipe.encoders == "per_modality" and not modalities:
        raise RecipeError("encoders is per_modality, and there are no training samples of any modality")
    names: list[str | None] = [*modalities] if recipe.encoders == "per_modality" else [None]
    specs = {name: recipe.encoder if name is None else recipe.encoder_of(name) for name in names}
    for name, spec in specs.items():
        if spec.temporal_shift is not None and recipe.images.unit != "clip":
            own = name is not None and recipe.modalities.get(name, ModalitySpec()).encoder is not None
            key = f"modalities.{name}.encoder.temporal_shift" if own else "encoder.temporal_shift"
            raise RecipeError(
                f"{key} acts between the frames of clips, and images.unit is {recipe.images.unit}; "
                f"set {key}=null, or images.unit=clip"
            )
    encoder: Encoder | ModalityEncoders
    if None in specs:
        encoder = build_encoder(recipe.encoder, seed=recipe.training.seed)
    else:
        encoder = build_encoders({str(name): spec for name, spec in specs.items()}, seed=recipe.training.seed)
    for name in modalities or [""]:  # of none, what holds where nothing is said
        check_unit(encoder.of(name), recipe.images.unit)
        encoder.of(name).check_sides(*recipe.images_of(name).sides)
    if recipe.training.activation_checkpointing:
        encoder.checkpoint_activations()
    return encoder


def check_unit(encoder: Encoder, unit: str) -> None:
    """Refuse images for an encoder of volumes, and volumes for one of images.

    Args:
        encoder: one.
        unit: `images.unit` of a recipe.

    Raises:
        RecipeError: the two do not fit, with the keys that would.

    >>> from bolus.encoders.building import build_encoder
    >>> check_unit(build_encoder(EncoderSpec(backbone="unet3d2"), seed=0), "image")
    Traceback (most recent call last):
    bolus.errors.RecipeError: encoder.backbone: unet3d2 is of volumes, and images.unit is image; set images.unit=volume,
    or take a backbone of images
    """
    name = encoder.spec.backbone
    if encoder.dimensions == 3 and unit != "volume":
        raise RecipeError(
            f"encoder.backbone: {name} is of volumes, and images.unit is {unit}; set images.unit=volume, or take a "
            "backbone of images"
        )
    if encoder.dimensions == 2 and unit == "volume":
        raise RecipeError(
            f"encoder.backbone: {name} is of images, and images.unit is volume; take one of volumes, such as "
            "resnet18_3d or unet3d32, or set encoder.inflated=true where it is convolutional"
        )


def parts_of(
    encoder: Encoder | ModalityEncoders, contract: Preprocessing, modality: npt.NDArray[np.str_]
) -> list[tuple[Encoder, Preprocessing, npt.NDArray[np.int64]]]:
    """Which of several samples go together: those of one encoder and one contract.

    Args:
        encoder: one, or those of modalities.
        contract: of all images.
        modality: `[n]`, of the samples.

    Returns:
        Encoder, contract and the places 0 .. n-1 of its samples; each place is in one entry. At least one entry.

    Raises:
        EncoderError: a modality that has no encoder.
    """
    if isinstance(encoder, Encoder):
        return [(encoder, each, places) for each, places in contract.groups(modality)]
    names = np.unique(modality).tolist() or list(encoder.names[:1])
    return [(encoder.of(name), contract.of(name), np.flatnonzero(modality == name)) for name in names]


def each_encoder(encoder: Encoder | ModalityEncoders) -> list[Encoder]:
    """The one encoder, or those of all modalities in the order of their names."""
    return [encoder] if isinstance(encoder, Encoder) else [encoder.of(name) for name in encoder.names]


def one_encoder(encoder: Encoder | ModalityEncoders, *, wanted_by: str) -> Encoder:
    """The encoder, where there is one for all modalities.

    Args:
        encoder: one, or several.
        wanted_by: what needs one, for the message.

    Raises:
        EncoderError: there is one for each modality; which folder to open instead.
    """
    if isinstance(encoder, ModalityEncoders):
        folders = ", ".join(f"encoder/{folder} for {name}" for name, folder in part_folders(encoder.names).items())
        raise EncoderError(
            f"{wanted_by} needs one encoder, and here each modality has its own; open one of them, a folder of the "
            f"run: {folders}"
        )
    return encoder


def part_folders(names: Iterable[str]) -> dict[str, str]:
    """Modality -> the folder that its encoder is saved in, within that of all.

    >>> part_folders(["OCT", "CFP 45/deg"])
    {'CFP 45/deg': '0-CFP_45_deg', 'OCT': '1-OCT'}
    """
    return {name: f"{at}-{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}" for at, name in enumerate(sorted(names))}


def _build(name: str, spec: EncoderSpec, seed: int) -> Encoder:
    try:
        return build_encoder(spec, seed=_seed(seed, name))
    except EncoderError as error:
        raise EncoderError(f"{name}: {error}") from error


def _seed(seed: int, name: str) -> int:
    return seed_for(seed, "encoder", name)


def _common(shapes: list[FeatureShape]) -> FeatureShape:
    """What all shapes agree on."""
    first = shapes[0]
    maps = {tuple((level.channels, level.strides) for level in shape.levels) for shape in shapes}
    grids = {(shape.grid_channels, shape.grid_strides) for shape in shapes}
    channels, strides = grids.pop() if len(grids) == 1 else (0, (0,) * first.dimensions)
    levels = first.levels if len(maps) == 1 else ()
    return FeatureShape(
        first.dim, channels, one_stride(strides), levels, grid_strides=strides, dimensions=first.dimensions
    )
