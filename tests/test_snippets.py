"""Every command and every piece of Python on the pages runs, made small, at a desk that has what it names.

A page runs from top to bottom, as a reader would; a page whose blocks do not build on each other runs block by block.
"""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import bolus
import desk as furniture
from bolus.cli import demo as demonstration
from bolus.cli import main, speaking
from test_docs import PAGES, ROOT

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
ELSEWHERE = {
    "docs/plans.md": "benchmarks/plans.py writes the page by these commands, on data that is not here",
    "docs/extending.md": "test_extending.py runs it",
    "docs/guide.md 8": "test_report.py writes the page of an ablation",
    "docs/report.md": "test_report.py writes the page of runs, an ablation and embeddings that it makes",
    "docs/deploying.md": "test_export.py and test_preprocess.py run the verbs, of encoders that they make",
    "docs/volumes.md 0": "test_volume_chain.py runs the verbs, on a tree of series that it makes",
    "docs/volumes.md 2": "test_volume_runs.py runs the verbs, on volumes that it makes",
    "docs/volumes.md 4": "test_segment_volumes.py asks it, of volumes that it makes",
    "docs/examples/xray.md": "test_examples.py runs it",
    "docs/examples/fundus.md": "test_examples.py runs it",
    "docs/examples/cardiac.md": "test_examples.py runs it",
}
BY_BLOCK = ("README.md", "CONTRIBUTING.md", "docs/guide.md", "docs/scanning.md", "docs/offline.md", "docs/volumes.md")
LISTING = "docs/guide.md"  # whose commands are each for a reader who has all that they name
PROGRAMS = ("bolus ", "make ", "pip ", "python ", "docker ")
SLOW = {
    "docs/guide.md 0", "docs/guide.md 1", "docs/guide.md 5", "docs/guide.md 6", "docs/guide.md 7", "README.md 3",
    "docs/methods/comprer.md", "docs/methods/gcl.md",
    "docs/methods/order.md", "docs/methods/simclr.md", "docs/starting.md",
}  # fmt: skip
"""Of several seconds each: the demo, ablations, and most pages of trainings."""


def units() -> Iterator[Any]:
    """A page, or a block of one, with the blocks that run one after the other: (language, text)."""
    for name, page in PAGES.items():
        if name in ELSEWHERE:
            continue
        found = [(language, text) for language, text in FENCE.findall(page) if runs(language, text)]
        pieces = {f"{name} {at}": [block] for at, block in enumerate(found)} if name in BY_BLOCK else {name: found}
        for label, blocks in pieces.items():
            if blocks and label not in ELSEWHERE:
                yield pytest.param(blocks, id=label, marks=[pytest.mark.slow] if label in SLOW else [])


def runs(language: str, text: str) -> bool:
    """Python, and what holds a command."""
    return language == "python" or (language == "" and any(programs(text)))


def programs(text: str) -> Iterator[list[str]]:
    """The commands of a block, each as its words; output and comments are left out."""
    joined = furniture.stand_in(text.replace("\\\n", " "))
    shown = "\n$ " in f"\n{joined}"  # with its output, where commands have a prompt
    for line in joined.splitlines():
        typed = line.removeprefix("$ ")
        if typed.startswith(PROGRAMS) and (line != typed or not shown):
            yield shlex.split(typed, comments=True)


@pytest.fixture(scope="session")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("furnished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOLUS_CACHE", str(folder / "cache"))
        (folder / "desk").mkdir()
        furniture.furnish(folder / "desk")
    return folder / "desk"


@pytest.fixture
def at_desk(furnished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A desk of one's own, in which the Python functions that train take small keys, too."""
    place = furniture.copy(furnished, tmp_path)
    monkeypatch.chdir(place)
    monkeypatch.setenv("BOLUS_CACHE", str(furnished.parent / "cache"))
    key = tmp_path / "key"  # always the same one, and so are the patients of the test
    key.touch(mode=0o600)
    key.write_text("a key for tests, which is none")
    monkeypatch.setenv("BOLUS_KEY", str(key))
    monkeypatch.setattr(speaking, "manner", speaking.Everywhere())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(demonstration, "NUM_PATIENTS", 40)
    keys = ("training.epochs=1", "training.health_epochs=null", "images.size=16", "sampling.batch_size=32")
    monkeypatch.setitem(demonstration.OVERRIDES, "mlvicx", (*demonstration.OVERRIDES["mlvicx"], *keys))
    train, ablate, segment, draw = bolus.pretrain, bolus.ablate, bolus.evaluate_segment, bolus.make_phantom
    measure = bolus.bench
    scan, few = bolus.scan, bolus.SegmentSpec(steps=1)

    def small_pretrain(cohort: Any, *, recipe: Any, overrides: Any = (), **rest: Any) -> Any:
        given = [f"{key}={value}" for key, value in overrides.items()] if isinstance(overrides, dict) else overrides
        more = furniture.smaller("pretrain", ["--recipe", str(recipe), *given])
        furniture.make_room(["bolus", "pretrain", "--out", str(rest["out"])])
        return train(cohort, recipe=recipe, overrides=[*given, *more], quiet=True, **rest)

    def small_ablate(cohort: Any, *, recipe: Any, **rest: Any) -> Any:
        keys = [word for word in furniture.smaller("ablate", ["--recipe", recipe]) if "." in word]
        return ablate(
            cohort, recipe=recipe, overrides=keys, seeds=1, passes=64, labelled=(1,), repeats=1, steps=1, **rest
        )

    monkeypatch.setattr(bolus, "pretrain", small_pretrain)
    monkeypatch.setattr(bolus, "ablate", small_ablate)
    quick = ["encoder.backbone=r18w32", "images.size=16", "sampling.batch_size=8"]
    monkeypatch.setattr(
        bolus, "bench", lambda *words, **rest: measure(*words, **{**rest, "seconds": 0.1}, overrides=quick)
    )
    monkeypatch.setattr(bolus, "evaluate_segment", lambda *words, **rest: segment(*words, spec=few, repeats=1, **rest))
    monkeypatch.setattr(bolus, "make_phantom", lambda folder, **_: draw(folder, num_patients=40, size=16))
    monkeypatch.setattr(bolus, "scan", lambda folder, _: scan(folder, "scanned.yaml"))  # the cohort keeps its labels
    return place


@pytest.mark.parametrize("blocks", list(units()))
def test_what_a_page_shows_runs(
    blocks: list[tuple[str, str]],
    at_desk: Path,
    furnished: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    listing = LISTING in request.node.name
    if any("recipe.yaml" in text and "-o recipe.yaml" not in text for _, text in blocks):
        call(monkeypatch, ["plan", "cohort.yaml", "-o", "recipe.yaml", *furniture.smaller("plan", [])])
    names: dict[str, Any] = {}
    for language, text in blocks:
        if language == "python":
            exec(compile(text, "page", "exec"), names)
            continue
        for words in programs(text):
            if words[0] == "bolus":
                if listing:
                    shutil.copyfile(furnished / "cohort.yaml", "cohort.yaml")
                furniture.make_room(words)
                length = 2 if words[1] == "evaluate" else 1
                call(monkeypatch, [*words[1:], *furniture.smaller(" ".join(words[1 : 1 + length]), words)])
            else:
                CHECKS[words[0]](words)


def call(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """The command line in this process."""
    monkeypatch.setattr("sys.argv", ["bolus", *words])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 0, " ".join(words)


def check_make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert words[1] in targets


def check_pip(words: list[str]) -> None:
    """What is installed is the source, or bolus with extras that it has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name, _, extras = words[-1].rstrip("]").partition("[")
    assert name in (".", "bolus")
    assert set(extras.split(",")) - {""} <= set(project["optional-dependencies"])


def check_python(words: list[str]) -> None:
    if words[1:3] == ["-m", "pip"]:
        check_pip(words[2:])
    else:
        assert (ROOT / words[1]).is_file()


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "make": check_make,
    "pip": check_pip,
    "python": check_python,
    "docker": lambda _: None if (ROOT / "Dockerfile").is_file() else pytest.fail("expected a Dockerfile"),
}
"""Programs that are not run here -> what can be said of them without."""


@pytest.mark.parametrize("name", PAGES)
def test_every_block_is_of_a_known_kind(name: str) -> None:
    assert {language for language, _ in FENCE.findall(PAGES[name])} <= {"", "python", "yaml", "math"}
    assert name in ELSEWHERE or "```sh" not in PAGES[name], "a shell block without a language, or it would not run"
