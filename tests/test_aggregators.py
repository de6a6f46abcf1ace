"""Aggregators by name: which are refused with what sentence, what goes through, and whose random state is used."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchjd import aggregation
from torchjd.aggregation import MGDA, ConFIG

from bolus.encoders.features import Features
from bolus.errors import RecipeError
from bolus.recipe import CombinerSpec, Recipe
from bolus.training.gradients.aggregators import find_aggregator
from bolus.training.gradients.combiner import Combiner


def find(aggregator: str | None, scope: str = "encoder", **parameters: Any) -> Any:
    spec = {"kind": "torchjd", "aggregator": aggregator, "scope": scope, "parameters": parameters}
    return find_aggregator(CombinerSpec.model_validate(spec))


def test_an_unknown_name_is_met_with_a_suggestion() -> None:
    with pytest.raises(RecipeError, match=r"combiner\.aggregator: found 'UpGrad'; did you mean 'UPGrad'\?"):
        find("UpGrad")
    with pytest.raises(RecipeError, match=r"combiner\.aggregator: found no name; known: .*MGDA"):
        find(None)
    for base in ("Aggregator", "WeightedAggregator", "GramianWeightedAggregator", "Weighting"):
        with pytest.raises(RecipeError, match="found"):
            find(base)


@pytest.mark.parametrize("name", ["GradVac", "NashMTL", "PCD", "ExcessMTL"])
def test_what_keeps_a_state_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=f"{name} keeps a state that a checkpoint would lose; use "):
        find(name)


@pytest.mark.parametrize("name", ["ConFIG", "GradDrop", "Random", "Mean"])
def test_what_needs_whole_gradients_is_refused_at_the_features(name: str) -> None:
    assert find(name).by_matrix
    with pytest.raises(RecipeError, match=f"{name} needs whole gradients, so scope encoder"):
        find(name, scope="features")
    assert not find("MGDA", scope="features").by_matrix


def test_parameters_are_the_aggregators_own() -> None:
    with pytest.raises(RecipeError, match=r"combiner\.aggregator MGDA: .*'steps'"):
        find("MGDA", steps=3)
    with pytest.raises(RecipeError, match=r"combiner\.aggregator CAGrad: .*'c'"):
        find("CAGrad")
    with pytest.raises(RecipeError, match=r"combiner\.aggregator MGDA"):
        find("MGDA", epsilon="small")
    with pytest.raises(RecipeError, match=r"combiner\.aggregator AlignedMTL"):
        find("AlignedMTL", pref_vector=["much", "little"])
    gram = torch.tensor([[4.0, -1.0, 0.5], [-1.0, 1.0, 0.2], [0.5, 0.2, 0.1]], dtype=torch.float64)
    rough = find("MGDA", max_iters=1).weigh(gram, 0)
    torch.testing.assert_close(rough, MGDA(max_iters=1).gramian_weighting(gram))
    assert not torch.allclose(rough, find("MGDA").weigh(gram, 0))


@pytest.mark.parametrize(
    ("name", "dtype"), [("ConFIG", torch.float32), ("AlignedMTL", torch.float32), ("AlignedMTL", torch.float64)]
)
def test_a_recipe_writes_a_preference_as_a_list(name: str, dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.ones(3, dtype=dtype))
    spec = CombinerSpec(kind="torchjd", aggregator=name, parameters={"pref_vector": [1.0, 3.0]})
    combiner = Combiner(spec, [weight], {"a": [], "b": []})
    rows = torch.tensor([[1.0, 2.0, 0.0], [-1.0, 0.5, 1.0]], dtype=dtype)
    combiner.accumulate({"a": rows[0] @ weight, "b": rows[1] @ weight})
    combiner.reconcile()
    expected = getattr(aggregation, name)(pref_vector=torch.tensor([1.0, 3.0], dtype=dtype))(rows)
    torch.testing.assert_close(weight.grad, expected, rtol=1e-5, atol=1e-6)


def test_a_solver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    from torchjd.aggregation import CAGrad

    try:
        CAGrad(c=0.4)
    except ImportError:
        with pytest.raises(RecipeError, match=r"combiner\.aggregator CAGrad: .*cvxpy"):
            find("CAGrad", c=0.4)
    else:
        pytest.skip("torchjd found the solver before this test could hide it")


def test_without_torchjd_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd", None)
    with pytest.raises(RecipeError, match=r"pip install bolus\[torchjd\]"):
        find("MGDA")


def test_the_extra_that_messages_name_exists() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert "torchjd" in project["optional-dependencies"]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Krum", {"n_byzantine": 1}),
        ("AlignedMTL", {"pref_vector": [1.0, 2.0, 3.0]}),
        ("AlignedMTL", {"scale_mode": "x"}),
    ],
    ids=["too few objectives", "a preference for three", "an unknown mode"],
)
def test_what_does_not_fit_the_objectives_is_refused_before_the_first_step(name: str, parameters: Any) -> None:
    spec = CombinerSpec(kind="torchjd", aggregator=name, parameters=parameters)
    with pytest.raises(RecipeError, match=f"combiner.aggregator {name}"):
        Combiner(spec, [nn.Parameter(torch.ones(3))], {"a": [], "b": []})


def test_weights_and_combinations_are_torchjds() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    weights = find("MGDA").weigh(rows @ rows.T, 0)
    assert weights.dtype == torch.float64
    torch.testing.assert_close(weights @ rows, MGDA()(rows))
    split = [[row[:2], row[2:].reshape(2, 2)] for row in rows]
    found = find("ConFIG").combine(split, 0)
    assert [part.shape for part in found] == [(2,), (2, 2)]
    torch.testing.assert_close(torch.cat([part.flatten() for part in found]), ConFIG()(rows))


@pytest.mark.parametrize("name", ["MGDA", "AlignedMTL", "IMTLG", "CAGrad", "PCGrad"])
def test_who_has_no_gradient_has_no_say(name: str) -> None:
    if name == "CAGrad":
        pytest.importorskip("cvxpy")
    rows = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with_nothing = torch.stack([rows[0], torch.zeros(6, dtype=torch.float64), rows[1]])
    found = find(name, **{"c": 0.4} if name == "CAGrad" else {})
    expected = found.weigh(rows @ rows.T, 0) @ rows
    assert expected.norm() > 0.1
    torch.testing.assert_close(found.weigh(with_nothing @ with_nothing.T, 0) @ with_nothing, expected)
    alone = with_nothing[:2]
    assert (found.weigh(alone @ alone.T, 0) @ alone).norm() > 0.1, "one is left"
    nothing = torch.zeros(3, 3, dtype=torch.float64)
    assert found.weigh(nothing, 0).shape == (3,)


def test_a_preference_for_each_keeps_those_without_a_gradient() -> None:
    rows = torch.tensor([[1.0, 2.0], [0.0, 0.0], [2.0, -1.0]], dtype=torch.float64)
    found = find("AlignedMTL", pref_vector=[1.0, 2.0, 3.0]).weigh(rows @ rows.T, 0)
    preferred = aggregation.AlignedMTL(pref_vector=torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(found @ rows, preferred(rows))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_combinations_have_the_dtype_of_the_gradients(dtype: torch.dtype) -> None:
    rows = [[torch.tensor([1.0, 2.0], dtype=dtype)], [torch.tensor([-1.0, 3.0], dtype=dtype)]]
    assert find("ConFIG").combine(rows, 0)[0].dtype == dtype


def test_draws_come_from_the_seed_and_leave_the_global_state() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    before = torch.get_rng_state()
    for name in ("Random", "GradDrop"):
        draws = [find(name).combine([[row] for row in rows], seed)[0] for seed in (1, 1, 2, 3)]
        assert torch.equal(draws[0], draws[1])
        assert not all(torch.equal(draws[0], draw) for draw in draws[2:])
    rows -= 1.1 * rows.mean(0)  # all against each other
    weights = [find("PCGrad").weigh(rows @ rows.T, seed) for seed in (1, 1, 2, 3, 4, 5)]
    assert torch.equal(weights[0], weights[1])
    assert not all(torch.equal(weights[0], draw) for draw in weights[2:])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_torchjd_is_loaded_only_where_a_recipe_names_it() -> None:
    import subprocess

    code = (
        "import sys; from bolus.training.gradients.combiner import Combiner; from bolus.recipe import CombinerSpec\n"
        "for kind in ('sum', 'grad_mitigator'): Combiner(CombinerSpec(kind=kind), [], {'a': [], 'b': []})\n"
        "print('torchjd' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False"


def test_a_recipe_takes_an_aggregator_and_its_parameters() -> None:
    recipe = Recipe.load({"name": "mine", "objectives": {"v": {"kind": "contrast"}}})
    spec = recipe.override(["combiner={kind: torchjd, aggregator: MGDA, parameters: {max_iters: 7}}"]).combiner
    assert (spec.kind, spec.aggregator, spec.parameters) == ("torchjd", "MGDA", {"max_iters": 7})
    with pytest.raises(RecipeError, match=r"combiner\.kind"):
        recipe.override(["combiner.kind=gradvac"])
    with pytest.raises(RecipeError, match=r"combiner\.scope"):
        recipe.override(["combiner.scope=heads"])
    with pytest.raises(RecipeError, match=r"combiner\.rate"):
        recipe.override(["combiner.rate=1.5"])
    with pytest.raises(RecipeError, match=r"unknown key 'combiner\.beta'"):
        recipe.override(["combiner.beta=0.1"])


@pytest.mark.parametrize("scope", ["encoder", "features"])
def test_the_scale_of_the_losses_does_not_reach_an_aggregator(scope: str) -> None:
    found = []
    for scale in (1.0, 65536.0):
        torch.manual_seed(0)
        layer = nn.Linear(6, 4, dtype=torch.float64)
        spec = CombinerSpec(kind="torchjd", aggregator="FairGrad", parameters={"alpha": 1}, scope=scope)
        combiner = Combiner(spec, list(layer.parameters()), {"a": [], "b": []})
        features = combiner.open(Features(layer(torch.randn(2, 3, 6, dtype=torch.float64))))
        losses = {"a": features.pooled.pow(2).sum() * scale, "b": (features.pooled[..., 0] - 1).pow(2).sum() * scale}
        combiner.accumulate(losses, loss_scale=scale)
        combiner.reconcile()
        found.append([parameter.grad / scale for parameter in layer.parameters() if parameter.grad is not None])
    assert len(found[0]) == 2
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
