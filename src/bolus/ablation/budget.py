"""An equal budget for all arms, counted in what the encoder does: passes of images, forward and backward.

A forward pass of one image (one view of a sample, one frame of a clip) is one, and so is a backward pass of one; what
heads and losses cost is not counted, nor that a backward pass takes longer. With part of the encoder frozen a backward
pass counts as a whole one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bolus.recipe import Recipe


@dataclass(frozen=True)
class Pace:
    """What two steps of an arm say, as it is given.

    Args:
        steps: of the whole run, by its own epochs and max_steps.
        steps_per_epoch: above 0.
        seconds: of a step.
        memory_gib: at the peak.
    """

    steps: int
    steps_per_epoch: float
    seconds: float
    memory_gib: float


def passes_of_run(recipe: Recipe, steps: int) -> int:
    """Encoder passes of so many steps, exactly, as `bolus.training.gradients.combiner.Combiner` makes them.

    A step sees batch_size x views x frames x accumulate images: once forward, and once backward for all objectives
    together, or for each objective where they are reconciled in the encoder's parameters. Looking at conflicts takes a
    backward pass for each objective in that step, except at the features. Activation checkpointing adds a forward pass
    to every backward one, and chunks (`sampling.chunk`) one to every step that has any.

    >>> recipe = Recipe.load("comprer_bilateral").override(["sampling={batch_size: 10}", "combiner.conflict_steps=4"])
    >>> [passes_of_run(recipe, steps) for steps in (1, 2, 5)]
    [40, 60, 140]
    """
    images = recipe.sampling.batch_size * recipe.images.views * recipe.training.accumulate
    images *= recipe.images.frames if recipe.images.unit == "clip" else 1
    one, looking = _backward(recipe)
    backward = steps * one
    every = recipe.combiner.conflict_steps
    if every is not None:
        backward += math.ceil(steps / every) * (looking - one)
    forward = steps * (2 if recipe.sampling.chunk is not None and one else 1)
    return images * (forward + backward * (2 if recipe.training.activation_checkpointing else 1))


def steps_within(recipe: Recipe, budget: int) -> int:
    """The most steps whose encoder passes are within the budget; at least one.

    >>> steps_within(Recipe.load("simclr").override(["sampling.batch_size=64"]), 1000)
    3
    """
    fewest, most = 1, max(2, math.ceil(budget / passes_of_run(recipe, 1)) * (len(recipe.objectives) + 1) + 2)
    while most - fewest > 1:  # passes grow with steps
        middle = (fewest + most) // 2
        if passes_of_run(recipe, middle) <= budget:
            fewest = middle
        else:
            most = middle
    return fewest


def fit_to_budget(recipe: Recipe, pace: Pace, budget: int) -> Recipe:
    """The recipe, so long that its encoder passes are within the budget.

    Its schedule is stretched with it: warm-up, and the epochs after which a `step` schedule falls, keep their share of
    the run, and a cosine ends where the run ends.

    >>> recipe = Recipe.load("simclr").override(["sampling.batch_size=64"])
    >>> fitted = fit_to_budget(recipe, Pace(1000, 5.0, 0.1, 1.0), 100 * 256)
    >>> fitted.training.max_steps, fitted.training.epochs, fitted.schedule.warmup_epochs
    (100, 20, 1.0)
    """
    steps = steps_within(recipe, budget)
    stretch = steps / pace.steps
    schedule = recipe.schedule.model_copy(
        update={
            "warmup_epochs": recipe.schedule.warmup_epochs * stretch,
            "every_epochs": recipe.schedule.every_epochs * stretch,
        }
    )
    length = {"max_steps": steps, "epochs": max(1, math.ceil(steps / pace.steps_per_epoch)), "max_hours": None}
    training = recipe.training.model_copy(update=length)
    return recipe.model_copy(update={"schedule": schedule, "training": training})


def _backward(recipe: Recipe) -> tuple[int, int]:
    """Backward passes of a step through the encoder: of most steps, and of one that looks at conflicts."""
    encoders = [recipe.encoder, *(recipe.encoder_of(name) for name in recipe.modalities)]
    if all(spec.unfrozen == 0 for spec in encoders):
        return 0, 0
    together = recipe.combiner.scope == "features" or len(recipe.objectives) == 1
    each = 1 if together else len(recipe.objectives)
    return (1 if recipe.combiner.kind == "sum" else each), each
