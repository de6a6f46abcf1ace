"""The worked examples: their pages are made from the scripts, and the scripts run."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("xray", "fundus", "cardiac")


@pytest.fixture
def render(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.delitem(sys.modules, "render", raising=False)
    import render

    return render


@pytest.mark.parametrize("name", NAMES)
def test_a_page_shows_the_steps_of_its_script(name: str, render: ModuleType) -> None:
    assert render.NAMES == NAMES
    page = (render.PAGES / f"{name}.md").read_text(encoding="utf-8")
    fence = re.compile(r"^```(\w*)\n.*?^```\n", flags=re.DOTALL | re.MULTILINE)
    said = fence.sub(lambda block: block[0] if block[1] else "", page)  # without what was printed
    assert said.split() == render.page(name, []).split(), f"run examples/render.py {name}"
    for picture in re.findall(r"\]\(([\w-]+\.png)\)", page):
        assert (render.PAGES / picture).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_example_runs(name: str, render: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOLUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(render, "PAGES", tmp_path)
    printed, seconds = render.run(name)
    assert (tmp_path / f"{name}.png").is_file()
    assert any("[" in said for said in printed), "an interval"
    print(f"{name}: {seconds:.0f} s")
