"""The one training loop, visible from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from bolus.data.batches.columns import TrainingColumns
from bolus.data.cohort.cohort import Cohort, CohortLike
from bolus.data.copies.seen import load_seen, save_seen
from bolus.data.images.clips import open_samples
from bolus.embedding.seen import remember_training
from bolus.encoders.folders.folder import lineage_of
from bolus.encoders.folders.modality_folder import save_encoders
from bolus.encoders.modalities import each_encoder
from bolus.errors import InterruptedRunError, TrainingError
from bolus.optimization import lr_factor, peak_lr
from bolus.progress import Meter
from bolus.provenance import digest_of
from bolus.recipe import Recipe
from bolus.recipes.keys import Overrides
from bolus.run import Run
from bolus.site_key import open_site_key
from bolus.training.assembly import bound_to_processes, build_model, check_precision, resolve
from bolus.training.checkpoint import restore, save_checkpoint
from bolus.training.compiling import eager, explain_compiling
from bolus.training.health.conflicts import weigh_conflicts
from bolus.training.health.health import HealthFinding, tell, watch
from bolus.training.health.online_probe import check_probe
from bolus.training.health.start_probe import against_start, patience, watch_start
from bolus.training.loaders import build_loader, content_hash, data_hash, open_images, total_steps, unread_loader
from bolus.training.memory import explain_memory
from bolus.training.processes import any_process, broadcast_parameters, launched, same_everywhere
from bolus.training.sharding import whole_encoder
from bolus.training.signals import awaiting
from bolus.training.step import apply_gradients, training_step
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
        The run, finished, or stopped at `training.max_hours`, in which opening and decoding count.

    Raises:
        CohortError, RecipeError: the cohort or recipe cannot be used, or do not go together.
        TrainingError: the folder holds another run.
        NonFiniteLossError: a loss became NaN or infinite, or fp16 left out every step; the last good checkpoint stands.
        InterruptedRunError: SIGTERM, SIGINT, SIGHUP or SIGUSR1 came; the step was finished (with several processes,
            all until the next line of metrics) and a checkpoint written.
        UsageError: the site's key, under which training patients are hashed, cannot be made, or others can read it.
        OutOfMemoryError: a step does not fit; the message names the keys to change.
    """
    cohort = Cohort.open(cohort)
    recipe = resolve(Recipe.load(recipe).override(overrides))
    state = launched()
    quiet = quiet or not state.is_main_process
    run = Run.claim(Path(out), cohort, recipe, resume=resume)
    if run.status == "finished":
        return run
    with run.alone() if state.is_main_process else nullcontext(), run.explain_no_room():
        return _train(run, cohort, recipe, cache, quiet)


def _train(run: Run, cohort: Cohort, recipe: Recipe, cache: Path | None, quiet: bool) -> Run:
    """The run, of which nobody else writes anything."""
    spec, state, warnings, opened = recipe.training, launched(), list[str](), time.monotonic()
    if state.is_main_process and run.status == "new":
        site = open_site_key(outside=run.folder)
        if site.made:
            warnings.append(
                f"the site's key was made, {site.path}: keep it, for without it nobody can tell any more whom an "
                "encoder was trained on"
            )
    # Whatever is wrong with recipe and cohort shows before the first image is decoded.
    check_tracker(spec.tracker)
    check_probe(cohort, recipe)
    samples = open_samples(cohort, recipe.images.unit)  # of clip files, their cohort has a row a frame
    check_precision(recipe, state.device)
    model = build_model(recipe, state.device, TrainingColumns(samples, recipe.bins))
    unread = unread_loader(cohort, recipe, model.needs, cache)
    store = open_images(samples.cohort, recipe, cache, quiet)
    loader = build_loader(samples.cohort, samples, store, recipe, model.needs, state, before=unread)

    step, spent = 0, 0.0
    begun_with: list[HealthFinding] = []  # of pretrained weights, before the first step
    looked: list[dict[str, Any]] = []  # at conflicts, since the last look at the run's health
    facts = {
        "num_training_samples": len(loader.positions),
        "data_hash": data_hash(samples.cohort, loader),
        "content_hash": content_hash(samples.cohort, loader),
        "processes": state.num_processes,
        "device": state.device.type,
        "threads": torch.get_num_threads(),
    }
    if run.status != "new":
        warnings += [*run.recognise(facts, bound_to_processes(model, recipe)), *run.torn]
        restored = restore(run.checkpoints, model.modules, model.optimizer)
        if restored is not None:
            step, spent = restored.step, restored.extra["seconds"]
            model.scaler.load_state_dict(restored.extra["scaler"])
            model.combiner.load_state(restored.extra.get("combiner", {}))
            warnings += restored.remarks
    if not same_everywhere(step, state.device):
        raise TrainingError(f"processes see different checkpoints of {run.folder}; the run folder must be shared")
    for module in model.modules.values():
        broadcast_parameters(module)
    state.wait_for_everyone()
    at_start = whole_encoder(model.encoder) if step == 0 else model.encoder
    if state.is_main_process:
        if run.status == "new":
            # Read now: the folder it starts from may be gone when this run ends.
            specs = [each.spec for each in each_encoder(model.encoder)]
            begun = dict.fromkeys(spec.backbone for spec in specs if spec.pretrained)
            ancestors = [training for folder in begun for training in lineage_of(Path(folder))]
            run.create(cohort, recipe, store.quarantined, {**facts, "ancestors": ancestors})
            save_seen({key: each for folder in begun for key, each in load_seen(Path(folder)).items()}, run.folder)
        run.rewind(step)
        looked = run.since_health("conflicts")
        with eager(recipe):
            begun_with = watch_start(run, at_start, store, samples, recipe) if step == 0 else []

    total, steps_per_epoch = total_steps(recipe, loader), loader.batches_per_epoch / spec.accumulate
    peak = peak_lr(recipe.optimizer, recipe.sampling.batch_size * spec.accumulate)
    health_steps = max(1, round(spec.health_epochs * steps_per_epoch)) if spec.health_epochs else total
    batches = loader.iterate(step * spec.accumulate, total * spec.accumulate)
    began = saved = time.monotonic()
    window, stopped = Window(), False
    ends = opened + 3600 * (spec.max_hours if spec.max_hours is not None else math.inf)  # opening and decoding count

    with (
        explain_memory(recipe),
        explain_compiling(recipe),
        recording(run, spec.tracker) as record,
        Meter(recipe.name, total, done=step, quiet=quiet) as meter,
        awaiting() as signals,
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
            for left in reversed(range(spec.accumulate)):
                fetched = next(batches)
                took = training_step(model, loader, fetched, recipe, step / total, observe=observe, last=left == 0)
                window.add(fetched, *took)
            norm = apply_gradients(model, spec.clip)
            window.norms.append(norm)
            step += 1

            logs, last = step % spec.log_steps == 0 or step == total, step == total
            looks = step % health_steps == 0 or last
            saves = last or (spec.checkpoint_steps is not None and step % spec.checkpoint_steps == 0)
            now = time.monotonic()
            if logs and not last:  # clocks differ between processes, so one answer holds for all
                stopped = any_process(now >= ends or bool(signals), state.device)
                saves = any_process(stopped or saves or now - saved >= 60 * spec.checkpoint_minutes, state.device)
            elif (signals or now >= ends) and not last and state.num_processes == 1:  # several agree when they log
                stopped = saves = True
            paused = time.monotonic()
            # The last good checkpoint must stay good, so losses are looked at before anything is written or embedded;
            # on an accelerator not oftener than that, because looking waits for the device.
            if state.device.type == "cpu" or logs or looks or saves:
                window.require_finite(step, run, gradients=spec.precision != "fp16")
            if logs and spec.precision == "fp16":
                window.require_applied(step, model.combiner.skipped, model.scaler.get_scale(), run)
            if logs and state.is_main_process:
                epoch, images = step / steps_per_epoch, loader.images_per_sample
                line = window.line(step, epoch, lr, norm, state.num_processes, images)
                record(line)
                speed, wait = line["images_per_second"], 100 * line["data_wait"]
                meter.update(step, f"loss {line['loss']:.4f}, {speed:.0f} images/s, data wait {wait:.1f} %")
            if model.combiner.conflicts is not None and state.is_main_process:
                looked.append(model.combiner.conflicts.to_json())
                record({"kind": "conflicts", "step": step, **looked[-1]})
            looked_at = whole_encoder(model.encoder) if looks else model.encoder
            if looks and state.is_main_process:
                lines = run.metrics()
                found = find_idle(lines)
                with eager(recipe):
                    seen = watch(looked_at, store, samples, recipe, idle=len(found) == len(model.objectives))
                gained, compared = against_start(
                    seen.probed, lines, looks=patience(total, health_steps), seed=spec.seed
                )
                findings = [*found, *seen.findings, *gained, *weigh_conflicts(looked, recipe.combiner.kind)]
                looked = []
                found_json = [finding.to_json() for finding in findings]
                record({"kind": "health", "step": step, "findings": found_json, **compared})
                tell(meter, findings)
            if saves:
                saved = time.monotonic()
                extra = {
                    "scaler": model.scaler.state_dict(),
                    "combiner": model.combiner.state(),
                    "seconds": saved - began + spent,
                }
                writes = state.is_main_process
                save_checkpoint(run.checkpoints, step, model.modules, model.optimizer, extra, writes=writes)
            if logs:
                window = Window()
            else:  # the window's clock stands still while the run looks at itself and saves
                window.began += time.monotonic() - paused
    state.wait_for_everyone()

    trained = whole_encoder(model.encoder)
    if state.is_main_process:
        if not stopped:
            lineage = [run.training, *run.record["ancestors"]]
            remembered = remember_training(samples.cohort, store, run.training) | load_seen(run.folder)
            save_encoders(trained, run.encoder, store.preprocessing, card=run.card, lineage=lineage, seen=remembered)
        spent += time.monotonic() - began
        status = "finished" if not stopped else "interrupted" if signals else "stopped"
        run.finish(status, steps=step, hours=spent / 3600, weights=digest_of(model.modules | {"encoder": trained}))
    state.wait_for_everyone()
    if stopped and signals:
        raise InterruptedRunError(
            f"{signals[0].name} ended the run at step {step} of {total}, where a checkpoint is written; "
            f"go on with the same command and --resume ({run.folder})",
            signals[0],
        )
    return Run(run.folder)
