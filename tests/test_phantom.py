"""The synthetic cohort: deterministic, complete in roles, and its pictures show what its truth says."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.roles import is_role
from bolus.errors import UsageError
from bolus.phantom import images as module
from bolus.phantom.images import OPTIONAL, ROLES, SEVERITY_MISSING, make_phantom

NUM_PATIENTS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("phantom"), num_patients=NUM_PATIENTS, size=48, seed=3).parent


@pytest.fixture(scope="module")
def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "table.csv")


@pytest.fixture(scope="module")
def truth(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "truth.csv")


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_same_seed_same_bytes_and_another_seed_other_pictures(tmp_path: Path) -> None:
    np.random.seed(1)  # noqa: NPY002
    first = digests(make_phantom(tmp_path / "a", num_patients=6, size=16, seed=5).parent)
    np.random.seed(2)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    second = digests(make_phantom(tmp_path / "b", num_patients=6, size=16, seed=5).parent)
    assert first == second
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    other = digests(make_phantom(tmp_path / "c", num_patients=6, size=16, seed=6).parent)
    shared = [name for name in set(first) & set(other) if name.startswith("images/")]
    assert shared
    assert all(first[name] != other[name] for name in shared)


def test_cohort_file_names_known_roles_and_their_columns(folder: Path, table: pd.DataFrame) -> None:
    cohort = yaml.safe_load((folder / "cohort.yaml").read_text())
    assert set(cohort) == {"table", "roles", "units", "missing", "split"}
    assert cohort["table"] == "table.csv"
    assert cohort["units"] == {"time": "days"}
    assert cohort["missing"] == {"severity": [SEVERITY_MISSING]}
    assert cohort["roles"] == ROLES
    assert all(is_role(role) for role in cohort["roles"])
    assert sorted(cohort["roles"].values()) == sorted(table.columns)


def test_the_cohort_opens(folder: Path, table: pd.DataFrame) -> None:
    cohort = Cohort.open(folder / "cohort.yaml")
    assert len(cohort) == len(table)
    assert cohort.num_patients == NUM_PATIENTS
    severity = cohort.encoded("score:severity")
    assert np.nanmin(severity) >= 0
    assert np.isnan(severity).sum() == (table["severity"] == SEVERITY_MISSING).sum()
    assert cohort.labels("disease").classes == ("0", "1")
    assert cohort.labels("findings").classes == ("effusion", "fibrosis", "no finding", "nodule")
    assert set(cohort.split) == {"train", "val", "test"}
    assert cohort.image_path(0).is_file()


def test_rows_are_patients_visits_sides_and_modalities(table: pd.DataFrame, truth: pd.DataFrame) -> None:
    assert list(table["image"]) == list(truth["image"])
    assert table["image"].is_unique
    counts = table.groupby(["patient", "visit"]).size()
    assert (counts == 4).all()
    assert not table.assign(side=truth["side"]).duplicated(["patient", "visit", "side", "modality"]).any()
    assert set(table.groupby("patient")["visit"].max()) == {1, 2, 3}
    days = truth.assign(patient=table["patient"], visit=table["visit"]).groupby(["patient", "visit"])["days"].first()
    first, gaps = days.xs(1, level="visit"), days.groupby("patient").diff().dropna()
    assert (first == 0).all()
    assert gaps.min() >= 30
    assert gaps.nunique() > 5  # irregular


def test_share_of_missing_values(folder: Path, table: pd.DataFrame, tmp_path: Path) -> None:
    for column in OPTIONAL:
        gaps = table["severity"] == SEVERITY_MISSING if column == "severity" else table[column].isna()
        if column in {"age", "sex", "site"}:
            assert gaps.groupby(table["patient"]).first().sum() == np.ceil(0.1 * NUM_PATIENTS)
        else:
            assert gaps.sum() == np.ceil(0.1 * len(table))
    kept = [column for column in table.columns if column not in OPTIONAL]
    assert kept == ["image", "patient", "visit", "modality"]
    assert table[kept].notna().all(axis=None)
    whole = pd.read_csv(make_phantom(tmp_path, num_patients=3, size=16, missing=0))
    assert whole.notna().all(axis=None)
    assert (whole["severity"] >= 0).all()


def test_known_values_are_the_truth(table: pd.DataFrame, truth: pd.DataFrame) -> None:
    for column in ("days", "side", "phase", "site", "sex", "findings", "slice_position"):
        known = table[column].notna()
        assert (table.loc[known, column] == truth.loc[known, column]).all()
    known = table["severity"] != SEVERITY_MISSING
    assert np.allclose(table.loc[known, "severity"], truth.loc[known, "severity"])
    assert (table["age"] - truth["age"]).abs().max() < 0.051
    known = table["disease"].notna()
    wrong = (table.loc[known, "disease"] != truth.loc[known, "disease_true"]).mean()
    assert 0.01 < wrong < 0.2  # labels have errors
    assert ((truth["disease_latent"] > 0.4) == truth["disease_true"].astype(bool)).all()


def test_depths_of_the_two_modalities(folder: Path, table: pd.DataFrame) -> None:
    deepest = {"MR": 0, "XR": 0}
    for name, modality in zip(table["image"], table["modality"], strict=True):
        pixels = read(folder / name)
        assert pixels.shape == (48, 48)
        assert pixels.dtype == (np.uint16 if modality == "MR" else np.uint8)
        deepest[modality] = max(deepest[modality], int(pixels.max()))
    assert 2048 <= deepest["MR"] <= 4095  # twelve bits, no fewer and no more
    assert 128 <= deepest["XR"] <= 255


def test_masks_fit_their_pictures(folder: Path, table: pd.DataFrame, truth: pd.DataFrame) -> None:
    for row in range(0, len(table), 3):
        picture = read(folder / table["image"][row]).astype(float)
        mask = read(folder / table["image"][row].replace("images", "masks"))
        assert mask.shape == picture.shape
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 1, 2}
        assert 0.05 < (mask > 0).mean() < 0.9
        darker = table["modality"][row] == "MR"
        assert (picture[mask == 1].mean() < picture[mask == 0].mean()) == darker
        if truth["severity"][row] >= 4:
            assert (mask == 2).any()
    known = table["mask"].dropna()
    assert all((folder / name).is_file() for name in known)


def one(**given: float) -> module.Anatomy:
    """The first row's anatomy with some fields set to a value, and no positioning."""
    anatomy = module._sample(8, 0)[2].take(slice(0, 1))
    given = {"tilt": 0.0, "shift": 0.0, "effusion": 0.0, **given}
    return module.replace(anatomy, **{name: np.full_like(getattr(anatomy, name), v) for name, v in given.items()})


@pytest.mark.parametrize("dark_organ", [0.0, 1.0])
def test_severity_brightens_pixels_monotonically(dark_organ: float) -> None:
    clean = module._draw(one(severity=0, dark_organ=dark_organ), 64, None)[0]
    totals, areas = [0.0], [0]
    for severity in np.arange(1, 10.5, 0.5):
        picture, mask = module._draw(one(severity=severity, dark_organ=dark_organ), 64, None)
        assert (picture - clean).min() > -1e-6  # no pixel gets darker
        totals.append(float((picture - clean).sum()))
        areas.append(int((mask == 2).sum()))
    assert (np.diff(totals) > 0).all()
    assert (np.diff(areas) >= 0).all()
    assert areas[-1] > 100


def test_severity_shows_in_the_lesions_of_the_cohort(folder: Path, truth: pd.DataFrame) -> None:
    shares = []
    for name in truth["image"]:
        mask = read(folder / name.replace("images", "masks"))
        shares.append((mask == 2).sum() / (mask > 0).sum())
    assert truth["severity"].corr(pd.Series(shares), method="spearman") > 0.85
    assert truth["severity"].corr(truth["disease_latent"], method="spearman") > 0.85


@pytest.mark.parametrize("dark_organ", [0.0, 1.0])
def test_the_sides_are_mirror_images(dark_organ: float) -> None:
    given = {"severity": 6.0, "dark_organ": dark_organ}
    right, right_mask = module._draw(one(mirror=1, **given), 64, None)
    left, left_mask = module._draw(one(mirror=-1, **given), 64, None)
    assert np.allclose(right, left[:, :, ::-1], atol=1e-4)
    assert (right_mask != left_mask[:, :, ::-1]).mean() < 0.002
    assert np.abs(right - left).max() > 0.1  # and not symmetric


def test_left_is_mirrored_in_the_files(folder: Path, truth: pd.DataFrame) -> None:
    outlines = {
        side: np.mean(
            [read(folder / n.replace("images", "masks")) > 0 for n in truth["image"][truth["side"] == side]], axis=0
        )
        for side in ("left", "right")
    }
    mirrored = np.abs(outlines["left"][:, ::-1] - outlines["right"]).mean()
    assert mirrored < 0.8 * np.abs(outlines["left"] - outlines["right"]).mean()


def test_phase_and_slice_change_the_size(folder: Path, truth: pd.DataFrame) -> None:
    area = pd.Series([(read(folder / n.replace("images", "masks")) > 0).sum() for n in truth["image"]])
    middle = (truth["slice_position"] - 0.5).abs() < 0.2
    by_phase = area.groupby(truth["phase"]).mean()
    assert by_phase["full"] > 1.2 * by_phase["empty"]
    assert area[middle].mean() > 1.1 * area[~middle].mean()


def test_age_coarsens_the_texture_and_sex_does_nothing() -> None:
    table, _, anatomy = module._sample(60, 1)
    assert np.corrcoef(anatomy.grain, table["age"])[0, 1] > 0.95
    young, old = (one(grain=grain, severity=0.0, fibrosis=0.0) for grain in (0.015, 0.07))
    spread = [module._draw(a, 64, np.random.default_rng(0))[0] for a in (young, old)]
    inside = module._draw(young, 64, None)[1] == 1
    assert spread[1][inside].std() > 1.1 * spread[0][inside].std()
    by_sex = pd.Series(anatomy.brightness).groupby(table["sex"]).mean()
    assert abs(by_sex["F"] - by_sex["M"]) < 0.02
    assert "sex" not in {field.name for field in module.fields(module.Anatomy)}


def test_the_site_is_a_shortcut() -> None:
    table, truth, anatomy = module._sample(400, 0)
    south = truth["site"] == "south"
    assert anatomy.brightness[south].mean() - anatomy.brightness[~south].mean() > 0.03
    assert truth["disease_true"][south].mean() > truth["disease_true"][~south].mean() + 0.1
    assert (table.groupby("patient")["site"].nunique() == 1).all()


@pytest.mark.parametrize(
    ("given", "named"), [({"num_patients": 1}, "num_patients"), ({"size": 8}, "size"), ({"missing": 1.0}, "missing")]
)
def test_arguments_out_of_range(tmp_path: Path, given: dict[str, float], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        make_phantom(tmp_path, **given)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
