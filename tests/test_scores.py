"""Objectives on scores: what they take from the table, what they leave out, and runs of their recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bolus.data.batches.batch import Batch
from bolus.data.batches.columns import TrainingColumns
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.encoders.features import Features, FeatureShape
from bolus.errors import CohortError, RecipeError, UsageError
from bolus.objectives import build_objectives
from bolus.objectives.base import Objective
from bolus.objectives.scores.predict import Predict
from bolus.objectives.scores.score import ScoreContrast, score_contrast_loss
from bolus.objectives.scores.supremix import SupReMix, supremix_loss
from bolus.optimization import lr_factor
from bolus.recipe import Recipe, ScheduleSpec
from bolus.seeds import seed_for
from bolus.training.assembly import build_model
from bolus.training.loaders import build_loader, open_images
from bolus.training.loop import pretrain
from bolus.training.processes import launched

SHAPE = FeatureShape(dim=6, grid_channels=6, grid_stride=32)
AGES = {"score:age": np.array([40.0, 44.0, 52.0, 70.0, np.nan])}
TINY = ["encoder.backbone=r18w32", "images.size=24", "sampling.batch_size=8", "training.epochs=2"]


def batch(num: int, **columns: Any) -> Batch:
    found = {name.replace("__", ":"): torch.as_tensor(values) for name, values in columns.items()}
    return Batch({}, {}, {"sample": torch.arange(num), **found}, seed=7)


def features(num: int, views: int = 2) -> Features:
    generator = torch.Generator().manual_seed(0)
    return Features(torch.randn(views, num, 6, generator=generator, dtype=torch.float32).requires_grad_())


def run(objective: Objective, found: Features, seen: Batch) -> tuple[Tensor, int]:
    loss = objective.loss(objective.embed(found, seen), seen)
    return loss.value, loss.num_anchors


# What the training samples tell


def table(**columns: list[Any]) -> Cohort:
    num = len(next(iter(columns.values())))
    frame = pd.DataFrame(
        {"image": [f"{i}.png" for i in range(num)], "patient": [f"p{i}" for i in range(num)], **columns}
    )
    roles = {"score:age": "age", "label:finding": "finding"}
    return Cohort(frame, CohortSpec(table="t.csv", roles={k: v for k, v in roles.items() if v in columns}))


def test_only_training_samples_are_shown() -> None:
    cohort = table(age=[1, 2, 300, 400], split=["train", "train", "val", "test"])
    columns = TrainingColumns(cohort.samples("image"))
    assert columns["score:age"].tolist() == [1, 2]
    assert "image" not in columns
    assert set(columns) == {"patient", "split", "score:age"}
    assert len(columns) == 3
    with pytest.raises(KeyError):
        columns["score:height"]


def test_a_label_with_several_classes_on_a_row_is_refused() -> None:
    cohort = table(finding=["edema|mass", "mass"], split=["train", "train"])
    with pytest.raises(CohortError, match="label:finding holds several classes on a row"):
        TrainingColumns(cohort.samples("image"))["label:finding"]


@pytest.mark.parametrize("kind", [SupReMix, ScoreContrast, Predict])
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, r"name the score, as targets?=score:NAME; the cohort has no role score:NAME"),
        ({"score:a": np.arange(3.0), "score:b": np.arange(3.0)}, "the cohort has score:a, score:b"),
        ({"score:a": np.full(3, 2.0)}, "score:a is 2 in every training sample"),
        ({"score:a": np.full(3, np.nan)}, "score:a is missing in every training sample"),
    ],
)
def test_a_score_that_cannot_be_learnt_is_an_error(kind: Any, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        kind(SHAPE, columns)


def test_wrong_targets_are_named() -> None:
    with pytest.raises(RecipeError, match=r"no column has the role 'score:agee'.*did you mean 'score:age'"):
        SupReMix(SHAPE, AGES, targets=["score:agee"])
    with pytest.raises(RecipeError, match="holds categories, where a score is a number"):
        ScoreContrast(SHAPE, {"label:sick": np.array([0, 1])}, target="label:sick")
    with pytest.raises(RecipeError, match="fewer than two classes"):
        Predict(SHAPE, {"label:sick": np.array([1, 1, -1])}, targets=["label:sick"])
    with pytest.raises(RecipeError, match="different roles"):
        Predict(SHAPE, AGES, targets=["score:age", "score:age"])
    with pytest.raises(RecipeError, match="hidden: 8 is the width of a layer in a head, and without dim there is none"):
        ScoreContrast(SHAPE, AGES, hidden=8)


# SupReMix


def test_supremix_is_its_loss_over_the_rows_of_all_views() -> None:
    objective = SupReMix(SHAPE, AGES, window=20.0, dim=4)
    seen, found = batch(4, score__age=torch.tensor([40.0, 44.0, torch.nan, 52.0])), features(4)
    z = objective.embed(found, seen)["z"]
    y = seen.columns["score:age"].repeat(2)
    generator = torch.Generator().manual_seed(seed_for(7, objective.name))
    expected = supremix_loss(z.flatten(0, 1), y, window=20.0, generator=generator)
    loss = objective.loss({"z": z}, seen)
    assert loss.value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.num_anchors == 6
    assert loss.counts == {"real_positives": 6, "mixed_positives": 2 * 2 * 2}  # of 44, between two 40s and two 52s


def test_several_targets_are_standardised_on_training_samples() -> None:
    columns = {"score:a": np.array([0.0, 2.0]), "score:b": np.array([100.0, 300.0])}
    objective = SupReMix(SHAPE, columns, targets=["score:a", "score:b"], window=3.0, dim=4, mix_negatives=False)
    seen, found = batch(3, score__a=[0.0, 1.0, 2.0], score__b=[100.0, 150.0, 300.0]), features(3)
    z = objective.embed(found, seen)["z"]
    y = torch.tensor([[-1.0, -1.0], [0.0, -0.5], [1.0, 1.0]], dtype=torch.float64).repeat(2, 1)
    expected = supremix_loss(z.flatten(0, 1), y, window=3.0, mix_negatives=False)
    assert objective.loss({"z": z}, seen).value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert [relation.near for relation in objective.needs.relations] == [("score:a", 3.0), ("score:b", 300.0)]


def test_other_patients_only_leaves_views_of_a_sample() -> None:
    objective = SupReMix(SHAPE, AGES, window=20.0, dim=4, negatives="other_patients", mix_negatives=False)
    assert "patient" in objective.needs.roles
    seen, found = batch(3, score__age=[40.0, 44.0, 52.0], patient=[0, 0, -1]), features(3)
    z = objective.embed(found, seen)["z"]
    valid = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 1]], dtype=torch.bool).repeat(2, 2)
    y = seen.columns["score:age"].repeat(2)
    expected = supremix_loss(z.flatten(0, 1), y, window=20.0, mix_negatives=False, valid=valid)
    assert objective.loss({"z": z}, seen).value.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("kind", [SupReMix, ScoreContrast, Predict])
def test_a_batch_without_scores_is_exactly_zero(kind: Any) -> None:
    objective, found = kind(SHAPE, AGES), features(3)
    value, anchors = run(objective, found, batch(3, score__age=[torch.nan] * 3))
    value.backward()
    assert (value.item(), anchors) == (0.0, 0)
    assert found.pooled.grad is not None
    assert torch.equal(found.pooled.grad, torch.zeros_like(found.pooled))


# LEARNER's contrast


def test_score_contrast_uses_the_training_range_and_no_other_view_of_a_sample() -> None:
    objective = ScoreContrast(SHAPE, AGES, threshold=0.2)
    assert float(objective.score_range) == 30.0
    seen, found = batch(3, score__age=[40.0, 45.0, 60.0]), features(3)
    assert objective.needs.relations[0].near == ("score:age", 6.0)
    other = ~torch.eye(3, dtype=torch.bool).repeat(2, 2)
    expected = score_contrast_loss(
        found.pooled.flatten(0, 1), seen.columns["score:age"].repeat(2), threshold=0.2, score_range=30.0, valid=other
    )
    value, anchors = run(objective, found, seen)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert anchors == 4  # nobody is within 6 years of 60


def test_between_patients_only() -> None:
    objective = ScoreContrast(SHAPE, AGES, threshold=0.2, inter_patient_only=True)
    assert objective.needs.relations[0].differ == ("patient",)
    seen = batch(4, score__age=[40.0, 45.0, 60.0, 41.0], patient=[0, 0, 1, 2])
    found = features(4, views=1)
    patient = seen.columns["patient"]
    expected = score_contrast_loss(
        found.pooled[0], seen.columns["score:age"], threshold=0.2, score_range=30.0, valid=patient[:, None] != patient
    )
    assert run(objective, found, seen)[0].item() == pytest.approx(expected.item(), rel=1e-6)


# Prediction


def test_predict_equals_loops_over_what_is_known() -> None:
    columns = {**AGES, "label:kind": np.array([0, 2, 1, -1, 2])}
    objective = Predict(SHAPE, columns, targets=["score:age", "label:kind"], hidden=5)
    seen = batch(4, score__age=torch.tensor([50.0, torch.nan, 60.0, 41.0]), label__kind=[2, -1, 0, 1])
    found = features(4)
    outputs = objective.head(objective.trunk(found.pooled)).detach()
    known = AGES["score:age"][:4]
    squares = [
        float((outputs[v, n, 0] - (age - known.mean()) / known.std()) ** 2)
        for v in range(2)
        for n, age in enumerate(seen.columns["score:age"].tolist())
        if np.isfinite(age)
    ]
    entropies = [
        float(F.cross_entropy(outputs[v, n, 1:][None], torch.tensor([code])))
        for v in range(2)
        for n, code in enumerate(seen.columns["label:kind"].tolist())
        if code >= 0
    ]
    value, anchors = run(objective, found, seen)
    assert value.item() == pytest.approx((np.mean(squares) + np.mean(entropies)) / 2, rel=1e-5)
    assert anchors == 6
    value.backward()
    assert found.pooled.grad is not None
    assert found.pooled.grad[:, 1].abs().max() == 0
    assert found.pooled.grad.isfinite().all()


def test_a_class_that_training_lacks_counts_as_missing() -> None:
    objective = Predict(SHAPE, {"label:kind": np.array([0, 1])}, targets=["label:kind"])
    value, anchors = run(objective, features(2, views=1), batch(2, label__kind=[2, 2]))
    assert (value.item(), anchors) == (0.0, 0)


# The schedule, the batches and whole runs


def test_the_step_schedule_falls_by_a_factor() -> None:
    spec = ScheduleSpec(kind="step", every_epochs=2, factor=0.1)
    found = [lr_factor(spec, step, total_steps=15, steps_per_epoch=3) for step in (0, 5, 6, 12)]
    assert found == pytest.approx([1.0, 1.0, 0.1, 0.01])


def test_partners_lie_near_the_anchor_on_both_sides(tiny_cohort: Path, tmp_path: Path) -> None:
    keys = [*TINY, "objectives.supremix.window=0.6", "sampling={batch_size: 9, partners: 2}"]
    recipe, cohort = Recipe.load("supremix").override(keys), Cohort.open(tiny_cohort)
    samples = cohort.samples("image")
    model = build_model(recipe, torch.device("cpu"), TrainingColumns(samples))
    store = open_images(cohort, recipe, tmp_path / "cache", True)
    loader = build_loader(cohort, samples, store, recipe, model.needs, launched())
    score = cohort.encoded("score:severity")[loader.positions]
    (index,) = loader.sampler.indexes
    for anchor in np.flatnonzero(np.isfinite(score)):
        drawn = index.draw_each(np.array([anchor]), 2, np.random.default_rng(0))[0]
        assert (np.abs(score[drawn] - score[anchor]) <= 0.6).all()
    for number in range(4):
        drawn = loader.sampler.batch(0, number)
        anchors = loader.sampler.anchors(0, number)
        anchors = anchors[np.isfinite(score[anchors])]
        gaps = np.abs(score[drawn][None] - score[anchors][:, None])
        assert ((gaps <= 0.6).sum(1) >= 2).all()  # itself and a partner at the least


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("supremix", ["objectives.supremix.window=1.0"]),
        ("supcon", ["objectives.supcon.relation=label:sick", "optimizer={kind: adamw}"]),
        ("supervised", ["objectives.predict.targets=[score:severity, label:sick]"]),
        ("learner", ["images.unit=image", "encoder.neck=8", "encoder.temporal_shift=null"]),
    ],
)
def test_recipes_train(tiny_cohort: Path, tmp_path: Path, name: str, keys: list[str]) -> None:
    found = pretrain(tiny_cohort, recipe=name, out=tmp_path / "run", cache=tmp_path / "cache", quiet=True,
                     overrides=[*TINY, "training.log_steps=1", *keys])  # fmt: skip
    lines = [line for line in found.metrics() if line["kind"] == "train"]
    assert all(np.isfinite(list(line["losses"].values())).all() for line in lines)
    assert all(count["anchors"] > 0 for line in lines for count in line["counts"].values())
    assert found.status == "finished"


@pytest.mark.slow
def test_resuming_supremix_is_exact(tiny_cohort: Path, tmp_path: Path) -> None:
    keys = [*TINY, "objectives.supremix.window=1.0", "training.health_epochs=null", "training.log_steps=1"]
    folders = [tmp_path / "whole", tmp_path / "stopped"]
    whole = pretrain(
        tiny_cohort, recipe="supremix", out=folders[0], cache=tmp_path / "cache", overrides=keys, quiet=True
    )
    for attempt in range(100):
        part = pretrain(
            tiny_cohort, recipe="supremix", out=folders[1], cache=tmp_path / "cache", quiet=True, resume=attempt > 0,
            overrides=[*keys, "training.max_hours=1e-9"],
        )  # fmt: skip
        if part.status == "finished":
            break
    assert attempt > 2
    assert part.record["weights"] == whole.record["weights"]


def test_a_relation_on_a_label_with_several_classes_is_refused(tiny_cohort: Path, tmp_path: Path) -> None:
    table = tiny_cohort.with_name("table.csv")
    table.write_text(table.read_text().replace("yes", "yes|more"))
    with pytest.raises(CohortError, match="label:sick holds several classes on a row"):
        pretrain(tiny_cohort, recipe="supcon", out=tmp_path / "run", cache=tmp_path / "cache", quiet=True,
                 overrides=[*TINY, "objectives.supcon.relation=label:sick"])  # fmt: skip


def test_objectives_know_their_names_and_draw_by_them() -> None:
    keys = {"kind": "supremix", "dim": 4, "hidden": 4}
    recipe = Recipe.load({"name": "two", "objectives": {"a": keys, "b": keys}})
    found = build_objectives(recipe, SHAPE, AGES, seed=0)
    assert [objective.name for objective in found.values()] == ["a", "b"]
    seen, z = batch(3, score__age=[40.0, 44.0, 52.0]), {"z": F.normalize(torch.randn(2, 3, 4), dim=2)}
    assert found["a"].loss(z, seen).value != found["b"].loss(z, seen).value


def test_numbers_out_of_range_are_refused_in_an_own_loop() -> None:
    u, s = torch.randn(3, 2), torch.tensor([1.0, 2.0, 3.0])
    for keys in ({"threshold": -0.1}, {"threshold": 1.1}, {"score_range": 0.0}, {"score_range": float("nan")}):
        with pytest.raises(UsageError, match=next(iter(keys))):
            score_contrast_loss(u, s, **keys)
    with pytest.raises(UsageError, match="mix_weights"):
        supremix_loss(u, s, mix_weights=torch.full((3, 3), torch.nan))


def test_a_window_over_the_whole_range_is_said(caplog: pytest.LogCaptureFixture) -> None:
    SupReMix(SHAPE, AGES, window=20.0, dim=4)
    assert not caplog.records
    SupReMix(SHAPE, AGES, window=31.0, dim=4)
    assert "covers the whole range of score:age" in caplog.text
