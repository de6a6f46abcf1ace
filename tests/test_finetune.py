"""Fine-tuning: the loss, what may influence what, determinism, and what is left alone."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image as PillowImage

from bolus.data.cohort.cohort import Cohort, Samples
from bolus.data.cohort.spec import CohortSpec
from bolus.data.images.cache import ImageStore, Preprocessing, build_store
from bolus.data.views.presets import resolve
from bolus.embedding.vectors import embed_samples
from bolus.encoders.backbone import Encoder
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import load_encoder
from bolus.errors import EvaluationError, UsageError
from bolus.evaluation.probing import finetune as f
from bolus.evaluation.probing.heads import Head
from bolus.evaluation.statistics.metrics import auroc
from bolus.recipe import AugmentSpec, EncoderSpec

NUM, SIZE = 48, 16
POSITIONS = np.arange(NUM)
TRAIN, VAL, TEST = POSITIONS[:24], POSITIONS[24:36], POSITIONS[36:]


# --- the loss


def loss_by_loop(raw, target, task, weights=None):
    total, count = 0.0, 0
    for row, value in zip(raw.tolist(), target.tolist(), strict=True):
        if math.isnan(value):
            continue
        if task == "regress":
            loss = (row[0] - value) ** 2
        else:
            logits = row if len(row) > 1 else [0.0, row[0]]
            loss = math.log(sum(math.exp(each) for each in logits)) - logits[int(value)]
            loss *= 1.0 if weights is None else weights[int(value)]
        total, count = total + loss, count + 1
    return total / count


@pytest.mark.parametrize(("task", "outputs"), [("classify", 1), ("classify", 4), ("regress", 1)])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_equals_a_loop(task, outputs, weighted):
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(12, outputs, generator=generator, dtype=torch.float64)
    target = torch.randint(max(2, outputs), (12,), generator=generator).double()
    target[3] = torch.nan
    weights = torch.linspace(0.5, 2.0, max(2, outputs), dtype=torch.float64) if weighted else None
    found = f.target_loss(raw, target, task=task, class_weights=weights)
    expected = loss_by_loop(raw, target, task, None if weights is None else weights.tolist())
    assert found.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("task", ["classify", "regress"])
def test_a_batch_without_targets_is_exactly_nothing(task):
    raw = torch.full((3, 1), 1e4, requires_grad=True)
    loss = f.target_loss(raw, torch.full((3,), torch.nan), task=task)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(raw.grad, torch.zeros(3, 1))
    raw = torch.full((2, 1), 1e4, requires_grad=True)
    f.target_loss(raw, torch.tensor([0.0, torch.nan]), task=task).backward()
    assert torch.isfinite(raw.grad).all()
    assert raw.grad[1].item() == 0.0


def test_the_mild_augmentation_is_within_the_pretraining_one():
    for preset in ("none", "xray", "fundus", "ultrasound", "mri"):
        full, toned = resolve(AugmentSpec(preset=preset)), resolve(f.mild(AugmentSpec(preset=preset)))
        assert full.crop_scale[0] <= toned.crop_scale[0]
        for key in ("rotation", "brightness", "contrast", "saturation", "hue", "blur", "noise"):
            assert getattr(toned, key) <= getattr(full, key)
    assert resolve(f.mild(AugmentSpec(preset="none"))) == resolve(AugmentSpec(preset="none"))
    assert f.mild(AugmentSpec(preset="xray", flip_horizontal=0.5)).flip_horizontal == 0.5


# --- training


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageStore, Samples, np.ndarray]:
    """Small noisy pictures; a number is the brightness of a square in them."""
    folder, r = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    number = r.permutation(np.linspace(0, 1, NUM))
    for row in range(NUM):
        pixels = r.integers(0, 60, (SIZE, SIZE))
        pixels[4:12, 4:12] += int(180 * number[row])
        PillowImage.fromarray(pixels.astype(np.uint8)).save(folder / f"{row}.png")
    table = pd.DataFrame({"image": [f"{row}.png" for row in range(NUM)], "patient": [f"p{row}" for row in range(NUM)]})
    cohort = Cohort(table, CohortSpec(table="t.csv", roles={}), folder)
    store = build_store(cohort, Preprocessing(SIZE, 1), folder=folder / "cache")
    return store, cohort.samples("image"), number


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return build_encoder(EncoderSpec(backbone="r18w32", stem_pool=False), seed=0)


def fit(encoder, pictures, y=None, **changes):
    store, samples, number = pictures
    spec = f.FinetuneSpec(**({"epochs": 3, "batch_size": 8, "whole": False} | changes.pop("spec", {})))
    given = {"train": TRAIN, "val": VAL, "held": np.concatenate([VAL, TEST]), "task": "regress"} | changes
    return f.fit_finetuned(encoder, store, samples, number if y is None else y, spec=spec, **given)


@pytest.mark.slow
def test_whole_training_learns_what_is_planted(encoder, pictures):
    number = pictures[2]
    found = fit(encoder, pictures, spec={"epochs": 20, "whole": True})
    assert found.predictions.shape == (24,)
    constant = np.abs(number[TEST] - np.median(number[TRAIN])).mean()
    assert np.abs(found.predictions[12:] - number[TEST]).mean() < 0.6 * constant
    sick = (number > 0.5).astype(float)
    found = fit(encoder, pictures, sick, task="classify", spec={"epochs": 20, "whole": True})
    assert auroc(sick[TEST], found.predictions[12:]) > 0.8


def test_a_frozen_encoder_stays_and_its_head_learns(encoder, pictures):
    number = pictures[2]
    found = fit(encoder, pictures, spec={"epochs": 60, "patience": 60, "head_lr": 0.01})
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(found.encoder.state_dict()[name], tensor), name
    constant = np.abs(number[TEST] - np.median(number[TRAIN])).mean()
    assert np.abs(found.predictions[12:] - number[TEST]).mean() < constant


@pytest.mark.parametrize("unfrozen", [0, 2])
def test_an_encoder_of_which_only_a_part_was_pretrained_is_fine_tuned_whole(pictures, unfrozen):
    encoders = [
        build_encoder(EncoderSpec(backbone="r18w32", stem_pool=False, unfrozen=blocks), seed=0)
        for blocks in (None, unfrozen)
    ]
    whole, part = (fit(encoder, pictures, spec={"epochs": 2, "whole": True}) for encoder in encoders)
    assert np.array_equal(whole.predictions, part.predictions)
    assert part.encoder.spec == whole.encoder.spec
    for name, tensor in whole.encoder.state_dict().items():
        assert torch.equal(part.encoder.state_dict()[name], tensor), name
    assert encoders[1].spec.unfrozen == unfrozen
    assert not all(parameter.requires_grad for parameter in encoders[1].parameters()), "the one given stays as it was"


@pytest.mark.parametrize("spec", [{}, {"whole": True}, {"augment": AugmentSpec(preset="xray")}])
def test_it_is_a_function_of_its_seed_and_leaves_everything_alone(encoder, pictures, spec):
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    mode = encoder.training
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = fit(encoder, pictures, spec={**spec, "epochs": 2})
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    torch.manual_seed(8)
    again = fit(encoder, pictures, spec={**spec, "epochs": 2})
    other = fit(encoder, pictures, spec={**spec, "epochs": 2, "seed": 1})
    assert np.array_equal(first.predictions, again.predictions)
    assert not np.array_equal(first.predictions, other.predictions)
    assert first.notes == again.notes
    assert encoder.training == mode
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_batch_norms_see_batches_only_where_the_encoder_is_trained(encoder, pictures):
    name = next(name for name in encoder.state_dict() if name.endswith("running_mean"))
    before = encoder.state_dict()[name].clone()
    frozen = fit(encoder, pictures, spec={"epochs": 1, "augment": AugmentSpec(preset="xray")})
    whole = fit(encoder, pictures, spec={"epochs": 1, "whole": True})
    assert torch.equal(frozen.encoder.state_dict()[name], before)
    assert not torch.equal(whole.encoder.state_dict()[name], before)
    assert not whole.encoder.training


def test_targets_of_held_samples_change_nothing_and_those_of_validation_choose(encoder, pictures):
    number = pictures[2]
    found = fit(encoder, pictures, spec={"epochs": 10, "head_lr": 0.003})
    other = number.copy()
    other[TEST] = np.nan
    assert np.array_equal(fit(encoder, pictures, other, spec={"epochs": 10, "head_lr": 0.003}).predictions,
                          found.predictions)  # fmt: skip
    epochs = set()
    for seed in range(4):
        other[VAL] = np.random.default_rng(seed).permutation(number[VAL])
        epochs.add(fit(encoder, pictures, other, spec={"epochs": 10, "head_lr": 0.003}).notes)
    assert len({note[0].split()[1] for note in epochs}) > 1, "another epoch is best for another validation"


def test_the_best_epoch_is_kept_and_said(encoder, pictures):
    number = pictures[2]
    found = fit(encoder, pictures, spec={"epochs": 40, "patience": 2, "head_lr": 0.5})
    (note,) = found.notes
    _, best, _, run = note.split()[:4]
    assert int(run) - int(best) == 2 or int(run) == 40
    error = np.abs(found.predictions[:12] - number[VAL]).mean()
    assert note == f"epoch {best} of {run} was best on validation (mae {error:.3g})"
    assert found.head.validation == pytest.approx(error)
    shorter = fit(encoder, pictures, spec={"epochs": 40, "patience": 100, "head_lr": 0.5})
    assert shorter.notes[0].split()[3] == "40"


def test_the_saved_folder_gives_the_same_predictions(encoder, pictures, tmp_path: Path):
    store, samples, number = pictures
    for changes in ({"spec": {"epochs": 2, "whole": True}}, {"task": "classify", "num_classes": 3}):
        y = np.floor(number * 2.99) if "task" in changes else number
        found = fit(encoder, pictures, y, **changes)
        found.save(tmp_path / "e", preprocessing=store.preprocessing.to_json(), lineage=[{"salt": "s", "keys": ["k"]}])
        loaded, contract = load_encoder(tmp_path / "e")
        assert contract["size"] == SIZE
        vectors = embed_samples(loaded, store, samples, np.concatenate([VAL, TEST]))
        scores = Head.load(tmp_path / "e" / "head.safetensors").predict(vectors)
        np.testing.assert_allclose(scores, found.predictions, rtol=1e-4, atol=1e-5)


def test_several_classes_and_one_that_training_lacks(encoder, pictures):
    classes = np.floor(pictures[2] * 3.99)
    found = fit(encoder, pictures, classes, task="classify", num_classes=4)
    assert found.predictions.shape == (24, 4)
    np.testing.assert_allclose(found.predictions.sum(1), 1)
    lacking = classes.copy()
    lacking[TRAIN] = np.where(classes[TRAIN] == 1, -1, classes[TRAIN])
    found = fit(encoder, pictures, lacking, task="classify", num_classes=4)
    assert (found.predictions[:, 1] == 0).all()
    np.testing.assert_allclose(found.predictions.sum(1), 1)
    assert found.head.classes.tolist() == [0, 2, 3]


def test_balanced_weights_raise_the_rare_class(encoder, pictures):
    rare = np.zeros(NUM)
    rare[np.random.default_rng(4).choice(TRAIN, 3, replace=False)] = 1
    means = [
        fit(encoder, pictures, rare, task="classify", val=VAL[:0],
            spec={"epochs": 20, "head_lr": 0.1, "class_weights": weights}).predictions.mean()
        for weights in ("none", "balanced")
    ]  # fmt: skip
    assert means[1] > means[0] + 0.05


def test_validation_that_defines_nothing_takes_the_last_epoch(encoder, pictures):
    found = fit(encoder, pictures, val=VAL[:0], spec={"epochs": 2})
    assert found.notes == ("validation does not define mae: the last of 2 epochs is taken",)
    one = np.zeros(NUM)
    one[TRAIN[:10]] = 1
    found = fit(encoder, pictures, one, task="classify", spec={"epochs": 2})
    assert "validation does not define auroc" in found.notes[0]
    assert math.isnan(found.head.validation)


def test_missing_and_constant_targets(encoder, pictures):
    number = pictures[2]
    missing = number.copy()
    missing[TRAIN[:12]] = np.nan
    fewer = fit(encoder, pictures, number, train=TRAIN[12:])
    assert np.array_equal(fit(encoder, pictures, missing).predictions, fewer.predictions)
    constant = fit(encoder, pictures, np.where(np.isin(POSITIONS, TRAIN), 3.0, number))
    assert constant.predictions.tolist() == [3.0] * 24
    assert constant.notes == ("training has one value: the prediction is constant",)
    two = fit(encoder, pictures, train=TRAIN[:3], spec={"batch_size": 2, "whole": True, "epochs": 1})
    assert np.isfinite(two.predictions).all(), "three samples are not cut into two and one"
    with pytest.raises(EvaluationError, match="at least one training row"):
        fit(encoder, pictures, np.full(NUM, np.nan))
    with pytest.raises(UsageError, match="unknown task"):
        fit(encoder, pictures, task="regression")
    with pytest.raises(UsageError, match="class weights are for classify"):
        fit(encoder, pictures, spec={"class_weights": "balanced"})


# --- clips


def test_clips_are_trained_on_whole_and_frozen(pictures, tmp_path: Path):
    number = pictures[2]
    r = np.random.default_rng(1)
    lines = []
    for clip in range(NUM):
        for frame in range(2 + clip % 4):  # some shorter than the three frames that are seen
            pixels = r.integers(0, 60, (SIZE, SIZE))
            pixels[4:12, 4:12] += int(180 * number[clip])
            name = f"{clip}_{frame}.png"
            PillowImage.fromarray(pixels.astype(np.uint8)).save(tmp_path / name)
            lines.append({"image": name, "patient": f"p{clip}", "series": f"s{clip:02}", "order": frame})
    cohort = Cohort(pd.DataFrame(lines), CohortSpec(table="t.csv", roles={}), tmp_path)
    store = build_store(cohort, Preprocessing(SIZE, 1, frames=3), folder=tmp_path / "cache")
    samples = cohort.samples("clip")
    encoder = build_encoder(EncoderSpec(backbone="r18w32", stem_pool=False, temporal_shift=8), seed=0)
    constant = np.abs(number[TEST] - np.median(number[TRAIN])).mean()
    for spec in ({"epochs": 60, "head_lr": 0.01}, {"epochs": 2, "whole": True, "augment": AugmentSpec(preset="mri")}):
        found = fit(encoder, (store, samples, number), spec=spec)
        assert found.predictions.shape == (24,)
        vectors = embed_samples(found.encoder, store, samples, np.concatenate([VAL, TEST]))
        np.testing.assert_allclose(found.head.predict(vectors), found.predictions, rtol=1e-4, atol=1e-5)
        if "whole" not in spec:
            assert np.abs(found.predictions[12:] - number[TEST]).mean() < 0.6 * constant
    again = fit(encoder, (store, samples, number), spec=spec)
    assert np.array_equal(again.predictions, found.predictions)


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"batch_size": 1}, {"patience": 0}, {"lr": 0.0}, {"head_lr": -1.0}, {"weight_decay": -0.1},
     {"class_weights": "balance"}],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong)).replace("head_lr", "rates").replace("lr", "rates")):
        f.FinetuneSpec(**wrong)
