"""Memory of a run: what it took, and what to change where it was too little."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bolus.encoders.families.hub import can_checkpoint, find_config, is_named
from bolus.errors import OutOfMemoryError, RecipeError
from bolus.objectives import OBJECTIVES
from bolus.recipe import Recipe
from bolus.training.processes import launched
from bolus.training.sharding import check_shard


@contextmanager
def explain_memory(recipe: Recipe) -> Iterator[None]:
    """Turn an out-of-memory error of the step into one that names the keys to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
        if not known:
            raise
        clips = recipe.images.unit == "clip"
        frames = ["images.frames"] if clips else []
        kinds = {name: OBJECTIVES[spec.kind] for name, spec in recipe.objectives.items()}
        own = [f"objectives.{name}.{key}" for name, kind in kinds.items() for key in kind.memory_keys]
        sizes = ["images.size", *(f"modalities.{name}.size" for name, spec in recipe.modalities.items() if spec.size)]
        keys = ["sampling.batch_size", *sizes, *frames, *own]
        keys += ["training.precision=bf16"] if recipe.training.precision == "fp32" else []
        # Of what is not named, it is not known here.
        named = filter(is_named, {recipe.encoder_of(name).backbone for name in ["", *recipe.modalities]})
        volumes = recipe.images.unit == "volume"  # whose named encoders all can
        again = volumes or all(can_checkpoint(find_config(name), name) for name in named)
        if again and not recipe.training.activation_checkpointing:
            keys.append("training.activation_checkpointing=true")
        if launched().num_processes > 1 and not recipe.training.shard and _can_shard(recipe):
            keys.append("training.shard=true")
        if len(recipe.objectives) > 1:
            apart = recipe.combiner.kind != "sum" and recipe.combiner.scope == "encoder"
            keys += ["combiner.scope=features"] if apart else []
            looks = recipe.combiner.kind == "sum" and recipe.combiner.conflict_steps is not None
            keys += ["combiner.conflict_steps=null"] if looks else []  # other kinds hold gradients apart at every step
        held = samples_together(recipe)
        keys += [f"sampling.chunk={held // 2}"] if held > 3 else []
        shape = f"{recipe.sampling.batch_size} samples x {recipe.images.views} views"
        shape += f" x {recipe.images.frames} frames" if clips else ""
        raise OutOfMemoryError(
            f"a step of {shape} at {recipe.images.extent} does not fit into memory; "
            f"lower one of {', '.join(keys)} "
            "(training.accumulate keeps the samples of a step, and sampling.chunk those that are compared, too)"
        ) from error


def samples_together(recipe: Recipe) -> int:
    """Samples that a step sends through the encoder at a time, in each process.

    >>> samples_together(Recipe.load("simclr").override(["sampling.chunk=4"]))
    4
    """
    return recipe.sampling.chunk or max(1, recipe.sampling.batch_size // launched().num_processes)


def _can_shard(recipe: Recipe) -> bool:
    """Whether `training.shard=true` goes with all else that the recipe says."""
    try:
        check_shard(recipe.override(["training.shard=true"]), list(recipe.modalities))
    except RecipeError:
        return False
    return True


def peak_memory() -> float:
    """GiB that the accelerator, or else this process, held at most; NaN where the system does not say (Windows)."""
    if launched().device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        import resource
    except ImportError:
        return math.nan
    kibi = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kibi / 2**30
