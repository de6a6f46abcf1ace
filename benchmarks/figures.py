"""Tables and figures of the docs; a figure holds a digest of its numbers, by which it says if it is stale."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def pyplot(name: str) -> Any:
    """Matplotlib, set so that the same numbers give the same file."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = name
    import matplotlib.pyplot as plt

    return plt


def save_figure(figure: Any, path: Path, shown: Any) -> None:
    """Write an SVG with the digest of what it shows."""
    figure.savefig(path, metadata={"Date": None, "Description": digest(shown)})
    text = path.read_text(encoding="utf-8")
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")


def is_stale(path: Path, shown: Any) -> bool:
    """Whether there are numbers, and the figure shows others."""
    return bool(shown) and not (path.is_file() and digest(shown) in path.read_text(encoding="utf-8"))


def digest(shown: Any) -> str:
    """Of JSON values, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]
