"""Modalities of different sizes and channels in one batch, seen by one encoder or each by its own."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image as PillowImage

from bolus.data.batches.batch import Batch
from bolus.data.batches.columns import TrainingColumns
from bolus.data.cohort.cohort import Cohort
from bolus.data.images.cache import build_store
from bolus.data.images.preprocessing import Preprocessing, join_contracts
from bolus.data.views.augment import plain
from bolus.embedding.opening import open_encoder, open_store
from bolus.embedding.table import embed
from bolus.embedding.vectors import embed_samples
from bolus.encoders.building import build_encoder
from bolus.encoders.features import FeatureShape
from bolus.encoders.folders.folder import lineage_of, load_encoder, save_encoder
from bolus.encoders.folders.modality_folder import DESCRIPTION, load_encoders, save_encoders
from bolus.encoders.modalities import ModalityEncoders, build_encoders, part_folders
from bolus.errors import CohortError, EncoderError, EvaluationError, RecipeError, UsageError
from bolus.evaluation.probing.heads import digest_of_encoder
from bolus.evaluation.probing.reading import evaluate
from bolus.evaluation.segmentation.segment import evaluate_segment
from bolus.objectives.contrasts.contrast import Contrast
from bolus.objectives.dense.pixel import PixelContrast
from bolus.prediction.prediction import predict
from bolus.recipe import EncoderSpec, Recipe
from bolus.run import Run
from bolus.training.assembly import build_model, resolve
from bolus.training.health.health import watch
from bolus.training.loaders import build_loader, contract_of, open_images
from bolus.training.loop import pretrain
from bolus.training.processes import launched
from bolus.training.rehearsal import dry_run
from test_processes import WORKER, compare, launch

CPU = torch.device("cpu")
OWN = {
    "encoders": "per_modality",
    "modalities": {
        "MR": {"encoder": {"backbone": "r18w32", "stem_pool": False, "context": True}},
        "CFP": {"encoder": {"backbone": "vit_tiny", "in_channels": 3}, "size": 48, "augment": {"preset": "fundus"}},
    },
}


@pytest.fixture
def two(tmp_path: Path) -> Path:
    return write_two(tmp_path / "two")


def write_two(folder: Path) -> Path:
    """14 patients, two visits, each with a grey MR of 16 bits and a colour photograph; the ill have a bright square."""
    rng = np.random.default_rng(0)
    (folder / "img").mkdir(parents=True)
    lines = ["image,patient,visit,modality,sick,severity"]
    for patient in range(14):
        for visit in range(2):
            deep = rng.integers(200, 900, (40, 36))
            colour = rng.integers(40, 160, (60, 64, 3))
            if patient % 2:
                deep[10:20, 10:20] += 900
                colour[15:35, 15:35, 0] += 90
            names = [f"img/{kind}{patient}_{visit}.png" for kind in ("mr", "cfp")]
            PillowImage.fromarray(deep.astype(np.uint16)).save(folder / names[0])
            PillowImage.fromarray(colour.astype(np.uint8)).save(folder / names[1])
            for name, modality in zip(names, ("MR", "CFP"), strict=True):
                sick, severity = "yes" if patient % 2 else "no", patient % 2 * 3 + visit
                lines.append(f"{name},P{patient},{visit},{modality},{sick},{severity}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    (folder / "cohort.yaml").write_text(
        "table: table.csv\nroles: {'label:sick': sick, 'score:severity': severity}\n"
        "split: {seed: 1, val: 0.2, test: 0.25}\n"
    )
    return folder / "cohort.yaml"


SHARED: dict[str, Any] = {
    "name": "two",
    "encoder": {"backbone": "r18w32", "stem_pool": False, "in_channels": 3},
    "images": {"size": 32, "views": 2},
    "modalities": {"CFP": {"size": 48, "augment": {"preset": "fundus"}}},
    "sampling": {"batch_size": 8},
    "objectives": {
        "modality": {"kind": "contrast", "relation": {"same": ["patient", "visit"]}, "between": "modality",
                     "negatives": "other_patients", "dim": 8},
        "reconstruction": {"kind": "reconstruct", "channels": 16},
    },
    "optimizer": {"lr": 0.001},
    "training": {"epochs": 1, "max_steps": 2, "log_steps": 1},
}  # fmt: skip
"""One encoder; MR at 32 pixels, photographs at 48, all of three channels."""


@pytest.fixture
def shared() -> dict[str, Any]:
    return deepcopy(SHARED)


@pytest.fixture
def apart(shared: dict[str, Any]) -> dict[str, Any]:
    """Each modality its own encoder, of other families, widths and channels."""
    return {**shared, **deepcopy(OWN)}


@pytest.fixture(scope="module")
def trained_apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("apart")
    cohort, recipe = write_two(folder / "two"), deepcopy({**SHARED, **OWN})
    return pretrain(cohort, recipe=recipe, out=folder / "run", cache=folder / "cache", quiet=True).folder


@pytest.fixture
def run(trained_apart: Path, tmp_path: Path) -> Run:
    """A finished run of `apart` in the test's own folder."""
    shutil.copytree(trained_apart.parent / "cache", tmp_path / "cache")
    return Run(shutil.copytree(trained_apart, tmp_path / "run"))


def one_batch(cohort: Path, recipe: Recipe, cache: Path) -> tuple[Any, Any]:
    opened = Cohort.open(cohort)
    samples = opened.samples("image")
    model = build_model(recipe, CPU, TrainingColumns(samples))
    loader = build_loader(opened, samples, open_images(opened, recipe, cache, True), recipe, model.needs, launched())
    return model, loader.batch(loader.fetch(0), device=CPU, progress=0.0)[0]


# --- the recipe


def test_what_is_not_said_of_a_modality_is_as_for_all(apart: dict[str, Any]) -> None:
    recipe = Recipe.load(apart)
    assert recipe.encoder_of("MR").backbone == "r18w32"
    assert recipe.encoder_of("OCT") == recipe.encoder
    assert (recipe.images_of("MR"), recipe.images_of("OCT")) == (recipe.images, recipe.images)
    assert (recipe.images_of("CFP").size, recipe.images_of("CFP").views) == (48, 2)
    assert Recipe.load({**apart, "modalities": {}}).images_of("CFP") == recipe.images


def test_a_modality_s_keys_are_overridden_one_by_one(shared: dict[str, Any]) -> None:
    recipe = Recipe.load(shared).override(["encoders=per_modality", "modalities.MR.encoder.backbone=vit_tiny"])
    recipe = recipe.override(["modalities.CFP.augment.preset=mri", "modalities.MR.augment.rotation=3"])
    assert recipe.encoder_of("MR") == EncoderSpec(backbone="vit_tiny")
    assert recipe.images_of("CFP").augment.preset == "mri"
    assert recipe.images_of("MR").augment.rotation == 3


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["modalities.CFP.siz=3"], "unknown key 'modalities.CFP.siz'; did you mean 'size'"),
        (["modalities.CFP.encoder.backbone=vit_tiny"], "needs encoders: per_modality"),
        (["modalities.CFP.augment.rotaton=3"], "did you mean 'rotation'"),
        (["encoders=several"], "encoders"),
    ],
)
def test_a_modality_s_keys_are_checked(shared: dict[str, Any], keys: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.load(shared).override(keys)


def test_a_modality_s_own_keys_stand_on_those_of_all() -> None:
    recipe = Recipe.load("comprer").override(
        [
            "images.augment={preset: fundus, blur: 0.0}",
            "modalities.MR.encoder.unfrozen=1",
            "modalities.MR.augment.rotation=3",
            "modalities.US.encoder.backbone=vit_tiny",
        ]
    )
    assert recipe.encoder_of("MR") == recipe.encoder.model_copy(update={"unfrozen": 1})
    assert recipe.images_of("MR").augment == recipe.images.augment.model_copy(update={"rotation": 3})
    assert recipe.encoder_of("US") == EncoderSpec(backbone="vit_tiny")  # a whole one


def test_rows_without_a_modality_are_refused_where_each_has_an_encoder(two: Path, apart: dict[str, Any]) -> None:
    table = pd.read_csv(two.parent / "table.csv", dtype=str)
    table.loc[4, "modality"] = ""
    table.to_csv(two.parent / "table.csv", index=False)
    with pytest.raises(CohortError, match="row 5 have no modality"):
        build_model(Recipe.load(apart), CPU, TrainingColumns(Cohort.open(two).samples("image"), {}))


def test_one_image_of_a_modality_is_normalised_by_what_was_seen_before() -> None:
    encoder = build_encoder(EncoderSpec(backbone="r18w32"), seed=0)
    seen = encoder.backbone.embedder.embedder.normalization.running_mean.clone()
    found = encoder(torch.rand(1, 1, 32, 32)).pooled
    found.sum().backward()
    assert encoder.training
    assert encoder.backbone.embedder.embedder.normalization.training
    assert torch.equal(encoder.backbone.embedder.embedder.normalization.running_mean, seen)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_a_batch_of_a_frozen_modality_alone_leaves_the_others_be(two: Path, apart: dict[str, Any]) -> None:
    frozen = ["modalities.CFP.encoder.unfrozen=0", "combiner={kind: pcgrad, scope: features}"]
    more = ["objectives.two={kind: contrast, relation: views, dim: 8}"]
    recipe = Recipe.load(apart).override([*frozen, *more, "sampling.batch_size=4"])
    cohort = Cohort.open(two)
    samples = cohort.samples("image")
    model = build_model(recipe, CPU, TrainingColumns(samples, {}))
    views, rows = {"CFP": torch.rand(2, 3, 3, 48, 48)}, {"CFP": torch.arange(3)}
    columns = {"sample": torch.arange(3), "patient": torch.arange(3), "visit": torch.zeros(3)}
    batch = Batch(views, rows, {**columns, "modality": torch.zeros(3, dtype=torch.int64)})
    features = model.combiner.open(model.encoder.encode(views, rows), observe=True)
    names = [name for name, each in model.objectives.items() if isinstance(each, Contrast)]
    losses = {
        name: each.loss(each.embed(features, batch), batch).value if name in names else features.pooled.sum() * 0.0
        for name, each in model.objectives.items()
    }
    model.combiner.accumulate(losses, observe=True)
    model.combiner.reconcile()
    of_mr = list(model.encoder.of("MR").parameters())
    assert all(p.grad is not None and not p.grad.any() for p in of_mr)


def test_presets_are_written_out_for_each_modality(shared: dict[str, Any]) -> None:
    resolved = resolve(Recipe.load(shared))
    augment = resolved.modalities["CFP"].augment
    assert augment is not None
    assert augment.rotation == 30.0
    assert resolved.images.augment.rotation == 10.0
    assert resolve(resolved) == resolved
    with pytest.raises(RecipeError, match=r"modalities.CFP.augment.crop_scale"):
        resolve(Recipe.load(shared).override(["modalities.CFP.augment.crop_scale=[1, 0.1]"]))


def test_a_modality_that_the_cohort_lacks_is_refused_with_a_suggestion(two: Path, shared: dict[str, Any]) -> None:
    columns = TrainingColumns(Cohort.open(two).samples("image"))
    assert columns.modalities == ["CFP", "MR"]
    with pytest.raises(RecipeError, match=r"'CFQ'; did you mean 'CFP'"):
        build_model(Recipe.load({**shared, "modalities": {"CFQ": {"size": 48}}}), CPU, columns)


def test_an_encoder_for_each_modality_needs_the_column(tiny_cohort: Path, small_recipe: dict[str, Any]) -> None:
    recipe = Recipe.load(small_recipe).override(["encoders=per_modality"])
    with pytest.raises(CohortError, match="no column has the role modality"):
        build_model(recipe, CPU, TrainingColumns(Cohort.open(tiny_cohort).samples("image")))


def test_sizes_are_checked_against_the_encoder_that_sees_them(two: Path, apart: dict[str, Any]) -> None:
    columns = TrainingColumns(Cohort.open(two).samples("image"))
    with pytest.raises(EncoderError, match="multiples of 8 pixels"):
        build_model(Recipe.load(apart).override(["modalities.CFP.size=50"]), CPU, columns)
    with pytest.raises(RecipeError, match=r"modalities.MR.encoder.temporal_shift=null"):
        build_model(Recipe.load(apart).override(["modalities.MR.encoder.temporal_shift=8"]), CPU, columns)
    with pytest.raises(EncoderError, match=r"CFP: no encoder '/no/such'"):
        build_model(Recipe.load(apart).override(["modalities.CFP.encoder.backbone=/no/such"]), CPU, columns)


# --- the contract and the store


def test_contracts_by_modality_are_read_back_and_old_ones_stay() -> None:
    contract = Preprocessing(32, 1, ranges={"MR": (0.0, 2047.0)}, modalities={"CFP": Preprocessing(48, 3, "crop")})
    assert Preprocessing(**json.loads(json.dumps(contract.to_json()))) == contract
    assert "modalities" not in Preprocessing(32).to_json()
    assert Preprocessing(size=32, channels=1, fit="pad", ranges={}, frames=None) == Preprocessing(32)
    own = contract.of("CFP")
    assert (own.size, own.channels, own.fit, own.ranges, own.modalities) == (48, 3, "crop", {"MR": (0.0, 2047.0)}, {})
    assert contract.of("OCT") == replace(contract, modalities={})


def test_one_contract_is_left_where_one_holds() -> None:
    contract = Preprocessing(32, modalities={"CFP": Preprocessing(48, 3)})
    assert contract.seen_by(np.array(["CFP", "CFP"])) == Preprocessing(48, 3)
    assert contract.seen_by(np.array(["MR", "XR"])) == Preprocessing(32)
    assert contract.seen_by(np.array(["MR", "CFP"])) is contract
    assert contract.seen_by(np.array([], str)) == Preprocessing(32)
    joined = join_contracts({"CFP": contract.of("CFP"), "MR": replace(contract.of("MR"), ranges={"MR": (0.0, 9.0)})})
    assert joined.of("MR") == Preprocessing(32, ranges={"MR": (0.0, 9.0)})
    assert joined.of("CFP") == Preprocessing(48, 3, ranges={"MR": (0.0, 9.0)})


def test_a_store_of_two_contracts_holds_what_two_stores_hold(two: Path, tmp_path: Path) -> None:
    cohort, steps = Cohort.open(two), list[tuple[int, int]]()
    contract = Preprocessing(32, modalities={"CFP": Preprocessing(48, 3)})
    store = build_store(
        cohort, contract, folder=tmp_path / "cache", on_progress=lambda done, total: steps.append((done, total))
    )
    assert steps[-1] == (len(cohort), len(cohort))
    assert [done for done, _ in steps] == list(range(1, len(cohort) + 1))
    assert store.readable.all()
    assert store.preprocessing == replace(contract, rules={"MR": ("series", 0.5, 99.5)})
    for name, alone in (("MR", Preprocessing(32)), ("CFP", Preprocessing(48, 3))):
        rows = np.flatnonzero(cohort.modality == name)
        other = build_store(cohort, alone, folder=tmp_path / "other", rows=rows)
        torch.testing.assert_close(store.gather(rows).unit(), other.gather(rows).unit(), rtol=0, atol=0)
        assert store.gather(rows).values.shape[1:] == alone.stored_shape
    with pytest.raises(AssertionError, match="differ in size"):
        store.gather(np.array([0, 1]))


def test_quarantine_and_the_larger_part_are_of_all_contracts(two: Path, tmp_path: Path) -> None:
    images = sorted((two.parent / "img").glob("mr*.png"))
    for path in images[:20]:
        path.write_bytes(b"no picture")
    contract = Preprocessing(32, modalities={"CFP": Preprocessing(48, 3)})
    store = build_store(Cohort.open(two), contract, folder=tmp_path / "cache")
    assert len(store.quarantined) == 20, "more than half of the MRs, less than half of the images"
    assert int((~store.readable).sum()) == 20
    rows = {item.row for item in store.quarantined}
    assert rows == set(np.flatnonzero(~store.readable).tolist())
    for path in (two.parent / "img").glob("cfp*.png"):
        path.write_bytes(b"no picture either")
    with pytest.raises(CohortError, match="48 of 56 images cannot be read"):
        build_store(Cohort.open(two), contract, folder=tmp_path / "new")


def test_the_recipe_s_contract_says_what_differs(two: Path, apart: dict[str, Any], shared: dict[str, Any]) -> None:
    cohort = Cohort.open(two)
    assert contract_of(cohort, Recipe.load(shared)) == Preprocessing(32, 3, modalities={"CFP": Preprocessing(48, 3)})
    own = contract_of(cohort, Recipe.load(apart))
    assert (own.of("MR"), own.of("CFP")) == (Preprocessing(32, 1), Preprocessing(48, 3))
    alike = contract_of(cohort, Recipe.load(shared).override(["modalities.CFP.size=32"]))
    assert alike == Preprocessing(32, 3)


# --- the encoders


def small_encoders(seed: int = 0) -> ModalityEncoders:
    specs = {name: Recipe.load({"name": "x", "objectives": {"c": {"kind": "contrast"}}, **OWN}).encoder_of(name)
             for name in ("MR", "CFP")}  # fmt: skip
    return build_encoders(specs, seed=seed)


def test_narrower_encoders_get_a_neck_of_the_widest() -> None:
    both = small_encoders()
    assert both.names == ("CFP", "MR")
    assert (both.of("CFP").spec.neck, both.of("MR").spec.neck) == (256, None)
    assert both.shape == FeatureShape(dim=256, grid_channels=0, grid_stride=0)
    with pytest.raises(EncoderError, match="no encoder for modality 'OCT': there are encoders for CFP, MR"):
        both.of("OCT")
    with pytest.raises(EncoderError, match=r"CFP: encoder.neck: expected 256.*found 16"):
        build_encoders({"CFP": EncoderSpec(backbone="vit_tiny", neck=16), "MR": EncoderSpec(backbone="r18w32")}, seed=0)
    with pytest.raises(EncoderError, match="one width"):
        ModalityEncoders({name: build_encoder(EncoderSpec(backbone=name), seed=0) for name in ("vit_tiny", "r18w32")})


def test_equal_encoders_share_their_shapes_and_no_weight() -> None:
    both = build_encoders({name: EncoderSpec(backbone="r18w32") for name in ("A", "B")}, seed=0)
    alone = build_encoder(EncoderSpec(backbone="r18w32"), seed=0).shape
    assert both.shape == alone
    first, second = ([*both.of(name).parameters()] for name in both.names)
    assert not {id(p) for p in first} & {id(p) for p in second}
    assert any(not torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_weights_are_a_function_of_seed_and_name() -> None:
    both, again, other = small_encoders(), small_encoders(), small_encoders(1)
    assert digest_of_encoder(both) == digest_of_encoder(again) != digest_of_encoder(other)
    alone = build_encoders({"MR": both.of("MR").spec}, seed=0)
    assert digest_of_encoder(alone.of("MR")) == digest_of_encoder(both.of("MR"))
    twin = both.twin(seed=3)
    assert digest_of_encoder(twin) == digest_of_encoder(both.twin(seed=3)) != digest_of_encoder(both)
    assert twin.shape == both.shape
    before = torch.random.get_rng_state()
    both.twin(seed=4)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_each_modality_goes_through_its_own_encoder_in_the_batch_order() -> None:
    both = small_encoders().double().eval()
    views = {"CFP": torch.rand(2, 2, 3, 48, 48), "MR": torch.rand(2, 3, 1, 32, 32)}
    rows = {"CFP": torch.tensor([3, 1]), "MR": torch.tensor([0, 4, 2])}
    with torch.no_grad():
        found = both.encode(views, rows, grid=True)
        for name, places in rows.items():
            for at, place in enumerate(places.tolist()):
                for view in range(2):
                    alone = both.of(name)(views[name][view, at][None]).pooled[0]
                    torch.testing.assert_close(found.pooled[view, place], alone, rtol=1e-10, atol=1e-10)
    assert (found.grid["CFP"].shape, found.grid["MR"].shape) == ((2, 2, 64, 6, 6), (2, 3, 256, 2, 2))
    with pytest.raises(EncoderError, match="no encoder for modality 'OCT'"):
        both.encode({"OCT": views["MR"]}, {"OCT": torch.arange(3)})


def test_a_modality_that_a_batch_lacks_has_no_gradient() -> None:
    both = small_encoders()
    both.encode({"MR": torch.rand(1, 2, 1, 32, 32)}, {"MR": torch.arange(2)}).pooled.sum().backward()
    assert all(parameter.grad is None for parameter in both.of("CFP").parameters())
    assert any(parameter.grad is not None for parameter in both.of("MR").parameters())


def test_objectives_that_need_maps_of_all_are_refused(two: Path, apart: dict[str, Any]) -> None:
    columns = TrainingColumns(Cohort.open(two).samples("image"))
    with pytest.raises(RecipeError, match="differ between the encoders"):
        PixelContrast(small_encoders().shape, relation="patient")
    levels = "objectives={l: {kind: varcov, source: levels, width: 8}}"
    with pytest.raises(RecipeError, match="levels"):
        build_model(Recipe.load(apart).override([levels]), CPU, columns)
    same = ["modalities.CFP.encoder.backbone=r18w32", "modalities.CFP.encoder.stem_pool=false"]
    assert build_model(Recipe.load(apart).override([levels, *same]), CPU, columns).encoder.shape.levels


def test_pixels_of_clips_are_refused(two: Path, shared: dict[str, Any]) -> None:
    recipe = Recipe.load(shared).override(["images.unit=clip"])
    with pytest.raises(RecipeError, match=r"reads the pixels of single images, and images.unit is clip"):
        build_model(recipe, CPU, TrainingColumns(Cohort.open(two).samples("image")))


# --- one batch, one run


@pytest.mark.parametrize("kind", ["shared", "apart"])
def test_two_sizes_and_channels_stand_in_one_batch(
    two: Path, request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    recipe = Recipe.load(request.getfixturevalue(kind))
    model, batch = one_batch(two, recipe, tmp_path / "cache")
    channels = 3 if kind == "shared" else 1
    assert batch.views["MR"].shape[2:] == (channels, 32, 32)
    assert batch.views["CFP"].shape[2:] == (3, 48, 48)
    assert len(batch.rows["MR"]) + len(batch.rows["CFP"]) == 8
    decoders = model.objectives["reconstruction"]
    assert [decoder.sizes for decoder in decoders.decoders] == [(48, 48), (32, 32)]
    features = model.encoder.encode(batch.views, batch.rows)
    assert features.pooled.shape == (2, 8, 256)
    for name, objective in model.objectives.items():
        loss = objective.loss(objective.embed(features, batch), batch)
        assert loss.num_anchors, name
        assert torch.isfinite(loss.value)


def test_a_key_of_one_modality_leaves_the_views_of_another_alone(
    two: Path, shared: dict[str, Any], tmp_path: Path
) -> None:
    first = one_batch(two, Recipe.load(shared), tmp_path / "cache")[1]
    other = one_batch(two, Recipe.load(shared).override(["modalities.CFP.augment.rotation=0"]), tmp_path / "cache")[1]
    assert torch.equal(first.views["MR"], other.views["MR"])
    assert not torch.equal(first.views["CFP"], other.views["CFP"])


@pytest.mark.parametrize("kind", ["shared", "apart"])
def test_a_run_resumes_exactly(two: Path, request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    recipe = Recipe.load(request.getfixturevalue(kind)).override(["training.max_steps=3"])
    options: dict[str, Any] = {"recipe": recipe, "cache": tmp_path / "cache", "quiet": True}
    whole = pretrain(two, out=tmp_path / "whole", **options)
    part = pretrain(two, out=tmp_path / "part", overrides=["training.max_hours=1e-9"], **options)
    assert part.status == "stopped"
    part = pretrain(two, out=tmp_path / "part", resume=True, **options)
    assert part.status == "finished"
    assert part.record["weights"] == whole.record["weights"]
    losses = [line["loss"] for line in whole.metrics() if line["kind"] == "train"]
    assert np.isfinite(losses).all()
    health = [line for line in whole.metrics() if line["kind"] == "health"]
    assert {"spread", "alignment"} <= {finding["name"] for finding in health[-1]["findings"]}


def test_a_rehearsal_takes_two_steps(two: Path, apart: dict[str, Any], tmp_path: Path) -> None:
    assert dry_run(two, recipe=apart, cache=tmp_path / "cache").images_per_second > 0


@pytest.mark.slow
def test_two_processes_equal_one(two: Path, apart: dict[str, Any], tmp_path: Path) -> None:
    recipe, path = Recipe.load(apart), tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    (tmp_path / "worker.py").write_text(WORKER)
    launch(tmp_path / "worker.py", two, tmp_path / "cache", path, ACCELERATE_USE_CPU="true")
    found = [torch.load(path.with_suffix(f".{rank}.pt"), weights_only=True) for rank in (0, 1)]
    compare(Cohort.open(two), recipe, tmp_path / "cache", *found)


# --- the folder, and what opens it


def test_a_run_s_folder_opens_whole_and_part_by_part(run: Run, two: Path, tmp_path: Path) -> None:
    assert part_folders(["MR", "CFP"]) == {"CFP": "0-CFP", "MR": "1-MR"}
    assert sorted(path.name for path in run.encoder.iterdir()) == ["0-CFP", "1-MR", DESCRIPTION]
    whole = open_encoder(run.folder)
    assert isinstance(whole.encoder, ModalityEncoders)
    assert not whole.encoder.training
    assert (whole.preprocessing.of("MR").size, whole.preprocessing.of("CFP").channels) == (32, 3)
    assert whole.preprocessing.rules == {"MR": ("series", 0.5, 99.5)}
    assert [each["keys"] for each in whole.lineage] == [run.record["training_patients"]]
    assert digest_of_encoder(open_encoder(run.encoder).encoder) == digest_of_encoder(whole.encoder)
    cohort = Cohort.open(two)
    rows = np.flatnonzero(cohort.modality == "CFP")
    frame = pd.read_csv(two.parent / "table.csv").iloc[rows]
    frame.to_csv(two.parent / "photos.csv", index=False)
    alone = embed(run.encoder / "0-CFP", two.parent / "photos.csv", cache=tmp_path / "cache")
    together = embed(run.folder, two, cache=tmp_path / "cache")
    assert (together["row"] == np.arange(len(cohort)) + 1).all()
    np.testing.assert_allclose(
        np.stack(list(alone["embedding"])), np.stack(list(together["embedding"][rows])), rtol=1e-4, atol=1e-5
    )
    assert lineage_of(run.encoder / "1-MR") == list(whole.lineage)
    assert "48 x 48 pixels, of modality CFP, 3 channel(s)" in (run.encoder / "0-CFP" / "README.md").read_text()


def test_embeddings_stand_in_the_order_asked_for(run: Run, two: Path, tmp_path: Path) -> None:
    judged, cohort = open_encoder(run.folder), Cohort.open(two)
    store, samples = open_store(judged, cohort, cache=tmp_path / "cache"), cohort.samples("image")
    positions = np.random.default_rng(0).permutation(len(samples))[:21]
    judged.encoder.double()  # what is written is rounded to float32
    found = embed_samples(judged.encoder, store, samples, positions, batch_size=4)
    assert isinstance(judged.encoder, ModalityEncoders)
    for place, position in enumerate(positions.tolist()):
        name = str(cohort.modality[position])
        image = plain(store.gather(np.array([position])).unit(), size=store.preprocessing.of(name).size)
        with torch.inference_mode():
            expected = judged.encoder.of(name)(image).pooled[0].numpy()
        np.testing.assert_allclose(found[place], expected, rtol=1e-6, atol=1e-10)
    assert embed_samples(judged.encoder, store, samples, positions[:0]).shape == (0, 256)


def test_one_encoder_sees_modalities_at_their_sizes(two: Path, shared: dict[str, Any], tmp_path: Path) -> None:
    made = pretrain(two, recipe=shared, out=tmp_path / "one", cache=tmp_path / "cache", quiet=True)
    judged, cohort = open_encoder(made.folder), Cohort.open(two)
    assert judged.preprocessing.of("CFP").size == 48
    store, samples = open_store(judged, cohort, cache=tmp_path / "cache"), cohort.samples("image")
    judged.encoder.double()  # what is written is rounded to float32
    found = embed_samples(judged.encoder, store, samples, np.arange(4))
    for position, size in enumerate((32, 48, 32, 48)):
        image = plain(store.gather(np.array([position])).unit(), size=size)
        with torch.inference_mode():
            expected = judged.encoder.of("any")(image).pooled[0].numpy()
        np.testing.assert_allclose(found[position], expected, rtol=1e-6, atol=1e-10)
    with pytest.raises(EvaluationError, match=r"needs images of one size, and this encoder sees CFP 48.*MR 32"):
        evaluate(made.folder, two, target="sick", probes=("finetune",), cache=tmp_path / "cache")


def test_without_context_is_a_column_and_heads_fit_again(run: Run, two: Path, tmp_path: Path) -> None:
    found = evaluate(run.folder, two, target="sick", probes=("linear",), draws=20, cache=tmp_path / "cache")
    assert {result.encoder for result in found.results} == {"run", "random-init", "run without context", "majority"}
    frame = predict(run.folder, two, head="sick", cache=tmp_path / "cache")
    assert frame["predicted"].notna().all()


def test_what_trains_an_encoder_names_the_folder_to_open(run: Run, two: Path, tmp_path: Path) -> None:
    for kind in ("frozen", "finetune"):
        with pytest.raises(EncoderError, match=f"'{kind}' needs one encoder.*encoder/0-CFP for CFP, encoder/1-MR"):
            evaluate(run.folder, two, target="sick", probes=("linear", kind), cache=tmp_path / "none")
    assert not (tmp_path / "none").exists(), "refused before an image is read"
    with pytest.raises(EncoderError, match="segmentation needs one encoder"):
        evaluate_segment(run.folder, two, cache=tmp_path / "cache")


def test_a_modality_without_encoder_is_refused_before_an_image_is_read(run: Run, two: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(two.parent / "table.csv")
    frame.loc[3, "modality"] = "OCT"
    frame.to_csv(two.parent / "more.csv", index=False)
    with pytest.raises(EncoderError, match="run has encoders for CFP, MR, and the cohort has images of OCT;"):
        embed(run.folder, two.parent / "more.csv", cache=tmp_path / "none")
    frame.drop(columns="modality").to_csv(two.parent / "bare.csv", index=False)
    with pytest.raises(EncoderError, match="no column has the role modality"):
        embed(run.folder, two.parent / "bare.csv", cache=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(UsageError, match="leave out the size"):
        open_encoder(run.folder, size=64)


def test_validation_images_of_another_modality_are_not_watched(run: Run, two: Path, tmp_path: Path) -> None:
    judged, cohort = open_encoder(run.folder), Cohort.open(two)
    samples = cohort.samples("image")
    store = open_store(judged, cohort, cache=tmp_path / "cache")
    assert isinstance(judged.encoder, ModalityEncoders)
    only = ModalityEncoders({"MR": judged.encoder.of("MR")})
    findings = watch(only, store, samples, run.recipe).findings
    assert {"spread", "alignment"} <= {finding.name for finding in findings}


def test_a_damaged_folder_is_refused(run: Run, tmp_path: Path) -> None:
    other = shutil.copytree(run.encoder, tmp_path / "other")
    encoder, contract = load_encoder(other / "1-MR")
    with torch.no_grad():
        next(encoder.parameters()).add_(1.0)
    save_encoder(encoder, other / "1-MR", preprocessing=contract)
    with pytest.raises(EncoderError, match=r"1-MR: not the encoder that .*encoders.json was written for"):
        load_encoders(other)
    for text, message in (
        ("{", "not JSON"),
        ('{"format": 9}', "expected format 1, found 9"),
        ('{"format": 1, "modalities": {}}', "at least one modality"),
        ('{"format": 1, "modalities": {"MR": 3}}', "folder and weights"),
        ("[]", "expected format 1, found None"),
    ):
        (other / DESCRIPTION).write_text(text)
        with pytest.raises(EncoderError, match=message):
            load_encoders(other)
    with pytest.raises(EncoderError, match=r"expected encoders.json"):
        load_encoders(tmp_path)


def test_encoders_go_through_a_folder_unchanged(tmp_path: Path) -> None:
    both = small_encoders()
    contract = Preprocessing(32, ranges={"MR": (0.0, 9.0)}, modalities={"CFP": Preprocessing(48, 3)})
    lineage = [{"salt": "s", "keys": ["a"]}]
    save_encoders(both, tmp_path / "e", contract, card=lambda name: f"# {name}\n", lineage=lineage)
    loaded, again, theirs = load_encoders(tmp_path / "e")
    assert digest_of_encoder(loaded) == digest_of_encoder(both)
    assert (again.of("MR"), again.of("CFP"), theirs) == (contract.of("MR"), contract.of("CFP"), lineage)
    assert load_encoder(tmp_path / "e" / "1-MR")[1] == Preprocessing(32, ranges={"MR": (0.0, 9.0)}).to_json()
    assert load_encoder(tmp_path / "e" / "0-CFP")[1]["ranges"] == {}
    bare, _, _ = load_encoders(tmp_path / "e", keep_context=False)
    assert both.has_context
    assert not bare.has_context


def test_each_encoder_may_start_from_a_folder_and_hands_its_lineage_on(
    two: Path, run: Run, apart: dict[str, Any], tmp_path: Path
) -> None:
    begun = [f"modalities.MR.encoder.backbone={run.encoder / '1-MR'}", "modalities.MR.encoder.pretrained=true"]
    recipe = Recipe.load(apart).override(begun)
    made = pretrain(two, recipe=recipe, out=tmp_path / "second", cache=tmp_path / "cache", quiet=True)
    expected = [made.training, *lineage_of(run.encoder / "1-MR")]
    assert [lineage_of(made.encoder / part) for part in ("0-CFP", "1-MR")] == [expected, expected]
    with pytest.raises(EncoderError, match="name one of its folders"):
        build_encoder(EncoderSpec(backbone=str(run.encoder), pretrained=True), seed=0)
