"""Damaged and hostile files: refused or read rightly, never a crash, a hang or an exception that is not of bolus."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
import pytest

from bolus.data.cohort.cohort import Cohort
from bolus.data.readers.frames import read_frames
from bolus.data.readers.readers import read_image
from bolus.data.readers.room import Room, limit
from bolus.errors import BolusError, ImageError, TooLargeError, UsageError
from bolus.run import Run
from hostile import intact_files, make_files, picture
from hostile_reading import GIB, LIMIT, Outcome, figures_of, read_hostile

QUICK = 90  # files of make test
TOLD = ("png", "png 16", "png colour", "nifti-gz", "tiff tiff_adobe_deflate")  # formats with a checksum

Call = Callable[..., tuple[int, str]]


def hold(outcomes: list[Outcome]) -> None:
    """What must be true of any set of hostile files."""
    bad = [each for each in outcomes if each.said not in ("read", "refused")]
    assert not bad, bad
    figures = figures_of(outcomes)
    assert figures["worst_seconds"] < LIMIT, max(outcomes, key=lambda each: each.seconds)
    assert figures["worst_gib"] < 2, max(outcomes, key=lambda each: each.peak)
    for each in outcomes:
        if each.file.attack == "intact":
            assert each.said == "read", each
        if each.file.kind == "path" or each.file.attack.startswith("bomb of 3"):
            assert each.said == "refused", each
        if each.file.kind in TOLD and each.said == "read":
            assert each.changed == 0, each


def test_hostile_files_are_refused_or_read(tmp_path: Path) -> None:
    files = make_files(tmp_path, seed=1, bombs=False)
    outcomes = read_hostile([*files[:: len(files) // QUICK], *files[-5:]])
    hold(outcomes)
    assert len(outcomes) >= QUICK


@pytest.mark.slow
def test_all_hostile_files_are_refused_or_read(tmp_path: Path) -> None:
    outcomes = read_hostile(make_files(tmp_path))
    hold(outcomes)
    assert len(outcomes) > 400
    of_jpeg = [each for each in outcomes if each.file.kind == "jpeg" and each.file.attack in ("flipped", "zeroed")]
    assert sum(each.said == "refused" for each in of_jpeg) > len(of_jpeg) / 2


def test_a_size_above_the_budget_is_refused_and_allowed_by_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    PIL.Image.fromarray(np.zeros((1000, 2000), np.uint8)).save(path)
    monkeypatch.setenv("BOLUS_IMAGE_GIB", "0.01")
    with pytest.raises(TooLargeError, match=r"^a\.png: expected at most 0\.01 GiB .* BOLUS_IMAGE_GIB=0\.1$"):
        read_image(path)
    monkeypatch.setenv("BOLUS_IMAGE_GIB", "0.1")
    assert read_image(path).array.shape == (1, 1000, 2000)
    monkeypatch.setenv("BOLUS_IMAGE_GIB", "much")
    with pytest.raises(UsageError, match="BOLUS_IMAGE_GIB: expected a positive number"):
        read_image(path)


def test_large_images_that_hospitals_have_are_read_by_default(tmp_path: Path) -> None:
    from bolus.data.readers.raster import decoded_size

    for mode, size in (("L", (10_000, 10_000)), ("RGB", (10_000, 10_000)), ("I;16", (5_000, 4_000))):
        assert decoded_size(_Header(mode, size), [0])[0] < limit(), mode


class _Header:
    """What Pillow knows of an image before it decodes."""

    format = "JPEG"

    def __init__(self, mode: str, size: tuple[int, int]) -> None:
        self.mode, self.size = mode, size

    def getexif(self) -> dict[int, int]:
        return {}

    def getbands(self) -> tuple[str, ...]:
        return PIL.Image.new(self.mode, (1, 1)).getbands()


def test_threads_wait_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOLUS_IMAGE_GIB", "1")
    began = threading.Event()
    order: list[str] = []

    def second() -> None:
        began.set()
        with Room() as room:
            room.claim(GIB // 2, "half")
            order.append("second")

    with Room() as room:
        room.claim(3 * GIB // 4, "three quarters")
        room.claim(GIB // 2, "more of the same thread, which never waits")
        other = threading.Thread(target=second)
        other.start()
        began.wait()
        time.sleep(0.05)
        order.append("first")
    other.join(10)
    assert order == ["first", "second"]


def test_a_frame_that_needs_too_much_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(intact_files(np.random.default_rng(0))["dicom frames"])
    whole = list(read_frames(path, [0, 1, 2]))
    monkeypatch.setenv("BOLUS_IMAGE_GIB", "0.0002")  # one frame, not three
    apart = list(read_frames(path, [0, 1, 2]))
    for one, other in zip(whole, apart, strict=True):
        assert not isinstance(one, BolusError)
        assert not isinstance(other, BolusError)
        assert np.array_equal(one.array, other.array)


def test_a_checksum_of_gzip_is_looked_at_for_one_slice_too(tmp_path: Path) -> None:
    data = bytearray(intact_files(np.random.default_rng(0))["nifti-gz"])
    data[-6] ^= 1  # of the checksum itself
    path = tmp_path / "a.nii.gz"
    path.write_bytes(data)
    for frame in (None, 0):
        with pytest.raises(ImageError, match="CRC"):
            read_image(path, frame=frame)
    assert all(isinstance(each, BolusError) for each in read_frames(path, [0, 1, 2]))


def table_with(folder: Path, paths: list[str]) -> pd.DataFrame:
    """Ten good images, one a patient, and rows with these paths."""
    rng = np.random.default_rng(0)
    for number in range(10):
        PIL.Image.fromarray(picture(rng)).save(folder / f"{number}.png")
    names = [*(f"{number}.png" for number in range(10)), *paths]
    patients = [f"P{number}" for number in range(len(names))]
    return pd.DataFrame({"image": pd.Series(names, dtype=object), "patient": patients})


def test_paths_that_cannot_be_are_quarantined_and_the_rest_goes_on(tmp_path: Path, call_bolus: Call) -> None:
    from bolus.data.images.cache import Preprocessing, build_store

    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to("loop.png")
    odd = ["x" * 5000 + ".png", "a\0b.png", "pipe.png", "zero.png", "loop.png", "[/x].png", "\udcff.png"]
    frame = table_with(tmp_path, odd)
    cohort = Cohort.open(frame, root=str(tmp_path))
    store = build_store(cohort, Preprocessing(16), folder=tmp_path / "cache")
    assert store.readable.tolist() == [True] * 10 + [False] * len(odd)
    assert [each.row for each in store.quarantined] == list(range(10, 10 + len(odd)))
    reasons = " ".join(each.reason for each in store.quarantined)
    assert "found a pipe" in reasons
    assert "found a device" in reasons
    frame[:-1].to_csv(tmp_path / "t.csv", index=False)
    for words in (
        ["check", tmp_path / "t.csv", "-o", tmp_path / "c.yaml"],
        ["scan", tmp_path, "-o", tmp_path / "s.yaml"],
    ):
        code, said = call_bolus(*words)
        assert code in (0, 1), said
        assert "Traceback" not in said


NESTED = "a: " + "[" * 20_000
LAUGHS = "x0: &x0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize("text", [NESTED, LAUGHS, "a: 2024-99-99", "a: &a [*a]", "a: \0", "1: " + "9" * 5000])
def test_yaml_that_is_meant_to_break_is_an_error(
    tmp_path: Path, call_bolus: Call, tiny_cohort: Path, text: str
) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_text(text)
    train = ["pretrain", tiny_cohort, "-o", tmp_path / "r", "--recipe"]
    for words in (["check", path, "-o", tmp_path / "c.yaml"], [*train, path], [*train, "simclr", f"name={text[3:]}"]):
        code, said = call_bolus(*words)
        assert code in (1, 2), (words, said)
        assert "Traceback" not in said


@pytest.mark.parametrize(
    "override",
    ["training.seed=" + "9" * 30, "training.seed=-1", "images.size=" + "9" * 12, "sampling.batch_size=" + "9" * 20,
     "training.epochs=" + "9" * 30, "optimizer.lr=1e400", "images.views=" + "9" * 12],
)  # fmt: skip
def test_numbers_beyond_all_bounds_are_an_error(
    tmp_path: Path, call_bolus: Call, tiny_cohort: Path, override: str
) -> None:
    code, said = call_bolus("pretrain", tiny_cohort, "--recipe", "simclr", "-o", tmp_path / "r", override)
    assert code in (1, 2), said
    assert "error:" in said


def test_lines_of_metrics_that_a_crash_tore_are_left_out_and_told(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.append({"kind": "train", "step": 1})
    with run.metrics_path.open("ab") as file:
        file.write(b'{"kind": "train", "st\xff\xfe')
    assert [line["step"] for line in run.metrics()] == [1]
    assert run.torn == ["1 line of metrics.jsonl cannot be read and left out, the first is line 2"]
    run.rewind(1)
    assert run.torn == []


def test_json_that_is_meant_to_break_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"a": 1})[:-1] + ', "b": ' + "[" * 100_000)
    with pytest.raises(BolusError, match=r"run\.json: damaged: it is nested too deeply"):
        _ = Run(tmp_path).record
