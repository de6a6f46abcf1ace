"""Numbers become meta labels: bins hold what their edges say, and nobody but training patients sets an edge."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bolus.data.batches.columns import TrainingColumns, bin_codes, meta_label_problem, sample_columns
from bolus.data.batches.relation import Relation
from bolus.data.cohort.cohort import Cohort, Samples
from bolus.data.cohort.roles import CATEGORIES, NUMBERS, PATHS, is_role, known_roles
from bolus.data.cohort.spec import CohortSpec
from bolus.errors import CohortError, RecipeError

EVERYONE = np.ones(8, np.bool_)
EIGHT = np.array([5.0, 1, 8, 3, 7, 2, 6, 4])


def table(**columns: list[Any]) -> Samples:
    num = len(next(iter(columns.values())))
    made = {"image": [f"{row}.png" for row in range(num)], "patient": [f"p{row}" for row in range(num)]}
    roles = {"score:age": "age", "attribute:sex": "sex", "attribute:weight": "weight"}
    roles = {role: column for role, column in roles.items() if column in columns}
    return Cohort(pd.DataFrame({**made, **columns}), CohortSpec(table="t.csv", roles=roles)).samples("image")


# Codes ------------------------------------------------------------


@pytest.mark.parametrize("bins", [2, 4, 8])
def test_bins_asked_for_by_number_hold_as_many_each(bins: int) -> None:
    codes = bin_codes(EIGHT, EVERYONE, bins)
    assert codes.dtype == np.int64
    assert np.bincount(codes).tolist() == [8 // bins] * bins
    assert (np.diff(codes[np.argsort(EIGHT)]) >= 0).all()


def test_a_value_on_an_edge_is_in_the_upper_bin() -> None:
    assert bin_codes(EIGHT, EVERYONE, [3, 7.5]).tolist() == [1, 0, 2, 1, 1, 0, 1, 1]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.one_of(st.integers(-3, 3).map(float), st.just(float("nan"))), min_size=2, max_size=20),
    st.lists(st.booleans(), min_size=20, max_size=20),
    st.one_of(st.integers(2, 5), st.sets(st.integers(-3, 3), min_size=1, max_size=3).map(sorted)),
)
def test_codes_count_the_edges_at_or_below_a_value(
    listed: list[float], sides: list[bool], spec: int | list[int]
) -> None:
    values, train = np.array(listed), np.array(sides[: len(listed)])
    taught = sorted(value for value in values[train].tolist() if value == value)
    assume(len(taught) > 0)
    if isinstance(spec, int):
        at = [(len(taught) - 1) * part / spec for part in range(1, spec)]  # linear between the two nearest samples
        near = [(taught[int(place)], taught[min(int(place) + 1, len(taught) - 1)], place % 1) for place in at]
        edges = {low + (high - low) * share for low, high, share in near} - {taught[0]}
    else:
        edges = {float(edge) for edge in spec}
    on_edge = any(0 < abs(value - edge) < 1e-9 for value in listed for edge in edges)
    assume(not on_edge)  # where rounding would decide
    expected = [-1 if value != value else sum(edge <= value for edge in edges) for value in values.tolist()]
    if len({code for code, side in zip(expected, train, strict=True) if side and code >= 0}) < 2:
        with pytest.raises(CohortError):
            bin_codes(values, train, spec)
    else:
        assert bin_codes(values, train, spec).tolist() == expected


def test_only_training_samples_set_the_edges() -> None:
    train = np.arange(8) < 4
    codes = bin_codes(EIGHT, train, 2)
    changed = np.where(train, EIGHT, 1000 * EIGHT)
    assert (codes[train] == bin_codes(changed, train, 2)[train]).all()
    assert bin_codes(changed, train, 2)[~train].tolist() == [1] * 4


def test_missing_and_infinite_values_have_no_bin_and_set_no_edge() -> None:
    values = np.r_[EIGHT, np.nan, np.inf, -np.inf]
    codes = bin_codes(values, np.ones(11, np.bool_), 4)
    assert codes[:8].tolist() == bin_codes(EIGHT, EVERYONE, 4).tolist()
    assert codes[8:].tolist() == [-1, -1, -1]


def test_ties_give_fewer_bins_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    values = np.array([0.0, 0, 0, 0, 0, 0, 1, 2])
    with caplog.at_level(logging.WARNING):
        codes = bin_codes(values, EVERYONE, 4, name="score:pain")
    assert codes.tolist() == [0, 0, 0, 0, 0, 0, 1, 1]  # edges 0, 0 and 0.25, of which the lowest value is none
    assert caplog.messages == ["score:pain: 2 bins, not 4: the others hold no training sample"]
    caplog.clear()
    bin_codes(EIGHT, EVERYONE, 4)
    assert not caplog.messages


@pytest.mark.parametrize(
    ("values", "spec", "message"),
    [
        (np.arange(8), 2, "age holds categories"),
        (np.full(8, np.nan), 2, "age is missing for every training sample"),
        (np.r_[np.full(4, 3.0), np.full(4, np.nan)], 2, "age is the same for every training sample"),
        (np.array([0.0] * 7 + [-1]), 2, None),
        (np.array([0.0] * 7 + [1]), 2, "every training sample falls into one of 2 bins; give edges between 0 and 1"),
        (EIGHT, [9, 10], "every training sample falls into one of 3 bins; give edges between 1 and 8"),
    ],
    ids=["codes", "missing", "constant", "ties_above", "ties_below", "edges_beyond"],
)
def test_a_column_that_cannot_be_cut_is_an_error(
    values: np.ndarray, spec: int | Sequence[float], message: str | None
) -> None:
    if message is None:  # the median is the value of most, and the other one lies below it
        assert bin_codes(values, EVERYONE, spec).tolist() == [1] * 7 + [0]
        return
    with pytest.raises(CohortError, match=message):
        bin_codes(values, EVERYONE, spec, name="age")


@pytest.mark.parametrize("spec", [1, 0, True, [], [2, 2], [3, 1], [float("nan")], [1, float("inf")]], ids=str)
def test_bins_that_are_none_are_refused(spec: Any) -> None:
    with pytest.raises(RecipeError, match=r"bins\.age: expected"):
        bin_codes(EIGHT, EVERYONE, spec, name="age")


# Columns ------------------------------------------------------------


def test_samples_have_their_columns_and_the_bins() -> None:
    samples = table(age=[10, 20, 30, 40, 5], split=["train"] * 4 + ["test"])
    found = sample_columns(samples, ["patient", "bin:score:age"], {"score:age": 2})
    assert set(found) == {"sample", "patient", "bin:score:age"}
    assert found["bin:score:age"].tolist() == [0, 0, 1, 1, 0]
    assert found["patient"].tolist() == samples.columns(["patient"])["patient"].tolist()


def test_training_columns_hold_the_same_bins() -> None:
    samples = table(age=[10, 5, 30, 40, None, 20], split=["train", "test", "train", "train", "train", "val"])
    columns = TrainingColumns(samples, bins={"score:age": [25]})
    every = sample_columns(samples, ["bin:score:age"], {"score:age": [25]})["bin:score:age"]
    assert columns["bin:score:age"].tolist() == every[columns.rows].tolist() == [0, 1, 1, -1]
    assert set(columns) == {"patient", "split", "score:age", "bin:score:age"}
    assert len(columns) == 4
    assert all(role in columns for role in columns)


def test_bins_that_no_recipe_declares_say_what_to_add() -> None:
    samples = table(age=[1, 2], split=["train"] * 2)
    columns = TrainingColumns(samples)
    assert "bin:score:age" not in columns
    with pytest.raises(RecipeError, match=r"add bins=\{score:age: 4\}"):
        columns["bin:score:age"]
    with pytest.raises(RecipeError, match=r"add bins=\{slice_position: 4\}"):
        sample_columns(samples, ["bin:slice_position"], {"score:age": 2})


def test_bins_of_an_absent_column_are_no_column() -> None:
    samples = table(age=[1, 2], split=["train"] * 2)
    assert "bin:visit" not in TrainingColumns(samples, bins={"visit": 2})
    assert "bin:visit" not in set(TrainingColumns(samples, bins={"visit": 2}))
    with pytest.raises(CohortError, match="no column has the role 'visit'"):
        sample_columns(samples, ["bin:visit"], {"visit": 2})


def test_an_attribute_is_cut_where_it_is_a_number() -> None:
    samples = table(sex=list("mfmf"), weight=[50, 60, 70, 80], split=["train"] * 4)
    bins = {"attribute:sex": 2, "attribute:weight": 2}
    assert sample_columns(samples, ["bin:attribute:weight"], bins)["bin:attribute:weight"].tolist() == [0, 0, 1, 1]
    with pytest.raises(CohortError, match="attribute:sex holds categories"):
        TrainingColumns(samples, bins)["bin:attribute:sex"]


def test_slices_of_every_volume_fall_evenly_into_the_quarters_of_it() -> None:
    depths = (8, 12, 4)
    frame = pd.DataFrame(
        {
            "image": [f"{row}.png" for row in range(sum(depths))],
            "patient": np.repeat(["p", "q", "r"], depths),
            "order": np.concatenate([np.arange(depth) for depth in depths]),
            "split": "train",
        }
    )
    samples = Cohort(frame, CohortSpec(table="t.csv")).samples("slice")
    columns = TrainingColumns(samples, bins={"slice_position": 4})
    assert {"slice_position", "bin:slice_position"} <= set(columns)
    quarters = columns["bin:slice_position"]
    for start, depth in zip((0, 8, 20), depths, strict=True):
        assert quarters[start : start + depth].tolist() == np.repeat(range(4), depth // 4).tolist()


def test_volumes_of_one_slice_have_no_place_to_cut() -> None:
    samples = table(order=[1, 2], split=["train"] * 2)
    with pytest.raises(CohortError, match=r"slice_position \(by order within volumes\) is missing for every"):
        sample_columns(samples, ["bin:slice_position"], {"slice_position": 2})


# Roles ------------------------------------------------------------


def test_numbers_have_bins_and_categories_have_none() -> None:
    assert all(is_role(f"bin:{role}") for role in (*NUMBERS, "score:age", "attribute:weight"))
    others = (*CATEGORIES, *PATHS, "label:sick", "score:", "", "bin:visit", "sample", "ROLE")
    assert not any(is_role(f"bin:{role}") for role in others)
    assert "bin:ROLE" in known_roles()


def test_a_relation_over_bins_is_of_categories() -> None:
    relation = Relation.parse("bin:slice_position")
    assert relation.same == ("bin:slice_position",)
    assert Relation.parse({"same": "patient", "differ": "bin:score:age"}).differ == ("bin:score:age",)
    with pytest.raises(RecipeError, match="bin:score:age holds categories, which lie neither near nor far"):
        Relation.parse({"near": {"bin:score:age": 1}})
    with pytest.raises(RecipeError, match="did you mean 'bin:slice_position'"):
        Relation.parse("bin:slice_postion")


# Meta labels ------------------------------------------------------------


@pytest.mark.parametrize(
    ("codes", "problem"),
    [
        ([0, 0, 1], None),
        ([0, 1, 1, -1], None),
        ([0, 1, 2, -1], "is unique to every training sample, so that no two are positives"),
        ([2, 2, -1], "is the same for every training sample, so that there are no negatives"),
        ([-1, -1], "is missing for every training sample"),
        ([1.0, float("nan"), 1.0, 2.0], None),
        ([1.0, float("nan"), 2.0], "is unique to every training sample, so that no two are positives"),
    ],
    ids=["two", "missing_one", "unique", "constant", "missing", "numbers", "unique_numbers"],
)
def test_what_makes_a_meta_label_worthless(codes: list[float], problem: str | None) -> None:
    assert meta_label_problem(np.array(codes)) == problem
