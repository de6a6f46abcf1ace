"""What a planned training will take, by speeds that were measured; `--dry-run` measures it on the machine at hand."""

from __future__ import annotations

from bolus.recipe import Recipe

# Images a second of a whole training step in float32 on two CPU cores, by backbone and size: of 128 pixels in
# benchmarks/results/starts-cells.jsonl, of resnet18 in step.jsonl there, the others seen in single runs.
MEASURED = {"efficientnet_lite0": {64: 65, 96: 45, 128: 33}, "resnet18": {64: 190}}


def estimate(recipe: Recipe, steps: int, *, accelerated: bool) -> str:
    """A sentence on the hours of a training and what they are reckoned from; empty where nothing was measured.

    At a larger size than was measured, the speed falls as pixels grow in number; at a smaller one it stays.

    Args:
        recipe: the plan.
        steps: optimiser steps.
        accelerated: whether a GPU trains, of which nothing was measured.

    Example:
        >>> recipe = Recipe.load("simclr").override(["images.size=64", "sampling.batch_size=64"])
        >>> estimate(recipe, 6000, accelerated=False)
        'Some 1.1 hours on two CPU cores, where resnet18 was measured to train on 190 images a second at 64 pixels.'
    """
    spec, images = recipe.encoder, recipe.images
    known = MEASURED.get(spec.backbone)
    if known is None or images.unit == "volume" or accelerated or not spec.stem_pool or recipe.encoders != "shared":
        return ""
    near = min(known, key=lambda size: abs(size - images.side))
    speed = known[near] * min(1.0, (near / images.side) ** 2)
    frames = images.frames if images.unit == "clip" else 1
    seen = steps * recipe.training.accumulate * recipe.sampling.batch_size * images.views * frames
    minutes = seen / speed / 60
    took = f"{minutes / 60:.1f} hours" if minutes >= 60 else f"{max(1, round(minutes))} minutes"
    return (
        f"Some {took} on two CPU cores, where {spec.backbone} was measured to train on {known[near]} images a second "
        f"at {near} pixels."
    )
