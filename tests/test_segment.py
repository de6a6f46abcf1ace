"""Segmentation from few labelled patients: geometry, what may influence what, volumes, results and bad input."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image as PillowImage

from bolus.cli import main
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.split import patient_keys
from bolus.data.images.cache import Preprocessing, build_store
from bolus.data.readers.masks import to_square
from bolus.data.views.augment import augment, augment_labels
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import save_encoder
from bolus.errors import BolusError, CohortError, EvaluationError, LeakageError, UsageError
from bolus.evaluation.segmentation import segment as module
from bolus.evaluation.segmentation import segmenter as training
from bolus.evaluation.segmentation.annotation import read_annotations
from bolus.evaluation.segmentation.notes import classes_invented, cropped_off
from bolus.evaluation.segmentation.options import SegmentSpec
from bolus.evaluation.segmentation.overlap import pooled_dice
from bolus.evaluation.segmentation.overlays import BOTH, PREDICTED, TRUTH, draw_overlay
from bolus.evaluation.segmentation.segment import evaluate_segment
from bolus.evaluation.segmentation.segmenter import draw_labelled, fit_segmenter, mask_loss
from bolus.evaluation.segmentation.stacks import Volume, find_volumes, why_in_voxels
from bolus.evaluation.segmentation.volume_scores import VolumeScores, results_of, score_volumes
from bolus.evaluation.statistics.results import Result, read_results
from bolus.evaluation.statistics.verdict import verdict_of
from bolus.recipe import AugmentSpec, EncoderSpec

SHORT = SegmentSpec(steps=2, batch_size=4)


# --- label maps in the views of their images


@pytest.mark.parametrize(
    "spec",
    [
        AugmentSpec(preset="none"),
        AugmentSpec(preset="none", crop_scale=(0.5, 0.9), rotation=40),
        AugmentSpec(preset="xray", flip_horizontal=0.5, flip_vertical=0.5, jitter=0.0, blur=0.0),
    ],
    ids=["none", "turned", "mirrored"],
)
def test_labels_lie_where_the_image_has_them(spec: AugmentSpec) -> None:
    labels = torch.zeros(6, 30, 30, dtype=torch.int64)
    labels[:, 4:20, 8:18], labels[:, 10:14, 2:25] = 1, 2
    found = augment_labels(labels, spec, size=30, seed=3)
    shares = augment(torch.stack([labels == 1, labels == 2], 1).float(), spec, size=30, views=1, seed=3)[0]
    for number, share in enumerate((shares[:, 0], shares[:, 1]), start=1):
        # A pixel's nearest neighbour weighs at least a quarter in the bilinear value.
        assert (found[share > 0.75 + 1e-4] == number).all()
        assert (found[share < 0.25 - 1e-4] != number).all()
    assert set(found.unique().tolist()) == {0, 1, 2}
    assert found.dtype == labels.dtype
    assert torch.equal(found, augment_labels(labels, spec, size=30, seed=3))


def test_labels_are_cropped_anew_for_every_seed_and_outside_is_nothing() -> None:
    labels, spec = torch.ones(2, 20, 20, dtype=torch.uint8), AugmentSpec(preset="none", rotation=45)
    one, other = (augment_labels(labels, spec, size=16, seed=seed) for seed in (0, 1))
    assert one.shape == (2, 16, 16)
    assert not torch.equal(one, other)
    assert one[:, 8, 8].eq(1).all()
    assert one.eq(0).any()
    assert augment_labels(labels[:0], spec, size=16, seed=0).shape == (0, 16, 16)
    for wrong in (labels.float(), labels[:, :10], labels[0]):
        with pytest.raises(UsageError, match="expected integers"):
            augment_labels(wrong, spec, size=16, seed=0)


# --- training


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 0}, "steps"),
        ({"batch_size": 1}, "batch_size"),
        ({"lr": 0.0}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"warmup": 1.0}, "warmup"),
        ({"steps": 1.5}, "steps must be a whole number, found 1.5"),
        ({"batch_size": "4"}, "batch_size must be a whole number"),
        ({"lr": "1"}, "lr must be a number, found '1'"),
        ({"lr": math.inf}, "lr must be a number, found inf"),
        ({"augment": {"preset": "none"}}, "augment must be an AugmentSpec, found dict"),
        ({"augment": AugmentSpec(preset="none", crop_scale=(0.9, 0.5))}, r"segmentation: augment.crop_scale: expected"),
    ],
    ids=[*"abcdef", "steps", "batch", "lr", "endless", "mapping", "crop"],
)
def test_numbers_out_of_range_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        SegmentSpec(**given)


def test_draws_of_patients_are_nested_and_differ_between_repeats() -> None:
    patients = [5, 5, 9, 2, 7, 7, 1, 30, 31, 32]
    for repeat in range(3):
        draws = [draw_labelled(patients, k, seed=4, repeat=repeat).tolist() for k in (1, 3, 8)]
        assert draws[0] == draws[1][:1]
        assert draws[1] == draws[2][:3]
        assert sorted(draws[2]) == sorted(set(patients))
    assert len({tuple(draw_labelled(patients, 8, seed=4, repeat=repeat)) for repeat in range(3)}) == 3
    for k in (0, 9):
        with pytest.raises(EvaluationError, match="1 to 8 labelled patients"):
            draw_labelled(patients, k, seed=4, repeat=0)


def test_the_loss_equals_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    target = torch.randint(3, (2, 1, 4, 4), generator=generator)
    target[1][target[1] == 2] = 0  # a slice without one class
    p, entropy, dice = logits.softmax(1), 0.0, []
    for n, y, x in np.ndindex(2, 4, 4):
        entropy -= math.log(p[n, target[n, 0, y, x], y, x]) / 32
    for k in (1, 2):
        both = sum(float(p[n, k, y, x]) for n, y, x in np.ndindex(2, 4, 4) if target[n, 0, y, x] == k)
        size = float(p[:, k].sum()) + int((target == k).sum())
        dice.append((2 * both + 1e-5) / (size + 1e-5))
    assert mask_loss()(logits, target).item() == pytest.approx(entropy + 1 - sum(dice) / 2, rel=1e-6)
    blank = torch.zeros(2, 3, 4, 4, requires_grad=True)
    mask_loss()(blank, torch.zeros(2, 1, 4, 4, dtype=torch.int64)).backward()
    assert torch.isfinite(blank.grad).all()  # type: ignore[union-attr]


class Slices:
    """Noisy pictures of a bright square each, in the cache, with their masks."""

    def __init__(self, folder: Path, count: int = 12, size: int = 16) -> None:
        r = np.random.default_rng(0)
        self.masks = np.zeros((count, size, size), np.int64)
        for row in range(count):
            y, x = r.integers(1, size // 2, 2)
            self.masks[row, y : y + 7, x : x + 7] = 1
            pixels = r.integers(0, 60, (size, size)) + 120 * self.masks[row]
            PillowImage.fromarray(pixels.astype(np.uint8)).save(folder / f"{row}.png")
        table = pd.DataFrame(
            {"image": [f"{row}.png" for row in range(count)], "patient": [f"p{row}" for row in range(count)]}
        )
        table.to_csv(folder / "t.csv", index=False)
        self.cohort = Cohort.open(folder / "t.csv")
        self.store = build_store(self.cohort, Preprocessing(size, 1), folder=folder / "cache")
        self.labels = {row: to_square(mask, fit="pad", size=size * 5 // 4) for row, mask in enumerate(self.masks)}

    def fit(self, backbone: str = "unet2", positions: Any = range(8), encoder_seed: int = 0, **given: Any) -> Any:
        encoder = build_encoder(
            EncoderSpec(backbone=backbone, stem_pool=not backbone.startswith("r18")), seed=encoder_seed
        )
        spec = given.pop("spec", SHORT)
        return fit_segmenter(
            encoder,
            self.store,
            self.cohort.samples("image"),
            self.labels,
            list(positions),
            num_classes=2,
            spec=spec,
            **given,
        )


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Slices:
    return Slices(tmp_path_factory.mktemp("slices"))


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("backbone", ["unet4", "r18w32"])
def test_a_planted_square_is_learnt(slices: Slices, backbone: str) -> None:
    found = slices.fit(backbone, spec=SegmentSpec(steps=40, batch_size=8, lr=5e-3))
    scores = found.predict(np.arange(8, 12))
    assert scores.shape == (4, 2, 16, 16)
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-5)
    predicted = scores.argmax(1).numpy()
    truth = slices.masks[8:]
    assert 2 * (predicted * truth).sum() / (predicted.sum() + truth.sum()) > 0.7
    assert not found.encoder.training
    assert not found.decoder.training


def test_training_is_a_function_of_its_arguments_and_leaves_everything_else(slices: Slices) -> None:
    encoder = build_encoder(EncoderSpec(backbone="unet2"), seed=0)
    before, state = weights(encoder), torch.get_rng_state()
    arguments = (encoder, slices.store, slices.cohort.samples("image"), slices.labels)
    first = fit_segmenter(*arguments, np.arange(8), num_classes=2, spec=SHORT, seed=1)
    assert torch.equal(weights(encoder), before)
    assert torch.equal(torch.get_rng_state(), state)
    again = fit_segmenter(*arguments, np.arange(8)[::-1], num_classes=2, spec=SHORT, seed=1)
    other = fit_segmenter(*arguments, np.arange(8), num_classes=2, spec=SHORT, seed=2)
    for part in ("encoder", "decoder"):
        assert torch.equal(weights(getattr(first, part)), weights(getattr(again, part)))
        assert not torch.equal(weights(getattr(first, part)), weights(getattr(other, part)))
    assert not torch.equal(weights(first.encoder), before)


def test_a_frozen_encoder_stays_as_it_is_with_its_statistics(slices: Slices) -> None:
    before = build_encoder(EncoderSpec(backbone="unet2"), seed=0).state_dict()
    found = slices.fit(spec=replace(SHORT, whole=False))
    assert all(torch.equal(value, before[key]) for key, value in found.encoder.state_dict().items())
    assert not torch.equal(
        weights(found.decoder), weights(slices.fit(spec=replace(SHORT, whole=False, steps=1)).decoder)
    )


def test_every_encoder_meets_the_same_batches_and_views_for_the_same_number_of_steps(
    slices: Slices, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    def watched(images: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        seen.append(augment(images, *given, **named))
        return seen[-1]

    monkeypatch.setattr(training, "augment", watched)
    steps: list[int] = []
    slices.fit(encoder_seed=0)
    slices.fit("vit_tiny", encoder_seed=7, on_step=steps.append)
    assert steps == [1, 2]
    assert all(torch.equal(one, other) for one, other in zip(seen[:2], seen[2:], strict=True))
    seen.clear()
    slices.fit(positions=[3])
    assert [batch.shape[1] for batch in seen] == [4, 4]
    assert not torch.equal(seen[0][0, 0], seen[0][0, 1]), "one slice, seen in several views"


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_loss_that_is_not_finite_is_an_error_with_its_step(
    slices: Slices, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, real = [0], mask_loss()

    def broken(*given: torch.Tensor) -> torch.Tensor:
        number[0] += 1
        loss: torch.Tensor = real(*given)
        return loss * math.nan if number[0] == step else loss

    monkeypatch.setattr(training, "mask_loss", lambda: broken)
    with pytest.raises(EvaluationError, match=f"the loss is not finite at step {step} of 3"):
        slices.fit(spec=replace(SHORT, steps=3))
    assert number == [step], "on a CPU it is found at once"


def test_weights_that_the_last_step_broke_are_an_error(slices: Slices, monkeypatch: pytest.MonkeyPatch) -> None:
    real = mask_loss()
    monkeypatch.setattr(training, "mask_loss", lambda: lambda x, y: real(x, y) + (0 * x).abs().sqrt().sum())
    with pytest.raises(EvaluationError, match="the weights are not finite after step 1, the last one"):
        slices.fit(spec=replace(SHORT, steps=1))


def test_there_must_be_something_to_learn(slices: Slices) -> None:
    with pytest.raises(EvaluationError, match="no labelled slice"):
        slices.fit(positions=[])


# --- a cohort with volumes

PATIENTS, DEPTH, HEIGHT, WIDTH = 8, 3, 20, 14
SPLITS = ["train"] * 4 + ["val"] + ["test"] * 3


def draw_masks() -> np.ndarray:
    """`[patients, slices, H, W]`: an organ (1) with a lesion (2) on the middle slice only."""
    r, masks = np.random.default_rng(1), np.zeros((PATIENTS, DEPTH, HEIGHT, WIDTH), np.uint8)
    for patient in range(PATIENTS):
        y, x = r.integers(1, 8), r.integers(1, 4)
        masks[patient, :, y : y + 9, x : x + 8] = 1
        masks[patient, 1, y + 2 : y + 6, x + 2 : x + 6] = 2
    return masks


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """PNG slices; the last slice of a volume comes first in the table."""
    folder, r, masks = tmp_path / "data", np.random.default_rng(2), draw_masks()
    folder.mkdir()
    rows = []
    for patient in range(PATIENTS):
        for order in reversed(range(DEPTH)):
            mask, name = masks[patient, order], f"s{patient}_{order}.png"
            pixels = (r.integers(0, 40, mask.shape) + 80 * mask).astype(np.uint8)
            PillowImage.fromarray(pixels).save(folder / name)
            PillowImage.fromarray(mask).save(folder / f"m_{name}")
            rows.append([name, f"m_{name}", f"P00{patient}", f"v{patient}", order, SPLITS[patient]])
    names = ["image", "mask", "patient", "series", "order", "split"]
    pd.DataFrame(rows, columns=names).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


@pytest.fixture
def volumes_of_files(tmp_path: Path) -> Path:
    """NIfTI volumes of which every slice is a row, 2 x 1.5 x 8 mm."""
    folder, r, masks = tmp_path / "nifti", np.random.default_rng(2), draw_masks()
    folder.mkdir()
    rows = []
    for patient in range(PATIENTS):
        turned = masks[patient][:, ::-1, ::-1].transpose(2, 1, 0)  # as `read_nifti` says
        noise = r.integers(0, 40, turned.shape)
        for name, voxels in (("i", (noise + 80 * turned).astype(np.int16)), ("m", turned)):
            nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.5, 2.0, 8.0, 1.0])), folder / f"{name}{patient}.nii.gz")
        rows += [
            [f"i{patient}.nii.gz", f"m{patient}.nii.gz", f"P00{patient}", n, SPLITS[patient]] for n in range(DEPTH)
        ]
    names = ["image", "mask", "patient", "order", "split"]
    pd.DataFrame(rows, columns=names).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    save_encoder(build_encoder(EncoderSpec(backbone="unet2"), seed=5), tmp_path / "judged", preprocessing={"size": 16})
    return tmp_path / "judged"


def change(table: Path, row: int, **cells: object) -> None:
    frame = pd.read_csv(table)
    for name, value in cells.items():
        frame[name] = frame[name].astype(object)
        frame.loc[row, name] = value
    frame.to_csv(table, index=False)


def judge(encoder: Path, table: Path, **given: Any) -> Any:
    folder = table.parent
    defaults = {"labelled": (1, 3), "repeats": 2, "spec": SHORT, "draws": 50, "quiet": True}
    defaults |= {"out": folder / "out", "cache": folder / "cache"}
    return evaluate_segment(encoder, table, **(defaults | given))


def test_volumes_hold_what_is_true_of_them_in_order(cohort: Path, volumes_of_files: Path) -> None:
    for table in (cohort, volumes_of_files):
        opened = Cohort.open(table)
        annotations = read_annotations(opened)
        volumes, notes = find_volumes(opened, annotations)
        assert annotations.names == ("1", "2")
        assert [volume.truth.tolist() for volume in volumes] == [mask.tolist() for mask in draw_masks()[5:]]
        assert opened.encoded("order")[volumes[0].rows].tolist() == [0, 1, 2]
        assert {volume.spacing for volume in volumes} == {None if table == cohort else (8.0, 2.0, 1.5)}
        assert not any("one slice" in note for note in notes)


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_a_perfect_segmenter_scores_as_one_at_native_size(
    cohort: Path, fit: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened = Cohort.open(cohort)
    volumes, _ = find_volumes(opened, read_annotations(opened))
    truth = dict(
        zip(np.concatenate([v.rows for v in volumes]).tolist(), np.concatenate([v.truth for v in volumes]), strict=True)
    )
    store = build_store(opened, Preprocessing(40, 1, fit), folder=tmp_path / "c")  # type: ignore[arg-type]
    encoder, samples = build_encoder(EncoderSpec(backbone="unet2"), seed=0), opened.samples("image")
    found = training.Segmenter(encoder, training.MaskDecoder(encoder.shape, 3), store, samples, 3)

    def perfect(rows: np.ndarray) -> torch.Tensor:
        squares = [to_square(truth[row], fit=fit, size=40) for row in rows.tolist()]  # type: ignore[arg-type]
        return torch.nn.functional.one_hot(torch.from_numpy(np.stack(squares)), 3).permute(0, 3, 1, 2).float()

    monkeypatch.setattr(found, "predict", perfect)
    scores = score_volumes(found, volumes)
    assert scores.dice.shape == (3, 2)
    assert (scores.dice > 0.95).all()
    np.testing.assert_allclose(scores.dice, 2 * scores.both / scores.either)
    assert (scores.hd95 <= 1).all()


def test_an_evaluation_writes_what_it_found(encoder: Path, cohort: Path) -> None:
    found = judge(encoder, cohort, overlays=2)
    folder = cohort.parent / "out"
    results = read_results(folder / "results.jsonl")
    assert [replace(r, notes=tuple(r.notes)).to_json() for r in found.results] == [r.to_json() for r in results]
    assert {r.task for r in results} == {"segment"}
    assert {r.target for r in results} == {"mask", "mask=1", "mask=2"}
    assert {r.metric for r in results} == {"dice", "hd95_voxels", "hd95_voxels_misses", "dice_pcl"}
    assert {(r.encoder, r.baseline) for r in results} == {
        ("judged", ""),
        ("random-init", ""),
        ("judged", "random-init"),
    }
    assert {(r.labelled_patients, r.fraction) for r in results} == {(1, 0.25), (3, 0.75)}
    everywhere = [r for r in results if r.metric != "hd95_voxels"]  # which has no value where a class is missed
    assert {(r.num_samples, r.num_patients, r.probe) for r in everywhere} == {(3, 3, "finetune")}
    assert all(r.sd_repeats is not None for r in everywhere)
    assert all(any(note.startswith("hd95_") for note in r.notes) for r in results if "hd95" in r.metric)
    assert any("only 3 test patients" in note for r in results if r.baseline for note in r.notes)
    volumes = pd.read_parquet(folder / "volumes.parquet")
    assert len(volumes) == 2 * 2 * 2 * 3 * 2
    assert list(volumes.columns)[-3:] == ["dice", "hd95_voxels", "hd95_voxels_misses"]
    assert set(volumes["row"]) == {18, 21, 24}  # the first slice of each, which is the last in the table
    assert volumes["true_ml"].isna().all(), "no file states a spacing"
    assert (volumes.groupby(["row", "class"])["true_voxels"].nunique() == 1).all(), "the truth is one for all encoders"
    mean = volumes.groupby(["encoder", "labelled_patients", "repeat", "row"])["dice"].mean()
    for r in results:
        if (r.target, r.metric, r.baseline) == ("mask", "dice", ""):
            assert r.estimate == pytest.approx(mean[r.encoder, r.labelled_patients].mean(), nan_ok=True)
    written = "".join(path.read_text() for path in (folder / "results.jsonl", folder / "notes.json")) + volumes.to_csv()
    assert "P00" not in written, "no patient identifiers"
    assert json.loads((folder / "notes.json").read_text())["general"] == found.notes
    assert any("hd95 is in voxels" in note for note in found.notes)
    pictures = sorted(folder.glob("*.png"))
    assert [path.name for path in pictures] == ["overlay-row18.png", "overlay-row21.png"]
    assert PillowImage.open(pictures[0]).size == (80, 80)
    assert "3 labelled patients: undecided" in found.summary()
    again = judge(encoder, cohort)
    assert [r.to_json() for r in again.results] == [r.to_json() for r in found.results]
    assert not list(folder.glob("*.png")), "what an earlier evaluation drew is gone"


def test_distances_are_in_mm_where_the_files_say_so(encoder: Path, volumes_of_files: Path) -> None:
    found = judge(encoder, volumes_of_files, labelled=(2,), repeats=1, classes={1: "organ", 2: "lesion"})
    assert {r.metric for r in found.results} == {"dice", "hd95_mm", "hd95_mm_misses", "dice_pcl"}
    assert {r.target for r in found.results} == {"mask", "mask=organ", "mask=lesion"}
    assert {r.sd_repeats for r in found.results} == {None}
    assert not any("voxels" in note for note in found.notes)
    assert list(found.volumes.columns)[-2:] == ["hd95_mm", "hd95_mm_misses"]
    counted, missed = found.volumes["hd95_mm_misses"], found.volumes["hd95_mm"].isna()
    assert counted.notna().all(), "the truth of every volume has both classes"
    assert counted[~missed].tolist() == found.volumes["hd95_mm"][~missed].tolist()
    assert counted[missed].tolist() == pytest.approx([math.hypot(3 * 8, 20 * 2, 14 * 1.5)] * missed.sum())


def save_masks(folder: Path, affine: Any, patients: Any = range(PATIENTS), flip: tuple[int, ...] = ()) -> None:
    """Mask files beside those of `volumes_of_files`, their voxels turned along these axes."""
    for patient in patients:
        voxels = draw_masks()[patient][:, ::-1, ::-1].transpose(2, 1, 0)
        nibabel.save(nibabel.Nifti1Image(np.flip(voxels, flip), affine), folder / f"m{patient}.nii.gz")


def test_masks_that_lie_turned_to_their_images_are_refused(volumes_of_files: Path) -> None:
    folder, axes = volumes_of_files.parent, np.diag([1.5, 2.0, 8.0, 1.0])
    turned = np.diag([-1.5, -2.0, 8.0, 1.0])
    save_masks(folder, turned, patients=[1])
    with pytest.raises(
        CohortError, match=r"rows 4, 5, 6: the affines of mask and image differ: their origins lie 42.7 mm"
    ):
        read_annotations(Cohort.open(volumes_of_files))
    turned[:2, 3] = [1.5 * (WIDTH - 1), 2.0 * (HEIGHT - 1)]
    save_masks(folder, turned, patients=[1], flip=(0, 1))  # other voxels and affine, at one place
    save_masks(folder, axes + 1e-5, patients=[2])
    found = read_annotations(Cohort.open(volumes_of_files))
    assert [found.codes[3 + n].tolist() for n in range(3)] == draw_masks()[1].tolist()
    assert found.notes == ()
    save_masks(folder, np.diag([1.5, 2.1, 8.0, 1.0]), patients=[2])
    with pytest.raises(CohortError, match="rows 7, 8, 9: the affines of mask and image differ in the direction of"):
        read_annotations(Cohort.open(volumes_of_files))


def test_a_nifti_mask_over_another_kind_of_image_is_noted(encoder: Path, cohort: Path) -> None:
    mask = np.asarray(PillowImage.open(cohort.parent / "m_s0_2.png"))[::-1, ::-1].T[..., None]
    nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), cohort.parent / "m.nii")
    change(cohort, 0, mask="m.nii")
    found = judge(encoder, cohort, labelled=(1,), repeats=1)
    assert any(note.startswith("masks of row 1 are not NIfTI like their images") for note in found.notes)


def test_why_distances_are_in_voxels(volumes_of_files: Path, cohort: Path) -> None:
    def volumes_of(rows: pd.DataFrame) -> list[Volume]:
        rows.to_csv(volumes_of_files.parent / "some.csv", index=False)
        opened = Cohort.open(volumes_of_files.parent / "some.csv")
        return find_volumes(opened, read_annotations(opened))[0]

    table = pd.read_csv(volumes_of_files)
    test = table["split"] == "test"
    assert why_in_voxels(volumes_of(table)) == ""
    skipping = volumes_of(table[~test | (table["order"] != 1)])
    assert {volume.spacing for volume in skipping} == {(16.0, 2.0, 1.5)}, "each second slice"
    for patient in range(PATIENTS):  # a fourth slice
        for name in ("i", "m"):
            path = volumes_of_files.parent / f"{name}{patient}.nii.gz"
            voxels = np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]
            nibabel.save(nibabel.Nifti1Image(np.dstack([voxels, voxels[..., :1]]), np.diag([1.5, 2, 8, 1])), path)
    last = table[table["order"] == 2].assign(order=3)
    uneven = pd.concat([table[~test | (table["order"] != 1)], last])
    begin = "hd95 is in voxels, as not every test volume has a known spacing: of 3 there are "
    assert why_in_voxels(volumes_of(uneven)) == f"{begin}3 of which slices are skipped, not each n-th one taken"
    opened = Cohort.open(cohort)
    assert why_in_voxels(find_volumes(opened, read_annotations(opened))[0]) == (
        f"{begin}3 whose files do not state the spacing of rows and columns"
    )
    one = Volume(np.arange(1), 0, np.zeros((1, 2, 2), int), (1.0, 1.0, 1.0))
    other = replace(one, spacing=None, why="of one file a slice")
    assert why_in_voxels([one, other, other]).endswith("of 3 there are 2 of one file a slice")


def test_slices_of_one_file_each_have_no_known_distance(volumes_of_files: Path) -> None:
    folder, table = volumes_of_files.parent, pd.read_csv(volumes_of_files)
    for row in table.itertuples():
        for column in ("image", "mask"):
            whole = nibabel.load(folder / getattr(row, column))  # type: ignore[attr-defined]
            part = np.asarray(whole.dataobj)[..., row.order : row.order + 1]
            nibabel.save(nibabel.Nifti1Image(part, whole.affine), folder / f"{column}{row.Index}.nii.gz")
    table["image"] = [f"image{row}.nii.gz" for row in range(len(table))]
    table["mask"] = [f"mask{row}.nii.gz" for row in range(len(table))]
    table.to_csv(volumes_of_files, index=False)
    opened = Cohort.open(volumes_of_files)
    volumes, _ = find_volumes(opened, read_annotations(opened))
    assert {volume.why for volume in volumes} == {"of one file a slice, where the distance of slices is not known"}


def test_foreground_outside_the_crop_is_noted() -> None:
    truth = np.zeros((2, 40, 20), int)
    truth[:, 5:15, :], truth[:, 20, 0] = 1, 2
    volume = Volume(np.arange(2), 0, truth, None)
    assert cropped_off([volume, replace(volume, truth=truth * 0)], "crop") == [
        "49.8% of the foreground of the test volumes is outside the crop that the encoder sees: never found"
    ]
    assert cropped_off([volume], "pad") == cropped_off([replace(volume, truth=truth[:, 10:30])], "crop") == []


def test_a_class_that_no_drawn_patient_has_is_noted(encoder: Path, cohort: Path) -> None:
    for row in range(9):  # of the first three training patients, the last one has class 2
        mask = np.asarray(PillowImage.open(cohort.parent / pd.read_csv(cohort)["mask"][row]))
        repaint(cohort, row, np.minimum(mask, 1))
    found = judge(encoder, cohort, labelled=(1, 4), repeats=2, classes={1: "organ", 2: "lesion"})
    notes = [note for note in found.notes if "no mask has class" in note]
    lacking = [n + 1 for n in range(2) if draw_labelled(range(4), 1, seed=0, repeat=n).tolist() != [3]]
    shown = f"draw{'s' if len(lacking) > 1 else ''} {', '.join(map(str, lacking))}"
    assert lacking
    assert len(notes) == 1, "with all four patients there is one that has it"
    assert notes[0].startswith(f"in {shown} of 1 patient no mask has class lesion; ")


def test_a_training_that_diverges_names_encoder_number_and_draw(
    encoder: Path, cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = mask_loss()
    monkeypatch.setattr(training, "mask_loss", lambda: lambda *given: real(*given) * math.inf)
    with pytest.raises(
        EvaluationError, match=r"^judged, 1 labelled patient, draw 1: the loss is not finite at step 1 of 2"
    ):
        judge(encoder, cohort)


def test_a_volume_in_the_order_of_the_table_is_noted(cohort: Path) -> None:
    pd.read_csv(cohort).drop(columns="order").to_csv(cohort, index=False)
    opened = Cohort.open(cohort)
    volumes, notes = find_volumes(opened, read_annotations(opened))
    assert volumes[0].rows.tolist() == [15, 16, 17]
    assert any("slices of a volume lie as the table lists them" in note for note in notes)


def test_every_class_has_a_tone_of_its_own() -> None:
    truth, predicted = np.zeros((12, 12), int), np.zeros((12, 12), int)
    truth[1:4, 1:4], truth[6:9, 1:4], truth[1:4, 6:9], predicted[1:4, 6:9] = 1, 2, 3, 3
    predicted[6:9, 6:9], predicted[6:9, 1:4] = 1, 4  # of one outline, two classes
    picture = draw_overlay(np.zeros((1, 12, 12)), truth, predicted)
    corners = [tuple(picture[4 * y, 4 * x].tolist()) for y, x in ((1, 1), (6, 1), (1, 6), (6, 6))]
    assert corners == [TRUTH[0], PREDICTED[3], BOTH, PREDICTED[0]]
    assert len({*TRUTH, *PREDICTED, BOTH}) == 9
    assert all(blue > red for red, _, blue in TRUTH)
    assert all(red > blue for red, _, blue in PREDICTED)


def test_validation_patients_are_not_looked_at(encoder: Path, cohort: Path) -> None:
    frame = pd.read_csv(cohort)
    for name in frame.loc[frame["split"] == "val", "mask"]:
        (cohort.parent / name).unlink()
    found = judge(encoder, cohort, labelled=(1,), repeats=1)
    assert any("validation patients are not used" in note for note in found.notes)


def test_rows_without_a_mask_are_left_out_and_counted(encoder: Path, cohort: Path) -> None:
    change(cohort, 1, mask="")  # of a training patient
    change(cohort, 16, mask="")  # of the first test patient
    (cohort.parent / "s6_1.png").write_bytes(b"not an image")
    found = judge(encoder, cohort, labelled=(4,), repeats=1)
    assert {r.num_samples for r in found.results} == {1}
    note = next(note for note in found.notes if "left out" in note)
    assert note == (
        "2 test volumes are left out (1 of their 6 slices have no mask, 1 have an image that cannot be read; "
        "begin in rows 18, 21)"
    )
    assert any("all draws are of the same patients" in note for note in found.notes)


def test_single_images_are_volumes_of_their_own_and_said_to_be(cohort: Path) -> None:
    pd.read_csv(cohort).drop(columns=["series", "order"]).to_csv(cohort, index=False)
    opened = Cohort.open(cohort)
    volumes, notes = find_volumes(opened, read_annotations(opened))
    assert [len(volume.rows) for volume in volumes] == [1] * 9
    assert any("each image is a volume of its own" in note for note in notes)
    assert any("9 of 9 test volumes are one slice" in note for note in notes)


# --- bad input


def repaint(table: Path, row: int, values: np.ndarray) -> None:
    PillowImage.fromarray(values.astype(np.uint8)).save(table.parent / pd.read_csv(table)["mask"][row])


def drop_masks(table: Path) -> None:
    pd.read_csv(table).drop(columns="mask").to_csv(table, index=False)


def drop_test_masks(table: Path) -> None:
    frame = pd.read_csv(table)
    frame.loc[(frame["split"] == "test") & (frame["order"] == 1), "mask"] = ""
    frame.to_csv(table, index=False)


def move_test_patients(table: Path) -> None:
    frame = pd.read_csv(table)
    frame["split"] = frame["split"].replace("test", "val")
    frame.to_csv(table, index=False)


def drop_training_masks(table: Path, keep: int = 0) -> None:
    frame = pd.read_csv(table)
    frame.loc[keep:11, "mask"] = ""
    frame.to_csv(table, index=False)


def empty_masks(table: Path) -> None:
    for row in range(12):
        repaint(table, row, np.zeros((HEIGHT, WIDTH)))


WRONG: dict[str, tuple[Any, type[BolusError], str]] = {
    "no role": (drop_masks, EvaluationError, "no column has the role mask"),
    "no file": (lambda table: change(table, 2, mask="m_P001.png"), CohortError, "row 3: the mask: no such file"),
    "no mask": (
        lambda table: (table.parent / "m_s0_1.png").write_bytes(b"x" * 400),
        CohortError,
        "row 2: the mask: expected a DICOM",
    ),
    "shape": (
        lambda table: repaint(table, 20, np.ones((WIDTH, HEIGHT))),
        CohortError,
        "row 21: the mask is 14 x 20 pixels, its image 20 x 14",
    ),
    "label": (
        lambda table: repaint(table, 23, np.full((HEIGHT, WIDTH), 7)),
        CohortError,
        "row 24: label 7 is not among 0, 1, 2, those of the training patients",
    ),
    "background": (empty_masks, EvaluationError, "the 12 training masks hold nothing but label 0"),
    "no test volume": (
        drop_test_masks,
        EvaluationError,
        "no test volume has a mask and an image on every slice: of 9 test images 3 have no mask, and 0 with a mask",
    ),
    "no test patient": (
        move_test_patients,
        EvaluationError,
        "no test volume: the cohort has no test patient",
    ),
    "no training mask": (
        drop_training_masks,
        EvaluationError,
        "there is no mask to train on: of 12 training images 12 have no mask, and 0 with a mask cannot be read",
    ),
    "no training image": (
        lambda table: [(table.parent / f"s{p}_{n}.png").unlink() for p in range(4) for n in range(3)],
        EvaluationError,
        "there is no mask to train on: of 12 training images 0 have no mask, and 12 with a mask cannot be read",
    ),
    "few training masks": (
        lambda table: drop_training_masks(table, keep=3),
        EvaluationError,
        "labelled patients (--labelled-patients): 3 asked for, and 1 training patient has a mask and an image; "  # noqa: ISC004
        "of 12 training images 9 have no mask, and 0 with a mask cannot be read",
    ),
    "one place": (
        lambda table: change(table, 16, order=2),
        CohortError,
        "rows 16, 17: slices of one volume have the same order (column 'order')",
    ),
    "no place": (lambda table: change(table, 16, order=""), CohortError, "row 17: no order (column 'order')"),
    "two volumes": (
        lambda table: (
            pd.read_csv(table)
            .drop(columns="series")
            .assign(patient="P", split="test")
            .iloc[15:]
            .pipe(lambda tests: pd.concat([pd.read_csv(table).iloc[:15], tests]))
            .to_csv(table, index=False)
        ),
        CohortError,
        "give the column that tells these apart the role series or phase",
    ),
    "picture": (
        lambda table: repaint(table, 0, np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 250),
        EvaluationError,
        "hold 249 labels from 1 to 249: expected label maps",
    ),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_masks_are_named_before_anything_is_trained(
    encoder: Path, cohort: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bolus.evaluation.segmentation.slices.fit_segmenter", lambda *_, **__: pytest.fail("trained"))
    damage, kind, said = WRONG[name]
    damage(cohort)
    with pytest.raises(kind) as caught:
        judge(encoder, cohort)
    assert said in str(caught.value)
    assert "P00" not in str(caught.value)


def test_a_label_outside_the_named_classes_is_an_error_in_training_too(encoder: Path, cohort: Path) -> None:
    with pytest.raises(
        CohortError, match=r"rows 2, 5, 8, 11, 17 and 2 more: label 2 is not among 0, 1, the classes that"
    ):
        judge(encoder, cohort, classes={1: "organ"})


def test_masks_with_another_number_of_slices_are_refused(encoder: Path, volumes_of_files: Path) -> None:
    short = nibabel.Nifti1Image(np.ones((WIDTH, HEIGHT, 2), np.uint8), np.diag([1.5, 2.0, 8.0, 1.0]))
    nibabel.save(short, volumes_of_files.parent / "m0.nii.gz")
    with pytest.raises(CohortError, match="rows 1, 2, 3: the mask has 2 slices, its image 3"):
        judge(encoder, volumes_of_files)


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"labelled": (1, 5)}, EvaluationError, "labelled-patients.: 5 asked for, and 4 training patients have a mask"),
        ({"labelled": ()}, UsageError, "labelled"),
        ({"labelled": (0,)}, UsageError, "labelled"),
        ({"repeats": 0}, UsageError, "repeats"),
        ({"draws": 0}, UsageError, "draws"),
        ({"overlays": -1}, UsageError, "overlays"),
        ({"labelled": 3}, UsageError, r"such as \(1, 2, 6\); found 3"),
        ({"labelled": (1.5,)}, UsageError, "labelled: expected numbers of training patients"),
        ({"labelled": "12"}, UsageError, "labelled: expected numbers of training patients"),
        ({"seed": -1}, UsageError, "seed must be a whole number of at least 0, found -1"),
        ({"repeats": 1.5}, UsageError, "repeats must be a whole number"),
        ({"classes": {"x": "organ"}}, UsageError, "classes: expected whole-number labels, found 'x'"),
        ({"classes": {1.5: "organ"}}, UsageError, "classes: expected whole-number labels, found 1.5"),
        (
            {"classes": {1: "a", 2: "b", 7: "ghost"}},
            CohortError,
            r"^label 7 \(ghost\) is in no training mask; found 1, 2$",
        ),
        ({"target": "lesion"}, UsageError, "expected the target 'mask'"),
        ({"classes": {0: "background"}}, UsageError, "expected a label beside 0"),
        ({"classes": {1: "organ", 2: "organ"}}, UsageError, "a name of its own"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_wrong_calls_are_refused(
    encoder: Path,
    cohort: Path,
    given: dict[str, Any],
    kind: type[BolusError],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kind is UsageError:
        monkeypatch.setattr(module, "prepare", lambda *_, **__: pytest.fail("read something"))
    with pytest.raises(kind, match=said):
        judge(encoder, cohort, **given)


def test_an_encoder_that_saw_the_test_patients_is_refused(cohort: Path, tmp_path: Path) -> None:
    opened = Cohort.open(cohort)
    seen = {"salt": "s", "keys": sorted(patient_keys(opened.patients[opened.split == "test"], "s"))}
    folder, made = tmp_path / "leaky", build_encoder(EncoderSpec(backbone="unet2"), seed=5)
    save_encoder(made, folder, preprocessing={"size": 16}, lineage=[seen])
    drop_masks(cohort)  # of which is not told, since nothing may be judged
    with pytest.raises(LeakageError):
        judge(folder, cohort)


def test_an_encoder_of_clips_is_refused(cohort: Path, tmp_path: Path) -> None:
    made = build_encoder(EncoderSpec(backbone="unet2"), seed=5)
    save_encoder(made, tmp_path / "clips", preprocessing={"size": 16, "frames": 2})
    with pytest.raises(EvaluationError, match="this encoder sees clips"):
        judge(tmp_path / "clips", cohort)


# --- results


def naive_estimate(dice: np.ndarray) -> float:
    """`[R, N, K - 1]`: mean over the classes a volume has, then over volumes, then over repeats."""
    repeats = []
    for repeat in dice:
        means = [
            np.mean([v for v in volume if not math.isnan(v)]) for volume in repeat if not all(map(math.isnan, volume))
        ]
        repeats.append(np.mean(means))
    return float(np.mean(repeats))


def made_scores(r: np.random.Generator, volumes: int) -> VolumeScores:
    """Of volumes whose truth lacks a class here and there, the same ones in each call."""
    absent = np.random.default_rng(99).random((volumes, 2)) < 0.2
    dice, hd95 = r.random((volumes, 2)), 9 * r.random((volumes, 2))
    dice[absent], hd95[absent | (r.random((volumes, 2)) < 0.3)] = np.nan, np.nan
    either = r.integers(1, 90, (volumes, 2)).astype(float)
    both = np.floor(either * r.random((volumes, 2)) / 2)
    return VolumeScores(dice, hd95, with_misses(dice, hd95), both, either)


def with_misses(dice: np.ndarray, hd95: np.ndarray) -> np.ndarray:
    """A class that has no distance, though the truth has it, counts as 100."""
    return np.where(np.isnan(hd95) & ~np.isnan(dice), 100.0, hd95)


def test_estimates_and_differences_equal_loops() -> None:
    r, num = np.random.default_rng(0), 30
    patients = np.repeat(np.arange(15), 2)
    scores = {(name, 2): [made_scores(r, num) for _ in range(3)] for name in ("run", "random-init")}
    blank = Result("segment", "mask", "dice", math.nan, math.nan, math.nan, 0, 0, seed=1)
    found = results_of(scores, patients, ("a", "b"), blank, judged="run", distance="hd95_mm", num_labelled=4, draws=200)
    by = {(each.target, each.metric, each.encoder, each.baseline): each for each in found}
    dice = {name: np.stack([each.dice for each in repeats]) for (name, _), repeats in scores.items()}
    for name, values in dice.items():
        result = by["mask", "dice", name, ""]
        assert result.estimate == pytest.approx(naive_estimate(values))
        assert result.ci_low < result.estimate < result.ci_high
        assert by["mask=b", "dice", name, ""].estimate == pytest.approx(naive_estimate(values[..., 1:]))
        pooled = [np.mean(2 * s.both.sum(0) / s.either.sum(0)) for s in scores[name, 2]]
        assert by["mask", "dice_pcl", name, ""].estimate == pytest.approx(np.mean(pooled))
    paired = by["mask", "dice", "run", "random-init"]
    assert paired.estimate == pytest.approx(naive_estimate(dice["run"]) - naive_estimate(dice["random-init"]))
    assert paired.detectable >= 2.8 * paired.se
    far = by["mask=a", "hd95_mm", "run", "random-init"]
    expected = []
    for ours, theirs in zip(scores["run", 2], scores["random-init", 2], strict=True):
        pairs = [a - b for a, b in zip(ours.hd95[:, 0], theirs.hd95[:, 0], strict=True) if not math.isnan(a + b)]
        expected.append(np.mean(pairs))
    assert far.estimate == pytest.approx(np.mean(expected)), "only volumes on which both have a distance"
    assert any("hd95_mm is over" in note for note in far.notes)
    counted = {name: np.stack([each.hd95_misses for each in repeats]) for (name, _), repeats in scores.items()}
    both = by["mask", "hd95_mm_misses", "run", "random-init"]
    assert both.estimate == pytest.approx(naive_estimate(counted["run"]) - naive_estimate(counted["random-init"]))
    assert both.num_samples == paired.num_samples
    both = by["mask", "hd95_mm", "run", "random-init"]
    expected = []
    for ours, theirs in zip(scores["run", 2], scores["random-init", 2], strict=True):
        volumes = []
        for a, b in zip(ours.hd95, theirs.hd95, strict=True):
            pairs = [one - other for one, other in zip(a, b, strict=True) if not math.isnan(one + other)]
            volumes += [np.mean(pairs)] if pairs else []
        expected.append(np.mean(volumes))
    assert both.estimate == pytest.approx(np.mean(expected)), "class by class, before the mean over classes"


def results_from(scores: dict[str, list[tuple[Any, Any]]], names: tuple[str, ...] = ("x", "y"), num: int = 30) -> Any:
    """Results by (target, metric, encoder, baseline), from Dice and distance of each repeat, equal in all volumes."""
    made = {}
    for name, repeats in scores.items():
        arrays = [[np.broadcast_to(np.array(each, float), (num, len(names))) for each in pair] for pair in repeats]
        made[name, 1] = [
            VolumeScores(*pair, with_misses(*pair), np.nan_to_num(pair[0]), np.ones((num, len(names))))
            for pair in arrays
        ]
    blank = Result("segment", "mask", "dice", math.nan, math.nan, math.nan, 0, 0)
    found = results_of(made, np.arange(num), names, blank, judged="run", distance="hd95_mm", num_labelled=5, draws=100)
    return {(each.target, each.metric, each.encoder, each.baseline): each for each in found}


def test_a_class_that_one_encoder_missed_does_not_move_the_difference_in_distance() -> None:
    nan = math.nan
    found = results_from({"run": [([0.5, 0.5], [10, 2])], "random-init": [([0.5, 0.0], [10, nan])]})
    assert found["mask", "hd95_mm", "run", ""].estimate == 6
    assert found["mask", "hd95_mm", "random-init", ""].estimate == 10
    assert found["mask", "hd95_mm", "run", "random-init"].estimate == 0
    lost = found["mask=y", "hd95_mm", "run", "random-init"]
    assert math.isnan(lost.estimate)
    assert (lost.num_samples, lost.num_patients) == (0, 0)


def test_a_repeat_in_which_nothing_is_defined_is_left_out_and_said() -> None:
    nan = math.nan
    repeats = [([0.5, 0.5], [10, 2]), ([0.5, 0.0], [10, nan]), ([0.5, 0.5], [10, 4])]
    found = results_from({"run": repeats, "random-init": repeats})
    alone, paired = found["mask=y", "hd95_mm", "run", ""], found["mask=y", "hd95_mm", "run", "random-init"]
    assert (alone.estimate, alone.sd_repeats) == (3, pytest.approx(math.sqrt(2)))
    assert 0 <= alone.ci_low <= 3 <= alone.ci_high
    assert (paired.estimate, paired.ci_low, paired.ci_high) == (0, 0, 0)
    for each in (alone, paired):
        assert "hd95_mm is undefined on every volume in 1 of 3 repeats, left out" in each.notes
    once = results_from({"run": repeats[:2], "random-init": repeats[:2]})["mask=y", "hd95_mm", "run", ""]
    assert (once.estimate, once.sd_repeats) == (2, None)


def test_numbers_are_those_of_volumes_where_the_metric_is_defined() -> None:
    dice = np.full((30, 2), 0.5)
    dice[3:, 1] = math.nan
    other = dice.copy()
    other[:3, 1] = 0.2
    found = results_from({"run": [(dice, dice)], "random-init": [(other, other)]})
    for target, number in (("mask", 30), ("mask=x", 30), ("mask=y", 3)):
        for key in (("run", ""), ("random-init", ""), ("run", "random-init")):
            each = found[(target, "dice", *key)]
            assert (each.num_samples, each.num_patients) == (number, number)
            few = [note for note in each.notes if note.startswith("only 3 test patients")]
            assert bool(few) == (number == 3 and key[1] != "")
    assert verdict_of(found["mask=y", "dice", "run", "random-init"]).startswith("undecided")
    shared = np.where(np.arange(30)[:, None] < 12, dice, math.nan)
    found = results_from({"run": [(dice, dice)], "random-init": [(other, shared)]})
    assert found["mask=x", "hd95_mm", "run", ""].num_samples == 30
    assert found["mask=x", "hd95_mm", "run", "random-init"].num_samples == 12


def test_a_class_that_only_the_prediction_has_is_counted_not_scored() -> None:
    dice, sizes = np.array([[0.5], [math.nan], [math.nan]]), np.array([[4.0], [0.0], [3.0]])
    scores = VolumeScores(dice, dice, dice, np.nan_to_num(dice), sizes)
    assert scores.invented.tolist() == [[False], [False], [True]]
    blank = Result("segment", "mask", "dice", math.nan, math.nan, math.nan, 0, 0)
    by = {
        ("run", 1): [scores, scores],
        ("random-init", 1): [VolumeScores(dice, dice, dice, np.nan_to_num(dice), sizes * 0)] * 2,
    }
    found = results_of(by, np.arange(3), ("a",), blank, judged="run", distance="hd95_mm", num_labelled=1, draws=20)
    noted = [each for each in found if any("is predicted that the truth lacks" in note for note in each.notes)]
    assert [(each.metric, each.encoder, each.baseline) for each in noted] == [("dice", "run", "")]
    assert "in 2 of 6 volumes and repeats a class is predicted that the truth lacks" in noted[0].notes
    (said,) = classes_invented(by)
    assert said.startswith("run: 2 of 6 predictions of test volumes have a class that the truth of the volume lacks")


def test_equal_encoders_do_not_differ_and_what_is_undefined_is_not_zero() -> None:
    nothing = VolumeScores(*[np.full((4, 1), np.nan)] * 3, *[np.zeros((4, 1))] * 2)
    some = made_scores(np.random.default_rng(3), 4)
    for same in (nothing, some):
        blank = Result("segment", "mask", "dice", math.nan, math.nan, math.nan, 0, 0)
        scores = {("run", 1): [same], ("random-init", 1): [same]}
        names = ("a",) if same is nothing else ("a", "b")
        found = results_of(
            scores, np.arange(4), names, blank, judged="run", distance="hd95_mm", num_labelled=1, draws=20
        )
        for result in found:
            if same is nothing:
                assert math.isnan(result.estimate)
            elif result.baseline:
                assert result.estimate == 0
                assert result.detectable is None


def test_the_pooled_dice_is_that_of_the_voxels() -> None:
    r = np.random.default_rng(0)
    truth, predicted = (r.integers(0, 3, (4, 2, 5, 5)) for _ in range(2))
    counts = [[((p == k) & (t == k)).sum() for k in (1, 2)] for p, t in zip(predicted, truth, strict=True)]
    sizes = [[(p == k).sum() + (t == k).sum() for k in (1, 2)] for p, t in zip(predicted, truth, strict=True)]
    scores = VolumeScores(*[np.zeros((4, 2))] * 3, np.array(counts, float), np.array(sizes, float))
    blank = Result("segment", "mask", "dice", math.nan, math.nan, math.nan, 0, 0)
    found = results_of({("run", 1): [scores]}, np.arange(4), ("a", "b"), blank, judged="run", distance="hd95_mm",
                       num_labelled=1, draws=5)  # fmt: skip
    pooled = next(each for each in found if each.metric == "dice_pcl")
    assert pooled.estimate == pytest.approx(pooled_dice(list(predicted), list(truth), 3))


# --- the command line


def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["bolus", *map(str, words)])
    monkeypatch.setenv("COLUMNS", "200")
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    shown = capfd.readouterr()
    return code, shown.out + shown.err


def test_the_command_line_segments(
    encoder: Path, cohort: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [
        "evaluate",
        "segment",
        "--encoder",
        encoder,
        cohort,
        "--labelled-patients",
        "1,2",
        "--steps",
        "1",
    ]
    words += ["--repeats", "1", "--overlays", "1", "--class", "1=organ", "--class", "2=lesion"]
    code, out = call(monkeypatch, capfd, *words, "-o", cohort.parent / "o", "--cache", cohort.parent / "c")
    assert code == 0, out
    assert "2 labelled patients: undecided" in out
    results = read_results(cohort.parent / "o" / "results.jsonl")
    assert {r.target for r in results} == {"mask", "mask=organ", "mask=lesion"}
    assert {r.labelled_patients for r in results} == {1, 2}
    assert len(list((cohort.parent / "o").glob("overlay-*.png"))) == 1
    assert "wrote results, volumes, overlays and a segmenter to" in out
    words[words.index("--overlays") + 1] = "0"
    words[words.index("1,2")] = "1"
    code, out = call(monkeypatch, capfd, *words, "-o", cohort.parent / "o", "--cache", cohort.parent / "c")
    assert code == 0, out
    assert "wrote results, volumes and a segmenter to" in out
    assert "1 labelled patient: undecided" in out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["segment", "--fractions", "1"], 2, "bolus evaluate classify, regress and change have --fractions"),
        (["segment", "--probes", "linear"], 2, "bolus evaluate classify, regress and change have --probes"),
        (["segment", "--min-patients", "1"], 2, "bolus evaluate classify has --min-patients"),
        (["segment", "--epochs", "1"], 2, "bolus evaluate classify and regress have --epochs"),
        (["segment", "--tolerance", "1"], 2, "bolus evaluate change has --tolerance"),
        (["segment", "--seed", "-1"], 2, "seed must be a whole number of at least 0"),
        (["classify", "--target", "x", "--steps", "5"], 2, "bolus evaluate segment has --steps"),
        (["classify", "--target", "x", "--class", "1=a"], 2, "bolus evaluate segment has --class"),
        (["segment", "--labelled-patients", "1,x"], 2, "--labelled-patients expects whole numbers"),
        (["segment", "--labelled-patients", "1.5"], 2, "--labelled-patients expects whole numbers"),
        (
            ["segment", "--class", "organ=1"],
            2,
            "expects LABEL=NAME with a whole-number label, found 'organ=1'",
        ),
        (["segment", "--class", "1,2=heart"], 2, "expects LABEL=NAME with a whole-number label"),
        (["segment", "--class", "1.5=heart"], 2, "expects LABEL=NAME with a whole-number label"),
        (["segment", "--class", "1="], 2, "expects LABEL=NAME with a whole-number label"),
        (["segment", "--class", "1=a", "--class", "01=b"], 2, "--class names the label 1 twice: 'a' and 'b'"),
        (["segment", "--steps", "0"], 2, "steps must be at least 1"),
        (["segment", "--target", "x"], 2, "expected the target 'mask', found 'x'"),
        (["sgment", "--target", "x"], 2, "did you mean 'segment'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_commands_end_in_one_message(
    cohort: Path,
    words: list[str],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    found, out = call(monkeypatch, capfd, "evaluate", words[0], "nothing", cohort, *words[1:])
    assert found == code, out
    assert said in out
    assert "Traceback" not in out
