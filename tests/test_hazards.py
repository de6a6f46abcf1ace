"""Hazards: what is planted is found by name and nothing else is, chance is not, and no sentence names a patient."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2_contingency, kruskal

from bolus.data.batches.columns import TrainingColumns
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.evaluation.statistics.metrics import auroc
from bolus.phantom.images import make_phantom
from bolus.planning.hazards.association import associate, commonest, mean_of, separate
from bolus.planning.hazards.hazard import Hazard
from bolus.planning.hazards.hazards import find_hazards
from bolus.planning.offers.measures import usable_targets
from bolus.planning.offers.offers import Evidence


def cohort_of(columns: dict[str, Any], roles: dict[str, str] | None = None, **spec: Any) -> Cohort:
    """A cohort of these columns; each row is its own patient where none is given."""
    num = len(next(iter(columns.values())))
    made = {"image": [f"{row}.png" for row in range(num)], "patient": [f"P{row:05d}" for row in range(num)]}
    return Cohort(pd.DataFrame({**made, **columns}), CohortSpec(table="t.csv", roles=roles or {}, **spec))


def hazards(columns: dict[str, Any], roles: dict[str, str] | None = None, **spec: Any) -> list[Hazard]:
    return find_hazards(cohort_of(columns, roles, **spec).samples("image"))


def kinds(found: list[Hazard]) -> list[tuple[str, str, bool]]:
    return [(hazard.role, hazard.kind, hazard.refuses) for hazard in found]


def split_of(num: int) -> list[str]:
    return ["train"] * (num * 6 // 10) + ["val"] * (num // 10) + ["test"] * (num - num * 6 // 10 - num // 10)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("phantom"), num_patients=200, size=16)


def planted(phantom: Path, column: str, role: str, values: Callable[[pd.DataFrame, Any], Any]) -> list[Hazard]:
    """The phantom's hazards with one more column, made of its table and its split."""
    plain = Cohort.open(phantom.parent / "cohort.yaml")
    table = plain.table.copy()
    table[column] = values(table, plain.split)
    spec = plain.spec.model_copy(update={"roles": {**plain.roles, role: column}})
    return find_hazards(Cohort(table, spec, plain.folder).samples("image"))


# What is measured ------------------------------------------------------------


def naive_v(first: list[int], second: list[int]) -> tuple[float, float, float]:
    """Bergsma's corrected V, cell by cell, and how far each gives the other."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a >= 0 and b >= 0]
    n, rows, columns = len(pairs), sorted({a for a, _ in pairs}), sorted({b for _, b in pairs})
    phi = 0.0
    for i in rows:
        for j in columns:
            expected = sum(a == i for a, _ in pairs) * sum(b == j for _, b in pairs) / n
            phi += (pairs.count((i, j)) - expected) ** 2 / expected / n
    r, k = len(rows), len(columns)
    phi = max(0.0, phi - (r - 1) * (k - 1) / (n - 1))
    gives_first = (phi / (r - (r - 1) ** 2 / (n - 1) - 1)) ** 0.5
    gives_second = (phi / (k - (k - 1) ** 2 / (n - 1) - 1)) ** 0.5
    return min(1.0, max(gives_first, gives_second)), min(1.0, gives_first), min(1.0, gives_second)


@pytest.mark.parametrize("seed", range(12))
def test_cramers_v_is_that_of_a_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first = rng.integers(-1, rng.integers(2, 9), 80)
    noise = rng.integers(-1, rng.integers(2, 6), 80)
    second = np.where(rng.random(80) < 0.5, first % 3, noise)
    found = associate(first, second)
    expected = naive_v(first.tolist(), second.tolist())
    np.testing.assert_allclose((found.cramers_v, found.gives_first, found.gives_second), expected, atol=1e-12)
    assert found.num == ((first >= 0) & (second >= 0)).sum()
    swapped = associate(second, first)
    assert (swapped.gives_second, swapped.gives_first) == pytest.approx((found.gives_first, found.gives_second))
    assert swapped.p == pytest.approx(found.p)


def test_the_p_value_is_that_of_chi_square_where_the_table_is_large() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 4, 4000)
    second = np.where(rng.random(4000) < 0.06, first, rng.integers(0, 4, 4000))
    expected = chi2_contingency(pd.crosstab(first, second)).pvalue
    assert 1e-8 < expected < 0.1
    assert np.log(associate(first, second).p) == pytest.approx(np.log(expected), rel=0.02)


def test_two_values_are_held_against_every_table_of_the_same_margins() -> None:
    """3 of 200 have no value, and all 3 are among 20: seen once in a thousand draws, though V is 0.36."""
    rare, side = np.arange(200) >= 3, np.arange(200) < 20
    found = associate(rare.astype(np.int64), side.astype(np.int64))
    assert found.p == pytest.approx(2 * math.comb(20, 3) / math.comb(200, 3))
    assert found.cramers_v == pytest.approx(0.36, abs=0.01)


@pytest.mark.parametrize(
    "sizes", [[30, 1], [40, 8, 1, 1, 1, 1], [2] * 25 + [50]], ids=["one odd", "rare classes", "many classes"]
)
def test_the_p_value_holds_where_cells_are_empty(sizes: list[int]) -> None:
    rng = np.random.default_rng(1)
    first = np.repeat(np.arange(len(sizes)), sizes)
    side = (np.arange(len(first)) < 5).astype(np.int64)
    p = np.array([associate(first, rng.permutation(side)).p for _ in range(4000)])
    assert (p < 0.01).mean() < 0.03
    assert (p < 1e-4).mean() < 1e-3


@pytest.mark.parametrize("step", [0.001, 0.5, 2.0])
def test_a_number_is_separated_as_kruskal_and_wallis_do(step: float) -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(-1, 3, 300)
    values = np.where(rng.random(300) < 0.1, np.nan, np.round((rng.normal(0, 1, 300) + 0.4 * (groups == 1)) / step))
    y, x = (each[np.isfinite(values) & np.isin(groups, (0, 1))] for each in (groups, values))
    area, p = separate(values, groups)
    assert area == pytest.approx(auroc(y, x))
    assert p == pytest.approx(kruskal(x[y == 0], x[y == 1]).pvalue)


def test_nothing_is_said_of_columns_without_variety() -> None:
    none = np.full(30, -1)
    for first, second in ((none, none), (np.zeros(30, int), np.arange(30) % 2), (np.arange(30), np.arange(30) % 2)):
        found = associate(first, second)
        assert (found.cramers_v < 0.3, found.p) == (True, 1.0)
    assert associate(np.array([0, 1, 1]), np.array([0, 1, 1])).p == 1
    assert separate(np.ones(9), np.arange(9) % 2) == (0.5, 1.0)
    assert separate(np.full(9, np.nan), np.arange(9) % 2) == (0.5, 1.0)


def test_a_patient_has_one_value_as_in_a_loop() -> None:
    rng = np.random.default_rng(2)
    patients, codes = rng.permutation(np.r_[np.arange(40), rng.integers(0, 40, 200)]), rng.integers(-1, 4, 240)
    numbers = np.where(codes < 0, np.nan, codes + rng.random(240))
    found, means = commonest(patients, codes, 40), mean_of(patients, numbers, 40)
    for patient in range(40):
        own = [code for code in codes[patients == patient].tolist() if code >= 0]
        assert found[patient] == (min(own, key=lambda code: (-own.count(code), code)) if own else -1)
        values = [value for value in numbers[patients == patient] if value == value]
        np.testing.assert_allclose(means[patient], sum(values) / len(values) if values else np.nan)


# Leaks ------------------------------------------------------------


def test_a_phantom_has_no_hazard_but_its_site(phantom: Path) -> None:
    found = find_hazards(Cohort.open(phantom.parent / "cohort.yaml").samples("image"))
    assert kinds(found) == [("site", "shortcut", True)]
    assert "--audit --by site" in found[0].sentence
    assert "leave_out_site" in found[0].sentence


@pytest.mark.parametrize("role", ["label:batch", "attribute:batch", "phase", "region"])
def test_a_planted_leak_is_found_by_name_and_nothing_else_is(phantom: Path, role: str) -> None:
    def batch(table: pd.DataFrame, split: Any) -> Any:
        rng = np.random.default_rng(0)
        other = rng.integers(0, 6, len(table)).astype(str)
        number = pd.factorize(table["patient"])[0]
        batch = np.where(split == "test", "B", "A").astype(object) + (number % 3).astype(str).astype(object)
        return np.where(number % 20, batch, other)

    found = [hazard for hazard in planted(phantom, "batch", role, batch) if hazard.role != "site"]
    assert kinds(found) == [(role, "leak", True)]
    assert found[0].sentence.startswith(f"{role} tells ")
    assert "training from test patients (Cramer's V 0.9" in found[0].sentence


@pytest.mark.parametrize("role", ["score:dose", "attribute:dose"])
def test_a_number_that_leaks_is_found(phantom: Path, role: str) -> None:
    def dose(table: pd.DataFrame, split: Any) -> Any:
        rng = np.random.default_rng(0)
        return np.round((split == "test") * 1.5 + rng.normal(0, 1, len(table)), 2)

    found = [hazard for hazard in planted(phantom, "dose", role, dose) if hazard.role != "site"]
    assert kinds(found) == [(role, "leak", True)]
    assert "AUROC 0.9" in found[0].sentence


def test_being_known_at_all_can_leak(phantom: Path) -> None:
    def grade(table: pd.DataFrame, split: Any) -> Any:
        rng = np.random.default_rng(0)
        values = pd.Series(rng.choice(["low", "high"], len(table)), dtype=object)
        return values.mask((split == "test") & (pd.factorize(table["patient"])[0] % 4 > 0))

    found = [hazard for hazard in planted(phantom, "grade", "label:grade", grade) if hazard.role != "site"]
    assert kinds(found) == [("label:grade", "leak", False)]  # labels of the test may be withheld on purpose
    assert found[0].sentence.startswith("label:grade is known for 100% of the training and 2")


def test_one_class_among_several_on_a_row_can_leak() -> None:
    rng = np.random.default_rng(0)
    split = np.array(split_of(300))
    seen = np.where(rng.random(300) < 0.1, split == "train", split == "test")
    findings = [f"{one}|new" if new else one for one, new in zip(rng.choice(["A", "B", "C"], 300), seen, strict=True)]
    found = hazards({"split": split, "findings": findings}, {"label:findings": "findings"})
    assert kinds(found) == [("label:findings", "leak", True)]
    assert "label:findings=new tells training from test" in found[0].sentence


def test_modality_is_never_refused() -> None:
    split = split_of(200)
    found = hazards({"split": split, "modality": ["CT" if side == "train" else "MR" for side in split]})
    assert kinds(found) == [("modality", "leak", False)]
    assert hazards({"split": split, "modality": ["CT"] * 200}) == []


def test_samples_of_one_patient_count_once() -> None:
    """Ten patients of thirty rows each would be a leak if rows were counted."""
    patients = np.repeat(np.arange(24), 30)
    split = np.where(patients < 14, "train", "test")
    value = np.where(patients % 3 == 0, "a", np.where(patients < 14, "b", "c"))
    value = np.where((patients < 5) | (patients > 20), "a", value)
    by_rows = associate(pd.factorize(value)[0], (split == "test").astype(np.int64))
    assert by_rows.cramers_v > 0.3
    assert by_rows.p < 1e-20
    found = hazards({"patient": patients.astype(str), "split": split, "v": value}, {"label:v": "v"})
    assert found == []


def test_where_a_site_is_left_out_the_test_may_be_another_place() -> None:
    rng = np.random.default_rng(0)
    site = np.repeat(["north", "south", "west"], 100)
    tone = np.where(site == "north", "warm", np.where(site == "west", "dull", "cold"))
    tone = np.where(rng.random(300) < 0.05, "cold", tone)
    columns = {"site": site, "tone": tone}
    roles = {"label:tone": "tone"}
    found = hazards(columns, roles, split={"leave_out_site": "north", "val": 0.2})
    assert [each.kind for each in found if each.role == "label:tone"] == ["shortcut"]
    fixed = hazards({**columns, "split": np.where(site == "north", "test", "train")}, roles)
    assert "leak" in [each.kind for each in fixed if each.role == "label:tone"]


@pytest.mark.slow
def test_two_hundred_random_tables_have_no_leak_and_no_shortcut() -> None:
    """Categories of every width and skew, numbers with long tails, gaps, clusters of rows, hashed splits."""
    for seed in range(200):
        rng = np.random.default_rng([7, seed])
        num_patients = int(rng.integers(20, 300))
        patients = np.repeat(np.arange(num_patients), rng.integers(1, 6, num_patients))
        weights = 1 / np.arange(1, rng.integers(3, 40)) ** rng.uniform(0, 2)
        skewed = rng.choice(len(weights), num_patients, p=weights / weights.sum())
        by_patient = {
            "skewed": skewed.astype(str),
            "label": rng.choice(["0", "1"], num_patients, p=[0.8, 0.2]),
            "age": np.round(rng.uniform(20, 90, num_patients)),
            "tail": rng.lognormal(0, 2, num_patients),
            "grade": rng.integers(0, 5, num_patients),
        }
        columns = {name: pd.Series(values[patients], dtype=object) for name, values in by_patient.items()}
        columns["coin"] = pd.Series(rng.choice(["a", "b", "c"], len(patients)), dtype=object)
        columns = {
            name: values.mask(rng.random(len(patients)) < rng.uniform(0, 0.5)) for name, values in columns.items()
        }
        roles = {
            "attribute:skewed": "skewed",
            "label:label": "label",
            "attribute:age": "age",
            "score:tail": "tail",
            "score:grade": "grade",
            "label:coin": "coin",
        }
        cohort = cohort_of({"patient": [f"{seed}-{p}" for p in patients], **columns}, roles)
        found = find_hazards(cohort.samples("image"))
        assert [h.sentence for h in found if h.kind in {"leak", "shortcut", "copy"}] == [], seed


# Shortcuts ------------------------------------------------------------


def test_a_planted_shortcut_is_found_by_name_and_nothing_else_is(phantom: Path) -> None:
    def note(table: pd.DataFrame, split: Any) -> Any:
        sick = table.groupby("patient")["disease"].transform(lambda x: pd.to_numeric(x).mean() > 0.5)
        flipped = pd.factorize(table["patient"])[0] % 50 == 0
        return np.where(sick.to_numpy(bool) ^ flipped, "L", "plain")

    found = [hazard for hazard in planted(phantom, "note", "attribute:note", note) if hazard.role != "site"]
    assert kinds(found) == [("attribute:note", "shortcut", True)]
    assert found[0].sentence.startswith("attribute:note all but gives label:disease (Cramer's V 0.9")


def test_a_shortcut_within_patients_is_found() -> None:
    """Both eyes of a patient, one sick, a mark on the sick one: no patient's commonest value says anything."""
    rng = np.random.default_rng(0)
    sick = (np.arange(400) % 2).astype(bool)
    sick[:80] = np.repeat(rng.random(40) < 0.5, 2)  # some have both or none
    mark = np.where(sick ^ (rng.random(400) < 0.02), "L", "R")
    columns = {"patient": np.arange(400) // 2, "mark": mark, "sick": sick}
    columns["number"] = sick + 0.8 * rng.random(400)
    roles = {"attribute:mark": "mark", "attribute:number": "number", "label:sick": "sick"}
    found = hazards(columns, roles)
    assert kinds(found) == [("attribute:mark", "shortcut", True), ("attribute:number", "shortcut", True)]
    assert "label:sick (Cramer's V 0.9" in found[0].sentence
    assert "label:sick (AUROC 0.9" in found[1].sentence


@pytest.mark.parametrize("noise", [0.02, 0.25])
def test_a_number_that_gives_a_label_away(noise: float) -> None:
    rng = np.random.default_rng(0)
    sick = rng.random(300) < 0.4
    dose = np.where(rng.random(300) < noise, rng.random(300), sick + rng.random(300))
    found = hazards({"dose": dose, "sick": sick}, {"attribute:dose": "dose", "label:sick": "sick"})
    assert kinds(found) == ([("attribute:dose", "shortcut", True)] if noise < 0.1 else [])


def test_one_class_of_many_and_an_ordinal_score_can_be_given_away() -> None:
    rng = np.random.default_rng(0)
    finding, stage = rng.choice(["A", "B", "C", "D"], 400), rng.integers(0, 4, 400)
    columns = {"f": finding, "stage": stage, "tag": finding == "C", "path": np.array(list("wxyz"))[stage]}
    columns["half"] = np.array(list("lh"))[stage // 2]  # tells low from high stages: not the stage
    roles = {"label:f": "f", "score:stage": "stage", **{f"attribute:{n}": n for n in ("tag", "path", "half")}}
    found = hazards(columns, roles)
    assert kinds(found) == [("attribute:tag", "shortcut", True), ("attribute:path", "shortcut", True)]
    assert "label:f=C (Cramer's V 1.00)" in found[0].sentence
    assert "score:stage" in found[1].sentence


@pytest.mark.parametrize(
    "role",
    [
        "view_position",
        "attribute:scanner",
        "attribute:ManufacturerModelName",
        "attribute:manufacturermodelname",
        "attribute:kVp",
        "attribute:station_name",
        "attribute:portable",
        "attribute:PROTOCOL_NAME",
    ],
)
def test_how_an_image_was_made_is_refused_by_name(role: str) -> None:
    values = np.random.default_rng(0).choice(["70", "80"], 100)
    found = hazards({"x": values}, {role: "x"})
    assert kinds(found) == [(role, "shortcut", True)]
    assert f"--by {role.removeprefix('attribute:')})" in found[0].sentence


@pytest.mark.parametrize("role", ["attribute:sex", "attribute:gestation", "attribute:tumour_marker", "label:model"])
def test_what_is_of_the_patient_is_not_refused_by_name(role: str) -> None:
    assert hazards({"x": np.random.default_rng(0).choice(["70", "80"], 100)}, {role: "x"}) == []


def test_a_label_that_follows_the_site_is_told_with_its_shares() -> None:
    """85 of 100 patients of north are positive, 12 of 100 of south; 5 of elsewhere are too few to be quoted."""
    site = ["north"] * 100 + ["south"] * 100 + ["attic"] * 5
    covid = ["1"] * 85 + ["0"] * 15 + ["1"] * 12 + ["0"] * 88 + ["1"] * 5
    twice = {"site": site * 2, "covid": covid * 2, "patient": [f"P{row}" for row in range(205)] * 2}
    found = hazards(twice, {"label:covid": "covid"})
    assert kinds(found) == [("site", "shortcut", True), ("label:covid", "shortcut", False)]
    sentence = next(each.sentence for each in found if each.role == "label:covid")
    expected = "label:covid follows site: 85% of the patients of north, 12% of those of south (Cramer's V 0.7"
    assert sentence.startswith(expected)
    assert "judge within groups (bolus evaluate classify --audit --by site)" in sentence


def test_a_label_that_follows_a_number_or_in_one_class_only() -> None:
    rng = np.random.default_rng(0)
    kvp = rng.normal(80, 5, 400)
    finding = np.where(kvp + rng.normal(0, 8, 400) > 80, "Edema", rng.choice(["Mass", "Clear"], 400))
    found = hazards({"kvp": kvp, "finding": finding}, {"attribute:kvp": "kvp", "label:finding": "finding"})
    assert kinds(found) == [("attribute:kvp", "shortcut", True), ("label:finding", "shortcut", False)]
    assert found[1].sentence.startswith("label:finding=Edema follows attribute:kvp (AUROC 0.80); so do 2 more")


# What cannot be learnt ------------------------------------------------------------


def test_identifiers_and_free_text_are_named_without_a_value() -> None:
    patients = np.repeat(np.arange(60), 3)
    columns = {
        "patient": [f"P{p}" for p in patients],
        "mrn": [f"secret{p}" for p in patients],
        "record_id": 51000 + 7 * patients,
        "text": [f"secret {row}" for row in range(180)],
        "weight": 51000 + 7 * patients,
        "ward": np.where(patients % 2, "a", "b"),
        "sex": np.where(patients % 3, "F", "M"),
    }
    roles = {"label:mrn": "mrn", **{f"attribute:{name}": name for name in ("record_id", "text", "weight", "sex")}}
    roles["region"] = "ward"
    found = hazards(columns, roles)
    assert [each for each in kinds(found) if each[1] != "copy"] == [
        ("label:mrn", "identifier", True),
        ("attribute:record_id", "identifier", True),
        ("attribute:text", "unique", True),
    ]
    assert not any("secret" in each.sentence or "51" in each.sentence for each in found)


def test_shared_categories_and_few_rows_are_no_identifiers() -> None:
    patients = np.repeat(np.arange(60), 3)
    columns = {"patient": [f"P{p}" for p in patients], "town": [f"T{p // 3}" for p in patients]}
    assert hazards(columns, {"label:town": "town"}) == []
    few = {"patient": list("abc"), "split": ["train"] * 3, "text": list("xyz")}
    assert hazards(few, {"label:text": "text"}) == []


def test_many_combinations_of_few_classes_are_no_free_text() -> None:
    rng = np.random.default_rng(0)
    rows = ["|".join(np.array(list("ABCDEFGHIJ"))[rng.random(10) < 0.5]) or "none" for _ in range(60)]
    assert len(set(rows)) > 40
    assert hazards({"findings": rows}, {"label:findings": "findings"}) == []


def test_one_value_or_none_among_the_training_samples() -> None:
    split = ["train"] * 6 + ["test"] * 4
    columns = {
        "split": split,
        "grade": [None] * 6 + ["a", "b", "a", "b"],
        "sex": ["F"] * 5 + [None] + ["M"] * 4,
        "severity": [2.0] * 6 + [1.0, 3.0, 4.0, 5.0],
        "visit": [1] * 10,
        "region": ["chest"] * 10,
        "findings": ["A"] * 6 + ["A|B"] * 4,
    }
    found = hazards(columns, {"label:grade": "grade", "score:severity": "severity", "label:findings": "findings"})
    assert {each[:2] for each in kinds(found)} == {
        ("label:grade", "missing"),
        ("attribute:sex", "constant"),
        ("score:severity", "constant"),
        ("visit", "constant"),
        ("region", "constant"),
        ("label:findings", "constant"),
    }
    assert all(each.refuses for each in found)
    sex = next(each for each in found if each.role == "attribute:sex")
    assert "all 5 training samples" in sex.sentence


def test_a_number_with_a_few_training_values_is_no_identifier() -> None:
    assert hazards({"mmse": np.arange(16) + 10.0}, {"score:mmse": "mmse"}) == []


# Copies ------------------------------------------------------------


def test_one_column_under_two_roles() -> None:
    columns = {"age": np.random.default_rng(0).integers(20, 90, 12)}
    found = hazards(columns, {"attribute:age": "age", "score:age": "age"})
    assert kinds(found) == [("attribute:age", "copy", False)]
    assert found[0].sentence.startswith("attribute:age and score:age are one column of the table under two roles")
    assert found[0].sentence.endswith("score:age is kept")


def test_copies_by_value_and_which_is_kept() -> None:
    rng = np.random.default_rng(0)
    age, sick = rng.uniform(20, 90, 300), rng.choice(["yes", "no"], 300)
    columns = {
        "age": age,
        "born": np.where(rng.random(300) < 0.2, np.nan, 2020 - np.round(age)),
        "sick": sick,
        "healthy": np.where(sick == "yes", "0", "1"),
        "coarse": np.where(age < 50, "young", "old"),  # gives less than age does: no copy
        "alike": np.where(rng.random(300) < 0.1, "no", sick),
    }
    roles = {"score:age": "age", "score:born": "born", "attribute:coarse": "coarse"}
    found = hazards(columns, {**roles, **{f"label:{name}": name for name in ("sick", "healthy", "alike")}})
    assert kinds(found) == [("score:born", "copy", False), ("label:healthy", "copy", False)]
    assert found[0].sentence.startswith("score:born holds the same as score:age (Spearman -1.00)")
    assert "label:sick is kept" in found[1].sentence


def test_of_a_label_and_its_copy_the_label_is_kept_and_the_copy_is_not_learnt() -> None:
    rng = np.random.default_rng(0)
    grade = rng.integers(0, 4, 300)
    columns = {
        "grade": np.where(rng.random(300) < 0.1, "", grade.astype(str)),
        "stage": grade,
        "age": rng.uniform(20, 90, 300),
    }
    columns["born"] = 2020 - np.round(columns["age"])
    roles = {"label:grade": "grade", "score:stage": "stage", "score:age": "age", "score:born": "born"}
    found = hazards(columns, roles)
    assert kinds(found) == [("score:stage", "copy", False), ("score:born", "copy", False)]
    assert found[0].sentence.endswith("label:grade is kept"), "though more samples know the score"
    samples = cohort_of(columns, roles).samples("image")
    targets, left_out = usable_targets(Evidence.of(TrainingColumns(samples), found))
    assert (targets, sorted(left_out)) == (["score:age"], sorted(each.sentence for each in found))


# Small, large, clips ------------------------------------------------------------


def test_tiny_cohorts_are_looked_at_without_statistics() -> None:
    columns = {"split": ["train", "test"], "site": ["a", "b"], "sick": ["0", "1"]}
    expected = [("site", "constant", True), ("label:sick", "constant", True)]
    assert kinds(hazards(columns, {"label:sick": "sick"})) == expected
    assert hazards({**columns, "split": ["test", "test"]}) == []
    nineteen = {"split": ["train"] * 10 + ["test"] * 9, "x": list("aaaaabbbbbccccccccc"), "site": list("uv" * 9 + "u")}
    assert kinds(hazards(nineteen, {"label:x": "x"})) == [("site", "shortcut", True)]


def test_clips_are_one_sample_each() -> None:
    rows = {
        "patient": np.repeat([f"P{p}" for p in range(30)], 4),
        "series": np.repeat([f"S{p}" for p in range(30)], 4),
        "frame": np.tile([0, 1, 2, 3], 30),
        "sick": np.repeat(np.tile(["0", "1"], 15), 4),
    }
    cohort = cohort_of(rows, {"label:sick": "sick", "order": "frame"})
    assert find_hazards(cohort.samples("clip")) == []


# Real data ------------------------------------------------------------

NIH = {"visit": "followup", "label:findings": "findings", "label:abnormal": "abnormal", "score:age": "age"}
ODIR = {"patient": "group", "label:eye_label": "eye_label", "score:age": "age"}


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "roles", "label", "refused"),
    [("nih1000", NIH, "abnormal", {"view_position"}), ("odir", ODIR, "eye_label", set())],
)
def test_real_cohorts_are_clean_until_something_is_planted(
    shared_data: Path, name: str, roles: dict[str, str], label: str, refused: set[str]
) -> None:
    clean = Cohort.open(shared_data / name / "meta.csv", roles=roles)
    found = find_hazards(clean.samples("image"))
    assert not [each.sentence for each in found if each.kind == "leak"]
    assert {each.role for each in found if each.refuses} == refused
    rng, table = np.random.default_rng(0), clean.table.copy()
    noise = rng.random(len(table)) < 0.02
    marked = table[label].isin(["1", "N"]).to_numpy() ^ noise
    table["batch"] = np.where(clean.split == "test", "B", "A")
    table["marker"] = np.where(marked, "L", "R")
    more = {**clean.roles, "label:batch": "batch", "attribute:marker": "marker"}
    planted = find_hazards(Cohort(table, clean.spec.model_copy(update={"roles": more}), clean.folder).samples("image"))
    refusing = {each.role: each for each in planted if each.refuses and each.role not in refused}
    assert (len(refusing), refusing["label:batch"].kind, refusing["attribute:marker"].kind) == (2, "leak", "shortcut")
    assert "attribute:marker all but gives label:" in refusing["attribute:marker"].sentence
    assert f"label:{label}" in refusing["attribute:marker"].sentence
