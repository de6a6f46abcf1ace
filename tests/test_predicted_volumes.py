"""Masks that a segmenter of volumes draws: whatever the files, read beside their volume they lie where they should."""

from __future__ import annotations

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
from bolus.data.cohort.cohort import Cohort
from bolus.data.images.cache import build_store
from bolus.data.images.clips import open_samples
from bolus.data.images.preprocessing import Preprocessing
from bolus.data.volumes.fit import VolumeFit
from bolus.encoders.building import build_encoder
from bolus.evaluation.segmentation.saved import save_segmenter
from bolus.evaluation.segmentation.segmenter import Segmenter, start_decoder
from bolus.evaluation.segmentation.volumes.masks import read_volume_masks
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


def saved(folder: Path, table: pd.DataFrame) -> Path:
    """A segmenter of volumes, as an evaluation saves it."""
    samples = open_samples(Cohort.open(table, root=str(folder)), "volume")
    store = build_store(samples.cohort, CONTRACT, folder=folder / "cache")
    encoder = build_encoder(EncoderSpec(backbone="unet3d2"), seed=0).eval()
    made: Any = Segmenter(encoder, start_decoder(encoder, 2, 0).eval(), store, samples, 2)
    save_segmenter(made, folder / "segmenter", labels={7: "organ"}, patients=samples.cohort.patients[:1], lineage=[])
    return folder / "segmenter"


@pytest.mark.parametrize("kind", ["nifti", "pages", "png", "dicom"])
def test_a_predicted_mask_lies_on_its_volume(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def by_brightness(segmenter: Segmenter, row: int, *, box: tuple[int, ...]) -> torch.Tensor:
        whole = segmenter.store.gather(np.array([row])).unit()[0]
        return torch.cat([whole < whole.mean() + 0.2, whole >= whole.mean() + 0.2]).float()

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
    frame = bolus.predict(segmenter, cohort, head=segmenter, out=tmp_path / "out", cache=tmp_path / "cache")
    written = nibabel.load(tmp_path / "out" / frame["mask"].iloc[0])
    assert set(np.unique(np.asarray(written.dataobj))) <= {0, 7}
    np.testing.assert_allclose(written.affine, TURNED)
    assert int((np.asarray(written.dataobj) == 7).sum()) == frame["pixels:organ"].iloc[0]
    text = " ".join(frame.attrs["remarks"])
    assert "1 rows have no mask" in text
