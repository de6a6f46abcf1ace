"""What a training step costs, and how much of it is the encoder's own work."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bolus.data.cohort.cohort import Cohort
from bolus.device import is_shared_out
from bolus.recipe import Recipe
from bolus.training.loaders import total_steps
from bolus.training.memory import explain_memory, peak_memory
from bolus.training.processes import launched
from bolus.training.rehearsal import Rehearsal, rehearse
from bolus.training.step import apply_gradients, losses_of, training_step
from bolus.training.window import Window

STEPS = 2
"""Of a round."""


@dataclass(frozen=True)
class StepCost:
    """Medians over rounds, in each of which the whole step and the bare one are taken in turn.

    Args:
        images_per_second: views, or their frames, of one process in whole steps.
        seconds: of a whole step.
        efficiency: seconds of the bare step over those of the whole one: median, lowest and highest of the rounds; None
            with `sampling.chunk`, whose steps go through the encoder twice, and where no process has the whole encoder.
        augmentation: share of the whole step.
        data_wait: share of the whole step.
        backwards: passes of the bare step.
        memory_gib: peak of the device, or of the process; NaN where the system does not say.
        rounds: that were measured.
        steps: of the whole run.
        unreadable: images of the batches that cannot be read.
    """

    images_per_second: float
    seconds: float
    efficiency: tuple[float, float, float] | None
    augmentation: float
    data_wait: float
    backwards: int
    memory_gib: float
    rounds: int
    steps: int
    unreadable: int


def measure_step(
    cohort: Cohort,
    recipe: Recipe,
    *,
    seconds: float = 20.0,
    rounds: int = 9,
    cache: Path | None = None,
) -> StepCost:
    """Take whole steps of a run and bare ones in turn.

    A whole step does all that a step of `pretrain` does: pixels from the cache, views, forward, objectives, gradients,
    their norm, the optimiser, the look at the losses. A bare one is forward and backward of the same encoder, heads and
    losses on views that are on the device already: one backward pass, or one for each objective where these are
    reconciled in the encoder's parameters.

    Args:
        cohort: to train on.
        recipe: of the run.
        seconds: after which no round begins; one round warms up, and three at least are measured.
        rounds: at most.
        cache: cache folder; the user's where None.

    Raises:
        CohortError, RecipeError, OutOfMemoryError: as `pretrain`.
    """
    accumulate = recipe.training.accumulate
    begun = rehearse(cohort, recipe, batches=(rounds + 1) * STEPS * accumulate, cache=cache)
    recipe, loader, clip = begun.recipe, begun.loader, begun.recipe.training.clip
    divided = any(map(is_shared_out, begun.model.encoder.parameters()))
    bare = _bare_step(begun) if recipe.sampling.chunk is None and not divided else None
    batches = loader.iterate(0, (rounds + 1) * STEPS * accumulate)
    took: dict[str, list[float]] = {"whole": [], "bare": [], "augment": [], "wait": []}
    start = time.perf_counter()
    with explain_memory(recipe):
        for number in range(rounds + 1):  # the first warms up
            if number > 3 and time.perf_counter() - start > seconds:
                break
            before = _now()
            for _ in range(STEPS if bare else 0):
                bare()  # type: ignore[misc]
            middle, waited = _now(), 0.0
            for _ in range(STEPS):
                window = Window()
                for left in reversed(range(accumulate)):
                    fetched = next(batches)
                    waited += fetched.wait
                    window.add(fetched, *training_step(begun.model, loader, fetched, recipe, 0.0, last=left == 0))
                norm = apply_gradients(begun.model, clip)
            window.line(1, 1.0, 1.0, norm, 1, loader.images_per_sample)
            end = _now()
            loader.batch(fetched, device=launched().device, progress=0.0)
            if number:
                took["bare"].append((middle - before) / STEPS * accumulate)
                took["whole"].append((end - middle) / STEPS)
                took["augment"].append((_now() - end) * accumulate)
                took["wait"].append(waited / STEPS)
    whole = np.array(took["whole"])
    share = np.array(took["bare"]) / whole
    images = recipe.sampling.batch_size * loader.images_per_sample * accumulate / loader.processes
    return StepCost(
        images_per_second=images / float(np.median(whole)),
        seconds=float(np.median(whole)),
        efficiency=(float(np.median(share)), float(share.min()), float(share.max())) if bare else None,
        augmentation=float(np.median(np.array(took["augment"]) / whole)),
        data_wait=float(np.median(np.array(took["wait"]) / whole)),
        backwards=_backwards(recipe),
        memory_gib=peak_memory(),
        rounds=len(whole),
        steps=total_steps(recipe, loader),
        unreadable=begun.unreadable,
    )


def _backwards(recipe: Recipe) -> int:
    apart = recipe.combiner.kind != "sum" and recipe.combiner.scope == "encoder"
    return len(recipe.objectives) if apart else 1


def _bare_step(begun: Rehearsal) -> Callable[[], None]:
    """Forward and backward on one batch that is ready."""
    model, recipe = begun.model, begun.recipe
    local, whole = begun.loader.batch(begun.loader.fetch(0), device=launched().device, progress=0.0)
    asked = {"levels": model.needs.levels, "grid": model.needs.grid, "frame_mask": local.frame_mask}
    one_each = _backwards(recipe) > 1

    def step() -> None:
        with model.autocast:
            features = model.encoder.encode(local.views, local.rows, **asked)  # type: ignore[arg-type]
            found = losses_of(model, features, local, whole)
        losses = [loss.value * recipe.objectives[name].weight for name, loss in found.items()]
        for loss in losses if one_each else [torch.stack(losses).sum()]:
            torch.autograd.grad(loss, model.combiner.parameters, allow_unused=True, retain_graph=one_each)

    return step


def _now() -> float:
    """The time, once the device has done what it was given."""
    if launched().device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
