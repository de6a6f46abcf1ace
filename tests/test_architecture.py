"""The house holds: imports point one way, run in no circle, public names work twice, rooms and files stay small."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from functools import cache
from pathlib import Path

import pytest

import bolus

SOURCE = Path(bolus.__file__).parent

# Rooms (folders, or modules of the top folder) from the ground up; a room imports from its own line and those above it.
# A folder that is not listed stands where the folder around it does.
LEVELS = [
    ["errors", "files", "checksums", "progress", "provenance", "device", "terminal", "site_key", "seeds", "apart"],
    ["recipe", "recipes"],
    ["data", "data/text"],
    ["data/cohort"],
    ["data/pixels", "data/copies"],
    ["data/readers"],
    ["data/images", "data/volumes"],
    ["data/views"],
    ["data/batches", "data/checks", "scanning"],
    ["phantom"],
    ["encoders", "optimization"],
    ["objectives"],
    ["run"],
    ["embedding"],
    ["evaluation"],
    ["prediction"],
    ["exporting"],
    ["training"],
    ["measuring"],
    ["planning"],
    ["ablation"],
    ["reporting"],
    ["cli"],
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}


def level_of(room: str) -> int:
    """The level of a room, or of the folder around it."""
    return LEVEL[room] if room in LEVEL else level_of(room.rpartition("/")[0])


def modules(folder: Path = SOURCE) -> dict[str, Path]:
    """Dotted name -> file of every module; a package goes by its own name."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules among the known ones that a file imports anywhere in it: in functions, and for type checking, too."""
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            if node.module:
                found.add(node.module)
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in known and name.partition(".")[2]}


def room_of(module: str) -> str:
    """The folder of a module, such as `data/readers`, or the module itself where it lies in the top folder."""
    parts = module.split(".")[1:]
    folder = SOURCE.joinpath(*parts)
    return "/".join(parts if folder.is_dir() else parts[:-1] or parts)


def circles_in(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that each import the other by some way (Tarjan's strongly connected components)."""
    index, low, stack, found = dict[str, int](), dict[str, int](), list[str](), list[list[str]]()

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            found.append(sorted(stack[at:]))
            del stack[at:]

    for node in graph:
        if node not in index:
            visit(node)
    return [group for group in found if len(group) > 1 or group[0] in graph[group[0]]]


@cache
def graph() -> dict[str, set[str]]:
    """Module -> modules of bolus that it imports; the package itself loads lazily, from everywhere, and is left out."""
    known = modules()
    return {name: imports_of(path, known) - {name} for name, path in known.items() if name != "bolus"}


def test_every_room_has_a_level() -> None:
    rooms = {room_of(name) for name in graph()}
    assert {room.partition("/")[0] for room in rooms} | (rooms & set(LEVEL)) == set(LEVEL)


def test_imports_point_one_way() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in others
        if level_of(room_of(other)) > level_of(room_of(name))
    ]
    assert not wrong


def test_nothing_runs_in_a_circle() -> None:
    assert circles_in(graph()) == []


def test_a_circle_would_be_seen(tmp_path: Path) -> None:
    files = {
        "__init__": "",
        "a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.deep import b\n",
        "deep/__init__": "",
        "deep/b": "def later():\n    import house.c\n",
        "c": "from house.a import x\n",
        "d": "from house import a\n",
    }
    for name, text in files.items():
        path = tmp_path / "house" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    known = modules(tmp_path / "house")
    drawn = {name: imports_of(path, known) - {name} for name, path in known.items()}
    assert drawn["house.d"] == {"house.a"}
    assert circles_in(drawn) == [["house.a", "house.c", "house.deep.b"]]


def test_evaluation_can_judge_any_encoder() -> None:
    inside = [others for name, others in graph().items() if room_of(name).split("/")[0] == "evaluation"]
    found = {room_of(other).split("/")[0] for others in inside for other in others}
    assert not found & {"objectives", "training"}


def test_public_names_are_found_twice_after_all_submodules_are_imported() -> None:
    for module in pkgutil.walk_packages([str(SOURCE)], "bolus."):
        importlib.import_module(module.name)
    for name in bolus.__all__:
        first, second = getattr(bolus, name), getattr(bolus, name)
        assert first is second
        assert name == "__version__" or callable(first), f"bolus.{name} is a module, not a function or class"
    assert set(bolus.__all__) <= set(dir(bolus))


@pytest.mark.parametrize("module", ["bolus", "bolus.cli"])
def test_importing_bolus_imports_nothing_heavy(module: str) -> None:
    import subprocess
    import sys

    heavy = "('torch', 'kornia', 'transformers', 'pandas', 'sklearn')"
    code = f"import {module}, sys; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
