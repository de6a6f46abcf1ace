"""Volumes from files: one made scan as NIfTI, DICOM series and enhanced DICOM, against nibabel and SimpleITK."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import PIL.Image
import pydicom
import pytest
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from bolus.data.pixels.greys import GREY, measure, sketch_of
from bolus.data.pixels.image import Image, Range
from bolus.data.pixels.quantiles import LEVELS
from bolus.data.readers.own import OwnReader
from bolus.data.readers.readers import count_frames, read_image
from bolus.data.volumes.layout import find_layout
from bolus.data.volumes.reading import read_volume
from bolus.data.volumes.volume import Volume
from bolus.errors import ImageError, TooLargeError, UsageError
from volume_files import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    SERIES,
    add_pixels,
    affine_of,
    new_header,
    scan,
    turned,
    write_enhanced,
    write_nifti,
    write_series,
)

ORIGIN = (-31.5, 12.25, -420.75)
DIRECTIONS = {
    "axial": AXIAL,
    "sagittal": SAGITTAL,
    "coronal": CORONAL,
    "from the head down": AXIAL * [[1], [1], [-1]],
    "prone": AXIAL * [[-1], [-1], [1]],
    "oblique axial": turned(AXIAL, (12, -8, 5)),
    "oblique sagittal": turned(SAGITTAL, (-20, 10, 15)),
    "oblique coronal": turned(CORONAL, (25, 14, -9)),
}
SPACINGS = {"cubes": (1.0, 1.0, 1.0), "flat": (5.0, 0.7, 0.7), "all differ": (2.5, 0.8, 0.55)}


@pytest.fixture
def sitk() -> Any:
    return pytest.importorskip("SimpleITK", reason="the package SimpleITK is not installed")


def shuffled(paths: list[Path], seed: int = 3) -> list[Path]:
    return [paths[place] for place in np.random.default_rng(seed).permutation(len(paths))]


def closest(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    """What nibabel makes of a NIfTI file, as `[D, H, W]`."""
    canonical = nibabel.as_closest_canonical(nibabel.load(path))
    return np.asarray(canonical.dataobj).astype(np.float32).T, canonical.affine


def assert_same(one: Volume, other: Volume) -> None:
    np.testing.assert_array_equal(one.array, other.array)
    assert one.affine is not None
    assert other.affine is not None
    np.testing.assert_allclose(one.affine, other.affine, rtol=0, atol=1e-4)
    np.testing.assert_allclose(one.spacing, other.spacing, rtol=0, atol=1e-4)


# One scan, three kinds of file ------------------------------------------------------------


@pytest.mark.parametrize("spacing", SPACINGS.values(), ids=SPACINGS)
@pytest.mark.parametrize("axes", DIRECTIONS.values(), ids=DIRECTIONS)
def test_nifti_and_dicom_of_one_scan_are_one_volume_as_nibabel_turns_it(
    axes: npt.NDArray[np.float64], spacing: tuple[float, float, float], tmp_path: Path
) -> None:
    voxels, affine = scan(), affine_of(axes, spacing, ORIGIN)
    nifti = read_volume([write_nifti(tmp_path / "a.nii.gz", voxels, affine, inter=-1024)])
    series = read_volume(shuffled(write_series(tmp_path / "series", voxels, affine)))
    frames = read_volume([write_enhanced(tmp_path / "e.dcm", voxels, affine, order=[2, 0, 4, 1, 3])])
    expected, turned_affine = closest(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(nifti.array[0], expected)
    np.testing.assert_array_equal(nifti.affine, turned_affine)
    assert_same(series, nifti)
    assert_same(frames, nifti)
    assert nifti.affine is not None
    assert [int(np.argmax(np.abs(nifti.affine[:3, axis]))) for axis in range(3)] == [0, 1, 2]  # R, A, S
    assert (nifti.affine.diagonal()[:3] > 0).all()
    assert series.series == SERIES
    assert not series.notes + frames.notes + nifti.notes


@pytest.mark.parametrize("axes", DIRECTIONS.values(), ids=DIRECTIONS)
def test_every_voxel_lies_where_simpleitk_says(axes: npt.NDArray[np.float64], tmp_path: Path, sitk: Any) -> None:
    voxels, affine = scan(), affine_of(axes, (2.5, 0.8, 0.55), ORIGIN)
    paths = write_series(tmp_path, voxels, affine)
    volume = read_volume(shuffled(paths))
    theirs = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path)))
    assert volume.affine is not None
    for k, j, i in np.ndindex(volume.array.shape[1:]):
        place = volume.affine @ (i, j, k, 1.0)
        index = theirs.TransformPhysicalPointToContinuousIndex((-place[0], -place[1], place[2]))
        assert np.abs(np.array(index) - np.round(index)).max() < 1e-3
        assert theirs.GetPixel([round(each) for each in index]) == volume.array[0, k, j, i]


def test_the_qform_holds_where_no_sform_is_set(tmp_path: Path) -> None:
    affine = affine_of(turned(SAGITTAL, (5, 6, 7)), (3.0, 1.0, 0.5), ORIGIN)
    image = nibabel.load(write_nifti(tmp_path / "a.nii", scan(), affine))
    image.set_sform(np.diag([9.0, 9, 9, 1]), code=0)
    nibabel.save(image, tmp_path / "b.nii")
    volume = read_volume([tmp_path / "b.nii"])
    np.testing.assert_array_equal(volume.array[0], closest(tmp_path / "b.nii")[0])
    np.testing.assert_allclose(volume.affine, read_volume([tmp_path / "a.nii"]).affine, rtol=0, atol=1e-4)


def test_without_any_orientation_a_note_says_what_is_assumed(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(scan().T, None)
    image.header.set_zooms((0.5, 0.5, 4.0))
    nibabel.save(image, tmp_path / "a.nii")
    volume = read_volume([tmp_path / "a.nii"])
    assert volume.spacing == (4.0, 0.5, 0.5)
    assert volume.notes == ("no orientation in the header: axes assumed to run left, anterior, superior",)
    np.testing.assert_array_equal(volume.array[0], closest(tmp_path / "a.nii")[0])


def test_lengths_in_other_units_are_mm(tmp_path: Path) -> None:
    image = nibabel.load(write_nifti(tmp_path / "a.nii", scan(), affine_of(AXIAL, (0.005, 0.001, 0.001), (0, 0, 0))))
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "b.nii")
    np.testing.assert_allclose(read_volume([tmp_path / "b.nii"]).spacing, (5, 1, 1), rtol=1e-5)


def test_a_fourth_axis_of_one_is_none_and_of_more_is_refused(tmp_path: Path) -> None:
    affine = affine_of(AXIAL, (5.0, 1.0, 1.0), ORIGIN)
    for number in (1, 2):
        nibabel.save(nibabel.Nifti1Image(np.stack([scan().T] * number, -1), affine), tmp_path / f"{number}.nii")
    write_nifti(tmp_path / "a.nii", scan(), affine)
    assert_same(read_volume([tmp_path / "1.nii"]), read_volume([tmp_path / "a.nii"]))
    with pytest.raises(ImageError, match=r"2\.nii: expected a volume of three axes, found shape .*: split it"):
        read_volume([tmp_path / "2.nii"])


def test_rows_of_some_slices_of_a_nifti_file_are_a_part_of_it(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", scan(), affine_of(CORONAL, (5.0, 1.0, 2.0), ORIGIN))
    whole = read_volume([path])
    part = read_volume([path] * 3, [3, 1, 2])
    np.testing.assert_array_equal(part.array, whole.array[:, 1:4])
    assert whole.affine is not None
    assert part.affine is not None
    np.testing.assert_allclose(part.affine[:3, 3], whole.affine[:3, 3] + whole.affine[:3, 2], atol=1e-9)
    for frames, why in (([0, 2], "1 missing from 0 to 2"), ([1, 1], "expected each slice once"), ([5, 6], "found 6")):
        with pytest.raises(ImageError, match=why):
            read_volume([path] * 2, frames)


def test_two_nifti_files_are_no_volume(tmp_path: Path) -> None:
    paths = [write_nifti(tmp_path / f"{n}.nii", scan(), affine_of(AXIAL, (5.0, 1.0, 1.0), ORIGIN)) for n in "ab"]
    with pytest.raises(ImageError, match="expected one NIfTI file a volume, found 2"):
        read_volume(paths)


# What slices may do ------------------------------------------------------------


def test_a_tilted_gantry_is_told_and_lies_where_it_was(tmp_path: Path) -> None:
    affine = affine_of(AXIAL, (5.0, 0.7, 0.7), ORIGIN)
    affine[1, 2] = 5 * np.tan(np.radians(15))
    series = read_volume(shuffled(write_series(tmp_path / "s", scan(), affine)))
    [said] = series.notes
    assert said.startswith("axes of the voxels are 15 degrees off the right angle (a tilted gantry)")
    nifti = read_volume([write_nifti(tmp_path / "a.nii", scan(), affine, inter=-1024)])
    assert_same(series, nifti)
    assert nifti.notes == series.notes
    assert series.spacing[0] == pytest.approx(5 / np.cos(np.radians(15)))


def series_in(tmp_path: Path, *, depth: int = 6, **more: Any) -> list[Path]:
    return write_series(tmp_path, scan(shape=(depth, 6, 7)), affine_of(AXIAL, (4.0, 0.7, 0.7), ORIGIN), **more)


def place(number: float) -> list[str]:
    return ["-31.5", "12.25", f"{-420.75 + number}"]


def test_a_missing_slice_is_refused(tmp_path: Path) -> None:
    paths = series_in(tmp_path, depth=9)
    with pytest.raises(ImageError, match="expected a slice every 4 mm, found 3 missing, the first after slice 2 of 6"):
        read_volume(shuffled([paths[n] for n in (0, 1, 3, 4, 7, 8)]))


def test_mixed_steps_are_refused(tmp_path: Path) -> None:
    tags = [{"ImagePositionPatient": place(at)} for at in (0, 2.5, 5, 7.5, 11, 14.5)]
    with pytest.raises(ImageError, match=r"even steps, found steps from 2\.5 to 3\.5 mm among 6 slices"):
        read_volume(series_in(tmp_path, tags=tags))


def test_steps_that_were_rounded_are_told(tmp_path: Path) -> None:
    tags = [{"ImagePositionPatient": place(round(0.625 * n, 1))} for n in range(6)]
    volume = read_volume(series_in(tmp_path, tags=tags))
    assert volume.spacing[0] == pytest.approx(0.62)
    assert volume.notes == ("slices lie up to 0.04 mm from even steps of 0.62 mm",)


def test_slices_shifted_in_their_plane_are_refused(tmp_path: Path) -> None:
    tags = [{"ImagePositionPatient": [-31.5 + 2 * (n % 2), 12.25, -420.75 + 4 * n]} for n in range(6)]
    with pytest.raises(ImageError, match=r"found them shifted in their plane by up to 2 mm"):
        read_volume(series_in(tmp_path, depth=6, tags=[*tags[:5], {}]))


def test_slices_beside_each_other_are_refused(tmp_path: Path) -> None:
    tags = [{"ImagePositionPatient": [-31.5 + 9 * n, 12.25, -420.75 + n]} for n in range(6)]
    with pytest.raises(ImageError, match=r"found steps 83\.7 degrees off their normal: they lie beside each other"):
        read_volume(series_in(tmp_path, tags=tags))


def test_copies_are_taken_once_and_told(tmp_path: Path) -> None:
    paths = series_in(tmp_path / "a")
    again = series_in(tmp_path / "b")
    volume = read_volume([*paths, again[2], again[4]])
    assert volume.notes == ("slices that are there twice: 2, each taken once",)
    assert_same(volume, read_volume(paths))


def test_two_slices_at_one_place_are_refused_with_what_tells_them_apart(tmp_path: Path) -> None:
    first = series_in(tmp_path / "a", EchoTime="10")
    second = write_series(tmp_path / "b", scan(1, (6, 6, 7)), affine_of(AXIAL, (4.0, 0.7, 0.7), ORIGIN), EchoTime="90")
    with pytest.raises(ImageError) as caught:
        read_volume([*first, *second])
    assert str(caught.value) == (
        "expected one slice at each place, found up to 2 at 6 of 6 places; they differ in EchoTime: give each its own "
        "series"
    )
    third = write_series(tmp_path / "c", scan(2, (6, 6, 7)), affine_of(AXIAL, (4.0, 0.7, 0.7), ORIGIN), EchoTime="10")
    with pytest.raises(ImageError, match="found up to 2 at 1 of 6 places; nothing tells them apart"):
        read_volume([*first, third[0]])


def test_localizers_among_slices_are_left_out_and_told(tmp_path: Path) -> None:
    scout = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    crossing = affine_of(SAGITTAL, (4.0, 1.0, 1.0), (0, 0, 0))
    others = write_series(tmp_path / "b", scan(1, (2, 9, 9)), crossing, ImageType=scout)
    paths = series_in(tmp_path / "a")
    volume = read_volume([others[0], *paths, others[1]])
    assert volume.notes == ("localizers among the slices: 2, left out",)
    assert_same(volume, read_volume(paths))
    assert read_volume(others).array.shape == (1, 9, 9, 2)  # by themselves they are what was asked for


def test_slices_turned_to_each_other_are_refused(tmp_path: Path) -> None:
    crossing = write_series(tmp_path / "b", scan(1, (1, 6, 7)), affine_of(SAGITTAL, (4.0, 0.7, 0.7), ORIGIN))
    with pytest.raises(ImageError, match="expected slices of one direction, found 2 among 7: localizers, or several"):
        read_volume([*series_in(tmp_path / "a"), *crossing])


@pytest.mark.parametrize(
    ("tags", "why"),
    [
        (
            {"PixelSpacing": ["0.7", "0.9"]},
            r"one of the spacings of their pixels, found 2: 0\.7 x 0\.7 \(5\), 0\.7 x 0\.9",
        ),
        ({"FrameOfReferenceUID": "1.2.3"}, "one of the frames of reference, found 2$"),
        ({"ImagePositionPatient": None}, "expected all slices to say where they lie, found 1 that do not"),
        ({"Modality": "PT"}, "expected slices of one modality, found CT and PT"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "expected slices of one polarity"),
        ({"RescaleType": "US"}, "expected slices of one rule of black and white, found bits_stored and clinical"),
    ],
)
def test_a_slice_unlike_the_others_is_refused(tags: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=why):
        read_volume(series_in(tmp_path, tags=[{}, {}, tags, {}, {}, {}]))


def test_slices_of_several_sizes_are_refused(tmp_path: Path) -> None:
    larger = write_series(tmp_path / "b", scan(1, (1, 6, 9)), affine_of(AXIAL, (4.0, 0.7, 0.7), ORIGIN))
    with pytest.raises(ImageError, match=r"one of the sizes \(rows, columns\), found 2: 6 x 7 \(6\), 6 x 9 \(1\)"):
        read_volume([*series_in(tmp_path / "a"), *larger])


def test_pixels_of_unknown_size_and_directions_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="expected slices that say how large their pixels are"):
        read_volume(series_in(tmp_path / "a", PixelSpacing=None))
    with pytest.raises(ImageError, match="expected directions of rows and columns of length 1 at right angles"):
        read_volume(series_in(tmp_path / "b", ImageOrientationPatient=[1, 0, 0, 0.5, 0.5, 0]))


def test_a_mosaic_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"000\.dcm: expected one slice an image, found a mosaic of slices"):
        read_volume(series_in(tmp_path, depth=1, ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]))


def test_slices_without_places_are_stacked_in_the_order_given(tmp_path: Path) -> None:
    paths = series_in(tmp_path, ImagePositionPatient=None, ImageOrientationPatient=None, FrameOfReferenceUID=None)
    volume = read_volume([paths[n] for n in (3, 0, 1)])
    np.testing.assert_array_equal(volume.array[0], scan(shape=(6, 6, 7))[[3, 0, 1]].astype(np.float32) - 1024)
    assert volume.affine is None
    np.testing.assert_array_equal(volume.spacing, (np.nan, 0.7, 0.7))
    assert volume.notes == ("the slices do not say where they lie: stacked in the order given, sides unknown",)


def test_one_slice_is_a_volume_of_one(tmp_path: Path) -> None:
    [path] = series_in(tmp_path / "a", depth=1, SliceThickness="6")
    assert read_volume([path]).spacing == (6.0, 0.7, 0.7)
    [path] = series_in(tmp_path / "b", depth=1, SliceThickness="")
    volume = read_volume([path])
    assert np.isnan(volume.spacing[0])
    assert volume.notes == ("one slice, of unknown thickness; 1 mm in the affine",)


def test_files_of_two_series_are_one_volume_with_a_note(tmp_path: Path) -> None:
    tags = [{"SeriesInstanceUID": f"1.2.{n // 3}"} for n in range(6)]
    assert read_volume(series_in(tmp_path, tags=tags)).notes == ("slices of 2 DICOM series, taken as one volume",)


# Many frames in one file ------------------------------------------------------------


def test_enhanced_frames_have_their_own_rescale(tmp_path: Path) -> None:
    affine = affine_of(turned(CORONAL, (3, 4, 5)), (3.0, 1.0, 1.0), ORIGIN)
    slopes = [1, 0.5, 2, 0.25, 1]
    path = write_enhanced(tmp_path / "e.dcm", scan(), affine, order=[4, 2, 0, 1, 3], slopes=slopes)
    values = scan() * np.array(slopes)[:, None, None] - 1024
    expected = read_volume([write_nifti(tmp_path / "a.nii", values.astype(np.float32), affine)])
    assert_same(read_volume([path]), expected)


def test_frames_that_are_asked_for_are_the_volume(tmp_path: Path) -> None:
    affine = affine_of(AXIAL, (3.0, 1.0, 1.0), ORIGIN)
    path = write_enhanced(tmp_path / "e.dcm", scan(), affine, order=[4, 3, 2, 1, 0])
    whole = read_volume([path])
    part = read_volume([path] * 2, [1, 2])  # slices 3 and 2
    np.testing.assert_array_equal(part.array, whole.array[:, 2:4])
    with pytest.raises(ImageError, match=r"e\.dcm: expected a frame from 0 to 4, found 5"):
        read_volume([path], [5])


def test_frames_of_several_times_are_refused(tmp_path: Path) -> None:
    affine = affine_of(AXIAL, (3.0, 1.0, 1.0), ORIGIN)
    content = [{"TemporalPositionIndex": 1 + n // 5} for n in range(10)]
    affine_twice = np.concatenate([scan(), scan(1)])
    path = tmp_path / "e.dcm"
    write_enhanced(path, affine_twice, affine, order=list(range(10)), content=content)
    header = pydicom.dcmread(path)
    for number in range(5, 10):
        groups = header.PerFrameFunctionalGroupsSequence
        groups[number].PlanePositionSequence = groups[number - 5].PlanePositionSequence
    header.save_as(path)
    with pytest.raises(ImageError, match="up to 2 at 5 of 5 places; they differ in TemporalPositionIndex: give each"):
        read_volume([path])
    assert_same(read_volume([path] * 5, range(5)), read_volume([write_enhanced(tmp_path / "f.dcm", scan(), affine)]))


def test_a_clip_is_no_volume(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path / "e.dcm", scan(), affine_of(AXIAL, (3.0, 1.0, 1.0), ORIGIN))
    header = pydicom.dcmread(path)
    del header.PerFrameFunctionalGroupsSequence
    header.save_as(path)
    volume = read_volume([path])
    assert volume.affine is None
    np.testing.assert_array_equal(volume.array[0], scan().astype(np.float32))
    header.FrameTime = "33"
    header.save_as(path)
    with pytest.raises(ImageError, match="expected slices, found a clip, of which depth is time: images"):
        read_volume([path])


def test_nuclear_medicine_and_dose_say_where_their_frames_lie(tmp_path: Path, sitk: Any) -> None:
    for step in (4.0, -4.0):
        path = tmp_path / f"nm{step}.dcm"
        header = new_header("NM", path, 0, uid.NuclearMedicineImageStorage)
        detector = Dataset()
        detector.ImageOrientationPatient, detector.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-10, -20, 30]
        header.DetectorInformationSequence = [detector]
        header.SpacingBetweenSlices, header.SliceThickness, header.PixelSpacing = step, 4, [2, 2]
        header.SliceVector = list(range(1, 6))
        header.ImageType = ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"]
        add_pixels(header, scan())
        header.save_as(path, enforce_file_format=True)
        volume = read_volume([path])
        assert volume.affine is not None
        assert volume.affine[2, 3] == (30 if step > 0 else 14)
        assert volume.spacing == (4.0, 2.0, 2.0)
        lowest = scan()[0 if step > 0 else 4]
        np.testing.assert_array_equal(volume.array[0, 0], lowest[::-1, ::-1])
        theirs = sitk.ReadImage(str(path))
        x, y, z, _ = volume.affine @ (1, 2, 3, 1.0)
        assert theirs.GetPixel(theirs.TransformPhysicalPointToIndex((-x, -y, z))) == volume.array[0, 3, 2, 1]
    dose = read_volume([Path(get_testdata_file("rtdose.dcm", download=False))])
    theirs = sitk.ReadImage(get_testdata_file("rtdose.dcm", download=False))
    assert dose.array.shape == (1, 15, 10, 10)
    np.testing.assert_allclose(dose.spacing[::-1], theirs.GetSpacing())
    place = np.array(theirs.GetOrigin()) * (-1, -1, 1)
    assert dose.affine is not None
    np.testing.assert_allclose((np.linalg.inv(dose.affine) @ (*place, 1))[:3], (9, 9, 0), atol=1e-6)


# One range for the whole series ------------------------------------------------------------


def test_mr_has_the_percentiles_of_all_slices(tmp_path: Path) -> None:
    voxels = scan() + (np.arange(5) * 500)[:, None, None].astype(np.int16)
    affine = affine_of(AXIAL, (3.0, 1.0, 1.0), ORIGIN)
    whole = np.percentile(voxels, (0.5, 99.5))
    for paths in (
        write_series(tmp_path / "s", voxels, affine, modality="MR", inter=0),
        [write_enhanced(tmp_path / "e.dcm", voxels + 1024, affine, modality="MR")],
    ):
        volume = read_volume(paths)
        assert volume.range.rule == "series"
        np.testing.assert_allclose((volume.range.low, volume.range.high), whole, rtol=1e-6)


def test_ct_has_the_clinical_range_and_pet_that_of_the_cohort(tmp_path: Path) -> None:
    affine = affine_of(AXIAL, (3.0, 1.0, 1.0), ORIGIN)
    assert read_volume(write_series(tmp_path / "a", scan(), affine)).range == Range(-1000, 1000, "clinical")
    tags = [{"RescaleSlope": str(0.5 + n)} for n in range(5)]
    pet = read_volume(write_series(tmp_path / "b", scan(), affine, modality="PT", inter=0, tags=tags))
    assert pet.range == Range(0, 16383, "cohort")
    assert pet.array.max() == (scan() * (0.5 + np.arange(5))[:, None, None]).max()


def test_a_window_is_the_first_slices_and_is_left_out_where_values_are_wanted(tmp_path: Path) -> None:
    tags = [{"WindowCenter": str(500 + n), "WindowWidth": "401"} for n in range(6)]
    paths = series_in(tmp_path, modality="XA", tags=tags, inter=0)
    shown = read_volume(paths)
    assert shown.range == Range(299.5, 699.5, "window")
    assert shown.notes == ("windows differ between slices, the first slice's used",)
    assert read_volume(paths, reading="values").range.rule == "bits_stored"
    assert read_volume(paths, reading="file XA").range.rule == "bits_stored"
    assert read_volume(paths, reading="file CT").range.rule == "window"


def test_padding_is_turned_with_the_voxels(tmp_path: Path) -> None:
    voxels = scan()
    voxels[3, 0, 6] = -2000
    affine = affine_of(SAGITTAL, (3.0, 1.0, 1.0), ORIGIN)
    volume = read_volume(write_series(tmp_path, voxels, affine, PixelPaddingValue=-2000))
    assert volume.padding is not None
    assert volume.padding.sum() == 1
    assert volume.array[0][volume.padding].tolist() == [-3024.0]
    assert volume.image.extremes[0] >= -1024


def test_what_the_cache_asks_of_an_image_it_can_ask_of_a_volume(tmp_path: Path) -> None:
    volume = read_volume(series_in(tmp_path))
    facts = np.array([measure(volume.image)], GREY)
    assert facts["rule"][0] == b"clinical"
    assert facts["pixels"][0] == volume.array.size
    assert sketch_of(volume.image).shape == (len(LEVELS),)


# Images in the order given, and readers of one's own ------------------------------------------------------------


def test_single_images_are_slices_in_the_order_given(tmp_path: Path) -> None:
    paths = []
    for number, pixels in enumerate(scan().astype(np.uint16)):
        PIL.Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        paths.append(tmp_path / f"{number}.png")
    volume = read_volume([paths[n] for n in (4, 0, 2)])
    np.testing.assert_array_equal(volume.array[0], scan()[[4, 0, 2]].astype(np.float32))
    assert volume.affine is None
    assert np.isnan(volume.spacing).all()
    assert volume.range == Range(0, 65535, "container")
    [said] = volume.notes
    assert said == "the images do not say where they lie: stacked in the order given, spacing and sides unknown"
    PIL.Image.fromarray(np.zeros((6, 9), np.uint16)).save(tmp_path / "large.png")
    with pytest.raises(ImageError, match=r"one size, found channels, rows and columns \(1, 6, 7\) and \(1, 6, 9\)"):
        read_volume([*paths, tmp_path / "large.png"])
    PIL.Image.fromarray(np.zeros((6, 7), np.uint8)).save(tmp_path / "shallow.png")
    with pytest.raises(ImageError, match=r"expected slices of one range, found 2 \(rule container\)"):
        read_volume([*paths, tmp_path / "shallow.png"])


def test_colour_slices_and_pages_of_a_tiff(tmp_path: Path) -> None:
    colour = np.random.default_rng(4).integers(0, 255, (3, 6, 7, 3)).astype(np.uint8)
    pages = [PIL.Image.fromarray(each) for each in colour]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    expected = np.moveaxis(colour, -1, 0).astype(np.float32)
    np.testing.assert_array_equal(read_volume([tmp_path / "a.tif"]).array, expected)
    np.testing.assert_array_equal(read_volume([tmp_path / "a.tif"] * 2, [2, 0]).array, expected[:, [2, 0]])


def test_readers_of_ones_own(tmp_path: Path) -> None:
    def read(path: Path) -> Image:
        array = np.load(path)[None].astype(np.float32)
        return Image(array, (4.0, 0.5, 0.5)[-(array.ndim - 1) :], Range(0, 2047, "container"), 12, False)

    readers = {".npy": OwnReader("mine:read", read, "mine:read 0")}
    np.save(tmp_path / "whole.npy", scan())
    whole = read_volume([tmp_path / "whole.npy"], readers=readers)
    np.testing.assert_array_equal(whole.array[0], scan().astype(np.float32))
    assert whole.spacing == (4.0, 0.5, 0.5)
    assert whole.notes == ("the images do not say where they lie: stacked in the order given, sides unknown",)
    paths = [tmp_path / f"{number}.npy" for number in range(5)]
    for path, pixels in zip(paths, scan(), strict=True):
        np.save(path, pixels)
    apart = read_volume(paths, readers=readers)
    np.testing.assert_array_equal(apart.array, whole.array)
    np.testing.assert_array_equal(apart.spacing, (np.nan, 0.5, 0.5))
    part = read_volume([tmp_path / "whole.npy"] * 2, [3, 4], readers=readers)
    np.testing.assert_array_equal(part.array, whole.array[:, 3:])


def test_other_files_and_calls_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PIL.Image.fromarray(np.zeros((6, 7), np.uint8)).save(tmp_path / "a.png")
    [slice_] = series_in(tmp_path, depth=1)
    with pytest.raises(ImageError, match="expected files of one kind, found image and DICOM together"):
        read_volume([tmp_path / "a.png", slice_])
    (tmp_path / "a.avi").write_bytes(b"RIFF\0\0\0\0AVI LIST" + bytes(400))
    with pytest.raises(ImageError, match=r"a\.avi: a video is a clip, of which depth is time, and no volume"):
        read_volume([tmp_path / "a.avi"])
    with pytest.raises(ImageError, match=r"absent\.dcm: no such file"):
        read_volume([tmp_path / "absent.dcm"])
    for paths, frames in (([], None), ([slice_], [0, 1])):
        with pytest.raises(UsageError, match="expected a path or more and a frame for each"):
            read_volume(paths, frames)
    monkeypatch.setenv("BOLUS_IMAGE_GIB", "0.000001")
    with pytest.raises(TooLargeError):
        read_volume(series_in(tmp_path / "b"))


# Files of scanners ------------------------------------------------------------


def nibabel_files() -> list[Path]:
    folder = Path(nibabel.__file__).parent / "tests" / "data"
    found = [folder / name for name in ("anatomical.nii", "reoriented_anat_moved.nii", "standard.nii.gz")]
    return [path for path in found if path.exists()]


def test_nifti_files_of_nibabel_are_what_nibabel_makes_of_them() -> None:
    for path in nibabel_files():
        volume = read_volume([path])
        expected, affine = closest(path)
        np.testing.assert_array_equal(volume.array[0], expected)
        np.testing.assert_allclose(volume.affine, affine, rtol=0, atol=1e-4)


def test_an_enhanced_mr_scan_of_philips_lies_where_its_frames_and_nibabel_say(tmp_path: Path) -> None:
    packed = Path(nibabel.__file__).parent / "nicom" / "tests" / "data" / "philips_mprage.dcm.gz"
    if not packed.exists():
        pytest.skip("nibabel is installed without its test data")
    path = tmp_path / "a.dcm"
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    volume = read_volume([path])
    assert volume.array.shape == (1, 256, 256, 176)  # a sagittal scan: its 176 slices run from side to side
    assert volume.affine is not None
    for group in pydicom.dcmread(path, stop_before_pixels=True).PerFrameFunctionalGroupsSequence:
        first = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float) * (-1, -1, 1)
        index = (np.linalg.inv(volume.affine) @ (*first, 1))[:3]
        np.testing.assert_allclose(index, (round(index[0]), 255, 255), rtol=0, atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nibabel.nicom.dicomwrappers import wrapper_from_file

        wrapped = wrapper_from_file(path)
        theirs = np.diag([-1, -1, 1, 1]) @ wrapped.affine
    turn = nibabel.io_orientation(theirs)
    expected = theirs @ nibabel.orientations.inv_ornt_aff(turn, wrapped.image_shape)
    # nibabel takes the normal and the stated spacing for the step from slice to slice; over 175 slices this is 1 um.
    np.testing.assert_allclose(volume.affine, expected, rtol=0, atol=2e-3)


# Masks of slices ------------------------------------------------------------


@pytest.mark.parametrize("kind", ["series", "enhanced", "nifti", "images"])
@pytest.mark.parametrize("axes", [DIRECTIONS["axial"], DIRECTIONS["oblique sagittal"], DIRECTIONS["oblique coronal"]])
def test_masks_of_slices_lie_as_the_voxels_do_and_come_back(
    axes: npt.NDArray[np.float64], kind: str, tmp_path: Path
) -> None:
    affine, frames = affine_of(axes, (3.0, 1.0, 0.7), ORIGIN), None
    if kind == "series":
        paths = shuffled(write_series(tmp_path, scan(), affine, inter=0))
    elif kind == "images":
        paths = [tmp_path / f"{number}.png" for number in range(5)]
        for path, pixels in zip(paths, scan(), strict=True):
            PIL.Image.fromarray(pixels.astype(np.uint16)).save(path)
    else:
        write = write_enhanced if kind == "enhanced" else write_nifti
        paths = [write(tmp_path / ("a.dcm" if kind == "enhanced" else "a.nii"), scan(), affine)]
        frames = np.random.default_rng(8).permutation(count_frames(paths[0])).tolist()
        paths *= len(frames)
    pairs = zip(paths, frames or [None] * len(paths), strict=True)
    slices = np.stack([read_image(path, frame=frame).array[0] for path, frame in pairs])
    layout, volume = find_layout(paths, frames), read_volume(paths, frames)
    np.testing.assert_array_equal(layout.lay(slices), volume.array[0])
    np.testing.assert_array_equal(layout.take(volume.array[0]), slices)
    whole = find_layout(paths[:1])
    assert len(whole.places) == (1 if kind in ("series", "images") else count_frames(paths[0]))
    with pytest.raises(UsageError, match=f"expected slices \\[{len(paths)}, H, W\\]"):
        layout.lay(slices[1:])


def test_masks_of_copies_and_localizers(tmp_path: Path) -> None:
    paths = series_in(tmp_path / "a")
    scout = series_in(tmp_path / "b", depth=1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    given = [scout[0], *paths, series_in(tmp_path / "c")[2]]
    layout = find_layout(given)
    assert layout.places.tolist() == [-1, 0, 1, 2, 3, 4, 5, 2]
    masks = np.arange(8)[:, None, None] * np.ones((8, 6, 7), np.int64)
    assert layout.lay(masks)[:, 0, 0].tolist() == [1, 2, 3, 4, 5, 6]
    assert layout.take(layout.lay(masks))[:, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 3]


# Real series, and headers that lie ------------------------------------------------------------


def test_a_ct_series_of_pydicom_lies_where_simpleitk_says(sitk: Any) -> None:
    folder = Path(get_testdata_file("DICOMDIR", download=False)).parent
    paths = [path for path in sorted((folder / "77654033" / "CT2").iterdir()) if path.is_file()]
    with pytest.raises(ImageError, match=r"expected a slice every 1\.25 mm, found 161 missing"):
        read_volume(paths)
    paths = [path for path in sorted((folder / "98892003" / "MR700").iterdir()) if path.is_file()]
    with pytest.raises(ImageError, match="expected slices of one direction, found 7 among 7: localizers"):
        read_volume(paths)
    folder = next(path for path in folder.rglob("CT5N"))
    paths = shuffled([path for path in sorted(folder.iterdir()) if path.is_file()])
    volume = read_volume(paths)
    theirs = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    assert volume.affine is not None
    assert volume.notes == ()
    for k, j, i in ((0, 0, 0), (4, 15, 15), (2, 3, 11), (1, 14, 2)):
        x, y, z, _ = volume.affine @ (i, j, k, 1.0)
        index = theirs.TransformPhysicalPointToIndex((-x, -y, z))
        assert theirs.GetPixel(index) == volume.array[0, k, j, i]


@pytest.mark.parametrize(
    ("tags", "why"),
    [
        ({"NumberOfFrames": 10**9}, r"000\.dcm: damaged: expected .* bytes for 1000000000 frames"),
        ({"ImagePositionPatient": ["1e300", "0", "0"]}, "expected all slices to say where they lie, found 1"),
        ({"ImageOrientationPatient": ["0"] * 6}, "expected slices of one direction, found 2"),
    ],
)
def test_headers_that_lie_are_refused(tags: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=why):
        read_volume(series_in(tmp_path, tags=[tags, {}, {}, {}, {}, {}]))
