"""Decoders that keep Python's lock: each thread of a pool has a process, and answers and errors are those without."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom.data import get_testdata_file

from bolus.data.cohort.cohort import Cohort
from bolus.data.images.cache import build_store
from bolus.data.images.preprocessing import Preprocessing
from bolus.data.images.sources import in_threads
from bolus.data.pixels import apart
from bolus.data.pixels.apart import ALONE, Apart, call_apart
from bolus.errors import ImageError


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(apart, "ALONE", 0)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Apart]:
    """The pools that were made."""
    found: list[Apart] = []
    begin = Apart.__init__
    monkeypatch.setattr(Apart, "__init__", lambda self: (begin(self), found.append(self))[0])
    return found


def test_a_few_calls_are_made_here_and_the_others_in_a_process_for_each_thread(
    monkeypatch: pytest.MonkeyPatch, opened: list[Apart]
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    found = list(in_threads(lambda _: call_apart(os.getpid), range(ALONE + 40)))
    assert found.count(os.getpid()) == ALONE
    (pool,) = opened
    assert set(found) - {os.getpid()} == {each.pid for each in pool._opened}
    assert 1 <= len(pool._opened) <= 2
    assert all(each.poll() is not None for each in pool._opened), "none outlives its pool"


def test_one_core_and_no_pool_need_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "ALONE", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert set(in_threads(lambda _: call_apart(os.getpid), range(4))) == {os.getpid()}
    assert call_apart(os.getpid) == os.getpid()


def test_errors_are_those_without(two_cores: None) -> None:
    with pytest.raises(ValueError, match="invalid literal for int"):
        list(in_threads(lambda text: call_apart(int, text), ["1", "x"]))


def test_what_a_decoder_prints_is_no_answer(two_cores: None) -> None:
    assert list(in_threads(lambda text: call_apart(os.write, 1, text), [b"a warning", b"x"])) == [9, 1]


def test_a_process_that_ends_costs_its_own_image_alone(two_cores: None) -> None:
    def call(number: int) -> str:
        try:
            return str(call_apart(os._exit, 3) if number == 1 else call_apart(abs, -number))
        except ImageError as error:
            return str(error)

    found = list(in_threads(call, range(6)))
    assert found == ["0", "damaged pixels: the decoder came to a sudden end", "2", "3", "4", "5"]


@pytest.mark.parametrize("name", ["JPEG2000.dcm", "MR_small_RLE.dcm", "emri_small_jpeg_ls_lossless.dcm"])
def test_pixels_are_those_that_threads_decode(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[Apart]
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    source = Path(get_testdata_file(name, download=False))
    frames = 3 if name.startswith("emri") else 1
    lines = ["image,patient,frame"]
    for number in range(4):
        data = bytearray(source.read_bytes())
        data[:4] = number.to_bytes(4, "little")  # of the preamble, so that no two files are the same
        (tmp_path / f"{number}.dcm").write_bytes(data)
        lines += [f"{number}.dcm,{number},{frame if frames > 1 else ''}" for frame in range(frames)]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    cohort = Cohort.open(tmp_path / "table.csv", roles={"order": "frame"})
    values = []
    for alone in (10**6, 1):
        monkeypatch.setattr(apart, "ALONE", alone)
        store = build_store(cohort, Preprocessing(24), folder=tmp_path / "cache")
        values.append(store.gather(np.arange(len(cohort))).values)
        shutil.rmtree(tmp_path / "cache")
    assert np.array_equal(*values)
    assert sum(len(pool._opened) for pool in opened) >= 1
