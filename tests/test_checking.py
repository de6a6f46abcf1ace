"""The preflight: each fault is planted in tiny images and found, with its rows and without naming a patient."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image as PillowImage
from pydicom.data import get_testdata_file
from rich.console import Console

from bolus.data.checks import pixels as check_pixels
from bolus.data.checks.checking import CheckReport, Finding, check
from bolus.data.checks.sides import count_sides
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.data.pixels.image import Image, Range
from bolus.data.readers import frames, readers
from bolus.errors import CohortError, ImageError, LeakageError

SIDE = 16


def picture(seed: int, low: int = 20, high: int = 230, shape: tuple[int, ...] = (SIDE, SIDE)) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape)


def write(folder: Path, pictures: Sequence[np.ndarray | None], columns: dict[str, list[object]] | None = None) -> Path:
    """A table of PNG files, a patient each unless `columns` says else; None is a file that is not written."""
    folder.mkdir(parents=True, exist_ok=True)
    for row, pixels in enumerate(pictures):
        if pixels is not None:
            dtype = pixels.dtype if pixels.dtype in (np.uint8, np.uint16) else np.uint8
            PillowImage.fromarray(pixels.astype(dtype)).save(folder / f"{row}.png")
    table = {
        "image": [f"{row}.png" for row in range(len(pictures))],
        "patient": [f"P{row}" for row in range(len(pictures))],
    }
    pd.DataFrame({**table, **(columns or {})}).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def only(report: CheckReport, kind: str) -> Finding:
    (found,) = [finding for finding in report.findings if finding.kind == kind]
    return found


def kinds(report: CheckReport) -> set[str]:
    return {finding.kind for finding in report.findings}


def rendered(report: CheckReport) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.render(), highlight=False)
    text = console.export_text()
    assert "Columns" in text
    return text


def test_clean_cohort_has_no_errors_and_no_warnings(tiny_cohort: Path) -> None:
    report = check(tiny_cohort)
    assert report.errors == []
    assert report.warnings == []
    assert kinds(report) == {"rare_class"}  # 10 patients of each class
    assert report.cohort.spec.ranges == {}


def test_missing_and_damaged_files_are_grouped_by_reason(tmp_path: Path) -> None:
    table = write(tmp_path, [picture(seed) for seed in range(8)])
    (tmp_path / "1.png").unlink()
    (tmp_path / "4.png").unlink()
    (tmp_path / "2.png").write_bytes(b"")
    (tmp_path / "6.png").write_bytes(b"")
    (tmp_path / "3.png").write_bytes(b"not an image at all")
    report = check(table)
    assert only(report, "missing_file").rows == (2, 5)
    unreadable = [finding for finding in report.errors if finding.kind == "unreadable"]
    assert [finding.rows for finding in unreadable] == [(3, 7), (4,)]
    assert "the file is empty" in unreadable[0].message
    assert not any(".png" in finding.message for finding in report.findings)


def test_reasons_that_differ_in_numbers_alone_are_one_group(tmp_path: Path) -> None:
    pages = [PillowImage.fromarray(picture(seed).astype(np.uint8)) for seed in range(4)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:2])
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=pages[1:3])
    (tmp_path / "table.csv").write_text("image,patient,series,order\na.tif,P,s,1\nb.tif,P,s,2\n")
    found = only(check(tmp_path / "table.csv"), "unreadable")
    assert found.rows == (1, 2)
    assert "expected one frame, found 2" in found.message
    assert "role order" in found.message
    assert "(the first of several such numbers)" in found.message
    assert "such as attribute:series" in found.message


def clip(number: int, seed: int, low: int = 20, high: int = 230) -> list[np.ndarray]:
    return [picture(100 * seed + frame, low, high).astype(np.uint8) for frame in range(number)]


def write_pages(path: Path, pages: Sequence[np.ndarray]) -> None:
    first, *others = [PillowImage.fromarray(page) for page in pages]
    first.save(path, save_all=True, append_images=others)


def write_video(path: Path, pixels: Sequence[np.ndarray]) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = *pixels[0].shape, "gray"
        for page in pixels:
            for packet in stream.encode(av.VideoFrame.from_ndarray(page, format="gray")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)


def write_clip_files(folder: Path) -> Path:
    """DICOM, pages of a TIFF, a volume, a video, a saturated clip, a copy of the TIFF, a picture, a torn video."""
    (folder / "a.dcm").write_bytes(Path(get_testdata_file("emri_small.dcm", download=False)).read_bytes())
    write_pages(folder / "b.tif", clip(3, 1))
    nibabel.save(nibabel.Nifti1Image(np.stack(clip(6, 2), -1), np.eye(4)), folder / "c.nii.gz")
    write_video(folder / "d.avi", clip(7, 3))
    bright = clip(4, 4)
    for page in bright[:3]:
        page[:] = 255
    write_pages(folder / "e.tif", bright)
    write_video(folder / "f.avi", clip(3, 1))
    PillowImage.fromarray(picture(0).astype(np.uint8)).save(folder / "g.png")
    (folder / "h.avi").write_bytes((folder / "d.avi").read_bytes()[:3000])
    names = ["a.dcm", "b.tif", "c.nii.gz", "d.avi", "e.tif", "f.avi", "g.png", "h.avi"]
    modalities = ["MR", "XR", "CT", "XR", "XR", "XR", "XR", "XR"]
    frame = pd.DataFrame({"image": names, "patient": [f"P{row}" for row in range(8)], "modality": modalities})
    frame.to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def test_a_clip_file_is_one_record_of_all_its_frames(tmp_path: Path) -> None:
    report = check(write_clip_files(tmp_path))
    assert [(found.kind, found.rows) for found in report.errors] == [("unreadable", (8,))]
    note = only(report, "clip_files")
    assert (note.severity, note.rows) == ("note", (1, 2, 3, 4, 5, 6))
    assert note.message.startswith(
        "6 of 8 rows are clip files of 3 to 10 frames (median 5): recipes with images.unit=clip"
    )
    assert only(report, "saturated").rows == (5,)  # three of its four frames are
    assert only(report, "duplicate_across_patients").rows == (2, 6)  # the same frames, in a TIFF and in a video
    modalities = {each["modality"]: each for each in report.modalities}
    assert [modalities[name]["images"] for name in ("CT", "MR", "XR")] == [1, 1, 5]
    volume = np.stack(clip(6, 2))
    assert (modalities["CT"]["minimum"], modalities["CT"]["maximum"]) == (volume.min(), volume.max())
    assert "clip files of 3 to 10 frames" in " ".join(rendered(report).split())
    assert only(report, "frame_order").rows == note.rows


@pytest.mark.parametrize(
    ("table", "roles", "rows", "expected"),
    [
        ("image,patient\na.tif,P\nb.png,Q\n", {}, (1,), "no column was taken for order"),
        ("image,patient,frame\na.tif,P,0\nb.png,Q,0\n", {}, (1,), "column 'frame' was taken by its name for order"),
        (
            "image,patient,n\na.tif,P,0\na.tif,P,2\nb.png,Q,0\n",
            {"order": "n"},
            (1, 2),
            "column 'n' was taken for order",
        ),
        ("image,patient,series,n\na.tif,P,s,0\nb.png,P,s,1\n", {"order": "n"}, (1,), "column 'n' was taken for order"),
    ],
)
def test_files_of_several_frames_beside_single_images_say_what_numbers_the_frames(
    tmp_path: Path, table: str, roles: dict[str, str], rows: tuple[int, ...], expected: str
) -> None:
    write_pages(tmp_path / "a.tif", clip(3, 1))
    PillowImage.fromarray(picture(0).astype(np.uint8)).save(tmp_path / "b.png")
    (tmp_path / "table.csv").write_text(table)
    found = only(check(Cohort.open(tmp_path / "table.csv", roles=roles)), "frame_order")
    assert (found.severity, found.rows) == ("note", rows)
    assert expected in found.message
    assert "add --role order=COLUMN" in found.message


@pytest.mark.parametrize("names", [("a.tif", "a.tif"), ("b.png", "b.png")])
def test_frames_are_not_spoken_of_where_files_are_alike(tmp_path: Path, names: tuple[str, str]) -> None:
    for folder in ("p", "q"):
        (tmp_path / folder).mkdir()
        write_pages(tmp_path / folder / "a.tif", clip(3, 1))
        PillowImage.fromarray(picture(0).astype(np.uint8)).save(tmp_path / folder / "b.png")
    (tmp_path / "table.csv").write_text(f"image,patient\np/{names[0]},P\nq/{names[1]},Q\n")
    assert "frame_order" not in kinds(check(tmp_path / "table.csv"))


def test_frames_together_measure_as_the_picture_that_they_make(tmp_path: Path) -> None:
    for inverted in (False, True):
        pixels = np.random.default_rng(0).integers(0, 3000, (3, 1, 8, 8)).astype(np.float32)
        pixels[0, 0, :2], pixels[1, 0, :3] = 0, 3000
        pixels[2] = pixels[2].clip(500, 600)  # whose ends are not the clip's

        def measure(array: np.ndarray, inverted: bool = inverted) -> dict[str, Any]:
            return check_pixels._measure(Image(array, None, Range(0, 65535, "container"), 16, inverted))

        whole = measure(np.concatenate(pixels, axis=1))
        joined = check_pixels._join([measure(frame) for frame in pixels])
        assert set(joined) == set(whole)
        for name in set(whole) - {"digest", "quantiles", "thumbnail"}:
            assert joined[name] == whole[name], name
        np.testing.assert_allclose(joined["quantiles"], whole["quantiles"], atol=60)  # of 3000, between 192 values
        assert joined["quantiles"][[0, -1]].tolist() == [0, 3000]


def test_a_clip_that_lost_frames_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, original = write_clip_files(tmp_path), check_pixels.read_as

    def torn(path: Path, asked: Any, *reading: Any) -> Any:
        for frame, image in zip(asked, original(path, asked, *reading), strict=True):
            yield ImageError(f"{path.name}: torn") if path.name == "d.avi" and frame >= 5 else image

    monkeypatch.setattr(check_pixels, "read_as", torn)
    report = check(table)
    lost = only(report, "lost_frames")
    assert (lost.severity, lost.rows) == ("warning", (4,))
    assert lost.message == "1 clip file has frames that cannot be read, 2 of 7 frames: torn"


def test_a_video_on_many_rows_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = clip(9, 0)
    pixels[4][:] = 0
    write_video(tmp_path / "v.avi", pixels)
    order = [3, 1, 2, 0, 4, 8, 7, 6, 5, 9]
    table = pd.DataFrame({"image": ["v.avi"] * 10, "patient": "P", "series": "s", "order": order})
    table.to_csv(tmp_path / "table.csv", index=False)
    original, decoded = readers.iterate_video, []
    monkeypatch.setattr(readers, "iterate_video", lambda path: decoded.append(path) or original(path))
    report = check(tmp_path / "table.csv")
    assert len(decoded) == 1
    assert only(report, "near_constant").rows == (5,)
    assert only(report, "unreadable").rows == (10,)
    assert "clip_files" not in kinds(report)


def test_series_are_looked_at_as_clips(tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {
        "patient": ["A", "A", "B", "B", "B", "C"],
        "series": ["s", "s", "t", "t", "t", "u"],
        "order": [0, 1, 0, 1, 2, 0],
    }
    pictures = [picture(seed) for seed in range(6)]
    report = check(write(tmp_path / "sound", pictures, columns))
    assert {each.kind for each in report.warnings} == {"small_side"}  # of three patients
    assert only(report, "clips").message == "3 clips by 'series', of 1 to 3 frames (median 2)"
    columns |= {"sex": ["F", "M", "F", "F", "F", "F"], "order": [0, 1, 0, 1, 1, 0]}
    report = check(write(tmp_path / "varying", pictures, columns))
    twice, varies = [finding for finding in report.warnings if finding.kind == "series"]
    assert (twice.rows, varies.rows) == ((4, 5), (2,))
    assert "no clips (images.unit=clip): attribute:sex ('sex') differs from the start of its series" in varies.message
    del columns["order"]
    (found,) = [
        each for each in check(write(tmp_path / "no_order", pictures, columns)).warnings if each.kind == "series"
    ]
    assert "missing: order" in found.message


def test_a_cohort_without_one_readable_image_is_reported_not_raised(tmp_path: Path) -> None:
    report = check(write(tmp_path, [None, None, None]))
    assert only(report, "missing_file").rows == (1, 2, 3)
    assert report.modalities == []
    assert "3 rows of 3 patients" in rendered(report)


def test_saturated_and_constant_images_are_warnings(tmp_path: Path) -> None:
    pictures = [picture(seed) for seed in range(12)]
    pictures[2][:9] = 255  # 9 of 16 lines at the bright end: over half
    pictures[3][:8] = 255  # exactly half: fine
    pictures[5][:] = 0
    pictures[5][0, :8] = 255  # 8 of 256 pixels: 97 % at the dark end
    pictures[6][:12] = 0  # 75 % black border: fine
    pictures[8][:] = 0  # constant, and not saturated too
    pictures[9][:] = 100 + (picture(9) % 2)  # one level of noise
    report = check(write(tmp_path, pictures))
    assert report.errors == []
    assert only(report, "saturated").rows == (3, 6)
    assert only(report, "saturated").severity == "warning"
    assert only(report, "near_constant").rows == (9, 10)


def test_more_than_half_suspicious_images_are_an_error_about_the_range(tmp_path: Path) -> None:
    # One outlier of 60000 among images up to 300 makes all others black.
    pictures = [picture(seed, 0, 300).astype(np.uint16) for seed in range(7)]
    pictures[3][0, 0] = 60000
    report = check(write(tmp_path, pictures))
    found = only(report, "near_constant")
    assert found.severity == "error"
    assert "wrong range" in found.message
    assert found.rows == (1, 2, 3, 5, 6, 7)
    assert report.cohort.spec.cohort_ranges == {"image": (0.0, 65535.0)}


def test_the_bright_end_of_an_inverted_image_is_its_low_values(tmp_path: Path) -> None:
    pixels = picture(0, 1000, 4000).astype(np.uint16)
    pixels[:10] = 0
    for row, photometric in enumerate((0, 1)):  # white is zero, black is zero
        PillowImage.fromarray(pixels).save(tmp_path / f"{row}.tif", tiffinfo={262: photometric})
    (tmp_path / "table.csv").write_text("image,patient\n0.tif,P1\n1.tif,P1\n")
    assert only(check(tmp_path / "table.csv"), "saturated").rows == (1,)


def test_grey_stored_as_colour_alpha_and_odd_channels(tmp_path: Path) -> None:
    pictures = [picture(seed) for seed in range(6)]
    pictures[1] = np.repeat(picture(1)[..., None], 3, axis=2)
    pictures[2] = picture(2, shape=(SIDE, SIDE, 3))
    pictures[4] = np.stack([picture(4), np.full((SIDE, SIDE), 99)], axis=2)  # grey with alpha
    report = check(write(tmp_path, pictures))
    assert only(report, "grey_as_color").rows == (2,)
    assert only(report, "channels").rows == (3,)
    assert only(report, "alpha_dropped").rows == (5,)
    assert report.errors == []
    assert kinds(report) == {"grey_as_color", "channels", "alpha_dropped", "empty_side"}  # few patients: none in test
    assert report.modalities[0]["channels"] == [1, 3]


def test_exact_copies_within_and_across_patients_and_splits(tmp_path: Path) -> None:
    pictures = [picture(seed) for seed in range(9)]
    pictures[1] = pictures[0]  # one patient
    pictures[3] = pictures[2]  # two patients, one side
    pictures[5] = pictures[4]  # two patients, two sides
    pictures[7] = pictures[8] = np.full((SIDE, SIDE), 9)  # empty images are no copies of one another
    columns: dict[str, list[object]] = {
        "patient": ["A", "A", "B", "C", "D", "E", "F", "G", "H"],
        "split": ["train", "train", "train", "train", "train", "test", "val", "train", "test"],
    }
    report = check(write(tmp_path, pictures, columns))
    assert only(report, "duplicate_within_patient").rows == (1, 2)
    assert only(report, "duplicate_within_patient").severity == "warning"
    assert only(report, "duplicate_across_patients").rows == (3, 4)
    assert only(report, "duplicate_across_patients").severity == "warning"
    assert only(report, "duplicate_across_splits").rows == (5, 6)
    assert report.errors == [only(report, "duplicate_across_splits")]
    assert report.findings[0].severity == "error"  # errors come first


def test_copies_are_found_by_pixels_not_by_bytes(tmp_path: Path) -> None:
    table = write(tmp_path, [picture(0), picture(1), picture(2)], {"patient": ["A", "A", "A"]})
    PillowImage.open(tmp_path / "0.png").save(tmp_path / "2.png", compress_level=0)
    assert (tmp_path / "0.png").read_bytes() != (tmp_path / "2.png").read_bytes()
    assert only(check(table), "duplicate_within_patient").rows == (1, 3)


def test_twelve_bits_in_sixteen_get_their_range(tmp_path: Path) -> None:
    deep = [picture(seed, 0, 4000).astype(np.uint16) for seed in range(4)]
    shallow = [picture(seed) for seed in range(10, 14)]
    table = write(tmp_path, [*deep, *shallow], {"modality": ["DX"] * 4 + ["XR"] * 4})
    before = Cohort.open(table)
    report = check(before)
    assert report.cohort.spec.cohort_ranges == {"DX": (0.0, 4095.0)}
    assert (before.spec.cohort_ranges, report.cohort.spec.ranges) == ({}, {})
    assert [each["modality"] for each in report.modalities] == ["DX", "XR"]
    assert (report.modalities[0]["bits"], report.modalities[0]["rule"]) == ([16], ["cohort"])
    assert (report.modalities[1]["high"], report.modalities[1]["rule"]) == (255.0, ["container"])
    assert not {"shallow", "mixed_ranges", "beyond_range"} & kinds(report)


def test_the_range_is_the_one_that_the_cache_uses(tmp_path: Path) -> None:
    from bolus.data.images.cache import Preprocessing, build_store

    table = write(tmp_path, [picture(seed, 3, 1500).astype(np.uint16) for seed in range(3)])
    report = check(table)
    store = build_store(Cohort.open(table), Preprocessing(8), folder=tmp_path / "cache")
    assert store.preprocessing.ranges == report.cohort.spec.cohort_ranges == {"image": (0.0, 2047.0)}


def test_eight_bits_in_sixteen_are_said(tmp_path: Path) -> None:
    report = check(write(tmp_path, [picture(seed).astype(np.uint16) for seed in range(4)]))
    assert "no value above 255 in files of 16 bits" in only(report, "shallow").message
    assert report.cohort.spec.cohort_ranges == {"image": (0.0, 255.0)}


def test_eight_and_sixteen_bits_in_one_modality(tmp_path: Path) -> None:
    pictures = [picture(0), picture(1, 0, 4000).astype(np.uint16), picture(2), picture(3)]
    assert only(check(write(tmp_path, pictures)), "mixed_ranges").rows == (2,)


def test_the_range_of_a_cohort_is_kept_and_what_lies_beyond_is_said(tmp_path: Path) -> None:
    table = write(tmp_path, [picture(seed, 0, top).astype(np.uint16) for seed, top in enumerate((900, 1000, 3000))])
    covering = check(Cohort.open(table, cohort_ranges={"image": (0, 1023)}))
    assert covering.cohort.spec.cohort_ranges == {"image": (0.0, 1023.0)}
    assert (only(covering, "beyond_range").severity, only(covering, "beyond_range").rows) == ("warning", (3,))
    window = check(Cohort.open(table, cohort_ranges={"image": (100, 950)}))
    assert (only(window, "beyond_range").severity, only(window, "beyond_range").rows) == ("note", (1, 2, 3))
    stated = check(Cohort.open(table, ranges={"image": (100, 950)}))
    assert "beyond_range" not in kinds(stated), "whoever states a range wants the rest black or white"
    assert (stated.cohort.spec.cohort_ranges, stated.modalities[0]["rule"]) == ({}, ["stated"])


def test_notes_of_the_reader_are_reported_once_per_kind(tiny_cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = frames.read_image

    def noted(path: Path, frame: int | None = None, **_: Any) -> object:
        image = original(path, frame=frame)
        image.notes = ("FOR PROCESSING",) if path.name.endswith("_0.png") else ("sigmoid applied",)
        return image

    monkeypatch.setattr(frames, "read_image", noted)
    processing, sigmoid = [finding for finding in check(tiny_cohort).findings if finding.kind == "reader"]
    assert processing == Finding("warning", "reader", "20 images: FOR PROCESSING", tuple(range(1, 61, 3)))
    assert (sigmoid.severity, sigmoid.message, len(sigmoid.rows)) == ("note", "40 images: sigmoid applied", 40)


def test_columns_that_say_nothing(tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {
        "patient": [f"P{row // 2}" for row in range(12)],
        "free": [f"text {row}" for row in range(12)],
        "same": ["yes"] * 12,
        "none": [""] * 12,
        "age": list(range(40, 52)),
        "site": ["here"] * 11 + [""],
    }
    table = write(tmp_path, [picture(seed) for seed in range(12)], columns)
    roles = {"label:free": "free", "label:same": "same", "score:none": "none"}
    report = check(Cohort.open(table, roles=roles))
    assert "'free'" in only(report, "unique_column").message  # age, different in every row too, is a number
    assert "'none'" in only(report, "empty_column").message
    constant = {
        finding.message.split()[0]: finding.severity for finding in report.findings if "same in" in finding.message
    }
    assert constant == {"label:same": "warning", "site": "note"}
    records = {each["role"]: each for each in report.columns}
    assert records["site"] == {"role": "site", "column": "site", "present": 11 / 12, "distinct": 1}
    assert records["score:none"]["present"] == 0


def test_rare_classes_count_patients_not_images(tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {
        "patient": [f"P{row % 22:02d}" for row in range(44)],
        "finding": ["rare|common" if row % 22 < 3 else "common" for row in range(44)],
    }
    table = write(tmp_path, [picture(seed, shape=(8, 8)) for seed in range(44)], columns)
    report = check(Cohort.open(table, roles={"label:finding": "finding"}))
    assert only(report, "rare_class").severity == "note"
    assert only(report, "rare_class").message.endswith("positive patients: rare 3")


def test_sides_count_rows_patients_and_follow_up(tiny_cohort: Path, tmp_path: Path) -> None:
    report = check(tiny_cohort)
    sides = {each.pop("side"): each for each in report.splits}
    assert sides["all"] == {"rows": 60, "patients": 20, "with_two_visits": 20}
    assert sum(sides[side]["rows"] for side in ("train", "val", "test")) == 60
    pictures = [picture(seed) for seed in range(4)]
    columns: dict[str, list[object]] = {"patient": list("AABC"), "split": ["train", "train", "val", "val"]}
    without = check(write(tmp_path / "other", pictures, columns))
    assert without.splits[0] == {"side": "train", "rows": 2, "patients": 1}
    assert only(without, "empty_side").message == "no patient in test"


def test_a_cohort_that_cannot_be_opened_raises_as_open_does(tmp_path: Path) -> None:
    pictures = [picture(seed) for seed in range(3)]
    table = write(tmp_path, pictures, {"patient": ["A", "A", "B"], "split": ["train", "test", "train"]})
    with pytest.raises(CohortError, match="rows 1, 2"):
        check(table)
    assert issubclass(LeakageError, CohortError)


def test_progress_and_workers(tiny_cohort: Path) -> None:
    steps: list[tuple[int, int]] = []
    one = check(tiny_cohort, workers=1, on_progress=lambda done, total: steps.append((done, total)))
    assert steps == [(done, 60) for done in range(1, 61)]
    many = check(tiny_cohort, workers=4)
    assert (one.findings, one.columns, one.modalities, one.splits) == (
        many.findings,
        many.columns,
        many.modalities,
        many.splits,
    )


@pytest.fixture
def faulty(tmp_path: Path) -> Callable[[], CheckReport]:
    """A cohort with every kind of fault, whose patients' names stand in identifiers, file names and folders."""

    def build() -> CheckReport:
        folder = tmp_path / "faulty"
        pictures: list[np.ndarray | None] = [picture(seed) for seed in range(14)]
        pictures[1] = pictures[2]
        pictures[3] = pictures[4]
        pictures[5] = np.full((SIDE, SIDE), 3)
        pictures[6] = picture(6, shape=(SIDE, SIDE, 3))
        pictures[7] = picture(7, 0, 3000).astype(np.uint16)
        names = [f"Surname{row // 2}" for row in range(14)]
        write(folder, pictures, {"patient": names, "rank": [f"r{row}" for row in range(14)]})
        table = pd.read_csv(folder / "table.csv")
        for row, name in enumerate(names):
            (folder / name).mkdir(exist_ok=True)
            target = f"{name}/{name}_{row}.png"
            shutil.move(folder / f"{row}.png", folder / target)
            table.loc[row, "image"] = target
        (folder / table["image"][8]).write_bytes(b"damaged")
        (folder / table["image"][9]).unlink()
        whole = (folder / table["image"][10]).read_bytes()
        (folder / table["image"][10]).write_bytes(whole[: len(whole) // 2])
        table.to_csv(folder / "table.csv", index=False)
        return check(Cohort.open(folder / "table.csv", roles={"label:rank": "rank"}))

    return build


def test_no_patient_occurs_in_the_report(faulty: Callable[[], CheckReport], tmp_path: Path) -> None:
    report = faulty()
    assert {"missing_file", "unreadable", "near_constant", "channels", "mixed_ranges", "unique_column"} <= kinds(report)
    report.write(tmp_path / "report.json")
    for text in (rendered(report), (tmp_path / "report.json").read_text(), repr(report.findings)):
        assert "Surname" not in text


def test_json_and_terminal_hold_the_same_findings(faulty: Callable[[], CheckReport], tmp_path: Path) -> None:
    report = faulty()
    report.write(tmp_path / "new" / "folder" / "report.json")
    data = json.loads((tmp_path / "new" / "folder" / "report.json").read_text())
    assert [Finding(**{**each, "rows": tuple(each["rows"])}) for each in data["findings"]] == report.findings
    assert (data["ranges"], data["cohort_ranges"]) == ({}, {"image": [0.0, 4095.0]})
    assert (data["rows"], data["patients"], data["table"]) == (14, 7, "table.csv")
    assert {each["role"] for each in data["columns"]} == set(report.cohort.roles)
    assert data["unused"] == [each._asdict() for each in report.unused]
    text = rendered(report)
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    for finding in report.findings:
        assert "".join(finding.message.split()) in "".join(text.split())  # a long path is broken
    for each in report.unused:
        assert each.column in text
    assert words.endswith(f"{len(report.errors)} errors, {len(report.warnings)} warnings, 0 notes")


def test_column_names_are_no_markup(tmp_path: Path) -> None:
    table = write(tmp_path, [picture(seed) for seed in range(3)], {"[red]x[/red]": ["a", "b", "b"]})
    text = rendered(check(Cohort.open(table, roles={"label:x": "[red]x[/red]"})))
    assert "[red]x[/red]" in text


def test_the_cohort_it_returns_can_be_saved_and_opened(tmp_path: Path) -> None:
    report = check(write(tmp_path, [picture(seed, 0, 900).astype(np.uint16) for seed in range(3)]))
    report.cohort.save(tmp_path / "cohort.yaml")
    again = check(tmp_path / "cohort.yaml")
    assert again.cohort.spec == report.cohort.spec
    assert again.cohort.spec.cohort_ranges == {"image": (0.0, 1023.0)}


@pytest.mark.data
def test_real_radiographs(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "nih1000"
    pd.read_csv(source / "meta.csv", dtype=str).head(100).to_csv(tmp_path / "first.csv", index=False)
    roles = {"visit": "followup", "label:findings": "findings"}
    report = check(Cohort.open(tmp_path / "first.csv", roles=roles, root=str(source)))
    assert report.errors == []
    assert report.modalities[0]["images"] == 100
    assert report.modalities[0]["bits"] == [8]
    assert report.splits[-1]["with_two_visits"] > 5
    report.write(tmp_path / "report.json")
    assert "0000" not in (tmp_path / "report.json").read_text()


def test_two_images_of_one_day_are_one_visit() -> None:
    days = ["2024-01-31 10:00", "2024-01-31 10:02", "2024-01-31 09:00", "2024-02-01 09:00"]
    frame = pd.DataFrame({"image": list("abcd"), "patient": list("ppqq"), "time": days})
    assert count_sides(Cohort(frame, CohortSpec(table="t.csv")))[-1]["with_two_visits"] == 1
