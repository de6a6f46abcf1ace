"""The images of a cohort, and batches of them, as a recipe asks for both."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from accelerate import PartialState

from bolus.data.batches.batch import Sampler
from bolus.data.batches.columns import held_columns, meta_label_problem, require_one_class
from bolus.data.batches.loading import Loader
from bolus.data.batches.participants import ParticipantSampler, combine_codes
from bolus.data.batches.partners import PartnerIndex
from bolus.data.batches.relation import Needs, Relation
from bolus.data.cohort.coding import Held, texts_of
from bolus.data.cohort.cohort import Cohort, Samples
from bolus.data.cohort.roles import BIN, NUMBERS, is_role
from bolus.data.images.cache import Preprocessing, Store, build_store
from bolus.data.images.clips import open_samples
from bolus.data.readers.own import open_readers
from bolus.data.text.columns import joined_lines
from bolus.data.volumes.fit import VolumeFit
from bolus.errors import CohortError, RecipeError, suggest
from bolus.progress import Meter
from bolus.recipe import ImagesSpec, Recipe
from bolus.training.processes import launched

Array: TypeAlias = "npt.NDArray[Any]"
HASHED = 2**20  # rows whose paths and values are hashed at a time
WITHOUT = "; or leave that objective out with objectives.NAME=null"


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
    base = Preprocessing(
        images.side, recipe.encoder.in_channels, images.fit, {}, frames, images.mirror, volume=_volume_fit(images)
    )
    modalities = {}
    for name in cohort.modalities:
        own, channels = recipe.images_of(name), recipe.encoder_of(name).in_channels
        modalities[name] = replace(base, size=own.side, channels=channels, fit=own.fit, volume=_volume_fit(own))
    differing = {name: each for name, each in modalities.items() if each != base}
    return replace(base, ranges=cohort.spec.cohort_ranges, modalities=differing)


def _volume_fit(images: ImagesSpec) -> VolumeFit | None:
    """The box of volumes; None of images and clips."""
    if images.unit != "volume":
        return None
    depth, height, width = images.sides
    return VolumeFit((depth, height, width), images.steps, images.foreground)


def open_images(cohort: Cohort, recipe: Recipe, cache: Path | None, quiet: bool) -> Store:
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
    store: Store,
    recipe: Recipe,
    needs: Needs,
    state: PartialState,
    *,
    readable: npt.NDArray[np.bool_] | None = None,
    before: Loader | None = None,
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
        before: a loader for the same recipe and cohort, whose columns and draws are taken over where as many samples
            can be read.

    Raises:
        CohortError: no training samples or too few to compare, clips of one frame only, a role that an objective needs
            and no column has, or a label of several classes a row.
        RecipeError: a batch that cannot be filled or shared evenly, a relation without a single pair, a meta label that
            is unique or constant, or bins of something that is no number.
    """
    for role in recipe.bins:
        if not is_role(f"{BIN}{role}"):
            numbers = {*NUMBERS, *(each for each in cohort.roles if is_role(f"{BIN}{each}"))}
            raise RecipeError(f"bins: {role!r} is no role of a number; {suggest(role, numbers)}")
    roles = sorted((needs.roles | {"patient"}) - {"sample"})
    for role in roles:
        if not cohort.has(role):
            near = suggest(role, cohort.roles)
            raise CohortError(f"an objective needs a column with the role {role!r}; {near}{WITHOUT}")
        require_one_class(cohort, role)
    usable = store.readable if readable is None else readable
    positions = np.flatnonzero(samples.on_side("train") & samples.readable(usable))
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
    if before is not None and np.array_equal(before.positions, positions):
        positions, columns, sampler = before.positions, before.columns, before.sampler
    else:
        columns = held_columns(samples, roles, recipe.bins)
        sampler = _sampler(recipe, needs, columns, positions)
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


def _sampler(
    recipe: Recipe, needs: Needs, columns: Mapping[str, Held | Array], positions: npt.NDArray[np.int64]
) -> Sampler | ParticipantSampler:
    """What draws batches of the training samples: by patient, or anchors with partners of each relation."""
    indexes, number = _partner_indexes(needs, columns, positions), len(positions)
    sampling, seed = recipe.sampling, recipe.training.seed
    if sampling.participants is not None:
        differ = {role for relation in needs.relations for role in relation.differ} - {"sample", "patient"}
        return ParticipantSampler(
            number,
            patients=columns["patient"][positions],
            batch_size=sampling.batch_size,
            participants=sampling.participants,
            seed=seed,
            strata=combine_codes([columns[role][positions] for role in sorted(differ)], number),
        )
    return Sampler(
        number,
        batch_size=sampling.batch_size,
        seed=seed,
        indexes=indexes,
        partners=sampling.partners,
        patients=columns["patient"][positions] if sampling.balance == "patient" else None,
        balance=sampling.balance,
    )


def _partner_indexes(
    needs: Needs, columns: Mapping[str, Held | Array], positions: npt.NDArray[np.int64]
) -> list[PartnerIndex]:
    """The partners of every relation among the training samples; a relation that relates none is refused."""
    indexes = []

    def read(role: str, relation: Relation) -> Array:
        values = columns[role]
        if isinstance(values, Held) and not (relation.range and role == relation.range[0]):
            return values.at(positions).comparable
        return values[positions]

    for relation in needs.relations:
        if relation == Relation.parse("views"):
            continue  # its partner is the sample's own other view
        train = {role: read(role, relation) for role in relation.roles if role in columns}
        problem = meta_label_problem(train[relation.same[0]]) if relation.roles == relation.same[:1] else None
        if problem is not None:  # the relation is one meta label and nothing else
            raise RecipeError(f"the meta label {relation.same[0]} {problem}")
        index = PartnerIndex(relation, train)
        if not index.counts().any():
            raise RecipeError(f"no two training samples are related by: {relation.describe()}{WITHOUT}")
        indexes.append(index)
    return indexes


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
    """What the training sees, in order: images, frames, columns, ranges and readers; 16 hexadecimal digits.

    Of a clip, every frame that can be read counts, and of a volume every slice. A run whose table, readable images or
    ranges changed is another run, and its hash says so.
    """
    rows, lengths = _rows_seen(loader)
    digest = hashlib.blake2b(digest_size=8)
    paths = cohort.columns[cohort.roles["image"]]
    for start in range(0, len(rows), HASHED):
        digest.update(b"\n" if start else b"")
        digest.update(joined_lines(texts_of(paths, rows[start : start + HASHED])))
    if "order" in cohort.roles:
        _update(digest, cohort.held("order"), rows)
    for role, values in sorted(loader.columns.items()):
        digest.update(role.encode())
        _update(digest, values, loader.positions)
    contract = loader.store.preprocessing.to_json()
    if not contract["rules"]:  # nor had contracts of earlier versions any, and without rules images are what they were
        del contract["rules"]
    if loader.frames is None:
        del contract["frames"]
    if loader.samples.unit in ("clip", "volume"):
        digest.update(lengths.tobytes())
    digest.update(json.dumps(contract, sort_keys=True).encode())
    if loader.store.mirrored is not None:
        digest.update(loader.store.mirrored[rows].tobytes())
    for suffix, reader in sorted(open_readers(cohort.spec.readers).items()):
        digest.update(f"{suffix} {reader.identity}".encode())
    return digest.hexdigest()


def content_hash(cohort: Cohort, loader: Loader) -> str:
    """What the files hold that the training sees, in order, 16 hexadecimal digits: an image that was replaced tells.

    Where a series gives its images their range, which series each is of, too.
    """
    rows, _ = _rows_seen(loader)
    digest = hashlib.blake2b(digest_size=8)
    for start in range(0, len(rows), HASHED):
        digest.update(np.ascontiguousarray(loader.store.content_of(rows[start : start + HASHED])).data)
    if "series" in cohort.roles and any(
        rule == "series" for rule, *_ in (loader.store.preprocessing.rules or {}).values()
    ):
        _update(digest, cohort.held("series"), rows)
    return digest.hexdigest()


def _rows_seen(loader: Loader) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The rows of the training's samples, of a clip or volume all that can be read; and how many each sample has."""
    if loader.samples.unit not in ("clip", "volume"):
        return loader.samples.first_row[loader.positions], np.ones(len(loader.positions), np.int64)
    clips = [loader.samples.rows_of(position) for position in loader.positions.tolist()]
    clips = [clip[loader.readable[clip]] for clip in clips]
    return np.concatenate(clips), np.array([len(clip) for clip in clips])


def _update(digest: hashlib.blake2b, values: Held | Array, places: npt.NDArray[np.int64]) -> None:
    """Hash what stands at these places, some at a time."""
    for start in range(0, len(places), HASHED):
        digest.update(np.ascontiguousarray(values[places[start : start + HASHED]]).data)


def total_steps(recipe: Recipe, loader: Loader) -> int:
    """Optimiser steps of the whole run."""
    spec = recipe.training
    steps = math.ceil(spec.epochs * loader.batches_per_epoch / spec.accumulate)
    return min(steps, spec.max_steps) if spec.max_steps is not None else steps
