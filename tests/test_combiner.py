"""The combiner: every kind, scope and branch against vectors of autograd, on modules of a few float64 numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchjd import aggregation

from bolus.data.batches.relation import Needs
from bolus.encoders.features import Features
from bolus.recipe import CombinerSpec
from bolus.training.gradients.combiner import Combiner
from bolus.training.gradients.mitigator import Conflicts

TIGHT = {"rtol": 1e-10, "atol": 1e-12}
NAMES = ("a", "b", "c", "d")
BRANCHES = {"a": "image", "b": "image", "c": "pixel", "d": "pixel"}
OWN = ["balanced", "pcgrad", "grad_mitigator"]
KINDS = ["sum", "mean", *OWN]
AGGREGATORS: list[tuple[str, dict[str, Any]]] = [
    ("UPGrad", {}),
    ("CAGrad", {"c": 0.4}),
    ("DualProj", {}),
    ("MGDA", {}),
    ("AlignedMTL", {}),
    ("IMTLG", {}),
    ("PCGrad", {}),
    ("ConFIG", {}),
    ("GradDrop", {}),
    ("Random", {}),
    ("Mean", {}),
]
WHOLE = {"ConFIG", "GradDrop", "Random", "Mean"}  # those that need more than a Gram matrix


class _Counted(torch.autograd.Function):
    passes = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        _Counted.passes += 1
        return grads[0]


class Count(nn.Module):
    """Counts how often gradients come by."""

    def forward(self, x: Tensor) -> Tensor:
        return _Counted.apply(x)  # type: ignore[no-any-return, no-untyped-call]


@dataclass
class Toy:
    """An encoder of [2, 3, 5] inputs and an objective for each name, of which some run against others."""

    names: Sequence[str] = NAMES
    shared_head: bool = False  # of a and b
    dtype: torch.dtype = torch.float64
    encoder: nn.Module = field(init=False)
    heads: dict[str, nn.Module] = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(3)
            self.encoder = nn.Sequential(nn.Linear(5, 6), Count(), nn.Tanh(), nn.Linear(6, 4)).to(self.dtype)
            self.heads = {name: nn.Linear(4, 3).to(self.dtype) for name in self.names}
            for one, other in (("a", "b"), ("c", "d")):  # much the same heads, and below much the opposite targets
                if other in self.heads:
                    mixed = {key: value + 0.3 * self.heads[other].state_dict()[key]
                             for key, value in self.heads[one].state_dict().items()}  # fmt: skip
                    self.heads[other].load_state_dict(mixed)
        if self.shared_head:
            self.heads["b"] = self.heads["a"]
        self.inputs = torch.randn(3, 2, 3, 5, generator=generator, dtype=torch.float64).to(self.dtype)
        drawn = torch.randn(4, 3, generator=generator, dtype=torch.float64).to(self.dtype)
        a, b, c, d = drawn
        self.targets = dict(zip(NAMES, (2 * a, b - 2 * a, 2 * c, d - 2 * c), strict=True))

    def features(self, batch: int = 0) -> Features:
        return Features(self.encoder(self.inputs[batch]))

    def losses(self, features: Features) -> dict[str, Tensor]:
        found = {}
        for place, name in enumerate(self.names):
            out = self.heads[name](features.pooled)
            found[name] = (place + 1) * (out - self.targets[name]).pow(2).mean()
        return found

    def combiner(self, branches: dict[str, str] | None = None, **spec: Any) -> Combiner:
        heads = {name: list(self.heads[name].parameters()) for name in self.names}
        return Combiner(CombinerSpec(**spec), list(self.encoder.parameters()), heads, branches)

    def step(self, combiner: Combiner, *, batches: Sequence[int] = (0,), **given: Any) -> Tensor:
        """One step of a combiner, without its commit: the encoder's gradient as a vector."""
        for batch in batches:
            features = combiner.open(self.features(batch), observe=given.get("observe", False))
            combiner.accumulate(self.losses(features), **{"seed": 5, **given})
        combiner.reconcile()
        return flat(combiner.shared)

    def vectors(self, batch: int = 0) -> Tensor:
        """The encoder's gradient of each objective, [M, P]."""
        losses = self.losses(self.features(batch))
        return torch.stack([gradient(loss, list(self.encoder.parameters())) for loss in losses.values()])


def flat(parameters: Sequence[nn.Parameter]) -> Tensor:
    return torch.cat([p.grad.flatten().clone() for p in parameters if p.grad is not None])


def gradient(loss: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    found = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
    return torch.cat([(torch.zeros_like(x) if g is None else g).flatten() for g, x in zip(found, inputs, strict=True)])


def orders(m: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [[n for n in torch.randperm(m, generator=generator).tolist() if n != one] for one in range(m)]


def project(vectors: Tensor, seed: int = 5) -> Tensor:
    total = torch.zeros_like(vectors[0])
    for m, partners in enumerate(orders(len(vectors), seed)):
        moved = vectors[m].clone()
        for n in partners:
            moved -= min(float(moved @ vectors[n]), 0.0) / (vectors[n] @ vectors[n]) * vectors[n]
        total += moved
    return total


def vaccinate(vectors: Tensor, goals: Tensor, rate: float, seed: int = 5) -> tuple[Tensor, Tensor]:
    total, goals = torch.zeros_like(vectors[0]), goals.clone()
    for m, partners in enumerate(orders(len(vectors), seed)):
        moved = vectors[m].clone()
        for n in partners:
            goal, cosine = float(goals[m, n]), float(torch.cosine_similarity(moved, vectors[n], dim=0))
            if cosine < goal:
                across, goal_across = (1 - cosine**2) ** 0.5, (1 - goal**2) ** 0.5
                amount = float(moved.norm()) * (goal * across - cosine * goal_across)
                moved = moved + amount / (float(vectors[n].norm()) * goal_across) * vectors[n]
            goals[m, n] = (1 - rate) * goal + rate * cosine
        total += moved
    return total, goals


def balance(rows: Tensor) -> Tensor:
    """Each at the mean length of all that have one."""
    lengths = [float(row.norm()) for row in rows]
    moving = [length for length in lengths if length > 0]
    total = torch.zeros_like(rows[0])
    for row, length in zip(rows, lengths, strict=True):
        if length > 0:
            total = total + row / length * sum(moving) / len(moving)
    return total


def by_branch(vectors: Tensor, branches: dict[str, str], reconcile: Callable[[Tensor], Tensor]) -> Tensor:
    members = [[p for p, own in enumerate(branches.values()) if own == branch] for branch in set(branches.values())]
    return torch.stack([reconcile(vectors[places]) for places in members]).sum(0)


def reference(kind: str, vectors: Tensor, branches: dict[str, str]) -> Tensor:
    """What a step of a fresh combiner makes of [M, P] vectors."""
    zeros = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
    rules: dict[str, Callable[[Tensor], Tensor]] = {
        "sum": lambda rows: rows.sum(0),
        "mean": lambda rows: rows.mean(0),
        "balanced": balance,
        "pcgrad": project,
        "grad_mitigator": lambda rows: vaccinate(rows, zeros, 0.01)[0],
    }
    return by_branch(vectors, branches, rules[kind])


def torchjd_reference(name: str, parameters: dict[str, Any], vectors: Tensor, branches: dict[str, str]) -> Tensor:
    aggregator = getattr(aggregation, name)(**parameters)

    def combine(rows: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            found: Tensor = aggregator(rows)
        return found

    return by_branch(vectors, branches, combine)


def needed(name: str) -> None:
    """Skip where an optional solver of torchjd is absent."""
    for package in {"UPGrad": ("quadprog",), "DualProj": ("quadprog",), "CAGrad": ("cvxpy", "clarabel")}.get(name, ()):
        pytest.importorskip(package)


def layout(grouped: bool) -> dict[str, str]:
    return BRANCHES if grouped else dict.fromkeys(NAMES, "image")


# What comes out


def test_the_toy_has_conflicts_that_the_tests_are_about() -> None:
    vectors = Toy().vectors()
    gram = vectors @ vectors.T
    assert gram[0, 1] < 0, "within the first branch"
    assert gram[2, 3] < 0, "within the second"
    assert (gram[:2, 2:] < 0).any(), "and across"


@pytest.mark.parametrize("scope", ["encoder", "features"])
def test_sum_is_plain_backward_whatever_the_scope(scope: str) -> None:
    toy = Toy()
    found = toy.step(toy.combiner(kind="sum", scope=scope))
    heads = [p.grad.clone() for head in toy.heads.values() for p in head.parameters() if p.grad is not None]
    for parameter in [*toy.encoder.parameters(), *(p for head in toy.heads.values() for p in head.parameters())]:
        parameter.grad = None
    torch.stack(list(toy.losses(toy.features()).values())).sum().backward()
    torch.testing.assert_close(found, flat(list(toy.encoder.parameters())), **TIGHT)
    expected = [p.grad for head in toy.heads.values() for p in head.parameters()]
    for one, other in zip(heads, expected, strict=True):
        torch.testing.assert_close(one, other, **TIGHT)


@pytest.mark.parametrize("grouped", [False, True], ids=["one branch", "two branches"])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_equal_vectors_of_parameters(kind: str, grouped: bool) -> None:
    toy, branches = Toy(), layout(grouped)
    found = toy.step(toy.combiner(branches, kind=kind))
    torch.testing.assert_close(found, reference(kind, toy.vectors(), branches), **TIGHT)


@pytest.mark.parametrize("grouped", [False, True], ids=["one branch", "two branches"])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_equal_vectors_of_features(kind: str, grouped: bool) -> None:
    toy, branches = Toy(), layout(grouped)
    found = toy.step(toy.combiner(branches, kind=kind, scope="features"))
    features = toy.features()
    vectors = torch.stack([gradient(loss, [features.pooled]) for loss in toy.losses(features).values()])
    combined = reference(kind, vectors, branches).view_as(features.pooled)
    expected = torch.autograd.grad(features.pooled, list(toy.encoder.parameters()), combined)
    torch.testing.assert_close(found, torch.cat([part.flatten() for part in expected]), **TIGHT)


@pytest.mark.parametrize("kind", OWN)
def test_branches_are_reconciled_apart(kind: str) -> None:
    toy = Toy()
    together = toy.step(toy.combiner(kind=kind))
    apart = toy.step(toy.combiner(BRANCHES, kind=kind))
    alone = [Toy().vectors()[:2], Toy().vectors()[2:]]
    expected = sum(reference(kind, rows, dict.fromkeys("ab", "image")) for rows in alone)
    torch.testing.assert_close(apart, expected, **TIGHT)
    assert (apart - together).norm() > 1e-3 * together.norm()


@pytest.mark.parametrize("grouped", [False, True], ids=["one branch", "two branches"])
@pytest.mark.parametrize(("name", "parameters"), AGGREGATORS, ids=[name for name, _ in AGGREGATORS])
def test_torchjd_equals_its_aggregator_on_vectors(name: str, parameters: dict[str, Any], grouped: bool) -> None:
    needed(name)
    toy, branches = Toy(), layout(grouped)
    found = toy.step(toy.combiner(branches, kind="torchjd", aggregator=name, parameters=parameters))
    expected = torchjd_reference(name, parameters, toy.vectors(), branches)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["UPGrad", "MGDA", "AlignedMTL"])
def test_torchjd_at_the_features_equals_its_aggregator_on_their_vectors(name: str) -> None:
    needed(name)
    toy = Toy()
    found = toy.step(toy.combiner(BRANCHES, kind="torchjd", aggregator=name, scope="features"))
    features = toy.features()
    vectors = torch.stack([gradient(loss, [features.pooled]) for loss in toy.losses(features).values()])
    combined = torchjd_reference(name, {}, vectors, BRANCHES).view_as(features.pooled)
    expected = torch.autograd.grad(features.pooled, list(toy.encoder.parameters()), combined)
    torch.testing.assert_close(found, torch.cat([part.flatten() for part in expected]), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("shared_head", [False, True], ids=["own heads", "shared head"])
@pytest.mark.parametrize("scope", ["encoder", "features"])
@pytest.mark.parametrize("spec", [{"kind": "mean"}, {"kind": "pcgrad"}, {"kind": "grad_mitigator"},
                                  {"kind": "torchjd", "aggregator": "MGDA"}],
                         ids=["mean", "pcgrad", "grad_mitigator", "torchjd"])  # fmt: skip
def test_heads_get_plain_sums_over_objectives_and_batches(spec: dict[str, Any], scope: str, shared_head: bool) -> None:
    toy = Toy(shared_head=shared_head)
    combiner = toy.combiner(scope=scope, **spec)
    assert len(combiner.parameters) == 4 + 2 * (3 if shared_head else 4), "each once"
    toy.step(combiner, batches=(0, 1))
    heads = list(dict.fromkeys(p for head in toy.heads.values() for p in head.parameters()))
    found = flat(heads)
    total = sum(torch.stack(list(toy.losses(toy.features(batch)).values())).sum() for batch in (0, 1))
    assert isinstance(total, Tensor)
    torch.testing.assert_close(found, gradient(total, heads), **TIGHT)


@pytest.mark.parametrize("spec", [{"kind": "pcgrad"}, {"kind": "grad_mitigator"},
                                  {"kind": "torchjd", "aggregator": "ConFIG"}],
                         ids=["pcgrad", "grad_mitigator", "torchjd"])  # fmt: skip
def test_accumulated_batches_are_reconciled_once_as_their_sum(spec: dict[str, Any]) -> None:
    toy = Toy()
    combiner = toy.combiner(BRANCHES, **spec)
    for _ in range(2):  # a second step finds empty buffers
        found = toy.step(combiner, batches=(0, 1, 2))
        combiner.commit(applied=False)
    vectors = sum(toy.vectors(batch) for batch in range(3))
    assert isinstance(vectors, Tensor)
    if spec["kind"] == "torchjd":
        expected = torchjd_reference("ConFIG", {}, vectors, BRANCHES)
    else:
        expected = reference(spec["kind"], vectors, BRANCHES)
    torch.testing.assert_close(found, expected, **TIGHT)


def test_at_the_features_every_batch_is_reconciled_by_itself_and_goals_go_on() -> None:
    toy = Toy(names=("a", "b"))
    combiner = toy.combiner(kind="grad_mitigator", scope="features", rate=0.5)
    found = toy.step(combiner, batches=(0, 1))
    combiner.commit()
    goals, expected = torch.zeros(2, 2, dtype=torch.float64), torch.zeros_like(found)
    for batch in (0, 1):
        features = toy.features(batch)
        vectors = torch.stack([gradient(loss, [features.pooled]) for loss in toy.losses(features).values()])
        combined, goals = vaccinate(vectors, goals, 0.5)
        parts = torch.autograd.grad(features.pooled, list(toy.encoder.parameters()), combined.view_as(features.pooled))
        expected += torch.cat([part.flatten() for part in parts])
    torch.testing.assert_close(found, expected, **TIGHT)
    torch.testing.assert_close(combiner.goals["image"], goals, **TIGHT)


def test_weights_of_losses_act_before_reconciliation() -> None:
    toy, weights = Toy(), torch.tensor([5.0, 0.1, 1.0, 2.0], dtype=torch.float64)
    combiner = toy.combiner(kind="torchjd", aggregator="MGDA")  # the answer depends on the vectors' lengths
    losses = toy.losses(toy.features())
    combiner.accumulate({name: loss * weights[place] for place, (name, loss) in enumerate(losses.items())})
    combiner.reconcile()
    found, mgda = flat(combiner.shared), aggregation.MGDA()
    before = mgda(weights[:, None] * toy.vectors())
    torch.testing.assert_close(found, before, rtol=1e-7, atol=1e-9)
    after = mgda.gramian_weighting(toy.vectors() @ toy.vectors().T) * weights @ toy.vectors()
    assert (after - before).norm() > 0.1 * before.norm()


@pytest.mark.parametrize("grouped", [False, True], ids=["one branch", "two branches"])
def test_the_order_of_partners_comes_from_the_seed(grouped: bool) -> None:
    toy = Toy()
    found = [toy.step(toy.combiner(layout(grouped), kind="pcgrad"), seed=seed) for seed in (0, 0, 1, 2, 3, 4)]
    assert torch.equal(found[0], found[1])
    same = [torch.allclose(found[0], other, rtol=1e-6) for other in found[2:]]
    assert all(same) == grouped, "with one partner there is one order"


def test_the_global_random_state_is_left_alone() -> None:
    for spec in ({"kind": "grad_mitigator"}, {"aggregator": "PCGrad"}, {"aggregator": "Random"}):
        toy = Toy()
        before = torch.get_rng_state()
        toy.step(toy.combiner(**{"kind": "torchjd", **spec}))
        assert torch.equal(torch.get_rng_state(), before)


# Scope features


@pytest.mark.parametrize("orthonormal", [True, False])
@pytest.mark.parametrize("spec", [{"kind": "pcgrad"}, {"kind": "grad_mitigator", "rate": 0.3},
                                  {"kind": "torchjd", "aggregator": "MGDA"}],
                         ids=["pcgrad", "grad_mitigator", "torchjd"])  # fmt: skip
def test_the_scopes_agree_for_a_linear_encoder_with_orthonormal_inputs_only(
    spec: dict[str, Any], orthonormal: bool
) -> None:
    found = []
    for scope in ("encoder", "features"):
        toy = Toy()
        generator, steps = torch.Generator().manual_seed(1), []
        toy.inputs = torch.randn(3, 6, 8, generator=generator, dtype=torch.float64)
        if orthonormal:
            toy.inputs = torch.stack([torch.linalg.qr(x.T).Q.T for x in toy.inputs])
        toy.inputs = toy.inputs.unflatten(1, (2, 3))
        toy.encoder = nn.Linear(8, 4, bias=False, dtype=torch.float64)
        weight = torch.randn(4, 8, generator=generator, dtype=torch.float64)
        toy.encoder.weight = nn.Parameter(weight)
        combiner = toy.combiner(BRANCHES, scope=scope, **spec)
        for batch in range(3):
            steps.append(toy.step(combiner, batches=(batch,), seed=batch))
            combiner.commit()
        found.append(torch.cat([*steps, *(goals.flatten() for goals in combiner.goals.values())]))
    distance = float((found[0] - found[1]).norm() / found[0].norm())
    assert distance < 1e-10 if orthonormal else distance > 1e-3, distance


@pytest.mark.parametrize(
    ("spec", "passes"),
    [
        ({"kind": "sum"}, 1),
        ({"kind": "sum", "scope": "features"}, 1),
        ({"kind": "pcgrad"}, 4),
        ({"kind": "pcgrad", "scope": "features"}, 1),
        ({"kind": "grad_mitigator", "scope": "features"}, 1),
        ({"kind": "torchjd", "aggregator": "MGDA", "scope": "features"}, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("observe", [False, True])
def test_backward_passes_of_the_encoder(spec: dict[str, Any], passes: int, observe: bool) -> None:
    toy = Toy()
    combiner = toy.combiner(**spec)
    _Counted.passes = 0
    toy.step(combiner, batches=(0, 1), observe=observe)
    expected = 4 if observe and spec == {"kind": "sum"} else passes
    assert _Counted.passes == 2 * expected


def test_every_kind_of_feature_is_cut_and_reaches_the_encoder() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(2, 3, dtype=torch.float64))
    x = torch.randn(3, 2, dtype=torch.float64)

    def features() -> Features:
        grid = (x @ weight).tanh()[None, :, :, None, None]
        levels = [grid * 2, (grid**2).sum(2, keepdim=True)]
        return Features(grid.flatten(2) + weight.sum(), {"XR": levels, "MR": [levels[0] ** 2]}, {"XR": grid})

    def losses(features: Features) -> dict[str, Tensor]:
        return {
            "a": features.pooled.pow(3).sum() + features.levels["XR"][1].sum(),
            "b": features.levels["XR"][0].sum() - features.grid["XR"].pow(2).sum(),
            "c": features.levels["MR"][0].sum() - features.pooled.sum(),
        }

    combiner = Combiner(CombinerSpec(kind="pcgrad", scope="features"), [weight], {"a": [], "b": [], "c": []})
    combiner.accumulate(losses(combiner.open(features())), seed=5)
    combiner.reconcile()
    whole = features()
    parts = [whole.pooled, *whole.levels["XR"], *whole.levels["MR"], *whole.grid.values()]
    cut = [part.detach().requires_grad_() for part in parts]
    vectors = losses(Features(cut[0], {"XR": cut[1:3], "MR": cut[3:4]}, {"XR": cut[4]}))
    rows = torch.stack([gradient(loss, cut) for loss in vectors.values()])
    combined = project(rows).split([part.numel() for part in parts])
    expected = torch.autograd.grad(parts, weight, [c.view_as(p) for c, p in zip(combined, parts, strict=True)])
    torch.testing.assert_close(weight.grad, expected[0], **TIGHT)
    assert (rows @ rows.T < 0).any()


def test_features_without_gradients_stay_as_they_are() -> None:
    weight = nn.Parameter(torch.ones(1))
    combiner = Combiner(CombinerSpec(kind="pcgrad", scope="features"), [weight], {"a": [], "b": []})
    constant = torch.ones(1, 1, 1, 1, 1)
    opened = combiner.open(Features(weight * torch.ones(1, 2, 1), grid={"XR": constant}))
    assert opened.grid["XR"] is constant
    assert opened.pooled.is_leaf
    combiner.accumulate({"a": opened.pooled.sum(), "b": (opened.pooled * constant[0, 0]).sum()})
    combiner.reconcile()
    torch.testing.assert_close(weight.grad, torch.tensor([4.0]))


# Goals


@pytest.mark.parametrize("scope", ["encoder", "features"])
@pytest.mark.parametrize("zero", ["constant", "times zero"])
@pytest.mark.parametrize("kind", OWN)
def test_an_objective_without_gradient_changes_nothing_and_its_goals_stay(kind: str, zero: str, scope: str) -> None:
    toy = Toy(names=("a", "b", "c"))
    without = Toy(names=("a", "b"))
    without.encoder, without.heads, without.targets = toy.encoder, toy.heads, toy.targets
    start = torch.tensor([[0.0, 0.2, 0.3], [0.1, 0.0, 0.4], [0.5, 0.6, 0.0]], dtype=torch.float64)
    both = []
    for each in (toy, without):
        size = len(each.names)
        combiner = each.combiner(kind=kind, scope=scope, rate=0.5)
        if kind == "grad_mitigator":
            combiner.load_state({"image": {"objectives": list(each.names), "goals": start[:size, :size].tolist()}})
        features = combiner.open(each.features())
        losses = each.losses(features)
        if each is toy:
            losses["c"] = torch.zeros((), dtype=torch.float64) if zero == "constant" else 0 * features.pooled.sum()
        combiner.accumulate(losses, seed=5)
        combiner.reconcile()
        combiner.commit()
        both.append((flat(combiner.shared), combiner))
    torch.testing.assert_close(both[0][0], both[1][0], **TIGHT)
    if kind == "grad_mitigator":
        goals, others = both[0][1].goals["image"], both[1][1].goals["image"]
        torch.testing.assert_close(goals[:2, :2], others, **TIGHT)
        assert torch.equal(goals[2], start[2])
        assert torch.equal(goals[:, 2], start[:, 2])
        assert not torch.equal(others, start[:2, :2])


def test_goals_follow_the_cosines_step_by_step_for_each_branch() -> None:
    toy = Toy()
    combiner = toy.combiner(BRANCHES, kind="grad_mitigator", rate=0.3)
    goals = {branch: torch.zeros(2, 2, dtype=torch.float64) for branch in ("image", "pixel")}
    for batch in (0, 1, 2):
        found = toy.step(combiner, batches=(batch,), seed=batch)
        combiner.commit()
        vectors, expected = toy.vectors(batch), torch.zeros_like(found)
        for branch, rows in (("image", vectors[:2]), ("pixel", vectors[2:])):
            part, goals[branch] = vaccinate(rows, goals[branch], 0.3, seed=batch)
            expected += part
            torch.testing.assert_close(combiner.goals[branch], goals[branch], **TIGHT)
        torch.testing.assert_close(found, expected, **TIGHT)


@pytest.mark.parametrize("scope", ["encoder", "features"])
def test_a_step_that_is_not_applied_leaves_the_goals(scope: str) -> None:
    toy = Toy()
    combiner = toy.combiner(kind="grad_mitigator", scope=scope, rate=0.3)
    toy.step(combiner)
    combiner.commit()
    before = combiner.goals["image"].clone()
    assert before.any()
    toy.step(combiner, batches=(1, 2))
    assert torch.equal(combiner.goals["image"], before), "nor does reconcile alone"
    combiner.commit(applied=False)
    assert torch.equal(combiner.goals["image"], before)
    combiner.commit()  # nothing is left over
    assert torch.equal(combiner.goals["image"], before)
    again = toy.step(combiner, batches=(0,))
    combiner.commit()
    other = toy.combiner(kind="grad_mitigator", scope=scope, rate=0.3)
    other.load_state({"image": {"objectives": list(NAMES), "goals": before.tolist()}})
    torch.testing.assert_close(again, toy.step(other), rtol=0, atol=0)
    assert not torch.equal(combiner.goals["image"], before)


def test_the_state_goes_through_json_and_back_bit_for_bit() -> None:
    toy = Toy()
    combiner = toy.combiner(BRANCHES, kind="grad_mitigator", rate=0.3)
    for batch in range(3):
        toy.step(combiner, batches=(batch,))
        combiner.commit()
    fresh = toy.combiner(BRANCHES, kind="grad_mitigator", rate=0.3)
    fresh.load_state(json.loads(json.dumps(combiner.state())))
    assert combiner.state()["pixel"]["objectives"] == ["c", "d"]
    assert all(torch.equal(fresh.goals[branch], goals) and goals.any() for branch, goals in combiner.goals.items())
    assert torch.equal(toy.step(combiner, seed=9), toy.step(fresh, seed=9))
    assert toy.combiner(kind="pcgrad").state() == {}
    fresh.load_state({})  # of a run that had none
    assert fresh.goals["image"].any()
    with pytest.raises(AssertionError, match="other objectives"):
        toy.combiner(kind="grad_mitigator").load_state(combiner.state())


# Conflicts


@pytest.mark.parametrize("scope", ["encoder", "features"])
@pytest.mark.parametrize("kind", KINDS)
def test_conflicts_are_those_of_the_vectors(kind: str, scope: str) -> None:
    toy = Toy()
    combiner = toy.combiner(BRANCHES, kind=kind, scope=scope, rate=0.3)
    toy.step(combiner)
    combiner.commit()
    assert combiner.conflicts is None, "not asked for"
    goals = {branch: matrix.tolist() for branch, matrix in combiner.goals.items()}
    toy.step(combiner, observe=True)
    vectors = toy.vectors()
    if scope == "features":
        features = toy.features()
        vectors = torch.stack([gradient(loss, [features.pooled]) for loss in toy.losses(features).values()])
    assert combiner.conflicts is not None
    found = json.loads(json.dumps(combiner.conflicts.to_json(), allow_nan=False))
    assert found["objectives"] == list(NAMES)
    assert found["branches"] == ["image", "image", "pixel", "pixel"]
    assert found["goals"] == goals, "those that the step began with"
    for m, row in enumerate(found["cosines"]):
        assert found["norms"][m] == pytest.approx(float(vectors[m].norm()), abs=1e-6)
        for n, cosine in enumerate(row):
            assert cosine == pytest.approx(float(torch.cosine_similarity(vectors[m], vectors[n], dim=0)), abs=1e-6)
    within = [found["cosines"][0][1], found["cosines"][2][3]]
    assert found["share"] == sum(cosine < 0 for cosine in within) / 2
    toy.step(combiner)
    assert combiner.conflicts is None, "only of the step that was observed"


def test_conflicts_of_objectives_without_direction_are_null() -> None:
    gram = torch.diag(torch.tensor([4.0, 0.0, 1.0], dtype=torch.float64))
    found = Conflicts(("a", "b", "c"), ("image", "image", "pixel"), gram, {}).to_json()
    assert found["norms"] == [2.0, 0.0, 1.0]
    assert found["cosines"][1] == [None] * 3
    assert found["cosines"][0] == [1.0, None, 0.0]
    assert found["share"] is None, "a and b, the only pair of a branch, cannot be compared"
    gram[0, 0] = torch.inf
    assert json.dumps(Conflicts(("a", "b", "c"), ("image",) * 3, gram, {}).to_json(), allow_nan=False)


def test_conflicts_are_without_the_scale_of_the_losses() -> None:
    toy = Toy()
    found = []
    for scale in (1.0, 1024.0):
        combiner = toy.combiner(kind="grad_mitigator")
        losses = {name: loss * scale for name, loss in toy.losses(toy.features()).items()}
        combiner.accumulate(losses, seed=5, observe=True, loss_scale=scale)
        combiner.reconcile()
        assert combiner.conflicts is not None
        found.append((combiner.conflicts.to_json(), flat(combiner.shared) / scale))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1], **TIGHT)


@pytest.mark.parametrize("scope", ["encoder", "features"])
@pytest.mark.parametrize("spec", [{"kind": kind} for kind in KINDS] + [{"kind": "torchjd", "aggregator": "MGDA"}],
                         ids=[*KINDS, "torchjd"])  # fmt: skip
def test_observing_changes_no_gradient(spec: dict[str, Any], scope: str) -> None:
    toy = Toy(shared_head=True)
    found = []
    for observe in (False, True):
        combiner = toy.combiner(BRANCHES, scope=scope, **spec)
        toy.step(combiner, batches=(0, 1), observe=observe)
        found.append(flat(combiner.parameters))
        assert (combiner.conflicts is not None) == observe
    torch.testing.assert_close(found[0], found[1], **TIGHT)


@pytest.mark.parametrize("kind", KINDS)
def test_one_objective_is_left_as_it_is_and_has_no_conflicts(kind: str) -> None:
    toy = Toy(names=("a",))
    for scope in ("encoder", "features"):
        combiner = toy.combiner(kind=kind, scope=scope)
        torch.testing.assert_close(toy.step(combiner, observe=True), toy.vectors()[0], **TIGHT)
        combiner.commit()
        assert combiner.conflicts is None


# Precision, clipping, and gradients that are not finite


@pytest.mark.parametrize("scope", ["encoder", "features"])
@pytest.mark.parametrize("kind", OWN)
def test_bf16_autocast_follows_full_precision(kind: str, scope: str) -> None:
    toy = Toy(dtype=torch.float32, shared_head=True)
    full = toy.step(toy.combiner(BRANCHES, kind=kind, scope=scope))
    combiner = toy.combiner(BRANCHES, kind=kind, scope=scope)
    with torch.autocast("cpu", torch.bfloat16):
        features = combiner.open(toy.features())
        losses = {name: loss.float() for name, loss in toy.losses(features).items()}
    assert features.pooled.dtype == torch.bfloat16
    combiner.accumulate(losses, seed=5)
    combiner.reconcile()
    found = flat(combiner.parameters)
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found[: len(full)], full, dim=0) > 0.995


def model_of(combiner: Combiner, scaler: torch.amp.GradScaler, lr: float = 1.0) -> Any:
    from bolus.training.assembly import Model

    return Model(
        encoder=nn.Module(),  # type: ignore[arg-type]
        objectives={},
        needs=Needs(),
        modules={},
        optimizer=torch.optim.SGD(combiner.parameters, lr=lr),
        combiner=combiner,
        scaler=scaler,
        autocast=torch.autocast("cpu", enabled=False),
    )


@pytest.mark.parametrize("clip", [None, 0.1])
def test_clipping_is_of_the_reconciled_gradient_heads_included(clip: float | None) -> None:
    from bolus.training.step import apply_gradients

    toy = Toy()
    combiner = toy.combiner(BRANCHES, kind="pcgrad")
    toy.step(combiner)
    whole = flat(combiner.parameters)
    before = torch.cat([p.detach().flatten().clone() for p in combiner.parameters])
    combiner.accumulate(toy.losses(toy.features()), seed=5)
    norm = apply_gradients(model_of(combiner, torch.amp.GradScaler("cpu", enabled=False)), clip)
    moved = before - torch.cat([p.detach().flatten() for p in combiner.parameters])
    assert float(norm) == pytest.approx(float(whole.norm()), rel=1e-9)
    assert whole.norm() > 0.1
    shrunk = 1.0 if clip is None else clip / (float(whole.norm()) + 1e-6)  # torch's own guard against no gradient
    torch.testing.assert_close(moved, whole * shrunk, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scope", ["encoder", "features"])
def test_a_scaler_that_leaves_a_step_out_leaves_the_goals_too(scope: str) -> None:
    from bolus.training.step import apply_gradients

    toy = Toy(dtype=torch.float32)
    combiner = toy.combiner(kind="grad_mitigator", scope=scope, rate=0.5)
    model = model_of(combiner, torch.amp.GradScaler("cpu", init_scale=2.0**16), lr=0.0)

    def step(blow_up: float) -> None:
        features = combiner.open(toy.features(), observe=True)
        losses = {name: model.scaler.scale(loss * blow_up) for name, loss in toy.losses(features).items()}
        combiner.accumulate(losses, seed=5, observe=True, loss_scale=model.scaler.get_scale())
        apply_gradients(model, None)

    step(1.0)
    goals = combiner.goals["image"].clone()
    assert goals.any()
    assert model.scaler.get_scale() == 2.0**16
    assert combiner.conflicts is not None
    norms = combiner.conflicts.to_json()["norms"]
    step(1e34)
    assert model.scaler.get_scale() == 2.0**15
    assert torch.equal(combiner.goals["image"], goals)
    assert combiner.skipped == 1
    step(1.0)
    assert combiner.skipped == 0
    assert not torch.equal(combiner.goals["image"], goals)
    assert combiner.conflicts.to_json()["norms"] == pytest.approx(norms, rel=1e-4)


@pytest.mark.parametrize("scope", ["encoder", "features"])
@pytest.mark.parametrize("spec", [{"kind": kind} for kind in KINDS] + [
    {"kind": "torchjd", "aggregator": "MGDA"}, {"kind": "torchjd", "aggregator": "AlignedMTL"},
    {"kind": "torchjd", "aggregator": "ConFIG"}, {"kind": "torchjd", "aggregator": "Random"},
], ids=[*KINDS, "MGDA", "AlignedMTL", "ConFIG", "Random"])  # fmt: skip
def test_gradients_that_are_not_finite_come_out_as_such_and_raise_nothing(spec: dict[str, Any], scope: str) -> None:
    if scope == "features" and spec.get("aggregator") in WHOLE:
        pytest.skip("refused")
    for bad in (torch.inf, torch.nan):
        toy = Toy()
        combiner = toy.combiner(scope=scope, **spec)
        features = combiner.open(toy.features(), observe=True)
        losses = toy.losses(features)
        losses["b"] = losses["b"] * bad
        combiner.accumulate(losses, observe=True)
        combiner.reconcile()
        assert not flat(combiner.shared).isfinite().all(), "whoever checks the norm must see it"
        assert all(goals.isfinite().all() for goals in combiner.goals.values())
        assert combiner.conflicts is not None
        json.dumps(combiner.conflicts.to_json(), allow_nan=False)


def test_steps_are_still_left_out_where_the_scale_has_fallen_to_0() -> None:
    from bolus.training.step import apply_gradients

    toy = Toy(dtype=torch.float32)
    combiner = toy.combiner(kind="grad_mitigator", scope="encoder", rate=0.5)
    model = model_of(combiner, torch.amp.GradScaler("cpu", init_scale=0.0))
    before = [parameter.detach().clone() for parameter in combiner.parameters]
    for number in (1, 2):
        features = combiner.open(toy.features())
        losses = {name: model.scaler.scale(loss * math.nan) for name, loss in toy.losses(features).items()}
        combiner.accumulate(losses, seed=5, loss_scale=1.0)
        apply_gradients(model, None)
        assert combiner.skipped == number
    assert not combiner.goals["image"].any()
    assert all(torch.equal(one, other) for one, other in zip(before, combiner.parameters, strict=True))
