"""The synthetic cohort of volumes: deterministic, its voxels show what its truth says, and nothing simple reads it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import spearmanr

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.roles import is_role
from bolus.errors import UsageError
from bolus.phantom import volumes as module
from bolus.phantom.volumes import FIELD, ROLES, SCANNERS, Head, draw_head, make_volume_phantom

NUM_PATIENTS, SIZE = 16, 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_volume_phantom(tmp_path_factory.mktemp("phantom"), num_patients=NUM_PATIENTS, size=SIZE, seed=3).parent


@pytest.fixture(scope="module")
def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "table.csv")


@pytest.fixture(scope="module")
def truth(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "truth.csv")


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nibabel.as_closest_canonical(nibabel.load(path))
    return np.asarray(image.dataobj).transpose(2, 1, 0), image.affine


def still(head: Head, **given: object) -> Head:
    """Lying straight, without bias field."""
    return replace(head, turn=np.eye(3), shift=np.zeros(3), bias=np.zeros(6), **given)


def cubes(size: int = 32) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    return SCANNERS["north"].grid(size)


def test_same_seed_same_bytes_and_another_seed_other_volumes(tmp_path: Path) -> None:
    def digests(seed: int, name: str) -> dict[str, str]:
        folder = make_volume_phantom(tmp_path / name, num_patients=3, size=16, seed=seed).parent
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    np.random.seed(1)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = digests(5, "a")
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    assert first == digests(5, "b")
    other = digests(6, "c")
    assert set(first) == set(other)
    assert all(first[name] != other[name] for name in first if name.startswith("images/"))


def test_cohort_file_names_known_roles_and_opens(folder: Path, table: pd.DataFrame) -> None:
    spec = yaml.safe_load((folder / "cohort.yaml").read_text())
    assert set(spec) == {"table", "roles", "units", "split"}
    assert spec["roles"] == ROLES
    assert all(is_role(role) for role in ROLES)
    assert sorted(ROLES.values()) == sorted(table.columns)
    cohort = Cohort.open(folder / "cohort.yaml")
    assert (len(cohort), cohort.num_patients) == (2 * NUM_PATIENTS, NUM_PATIENTS)
    assert set(cohort.split) == {"train", "val", "test"}


def test_two_visits_a_patient_with_a_change_that_is_true(table: pd.DataFrame, truth: pd.DataFrame) -> None:
    assert list(table["image"]) == list(truth["image"])
    assert (table.groupby("patient")["visit"].apply(tuple) == (1, 2)).all()
    assert (table.loc[table["visit"] == 1, "days"] == 0).all()
    assert table.loc[table["visit"] == 2, "days"].between(180, 900).all()
    assert np.allclose(table["severity"], truth["severity"])
    assert table["severity"].between(0, 10).all()
    first, second = (table[table["visit"] == visit].set_index("patient") for visit in (1, 2))
    change = second["severity"] - first["severity"]
    expected = truth.loc[truth.index % 2 == 1, "severity_slope"].to_numpy() * second["days"] / 365.25
    inside = second["severity"] < 10
    assert np.allclose(change[inside], expected[inside], atol=0.11)
    assert change.std() > 0.3
    ages = table["age"].to_numpy()
    assert np.allclose(ages[1::2] - ages[::2], second["days"] / 365.25, atol=0.11)


def test_scanners_differ_in_spacing_and_direction(folder: Path, table: pd.DataFrame) -> None:
    seen = set()
    for image, mask, name in zip(table["image"], table["mask"], table["scanner"], strict=True):
        scanner = SCANNERS[name]
        shape, spacing = scanner.grid(SIZE)
        kept = nibabel.load(folder / image)
        assert nibabel.aff2axcodes(kept.affine) == ("L" if scanner.leftwards else "R", "A", "S")
        voxels, affine = read(folder / image)
        assert voxels.shape == shape
        assert voxels.dtype == np.int16
        assert np.allclose(np.diag(affine)[:3][::-1], spacing, atol=1e-4)
        assert np.allclose(affine[:3, :3] @ (np.array(shape[::-1]) - 1) / 2 + affine[:3, 3], 0, atol=1e-3)
        labels, of_mask = read(folder / mask)
        assert labels.shape == shape
        assert np.array_equal(affine, of_mask)
        assert labels.dtype == np.uint8
        assert set(np.unique(labels)) <= {0, 1, 2, 3}
        assert {1, 2} <= set(np.unique(labels))
        seen.add(name)
    assert seen == set(SCANNERS)
    assert SCANNERS["south"].grid(48)[1] == (FIELD / 32, FIELD / 48, FIELD / 48)


def test_masks_lie_on_what_they_name(folder: Path, table: pd.DataFrame) -> None:
    """In the file as in the drawing: ventricles are dark in the brain, lesions bright, outside is air."""
    for row in range(0, len(table), 3):
        voxels, _ = read(folder / table["image"][row])
        labels, _ = read(folder / table["mask"][row])
        brain = np.median(voxels[labels == 1])
        assert voxels[labels == 2].mean() < 0.75 * brain
        assert voxels[0].mean() < 0.2 * brain
        if table["severity"][row] >= 5 and (labels == 3).sum() > 10:
            assert voxels[labels == 3].mean() > 1.15 * brain


def test_severity_widens_ventricles_and_brightens_lesions(truth: pd.DataFrame) -> None:
    head = module._sample(2, 0)[2][0]
    shape, spacing = cubes()
    sizes, contrasts = [], []
    for severity in (0.0, 5.0, 10.0):
        given = still(head, widening=(0.35 + 0.13 * severity) ** (1 / 3), contrast=0.05 + 0.035 * severity)
        picture, mask = draw_head(given, shape, spacing)
        sizes.append((mask == 2).sum())
        contrasts.append(picture[mask == 3].mean() - np.median(picture[mask == 1]))
    assert sizes[0] * 1.5 < sizes[1] < sizes[2] / 1.3
    assert contrasts[0] < 0.15
    assert contrasts[1] > contrasts[0] + 0.1
    assert contrasts[2] > contrasts[1] + 0.1
    assert spearmanr(truth["severity"], truth["ventricles_ml"])[0] > 0.8
    assert spearmanr(truth["severity"], truth["lesion_contrast"])[0] > 0.99


@pytest.mark.parametrize("scanner", sorted(SCANNERS))
def test_volumes_in_ml_are_the_truth_whatever_the_scanner(scanner: str) -> None:
    _, truth, heads = module._sample(2, 1)
    for head, expected in zip(heads, truth["ventricles_ml"], strict=True):
        shape, spacing = SCANNERS[scanner].grid(56)
        found = (draw_head(head, shape, spacing)[1] == 2).sum() * np.prod(spacing) / 1000
        assert abs(found / expected - 1) < 0.12


def test_a_head_is_turned_and_moved_as_said() -> None:
    head = module._sample(2, 0)[2][0]
    shape, spacing = cubes(48)
    straight = draw_head(still(head), shape, spacing)[1] == 2
    turned = draw_head(replace(still(head), turn=module._rotation(np.deg2rad([0, 0, 90.0]))), shape, spacing)[1] == 2
    expected = np.rot90(straight, 1, axes=(2, 1))  # anticlockwise seen from above, x towards y
    assert (expected & turned).sum() / (expected | turned).sum() > 0.95
    moved = draw_head(replace(still(head), shift=np.array([8.0, 0, -12.0])), shape, spacing)[1] == 2
    assert np.array_equal(moved[:-3, :, 2:], straight[3:, :, :-2])


def test_nothing_simple_reads_the_severity() -> None:
    """Means and histograms of a volume in [0, 1] say little of it, while what drives it says nearly all."""
    table, truth, heads = module._sample(60, 2)
    found = []
    for row, head in enumerate(heads):
        picture, _ = draw_head(head, *SCANNERS[table["scanner"][row]].grid(24))
        low, high = np.percentile(picture, (0.5, 99.5))
        unit = np.clip((picture - low) / (high - low), 0, 1)
        found.append([unit.mean(), unit.std(), *np.quantile(unit, (0.8, 0.9, 0.97))])
    severity = table["severity"].to_numpy()
    for column in np.array(found).T:
        assert abs(spearmanr(column, severity)[0]) < 0.5
    assert abs(spearmanr(table["age"], severity)[0]) < 0.5
    assert spearmanr(truth["ventricles_ml"], severity)[0] > 0.8


def test_arguments_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="num_patients: expected at least 2, found 1"):
        make_volume_phantom(tmp_path, num_patients=1)
    with pytest.raises(UsageError, match="size: expected at least 16 voxels, found 8"):
        make_volume_phantom(tmp_path, num_patients=2, size=8)
