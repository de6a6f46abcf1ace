"""A small export of CT as DICOM files: a file a slice, two series a patient, a localizer, and a slice sent twice."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from volume_files import AXIAL, affine_of, write_series

SIDE, DEPTH = 24, 16
SPACING = (3.0, 1.5, 1.5)
NAMES = ("PLANTED", "Zebulon", "MRN-0")
"""Parts of names and numbers that no output may have."""


def write_tree(root: Path, *, patients: int = 8, gap_of: int | None = None, uneven: int | None = None) -> Path:
    """Series of balls in noise, whose size goes with the patient's age; hashed folders, names in every header.

    Args:
        root: folder to write to.
        patients: each with one study of two series.
        gap_of: whose second series lacks a slice.
        uneven: whose second series has a slice that lies 1 mm off.
    """
    rng = np.random.default_rng(0)
    affine = affine_of(AXIAL, SPACING, (-18.0, -18.0, 40.0))
    for number in range(patients):
        for series in range(2):
            spot = f"MRN-0{number}/{series}"
            uid = f"1.2.3.{number}.{series}"
            more = {**_person(number), "StudyInstanceUID": f"1.2.2.{number}", "SeriesInstanceUID": uid,
                    "FrameOfReferenceUID": f"1.2.4.{number}", "SeriesNumber": series}  # fmt: skip
            paths = write_series(root / spot, _ball(rng, number), affine, **more)
            for place, path in enumerate(paths):
                _own_number(path, f"{uid}.{place}")
            if series and number == gap_of:
                paths[7].unlink()
            if series and number == uneven:
                _move(paths[7], 1.0)
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SeriesInstanceUID": "1.2.3.0.9"}
    [localizer] = write_series(root / "scout", _ball(rng, 0)[:1], affine, **{**_person(0), **scout})
    _own_number(localizer, "1.2.3.0.9.0")
    shutil.copy(root / "MRN-00/0/003.dcm", root / "again")
    return root


def _person(number: int) -> dict[str, Any]:
    return {
        "PatientID": f"MRN-0{number:04d}",
        "PatientName": f"PLANTED{number}^Zebulon",
        "PatientAge": f"{40 + 5 * number:03d}Y",
        "PatientSex": "FM"[number % 2],
        "StudyDate": "20200101",
        "ManufacturerModelName": "CT 1",
    }


def _ball(rng: np.random.Generator, number: int) -> npt.NDArray[np.int16]:
    """Stored values `[T, H, W]` of a ball whose radius grows with the patient's number."""
    grid = np.moveaxis(np.mgrid[:DEPTH, :SIDE, :SIDE], 0, -1) - [DEPTH / 2, *rng.uniform(10, 14, 2)]
    away = np.linalg.norm(grid * [2, 1, 1], axis=-1)
    found = 1024 + 300 * (away < 4 + number / 2) + rng.normal(0, 30, away.shape)
    return np.asarray(found, np.int16)


def _own_number(path: Path, uid: str) -> None:
    import pydicom

    header = pydicom.dcmread(path)
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = uid
    header.save_as(path, enforce_file_format=True)


def _move(path: Path, mm: float) -> None:
    import pydicom

    header = pydicom.dcmread(path)
    x, y, z = header.ImagePositionPatient
    header.ImagePositionPatient = [x, y, float(z) + mm]
    header.save_as(path, enforce_file_format=True)
