"""Labels keep their numbers on the way in, lie where the cached image has them, and come back to their own pixels."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch
from pydicom.data import get_testdata_file
from torch.nn import functional as F

from bolus.data.checks.checking import check
from bolus.data.checks.report import CheckReport, Finding
from bolus.data.cohort.cohort import Cohort
from bolus.data.images.mask_rows import Native, read_masks
from bolus.data.images.preprocessing import Preprocessing
from bolus.data.images.shrinking import shrink
from bolus.data.pixels.image import Image, Range
from bolus.data.pixels.square import Fit, canvas
from bolus.data.readers.masks import from_square, kept_part, read_labels, to_square
from bolus.data.readers.nifti import read_affine, read_nifti
from bolus.data.readers.readers import read_image
from bolus.errors import ImageError, UsageError
from bolus.evaluation.segmentation.annotation import read_annotations
from bolus.evaluation.segmentation.notes import cropped_off
from bolus.evaluation.segmentation.stacks import find_volumes
from bolus.evaluation.segmentation.volume_scores import predict_volume

FITS = ("pad", "stretch", "crop")
SHAPES = [(40, 40), (40, 61), (61, 40), (90, 33), (33, 90), (7, 120), (1, 5), (200, 171)]
shaped = pytest.mark.parametrize("shape", SHAPES, ids=[f"{height}x{width}" for height, width in SHAPES])


def blobs(shape: tuple[int, int], num_classes: int = 4) -> np.ndarray:
    """Discs of several classes, placed off the centre and within each other's reach."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    labels = np.zeros(shape, np.int64)
    for label in range(1, num_classes):
        row, column = shape[0] * (0.25 + 0.17 * label), shape[1] * (0.75 - 0.16 * label)
        labels[np.hypot(rows - row, columns - column) < min(shape) * 0.24] = label
    return labels


def one_hot(labels: np.ndarray, num_classes: int) -> torch.Tensor:
    return F.one_hot(torch.from_numpy(labels), num_classes).movedim(-1, -3).float()


# Reading -------------------------------------------------------------------------------


def test_palette_gives_indices_not_colours(tmp_path: Path) -> None:
    indices = np.array([[0, 7, 3], [200, 1, 0]], np.uint8)
    picture = PIL.Image.fromarray(indices).convert("P")
    picture.putdata(indices.ravel().tolist())
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    for name in ("a.png", "a.tif", "a.bmp"):
        picture.save(tmp_path / name)
        labels = read_labels(tmp_path / name)
        assert labels.dtype == np.int64
        assert labels.tolist() == indices.tolist()
    assert read_image(tmp_path / "a.png").array.shape[0] == 3  # where an image has colours


def test_transparent_palette_gives_indices(tmp_path: Path) -> None:
    picture = PIL.Image.fromarray(np.array([[0, 2], [1, 2]], np.uint8), "P")
    picture.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    picture.save(tmp_path / "a.png", transparency=0)
    assert read_labels(tmp_path / "a.png").tolist() == [[0, 2], [1, 2]]


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_one_bit_gives_zero_and_one(tmp_path: Path, suffix: str) -> None:
    truth = np.array([[True, False, True], [False, False, True]])
    PIL.Image.fromarray(truth).save(tmp_path / f"a.{suffix}")
    assert read_labels(tmp_path / f"a.{suffix}").tolist() == truth.astype(int).tolist()


@pytest.mark.parametrize("bits", [2, 4])
def test_few_bits_give_the_stored_numbers(tmp_path: Path, bits: int) -> None:
    import struct
    import zlib

    stored = np.arange(8).reshape(2, 4) % 2**bits

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(
        b"\0" + int("".join(f"{value:0{bits}b}" for value in row).ljust(16, "0"), 2).to_bytes(2, "big")[: bits // 2]
        for row in stored
    )
    header = struct.pack(">IIBBBBB", 4, 2, bits, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(png)
    assert read_labels(tmp_path / "a.png").tolist() == stored.tolist()


@pytest.mark.parametrize(
    ("dtype", "suffix"), [("uint8", "png"), ("uint16", "png"), ("uint16", "tif"), ("int32", "tif"), ("float32", "tif")]
)
def test_numbers_survive(tmp_path: Path, dtype: str, suffix: str) -> None:
    top = 255 if dtype == "uint8" else 40000
    stored = np.array([[0, 1, 2], [5, 254, top]])
    PIL.Image.fromarray(stored.astype(dtype)).save(tmp_path / f"a.{suffix}")
    assert read_labels(tmp_path / f"a.{suffix}").tolist() == stored.tolist()


def test_orientation_is_that_of_the_image(tmp_path: Path) -> None:
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    labels = read_labels(tmp_path / "a.png")
    assert labels.shape == (3, 2)
    assert labels.tolist() == read_image(tmp_path / "a.png").array[0].tolist()


def test_pages_are_slices(tmp_path: Path) -> None:
    stored = np.arange(24, dtype=np.uint8).reshape(3, 2, 4)
    pages = [PIL.Image.fromarray(page) for page in stored]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert read_labels(tmp_path / "a.tif").tolist() == stored.tolist()
    assert read_labels(tmp_path / "a.tif", frame=2).tolist() == stored[2].tolist()
    with pytest.raises(ImageError, match=r"^a\.tif: expected a frame from 0 to 2, found 3"):
        read_labels(tmp_path / "a.tif", frame=3)
    PIL.Image.fromarray(stored[0]).save(tmp_path / "b.tif", save_all=True, append_images=[pages[0].resize((5, 5))])
    with pytest.raises(ImageError, match="pages of one size"):
        read_labels(tmp_path / "b.tif")


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SLA"])
def test_nifti_lies_on_its_image(tmp_path: Path, axes: str) -> None:
    stored = np.random.default_rng(3).integers(0, 5, (5, 4, 3)).astype(np.uint8)
    affine = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(axes), stored.shape)
    nib.save(nib.Nifti1Image(stored, affine), tmp_path / "a.nii.gz")
    labels, image = read_labels(tmp_path / "a.nii.gz"), read_nifti(tmp_path / "a.nii.gz").array[0]
    assert labels.dtype == np.int64
    assert labels.shape == image.shape
    assert (labels == image).all()
    assert sorted(labels.ravel()) == sorted(stored.ravel())
    assert read_labels(tmp_path / "a.nii.gz", frame=1).tolist() == labels[1].tolist()


def test_nifti_of_one_slice_and_floats_that_are_integers(tmp_path: Path) -> None:
    stored = np.array([[[0.0], [2.0]], [[1.0], [3.0]]])
    nib.save(nib.Nifti1Image(stored, np.eye(4)), tmp_path / "a.nii")
    assert read_labels(tmp_path / "a.nii").tolist() == [[3, 2], [1, 0]]


@pytest.mark.parametrize("value", [0.5, 2.0**24 + 2, np.nan], ids=["fraction", "large", "nan"])
def test_labels_that_are_no_integers(tmp_path: Path, value: float) -> None:
    stored = np.zeros((3, 3, 2), np.float32)
    stored[1, 1, 1] = value
    nib.save(nib.Nifti1Image(stored, np.eye(4)), tmp_path / "a.nii")
    PIL.Image.fromarray(stored[:, :, 1]).save(tmp_path / "a.tif")
    for name in ("a.nii", "a.tif"):
        with pytest.raises(ImageError, match=rf"^{name}: expected (integers|finite)"):
            read_labels(tmp_path / name)


def refused(folder: Path) -> list[tuple[Path, str]]:
    """Files that hold no labels, each with what must be said of it."""
    rng = np.random.default_rng(0)
    colour = PIL.Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
    colour.save(folder / "rgb.png")
    colour.convert("RGBA").save(folder / "rgba.png")
    colour.convert("LA").save(folder / "la.png")
    colour.convert("L").save(folder / "grey.jpg")
    colour.convert("L").save(folder / "jpeg.tif", compression="jpeg")
    colour.convert("L").save(folder / "white.tif", tiffinfo={262: 0})
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no image")
    (folder / "torn.png").write_bytes((folder / "rgb.png").read_bytes()[:60])
    shutil.copy(get_testdata_file("CT_small.dcm", download=False), folder / "seg.dcm")
    return [
        (folder / "rgb.png", "colour"),
        (folder / "rgba.png", "colour or alpha"),
        (folder / "la.png", "colour or alpha"),
        (folder / "grey.jpg", "lossy"),
        (folder / "jpeg.tif", "lossy"),
        (folder / "white.tif", "WhiteIsZero"),
        (folder / "empty.png", "empty"),
        (folder / "text.png", "found none of these"),
        (folder / "torn.png", "damaged"),
        (folder / "seg.dcm", "SEG.* not read yet"),
        (folder / "absent.png", "no such file"),
    ]


def test_refusals_say_why_and_name_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "patient17"
    folder.mkdir()
    for path, reason in refused(folder):
        with pytest.raises(ImageError, match=reason) as caught:
            read_labels(path)
        assert str(caught.value).startswith(f"{path.name}: "), path.name
        assert "patient17" not in str(caught.value), path.name


# Into the square -----------------------------------------------------------------------


def cached(member: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """An image that is a mask, as the cache keeps it, in [0, 1]."""
    image = Image(member[None].astype(np.float32), None, Range(0.0, 1.0, "unit"), 16, False)
    small = shrink(image, preprocessing)
    return np.asarray(small.array[0] * small.gain + small.bias)


@shaped
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [13, 24, 100])
def test_mask_lies_where_the_cached_image_has_it(shape: tuple[int, int], fit: str, size: int) -> None:
    labels, preprocessing = blobs(shape), Preprocessing(size, fit=fit)
    square = to_square(labels, fit=fit, size=preprocessing.cached_size)
    shares = np.stack([cached(labels == label, preprocessing) for label in range(4)])
    shares[0] = 1 - shares[1:].sum(0)  # padding, which is black, is background
    assert square.dtype == np.int64
    assert square.shape == shares.shape[1:]
    chosen = np.take_along_axis(shares, square[None], 0)[0]
    assert (chosen >= shares.max(0) - 1e-4).all()
    clear = np.sort(shares, 0)[-1] - np.sort(shares, 0)[-2] > 1e-3
    assert clear.mean() > 0.9
    assert (square == shares.argmax(0))[clear].all()


@pytest.mark.parametrize("fit", FITS)
def test_binary_mask_is_the_cached_image_above_one_half(fit: str) -> None:
    member = np.zeros((50, 81), np.int64)
    member[5:31, 20:47] = 1
    preprocessing = Preprocessing(20, fit=fit)
    share, square = cached(member, preprocessing), to_square(member, fit=fit, size=preprocessing.cached_size)
    clear = abs(share - 0.5) > 1e-3
    assert ((share > 0.5) == (square == 1))[clear].all()
    assert 0 < square.sum() < square.size


def test_equal_shares_go_to_the_lower_label() -> None:
    for left, right in ((7, 2), (2, 7), (0, 5), (5, 0)):
        labels = np.repeat([[left, right]], 2, axis=0)
        assert to_square(labels, fit="stretch", size=1).tolist() == [[min(left, right)]]
    assert to_square(np.array([[9, 4], [6, 5]]), fit="stretch", size=1).tolist() == [[4]]


def test_labels_are_never_mixed() -> None:
    labels = np.random.default_rng(5).choice([0, 3, 250, 1000], (97, 64))
    for fit in FITS:
        for size in (5, 31, 97, 150):
            assert set(np.unique(to_square(labels, fit=fit, size=size))) <= {0, 3, 250, 1000}


def test_same_size_changes_nothing() -> None:
    labels = blobs((33, 33))
    for fit in FITS:
        assert (to_square(labels, fit=fit, size=33) == labels).all()
    assert (to_square(labels.astype(np.uint8), fit="pad", size=33) == labels).all()
    assert (to_square(labels == 1, fit="pad", size=33) == (labels == 1)).all()


def test_wrong_labels_and_fits() -> None:
    for wrong in (np.zeros((2, 3, 4), int), np.zeros((3, 4)), np.zeros(3, int)):
        with pytest.raises(UsageError, match="expected integers"):
            to_square(wrong, fit="pad", size=4)
    with pytest.raises(UsageError, match="'letterbox'"):
        to_square(np.zeros((3, 4), int), fit="letterbox", size=4)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="'letterbox'"):
        from_square(torch.zeros(2, 4, 4), (3, 4), fit="letterbox")  # type: ignore[arg-type]
    for scores in (torch.zeros(4, 4), torch.zeros(2, 4, 5), torch.zeros(1, 1, 2, 4, 4)):
        with pytest.raises(UsageError, match="expected \\[K, S, S\\]"):
            from_square(scores, (3, 4), fit="pad")


# And back ------------------------------------------------------------------------------


def seen_by(shape: tuple[int, int], fit: str) -> tuple[slice, slice]:
    """The part of a native image that the square holds."""
    if fit != "crop":
        return slice(0, shape[0]), slice(0, shape[1])
    side = min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    return slice(top, top + side), slice(left, left + side)


@shaped
@pytest.mark.parametrize("fit", FITS)
def test_there_and_back_without_resampling_is_exact(shape: tuple[int, int], fit: str) -> None:
    if fit == "stretch" and shape[0] != shape[1]:
        shape = (shape[0], shape[0])  # the other axis would be resampled
    labels = blobs(shape)
    size = max(shape) if fit == "pad" else min(shape)
    back = from_square(one_hot(to_square(labels, fit=fit, size=size), 4), shape, fit=fit)
    part = seen_by(shape, fit)
    expected = np.zeros_like(labels)
    expected[part] = labels[part]
    assert back.dtype == np.int64
    assert (back == expected).all()


@pytest.mark.parametrize("shape", [(60, 60), (60, 91), (91, 60), (128, 70)], ids=["even", "wide", "tall", "taller"])
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("scale", [0.7, 1.25, 2.0])
def test_there_and_back_with_resampling_is_close(shape: tuple[int, int], fit: str, scale: float) -> None:
    labels, part = blobs(shape), seen_by(shape, fit)
    size = round(scale * (min(shape) if fit == "crop" else max(shape)))
    back = from_square(one_hot(to_square(labels, fit=fit, size=size), 4), shape, fit=fit)
    assert back.shape == shape
    for label in range(1, 4):
        one, other = back[part] == label, labels[part] == label
        assert 2 * (one & other).sum() / (one.sum() + other.sum()) > 0.93
    outside = np.ones(shape, bool)
    outside[part] = False
    assert (back[outside] == 0).all()


def test_a_shift_of_one_pixel_is_seen() -> None:
    labels = np.zeros((20, 31), np.int64)
    labels[4, 9] = labels[15, 22] = 1
    for fit, size in (("pad", 31), ("crop", 20)):
        back = from_square(one_hot(to_square(labels, fit=fit, size=size), 2), (20, 31), fit=fit)
        assert np.argwhere(back).tolist() == [[4, 9], [15, 22]], fit


@pytest.mark.parametrize("fit", FITS)
def test_batch_is_its_parts(fit: str) -> None:
    scores = torch.randn(3, 4, 12, 12, generator=torch.Generator().manual_seed(1))
    together = from_square(scores, (30, 17), fit=fit)
    assert together.shape == (3, 30, 17)
    assert together.max() <= 3
    for one, labels in zip(scores, together, strict=True):
        assert (from_square(one, (30, 17), fit=fit) == labels).all()
    assert from_square(scores[:0], (30, 17), fit=fit).shape == (0, 30, 17)


def test_scores_of_any_precision_with_gradients() -> None:
    square = one_hot(blobs((16, 16)), 4)
    expected = from_square(square, (16, 16), fit="pad")
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert (from_square(square.to(dtype).requires_grad_(), (16, 16), fit="pad") == expected).all()
    assert (from_square(torch.zeros(3, 4, 4), (4, 4), fit="pad") == 0).all()  # of equal scores the lower class


# Real masks ----------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize("aspect", [2.0, 0.5, 1.3])
@pytest.mark.parametrize("fit", FITS)
def test_mask_of_oblong_pixels_lies_where_the_cached_image_has_it(fit: Fit, aspect: float) -> None:
    for shape in ((40, 40), (31, 64), (64, 31)):
        member, preprocessing = blobs(shape) == 1, Preprocessing(20, fit=fit)
        image = Image(member[None].astype(np.float32), None, Range(0, 1, "unit"), 16, False, aspect=aspect)
        small = shrink(image, preprocessing)
        share = np.asarray(small.array[0] * small.gain + small.bias)
        square = to_square(member, fit=fit, size=preprocessing.cached_size, aspect=aspect)
        clear = abs(share - 0.5) > 1e-3
        assert ((share > 0.5) == (square == 1))[clear].all()


@pytest.mark.parametrize("aspect", [2.0, 0.5, 3.0])
@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_what_is_round_on_the_body_is_round_in_the_square(fit: Fit, aspect: float) -> None:
    rows, columns = round(120 / max(1, aspect)), round(120 * min(1, aspect))
    y, x = np.mgrid[:rows, :columns]
    y, x = (y + 0.5) * max(1, aspect), (x + 0.5) * max(1, 1 / aspect)  # in the shorter side of a pixel
    disc = np.hypot(y - 60, x - 60) < 35
    square = to_square(disc, fit=fit, size=60, aspect=aspect)
    y, x = np.mgrid[:60, :60]
    distance = np.hypot(y + 0.5 - 30, x + 0.5 - 30) * 2
    assert (square == 1)[distance < 31].all()
    assert (square == 0)[distance > 39].all()
    back = from_square(one_hot(square, 2), disc.shape, fit=fit, aspect=aspect)
    assert 2 * (back * disc).sum() / (back.sum() + disc.sum()) > 0.95


@pytest.mark.parametrize("aspect", [1.0, 2.0, 0.37])
@pytest.mark.parametrize("shape", [(40, 40), (30, 100), (101, 33), (1, 90)])
def test_the_canvas_is_a_square_in_mm(shape: tuple[int, int], aspect: float) -> None:
    height, width = shape[0] * aspect, float(shape[1])  # in widths of a pixel
    for fit, side in (("pad", max(height, width)), ("crop", min(height, width))):
        rows, columns = canvas(shape, fit, aspect)  # type: ignore[arg-type]
        assert abs(columns - side) <= 0.5 or columns == 1
        assert abs(rows * aspect - side) <= 0.5 * aspect or rows == 1
        assert (
            (rows >= shape[0] and columns >= shape[1]) if fit == "pad" else (rows <= shape[0] and columns <= shape[1])
        )
    assert canvas(shape, "stretch", aspect) == shape
    assert canvas(shape, "pad") == (max(shape), max(shape))
    assert canvas(shape, "crop") == (min(shape), min(shape))


def test_acdc_masks_survive_the_square(shared_data: Path) -> None:
    files = sorted((shared_data / "acdc" / "mask").glob("*.png"))[4:400:40]
    assert files
    for path in files:
        labels = read_labels(path)
        assert set(np.unique(labels)) <= {0, 1, 2, 3}
        assert labels.shape == read_image(shared_data / "acdc" / "img" / path.name).array.shape[1:]
        back = from_square(one_hot(to_square(labels, fit="pad", size=160), 4), labels.shape, fit="pad")
        both = (back == labels) & (labels > 0)
        if (labels > 0).sum() > 300:
            assert 2 * both.sum() / ((labels > 0).sum() + (back > 0).sum()) > 0.93


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("aspect", [1.0, 2.0, 0.4])
@shaped
def test_the_kept_part_is_what_comes_back(fit: Fit, aspect: float, shape: tuple[int, int]) -> None:
    ones = from_square(one_hot(np.ones((32, 32), int), 2), shape, fit=fit, aspect=aspect)
    rows, columns = kept_part(shape, fit=fit, aspect=aspect)
    expected = np.zeros(shape, int)
    expected[rows, columns] = 1
    assert ones.tolist() == expected.tolist()


# Beside their images -------------------------------------------------------------------


def test_one_place_in_any_order_of_axes_is_one_affine(tmp_path: Path) -> None:
    voxels = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
    plain = nib.Nifti1Image(voxels, nib.affines.from_matvec(np.diag([1.5, 2.0, 8.0]), [-7, 3, 40]))
    found = []
    for number, codes in enumerate(("RAS", "LPS", "SPL", "AIR")):
        turn = nib.orientations.ornt_transform(nib.io_orientation(plain.affine), nib.orientations.axcodes2ornt(codes))
        turned = plain.as_reoriented(turn)
        assert nib.aff2axcodes(turned.affine) == tuple(codes)
        nib.save(turned, tmp_path / f"{number}.nii.gz")
        found.append(read_affine(tmp_path / f"{number}.nii.gz"))
        np.testing.assert_array_equal(
            read_nifti(tmp_path / f"{number}.nii.gz").array[0], voxels[::-1, ::-1].transpose(2, 1, 0)
        )
        np.testing.assert_allclose(found[-1], plain.affine, atol=1e-5)
    metres = nib.Nifti1Image(voxels, np.diag([0.0015, 0.002, 0.008, 1]))
    metres.header.set_xyzt_units("meter")
    nib.save(metres, tmp_path / "m.nii")
    np.testing.assert_allclose(np.diag(read_affine(tmp_path / "m.nii")), [1.5, 2, 8, 1], rtol=1e-6)


def test_a_mask_of_one_slice_of_a_volume_is_not_known_to_lie_there(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((4, 3, 2), np.int16), np.eye(4)), tmp_path / "i.nii")
    nib.save(nib.Nifti1Image(np.ones((4, 3, 1), np.int16), np.eye(4)), tmp_path / "m.nii")
    PIL.Image.fromarray(np.ones((3, 4), np.uint8)).save(tmp_path / "m.png")
    native = Native((3, 4), 2)
    for name in ("m.nii", "m.png"):
        (found,) = read_masks(tmp_path / "i.nii", tmp_path / name, [1], [native])
        assert found.labels is not None
        assert (found.labels.tolist(), found.wrong, found.placed) == (np.ones((3, 4)).tolist(), "", False)
    (found,) = read_masks(tmp_path / "i.png", tmp_path / "m.png", [None], [Native((3, 4), 1, aspect=2.0)])
    assert found.placed
    assert found.aspect == 2.0
    (found,) = read_masks(tmp_path / "i.png", tmp_path / "m.png", [None], [Native((3, 4), 2)])
    assert found.wrong == "the mask has 1 slice, its image 2"


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_a_segmentation_knows_the_aspect_of_its_images(tmp_path: Path, fit: Fit) -> None:
    labels, rows = blobs((40, 80), 3), []
    for row, split in enumerate(("train", "val", "test", "test")):
        dpi = (200, 100) if row < 3 else (72, 72)  # the last one has square pixels
        PIL.Image.fromarray(labels.astype(np.uint8) * 100).save(tmp_path / f"i{row}.png", dpi=dpi)
        PIL.Image.fromarray(labels.astype(np.uint8)).save(tmp_path / f"m{row}.png")
        rows.append([f"i{row}.png", f"m{row}.png", f"p{row}", split, "s1", row])
    columns = ["image", "mask", "patient", "split", "series", "order"]
    pd.DataFrame(rows, columns=columns).assign(patient=["a", "b", "c", "c"]).to_csv(tmp_path / "t.csv", index=False)
    cohort = Cohort.open(tmp_path / "t.csv")
    annotations = read_annotations(cohort)
    assert annotations.aspect == pytest.approx({0: 2.0, 2: 2.0, 3: 1.0}, rel=1e-3)
    (volume,), _ = find_volumes(cohort, annotations)
    assert volume.aspect == pytest.approx((2.0, 1.0), rel=1e-3)
    squares = [to_square(labels, fit=fit, size=80, aspect=aspect) for aspect in volume.aspect]
    segmenter = SimpleNamespace(
        predict=lambda _: torch.stack([one_hot(square, 3) for square in squares]),
        store=SimpleNamespace(preprocessing=Preprocessing(64, fit=fit)),
    )
    predicted = predict_volume(segmenter, volume)  # type: ignore[arg-type]
    rows_kept, columns_kept = kept_part((40, 80), fit=fit, aspect=2.0)
    assert (predicted[0] == labels)[rows_kept, columns_kept].mean() > 0.98
    lost = (
        1
        - sum((labels[kept_part((40, 80), fit=fit, aspect=each)] > 0).sum() for each in (2, 1)) / (labels > 0).sum() / 2
    )
    assert len(cropped_off([volume], fit)) == (lost > 0)
    assert all(note.startswith(f"{lost:.1%}") for note in cropped_off([volume], fit))


# The preflight -------------------------------------------------------------------------


def painted(folder: Path, count: int = 8) -> Path:
    """Images of noise with a mask each: label 1 on all, 2 on every second one."""
    r, rows = np.random.default_rng(0), []
    for row in range(count):
        PIL.Image.fromarray(r.integers(0, 255, (20, 16), np.uint8)).save(folder / f"i{row}.png")
        mask = np.zeros((20, 16), np.uint8)
        mask[2:9, 2:9], mask[4:6, 4:6] = 1, 1 + row % 2
        PIL.Image.fromarray(mask).save(folder / f"m{row}.png")
        rows.append([f"i{row}.png", f"m{row}.png", f"P00{row}"])
    pd.DataFrame(rows, columns=["image", "mask", "patient"]).to_csv(folder / "t.csv", index=False)
    return folder / "t.csv"


def of_masks(report: CheckReport) -> list[Finding]:
    return [finding for finding in report.findings if finding.kind.startswith("mask")]


def test_check_tells_the_labels_of_masks(tmp_path: Path) -> None:
    (found,) = of_masks(check(painted(tmp_path)))
    assert (found.severity, found.message) == ("note", "labels of the masks: 1 in 8 rows, 2 in 4 rows")


def test_check_finds_masks_that_cannot_be_used(tmp_path: Path) -> None:
    table = painted(tmp_path)
    (tmp_path / "m0.png").unlink()
    (tmp_path / "m4.png").unlink()
    PIL.Image.fromarray(np.ones((16, 20), np.uint8)).save(tmp_path / "m3.png")
    PIL.Image.fromarray(np.ones((20, 16), np.uint8)).save(tmp_path / "m5.jpg")
    (tmp_path / "m5.jpg").rename(tmp_path / "m5.png")
    (tmp_path / "i6.png").write_bytes(b"")  # whose mask is still read
    (tmp_path / "m6.png").write_bytes(b"")
    report = check(table)
    found = {finding.rows: finding.message for finding in of_masks(report) if finding.severity == "error"}
    assert found == {
        (1, 5): "2 masks cannot be used: the mask: no such file",
        (4,): "1 mask cannot be used: the mask is 16 x 20 pixels, its image 20 x 16",
        (6,): "1 mask cannot be used: the mask: JPEG is lossy and changes labels at their edges; "
        "save the labels as PNG, TIFF or NIfTI",
        (7,): "1 mask cannot be used: the mask: the file is empty",
    }
    assert not any("P00" in finding.message or ".png" in finding.message for finding in report.findings)


def test_check_finds_pictures_and_empty_masks(tmp_path: Path) -> None:
    table = painted(tmp_path)
    for row in range(8):
        PIL.Image.fromarray(np.zeros((20, 16), np.uint8)).save(tmp_path / f"m{row}.png")
    (found,) = of_masks(check(table))
    assert (found.severity, found.message) == ("warning", "masks hold nothing but label 0, the background")
    PIL.Image.fromarray(np.arange(320).reshape(20, 16).astype(np.uint8)).save(tmp_path / "m0.png")
    (found,) = of_masks(check(table))
    assert (found.severity, found.message) == ("warning", "masks hold 255 labels from 1 to 255: are they label maps?")


@pytest.mark.parametrize("whole", [False, True], ids=["slices", "clips"])
def test_check_holds_masks_of_volumes_against_them(tmp_path: Path, whole: bool) -> None:
    r, rows = np.random.default_rng(0), []
    for patient in range(3):
        image = nib.Nifti1Image(r.integers(0, 99, (16, 20, 3)).astype(np.int16), np.diag([1.5, 1.5, 8, 1]))
        nib.save(image, tmp_path / f"i{patient}.nii.gz")
        turned = np.diag([-1.5, -1.5, 8, 1]) if patient == 1 else np.diag([1.5, 1.5, 8, 1])
        mask = np.ones((16, 20, 2 if patient == 2 else 3), np.uint8)
        nib.save(nib.Nifti1Image(mask, turned), tmp_path / f"m{patient}.nii.gz")
        rows += [[f"i{patient}.nii.gz", f"m{patient}.nii.gz", f"P{patient}", n] for n in range(1 if whole else 3)]
    table = pd.DataFrame(rows, columns=["image", "mask", "patient", "order"])
    table.drop(columns=["order"] if whole else []).to_csv(tmp_path / "t.csv", index=False)
    found = {finding.rows: finding.message.partition(": ")[2] for finding in of_masks(check(tmp_path / "t.csv"))}
    assert found == {
        (2,) if whole else (4, 5, 6): "the affines of mask and image differ: their origins lie 36.3 mm apart",
        (3,) if whole else (7, 8, 9): "the mask has 2 slices, its image 3",
        (): "1 in 1 row" if whole else "1 in 3 rows",
    }
