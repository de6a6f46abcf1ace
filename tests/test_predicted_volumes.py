"""Masks that a segmenter of volumes draws: whatever the files, read beside their volume they lie where they should."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from PIL import Image as PillowImage
from pydicom import uid

import bolus
from bolus.data.cohort.cohort import Cohort
from bolus.data.images.cache import build_store
from bolus.data.images.clips import open_samples
from bolus.data.images.preprocessing import Preprocessing
from bolus.data.volumes.fit import VolumeFit
from bolus.encoders.building import build_encoder
from bolus.evaluation.segmentation.saved import load_segmenter, save_segmenter
from bolus.evaluation.segmentation.segmenter import Segmenter, start_decoder
from bolus.evaluation.segmentation.volumes.masks import read_volume_masks
from bolus.evaluation.segmentation.volumes.sliding import slide
from bolus.recipe import EncoderSpec
from dicom_tree import Tree, person, slice_tags

pytest.importorskip("blosc2", reason="the package blosc2 is not installed")

CONTRACT = Preprocessing(16, volume=VolumeFit((16, 16, 16)))
SHAPE = (7, 20, 24)
TURNED = np.array([[0, -1.5, 0, 30], [0, 0, 1.0, -5], [3.0, 0, 0, 2], [0, 0, 0, 1]])  # axes: superior, left, anterior


def bright() -> tuple[np.ndarray, np.ndarray]:
    """Voxels, and where they are bright: of no symmetry."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:3, 4:9, 2:13] = 1
    mask[5, 15, 20] = 1
    return (40 + 160 * mask).astype(np.uint8), mask


def volume_files(folder: Path, kind: str) -> pd.DataFrame:
    """One volume as files of a kind, a row each, and a line of another one that cannot be read."""
    voxels, _ = bright()
    folder.mkdir(exist_ok=True)
    if kind == "nifti":
        nibabel.save(nibabel.Nifti1Image(voxels.astype(np.int16).transpose(0, 2, 1), TURNED), folder / "i.nii")
        names = ["i.nii"]
    elif kind == "pages":
        pages = [PillowImage.fromarray(each) for each in voxels]
        pages[0].save(folder / "i.tif", save_all=True, append_images=pages[1:])
        names = ["i.tif"]
    elif kind == "png":
        names = [f"i{number}.png" for number in range(len(voxels))]
        for name, each in zip(names, voxels, strict=True):
            PillowImage.fromarray(each).save(folder / name)
    else:
        tree, names = Tree(folder / "dicom"), []
        for place in (3, 0, 6, 1, 5, 2, 4):
            tags = {**person(1), **slice_tags("20200101", place + 1, 2.5 * place, Modality="MR", RescaleIntercept=0)}
            path = tree.write(f"a/b/c/{place}", uid.MRImageStorage, tags, voxels[place].astype(np.uint16))
            names.append(str(path.relative_to(folder)))
    (folder / "broken.nii").write_bytes(b"no volume")
    frame = pd.DataFrame({"image": [*names, "broken.nii"], "patient": "A", "series": "s", "split": "train"})
    frame.loc[len(names), ["patient", "series"]] = ["B", "t"]
    return frame.assign(order=range(len(frame)))


def by_brightness(segmenter: Segmenter, row: int, *, box: tuple[int, ...]) -> torch.Tensor:
    """In place of a decoder: bright voxels are of class 1."""
    whole = segmenter.store.gather(np.array([row])).unit()[0]
    return torch.cat([whole < whole.mean() + 0.2, whole >= whole.mean() + 0.2]).float()


def saved(folder: Path, table: pd.DataFrame, contract: Preprocessing = CONTRACT) -> Path:
    """A segmenter of volumes, as an evaluation saves it."""
    samples = open_samples(Cohort.open(table, root=str(folder)), "volume")
    store = build_store(samples.cohort, contract, folder=folder / "cache")
    encoder = build_encoder(EncoderSpec(backbone="unet3d2"), seed=0).eval()
    made: Any = Segmenter(encoder, start_decoder(encoder, 2, 0).eval(), store, samples, 2)
    save_segmenter(made, folder / "segmenter", labels={7: "organ"}, patients=samples.cohort.patients[:1], lineage=[])
    return folder / "segmenter"


@pytest.mark.parametrize("kind", ["nifti", "pages", "png", "dicom"])
def test_a_predicted_mask_lies_on_its_volume(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bolus.prediction.volume_masks.slide", by_brightness)
    table = volume_files(tmp_path, kind)
    segmenter, cohort = saved(tmp_path, table), Cohort.open(table, root=str(tmp_path))
    frame = bolus.predict(segmenter, cohort, head=segmenter, out=tmp_path / "out", cache=tmp_path / "cache")
    assert len(frame) == len(table)
    drawn, lost = frame.iloc[:-1], frame.iloc[-1]
    assert drawn["mask"].notna().all()
    assert drawn["reason"].isna().all()
    assert pd.isna(lost["mask"])
    assert "broken" not in lost["reason"]
    _, mask = bright()
    counted = [mask.sum()] if len(drawn) == 1 else [each.sum() for each in mask]
    places = (3, 0, 6, 1, 5, 2, 4) if kind == "dicom" else range(len(drawn))
    assert drawn["pixels:organ"].tolist() == [counted[place] for place in places]
    again = table.iloc[:-1].assign(mask=[str(Path("out") / name) for name in drawn["mask"]])
    samples = open_samples(Cohort.open(again, root=str(tmp_path)), "volume")
    [codes] = read_volume_masks(samples).codes.values()
    volume = bolus.read_volume([tmp_path / name for name in again["image"]])
    levels = volume.array[0] - volume.array.min()
    np.testing.assert_array_equal(codes > 0, levels > levels.max() / 2)
    assert codes.sum() == mask.sum()


def test_windows_that_slide_draw_the_masks(tmp_path: Path) -> None:
    table = volume_files(tmp_path, "nifti")
    segmenter, cohort = saved(tmp_path, table), Cohort.open(table, root=str(tmp_path))
    loaded = load_segmenter(segmenter)
    samples = open_samples(cohort, "volume")
    store = build_store(samples.cohort, CONTRACT, folder=tmp_path / "cache")
    asked: Any = Segmenter(loaded.judged.encoder, loaded.decoder, store, samples, 2)  # type: ignore[arg-type]
    expected = slide(asked, 0, box=(16, 16, 16)).argmax(0)
    assert 0 < int(expected.sum()) < expected.numel(), "weights of seed 0 draw something"
    frame = bolus.predict(segmenter, cohort, head=segmenter, out=tmp_path / "out", cache=tmp_path / "cache")
    written = nibabel.load(tmp_path / "out" / frame["mask"].iloc[0])
    assert set(np.unique(np.asarray(written.dataobj))) == {0, 7}
    assert int((np.asarray(written.dataobj) == 7).sum()) == int(expected.sum())
    np.testing.assert_allclose(written.affine, TURNED)
    assert int((np.asarray(written.dataobj) == 7).sum()) == frame["pixels:organ"].iloc[0]
    text = " ".join(frame.attrs["remarks"])
    assert "1 row has no mask" in text


@pytest.mark.parametrize("case", ["uneven", "localizer", "twice", "coarse"])
def test_a_mask_keeps_the_places_of_slices_whatever_they_do(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DICOM slices a little off their grid, beside a localizer or twice; and a cache of larger voxels."""
    monkeypatch.setattr("bolus.prediction.volume_masks.slide", by_brightness)
    table = volume_files(tmp_path, "dicom")
    files = [tmp_path / name for name in table["image"][:-1]]
    if case == "uneven":
        header = pydicom.dcmread(files[1])
        header.ImagePositionPatient = [0, 0, 0.1]
        header.save_as(files[1])
    elif case == "localizer":
        header = pydicom.dcmread(files[2])
        header.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        header.ImageOrientationPatient, header.SOPInstanceUID = [0, 1, 0, 0, 0, -1], "1.2.3.4"
        header.save_as(tmp_path / "scout")
        table = pd.concat([table.iloc[:1], table.iloc[:1].assign(image="scout"), table.iloc[1:]], ignore_index=True)
    elif case == "twice":
        shutil.copy(files[0], tmp_path / "again")
        table = pd.concat([table.iloc[:-1], table.iloc[:1].assign(image="again"), table.iloc[-1:]], ignore_index=True)
    table["order"] = range(len(table))
    contract = Preprocessing(16, volume=VolumeFit((16, 16, 16), (2.5, 1.0, 1.0))) if case == "coarse" else CONTRACT
    segmenter, cohort = saved(tmp_path, table, contract), Cohort.open(table, root=str(tmp_path))
    frame = bolus.predict(segmenter, cohort, head=segmenter, out=tmp_path / "out", cache=tmp_path / "cache")
    names = frame["mask"].dropna().unique()
    assert names.tolist() == ["mask-row1.nii.gz"]
    written, volume = nibabel.load(tmp_path / "out" / names[0]), bolus.read_volume(files)
    np.testing.assert_allclose(written.affine, volume.affine, atol=1e-4)
    assert np.asarray(written.dataobj).T.shape == volume.array.shape[1:]
    truth = volume.array[0] > volume.array.mean() + 1
    drawn = np.asarray(written.dataobj).T == 7
    assert 2 * (drawn & truth).sum() / (drawn.sum() + truth.sum()) > (0.8 if case == "coarse" else 0.999)
    lost = frame[frame["mask"].isna()]
    assert len(lost) == (2 if case == "localizer" else 1)
    if case == "localizer":
        assert frame["reason"].iloc[1] == "this slice is left out of its volume, as bolus check says"


@pytest.mark.slow
def test_a_segmenter_of_volumes_goes_to_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    segmenter = saved(tmp_path, volume_files(tmp_path, "nifti"))
    found = bolus.export(segmenter, to="onnx", out=tmp_path / "out", head=segmenter)
    assert found.differences["all"] < 1e-5
    assert "averages probabilities by a Gaussian about each middle" in (tmp_path / "out" / "README.md").read_text()
    script = [sys.executable, str(tmp_path / "out" / "embed_without_bolus.py")]
    shown = subprocess.run([*script, "--test"], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "mask differs by" in shown.stdout
    refused = subprocess.run([*script, str(tmp_path / "i.nii")], capture_output=True, text=True, check=False)
    assert "of volumes, which this script does not read" in refused.stderr
