"""The cohort without its test patients: nothing of them is left, and the rest is as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.holdout import validation_cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.data.images.clips import open_samples
from bolus.errors import UsageError


def cohort(**spec: object) -> Cohort:
    number = np.arange(200)
    frame = pd.DataFrame(
        {
            "image": [f"{n}.png" for n in number], "patient": [f"p{n // 4}" for n in number], "age": number % 7,
            "sick": np.where(number % 3 == 0, "yes", "no"), "site": np.where(number // 4 % 2, "north", "south"),
            "side": np.where(number // 4 % 5 == 0, "TEST", np.where(number // 4 % 5 == 1, "dev", "train")),
        }
    )  # fmt: skip
    roles = {"score:age": "age", "label:sick": "sick", "site": "site"}
    given = {
        "table": "t.csv",
        "roles": roles,
        "ranges": {"image": (0.0, 9.0)},
        "namespace": "h",
        "missing": {"age": [3]},
    }
    return Cohort(frame, CohortSpec.model_validate({**given, **spec}))


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"split": {"val": 0.2, "test": 0.3}}, id="hash"),
        pytest.param({"split": {"val": 0.3, "leave_out_site": "north"}}, id="site"),
        pytest.param(
            {"roles": {"score:age": "age", "label:sick": "sick", "site": "site", "split": "side"}}, id="fixed"
        ),
    ],
)
def test_no_test_row_is_left_and_the_rest_is_as_it_was(spec: dict[str, object]) -> None:
    whole = cohort(**spec)
    table, split = whole.table.copy(), whole.split.copy()
    held = validation_cohort(whole)
    pd.testing.assert_frame_equal(whole.table, table)
    assert (whole.split == split).all()
    assert whole.roles.keys() == held.roles.keys()
    assert held.origin.tolist() == np.flatnonzero(split != "test").tolist()
    assert set(held.split) == {"train", "test"}
    assert not set(held.patients) & set(whole.patients[split == "test"])
    assert set(held.patients[held.split == "train"]) == set(whole.patients[split == "train"])
    assert set(held.patients[held.split == "test"]) == set(whole.patients[split == "val"])
    for role in ("image", "patient", "score:age", "label:sick", "site"):
        there, here = whole.values(role).iloc[held.origin].reset_index(drop=True), held.values(role)
        pd.testing.assert_series_equal(there, here)
    assert (held.encoded("score:age")[held.encoded("score:age") == 3]).size == 0
    assert held.labels("sick").classes == whole.labels("sick").classes
    assert held.spec.ranges == whole.spec.ranges
    assert held.num_patients == len(set(held.patients)) < whole.num_patients
    assert held.split_hash != whole.split_hash
    if "split" in held.roles:
        assert held.values("split").tolist() == held.split.tolist()
        assert "side" in held.table, "the column is there; the role is not its own any more"


def test_without_validation_patients_it_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--split val=0.1"):
        validation_cohort(cohort(split={"val": 0, "test": 0.3}))


def test_frames_of_files_and_samples_lead_back_to_the_rows_as_given(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "image": ["a.nii", "a.nii", "b.nii", "c.nii", "c.nii"], "patient": ["p", "p", "q", "r", "r"],
            "order": [0, 1, 0, 0, 1], "split": ["train", "train", "test", "val", "val"],
        }
    )  # fmt: skip
    held = validation_cohort(Cohort(frame, CohortSpec(table="t.csv"), tmp_path))
    assert [held.frame(row) for row in range(4)] == [0, 1, 0, 1]
    assert held.origin[open_samples(held, "slice").first_row].tolist() == [0, 1, 3, 4]
    expanded = held.expand(np.array([1, 1, 2, 1]))
    assert expanded.origin.tolist() == [0, 1, 3, 3, 4]
    assert expanded.split.tolist() == ["train", "train", "test", "test", "test"]


def test_a_part_of_a_cohort_spells_its_classes_as_the_whole() -> None:
    columns = {"image": list("abcd"), "patient": list("pqrs"), "split": ["train", "val", "train", "test"]}
    frame = pd.DataFrame({**columns, "sick": ["y", "y", "y", "n"]})  # of y alone nobody knows that it is yes
    whole = Cohort(frame, CohortSpec(table="t.csv", roles={"label:sick": "sick"}))
    assert whole.labels("sick").classes == ("0", "1")
    assert validation_cohort(whole).values("label:sick").tolist() == ["1", "1", "1"]
    assert whole.expand(np.array([2, 1, 1, 1])).values("label:sick").tolist() == ["1", "1", "1", "1", "0"]
