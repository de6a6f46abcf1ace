"""Two steps of a run, to see what the whole of it will take."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bolus.data.batches.columns import TrainingColumns
from bolus.data.batches.loading import Loader
from bolus.data.cohort.cohort import Cohort, CohortLike
from bolus.data.images.cache import build_store
from bolus.data.images.clips import open_samples
from bolus.recipe import Recipe
from bolus.recipes.keys import Overrides
from bolus.training.assembly import Model, build_model, check_precision, resolve
from bolus.training.compiling import explain_compiling
from bolus.training.health.online_probe import check_probe
from bolus.training.loaders import build_loader, contract_of, total_steps, unread_loader
from bolus.training.memory import explain_memory, peak_memory
from bolus.training.processes import launched
from bolus.training.step import apply_gradients, training_step


@dataclass(frozen=True)
class DryRun:
    """What two steps say of a whole run.

    Args:
        images_per_second: views, or their frames, through the encoder, all processes together.
        memory_gib: peak of the process (CPU) or of the device; NaN where the system does not say.
        steps: of the whole run.
        hours: to its end, without decoding.
        unreadable: images of the first batches that cannot be read, and were left out.
        steps_per_epoch: optimiser steps until every sample was an anchor once.
    """

    images_per_second: float
    memory_gib: float
    steps: int
    hours: float
    unreadable: int = 0
    steps_per_epoch: float = 1.0


@dataclass(frozen=True)
class Rehearsal:
    """All that a run has before its first step, of which only the images of some batches were decoded.

    Args:
        recipe: resolved.
        cohort: of the samples; of clips, a row each frame.
        model: as a run begins with it.
        loader: of the whole run; the first batches can be fetched.
        unreadable: images of these batches that cannot be read, and were left out.
    """

    recipe: Recipe
    cohort: Cohort
    model: Model
    loader: Loader
    unreadable: int


def rehearse(cohort: Cohort, recipe: Recipe, *, batches: int, cache: Path | None = None) -> Rehearsal:
    """Open a run as far as its first batches, without a run folder.

    Args:
        cohort: to train on.
        recipe: of the run.
        batches: that will be fetched; only their images are decoded.
        cache: cache folder; the user's where None.

    Raises:
        CohortError, RecipeError, OutOfMemoryError: as `pretrain`.
    """
    recipe, state = resolve(recipe), launched()
    check_probe(cohort, recipe)
    samples = open_samples(cohort, recipe.images.unit)
    check_precision(recipe, state.device)
    model = build_model(recipe, state.device, TrainingColumns(samples, recipe.bins))
    loader, readable = unread_loader(cohort, recipe, model.needs, cache), np.ones(len(samples.cohort), bool)
    unreadable = 0
    while True:  # what cannot be read is left out, as the run will do, and other images take its place
        rows = np.unique(np.concatenate([loader.table_rows(number) for number in range(batches)]))
        loader.store = build_store(samples.cohort, contract_of(cohort, recipe), folder=cache, rows=rows)
        unread = rows[~loader.store.readable[rows]]
        if not len(unread):
            return Rehearsal(recipe, samples.cohort, model, loader, unreadable)
        unreadable += len(unread)
        readable[unread] = False
        if samples.unit == "volume":  # asked for by its first row, it is lost with all of them
            for place in np.flatnonzero(np.isin(samples.first_row, unread)).tolist():
                readable[samples.rows_of(place)] = False
        loader = build_loader(samples.cohort, samples, loader.store, recipe, model.needs, state, readable=readable)


def dry_run(
    cohort: CohortLike,
    *,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Overrides = (),
    cache: Path | None = None,
) -> DryRun:
    """Two real steps on the first batches: memory, images a second, and the time to finish; nothing is kept.

    Raises:
        CohortError, RecipeError, OutOfMemoryError: as `pretrain`.
    """
    recipe = Recipe.load(recipe).override(overrides)
    spec = recipe.training
    begun = rehearse(Cohort.open(cohort), recipe, batches=2 * spec.accumulate, cache=cache)
    recipe, model, loader = begun.recipe, begun.model, begun.loader
    seconds = []
    with explain_memory(recipe), explain_compiling(recipe):
        for step in range(2):
            began = time.perf_counter()
            for left in reversed(range(spec.accumulate)):
                # As in the run, the first step looks at conflicts, which takes most memory.
                observe = step == 0 and recipe.combiner.conflict_steps is not None
                fetched = loader.fetch((step + 1) * spec.accumulate - left - 1)
                training_step(model, loader, fetched, recipe, 0.0, observe=observe, last=left == 0)
            apply_gradients(model, spec.clip).item()  # .item() waits for the device
            seconds.append(time.perf_counter() - began)
    total = total_steps(recipe, loader)
    # The second step is free of first-call costs.
    speed = recipe.sampling.batch_size * loader.images_per_sample * spec.accumulate / seconds[1]
    epoch = loader.batches_per_epoch / spec.accumulate
    return DryRun(speed, peak_memory(), total, seconds[1] * total / 3600, begun.unreadable, epoch)
