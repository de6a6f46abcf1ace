"""The arms of an ablation: recipes that differ in an objective, in the combiner, in one key, or as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from bolus.errors import RecipeError, UsageError
from bolus.files import load_yaml
from bolus.objectives import OBJECTIVES
from bolus.recipe import Recipe
from bolus.recipes.keys import Overrides, written
from bolus.training.assembly import resolve

Over = Literal["objectives", "combiners", "key", "recipes"]

COMBINERS = {
    "sum": {"kind": "sum", "scope": "encoder"},
    "pcgrad": {"kind": "pcgrad", "scope": "encoder"},
    "grad_mitigator": {"kind": "grad_mitigator", "scope": "encoder"},
    "grad_mitigator at the features": {"kind": "grad_mitigator", "scope": "features"},
}
DECIDED_ELSEWHERE = {
    "training": "seed and length are the same for every arm; give its other keys one by one",
    "training.seed": "every arm is trained with the same seeds, as many as --seeds says",
    "training.epochs": "every arm is trained for the same number of encoder passes, which --passes says",
    "training.max_steps": "every arm is trained for the same number of encoder passes, which --passes says",
    "training.max_hours": "every arm is trained to its end",
}


@dataclass(frozen=True)
class Arm:
    """One of the things that are compared.

    Args:
        name: such as `all`, `without patient` or `optimizer.lr=0.1`.
        recipe: resolved; neither its seed nor its length are settled yet.
    """

    name: str
    recipe: Recipe


@dataclass(frozen=True)
class Arms:
    """What is compared with what.

    Args:
        over: in what the arms differ.
        arms: the first is the reference, from which every other one's difference is taken.
        notes: which arms could not be, and why, in sentences.
    """

    over: Over
    arms: tuple[Arm, ...]
    notes: tuple[str, ...] = ()

    @property
    def reference(self) -> Arm:
        """The arm from which differences are taken."""
        return self.arms[0]


def find_arms(
    recipe: str | Path | Recipe | None = None,
    *,
    over: str = "objectives",
    recipes: Sequence[str | Path | Recipe] = (),
    overrides: Overrides = (),
) -> Arms:
    """The arms that a recipe, or several, and a choice of what to vary give.

    Args:
        recipe: a shipped name, a YAML file, or a Recipe; not with `recipes`.
        over: `objectives` (all of them; each alone; all but each), `combiners` (sum, pcgrad, grad_mitigator, and
            grad_mitigator at the features), or `KEY=V1,V2`, an arm for each value of a recipe key.
        recipes: an arm each, compared with the first.
        overrides: `key=value` assignments, or a mapping of keys, into every recipe.

    Raises:
        UsageError: both or neither of recipe and recipes, an unknown `over`, or nothing to compare.
        RecipeError: as `Recipe.load`, `Recipe.override` and `resolve`; of several recipes it names the arm.

    Example:
        >>> [arm.name for arm in find_arms("simclr", over="optimizer.lr=0.1,0.3").arms]
        ['optimizer.lr=0.1', 'optimizer.lr=0.3']
        >>> [arm.name for arm in find_arms("comprer_bilateral").arms][:3]
        ['all', 'only bilateral', 'only measures']
    """
    overrides = written(overrides)
    for key in (assignment.partition("=")[0] for assignment in [*overrides, over]):
        if key in DECIDED_ELSEWHERE:
            raise UsageError(f"{key} cannot be given in an ablation: {DECIDED_ELSEWHERE[key]}")
    if recipes:
        if recipe is not None or over != "objectives":
            raise UsageError("several recipes are compared as they are: leave out the single recipe and --over")
        stems = [_name_of(each) for each in recipes]
        names = [stem if stems.count(stem) == 1 else str(each) for stem, each in zip(stems, recipes, strict=True)]
        return _distinct("recipes", [_recipe_arm(*each, overrides) for each in zip(names, recipes, strict=True)])
    if recipe is None:
        raise UsageError("a recipe is needed (--recipe NAME or a YAML file), or several (--recipes a,b.yaml)")
    whole = resolve(Recipe.load(recipe).override(overrides))
    if over == "objectives":
        return _objective_arms(whole)
    if over == "combiners":
        return _combiner_arms(whole)
    key, separator, values = over.partition("=")
    if not separator or not key:
        raise UsageError(f"--over: expected objectives, combiners, or KEY=V1,V2,...; found {over!r}")
    return _key_arms(whole, key, values)


def _name_of(source: str | Path | Recipe) -> str:
    return source.name if isinstance(source, Recipe) else Path(source).stem


def _recipe_arm(name: str, source: str | Path | Recipe, overrides: Sequence[str]) -> Arm:
    try:
        return Arm(name, resolve(Recipe.load(source).override(overrides)))
    except RecipeError as error:
        raise RecipeError(f"arm {name!r}: {error}") from error


def _objective_arms(whole: Recipe) -> Arms:
    names = list(whole.objectives)
    if len(names) < 2:
        raise UsageError(
            f"{whole.name} has one objective ({names[0]}), and nothing is left without it; compare values of a key "
            "(--over KEY=V1,V2) or recipes (--recipes a,b)"
        )
    subsets = {"all": names, **{f"only {name}": [name] for name in names}}
    if len(names) > 2:  # of two, without one is only the other
        subsets |= {f"without {name}": [other for other in names if other != name] for name in names}
    arms, notes = [], []
    for arm, kept in subsets.items():
        recipe = whole.model_copy(update={"objectives": {name: whole.objectives[name] for name in kept}})
        lacking = orphan(recipe)
        if lacking:
            notes.append(f"{arm} is left out: {lacking}")
        else:
            arms.append(Arm(arm, recipe))
    return _distinct("objectives", arms, notes)


def orphan(recipe: Recipe) -> str:
    """Which objective reads a head that no objective of the recipe has, in words; empty where none does.

    >>> whole = resolve(Recipe.load("gcl"))
    >>> orphan(whole.model_copy(update={"objectives": {"phase_pixel": whole.objectives["phase_pixel"]}}))
    "phase_pixel reads the head 'image', which belongs to no objective beside it"
    """
    heads = {spec.head for spec in recipe.objectives.values() if OBJECTIVES[spec.kind].branch == "image"}
    for name, spec in recipe.objectives.items():
        wanted = spec.parameters.get(OBJECTIVES[spec.kind].borrows or "")
        if wanted is not None and wanted not in heads:
            return f"{name} reads the head {wanted!r}, which belongs to no objective beside it"
    return ""


def _combiner_arms(whole: Recipe) -> Arms:
    if len(whole.objectives) < 2:
        raise UsageError(
            f"{whole.name} has one objective ({next(iter(whole.objectives))}): a combiner has nothing to reconcile"
        )
    found = []
    for name, given in COMBINERS.items():
        combiner = whole.combiner.model_copy(update={**given, "aggregator": None, "parameters": {}})
        found.append(Arm(name, whole.model_copy(update={"combiner": combiner})))
    return _distinct("combiners", found)


def _key_arms(whole: Recipe, key: str, text: str) -> Arms:
    found = []
    for value in _values(key, text):
        shown = yaml.safe_dump(value, default_flow_style=True, width=10**6).strip().removesuffix("...").strip()
        found.append(Arm(f"{key}={shown}", resolve(whole.override([f"{key}={shown}"]))))
    return _distinct("key", found)


def _values(key: str, text: str) -> list[Any]:
    """The values of KEY=V1,V2 or KEY=[V1, V2].

    >>> _values("k", "0.1,0.3"), _values("k", "[a, null]"), _values("k", "[1, 2],[3]"), _values("k", "{a: 1},{a: 2}")
    ([0.1, 0.3], ['a', None], [[1, 2], [3]], [{'a': 1}, {'a': 2}])
    """
    for tried in (text, f"[{text}]"):
        try:
            found = load_yaml(tried)
        except yaml.YAMLError:
            continue
        if isinstance(found, list):
            return found
    raise UsageError(f"--over {key}: expected values by commas or a YAML list, found {text!r}")


def _distinct(over: Over, arms: Sequence[Arm], notes: Iterable[str] = ()) -> Arms:
    """The arms, of which there are two or more, none of them twice."""
    seen: dict[str, str] = {}
    for arm in arms:
        data = arm.recipe.model_copy(update={"name": "", "summary": "", "source": ""})
        other = seen.setdefault(data.digest, arm.name)
        if other != arm.name or [each.name for each in arms].count(arm.name) > 1:
            raise UsageError(f"the arms {other!r} and {arm.name!r} are the same; expected arms that differ")
    if len(arms) < 2:
        raise UsageError(f"expected two arms or more to compare, found {', '.join(seen.values()) or 'none'}")
    return Arms(over, tuple(arms), tuple(notes))
