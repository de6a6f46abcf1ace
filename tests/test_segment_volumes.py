"""Segmentation of volumes: masks on their voxels, windows, sliding, scores in mm, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image as PillowImage
from pydicom import uid

import bolus
from bolus.data.cohort.cohort import Cohort, Samples
from bolus.data.images.cache import build_store
from bolus.data.images.clips import open_samples
from bolus.data.images.preprocessing import Preprocessing
from bolus.data.volumes.cache.store import VolumeStore
from bolus.data.volumes.fit import VolumeFit
from bolus.encoders.building import build_encoder
from bolus.encoders.families.unet import MaskDecoder
from bolus.encoders.folders.folder import save_encoder
from bolus.errors import BolusError, CohortError, EvaluationError, UsageError
from bolus.evaluation.segmentation.annotation import Annotations
from bolus.evaluation.segmentation.options import SegmentSpec
from bolus.evaluation.segmentation.overlap import volume_dice, volume_hd95, volume_surface_dice
from bolus.evaluation.segmentation.segment import evaluate_segment
from bolus.evaluation.segmentation.segmenter import Segmenter, start_decoder
from bolus.evaluation.segmentation.volumes.masks import read_volume_masks, volume_again
from bolus.evaluation.segmentation.volumes.place import Grid, Place, from_stored, grid_of, seen_part, to_stored
from bolus.evaluation.segmentation.volumes.sliding import fit_windows, slide
from bolus.evaluation.segmentation.volumes.windows import cut, draw_corner, labelled_voxels, labelled_windows
from bolus.exporting.deploying import export
from bolus.recipe import AugmentSpec, EncoderSpec
from dicom_tree import Tree, person, slice_tags

pytest.importorskip("blosc2", reason="the package blosc2 is not installed")

PATIENTS, STEPS = 12, (3.0, 1.0, 1.5)  # mm along D, H, W
SPLITS = ["train"] * 6 + ["val"] + ["test"] * 5
BOX = (16, 16, 16)
CONTRACT = Preprocessing(16, volume=VolumeFit(BOX))
AFFINE = np.diag([-STEPS[2], STEPS[1], STEPS[0], 1.0])  # the first axis of the files runs to the left
QUICK = AugmentSpec(preset="none", rotation=10.0)


def made(patient: int) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and mask `[D, H, W]`, anatomical: a bright cube (label 3) in noise."""
    rng = np.random.default_rng(patient)
    shape = (16 + 2 * (patient % 3), 28, 24)
    mask = np.zeros(shape, np.uint8)
    z, y, x = (int(rng.integers(2, side - 11)) for side in shape)
    mask[z : z + 8, y : y + 9, x : x + 9] = 3
    return rng.normal(100, 20, shape) + 200.0 * (mask > 0), mask


def save(array: np.ndarray, path: Path, affine: np.ndarray = AFFINE) -> None:
    """An anatomical array as NIfTI whose first axis runs to the left."""
    nibabel.save(nibabel.Nifti1Image(array[:, :, ::-1].T.astype(np.int16), affine), path)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = []
    for patient in range(PATIENTS):
        voxels, mask = made(patient)
        save(voxels, tmp_path / f"i{patient}.nii")
        save(mask, tmp_path / f"m{patient}.nii")
        rows.append([f"i{patient}.nii", f"m{patient}.nii", f"P00{patient}", "MR", SPLITS[patient]])
    pd.DataFrame(rows, columns=["image", "mask", "patient", "modality", "split"]).to_csv(
        tmp_path / "table.csv", index=False
    )
    return tmp_path / "table.csv"


def opened(table: Path, contract: Preprocessing = CONTRACT) -> tuple[VolumeStore, Samples, Annotations]:
    samples = open_samples(Cohort.open(table), "volume")
    store = build_store(samples.cohort, contract, folder=table.parent / "cache")
    assert isinstance(store, VolumeStore)
    return store, samples, read_volume_masks(samples)


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    built = build_encoder(EncoderSpec(backbone="unet3d4"), seed=5)
    save_encoder(built, tmp_path / "judged", preprocessing=CONTRACT.to_json())
    return tmp_path / "judged"


def judge(encoder: Path, table: Path, **given: Any) -> Any:
    given = {"labelled": (2,), "repeats": 1, "spec": SegmentSpec(steps=2, batch_size=2), "draws": 20, **given}
    return evaluate_segment(
        encoder, table, cache=table.parent / "cache", out=table.parent / "judged-by", quiet=True, **given
    )


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one * other).sum() / (one.sum() + other.sum()))


# --- masks on the voxels of their volumes


def test_masks_lie_on_the_voxels_of_their_volume_whatever_the_axes_of_the_files(table: Path) -> None:
    turned = np.zeros((4, 4))  # the same mask with its axes exchanged: superior, right, anterior
    _, mask = made(3)
    axes = np.transpose(mask, (0, 2, 1))  # D W H
    turned[2, 0], turned[0, 1], turned[1, 2], turned[3, 3] = STEPS[0], STEPS[2], STEPS[1], 1
    turned[0, 3] = -STEPS[2] * (mask.shape[2] - 1)  # where the left end of the image lies
    nibabel.save(nibabel.Nifti1Image(axes, turned), table.parent / "m3.nii")
    store, samples, found = opened(table)
    assert found.names == ("3",)
    assert set(found.codes) == {row for row in range(PATIENTS) if SPLITS[row] != "val"}
    for row, codes in found.codes.items():
        np.testing.assert_array_equal(codes, made(row)[1] > 0)
        assert found.spacing[row] == STEPS
        np.testing.assert_array_equal(volume_again(samples, row).array[0] > 200, made(row)[0].astype(np.int16) > 200)
        assert store.shape[row, 1:].tolist() == list(codes.shape)
    assert not found.notes


def slices_of(table: Path, patient: int, *, masks: str, images: str = "nifti") -> Samples:
    """A volume with a row for each slice, from superior to inferior; masks and images as NIfTI or a PNG a slice."""
    voxels, mask = made(patient)
    folder, rows = table.parent, []
    for number in reversed(range(len(mask))):
        shown = mask[number, ::-1, ::-1]  # anterior at the top, right on the left
        PillowImage.fromarray(shown).save(folder / f"s{number}.png")
        PillowImage.fromarray(voxels[number, ::-1, ::-1].clip(0, 255).astype(np.uint8)).save(folder / f"p{number}.png")
        image = f"i{patient}.nii" if images == "nifti" else f"p{number}.png"
        rows.append([image, f"m{patient}.nii" if masks == "nifti" else f"s{number}.png", number, "P1", "s", "train"])
    frame = pd.DataFrame(rows, columns=["image", "mask", "order", "patient", "series", "split"])
    frame.to_csv(folder / "slices.csv", index=False)
    return open_samples(Cohort.open(folder / "slices.csv"), "volume")


@pytest.mark.parametrize("images", ["nifti", "png"])
def test_a_mask_for_each_slice_and_one_for_all_agree(table: Path, images: str) -> None:
    found = [read_volume_masks(slices_of(table, 2, masks=masks, images=images)) for masks in ("nifti", "png")]
    mask = made(2)[1] > 0
    for each in found:
        [codes] = each.codes.values()
        np.testing.assert_array_equal(codes, mask if images == "nifti" else mask[:, ::-1, ::-1])
    said = [any("is not checked" in note for note in each.notes) for each in found]
    assert said == ([False, True] if images == "nifti" else [True, False]), "a picture does not say where it lies"
    assert (len(found[0].spacing) == 1) == (images == "nifti")


def test_masks_of_dicom_slices_are_sorted_with_them(tmp_path: Path) -> None:
    tree, rng = Tree(tmp_path / "dicom"), np.random.default_rng(0)
    voxels, mask = rng.integers(0, 900, (5, 6, 7)).astype(np.uint16), np.zeros((5, 6, 7), np.uint8)
    mask[3, 1:4, 5:], mask[0, 0, 0] = 1, 1
    rows = []
    for place in rng.permutation(5).tolist():
        tags = {**person(1), **slice_tags("20200101", place + 1, 2.5 * place)}
        path = tree.write(f"a/b/c/{place}", uid.CTImageStorage, tags, voxels[place])
        PillowImage.fromarray(mask[place]).save(tmp_path / f"m{place}.png")
        rows.append([str(path.relative_to(tmp_path)), f"m{place}.png", len(rows), "P1", "s", "train"])
    frame = pd.DataFrame(rows, columns=["image", "mask", "order", "patient", "series", "split"])
    frame.to_csv(tmp_path / "t.csv", index=False)
    samples = open_samples(Cohort.open(tmp_path / "t.csv"), "volume")
    [codes] = read_volume_masks(samples).codes.values()
    seen = volume_again(samples, 0)
    np.testing.assert_array_equal(codes, mask[:, ::-1, ::-1])
    np.testing.assert_array_equal(seen.array[0], voxels[:, ::-1, ::-1].astype(np.float32) - 1024)
    assert seen.affine is not None
    nibabel.save(nibabel.Nifti1Image(codes.T.astype(np.uint8), seen.affine), tmp_path / "m.nii")
    frame.assign(mask="m.nii").to_csv(tmp_path / "t.csv", index=False)
    again = read_volume_masks(open_samples(Cohort.open(tmp_path / "t.csv"), "volume"))
    np.testing.assert_array_equal(next(iter(again.codes.values())), codes)
    assert not again.notes


def moved(table: Path, millimetres: float) -> None:
    affine = AFFINE.copy()
    affine[2, 3] = millimetres
    save(made(0)[1], table.parent / "m0.nii", affine)


def edit(table: Path, row: int, **values: Any) -> None:
    frame = pd.read_csv(table)
    for name, value in values.items():
        frame.loc[row, name] = value
    frame.to_csv(table, index=False)


def coloured(table: Path) -> None:
    PillowImage.new("RGB", (24, 28)).save(table.parent / "colour.png")
    edit(table, 1, mask="colour.png")


def unmask(table: Path, rows: range) -> None:
    for row in rows:
        edit(table, row, mask="")


def unname(table: Path) -> None:
    pd.read_csv(table).drop(columns="mask").to_csv(table, index=False)


def resave(table: Path, mask: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    save(mask, table.parent / "m0.nii", affine)


APART = "row 1: the mask: the affines of mask and image differ"
WRONG: dict[str, tuple[Callable[[Path], None], type[BolusError], str]] = {
    "moved": (lambda table: moved(table, 1.0), CohortError, f"{APART}: their origins lie 1 mm apart"),
    "coarse": (
        lambda table: resave(table, made(0)[1], np.diag([-1.5, 1, 2, 1])),
        CohortError,
        f"{APART} in the direction of their axes or the size of their voxels",
    ),
    "short": (
        lambda table: resave(table, made(0)[1][1:]),
        CohortError,
        "row 1: the mask: expected 16 x 28 x 24 voxels, as its image has, found 15 x 28 x 24",
    ),
    "colour": (coloured, CohortError, "row 2: the mask: expected one label a pixel, found colour"),
    "nowhere": (lambda table: edit(table, 1, mask="none.nii"), CohortError, "row 2: the mask: "),
    "few": (
        lambda table: unmask(table, range(5)),
        EvaluationError,
        "2 asked for, and 1 training patient has a mask and a volume; of 6 training volumes 5 have no mask",
    ),
    "untested": (
        lambda table: unmask(table, range(7, 12)),
        EvaluationError,
        "no test volume has a mask: of 5 test volumes 5 have no mask",
    ),
    "unnamed": (unname, EvaluationError, "no column has the role mask"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_masks_are_named_before_anything_is_trained(
    encoder: Path, table: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "bolus.evaluation.segmentation.volumes.whole.fit_windows", lambda *_, **__: pytest.fail("trained")
    )
    damage, kind, said = WRONG[name]
    damage(table)
    with pytest.raises(kind) as caught:
        judge(encoder, table)
    assert said in str(caught.value)
    assert "P00" not in str(caught.value)


def test_some_slices_without_a_mask_are_no_mask_and_several_files_are_one_a_slice(table: Path) -> None:
    slices_of(table, 2, masks="png")
    path = table.parent / "slices.csv"
    frame = pd.read_csv(path)
    frame.assign(mask=["s0.png", "s1.png"] * 9 + ["s1.png", "s1.png"]).to_csv(path, index=False)
    with pytest.raises(CohortError, match=r"expected one mask for the volume, or one for each of its 20 rows, found 2"):
        read_volume_masks(open_samples(Cohort.open(path), "volume"))
    frame.loc[3, "mask"] = ""
    frame.to_csv(path, index=False)
    with pytest.raises(EvaluationError, match="of 1 training volume 1 has no mask"):
        read_volume_masks(open_samples(Cohort.open(path), "volume"))


# --- the cached voxels beside those of the files


SLANTED = np.array([[1.0, 0, 0, 0], [0, 1, 0.8, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
FITS = {
    "plain": CONTRACT,
    "coarse": replace(CONTRACT, volume=VolumeFit(BOX, (3, 2, 2))),
    "fine": replace(CONTRACT, volume=VolumeFit(BOX, (1.5, 1.0, 1.0))),
    "stretched": replace(CONTRACT, fit="stretch"),
    "cropped": replace(CONTRACT, fit="crop"),
    "body": replace(CONTRACT, volume=VolumeFit(BOX, (3, 1.2, 1.2), foreground=True)),
}


@pytest.mark.parametrize("fit", list(FITS))
def test_masks_go_to_the_cached_voxels_and_back(table: Path, fit: str) -> None:
    contract = FITS[fit]
    store, samples, found = opened(table, contract)
    for row in (0, 8):
        place, truth = found.places[row], found.codes[row]
        grid = grid_of(place, contract, lambda row=row: volume_again(samples, row))
        assert grid.shape == tuple(store.shape[row, 1:].tolist())
        kept = to_stored(truth, grid)
        bright = store.gather(np.array([row])).unit()[0, 0].numpy()
        if fit != "body":  # of which the cube is all
            assert bright[kept == 1].mean() > 0.6, "labels lie on what is bright in the cache"
            assert bright[kept == 0].mean() < 0.4
        else:
            assert kept.mean() > 0.9
        scores = torch.nn.functional.one_hot(torch.from_numpy(kept.astype(np.int64)), 2).movedim(-1, 0).float()
        back, seen = from_stored(scores, grid), seen_part(grid)
        assert back.shape == truth.shape
        assert not back[~seen].any()
        if seen.all() or fit == "body":
            least = {"plain": 1.0, "coarse": 0.85, "fine": 0.99}.get(fit, 0.75)
            assert dice(back * seen, truth * seen) >= least
        assert seen.all() == (fit not in ("cropped", "body"))


def test_slanted_voxels_go_to_an_upright_grid_and_back() -> None:
    place = Place((10, 20, 16), (math.hypot(3, 0.8), 1.0, 1.0), SLANTED)
    truth = np.zeros(place.shape, np.uint8)
    truth[2:8, 5:14, 4:12] = 1
    grid = grid_of(place, replace(CONTRACT, volume=VolumeFit(BOX, (3, 1, 1))), lambda: pytest.fail("read"))
    kept = to_stored(truth, grid)
    assert kept.shape[1] > 20, "the upright grid is longer"
    at = np.argwhere(kept)
    mm = grid.to_native @ np.r_[at.mean(0)[::-1], 1]
    np.testing.assert_allclose(mm[:3], [7.5, 9, 4.5], atol=0.3)
    scores = torch.stack([1 - torch.from_numpy(kept).float(), torch.from_numpy(kept).float()])
    assert dice(from_stored(scores, grid), truth) > 0.9
    assert seen_part(grid).all()


def test_the_nearest_label_is_taken_and_classes_are_interpolated() -> None:
    grid = Grid((1, 1, 3), (1, 1, 6), np.array([[2.0, 0, 0, 0.6], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    labels = np.array([[[1, 2, 3, 4, 5, 6]]])
    assert to_stored(labels, grid).tolist() == [[[2, 4, 6]]]
    scores = torch.tensor([[0.6, 0.6, 0.1], [0.4, 0.4, 0.9]]).view(2, 1, 1, 3)
    assert from_stored(scores, grid).tolist() == [[[0, 0, 0, 0, 1, 1]]]


# --- windows


def test_windows_are_about_labelled_voxels_as_often_as_is_said() -> None:
    labels = np.zeros((20, 40, 40), np.uint8)
    labels[3, 30, 5], labels[15, 10:20, 30:] = 1, 2
    voxels, shape, box = labelled_voxels(labels), labels.shape, (8, 16, 16)

    def hits(share: float) -> list[set[int]]:
        corners = [draw_corner(shape, box, voxels, share, np.random.default_rng([3, n])) for n in range(300)]
        assert all((at >= 0).all() and (at + box <= shape).all() for at in corners)
        return [set(np.unique(cut(labels, at, np.array(box)))) - {0} for at in corners]

    always, half, never = hits(1.0), hits(0.5), hits(0.0)
    assert all(always)
    assert 0.4 < np.mean([1 in each for each in always]) < 0.7, "either class alike, however many voxels it has"
    assert np.mean([1 in each for each in never]) < 0.15
    rate = [np.mean([bool(each) for each in some]) for some in (never, half, always)]
    assert rate[0] + 0.1 < rate[1] < 0.95
    assert draw_corner((4, 40, 40), box, [], 1.0, np.random.default_rng(0))[0] == -2


def test_a_window_and_its_labels_are_of_one_view_and_of_the_seed(table: Path) -> None:
    store, _, found = opened(table)
    rows = np.array([0, 4, 0])
    labels = [found.codes[int(row)].astype(np.int64) for row in rows]
    given: dict[str, Any] = {"box": BOX, "share": 1.0, "device": torch.device("cpu")}
    spec = AugmentSpec(preset="none", crop_scale=(0.6, 1.0), rotation=30, flip_depth=0.5, tilt=10)
    voxels = [labelled_voxels(each) for each in labels]
    images, target = labelled_windows(store, rows, labels, voxels, augment=spec, seed=1, **given)
    assert images.shape == (3, 1, *BOX)
    assert target.shape == (3, *BOX)
    for image, mask in zip(images[:, 0], target, strict=True):
        assert 0.02 < mask.float().mean() < 0.9
        assert image[mask == 1].mean() - image[mask == 0].mean() > 0.3
    again = labelled_windows(store, rows, labels, voxels, augment=spec, seed=1, **given)
    other = labelled_windows(store, rows, labels, voxels, augment=spec, seed=2, **given)
    assert torch.equal(images, again[0])
    assert torch.equal(target, again[1])
    assert not torch.equal(target, other[1])
    assert not torch.equal(target[0], target[2]), "one volume, seen in two windows"


# --- sliding


@pytest.fixture
def segmenter(table: Path) -> tuple[Segmenter, Annotations]:
    store, samples, found = opened(table)
    built = build_encoder(EncoderSpec(backbone="unet3d4"), seed=0).eval()
    return Segmenter(built, start_decoder(built, 2, 0).eval(), store, samples, 2), found


def test_a_window_that_is_the_volume_gives_one_forward(segmenter: tuple[Segmenter, Annotations]) -> None:
    drawing, _ = segmenter
    whole = drawing.store.gather(np.array([2])).unit()
    with torch.inference_mode():
        expected = drawing.logits(whole).softmax(1)[0]
    box = tuple(whole.shape[2:])
    torch.testing.assert_close(slide(drawing, 2, box=box), expected, atol=1e-5, rtol=0)  # type: ignore[arg-type]


def test_windows_cover_the_volume_and_are_averaged_by_a_gaussian(
    segmenter: tuple[Segmenter, Annotations], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing, _ = segmenter
    seen: list[torch.Tensor] = []

    def logits(windows: torch.Tensor) -> torch.Tensor:  # no convolution: what a window says of a voxel is its mean
        seen.extend(windows)
        mean = windows.mean((1, 2, 3, 4), keepdim=True).expand(-1, 1, *BOX)
        return torch.cat([5 * mean, -5 * mean], dim=1)

    monkeypatch.setattr(drawing, "logits", logits)
    found = slide(drawing, 2, box=BOX)
    whole = drawing.store.gather(np.array([2])).unit()[0]
    assert whole.shape[1:] == (20, 28, 24)
    top, bottom = torch.zeros(2, 20, 28, 24), torch.zeros(20, 28, 24)
    ramp = [torch.exp(-0.5 * ((torch.arange(side) - (side - 1) / 2) / (0.125 * side)) ** 2) for side in BOX]
    weight = (ramp[0][:, None, None] * ramp[1][:, None] * ramp[2]).clamp(min=1e-3)
    for z, y, x in product((0, 4), (0, 8, 12), (0, 8)):
        part = (slice(z, z + 16), slice(y, y + 16), slice(x, x + 16))
        mean = whole[0][part].mean()
        said = torch.stack([5 * mean, -5 * mean]).softmax(0)
        top[:, *part] += weight * said[:, None, None, None]
        bottom[part] += weight
    assert len(seen) == 12
    assert (bottom > 0).all()
    torch.testing.assert_close(found, top / bottom, atol=2e-4, rtol=0)
    torch.testing.assert_close(found.sum(0), torch.ones(20, 28, 24))


def test_a_bright_cube_is_learnt(segmenter: tuple[Segmenter, Annotations]) -> None:
    untrained, found = segmenter
    store, samples = untrained.store, untrained.samples
    assert isinstance(store, VolumeStore)
    labels = {row: codes.astype(np.int64) for row, codes in found.codes.items()}
    spec = SegmentSpec(steps=60, batch_size=4, lr=2e-2, augment=QUICK)
    before, steps = torch.get_rng_state(), list[int]()
    trained = fit_windows(
        untrained.encoder, store, samples, labels, [0, 2], box=BOX, num_classes=2, spec=spec, on_step=steps.append
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert steps == list(range(1, 61))
    assert isinstance(trained.decoder, MaskDecoder)
    scores = {
        name: [dice(slide(each, row, box=BOX).argmax(0).numpy(), labels[row]) for row in (7, 9)]
        for name, each in (("trained", trained), ("untrained", untrained))
    }
    assert min(scores["trained"]) > 0.8
    assert max(scores["untrained"]) < 0.4
    assert not trained.encoder.training
    with pytest.raises(EvaluationError, match="no labelled volume"):
        fit_windows(untrained.encoder, store, samples, labels, [], box=BOX, num_classes=2)


# --- scores


def naive_surface(mask: np.ndarray) -> list[tuple[int, ...]]:
    """Voxels with a neighbour across a face that is not of the mask, or beyond the volume."""
    found = []
    for at in np.argwhere(mask):
        for axis, step in product(range(3), (-1, 1)):
            other = at.copy()
            other[axis] += step
            if not 0 <= other[axis] < mask.shape[axis] or not mask[tuple(other)]:
                found.append(tuple(int(each) for each in at))
                break
    return found


def test_scores_in_mm_equal_a_loop_over_surface_voxels() -> None:
    truth, predicted = np.zeros((8, 9, 10), np.int64), np.zeros((8, 9, 10), np.int64)
    truth[2:6, 1:6, 2:7], predicted[3:7, 2:8, 2:6], predicted[3, 8, 9] = 1, 1, 1
    one, other = naive_surface(predicted == 1), naive_surface(truth == 1)

    def distances(here: list[tuple[int, ...]], there: list[tuple[int, ...]]) -> list[float]:
        return [min(math.dist(np.multiply(a, STEPS), np.multiply(b, STEPS)) for b in there) for a in here]

    away = [distances(one, other), distances(other, one)]
    expected = max(np.percentile(each, 95) for each in away)
    np.testing.assert_allclose(volume_hd95(predicted, truth, 2, STEPS), [expected], rtol=1e-5)
    for tolerance in (0.5, 1.0, 1.6, 3.0):
        near = sum(each <= tolerance for some in away for each in some)
        found = volume_surface_dice(predicted, truth, 2, STEPS, tolerance=tolerance)
        np.testing.assert_allclose(found, [near / (len(one) + len(other))], rtol=1e-6)
    both = sum(bool(truth[at] and predicted[at]) for at in np.ndindex(8, 9, 10))
    np.testing.assert_allclose(volume_dice(predicted, truth, 2), [2 * both / (truth.sum() + predicted.sum())])
    missed = volume_surface_dice(0 * predicted, truth, 3, STEPS, tolerance=1)
    np.testing.assert_array_equal(missed, [0, math.nan])
    with pytest.raises(UsageError, match="tolerance: expected a positive number, found 0"):
        volume_surface_dice(predicted, truth, 2, STEPS, tolerance=0)


# --- the whole of it


def test_the_evaluation_writes_what_that_of_slices_does(encoder: Path, table: Path, tmp_path: Path) -> None:
    found = judge(encoder, table, overlays=2, spec=SegmentSpec(steps=3, batch_size=2, foreground=0.75))
    metrics = {each.metric for each in found.results}
    assert metrics == {"dice", "hd95_mm", "hd95_mm_misses", "surface_dice", "dice_pcl"}
    own = [each for each in found.results if not each.baseline and each.metric == "dice"]
    assert [each.encoder for each in own] == ["judged", "random-init"]
    assert {each.num_patients for each in own} == {5}
    frame = pd.read_parquet(found.folder / "volumes.parquet")
    assert frame["row"].unique().tolist() == [8, 9, 10, 11, 12]
    assert frame["true_voxels"].tolist() == [648] * 10
    np.testing.assert_allclose(frame["true_ml"], 648 * math.prod(STEPS) / 1000)
    assert frame["surface_dice"].between(0, 1).all()
    assert len(list(found.folder.glob("overlay-row*.png"))) == 2
    notes = " ".join(found.notes)
    assert "6 training patients have masks; 5 test volumes of 5 patients" in notes
    assert "3 steps of 2 windows of 16 x 16 x 16 voxels, 75% of them about a labelled voxel" in notes
    assert "surface_dice is the share of both surfaces that lies within 2 mm of the other" in notes
    again = judge(encoder, table, spec=SegmentSpec(steps=3, batch_size=2, foreground=0.75))
    pd.testing.assert_frame_equal(again.volumes, found.volumes)
    segmenter = found.folder / "segmenter-mask"
    masks = bolus.predict(encoder, table, head=segmenter, out=tmp_path / "drawn", cache=tmp_path / "cache")
    assert masks["mask"].notna().all()
    exported = export(encoder, to="torch", out=tmp_path / "out", head=segmenter)
    assert exported.differences["all"] < 1e-5
    described = json.loads((tmp_path / "out" / "contract.json").read_text())
    assert described["outputs"] == {"mask": ["batch", 2, *BOX]}
    assert "averages probabilities" not in (tmp_path / "out" / "README.md").read_text(), "that is said of ONNX"


def test_distances_are_in_voxels_where_a_spacing_is_not_known_and_a_crop_is_said(
    encoder: Path, table: Path, tmp_path: Path
) -> None:
    built = build_encoder(EncoderSpec(backbone="unet3d2"), seed=5)
    contract = replace(CONTRACT, fit="crop")
    save_encoder(built, tmp_path / "cropping", preprocessing=contract.to_json())
    pages = [PillowImage.fromarray(page) for page in made(7)[1]]
    pages[0].save(table.parent / "m7.tif", save_all=True, append_images=pages[1:])
    shown = [PillowImage.fromarray(page.clip(0, 255).astype(np.uint8)) for page in made(7)[0]]
    shown[0].save(table.parent / "i7.tif", save_all=True, append_images=shown[1:])
    edit(table, 7, image="i7.tif", mask="m7.tif")
    found = judge(tmp_path / "cropping", table, spec=SegmentSpec(steps=1, batch_size=2, whole=False), overlays=1)
    assert {each.metric for each in found.results} >= {"hd95_voxels", "surface_dice"}
    notes = " ".join(found.notes)
    assert "of 5 there are 1 whose files do not state the spacing of voxels" in notes
    assert "lies within 2 voxels of the other" in notes
    assert "of the foreground of the test volumes is outside what the encoder is shown of them: never found" in notes


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"foreground": 1.5}, "foreground must be a share from 0 to 1, found 1.5"),
        ({"foreground": True}, "foreground must be a share"),
        ({"tolerance": 0.0}, "tolerance must be a number above 0"),
        ({"augment": AugmentSpec(preset="ct", tilt=5, crop_scale=(0.9, 0.5))}, "augment.crop_scale: expected"),
    ],
)
def test_numbers_out_of_range_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        SegmentSpec(**given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"foreground": 0.5}, "segmentation: foreground is for volumes, and this encoder sees images"),
        ({"tolerance": 1.0}, "segmentation: tolerance is for volumes"),
        ({"augment": AugmentSpec(preset="ct")}, "segmentation: augment.preset: ct is for volumes"),
        ({"augment": AugmentSpec(preset="none", tilt=4)}, "segmentation: augment.tilt: is for volumes"),
    ],
)
def test_what_volumes_have_is_refused_of_images(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        SegmentSpec(**given).check_unit("image")
    SegmentSpec(**given).check_unit("volume")


def test_mirrored_volumes_and_clips_are_refused(table: Path, tmp_path: Path) -> None:
    built = build_encoder(EncoderSpec(backbone="unet3d2"), seed=5)
    save_encoder(built, tmp_path / "mirrored", preprocessing=replace(CONTRACT, mirror="R").to_json())
    with pytest.raises(EvaluationError, match="sees images of one side mirrored, and masks are not mirrored"):
        judge(tmp_path / "mirrored", table)
    flat = build_encoder(EncoderSpec(backbone="unet2"), seed=5)
    save_encoder(flat, tmp_path / "clips", preprocessing=Preprocessing(16, frames=4).to_json())
    with pytest.raises(EvaluationError, match="segmentation is of single images, and this encoder sees clips"):
        judge(tmp_path / "clips", table)
