"""What keeps a study honest: keys are chosen on validation patients, and test patients are looked at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import curves
import study_pages
import supremix_acdc
from grid import NO_END
from looks import look, number_of_looks
from tuning import chosen, search, written

AXES = {"optimizer.lr": (0.1, 0.2), "temperature": (1, 2, 4)}
ABOUT = {"tier": "small", "arm": "a"}


def test_one_key_after_the_other_is_chosen_and_what_is_measured_stays(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def measure(tier: str, arm: str, keys: dict[str, Any]) -> dict[str, Any]:
        asked.append(keys)
        return {"figure": abs(keys["optimizer.lr"] - 0.2) + abs(keys["temperature"] - 4)}

    file = tmp_path / "tuning.jsonl"
    assert chosen(file, ABOUT, AXES) is None
    best = search(file, ABOUT, AXES, measure, NO_END)
    assert best == chosen(file, ABOUT, AXES) == {"optimizer.lr": 0.2, "temperature": 4}
    assert [tuple(keys.values()) for keys in asked] == [(0.1, 1), (0.2, 1), (0.2, 2), (0.2, 4)], "each once"
    search(file, ABOUT, AXES, measure, NO_END)
    assert len(asked) == 4
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:-1]) + "\n")
    assert chosen(file, ABOUT, AXES) is None, "a search that was stopped has chosen nothing"
    assert written(best) == ["optimizer.lr=0.2", "temperature=4"]


def test_a_recipe_that_changed_after_its_look_is_refused_unless_somebody_says_why(tmp_path: Path) -> None:
    file, about = tmp_path / "looks.jsonl", {"study": "s", "tier": "small", "arm": "a"}
    for _ in range(3):  # of three seeds
        look(file, about, "first")
    look(file, {**about, "arm": "b"}, "other")
    assert number_of_looks(file, "s", "small") == 1
    with pytest.raises(SystemExit, match="looked at with recipe first, and it is second now"):
        look(file, about, "second")
    assert number_of_looks(file, "s", "small") == 1
    look(file, about, "second", "the cohort was read wrongly")
    look(file, about, "second")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["recipe"], line["number"], line["why"]) for line in lines] == [
        ("first", 1, None), ("other", 1, None), ("second", 2, "the cohort was read wrongly"),
    ]  # fmt: skip
    assert number_of_looks(file, "s", "small") == 2


def test_a_claim_is_corrected_among_its_own_differences_and_the_rest_among_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_pages, "RESULTS", tmp_path)
    page = next(page for page in study_pages.PAGES if page.file == "learner-acdc")
    claimed, other, elsewhere = "mse + linear - mse", "mse + learned - mse", {"metric": "r2"}
    lines = [
        {"difference": difference, "metric": "mae", "seeds": 3, "p_value": p, "verdict": "decided"} | more
        for difference, p, more in ((claimed, 0.03, {}), (other, 0.02, {}), (claimed, 0.02, elsewhere))
    ]
    (tmp_path / "learner-acdc.json").write_text(json.dumps({"results": lines}))
    found = study_pages.lines_of(page)
    assert [study_pages.is_claim(page, line) for line in found] == [True, False, False]
    assert [line["holm"] for line in found] == pytest.approx([0.03, 0.06, 0.06])
    assert [line["verdict"] for line in found] == ["decided", study_pages.HINT, study_pages.HINT]


def test_a_curve_has_a_cell_for_every_point_arm_and_seed_and_a_column_for_every_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = curves.points_of(["training.max_steps=300,1200", "images.size=96"])
    assert points == ["training.max_steps=300", "training.max_steps=1200", "images.size=96"]
    cells = curves.cells_of(supremix_acdc.STUDY, "small", ["supcon", "regression"], points[1:], [100, 101])
    assert [cell["point"] for cell in cells] == [points[1]] * 4 + [points[2]] * 4
    assert {cell["keys"]["optimizer.lr"] for cell in cells if cell["arm"] == "supcon"} == {0.003}, "as chosen"
    assert not {100, 101} & {*supremix_acdc.STUDY.seeds}, "no seed of the study"
    monkeypatch.setattr(study_pages, "RESULTS", tmp_path)
    with (tmp_path / "supremix-acdc-curve.jsonl").open("w") as file:
        for number, cell in enumerate(cells):
            file.write(json.dumps({"cell": cell, "result": {"figure": number / 10}, "seconds": 90.0}) + "\n")
    page = next(page for page in study_pages.PAGES if page.file == "supremix-acdc")
    head, _, supcon, regression, minutes = study_pages.curve_of(page).splitlines()
    assert head.endswith("| max steps 1200 | size 96 |")
    assert supcon == "| supcon | 0.000, 0.200 | 0.400, 0.600 |"
    assert regression == "| regression | 0.100, 0.300 | 0.500, 0.700 |"
    assert minutes == "| minutes a training | 1.5 | 1.5 |"
