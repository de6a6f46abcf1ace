"""Ablation: arms, encoder passes counted in a real model, cells that are stopped and gone on with, one comparison."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import PartialState
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch import nn

import bolus.training.loop as training_module
from bolus.ablation import running, schedule
from bolus.ablation.arms import COMBINERS, find_arms, orphan
from bolus.ablation.asking import check_task, folder_name, read_answers
from bolus.ablation.budget import Pace, fit_to_budget, passes_of_run, steps_within
from bolus.ablation.comparison import RANDOM_INIT, Comparison, Line, compare_cells, results_of
from bolus.ablation.running import ablate
from bolus.ablation.wording import beside, sentences, table
from bolus.data.batches.columns import TrainingColumns
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.holdout import validation_cohort
from bolus.errors import EvaluationError, NonFiniteLossError, OutOfMemoryError, RecipeError, TrainingError, UsageError
from bolus.evaluation.statistics.answers import Answer, mean_auroc, mean_of_known
from bolus.evaluation.statistics.arms import compare_arms
from bolus.evaluation.statistics.bootstrap import patient_bootstrap
from bolus.evaluation.statistics.intervals import Estimate
from bolus.evaluation.statistics.metrics import auroc, mae
from bolus.evaluation.statistics.results import MAJORITY, read_results
from bolus.evaluation.statistics.verdict import verdict_of
from bolus.evaluation.tasks import task_of
from bolus.optimization import lr_factor
from bolus.recipe import Recipe
from bolus.training.assembly import build_model, resolve
from bolus.training.loaders import build_loader, open_images
from bolus.training.step import apply_gradients, training_step

VIEWS = {"kind": "contrast", "relation": "views", "dim": 8, "hidden": 8, "hidden_norm": False}
GLOBAL = {"kind": "varcov", "width": 8}
TINY: dict[str, Any] = {
    "name": "tiny",
    "encoder": {"backbone": "r18w32", "stem_pool": False},
    "images": {"size": 16, "views": 2},
    "sampling": {"batch_size": 4, "partners": 0},
    "objectives": {"views": VIEWS, "global": GLOBAL},
    "combiner": {"conflict_steps": None},
    "optimizer": {"kind": "adamw", "lr": 0.001},
    "training": {"epochs": 1, "max_steps": 2, "log_steps": 1, "health_epochs": None, "checkpoint_steps": 1},
}


@dataclass
class Ground:
    """A cohort of 14 patients with a fixed split, and its cache."""

    table: Path
    cache: Path

    @property
    def cohort(self) -> Cohort:
        return Cohort.open(self.table)


def passes_of_step(recipe: Recipe) -> float:
    """Encoder passes of a step, on average over a long run."""
    every = recipe.combiner.conflict_steps or 1
    return passes_of_run(recipe, every) / every


def make_cohort(folder: Path, *, strange_test: bool = False) -> Path:
    """With `strange_test` the test patients have other pictures and the opposite labels."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    lines = ["image,mask,patient,visit,sick,severity,eye,split"]
    square = np.zeros((16, 16), np.uint8)
    square[4:10, 4:10] = 1
    PillowImage.fromarray(square).save(folder / "mask.png")
    for patient in range(14):
        split = "train" if patient < 6 else "val" if patient < 10 else "test"
        for image in range(4):
            sick, visit, eye = patient % 2, image // 2, ("left", "right")[image % 2]
            pixels = rng.integers(0, 120, (16, 16))
            if sick:
                pixels[4:10, 4:10] += 100
            if split == "test" and strange_test:
                pixels, sick = 200 - pixels, 1 - sick
            PillowImage.fromarray(pixels.astype(np.uint8)).save(folder / f"{patient}_{image}.png")
            lines.append(
                f"{patient}_{image}.png,mask.png,P{patient:03d},{visit},{'ny'[sick]},{sick + visit},{eye},{split}"
            )
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    (folder / "cohort.yaml").write_text(
        "table: table.csv\nroles: {'label:sick': sick, 'score:severity': severity, laterality: eye}\n"
    )
    return folder / "cohort.yaml"


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    folder = tmp_path_factory.mktemp("ablation")
    return Ground(make_cohort(folder / "cohort"), folder / "cache")


def run(ground: Ground, out: Path, **changes: Any) -> Any:
    said: list[str] = []
    given: dict[str, Any] = {
        "recipe": Recipe.load(TINY), "over": "optimizer.lr=0.001,0.01", "task": "classify", "target": "sick",
        "seeds": 2, "min_patients": 1, "cache": ground.cache, "quiet": True, "say": said.append, "out": out,
    }  # fmt: skip
    cohort = changes.pop("cohort", ground.table)
    return ablate(cohort, **{**given, **changes})


@pytest.fixture(scope="module")
def done(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(ground, tmp_path_factory.mktemp("done") / "a")


def cells_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "cells.jsonl").read_text().splitlines()]


def weights_of(folder: Path) -> dict[str, str]:
    return {path.parent.name: json.loads(path.read_text())["weights"] for path in folder.glob("runs/*/run.json")}


# --- arms


def names(*args: Any, **kwargs: Any) -> list[str]:
    return [arm.name for arm in find_arms(*args, **kwargs).arms]


def test_objectives_stand_together_alone_and_left_out() -> None:
    assert names("comprer_bilateral") == [
        "all", "only bilateral", "only measures", "only reconstruction",
        "without bilateral", "without measures", "without reconstruction",
    ]  # fmt: skip
    arms = {arm.name: arm.recipe for arm in find_arms("comprer_bilateral").arms}
    assert list(arms["without measures"].objectives) == ["bilateral", "reconstruction"]
    assert arms["only measures"].objectives["measures"] == arms["all"].objectives["measures"]
    assert arms["only measures"].optimizer == arms["all"].optimizer


def test_of_two_objectives_without_one_is_only_the_other() -> None:
    assert names(Recipe.load(TINY)) == ["all", "only views", "only global"]


def test_an_arm_whose_shared_head_lost_its_owner_is_left_out_with_a_note() -> None:
    found = find_arms("gcl")
    left_out = [note for note in found.notes if "reads the head 'image'" in note]
    assert [note.split(" is left out")[0] for note in left_out] == [
        "only patient_pixel", "only position_pixel", "only phase_pixel",
    ]  # fmt: skip
    assert "without patient" in [arm.name for arm in found.arms], "others still own the head"
    assert not any(orphan(arm.recipe) for arm in found.arms)


def test_combiners() -> None:
    found = find_arms("gcl", over="combiners")
    assert [arm.name for arm in found.arms] == list(COMBINERS)
    assert found.reference.name == "sum"
    assert [(a.recipe.combiner.kind, a.recipe.combiner.scope) for a in found.arms][-1] == ("grad_mitigator", "features")
    assert all(arm.recipe.objectives == found.reference.recipe.objectives for arm in found.arms)


@pytest.mark.parametrize("over", ["encoder.mean=[0.5],[0.4]", "images.augment={preset: xray},{preset: mri}"])
def test_values_may_be_lists_or_mappings(over: str) -> None:
    assert len(find_arms("simclr", over=over).arms) == 2


def test_recipes_are_arms_by_their_names_and_overrides_hold_for_each(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(Recipe.load(TINY).to_yaml())
    found = find_arms(recipes=["simclr", str(tmp_path / "mine.yaml")], overrides=["images.size=32"])
    assert [arm.name for arm in found.arms] == ["simclr", "mine"]
    assert all(arm.recipe.images.size == 32 for arm in found.arms)
    with pytest.raises(RecipeError, match=r"arm 'simclr': .*global"):
        find_arms(recipes=["simclr", str(tmp_path / "mine.yaml")], overrides=["objectives.global=null"])


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"recipe": "simclr"}, UsageError, "one objective"),
        ({"recipe": "simclr", "over": "combiners"}, UsageError, "nothing to reconcile"),
        ({"recipe": "simclr", "over": "objective"}, UsageError, "expected objectives, combiners, or KEY=V1,V2"),
        ({"recipe": "simclr", "over": "optimizer.lr=0.1"}, UsageError, "two arms or more"),
        ({"recipe": "simclr", "over": "optimizer.lr=0.1,0.1"}, UsageError, "are the same"),
        ({"recipe": "simclr", "over": "optimizer.kind=sgd,adam"}, RecipeError, "optimizer.kind"),
        ({"recipe": "simclr", "over": "optimiser.lr=1,2"}, RecipeError, "did you mean 'optimizer'"),
        ({"recipe": "simclr", "over": "objectives.views.tau=1,2"}, RecipeError, "unknown key 'objectives.views.tau'"),
        ({"recipe": "simclr", "over": "training.epochs=1,2"}, UsageError, "same number of encoder passes"),
        ({"recipe": "gcl", "overrides": ["training.seed=1"]}, UsageError, "--seeds"),
        ({"recipe": "gcl", "overrides": ["training={seed: 1, precision: bf16}"]}, UsageError, "one by one"),
        ({"recipe": "gcl", "recipes": ["simclr"]}, UsageError, "leave out the single recipe"),
        ({}, UsageError, "a recipe is needed"),
    ],
)
def test_arms_that_cannot_be(kwargs: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        find_arms(**kwargs)


# --- encoder passes


class Counter:
    """Images that go through a module, forward and backward."""

    def __init__(self, module: nn.Module) -> None:
        self.forward, self.backward = 0, 0
        module.register_forward_hook(self.see)

    def see(self, module: nn.Module, given: Any, out: torch.Tensor) -> None:
        self.forward += len(out)
        if out.requires_grad:
            out.register_hook(self.back)

    def back(self, gradient: torch.Tensor) -> None:
        self.backward += len(gradient)


def count(ground: Ground, recipe: Recipe, steps: int, watched: Callable[[nn.Module], nn.Module]) -> int:
    """Passes of real steps, as the loop makes them."""
    recipe, cohort = resolve(recipe), ground.cohort
    samples = cohort.samples("image")
    model = build_model(recipe, torch.device("cpu"), TrainingColumns(samples))
    store = open_images(cohort, recipe, ground.cache, True)
    loader = build_loader(cohort, samples, store, recipe, model.needs, PartialState())
    assert isinstance(model.encoder, nn.Module)
    counter = Counter(watched(model.encoder))
    every = recipe.combiner.conflict_steps
    for step in range(steps):
        for part in range(recipe.training.accumulate):
            fetched = loader.fetch(step * recipe.training.accumulate + part)
            training_step(model, loader, fetched, recipe, 0.0, observe=every is not None and step % every == 0)
        apply_gradients(model, None)
    return counter.forward + counter.backward


def first_convolution(encoder: nn.Module) -> nn.Module:
    return next(module for module in encoder.modules() if isinstance(module, nn.Conv2d))


def inside_a_block(encoder: nn.Module) -> nn.Module:
    found = (m for name, m in encoder.named_modules() if ".layer.0." in name or ".layers.0." in name)
    return next(module for module in found if isinstance(module, nn.Linear))


KINDS = ("sum", "mean", "pcgrad", "grad_mitigator", "torchjd")


@pytest.mark.parametrize("every", [None, 2])
@pytest.mark.parametrize("scope", ["encoder", "features"])
@pytest.mark.parametrize("kind", KINDS)
def test_passes_are_those_that_the_combiner_makes(ground: Ground, kind: str, scope: str, every: int | None) -> None:
    objectives = {"views": VIEWS, "global": GLOBAL, "more": {**GLOBAL, "weight": 0.0}}
    combiner = {"kind": kind, "scope": scope, "conflict_steps": every}
    combiner |= {"aggregator": "MGDA"} if kind == "torchjd" else {}
    recipe = Recipe.load({**TINY, "objectives": objectives, "combiner": combiner})
    assert count(ground, recipe, 3, first_convolution) == passes_of_run(recipe, 3)


@pytest.mark.parametrize(
    ("keys", "watched"),
    [
        (["objectives.global=null"], first_convolution),
        (["objectives.global=null", "combiner={kind: pcgrad, conflict_steps: 1}"], first_convolution),
        (["training.accumulate=2", "combiner={kind: pcgrad, conflict_steps: null}"], first_convolution),
        (["images.views=3"], first_convolution),
        (["sampling.chunk=1", "combiner={kind: pcgrad, conflict_steps: null}"], first_convolution),
        (["sampling.chunk=1", "encoder.unfrozen=0"], first_convolution),
        (["encoder.unfrozen=0"], first_convolution),
        (["encoder={backbone: vit_tiny}", "training.activation_checkpointing=true"], inside_a_block),
        (["encoder={backbone: vit_tiny}", "training.activation_checkpointing=true",
          "combiner={kind: pcgrad, conflict_steps: null}"], inside_a_block),
    ],
)  # fmt: skip
def test_passes_with_one_objective_accumulation_views_and_checkpointing(
    ground: Ground, keys: list[str], watched: Callable[[nn.Module], nn.Module]
) -> None:
    recipe = Recipe.load(TINY).override(keys)
    assert count(ground, recipe, 2, watched) == passes_of_run(recipe, 2)


def test_frames_of_clips_are_counted() -> None:
    recipe = Recipe.load(TINY)
    clips = recipe.override(["images.unit=clip", "images.frames=5"])
    assert passes_of_run(clips, 7) == 5 * passes_of_run(recipe, 7)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["sum", "pcgrad"]),
    scope=st.sampled_from(["encoder", "features"]),
    every=st.sampled_from([None, 1, 3, 100]),
    budget=st.integers(1, 10**6),
)
def test_the_most_steps_within_a_budget(kind: str, scope: str, every: int | None, budget: int) -> None:
    combiner = f"combiner={{kind: {kind}, scope: {scope}, conflict_steps: {every or 'null'}}}"
    recipe = Recipe.load(TINY).override([combiner])
    steps = steps_within(recipe, budget)
    assert passes_of_run(recipe, steps) <= max(budget, passes_of_run(recipe, 1))
    assert passes_of_run(recipe, steps + 1) > budget
    long = (every or 1) * 1000
    assert passes_of_run(recipe, long) / long == pytest.approx(passes_of_step(recipe))


def test_the_schedule_is_stretched_with_the_run() -> None:
    recipe = Recipe.load("simclr").override(["sampling.batch_size=64", "training.epochs=20"])
    pace = Pace(steps=100, steps_per_epoch=5.0, seconds=1.0, memory_gib=1.0)
    fitted = fit_to_budget(recipe, pace, 40 * 256)
    total = fitted.training.max_steps
    assert total == 40
    assert math.ceil(fitted.training.epochs * 5) >= 40
    before = [lr_factor(recipe.schedule, s, total_steps=100, steps_per_epoch=5.0) for s in range(100)]
    after = [lr_factor(fitted.schedule, s, total_steps=40, steps_per_epoch=5.0) for s in range(40)]
    assert before.index(max(before)) / 100 == pytest.approx(after.index(max(after)) / 40, abs=0.02)
    assert after[-1] < 0.01, "the cosine ends where the run ends"


# --- a whole ablation


def test_it_leaves_what_it_promises(done: Any) -> None:
    cells = cells_of(done.folder)
    assert [(cell["arm"], cell["seed"]) for cell in cells] == [
        ("optimizer.lr=0.001", 0), ("optimizer.lr=0.01", 0), ("optimizer.lr=0.001", 1), ("optimizer.lr=0.01", 1),
    ]  # fmt: skip
    assert len(weights_of(done.folder)) == len(set(weights_of(done.folder).values())) == 4
    for cell in cells:
        assert 0 <= done.budget - cell["passes"] < passes_of_step(done.planned[cell["arm"]].arm.recipe)
    assert (done.folder / "table.txt").read_text().strip() == done.summary()
    assert json.loads((done.folder / "ablation.json").read_text())["passes"] == done.budget
    found = {(r.encoder, r.baseline) for r in read_results(done.folder / "results.jsonl")}
    first, second = ("optimizer.lr=0.001", "optimizer.lr=0.01")
    assert found == {(first, ""), (second, ""), (second, first), (RANDOM_INIT, ""), (RANDOM_INIT, first),
                     (MAJORITY, "")}  # fmt: skip
    shown = done.summary()
    assert "nothing can be decided here: only 2 test patients of the rarer class" in shown
    assert "--on validation" in shown


def test_the_comparison_is_the_mean_over_seeds_of_what_each_cell_predicted(done: Any) -> None:
    frames = {path.parent.name: pd.read_parquet(path) for path in done.folder.glob("judged/*/*/predictions.parquet")}
    assert len(frames) == 4

    def area(cell: str, encoder: str) -> float:
        lines = frames[cell].query("split == 'test' and probe == 'linear' and encoder == @encoder")
        return float(roc_auc_score(lines["y"], lines["score"]))

    by_arm = {arm: [area(f"{arm}-{seed}", f"{arm}-{seed}") for seed in (0, 1)] for arm in done.planned}
    (comparison,) = done.comparisons
    for arm, values in by_arm.items():
        assert comparison.of(arm).value["estimate"] == pytest.approx(np.mean(values), abs=1e-4)
        assert comparison.of(arm).value["by_seed"] == pytest.approx(values, abs=1e-4)
    gap = comparison.of("optimizer.lr=0.01").difference
    one, other = by_arm.values()
    assert gap["estimate"] == pytest.approx(np.mean(other) - np.mean(one), abs=1e-4)
    twins = [area(f"optimizer.lr=0.001-{seed}", "random-init") for seed in (0, 1)]
    assert comparison.of(RANDOM_INIT).value["by_seed"] == pytest.approx(twins, abs=1e-4)


@pytest.mark.slow
def test_another_question_only_judges(ground: Ground, done: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before, cells = weights_of(done.folder), cells_of(done.folder)
    monkeypatch.setattr(training_module, "training_step", forbidden)
    monkeypatch.setattr(schedule, "dry_run", forbidden)
    found = run(ground, done.folder, task="regress", target="severity", min_patients=None)
    assert found.comparisons[0].metric == "mae"
    assert found.hours == 0
    found = run(ground, done.folder, task="retrieve", target="", across="laterality", min_patients=None)
    assert [each.metric for each in found.comparisons] == ["top_1", "top_5", "top_10"]
    assert found.comparisons[0].facts["chance"] == pytest.approx(1 / 4)
    run(ground, done.folder, on="validation")
    found = run(ground, done.folder, task="change", target="severity", min_patients=None)
    assert [each.target for each in found.comparisons] == ["change:severity", "amount_of_change:severity"]
    assert found.comparisons[0].lines[0].value["num_samples"] == 4 * 2, "pairs of one eye"
    given = {"task": "segment", "target": "", "min_patients": None, "labelled": [1, 2], "steps": 1, "seeds": 1}
    found = run(ground, done.folder, **given)
    assert [each.facts["labelled_patients"] for each in found.comparisons] == [2, 1]
    (volumes,) = done.folder.glob("judged/segment*/optimizer.lr=0.001-0/volumes.parquet")
    dice = pd.read_parquet(volumes).query("labelled_patients == 2 and encoder == 'optimizer.lr=0.001-0'")["dice"]
    assert found.comparisons[0].lines[0].value["estimate"] == pytest.approx(dice.mean(), abs=1e-4)
    assert weights_of(done.folder) == before
    assert cells_of(done.folder) == cells


def forbidden(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("nothing is trained or measured twice")


def test_judging_is_not_done_twice(ground: Ground, done: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bolus.ablation.asking.tasks.judge", forbidden)
    assert run(ground, done.folder).comparisons == done.comparisons


def test_a_folder_of_other_recipes_or_of_something_else_is_refused(
    ground: Ground, done: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_module, "training_step", forbidden)
    with pytest.raises(TrainingError, match=r"training\.max_steps"):
        run(ground, done.folder, passes=3 * done.budget)
    monkeypatch.undo()
    with pytest.raises(TrainingError, match=r"optimizer\.weight_decay"):
        run(ground, done.folder, overrides=["optimizer.weight_decay=0.1"])
    (tmp_path / "letter.txt").write_text("not an ablation")
    with pytest.raises(UsageError, match="neither empty nor an ablation"):
        run(ground, tmp_path)


@pytest.mark.slow
def test_stopped_between_and_within_cells_and_gone_on_with(
    ground: Ground, done: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0

    def stops(*args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 4:  # the second step of the second cell
            raise KeyboardInterrupt
        return apply_gradients(*args, **kwargs)

    monkeypatch.setattr(training_module, "apply_gradients", stops)
    with pytest.raises(KeyboardInterrupt):
        run(ground, tmp_path / "b")
    assert steps == 4
    assert [cell["arm"] for cell in cells_of(tmp_path / "b")] == ["optimizer.lr=0.001"]
    record = json.loads((tmp_path / "b" / "runs" / "optimizer.lr=0.01-0" / "run.json").read_text())
    assert record["status"] == "running"
    steps, real = 10, training_module.pretrain

    def between(*args: Any, **kwargs: Any) -> Any:
        if kwargs["out"].name == "optimizer.lr=0.001-1":
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(running, "pretrain", between)
    with pytest.raises(KeyboardInterrupt):
        run(ground, tmp_path / "b")
    assert steps == 11, "the first cell is not trained again, the second takes the step that is left"
    monkeypatch.setattr(running, "pretrain", real)
    found = run(ground, tmp_path / "b")
    assert steps == 15
    assert weights_of(tmp_path / "b") == weights_of(done.folder)
    assert found.comparisons == done.comparisons


def test_stopped_while_a_run_is_being_made_and_gone_on_with(
    ground: Ground, done: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Cohort, "save", stops)  # after recipe.yaml, before run.json
    with pytest.raises(KeyboardInterrupt):
        run(ground, tmp_path / "b", seeds=1)
    left = tmp_path / "b" / "runs" / "optimizer.lr=0.001-0"
    assert sorted(path.name for path in left.iterdir()) == ["recipe.yaml", "run.lock"]
    monkeypatch.undo()
    run(ground, tmp_path / "b", seeds=1)
    assert weights_of(tmp_path / "b").items() <= weights_of(done.folder).items()


def test_a_cell_that_fails_is_reported_and_the_others_go_on(
    ground: Ground, done: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = training_module.pretrain

    def fails(*args: Any, **kwargs: Any) -> Any:
        if kwargs["out"].name == "optimizer.lr=0.01-1":
            raise NonFiniteLossError("views became nan in step 2")
        return real(*args, **kwargs)

    monkeypatch.setattr(running, "pretrain", fails)
    found = run(ground, tmp_path / "c")
    (comparison,) = found.comparisons
    whole = done.comparisons[0]
    assert comparison.of("optimizer.lr=0.001").value == whole.of("optimizer.lr=0.001").value
    gap = comparison.of("optimizer.lr=0.01").difference
    assert gap["of_seeds"] == [0]
    assert gap["by_seed"] == whole.of("optimizer.lr=0.01").difference["by_seed"][:1]
    assert "failed: seed 1, training: views became nan in step 2" in found.summary()
    assert cells_of(tmp_path / "c")[-1]["failed"] == "training: views became nan in step 2"
    monkeypatch.setattr(running, "pretrain", real)
    assert run(ground, tmp_path / "c").comparisons == done.comparisons, "it is tried again"


def test_an_arm_without_memory_for_a_step_is_reported(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = schedule.dry_run

    def full(cohort: Any, *, recipe: Recipe, **kwargs: Any) -> Any:
        if recipe.optimizer.lr == 0.01:
            raise OutOfMemoryError("a step does not fit into memory")
        return real(cohort, recipe=recipe, **kwargs)

    monkeypatch.setattr(schedule, "dry_run", full)
    found = run(ground, tmp_path / "d", dry=True)
    assert list(found.planned) == ["optimizer.lr=0.001"]
    assert "does not fit" in found.plan()
    with pytest.raises(OutOfMemoryError, match=r"arm 'optimizer.lr=0.01'"):
        run(ground, tmp_path / "d", dry=True, over="optimizer.lr=0.01,0.001")


def test_every_cell_failing_is_an_error(ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise NonFiniteLossError("nan")

    monkeypatch.setattr(running, "pretrain", fails)
    with pytest.raises(EvaluationError, match="no cell could be trained and judged"):
        run(ground, tmp_path / "e")


@pytest.mark.slow
def test_on_validation_says_nothing_of_test_patients(ground: Ground, tmp_path: Path) -> None:
    strange = make_cohort(tmp_path / "strange", strange_test=True)
    found = [
        run(ground, tmp_path / name, cohort=cohort, on="validation", seeds=1)
        for name, cohort in (("one", ground.table), ("other", strange))
    ]
    assert found[0].comparisons == found[1].comparisons
    rows = pd.concat(pd.read_parquet(p)["row"] for p in (tmp_path / "one").glob("judged/*/*/predictions.parquet"))
    split = ground.cohort.split[rows.to_numpy() - 1]
    assert set(split) == {"train", "val"}
    shown = found[0].summary()
    assert "judged on validation patients" in shown
    assert "validation: 4 patients, 16 samples" in shown
    table_frame = pd.read_csv(ground.table.with_name("table.csv"))
    assert set(table_frame["split"]) == {"train", "val", "test"}, "the person's table is as it was"


def test_a_question_that_cannot_be_answered_is_known_before_anything_is_trained(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "dry_run", forbidden)
    for kwargs, error, message in (
        ({"target": "ill"}, EvaluationError, "no label named 'ill'"),
        ({"target": "sick", "task": "clasify"}, UsageError, "did you mean 'classify'"),
        ({"task": "segment", "target": "", "min_patients": None, "labelled": [7]}, EvaluationError, "7 asked for"),
        (
            {"task": "segment", "target": "", "min_patients": None, "overrides": ["images.mirror=left"]},
            EvaluationError,
            "masks are not mirrored",
        ),
        (
            {"task": "segment", "target": "", "min_patients": None, "labelled": [0]},
            UsageError,
            "each at least 1",
        ),
        ({"task": "retrieve", "target": "", "min_patients": None}, UsageError, "--across"),
        ({"task": "retrieve", "across": "site", "target": "", "min_patients": None}, EvaluationError, "site"),
        (
            {"task": "regress", "target": "severity"},
            UsageError,
            "no option min_patients; classify has",
        ),
        ({"target": ""}, UsageError, "--target"),
        ({"seeds": 0}, UsageError, "seeds must be a whole number of at least 1"),
        ({"on": "train"}, UsageError, "test or validation"),
    ):
        with pytest.raises(error, match=message):
            run(ground, tmp_path / "f", **kwargs)
    assert not (tmp_path / "f").exists()


def test_no_test_patient_with_a_target_is_an_error(ground: Ground) -> None:
    cohort, table = ground.cohort, ground.cohort.table
    table.loc[cohort.split == "test", "severity"] = None
    fresh = Cohort(table, cohort.spec, cohort.folder)
    for question in (task_of("regress", {"target": "severity"}), task_of("change", {"target": "severity"})):
        with pytest.raises(EvaluationError, match="no test patient has"):
            check_task(question, fresh, Recipe.load(TINY))


def test_a_side_with_one_class_only_is_known_before_anything_is_trained(ground: Ground) -> None:
    cohort, table = ground.cohort, ground.cohort.table
    table.loc[cohort.split == "test", "sick"] = "n"
    fresh = Cohort(table, cohort.spec, cohort.folder)
    with pytest.raises(EvaluationError, match="nothing can be told apart: all test patients have the class '0'"):
        check_task(task_of("classify", {"target": "sick"}), fresh, Recipe.load(TINY))
    several = table.assign(sick=np.where(table["sick"] == "y", "a|b", "a"))
    several.loc[np.asarray(cohort.split == "train").nonzero()[0][:4], "sick"] = "b"
    several.loc[np.asarray(cohort.split == "test").nonzero()[0][:4], "sick"] = "a|b"
    fresh = Cohort(several, cohort.spec, cohort.folder)
    check_task(
        task_of("classify", {"target": "sick", "min_patients": 1}), fresh, Recipe.load(TINY)
    )  # b can be told apart


def test_a_folder_that_cannot_be_written_is_known_before_anything_is_trained(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "dry_run", forbidden)
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "a"):
        with pytest.raises(UsageError, match="cannot be written to"):
            run(ground, folder)


def test_other_labels_of_the_same_patients_are_another_question(ground: Ground) -> None:
    cohort, question = ground.cohort, task_of("classify", {"target": "sick"})
    changed = Cohort(cohort.table.assign(sick=cohort.table["sick"].replace({"y": "n", "n": "y"})), cohort.spec)
    missing = Cohort(cohort.table, cohort.spec.model_copy(update={"missing": {"sick": ["y"]}}))
    names = [folder_name(question, each) for each in (cohort, ground.cohort, changed, missing)]
    assert cohort.split_hash == changed.split_hash
    assert names[0] == names[1]
    assert len(set(names)) == 3


# --- answers, read from files


def write(folder: Path, name: str, frame: pd.DataFrame) -> Path:
    frame.to_parquet(folder / name)
    return folder


def test_rows_of_a_part_of_a_table_lead_to_its_own_patients(ground: Ground, tmp_path: Path) -> None:
    frame = pd.DataFrame({"labelled_patients": 1, "repeat": 0, "class": 0, "dice": 0.5, "row": [17, 56]})
    both = pd.concat([frame.assign(encoder=name) for name in ("all-0", "random-init")])
    whole = Cohort(ground.cohort.table.iloc[::-1], ground.cohort.spec)  # the test patients come first
    held = validation_cohort(whole)
    (found,) = read_answers(
        task_of("segment", {"labelled": (1,)}), write(tmp_path, "volumes.parquet", both), held, "all-0"
    )
    codes = held.encoded("patient").tolist()
    names = [held.values("patient").iloc[codes.index(code)] for code in found.patients.tolist()]
    assert names == whole.values("patient").iloc[[16, 55]].tolist()


def test_dice_of_volumes_is_the_mean_over_classes_then_draws(ground: Ground, tmp_path: Path) -> None:
    lines = []
    for encoder, shift in (("all-0", 0.0), ("random-init", -0.1)):
        for number in (1, 6):
            for repeat in (0, 1):
                for row, dice in ((31, (0.6, np.nan)), (40, (0.8, 0.4))):
                    lines += [(number, repeat, encoder, row, k, d + shift + 0.02 * repeat) for k, d in enumerate(dice)]
    frame = pd.DataFrame(lines, columns=["labelled_patients", "repeat", "encoder", "row", "class", "dice"])
    question = task_of("segment", {"labelled": (1, 6)})
    six, one = read_answers(question, write(tmp_path, "volumes.parquet", frame), ground.cohort, "all-0")
    assert (six.target, one.target) == ("mask, 6 labelled patients", "mask, 1 labelled patient")
    assert six.predictions["arm"] == pytest.approx([0.61, 0.61])
    assert six.predictions["random-init"] == pytest.approx([0.51, 0.51])
    assert six.patients.tolist() == ground.cohort.encoded("patient")[[30, 39]].tolist()
    assert six.enough == 2


def test_ranks_of_all_directions_are_one_question(ground: Ground, tmp_path: Path) -> None:
    lines = []
    for encoder, ranks in (("all-0", (1, 2, 1.5, 1)), ("random-init", (3, 3, 1, 1))):
        for place, rank in enumerate(ranks):
            lines.append((31 + 3 * (place % 2), 1, rank, encoder, "ab"[place // 2]))
    frame = pd.DataFrame(lines, columns=["row", "partner_row", "rank", "encoder", "direction"])
    folder = write(tmp_path, "ranks.parquet", frame)
    one, five, _ = read_answers(task_of("retrieve", {"across": "laterality"}), folder, ground.cohort, "all-0")
    assert one.measure(one.y, one.predictions["arm"]) == 0.5
    assert one.facts["chance"] == 0.5
    assert five.facts["chance"] == 1.0
    assert one.enough == 2


def test_several_findings_have_their_mean_first_and_many_classes_their_scores(ground: Ground, tmp_path: Path) -> None:
    lines = []
    for encoder, probe in (("all-0", "linear"), ("random-init", "linear"), ("majority", "none"), ("all-0", "knn")):
        for target, y in (("f=a", (0, 1, 1)), ("f=b", (1, 0, 1))):
            lines += [(31 + 3 * i, "test", encoder, probe, target, 1.0, 0, v, 0.1 * i) for i, v in enumerate(y)]
            lines += [(1, "val", encoder, probe, target, 1.0, 0, 0, 0.5)]
    columns = ["row", "split", "encoder", "probe", "target", "fraction", "repeat", "y", "score"]
    folder = write(tmp_path, "predictions.parquet", pd.DataFrame(lines, columns=columns))
    mean, a, b = read_answers(task_of("classify", {"target": "f"}), folder, ground.cohort, "all-0")
    assert (mean.target, a.target, b.target) == ("f (mean of 2 classes)", "f=a", "f=b")
    areas = [roc_auc_score(each.y, each.predictions["arm"]) for each in (a, b)]
    assert mean.measure(mean.y, mean.predictions["arm"]) == pytest.approx(np.mean(areas))
    assert (a.enough, b.enough, mean.enough) == (1, 1, 1), "the mean rests on as few as its rarest class"
    table = pd.DataFrame(lines, columns=columns)
    absent = table[table["target"] == "f=a"].assign(target="f=c", y=0)
    folder = write(tmp_path, "predictions.parquet", pd.concat([table, absent]))
    left, *each = read_answers(task_of("classify", {"target": "f"}), folder, ground.cohort, "all-0")
    assert (left.target, len(each)) == ("f (mean of 2 classes)", 3), "of f=c no test sample is known"
    assert left.measure(left.y, left.predictions["arm"]) == pytest.approx(np.mean(areas))
    many = pd.DataFrame(lines, columns=columns).query("target == 'f=a'").drop(columns="score")
    many = many.assign(**{"score:u": 0.2, "score:v": 0.3, "score:w": 0.5})
    (found,) = read_answers(
        task_of("classify", {"target": "f"}), write(tmp_path, "predictions.parquet", many), ground.cohort, "all-0"
    )
    assert found.metric == "balanced_accuracy"
    assert found.predictions["majority"].shape == (3, 3)


def test_metrics_that_are_made_here_under_weights_are_those_of_repeated_samples() -> None:
    rng = np.random.default_rng(0)
    y, p, weights = rng.integers(0, 2, (30, 2)), rng.normal(size=(30, 2)), rng.integers(0, 3, (5, 30))
    dice = np.where(rng.random(30) < 0.2, np.nan, rng.random(30))
    for draw, areas, means in zip(weights, mean_auroc(y, p, weights), mean_of_known(None, dice, weights), strict=True):
        again = np.repeat(np.arange(30), draw)
        assert areas == pytest.approx(np.mean([auroc(y[again, k], p[again, k]) for k in (0, 1)]))
        assert means == pytest.approx(np.nanmean(dice[again]))
    assert np.isnan(mean_of_known(None, np.full(3, np.nan), np.ones((2, 3)))).all()
    one_class = np.array([[0, 0], [1, 0], [0, 1]])
    p_both = np.array([[0.1, 0.2], [0.3, 0.1], [0.5, 0.3]])
    assert mean_auroc(one_class, p_both, np.array([[1, 1, 0]])).tolist() == [1.0], "one draw, one column"
    assert np.isnan(mean_auroc(one_class, p_both, np.array([[1, 0, 0]]))).all()
    broken = np.where(np.arange(3)[:, None] == 0, np.nan, p_both)
    assert np.isnan(mean_auroc(one_class, broken, np.array([[1, 1, 0]]))).all(), "never left out for its predictions"


# --- comparison and words


def answer(error: np.ndarray[Any, Any], keys: pd.Index[Any] | None = None, enough: int = 40) -> Answer:
    y = np.arange(len(error), dtype=float)
    patients = np.arange(len(error)) // 2
    keys = pd.RangeIndex(len(error)) if keys is None else keys
    predictions = {"arm": y + error, "random-init": y + 3.0, "majority": y + 5.0}
    return Answer("regress", "age", "mae", "linear", keys, y, patients, predictions, mae, enough)


def test_intervals_are_those_of_a_loop_over_draws_of_patients() -> None:
    rng = np.random.default_rng(1)
    errors = {(arm, seed): rng.random(80) + shift for arm, shift in (("all", 0.0), ("b", 0.3)) for seed in (0, 1, 2)}
    (found,) = compare_cells({cell: [answer(error)] for cell, error in errors.items()}, ["all", "b"])
    weights = patient_bootstrap(np.arange(80) // 2, draws=2000, seed=0)
    drawn = []
    for draw in weights:
        one, other = ([np.average(errors[arm, s], weights=draw) for s in range(3)] for arm in ("b", "all"))
        drawn.append(np.subtract(one, other))
    gap = found.of("b").difference  # type: ignore[union-attr]
    assert gap is not None
    assert gap["se"] > np.std(np.mean(drawn, axis=1), ddof=1), "seeds are counted, and not only patients"
    by_seed = [errors["b", s].mean() - errors["all", s].mean() for s in range(3)]
    expected = Estimate.from_draws(by_seed, np.array(drawn).T, np.arange(40), difference=True)
    numbers = [gap[key] for key in ("ci_low", "ci_high", "se", "p_value")]
    assert numbers == pytest.approx([expected.low, expected.high, expected.se, expected.p_value], rel=1e-5)
    assert found.of("b").verdict == "worse"  # type: ignore[union-attr]  # of an error, more is worse
    assert found.of(MAJORITY).value["estimate"] == 5.0  # type: ignore[union-attr]
    assert found.of(MAJORITY).difference is None  # type: ignore[union-attr]


def test_seeds_that_disagree_and_few_patients_leave_a_difference_undecided() -> None:
    base = np.random.default_rng(0).random(80)
    cells = {("all", s): [answer(base)] for s in (0, 1, 2)} | {
        ("b", 0): [answer(base + 0.5)],
        ("b", 1): [answer(base + 0.05)],
        ("b", 2): [answer(base * 0.9)],
    }
    (found,) = compare_cells(cells, ["all", "b"])
    assert found.of("b").verdict == "undecided"  # type: ignore[union-attr]
    results = results_of([found], split_hash="s", recipe_hashes={})
    (gap,) = (each for each in results if (each.encoder, each.baseline) == ("b", "all"))
    assert (gap.seeds, gap.ci_low < 0 < gap.ci_high) == (3, True)
    assert verdict_of(gap).startswith("undecided")
    assert " undecided; this test set can show" in table(found, "all", {})
    alone = compare_cells({cell: each for cell, each in cells.items() if cell[1] == 0}, ["all", "b"])[0]
    assert alone.of("b").difference["verdict"] == "decided for this training"  # type: ignore[union-attr, index]
    assert "worse for this training" in table(alone, "all", {})
    few = {cell: [answer(each[0].predictions["arm"] - each[0].y, enough=7)] for cell, each in cells.items()}
    (found,) = compare_cells(few, ["all", "b"])
    assert found.of("b").verdict == "too few patients"  # type: ignore[union-attr]
    assert found.few == "only 7 test patients where a finding needs 20"


def test_samples_that_one_cell_lacks_are_left_out_of_all() -> None:
    error = np.random.default_rng(0).random(80)
    short = Answer(*(getattr(answer(error), name) for name in answer(error).__dataclass_fields__))
    short = short.on(pd.RangeIndex(10, 80)[::-1])
    (found,) = compare_cells({("all", 0): [answer(error)], ("b", 0): [short]}, ["all", "b"])
    assert found.notes == ("10 test samples were not judged in every arm and seed, and are left out",)
    assert {line.value["num_samples"] for line in found.lines} == {70}
    assert found.of("b").difference["estimate"] == 0  # type: ignore[union-attr, index]


def comparison(**verdicts: tuple[float, float, float]) -> Comparison:
    """Of dice, arms by their differences from all: estimate, low, high."""
    value = {"estimate": 0.7, "ci_low": 0.65, "ci_high": 0.75, "seeds": 3, "by_seed": [0.7] * 3}
    lines = [Line("all", value)]
    for arm, (estimate, low, high) in verdicts.items():
        decided = "decided" if low > 0 or high < 0 else "undecided"
        gap = {"metric": "dice", "estimate": estimate, "ci_low": low, "ci_high": high, "detectable": 0.025, "seeds": 3,
               "by_seed": [estimate] * 3, "verdict": decided,
               "p_value": float(2 * stats.norm.sf(abs(estimate) / ((high - low) / 3.92)))}  # fmt: skip
        lines.append(Line(arm.replace("_", " "), value, gap))
    return Comparison("segment", "mask, 6 labelled patients", "dice", "finetune", 30, tuple(lines))


def test_objectives_are_said_to_earn_their_place_to_harm_or_to_be_dispensable() -> None:
    data = {**TINY, "objectives": {name: {**VIEWS, "temperature": 0.1 + t} for t, name in enumerate("abc")}}
    arms = find_arms(Recipe.load(data))
    found = comparison(
        only_a=(-0.05, -0.07, -0.03), only_b=(0.0, -0.02, 0.02), only_c=(0.04, 0.01, 0.07),
        without_a=(-0.03, -0.05, -0.01), without_b=(-0.012, -0.03, 0.004), without_c=(0.02, 0.004, 0.04),
    )  # fmt: skip
    said = sentences(found, arms, on="validation")
    assert said[:5] == [
        "a earns its place: without it Dice falls by 0.030 [-0.050, -0.010]; Holm over 6 verdicts: p = 0.016",
        "c harms: without it Dice rises by 0.020 [+0.004, +0.040]; Holm over 6 verdicts: p = 0.088, so only a hint",
        "b could go: without it Dice falls by 0.012 [-0.030, +0.004], which is undecided; this test set can show 0.025",
        "only c is better than all together: Dice rises by 0.040 [+0.010, +0.070]; Holm over 6 verdicts: p = 0.036",
        "not shown to be worse alone than all together: b",
    ]
    assert not any("chance of training" in each for each in said), "of three seeds it is in the intervals"
    assert said[-1].startswith("judged on validation patients")
    shown = table(found, "all", {"without d": "failed: seed 0, training: nan"})
    assert (
        "  without b  0.700 [0.650, 0.750]    -0.012 [-0.030, +0.004] undecided; this test set can show 0.025" in shown
    )
    assert "  without d  failed: seed 0, training: nan" in shown
    assert "only c     0.700 [0.650, 0.750]    +0.040 [+0.010, +0.070] better; Holm over 6 verdicts: p = 0.036" in shown


def test_what_is_undefined_is_not_said_to_be_dispensable() -> None:
    data = {**TINY, "objectives": {name: {**VIEWS, "temperature": 0.1 + t} for t, name in enumerate("abc")}}
    nothing: Any = (None, None, None)
    found = comparison(only_a=(0.0, -0.02, 0.02), without_b=(0.0, -0.02, 0.02))
    gap = {**(found.lines[1].difference or {}), **dict(zip(("estimate", "ci_low", "ci_high"), nothing, strict=True))}
    undefined = tuple(Line(arm, found.lines[0].value, gap) for arm in ("only b", "without c"))
    said = sentences(replace(found, lines=(*found.lines, *undefined)), find_arms(Recipe.load(data)), on="test")
    assert said[1:4] == [
        "only b cannot be judged: the change of Dice is undefined",
        "without c cannot be judged: the change of Dice is undefined",
        "not shown to be worse alone than all together: a",
    ]
    assert not any("c could go" in each for each in said)


def test_too_few_validation_patients_are_not_called_test_patients() -> None:
    arms, line = find_arms(Recipe.load(TINY), over="optimizer.lr=0.1,0.2"), comparison(b=(0.02, 0.01, 0.03)).lines[1]
    found = replace(comparison(), enough=1, lines=(comparison().lines[0], replace(line, arm="optimizer.lr=0.2")))
    said = {on: sentences(found, arms, on=on)[0] for on in ("test", "validation")}
    assert said["test"].endswith("only 1 test patients where a finding needs 20")
    assert said["validation"].endswith("only 1 validation patients where a finding needs 20")


def test_seeds_that_agree_by_chance_are_spoken_of_while_they_are_few() -> None:
    arms = find_arms(Recipe.load(TINY), over="optimizer.lr=0.1,0.2")
    chance = {}
    for seeds in (1, 2, 5):
        line = comparison(b=(0.02, 0.01, 0.03)).lines[1]
        line = Line("optimizer.lr=0.2", line.value, {**(line.difference or {}), "seeds": seeds})
        found = replace(comparison(), lines=(comparison().lines[0], line))
        chance[seeds] = " ".join(sentences(found, arms, on="test"))
    assert "one seed says nothing" in chance[1]
    assert "decided for these trainings" in chance[1]
    assert "with 2 seeds the chance of training is hardly known" in chance[2]
    assert "chance of training" not in chance[5]
    assert all("random init is" not in each for each in chance.values())


def test_whose_random_weights_stand_beside_arms_of_other_encoders_is_said() -> None:
    arms = find_arms(Recipe.load(TINY), over="images.size=16,32")
    line = comparison(b=(0.02, 0.01, 0.03)).lines[1]
    found = replace(comparison(), lines=(comparison().lines[0], Line("images.size=32", line.value, line.difference)))
    assert "random init is the encoder of images.size=16, untrained" in sentences(found, arms, on="test")


def test_errors_in_small_units_keep_their_direction() -> None:
    base = np.random.default_rng(0).random(80)
    cells = {("all", 0): [answer(2e-6 * base)], ("b", 0): [answer(2e-6 * (base + 1))]}
    (found,) = compare_cells(cells, ["all", "b"])
    line = found.of("b")
    assert line is not None
    assert line.difference is not None
    assert line.difference["estimate"] == pytest.approx(2e-6, rel=1e-3)
    assert line.verdict == "worse"
    assert line.difference["detectable"] is None, "errors that differ by a constant"
    assert "+2e-06 [+2e-06, +2e-06] worse for this training" in table(found, "all", {})


def test_draws_are_taken_in_blocks_and_are_those_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, seen = np.random.default_rng(0), []
    y, p, patients = rng.integers(0, 2, 3000), rng.random(3000), np.arange(3000) // 3

    def watched(y: Any, p: Any, weights: Any = None) -> Any:
        seen.append(0 if weights is None else weights.size)
        return auroc(y, p, weights)

    line, _ = compare_arms({"metric": "auroc"}, watched, y, patients, {"a": [p], "b": [p]}, pairs=[])
    assert max(seen) <= 1 << 20, "a large test set does not fill the memory"
    drawn = auroc(y, p, patient_bootstrap(patients, draws=2000, seed=0))
    expected = Estimate.from_draws(line["estimate"], drawn, patients, metric="auroc", y=y)
    assert line["ci_low"] == pytest.approx(expected.low, rel=1e-5)
    assert line["ci_high"] == pytest.approx(expected.high, rel=1e-5)


def test_what_else_was_compared_is_said_in_one_sentence() -> None:
    first, second = comparison(b=(0.0, -0.1, 0.1)), comparison(b=(-0.05, -0.07, -0.03))
    assert beside([first]) == ""
    assert "decided there: b (mask, 6 labelled patients, Dice: worse)" in beside([first, second])
    assert "no difference between arms is decided there" in beside([first, first])


# --- the command


@pytest.fixture
def command(call_bolus: Any, ground: Ground) -> Any:
    def call(*words: object) -> tuple[int, str]:
        found: tuple[int, str] = call_bolus("ablate", *words, "--cache", ground.cache)
        return found

    return call


def test_the_command_estimates_trains_and_shows(command: Any, ground: Ground, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(Recipe.load(TINY).to_yaml())
    words = [ground.table, "images.size=16", "--recipe", recipe, "--target", "sick", "--seeds", 1, "--passes", 48,
             "--min-patients", 1, "-o", tmp_path / "out"]  # fmt: skip
    code, out = command(*words, "--dry-run")
    assert code == 0, out
    assert "3 arms, 1 seed, 48 encoder passes each" in out
    assert not (tmp_path / "out").exists()
    code, out = command(*words, "--over", "objectives.views.temperature=0.1,0.2")
    assert code == 0, out
    assert "Ablation of tiny by classify sick: 1 seed, 48 encoder passes an arm" in out
    assert (tmp_path / "out" / "table.txt").is_file()
    assert [cell["steps"] for cell in cells_of(tmp_path / "out")] == [3, 3]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--over", "combiners", "--over", "objectives"], "one at a time"),
        (["--recipes", "simclr,gcl"], "not both"),
        (["--labelled-patients", "a"], "whole numbers"),
        (["--across", "visit"], "the task classify has no option across; retrieve has"),
    ],
)
def test_a_wrong_call_ends_with_2(command: Any, ground: Ground, words: list[str], message: str) -> None:
    code, out = command(ground.table, "--recipe", "gcl", "--target", "sick", *words)
    assert (code, message in out) == (2, True), out
