"""`bolus.scanning.joining.joining`: which row of a table belongs to which image, counted both ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bids_tree import write_small_bids
from bolus.errors import CohortError, UsageError
from bolus.scanning.bids.finder import find_bids
from bolus.scanning.days import to_dates
from bolus.scanning.found import Found
from bolus.scanning.joining.joining import join
from bolus.scanning.joining.matching import match_rows

TAKE = {"label:finding": "Finding"}


def images(**columns: list[object]) -> Found:
    """Images a, b, ... with these columns; `date` is text here."""
    table = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})
    table.insert(0, "image", [f"/in/{chr(97 + n)}.png" for n in range(len(table))])
    if "date" in table:
        table["date"] = np.array(table["date"].fillna("NaT"), "datetime64[s]")
    if "patient" not in table:
        table["patient"] = [f"p{n}" for n in range(len(table))]
    return Found("dicom", table, {"image": "image", "patient": "patient"}, ("patient",))


def write(folder: Path, *lines: str, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def taken(found: Found, role: str = "label:finding") -> list[object]:
    return [None if pd.isna(value) else value for value in found.table[role]]


VISITS = images(
    patient=["1", "1", "1", "2", "3", "4", None],
    date=["2020-01-10", "2020-03-10", None, "2020-01-10", "2020-01-10", "2020-01-10", "2020-01-10"],
)
LABELS = (
    "PatientID,StudyDate,Finding,Name",
    "1.0,20200110,edema,ANNA",  # the day of image a
    "1,20200220,mass,ANNA",  # 19 days before image b
    "2,20191212,none,BEN",  # 29 days before image d
    "2,20200212,n/a,BEN",  # nothing is said
    "3,20210110,edema,CARL",  # a year late
    "5,20200110,edema,EVE",  # of nobody
    ",20200110,edema,NN",
    "4,,edema,DORA",
)


def test_patient_and_date(tmp_path: Path) -> None:
    found = join(VISITS, write(tmp_path, *LABELS), on=["patient", "date"], take=TAKE)
    assert taken(found) == ["edema", None, None, None, None, None, None]
    assert found.roles["label:finding"] == "label:finding"
    assert set(found.table) == {"image", "patient", "date", "label:finding"}
    rows, of_images = found.notes
    assert rows.startswith("labels.csv: 1 of 8 rows belong to an image, by patient and date; ")
    assert set(rows.rstrip(".").partition("; ")[2].split(", ")) == {
        "4 are without one of the same day",
        "1 is of no patient with images",
        "1 is without a patient",
        "1 is without a date that can be read",
    }
    assert of_images.startswith("1 of 7 images have a row of labels.csv; ")
    assert set(of_images.rstrip(".").partition("; ")[2].split(", ")) == {
        "3 are without one of the same day",
        "1 is without a date that can be read",
        "1 is of no patient in the table",
        "1 is without a patient",
    }


def test_days_within(tmp_path: Path) -> None:
    found = join(VISITS, write(tmp_path, *LABELS), on=["patient", "date"], within=30, take=TAKE)
    assert taken(found) == ["edema", "mass", None, "none", None, None, None]
    assert found.notes[0].startswith("labels.csv: 3 of 8 rows belong to an image, by patient and date within 30 days; ")
    assert "2 are without one within 30 days" in found.notes[0]
    found = join(VISITS, write(tmp_path, *LABELS), on=["patient", "date"], within=29, take=TAKE)
    assert taken(found)[3] == "none"
    found = join(VISITS, write(tmp_path, *LABELS), on=["patient", "date"], within=28, take=TAKE)
    assert taken(found)[3] is None


def test_patient_alone(tmp_path: Path) -> None:
    rows = ("mrn;Finding", "1;edema", "2;none", "2;none", "3;mass", "3;none")
    found = join(VISITS, write(tmp_path, "sep=;", *rows), on=["patient=mrn"], take=TAKE)
    assert taken(found) == ["edema", "edema", "edema", "none", None, None, None]
    assert "label:finding is missing in 1 images, of which rows of one day disagree" in found.notes[-1]


def test_the_nearest_row_that_says_something_and_the_earlier_of_two(tmp_path: Path) -> None:
    rows = ("patient,date,Finding,mmse", "1,2020-01-08,early,", "1,2020-01-12,late,20", "1,2020-01-05,far,10")
    found = join(VISITS, write(tmp_path, *rows), on=["patient", "date"], within=9, take={**TAKE, "score:mmse": "mmse"})
    assert taken(found)[0] == "early"
    assert taken(found, "score:mmse")[0] == "20"


def test_accession_and_instance(tmp_path: Path) -> None:
    found = images(accession=["A1", "A2", "A2"], instance=["1.2.3", "1.2.4", "1.2.50"])
    rows = write(tmp_path, "AccessionNumber,SOP Instance UID,Finding", "A2,1.2.50,x", "A1,1.2.3.0,y")
    assert taken(join(found, rows, on=["accession"], take=TAKE)) == ["y", "x", "x"]
    assert taken(join(found, rows, on=["instance"], take=TAKE)) == [None, None, "x"]
    assert taken(join(found, rows, on=["accession", "instance"], take=TAKE)) == [None, None, "x"]


def test_names_of_files(tmp_path: Path) -> None:
    table = pd.DataFrame({"image": ["/in/p1/OD.png", "/in/p2/OD.png", "/in/p2/x.jpg"], "patient": ["p1", "p2", "p2"]})
    rows = write(tmp_path, "filename,Finding", "p1\\OD.png,a", "./p2/OD,b", "x.jpg,c", "OD.png,d", "x.png,e")
    found = join(Found("tree", table, {}, ("patient",)), rows, on=["image"], take=TAKE)
    assert taken(found) == ["a", "b", "c"]
    assert "2 are without the name of exactly one image" in found.notes[0]


def test_slices_share_what_their_file_has(tmp_path: Path) -> None:
    table = pd.DataFrame({"image": ["/in/a.nii"] * 2 + ["/in/b.nii"], "patient": ["p", "p", "q"], "order": [0, 1, 0]})
    rows = write(tmp_path, "image,Finding", "a.nii,x")
    assert taken(join(Found("tree", table, {}, ()), rows, on=["image"], take=TAKE)) == ["x", "x", None]


def test_subjects_of_bids_with_and_without_their_prefix(tmp_path: Path) -> None:
    found = find_bids(write_small_bids(tmp_path / "set"), unit="clip")
    rows = write(tmp_path, "subject,date,Finding", "sub-01,01.03.2180,x", "01,05.03.2181,y", "sub-02,31.12.2180,z")
    joined = join(found, rows, on=["patient", "date"], within=3, take=TAKE)
    assert taken(joined) == ["x", "x", "y", None, None, None]


def test_a_role_that_the_images_have_is_the_tables(tmp_path: Path) -> None:
    found = images(patient=["1", "2", "3"], laterality=["L", "R", "L"], sex=["F", "F", None])
    found = Found("dicom", found.table, {"laterality": "laterality", "sex": "attribute:sex"}, ("patient",))
    rows = write(tmp_path, "patient,eye,gender", "1,OS,M", "2,OS,F", "3,,F")
    joined = join(found, rows, on=["patient"], take={"laterality": "eye", "attribute:sex": "gender"})
    assert taken(joined, "laterality") == ["OS", "OS", "L"]
    assert taken(joined, "sex") == ["M", "F", "F"]
    assert joined.notes[2:] == (
        "labels.csv: laterality was another one in 1 images; the table was taken.",
        "labels.csv: attribute:sex was another one in 1 images; the table was taken.",
    )


def test_identifiers_that_only_look_alike_are_not_joined_but_said(tmp_path: Path) -> None:
    found = images(patient=["P007", "P008"])
    rows = write(tmp_path, "patient,Finding", "p7,x", "P008,y")
    joined = join(found, rows, on=["patient"], take=TAKE)
    assert taken(joined) == [None, "y"]
    assert joined.notes[2].startswith("labels.csv: 1 more would belong to one if case, separators and leading zeros")
    with pytest.raises(
        CohortError, match="none of 1 rows belongs to an image, by patient: 1 is of no patient"
    ) as error:
        join(found, write(tmp_path, "patient,Finding", "p7,x"), on=["patient"], take=TAKE)
    assert "1 more would belong to one" in str(error.value)
    assert "p7" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"on": ["patients"]}, UsageError, "did you mean 'patient'"),
        ({"on": ["date"]}, UsageError, "a key such as patient beside the date"),
        ({"on": ["patient"], "within": 5}, UsageError, "not joined by date"),
        ({"on": ["patient", "date"], "within": -1}, UsageError, "negative"),
        ({"on": ["patient"], "take": {}}, UsageError, "--join without --take"),
        ({"on": ["patient"], "take": {"patient": "Finding"}}, UsageError, "expected a role such as"),
        ({"on": ["patient"], "take": {"time": "StudyDate"}}, UsageError, "expected a role such as"),
        ({"on": ["accession"]}, CohortError, "no column for the key accession"),
        ({"on": ["accession=Name"]}, CohortError, "no image has it; keys of these images: patient, date, image"),
        ({"on": ["patient=MRN"]}, CohortError, "no column for the key patient"),
        ({"on": ["patient", "date=Name"]}, CohortError, "expected dates, found none that can be read"),
        ({"on": ["patient"], "take": {"label:x": "finding"}}, CohortError, "did you mean 'Finding'"),
        ({"on": ["patient"], "take": {"label:x": "StudyDate"}}, CohortError, "found dates"),
        ({"on": ["patient"], "take": {"score:x": "Finding"}}, CohortError, "expected numbers for score:x"),
        ({"on": ["patient"], "take": {"label:x": "PatientID"}}, CohortError, "found identifiers of patients"),
    ],
)
def test_what_is_refused(tmp_path: Path, options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        join(VISITS, write(tmp_path, *LABELS), **{"take": TAKE, **options})  # type: ignore[arg-type]
    for value in ("ANNA", "EVE", "20200110", "edema"):
        assert value not in str(raised.value)


def test_names_and_free_text_are_refused(tmp_path: Path) -> None:
    many = images(patient=[str(n) for n in range(120)])
    rows = [
        f"{n},No {'abcdefghij'[n % 10]}{'klmnopqrst'[n // 10 % 10]} seen {n},N{chr(97 + n % 26) * (n // 26 + 1)}"
        for n in range(120)
    ]
    path = write(tmp_path, "patient,report,name", *rows)
    for column in ("report", "name"):
        with pytest.raises(CohortError, match=r"found identifiers of patients|free text or identifiers"):
            join(many, path, on=["patient"], take={"label:x": column})
    twice = images(patient=[str(n // 2) for n in range(120)])
    by_image = write(tmp_path, "image,report", *(f"{chr(97 + n)}.png,text {n} of it" for n in range(120) if n < 26))
    assert (
        join(twice, by_image, on=["image"], take={"label:x": "report"}) is not None
    )  # few texts: classes, as far as one sees


def test_a_day_is_one_day_however_a_table_writes_it() -> None:
    days = ["2024-02-28", "2024-03-31", "1899-12-31", "2180-01-01"]
    expected = np.array(days, "datetime64[s]")
    moments = pd.to_datetime(pd.Series(days).astype("datetime64[s]"))
    columns = [moments, moments + pd.Timedelta(hours=23)]
    forms = ("%Y-%m-%d", "%Y%m%d", "%d.%m.%Y", "%m/%d/%Y", "%d %B %Y", "%Y%m%d %H%M%S", "%Y-%m-%dT%H:%M:%S")
    columns += [moments.dt.strftime(form) for form in forms]
    for column in columns:
        dates, bad, why = to_dates(column)
        assert (dates.to_numpy("datetime64[s]") == expected).all(), column
        assert not bad.any()
        assert why == ""
    assert to_dates(pd.Series([1, 2]))[1].all()  # numbers of days are no dates


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 60)), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 60)), min_size=1, max_size=12),
    st.integers(0, 20),
)
def test_matches_are_those_of_two_loops(left: list[tuple[int, int]], right: list[tuple[int, int]], within: int) -> None:
    frames = [
        pd.DataFrame({"patient": [str(p) if p else "" for p, _ in side], "day": [d if d else np.nan for _, d in side]})
        for side in (left, right)
    ]
    found = match_rows(*frames, within=within)
    pairs = {
        (i, j)
        for i, (p, d) in enumerate(left)
        for j, (q, e) in enumerate(right)
        if p and d and e and p == q and abs(d - e) <= within
    }
    groups = {(group, row) for group, row in zip(found.group.tolist(), found.row.tolist(), strict=True)}
    assert {(i, j) for i, group in enumerate(found.image.tolist()) for g, j in groups if g == group} == pairs
    assert [not why for why in found.images] == [any(i == each for each, _ in pairs) for i in range(len(left))]
    assert [not why for why in found.rows] == [any(j == each for _, each in pairs) for j in range(len(right))]


@pytest.mark.parametrize("views", [4, 40])
def test_free_text_is_refused_however_many_images_share_a_row(tmp_path: Path, views: int) -> None:
    patients = [str(n) for n in range(60) for _ in range(views)]
    found = images(patient=patients, date=["2020-01-10", "2020-03-10"] * (len(patients) // 2))
    days = [(n, day) for n in range(60) for day in ("2020-01-10", "2020-03-10")]
    reports = [f"{n},{day},report {place} of it,{place % 60} {'abc'[n % 3]}" for place, (n, day) in enumerate(days)]
    path = write(tmp_path, "patient,date,report,code", *reports)
    with pytest.raises(CohortError, match="found 120 different texts of 60 patients: free text") as error:
        join(found, path, on=["patient", "date"], take={"label:x": "report"})
    assert "of it" not in str(error.value)


def test_many_classes_that_patients_share_are_no_free_text(tmp_path: Path) -> None:
    found = images(patient=[str(n) for n in range(300)])
    path = write(tmp_path, "patient,code", *(f"{n},C{n % 60:02d}.9" for n in range(300)))
    assert taken(join(found, path, on=["patient"], take={"label:code": "code"}), "label:code")[61] == "C01.9"


@pytest.mark.parametrize("spelled", ["%Y-%m-%d", "%d.%m.%Y", "%Y%m%d", "%d.%m.%y", "%d %B %Y"])
def test_dates_are_refused_beside_what_is_none(tmp_path: Path, spelled: str) -> None:
    found = images(patient=[str(n) for n in range(24)])
    days = pd.Series(pd.date_range("1950-01-01", periods=12, freq="40D")).dt.strftime(spelled)
    rows = [f"{n},{'unknown' if n % 12 == 5 else days[n % 12]}" for n in range(24)]
    path = write(tmp_path, "patient,born", *rows)
    with pytest.raises(CohortError, match="found dates, which a scan does not keep"):
        join(found, path, on=["patient"], take={"label:x": "born"})


def test_dates_whose_day_and_month_can_change_places_are_refused(tmp_path: Path) -> None:
    found = images(patient=[str(n) for n in range(12)])
    path = write(tmp_path, "patient,born", *(f"{n},0{n % 6 + 1}/0{n % 6 + 2}/1950" for n in range(12)))
    with pytest.raises(CohortError, match="found dates, which a scan does not keep"):
        join(found, path, on=["patient"], take={"label:x": "born"})


def test_years_and_numbers_of_days_are_no_dates(tmp_path: Path) -> None:
    found = images(patient=[str(n) for n in range(12)])
    path = write(
        tmp_path, "patient,year,days", *(f"{n},{'unknown' if n == 3 else 2010 + n % 4},{n % 5}" for n in range(12))
    )
    joined = join(found, path, on=["patient"], take={"label:year": "year", "score:days": "days"})
    assert taken(joined, "label:year")[:4] == ["2010", "2011", "2012", "unknown"]
