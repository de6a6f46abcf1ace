"""What the report says of single test samples: Dice by the size of the mask, and partners that are found last."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bolus.evaluation.statistics.results import RANDOM, Result, write_results
from bolus.reporting.blocks import Block, Drawing, Figure, Sentences, Table
from bolus.reporting.charts.axes import Scale
from bolus.reporting.charts.points import Point, draw_points, drawn
from bolus.reporting.evidence import Evidence, Question, gather
from bolus.reporting.sections.predictions.failures import failures
from bolus.reporting.sections.predictions.overlap import overlap, volumes_of
from bolus.reporting.sections.predictions.predicted import is_joined
from bolus.reporting.sections.predictions.trust import trust
from bolus.reporting.sections.provenance import _command as again

KEPT = Path(__file__).parent / "kept"
SPLIT = "8861406e6389"  # of the kept run
WORST = 7


def some_volumes(sizes: dict[str, list[float]], encoders: tuple[str, ...] = ("run", RANDOM)) -> pd.DataFrame:
    """Two draws of 2 and of 6 patients; Dice grows with the row, and 2 patients or no training give less."""
    lines = []
    for labelled in (2, 6):
        for repeat in (0, 1):
            for encoder in encoders:
                for name, of_class in sizes.items():
                    for place, size in enumerate(of_class):
                        dice = 0.1 * place + 0.02 * repeat - 0.05 * (encoder == RANDOM) - 0.01 * (labelled == 2) + 0.1
                        about = {"labelled_patients": labelled, "repeat": repeat, "encoder": encoder, "class": name}
                        truth = {"true_voxels": round(1000 * size), "true_ml": size}
                        lines.append({"row": WORST + place, **about, **truth, "dice": dice if size else np.nan})
    return pd.DataFrame(lines)


def some_ranks(number: int = 12) -> pd.DataFrame:
    """In one direction every partner is first; in the other the later the larger the row."""
    lines: list[dict[str, Any]] = []
    for encoder in ("run", RANDOM):
        for place in range(number):
            there = {"encoder": encoder, "direction": "side: left to right", "rank": 1.0}
            rank = float(place + 1) if encoder == "run" else 2.5
            back = {"encoder": encoder, "direction": "side: right to left", "rank": rank}
            lines += [{"row": 2 * place + 1, "partner_row": 2 * place + 2, **there},
                      {"row": 2 * place + 2, "partner_row": 2 * place + 1, **back}]  # fmt: skip
    return pd.DataFrame(lines)


def written(
    folder: Path, task: str, name: str, frame: pd.DataFrame, split: str = SPLIT, rows_hash: str = ""
) -> Question:
    """An evaluation as its files keep it."""
    target, metric = {
        "segment": ("mask", "dice"),
        "retrieve": ("side: left to right", "top_1"),
        "classify": ("change:s", "auroc"),
    }[task]
    result = Result(task, target, metric, 0.5, 0.4, 0.6, 9, 9, encoder="run", split_hash=split, versions={})
    folder.mkdir(parents=True)
    frame.to_parquet(folder / name)
    write_results(folder / "results.jsonl", [result])
    (folder / "notes.json").write_text(json.dumps({"general": [], "targets": {}, "rows_hash": rows_hash}))
    return Question(folder, [result], [])


def tips(figure: Figure) -> list[list[str]]:
    return [re.findall('data-tip="([^"]*)"', str(panel)) for panel in figure.panels]


def texts(blocks: Any) -> list[str]:
    return [item.text for block in blocks if isinstance(block, Sentences) for item in block.items]


def tables(blocks: Any) -> list[Table]:
    return [block for block in blocks if isinstance(block, Table)]


def figure_of(blocks: list[Block]) -> Figure:
    (found,) = [block for block in blocks if isinstance(block, Figure)]
    return found


def test_dice_stands_over_the_size_of_the_reference_mask(tmp_path: Path) -> None:
    sizes = {"organ": [9.0, 8, 7, 6, 5, 4, 3, 2], "spot": [0.0, 0.5, 1, 2, 4, 8, 16, 32]}
    blocks = overlap(written(tmp_path / "a", "segment", "volumes.parquet", some_volumes(sizes)))
    figure = figure_of(blocks)
    assert len(figure.panels) == 2
    organ, spot = tips(figure)
    assert "volume of row 7, 9 ml: Dice 0.110" in organ, "the mean of both draws of 6 labelled patients"
    assert "volume of row 7, 9 ml, random-init: Dice 0.060" in organ
    assert (len(organ), len(spot)) == (16, 14), "a volume whose truth lacks the class is no point"
    assert texts(blocks) == [
        "Dice is 0.460 in the median volume and 0.110 in the worst, row 7.",
        "Of reference masks of class organ below 5.5 ml the median Dice is 0.660, of the others 0.260.",
    ], "seven volumes of spots are too few for halves"
    assert figure.table is not None
    assert list(figure.table.head) == ["Row of the first slice", "Class", "Size, ml", "Run", "Random-init"]
    assert list(figure.table.rows[0]) == ["7", "organ", "9", "0.110", "0.060"]
    assert "size of the reference mask, ml" in str(figure.panels[0])


def test_sizes_without_a_spacing_are_voxels_and_those_of_earlier_versions_are_not_there(tmp_path: Path) -> None:
    frame = some_volumes({"1": [1.0, 2, 3]})
    question = written(tmp_path / "a", "segment", "volumes.parquet", frame.assign(true_ml=np.nan))
    assert "volume of row 8, 2,000 voxels: Dice 0.210" in tips(figure_of(overlap(question)))[0]
    old = written(tmp_path / "b", "segment", "volumes.parquet", frame.drop(columns=["true_ml", "true_voxels"]))
    figure = figure_of(overlap(old))
    assert figure.title == "Dice by volume"
    assert "test volumes, the worst first" in str(figure.panels[0])
    assert "volume of row 8: Dice 0.210" in tips(figure)[0]
    alone = written(tmp_path / "c", "segment", "volumes.parquet", some_volumes({"1": [1.0, 2]}, ("run",)))
    assert len(tips(figure_of(overlap(alone)))[0]) == 2, "without a twin the run alone is drawn"


def test_where_nothing_was_to_be_found_nothing_is_drawn(tmp_path: Path) -> None:
    question = written(tmp_path / "a", "segment", "volumes.parquet", some_volumes({"1": [0.0, 0]}))
    assert volumes_of(question) is None
    assert overlap(question) == []
    (question.folder / "volumes.parquet").unlink()
    assert overlap(question) == []


def test_points_lie_by_factors_where_they_are_asked_to(tmp_path: Path) -> None:
    places = {}
    for logarithmic in (False, True):
        points = [Point(x, 0.5, f"{x}") for x in (1.0, 10.0, 100.0)]
        shown = str(draw_points(points, title="t", x_name="x", logarithmic=logarithmic))
        places[logarithmic] = [float(each) for each in re.findall('cx="([^"]*)"', shown)]
        assert (">10<" in shown) == logarithmic, "a tick at a power of ten"
    low, middle, high = places[True]
    assert middle - low == pytest.approx(high - middle, abs=0.1)
    assert places[False][1] - places[False][0] < 30
    assert Scale(1, 100, 0, 10, logarithmic=True)(10) == pytest.approx(5)


def test_what_is_drawn_of_many_is_the_same_each_time() -> None:
    assert drawn(5, 9).tolist() == [0, 1, 2, 3, 4]
    many = drawn(1000, 20)
    assert many.tolist() == sorted(set(drawn(1000, 20).tolist()))
    assert len(many) == 20


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of an earlier version with its table."""
    shutil.copytree(KEPT / "cohort", tmp_path / "cohort")
    return Path(shutil.copytree(KEPT / "8aa6ec3" / "finished", tmp_path / "version" / "run"))


def blocks_of(section: Any) -> list[Block]:
    (blocks,) = section.by_run.values()
    return list(blocks)


def test_the_images_whose_partner_is_found_last_are_named(run: Path) -> None:
    written(run / "evaluations" / "retrieve-side", "retrieve", "ranks.parquet", some_ranks())
    asked: list[list[int]] = []

    def pictures(evidence: Evidence, rows: Any) -> dict[int, str]:
        asked.append(list(rows))
        return {row: f"data:,{row}" for row in rows}

    blocks = blocks_of(failures(gather([run]), pictures))
    left, right = [text for text in texts(blocks) if "searched" in text]
    assert "Each of 12 images is searched for its partner, the same patient's image on the other side" in left
    assert left.endswith("nearest for 12 of them. Its median rank is 1, in a random order 6.5.")
    assert right.endswith("nearest for 1 of them. Its median rank is 6.5, in a random order 6.5.")
    (table,) = [each for each in tables(blocks) if "partner" in each.title]
    assert list(table.head) == ["Row", "Row of its partner", "Rank of the partner among 12", "Random-init"]
    assert table.title == "The 10 images whose partner is found last"
    assert [list(row) for row in table.rows[:2]] == [["24", "23", "12", "2.5"], ["22", "21", "11", "2.5"]]
    assert "2" not in [row[0] for row in table.rows], "its partner is the nearest"
    shown = str(next(block.markup for block in blocks if isinstance(block, Drawing) and "partner" in str(block.markup)))
    assert 'alt="partner: row 23"' in shown
    assert [24, 22, 20, 18, 16, 14, 12, 10, 23, 21, 19, 17, 15, 13, 11, 9] in asked


def test_rows_of_another_table_are_said_to_be_and_have_no_picture(run: Path) -> None:
    written(run / "evaluations" / "retrieve-side", "retrieve", "ranks.parquet", some_ranks(), split="another")
    blocks = blocks_of(failures(gather([run]), lambda evidence, rows: dict.fromkeys(rows, "data:,")))
    (table,) = [each for each in tables(blocks) if "partner" in each.title]
    assert table.title.endswith(", of another table than the run's")
    assert not [block for block in blocks if isinstance(block, Drawing) and "partner" in str(block.markup)]


def test_rows_of_other_images_of_the_same_patients_are_of_another_table(run: Path) -> None:
    (evidence,) = gather([run])
    assert evidence.cohort is not None
    own, other = evidence.cohort.rows_hash, "0" * 16
    for place, (rows_hash, same) in enumerate(((own, True), (other, False), ("", True))):
        folder = run / "evaluations" / f"retrieve-{place}"
        question = written(folder, "retrieve", "ranks.parquet", some_ranks(), rows_hash=rows_hash)
        (again,) = gather([run])
        (read,) = [each for each in again.questions if each.folder == folder]
        assert is_joined(again, read, question.targets[0]) == same
        assert any("another table" in remark for remark in again.remarks) != same
        shutil.rmtree(folder)


def test_both_rows_of_a_pair_are_named_and_neither_is_shown_for_it(run: Path) -> None:
    lines = [
        {"row": row, "later_row": later, "target": "change:s", "encoder": "run", "probe": "linear", "split": "test",
         "fraction": 1.0, "repeat": 0, "y": float(row % 2), "score": 0.1 * later}
        for row, later in ((1, 2), (1, 3), (4, 6))
    ]  # fmt: skip
    written(run / "evaluations" / "change-s", "classify", "predictions.parquet", pd.DataFrame(lines))
    blocks = blocks_of(failures(gather([run]), lambda evidence, rows: dict.fromkeys(rows, "data:,")))
    (table,) = [each for each in tables(blocks) if "pairs" in each.title]
    assert list(table.head) == ["Earlier and later row", "Truth", "Probability of 1"]
    assert [row[0] for row in table.rows] == ["1 and 2", "1 and 3", "4 and 6"]
    assert not [block for block in blocks if isinstance(block, Drawing)]


def test_the_hardest_volumes_are_named_with_their_size(run: Path) -> None:
    frame = some_volumes({"organ": [9.0, 8, 7], "spot": [0.0, 0.5, 1]})
    written(run / "evaluations" / "segment-mask", "segment", "volumes.parquet", frame)
    evidence = gather([run])
    (table,) = [each for each in tables(blocks_of(failures(evidence))) if "volumes" in each.title]
    assert list(table.head)[1:] == ["Dice of class organ (size, ml)", "Dice of class spot (size, ml)"]
    assert [list(row) for row in table.rows[:2]] == [["7", "0.110 (9)", "-"], ["8", "0.210 (8)", "0.210 (0.5)"]]
    titles = [block.title for block in blocks_of(trust(evidence)) if isinstance(block, Figure)]
    assert "Dice by the size of the reference mask" in titles


@pytest.mark.parametrize(
    ("name", "task", "targets", "said"),
    [
        ("classify-eye=N-1a2b3c", "classify", ["eye=N"], "classify RUN --target eye=N"),
        ("classify-eye-1a2b3c", "classify", ["eye=N", "eye=D"], "classify RUN --target eye"),
        ("classify-next-sick-1a2b3c", "classify", ["next:sick"], "classify RUN --target sick --horizon next"),
        ("change-s tolerance 0.5 adjacent-1a2b3c", "classify", ["change:s tolerance 0.5", "amount_of_change:s"],
         "change RUN --target s --tolerance 0.5 --adjacent-only"),
        ("audit-classify-sick by sex site bands 30 50 linear knn-1a2b3c", "audit", ["sick"],
         "classify RUN --target sick --audit --by sex,site --age-bands 30,50 --probes linear,knn"),
        ("audit-regress-age-1a2b3c", "audit", ["age"], "regress RUN --target age --audit --probes linear,knn"),
    ],
)  # fmt: skip
def test_what_asks_a_question_again_asks_the_same(
    run: Path, name: str, task: str, targets: list[str], said: str
) -> None:
    results = [
        Result(task, target, "auroc", 0.5, 0.4, 0.6, 9, 9, encoder="run", probe=probe)
        for target in targets
        for probe in ("linear", "knn")
    ]
    (evidence,) = gather([run])
    command = again(evidence, Question(run / "evaluations" / name, results, []))
    assert command.replace(f"{evidence.place} {evidence.cohort_place}", "RUN") == f"bolus evaluate {said}"


def test_a_cohort_of_numbers_alone_is_asked_for_one(run: Path) -> None:
    (evidence,) = gather([run])
    assert evidence.cohort is not None
    for roles, said in (
        ({"score:age": "age"}, "regress PLACE COHORT --target age"),
        ({"score:age": "age", "label:sick": "sick"}, "classify PLACE COHORT --target sick"),
        ({}, "classify PLACE COHORT --target TARGET"),
    ):
        evidence.cohort.roles = roles
        command = evidence.question_to("PLACE").replace(evidence.cohort_place, "COHORT")
        assert command == f"bolus evaluate {said}"
