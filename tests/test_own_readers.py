"""Readers of one's own, named in cohort.yaml: checked, cached, trained on, judged, and used in a new process."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bolus import check, plan, pretrain
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.data.images.cache import Preprocessing, build_store
from bolus.data.images.clips import open_samples
from bolus.data.readers.frames import all_frames, read_as
from bolus.data.readers.masks import read_labels
from bolus.data.readers.own import Readers, open_readers
from bolus.data.readers.readers import count_frames, read_image
from bolus.errors import BolusError, CohortError, ImageError, TrainingError

MODULE = """
import numpy as np

from bolus.data.pixels.image import Image, Range, own_range

GAIN = 1


def read(path):
    array = GAIN * np.load(path)[None]
    return Image(array, spacing=None, range=own_range(array), bits=16, inverted=False)


def windowed(path):
    array = np.load(path)[None].astype(np.float32)
    return Image(array, (5.0, 2.0, 1.0)[-(array.ndim - 1):], Range(0, 10, "window"), 16, False)


def torn(path):
    raise KeyError(f"no header in {path}")


def refusing(path):
    from bolus.errors import ImageError

    raise ImageError("made by another scanner")


def array(path):
    return np.load(path)


def flat(path):
    return Image(np.load(path), None, Range(0, 1, "unit"), 8, False)


def ruled(path):
    return Image(np.load(path)[None], None, Range(0, 1, "clinical"), 8, False)


number = 3
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with readers, on the path of this process and of those it starts."""
    name = f"readers_{abs(hash(str(tmp_path)))}"
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path / "parts"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "parts"), os.environ.get("PYTHONPATH", "")]))
    return name


def change_module(name: str, folder: Path, old: str, new: str) -> None:
    path = folder / "parts" / f"{name}.py"
    path.write_text(path.read_text().replace(old, new))
    importlib.invalidate_caches()
    sys.modules.pop(name, None)
    for compiled in (folder / "parts" / "__pycache__").glob(f"{name}.*"):
        compiled.unlink()


def one(mine: str, function: str, suffix: str = ".npy") -> Readers:
    return open_readers({suffix: f"{mine}:{function}"})


def make_cohort(folder: Path, mine: str, shape: tuple[int, ...] = (20, 24), **keys: Any) -> Path:
    """Files .vol, NumPy arrays of this shape, of 20 patients; every other one is brighter in a corner."""
    import yaml

    rng = np.random.default_rng(0)
    (folder / "img").mkdir(parents=True)
    lines = ["image,patient,sick,sex"]
    for patient in range(20):
        pixels = rng.integers(0, 1500, shape)
        pixels[..., 2:10, 2:10] += 1500 * (patient % 2)
        with (folder / "img" / f"p{patient}.Vol").open("wb") as file:
            np.save(file, pixels.astype(np.uint16))
        lines.append(f"img/p{patient}.Vol,P{patient:03d},{'yes' if patient % 2 else 'no'},{'FM'[patient % 3 == 0]}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    stated = {
        "table": "table.csv",
        "roles": {"label:sick": "sick"},
        "split": {"seed": 1, "val": 0.2, "test": 0.3},
        "readers": {".vol": f"{mine}:read"},
        **keys,
    }
    (folder / "cohort.yaml").write_text(yaml.safe_dump(stated))
    return folder / "cohort.yaml"


def test_the_longest_suffix_wins_in_any_case_and_a_star_takes_the_rest(mine: str, tmp_path: Path) -> None:
    for name in ("a.x.npy", "A.NPY", "b.bin"):
        with (tmp_path / name).open("wb") as file:
            np.save(file, np.full((4, 5), 7, np.uint16))
    readers = open_readers({".npy": f"{mine}:refusing", ".x.npy": f"{mine}:read", "*": f"{mine}:windowed"})
    assert read_image(tmp_path / "a.x.npy", readers=readers).range.rule == "cohort"
    assert read_image(tmp_path / "b.bin", readers=readers).range.rule == "window"
    with pytest.raises(ImageError, match=r"A\.NPY: made by another scanner"):
        read_image(tmp_path / "A.NPY", readers=readers)
    with pytest.raises(ImageError, match=r"found none of these; readers in cohort\.yaml"):
        read_image(tmp_path / "b.bin")


def test_a_reader_comes_before_bolus(mine: str, tmp_path: Path) -> None:
    path = tmp_path / "clip.npy"
    path.write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(400))  # begins as a video does
    np.save(tmp_path / "whole.npy", np.arange(24, dtype=np.uint16).reshape(2, 3, 4))
    readers = one(mine, "refusing")
    for frames in ([None], [0, 1]):
        found = list(read_as(path, frames, "file", readers))
        assert all(isinstance(each, BolusError) and "another scanner" in str(each) for each in found)


def test_frames_and_windows(mine: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.arange(24, dtype=np.uint16).reshape(2, 3, 4))
    readers = one(mine, "windowed")
    assert (count_frames(path, readers), all_frames(path, readers)) == (2, [0, 1])
    second, wrong = read_as(path, [1, 5], "file", readers)
    assert not isinstance(second, BolusError)
    assert (second.array[0, 0].tolist(), second.spacing, second.aspect) == ([12, 13, 14, 15], (2.0, 1.0), 2.0)
    assert (second.range.rule, second.range.high) == ("window", 10)
    assert "expected a frame from 0 to 1, found 5" in str(wrong)
    (values,) = read_as(path, [1], "values", readers)
    assert not isinstance(values, BolusError)
    assert (values.range.rule, values.range.high) == ("cohort", 31), "of all frames, where no window is wanted"
    whole = read_image(path, readers=readers, window=(6, 4))
    assert (whole.array.shape, whole.range.low, whole.range.high) == ((1, 2, 3, 4), 4, 8)
    np.save(path, np.zeros((1, 3, 4)))
    assert read_image(path, readers=readers).array.shape == (1, 3, 4), "a single frame is an image"
    assert all_frames(path, readers) == [None]


def test_masks_are_read_too(mine: str, tmp_path: Path) -> None:
    path = tmp_path / "m.npy"
    np.save(path, np.array([[[0, 3], [1, 0]], [[2, 2], [0, 0]]], np.uint8))
    assert read_labels(path, readers=one(mine, "read")).tolist() == [[[0, 3], [1, 0]], [[2, 2], [0, 0]]]
    assert read_labels(path, frame=1, readers=one(mine, "read")).tolist() == [[2, 2], [0, 0]]
    np.save(path, np.array([[0.5]]))
    with pytest.raises(ImageError, match=r"m\.npy: expected integers"):
        read_labels(path, readers=one(mine, "read"))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("torn", r"a.npy: the reader \w+:torn failed: KeyError: .*no header in a.npy"),
        ("array", r"a.npy: \w+:array: expected a bolus.data.pixels.image.Image, found ndarray"),
        ("flat", r"a.npy: \w+:flat: expected numbers \[C, H, W\] .*found float64 \[4, 5\]"),
        ("ruled", r"a.npy: \w+:ruled: expected a range of one of .*found 'clinical'"),
    ],
)
def test_what_a_reader_gives_is_checked(mine: str, tmp_path: Path, function: str, said: str) -> None:
    (tmp_path / "P017").mkdir()
    np.save(tmp_path / "P017" / "a.npy", np.zeros((4, 5)))
    with pytest.raises(ImageError, match=said) as raised:
        read_image(tmp_path / "P017" / "a.npy", readers=one(mine, function))
    assert "P017" not in str(raised.value)


@pytest.mark.parametrize(
    ("readers", "said"),
    [
        ({".x": "MINE:rea"}, r"readers\.\.x: .*did you mean 'read'"),
        ({".x": "read"}, r"readers\.\.x: expected package.module:name or a registered name, found 'read'"),
        ({".x": "no_such_module_at_all:read"}, r"readers\.\.x: .*cannot be imported .*PYTHONPATH"),
        ({".x": "MINE:number"}, r"readers\.\.x: MINE:number: expected a function, found int"),
        ({".x": "os:remove"}, r"readers\.\.x: os:remove: expected an entry point of the group bolus.readers, or"),
    ],
)
def test_a_name_that_cannot_be_is_told_before_an_image_is_read(
    mine: str, tmp_path: Path, readers: dict[str, str], said: str
) -> None:
    readers = {suffix: name.replace("MINE", mine) for suffix, name in readers.items()}
    path = make_cohort(tmp_path / "cohort", mine, readers={**readers, ".vol": f"{mine}:refusing"})
    cohort = Cohort.open(path)
    for read in (check, plan, lambda each: build_store(each, Preprocessing(16), folder=tmp_path / "cache")):
        with pytest.raises(CohortError, match=said.replace("MINE", mine)):
            read(cohort)
    assert len(list((tmp_path / "cohort" / "img").iterdir())) == 20


@pytest.mark.parametrize("suffix", ["vol", ".", "", "img/.vol"])
def test_a_suffix_has_its_point(suffix: str) -> None:
    with pytest.raises(ValueError, match="expected a suffix with its point"):
        CohortSpec(table="t.csv", readers={suffix: "mine:read"})
    assert CohortSpec(table="t.csv", readers={".VOL": "mine:read"}).readers == {".vol": "mine:read"}


def test_another_reader_or_another_version_of_it_decodes_anew(mine: str, tmp_path: Path) -> None:
    path = make_cohort(tmp_path / "cohort", mine)
    decoded: list[int] = []

    def build(**keys: Any) -> Any:
        decoded.clear()
        cohort = Cohort.open(path, **keys)
        return build_store(
            cohort, Preprocessing(16), folder=tmp_path / "cache", on_progress=lambda n, _: decoded.append(n)
        )

    rows = np.arange(3)
    first = build()
    assert (decoded[-1], first.readable.all()) == (20, True)
    build()
    assert not decoded, "the cache holds them"
    windowed = build(readers={".vol": f"{mine}:windowed"})
    assert decoded[-1] == 20
    assert windowed.gather(rows).unit().mean() > first.gather(rows).unit().mean()
    change_module(mine, tmp_path, "GAIN = 1", "GAIN = 4")
    changed = build()
    assert decoded[-1] == 20
    assert changed.preprocessing.ranges["image"][1] > first.preprocessing.ranges["image"][1]
    assert not (changed.keys(rows) == first.keys(rows)).all(1).any(), "remembered embeddings are of other pixels"


def test_pixels_beside_a_header_are_content_too(mine: str, tmp_path: Path) -> None:
    module = tmp_path / "parts" / f"{mine}.py"
    module.write_text(module.read_text() + "\n\ndef beside(path):\n    return read(path.with_suffix('.raw'))\n")
    pixels = [np.full((20, 20), level, np.uint16) for level in (100, 4000)]
    for name, each in zip("ab", pixels, strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "scan.hdr").write_text("the same of both")
        with (tmp_path / name / "scan.raw").open("wb") as file:
            np.save(file, each)
    frame = pd.DataFrame({"image": ["a/scan.hdr", "b/scan.hdr"], "patient": ["p", "q"]})
    cohort = Cohort(frame, CohortSpec(table="t.csv", readers={".hdr": f"{mine}:beside"}), tmp_path)

    def levels() -> list[float]:
        store = build_store(cohort, Preprocessing(8), folder=tmp_path / "cache")
        return store.gather(np.array([0, 1])).unit().mean((1, 2, 3)).tolist()

    low, high = levels()
    assert low < high
    with (tmp_path / "a" / "scan.raw").open("wb") as file:
        np.save(file, pixels[1])
    assert levels() == [high, high]


def test_files_of_both_kinds_lie_in_one_cohort(mine: str, tmp_path: Path) -> None:
    from PIL import Image as PillowImage

    path = make_cohort(tmp_path / "cohort", mine)
    table = tmp_path / "cohort" / "table.csv"
    PillowImage.fromarray(np.full((20, 24), 200, np.uint8)).save(tmp_path / "cohort" / "img" / "p0.png")
    table.write_text(table.read_text().replace("img/p0.Vol", "img/p0.png"))
    store = build_store(Cohort.open(path), Preprocessing(16), folder=tmp_path / "cache")
    assert store.readable.all()
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert store.gather(np.array([0])).unit().max().item() == pytest.approx(200 / 255, abs=0.01)


def test_a_missing_file_is_looked_for_with_the_suffix_of_a_reader(mine: str, tmp_path: Path) -> None:
    path = make_cohort(tmp_path / "cohort", mine)
    table = tmp_path / "cohort" / "table.csv"
    table.write_text(table.read_text().replace(".Vol,", ","))
    for read in (check, lambda each: build_store(Cohort.open(each), Preprocessing(16), folder=tmp_path / "cache")):
        try:
            said = str(read(path).findings)  # type: ignore[attr-defined]
        except CohortError as error:
            said = str(error)
        assert "found with the extension .Vol added" in said


def test_clip_files(mine: str, tmp_path: Path) -> None:
    cohort = Cohort.open(make_cohort(tmp_path / "cohort", mine, shape=(3, 16, 16)))
    samples = open_samples(cohort, "clip")
    assert (len(samples), len(samples.cohort)) == (20, 60)
    store = build_store(samples.cohort, Preprocessing(8, frames=3), folder=tmp_path / "cache")
    assert store.readable.all()
    assert not store.gather(np.array([0])).unit().equal(store.gather(np.array([1])).unit())


def test_a_run_goes_on_with_the_reader_that_it_began_with(mine: str, tmp_path: Path) -> None:
    path = make_cohort(tmp_path / "cohort", mine)
    report = check(path)
    assert not [each for each in report.findings if each.severity == "error"], report
    recipe = {
        "name": "small",
        "encoder": {"backbone": "unet1"},
        "images": {"size": 16},
        "sampling": {"batch_size": 4},
        "objectives": {"views": {"kind": "contrast", "relation": "views", "hidden": 8, "dim": 8}},
        "training": {"max_steps": 2, "log_steps": 1},
    }
    options: dict[str, Any] = {"recipe": recipe, "out": tmp_path / "run", "cache": tmp_path / "cache", "quiet": True}
    assert pretrain(path, overrides=["training.max_hours=1e-9"], **options).status == "stopped"
    change_module(mine, tmp_path, "GAIN = 1", "GAIN = 2")
    with pytest.raises(TrainingError, match="other training images"):
        pretrain(path, resume=True, **options)
    change_module(mine, tmp_path, "GAIN = 2", "GAIN = 1")
    run = pretrain(path, resume=True, **options)
    assert run.status == "finished"
    assert Cohort.open(run.folder / "cohort.yaml").spec.readers == {".vol": f"{mine}:read"}
