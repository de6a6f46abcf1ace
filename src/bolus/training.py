"""The one training loop, visible from top to bottom."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, nn

from bolus.assembly import Model, build_loader, build_model, contract, open_images, total_steps
from bolus.checkpoint import digest_of, last_checkpoint, load_checkpoint, save_checkpoint
from bolus.data.cache import build_store
from bolus.data.cohort import Cohort
from bolus.data.loading import Fetched, Loader
from bolus.encoders.folder import save_encoder
from bolus.errors import CohortError, NonFiniteLossError, OutOfMemoryError, name_rows
from bolus.gradients import any_process, broadcast_parameters, gather
from bolus.health import watch
from bolus.optimization import lr_factor, peak_lr
from bolus.progress import Meter
from bolus.recipe import Recipe
from bolus.run import Run


@dataclass(frozen=True)
class DryRun:
    """What two steps say of a whole run.

    Args:
        images_per_second: views through the encoder, all processes together.
        memory_gib: peak of the process (CPU) or of the device.
        steps: of the whole run.
        hours: to its end, without decoding.
    """

    images_per_second: float
    memory_gib: float
    steps: int
    hours: float


def pretrain(
    cohort: str | Path | Cohort,
    *,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    out: str | Path,
    overrides: Iterable[str] = (),
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
        overrides: `key=value` assignments into the recipe.
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
    recipe = Recipe.load(recipe).override(overrides)
    spec, state = recipe.training, PartialState()
    quiet = quiet or not state.is_main_process
    run = Run.claim(Path(out), cohort, recipe, resume=resume)
    if run.status == "finished":
        return run
    store = open_images(cohort, recipe, cache, quiet)
    model = build_model(recipe, state.device)
    loader = build_loader(cohort, cohort.samples(recipe.images.unit), store, recipe, model.needs, state)

    step, spent = 0, 0.0
    checkpoint = last_checkpoint(run.checkpoints)
    if checkpoint is not None:
        step, extra = load_checkpoint(checkpoint, model.modules, model.optimizer)
        model.scaler.load_state_dict(extra["scaler"])
        spent = extra["seconds"]
    for module in model.modules.values():
        broadcast_parameters(module)
    if state.is_main_process:
        if run.status == "new":
            run.create(cohort, recipe, store.quarantined)
        run.rewind(step)

    total, steps_per_epoch = total_steps(recipe, loader), loader.batches_per_epoch / spec.accumulate
    peak = peak_lr(recipe.optimizer, recipe.sampling.batch_size * spec.accumulate)
    health_steps = max(1, round(spec.health_epochs * steps_per_epoch)) if spec.health_epochs else total
    batches = loader.iterate(step * spec.accumulate, total * spec.accumulate)
    began = saved = time.monotonic()
    window, stopped = Window(), False

    with explain_memory(recipe), Meter(recipe.name, total, done=step, quiet=quiet) as meter:
        while step < total and not stopped:
            lr = peak * lr_factor(recipe.schedule, step, total_steps=total, steps_per_epoch=steps_per_epoch)
            for group in model.optimizer.param_groups:
                group["lr"] = lr
            for _ in range(spec.accumulate):
                fetched = next(batches)
                window.add(fetched, *training_step(model, loader, fetched, recipe, step / total))
            norm = apply_gradients(model, spec.clip)
            step += 1

            logs = step % spec.log_steps == 0 or step == total
            looks = step % health_steps == 0 or step == total
            elapsed = time.monotonic() - began + spent
            if spec.max_hours is not None and step < total:
                stopped = any_process(elapsed >= 3600 * spec.max_hours, state.device)
            due = time.monotonic() - saved >= 60 * spec.checkpoint_minutes
            due = due or (spec.checkpoint_steps is not None and step % spec.checkpoint_steps == 0)
            saves = due or stopped or step == total
            # The last good checkpoint must stay good, so losses are looked at before anything is written; on an
            # accelerator not oftener than that, because looking waits for the device.
            if state.device.type == "cpu" or logs or saves:
                window.require_finite(step, norm if spec.precision != "fp16" else None, run)
            if logs and state.is_main_process:
                line = window.line(step, step / steps_per_epoch, lr, norm, state.num_processes, recipe.images.views)
                run.append(line)
                speed, wait = line["images_per_second"], 100 * line["data_wait"]
                meter.update(step, f"loss {line['loss']:.4f}, {speed:.0f} images/s, data wait {wait:.1f} %")
            if looks and state.is_main_process:
                findings = watch(model.encoder, store, cohort, recipe)
                run.append({"kind": "health", "step": step, "findings": [finding.to_json() for finding in findings]})
                for finding in findings:
                    meter.say(("  " if finding.good else "! ") + finding.sentence)
            if saves and state.is_main_process:
                extra = {"scaler": model.scaler.state_dict(), "seconds": elapsed}
                save_checkpoint(run.checkpoints, step, model.modules, model.optimizer, extra)
                saved = time.monotonic()
            if logs:
                window = Window()
            else:  # the clock of the window stands still while the run looks at itself and saves
                window.began += time.monotonic() - began + spent - elapsed
    state.wait_for_everyone()

    if state.is_main_process:
        if not stopped:
            save_encoder(model.encoder, run.encoder, preprocessing=store.preprocessing.to_json(), card=run.card())
        hours = (time.monotonic() - began + spent) / 3600
        run.finish("stopped" if stopped else "finished", steps=step, hours=hours, weights=digest_of(model.modules))
    state.wait_for_everyone()
    return Run(run.folder)


@dataclass
class Window:
    """What happened since the last line of metrics."""

    losses: list[dict[str, Tensor]] = field(default_factory=list)
    anchors: dict[str, int] = field(default_factory=dict)
    samples: int = 0
    wait: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    def add(self, fetched: Fetched, losses: dict[str, Tensor], anchors: dict[str, int]) -> None:
        """Count one batch."""
        self.losses.append(losses)
        self.samples += len(fetched.local)
        self.wait += fetched.wait
        for name, count in anchors.items():
            self.anchors[name] = self.anchors.get(name, 0) + count

    def require_finite(self, step: int, norm: Tensor | None, run: Run) -> None:
        """Raise NonFiniteLossError where a loss, or the gradient's norm, is NaN or infinite."""
        bad = sorted({name for losses in self.losses for name, loss in losses.items() if not loss.isfinite()})
        if not bad and (norm is None or norm.isfinite()):
            return
        what = f"objective {', '.join(map(repr, bad))} became NaN or infinite" if bad else "the gradient is not finite"
        checkpoint = last_checkpoint(run.checkpoints)
        kept = f"the last good checkpoint is {checkpoint.name}" if checkpoint else "no checkpoint was due yet"
        raise NonFiniteLossError(
            f"{what} at step {step}; {kept}. Lower optimizer.lr, set training.clip, or use training.precision=bf16."
        )

    def line(self, step: int, epoch: float, lr: float, norm: Tensor, processes: int, views: int) -> dict[str, Any]:
        """The window as one line of metrics; `loss` is the unweighted sum of the objectives."""
        seconds = max(time.perf_counter() - self.began, 1e-9)
        means = {name: float(torch.stack([one[name] for one in self.losses]).mean()) for name in self.losses[0]}
        return {
            "kind": "train",
            "step": step,
            "epoch": round(epoch, 4),
            "lr": lr,
            "loss": sum(means.values()),
            "losses": means,
            "anchors": {name: count / len(self.losses) for name, count in self.anchors.items()},
            "gradient_norm": float(norm),
            "images_per_second": self.samples * views * processes / seconds,
            "data_wait": self.wait / seconds,
        }


def training_step(
    model: Model, loader: Loader, fetched: Fetched, recipe: Recipe, progress: float
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Forward one batch and accumulate its gradients; returns unweighted losses and how many anchors each had."""
    device = next(model.encoder.parameters()).device
    local, whole = loader.batch(fetched, device=device, progress=progress)
    with model.autocast:
        features = model.encoder.encode(local.views, local.rows, levels=model.needs.levels, grid=model.needs.grid)
        losses = {}
        for name, objective in model.objectives.items():
            embedded = {key: gather(tensor) for key, tensor in objective.embed(features, local).items()}
            losses[name] = objective.loss(embedded, whole)
    share = 1.0 / recipe.training.accumulate
    model.combiner.accumulate(
        {
            name: model.scaler.scale(loss.value.float() * (recipe.objectives[name].weight * share))
            for name, loss in losses.items()
        }
    )
    values = {name: loss.value.detach() for name, loss in losses.items()}
    return values, {name: loss.num_anchors for name, loss in losses.items()}


def apply_gradients(model: Model, clip: float | None) -> Tensor:
    """Reconcile, unscale, clip and step; returns the norm of the whole gradient before clipping."""
    model.combiner.reconcile()
    model.scaler.unscale_(model.optimizer)
    norm = nn.utils.clip_grad_norm_(model.combiner.parameters, clip if clip is not None else float("inf"))
    model.scaler.step(model.optimizer)
    model.scaler.update()
    return norm


def dry_run(
    cohort: str | Path | Cohort,
    *,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Iterable[str] = (),
    cache: Path | None = None,
) -> DryRun:
    """Two real steps on the first batches: memory, images a second, and the time to finish; nothing is kept.

    Raises:
        CohortError, RecipeError, OutOfMemoryError: as `pretrain`.
    """
    cohort = Cohort.open(cohort)
    recipe = Recipe.load(recipe).override(overrides)
    spec, state = recipe.training, PartialState()
    model = build_model(recipe, state.device)
    samples = cohort.samples(recipe.images.unit)
    # Nothing is decoded but the images of these batches: every row counts as readable until it is read.
    store = build_store(cohort, contract(cohort, recipe), folder=cache, rows=np.zeros(0, np.int64))
    everything = np.ones(len(cohort), bool)
    loader = build_loader(cohort, samples, store, recipe, model.needs, state, readable=everything)
    rows = np.unique(np.concatenate([loader.table_rows(number) for number in range(2 * spec.accumulate)]))
    loader.store = build_store(cohort, contract(cohort, recipe), folder=cache, rows=rows)
    if loader.store.quarantined:
        reasons = [f"{name_rows([item.row])}: {item.reason}" for item in loader.store.quarantined]
        raise CohortError("images of the first batches cannot be read", reasons)
    seconds = []
    with explain_memory(recipe):
        for step in range(2):
            began = time.perf_counter()
            for number in range(step * spec.accumulate, (step + 1) * spec.accumulate):
                training_step(model, loader, loader.fetch(number), recipe, 0.0)
            apply_gradients(model, spec.clip).item()  # .item() waits for the device
            seconds.append(time.perf_counter() - began)
    total = total_steps(recipe, loader)
    if state.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**30
    else:
        kibi = 1 if sys.platform == "darwin" else 1024
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kibi / 2**30
    # The second step is free of first-call costs.
    speed = recipe.sampling.batch_size * recipe.images.views * spec.accumulate / seconds[1]
    return DryRun(speed, memory, total, seconds[1] * total / 3600)


@contextmanager
def explain_memory(recipe: Recipe) -> Iterator[None]:
    """Turn an out-of-memory error of the step into one that names the keys to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
        if not known:
            raise
        widths = [f"objectives.{name}.width" for name, spec in recipe.objectives.items() if spec.kind == "varcov"]
        keys = ["sampling.batch_size", "images.size", *widths, "training.precision=bf16"]
        raise OutOfMemoryError(
            f"a step of {recipe.sampling.batch_size} samples x {recipe.images.views} views at {recipe.images.size} "
            f"pixels does not fit into memory; lower one of {', '.join(keys)} "
            "(training.accumulate keeps the samples of a step)"
        ) from error
