"""Decoders that keep Python's lock: each thread of a pool has a process, and answers and errors are those without."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom.data import get_testdata_file

from bolus import apart
from bolus.apart import ALONE, Apart, ApartPool, CrashError, call_apart
from bolus.data.cohort.cohort import Cohort
from bolus.data.images import sources
from bolus.data.images.cache import build_store
from bolus.data.images.preprocessing import Preprocessing
from bolus.data.images.sources import in_threads
from bolus.data.pixels import dicom_pixels
from bolus.data.readers.readers import read_image
from bolus.errors import ImageError


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "count_cores", lambda: 2)
    monkeypatch.setattr(apart, "ALONE", 0)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[ApartPool]:
    """The pools that were made."""
    found: list[ApartPool] = []
    begin = ApartPool.__init__
    monkeypatch.setattr(ApartPool, "__init__", lambda self, **given: (begin(self, **given), found.append(self))[0])
    return found


def end_elsewhere(pid: int, code: int) -> int:
    """Ends any process but this one."""
    if os.getpid() != pid:
        os._exit(code)
    return code


def test_a_few_calls_are_made_here_and_the_others_in_a_process_for_each_thread(
    monkeypatch: pytest.MonkeyPatch, opened: list[ApartPool]
) -> None:
    monkeypatch.setattr(sources, "count_cores", lambda: 2)
    found = list(in_threads(lambda _: call_apart(os.getpid), range(ALONE + 40)))
    assert found.count(os.getpid()) == ALONE
    (pool,) = opened
    assert set(found) - {os.getpid()} == {each._process.pid for each in pool._opened}
    assert 1 <= len(pool._opened) <= 2
    assert all(each.ended for each in pool._opened), "none outlives its pool"


def test_one_core_and_no_pool_need_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "ALONE", 0)
    monkeypatch.setattr(sources, "count_cores", lambda: 1)
    assert set(in_threads(lambda _: call_apart(os.getpid), range(4))) == {os.getpid()}
    assert call_apart(os.getpid) == os.getpid()


def test_errors_are_those_without(two_cores: None) -> None:
    with pytest.raises(ValueError, match="invalid literal for int"):
        list(in_threads(lambda text: call_apart(int, text), ["1", "x"]))


def test_what_a_decoder_prints_is_no_answer(two_cores: None) -> None:
    assert list(in_threads(lambda text: call_apart(os.write, 1, text), [b"a warning", b"x"])) == [9, 1]


def test_a_crash_costs_its_own_image_alone(two_cores: None) -> None:
    def call(number: int) -> str:
        try:
            return str(call_apart(os.abort) if number == 3 else call_apart(abs, -number))
        except CrashError as error:
            return str(error)

    assert list(in_threads(call, range(8))) == ["0", "1", "2", "abort crashed", "4", "5", "6", "7"]


def test_a_crash_in_a_decoder_is_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise CrashError("_read_words crashed")

    monkeypatch.setattr(dicom_pixels, "call_apart", crash)
    with pytest.raises(ImageError, match="damaged pixels: the decoder crashed"):
        read_image(Path(get_testdata_file("JPEG2000.dcm", download=False)))


def test_what_a_process_that_was_ended_owes_is_done_here(two_cores: None) -> None:
    found = list(in_threads(lambda code: call_apart(end_elsewhere, os.getpid(), code), [1, 2, 3, 4]))
    assert found == [1, 2, 3, 4]


def test_without_processes_all_is_done_here(
    two_cores: None, monkeypatch: pytest.MonkeyPatch, opened: list[ApartPool]
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert set(in_threads(lambda _: call_apart(os.getpid), range(6))) == {os.getpid()}
    assert opened[0]._opened == []
    monkeypatch.setattr(sys, "executable", shutil.which("true"))  # one that ends at once
    assert set(in_threads(lambda _: call_apart(os.getpid), range(6))) == {os.getpid()}
    assert len(opened[1]._opened) <= 2, "none is tried again"


def test_nothing_of_the_folder_where_one_stands_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "signal.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    process = Apart()
    assert process.call(abs, -2) == 2
    process.end()


@pytest.mark.parametrize("name", ["JPEG2000.dcm", "MR_small_RLE.dcm", "emri_small_jpeg_ls_lossless.dcm"])
def test_pixels_are_those_that_threads_decode(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[ApartPool]
) -> None:
    monkeypatch.setattr(sources, "count_cores", lambda: 2)
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
