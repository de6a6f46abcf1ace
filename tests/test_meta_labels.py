"""Meta labels from the recipe to the batch: bins reach it, and what teaches nothing is refused before any image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from bolus.data.batches.columns import TrainingColumns
from bolus.data.batches.loading import Loader
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.errors import CohortError, RecipeError
from bolus.recipe import Recipe
from bolus.training.assembly import build_model
from bolus.training.loaders import unread_loader

PATIENTS, PHASES, SLICES = 6, ("ED", "ES"), 8


@pytest.fixture
def cohort() -> Cohort:
    """Six patients with two phases of eight slices; nothing but the order says where a slice lies."""
    rows = [
        {"image": f"{p}-{phase}-{s}.png", "patient": f"p{p}", "phase": phase, "order": 10 * s, "split": "train"}
        for p in range(PATIENTS)
        for phase in PHASES
        for s in range(SLICES)
    ]
    table = pd.DataFrame(rows)
    table["id"] = np.arange(len(table)).astype(str)
    table["centre"] = "here"
    roles = {"label:id": "id", "site": "centre"}
    return Cohort(table, CohortSpec(table="t.csv", roles=roles))


def loader_of(cohort: Cohort, tmp_path: Path, *keys: str) -> Loader:
    recipe = Recipe.load("gcl").override(["encoder.backbone=unet1", "images.size=16", "sampling.batch_size=16", *keys])
    model = build_model(recipe, torch.device("cpu"), TrainingColumns(cohort.samples("slice"), recipe.bins))
    return unread_loader(cohort, recipe, model.needs, tmp_path)


def test_every_meta_label_of_gcl_has_positives_in_every_batch(cohort: Cohort, tmp_path: Path) -> None:
    loader = loader_of(cohort, tmp_path)
    for number in range(loader.batches_per_epoch):
        drawn = loader.draw(number)
        for role in ("patient", "bin:slice_position", "phase"):
            codes = loader.columns[role][drawn]
            assert len(np.unique(codes)) < len(codes)


def test_bins_of_a_derived_position_are_quarters_of_the_volume(cohort: Cohort, tmp_path: Path) -> None:
    codes = loader_of(cohort, tmp_path).columns["bin:slice_position"].reshape(PATIENTS * len(PHASES), SLICES)
    assert (codes == [0, 0, 1, 1, 2, 2, 3, 3]).all()


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        (("objectives.phase.relation=label:id",), RecipeError, "label:id is unique to every training sample"),
        (("objectives.phase.relation=site",), RecipeError, "site is the same for every training sample"),
        (("bins={}",), RecipeError, r"add bins=\{slice_position: 4\}"),
        (("bins.slice_positon=4",), RecipeError, "'slice_positon' is no role of a number.*slice_position"),
        (("bins.slice_position=1",), RecipeError, "at least 2 bins"),
        (("objectives.phase.relation=region",), CohortError, "'region'"),
        (
            ("objectives.phase.relation={same: [patient, phase], within: {order: 5}}",),
            RecipeError,
            "no two training samples are related by: same patient, same phase, order at most 5 apart",
        ),
    ],
    ids=["unique", "constant", "undeclared", "misspelt", "one bin", "no column", "never met"],
)
def test_what_teaches_nothing_is_refused_before_an_image_is_read(
    cohort: Cohort, tmp_path: Path, keys: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        loader_of(cohort, tmp_path, *keys)
