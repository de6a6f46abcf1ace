"""Volumes are told apart as a person would, and a slice's place in its volume is the same however it is counted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.data.cohort.volumes import slice_positions, volume_codes
from bolus.errors import CohortError


def cohort(columns: dict[str, list[Any]], **roles: str) -> Cohort:
    """A cohort of these columns; images are made up where absent, and all rows are training rows."""
    count = len(next(iter(columns.values())))
    made = {"image": [f"{row}.png" for row in range(count)], "split": ["train"] * count}
    return Cohort(pd.DataFrame({**made, **columns}), CohortSpec(table="t.csv", roles=roles))


def groups(codes: np.ndarray) -> list[list[int]]:
    """The rows of each volume, by first row."""
    return sorted(np.flatnonzero(codes == code).tolist() for code in np.unique(codes))


def naive_positions(series: list[int], order: list[float]) -> list[float]:
    """The place of each row, counted by looking at every other row."""
    found = []
    for mine, here in zip(series, order, strict=True):
        mates = [o for s, o in zip(series, order, strict=True) if s == mine and not math.isnan(o)]
        if mine < 0 or math.isnan(here) or len(mates) < 2:
            found.append(math.nan)
        else:
            before, level = sum(o < here for o in mates), sum(o == here for o in mates)
            found.append((before + level / 2) / len(mates))
    return found


# Places ------------------------------------------------------------


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.integers(-1, 3), st.one_of(st.integers(-4, 4).map(float), st.just(math.nan))),
        max_size=30,
    )
)
def test_positions_agree_with_a_loop_over_rows(rows: list[tuple[int, float]]) -> None:
    series, order = [row[0] for row in rows], [row[1] for row in rows]
    found = slice_positions(np.array(series, np.int64), np.array(order, np.float64))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, naive_positions(series, order), rtol=0, atol=1e-12)


def test_positions_do_not_depend_on_the_numbering_nor_on_the_order_of_rows() -> None:
    series, order = np.repeat([0, 1], 5), np.tile(np.arange(5.0), 2)
    found = slice_positions(series, order)
    np.testing.assert_array_equal(found, slice_positions(series, 10 * order**2 - 3))
    shuffled = np.random.default_rng(0).permutation(10)
    np.testing.assert_array_equal(found[shuffled], slice_positions(series[shuffled], order[shuffled]))
    np.testing.assert_allclose(found[:5] + found[4::-1], 1)  # the middle of the volume is .5


def test_volumes_of_other_lengths_have_the_same_places() -> None:
    found = slice_positions(np.array([0] * 3 + [1] * 9), np.r_[np.arange(3.0), np.arange(9.0)])
    assert set(found[:3].tolist()) <= set(found[3:].tolist())  # to the last bit, so that quantiles see ties as ties


def test_an_infinite_order_is_a_missing_one() -> None:
    found = slice_positions(np.zeros(3, np.int64), np.array([1.0, np.inf, 2.0]))
    np.testing.assert_array_equal(found, [0.25, np.nan, 0.75])


# Volumes ------------------------------------------------------------


def test_a_series_is_a_volume_of_one_patient() -> None:
    opened = cohort({"patient": list("ppqq"), "series": ["1", "2", "1", "1"], "phase": ["a", "b", "a", "b"]})
    codes, roles = volume_codes(opened)
    assert roles == ("patient", "series")  # the phase tells nothing more, and series 1 of two patients is two volumes
    assert codes.dtype == np.int64
    assert groups(codes) == [[0], [1], [2, 3]]


def test_without_a_series_whatever_the_cohort_has_tells_volumes_apart() -> None:
    rows: dict[str, list[Any]] = {
        "patient": ["p"] * 6,
        "visit": ["1", "1", "2", "2", None, None],
        "phase": ["ED", "ES", "ED", "ED", None, None],
    }
    codes, roles = volume_codes(cohort(rows))
    assert roles == ("patient", "visit", "phase")
    assert groups(codes) == [[0], [1], [2, 3], [4, 5]]  # missing is a value of its own
    assert volume_codes(cohort({"patient": list("pqp")}))[1] == ("patient",)
    assert groups(volume_codes(cohort({"patient": list("pqp")}))[0]) == [[0, 2], [1]]


@pytest.mark.parametrize("role", ["visit", "time", "phase", "modality", "laterality", "region"])
def test_each_telling_role_tells(role: str) -> None:
    codes, roles = volume_codes(cohort({"patient": list("ppp"), "x": ["1", "2", "1"]}, **{role: "x"}))
    assert roles == ("patient", role)
    assert groups(codes) == [[0, 2], [1]]


def test_rows_without_a_series_are_told_apart_by_the_other_roles() -> None:
    rows: dict[str, list[Any]] = {
        "patient": ["p"] * 5,
        "series": ["s", "s", None, None, None],
        "visit": ["1", "2", "1", "2", "2"],
    }
    codes, roles = volume_codes(cohort(rows))
    assert roles == ("patient", "series", "visit")
    assert groups(codes) == [[0, 1], [2], [3, 4]]


def test_frames_of_two_files_are_two_volumes() -> None:
    rows: dict[str, list[Any]] = {
        "image": ["a.nii", "a.nii", "b.nii", "b.nii"],
        "patient": ["p"] * 4,
        "order": [0, 1, 0, 1],
    }
    codes, roles = volume_codes(cohort(rows))
    assert roles == ("patient", "image")
    assert groups(codes) == [[0, 1], [2, 3]]


# The derived role ------------------------------------------------------------


def test_slice_position_comes_from_order_where_no_column_has_it() -> None:
    opened = cohort({"patient": list("ppqppq"), "order": [1, 2, 1, 4, 3, 9]})
    assert opened.has("slice_position")
    assert "slice_position" not in opened.roles
    np.testing.assert_array_equal(opened.encoded("slice_position"), [0.125, 0.375, 0.25, 0.875, 0.625, 0.75])
    assert opened.samples("slice").columns(["slice_position"])["slice_position"][3] == 0.875


def test_a_column_of_slice_positions_is_taken_as_it_is() -> None:
    opened = cohort({"patient": list("pp"), "order": [1, 2], "slice_position": [0.9, None]})
    np.testing.assert_array_equal(opened.encoded("slice_position"), [0.9, np.nan])


def test_without_order_there_is_no_slice_position() -> None:
    opened = cohort({"patient": list("pp")})
    assert not opened.has("slice_position")
    assert not opened.has("bin:slice_position")
    with pytest.raises(CohortError, match="no column has the role 'slice_position'"):
        opened.encoded("slice_position")


def test_frames_of_clip_files_have_places_too() -> None:
    clips = cohort({"patient": list("pq")}).expand(np.array([4, 1]))
    np.testing.assert_array_equal(clips.encoded("slice_position"), [0.125, 0.375, 0.625, 0.875, np.nan])


def test_has_answers_for_columns_and_bins() -> None:
    opened = cohort({"patient": list("pp"), "order": [1, 2], "region": ["a", "b"]})
    asked = ("order", "region", "visit", "bin:order", "bin:slice_position", "bin:visit", "bin:region", "bin:bin:order")
    assert [role for role in asked if opened.has(role)] == ["order", "region", "bin:order", "bin:slice_position"]
