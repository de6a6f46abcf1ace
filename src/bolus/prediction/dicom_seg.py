"""Predicted masks as DICOM segmentation objects (SEG, PS3.3 A.51), written by highdicom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bolus import __version__
from bolus.errors import ImageError, require


def write_seg(paths: Sequence[Path], codes: NDArray[np.int64], names: Sequence[str], out: Path) -> None:
    """Write one binary SEG of a series, with a segment for each class.

    The segments are called by the names of the classes; their category and type are "Tissue" (SNOMED CT 85756007),
    since a table of labels does not say more. The object takes over patient and study of the images.

    Args:
        paths: the images, DICOM files of one frame each and of one series.
        codes: classes `[T, H, W]` in the order of the paths, the background 0.
        names: of the classes from 1.
        out: the file.

    Raises:
        MissingPackageError: highdicom is not installed.
        ImageError: images that no SEG can refer to, such as those without a frame of reference.
    """
    highdicom = require("highdicom", "DICOM segmentation objects (SEG)")
    pydicom = require("pydicom", "DICOM files")
    uid = highdicom.UID
    tissue = highdicom.sr.CodedConcept("85756007", "SCT", "Tissue")
    machine = highdicom.AlgorithmIdentificationSequence(
        name="bolus",
        version=__version__,
        family=highdicom.sr.CodedConcept("123109", "DCM", "Artificial Intelligence"),
    )
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            segmented_property_category=tissue,
            segmented_property_type=tissue,
            algorithm_type="AUTOMATIC",
            algorithm_identification=machine,
        )
        for number, name in enumerate(names, start=1)
    ]
    try:
        made = highdicom.seg.Segmentation(
            source_images=[pydicom.dcmread(path, force=True) for path in paths],
            pixel_array=codes.astype(np.uint8 if len(names) < 256 else np.uint16),
            segmentation_type="BINARY",
            segment_descriptions=segments,
            series_instance_uid=uid(),
            series_number=1,
            sop_instance_uid=uid(),
            instance_number=1,
            manufacturer="bolus",
            manufacturer_model_name="bolus",
            software_versions=__version__,
            device_serial_number="none",
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ImageError(f"no SEG can refer to these images: {type(error).__name__}: {str(error)[:150]}") from error
    made.save_as(out)
