"""Pixels of every format against independent routes to the same values."""

from __future__ import annotations

import gzip
import logging
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pydicom
import pytest
from PIL import TiffImagePlugin
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, apply_windowing, pixel_array
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from bolus.data.pixels.dicom_pixels import advice
from bolus.data.pixels.image import Image, Range, Rule, covering_range
from bolus.data.readers.readers import read_image
from bolus.errors import ImageError, MissingDecoderError, UsageError

TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
RNG = np.random.default_rng(20)


def more_files() -> Path | None:
    spec = find_spec("data_store")
    return Path(spec.submodule_search_locations[0]) / "data" if spec and spec.submodule_search_locations else None


def dicom_files() -> list[Path]:
    folders = [TEST_FILES, *filter(None, [more_files()])]
    found = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    # Half of the folder are twins of one another: DICOMDIR trees of many tiny slices.
    return [path for path in found if "dicomdirtests" not in path.parts or path.name.startswith(("DICOMDIR", "4"))]


# DICOM: what pydicom says ------------------------------------------------------------


def reference(path: Path) -> tuple[np.ndarray, np.ndarray, bool] | None:
    """Array and unit by pydicom's own functions; None where pydicom does not decode."""
    ds = pydicom.dcmread(path, force=True)
    if "TransferSyntaxUID" not in ds.file_meta and "PixelData" in ds:
        implicit, little = ds.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    try:
        stored = pixel_array(ds)
    except Exception:
        return None
    bits, signed = int(ds.BitsStored), bool(ds.PixelRepresentation)
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        big = ds.original_encoding == (False, False) and "RedPaletteColorLookupTableData" in ds
        array = apply_color_lut(stored, ds)
        array = array.byteswap() if big else array  # pydicom takes the table's bytes as they are
        low, high = 0.0, 2.0 ** ds.RedPaletteColorLookupTableDescriptor[2] - 1
    else:
        array = stored
    if ds.get("SamplesPerPixel", 1) > 1 or ds.PhotometricInterpretation == "PALETTE COLOR":
        return np.moveaxis(array, -1, 0), (np.moveaxis(array, -1, 0) - low) / (high - low), False
    if ds.get("SharedFunctionalGroupsSequence"):  # pydicom's functions look at the root only
        shared = ds.SharedFunctionalGroupsSequence[0]
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for element in shared.get(name)[0] if shared.get(name) else []:
                ds.add(element)
    array = apply_modality_lut(stored, ds)
    if ds.get("Modality") == "RTDOSE":  # PS3.3 C.8.8.3.2, which pydicom leaves to its user
        array, low, high = (each * float(ds.DoseGridScaling) for each in (stored, low, high))
    if ds.get("ModalityLUTSequence"):
        low, high = 0.0, 2.0 ** ds.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    elif ds.get("RescaleSlope") is not None:
        low, high = (end * float(ds.RescaleSlope) + float(ds.RescaleIntercept) for end in (low, high))
    shown = array
    if ds.get("VOILUTSequence"):
        array = shown = apply_voi_lut(array, ds)
        low, high = 0.0, 2.0 ** ds.VOILUTSequence[0].LUTDescriptor[2] - 1
    elif ds.get("WindowWidth") is not None:
        shown = apply_windowing(array, ds)
    unit = (shown.astype(np.float64) - low) / (high - low)
    inverted = ds.PhotometricInterpretation == "MONOCHROME1"
    unit = 1 - unit if inverted else unit
    if ds.get("PixelPaddingValue") is not None:
        unit[stored == ds.PixelPaddingValue] = 0
    return array[None], unit[None], inverted


def test_every_file_of_pydicom_has_pydicoms_pixels_or_a_clear_error() -> None:
    same, refused, wrong = [], [], []
    for path in dicom_files():
        if path.name == "color3d_jpeg_baseline.dcm":
            continue  # 110 MB; its frames are read below
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = reference(path)
        if expected is None:
            with pytest.raises(ImageError) as caught:
                read_image(path)
            assert path.name in str(caught.value)
            assert str(path.parent) not in str(caught.value)
            refused.append(path.name)
            continue
        try:
            image = read_image(path, voi=True)
            unit = image.unit()
            usual = read_image(path)
            usual.unit()
        except ImageError as error:
            wrong.append(f"{path.name}: {error}")
            continue
        array, expected_unit, inverted = expected
        assert image.array.dtype == unit.dtype == np.float32
        fine = image.array.shape == array.shape and image.inverted == inverted
        fine = fine and np.array_equal(image.array, array.astype(np.float32))
        fine = fine and (image.range.rule == "voi_lut" or np.array_equal(usual.array, image.array))
        if fine and np.allclose(unit, expected_unit, rtol=0, atol=2e-6):
            same.append(path.name)
        else:
            wrong.append(f"{path.name}: {image.array.shape} {array.shape} {image.range}")
    assert not wrong, wrong
    assert len(same) >= (115 if more_files() else 60)
    assert len(refused) >= 25


def test_one_frame_is_that_frame_of_the_stack() -> None:
    names = ["SC_rgb_rle_16bit_2frame.dcm", "SC_rgb_rle_2frame.dcm", "rtdose.dcm", "rtdose_rle.dcm", "rtdose_expb.dcm"]
    extra = ["liver.dcm", "emri_small.dcm", "emri_small_jpeg_2k_lossless.dcm", "OBXXXX1A_rle_2frame.dcm"]
    paths = [TEST_FILES / name for name in names]
    if folder := more_files():
        paths += [folder / name for name in extra]
    for path in paths:
        stack = read_image(path)
        assert stack.array.ndim == 4
        for frame in (0, stack.array.shape[1] - 1):
            one = read_image(path, frame=frame)
            np.testing.assert_array_equal(one.array, stack.array[:, frame])
            np.testing.assert_array_equal(one.unit(stack.range), stack.unit()[:, frame])
        assert not np.array_equal(stack.array[:, 0], stack.array[:, -1])
    with pytest.raises(ImageError, match=r"rtdose.dcm: expected a frame from 0 to 14, found 15"):
        read_image(TEST_FILES / "rtdose.dcm", frame=15)
    with pytest.raises(ImageError, match="found -1"):
        read_image(TEST_FILES / "rtdose.dcm", frame=-1)


def test_a_frame_of_a_file_whose_encoding_is_not_the_one_it_declares(tmp_path: Path) -> None:
    stored = np.arange(2 * 20, dtype=np.uint16).reshape(2, 4, 5)
    path = write_dicom(tmp_path / "a.dcm", stored, DataSetTrailingPadding=bytes(64))
    ds, declared = pydicom.dcmread(path), path.read_bytes()
    start = 144 + int.from_bytes(declared[140:144], "little")  # where the file meta information ends
    ds.preamble, ds.file_meta = None, FileMetaDataset()
    ds.save_as(tmp_path / "b.dcm", implicit_vr=True, little_endian=True)
    path.write_bytes(declared[:start] + (tmp_path / "b.dcm").read_bytes())
    for frame in (0, 1):
        np.testing.assert_array_equal(read_image(path, frame=frame).array[0], stored[frame])


def test_a_frame_of_a_long_colour_clip_is_decoded_alone() -> None:
    if not (folder := more_files()):
        pytest.skip("pydicom-data is not installed")
    path = folder / "color3d_jpeg_baseline.dcm"
    image = read_image(path, frame=119)
    assert image.array.shape == (3, 480, 640)
    np.testing.assert_array_equal(image.array, np.moveaxis(pixel_array(path, index=119), -1, 0))


# DICOM: files made here ------------------------------------------------------------


def write_dicom(path: Path, stored: np.ndarray, *, bits: int = 12, **elements: object) -> Path:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.3.4"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = stored.shape[-2:]
    if stored.ndim == 3:
        ds.NumberOfFrames = len(stored)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8 * stored.dtype.itemsize, bits, bits - 1
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    for name, value in elements.items():
        setattr(ds, name, value)
    ds.PixelData = stored.tobytes()
    ds.save_as(path, enforce_file_format=True)
    return path


RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def test_bits_stored_and_the_polarity_of_monochrome1(tmp_path: Path) -> None:
    plain = read_image(write_dicom(tmp_path / "a.dcm", RAMP))
    assert plain.range == Range(0.0, 4095.0, "bits_stored")
    assert plain.bits == 12
    np.testing.assert_allclose(plain.unit()[0], RAMP / 4095, atol=1e-7)
    inverted = read_image(write_dicom(tmp_path / "b.dcm", RAMP, PhotometricInterpretation="MONOCHROME1"))
    assert inverted.inverted
    np.testing.assert_array_equal(inverted.array, plain.array)
    np.testing.assert_allclose(inverted.unit(), 1 - plain.unit(), atol=1e-7)
    np.testing.assert_allclose(inverted.unit(Range(0, 8191, "cohort"))[0], 1 - RAMP / 8191, atol=1e-7)


@pytest.mark.parametrize(
    ("function", "low", "high"), [(None, -160.0, 239.0), ("LINEAR", -160.0, 239.0), ("LINEAR_EXACT", -160.0, 240.0)]
)
def test_window_bounds_of_the_standard(tmp_path: Path, function: str | None, low: float, high: float) -> None:
    extra = {"VOILUTFunction": function} if function else {}
    scale = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    path = write_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=[40, 0], WindowWidth=[400, 9], **scale, **extra)
    image = read_image(path)
    assert image.range == Range(low, high, "window")
    assert "windows: 2, first used" in image.notes
    np.testing.assert_array_equal(image.array[0], RAMP.astype(np.float32) - 1024)  # HU, whatever the window
    unit = image.unit()[0].ravel()  # by the sentences of C.11.2.1.2 and C.11.2.1.3, one value at a time
    for value in (-1024, -161, -160, -159, 0, 39, 40, 238, 239, 240, 241, 3071):
        c, w = (40 - 0.5, 399.0) if function != "LINEAR_EXACT" else (40.0, 400.0)
        expected = 0.0 if value <= c - w / 2 else 1.0 if value > c + w / 2 else (value - c) / w + 0.5
        assert unit[value + 1024] == pytest.approx(expected, abs=1e-6)
    assert read_image(path, window=(40, 400)).range == image.range  # as the file's own would be
    assert read_image(path, window=(300, 1500)).range.high == (1049.0 if function != "LINEAR_EXACT" else 1050.0)


def test_a_window_of_width_one_is_a_threshold_and_narrower_ones_are_left_out(tmp_path: Path) -> None:
    image = read_image(write_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=100, WindowWidth=1))
    np.testing.assert_array_equal(image.unit()[0], (RAMP > 99.5).astype(np.float32))
    image = read_image(write_dicom(tmp_path / "b.dcm", RAMP, WindowCenter=100, WindowWidth=0))
    assert image.range.rule == "bits_stored"
    assert image.notes == ("window of width 0 ignored",)
    with pytest.raises(UsageError, match="width"):
        read_image(tmp_path / "a.dcm", window=(40, 0.5))
    with pytest.raises(UsageError, match="width > 0"):
        read_image(tmp_path / "a.dcm", window=(40, 0))


def test_sigmoid_is_applied_unless_a_window_is_given(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=2000, WindowWidth=800, VOILUTFunction="SIGMOID")
    image = read_image(path)
    assert image.range == Range(0.0, 4095.0, "voi_lut")
    curve = 1 / (1 + np.exp(-4 * (RAMP - 2000.0) / 800))
    np.testing.assert_allclose(image.unit()[0], curve, atol=1e-6)
    np.testing.assert_allclose(image.array[0], apply_windowing(RAMP, pydicom.dcmread(path)), atol=1e-3)
    linear = read_image(path, window=(2000, 801))
    assert linear.range == Range(1599.5, 2399.5, "window")
    np.testing.assert_array_equal(linear.array[0], RAMP)


def lut(table: np.ndarray, first: int, bits: int) -> list[Dataset]:
    item = Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(table) % 65536, first, bits])
    item.add_new("LUTData", "OW" if first < 0 else "US", table.astype("<u2").tobytes() if first < 0 else table.tolist())
    return [item]


def test_lookup_tables_hold_their_end_values(tmp_path: Path) -> None:
    table = (np.arange(512)[::-1] ** 2 % 1024).astype(int)
    path = write_dicom(tmp_path / "voi.dcm", RAMP, VOILUTSequence=lut(table, 1000, 10), WindowCenter=5, WindowWidth=9)
    image = read_image(path)
    assert image.range == Range(0.0, 1023.0, "voi_lut")
    assert image.bits == 10
    expected = [table[min(max(value - 1000, 0), 511)] for value in range(4096)]  # 4095 is far beyond the table
    np.testing.assert_array_equal(image.array.ravel(), expected)
    # 16-bit signed values over a whole table: the difference to its first entry exceeds 16 bits.
    signed = np.array([[-32768, -1, 0, 32767]], np.int16)
    table = np.arange(65536)[::-1]
    image = read_image(write_dicom(tmp_path / "m.dcm", signed, bits=16, ModalityLUTSequence=lut(table, -32768, 16)))
    np.testing.assert_array_equal(image.array[0], [[65535, 32768, 32767, 0]])


def enhanced(slopes: list[float], centers: list[float]) -> dict[str, list[Dataset]]:
    frames = []
    for slope, center in zip(slopes, centers, strict=True):
        frame, value, window = Dataset(), Dataset(), Dataset()
        value.RescaleSlope, value.RescaleIntercept, value.RescaleType = slope, -10, "US"
        window.WindowCenter, window.WindowWidth = center, 100
        frame.PixelValueTransformationSequence, frame.FrameVOILUTSequence = [value], [window]
        frames.append(frame)
    shared, measures = Dataset(), Dataset()
    measures.PixelSpacing, measures.SpacingBetweenSlices = [0.7, 0.7], 3
    shared.PixelMeasuresSequence = [measures]
    return {"PerFrameFunctionalGroupsSequence": frames, "SharedFunctionalGroupsSequence": [shared]}


def test_functional_groups_scale_each_frame_by_its_own_line(tmp_path: Path) -> None:
    stored = RNG.integers(0, 4096, (3, 5, 4), dtype=np.uint16)
    path = write_dicom(tmp_path / "a.dcm", stored, **enhanced([1, 2, 0.5], [40, 40, 40]))
    image = read_image(path)
    for frame, slope in enumerate([1, 2, 0.5]):
        np.testing.assert_array_equal(image.array[0, frame], stored[frame] * slope - 10)
        np.testing.assert_array_equal(read_image(path, frame=frame).unit(), image.unit()[:, frame])
    assert image.spacing == (3.0, 0.7, 0.7)
    assert read_image(path, frame=1).spacing == (0.7, 0.7)
    assert image.range == Range(-10.0, 89.0, "window")
    assert image.notes == ()
    differ = read_image(write_dicom(tmp_path / "b.dcm", stored, **enhanced([1, 1, 1], [40, 40, 90])))
    assert differ.notes == ("windows differ between frames, the first frame's used",)


def test_spacing_and_notes(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP, ImagerPixelSpacing=[0.2, 0.2], PresentationIntentType="FOR PROCESSING")
    image = read_image(path)
    assert image.spacing == (0.2, 0.2)
    assert image.notes == ("FOR PROCESSING", "spacing is that at the detector")
    assert read_image(write_dicom(tmp_path / "b.dcm", RAMP, PixelSpacing=[0, 0])).spacing is None
    clip = read_image(write_dicom(tmp_path / "c.dcm", np.stack([RAMP, RAMP]), PixelSpacing=[2, 1]))
    assert clip.spacing is not None
    np.testing.assert_array_equal(clip.spacing, (np.nan, 2, 1))


def test_float_pixels_and_a_zero_slope(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP, RescaleSlope=0, RescaleIntercept=3)
    with pytest.raises(ImageError, match="slope"):
        read_image(path)
    ds = pydicom.dcmread(write_dicom(path, RAMP.astype(np.uint32), bits=32))
    del ds.PixelData
    ds.FloatPixelData = (RAMP / 8192).astype("<f4").tobytes()
    for name in ("BitsStored", "HighBit", "PixelRepresentation"):
        delattr(ds, name)
    ds.save_as(path)
    image = read_image(path)
    assert image.range == Range(0.0, 1.0, "cohort")
    np.testing.assert_array_equal(image.unit()[0], RAMP / np.float32(8192))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("MR_small_jpeg_ls_lossless.dcm", ("JPEG-LS Lossless", "pyjpegls", "GPL")),
        ("JPGExtended.dcm", ("JPEG Extended", "python-gdcm", "GPL")),
        ("SC_rgb_jpeg_gdcm.dcm", ("JPEG Lossless", "python-gdcm", "GPL")),
    ],
)
def test_an_absent_decoder_is_named(name: str, words: tuple[str, ...]) -> None:
    if find_spec("gdcm") or find_spec("libjpeg") or find_spec("jpeg_ls"):
        pytest.skip("this decoder is installed")
    with pytest.raises(MissingDecoderError) as caught:
        read_image(TEST_FILES / name)
    assert str(caught.value).startswith(name)
    assert all(word in str(caught.value) for word in words)


def test_jpeg_2000_without_its_decoder_names_the_package() -> None:
    syntax = pydicom.dcmread(TEST_FILES / "JPEG2000.dcm").file_meta.TransferSyntaxUID
    assert "pip install pylibjpeg pylibjpeg-openjpeg" in advice(syntax)
    assert "RLE" in advice(RLELossless)  # said of every other syntax: what is read without


# Raster images ------------------------------------------------------------


def save(path: Path, array: np.ndarray, mode: str | None = None, **options: object) -> Path:
    picture = PIL.Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_survive_exactly(tmp_path: Path, suffix: str) -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    image = read_image(save(tmp_path / f"a{suffix}", ramp))
    np.testing.assert_array_equal(image.array[0], ramp)
    assert (image.range, image.bits) == (Range(0.0, 65535.0, "container"), 16)
    np.testing.assert_allclose(image.unit()[0], ramp / 65535, atol=1e-7)


def test_twelve_bits_in_sixteen_use_the_whole_range(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "a.png", RAMP))
    assert image.unit().max() < 0.07
    unit = image.unit(covering_range(float(image.array.max())))
    assert (unit.min(), unit.max()) == (0.0, 1.0)
    assert len(np.unique(unit)) == 4096


def test_twelve_bit_tiff_with_packed_values(tmp_path: Path) -> None:
    values = np.array([[0, 4095, 2048, 17]], np.uint16)
    a, b, c, d = (int(value) for value in values[0])
    strip = bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255, c >> 4, (c & 15) << 4 | d >> 8, d & 255])
    tags = {256: 4, 257: 1, 258: 12, 259: 1, 262: 1, 273: 0, 277: 1, 278: 1, 279: len(strip), 339: 1}
    offset = 8 + 2 + 12 * len(tags) + 4
    tags[273] = offset
    entries = b"".join(
        tag.to_bytes(2, "little") + (4).to_bytes(2, "little") + (1).to_bytes(4, "little") + value.to_bytes(4, "little")
        for tag, value in tags.items()
    )
    path = tmp_path / "a.tif"
    path.write_bytes(
        b"II*\0" + (8).to_bytes(4, "little") + len(tags).to_bytes(2, "little") + entries + bytes(4) + strip
    )
    image = read_image(path)
    np.testing.assert_array_equal(image.array[0], values)
    assert (image.range, image.bits) == (Range(0.0, 4095.0, "container"), 12)


def test_eight_bits_of_each_format(tmp_path: Path) -> None:
    colour = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for suffix in (".png", ".bmp", ".tif"):
        image = read_image(save(tmp_path / f"c{suffix}", colour))
        np.testing.assert_array_equal(image.array, np.moveaxis(colour, -1, 0))
        assert (image.range, image.bits, image.notes) == (Range(0.0, 255.0, "container"), 8, ())
        grey = read_image(save(tmp_path / f"g{suffix}", colour[..., 0]))
        np.testing.assert_array_equal(grey.array[0], colour[..., 0])
        np.testing.assert_array_equal(grey.unit()[0], colour[..., 0].astype(np.float32) / np.float32(255))
    path = save(tmp_path / "j.jpg", colour, quality=95)
    np.testing.assert_array_equal(read_image(path).array, np.moveaxis(np.asarray(PIL.Image.open(path)), -1, 0))
    assert read_image(path, window=(100, 50)).range == Range(75.0, 125.0, "window")


def test_palette_alpha_and_one_bit(tmp_path: Path) -> None:
    colour = np.zeros((2, 2, 3), np.uint8)
    colour[0, 0], colour[1, 1] = (255, 10, 0), (0, 99, 200)
    palette = PIL.Image.fromarray(colour).convert("P", palette=PIL.Image.Palette.ADAPTIVE, colors=4)
    palette.save(tmp_path / "p.png")
    image = read_image(tmp_path / "p.png")
    np.testing.assert_array_equal(image.array, np.moveaxis(colour, -1, 0))
    assert image.notes == ("palette expanded to RGB",)
    opaque, clear = np.full((2, 2, 1), 255, np.uint8), np.full((2, 2, 1), 7, np.uint8)
    for channels in (colour, colour[..., :1]):
        image = read_image(save(tmp_path / "o.png", np.concatenate([channels, opaque], -1)))
        np.testing.assert_array_equal(image.array, np.moveaxis(channels, -1, 0))
        assert image.notes == ()
        image = read_image(save(tmp_path / "t.png", np.concatenate([channels, clear], -1)))
        np.testing.assert_array_equal(image.array, np.moveaxis(channels, -1, 0))  # colours under alpha are kept
        assert image.notes == ("alpha channel dropped; it is not opaque everywhere",)
    image = read_image(save(tmp_path / "1.png", np.array([[True, False]])))
    assert (image.array.tolist(), image.bits, image.range.high) == ([[[1.0, 0.0]]], 1, 1.0)


def deep_png(colour: int, channels: int) -> bytes:
    import struct

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + bytes(range(4 * channels)) for _ in range(2))  # two pixels of 16 bits a row
    header = struct.pack(">IIBBBBB", 2, 2, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bit_colour_is_refused_rather_than_halved(tmp_path: Path, colour: int, channels: int) -> None:
    (tmp_path / "a.png").write_bytes(deep_png(colour, channels))
    with pytest.raises(ImageError, match=r"a.png: colour .* 8-bit colour"):
        read_image(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(deep_png(0, 1))  # the same writer, grey: read
    assert read_image(tmp_path / "b.png").array[0, 0].tolist() == [1.0, 0x0203]


def test_orientation_of_the_camera_is_applied(tmp_path: Path) -> None:
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    for name, array in (("a.png", grey), ("b.tif", grey), ("c.png", grey.astype(np.uint16)), ("d.tif", RAMP[:2, :3])):
        exif = PIL.Image.Exif()
        exif[0x0112] = 6  # the top is at the right
        path = save(tmp_path / name, array, exif=exif)
        np.testing.assert_array_equal(read_image(path).array[0], np.rot90(array, -1))


def test_pages_are_frames(tmp_path: Path) -> None:
    pages = RNG.integers(0, 65536, (3, 4, 5), dtype=np.uint16)
    first, *rest = [PIL.Image.fromarray(page) for page in pages]
    first.save(tmp_path / "a.tif", save_all=True, append_images=rest)
    image = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.array, pages[None])
    for frame in range(3):
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif", frame=frame).array, pages[None, frame])
    with pytest.raises(ImageError, match="0 to 2, found 3"):
        read_image(tmp_path / "a.tif", frame=3)
    first.save(tmp_path / "b.tif", save_all=True, append_images=[PIL.Image.fromarray(pages[0, :2])])
    with pytest.raises(ImageError, match="pages of one size"):
        read_image(tmp_path / "b.tif")
    thumbnail = PIL.Image.fromarray(pages[0, :2])
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[254] = 1  # a reduced copy of another page
    thumbnail.encoderinfo = {"tiffinfo": tags}
    first.save(tmp_path / "c.tif", save_all=True, append_images=[thumbnail])
    assert PIL.Image.open(tmp_path / "c.tif").n_frames == 2
    np.testing.assert_array_equal(read_image(tmp_path / "c.tif").array, pages[None, 0])


def test_tiff_of_floats_signed_and_white_is_zero(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "f.tif", (RAMP / 4096).astype(np.float32)))
    assert image.range == Range(0.0, 1.0, "cohort")
    np.testing.assert_array_equal(image.unit()[0], (RAMP / 4096).astype(np.float32))
    image = read_image(save(tmp_path / "i.tif", RAMP.astype(np.int32) - 1000))
    assert image.array.min() == -1000.0
    assert image.range == Range(-4095.0, 4095.0, "cohort")
    image = read_image(save(tmp_path / "w.tif", RAMP, tiffinfo={262: 0}))
    assert image.inverted
    np.testing.assert_allclose(image.unit()[0], 1 - RAMP / 65535, atol=1e-7)
    bad = RAMP.astype(np.float32)
    bad[0, :2] = np.nan, np.inf
    with pytest.raises(ImageError, match=r"n.tif: expected finite values, found 2"):
        read_image(save(tmp_path / "n.tif", bad))


# Pixels that are not square ------------------------------------------------------------


def oblong(aspect: float) -> str:
    return f"pixels are not square (height/width {aspect:.3g}): resampled to square"


@pytest.mark.parametrize(
    ("elements", "aspect"),
    [
        ({}, 1.0),
        ({"PixelSpacing": [0.6, 0.3]}, 2.0),
        ({"PixelSpacing": [0.3, 0.6]}, 0.5),
        ({"PixelSpacing": [0.3, 0.302]}, 1.0),  # within 1 %
        ({"PixelSpacing": [0, 0], "PixelAspectRatio": [4, 3]}, 4 / 3),
        ({"PixelSpacing": [0.5, 0.5], "PixelAspectRatio": [4, 3]}, 1.0),
        ({"ImagerPixelSpacing": [0.2, 0.1], "PixelAspectRatio": [1, 1]}, 2.0),
        ({"NominalScannedPixelSpacing": [0.1, 0.2]}, 0.5),
        ({"PixelAspectRatio": [2, 3]}, 2 / 3),
        ({"PixelAspectRatio": [2, 0]}, 1.0),
        ({"PixelSpacing": [1, 100000]}, 1.0),  # nobody's pixels
    ],
)
def test_aspect_of_dicom(tmp_path: Path, elements: dict[str, object], aspect: float) -> None:
    image = read_image(write_dicom(tmp_path / "a.dcm", RAMP, **elements))
    assert image.aspect == pytest.approx(aspect)
    assert (oblong(aspect) in image.notes) == (aspect != 1)
    clip = read_image(write_dicom(tmp_path / "b.dcm", np.stack([RAMP, RAMP]), **elements))
    assert clip.aspect == image.aspect


def test_aspect_of_raster_images(tmp_path: Path) -> None:
    grey = (RAMP // 16).astype(np.uint8)
    for dpi, aspect in (((72, 72), 1.0), ((200, 100), 2.0), ((100, 200), 0.5), ((300, 302), 1.0)):
        for name in ("a.png", "a.jpg", "a.tif"):  # twice as many pixels an inch across as down: each is half as wide
            image = read_image(save(tmp_path / name, grey, dpi=dpi))
            assert image.aspect == pytest.approx(aspect, rel=1e-3), name
            assert image.spacing is None
            assert image.notes == ((oblong(aspect),) if aspect != 1 else ())
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the rows of the file become columns
    assert read_image(save(tmp_path / "t.png", grey, dpi=(200, 100), exif=exif)).aspect == pytest.approx(0.5, rel=1e-3)
    data = bytearray(save(tmp_path / "u.png", grey, dpi=(200, 100)).read_bytes())
    at = data.index(b"pHYs")
    data[at + 4 : at + 13] = (3).to_bytes(4, "big") + (4).to_bytes(4, "big") + b"\0"  # pixels a unit; of no length
    data[at + 13 : at + 17] = zlib.crc32(data[at : at + 13]).to_bytes(4, "big")
    (tmp_path / "u.png").write_bytes(data)
    assert read_image(tmp_path / "u.png").aspect == 0.75
    data = bytearray(save(tmp_path / "u.jpg", grey, dpi=(200, 100)).read_bytes())
    at = data.index(b"JFIF") + 7
    assert data[at : at + 5] == b"\1" + (200).to_bytes(2, "big") + (100).to_bytes(2, "big")
    data[at : at + 5] = b"\0" + (1).to_bytes(2, "big") + (2).to_bytes(2, "big")
    (tmp_path / "u.jpg").write_bytes(data)
    assert read_image(tmp_path / "u.jpg").aspect == 0.5
    pages = [PIL.Image.fromarray(grey), PIL.Image.fromarray(grey)]
    pages[0].save(tmp_path / "p.tif", save_all=True, append_images=pages[1:], dpi=(300, 100))
    assert read_image(tmp_path / "p.tif").aspect == pytest.approx(3.0)


# NIfTI ------------------------------------------------------------


def volume(
    tmp_path: Path, name: str = "a.nii.gz", *, axes: str = "RAS", dtype: type = np.int16
) -> tuple[Path, np.ndarray]:
    """A volume whose value tells its anatomical place (100 x + 10 y + z in RAS), stored along other axes."""
    x, y, z = np.meshgrid(np.arange(4), np.arange(5), np.arange(3), indexing="ij")
    ras = (100 * x + 10 * y + z).astype(dtype)
    image = nib.Nifti1Image(ras, np.diag([0.5, 0.75, 4.0, 1.0]))
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes))
    nib.save(image.as_reoriented(turn), tmp_path / name)
    return tmp_path / name, ras


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAS", "PIR", "SAR", "ASL"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_runs_the_same_way_however_it_is_stored(tmp_path: Path, axes: str, name: str) -> None:
    path, ras = volume(tmp_path, name, axes=axes)
    assert nib.aff2axcodes(nib.load(path).affine) == tuple(axes)
    image = read_image(path)
    assert image.array.shape == (1, 3, 5, 4)
    for s in range(3):
        for r in range(5):
            for c in range(4):  # inferior to superior, anterior to posterior, right to left
                assert image.array[0, s, r, c] == ras[4 - 1 - c, 5 - 1 - r, s]
    assert image.spacing == pytest.approx((4.0, 0.75, 0.5))
    for s in range(3):
        one = read_image(path, frame=s)
        np.testing.assert_array_equal(one.array, image.array[:, s])
        assert one.spacing == pytest.approx((0.75, 0.5))
    with pytest.raises(ImageError, match=r"0 to 2, found 3"):
        read_image(path, frame=3)


def test_nifti_scale_range_and_thick_axis(tmp_path: Path) -> None:
    path, ras = volume(tmp_path)
    image = nib.load(path)
    image.header.set_slope_inter(2.0, -100.0)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj.get_unscaled()), image.affine, image.header), tmp_path / "s.nii")
    scaled = nib.load(tmp_path / "s.nii")
    expected = scaled.get_fdata()[::-1, ::-1].transpose(2, 1, 0)
    read = read_image(tmp_path / "s.nii")
    np.testing.assert_array_equal(read.array[0], expected.astype(np.float32))
    plain = read_image(path)
    oblong = "pixels are not square (height/width 1.5): resampled to square"
    assert (plain.range, plain.bits, plain.notes) == (Range(0.0, 511.0, "cohort"), 16, (oblong,))
    assert plain.aspect == pytest.approx(1.5)  # 0.75 mm to posterior, 0.5 mm to the left
    assert plain.range == covering_range(float(ras.max()))
    assert read_image(path, window=(100, 50)).range == Range(75.0, 125.0, "window")
    nib.save(nib.Nifti1Image(ras, np.diag([0.5, 5.0, 0.5, 1.0])), tmp_path / "coronal.nii")
    assert "not the acquired ones" in read_image(tmp_path / "coronal.nii").notes[0]


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SAR"])
def test_aspect_of_nifti_is_that_of_its_axial_slices(tmp_path: Path, axes: str) -> None:
    path, _ = volume(tmp_path, axes=axes)  # 0.5 mm to the side, 0.75 mm to the front, 4 mm up
    for image in (read_image(path), read_image(path, frame=1)):
        assert image.aspect == pytest.approx(1.5)
        assert image.notes == (oblong(1.5),)
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 3), np.int16), np.eye(4)), tmp_path / "b.nii")
    assert read_image(tmp_path / "b.nii").aspect == 1.0


@pytest.mark.parametrize(
    ("qform", "disagree"),
    [
        (np.diag([1.0, 1, 1, 1]), False),
        (np.diag([-1.0, 1, 1, 1]), True),  # a mirror image
        (np.diag([-1.0, -1, 1, 1]), True),  # turned about the long axis: no mirror image, and right is left
        (np.diag([1.0, -1, -1, 1]), False),  # turned about the other axis: left stays left
        (np.diag([1.0, -1, 1, 1]), True),
        (None, False),
    ],
)
def test_two_affines_that_disagree_on_sides_are_noted(tmp_path: Path, qform: np.ndarray | None, disagree: bool) -> None:
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(5, 4, 3), None)
    image.set_sform(np.eye(4), 2)
    image.set_qform(qform, 0 if qform is None else 1)
    nib.save(image, tmp_path / "a.nii")
    for each in (read_image(tmp_path / "a.nii"), read_image(tmp_path / "a.nii", frame=0)):
        assert any(note.startswith("sform and qform disagree on left and right") for note in each.notes) == disagree


def test_nifti_shapes(tmp_path: Path) -> None:
    _, ras = volume(tmp_path)
    for shape, expected in (((4, 5, 3, 1), (1, 3, 5, 4)), ((4, 15), (1, 15, 4)), ((4, 15, 1), (1, 15, 4))):
        nib.save(nib.Nifti1Image(ras.reshape(shape), np.eye(4)), tmp_path / "b.nii")
        image = read_image(tmp_path / "b.nii")
        assert image.array.shape == expected
        np.testing.assert_array_equal(
            read_image(tmp_path / "b.nii", frame=0).array, image.array.reshape(1, -1, *expected[-2:])[:, 0]
        )
    nib.save(nib.Nifti1Image(np.stack([ras, ras], -1), np.eye(4)), tmp_path / "four.nii")
    with pytest.raises(ImageError, match=r"four.nii: expected a volume of three axes, found shape \(4, 5, 3, 2\)"):
        read_image(tmp_path / "four.nii")
    nib.save(nib.Nifti2Image(ras, np.eye(4)), tmp_path / "two.nii")
    np.testing.assert_array_equal(read_image(tmp_path / "two.nii").array[0], ras[::-1, ::-1].transpose(2, 1, 0))
    nib.save(nib.Nifti1Image(ras.astype(np.complex64), np.eye(4)), tmp_path / "complex.nii")
    with pytest.raises(ImageError, match="one number a voxel"):
        read_image(tmp_path / "complex.nii")


# What a file is, and what is wrong with it ------------------------------------------------------------


def bare_dicom(path: Path, *, implicit: bool, little: bool) -> Path:
    """MR_small as before the days of file meta information: a dataset that begins at once."""
    ds = pydicom.dcmread(TEST_FILES / f"MR_small{'' if little else '_bigendian'}.dcm")
    ds.preamble, ds.file_meta = None, FileMetaDataset()
    ds.save_as(path, implicit_vr=implicit, little_endian=little)
    assert path.read_bytes()[128:132] != b"DICM"
    return path


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    save(tmp_path / "a.dcm", RAMP, format="PNG")
    np.testing.assert_array_equal(read_image(tmp_path / "a.dcm").array[0], RAMP)
    (tmp_path / "b.png").write_bytes((TEST_FILES / "MR_small.dcm").read_bytes())
    assert read_image(tmp_path / "b.png").array.shape == (1, 64, 64)
    path, _ = volume(tmp_path)
    (tmp_path / "c.jpg").write_bytes(gzip.decompress(path.read_bytes()))
    assert read_image(tmp_path / "c.jpg").array.shape == (1, 3, 5, 4)
    stored = pydicom.dcmread(TEST_FILES / "MR_small.dcm").pixel_array
    encodings = ((True, True), (False, True), (False, False))
    for name, (implicit, little) in zip(("1.2.840.113619", "IM0001", "x.DCM"), encodings, strict=True):
        bare = bare_dicom(tmp_path / name, implicit=implicit, little=little).read_bytes()
        np.testing.assert_array_equal(read_image(tmp_path / name).array[0], stored)
    (tmp_path / "x.bin").write_bytes(bare)
    with pytest.raises(ImageError, match="found none of these"):
        read_image(tmp_path / "x.bin")


def test_every_cut_of_a_file_is_an_error_or_exact(tmp_path: Path) -> None:
    noise = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = [save(tmp_path / f"a{suffix}", noise) for suffix in (".png", ".jpg", ".bmp", ".tif")]
    whole += [save(tmp_path / "lzw.tif", noise, compression="tiff_lzw")]
    whole += [volume(tmp_path, "v.nii")[0], volume(tmp_path, "v.nii.gz")[0]]
    names = (
        "MR_small",
        "MR_small_RLE",
        "SC_rgb_rle_2frame",
        "JPEG2000",
        "image_dfl",
        "SC_rgb_jpeg_dcmtk",
        "rtdose",
    )
    whole += [TEST_FILES / f"{name}.dcm" for name in names]
    whole += [bare_dicom(tmp_path / "bare.dcm", implicit=True, little=True)]
    exact = 0
    for source in whole:
        expected, data = read_image(source), source.read_bytes()
        for share in (0.0, 0.01, 0.1, 0.3, 0.5, 0.8, 0.9, 0.97, 0.99):
            path = tmp_path / f"cut{''.join(source.suffixes)}"
            path.write_bytes(data[: int(len(data) * share)])
            for frame in (None, 0):
                try:
                    image = read_image(path, frame=frame)
                except ImageError as error:
                    assert str(error).startswith(path.name)
                    assert str(tmp_path) not in str(error)
                else:
                    wanted = expected.array if frame is None or expected.array.ndim == 3 else expected.array[:, 0]
                    np.testing.assert_array_equal(image.array, wanted)
                    exact += 1
    assert exact < 40  # what was cut off was needed


def test_what_is_no_image_says_so(tmp_path: Path) -> None:
    for name, data, words in (
        ("a.txt", b"hello", "found none of these"),
        ("a.png", b"", "empty"),
        ("a.dcm", b"hello" * 100, "no DICOM file"),
        ("a.gz", gzip.compress(b"hello" * 100, mtime=0), "unpack it first"),
        ("b.png", b"\x89PNG\r\n\x1a\n" + b"x" * 50, "damaged"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=words) as caught:
            read_image(tmp_path / name)
        assert str(caught.value).startswith(f"{name}: ")
        assert str(tmp_path) not in str(caught.value)
    with pytest.raises(ImageError, match=r"^none.png: no such file$"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageError):
        read_image(tmp_path)
    for name in ("rtplan.dcm", "test-SR.dcm", "waveform_ecg.dcm"):
        with pytest.raises(ImageError, match="without an image"):
            read_image(TEST_FILES / name)


# Ranges ------------------------------------------------------------


def test_covering_range_is_the_next_power_of_two() -> None:
    for maximum in (0, 0.2, 1, 1.5, 2, 3, 255, 256, 4095, 4096, 65535, 65536, 1e6):
        found = covering_range(maximum)
        expected = next(2**bits - 1 for bits in range(1, 40) if 2**bits - 1 >= maximum)
        assert found == Range(0.0, float(expected), "cohort")
    for low, high in ((-1, 1), (-1024, 3071), (-5000, 3), (-0.5, 0.2)):
        found = covering_range(high, low)
        assert found.low == -found.high
        assert found.high == covering_range(max(high, -low)).high
    with pytest.raises(ImageError, match="finite"):
        covering_range(float("nan"))


@pytest.mark.parametrize("rule", ["stated", "window", "voi_lut", "clinical", "series"])
def test_unit_clips_by_what_says_where_black_and_white_are(rule: Rule) -> None:
    image = Image(np.array([[[-5.0, 0.0, 5.0, 20.0]]], np.float32), None, Range(0, 10, "cohort"), 8, False)
    assert image.unit(Range(0, 10, rule)).tolist() == [[[0.0, 0.0, 0.5, 1.0]]]


def test_unit_clips_by_a_window_and_never_otherwise() -> None:
    image = Image(np.array([[[-5.0, 0.0, 5.0, 20.0]]], np.float32), None, Range(0, 10, "window"), 8, False)
    assert image.unit().tolist() == [[[0.0, 0.0, 0.5, 1.0]]]
    assert image.array.tolist() == [[[-5.0, 0.0, 5.0, 20.0]]]
    for rule in ("bits_stored", "container", "cohort", "image", "unit"):
        with pytest.raises(ImageError, match=f"from 0 to 10 .rule {rule}., found -5 to 20"):
            image.unit(Range(0, 10, rule))
        assert image.unit(Range(-5, 20, rule))[0, 0, 1] == pytest.approx(0.2)
    with pytest.raises(ImageError, match="finite"):
        Image(np.full((1, 1, 1), np.nan, np.float32), None, Range(0, 1, "window"), 8, False).unit()


# Silence ------------------------------------------------------------


def test_reading_is_silent_and_leaves_warnings_as_they_were(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    loud = TEST_FILES / "MR_small_padded.dcm"
    path, _ = volume(tmp_path, "v.nii")
    data = bytearray(path.read_bytes())
    data[76:80] = np.float32(0.3).tobytes()  # pixdim[0], of which nibabel complains
    path.write_bytes(data)
    with pytest.warns(UserWarning):  # the file is one that pydicom warns of
        pixel_array(pydicom.dcmread(loud))
    filters = list(warnings.filters)
    caplog.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ThreadPoolExecutor(8) as pool:
            images = list(pool.map(read_image, [loud, path, TEST_FILES / "SC_rgb_jpeg.dcm", loud] * 12))
    assert len(images) == 48
    assert caught == []
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
    assert warnings.filters == filters
    assert not logging.getLogger("nibabel.global").disabled
    assert logging.getLogger("pydicom").propagate
    with pytest.warns(UserWarning):  # and others still hear of it
        pixel_array(pydicom.dcmread(loud))
