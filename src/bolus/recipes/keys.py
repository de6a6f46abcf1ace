"""Keys of a recipe as a person writes them: `dotted.key=value`, and what a wrong one was meant to be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, get_args

import yaml
from pydantic import BaseModel

from bolus.errors import RecipeError, suggest
from bolus.files import load_yaml

Overrides: TypeAlias = Iterable[str] | Mapping[str, Any]
"""Keys of a recipe and their values: `dotted.key=value` each, or a mapping of dotted keys."""


def written(overrides: Overrides) -> list[str]:
    """Every override as `dotted.key=value`, the value as YAML.

    Raises:
        RecipeError: one text, or nothing that holds several.

    >>> written({"training.epochs": 2, "optimizer.lr": 1e-5, "objectives.global": None})
    ['training.epochs=2', 'optimizer.lr=1.0e-05', 'objectives.global=null']
    """
    if isinstance(overrides, str) or not isinstance(overrides, Iterable):
        raise RecipeError(f"overrides: expected a list of key=value, or a mapping of keys, found {overrides!r}")
    if not isinstance(overrides, Mapping):
        return list(overrides)
    return [f"{key}={_as_yaml(value)}" for key, value in overrides.items()]


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=2**16).removesuffix("...\n").strip()


def assign(data: dict[str, Any], assignment: str) -> None:
    """Set one key of a recipe's data, in place.

    Args:
        data: the whole recipe, as `model_dump` gives it.
        assignment: `dotted.key=value`; the value is YAML, and `null` removes an objective.

    Raises:
        RecipeError: no `=`, a value that is not YAML, a section or an objective that is not there.

    >>> data = {"training": {"epochs": 2}}
    >>> assign(data, "training.epochs=3")
    >>> data
    {'training': {'epochs': 3}}
    """
    key, separator, value = str(assignment).partition("=")
    if not separator or not key:
        raise RecipeError(f"expected key=value, found {assignment!r}")
    try:
        parsed = load_yaml(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"{key}: value is not YAML: {value!r}") from error
    _assign(data, key.split("."), parsed, key)


def _assign(data: dict[str, Any], path: list[str], value: Any, key: str) -> None:
    for place, part in enumerate(path[:-1]):
        if place and path[0] == "modalities" and data.get(part) is None:
            data[part] = {}  # of a modality nothing is written down before it is said
        if not isinstance(data.get(part), dict):
            raise RecipeError(f"unknown key {key!r}: no section {part!r}; {suggest(part, data)}")
        data = data[part]
    if len(path) >= 2 and path[-2] == "objectives" and value is None:
        if path[-1] not in data:
            raise RecipeError(f"unknown key {key!r}: no such objective; {suggest(path[-1], data)}")
        del data[path[-1]]
    else:
        data[path[-1]] = value


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model in a field's type, be it `Model`, `Model | None` or `dict[str, Model]`."""
    found = [each for each in (annotation, *get_args(annotation)) if isinstance(each, type)]
    return next((each for each in found if issubclass(each, BaseModel)), None)


def explain(model: type[BaseModel], problem: Mapping[str, Any]) -> str:
    """What pydantic found wrong with a recipe, in words; for an unknown key, the one that was meant.

    Args:
        model: of the whole recipe.
        problem: one of the `errors()` of a ValidationError.

    >>> from bolus.recipe import Recipe
    >>> explain(Recipe, {"type": "extra_forbidden", "loc": ("training", "epoch"), "input": 1})
    "unknown key 'training.epoch'; did you mean 'epochs'?"
    """
    location = [str(part) for part in problem["loc"] if not str(part).startswith("(")]  # a tag in brackets is no key
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        for part in location[:-1]:
            field = model.model_fields.get(part)
            if field is not None:
                model = _model_in(field.annotation) or model
        return f"unknown key {key!r}; {suggest(location[-1], model.model_fields)}"
    found = problem.get("input")
    shown = "" if isinstance(found, Mapping) else f" (found {found!r})"
    return f"{key or 'recipe'}: {problem['msg'].removeprefix('Value error, ')}{shown}"
