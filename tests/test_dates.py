"""Times and ages: one reading for a whole column, the same days in every file, and nothing guessed row by row."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bolus.data.cohort.cleaning import clean_values
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.data.text.ages import in_years, is_age, spell_age
from bolus.data.text.dates import read_times, to_days
from bolus.errors import CohortError

NAN = float("nan")
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December"]  # fmt: skip


def days_of(values: Any, unit: str | None = None) -> list[float]:
    """The days, all of which must be known where there is a value."""
    days, bad = to_days(pd.Series(values, dtype=object), unit)
    assert not bad.any(), (values, read_times(pd.Series(values, dtype=object)).why)
    return days.tolist()


def bad_rows(values: Any, unit: str | None = None) -> list[int]:
    return np.flatnonzero(to_days(pd.Series(values, dtype=object), unit)[1]).tolist()


def opened(values: Any, **spec: Any) -> Cohort:
    rows = range(len(values))
    frame = pd.DataFrame(
        {"image": [f"{row}.png" for row in rows], "patient": [f"p{row}" for row in rows], "date": values}
    )
    return Cohort(frame, CohortSpec(table="t.csv", **spec))


# One reading ------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["21801231", "21810101"], [0, 1]),  # shifted, as public cohorts of intensive care are
        (["20991231", "21010102"], [0, 367]),
        (["2180-12-31", "2181-01-01"], [0, 1]),
        ([20240101.0, None, 20240103.0], [0, NAN, 2]),
        (["20240101.0", "20240103.0", "n/a"], [0, 2, NAN]),
        (["2024.01.01", "20240103", "2024-01-04", "2024/1/5"], [0, 2, 3, 4]),  # all of them with the year first
        (["20240101103000", "20240102103000"], [0, 1]),
        (["20240101103000.500000+0100", "20240101093000.5"], [0, 0]),
        (["202401010000", "202401011200"], [0, 0.5]),
        (["2024010100", "2024010106"], [0, 0.25]),
        (["20240101 000000.000000", "20240101 180000", "20240101 06"], [0, 0.75, 0.25]),
        (["20240101T000000Z", "20240101T120000Z"], [0, 0.5]),
        (["2024-01-01T23:00:00-02:00", "2024-01-02T01:00:00Z", "2024-01-02 02:30+01:30"], [0, 0, 0]),
        (["31.01.2024", "01.02.2024 12:00"], [0, 1.5]),
        (["1/31/2024 6:00 PM", "2/1/2024 6:00 AM"], [0, 0.5]),
        (["31-Jan-2024", "1 FEB 2024", "02FEB2024", "February 3, 2024", "Feb 4th, 2024"], [0, 1, 2, 3, 4]),
        (["31JAN2024:12:00:00", "01FEB2024:00:00:00"], [0, 0.5]),
        (["2024-01", "2024-03"], [0, 60]),
        (["January 2024", "Mar 2024"], [0, 60]),
        (["01/01/2024", "02/02/2024"], [0, 32]),  # the same days in either order
        (["0", "1.5", "-3"], [0, 1.5, -3]),
        (["45292", "45294.5"], [45292, 45294.5]),
        (["1899", "1900"], [1899, 1900]),
        (["1706659200", "1706745600"], [1706659200, 1706745600]),
        ([datetime.date(2024, 1, 31), None, datetime.datetime(2024, 2, 1, 12)], [0, NAN, 1.5]),
        (["0001-01-01", "9999-12-31"], [0, 3652058]),
        (["2023-02-28", "2024-02-29", "2100-03-01"], [0, 366, 28125]),
    ],
)
def test_days_of_a_column(values: list[Any], expected: list[float]) -> None:
    np.testing.assert_allclose(np.array(days_of(values)), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("values", "wrong", "why"),
    [
        (["01/02/2024", "03/04/2024"], [0, 1], "change places"),  # though both orders put 62 days between them
        (["01.02.2024", None, "05.06.2024"], [0, 2], "change places"),
        (["2019", "2021"], [0, 1], "years"),
        ([2019.0, 2020.0], [0, 1], "years"),
        (["2024-01-31", "2024-02-31"], [1], "no such day"),
        (["20240131", "20240231", "20240301"], [1], "no such day"),
        (["20240131", "2024-02-01", "3/4/2024"], [2], "year first"),
        (["20240131", "20240201", "5"], [2], "year first"),
        (["5", "6", "20240131"], [2], "numbers of days"),
        (["2024-01-31", "2024-01-31 25:00"], [1], "year first"),
        (["2024-01-31", "31 January 2024", "2024-02-01"], [1], "one way"),
        (["2020", "2020", "March 5, 2020"], [2], "years"),
        (["31/01/2024", "01/31/2024", "30/01/2024"], [1], "day first|no such day"),
        (["31/01/24", "01/02/24"], [0, 1], "four digits"),
        (["soon", "later"], [0, 1], ""),
        (["1", "soon"], [1], "numbers of days"),
        (["0000-01-01", "2024-13-01"], [0, 1], ""),
        (["inf", "1"], [0], ""),
        (["29.02.2023"], [0], ""),
    ],
)
def test_rows_outside_the_reading_are_bad_and_the_reason_is_said(values: list[Any], wrong: list[int], why: str) -> None:
    assert bad_rows(values) == wrong
    found = read_times(pd.Series(values, dtype=object)).why
    assert any(each in found for each in why.split("|"))


def test_a_column_without_a_value_is_no_problem() -> None:
    assert np.isnan(days_of([None, "", "n/a"])).all()


@pytest.mark.parametrize(
    ("unit", "expected"),
    [("days", [2019, 2021]), ("years", [2019 * 365.2425, 2021 * 365.2425]), (" Weeks ", [2019 * 7, 2021 * 7])],
)
def test_a_unit_says_what_bare_years_are(unit: str, expected: list[float]) -> None:
    np.testing.assert_allclose(days_of(["2019", "2021"], unit), expected)
    assert days_of(["2024-01-31", "2024-02-01"], unit) == [0, 1]  # dates need none
    assert days_of(["20240131", "20240201"], "days") == [0, 1]


def test_an_unknown_unit_is_refused_where_there_are_numbers() -> None:
    assert bad_rows(["1", "2"], "moons") == [0, 1]
    assert "moons" in read_times(pd.Series(["1"]), "moons").why
    assert days_of(["2024-01-31", "2024-02-01"], "moons") == [0, 1]


@pytest.mark.parametrize(
    ("values", "like"),
    [
        (["202312", "202401"], "months"),
        ([202312, 202401], "months"),
        (["240131", "240201"], "two-digit years"),
        (["31012024", "01022024"], "the year last"),
        (["01312024", "02012024"], "the year last"),
    ],
)
def test_dates_in_digits_that_are_no_days_are_refused(values: list[Any], like: str) -> None:
    assert bad_rows(values) == [0, 1]
    assert like in read_times(pd.Series(values)).why
    assert bad_rows(values, "days") == [], "unless a person says so"


def test_a_cohort_says_what_is_wrong_and_takes_a_unit() -> None:
    with pytest.raises(CohortError, match=r"rows 1, 2: time .*look like years.*units: \{time: years\}"):
        opened(["2019", "2021"])
    found = opened(["2019", "2021"], units={"time": "years"}).encoded("time")
    assert np.diff(found) == pytest.approx(730.485)
    with pytest.raises(CohortError, match=r"row 3: time .*most rows are dates with the year first") as error:
        opened(["2024-01-31", "2024-02-01", "3 Feb 2024"])
    assert "Feb" not in str(error.value)  # values are not quoted


def test_a_declared_date_is_missing_whatever_its_time_and_zone() -> None:
    for zone in (None, "UTC", "Europe/Berlin"):
        times = pd.Series(
            pd.to_datetime(["1900-01-01", "1900-01-01", None, "2020-05-04 10:30"], format="ISO8601")
        ).dt.tz_localize(zone)
        cleaned = clean_values(times.rename("date"), "time", ["1900-01-01", "n/a"])
        assert cleaned.isna().tolist() == [True, True, True, False]


# Any date, any file ------------------------------------------------------------


FORMS: dict[str, Callable[[datetime.datetime], str]] = {
    "iso": lambda t: f"{t.year:04d}-{t.month:02d}-{t.day:02d}",
    "slashed": lambda t: f"{t.year:04d}/{t.month}/{t.day}",
    "dicom": lambda t: f"{t.year:04d}{t.month:02d}{t.day:02d}",
    "old dicom": lambda t: f"{t.year:04d}.{t.month:02d}.{t.day:02d}",
    "iso time": lambda t: t.isoformat(),
    "dicom time": lambda t: f"{t.year:04d}{t.month:02d}{t.day:02d}{t:%H%M%S}.{t.microsecond:06d}",
    "date and time": lambda t: f"{t.year:04d}{t.month:02d}{t.day:02d} {t:%H%M%S}",
    "name": lambda t: f"{t.day:02d}-{MONTHS[t.month - 1][:3].upper()}-{t.year:04d}",
    "long": lambda t: f"{MONTHS[t.month - 1]} {t.day}, {t.year:04d}",
    "day first": lambda t: f"{t.day:02d}.{t.month:02d}.{t.year:04d}",
    "month first": lambda t: f"{t.month}/{t.day}/{t.year:04d} {t:%I:%M:%S %p}",
}
TIMED = {"iso time", "dicom time", "date and time", "month first"}
YEAR_FIRST = ["iso", "slashed", "dicom", "old dicom"]
MOMENTS = st.datetimes(datetime.datetime(1000, 1, 1), datetime.datetime(9999, 12, 31)).map(
    lambda moment: moment.replace(microsecond=0)
)


def right_days(moments: list[datetime.datetime], timed: bool) -> list[float]:
    """By the calendar of the standard library."""
    kept = moments if timed else [moment.replace(hour=0, minute=0, second=0) for moment in moments]
    return [(moment - min(kept)) / datetime.timedelta(days=1) for moment in kept]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(moments=st.lists(MOMENTS, min_size=1, max_size=6), form=st.sampled_from(sorted(FORMS)))
def test_a_date_is_the_same_day_in_every_form(moments: list[datetime.datetime], form: str) -> None:
    texts = [FORMS[form](moment) for moment in moments]
    days, bad = to_days(pd.Series(texts, dtype=object))
    if form in {"day first", "month first"} and all(moment.day <= 12 for moment in moments):
        assert bad.all() == any(moment.day != moment.month for moment in moments)
        return
    assert not bad.any()
    np.testing.assert_allclose(days, right_days(moments, form in TIMED), rtol=0, atol=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data(), kind=st.sampled_from(["csv", "tsv", "parquet"]))
def test_dates_with_the_year_first_may_be_mixed_in_every_file(data: st.DataObject, kind: str) -> None:
    moments = data.draw(st.lists(MOMENTS, min_size=1, max_size=6))
    texts: list[Any] = [FORMS[data.draw(st.sampled_from(YEAR_FIRST))](moment) for moment in moments]
    if kind == "parquet" and data.draw(st.booleans()):
        texts = [int(FORMS["dicom"](moment)) for moment in moments]
    frame = pd.DataFrame({"image": [f"{row}.png" for row in range(len(texts))], "patient": "p", "date": texts})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"t.{kind}"
        if kind == "parquet":
            frame.to_parquet(path)
        else:
            frame.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
        found = Cohort.open(path).encoded("time")
    np.testing.assert_array_equal(found, right_days(moments, timed=False))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    numbers=st.lists(
        st.floats(-20000, 20000, allow_nan=False).map(lambda number: round(number, 3)), min_size=2, max_size=8
    )
)
def test_numbers_of_days_stay_what_they_are(numbers: list[float]) -> None:
    if all(1900 <= number <= 2200 and number % 1 == 0 for number in numbers):
        return
    for column in (numbers, [str(number) for number in numbers], [f" {number}\u00a0" for number in numbers]):
        assert days_of(column) == numbers


def test_many_different_times_are_read_at_once() -> None:
    moments = np.datetime64("2150-01-01T00:00:00") + np.arange(100_000) * np.timedelta64(617, "s")
    days = np.array(days_of(np.datetime_as_string(moments)))
    np.testing.assert_allclose(days, np.arange(100_000) * 617 / 86400, rtol=0, atol=1e-6)


# Ages ------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "years"),
    [("058Y", 58), ("58y", 58), ("411Y", 411), ("011M", 11 / 12), ("003W", 3 * 7 / 365.25), ("005D", 5 / 365.25),
     ("061", 61), ("61.5", 61.5), ("000D", 0)],
)  # fmt: skip
def test_ages_of_dicom_are_years(written: str, years: float) -> None:
    assert float(spell_age(written)) == pytest.approx(years, rel=1e-15)
    for role in ("attribute:age", "score:age", "attribute:PatientAge", "score:age_at_scan"):
        frame = pd.DataFrame({"image": ["a", "b", "c"], "patient": ["p", "q", "r"], "x": [written, "70", "n/a"]})
        found = Cohort(frame, CohortSpec(table="t.csv", roles={role: "x"})).encoded(role)
        np.testing.assert_allclose(found, [years, 70, NAN], rtol=1e-15)


@pytest.mark.parametrize("text", ["0058Y", "58", "Y", "5 8Y", "58Z", "unknown"])
def test_what_is_no_age_of_dicom_stays(text: str) -> None:
    assert spell_age(text) == text


def test_only_ages_are_read_as_ages() -> None:
    names = ("age", "Patient Age", "PatientAge", "patientage", "AGE", "age_years", "Patient's Age")
    assert all(is_age(f"attribute:{name}", "x") for name in names)
    assert is_age("score:y", "patient_age")
    assert not any(is_age(f"attribute:{name}", "stage") for name in ("stage", "image", "dosage", "page", "agent"))
    assert not is_age("label:age", "age")
    frame = pd.DataFrame({"image": ["a", "b"], "patient": ["p", "q"], "dose": ["058Y", "061Y"]})
    assert (
        Cohort(frame, CohortSpec(table="t", roles={"attribute:dose": "dose"})).encoded("attribute:dose").dtype.kind
        == "i"
    )


def test_ages_in_another_unit_are_not_judged_as_years() -> None:
    assert in_years("attribute:age", "age")
    assert in_years("attribute:age", "age", "years")
    assert not in_years("attribute:age", "age_months")
    assert not in_years("score:bone_age", "x")
    assert not in_years("score:age", "age", "months")
