"""Columns without a role: each is told, with the option that its values suggest, which works as it stands."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from bolus.cli.options import TableOptions
from bolus.data.checks.report import SHOWN, SHOWN_OTHERS, CheckReport
from bolus.data.checks.unused import MUCH, Unused, unused_columns
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec

ROWS = 60
RNG = np.random.default_rng(0)


def cohort(columns: dict[str, Any], **spec: Any) -> Cohort:
    """Of 60 rows, three of each patient."""
    made = {"image": [f"{row}.png" for row in range(ROWS)], "patient": [f"Surname{row // 3}" for row in range(ROWS)]}
    return Cohort(pd.DataFrame({**made, **columns}), CohortSpec(table="t.csv", **spec))


def only(column: str, values: Any, **spec: Any) -> Unused:
    (found,) = unused_columns(cohort({column: values}, **spec))
    assert "Surname" not in found.option + found.why
    return found


def among(*values: Any) -> list[Any]:
    return RNG.permutation(np.resize(np.array(values, object), ROWS)).tolist()


def days(form: str) -> list[str]:
    return pd.date_range("2020-01-20", periods=ROWS).strftime(form).tolist()


@pytest.mark.parametrize(
    ("column", "values", "option"),
    [
        ("pneumonia", among("yes", "no"), "--role label:pneumonia=pneumonia"),
        ("pneumonia", among(True, False), "--role label:pneumonia=pneumonia"),
        ("pneumonia", among("0", "1", ""), "--role label:pneumonia=pneumonia"),
        ("grade", among(0, 1, 2, 3), "--role label:grade=grade"),
        ("findings", among("edema|mass", "edema", "none"), "--role label:findings=findings"),
        ("fev1", RNG.uniform(1, 5, ROWS), "--role score:fev1=fev1"),  # different in every row, but no identifier
        ("fev1", among(*RNG.uniform(1, 5, 40).round(2).astype(str), "n/a"), "--role score:fev1=fev1"),
        ("crp", among(*range(40)), "--role score:crp=crp"),
        ("crp", among(*range(20), "pending"), "--role score:crp=crp --missing crp=pending"),
        ("taken", days("%Y%m%d"), "--role time=taken"),
        ("taken", [int(day) for day in days("%Y%m%d")], "--role time=taken"),
        ("taken", pd.date_range("2020-01-01", periods=ROWS), "--role time=taken"),
        ("taken", days("%d.%m.%Y"), "--role time=taken"),
        ("age_years", RNG.integers(20, 80, ROWS), "--role attribute:age=age_years"),
        ("Age (y)", among("058Y", "061Y"), "--role 'attribute:age=Age (y)'"),
        ("gendr", among("F", "M"), "--role attribute:sex=gendr"),
        ("which", among("OD", "OS"), "--role laterality=which"),
        ("fold", [("train", "val", "test")[row // 3 % 3] for row in range(ROWS)], "--role split=fold"),
        ("ml", [10**5 + 7 * row for row in [*range(ROWS - 1), 0]], "--role score:ml=ml"),
        ("FEV1 % (pred)", among(*range(40)), "--role 'score:FEV1_pred=FEV1 % (pred)'"),
        ("a=b", among("x", "y"), "--role label:a_b=a=b"),
        ("%", among("x", "y"), "--role label:x=%"),
    ],
)
def test_the_option_suggested_gives_the_column_its_role(tmp_path: Path, column: str, values: Any, option: str) -> None:
    found = only(column, values)
    assert found.option == option
    table = cohort({column: values}).table
    table.to_csv(tmp_path / "t.csv", index=False)
    words = shlex.split(option)
    roles = [word for flag, word in zip(words[::2], words[1::2], strict=True) if flag == "--role"]
    missing = [word for flag, word in zip(words[::2], words[1::2], strict=True) if flag == "--missing"]
    opened = TableOptions(role=roles, missing=missing).open(tmp_path / "t.csv")
    role = roles[0].partition("=")[0]
    assert opened.roles[role] == column
    assert opened.values(role).nunique() > 1
    assert unused_columns(opened) == []


@pytest.mark.parametrize(
    ("column", "values", "why"),
    [
        ("id", [f"A{row}" for row in range(ROWS)], "different in every row: an identifier or free text"),
        ("id", RNG.permutation(ROWS) + 10**7, "different in every row: an identifier, unless it is measured"),
        ("mrn", [f"M{row // 3}" for row in range(ROWS)], "each value is of one patient alone: an identifier"),
        ("mrn", [4000 + row // 3 for row in range(ROWS)], "each value is of one patient alone: an identifier, unless"),
        (
            "study",
            [f"S{row // 2 + 30 * (row // 3)}" for row in range(ROWS)],
            "each value is of one patient alone: an id",
        ),
        ("fold", among("train", "test"), "sides of a split, with patients on two or none"),
        ("country", ["DE"] * ROWS, "the same in every row"),
        ("country", ["DE"] * 50 + [""] * 10, "the same in every row that has it"),
        ("empty", ["n/a"] * ROWS, "no value"),
        ("birth_date", days("%Y-%m-%d"), "dates of persons, not of images"),
        (
            "taken",
            [f"0{1 + row % 9}/0{1 + row % 7}/2020" for row in range(ROWS)],
            "dates, but day and month of each can",
        ),
        ("note", [f"Surname{row % 40}" for row in range(ROWS)], "text, 40 different values: too many for classes"),
        ("crp", [*range(50), *range(8), "Surname", "Surname"], "numbers, but text in 2 rows: write numbers"),
        ("lists", [[row] for row in range(ROWS)], "neither text nor numbers nor dates"),
    ],
)
def test_nothing_is_suggested_and_the_reason_said(column: str, values: Any, why: str) -> None:
    found = only(column, values)
    assert (found.column, found.option) == (column, "")
    assert found.why.startswith(why)


def test_a_role_of_one_column_is_suggested_once_and_names_do_not_meet() -> None:
    columns = {"first": days("%Y-%m-%d"), "then": days("%Y-%m-%d"), "a b": among(1, 2), "a_b": among(1, 2)}
    found = {each.column: each for each in unused_columns(cohort(columns))}
    assert (found["first"].option, found["then"].option) == ("--role time=first", "")
    assert found["then"].why == "dates, and another column has the role time"
    assert found["a b"].option == "--role 'label:a_b=a b'"
    assert found["a_b"].option == "--role label:a_b_=a_b"
    (found,) = unused_columns(cohort({"days": [1] * ROWS, "then": days("%Y-%m-%d")}))
    assert (found.column, found.option) == ("then", "")


def test_columns_with_a_role_and_declared_codes_are_known() -> None:
    assert unused_columns(cohort({"age": among(1, 2), "visit": among(0, 1)})) == []
    found = only("crp", among(*range(20), "pending"), missing={"crp": ["pending"]})
    assert found.option == "--role score:crp=crp"


def test_few_rows_are_no_proof_of_an_identifier() -> None:
    frame = pd.DataFrame({"image": list("abc"), "patient": list("pqr"), "kind": ["x", "y", "z"]})
    assert unused_columns(Cohort(frame, CohortSpec(table="t.csv")))[0].option == "--role label:kind=kind"


def test_much_text_is_judged_as_it_is_written() -> None:
    rows = 3 * MUCH
    frame = pd.DataFrame({"image": np.arange(rows).astype(str), "patient": (np.arange(rows) // 3).astype(str)})
    frame["id"] = [f"A{row}" for row in range(rows)]
    frame["note"] = [f"note {row % (MUCH + 5)}" for row in range(rows)]
    frame["dose"] = [f"{row % (MUCH + 5)}.5" for row in range(rows)]
    frame["taken"] = pd.date_range("1990-01-01", periods=rows).strftime("%Y-%m-%d")
    found = {each.column: each for each in unused_columns(Cohort(frame, CohortSpec(table="t.csv")))}
    assert found["id"].why == "different in every row: an identifier or free text"
    assert found["note"].why == f"text, {MUCH + 5} different values: too many for classes"
    assert (found["dose"].option, found["taken"].option) == ("--role score:dose=dose", "--role time=taken")


def rendered(unused: list[Unused]) -> list[str]:
    console = Console(width=80, record=True, file=io.StringIO())
    report = CheckReport(cohort({}), [], [], [], [], unused)
    console.print(report.render(), highlight=False)
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_options_stand_on_lines_of_their_own_and_the_list_is_capped(tmp_path: Path) -> None:
    columns = {f"with{row}": among("a", "b") for row in range(SHOWN + 3)}
    columns |= {f"without{row}": ["a"] * ROWS for row in range(SHOWN_OTHERS + 2)}
    unused = unused_columns(cohort(columns))
    lines = rendered(unused)
    assert lines.index("Columns without a role") < lines.index("--role label:with0=with0    2 classes")
    assert sum(line.startswith("--role") for line in lines) == SHOWN
    assert sum(line.startswith("without") for line in lines) == SHOWN_OTHERS
    assert "and 5 more, which the JSON lists" in lines
    assert "more" not in " ".join(rendered(unused[:5]))
    assert "Columns without a role" not in rendered([])
    CheckReport(cohort({}), [], [], [], [], unused).write(tmp_path / "check.json")
    written = json.loads((tmp_path / "check.json").read_text())["unused"]
    assert written[0] == {"column": "with0", "option": "--role label:with0=with0", "why": "2 classes"}
    assert len(written) == SHOWN + SHOWN_OTHERS + 5
