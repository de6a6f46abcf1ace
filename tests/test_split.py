"""Splits are disjoint in patients, do not move as a table grows, and never name a patient."""

from __future__ import annotations

import re
from hashlib import blake2b

import numpy as np
import pandas as pd
import pytest

from bolus.cli.options import TableOptions
from bolus.data.checks.sides import FEWEST, _least, _left_out_site, count_sides, look_at_sides
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec, SplitSpec
from bolus.data.cohort.split import (
    fold_patients,
    hash_patients,
    identifier_text,
    leave_site_out,
    overlap,
    patient_keys,
    refuse_overlap,
    split_digest,
    split_patients,
)
from bolus.errors import CohortError, LeakageError, UsageError

SHARES = {"seed": 0, "val": 0.1, "test": 0.2}


def make_patients(num_rows=4000, num_patients=1000):
    return np.random.default_rng(0).integers(0, num_patients, num_rows).astype(str)


def sides_by_patient(sides, patients):
    return pd.Series(sides).groupby(np.asarray(patients)).agg(set)


def test_patients_are_on_one_side_in_about_the_shares_asked_for():
    patients = make_patients()
    sides = split_patients(patients, **SHARES)
    assert sides.dtype.kind == "U"
    by_patient = sides_by_patient(sides, patients)
    assert by_patient.map(len).eq(1).all()
    shares = by_patient.map(lambda found: next(iter(found))).value_counts(normalize=True)
    for side, share in {"train": 0.7, "val": 0.1, "test": 0.2}.items():
        assert abs(shares[side] - share) < 0.05


def test_rows_and_patients_that_come_later_move_no_one():
    patients = make_patients()
    before = split_patients(patients, **SHARES)
    grown = np.concatenate([["newcomer", patients[5]], patients[::-1]])
    after = split_patients(grown, **SHARES)
    np.testing.assert_array_equal(after[2:][::-1], before)
    assert after[1] == before[5]


def test_a_known_assignment_does_not_change():
    """Another hash would move patients of runs that exist; here it is written out once more."""
    names = [f"p{i}" for i in range(12)]
    digests = [blake2b(f"0/{name}".encode(), digest_size=8, person=b"bolus.split").digest() for name in names]
    shares = [int.from_bytes(digest, "big") / 2**64 for digest in digests]
    expected = ["test" if share < 0.2 else "val" if share < 0.3 else "train" for share in shares]
    assert split_patients(np.array(names), **SHARES).tolist() == expected
    assert [name for name, side in zip(names, expected, strict=True) if side == "test"] == ["p1", "p5"]


def test_the_seed_matters_and_a_larger_test_keeps_its_patients():
    patients = make_patients()
    sides = split_patients(patients, **SHARES)
    assert (split_patients(patients, seed=1, val=0.1, test=0.2) != sides).any()
    larger = split_patients(patients, seed=0, val=0.1, test=0.4)
    assert (larger[sides == "test"] == "test").all()
    assert set(split_patients(patients, seed=0, val=0, test=0)) == {"train"}


@pytest.mark.parametrize(
    "form",
    [
        pd.Series,
        lambda p: pd.Series(p, dtype="string"),
        lambda p: pd.Series(p).astype("category"),
        lambda p: pd.Series(p, index=range(7, 7 + len(p))),
        lambda p: p.astype(object),
        lambda p: p.astype(int),
        lambda p: p.astype(float),
        lambda p: np.array([f" {text}" for text in p]),
    ],
)
def test_how_identifiers_are_stored_does_not_matter(form):
    patients = make_patients(300, 100)
    np.testing.assert_array_equal(split_patients(form(patients), **SHARES), split_patients(patients, **SHARES))
    assert patient_keys(form(patients), "salt") == patient_keys(patients, "salt")


@pytest.mark.parametrize("form", [["7", "8"], [7, 8], [7.0, 8.0], [7.0, 8.5], pd.Categorical([7.0, 8.0]), [" 7", 8]])
def test_a_cohort_hands_over_identifiers_as_the_split_reads_them(form):
    table = pd.DataFrame({"image": ["a.png", "b.png"], "patient": form})
    found = Cohort(table, CohortSpec(table="t.csv", namespace="here")).patients
    assert found.tolist() == [f"here/{identifier_text(label)}" for label in form]
    assert found[0] == "here/7"


def test_leading_zeros_are_part_of_an_identifier():
    assert len(patient_keys(np.array(["007", "7"]), "salt")) == 2
    assert len(patient_keys(np.array(["7", 7, 7.0], dtype=object), "salt")) == 1


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, "", "  "])
def test_rows_without_a_patient_are_named(missing):
    patients = pd.Series(["a", missing, "b", missing], dtype=object)
    for call in (
        lambda: split_patients(patients, **SHARES),
        lambda: split_patients(patients, **SHARES, fixed=pd.Series(["train"] * 4)),
        lambda: fold_patients(patients, seed=0, folds=2),
    ):
        with pytest.raises(CohortError, match="rows 2, 4: expected a patient"):
            call()


def test_a_fixed_column_is_taken_as_it_is():
    fixed = pd.Series(["Train", "VALIDATION", "dev", "valid", " test", "val"])
    sides = split_patients(np.array(list("abcdef")), **SHARES, fixed=fixed)
    assert sides.tolist() == ["train", "val", "val", "val", "test", "val"]
    fixed = pd.Series(["training", "Validate", "testing", "Holdout"])
    assert split_patients(np.array(list("abcd")), **SHARES, fixed=fixed).tolist() == ["train", "val", "test", "test"]
    assert sides.dtype.kind == "U"


def test_an_unknown_side_is_named_with_its_rows():
    fixed = pd.Series(["train", "elsewhere", None, "test"])
    with pytest.raises(CohortError, match=r"rows 2, 3: expected train, val .* found elsewhere, a missing value"):
        split_patients(np.array(list("abcd")), **SHARES, fixed=fixed)


def test_a_patient_on_two_sides_is_leakage_and_stays_unnamed():
    patients = np.array(["secret-a", "secret-b", "secret-a", "secret-c", "secret-b"])
    fixed = pd.Series(["train", "train", "test", "test", "train"])
    with pytest.raises(LeakageError, match="rows 1, 3: one patient, in test and train") as caught:
        split_patients(patients, **SHARES, fixed=fixed)
    assert len(caught.value.violations) == 1
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.2), (0.5, 0.5), (0.9, 0.2), (float("nan"), 0.1)])
def test_shares_that_leave_nothing_are_refused(val, test):
    with pytest.raises(UsageError, match="shares"):
        split_patients(np.array(["a"]), seed=0, val=val, test=test)


def test_folds_are_even_disjoint_and_independent_of_the_split():
    patients = make_patients()
    folds = fold_patients(patients, seed=0, folds=5)
    assert folds.dtype == np.int64
    assert sides_by_patient(folds, patients).map(len).eq(1).all()
    train = split_patients(patients, **SHARES) == "train"
    sizes = pd.Series(folds[train]).groupby(patients[train]).first().value_counts()
    assert sorted(sizes.index) == [0, 1, 2, 3, 4]
    assert sizes.min() > 0.7 * sizes.mean()
    with pytest.raises(UsageError, match="at least 2 folds"):
        fold_patients(patients, seed=0, folds=1)


def test_keys_tell_who_was_trained_on_and_nothing_else():
    keys = patient_keys(pd.Series(["a", "b", None]), "salt")
    assert len(keys) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", key) for key in keys)
    assert keys.isdisjoint(patient_keys(np.array(["a", "b"]), "pepper"))
    found = overlap(keys, pd.Series(["b", None, "c", "a"]), "salt")
    assert found.tolist() == [True, False, False, True]
    assert patient_keys(np.array(["a"]), "s" * 200) != patient_keys(np.array(["a"]), "s" * 201)


def test_overlap_is_refused_with_counts_and_rows():
    trained = hash_patients(np.array(["secret-a", "secret-b"]))
    patients = np.array(["secret-c", "secret-a", "secret-a", "secret-b", "secret-d"])
    refuse_overlap(trained, patients, np.array([0, 4]), "the test rows")
    with pytest.raises(LeakageError, match=r"the test rows: .* found 1 of 3 patients \(rows 2, 3\)") as caught:
        refuse_overlap(trained, patients, np.array([0, 1, 2, 4]), "the test rows")
    assert "secret" not in str(caught.value)
    with pytest.raises(LeakageError, match=r"found 1 of 1 patients \(row 4\)"):
        refuse_overlap(trained, patients, np.array([False, False, False, True, False]), "the test rows")


def test_overlap_that_cannot_be_known_is_refused():
    patients = pd.Series(["a", None])
    with pytest.raises(CohortError, match="row 2 "):
        refuse_overlap(hash_patients(np.array(["z"])), patients, [0, 1], "the test rows")
    refuse_overlap({"salt": "", "keys": []}, patients, [0, 1], "the test rows")  # an encoder from elsewhere
    refuse_overlap(hash_patients(np.array(["z"])), patients, [0], "the test rows")


def test_digest_knows_sides_but_not_order():
    patients = make_patients()
    sides = split_patients(patients, **SHARES)
    digest = split_digest(sides, patients)
    assert re.fullmatch("[0-9a-f]{12}", digest)
    order = np.random.default_rng(1).permutation(len(patients))
    assert split_digest(sides[order], pd.Series(patients[order])) == digest
    moved = np.where(patients == patients[0], "val" if sides[0] != "val" else "test", sides)
    assert split_digest(moved, patients) != digest
    assert split_digest(sides, np.array(["x" + text for text in patients])) != digest


SITES = ["north", "south", "east"]


def make_sites(patients, seed=1):
    """A site for each row, mostly that of the patient; some patients have rows at several, some rows none."""
    rng = np.random.default_rng(seed)
    home = rng.integers(0, 3, int(np.max(patients.astype(int))) + 1)
    sites = np.array(SITES, dtype=object)[home[patients.astype(int)]]
    moved = rng.random(len(patients)) < 0.1
    sites[moved] = rng.choice(np.array(SITES, dtype=object), moved.sum())
    sites[rng.random(len(patients)) < 0.1] = None
    return sites


def test_a_site_left_out_is_the_test_with_its_patients_whole():
    patients = make_patients()
    sites = make_sites(patients)
    sides = leave_site_out(patients, sites, site="north", seed=0, val=0.2)
    of_site = {patient for patient, site in zip(patients, sites, strict=True) if site == "north"}
    for patient, side in zip(patients, sides, strict=True):
        assert (side == "test") == (patient in of_site)
    assert sides_by_patient(sides, patients).map(len).eq(1).all()
    others = sides_by_patient(sides, patients).map(lambda found: next(iter(found)))
    others = others[others != "test"]
    assert abs((others == "val").mean() - 0.2) < 0.05
    plain = split_patients(patients, seed=0, val=0.2, test=0)
    np.testing.assert_array_equal(sides[sides != "test"], plain[sides != "test"])  # the others stay where they were


def test_sites_left_out_in_turn_test_every_patient_with_a_site():
    patients = make_patients()
    sites = make_sites(patients)
    tested = np.zeros(len(patients), bool)
    for name in SITES:
        tested |= leave_site_out(patients, sites, site=name, val=0) == "test"
    located = set(patients[pd.notna(sites)])
    np.testing.assert_array_equal(tested, np.isin(patients, list(located)))


def test_sites_that_are_numbers_are_compared_as_text():
    patients, sites = np.array(["a", "b", "c"]), np.array([3.0, 4.0, np.nan])
    assert leave_site_out(patients, sites, site="3", val=0).tolist() == ["test", "train", "train"]


def test_a_site_that_cannot_be_left_out_is_an_error():
    patients, sites = np.array(["a", "a", "b"]), np.array(["north", "south", "south"])
    with pytest.raises(CohortError, match="no site 'nort'; did you mean 'north'"):
        leave_site_out(patients, sites, site="nort")
    with pytest.raises(CohortError, match="every patient has rows at 'south'"):
        leave_site_out(patients, sites, site="south")
    with pytest.raises(CohortError, match=r"all patients left \(1\) fall into validation"):
        leave_site_out(patients, sites, site="north", val=0.999999)


def site_table(tmp_path):
    frame = pd.DataFrame(
        {
            "image": [f"{row}.png" for row in range(8)],
            "patient": list("aabbccdd"),
            "site": ["north", "south", "south", "south", "south", "east", "", ""],
        }
    )
    frame.to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.csv"


def test_a_cohort_leaves_a_site_out_and_says_so(tmp_path):
    table = site_table(tmp_path)
    cohort = TableOptions(split=["leave_out_site=north", "val=0", "test=0.999"]).open(table)  # nobody's share
    assert cohort.split.tolist() == ["test"] * 2 + ["train"] * 6
    assert cohort.split_hash == split_digest(cohort.split, cohort.patients)
    assert cohort.split_hash != Cohort.open(table, split={"leave_out_site": "east", "val": 0}).split_hash
    assert cohort.split_hash != Cohort.open(table, split={"val": 0, "test": 0}).split_hash
    cohort.save(tmp_path / "again.yaml")
    assert Cohort.open(tmp_path / "again.yaml").split_hash == cohort.split_hash
    found = {finding.kind: finding for finding in _left_out_site(cohort)}
    assert found["site_left_out"].severity == "note"
    assert "1 patients are the test; 1 of them have 1 rows at other sites" in found["site_left_out"].message
    assert found["site_left_out"].rows == (2,)
    assert found["site_unknown"].severity == "warning"
    assert found["site_unknown"].rows == (7, 8)
    assert not _left_out_site(Cohort.open(table))


def test_a_site_in_yaml_may_be_a_number(tmp_path):
    assert SplitSpec(leave_out_site=3).leave_out_site == SplitSpec(leave_out_site=3.0).leave_out_site == "3"
    with pytest.raises(ValueError, match="valid string"):
        SplitSpec(leave_out_site=True)


def test_opening_a_cohort_refuses_a_site_that_cannot_be_left_out(tmp_path):
    table = site_table(tmp_path)
    with pytest.raises(CohortError, match="no site 'nroth'; did you mean 'north'"):
        Cohort.open(table, split={"leave_out_site": "nroth"})
    with pytest.raises(CohortError, match="no column has the role site"):
        Cohort.open(table, roles={"attribute:where": "site"}, split={"leave_out_site": "north"})
    frame = pd.read_csv(table).assign(split="train")
    frame.to_csv(table, index=False)
    with pytest.raises(CohortError, match="fixed split of column 'split' exclude each other"):
        Cohort.open(table, split={"leave_out_site": "north"})
    assert Cohort.open(table, roles={"attribute:split": "split"}, split={"leave_out_site": "north"}).split[0] == "test"


def of_patients(number, **split):
    names = [f"P{patient:03d}" for patient in range(number)]
    return Cohort(pd.DataFrame({"image": names, "patient": names}), CohortSpec(table="t.csv", split=split))


def small_sides(cohort):
    return [found for found in look_at_sides(cohort, count_sides(cohort)) if found.kind in ("small_side", "empty_side")]


def test_a_side_is_small_with_fewer_than_half_of_what_was_asked_for_and_with_one():
    assert [_least(share, 100) for share in (0, 0.001, 0.1, 0.2)] == [0, FEWEST, 5, 10]
    for seed in range(300):
        cohort = of_patients(60, seed=seed)
        counts = {side: int((cohort.split == side).sum()) for side in ("train", "val", "test")}
        small = [side for side, least in (("train", 21), ("val", 3), ("test", 6)) if counts[side] < least]
        found = small_sides(cohort)
        assert bool(found) == bool(small), counts
        assert all(f"{side} ({counts[side] or 'none'}, " in found[0].message for side in small)


def apart(sides):
    """How far the sides are from the shares, or infinitely where one is small."""
    number, shares = len(sides), {"train": 0.7, "val": 0.1, "test": 0.2}
    counts = {side: int((sides == side).sum()) for side in shares}
    small = any(counts[side] < _least(share, number) for side, share in shares.items())
    return np.inf if small else sum(abs(counts[side] - share * number) for side, share in shares.items())


@pytest.mark.parametrize("number", [8, 12, 20, 30])
def test_the_seed_to_add_mends_a_small_split_and_comes_closest(number):
    seed = next(each for each in range(100) if small_sides(of_patients(number, seed=each)))
    (found,) = small_sides(of_patients(number, seed=seed))
    assert found.severity == "warning"
    words = found.message[found.message.index("--split") :].split(":")
    mended = of_patients(number, seed=int(words[0].removeprefix("--split seed=")))
    assert small_sides(mended) == []
    assert words[1].strip() == ", ".join(
        f"{(mended.split == side).sum()} in {side}" for side in ("train", "val", "test")
    )
    every = [apart(of_patients(number, seed=each).split) for each in range(100)]
    assert apart(mended.split) == pytest.approx(min(every))


def test_where_no_seed_mends_it_a_column_does():
    (found,) = small_sides(of_patients(5))
    assert found.message.endswith("train, val or test for each patient into a column, and add --role split=COLUMN")
    assert "--split" not in found.message
    seed = next(each for each in range(99) if of_patients(1, seed=each).split[0] != "train")
    (found,) = small_sides(of_patients(1, seed=seed))
    assert (found.kind, found.severity) == ("empty_side", "error")


def test_a_side_nobody_asked_for_and_a_fixed_split_are_not_small():
    assert small_sides(of_patients(30, val=0, test=0)) == []
    (found,) = small_sides(of_patients(30, val=0, test=0.02))
    assert "val" not in found.message
    frame = pd.DataFrame({"image": list("abc"), "patient": list("pqr"), "split": ["train", "val", "test"]})
    assert small_sides(Cohort(frame, CohortSpec(table="t.csv"))) == []


def test_looking_for_a_seed_is_bounded(monkeypatch):
    monkeypatch.setattr("bolus.data.checks.sides.HASHES", 90)
    seed = next(each for each in range(100) if small_sides(of_patients(30, seed=each)))
    tried = []
    monkeypatch.setattr("bolus.data.checks.sides.split_patients", lambda patients, **spec: (
        tried.append(spec["seed"]), split_patients(patients, **spec))[1])  # fmt: skip
    small_sides(of_patients(30, seed=seed))
    assert tried == [0, 1, 2]
