"""The house holds: imports point one way, public names work twice, files stay small."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path

import bolus

SOURCE = Path(bolus.__file__).parent

# From the ground up; a module may import from its own line and the lines above it.
LEVELS = [
    ["errors", "provenance", "progress", "processes"],
    ["recipe", "recipes"],
    ["data"],
    ["encoders", "aggregators", "combiner", "gradients", "optimization", "checkpoint"],
    ["objectives", "run"],
    ["embedding"],
    ["evaluation"],
    ["health", "conflicts", "prediction"],
    ["assembly", "window"],
    ["training"],
    ["demonstration", "rehearsal"],
    ["planning", "ablation"],
    ["options"],
    ["evaluate_command", "ablate_command"],
    ["cli"],
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("bolus."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("bolus.")}
    return found


def test_every_module_has_a_level() -> None:
    names = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in SOURCE.rglob("*.py")}
    assert names - {"__init__", "__pycache__"} == set(LEVEL)


def test_imports_point_one_way() -> None:
    wrong = []
    for path in SOURCE.rglob("*.py"):
        name = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if name == "__init__":
            continue  # loads lazily, from everywhere
        wrong += [f"{path.name} imports {other}" for other in imports_of(path) if LEVEL[other] > LEVEL[name]]
    assert not wrong


def test_evaluation_can_judge_any_encoder() -> None:
    found = set().union(*(imports_of(path) for path in (SOURCE / "evaluation").glob("*.py")))
    assert not found & {"objectives", "training", "assembly", "gradients"}


def test_public_names_are_found_twice_after_all_submodules_are_imported() -> None:
    for module in pkgutil.walk_packages([str(SOURCE)], "bolus."):
        importlib.import_module(module.name)
    for name in bolus.__all__:
        first, second = getattr(bolus, name), getattr(bolus, name)
        assert first is second
        assert name == "__version__" or callable(first), f"bolus.{name} is a module, not a function or class"
    assert set(bolus.__all__) <= set(dir(bolus))


def test_importing_bolus_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    heavy = "('torch', 'kornia', 'transformers', 'pandas', 'sklearn')"
    code = f"import bolus, bolus.cli, sys; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
