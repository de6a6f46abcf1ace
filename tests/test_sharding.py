"""An encoder shared out over two gloo processes: what it trains and saves is what two whole ones train and save."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bolus.data.batches.columns import TrainingColumns
from bolus.data.cohort.cohort import Cohort
from bolus.errors import RecipeError
from bolus.recipe import Recipe
from bolus.training.assembly import build_model
from bolus.training.sharding import check_shard
from launching import launch

VIT = {
    "name": "shared out",
    "encoder": {"backbone": "vit_tiny", "in_channels": 1},
    "images": {"size": 64, "views": 2},  # where positions are not interpolated, which transformers does in float32
    "sampling": {"batch_size": 8},
    "objectives": {"v": {"kind": "contrast", "dim": 8, "hidden": 16}},
    "combiner": {"conflict_steps": None},
    "optimizer": {"kind": "adamw", "lr": 0.001},
    "training": {"epochs": 1, "clip": 0.5, "log_steps": 1, "health_epochs": None},
}
TWO = (
    "objectives={v: {kind: contrast, dim: 8, hidden: 16}, "
    "p: {kind: contrast, relation: patient, negatives: other_patients, dim: 8, hidden: 16, weight: 0.5}}"
)
CASES: dict[str, list[str]] = {
    "sum": [TWO],
    "accumulated": [TWO, "training.accumulate=2"],
    "in chunks": [TWO, "sampling.chunk=3"],
    "one objective": ["optimizer={kind: sgd, lr: 0.01}"],
    "mitigated at the features": [TWO, "combiner={kind: grad_mitigator, scope: features, rate: 0.5}"],
    "pcgrad in chunks": [TWO, "combiner={kind: pcgrad, scope: features}", "sampling.chunk=3"],
    "activations computed again": [TWO, "training.activation_checkpointing=true"],
    "part of the encoder": [TWO, "encoder.unfrozen=1"],
    "a plain ViT": ["encoder.backbone=BACKBONE"],
    "a ResNet with LARS": [
        TWO, "encoder={backbone: r18w32, stem_pool: false, context: true}", "optimizer={kind: lars, lr: 0.02}",
        "images.size=24",
    ],
}  # fmt: skip

WORKER = """
import sys, torch
from pathlib import Path
from torch.distributed.tensor import DTensor
from accelerate import PartialState
from bolus.data.batches.columns import TrainingColumns
from bolus.data.cohort.cohort import Cohort
from bolus.recipe import Recipe
from bolus.training.assembly import build_model
from bolus.training.checkpoint import restore, save_checkpoint
from bolus.training.loaders import build_loader, open_images
from bolus.training.processes import broadcast_parameters, launched
from bolus.training.sharding import whole, whole_encoder
from bolus.training.step import apply_gradients, training_step
torch.set_num_threads(1)
cohort, cache, folder, *recipes = sys.argv[1:]
state = launched()
assert state.num_processes == 2
cohort, folder = Cohort.open(cohort), Path(folder)

def begin(recipe):
    model = build_model(recipe, state.device, TrainingColumns(cohort.samples("image")))
    for module in model.modules.values():
        module.double()
    for module in model.modules.values():
        broadcast_parameters(module)
    loader = build_loader(cohort, cohort.samples("image"), store, recipe, model.needs, state)
    return model, loader

def train(model, loader, recipe, steps):
    told = []
    for step in steps:
        for number in range(recipe.training.accumulate):
            fetched = loader.fetch(step * recipe.training.accumulate + number)
            losses, _ = training_step(model, loader, fetched, recipe, 0.0)
        told.append((losses, apply_gradients(model, recipe.training.clip)))
    return told

def weights(model):
    # Without running statistics, which are a process's own, and the first one's in a checkpoint.
    found = {}
    for name, module in model.modules.items():
        own = module.state_dict()
        found |= {f"{name}/{key}": whole(own[key]) for key, _ in module.named_parameters()}
    return found

def agree(one, other, what):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-10, atol=1e-10, msg=lambda said: f"{what} {name} {said}")

for path in map(Path, recipes):
    recipe = Recipe.load(path)
    shared = recipe.override(["training.shard=true"])
    store = open_images(cohort, recipe, Path(cache), True)
    (a, loader), (b, _) = begin(recipe), begin(shared)
    held = [p for p in b.encoder.parameters()]
    assert all(isinstance(p, DTensor) for p in held) and not any(isinstance(p, DTensor) for p in a.encoder.parameters())
    assert sum(p.to_local().numel() for p in held) < 0.7 * sum(p.numel() for p in a.encoder.parameters())
    assert [key for key in a.encoder.state_dict()] == [key for key in b.encoder.state_dict()]
    agree(weights(a), weights(b), path)
    first, second = train(a, loader, recipe, range(3)), train(b, loader, shared, range(3))
    for (losses, norm), (others, other) in zip(first, second):
        agree(losses, others, path)
        torch.testing.assert_close(norm, other, rtol=1e-10, atol=0)
    agree(weights(a), weights(b), path)
    for branch, goals in a.combiner.goals.items():
        torch.testing.assert_close(goals, b.combiner.goals[branch], rtol=1e-10, atol=1e-10)
    twin = whole_encoder(b.encoder)
    if state.is_main_process:
        twin.double().load_state_dict({k: v for k, v in a.encoder.state_dict().items()})
        assert type(twin).__name__ == "Encoder"

    # Each goes on from what the other saved.
    for name, model in (("a", a), ("b", b)):
        extra = {"combiner": model.combiner.state()}
        where = folder / path.stem / name
        save_checkpoint(where, 3, model.modules, model.optimizer, extra, writes=state.is_main_process)
    state.wait_for_everyone()
    (c, _), (d, _) = begin(recipe), begin(shared)
    for name, model in (("b", c), ("a", d)):
        restored = restore(folder / path.stem / name, model.modules, model.optimizer)
        assert restored.step == 3
        model.combiner.load_state(restored.extra["combiner"])
    for model, own in ((a, recipe), (c, recipe), (d, shared)):
        train(model, loader, own, range(3, 5))
    agree(weights(a), weights(c), path)
    agree(weights(a), weights(d), path)
state.destroy_process_group()
"""


def plain_vit(folder: Path) -> str:
    from bolus.encoders.families.vit import PlainViTConfig

    PlainViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=64, patch_size=16,
        num_channels=1,
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


FEW = ("sum", "mitigated at the features")  # processes start only once, and start slowly
MORE = tuple(name for name in CASES if name not in FEW)


@pytest.mark.parametrize("names", [pytest.param(FEW, id="few"), pytest.param(MORE, id="more", marks=pytest.mark.slow)])
def test_two_processes_train_and_save_as_two_with_whole_encoders(
    tiny_cohort: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    paths = []
    for name in names:
        keys = [key.replace("BACKBONE", plain_vit(tmp_path / "vit")) for key in CASES[name]]
        paths.append(tmp_path / f"{name.replace(' ', '-')}.yaml")
        paths[-1].write_text(Recipe.load(VIT).override(keys).to_yaml())
    (tmp_path / "worker.py").write_text(WORKER)
    launch(tmp_path / "worker.py", tiny_cohort, tmp_path / "cache", tmp_path / "saved", *paths)
    for path in paths:
        one, other = (sorted((tmp_path / "saved" / path.stem / name).rglob("*.*")) for name in "ab")
        assert [file.name for file in one] == [file.name for file in other]


REFUSED = {
    "reconciles objectives in the encoder's parameters": [TWO, "combiner.kind=pcgrad"],
    "conflicts are looked at": [TWO, "combiner.conflict_steps=10"],
    "would scale its part": ["training.precision=fp16"],
    "images of several modalities": ["encoders=per_modality"],
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_cannot_be_shared_out_is_refused_with_what_to_change(sentence: str) -> None:
    recipe = Recipe.load(VIT).override([*REFUSED[sentence], "training.shard=true"])
    with pytest.raises(RecipeError, match=sentence):
        check_shard(recipe, ["XR"])
    check_shard(recipe.override(["training.shard=false"]), ["XR"])


def test_several_modalities_are_refused() -> None:
    with pytest.raises(RecipeError, match="images of several modalities"):
        check_shard(Recipe.load(VIT).override(["training.shard=true"]), ["CT", "MR"])


def test_one_process_has_nobody_to_share_with(tiny_cohort: Path) -> None:
    columns = TrainingColumns(Cohort.open(tiny_cohort).samples("image"))
    recipe = Recipe.load(VIT).override(["training.shard=true"])
    model = build_model(recipe, torch.device("cpu"), columns)
    assert not any(hasattr(parameter, "full_tensor") for parameter in model.encoder.parameters())
    assert recipe.digest != Recipe.load(VIT).digest


RUN = """
import sys
from pathlib import Path
import bolus, torch
from bolus.training.processes import launched
torch.set_num_threads(1)
cohort, recipe, folder = sys.argv[1:]
for shard in ("false", "true"):
    out, words = Path(folder) / shard, {"recipe": recipe, "cache": Path(folder) / "cache", "quiet": True}
    stop = ["training.max_hours=1e-9", "training.log_steps=2"]
    run = bolus.pretrain(cohort, out=out, overrides=[f"training.shard={shard}", *stop], **words)
    assert run.status == "stopped", run.status
    # It goes on the other way.
    other = {"true": "false", "false": "true"}[shard]
    run = bolus.pretrain(cohort, out=out, overrides=[f"training.shard={other}"], resume=True, **words)
    assert run.status == "finished", run.status
launched().destroy_process_group()
"""


@pytest.mark.slow
def test_a_run_stops_shared_out_and_goes_on_whole_and_the_other_way_round(tiny_cohort: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    recipe = Recipe.load(VIT).override(["training.max_steps=4", "training.health_epochs=1", "training.clip=null"])
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    (tmp_path / "run.py").write_text(RUN)
    launch(tmp_path / "run.py", tiny_cohort, tmp_path / "recipe.yaml", tmp_path)
    one, other = (load_file(tmp_path / shard / "encoder" / "model.safetensors") for shard in ("false", "true"))
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_large_vit_is_shared_out_block_by_block(tmp_path: Path) -> None:
    """Of ViT-L each process holds half, and a forward gathers block after block."""
    (tmp_path / "large.py").write_text(LARGE)
    launch(tmp_path / "large.py", seconds=600)


LARGE = """
import torch
import torch.distributed as dist
from bolus.encoders.building import build_encoder
from bolus.recipe import EncoderSpec
from bolus.training.sharding import shard_encoder
torch.set_num_threads(1)
dist.init_process_group("gloo")
encoder = build_encoder(EncoderSpec(backbone="dinov2_large", in_channels=3), seed=0)
numbers = sum(p.numel() for p in encoder.parameters())
assert numbers > 300e6 and len(encoder.units) == 24
shard_encoder(encoder, torch.device("cpu"))
held = sum(p.to_local().numel() for p in encoder.parameters())
assert 0.49 * numbers < held < 0.51 * numbers, held / numbers
encoder(torch.rand(1, 3, 28, 28)).pooled.sum().backward()
assert all(p.grad is not None and p.grad.to_local().shape == p.to_local().shape
           for name, p in encoder.named_parameters() if "mask_token" not in name)
dist.destroy_process_group()
"""
