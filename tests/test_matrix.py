"""What goes together: each way of computing a step x each combiner and scope works, or is refused by its sentence.

The tables of docs/scaling.md are written from here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState

from bolus.data.batches.columns import TrainingColumns
from bolus.data.cohort.cohort import Cohort
from bolus.errors import BolusError
from bolus.recipe import Recipe
from bolus.training import compiling
from bolus.training.assembly import build_model
from bolus.training.loaders import build_loader, open_images
from bolus.training.step import apply_gradients, training_step
from launching import launch

SMALL: dict[str, Any] = {
    "name": "matrix",
    "encoder": {"backbone": "vit_tiny"},
    "images": {"size": 16, "views": 2},
    "sampling": {"batch_size": 8},
    "objectives": {
        "v": {"kind": "contrast", "dim": 8, "hidden": 16},
        "p": {"kind": "contrast", "relation": "patient", "dim": 8, "hidden": 16},
    },
    "training": {"epochs": 1, "clip": 1.0},
}
ALONE = {  # of one process
    "bf16": "training.precision=bf16",
    "accumulate": "training.accumulate=2",
    "chunk": "sampling.chunk=3",
    "compile": "training.compile=true",
}
TOGETHER = {"processes": "training.shard=false", "shard": "training.shard=true"}  # of two
WAYS = ALONE | TOGETHER
COMBINERS = {
    "sum": "{kind: sum, conflict_steps: null}",
    "sum, conflicts looked at": "{kind: sum, conflict_steps: 1}",
    "sum, weights learnt": "{kind: sum, weighting: uncertainty, conflict_steps: null}",
    "mean": "{kind: mean}",
    "balanced": "{kind: balanced}",
    "pcgrad": "{kind: pcgrad}",
    "grad_mitigator": "{kind: grad_mitigator}",
    "torchjd, by inner products (MGDA)": "{kind: torchjd, aggregator: MGDA}",
    "torchjd, by gradients (ConFIG)": "{kind: torchjd, aggregator: ConFIG}",
}
SCOPES = ("encoder", "features")
WHOLE = "needs whole gradients, so scope encoder"
PARTS = "reconciles objectives in the encoder's parameters, of which each process has only a part"
LOOKED = "conflicts are looked at in the encoder's parameters, of which each process has only a part"
SENTENCES = {"a": WHOLE, "b": PARTS, "c": LOOKED}


def expected(way: str, combiner: str, scope: str) -> str | None:
    """The sentence that refuses a cell; None where it works."""
    if "ConFIG" in combiner and scope == "features":
        return WHOLE
    if way == "shard" and scope == "encoder" and combiner not in ("sum", "sum, weights learnt"):
        return LOOKED if combiner.startswith("sum") else PARTS
    return None


CELLS = {(way, combiner, scope): [WAYS[way]] for way in WAYS for combiner in COMBINERS for scope in SCOPES}
PAIRS = {
    (one, other): [WAYS[one], WAYS[other]] for one, other in combinations(WAYS, 2) if {one, other} != set(TOGETHER)
}


def keys_of(way: tuple[str, ...]) -> list[str]:
    """The keys of a cell, or of a pair of ways with combiner sum."""
    if way in PAIRS:
        return [f"combiner={COMBINERS['sum']}", *PAIRS[way]]
    _, combiner, scope = way
    return [f"combiner={COMBINERS[combiner]}", f"combiner.scope={scope}", *CELLS[way]]


def try_step(cohort: Cohort, cache: Path, recipe: Recipe, device: torch.device) -> str | None:
    """A step of the encoder; what refused it otherwise."""
    try:
        samples, state = cohort.samples("image"), PartialState()
        model = build_model(recipe, device, TrainingColumns(samples))
        store = open_images(cohort, recipe, cache, True)
        loader = build_loader(cohort, samples, store, recipe, model.needs, state)
        observe = recipe.combiner.conflict_steps == 1
        for number in range(recipe.training.accumulate):
            losses, _ = training_step(model, loader, loader.fetch(number), recipe, 0.0, observe=observe)
        norm = float(apply_gradients(model, recipe.training.clip))
        assert all(math.isfinite(float(loss)) for loss in losses.values())
        assert 0 < norm < math.inf
        assert (model.combiner.conflicts is not None) == observe
    except BolusError as error:
        return str(error)
    return None


def judge(cell: tuple[str, ...], found: str | None) -> None:
    """Hold what came of a cell against what is expected of it."""
    sentence = None if cell in PAIRS else expected(*cell)
    if sentence is None:
        assert found is None, f"{cell}: refused: {found}"
    else:
        assert found is not None and sentence in found, f"{cell}: expected to be refused by {sentence!r}, found {found}"


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything of torch.compile but the C++ compiler, which takes a minute."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    yield
    torch.compiler.reset()


APART = [cell for cell in [*CELLS, *PAIRS] if not set(cell) & set(TOGETHER)]
GROUPS = {way: [cell for cell in APART if cell in CELLS and cell[0] == way] for way in ALONE}
GROUPS["pairs"] = [cell for cell in APART if cell in PAIRS and "compile" not in cell]
GROUPS["pairs with compile"] = [cell for cell in APART if cell in PAIRS and "compile" in cell]


@pytest.mark.parametrize("group", GROUPS)
def test_one_process(group: str, tiny_cohort: Path, tmp_path: Path, quick_compiler: None) -> None:
    cohort = Cohort.open(tiny_cohort)
    for cell in GROUPS[group]:
        recipe = Recipe.load(SMALL).override(keys_of(cell))
        judge(cell, try_step(cohort, tmp_path / "cache", recipe, torch.device("cpu")))


WORKER = """
import json, sys
sys.path.insert(0, {tests!r})
import torch
from pathlib import Path
from bolus.data.cohort.cohort import Cohort
from bolus.recipe import Recipe
from bolus.training import compiling
from bolus.training.processes import launched
from test_matrix import SMALL, keys_of, try_step
torch.set_num_threads(1)
compiling.BACKEND = "aot_eager"
cohort, cache, cells, out = sys.argv[1:]
state = launched()
assert state.num_processes == 2
found = []
for cell in json.loads(Path(cells).read_text()):
    recipe = Recipe.load(SMALL).override(keys_of(tuple(cell)))
    found.append(try_step(Cohort.open(cohort), Path(cache), recipe, state.device))
Path(f"{{out}}.{{state.process_index}}").write_text(json.dumps(found))
state.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes(tiny_cohort: Path, tmp_path: Path) -> None:
    cells = [cell for cell in [*CELLS, *PAIRS] if set(cell) & set(TOGETHER)]
    (tmp_path / "cells.json").write_text(json.dumps(cells))
    (tmp_path / "worker.py").write_text(WORKER.format(tests=str(Path(__file__).parent)))
    words = [tmp_path / "worker.py", tiny_cohort, tmp_path / "cache", tmp_path / "cells.json", tmp_path / "out"]
    launch(*words, seconds=900)
    one, other = (json.loads((tmp_path / f"out.{rank}").read_text()) for rank in (0, 1))
    assert one == other
    for cell, found in zip(cells, one, strict=True):
        judge(cell, found)


def table() -> str:
    """The matrix as Markdown."""
    lines = ["| combiner | scope | " + " | ".join(f"`{way}`" for way in WAYS) + " |", "|---" * (2 + len(WAYS)) + "|"]
    letters = {sentence: letter for letter, sentence in SENTENCES.items()}
    for combiner in COMBINERS:
        for scope in SCOPES:
            told = [expected(way, combiner, scope) for way in WAYS]
            marks = ["yes" if sentence is None else f"no ({letters[sentence]})" for sentence in told]
            lines.append(f"| {combiner} | {scope} | " + " | ".join(marks) + " |")
    return "\n".join(lines)


def test_the_table_of_the_docs_is_this_one() -> None:
    text = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert table() in text, f"write into docs/scaling.md:\n{table()}"
    for letter, sentence in SENTENCES.items():
        assert f"({letter}) {sentence}" in text
