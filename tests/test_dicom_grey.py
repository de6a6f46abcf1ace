"""Grey values of DICOM: which bits, which table, which range and which pixels count, each found by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from bolus.data.pixels.dicom_pixels import find_padding
from bolus.data.pixels.image import Image, Range
from bolus.data.pixels.lookup import first_mapped
from bolus.data.readers.frames import read_frames
from bolus.data.readers.readers import read_image
from bolus.errors import ImageError

TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
EXPLICIT, IMPLICIT, BIG = ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian
HU = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1024}
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, words: np.ndarray, *, bits: int = 12, syntax: UID = EXPLICIT, **elements: object) -> Path:
    """A file of these words; an element may be given with its VR, as a `DataElement`."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.3.4"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = words.shape[-2:]
    if words.ndim == 3:
        ds.NumberOfFrames = len(words)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8 * words.dtype.itemsize, bits, bits - 1
    ds.PixelRepresentation = int(words.dtype.kind == "i")
    for name, value in elements.items():
        ds.add(value) if isinstance(value, DataElement) else setattr(ds, name, value)
    ds.PixelData = words.astype(words.dtype.newbyteorder(">" if syntax == BIG else "<")).tobytes()
    ds["PixelData"].VR = "OW"
    ds.save_as(path, enforce_file_format=True)
    return path


def table(
    entries: list[int] | bytes, first: int, bits: int, vr: str = "US", number: int | None = None
) -> list[Dataset]:
    """The sequence of one lookup table, its descriptor in a VR of choice."""
    item, count = Dataset(), len(entries) if number is None else number
    item.add(DataElement(0x00283002, vr, [count % 65536, first, bits]))
    item.add(
        DataElement(0x00283006, "OW", entries if isinstance(entries, bytes) else np.array(entries, "<u2").tobytes())
    )
    return [item]


RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
SIGNED = np.arange(-2048, 2048, dtype=np.int16).reshape(64, 64)

# Rescaled ------------------------------------------------------------


@quick
@given(
    slope=st.sampled_from([0.5, 1.0, 2.0, -1.0, 0.0625]),
    intercept=st.sampled_from([0.0, -1024.0, 7.5]),
    bits=st.integers(9, 16),
    signed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_values_and_bounds_follow_the_line(
    tmp_path: Path, slope: float, intercept: float, bits: int, signed: bool, seed: int
) -> None:
    low = -(2 ** (bits - 1)) if signed else 0
    high = low + 2**bits - 1
    words = np.random.default_rng(seed).integers(low, high + 1, (3, 4)).astype(np.int16 if signed else np.uint16)
    path = write(tmp_path / "a.dcm", words, bits=bits, RescaleSlope=slope, RescaleIntercept=intercept)
    image = read_image(path)
    assert image.array[0].tolist() == [[np.float32(slope * int(word) + intercept) for word in row] for row in words]
    np.testing.assert_array_equal(image.array[0], apply_modality_lut(words, pydicom.dcmread(path)).astype(np.float32))
    ends = sorted((slope * low + intercept, slope * high + intercept))
    assert (image.range.low, image.range.high, image.range.rule) == (*ends, "bits_stored")


def test_a_dose_is_in_the_units_of_its_scaling() -> None:
    path = TEST_FILES / "rtdose.dcm"
    ds = pydicom.dcmread(path)
    image = read_image(path)
    np.testing.assert_allclose(image.array[0], ds.pixel_array * 1e-6, rtol=1e-6)
    assert 1 < ds.pixel_array.max() * 1e-6 <= 3
    assert (image.range, image.modality) == (Range(0.0, 3.0, "cohort"), "RTDOSE")


# Bits ------------------------------------------------------------


def by_hand(word: int, bits: int, high: int, signed: bool) -> int:
    value = (word & 0xFFFF) >> (high - bits + 1) & (2**bits - 1)
    return value - 2**bits if signed and value >= 2 ** (bits - 1) else value


@quick
@given(data=st.data(), bits=st.integers(2, 16), signed=st.booleans(), syntax=st.sampled_from([EXPLICIT, BIG, IMPLICIT]))
def test_the_bits_below_high_bit_are_taken(
    tmp_path: Path, data: st.DataObject, bits: int, signed: bool, syntax: UID
) -> None:
    high = data.draw(st.integers(bits - 1, 15))
    words = np.array(data.draw(st.lists(st.integers(0, 65535), min_size=12, max_size=12)), np.uint16)
    words = words.reshape(2, 2, 3).view(np.int16 if signed else np.uint16)
    path = write(tmp_path / "a.dcm", words, bits=bits, syntax=syntax, HighBit=high)
    image = read_image(path, voi=False)
    expected = [by_hand(int(word), bits, high, signed) for word in words.ravel()]
    assert image.array.ravel().tolist() == expected
    assert read_image(path, frame=1, voi=False).array.ravel().tolist() == expected[6:]
    image.unit()  # none is beyond what the bits allow
    assert image.notes == ()


def test_high_bit_of_compressed_pixels(tmp_path: Path) -> None:
    path = write(tmp_path / "r.dcm", RAMP << 4, HighBit=15)
    ds = pydicom.dcmread(path)
    ds.compress(RLELossless)
    ds.save_as(path)
    np.testing.assert_array_equal(read_image(path).array[0], RAMP)  # the bytes are those that were packed
    ds = pydicom.dcmread(TEST_FILES / "JPEG2000.dcm")
    ds.BitsStored, ds.HighBit = 12, 15
    ds.save_as(tmp_path / "j.dcm")
    with pytest.raises(ImageError, match=r"^j.dcm: compressed pixels with High Bit 15 and 12 bits stored"):
        read_image(tmp_path / "j.dcm")


def test_an_overlay_in_unused_bits_is_no_brightness(tmp_path: Path) -> None:
    drawn = np.zeros_like(RAMP)
    drawn[5:9, 7:20] = 1 << 12
    rows, columns, position, allocated = 0x60000010, 0x60000011, 0x60000102, 0x60000100
    overlay = {rows: 64, columns: 64, position: 12, allocated: 16}
    path = write(tmp_path / "a.dcm", RAMP | drawn, WindowCenter=2048, WindowWidth=4096)
    ds = pydicom.dcmread(path)
    for tag, value in overlay.items():
        ds.add_new(tag, "US", value)
    ds.save_as(path)
    np.testing.assert_array_equal(read_image(path).array[0], RAMP)


def test_a_high_bit_that_cannot_be_is_noted(tmp_path: Path) -> None:
    for high in (7, 16):
        image = read_image(write(tmp_path / "a.dcm", RAMP, HighBit=high))
        np.testing.assert_array_equal(image.array[0], RAMP)
        assert image.notes == (f"High Bit {high} does not go with 12 bits stored; the lowest bits were taken",)


# Tables ------------------------------------------------------------


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize(("vr", "first"), [("SS", -500), ("US", 65036)])
def test_the_first_value_of_a_voi_lut_has_the_sign_of_what_it_maps(
    tmp_path: Path, syntax: UID, vr: str, first: int
) -> None:
    entries = [4 * number for number in range(1000)]
    rescale = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    voi = table(entries, first, 12, vr)
    path = write(tmp_path / "a.dcm", RAMP, syntax=syntax, VOILUTSequence=voi, **rescale)
    expected = [entries[min(max(value - 1024 + 500, 0), 999)] for value in range(4096)]
    image = read_image(path)
    assert image.array.ravel().tolist() == expected
    assert (image.range, image.notes) == (Range(0.0, 4095.0, "voi_lut"), ())
    assert read_image(path, voi=False).range == Range(-1024.0, 3071.0, "bits_stored")
    # Signed as stored, not rescaled.
    path = write(tmp_path / "s.dcm", SIGNED, syntax=syntax, VOILUTSequence=voi)
    expected = [entries[min(max(value + 500, 0), 999)] for value in range(-2048, 2048)]
    assert read_image(path).array.ravel().tolist() == expected


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize(("vr", "first"), [("SS", -25536), ("US", 40000)])
def test_the_first_value_of_unsigned_values_is_unsigned(tmp_path: Path, syntax: UID, vr: str, first: int) -> None:
    words, entries = np.array([[0, 39999, 40001, 65535]], np.uint16), [10, 20, 4095]
    for name in ("VOILUTSequence", "ModalityLUTSequence"):
        path = write(tmp_path / "a.dcm", words, bits=16, syntax=syntax, **{name: table(entries, first, 12, vr)})
        assert read_image(path).array.tolist() == [[[10.0, 10.0, 20.0, 4095.0]]]


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize(("vr", "first"), [("SS", -2), ("US", 65534)])
def test_signs_of_modality_luts_and_palettes_are_those_of_the_stored_values(
    tmp_path: Path, syntax: UID, vr: str, first: int
) -> None:
    words = np.array([[-9, -2, -1, 0, 5]], np.int16)
    path = write(tmp_path / "m.dcm", words, syntax=syntax, ModalityLUTSequence=table([7, 600, 1000], first, 10, vr))
    assert read_image(path).array.tolist() == [[[7.0, 7.0, 600.0, 1000.0, 1000.0]]]
    path = write(tmp_path / "p.dcm", words, syntax=syntax, PhotometricInterpretation="PALETTE COLOR")
    ds = pydicom.dcmread(path)
    for number, colours in enumerate(([0, 65535, 1], [3, 4, 5], [6, 7, 8])):
        ds.add(DataElement(0x00281101 + number, vr, [3, first, 16]))
        ds.add(DataElement(0x00281201 + number, "OW", np.array(colours, "<u2").tobytes()))
    ds.save_as(path)
    image = read_image(path)
    assert image.array[:, 0].tolist() == [[0, 0, 65535, 1, 1], [3, 3, 4, 5, 5], [6, 6, 7, 8, 8]]
    assert image.range == Range(0.0, 65535.0, "voi_lut")


def test_a_sign_is_given_up_only_where_the_table_would_map_nothing() -> None:
    assert first_mapped(-100, 50, (0, 65535)) == 65436
    assert first_mapped(-100, 4196, (0, 4095)) == -100  # 12 bits end before 65436
    assert first_mapped(65436, 4196, (0, 4095)) == -100
    assert first_mapped(40000, 100, (-1024, 64511)) == 40000  # -25536 and 99 more lie below -1024
    assert first_mapped(100, 50, (-1024, 3071)) == first_mapped(100, 50, (0, 4095)) == 100


@pytest.mark.parametrize(
    ("largest", "declared", "bits"),
    [(4095, 16, 12), (4095, 8, 12), (4095, 12, 12), (4095, 13, 13), (2000, 12, 12), (1000, 12, 10), (0, 12, 12)],
)
def test_a_table_is_of_the_bits_that_its_entries_need(tmp_path: Path, largest: int, declared: int, bits: int) -> None:
    path = write(tmp_path / "a.dcm", RAMP, VOILUTSequence=table([0, largest // 2, largest], 0, declared))
    image = read_image(path)
    assert (image.range, image.bits) == (Range(0.0, 2.0**bits - 1, "voi_lut"), bits)
    told = (f"a lookup table of {bits} bits an entry, though it says {declared}",)
    assert image.notes == (told if bits != declared else ())


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_tables_of_bytes_in_words_and_of_words_for_bytes(tmp_path: Path, syntax: UID) -> None:
    words, order = np.array([[0, 1, 2, 3]], np.uint16), ">u2" if syntax == BIG else "<u2"
    pairs = [1 | 20 << 8, 150 | 255 << 8]  # PS3.3 C.11.1.1.1: two entries in a word, the first in its lower byte
    for entries in (pairs, [1, 20, 150, 255]):
        data = np.array(entries, order).tobytes()
        path = write(tmp_path / "a.dcm", words, syntax=syntax, VOILUTSequence=table(data, 0, 8, number=4))
        image = read_image(path)
        assert image.array.tolist() == [[[1.0, 20.0, 150.0, 255.0]]]
        assert image.range == Range(0.0, 255.0, "voi_lut")


def test_a_table_without_all_of_its_entries_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", RAMP, VOILUTSequence=table([1, 2, 3], 0, 12, number=9))
    with pytest.raises(ImageError, match=r"^a.dcm: a lookup table cut off: expected 9 entries, found 3"):
        read_image(path)


# Ranges of modalities ------------------------------------------------------------

WINDOW = {"WindowCenter": 40, "WindowWidth": 400}
AS_WINDOW = Range(-160.0, 239.0, "window")


@pytest.mark.parametrize(
    ("modality", "elements", "expected"),
    [
        ("CT", {"RescaleIntercept": -1024, **WINDOW}, Range(-1000.0, 1000.0, "clinical")),
        ("CT", {"RescaleIntercept": -1024, "RescaleType": "hu ", **WINDOW}, Range(-1000.0, 1000.0, "clinical")),
        ("CT", {"RescaleIntercept": -1024, "RescaleType": "US", **WINDOW}, AS_WINDOW),
        ("CT", {"RescaleIntercept": -1024, "RescaleType": "HU_MOD"}, Range(-1024.0, 3071.0, "bits_stored")),
        ("CT", {"RescaleIntercept": 0, **WINDOW}, AS_WINDOW),  # no air in such numbers: they are not HU
        ("CT", WINDOW, AS_WINDOW),
        ("DX", {"RescaleIntercept": -1024, **WINDOW}, AS_WINDOW),
        ("", {}, Range(0.0, 4095.0, "bits_stored")),
        ("PT", {"RescaleIntercept": 0, **WINDOW}, Range(0.0, 4095.0, "cohort")),
        ("PT", {"RescaleIntercept": -100, **WINDOW}, Range(-4095.0, 4095.0, "cohort")),
    ],
)
def test_which_range_a_modality_has(
    tmp_path: Path, modality: str, elements: dict[str, object], expected: Range
) -> None:
    slope = {"RescaleSlope": 1} if "RescaleIntercept" in elements else {}
    path = write(tmp_path / "a.dcm", RAMP, Modality=modality, SeriesInstanceUID="1.2.3", **slope, **elements)
    image = read_image(path)
    assert image.range == expected
    assert (image.modality, image.series) == (modality, "1.2.3")
    np.testing.assert_array_equal(image.array[0], RAMP.astype(np.float32) + elements.get("RescaleIntercept", 0))
    if "WindowCenter" in elements:
        assert read_image(path, voi=True).range == AS_WINDOW
    plain = read_image(path, voi=False)
    assert plain.range.rule == ("cohort" if modality == "PT" else "bits_stored")
    np.testing.assert_array_equal(plain.array, image.array)
    assert read_image(path, window=(100, 51)).range == Range(74.5, 124.5, "window")
    assert read_image(path, window=(100, 51), voi=False).range == Range(74.5, 124.5, "window")


def test_ct_numbers_are_shown_alike_whatever_their_window(tmp_path: Path) -> None:
    for window in ({}, WINDOW, {"WindowCenter": -600, "WindowWidth": 1500}, {"VOILUTSequence": table([1, 2], 0, 8)}):
        unit = read_image(write(tmp_path / "a.dcm", RAMP, **HU, **window)).unit()[0].ravel()
        for hu, seen in ((-1024, 0.0), (-1000, 0.0), (-500, 0.25), (0, 0.5), (40, 0.52), (1000, 1.0), (3071, 1.0)):
            assert unit[hu + 1024] == pytest.approx(seen, abs=1e-6)
    assert read_image(write(tmp_path / "s.dcm", SIGNED, Modality="CT")).range.rule == "clinical"


def test_eight_bits_are_shown_as_the_file_says(tmp_path: Path) -> None:
    bytes_ = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for modality in ("CT", "MR", "PT"):
        image = read_image(write(tmp_path / "a.dcm", bytes_, bits=8, Modality=modality))
        assert image.range == Range(0.0, 255.0, "bits_stored")
        image = read_image(write(tmp_path / "b.dcm", bytes_, bits=8, Modality=modality, **WINDOW))
        assert image.range == AS_WINDOW
    rescaled = {"RescaleSlope": 3.5, "RescaleIntercept": 0}
    image = read_image(write(tmp_path / "c.dcm", bytes_, bits=8, Modality="PT", **rescaled, **WINDOW))
    assert image.range == Range(0.0, 1023.0, "cohort")  # 255 * 3.5 = 892.5


def test_mr_has_the_percentiles_of_what_was_read(tmp_path: Path) -> None:
    values = np.random.default_rng(0).permutation(1001).astype(np.uint16).reshape(7, 11, 13)
    path = write(tmp_path / "a.dcm", values, Modality="MR", RescaleSlope=2, RescaleIntercept=1, **WINDOW)
    image = read_image(path)
    assert image.range == Range(11.0, 1991.0, "series")  # of 0..1000 the 5th and the 995th
    unit = image.unit()
    assert unit.min() == 0.0
    assert unit.max() == 1.0
    assert (unit == 0).sum() == (unit == 1).sum() == 6
    one = read_image(path, frame=2)
    ordered = np.sort(values[2].ravel()) * 2 + 1
    at = 0.005 * 142  # of 143 values
    assert one.range.low == pytest.approx(ordered[0] + at * (ordered[1] - ordered[0]))
    frames = list(read_frames(path, [0, 2]))  # of the whole file
    assert all(isinstance(each, Image) and each.range == image.range for each in frames)
    flat = read_image(write(tmp_path / "f.dcm", np.full((4, 4), 9, np.uint16), Modality="MR"))
    assert flat.range == Range(9.0, 9.0, "series")
    assert (flat.unit() == 0).all()
    assert read_image(path, voi=True).range == AS_WINDOW
    plain = list(read_frames(path, [0, 2], voi=False))
    assert all(isinstance(each, Image) and each.range == Range(1.0, 8191.0, "bits_stored") for each in plain)


def test_slopes_of_a_pet_series_keep_the_proportions(tmp_path: Path) -> None:
    for slope in (0.5, 2.0, 7.0):
        words = np.round(np.array([[0.0, 700.0, 1400.0]]) / slope).astype(np.int16)
        path = write(tmp_path / "a.dcm", words, bits=16, Modality="PT", RescaleSlope=slope, RescaleIntercept=0)
        assert read_image(path).array.tolist() == [[[0.0, 700.0, 1400.0]]]
        assert read_image(path).range == Range(0.0, 2047.0, "cohort")


# Padding ------------------------------------------------------------

INSIDE = np.hypot(*(np.mgrid[:64, :64] - 31.5)) < 30


def padded(path: Path, inside: np.ndarray, value: int, **elements: object) -> Path:
    return write(path, np.where(INSIDE, inside, inside.dtype.type(value)), **elements)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
@pytest.mark.parametrize(("vr", "value"), [("SS", -2000), ("US", 63536)])
def test_padding_is_black_and_does_not_count(tmp_path: Path, syntax: UID, vr: str, value: int) -> None:
    hu = (SIGNED // 4 - 200).astype(np.int16)  # -712 to 311
    about = {"bits": 16, "syntax": syntax, "PixelPaddingValue": DataElement(0x00280120, vr, value)}
    rescale = {"RescaleSlope": 2, "RescaleIntercept": 10}
    path = padded(tmp_path / "a.dcm", hu, -2000, Modality="PT", **rescale, **about)
    image = read_image(path)
    assert image.padding is not None
    np.testing.assert_array_equal(image.padding, ~INSIDE)
    assert (image.array[0, 0, 0], image.array[0, 32, 32]) == (-3990.0, 2.0 * hu[32, 32] + 10)  # as pydicom gives it
    assert image.extremes == (2.0 * hu[INSIDE].min() + 10, 2.0 * hu[INSIDE].max() + 10)
    assert image.range == Range(-2047.0, 2047.0, "cohort")
    assert image.counted.shape == (1, INSIDE.sum())
    unit = image.unit()[0]
    assert (unit[~INSIDE] == 0).all()
    np.testing.assert_allclose(unit[INSIDE], (2.0 * hu[INSIDE] + 10 + 2047) / 4094, atol=1e-6)
    image.unit(Range(-2000.0, 2000.0, "cohort"))  # -3990 is no error
    assert "pixels outside the field of view have a padding value" in image.notes


def test_padding_does_not_darken_a_series(tmp_path: Path) -> None:
    grey = (RAMP // 8 + 100).astype(np.uint16)
    plain = read_image(padded(tmp_path / "a.dcm", grey, 65535, bits=16, Modality="MR", PixelPaddingValue=65535))
    ordered = np.sort(grey[INSIDE].astype(float))
    low, high = np.interp([0.005 * (len(ordered) - 1), 0.995 * (len(ordered) - 1)], np.arange(len(ordered)), ordered)
    assert (plain.range.low, plain.range.high) == pytest.approx((low, high))
    assert (plain.unit()[0][~INSIDE] == 0).all()


def test_padding_of_monochrome1_lies_above_and_is_black(tmp_path: Path) -> None:
    about = {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 2048, "WindowWidth": 4096}
    grey = (RAMP % 3000 + 500).astype(np.uint16)
    path = padded(tmp_path / "a.dcm", grey, 4095, PixelPaddingValue=4095, **about)
    image = read_image(path)
    unit = image.unit()[0]
    assert (unit[~INSIDE] == 0).all()
    np.testing.assert_allclose(unit[INSIDE], 1 - grey[INSIDE] / 4095, atol=1e-6)
    path = padded(tmp_path / "b.dcm", grey, 4000, PixelPaddingValue=4095, PixelPaddingRangeLimit=3900, **about)
    np.testing.assert_array_equal(read_image(path).unit()[0], unit)  # 4000 lies between the two


@pytest.mark.parametrize("limits", [(-2000, -1500), (-1500, -2000)])
def test_a_range_of_padding_has_both_ends_in_it(tmp_path: Path, limits: tuple[int, int]) -> None:
    words = np.array([[-2001, -2000, -1700, -1500, -1499, 0]], np.int16)
    about = {"PixelPaddingValue": limits[0], "PixelPaddingRangeLimit": limits[1]}
    found, notes = find_padding(header(**about), words[:, 1:], words[:, 1:])
    assert found is not None
    assert found.tolist() == [[True, True, True, False, False]]
    image = read_image(write(tmp_path / "a.dcm", words[:, 1:], **about, Modality="CT"))
    assert image.unit()[0, 0].tolist() == [0.0, 0.0, 0.0, 0.0, 0.5]
    assert len(notes) == 1


def header(**elements: object) -> Dataset:
    found = Dataset()
    found.BitsStored, found.PixelRepresentation = 12, 1
    for name, value in elements.items():
        setattr(found, name, value)
    return found


def test_a_padding_value_of_more_bits_than_are_stored(tmp_path: Path) -> None:
    words = np.tile(np.array([0xFFFF, 4095, 3, 0xF003], np.uint16), (4, 1))
    image = read_image(write(tmp_path / "a.dcm", words, PixelPaddingValue=0xFFFF))
    assert image.array[0, 0].tolist() == [4095.0, 4095.0, 3.0, 3.0]
    assert image.padding is not None
    assert image.padding[0].tolist() == [True, False, False, False]


def test_a_value_amid_the_others_is_no_padding(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", SIGNED, Modality="CT", PixelPaddingValue=0)
    image = read_image(path)
    assert image.padding is None
    assert image.unit().ravel()[2048] == 0.5  # water
    assert image.notes == ("the padding value 0 lies among the values of the image: not taken as padding",)
    few = np.where(INSIDE, np.int16(40), np.int16(-2000))
    few[0, 0] = -2048  # by chance
    image = read_image(write(tmp_path / "b.dcm", few, Modality="CT", PixelPaddingValue=-2000))
    assert image.padding is not None
    assert image.padding.sum() == (~INSIDE).sum() - 1


def test_images_of_nothing_but_padding_and_of_none(tmp_path: Path) -> None:
    for modality in ("PT", "MR", "CT", "DX"):
        blank = np.full((4, 4), -2000, np.int16)
        image = read_image(write(tmp_path / "a.dcm", blank, Modality=modality, PixelPaddingValue=-2000))
        assert (image.unit() == 0).all()
        assert image.extremes == (0.0, 0.0)
        assert image.counted.size == 0
    assert read_image(write(tmp_path / "a.dcm", SIGNED, Modality="CT", PixelPaddingValue=-3000)).padding is None


def test_frames_have_their_own_padding(tmp_path: Path) -> None:
    words = np.stack([np.where(INSIDE, 40, -2000), np.full((64, 64), 40), np.full((64, 64), 70)]).astype(np.int16)
    path = write(tmp_path / "a.dcm", words, Modality="CT", PixelPaddingValue=-2000)
    whole = read_image(path)
    assert whole.padding is not None
    assert whole.padding.shape == (3, 64, 64)
    first, second = read_frames(path, [0, 1])
    assert isinstance(first, Image)
    assert isinstance(second, Image)
    for each, frame in ((first, 0), (read_image(path, frame=0), 0), (second, 1), (read_image(path, frame=1), 1)):
        np.testing.assert_array_equal(each.unit(), whole.unit()[:, frame])
        assert (each.padding is None) == (frame == 1)


def test_padding_of_float_pixels(tmp_path: Path) -> None:
    values = np.where(INSIDE, RAMP / 8192, -999.0).astype("<f4")
    for missing in (-999.0, np.nan):
        values[~INSIDE] = missing
        ds = pydicom.dcmread(write(tmp_path / "a.dcm", RAMP.astype(np.uint32), bits=32))
        for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
            delattr(ds, name)
        ds.FloatPixelData, ds.FloatPixelPaddingValue = values.tobytes(), missing
        ds.save_as(tmp_path / "b.dcm")
        image = read_image(tmp_path / "b.dcm")
        assert image.range == Range(0.0, 1.0, "cohort")
        np.testing.assert_array_equal(image.unit()[0], np.where(INSIDE, RAMP / np.float32(8192), 0))
