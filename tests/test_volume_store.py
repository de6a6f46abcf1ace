"""The cache of volumes: what is kept is what was read, once; windows are parts of it; damage and torn builds mend."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image as Pillow

import absent
from bolus.data.cohort.cohort import Cohort
from bolus.data.images.cache import Preprocessing, build_store
from bolus.data.images.called import Called
from bolus.data.volumes.cache import building
from bolus.data.volumes.cache.given import read_given_volumes
from bolus.data.volumes.cache.store import VolumeStore
from bolus.data.volumes.cache.windows import centred, covering, drawn
from bolus.data.volumes.fit import VolumeFit
from bolus.data.volumes.reading import read_volume
from bolus.errors import CohortError, ImageError, MissingPackageError, UsageError

blosc2 = pytest.importorskip("blosc2", reason="the package blosc2 is not installed")

BOX = (8, 8, 8)


def contract(fit: Any = "pad", box: tuple[int, int, int] = BOX, **volume: Any) -> Preprocessing:
    return Preprocessing(max(box), fit=fit, volume=VolumeFit(box, **volume))


def voxels(seed: int, shape: tuple[int, int, int] = (9, 12, 10)) -> np.ndarray:
    """Numbers [D, H, W] from 100 to 2100, all different from those of another seed."""
    return np.random.default_rng(seed).integers(100, 2100, shape).astype(np.int16)


def write(path: Path, array: np.ndarray, spacing: tuple[float, float, float] = (2, 1, 1)) -> None:
    """A NIfTI file of voxels [D, H, W] that lie as they are called."""
    nibabel.save(nibabel.Nifti1Image(array.T, np.diag([*spacing[::-1], 1.0])), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five NIfTI volumes of two shapes and a table of them, of modality PT, whose range is the cohort's."""
    for row in range(5):
        write(tmp_path / f"{row}.nii.gz", voxels(row, (9 + row % 2, 12, 10)))
    table(tmp_path, [f"{row}.nii.gz" for row in range(5)])
    return tmp_path


def table(folder: Path, images: list[str], **columns: Any) -> Cohort:
    frame = {"image": images, "patient": [f"p{row}" for row in range(len(images))], "modality": "PT"}
    pd.DataFrame({**frame, **columns}).to_csv(folder / "t.csv", index=False)
    return Cohort.open(folder / "t.csv")


def build(folder: Path, preprocessing: Preprocessing | None = None, **options: Any) -> VolumeStore:
    store = build_store(Cohort.open(folder / "t.csv"), preprocessing or contract(), folder=folder / "cache", **options)
    assert isinstance(store, VolumeStore)
    return store


def row(*rows: int) -> np.ndarray:
    return np.array(rows, np.int64)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the first files of volumes that are read from now on."""
    names: list[str] = []

    def counted(paths: list[Path], *args: Any, **options: Any) -> Any:
        names.append(Path(paths[0]).name)
        return read_volume(paths, *args, **options)

    monkeypatch.setattr(building, "read_volume", counted)
    return names


# --- what is kept


def test_the_voxels_are_those_that_were_read_in_their_range(folder: Path) -> None:
    store = build(folder)
    low, high = store.preprocessing.ranges["PT"]
    assert (low, high) == (0.0, 4095.0)  # of the cohort
    for number in range(5):
        found = store.gather(row(number)).unit()[0]
        read = read_volume([folder / f"{number}.nii.gz"])
        expected = (torch.from_numpy(read.array) - low) / (high - low)
        assert found.shape == expected.shape == (1, 9 + number % 2, 12, 10)
        assert torch.allclose(found, expected, atol=1 / 65535)
    assert store.spacing.tolist() == [[2.0, 1.0, 1.0]] * 5
    assert store.readable.all()
    assert store.held.all()
    assert not store.remarks


def test_a_volume_is_decoded_once_whatever_it_is_called(folder: Path, reads: list[str]) -> None:
    first = build(folder)
    assert len(reads) == 5
    (folder / "0.nii.gz").rename(folder / "moved.nii.gz")
    table(folder, ["moved.nii.gz", *(f"{number}.nii.gz" for number in range(1, 5))])
    again = build(folder)
    assert len(reads) == 5
    assert torch.equal(first.gather(row(0, 2)).unit(), again.gather(row(0, 2)).unit())
    assert np.array_equal(first.keys(np.arange(5)), again.keys(np.arange(5)))


def test_volumes_that_keep_their_voxels_are_kept_once_for_all_boxes(folder: Path, reads: list[str]) -> None:
    build(folder)
    build(folder, contract(box=(4, 6, 6)))
    assert len(reads) == 5
    build(folder, contract(spacing=(2.0, 2.0, 2.0)))
    assert len(reads) == 10


def test_stretch_gives_the_box_and_crop_the_middle(folder: Path) -> None:
    squeezed = build(folder, contract("stretch"))
    assert squeezed.gather(np.arange(5)).values.shape == (5, 1, *BOX)
    assert squeezed.spacing[0].tolist() == [2 * 9 / 8, 12 / 8, 10 / 8]
    middle = build(folder, contract("crop", (4, 4, 4)))
    whole = build(folder)
    assert middle.shape[0].tolist() == [1, 5, 5, 5]  # 1.25 boxes
    expected = whole.gather(row(0), centred((9, 12, 10), (5, 5, 5))[None], (5, 5, 5)).unit()
    assert torch.allclose(middle.gather(row(0)).unit(), expected, atol=1e-6)


def test_a_stated_spacing_and_the_body_alone(folder: Path) -> None:
    bright = np.full((9, 12, 10), 100, np.int16)
    bright[2:6, 3:9, 4:8] = 2000
    for number in range(5):
        write(folder / f"{number}.nii.gz", bright)
    store = build(folder, contract(spacing=(1.0, 1.0, 1.0), foreground=True))
    assert store.shape[0].tolist() == [1, 8, 6, 4]
    assert store.spacing[0].tolist() == [1.0, 1.0, 1.0]


def test_slices_of_a_table_are_one_volume_in_their_order(tmp_path: Path) -> None:
    names, order, series = [], [], []
    for scan in range(2):
        for place in (2, 0, 1):
            names.append(f"{scan}-{place}.png")
            order.append(place)
            series.append(f"s{scan}")
            pixels = np.full((6, 5), 40 * place + scan, np.uint8)
            Pillow.fromarray(pixels).save(tmp_path / names[-1])
    table(tmp_path, names, order=order, series=series, patient=["a"] * 3 + ["b"] * 3)
    store = build(tmp_path)
    assert store.readable.tolist() == [True] * 6
    assert store.held.tolist() == [False, True, False] * 2  # at the first slice
    found = store.gather(row(1, 3))
    assert found.values.dtype == torch.uint8
    assert found.values[:, 0, :, 0, 0].tolist() == [[0, 40, 80], [1, 41, 81]]
    assert found.spacing is not None
    assert found.spacing[0, 1:].isnan().all()
    assert build(tmp_path, rows=row(0, 2)).readable.tolist() == [False] * 6  # asked for by their first rows alone
    assert build(tmp_path, rows=row(1)).readable.tolist() == [True] * 3 + [False] * 3


# --- windows


def test_windows_are_parts_of_the_volume_and_black_beyond(folder: Path) -> None:
    store = build(folder)
    whole = store.gather(row(1)).unit()[0]  # 10 x 12 x 10
    corners = np.array([[0, 0, 0], [3, 4, 5], [-2, 9, 1], [20, 0, 0]])
    found = store.gather(row(1, 1, 1, 1), corners, (4, 5, 3)).unit()
    assert torch.equal(found[0], whole[:, :4, :5, :3])
    assert torch.equal(found[1], whole[:, 3:7, 4:9, 5:8])
    assert torch.equal(found[2, :, 2:, :3], whole[:, :2, 9:12, 1:4])
    darkest = float(whole.min())  # which the volume can have: its range is the cohort's
    assert found[2, :, :2].unique().tolist() == [darkest]
    assert found[3].unique().tolist() == [darkest]


def test_volumes_of_several_sizes_lie_in_the_middle_of_the_largest(folder: Path) -> None:
    store = build(folder)
    both = store.gather(row(0, 1)).unit()
    assert both.shape == (2, 1, 10, 12, 10)
    assert torch.equal(both[0, :, 1:], store.gather(row(0)).unit()[0])
    assert torch.equal(both[1], store.gather(row(1)).unit()[0])


def test_a_window_of_a_mirrored_volume_is_a_window_of_its_mirror_image(folder: Path) -> None:
    table(folder, [f"{number}.nii.gz" for number in range(5)], laterality=["left", "right"] * 2 + ["left"])
    plain = build(folder)
    mirrored = build_store(
        Cohort.open(folder / "t.csv"), Preprocessing(8, mirror="left", volume=VolumeFit(BOX)), folder=folder / "cache"
    )
    assert isinstance(mirrored, VolumeStore)
    turned = plain.gather(row(0)).unit().flip(-1)
    assert torch.equal(mirrored.gather(row(0)).unit(), turned)
    assert torch.equal(mirrored.gather(row(1)).unit(), plain.gather(row(1)).unit())
    part = mirrored.gather(row(0), np.array([[1, 2, -2]]), (4, 4, 6)).unit()
    assert torch.equal(part[..., 2:], turned[:, :, 1:5, 2:6, :4])
    assert not np.array_equal(mirrored.keys(row(0)), plain.keys(row(0)))


@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 20, 3), (40, 17, 31)])
def test_windows_cover_a_volume_and_drawn_ones_lie_within(shape: tuple[int, int, int]) -> None:
    seen = np.zeros(shape, bool)
    for corner in covering(shape, BOX):
        seen[tuple(slice(max(0, at), max(0, at + side)) for at, side in zip(corner, BOX, strict=True))] = True
    assert seen.all()
    corners = np.array([drawn(shape, BOX, np.random.default_rng(seed)) for seed in range(200)])
    for axis, (length, side) in enumerate(zip(shape, BOX, strict=True)):
        if length > side:
            assert corners[:, axis].min() == 0
            assert corners[:, axis].max() == length - side
        else:
            assert set(corners[:, axis].tolist()) == {(length - side) // 2}


def test_a_picture_is_the_middle_slice(folder: Path) -> None:
    store = build(folder)
    [picture] = store.pictures(row(0))
    assert np.array_equal(picture, store.gather(row(0)).unit()[0, :, 4].numpy())


# --- what goes wrong


def test_a_build_that_is_killed_goes_on_where_it_was(
    folder: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    counted = building.read_volume

    def killed(paths: list[Path], *args: Any, **options: Any) -> Any:
        if len(reads) == 3:
            raise Killed
        return counted(paths, *args, **options)

    monkeypatch.setattr(building, "READERS", 1)
    monkeypatch.setattr(building, "read_volume", killed)
    with pytest.raises(Killed):
        build(folder)
    kept = len(list((folder / "cache").rglob("*.records")))
    assert kept == 3
    monkeypatch.setattr(building, "read_volume", counted)
    assert build(folder).readable.all()
    assert len(reads) == 5


@pytest.mark.parametrize("damage", ["no voxels", "no record", "a torn record"])
def test_what_is_torn_or_gone_is_decoded_again(folder: Path, reads: list[str], damage: str) -> None:
    before = build(folder).gather(row(0, 2, 4)).unit()
    path = next((folder / "cache").rglob("*.b2nd" if damage == "no voxels" else "*.records"))
    if damage == "a torn record":
        path.write_bytes(path.read_bytes()[:50])
    else:
        path.unlink()
    assert torch.equal(build(folder).gather(row(0, 2, 4)).unit(), before)
    assert len(reads) == 6


def test_a_flipped_bit_is_found_and_mended(folder: Path, reads: list[str], caplog: pytest.LogCaptureFixture) -> None:
    before = build(folder).gather(np.arange(5)).unit()
    for path in (folder / "cache").rglob("*.b2nd"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    store = build(folder)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(store.gather(np.arange(5)).unit(), before)
    assert caplog.text.count("a damaged volume in the cache was decoded again") == 5
    reads.clear()
    assert torch.equal(build(folder).gather(np.arange(5)).unit(), before)
    assert len(reads) == 5  # the damaged ones count as absent


def test_damage_that_cannot_be_mended_is_said(folder: Path) -> None:
    build(folder)
    for path in (folder / "cache").rglob("*.b2nd"):
        path.write_bytes(path.read_bytes()[:-40])
    store = build(folder)
    write(folder / "0.nii.gz", voxels(77))
    with pytest.raises(CohortError, match="volume in the cache is damaged, and cannot be decoded again") as caught:
        store.gather(row(0))
    assert "row 1: its files are not what they were" in str(caught.value)


def test_volumes_that_cannot_be_read_are_left_out(folder: Path) -> None:
    (folder / "1.nii.gz").write_bytes(b"no volume")
    (folder / "3.nii.gz").unlink()
    store = build(folder)
    assert store.readable.tolist() == [True, False, True, False, True]
    assert [each.row for each in store.quarantined] == [1, 3]
    assert store.remarks == ["2 volumes cannot be read and are left out (rows 2, 4)."]
    assert "nii" not in " ".join(each.reason for each in store.quarantined)
    (folder / "0.nii.gz").unlink()
    with pytest.raises(CohortError, match="3 of 5 volumes cannot be read"):
        build(folder)


def test_without_the_package_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "blosc2", None)
    with pytest.raises(MissingPackageError, match=r"volumes need the package blosc2.*pip install blosc2"):
        build(folder)
    assert "blosc2" in absent.OPTIONAL


# --- given


def test_a_volume_that_is_given_is_what_the_cache_makes_of_it(folder: Path) -> None:
    store = build(folder)
    known = store.preprocessing
    given, samples = read_given_volumes([folder / "2.nii.gz", voxels(2).astype(np.float32)], known)
    assert samples.unit == "volume"
    assert given.spacing[0].tolist() == [2.0, 1.0, 1.0]
    assert np.isnan(given.spacing[1]).all()
    expected = store.gather(row(2)).unit()
    # The names are not given: the contract lends its only range.
    assert torch.equal(given.gather(row(0)).unit(), expected)
    assert torch.allclose(given.gather(row(1)).unit(), expected, atol=1 / 65535)
    with pytest.raises(ImageError, match=r"volume 2 of 2: .*"):
        read_given_volumes([folder / "2.nii.gz", folder / "absent.nii.gz"], known)


def test_a_given_volume_is_cut_by_the_threshold_of_its_modality(tmp_path: Path) -> None:
    lung = np.full((24, 24, 24), -1000, np.int16)
    lung[2:22, 2:22, 2:22], lung[9:15, 9:15, 9:15] = -550, 200  # Otsu's threshold lies below -500 HU
    write(tmp_path / "lung.nii.gz", lung, (1, 1, 1))
    table(tmp_path, ["lung.nii.gz"], modality=["CT"])
    store = build(tmp_path, contract(foreground=True))
    cut, samples = read_given_volumes([tmp_path / "lung.nii.gz"], store.preprocessing, Called(modality="CT"))
    assert samples.unit == "volume"
    assert cut.shape.tolist() == store.shape.tolist()
    assert torch.equal(cut.gather(row(0)).unit(), store.gather(row(0)).unit())
    other, _ = read_given_volumes([tmp_path / "lung.nii.gz"], store.preprocessing, Called(modality="MR"))
    assert other.shape.tolist() != store.shape.tolist()


def test_slices_that_are_given_one_by_one_are_no_volumes(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.nii.gz", voxels(number, (1, 12, 10)))
    slices = [tmp_path / f"{number}.nii.gz" for number in range(3)]
    known = contract()
    with pytest.raises(UsageError, match=r"found 3 files of one slice each: .* \[\[slice1, slice2\]\]"):
        read_given_volumes(slices, known, Called(ranges={"": (0, 3000)}))
