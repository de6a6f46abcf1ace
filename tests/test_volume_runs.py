"""Volumes from a table to a judged encoder: training, windows averaged, evaluation, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch

import bolus
from bolus.data.cohort.cohort import Cohort
from bolus.data.views.samples import count_views, whole_views
from bolus.embedding.opening import open_encoder, open_store, samples_of
from bolus.errors import EvaluationError, RecipeError
from bolus.evaluation.settings import Judging
from bolus.evaluation.tasks import judge, task_of
from bolus.recipe import Recipe
from bolus.run import Run
from bolus.training.loaders import data_hash, total_steps
from bolus.training.rehearsal import dry_run, rehearse

pytest.importorskip("blosc2", reason="the package blosc2 is not installed")

SIDE, NUMBER = 32, 12
KEYS = [
    "images={unit: volume, size: [16, 32, 32], augment: {preset: ct, blur: 0, low_resolution: 0}}",
    "encoder={backbone: unet3d2}",
    "sampling={batch_size: 4}",
    "training={epochs: 1, health_epochs: null}",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve balls in noise, 32 voxels along each axis, whose size is a score."""
    folder, rng = tmp_path_factory.mktemp("volumes"), np.random.default_rng(0)
    grid = np.moveaxis(np.mgrid[:SIDE, :SIDE, :SIDE], 0, -1)
    rows = []
    for number in range(NUMBER):
        score = 40 + 3 * number
        away = np.linalg.norm(grid - rng.uniform(11, 20, 3), axis=-1)  # patients' middle slices are no copies
        ball = 800 * (away < 4 + number / 2) + rng.normal(100, 20, (SIDE, SIDE, SIDE))
        image = nibabel.Nifti1Image(ball.clip(0).astype(np.int16).T, np.diag([1.0, 1.0, 2.0, 1.0]))
        nibabel.save(image, folder / f"{number}.nii.gz")
        side = ("train", "train", "val", "train", "train", "test")[number % 6]
        rows.append(
            {"image": f"{number}.nii.gz", "patient": f"p{number}", "modality": "MR", "age": score, "split": side}
        )
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    return folder


def cohort(folder: Path) -> Cohort:
    return Cohort.open(folder / "table.csv", roles={"score:age": "age"})


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return bolus.pretrain(
        cohort(folder), recipe="simclr", out=folder / "run", overrides=KEYS, cache=folder / "cache", quiet=True
    )


def test_simclr_of_volumes_is_trained_embedded_and_judged(folder: Path, run: Run) -> None:
    assert run.status == "finished"
    assert run.record["num_training_samples"] == 8
    assert "16 x 32 x 32 voxels" in (run.encoder / "README.md").read_text(encoding="utf-8")
    frame = bolus.embed(run.folder, cohort(folder), cache=folder / "cache")
    assert frame["row"].tolist() == list(range(1, NUMBER + 1))
    assert frame["rows"].tolist() == [1] * NUMBER
    assert np.isfinite(np.stack(frame["embedding"].tolist())).all()
    judging = Judging(cache=folder / "cache", out=folder / "judged", quiet=True)
    outcome = judge(task_of("regress", {"target": "age", "probes": ["linear"]}), run.folder, cohort(folder), judging)
    found = {result.encoder for result in outcome.results if result.metric == "mae"}
    assert {"run", "random-init"} <= found


def test_an_embedding_is_the_mean_over_windows_that_cover_the_volume(folder: Path, run: Run) -> None:
    judged = open_encoder(run.folder)
    samples = samples_of(judged, cohort(folder))
    store = open_store(judged, samples.cohort, cache=folder / "cache")
    positions = np.array([7, 2])
    assert samples.unit == "volume"
    assert count_views(judged.preprocessing, store, samples, positions).tolist() == [2, 2]
    views = whole_views(judged.preprocessing, store, samples, positions, step=3, device=torch.device("cpu"))
    windows = torch.cat([view for view, _ in views])
    whole = store.gather(positions).unit()
    assert torch.equal(windows.view(2, 2, 1, 16, SIDE, SIDE), torch.stack([whole[:, :, :16], whole[:, :, 16:]], dim=1))
    with torch.inference_mode():
        pooled = judged.encoder.eval()(windows).pooled
    shown = bolus.preprocess([folder / "7.nii.gz", folder / "2.nii.gz"], judged, modality="MR")
    assert torch.equal(shown, windows)
    given = judged.embed([folder / "7.nii.gz", folder / "2.nii.gz"], modality="MR")
    assert np.allclose(given, pooled.view(2, 2, -1).mean(1).numpy(), atol=1e-6)


def test_a_batch_is_windows_drawn_by_seed_number_and_sample(folder: Path) -> None:
    recipe = Recipe.load("simclr").override(KEYS)
    begun = rehearse(cohort(folder), recipe, batches=2, cache=folder / "cache")
    loader = begun.loader
    first, again, other = (
        loader.batch(loader.fetch(number), device=torch.device("cpu"), progress=0.0)[0].views["MR"]
        for number in (0, 0, 1)
    )
    assert first.shape == (2, 4, 1, 16, 32, 32)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    fetched = loader.fetch(0).stored["MR"]
    assert fetched.values.shape == (4, 1, 20, 32, 32)  # an eighth more on both sides, where the volume goes on
    assert data_hash(begun.cohort, loader) == data_hash(begun.cohort, loader)
    assert total_steps(recipe, loader) == 2


def test_the_dry_run_tells_memory_and_time(folder: Path) -> None:
    found = dry_run(cohort(folder), recipe="simclr", overrides=KEYS, cache=folder / "cache")
    assert found.steps == 2
    assert found.images_per_second > 0
    assert found.memory_gib > 0


REFUSED: list[tuple[list[str], str]] = [
    (["encoder.backbone=r18w32"], "r18w32 is of images, and images.unit is volume"),
    (["images={unit: image, size: 32}"], "unet3d2 is of volumes, and images.unit is image"),
    (["images.unit=image"], "images: a size of three numbers: only for volumes, and unit is image"),
    (["images.fit=stretch", "images.spacing=1"], "fit stretch squeezes a volume whatever its spacing"),
    (["images.size=[16, 32, 4]"], "images.size.2: Input should be greater than or equal to 8"),
    (["images.spacing=0"], "images.spacing: Input should be greater than 0"),
]


@pytest.mark.parametrize(("keys", "message"), REFUSED)
def test_what_does_not_go_together_is_refused(folder: Path, keys: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message.replace("[", r"\[")):
        dry_run(cohort(folder), recipe=Recipe.load("simclr").override(KEYS).override(keys), cache=folder / "cache")


def test_images_have_no_spacing_and_keep_their_hashes() -> None:
    recipe = Recipe.load("simclr")
    assert recipe.digest == "d0e70d726500"  # as it was before there were volumes
    with pytest.raises(RecipeError, match="spacing: only for volumes, and unit is image"):
        recipe.override(["images.spacing=1"])
    assert Recipe.load(_data(recipe.override([*KEYS, "images.spacing=[2, 1, 1]"]))).images.steps == (2.0, 1.0, 1.0)


def _data(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json")


def test_masks_need_their_column(folder: Path, run: Run) -> None:
    with pytest.raises(EvaluationError, match="no column has the role mask"):
        judge(task_of("segment"), run.folder, cohort(folder), Judging(cache=folder / "cache"))
