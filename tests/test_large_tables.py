"""What is done quickly for millions of rows gives what the plain way gives."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bolus.data.batches import partners
from bolus.data.cohort import violations
from bolus.data.cohort.coding import Coded, Columns
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.data.cohort.split import split_digest
from bolus.data.cohort.volumes import slice_positions, volume_codes
from bolus.data.images import shards
from bolus.data.images.shards import Manifest, by_group
from bolus.data.text.identifiers import identifier_text
from bolus.planning.hazards.association import commonest, one_of_each
from bolus.training.loaders import _lines

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
    paths = ["a.png", "é/b.png", "c d.png"]
    assert bytes(_lines(pd.DataFrame({"image": pd.Series(paths, dtype="str")}))) == "\n".join(paths).encode()
    assert bytes(_lines(pd.DataFrame({"image": [1, 2]}))) == b"1\n2"
