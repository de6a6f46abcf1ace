"""Batches in chunks: the gradients of the step without them, whatever objectives, combiner, precision and encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from PIL import Image as PillowImage
from torch import Tensor, nn

from bolus.data.batches.batch import Batch
from bolus.data.batches.columns import TrainingColumns
from bolus.data.batches.loading import Loader
from bolus.data.cohort.cohort import Cohort
from bolus.encoders.backbone import seeded
from bolus.encoders.features import Features
from bolus.encoders.parts.norms import norms_of
from bolus.errors import OutOfMemoryError, RecipeError
from bolus.phantom.images import make_phantom
from bolus.phantom.volumes import make_volume_phantom
from bolus.recipe import Recipe, recipe_names
from bolus.seeds import seed_for
from bolus.training.assembly import Model, build_model
from bolus.training.gradients.gradcache import split_batch
from bolus.training.loaders import build_loader, open_images
from bolus.training.loop import pretrain
from bolus.training.memory import explain_memory
from bolus.training.step import training_step

CPU = torch.device("cpu")
SMALL = ["images.size=32", "sampling.batch_size=8"]
RESNET = ["encoder.backbone=r18w32", "encoder.stem_pool=false"]
UNET = ["encoder.backbone=unet4", "images.unit=image"]
# At 64 pixels positions are not interpolated, which transformers does in float32.
VIT = [
    "encoder={backbone: vit_tiny}",
    "images.size=64",
    "training={epochs: 1}",
    "sampling={participants: 2, batch_size: 8}",
]
THICK = ["encoder.backbone=unet3d2", "images.size=16"]
AGE = "targets=[score:age]"
RECIPES: dict[str, list[str]] = {
    "chronocon": [*RESNET, "objectives.chronocon.same=[patient, laterality, modality]"],
    "comprer": [*VIT, "objectives.measures.targets=[attribute:sex]", "objectives.reconstruction.channels=16"],
    "comprer_bilateral": [*VIT, f"objectives.measures.{AGE}", "objectives.reconstruction.channels=16"],
    "comprer_temporal": RESNET,
    "gcl": [*UNET, "sampling.batch_size=8"],
    "gcl_patient": UNET,
    "gcl_phase": UNET,
    "gcl_position": UNET,
    "learner_3d": THICK,
    "learner": [
        *RESNET, "images.unit=image", "encoder.temporal_shift=null", f"objectives.score.{AGE}",
        "objectives.contrast.target=score:age",
    ],
    "mlvicx": [
        *RESNET, "objectives.global.width=32", "objectives.levels.width=32", "objectives.levels.grid=2",
        "objectives.levels.level_channels=8",
    ],
    "pcl": UNET,
    "rank_n_contrast": [*RESNET, f"objectives.rank_n_contrast.{AGE}"],
    "simclr": RESNET,
    "simclr_3d": THICK,
    "supcon": [*RESNET, "objectives.supcon.relation=label:disease"],
    "supervised": [*RESNET, "objectives.predict.targets=[score:age, label:disease]"],
    "supremix": [*RESNET, f"objectives.supremix.{AGE}"],
    "supremix_3d": THICK,
    "vicreg": [*RESNET, "objectives.global.width=32"],
}  # fmt: skip
LEVELS = "{kind: varcov, source: levels, width: 16, level_channels: 8, grid: 2}"
THREE = (
    "objectives={v: {kind: contrast, dim: 8, hidden: 16}, l: " + LEVELS + ", "
    "x: {kind: pixel_contrast, relation: patient, dim: 8, hidden: 16, anchors: 32, weight: 0.5}}"
)
COMBINERS = {
    "sum": "{kind: sum}",
    "pcgrad": "{kind: pcgrad}",
    "grad_mitigator": "{kind: grad_mitigator, rate: 0.3}",
    "torchjd": "{kind: torchjd, aggregator: MGDA}",
}


@dataclass
class Ground:
    """A cohort, its cache, and models and batches of it."""

    cohort: Cohort
    cache: Path

    volumes: Cohort

    def model(self, recipe: Recipe) -> tuple[Model, Loader]:
        cohort = self.volumes if recipe.images.unit == "volume" else self.cohort
        samples = cohort.samples(recipe.images.unit)
        model = build_model(recipe, CPU, TrainingColumns(samples, recipe.bins))
        if recipe.training.precision == "fp32":
            for module in model.modules.values():
                module.double()
        store = open_images(cohort, recipe, self.cache, True)
        return model, build_loader(cohort, samples, store, recipe, model.needs, PartialState())


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    folder = tmp_path_factory.mktemp("phantom")
    make_phantom(folder, num_patients=16, size=32)
    make_volume_phantom(folder / "volumes", num_patients=8, size=16)
    return Ground(
        Cohort.open(folder / "cohort.yaml"), folder / "cache", Cohort.open(folder / "volumes" / "cohort.yaml")
    )


@dataclass
class Stepped:
    """What a step leaves behind."""

    losses: dict[str, Tensor]
    gradients: list[Tensor]
    buffers: list[Tensor]
    gram: Tensor | None
    goals: dict[str, Tensor]


def left_by(model: Model, losses: dict[str, Tensor]) -> Stepped:
    model.combiner.reconcile()
    model.combiner.commit()
    gradients = [parameter.grad for parameter in model.combiner.parameters]
    assert all(grad is not None for grad in gradients)
    gram = None if model.combiner.conflicts is None else model.combiner.conflicts.gram
    buffers = [buffer.clone() for buffer in model.encoder.buffers()]
    return Stepped(losses, [g.clone() for g in gradients if g is not None], buffers, gram, dict(model.combiner.goals))


def take(model: Model, loader: Loader, recipe: Recipe, *, observe: bool = True) -> Stepped:
    """One step of `accumulate` batches, as the loop takes it."""
    for number in range(recipe.training.accumulate):
        losses, _ = training_step(model, loader, loader.fetch(number), recipe, 0.25, observe=observe)
    return left_by(model, losses)


def still(model: Model) -> Model:
    """The model with its encoder's BatchNorm as in evaluation, whatever is said to it; everything else trains."""
    for norm in norms_of(model.encoder):
        norm.eval().train = lambda mode=True, norm=norm: norm  # type: ignore[method-assign]
    return model


def agree(found: Stepped, expected: Stepped, tolerance: float = 1e-10) -> None:
    for name, loss in expected.losses.items():
        torch.testing.assert_close(found.losses[name], loss, rtol=tolerance, atol=tolerance)
    assert any(gradient.any() for gradient in expected.gradients)
    for one, other in zip(found.gradients, expected.gradients, strict=True):
        # What a normalisation cancels, the bias before it, has no gradient but the rounding of others'.
        scale = max(float(other.abs().max()), 2e-3 * max(float(each.abs().max()) for each in expected.gradients))
        torch.testing.assert_close(one / scale, other / scale, rtol=tolerance, atol=tolerance)
    for one, other in zip(found.buffers, expected.buffers, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    assert (found.gram is None) == (expected.gram is None)
    if found.gram is not None and expected.gram is not None:
        scale = float(expected.gram.abs().max())
        torch.testing.assert_close(found.gram / scale, expected.gram / scale, rtol=tolerance, atol=tolerance)
    for branch, goals in expected.goals.items():
        torch.testing.assert_close(found.goals[branch], goals, rtol=tolerance, atol=tolerance)


def test_every_recipe_is_here() -> None:
    assert sorted(RECIPES) == recipe_names()


QUICK = ("comprer", "gcl", "mlvicx", "simclr", "supremix")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]
)
def test_gradients_of_a_recipe_are_those_of_its_step_without_chunks(ground: Ground, name: str) -> None:
    recipe = Recipe.load(name).override([*SMALL, *RECIPES[name]])
    expected, found = (
        take(still(model), loader, each)
        for each in (recipe, recipe.override(["sampling.chunk=3"]))
        for model, loader in [ground.model(each)]
    )
    agree(found, expected)


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("scope", ["encoder", "features"])
@pytest.mark.parametrize(
    "kind",
    [kind if kind in ("sum", "grad_mitigator") else pytest.param(kind, marks=pytest.mark.slow) for kind in COMBINERS],
)
def test_gradients_are_those_without_chunks_whatever_reconciles_them(
    ground: Ground, kind: str, scope: str, accumulate: int
) -> None:
    keys = [THREE, f"combiner={COMBINERS[kind]}", f"combiner.scope={scope}", f"training.accumulate={accumulate}"]
    recipe = Recipe.load("simclr").override([*SMALL, *RESNET, *keys])
    for observe in (True, False) if kind == "sum" else (True,):
        expected, found = (
            take(still(model), loader, each, observe=observe)
            for each in (recipe, recipe.override(["sampling.chunk=3"]))
            for model, loader in [ground.model(each)]
        )
        agree(found, expected)


def naive(model: Model, loader: Loader, recipe: Recipe, sizes: list[int]) -> Stepped:
    """The same chunks forwarded one after the other in one graph, without GradCache."""
    local, whole = loader.batch(loader.fetch(0), device=CPU, progress=0.25)
    parts: list[Features] = []
    with model.autocast:
        for place, size in enumerate(sizes):
            inside = [sum(sizes[:place]) + each for each in range(size)]
            views, rows = {}, {}
            for modality, images in local.views.items():
                own = [at for at, row in enumerate(local.rows[modality].tolist()) if row in inside]
                if own:
                    views[modality] = images[:, own]
                    rows[modality] = torch.tensor([inside.index(local.rows[modality].tolist()[at]) for at in own])
            mask = None if local.frame_mask is None else local.frame_mask[inside]
            with seeded(seed_for(whole.seed, "encoder", 0, place)):
                needs = {"levels": model.needs.levels, "grid": model.needs.grid}
                parts.append(model.encoder.encode(views, rows, frame_mask=mask, **needs))
        joined = Features(torch.cat([part.pooled for part in parts], 1))
        for modality in local.views:
            with_it = [part for part in parts if modality in part.grid or modality in part.levels]
            if model.needs.levels:
                joined.levels[modality] = [
                    torch.cat(maps, 1) for maps in zip(*(part.levels[modality] for part in with_it), strict=True)
                ]
            if model.needs.grid:
                joined.grid[modality] = torch.cat([part.grid[modality] for part in with_it], 1)
        opened = model.combiner.open(joined, observe=True)
        losses = {
            name: objective.loss(objective.embed(opened, local), whole) for name, objective in model.objectives.items()
        }
    weighted = {name: loss.value * recipe.objectives[name].weight for name, loss in losses.items()}
    model.combiner.accumulate(weighted, seed=whole.seed, observe=True)
    return left_by(model, {name: loss.value.detach() for name, loss in losses.items()})


def with_dropout(model: Model) -> None:
    assert not isinstance(model.encoder.neck, nn.ModuleList)
    model.encoder.neck = nn.Dropout(0.5)


TRAINED: dict[str, tuple[list[str], list[int], Callable[[Model], None] | None]] = {
    "statistics of each chunk": (["sampling.chunk=3"], [2, 3, 3], None),
    "one chunk": (["sampling.chunk=8"], [8], None),
    "chunks of one sample": (["sampling.chunk=1"], [1] * 8, None),
    "dropout": (["sampling.chunk=4"], [4, 4], with_dropout),
    "dropout at the features": (["sampling.chunk=4", "combiner={kind: pcgrad, scope: features}"], [4, 4], with_dropout),
    "encoders of modalities": (["sampling.chunk=2", "encoders=per_modality"], [2] * 4, None),
    "part of the encoder": (["sampling.chunk=3", "encoder.unfrozen=2", "combiner={scope: features}"], [2, 3, 3], None),
    "checkpointing": (
        ["sampling.chunk=3", "encoder={backbone: vit_tiny}", "objectives.l=null",
         "training.activation_checkpointing=true"],
        [2, 3, 3],
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TRAINED)
def test_a_step_is_that_of_one_graph_over_the_same_chunks(ground: Ground, case: str) -> None:
    keys, sizes, change = TRAINED[case]
    recipe = Recipe.load("simclr").override([*SMALL, *RESNET, THREE, *keys])
    found, expected = (
        step(model, loader)
        for step in (lambda m, b: take(m, b, recipe), lambda m, b: naive(m, b, recipe, sizes))
        for model, loader in [ground.model(recipe)]
        for _ in [change and change(model)]
    )
    agree(found, expected)


def test_one_image_of_a_modality_in_a_chunk_sees_the_same_statistics_twice(ground: Ground) -> None:
    """Its norms use the running statistics, which the chunks before it have changed: in both forwards alike."""
    keys = ["images.views=1", "sampling.chunk=3", "objectives={p: {kind: contrast, relation: patient, dim: 8}}"]
    recipe = Recipe.load("simclr").override([*SMALL, *RESNET, *keys])
    model, loader = ground.model(recipe)
    chunks = ({0, 1}, {2, 3, 4}, {5, 6, 7})
    assert any(len(chunk & set(own.tolist())) == 1 for own in loader.fetch(0).rows.values() for chunk in chunks[1:])
    born = [buffer.clone() for buffer in model.encoder.buffers()]
    found = take(model, loader, recipe)
    agree(found, naive(*ground.model(recipe), recipe, [2, 3, 3]))
    assert any(not torch.equal(one, other) for one, other in zip(found.buffers, born, strict=True))


def test_clips_go_in_chunks_with_their_frame_masks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "img").mkdir()
    lines = ["image,patient,series,order,severity"]
    for patient in range(14):
        for frame in range(1 + patient % 3):
            name = f"img/{patient}-{frame}.png"
            PillowImage.fromarray(rng.integers(0, 255, (32, 32)).astype(np.uint8)).save(tmp_path / name)
            lines.append(f"{name},P{patient},S{patient},{frame},{patient / 3:.2f}")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "cohort.yaml").write_text(
        "table: table.csv\nroles: {'score:severity': severity}\nsplit: {seed: 1, val: 0.1, test: 0.1}\n"
    )
    cohort = Cohort.open(tmp_path / "cohort.yaml")
    ground = Ground(cohort, tmp_path / "cache", volumes=cohort)
    keys = [*SMALL, "encoder={backbone: r18w32, temporal_shift: 8}", "images.frames=3", "sampling.chunk=3"]
    recipe = Recipe.load("learner").override(keys)
    model, loader = ground.model(recipe)
    mask = loader.fetch(0).frame_mask
    assert mask is not None
    assert not mask.all()
    agree(take(model, loader, recipe), naive(*ground.model(recipe), recipe, [2, 3, 3]))


def test_bf16_gives_what_the_same_chunks_give(ground: Ground) -> None:
    recipe = Recipe.load("simclr").override([*SMALL, *RESNET, THREE, "sampling.chunk=3", "training.precision=bf16"])
    found = take(*ground.model(recipe), recipe)
    expected = naive(*ground.model(recipe), recipe, [2, 3, 3])
    assert all(gradient.dtype == torch.float32 for gradient in found.gradients)
    for name, loss in expected.losses.items():
        assert torch.equal(found.losses[name], loss), "the forward is the same"
    one, other = (torch.cat([g.flatten() for g in each.gradients]).double() for each in (found, expected))
    assert float((one - other).norm() / other.norm()) < 0.01


def test_a_batch_without_positives_gives_zero_gradients(ground: Ground) -> None:
    keys = ["images.views=1", "sampling={batch_size: 8, partners: 0, chunk: 2}",
            "objectives={p: {kind: contrast, dim: 8, relation: {same: [patient], differ: [visit]}}}"]  # fmt: skip
    recipe = Recipe.load("simclr").override([*SMALL, "encoder={backbone: vit_tiny}", *keys])
    model, loader = ground.model(recipe)
    for role in ("visit", "patient"):
        loader.columns = {**loader.columns, role: np.full_like(loader.columns[role], -1)}
    losses, counts = training_step(model, loader, loader.fetch(0), recipe, 0.0)
    assert (float(losses["p"]), counts["p"]["anchors"]) == (0.0, 0)
    model.combiner.reconcile()
    assert all(p.grad is not None and not p.grad.any() for p in model.combiner.parameters)


@pytest.mark.parametrize(("unfrozen", "forwards"), [(0, 1), (1, 2)])
def test_only_an_encoder_that_is_trained_runs_again(ground: Ground, unfrozen: int, forwards: int) -> None:
    recipe = Recipe.load("simclr").override([*SMALL, *RESNET, f"encoder.unfrozen={unfrozen}", "sampling.chunk=3"])
    model, loader = ground.model(recipe)
    seen: list[int] = []
    model.encoder.backbone.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    assert any(gradient.any() for gradient in take(model, loader, recipe).gradients)
    assert sum(seen) == forwards * 2 * 8
    assert max(seen) <= 2 * 3, "two views of at most three samples"


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Bytes that graphs keep at once, at most, beside the parameters."""
    live = {"now": 0, "most": 0}

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor, self.size = tensor, 0 if isinstance(tensor, nn.Parameter) else tensor.nbytes
            live["now"] += self.size
            live["most"] = max(live["most"], live["now"])

        def __del__(self) -> None:
            live["now"] -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        yield live


def test_graphs_keep_what_one_chunk_needs(ground: Ground) -> None:
    most = {}
    base = Recipe.load("simclr").override(["images.size=32", *RESNET])
    for name, keys in {"chunk": ["sampling.batch_size=2"], "whole": ["sampling.batch_size=32"],
                       "chunks": ["sampling.batch_size=32", "sampling.chunk=2"]}.items():  # fmt: skip
        recipe = base.override(keys)
        model, loader = ground.model(recipe)
        with counted() as live:
            training_step(model, loader, loader.fetch(0), recipe, 0.0)
        most[name] = live["most"]
    assert most["chunks"] <= 1.15 * most["chunk"]
    assert most["whole"] > 8 * most["chunk"], "as without chunks it would be"


def test_stopped_and_resumed_in_chunks_gives_the_same_weights_bit_for_bit(
    tiny_cohort: Path, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    keys = ["sampling.chunk=3", "training.accumulate=2", "training.epochs=1", "combiner={kind: pcgrad}"]
    recipe = Recipe.load(small_recipe).override(keys)
    options: dict[str, Any] = {"recipe": recipe, "cache": tmp_path / "cache", "quiet": True}
    whole = pretrain(tiny_cohort, out=tmp_path / "whole", **options)
    part = pretrain(tiny_cohort, out=tmp_path / "parts", overrides=["training.max_hours=1e-9"], **options)
    assert part.status == "stopped"
    last = pretrain(tiny_cohort, out=tmp_path / "parts", resume=True, **options)
    assert last.record["weights"] == whole.record["weights"]


def test_a_batch_is_split_evenly_and_in_its_order() -> None:
    rows = {"CT": np.array([0, 5]), "MR": np.array([1, 2, 3, 4, 6])}
    batch = Batch(
        {name: torch.as_tensor(own)[None, :, None, None, None].repeat(2, 1, 1, 4, 4) for name, own in rows.items()},
        {name: torch.as_tensor(own) for name, own in rows.items()},
        {"sample": torch.arange(7), "label:x": torch.arange(7)},
        torch.eye(7, dtype=torch.bool),
        progress=0.5,
        seed=3,
    )
    parts = split_batch(batch, rows, 3)
    assert [part.num_samples for part in parts] == [2, 2, 3]
    assert [sorted(part.views) for part in parts] == [["CT", "MR"], ["MR"], ["CT", "MR"]]
    start = 0
    for part in parts:
        assert (part.progress, part.seed) == (0.5, 3)
        for name, own in part.rows.items():
            assert part.views[name][0, :, 0, 0, 0].tolist() == (own + start).tolist()
        assert part.columns["label:x"].tolist() == part.columns["sample"].tolist()
        assert part.frame_mask is not None
        assert part.frame_mask.nonzero()[:, 1].tolist() == part.columns["sample"].tolist()
        start += part.num_samples


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["sampling.chunk=9"], r"sampling\.chunk: expected at most the 8 samples of a batch .*, found 9"),
        (["sampling.chunk=0"], r"sampling\.chunk"),
        (["sampling.chunk=1", "images.views=1", "objectives={p: {kind: predict, targets: ['score:age']}}"],
         r"has some of one image, of which the encoder's BatchNorm has no statistics"),
        (["sampling={batch_size: 3, chunk: 2}", "images.views=1",
          "objectives={p: {kind: predict, targets: ['score:age']}}"],
         r"in chunks of 2 samples a batch of 3 has some of one image"),
    ],
)  # fmt: skip
def test_chunks_that_cannot_be_are_refused(ground: Ground, keys: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ground.model(Recipe.load("simclr").override([*SMALL, *RESNET, *keys]))


def test_single_images_without_batch_statistics_are_chunks_too(ground: Ground) -> None:
    keys = ["encoder={backbone: vit_tiny}", "images.views=1", "sampling.chunk=1"]
    recipe = Recipe.load("supervised").override([*SMALL, *keys, f"objectives.predict.{AGE}"])
    found, expected = take(*ground.model(recipe), recipe), naive(*ground.model(recipe), recipe, [1] * 8)
    agree(found, expected)


def test_out_of_memory_names_the_key(ground: Ground) -> None:
    for keys, named in (([], "sampling.chunk=4"), (["sampling.chunk=8"], "sampling.chunk=4")):
        recipe = Recipe.load("simclr").override([*SMALL, *keys])
        with pytest.raises(OutOfMemoryError, match=named), explain_memory(recipe):
            raise MemoryError
    with pytest.raises(OutOfMemoryError) as caught, explain_memory(recipe.override(["sampling.chunk=2"])):
        raise MemoryError
    assert "sampling.chunk=" not in str(caught.value)


def test_without_chunks_a_recipe_has_the_digest_it_had() -> None:
    recipe = Recipe.load({"name": "mine", "objectives": {"views": {"kind": "contrast"}}})
    assert recipe.digest == "b90d3ec81ab7"  # of the version before the key
    assert recipe.override(["sampling.chunk=8"]).digest != recipe.digest
