"""The cohort: roles, missing codes, all violations at once, labels, dates, clips, and the file that says it all."""

from __future__ import annotations

import datetime
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from pydicom.data import get_testdata_file

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.roles import infer_roles
from bolus.data.cohort.spec import CohortSpec
from bolus.data.cohort.table import read_table
from bolus.errors import CohortError, UsageError


def cohort(columns: dict[str, list[Any]], roles: dict[str, str] | None = None, **spec: Any) -> Cohort:
    """A cohort of these columns; image and patient are made up where absent."""
    count = len(next(iter(columns.values())))
    made = {"image": [f"{row}.png" for row in range(count)], "patient": [f"P{row:03d}" for row in range(count)]}
    return Cohort(pd.DataFrame({**made, **columns}), CohortSpec(table="t.csv", roles=roles or {}, **spec))


def text_of(error: pytest.ExceptionInfo[CohortError]) -> str:
    return str(error.value)


# Roles ------------------------------------------------------------


def test_roles_are_inferred_from_conventional_names() -> None:
    found = infer_roles(["Image Index", "Patient ID", "Follow-up #", "View Position", "shoe size"], set())
    assert found == {
        "image": "Image Index",
        "patient": "Patient ID",
        "visit": "Follow-up #",
        "view_position": "View Position",
    }


def test_a_role_given_by_hand_wins_and_takes_its_column() -> None:
    columns = {"age": ["61", "70"], "reader": ["a", "b"], "site": ["x", "y"]}
    opened = cohort(columns, {"score:age": "age", "site": "reader"})
    assert opened.roles["site"] == "reader"
    assert "attribute:age" not in opened.roles
    assert opened.spec.roles == opened.roles  # what is saved is what was used


def test_wrong_roles_and_columns_are_met_with_suggestions() -> None:
    with pytest.raises(CohortError) as error:
        cohort(
            {"grade": ["1", "2"]},
            {"scor:grade": "grade", "label:grade": "grad", "modalty": "grade"},
            missing={"grde": [1]},
        )
    assert len(error.value.violations) == 4
    assert "role 'scor:grade': unknown; did you mean 'score:grade'?" in text_of(error)
    assert "no column 'grad'; did you mean 'grade'?" in text_of(error)
    assert "role 'modalty': unknown; did you mean 'modality'?" in text_of(error)
    assert "missing: no column or role 'grde'; did you mean 'grade'?" in text_of(error)


def test_image_and_patient_are_needed() -> None:
    with pytest.raises(CohortError, match="--role patient=COLUMN"):
        Cohort(pd.DataFrame({"image": ["a.png"]}), CohortSpec(table="t.csv"))
    with pytest.raises(CohortError, match="no rows"):
        Cohort(pd.DataFrame({"image": [], "patient": []}), CohortSpec(table="t.csv"))


def test_asking_for_an_absent_role_suggests_one() -> None:
    with pytest.raises(CohortError, match="did you mean 'score:age'"):
        cohort({"age": ["1"]}, {"score:age": "age"}).values("score:agee")


def test_an_inferred_column_that_does_not_parse_can_be_given_another_role() -> None:
    columns = {"session": ["bl", "m06", "m12"]}
    with pytest.raises(CohortError, match="give it another role, such as attribute:session"):
        cohort(columns)
    assert cohort(columns, {"attribute:session": "session"}).encoded("attribute:session").tolist() == [0, 1, 2]


# Values ------------------------------------------------------------


def test_missing_codes_of_one_column_and_of_all() -> None:
    columns = {"age": ["61", "?", "1", "1.0", "-99"], "grade": ["1", "-99", "2", "-99.0", "?"]}
    roles = {"score:age": "age", "label:grade": "grade"}
    opened = cohort(columns, roles, missing={"*": ["?", -99], "age": [1]})
    np.testing.assert_array_equal(opened.encoded("score:age"), [61, np.nan, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(opened.encoded("label:grade"), [0, -1, 1, -1, -1])  # 1 is missing for age only


def test_missing_codes_may_be_given_by_role_and_match_numbers_of_parquet() -> None:
    opened = cohort({"age": [61.0, 1.0, np.nan]}, {"score:age": "age"}, missing={"score:age": ["1"]})
    np.testing.assert_array_equal(opened.encoded("score:age"), [61, np.nan, np.nan])


def test_strings_are_stripped_and_blank_is_missing() -> None:
    opened = cohort({"patient": ["P1", " P1", "P2 "], "sex": [" F", "", "  "]})
    assert opened.num_patients == 2
    assert opened.encoded("patient").tolist() == [0, 0, 1]
    assert opened.encoded("attribute:sex").tolist() == [0, -1, -1]
    with pytest.raises(CohortError, match="row 2: no patient"):
        cohort({"patient": ["P1", " "]})


def test_identifiers_keep_their_leading_zeros(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,patient,site\na.png,00012,007\nb.png,12,7\n")
    opened = Cohort.open(tmp_path / "t.csv")
    assert opened.patients.tolist() == ["00012", "12"]
    assert opened.num_patients == 2
    assert opened.encoded("site").tolist() == [0, 1]


def test_namespace_joins_patients_of_two_cohorts_and_floats_are_their_integers() -> None:
    one = cohort({"patient": [7.0, 8.0]}, namespace="clinic")
    two = cohort({"patient": ["7", "8"]}, namespace="clinic")
    assert one.patients.tolist() == two.patients.tolist() == ["clinic/7", "clinic/8"]
    assert one.split.tolist() == two.split.tolist()
    assert one.split_hash == two.split_hash


def test_attributes_are_numbers_where_all_of_them_are() -> None:
    opened = cohort({"age": ["61", None, "70"], "sex": ["F", None, "M"]})
    np.testing.assert_array_equal(opened.encoded("attribute:age"), [61, np.nan, 70])
    np.testing.assert_array_equal(opened.encoded("attribute:sex"), [0, -1, 1])


def test_modality_has_one_name_where_no_column_says_it() -> None:
    assert set(cohort({"x": ["1", "2"]}).modality) == {"image"}
    assert cohort({"modality": ["MR", None]}).modality.tolist() == ["MR", "image"]


def test_labels_of_one_row_are_joined_by_a_bar() -> None:
    opened = cohort({"found": ["edema|mass", None, "mass", " mass | edema ", "none"]}, {"label:found": "found"})
    labels = opened.labels("found")
    assert labels.classes == ("edema", "mass", "none")
    assert not labels.exclusive
    assert labels.matrix.dtype == np.float32
    expected = [[1, 1, 0], [np.nan] * 3, [0, 1, 0], [1, 1, 0], [0, 0, 1]]
    np.testing.assert_array_equal(labels.matrix, expected)
    assert cohort({"found": ["a", None, "b"]}, {"label:found": "found"}).labels("found").exclusive


def test_a_label_without_one_value_is_an_error() -> None:
    with pytest.raises(CohortError, match="every row is missing"):
        cohort({"found": ["?", "?"]}, {"label:found": "found"}, missing={"found": ["?"]}).labels("found")


# Dates ------------------------------------------------------------


@pytest.mark.parametrize(
    "written",
    [
        ["2020-01-31", None, "2020-02-02"],
        ["20200131", None, "20200202"],  # DICOM
        ["2020/01/31", None, "2020/02/02"],
        ["31.01.2020", None, "02.02.2020"],
        ["31/01/2020", None, "02/02/2020"],
        ["01/31/2020", None, "02/02/2020"],
        ["January 31, 2020", None, "February 2, 2020"],
        ["2020-01-31T08:00:00", None, "2020-02-02 08:00:00"],
        [datetime.date(2020, 1, 31), None, datetime.date(2020, 2, 2)],
        list(pd.to_datetime(["2020-01-31", None, "2020-02-02"])),
        [20200131, None, 20200202],
        ["0", None, "2"],
    ],
)
def test_dates_become_days(written: list[Any]) -> None:
    np.testing.assert_array_equal(cohort({"date": written}).encoded("time"), [0, np.nan, 2])


def test_an_order_of_day_and_month_is_not_guessed_row_by_row() -> None:
    columns = {"date": ["31/01/2020", "01/02/2020"]}
    assert cohort(columns).encoded("time").tolist() == [0, 1]  # the second can only be February 1 beside the first
    with pytest.raises(CohortError, match=r"rows 1, 2: time .* a date like 2024-01-31, found '99/99/9999'"):
        cohort({"date": ["03/04/2020", "01/02/2020"]})


def test_one_bad_date_among_many_missing_is_named() -> None:
    written = ["2020-01-31", "2020-02-31", *[None] * 10]
    with pytest.raises(CohortError, match="row 2: time"):
        cohort({"date": written})


# Violations ------------------------------------------------------------


def test_numbers_that_do_not_parse_are_listed_with_rows_and_a_hint() -> None:
    with pytest.raises(CohortError) as error:
        cohort({"grade": ["1", "n/k", "2", "n/k"]}, {"score:grade": "grade"})
    (violation,) = error.value.violations
    assert violation.startswith("rows 2, 4: score:grade (column 'grade') is not a number, found 'n/k'")
    assert violation.endswith("declare it with --missing grade=n/k")


def test_all_violations_are_reported_at_once() -> None:
    columns = {
        "image": ["a.png", None, "a.png", "d.png"],
        "patient": ["Surname1", "Surname2", None, "Surname4"],
        "visit": ["0", "first", "1", "second"],
        "grade": ["high", "2", "3", "4"],
        "date": ["0", "1", "soon", "3"],
    }
    with pytest.raises(CohortError) as error:
        cohort(columns, {"score:grade": "grade"})
    for part in (
        "row 2: no image",
        "row 3: no patient",
        "rows 2, 4: visit",
        "row 1: score:grade",
        "row 3: time",
        "rows 1, 3: one image file",
    ):
        assert part in text_of(error), part
    assert len(error.value.violations) == 6
    assert "Surname" not in text_of(error)


def test_one_file_on_several_rows_needs_the_number_of_its_frame() -> None:
    frames = cohort({"image": ["v", "v", "w"], "patient": ["P", "P", "Q"], "order": ["0", "1", None]})
    assert [frames.frame(row) for row in range(3)] == [0, 1, None]
    with pytest.raises(CohortError, match="row 3: the same image and frame as an earlier row"):
        cohort({"image": ["v", "v", "v"], "order": ["0", "1", "1"]})


def test_leakage_of_a_fixed_split_is_named_by_rows() -> None:
    columns = {"patient": ["Ann", "Bob", "Ann", "Cy", "Bob"], "split": ["train", "test", "test", "val", "train"]}
    with pytest.raises(CohortError) as error:
        cohort(columns)
    assert error.value.violations == (
        "rows 1, 3: one patient, in test and train",
        "rows 2, 5: one patient, in test and train",
    )
    assert not any(name in text_of(error) for name in ("Ann", "Bob", "Cy"))


def test_a_fixed_split_is_taken_as_it_is() -> None:
    opened = cohort({"patient": ["A", "B", "C"], "split": ["Train", "dev", "TEST"]})
    assert opened.split.tolist() == ["train", "val", "test"]
    with pytest.raises(CohortError, match="row 2: expected train, val or test"):
        cohort({"split": ["train", "other"]})


# Samples ------------------------------------------------------------


def test_clips_are_ordered_and_point_back_to_rows() -> None:
    columns = {
        "patient": ["P", "Q", "P", "Q", "P"],
        "series": ["s2", "s1", "s2", "s1", "s2"],
        "order": ["2", "10", "0", "9", "1"],
        "sex": ["F", "M", "F", "M", "F"],
    }
    clips = cohort(columns).samples("clip")
    assert len(clips) == 2
    assert [clips.rows_of(position).tolist() for position in range(2)] == [[3, 1], [2, 4, 0]]  # 9 before 10
    assert clips.first_row.tolist() == [3, 2]
    found = clips.columns(["patient", "attribute:sex"])
    assert found["sample"].tolist() == [0, 1]
    assert found["patient"].tolist() == [1, 0]
    assert found["attribute:sex"].tolist() == [1, 0]


def test_a_column_that_varies_within_a_series_is_named_with_rows() -> None:
    columns = {
        "patient": ["P", "P", "Q", "R"],
        "series": ["s1", "s1", "s2", "s2"],
        "order": ["0", "1", "0", "1"],
        "sex": ["F", None, "M", "M"],
        "time": ["0", "0.9", "0", None],
    }
    with pytest.raises(CohortError) as error:
        cohort(columns).samples("clip")
    advice = "; if it belongs to a frame and not to the clip, leave it without a role"
    advice += " (rename it where its name gives it one)"
    assert error.value.violations == (
        f"row 2: attribute:sex ('sex') differs from the start of its series{advice}",
        f"row 4: patient ('patient') differs from the start of its series{advice}",
    )


def test_the_start_of_a_series_is_its_first_row_in_order() -> None:
    columns = {"patient": ["P"] * 3, "series": ["s"] * 3, "order": ["2", "0", "1"], "sex": ["F", "M", "M"]}
    with pytest.raises(CohortError, match="row 1: attribute:sex"):
        cohort(columns).samples("clip")


@pytest.mark.parametrize(
    ("times", "wrong"),
    [
        (["0", "1", "5", "5.5"], "row 2"),
        (["1", "0", "5", "6"], "rows 1, 4"),
        (["2024-01-31T23:59:59", "2024-02-01T00:00:01", "2024-05-01", None], ""),
        (["2024-01-31", "2024-02-01", None, None], "row 2"),
    ],
)
def test_times_within_a_series_are_less_than_a_day_apart(times: list[Any], wrong: str) -> None:
    table = cohort({"patient": ["P"] * 4, "series": list("aabb"), "order": list("0101"), "time": times})
    if not wrong:
        assert len(table.samples("clip")) == 2
        return
    with pytest.raises(CohortError) as error:
        table.samples("clip")
    (violation,) = error.value.violations
    assert violation.startswith(f"{wrong}: time ('time') differs by a day or more from the earliest of its series; ")


def test_equal_numbers_are_equal_however_they_are_written() -> None:
    columns = {
        "patient": ["P"] * 4,
        "series": list("aabb"),
        "order": list("0101"),
        "mmse": ["1", "1.0", None, "n/k"],
        "age": ["61", "61.00", "70", "7e1"],
        "grade": ["1", "1.0", "2", "2.00"],
    }
    roles = {"score:mmse": "mmse", "label:grade": "grade"}
    assert len(cohort(columns, roles, missing={"mmse": ["n/k"]}).samples("clip")) == 2
    for name, value in (("mmse", None), ("age", "61.01"), ("grade", "1.5")):
        changed = {**columns, name: [columns[name][0], value, *columns[name][2:]]}
        with pytest.raises(CohortError, match=f"row 2: [a-z]*:{name} "):
            cohort(changed, roles, missing={"mmse": ["n/k"]}).samples("clip")


def test_missing_codes_leave_the_numbers_of_expanded_frames_alone() -> None:
    table = cohort({"image": ["a.mp4", "b.mp4"], "patient": ["P", "Q"], "age": ["5", "50"]}, missing={"*": [0, 1, 5]})
    clips = table.expand(np.array([7, 2]))
    assert clips.encoded("order").tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1]
    assert clips.encoded("series").tolist() == [0] * 7 + [1] * 2
    assert clips.samples("clip").num_rows.tolist() == [7, 2]
    assert np.isnan(clips.encoded("attribute:age")).tolist() == [True] * 7 + [False] * 2  # elsewhere they hold


def test_clips_and_slices_need_their_roles() -> None:
    plain = cohort({"series": ["a", "b"]})
    with pytest.raises(CohortError, match=r"missing: order .*if each row is a clip file, .*such as attribute:series"):
        plain.samples("clip")
    with pytest.raises(CohortError, match="order or slice_position"):
        plain.samples("slice")
    with pytest.raises(UsageError, match="clip, image, slice, volume"):
        plain.samples("study")
    with pytest.raises(CohortError, match="row 2: no series"):
        cohort({"series": ["a", None], "order": ["0", "1"]}).samples("clip")


def test_images_are_rows() -> None:
    images = cohort({"sex": ["F", "M", None]}).samples("image")
    assert len(images) == 3
    assert images.rows_of(1).tolist() == [1]
    assert images.columns(["attribute:sex"])["attribute:sex"].tolist() == [0, 1, -1]


# Files ------------------------------------------------------------


def test_saved_cohort_opens_equal_in_its_folder_and_in_another(tiny_cohort: Path, tmp_path: Path) -> None:
    first = Cohort.open(tiny_cohort, missing={"severity": ["-99"]}, ranges={"image": (0, 1000)}, namespace="n")
    first.save(tiny_cohort.parent / "again.yaml")
    beside = Cohort.open(tiny_cohort.parent / "again.yaml")
    assert beside.spec == first.spec
    first.save(tmp_path / "new" / "far.yaml")
    far = Cohort.open(tmp_path / "new" / "far.yaml")
    assert far.spec.model_copy(update={"table": first.spec.table}) == first.spec
    for other in (beside, far):
        pd.testing.assert_frame_equal(other.table, first.table)
        assert other.split_hash == first.split_hash
        assert other.image_path(3).resolve() == first.image_path(3).resolve()
        assert other.image_path(3).is_file()


def test_a_root_beside_the_table_survives_saving_elsewhere(tiny_cohort: Path, tmp_path: Path) -> None:
    table = pd.read_csv(tiny_cohort.parent / "table.csv")
    table["image"] = table["image"].str.removeprefix("img/")
    (tmp_path / "tables").mkdir()
    table.to_csv(tmp_path / "tables" / "t.csv", index=False)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "cohort.yaml").write_text("table: ../tables/t.csv\nroot: ../tiny/img\n")
    opened = Cohort.open(tmp_path / "a" / "cohort.yaml")
    assert opened.image_path(0).is_file()
    for place in (tmp_path / "a", tmp_path / "tables", tmp_path / "b"):
        opened.save(place / "saved.yaml")
        assert Cohort.open(place / "saved.yaml").image_path(0).is_file(), place


def dicom(name: str) -> bytes:
    return Path(str(get_testdata_file(name, download=False))).read_bytes()


def nifti(ending: str) -> bytes:
    image = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    return gzip.compress(image.to_bytes(), mtime=0) if ending.endswith(".gz") else image.to_bytes()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("DICOMDIR", dicom("DICOMDIR"), "found a DICOMDIR, the index of a folder of DICOM files; "),
        ("Surname.dcm", dicom("CT_small.dcm"), "found a DICOM file; "),
        ("Surname", dicom("CT_small.dcm")[132:], "found a DICOM file; "),
        ("Surname.nii", nifti(".nii"), "found a NIfTI image; "),
        ("Surname.nii.gz", nifti(".nii.gz"), "found a NIfTI image; "),
        ("Surname.png", b"\x89PNG\r\n\x1a\n and so on", "found a PNG image; "),
        ("Surname.csv", b"\xff\xd8\xff and so on", "found a JPEG image; "),
    ],
)
def test_an_image_in_place_of_a_table_is_named_as_what_it_is(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "cohort.yaml").write_text(f"table: {name}\n")
    for given, wanted in (
        (tmp_path / name, "expected a CSV, TSV or Parquet table or a cohort.yaml, "),
        (tmp_path / "cohort.yaml", "expected a CSV, TSV or Parquet table, "),
    ):
        with pytest.raises(CohortError) as error:
            Cohort.open(given)
        assert str(error.value).startswith(f"{wanted}{expected}make a table: one row an image, a column image")
        assert "Surname" not in str(error.value)


def test_a_folder_in_place_of_a_table_is_told_with_the_tables_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "Surname"
    (folder / "inner").mkdir(parents=True)
    way_out = "make a table: one row an image"
    for name, expected in (
        ("1.png", f"found a folder; {way_out}"),
        ("inner/t.csv", f"found a folder; {way_out}"),
        ("a.tsv", f"found a folder; it holds a.tsv: give that file, or {way_out}"),
        ("cohort.yaml", "it holds a.tsv and cohort.yaml: give one of these files, or"),
        ("b.csv", "it holds a.tsv, b.csv and cohort.yaml: give one of these files, or"),
        ("c.parquet", f"found a folder; {way_out}"),  # too many
    ):
        (folder / name).touch()
        with pytest.raises(CohortError) as error:
            Cohort.open(folder)
        assert expected in str(error.value)
        assert "Surname" not in str(error.value)


def test_what_may_be_a_table_is_not_refused(tmp_path: Path) -> None:
    cohort({"age": [1, 2]}).table.to_csv(tmp_path / "t.csv", index=False)
    for name, content in (
        ("t.csv.gz", gzip.compress(b"image,patient\n", mtime=0)),
        ("torn.csv", b"\x1f\x8b and so on"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CohortError, match="packed by gzip"):
            Cohort.open(tmp_path / name)
    assert len(Cohort.open(tmp_path / "t.csv")) == 2


def test_cohort_yaml_with_mistakes(tiny_cohort: Path) -> None:
    path = tiny_cohort.parent / "wrong.yaml"
    for content, expected in (
        ("table: table.csv\nrols: {}\n", "did you mean 'roles'"),
        ("roles: {}\n", "table: Field required"),
        ("- table.csv\n", "expected a mapping"),
        ("table: [table.csv\n", "not YAML"),
        ("table: table.csv\nroles: [image]\n", "roles: "),
        ("table: table.csv\nsplit: {val: 2}\n", "split.val"),
        ("table: gone.csv\n", "no such table"),
    ):
        path.write_text(content)
        with pytest.raises(CohortError, match=expected):
            Cohort.open(path)
    path.write_text("table: table.csv\nroles:\nmissing:\n")  # keys without a value are as absent ones
    assert len(Cohort.open(path)) == 60
    with pytest.raises(CohortError, match="no such cohort"):
        Cohort.open(path.with_name("gone.yaml"))
    with pytest.raises(UsageError, match="did you mean 'namespace'"):
        Cohort.open(tiny_cohort, namspace="x")


def test_byte_order_mark_tabs_and_parquet_give_one_table(tmp_path: Path) -> None:
    frame = pd.DataFrame({"image": ["a.png", "b.png"], "patient": ["001", "002"], "note": ['x, "y"\nz', None]})
    frame.to_csv(tmp_path / "plain.csv", index=False)
    frame.to_csv(tmp_path / "bom.csv", index=False, encoding="utf-8-sig")
    frame.to_csv(tmp_path / "bom.tsv", index=False, sep="\t", encoding="utf-8-sig")
    frame.to_parquet(tmp_path / "t.parquet")
    frame.set_index("patient").to_parquet(tmp_path / "indexed.parquet")
    for name in ("plain.csv", "bom.csv", "bom.tsv", "t.parquet", "indexed.parquet"):
        found = read_table(tmp_path / name)[["image", "patient", "note"]]
        assert found["patient"].tolist() == ["001", "002"], name
        assert found["note"].iloc[0] == frame["note"].iloc[0], name
        assert found["note"].isna().tolist() == [False, True], name
        assert Cohort.open(tmp_path / name).num_patients == 2, name


def test_a_ragged_table_names_its_rows_and_quotes_none(tmp_path: Path) -> None:
    lines = ["image,patient", "a.png,Surname1", "b.png,Surname2,Surname3", "c.png,Surname4", "Surname5"]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(CohortError, match="expected 2 values in each row, found another number in rows 2, 4") as error:
        Cohort.open(tmp_path / "t.csv")
    assert "Surname" not in text_of(error)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("t.csv", b"image,patient\na.png,M\xfcller\n", "not a readable table"),
        ("t.csv", b"im\xfcge,patient\na.png,P\n", "not a readable table"),
        ("t.csv", b"", "not a readable table"),
        ("t.csv", b"image,patient,patient\na.png,P,Q\n", "'patient' twice"),
        ("t.csv", b"image,patient\n", "no rows"),
        ("t.parquet", b"image,patient\na.png,P\n", "not a readable table"),
    ],
)
def test_unreadable_tables(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CohortError, match=expected):
        Cohort.open(tmp_path / name)


def test_a_column_without_a_name_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,patient,\na.png,P,\n")
    assert list(read_table(tmp_path / "t.csv").columns) == ["image", "patient"]


def test_opening_an_open_cohort_returns_it(tiny_cohort: Path) -> None:
    opened = Cohort.open(tiny_cohort)
    assert Cohort.open(opened) is opened
    assert repr(opened) == "Cohort(table.csv: 60 rows, 20 patients)"


@pytest.mark.slow
def test_a_million_rows_open_and_split_in_little_memory(tmp_path: Path) -> None:
    rows = np.arange(1_000_000)
    frame = pd.DataFrame({"image": [f"images/{row // 1000:04d}/{row:07d}.png" for row in rows]})
    frame["patient"] = [f"{row // 4:08d}" for row in rows]
    frame["visit"], frame["date"] = rows % 4, np.datetime64("2010-01-01") + rows % 3000
    frame["age"] = np.where(rows % 10 == 0, "?", (30 + rows % 60).astype(str))
    frame["finding"] = np.array(["none", "edema", "edema|mass", "mass"])[rows % 4]
    frame.to_csv(tmp_path / "table.csv", index=False)
    (tmp_path / "cohort.yaml").write_text(
        "table: table.csv\nroles: {'score:age': age, 'label:finding': finding}\nmissing: {age: ['?']}\n"
    )
    code = """
import json, resource, sys
from bolus.data.cohort.cohort import Cohort
cohort = Cohort.open(sys.argv[1])
sides = cohort.split
gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps([len(cohort), len(sides), gib, float((sides == "train").mean())]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "cohort.yaml")], capture_output=True, text=True, check=True
    )
    count, split, gib, train = json.loads(done.stdout)
    assert (count, split) == (1_000_000, 1_000_000)
    assert abs(train - 0.7) < 0.01
    assert gib < 1.5  # and not seconds, which are the machine's


def test_frames_are_numbered_from_zero_and_clips_ordered() -> None:
    with pytest.raises(CohortError) as caught:
        cohort({"image": ["v", "v", "w"], "patient": ["P", "P", "Q"], "order": ["0", "1.5", "0"]})
    assert "row 2: one file on several rows needs a frame number" in text_of(caught)
    clips = cohort({"image": ["a", "b"], "patient": ["P", "P"], "series": ["s", "s"], "order": ["0", None]})
    with pytest.raises(CohortError) as caught:
        clips.samples("clip")
    assert "row 2: no order within the series" in text_of(caught)


def test_roles_missing_codes_and_split_are_added_to_those_of_the_file(tiny_cohort: Path) -> None:
    opened = Cohort.open(tiny_cohort, roles={"attribute:gender": "sex"}, missing={"sick": ["?"]}, split={"test": 0.4})
    assert opened.roles["score:severity"] == "severity"
    assert opened.roles["attribute:gender"] == "sex"
    assert (opened.spec.split.seed, opened.spec.split.val, opened.spec.split.test) == (1, 0.2, 0.4)


def test_values_that_may_name_a_patient_are_shown_by_their_shape_only() -> None:
    with pytest.raises(CohortError) as caught:
        cohort({"image": ["a", "b"], "patient": ["p17", "p18"], "visit": ["sub-p17_ses-0", "sub-p18_ses-1"]})
    assert "'aaa-a99_aaa-9'" in text_of(caught)
    assert "p17" not in text_of(caught)
    with pytest.raises(CohortError) as caught:
        cohort({"image": list("abcd"), "patient": ["p17", "p18", "p19", "p20"], "split": ["p17", "p18", "p19", "p20"]})
    assert "p17" not in text_of(caught)


def test_an_open_cohort_takes_no_further_keys(tiny_cohort: Path) -> None:
    opened = Cohort.open(tiny_cohort)
    assert Cohort.open(opened) is opened
    with pytest.raises(UsageError, match="open its table"):
        Cohort.open(opened, roles={"site": "sex"})


def test_shares_that_leave_nobody_to_train_on_are_an_error_of_the_data(tiny_cohort: Path) -> None:
    with pytest.raises(CohortError, match="leave no patient to train on"):
        Cohort.open(tiny_cohort, split={"val": 0.5, "test": 0.5})
