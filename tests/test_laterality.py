"""Sides are read as people write them, and one of them is mirrored without a second cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image as PillowImage

import bolus
from bolus.data.batches.relation import Needs
from bolus.data.checks.columns import check_columns
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.data.images.cache import Preprocessing, build_store
from bolus.data.text.laterality import side_of
from bolus.embedding.opening import open_encoder, open_store, remarks_on
from bolus.embedding.vectors import embed_samples
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import save_encoder
from bolus.errors import CohortError, EvaluationError
from bolus.evaluation.segmentation.segment import evaluate_segment
from bolus.recipe import EncoderSpec, Recipe
from bolus.training.loaders import build_loader, contract_of, data_hash, unread_loader
from bolus.training.processes import launched

LEFT, RIGHT, NEITHER = 0, 1, -1


WRITTEN = {
    LEFT: ["L", "l", " Left ", "OS", "sinister", "Lt."],
    RIGHT: ["R", "RIGHT", "od", "Dexter", "rt."],
    NEITHER: ["U", "B", "bilateral", "Unpaired", "OU", "", " ", None, np.nan],
    None: ["o.s", "1", 0, "middle", "LR"],
}


@pytest.mark.parametrize(("value", "side"), [(value, side) for side, values in WRITTEN.items() for value in values])
def test_a_value_names_a_side_or_none_or_is_refused(value, side):
    values = np.array(["L", value, "R"], dtype=object)
    if side is None:
        with pytest.raises(CohortError, match=f"row 2: expected left or right .* found {str(value)!r}; declare"):
            side_of(values)
    else:
        found = side_of(values)
        assert found.dtype == np.int64
        assert found.tolist() == [LEFT, side, RIGHT]


def test_refused_values_name_the_rows_given_and_hide_identifiers():
    with pytest.raises(CohortError, match=r"rows 1, 12: .* found 'chest'"):
        side_of(np.array(["chest", "L", "chest", "chest"]), rows=np.array([0, 3, 11, 11]))
    names = np.array([f"Surname{row:03d}" for row in range(20)])
    with pytest.raises(CohortError, match="found 'aaaaaaa999'") as caught:
        side_of(names)
    assert "Surname" not in str(caught.value)


def test_a_series_of_sides_with_any_index_is_read_in_order():
    assert side_of(pd.Series(["R", None, "L"], index=[7, 3, 9])).tolist() == [RIGHT, NEITHER, LEFT]
    assert side_of(np.array([], dtype=object)).tolist() == []


def fundus(seed, shape):
    """A picture that is not its own mirror: a dark disc, a bright spot on one side, noise."""
    rng = np.random.default_rng(seed)
    height, width = shape
    y, x = np.mgrid[:height, :width]
    picture = 60 + 40 * (np.hypot((x / width - 0.5), (y / height - 0.5)) < 0.45)
    picture = picture + 90 * (np.hypot((x / width - 0.75), (y / height - 0.5)) < 0.1) + rng.integers(0, 30, shape)
    return picture.astype(np.uint8)


def write_eyes(folder: Path, shape=(20, 20), num_patients=4, **columns) -> Cohort:
    """Row by row the right eye of a patient, and its exact mirror image as the left one."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for patient in range(num_patients):
        right = fundus(patient, shape)
        for side, pixels in (("R", right), ("L", right[:, ::-1])):
            names.append(f"{patient}{side}.png")
            PillowImage.fromarray(np.ascontiguousarray(pixels)).save(folder / names[-1])
    frame = pd.DataFrame(
        {
            "image": names,
            "patient": [f"p{row // 2}" for row in range(len(names))],
            "laterality": ["OD", "OS"] * num_patients,
            **columns,
        }
    )
    frame.to_csv(folder / "table.csv", index=False)
    return Cohort(frame, CohortSpec(table="table.csv"), folder)


def units(store, rows):
    return store.gather(np.array(rows)).unit().numpy()


@pytest.mark.parametrize("mirror", ["left", "right"])
def test_the_mirrored_side_looks_like_the_other(tmp_path, mirror):
    cohort = write_eyes(tmp_path / "eyes")
    plain = build_store(cohort, Preprocessing(16), folder=tmp_path / "cache")
    turned = build_store(cohort, Preprocessing(16, mirror=mirror), folder=tmp_path / "cache")
    right, left = np.arange(0, 8, 2), np.arange(1, 8, 2)
    kept, changed = (right, left) if mirror == "left" else (left, right)
    np.testing.assert_array_equal(units(turned, kept), units(plain, kept))
    np.testing.assert_array_equal(units(turned, changed), units(plain, changed)[..., ::-1])
    np.testing.assert_array_equal(units(turned, left), units(turned, right))
    assert not np.array_equal(units(plain, left), units(plain, right))
    mixed = np.array([3, 0, 0, 5, 3, 6])  # any order, rows twice
    np.testing.assert_array_equal(units(turned, mixed), units(turned, np.arange(8))[mixed])
    assert turned.gather(mixed).values.is_contiguous()


def test_oblong_images_that_are_shrunk_are_mirrored_to_a_step(tmp_path):
    cohort = write_eyes(tmp_path / "eyes", shape=(60, 44))
    for fit in ("pad", "crop", "stretch"):
        store = build_store(cohort, Preprocessing(16, fit=fit, mirror="left"), folder=tmp_path / "cache")
        np.testing.assert_allclose(units(store, [1, 3]), units(store, [0, 2]), atol=1.01 / 255)


def test_colour_is_mirrored_in_the_plane_and_not_over_channels(tmp_path):
    cohort = write_eyes(tmp_path / "eyes", num_patients=1)
    pixels = np.random.default_rng(0).integers(0, 255, (20, 20, 3)).astype(np.uint8)
    PillowImage.fromarray(pixels).save(tmp_path / "eyes" / "0L.png")
    store = build_store(cohort, Preprocessing(16, 3, mirror="left"), folder=tmp_path / "cache")
    np.testing.assert_allclose(units(store, [1])[0], pixels[:, ::-1].transpose(2, 0, 1) / 255, atol=1e-6)


def test_both_contracts_share_one_cache(tmp_path, monkeypatch):
    cohort = write_eyes(tmp_path / "eyes")
    assert Preprocessing(16).key == Preprocessing(16, mirror="left").key
    build_store(cohort, Preprocessing(16), folder=tmp_path / "cache")

    def refuse(*_):
        raise AssertionError("an image was decoded")

    monkeypatch.setattr("bolus.data.images.cache.shrink", refuse)
    build_store(cohort, Preprocessing(16, mirror="left"), folder=tmp_path / "cache")


def test_images_without_a_side_stay_and_are_named(tmp_path):
    sides = ["OD", "OS", None, "U", "OD", "left", "R", "L"]
    cohort = write_eyes(tmp_path / "eyes", laterality=sides)
    assert cohort.sides.tolist() == [1, 0, -1, -1, 1, 0, 1, 0]
    plain = build_store(cohort, Preprocessing(16), folder=tmp_path / "cache")
    store = build_store(cohort, Preprocessing(16, mirror="left"), folder=tmp_path / "cache")
    assert plain.mirrored is None
    assert not plain.remarks
    assert store.mirrored.tolist() == [side in ("OS", "left", "L") for side in sides]
    assert store.sideless == [2, 3]
    assert store.remarks == ["2 images have neither side and stay as they are, while those of the left are mirrored."]
    np.testing.assert_array_equal(units(store, [2, 3]), units(plain, [2, 3]))


def test_a_value_that_is_no_side_is_refused_before_anything_is_decoded(tmp_path, monkeypatch):
    cohort = write_eyes(tmp_path / "eyes", laterality=["OD", "OS"] * 3 + ["OD", "upper"])

    def refuse(*_):
        raise AssertionError("an image was decoded")

    monkeypatch.setattr("bolus.data.images.cache.shrink", refuse)
    with pytest.raises(CohortError, match=r"row 8: expected left or right .* found 'upper'"):
        build_store(cohort, Preprocessing(16, mirror="left"), folder=tmp_path / "cache")
    spec = CohortSpec(table="table.csv", missing={"laterality": ["upper"]})
    declared = Cohort(cohort.table, spec, cohort.folder)
    assert declared.sides.tolist() == [1, 0, 1, 0, 1, 0, 1, -1]


def test_the_contract_is_written_only_where_it_says_something_and_reads_back():
    plain, turned = Preprocessing(16, ranges={"MR": (0, 4095)}), Preprocessing(16, mirror="right")
    assert "mirror" not in plain.to_json()  # hashes of runs from before there was such a key stand
    assert turned.to_json()["mirror"] == "right"
    for each in (plain, turned):
        assert Preprocessing(**each.to_json()).to_json() == each.to_json()


def test_sides_are_mirrored_in_modalities_of_every_size(tmp_path):
    cohort = write_eyes(tmp_path / "eyes", modality=["CFP", "CFP", "OCT", "OCT"] * 2)
    contract = Preprocessing(16, mirror="left", modalities={"OCT": Preprocessing(24)})
    assert contract.of("OCT").mirror == "left"
    store = build_store(cohort, contract, folder=tmp_path / "cache")
    for right, left in ((0, 1), (2, 3)):
        np.testing.assert_allclose(units(store, [left]), units(store, [right]), atol=1.01 / 255)
    assert units(store, [3]).shape != units(store, [1]).shape
    assert Preprocessing(**contract.to_json()).mirror == "left"


def eye_encoder(folder: Path, mirror):
    contract = Preprocessing(16, mirror=mirror).to_json()
    save_encoder(build_encoder(EncoderSpec(backbone="r18w32", stem_pool=False), seed=0), folder, preprocessing=contract)
    return folder


def test_an_encoder_of_mirrored_sides_embeds_mirrored_sides(tmp_path):
    cohort = write_eyes(tmp_path / "eyes")
    for mirror in (None, "left"):
        judged = open_encoder(eye_encoder(tmp_path / f"encoder-{mirror}", mirror))
        assert judged.preprocessing.mirror == mirror
        store = open_store(judged, cohort, cache=tmp_path / "cache")
        assert not remarks_on(judged, store)
        z = embed_samples(judged.encoder, store, cohort.samples("image"), np.arange(8))
        assert np.allclose(z[::2], z[1::2], atol=1e-5) == (mirror == "left")


def test_without_sides_nothing_is_mirrored_and_that_is_said(tmp_path):
    cohort = write_eyes(tmp_path / "eyes", laterality=[""] * 8)
    nameless = Cohort(cohort.table.drop(columns="laterality"), CohortSpec(table="table.csv"), cohort.folder)
    judged = open_encoder(eye_encoder(tmp_path / "encoder", "left"))
    store = open_store(judged, nameless, cache=tmp_path / "cache")
    assert remarks_on(judged, store) == [
        "The encoder expects images of the left mirrored; no column has the role laterality: none was."
    ]
    plain = build_store(nameless, Preprocessing(16), folder=tmp_path / "cache")
    np.testing.assert_array_equal(units(store, np.arange(8)), units(plain, np.arange(8)))


@pytest.fixture
def recipe():
    return Recipe.load(
        {
            "name": "mirrored",
            "encoder": {"backbone": "r18w32", "stem_pool": False},
            "images": {"size": 16, "mirror": "left", "augment": {"preset": "none"}},
            "sampling": {"batch_size": 4},
            "objectives": {"views": {"kind": "contrast", "relation": "views"}},
            "training": {"max_steps": 1, "log_steps": 1, "health_epochs": None},
        }
    )


def test_a_run_mirrors_and_its_encoder_says_so(tmp_path, recipe):
    write_eyes(tmp_path / "eyes", num_patients=8)
    cohort = Cohort.open(tmp_path / "eyes" / "table.csv")
    run = bolus.pretrain(cohort, recipe=recipe, out=tmp_path / "run", cache=tmp_path / "cache", quiet=True)
    assert open_encoder(run.folder).preprocessing.mirror == "left"
    store = build_store(cohort, contract_of(cohort, recipe), folder=tmp_path / "cache")
    make = lambda images: build_loader(  # noqa: E731
        cohort, cohort.samples("image"), images, recipe, Needs(), launched()
    )
    loader = make(store)
    batch = loader.batch(loader.fetch(0), device=torch.device("cpu"), progress=0.0)[0]
    images = batch.views["image"][0].numpy()
    positions = loader.fetch(0).positions
    plain = replace(store, mirrored=None)
    flat = (
        make(plain).batch(make(plain).fetch(0), device=torch.device("cpu"), progress=0.0)[0].views["image"][0].numpy()
    )
    for image, seen, row in zip(images, flat, positions, strict=True):
        np.testing.assert_allclose(image, seen[..., ::-1] if row % 2 else seen, atol=1e-6)
    other = replace(store, mirrored=~store.mirrored)
    assert data_hash(cohort, loader) != data_hash(cohort, make(other))  # sides that changed are another run


def test_a_recipe_that_mirrors_needs_sides(tmp_path, recipe):
    cohort = write_eyes(tmp_path / "eyes")
    nameless = Cohort(cohort.table.drop(columns="laterality"), CohortSpec(table="table.csv"), cohort.folder)
    with pytest.raises(CohortError, match=r"images\.mirror is left, but no column has the role laterality"):
        unread_loader(nameless, recipe, Needs(), tmp_path / "cache")


def test_segmentation_refuses_mirrored_sides_before_reading_anything(tmp_path, monkeypatch):
    cohort = write_eyes(tmp_path / "eyes")
    folder = eye_encoder(tmp_path / "encoder", "left")

    def refuse(*_):
        raise AssertionError("an image or mask was read")

    monkeypatch.setattr("bolus.evaluation.segmentation.segment.read_annotations", refuse)
    monkeypatch.setattr("bolus.data.images.cache.shrink", refuse)
    with pytest.raises(EvaluationError, match=r"sees images of one side mirrored, .* images\.mirror=null"):
        evaluate_segment(folder, cohort, cache=tmp_path / "cache")


def test_one_side_is_one_value_however_it_is_written(tmp_path: Path) -> None:
    cohort = Cohort.open(write_eyes(tmp_path / "eyes", laterality=["OD", "OS", "R", "left", "r", "L", "B", "sinister"]))
    assert cohort.values("laterality").fillna("none").tolist() == [
        "right",
        "left",
        "right",
        "left",
        "right",
        "left",
        "none",
        "left",
    ]
    assert cohort.encoded("laterality").tolist() == [1, 0, 1, 0, 1, 0, -1, 0]


def test_a_stray_value_among_sides_is_missing_and_told(tmp_path: Path) -> None:
    cohort = Cohort.open(write_eyes(tmp_path / "eyes", laterality=["OD", "OS", "R", "left", "macula", "L", "n/a", "U"]))
    assert cohort.encoded("laterality").tolist() == [1, 0, 1, 0, -1, 0, -1, -1]
    (found,) = [each for each in check_columns(cohort) if each.kind == "no_side"]
    assert found.rows == (5,)
    other = Cohort.open(write_eyes(tmp_path / "others", laterality=["upper", "lower"] * 4))
    assert other.values("laterality").tolist() == ["upper", "lower"] * 4, "some other vocabulary"
    assert not [each for each in check_columns(other) if each.kind == "no_side"]
