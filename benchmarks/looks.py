"""The looks that were taken at test patients: one for each recipe, unless a further one was asked for and noted.

`benchmarks/results/looks.jsonl` holds a line for each study, size and arm that was judged: the hash of its recipe, and
why it was looked at again where it was. An arm whose recipe changed after its look is refused, since a choice that was
made after seeing test patients is fitted to them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from grid import read_cells, record


def look(file: Path, about: dict[str, Any], recipe: str, why: str | None = None) -> None:
    """Note a look at the test patients; more seeds of one recipe are the same look.

    Args:
        file: of all looks.
        about: study, tier and arm.
        recipe: the hash of the arm's recipe, whatever its seed.
        why: of a look at a recipe that changed after the first one.

    Raises:
        SystemExit: the recipe changed after a look, and nobody says why there should be another.
    """
    lines = read_cells(file)
    before = [line["recipe"] for line in lines if line["look"] == about]
    if recipe in before:
        return
    if before and not why:
        raise SystemExit(
            f"{about['study']}, {about['arm']}: test patients were looked at with recipe {before[-1]}, and it is "
            f"{recipe} now; to look again, and have it noted, give --look-again WHY"
        )
    line = {"look": about, "number": len(before) + 1, "recipe": recipe, "why": why if before else None, **record()}
    with file.open("a") as opened:
        opened.write(json.dumps(line) + "\n")


def number_of_looks(file: Path, study: str, tier: str) -> int:
    """The most looks that an arm of a study had.

    >>> number_of_looks(Path("no such file"), "a study", "small")
    0
    """
    found = [line for line in read_cells(file) if (line["look"]["study"], line["look"]["tier"]) == (study, tier)]
    return max((line["number"] for line in found), default=0)
