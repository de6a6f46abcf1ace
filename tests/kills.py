"""A training that is killed at random moments and resumed, over and over, until it ends."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path

from bolus.recipe import Recipe
from bolus.run import Run
from bolus.training.loop import pretrain


def train(cohort: Path, recipe: Recipe, folder: Path, cache: Path) -> None:
    """Begin a run, or go on with it."""
    pretrain(cohort, recipe=recipe, out=folder, cache=cache, resume=(folder / "run.json").is_file(), quiet=True)


def kill_and_resume(
    cohort: Path, recipe: Recipe, folder: Path, cache: Path, *, kills: int, seed: int
) -> tuple[int, Run]:
    """Train in processes of which each is killed (SIGKILL) at a random moment, then to the end.

    Args:
        cohort: what is trained on; its images should be in the cache already.
        recipe: should log every step, and have more steps than the kills need.
        folder: of the run.
        cache: folder.
        kills: how many times.
        seed: of the moments.

    Returns:
        How many kills met a training that had not ended, and the run, finished.
    """
    # A child of this process has everything imported, so that kills fall into training and not into its preparation.
    start, rng, killed = multiprocessing.get_context("fork").Process, random.Random(seed), 0
    for _ in range(kills):
        process = start(target=train, args=(cohort, recipe, folder, cache))
        process.start()
        seen, more, late = num_steps(folder), rng.randint(0, 4), rng.random() * 0.2
        while process.is_alive() and num_steps(folder) < seen + more:
            time.sleep(0.005)
        time.sleep(late)
        killed += process.is_alive()
        process.kill()
        process.join()
    train(cohort, recipe, folder, cache)
    return killed, Run.open(folder)


def num_steps(folder: Path) -> int:
    """Lines of metrics that a run has written."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0
