"""GradFilter and pixel contrast against naive loops; what the filter, the seed and the lent head may and may not do."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bolus.data.batches.batch import Batch
from bolus.encoders.features import Features, FeatureShape
from bolus.errors import EncoderError, RecipeError, UsageError
from bolus.objectives.base import Loss
from bolus.objectives.contrasts.contrast import Contrast
from bolus.objectives.dense.filtering import grad_filter
from bolus.objectives.dense.pixel import PixelContrast
from bolus.objectives.heads import ProjectionHead

SHAPE = FeatureShape(dim=6, grid_channels=6, grid_stride=32)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_batch(rows: int, *, progress: float = 0.0, seed: int = 0, **columns: Any) -> Batch:
    given = {name.replace("__", ":"): torch.as_tensor(values) for name, values in columns.items()}
    sample = {"sample": torch.arange(rows) + 10}
    return Batch({}, {"MR": torch.arange(rows)}, {**sample, **given}, progress=progress, seed=seed)


def embedded(rows: int, *, num_views: int = 2, dim: int = 5, locations: int = 4, seed: int = 0) -> dict[str, Tensor]:
    shape = (num_views, rows, dim, locations)
    z, c = (F.normalize(torch.randn(shape, generator=generator(seed + k), dtype=torch.float64), dim=2) for k in (0, 99))
    return {"z": z, "c": c}


# GradFilter


def naive_filter(p_image: Tensor, p_pixel: Tensor, candidates: Tensor, keep: str, pace: str, order: str) -> Tensor:
    """Row by row: the pool by certainty, then its easy or hard end; Python's sort is stable, so ties go left."""
    kept = torch.zeros_like(candidates)
    for i in range(len(candidates)):
        valid = [j for j in range(candidates.shape[1]) if candidates[i, j]]
        pool = sorted(valid, key=lambda j: -p_image[i, j].item())[: math.ceil(Fraction(keep) * len(valid))]
        sign = -1 if order == "easy" else 1
        turn = sorted(sorted(pool), key=lambda j: sign * p_pixel[i, j].item())
        for j in turn[: math.ceil(Fraction(pace) * len(pool))]:
            kept[i, j] = True
    return kept


@pytest.mark.parametrize("order", ["easy", "hard"])
@pytest.mark.parametrize(
    ("keep", "pace"), [("0.3", "1"), ("1", "0.5"), ("0.3", "0.3"), ("0.07", "0.9"), ("0.5", "0.1")]
)
@pytest.mark.parametrize("levels", [3, 10**6], ids=["ties", "distinct"])
def test_filter_equals_naive_loop(order: Any, keep: str, pace: str, levels: int) -> None:
    p_image, p_pixel = torch.randint(levels, (2, 15, 100), generator=generator()) / levels
    candidates = torch.rand(15, 100, generator=generator(1)) < torch.linspace(0, 1, 15)[:, None]
    candidates[-1] = True
    kept = grad_filter(p_image, p_pixel, candidates=candidates, keep=float(keep), pace=float(pace), order=order)
    assert kept.dtype == torch.bool
    assert not kept[0].any()
    assert torch.equal(kept, naive_filter(p_image, p_pixel, candidates, keep, pace, order))


@pytest.mark.parametrize(
    ("share", "count", "expected"),
    [(0.07, 100, 7), (0.1, 30, 3), (2 / 3, 3, 2), (1 / 3, 4, 2), (1e-12, 5, 1), (0.3, 1, 1)],
)
def test_shares_round_up_but_not_for_the_sake_of_rounding(share: float, count: int, expected: int) -> None:
    p = torch.rand(1, count, generator=generator())
    assert grad_filter(p, p, keep=share).sum() == grad_filter(p, p, keep=1, pace=share).sum() == expected


def test_all_shares_at_one_keep_every_candidate() -> None:
    p = torch.rand(2, 6, 9, generator=generator())
    candidates = p[0] > 0.5
    assert torch.equal(grad_filter(*p, candidates=candidates, keep=1, pace=1), candidates)
    assert grad_filter(*p, keep=1, pace=1).all()


@pytest.mark.parametrize("order", ["easy", "hard"])
def test_a_larger_pace_or_share_only_adds(order: Any) -> None:
    p_image, p_pixel = torch.rand(2, 8, 40, generator=generator())
    shares = [0.05, 0.2, 0.45, 0.8, 1.0]
    by_pace = [grad_filter(p_image, p_pixel, keep=0.5, pace=pace, order=order) for pace in shares]
    by_keep = [grad_filter(p_image, p_pixel, keep=keep) for keep in shares]
    for kept in (by_pace, by_keep):
        assert all((less <= more).all() for less, more in pairwise(kept))
        assert kept[0].sum() < kept[-1].sum()


def test_easy_and_hard_are_the_two_ends_of_the_same_pool() -> None:
    p_image, p_pixel = torch.rand(2, 8, 40, generator=generator())
    pool = grad_filter(p_image, p_pixel, keep=0.5)
    easy, hard = (grad_filter(p_image, p_pixel, keep=0.5, pace=0.5, order=order) for order in ("easy", "hard"))
    assert torch.equal(easy | hard, pool)
    assert not (easy & hard).any()
    for row in range(8):
        assert p_pixel[row, easy[row]].min() > p_pixel[row, hard[row]].max()


def test_values_where_no_candidate_is_do_not_matter_and_nothing_has_a_gradient() -> None:
    p_image, p_pixel = torch.rand(2, 4, 12, generator=generator()).requires_grad_()
    candidates = torch.rand(4, 12, generator=generator(1)) < 0.5
    kept = grad_filter(p_image, p_pixel, candidates=candidates, keep=0.4, pace=0.5)
    assert not kept.requires_grad
    spoiled = [p.masked_fill(~candidates, torch.nan) for p in (p_image, p_pixel)]
    assert torch.equal(kept, grad_filter(*spoiled, candidates=candidates, keep=0.4, pace=0.5))


def test_any_rising_function_selects_the_same() -> None:
    """So no temperature matters, and similarities stand for probabilities."""
    s_image, s_pixel = torch.randn(2, 6, 30, generator=generator(), dtype=torch.float64)
    kept = grad_filter(s_image, s_pixel, keep=0.4, pace=0.5)
    for temperature in (0.1, 1.0, 7.0):
        p_image, p_pixel = ((s / temperature).softmax(dim=1) for s in (s_image, s_pixel))
        assert torch.equal(kept, grad_filter(p_image, p_pixel, keep=0.4, pace=0.5))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_filter_of_nothing_is_nothing(shape: tuple[int, int]) -> None:
    assert grad_filter(torch.rand(shape), torch.rand(shape)).shape == shape


def test_wrong_arguments_of_the_filter_are_refused() -> None:
    p = torch.rand(2, 3)
    for share in (0.0, -0.1, 1.1, math.nan):
        with pytest.raises(UsageError, match="keep"):
            grad_filter(p, p, keep=share)
        with pytest.raises(UsageError, match="pace"):
            grad_filter(p, p, pace=share)
    with pytest.raises(UsageError, match="p_pixel"):
        grad_filter(p, p.T)
    with pytest.raises(UsageError, match="candidates"):
        grad_filter(p, p, candidates=torch.ones(2, 3))
    with pytest.raises(UsageError, match="order"):
        grad_filter(p, p, order="middling")  # type: ignore[arg-type]


# The loss


def naive_loss(
    objective: PixelContrast, z: Tensor, c: Tensor, batch: Batch, role: str, temperature: float
) -> tuple[Tensor, int, dict[str, int]]:
    """Every pixel an anchor, pixel by pixel, from the formulas: probabilities in both branches, pool, pace, mean."""
    values = batch.columns[role].tolist()
    patient = batch.columns["patient"].tolist() if "patient" in batch.columns else [-1] * len(values)
    num_views, num_rows, _, locations = z.shape
    pixels = [(v, n, p) for v in range(num_views) for n in range(num_rows) for p in range(locations)]
    losses: list[Tensor] = []
    counts = {"positives": 0, "kept": 0}
    for v, n, p in pixels:
        positives, negatives = [], []
        for w, m, q in pixels:
            if (v, n) == (w, m):
                continue
            if values[n] == values[m] != -1:
                positives.append((w, m, q))
            elif n != m and not (objective.negatives == "other_patients" and patient[n] == patient[m] != -1):
                negatives.append((w, m, q))
        if not positives:
            continue
        every = positives + negatives

        def probabilities(x: Tensor, every: Any = every, v: int = v, n: int = n, p: int = p) -> dict[Any, Tensor]:
            terms = {(w, m, q): (x[v, n, :, p] @ x[w, m, :, q] / temperature).exp() for w, m, q in every}
            total = torch.stack(list(terms.values())).sum()
            return {pixel: term / total for pixel, term in terms.items()}

        p_pixel, p_image = probabilities(z), probabilities(c)
        kept = positives
        if objective.keep is not None:
            pool = sorted(positives, key=lambda j: -p_image[j].item())[: math.ceil(objective.keep * len(positives))]
            pace = min(1, objective.pace_start + (1 - objective.pace_start) * batch.progress / objective.pace_until)
            hardest = objective.order == "hard"
            kept = sorted(pool, key=lambda j: (1 if hardest else -1) * p_pixel[j].item())[: math.ceil(pace * len(pool))]
        counts["positives"] += len(positives)
        counts["kept"] += len(kept)
        losses.append(-torch.stack([p_pixel[j].log() for j in kept]).mean())
    return torch.stack(losses).mean(), len(losses), counts


@pytest.mark.parametrize("num_views", [1, 2])
@pytest.mark.parametrize(
    "parameters",
    [{"keep": None}, {}, {"order": "hard", "keep": 0.6}, {"negatives": "other_patients", "pace_start": 0.7}],
    ids=["unfiltered", "default", "hard", "other_patients"],
)
def test_loss_and_gradient_equal_naive_loops(num_views: int, parameters: dict[str, Any]) -> None:
    batch = make_batch(5, region=[0, 0, 1, -1, 0], patient=[7, 8, 7, 7, -1], progress=0.2)
    objective = PixelContrast(SHAPE, relation="region", temperature=0.3, anchors=10**6, **parameters)
    given = embedded(5, num_views=num_views)
    z = given["z"].requires_grad_()
    loss = objective.loss(given if objective.keep is not None else {"z": z}, batch)
    expected, num_anchors, counts = naive_loss(objective, z, given["c"], batch, "region", 0.3)
    assert (
        loss.num_anchors == num_anchors == 4 * {1: 3, 2: 8}[num_views]
    )  # region 1 has one sample, hence two views or none
    assert loss.counts == counts
    assert (counts["kept"] < counts["positives"]) == (objective.keep is not None)
    torch.testing.assert_close(loss.value, expected, rtol=1e-12, atol=1e-12)
    ours, reference = (torch.autograd.grad(value, z)[0] for value in (loss.value, expected))
    torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-12)


def test_one_location_without_a_filter_is_relation_contrast() -> None:
    batch = make_batch(6, region=[0, 0, 1, 1, -1, 2], patient=[0, 0, 1, 2, -1, -1])
    z = embedded(6, locations=1)["z"]
    relations: list[Any] = ["region", "patient", {"same": "patient", "differ": "region"}, "views"]
    choices: list[Any] = ["all", "other_patients"]
    for relation in relations:
        for negatives in choices:
            pixel = PixelContrast(SHAPE, relation=relation, keep=None, negatives=negatives)
            image = Contrast(SHAPE, relation=relation, negatives=negatives)
            ours, theirs = pixel.loss({"z": z}, batch), image.loss({"z": z.squeeze(3)}, batch)
            torch.testing.assert_close(ours.value, theirs.value, rtol=1e-12, atol=1e-12)
            assert ours.num_anchors == theirs.num_anchors
            assert pixel.needs.roles == image.needs.roles
            assert (pixel.needs.views, pixel.needs.relations) == (image.needs.views, image.needs.relations)
            assert pixel.needs.grid


def test_a_weighting_weights_the_positives_as_in_relation_contrast() -> None:
    batch = make_batch(4, score__age=torch.tensor([40.0, 45.0, 50.0, torch.nan]))
    relation = {"near": {"score:age": 10}, "weighting": "linear"}
    z = embedded(4, locations=1)["z"]
    ours = PixelContrast(SHAPE, relation=relation, keep=None).loss({"z": z}, batch)
    theirs = Contrast(SHAPE, relation=relation).loss({"z": z.squeeze(3)}, batch)
    torch.testing.assert_close(ours.value, theirs.value, rtol=1e-12, atol=1e-12)
    assert ours.num_anchors == theirs.num_anchors == 6


def test_temperature_does_not_change_the_selection() -> None:
    batch = make_batch(4, region=[0, 0, 1, 1], progress=0.1)
    counts, differences = [], []
    for temperature in (0.001, 0.1, 10.0):
        given = embedded(4, num_views=1)
        objective = PixelContrast(SHAPE, relation="region", temperature=temperature, keep=0.5)
        loss = objective.loss(given, batch)
        unfiltered = PixelContrast(SHAPE, relation="region", temperature=temperature, keep=None).loss(given, batch)
        counts.append(loss.counts["kept"])
        # Anchors and denominators are the same: what is left is how much more similar the kept are than all.
        differences.append(((unfiltered.value - loss.value) * temperature).item())
    assert counts == [counts[0]] * 3
    assert differences == pytest.approx([differences[0]] * 3, abs=1e-9)
    assert differences[0] > 0.01


def test_the_pace_follows_the_progress_and_ends_at_one() -> None:
    objective = PixelContrast(SHAPE, relation="region", keep=0.5, pace_start=0.25, pace_until=0.5)
    assert [objective.pace(progress) for progress in (0.0, 0.25, 0.5, 0.9)] == [0.25, 0.625, 1.0, 1.0]
    given = embedded(4, locations=8)
    losses = [objective.loss(given, make_batch(4, region=[0] * 4, progress=p)) for p in (0.0, 0.25, 0.5, 0.9)]
    # 64 anchors with 7 * 8 positives each, of which 28 are pooled, in turn ceil(7), ceil(17.5), 28 and 28 of them.
    assert [loss.counts["kept"] for loss in losses] == [64 * 7, 64 * 18, 64 * 28, 64 * 28]
    assert {int(loss.counts["positives"]) for loss in losses} == {64 * 56}
    easy_first = [loss.value.item() for loss in losses]
    assert easy_first[0] < easy_first[1] < easy_first[2] == easy_first[3]


# Anchors


def drawn(objective: PixelContrast, batch: Batch, num_views: int = 2) -> Tensor:
    """Which of all V * N * 9 pixels are the anchors."""
    positives = objective.relation.mask(batch.columns).repeat(num_views, num_views).fill_diagonal_(False)
    return objective._draw(positives, batch, num_locations=9)[1]


def test_anchors_are_a_function_of_seed_and_name() -> None:
    objective, other = (PixelContrast(SHAPE, relation="region", anchors=20) for _ in range(2))
    objective.name, other.name = "pixel_region", "pixel_patient"
    given = embedded(4, locations=9)
    state = torch.get_rng_state()

    def value(which: PixelContrast, seed: int) -> float:
        loss = which.loss(given, make_batch(4, region=[0, 0, 1, 1], seed=seed))
        assert loss.num_anchors == 20
        return loss.value.item()

    assert value(objective, 3) == value(objective, 3)
    assert len({value(objective, 3), value(objective, 4), value(other, 3)}) == 3
    assert torch.equal(state, torch.get_rng_state())


def test_anchors_are_distinct_evenly_spread_and_have_a_positive() -> None:
    """Images 0, 1 and 3 have partners; each of their pixels in both views is drawn as often as any other."""
    objective = PixelContrast(SHAPE, relation={"same": "region", "differ": "patient"}, anchors=6)
    times = torch.zeros(2 * 5 * 9)
    for seed in range(900):
        pixels = drawn(objective, make_batch(5, region=[0, 0, 1, 0, -1], patient=[0, 1, 2, 3, 4], seed=seed))
        assert len(set(pixels.tolist())) == len(pixels) == 6
        times[pixels] += 1
    by_image = times.view(2, 5, 9)
    assert not by_image[:, [2, 4]].any()
    # 900 draws of 6 from 54: 100 times each, with a standard deviation of about 9.4.
    assert by_image[:, [0, 1, 3]].sub(100).abs().max() < 45
    assert by_image[:, [0, 1, 3]].std().item() == pytest.approx(9.4, rel=0.4)


def test_a_sample_of_anchors_estimates_the_loss_over_all() -> None:
    given = embedded(4, locations=9)
    batches = [make_batch(4, region=[0, 0, 1, 1], seed=seed) for seed in range(200)]
    all_of_them = PixelContrast(SHAPE, relation="region", anchors=10**6).loss(given, batches[0])
    some = [PixelContrast(SHAPE, relation="region", anchors=12).loss(given, batch).value for batch in batches]
    estimates = torch.stack(some)
    assert all_of_them.num_anchors == 72
    error = estimates.std() / math.sqrt(len(estimates))
    assert (estimates.mean() - all_of_them.value).abs() < 4 * error


# Degenerate batches


def differentiated(objective: PixelContrast, grid: Tensor, batch: Batch) -> tuple[Loss, list[Tensor]]:
    """The loss, and the gradients of the grid and of every parameter of the head, all finite."""
    grid = grid.requires_grad_()
    loss = objective.loss(objective.embed(Features(torch.empty(0), grid={"MR": grid}), batch), batch)
    gradients = list(torch.autograd.grad(loss.value, [grid, *objective.parameters()], retain_graph=True))
    assert loss.value.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)
    return loss, gradients


@pytest.mark.parametrize("keep", [None, 0.3])
@pytest.mark.parametrize(
    ("num_views", "region"),
    [(1, [0]), (2, [-1]), (2, [-1] * 4), (1, [0, 1, 2, 3])],
    ids=["one_sample", "one_without_label", "no_labels", "no_partners"],
)
def test_nothing_to_do_is_exactly_zero_with_zero_gradients(num_views: int, region: list[int], keep: float) -> None:
    objective = PixelContrast(SHAPE, relation="region", keep=keep, dim=4)
    grid = torch.randn(num_views, len(region), 6, 2, 2, generator=generator())
    loss, gradients = differentiated(objective, grid, make_batch(len(region), region=region))
    assert (loss.value.item(), loss.num_anchors, loss.counts) == (0, 0, {"positives": 0, "kept": 0})
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("keep", [None, 0.3])
@pytest.mark.parametrize("region", [[0], [0] * 4], ids=["one_sample", "one_label"])
def test_positives_without_negatives_are_finite(region: list[int], keep: float) -> None:
    objective = PixelContrast(SHAPE, relation="region", keep=keep, dim=4)
    grid = torch.randn(2, len(region), 6, 2, 2, generator=generator())
    loss, gradients = differentiated(objective, grid, make_batch(len(region), region=region))
    assert loss.num_anchors == 8 * len(region)
    assert all(gradient.any() for gradient in gradients[:2])


@pytest.mark.parametrize("value", [0.0, 1.0], ids=["zeros", "constant"])
def test_a_constant_grid_has_finite_gradients(value: float) -> None:
    objective = PixelContrast(SHAPE, relation="region", dim=4)
    loss, _ = differentiated(objective, torch.full((2, 3, 6, 2, 2), value), make_batch(3, region=[0, 0, 1]))
    # All alike: an anchor has 12 positives (its image is absent) and, of the 2 regions, 8 or 16 negatives.
    expected = (16 * math.log(12 + 8) + 8 * math.log(4 + 16)) / 24
    assert loss.value.item() == pytest.approx(expected, rel=1e-5)


# The image branch


def test_certainty_comes_from_the_lent_head_at_every_location() -> None:
    head = ProjectionHead(6, [8, 3], last_norm=False).double()
    head(torch.randn(20, 6, generator=generator(1), dtype=torch.float64))  # so that statistics are not as they began
    objective = PixelContrast(SHAPE, relation="region", image_head="h", dim=4).double()
    objective.lend(head)
    grid = torch.randn(2, 3, 6, 2, 3, generator=generator(), dtype=torch.float64)
    found = objective.embed(Features(torch.empty(0), grid={"MR": grid}), make_batch(3, region=[0, 0, 1]))
    assert found["z"].shape == (2, 3, 4, 6)
    assert found["c"].shape == (2, 3, 3, 6)
    head.eval()
    weights = dict(objective.named_parameters())
    for view, row, location in [(0, 0, 0), (1, 2, 5), (0, 1, 4)]:
        at = grid[view, row].flatten(1)[:, location]
        expected = F.normalize(head(at[None]), dim=-1)[0]
        torch.testing.assert_close(found["c"][view, row, :, location], expected)
        hidden = F.relu(weights["head.0.weight"][:, :, 0, 0] @ at + weights["head.0.bias"])
        z = F.normalize(weights["head.2.weight"][:, :, 0, 0] @ hidden + weights["head.2.bias"], dim=0)
        torch.testing.assert_close(found["z"][view, row, :, location], z)


def test_without_a_head_the_grid_itself_is_the_certainty() -> None:
    objective = PixelContrast(SHAPE, relation="region", dim=4)
    grid = torch.randn(1, 3, 6, 2, 2, generator=generator()).requires_grad_()
    found = objective.embed(Features(torch.empty(0), grid={"MR": grid}), make_batch(3, region=[0, 0, 1]))
    torch.testing.assert_close(found["c"], F.normalize(grid.detach().flatten(3), dim=2))
    assert not found["c"].requires_grad
    unfiltered = PixelContrast(SHAPE, relation="region", keep=None)
    assert set(unfiltered.embed(Features(torch.empty(0), grid={"MR": grid}), make_batch(3))) == {"z"}


@pytest.mark.parametrize("training", [True, False])
def test_the_lent_head_stays_its_owners(training: bool) -> None:
    """No gradient, no statistics, no parameter of it; modes as they were, part by part."""
    head = ProjectionHead(6, [8, 3], last_norm=True).train(training)
    head.norms[1].eval()
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    objective = PixelContrast(SHAPE, relation="region", image_head="h", dim=4)
    names = set(objective.state_dict())
    objective.lend(head)
    assert set(objective.state_dict()) == names
    assert not {id(p) for p in objective.parameters()} & {id(p) for p in head.parameters()}
    grid = torch.randn(2, 3, 6, 2, 2, generator=generator())
    loss, _ = differentiated(objective, grid, make_batch(3, region=[0, 0, 1]))
    for_head = torch.autograd.grad(loss.value, list(head.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in for_head)
    assert all(torch.equal(tensor, before[name]) for name, tensor in head.state_dict().items())
    assert head.training is head.norms[0].training is training
    assert not head.norms[1].training
    objective.eval().train()
    assert head.training is training


def test_under_autocast_the_lent_head_still_learns_from_its_own_objective() -> None:
    """Autocast reuses the weights it has cast; those cast without gradients would leave the head without any."""
    image = Contrast(SHAPE, relation="region", dim=3)
    pixel = PixelContrast(SHAPE, relation="region", dim=4, image_head="h")
    pixel.lend(image.head)
    grid = torch.randn(2, 4, 6, 2, 2, generator=generator())
    features = Features(grid.mean(dim=(3, 4)), grid={"MR": grid.bfloat16()})  # as a convolution leaves it
    batch = make_batch(4, region=[0, 0, 1, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        of_pixels = pixel.embed(features, batch)
        loss = pixel.loss(of_pixels, batch)
        of_images = image.loss(image.embed(features, batch), batch)
    assert of_pixels["z"].dtype == of_pixels["c"].dtype == loss.value.dtype == torch.float32
    trained = [*image.parameters(), *pixel.parameters()]
    gradients = torch.autograd.grad(of_images.value + loss.value, trained)  # fails where one has none
    assert all(gradient.isfinite().all() for gradient in gradients)
    exact = pixel.loss({name: tensor.double() for name, tensor in of_pixels.items()}, batch)
    assert loss.value.item() == pytest.approx(exact.value.item(), rel=1e-5)


def test_what_the_image_branch_finds_certain_changes_the_loss() -> None:
    batch = make_batch(4, region=[0, 0, 1, 1])
    objective = PixelContrast(SHAPE, relation="region", pace_start=1.0)
    given = embedded(4)
    agreeing = objective.loss({"z": given["z"], "c": given["z"]}, batch)
    assert agreeing.value < objective.loss(given, batch).value


# Modalities, needs, errors


def test_modalities_come_together_in_the_order_of_the_batch() -> None:
    grid = torch.randn(2, 5, 6, 2, 2, generator=generator())
    rows = {"CT": torch.tensor([3, 0]), "MR": torch.tensor([4, 1, 2])}
    batch = make_batch(5)
    objective = PixelContrast(SHAPE, relation="region", dim=4)
    whole = objective.embed(Features(torch.empty(0), grid={"MR": grid}), batch)
    split = {modality: grid[:, which] for modality, which in rows.items()}
    batch.rows = rows
    parts = objective.embed(Features(torch.empty(0), grid=split), batch)
    for name in ("z", "c"):
        torch.testing.assert_close(parts[name], whole[name])
    split["CT"] = torch.randn(2, 2, 6, 3, 3)
    with pytest.raises(EncoderError, match="CT 3 x 3, MR 2 x 2"):
        objective.embed(Features(torch.empty(0), grid=split), batch)


def test_wrong_parameters_are_refused() -> None:
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("temperature", {"temperature": 0.0}),
        ("keep", {"keep": 0.0}),
        ("keep", {"keep": 1.5}),
        ("pace_start", {"pace_start": 0.0}),
        ("pace_until", {"pace_until": 0.0}),
        ("order", {"order": "middling"}),
        ("anchors", {"anchors": 0}),
        ("dim", {"dim": 0}),
        ("hidden", {"hidden": 0}),
        ("negatives", {"negatives": "some"}),
        ("regionn", {"relation": "regionn"}),
    ]
    for message, parameters in wrong:
        with pytest.raises(RecipeError, match=message):
            PixelContrast(SHAPE, **parameters)
    necked = FeatureShape(dim=3, grid_channels=6, grid_stride=32)
    with pytest.raises(RecipeError, match="neck"):
        PixelContrast(necked, relation="region", image_head="h")
    assert PixelContrast(necked, relation="region").image_head is None
    assert PixelContrast.branch == "pixel"
    assert PixelContrast(SHAPE, hidden=9).state_dict()["head.0.weight"].shape == (9, 6, 1, 1)
