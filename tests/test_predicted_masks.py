"""Masks of new images by a saved segmenter: where they lie, what is said of images without one, and SEG.

The segmenter of most tests takes what is bright for class 7, so that the right mask is known of every pixel.
"""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage

from bolus.data.cohort.cohort import Cohort
from bolus.data.images.cache import Preprocessing, build_store
from bolus.data.views.augment import plain
from bolus.encoders.building import build_encoder
from bolus.errors import EvaluationError, UsageError
from bolus.evaluation.segmentation.options import SegmentSpec
from bolus.evaluation.segmentation.saved import DECODER, load_segmenter, save_segmenter
from bolus.evaluation.segmentation.segmenter import Segmenter, fit_segmenter
from bolus.prediction.mask_files import Group, write_masks
from bolus.prediction.prediction import predict
from bolus.recipe import EncoderSpec
from dicom_tree import CR, CT, Tree, person, radiograph, slice_tags

SIZE = 16
Call = Callable[..., tuple[int, str]]


def blocks(seed: int, slices: int = 1) -> NDArray[np.bool_]:
    """`[slices, 16, 16]`, quarters that are bright or dark, no slice without one of each."""
    rng = np.random.default_rng(seed)
    quarters = np.stack([rng.permutation([True, False, False, bool(seed % 2)]) for _ in range(slices)])
    return quarters.reshape(slices, 2, 2).repeat(8, 1).repeat(8, 2)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A segmenter of labels 7 and 3, trained for two steps."""
    folder = tmp_path / "training"
    folder.mkdir()
    rows = []
    for n in range(4):
        PillowImage.fromarray((blocks(n)[0] * 200).astype(np.uint8)).save(folder / f"{n}.png")
        rows.append([f"{n}.png", f"P-{n}", "train"])
    pd.DataFrame(rows, columns=["image", "patient", "split"]).to_csv(folder / "table.csv", index=False)
    cohort = Cohort.open(folder / "table.csv")
    store = build_store(cohort, Preprocessing(SIZE, 1), folder=tmp_path / "cache")
    encoder = build_encoder(EncoderSpec(backbone="unet2"), seed=5)
    labels = {n: np.zeros((store.preprocessing.cached_size,) * 2, np.int64) for n in range(4)}
    spec = SegmentSpec(steps=2, batch_size=2)
    trained = fit_segmenter(encoder, store, cohort.samples("image"), labels, np.arange(4), num_classes=3, spec=spec)
    out = tmp_path / "segmenter-mask"
    save_segmenter(trained, out, labels={7: "organ", 3: "lesion"}, patients=cohort.patients[:2], lineage=[])
    expected = trained.predict(np.arange(4))
    read = load_segmenter(out)
    again = Segmenter(read.judged.encoder, read.decoder, store, cohort.samples("image"), 3)  # type: ignore[arg-type]
    assert torch.equal(again.predict(np.arange(4)), expected)
    assert read.knows(cohort.patients).tolist() == [True, True, False, False]
    return out


@pytest.fixture
def bright(monkeypatch: pytest.MonkeyPatch) -> None:
    def predict_bright(self: Segmenter, positions: NDArray[np.int64], *, batch_size: int = 64) -> torch.Tensor:
        stored = self.store.gather(self.samples.first_row[positions]).unit(torch.device("cpu"))
        x = plain(stored, size=SIZE)[:, 0]
        return torch.stack([1 - x, x, torch.zeros_like(x)], dim=1)

    monkeypatch.setattr(Segmenter, "predict", predict_bright)


def ask(saved: Path, table: Path, out: Path, **given: Any) -> pd.DataFrame:
    return predict(saved, table, head=saved, out=out, cache=out.parent / "cache", **given)


def write_table(folder: Path, rows: list[list[Any]], *names: str) -> Path:
    pd.DataFrame(rows, columns=["image", "patient", *names]).to_csv(folder / "t.csv", index=False)
    return folder / "t.csv"


@pytest.mark.usefixtures("bright")
@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR", "PIL"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_mask_has_the_voxels_and_the_affine_of_its_nifti_image(
    axes: str, kind: Any, saved: Path, tmp_path: Path
) -> None:
    """Bright voxels, seen in the file's own array, are the mask's, in any order of axes and a turned affine."""
    affine = np.array([[1.5, 0.1, 0, 11], [-0.1, 1.5, 0.2, -7], [0, 0, 4.0, 3], [0, 0, 0, 1]])
    ras = kind((blocks(3, slices=5).transpose(2, 1, 0) * 200).astype(np.int16), affine)
    codes = (nibabel.orientations.axcodes2ornt(each) for each in ("RAS", axes))
    image = ras.as_reoriented(nibabel.orientations.ornt_transform(*codes))
    image.header.set_slope_inter(1, 0)
    image.to_filename(tmp_path / "a.nii.gz")
    table = write_table(tmp_path, [["a.nii.gz", "p", n] for n in range(4)], "order")
    frame = ask(saved, table, tmp_path / "masks")
    assert frame["mask"].tolist() == ["mask-row1.nii.gz"] * 4
    expected = np.asanyarray(ras.dataobj) > 0
    expected[:, :, 4] = False  # no row is of this slice
    assert frame["pixels:organ"].tolist() == expected.sum((0, 1))[:4].tolist()
    expected = nibabel.apply_orientation(expected, nibabel.io_orientation(np.linalg.inv(image.affine) @ ras.affine))
    mask = nibabel.load(tmp_path / "masks" / "mask-row1.nii.gz")
    assert np.array_equal(np.asanyarray(mask.dataobj), expected * 7)
    assert np.array_equal(mask.affine, nibabel.load(tmp_path / "a.nii.gz").affine)
    assert mask.header["sform_code"] == image.header["sform_code"]
    assert mask.get_data_dtype() == np.uint8


@pytest.mark.usefixtures("bright")
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_mask_takes_no_text_of_its_nifti_image(kind: Any, saved: Path, tmp_path: Path) -> None:
    image = kind((blocks(3, slices=5).transpose(2, 1, 0) * 200).astype(np.int16), np.diag([1.0, 1.0, 4.0, 1.0]))
    image.header.set_xyzt_units("mm")
    for name in ("descrip", "aux_file", "intent_name", "db_name", "data_type", "unused_str"):
        if name in image.header:
            image.header[name] = b"DOE^JANE"
    for code in ("comment", "afni"):
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(code, b"born 12 Mar 1950, DOE^JANE"))
    image.to_filename(tmp_path / "a.nii")
    assert (tmp_path / "a.nii").read_bytes().count(b"DOE^JANE") >= 5
    table = write_table(tmp_path, [["a.nii", "p", n] for n in range(5)], "order")
    frame = ask(saved, table, tmp_path / "masks")
    held = gzip.decompress((tmp_path / "masks" / frame["mask"][0]).read_bytes())
    assert b"DOE" not in held
    assert b"1950" not in held
    mask = nibabel.load(tmp_path / "masks" / frame["mask"][0])
    assert (len(mask.header.extensions), mask.header.get_xyzt_units()[0]) == (0, "mm")
    assert np.array_equal(np.asanyarray(mask.dataobj), 7 * (np.asanyarray(image.dataobj) > 0))


def write_series(root: Path, **more: Any) -> tuple[Path, dict[float, NDArray[np.bool_]]]:
    """Five slices, listed in disorder; where -> what is bright there."""
    tree, truth, rows = Tree(root), {}, []
    for number, place in enumerate((9.0, -3.0, 5.0, 1.0, 13.0)):
        truth[place] = blocks(7 + number)[0]
        tags = slice_tags("20200101", number + 1, place, FrameOfReferenceUID="1.2.9", StudyTime="", **more)
        tags |= {"PixelSpacing": [0.5, 0.75], "ImagePositionPatient": [-20, 30, place], "SliceThickness": 4}
        path = tree.write(f"p/s/ct/{number}", CT, {**person(1), **tags}, (truth[place] * 2000).astype(np.uint16))
        rows.append([str(path.relative_to(root)), "p", "CT", "s", number])
    return write_table(root, rows, "modality", "series", "order"), truth


@pytest.mark.usefixtures("bright")
def test_a_dicom_series_has_one_mask_where_its_pixels_lie(saved: Path, tmp_path: Path) -> None:
    table, truth = write_series(tmp_path / "export")
    frame = ask(saved, table, tmp_path / "masks")
    assert frame["mask"].tolist() == ["mask-row1.nii.gz"] * 5
    mask = nibabel.load(tmp_path / "masks" / "mask-row1.nii.gz")
    assert mask.shape == (16, 16, 5)
    assert np.allclose(mask.header.get_zooms(), (0.75, 0.5, 4.0))
    for (place, bright_there), (row, column) in itertools.product(truth.items(), [(0, 0), (3, 9), (12, 5), (15, 15)]):
        lps = np.array([-20 + 0.75 * column, 30 + 0.5 * row, place, 1.0])  # PS3.3, equation C.7.6.2.1-1
        at = np.linalg.inv(mask.affine) @ (lps * [-1, -1, 1, 1])
        assert np.allclose(at, np.round(at), atol=1e-6)
        assert np.asanyarray(mask.dataobj)[tuple(np.round(at[:3]).astype(int))] == 7 * bright_there[row, column]


@pytest.mark.usefixtures("bright")
def test_a_seg_refers_to_its_images(saved: Path, tmp_path: Path) -> None:
    table, truth = write_series(tmp_path / "export")
    frame = ask(saved, table, tmp_path / "masks", written_as="dicom-seg")
    assert frame["mask"].tolist() == ["mask-row1.dcm"] * 5
    assert any("identifiers" in remark for remark in frame.attrs["remarks"])
    seg = highdicom.seg.segread(tmp_path / "masks" / "mask-row1.dcm")
    assert [seg.get_segment_description(n).segment_label for n in (1, 2)] == ["organ", "lesion"]
    images = [pydicom.dcmread(path) for path in sorted((tmp_path / "export").rglob("*")) if path.is_file() and
              path.suffix != ".csv"]  # fmt: skip
    found = seg.get_pixels_by_source_instance([image.SOPInstanceUID for image in images], segment_numbers=[1])
    for pixels, image in zip(found, images, strict=True):
        assert np.array_equal(pixels[..., 0] > 0, truth[float(image.ImagePositionPatient[2])])


@pytest.mark.usefixtures("bright")
@pytest.mark.parametrize("written_as", ["nifti", "dicom-seg"])
def test_a_series_of_one_name_is_another_one_of_another_patient(written_as: Any, saved: Path, tmp_path: Path) -> None:
    first, _ = write_series(tmp_path / "p")
    other, _ = write_series(tmp_path / "q", PatientID="MRN-2", StudyInstanceUID="1.2.1.7", SeriesInstanceUID="1.2.2.7")
    both = [pd.read_csv(each).assign(patient=each.parent.name) for each in (first, other)]
    for each in both:
        each["image"] = each["patient"] + "/" + each["image"]
    pd.concat(both).to_csv(tmp_path / "t.csv", index=False)
    frame = ask(saved, tmp_path / "t.csv", tmp_path / "masks", written_as=written_as)
    suffix = ".nii.gz" if written_as == "nifti" else ".dcm"
    assert frame["mask"].tolist() == [f"mask-row{row}{suffix}" for row in (1, 6) for _ in range(5)]


@pytest.mark.usefixtures("bright")
def test_no_seg_of_slices_of_several_sizes_is_written_and_the_others_are(saved: Path, tmp_path: Path) -> None:
    table, _ = write_series(tmp_path / "export")
    tags = slice_tags("20200101", 9, 17.0, FrameOfReferenceUID="1.2.9", StudyTime="")
    path = Tree(tmp_path / "export").write("p/s/ct/9", CT, {**person(1), **tags}, np.full((12, 20), 900, np.uint16))
    PillowImage.fromarray((blocks(4)[0] * 255).astype(np.uint8)).save(tmp_path / "export" / "a.png")
    more = [[str(path.relative_to(tmp_path / "export")), "p", "CT", "s", 9], ["a.png", "q", "XC", None, None]]
    read = pd.read_csv(table)
    pd.concat([read, pd.DataFrame(more, columns=read.columns)]).to_csv(table, index=False)
    frame = ask(saved, table, tmp_path / "masks", written_as="dicom-seg")
    assert frame["mask"].isna().tolist() == [True] * 6 + [False]
    assert frame["reason"].tolist()[:6] == ["a SEG: expected slices of one size, found 12 x 20, 16 x 16"] * 6


@pytest.mark.usefixtures("bright")
def test_a_seg_refers_to_images_without_the_preamble_of_dicom(saved: Path, tmp_path: Path) -> None:
    table, _ = write_series(tmp_path / "export")
    for name in pd.read_csv(table)["image"]:
        path = tmp_path / "export" / name
        path.write_bytes(path.read_bytes()[132:])
    frame = ask(saved, table, tmp_path / "masks", written_as="dicom-seg")
    assert frame["mask"].tolist() == ["mask-row1.dcm"] * 5, frame["reason"].tolist()


@pytest.mark.usefixtures("bright")
def test_images_without_a_place_have_a_picture_each(saved: Path, tmp_path: Path) -> None:
    tree, truth, rows = Tree(tmp_path / "e"), blocks(4, slices=3), []
    for n in range(2):
        tags = {**person(n), **radiograph("CR", "20200101", "PA", "CHEST")}
        path = tree.write(f"p{n}/s/cr/{n}", CR, tags, (truth[n] * 4000).astype(np.uint16))
        rows.append([str(path.relative_to(tmp_path / "e")), f"p{n}", "CR"])
    PillowImage.fromarray((truth[2] * 255).astype(np.uint8)).save(tmp_path / "e" / "MRN-1.png")
    table = write_table(tmp_path / "e", [*rows, ["MRN-1.png", "q", "XC"], ["MRN-2.png", "q", "XC"]], "modality")
    frame = ask(saved, table, tmp_path / "masks")
    assert frame["mask"].tolist()[:3] == ["mask-row1.png", "mask-row2.png", "mask-row3.png"]
    for name, bright_there in zip(frame["mask"][:3], truth, strict=True):
        assert np.array_equal(np.asarray(PillowImage.open(tmp_path / "masks" / name)), 7 * bright_there)
    assert frame["mask"].isna().tolist() == frame["reason"].notna().tolist() == [False, False, False, True]
    assert "1 row has no mask, see the reason (row 4)." in frame.attrs["remarks"]
    written = pd.read_csv(tmp_path / "masks" / "masks.csv")
    assert written["row"].tolist() == [1, 2, 3, 4]
    assert written["pixels:lesion"].tolist()[:3] == [0, 0, 0]
    seg = ask(saved, table, tmp_path / "segs", written_as="dicom-seg")
    assert seg["mask"].tolist()[:3] == ["mask-row1.dcm", "mask-row2.dcm", "mask-row3.png"]


def test_slices_that_are_no_stack_lie_by_themselves(tmp_path: Path) -> None:
    tree, dark = Tree(tmp_path), np.zeros((4, 4), np.uint16)
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    series: dict[str, list[tuple[float | None, dict[str, Any]]]] = {
        "uneven": [(0.0, {}), (2.0, {}), (5.0, {})],
        "same": [(1.0, {}), (1.0, {}), (1.0, {})],
        "unplaced": [(None, {}), (None, {})],
        "turned": [(0.0, {}), (2.0, {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]})],
        "beside a localizer": [(0.0, {}), (2.0, {}), (4.0, scout)],
        "stack": [(4.0, {}), (0.0, {}), (2.1, {})],
    }
    for name, slices in series.items():
        paths = [
            tree.write(f"p/s/{name}/{n}", CT, slice_tags("20200101", n, place, **more), dark)
            for n, (place, more) in enumerate(slices)
        ]
        rows = tuple(range(len(paths)))
        group = Group("DICOM", rows, tuple(paths), (None,) * len(rows))
        labels = {row: np.full((4, 4), row + 1) for row in rows}
        made = write_masks(group, labels, lambda row, suffix, name=name: tmp_path / f"{name}-{row}{suffix}")
        assert len(set(made.values())) == (1 if name == "stack" else len(rows)), name
        for row, out in made.items():
            assert out.suffixes[-1] == (".png" if name == "unplaced" else ".gz"), name
            if name == "stack":
                assert nibabel.load(out).get_fdata()[0, 0].tolist() == [2, 3, 1]
            elif name != "unplaced":
                assert nibabel.load(out).affine[2, 3] == slices[row][0], name
                assert np.unique(nibabel.load(out).get_fdata()).tolist() == [row + 1], name


def test_what_cannot_be_is_refused_and_nothing_is_left(saved: Path, tmp_path: Path) -> None:
    table, _ = write_series(tmp_path / "export")
    for given, said in (
        ({"size": 20}, "states its size"),
        ({"precision": "bf16"}, "fp32"),
        ({"written_as": "mha"}, "nifti or dicom-seg"),
    ):
        with pytest.raises(UsageError, match=said):
            ask(saved, table, tmp_path / "masks", **given)
    with pytest.raises(UsageError, match="need a folder"):
        ask(saved, table, tmp_path / "masks.csv")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("kept")
    with pytest.raises(UsageError, match="empty or new"):
        ask(saved, table, tmp_path / "full")
    assert not (tmp_path / "masks").exists()
    (saved / DECODER).write_bytes(b"torn")
    with pytest.raises(EvaluationError, match="not the decoder"):
        ask(saved, table, tmp_path / "masks")
    assert not list(tmp_path.glob(".masks*"))


def test_masks_from_the_command_line(saved: Path, tmp_path: Path, call_bolus: Call) -> None:
    table, _ = write_series(tmp_path / "export")
    code, said = call_bolus("predict", saved, table, "--head", saved, "-o", tmp_path / "drawn.2024")
    assert code == 0, said
    assert "5 predictions for 5 rows in" in said
    assert (tmp_path / "drawn.2024" / "masks.csv").is_file()
