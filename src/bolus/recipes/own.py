"""Parts that are not bolus's own: by import path, `package.module:name`, or by the name of an entry point."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from bolus.errors import RecipeError, suggest

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


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


def find_own(name: str, group: str) -> Any:
    """What an import path or an entry point stands for; None where it is neither.

    Args:
        name: `package.module:name`, or that of an entry point.
        group: of the entry points.

    Raises:
        RecipeError: a module that cannot be imported, or that has no such name.

    >>> find_own("math:sqrt", "bolus.encoders")(4.0), find_own("resnet18", "bolus.encoders")
    (2.0, None)
    >>> find_own("math:sqart", "bolus.encoders")
    Traceback (most recent call last):
    bolus.errors.RecipeError: math:sqart: the module math has no 'sqart'; did you mean 'sqrt'?
    """
    if not is_path(name):
        registered = [each for each in entry_points(group=group) if each.name == name]
        if not registered:
            return None
        name = registered[0].value
    module, _, attribute = name.partition(":")
    try:
        found = import_module(module)
    except ImportError as error:
        raise RecipeError(
            f"{name}: the module {module} cannot be imported ({error}); it must be installed, or lie in a folder of "
            "PYTHONPATH"
        ) from error
    if not hasattr(found, attribute):
        raise RecipeError(f"{name}: the module {module} has no {attribute!r}; {suggest(attribute, dir(found))}")
    return getattr(found, attribute)
