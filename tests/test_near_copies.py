"""Near copies across patients: every kind is found, strangers are not, and bits tell nothing else."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image as PillowImage

from bolus.data.checks.checking import check
from bolus.data.cohort.cohort import Cohort
from bolus.data.copies import seen as seen_module
from bolus.data.copies.near import find_near_copies
from bolus.data.copies.search import nearest_strangers
from bolus.data.copies.seen import FILE, SeenImages, load_seen, name_of, remember_images, save_seen
from bolus.data.copies.signatures import FINE, learn_signer
from bolus.data.copies.thumbnails import thumbnail_of
from bolus.embedding.opening import open_encoder
from bolus.encoders.folders.folder import lineage_of
from bolus.errors import EncoderError, LeakageError
from bolus.evaluation.probing.reading import evaluate
from bolus.prediction.prediction import predict
from bolus.training.loop import pretrain

SIDE = 96
Picture = np.ndarray


def picture(seed: int, side: int = SIDE) -> Picture:
    """Blobs of several sizes on a disc that all pictures have."""
    rng = np.random.default_rng(seed)
    grey = np.zeros((side, side))
    for cells, height in ((4, 40), (8, 30), (16, 20)):
        coarse = PillowImage.fromarray(rng.normal(0, height, (cells, cells)).astype(np.float32))
        grey += np.asarray(coarse.resize((side, side), PillowImage.Resampling.BICUBIC))
    disc = np.hypot(*np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]) < 0.9
    return (np.where(disc, 130 + grey, 5)).clip(0, 255).astype(np.uint8)


def as_jpeg(image: Picture) -> Picture:
    file = io.BytesIO()
    PillowImage.fromarray(image).save(file, "JPEG", quality=60)
    return np.asarray(PillowImage.open(file))


def resized(image: Picture) -> Picture:
    return np.asarray(PillowImage.fromarray(image).resize((61, 70), PillowImage.Resampling.BICUBIC))


def one_pixel(image: Picture) -> Picture:
    changed = image.copy()
    changed[40, 50] = 255 - changed[40, 50]
    return changed


PLANTS: dict[str, Callable[[Picture], Picture]] = {
    "a byte copy": np.copy,
    "resized": resized,
    "re-encoded": as_jpeg,
    "mirrored": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1],
    "cropped": lambda image: image[1 : 1 + round(0.95 * SIDE), 4 : 4 + round(0.95 * SIDE)],
    "brighter": lambda image: (0.85 * image + 25).clip(0, 255).astype(np.uint8),
    "one grey level": lambda image: np.minimum(image, 254) + np.uint8(1),
    "one pixel": one_pixel,
}


def thumbnails(pictures: list[Picture]) -> np.ndarray:
    return np.stack([thumbnail_of(each[None].astype(np.float32)) for each in pictures])


@pytest.fixture(scope="module")
def strangers() -> np.ndarray:
    return thumbnails([picture(seed) for seed in range(150)])


@pytest.mark.parametrize("kind", PLANTS)
def test_every_kind_of_copy_is_found_and_nothing_else(kind: str, strangers: np.ndarray) -> None:
    planted = thumbnails([PLANTS[kind](picture(seed)) for seed in range(5)])
    found = find_near_copies(np.concatenate([strangers, planted]), np.arange(155))
    assert sorted(found.pairs.tolist()) == [[seed, 150 + seed] for seed in range(5)]
    assert found.threshold < 0.93
    assert found.strangers < found.threshold


def test_strangers_are_no_copies_in_small_cohorts_either(strangers: np.ndarray) -> None:
    for number in (1, 2, 3, 10, 60, 150):
        assert not len(find_near_copies(strangers[:number], np.arange(number)).pairs), number


def test_a_copy_is_found_among_few(strangers: np.ndarray) -> None:
    for number in (1, 2, 12):
        both = np.concatenate([strangers[:number], strangers[:1, :, ::-1]])
        assert find_near_copies(both, np.arange(number + 1)).pairs.tolist() == [[0, number]], number


def test_fellow_eyes_of_one_patient_are_no_copies(strangers: np.ndarray) -> None:
    eyes = np.concatenate([strangers, strangers[:, :, ::-1]])
    assert not len(find_near_copies(eyes, np.tile(np.arange(150), 2)).pairs)
    assert len(find_near_copies(eyes, np.arange(300)).pairs) == 150


def test_empty_and_dark_images_are_no_copies(strangers: np.ndarray) -> None:
    rng = np.random.default_rng(5)
    empty, letter = np.zeros((1, SIDE, SIDE)), np.zeros((1, SIDE, SIDE))
    letter[0, 4:8, 4:8] = 255
    dark = [thumbnail_of(rng.poisson(2, (1, SIDE, SIDE))) for _ in range(6)]
    nothing = [thumbnail_of(each) for each in (empty, empty, letter, letter)]
    images = np.concatenate([strangers, dark, nothing])
    assert np.isnan(images[-4:]).all()
    assert not len(find_near_copies(images, np.arange(len(images))).pairs)


def test_two_neighbouring_slices_of_two_patients_are_found(strangers: np.ndarray) -> None:
    near = thumbnails([(0.85 * picture(3) + 0.15 * picture(1000)).astype(np.uint8)])
    assert [3, 150] in find_near_copies(np.concatenate([strangers, near]), np.arange(151)).pairs.tolist()


def test_an_image_is_the_same_whatever_its_size_and_units() -> None:
    large = np.kron(picture(0), np.ones((3, 2)))
    np.testing.assert_allclose(
        thumbnail_of(large[None] * 16.0 - 1024), thumbnail_of(picture(0)[None].astype(float)), atol=1e-4
    )


# --- the search


def by_loops(base: np.ndarray, seen: list[np.ndarray], patients: np.ndarray) -> dict[int, list[int]]:
    found = {}
    for i in range(len(base)):
        best = {
            j: max(float(view[i] @ base[j]) for view in seen) for j in range(len(base)) if patients[i] != patients[j]
        }
        found[i] = sorted(best, key=lambda j: -best[j])[:2]
    return found


@pytest.mark.parametrize("seed", range(5))
def test_search_in_one_cell_equals_two_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    number, dim = int(rng.integers(3, 40)), int(rng.integers(2, 9))
    base = rng.normal(size=(number, dim)).astype(np.float32)
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    seen = [base, base[:, ::-1].copy(), -base]
    patients = rng.integers(0, max(2, number // 3), number)
    found = nearest_strangers(base, seen, patients)
    expected = by_loops(base, seen, patients)
    assert {i: found.stranger[found.image == i].tolist() for i in range(number) if (found.image == i).any()} == {
        i: others for i, others in expected.items() if others
    }
    for image, stranger, view, likeness in zip(*found, strict=True):
        assert likeness == pytest.approx(float(seen[view][image] @ base[stranger]), abs=1e-6)


def test_search_in_many_cells_finds_the_same_copies(strangers: np.ndarray) -> None:
    planted = thumbnails([PLANTS[kind](picture(seed)) for seed, kind in enumerate(PLANTS)])
    images = np.concatenate([strangers, planted])
    one, many = (find_near_copies(images, np.arange(len(images)), cells=cells) for cells in (1, 25))
    assert len(one.pairs) == len(PLANTS)
    assert sorted(one.pairs.tolist()) == sorted(many.pairs.tolist())


# --- bolus check


def write(folder: Path, pictures: list[Picture], **columns: list[Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for row, pixels in enumerate(pictures):
        PillowImage.fromarray(pixels).save(folder / f"{row}.png")
    table = {"image": [f"{row}.png" for row in range(len(pictures))]} | columns
    pd.DataFrame(table).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def test_check_warns_across_patients_and_errs_across_splits(tmp_path: Path) -> None:
    pictures = [picture(seed) for seed in range(110)]
    pictures += [resized(pictures[2]), pictures[4][:, ::-1], pictures[6], pictures[8][::-1]]
    patients = [f"secret{row}" for row in range(113)] + ["secret8"]
    sides = ["train"] * 110 + ["test", "train", "test", "train"]
    report = check(write(tmp_path, pictures, patient=patients, split=sides))
    found = {finding.kind: finding for finding in report.findings if "cop" in finding.kind or "dup" in finding.kind}
    assert {kind: (each.severity, each.rows) for kind, each in found.items()} == {
        "near_copy_across_splits": ("error", (3, 111)),
        "near_copy_across_patients": ("warning", (5, 112)),
        "duplicate_across_splits": ("error", (7, 113)),
    }
    message = found["near_copy_across_splits"].message
    assert "2 images are near copies in 1 group, of different patients on different sides of the split" in message
    assert "rows 3 and 111" in message
    assert not any("secret" in finding.message for finding in report.findings)


# --- what an encoder remembers


def test_training_images_are_recognised_under_any_name(strangers: np.ndarray, tmp_path: Path) -> None:
    seen = remember_images(strangers[:120], np.arange(120), "salt")
    save_seen({name_of("salt"): seen}, tmp_path)
    (again,) = load_seen(tmp_path).values()
    for kind, change in PLANTS.items():
        planted = thumbnails([change(picture(seed)) for seed in range(8)])
        if kind != "cropped":
            assert again.recognise(planted, "salt").all(), kind
        assert not again.recognise(planted, "another").any()
    assert not again.recognise(strangers[120:], "salt").any()
    assert not again.recognise(np.full((1, 32, 32), np.nan, np.float32), "salt").any()


def test_few_training_images_leave_no_mean_of_themselves(strangers: np.ndarray, tmp_path: Path) -> None:
    seen = remember_images(strangers[:30], np.arange(30), "salt")
    save_seen({name_of("salt"): seen}, tmp_path)
    assert (tmp_path / FILE).stat().st_size < 30 * 128 + 1_000
    (again,) = load_seen(tmp_path).values()
    assert again.recognise(thumbnails([resized(picture(seed)) for seed in range(30)]), "salt").all()
    assert not again.recognise(strangers[30:], "salt").any()


def test_an_image_takes_128_bytes(strangers: np.ndarray) -> None:
    assert remember_images(strangers, np.arange(150), "salt").bits.nbytes == 128 * 150  # 12.8 MB of 100,000


def test_bits_do_not_tell_how_alike_strangers_are(strangers: np.ndarray) -> None:
    signer = learn_signer(strangers, FINE)
    signatures = signer.sign(strangers)
    bits = seen_module._bits(signatures, "salt", 0.93)
    pairs = np.triu_indices(150, 1)
    differ = np.bitwise_count(bits[pairs[0]] ^ bits[pairs[1]]).sum(axis=1) / 1024
    alike = (signatures @ signatures.T)[pairs]
    assert alike.std() > 0.03
    assert abs(np.corrcoef(alike, differ)[0, 1]) < 0.1
    assert differ == pytest.approx(0.5, abs=0.1)


def test_pixels_are_not_read_out_of_bits_even_with_known_images(strangers: np.ndarray) -> None:
    """Linear regression from bits to signatures, learned on 120 known images, says nothing of the 30 others."""
    signatures = learn_signer(strangers, FINE).sign(strangers)
    bits = seen_module._bits(signatures, "salt", 0.93)
    ones = 2.0 * np.unpackbits(bits.view(np.uint8), axis=1) - 1
    weights = np.linalg.lstsq(ones[:120], signatures[:120], rcond=None)[0]
    guessed = ones[120:] @ weights
    cosine = (guessed * signatures[120:]).sum(axis=1) / np.linalg.norm(guessed, axis=1)
    assert abs(cosine.mean()) < 0.1


def test_a_damaged_file_is_refused_and_none_is_nothing(tmp_path: Path, strangers: np.ndarray) -> None:
    assert load_seen(tmp_path) == {}
    save_seen({"a": remember_images(strangers[:5], np.arange(5), "salt")}, tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EncoderError, match="damaged"):
        load_seen(tmp_path)
    save_seen({}, tmp_path)
    assert not (tmp_path / FILE).exists()


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """60 patients with two images each; patients are on the sides that `split` says."""
    pictures = [picture(seed, 48) for seed in range(120)]
    patients = [f"P{row // 2}" for row in range(120)]
    sides = ["train" if row < 80 else "val" if row < 96 else "test" for row in range(120)]
    return write(
        tmp_path / "cohort", pictures, patient=patients, split=sides, label=[row // 2 % 2 for row in range(120)]
    )


def test_evaluate_refuses_training_images_under_new_patients(
    cohort: Path, small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"cache": tmp_path / "cache"}
    spec = Cohort.open(cohort, roles={"label:sick": "label"})
    run = pretrain(spec, recipe=small_recipe, out=tmp_path / "run", quiet=True, **options)
    assert set(open_encoder(run.folder).seen) == {name_of(run.record["salt"])}
    assert name_of(lineage_of(run.encoder)[0]["salt"]) in load_seen(run.encoder)
    judged = evaluate(run.folder, spec, target="sick", draws=20, probes=("linear",), **options)
    assert not any("not written down" in note for note in judged.notes)
    head = judged.folder / "head-sick-linear.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(SeenImages, "recognise", None)  # a second question asks no image again
        evaluate(run.folder, spec, target="sick", draws=20, probes=("linear",), **options)

    stolen = [picture(seed, 48) for seed in range(200, 260)]
    stolen[40:46] = [as_jpeg(picture(seed, 48)[:, ::-1]) for seed in range(6)]
    sides = ["train"] * 20 + ["test"] * 40
    columns = {"patient": [f"Q{row}" for row in range(60)], "split": sides, "label": [row % 2 for row in range(60)]}
    other = Cohort.open(write(tmp_path / "other", stolen, **columns), roles={"label:sick": "label"})
    with pytest.raises(LeakageError, match=r"6 of 40 images .* \(rows 41, 42, 43, 44, 45 and 1 more\)") as error:
        evaluate(run.folder, other, target="sick", draws=20, probes=("linear",), **options)
    assert "Q4" not in str(error.value)
    remarks = predict(run.folder, other, head=head, **options).attrs["remarks"]
    assert any("6 rows look like images that the encoder was trained on" in remark for remark in remarks)

    (run.encoder / FILE).unlink()  # as of an earlier version
    judged = evaluate(run.folder, other, target="sick", draws=20, probes=("linear",), **options)
    assert any("its training images are not written down" in note for note in judged.notes)
