"""What the encoder sees of a cohort: equal tissue equally, whatever scanner, slope, window or slice it comes from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from bolus.data.checks.checking import CheckReport, check
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.data.images.cache import ImageStore, Preprocessing, build_store
from bolus.data.pixels.quantiles import LEVELS, pooled, share_up_to, sketch
from bolus.embedding.opening import open_encoder, open_store, remarks_on
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import save_encoder
from bolus.errors import CohortError
from bolus.recipe import EncoderSpec

SIZE, SIDE = 16, 20  # of the encoder, and of the cache, so that files of 20 pixels are not resampled
RAMP = np.linspace(-1000, 1200, SIDE * SIDE).round().reshape(SIDE, SIDE)


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOLUS_CACHE", str(tmp_path / "cache"))


def write_dicom(path: Path, pixels: np.ndarray, *, stored: int = 16, **elements: Any) -> str:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = f"1.2.3.{abs(hash(path.name)) % 10**8}"
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8 * pixels.dtype.itemsize, stored, stored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in elements.items():
        setattr(ds, name, value)
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OW" if pixels.dtype.itemsize == 2 else "OB"
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path.name


def table(folder: Path, names: list[str], spec: dict[str, Any] | None = None, **columns: Any) -> Cohort:
    frame = pd.DataFrame({"image": names, "patient": [f"P{row}" for row in range(len(names))], **columns})
    return Cohort(frame, CohortSpec(table="t.csv", **(spec or {})), folder)


def seen(cohort: Cohort, **contract: Any) -> np.ndarray:
    """What the encoder gets, `[n, C, S, S]`."""
    store = build_store(cohort, Preprocessing(SIZE, **contract))
    return units(store)


def units(store: ImageStore) -> np.ndarray:
    return store.gather(np.flatnonzero(store.readable)).unit().numpy()


def kinds(report: CheckReport) -> dict[str, tuple[int, ...]]:
    return {finding.kind: finding.rows for finding in report.findings}


# CT ------------------------------------------------------------


def two_scanners(folder: Path, **elements: Any) -> list[str]:
    """The same HU as 12 bits with an intercept, and as 16 signed bits."""
    hu = {"Modality": "CT", "RescaleSlope": "1", **elements}
    return [
        write_dicom(folder / "a.dcm", (RAMP + 1024).astype(np.uint16), stored=12, RescaleIntercept="-1024", **hu),
        write_dicom(folder / "b.dcm", RAMP.astype(np.int16), RescaleIntercept="0", **hu),
    ]


@pytest.mark.parametrize("named", [True, False])
def test_equal_hu_of_two_scanners_is_seen_equally(tmp_path: Path, named: bool) -> None:
    names = two_scanners(tmp_path, WindowCenter="40", WindowWidth="400")
    cohort = table(tmp_path, names, **({"modality": ["CT", "CT"]} if named else {}))
    expected = np.clip((RAMP + 1000) / 2000, 0, 1)
    for found in seen(cohort):
        np.testing.assert_allclose(found[0], expected, atol=1e-3)
    store = build_store(cohort, Preprocessing(SIZE))
    assert store.preprocessing.rules == {"CT": ("clinical", -1000.0, 1000.0)}
    report = check(cohort)
    assert not {"mixed_ranges", "differing_windows", "narrow_range"} & set(kinds(report))
    assert (report.modalities[0]["low"], report.modalities[0]["rule"]) == (-1000.0, ["clinical"])


def test_a_ct_volume_of_nifti_is_hu_and_numbers_without_air_are_not(tmp_path: Path) -> None:
    volume = np.stack([RAMP.T] * 2, -1)[::-1, ::-1].astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii.gz")
    positive = (volume + 1000).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(positive, np.eye(4)), tmp_path / "b.nii.gz")
    for name, expected in (("a", np.clip((RAMP + 1000) / 2000, 0, 1)), ("b", (RAMP + 1000) / 4095)):
        cohort = table(tmp_path, [f"{name}.nii.gz"] * 2, order=[0, 1], modality=["CT"] * 2)
        np.testing.assert_allclose(seen(cohort)[0, 0], expected, atol=1e-3)


def test_an_encoder_of_ct_takes_a_volume_without_air_for_hu(tmp_path: Path) -> None:
    brain = np.full((SIDE, SIDE, 2), 40, np.int16)
    brain[0, 0] = -20
    nibabel.save(nibabel.Nifti1Image(brain, np.eye(4)), tmp_path / "a.nii")
    cohort = table(tmp_path, ["a.nii"] * 2, order=[0, 1], modality=["CT"] * 2)
    assert np.median(seen(cohort)) == pytest.approx((40 + 63) / 126, abs=1e-3), "of the cohort: -63 to 63"
    found = seen(cohort, rules={"CT": ("clinical", -1000.0, 1000.0)})
    assert np.median(found) == pytest.approx(0.52, abs=1e-3)


def test_an_encoder_of_numbers_takes_no_later_volume_for_hu(tmp_path: Path) -> None:
    volume = np.stack([RAMP.T] * 2, -1)[::-1, ::-1].astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii")
    cohort = table(tmp_path, ["a.nii"] * 2, order=[0, 1], modality=["CT"] * 2)
    assert volume.min() < -100
    np.testing.assert_allclose(seen(cohort)[0, 0], np.clip((RAMP + 1000) / 2000, 0, 1), atol=1e-3)
    found = seen(cohort, ranges={"CT": (-255.0, 255.0)})
    np.testing.assert_allclose(found[0, 0], np.clip((RAMP + 255) / 510, 0, 1), atol=1e-3)


# What a person states ------------------------------------------------------------


@pytest.mark.parametrize("key", ["CT", "image"])
def test_a_stated_range_wins_over_windows_clinical_ranges_and_tables(tmp_path: Path, key: str) -> None:
    names = two_scanners(tmp_path, WindowCenter="40", WindowWidth="80")
    expected = np.clip((RAMP + 160) / 400, 0, 1)
    cohort = table(tmp_path, names, {"ranges": {key: (-160, 240)}})  # the files say that they are CT
    for found in seen(cohort):
        np.testing.assert_allclose(found[0], expected, atol=2e-3)
    report = check(cohort)
    assert (report.modalities[0]["low"], report.modalities[0]["high"]) == (-160.0, 240.0)
    assert report.modalities[0]["rule"] == ["stated"]


def test_a_stated_range_wins_over_the_window_of_a_radiograph(tmp_path: Path) -> None:
    pixels = np.arange(400, dtype=np.uint16).reshape(SIDE, SIDE) * 10
    window = {"Modality": "DX", "WindowCenter": "2000", "WindowWidth": "1001", "VOILUTFunction": "SIGMOID"}
    names = [write_dicom(tmp_path / "a.dcm", pixels, stored=12, **window)]
    for columns in ({}, {"modality": ["DX"]}):
        plain, stated = (table(tmp_path, names, {"ranges": each}, **columns) for each in ({}, {"DX": (0, 4000)}))
        curve = 4095 / (1 + np.exp(-4 * (pixels.astype(float) - 2000) / 1001))  # PS3.3 C.11.2.1.3.1
        np.testing.assert_allclose(seen(plain)[0, 0], curve / 4095, atol=1e-4)
        np.testing.assert_allclose(seen(stated)[0, 0], np.clip(pixels / 4000, 0, 1), atol=1e-4)


def test_a_range_of_a_modality_that_no_image_has_is_an_error(tmp_path: Path, call_bolus: Callable[..., Any]) -> None:
    names = two_scanners(tmp_path)
    with pytest.raises(CohortError, match=r"no image of modality 'MR'; known: CT"):
        table(tmp_path, names, {"ranges": {"MR": (0, 1)}}, modality=["CT", "CT"])
    for look in (check, lambda cohort: build_store(cohort, Preprocessing(SIZE))):  # files say what the table does not
        with pytest.raises(CohortError, match="no image of modality 'MR'"):
            look(table(tmp_path, names, {"ranges": {"MR": (0, 1)}}))
    pd.DataFrame({"image": names, "patient": ["p", "q"], "modality": "CT"}).to_csv(tmp_path / "t.csv", index=False)
    out = tmp_path / "cohort.yaml"
    code, said = call_bolus("check", tmp_path / "t.csv", "-o", out, "--range", "CT=-160:240")
    assert code == 0, said
    assert Cohort.open(out).spec.ranges == {"CT": (-160.0, 240.0)}
    for words, complaint in (
        (("--range", "MR=0:1"), "no image of modality 'MR'"),
        (("--range", "CT=1:0"), "black below white"),
        (("--range", "CT=1"), "MODALITY=LOW:HIGH"),
    ):
        code, said = call_bolus("check", tmp_path / "t.csv", "-o", out, *words)
        assert (code != 0, complaint in said) == (True, True), said


def test_a_stated_range_goes_into_the_contract_and_holds_elsewhere(tmp_path: Path) -> None:
    names = two_scanners(tmp_path)
    cohort = table(tmp_path, names, {"ranges": {"CT": (-160, 240)}}, modality=["CT", "CT"])
    contract = build_store(cohort, Preprocessing(SIZE)).preprocessing
    assert (contract.ranges, contract.stated) == ({"CT": (-160.0, 240.0)}, ("CT",))
    assert Preprocessing(**contract.to_json()) == contract
    encoder = build_encoder(EncoderSpec(backbone="r18w32"), seed=0)
    save_encoder(encoder, tmp_path / "e", preprocessing=contract.to_json())
    judged = open_encoder(tmp_path / "e")
    bare = table(tmp_path, names, modality=["CT", "CT"])
    np.testing.assert_allclose(units(open_store(judged, bare))[1, 0], np.clip((RAMP + 160) / 400, 0, 1), atol=2e-3)
    other = table(tmp_path, names, {"ranges": {"CT": (0, 80)}}, modality=["CT", "CT"])
    store = open_store(judged, other)
    np.testing.assert_allclose(units(store)[1, 0], np.clip(RAMP / 80, 0, 1), atol=1e-2)
    assert remarks_on(judged, store) == ["CT: 0 to 80 is stated, and the encoder was trained with -160 to 240."]


def test_an_encoder_of_an_earlier_version_says_that_its_rule_is_not_known(tmp_path: Path) -> None:
    cohort = table(tmp_path, two_scanners(tmp_path), modality=["CT", "CT"])
    spec = EncoderSpec(backbone="r18w32")
    save_encoder(build_encoder(spec, seed=0), tmp_path / "e", preprocessing={"size": SIZE, "ranges": {}})
    judged = open_encoder(tmp_path / "e")
    (remark,) = remarks_on(judged, open_store(judged, cohort))
    assert remark.endswith("does not say how CT of more than eight bits becomes grey: -1000 to 1000 HU.")


# PET, radiographs ------------------------------------------------------------


def test_equal_activity_is_seen_equally_whatever_the_slope(tmp_path: Path) -> None:
    activity = np.linspace(0, 30000, SIDE * SIDE).reshape(SIDE, SIDE)
    names = [
        write_dicom(
            tmp_path / f"{row}.dcm",
            np.round(activity / slope).astype(np.int16),
            Modality="PT",
            RescaleSlope=str(slope),
            RescaleIntercept="0",
            WindowCenter=str(100 * slope),
            WindowWidth=str(200 * slope),
        )
        for row, slope in enumerate((1, 2, 8))
    ]
    for columns in ({}, {"modality": ["PT"] * 3}):
        for found in seen(table(tmp_path, names, **columns)):
            np.testing.assert_allclose(found[0], activity / 32767, atol=2e-4)


def test_radiographs_of_several_depths_share_the_cohort_s_range_and_it_is_said(tmp_path: Path) -> None:
    names = []
    for bits in (10, 12, 14):
        pixels = np.random.default_rng(bits).integers(0, 2**bits, (SIDE, SIDE)).astype(np.uint16)
        names.append(write_dicom(tmp_path / f"{bits}.dcm", pixels, stored=bits, Modality="DX"))
    found = seen(table(tmp_path, names))
    assert [round(float(each.max()), 2) for each in found] == [0.06, 0.25, 1.0]
    report = check(table(tmp_path, names))
    assert kinds(report)["differing_bits"] == (1, 2)
    assert report.cohort.spec.cohort_ranges == {"DX": (0.0, 16383.0)}


def test_a_window_unlike_the_others_is_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [
        write_dicom(
            tmp_path / f"{row}.dcm",
            rng.integers(0, 4096, (SIDE, SIDE)).astype(np.uint16),
            stored=12,
            Modality="CR",
            WindowCenter="2000" if row != 3 else "900",
            WindowWidth="3000",
        )
        for row in range(6)
    ]
    assert kinds(check(table(tmp_path, names)))["differing_windows"] == (4,)


# MR ------------------------------------------------------------


def mr_slices(folder: Path, series: str, scale: float, seed: int) -> tuple[list[str], np.ndarray]:
    """Six slices of one series whose brightness falls off, each with a window of its own."""
    rng = np.random.default_rng(seed)
    slices = (rng.gamma(2, 40, (6, 80, 80)) * np.linspace(1, 0.3, 6)[:, None, None] * scale).round()
    names = [
        write_dicom(
            folder / f"{series}{place}.dcm",
            pixels.astype(np.uint16),
            stored=16,
            Modality="MR",
            SeriesInstanceUID=f"1.2.{len(series)}.{ord(series[-1])}",
            WindowCenter=str(int(pixels.mean())),
            WindowWidth=str(int(2 * pixels.mean())),
        )
        for place, pixels in enumerate(slices)
    ]
    return names, slices


@pytest.mark.parametrize("by", ["uid", "role"])
def test_all_slices_of_a_series_share_its_percentiles(tmp_path: Path, by: str) -> None:
    first, first_slices = mr_slices(tmp_path, "a", 1, 0)
    second, second_slices = mr_slices(tmp_path, "b", 9, 0)  # the same on another scanner
    columns: dict[str, Any] = {} if by == "uid" else {"series": ["s"] * 12, "patient": ["P"] * 6 + ["Q"] * 6}
    cohort = table(tmp_path, first + second, **columns)
    store = build_store(cohort, Preprocessing(64))  # cached at 80
    found = units(store)[:, 0]
    for slices, part in ((first_slices, found[:6]), (second_slices, found[6:])):
        low, high = np.percentile(slices, [0.5, 99.5])
        np.testing.assert_allclose(part, np.clip((slices - low) / (high - low), 0, 1), atol=0.01)
    np.testing.assert_allclose(found[:6], found[6:], atol=0.02)
    assert store.preprocessing.rules == {"MR": ("series", 0.5, 99.5)}
    assert store.preprocessing.ranges == {}
    report = check(cohort)
    assert (report.modalities[0]["rule"], report.modalities[0]["low"]) == (["series"], None)


def test_a_volume_in_one_file_has_one_range(tmp_path: Path) -> None:
    slices = np.random.default_rng(1).gamma(2, 40, (5, SIDE, SIDE)) * np.arange(1, 6)[:, None, None]
    volume = slices.round().astype(np.int16).transpose(2, 1, 0)[::-1, ::-1]
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii")
    cohort = table(tmp_path, ["a.nii"] * 5, patient=["P"] * 5, order=range(5), modality=["T1w"] * 5)
    low, high = np.percentile(slices.round(), [0.5, 99.5])
    np.testing.assert_allclose(seen(cohort)[:, 0], np.clip((slices.round() - low) / (high - low), 0, 1), atol=0.01)


def test_eight_bits_stay_as_they_are_in_every_modality(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (SIDE, SIDE)).astype(np.uint8)
    PillowImage.fromarray(pixels).save(tmp_path / "a.png")
    for name in ("MR", "CT", "PT", "US"):
        found = seen(table(tmp_path, ["a.png"], modality=[name]))
        np.testing.assert_allclose(found[0, 0], pixels / 255, atol=1e-6)


# Padding, pixels that are not square ------------------------------------------------------------


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_padding_is_black_and_widens_no_range(tmp_path: Path, photometric: str) -> None:
    pixels = np.random.default_rng(0).integers(100, 900, (SIDE, SIDE)).astype(np.int16)
    plain = pixels.copy()
    pixels[:5] = -32768
    for name, array, more in (("a", pixels, {"PixelPaddingValue": -32768}), ("b", plain, {})):
        write_dicom(tmp_path / f"{name}.dcm", array, PhotometricInterpretation=photometric, **more)
    cohort = table(tmp_path, ["a.dcm", "b.dcm"])
    store = build_store(cohort, Preprocessing(SIZE))
    assert store.preprocessing.ranges == {"image": (0.0, 1023.0)}
    found = units(store)[:, 0]
    darkest = found[0, 5:].min()
    np.testing.assert_allclose(found[0, :5], darkest, atol=1e-6)
    np.testing.assert_allclose(found[0, 5:], found[1, 5:], atol=1e-4)
    undeclared = table(tmp_path, [write_dicom(tmp_path / "c.dcm", pixels), "b.dcm"])
    assert kinds(check(undeclared))["undeclared_padding"] == (1,)


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_a_disc_of_oblong_pixels_is_seen_round(tmp_path: Path, fit: str) -> None:
    y, x = np.mgrid[0:60, 0:120]  # 60 x 120 mm: rows of 2 mm, columns of 1 mm
    disc = (((y + 0.5) * 2 - 60) ** 2 + ((x + 0.5) - 60) ** 2 < 30**2) * np.uint16(1000)
    name = write_dicom(tmp_path / "a.dcm", disc.astype(np.uint16), Modality="DX", PixelSpacing=[2, 1])
    found = seen(table(tmp_path, [name]), fit=fit)[0, 0] > 0.5
    assert found.any(0).sum() == found.any(1).sum()
    np.testing.assert_array_equal(found, found.T)


# Check ------------------------------------------------------------


def test_a_narrow_range_is_said_with_the_option_that_mends_it(tmp_path: Path) -> None:
    brain = np.random.default_rng(0).normal(35, 10, (SIDE, SIDE)).round()
    names = [write_dicom(tmp_path / "a.dcm", brain.astype(np.int16), Modality="CT", RescaleIntercept=0, RescaleSlope=1)]
    report = check(table(tmp_path, names))
    (found,) = [each for each in report.findings if each.kind == "narrow_range"]
    low, high = np.percentile(brain, [1, 99])
    stated = found.message.split("--range CT=")[1].split(" ")[0].split(":")
    np.testing.assert_allclose([float(each) for each in stated], [low, high], atol=1.5)
    assert report.modalities[0]["used"] < 0.05
    mended = check(table(tmp_path, names, {"ranges": {"CT": (low, high)}}))
    assert "narrow_range" not in kinds(mended)
    assert mended.modalities[0]["used"] > 0.9


def test_sheets_of_pictures_show_what_the_encoder_sees(tmp_path: Path, call_bolus: Callable[..., Any]) -> None:
    names = two_scanners(tmp_path)
    PillowImage.fromarray(np.full((SIDE, SIDE), 99, np.uint8)).save(tmp_path / "c.png")
    frame = pd.DataFrame({"image": [*names, "c.png"], "patient": list("pqr"), "modality": ["CT", "CT", "X/Y"]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    words = ("check", tmp_path / "t.csv", "-o", tmp_path / "c.yaml", "--thumbnails", tmp_path / "sheets")
    said = call_bolus(*words)[1]
    assert sorted(path.name for path in (tmp_path / "sheets").iterdir()) == ["CT.png", "X%2FY.png"], said
    sheet = np.asarray(PillowImage.open(tmp_path / "sheets" / "CT.png").convert("L"))
    assert abs(int(sheet[60, 60]) - 255 * float(np.clip((RAMP[10, 10] + 1000) / 2000, 0, 1))) < 12
    assert "wrote sheets of pictures" in said


def test_old_caches_are_left_alone(tmp_path: Path) -> None:
    cohort = table(tmp_path, two_scanners(tmp_path))
    old = tmp_path / "cache" / "0123456789abcdef"
    old.mkdir(parents=True)
    (old / "a.npy").write_bytes(b"old")
    build_store(cohort, Preprocessing(SIZE))
    assert (old / "a.npy").read_bytes() == b"old"


# Quantiles ------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=6),
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["normal", "many zeros", "constant"]),
)
def test_pooled_quantiles_are_those_of_all_values(sizes: list[int], seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    images = [rng.normal(rng.uniform(-50, 50), 10, size).astype(np.float32) for size in sizes]
    if kind == "many zeros":
        images = [np.where(rng.random(len(image)) < 0.6, 0, np.abs(image)).astype(np.float32) for image in images]
    if kind == "constant":
        images = [np.full(len(image), 7, np.float32) for image in images]
    together = np.sort(np.concatenate(images))
    found = pooled(np.stack([sketch(each) for each in images]), np.array(sizes), np.zeros(len(sizes), np.int64), LEVELS)
    assert (found[0, 0], found[0, -1]) == (together[0], pytest.approx(together[-1], abs=1e-6))
    assert (np.diff(found[0]) >= -1e-9).all()
    # The share of all values at or below each quantile is its level, to within a step of every image.
    slack = 0.03 + len(sizes) / len(together)
    below = np.searchsorted(together, found[0] - 1e-4, side="left") / len(together)
    upto = np.searchsorted(together, found[0] + 1e-4, side="right") / len(together)
    assert (below <= LEVELS + slack).all()
    assert (upto >= LEVELS - slack).all()


def test_the_share_up_to_a_value_counts_equal_values() -> None:
    image = sketch(np.repeat([0.0, 5.0, 10.0], [60, 30, 10]))
    found = share_up_to(np.array([-1.0, 0.0, 5.0, 9.999, 10.0]), np.stack([image] * 5))
    np.testing.assert_allclose(found, [0, 0.6, 0.9, 0.9, 1], atol=0.03)


def test_many_pixels_are_looked_at_at_equal_steps() -> None:
    stripes = np.tile(np.arange(1000, dtype=np.float32) % 2, (1000, 1))  # a step of 2 or 4 would see one colour
    assert 0.4 < sketch(stripes)[: len(LEVELS)].mean() < 0.6


def test_pydicom_agrees_on_the_values_of_a_real_ct(tmp_path: Path) -> None:
    path = Path(pydicom.data.get_testdata_file("CT_small.dcm", download=False))
    ds = pydicom.dcmread(path)
    hu = pydicom.pixels.apply_modality_lut(ds.pixel_array, ds)
    frame = pd.DataFrame({"image": [str(path)], "patient": ["p"]})
    assert (ds.Modality, hu.shape) == ("CT", (128, 128))
    contract = Preprocessing(102)  # cached at 128
    shown = units(build_store(Cohort(frame, CohortSpec(table="t.csv")), contract))[0, 0]
    np.testing.assert_allclose(shown, np.clip((hu + 1000) / 2000, 0, 1), atol=1e-3)


def test_mr_files_of_which_no_series_is_known_are_said(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 900, (4, SIDE, SIDE)).astype(np.uint16)
    for row, pixels in enumerate(pictures):
        PillowImage.fromarray(pixels).save(tmp_path / f"{row}.png")
    names, columns = [f"{row}.png" for row in range(4)], {"patient": ["P", "P", "Q", "R"], "modality": ["MR"] * 4}
    assert kinds(check(table(tmp_path, names, **columns)))["no_series"] == (1, 2)
    assert "no_series" not in kinds(check(table(tmp_path, names, **columns, series=["s", "s", "t", "u"])))
