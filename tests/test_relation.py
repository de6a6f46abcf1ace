"""The two evaluations of a relation agree with each other and with a loop over pairs; rules are read and refused."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bolus.data.batches.partners import PartnerIndex
from bolus.data.batches.relation import Needs, Relation
from bolus.errors import RecipeError

CODES = ("patient", "laterality", "region")
NUMBERS = ("time", "score:a")


def is_missing(value):
    return value == -1 if isinstance(value, (int, np.integer)) else math.isnan(value)


def naive_mask(relation, columns):
    """The rule as a person reads it, pair by pair."""
    num_rows = len(next(iter(columns.values())))
    mask = np.zeros((num_rows, num_rows), dtype=bool)
    for i, j in product(range(num_rows), repeat=2):
        if any(is_missing(columns[role][row]) for role in relation.roles for row in (i, j)):
            continue
        holds = all(columns[role][i] == columns[role][j] for role in relation.same)
        holds &= all(columns[role][i] != columns[role][j] for role in relation.differ)
        if relation.range is not None:
            role, amount = relation.range
            close = abs(columns[role][i] - columns[role][j]) <= columns[role].dtype.type(amount)
            holds &= not close if relation.far else close
        mask[i, j] = holds
    return mask


@st.composite
def tables(draw):
    num_rows = draw(st.integers(1, 24))
    seed = draw(st.integers(0, 2**32 - 1))
    dtype = draw(st.sampled_from([np.float64, np.float32]))
    steps = draw(st.sampled_from([3, 10, 1000]))  # coarse values give ties and differences right at the amount
    rng = np.random.default_rng(seed)
    columns = {role: rng.integers(-1, draw(st.integers(1, 6)), num_rows) for role in CODES}
    for role in NUMBERS:
        values = rng.integers(0, steps, num_rows) / 10
        columns[role] = np.where(rng.random(num_rows) < 0.2, np.nan, values).astype(dtype)
    return columns


@st.composite
def relations(draw):
    side = {role: draw(st.sampled_from(["same", "differ", "neither"])) for role in (*CODES, *NUMBERS)}
    kind = draw(st.sampled_from(["within", "near", "far", None]))
    role = draw(st.sampled_from(NUMBERS))
    amount = draw(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.7, 5.0]))
    if kind is not None and side[role] == "same":
        side[role] = "neither"
    if kind is None and set(side.values()) == {"neither"}:
        side["patient"] = "same"
    weighting = draw(st.sampled_from(["none", "linear"])) if kind in ("within", "near") else "none"
    return Relation(
        same=tuple(role for role, where in side.items() if where == "same"),
        differ=tuple(role for role, where in side.items() if where == "differ"),
        weighting=weighting,
        **({kind: (role, amount)} if kind else {}),
    )


@settings(max_examples=300, deadline=None, derandomize=True)
@given(tables(), relations())
@example({"patient": np.array([-1, -1])}, Relation(same=("patient",)))
def test_mask_index_and_loop_agree(columns, relation):
    expected = naive_mask(relation, columns)
    mask = relation.mask({role: torch.from_numpy(column) for role, column in columns.items()})
    np.testing.assert_array_equal(mask.numpy(), expected)
    assert torch.equal(mask, mask.T)

    np.fill_diagonal(expected, False)
    index = PartnerIndex(relation, columns)
    np.testing.assert_array_equal(index.counts(), expected.sum(axis=1))
    for row, partners in enumerate(expected):
        np.testing.assert_array_equal(index.partners(row), np.flatnonzero(partners))

    rng = np.random.default_rng(0)
    rows = np.arange(len(expected))
    for k in (1, 3, 30):
        drawn = index.draw_each(rows, k, rng)
        for row, found in zip(rows, drawn, strict=True):
            found = found[found >= 0]
            assert len(set(found)) == len(found) == min(k, expected[row].sum())
            assert expected[row, found].all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(tables(), relations())
def test_weights_lie_in_the_mask_and_follow_the_formula(columns, relation):
    tensors = {role: torch.from_numpy(column) for role, column in columns.items()}
    weights, mask = relation.weights(tensors).double().numpy(), relation.mask(tensors).numpy()
    assert np.isfinite(weights).all()
    expected = mask.astype(float)
    if relation.weighting == "linear":
        role, amount = relation.range
        for i, j in zip(*np.nonzero(mask), strict=True):
            expected[i, j] = 1 - abs(float(columns[role][i]) - float(columns[role][j])) / amount if amount else 1
    np.testing.assert_allclose(weights, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("rule", "diagonal"),
    [
        ("patient", True),
        ({"differ": "patient"}, False),
        ({"within": {"time": 1}}, True),
        ({"near": {"time": 0}}, True),
        ({"far": {"time": 0}}, False),
    ],
)
def test_diagonal_is_what_the_rule_says_of_a_row_with_itself(rule, diagonal):
    columns = {"patient": torch.tensor([0, 1, -1]), "time": torch.tensor([0.0, 5.0, math.nan])}
    assert Relation.parse(rule).mask(columns).diagonal().tolist() == [diagonal, diagonal, False]


def test_views_are_the_sample_itself_and_nothing_in_the_table():
    relation = Relation.parse("views")
    assert torch.equal(relation.mask({"sample": torch.tensor([7, 3])}), torch.eye(2, dtype=torch.bool))
    assert PartnerIndex(relation, {"patient": np.zeros(3, dtype=np.int64)}).counts().tolist() == [0, 0, 0]


def test_large_whole_numbers_compare_exactly():
    """In float32 both differences and the amount would be 2^24."""
    seconds = np.array([0, 2**24, 2**24 + 1])
    relation = Relation(within=("time", 2**24 + 0.5))
    assert relation.mask({"time": torch.from_numpy(seconds)}).int().tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
    assert PartnerIndex(relation, {"time": seconds}).counts().tolist() == [1, 2, 1]


def test_infinite_numbers_are_missing():
    columns = {"time": np.array([np.inf, np.inf, 0.0, 1.0])}
    relation = Relation(far=("time", 0.5))
    assert PartnerIndex(relation, columns).counts().tolist() == [0, 0, 1, 1]
    assert relation.mask({"time": torch.from_numpy(columns["time"])}).sum() == 2


def test_near_draws_from_both_sides_and_every_partner_can_come():
    index = PartnerIndex(Relation(near=("score:a", 2)), {"score:a": np.array([0.0, 1.0, 2.0, 3.0, 4.0, 9.0, 2.0])})
    seen = set()
    for seed in range(60):
        below, above = sorted(index.draw_each(np.array([2]), 2, np.random.default_rng(seed))[0].tolist())
        assert below in (0, 1)
        assert above in (3, 4, 6)
        seen |= {below, above}
    assert seen == {0, 1, 3, 4, 6}
    from_above = index.draw_each(np.array([0]), 2, np.random.default_rng(0))[0].tolist()  # nothing lies below
    assert set(from_above) <= {1, 2, 6}


@pytest.mark.parametrize("rule", [{"same": "region"}, {"same": "region", "differ": "laterality"}])
def test_draws_are_uniform(rule):
    columns = {"region": np.array([0] * 6 + [1] * 6), "laterality": np.array([0, 0, 1, 1, 1, 1] * 2)}
    index = PartnerIndex(Relation.parse(rule), columns)
    partners, rng = index.partners(1), np.random.default_rng(0)
    drawn = index.draw_each(np.full(6000, 1), 2, rng)
    expected = 2 * 6000 / len(partners)
    counts = np.bincount(drawn.ravel(), minlength=12)
    assert np.abs(counts[partners] - expected).max() < 6 * math.sqrt(expected)
    assert counts.sum() == counts[partners].sum() == 12000


def test_a_rare_partner_is_found_among_many_candidates():
    site = np.zeros(50_000, dtype=np.int64)
    site[-1] = 1
    index = PartnerIndex(Relation(same=("region",), differ=("site",)), {"region": np.zeros_like(site), "site": site})
    assert index.draw_each(np.array([0]), 3, np.random.default_rng(0)).tolist() == [[49_999, -1, -1]]
    assert index.draw_each(np.array([5, 6]), 1, np.random.default_rng(0)).tolist() == [[49_999], [49_999]]


def test_draw_is_a_function_of_the_generator():
    index = PartnerIndex(Relation(same=("patient",)), {"patient": np.arange(1000) % 10})
    first, again = (index.draw_each(np.arange(50), 3, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_an_empty_table_has_an_index():
    index = PartnerIndex(
        Relation(same=("patient",), near=("time", 1)), {"patient": np.empty(0, int), "time": np.empty(0)}
    )
    assert index.counts().tolist() == []


def test_parse_reads_every_form():
    rule = {"same": ["patient"], "differ": ["time"], "within": {"time": 365}}
    assert Relation.parse(rule) == Relation(same=("patient",), differ=("time",), within=("time", 365.0))
    assert Relation.parse("patient") == Relation.parse({"same": "patient"}) == Relation(same=("patient",))
    assert Relation.parse("views") == Relation(same=("sample",))
    assert Relation.parse({"near": ["score:a", 1], "weighting": "linear"}).near == ("score:a", 1.0)
    relation = Relation(far=("score:a", 2))
    assert Relation.parse(relation) is relation
    assert Relation(same=("region", "patient")) == Relation(same=("patient", "region"))
    assert hash(Relation.parse(rule)) == hash(Relation.parse(rule))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({}, "empty"),
        ({"sam": ["patient"]}, "did you mean 'same'"),
        ("patiens", "did you mean 'patient'"),
        ("view", "did you mean 'views'"),
        ({"within": {"time": 1}, "far": {"score:a": 1}}, "at most one range, found within and far"),
        ({"same": ["patient"], "differ": ["patient"]}, "patient cannot be both"),
        ({"same": ["time"], "within": {"time": 1}}, "within has nothing to say"),
        ({"near": {"patient": 1}}, "categories"),
        ({"within": {"label:grade": 1}}, "categories"),
        ({"near": {"score:a": -1}}, "0 or more"),
        ({"near": {"score:a": float("nan")}}, "0 or more"),
        ({"near": {"score:a": 1, "score:b": 2}}, "one amount"),
        ({"near": {"score:a": True}}, "one amount"),
        ({"same": [3]}, "a role or a list of roles"),
        ({"same": "patient", "weighting": "linear"}, "linear weighting needs within or near"),
        ({"far": {"score:a": 1}, "weighting": "linear"}, "linear weighting needs within or near"),
        ({"near": {"score:a": 1}, "weighting": "linea"}, "none or linear"),
        (["patient"], "a relation is"),
    ],
)
def test_rules_that_cannot_be_are_refused(rule, message):
    with pytest.raises(RecipeError, match=message):
        Relation.parse(rule)


def test_a_role_that_is_not_there_is_named():
    relation = Relation(same=("patient",))
    with pytest.raises(RecipeError, match="needs the role patient"):
        relation.mask({"site": torch.zeros(2, dtype=torch.int64)})
    with pytest.raises(RecipeError, match="needs the role patient"):
        PartnerIndex(relation, {"site": np.zeros(2, dtype=np.int64)})
    with pytest.raises(RecipeError, match="one value a sample"):
        relation.mask({"patient": torch.zeros(2, 3)})


def test_descriptions_are_words():
    assert Relation.parse("views").describe() == "another view of the same sample"
    near = Relation.parse({"same": "site", "near": {"score:a": 0.5}, "weighting": "linear"})
    assert near.describe() == "same site, score:a at most 0.5 apart, closer counts more"
    assert Relation.parse({"far": {"score:a": 2}}).describe() == "score:a more than 2 apart"


def test_needs_merge():
    patient, site = Relation(same=("patient",)), Relation(same=("site",))
    one = Needs(roles=frozenset({"patient"}), relations=(patient,), levels=True)
    other = Needs(views=2, roles=frozenset({"site"}), relations=(site, patient), grid=True)
    merged = one.merge(other, Needs())
    assert merged == Needs(2, frozenset({"patient", "site"}), (patient, site), levels=True, grid=True)
    assert one.merge() == one
