"""One step: a batch forward and its gradients, and the update."""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor

from bolus.data.batches.batch import Batch
from bolus.data.batches.loading import Fetched, Loader
from bolus.encoders.backbone import seeded
from bolus.encoders.features import Features
from bolus.objectives.base import Loss
from bolus.objectives.heads import at_least_float32
from bolus.recipe import Recipe
from bolus.seeds import seed_for
from bolus.training.assembly import Model
from bolus.training.gradients.gradcache import cut_chunks, split_batch
from bolus.training.processes import gather, launched
from bolus.training.sharding import clip_to, total_norm


def training_step(
    model: Model,
    loader: Loader,
    fetched: Fetched,
    recipe: Recipe,
    progress: float,
    *,
    observe: bool = False,
    last: bool = False,
) -> tuple[dict[str, Tensor], dict[str, dict[str, int | Tensor]]]:
    """Forward one batch and accumulate its gradients; returns unweighted losses and what each of them counted.

    With `observe`, the combiner looks at how the objectives stand to each other; `last` says that no batch of the step
    comes after this one. Dropout and dropped paths are a function of the batch, the process and the chunk, so that a
    run that is resumed, and the second forward of a chunk, draw what was drawn before.
    """
    device, chunk = next(model.encoder.parameters()).device, recipe.sampling.chunk
    local, whole = loader.batch(fetched, device=device, progress=progress)
    process, asked = launched().process_index, {"levels": model.needs.levels, "grid": model.needs.grid}
    if not model.combiner.begun:
        model.optimizer.zero_grad()  # those of the step before need no room beside this forward

    def encode(part: Batch, *place: int) -> Features:
        with model.autocast, seeded(seed_for(whole.seed, "encoder", process, *place), device):
            return model.encoder.encode(part.views, part.rows, frame_mask=part.frame_mask, **asked)

    if chunk is None:
        features = model.combiner.open(encode(local), observe=observe)
    else:
        made = cut_chunks(encode, split_batch(local, fetched.rows, chunk), model.encoder.buffers())
        features = model.combiner.open(made, observe=observe)
    with model.autocast, seeded(seed_for(whole.seed, "objectives", process), device):
        losses = losses_of(model, features, local, whole)
    share, learnt = 1.0 / recipe.training.accumulate, model.uncertainty
    weighed = {name: at_least_float32(loss.value) for name, loss in losses.items()}
    if learnt is not None:
        weighed = {name: learnt.weigh(name, value) for name, value in weighed.items()}
    model.combiner.accumulate(
        {name: model.scaler.scale(value * (recipe.objectives[name].weight * share)) for name, value in weighed.items()},
        seed=whole.seed,
        observe=observe,
        loss_scale=model.scaler.get_scale(),
        last=last,
    )
    values = {name: loss.value.detach() for name, loss in losses.items()}
    counts = {name: {"anchors": loss.num_anchors, **loss.counts} for name, loss in losses.items()}
    if learnt is not None:
        counts = {name: {**each, "learnt_weight": learnt.weight(name)} for name, each in counts.items()}
    return values, counts


def losses_of(model: Model, features: Features, local: Batch, whole: Batch) -> dict[str, Loss]:
    """The loss of each objective on the global batch; objectives that embed alike embed, and gather, once."""
    losses: dict[str, Loss] = {}
    embedded: dict[Hashable, dict[str, Tensor]] = {}
    for name, objective in model.objectives.items():
        alike = objective.embeds_with
        if alike not in embedded:
            embedded[alike] = {key: gather(tensor) for key, tensor in objective.embed(features, local).items()}
        losses[name] = objective.loss(embedded[alike], whole)
    return losses


def apply_gradients(model: Model, clip: float | None) -> Tensor:
    """Reconcile, unscale, clip and step; returns the norm of the whole gradient before clipping."""
    scale = model.scaler.get_scale()
    model.combiner.reconcile()
    model.scaler.unscale_(model.optimizer)
    gradients = [parameter.grad for parameter in model.combiner.parameters if parameter.grad is not None]
    norm = total_norm(gradients)
    if clip is not None:
        clip_to(gradients, clip, norm)
    model.scaler.step(model.optimizer)
    model.scaler.update()
    # It falls where the step was left out, unless it is 0 already.
    model.combiner.commit(applied=model.scaler.get_scale() >= scale > 0)
    return norm
