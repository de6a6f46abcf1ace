"""What the README shows is true: its YAML is accepted, its verbs exist, its tables come from the result files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml
from typer.main import get_command

import bolus
from bolus.cli import app
from bolus.data.cohort.spec import CohortSpec
from bolus.encoders.features import FeatureShape, LevelShape
from bolus.objectives import build_objectives
from bolus.recipe import Recipe, recipe_names

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_yaml_blocks_are_accepted() -> None:
    cohort, objectives, combiner = (yaml.safe_load(block) for block in blocks("yaml"))
    assert CohortSpec.model_validate(cohort).roles["patient"] == "group"
    shape = FeatureShape(8, 8, 32, (LevelShape(8, 32, "last"),))
    recipe = Recipe.load({"name": "readme", **objectives, **combiner})
    assert recipe.combiner.kind == "grad_mitigator"
    assert set(build_objectives(recipe, shape, {}, seed=0)) == {"views", "patients"}


def test_every_verb_shown_exists_and_the_other_way_round() -> None:
    shown = set(re.findall(r"^bolus (evaluate \w+|\w+)", "\n".join(blocks("")), flags=re.MULTILINE))
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    questions = {f"evaluate {name}" for name in verbs["evaluate"].commands}
    assert shown == set(verbs) - {"evaluate"} | questions


def test_every_python_name_shown_exists() -> None:
    names = set(re.findall(r"bolus\.(\w+)", "".join(blocks("python"))))
    assert names
    assert names <= set(bolus.__all__)


def test_every_recipe_is_listed() -> None:
    listed = re.findall(r"^\| `(\w+)` \| .* \| (?:arXiv|the plain ancestor)", README, flags=re.MULTILINE)
    assert set(listed) == set(recipe_names())


def test_tables_are_made_from_the_result_files() -> None:
    script = ROOT / "benchmarks" / "tables.py"
    assert subprocess.run([sys.executable, str(script), "--check"], check=False).returncode == 0, (
        "run benchmarks/tables.py"
    )
