"""The map of docs/privacy.md is what is found in every file after a cohort's life."""

from __future__ import annotations

import base64
import gzip
from pathlib import Path

import pandas as pd
import pytest

from private_life import BEGIN, END, HASHES, KINDS, SECRET, Life, as_table, live, read_map, unpacked, write_map

STAYS = ("a hospital's own table", "beside a scan's key", "the key of a scan", "the site's key")
"""What never leaves; everything else may, after a look at the map."""
MAY = {HASHES, "table's folder"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BOLUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BOLUS_KEY", raising=False)
    return tmp_path


def test_the_first_days_of_a_cohort_leave_what_the_map_says(place: Path) -> None:
    found, told = live(place, whole=False).found(), read_map()
    assert {name: held for name, held in found.items() if held != told[name]} == {}


@pytest.mark.slow
def test_the_whole_life_of_a_cohort_leaves_what_the_map_says(place: Path) -> None:
    assert live(place, whole=True).found() == read_map()


def test_no_file_that_may_leave_names_anybody() -> None:
    told = read_map()
    assert len(told) > 25
    for name, held in told.items():
        if not name.startswith(STAYS) and "--columns" not in name:
            assert held <= MAY, name
    for name in ("strip: the encoder folder", "export", "embed: `embeddings.parquet`", "predict: `predictions.csv`"):
        assert told[name] == set(), name
    assert {name for name, held in told.items() if SECRET in held} == {"the key of a scan", "the site's key"}


def test_what_is_hidden_in_a_file_is_found(tmp_path: Path) -> None:
    """The search itself: compressed, encoded, in the name of a file or at the end of a link."""
    word = b"of a Wolpertinger"
    pd.DataFrame({"a": [word.decode()] * 9}).to_parquet(tmp_path / "a.parquet", compression="gzip")
    (tmp_path / "b.gz").write_bytes(gzip.compress(word))
    (tmp_path / "c.html").write_bytes(b"<img src='data:image/png;base64," + base64.b64encode(word) + b"'>")
    (tmp_path / "d.txt").write_text("Wolpertinger", encoding="utf-16")
    (tmp_path / "e").symlink_to("/nowhere/WOLPERTINGER")
    (tmp_path / "f" / "wolpertinger.png").parent.mkdir()
    (tmp_path / "f" / "wolpertinger.png").write_bytes(b"")
    names = ("a.parquet", "b.gz", "c.html", "d.txt", "e", "f")
    life = Life(tmp_path, {name: [tmp_path / name] for name in names})
    assert life.found() == {**{name: {"free text"} for name in names if name != "e"}, "e": {"free text"},
                            "what commands print": set()}  # fmt: skip
    assert len([*unpacked(tmp_path / "a.parquet")]) == 3


def test_the_map_is_read_as_it_is_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    found = {"a": {"names", HASHES}, "b": set[str]()}
    write_map(found, page)
    assert read_map(page) == found
    text = page.read_text(encoding="utf-8")
    assert text == f"before\n{BEGIN}\n{as_table(found)}\n{END}\nafter\n"
    assert text.count(" | ") > len(KINDS)
