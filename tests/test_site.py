"""The site: every page stands in its navigation once, and it builds without a warning where its tools are installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import bolus
from bolus.recipe import recipe_names

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "docs" / "site"
SPEC = tomllib.loads((SITE / "zensical.toml").read_text(encoding="utf-8"))["project"]
METHODS = [path for path in sorted((ROOT / "docs" / "methods").glob("*.md")) if path.name != "index.md"]
SECTIONS = ("Idea", "Formula", "Columns it needs", "A run", "What to watch", "Results")


def paths(nav: Any) -> list[str]:
    """The pages of a navigation, in order."""
    if isinstance(nav, str):
        return [nav]
    return [path for entry in (nav if isinstance(nav, list) else nav.values()) for path in paths(entry)]


def test_every_page_stands_in_the_navigation_once() -> None:
    """zensical says nothing of a page that is missing there, nor of an entry without a page."""
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    added = {"index.md", "contributing.md", "changelog.md", "api.md"}
    assert sorted(paths(SPEC["nav"])) == sorted(pages | added)


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_page_of_a_method_says_what_each_says(path: Path) -> None:
    headings = re.findall(r"^## (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert [heading for heading in headings if heading in SECTIONS] == list(SECTIONS)


def test_every_recipe_has_a_page() -> None:
    openings = [path.read_text(encoding="utf-8").partition("## Idea")[0] for path in METHODS]
    for name in recipe_names():
        assert sum(f"`{name}`" in opening for opening in openings) == 1, name


def test_the_page_of_the_api_has_every_public_name() -> None:
    sys.path.insert(0, str(SITE))
    try:
        import build
    finally:
        sys.path.remove(str(SITE))
    assert sorted(re.findall(r"^::: bolus\.(\w+)$", build.api(), flags=re.MULTILINE)) == sorted(
        name for name in bolus.__all__ if not name.startswith("__")
    )
    places = build.shown()
    for path in places:
        if path.suffix == ".md":
            build.turned(path.read_text(encoding="utf-8"), path, places)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("zensical") is None, reason="the extra docs is not installed")
def test_the_site_builds_without_a_warning_and_fetches_nothing() -> None:
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    words = [sys.executable, str(SITE / "build.py")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, **nowhere})
    assert done.returncode == 0, done.stdout + done.stderr
    for path in (ROOT / "build" / "docs" / "site").rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|iframe)[^>]* src="(https?:[^"]+)"', path.read_text(encoding="utf-8"))
        loaded += re.findall(
            r'<link[^>]* rel="stylesheet"[^>]* href="(https?:[^"]+)"', path.read_text(encoding="utf-8")
        )
        assert loaded == [], path.name
