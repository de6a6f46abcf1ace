"""What a DICOM file is: an image to train on, or why not, by its SOP class, modality and type of image."""

from __future__ import annotations

import pandas as pd

from bolus.scanning.files import ABSENT, DAMAGED, EMPTY

OTHER = "files that are no DICOM"
UNOPENED = "files that cannot be opened"
DICOMDIR = "directories of media (DICOMDIR)"
REPORT = "structured reports, measurements and encapsulated documents"
RADIOTHERAPY = "radiotherapy plans, structures, doses and records"
PRESENTATION = "presentation states, which say how images are shown"
SELECTION = "selections of key objects"
WAVEFORM = "waveforms and sound (ECG and the like)"
SEGMENTATION = "segmentations (SEG)"
SURFACE = "surfaces, registrations, fiducials, raw data and maps of parameters"
SLIDE = "whole-slide images, which are tiles"
NO_IMAGE = "DICOM files without an image"
CAPTURE = "secondary captures that are derived: screenshots, montages, scanned paper"
LOCALIZER = "localizers (scouts)"
NO_PATIENT = "images without a patient identifier"

_UID = "1.2.840.10008."
# Longest first where one is the beginning of another.
_CLASSES = (
    (f"{_UID}1.3.10", DICOMDIR),
    (f"{_UID}5.1.4.1.1.88.59", SELECTION),
    (f"{_UID}5.1.4.1.1.88", REPORT),
    (f"{_UID}5.1.4.1.1.104", REPORT),
    (f"{_UID}5.1.4.1.1.78", REPORT),
    (f"{_UID}5.1.4.1.1.79", REPORT),
    (f"{_UID}5.1.4.1.1.80", REPORT),
    (f"{_UID}5.1.4.1.1.481.1", ""),  # RT Image: a radiograph of the treatment beam
    (f"{_UID}5.1.4.1.1.481", RADIOTHERAPY),
    (f"{_UID}5.1.4.1.1.11", PRESENTATION),
    (f"{_UID}5.1.4.1.1.9", WAVEFORM),
    (f"{_UID}5.1.4.1.1.66.4", SEGMENTATION),
    (f"{_UID}5.1.4.1.1.66.7", SEGMENTATION),
    (f"{_UID}5.1.4.1.1.66", SURFACE),
    (f"{_UID}5.1.4.1.1.67", SURFACE),
    (f"{_UID}5.1.4.1.1.68", SURFACE),
    (f"{_UID}5.1.4.1.1.30", SURFACE),
    (f"{_UID}5.1.4.1.1.4.2", SURFACE),
    (f"{_UID}5.1.4.1.1.77.1.6", SLIDE),
)
_MODALITIES = {
    "SR": REPORT,
    "DOC": REPORT,
    "KO": SELECTION,
    "PR": PRESENTATION,
    "SEG": SEGMENTATION,
    "ECG": WAVEFORM,
    "AU": WAVEFORM,
    "HD": WAVEFORM,
    "EPS": WAVEFORM,
    "REG": SURFACE,
    "FID": SURFACE,
    **dict.fromkeys(("RTPLAN", "RTSTRUCT", "RTDOSE", "RTRECORD", "PLAN"), RADIOTHERAPY),
    "SM": SLIDE,
}
_CAPTURE_CLASS = f"{_UID}5.1.4.1.1.7"
_NOT_TAKEN = frozenset({"OT", "SC", "DOC", ""})  # modalities of captures that say nothing of an image
_SCREENS = ("SCREEN SAVE", "SCREENSAVE", "DOSE_INFO", "DOSE INFO", "MONTAGE", "REPORT")
_NOT_READ = {"other": OTHER, "empty": EMPTY, "absent": ABSENT, "damaged": DAMAGED, "unopened": UNOPENED}
_USED = ["found", "sop_class", "modality", "image_type", "conversion", "pixels", "rows"]


def sort_headers(table: pd.DataFrame, *, keep_captures: bool = False) -> pd.Series:
    """Why each file is no image to train on, in words; empty where it is one.

    Args:
        table: fields of headers, one row a file.
        keep_captures: derived secondary captures are images.

    Example:
        >>> fields = {"found": "image", "image_type": None, "conversion": None, "pixels": 1, "rows": 8}
        >>> sort_headers(pd.DataFrame([fields | {"sop_class": "1.2.840.10008.5.1.4.1.1.88.11", "modality": "SR"},
        ...                            fields | {"sop_class": "1.2.840.10008.5.1.4.1.1.2", "modality": "CT"}])).tolist()
        ['structured reports, measurements and encapsulated documents', '']
    """
    groups = table[_USED].fillna("").assign(pixels=table["pixels"].fillna(0) > 0, rows=table["rows"].fillna(0) > 0)
    codes = groups.groupby(_USED, sort=False).ngroup()
    kinds = groups[~codes.duplicated()]
    reasons = {
        code: _reason(keep_captures, *row)
        for code, row in zip(codes[kinds.index], kinds.itertuples(index=False), strict=True)
    }
    return codes.map(reasons).astype(object)


def _reason(
    keep: bool, found: str, sop_class: str, modality: str, image_type: str, conversion: str, pixels: bool, rows: bool
) -> str:
    if found != "image":
        return _NOT_READ[found]
    for uid, reason in _CLASSES:
        if sop_class == uid or sop_class.startswith(f"{uid}."):
            if reason:
                return reason
            break
    modality, parts = modality.upper(), image_type.upper().split("\\")
    if modality in _MODALITIES:
        return _MODALITIES[modality]
    if not (pixels and rows):
        return NO_IMAGE
    if "LOCALIZER" in parts or "SCOUT" in parts:
        return LOCALIZER
    captured = sop_class == _CAPTURE_CLASS or sop_class.startswith(f"{_CAPTURE_CLASS}.")
    derived = parts[0] == "DERIVED" or modality in _NOT_TAKEN
    screen = any(word in part for part in parts for word in _SCREENS)
    return CAPTURE if not keep and ((captured and derived) or screen) else ""
