"""Objectives: features and a batch in, one named loss out. A recipe names them by the kinds in `OBJECTIVES`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from bolus.data.batches.relation import Needs
from bolus.encoders.features import FeatureShape, LevelShape
from bolus.errors import RecipeError, suggest
from bolus.objectives.base import Objective, TrainingTable
from bolus.recipe import ObjectiveSpec, Recipe
from bolus.recipes.own import check_parameters, defaults_of, find_own, own_names
from bolus.seeds import seed_for

GROUP = "bolus.objectives"
"""Of entry points, by which a package registers kinds of its own."""


class _Kinds(Mapping[str, type[Objective]]):
    """Kind -> class, imported when it is asked for; listing the kinds imports none.

    A kind is one of bolus's, the name of an entry point, or an import path, `package.module:class`.

    Args:
        places: kind -> `module:class`.
    """

    def __init__(self, places: dict[str, str]) -> None:
        self._places = places

    def __getitem__(self, kind: str) -> type[Objective]:
        found: Any = find_own(self._places.get(kind, kind), GROUP, Objective)
        if found is None:
            raise KeyError(kind)
        if not (isinstance(found, type) and issubclass(found, Objective)):
            raise RecipeError(f"{kind}: expected a class derived from bolus.objectives.base.Objective, found {found!r}")
        return found

    def __iter__(self) -> Iterator[str]:
        return iter([*self._places, *own_names(GROUP)])

    def __len__(self) -> int:
        return sum(1 for _ in self)


OBJECTIVES: Mapping[str, type[Objective]] = _Kinds(
    {
        "chronocon": "bolus.objectives.scores.chronocon:ChronoCon",
        "contrast": "bolus.objectives.contrasts.contrast:Contrast",
        "pixel_contrast": "bolus.objectives.dense.pixel:PixelContrast",
        "predict": "bolus.objectives.scores.predict:Predict",
        "rank_n_contrast": "bolus.objectives.scores.rank_n_contrast:RankNContrast",
        "reconstruct": "bolus.objectives.dense.reconstruct:Reconstruct",
        "score_contrast": "bolus.objectives.scores.score:ScoreContrast",
        "supremix": "bolus.objectives.scores.supremix:SupReMix",
        "varcov": "bolus.objectives.contrasts.varcov:VarCov",
    }
)

_GIVEN = ("shape", "table")  # to constructors, by whoever builds; the other parameters are the recipe's

# A small encoder that has all an objective may read: what objectives need of a batch does not depend on its widths.
_ANY_SHAPE = FeatureShape(8, 8, 32, levels=(LevelShape(8, 32, "any"),), inputs={"any": (1, 32)})


def build_objectives(recipe: Recipe, shape: FeatureShape, table: TrainingTable, *, seed: int) -> dict[str, Objective]:
    """The recipe's objectives by name, on the CPU, with the heads that this seed and each one's name determine.

    An objective's parameters are checked against its constructor, which owns their names, types and defaults. The
    global random state is left as it was. Objectives that name the same head share the one of the first of them.

    Args:
        recipe: names, kinds and parameters; weights are the combiner's business.
        shape: the encoder's shapes.
        table: what the training samples hold, for objectives whose scales or heads depend on it.
        seed: of the run. An objective starts the same whichever others stand beside it.

    Raises:
        RecipeError: an unknown kind, an unknown parameter, a value that the constructor does not take, or a shared head
            that is not there, or not the same.

    Example:
        >>> recipe = Recipe.load({"name": "mine", "objectives": {"simclr": {"kind": "contrast", "dim": 16}}})
        >>> shape = FeatureShape(dim=8, grid_channels=8, grid_stride=32)
        >>> build_objectives(recipe, shape, {}, seed=0)["simclr"].head.out_dim
        16
    """
    objectives: dict[str, Objective] = {}
    heads: dict[str, tuple[str, nn.Module]] = {}  # name -> the objective that made it, and the head
    for name, spec in recipe.objectives.items():
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            drawn = ("objective", name) if spec.head is None else ("head", spec.head)
            torch.default_generator.manual_seed(seed_for(seed, *drawn))
            objectives[name] = _construct(name, spec, shape, table)
        if spec.head is not None:
            _share(objectives, name, spec.head, heads)
    for name, objective in objectives.items():
        wanted = None if objective.borrows is None else getattr(objective, objective.borrows)
        if wanted is not None:
            if wanted not in heads or objectives[heads[wanted][0]].branch != "image":
                key = f"objectives.{name}.{objective.borrows}"
                message = f"{key}: {wanted!r} is the head of no objective of the image branch"
                raise RecipeError(f"{message}; {suggest(wanted, heads)}" if heads else message)
            objective.lend(heads[wanted][1])
    return objectives


def needs_of(recipe: Recipe, table: TrainingTable) -> dict[str, Needs]:
    """What the recipe's objectives ask for, by name, before there is an encoder: nothing is drawn or allocated.

    Args:
        recipe: kinds and parameters.
        table: what the training samples hold.

    Raises:
        RecipeError: as `build_objectives`, but for what depends on the encoder and for shared heads.

    Example:
        >>> recipe = Recipe.load("supcon").override(["objectives.supcon.relation=label:finding"])
        >>> [rule.describe() for rule in needs_of(recipe, {})["supcon"].relations]
        ['same label:finding']
    """
    with torch.device("meta"):
        built = {name: _construct(name, spec, _ANY_SHAPE, table) for name, spec in recipe.objectives.items()}
    return {name: objective.needs for name, objective in built.items()}


def _construct(name: str, spec: ObjectiveSpec, shape: FeatureShape, table: TrainingTable) -> Objective:
    """The objective of this name, its parameters checked, on the device and from the seed that are set."""
    constructor = _constructor(name, spec)
    parameters = check_parameters(constructor, spec.parameters, f"objectives.{name}", given=_GIVEN)
    given = [shape, table] if "table" in inspect.signature(constructor).parameters else [shape]
    try:
        objective: Objective = constructor(*given, **parameters)
    except RecipeError as error:
        raise RecipeError(f"objectives.{name}: {error}") from error
    objective.name = name
    return objective


def _share(objectives: dict[str, Objective], name: str, head: str, heads: dict[str, tuple[str, nn.Module]]) -> None:
    """Give an objective the head of that name, or make its own the one."""
    mine = objectives[name]
    if not mine.shares_head:
        raise RecipeError(f"objectives.{name}.head: {type(mine).__name__} has no head that others may share")
    own = mine.head
    assert isinstance(own, nn.Module), "shares_head says that there is one"
    first, shared = heads.setdefault(head, (name, own))
    if type(mine) is not type(objectives[first]):
        raise RecipeError(f"objectives.{name}.head: {head!r} is that of objectives.{first}, which is of another kind")
    if repr(own) != repr(shared):  # layers and widths
        raise RecipeError(
            f"objectives.{name}.head: {head!r} is the head of objectives.{first}, of other layers or widths"
        )
    mine.head = shared


def resolve_objectives(recipe: Recipe) -> dict[str, ObjectiveSpec]:
    """The recipe's objectives with every parameter written out, so that a later default cannot change an old recipe.

    Raises:
        RecipeError: as `build_objectives`.

    Example:
        >>> recipe = Recipe.load({"name": "mine", "objectives": {"simclr": {"kind": "contrast"}}})
        >>> resolve_objectives(recipe)["simclr"].parameters["temperature"]
        0.1
    """
    resolved = {}
    for name, spec in recipe.objectives.items():
        constructor = _constructor(name, spec)
        check_parameters(constructor, spec.parameters, f"objectives.{name}", given=_GIVEN)
        resolved[name] = ObjectiveSpec.model_validate({**defaults_of(constructor), **spec.model_dump()})
    return resolved


def _constructor(name: str, spec: ObjectiveSpec) -> Any:
    if spec.kind not in OBJECTIVES:
        raise RecipeError(f"objectives.{name}.kind: unknown kind {spec.kind!r}; {suggest(spec.kind, OBJECTIVES)}")
    return OBJECTIVES[spec.kind]
