"""The image cache: decoded once and found by content, exact to one quantisation step, honest about what it left out."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from PIL import Image as PillowImage
from pydicom.data import get_testdata_file

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.data.images import cache, shards, sources
from bolus.data.images.cache import ImageStore, Preprocessing, build_store, cache_folder, reason_without_name
from bolus.data.images.shrinking import shrink
from bolus.data.pixels.greys import reading_of
from bolus.data.pixels.image import Image, Range
from bolus.data.readers import frames
from bolus.data.readers.own import NONE
from bolus.errors import CohortError, ImageError
from damage import flip_bit, zero

SIZE = 16  # of the encoder; cached at 20


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BOLUS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def noise(seed: int, high: int = 256, shape: tuple[int, ...] = (20, 20)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape).astype(np.uint8 if high <= 256 else np.uint16)


def table(folder: Path, names: Sequence[str], **columns: Any) -> Cohort:
    frame = pd.DataFrame({"image": list(names), "patient": [f"P{row}" for row in range(len(names))], **columns})
    return Cohort(frame, CohortSpec(table="table.csv"), folder)


def write(folder: Path, pictures: Sequence[np.ndarray], **columns: Any) -> Cohort:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"Surname{row}.png" for row in range(len(pictures))]
    for name, pixels in zip(names, pictures, strict=True):
        PillowImage.fromarray(pixels).save(folder / name)
    return table(folder, names, **columns)


def units(store: ImageStore, rows: Sequence[int] | None = None) -> np.ndarray:
    return store.gather(np.array(rows if rows is not None else np.flatnonzero(store.readable))).unit().numpy()


def unit_of(pixels: np.ndarray, tmp_path: Path, **preprocessing: Any) -> np.ndarray:
    """One image through the cache, `[C, S, S]`."""
    return units(build_store(write(tmp_path / "one", [pixels]), Preprocessing(SIZE, **preprocessing)))[0]


def refuse(*_: Any, **__: Any) -> Image:
    raise AssertionError("an image was decoded")


# Found by content ------------------------------------------------------------


def test_second_build_decodes_nothing(tiny_cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = Cohort.open(tiny_cohort)
    steps: list[tuple[int, int]] = []
    first = build_store(cohort, Preprocessing(SIZE), on_progress=lambda done, total: steps.append((done, total)))
    assert steps == [(done, 60) for done in range(1, 61)]
    monkeypatch.setattr(frames, "read_image", refuse)
    second = build_store(Cohort.open(tiny_cohort), Preprocessing(SIZE), on_progress=refuse)
    np.testing.assert_array_equal(units(first), units(second))
    assert first.readable.all()
    assert first.quarantined == []


def test_moved_and_renamed_copies_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = write(tmp_path / "a", [noise(seed) for seed in range(4)])
    first = units(build_store(cohort, Preprocessing(SIZE)))
    (tmp_path / "b").mkdir()
    for row, name in enumerate(("w", "x", "y", "z")):
        shutil.copy(cohort.image_path(row), tmp_path / "b" / f"{name}.png")
    monkeypatch.setattr(frames, "read_image", refuse)
    moved = units(build_store(table(tmp_path / "b", ["z.png", "x.png", "w.png", "y.png"]), Preprocessing(SIZE)))
    np.testing.assert_array_equal(moved, first[[3, 1, 0, 2]])


def test_a_touched_or_moved_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = write(tmp_path / "a", [noise(0), noise(1), noise(0)])  # one of them twice
    first = units(build_store(cohort, Preprocessing(SIZE)))
    for row in range(3):
        os.utime(cohort.image_path(row), (row, row))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    elsewhere = table(tmp_path / "b", [f"Surname{row}.png" for row in range(3)])
    original, hashed = sources._digest, []
    monkeypatch.setattr(sources, "_digest", lambda path: hashed.append(path.parent.name) or original(path))
    for _ in range(5):
        np.testing.assert_array_equal(units(build_store(cohort, Preprocessing(SIZE))), first)
        np.testing.assert_array_equal(units(build_store(elsewhere, Preprocessing(SIZE))), first)
    assert sorted(hashed) == ["a"] * 3 + ["b"] * 3


def test_an_unreadable_file_is_tried_again_but_not_hashed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = write(tmp_path / "a", [noise(0), noise(1), noise(2)])
    cohort.image_path(1).write_bytes(b"damaged")
    assert len(build_store(cohort, Preprocessing(SIZE)).quarantined) == 1
    monkeypatch.setattr(sources, "_digest", refuse)
    original, tried = frames.read_image, []
    monkeypatch.setattr(frames, "read_image", lambda path, **_: tried.append(path) or original(path))
    assert [item.row for item in build_store(cohort, Preprocessing(SIZE)).quarantined] == [1]
    assert [path.name for path in tried] == ["Surname1.png"]


def test_a_moved_set_opens_from_a_cache_that_may_only_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = write(tmp_path / "a", [noise(0), noise(1)])
    first = units(build_store(cohort, Preprocessing(SIZE)))
    os.utime(cohort.image_path(0), (0, 0))

    def full(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shards, "save_array", full)
    np.testing.assert_array_equal(units(build_store(cohort, Preprocessing(SIZE))), first)


def test_opening_a_cached_cohort_does_no_work_per_row(tiny_cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_store(Cohort.open(tiny_cohort), Preprocessing(SIZE))
    cohort, calls = Cohort.open(tiny_cohort), []
    for name in ("image_path", "frame"):
        monkeypatch.setattr(Cohort, name, refuse)
    original = Path.resolve
    monkeypatch.setattr(Path, "resolve", lambda path, strict=False: calls.append(path) or original(path, strict))
    np.testing.assert_array_equal(units(build_store(cohort, Preprocessing(SIZE))), units(first))
    assert len(calls) < 5


@pytest.mark.parametrize("root", [None, "img", "."])
def test_sources_are_what_the_cohort_names_one_by_one(tmp_path: Path, root: str | None) -> None:
    names = ["a.tif", "b.png", "a.tif", str(tmp_path / "far" / "c.png"), "a.tif"]
    columns = {"image": names, "patient": list("pqpqp"), "order": ["2", None, "0", "5", "1"]}
    cohort = Cohort(pd.DataFrame(columns), CohortSpec(table="table.csv", root=root), tmp_path)
    rows = np.array([4, 1, 3, 0])
    found = sources.find_sources(cohort, rows)
    assert [Path(found.paths[file]) for file in found.file] == [cohort.image_path(row).resolve() for row in rows]
    assert [None if frame < 0 else frame for frame in found.frame] == [cohort.frame(row) for row in rows]


def test_a_file_with_new_pixels_is_decoded_again(tmp_path: Path) -> None:
    cohort = write(tmp_path / "a", [noise(0), noise(1)])
    before = units(build_store(cohort, Preprocessing(SIZE)))
    write(tmp_path / "a", [noise(0), noise(2, shape=(20, 21))])
    after = units(build_store(cohort, Preprocessing(SIZE)))
    np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(before[1] - after[1]).max() > 0.1


def test_equal_files_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Path] = []
    original = frames.read_image

    def counted(path: Path, frame: int | None = None, **_: Any) -> Image:
        decoded.append(path)
        return original(path, frame=frame)

    monkeypatch.setattr(frames, "read_image", counted)
    store = build_store(write(tmp_path / "a", [noise(0), noise(1), noise(0)]), Preprocessing(SIZE))
    assert len(decoded) == 2
    found = units(store)
    np.testing.assert_array_equal(found[0], found[2])


def test_what_decides_the_pixels_decides_the_folder() -> None:
    plain = Preprocessing(64)
    assert plain.cached_size == 80
    others = [Preprocessing(128), Preprocessing(64, channels=3), Preprocessing(64, fit="crop")]
    assert len({each.key for each in [plain, *others]}) == 4
    assert Preprocessing(64, ranges={"MR": (0, 4095)}).key == plain.key  # ranges are applied when images are gathered


def test_preprocessing_survives_json() -> None:
    contract = Preprocessing(64, 3, "crop", {"MR": (0.0, 4095.0)})
    again = Preprocessing(**json.loads(json.dumps(contract.to_json())))
    assert again.to_json() == contract.to_json()
    assert again.key == contract.key


def test_the_cache_lies_where_the_environment_says(private_cache: Path, tmp_path: Path) -> None:
    assert cache_folder() == private_cache
    cohort = write(tmp_path / "a", [noise(0)])
    build_store(cohort, Preprocessing(SIZE), folder=tmp_path / "other")
    assert not private_cache.exists()
    assert list((tmp_path / "other" / Preprocessing(SIZE).key).glob("*.npy"))


# Interruption ------------------------------------------------------------


def test_a_shard_without_its_record_is_not_seen(tmp_path: Path, private_cache: Path) -> None:
    cohort = write(tmp_path / "a", [noise(seed) for seed in range(3)])
    folder = private_cache / Preprocessing(SIZE).key
    folder.mkdir(parents=True)
    np.save(folder / "torn.npy", np.zeros((3, 1, 20, 20), np.uint8))
    (folder / "half.tmp").write_bytes(b"half a shard")
    (folder / "half.records").write_bytes(b"half a record")
    (folder / "half.seen").write_bytes(b"\x93NUMPY")
    store = build_store(cohort, Preprocessing(SIZE))
    np.testing.assert_allclose(units(store)[:, 0], np.stack([noise(seed) for seed in range(3)]) / 255, atol=1e-6)


@pytest.mark.parametrize("suffix", [".npy", ".records"])
def test_an_interrupted_write_leaves_nothing_visible(
    tmp_path: Path, private_cache: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    cohort = write(tmp_path / "a", [noise(seed) for seed in range(3)])
    original = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        if target.suffix == suffix:
            raise KeyboardInterrupt
        return original(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_store(cohort, Preprocessing(SIZE))
    assert not list(private_cache.rglob("*.records"))
    store = build_store(cohort, Preprocessing(SIZE))
    np.testing.assert_allclose(units(store)[:, 0], np.stack([noise(seed) for seed in range(3)]) / 255, atol=1e-6)


@pytest.mark.parametrize("stopped_at", ["Surname3.png", "Surname0.png"])
def test_what_was_decoded_before_an_interruption_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: str
) -> None:
    monkeypatch.setattr(sources.os, "cpu_count", lambda: 1)
    monkeypatch.setattr(shards, "PART_BYTES", 2 * 400)
    cohort = write(tmp_path / "a", [noise(seed) for seed in range(5)])
    original, decoded = frames.read_image, []

    def stops(path: Path, frame: int | None = None, **_: Any) -> Image:
        if path.name == stopped_at:
            raise KeyboardInterrupt
        return counted(path, frame=frame)

    def counted(path: Path, frame: int | None = None, **_: Any) -> Image:
        decoded.append(path.name)
        return original(path, frame=frame)

    with monkeypatch.context() as patch:
        patch.setattr(frames, "read_image", stops)
        with pytest.raises(KeyboardInterrupt):
            build_store(cohort, Preprocessing(SIZE))
    monkeypatch.setattr(frames, "read_image", counted)
    monkeypatch.setattr(sources, "_digest", refuse)  # nor is a file hashed again
    store = build_store(cohort, Preprocessing(SIZE))
    assert sorted(decoded) == [f"Surname{row}.png" for row in range(5)]  # each once
    np.testing.assert_allclose(units(store)[:, 0], np.stack([noise(seed) for seed in range(5)]) / 255, atol=1e-6)


def test_shards_are_limited_in_bytes(tmp_path: Path, private_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "PART_BYTES", 1000)  # two images of 400 bytes, or one of 800
    pictures = [noise(seed, 4096 if seed > 4 else 256) for seed in range(7)]
    store = build_store(write(tmp_path / "a", pictures), Preprocessing(SIZE))
    lengths = sorted((np.load(path).dtype.itemsize, len(np.load(path))) for path in private_cache.rglob("*.npy"))
    assert lengths == [(1, 1), (1, 2), (1, 2), (2, 1), (2, 1)]
    assert all(path.stat().st_size == 128 + np.load(path).nbytes for path in private_cache.rglob("*.npy"))
    expected = [picture / (4095 if row > 4 else 255) for row, picture in enumerate(pictures)]
    np.testing.assert_allclose(units(store)[:, 0], np.stack(expected), atol=1e-5)


def test_memory_does_not_grow_with_the_cohort(tmp_path: Path) -> None:
    import tracemalloc

    folder, number = tmp_path / "a", 200
    folder.mkdir()
    for row in range(number):
        PillowImage.fromarray(np.full((4, 4), row, np.uint8)).save(folder / f"{row}.png")
    cohort = table(folder, [f"{row}.png" for row in range(number)])
    build_store(cohort, Preprocessing(8))  # what is imported or cached at first
    tracemalloc.start()
    store = build_store(cohort, Preprocessing(160, fit="stretch"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < number * 200 * 200 / 4  # of the 8 MB that the images take
    np.testing.assert_allclose(units(store)[:, 0, 0, 0], np.arange(number) / 255, atol=1e-6)


@pytest.mark.parametrize("harm", ["missing", "short", "empty"])
def test_a_record_whose_images_are_lost_is_built_again(tmp_path: Path, private_cache: Path, harm: str) -> None:
    cohort = write(tmp_path / "a", [noise(seed) for seed in range(3)])
    before = units(build_store(cohort, Preprocessing(SIZE)))
    (shard,) = private_cache.rglob("*.npy")
    if harm == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[: -1 if harm == "short" else 0])
    np.testing.assert_array_equal(units(build_store(cohort, Preprocessing(SIZE))), before)


def test_leftovers_are_removed_after_a_day(tmp_path: Path, private_cache: Path) -> None:
    cohort = write(tmp_path / "a", [noise(0)])
    build_store(cohort, Preprocessing(SIZE))
    folder = private_cache / Preprocessing(SIZE).key
    kept = {path.name for path in folder.iterdir()}
    yesterday = time.time() - 90_000
    for name in ("old.npy.tmp", "old.records.tmp", "old.npy", "new.npy.tmp", "new.npy"):
        (folder / name).write_bytes(b"")
    for path in folder.iterdir():
        if not path.name.startswith("new"):
            os.utime(path, (yesterday, yesterday))
    build_store(cohort, Preprocessing(SIZE))
    assert {path.name for path in folder.iterdir()} == kept | {"new.npy.tmp", "new.npy"}


def test_two_that_build_one_cache_at_once_both_finish(tmp_path: Path) -> None:
    cohort = write(tmp_path / "a", [noise(seed) for seed in range(60)])
    fork = multiprocessing.get_context("fork")
    builders = [fork.Process(target=build_store, args=(cohort, Preprocessing(SIZE))) for _ in range(3)]
    for each in builders:
        each.start()
    for each in builders:
        each.join(60)
    assert [each.exitcode for each in builders] == [0, 0, 0]
    store = build_store(cohort, Preprocessing(SIZE), on_progress=refuse)  # nothing is left to decode
    np.testing.assert_allclose(units(store)[:, 0], np.stack([noise(seed) for seed in range(60)]) / 255, atol=1e-6)


# Damage ------------------------------------------------------------


def filled(tmp_path: Path, number: int = 6, high: int = 256) -> tuple[Cohort, np.ndarray]:
    """A cohort whose images lie in the cache, and their pixels."""
    cohort = write(tmp_path / "a", [noise(seed, high) for seed in range(number)])
    return cohort, units(build_store(cohort, Preprocessing(SIZE)))


def test_an_image_that_is_decoded_again_is_read_as_its_own_modality_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = write(tmp_path / "a", [noise(0), noise(1)])
    both = Cohort(cohort.table.assign(modality=["DX", "US"]), CohortSpec(table="t.csv"), cohort.folder)
    asked = []
    read = cache.read_as
    monkeypatch.setattr(cache, "read_as", lambda path, at, how, own: asked.append(how) or read(path, at, how, own))
    for row in (0, 1):
        cache._decode_row(both, Preprocessing(SIZE, ranges={"DX": (0, 255)}, stated=["DX"]), NONE, row)
    assert asked == [reading_of("DX", ["DX"]), reading_of("US", ["DX"])]
    assert asked[0] != asked[1]


@pytest.mark.parametrize("high", [256, 4096])
@pytest.mark.parametrize("harm", ["bit", "zeros"])
def test_a_damaged_image_is_decoded_again_and_told(
    tmp_path: Path, private_cache: Path, caplog: pytest.LogCaptureFixture, harm: str, high: int
) -> None:
    cohort, before = filled(tmp_path, high=high)
    (shard,) = private_cache.rglob("*.npy")
    rng = np.random.default_rng(0)
    if harm == "bit":
        flip_bit(shard, rng, start=128)
    else:
        zero(shard, rng, 600, start=128)
    store = build_store(cohort, Preprocessing(SIZE))
    for _ in range(2):
        np.testing.assert_array_equal(units(store), before)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == len(set(told)) >= 1
    assert all("decoded again" in each for each in told)
    caplog.clear()
    again = build_store(cohort, Preprocessing(SIZE))  # which decodes into a shard of its own
    np.testing.assert_array_equal(units(again), before)
    assert not caplog.records


@pytest.mark.parametrize("suffix", [".npy", ".records", ".seen", ".quantiles"])
def test_no_flipped_bit_of_any_cache_file_changes_a_pixel(tmp_path: Path, private_cache: Path, suffix: str) -> None:
    cohort, before = filled(tmp_path, high=4096)
    paths = sorted(private_cache.rglob("*"))
    whole = {path: path.read_bytes() for path in paths if path.is_file()}
    (path,) = (path for path in whole if path.suffix == suffix)
    for seed in range(20):
        flip_bit(path, np.random.default_rng(seed))
        np.testing.assert_array_equal(units(build_store(cohort, Preprocessing(SIZE))), before)
        for made in private_cache.rglob("*"):
            if made.is_file() and made not in whole:
                made.unlink()
        path.write_bytes(whole[path])


def test_a_damaged_image_whose_file_is_gone_is_an_error_and_the_next_time_quarantined(
    tmp_path: Path, private_cache: Path
) -> None:
    cohort, before = filled(tmp_path)
    (shard,) = private_cache.rglob("*.npy")
    content = bytearray(shard.read_bytes())
    content[128 + 2 * 400] ^= 1
    shard.write_bytes(content)
    store = build_store(cohort, Preprocessing(SIZE))
    row = int(np.argmin(np.abs(np.load(shard)[2] / 255 - before).max((1, 2, 3))))
    cohort.image_path(row).unlink()
    with pytest.raises(CohortError, match=rf"damaged, and cannot be decoded again[\s\S]*row {row + 1}: no such file"):
        units(store)
    assert [item.row for item in build_store(cohort, Preprocessing(SIZE)).quarantined] == [row]


def test_an_image_that_decodes_otherwise_now_does_not_take_the_place_of_a_damaged_one(
    tmp_path: Path, private_cache: Path
) -> None:
    cohort, _ = filled(tmp_path, number=1)
    (shard,) = private_cache.rglob("*.npy")
    flip_bit(shard, np.random.default_rng(0), start=128)
    store = build_store(cohort, Preprocessing(SIZE))
    PillowImage.fromarray(noise(9)).save(cohort.image_path(0))
    with pytest.raises(CohortError, match="not what it was"):
        units(store)


# Quarantine ------------------------------------------------------------


def test_unreadable_images_are_left_out_with_row_and_reason(tmp_path: Path) -> None:
    cohort = write(tmp_path / "a", [noise(seed) for seed in range(7)])
    cohort.image_path(1).write_bytes(b"")
    cohort.image_path(3).unlink()
    cohort.image_path(5).unlink()
    cohort.image_path(5).mkdir()
    store = build_store(cohort, Preprocessing(SIZE))
    assert [(item.row, item.reason) for item in store.quarantined] == [
        (1, "the file is empty"),
        (3, "the file cannot be opened: No such file or directory"),
        (5, "the file cannot be opened: expected a file, found a folder"),
    ]
    assert store.readable.tolist() == [True, False, True, False, True, False, True]
    np.testing.assert_allclose(units(store, [2])[0, 0], noise(2) / 255, atol=1e-6)
    with pytest.raises(AssertionError, match="quarantined"):
        store.gather(np.array([1]))


def test_a_mended_file_leaves_the_quarantine(tmp_path: Path) -> None:
    cohort = write(tmp_path / "a", [noise(seed) for seed in range(3)])
    cohort.image_path(1).write_bytes(b"damaged")
    assert len(build_store(cohort, Preprocessing(SIZE)).quarantined) == 1
    write(tmp_path / "a", [noise(seed) for seed in range(3)])
    assert build_store(cohort, Preprocessing(SIZE)).quarantined == []


def test_more_than_half_unreadable_is_an_error_without_names(tmp_path: Path) -> None:
    cohort = write(tmp_path / "a", [noise(seed) for seed in range(4)])
    cohort.image_path(0).write_bytes(b"damaged")
    cohort.image_path(2).unlink()
    assert len(build_store(cohort, Preprocessing(SIZE)).quarantined) == 2  # half
    cohort.image_path(3).write_bytes(b"")
    with pytest.raises(CohortError, match="3 of 4 images cannot be read") as error:
        build_store(cohort, Preprocessing(SIZE))
    assert [violation.split(":")[0] for violation in error.value.violations] == ["row 1", "row 3", "row 4"]
    assert "Surname" not in str(error.value)


def test_rows_that_are_not_asked_for_are_absent_not_quarantined(tmp_path: Path) -> None:
    cohort = write(tmp_path / "a", [noise(seed) for seed in range(4)])
    cohort.image_path(0).unlink()
    store = build_store(cohort, Preprocessing(SIZE), rows=np.array([1, 3]))
    assert store.readable.tolist() == [False, True, False, True]
    assert store.quarantined == []


def test_a_reason_holds_neither_file_nor_folders(tmp_path: Path) -> None:
    path = tmp_path / "Anna Maria Doe" / "scan 1" / "left.dcm"
    spellings = [str(path), "scan 1/left.dcm", str(path.parent), f"{path.parent}/other.dcm", "patient017/left.png"]
    spellings += ["C:\\patients\\Doe", f"'{path.parent.parent}'", "left.dcm"]
    for spelling in spellings:
        error = ImageError(f"left.dcm: damaged at {spelling}, expected 12 / 16 bits")
        assert reason_without_name(error, path) == "damaged at the file, expected 12 / 16 bits"
        assert reason_without_name(ImageError(f"torn: {spelling}"), path) == "torn: the file"


# Depth and range ------------------------------------------------------------


def test_eight_bits_are_stored_in_eight_and_more_in_sixteen(tmp_path: Path) -> None:
    store = build_store(write(tmp_path / "a", [noise(0), noise(1, 4096), noise(2)]), Preprocessing(SIZE))
    assert store.gather(np.array([0, 2])).values.dtype == torch.uint8
    assert store.gather(np.array([1])).values.dtype == torch.uint16
    mixed = store.gather(np.array([2, 1, 0]))
    assert mixed.values.dtype == torch.uint16
    expected = np.stack([noise(2) / 255, noise(1, 4096) / 4095, noise(0) / 255])
    np.testing.assert_allclose(mixed.unit().numpy()[:, 0], expected, atol=1e-6)


def test_twelve_bits_in_sixteen_use_the_whole_range_and_one_for_all_images(tmp_path: Path) -> None:
    bright, dim = np.zeros((20, 20), np.uint16), np.zeros((20, 20), np.uint16)
    bright[:10], dim[:10] = 3967, 1000
    store = build_store(write(tmp_path / "a", [bright, dim]), Preprocessing(SIZE))
    assert store.preprocessing.ranges == {"image": (0.0, 4095.0)}
    found = units(store)
    assert found[0].max() == pytest.approx(3967 / 4095, abs=1e-5)  # not 3967 / 65535
    assert found[1].max() == pytest.approx(1000 / 4095, abs=1e-5)  # not 1, and not 1000 / 1023
    assert found.min() == 0


def test_each_modality_has_its_own_range(tmp_path: Path) -> None:
    pictures = [np.full((20, 20), value, np.uint16) for value in (1000, 3000, 500)]
    store = build_store(write(tmp_path / "a", pictures, modality=["PT", "XR", "PT"]), Preprocessing(SIZE))
    assert store.preprocessing.ranges == {"PT": (0.0, 1023.0), "XR": (0.0, 4095.0)}
    found = units(store)[:, 0, 0, 0]
    np.testing.assert_allclose(found, [1000 / 1023, 3000 / 4095, 500 / 1023], atol=1e-5)


def test_a_range_of_the_contract_is_kept_and_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = write(tmp_path / "a", [np.full((20, 20), value, np.uint16) for value in (0, 1000, 2000, 4000)])
    build_store(cohort, Preprocessing(SIZE))
    monkeypatch.setattr(frames, "read_image", refuse)  # another range needs no other pixels
    store = build_store(cohort, Preprocessing(SIZE, ranges={"image": (1000, 3000)}))
    assert store.preprocessing.ranges == {"image": (1000.0, 3000.0)}
    np.testing.assert_allclose(units(store)[:, 0, 0, 0], [0, 0, 0.5, 1], atol=1e-5)


def test_an_inverted_image_whose_range_waits_is_turned(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    pixels = noise(0, 4096)
    pixels[0, 0], pixels[0, 1] = 0, 4095
    for name, photometric in (("white.tif", 0), ("black.tif", 1)):
        PillowImage.fromarray(pixels).save(folder / name, tiffinfo={262: photometric})
    white, black = units(build_store(table(folder, ["white.tif", "black.tif"]), Preprocessing(SIZE)))
    np.testing.assert_allclose(black[0], pixels / 4095, atol=1e-5)
    np.testing.assert_allclose(white[0], 1 - pixels / 4095, atol=1e-5)
    assert white[0, 0, 0] == pytest.approx(1, abs=1e-6)


def test_signed_values_lie_about_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = write(tmp_path / "a", [noise(0), noise(1)])  # files to hash; the arrays come from below
    arrays = [np.linspace(-1024, 0, 400, dtype=np.float32), np.linspace(0, 3071, 400, dtype=np.float32)]

    def units_of_hounsfield(path: Path, frame: int | None = None, **_: Any) -> Image:
        array = arrays[int(path.stem[-1])].reshape(1, 20, 20)
        return Image(array, None, Range(-9.0, 9.0, "cohort"), 16, False)

    monkeypatch.setattr(frames, "read_image", units_of_hounsfield)
    store = build_store(cohort, Preprocessing(SIZE))
    assert store.preprocessing.ranges == {"image": (-4095.0, 4095.0)}
    for found, array in zip(units(store), arrays, strict=True):
        np.testing.assert_allclose(found.ravel(), (array + 4095) / 8190, atol=1e-5)


def test_a_constant_image_does_not_divide_by_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = write(tmp_path / "a", [noise(0)])
    flat = Image(np.full((1, 20, 20), 7, np.float32), None, Range(0, 7, "cohort"), 32, False)
    monkeypatch.setattr(frames, "read_image", lambda path, **_: flat)
    np.testing.assert_allclose(units(build_store(cohort, Preprocessing(SIZE))), 1.0, atol=1e-6)


# Geometry and channels ------------------------------------------------------------


def test_an_oblong_image_is_padded_stretched_or_cropped(tmp_path: Path) -> None:
    oblong = np.full((20, 60), 200, np.uint8)
    oblong[:, :20], oblong[:, 40:] = 100, 50
    padded = unit_of(oblong, tmp_path / "pad", fit="pad")[0]
    assert padded.shape == (20, 20)
    np.testing.assert_allclose(padded[[0, 5, 14, 19]], 0)  # 60 lines become 20, of which 6.67 to 13.33 hold the image
    np.testing.assert_allclose(padded[8:12, 10], 200 / 255, atol=1e-6)
    np.testing.assert_allclose(padded[8:12, 2], 100 / 255, atol=1e-6)
    np.testing.assert_allclose(padded[8:12, 17], 50 / 255, atol=1e-6)
    stretched = unit_of(oblong, tmp_path / "stretch", fit="stretch")[0]
    assert stretched.min() > 0.19
    np.testing.assert_allclose(stretched[[0, 10, 19], 10], 200 / 255, atol=1e-6)
    cropped = unit_of(oblong, tmp_path / "crop", fit="crop")[0]
    np.testing.assert_allclose(cropped, 200 / 255, atol=1e-6)  # the middle third


def test_padding_is_the_darkest_where_the_range_waits(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    pixels = np.full((20, 40), 2000, np.uint16)
    pixels[0, 0], pixels[0, 1] = 100, 4095
    for name, photometric in (("white.tif", 0), ("black.tif", 1)):
        PillowImage.fromarray(pixels).save(folder / name, tiffinfo={262: photometric})
    white, black = units(build_store(table(folder, ["white.tif", "black.tif"]), Preprocessing(SIZE)))
    np.testing.assert_allclose(black[0, [0, -1]], 100 / 4095, atol=1e-5)
    np.testing.assert_allclose(white[0, [0, -1]], 0, atol=1e-5)


def test_grey_is_repeated_and_colour_becomes_luminance(tmp_path: Path) -> None:
    grey = unit_of(noise(0), tmp_path / "grey", channels=3)
    assert grey.shape == (3, 20, 20)
    np.testing.assert_allclose(grey, np.repeat(noise(0)[None], 3, axis=0) / 255, atol=1e-6)
    colour = noise(1, shape=(20, 20, 3))
    kept = unit_of(colour, tmp_path / "kept", channels=3)
    np.testing.assert_allclose(kept, np.moveaxis(colour, -1, 0) / 255, atol=1e-6)
    luminance = unit_of(colour, tmp_path / "luminance", channels=1)
    assert luminance.shape == (1, 20, 20)
    expected = colour @ np.array([0.299, 0.587, 0.114]) / 255
    np.testing.assert_allclose(luminance[0], expected, atol=0.51 / 255)


def test_a_fine_checkerboard_becomes_grey(tmp_path: Path) -> None:
    board = (np.indices((190, 190)).sum(0) % 2 * 255).astype(np.uint8)
    found = unit_of(board, tmp_path)
    np.testing.assert_allclose(found[:, 1:-1, 1:-1], 0.5, atol=0.01)  # without antialiasing: 0, 1, or moiré
    assert 0.45 < found.min() <= found.max() < 0.55


@pytest.mark.parametrize("high", [256, 4096, 65536])
@pytest.mark.parametrize("shape", [(20, 20), (97, 61), (7, 9)])
def test_stored_values_equal_a_plain_float_pipeline(tmp_path: Path, high: int, shape: tuple[int, int]) -> None:
    pixels = noise(0, high, shape)
    pixels[0, 0], pixels[-1, -1] = 0, high - 1
    side = max(shape)
    square = np.zeros((side, side), np.float32)
    top, left = (side - shape[0]) // 2, (side - shape[1]) // 2
    square[top : top + shape[0], left : left + shape[1]] = pixels / (high - 1)
    # Pillow's own bilinear filter, in floating point, is wide enough for the reduction: antialiased.
    expected = np.asarray(PillowImage.fromarray(square).resize((20, 20), PillowImage.Resampling.BILINEAR))
    levels = 255 if high == 256 else 65535 / (65536 / high)
    np.testing.assert_allclose(unit_of(pixels, tmp_path)[0], expected, atol=1 / levels)


# Frames ------------------------------------------------------------


def test_frames_of_one_file_stand_on_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    pages = [PillowImage.fromarray(noise(seed)) for seed in range(4)]
    pages[0].save(folder / "clip.tif", save_all=True, append_images=pages[1:])
    digests: list[Path] = []
    original = sources._digest
    monkeypatch.setattr(sources, "_digest", lambda path: digests.append(path) or original(path))
    cohort = table(folder, ["clip.tif"] * 4, order=["2", "0", "3", "1"], series=["s"] * 4)
    found = units(build_store(cohort, Preprocessing(SIZE)))
    np.testing.assert_allclose(found[:, 0], np.stack([noise(seed) for seed in (2, 0, 3, 1)]) / 255, atol=1e-6)
    assert len(digests) == 1  # the file is hashed once, not once a frame


def nifti(path: Path, voxels: np.ndarray, diagonal: Sequence[float] = (-1, -1, 2, 1)) -> None:
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag(diagonal)), path)


def dicom(name: str) -> Path:
    return Path(get_testdata_file(name, download=False))


def tiff(path: Path, pages: Sequence[np.ndarray]) -> None:
    first, *others = [PillowImage.fromarray(page) for page in pages]
    first.save(path, save_all=True, append_images=others)


def many_frames(kind: str, folder: Path) -> tuple[Path, int]:
    """A file with several frames, and how many."""
    rng = np.random.default_rng(0)
    voxels = rng.integers(-1000, 3000, (24, 20, 6)).astype(np.int16)
    if kind in ("nii", "nii.gz", "flipped", "scaled"):
        path = folder / ("volume.nii" if kind == "nii" else "volume.nii.gz")
        nifti(path, voxels, (-1, -1, -2 if kind == "flipped" else 2, 1))
        if kind == "scaled":
            image = nibabel.Nifti1Image(voxels, np.eye(4))
            image.header.set_slope_inter(0.37, -11.5)
            nibabel.save(image, path)
        return path, 6
    if kind == "infinite":
        real = voxels.astype(np.float32)
        real[3, 3, 2] = np.inf
        nifti(folder / "volume.nii", real)
        return folder / "volume.nii", 6
    if kind == "mixed pages":
        tiff(folder / "pages.tif", [noise(0), noise(1, 4096), noise(2, 2).astype(bool), noise(3, shape=(9, 30))])
        return folder / "pages.tif", 4
    path = dicom(kind)
    return path, int(pydicom.dcmread(path, stop_before_pixels=True).NumberOfFrames)


@pytest.mark.parametrize(
    "kind",
    [
        *("nii.gz", "flipped", "scaled", "infinite", "mixed pages"),
        *("eCT_Supplemental.dcm", "emri_small.dcm", "rtdose.dcm", "SC_rgb_rle_2frame.dcm", "examples_ybr_color.dcm"),
    ],
)
def test_frames_read_at_once_equal_frames_read_one_by_one(kind: str, tmp_path: Path) -> None:
    path, number = many_frames(kind, tmp_path)
    asked = np.random.default_rng(1).permutation(number + 1).tolist()  # one more than there are
    for frame, found in zip(asked, frames.read_frames(path, asked), strict=True):
        try:
            alone = frames.read_image(path, frame=frame)
        except ImageError as error:
            assert isinstance(found, ImageError)
            assert reason_without_name(found, path) == reason_without_name(error, path)
            continue
        assert isinstance(found, Image)
        np.testing.assert_array_equal(found.array, alone.array)
        assert (found.bits, found.inverted) == (alone.bits, alone.inverted)
        together = alone.range.rule in ("cohort", "series")  # which is found again over all of them
        if not together:
            assert found.range == alone.range
        expected, stored = (shrink(image, Preprocessing(SIZE, 3)) for image in (alone, found))
        np.testing.assert_array_equal(stored.array, expected.array)
        np.testing.assert_array_equal(stored.quantiles, expected.quantiles)
        same = {"array": expected.array, "quantiles": expected.quantiles}
        if together:
            same["grey"] = expected.grey
        assert replace(stored, **same) == replace(expected, **same)


@pytest.mark.parametrize("huge", [False, True])
def test_a_volume_is_decoded_once_unless_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, huge: bool
) -> None:
    path, number = many_frames("nii", tmp_path)
    cohort = table(tmp_path, [path.name] * number, order=[str(frame) for frame in range(number)])
    original, calls = frames.read_image, []
    monkeypatch.setattr(
        frames,
        "read_image",
        lambda path, frame=None, **more: calls.append(frame) or original(path, frame=frame, **more),
    )
    if huge:
        monkeypatch.setenv("BOLUS_IMAGE_GIB", str(8_000 / 2**30))
    steps: list[tuple[int, int]] = []
    store = build_store(cohort, Preprocessing(SIZE), on_progress=lambda *step: steps.append(step))
    assert calls == [None, *(range(number) if huge else [])]
    assert steps == [(number, number)]
    assert store.readable.all()


def test_a_clip_on_one_row_is_quarantined_with_what_to_do(tmp_path: Path) -> None:
    cohort = write(tmp_path / "a", [noise(seed) for seed in range(3)])
    pages = [PillowImage.fromarray(noise(seed)) for seed in range(4)]
    pages[0].save(cohort.image_path(1), format="TIFF", save_all=True, append_images=pages[1:])
    (item,) = build_store(cohort, Preprocessing(SIZE)).quarantined
    assert item.row == 1
    assert "expected one frame, found 4" in item.reason
    assert "role order" in item.reason
    assert item.reason.endswith("this encoder or recipe sees single images: images.unit=clip takes clip files")


def test_frames_of_one_bad_file_on_their_rows_weigh_as_one(tmp_path: Path) -> None:
    names = write(tmp_path / "a", [noise(seed) for seed in range(3)]).table["image"].tolist()
    tiff(tmp_path / "a" / "clip.tif", [noise(seed) for seed in range(3, 10)])
    whole = (tmp_path / "a" / "clip.tif").read_bytes()
    (tmp_path / "a" / "clip.tif").write_bytes(whole[:100])
    order = [str(frame) for frame in range(7)]
    store = build_store(
        table(tmp_path / "a", ["clip.tif"] * 7 + names, order=[*order, "0", "0", "0"]), Preprocessing(SIZE)
    )
    assert store.readable.tolist() == [False] * 7 + [True] * 3
    with pytest.raises(CohortError, match="1 of 1 images cannot be read"):
        build_store(table(tmp_path / "a", ["clip.tif"] * 7, order=order), Preprocessing(SIZE))


def test_values_out_of_a_stated_range_are_quarantined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = write(tmp_path / "a", [noise(0), noise(1)])
    wrong = Image(np.full((1, 20, 20), 5000, np.float32), None, Range(0, 4095, "bits_stored"), 12, False)
    original = frames.read_image
    monkeypatch.setattr(
        frames,
        "read_image",
        lambda path, frame=None, **_: wrong if "1" in path.name else original(path, frame=frame),
    )
    (item,) = build_store(cohort, Preprocessing(SIZE)).quarantined
    assert item.row == 1
    assert "expected values from 0 to 4095" in item.reason


def test_an_error_of_the_reader_loses_the_name_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = write(tmp_path / "a", [noise(0), noise(1)])
    original = frames.read_image

    def fails(path: Path, frame: int | None = None, **_: Any) -> Image:
        if "1" in path.name:
            raise ImageError(f"{path.name}: torn at {path}, see {path.name}")
        return original(path, frame=frame)

    monkeypatch.setattr(frames, "read_image", fails)
    (item,) = build_store(cohort, Preprocessing(SIZE)).quarantined
    assert item.reason == "torn at the file, see the file"


def test_values_outside_a_given_range_are_clipped_and_remarked_on(tmp_path: Path) -> None:
    cohort = write(tmp_path / "deep", [noise(0, 4096), noise(1, 4096) + 3000, noise(2, 4096)])
    given = Preprocessing(SIZE, ranges={"image": (0.0, 4095.0)})
    store = build_store(cohort, given)
    assert store.out_of_range == [1]
    assert ["1 images have values outside image 0 to 4095" in remark for remark in store.remarks] == [True]
    assert units(store).max() == 1.0
    assert not build_store(cohort, Preprocessing(SIZE)).remarks, "a range found on the cohort covers it"
