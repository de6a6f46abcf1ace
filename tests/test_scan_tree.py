"""`bolus.scanning.tree`: trees of images by a pattern that is given or guessed, row by row."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.errors import CohortError, UsageError
from bolus.planning.offers.images import suggest_unit
from bolus.scanning.days import about_visits, number_visits
from bolus.scanning.files import walk
from bolus.scanning.found import Found
from bolus.scanning.parts import Asked, find_parts
from bolus.scanning.tree.finder import find_tree
from bolus.scanning.tree.guess import guess_pattern
from bolus.scanning.tree.pattern import compile_pattern
from bolus.scanning.tree.words import looks_like
from image_trees import write_image, write_images, write_video, write_volume


def rows_of(found: Found, root: Path, *columns: str) -> list[tuple[object, ...]]:
    """The image's path below the root, and columns, with None where they are missing."""
    table = found.table[["image", *columns]].astype(object)
    table["image"] = [Path(path).relative_to(root).as_posix() for path in table["image"]]
    return [tuple(None if pd.isna(cell) else cell for cell in row) for row in table.itertuples(index=False)]


def cohort_of(found: Found) -> Cohort:
    table = found.table.drop(columns="date", errors="ignore")
    return Cohort(table, CohortSpec(table="t.csv", roles={role: name for name, role in found.roles.items()}))


def test_label_patient_image(tmp_path: Path) -> None:
    names = [
        f"{label}/P{n:02d}/{side}.png"
        for label, ns in (("edema", range(4)), ("none", range(3, 8)))
        for n in ns
        for side in "ab"
    ]
    root = write_images(tmp_path, *names)
    (root / "readme.txt").write_text("x")
    (root / "edema/P00/torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (root / "edema/P00/empty.png").touch()
    (root / "edema/P00/.DS_Store").write_text("x")
    (root / "edema/P00/note.png").write_text("no picture")
    found = find_tree(root)
    expected = [(name, name.split("/")[1], name.split("/")[0]) for name in sorted(names)]
    expected.insert(2, ("edema/P00/torn.png", "P00", "edema"))  # its first bytes are those of PNG: check reads it all
    assert rows_of(found, root, "patient", "label:finding") == expected
    assert found.roles == {"image": "image", "patient": "patient", "label:finding": "label:finding"}
    assert found.identifying == ("patient",)
    assert {reason: [path.name for path in paths] for reason, paths in found.left_out.items()} == {
        "tables, texts and archives beside the images": ["readme.txt"],
        "empty files": ["empty.png"],
        "files of the operating system": [".DS_Store"],
        "files that are no image": ["note.png"],
    }
    assert len(found.notes) == 2
    guessed = "{label:finding}/{patient}/{image} (8 patients, 2 folders as {label:finding})"
    assert found.notes[0] == f"The pattern was guessed: {guessed}; --pattern says another one."
    assert "if they name persons, say another --pattern" in found.notes[1]
    assert cohort_of(found).labels("finding").classes == ("edema", "none")


def test_copies_are_one_row_with_all_classes(tmp_path: Path) -> None:
    root = write_images(tmp_path, "edema/p1/a.png", "edema/p2/b.png", "mass/p3/c.png", "mass/p3/d.png")
    for source, copy in (("edema/p1/a.png", "mass/p1/z.png"), ("edema/p2/b.png", "mass/p9/b.png"),
                         ("mass/p3/c.png", "mass/p3/copy.png")):  # fmt: skip
        (root / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / source, root / copy)
    found = find_tree(root, pattern="{label:finding}/{patient}/{image}")
    assert rows_of(found, root, "patient", "label:finding") == [
        ("edema/p1/a.png", "p1", "edema|mass"),
        ("edema/p2/b.png", "p2", "edema"),
        ("mass/p3/c.png", "p3", "mass"),
        ("mass/p3/d.png", "p3", "mass"),
    ]
    copies = found.left_out["copies of another file (the same bytes)"]
    assert [path.name for path in copies] == ["z.png", "copy.png", "b.png"]
    assert "1 files stand under several patients; each was taken once." in found.notes
    assert "label:finding: 1 images have several classes" in found.notes[-1]
    assert cohort_of(found).labels("finding").classes == ("edema", "mass")


def test_patient_visit_image(tmp_path: Path) -> None:
    names = ["1001/V1/a.jpg", "1001/V1/b.jpg", "1001/V2/a.jpg", "1002/V1/a.jpg", "1003/V3/x.tif", "1003/V10/x.tif"]
    root = write_images(tmp_path, *names)
    write_image(root / "1003/extra/deep/x.tif")
    found = find_tree(root, [path for path in walk(root) if "deep" not in path.parts])
    assert rows_of(found, root, "patient", "visit") == [
        ("1001/V1/a.jpg", "1001", 1),
        ("1001/V1/b.jpg", "1001", 1),
        ("1001/V2/a.jpg", "1001", 2),
        ("1002/V1/a.jpg", "1002", 1),
        ("1003/V10/x.tif", "1003", 10),
        ("1003/V3/x.tif", "1003", 3),
    ]
    given = find_tree(root, pattern="{patient}/{visit}/{image}")
    assert given.table["visit"].tolist() == found.table["visit"].tolist()
    assert [path.name for path in given.left_out["paths that do not fit the pattern"]] == ["x.tif"]
    assert "guessed" not in " ".join(given.notes)


def test_flat_names_of_patient_visit_side(tmp_path: Path) -> None:
    names = [
        f"{n:03d}_{visit}_{side}.png" for n in (7, 12, 31) for visit in ("baseline", "m06") for side in ("OD", "OS")
    ]
    root = write_images(tmp_path, *names)
    found = find_tree(root)
    assert rows_of(found, root, "patient", "visit", "laterality") == [
        (name, name[:3], 6 if "m06" in name else 0, "OD" if "OD" in name else "OS") for name in names
    ]
    assert "{patient}_{visit}_{laterality}" in found.notes[0]
    assert cohort_of(found).values("laterality").tolist() == ["right", "left"] * 6
    assert suggest_unit(cohort_of(found))[0] == "image"


def test_dates_become_dates(tmp_path: Path) -> None:
    root = write_images(tmp_path, "p1/20190304/a.png", "p1/20200101/a.png", "p2/20180611/a.png")
    for pattern in (None, "{patient}/{date}/{image}", "{patient}/{visit}/{image}"):
        found = find_tree(root, pattern=pattern)
        assert found.table["date"].dt.strftime("%Y%m%d").tolist() == ["20190304", "20200101", "20180611"]
        assert "visit" not in found.table
        assert "date" not in found.roles
    write_image(root / "p2/later/a.png")
    with pytest.raises(CohortError, match=r"\{date\}: expected a date .* found something else in 1 of 4"):
        find_tree(root, pattern="{patient}/{date}/{image}")


def test_videos_are_clips(tmp_path: Path) -> None:
    for name in ("P1/BEDLM/a1.mp4", "P1/BEDLM/b2.mp4", "P2/BEDLM/c3.avi"):
        write_video(tmp_path / name)
    found = find_tree(tmp_path)
    assert rows_of(found, tmp_path, "patient") == [
        ("P1/BEDLM/a1.mp4", "P1"),
        ("P1/BEDLM/b2.mp4", "P1"),
        ("P2/BEDLM/c3.avi", "P2"),
    ]
    assert suggest_unit(cohort_of(found)) == ("clip", "A row is a file of several frames.")
    frames = find_tree(tmp_path, unit="image")
    assert frames.table["order"].tolist() == [0, 1, 2, 3, 4] * 3
    assert frames.table["series"].nunique() == 3
    assert frames.identifying == ("patient", "series")
    assert len(cohort_of(frames).samples("clip")) == 3


def test_frames_as_files_are_series(tmp_path: Path) -> None:
    root = write_images(tmp_path, *(f"p{n}/run1/f{frame}.png" for n in (1, 2) for frame in (9, 10)))
    shutil.copy(root / "p1/run1/f9.png", root / "p1/run1/f10.png")  # two frames may be alike
    for pattern in ("{patient}/{series}/f{order}", "{patient}/{*}/f{order}"):
        found = find_tree(root, pattern=pattern)
        assert found.table["order"].tolist() == [10, 9, 10, 9]
        assert found.table["series"].nunique() == 2  # run1 of p1 is not run1 of p2
        assert len(cohort_of(found).samples("clip")) == 2


def test_volumes_with_masks_are_slices(tmp_path: Path) -> None:
    for patient in ("case1", "case2"):
        write_volume(tmp_path / f"imagesTr/{patient}_0000.nii.gz")
        write_volume(tmp_path / f"labelsTr/{patient}.nii.gz", dtype=np.uint8)
    write_volume(tmp_path / "imagesTr/case3_0000.nii.gz")
    write_volume(tmp_path / "labelsTr/case3.nii.gz", step=1.5)
    write_volume(tmp_path / "labelsTr/case4.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.ones((3, 3, 2, 4), np.int16), np.eye(4)), tmp_path / "imagesTr/case5_0000.nii")
    found = find_tree(tmp_path, pattern="imagesTr/{patient}_{*}")
    assert rows_of(found, tmp_path, "patient", "order") == [
        (f"imagesTr/case{n}_0000.nii.gz", f"case{n}", order) for n in (1, 2, 3) for order in (0, 1, 2)
    ]
    masks = [None if pd.isna(mask) else Path(mask).name for mask in found.table["mask"]]
    assert masks == ["case1.nii.gz"] * 3 + ["case2.nii.gz"] * 3 + [None] * 3
    assert {reason: [path.name for path in paths] for reason, paths in found.left_out.items()} == {
        "several volumes in a file (4-D NIfTI), which are not read yet": ["case5_0000.nii"],
        "files named like masks, of which no image or several have the rest of their name": ["case4.nii.gz"],
        "masks on other voxels than their image": ["case3.nii.gz"],
    }
    assert found.table[["spacing_row", "spacing_column"]].drop_duplicates().values.tolist() == [[1, 2]]
    assert len(find_tree(tmp_path, pattern="imagesTr/{patient}_{*}", unit="clip").table) == 3


def test_masks_beside_images(tmp_path: Path) -> None:
    root = write_images(tmp_path, "p1/a.png", "p1/a_mask.png", "p1/b.png", "p2/c.png", "p2/c_seg.jpg")
    found = find_tree(root)
    assert rows_of(found, root, "patient", "mask") == [
        ("p1/a.png", "p1", str(root / "p1/a_mask.png")),
        ("p1/b.png", "p1", None),
        ("p2/c.png", "p2", None),
    ]
    assert [path.name for path in found.left_out["masks as JPEG or video, which change labels at their edges"]] == [
        "c_seg.jpg"
    ]


def test_words_for_masks_alone_make_none(tmp_path: Path) -> None:
    root = write_images(tmp_path, *(f"{label}/p{n}/x.png" for label in ("mask", "bare") for n in range(4)))
    found = find_tree(root)
    assert len(found.table) == 8
    assert set(found.table["label:finding"]) == {"mask", "bare"}


@pytest.mark.parametrize(
    ("paths", "pattern"),
    [
        ([f"p{n}_x{i}.png" for n in range(9) for i in range(2)], "{patient}_{image}"),
        ([f"{n}_{side}.jpg" for n in range(5) for side in ("left", "right")], "{patient}_{laterality}"),
        ([f"img_{n:03d}_{v}.png" for n in range(5) for v in ("AP", "LAT")], "{*}_{patient}_{view_position}"),
        ([f"{s}/p{n}/1.png" for n, s in enumerate(["train", "val", "train"])], "{split}/{patient}/{image}"),
        ([f"site{n % 2}/p{n}/1.png" for n in range(6)], "{site}/{patient}/{image}"),
        ([f"p{n}/p{n}_{m}.nii.gz" for n in range(3) for m in ("T1w", "FLAIR")], "{patient}/{patient}_{modality}"),
        ([f"{x}/p{n}_{s}.png" for x, ns in (("a", range(4)), ("b", range(4, 8))) for n in ns for s in "LR"],
         "{label:finding}/{patient}_{laterality}"),
    ],
)  # fmt: skip
def test_regular_trees_are_guessed(paths: list[str], pattern: str) -> None:
    assert guess_pattern(paths).text == pattern
    compiled = compile_pattern(pattern, strict=True)
    assert all(compiled.match(path) for path in paths)


@pytest.mark.parametrize(
    "paths",
    [
        [f"scan{n}.png" for n in range(20)],  # each image of another patient
        [f"{label}/im{n}.png" for label in ("a", "b") for n in range(9)],  # numbers that begin anew in each class
        ["p1/a.png", "p1/v1/b.png", "c.png", "p2/v1/x/d.png"],
        [f"Name_{chr(97 + n)}/{1000 + n}/1.png" for n in range(8)],  # persons, or classes of few patients
        [f"Name_{chr(97 + n // 3)}/{1000 + n}/1.png" for n in range(24)],
        ["anna/1.png", "ben/1.png"],
    ],
)
def test_what_may_be_something_else_is_not_guessed(paths: list[str]) -> None:
    with pytest.raises(CohortError, match=r"--pattern '\{label:finding\}/\{patient\}/\{image\}'") as error:
        guess_pattern(paths)
    for path in paths:
        assert path not in str(error.value)
        assert not {part for part in path.split("/")[:-1] if len(part) > 2} & set(str(error.value).split("'"))


def test_names_with_more_parts_than_the_guess_are_left_out(tmp_path: Path) -> None:
    names = [f"p{n}_V{v}_OD.png" for n in range(6) for v in (1, 2)]
    found = find_tree(write_images(tmp_path, *names, "p1_p7_V1_OD.png"))
    assert len(found.table) == len(names)
    assert len(found.left_out["paths that do not fit the pattern"]) == 1
    given = find_tree(tmp_path, pattern="{patient}_{visit}_{laterality}")
    assert "p1_p7" in set(given.table["patient"])  # as given, the first part takes what is more


@pytest.mark.parametrize(
    ("pattern", "path", "found"),
    [
        ("{patient}/{image}", "p/a.png", {"patient": "p"}),
        ("{patient}/{image}", "p/x/a.png", None),
        ("{patient}-{age}-{sex}.png", "a-b-061Y-F.png", {"patient": "a-b", "age": "061Y", "sex": "F"}),
        ("{patient}-{age}-{sex}.png", "a-061Y-F.jpg", None),
        ("{patient}/{patient}_{image}", "p1/p1_x.png", {"patient": "p1"}),
        ("{patient}/{patient}_{image}", "p1/p2_x.png", None),
        ("v1.0/{subject}({visit})", "v1.0/x(2).dcm", {"patient": "x", "visit": "2"}),
        ("v1.0/{subject}({visit})", "v1x0/x(2).dcm", None),
        ("{patient}_{image}", "p_a_b.png", {"patient": "p"}),
        ("{score:mmse}/{patient}/{*}", "28/p/x.nii.gz", {"score:mmse": "28", "patient": "p"}),
    ],
)
def test_patterns(pattern: str, path: str, found: dict[str, str] | None) -> None:
    assert compile_pattern(pattern).match(path) == found


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{label:x}/{image}", "no part is the patient"),
        ("{patient}/{laterallity}", "did you mean 'laterality'"),
        ("{patient}{visit}", "nothing between them"),
        ("{patient}/{image", "a bracket without its other one"),
        ("{patient}/{mask}", "unknown role 'mask'"),
        ("{patient}/{label:}", "unknown role 'label:'"),
    ],
)
def test_patterns_that_cannot_be(pattern: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compile_pattern(pattern)


def test_parts_that_are_not_what_their_role_says(tmp_path: Path) -> None:
    root = write_images(tmp_path, "p1_x_secret.png", "p2_y_L.png")
    for pattern, message in (
        ("{patient}_{*}_{laterality}", "expected left or right .* in 1 of 2"),
        ("{patient}_{score:a}_{*}", "expected a number in each path, found something else in 2 of 2"),
        ("other/{patient}", "none of 2 paths fits"),
    ):
        with pytest.raises(CohortError, match=message) as error:
            find_tree(root, pattern=pattern)
        assert "secret" not in str(error.value)


def test_a_folder_without_images_has_no_rows_but_reasons(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x")
    found = find_tree(tmp_path)
    assert found.table.empty
    assert list(found.left_out) == ["tables, texts and archives beside the images"]


def test_a_mask_of_two_images_is_of_none(tmp_path: Path) -> None:
    root = write_images(tmp_path, "p1/a.png", "p1/a.jpg", "p1/a_mask.png", "p2/b.png", "p2/b_mask.png")
    found = find_tree(root)
    assert found.table["mask"].notna().tolist() == [False, False, True]
    assert [path.name for paths in found.left_out.values() for path in paths] == ["a_mask.png"]


def test_words_that_look_like_nothing_are_words() -> None:
    assert looks_like({"a1", "b", "c"}) == "word"
    assert looks_like({"T1w", "FLAIR"}) == "modality"
    assert looks_like({"u", "b"}) == "word"  # DICOM's unpaired and both, but neither side
    assert looks_like({"20240101", "20241399"}) == "identifier"


@pytest.mark.parametrize(
    ("paths", "pattern"),
    [
        ([f"images_{n // 6:03d}/images/{n:08d}_{i:03d}.png" for n in range(24) for i in range(2)],
         "{*}/{*}/{patient}_{image}"),
        ([f"{2019 + n % 2}/PAT{n:04d}/img{i}.png" for n in range(8) for i in range(2)], "{*}/{patient}/{image}"),
        ([f"2019-0{n % 2 + 1}/PAT{n:04d}/img{i}.png" for n in range(8) for i in range(2)], "{*}/{patient}/{image}"),
        ([f"{6 * i}months/PAT{n:04d}/a.png" for n in range(8) for i in range(2)], "{visit}/{patient}/{image}"),
        ([f"1{n:03d}/V{i}/a.png" for n in range(8) for i in range(2)], "{patient}/{visit}/{image}"),
        ([f"P{n}/s{s:03d}/img{i}.png" for n in range(4) for s in range(40) for i in range(2)], "{patient}/{*}/{image}"),
        ([f"P{n}/c{n}{s}_{i}.png" for n in range(4) for s in range(2) for i in range(2)], "{patient}/{image}"),
    ],
)  # fmt: skip
def test_batches_and_years_are_no_patients(paths: list[str], pattern: str) -> None:
    assert guess_pattern(paths).text == pattern


@pytest.mark.parametrize(
    "paths",
    [
        [f"c{n // 10}/PAT{n:04d}/img{i}.png" for n in range(40) for i in range(2)],  # batches, or exams of patients
        [f"p1{n // 10}/{n:08d}_{i:03d}.png" for n in range(40) for i in range(2)],
        [f"vol{n}/slice{i:02d}.png" for n in range(4) for i in range(9)],  # volumes, or discs of many patients
        [f"{1990 + n}/{i}.png" for n in range(9) for i in range(3)],
    ],
)
def test_levels_that_may_hold_many_patients_are_asked_for(paths: list[str]) -> None:
    with pytest.raises(CohortError, match="the paths do not say which image is of which patient") as error:
        guess_pattern(paths)
    assert not {paths[0].split("/")[0], "PAT0001"} & set(str(error.value).replace("'", "/").split("/"))


@pytest.mark.parametrize(
    ("names", "numbers", "certain"),
    [
        (["post", "pre"], [2, 1], True),
        (["initial", "follow-up"], [1, 2], True),
        (["12months", "24months", "6months", "baseline"], [12, 24, 6, 0], True),
        (["baseline", "6 weeks", "3mo", "1year"], [0, 42, 91, 365], True),
        (["d10", "w2", "m1"], [10, 14, 30], True),
        (["FU1", "V1", "V2", "V10"], [4, 1, 2, 3], False),
        (["post", "mid", "pre"], [3, 2, 1], False),
        (["1yr", "1year"], [2, 1], False),  # of one length
        (["V1"], [1], True),
        (["post"], [1], True),
    ],
)
def test_visits_are_numbered_in_their_order_in_time(names: list[str], numbers: list[float], certain: bool) -> None:
    found, how = number_visits(pd.Series(names))
    assert found.tolist() == numbers
    assert about_visits("the names", pd.Series(found), how).startswith("visit" if certain else "warning: visit")


def test_folders_that_are_not_entered_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_images(tmp_path / "tree", "p1/a.png", "p1/b.png", "p2/a.png", "closed.zip/a.png")
    (root / "p3").symlink_to(write_images(tmp_path / "elsewhere", "p3/a.png") / "p3")
    opened = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == "closed.zip":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for found in (find_tree(root), find_parts(root, Asked(processes=1))):
        assert rows_of(found, root, "patient") == [("p1/a.png", "p1"), ("p1/b.png", "p1"), ("p2/a.png", "p2")]
        assert found.left_out == {
            "links to folders, which are not entered": [root / "p3"],
            "folders that cannot be opened": [root / "closed.zip"],
        }
