"""Batches by participant: as many patients as promised, spread over strata, full and distinct, from the seed alone."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bolus
from bolus.data.batches.participants import ParticipantSampler, combine_codes
from bolus.errors import RecipeError
from bolus.phantom.images import make_phantom
from bolus.recipe import Recipe


def epoch_of(sampler, epoch=0):
    return [sampler.batch(epoch, index) for index in range(sampler.batches_per_epoch)]


def owners(patients):
    """Patients with each missing one apart, by a loop."""
    return [f"row {row}" if code == -1 else f"patient {code}" for row, code in enumerate(patients.tolist())]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    num_samples=st.integers(2, 60),
    share=st.floats(0, 1),
    participants=st.integers(1, 8),
    num_patients=st.integers(1, 12),
    num_strata=st.integers(1, 4),
    seed=st.integers(0, 5),
)
def test_batches_keep_what_the_sampler_promises(num_samples, share, participants, num_patients, num_strata, seed):
    rng = np.random.default_rng(seed)
    patients = rng.integers(-1, num_patients, num_samples)
    strata = rng.integers(-1, num_strata - 1, num_samples)
    batch_size = max(2, round(share * num_samples))
    owner = owners(patients)
    participants = min(participants, batch_size // 2, len(set(owner)))
    sampler = ParticipantSampler(
        num_samples, patients=patients, batch_size=batch_size, participants=participants, seed=seed, strata=strata
    )
    assert sampler.num_patients == len(set(owner))
    rows_of = {name: [row for row in range(num_samples) if owner[row] == name] for name in set(owner)}
    seen = []
    for index, batch in enumerate(epoch_of(sampler)):
        assert batch.dtype == np.int64
        assert len(batch) == len(set(batch.tolist())) == batch_size
        assert batch.min() >= 0
        assert batch.max() < num_samples
        drawn = sampler.drawn_patients(0, index).tolist()
        assert len(set(drawn)) == participants
        names = {owner[int(np.flatnonzero(sampler.patients == code)[0])] for code in drawn}
        seen += sorted(names)
        room = batch_size // participants
        total = sum(len(rows_of[name]) for name in names)
        for name in names:
            mine = [row for row in rows_of[name] if row in batch]
            assert len(mine) >= min(room, len(rows_of[name]))
            everything = {strata[row] for row in rows_of[name]}
            found = {strata[row] for row in mine}
            assert len(found) >= min(len(everything), len(mine))  # all strata, before any has a second image
            turns = [sum(strata[row] == stratum for row in mine) for stratum in everything]
            most = max(turns)
            sizes = [sum(strata[row] == stratum for row in rows_of[name]) for stratum in everything]
            for turn, size in zip(turns, sizes, strict=True):
                assert turn >= min(size, most - 1)  # none is ahead by two while another still has images
        others = [row for row in batch.tolist() if owner[row] not in names]
        if others:  # only where these patients have no further image
            assert len(others) == batch_size - total
    assert set(seen) == set(rows_of)
    assert len(seen) - len(rows_of) < participants  # only the last batch draws patients again


def test_nobody_has_more_than_a_share_while_everybody_has_enough():
    patients = np.repeat(np.arange(12), 10)
    sampler = ParticipantSampler(120, patients=patients, batch_size=16, participants=4, seed=0)
    for batch in epoch_of(sampler):
        assert sorted(np.bincount(patients[batch], minlength=12).tolist())[-4:] == [4, 4, 4, 4]


def test_what_the_share_leaves_over_goes_evenly_to_the_same_patients():
    patients = np.repeat(np.arange(6), 10)
    sampler = ParticipantSampler(60, patients=patients, batch_size=11, participants=3, seed=0)
    for batch in epoch_of(sampler):
        assert sorted(np.bincount(patients[batch], minlength=6).tolist()) == [0, 0, 0, 3, 4, 4]


def test_strata_come_before_second_images():
    """Forty images of the left eye and one of the right: the right one is always there."""
    patients = np.repeat(np.arange(5), 41)
    eye = np.tile(np.r_[np.zeros(40, np.int64), 1], 5)
    sampler = ParticipantSampler(205, patients=patients, batch_size=4, participants=2, seed=0, strata=eye)
    for epoch in range(4):
        for batch in epoch_of(sampler, epoch):
            for patient in np.unique(patients[batch]):
                assert sorted(eye[batch[patients[batch] == patient]].tolist()) == [0, 1]


def test_images_of_a_stratum_and_fill_are_random():
    patients = np.r_[np.repeat(np.arange(2), 8), np.full(100, -1)]
    sampler = ParticipantSampler(116, patients=patients, batch_size=4, participants=2, seed=0)
    with_patient_0 = [batch for e in range(40) for batch in epoch_of(sampler, e) if (patients[batch] == 0).any()]
    counts = np.bincount(np.concatenate(with_patient_0), minlength=116)
    assert counts[:8].min() > 0  # of one patient, every image comes in time
    few = np.r_[0, 0, 1, 1, np.full(100, -1)]
    lonely = ParticipantSampler(104, patients=few, batch_size=20, participants=2, seed=0)
    epochs = 30
    counts = np.bincount(np.concatenate([b for e in range(epochs) for b in epoch_of(lonely, e)]), minlength=104)
    expected = epochs * lonely.batches_per_epoch * 20 / 104
    assert np.abs(counts[4:] - expected).max() < 6 * np.sqrt(expected)


def test_batches_are_a_function_of_seed_epoch_and_index():
    patients, strata = np.arange(60) // 4, np.arange(60) % 3
    make = lambda seed: ParticipantSampler(  # noqa: E731
        60, patients=patients, batch_size=8, participants=4, seed=seed, strata=strata
    )
    ordered = [batch.tolist() for batch in epoch_of(make(3), 1)]
    other = make(3)
    other.batch(0, 2)
    for position in reversed(range(other.batches_per_epoch)):
        assert other.batch(1, position).tolist() == ordered[position]
        other.batch(2, position)
    assert pickle.loads(pickle.dumps(other)).batch(1, 0).tolist() == ordered[0]
    assert make(4).batch(1, 0).tolist() != ordered[0]
    assert make(3).batch(0, 0).tolist() != ordered[0]
    with pytest.raises(AssertionError, match="batch 4 of 4"):
        other.batch(0, 4)


def test_errors_name_the_keys():
    patients = np.arange(10) // 2
    with pytest.raises(RecipeError, match=r"sampling\.batch_size is 12, but there are only 10 samples"):
        ParticipantSampler(10, patients=patients, batch_size=12, participants=2, seed=0)
    with pytest.raises(RecipeError, match=r"nobody has two images in a batch; .* at least 8"):
        ParticipantSampler(10, patients=patients, batch_size=7, participants=4, seed=0)
    with pytest.raises(RecipeError, match=r"sampling\.participants is 4, but there are only 2 patients"):
        ParticipantSampler(10, patients=np.arange(10) // 5, batch_size=8, participants=4, seed=0)


def test_combined_codes_are_one_for_each_combination():
    rng = np.random.default_rng(0)
    columns = [rng.integers(-1, 3, 200), rng.choice([0.0, 90.5, np.nan], 200), rng.integers(0, 2, 200)]
    combined = combine_codes(columns, 200)
    keys = [tuple("missing" if np.isnan(column[row]) else column[row] for column in columns) for row in range(200)]
    for row in range(200):
        for other in range(200):
            assert (combined[row] == combined[other]) == (keys[row] == keys[other])
    assert sorted(set(combined.tolist())) == list(range(len(set(keys))))
    assert combine_codes([], 3).tolist() == [0, 0, 0]


def test_a_recipe_has_participants_or_partners():
    base = {"name": "x", "objectives": {"v": {"kind": "varcov"}}}
    assert Recipe.load({**base, "sampling": {"participants": 4, "partners": 1}}).sampling.participants == 4
    with pytest.raises(RecipeError, match=r"sampling: .*leave out partners and balance, or participants"):
        Recipe.load({**base, "sampling": {"participants": 4, "partners": 2, "balance": "patient"}})
    with pytest.raises(RecipeError, match=r"sampling\.participants"):
        Recipe.load({**base, "sampling": {"participants": 0}})


@pytest.fixture
def bilateral():
    return {
        "name": "bilateral",
        "encoder": {"backbone": "r18w32", "stem_pool": False},
        "images": {"size": 32, "views": 1, "augment": {"preset": "none"}},
        "sampling": {"batch_size": 8, "participants": 3},
        "objectives": {
            "eyes": {"kind": "contrast", "relation": {"same": ["patient"], "differ": ["laterality"]}},
        },
        "training": {"max_steps": 2, "log_steps": 1, "health_epochs": None},
    }


def test_a_run_draws_participants_and_says_how_many_patients_a_batch_had(tmp_path, bilateral):
    table = make_phantom(tmp_path / "phantom", num_patients=12, size=16)
    cohort = bolus.Cohort.open(table.parent / "cohort.yaml")
    from bolus.data.batches.relation import Needs, Relation
    from bolus.data.images.cache import build_store
    from bolus.training.loaders import build_loader, contract_of
    from bolus.training.processes import launched

    recipe = Recipe.load(bilateral)
    store = build_store(cohort, contract_of(cohort, recipe), folder=tmp_path / "cache")
    relation = Relation(same=("patient",), differ=("laterality",))
    needs = Needs(roles=frozenset({"patient", "laterality"}), relations=(relation,))
    loader = build_loader(cohort, cohort.samples("image"), store, recipe, needs, launched())
    assert isinstance(loader.sampler, ParticipantSampler)
    patients, side = cohort.encoded("patient"), cohort.encoded("laterality")
    for number in range(loader.batches_per_epoch):
        rows, fetched = loader.draw(number), loader.fetch(number)
        assert fetched.patients == len(np.unique(patients[rows]))
        drawn = loader.sampler.drawn_patients(0, number)
        for code in drawn:
            mine = loader.positions[loader.sampler.patients == code]
            assert len(set(side[np.intersect1d(mine, rows)])) >= min(2, len(set(side[mine])))
    run = bolus.pretrain(cohort, recipe=bilateral, out=tmp_path / "run", cache=tmp_path / "cache", quiet=True)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    assert [line["patients"] for line in train] == [loader.fetch(number).patients for number in (0, 1)]
    assert all(line["patients"] >= 3 for line in train)
    assert all(line["counts"]["eyes"]["anchors"] > 0 for line in train)
