"""Reconstruction of what the encoder saw: decoder shapes by property, errors by naive loops, two modalities."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bolus.data.batches.batch import Batch
from bolus.data.batches.relation import Needs
from bolus.encoders.features import Features, FeatureShape
from bolus.errors import EncoderError, RecipeError
from bolus.objectives import OBJECTIVES, build_objectives
from bolus.objectives.dense.reconstruct import Reconstruct
from bolus.recipe import Recipe

DIM = 6
TWO = {"XR": (1, 32), "CFP": (3, 48)}  # not in the order of their names
ROWS = {"XR": [3, 0, 4], "CFP": [2, 1]}


def shape(inputs: dict[str, tuple[int, int]]) -> FeatureShape:
    return FeatureShape(dim=DIM, grid_channels=DIM, grid_stride=32, inputs=inputs)


def reconstruct(inputs: dict[str, tuple[int, int]] = TWO, channels: int = 16, seed: int = 0) -> Reconstruct:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Reconstruct(shape(inputs), channels=channels)


def make_batch(
    inputs: dict[str, tuple[int, int]] = TWO, rows: dict[str, list[int]] = ROWS, views: int = 2, seed: int = 1
) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    seen = {
        name: torch.rand(views, len(at), inputs[name][0], inputs[name][1], inputs[name][1], generator=generator)
        for name, at in rows.items()
    }
    at = {name: torch.tensor(positions) for name, positions in rows.items()}
    return Batch(seen, at, {"sample": torch.arange(sum(map(len, rows.values()))) + 10})


def features(num: int = 5, views: int = 2, seed: int = 2, dtype: torch.dtype = torch.float32) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return Features(torch.randn(views, num, DIM, generator=generator).to(dtype).requires_grad_())


def decoder_of(objective: Reconstruct, name: str) -> nn.Module:
    return objective.decoders[objective.names.index(name)]


# The decoder


@given(size=st.integers(8, 130), image_channels=st.sampled_from([1, 3]))
@example(size=32, image_channels=1)
@example(size=33, image_channels=3)
@example(size=64, image_channels=3)
@example(size=8, image_channels=1)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_size_comes_back(size: int, image_channels: int) -> None:
    objective = reconstruct({"XR": (image_channels, size)}, channels=8)
    images = objective.decoders[0](torch.randn(2, DIM))
    assert images.shape == (2, image_channels, size, size)
    (linear,) = (module for module in objective.modules() if isinstance(module, nn.Linear))
    side = -(-size // 32)
    assert (linear.in_features, linear.out_features) == (DIM, 8 * side**2)


@pytest.mark.parametrize(
    ("channels", "widths"),
    [(512, [512, 256, 128, 64, 32, 3]), (20, [20, 10, 5, 2, 1, 3]), (4, [4, 2, 1, 1, 1, 3]), (1, [1, 1, 1, 1, 1, 3])],
)
def test_five_transposed_convolutions_halve_the_channels(channels: int, widths: list[int]) -> None:
    objective = reconstruct({"CFP": (3, 64)}, channels=channels)
    layers = [module for module in objective.modules() if isinstance(module, nn.ConvTranspose2d)]
    assert [layer.in_channels for layer in layers] == widths[:-1]
    assert [layer.out_channels for layer in layers] == widths[1:]
    for layer in layers:
        assert (layer.kernel_size, layer.stride, layer.padding, layer.groups) == ((4, 4), (2, 2), (1, 1), 1)
    assert objective.decoders[0](torch.randn(1, DIM)).shape == (1, 3, 64, 64)


@pytest.mark.parametrize("size", [64, 50])
def test_the_decoder_is_its_layers_with_gelu_between_and_nothing_at_the_end(size: int) -> None:
    objective = reconstruct({"CFP": (3, size)}).double()
    (linear,) = (module for module in objective.modules() if isinstance(module, nn.Linear))
    layers = [module for module in objective.modules() if isinstance(module, nn.ConvTranspose2d)]
    pooled = 5 * torch.randn(3, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (pooled @ linear.weight.T + linear.bias).reshape(3, 16, 2, 2)
    for layer in layers:
        x = x * (1 + torch.erf(x / math.sqrt(2))) / 2
        x = F.conv_transpose2d(x, layer.weight, layer.bias, stride=2, padding=1)
    assert x.shape == (3, 3, 64, 64)
    expected = x if size == 64 else F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
    torch.testing.assert_close(objective.decoders[0](pooled), expected, rtol=1e-10, atol=1e-10)
    assert expected.min() < 0


def test_one_decoder_a_modality_in_the_order_of_names() -> None:
    objective = reconstruct()
    assert objective.names == ("CFP", "XR")
    assert len(objective.decoders) == 2
    assert isinstance(objective.decoders, nn.ModuleList)
    assert objective.decoders[0](torch.randn(1, DIM)).shape == (1, 3, 48, 48)
    assert objective.decoders[1](torch.randn(1, DIM)).shape == (1, 1, 32, 32)
    assert not {id(p) for p in objective.decoders[0].parameters()} & {id(p) for p in objective.decoders[1].parameters()}
    assert {name.split(".")[0] for name, _ in objective.named_parameters()} == {"decoders"}


# The loss


@pytest.mark.parametrize("views", [1, 2, 3])
def test_errors_are_those_of_naive_loops_in_the_batch_order(views: int) -> None:
    objective, batch = reconstruct().double(), make_batch(views=views)
    found = features(views=views, dtype=torch.float64)
    embedded = objective.embed(found, batch)
    assert list(embedded) == ["losses"]
    assert embedded["losses"].shape == (views, 5)
    errors = torch.zeros(views, 5, dtype=torch.float64)
    for name, rows in ROWS.items():
        for view in range(views):
            for position, row in enumerate(rows):
                image = batch.views[name][view, position].tolist()
                output = decoder_of(objective, name)(found.pooled[view, row][None])[0].tolist()
                squares = [
                    (a - b) ** 2
                    for seen, made in zip(image, output, strict=True)
                    for seen_line, made_line in zip(seen, made, strict=True)
                    for a, b in zip(seen_line, made_line, strict=True)
                ]
                errors[view, row] = sum(squares) / len(squares)
    torch.testing.assert_close(embedded["losses"], errors, rtol=1e-10, atol=1e-10)
    loss = objective.loss(embedded, batch)
    assert loss.value.item() == pytest.approx(errors.mean().item(), rel=1e-10)
    assert loss.num_anchors == views * 5


def test_every_image_weighs_the_same_whatever_its_size() -> None:
    """The mean is over rows, not over pixels or modalities."""
    objective, batch = reconstruct(), make_batch()
    losses = torch.arange(10.0).reshape(2, 5)
    loss = objective.loss({"losses": losses}, Batch({}, {}, batch.columns))  # the global batch holds no images
    assert (loss.value.item(), loss.num_anchors) == (4.5, 10)


def test_the_images_are_those_the_encoder_saw() -> None:
    """Each view is compared with its own pixels, whatever augmentation made of them."""
    objective, batch, found = reconstruct(), make_batch(), features()
    before = objective.embed(found, batch)["losses"].detach()
    batch.views["XR"][1, 0] = 0.0  # row 3
    moved = objective.embed(found, batch)["losses"].detach() != before
    assert moved.nonzero().tolist() == [[1, 3]]


def test_a_decoder_that_is_right_has_no_loss() -> None:
    objective, found = reconstruct().double(), features()
    found = Features(found.pooled.detach().double().requires_grad_())
    views = {
        name: torch.stack([decoder_of(objective, name)(found.pooled[view, rows]) for view in range(2)]).detach()
        for name, rows in ROWS.items()
    }
    batch = Batch(views, make_batch().rows, make_batch().columns)
    loss = objective.loss(objective.embed(found, batch), batch)
    assert loss.value.item() == pytest.approx(0.0, abs=1e-25)
    (gradient,) = torch.autograd.grad(loss.value, found.pooled)
    assert gradient.abs().max() < 1e-12
    batch.views["CFP"] += 0.5
    assert objective.loss(objective.embed(found, batch), batch).value.item() == pytest.approx(0.25 * 2 / 5)


def test_a_constant_decoder_has_the_error_of_its_constant() -> None:
    objective = reconstruct({"CFP": (3, 48)})
    last = [module for module in objective.modules() if isinstance(module, nn.ConvTranspose2d)][-1]
    assert last.bias is not None
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    batch = Batch({"CFP": torch.full((1, 2, 3, 48, 48), 0.2)}, {"CFP": torch.arange(2)}, {"sample": torch.arange(2)})
    losses = objective.embed(features(2, 1), batch)["losses"]
    torch.testing.assert_close(losses, torch.full((1, 2), 0.02 / 3))


def test_order_of_rows_and_modalities_does_not_matter() -> None:
    objective, batch, found = reconstruct(), make_batch(), features()
    expected = objective.embed(found, batch)["losses"]
    turned = Batch(
        {name: batch.views[name].flip(1) for name in reversed(batch.views)},
        {name: batch.rows[name].flip(0) for name in reversed(batch.rows)},
        batch.columns,
    )
    torch.testing.assert_close(objective.embed(found, turned)["losses"], expected)


# Steps


def gradients(objective: Reconstruct, found: Features, batch: Batch) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """Of the loss in the features, and in the parameters of each decoder."""
    loss = objective.loss(objective.embed(found, batch), batch)
    parameters = [list(decoder_of(objective, name).parameters()) for name in objective.names]
    flat = torch.autograd.grad(loss.value, [found.pooled, *chain(*parameters)], allow_unused=True)
    rest, by_name = list(flat[1:]), {}
    for name, own in zip(objective.names, parameters, strict=True):
        by_name[name] = [torch.zeros_like(p) if g is None else g for p, g in zip(own, rest, strict=False)]
        rest = rest[len(own) :]
    return flat[0], by_name


def test_two_modalities_of_different_size_and_channels_make_one_step() -> None:
    objective, batch, found = reconstruct(), make_batch(), features()
    in_features, by_name = gradients(objective, found, batch)
    assert in_features.isfinite().all()
    assert (in_features.abs().amax(dim=-1) > 0).all()  # every row of every view is taught something
    for own in by_name.values():
        assert all(gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in own)
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = objective.loss(objective.embed(found, batch), batch)
        optimizer.zero_grad()
        torch.autograd.backward(loss.value)
        optimizer.step()
        losses.append(loss.value.item())
    assert losses[-1] < losses[0] / 2
    assert all(map(math.isfinite, losses))


@pytest.mark.parametrize("present", ["XR", "CFP"])
def test_a_modality_that_the_batch_lacks_is_not_taught(present: str) -> None:
    objective, found = reconstruct(), features(3)
    batch = make_batch(rows={present: [2, 0, 1]})
    in_features, by_name = gradients(objective, found, batch)
    assert (in_features.abs().amax(dim=-1) > 0).all()
    (absent,) = set(TWO) - {present}
    assert all(not gradient.any() for gradient in by_name[absent])
    assert all(gradient.any() for gradient in by_name[present])
    alone, exact = reconstruct({present: TWO[present]}).double(), features(3, dtype=torch.float64)
    alone.decoders[0].load_state_dict(decoder_of(objective.double(), present).state_dict())
    losses = objective.embed(exact, batch)["losses"]
    torch.testing.assert_close(alone.embed(exact, batch)["losses"], losses, rtol=1e-10, atol=1e-10)


def test_rows_do_not_teach_each_other() -> None:
    objective, batch, found = reconstruct(), make_batch(), features()
    losses = objective.embed(found, batch)["losses"]
    (gradient,) = torch.autograd.grad(losses[1, 3], found.pooled)
    assert gradient.abs().amax(dim=-1).nonzero().tolist() == [[1, 3]]


def test_half_precision_does_not_reach_the_error() -> None:
    objective, batch, found = reconstruct(), make_batch(), features()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedded = objective.embed(found, batch)
        loss = objective.loss(embedded, batch)
    assert embedded["losses"].dtype == loss.value.dtype == torch.float32
    torch.testing.assert_close(embedded["losses"], objective.embed(found, batch)["losses"], rtol=0.02, atol=1e-3)


# What it needs, and what it refuses


def test_it_asks_for_pixels() -> None:
    needs = reconstruct().needs
    assert needs.pixels
    assert (needs.views, needs.roles, needs.levels, needs.grid) == (1, frozenset(), False, False)
    assert not Needs().pixels
    assert Needs().merge(needs).pixels
    assert not Needs().merge(Needs(views=2)).pixels


def batches_that_do_not_fit() -> list[Any]:
    rows = {"XR": torch.arange(2)}
    sample = {"sample": torch.arange(2)}
    return [
        pytest.param(
            Batch({"OCT": torch.rand(1, 2, 1, 32, 32)}, {"OCT": torch.arange(2)}, sample), "OCT", id="unknown"
        ),
        pytest.param(Batch({"XR": torch.rand(1, 2, 1, 40, 40)}, rows, sample), "40", id="another size"),
        pytest.param(Batch({"XR": torch.rand(1, 2, 1, 32, 40)}, rows, sample), "40", id="not square"),
        pytest.param(Batch({"XR": torch.rand(1, 2, 3, 32, 32)}, rows, sample), "3", id="other channels"),
        pytest.param(Batch({"XR": torch.rand(1, 2, 1, 32, 32, 32)}, rows, sample), "32, 32, 32|clip", id="clips"),
    ]


@pytest.mark.parametrize(("batch", "message"), batches_that_do_not_fit())
def test_images_that_do_not_fit_are_refused(batch: Batch, message: str) -> None:
    with pytest.raises((RecipeError, EncoderError), match=message):
        reconstruct().embed(features(2, 1), batch)


def test_a_decoder_without_channels_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"channels.*0"):
        reconstruct(channels=0)


def test_a_recipe_names_it() -> None:
    assert OBJECTIVES["reconstruct"] is Reconstruct
    recipe = Recipe.load({"name": "mine", "objectives": {"pixels": {"kind": "reconstruct", "channels": 8}}})
    built = build_objectives(recipe, shape(TWO), {}, seed=0)["pixels"]
    assert isinstance(built, Reconstruct)
    assert built.names == ("CFP", "XR")
    again = build_objectives(recipe, shape(dict(reversed(TWO.items()))), {}, seed=0)["pixels"]
    for name, parameter in built.state_dict().items():  # whatever order the modalities were found in
        assert torch.equal(parameter, again.state_dict()[name])
