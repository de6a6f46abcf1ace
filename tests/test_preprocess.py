"""One preprocessing: new images are made bit for bit as `bolus embed` makes the rows of a table, by every reader."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from PIL import Image as PillowImage
from pydicom.data import get_testdata_file

import bolus
from bolus.data.cohort.cohort import Cohort
from bolus.data.images.cache import Preprocessing, build_store
from bolus.data.images.clips import open_samples
from bolus.data.views.samples import whole_views
from bolus.embedding.opening import Judged, open_store, samples_of
from bolus.embedding.table import embed
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import save_encoder
from bolus.encoders.folders.modality_folder import save_encoders
from bolus.encoders.modalities import build_encoders
from bolus.errors import EncoderError, ImageError, UsageError
from bolus.recipe import EncoderSpec

SIZE = 16
RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOLUS_CACHE", str(tmp_path / "cache"))


def pictures(folder: Path, suffix: str, *arrays: np.ndarray, **options: Any) -> pd.DataFrame:
    names = [f"Surname{row}{suffix}" for row in range(len(arrays))]
    for name, pixels in zip(names, arrays, strict=True):
        PillowImage.fromarray(pixels).save(folder / name, **options)
    return pd.DataFrame({"image": names})


def bytes_of(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape).astype(np.uint8)


def words_of(high: int, *shape: int) -> np.ndarray:
    return RNG.integers(0, high, shape).astype(np.uint16)


def png8(folder: Path) -> pd.DataFrame:
    return pictures(folder, ".png", bytes_of(30, 20), bytes_of(20, 20), bytes_of(50, 33, 3))


def png16(folder: Path) -> pd.DataFrame:
    return pictures(folder, ".png", words_of(4000, 30, 20), words_of(900, 20, 20), bytes_of(9, 31))


def jpeg(folder: Path) -> pd.DataFrame:
    exif = PillowImage.Exif()
    exif[0x0112] = 6  # turned by the camera
    return pictures(folder, ".jpg", bytes_of(40, 24, 3), bytes_of(24, 40, 3), exif=exif)


def tiff(folder: Path) -> pd.DataFrame:
    return pictures(folder, ".tif", words_of(60000, 30, 20), words_of(300, 25, 20), dpi=(300, 150))


def dicom(folder: Path, *, name: str = "MR_small.dcm", **elements: list[Any]) -> pd.DataFrame:
    number = max(map(len, elements.values()))
    for row in range(number):
        header = pydicom.dcmread(get_testdata_file(name, download=False))
        pixels = header.pixel_array.copy()
        header.PixelData = (pixels + row * 7).astype(pixels.dtype).tobytes()
        for key, values in elements.items():
            if values[row] is None:
                if key in header:
                    delattr(header, key)
            else:
                setattr(header, key, values[row])
        header.save_as(folder / f"Surname{row}.dcm")
    return pd.DataFrame({"image": [f"Surname{row}.dcm" for row in range(number)]})


def radiographs(folder: Path) -> pd.DataFrame:
    """With and without a window, and both polarities."""
    photometric = ["MONOCHROME2", "MONOCHROME1", "MONOCHROME2", "MONOCHROME1"]
    windows = {"WindowCenter": [600, 700, None, None], "WindowWidth": [900, 1000, None, None]}
    return dicom(folder, Modality=["CR"] * 4, PhotometricInterpretation=photometric, **windows)


def ct(folder: Path) -> pd.DataFrame:
    return dicom(folder, name="CT_small.dcm", Modality=["CT"] * 3)


def mr(folder: Path) -> pd.DataFrame:
    return dicom(folder, Modality=["MR"] * 4, SeriesInstanceUID=["1.2", "1.2", "1.3", "1.3"])


def mr_by_table(folder: Path) -> pd.DataFrame:
    return mr(folder).assign(series=["a", "a", "a", "b"], modality="T1W")


def stated(folder: Path) -> pd.DataFrame:
    """A range in place of every window; `contract_of` states it."""
    return radiographs(folder).assign(modality="DX")


def nifti(folder: Path) -> pd.DataFrame:
    volume = RNG.integers(-50, 900, (20, 24, 6)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1, 1, 3, 1])), folder / "Surname.nii.gz")
    return pd.DataFrame({"image": "Surname.nii.gz", "order": [4, 0, 5], "modality": "MR", "series": "v"})


def eyes(folder: Path) -> pd.DataFrame:
    return png8(folder).assign(laterality=["OS", "right", None])


def video(folder: Path) -> pd.DataFrame:
    for name, count in (("Surname0.avi", 9), ("Surname1.avi", 3)):
        with av.open(folder / name, "w") as out:
            stream = out.add_stream("mjpeg", rate=10)
            stream.width, stream.height, stream.pix_fmt = 32, 24, "yuvj420p"
            for _ in range(count):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(bytes_of(24, 32, 3), "rgb24")))
            out.mux(stream.encode(None))
    return pd.DataFrame({"image": ["Surname0.avi", "Surname1.avi"]})


def loop(folder: Path) -> pd.DataFrame:
    """A multi-frame DICOM file, as a clip."""
    header = pydicom.dcmread(get_testdata_file("rtdose.dcm", download=False))
    header.save_as(folder / "Surname0.dcm")
    return pd.DataFrame({"image": ["Surname0.dcm"]})


def frames_of_table(folder: Path) -> pd.DataFrame:
    table = pictures(folder, ".png", *(bytes_of(24, 24) for _ in range(7)))
    return table.assign(series=["a"] * 4 + ["b"] * 3, order=[0, 1, 2, 3, 0, 1, 2])


KINDS: dict[str, tuple[Callable[[Path], pd.DataFrame], dict[str, Any]]] = {
    "PNG of 8 bits": (png8, {}),
    "PNG in colour": (png8, {"channels": 3, "fit": "crop"}),
    "PNG of 16 bits": (png16, {}),
    "JPEG, turned": (jpeg, {"channels": 3, "fit": "stretch"}),
    "TIFF, oblong": (tiff, {}),
    "radiographs": (radiographs, {}),
    "CT": (ct, {}),
    "MR by DICOM's series": (mr, {}),
    "MR by the table's series": (mr_by_table, {}),
    "a stated range": (stated, {"ranges": {"DX": (100.0, 1200.0)}, "stated": ("DX",)}),
    "slices of NIfTI": (nifti, {}),
    "a mirrored side": (eyes, {"mirror": "left"}),
    "video": (video, {"frames": 4}),
    "DICOM of many frames": (loop, {"frames": 4}),
    "frames of a table": (frames_of_table, {"frames": 4}),
}


def opened(frame: pd.DataFrame, folder: Path, **contract: Any) -> tuple[Judged, Cohort]:
    """An encoder whose contract is that of a run on the table, by way of JSON."""
    table = frame.assign(patient=[f"P{row}" for row in range(len(frame))])
    if "series" in table:
        table["patient"] = table["series"]
    cohort = Cohort.open(table, root=str(folder))
    asked = Preprocessing(SIZE, **contract)
    rows = open_samples(cohort, "clip" if asked.frames else "image").cohort
    saved = json.loads(json.dumps(build_store(rows, asked).preprocessing.to_json()))
    spec = EncoderSpec(backbone="unet4", in_channels=asked.channels)
    return Judged("small", build_encoder(spec, seed=0).eval(), Preprocessing(**saved), None), cohort


def given(cohort: Cohort, frames: int | None) -> tuple[list[Any], dict[str, Any]]:
    """The same images without the table, and what is known of them."""
    table = cohort.table
    paths: list[Any] = [cohort.image_path(row) for row in range(len(cohort))]
    if "order" in table and frames is None:
        paths = [(path, int(number)) for path, number in zip(paths, table["order"], strict=True)]
    called = {name: table[name].tolist() for name in ("modality", "laterality", "series") if name in table}
    if "laterality" in called:
        called["laterality"] = [side if isinstance(side, str) else None for side in called["laterality"]]
    if frames and "series" in table:
        names = called.pop("series")
        paths = [[path for path, name in zip(paths, names, strict=True) if name == one] for one in dict.fromkeys(names)]
    return paths, called


@pytest.mark.parametrize(("make", "contract"), KINDS.values(), ids=KINDS)
def test_new_images_are_those_that_embed_sees(
    make: Callable[[Path], pd.DataFrame], contract: dict[str, Any], tmp_path: Path
) -> None:
    judged, cohort = opened(make(tmp_path), tmp_path, **contract)
    samples = samples_of(judged, cohort)
    store = open_store(judged, samples.cohort)
    assert store.readable.all()
    everything = np.arange(len(samples))
    views = whole_views(judged.preprocessing, store, samples, everything, step=2, device=torch.device("cpu"))
    expected = torch.cat([images for images, _ in views])
    images, called = given(cohort, judged.preprocessing.frames)
    found = bolus.preprocess(images, judged, **called)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert 0 <= float(found.min()) < float(found.max()) <= 1
    if make not in (mr, mr_by_table, nifti):  # of a series there must be all slices
        alone = {name: values[:1] for name, values in called.items()}
        assert torch.equal(bolus.preprocess(images[:1], judged, **alone), expected[:1])


@pytest.mark.parametrize("kind", ["PNG of 16 bits", "MR by the table's series", "video"])
def test_an_opened_encoder_embeds_what_embed_does(kind: str, tmp_path: Path) -> None:
    make, contract = KINDS[kind]
    judged, cohort = opened(make(tmp_path), tmp_path, **contract)
    save_encoder(judged.encoder, tmp_path / "encoder", preprocessing=judged.preprocessing.to_json())
    expected = np.stack(embed(tmp_path / "encoder", cohort)["embedding"].tolist())
    images, called = given(cohort, judged.preprocessing.frames)
    found = bolus.open_encoder(tmp_path / "encoder").embed(images, **called)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_a_saved_contract_holds_the_numbers_of_a_cohorts_range(tmp_path: Path) -> None:
    judged, cohort = opened(png16(tmp_path), tmp_path)
    assert judged.preprocessing.ranges == {"image": (0.0, 4095.0)}
    dark = bolus.preprocess(np.full((16, 16), 819, np.uint16), judged)
    assert float(dark.max()) == pytest.approx(0.2, abs=1e-4)
    assert cohort.spec.ranges == {}


def test_arrays_are_read_as_files_of_the_same_numbers(tmp_path: Path) -> None:
    judged, _ = opened(png16(tmp_path), tmp_path)
    pixels = words_of(4000, 30, 20)
    PillowImage.fromarray(pixels).save(tmp_path / "a.png")
    expected = bolus.preprocess(tmp_path / "a.png", judged)
    for same in (pixels, pixels[None], bolus.read_image(tmp_path / "a.png")):
        assert torch.equal(bolus.preprocess(same, judged), expected)
    # Numbers of unknown depth are stored in steps of their own span.
    torch.testing.assert_close(bolus.preprocess(pixels.astype(np.int32), judged), expected, rtol=0, atol=1e-3)


def test_encoders_per_modality_each_take_their_own(tmp_path: Path) -> None:
    specs = {"CFP": EncoderSpec(backbone="r18w32", in_channels=3), "OCT": EncoderSpec(backbone="r18w32")}
    contract = Preprocessing(SIZE, ranges={"OCT": (0, 4095)}, modalities={"CFP": Preprocessing(24, 3)})
    encoders = build_encoders(specs, seed=0).eval()
    save_encoders(encoders, tmp_path / "e", contract, card=lambda name: "", lineage=[])
    both = bolus.open_encoder(tmp_path / "e")
    images, names = [words_of(4000, 20, 20), bytes_of(3, 30, 30), words_of(900, 30, 10)], ["OCT", "CFP", "OCT"]
    vectors = both.embed(images, modality=names)
    assert vectors.shape == (3, 256)
    alone = bolus.open_encoder(tmp_path / "e" / "1-OCT").embed(images[2], modality="OCT")
    np.testing.assert_allclose(vectors[2:], alone, atol=1e-5)
    with pytest.raises(EncoderError, match="seen at 2 sizes"):
        bolus.preprocess(images, both, modality=names)
    with pytest.raises(EncoderError, match="has encoders for CFP, OCT"):
        both.embed(images)


def test_a_range_that_nobody_knows_is_asked_for(tmp_path: Path) -> None:
    judged, _ = opened(png8(tmp_path), tmp_path)
    deep = words_of(900, 20, 20)
    with pytest.raises(EncoderError, match=r"image 2: its values have no range .* modality 'image' \(it has no ranges"):
        bolus.preprocess([bytes_of(20, 20), deep], judged)
    shown = bolus.preprocess(np.full((20, 20), 450, np.uint16), judged, ranges={"image": (0, 900)})
    assert float(shown.max()) == pytest.approx(0.5, abs=1e-4)


def test_values_beyond_the_range_are_clipped_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    judged, _ = opened(png16(tmp_path), tmp_path)
    assert float(bolus.preprocess(np.full((16, 16), 9000, np.uint16), judged).max()) == 1.0
    assert "1 images have values outside image 0 to 4095" in caplog.text


MISTAKES: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "no image": ([], {}, UsageError, "expected at least one image"),
    "no path": ([3], {}, UsageError, "image 1: expected a path, .* found int"),
    "a wrong shape": (np.zeros((4, 8, 8)), {}, UsageError, r"image 1: expected numbers .* found float64 \[4, 8, 8\]"),
    "too many names": (np.zeros((8, 8), np.uint8), {"modality": ["a", "b"]}, UsageError, "modality: expected 1, one"),
    "no file": (["folder/Surname.png"], {}, ImageError, "^image 1 of 1: no such file$"),
    "several frames": (get_testdata_file("rtdose.dcm", download=False), {}, ImageError, r"found 15; give \(path, fra"),
    "not finite": (np.full((8, 8), np.nan), {}, ImageError, "image 1: expected finite values"),
}


@pytest.mark.parametrize(("images", "called", "kind", "said"), MISTAKES.values(), ids=MISTAKES)
def test_what_cannot_be_seen_is_said(
    images: Any, called: dict[str, Any], kind: type[Exception], said: str, tmp_path: Path
) -> None:
    judged, _ = opened(png8(tmp_path), tmp_path)
    with pytest.raises(kind, match=said) as caught:
        bolus.preprocess(images, judged, **called)
    assert "Surname" not in str(caught.value)


def test_a_side_is_asked_for_where_one_is_mirrored(tmp_path: Path) -> None:
    judged, _ = opened(eyes(tmp_path), tmp_path, mirror="left")
    pixels = bytes_of(20, 20)
    with pytest.raises(UsageError, match="images of the left mirrored: give laterality"):
        bolus.preprocess(pixels, judged)
    left, right = (bolus.preprocess(pixels, judged, laterality=side) for side in ("OS", "right"))
    torch.testing.assert_close(left, right.flip(-1), atol=1e-6, rtol=0)
