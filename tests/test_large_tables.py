"""What is done quickly for millions of rows gives what the plain way gives."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bolus.data.batches import counting, partners
from bolus.data.batches.counting import count_partners
from bolus.data.batches.relation import Needs, Relation
from bolus.data.cohort import violations
from bolus.data.cohort.coding import Coded, Columns, Held, texts_of
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.data.cohort.split import split_digest
from bolus.data.cohort.table import read_table
from bolus.data.cohort.volumes import slice_positions, volume_codes
from bolus.data.images import shards
from bolus.data.images.shards import Manifest, by_group
from bolus.data.text.columns import joined_lines
from bolus.data.text.identifiers import identifier_text
from bolus.errors import CohortError
from bolus.planning.hazards import hazards
from bolus.planning.hazards.association import commonest, one_of_each
from bolus.planning.hazards.hazards import find_hazards, some_patients
from bolus.planning.planner import plan
from bolus.recipe import Recipe
from bolus.training.loaders import build_loader, data_hash, open_images, unread_loader
from bolus.training.processes import launched

AWKWARD = ["7", "7.0", " 8 ", "é x", "a'b", 'c"d', "e\\f", "p1", "p10", "p1 2", "\u200bz", "n/a", "", None]


def test_a_table_comes_back_as_it_was_given(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "image": [f"{row}.png" for row in range(60)],
            "patient": rng.choice(AWKWARD[:5], 60),
            "note": rng.choice(["x", None], 60),
            "nothing": pd.Series([None] * 60, dtype="str"),
            "number": rng.integers(0, 3, 60),
        }
    )
    columns = Columns.of(frame)
    assert [isinstance(columns[name], Coded) for name in frame] == [False, True, True, True, False]
    pd.testing.assert_frame_equal(columns.frame(), frame)
    rows = rng.integers(0, 60, 20)
    some = frame[["note", "image"]].iloc[rows].reset_index(drop=True)
    pd.testing.assert_frame_equal(columns.frame(["note", "image"], rows), some)
    frame.to_csv(tmp_path / "t.csv", index=False)
    opened = Cohort.open(tmp_path / "t.csv").table
    assert opened["patient"].tolist() == [text.strip() for text in frame["patient"]]
    assert opened["note"].isna().tolist() == frame["note"].isna().tolist()


def test_codes_are_those_of_the_sorted_values_in_the_whole_and_in_a_part() -> None:
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"image": [f"{row}" for row in range(200)], "patient": rng.choice(AWKWARD[:-3], 200)})
    frame["days"] = rng.choice(["2024-01-03", "2024-02-01", "20240103", None], 200)
    frame["split"] = np.where(frame["patient"].map(identifier_text) < "b", "val", "train")
    cohort = Cohort(frame, CohortSpec(table="t.csv", roles={"time": "days", "attribute:days": "days"}))
    for role in ("patient", "attribute:days"):
        assert (cohort.encoded(role) == pd.factorize(cohort.values(role), sort=True)[0]).all()
        rows = np.flatnonzero(cohort.split == "train")
        expected = pd.factorize(cohort.values(role).iloc[rows], sort=True)[0]
        assert (cohort.coded(role).take(rows).codes == expected).all()
        assert (cohort.encoded_at(role, rows) == cohort.encoded(role)[rows]).all()
    assert sorted(set(cohort.encoded("time")[~np.isnan(cohort.encoded("time"))])) == [0, 29]
    assert (np.isnan(cohort.encoded("time")) == frame["days"].isna()).all()


@pytest.mark.parametrize("number", [5, 400])
def test_the_digest_of_a_split_is_that_of_its_lines(number: int) -> None:
    rng = np.random.default_rng(number)
    patients = np.array(AWKWARD, object)[rng.integers(0, len(AWKWARD), number)]
    sides = rng.choice(["train", "val", "test"], number)
    lines = {ascii((str(side), identifier_text(patient))) for side, patient in zip(sides, patients, strict=True)}
    expected = blake2b("\n".join(sorted(lines)).encode(), digest_size=6).hexdigest()
    assert split_digest(sides, patients) == split_digest(sides, Coded.of(pd.Series(patients))) == expected


def test_rows_are_ranked_as_lexsort_ranks_them() -> None:
    rng = np.random.default_rng(2)
    whole, codes = rng.integers(-3, 4, 500).astype(np.float64), rng.integers(0, 9, 500)
    for keys in ([whole, codes], [codes], [rng.normal(size=500), codes], [whole * 2.0**60, codes, codes]):
        assert (partners._rank(keys, 500) == np.lexsort(keys)).all()


@pytest.mark.parametrize("dense", [0, 10**6])
def test_images_are_found_by_content_and_frame_and_of_several_the_last(dense: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(shards, "DENSE", dense)
    monkeypatch.setattr(shards, "READ", 0)
    rng = np.random.default_rng(3)
    digests = rng.integers(0, 2**62, (6, 2)).astype(np.uint64)
    digests[5] = digests[4]  # a copy
    digests[3, 1] += 1
    held, frames = rng.integers(0, 5, 40), rng.integers(-1, 6, 40).astype(np.int32)
    of_images = digests[held]
    of_images[held == 3, 1] -= 1  # another content with one address
    manifest = Manifest([], [], of_images, frames, *[np.zeros(40, np.int32)] * 2, np.zeros(0, shards.SIGHTING), [])
    file, frame = rng.integers(0, 6, 200), rng.integers(-1, 8, 200)
    found = manifest.find_images(digests, file, frame)
    for at, number in enumerate(found.tolist()):
        same = (of_images == digests[file[at]]).all(1) & (frames == frame[at])
        assert number == (np.flatnonzero(same)[-1] if same.any() else -1)


def test_groups_hold_each_place_once() -> None:
    codes = np.random.default_rng(4).integers(0, 5, 100)
    for order in (codes, np.sort(codes), codes[:0]):
        found = dict(by_group(order))
        assert list(found) == np.unique(order).tolist()
        assert all((np.flatnonzero(order == code) == places).all() for code, places in found.items())


@pytest.mark.parametrize("dense", [0, 16])
def test_the_same_frame_twice_is_seen_whether_or_not_frames_are_dense(dense: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(violations, "DENSE", dense)
    rng = np.random.default_rng(5)
    for files, order in (
        (np.repeat([0, 1], 3), np.array([0.0, 1, 2, 2, 1, 0])),
        (rng.integers(-1, 3, 50), rng.integers(0, 20, 50).astype(np.float64)),
        (np.array([0, 0, 0]), np.array([np.nan, 1, np.nan])),
        (np.array([0, 0, 0]), np.array([-1, 1.5, -1])),
    ):
        expected = pd.DataFrame({"file": files, "order": order}).duplicated().to_numpy()
        assert (violations.again(files, order) == expected).all()


def test_volumes_are_numbered_in_the_order_of_what_tells_them_apart() -> None:
    rng = np.random.default_rng(6)
    columns = {"image": [f"{row}" for row in range(300)], "patient": rng.choice(list("pqr"), 300)}
    columns |= {"visit": rng.choice(["1", "2", ""], 300), "phase": rng.choice(["ed", "es"], 300)}
    cohort = Cohort(pd.DataFrame(columns), CohortSpec(table="t.csv"))
    codes, roles = volume_codes(cohort)
    keys = [np.unique(cohort.encoded(role), return_inverse=True)[1] for role in roles]
    assert roles == ("patient", "visit", "phase")
    assert (codes == np.unique(np.stack(keys, 1), axis=0, return_inverse=True)[1].ravel()).all()
    order = rng.integers(0, 9, 300).astype(np.float64)
    groups = pd.Series(order).groupby(codes)
    expected = (groups.rank() - 0.5) / groups.transform("count")
    np.testing.assert_array_equal(
        slice_positions(codes, order), np.where(groups.transform("count") > 1, expected, np.nan)
    )


def test_a_patient_is_summed_up_as_the_plain_way_does() -> None:
    rng = np.random.default_rng(7)
    patients, codes = rng.permutation(np.arange(200) % 30), rng.integers(-1, 4, 200)
    counted = [np.bincount(codes[(patients == each) & (codes >= 0)], minlength=1) for each in range(30)]
    assert commonest(patients, codes, 30).tolist() == [int(each.argmax()) if each.sum() else -1 for each in counted]
    order = np.random.default_rng(0).permutation(200)
    drawn = order[np.unique(patients[order], return_index=True)[1]]
    assert (one_of_each(patients) == drawn).all()


def test_paths_are_hashed_as_lines() -> None:
    paths = pd.Series(["a.png", "é/b.png", "c d.png", "a.png"], dtype="str")
    rows = np.array([3, 1, 2])
    for column in (paths, Coded.of(paths)):
        assert bytes(joined_lines(texts_of(column, rows))) == "a.png\né/b.png\nc d.png".encode()
    assert bytes(joined_lines(texts_of(pd.Series([1, 2]), np.array([0, 1])))) == b"1\n2"


def naive_counts(relation: Relation, columns: dict[str, Any]) -> list[int]:
    table = pd.DataFrame(columns).replace({-1: np.nan}).astype(float)
    found = []
    for row in range(len(table)):
        here = table.notna()[[*relation.roles]].all(axis=1)
        for role in relation.same:
            here &= table[role] == table[role][row]
        for role in relation.differ:
            here &= table[role] != table[role][row]
        here &= bool(table.loc[row, [*relation.roles]].notna().all())
        here[row] = False
        found.append(int(here.sum()))
    return found


@pytest.mark.parametrize("dense", [0, 4])
@pytest.mark.parametrize(("same", "differ"), [("patient", ()), ("patient", ("visit", "time")), ((), ("time", "visit"))])
def test_partners_are_counted_as_by_looking_at_each_pair(dense: int, same: Any, differ: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(counting, "DENSE", dense)
    rng = np.random.default_rng(8)
    for fraction in (0.0, 0.5):  # of days, which are then no whole numbers
        columns = {"patient": rng.integers(-1, 9, 60), "visit": rng.integers(-1, 3, 60).astype(np.int8)}
        columns |= {"time": np.where(rng.random(60) < 0.1, np.nan, rng.integers(0, 4, 60) + fraction)}
        relation = Relation(same=same, differ=differ)
        expected = naive_counts(relation, columns)
        assert count_partners(relation, columns).tolist() == expected
        assert partners.PartnerIndex(relation, columns).counts().tolist() == expected


def test_partners_are_drawn_alike_from_narrow_codes_and_wide_ones() -> None:
    rng = np.random.default_rng(9)
    columns = {"patient": rng.integers(-1, 9, 80), "visit": rng.integers(0, 3, 80)}
    narrow = {role: codes.astype(np.int8) for role, codes in columns.items()}
    relation = Relation(same=("patient",), differ=("visit",))
    drawn = [
        partners.PartnerIndex(relation, each).draw_each(np.arange(80), 2, np.random.default_rng(1))
        for each in (columns, narrow)
    ]
    assert drawn[0].tolist() == drawn[1].tolist()
    assert drawn[1].dtype == np.int64


def test_what_is_held_in_little_room_is_what_is_encoded() -> None:
    rng = np.random.default_rng(10)
    frame = pd.DataFrame({"image": [f"{row}" for row in range(90)], "patient": rng.choice(list("pqr"), 90)})
    frame["days"] = rng.choice(["2024-01-03", "20240103", "2024-02-01", None], 90)
    frame["age"] = rng.choice(["61", "inf", "58Y", "?"], 90)
    frame["own"] = rng.normal(size=90)
    roles = {"time": "days", "attribute:age": "age", "score:own": "own"}
    cohort = Cohort(frame, CohortSpec(table="t.csv", roles=roles, missing={"age": ["?"]}))
    samples = cohort.samples("image")
    for role in ("patient", "time", "attribute:age", "score:own"):
        held = samples.held(role)
        np.testing.assert_array_equal(held[:], cohort.encoded(role))
        kept = Held.of(held)
        np.testing.assert_array_equal(kept[:], cohort.encoded(role))
        assert len(np.unique(kept.values)) == len(kept.values)
        known = np.isfinite(cohort.encoded(role)) & (cohort.encoded(role) != -1)
        assert kept.counts()[kept.known].sum() == known.sum()
        assert (kept.known[kept.codes] == known).all()


def test_identifiers_are_sorted_as_text() -> None:
    rng = np.random.default_rng(11)
    for width, before in ((3, "PAT"), (8, "é"), (12, "")):
        numbers = [f"{before}{number:0{1 + number % width}d}" for number in rng.permutation(500).tolist()]
        series = pd.Series([*dict.fromkeys([*numbers, before or "x"])])
        ranked = Coded.of(series).ranked()
        assert ranked.values.tolist() == sorted(series)
        assert ranked.plain().tolist() == series.tolist()


def test_a_table_without_quotes_is_read_as_one_with_them(tmp_path: Path) -> None:
    (tmp_path / "plain.csv").write_text("image,patient\na.png,p\nb.png,q\n")
    (tmp_path / "quoted.csv").write_text('image,patient\na.png,"p"\nb.png,"q"\n')
    (tmp_path / "torn.csv").write_text("image,patient\na.png,p,1\nb.png,q\n")
    assert read_table(tmp_path / "plain.csv").equals(read_table(tmp_path / "quoted.csv"))
    with pytest.raises(CohortError, match="another number in row 1"):
        read_table(tmp_path / "torn.csv")


def test_records_that_are_alike_are_told_from_others() -> None:
    records = np.zeros(6, shards.RECORD)
    records["frame"], records["crc"] = np.arange(6), 7 + np.arange(6)
    assert shards.are_alike(records)
    for field in ("gain", "bias"):
        other = records.copy()
        other[field][3] = 2.0
        assert not shards.are_alike(other)
    records["grey"]["high"][2] = 1.0
    assert not shards.are_alike(records)


def test_a_large_table_is_planned_by_some_patients_and_says_so(monkeypatch: Any) -> None:
    rng = np.random.default_rng(12)
    patients = rng.integers(0, 400, 2000)
    frame = pd.DataFrame({"image": [f"{row}.png" for row in range(2000)], "patient": patients.astype(str)})
    frame["scanner"] = np.where(patients % 2, "A", "B")
    frame["ill"] = np.where(rng.random(2000) < 0.95, patients % 2, 1 - patients % 2)
    frame["empty"], frame["one"], frame["note"] = None, "x", [f"note {row}" for row in range(2000)]
    roles = {f"attribute:{name}": name for name in ("scanner", "empty", "one", "note")} | {"label:ill": "ill"}
    cohort = Cohort(frame, CohortSpec(table="t.csv", roles=roles))
    samples = cohort.samples("image")
    whole = find_hazards(samples)
    assert some_patients(samples) is samples
    monkeypatch.setattr(hazards, "LOOKED", 1000)
    looked = some_patients(samples)
    number, kept = len(set(patients[looked.first_row])), set(patients[looked.first_row])
    assert 0.3 < number / 400 < 0.7
    assert len(looked) == sum(patient in kept for patient in patients)  # all of their samples
    some = find_hazards(samples, looked)
    assert [(each.role, each.kind) for each in some] == [(each.role, each.kind) for each in whole]
    counted = ("missing", "constant", "unique")
    assert [each for each in some if each.kind in counted] == [each for each in whole if each.kind in counted]
    planned = plan(cohort)
    assert f"looked at in {number:,} of these patients" in planned.facts[-1]
    assert [each.name for each in planned.offers] == [each.name for each in plan(cohort).offers]


def test_a_loader_takes_over_what_one_before_it_made(tiny_cohort: Path, tmp_path: Path) -> None:
    relation, cohort = Relation(same=("patient",)), Cohort.open(tiny_cohort)
    recipe = Recipe.load("simclr").override(["images.size=16", "sampling.batch_size=8", "sampling.partners=1"])
    needs = Needs(relations=(relation,), roles=frozenset({"patient"}))
    unread = unread_loader(cohort, recipe, needs, tmp_path)
    store = open_images(cohort, recipe, tmp_path, quiet=True)
    made = [
        build_loader(cohort, cohort.samples("image"), store, recipe, needs, launched(), before=before)
        for before in (None, unread)
    ]
    assert made[1].sampler is unread.sampler
    assert made[1].store is store
    assert made[0].draw(3).tolist() == made[1].draw(3).tolist()
    assert data_hash(cohort, made[0]) == data_hash(cohort, made[1])
    fewer = store.readable.copy()
    fewer[made[0].positions[0]] = False
    other = build_loader(
        cohort, cohort.samples("image"), store, recipe, needs, launched(), readable=fewer, before=unread
    )
    assert len(other.positions) == len(unread.positions) - 1
    assert other.sampler is not unread.sampler
