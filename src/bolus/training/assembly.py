"""A recipe and a cohort become what the training loop turns: images, batches, model, optimiser."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from accelerate import PartialState
from torch import nn
from torch.optim import Optimizer

from bolus.data.batches.batch import Sampler
from bolus.data.batches.columns import TrainingColumns, meta_label_problem, require_one_class, sample_columns
from bolus.data.batches.loading import Loader
from bolus.data.batches.participants import ParticipantSampler, combine_codes
from bolus.data.batches.partners import PartnerIndex
from bolus.data.batches.presets import resolve as resolve_augment
from bolus.data.batches.relation import Needs, Relation
from bolus.data.cohort.cohort import Cohort, Samples
from bolus.data.cohort.roles import BIN, NUMBERS, is_role
from bolus.data.images.cache import ImageStore, Preprocessing, build_store
from bolus.data.images.clips import open_samples
from bolus.encoders.backbone import Encoder
from bolus.encoders.modalities import ModalityEncoders, each_encoder, recipe_encoder
from bolus.errors import CohortError, RecipeError, name_rows, suggest
from bolus.objectives import build_objectives, resolve_objectives
from bolus.objectives.base import Objective, Table, check_batch
from bolus.optimization import build_optimizer
from bolus.progress import Meter
from bolus.recipe import Recipe
from bolus.training.combiner import Combiner
from bolus.training.processes import world_size

WITHOUT = "; or leave that objective out with objectives.NAME=null"
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


def launched() -> PartialState:
    """This process among those that were launched with it; without an accelerator they meet on the CPU.

    Accelerate joins processes on a CPU only where it is told so, and otherwise counts one.
    """
    return PartialState(cpu=not torch.accelerator.is_available())


def build_model(recipe: Recipe, device: torch.device, table: Table) -> Model:
    """Encoder, objectives, optimiser and combiner, all from the recipe, its seed and the training samples' columns.

    Args:
        recipe: resolved or not.
        device: where all of it goes.
        table: `TrainingColumns`, which knows the modalities; plain columns will do where one encoder sees all.

    Raises:
        RecipeError, EncoderError: a key that cannot be met, or a batch too small for what is compared in it.
        CohortError: an encoder for each modality, and no column says which an image is of.
    """
    modalities = []
    if isinstance(table, TrainingColumns):
        check_modalities(recipe, table.cohort)
        modalities = table.modalities
    encoder = recipe_encoder(recipe, modalities).to(device)
    inputs = {name: (recipe.encoder_of(name).in_channels, recipe.images_of(name).size) for name in modalities}
    objectives = build_objectives(recipe, replace(encoder.shape, inputs=inputs), table, seed=recipe.training.seed)
    check_batch(objectives, recipe, world_size())
    needs = Needs().merge(*(objective.needs for objective in objectives.values()))
    if recipe.images.views < needs.views:
        raise RecipeError(f"images.views: the objectives need {needs.views} views, found {recipe.images.views}")
    if needs.levels and not encoder.shape.levels:
        which = repr(recipe.encoder.backbone) if len(each_encoder(encoder)) == 1 else "what all modalities have alike"
        raise RecipeError(f"an objective reads the encoder's levels, and {which} has none")
    if needs.pixels and recipe.images.unit == "clip":
        raise RecipeError("an objective reads the pixels of single images, and images.unit is clip")
    modules: dict[str, nn.Module] = {"encoder": encoder}
    for name, objective in objectives.items():
        modules[f"objective.{name}"] = objective.to(device)
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
            {name: list(objective.parameters()) for name, objective in objectives.items()},
            {name: objective.branch for name, objective in objectives.items()},
        ),
        scaler=torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
        autocast=torch.autocast(device.type, AUTOCAST[precision], enabled=precision != "fp32"),
    )


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

    >>> resolve(Recipe.load("vicreg")).objectives["global"].parameters["depth"]
    3
    """
    augment = resolve_augment(recipe.images.augment)
    images = recipe.images.model_copy(update={"augment": augment})
    modalities = {
        name: spec
        if spec.augment is None
        else spec.model_copy(update={"augment": resolve_augment(spec.augment, f"modalities.{name}.augment")})
        for name, spec in recipe.modalities.items()
    }
    objectives = resolve_objectives(recipe)
    return recipe.model_copy(update={"images": images, "modalities": modalities, "objectives": objectives})


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
    known = sorted(set(cohort.modality.tolist()))
    for name in recipe.modalities:
        if name not in known:
            raise RecipeError(f"modalities: the cohort has no images of modality {name!r}; {suggest(name, known)}")


def contract_of(cohort: Cohort, recipe: Recipe) -> Preprocessing:
    """What the recipe asks of the images, with the ranges that a check of the cohort found.

    Raises:
        CohortError: a side to mirror, and no column says which side an image shows.
    """
    images = recipe.images
    if images.mirror is not None and "laterality" not in cohort.roles:
        raise CohortError(
            f"images.mirror is {images.mirror}, but no column has the role laterality; name it with "
            "--role laterality=COLUMN, or set images.mirror=null"
        )
    frames = images.frames if images.unit == "clip" else None
    base = Preprocessing(images.size, recipe.encoder.in_channels, images.fit, {}, frames, images.mirror)
    modalities = {}
    for name in sorted(set(cohort.modality.tolist())):
        own, channels = recipe.images_of(name), recipe.encoder_of(name).in_channels
        modalities[name] = replace(base, size=own.size, channels=channels, fit=own.fit)
    differing = {name: each for name, each in modalities.items() if each != base}
    return replace(base, ranges=cohort.spec.cohort_ranges, modalities=differing)


def open_images(cohort: Cohort, recipe: Recipe, cache: Path | None, quiet: bool) -> ImageStore:
    """The cached images; the first process decodes, the others wait and read."""
    state = launched()
    with state.main_process_first(), Meter("decoding", len(cohort), quiet=quiet) as meter:
        store = build_store(
            cohort, contract_of(cohort, recipe), folder=cache, on_progress=lambda done, _: meter.update(done)
        )
    for remark in store.remarks:
        Meter("", 0, quiet=quiet).say(f"! {remark}")
    return store


def build_loader(
    cohort: Cohort,
    samples: Samples,
    store: ImageStore,
    recipe: Recipe,
    needs: Needs,
    state: PartialState,
    *,
    readable: npt.NDArray[np.bool_] | None = None,
) -> Loader:
    """Batches of the training samples of which at least one row can be read.

    Args:
        cohort: says who is a training patient; that of the samples.
        samples: its elements in the recipe's unit.
        store: their cached pixels.
        recipe: sampling, images and seed.
        needs: what the objectives ask for together.
        state: this process among its peers.
        readable: rows to count as readable; the store's where None.

    Raises:
        CohortError: no training samples or too few to compare, clips of one frame only, a role that an objective needs
            and no column has, or a label of several classes a row.
        RecipeError: a batch that cannot be filled or shared evenly, a relation without a single pair, a meta label that
            is unique or constant, or bins of something that is no number.
    """
    for role in recipe.bins:
        if not is_role(f"{BIN}{role}"):
            raise RecipeError(f"bins: {role!r} is no role of a number; {suggest(role, [*NUMBERS, *cohort.roles])}")
    roles = sorted((needs.roles | {"patient"}) - {"sample"})
    for role in roles:
        if not cohort.has(role):
            near = suggest(role, cohort.roles)
            raise CohortError(f"an objective needs a column with the role {role!r}; {near}{WITHOUT}")
        require_one_class(cohort, role)
    usable = store.readable if readable is None else readable
    positions = np.flatnonzero((cohort.split[samples.first_row] == "train") & samples.readable(usable))
    if not len(positions):
        raise CohortError("no readable image belongs to a training patient")
    if len(positions) < needs.samples:
        raise CohortError(
            f"the objectives compare at least {needs.samples} samples with each other, and training patients have "
            f"{len(positions)} that can be read; add patients, or leave more of them to training with --split"
        )
    if samples.unit == "clip" and samples.num_rows[positions].max() == 1:
        raise CohortError(
            "images.unit is clip, but every training clip has one frame; give the column that says which clip a row "
            "belongs to the role series and its frame numbers the role order, or set images.unit=image"
        )
    batch_size = recipe.sampling.batch_size
    if batch_size % state.num_processes:
        raise RecipeError(
            f"sampling.batch_size: {batch_size} samples cannot be shared evenly by {state.num_processes} processes"
        )
    columns = sample_columns(samples, roles, recipe.bins)
    train = {role: values[positions] for role, values in columns.items()}
    indexes = []
    for relation in needs.relations:
        if relation == Relation.parse("views"):
            continue  # its partner is the sample's own other view
        problem = meta_label_problem(train[relation.same[0]]) if relation.roles == relation.same[:1] else None
        if problem is not None:  # the relation is one meta label and nothing else
            raise RecipeError(f"the meta label {relation.same[0]} {problem}")
        index = PartnerIndex(relation, train)
        if not index.counts().any():
            raise RecipeError(f"no two training samples are related by: {relation.describe()}{WITHOUT}")
        indexes.append(index)
    sampler: Sampler | ParticipantSampler
    if recipe.sampling.participants is not None:
        differ = {role for relation in needs.relations for role in relation.differ} - {"sample", "patient"}
        sampler = ParticipantSampler(
            len(positions),
            patients=train["patient"],
            batch_size=batch_size,
            participants=recipe.sampling.participants,
            seed=recipe.training.seed,
            strata=combine_codes([train[role] for role in sorted(differ)], len(positions)),
        )
    else:
        sampler = Sampler(
            len(positions),
            batch_size=batch_size,
            seed=recipe.training.seed,
            indexes=indexes,
            partners=recipe.sampling.partners,
            patients=train["patient"],
            balance=recipe.sampling.balance,
        )
    return Loader(
        samples,
        store,
        positions,
        sampler,
        columns,
        recipe.images,
        seed=recipe.training.seed,
        rank=state.process_index,
        processes=state.num_processes,
        readable=usable,
        images_of=recipe.images_of,
    )


def unread_loader(cohort: Cohort, recipe: Recipe, needs: Needs, cache: Path | None) -> Loader:
    """A loader as if every image could be read, without reading one: what does not fit shows at once.

    Raises:
        CohortError, RecipeError: as `build_loader`.
    """
    samples = open_samples(cohort, recipe.images.unit)
    cohort, everything = samples.cohort, np.ones(len(samples.cohort), bool)
    store = build_store(cohort, contract_of(cohort, recipe), folder=cache, rows=np.zeros(0, np.int64))
    return build_loader(cohort, samples, store, recipe, needs, launched(), readable=everything)


def data_hash(cohort: Cohort, loader: Loader) -> str:
    """What the training sees, in order: images, frames, columns and ranges; 16 hexadecimal digits.

    Of a clip, every frame that can be read counts. A run whose table, readable images or ranges changed is another run,
    and its hash says so.
    """
    rows, lengths = loader.samples.first_row[loader.positions], np.ones(len(loader.positions), np.int64)
    if loader.frames is not None:
        clips = [loader.samples.rows_of(position) for position in loader.positions.tolist()]
        clips = [clip[loader.readable[clip]] for clip in clips]
        rows, lengths = np.concatenate(clips), np.array([len(clip) for clip in clips])
    digest = hashlib.blake2b(digest_size=8)
    digest.update("\n".join(cohort.table[cohort.roles["image"]].iloc[rows].astype(str)).encode())
    if "order" in cohort.roles:
        digest.update(cohort.encoded("order")[rows].tobytes())
    for role, values in sorted(loader.columns.items()):
        digest.update(role.encode() + np.ascontiguousarray(values[loader.positions]).tobytes())
    contract = loader.store.preprocessing.to_json()
    if not contract["rules"]:  # nor had contracts of earlier versions any, and without rules images are what they were
        del contract["rules"]
    if loader.frames is None:
        del contract["frames"]
    else:
        digest.update(lengths.tobytes())
    digest.update(json.dumps(contract, sort_keys=True).encode())
    if loader.store.mirrored is not None:
        digest.update(loader.store.mirrored[rows].tobytes())
    return digest.hexdigest()


def total_steps(recipe: Recipe, loader: Loader) -> int:
    """Optimiser steps of the whole run."""
    spec = recipe.training
    steps = math.ceil(spec.epochs * loader.batches_per_epoch / spec.accumulate)
    return min(steps, spec.max_steps) if spec.max_steps is not None else steps
