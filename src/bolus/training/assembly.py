"""A recipe and a cohort become a model: encoder, objectives, optimiser and combiner."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from bolus.data.batches.columns import TrainingColumns
from bolus.data.batches.relation import Needs
from bolus.data.cohort.cohort import Cohort
from bolus.data.views.own import try_own
from bolus.data.views.presets import resolve as resolve_augment
from bolus.encoders.backbone import Encoder
from bolus.encoders.modalities import ModalityEncoders, each_encoder, recipe_encoder
from bolus.errors import CohortError, RecipeError, name_rows, suggest
from bolus.objectives import build_objectives, resolve_objectives
from bolus.objectives.base import Objective, TrainingTable, check_batch
from bolus.optimization import build_optimizer
from bolus.recipe import Recipe
from bolus.training.compiling import compile_encoder
from bolus.training.gradients.combiner import Combiner
from bolus.training.gradients.gradcache import check_chunk
from bolus.training.gradients.weighting import Uncertainty
from bolus.training.processes import world_size
from bolus.training.sharding import check_shard, shard_encoder

AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Model:
    """Everything that is trained, and how; `modules` are encoder and objectives by the names checkpoints use."""

    encoder: Encoder | ModalityEncoders
    objectives: dict[str, Objective]
    needs: Needs
    modules: dict[str, nn.Module]
    optimizer: Optimizer
    combiner: Combiner
    scaler: torch.amp.GradScaler
    autocast: torch.autocast
    uncertainty: Uncertainty | None = None


def build_model(recipe: Recipe, device: torch.device, table: TrainingTable) -> Model:
    """Encoder, objectives, optimiser and combiner, all from the recipe, its seed and the training samples' columns.

    Args:
        recipe: resolved or not.
        device: where all of it goes.
        table: `TrainingColumns`, which knows the modalities; plain columns will do where one encoder sees all.

    Raises:
        RecipeError, EncoderError: a key that cannot be met, a batch too small for what is compared in it, chunks that
            it cannot be split into, or an encoder that cannot be shared out.
        CohortError: an encoder for each modality, and no column says which an image is of.
    """
    modalities: list[str] = []
    if isinstance(table, TrainingColumns):
        check_modalities(recipe, table.cohort)
        modalities = table.modalities
    check_shard(recipe, modalities)
    encoder = recipe_encoder(recipe, modalities).to(device)
    inputs = {name: (recipe.encoder_of(name).in_channels, recipe.images_of(name).size) for name in modalities}
    objectives = build_objectives(recipe, replace(encoder.shape, inputs=inputs), table, seed=recipe.training.seed)
    check_batch(objectives, recipe, world_size())
    check_chunk(encoder, recipe, world_size())
    needs = Needs().merge(*(objective.needs for objective in objectives.values()))
    if recipe.images.views < needs.views:
        raise RecipeError(f"images.views: the objectives need {needs.views} views, found {recipe.images.views}")
    if needs.levels and not encoder.shape.levels:
        which = repr(recipe.encoder.backbone) if len(each_encoder(encoder)) == 1 else "what all modalities have alike"
        raise RecipeError(f"an objective reads the encoder's levels, and {which} has none")
    if needs.pixels and recipe.images.unit == "clip":
        raise RecipeError("an objective reads the pixels of single images, and images.unit is clip")
    if recipe.training.compile:
        compile_encoder(encoder, device)
    if recipe.training.shard and world_size() > 1:  # one process has nobody to share with
        shard_encoder(encoder, device)
    modules: dict[str, nn.Module] = {"encoder": encoder}
    for name, objective in objectives.items():
        modules[f"objective.{name}"] = objective.to(device)
    uncertainty = Uncertainty(objectives).to(device) if recipe.combiner.weighting == "uncertainty" else None
    if uncertainty is not None:
        modules["uncertainty"] = uncertainty
    heads = {name: list(objective.parameters()) for name, objective in objectives.items()}
    learnt = {} if uncertainty is None else {name: [uncertainty.log_variance(name)] for name in objectives}
    precision = recipe.training.precision
    return Model(
        encoder,
        objectives,
        needs,
        {name: module.train() for name, module in modules.items()},
        optimizer=build_optimizer(modules, recipe.optimizer, recipe.optimizer.lr),
        combiner=Combiner(
            recipe.combiner,
            list(encoder.parameters()),
            {name: [*own, *learnt.get(name, ())] for name, own in heads.items()},
            {name: objective.branch for name, objective in objectives.items()},
            {name: recipe.objectives[name].weight for name in objectives},
        ),
        uncertainty=uncertainty,
        scaler=torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
        autocast=torch.autocast(device.type, AUTOCAST[precision], enabled=precision != "fp32"),
    )


def bound_to_processes(model: Model, recipe: Recipe) -> str:
    """Why another number of processes would make it another training; empty where only the order of sums changes.

    Batches, views and losses are those of the whole batch, however many processes share it. What is not: statistics of
    BatchNorm, numbers drawn in a forward or as noise, and augmentations of one's own.
    """
    for name, module in model.modules.items():
        for part in module.modules():
            if isinstance(part, _BatchNorm) and part.training:
                return f"BatchNorm's statistics in {name} are those of a process's share of a batch"
            drops = [value for key, value in vars(part).items() if key == "p" or "drop" in key]
            if any(isinstance(value, float) and value > 0 for value in drops):
                return f"what is dropped at random in {name} is drawn by each process"
    for images in (recipe.images, *(recipe.images_of(name) for name in recipe.modalities)):
        augment = resolve_augment(images.augment)
        if augment.noise or augment.own:
            return f"{'noise' if augment.noise else 'an augmentation of your own'} is drawn by each process"
    return ""


def check_precision(recipe: Recipe, device: torch.device) -> None:
    """Refuse a precision that a device only pretends to have: fp16 on a CPU is emulated, and many times slower.

    Raises:
        RecipeError: fp16, and no GPU.

    >>> check_precision(Recipe.load("simclr").override(["training.precision=fp16"]), torch.device("cpu"))
    Traceback (most recent call last):
    bolus.errors.RecipeError: training.precision: fp16 needs a GPU, and this run is on a CPU; take bf16 or fp32
    """
    if recipe.training.precision == "fp16" and device.type == "cpu":
        raise RecipeError("training.precision: fp16 needs a GPU, and this run is on a CPU; take bf16 or fp32")


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with every default written out, those of objectives and augmentation presets included.

    Augmentations of one's own are tried on made-up views, see `bolus.data.views.own.try_own`.

    >>> resolve(Recipe.load("vicreg")).objectives["global"].parameters["depth"]
    3
    """
    volumes = recipe.images.unit == "volume"
    augment = resolve_augment(recipe.images.augment, volumes=volumes)
    images = recipe.images.model_copy(update={"augment": augment})
    modalities = {
        name: spec
        if spec.augment is None
        else spec.model_copy(
            update={"augment": resolve_augment(spec.augment, f"modalities.{name}.augment", volumes=volumes)}
        )
        for name, spec in recipe.modalities.items()
    }
    objectives = resolve_objectives(recipe)
    whole = recipe.model_copy(update={"images": images, "modalities": modalities, "objectives": objectives})
    frames = images.frames if images.unit == "clip" else images.sides[0] if volumes else None
    try_own(augment.own, size=images.side, channels=recipe.encoder.in_channels, frames=frames)
    for name, spec in modalities.items():
        if spec.augment is not None and spec.augment.own:
            size, channels = whole.images_of(name).side, whole.encoder_of(name).in_channels
            key = f"modalities.{name}.augment"
            try_own(spec.augment.own, size=size, channels=channels, frames=frames, key=key)
    return whole


def check_modalities(recipe: Recipe, cohort: Cohort) -> None:
    """Raise where the recipe speaks of modalities that the cohort does not have.

    Raises:
        RecipeError: a name under `modalities` that is no value of the modality column.
        CohortError: an encoder for each modality, and no such column, or rows without a value there.
    """
    if recipe.encoders == "per_modality" and "modality" not in cohort.roles:
        raise CohortError(
            "encoders is per_modality, but no column has the role modality; name it with --role modality=COLUMN, or "
            "set encoders=shared"
        )
    if recipe.encoders == "per_modality" and (cohort.encoded("modality") == -1).any():
        rows = name_rows(np.unique(cohort.origin[cohort.encoded("modality") == -1]))
        raise CohortError(f"encoders is per_modality, and {rows} have no modality; fill it in, or leave them out")
    known = cohort.modalities
    for name in recipe.modalities:
        if name not in known:
            raise RecipeError(f"modalities: the cohort has no images of modality {name!r}; {suggest(name, known)}")
