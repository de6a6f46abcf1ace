"""What check asks about a column: planted in a table it is told with its rows, and clean tables are left in peace."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bolus.cli.options import TableOptions
from bolus.data.checks.checking import check
from bolus.data.checks.columns import check_columns
from bolus.data.checks.report import Finding
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.planning.hazards.hazards import find_hazards
from clean_tables import clean_table


def cohort(columns: dict[str, Any], roles: dict[str, str] | None = None, **spec: Any) -> Cohort:
    count = len(next(iter(columns.values())))
    made = {"image": [f"{row}.png" for row in range(count)], "patient": [f"p{row:03d}x" for row in range(count)]}
    return Cohort(pd.DataFrame({**made, **columns}), CohortSpec(table="t.csv", roles=roles or {}, **spec))


def only(opened: Cohort) -> Finding:
    (finding,) = check_columns(opened)
    return finding


# Identifiers ------------------------------------------------------------


@pytest.mark.parametrize("role", ["patient", "series", "site"])
@pytest.mark.parametrize(("one", "other"), [("7", "007"), ("p1", "P1"), ("sub-02", "02"), ("A 1", "A_1")])
def test_identifiers_that_look_alike_are_told_by_row(role: str, one: str, other: str) -> None:
    columns = {role: [one, "x", other, one], **({} if role == "patient" else {"patient": list("abcd")})}
    found = only(cohort(columns))
    assert (found.severity, found.kind, found.rows) == ("warning", "look_alike_identifiers", (1, 3, 4))
    assert found.message.startswith(f"{role} (column '{role}'): 2 identifiers")
    assert one not in found.message.replace("(column", "")


@pytest.mark.parametrize(
    "patients",
    [
        ["1.23457E+11", "123456789012", "1.23457E+11"],
        ["1,23E+08", "123456789", "1,23E+08"],
        [2.0**53, 7.0, 1e18],
        np.array([2**24, 7, 2**25], dtype=np.float32),
        pd.array([2.0**53, 7.0, 1e18], dtype="Float64"),
    ],
)
def test_identifiers_that_a_spreadsheet_has_cut_are_an_error(patients: Any) -> None:
    found = only(cohort({"patient": patients}))
    assert (found.severity, found.kind, found.rows) == ("error", "cut_identifiers", (1, 3))


@pytest.mark.parametrize("patients", [["12e5", "1e5"], [2**53, 2**60], [7.0, 8.0], np.array([2**20, 7], np.float32)])
def test_whole_identifiers_are_no_error(patients: Any) -> None:
    assert check_columns(cohort({"patient": patients})) == []


def test_check_tells_an_error_of_identifiers_beside_what_images_show(tmp_path: Path, call_bolus: Any) -> None:
    from PIL import Image

    for row in range(3):
        Image.fromarray(np.random.default_rng(row).integers(0, 255, (16, 16), np.uint8)).save(tmp_path / f"{row}.png")
    (tmp_path / "t.csv").write_text("image,patient\n0.png,1.23457E+11\n1.png,7\n2.png,007\n")
    report = check(tmp_path / "t.csv")
    assert [finding.rows for finding in report.errors if finding.kind == "cut_identifiers"] == [(1,)]
    assert [finding.rows for finding in report.warnings if finding.kind == "look_alike_identifiers"] == [(2, 3)]
    code, out = call_bolus("check", tmp_path / "t.csv", "-o", tmp_path / "c.yaml")
    assert code == 1
    assert "too long for the program" in " ".join(out.split())


# Values that may mean missing ------------------------------------------------------------


@pytest.mark.parametrize("token", ["None", "none", "-", "--", ".", "?", "n.a.", "unknown", "unk", "Unknown", "UNK"])
@pytest.mark.parametrize("role", ["label:x", "attribute:x", "site", "patient", "region"])
def test_words_are_asked_about_with_the_line_to_copy(tmp_path: Path, token: str, role: str) -> None:
    columns = {"x" if ":" in role else role: ["a", token, "b", token]}
    opened = cohort(columns, {role: "x"} if ":" in role else None)
    found = only(opened)
    assert (found.severity, found.kind, found.rows) == ("warning", "maybe_missing", (2, 4))
    assert f"{token!r} in 2 rows" in found.message
    option, declared = shlex.split(found.message[found.message.index("--missing") :])
    assert (option, declared) == ("--missing", f"{opened.roles[role]}={token}")
    if role == "patient":
        return  # rows without a patient are an error
    opened.table.to_csv(tmp_path / "t.csv", index=False)
    roles = [f"{role}=x"] if ":" in role else []
    assert check_columns(TableOptions(roles, [declared]).open(tmp_path / "t.csv")) == []


@pytest.mark.parametrize(
    ("values", "rows"),
    [
        ([3, 4, -1, 5, -9], (3, 5)),
        ([0, 1, 2, -999, 3], (4,)),
        ([60, 71, 999, 66, 999], (3, 5)),
        ([1, 2, 3, 99, 99], (4, 5)),
        (["1.0", "2", "-1.0", "", ""], (3,)),
        ([1.5, 2.5, -99.0, 0.0, np.nan], (3,)),
    ],
)
@pytest.mark.parametrize("role", ["score:x", "attribute:x", "label:x"])
def test_codes_are_asked_about_where_they_stand_apart(values: list[Any], rows: tuple[int, ...], role: str) -> None:
    found = only(cohort({"x": values}, {role: "x"}))
    assert (found.kind, found.rows) == ("maybe_missing", rows)
    assert "--missing x=" in found.message


@pytest.mark.parametrize(
    "values",
    [
        [-1.2, -1.0, 0.4, 1.0],  # scores around 0
        [-1, -9, -2, 4],
        [80, 99, 91, 70],  # a share in percent
        [999, 1200, 800, 1],
        [700, 999, 1],
        [-1, -1, 5],  # one other value only
        [99, 1],
        [1, 2, 3],
    ],
)
@pytest.mark.parametrize("role", ["score:x", "attribute:x", "label:x"])
def test_numbers_that_do_not_stand_apart_are_no_codes(values: list[float], role: str) -> None:
    assert check_columns(cohort({"x": values}, {role: "x"})) == []


@pytest.mark.parametrize("role", ["visit", "order", "slice_position", "time", "patient", "series"])
def test_counts_places_and_identifiers_have_no_codes(role: str) -> None:
    columns = {role: ["1", "2", "-1", "999"], **({"patient": list("abcd")} if role != "patient" else {})}
    assert check_columns(cohort(columns)) == []


def test_what_is_declared_is_not_asked_about() -> None:
    columns, roles = {"x": ["a", "unknown", "b"], "y": [1, -9, 3]}, {"label:x": "x", "score:y": "y"}
    assert len(check_columns(cohort(columns, roles))) == 2
    assert check_columns(cohort(columns, roles, missing={"x": ["unknown"], "score:y": ["-9"]})) == []
    assert check_columns(cohort(columns, roles, missing={"*": ["unknown", -9]})) == []


def test_one_of_several_classes_may_mean_missing() -> None:
    found = only(cohort({"x": ["edema|unknown", "mass", "edema", "unknown"]}, {"label:x": "x"}))
    assert (found.rows, "'unknown' in 2 rows" in found.message) == ((1, 4), True)
    declared = cohort(
        {"x": ["edema|unknown", "mass", "edema", "unknown"]}, {"label:x": "x"}, missing={"x": ["unknown"]}
    )
    assert declared.labels("x").classes == ("edema", "mass")
    assert check_columns(declared) == []


def test_several_codes_of_a_column_are_one_finding() -> None:
    found = only(cohort({"x": ["F", "?", "M", "unk", "unk"]}, {"attribute:x": "x"}))
    assert found.rows == (2, 4, 5)
    assert found.message.index("'unk' in 2 rows") < found.message.index("'?' in 1 row")
    assert found.message.endswith("--missing x=unk --missing 'x=?'")


# Labels ------------------------------------------------------------


@pytest.mark.parametrize("values", [["1", "0", "-1", "1"], [1.0, 0.0, -1.0, np.nan], ["yes", "no", "-1", "yes"]])
def test_a_lone_third_value_of_a_label_is_asked_about(values: list[Any]) -> None:
    found = only(cohort({"x": values}, {"label:x": "x"}))
    assert (found.severity, found.kind, found.rows) == ("warning", "third_value", (3,))
    assert "'-1' in 1 row" in found.message
    assert "--missing x=-1" in found.message


@pytest.mark.parametrize(
    "values", [["0", "1", "2"], ["0", "1"], ["0", "1", "3", "4"], ["a", "b", "-c"], ["0|1", "1", "0"]]
)
def test_other_labels_have_no_third_value(values: list[str]) -> None:
    assert not [
        found for found in check_columns(cohort({"x": values}, {"label:x": "x"})) if found.kind == "third_value"
    ]


def test_classes_that_differ_in_case_or_space_are_told() -> None:
    values = ["Edema", "edema", "Mass", "No Finding", "no_finding", "Edema|Mass", "edema"]
    found = only(cohort({"x": values}, {"label:x": "x"}))
    assert (found.severity, found.kind, found.rows) == ("warning", "look_alike_classes", (1, 2, 4, 5, 6, 7))
    assert "'Edema' and 'edema'; " in found.message
    found = only(cohort({"modality": ["CT", "ct", "CT"]}))
    assert (found.kind, found.rows) == ("look_alike_classes", (1, 2, 3))


def test_values_that_may_name_a_patient_are_not_shown() -> None:
    found = only(cohort({"x": ["Smith", "smith", "Jones"]}, {"attribute:x": "x"}))
    assert "mith" not in found.message
    assert "'aaaaa' and 'aaaaa'" in found.message


# Ages and times ------------------------------------------------------------


def test_implausible_ages_are_told_with_their_values() -> None:
    for role in ("score:age", "attribute:age"):
        for values in ([61, 411, -3, 120, np.nan], ["061Y", "411Y", "-3", "120Y", ""]):
            found = only(cohort({"x": values}, {role: "x"}))
            assert (found.severity, found.kind, found.rows) == ("warning", "implausible_age", (2, 3))
            assert "(-3, 411)" in found.message
    assert check_columns(cohort({"age": [0, 120, 61]})) == []
    assert check_columns(cohort({"x": [228, 411, 12]}, {"score:age": "x"}, units={"score:age": "months"})) == []
    assert check_columns(cohort({"bone_age": [228, 411, 12]}, {"score:b": "bone_age"})) == []
    assert check_columns(cohort({"x": [228, 411, 12]}, {"score:dose": "x"})) == []


def test_a_long_span_of_time_is_told() -> None:
    for values in ([0.0, 120.5, 54788.0], ["101500", "093000.5", "235959"], ["1850-01-01", "2024-01-01", "2024-01-02"]):
        found = only(cohort({"time": values}))
        assert (found.severity, found.kind) == ("warning", "long_time_span")
        assert len(found.rows) == 2
    assert check_columns(cohort({"time": ["21800101", "22000101", "21900101"]})) == []
    assert check_columns(cohort({"time": [0.0, 54786.0, 5.0]})) == []


# The plan ------------------------------------------------------------


def test_a_plan_says_where_it_would_build_on_such_a_value() -> None:
    rng = np.random.default_rng(0)
    columns = {
        "sex": rng.choice(["F", "M", "unknown"], 200),
        "x": rng.choice(["a", "b", "-"], 200),
        "y": rng.choice([1.0, 2.0, 3.0, -9.0], 200),
        "z": rng.choice(["c", "d"], 200),
    }
    roles = {"label:x": "x", "score:y": "y", "label:z": "z"}
    samples = cohort(columns, roles).samples("image")
    found = {hazard.role: hazard for hazard in find_hazards(samples) if hazard.kind == "doubtful"}
    assert set(found) == {"attribute:sex", "label:x", "score:y"}
    assert not any(hazard.refuses for hazard in found.values())
    taught = samples.cohort.split == "train"
    number = int((columns["sex"][taught] == "unknown").sum())
    assert f"'unknown' ({number} training samples)" in found["attribute:sex"].sentence
    assert found["label:x"].sentence.endswith("--missing x=-")
    declared = cohort(columns, roles, missing={"*": ["unknown", "-", -9]}).samples("image")
    assert not [hazard for hazard in find_hazards(declared) if hazard.kind == "doubtful"]


# No false alarm ------------------------------------------------------------


@pytest.mark.parametrize("seed", range(200))
def test_a_clean_table_is_left_in_peace(tmp_path: Path, seed: int) -> None:
    frame, roles = clean_table(seed)
    frame.to_csv(tmp_path / "t.csv", index=False)
    opened = Cohort.open(tmp_path / "t.csv", roles=roles)
    assert opened.num_patients == frame["patient"].nunique()
    assert [(found.kind, found.message) for found in check_columns(opened)] == []


# Public cohorts: what they hold that may mean missing, by hand, and nothing else.
UNKNOWN: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "acdc": ({"label:group": "group", "phase": "phase", "score:lv": "lv", "order": "slice"}, {}),
    "odir": ({"patient": "group", "label:eye_label": "eye_label", "score:age": "age", "label:D": "D"}, {}),
    "nih1000": ({"visit": "followup", "label:findings": "findings", "label:a": "abnormal", "score:age": "age"}, {}),
    "cxr": (
        {"patient": "group", "time": "offset", "score:age": "age", "label:finding": "finding", "label:s": "survival"},
        {"view_position": "?", "label:finding": "Unknown", "label:s": "?"},
    ),
    "lus_blues": ({"series": "video", "score:severity": "severity", "label:b": "b_lines", "attribute:bmi": "bmi"}, {}),
    "ham10000": (
        {"patient": "lesion_id", "label:dx": "dx", "region": "localization"},
        {"attribute:sex": "unknown", "region": "unknown"},
    ),
}


@pytest.mark.data
@pytest.mark.parametrize("name", UNKNOWN)
def test_public_cohorts_are_asked_about_what_they_hold_and_nothing_else(shared_data: Path, name: str) -> None:
    roles, asked = UNKNOWN[name]
    path = shared_data / name / "meta.csv"
    opened = Cohort.open(path, roles=roles, missing={"offset": ["?"]} if name == "cxr" else None)
    raw = pd.read_csv(path, dtype=str, keep_default_na=False)
    found = {finding.message.partition(" (")[0]: finding for finding in check_columns(opened)}
    assert {finding.kind for finding in found.values()} <= {"maybe_missing"}
    assert set(found) == set(asked)
    for role, value in asked.items():
        rows = np.flatnonzero(raw[opened.roles[role]] == value) + 1
        assert found[role].rows == tuple(rows.tolist())
