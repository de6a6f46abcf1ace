"""One made scan as files: a NIfTI file, a DICOM series, an enhanced DICOM file; in any direction and of any voxels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset

Affine = npt.NDArray[np.float64]
SERIES = "1.2.826.0.1.3680043.8.498.7"
FRAME = "1.2.826.0.1.3680043.8.498.9"

AXIAL = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
"""Directions of rows, columns and slices in DICOM's space (left, posterior, superior), one a row."""
SAGITTAL = np.array([[0.0, 1, 0], [0, 0, -1], [-1, 0, 0]])
CORONAL = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])


def turned(axes: npt.NDArray[np.float64], degrees: Sequence[float]) -> npt.NDArray[np.float64]:
    """Directions turned about the three axes of the body, one after another."""
    for axis, angle in enumerate(degrees):
        one, other = (each for each in range(3) if each != axis)
        turn, radians = np.eye(3), np.radians(angle)
        turn[one, one] = turn[other, other] = np.cos(radians)
        turn[one, other], turn[other, one] = -np.sin(radians), np.sin(radians)
        axes = axes @ turn.T
    return axes


def affine_of(axes: npt.NDArray[np.float64], spacing: Sequence[float], origin: Sequence[float]) -> Affine:
    """From (column, row, slice, 1) to mm in RAS+; spacing is (slice, row, column), the origin in DICOM's space."""
    affine = np.eye(4)
    affine[:3, :3] = axes.T * np.array(spacing)[::-1]
    affine[:3, 3] = origin
    affine[:2] *= -1
    return affine


def scan(seed: int = 0, shape: tuple[int, int, int] = (5, 6, 7)) -> npt.NDArray[np.int16]:
    """Stored values `[T, H, W]`, no two slices alike."""
    return np.random.default_rng(seed).integers(0, 2000, shape).astype(np.int16)


def write_nifti(path: Path, voxels: npt.NDArray[Any], affine: Affine, *, slope: float = 1, inter: float = 0) -> Path:
    """Stored values `[T, H, W]` with an affine of (column, row, slice); its values are rescaled when read."""
    made = nibabel.Nifti1Image(np.ascontiguousarray(voxels.T), affine)
    made.header.set_xyzt_units("mm")
    made.header.set_slope_inter(slope, inter)
    made.set_sform(affine, code="scanner")
    made.set_qform(affine, code="scanner", strip_shears=True)
    nibabel.save(made, path)
    return path


def write_series(
    folder: Path,
    voxels: npt.NDArray[Any],
    affine: Affine,
    *,
    modality: str = "CT",
    slope: float = 1,
    inter: float = -1024,
    tags: Sequence[dict[str, Any]] = (),
    **more: Any,
) -> list[Path]:
    """A file for each slice, in the order of the stack; `tags` are of each slice, `more` of all; None removes one."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, pixels in enumerate(voxels):
        row, column, place = _geometry(affine, number)
        across, down = (float(np.linalg.norm(affine[:3, axis])) for axis in (0, 1))
        header = new_header(modality, folder / f"{number:03d}.dcm", number)
        header.ImageOrientationPatient = [_text(each) for each in (*row, *column)]
        header.ImagePositionPatient = [_text(each) for each in place]
        header.PixelSpacing = [_text(down), _text(across)]
        header.SliceThickness = "1"
        header.RescaleSlope, header.RescaleIntercept = _text(slope), _text(inter)
        add_pixels(header, pixels)
        for key, value in {**more, **(tags[number] if tags else {})}.items():
            if value is None:
                delattr(header, key)
            else:
                setattr(header, key, value)
        path = folder / f"{number:03d}.dcm"
        header.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def write_enhanced(
    path: Path,
    voxels: npt.NDArray[Any],
    affine: Affine,
    *,
    order: Sequence[int] | None = None,
    modality: str = "CT",
    slopes: Sequence[float] = (),
    content: Sequence[dict[str, Any]] = (),
    **more: Any,
) -> Path:
    """One file of many frames with functional groups, its slices in any order; `slopes` and `content` are by slice."""
    order = list(range(len(voxels))) if order is None else order
    header = new_header(
        modality, path, 0, uid.EnhancedCTImageStorage if modality == "CT" else uid.EnhancedMRImageStorage
    )
    across, down, along = (float(np.linalg.norm(affine[:3, axis])) for axis in range(3))
    row, column, _ = _geometry(affine, 0)
    measures, plane, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [_text(down), _text(across)], _text(along)
    plane.ImageOrientationPatient = [_text(each) for each in (*row, *column)]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    header.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for number in order:
        where, scale, what, group = Dataset(), Dataset(), Dataset(), Dataset()
        where.ImagePositionPatient = [_text(each) for each in _geometry(affine, number)[2]]
        scale.RescaleSlope, scale.RescaleIntercept = _text(slopes[number] if slopes else 1), "-1024"
        scale.RescaleType = "HU" if modality == "CT" else "US"
        for key, value in (content[number] if content else {}).items():
            setattr(what, key, value)
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [where], [scale]
        group.FrameContentSequence = [what]
        groups.append(group)
    header.PerFrameFunctionalGroupsSequence = groups
    add_pixels(header, voxels[np.array(order)])
    for key, value in more.items():
        setattr(header, key, value)
    header.save_as(path, enforce_file_format=True)
    return path


def new_header(modality: str, path: Path, number: int, kind: str = uid.CTImageStorage) -> Any:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = kind, uid.ExplicitVRLittleEndian
    header = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID = kind
    header.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = uid.generate_uid(entropy_srcs=[str(path), str(number)])
    header.SeriesInstanceUID, header.FrameOfReferenceUID = SERIES, FRAME
    header.Modality, header.ImageType, header.InstanceNumber = modality, ["ORIGINAL", "PRIMARY", "AXIAL"], number + 1
    return header


def add_pixels(header: Any, pixels: npt.NDArray[Any]) -> None:
    header.SamplesPerPixel, header.PhotometricInterpretation, header.PixelRepresentation = 1, "MONOCHROME2", 1
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
    if pixels.ndim == 3:
        header.NumberOfFrames = len(pixels)
    header.Rows, header.Columns = pixels.shape[-2:]
    header.PixelData = pixels.astype("<i2").tobytes()


def _geometry(affine: Affine, number: int) -> tuple[Any, Any, Any]:
    """Directions of a row and a column, and the place of a slice, in DICOM's space."""
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    row, column = (lps[:3, axis] / np.linalg.norm(lps[:3, axis]) for axis in (0, 1))
    return row, column, lps[:3, 3] + number * lps[:3, 2]


def _text(value: float) -> str:
    """A number in the 16 characters of a decimal string."""
    return np.format_float_positional(float(value), precision=10, trim="-")[:16]
