"""Augmentations of one's own: a function of the seed, in the shape and range of a view, and nothing that moves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from bolus.data.views.augment import augment, augment_labels
from bolus.data.views.own import apply_own, try_own
from bolus.data.views.presets import NOTHING, resolve
from bolus.errors import RecipeError
from bolus.evaluation.probing.finetune import mild
from bolus.recipe import AugmentSpec, OwnAugmentSpec, Recipe
from bolus.training.assembly import resolve as resolve_recipe

MODULE = """
import numpy as np
import torch
from torch.nn import functional as F


def speckle(images, generator, *, strength: float = 0.1):
    return images * (1 + strength * torch.randn(images.shape, generator=generator, device=images.device))


def gamma(images, generator):
    shape = (len(images),) + (1,) * (images.ndim - 1)
    return images ** (0.5 + torch.rand(shape, generator=generator))


def blur(images, generator):
    return F.avg_pool2d(images.flatten(0, -4), 5, 1, 2, count_include_pad=False).view(images.shape)


def stretch(images, generator):
    low, high = images.amin((-1, -2), keepdim=True), images.amax((-1, -2), keepdim=True)
    return (images - low) / (high - low)


def equalize(images, generator):
    flat = images.flatten(1)
    return (flat.argsort(1).argsort(1) / flat.shape[1]).view(images.shape)


def ghost(images, generator):
    return (images + 0.5 * images.roll(images.shape[-1] // 2, -1)) / 1.5


def erase(images, generator):
    kept = torch.rand((len(images),) + (1,) * (images.ndim - 3) + images.shape[-2:], generator=generator) < 0.5
    return images * kept


def invert(images, generator):
    return images.neg_().add_(1)


def double(images, generator):
    return 2 * images


def mirror(images, generator):
    chosen = torch.rand(len(images), generator=generator) < 0.3
    return torch.where(chosen.view(-1, *[1] * (images.ndim - 1)), images.flip(-1), images)


def upside_down(images, generator):
    return images.flip(-2)


def turn(images, generator):
    return images.rot90(1, (-2, -1))


def swap(images, generator):
    return images.transpose(-1, -2)


def shift(images, generator):
    return images.roll(images.shape[-1] // 8, -1)


def zoom(images, generator):
    edge = images.shape[-1] // 6
    inner = images[..., edge:-edge, edge:-edge]
    return F.interpolate(inner.flatten(0, -4), images.shape[-2:]).view(images.shape)


def of_torch(images, generator):
    return images + 0.1 * torch.randn(images.shape)


def of_numpy(images, generator):
    return images * float(np.random.default_rng().uniform(0.5, 0.9))


def smaller(images, generator):
    return images[..., 1:]


def none(images, generator):
    images.mul_(0.5)


def short(images, generator):
    return images.half()


def nan(images, generator):
    return images / images.new_zeros(())


def torn(images, generator):
    raise ValueError("no such mode")


number = 3
"""
FINE = ("speckle", "gamma", "blur", "stretch", "equalize", "ghost", "erase", "invert", "double")
MOVING = ("mirror", "upside_down", "turn", "swap", "shift", "zoom")


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"augments_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def specs(mine: str, *names: str, **parameters: float) -> tuple[OwnAugmentSpec, ...]:
    given = [OwnAugmentSpec.model_validate({"kind": f"{mine}:{name}", **parameters}) for name in names]
    return resolve(AugmentSpec(own=tuple(given))).own


def test_views_are_a_function_of_the_seed_and_all_else_is_as_without(mine: str) -> None:
    images = torch.rand(3, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    own = AugmentSpec(preset="mri", own=specs(mine, "speckle"))
    state = torch.random.get_rng_state()
    first = augment(images, own, size=16, views=2, seed=1)
    assert torch.equal(first, augment(images, own, size=16, views=2, seed=1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(first, augment(images, own, size=16, views=2, seed=2))
    plain = augment(images, AugmentSpec(preset="mri"), size=16, views=2, seed=1)
    strength = (first / plain - 1)[(plain > 0.1) & (plain < 0.7)]
    assert strength.std().item() == pytest.approx(0.1, rel=0.2)
    twice = apply_own(plain.flatten(0, 1).clone(), own.own, seed=1).view(plain.shape)
    assert torch.equal(first, twice), "what comes before is drawn as if there were no function of one's own"
    labels = torch.randint(0, 3, (3, 20, 20))
    assert torch.equal(
        augment_labels(labels, own, size=16, seed=1), augment_labels(labels, AugmentSpec(preset="mri"), size=16, seed=1)
    )


def test_functions_come_in_order_and_are_clipped_between(mine: str) -> None:
    images = torch.full((1, 1, 8, 8), 0.8)
    for names, value in ((("double", "invert"), 0.0), (("invert", "double"), 0.4)):
        spec = AugmentSpec(preset="none", own=specs(mine, *names))
        found = augment(images, spec, size=8, views=1, seed=0)
        assert torch.allclose(found, torch.full_like(found, value), atol=1e-6)
    assert images.eq(0.8).all()


def test_a_function_sees_whole_clips(mine: str) -> None:
    frames = torch.rand(6, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(6, 3, 8, 8)
    spec = AugmentSpec(preset="none", own=specs(mine, "gamma"))
    clips = augment(frames, spec, size=8, views=2, seed=0, frames=3)
    assert clips.shape == (2, 2, 3, 3, 8, 8)
    before = augment(frames, AugmentSpec(preset="none"), size=8, views=2, seed=0, frames=3)
    power = (clips.log() / before.log()).flatten(2)
    assert torch.allclose(power, power[:, :, :1].expand_as(power), atol=1e-3), "one draw for all frames of a view"
    assert len(power[:, :, 0].flatten().unique()) == 4


@pytest.mark.parametrize("name", FINE)
@pytest.mark.parametrize(("size", "channels", "frames"), [(16, 1, None), (64, 3, None), (32, 1, 3)])
def test_what_changes_intensities_is_taken(mine: str, name: str, size: int, channels: int, frames: int | None) -> None:
    try_own(specs(mine, name), size=size, channels=channels, frames=frames)


@pytest.mark.parametrize("name", MOVING)
@pytest.mark.parametrize(("size", "channels", "frames"), [(32, 3, None), (96, 1, None), (32, 1, 3)])
def test_what_moves_pixels_is_refused(mine: str, name: str, size: int, channels: int, frames: int | None) -> None:
    with pytest.raises(RecipeError, match=f"own.1: {mine}:{name}: expected .* found one that moves pixels"):
        try_own(specs(mine, "speckle", name), size=size, channels=channels, frames=frames)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("of_torch", "expected the same views for the same generator"),
        ("of_numpy", "expected the same views for the same generator"),
        ("smaller", re.escape("expected float32 [32, 1, 16, 16] on cpu, found float32 [32, 1, 16, 15] on cpu")),
        ("none", "expected float32 .* found NoneType"),
        ("short", "expected .*found float16"),
        ("nan", "expected .*found values that are NaN or infinite"),
        ("torn", "failed on views .*ValueError: no such mode"),
    ],
)
def test_what_else_cannot_be_is_refused(mine: str, name: str, said: str) -> None:
    with pytest.raises(RecipeError, match=f"{mine}:{name}: {said}"):
        try_own(specs(mine, name), size=16, channels=1)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"kind": "MINE:speckl"}, "did you mean 'speckle'"),
        ({"kind": "MINE:number"}, "expected a function, .*which is of type int"),
        ({"kind": "speckle"}, "expected a function, .*found 'speckle'; registered: none"),
        ({"kind": "no_such_module_at_all:f"}, "cannot be imported"),
        ({"kind": "MINE:speckle", "strenght": 1}, r"unknown key 'images.augment.own.0.strenght'; did you mean"),
        ({"kind": "MINE:speckle", "strength": "much"}, r"images.augment.own.0.strength: .*valid number"),
        ({"strength": 1}, "images.augment.own.0.kind: Field required"),
    ],
)
def test_a_recipe_says_what_is_wrong(mine: str, own: dict[str, object], said: str) -> None:
    own = {key: value.replace("MINE", mine) if isinstance(value, str) else value for key, value in own.items()}
    with pytest.raises(RecipeError, match=said):
        resolve_recipe(Recipe.load("simclr").override({"images.augment.own": [own], "images.size": 16}))


def test_a_resolved_recipe_writes_parameters_out_and_a_moving_function_stops_it(mine: str) -> None:
    keys = {"images.augment.own": [{"kind": f"{mine}:speckle"}], "images.size": 32}
    recipe = resolve_recipe(Recipe.load("simclr").override(keys))
    assert Recipe.load("simclr").override({"images.size": 32}).digest != recipe.digest
    again = Recipe.load("simclr").override(recipe.model_dump(mode="json")["images"] and keys)
    assert resolve_recipe(again) == recipe
    assert "strength: 0.1" in recipe.to_yaml()
    of_one = {"modalities.MR.augment": {"own": [{"kind": f"{mine}:mirror"}]}, "images.size": 32}
    with pytest.raises(RecipeError, match=r"modalities\.MR\.augment\.own\.0: .*moves pixels"):
        resolve_recipe(Recipe.load("simclr").override(of_one))


def test_hashes_of_recipes_without_are_those_of_before(mine: str) -> None:
    recipe = Recipe.load("simclr").override({"modalities.MR.augment.rotation": 3})
    assert resolve(AugmentSpec(preset="none", own=())) == NOTHING, "as of a run that knew of none"
    assert recipe.override(["images.augment.own=[]", "modalities.MR.augment.own=[]"]).digest == recipe.digest
    assert recipe.override(["images.augment.own=[{kind: a:b}]"]).digest != recipe.digest
    assert mild(AugmentSpec(own=specs(mine, "speckle"))).own == ()
    absent = AugmentSpec.model_validate({"own": [{"kind": "no_such_module_at_all:f"}]})
    assert mild(absent).own == (), "a run is fine-tuned where its augmentation is not installed"
