"""Health: each measure on features whose answer is known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from bolus.data.cohort.cohort import Cohort
from bolus.data.images.cache import Preprocessing, build_store
from bolus.encoders.building import build_encoder
from bolus.errors import RecipeError
from bolus.recipe import Recipe
from bolus.training.health import health
from bolus.training.health.health import (
    HealthFinding,
    alignment,
    collapse,
    effective_rank,
    uniformity,
    watch,
)
from bolus.training.health.online_probe import check_probe, knn_scores


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


@pytest.fixture
def empty_columns(tiny_cohort: Path) -> Cohort:
    """The tiny cohort with a label, a score and an attribute that nobody has."""
    table = pd.read_csv(tiny_cohort.with_name("table.csv"), dtype=str).assign(none="")
    table.to_csv(tiny_cohort.with_name("table.csv"), index=False)
    roles = {"label:none": "none", "score:none": "none", "attribute:none": "none", "attribute:sex": "sex"}
    return Cohort.open(tiny_cohort, roles=roles, split={"seed": 1, "val": 0.6, "test": 0.1})


def recipe_that_watches(small_recipe: dict[str, Any], role: str | None) -> Recipe:
    return Recipe.load({**small_recipe, "training": {"probe": role}})


def test_the_probe_is_resolved_and_checked_before_anything_is_read(
    empty_columns: Cohort, small_recipe: dict[str, Any]
) -> None:
    def check(role: str | None, cohort: Cohort = empty_columns) -> str | None:
        return check_probe(cohort, recipe_that_watches(small_recipe, role))

    assert check(None) == next(role for role in empty_columns.roles if role.startswith("label:"))
    for role in ("label:sick", "score:severity", "time", "label:none", "score:none", "attribute:none"):
        assert check(role) == role
    with pytest.raises(RecipeError, match="did you mean 'label:sick'"):
        check("label:sik")
    for role in ("patient", "attribute:sex", "image"):
        with pytest.raises(RecipeError, match="categories"):
            check(role)
    bare = Cohort(empty_columns.table[["image", "patient"]], empty_columns.spec.model_copy(update={"roles": {}}))
    assert check(None, bare) is None


@pytest.mark.parametrize(
    ("role", "known"),
    [
        ("label:sick", True),
        ("score:severity", True),
        ("label:none", False),
        ("score:none", False),
        ("attribute:none", False),
    ],
)
def test_watching_never_fails_for_want_of_values(
    empty_columns: Cohort, small_recipe: dict[str, Any], tmp_path: Path, role: str, known: bool
) -> None:
    findings = watch_with(empty_columns, recipe_that_watches(small_recipe, role), tmp_path)
    assert findings[-1].name == f"knn {role}"
    assert math.isfinite(findings[-1].value) == known
    assert ("Too few labelled validation patients" in findings[-1].sentence) != known


def test_two_validation_patients_are_too_few(
    empty_columns: Cohort, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    patients = empty_columns.encoded("patient")
    empty_columns.split = np.where(patients < 2, "val", "train")
    for role in ("label:sick", "score:severity"):
        finding = watch_with(empty_columns, recipe_that_watches(small_recipe, role), tmp_path)[-1]
        assert math.isnan(finding.value)
        assert finding.to_json()["value"] is None
    empty_columns.split = np.full(60, "test")
    (finding,) = watch_with(empty_columns, recipe_that_watches(small_recipe, None), tmp_path)
    assert "Too few readable images" in finding.sentence


@pytest.mark.parametrize("keys", [["sampling.chunk=3"], ["sampling.batch_size=8"], ["images.augment.noise=0.1"]])
def test_a_look_takes_no_more_at_a_time_than_a_step_and_finds_the_same(
    empty_columns: Cohort, small_recipe: dict[str, Any], tmp_path: Path, keys: list[str]
) -> None:
    def look(*more: str) -> tuple[list[HealthFinding], list[int]]:
        recipe, seen = Recipe.load(small_recipe).override([*more, "training.probe=label:sick"]), list[int]()
        encoder = build_encoder(recipe.encoder, seed=0)
        encoder.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
        store = build_store(empty_columns, Preprocessing(24), folder=tmp_path / "cache")
        return watch(encoder, store, empty_columns.samples("image"), recipe).findings, seen

    noise = [key for key in keys if "noise" in key]
    whole, _ = look("sampling.batch_size=60", *noise)
    found, seen = look(*keys)
    recipe = Recipe.load(small_recipe).override(keys)
    together = recipe.sampling.chunk or recipe.sampling.batch_size
    assert max(seen) <= together * recipe.images.views
    assert [each.name for each in found] == [each.name for each in whole]
    for one, other in zip(found, whole, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-4), one.name


def test_views_are_compared_with_those_of_other_patients_from_the_whole_table(
    empty_columns: Cohort, small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_that_watches(small_recipe, None)
    seen, patients = list[int](), empty_columns.encoded("patient")
    kinds = torch.eye(build_encoder(recipe.encoder, seed=0).shape.dim)

    def of_a_patient(*words: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Features at right angles for patients, and a little apart for images of one."""
        positions = words[3]
        seen.extend(positions.tolist())
        return kinds[patients[positions]], kinds[patients[positions]] + 0.5 * kinds[20 + positions]

    monkeypatch.setattr(health, "_two_views", of_a_patient)
    monkeypatch.setattr(health, "PAIRED", 12)
    found = {each.name: each for each in watch_with(empty_columns, recipe, tmp_path)}
    held_out = np.flatnonzero(empty_columns.split == "val").tolist()
    assert len(seen) == 12 < len(held_out)
    assert seen == sorted(seen) != held_out[:12], "not the first of the table"
    assert f"lie {found['alignment'].value / 2:.2f} times as far apart" in found["alignment"].sentence


def watch_with(cohort: Cohort, recipe: Recipe, folder: Path) -> list[HealthFinding]:
    store = build_store(cohort, Preprocessing(24), folder=folder / "cache")
    return watch(build_encoder(recipe.encoder, seed=0), store, cohort.samples("image"), recipe).findings
