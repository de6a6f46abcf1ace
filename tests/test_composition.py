"""Objectives of every paper in one step: one forward, each loss and gradient as alone, whatever reconciles them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import PartialState
from PIL import Image as PillowImage
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bolus.data.batches.columns import TrainingColumns
from bolus.data.batches.loading import Fetched, Loader
from bolus.data.cohort.cohort import Cohort
from bolus.encoders.features import Features
from bolus.errors import RecipeError
from bolus.objectives import OBJECTIVES
from bolus.recipe import Recipe
from bolus.training.assembly import Model, build_model
from bolus.training.loaders import build_loader, open_images
from bolus.training.loop import pretrain
from bolus.training.step import apply_gradients, training_step

CPU = torch.device("cpu")
SCORE = "score:severity"
META = {"kind": "contrast", "dim": 8, "hidden": 16, "head": "image", "hidden_norm": False}
PIXEL = {"kind": "pixel_contrast", "dim": 8, "hidden": 16, "head": "pixel", "image_head": "image", "anchors": 32}
CLIP = {"kind": "contrast", "dim": 8, "hidden": 0, "temperature": 0.07, "learnable": True}
PAPERS: dict[str, dict[str, Any]] = {
    "views": {"kind": "contrast", "relation": "views", "dim": 8, "weight": 0.5},  # SimCLR
    "bilateral": {**CLIP, "relation": {"same": ["patient", "visit"]}, "between": "laterality"},  # COMPRER
    "temporal": {**CLIP, "relation": {"same": ["patient", "laterality"]}, "between": "visit"},
    "measures": {"kind": "predict", "targets": [SCORE, "label:disease"], "hidden": 8},
    "reconstruction": {"kind": "reconstruct", "channels": 16, "weight": 2.0},
    "disease": {**META, "relation": "label:disease"},  # GCL
    "phase": {**META, "relation": "phase", "weight": 0.3},
    "position": {**META, "relation": "bin:slice_position"},
    "disease_pixel": {**PIXEL, "relation": "label:disease", "weight": 0.7},
    "phase_pixel": {**PIXEL, "relation": "phase"},
    "score": {"kind": "supremix", "window": 2.0, "dim": 8, "hidden": 16},  # SupReMix
    "learner": {"kind": "score_contrast", "threshold": 0.2, "weight": 0.2},  # LEARNER
    "ranks": {"kind": "rank_n_contrast"},  # Rank-N-Contrast
    "order": {"kind": "chronocon", "same": ["patient", "laterality"]},  # ChronoCon
    "global": {"kind": "varcov", "source": "pooled", "width": 16},  # MLVICX
    "levels": {"kind": "varcov", "source": "levels", "width": 16, "level_channels": 8, "grid": 2, "weight": 0.1},
}
HEADLESS = {"learner", "ranks", "order"}  # which work on the encoder's own embedding
RECIPE: dict[str, Any] = {
    "name": "all",
    "encoder": {"backbone": "r18w32", "stem_pool": False},
    "images": {"size": 24, "views": 2},
    "bins": {"slice_position": 4},
    "sampling": {"batch_size": 12},
    "objectives": PAPERS,
    "combiner": {"conflict_steps": None},
    "optimizer": {"kind": "adamw", "lr": 0.001, "weight_decay": 0.0},
    "training": {"epochs": 1, "max_steps": 2, "log_steps": 1, "health_epochs": None},
}


def write_table(folder: Path) -> Path:
    """Ten patients with two eyes at two visits: a disease, a phase, a position and a score that some lack."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = ["image,patient,eye,visit,disease,phase,depth,severity,series"]
    for patient in range(10):
        for visit in range(2):
            for eye in ("left", "right"):
                pixels = rng.integers(20, 120, (32, 32))
                pixels[8:20, 8:20] += 60 * (patient % 2)
                name = f"p{patient}-{visit}-{eye}.png"
                PillowImage.fromarray(pixels.astype(np.uint8)).save(folder / name)
                severity = "" if patient == 3 else patient % 2 * 3 + visit + 0.5 * (eye == "left")
                phase, depth = "AB"[(visit + patient) % 2], f"{rng.random():.3f}"
                lines.append(
                    f"{name},P{patient},{eye},{visit},d{patient % 2},{phase},{depth},{severity},s{patient}{eye}"
                )
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    (folder / "cohort.yaml").write_text(
        "table: t.csv\n"
        "roles: {laterality: eye, visit: visit, 'label:disease': disease, phase: phase, slice_position: depth,\n"
        "        'score:severity': severity}\n"
        "split: {seed: 2, val: 0.1, test: 0.1}\n"
    )
    return folder / "cohort.yaml"


@dataclass
class Ground:
    """The cohort, its cache, and the batch that everything sees."""

    cohort: Cohort
    cache: Path

    def model(self, recipe: Recipe) -> Model:
        return build_model(recipe, CPU, TrainingColumns(self.cohort.samples("image"), recipe.bins))

    def loader(self, recipe: Recipe, model: Model) -> Loader:
        store, samples = open_images(self.cohort, recipe, self.cache, True), self.cohort.samples("image")
        return build_loader(self.cohort, samples, store, recipe, model.needs, PartialState())


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    folder = tmp_path_factory.mktemp("composed")
    return Ground(Cohort.open(write_table(folder / "table")), folder / "cache")


@pytest.fixture(scope="module")
def composed(ground: Ground) -> tuple[Recipe, Model, Loader, Fetched]:
    """The recipe of all, its model as it is born, its batches and the first of them."""
    recipe = Recipe.load(RECIPE)
    model = ground.model(recipe)
    loader = ground.loader(recipe, model)
    return recipe, model, loader, loader.fetch(0)


def exact(model: Model) -> Model:
    """The model in float64, where what is equal in mathematics is equal within 1e-10 on any processor."""
    for module in model.modules.values():
        module.double()
    return model


def only(name: str) -> Recipe:
    """The recipe of one objective, unweighted; and of the head that it reads, which then weighs nothing."""
    kept = {name: {**PAPERS[name], "weight": 1.0}}
    if "image_head" in PAPERS[name]:
        kept["disease"] = {**PAPERS["disease"], "weight": 0.0}
    return Recipe.load({**RECIPE, "objectives": kept})


def step(model: Model, loader: Loader, fetched: Fetched, recipe: Recipe) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses, and the gradient of every parameter by the name of its module and its own, before the optimiser's step.

    A shared parameter has several names.
    """
    losses, counts = training_step(model, loader, fetched, recipe, 0.25)
    assert all(found["anchors"] > 0 for found in counts.values()), f"everybody has something to do: {counts}"
    model.combiner.reconcile()
    gradients = {}
    for module, each in model.modules.items():
        for name, parameter in each.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None
                gradients[f"{module}.{name}"] = parameter.grad
    return losses, gradients


def test_the_recipe_has_the_objectives_of_all_papers() -> None:
    assert {spec["kind"] for spec in PAPERS.values()} == set(OBJECTIVES)


def test_the_encoder_runs_once_a_batch_and_gives_what_is_asked(
    ground: Ground, composed: tuple[Recipe, Model, Loader, Fetched], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, _, loader, fetched = composed
    model = ground.model(recipe)
    shapes: list[Any] = []
    model.encoder.backbone.register_forward_pre_hook(lambda module, given: shapes.append(given[0].shape))
    seen: list[Features] = []
    for objective in model.objectives.values():
        embed = objective.embed
        spy = lambda features, batch, embed=embed: seen.append(features) or embed(features, batch)  # noqa: E731
        monkeypatch.setattr(objective, "embed", spy)
    step(model, loader, fetched, recipe)
    assert [shape[0] for shape in shapes] == [2 * 12], "every view of every sample, in one call"
    assert len({id(features) for features in seen}) == 1
    # The three of one head embed once, and so do the two at the pixels.
    assert len(seen) == len(PAPERS) - 2 - 1
    assert [len(levels) for levels in seen[0].levels.values()] == [5]
    assert len(seen[0].grid) == 1


class Waits(TorchDispatchMode):
    """Counts what would stop the program until the device has caught up: reading a number, or how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim"):
            self.counted[name] += 1
        return func(*args, **(kwargs or {}))


WAITS: dict[str, Any] = {
    "bilateral": ...,  # the two sides of each term
    "temporal": ...,
    "disease_pixel": ...,  # the pools of the filter are as wide as the largest
    "phase_pixel": ...,
    "score": ...,  # the windows are cut on the CPU
    "ranks": {"nonzero": 1},  # which rows take part
    "order": {"nonzero": 2},
}
"""Objective -> what its loss waits for, ... for numbers that hang on the batch; the others for nothing."""


def test_no_loss_waits_for_the_device_but_where_it_says_so(composed: tuple[Recipe, Model, Loader, Fetched]) -> None:
    _, model, loader, fetched = composed
    local, whole = loader.batch(fetched, device=CPU, progress=0.25)
    needs = model.needs
    features = model.encoder.encode(local.views, local.rows, levels=needs.levels, grid=needs.grid)
    found = {}
    for name, objective in model.objectives.items():
        with Waits() as waits:
            objective.loss(objective.embed(features, local), whole)
        found[name] = dict(waits.counted)
    assert {name: counted for name, counted in found.items() if counted and WAITS.get(name) is not ...} == {
        name: counted for name, counted in WAITS.items() if counted is not ...
    }
    assert all(found[name] for name, counted in WAITS.items() if counted is ...), found


@pytest.mark.parametrize(
    ("names", "levels", "grid", "views"),
    [
        (["disease", "score", "learner", "measures"], False, False, 1),
        (["disease", "views"], False, False, 2),
        (["measures", "levels"], True, False, 2),
        (["disease", "disease_pixel"], False, True, 1),
        (["disease", "disease_pixel", "levels", "views"], True, True, 2),
        (list(PAPERS), True, True, 2),
    ],
    ids=["pooled", "views", "levels", "grid", "levels and grid", "all"],
)
def test_levels_and_grid_are_computed_only_where_one_asks(
    ground: Ground,
    names: list[str],
    levels: bool,
    grid: bool,
    views: int,
    composed: tuple[Recipe, Model, Loader, Fetched],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = Recipe.load({**RECIPE, "objectives": {name: PAPERS[name] for name in names}})
    model = ground.model(recipe)
    assert model.needs.views == views
    seen: list[Features] = []
    opened = model.combiner.open
    monkeypatch.setattr(model.combiner, "open", lambda features, **kw: seen.append(features) or opened(features, **kw))
    step(model, composed[2], composed[3], recipe)
    (features,) = seen
    assert bool(features.levels) == levels
    assert bool(features.grid) == grid


def test_the_views_are_the_most_that_any_asks_for(ground: Ground) -> None:
    with pytest.raises(RecipeError, match=r"images\.views: the objectives need 2 views, found 1"):
        ground.model(Recipe.load(RECIPE).override(["images.views=1"]))


def test_losses_and_gradients_are_those_of_each_objective_alone(
    ground: Ground, composed: tuple[Recipe, Model, Loader, Fetched]
) -> None:
    recipe, _, loader, fetched = composed
    model = exact(ground.model(recipe))
    born = {name: parameter.detach().clone() for name, parameter in named(model).items()}
    losses, gradients = step(model, loader, fetched, recipe)
    total = {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}
    for name, spec in PAPERS.items():
        alone = exact(ground.model(only(name)))
        assert all(torch.equal(parameter, born[own]) for own, parameter in named(alone).items()), "starts the same"
        found, own = step(alone, loader, fetched, only(name))
        assert torch.equal(found[name], losses[name]), f"{name} is not what it is alone"
        assert any(gradient.any() for key, gradient in own.items() if key.startswith("encoder."))
        for key, gradient in own.items():
            total[key] += spec.get("weight", 1.0) * gradient
    aliases: dict[int, list[str]] = {}
    for name, parameter in named(model).items():
        aliases.setdefault(id(parameter), []).append(name)
    assert max(map(len, aliases.values())) == 3, "a head of three"
    scale = {part: max(float(g.abs().max()) for name, g in gradients.items() if name.startswith(part))
             for part in ("encoder.", *(f"objective.{name}." for name in PAPERS if name not in HEADLESS))}  # fmt: skip
    for names in aliases.values():
        expected = sum((total[name] for name in names), torch.zeros((), dtype=torch.float64))
        part = next(part for part in scale if names[0].startswith(part))
        torch.testing.assert_close(gradients[names[0]], expected, rtol=1e-10, atol=1e-10 * scale[part])


def named(model: Model) -> dict[str, Tensor]:
    """Every parameter by the name of its module and its own."""
    return {f"{module}.{name}": p for module, each in model.modules.items() for name, p in each.named_parameters()}


def test_the_order_in_which_objectives_stand_changes_nothing(
    ground: Ground, composed: tuple[Recipe, Model, Loader, Fetched]
) -> None:
    recipe, _, loader, fetched = composed
    turned = Recipe.load({**RECIPE, "objectives": dict(reversed(PAPERS.items()))})
    losses, gradients = step(exact(ground.model(recipe)), loader, fetched, recipe)
    others, turned_gradients = step(exact(ground.model(turned)), loader, fetched, turned)
    assert all(torch.equal(losses[name], others[name]) for name in PAPERS)
    for name, gradient in gradients.items():
        found = turned_gradients[name]
        torch.testing.assert_close(found, gradient, rtol=1e-10, atol=1e-10 * float(gradient.abs().max() + 1e-3))


@pytest.mark.parametrize("scope", ["encoder", "features"])
@pytest.mark.parametrize("kind", ["sum", "mean", "pcgrad", "grad_mitigator", "torchjd"])
def test_every_combiner_takes_the_step_and_moves_every_objective(
    ground: Ground, composed: tuple[Recipe, Model, Loader, Fetched], kind: str, scope: str
) -> None:
    aggregator = {"aggregator": "MGDA"} if kind == "torchjd" else {}
    recipe = Recipe.load({**RECIPE, "combiner": {"kind": kind, "scope": scope, "conflict_steps": 1, **aggregator}})
    model, loader, fetched = ground.model(recipe), composed[2], composed[3]
    before = {name: parameter.detach().clone() for name, parameter in named(model).items()}
    losses, _ = training_step(model, loader, fetched, recipe, 0.25, observe=True)
    norm = apply_gradients(model, None)
    assert all(loss.isfinite() for loss in losses.values())
    assert 0 < float(norm) < float("inf")
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in named(model).values())
    still = {name for name, parameter in named(model).items() if torch.equal(parameter, before[name])}
    assert not still, f"did not move: {sorted(still)}"
    for name, objective in model.objectives.items():
        assert bool(list(objective.parameters())) == (name not in HEADLESS)
    assert model.combiner.conflicts is not None
    looked = model.combiner.conflicts.to_json()
    assert looked["objectives"] == tuple(PAPERS)
    assert all(norm is not None and norm > 0 for norm in looked["norms"])
    assert set(looked["branches"]) == {"image", "pixel"}


COMBINERS = {
    "sum": {"kind": "sum"},
    "pcgrad": {"kind": "pcgrad"},
    "grad_mitigator": {"kind": "grad_mitigator", "rate": 0.3},
    "MGDA": {"kind": "torchjd", "aggregator": "MGDA"},
}


@pytest.mark.parametrize("scope", ["encoder", "features"])
@pytest.mark.parametrize("name", COMBINERS)
@pytest.mark.parametrize("idle", ["score", "disease_pixel", "reconstruction"])
def test_with_weight_0_an_objective_changes_nothing_in_the_encoder(
    ground: Ground, composed: tuple[Recipe, Model, Loader, Fetched], idle: str, name: str, scope: str
) -> None:
    loader, fetched = composed[2], composed[3]
    # Two in the image branch, so that each has one partner only and the order of partners, which is drawn, is one.
    kept = {each: PAPERS[each] for each in ("views", "disease")}
    gradients = []
    for more in ({}, {idle: {**PAPERS[idle], "weight": 0.0}}):
        combiner = {**COMBINERS[name], "scope": scope}
        recipe = Recipe.load({**RECIPE, "objectives": {**kept, **more}, "combiner": combiner})
        _, found = step(exact(ground.model(recipe)), loader, fetched, recipe)
        gradients.append({key: gradient for key, gradient in found.items() if not key.startswith(f"objective.{idle}")})
    assert any(gradient.any() for key, gradient in gradients[0].items() if key.startswith("encoder."))
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-10, atol=1e-10 * float(gradient.abs().max()))


def test_a_run_of_all_is_trained_and_says_who_pulls_apart(ground: Ground, tmp_path: Path) -> None:
    keys = ["combiner.kind=grad_mitigator", "combiner.conflict_steps=1"]
    run = pretrain(ground.cohort, recipe=RECIPE, out=tmp_path / "run", cache=ground.cache, quiet=True, overrides=keys)
    assert run.status == "finished"
    trained = [line for line in run.metrics() if line["kind"] == "train"]
    assert [set(line["losses"]) for line in trained] == [set(PAPERS)] * 2
    assert all(count["anchors"] > 0 for line in trained for count in line["counts"].values())
    (health,) = [line for line in run.metrics() if line["kind"] == "health"]
    names = [finding["name"] for finding in health["findings"]]
    assert any(name == "no conflict" or name.startswith("conflict ") for name in names)


CLIPS: dict[str, Any] = {
    **RECIPE,
    "encoder": {"backbone": "r18w32", "stem_pool": False, "temporal_shift": 8},
    "images": {"size": 32, "views": 2, "unit": "clip", "frames": 2, "augment": {"preset": "ultrasound"}},
    "bins": {},
    "sampling": {"batch_size": 6},
    "objectives": {
        "measures": {"kind": "predict", "targets": [SCORE]},
        **{name: PAPERS[name] for name in ("score", "learner", "views", "disease")},
        "patient": {**META, "relation": "patient"},
    },
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each eye a clip, of which the two visits are the frames; its columns are the same on both."""
    path = write_table(tmp_path_factory.mktemp("clips") / "table")
    table = pd.read_csv(path.with_name("t.csv"), dtype=str).drop(columns="phase").rename(columns={"visit": "frame"})
    table["severity"] = table.groupby("series")["severity"].transform("first")
    table.to_csv(path.with_name("t.csv"), index=False)
    path.write_text(
        "table: t.csv\nroles: {series: series, order: frame, 'label:disease': disease, 'score:severity': severity}\n"
        "split: {seed: 2, val: 0.1, test: 0.1}\n"
    )
    return path


@pytest.mark.parametrize("scope", ["encoder", "features"])
def test_clips_compose_as_images_do(clips: Path, tmp_path: Path, scope: str) -> None:
    recipe = Recipe.load(CLIPS).override(["combiner.kind=grad_mitigator", f"combiner.scope={scope}"])
    cohort = Cohort.open(clips)
    model = build_model(recipe, CPU, TrainingColumns(cohort.samples("clip"), recipe.bins))
    store = open_images(cohort, recipe, tmp_path, True)
    loader = build_loader(cohort, cohort.samples("clip"), store, recipe, model.needs, PartialState())
    fetched = loader.fetch(0)
    local, _ = loader.batch(fetched, device=CPU, progress=0.25)
    assert [views.shape for views in local.views.values()] == [(2, 6, 1, 2, 32, 32)], "frames behind the channels"
    assert local.frame_mask is not None
    before = {name: parameter.detach().clone() for name, parameter in named(model).items()}
    losses, counts = training_step(model, loader, fetched, recipe, 0.25)
    assert 0 < float(apply_gradients(model, None)) < float("inf")
    assert set(losses) == set(CLIPS["objectives"])
    assert all(found["anchors"] > 0 for found in counts.values())
    assert all(not torch.equal(parameter, before[name]) for name, parameter in named(model).items())


def test_what_reads_pixels_is_refused_for_clips(clips: Path) -> None:
    data = {**CLIPS, "objectives": {**CLIPS["objectives"], "reconstruction": PAPERS["reconstruction"]}}
    recipe, samples = Recipe.load(data), Cohort.open(clips).samples("clip")
    with pytest.raises(RecipeError, match=r"an objective reads the pixels of single images, and images\.unit is clip"):
        build_model(recipe, CPU, TrainingColumns(samples, recipe.bins))
