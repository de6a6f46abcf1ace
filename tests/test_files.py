"""Files are whole or not there, and JSON is strict."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from bolus.files import flush, replacing, strict_json, write_json, write_text


def test_a_file_is_replaced_in_one_step_and_kept_where_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            assert path.read_text() == "old", "a reader sees the old file while the new one is written"
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"], "nothing is left behind"
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"


def test_what_is_written_is_flushed_before_it_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("bolus.files.flush", lambda path: seen.append(((tmp_path / "a").exists(), path.read_text())))
    write_text(tmp_path / "a", "x")
    assert seen == [(False, "x")]


def test_files_and_folders_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a", "x")
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", synced.append)
    flush(tmp_path / "a")
    assert len(synced) == 1
    flush(tmp_path)
    assert len(synced) == 1 + (os.name == "posix")


def test_json_is_strict_whatever_is_in_it(tmp_path: Path) -> None:
    value = {"a": [1.5, math.nan, (math.inf, -math.inf)], "b": {"c": math.nan}, "ä": "ü", "n": None, "t": True}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    read = json.loads(text, parse_constant=pytest.fail)
    assert read == {"a": [1.5, None, [None, None]], "b": {"c": None}, "ä": "ü", "n": None, "t": True}
    assert "ä" in text
    assert strict_json({"x": math.nan}) == '{"x": null}'
