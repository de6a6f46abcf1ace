"""What embeddings and predictions take of a table, and that no cell of a CSV is a formula."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import bolus
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.data.cohort.table import read_table
from bolus.data.images.preprocessing import Preprocessing
from bolus.data.text.formulas import guard, unguard, write_csv
from bolus.embedding.rows import chosen_columns, left_out
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import save_encoder
from bolus.errors import UsageError
from bolus.recipe import EncoderSpec
from test_prediction import make_head

TABLE = pd.DataFrame(
    {
        "image": ["Doe_Jane/a.png", "Roe/b.png", "Poe/c.png"],
        "mask": ["Doe_Jane/m.png", None, None],
        "patient": ["Doe", "Roe", "Poe"],
        "visit": ["1", "1", "2"],
        "date": ["2020-03-01", "2020-03-02", "2020-03-03"],
        "series": ["1.2.840.1", "1.2.840.2", "1.2.840.3"],
        "hospital": ["St. Mary", "St. Mary", "St. Paul"],
        "sex": ["F", "M", "F"],
        "birth": ["1.2.1950", "3.4.1960", "5.6.1970"],
        "edema": ["yes", "no", None],
        "report": ["Mrs Doe is well", "as before", "new"],
        "split": ["train", "train", "test"],
        "score": ["2012.3456", "1", "2"],
    }
)
SPEC = CohortSpec(
    table="t.csv", roles={"attribute:birth": "birth", "label:edema": "edema", "score:x": "score", "time": "date"}
)
FORMULAS = ("=1+1", "+49 30", "-x", "@sum", "\tx", "\rx", "\uff1d1", "'=1", "''-x")


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    folder = tmp_path / "encoder"
    built = build_encoder(EncoderSpec(backbone="r18w32"), seed=0)
    save_encoder(built.eval(), folder, preprocessing=Preprocessing(24).to_json())
    return folder


def test_nothing_that_names_a_person_a_place_a_file_or_a_day_is_chosen() -> None:
    cohort = Cohort(TABLE, SPEC)
    assert chosen_columns(cohort) == ["visit", "sex", "edema", "score"]
    assert left_out(cohort) == ["image", "mask", "patient", "date", "series", "hospital", "birth", "report"]


def test_days_since_a_study_are_no_dates() -> None:
    for days, kept in ((["0", "31", "-10"], True), (["20200101", "20200102", "20200301"], False)):
        frame = TABLE.assign(date=days, visit=days if not kept else TABLE["visit"])
        assert ("date" in chosen_columns(Cohort(frame, SPEC))) == kept
        assert ("visit" in chosen_columns(Cohort(frame, SPEC))) == kept


@pytest.mark.parametrize(
    "dates",
    [
        ["12-MAR-1950", "3-APR-1960", "5-JUN-1970"],
        ["12 Mar 1950", "unknown", "unknown"],
        ["Jan 5, 2020", "March 12, 2021", "Sept 1 2022"],
        ["March 1950", "April 1960", "June 1970"],
        ["1950-03", "1960-04", "1970-06"],
        ["31/01/50", "12/03/60", "01/02/70"],
        ["2180-07-23", "2181-01-02", "2190-12-31"],
        ["12MAR50", "03APR60", "05JUN70"],
        ["born 12th March 1950", "f", "m"],
    ],
)
def test_dates_are_known_however_they_are_written(dates: list[str]) -> None:
    assert "birth" not in chosen_columns(Cohort(TABLE.assign(birth=dates), SPEC))


@pytest.mark.parametrize(
    "values",
    [
        ["12", "13.5", "-4"], ["1950", "1960", "1970"], ["1.5 T", "3 T", "3 T"], ["Prisma 2.1.03", "GE 7", "x"],
        ["may be", "marked", "decided"], ["T1", "T2", "FLAIR"], ["10-20", "20-30", "30-40"],
    ],
)  # fmt: skip
def test_what_is_no_date_stays(values: list[str]) -> None:
    assert "birth" in chosen_columns(Cohort(TABLE.assign(birth=values), SPEC))


def test_a_column_of_two_roles_is_left_out_where_one_of_them_tells() -> None:
    roles = {**SPEC.roles, "patient": "patient", "attribute:who": "patient"}
    assert "patient" not in chosen_columns(Cohort(TABLE, SPEC.model_copy(update={"roles": roles})))


def test_columns_are_added_by_name_and_an_unknown_one_names_its_neighbour() -> None:
    cohort = Cohort(TABLE, SPEC)
    assert chosen_columns(cohort, ["report", "patient"]) == ["patient", "visit", "sex", "edema", "report", "score"]
    assert chosen_columns(cohort, ["patient"], with_table=False) == ["patient"]
    assert chosen_columns(cohort, "patient", with_table=False) == ["patient"]
    assert left_out(cohort, with_table=False) == []
    with pytest.raises(UsageError, match=r"no column 'patients'; did you mean 'patient'\?"):
        chosen_columns(cohort, ["patients"])


def test_embeddings_and_predictions_take_the_same(
    encoder: Path, tiny_cohort: Path, tmp_path: Path, call_bolus: Callable[..., tuple[int, str]]
) -> None:
    table = read_table(tiny_cohort.with_name("table.csv")).assign(note="Mr Doe")
    table.to_csv(tiny_cohort.with_name("table.csv"), index=False)
    head = make_head(tmp_path / "h.safetensors", 256, 0)
    own, given = ["visit", "days", "sick", "severity", "sex"], {"cache": tmp_path / "cache"}
    for columns, with_table, expected in (
        ((), True, ["row", "split", *own]),
        (("patient",), True, ["row", "split", "patient", *own]),
        ((), False, ["row"]),
        (("patient", "note"), False, ["row", "patient", "note"]),
    ):
        asked: dict[str, Any] = {"columns": columns, "with_table": with_table, **given}
        embedded = bolus.embed(encoder, tiny_cohort, out=tmp_path / "e.parquet", **asked)
        predicted = bolus.predict(encoder, tiny_cohort, head=head, out=tmp_path / "p.csv", **asked)
        assert embedded.columns.tolist() == [*expected, "embedding"]
        assert predicted.columns.tolist() == [*expected, "prediction", "reason"]
        assert pd.read_parquet(tmp_path / "e.parquet").columns.tolist() == embedded.columns.tolist()
        assert pd.read_csv(tmp_path / "p.csv").columns.tolist() == predicted.columns.tolist()
        assert embedded["row"].tolist() == list(range(1, 61))
        whole = {} if columns or not with_table else {"image", "patient", "note"}
        assert set(predicted.attrs["left_out"]) == set(embedded.attrs["left_out"]) >= set(whole)

    words = ("--head", head, "-o", tmp_path / "q.csv")
    code, said = call_bolus("predict", encoder, tiny_cohort, *words)
    assert code == 0, said
    assert "left out: image, patient, note (persons, places" in said
    code, said = call_bolus("embed", encoder, tiny_cohort, "-o", tmp_path / "q.parquet", "--columns", "patient,sexes")
    assert (code, "no column 'sexes'; did you mean 'sex'?" in said) == (2, True)
    code, said = call_bolus("predict", encoder, tiny_cohort, *words, "--no-table", "--columns", "patient")
    assert code == 0, said
    assert "left out" not in said
    assert pd.read_csv(tmp_path / "q.csv").columns.tolist() == ["row", "patient", "prediction", "reason"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_is_guarded_and_read_back(text: str, tmp_path: Path) -> None:
    assert guard(text) == f"'{text}"
    assert unguard(guard(text)) == text
    write_csv(pd.DataFrame({text: [text, None], "plain": ["a", "-1.5"], "number": [-1.5, 2.0]}), tmp_path / "t.csv")
    found = read_table(tmp_path / "t.csv")
    assert found.columns.tolist() == [text, "plain", "number"]
    assert found[text].tolist()[0] == text
    assert found["plain"].tolist() == ["a", "-1.5"]
    assert found["number"].tolist() == ["-1.5", "2.0"]


@pytest.mark.parametrize("text", ["-1.5", "+3", "-.5e-3", "a=b", "", "2020-01-01", "'tis", "M\u00fcller"])
def test_numbers_and_plain_text_stay(text: str) -> None:
    assert guard(text) == unguard(text) == text


@settings(deadline=None)
@given(st.text(alphabet="=+-@\t'1.5eEa;\uff1d", max_size=8))
def test_every_text_comes_back(text: str) -> None:
    guarded = guard(text)
    assert unguard(guarded) == text
    assert not guarded.startswith(("=", "@", "\t", "\uff1d"))
    assert not guarded.startswith(("+", "-")) or np.isfinite(float(guarded))


def test_where_semicolons_separate_no_cell_becomes_a_formula(tmp_path: Path) -> None:
    write_csv(pd.DataFrame({"a": ["x;=cmd", "y"], "b": [1, 2]}), tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == '"a","b"\n"x;=cmd",1\n"y",2\n'
    assert read_table(tmp_path / "t.csv")["a"].tolist() == ["x;=cmd", "y"]


def test_identifiers_of_a_scan_that_look_like_formulas_come_back(tmp_path: Path) -> None:
    from bolus.scanning.scanning import scan
    from image_trees import write_images

    write_images(tmp_path / "tree", "=MRN-1/a.png", "-7b/a.png", "plain/a.png")
    scan(tmp_path / "tree", tmp_path / "out" / "cohort.yaml", pattern="{patient}/{image}", keep_ids=True)
    text = (tmp_path / "out" / "cohort.csv").read_text()
    assert "'=MRN-1" in text
    assert not any(cell.startswith(("=", "-7b")) for line in text.splitlines() for cell in line.split(","))
    cohort = Cohort.open(tmp_path / "out" / "cohort.yaml")
    assert set(cohort.patients) == {"=MRN-1", "-7b", "plain"}
    again = scan(tmp_path / "tree", tmp_path / "out" / "cohort.yaml", pattern="{patient}/{image}", keep_ids=True,
                 update=True)  # fmt: skip
    assert (again.rows, again.added) == (3, 0)
    assert yaml.safe_load((tmp_path / "out" / "cohort.yaml").read_text())["roles"]["patient"] == "patient"
