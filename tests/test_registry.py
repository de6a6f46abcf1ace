"""Kinds of objectives: found by name, imported where they are used, and speaking for themselves."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bolus.data.batches.batch import Batch
from bolus.data.batches.relation import Needs, Relation
from bolus.encoders.features import Features, FeatureShape, LevelShape
from bolus.errors import OutOfMemoryError, RecipeError
from bolus.objectives import OBJECTIVES, build_objectives, needs_of, resolve_objectives
from bolus.objectives.base import Loss, Objective
from bolus.recipe import Recipe, recipe_names
from bolus.training.memory import explain_memory

SHAPE = FeatureShape(16, 16, 32, levels=(LevelShape(16, 32, "layer"),), inputs={"XR": (1, 64)})
TABLE = {
    "score:age": np.arange(40.0, 60.0),
    "score:grade": np.arange(20) % 4.0,
    "label:diagnosis": np.arange(20) % 2,
    "visit": np.arange(20) % 3.0,
}


class Mine(Objective):
    """A kind that bolus has not seen, which declares whatever others must know of it."""

    memory_keys = ("tokens",)
    borrows = "teacher"

    def __init__(self, shape: FeatureShape, *, relation: str = "patient", tokens: int = 3, teacher: str = "") -> None:
        super().__init__()
        self.needs = Needs(relations=(Relation.parse(relation),))
        self.tokens, self.teacher = tokens, teacher or None

    def embed(self, features: Features, batch: Batch) -> dict[str, torch.Tensor]:
        return {"z": features.pooled}

    def loss(self, embedded: dict[str, torch.Tensor], batch: Batch) -> Loss:
        return Loss(embedded["z"].sum(), 0)


def imported(code: str) -> list[str]:
    """The modules of bolus that a fresh interpreter holds after running this."""
    show = "print(json.dumps(sorted(name for name in sys.modules if name.startswith('bolus'))))"
    command = [sys.executable, "-c", f"import json, sys\n{code}\n{show}"]
    found: list[str] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run.json").write_text(json.dumps({"status": "finished"}))
    (tmp_path / "recipe.yaml").write_text(Recipe.load("gcl").to_yaml())
    return tmp_path


def test_opening_a_run_imports_no_objective(folder: Path) -> None:
    opened = f"from bolus.run import Run; run = Run.open({str(folder)!r}); run.record, run.recipe.objectives"
    assert not [name for name in imported(opened) if name.startswith("bolus.objectives")]


def test_kinds_are_listed_without_importing_them_and_imported_one_by_one() -> None:
    homes = {f"{OBJECTIVES[kind].__module__}" for kind in OBJECTIVES}
    assert len(homes) == len(OBJECTIVES)
    assert not homes & set(imported("from bolus.objectives import OBJECTIVES; list(OBJECTIVES), len(OBJECTIVES)"))
    one = set(imported("from bolus.objectives import OBJECTIVES; OBJECTIVES['varcov']"))
    assert homes & one == {OBJECTIVES["varcov"].__module__}


def test_every_kind_is_an_objective_and_no_other_name_is_one() -> None:
    assert all(issubclass(kind, Objective) for kind in OBJECTIVES.values())
    assert "contrasts" not in OBJECTIVES
    with pytest.raises(KeyError):
        OBJECTIVES["contrasts"]


def test_a_new_kind_is_one_class_and_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES._places, "mine", f"{__name__}:Mine")  # type: ignore[attr-defined]
    objectives = {"a": {"kind": "contrast", "head": "seen"}, "b": {"kind": "mine", "teacher": "seen"}}
    recipe = Recipe.load({"name": "mine", "objectives": objectives})
    assert resolve_objectives(recipe)["b"].parameters["tokens"] == 3
    assert needs_of(recipe, {})["b"].relations == (Relation.parse("patient"),)
    built = build_objectives(recipe, SHAPE, {}, seed=0)
    assert built["b"].lent == (built["a"].head,)
    assert not list(built["b"].parameters())
    with pytest.raises(RecipeError, match=r"objectives\.b\.teacher: 'sen' is the head of no .*did you mean 'seen'"):
        build_objectives(recipe.override(["objectives.b.teacher=sen"]), SHAPE, {}, seed=0)
    with pytest.raises(OutOfMemoryError, match=r"objectives\.b\.tokens"), explain_memory(recipe):
        raise MemoryError


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_what_a_kind_declares_are_parameters_of_its_own(kind: str) -> None:
    found = OBJECTIVES[kind]
    declared = {*found.memory_keys, *([found.borrows] if found.borrows is not None else [])}
    assert declared <= set(inspect.signature(found).parameters)


@pytest.mark.parametrize("name", recipe_names())
def test_needs_before_there_is_an_encoder_are_those_of_the_objectives(name: str) -> None:
    recipe = Recipe.load(name)
    table = dict(TABLE)
    for spec in recipe.objectives.values():
        wanted = [spec.parameters.get("targets", []), spec.parameters.get("target", [])]
        for role in [role for each in wanted for role in ([each] if isinstance(each, str) else each or [])]:
            table.setdefault(role, np.arange(20.0))
    if sum(role.startswith("score:") for role in table) != 1:
        table = {role: values for role, values in table.items() if role != "score:grade"}
    state = torch.random.get_rng_state()
    found = needs_of(recipe, table)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert found == {key: each.needs for key, each in build_objectives(recipe, SHAPE, table, seed=0).items()}


def test_needs_of_a_score_are_told_by_the_table() -> None:
    recipe = Recipe.load({"name": "mine", "objectives": {"x": {"kind": "score_contrast", "target": "score:age"}}})
    (near,) = needs_of(recipe, TABLE)["x"].relations
    assert near == Relation(near=("score:age", 0.1 * 19))
    with pytest.raises(RecipeError, match=r"objectives\.x: target: no column has the role 'score:age'"):
        needs_of(recipe, {})
