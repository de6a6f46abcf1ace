"""What a study lacks whose claim does not hold: its arms after other trainings, judged on validation patients alone.

    python benchmarks/curves.py supremix_acdc training.max_steps=300,1200 images.size=64,96
    python benchmarks/curves.py supremix_acdc training.max_steps=1200 --arms supremix regression --seeds 100 101

A point is a value of one key, beside the keys that validation patients chose for the arm and whatever else the study
trains with. Seeds are not those of the study. No test patient is read, so a point that is better promises nothing of
them: it says where the next study of this question should be, and what its trainings cost.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

from grid import NO_END, SMALL, results_file, run_grid
from study import Cell, Study, try_out
from tuning import SEED


def points_of(words: Sequence[str]) -> list[str]:
    """Every key with one of its values.

    >>> points_of(["training.max_steps=300,1200", "images.size=64"])
    ['training.max_steps=300', 'training.max_steps=1200', 'images.size=64']
    """
    return [
        f"{key}={value}" for key, _, values in (word.partition("=") for word in words) for value in values.split(",")
    ]


def cells_of(study: Study, tier: str, arms: Sequence[str], points: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """The trainings of a curve: every arm at a point before the next point begins."""
    return [
        {"tier": tier, "arm": arm, "seed": seed, **study.stamps(tier, arm), "point": point}
        for point in points
        for seed in seeds
        for arm in arms
    ]


def main() -> None:
    """Train and judge what is missing of a curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="a file of studies, such as supremix_acdc")
    parser.add_argument("points", nargs="+", metavar="key=value,value", help="keys of the recipe, with their values")
    parser.add_argument("--tier", default=SMALL)
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="these alone")
    parser.add_argument("--seeds", nargs="+", type=int, default=[SEED, SEED + 1])
    parser.add_argument("--work", type=Path, help="where prepared cohorts and caches lie")
    given = parser.parse_args()
    study: Study = importlib.import_module(given.study).STUDY
    if study.validate is None:
        parser.error(f"{given.study} asks nothing of validation patients")
    work = (given.work or Path("runs") / study.cells.partition("-cells")[0]) / given.tier
    cells = cells_of(study, given.tier, given.arms or study.main, points_of(given.points), given.seeds)
    if any("keys" in cell and cell["keys"] is None for cell in cells):
        parser.error(
            f"validation patients have not chosen all keys yet: python benchmarks/{given.study}.py --tune-only"
        )
    file = results_file(study.cells.replace("cells", "curve"), given.tier)
    run_grid(file, cells, lambda **cell: try_out(study, work, cell, cell["point"]), NO_END)


if __name__ == "__main__":
    main()
