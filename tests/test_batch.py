"""The sampler: exact sizes, distinct samples, epochs as promised, partners present, and nothing but the seed in it."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bolus.data.batches.batch import Batch, Sampler
from bolus.data.batches.partners import PartnerIndex
from bolus.data.batches.relation import Relation
from bolus.errors import RecipeError
from bolus.seeds import seed_for


def epoch_of(sampler, epoch=0):
    return [sampler.batch(epoch, index) for index in range(sampler.batches_per_epoch)]


def test_num_samples_counts_over_modalities():
    views = {"CT": torch.zeros(2, 1, 1, 4, 4), "MR": torch.zeros(2, 2, 1, 4, 4)}
    rows = {"CT": torch.tensor([1]), "MR": torch.tensor([0, 2])}
    assert Batch(views, rows, {"sample": torch.tensor([5, 6, 7])}).num_samples == 3


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    num_samples=st.integers(1, 60),
    share=st.floats(0, 1),
    partners=st.integers(0, 3),
    num_patients=st.integers(1, 12),
    balance=st.sampled_from(["none", "patient"]),
    seed=st.integers(0, 5),
)
def test_every_batch_is_full_and_distinct(num_samples, share, partners, num_patients, balance, seed):
    rng = np.random.default_rng(seed)
    columns = {"patient": rng.integers(-1, num_patients, num_samples), "time": rng.random(num_samples)}
    indexes = [PartnerIndex(Relation.parse(rule), columns) for rule in ("patient", {"near": {"time": 0.3}}, "views")]
    batch_size = max(1, round(share * num_samples))
    sampler = Sampler(
        num_samples,
        batch_size=batch_size,
        seed=seed,
        indexes=indexes,
        partners=partners,
        patients=columns["patient"],
        balance=balance,
    )
    for batch in epoch_of(sampler):
        assert batch.dtype == np.int64
        assert len(batch) == len(set(batch)) == batch_size
        assert batch.min() >= 0
        assert batch.max() < num_samples


@pytest.mark.parametrize("with_relation", [False, True])
def test_an_epoch_is_every_sample_once_as_an_anchor(with_relation):
    indexes = [PartnerIndex(Relation(same=("patient",)), {"patient": np.arange(37) // 3})] if with_relation else []
    sampler = Sampler(37, batch_size=8, seed=1, indexes=indexes)
    assert sampler.anchors_per_batch == (4 if with_relation else 8)
    anchors = [sampler.anchors(0, index) for index in range(sampler.batches_per_epoch)]
    assert sorted(np.concatenate(anchors)) == list(range(37))
    for index, expected in enumerate(anchors):
        assert set(expected) <= set(sampler.batch(0, index))
    other = [sampler.anchors(1, index) for index in range(sampler.batches_per_epoch)]
    assert np.concatenate(other).tolist() != np.concatenate(anchors).tolist()


def test_partners_of_every_anchor_are_in_the_batch():
    columns = {"patient": np.arange(200) // 4, "laterality": np.arange(200) % 2}
    relations = [Relation(same=("patient",)), Relation(same=("patient",), differ=("laterality",))]
    indexes = [PartnerIndex(relation, columns) for relation in relations]
    sampler = Sampler(200, batch_size=15, seed=0, indexes=indexes, partners=2)
    assert sampler.anchors_per_batch == 3
    for position, batch in enumerate(epoch_of(sampler)):
        for anchor in sampler.anchors(0, position):
            for index in indexes:
                assert len(set(index.partners(anchor)) & set(batch)) >= 2


def test_relations_without_any_partner_take_no_room():
    lonely = PartnerIndex(Relation(same=("patient",)), {"patient": np.arange(20)})
    sampler = Sampler(20, batch_size=8, seed=0, indexes=[lonely])
    assert sampler.anchors_per_batch == 8


def test_batches_are_a_function_of_seed_epoch_and_index():
    index = PartnerIndex(Relation(same=("patient",)), {"patient": np.arange(50) // 2})
    make = lambda seed: Sampler(50, batch_size=8, seed=seed, indexes=[index])  # noqa: E731
    ordered = [batch.tolist() for batch in epoch_of(make(3), 1)]
    other = make(3)
    other.batch(0, 4)
    for position in reversed(range(other.batches_per_epoch)):  # in another order, with other epochs in between
        assert other.batch(1, position).tolist() == ordered[position]
        other.batch(2, position)
    assert pickle.loads(pickle.dumps(other)).batch(1, 0).tolist() == ordered[0]
    assert make(4).batch(1, 0).tolist() != ordered[0]


def test_global_random_state_is_left_alone():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    torch_before = torch.get_rng_state()
    Sampler(50, batch_size=8, seed=0).batch(0, 0)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_before)


def test_fill_is_random_over_all_samples():
    index = PartnerIndex(Relation(same=("patient",)), {"patient": np.concatenate([[0, 0], np.full(98, -1)])})
    sampler = Sampler(100, batch_size=10, seed=0, indexes=[index])
    counts = np.bincount(np.concatenate([b for e in range(20) for b in epoch_of(sampler, e)]), minlength=100)
    expected = 20 * sampler.batches_per_epoch * 10 / 100
    assert np.abs(counts[2:] - expected).max() < 6 * np.sqrt(expected)


def test_balance_gives_every_patient_equally_many_anchors():
    patients = np.repeat([0, 1, 5], [60, 30, 6])  # codes may have gaps
    patients = np.concatenate([patients, [-1, -1]])  # two unknown patients
    sampler = Sampler(98, batch_size=1, seed=0, patients=patients, balance="patient")
    epochs = [np.concatenate([sampler.anchors(e, b) for b in range(sampler.batches_per_epoch)]) for e in range(10)]
    owner = np.concatenate([patients[:96], [100, 101]])
    for anchors in epochs:
        assert len(anchors) == 98
        assert np.isin(np.unique(owner[anchors], return_counts=True)[1], [19, 20]).all()  # 98 over 5 patients
    first = np.unique(epochs[0][owner[epochs[0]] == 5], return_counts=True)[1]
    assert len(first) == 6
    assert first.max() - first.min() <= 1  # spread evenly over the patient's samples
    sizes = sum(np.bincount(np.searchsorted(np.unique(owner), owner[anchors])) for anchors in epochs)
    assert sizes.max() - sizes.min() <= 10


def test_errors_name_the_key():
    with pytest.raises(RecipeError, match=r"sampling\.batch_size is 8, but there are only 5 samples"):
        Sampler(5, batch_size=8, seed=0)
    with pytest.raises(RecipeError, match=r"sampling\.balance"):
        Sampler(5, batch_size=2, seed=0, balance="patient")
    sampler = Sampler(5, batch_size=2, seed=0)
    with pytest.raises(AssertionError, match="batch 3 of 3"):
        sampler.batch(0, 3)


def test_seed_for_is_stable_and_tells_its_parts_apart():
    assert seed_for(0, "a") == seed_for(np.int64(0), "a") == 2916550798573009598  # another value would change every run
    seeds = [seed_for(*parts) for parts in [(1,), ("1",), (1, 1), ("1, 1",), (11,), ("a", "b"), ("ab",), (), ("",)]]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.Generator().manual_seed(max(seeds))
    command = [sys.executable, "-c", "from bolus.seeds import seed_for; print(seed_for(0, 'a'))"]
    assert int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) == seed_for(0, "a")
