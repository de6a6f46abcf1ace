"""GradMitigator: against loops over vectors, and torchjd's PCGrad and GradVac with partners in the same order."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchjd.aggregation import GradVac, PCGrad

from bolus.training.gradients.mitigator import grad_mitigator, mitigation_weights

LIMIT = 0.99

Orders = list[list[int]]


def in_order(m: int) -> Orders:
    """The partners of every objective from the first to the last."""
    return [[n for n in range(m) if n != one] for one in range(m)]


def drawn(m: int, generator: torch.Generator) -> Orders:
    """The partners of every objective in a drawn order: one permutation of all M a row, the row itself left out."""
    return [[n for n in torch.randperm(m, generator=generator).tolist() if n != one] for one in range(m)]


def dot(a: list[float], b: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def by_vectors(gradients: Tensor, goals: Tensor, rate: float, orders: Orders) -> tuple[Tensor, Tensor]:
    """Gradient Vaccine over plain vectors, one partner after the other; for gradients whose norms are well above 0."""
    rows: list[list[float]] = gradients.double().tolist()
    new_goals: list[list[float]] = goals.double().tolist()
    mitigated = []
    for m, row in enumerate(rows):
        moved = list(row)
        for n in orders[m]:
            goal = min(max(new_goals[m][n], -LIMIT), LIMIT)
            norm, other = math.sqrt(dot(moved, moved)), math.sqrt(dot(rows[n], rows[n]))
            cosine = min(max(dot(moved, rows[n]) / (norm * other), -1.0), 1.0)
            if cosine < goal:
                across, goal_across = math.sqrt(1 - cosine**2), math.sqrt(1 - goal**2)
                weight = norm * (goal * across - cosine * goal_across) / (other * goal_across)
                moved = [x + weight * y for x, y in zip(moved, rows[n], strict=True)]
            new_goals[m][n] = min(max((1 - rate) * goal + rate * cosine, -LIMIT), LIMIT)
        mitigated.append(moved)
    return torch.tensor(mitigated, dtype=torch.float64), torch.tensor(new_goals, dtype=torch.float64)


def by_projection(gradients: Tensor, orders: Orders) -> Tensor:
    """PCGrad: off every gradient that it runs against, the part along that gradient is taken."""
    mitigated = gradients.clone()
    for m, partners in enumerate(orders):
        for n in partners:
            along = mitigated[m] @ gradients[n]
            if along < 0:
                mitigated[m] = mitigated[m] - along / (gradients[n] @ gradients[n]) * gradients[n]
    return mitigated


def random_gradients(m: int, p: int, seed: int, *, scales: bool = False, shared: float = 0.0) -> Tensor:
    """Rows of normal numbers, with a part that all share and norms that differ by orders of magnitude if asked."""
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(m, p, generator=generator, dtype=torch.float64)
    gradients = gradients + shared * torch.randn(p, generator=generator, dtype=torch.float64)
    if scales:
        gradients = gradients * 10.0 ** (6 * torch.rand(m, 1, generator=generator, dtype=torch.float64) - 3)
    return gradients


def random_goals(m: int, seed: int) -> Tensor:
    goals = 1.6 * torch.rand(m, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.8
    return goals.fill_diagonal_(0.0)


def no_goals(m: int) -> Tensor:
    return torch.zeros(m, m, dtype=torch.float64)


def at_angle(cosine: float, length: float = 1.0) -> Tensor:
    """Two gradients of the plane with this cosine; the first has length 1."""
    return torch.tensor([[1.0, 0.0], [length * cosine, length * math.sqrt(1 - cosine**2)]], dtype=torch.float64)


def assert_rows_close(found: Tensor, expected: Tensor, gradients: Tensor, tolerance: float = 1e-6) -> None:
    """Each row to within a share of its own gradient's norm, so that small rows are held to the same standard."""
    error = (found.double() - expected.double()).norm(dim=1) / gradients.double().norm(dim=1)
    assert float(error.max()) < tolerance, error


# ---------------------------------------------------------------- the Gram form is the vector form


@pytest.mark.parametrize("scales", [False, True], ids=["alike", "scales"])
@pytest.mark.parametrize("p", [3, 17])
@pytest.mark.parametrize("m", [2, 3, 4, 5, 6])
def test_equals_the_loop_over_vectors_with_partners_in_order(m: int, p: int, scales: bool) -> None:
    moved = False
    for seed in range(5):
        gradients, goals = random_gradients(m, p, seed, scales=scales), random_goals(m, seed + 100)
        expected, expected_goals = by_vectors(gradients, goals, 0.3, in_order(m))
        found, found_goals = grad_mitigator(gradients, goals, rate=0.3)
        assert_rows_close(found, expected, gradients)
        torch.testing.assert_close(found_goals, expected_goals, atol=1e-6, rtol=0)
        moved = moved or not torch.equal(expected, gradients)
    assert moved, "nothing to mitigate in these examples"


@pytest.mark.parametrize("m", [2, 3, 4, 5, 6])
def test_equals_the_loop_over_vectors_with_partners_in_a_drawn_order(m: int) -> None:
    ours, theirs = torch.Generator().manual_seed(m), torch.Generator().manual_seed(m)
    goals = expected_goals = no_goals(m)
    for step in range(8):
        gradients = random_gradients(m, 11, 1000 * m + step, shared=1.0)
        expected, expected_goals = by_vectors(gradients, expected_goals, 0.2, drawn(m, theirs))
        found, goals = grad_mitigator(gradients, goals, rate=0.2, generator=ours)
        assert_rows_close(found, expected, gradients)
        torch.testing.assert_close(goals, expected_goals, atol=1e-6, rtol=0)


def test_the_order_of_partners_matters_and_is_the_generators() -> None:
    gradients, goals = random_gradients(4, 9, 3), random_goals(4, 3)
    found = [
        grad_mitigator(gradients, goals, generator=torch.Generator().manual_seed(seed))[0] for seed in (0, 0, 1, 2, 3)
    ]
    assert torch.equal(found[0], found[1])
    assert any(not torch.allclose(found[0], other) for other in found[2:])


def test_weights_times_gradients_are_the_mitigated_gradients() -> None:
    gradients, goals = random_gradients(4, 9, 5), random_goals(4, 5)
    weights, weight_goals = mitigation_weights(gradients @ gradients.T, goals, rate=0.1)
    found, found_goals = grad_mitigator(gradients, goals, rate=0.1)
    assert_rows_close(found, weights @ gradients, gradients)
    torch.testing.assert_close(found_goals, weight_goals)


def test_the_rate_is_a_hundredth_unless_given() -> None:
    gradients, goals = random_gradients(3, 9, 6), random_goals(3, 6)
    expected = by_vectors(gradients, goals, 0.01, in_order(3))[1]
    torch.testing.assert_close(grad_mitigator(gradients, goals)[1], expected, atol=1e-7, rtol=0)
    torch.testing.assert_close(mitigation_weights(gradients @ gradients.T, goals)[1], expected, atol=1e-7, rtol=0)


def test_three_gradients_by_hand() -> None:
    """Gradients 0 and 2 agree, but not once 0 has been moved towards 1; 2, which starts with 0, agrees with it."""
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.5, -1.0]], dtype=torch.float64)
    weights, goals = mitigation_weights(gradients @ gradients.T, no_goals(3), rate=0.1)
    torch.testing.assert_close(weights[0], torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64), atol=1e-6, rtol=0)
    assert float(goals[0, 1]) == pytest.approx(-0.1 / math.sqrt(2), abs=1e-7)
    assert float(goals[0, 2]) == pytest.approx(-0.1 * 0.25 / math.sqrt(0.5 * 1.25), abs=1e-7)
    assert float(goals[2, 0]) == pytest.approx(0.1 * 0.5 / math.sqrt(1.25), abs=1e-7)


# ---------------------------------------------------------------- the goal


@pytest.mark.parametrize("length", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("goal", [-0.9, -0.4, 0.0, 0.4, 0.9, 0.99])
@pytest.mark.parametrize("cosine", [-0.95, -0.5, -0.05, 0.05, 0.5, 0.95])
def test_the_cosine_becomes_the_goal_where_it_was_below(cosine: float, goal: float, length: float) -> None:
    gradients = at_angle(cosine, length)
    goals = torch.tensor([[0.0, goal], [goal, 0.0]], dtype=torch.float64)
    found, new_goals = grad_mitigator(gradients, goals, rate=0.25)
    for m, n in ((0, 1), (1, 0)):
        if cosine < goal:
            reached = float(torch.cosine_similarity(found[m], gradients[n], dim=0, eps=0.0))
            assert reached == pytest.approx(goal, abs=1e-5)
            moved = found[m] - gradients[m]
            assert float(torch.cosine_similarity(moved, gradients[n], dim=0, eps=0.0)) == pytest.approx(1.0)
        else:
            assert torch.equal(found[m], gradients[m])
        assert float(new_goals[m, n]) == pytest.approx(0.75 * goal + 0.25 * cosine, abs=1e-6)


def test_the_goal_rises_without_conflict_and_is_asked_for_later() -> None:
    """A goal that moved only where gradients conflict could only fall; this one approaches the usual cosine."""
    gradients, goals = at_angle(0.6), no_goals(2)
    for step in range(1, 41):
        before = goals
        weights, goals = mitigation_weights(gradients @ gradients.T, goals, rate=0.1)
        torch.testing.assert_close(weights, torch.eye(2, dtype=torch.float64))
        expected = 0.6 * (1 - 0.9**step)
        assert float(goals[0, 1]) == pytest.approx(expected, abs=1e-6)
        assert float(goals[0, 1]) > float(before[0, 1])
    changed = at_angle(0.2)
    found, after = grad_mitigator(changed, goals, rate=0.1)
    reached = float(torch.cosine_similarity(found[0], changed[1], dim=0))
    assert reached == pytest.approx(float(goals[0, 1]), abs=1e-6)
    assert reached > 0.55
    assert float(after[0, 1]) == pytest.approx(0.9 * float(goals[0, 1]) + 0.1 * 0.2, abs=1e-6)


def test_goals_are_kept_off_one() -> None:
    alike, against = at_angle(1.0, 2.0), at_angle(-1.0, 2.0)
    for gradients, expected in ((alike, LIMIT), (against, -LIMIT)):
        goals = mitigation_weights(gradients @ gradients.T, no_goals(2), rate=1.0)[1]
        assert float(goals[0, 1]) == pytest.approx(expected)
        assert float(goals[1, 0]) == pytest.approx(expected)


@pytest.mark.parametrize("given", [1.0, 3.0])
def test_a_goal_that_cannot_be_reached_is_lowered(given: float) -> None:
    gradients = at_angle(0.1)
    found, goals = grad_mitigator(gradients, torch.full((2, 2), given, dtype=torch.float64), rate=0.1)
    assert float(torch.cosine_similarity(found[0], gradients[1], dim=0)) == pytest.approx(LIMIT, abs=1e-6)
    assert -LIMIT <= float(goals[0, 1]) <= LIMIT


def test_the_goals_given_are_left_alone_and_the_diagonal_has_none() -> None:
    gradients, goals = random_gradients(3, 9, 8), random_goals(3, 8)
    kept_gradients, kept_goals = gradients.clone(), goals.clone()
    found = grad_mitigator(gradients, goals, rate=0.5)[1]
    gram = gradients @ gradients.T
    kept_gram = gram.clone()
    mitigation_weights(gram, goals, rate=0.5)
    assert torch.equal(goals, kept_goals)
    assert torch.equal(gradients, kept_gradients)
    assert torch.equal(gram, kept_gram)
    assert not torch.equal(found, goals)
    assert torch.equal(found.diagonal(), goals.diagonal())


# ---------------------------------------------------------------- oracles


@pytest.mark.parametrize("m", [2, 3, 5])
def test_without_goals_it_is_projection(m: int) -> None:
    for seed in range(10):
        gradients = random_gradients(m, 7, seed)
        orders = drawn(m, torch.Generator().manual_seed(seed))
        found, goals = grad_mitigator(gradients, no_goals(m), rate=0.0, generator=torch.Generator().manual_seed(seed))
        assert_rows_close(found, by_projection(gradients, orders), gradients)
        assert not goals.any(), "at rate 0 the goals stay where they are"


@pytest.mark.parametrize("m", [2, 3, 5])
def test_without_goals_it_is_torchjds_pcgrad(m: int) -> None:
    """Both draw one permutation of all M an objective, so that the same seed is the same order."""
    moved = False
    for seed in range(10):
        gradients = random_gradients(m, 7, seed + 50)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            expected = PCGrad()(gradients)
        found = grad_mitigator(gradients, no_goals(m), rate=0.0, generator=torch.Generator().manual_seed(seed))[0]
        torch.testing.assert_close(found.sum(0), expected, atol=1e-6, rtol=1e-6)
        moved = moved or not torch.allclose(expected, gradients.sum(0))
    assert moved


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_three_objectives_over_many_steps_are_torchjds_gradvac(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same sums as long as no goal passes .99 and no gradient vanishes: GradVac clamps nothing and skips nothing.

    GradVac permutes the other objectives rather than all of them, so it is handed the order of ours.
    """
    m, oracle, goals = 3, GradVac(beta=rate), no_goals(3)
    moved = lifted = False
    for step in range(12):
        gradients = random_gradients(m, 8, step, shared=1.5 if step % 4 else 0.0)
        orders = drawn(m, torch.Generator().manual_seed(step))
        queue = [torch.tensor([in_order(m)[one].index(n) for n in orders[one]]) for one in range(m)]
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randperm", lambda _, queue=queue: queue.pop(0))
            expected = oracle(gradients)
        assert not queue, "the oracle asked for another number of permutations"
        lifted = lifted or bool((goals > 0.1).any())
        found, goals = grad_mitigator(gradients, goals, rate=rate, generator=torch.Generator().manual_seed(step))
        torch.testing.assert_close(found.sum(0), expected, atol=1e-5, rtol=1e-5)
        moved = moved or not torch.allclose(expected, gradients.sum(0))
        assert float(goals.abs().max()) < LIMIT
    assert moved
    assert lifted


# ---------------------------------------------------------------- gradients that have no direction


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-200], ids=["zero", "tiny", "underflows"])
@pytest.mark.parametrize("where", [0, 1, 3])
def test_a_gradient_without_norm_is_as_if_absent(where: int, size: float) -> None:
    gradients, goals = random_gradients(4, 9, 12), random_goals(4, 12)
    gradients[where] *= size
    rest = [m for m in range(4) if m != where]
    weights, found_goals = mitigation_weights(gradients @ gradients.T, goals, rate=0.3)
    expected, expected_goals = by_vectors(gradients[rest], goals[rest][:, rest], 0.3, in_order(3))
    assert_rows_close(weights[rest] @ gradients, expected, gradients[rest])
    torch.testing.assert_close(found_goals[rest][:, rest], expected_goals, atol=1e-6, rtol=0)
    identity = torch.eye(4, dtype=torch.float64)
    assert torch.equal(weights[where], identity[where])
    assert torch.equal(weights[:, where], identity[:, where])
    assert torch.equal(found_goals[where], goals[where])
    assert torch.equal(found_goals[:, where], goals[:, where])
    assert torch.equal(grad_mitigator(gradients, goals, rate=0.3)[0][where], gradients[where])


def test_gradients_all_of_them_zero_change_nothing() -> None:
    goals = random_goals(3, 1)
    weights, found = mitigation_weights(torch.zeros(3, 3, dtype=torch.float64), goals, rate=0.5)
    assert torch.equal(weights, torch.eye(3, dtype=torch.float64))
    assert torch.equal(found, goals)


@pytest.mark.parametrize("length", [1.0, 0.3, 700.0])
def test_opposite_gradients_cancel_and_are_passed_over_afterwards(length: float) -> None:
    """Projected off its opposite, gradient 0 is gone: no direction is left to compare with gradient 2."""
    pair = random_gradients(2, 9, 20)
    gradients = torch.stack([pair[0], -length * pair[0], pair[1]])
    goals = no_goals(3)
    goals[0, 2], goals[1, 2] = -0.25, -0.5
    found, new_goals = grad_mitigator(gradients, goals, rate=0.1)
    assert torch.isfinite(found).all()
    assert float(found[0].norm() / gradients[0].norm()) < 1e-6
    assert float(found[1].norm() / gradients[1].norm()) < 1e-6
    assert float(new_goals[0, 1]) == pytest.approx(-0.1)
    assert float(new_goals[1, 0]) == pytest.approx(-0.1)
    assert float(new_goals[0, 2]) == -0.25
    assert float(new_goals[1, 2]) == -0.5


def test_opposite_gradients_in_single_precision_stay_small() -> None:
    """What rounding leaves of a cancelled gradient is noise, and must not be blown up by what follows."""
    for seed in range(20):
        pair = random_gradients(2, 33, seed).float()
        gradients = torch.stack([pair[0], -0.3 * pair[0], pair[1]])
        for gram in (gradients @ gradients.T, gradients.double() @ gradients.double().T):
            weights, goals = mitigation_weights(gram, no_goals(3), rate=0.1)
            assert torch.isfinite(goals).all()
            left = (weights @ gradients.double()).norm(dim=1) / gradients.double().norm(dim=1)
            assert float(left[:2].max()) < 5e-3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(1, 1), (0, 2)], ids=["norm", "product"])
def test_a_gram_matrix_that_is_not_finite_changes_nothing(place: tuple[int, int], value: float) -> None:
    gradients, goals = random_gradients(3, 9, 30), random_goals(3, 30)
    gram = gradients @ gradients.T
    gram[place] = gram[place[::-1]] = value
    weights, found = mitigation_weights(gram, goals, rate=0.5)
    assert torch.equal(weights, torch.eye(3, dtype=torch.float64))
    assert torch.equal(found, goals)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_leaves_the_goals(value: float) -> None:
    gradients, goals = random_gradients(3, 9, 31), random_goals(3, 31)
    gradients[1, 4] = value
    assert torch.equal(grad_mitigator(gradients, goals, rate=0.5)[1], goals)


# ---------------------------------------------------------------- form


@pytest.mark.parametrize("m", [1, 2, 5])
def test_without_conflict_the_weights_are_the_identity(m: int) -> None:
    gradients = random_gradients(m, 9, 40).abs()
    weights, goals = mitigation_weights(gradients @ gradients.T, no_goals(m), rate=0.1)
    assert weights.shape == goals.shape == (m, m)
    assert torch.equal(weights, torch.eye(m, dtype=torch.float64))
    found = grad_mitigator(gradients, no_goals(m))[0]
    assert torch.equal(found, gradients)


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e3, 1e6])
def test_the_size_of_all_gradients_does_not_matter(factor: float) -> None:
    """A loss in other units, or one scaled for half precision, is mitigated as before."""
    gradients, goals = random_gradients(4, 9, 41), random_goals(4, 41)
    gram = gradients @ gradients.T
    expected, expected_goals = mitigation_weights(gram, goals, rate=0.3)
    weights, found = mitigation_weights(factor**2 * gram, goals, rate=0.3)
    assert not torch.equal(expected, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found, expected_goals, atol=1e-6, rtol=0)


def test_the_size_of_one_gradient_changes_only_units() -> None:
    gradients, goals = random_gradients(3, 9, 42), random_goals(3, 42)
    sizes = torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)[:, None]
    found, found_goals = grad_mitigator(gradients, goals, rate=0.3)
    scaled, scaled_goals = grad_mitigator(sizes * gradients, goals, rate=0.3)
    assert_rows_close(scaled / sizes, found, gradients)
    torch.testing.assert_close(scaled_goals, found_goals, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_precision_in_and_out(dtype: torch.dtype) -> None:
    gradients, goals = random_gradients(4, 50, 43).to(dtype), random_goals(4, 43)
    expected, expected_goals = by_vectors(gradients, goals, 0.3, in_order(4))
    tolerance = 1e-4 if dtype == torch.float32 else 1e-6
    found, found_goals = grad_mitigator(gradients, goals, rate=0.3)
    assert found.dtype == dtype
    assert found.shape == gradients.shape
    assert_rows_close(found, expected, gradients, tolerance)
    weights, weight_goals = mitigation_weights(gradients @ gradients.T, goals, rate=0.3)
    assert_rows_close(weights @ gradients.double(), expected, gradients, tolerance)
    for tensor in (weights, weight_goals, found_goals):
        assert tensor.dtype == torch.float64
        assert tensor.device.type == "cpu"
    for tensor in (weight_goals, found_goals):
        torch.testing.assert_close(tensor, expected_goals, atol=tolerance, rtol=0)


def test_no_global_random_number_is_drawn() -> None:
    gradients, goals = random_gradients(3, 9, 44), random_goals(3, 44)
    before = torch.random.get_rng_state()
    grad_mitigator(gradients, goals)
    grad_mitigator(gradients, goals, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.random.get_rng_state(), before)
