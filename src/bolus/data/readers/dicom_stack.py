"""DICOM files of one series as a stack: their order along the normal, and where their pixels lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bolus.data.readers.dicom_header import open_dataset
from bolus.errors import ImageError, MissingDecoderError, require

EVEN = 0.01  # of a step: places that differ by less lie evenly


def find_stack(paths: Sequence[Path]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The order of slices along their normal, and the affine of the stack (PS3.3, C.7.6.2.1.1).

    Args:
        paths: files of one frame each; one file is a stack of one slice.

    Returns:
        Positions among the paths, in order, int64 `[T]`; and float64 `[4, 4]`, from (column, row, slice, 1) to mm in
        the directions of NIfTI (left to right, posterior to anterior, inferior to superior).

    Raises:
        ImageError: files that do not say where they lie, or do not lie evenly behind each other.
    """
    headers = [open_dataset(path, stop_before_pixels=True) for path in paths]
    turns = np.array([_numbers(header, "ImageOrientationPatient", 6) for header in headers])
    places = np.array([_numbers(header, "ImagePositionPatient", 3) for header in headers])
    steps = np.array([_numbers(header, "PixelSpacing", 2) for header in headers])
    if np.abs(turns - turns[0]).max() > 1e-3 or np.abs(steps - steps[0]).max() > 1e-4 * steps.max():
        raise ImageError("slices that are turned to each other, or of several pixel spacings")
    along_row, along_column = turns[0, :3], turns[0, 3:]
    normal = np.cross(along_row, along_column)
    order = np.argsort(places @ normal, kind="stable")
    if len(order) > 1:
        step = (places[order[-1]] - places[order[0]]) / (len(order) - 1)
        ideal = places[order[0]] + np.arange(len(order))[:, None] * step
        if not np.linalg.norm(step) > 0 or np.abs(places[order] - ideal).max() > EVEN * np.linalg.norm(step):
            raise ImageError("slices that do not lie evenly behind each other")
    else:
        step = normal * (float(headers[0].get("SliceThickness") or 0) or 1.0)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along_row * steps[0, 1], along_column * steps[0, 0]
    affine[:3, 2], affine[:3, 3] = step, places[order[0]]
    affine[:2] *= -1  # DICOM runs to the left and to posterior
    return order.astype(np.int64), affine


def write_label_stack(
    labels: npt.NDArray[Any], affine: npt.NDArray[np.float64], out: Path, *, code: str = "scanner"
) -> None:
    """A label map `[T, H, W]`, whole numbers from 0 in the order of `find_stack`, as a NIfTI file with its affine.

    Args:
        labels: the map.
        affine: float64 `[4, 4]`, from (column, row, slice, 1) to mm.
        out: .nii or .nii.gz.
        code: what NIfTI calls the space of the affine; `aligned` where the sides of the body are not known.
    """
    nibabel = require("nibabel", "NIfTI files", MissingDecoderError)
    voxels = labels.transpose(2, 1, 0).astype(np.min_scalar_type(int(labels.max(initial=0))))
    made = nibabel.Nifti1Image(np.ascontiguousarray(voxels), affine)
    made.set_sform(affine, code=code)
    made.set_qform(affine, code=code)
    made.header.set_xyzt_units("mm")
    made.to_filename(out)


def _numbers(header: Any, name: str, count: int) -> list[float]:
    try:
        found = [float(each) for each in header.get(name) or ()]
    except (TypeError, ValueError):
        found = []
    if len(found) != count or not np.isfinite(found).all():
        raise ImageError(f"files that do not say where they lie ({name})")
    return found
