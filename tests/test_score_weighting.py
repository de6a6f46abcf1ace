"""LEARNER's weightings that depend on more than a difference: ranks among training scores, and what is learnt."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bolus.data.batches.batch import Batch
from bolus.encoders.features import Features, FeatureShape
from bolus.errors import UsageError
from bolus.objectives.scores.score import ScoreContrast, score_contrast_loss
from bolus.objectives.scores.weighting import PIECES, LearnedWeighting, fit_to_order, quantiles_of, weigh

NAN = float("nan")


def naive_quantile(score: float, among: list[float]) -> float:
    return sum((other < score) + 0.5 * (other == score) for other in among) / len(among)


def naive_weighted(u: Tensor, s: list[float], w: list[list[float]], threshold: float, temperature: float) -> float:
    """Rows, anchors and pairs one by one."""
    known = [value for value in s if not math.isnan(value)]
    spread, losses = max(known) - min(known), []
    for i, own in enumerate(s):
        near, far = [], []
        for j, other in enumerate(s):
            if i == j or math.isnan(own) or math.isnan(other):
                continue
            cosine = float(u[i] @ u[j] / (u[i].norm() * u[j].norm()))
            if abs(own - other) / spread <= threshold:
                near.append((1 - w[i][j]) * math.exp(cosine / temperature))
            else:
                far.append(w[i][j] * math.exp(cosine / temperature))
        if near and far:
            losses.append(-math.log(sum(near) / (sum(near) + sum(far))))
    return sum(losses) / len(losses)


def test_quantiles_count_equal_scores_half() -> None:
    among = [0.0, 1.0, 1.0, 4.0, 9.0]
    scores = [-1.0, 0.0, 1.0, 3.0, 9.0, 12.0]
    found = quantiles_of(torch.tensor(scores), torch.tensor(among))
    assert found.tolist() == pytest.approx([naive_quantile(score, among) for score in scores], abs=1e-12)


@pytest.mark.parametrize("own", [True, False], ids=["of the batch", "of the training scores"])
def test_the_weight_is_the_share_of_scores_between_two(own: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    u = torch.randn(9, 5, generator=rng, dtype=torch.float64)
    s = [0.0, 0.1, 0.2, 3.0, 3.1, 9.0, 9.2, 9.2, NAN]
    known = sorted(value for value in s if not math.isnan(value))
    among = known if own else sorted([*known, 0.05, 0.15, 20.0])
    places = [naive_quantile(value, among) for value in s]
    w = [[abs(one - other) for other in places] for one in places]
    given = {} if own else {"among": torch.tensor(among, dtype=torch.float64)}
    found = score_contrast_loss(u, torch.tensor(s, dtype=torch.float64), weighting="quantile", **given)
    assert float(found) == pytest.approx(naive_weighted(u, s, w, 0.1, 0.1), rel=1e-10)


def test_a_monotone_change_of_the_scores_keeps_quantile_weights() -> None:
    s = torch.tensor([0.0, 1.0, 2.0, 5.0], dtype=torch.float64)
    first, second = (quantiles_of(each, each) for each in (s, s.exp()))
    assert torch.equal(first, second)


def batch_of(scores: list[float]) -> Batch:
    return Batch({}, {}, {"sample": torch.arange(len(scores)), "score:a": torch.tensor(scores, dtype=torch.float64)})


def learned(dim: int = 4) -> ScoreContrast:
    table = {"score:a": np.linspace(0.0, 10.0, 21)}
    return ScoreContrast(FeatureShape(dim, dim, 32), table, weighting="learned").double()


def test_what_is_learnt_begins_as_linear() -> None:
    u = torch.randn(1, 8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    batch = batch_of([0.0, 0.5, 1.0, 4.0, 4.5, 8.0, 9.0, NAN])
    table = {"score:a": np.linspace(0.0, 10.0, 21)}
    linear = ScoreContrast(FeatureShape(4, 4, 32), table).double()
    values = [
        objective.loss(objective.embed(Features(u), batch), batch).value.item() for objective in (learned(), linear)
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-6)  # float32 pieces


def test_the_learnt_weight_grows_from_0_and_stays_below_1() -> None:
    weighting = LearnedWeighting(3)
    with torch.no_grad():
        weighting.pieces.copy_(torch.randn(PIECES, generator=torch.Generator().manual_seed(2)) * 3)
    d = torch.linspace(0, 1, 201)[None]
    w = weigh(weighting.curve(1), d)[0]
    assert w[0] == 0
    assert (w.diff() >= 0).all()
    assert w[-1] < 1


def naive_fit(curve: Tensor, place: list[float], scores: list[float], d: Tensor, pairs: Tensor) -> float:
    total, number = 0.0, 0
    for i in range(len(scores)):
        for j in range(len(scores)):
            if not pairs[i, j] or d[i, j] == 0:
                continue
            sign = 1.0 if scores[i] > scores[j] else -1.0
            margin = (place[i] - place[j]) * sign
            at = float(d[i, j]) * PIECES
            below = min(int(at), PIECES - 1)
            low, high = (1 - math.exp(-float(curve[i, knot])) for knot in (below, below + 1))
            w = low + (high - low) * (at - below)
            right = (margin > 0) - (margin < 0)
            total, number = total + math.log1p(math.exp(-margin)) + (w - right) ** 2, number + 1
    return total / number


def test_the_fit_is_that_of_every_pair() -> None:
    scores = [0.0, 2.0, 2.0, 5.0, 10.0]
    s = torch.tensor(scores, dtype=torch.float64)
    d = (s[:, None] - s).abs() / 10
    place = torch.tensor([0.1, -0.3, 0.2, 0.9, 0.9], dtype=torch.float64)
    pairs = ~torch.eye(5, dtype=torch.bool)
    pairs[0, 4] = False
    curve = LearnedWeighting(2).double().curve(5)
    found = fit_to_order(curve, place, s, d, pairs)
    assert float(found.detach()) == pytest.approx(
        naive_fit(curve.detach(), place.tolist(), scores, d, pairs), rel=1e-10
    )


def test_the_fit_moves_the_weighting_alone_and_is_no_part_of_the_value() -> None:
    objective = learned()
    u = torch.randn(1, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    batch = batch_of([0.0, 0.2, 3.0, 3.1, 9.0, 9.5])
    embedded = objective.embed(Features(u), batch)
    loss = objective.loss(embedded, batch)
    loss.value.backward()
    w = weigh(embedded["curve"][0], (batch.columns["score:a"][:, None] - batch.columns["score:a"]).abs() / 10).detach()
    naive = naive_weighted(u.detach()[0], batch.columns["score:a"].tolist(), w.tolist(), 0.1, 0.1)
    assert loss.value.item() == pytest.approx(naive, rel=1e-9)
    assert objective.learned is not None
    for parameter in objective.learned.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    # The encoder's gradient is that of the contrast with these weights as constants.
    alone = u.detach().clone().requires_grad_()
    score_contrast_loss(
        alone[0],
        batch.columns["score:a"],
        score_range=10.0,
        weighting=lambda d: weigh(embedded["curve"][0].detach(), d),
    ).backward()
    assert u.grad is not None
    assert alone.grad is not None
    assert torch.allclose(u.grad, alone.grad, atol=1e-12)


@pytest.mark.parametrize("scores", [[NAN] * 4, [2.0] * 4, [1.0, NAN, NAN, NAN], [0.0, 0.0, 10.0, 10.0]])
def test_degenerate_batches_have_finite_gradients(scores: list[float]) -> None:
    objective = learned()
    u = torch.zeros(1, 4, 4, dtype=torch.float64, requires_grad=True)
    batch = batch_of(scores)
    objective.loss(objective.embed(Features(u), batch), batch).value.backward()
    for tensor in (u, *objective.parameters()):
        assert tensor.grad is None or tensor.grad.isfinite().all()


def test_where_order_is_told_the_weight_rises_and_elsewhere_it_falls() -> None:
    """Differences above half the range show in the image, smaller ones do not."""
    objective, generator = learned(2), torch.Generator().manual_seed(4)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.05)
    for _ in range(150):
        s = torch.rand(32, generator=generator, dtype=torch.float64) * 10
        u = torch.stack([torch.where(s > 5, 1.0, -1.0), torch.ones(32, dtype=torch.float64)], 1)
        u = u + 0.02 * torch.randn(32, 2, generator=generator, dtype=torch.float64)
        batch = batch_of(s.tolist())
        optimizer.zero_grad()
        objective.loss(objective.embed(Features(u[None]), batch), batch).value.backward()
        optimizer.step()
    assert objective.learned is not None
    small, large = weigh(objective.learned.curve(1), torch.tensor([[0.1, 0.95]])).detach()[0].tolist()
    assert small < 0.5
    assert large > 0.9


def test_the_pure_function_has_nothing_to_learn_with() -> None:
    with pytest.raises(UsageError, match="unknown weighting 'learned'"):
        score_contrast_loss(torch.randn(3, 2), torch.arange(3.0), weighting="learned")
