"""What the pages show is true: commands and options exist, YAML and Python are accepted, links lead somewhere, tables
come from the result files, and the README stays short.
"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from typer.main import get_command

import bolus
from bolus.cli import app
from bolus.data.cohort.spec import CohortSpec
from bolus.encoders.features import FeatureShape, LevelShape
from bolus.objectives import build_objectives
from bolus.recipe import Recipe, recipe_names

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
}
README, GUIDE = PAGES["README.md"], PAGES["docs/guide.md"]
SHOWING = ("README.md", "docs/guide.md", "docs/extending.md", "docs/report.md")  # commands to copy


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)


def commands(page: str) -> Iterator[tuple[str, list[str]]]:
    """The verb, such as `evaluate change`, and the words after it, of every line that begins with `bolus`."""
    for block in blocks(page, ""):
        joined = block.replace("\\\n", " ")
        for line in re.findall(r"^(?:\$ )?bolus (.*)$", joined, flags=re.MULTILINE):
            words = re.split(r"\s#\s|\s{3,}#", line)[0].split()
            length = 2 if words[0] == "evaluate" else 1
            yield " ".join(words[:length]), words[length:]


def verbs() -> dict[str, click.Command]:
    top = get_command(app).commands  # type: ignore[attr-defined]
    nested = {f"evaluate {name}": command for name, command in top["evaluate"].commands.items()}
    return {name: command for name, command in top.items() if name != "evaluate"} | nested


def test_the_readme_is_short() -> None:
    assert len(README.encode()) <= 10_000
    assert max(len(page.encode()) for page in PAGES.values()) < 60_000


def test_yaml_blocks_are_accepted() -> None:
    cohort, objectives, combiner = (yaml.safe_load(block) for block in blocks(GUIDE, "yaml"))
    assert CohortSpec.model_validate(cohort).roles["patient"] == "group"
    shape = FeatureShape(8, 8, 32, (LevelShape(8, 32, "last"),))
    recipe = Recipe.load({"name": "guide", **objectives, **combiner})
    assert recipe.combiner.kind == "grad_mitigator"
    assert set(build_objectives(recipe, shape, {}, seed=0)) == {"views", "patients"}


def test_the_guide_shows_every_verb() -> None:
    assert {verb for verb, _ in commands(GUIDE)} == set(verbs())


@pytest.mark.parametrize("name", SHOWING)
def test_verbs_and_options_that_are_shown_exist(name: str) -> None:
    known = verbs()
    for verb, words in commands(PAGES[name]):
        options = {option for parameter in known[verb].params for option in parameter.opts + parameter.secondary_opts}
        assert {word for word in words if re.match(r"--?[a-z]", word)} <= options, f"{verb} {' '.join(words)}"


@pytest.mark.parametrize("name", ["README.md", "docs/guide.md"])  # that of docs/extending.md runs in test_extending.py
def test_python_that_is_shown_calls_what_exists(name: str) -> None:
    for block in blocks(PAGES[name], "python"):
        for node in ast.walk(ast.parse(block)):
            if not isinstance(node, ast.Call):
                continue
            function = ast.unparse(node.func).removeprefix("bolus.")
            assert function in bolus.__all__
            given = {str(keyword.arg): None for keyword in node.keywords}
            inspect.signature(getattr(bolus, function)).bind(*node.args, **given)
    named = set(re.findall(r"`bolus\.(\w+)`", PAGES[name]))
    assert named <= set(bolus.__all__)


def test_every_recipe_is_listed() -> None:
    found = dict(re.findall(r"^(\w+) +(\S.*)$", blocks(README, "")[-1], flags=re.MULTILINE))
    recipes = {name: Recipe.load(name) for name in recipe_names()}
    of_volumes = {name for name, recipe in recipes.items() if recipe.images.unit == "volume"}
    assert found == {
        name: f"{recipe.summary} {recipe.source}".strip() for name, recipe in recipes.items() if name not in of_volumes
    }
    assert of_volumes <= set(re.findall(r"`(\w+)`", PAGES["docs/volumes.md"]))  # the README has no room for them
    listed = re.findall(r"^\| `(\w+)` \| .* \| (?:arXiv|the plain ancestor)", GUIDE, flags=re.MULTILINE)
    assert sorted(listed) == sorted(recipes)


def anchors(page: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), target


def test_tables_are_made_from_the_result_files() -> None:
    script = ROOT / "benchmarks" / "tables.py"
    assert subprocess.run([sys.executable, str(script), "--check"], check=False).returncode == 0, (
        "run benchmarks/tables.py"
    )
