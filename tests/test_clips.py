"""Clips: which frames are seen, from rows or files, through loader, views, embedding, health and a resumed run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage
from pydicom.data import get_testdata_file

from bolus.data.batches.columns import TrainingColumns
from bolus.data.batches.loading import Loader
from bolus.data.cohort.cohort import Cohort, Samples
from bolus.data.cohort.spec import CohortSpec
from bolus.data.images import cache
from bolus.data.images.cache import ImageStore, Preprocessing, Quarantined, build_store
from bolus.data.images.clips import frame_mask, open_samples, pick_frames, segment_frames
from bolus.data.views.augment import augment, plain
from bolus.embedding.opening import open_encoder, samples_of
from bolus.embedding.table import embed
from bolus.embedding.vectors import embed_samples
from bolus.encoders.building import build_encoder
from bolus.errors import CohortError, ImageError
from bolus.recipe import AugmentSpec, EncoderSpec, Recipe
from bolus.run import Run
from bolus.seeds import seed_for
from bolus.training.assembly import build_model, resolve
from bolus.training.health.health import watch
from bolus.training.loaders import build_loader, contract_of, data_hash, open_images, unread_loader
from bolus.training.loop import pretrain
from bolus.training.processes import launched
from bolus.training.rehearsal import dry_run

FRAMES = 3
RECIPE: dict[str, Any] = {
    "name": "clips",
    "encoder": {"backbone": "r18w32", "stem_pool": False, "temporal_shift": 8},
    "images": {"size": 16, "views": 2, "unit": "clip", "frames": FRAMES, "augment": {"preset": "ultrasound"}},
    "sampling": {"batch_size": 4},
    "objectives": {"global": {"kind": "varcov", "source": "pooled", "width": 16}},
    "optimizer": {"kind": "adamw", "lr": 0.001},
    "training": {"epochs": 2, "log_steps": 1},
}


# Which frames ---------------------------------------------------------


@settings(max_examples=200, deadline=None, derandomize=True)
@given(count=st.integers(1, 60), frames=st.integers(1, 20), seed=st.one_of(st.none(), st.integers(0, 9)))
def test_one_frame_from_each_equal_part(count: int, frames: int, seed: int | None) -> None:
    rng = None if seed is None else np.random.default_rng(seed)
    found = segment_frames(count, frames, rng=rng)
    real = frame_mask(count, frames)
    assert found.dtype == np.int64
    assert found.shape == real.shape == (frames,)
    assert real.sum() == min(count, frames)
    if count < frames:
        assert found.tolist() == list(range(count)) + [count - 1] * (frames - count)
    else:
        for part, frame in enumerate(found.tolist()):
            assert part * count // frames <= frame < (part + 1) * count // frames
        assert len(set(found.tolist())) == frames


def test_every_frame_of_a_part_is_equally_likely_and_the_middle_is_the_middle() -> None:
    rng = np.random.default_rng(0)
    drawn = np.stack([segment_frames(12, 3, rng=rng) for _ in range(4000)])
    for part in range(3):
        counts = np.bincount(drawn[:, part], minlength=12)[4 * part : 4 * part + 4]
        assert counts.sum() == 4000
        assert np.abs(counts - 1000).max() < 6 * np.sqrt(1000 * 3 / 4)
    assert segment_frames(15, 3).tolist() == [2, 7, 12]
    assert segment_frames(5, 5).tolist() == [0, 1, 2, 3, 4]


# Clips from rows ------------------------------------------------------


def write_table(folder: Path, lengths: list[int], *, shuffle: bool = True) -> Path:
    """Clips of single-colour frames, two clips a patient: frame f of clip c has the grey value 10 c + 2 f."""
    folder.mkdir(parents=True)
    lines = []
    for clip, length in enumerate(lengths):
        for frame in range(length):
            name = f"c{clip}_{frame}.png"
            PillowImage.fromarray(np.full((20, 20), 10 * clip + 2 * frame, np.uint8)).save(folder / name)
            lines.append(f"{name},P{clip // 2:02d},video{clip},{5 * frame + 3},{clip % 4}")
    if shuffle:
        lines = [lines[place] for place in np.random.default_rng(0).permutation(len(lines))]
    (folder / "t.csv").write_text("image,patient,video,frame,severity\n" + "\n".join(lines) + "\n")
    (folder / "cohort.yaml").write_text(
        "table: t.csv\nroles: {series: video, order: frame, 'score:severity': severity}\n"
        "split: {seed: 3, val: 0.3, test: 0.1}\n"
    )
    return folder / "cohort.yaml"


LENGTHS = [5, 1, 4, 2, 3, 7, 6, 1, 4, 4, 5, 3, 2, 6, 5, 4, 3, 4, 1, 2]


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    return write_table(tmp_path / "clips", LENGTHS)


def grey(path: Path) -> Callable[[np.ndarray[Any, Any]], list[int]]:
    """The grey value that each row's file holds."""
    images = pd.read_csv(path.with_name("t.csv"))["image"]
    values = images.str.extract(r"c(\d+)_(\d+)").astype(int)
    return lambda rows: (10 * values[0] + 2 * values[1]).iloc[rows].tolist()


def test_frames_are_in_order_however_the_table_is_sorted(clips: Path) -> None:
    samples = open_samples(Cohort.open(clips), "clip")
    shown, names = grey(clips), samples.cohort.table["video"]
    assert len(samples) == 20
    for position in range(20):
        clip = int(names.iloc[samples.first_row[position]].removeprefix("video"))
        assert shown(samples.rows_of(position)) == [10 * clip + 2 * frame for frame in range(LENGTHS[clip])]
        assert samples.num_rows[position] == LENGTHS[clip]
        assert samples.columns(["score:severity"])["score:severity"][position] == clip % 4
    np.testing.assert_array_equal(samples.cohort.origin, np.arange(sum(LENGTHS)))


def test_a_clip_is_readable_where_one_of_its_rows_is_and_loses_the_others(clips: Path) -> None:
    samples = open_samples(Cohort.open(clips), "clip")
    rows_readable = np.random.default_rng(0).random(sum(LENGTHS)) < 0.4
    expected = [rows_readable[samples.rows_of(position)].any() for position in range(20)]
    assert samples.readable(rows_readable).tolist() == expected
    assert 0 < sum(expected) < 20
    usable = np.flatnonzero(expected)
    rows, real = pick_frames(samples, usable, rows_readable, 4, draw=np.random.default_rng)
    for position, picked, mask in zip(usable, rows, real, strict=True):
        left = [row for row in samples.rows_of(position) if rows_readable[row]]
        assert mask.sum() == min(4, len(left))
        assert picked.tolist() == [
            left[place] for place in segment_frames(len(left), 4, rng=np.random.default_rng(position))
        ]


def open_table(columns: dict[str, list[Any]]) -> Cohort:
    number = len(next(iter(columns.values())))
    base = {"image": [f"{row}.png" for row in range(number)], "patient": ["P"] * number}
    return Cohort(pd.DataFrame(base | columns), CohortSpec(table="t.csv"))


def test_what_is_no_series_is_named_with_columns_and_rows() -> None:
    table = {
        "video": ["a", "a", "b", "b", "b"],
        "frame": ["0", "0", "2", "1", "2"],
        "sex": ["F", "F", "M", "M", "F"],
        "mask": ["1.png", None, "3.png", "4.png", None],
        "note": ["only", "columns", "with", "a", "role"],
    }
    with pytest.raises(CohortError) as caught:
        open_samples(open_table(table), "clip")
    twice, sex = caught.value.violations
    assert twice == "rows 1, 2, 3, 5: order ('frame') has one value twice within a series"
    assert sex.startswith("row 5: attribute:sex ('sex') differs from the start of its series; if it belongs to a frame")


# Clip files -----------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A row a file: multi-frame DICOM, TIFF of three pages, NIfTI of four axial slices, a picture, one that is none."""
    folder = tmp_path / "files"
    folder.mkdir()
    dose = Path(get_testdata_file("rtdose.dcm", download=False))
    (folder / "a.dcm").write_bytes(dose.read_bytes())
    pages = [PillowImage.fromarray(np.full((10, 10), 60 * page, np.uint8)) for page in range(3)]
    pages[0].save(folder / "b.tif", save_all=True, append_images=pages[1:])
    volume = np.arange(4, dtype=np.uint8)[None, :, None] * np.ones((6, 1, 5), np.uint8)  # axial slices on the 2nd axis
    turned = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], float)
    nibabel.save(nibabel.Nifti1Image(volume, turned), folder / "c.nii.gz")
    pages[2].save(folder / "d.png")
    (folder / "e.dcm").write_bytes(b"")
    (folder / "t.csv").write_text(
        "image,patient,frame,age,label\na.dcm,A,9,50,x\nb.tif,B,9,60,y\nc.nii.gz,A,9,51,x\nd.png,C,9,70,y\ne.dcm,D,9,1,x\n"
        "absent.mp4,E,9,2,y\n"
    )
    return folder / "t.csv"


def test_files_become_a_row_a_frame_and_lead_back_to_the_table(files: Path, tmp_path: Path) -> None:
    cohort = Cohort.open(files, roles={"score:age": "age"})
    samples = open_samples(cohort, "clip")
    wide = samples.cohort
    assert samples.num_rows.tolist() == [15, 3, 4, 1, 1, 1]
    assert wide.origin.tolist() == np.repeat(np.arange(6), [15, 3, 4, 1, 1, 1]).tolist()
    assert samples.first_row.tolist() == [0, 15, 18, 22, 23, 24]
    assert samples.columns(["score:age"])["score:age"].tolist() == [50, 60, 51, 70, 1, 2]
    np.testing.assert_array_equal(wide.split, cohort.split[wide.origin])
    np.testing.assert_array_equal(wide.encoded("patient"), cohort.encoded("patient")[wide.origin])
    assert wide.split_hash == cohort.split_hash
    assert wide.num_patients == cohort.num_patients
    assert [wide.frame(row) for row in (0, 14, 17, 21, 22, 23)] == [0, 14, 2, 3, None, None]
    assert open_samples(cohort, "clip").cohort is wide, "frames are counted once"
    assert (len(cohort), set(cohort.roles) & {"series"}) == (6, set()), "the table as given stays as it is"
    wide.save(tmp_path / "saved.yaml")
    assert Cohort.open(tmp_path / "saved.yaml").table.shape == cohort.table.shape
    assert len(open_samples(cohort, "image")) == 6

    store = build_store(wide, Preprocessing(16, frames=2), folder=tmp_path / "cache")
    assert [(item.row, item.reason) for item in store.quarantined] == [
        (4, "the file is empty"),
        (5, "the file cannot be opened: No such file or directory"),
    ]
    assert samples.readable(store.readable).tolist() == [True, True, True, True, False, False]
    np.testing.assert_allclose(
        store.gather(samples.rows_of(1)).unit().mean((1, 2, 3)), np.array([0, 60, 120]) / 255, atol=1e-6
    )
    slices = store.gather(samples.rows_of(2)).unit().amax((1, 2, 3)) * 255
    np.testing.assert_allclose(slices, [0, 85, 170, 255], atol=0.01)  # of a range of 0 to 3, its own


def test_some_frames_of_a_file_are_quarantined_as_one(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = cache.read_as

    def torn(path: Path, frames: Any, *reading: Any) -> Any:
        for frame, image in zip(frames, original(path, frames, *reading), strict=True):
            yield ImageError(f"{path.name}: torn") if path.name == "a.dcm" and frame in (3, 8) else image

    monkeypatch.setattr(cache, "read_as", torn)
    samples = open_samples(Cohort.open(files), "clip")
    store = build_store(samples.cohort, Preprocessing(16, frames=2), folder=tmp_path / "cache")
    assert store.quarantined[0] == Quarantined(0, "2 of 15 frames: torn", True)
    assert [(item.row, item.partial) for item in store.quarantined[1:]] == [(4, False), (5, False)]
    assert store.remarks == [
        "2 images cannot be read and are left out (rows 5, 6).",
        "1 clip lost some frames, which cannot be read (row 1).",
    ]
    rows, real = pick_frames(samples, np.array([0]), store.readable, 20)
    assert rows[0].tolist() == [0, 1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14] + [14] * 7
    assert real[0].tolist() == [True] * 13 + [False] * 7


def test_a_row_is_quarantined_once_whatever_befell_its_frames(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = cache.read_as

    def torn(path: Path, frames: Any, *reading: Any) -> Any:
        for place, image in enumerate(original(path, frames, *reading)):
            reasons = {"a.dcm": ["torn", "dark"][place % 2] if place else "late", "b.tif": f"torn {'xyz'[place % 3]}"}
            yield ImageError(reasons[path.name]) if path.name in reasons and (place < 9) else image

    monkeypatch.setattr(cache, "read_as", torn)
    wide = open_samples(Cohort.open(files), "clip").cohort
    store = build_store(wide, Preprocessing(16, frames=2), folder=tmp_path / "cache", rows=np.arange(23))
    assert store.quarantined == [
        Quarantined(0, "4 of 15 frames: dark; 4 of 15 frames: torn; 1 of 15 frames: late", True),
        Quarantined(1, "1 of 3 frames: torn x; 1 of 3 frames: torn y; 1 of 3 frames: torn z"),
    ]
    assert store.remarks == [
        "1 images cannot be read and are left out (row 2).",
        "1 clip lost some frames, which cannot be read (row 1).",
    ]
    run = Run(tmp_path / "run")
    run.create(wide, resolve(Recipe.load(RECIPE)), store.quarantined, {})
    said = [json.loads(line) for line in (run.folder / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["row"], line["reason"]) for line in said] == [
        (item.row + 1, item.reason) for item in store.quarantined
    ]


def test_one_long_bad_clip_weighs_as_one_file(files: Path, tmp_path: Path) -> None:
    table = files.with_name("one_bad.csv")
    (files.with_name("a.dcm")).write_bytes((files.with_name("a.dcm")).read_bytes()[:-5990])  # 15 of 23 frames
    table.write_text("image,patient\na.dcm,A\nb.tif,B\nc.nii.gz,A\nd.png,C\n")
    wide = open_samples(Cohort.open(table), "clip").cohort
    assert len(wide) == 23
    store = build_store(wide, Preprocessing(16, frames=2), folder=tmp_path / "cache")
    assert [(item.row, item.partial) for item in store.quarantined] == [(0, False)]
    for name in ("b.tif", "d.png"):
        files.with_name(name).write_bytes(b"")
    wide = open_samples(Cohort.open(table), "clip").cohort
    with pytest.raises(CohortError, match="3 of 4 images cannot be read") as caught:
        build_store(wide, Preprocessing(16, frames=2), folder=tmp_path / "cache")
    assert [violation.split(":")[0] for violation in caught.value.violations] == ["row 1", "rows 2, 4"]


@pytest.mark.parametrize("columns", [["SeriesInstanceUID"], ["SeriesInstanceUID", "InstanceNumber"]])
def test_a_series_of_each_row_is_a_clip_file(columns: list[str], files: Path) -> None:
    table = pd.read_csv(files).head(4)[["image", "patient"]].assign(**{columns[0]: ["1.2", "1.3", "1.4", "1.5"]})
    table[columns[1:]] = 1
    table.to_csv(files, index=False)
    cohort = Cohort.open(files)
    assert cohort.roles["series"] == "SeriesInstanceUID"
    samples = open_samples(cohort, "clip")
    assert samples.num_rows.tolist() == [15, 3, 4, 1]
    assert samples.cohort.encoded("order")[:18].tolist() == [*range(15), 0, 1, 2]


def test_clip_files_in_series_of_several_rows_say_what_to_do(files: Path, tmp_path: Path) -> None:
    table = pd.read_csv(files).head(4)[["image", "patient"]].assign(SeriesInstanceUID=["1", "2", "2", "3"], patient="P")
    table.to_csv(files, index=False)
    with pytest.raises(CohortError, match=r"missing: order .*such as attribute:series"):
        open_samples(Cohort.open(files), "clip")
    table.assign(InstanceNumber=[1, 1, 2, 1]).to_csv(files, index=False)
    samples = open_samples(Cohort.open(files), "clip")
    assert len(samples) == 3
    with pytest.raises(CohortError, match=r"expected one frame, found 15: .*such as attribute:series"):
        build_store(samples.cohort, Preprocessing(16, frames=2), folder=tmp_path / "cache")
    freed = Cohort.open(files, roles={"attribute:series": "SeriesInstanceUID"})
    assert open_samples(freed, "clip").num_rows.tolist() == [15, 3, 4, 1]


def test_frames_of_one_file_on_several_rows_need_a_series(tmp_path: Path) -> None:
    cohort = open_table({"image": ["v.mp4", "v.mp4", "w.mp4"], "frame": ["0", "1", "0"]})
    with pytest.raises(CohortError, match="rows 1, 2: frames of one file on several rows; give the column"):
        open_samples(cohort, "clip")


# Views ----------------------------------------------------------------


EVERYTHING = AugmentSpec(preset="fundus", flip_horizontal=0.5, blur=0.5, saturation=0.4, hue=0.2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("spec", [EVERYTHING, AugmentSpec(preset="none", brightness=0.4, jitter=1.0), AugmentSpec()])
def test_all_frames_of_a_view_have_the_same_parameters(channels: int, spec: AugmentSpec) -> None:
    clip = torch.rand(5, 1, channels, 20, 20, generator=torch.Generator().manual_seed(0)).expand(-1, 4, -1, -1, -1)
    views = augment(clip.flatten(0, 1), spec, size=16, views=3, seed=7, frames=4)
    assert views.shape == (3, 5, channels, 4, 16, 16)
    still = views[:, :, :, :1].expand_as(views)
    torch.testing.assert_close(views, still, rtol=0, atol=1e-6)
    # Frames that are all alike are one image, so these are that image's own views.
    images = augment(clip[:, 0], spec, size=16, views=3, seed=7)
    torch.testing.assert_close(views[:, :, :, 0], images, rtol=0, atol=1e-6)


def test_a_clip_of_one_frame_is_its_image_bit_for_bit() -> None:
    images = torch.rand(6, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    spec = EVERYTHING.model_copy(update={"noise": 0.05})
    alone = augment(images, spec, size=16, views=2, seed=3)
    assert torch.equal(augment(images, spec, size=16, views=2, seed=3, frames=1)[:, :, :, 0], alone)


def test_a_change_of_colour_is_one_map_for_all_frames_and_noise_is_not() -> None:
    levels = torch.linspace(0.2, 0.6, 4).view(1, 4, 1, 1, 1).expand(3, 4, 1, 20, 20).flatten(0, 1)
    contrast = AugmentSpec(preset="none", contrast=0.5, brightness=0.0, jitter=1.0)
    views = augment(levels, contrast, size=16, views=2, seed=0, frames=4).mean((-1, -2))[:, :, 0]
    steps = views.diff(dim=-1)  # an affine map keeps equal steps equal; a map of each frame's own would flatten them
    torch.testing.assert_close(steps, steps[..., :1].expand_as(steps), rtol=0, atol=1e-6)
    assert (steps > 0.05).all()
    torch.testing.assert_close(views.mean(-1), torch.full((2, 3), 0.4), rtol=0, atol=1e-6)
    noisy = augment(levels, AugmentSpec(preset="none", noise=0.1), size=16, views=1, seed=0, frames=4)[0, 0, 0]
    assert not torch.allclose(noisy[0] - 0.2, noisy[1] - noisy[1].mean(), atol=0.05)


def test_no_clips_give_empty_views() -> None:
    assert augment(torch.zeros(0, 1, 20, 20), AugmentSpec(), size=16, views=2, seed=0, frames=4).shape == (
        2, 0, 1, 4, 16, 16,
    )  # fmt: skip


# Batches --------------------------------------------------------------


def make_loader(path: Path, cache: Path, *changes: str) -> tuple[Samples, ImageStore, Loader]:
    recipe = resolve(Recipe.load(RECIPE).override(changes))
    samples = open_samples(Cohort.open(path), "clip")
    store = open_images(samples.cohort, recipe, cache, quiet=True)
    needs = build_model(recipe, torch.device("cpu"), TrainingColumns(samples)).needs
    return samples, store, build_loader(samples.cohort, samples, store, recipe, needs, launched())


def test_a_batch_holds_frames_drawn_for_each_sample(clips: Path, tmp_path: Path) -> None:
    plainly = "images.augment={preset: none}"
    samples, _, loader = make_loader(clips, tmp_path / "cache", plainly)
    shown, seen = grey(clips), set()
    for number in range(6):
        fetched = loader.fetch(number)
        local, whole = loader.batch(fetched, device=torch.device("cpu"), progress=0.0)
        (views,) = local.views.values()
        assert views.shape == (2, 4, 1, FRAMES, 16, 16)
        assert local.frame_mask is not None
        assert local.frame_mask.dtype == torch.bool
        assert whole.frame_mask is None
        rows = loader.table_rows(number)
        for place, position in enumerate(fetched.positions):
            clip = samples.rows_of(position)
            rng = np.random.default_rng(seed_for(0, "frames", number, position))
            expected = clip[segment_frames(len(clip), FRAMES, rng=rng)]
            assert rows[place].tolist() == expected.tolist()
            assert local.frame_mask[place].tolist() == frame_mask(len(clip), FRAMES).tolist()
            found = views[:, place, 0].mean((-1, -2)) * 255
            np.testing.assert_allclose(found, [shown(expected)] * 2, atol=0.01)
            seen.add((int(position), tuple(expected.tolist())))
    assert len(seen) > len({position for position, _ in seen}), "other batches, other frames"


def test_processes_draw_the_frames_that_one_process_draws(clips: Path, tmp_path: Path) -> None:
    _, _, loader = make_loader(clips, tmp_path / "cache")
    whole, parts = loader.fetch(3), []
    for rank in range(2):
        part = Loader(
            loader.samples, loader.store, loader.positions, loader.sampler, loader.columns, loader.images,
            seed=loader.seed, rank=rank, processes=2,
        )  # fmt: skip
        parts.append(part.fetch(3))
        local, _ = part.batch(parts[-1], device=torch.device("cpu"), progress=0.0)
        assert local.num_samples == len(local.frame_mask) == 2
    values = torch.cat([part.stored["image"].values for part in parts])
    assert torch.equal(values, whole.stored["image"].values)
    assert np.array_equal(np.concatenate([part.frame_mask for part in parts]), whole.frame_mask)


def test_the_data_hash_covers_every_frame_of_a_clip(clips: Path, tmp_path: Path) -> None:
    def hash_of(*changes: str) -> str:
        samples, _, loader = make_loader(clips, tmp_path / "cache", *changes)
        return data_hash(samples.cohort, loader)

    before = hash_of()
    assert hash_of() == before
    samples, _, loader = make_loader(clips, tmp_path / "cache")
    trained = next(position for position in loader.positions if samples.num_rows[position] > 3)
    last = samples.rows_of(int(trained))[-1]
    (clips.parent / samples.cohort.table["image"].iloc[last]).write_bytes(b"unreadable now")
    assert hash_of() != before


def test_the_data_hash_of_images_is_what_it_was(
    tiny_cohort: Path, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe, cohort = resolve(Recipe.load(small_recipe)), Cohort.open(tiny_cohort)
    samples = open_samples(cohort, "image")
    needs = build_model(recipe, torch.device("cpu"), TrainingColumns(samples)).needs
    assert data_hash(cohort, unread_loader(cohort, recipe, needs, tmp_path / "cache")) == DATA_HASH


DATA_HASH = "c25792e6825ad90c"  # of this table before there were clips; another value would refuse to resume old runs


# Embedding and health -------------------------------------------------


def test_embeddings_are_those_of_clips_one_by_one(clips: Path, tmp_path: Path) -> None:
    samples = open_samples(Cohort.open(clips), "clip")
    store = build_store(samples.cohort, Preprocessing(16, frames=FRAMES), folder=tmp_path / "cache")
    encoder = build_encoder(EncoderSpec(backbone="r18w32", temporal_shift=8), seed=0).double()
    positions = np.array([3, 0, 1, 19, 5])
    found = embed_samples(encoder, store, samples, positions, batch_size=7)
    assert encoder.training
    assert found.dtype == np.float32
    encoder.eval()
    for position, vector in zip(positions, found, strict=True):
        rows = samples.rows_of(position)
        images = plain(store.gather(rows[segment_frames(len(rows), FRAMES)]).unit(), size=16)
        real = torch.from_numpy(frame_mask(len(rows), FRAMES))[None]
        with torch.inference_mode():
            alone = encoder(images.transpose(0, 1)[None], frame_mask=real).pooled[0]
        np.testing.assert_allclose(vector, alone, rtol=1e-6, atol=1e-10)  # rounded to float32
    assert embed_samples(encoder, store, samples, positions[:0]).shape == (0, 256)


def test_health_is_watched_on_clips(clips: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(RECIPE).override(["training.probe=score:severity"])
    samples = open_samples(Cohort.open(clips), "clip")
    store = build_store(samples.cohort, contract_of(samples.cohort, recipe), folder=tmp_path / "cache")
    encoder = build_encoder(recipe.encoder, seed=0)
    found = watch(encoder, store, samples, recipe).findings
    assert [finding.to_json() for finding in watch(encoder, store, samples, recipe).findings] == [
        f.to_json() for f in found
    ]
    assert [finding.name for finding in found[:4]] == ["spread", "effective_rank", "uniformity", "alignment"]
    assert found[-1].name == "knn score:severity"
    assert "views of a validation clip" in found[3].sentence
    assert "different clips" in found[3].sentence
    assert all(np.isfinite(finding.value) for finding in found[:4])


# Runs -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rows", "files"])
def test_a_run_on_clips_resumes_bit_for_bit_and_its_encoder_embeds_them(kind: str, clips: Path, tmp_path: Path) -> None:
    path = clips if kind == "rows" else write_files(tmp_path / "volumes")
    whole = pretrain(path, recipe=RECIPE, out=tmp_path / "whole", cache=tmp_path / "cache", quiet=True)
    part = pretrain(path, recipe=RECIPE, out=tmp_path / "part", cache=tmp_path / "cache", quiet=True,
                    overrides=["training.max_hours=1e-9"])  # fmt: skip
    assert part.status == "stopped"
    part = pretrain(path, recipe=RECIPE, out=tmp_path / "part", cache=tmp_path / "cache", quiet=True, resume=True)
    assert part.record["weights"] == whole.record["weights"]
    assert whole.record["num_quarantined"] == (0 if kind == "rows" else 1)
    if kind == "files":
        (line,) = (whole.folder / "quarantine.jsonl").read_text().splitlines()
        assert json.loads(line) == {"row": 3, "reason": "the file is empty"}

    judged = open_encoder(whole.folder)
    assert judged.preprocessing.frames == FRAMES
    cohort = Cohort.open(path)
    assert samples_of(judged, cohort).unit == "clip"
    named = ["image", "patient"]
    frame = embed(whole.folder, path, cache=tmp_path / "cache", out=tmp_path / "e.parquet", columns=named)
    assert list(frame.columns[:3]) == ["row", "split", "rows"]
    assert set(named) <= {name.removeprefix("table_") for name in frame.columns[3:-1]} <= set(cohort.table.columns)
    if kind == "rows":
        samples = samples_of(judged, cohort)
        assert frame["row"].tolist() == (samples.first_row + 1).tolist()
        assert frame["rows"].tolist() == samples.num_rows.tolist()
    else:
        assert frame["row"].tolist() == [1, 2, *range(4, 15)]
        assert frame["rows"].tolist() == [row % 4 + 1 for row in (0, 1, *range(3, 14))]
        assert (frame["image"] == cohort.table["image"].iloc[frame["row"] - 1].to_numpy()).all()
    assert pq.read_table(tmp_path / "e.parquet").num_rows == len(frame)
    meta = json.loads(pq.read_schema(tmp_path / "e.parquet").metadata[b"bolus"])
    assert meta["preprocessing"]["frames"] == FRAMES


def test_speed_counts_frames_and_a_rehearsal_reads_no_more_than_it_needs(clips: Path, tmp_path: Path) -> None:
    found = dry_run(clips, recipe=RECIPE, cache=tmp_path / "cache")
    assert found.hours == pytest.approx(found.steps * 4 * 2 * FRAMES / found.images_per_second / 3600)
    samples, store, _ = make_loader(clips, tmp_path / "unused")
    assert store.readable.all()
    cached = sum(len(np.load(part)) for part in (tmp_path / "cache").rglob("*.records"))
    assert 2 * 4 <= cached <= 2 * 4 * FRAMES < len(samples.cohort)


def write_files(folder: Path) -> Path:
    """Fourteen TIFF files of one to four pages, of a patient each; the third is empty."""
    folder.mkdir()
    rng, lines = np.random.default_rng(0), ["image,patient,split"]
    for row in range(14):
        pages = [PillowImage.fromarray(rng.integers(0, 256, (20, 20), dtype=np.uint8)) for _ in range(row % 4 + 1)]
        pages[0].save(folder / f"{row}.tif", save_all=True, append_images=pages[1:])
        lines.append(f"{row}.tif,P{row},{'train' if row < 11 else 'val'}")
    (folder / "2.tif").write_bytes(b"")
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    return folder / "t.csv"


# Real data ------------------------------------------------------------


@pytest.mark.data
def test_lung_ultrasound_clips(shared_data: Path, tmp_path: Path) -> None:
    roles = {"image": "image", "patient": "patient", "series": "video", "order": "frame", "score:severity": "severity"}
    cohort = Cohort.open(shared_data / "lus_blues" / "meta.csv", roles=roles)
    samples = open_samples(cohort, "clip")
    assert len(samples) == 362
    assert samples.num_rows.sum() == len(cohort) == 3615
    severity = samples.columns(["score:severity"])["score:severity"]
    assert np.bincount(severity.astype(int)).tolist() == [120, 111, 83, 48]
    for position in range(0, 362, 20):
        rows = samples.rows_of(position)
        assert (np.diff(cohort.encoded("order")[rows]) > 0).all()
        assert len(set(cohort.table["video"].iloc[rows])) == 1
    few = set(sorted(set(cohort.encoded("patient")))[:4])
    kept = cohort.table[[code in few for code in cohort.encoded("patient")]]
    kept.to_csv(tmp_path / "few.csv", index=False)
    (tmp_path / "few.yaml").write_text(
        json.dumps({"table": "few.csv", "root": str(shared_data / "lus_blues"), "roles": roles, "split": {"val": 0.3}})
    )
    keys = ["images.size=32", "images.frames=4", "training.max_steps=2", "training.health_epochs=null"]
    run = pretrain(
        tmp_path / "few.yaml", recipe=RECIPE, overrides=keys, out=tmp_path / "run", cache=tmp_path / "cache", quiet=True
    )
    assert run.status == "finished"
    assert all(np.isfinite(line["loss"]) for line in run.metrics() if line["kind"] == "train")
