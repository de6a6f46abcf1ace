"""One person has one identifier, however two programs write it; what only looks alike is told and not merged."""

from __future__ import annotations

import tempfile
import unicodedata
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.data.cohort.split import leave_site_out, overlap, patient_keys, refuse_overlap, split_patients
from bolus.data.text.identifiers import earlier_spellings, fold_identifier, identifier_text, is_cut
from bolus.errors import CohortError, LeakageError
from bolus.evaluation.elsewhere.matching import refuse_same_patients
from bolus.evaluation.preparation import refuse_seen_patients
from bolus.evaluation.probing.heads import Head

SHARES: dict[str, Any] = {"seed": 0, "val": 0.1, "test": 0.2}
UNSEEN = "\u200b\u200e\u2060\ufeff\u00ad"


def cohort(patients: Any, **columns: Any) -> Cohort:
    """A cohort of these patients, one image each."""
    frame = pd.DataFrame({"image": [f"{row}.png" for row in range(len(patients))], "patient": patients, **columns})
    return Cohort(frame, CohortSpec(table="t.csv"))


def write_and_open(frame: pd.DataFrame, kind: str) -> Cohort:
    """The frame through a file of this kind."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"t.{kind}"
        if kind == "parquet":
            frame.to_parquet(path)
        else:
            frame.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
        return Cohort.open(path)


def test_long_whole_numbers_keep_their_digits_where_some_are_missing() -> None:
    long = pd.array([2**60 + 1, 2**60 + 2, None, 7], dtype="Int64")
    frame = pd.DataFrame({"image": list("abcd"), "patient": list("pqrs"), "series": long, "visit": [1, None, 2, 1]})
    for opened in (Cohort(frame, CohortSpec(table="t.csv")), write_and_open(frame, "parquet")):
        assert opened.values("series").tolist()[:2] == [str(2**60 + 1), str(2**60 + 2)]
        assert opened.encoded("series").tolist()[2] == -1
        assert opened.encoded("visit")[0] == 1


# One spelling ------------------------------------------------------------


@pytest.mark.parametrize(
    "written",
    [
        "7",
        "7.0",
        "7.00",
        " 7 ",
        "7\u00a0",
        "\u200b7",
        "\ufeff7",
        "7\u202f",
        7,
        7.0,
        np.int64(7),
        np.float32(7),
        Decimal("7.00"),
        b"7",
    ],
)
def test_seven_is_one_patient(written: object) -> None:
    assert identifier_text(written) == "7"


@pytest.mark.parametrize("kept", ["007", "7.5", "1.2.840.0", "1.20", "7e0", "P7.0", "7.0.0", "-", "none", "7,0"])
def test_what_is_something_else_stays(kept: str) -> None:
    assert identifier_text(kept) == kept


@pytest.mark.parametrize(
    "token", ["", "  ", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "<NA>", "null", "NULL", " n/a\u00a0"]
)
def test_what_means_missing_is_no_identifier(token: str) -> None:
    assert identifier_text(token) == ""
    with pytest.raises(CohortError, match="row 2: no patient"):
        cohort(["a", token])


def test_missing_values_of_every_type_are_no_identifier() -> None:
    assert [identifier_text(value) for value in (None, np.nan, pd.NA, pd.NaT, Decimal("NaN"))] == [""] * 5


def test_leading_zeros_and_case_are_kept() -> None:
    assert [identifier_text(text) for text in ("007.0", "aB", "7")] == ["007", "aB", "7"]
    assert cohort(["007", "7", "aB", "ab"]).num_patients == 4


def spelled(draw: st.DrawFn, text: str) -> str:
    """The identifier as another program may write it."""
    if text.isdecimal():
        text += draw(st.sampled_from(["", ".0", ".00"]))
    text = unicodedata.normalize(draw(st.sampled_from(["NFC", "NFD"])), text)
    text = text.replace(" ", draw(st.sampled_from([" ", "\u00a0", "  ", " \u2009"])))
    place = draw(st.integers(0, len(text)))
    text = text[:place] + draw(st.sampled_from(["", *UNSEEN])) + text[place:]
    return draw(st.sampled_from(["", " ", "\u00a0"])) + text + draw(st.sampled_from(["", " "]))


PEOPLE = st.one_of(
    st.integers(0, 10**14).map(str),
    st.integers(0, 999).map(lambda number: f"{number:05d}"),
    st.from_regex(r"[A-Za-z]{1,3}[0-9]{1,4}(_[0-9]{1,2})?", fullmatch=True),
    st.from_regex(r"1\.2\.840(\.[1-9][0-9]{0,5}){1,4}\.0", fullmatch=True),
    st.sampled_from(["Köln 1", "Zoë", "Åse 2", "Nguyễn", "7.5"]),
)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data(), kind=st.sampled_from(["csv", "tsv", "parquet"]))
def test_equal_identifiers_stay_equal_and_different_ones_different(data: st.DataObject, kind: str) -> None:
    people = data.draw(st.lists(PEOPLE, min_size=1, max_size=8, unique=True))
    owners = [*range(len(people)), *data.draw(st.lists(st.integers(0, len(people) - 1), max_size=8))]
    written = [data.draw(st.composite(spelled)(people[owner])) for owner in owners]
    frame = pd.DataFrame({"image": [f"{row}.png" for row in range(len(owners))], "patient": written})
    opened = write_and_open(frame, kind)
    assert opened.patients.tolist() == [people[owner] for owner in owners]
    assert opened.num_patients == len(people)
    plain = split_patients(np.array([people[owner] for owner in owners], object), **SHARES)
    assert opened.split.tolist() == split_patients(np.array(written, object), **SHARES).tolist() == plain.tolist()
    assert patient_keys(np.array(written, object), "s") == patient_keys(np.array(people, object), "s")


@settings(max_examples=20, deadline=None, derandomize=True)
@given(numbers=st.lists(st.integers(0, 2**53 - 1), min_size=1, max_size=10))
def test_numbers_are_the_same_people_in_every_type_and_file(numbers: list[int]) -> None:
    frame = pd.DataFrame({"image": [f"{row}.png" for row in range(len(numbers))], "patient": numbers})
    expected = [str(number) for number in numbers]
    for kind in ("csv", "tsv", "parquet"):
        for form in (int, float, str):
            if kind != "parquet" and form is float and max(numbers) >= 10**15:
                continue  # written as 1e+15, which check tells
            assert write_and_open(frame.astype({"patient": form}), kind).patients.tolist() == expected


# Splits, lineage, heads ------------------------------------------------------------


def test_a_cohort_half_written_by_another_program_is_split_by_person() -> None:
    people = np.arange(200)
    written = np.array([*map(str, people), *(f"{person}.0" for person in people)], dtype=object)
    sides = split_patients(written, **SHARES)
    assert (sides[:200] == sides[200:]).all()
    opened = cohort(written)
    assert opened.num_patients == 200
    assert (opened.split == sides).all()


def test_a_fixed_split_of_one_person_in_two_spellings_is_leakage() -> None:
    for patients in (["7", "8", "7.0"], np.array(["7", "8", 7.0], dtype=object)):
        with pytest.raises(CohortError, match="rows 1, 3: one patient, in test and train"):
            cohort(patients, split=["train", "train", "test"])


def test_a_table_with_such_a_split_is_refused_by_check(tmp_path: Path, call_bolus: Any) -> None:
    (tmp_path / "t.csv").write_text("image,patient,split\na.png,7,train\nb.png,8,train\nc.png,7.0,test\n")
    code, out = call_bolus("check", tmp_path / "t.csv")
    assert code == 1
    assert "rows 1, 3: one patient, in test and train" in out


@pytest.mark.parametrize(
    ("trained", "judged"),
    [
        (["1000", "1001"], ["2000", "1000.0", "1001.00"]),
        ([1000.0, 1001.0], ["2000", "1000", " 1001"]),
        (["Zoe\u0308", "a b"], ["x", "Zo\u00eb", "a\u00a0b"]),
        (["1000.0", "P\u200b7"], ["2000", 1000, "P7"]),
    ],
)
def test_an_encoder_is_not_judged_on_its_own_people_in_another_spelling(trained: list[Any], judged: list[Any]) -> None:
    keys = patient_keys(np.array(trained, dtype=object), "salt")
    there = cohort(np.array(judged, dtype=object))
    assert overlap(keys, np.array(judged, dtype=object), "salt").tolist() == [False, True, True]
    with pytest.raises(LeakageError, match=r"found 2 of 3 patients \(rows 2, 3\)"):
        refuse_overlap({"salt": "salt", "keys": sorted(keys)}, there.patients, [0, 1, 2], "the test rows")
    encoder: Any = SimpleNamespace(name="run", lineage=[{"keys": sorted(keys), "salt": "salt"}])
    with pytest.raises(LeakageError, match=r"\(rows 2, 3\)"):
        refuse_seen_patients(encoder, there, rows=np.ones(3, bool))
    refuse_seen_patients(encoder, there, rows=np.array([True, False, False]))
    empty = np.empty(0)
    head = Head("constant", "regress", empty[None], empty, empty, empty, empty.astype(np.int64), 0)
    head = Head(**{**head.__dict__, "salt": "salt", "patients": tuple(keys)})
    assert head.knows(there.patients).tolist() == [False, True, True]


def test_heads_are_not_judged_elsewhere_on_the_same_people() -> None:
    here = cohort(["1", "2", "3"], split=["train", "train", "test"])
    there = cohort(["9.0", "2.0", "3.0"])
    with pytest.raises(LeakageError, match=r"found 1 \(row 2\)"):
        refuse_same_patients(here, there, ("here", "there"))


def earlier_key(text: str, salt: str) -> str:
    """The key of a patient as runs of earlier versions stored it: of the text as it stood in the table."""
    key = blake2b(salt.encode()).digest()
    return blake2b(text.strip().encode(), digest_size=16, key=key, person=b"bolus.patient").hexdigest()


@pytest.mark.parametrize(
    ("hashed", "today"),
    [
        ("1000.0", "1000"),
        ("1000.0", "1000.0"),
        ("1000.0", 1000.0),
        ("1000", "1000.0"),
        ("1000.00", "1000.00"),
        ("clinic/7.0", "clinic/7"),
        ("Zoe\u0308", "Zo\u00eb"),
        ("a\u00a0b", "a\u00a0b"),
        ("007", "007"),
    ],
)
def test_keys_of_earlier_runs_still_tell_who_was_trained_on(hashed: str, today: object) -> None:
    keys = {earlier_key(hashed, "salt")}
    assert overlap(keys, np.array(["other", today], dtype=object), "salt").tolist() == [False, True]


def test_keys_of_earlier_runs_tell_nothing_of_others() -> None:
    keys = {earlier_key(text, "salt") for text in ("1000.0", "7", "ab")}
    others = np.array(["10000", "07", "7.5", "aB", "1000.5", None, "n/a"], dtype=object)
    assert not overlap(keys, others, "salt").any()
    assert earlier_spellings("n/a") == ()


def test_sites_are_compared_in_one_spelling() -> None:
    patients, sites = np.array(["a", "b"]), np.array(["3.0", "St\u00a0Anna"], dtype=object)
    assert leave_site_out(patients, sites, site="3", val=0).tolist() == ["test", "train"]
    assert leave_site_out(patients, sites, site=" St Anna", val=0).tolist() == ["train", "test"]
    opened = cohort(["a", "b", "c"], site=["3.0", "3", "4"])
    assert opened.encoded("site").tolist() == [0, 0, 1]


def test_series_in_two_spellings_are_one_clip() -> None:
    opened = cohort(["P"] * 3, series=["1", "1.0", "2"], order=["0", "1", "0"])
    assert opened.samples("clip").num_rows.tolist() == [2, 1]


# Look-alikes ------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"), [("7", "007"), ("p1", "P1"), ("sub-01", "1"), ("A 1", "a_01"), ("P-1", "P\u20131"), ("ﬁ1", "fi1")]
)
def test_identifiers_that_look_alike_are_one_when_folded(one: str, other: str) -> None:
    assert identifier_text(one) != identifier_text(other)
    assert fold_identifier(one) == fold_identifier(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("1.2.34", "1.23.4"), ("1.05", "1.5"), ("p1", "p10"), ("a1b0", "a10b"), ("7", "-7"), ("1-1", "11")],
)
def test_different_identifiers_are_different_when_folded(one: str, other: str) -> None:
    assert fold_identifier(one) != fold_identifier(other)


@pytest.mark.parametrize("cut", ["1.23457E+11", "1e+20", "1,23E+08", 2.0**53, 1e18, "9007199254740993.0"])
def test_what_a_spreadsheet_has_cut_is_known(cut: object) -> None:
    assert is_cut(cut)


@pytest.mark.parametrize("whole", ["123457000000", "12e5", "1e5", "1.5E", "E+11", 7.0, "7.0", "1.2.3E+1", None])
def test_what_it_has_not_cut_is_not(whole: object) -> None:
    assert not is_cut(whole)
