"""The one training loop, visible from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bolus.data.batches.batch import Batch, seed_for
from bolus.data.batches.columns import TrainingColumns
from bolus.data.batches.loading import Fetched, Loader
from bolus.data.cohort.cohort import Cohort, CohortLike
from bolus.data.images.clips import open_samples
from bolus.encoders.backbone import seeded
from bolus.encoders.families.hub import can_checkpoint, find_config, is_named
from bolus.encoders.features import Features
from bolus.encoders.folders.folder import lineage_of
from bolus.encoders.folders.modality_folder import save_encoders
from bolus.encoders.modalities import each_encoder
from bolus.errors import OutOfMemoryError, TrainingError
from bolus.objectives import OBJECTIVES
from bolus.objectives.base import Loss
from bolus.objectives.heads import at_least_float32
from bolus.optimization import lr_factor, peak_lr
from bolus.progress import Meter
from bolus.provenance import digest_of
from bolus.recipe import Recipe
from bolus.recipes.keys import Overrides
from bolus.run import Run
from bolus.training.assembly import Model, build_model, check_precision, resolve
from bolus.training.checkpoint import last_checkpoint, load_checkpoint, save_checkpoint
from bolus.training.gradcache import cut_chunks, split_batch
from bolus.training.health.conflicts import weigh_conflicts
from bolus.training.health.health import HealthFinding, tell, watch
from bolus.training.health.online_probe import check_probe
from bolus.training.health.start_probe import against_start, patience, watch_start
from bolus.training.loaders import build_loader, data_hash, open_images, total_steps, unread_loader
from bolus.training.processes import any_process, broadcast_parameters, gather, launched, same_everywhere
from bolus.training.tracking import check_tracker, recording
from bolus.training.window import Window, find_idle


def pretrain(
    cohort: CohortLike,
    *,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    out: str | Path,
    overrides: Overrides = (),
    resume: bool = False,
    cache: Path | None = None,
    quiet: bool = False,
) -> Run:
    """Pretrain an encoder on the training patients of a cohort.

    Args:
        cohort: cohort.yaml, a table with conventional column names, or an open cohort.
        cache: cache folder; the user's where None.
        quiet: show no progress.
        recipe: a shipped name, a YAML file, a mapping, or a Recipe.
        out: the run folder; must be new, or hold an unfinished run when `resume` is given.
        overrides: `key=value` assignments, or a mapping of keys, into the recipe.
        resume: go on from the last checkpoint; final weights equal an uninterrupted run's bit for bit on the CPU.

    Returns:
        The run, finished, or stopped at `training.max_hours`.

    Raises:
        CohortError, RecipeError: the cohort or recipe cannot be used, or do not go together.
        TrainingError: the folder holds another run.
        NonFiniteLossError: a loss became NaN or infinite; the last good checkpoint stands.
        OutOfMemoryError: a step does not fit; the message names the keys to change.
    """
    cohort = Cohort.open(cohort)
    recipe = resolve(Recipe.load(recipe).override(overrides))
    spec, state = recipe.training, launched()
    quiet = quiet or not state.is_main_process
    run = Run.claim(Path(out), cohort, recipe, resume=resume)
    if run.status == "finished":
        return run
    # Whatever is wrong with recipe and cohort shows before the first image is decoded.
    check_tracker(spec.tracker)
    check_probe(cohort, recipe)
    samples = open_samples(cohort, recipe.images.unit)  # of clip files, their cohort has a row a frame
    check_precision(recipe, state.device)
    model = build_model(recipe, state.device, TrainingColumns(samples, recipe.bins))
    unread_loader(cohort, recipe, model.needs, cache)
    store = open_images(samples.cohort, recipe, cache, quiet)
    loader = build_loader(samples.cohort, samples, store, recipe, model.needs, state)

    step, spent, warnings = 0, 0.0, []
    begun_with: list[HealthFinding] = []  # of pretrained weights, before the first step
    looked: list[dict[str, Any]] = []  # at conflicts, since the last look at the run's health
    facts = {
        "num_training_samples": len(loader.positions),
        "data_hash": data_hash(samples.cohort, loader),
        "processes": state.num_processes,
        "device": state.device.type,
        "threads": torch.get_num_threads(),
    }
    if run.status != "new":
        warnings = run.recognise(facts)
        checkpoint = last_checkpoint(run.checkpoints)
        if checkpoint is not None:
            step, extra = load_checkpoint(checkpoint, model.modules, model.optimizer)
            model.scaler.load_state_dict(extra["scaler"])
            model.combiner.load_state(extra.get("combiner", {}))
            spent = extra["seconds"]
    if not same_everywhere(step, state.device):
        raise TrainingError(f"processes see different checkpoints of {run.folder}; the run folder must be shared")
    for module in model.modules.values():
        broadcast_parameters(module)
    state.wait_for_everyone()
    if state.is_main_process:
        if run.status == "new":
            # Read now: the folder it starts from may be gone when this run ends.
            specs = [each.spec for each in each_encoder(model.encoder)]
            begun = dict.fromkeys(spec.backbone for spec in specs if spec.pretrained)
            ancestors = [training for folder in begun for training in lineage_of(Path(folder))]
            run.create(cohort, recipe, store.quarantined, {**facts, "ancestors": ancestors})
        run.rewind(step)
        looked = run.since_health("conflicts")
        begun_with = watch_start(run, model.encoder, store, samples, recipe) if step == 0 else []

    total, steps_per_epoch = total_steps(recipe, loader), loader.batches_per_epoch / spec.accumulate
    peak = peak_lr(recipe.optimizer, recipe.sampling.batch_size * spec.accumulate)
    health_steps = max(1, round(spec.health_epochs * steps_per_epoch)) if spec.health_epochs else total
    batches = loader.iterate(step * spec.accumulate, total * spec.accumulate)
    began = saved = time.monotonic()
    window, stopped = Window(), False
    hours = spec.max_hours if spec.max_hours is not None else math.inf

    with (
        explain_memory(recipe),
        recording(run, spec.tracker) as record,
        Meter(recipe.name, total, done=step, quiet=quiet) as meter,
    ):
        for warning in warnings:
            meter.say(f"! {warning}")
        tell(meter, begun_with)
        while step < total and not stopped:
            lr = peak * lr_factor(recipe.schedule, step, total_steps=total, steps_per_epoch=steps_per_epoch)
            for group in model.optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
            every = recipe.combiner.conflict_steps
            observe = every is not None and step % every == 0
            for _ in range(spec.accumulate):
                fetched = next(batches)
                window.add(fetched, *training_step(model, loader, fetched, recipe, step / total, observe=observe))
            norm = apply_gradients(model, spec.clip)
            step += 1

            logs, last = step % spec.log_steps == 0 or step == total, step == total
            looks = step % health_steps == 0 or last
            saves = last or (spec.checkpoint_steps is not None and step % spec.checkpoint_steps == 0)
            if logs and not last:  # clocks differ between processes, so one answer holds for all
                now = time.monotonic()
                stopped = any_process(now - began >= 3600 * hours, state.device)
                saves = any_process(stopped or saves or now - saved >= 60 * spec.checkpoint_minutes, state.device)
            paused = time.monotonic()
            # The last good checkpoint must stay good, so losses are looked at before anything is written; on an
            # accelerator not oftener than that, because looking waits for the device.
            if state.device.type == "cpu" or logs or saves:
                window.require_finite(step, norm if spec.precision != "fp16" else None, run)
            if logs and state.is_main_process:
                epoch, images = step / steps_per_epoch, loader.images_per_sample
                line = window.line(step, epoch, lr, norm, state.num_processes, images)
                record(line)
                speed, wait = line["images_per_second"], 100 * line["data_wait"]
                meter.update(step, f"loss {line['loss']:.4f}, {speed:.0f} images/s, data wait {wait:.1f} %")
            if model.combiner.conflicts is not None and state.is_main_process:
                looked.append(model.combiner.conflicts.to_json())
                record({"kind": "conflicts", "step": step, **looked[-1]})
            if looks and state.is_main_process:
                lines = run.metrics()
                found = find_idle(lines)
                seen = watch(model.encoder, store, samples, recipe, idle=len(found) == len(model.objectives))
                gained, compared = against_start(
                    seen.probed, lines, looks=patience(total, health_steps), seed=spec.seed
                )
                findings = [*found, *seen.findings, *gained, *weigh_conflicts(looked)]
                looked = []
                found_json = [finding.to_json() for finding in findings]
                record({"kind": "health", "step": step, "findings": found_json, **compared})
                tell(meter, findings)
            if saves:
                saved = time.monotonic()
                if state.is_main_process:
                    extra = {
                        "scaler": model.scaler.state_dict(),
                        "combiner": model.combiner.state(),
                        "seconds": saved - began + spent,
                    }
                    save_checkpoint(run.checkpoints, step, model.modules, model.optimizer, extra)
            if logs:
                window = Window()
            else:  # the window's clock stands still while the run looks at itself and saves
                window.began += time.monotonic() - paused
    state.wait_for_everyone()

    if state.is_main_process:
        if not stopped:
            own = {"salt": run.record["salt"], "keys": run.record["training_patients"]}
            lineage = [own, *run.record["ancestors"]]
            save_encoders(model.encoder, run.encoder, store.preprocessing, card=run.card, lineage=lineage)
        spent += time.monotonic() - began
        status = "stopped" if stopped else "finished"
        run.finish(status, steps=step, hours=spent / 3600, weights=digest_of(model.modules))
    state.wait_for_everyone()
    return Run(run.folder)


def training_step(
    model: Model, loader: Loader, fetched: Fetched, recipe: Recipe, progress: float, *, observe: bool = False
) -> tuple[dict[str, Tensor], dict[str, dict[str, int]]]:
    """Forward one batch and accumulate its gradients; returns unweighted losses and what each of them counted.

    With `observe`, the combiner looks at how the objectives stand to each other. Dropout and dropped paths are a
    function of the batch, the process and the chunk, so that a run that is resumed, and the second forward of a chunk,
    draw what was drawn before.
    """
    device, chunk = next(model.encoder.parameters()).device, recipe.sampling.chunk
    local, whole = loader.batch(fetched, device=device, progress=progress)
    process, asked = launched().process_index, {"levels": model.needs.levels, "grid": model.needs.grid}

    def encode(part: Batch, *place: int) -> Features:
        with model.autocast, seeded(seed_for(whole.seed, "encoder", process, *place), device):
            return model.encoder.encode(part.views, part.rows, frame_mask=part.frame_mask, **asked)

    if chunk is None:
        features = model.combiner.open(encode(local), observe=observe)
    else:
        made = cut_chunks(encode, split_batch(local, fetched.rows, chunk), model.encoder.buffers())
        features = model.combiner.open(made, observe=observe)
    with model.autocast, seeded(seed_for(whole.seed, "objectives", process), device):
        losses: dict[str, Loss] = {}
        embedded: dict[Hashable, dict[str, Tensor]] = {}
        for name, objective in model.objectives.items():
            alike = objective.embeds_with
            if alike not in embedded:
                embedded[alike] = {key: gather(tensor) for key, tensor in objective.embed(features, local).items()}
            losses[name] = objective.loss(embedded[alike], whole)
    share = 1.0 / recipe.training.accumulate
    model.combiner.accumulate(
        {
            name: model.scaler.scale(at_least_float32(loss.value) * (recipe.objectives[name].weight * share))
            for name, loss in losses.items()
        },
        seed=whole.seed,
        observe=observe,
        loss_scale=model.scaler.get_scale(),
    )
    values = {name: loss.value.detach() for name, loss in losses.items()}
    counts = {name: {"anchors": loss.num_anchors, **loss.counts} for name, loss in losses.items()}
    return values, counts


def apply_gradients(model: Model, clip: float | None) -> Tensor:
    """Reconcile, unscale, clip and step; returns the norm of the whole gradient before clipping."""
    scale = model.scaler.get_scale()
    model.combiner.reconcile()
    model.scaler.unscale_(model.optimizer)
    gradients = [parameter.grad for parameter in model.combiner.parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if clip is not None:
        nn.utils.clip_grads_with_norm_(model.combiner.parameters, clip, norm)
    model.scaler.step(model.optimizer)
    model.scaler.update()
    model.combiner.commit(applied=model.scaler.get_scale() >= scale)  # it falls where the step was left out
    return norm


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
        keys = ["sampling.batch_size", *sizes, *frames, *own, "training.precision=bf16"]
        # Of what is not named, it is not known here.
        named = filter(is_named, {recipe.encoder_of(name).backbone for name in ["", *recipe.modalities]})
        again = all(can_checkpoint(find_config(name), name) for name in named)
        if again and not recipe.training.activation_checkpointing:
            keys.append("training.activation_checkpointing=true")
        if len(recipe.objectives) > 1:
            apart = recipe.combiner.kind != "sum" and recipe.combiner.scope == "encoder"
            keys += ["combiner.scope=features"] if apart else []
            keys += ["combiner.conflict_steps=null"] if recipe.combiner.conflict_steps is not None else []
        held = recipe.sampling.chunk or recipe.sampling.batch_size // launched().num_processes
        keys += [f"sampling.chunk={held // 2}"] if held > 3 else []
        shape = f"{recipe.sampling.batch_size} samples x {recipe.images.views} views"
        shape += f" x {recipe.images.frames} frames" if clips else ""
        raise OutOfMemoryError(
            f"a step of {shape} at {recipe.images.size} pixels does not fit into memory; "
            f"lower one of {', '.join(keys)} "
            "(training.accumulate keeps the samples of a step, and sampling.chunk those that are compared, too)"
        ) from error
