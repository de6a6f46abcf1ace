"""Heads: what a file gives back is what was written, and embeddings of another width are refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from bolus.embedding.nearest import neighbours, normalise
from bolus.errors import EvaluationError
from bolus.evaluation.probing.fitting import Labelled, fit_knn, fit_linear, fit_majority
from bolus.evaluation.probing.heads import Head
from damage import flip_bit


@pytest.mark.parametrize(("task", "num_classes"), [("classify", 2), ("classify", 4), ("regress", 0)])
@pytest.mark.parametrize("fit", [fit_linear, fit_knn])
def test_saved_head_is_the_same(tmp_path, fit, task, num_classes):
    r = np.random.default_rng(0)
    y = np.arange(80) % num_classes if num_classes else r.normal(50, 10, 80)
    x = r.normal(size=(80, 5)) + y[:, None] / 10
    head = fit(Labelled(x[:40], y[:40], np.arange(40)), Labelled(x[40:], y[40:], np.arange(40)), task)
    head.save(tmp_path / "new" / "head.safetensors")
    loaded = Head.load(tmp_path / "new" / "head.safetensors")
    x_new = r.normal(size=(9, 5))
    assert head.predict(x_new).shape == ((9, 4) if num_classes == 4 else (9,))
    assert np.array_equal(head.predict(x_new), loaded.predict(x_new))
    for key, value in vars(head).items():
        other = getattr(loaded, key)
        assert np.array_equal(other, value) if isinstance(value, np.ndarray) else other == value


def test_constant_head_survives_saving(tmp_path):
    val = Labelled(np.eye(3), [0, 1, 0], np.arange(3))
    head = fit_linear(Labelled(np.eye(3), [1, 1, 1], np.arange(3)), val, "classify")
    head.save(tmp_path / "head.safetensors")
    loaded = Head.load(tmp_path / "head.safetensors")
    assert math.isnan(loaded.strength)
    assert loaded.predict(np.eye(3)).tolist() == [1.0, 1.0, 1.0]


def test_a_file_that_is_no_head(tmp_path):
    with pytest.raises(EvaluationError, match="no head"):
        Head.load(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("not a head")
    with pytest.raises(EvaluationError, match="not a head"):
        Head.load(tmp_path / "text.safetensors")


def test_a_head_of_an_older_file_is_read_and_knows_nobody(tmp_path):
    head = fit_majority(np.array([0.0, 1.0]), "classify", 2).signed("weights", np.array(["a", "b"]))
    head.save(tmp_path / "new.safetensors")
    loaded = Head.load(tmp_path / "new.safetensors")
    assert (loaded.encoder, loaded.salt, loaded.patients) == (head.encoder, head.salt, head.patients)
    assert loaded.knows(np.array(["b", "c"])).tolist() == [True, False]
    with safe_open(tmp_path / "new.safetensors", framework="numpy") as file:
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        values = json.loads(file.metadata()["bolus_head"])
    for key in ("encoder", "salt", "patients", "digest", "digests"):
        del values[key]
    save_file(arrays, tmp_path / "old.safetensors", metadata={"bolus_head": json.dumps(values)})
    old = Head.load(tmp_path / "old.safetensors")
    assert (old.encoder, old.salt, old.patients) == ("", "", ())
    assert not old.knows(np.array(["a", "b"])).any()


@pytest.mark.parametrize("seed", range(10))
def test_a_flipped_bit_of_a_head_is_found(tmp_path, seed):
    rng = np.random.default_rng(seed)
    head = Head("linear", "regress", rng.normal(size=(1, 8)), np.ones(1), np.zeros(8), np.ones(8),
                np.empty(0, np.int64), 0, target_mean=2.5)  # fmt: skip
    path = tmp_path / "head.safetensors"
    head.save(path)
    flip_bit(path, rng, start=8)  # the first eight bytes hold the length of the header
    with pytest.raises(EvaluationError, match=r"damaged|is not a head"):
        Head.load(path)


def test_embeddings_of_another_width_are_refused():
    head = fit_majority(np.array([0.0, 1.0]), "classify", 2)
    with pytest.raises(EvaluationError, match=r"needs embeddings \[n, 0\], found \(2, 5\)"):
        head.predict(np.zeros((2, 5)))


def test_majority_is_the_class_shares_or_the_median():
    nothing = np.empty((1, 0))
    assert fit_majority(np.array([2.0, 0.0, 0.0, 0.0]), "classify", 4).predict(nothing).tolist() == [[0.75, 0, 0.25, 0]]
    assert fit_majority(np.array([1.0, 2.0, 30.0]), "regress", 0).predict(nothing).tolist() == [2.0]


def test_neighbours_do_not_depend_on_the_block_they_are_in():
    r = np.random.default_rng(0)
    x, train = r.normal(size=(5000, 3)), normalise(r.normal(size=(1000, 3)))  # two blocks
    index, weight = neighbours(x, train, 7)
    alone = [neighbours(row[None], train, 7) for row in x[4190:4200]]
    assert np.array_equal(index[4190:4200], np.concatenate([found[0] for found in alone]))
    np.testing.assert_allclose(weight[4190:4200], np.concatenate([found[1] for found in alone]), rtol=1e-6)
    assert (np.diff(weight, axis=1) <= 0).all()  # nearest first
    assert np.array_equal(neighbours(np.eye(2), np.eye(2)[[0, 0, 1]], 2)[0][0], [0, 1])  # ties by row
