"""Variance-invariance-covariance against naive loops, and the multi-level head against resizing and pooling."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bolus.data.batches.batch import Batch
from bolus.encoders.features import Features, FeatureShape, LevelShape
from bolus.errors import RecipeError, UsageError
from bolus.objectives.contrasts.varcov import VarCov, pool_resized, varcov_loss
from bolus.objectives.heads import ProjectionHead

WEIGHTS = {"invariance": 25.0, "variance": 25.0, "covariance": 1.0}


def naive(z_a: Tensor, z_b: Tensor, invariance: float, variance: float, covariance: float) -> Tensor:
    """METHODS' formula, element by element."""
    N, D = z_a.shape
    distance = sum((z_a[i, d] - z_b[i, d]) ** 2 for i in range(N) for d in range(D)) / (N * D)
    hinge, overlap = torch.zeros((), dtype=z_a.dtype), torch.zeros((), dtype=z_a.dtype)
    for z in (z_a, z_b):
        mean = [sum(z[i, d] for i in range(N)) / N for d in range(D)]
        cov = [
            [sum((z[i, a] - mean[a]) * (z[i, b] - mean[b]) for i in range(N)) / (N - 1) for b in range(D)]
            for a in range(D)
        ]
        for d in range(D):
            hinge = hinge + 0.5 * torch.relu(1 - torch.sqrt(cov[d][d] + 1e-4)) / D
        overlap = overlap + sum((cov[a][b] ** 2 for a in range(D) for b in range(D) if a != b), 0 * hinge) / D
    return invariance * distance + variance * hinge + covariance * overlap


def views(rows: int, dim: int, seed: int = 0, scale: float = 0.9) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    z_a, z_b = scale * torch.randn(2, rows, dim, generator=g, dtype=torch.float64)
    return z_a, z_b


@pytest.mark.parametrize(("rows", "dim"), [(2, 1), (2, 3), (6, 3), (4, 4), (3, 7), (5, 6)])
@pytest.mark.parametrize("only", [None, "invariance", "variance", "covariance"])
def test_equals_naive_loops_in_value_and_gradient(rows: int, dim: int, only: str | None) -> None:
    """On both sides of the choice between Z^T Z and Z Z^T, together and term by term."""
    weights = {name: weight if only in (None, name) else 0.0 for name, weight in WEIGHTS.items()}
    inputs = [z.requires_grad_() for z in views(rows, dim)]
    ours, reference = varcov_loss(*inputs, **weights), naive(*inputs, **weights)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)
    for a, b in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(reference, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_gram_matrix_of_rows_equals_covariance_matrix_of_columns() -> None:
    """At a size where loops are too slow: 8 rows of 300 dimensions, straight from torch.cov."""
    z_a, z_b = views(8, 300)
    expected = sum((torch.cov(z.T).square().sum() - z.var(dim=0).square().sum()) / 300 for z in (z_a, z_b))
    ours = varcov_loss(z_a, z_b, invariance=0, variance=0, covariance=1)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    # In float32 the diagonal is subtracted from a total that it does not dominate.
    single = varcov_loss(z_a.float(), z_b.float(), invariance=0, variance=0, covariance=1)
    torch.testing.assert_close(single.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dim", [3, 20])
def test_order_of_rows_and_of_views_does_not_matter(dim: int) -> None:
    z_a, z_b = views(8, dim)
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    torch.testing.assert_close(varcov_loss(z_a[order], z_b[order]), varcov_loss(z_a, z_b))
    torch.testing.assert_close(varcov_loss(z_b, z_a), varcov_loss(z_a, z_b))
    assert not torch.isclose(varcov_loss(z_a[order], z_b), varcov_loss(z_a, z_b))  # but which rows are paired does


def test_equal_views_have_no_invariance_term() -> None:
    z, other = views(8, 5)
    assert varcov_loss(z, z, invariance=1, variance=0, covariance=0).item() == 0
    assert varcov_loss(z, other, invariance=1, variance=0, covariance=0).item() > 0


@pytest.mark.parametrize("dim", [3, 20])
def test_offsets_change_neither_variance_nor_covariance(dim: int) -> None:
    z_a, z_b = views(8, dim)
    spread = {"invariance": 0.0, "variance": 25.0, "covariance": 1.0}
    offset = torch.linspace(-50, 50, dim, dtype=torch.float64)
    torch.testing.assert_close(varcov_loss(z_a + offset, z_b - offset, **spread), varcov_loss(z_a, z_b, **spread))


@pytest.mark.parametrize("dim", [3, 20])
def test_collapsed_features_have_the_maximal_hinge_and_finite_gradients(dim: int) -> None:
    z = torch.full((8, dim), 3.0, dtype=torch.float64, requires_grad=True)
    loss = varcov_loss(z, z)
    assert loss.item() == pytest.approx(25 * (1 - math.sqrt(1e-4)), rel=1e-12)
    loss.backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    assert loss > varcov_loss(*views(8, dim, scale=0.5), invariance=0)


def test_wide_uncorrelated_features_cost_nothing() -> None:
    signs = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    assert varcov_loss(signs, signs).item() == 0
    repeated = signs[:, [0, 1, 1]]
    assert varcov_loss(repeated, repeated).item() == pytest.approx(2 * 2 * (4 / 3) ** 2 / 3)


@pytest.mark.parametrize("rows", [0, 1])
def test_fewer_than_two_rows_give_exactly_zero(rows: int) -> None:
    z_a, z_b = (z.requires_grad_() for z in views(rows, 4))
    loss = varcov_loss(z_a, z_b)
    assert loss.item() == 0
    for grad in torch.autograd.grad(loss, [z_a, z_b]):
        assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    z_a, z_b = (300 * z.to(dtype) for z in views(6, 9))  # squares overflow in float16
    loss = varcov_loss(z_a, z_b)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), varcov_loss(z_a.double(), z_b.double()), rtol=1e-5, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = varcov_loss(z_a.float(), z_b.float())
    torch.testing.assert_close(inside, loss, rtol=0, atol=0)


def test_views_of_different_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\[4, 3\] and \[4, 2\]"):
        varcov_loss(torch.zeros(4, 3), torch.zeros(4, 2))


# The multi-level head


@pytest.mark.parametrize("grid", [1, 4, 5])
def test_pooling_matrix_equals_resizing_then_pooling(grid: int) -> None:
    """For every map size up to 57, not square, into a size that `grid` does not divide too."""
    g = torch.Generator().manual_seed(0)
    for height in range(2, 58):
        width = 59 - height
        x = torch.randn(1, 2, height, width, generator=g, dtype=torch.float64)
        for size in (64, 18, grid):
            resized = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
            expected = F.adaptive_avg_pool2d(resized, grid)
            ours = pool_resized(x, grid, stride=4, size=size)
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("side", "stride", "size"), [(7, 32, 64), (56, 4, 64), (2, 32, 18), (1, 32, 9), (1, 8, 4)])
def test_resized_size_scales_with_the_input(side: int, stride: int, size: int) -> None:
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = F.adaptive_avg_pool2d(F.interpolate(x, size=(size, size), mode="bilinear"), 4)
    torch.testing.assert_close(pool_resized(x, 4, stride=stride), expected, rtol=0, atol=1e-12)


LEVELS = (LevelShape(3, 4, "one"), LevelShape(5, 8, "two"), LevelShape(6, 16, "three"))
SHAPE = FeatureShape(dim=6, grid_channels=6, grid_stride=16, levels=LEVELS)


def make_features(num_views: int = 2, rows: int = 4, modality: str = "XR", seed: int = 0) -> tuple[Features, Batch]:
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(num_views, rows, *shape, generator=g, dtype=torch.float64)

    maps = [draw(level.channels, 96 // level.stride, 64 // level.stride) for level in LEVELS]
    batch = Batch({}, {modality: torch.arange(rows)}, {"sample": torch.arange(rows)})
    return Features(draw(6), levels={modality: maps}), batch


def make_objective(**parameters: Any) -> VarCov:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return VarCov(SHAPE, **{"width": 7, "level_channels": 8, **parameters}).double()


def test_pooled_first_equals_convolution_first() -> None:
    """The head as MLVICX writes it: resize, convolve, sum, pool, flatten, project."""
    objective = make_objective(source="levels", level_size=64)
    features, batch = make_features()
    mixed: Any = 0
    for convolution, x in zip(objective.convolutions, features.levels["XR"], strict=True):
        mixed = mixed + convolution(F.interpolate(x.flatten(0, 1), size=(64, 64), mode="bilinear"))
    expected = objective.head(F.adaptive_avg_pool2d(mixed, 4).flatten(1).unflatten(0, (2, 4)))
    ours = objective.embed(features, batch)["z"]
    assert ours.shape == (2, 4, 7)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


def test_every_parameter_is_born_in_the_constructor_and_trained() -> None:
    objective = make_objective(source="levels", last_norm=False)
    before = {name for name, _ in objective.named_parameters()}
    features, batch = make_features()
    loss = objective.loss(objective.embed(features, batch), batch)
    loss.value.backward()
    assert before == {name for name, _ in objective.named_parameters()}
    assert {f"convolutions.{level}.weight" for level in range(3)} <= before
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        if name.endswith("weight"):
            assert parameter.grad.abs().max() > 0, name


def test_modalities_return_to_the_batch_order() -> None:
    objective = make_objective(source="levels").eval()  # running statistics: rows do not see each other
    first, _ = make_features(rows=2, modality="US", seed=1)
    second, _ = make_features(rows=3, modality="XR", seed=2)
    rows = {"US": torch.tensor([3, 0]), "XR": torch.tensor([1, 4, 2])}
    both = Features(torch.zeros(2, 5, 6, dtype=torch.float64), levels={**first.levels, **second.levels})
    z = objective.embed(both, Batch({}, rows, {"sample": torch.arange(5)}))["z"]
    for part, modality in ((first, "US"), (second, "XR")):
        alone = objective.embed(part, Batch({}, {modality: torch.arange(len(rows[modality]))}, {}))["z"]
        torch.testing.assert_close(z[:, rows[modality]], alone)


def test_pooled_source_and_more_than_two_views() -> None:
    objective = make_objective(last_norm=False, invariance=2.0, variance=3.0, covariance=4.0)
    features, batch = make_features(num_views=3)
    embedded = objective.embed(features, batch)
    torch.testing.assert_close(embedded["z"], objective.head(features.pooled))
    z = embedded["z"]
    pairs = [varcov_loss(z[a], z[b], invariance=2, variance=3, covariance=4) for a, b in [(0, 1), (0, 2), (1, 2)]]
    loss = objective.loss(embedded, batch)
    torch.testing.assert_close(loss.value, sum(pairs) / 3)
    assert loss.num_anchors == 12


def test_one_sample_is_nothing_to_do() -> None:
    objective = make_objective(source="levels")
    features, batch = make_features(rows=1)
    loss = objective.loss(objective.embed(features, batch), batch)
    assert (loss.value.item(), loss.num_anchors) == (0, 0)
    loss.value.backward()
    assert all((parameter.grad == 0).all() for parameter in objective.parameters() if parameter.grad is not None)


def test_one_view_is_refused() -> None:
    features, batch = make_features(num_views=1)
    objective = make_objective()
    with pytest.raises(UsageError, match="at least 2, found 1"):
        objective.loss(objective.embed(features, batch), batch)


def test_needs_and_parameters() -> None:
    assert make_objective().needs.views == 2
    assert not make_objective().needs.levels
    assert make_objective(source="levels").needs.levels
    with pytest.raises(RecipeError, match="levels"):
        VarCov(FeatureShape(dim=6, grid_channels=6, grid_stride=32), source="levels")
    with pytest.raises(RecipeError, match="grid"):
        make_objective(grid=0)


# The head


def test_projection_head_is_linear_norm_relu_linear_norm() -> None:
    head = ProjectionHead(3, [5, 2], last_norm=True).double()
    x = views(8, 3)[0]
    weights = [linear.weight for linear in head.linears if isinstance(linear, nn.Linear)]
    hidden = x @ weights[0].T
    hidden = ((hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()).relu()
    out = hidden @ weights[1].T
    out = (out - out.mean(0)) / (out.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(head(x.view(2, 4, 3)), out.view(2, 4, 2))
    assert [type(linear.bias).__name__ for linear in ProjectionHead(3, [5, 2], last_norm=False).linears] == [
        "NoneType",
        "Parameter",
    ]


def test_projection_head_takes_a_single_row_in_training() -> None:
    head = ProjectionHead(3, [5, 2], last_norm=True)
    head(torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0)))
    statistics = [buffer.clone() for buffer in head.buffers()]
    one = torch.ones(1, 1, 3)
    torch.testing.assert_close(head(one), head.eval()(one))
    assert all(torch.equal(before, after) for before, after in zip(statistics, head.buffers(), strict=True))
    with pytest.raises(RecipeError, match="at least one layer"):
        ProjectionHead(3, [], last_norm=True)
