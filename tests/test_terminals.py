"""Terminals that are narrow, without colour, or without letters beyond ASCII: every verb says what it has to say."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import bolus
from bolus.cli import main
from bolus.progress import Meter
from bolus.terminal import WIDTH, Terminal, VisibleFormatter, columns, fold

ENVIRONMENTS = {
    "ascii": {"PYTHONIOENCODING": "ascii", "COLUMNS": "40"},
    "C": {"LC_ALL": "C", "LANG": "C", "COLUMNS": "40"},  # Python takes UTF-8 there
    "no colour": {"NO_COLOR": "1", "COLUMNS": "40"},
}
CALLS = {
    "check": ["check", "table.csv", "--role", "label:größe=größe", "-o", "c.yaml"],
    "check --json": ["check", "table.csv", "--role", "label:größe=größe", "-o", "c.yaml", "--json"],
    "plan": ["plan", "table.csv", "--role", "label:größe=größe", "-o", "r.yaml", "encoder.backbone=r18w32",
             "encoder.pretrained=false"],
    "an error": ["check", "table.csv", "--role", "label:größe=grösse"],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with letters beyond ASCII in a name of a column and in its values."""
    import numpy as np
    from PIL import Image as PillowImage

    place = tmp_path_factory.mktemp("terminals")
    lines = ["image,patient,größe"]
    for number in range(24):
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16)).astype(np.uint8)
        PillowImage.fromarray(pixels).save(place / f"{number}.png")
        lines.append(f"{number}.png,P{number:02d},{('groß', 'klein →')[number % 2]}")
    (place / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return place


@pytest.mark.parametrize(
    ("call", "environment"),
    [*((call, "ascii") for call in CALLS), ("check", "C"), ("an error", "C"), ("check", "no colour")],
)
def test_a_verb_speaks_in_any_terminal(call: str, environment: str, folder: Path) -> None:
    source = str(Path(bolus.__file__).parents[1])
    variables = {**os.environ, "PYTHONPATH": source, "BOLUS_CACHE": str(folder / "cache"), **ENVIRONMENTS[environment]}
    words = [sys.executable, "-m", "bolus.cli", *CALLS[call]]
    done = subprocess.run(words, cwd=folder, env=variables, capture_output=True, check=False)
    encoding = "ascii" if environment == "ascii" else "utf-8"
    out, error = done.stdout.decode(encoding), done.stderr.decode(encoding)  # nothing that the terminal does not have
    assert done.returncode == (1 if call == "an error" else 0), out + error
    assert "Traceback" not in error
    assert "\x1b[3" not in out + error, "no colour"
    if call == "check --json":
        assert "größe" in json.dumps(json.loads(out), ensure_ascii=False)
    elif call == "check":
        assert max(map(len, out.splitlines()[4:8])) <= 80
    elif call == "an error":
        assert ("grösse" if encoding == "utf-8" else "gr\\xf6sse") in error


@pytest.mark.parametrize("columns", [40, 60])
@pytest.mark.parametrize("call", ["plan", "recipes"])
def test_prose_is_as_wide_as_the_terminal(
    call: str, columns: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    call_bolus: Callable[..., tuple[int, str]],
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.chdir(folder)
    words = {"plan": [*CALLS["plan"][:-4], "-o", tmp_path / "r.yaml", *CALLS["plan"][-2:]], "recipes": ["recipes"]}
    code, said = call_bolus(*words[call])
    assert code == 0, said
    broken = [line for line in said.splitlines() if len(line) > columns and str(tmp_path) not in line]
    assert not broken
    assert any(len(line) > columns - 12 for line in said.splitlines()), "and no narrower"


def test_lines_are_folded_to_the_terminal_and_no_word_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    path = "runs/of/a/folder/with-a-long-name"
    assert fold(f"a b c d e f g h i {path}", "- ", "  ") == ["- a b c d e f g h i", f"  {path}"]
    monkeypatch.setenv("COLUMNS", "500")
    assert columns() == WIDTH
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr(sys, "__stdout__", None)  # no terminal at all
    assert columns() == WIDTH


ATTACKS = ("\x1b[2J", "\x1b]0;owned\x07", "\x9b2J", "\u202egnp", "\x7f")


@pytest.mark.parametrize("attack", ATTACKS, ids=ascii)
def test_no_cell_name_or_key_commands_the_terminal(
    attack: str, tiny_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BOLUS_CACHE", str(tmp_path / "cache"))
    head, first, *lines = (tiny_cohort.parent / "table.csv").read_text().splitlines()
    lines = [line.replace("yes", f"yes{attack}").replace("no", f"no{attack}") for line in lines]
    table, lost = tiny_cohort.parent / f"t{attack}.csv", f"img/p{attack}.png"
    table.write_text("\n".join([f"{head},note{attack}", *(f"{line},x" for line in [first, *lines])]))
    (tiny_cohort.parent / lost).write_bytes(b"no image")
    table.write_text(table.read_text().replace("img/p000_0.png", lost, 1))
    said = ""
    for words in (
        ["check", table, "--role", "label:sick=sick", "-o", tmp_path / "c.yaml"],
        ["check", table, "--role", f"label:sick=sick{attack}", "-o", tmp_path / "d.yaml", "--json"],
        ["plan", table, "--role", "label:sick=sick", "-o", tmp_path / "r.yaml", "encoder.backbone=r18w32"],
        ["pretrain", table, "--recipe", f"simclr{attack}"],
        ["embed", tmp_path / f"no{attack}run", table],
    ):
        monkeypatch.setattr("sys.argv", ["bolus", *map(str, words)])
        with contextlib.suppress(SystemExit):
            main()
        shown = capfd.readouterr()
        said += shown.out + shown.err
    assert attack[0] not in said
    assert f"\\u{ord(attack[0]):04x}" in said, "it is shown, and harmless"


def test_text_is_never_markup_and_never_a_command(capfd: pytest.CaptureFixture[str]) -> None:
    with Meter("[/x]", 1) as meter:
        meter.say("[/y]\x1b7")
        meter.update(1, "[/z]")
    Terminal().print("[/x][bold]", "\x1b[31m")
    shown = capfd.readouterr()
    assert "[/x] 1/1" in shown.err
    assert "[/y]\\u001b7\n" in shown.err
    assert shown.err.endswith("[/z]\n")
    assert shown.out == "[/x][bold] \\u001b[31m\n"


def test_a_warning_commands_nothing_either(capfd: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(VisibleFormatter())
    handler.handle(logging.makeLogRecord({"msg": "of \x1b[31m"}))
    assert capfd.readouterr().err == "of \\u001b[31m\n"
