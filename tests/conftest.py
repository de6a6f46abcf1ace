"""Fixtures that several test files share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

import bolus
from bolus.cli import main
from bolus.run import Run
from small import SMALL

torch.set_num_threads(1)
os.environ["COLUMNS"] = "100"  # text folds as in a wide terminal, wherever the tests run


SLOW = Path(__file__).with_name("slow.txt")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that slow.txt names; a name of none is an error where all are collected."""
    lines = SLOW.read_text(encoding="utf-8").splitlines()
    named = {f"tests/{line}" for line in lines if not line.startswith("#")}
    for item in items:
        if item.nodeid in named:
            named.remove(item.nodeid)
            item.add_marker(pytest.mark.slow)
    if named and [*config.args] == [str(path) for path in config.getini("testpaths")]:
        raise pytest.UsageError(f"slow.txt names tests that are not there: {', '.join(sorted(named))}")


@pytest.fixture
def shared_data() -> Path:
    """The public research sets beside the checkout; the test is skipped where they are absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"research sets absent: expected them in {folder}")
    return folder


@pytest.fixture
def call_bolus(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """The command line in this process: words -> exit code, and what was printed."""

    def call(*words: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["bolus", *map(str, words)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        shown = capfd.readouterr()
        return code, shown.out + shown.err

    return call


@pytest.fixture
def tiny_cohort(tmp_path: Path) -> Path:
    """A table of 60 small 8-bit images of 20 patients, three visits each; a bright square marks the label."""
    return write_tiny(tmp_path / "tiny")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the small recipe on such a cohort, for `trained_copy`."""
    folder = tmp_path_factory.mktemp("trained")
    cohort = write_tiny(folder / "tiny")
    return bolus.pretrain(cohort, recipe=deepcopy(SMALL), out=folder / "run", cache=folder / "cache", quiet=True).folder


@pytest.fixture
def trained_copy(trained: Path, tmp_path: Path) -> Run:
    """That run in the test's own folder, on whose `tiny_cohort` it might have been trained."""
    shutil.copytree(trained.parent / "cache", tmp_path / "cache")
    return Run(shutil.copytree(trained, tmp_path / "run"))


def write_tiny(folder: Path) -> Path:
    """The files of `tiny_cohort`."""
    rng = np.random.default_rng(0)
    (folder / "img").mkdir(parents=True)
    lines = ["image,patient,visit,days,sick,severity,sex"]
    for patient in range(20):
        sick, base = patient % 2, rng.integers(40, 90, (24, 24))
        for visit in range(3):
            pixels = base + rng.integers(0, 25, (24, 24))
            if sick:
                pixels[6:14, 6:14] += 90
            name = f"img/p{patient}_{visit}.png"
            PillowImage.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
            severity = f"{sick * 3 + visit * 0.5}" if visit else ""
            label, sex = "yes" if sick else "no", "FM"[patient % 3 == 0]
            lines.append(f"{name},P{patient:03d},{visit},{visit * 90},{label},{severity},{sex}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    (folder / "cohort.yaml").write_text(
        "table: table.csv\nroles: {time: days, 'label:sick': sick, 'score:severity': severity}\n"
        "split: {seed: 1, val: 0.2, test: 0.3}\n"
    )
    return folder / "cohort.yaml"


@pytest.fixture
def small_recipe() -> dict[str, object]:
    """MLVICX small enough for a test; each test has its own."""
    return deepcopy(SMALL)
