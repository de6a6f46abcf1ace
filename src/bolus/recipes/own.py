"""Parts that are not bolus's own: by import path, `package.module:name`, or by the name of an entry point.

A name may stand in a file that came from elsewhere: a recipe, a cohort.yaml, the folder of an encoder. So what it can
call is limited: what a package has registered for bolus, a class of the kind that is asked for, and a function of a
module of one's own, never a function of the standard library or of an installed package.
"""

from __future__ import annotations

import inspect
import re
import sys
import sysconfig
from collections.abc import Callable, Collection, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from bolus.errors import RecipeError, suggest

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_INSTALLED = ("site-packages", "dist-packages")
_BOLUS = Path(__file__).resolve().parents[1]


def is_path(name: str) -> bool:
    """Whether a name is an import path.

    >>> is_path("mine.nets:small"), is_path("resnet18"), is_path("C:/weights")
    (True, False, False)
    """
    return _PATH.fullmatch(name) is not None


def own_names(group: str) -> list[str]:
    """Names that installed packages have registered, sorted.

    Args:
        group: of entry points, such as `bolus.objectives`.
    """
    return sorted({each.name for each in entry_points(group=group)})


def find_own(name: str, group: str, base: type | None = None) -> Any:
    """What an import path or an entry point stands for; None where it is neither.

    Args:
        name: `package.module:name`, or that of an entry point.
        group: of the entry points.
        base: classes derived from it may be named wherever they are defined; other classes and functions only in
            modules of one's own, which lie outside of the folders of installed packages.

    Raises:
        RecipeError: a module that cannot be imported, that has no such name, or whose function may not be named.

    >>> find_own("collections:OrderedDict", "bolus.encoders", dict), find_own("resnet18", "bolus.encoders")
    (<class 'collections.OrderedDict'>, None)
    >>> find_own("os:system", "bolus.encoders")
    Traceback (most recent call last):
    bolus.errors.RecipeError: os:system: expected an entry point of the group bolus.encoders, or a function in a module
    of your own, found one of an installed package (posix); call it from a function of your own
    """
    registered = {} if is_path(name) else {each.name: each.value for each in entry_points(group=group)}
    if not is_path(name) and name not in registered:
        return None
    module, _, attribute = registered.get(name, name).partition(":")
    try:
        found: Any = import_module(module)
    except Exception as error:  # whatever a module does as it is imported
        absent = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        why = "it must be installed, or lie in a folder of PYTHONPATH" if absent else "see what it does when imported"
        said = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise RecipeError(f"{name}: the module {module} cannot be imported ({said}); {why}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise RecipeError(f"{name}: the module {module} has no {attribute!r}; {suggest(attribute, dir(found))}")
        found = getattr(found, part)
    of_base = base is not None and inspect.isclass(found) and issubclass(found, base)
    home = str(getattr(found, "__module__", module))
    if not (registered or of_base or _is_ones_own(home)):
        raise RecipeError(
            f"{name}: expected an entry point of the group {group}, or a function in a module of your own, found one "
            f"of an installed package ({home}); call it from a function of your own"
        )
    return found


@cache
def _is_ones_own(module: str) -> bool:
    """Whether a module lies outside of the standard library, of installed packages and of bolus."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return module == "__main__"  # of a notebook
    path = Path(file).resolve()
    libraries = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return not set(_INSTALLED) & set(path.parts) and not any(map(path.is_relative_to, (*libraries, _BOLUS)))


def check_parameters(
    called: Callable[..., Any], parameters: Mapping[str, Any], key: str, *, given: Collection[str]
) -> dict[str, Any]:
    """Parameters from a recipe, as the annotations of a class or function have them; where it has none, as they are.

    Args:
        called: owns the names, types and defaults of its parameters.
        parameters: as the recipe has them.
        key: where they stand in the recipe.
        given: names of parameters that do not come from the recipe.

    Raises:
        RecipeError: an unknown or missing parameter, or a value of another type.

    >>> def speckle(images, generator, *, strength: float = 0.1): ...
    >>> check_parameters(speckle, {"strength": "0.2"}, "own", given=("images", "generator"))
    {'strength': 0.2}
    >>> check_parameters(speckle, {"strenght": 1}, "own", given=("images", "generator"))
    Traceback (most recent call last):
    bolus.errors.RecipeError: unknown key 'own.strenght'; did you mean 'strength'?
    """
    own = {name: each for name, each in inspect.signature(called).parameters.items() if name not in given}
    types = get_type_hints(called.__init__ if inspect.isclass(called) else called)
    checked: dict[str, Any] = {}
    for name, value in parameters.items():
        if name not in own:
            raise RecipeError(f"unknown key '{key}.{name}'; {suggest(name, own)}")
        try:
            checked[name] = TypeAdapter(types.get(name, Any)).validate_python(value)
        except ValidationError as error:
            problem = "; ".join(dict.fromkeys(item["msg"] for item in error.errors()))
            raise RecipeError(f"{key}.{name}: {problem} (found {value!r})") from None
    missing = [name for name, each in own.items() if each.default is each.empty and name not in parameters]
    if missing:
        raise RecipeError(f"{key}.{missing[0]}: expected a value, found none")
    return checked


def defaults_of(called: Callable[..., Any]) -> dict[str, Any]:
    """The parameters of a class or function that have a default, and these.

    >>> defaults_of(check_parameters), defaults_of(find_own)
    ({}, {'base': None})
    """
    found = inspect.signature(called).parameters.values()
    return {each.name: each.default for each in found if each.default is not each.empty}
