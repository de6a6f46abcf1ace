"""A recipe: encoder, images, sampling, objectives, combiner, optimiser and schedule, as data.

YAML on one side, pydantic on the other, one to one. Unknown keys are errors with a suggestion. An objective's own
parameters are not listed here: they are validated against the objective's constructor, which owns their defaults.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bolus.errors import RecipeError, suggest, yaml_problem
from bolus.files import load_yaml
from bolus.recipes.images import VOLUME_AUGMENTS, AugmentSpec, ImagesSpec, OwnAugmentSpec, Size
from bolus.recipes.keys import Overrides, assign, explain, written
from bolus.recipes.spec import LARGEST, Spec

__all__ = [
    "LARGEST",
    "NORMALISATION",
    "VOLUME_AUGMENTS",
    "AugmentSpec",
    "CombinerSpec",
    "EncoderSpec",
    "ImagesSpec",
    "ModalitySpec",
    "ObjectiveSpec",
    "OptimizerSpec",
    "OwnAugmentSpec",
    "Recipe",
    "SamplingSpec",
    "ScheduleSpec",
    "TrainingSpec",
    "recipe_names",
]

NORMALISATION = {"mean": [0.5], "std": [0.25]}
"""Of images in [0, 1], where neither the recipe nor pretrained weights say otherwise."""


class EncoderSpec(Spec):
    """What turns an image into features.

    `backbone` is a named configuration (`resnet18`, `resnet50`, `r18w32`, `convnext_atto`, `efficientnet_lite0`, `1`
    or `2`, `dinov2_small`, `dinov2_base`, `dinov2_large`; of volumes `resnet10_3d`, `resnet18_3d`, `resnet50_3d`,
    `unet3d32`, `swin_unetr24`), a folder, or a hub name; with `pretrained: false` a folder or hub name gives the
    architecture only.
    """

    backbone: str = "resnet18"
    arguments: dict[str, Any] = Field(default_factory=dict)  # of a factory of your own, `backbone: package.module:name`
    pretrained: bool = False
    in_channels: Literal[1, 3] = 1
    stem_pool: bool = True  # the max-pool after the stem of a ResNet; drop it for inputs of about 64 pixels
    context: bool = False  # MLVICX context-bottleneck blocks, inline
    context_reduction: int = Field(2, ge=1)
    temporal_shift: int | None = Field(None, ge=2)  # clips: one in so many channels moves a frame on, one back (TSM: 8)
    unfrozen: int | None = Field(None, ge=0)  # train only the last so many blocks and what follows; 0: none
    inflated: bool = False  # make a convolutional backbone of images one of volumes: kernels repeated over depth
    neck: int | None = Field(None, ge=1)  # width of a linear layer after pooling, part of the encoder (LEARNER's u)
    # Of images in [0, 1]; one value, or one a channel. Null: what pretrained weights expect, where they say so; else
    # 0.5 and 0.25.
    mean: list[float] | None = None
    std: list[float] | None = None


class ModalitySpec(Spec):
    """What differs from `encoder` and `images` for the images of one modality; a key that is not given is theirs.

    Only an encoder with a `backbone` of its own, or an augmentation with a `preset` of its own, is taken as a whole.
    """

    encoder: EncoderSpec | None = None  # for encoders: per_modality
    size: Size | None = None
    fit: Literal["pad", "stretch", "crop"] | None = None
    augment: AugmentSpec | None = None


class SamplingSpec(Spec):
    """How a batch is composed: seeded anchors, partners for each relation, random fill; or so many participants."""

    batch_size: int = Field(64, ge=1)  # samples; each is seen in `images.views` views
    # Samples that the encoder forwards at once: any batch at the memory of so many, for a second forward. Null: all.
    chunk: int | None = Field(None, ge=1)
    partners: int = Field(1, ge=0)  # drawn for each anchor and each relation of the objectives
    balance: Literal["none", "patient"] = "none"  # "patient": anchors drawn evenly over patients
    # Batches of so many patients, each with at most batch_size / participants images, in place of anchors and partners.
    participants: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _anchors_or_participants(self) -> SamplingSpec:
        default = {name: type(self).model_fields[name].default for name in ("partners", "balance")}
        given = [name for name, value in default.items() if getattr(self, name) != value]
        if self.participants is not None and given:
            raise ValueError(
                f"participants take the place of anchors and partners: leave out {' and '.join(given)}, or participants"
            )
        return self


class ObjectiveSpec(BaseModel):
    """One objective: its kind, its weight, and its own parameters."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str
    weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    head: str | None = None  # objectives of a kind that name the same head share it

    @property
    def parameters(self) -> dict[str, Any]:
        """What is passed to the objective's constructor."""
        return dict(self.model_extra or {})


class CombinerSpec(Spec):
    """How objectives meet in the shared encoder; those of one branch (image or pixel level) with each other.

    Conflicts between objectives are logged whatever the kind; `sum` takes an extra backward pass for each then.
    """

    kind: Literal["sum", "mean", "balanced", "pcgrad", "grad_mitigator", "torchjd"] = "sum"
    weighting: Literal["fixed", "uncertainty"] = "fixed"  # the recipe's weights alone, or times learnt ones
    scope: Literal["encoder", "features"] = "encoder"  # reconciled in the encoder's parameters, or at its features
    rate: float = Field(0.01, ge=0, le=1)  # grad_mitigator: of the goals' moving average (scope features: a batch)
    aggregator: str | None = None  # torchjd: its name, such as MGDA
    parameters: dict[str, Any] = Field(default_factory=dict)  # torchjd: the aggregator's own
    conflict_steps: int | None = Field(100, ge=1)  # how often conflicts are logged; null: never

    @model_validator(mode="after")
    def _names_an_aggregator_where_one_is_used(self) -> CombinerSpec:
        if self.kind != "torchjd" and (self.aggregator is not None or self.parameters):
            raise ValueError(f"aggregator and parameters are for kind torchjd, and kind is {self.kind}")
        if self.kind == "balanced" and self.weighting != "fixed":
            raise ValueError("kind balanced gives gradients their norms whatever losses weigh; set weighting to fixed")
        return self


class OptimizerSpec(Spec):
    """AdamW, SGD or LARS; `lr` holds for `reference_batch` samples and scales linearly; null: as it is."""

    kind: Literal["adamw", "sgd", "lars"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    reference_batch: int | None = Field(None, ge=1)
    weight_decay: float = Field(1e-4, ge=0)  # not applied to biases and norm scales
    momentum: float = Field(0.9, ge=0, lt=1)  # sgd, lars
    betas: tuple[float, float] = (0.9, 0.999)  # adamw
    trust: float = Field(0.001, gt=0)  # lars: trust coefficient (eta)
    layer_decay: float = Field(1.0, gt=0, le=1)  # factor of lr for each block of the encoder towards its input


class ScheduleSpec(Spec):
    """Linear warm-up, then cosine to `final` times the peak, constant, or times `factor` every `every_epochs`."""

    kind: Literal["cosine", "constant", "step"] = "cosine"
    warmup_epochs: float = Field(0.0, ge=0)
    final: float = Field(0.0, ge=0, le=1)  # cosine
    every_epochs: float = Field(10.0, gt=0)  # step
    factor: float = Field(0.1, gt=0, le=1)  # step


class TrainingSpec(Spec):
    """How long, in what precision, and how often the run saves and looks at itself."""

    epochs: int = Field(100, ge=1)
    max_steps: int | None = Field(None, ge=1)
    max_hours: float | None = Field(None, gt=0)  # of one call: stop, save, go on with --resume
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    activation_checkpointing: bool = False  # compute the encoder's blocks again in the backward pass: less memory
    # The encoder by torch's compiler: faster steps, after a first one that takes a minute or more.
    compile: bool = False
    # Encoder, its gradients and the optimiser's state shared out over processes (FSDP2), in place of a copy in each.
    shard: bool = False
    accumulate: int = Field(1, ge=1)  # batches whose gradients meet in one step
    clip: float | None = Field(None, gt=0)  # norm of the whole gradient
    seed: int = 0
    checkpoint_minutes: float = Field(10.0, ge=0)  # the clock is looked at every log_steps
    checkpoint_steps: int | None = Field(None, ge=1)  # in addition, every so many steps
    health_epochs: float | None = Field(5.0, gt=0)  # how often; null: only at the end
    probe: str | None = None  # role of a label or score watched by the online probe, as label:NAME or score:NAME
    log_steps: int = Field(10, ge=1)
    tracker: Literal["tensorboard", "mlflow", "wandb", "trackio"] | None = None  # beside metrics.jsonl


class Recipe(Spec):
    """A whole pretraining run, as data.

    Args:
        name: what the recipe is called.
        summary: one sentence for `bolus recipes`.
        source: the paper, as `arXiv:NUMBER`.

    Raises:
        RecipeError: from `Recipe.load` and `Recipe.override`; a direct construction raises pydantic's own error.

    Example:
        >>> Recipe.load("vicreg").override(["training.epochs=2"]).training.epochs
        2
    """

    name: str
    summary: str = ""
    source: str = ""
    encoder: EncoderSpec = EncoderSpec()
    encoders: Literal["shared", "per_modality"] = "shared"  # one for all images, or each modality has its own
    images: ImagesSpec = ImagesSpec()
    # Value of the modality column -> what differs for it.
    modalities: dict[str, ModalitySpec] = Field(default_factory=dict)
    # Role -> quantile bins over training samples, or edges; makes bin:ROLE.
    bins: dict[str, int | list[float]] = Field(default_factory=dict)
    sampling: SamplingSpec = SamplingSpec()
    objectives: dict[str, ObjectiveSpec]
    combiner: CombinerSpec = CombinerSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    training: TrainingSpec = TrainingSpec()

    @model_validator(mode="before")
    @classmethod
    def _modalities_differ_from_the_rest(cls, data: Any) -> Any:
        """Without a backbone, or preset, of its own a modality has those of all, and the keys that it gives."""
        if not isinstance(data, Mapping) or not isinstance(data.get("modalities"), Mapping):
            return data
        images = data.get("images")
        of_all = {
            "encoder": ("backbone", data.get("encoder")),
            "augment": ("preset", images.get("augment") if isinstance(images, Mapping) else None),
        }
        modalities = dict(data["modalities"])
        for name, spec in modalities.items():
            for part, (own, base) in of_all.items():
                given = spec.get(part) if isinstance(spec, Mapping) else None
                if isinstance(given, Mapping) and own not in given and isinstance(base, Mapping):
                    modalities[name] = {**modalities[name], part: {**base, **given}}
        return {**data, "modalities": modalities}

    @model_validator(mode="after")
    def _has_objectives(self) -> Recipe:
        if not self.objectives:
            raise ValueError("a recipe needs at least one objective")
        return self

    @model_validator(mode="after")
    def _has_encoders_of_modalities_where_each_has_its_own(self) -> Recipe:
        own = [name for name, spec in self.modalities.items() if spec.encoder is not None]
        if own and self.encoders == "shared":
            raise ValueError(f"modalities.{own[0]}.encoder: an encoder of its own needs encoders: per_modality")
        return self

    @model_validator(mode="after")
    def _has_boxes_for_volumes_alone(self) -> Recipe:
        for name, spec in self.modalities.items():
            if isinstance(spec.size, tuple) and self.images.unit != "volume":
                raise ValueError(
                    f"modalities.{name}.size: three numbers are only for volumes, and images.unit is {self.images.unit}"
                )
        return self

    def encoder_of(self, modality: str) -> EncoderSpec:
        """The encoder that sees a modality; the same spec for two modalities is two encoders where each has its own.

        >>> own = {"MR": {"encoder": {"backbone": "vit_tiny"}}}
        >>> recipe = Recipe.load("simclr").override(["encoders=per_modality", f"modalities={own}"])
        >>> recipe.encoder_of("MR").backbone, recipe.encoder_of("XR").backbone
        ('vit_tiny', 'resnet18')
        """
        spec = self.modalities.get(modality)
        return self.encoder if spec is None or spec.encoder is None else spec.encoder

    def images_of(self, modality: str) -> ImagesSpec:
        """The images of a modality: `images` with what `modalities` says of it.

        >>> Recipe.load("simclr").override(["modalities.MR.size=96"]).images_of("MR").size
        96
        """
        spec = self.modalities.get(modality, ModalitySpec())
        given = {"size": spec.size, "fit": spec.fit, "augment": spec.augment}
        return self.images.model_copy(update={key: value for key, value in given.items() if value is not None})

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
        """A recipe from a shipped name, a YAML file, or a mapping.

        Raises:
            RecipeError: no such recipe, YAML that does not parse, an unknown key or a value out of range.
        """
        if isinstance(source, Recipe):
            return source
        if isinstance(source, Mapping):
            return cls._validate(source, "recipe")
        given: object = source
        if not isinstance(given, str | Path):
            kind = type(given).__name__
            raise RecipeError(f"expected a recipe as a shipped name, a YAML file, a mapping or a Recipe, found {kind}")
        path = Path(source)
        if str(source) in recipe_names():
            text = (resources.files("bolus.recipes") / f"{source}.yaml").read_text(encoding="utf-8")
        elif path.is_file():
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise RecipeError(f"{source}: expected a recipe in YAML, found a file of another kind") from error
        elif path.is_dir():
            raise RecipeError(
                f"{source}: expected a recipe in YAML, found a folder; a run keeps its own in recipe.yaml"
            )
        else:
            planned = "bolus plan COHORT -o recipe.yaml writes one for a cohort"
            near = planned if str(source) == "plan" else suggest(str(source), recipe_names())
            raise RecipeError(f"no recipe named {str(source)!r} and no such file; {near}")
        try:
            data = load_yaml(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"{source}: not YAML: {yaml_problem(error)}") from error
        if not isinstance(data, dict):
            raise RecipeError(f"{source}: expected a mapping of recipe keys, found {type(data).__name__}")
        if "table" in data and "objectives" not in data:
            raise RecipeError(
                f"{source}: expected a recipe, found a cohort; bolus plan {source} -o recipe.yaml writes one"
            )
        return cls._validate(data, str(source))

    @classmethod
    def _validate(cls, data: Mapping[str, Any], origin: str) -> Recipe:
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            lines = [explain(cls, problem) for problem in error.errors()]
            raise RecipeError(f"{origin}: " + "; ".join(lines)) from None

    def override(self, overrides: Overrides) -> Recipe:
        """A copy with `dotted.key=value` assignments, or a mapping of dotted keys, applied; null removes an objective.

        Raises:
            RecipeError: an assignment without `=`, an unknown key or a value out of range.
        """
        data = self.model_dump(mode="json")
        for assignment in written(overrides):
            assign(data, assignment)
        return self._validate(data, "override")

    def to_yaml(self) -> str:
        """The whole recipe, defaults included, as YAML that `Recipe.load` reads back to an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    @property
    def digest(self) -> str:
        """A hash of every key, 12 hexadecimal digits; a key left to its default hashes as that default written out."""
        data = self.model_dump(mode="json")
        for encoder in (data["encoder"], *(each["encoder"] for each in data["modalities"].values())):
            if encoder is not None:
                if not encoder["arguments"]:
                    del encoder["arguments"]
                if not encoder["inflated"]:
                    del encoder["inflated"]
                if not encoder["pretrained"]:
                    encoder.update({key: encoder[key] or value for key, value in NORMALISATION.items()})
        for augment in (data["images"]["augment"], *(each["augment"] for each in data["modalities"].values())):
            if augment is not None:
                unset = [key for key in VOLUME_AUGMENTS if augment[key] is None]
                for key in unset if augment["own"] else [*unset, "own"]:
                    del augment[key]
        if not (data["images"]["spacing"] or data["images"]["foreground"]):
            del data["images"]["spacing"], data["images"]["foreground"]
        if data["combiner"]["weighting"] == "fixed":
            del data["combiner"]["weighting"]
        del data["training"]["tracker"]  # which says nothing of a run but who looks on
        for way in ("compile", "shard"):
            if not data["training"][way]:
                del data["training"][way]
        if data["sampling"]["chunk"] is None:
            del data["sampling"]["chunk"]
        canonical = json.dumps(data, sort_keys=True)
        return hashlib.blake2b(canonical.encode(), digest_size=6).hexdigest()


def recipe_names() -> list[str]:
    """Names of the shipped recipes, sorted.

    >>> "mlvicx" in recipe_names()
    True
    """
    files = resources.files("bolus.recipes").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))
