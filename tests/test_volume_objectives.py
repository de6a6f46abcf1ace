"""Objectives that read maps of volumes: the formulas over three axes, and the numbers of images laid out flat."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bolus.data.batches.batch import Batch
from bolus.encoders.backbone import seeded
from bolus.encoders.building import build_encoder
from bolus.encoders.features import Features, FeatureShape, LevelShape
from bolus.encoders.parts.norms import norms_of
from bolus.errors import EncoderError, RecipeError
from bolus.objectives.contrasts.varcov import VarCov, pool_resized, varcov_loss
from bolus.objectives.dense.pixel import PixelContrast
from bolus.objectives.dense.reconstruct import Reconstruct
from bolus.recipe import EncoderSpec
from bolus.training.gradients.gradcache import cut, cut_chunks, split_batch

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # in float64
SHAPE = FeatureShape(
    6, 6, 8, (LevelShape(3, 0, "fine", (1, 2, 2)), LevelShape(6, 8, "coarse", (8, 8, 8))), dimensions=3
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_batch(rows: int, **columns: Any) -> Batch:
    given = {name: torch.as_tensor(values) for name, values in columns.items()}
    return Batch({}, {"MR": torch.arange(rows)}, {"sample": torch.arange(rows) + 10, **given}, progress=0.4, seed=3)


# --- levels


@pytest.mark.parametrize(("sides", "stride"), [((5, 6, 7), 8), ((12, 4, 4), (1, 8, 8)), ((1, 2, 3), 32)])
@pytest.mark.parametrize("size", [None, 9])
def test_pooling_is_resizing_and_averaging_along_three_axes(
    sides: tuple[int, ...], stride: int | tuple[int, ...], size: int | None
) -> None:
    x, grid = noise(2, 3, *sides), 4
    strides = (stride,) * 3 if isinstance(stride, int) else stride
    wanted = [max(grid, round(64 * side * each / 224)) for side, each in zip(sides, strides, strict=True)]
    resized = F.interpolate(x, [size] * 3 if size else wanted, mode="trilinear", align_corners=False)
    found = pool_resized(x, grid, stride=stride, size=size)
    torch.testing.assert_close(found, F.adaptive_avg_pool3d(resized, grid), **EXACT)


def test_levels_of_volumes_are_convolved_and_summed() -> None:
    with seeded(0):
        objective = VarCov(SHAPE, source="levels", width=5, depth=2, level_channels=4, grid=2).double().eval()
    levels = [noise(2, 3, 3, 8, 4, 4), noise(2, 3, 6, 1, 1, 2, seed=1)]
    batch = make_batch(3)
    embedded = objective.embed(Features(noise(2, 3, 6), levels={"MR": levels}), batch)
    for view in range(2):
        for row in range(3):
            cells = torch.zeros(4, 2, 2, 2, dtype=torch.float64)
            for level, convolution, strides in zip(levels, objective.convolutions, [(1, 2, 2), (8, 8, 8)], strict=True):
                sides = [max(2, round(64 * n * s / 224)) for n, s in zip(level.shape[3:], strides, strict=True)]
                resized = F.interpolate(level[view, row][None], sides, mode="trilinear", align_corners=False)
                pooled = F.adaptive_avg_pool3d(resized, 2)[0]
                for channel in range(4):
                    weight, bias = convolution.weight[channel, :, 0, 0, 0], convolution.bias[channel]
                    cells[channel] += (weight.view(-1, 1, 1, 1) * pooled).sum(0) + bias
            wanted = objective.head(cells.flatten()[None])[0]
            torch.testing.assert_close(embedded["z"][view, row], wanted, **EXACT)
    loss = objective.loss(embedded, batch)
    torch.testing.assert_close(loss.value, varcov_loss(*embedded["z"]))


# --- voxels


def grids(rows: int = 3) -> Tensor:
    return noise(2, rows, 6, 2, 3, 2)


@pytest.mark.parametrize("keep", [None, 0.3])
@pytest.mark.parametrize("relation", ["views", "region"])
def test_voxels_are_contrasted_as_pixels_are(keep: float | None, relation: str) -> None:
    """Of a grid laid out flat, as an image of one row, the loss is the same: places enter it through their features."""
    flat_shape = FeatureShape(6, 6, 8)
    with seeded(0):
        flat = PixelContrast(flat_shape, relation=relation, keep=keep, dim=4, anchors=20).double()
    thick = PixelContrast(SHAPE, relation=relation, keep=keep, dim=4, anchors=20).double()
    thick.load_state_dict(
        {name: value[..., None] if value.ndim == 4 else value for name, value in flat.state_dict().items()}
    )
    batch = make_batch(3, region=[0, 0, 1])
    found = []
    for objective, grid in ((thick, grids()), (flat, grids().flatten(3)[..., None, :])):
        grid.requires_grad_()
        loss = objective.loss(objective.embed(Features(noise(2, 3, 6), grid={"MR": grid}), batch), batch)
        loss.value.backward()
        assert grid.grad is not None
        found.append((loss.value, grid.grad.flatten(3), loss.num_anchors, loss.counts["kept"]))
    torch.testing.assert_close(found[0], found[1], **EXACT)
    assert found[0][2] > 0


def test_voxel_contrast_is_the_naive_loop() -> None:
    with seeded(0):
        objective = PixelContrast(SHAPE, relation="region", keep=None, dim=4, anchors=10**6, temperature=0.2).double()
    batch = make_batch(3, region=[0, 0, 1])
    embedded = objective.embed(Features(noise(2, 3, 6), grid={"MR": grids()}), batch)
    z = {
        (view, row, place): F.normalize(objective.head(grids()[view, row][None])[0].flatten(1)[:, place], dim=0)
        for view in range(2)
        for row in range(3)
        for place in range(12)
    }
    region, losses = [0, 0, 1], []
    for (view, row, _), anchor in z.items():
        others = [key for key in z if key[:2] != (view, row)]
        positives = [key for key in others if region[key[1]] == region[row]]
        if not positives:
            continue
        weighed = {key: math.exp((anchor @ z[key]).item() / 0.2) for key in others}
        total = sum(weighed.values())
        losses.append(-sum(math.log(weighed[key] / total) for key in positives) / len(positives))
    loss = objective.loss(embedded, batch)
    assert loss.num_anchors == len(losses)
    assert loss.value.item() == pytest.approx(np.mean(losses), rel=1e-9)


def test_grids_of_other_sizes_are_told() -> None:
    objective = PixelContrast(SHAPE, dim=4)
    batch = Batch({}, {"CT": torch.arange(1), "MR": torch.arange(1, 3)}, {"sample": torch.arange(3)})
    with pytest.raises(EncoderError, match="CT 1 x 2 x 2, MR 2 x 2 x 2"):
        objective.embed(
            Features(torch.empty(0), grid={"CT": torch.rand(2, 1, 6, 1, 2, 2), "MR": torch.rand(2, 2, 6, 2, 2, 2)}),
            batch,
        )


# --- reconstruction


@pytest.mark.parametrize("size", [32, (32, 40, 20)])
def test_a_volume_comes_back_whole(size: int | tuple[int, int, int]) -> None:
    sides = (size,) * 3 if isinstance(size, int) else size
    with seeded(0):
        objective = Reconstruct(FeatureShape(6, 6, 32, inputs={"MR": (1, size)}, dimensions=3), channels=16)
    volumes = torch.rand(2, 3, 1, *sides, generator=torch.Generator().manual_seed(1))
    batch = Batch({"MR": volumes}, {"MR": torch.arange(3)}, {"sample": torch.arange(3)})
    features = Features(noise(2, 3, 6).float())
    losses = objective.embed(features, batch)["losses"]
    for view in range(2):
        for row in range(3):
            made = objective.decoders[0](features.pooled[view, row][None])[0]
            assert made.shape == (1, *sides)
            assert losses[view, row].item() == pytest.approx(
                float((made - volumes[view, row]).square().mean()), rel=1e-5
            )
    assert objective.loss({"losses": losses}, batch).value == losses.mean()


def test_clips_are_not_taken_for_volumes() -> None:
    objective = Reconstruct(FeatureShape(6, 6, 32, inputs={"MR": (1, 32)}), channels=16)
    batch = Batch({"MR": torch.rand(1, 2, 1, 4, 32, 32)}, {"MR": torch.arange(2)}, {"sample": torch.arange(2)})
    with pytest.raises(RecipeError, match="these are clips"):
        objective.embed(Features(torch.rand(1, 2, 6)), batch)


# --- chunks


@pytest.mark.parametrize("again", [False, True], ids=["kept", "computed again"])
def test_volumes_in_chunks_give_the_gradients_of_the_whole_batch(again: bool) -> None:
    encoder = build_encoder(EncoderSpec(backbone="unet3d2"), seed=0).double()
    for norm in norms_of(encoder):  # whose statistics are those of a chunk
        norm.eval()
    if again:
        encoder.checkpoint_activations()
    with seeded(0):
        objective = VarCov(encoder.shape, source="levels", width=4, depth=1, level_channels=3, grid=2, last_norm=False)
        voxels = PixelContrast(encoder.shape, dim=3, anchors=50)
    heads = torch.nn.ModuleList([objective.double(), voxels.double()])
    volumes = torch.rand(2, 5, 1, 16, 16, 32, generator=torch.Generator().manual_seed(1)).double()
    batch = Batch({"MR": volumes}, {"MR": torch.arange(5)}, {"sample": torch.arange(5)}, progress=0.5, seed=1)
    parameters = list(encoder.parameters())

    def encode(chunk: Batch, place: int = 0) -> Features:
        return encoder.encode(chunk.views, chunk.rows, levels=True, grid=True)

    found = []
    for chunks in (None, 2):
        if chunks is None:
            made = cut(encode(batch))
        else:
            parts = split_batch(batch, {"MR": np.arange(5)}, chunks)
            assert [part.num_samples for part in parts] == [1, 2, 2]
            made = cut_chunks(encode, parts, encoder.buffers())
        total = torch.zeros((), dtype=torch.float64)
        for each in heads:
            total = total + each.loss(each.embed(made.features, batch), batch).value
        buffer: list[Tensor] = []
        grads = torch.autograd.grad(total, made.leaves, materialize_grads=True)
        made.carry([grads], parameters, [buffer])
        found.append((total.detach(), buffer))
    torch.testing.assert_close(found[0], found[1], **EXACT)
