"""A benchmark for a machine with a GPU that is lent for minutes: cells in order of value, in time, and resumable."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image as PillowImage

import absent

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu  # noqa: E402
import grid  # noqa: E402
import study  # noqa: E402
from bolus.provenance import machine  # noqa: E402
from bolus.recipe import Recipe  # noqa: E402

CLASSES = ("N", "D", "G", "C", "A", "M")
NUM_PATIENTS = 120


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets how many minutes ago the program began."""

    def minutes(since: float) -> None:
        monkeypatch.setattr(grid, "BEGAN", time.monotonic() - 60 * since)

    return minutes


def line(seconds: float, accelerator: object = None, **cell: object) -> dict:
    about = {**machine(), "accelerator": machine()["accelerator"] if accelerator is None else accelerator}
    return {"cell": {"tier": "gpu", "arm": "a", "seed": 0, **cell}, "seconds": seconds, "machine": about}


def test_a_cell_begins_where_the_longest_like_it_still_fits(at: Callable[[float], None]) -> None:
    clock = grid.Clock(10, stated=2, kept=1)
    asked, lines = {"tier": "gpu", "arm": "b", "seed": 1}, [line(60), line(100), line(500, labelled=1.0)]
    at(7)  # 120 s are left
    clock.require(asked, lines)
    with pytest.raises(grid.OutOfTimeError, match=r"takes about 500 s, and (119|120) s are left"):
        clock.require({**asked, "labelled": 1.0}, lines)
    at(7.5)  # 90 s
    with pytest.raises(grid.OutOfTimeError, match="takes about 100 s"):
        clock.require(asked, lines)
    clock.require(asked, [line(60), line(500, accelerator="another GPU")])
    with pytest.raises(grid.OutOfTimeError, match="takes about 120 s"):
        clock.require(asked, [])  # as stated, where none like it is finished
    at(60)
    grid.NO_END.require(asked, lines)
    with pytest.raises(grid.OutOfTimeError):
        grid.Clock(10).require(asked, [line(0)])


def small_study(measured: list[str], tiers: dict) -> study.Study:
    def judge(work: Path, cell: dict) -> dict:
        measured.append(f"judge {cell['arm']}")
        return {}

    judged = study.Grid("judged{tier}.jsonl", judge, ("start", "a", "b"))
    arms = {"a": ("simclr", ()), "b": ("simclr", ())}
    return study.Study(
        "small", "cells{tier}.jsonl", "small{tier}.json", arms, tiers, lambda work, cell: work, lambda finished: [],
        seeds=(0,), then=(judged,),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ((), ["train a", "train b", "judge start", "judge a", "judge b"]),
        (("start", "b", "a"), ["judge start", "train b", "judge b", "train a", "judge a"]),
    ],
)
def test_arms_are_finished_in_the_order_of_the_tier(
    order: tuple[str, ...], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    asked = small_study(measured, {"gpu": {"keys": (), "order": order}})

    def train(study: study.Study, work: Path, cell: dict, clock: grid.Clock) -> dict:
        measured.append(f"train {cell['arm']}")
        (work / study.folder(cell)).mkdir(parents=True)
        (work / study.folder(cell) / "run.json").write_text('{"status": "finished"}')
        return {}

    monkeypatch.setattr(study, "train", train)
    monkeypatch.setattr(grid, "RESULTS", tmp_path / "results")
    words = ["--tier", "gpu", "--work", str(tmp_path / "work")]
    study.run_study(asked, study.command_line("", [asked], "runs").parse_args(words))
    assert measured == expected
    measured.clear()
    study.run_study(asked, study.command_line("", [asked], "runs").parse_args(words))
    assert measured == [], "all is done"
    (tmp_path / "results" / "judged-gpu.jsonl").unlink()
    elsewhere = ["--tier", "gpu", "--work", str(tmp_path / "elsewhere")]
    study.run_study(asked, study.command_line("", [asked], "runs").parse_args(elsewhere))
    assert sorted(measured) == ["judge a", "judge b", "judge start", "train a", "train b"], "their runs are not here"
    assert len(grid.read_cells(tmp_path / "results" / "cells-gpu.jsonl")) == 2


def test_a_training_is_stopped_in_time(
    at: Callable[[float], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, given = small_study([], {"gpu": {"keys": ()}}), []

    def pretrain(cohort: Path, *, overrides: dict, **options: object) -> SimpleNamespace:
        given.append(overrides)
        return SimpleNamespace(status="stopped", record={"steps": 7})

    monkeypatch.setattr(study, "pretrain", pretrain)
    at(4)
    for clock in (grid.Clock(10, kept=1), grid.NO_END):
        with pytest.raises(grid.OutOfTimeError, match="a-0 was stopped at step 7"):
            study.train(asked, tmp_path, {"tier": "gpu", "arm": "a", "seed": 0}, clock)
    assert given[0]["training.max_hours"] == pytest.approx(5 / 60, abs=0.01)
    assert given[1] == {}


@pytest.fixture
def odir(tmp_path: Path) -> Path:
    """A folder with a set `odir`: both eyes of each patient, in the columns that the benchmark reads."""
    folder, rng, rows = tmp_path / "data" / "odir", np.random.default_rng(0), []
    (folder / "img").mkdir(parents=True)
    for patient in range(NUM_PATIENTS):
        for number, eye in enumerate(("left", "right")):
            label = (patient + number * (1 + patient % 5)) % 6
            pixels = rng.integers(40, 160, (40, 40, 3), dtype=np.uint8)
            pixels[:12, :12] += np.uint8(15 * label)
            PillowImage.fromarray(pixels).save(folder / "img" / f"{patient}_{eye}.jpg")
            about = {"image": f"img/{patient}_{eye}.jpg", "group": patient, "eye": eye, "eye_label": CLASSES[label]}
            rows.append(about | {"age": 30 + patient % 50, "sex": ("Female", "Male")[patient % 2]})
    pd.DataFrame(rows).to_csv(folder / "meta.csv", index=False)
    return tmp_path / "data"


@pytest.mark.slow
def test_what_fits_into_the_minutes_is_measured_and_goes_on_on_another_machine(odir: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    env = absent.environment(
        tmp_path / "site", BOLUS_BENCH_DATA=str(odir), BOLUS_BENCH_RESULTS=str(results), BOLUS_CACHE=str(tmp_path / "c")
    )

    def run(work: str, *words: str) -> tuple[str, float]:
        command = [sys.executable, str(BENCHMARKS / "starts.py"), "--tier", "rehearsal", "--seeds", "0"]
        began = time.monotonic()
        done = subprocess.run(
            [*command, "--work", str(tmp_path / work), *words], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stderr, time.monotonic() - began

    def lines(grid: str) -> list[dict]:
        file = results / f"starts-{grid}-rehearsal.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

    arms = ["--arms", "random init", "comprer"]
    said, seconds = run("first", "--minutes", "0.02", *arms)
    assert "did not fit" in said
    assert lines("cells") == lines("judged") == []
    assert "cell {" not in said, "nothing is begun that would end too late"

    said, seconds = run("first", "--minutes", "1", *arms)
    judged = lines("judged")
    assert seconds < 60 + 30, "the last cell may take longer than expected, but no more is begun"
    assert judged[0]["cell"] == {"tier": "rehearsal", "arm": "random init", "seed": 0}
    assert {"accelerator", "processor"} <= set(judged[0]["machine"])
    assert {"torch", "transformers", "bolus"} <= set(judged[0]["versions"])

    run("second", "--minutes", "10", *arms)  # another machine: the results are here, the runs and caches are not
    assert lines("judged")[: len(judged)] == judged, "what is done is not measured again"
    kinds = [("cells", 1), ("judged", 2), ("finetuned", 2)]
    assert [(grid, len(lines(grid))) for grid, _ in kinds] == kinds
    compared = json.loads((results / "starts-rehearsal.json").read_text())
    assert {line["tier"] for line in compared["results"]} == {"rehearsal"}
    before = (results / "starts-judged-rehearsal.jsonl").read_text()
    said, _ = run("third", "--minutes", "10", *arms)
    assert "cell {" not in said, "all is done, and no run is missed"
    assert (results / "starts-judged-rehearsal.jsonl").read_text() == before


@pytest.mark.slow
def test_the_whole_of_it_is_rehearsed_and_goes_on(odir: Path, tmp_path: Path) -> None:
    env = absent.environment(
        tmp_path / "site", there=("monai",), BOLUS_BENCH_DATA=str(odir), BOLUS_CACHE=str(tmp_path / "c")
    )

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--rehearsal", "--out", str(tmp_path / "out"), *words]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    done = run("--only", "speed")
    assert done.returncode == 0, done.stderr[-3000:]
    measured = [json.loads(line) for line in (tmp_path / "out" / "speed.jsonl").read_text().splitlines()]
    assert [line["cell"]["name"] for line in measured] == [*gpu.SPEED]
    for line in measured:
        found = line["result"]
        assert found["images_per_second"] > 0
        assert (found["efficiency"] is None) == ("chunks" in line["cell"]["name"])
        assert found["waits"] is None, "no accelerator counts them"
        assert {"accelerator", "processor"} <= set(line["machine"])
    done = run("--minutes", "3")
    assert done.returncode == 0, done.stderr[-3000:]
    assert '"name"' not in done.stderr, "what was measured is not measured again"
    assert (tmp_path / "out" / "starts-judged-rehearsal.jsonl").is_file()


def test_a_fault_of_one_cell_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def speed(name: str, rehearsal: bool, work: Path) -> dict:
        if name == "simclr, ResNet-50":
            raise RuntimeError("CUDA error")
        return {"name": name}

    monkeypatch.setattr(gpu, "speed", speed)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path), "--only", "speed"])
    with pytest.raises(SystemExit, match="1"):
        gpu.main()
    assert "simclr, ResNet-50 failed: RuntimeError('CUDA error')" in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
    assert [line["result"]["name"] for line in lines] == [name for name in gpu.SPEED if name != "simclr, ResNet-50"]


def test_every_cell_of_speed_is_a_recipe_at_both_sizes() -> None:
    for name, (recipe, _) in gpu.SPEED.items():
        large, small = (Recipe.load(recipe).override(gpu.keys_of(name, rehearsal)) for rehearsal in (False, True))
        assert (large.images.size, large.training.precision) == (224, "bf16")
        assert (small.images.size, small.sampling.batch_size, small.training.precision) == (32, 8, "fp32")
        assert small.encoder.backbone in ("r18w32", "unet8")
        assert (small.sampling.chunk is None) == (large.sampling.chunk is None)
        assert (small.sampling.participants is None) == (large.sampling.participants is None)


def test_every_study_of_the_evidence_has_its_tier_and_a_rehearsal() -> None:
    for name, _, tier in gpu.EVIDENCE:
        module = importlib.import_module(name)
        studies = [each for each in vars(module).values() if isinstance(each, study.Study)]
        assert studies, name
        assert all({tier, "rehearsal"} <= set(each.tiers) for each in studies), name
