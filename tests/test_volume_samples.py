"""Which rows of a table are one volume: a file by itself, a series, or what a patient's rows share."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.data.images.clips import open_samples
from bolus.errors import CohortError


def cohort(columns: dict[str, Any]) -> Cohort:
    number = len(next(iter(columns.values())))
    base = {"image": [f"{row}.x" for row in range(number)], "patient": ["p"] * number}
    return Cohort(pd.DataFrame({**base, **columns}), CohortSpec(table="t.csv"))


def volumes(of: Cohort) -> list[list[int]]:
    samples = open_samples(of, "volume")
    assert samples.unit == "volume"
    return [samples.rows_of(position).tolist() for position in range(len(samples))]


def test_a_file_on_a_row_is_a_volume() -> None:
    assert volumes(cohort({"sex": ["F", "F"]})) == [[0], [1]]
    assert volumes(cohort({"series": ["a", "b"], "order": [1, 1]})) == [[0], [1]]  # each of a series of its own


def test_rows_of_a_series_are_one_in_their_order() -> None:
    assert volumes(cohort({"series": ["a", "b", "a", "b"], "order": [2, 1, 1, 7]})) == [[2, 0], [1, 3]]
    assert volumes(cohort({"series": ["a", "b", "a"], "slice_position": [0.9, 0.5, 0.1]})) == [[2, 0], [1]]


def test_without_a_series_rows_are_told_apart_by_what_they_share() -> None:
    found = cohort({"visit": [1, 2, 1, 2], "order": [2, 1, 1, 2]})
    assert volumes(found) == [[2, 0], [1, 3]]


def test_frames_of_one_file_are_its_slices() -> None:
    found = cohort({"image": ["a.nii", "a.nii", "b.nii", "b.nii"], "order": [1, 0, 0, 1]})
    assert volumes(found) == [[1, 0], [2, 3]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"series": ["a", "a"]}, "rows 1, 2: slices of a volume need a column with the role order or slice_position"),
        ({"series": ["a", "a"], "order": [1, 1]}, r"rows 1, 2: order \('order'\) has one value twice within a volume"),
        ({"series": ["a", "a"], "order": [1, None]}, r"row 2: order \('order'\) is missing within a volume"),
        (
            {"series": ["a", "a"], "order": [1, 2], "visit": [1, 2]},
            (
                r"row 2: visit \('visit'\) differs from the start of its volume; if it belongs to a slice and not "
                "to the volume, leave it without a role"
            ),
        ),
    ],
)
def test_what_makes_no_volume_is_told_with_its_rows(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(CohortError, match="a volume is slices in order, whose columns are the same") as caught:
        cohort(columns).samples("volume")
    with pytest.raises(CohortError, match=message):
        raise caught.value


def test_what_varies_from_slice_to_slice_may() -> None:
    found = cohort({"series": ["a", "a"], "order": [1, 2], "mask": ["m1", None], "age": ["61", "61.0"]})
    assert volumes(found) == [[0, 1]]
