"""What two programs write differently is one class, what means missing is none, and different values stay different."""

from __future__ import annotations

import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.data.text.classes import same_class, truth_values
from bolus.data.text.spelling import MISSING, clean_text, spell_number
from bolus.errors import CohortError, EvaluationError, UsageError
from bolus.evaluation.elsewhere.matching import match_targets
from bolus.evaluation.targets import find_targets
from bolus.prediction.prediction import find_head
from test_prediction import make_head

KINDS = ("csv", "tsv", "parquet")
ROLES = {"label:x": "x"}


def table(values: Any, name: str = "x") -> pd.DataFrame:
    rows = range(len(values))
    frame = pd.DataFrame({"image": [f"{row}.png" for row in rows], "patient": [f"p{row}" for row in rows]})
    return frame.assign(**{name: values})


def cohort(values: Any, role: str = "label:x", **spec: Any) -> Cohort:
    return Cohort(table(values), CohortSpec(table="t.csv", roles={role: "x"}, **spec))


def through_file(frame: pd.DataFrame, kind: str, roles: dict[str, str], **spec: Any) -> Cohort:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"t.{kind}"
        if kind == "parquet":
            frame.to_parquet(path)
        else:
            frame.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
        return Cohort.open(path, roles=roles, **spec)


def matrix(opened: Cohort) -> list[list[float]]:
    return [[-1.0 if np.isnan(value) else value for value in row] for row in opened.labels("x").matrix.tolist()]


# Missing ------------------------------------------------------------


@pytest.mark.parametrize("token", [*MISSING, " n/a ", "NA\u00a0"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_means_missing_does_so_in_every_kind_of_column(token: str, kind: str) -> None:
    frame = table(["a", token, "b"]).assign(age=["61", token, "70"], mmse=["28", token, "30"], site=["s", token, "t"],
                                             date=["2024-01-31", token, "2024-02-01"], eye=["OS", token, "OD"],
                                             mask=["a.png", token, "b.png"])  # fmt: skip
    roles = {"label:x": "x", "score:mmse": "mmse", "laterality": "eye"}
    opened = through_file(frame, kind, roles)
    assert opened.labels("x").classes == ("a", "b")
    for role in ("label:x", "attribute:age", "score:mmse", "site", "time", "laterality", "mask"):
        assert opened.values(role).isna().tolist() == [False, True, False], role
    assert opened.encoded("attribute:age").dtype == np.float64
    np.testing.assert_array_equal(opened.encoded("time"), [0, np.nan, 1])


@pytest.mark.parametrize(
    "asked", ["None", "none", "-", "--", ".", "?", "n.a.", "unknown", "unk", "-1", "-9", "99", "999", "-999"]
)
def test_what_only_may_mean_missing_is_a_value_until_it_is_declared(asked: str) -> None:
    values = ["a", asked, "b"]
    assert cohort(values).labels("x").classes == tuple(sorted(values))
    declared = cohort(values, missing={"x": [asked]})
    assert declared.labels("x").classes == ("a", "b")
    assert matrix(declared)[1] == [-1, -1]


def test_declared_codes_are_compared_in_one_spelling() -> None:
    for values in (["1", "-9.0", "0", "9"], [1.0, -9.0, 0.0, 9.0], [1, -9, 0, 9]):
        for code in ("-9", -9, -9.0, "-9.00"):
            assert cohort(values, missing={"x": [code]}).labels("x").classes == ("0", "1", "9")
    assert cohort(["a", "not\u00a0 done", "b"], missing={"x": ["not done"]}).labels("x").classes == ("a", "b")


def test_a_code_of_identifiers_is_compared_as_an_identifier() -> None:
    frame = table(["a"] * 4).assign(site=["7", "007", "7.0", "8"])
    opened = Cohort(frame, CohortSpec(table="t.csv", missing={"site": [7]}))
    assert opened.values("site").isna().tolist() == [True, False, True, False]


def test_parts_that_mean_missing_are_dropped() -> None:
    opened = cohort(["edema|n/a", "n/a|", "mass | edema|edema", "todo|mass", "todo"], missing={"x": ["todo"]})
    assert opened.labels("x").classes == ("edema", "mass")
    assert matrix(opened) == [[1, 0], [-1, -1], [1, 1], [0, 1], [-1, -1]]


# Truth ------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        [1, 0, None], [1.0, 0.0, np.nan], [True, False, None], ["1", "0", ""], ["1.0", "0.0", ""],
        ["True", "False", None], ["TRUE", "FALSE", "n/a"], ["yes", "no", "NA"], ["Yes", "No", "nan"], ["Y", "N", ""],
        ["t", "f", ""], ["1.00", "no", None], ["Y", "FALSE", None], [Decimal("1.0"), Decimal(0), None],
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [None, *KINDS])
def test_truth_is_one_pair_of_classes_in_every_export(values: list[Any], kind: str | None) -> None:
    if kind == "parquet" and len({type(value) for value in values if value is not None}) > 1:
        pytest.skip("a Parquet column has one type")
    opened = cohort(values) if kind is None else through_file(table(values), kind, ROLES)
    assert opened.labels("x").classes == ("0", "1")
    assert matrix(opened) == [[0, 1], [1, 0], [-1, -1]]
    assert opened.encoded("label:x").tolist() == [1, 0, -1]


def test_spellings_within_one_column_are_one_class() -> None:
    assert cohort(["1", "1.0", "True", "TRUE", "yes", "0", "no"]).labels("x").classes == ("0", "1")


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["F", "F"], ("F",)),
        (["F", "M"], ("F", "M")),
        (["F", "M", "T"], ("F", "M", "T")),
        (["F", "0"], ("0", "F")),
        (["N", "D"], ("D", "N")),
        (["Y", "Y"], ("Y",)),
        (["no", "mild", "severe"], ("mild", "no", "severe")),
        (["No", "Moderate"], ("Moderate", "No")),
        (["0", "1", "2"], ("0", "1", "2")),
        (["yes", "yes"], ("1",)),
        (["yes", "unknown"], ("1", "unknown")),
        (["yes", "no", "maybe"], ("0", "1", "maybe")),
        (["Y", "N", "?"], ("0", "1", "?")),
        (["True", "False", "-1.0"], ("-1", "0", "1")),
        (["positive", "negative"], ("negative", "positive")),
    ],
)
def test_only_a_column_of_truth_is_read_as_one(values: list[str], classes: tuple[str, ...]) -> None:
    assert cohort(values).labels("x").classes == classes


def test_no_two_classes_of_a_column_that_is_not_of_truth_are_joined() -> None:
    for values in (["a", "b", "yes", "1", "true"], ["yes", "1", "no|0"]):
        assert len(set(cohort(values).values("label:x"))) == len(values)
    assert truth_values(["a", "b", "yes"]) == {}


def test_an_attribute_of_numbers_is_numbers_and_one_of_words_is_classes() -> None:
    role = "attribute:x"
    for values in (["0", "1.0", None], [0, 1, None], [0.0, 1.0, None]):
        np.testing.assert_array_equal(cohort(values, role).encoded(role), [0, 1, np.nan])
    for kind in KINDS:
        for values in ([False, True, None], ["no", "yes", None], ["F", "T", None]):
            opened = through_file(table(values), kind, {role: "x"})
            assert opened.encoded(role).tolist() == [0, 1, -1], (kind, values)
            assert opened.values(role).tolist()[:2] == ["0", "1"]


# Numbers ------------------------------------------------------------


SMALL = st.decimals(-999, 999, places=3).filter(lambda number: number != 0)


def spell(draw: st.DrawFn, number: Decimal) -> str:
    """The number as another program may write it."""
    text = f"{number.normalize():f}"
    if "." not in text:
        text += draw(st.sampled_from(["", ".", ".0", ".00"]))
    else:
        text += draw(st.sampled_from(["", "0", "00"]))
    if text.startswith("0."):
        text = text[draw(st.integers(0, 1)) :]
    return draw(st.sampled_from(["", " ", "\u00a0"])) + draw(st.sampled_from(["", "+"] if number > 0 else [""])) + text


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data(), kind=st.sampled_from(KINDS))
def test_equal_numbers_are_one_class_and_different_ones_are_not(data: st.DataObject, kind: str) -> None:
    numbers = data.draw(st.lists(SMALL, min_size=1, max_size=6, unique=True))
    owners = [*range(len(numbers)), *data.draw(st.lists(st.integers(0, len(numbers) - 1), max_size=6))]
    written = [data.draw(st.composite(spell)(numbers[owner])) for owner in owners]
    as_floats = table([float(numbers[owner]) for owner in owners])
    found = [through_file(table(written), kind, ROLES), through_file(as_floats, kind, ROLES)]
    for opened in found:
        codes = opened.encoded("label:x").tolist()
        assert len(set(codes)) == len(numbers)
        assert all(
            (a == b) == (x == y) for a, x in zip(codes, owners, strict=True) for b, y in zip(codes, owners, strict=True)
        )
    assert found[0].labels("x").classes == found[1].labels("x").classes
    scores = through_file(table(written), kind, {"score:x": "x"}).encoded("score:x")
    np.testing.assert_allclose(scores, [float(numbers[owner]) for owner in owners], rtol=1e-15)


@pytest.mark.parametrize(
    "text", ["007", "1.2.3", "1,5", "2024-01-31", "-", "+", ".", "1e5", "12e-3", "grade 1.0", "1/2"]
)
def test_what_is_no_plain_number_stays(text: str) -> None:
    assert spell_number(text) == text


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.text(max_size=12))
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    once = clean_text(text)
    assert clean_text(once) == once == once.strip()
    assert "\u00a0" not in once
    assert "\ufeff" not in once


@pytest.mark.parametrize(
    ("written", "cause"),
    [("1,5", "decimal comma"), ("1.234,5", "decimal comma"), ("1,234.5", "thousands apart"), ("1 234", "thousands"),
     ("about 3", "")],
)  # fmt: skip
def test_numbers_with_commas_are_refused_and_the_likely_cause_is_named(written: str, cause: str) -> None:
    with pytest.raises(CohortError, match="row 2: score:x") as error:
        cohort(["1", written, "3"], "score:x")
    assert cause in str(error.value)
    assert ("comma" in str(error.value)) == bool(cause)
    assert written not in str(error.value)


# Questions across exports ------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "classes", "found"),
    [("yes", ["0", "1"], "1"), ("True", ["0", "1"], "1"), ("N", ["0", "1"], "0"), ("1.0", ["0", "1"], "1"),
     ("1", ["no", "yes"], "yes"), ("F", ["F", "M"], "F"), ("2.0", ["1", "2"], "2"), ("mild", ["0", "1"], None),
     ("yes", ["1", "True"], None), ("Edema", ["edema"], None)],
)  # fmt: skip
def test_the_class_a_person_asks_for(wanted: str, classes: list[str], found: str | None) -> None:
    assert same_class(wanted, classes) == found


def test_a_class_is_asked_for_in_any_spelling() -> None:
    opened = cohort(["yes", "no", "yes"])
    for wanted in ("x=yes", "x=True", "x=1", "label:x=1.0"):
        (target,), _ = find_targets(opened, "classify", wanted)
        assert (target.name, target.y.tolist()) == ("x=1", [1, 0, 1])
    with pytest.raises(EvaluationError, match="no class 'maybe'"):
        find_targets(opened, "classify", "x=maybe")


@pytest.mark.parametrize("other", [[True, False, True], ["1.0", "0.0", "1.0"], ["TRUE", "FALSE", "TRUE"], [1, 0, 1]])
def test_two_exports_are_asked_one_question(other: list[Any]) -> None:
    pairs, notes = match_targets(cohort(["yes", "no", "no"]), cohort(other), "classify", "x")
    assert [(here.classes, there.classes, there.y.tolist()) for here, there in pairs] == [
        (("0", "1"), ("0", "1"), [1, 0, 1])
    ]
    assert notes == []


def test_a_head_of_an_earlier_run_is_found_by_the_class_it_is_of(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "evaluations" / "one"
    folder.mkdir(parents=True)
    for name in ("head-sick=True-linear", "head-sick=mild-linear"):
        (folder / f"{name}.safetensors").touch()
    for asked in ("sick=True", "sick=1", "label:sick=yes"):
        assert find_head(tmp_path / "run", asked).name == "head-sick=True-linear.safetensors"
    with pytest.raises(EvaluationError, match="no head 'sick=0'"):
        find_head(tmp_path / "run", "sick=0")
    for name, width in (("True", 2), ("1", 3)):
        make_head(folder / f"head-sick={name}-linear.safetensors", width, 2)
    assert find_head(tmp_path / "run", "sick=1").name == "head-sick=1-linear.safetensors"
    with pytest.raises(UsageError, match="2 heads"):
        find_head(tmp_path / "run", "sick=yes")
