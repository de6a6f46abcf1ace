"""Health: each measure on features whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import torch

from bolus.health import alignment, collapse, effective_rank, knn_scores, uniformity


def test_isotropic_features_are_not_collapsed_and_a_constant_is() -> None:
    z = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0))
    assert 0.9 < collapse(z) < 1.1
    assert collapse(torch.ones(50, 16) + 1e-6 * torch.randn(50, 16)) < 1e-3


def test_effective_rank_counts_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(500, 3, generator=generator) @ torch.linalg.qr(torch.randn(16, 3, generator=generator))[0].T
    assert 2.5 < effective_rank(low) <= 3.01
    assert math.isclose(effective_rank(torch.eye(8)), 8, rel_tol=1e-6)


def test_alignment_and_uniformity_by_hand() -> None:
    a, b = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 3.0], [0.0, 1.0]])
    assert math.isclose(alignment(a, b), (2.0 + 0.0) / 2, rel_tol=1e-6)
    assert math.isclose(uniformity(a), math.log(math.exp(-2 * 2.0)), rel_tol=1e-5)


def test_neighbours_never_come_from_the_same_patient() -> None:
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(30), 8)
    z = rng.normal(size=(30, 5))[patients] + 0.01 * rng.normal(size=(240, 5))  # a patient's images are near-duplicates
    y = rng.integers(0, 2, 30)[patients].astype(float)[:, None]
    scores = knn_scores(z.astype(np.float32), y, patients)
    leaking = knn_scores(z.astype(np.float32), y, np.arange(240))
    assert np.corrcoef(leaking[:, 0], y[:, 0])[0, 1] > 0.8  # what the identity alone gives away
    assert np.corrcoef(scores[:, 0], y[:, 0])[0, 1] < 0.4


def test_neighbours_equal_a_naive_loop() -> None:
    rng = np.random.default_rng(1)
    z, patients = rng.normal(size=(30, 4)).astype(np.float32), rng.integers(0, 12, 30)
    y = rng.normal(size=(30, 2))
    y[rng.random((30, 2)) < 0.2] = np.nan
    found = knn_scores(z, y, patients)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    for i in range(30):
        for k in range(2):
            others = [j for j in range(30) if not np.isnan(y[j, k]) and patients[j] != patients[i]]
            near = sorted(others, key=lambda j, i=i: -float(unit[i] @ unit[j]))[:10]
            np.testing.assert_allclose(found[i, k], np.mean([y[j, k] for j in near]), rtol=1e-5)
